//! What the hub counts.
//!
//! Owns every metric's name, unit and labels; labels come from closed sets or are members' names.

use fairlead_model::MemberId;
use fairlead_model::health::MemberState;
use fairlead_model::session::BundleUpdate;
use fairlead_model::{Millis, Note, Reason};
use fairlead_telemetry::queue::Counts;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What the hub counts.
pub struct Metrics {
    registry: Registry,
    sessions: Gauge,
    plans: Counter,
    plan_seconds: Histogram,
    propagation_seconds: Histogram,
    pushes: Family<PushLabels, Counter>,
    push_bytes: Counter,
    held: Family<ReasonLabels, Gauge>,
    members: Family<MemberLabels, Gauge>,
    alarms: Gauge,
    snapshots: Family<MemberLabel, Gauge>,
    status_writes: Family<OutcomeLabels, Counter>,
    watch_synced: Family<KindLabels, Gauge<i64>>,
    store_writes: Family<OutcomeLabels, Counter>,
}

/// Labels of `pushes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PushLabels {
    form: Form,
}

/// How a bundle went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Full,
    Delta,
    NumberOnly,
}

impl EncodeLabelValue for Form {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Full => "full",
            Self::Delta => "delta",
            Self::NumberOnly => "number_only",
        };
        name.encode(encoder)
    }
}

/// Labels with a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Labels with a member and its state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    member: String,
    state: &'static str,
}

/// Labels with a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabel {
    member: String,
}

/// Labels with a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Labels with an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Not done; it is tried again.
    Failed,
}

impl Outcome {
    const fn label(self) -> OutcomeLabels {
        match self {
            Self::Done => OutcomeLabels { outcome: "done" },
            Self::Failed => OutcomeLabels { outcome: "failed" },
        }
    }
}

