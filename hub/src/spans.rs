//! Spans of the hub's work: one trace from a change to the bundles that went out for it.
//!
//! Owns names and attributes of these spans, and nothing else: what happened is told by those who do
//! it. The trace goes on in the agents, by the context that travels with each bundle.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use fairlead_model::health::{MemberHealth, MemberState};
use fairlead_model::{MemberId, Millis, PlanNumber};
use fairlead_telemetry::span::{Done, Kind, TraceContext, Tracer, at_millis, attribute};

use crate::metrics::state_label;

/// Names the hub in its spans.
pub fn resource() -> Vec<fairlead_telemetry::span::Attribute> {
    vec![
        attribute("service.name", "fairlead-hub"),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
    ]
}

/// A round of planning that changed what members should hold.
pub struct Round<'a> {
    /// Its trace.
    pub context: TraceContext,
    /// When the change was seen.
    pub caused_at: Millis,
    /// When planning began.
    pub planned_at: SystemTime,
    /// How long reading, planning and rendering took.
    pub took: Duration,
    /// Routes that were decided.
    pub routes: usize,
    /// Members whose bundle is another one now.
    pub changed: &'a [MemberId],
    /// Members that the hub holds for something else than in the round before, and what for before.
    pub moved: &'a [(MemberId, MemberState, MemberHealth)],
}

/// Records a round: the change, the plan in it, and what the hub came to think of members.
pub fn record_round(tracer: &Tracer, round: &Round<'_>) {
    let Round { context, caused_at, planned_at, took, .. } = *round;
    let end = planned_at + took;
    let names = round.changed.iter().map(MemberId::as_str).collect::<Vec<_>>().join(",");
    let plan = Done::new(context.child(), Some(context.span), "plan", planned_at, end)
        .with("fairlead.routes", round.routes)
        .with("fairlead.members_changed", round.changed.len());
    let change = Done::new(context, None, "change", at_millis(caused_at.0), end)
        .with("fairlead.members", names);
    let moved = round.moved.iter().map(|(member, before, health)| {
        let since = at_millis(health.since.0).min(end);
        Done::new(context.child(), Some(context.span), "member state", since, end)
            .with("fairlead.member", member.as_str())
            .with("fairlead.state.before", state_label(*before))
            .with("fairlead.state", state_label(health.state))
            .with("fairlead.evidence", evidence(health))
    });
    tracer.record([change, plan].into_iter().chain(moved));
}

/// What witnesses say, in words: `east: TimedOut, south: Reachable`.
fn evidence(health: &MemberHealth) -> String {
    let said = health.witnesses.iter().map(|(peer, it)| format!("{peer}: {:?}", it.reach));
    let own = health.own.iter().map(|it| format!("requests: {:?}", it.reach));
    said.chain(own).collect::<Vec<_>>().join(", ")
}

/// Records that a bundle was given to a member's stream.
pub fn record_push(
    tracer: &Tracer,
    member: &MemberId,
    number: PlanNumber,
    trace_parent: &str,
    start: SystemTime,
    bytes: usize,
) {
    let Ok(context) = trace_parent.parse::<TraceContext>() else { return };
    let push = Done::new(context.child(), Some(context.span), "push", start, SystemTime::now())
        .of_kind(Kind::Producer)
        .with("fairlead.member", member.as_str())
        .with("fairlead.plan", number.to_string())
        .with("fairlead.bytes", bytes);
    tracer.record([push]);
}

/// Records that a cluster was enrolled, in the trace that its agent began. Only for joins that were
/// accepted: strangers may call, and must not write into a backend.
pub fn record_enrolled(
    tracer: &Tracer,
    context: TraceContext,
    member: &str,
    cluster: &str,
    start: SystemTime,
) {
    let end = SystemTime::now();
    let enroll = Done::new(context.child(), Some(context.span), "enroll", start, end)
        .of_kind(Kind::Server)
        .with("fairlead.member", member)
        .with("k8s.cluster.uid", cluster);
    tracer.record([enroll]);
}

/// Members whose state is not what it was.
pub fn moved(
    before: &BTreeMap<MemberId, MemberState>,
    now: &BTreeMap<MemberId, MemberHealth>,
) -> Vec<(MemberId, MemberState, MemberHealth)> {
    let moved = now.iter().filter_map(|(member, health)| {
        let was = before.get(member).copied()?;
        (was != health.state).then(|| (member.clone(), was, health.clone()))
    });
    moved.collect()
}
