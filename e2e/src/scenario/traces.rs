//! Traces: gateways send their spans to the agents, and a real Jaeger shows who answered.
//!
//! Facts: t0 how gateways are set up, t1 one trace with all attributes, t2 the graph of services, t3, t4 and t10
//! our own traces, t5 attribution while a member dies, t6 a backend that is away, t7 to t9 and t12 metrics, rules
//! and queries as promtool and a real Prometheus see them, t11 what commands show of it. Leaves the world as it was, but for the tracing of its gateways,
//! which it takes out again, too.

mod attribution;
mod backend;
mod control;
mod crossing;
mod metrics;
mod view;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use serde_json::json;

use super::{and_clear, spine};
use crate::{
    fleet::{
        Fleet, entry, shop,
        tracing::{ANSWER_LIMIT, Joined, Sent, join_traced, send, untrace_gateways},
    },
    jaeger::{Jaeger, Span, Trace},
    prometheus::Promtool,
    report::{Facts, Finding, figures},
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
/// Longer than Envoy gathers spans before it sends them.
const GATHERED: Duration = Duration::from_secs(7);
const QUIET_LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Traces of one question; its URL must not grow without end.
const QUESTION: usize = 100;

/// The world with Fairlead and Jaeger.
struct Stage<'w> {
    fleet: Fleet<'w>,
    jaeger: Jaeger,
    promtool: Promtool,
}

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let program = tokio::task::spawn_blocking(tool::ensure_jaeger).await??;
    let promtool = Promtool::new(tokio::task::spawn_blocking(tool::ensure_prometheus).await??);
    let jaeger = Jaeger::start(world, program).await?;
    let stage = Stage { fleet: Fleet::built(world).await?, jaeger, promtool };
    and_clear(tell(&stage, facts), clean_up(&stage)).await
}

async fn tell(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    fleet.init_with(&format!("--otlp-endpoint {}", stage.jaeger.endpoint())).await?;
    let flags = format!("--otlp-endpoint {}", stage.jaeger.endpoint());
    let mut joined = Vec::new();
    for member in fleet.world().members() {
        joined.push(join_traced(fleet, member.name(), &flags, 100).await?);
    }
    let name = "join keeps its hands off a user's EnvoyProxy, and says what to put into it";
    facts.look("t0", name, async { Ok(kept_its_hands_off(&joined)) }).await;
    fleet.open_shop(WEST).await.context("opening the shop")?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    fleet.wait_settled().await?;
    let name = "a request that crosses is one trace from client to service, with all attributes";
    facts.look("t1", name, crossing::one_trace(stage)).await;
    facts.look("t2", "the graph of services counts what crossed", crossing::graph(stage)).await;
    let name = "top, explain and trace show what flows";
    facts.look("t11", name, view::shown(stage)).await;
    let watch = metrics::play(stage, facts).await;
    control::play(stage, facts).await;
    let name = "a backend that is away harms nobody, and every span is accounted for";
    facts.look("t6", name, backend::away(stage)).await;
    let name = "while a member dies, spans name who answered";
    facts.look("t5", name, attribution::play(stage)).await;
    if let Some(watch) = watch {
        let name = "every query of the dashboard has found something by now";
        facts.look("t12", name, watch.look_back()).await;
        watch.stop().await;
    }
    Ok(())
}

/// Every class of these worlds names the harness's EnvoyProxy.
fn kept_its_hands_off(joined: &[Joined]) -> Finding {
    let refused = joined.iter().filter_map(|joined| joined.refusal.as_deref());
    let names = |said: &&str| said.contains("EnvoyProxy envoy-gateway-system/host already");
    let refused = refused.filter(names).count();
    let all = joined.len();
    Finding::new(refused == all, figures([("members", json!(all)), ("refused", json!(refused))]))
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

/// Waits until a count stays as it is for a while, and gives it.
async fn wait_still<T, F>(what: &str, still: Duration, look: impl Fn() -> F) -> Result<T>
where
    T: PartialEq + Copy,
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let mut last = (look().await?, start);
    while last.1.elapsed() < still {
        ensure!(start.elapsed() < QUIET_LIMIT, "{what} come and come");
        tokio::time::sleep(LOOK_PAUSE).await;
        let now = look().await?;
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(last.0)
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
