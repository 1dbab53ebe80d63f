//! GRPCRoute: methods, headers, weights, and streams that go both ways at once.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, client::conn::http2::SendRequest};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Side, Stage, case::mark};
use crate::{
    echo::grpc_message,
    grpc::{self, Body, Told},
    report::{Facts, Figures, Finding, figures},
    wait::{self, Look},
};

const LIMIT: Duration = Duration::from_secs(10);
/// Calls of which shares are counted.
const CALLS: u32 = 1000;
/// 3 points; almost three standard deviations of an 80/20 split.
const TOLERANCE: f64 = 0.03;
const MESSAGES: u32 = 20;

pub(super) async fn declare(stage: &Stage<'_>) -> Result<()> {
    let rule = |matches: Value, name: &str| json!({"matches": [matches], "filters": [mark(name)], "backendRefs": [{"name": "echo-grpc"}]});
    let rules = json!([
        rule(json!({"method": {"service": "echo.Echo", "method": "Say"}}), "say"),
        rule(json!({"method": {"service": "echo.Echo", "method": "Stream"}}), "stream"),
        rule(json!({"method": {"service": "echo.Echo"}, "headers": [{"name": "x-team", "value": "blue"}]}), "blue"),
        rule(json!({"method": {"type": "RegularExpression", "service": "other\\..*", "method": "Get[A-Z].*"}}), "regex"),
        {
            "name": "weights",
            "matches": [{"method": {"service": "echo.Split"}}],
            "backendRefs": [
                {"name": "echo-grpc", "weight": 80, "filters": [mark("v80")]},
                {"name": "echo-grpc", "weight": 20, "filters": [mark("v20")]},
            ],
        },
    ]);
    stage.declare("GRPCRoute", "grpc", "grpc", &rules).await
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    facts.look("g0", "a GRPCRoute is live on both sides", live(stage)).await;
    for (id, name, method, team, wanted) in [
        ("g1", "gRPC by service and method", "/echo.Echo/Say", None, ("0", "say")),
        ("g2", "gRPC by header", "/echo.Echo/Other", Some("blue"), ("0", "blue")),
        ("g3", "gRPC by regular expression", "/other.Shop/GetCart", None, ("0", "regex")),
        ("g4", "gRPC that no rule takes is UNIMPLEMENTED", "/echo.Echo/Other", None, ("12", "")),
    ] {
        facts.look(id, name, unary(stage, method, team, wanted)).await;
    }
    facts.look("g5", "gRPC with weights, 80 to 20", weights(stage)).await;
    facts.look("g6", "a gRPC stream answers while it is being sent", stream(stage)).await;
}

async fn live(stage: &Stage<'_>) -> Result<Finding> {
    for side in Side::BOTH {
        wait::until(&format!("gRPC through {}", side.domain()), super::LIMIT, || async {
            let told = call(stage, side, "/echo.Echo/Say", None).await?;
            let done = told.status == "0";
            Ok(if done { Look::Done(()) } else { Look::Not(format!("status {}", told.status)) })
        })
        .await?;
    }
    Ok(Finding::new(true, Figures::new()))
}

/// The rule that a call was served by.
fn rule_of(told: &Told) -> &str {
    told.answer.pointer("/headers/x-rule/0").and_then(Value::as_str).unwrap_or_default()
}

async fn unary(
    stage: &Stage<'_>,
    method: &str,
    team: Option<&str>,
    (status, rule): (&str, &str),
) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let told = call(stage, side, method, team).await?;
        holds &= told.status == status && rule_of(&told) == rule;
        more.insert(side.domain().into(), json!(format!("{} {}", told.status, rule_of(&told))));
    }
    Ok(Finding::new(holds, more))
}

async fn weights(stage: &Stage<'_>) -> Result<Finding> {
    let mut sender = grpc::connect(stage.address(Side::Fleet)).await?;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut failed = 0;
    for _ in 0..CALLS {
        let told = unary_call(&mut sender, Side::Fleet, "/echo.Split/Any", None).await?;
        failed += u32::from(told.status != "0");
        *counts.entry(rule_of(&told).to_owned()).or_default() += 1;
    }
    let share =
        |name: &str| f64::from(counts.get(name).copied().unwrap_or_default()) / f64::from(CALLS);
    let (v80, v20) = (share("v80"), share("v20"));
    let holds = failed == 0 && (v80 - 0.8).abs() <= TOLERANCE && (v20 - 0.2).abs() <= TOLERANCE;
    Ok(Finding::new(
        holds,
        figures([("v80", json!(v80)), ("v20", json!(v20)), ("failed", json!(failed))]),
    ))
}

/// Sends a message only when the one before was answered, so that nothing can be gathered on the way.
async fn stream(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let (answered, status) = tokio::time::timeout(LIMIT, ping_pong(stage, side))
            .await
            .context("the stream hangs")??;
        holds &= answered == MESSAGES && status == "0";
        more.insert(side.domain().into(), json!(format!("{answered} of {MESSAGES}, {status}")));
    }
    Ok(Finding::new(holds, more))
}

async fn ping_pong(stage: &Stage<'_>, side: Side) -> Result<(u32, String)> {
    let mut sender = grpc::connect(stage.address(side)).await?;
    let (messages, body) = mpsc::channel(1);
    let body = BodyExt::boxed(StreamBody::new(ReceiverStream::new(body)));
    messages.send(Ok(Frame::data(grpc_message(b"first")))).await?;
    let request = grpc::request(&host(side), "/echo.Echo/Stream", &[], body)?;
    let response = sender.send_request(request).await?;
    let (parts, mut body) = response.into_parts();
    ensure!(parts.status == 200, "the stream is answered {}", parts.status);
    let (mut answered, mut status) = (0, String::new());
    let mut messages = Some(messages);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(trailers) = frame.trailers_ref() {
            status = grpc::text(trailers, "grpc-status");
            continue;
        }
        answered += 1;
        match &messages {
            Some(open) if answered < MESSAGES => {
                open.send(Ok(Frame::data(grpc_message(b"next")))).await?;
            }
            _ => messages = None,
        }
    }
    Ok((answered, status))
}

async fn call(stage: &Stage<'_>, side: Side, method: &str, team: Option<&str>) -> Result<Told> {
    let mut sender = grpc::connect(stage.address(side)).await?;
    let told = unary_call(&mut sender, side, method, team);
    tokio::time::timeout(LIMIT, told).await.context("no answer")?
}

async fn unary_call(
    sender: &mut SendRequest<Body>,
    side: Side,
    method: &str,
    team: Option<&str>,
) -> Result<Told> {
    grpc::unary(sender, &host(side), method, &team_header(team)).await
}

fn host(side: Side) -> String {
    format!("grpc.{}", side.domain())
}

fn team_header(team: Option<&str>) -> Vec<(&'static str, &str)> {
    team.map(|team| ("x-team", team)).into_iter().collect()
}
