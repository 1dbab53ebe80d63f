//! Scenarios: stories on a world, told as facts with figures.
//!
//! A scenario gets a world that is up, and leaves it as it found it, so that several can share
//! one. Adding one is a module and a line in [`ALL`].

mod badinput;
mod consent;
mod crossing;
mod dns;
mod failover;
mod harness;
mod identity;
mod policy;
mod rebuild;
mod replicas;
mod rollback;
mod routes;
mod selfhub;
mod spine;
mod store;
mod traces;

use anyhow::{Context, Result};
use futures::future::BoxFuture;

use crate::{
    report::Facts,
    world::{GatewayApi, World, WorldSpec},
};

/// One scenario.
pub struct Scenario {
    pub name: &'static str,
    /// One line for `cargo e2e list`.
    pub about: &'static str,
    /// How many members it needs.
    pub members: usize,
    pub played: Played,
    pub run: for<'a> fn(&'a World, &'a mut Facts) -> BoxFuture<'a, Result<()>>,
}

/// Who plays a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Played {
    /// `cargo verify` too: quick, and the same on a busy machine.
    ByVerify,
    /// `cargo e2e run` only.
    OnRequest,
}

/// All scenarios, in the order in which `--all` runs them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "crossing",
        about: "a crossing between two members made of standard objects by hand, without Fairlead",
        members: 2,
        played: Played::ByVerify,
        run: |world, facts| Box::pin(crossing::run(world, facts)),
    },
    Scenario {
        name: "harness",
        about: "the harness's kubelet and faults do what they say",
        members: 2,
        played: Played::ByVerify,
        run: |world, facts| Box::pin(harness::run(world, facts)),
    },
    Scenario {
        name: "spine-core",
        about: "the part of the spine that cargo verify plays: joins, splits, doors, local first",
        members: 3,
        played: Played::ByVerify,
        run: |world, facts| Box::pin(spine::run_core(world, facts)),
    },
    Scenario {
        name: "spine",
        about: "joins, splits, doors, local first, failover, changes, restarts, leaving",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(spine::run(world, facts)),
    },
    Scenario {
        name: "failover",
        about: "what may fail, one after the other, under load: who stops sending, who stays",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(failover::run(world, facts)),
    },
    Scenario {
        name: "badinput",
        about: "what users and clusters may do wrong: told, bounded, nothing else affected",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(badinput::run(world, facts)),
    },
    Scenario {
        name: "routes",
        about: "every feature of routes, served from another member as from one cluster",
        members: 2,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(routes::run(world, facts)),
    },
    Scenario {
        name: "selfhub",
        about: "a hub whose own cluster is a member: nothing that its agent writes is declared again",
        members: 2,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(selfhub::run(world, facts)),
    },
    Scenario {
        name: "policy",
        about: "which TrafficPolicy counts, tiers, weights that hold while a member dies, drains",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(policy::run(world, facts)),
    },
    Scenario {
        name: "consent",
        about: "whatever is forged, claimed or named, only what was exported and granted is reached",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(consent::run(world, facts)),
    },
    Scenario {
        name: "traces",
        about: "what crosses is one trace in Jaeger, with the target; a backend that is away harms nobody",
        members: 3,
        // Jaeger is a tool of its own, minutes to build.
        played: Played::OnRequest,
        run: |world, facts| Box::pin(traces::run(world, facts)),
    },
    Scenario {
        name: "dns",
        about: "every agent answers for a zone by its policy, and leaves out who is dead; beside BIND, unbound, ExternalDNS and CoreDNS",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(dns::run(world, facts)),
    },
    Scenario {
        name: "replicas",
        about: "three hubs on an etcd of three nodes, under load: killed, stopped, paused, cut off and upgraded",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(replicas::run(world, facts)),
    },
    Scenario {
        name: "rollback",
        about: "history, diff and rollback under load; a bad change is stopped at the member that tries it",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(rollback::run(world, facts)),
    },
    Scenario {
        name: "rebuild",
        about: "the hub's cluster is lost for good, and made anew from a backup, under load",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(rebuild::run(world, facts)),
    },
    Scenario {
        name: "identity",
        about: "certificates and keys: renewed, expired, changed, revoked and stolen, under load",
        members: 3,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(identity::run(world, facts)),
    },
    Scenario {
        name: "store",
        about: "one contract for both stores, on an etcd of three nodes too; nodes and writers are killed",
        members: 0,
        played: Played::OnRequest,
        run: |world, facts| Box::pin(store::run(world, facts)),
    },
];

/// Scenarios that need kinds or fields of the experimental channel.
const EXPERIMENTAL: [&str; 1] = ["routes"];

/// Finds a scenario by name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// A world that is enough for all of these.
pub fn world_for(scenarios: &[&Scenario]) -> WorldSpec {
    let members = scenarios.iter().map(|scenario| scenario.members).max().unwrap_or(0);
    let mut spec = WorldSpec::with_members(members);
    if scenarios.iter().any(|scenario| EXPERIMENTAL.contains(&scenario.name)) {
        spec.gateway_api = GatewayApi::Experimental;
    }
    spec
}

/// Tells a story, then clears the world, also after a failure: other scenarios share it.
async fn and_clear(
    told: impl Future<Output = Result<()>>,
    cleared: impl Future<Output = Result<()>>,
) -> Result<()> {
    let told = told.await;
    let cleared = cleared.await.context("taking Fairlead out of the world again");
    told.and(cleared)
}

/// Runs one scenario and writes its report. What it could not even set up is a fact, too.
pub async fn play(scenario: &Scenario, world: &World) -> Result<Facts> {
    println!("\n{}: {}", scenario.name, scenario.about);
    let mut facts = Facts::new(scenario.name);
    if let Err(error) = (scenario.run)(world, &mut facts).await {
        facts.look("!", "the scenario can be played to its end", async { Err(error) }).await;
    }
    facts.write()?;
    Ok(facts)
}
