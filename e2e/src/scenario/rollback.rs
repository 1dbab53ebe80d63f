//! History: what was decided before is told, compared and gone back to, under load.
//!
//! ```text
//!  east ─┐
//!  west ─┼─ hub      tea: everywhere, by given weights
//!  south ┘
//! ```
//!
//! Letters: a history, diff and rollback, s changes that are tried at one member first, e the same with two
//! hubs on an etcd. Leaves the world as it was.

mod replicated;
mod staged;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_crds::keys;
use fairlead_model::history::{DiffView, Entry, HistoryView, Move};
use serde_json::{Value, json};

use super::{
    and_clear,
    spine::{EAST, SOUTH, WEST, clean_up, route, route_key, wait_shares},
};
use crate::{
    etcd::Etcd,
    fleet::{
        Fleet, shop,
        trial::{Commanded, RECOVERED_MAX, first_failures},
    },
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
    world::World,
};

const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "tea";
const ROUTE: &str = "shop/tea";
const PATH: &str = "/tea";
const POLICY: &str = "of-tea";
const REPLICAS: u8 = 2;
const RATE: f64 = 150.0;
/// A rollback is live in every member within that time, on a busy machine.
const ROLLED_BACK_MAX: Duration = Duration::from_secs(15);
/// Weights of east, west and south: as they were, and as they are.
const THEN: [u32; 3] = [70, 30, 0];
const NOW: [u32; 3] = [20, 80, 0];

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    let folder = tempfile::tempdir_in(world.folder()).context("a folder for etcd")?;
    let etcd = replicated::start_etcd(&fleet, folder.path()).await?;
    let told = and_clear(tell(&fleet, &etcd, facts), clear(&fleet)).await;
    // The hub must have its store until its members are gone.
    etcd.kill(0).await;
    told
}

async fn clear(fleet: &Fleet<'_>) -> Result<()> {
    let untraced = staged::close(fleet).await;
    clean_up(fleet).await?;
    untraced
}

async fn tell(fleet: &Fleet<'_>, etcd: &Etcd, facts: &mut Facts) -> Result<()> {
    staged::open(fleet).await?;
    fleet.open_shop(SOUTH).await?;
    for member in fleet.world().members() {
        fleet.serve(member.name(), SERVICE, "v1", REPLICAS).await?;
    }
    let tea = route(SERVICE, PATH, &[(SERVICE, 1)], &Value::Null);
    fleet.world().hub().objects().apply(&tea).await?;
    fleet.wait_live(PATH).await?;
    fleet.wait_settled().await?;
    weigh(fleet, THEN).await?;
    let then = fleet.newest_change(ROUTE).await?;
    facts.look("a1", "history tells each change with its cause", told_of(fleet, &then)).await;
    let now = fleet.newest_change(ROUTE).await?;
    let name = "diff names exactly the shares that moved";
    facts.look("a2", name, differs(fleet, then.number, now.number)).await;
    let name = "a rollback under load restores the shares and fails no request";
    facts.look("a3", name, rolled_back(fleet, then.number)).await;
    facts.look("a4", "the pin is seen in status, list and explain", seen(fleet, then.number)).await;
    let name = "pin and history survive a restart of the hub";
    facts.look("a5", name, restarted(fleet, then.number)).await;
    facts.look("a6", "a pinned route fails over when a member dies", failed_over(fleet)).await;
    let name = "an export that is withdrawn gets nothing although the route is pinned";
    facts.look("a7", name, withdrawn(fleet)).await;
    let name = "a pin that cannot be had says so and changes nothing";
    facts.look("a8", name, impossible(fleet)).await;
    let name = "a release under load brings the newest back and fails no request";
    facts.look("a9", name, released(fleet)).await;
    staged::play(fleet, facts).await?;
    replicated::play(fleet, etcd, facts).await
}

