//! What hub and agent say to each other, as plain values. `fairlead-proto` carries them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::health::{ApiServer, ProbeReport};
use crate::ledger::{Delta, Digest};
use crate::traffic::TrafficReport;
use crate::{ClusterUid, MemberId, Millis, ObjectId, PlanNumber, Reason, SnapshotNumber};

/// Version of the protocol that this code speaks. One minor of skew either way works.
pub const PROTOCOL: Protocol = Protocol { major: 1, minor: 3 };
/// The minor version from which on a hub takes [`FromAgent::Traffic`].
pub const TRAFFIC_SINCE: u32 = 1;
/// The minor version from which on an agent takes [`FromHub::Trust`].
pub const TRUST_SINCE: u32 = 2;
/// The minor version from which on an agent takes [`FromHub::Crossing`].
pub const CROSSING_SINCE: u32 = 3;

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Protocol {
    /// Peers of different majors do not talk.
    pub major: u32,
    /// Rises with additions.
    pub minor: u32,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq)]
pub enum FromAgent {
    /// First message of a stream.
    Hello(Hello),
    /// A change of its snapshot.
    Snapshot(SnapshotUpdate),
    /// What became of a plan.
    Applied(ApplyReport),
    /// What it found about its peers' doors.
    Probes(ProbeReport),
    /// Which overlay it applies at present.
    Overlay(OverlayReport),
    /// What its gateways did.
    Traffic(TrafficReport),
    /// It is alive.
    Heartbeat(Beat),
}

/// A sign of life of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The agent's clock.
    pub now: Millis,
    /// Whether it reaches its own API server.
    pub api: ApiServer,
    /// SHA-256 of the CAs that it believes, as the hub wrote them; none from agents that do not say.
    pub trust: Option<Digest>,
}

/// What a hub says.
#[derive(Debug, Clone, PartialEq)]
pub enum FromHub {
    /// Answer to the hello.
    Welcome(Welcome),
    /// A plan, as a change of the one before.
    Bundle(BundleUpdate),
    /// Send the whole snapshot: what arrived did not fit.
    SnapshotWanted,
    /// The snapshot up to this number was taken in.
    SnapshotTaken(SnapshotNumber),
    /// The CAs of the control plane, PEM: whoever believes others should renew.
    Trust(String),
    /// Who holds the member's crossing CA; said while it changes.
    Crossing(CrossingHeld),
    /// It is alive.
    Heartbeat(Millis),
}

/// Which members do not hold a crossing CA yet that they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossingHeld {
    /// SHA-256 of the PEM text that it is about, as the member reported it.
    pub ca: Digest,
    /// Members that are to hold it and are not known to; at most [`MISSING_MAX`].
    pub missing: BTreeSet<MemberId>,
    /// There are more than those.
    pub more: bool,
}

/// Most names in [`CrossingHeld::missing`].
pub const MISSING_MAX: usize = 100;

/// First message of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its name, must be that of its certificate.
    pub member: MemberId,
    /// Its cluster, must be that of its certificate.
    pub uid: ClusterUid,
    /// Protocol it speaks.
    pub protocol: Protocol,
    /// Version of the agent.
    pub agent_version: String,
    /// Rises with every start of the agent.
    pub incarnation: u64,
    /// Number and digest of the last bundle that it holds.
    pub bundle: Option<(PlanNumber, Digest)>,
    /// Its clock.
    pub now: Millis,
}

/// Answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Protocol that the hub speaks.
    pub protocol: Protocol,
    /// Version of the hub.
    pub hub_version: String,
    /// Epoch that the hub took for this session.
    pub epoch: u64,
    /// Number and digest of the agent's last snapshot that the hub holds; the agent goes on from there when it can.
    pub snapshot: Option<(SnapshotNumber, Digest)>,
    /// The hub's clock.
    pub now: Millis,
}

/// A change of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUpdate {
    /// Its number.
    pub number: SnapshotNumber,
    /// The change, based on the one sent before it.
    pub delta: Delta,
}

/// A change of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleUpdate {
    /// Its number.
    pub number: PlanNumber,
    /// The number that the delta is based on; none when it is based on nothing.
    pub base: Option<PlanNumber>,
    /// The change.
    pub delta: Delta,
    /// When the change that caused this plan was seen by the hub.
    pub caused_at: Millis,
    /// W3C trace context of that change.
    pub trace_parent: String,
}

/// What became of a plan in a member: exceptions only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyReport {
    /// The plan.
    pub number: PlanNumber,
    /// Every object was tried once.
    pub complete: bool,
    /// Objects in the bundle.
    pub objects: u32,
    /// Objects written for this number.
    pub written: u32,
    /// Routes were written for this number, and the gateways have accepted all of them.
    pub programmed: bool,
    /// Routes that gateways have not taken yet, or whose shares are still on their way.
    pub moving: u32,
    /// Objects that are not as the plan wants them, at most [`EXCEPTIONS_MAX`].
    pub exceptions: BTreeMap<ObjectId, Exception>,
    /// Exceptions beyond the limit.
    pub exceptions_more: u32,
    /// Another kind of complaint: the bundle as a whole, e.g. `OldNumber`.
    pub refused: Option<Exception>,
}

/// Most exceptions that one report carries.
pub const EXCEPTIONS_MAX: usize = 1_000;

/// An object that is not as the plan wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Why.
    pub reason: Reason,
    /// Details, bounded to 1,024 characters by the agent.
    pub message: String,
}

/// Which overlay an agent applies at present.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OverlayReport {
    /// The plan under it.
    pub number: PlanNumber,
    /// Members taken out of this entry's routes.
    pub out: BTreeMap<MemberId, Reason>,
    /// Rules whose weights differ from the plan.
    pub rules: u32,
}
