//! s: a rate limit and a circuit breaker, declared once in the hub, act in every entry.
//!
//! The hub's cluster has no Envoy Gateway, only the definition of its policy, as a platform team would
//! install it to declare policies there.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{EAST, LIMIT, PATH, SERVICE, SOUTH, WEST};
use crate::{
    fleet::{Fleet, entry, shop},
    load::{Load, Report},
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures, seconds},
    wait::{self, Look},
};

const CRD: &str = "backendtrafficpolicies.gateway.envoyproxy.io";
const SECURITY_CRD: &str = "securitypolicies.gateway.envoyproxy.io";
const POLICY_API: &str = "gateway.envoyproxy.io/v1alpha1";
const NAME: &str = "tea-protection";
/// Requests that each entry lets through.
const ALLOWED: usize = 5;
const REQUESTS: u64 = 30;
/// Long enough for requests to meet.
const SLOW_PATH: &str = "/tea?delay_ms=300";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    for name in [CRD, SECURITY_CRD] {
        install_definition(fleet, name).await.context("installing a definition in the hub")?;
    }
    facts.look("s1", "a local rate limit follows the route into every entry", limited(fleet)).await;
    facts.look("s2", "it goes when it is deleted in the hub", unlimited(fleet)).await;
    facts.look("s3", "a circuit breaker follows the route, too", broken(fleet)).await;
    facts.look("s4", "secrets that a policy names are never copied", secrets(fleet)).await;
    for name in [CRD, SECURITY_CRD] {
        fleet.world().hub().objects().delete(&definition_key(name)).await?;
    }
    Ok(())
}

fn definition_key(name: &str) -> ObjectKey {
    ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name)
}

async fn install_definition(fleet: &Fleet<'_>, name: &str) -> Result<()> {
    let key = definition_key(name);
    let mut definition =
        fleet.world().member(EAST)?.objects().get(&key).await?.context("east has none")?;
    let annotations = definition["metadata"]["annotations"].clone();
    definition["metadata"] = json!({"name": name, "annotations": annotations});
    if let Some(fields) = definition.as_object_mut() {
        fields.remove("status");
    }
    fleet.world().hub().objects().apply_crds(&[definition]).await
}

async fn set(fleet: &Fleet<'_>, spec: &Value) -> Result<()> {
    let mut spec = spec.clone();
    spec["targetRefs"] =
        json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": SERVICE}]);
    let object = json!({
        "apiVersion": POLICY_API, "kind": "BackendTrafficPolicy",
        "metadata": {"name": NAME, "namespace": shop::NAMESPACE}, "spec": spec,
    });
    fleet.world().hub().objects().apply(&object).await.map(drop)
}

async fn unset(fleet: &Fleet<'_>) -> Result<()> {
    let key = ObjectKey::new(POLICY_API, "BackendTrafficPolicy", shop::NAMESPACE, NAME);
    fleet.world().hub().objects().delete(&key).await
}

async fn send(fleet: &Fleet<'_>, name: &str, path: &str, at_once: usize) -> Result<Report> {
    let address = entry(fleet.world().member(name)?).await?;
    let load = Load::new(shop::HOST, path).entry(name, address);
    Ok(load.requests(REQUESTS, at_once).run().await)
}

/// Answers by status.
fn statuses(report: &Report) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for sample in report.samples() {
        *counts.entry(sample.outcome.status).or_default() += 1;
    }
    counts
}

/// Waits until every entry answers some of the requests with this status.
async fn wait_status(fleet: &Fleet<'_>, path: &str, at_once: usize, status: u16) -> Result<()> {
    for name in [EAST, WEST, SOUTH] {
        wait::until(&format!("{name} to answer {status}"), LIMIT, || async {
            let counts = statuses(&send(fleet, name, path, at_once).await?);
            let there = counts.contains_key(&status);
            Ok(if there { Look::Done(()) } else { Look::Not(format!("it answers {counts:?}")) })
        })
        .await?;
    }
    Ok(())
}

/// Each entry counts by itself: the limit of the fleet is that of one entry, times the entries.
async fn limited(fleet: &Fleet<'_>) -> Result<Finding> {
    let start = std::time::Instant::now();
    let limit = json!({"requests": ALLOWED, "unit": "Hour"});
    set(fleet, &json!({"rateLimit": {"type": "Local", "local": {"rules": [{"limit": limit}]}}}))
        .await?;
    wait_status(fleet, PATH, 1, 429).await?;
    let took = start.elapsed();
    let mut more = figures([("live_after_s", json!(seconds(took)))]);
    let mut holds = true;
    for name in [EAST, WEST, SOUTH] {
        // What was allowed is used up by now.
        let counts = statuses(&send(fleet, name, PATH, 1).await?);
        holds &= counts.get(&429) == Some(&usize::try_from(REQUESTS)?);
        more.insert(name.into(), json!(format!("{counts:?}")));
    }
    Ok(Finding::new(holds, more))
}

