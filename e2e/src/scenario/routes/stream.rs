//! What lasts longer than a request: upgrades and sessions; and how weights fall.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Side, Stage, TARGET, case::mark};
use crate::{
    echo::{Answer, UPGRADE_CLUSTER},
    load::Load,
    report::{Facts, Figures, Finding, figures},
    wait::{self, Look},
};

const LIMIT: Duration = Duration::from_secs(10);
const REQUESTS: u64 = 2000;
/// 2 points, more than two standard deviations.
const TOLERANCE: f64 = 0.02;
/// Requests of one session; that two replicas serve none of them by chance is one in a million.
const SESSION_REQUESTS: usize = 20;
const HEAD_MAX: usize = 16 * 1024;

pub(super) async fn declare(stage: &Stage<'_>) -> Result<()> {
    let prefix = |path: &str| json!([{"path": {"type": "PathPrefix", "value": path}}]);
    let rules = json!([
        {"matches": prefix("/ws"), "backendRefs": [{"name": "echo-ws"}]},
        {"matches": prefix("/split"), "filters": [mark("split")],
            "backendRefs": [{"name": "echo", "weight": 80}, {"name": "echo-2", "weight": 20}]},
        {"matches": prefix("/session"), "sessionPersistence": {"sessionName": "basket", "type": "Cookie"},
            "backendRefs": [{"name": "echo"}]},
    ]);
    stage.declare("HTTPRoute", "lasting", "http", &rules).await
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    facts.look("s1", "an upgraded connection (WebSocket) carries both ways", upgrade(stage)).await;
    facts.look("s2", "two services of another member, 80 to 20", split(stage)).await;
    facts
        .look(
            "s3",
            "a session stays with its member, and where it cannot do more says so",
            session(stage),
        )
        .await;
}

async fn upgrade(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let what = format!("an upgrade through {}", side.domain());
        let seen = wait::until(&what, LIMIT, || async { Ok(Look::Done(talk(stage, side).await?)) })
            .await?;
        holds &= seen == format!("101 {TARGET} ping pong");
        more.insert(side.domain().into(), json!(seen));
    }
    Ok(Finding::new(holds, more))
}

/// Upgrades a connection and sends two words, the second after the first came back.
async fn talk(stage: &Stage<'_>, side: Side) -> Result<String> {
    let mut stream = TcpStream::connect(stage.address(side)).await?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: http.{}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        side.domain()
    );
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    ensure!(status == "101", "the upgrade is answered {status}");
    let cluster = head.lines().find_map(|line| line.strip_prefix(&format!("{UPGRADE_CLUSTER}: ")));
    let mut told = format!("{status} {}", cluster.unwrap_or_default());
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await?;
        let mut back = [0; 4];
        tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await.context("no echo")??;
        told.push(' ');
        told.push_str(&String::from_utf8_lossy(&back));
    }
    Ok(told)
}

async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_MAX, "the answer's head is too long");
        let byte = tokio::time::timeout(LIMIT, stream.read_u8()).await.context("no answer")??;
        head.push(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn split(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let host = format!("http.{}", side.domain());
        let load = Load::new(&host, "/split").entry(side.domain(), stage.address(side));
        let report = load.requests(REQUESTS, 8).run().await;
        let shares = report.shares(|sample| sample.outcome.version.clone());
        let v1 = shares.get("v1").copied().unwrap_or_default();
        holds &= report.failed() == 0 && (v1 - 0.8).abs() <= TOLERANCE;
        more.insert(side.domain().into(), json!(v1));
        more.insert(format!("{} failed", side.domain()), json!(report.failed()));
    }
    Ok(Finding::new(holds, more))
}

/// A session of a plain cluster stays with one replica. Across a door it stays with the member, whose
/// gateway then chooses a replica for each request: the route's status must say so.
async fn session(stage: &Stage<'_>) -> Result<Finding> {
    let (plain, plain_members) = replicas(stage, Side::Plain).await?;
    let (fleet, fleet_members) = replicas(stage, Side::Fleet).await?;
    let routes = stage.fleet.routes().await?;
    let route = routes.iter().find(|route| &*route.route.name.name == "lasting");
    let route = route.context("the hub knows no route lasting")?;
    let said = route.notes.iter().any(|note| note.message.contains("sessionPersistence"));
    let holds = plain == 1 && plain_members == 1 && fleet_members == 1 && (fleet == 1 || said);
    Ok(Finding::new(
        holds,
        figures([
            ("plain_replicas", json!(plain)),
            ("fleet_replicas", json!(fleet)),
            ("fleet_members", json!(fleet_members)),
            ("said", json!(said)),
        ]),
    ))
}

/// Replicas and members that answered one session.
async fn replicas(stage: &Stage<'_>, side: Side) -> Result<(usize, usize)> {
    let mut cookie = String::new();
    let (mut replicas, mut members) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..SESSION_REQUESTS {
        let request = Request::get("/session")
            .header("host", format!("http.{}", side.domain()))
            .header("cookie", &cookie)
            .body(Empty::<Bytes>::new())?;
        let answer = crate::http1::send(stage.address(side), request).await?;
        if let Some(set) = answer.headers().get("set-cookie") {
            cookie = set.to_str()?.split(';').next().unwrap_or_default().to_owned();
        }
        let answer: Answer = serde_json::from_slice(answer.body()).context("an echo's answer")?;
        replicas.insert(answer.replica);
        members.insert(answer.identity.cluster);
    }
    ensure!(cookie.contains("basket"), "there is no session: the cookie is {cookie:?}");
    Ok((replicas.len(), members.len()))
}
