//! t1, t2, t5: what crosses, as Jaeger shows it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{AT_ONCE, EAST, SOUTH, Stage, WEST, entries, entry_span, send, send_many, traces};
use crate::{
    fleet::shop,
    jaeger::Trace,
    report::{Finding, figures},
    wait::{self, Look},
};

const GRAPH_REQUESTS: usize = 1_000;
const ATTRIBUTION_REQUESTS: usize = 10_000;
/// Longer than Envoy gathers spans before it sends them.
const GATHERED: Duration = Duration::from_secs(7);
const QUIET_LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Share of spans that must name who answered.
const ATTRIBUTED_MIN: f64 = 0.999;

/// The catalog lives in west: through east every request crosses. The client's span and the service's
/// are not ours to make; that they join the trace shows in the ids that we gave and the service got.
pub(super) async fn one_trace(stage: &Stage<'_>) -> Result<Finding> {
    let east = entries(stage, &[EAST]).await?[0];
    let sent = send(east, shop::CATALOG).await;
    let answer = sent.answer.context("the request failed")?;
    ensure!(answer.identity.cluster == WEST, "{} answered", answer.identity.cluster);
    let found = traces(&stage.jaeger, &[&sent.trace], |trace| trace.spans.len() >= 4).await?;
    let trace = found.first().context("no trace")?;
    let header = answer.headers.get("traceparent").and_then(|values| values.first());
    let header = header.context("the service got no traceparent")?;
    let last = header.split('-').nth(2).unwrap_or_default();
    let leaf = trace.spans.iter().find(|span| span.span_id == last);
    let leaf = leaf.context("the span that the service was called by is not in the trace")?;
    let path = trace.path(leaf);
    let root = trace.spans.iter().any(|span| span.parent() == Some(&sent.client));
    let entry = entry_span(trace).context("no span of the entry")?;
    let wanted = [
        ("fairlead.route", json!("HTTPRoute/shop/catalog")),
        ("fairlead.backend", json!("shop/catalog:80")),
        ("fairlead.entry", json!(EAST)),
        ("fairlead.target", json!(WEST)),
        ("fairlead.rule", json!(0)),
        ("fairlead.crossed", json!(true)),
        ("fairlead.overlay", json!(false)),
    ];
    let wrong: Vec<String> = wanted
        .iter()
        .filter(|(key, want)| entry.tag(key) != Some(want))
        .map(|(key, _)| format!("{key}={:?}", entry.tag(key)))
        .collect();
    let has = |key: &str| entry.tag(key).is_some() || trace.resource(entry, key).is_some();
    let more = ["fairlead.plan", "fairlead.tier", "k8s.cluster.name", "k8s.cluster.uid"];
    let missing: Vec<&str> = more.into_iter().filter(|key| !has(key)).collect();
    let holds = root && wrong.is_empty() && missing.is_empty() && path == gateways(&[EAST, WEST]);
    Ok(Finding::new(
        holds,
        figures([
            ("spans", json!(trace.spans.len())),
            ("path", json!(path.join(" → "))),
            ("starts_at_the_client", json!(root)),
            ("wrong", json!(wrong.join(", "))),
            ("missing", json!(missing.join(", "))),
            ("target_region", json!(trace.resource(leaf, "cloud.region"))),
        ]),
    ))
}

fn gateways(members: &[&str]) -> Vec<String> {
    members.iter().map(|member| gateway(member)).collect()
}

/// The service name of a member's gateway.
fn gateway(member: &str) -> String {
    format!("{member}.gateway")
}

/// 1,000 requests through east, of which a part crosses; Jaeger's graph must count what echoes saw.
pub(super) async fn graph(stage: &Stage<'_>) -> Result<Finding> {
    stage.fleet.world().hub().objects().apply_yaml(POLICY).await?;
    wait_answered_by(stage, &[EAST, WEST]).await?;
    let before = wait_quiet(stage).await?;
    let east = entries(stage, &[EAST]).await?;
    let sent = send_many(&east, shop::CART, GRAPH_REQUESTS).await;
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for sent in &sent {
        let target = sent.answer.as_ref().map_or("", |answer| &answer.identity.cluster);
        *seen.entry(target).or_default() += 1;
    }
    let west = seen.get(WEST).copied().unwrap_or_default();
    let ids: Vec<&str> = sent.iter().map(|sent| sent.trace.as_str()).collect();
    traces(&stage.jaeger, &ids, is_whole).await?;
    let counted = crossed(stage).await?.saturating_sub(before);
    let share = west as f64 / GRAPH_REQUESTS as f64;
    let holds = counted == west && (share - 0.2).abs() < 0.04 && !seen.contains_key("");
    Ok(Finding::new(
        holds,
        figures([
            ("answered_by", json!(seen)),
            ("jaeger_east_to_west", json!(counted)),
            ("share", json!(share)),
        ]),
    ))
}

