//! The demo's traces: when Jaeger was built already, one request that crosses is shown as a trace.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    fleet::{Fleet, entry, program::Ran, tracing},
    jaeger::{Jaeger, Trace},
    tool,
    wait::{self, Look},
    world::World,
};

const ARRIVE_LIMIT: Duration = Duration::from_secs(30);
/// Gateways trace so many percent of the requests by themselves, so that Jaeger takes no core of the
/// demo's. A request that says that it is traced is traced all the same.
const PERCENT: u8 = 1;

/// Says how to have traces in the demo.
pub(super) const WITHOUT: &str =
    "  Without traces: Jaeger is not built. `cargo e2e tools --with jaeger` builds it.";

/// Jaeger beside the demo.
pub(super) struct Traces(Jaeger);

/// A request on its way from gateway to gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Crossing {
    pub(super) trace_id: String,
    /// Services in order.
    pub(super) services: Vec<String>,
    /// The member whose backend answered, as it says itself.
    pub(super) answered_by: String,
    /// What the entry's span says of who answers.
    pub(super) target: String,
    /// Where to look at it.
    pub(super) url: String,
}

impl Traces {
    /// Starts it when it was built already; a demo waits for no build of it.
    pub(super) async fn start_if_built(world: &World) -> Result<Option<Self>> {
        let Some(program) = tool::built_jaeger() else { return Ok(None) };
        Ok(Some(Self(Jaeger::start(world, program).await?)))
    }

    /// What `fairlead init` and `fairlead join` are told of it.
    pub(super) fn flags(&self) -> String {
        format!("--otlp-endpoint {}", self.0.endpoint())
    }

    /// Joins a member whose gateways send spans.
    pub(super) async fn join(&self, fleet: &Fleet<'_>, member: &str) -> Result<Ran> {
        Ok(tracing::join_traced(fleet, member, &self.flags(), PERCENT).await?.ran)
    }

    /// Sends one request through an entry and tells its way.
    pub(super) async fn show_crossing(
        &self,
        fleet: &Fleet<'_>,
        from: &str,
        path: &str,
    ) -> Result<Crossing> {
        let address = entry(fleet.world().member(from)?).await?;
        let sent = tracing::send(address, path).await;
        let answer = sent.answer.context("the request failed")?;
        let trace = wait::until("the trace to arrive", ARRIVE_LIMIT, || async {
            let found = self.0.traces(&[&sent.trace]).await?.into_iter().next();
            let whole = found.filter(|trace: &Trace| trace.spans.len() >= 4);
            Ok(whole.map_or(Look::Not("it is not whole".to_owned()), Look::Done))
        })
        .await?;
        let leaf = trace.spans.iter().max_by_key(|span| span.start_time);
        let mut targets = trace.spans.iter().filter(|span| span.text("fairlead.hop") == "entry");
        let target = targets.find_map(|span| span.tag("fairlead.target")?.as_str());
        Ok(Crossing {
            services: trace.path(leaf.context("a trace has spans")?),
            answered_by: answer.identity.cluster,
            target: target.unwrap_or_default().to_owned(),
            url: format!("{}/trace/{}", self.0.query(), sent.trace),
            trace_id: sent.trace,
        })
    }
}

impl Crossing {
    pub(super) fn line(&self) -> String {
        let way = self.services.join(" → ");
        format!("  client → {way} → {}   {}", self.answered_by, self.url)
    }

    /// What is not as it should be of a request from one member to another.
    pub(super) fn problem(&self, from: &str, to: &str) -> Option<String> {
        let way = [from, to].map(|member| format!("{member}.gateway"));
        let is_whole = self.services == way && self.target == to && self.answered_by == to;
        (!is_whole).then(|| format!("a request from {from} to {to} was traced as {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_crossing() -> Crossing {
        Crossing {
            trace_id: "1f".into(),
            services: vec!["east.gateway".into(), "west.gateway".into()],
            answered_by: "west".into(),
            target: "west".into(),
            url: "http://10.77.0.1:16686/trace/1f".into(),
        }
    }

    #[test]
    fn a_crossing_is_one_line() {
        let line =
            "  client → east.gateway → west.gateway → west   http://10.77.0.1:16686/trace/1f";
        assert_eq!(mk_crossing().line(), line);
    }

    #[test]
    fn a_crossing_that_was_told_wrongly_is_a_problem() {
        assert_eq!(mk_crossing().problem("east", "west"), None);
        let half = Crossing { services: vec!["east.gateway".into()], ..mk_crossing() };
        assert!(half.problem("east", "west").is_some());
        let wrong = Crossing { target: "south".into(), ..mk_crossing() };
        assert!(wrong.problem("east", "west").is_some());
    }
}
