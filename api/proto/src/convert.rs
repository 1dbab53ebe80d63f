//! Messages of the stream to and from the model.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::health::{ApiServer, PeerReach, ProbeReport, Reach};
use fairlead_model::session::{
    ApplyReport, Beat, BundleUpdate, CrossingHeld, Exception, FromAgent, FromHub, Hello,
    MISSING_MAX, OverlayReport, Protocol, SnapshotUpdate, Welcome,
};
use fairlead_model::traffic::{FLOWS_MAX, Flow, FlowCounts, TrafficReport};
use fairlead_model::{ClusterUid, MemberId, Millis, ObjectId, PlanNumber, Reason, SnapshotNumber};

use crate::parts::{Assembler, cut, digest};
use crate::pb::agent_message::Body as AgentBody;
use crate::pb::hub_message::Body as HubBody;
use crate::{ProtoError, field, pb};

/// What an agent says, as messages in order: one, or several parts of a snapshot.
pub fn agent_messages(message: &FromAgent) -> Vec<pb::AgentMessage> {
    let one = |body| vec![pb::AgentMessage { body: Some(body) }];
    match message {
        FromAgent::Hello(hello) => one(AgentBody::Hello(hello_to_pb(hello))),
        FromAgent::Snapshot(update) => snapshot_parts(update),
        FromAgent::Applied(report) => one(AgentBody::Applied(applied_to_pb(report))),
        FromAgent::Probes(report) => one(AgentBody::Probes(probes_to_pb(report))),
        FromAgent::Overlay(report) => one(AgentBody::Overlay(overlay_to_pb(report))),
        FromAgent::Traffic(report) => one(AgentBody::Traffic(traffic_to_pb(report))),
        FromAgent::Heartbeat(beat) => one(AgentBody::Heartbeat(pb::Heartbeat {
            now_ms: beat.now.0,
            api_server_lost: beat.api == ApiServer::Lost,
            trust: beat.trust.map(Vec::from).unwrap_or_default(),
        })),
    }
}

/// What a hub says, as messages in order: one, or several parts of a bundle.
pub fn hub_messages(message: &FromHub) -> Vec<pb::HubMessage> {
    let one = |body| vec![pb::HubMessage { body: Some(body) }];
    match message {
        FromHub::Welcome(welcome) => one(HubBody::Welcome(welcome_to_pb(welcome))),
        FromHub::Bundle(update) => bundle_parts(update),
        FromHub::SnapshotWanted => one(HubBody::SnapshotWanted(pb::SnapshotWanted {})),
        FromHub::SnapshotTaken(number) => one(HubBody::SnapshotTaken(pb::SnapshotTaken {
            number: Some(snapshot_number_to_pb(*number)),
        })),
        FromHub::Trust(ca_pem) => one(HubBody::Trust(pb::Trust { ca_pem: ca_pem.clone() })),
        FromHub::Crossing(held) => one(HubBody::Crossing(pb::CrossingHeld {
            ca: held.ca.to_vec(),
            missing: held.missing.iter().map(ToString::to_string).collect(),
            more: held.more,
        })),
        FromHub::Heartbeat(now) => {
            one(HubBody::Heartbeat(pb::Heartbeat { now_ms: now.0, ..pb::Heartbeat::default() }))
        }
    }
}

/// Reads what an agent sends, putting parts together.
#[derive(Debug, Default)]
pub struct AgentAssembler {
    snapshot: Assembler<SnapshotNumber>,
}

impl AgentAssembler {
    /// Takes a message; gives what it says, none while parts are missing.
    ///
    /// # Errors
    /// When the frame has no meaning; the stream must end.
    pub fn push(&mut self, message: pb::AgentMessage) -> Result<Option<FromAgent>, ProtoError> {
        Ok(match message.body.ok_or(ProtoError::NoBody)? {
            AgentBody::Hello(hello) => Some(FromAgent::Hello(hello_from_pb(hello)?)),
            AgentBody::Snapshot(part) => {
                let number = snapshot_number_from_pb(part.number);
                let delta = self.snapshot.push(number, part.delta)?;
                delta.map(|delta| FromAgent::Snapshot(SnapshotUpdate { number, delta }))
            }
            AgentBody::Applied(report) => Some(FromAgent::Applied(applied_from_pb(report))),
            AgentBody::Probes(report) => Some(FromAgent::Probes(probes_from_pb(report))),
            AgentBody::Overlay(report) => Some(FromAgent::Overlay(overlay_from_pb(report))),
            AgentBody::Traffic(report) => Some(FromAgent::Traffic(traffic_from_pb(report))),
            AgentBody::Heartbeat(beat) => Some(FromAgent::Heartbeat(Beat {
                now: Millis(beat.now_ms),
                api: if beat.api_server_lost { ApiServer::Lost } else { ApiServer::Answers },
                trust: beat.trust.as_slice().try_into().ok(),
            })),
        })
    }
}

