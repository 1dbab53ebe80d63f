//! Policies: which one counts, what its tiers and weights come to, and how members are drained.
//!
//! ```text
//!  east (eu) ─┐
//!  west (eu) ─┼─ hub      cart, cart-v2: everywhere   catalog: south alone
//!  south (us)─┘
//! ```
//!
//! Letters: p which policy counts, q tiers and weights, r drain and standby, s policies of the gateway
//! that follow the route. Leaves the world as it was.

mod follow;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{
    and_clear,
    spine::{EAST, SOUTH, WEST, clean_up, route, send, share_of, wait_shares},
};
use crate::{
    fleet::{
        Fleet, shop,
        trial::{Commanded, RECOVERED_MAX, first_failures},
    },
    load::Report,
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
    world::World,
};

const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "tea";
const PATH: &str = "/tea";
const REPLICAS: u8 = 10;
const REQUESTS: u64 = 5000;
/// 2 points; three standard deviations at 30 %.
const TOLERANCE: f64 = 0.02;
const RATE: f64 = 200.0;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    and_clear(tell(&fleet, facts), clean_up(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.init().await?;
    fleet.join_all().await?;
    fleet.open_shop(SOUTH).await?;
    for member in fleet.world().members() {
        fleet.serve(member.name(), SERVICE, "v1", REPLICAS).await?;
    }
    let tea = route(SERVICE, PATH, &[(SERVICE, 1)], &Value::Null);
    fleet.world().hub().objects().apply(&tea).await?;
    fleet.wait_live(PATH).await?;
    fleet.wait_settled().await?;
    facts.look("p1", "the Gateway's policy counts where no other does", of_gateway(fleet)).await;
    facts.look("p2", "the route's policy counts before it", of_route(fleet)).await;
    facts.look("p3", "a second policy for the route is Conflicted", conflict(fleet)).await;
    facts.look("p4", "a policy without a target says so", no_target(fleet)).await;
    facts.look("q1", "a tier by labels follows the labels", selector(fleet)).await;
    facts.look("q2", "the next tier takes what the first cannot", spill(fleet)).await;
    facts.look("q3", "weights 70/30/0 hold within 2 points", weights(fleet)).await;
    facts.look("q4", "they hold while a member with weight dies", weights_killed(fleet)).await;
    facts.look("q5", "it returns to its weight", weights_returned(fleet)).await;
    unset(fleet, "of-route").await?;
    facts.look("r1", "a drain that leaves too little is refused", drain_refused(fleet)).await;
    facts.look("r2", "a drain under load fails no request", drained(fleet)).await;
    facts.look("r3", "undrain gives all back and fails no request", undrained(fleet)).await;
    facts.look("r4", "a standby serves only what nobody else can", standby(fleet)).await;
    follow::play(fleet, facts).await
}

/// A policy in a namespace for one target.
fn policy(namespace: &str, name: &str, target: &Value, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["targetRefs"] = json!([target]);
    // Short, to be watched.
    spec["failback"] = json!({"mode": "Auto", "afterSeconds": 2, "rampSeconds": 4});
    json!({
        "apiVersion": keys::API_VERSION, "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn names(members: &[&str]) -> Value {
    json!({"tiers": [{"members": {"names": members}}]})
}

fn tea() -> Value {
    json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": SERVICE})
}

async fn set(fleet: &Fleet<'_>, name: &str, spec: &Value) -> Result<Instant> {
    let object = policy(shop::NAMESPACE, name, &tea(), spec);
    fleet.world().hub().objects().apply(&object).await?;
    Ok(Instant::now())
}

async fn unset(fleet: &Fleet<'_>, name: &str) -> Result<()> {
    let key = ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, name);
    fleet.world().hub().objects().delete(&key).await
}

/// All entries send everything to one member.
async fn all_to(fleet: &Fleet<'_>, member: &str) -> Result<()> {
    for entry in [EAST, WEST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(member, 1.0)]).await?;
    }
    Ok(())
}

async fn of_gateway(fleet: &Fleet<'_>) -> Result<Finding> {
    let target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"});
    let object = policy(shop::GATEWAY_NAMESPACE, "of-gateway", &target, &names(&[SOUTH]));
    fleet.world().hub().objects().apply(&object).await?;
    let start = Instant::now();
    all_to(fleet, SOUTH).await?;
    Ok(Finding::new(true, figures([("moved_after_s", json!(seconds(start.elapsed())))])))
}

async fn of_route(fleet: &Fleet<'_>) -> Result<Finding> {
    let start = set(fleet, "of-route", &names(&[WEST])).await?;
    all_to(fleet, WEST).await?;
    Ok(Finding::new(true, figures([("moved_after_s", json!(seconds(start.elapsed())))])))
}

