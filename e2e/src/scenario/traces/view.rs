//! t11: what people see with the commands while requests flow: rates and weights, flows beside reasons,
//! newest traces.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_model::view::FlowView;
use serde_json::{Value, json};

use super::{EAST, Stage, WEST, entries, send_many, traces};
use crate::{
    fleet::shop,
    load::{Entry, Load},
    report::{Finding, figures},
    wait::{self, Look},
};

const RATE: f64 = 50.0;
/// A part of it: reports are of five seconds, and the load is even.
const RATE_TOLERANCE: f64 = 0.1;
const SHARE_TOLERANCE: f64 = 0.001;
const LIMIT: Duration = Duration::from_secs(30);

/// The cart is shared 80 to 20 by east and west at present, each with both of its backends.
pub(super) async fn shown(stage: &Stage<'_>) -> Result<Finding> {
    let east = entries(stage, &[EAST]).await?[0];
    let mut load = Load::new(shop::HOST, shop::CART).rate(RATE);
    load.entries.push(Entry { name: EAST.to_owned(), address: east });
    let running = load.start();
    let flows = wait_flows(stage).await;
    let explained = stage.fleet.at_hub("fairlead explain shop/cart --from east").await;
    running.stop().await;
    let (flows, explained) = (flows?, explained?.expect_success()?);
    let sum = |of: fn(&FlowView) -> f64| flows.iter().map(of).sum::<f64>();
    let to_west: Vec<&FlowView> =
        flows.iter().filter(|flow| flow.target.as_str() == WEST).collect();
    let asked_of_west: f64 = to_west.iter().filter_map(|flow| flow.asked).sum();
    let told = explained.lines().filter(|line| line.contains("/s, 0.0 % failed")).count();
    let newest = newest(stage).await?;
    let is = |value: f64, wanted: f64| (value - wanted).abs() <= SHARE_TOLERANCE;
    let asked = sum(|flow| flow.asked.unwrap_or_default());
    let effective = sum(|flow| flow.effective.unwrap_or_default());
    let errors = sum(|flow| flow.error_share);
    let holds = flows.len() == 4
        && is(asked, 1.0)
        && is(effective, 1.0)
        && is(asked_of_west, 0.2)
        && errors == 0.0
        && told == flows.len()
        && newest["entry"] == EAST
        && newest["target"] == WEST;
    Ok(Finding::new(
        holds,
        figures([
            ("flows", json!(flows.len())),
            ("sent_per_second", json!(RATE)),
            ("shown_per_second", json!(sum(|flow| flow.per_second))),
            ("asked", json!(asked)),
            ("effective", json!(effective)),
            ("asked_of_west", json!(asked_of_west)),
            ("lines_of_explain_with_figures", json!(told)),
            ("newest_trace", newest),
        ]),
    ))
}

/// What `top` shows, once a whole report is of nothing but the load.
async fn wait_flows(stage: &Stage<'_>) -> Result<Vec<FlowView>> {
    wait::until("top to show the load", LIMIT, || async {
        let said = stage.fleet.at_hub("fairlead top shop/cart -o json").await?.expect_success()?;
        let flows: Vec<FlowView> = serde_json::from_str(&said).context("reading top")?;
        let rate: f64 = flows.iter().map(|flow| flow.per_second).sum();
        Ok(match (rate / RATE - 1.0).abs() <= RATE_TOLERANCE {
            true => Look::Done(flows),
            false => Look::Not(format!("it shows {rate:.1} requests per second")),
        })
    })
    .await
}

/// What `trace` shows first, after a request that crosses.
async fn newest(stage: &Stage<'_>) -> Result<Value> {
    let east = entries(stage, &[EAST]).await?;
    let sent = send_many(&east, shop::CATALOG, 1).await;
    let ids: Vec<&str> = sent.iter().map(|sent| sent.trace.as_str()).collect();
    traces(&stage.jaeger, &ids, |trace| trace.spans.len() >= 5).await?;
    let line = format!("fairlead trace shop/catalog --jaeger {} -o json", stage.jaeger.query());
    let said = stage.fleet.at_hub(&line).await?.expect_success()?;
    let shown: Vec<Value> = serde_json::from_str(&said).context("reading trace")?;
    let is_ours = |it: &Value| {
        let id = it["trace_id"].as_str().unwrap_or_default();
        ids.contains(&format!("{id:0>32}").as_str())
    };
    shown.first().filter(|it| is_ours(it)).cloned().context("the newest trace is not shown first")
}