/// Reads what a hub sends, putting parts together.
#[derive(Debug, Default)]
pub struct HubAssembler {
    bundle: Assembler<PlanNumber>,
}

impl HubAssembler {
    /// Takes a message; gives what it says, none while parts are missing.
    ///
    /// # Errors
    /// When the frame has no meaning; the stream must end.
    pub fn push(&mut self, message: pb::HubMessage) -> Result<Option<FromHub>, ProtoError> {
        Ok(match message.body.ok_or(ProtoError::NoBody)? {
            HubBody::Welcome(welcome) => Some(FromHub::Welcome(welcome_from_pb(&welcome)?)),
            HubBody::Bundle(part) => self.bundle(part)?.map(FromHub::Bundle),
            HubBody::SnapshotWanted(_) => Some(FromHub::SnapshotWanted),
            HubBody::SnapshotTaken(taken) => {
                Some(FromHub::SnapshotTaken(snapshot_number_from_pb(taken.number)))
            }
            HubBody::Trust(trust) => Some(FromHub::Trust(trust.ca_pem)),
            HubBody::Crossing(held) => Some(FromHub::Crossing(crossing_from_pb(&held)?)),
            HubBody::Heartbeat(beat) => Some(FromHub::Heartbeat(Millis(beat.now_ms))),
        })
    }

    fn bundle(&mut self, part: pb::BundlePart) -> Result<Option<BundleUpdate>, ProtoError> {
        let number = plan_number_from_pb(part.number)
            .ok_or_else(|| field("BundlePart", "number", "absent"))?;
        let (base, caused_at) = (plan_number_from_pb(part.base), Millis(part.caused_at_ms));
        let trace_parent = part.trace_parent;
        let delta = self.bundle.push(number, part.delta)?;
        Ok(delta.map(|delta| BundleUpdate { number, base, delta, caused_at, trace_parent }))
    }
}

/// A name that is none still stands for somebody who is missing.
fn crossing_from_pb(held: &pb::CrossingHeld) -> Result<CrossingHeld, ProtoError> {
    let ca = held.ca.as_slice().try_into();
    let ca = ca.map_err(|_| field("CrossingHeld", "ca", "no SHA-256"))?;
    let names = held.missing.iter().map(|name| MemberId::new(name));
    let missing: BTreeSet<MemberId> = names.flatten().take(MISSING_MAX).collect();
    let more = held.more || missing.len() < held.missing.len();
    Ok(CrossingHeld { ca, missing, more })
}

fn snapshot_parts(update: &SnapshotUpdate) -> Vec<pb::AgentMessage> {
    let message = |delta| pb::AgentMessage {
        body: Some(AgentBody::Snapshot(pb::SnapshotPart {
            number: Some(snapshot_number_to_pb(update.number)),
            delta: Some(delta),
        })),
    };
    cut(&update.delta).into_iter().map(message).collect()
}

fn bundle_parts(update: &BundleUpdate) -> Vec<pb::HubMessage> {
    let message = |delta| pb::HubMessage {
        body: Some(HubBody::Bundle(pb::BundlePart {
            number: Some(plan_number_to_pb(update.number)),
            base: update.base.map(plan_number_to_pb),
            delta: Some(delta),
            caused_at_ms: update.caused_at.0,
            trace_parent: update.trace_parent.clone(),
        })),
    };
    cut(&update.delta).into_iter().map(message).collect()
}

fn hello_to_pb(hello: &Hello) -> pb::Hello {
    pb::Hello {
        member: hello.member.to_string(),
        cluster_uid: hello.uid.to_string(),
        protocol: Some(protocol_to_pb(hello.protocol)),
        agent_version: hello.agent_version.clone(),
        incarnation: hello.incarnation,
        bundle_number: hello.bundle.map(|(number, _)| plan_number_to_pb(number)),
        bundle_digest: hello.bundle.map(|(_, digest)| digest.to_vec()).unwrap_or_default(),
        now_ms: hello.now.0,
    }
}