async fn unlimited(fleet: &Fleet<'_>) -> Result<Finding> {
    let start = std::time::Instant::now();
    unset(fleet).await?;
    let mut more = Figures::new();
    for name in [EAST, WEST, SOUTH] {
        wait::until(&format!("{name} to let all through"), LIMIT, || async {
            // A 429 is an answer, too.
            let counts = statuses(&send(fleet, name, PATH, 1).await?);
            let all = counts.get(&200) == Some(&usize::try_from(REQUESTS)?);
            Ok(if all { Look::Done(()) } else { Look::Not(format!("{counts:?}")) })
        })
        .await?;
    }
    more.insert("gone_after_s".into(), json!(seconds(start.elapsed())));
    Ok(Finding::new(true, more))
}

async fn broken(fleet: &Fleet<'_>) -> Result<Finding> {
    let before = statuses(&send(fleet, EAST, SLOW_PATH, 8).await?);
    set(fleet, &json!({"circuitBreaker": {"maxParallelRequests": 1, "maxPendingRequests": 1}}))
        .await?;
    wait_status(fleet, SLOW_PATH, 8, 503).await?;
    let after = statuses(&send(fleet, EAST, SLOW_PATH, 8).await?);
    let one_by_one = statuses(&send(fleet, EAST, PATH, 1).await?);
    unset(fleet).await?;
    let all = usize::try_from(REQUESTS)?;
    let holds = before.get(&200) == Some(&all)
        && after.get(&503).is_some_and(|broken| *broken > 0)
        && one_by_one.get(&200) == Some(&all);
    Ok(Finding::new(
        holds,
        figures([
            ("before", json!(format!("{before:?}"))),
            ("eight_at_once", json!(format!("{after:?}"))),
            ("one_at_once", json!(format!("{one_by_one:?}"))),
        ]),
    ))
}

/// A policy that asks for passwords follows; the Secret with them is each member's own business.
async fn secrets(fleet: &Fleet<'_>) -> Result<Finding> {
    const USERS: &str = "tea-users";
    let hub = fleet.world().hub().objects();
    let meta = |name: &str| json!({"name": name, "namespace": shop::NAMESPACE});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": meta(USERS),
        "stringData": {".htpasswd": "user:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="},
    });
    let policy = json!({
        "apiVersion": POLICY_API, "kind": "SecurityPolicy", "metadata": meta("tea-auth"),
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": SERVICE}],
            "basicAuth": {"users": {"name": USERS}},
        },
    });
    hub.apply_all(&[secret.clone(), policy.clone()]).await?;
    let copy = ObjectKey::new(POLICY_API, "SecurityPolicy", shop::NAMESPACE, "tea-auth-global");
    let users = ObjectKey::new("v1", "Secret", shop::NAMESPACE, USERS);
    let mut more = Figures::new();
    let mut holds = true;
    for member in fleet.world().members() {
        wait::until(&format!("the policy in {}", member.name()), LIMIT, || async {
            let there = member.objects().get(&copy).await?.is_some();
            Ok(if there { Look::Done(()) } else { Look::Not("it is not there".into()) })
        })
        .await?;
        let copied = member.objects().get(&users).await?.is_some();
        holds &= !copied;
        more.insert(format!("secret in {}", member.name()), json!(copied));
    }
    // Without the Secret nobody is let in: half a policy would open what it protects.
    wait_status(fleet, PATH, 1, 500).await?;
    fleet.world().member(EAST)?.objects().apply(&secret).await?;
    let address = entry(fleet.world().member(EAST)?).await?;
    let asked = shop::wait_answers_at(address, PATH, "a question for a password", |seen| {
        seen.status == 401
    })
    .await;
    more.insert("with a Secret of its own east asks".into(), json!(asked.is_ok()));
    hub.delete(&ObjectKey::of(&policy)?).await?;
    hub.delete(&users).await?;
    fleet.world().member(EAST)?.objects().delete(&users).await?;
    fleet.wait_live(PATH).await?;
    Ok(Finding::new(holds && asked.is_ok(), more))
}
