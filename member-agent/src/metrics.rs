//! The agent's metrics: one place for names, units in the names, labels from closed sets.

use fairlead_model::{PlanNumber, Reason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DnsOutcome {
    transport: &'static str,
    outcome: &'static str,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    writes: Family<Verb, Counter>,
    failures: Family<Why, Counter>,
    exceptions: Gauge,
    apply_seconds: Histogram,
    plan_epoch: Gauge,
    plan_counter: Gauge,
    connected: Gauge,
    sessions: Counter,
    unreachable: Gauge,
    overlay_rules: Gauge,
    dns_queries: Family<DnsOutcome, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("fairlead_agent");
        let writes = Family::default();
        registry.register("writes", "Objects written to the API server", writes.clone());
        let failures = Family::default();
        registry.register("write_failures", "Writes that failed", failures.clone());
        let exceptions = Gauge::default();
        registry.register("exceptions", "Objects that are not as planned", exceptions.clone());
        let apply_seconds = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register_with_unit(
            "apply",
            "From the arrival of a plan to its last write",
            Unit::Seconds,
            apply_seconds.clone(),
        );
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let plan_epoch = gauge(&mut registry, "plan_epoch", "Epoch of the plan that was applied");
        let plan_counter = gauge(&mut registry, "plan_counter", "Counter of that plan");
        let connected =
            gauge(&mut registry, "hub_connected", "1 while the stream to the hub is open");
        let sessions = Counter::default();
        registry.register("hub_sessions", "Streams to the hub that were opened", sessions.clone());
        let unreachable =
            gauge(&mut registry, "peers_unreachable", "Peers whose door cannot be reached");
        let overlay_rules =
            gauge(&mut registry, "overlay_rules", "Rules whose weights differ from the plan");
        let dns_queries = Family::default();
        registry.register(
            "dns_queries",
            "DNS messages that came, by what became of them",
            dns_queries.clone(),
        );
        Self {
            registry,
            writes,
            failures,
            exceptions,
            apply_seconds,
            plan_epoch,
            plan_counter,
            connected,
            sessions,
            unreachable,
            overlay_rules,
            dns_queries,
        }
    }
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

impl Metrics {
    /// An object was written.
    pub fn written(&self, verb: &'static str) {
        self.writes.get_or_create(&Verb { verb }).inc();
    }

    /// A write failed.
    pub fn failed(&self, reason: Reason) {
        self.failures.get_or_create(&Why { reason: reason.as_str() }).inc();
    }

    /// A plan was applied.
    pub fn applied(&self, plan: PlanNumber, took_ms: u64) {
        self.plan_epoch.set(number(plan.epoch));
        self.plan_counter.set(number(plan.counter));
        self.apply_seconds.observe(std::time::Duration::from_millis(took_ms).as_secs_f64());
    }

    /// Objects that are not as planned.
    pub fn exceptions(&self, count: usize) {
        self.exceptions.set(number(count));
    }

    /// The stream to the hub opened.
    pub fn connected(&self) {
        self.connected.set(1);
        self.sessions.inc();
    }

    /// The stream to the hub ended.
    pub fn disconnected(&self) {
        self.connected.set(0);
    }

    /// Peers that cannot be reached, and rules that differ because of it.
    pub fn overlay(&self, unreachable: usize, rules: u32) {
        self.unreachable.set(number(unreachable));
        self.overlay_rules.set(number(rules));
    }

    /// A DNS message came.
    pub fn dns_query(&self, transport: &'static str, outcome: &'static str) {
        self.dns_queries.get_or_create(&DnsOutcome { transport, outcome }).inc();
    }

    /// All of it, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_with_prefix_and_units() {
        let metrics = Metrics::default();
        metrics.written("create");
        metrics.failed(Reason::Forbidden);
        metrics.applied(PlanNumber::new(2, 3), 1_500);
        let text = metrics.text();
        for line in [
            "fairlead_agent_writes_total{verb=\"create\"} 1",
            "fairlead_agent_write_failures_total{reason=\"Forbidden\"} 1",
            "fairlead_agent_apply_seconds_sum 1.5",
            "fairlead_agent_plan_counter 3",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
