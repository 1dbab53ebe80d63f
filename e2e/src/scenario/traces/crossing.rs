//! t1, t2: what crosses, as Jaeger shows it.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

use super::{
    AT_ONCE, EAST, GATHERED, Sent, Stage, WEST, entries, entry_span, send, send_many, traces,
    wait_still,
};
use crate::{
    backend::Echo,
    fleet::shop,
    jaeger::{Span, Trace},
    object::ObjectKey,
    otlp,
    report::{Finding, figures},
    wait::{self, Look},
};

const GRAPH_REQUESTS: usize = 1_000;
/// Spans of a request that crosses: the client's, two of each gateway, the service's.
const WHOLE: usize = 6;
const CLIENT: &str = "shopper";
const SERVICE: &str = "catalog";
/// Where agents take OTLP over HTTP.
const OTLP_HTTP_PORT: u16 = 4318;

/// The catalog lives in west: through east every request crosses. Client and service are instrumented as
/// users' own are: the service gives its spans to the agent of its cluster, the client to the backend.
pub(super) async fn one_trace(stage: &Stage<'_>) -> Result<Finding> {
    instrument(stage).await?;
    let east = entries(stage, &[EAST]).await?[0];
    let start = SystemTime::now();
    let sent = send(east, shop::CATALOG).await;
    let span = client_span(&sent, start)?;
    span.send(stage.jaeger.http()).await?;
    let answer = sent.answer.context("the request failed")?;
    ensure!(answer.identity.cluster == WEST, "{} answered", answer.identity.cluster);
    let found = traces(&stage.jaeger, &[&sent.trace], |trace| trace.spans.len() >= WHOLE).await?;
    let trace = found.first().context("no trace")?;
    let leaf = trace.spans.iter().find(|span| trace.service(span) == SERVICE);
    let leaf = leaf.context("the service's span is not in the trace")?;
    let path = trace.path(leaf);
    let wanted_path = [CLIENT, &gateway(EAST), &gateway(WEST), SERVICE];
    let entry = entry_span(trace).context("no span of the entry")?;
    let is_door = |span: &&Span| span.text("fairlead.hop") == "door";
    let door = trace.spans.iter().find(is_door).context("no span of the door")?;
    let mut wrong = wrong_at_entry(stage, trace, entry).await?;
    wrong.extend(wrong_at_door(stage, trace, door).await?);
    let at = trace.resource(leaf, "k8s.cluster.name");
    if at != Some(&json!(WEST)) {
        wrong.push(format!("the service is at {at:?}"));
    }
    Ok(Finding::new(
        wrong.is_empty() && path == wanted_path && trace.spans.len() == WHOLE,
        figures([
            ("spans", json!(trace.spans.len())),
            ("path", json!(path.join(" → "))),
            ("entry", json!(ours(entry))),
            ("door", json!(ours(door))),
            ("wrong", json!(wrong.join(", "))),
        ]),
    ))
}

/// Lets the catalog send spans.
async fn instrument(stage: &Stage<'_>) -> Result<()> {
    let world = stage.fleet.world();
    let agent = (world.member(WEST)?.local()?.pods.address, OTLP_HTTP_PORT).into();
    let echo = Echo::new(shop::NAMESPACE, SERVICE, "v1", shop::REPLICAS).spans_to(agent);
    world.deploy_echo(WEST, &echo).await?;
    stage.fleet.wait_live(shop::CATALOG).await
}

fn client_span(sent: &Sent, start: SystemTime) -> Result<otlp::Span> {
    Ok(otlp::Span {
        service: CLIENT.into(),
        name: "GET".into(),
        kind: SpanKind::Client,
        trace: u128::from_str_radix(&sent.trace, 16)?,
        id: u64::from_str_radix(&sent.client, 16)?,
        parent: None,
        start,
        end: SystemTime::now(),
    })
}

/// What we have added to a span.
fn ours(span: &Span) -> BTreeMap<&str, &Value> {
    span.tags().filter(|(key, _)| key.starts_with("fairlead.")).collect()
}

async fn wrong_at_entry(stage: &Stage<'_>, trace: &Trace, span: &Span) -> Result<Vec<String>> {
    let plan = stage.fleet.member_view(EAST).await?.plan_applied;
    let wanted = [
        ("fairlead.hop", json!("entry")),
        ("fairlead.route", json!("HTTPRoute/shop/catalog")),
        ("fairlead.rule", json!(0)),
        ("fairlead.backend", json!("shop/catalog:80")),
        ("fairlead.entry", json!(EAST)),
        ("fairlead.target", json!(WEST)),
        ("fairlead.crossed", json!(true)),
        // Tiers that nobody is in do not count.
        ("fairlead.tier", json!(1)),
        ("fairlead.plan", json!(plan)),
        ("fairlead.overlay", json!(false)),
    ];
    Ok(wrong(span, &wanted)
        .into_iter()
        .chain(wrong_place(stage, trace, span, EAST).await?)
        .collect())
}

async fn wrong_at_door(stage: &Stage<'_>, trace: &Trace, span: &Span) -> Result<Vec<String>> {
    let plan = stage.fleet.member_view(WEST).await?.plan_applied;
    let wanted = [
        ("fairlead.backend", json!("shop/catalog:80")),
        ("fairlead.target", json!(WEST)),
        ("fairlead.plan", json!(plan)),
    ];
    Ok(wrong(span, &wanted)
        .into_iter()
        .chain(wrong_place(stage, trace, span, WEST).await?)
        .collect())
}

fn wrong(span: &Span, wanted: &[(&str, Value)]) -> Vec<String> {
    let differs = |(key, want): &&(&str, Value)| span.tag(key) != Some(want);
    let tell = |(key, want): &(&str, Value)| format!("{key} is {:?}, not {want}", span.tag(key));
    wanted.iter().filter(differs).map(tell).collect()
}

/// Attributes of the resource: which cluster, where, and whose gateway.
async fn wrong_place(
    stage: &Stage<'_>,
    trace: &Trace,
    span: &Span,
    member: &str,
) -> Result<Vec<String>> {
    let cluster = stage.fleet.world().member(member)?;
    let key = ObjectKey::new("v1", "Namespace", "", "kube-system");
    let system = cluster.objects().get(&key).await?.context("there is no kube-system")?;
    let wanted = [
        ("k8s.cluster.name", json!(member)),
        ("k8s.cluster.uid", system["metadata"]["uid"].clone()),
        ("cloud.region", json!(cluster.spec().region)),
        ("fairlead.gateway", json!("gateway")),
    ];
    let is = |key: &str| trace.resource(span, key);
    let differs = |(key, want): &&(&str, Value)| is(key) != Some(want);
    let tell = |(key, want): &(&str, Value)| format!("{key} is {:?}, not {want}", is(key));
    Ok(wanted.iter().filter(differs).map(tell).collect())
}

/// The service name of a member's gateway.
fn gateway(member: &str) -> String {
    format!("{member}.gateway")
}

/// 1,000 requests through east, of which a part crosses; Jaeger's graph must count what echoes saw.
pub(super) async fn graph(stage: &Stage<'_>) -> Result<Finding> {
    stage.fleet.world().hub().objects().apply_yaml(POLICY).await?;
    wait_answered_by(stage, &[EAST, WEST]).await?;
    // Spans of earlier requests must not count.
    let before = wait_still("calls", GATHERED, || crossed(stage)).await?;
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
