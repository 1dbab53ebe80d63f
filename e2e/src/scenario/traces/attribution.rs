//! t5: while a member dies, spans name who answered. Judge is the echo that answered, by its own word.
//!
//! The service runs in west and south only and requests come in at east, so every one of them crosses.
//! Half of them are HTTP, half are gRPC; south, all of it, is killed half way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use serde_json::json;

use super::{
    ANSWER_LIMIT, AT_ONCE, EAST, SOUTH, Sent, Stage, WEST, entries, entry_span, send, traces,
};
use crate::{
    backend::Echo,
    echo::Answer,
    fleet::shop,
    grpc,
    jaeger::Trace,
    report::{Finding, figures},
    wait::{self, Look},
};

/// More than 10,000 that are answered, whatever fails while south dies.
const REQUESTS: usize = 11_000;
const ANSWERED_MIN: usize = 10_000;
/// Share of spans that must name who answered.
const RIGHT_MIN: f64 = 0.999;
const PATH: &str = "/tea";
const GRPC_HOST: &str = "grpc.example.com";
const METHOD: &str = "/echo.Echo/Say";
const SERVICES: [(&str, Option<&str>); 2] =
    [("tea", None), ("tea-grpc", Some("kubernetes.io/h2c"))];
const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: tea, namespace: shop}
spec:
  parentRefs: [{name: public, namespace: infra}]
  hostnames: [shop.example.com]
  rules:
  - matches: [{path: {type: PathPrefix, value: /tea}}]
    backendRefs: [{group: multicluster.x-k8s.io, kind: ServiceImport, name: tea, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: tea-grpc, namespace: shop}
spec:
  parentRefs: [{name: public, namespace: infra}]
  hostnames: [grpc.example.com]
  rules:
  - matches: [{method: {service: echo.Echo}}]
    backendRefs: [{group: multicluster.x-k8s.io, kind: ServiceImport, name: tea-grpc, port: 80}]
---
apiVersion: fairlead.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: tea-abroad, namespace: shop}
spec:
  targetRefs:
  - {group: gateway.networking.k8s.io, kind: HTTPRoute, name: tea}
  - {group: gateway.networking.k8s.io, kind: GRPCRoute, name: tea-grpc}
  tiers:
  - members: {names: [west, south]}
    split: Equal
"#;

/// How a request went over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    const BOTH: [Self; 2] = [Self::Http, Self::Grpc];

    fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
        }
    }
}

/// East's gateway, for both protocols. Every request has a connection of its own: what is kept ends
/// when the gateway gets another listener.
struct Entry(SocketAddr);

impl Entry {
    async fn send(&self, protocol: Protocol) -> Sent {
        match protocol {
            Protocol::Http => send(self.0, PATH).await,
            Protocol::Grpc => {
                let mut sent = Sent::unanswered();
                let answer = self.call(&sent.traceparent()).await;
                sent.failed = answer.as_ref().err().map(|error| format!("{error:#}"));
                sent.answer = answer.ok();
                sent
            }
        }
    }

    async fn call(&self, traceparent: &str) -> Result<Answer> {
        let called = async {
            let mut sender = grpc::connect(self.0).await?;
            grpc::unary(&mut sender, GRPC_HOST, METHOD, &[("traceparent", traceparent)]).await
        };
        let told = tokio::time::timeout(ANSWER_LIMIT, called).await??;
        ensure!(told.status == "0", "status {}", told.status);
        serde_json::from_value(told.answer).context("no echo answered")
    }

    /// So many, the protocols in turn.
    async fn send_many(&self, requests: usize) -> Vec<(Protocol, Sent)> {
        let sends = (0..requests).map(|n| {
            let protocol = Protocol::BOTH[n % 2];
            async move { (protocol, self.send(protocol).await) }
        });
        stream::iter(sends).buffer_unordered(2 * AT_ONCE).collect().await
    }
}

pub(super) async fn play(stage: &Stage<'_>) -> Result<Finding> {
    set_up(stage).await.context("setting up what is only abroad")?;
    let entry = Entry(entries(stage, &[EAST]).await?[0]);
    wait_both_answer(&entry).await?;
    let faults = stage.fleet.world().fault();
    let mut sent = entry.send_many(REQUESTS / 2).await;
    let rest = entry.send_many(REQUESTS / 2);
    let kill = async {
        tokio::task::yield_now().await;
        faults.kill_member(SOUTH).await
    };
    let (rest, killed) = tokio::join!(rest, kill);
    sent.extend(rest);
    let told = compare(stage, &sent).await;
    faults.restore_member(SOUTH).await?;
    killed?;
    told
}

