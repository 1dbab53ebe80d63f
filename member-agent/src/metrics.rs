//! The agent's metrics: one place for names, units in the names, labels from closed sets.

use fairlead_model::health::{ProbeOutcome, Reach};
use fairlead_model::{MemberId, Millis, PlanNumber, Reason};
use fairlead_telemetry::queue::Counts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::relay::enrich::Enriched;
use crate::spans::Out;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Change {
    change: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RelayedLabel {
    kind: &'static str,
}

/// Counters of the relay.
#[derive(Debug, Clone, Default)]
pub struct RelayMetrics {
    spans: Family<RelayedLabel, Counter>,
    unreadable: Counter,
}

impl RelayMetrics {
    fn register(&self, registry: &mut Registry) {
        self.took(&Enriched::default());
        let help = "Spans received, by kind: attributed to a global route or door, other, probe";
        registry.register("relay_spans", help, self.spans.clone());
        let help = "Requests with spans over HTTP that could not be read, or were too large";
        registry.register("relay_requests_unreadable", help, self.unreadable.clone());
    }

    /// A request could not be read.
    pub fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// A request was taken in.
    pub fn took(&self, enriched: &Enriched) {
        let add = |kind, spans| {
            self.spans.get_or_create(&RelayedLabel { kind }).inc_by(spans);
        };
        add("attributed", enriched.attributed);
        add("other", enriched.spans - enriched.attributed);
        add("probe", enriched.probes);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    peer: String,
    outcome: &'static str,
}

/// Counters of probes. There are as many peers as are probed, [`crate::probe::PEERS_MAX`] at most.
#[derive(Debug, Clone)]
pub struct ProbeMetrics {
    probes: Family<ProbeLabels, Counter>,
    reachable: Family<PeerLabel, Gauge>,
    seconds: Histogram,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        // 1 ms to 2 s: a probe may take 1 s at most.
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 12));
        Self { probes: Family::default(), reachable: Family::default(), seconds }
    }
}

const fn outcome_label(outcome: ProbeOutcome) -> &'static str {
    match outcome {
        ProbeOutcome::Answered => "answered",
        ProbeOutcome::Refused => "refused",
        ProbeOutcome::TimedOut => "timed_out",
    }
}

impl ProbeMetrics {
    fn register(&self, registry: &mut Registry) {
        let help = "Probes of peers' doors, by what came of them";
        registry.register("probes", help, self.probes.clone());
        let help = "1 while a peer's door is held to be reachable, 0 while it is not or not known";
        registry.register("peer_reachable", help, self.reachable.clone());
        let (name, help) = ("probe_duration", "How long doors took to answer probes");
        registry.register_with_unit(name, help, Unit::Seconds, self.seconds.clone());
    }

    /// A probe of a peer's door came to an end.
    pub fn probed(&self, peer: &MemberId, outcome: ProbeOutcome, took_ms: u64, reach: Reach) {
        let label = ProbeLabels { peer: peer.to_string(), outcome: outcome_label(outcome) };
        self.probes.get_or_create(&label).inc();
        let reachable = PeerLabel { peer: peer.to_string() };
        self.reachable.get_or_create(&reachable).set(i64::from(reach == Reach::Reachable));
        if outcome == ProbeOutcome::Answered {
            self.seconds.observe(std::time::Duration::from_millis(took_ms).as_secs_f64());
        }
    }

