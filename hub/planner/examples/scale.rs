//! How long a full plan takes: `cargo run --release -p fairlead-planner --example scale [MEMBERS ROUTES]`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::time::Instant;

use fairlead_planner::plan;
use fixture::{
    id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service, ns_name, snapshot_of,
};

fn main() {
    let mut figures = std::env::args().skip(1).map(|arg| arg.parse::<usize>().unwrap());
    let (members, routes) = (figures.next().unwrap_or(100), figures.next().unwrap_or(200));
    let mut all = BTreeMap::new();
    for number in 0..members {
        let name = format!("m{number:04}");
        let (mut spec, mut input) = mk_member(&name, number);
        spec.region = Some(format!("r{}", number % 5));
        spec.zone = Some(format!("z{}", number % 15));
        for service in 0..routes {
            // Every service in a tenth of the members.
            if (number + service) % 10 == 0 {
                let service = ns_name(&format!("shop/s{service}"));
                snapshot_of(&mut input).services.insert(service, mk_service(3, 4));
            }
        }
        all.insert(id(&name), (spec, input));
    }
    let routes = (0..routes).map(|n| {
        let backends = [
            mk_backend(&format!("shop/s{n}"), 80),
            mk_backend(&format!("shop/s{}", (n + 1) % routes), 20),
        ];
        mk_route(&format!("HTTPRoute/shop/r{n}"), vec![mk_rule(backends)])
    });
    let mut input = mk_fleet(all, routes.collect());
    for round in ["first plan", "same again"] {
        let started = Instant::now();
        let planned = plan(&input);
        let (took, n) = (started.elapsed(), planned.decisions.len());
        println!("{round}: {members} members x {n} routes: {took:?}");
        input.memory = planned.memory;
    }
}