fn hello_from_pb(hello: pb::Hello) -> Result<Hello, ProtoError> {
    let bundle = match plan_number_from_pb(hello.bundle_number) {
        Some(number) => Some((number, digest(&hello.bundle_digest)?)),
        None => None,
    };
    Ok(Hello {
        member: MemberId::new(&hello.member).map_err(|e| field("Hello", "member", e))?,
        uid: ClusterUid::new(&hello.cluster_uid).map_err(|e| field("Hello", "cluster_uid", e))?,
        protocol: protocol_from_pb(hello.protocol),
        agent_version: fairlead_model::id::printable(&hello.agent_version),
        incarnation: hello.incarnation,
        bundle,
        now: Millis(hello.now_ms),
    })
}

fn welcome_to_pb(welcome: &Welcome) -> pb::Welcome {
    pb::Welcome {
        protocol: Some(protocol_to_pb(welcome.protocol)),
        hub_version: welcome.hub_version.clone(),
        epoch: welcome.epoch,
        snapshot_number: welcome.snapshot.map(|(number, _)| snapshot_number_to_pb(number)),
        snapshot_digest: welcome.snapshot.map(|(_, digest)| digest.to_vec()).unwrap_or_default(),
        now_ms: welcome.now.0,
    }
}

fn welcome_from_pb(welcome: &pb::Welcome) -> Result<Welcome, ProtoError> {
    let snapshot = match welcome.snapshot_number {
        Some(number) => {
            Some((snapshot_number_from_pb(Some(number)), digest(&welcome.snapshot_digest)?))
        }
        None => None,
    };
    Ok(Welcome {
        protocol: protocol_from_pb(welcome.protocol),
        hub_version: fairlead_model::id::printable(&welcome.hub_version),
        epoch: welcome.epoch,
        snapshot,
        now: Millis(welcome.now_ms),
    })
}

fn applied_to_pb(report: &ApplyReport) -> pb::ApplyReport {
    let exception = |(object, exception): (&ObjectId, &Exception)| pb::ObjectException {
        object: object.to_string(),
        exception: Some(exception_to_pb(exception)),
    };
    pb::ApplyReport {
        number: Some(plan_number_to_pb(report.number)),
        complete: report.complete,
        objects: report.objects,
        written: report.written,
        exceptions: report.exceptions.iter().map(exception).collect(),
        exceptions_more: report.exceptions_more,
        refused: report.refused.as_ref().map(exception_to_pb),
        programmed: report.programmed,
        moving: report.moving,
    }
}

fn applied_from_pb(report: pb::ApplyReport) -> ApplyReport {
    let sent = report.exceptions.len();
    // An object id that cannot be read costs its own line only; it is counted below.
    let exceptions: BTreeMap<ObjectId, Exception> = report
        .exceptions
        .into_iter()
        .take(fairlead_model::session::EXCEPTIONS_MAX)
        .filter_map(|e| Some((e.object.parse().ok()?, exception_from_pb(e.exception?))))
        .collect();
    let unread = u32::try_from(sent - exceptions.len()).unwrap_or(u32::MAX);
    ApplyReport {
        number: plan_number_from_pb(report.number).unwrap_or_default(),
        complete: report.complete,
        objects: report.objects,
        written: report.written,
        programmed: report.programmed,
        moving: report.moving,
        exceptions,
        exceptions_more: report.exceptions_more.saturating_add(unread),
        refused: report.refused.map(exception_from_pb),
    }
}

fn exception_to_pb(exception: &Exception) -> pb::Exception {
    pb::Exception {
        reason: exception.reason.as_str().to_owned(),
        message: exception.message.clone(),
    }
}

/// Longest message of an exception that is taken over.
const EXCEPTION_MESSAGE_MAX: usize = 1_024;

fn exception_from_pb(exception: pb::Exception) -> Exception {
    let mut message: String = exception.message.chars().take(EXCEPTION_MESSAGE_MAX).collect();
    let reason = reason_from(&exception.reason).unwrap_or_else(|| {
        // A newer agent knows more reasons: keep its word where a person can read it.
        message = format!("{}: {message}", fairlead_model::id::printable(&exception.reason));
        Reason::ApplyRefused
    });
    Exception { reason, message }
}

/// A reason by its name.
pub fn reason_from(name: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
}

