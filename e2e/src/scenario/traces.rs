//! Traces: gateways send their spans to the agents, and a real Jaeger shows who answered.
//!
//! Facts: t1 one trace with all attributes, t2 the graph of services, t3 attribution while a member
//! dies, t4 a backend that is away. Leaves the world as it was, but for the tracing of its gateways,
//! which it takes out again, too.

mod backend;
mod control;
mod crossing;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::Empty;
use serde_json::json;

use super::spine;
use crate::{
    echo::Answer,
    fleet::{Fleet, entry, program::build_programs, shop},
    http1,
    jaeger::{Jaeger, Span, Trace},
    object::ObjectKey,
    report::Facts,
    tool,
    wait::{self, Look},
    world::World,
};

const EAST: &str = "east";
const WEST: &str = "west";
const SOUTH: &str = "south";
/// Requests at a time.
const AT_ONCE: usize = 12;
/// How long spans may take to Jaeger: Envoy and the relay gather them for a moment.
const ARRIVE_LIMIT: Duration = Duration::from_secs(60);
/// Traces of one question; its URL must not grow without end.
const QUESTION: usize = 100;

/// The world with Fairlead and Jaeger.
struct Stage<'w> {
    fleet: Fleet<'w>,
    jaeger: Jaeger,
}

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    tokio::task::spawn_blocking(build_programs).await??;
    let program = tokio::task::spawn_blocking(tool::ensure_jaeger).await??;
    let jaeger = Jaeger::start(world, program).await?;
    let stage = Stage { fleet: Fleet::new(world)?, jaeger };
    let told = tell(&stage, facts).await;
    let cleaned = clean_up(&stage).await.context("taking Fairlead out of the world again");
    told.and(cleaned)
}

async fn tell(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    fleet.init_with(&format!("--otlp-endpoint {}", stage.jaeger.endpoint())).await?;
    for member in fleet.world().members() {
        let flags = format!("--otlp-endpoint {}", stage.jaeger.endpoint());
        fleet.join_with(member.name(), &flags).await?;
        trace_gateways(fleet.world(), member.name()).await?;
    }
    fleet.open_shop(WEST).await.context("opening the shop")?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    fleet.wait_settled().await?;
    facts.look("t1", "a request that crosses is one trace", crossing::one_trace(stage)).await;
    facts.look("t2", "the graph of services counts what crossed", crossing::graph(stage)).await;
    control::play(stage, facts).await;
    facts
        .look("t5", "while a member dies, spans name who answered", crossing::attribution(stage))
        .await;
    facts
        .look("t6", "a backend that is away harms nobody and gets the rest", backend::away(stage))
        .await;
    Ok(())
}

/// As docs/guide/traces.md tells.
async fn trace_gateways(world: &World, member: &str) -> Result<()> {
    let objects = world.member(member)?.objects();
    let key = proxy();
    let mut proxy = objects.get(&key).await?.context("the member has no EnvoyProxy")?;
    let wanted = crate::object::parse(include_str!("../../manifests/tracing.yaml"))?;
    let wanted = wanted.first().context("the manifest holds one object")?;
    proxy["spec"]["telemetry"]["tracing"] = wanted["spec"]["telemetry"]["tracing"].clone();
    write_proxy(world, member, proxy).await
}

async fn untrace_gateways(world: &World, member: &str) -> Result<()> {
    let objects = world.member(member)?.objects();
    let Some(mut proxy) = objects.get(&proxy()).await? else { return Ok(()) };
    if let Some(telemetry) = proxy["spec"]["telemetry"].as_object_mut() {
        telemetry.remove("tracing");
    }
    write_proxy(world, member, proxy).await
}

fn proxy() -> ObjectKey {
    let namespace = "envoy-gateway-system";
    ObjectKey::new("gateway.envoyproxy.io/v1alpha1", "EnvoyProxy", namespace, "host")
}

async fn write_proxy(world: &World, member: &str, proxy: serde_json::Value) -> Result<()> {
    let bare = json!({
        "apiVersion": proxy["apiVersion"], "kind": proxy["kind"],
        "metadata": {
            "name": proxy["metadata"]["name"], "namespace": proxy["metadata"]["namespace"],
        },
        "spec": proxy["spec"],
    });
    world.member(member)?.objects().apply(&bare).await.map(drop)
}

async fn clean_up(stage: &Stage<'_>) -> Result<()> {
    let world = stage.fleet.world();
    for member in world.members() {
        untrace_gateways(world, member.name()).await?;
    }
    spine::clean_up(&stage.fleet).await?;
    stage.jaeger.kill().await;
    Ok(())
}

/// A request of ours: its trace, and what came back.
struct Sent {
    trace: String,
    /// The span id that we claim.
    client: String,
    answer: Option<Answer>,
}

/// Sends one request as a part of a trace of its own.
async fn send(address: SocketAddr, path: &str) -> Sent {
    let trace = format!("{:032x}", rand::random::<u128>().max(1));
    let client = format!("{:016x}", rand::random::<u64>().max(1));
    let asked = async {
        let request = Request::get(path)
            .header("host", shop::HOST)
            .header("traceparent", format!("00-{trace}-{client}-01"))
            .body(Empty::<Bytes>::new())?;
        let answer =
            tokio::time::timeout(Duration::from_secs(2), http1::send(address, request)).await??;
        anyhow::Ok(serde_json::from_slice(answer.body())?)
    };
    let answer = asked.await.ok();
    Sent { trace, client, answer }
}

/// Sends many, through these entries in turn.
async fn send_many(entries: &[SocketAddr], path: &str, requests: usize) -> Vec<Sent> {
    let path: Arc<str> = path.into();
    let sends = (0..requests).map(|n| {
        let (address, path) = (entries[n % entries.len()], path.clone());
        async move { send(address, &path).await }
    });
    stream::iter(sends).buffer_unordered(AT_ONCE).collect().await
}

async fn entries(stage: &Stage<'_>, members: &[&str]) -> Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for member in members {
        found.push(entry(stage.fleet.world().member(member)?).await?);
    }
    Ok(found)
}

/// The last span of the entry's gateway towards a target.
fn entry_span(trace: &Trace) -> Option<&Span> {
    let towards = trace
        .spans
        .iter()
        .filter(|span| span.text("fairlead.hop") == "entry" && span.text("span.kind") == "client");
    towards.max_by_key(|span| span.start_time)
}

/// Waits until Jaeger has traces that `fits` takes, and gives them.
async fn traces(
    jaeger: &Jaeger,
    ids: &[&str],
    fits: impl Fn(&Trace) -> bool,
) -> Result<Vec<Trace>> {
    let mut found = Vec::new();
    for ids in ids.chunks(QUESTION) {
        let what = format!("{} traces to be in Jaeger", ids.len());
        let mut got = wait::until(&what, ARRIVE_LIMIT, || async {
            let traces = jaeger.traces(ids).await?;
            let whole = traces.iter().filter(|trace| fits(trace)).count();
            Ok(match whole == ids.len() {
                true => Look::Done(traces),
                false => Look::Not(format!("{whole} are whole")),
            })
        })
        .await?;
        found.append(&mut got);
    }
    Ok(found)
}