/// Gives the members weights, and waits until they hold.
async fn weigh(fleet: &Fleet<'_>, weights: [u32; 3]) -> Result<()> {
    let members = [EAST, WEST, SOUTH];
    let by_member: serde_json::Map<String, Value> =
        members.into_iter().zip(weights).map(|(m, w)| (m.to_owned(), w.into())).collect();
    let object = json!({
        "apiVersion": keys::API_VERSION, "kind": "TrafficPolicy",
        "metadata": {"name": POLICY, "namespace": shop::NAMESPACE},
        "spec": {
            "targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "HTTPRoute", "name": SERVICE}],
            "tiers": [{"members": {"names": members}, "split": "Weights", "weights": by_member}],
            // Short, to be watched.
            "failback": {"mode": "Auto", "afterSeconds": 2, "rampSeconds": 4},
        },
    });
    fleet.world().hub().objects().apply(&object).await?;
    wait_weights(fleet, weights).await
}

async fn wait_weights(fleet: &Fleet<'_>, [east, west, south]: [u32; 3]) -> Result<()> {
    let share = |weight: u32| f64::from(weight) / f64::from(east + west + south);
    let wanted: Vec<(&str, f64)> = [(EAST, east), (WEST, west), (SOUTH, south)]
        .into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(member, weight)| (member, share(weight)))
        .collect();
    for entry in [EAST, WEST, SOUTH] {
        wait_shares(fleet, entry, PATH, &wanted).await?;
    }
    Ok(())
}

async fn told_of(fleet: &Fleet<'_>, then: &Entry) -> Result<Finding> {
    weigh(fleet, NOW).await?;
    let newest = fleet.newest_change(ROUTE).await?;
    let causes: Vec<String> = newest.causes.iter().map(ToString::to_string).collect();
    let named = causes.iter().any(|cause| {
        cause.starts_with(&format!("TrafficPolicy {}/{POLICY} generation 2", shop::NAMESPACE))
    });
    let table = fleet.at_hub(&format!("fairlead history {ROUTE}")).await?.expect_success()?;
    let shown = table.contains(&newest.number.to_string()) && table.contains("70.00 % → 20.00 %");
    let of_member = fleet.ask::<HistoryView>(&format!("fairlead history {WEST} -o json")).await?;
    let listed = of_member.entries.iter().any(|entry| entry.number == newest.number);
    let unknown = fleet.at_hub("fairlead history nobody").await?;
    let holds = named && shown && listed && newest.number > then.number && unknown.code == Some(1);
    Ok(Finding::new(
        holds,
        figures([
            ("causes", json!(causes)),
            ("moved", json!(newest.moved.len())),
            ("revision", json!(newest.number)),
            ("shown", json!(shown)),
            ("of_a_member", json!(listed)),
        ]),
    ))
}

/// What a change of weights must come to: by entries, target, before, after.
fn expected(from: [u32; 3], to: [u32; 3]) -> BTreeSet<(String, String, u32, u32)> {
    let members = [EAST, WEST, SOUTH];
    let mut expected = BTreeSet::new();
    for (at, target) in members.into_iter().enumerate() {
        let (before, after) = (from[at] * 100, to[at] * 100);
        if before == after {
            continue;
        }
        for entry in members {
            let to = if entry == target { "itself" } else { target };
            expected.insert((entry.to_owned(), to.to_owned(), before, after));
        }
    }
    expected
}

fn moved(moves: &[Move]) -> BTreeSet<(String, String, u32, u32)> {
    let mut moved = BTreeSet::new();
    for one in moves {
        let to = one.to.member.as_ref().map_or("itself".to_owned(), ToString::to_string);
        for entry in &one.entries.names {
            moved.insert((entry.to_string(), to.clone(), one.before, one.after));
        }
    }
    moved
}

async fn differs(fleet: &Fleet<'_>, then: u64, now: u64) -> Result<Finding> {
    let diff: DiffView = fleet.ask(&format!("fairlead diff {then} {now} -o json")).await?;
    let to_now: DiffView =
        fleet.ask(&format!("fairlead diff {then} --route {ROUTE} -o json")).await?;
    let back: DiffView = fleet.ask(&format!("fairlead diff {now} {then} -o json")).await?;
    let one = |diff: &DiffView| diff.routes.iter().flat_map(|route| moved(&route.moved)).collect();
    let found: [BTreeSet<_>; 3] = [one(&diff), one(&to_now), one(&back)];
    let wanted = [expected(THEN, NOW), expected(THEN, NOW), expected(NOW, THEN)];
    let same: DiffView = fleet.ask(&format!("fairlead diff {now} {now} -o json")).await?;
    let future = fleet.at_hub("fairlead diff 1 999999").await?;
    let refused = future.code == Some(1) && future.said().contains("999999");
    Ok(Finding::new(
        found == wanted && same.routes.is_empty() && refused,
        figures([("moved", json!(found[0])), ("future_refused", json!(refused))]),
    ))
}

