//! t6: the backend is away for a while. Gateways must not notice, the relay's memory is bounded,
//! delivery resumes, and every span is accounted for.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{EAST, Stage, entries, metrics::metrics_text, send_many, traces};
use crate::{
    fleet::shop,
    load::{Entry, Load},
    report::{Finding, figures, milliseconds},
    wait::{self, Look},
};

const AWAY: Duration = Duration::from_secs(60);
const RATE: f64 = 100.0;
const RESUME_LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn away(stage: &Stage<'_>) -> Result<Finding> {
    let east = entries(stage, &[EAST]).await?[0];
    let mut load = Load::new(shop::HOST, shop::CATALOG);
    load.entries.push(Entry { name: EAST.to_owned(), address: east });
    let before = load.clone().rate(RATE).lasting(Duration::from_secs(10)).run().await;
    stage.jaeger.kill().await;
    let during = load.clone().rate(RATE).lasting(AWAY).run().await;
    let waiting = metrics(stage).await?;
    stage.jaeger.start_again().await?;
    let after = wait::until("all spans to be delivered", RESUME_LIMIT, || async {
        let now = metrics(stage).await?;
        let queued = value(&now, "fairlead_agent_otlp_queued_spans")?;
        Ok(match queued == 0.0 && total(&now)? == value(&now, TAKEN)? {
            true => Look::Done(now),
            false => Look::Not(format!("{queued} wait")),
        })
    })
    .await?;
    let fresh = send_many(&[east], shop::CATALOG, 20).await;
    let ids: Vec<&str> = fresh.iter().map(|sent| sent.trace.as_str()).collect();
    let delivered = traces(&stage.jaeger, &ids, |trace| trace.spans.len() >= 4).await.is_ok();
    let waited = value(&waiting, "fairlead_agent_otlp_queued_spans")?;
    let failed = before.failed() + during.failed();
    let holds = failed == 0 && delivered && waited > 0.0;
    Ok(Finding::new(
        holds,
        figures([
            ("away_s", json!(AWAY.as_secs())),
            ("requests", json!(during.total())),
            ("failed", json!(failed)),
            ("p99_ms_before", json!(milliseconds(before.latency(0.99)))),
            ("p99_ms_away", json!(milliseconds(during.latency(0.99)))),
            ("waited_spans", json!(waited)),
            ("waited_bytes", json!(value(&waiting, "fairlead_agent_otlp_queue_bytes")?)),
            ("taken", json!(value(&after, TAKEN)?)),
            ("sent", json!(value(&after, SENT)?)),
            ("dropped", json!(value(&after, FULL)? + value(&after, REFUSED)?)),
        ]),
    ))
}

const TAKEN: &str = "fairlead_agent_otlp_spans_total{fate=\"taken\"}";
const SENT: &str = "fairlead_agent_otlp_spans_total{fate=\"sent\"}";
const FULL: &str = "fairlead_agent_otlp_spans_total{fate=\"dropped_full\"}";
const REFUSED: &str = "fairlead_agent_otlp_spans_total{fate=\"dropped_refused\"}";

fn total(metrics: &str) -> Result<f64> {
    Ok(value(metrics, SENT)? + value(metrics, FULL)? + value(metrics, REFUSED)?)
}

fn value(metrics: &str, name: &str) -> Result<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.with_context(|| format!("{name} is not among the metrics"))?;
    line.trim().parse().with_context(|| format!("{name} is {line:?}"))
}

/// What east's agent counts.
async fn metrics(stage: &Stage<'_>) -> Result<String> {
    let address = stage.fleet.world().member(EAST)?.local()?.pods.address;
    metrics_text(address).await
}