/// Waits until no more spans of earlier requests come, and gives the count of then.
async fn wait_quiet(stage: &Stage<'_>) -> Result<u64> {
    let start = Instant::now();
    let mut last = (crossed(stage).await?, start);
    loop {
        ensure!(start.elapsed() < QUIET_LIMIT, "spans come and come");
        tokio::time::sleep(LOOK_PAUSE).await;
        let now = crossed(stage).await?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > GATHERED {
            return Ok(now);
        }
    }
}

/// How often east's gateway called west's, as Jaeger counts.
async fn crossed(stage: &Stage<'_>) -> Result<u64> {
    let graph = stage.jaeger.dependencies().await?;
    let edge = graph.iter().find(|it| it.parent == gateway(EAST) && it.child == gateway(WEST));
    Ok(edge.map_or(0, |edge| edge.call_count))
}

/// All spans are there: at the entry two, and where it crossed two at the door.
fn is_whole(trace: &Trace) -> bool {
    let Some(entry) = entry_span(trace) else { return false };
    let crossed = entry.tag("fairlead.crossed") == Some(&json!(true));
    let door = trace.spans.iter().any(|span| span.text("fairlead.hop") == "door");
    trace.spans.len() >= if crossed { 4 } else { 2 } && (!crossed || door)
}

/// Four fifths stay in east, one goes to west.
const POLICY: &str = "
apiVersion: fairlead.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: cart-everywhere, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: cart}]
  tiers:
  - members: {names: [east, west]}
    split: Weights
    weights: {east: 80, west: 20}
  failback: {mode: Auto, afterSeconds: 5, rampSeconds: 10}
";

pub(super) async fn wait_answered_by(stage: &Stage<'_>, members: &[&str]) -> Result<()> {
    let east = entries(stage, &[EAST]).await?;
    wait::until("all members to answer", shop::LIVE_LIMIT, || async {
        let sent = send_many(&east, shop::CART, 8 * AT_ONCE).await;
        let answered = |member: &&&str| {
            sent.iter().any(|it| {
                it.answer.as_ref().is_some_and(|answer| answer.identity.cluster == **member)
            })
        };
        Ok(match members.iter().filter(answered).count() == members.len() {
            true => Look::Done(()),
            false => Look::Not("some answered nothing yet".to_owned()),
        })
    })
    .await
}

/// 10,000 requests through east and west over all three members; south's gateway dies half way.
pub(super) async fn attribution(stage: &Stage<'_>) -> Result<Finding> {
    stage.fleet.spread_cart().await?;
    wait_answered_by(stage, &[EAST, WEST, SOUTH]).await?;
    let entries = entries(stage, &[EAST, WEST]).await?;
    let world = stage.fleet.world();
    let half = ATTRIBUTION_REQUESTS / 2;
    let mut sent = send_many(&entries, shop::CART, half).await;
    let rest = send_many(&entries, shop::CART, half);
    let kill = async {
        tokio::task::yield_now().await;
        world.fault().kill_gateway(SOUTH).await
    };
    let (mut rest, killed) = tokio::join!(rest, kill);
    let told = compare(stage, {
        sent.append(&mut rest);
        &sent
    })
    .await;
    world.fault().restore_gateway(SOUTH).await?;
    stage.fleet.wait_settled().await?;
    killed?;
    told
}

async fn compare(stage: &Stage<'_>, sent: &[super::Sent]) -> Result<Finding> {
    let answered: BTreeMap<&str, &str> = sent
        .iter()
        .filter_map(|it| Some((it.trace.as_str(), it.answer.as_ref()?.identity.cluster.as_str())))
        .collect();
    let ids: Vec<&str> = answered.keys().copied().collect();
    let found = traces(&stage.jaeger, &ids, |trace| entry_span(trace).is_some()).await?;
    let (mut right, mut crossed, mut wrong) = (0usize, 0usize, Vec::new());
    for trace in &found {
        // Jaeger leaves leading zeros out.
        let id = format!("{:0>32}", trace.trace_id);
        let Some(span) = entry_span(trace) else { continue };
        let told = span.text("fairlead.target");
        let seen = answered.get(id.as_str()).copied().unwrap_or_default();
        crossed += usize::from(span.tag("fairlead.crossed") == Some(&json!(true)));
        if told == seen {
            right += 1;
        } else if wrong.len() < 3 {
            let upstream = span.text("upstream_cluster.name");
            let address = span.text("upstream_address");
            wrong.push(format!("{told:?} for {seen:?}: {upstream} {address}"));
        }
    }
    let share = right as f64 / found.len().max(1) as f64;
    Ok(Finding::new(
        share >= ATTRIBUTED_MIN && found.len() == answered.len(),
        figures([
            ("requests", json!(sent.len())),
            ("failed", json!(sent.len() - answered.len())),
            ("traces", json!(found.len())),
            ("crossed", json!(crossed)),
            ("right", json!(right)),
            ("share", json!(share)),
            ("wrong", json!(wrong.join("; "))),
        ]),
    ))
}
