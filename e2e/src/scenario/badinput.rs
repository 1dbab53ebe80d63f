//! Bad input: what users and clusters may do wrong, one fact each. In each the fault is told with
//! object, reason and next step, the smallest part is left out, and everything else goes on.
//!
//! Letters: h a cluster before its join, i objects in the hub, j objects in members.

mod definition;
mod member;
mod route;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    and_clear,
    spine::{clean_up, route_key},
};
use crate::{
    fleet::{Fleet, shop},
    load::Load,
    report::{Facts, Figures, Finding},
    wait::{self, Look},
    world::World,
};

const EAST: &str = "east";
const WEST: &str = "west";
const SOUTH: &str = "south";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
/// Requests through each entry that show that nothing else is affected.
const OTHERS: u64 = 60;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    and_clear(tell(&fleet, facts), clean_up(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.init().await?;
    definition::play_before_join(fleet, facts).await?;
    fleet.join_all().await?;
    fleet.open_shop(WEST).await?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    fleet.wait_settled().await?;
    route::play(fleet, facts).await?;
    definition::play(fleet, facts).await?;
    member::play(fleet, facts).await
}

/// Completes a finding: it holds only if nothing else was affected.
async fn beside(fleet: &Fleet<'_>, mut finding: Finding) -> Result<Finding> {
    let mut load = fleet.load(shop::CART).await?.requests(OTHERS, 4);
    load.path = shop::CART.to_owned();
    let others = load.run().await;
    finding.figures.insert("others_failed".into(), others.failed().into());
    let more: Figures = finding.figures;
    Ok(Finding::new(finding.holds == crate::report::Holds::Yes && others.failed() == 0, more))
}

/// A condition of one of a hub route's parents: its status, reason and message.
async fn route_condition(
    fleet: &Fleet<'_>,
    name: &str,
    kind: &str,
) -> Result<(String, String, String)> {
    let route = fleet.world().hub().objects().get(&route_key(name)).await?;
    let route = route.with_context(|| format!("there is no route {name}"))?;
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let mut conditions =
        parents.iter().filter_map(|parent| parent["conditions"].as_array()).flatten();
    let found = conditions.find(|condition| condition["type"] == kind);
    let found = found.with_context(|| format!("route {name} has no condition {kind}"))?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

pub(super) async fn wait_route_condition(
    fleet: &Fleet<'_>,
    name: &str,
    kind: &str,
    fits: impl Fn(&(String, String, String)) -> bool,
) -> Result<(String, String, String)> {
    wait::until(&format!("{kind} of route {name}"), LIMIT, || async {
        let found = route_condition(fleet, name, kind).await?;
        Ok(if fits(&found) { Look::Done(found) } else { Look::Not(format!("it is {found:?}")) })
    })
    .await
}

/// What the hub tells of a route in a member, as text: entries, explanation and notes.
async fn told_of(fleet: &Fleet<'_>, name: &str) -> Result<String> {
    let routes = fleet.routes().await?;
    let view = routes.iter().find(|view| &*view.route.name.name == name);
    let explanation = fleet.explain(&format!("{}/{name}", shop::NAMESPACE)).await.ok();
    Ok(format!("{view:?} {explanation:?}"))
}

/// Shares of the answers to a path through one entry, failures by their status.
async fn answers(
    fleet: &Fleet<'_>,
    entry: &str,
    path: &str,
    requests: u64,
) -> Result<std::collections::BTreeMap<String, f64>> {
    let address = crate::fleet::entry(fleet.world().member(entry)?).await?;
    let load = Load::new(shop::HOST, path).entry(entry, address).requests(requests, 4);
    let report = load.run().await;
    Ok(report.shares(|sample| match sample.outcome.target.as_str() {
        "" => format!("{}{}", sample.outcome.status, sample.outcome.error),
        target => target.to_owned(),
    }))
}

/// A list of a JSON object, empty if there is none.
fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
