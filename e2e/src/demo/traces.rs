//! The demo's traces: when Jaeger was built already, one request that crosses is shown as a trace.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    fleet::{Fleet, entry, tracing::trace_gateways},
    jaeger::{Jaeger, Trace},
    tool,
    wait::{self, Look},
    world::World,
};

const ARRIVE_LIMIT: Duration = Duration::from_secs(30);

/// Jaeger beside the demo.
pub struct Traces(Jaeger);

impl Traces {
    /// Starts it when it was built already; a demo waits for no build of it.
    pub async fn start_if_built(world: &World) -> Result<Option<Self>> {
        let Some(program) = tool::built_jaeger() else { return Ok(None) };
        Ok(Some(Self(Jaeger::start(world, program).await?)))
    }

    /// What `fairlead init` and `fairlead join` are told of it.
    pub fn flags(&self) -> String {
        format!("--otlp-endpoint {}", self.0.endpoint())
    }

    /// Lets all gateways send their spans. After the joins.
    pub async fn attach(&self, world: &World) -> Result<()> {
        for member in world.members() {
            trace_gateways(world, member.name()).await?;
        }
        Ok(())
    }

    /// Sends one request through an entry and tells its way: services in order, and where to look.
    pub async fn show_crossing(&self, fleet: &Fleet<'_>, from: &str, path: &str) -> Result<String> {
        let address = entry(fleet.world().member(from)?).await?;
        let sent = crate::fleet::tracing::send(address, path).await;
        let answer = sent.answer.context("the request failed")?;
        let trace = wait::until("the trace to arrive", ARRIVE_LIMIT, || async {
            let found = self.0.traces(&[&sent.trace]).await?.into_iter().next();
            let whole = found.filter(|trace: &Trace| trace.spans.len() >= 4);
            Ok(whole.map_or(Look::Not("it is not whole".to_owned()), Look::Done))
        })
        .await?;
        let leaf = trace.spans.iter().max_by_key(|span| span.start_time);
        let way = trace.path(leaf.context("a trace has spans")?).join(" → ");
        let (target, query) = (&answer.identity.cluster, self.0.query());
        Ok(format!("client → {way} → {target}   {query}/trace/{}", sent.trace))
    }
}