async fn moved_by(fleet: &Fleet<'_>, line: &str, weights: [u32; 3]) -> Result<Finding> {
    let Commanded { report, took, .. } = fleet.under_load(PATH, RATE, line).await?;
    wait_weights(fleet, weights).await?;
    Ok(Finding::new(
        report.failed() == 0 && took <= ROLLED_BACK_MAX,
        figures([
            ("took_s", json!(seconds(took))),
            ("requests", json!(report.total())),
            ("failed", json!(report.failed())),
            ("failures", first_failures(&report)),
        ]),
    ))
}

async fn rolled_back(fleet: &Fleet<'_>, number: u64) -> Result<Finding> {
    moved_by(fleet, &format!("fairlead rollback {ROUTE} --to {number}"), THEN).await
}

async fn released(fleet: &Fleet<'_>) -> Result<Finding> {
    let finding = moved_by(fleet, &format!("fairlead rollback {ROUTE} --release"), NOW).await?;
    let gone = wait::until("the condition to be gone", LIMIT, || async {
        Ok(match condition_of(fleet, keys::CONDITION_PINNED).await? {
            None => Look::Done(()),
            Some(found) => Look::Not(format!("{found:?}")),
        })
    });
    gone.await?;
    Ok(finding)
}

/// A condition of the route: its status, reason and message.
async fn condition_of(fleet: &Fleet<'_>, kind: &str) -> Result<Option<(String, String, String)>> {
    let object = fleet.world().hub().objects().get(&route_key(SERVICE)).await?;
    let object = object.context("the route is gone")?;
    let conditions = object.pointer("/status/parents/0/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|one| one["type"] == kind);
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    Ok(found.map(|one| (text(one, "status"), text(one, "reason"), text(one, "message"))))
}

async fn wait_condition(
    fleet: &Fleet<'_>,
    kind: &str,
    status: &str,
    reason: &str,
) -> Result<String> {
    wait::until(&format!("condition {kind} to be {status} {reason}"), LIMIT, || async {
        let found = condition_of(fleet, kind).await?;
        Ok(match found {
            Some((is, why, said)) if is == status && why == reason => Look::Done(said),
            other => Look::Not(format!("{other:?}")),
        })
    })
    .await
}

async fn seen(fleet: &Fleet<'_>, number: u64) -> Result<Finding> {
    let said = wait_condition(fleet, keys::CONDITION_PINNED, "True", "Pinned").await?;
    let routes = fleet.routes().await?;
    let listed = routes
        .iter()
        .any(|view| view.route.name.to_string() == ROUTE && view.pinned == Some(number));
    let explained = fleet.at_hub(&format!("fairlead explain {ROUTE}")).await?.expect_success()?;
    let told = explained.contains(&format!("revision {number}"));
    let newest = fleet.newest_change(ROUTE).await?;
    let entered = newest.pinned == Some(number);
    Ok(Finding::new(
        said.contains(&number.to_string()) && listed && told && entered,
        figures([
            ("said", json!(said)),
            ("listed", json!(listed)),
            ("explained", json!(told)),
            ("entered", json!(entered)),
        ]),
    ))
}

async fn restarted(fleet: &Fleet<'_>, number: u64) -> Result<Finding> {
    let before = fleet.history(ROUTE).await?;
    let running = fleet.load(PATH).await?.rate(RATE).start();
    fleet.world().fault().kill_hub().await?;
    fleet.world().fault().restore_hub().await?;
    wait::until("the hub to be back", LIMIT, || async {
        Ok(match fleet.history(ROUTE).await {
            Ok(_) => Look::Done(()),
            Err(error) => Look::Not(format!("{error:#}")),
        })
    })
    .await?;
    fleet.wait_settled().await?;
    let after = fleet.history(ROUTE).await?;
    let routes = fleet.routes().await?;
    let pinned = routes.iter().any(|view| view.pinned == Some(number));
    wait_weights(fleet, THEN).await?;
    let report = running.stop().await;
    let kept = after.iter().filter(|entry| before.contains(entry)).count();
    Ok(Finding::new(
        pinned && kept == before.len() && report.failed() == 0,
        figures([
            ("entries_before", json!(before.len())),
            ("entries_after", json!(after.len())),
            ("kept", json!(kept)),
            ("failed", json!(report.failed())),
            ("failures", first_failures(&report)),
        ]),
    ))
}

/// West has 30 %; when it dies, east takes all, pinned or not.
async fn failed_over(fleet: &Fleet<'_>) -> Result<Finding> {
    let recovered = fleet.lose_member(WEST, PATH, RATE).await?;
    for entry in [EAST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(EAST, 1.0)]).await?;
    }
    fleet.bring_back(WEST).await?;
    wait_weights(fleet, THEN).await?;
    fleet.wait_ramped(ROUTE).await?;
    Ok(Finding::new(
        recovered <= RECOVERED_MAX,
        figures([("recovered_after_ms", json!(milliseconds(recovered)))]),
    ))
}

