//! Benches: figures measured on a world, as tables and JSON.
//!
//! Adding one is a module and a line in [`ALL`].

mod dns;
mod failover;
mod gateway;
mod propagation;
mod relay;
mod resource;
mod store;

use anyhow::Result;
use futures::future::BoxFuture;

pub(crate) use self::resource::usage;
use crate::{
    report::{self, Row},
    world::{World, WorldSpec},
};

/// One bench.
pub struct Bench {
    pub name: &'static str,
    /// One line for the list.
    pub about: &'static str,
    /// How many members it needs.
    pub members: usize,
    pub run: for<'a> fn(&'a World, &'a Options) -> BoxFuture<'a, Result<Vec<Row>>>,
}

/// What whoever runs a bench may choose; benches without such a choice ignore it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How often everything is measured.
    pub rounds: Option<u32>,
    /// Only rows whose name contains this.
    pub only: Option<String>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| row.contains(only))
    }
}

/// All benches.
pub const ALL: &[Bench] = &[
    Bench {
        name: "dns",
        about: "queries per second of an agent's DNS server beside Knot's (needs dnsperf and knotd)",
        members: 1,
        run: |world, _| Box::pin(dns::run(world)),
    },
    Bench {
        name: "gateway",
        about: "API call to live in the last of three Envoys, routes written by a script",
        members: 3,
        run: |world, _| Box::pin(gateway::run(world)),
    },
    Bench {
        name: "propagation",
        about: "a change in the hub to live in the last of three Envoys, beside that; memory, CPU",
        members: 3,
        run: |world, _| Box::pin(propagation::run(world)),
    },
    Bench {
        name: "failover",
        about: "a fault to 99 % of requests succeeding again, with and without a hub; runs add up",
        members: 3,
        run: |world, options| Box::pin(failover::run(world, options)),
    },
    Bench {
        name: "relay",
        about: "the OTLP relay of an agent beside Jaeger's collector doing the same: spans per core, memory",
        members: 1,
        run: |world, _| Box::pin(relay::run(world)),
    },
    Bench {
        name: "store",
        about: "the hub's stores: a change as the hub writes it, and a start that reads a large fleet",
        members: 0,
        run: |world, _| Box::pin(store::run(world)),
    },
];

/// Finds a bench by name.
pub fn find(name: &str) -> Option<&'static Bench> {
    ALL.iter().find(|bench| bench.name == name)
}

/// Runs a bench on a world of its own and writes its report.
pub async fn measure(bench: &Bench, options: &Options) -> Result<()> {
    let world = World::up(WorldSpec::with_members(bench.members)).await?;
    let rows = (bench.run)(&world, options).await?;
    let file = report::write_bench(bench.name, &rows)?;
    println!("written to {}", file.display());
    Ok(())
}
