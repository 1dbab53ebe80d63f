//! What the hub counts.
//!
//! Owns every metric's name, unit and labels; labels come from closed sets or are members' names, and
//! global routes' in [`look`], which has a bound of its own.

pub mod look;

use std::collections::BTreeSet;

use fairlead_model::MemberId;
use fairlead_model::health::MemberState;
use fairlead_model::session::{ApplyReport, BundleUpdate};
use fairlead_model::{Millis, Note, Reason};
use fairlead_telemetry::queue::Counts;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::look::Figures;

/// What the hub counts.
pub struct Metrics {
    registry: Registry,
    deciding: Gauge,
    passed: Gauge,
    sessions: Gauge,
    opened: Counter,
    ended: Family<ReasonLabels, Counter>,
    applies: Family<ResultLabels, Counter>,
    moves: Family<StateLabels, Counter>,
    plans: Counter,
    plan_seconds: Histogram,
    propagation_seconds: Family<StageLabels, Histogram>,
    pushes: Family<PushLabels, Counter>,
    push_bytes: Counter,
    held: Family<ReasonLabels, Gauge>,
    rotations: Family<RotationLabels, Gauge>,
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

/// Labels of `propagation`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: Stage,
}

/// How far a change is on its way to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Its bundle was given to the member's stream.
    Sent,
    /// The member has written it.
    Applied,
    /// The member's gateways have accepted its routes.
    Programmed,
}

impl EncodeLabelValue for Stage {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Sent => "sent",
            Self::Applied => "applied",
            Self::Programmed => "programmed",
        };
        name.encode(encoder)
    }
}

/// Labels of `apply_reports`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: Applied,
}

/// What a member says became of its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Applied {
    /// All of it is in place.
    Whole,
    /// Some objects are not as planned.
    Partly,
    /// The member takes nothing of it.
    Refused,
}

impl Applied {
    const ALL: [Self; 3] = [Self::Whole, Self::Partly, Self::Refused];

    fn of(report: &ApplyReport) -> Self {
        match (&report.refused, report.exceptions.is_empty()) {
            (Some(_), _) => Self::Refused,
            (None, true) => Self::Whole,
            (None, false) => Self::Partly,
        }
    }
}

impl EncodeLabelValue for Applied {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Whole => "whole",
            Self::Partly => "partly",
            Self::Refused => "refused",
        };
        name.encode(encoder)
    }
}

/// Labels with a state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
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

/// Labels of `rotation_waits`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RotationLabels {
    secret: &'static str,
    member: String,
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

/// A connection that is passed on.
pub struct Passed(Gauge);

impl Drop for Passed {
    fn drop(&mut self) {
        self.0.dec();
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
            deciding: Gauge::default(),
            passed: Gauge::default(),
            sessions: Gauge::default(),
            opened: Counter::default(),
            ended: Family::default(),
            applies: Family::default(),
            moves: Family::default(),
            plans: Counter::default(),
            // 100 µs to 1.6 s.
            plan_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            // 10 ms to 80 s.
            propagation_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.01, 2.0, 14))
            }),
            pushes: Family::default(),
            push_bytes: Counter::default(),
            held: Family::default(),
            rotations: Family::default(),
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
        m.register_members(&mut registry);
        registry.register("deciding", "1 while this hub decides", m.deciding.clone());
        let help = "Agents' connections that this hub passes on to the one that decides";
        registry.register("passed_connections", help, m.passed.clone());
        registry.register("plans", "Plans made", m.plans.clone());
        let (name, help) = ("plan_duration", "Time to read, plan and render");
        registry.register_with_unit(name, help, Unit::Seconds, m.plan_seconds.clone());
        let help = "From a change in the hub to a member's stream (sent), to its last write there \
                    (applied), and to the gateways' acceptance of its routes (programmed)";
        let propagation = m.propagation_seconds.clone();
        registry.register_with_unit("propagation", help, Unit::Seconds, propagation);
        registry.register("pushes", "Bundles sent, by form", m.pushes.clone());
        let (name, help) = ("push", "Size of bundles sent, before compression");
        registry.register_with_unit(name, help, Unit::Bytes, m.push_bytes.clone());
        registry.register(
            "held",
            "1 while the hub does not plan, or plans only what is edited, for this reason",
            m.held.clone(),
        );
        let help = "1 while a change of the keys in one of the hub's Secrets waits for this member";
        registry.register("rotation_waits", help, m.rotations.clone());
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

    /// Of members and their streams.
    fn register_members(&self, registry: &mut Registry) {
        registry.register("sessions", "Live streams of members", self.sessions.clone());
        registry.register("sessions_opened", "Streams of members opened", self.opened.clone());
        let help = "Streams of members that ended, by reason; AgentLost where no word was said";
        registry.register("sessions_ended", help, self.ended.clone());
        for result in Applied::ALL {
            self.applies.get_or_create(&ResultLabels { result }).inc_by(0);
        }
        let help = "Reports of what became of a plan, by result";
        registry.register("apply_reports", help, self.applies.clone());
        for state in [MemberState::Up, MemberState::AgentLost, MemberState::Down] {
            self.moves.get_or_create(&StateLabels { state: state_label(state) }).inc_by(0);
        }
        let help = "Changes of what the hub holds members for, by the new state";
        registry.register("member_changes", help, self.moves.clone());
        let help = "1 for the state that a member is in";
        registry.register("member_state", help, self.members.clone());
        let help = "When the newest snapshot of a member arrived, since 1970";
        let name = "snapshot_received_timestamp";
        registry.register_with_unit(name, help, Unit::Seconds, self.snapshots.clone());
    }
}

impl Metrics {
    /// All of it, as OpenMetrics text.
    ///
    /// # Errors
    /// Never, writing to a string.
    pub fn encode(&self, figures: &Figures) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        figures.encode(&mut text)?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    /// This hub decides from now on.
    pub fn set_deciding(&self) {
        self.deciding.set(1);
    }

    /// A connection is passed on, as long as the value lives.
    pub fn passed(&self) -> Passed {
        self.passed.inc();
        Passed(self.passed.clone())
    }

    /// A member opened a stream.
    pub fn count_opened(&self) {
        self.opened.inc();
    }

    /// A stream of a member ended.
    pub fn count_ended(&self, reason: Reason) {
        self.ended.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    /// A member told what became of its plan.
    pub fn count_applied(&self, report: &ApplyReport) {
        self.applies.get_or_create(&ResultLabels { result: Applied::of(report) }).inc();
    }

    /// A member is held for something else now.
    pub fn count_move(&self, state: MemberState) {
        self.moves.get_or_create(&StateLabels { state: state_label(state) }).inc();
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

    /// A plan came so far, so long after the change that it came from.
    pub fn count_propagation(&self, stage: Stage, took_ms: u64) {
        let seconds = std::time::Duration::from_millis(took_ms).as_secs_f64();
        self.propagation_seconds.get_or_create(&StageLabels { stage }).observe(seconds);
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

    /// For whom a change of the keys in a Secret waits, after `before`.
    pub fn set_rotation(
        &self,
        secret: &'static str,
        before: &BTreeSet<String>,
        now: &BTreeSet<String>,
    ) {
        let labels = |member: &String| RotationLabels { secret, member: member.clone() };
        for member in before.difference(now) {
            self.rotations.remove(&labels(member));
        }
        for member in now {
            self.rotations.get_or_create(&labels(member)).set(1);
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
#[path = "metrics_test.rs"]
mod tests;
