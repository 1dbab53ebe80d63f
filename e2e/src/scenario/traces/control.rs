//! t3, t4, t10: our own traces, as Jaeger shows them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{EAST, SOUTH, Stage, WEST, crossing::wait_answered_by};
use crate::{
    jaeger::Trace,
    object::ObjectKey,
    report::{Facts, Finding, figures},
    wait::{self, Look},
};

const HUB: &str = "fairlead-hub";
/// Spans leave within a second; everything before that is what is looked at.
const LIMIT: Duration = Duration::from_secs(60);
/// Newest traces to look through.
const NEWEST: usize = 20;

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    facts.look("t10", "a join is one trace: the agent's and the hub's part", join(stage)).await;
    let name = "a route change is one trace: hub, agents, the gateways' acceptance";
    facts.look("t3", name, change(stage)).await;
    facts.look("t4", "a failover is a trace that names its evidence", failover(stage)).await;
}

async fn change(stage: &Stage<'_>) -> Result<Finding> {
    stage.fleet.wait_settled().await?;
    let before = newest(stage, HUB, "change").await?;
    let objects = stage.fleet.world().hub().objects();
    let key = ObjectKey::new("gateway.networking.k8s.io/v1", "HTTPRoute", "shop", "cart");
    let mut route = objects.get(&key).await?.context("there is no route cart")?;
    let header = json!([{
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": {"set": [{"name": "x-shop", "value": "open"}]},
    }]);
    route["spec"]["rules"][0]["filters"] = header;
    let bare = json!({
        "apiVersion": route["apiVersion"], "kind": route["kind"],
        "metadata": {"name": "cart", "namespace": "shop"}, "spec": route["spec"],
    });
    objects.apply(&bare).await?;
    let members = stage.fleet.world().members().count();
    let trace = wait::until("the trace of the change to be whole", LIMIT, || async {
        let traces = stage.jaeger.newest(HUB, "change", NEWEST).await?;
        let fresh = traces.into_iter().filter(|trace| !before.contains(&trace.trace_id));
        let mut counts = Vec::new();
        for trace in fresh {
            let of = |operation: &str| {
                trace.spans.iter().filter(|span| span.operation_name == operation).count()
            };
            let found = [of("plan"), of("push"), of("apply"), of("programmed")];
            if found == [1, members, members, members] {
                return Ok(Look::Done(trace));
            }
            counts.push(found);
        }
        Ok(Look::Not(format!("plan, push, apply, programmed: {counts:?}")))
    })
    .await?;
    let services: BTreeSet<&str> = trace.spans.iter().map(|span| trace.service(span)).collect();
    let start = trace.spans.iter().map(|span| span.start_time).min().unwrap_or_default();
    let end = trace.spans.iter().map(|span| span.start_time + span.duration).max();
    Ok(Finding::new(
        services.len() == members + 1,
        figures([
            ("services", json!(services)),
            ("spans", json!(trace.spans.len())),
            ("took_ms", json!((end.unwrap_or_default() - start) / 1_000)),
        ]),
    ))
}

async fn join(stage: &Stage<'_>) -> Result<Finding> {
    let service = format!("{EAST}.fairlead-agent");
    let trace = wait::until("the trace of a join", LIMIT, || async {
        let traces = stage.jaeger.newest(&service, "join", NEWEST).await?;
        let mut whole = traces.into_iter().filter(|trace| trace.spans.len() > 1);
        Ok(whole.next().map_or(Look::Not("none has two spans".to_owned()), Look::Done))
    })
    .await?;
    let enroll = trace.spans.iter().find(|span| span.operation_name == "enroll");
    let enroll = enroll.context("the hub's part is not in it")?;
    let path = trace.path(enroll);
    let holds = path == [service.as_str(), HUB] && enroll.text("fairlead.member") == EAST;
    Ok(Finding::new(
        holds,
        figures([("path", json!(path.join(" → "))), ("spans", json!(trace.spans.len()))]),
    ))
}

async fn newest(stage: &Stage<'_>, service: &str, operation: &str) -> Result<BTreeSet<String>> {
    let traces = stage.jaeger.newest(service, operation, NEWEST).await?;
    Ok(traces.into_iter().map(|trace| trace.trace_id).collect())
}

async fn failover(stage: &Stage<'_>) -> Result<Finding> {
    let service = format!("{EAST}.fairlead-agent");
    stage.fleet.spread_cart().await?;
    wait_answered_by(stage, &[EAST, WEST, SOUTH]).await?;
    let faults = stage.fleet.world().fault();
    faults.kill_gateway(SOUTH).await?;
    let found = wait::until("the trace of a failover", LIMIT, || async {
        let traces: Vec<Trace> = stage.jaeger.newest(&service, "failover", NEWEST).await?;
        let spans = traces.into_iter().flat_map(|trace| trace.spans);
        let mut ours = spans.filter(|span| span.text("fairlead.out") == SOUTH);
        Ok(ours.next().map_or(Look::Not("there is none".to_owned()), Look::Done))
    })
    .await;
    faults.restore_gateway(SOUTH).await?;
    stage.fleet.wait_settled().await?;
    let span = found?;
    let evidence = span.text("fairlead.evidence").to_owned();
    Ok(Finding::new(
        evidence.starts_with("south: Door") && span.tag("fairlead.rules") != Some(&json!(0)),
        figures([
            ("evidence", json!(evidence)),
            ("rules", json!(span.tag("fairlead.rules"))),
            ("from_verdict_to_written_ms", json!(span.duration / 1_000)),
        ]),
    ))
}
