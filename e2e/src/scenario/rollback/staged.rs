//! Changes that one member tries first: a good one reaches all in two steps, a bad one nobody else.
//!
//! West tries. Its gateways' spans are the evidence, so all gateways are traced.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{LIMIT, PATH, POLICY, RATE, ROUTE, SERVICE, fine, wait_condition};
use crate::{
    echo::BROKEN,
    fleet::{
        Fleet, shop,
        tracing::{join_traced, untrace_gateways},
        trial::{first_failures, pass},
    },
    load::{Report, Running},
    object::ObjectKey,
    report::{Facts, Finding, figures, seconds},
    scenario::spine::{EAST, SOUTH, WEST, route},
    wait::{self, Look},
};

pub(super) const GOOD: &str = "tea-good";
const BAD: &str = "tea-bad";
/// It must go well for that long, by the hub's flags.
const WATCH: Duration = Duration::from_secs(6);
/// How long a change may be tried: spans are gathered by gateways and told every five seconds.
const TRIED_LIMIT: Duration = Duration::from_secs(90);

/// Installs the hub as it is by default, and members whose gateways are traced.
pub(super) async fn open(fleet: &Fleet<'_>) -> Result<()> {
    fleet.init().await?;
    for member in fleet.world().members() {
        join_traced(fleet, member.name(), "", 100).await?;
    }
    Ok(())
}

/// Takes tracing out of the members' gateways again.
pub(super) async fn close(fleet: &Fleet<'_>) -> Result<()> {
    for member in fleet.world().members() {
        untrace_gateways(fleet.world(), member.name()).await?;
    }
    Ok(())
}

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    facts.look("s0", "the hub stages changes from now on", prepare(fleet)).await;
    let name = "a good change reaches all members in two steps and fails no request";
    facts.look("s1", name, good(fleet)).await;
    let name = "a bad change is stopped at the member that tries it: the others fail no request";
    facts.look("s2", name, bad(fleet)).await;
    let name = "writing the route anew releases it";
    facts.look("s3", name, mended(fleet)).await;
    Ok(())
}

async fn prepare(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    for member in world.members() {
        fleet.serve(member.name(), GOOD, "v2", 2).await?;
        fleet.serve(member.name(), BAD, BROKEN, 2).await?;
    }
    let key = ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, POLICY);
    world.hub().objects().delete(&key).await?;
    restart_with(fleet, &flags()).await?;
    wait::until("the hub to answer", LIMIT, || async {
        Ok(match fleet.status().await {
            Ok(status) if status.held.is_empty() => Look::Done(()),
            Ok(status) => Look::Not(format!("{:?}", status.held)),
            Err(error) => Look::Not(format!("{error:#}")),
        })
    })
    .await?;
    fleet.wait_settled().await?;
    fleet.wait_live(PATH).await?;
    Ok(fine())
}