    /// A peer is probed no more: it must not be shown as it was.
    pub fn forget(&self, peer: &MemberId) {
        let peer = peer.to_string();
        self.reachable.remove(&PeerLabel { peer: peer.clone() });
        for outcome in [ProbeOutcome::Answered, ProbeOutcome::Refused, ProbeOutcome::TimedOut] {
            let outcome = outcome_label(outcome);
            self.probes.remove(&ProbeLabels { peer: peer.clone(), outcome });
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
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
    exceptions: Family<Why, Gauge>,
    applied_at: Gauge,
    apply_seconds: Histogram,
    programmed_seconds: Histogram,
    overlay_changes: Family<Change, Counter>,
    plan_epoch: Gauge,
    plan_counter: Gauge,
    connected: Gauge,
    sessions: Counter,
    unreachable: Gauge,
    overlay_rules: Gauge,
    relay: RelayMetrics,
    probe: ProbeMetrics,
    dns_queries: Family<DnsOutcome, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Metrics {
    /// All metrics, those of the queue to the backend among them when there is one.
    pub fn new(backend: Option<&Counts>) -> Self {
        let mut registry = Registry::with_prefix("fairlead_agent");
        let writes = Family::default();
        registry.register("writes", "Objects written to the API server", writes.clone());
        let failures = Family::default();
        registry.register("write_failures", "Writes that failed", failures.clone());
        let exceptions = Family::<Why, Gauge>::default();
        registry.register(
            "exceptions",
            "Objects that are not as planned, by reason",
            exceptions.clone(),
        );
        let apply_seconds = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register_with_unit(
            "apply",
            "From the arrival of a plan to its last write",
            Unit::Seconds,
            apply_seconds.clone(),
        );
        let programmed_seconds = Histogram::new(exponential_buckets(0.01, 2.0, 14));
        registry.register_with_unit(
            "programmed",
            "From the arrival of a plan to its routes' acceptance by the gateways",
            Unit::Seconds,
            programmed_seconds.clone(),
        );
        let overlay_changes = Family::<Change, Counter>::default();
        for change in ["failover", "failback"] {
            overlay_changes.get_or_create(&Change { change }).inc_by(0);
        }
        registry.register(
            "overlay_changes",
            "Peers taken out of this entry's routes, or back in",
            overlay_changes.clone(),
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
        let applied_at = Gauge::default();
        registry.register_with_unit(
            "plan_applied_timestamp",
            "When a new plan was last applied, since 1970",
            Unit::Seconds,
            applied_at.clone(),
        );
        let relay = RelayMetrics::default();
        relay.register(&mut registry);
        let probe = ProbeMetrics::default();
        probe.register(&mut registry);
        if let Some(counts) = backend {
            counts.register(&mut registry);
        }
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
            applied_at,
            apply_seconds,
            programmed_seconds,
            overlay_changes,
            plan_epoch,
            plan_counter,
            connected,
            sessions,
            unreachable,
            overlay_rules,
            relay,
            probe,
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
    pub fn applied(&self, plan: PlanNumber, took_ms: u64, now: Millis) {
        self.applied_at.set(number(now.0 / 1_000));
        self.plan_epoch.set(number(plan.epoch));
        self.plan_counter.set(number(plan.counter));
        self.apply_seconds.observe(std::time::Duration::from_millis(took_ms).as_secs_f64());
    }

    /// The gateways have taken a plan's routes.
    pub fn programmed(&self, took_ms: u64) {
        self.programmed_seconds.observe(std::time::Duration::from_millis(took_ms).as_secs_f64());
    }

    /// Peers were taken out of this entry's routes, or back in.
    pub fn overlay_changed(&self, before: &Out, now: &Out) {
        let count = |change, a: &Out, b: &Out| {
            let new = a.keys().filter(|member| !b.contains_key(*member)).count();
            self.overlay_changes.get_or_create(&Change { change }).inc_by(new as u64);
        };
        count("failover", now, before);
        count("failback", before, now);
    }

    /// Objects that are not as planned.
    pub fn exceptions(&self, reasons: impl IntoIterator<Item = Reason>) {
        // A reason that is gone must not go on being counted.
        self.exceptions.clear();
        for reason in reasons {
            self.exceptions.get_or_create(&Why { reason: reason.as_str() }).inc();
        }
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

    /// Those of the relay.
    pub fn relay(&self) -> RelayMetrics {
        self.relay.clone()
    }

    /// Those of probes.
    pub fn probe(&self) -> ProbeMetrics {
        self.probe.clone()
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
    use fairlead_telemetry::lint;

    #[test]
    fn metrics_are_named_with_prefix_and_units() {
        let metrics = Metrics::default();
        metrics.written("create");
        metrics.failed(Reason::Forbidden);
        metrics.applied(PlanNumber::new(2, 3), 1_500, Millis(7_000));
        metrics.exceptions([Reason::Forbidden, Reason::Forbidden]);
        let text = metrics.text();
        for line in [
            "fairlead_agent_writes_total{verb=\"create\"} 1",
            "fairlead_agent_write_failures_total{reason=\"Forbidden\"} 1",
            "fairlead_agent_apply_seconds_sum 1.5",
            "fairlead_agent_plan_counter 3",
            "fairlead_agent_plan_applied_timestamp_seconds 7",
            "fairlead_agent_exceptions{reason=\"Forbidden\"} 2",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_peer_that_is_probed_no_more_is_not_shown() {
        let metrics = Metrics::default();
        let probe = metrics.probe();
        probe.probed(&peer(), ProbeOutcome::Answered, 3, Reach::Reachable);
        probe.probed(&peer(), ProbeOutcome::TimedOut, 250, Reach::Reachable);
        let text = metrics.text();
        for line in [
            "fairlead_agent_probes_total{peer=\"west\",outcome=\"answered\"} 1",
            "fairlead_agent_probes_total{peer=\"west\",outcome=\"timed_out\"} 1",
            "fairlead_agent_peer_reachable{peer=\"west\"} 1",
            "fairlead_agent_probe_duration_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        probe.forget(&peer());
        assert!(!metrics.text().contains("west"));
    }

    fn peer() -> MemberId {
        MemberId::new("west").expect("it is a name")
    }

    /// Every metric with a sample: a family without one does not show.
    fn filled() -> String {
        let metrics = Metrics::new(Some(&Counts::default()));
        metrics.written("create");
        metrics.failed(Reason::Forbidden);
        metrics.applied(PlanNumber::new(2, 3), 1_500, Millis(7_000));
        metrics.exceptions([Reason::Forbidden]);
        metrics.dns_query("udp", "answered");
        metrics.probe().probed(&peer(), ProbeOutcome::Answered, 3, Reach::Reachable);
        metrics.text()
    }

    #[test]
    fn promtool_alerts_and_dashboard_would_find_nothing_to_say() {
        let askers = [
            include_str!("../../deploy/chart/agent/alerts.yaml"),
            include_str!("../../deploy/chart/hub/dashboard.json"),
        ];
        let found = lint::registry_problems(&filled(), "fairlead_agent_", &askers);
        assert_eq!(found, [""; 0]);
    }
}
