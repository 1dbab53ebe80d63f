//! The records of the MCS-API's DNS specification, line by line.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_model::NsName;

use super::*;
use crate::clusterset::Endpoint;
use crate::dns::{Code, Reply};

fn port(name: &str, number: u16) -> NamedPort {
    NamedPort { name: name.to_owned(), protocol: "tcp".to_owned(), number }
}

fn endpoint(hostname: &str, address: &str) -> Endpoint {
    let ports = [port("http", 8_080)].into();
    Endpoint { hostname: hostname.to_owned(), address: address.parse().unwrap(), ports }
}

fn view() -> View {
    let cart = Reach {
        addresses: ["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()].into(),
        ports: [port("http", 80)].into(),
        endpoints: Vec::new(),
    };
    let pets = Reach {
        endpoints: vec![endpoint("pet-0", "10.0.0.1"), endpoint("pet-1", "10.0.0.2")],
        ..Reach::default()
    };
    let services: Clusterset = [
        (NsName::new("shop", "cart"), cart),
        (NsName::new("shop", "pets"), pets),
        (NsName::new("shop", "away"), Reach::default()),
    ]
    .into();
    View::of_clusterset(&services, &MemberId::new("east").unwrap(), 7)
}

fn ask<'a>(view: &'a View, name: &str, kind: Kind) -> Reply<'a> {
    view.answer(name, kind, "10.0.0.9".parse().unwrap(), 5)
}

fn text(records: &[Record<'_>]) -> Vec<String> {
    let one = |record: &Record<'_>| match &record.data {
        Data::Address(ip) => format!("{} {ip}", record.ttl_s),
        Data::Location { port, target, .. } => format!("{} SRV {port} {target}", record.ttl_s),
        Data::Text(text) => format!("{} TXT {text}", record.ttl_s),
        other => format!("{} {other:?}", record.ttl_s),
    };
    let mut all: Vec<String> = records.iter().map(one).collect();
    all.sort();
    all
}

#[test]
fn every_record_of_the_specification_is_there() {
    const V4: Kind = Kind::Address(Family::V4);
    const V6: Kind = Kind::Address(Family::V6);
    let lines: [(&str, &str, Kind, &[&str]); 9] = [
        ("2.2 schema version", "dns-version.clusterset.local", Kind::Text, &["28800 TXT 1.0.0"]),
        ("2.3.1 A", "cart.shop.svc.clusterset.local", V4, &["5 10.96.0.7"]),
        ("2.3.1 AAAA", "cart.shop.svc.clusterset.local", V6, &["5 fd00::7"]),
        (
            "2.3.2 SRV",
            "_http._tcp.cart.shop.svc.clusterset.local",
            Kind::Location,
            &["5 SRV 80 cart.shop.svc.clusterset.local"],
        ),
        (
            "2.4.1 A of all endpoints",
            "pets.shop.svc.clusterset.local",
            V4,
            &["5 10.0.0.1", "5 10.0.0.2"],
        ),
        ("2.4.1 A of one", "pet-0.east.pets.shop.svc.clusterset.local", V4, &["5 10.0.0.1"]),
        (
            "2.4.2 SRV",
            "_http._tcp.pets.shop.svc.clusterset.local",
            Kind::Location,
            &[
                "5 SRV 8080 pet-0.east.pets.shop.svc.clusterset.local",
                "5 SRV 8080 pet-1.east.pets.shop.svc.clusterset.local",
            ],
        ),
        ("an address of the other family", "pets.shop.svc.clusterset.local", V6, &[]),
        ("no address from here", "away.shop.svc.clusterset.local", V4, &[]),
    ];
    let view = view();
    for (what, name, kind, wanted) in lines {
        let reply = ask(&view, name, kind);
        assert_eq!(
            (reply.code, text(&reply.answers)),
            (Code::NoError, wanted.iter().map(|t| (*t).to_owned()).collect()),
            "{what}"
        );
    }
}

#[test]
fn whoever_is_led_to_a_host_gets_its_addresses() {
    let view = view();
    let reply = ask(&view, "_http._tcp.cart.shop.svc.clusterset.local", Kind::Location);
    assert_eq!(text(&reply.additional), ["5 10.96.0.7", "5 fd00::7"]);
    let owners: Vec<_> = reply.additional.iter().filter_map(|record| record.owner).collect();
    assert_eq!(owners, ["cart.shop.svc.clusterset.local"; 2]);
}

#[test]
fn what_must_not_exist_does_not() {
    let names = [
        // 2.3.4: no way to name one cluster's backends.
        ("east.cart.shop.svc.clusterset.local", Code::NameError),
        ("west.pets.shop.svc.clusterset.local", Code::NameError),
        ("nope.shop.svc.clusterset.local", Code::NameError),
        ("cart.other.svc.clusterset.local", Code::NameError),
        ("cart.shop.svc.cluster.local", Code::Refused),
        // Names between exist without records.
        ("shop.svc.clusterset.local", Code::NoError),
        ("svc.clusterset.local", Code::NoError),
        ("east.pets.shop.svc.clusterset.local", Code::NoError),
    ];
    let view = view();
    for (name, code) in names {
        let reply = ask(&view, name, Kind::Address(Family::V4));
        assert_eq!((reply.code, reply.answers.len()), (code, 0), "{name}");
        let says =
            reply.authority.iter().any(|r| matches!(r.data, Data::Start(s) if s.serial == 7));
        assert_eq!(says, code != Code::Refused, "{name}: the SOA says how long it holds");
    }
}

#[test]
fn answers_begin_anywhere() {
    let view = view();
    let name = "pets.shop.svc.clusterset.local";
    let first = |seed: u64| {
        let reply = view.answer(name, Kind::Address(Family::V4), "10.0.0.9".parse().unwrap(), seed);
        reply.answers.first().map(|record| record.data.clone())
    };
    let firsts = [first(0), first(1 << 32)];
    assert_ne!(firsts[0], firsts[1]);
}
