//! Copies of requests: to a service of another member, whole and by percent.
//!
//! An echo counts requests that carry the same key. What its copies come to is asked of it directly,
//! by a route of its own.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Side, Stage, TARGET};
use crate::{
    fleet::shop::ask_host,
    report::{Facts, Figures, Finding},
    wait::{self, Look},
};

const REQUESTS: u32 = 100;
/// Copies of 50 percent: five standard deviations around 50 of 100.
const HALF: std::ops::RangeInclusive<u32> = 25..=75;
/// Copies are not waited for by anybody.
const SETTLE: Duration = Duration::from_secs(10);
/// So many equal counts in a row mean that no more come.
const LOOKS_ALIKE: u32 = 10;

pub(super) async fn declare(stage: &Stage<'_>) -> Result<()> {
    let path = |path: &str| json!([{"path": {"type": "PathPrefix", "value": path}}]);
    let mirror = |percent: Option<u32>| {
        let mut what = json!({"backendRef": {"name": "echo-2"}});
        if let Some(percent) = percent {
            what["percent"] = json!(percent);
        }
        json!({"type": "RequestMirror", "requestMirror": what})
    };
    let rules = json!([
        {"matches": path("/copied"), "filters": [mirror(None)], "backendRefs": [{"name": "echo"}]},
        {"matches": path("/half-copied"), "filters": [mirror(Some(50))], "backendRefs": [{"name": "echo"}]},
        {"matches": path("/counted"), "backendRefs": [{"name": "echo-2"}]},
    ]);
    stage.declare("HTTPRoute", "copies", "http", &rules).await
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    let whole = mirrored(stage, "/copied", REQUESTS..=REQUESTS);
    facts.look("f8", "mirror to another member: every request is copied once", whole).await;
    facts.look("f9", "mirror of 50 percent", mirrored(stage, "/half-copied", HALF)).await;
}

async fn mirrored(
    stage: &Stage<'_>,
    path: &str,
    wanted: std::ops::RangeInclusive<u32>,
) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        live(stage, side, path).await?;
        let host = format!("http.{}", side.domain());
        let key = format!("{}-{}", side.domain(), path.trim_start_matches('/'));
        let mut answered = 0;
        for _ in 0..REQUESTS {
            let seen = ask_host(stage.address(side), &host, &format!("{path}?key={key}")).await?;
            let service = seen.echo.as_ref().map(|echo| echo.identity.service.as_str());
            // Who asked must not notice.
            let right = seen.status == 200 && service == Some("echo") && seen.target() == TARGET;
            answered += u32::from(right);
        }
        let copies = copies(stage, side, &key).await?;
        holds &= answered == REQUESTS && wanted.contains(&copies);
        more.insert(side.domain().into(), json!({"answered": answered, "copies": copies}));
    }
    Ok(Finding::new(holds, more))
}

/// Waits until copies arrive at all: the way to another member is made after a knock.
async fn live(stage: &Stage<'_>, side: Side, path: &str) -> Result<()> {
    let host = format!("http.{}", side.domain());
    wait::until(&format!("copies of {path} through {}", side.domain()), super::LIMIT, || async {
        let key = format!("live-{}-{}", side.domain(), path.trim_start_matches('/'));
        for _ in 0..8 {
            ask_host(stage.address(side), &host, &format!("{path}?key={key}")).await?;
        }
        // Of its own asking there is one.
        let seen = count(stage, side, &key).await?;
        Ok(if seen > 1 { Look::Done(()) } else { Look::Not("none arrived".into()) })
    })
    .await
}

/// How many copies arrived, once no more come.
async fn copies(stage: &Stage<'_>, side: Side, key: &str) -> Result<u32> {
    let [asked, before, alike] = [const { AtomicU32::new(0) }; 3];
    wait::until("the last copy", SETTLE, || async {
        // Its own asking counts, too.
        let own = asked.fetch_add(1, Relaxed) + 1;
        let now = count(stage, side, key).await?.saturating_sub(own);
        let same = before.swap(now, Relaxed) == now;
        let looks = if same { alike.fetch_add(1, Relaxed) + 1 } else { 0 };
        alike.store(looks, Relaxed);
        Ok(if looks >= LOOKS_ALIKE { Look::Done(now) } else { Look::Not(format!("{now}")) })
    })
    .await
}

async fn count(stage: &Stage<'_>, side: Side, key: &str) -> Result<u32> {
    let host = format!("http.{}", side.domain());
    let seen = ask_host(stage.address(side), &host, &format!("/counted?key={key}")).await?;
    seen.echo.map(|echo| echo.attempt).context("echo-2 did not answer")
}