/// The condition Accepted of a policy for its only target.
async fn wait_accepted(
    fleet: &Fleet<'_>,
    name: &str,
    status: &str,
    reason: &str,
) -> Result<String> {
    let key = ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, name);
    wait::until(&format!("TrafficPolicy {name} to be {reason}"), LIMIT, || async {
        let object = fleet.world().hub().objects().get(&key).await?.context("no policy")?;
        let found = object.pointer("/status/ancestors/0/conditions/0").cloned().unwrap_or_default();
        let fits = found["status"] == status
            && found["reason"] == reason
            && found["observedGeneration"] == object["metadata"]["generation"];
        let said = found["message"].as_str().unwrap_or_default().to_owned();
        Ok(if fits { Look::Done(said) } else { Look::Not(found.to_string()) })
    })
    .await
}

async fn conflict(fleet: &Fleet<'_>) -> Result<Finding> {
    wait_accepted(fleet, "of-route", "True", "Accepted").await?;
    set(fleet, "of-route-too", &names(&[EAST])).await?;
    let said = wait_accepted(fleet, "of-route-too", "False", "Conflicted").await?;
    all_to(fleet, WEST).await?;
    unset(fleet, "of-route-too").await?;
    Ok(Finding::new(said.contains("shop/of-route"), figures([("said", json!(said))])))
}

async fn no_target(fleet: &Fleet<'_>) -> Result<Finding> {
    let target =
        json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "nobody"});
    let object = policy(shop::NAMESPACE, "of-nobody", &target, &names(&[EAST]));
    fleet.world().hub().objects().apply(&object).await?;
    let said = wait_accepted(fleet, "of-nobody", "False", "TargetNotFound").await?;
    unset(fleet, "of-nobody").await?;
    Ok(Finding::new(true, figures([("said", json!(said))])))
}

async fn label(fleet: &Fleet<'_>, member: &str, labels: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": keys::API_VERSION, "kind": "MemberCluster",
        "metadata": {"name": member, "labels": labels},
    });
    fleet.world().hub().objects().apply(&object).await.map(drop)
}

async fn selector(fleet: &Fleet<'_>) -> Result<Finding> {
    label(fleet, SOUTH, &json!({"size": "large"})).await?;
    let spec = json!({"tiers": [{"members": {"selector": {"matchLabels": {"size": "large"}}}}]});
    set(fleet, "of-route", &spec).await?;
    all_to(fleet, SOUTH).await?;
    label(fleet, EAST, &json!({"size": "large"})).await?;
    label(fleet, SOUTH, &json!({})).await?;
    all_to(fleet, EAST).await?;
    label(fleet, EAST, &json!({})).await?;
    Ok(Finding::new(true, Figures::new()))
}

/// West alone is asked first and has 35 % of its endpoints: with a threshold of 70 % it takes half.
async fn spill(fleet: &Fleet<'_>) -> Result<Finding> {
    const MORE: u8 = 20;
    let world = fleet.world();
    fleet.serve(WEST, SERVICE, "v1", MORE).await?;
    let spec = json!({
        "tiers": [{"members": {"names": [WEST]}}, {"members": {"names": [SOUTH]}}],
        "failover": {"healthyPercent": 70},
    });
    set(fleet, "of-route", &spec).await?;
    all_to(fleet, WEST).await?;
    world.set_ready(WEST, shop::NAMESPACE, SERVICE, 7, MORE).await?;
    wait_shares(fleet, EAST, PATH, &[(WEST, 0.5), (SOUTH, 0.5)]).await?;
    let report = send(fleet, EAST, PATH, REQUESTS).await?;
    let (west, south) = (share_of(&report, WEST), share_of(&report, SOUTH));
    world.set_ready(WEST, shop::NAMESPACE, SERVICE, MORE, MORE).await?;
    all_to(fleet, WEST).await?;
    fleet.serve(WEST, SERVICE, "v1", REPLICAS).await?;
    fleet.wait_ramped("shop/tea").await?;
    let near = |share: f64| (share - 0.5).abs() <= TOLERANCE;
    let holds = near(west) && near(south) && report.failed() == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("west", json!(west)),
            ("south", json!(south)),
            ("failed", json!(report.failed())),
        ]),
    ))
}

async fn weights(fleet: &Fleet<'_>) -> Result<Finding> {
    let spec = json!({"tiers": [{
        "members": {"names": [EAST, WEST, SOUTH]},
        "split": "Weights",
        "weights": {EAST: 70, WEST: 30, SOUTH: 0},
    }]});
    set(fleet, "of-route", &spec).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for entry in [EAST, WEST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(EAST, 0.7), (WEST, 0.3)]).await?;
        fleet.wait_ramped("shop/tea").await?;
        let report = send(fleet, entry, PATH, REQUESTS).await?;
        holds &= is_split(&report, &[(EAST, 0.7), (WEST, 0.3), (SOUTH, 0.0)]);
        more.insert(format!("through {entry}"), shares(&report));
    }
    Ok(Finding::new(holds, more))
}

fn is_split(report: &Report, wanted: &[(&str, f64)]) -> bool {
    let near =
        |(member, share): &(&str, f64)| (share_of(report, member) - share).abs() <= TOLERANCE;
    let nothing = |(member, share): &(&str, f64)| *share > 0.0 || share_of(report, member) == 0.0;
    report.failed() == 0 && wanted.iter().all(|one| near(one) && nothing(one))
}