fn probes_to_pb(report: &ProbeReport) -> pb::ProbeReport {
    let peer = |(member, found): (&MemberId, &PeerReach)| pb::PeerReach {
        member: member.to_string(),
        reach: match found.reach {
            Reach::Unknown => pb::Reach::Unspecified,
            Reach::Reachable => pb::Reach::Reachable,
            Reach::Refused => pb::Reach::Refused,
            Reach::TimedOut => pb::Reach::TimedOut,
        }
        .into(),
        since_ms: found.since.0,
    };
    pb::ProbeReport { peers: report.iter().map(peer).collect() }
}

fn probes_from_pb(report: pb::ProbeReport) -> ProbeReport {
    let peer = |found: pb::PeerReach| {
        let reach = match found.reach() {
            pb::Reach::Unspecified => Reach::Unknown,
            pb::Reach::Reachable => Reach::Reachable,
            pb::Reach::Refused => Reach::Refused,
            pb::Reach::TimedOut => Reach::TimedOut,
        };
        let member = MemberId::new(&found.member).ok()?;
        Some((member, PeerReach { reach, since: Millis(found.since_ms) }))
    };
    report.peers.into_iter().filter_map(peer).collect()
}

fn overlay_to_pb(report: &OverlayReport) -> pb::OverlayReport {
    let out = |(member, reason): (&MemberId, &Reason)| pb::OverlayOut {
        member: member.to_string(),
        reason: reason.as_str().to_owned(),
    };
    pb::OverlayReport {
        number: Some(plan_number_to_pb(report.number)),
        out: report.out.iter().map(out).collect(),
        rules: report.rules,
    }
}

fn overlay_from_pb(report: pb::OverlayReport) -> OverlayReport {
    let out = |out: pb::OverlayOut| {
        let reason = reason_from(&out.reason).unwrap_or(Reason::DoorTimedOut);
        Some((MemberId::new(&out.member).ok()?, reason))
    };
    OverlayReport {
        number: plan_number_from_pb(report.number).unwrap_or_default(),
        out: report.out.into_iter().filter_map(out).collect(),
        rules: report.rules,
    }
}

fn traffic_to_pb(report: &TrafficReport) -> pb::TrafficReport {
    let flow = |(flow, counts): (&Flow, &FlowCounts)| pb::TrafficFlow {
        route: flow.route.clone(),
        rule: flow.rule.into(),
        backend: flow.backend.clone(),
        target: flow.target.to_string(),
        requests: counts.requests,
        errors: counts.errors,
        latency: counts.latency.to_vec(),
    };
    pb::TrafficReport {
        span_ms: report.span_ms,
        sampled: report.sampled,
        flows: report.flows.iter().take(FLOWS_MAX).map(flow).collect(),
        left_out: report.left_out,
    }
}

fn traffic_from_pb(report: pb::TrafficReport) -> TrafficReport {
    let flow = |found: pb::TrafficFlow| {
        let flow = Flow {
            route: found.route,
            rule: u16::try_from(found.rule).ok()?,
            backend: found.backend,
            target: MemberId::new(&found.target).ok()?,
        };
        let mut counts =
            FlowCounts { requests: found.requests, errors: found.errors, ..FlowCounts::default() };
        for (bucket, count) in counts.latency.iter_mut().zip(found.latency) {
            *bucket = count;
        }
        Some((flow, counts))
    };
    TrafficReport {
        span_ms: report.span_ms,
        sampled: report.sampled,
        flows: report.flows.into_iter().take(FLOWS_MAX).filter_map(flow).collect(),
        left_out: report.left_out,
    }
}

fn protocol_to_pb(protocol: Protocol) -> pb::Protocol {
    pb::Protocol { major: protocol.major, minor: protocol.minor }
}

fn protocol_from_pb(protocol: Option<pb::Protocol>) -> Protocol {
    let protocol = protocol.unwrap_or_default();
    Protocol { major: protocol.major, minor: protocol.minor }
}

fn plan_number_to_pb(number: PlanNumber) -> pb::PlanNumber {
    pb::PlanNumber { epoch: number.epoch, counter: number.counter }
}

fn plan_number_from_pb(number: Option<pb::PlanNumber>) -> Option<PlanNumber> {
    number.map(|n| PlanNumber::new(n.epoch, n.counter))
}

fn snapshot_number_to_pb(number: SnapshotNumber) -> pb::SnapshotNumber {
    pb::SnapshotNumber { incarnation: number.incarnation, sequence: number.sequence }
}

fn snapshot_number_from_pb(number: Option<pb::SnapshotNumber>) -> SnapshotNumber {
    let number = number.unwrap_or_default();
    SnapshotNumber { incarnation: number.incarnation, sequence: number.sequence }
}
