//! Spans of the agent's work: the end of a change's trace, and the trace of a failover of its own.
//!
//! Owns names and attributes of these spans; what happened is told by the apply loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use fairlead_model::health::ProbeReport;
use fairlead_model::session::ApplyReport;
use fairlead_model::{ClusterUid, MemberId, Millis, ObjectId, PlanNumber, Reason};
use fairlead_telemetry::span::{Attribute, Done, Kind, TraceContext, Tracer, at_millis, attribute};

/// Names the agent in its spans.
pub fn resource(member: &MemberId, uid: &ClusterUid) -> Vec<Attribute> {
    vec![
        attribute("service.name", format!("{member}.fairlead-agent")),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
        attribute("k8s.cluster.name", member.as_str()),
        attribute("k8s.cluster.uid", uid.to_string()),
    ]
}

/// The trace of a change, for logs; empty when the hub gave none.
pub fn trace_id(trace_parent: &str) -> String {
    trace_parent.parse().map(TraceContext::trace_id).unwrap_or_default()
}

/// Records that this cluster asked to be a member, and what came of it.
pub fn record_join(
    tracer: &Tracer,
    context: TraceContext,
    hub: &str,
    start: SystemTime,
    failed: Option<String>,
) {
    let join = Done::new(context, None, "join", start, SystemTime::now())
        .of_kind(Kind::Client)
        .with("server.address", hub)
        .ended(failed);
    tracer.record([join]);
}

/// Records that a plan was applied.
pub fn record_applied(tracer: &Tracer, trace: TraceContext, at: Millis, report: &ApplyReport) {
    let applied =
        Done::new(trace.child(), Some(trace.span), "apply", at_millis(at.0), SystemTime::now())
            .of_kind(Kind::Consumer)
            .with("fairlead.plan", report.number.to_string())
            .with("fairlead.objects", report.objects as usize)
            .with("fairlead.written", report.written as usize)
            .with("fairlead.exceptions", report.exceptions.len());
    tracer.record([applied]);
}

/// Routes that a plan wrote and that gateways have not taken yet.
#[derive(Debug, Clone)]
pub struct Awaiting {
    /// The plan.
    pub number: PlanNumber,
    /// Its trace, if it has one.
    pub trace: Option<TraceContext>,
    /// When the plan arrived.
    pub arrived: Millis,
    /// When the last route was written.
    pub since: Millis,
    /// Routes whose acceptance is not seen.
    pub routes: BTreeSet<ObjectId>,
    /// Routes that were written.
    pub count: usize,
}

/// Records that gateways have taken all routes of a plan.
pub fn record_programmed(tracer: &Tracer, awaiting: &Awaiting, now: Millis) {
    let Some(trace) = awaiting.trace else { return };
    let (start, end) = (at_millis(awaiting.since.0), at_millis(now.0));
    let programmed = Done::new(trace.child(), Some(trace.span), "programmed", start, end)
        .with("fairlead.plan", awaiting.number.to_string())
        .with("fairlead.routes", awaiting.count);
    tracer.record([programmed]);
}

/// Members that are out of this entry's routes, and why.
pub type Out = BTreeMap<MemberId, Reason>;

/// Records that this entry took members out of its routes or back in, with the evidence for it. Gives
/// the trace, for the log; none when nothing changed.
pub fn record_overlay(
    tracer: &Tracer,
    before: &Out,
    now: &Out,
    probes: &ProbeReport,
    rules: u32,
    plan: PlanNumber,
) -> Option<TraceContext> {
    let gone: Vec<&MemberId> = now.keys().filter(|member| !before.contains_key(*member)).collect();
    let back: Vec<&MemberId> = before.keys().filter(|member| !now.contains_key(*member)).collect();
    if gone.is_empty() && back.is_empty() {
        return None;
    }
    let name = if gone.is_empty() { "failback" } else { "failover" };
    let names = |members: &[&MemberId]| {
        members.iter().map(|member| member.as_str()).collect::<Vec<_>>().join(",")
    };
    let evidence = gone.iter().chain(&back).map(|member| {
        let probe = probes.get(*member).copied().unwrap_or_default();
        let why = now.get(*member).map_or("Reachable", |reason| reason.as_str());
        format!("{member}: {why}, probes say {:?}", probe.reach)
    });
    let since = gone.iter().chain(&back).filter_map(|member| probes.get(*member));
    let since = since.map(|probe| probe.since).filter(|since| since.0 > 0).min();
    let end = SystemTime::now();
    let start = since.map_or(end, |since| at_millis(since.0)).min(end);
    let context = tracer.root();
    let span = Done::new(context, None, name, start, end)
        .with("fairlead.evidence", evidence.collect::<Vec<_>>().join("; "))
        .with("fairlead.out", names(&gone))
        .with("fairlead.back", names(&back))
        .with("fairlead.rules", rules as usize)
        .with("fairlead.plan", plan.to_string());
    tracer.record([span]);
    Some(context)
}