fn shares(report: &Report) -> Value {
    let share = |member: &str| (share_of(report, member) * 1000.0).round() / 1000.0;
    json!([EAST, WEST, SOUTH].map(share))
}

/// West dies: its 30 % go to east, the only other one with a weight.
async fn weights_killed(fleet: &Fleet<'_>) -> Result<Finding> {
    let recovered = fleet.lose_member(WEST, PATH, RATE).await?;
    let mut more = figures([("recovered_after_ms", json!(milliseconds(recovered)))]);
    let mut holds = recovered <= RECOVERED_MAX;
    for entry in [EAST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(EAST, 1.0)]).await?;
        let report = send(fleet, entry, PATH, REQUESTS).await?;
        holds &= is_split(&report, &[(EAST, 1.0), (WEST, 0.0), (SOUTH, 0.0)]);
        more.insert(format!("through {entry}"), shares(&report));
    }
    Ok(Finding::new(holds, more))
}

async fn weights_returned(fleet: &Fleet<'_>) -> Result<Finding> {
    fleet.bring_back(WEST).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for entry in [EAST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(EAST, 0.7), (WEST, 0.3)]).await?;
        fleet.wait_ramped("shop/tea").await?;
        let report = send(fleet, entry, PATH, REQUESTS).await?;
        holds &= is_split(&report, &[(EAST, 0.7), (WEST, 0.3), (SOUTH, 0.0)]);
        more.insert(format!("through {entry}"), shares(&report));
    }
    Ok(Finding::new(holds, more))
}

/// The catalog runs in south alone.
async fn drain_refused(fleet: &Fleet<'_>) -> Result<Finding> {
    let ran = fleet.at_hub("fairlead drain south --wait").await?;
    let said = ran.said();
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", SOUTH);
    let object = fleet.world().hub().objects().get(&key).await?.context("no member south")?;
    let untouched = object["spec"]["trafficState"] != "Draining";
    let named = said.contains("shop/catalog:80");
    Ok(Finding::new(
        ran.code == Some(1) && untouched && named,
        figures([("exit", json!(ran.code)), ("named", json!(named))]),
    ))
}

/// Every entry keeps its own, but for the drained one.
async fn drained(fleet: &Fleet<'_>) -> Result<Finding> {
    unset_gateway_policy(fleet).await?;
    for entry in [EAST, WEST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(entry, 1.0)]).await?;
    }
    fleet.wait_ramped("shop/tea").await?;
    let drain = fleet.under_load(PATH, RATE, "fairlead drain west --wait").await?;
    let Commanded { report, took, ended_at } = drain;
    wait_shares(fleet, WEST, PATH, &[(EAST, 1.0)]).await?;
    let late = report.only(|sample| sample.started >= ended_at + Duration::from_secs(1));
    let still = share_of(&late, WEST);
    let holds = report.failed() == 0 && still == 0.0 && late.total() > 0;
    Ok(Finding::new(
        holds,
        figures([
            ("failed", json!(report.failed())),
            ("failures", first_failures(&report)),
            ("requests", json!(report.total())),
            ("took_s", json!(seconds(took))),
            ("still_there", json!(still)),
        ]),
    ))
}

async fn unset_gateway_policy(fleet: &Fleet<'_>) -> Result<()> {
    let gateway =
        ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::GATEWAY_NAMESPACE, "of-gateway");
    fleet.world().hub().objects().delete(&gateway).await?;
    set(fleet, "quick", &json!({})).await.map(drop)
}

async fn undrained(fleet: &Fleet<'_>) -> Result<Finding> {
    let undrain = fleet.under_load(PATH, RATE, "fairlead undrain west --wait").await?;
    let Commanded { report, took, .. } = undrain;
    wait_shares(fleet, WEST, PATH, &[(WEST, 1.0)]).await?;
    Ok(Finding::new(
        report.failed() == 0,
        figures([
            ("failed", json!(report.failed())),
            ("failures", first_failures(&report)),
            ("requests", json!(report.total())),
            ("took_s", json!(seconds(took))),
        ]),
    ))
}

async fn standby(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    fleet.at_hub("fairlead drain west --standby").await?.expect_success()?;
    wait_shares(fleet, WEST, PATH, &[(EAST, 1.0)]).await?;
    for member in [EAST, SOUTH] {
        world.set_ready(member, shop::NAMESPACE, SERVICE, 0, REPLICAS).await?;
    }
    let start = Instant::now();
    all_to(fleet, WEST).await?;
    let moved = seconds(start.elapsed());
    for member in [EAST, SOUTH] {
        world.set_ready(member, shop::NAMESPACE, SERVICE, REPLICAS, REPLICAS).await?;
    }
    wait_shares(fleet, SOUTH, PATH, &[(SOUTH, 1.0)]).await?;
    wait_shares(fleet, WEST, PATH, &[(EAST, 1.0)]).await?;
    fleet.at_hub("fairlead undrain west").await?.expect_success()?;
    unset(fleet, "quick").await?;
    Ok(Finding::new(true, figures([("moved_after_s", json!(moved))])))
}