/// Every state as a label value.
pub const fn state_label(state: MemberState) -> &'static str {
    match state {
        MemberState::Joined => "joined",
        MemberState::Up => "up",
        MemberState::Suspect => "suspect",
        MemberState::AgentLost => "agent_lost",
        MemberState::Down => "down",
        MemberState::Recovering => "recovering",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Metrics {
    /// All metrics, those of the queue to the OTLP backend among them when there is one.
    pub fn new(backend: Option<&Counts>) -> Self {
        let mut registry = Registry::with_prefix("fairlead_hub");
        let metrics = Self {
            sessions: Gauge::default(),
            plans: Counter::default(),
            // 100 µs to 1.6 s.
            plan_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            // 10 ms to 80 s.
            propagation_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            pushes: Family::default(),
            push_bytes: Counter::default(),
            held: Family::default(),
            members: Family::default(),
            alarms: Gauge::default(),
            snapshots: Family::default(),
            status_writes: Family::default(),
            watch_synced: Family::default(),
            store_writes: Family::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        if let Some(counts) = backend {
            counts.register(&mut registry);
        }
        registry.register("sessions", "Live streams of members", m.sessions.clone());
        registry.register("plans", "Plans made", m.plans.clone());
        let (name, help) = ("plan_duration", "Time to read, plan and render");
        registry.register_with_unit(name, help, Unit::Seconds, m.plan_seconds.clone());
        let (name, help) = ("propagation", "From a change to a member that has applied it");
        registry.register_with_unit(name, help, Unit::Seconds, m.propagation_seconds.clone());
        registry.register("pushes", "Bundles sent, by form", m.pushes.clone());
        let (name, help) = ("push", "Size of bundles sent, before compression");
        registry.register_with_unit(name, help, Unit::Bytes, m.push_bytes.clone());
        registry.register(
            "held",
            "1 while the hub does not plan, or plans only what is edited, for this reason",
            m.held.clone(),
        );
        registry.register("member_state", "1 for the state that a member is in", m.members.clone());
        let help = "When the newest snapshot of a member arrived, since 1970";
        let name = "snapshot_received_timestamp";
        registry.register_with_unit(name, help, Unit::Seconds, m.snapshots.clone());
        registry.register("alarms", "Findings that a person must act on", m.alarms.clone());
        let help = "Statuses written in the hub's API, by outcome";
        registry.register("status_writes", help, m.status_writes.clone());
        let help = "1 while a kind of the hub's own objects is read";
        registry.register("watch_synced", help, m.watch_synced.clone());
        registry.register(
            "store_writes",
            "Writes of the store, by outcome",
            m.store_writes.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// All of it, as OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A bundle was sent.
    pub fn count_push(&self, update: &BundleUpdate, bytes: usize) {
        let form = match (update.delta.based, update.delta.is_empty()) {
            (false, _) => Form::Full,
            (true, true) => Form::NumberOnly,
            (true, false) => Form::Delta,
        };
        self.pushes.get_or_create(&PushLabels { form }).inc();
        self.push_bytes.inc_by(bytes as u64);
    }

    /// A plan was made.
    pub fn count_plan(&self, seconds: f64, alarms: usize) {
        self.plans.inc();
        self.plan_seconds.observe(seconds);
        self.alarms.set(i64::try_from(alarms).unwrap_or(i64::MAX));
    }

    /// A member has applied a plan so long after the change that it came from.
    pub fn count_propagation(&self, took_ms: u64) {
        self.propagation_seconds.observe(std::time::Duration::from_millis(took_ms).as_secs_f64());
    }

    /// A status was written, or not.
    pub fn count_status(&self, outcome: Outcome) {
        self.status_writes.get_or_create(&outcome.label()).inc();
    }

    /// The store was written, or not.
    pub fn count_store(&self, outcome: Outcome) {
        self.store_writes.get_or_create(&outcome.label()).inc();
    }

    /// Why the hub does not plan.
    pub fn set_held<'a>(&self, notes: impl IntoIterator<Item = &'a Note>) {
        let held_by: Vec<Reason> = notes.into_iter().map(|note| note.reason).collect();
        let reasons = [
            Reason::WaitingForMembers,
            Reason::StoreUnavailable,
            Reason::PolicyNotSynced,
            Reason::FleetVanished,
        ];
        for reason in reasons {
            let held = held_by.contains(&reason);
            let labels = ReasonLabels { reason: reason.as_str() };
            self.held.get_or_create(&labels).set(i64::from(held));
        }
    }

    /// The members as they are.
    pub fn set_members<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a MemberId, MemberState)>,
        sessions: usize,
    ) {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        // A removed member must not go on being counted.
        self.members.clear();
        for (member, state) in members {
            let labels = MemberLabels { member: member.to_string(), state: state_label(state) };
            self.members.get_or_create(&labels).set(1);
        }
    }

    /// When snapshots arrived.
    pub fn set_snapshots<'a>(&self, at: impl IntoIterator<Item = (&'a MemberId, Millis)>) {
        self.snapshots.clear();
        for (member, at) in at {
            let labels = MemberLabel { member: member.to_string() };
            let seconds = i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX);
            self.snapshots.get_or_create(&labels).set(seconds);
        }
    }

    /// Whether a kind is read.
    pub fn set_watch(&self, kind: &'static str, synced: bool) {
        self.watch_synced.get_or_create(&KindLabels { kind }).set(i64::from(synced));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_removed_member_is_not_counted_any_more() {
        let metrics = Metrics::default();
        let east = MemberId::new("east").unwrap();
        metrics.set_members([(&east, MemberState::Up)], 1);
        let line = "fairlead_hub_member_state{member=\"east\",state=\"up\"} 1";
        assert!(metrics.encode().unwrap().contains(line));
        metrics.set_members([], 0);
        assert!(!metrics.encode().unwrap().contains("east"));
    }

    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
        let metrics = Metrics::new(Some(&Counts::default()));
        // A family without a sample does not show.
        let east = MemberId::new("east").unwrap();
        metrics.set_members([(&east, MemberState::Up)], 1);
        metrics.set_snapshots([(&east, Millis(1_000))]);
        metrics.set_held(&[]);
        metrics.count_status(Outcome::Done);
        metrics.count_store(Outcome::Done);
        metrics.pushes.get_or_create(&PushLabels { form: Form::Full }).inc();
        let open = metrics.encode().unwrap();
        for text in [
            include_str!("../../deploy/chart/hub/alerts.yaml"),
            include_str!("../../deploy/chart/hub/dashboard.json"),
        ] {
            assert!(text.contains("fairlead_hub_"));
            let unknown = fairlead_telemetry::metrics::unknown_names(text, "fairlead_hub_", &open);
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}