/// Changes of more than a fifth are tried, by west.
pub(super) fn flags() -> [(&'static str, String); 4] {
    [
        ("FAIRLEAD_ROLLOUT_ABOVE_PERCENT", "20".to_owned()),
        ("FAIRLEAD_ROLLOUT_MEMBER", WEST.to_owned()),
        ("FAIRLEAD_ROLLOUT_REQUESTS_MIN", "20".to_owned()),
        ("FAIRLEAD_ROLLOUT_WATCH_SECONDS", WATCH.as_secs().to_string()),
    ]
}

/// Gives the hub more environment, and waits until it runs with it.
pub(super) async fn restart_with(fleet: &Fleet<'_>, env: &[(&str, String)]) -> Result<()> {
    let env: Vec<Value> =
        env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let containers = json!([{"name": "hub", "env": env}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let client = fleet.world().hub().client();
    let api: Api<Deployment> = Api::namespaced(client, keys::NAMESPACE);
    let patched = api.patch(keys::HUB, &PatchParams::default(), &Patch::Strategic(&patch)).await;
    patched.context("flags of the hub")?;
    wait::until("the hub to be back with its flags", LIMIT, || async {
        let hub = api.get(keys::HUB).await?;
        let generation = hub.metadata.generation;
        let status = hub.status.unwrap_or_default();
        let is_new = status.observed_generation == generation
            && status.updated_replicas == Some(1)
            && status.available_replicas == Some(1)
            && status.replicas == Some(1);
        Ok(if is_new { Look::Done(()) } else { Look::Not(format!("{status:?}")) })
    })
    .await
}

pub(super) async fn lead_to(fleet: &Fleet<'_>, service: &str) -> Result<()> {
    let route = route(SERVICE, PATH, &[(service, 1)], &Value::Null);
    fleet.world().hub().objects().apply(&route).await.map(drop)
}

/// A load that has flowed for a moment.
pub(super) async fn flowing(fleet: &Fleet<'_>) -> Result<Running> {
    let running = fleet.load(PATH).await?.rate(RATE).start();
    pass(&running, Duration::from_secs(2)).await?;
    Ok(running)
}

/// When each entry was first answered by a version, from the start of the load.
fn first_by(report: &Report, version: &str) -> BTreeMap<String, Duration> {
    let mut first = BTreeMap::new();
    for sample in report.samples().iter().filter(|sample| sample.outcome.version == version) {
        first.entry(sample.entry.clone()).or_insert(sample.started);
    }
    first
}

/// Waits until every entry was answered by a version.
pub(super) async fn everywhere(running: &Running, version: &str) -> Result<()> {
    wait::until(&format!("version {version} everywhere"), TRIED_LIMIT, || async {
        let first = first_by(&running.so_far(), version);
        Ok(if first.len() == 3 { Look::Done(()) } else { Look::Not(format!("{first:?}")) })
    })
    .await
}

/// What a change in two steps looks like: west has it first, and the others not before it was watched.
pub(super) fn steps(report: &Report, version: &str, failed: &Report) -> Finding {
    let first = first_by(report, version);
    let at = |name: &str| first.get(name).copied();
    let two_steps = at(WEST).is_some_and(|west| {
        [EAST, SOUTH].iter().all(|other| at(other).is_some_and(|other| other >= west + WATCH))
    });
    let first: BTreeMap<&String, Value> =
        first.iter().map(|(entry, at)| (entry, json!(seconds(*at)))).collect();
    Finding::new(
        two_steps && failed.failed() == 0,
        figures([
            ("first_s", json!(first)),
            ("requests", json!(report.total())),
            ("failed", json!(failed.failed())),
            ("failures", first_failures(failed)),
        ]),
    )
}

async fn good(fleet: &Fleet<'_>) -> Result<Finding> {
    let running = flowing(fleet).await?;
    lead_to(fleet, GOOD).await?;
    let kind = keys::CONDITION_ROLLED_OUT;
    let said = wait_condition(fleet, kind, "False", "RollingOut").await?;
    everywhere(&running, "v2").await?;
    pass(&running, Duration::from_secs(2)).await?;
    let report = running.stop().await;
    let newest = fleet.newest_change(ROUTE).await?;
    let causes: Vec<String> = newest.causes.iter().map(ToString::to_string).collect();
    let mut finding = steps(&report, "v2", &report);
    finding.figures.insert("said".into(), json!(said));
    finding.figures.insert("causes".into(), json!(causes));
    Ok(finding)
}

async fn bad(fleet: &Fleet<'_>) -> Result<Finding> {
    let running = flowing(fleet).await?;
    lead_to(fleet, BAD).await?;
    let at = running.now();
    let kind = keys::CONDITION_ROLLED_OUT;
    let said = wait_condition(fleet, kind, "False", "RolloutStopped").await?;
    let stopped = running.now();
    pass(&running, Duration::from_secs(5)).await?;
    let report = running.stop().await;
    let others = report.only(|sample| sample.entry != WEST);
    let tried = report.only(|sample| sample.entry == WEST);
    let after = tried.only(|sample| sample.started >= stopped + Duration::from_secs(3));
    let explained = fleet.at_hub(&format!("fairlead explain {ROUTE}")).await?.expect_success()?;
    let told = explained.contains("RolloutStopped");
    let holds = others.failed() == 0
        && others.total() > 0
        && tried.failed() > 0
        && after.failed() == 0
        && after.total() > 0
        && said.contains("failed")
        && told;
    Ok(Finding::new(
        holds,
        figures([
            ("said", json!(said)),
            ("stopped_after_s", json!(seconds(stopped.saturating_sub(at)))),
            ("failed_at_others", json!(others.failed())),
            ("failures", first_failures(&others)),
            ("requests_at_others", json!(others.total())),
            ("failed_where_tried", json!(tried.failed())),
            ("failed_there_later", json!(after.failed())),
            ("explained", json!(told)),
        ]),
    ))
}

async fn mended(fleet: &Fleet<'_>) -> Result<Finding> {
    let running = flowing(fleet).await?;
    lead_to(fleet, SERVICE).await?;
    everywhere(&running, "v1").await?;
    pass(&running, Duration::from_secs(2)).await?;
    let report = running.stop().await;
    let condition = super::condition_of(fleet, keys::CONDITION_ROLLED_OUT).await?;
    let mut finding = steps(&report, "v1", &report);
    finding.figures.insert("condition".into(), json!(condition.clone()));
    if condition.is_some() {
        return Ok(Finding::new(false, finding.figures));
    }
    Ok(finding)
}