async fn withdrawn(fleet: &Fleet<'_>) -> Result<Finding> {
    let objects = fleet.world().member(WEST)?.objects();
    let key =
        ObjectKey::new("multicluster.x-k8s.io/v1beta1", "ServiceExport", shop::NAMESPACE, SERVICE);
    let running = fleet.load(PATH).await?.rate(RATE).start();
    objects.delete(&key).await?;
    let start = Instant::now();
    for entry in [EAST, WEST, SOUTH] {
        wait_shares(fleet, entry, PATH, &[(EAST, 1.0)]).await?;
    }
    let stopped = start.elapsed();
    let newest = fleet.newest_change(ROUTE).await?;
    let causes: Vec<String> = newest.causes.iter().map(ToString::to_string).collect();
    let told = causes.iter().any(|cause| cause.starts_with("member west: may not serve"));
    fleet.export(WEST, SERVICE).await?;
    wait_weights(fleet, THEN).await?;
    let report = running.stop().await;
    fleet.wait_ramped(ROUTE).await?;
    // Whoever withdraws an export takes the door away at once: what was under way may fail.
    Ok(Finding::new(
        told,
        figures([
            ("stopped_after_s", json!(seconds(stopped))),
            ("causes", json!(causes)),
            ("failed", json!(report.failed())),
            ("failures", first_failures(&report)),
        ]),
    ))
}

async fn annotate(fleet: &Fleet<'_>, value: &str) -> Result<()> {
    let object = json!({"metadata": {"annotations": {keys::PIN: value}}});
    let client = fleet.world().hub().client();
    let resource = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(
        keys::GATEWAY_GROUP,
        "v1",
        "HTTPRoute",
    ));
    let api: kube::Api<kube::api::DynamicObject> =
        kube::Api::namespaced_with(client, shop::NAMESPACE, &resource);
    let patch = kube::api::Patch::Merge(&object);
    api.patch(SERVICE, &kube::api::PatchParams::default(), &patch).await?;
    Ok(())
}

/// By hand, as somebody could who does not use the CLI.
async fn impossible(fleet: &Fleet<'_>) -> Result<Finding> {
    let kind = keys::CONDITION_PINNED;
    let refused = fleet.at_hub(&format!("fairlead rollback {ROUTE} --to 999999")).await?;
    let by_cli = refused.code == Some(1) && refused.said().contains("fairlead history");
    annotate(fleet, "yesterday").await?;
    let nonsense = wait_condition(fleet, kind, "False", "UnsupportedValue").await?;
    annotate(fleet, "999999").await?;
    let future = wait_condition(fleet, kind, "False", "RevisionUnknown").await?;
    wait_weights(fleet, THEN).await?;
    let above = fleet.history(ROUTE).await?.first().map_or(0, |entry| entry.number);
    ensure!(above < 999_999, "the change of before has the number that was asked for");
    Ok(Finding::new(
        by_cli,
        figures([
            ("refused_by_cli", json!(by_cli)),
            ("nonsense", json!(nonsense)),
            ("future", json!(future)),
        ]),
    ))
}

/// Figures and nothing else, for facts that only must not fail.
fn fine() -> Finding {
    Finding::new(true, Figures::new())
}