async fn set_up(stage: &Stage<'_>) -> Result<()> {
    let fleet = &stage.fleet;
    for member in [WEST, SOUTH] {
        for (name, protocol) in SERVICES {
            let mut echo = Echo::new(shop::NAMESPACE, name, "v1", shop::REPLICAS);
            echo.app_protocol = protocol.map(str::to_owned);
            fleet.world().deploy_echo(member, &echo).await?;
            fleet.export(member, name).await?;
        }
    }
    fleet.world().hub().objects().apply_yaml(ROUTES).await
}

async fn wait_both_answer(entry: &Entry) -> Result<()> {
    wait::until("west and south to answer over both protocols", shop::LIVE_LIMIT, || async {
        let sent = entry.send_many(8 * AT_ONCE).await;
        let mut answered = BTreeSet::new();
        for (protocol, sent) in &sent {
            match &sent.answer {
                Some(answer) => answered.insert((protocol, answer.identity.cluster.as_str())),
                None => {
                    let why = sent.failed.as_deref().unwrap_or_default();
                    return Ok(Look::Not(format!(
                        "a request by {} failed: {why}",
                        protocol.name()
                    )));
                }
            };
        }
        Ok(match answered.len() == 4 {
            true => Look::Done(()),
            false => Look::Not(format!("only {answered:?}")),
        })
    })
    .await
}

/// Spans against answers.
#[derive(Default)]
struct Score {
    /// Requests whose last span at the entry names who answered.
    right: usize,
    /// Of these, those that the span says crossed.
    crossed: usize,
    /// Spans of gateways that name a target, and those that name who answered.
    named: usize,
    named_right: usize,
    wrong: Vec<String>,
}

impl Score {
    fn add(&mut self, trace: &Trace, answered_by: &str) {
        let targets = trace.spans.iter().map(|span| span.text("fairlead.target"));
        for target in targets.filter(|target| !target.is_empty()) {
            self.named += 1;
            self.named_right += usize::from(target == answered_by);
        }
        let Some(span) = entry_span(trace) else { return };
        if span.text("fairlead.target") == answered_by {
            self.right += 1;
            self.crossed += usize::from(span.tag("fairlead.crossed") == Some(&json!(true)));
        } else if self.wrong.len() < 3 {
            let told = span.text("fairlead.target");
            let upstream = span.text("upstream_cluster.name");
            let address = span.text("upstream_address");
            self.wrong.push(format!("{told:?} for {answered_by:?}: {upstream} {address}"));
        }
    }
}

async fn compare(stage: &Stage<'_>, sent: &[(Protocol, Sent)]) -> Result<Finding> {
    let mut answered: BTreeMap<&str, &str> = BTreeMap::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (protocol, sent) in sent {
        let target = sent.answer.as_ref().map(|answer| answer.identity.cluster.as_str());
        answered.extend(target.map(|target| (sent.trace.as_str(), target)));
        let what = format!("{} {}", protocol.name(), target.unwrap_or("failed"));
        *counts.entry(what).or_default() += 1;
    }
    let ids: Vec<&str> = answered.keys().copied().collect();
    let found = traces(&stage.jaeger, &ids, |trace| entry_span(trace).is_some()).await?;
    let mut score = Score::default();
    for trace in &found {
        // Jaeger leaves leading zeros out.
        let id = format!("{:0>32}", trace.trace_id);
        score.add(trace, answered.get(id.as_str()).copied().unwrap_or_default());
    }
    let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
    let (right, named) = (share(score.right, found.len()), share(score.named_right, score.named));
    let whole = answered.len() >= ANSWERED_MIN && found.len() == answered.len();
    Ok(Finding::new(
        whole && right >= RIGHT_MIN && named >= RIGHT_MIN && score.crossed == score.right,
        figures([
            ("requests", json!(sent.len())),
            ("answered", json!(answered.len())),
            ("by", json!(counts)),
            ("crossed", json!(score.crossed)),
            ("right", json!(score.right)),
            ("share", json!(right)),
            ("spans_with_target", json!(score.named)),
            ("share_of_spans", json!(named)),
            ("wrong", json!(score.wrong.join("; "))),
        ]),
    ))
}
