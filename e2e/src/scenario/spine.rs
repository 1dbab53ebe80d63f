//! The spine: clusters join by a pasted line, a global route is declared in the hub, and real
//! traffic splits, crosses, fails over and comes back.
//!
//! ```text
//!  east (eu) ─┐
//!  west (eu) ─┼─ hub      cart, cart-v2: everywhere   catalog: west alone   tea: 20 replicas each
//!  south (us)─┘
//! ```
//!
//! Facts are numbered as in the plan of the spine: a joins, b splits, c doors, d local first,
//! e failover, f changes, g restarts. Leaves the world as it was.

mod door;
mod edit;
mod failover;
mod join;
mod leave;
mod local;
mod restart;
mod split;

use std::{collections::BTreeMap, time::Duration};

pub(super) use crate::fleet::shop::route;
use anyhow::{Context, Result};

use super::and_clear;
use crate::{
    fleet::{Fleet, dump::Dump, entry, shop},
    load::{Load, Report},
    object::ObjectKey,
    report::Facts,
    wait::{self, Look},
    world::World,
};

pub(super) const EAST: &str = "east";
pub(super) const WEST: &str = "west";
pub(super) const SOUTH: &str = "south";
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
/// The member that alone has the catalog.
const CATALOG_HOME: &str = WEST;
/// Requests at a time through one entry.
const AT_ONCE: usize = 8;
/// How long the fleet may take to act on a change that it must notice by itself.
const ACT_LIMIT: Duration = Duration::from_secs(60);

/// The world with Fairlead on it, and what its members held before.
struct Stage<'w> {
    fleet: Fleet<'w>,
    before: BTreeMap<String, Dump>,
}

/// How much of the story is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Up to local first: nothing is broken on purpose.
    Core,
    Whole,
}

/// The whole story.
pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    play(world, facts, Extent::Whole).await
}

/// What `cargo verify` plays.
pub(super) async fn run_core(world: &World, facts: &mut Facts) -> Result<()> {
    play(world, facts, Extent::Core).await
}

async fn play(world: &World, facts: &mut Facts, extent: Extent) -> Result<()> {
    let stage = Stage { fleet: Fleet::built(world).await?, before: dump_members(world).await? };
    and_clear(tell(&stage, facts, extent), clean_up(&stage.fleet)).await
}

async fn tell(stage: &Stage<'_>, facts: &mut Facts, extent: Extent) -> Result<()> {
    join::play(stage, facts).await?;
    let fleet = &stage.fleet;
    fleet.open_shop(CATALOG_HOME).await.context("opening the shop")?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    fleet.wait_settled().await?;
    split::play(stage, facts).await?;
    door::play(stage, facts).await?;
    local::play(stage, facts).await?;
    if extent == Extent::Core {
        return Ok(());
    }
    failover::play(stage, facts).await?;
    edit::play(stage, facts).await?;
    restart::play(stage, facts).await?;
    leave::play(stage, facts).await
}

/// Takes Fairlead, the shop and its namespaces out of all clusters.
pub(super) async fn clean_up(fleet: &Fleet<'_>) -> Result<()> {
    let world = fleet.world();
    let namespaces = [shop::NAMESPACE, shop::GATEWAY_NAMESPACE];
    for name in namespaces {
        let key = ObjectKey::new("v1", "Namespace", "", name);
        world.hub().objects().delete(&key).await?;
    }
    fleet.uninstall().await?;
    for name in namespaces {
        let key = ObjectKey::new("v1", "Namespace", "", name);
        world.hub().objects().wait_gone(&key, ACT_LIMIT).await?;
    }
    world.forget(&namespaces).await
}

pub(super) async fn dump_members(world: &World) -> Result<BTreeMap<String, Dump>> {
    let mut dumps = BTreeMap::new();
    for member in world.members() {
        dumps.insert(member.name().to_owned(), Dump::take(member).await?);
    }
    Ok(dumps)
}

/// The key of a route in the shop's namespace.
pub(super) fn route_key(name: &str) -> ObjectKey {
    ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, name)
}

/// A condition of a MemberCluster: its status and reason.
pub(super) async fn member_condition(
    fleet: &Fleet<'_>,
    member: &str,
    kind: &str,
) -> Result<(String, String)> {
    let key = ObjectKey::new(fairlead_crds::keys::API_VERSION, "MemberCluster", "", member);
    let object = fleet.world().hub().objects().get(&key).await?;
    let object = object.with_context(|| format!("there is no {key}"))?;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let found = found.with_context(|| format!("{key} has no condition {kind}"))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason")))
}

pub(super) async fn wait_member_condition(
    fleet: &Fleet<'_>,
    member: &str,
    kind: &str,
    status: &str,
    reason: &str,
) -> Result<()> {
    let what = format!("{kind} of {member} to be {status} {reason}");
    wait::until(&what, ACT_LIMIT, || async {
        let found = member_condition(fleet, member, kind).await?;
        if found.0 == status && (reason.is_empty() || found.1 == reason) {
            return Ok(Look::Done(()));
        }
        Ok(Look::Not(format!("it is {} {}", found.0, found.1)))
    })
    .await
}

/// Sends so many requests through one entry.
pub(super) async fn send(
    fleet: &Fleet<'_>,
    name: &str,
    path: &str,
    requests: u64,
) -> Result<Report> {
    let address = entry(fleet.world().member(name)?).await?;
    Ok(Load::new(shop::HOST, path).entry(name, address).requests(requests, AT_ONCE).run().await)
}

/// Part of the requests that a member answered.
pub(super) fn share_of(report: &Report, target: &str) -> f64 {
    let shares = report.shares(|sample| sample.outcome.target.clone());
    shares.get(target).copied().unwrap_or_default()
}

/// Requests of one look while waiting for shares to move.
const LOOK_REQUESTS: u64 = 100;
/// Shares of a look are rough: ten points are two standard deviations.
const LOOK_TOLERANCE: f64 = 0.12;

/// Waits until an entry's shares are about these; members that are not named get nothing.
pub(super) async fn wait_shares(
    fleet: &Fleet<'_>,
    name: &str,
    path: &str,
    wanted: &[(&str, f64)],
) -> Result<()> {
    wait::until(&format!("{path} through {name} to be shared as {wanted:?}"), ACT_LIMIT, || async {
        let report = send(fleet, name, path, LOOK_REQUESTS).await?;
        let shares = report.shares(|sample| sample.outcome.target.clone());
        let wanted_of = |target: &String| {
            wanted.iter().find(|(name, _)| name == target).map_or(0.0, |(_, share)| *share)
        };
        let surprise = shares.iter().find(|(target, share)| {
            (*share - wanted_of(target)).abs() > LOOK_TOLERANCE
                || (wanted_of(target) == 0.0 && **share > 0.0)
        });
        let missing = wanted
            .iter()
            .find(|(target, share)| *share > LOOK_TOLERANCE && !shares.contains_key(*target));
        Ok(match (surprise, missing) {
            (None, None) => Look::Done(()),
            _ => Look::Not(format!("the last {LOOK_REQUESTS} were {shares:?}")),
        })
    })
    .await
}
