//! b: what the user asked for, what `fairlead explain` says and what clients see are one thing.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Stage, send};
use crate::{
    fleet::shop,
    report::{Facts, Finding, figures, milliseconds},
};

const REQUESTS: u64 = 5000;
/// 2 points; three and a half standard deviations at 20 %.
const TOLERANCE: f64 = 0.02;
/// What the shop's file asks for, by version of the service.
const ASKED: [(&str, f64); 2] = [("v1", 0.8), ("v2", 0.2)];
/// The backends of the rule, as `explain` names them, and the versions behind them.
const VERSIONS: [(&str, &str); 2] = [("shop/cart:80", "v1"), ("shop/cart-v2:80", "v2")];

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    for (number, member) in (1..).zip(stage.fleet.world().members()) {
        let entry = member.name();
        let name = format!("5,000 requests through {entry} are split as asked and explained");
        facts.look(&format!("b{number}"), &name, through(stage, entry)).await;
    }
    Ok(())
}

async fn through(stage: &Stage<'_>, entry: &str) -> Result<Finding> {
    let explained = explained(stage, entry).await?;
    let report = send(&stage.fleet, entry, shop::CART, REQUESTS).await?;
    let seen = report.shares(|sample| sample.outcome.version.clone());
    let mut holds = report.failed() == 0;
    let mut more = figures([
        ("requests", json!(report.total())),
        ("failed", json!(report.failed())),
        ("p50_ms", json!(milliseconds(report.latency(0.5)))),
        ("p99_ms", json!(milliseconds(report.latency(0.99)))),
    ]);
    for (version, asked) in ASKED {
        let seen = seen.get(version).copied().unwrap_or_default();
        let explained = explained.get(version).copied().unwrap_or_default();
        holds &= (seen - asked).abs() <= TOLERANCE && (seen - explained).abs() <= TOLERANCE;
        more.insert(version.into(), json!(seen));
        more.insert(format!("{version}_explained"), json!(explained));
    }
    Ok(Finding::new(holds, more))
}

/// The shares that `fairlead explain` tells, by version.
async fn explained(stage: &Stage<'_>, entry: &str) -> Result<BTreeMap<&'static str, f64>> {
    let explanation = stage.fleet.explain("shop/cart").await?;
    let of_entry = explanation.entries.iter().find(|(member, _)| member.as_str() == entry);
    let (_, of_entry) = of_entry.with_context(|| format!("explain knows no entry {entry}"))?;
    let rule = of_entry.rules.first().context("explain tells of no rule")?;
    let mut shares = BTreeMap::new();
    for (backend, version) in VERSIONS {
        let found = rule.backends.iter().find(|found| found.backend == backend);
        let found = found.with_context(|| format!("explain knows no backend {backend}"))?;
        shares.insert(version, f64::from(found.share) / 10_000.0);
    }
    Ok(shares)
}
