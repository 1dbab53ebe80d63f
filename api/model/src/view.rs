//! What the hub's read-only API answers and the CLI shows: the same types on both sides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::health::{MemberState, PeerReach};
use crate::history::HistorySize;
use crate::recipe::Split;
use crate::session::{Exception, OverlayReport};
use crate::snapshot::EndpointCounts;
use crate::{MemberId, Millis, Note, NsName, Reason, RouteKey, ServicePort};

/// `GET /api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the hub.
    pub hub_version: String,
    /// When the process started.
    pub started_at: Millis,
    /// Why the hub does not plan at present; empty = it does.
    pub held: Vec<Note>,
    /// Why it plans only what people edit at present, if so.
    #[serde(default)]
    pub frozen: Option<Note>,
    /// The hub's clock.
    pub now: Millis,
    /// Members, by name.
    pub members: Vec<MemberView>,
    /// Number of accepted global gateways.
    pub gateways: usize,
    /// Number of accepted global routes.
    pub routes: usize,
    /// What was dropped or refused in the hub's own objects.
    pub notes: Vec<Note>,
    /// How much of what was decided before is kept.
    #[serde(default)]
    pub history: Option<HistorySize>,
}

/// A member, `GET /api/v1/members`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// Name.
    pub member: MemberId,
    /// Region in force.
    pub region: Option<String>,
    /// Zone in force.
    pub zone: Option<String>,
    /// State.
    pub state: MemberState,
    /// Since when.
    pub since: Millis,
    /// Traffic state as asked, e.g. `Active`.
    pub traffic: String,
    /// Version of the agent.
    pub agent_version: String,
    /// When its last message arrived.
    pub heard_at: Option<Millis>,
    /// The plan that the hub wants there.
    pub plan_wanted: Option<String>,
    /// The plan that the agent reported as applied.
    pub plan_applied: Option<String>,
    /// Routes that its gateways have not taken yet, or whose shares are still on their way.
    #[serde(default)]
    pub moving: u32,
    /// Objects in the plan.
    pub objects: u32,
    /// What is not as planned there.
    pub exceptions: BTreeMap<String, Exception>,
    /// The agent's overlay.
    pub overlay: OverlayReport,
    /// What it says of its peers' doors.
    pub peers: BTreeMap<MemberId, PeerReach>,
    /// What stands in its way, in words.
    pub notes: Vec<Note>,
}

/// A global gateway in a member, `GET /api/v1/gateways`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayView {
    /// Global gateway.
    pub gateway: NsName,
    /// Member.
    pub member: MemberId,
    /// Its Gateway there.
    pub local: Option<NsName>,
    /// `Lent`, `Created` or empty.
    pub role: String,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Programmed; none = not said.
    pub programmed: Option<bool>,
    /// Listeners that are not, and why.
    #[serde(default)]
    pub failing: BTreeMap<String, String>,
    /// Why not.
    pub reason: Option<Reason>,
    /// Details.
    pub message: String,
}

/// An exported service, `GET /api/v1/services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Service.
    pub service: NsName,
    /// Ports of any member.
    pub ports: Vec<ServicePort>,
    /// Counts by member.
    pub members: BTreeMap<MemberId, EndpointCounts>,
    /// Members whose export does not count, and why.
    pub refused: BTreeMap<MemberId, Reason>,
}

/// A global route, `GET /api/v1/routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// Route.
    pub route: RouteKey,
    /// Host names.
    pub hostnames: Vec<String>,
    /// Global gateways.
    pub gateways: Vec<NsName>,
    /// What each entry does with it.
    pub entries: BTreeMap<MemberId, EntryView>,
    /// The revision that it is pinned to.
    #[serde(default)]
    pub pinned: Option<u64>,
    /// How far a change of it is that is not everywhere.
    #[serde(default)]
    pub rollout: Option<Note>,
    /// What was left out.
    pub notes: Vec<Note>,
}

/// What one entry does with a global route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryView {
    /// Applied there and accepted by its gateway.
    pub accepted: Option<bool>,
    /// Why not.
    pub reason: Option<Reason>,
    /// Details.
    pub message: String,
}

/// Why a route's traffic goes where it goes, `GET /api/v1/explain/KIND/NAMESPACE/NAME[?from=MEMBER]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Route.
    pub route: RouteKey,
    /// By entry.
    pub entries: BTreeMap<MemberId, EntryExplanation>,
    /// Members that are no entry, and other things left out.
    pub notes: Vec<Note>,
    /// What was asked for besides what is written: that the route be as it was.
    #[serde(default)]
    pub asked: Vec<Note>,
}

/// One entry's rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryExplanation {
    /// Gateways it attaches to.
    pub gateways: Vec<NsName>,
    /// Rules in order.
    pub rules: Vec<RuleExplanation>,
    /// Members that the entry's agent has taken out by itself at present.
    pub overlay: BTreeMap<MemberId, Reason>,
}

/// One rule's backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleExplanation {
    /// Index in the route.
    pub rule: u16,
    /// Backends in order.
    pub backends: Vec<BackendExplanation>,
}

/// Where one backend's share goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendExplanation {
    /// Service and port, or how the user wrote it.
    pub backend: String,
    /// The user's weight.
    pub weight: u32,
    /// Its share of the rule in ten-thousandths, as planned.
    pub share: u32,
    /// Members, in order of tiers; those that may not serve come last, with tier none.
    pub members: Vec<MemberShare>,
}

/// One member's part in a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberShare {
    /// Member.
    pub member: MemberId,
    /// Index of its tier; none = not eligible.
    pub tier: Option<u16>,
    /// What the tier is, e.g. `SameRegion`.
    pub tier_name: String,
    /// How its tier is split.
    pub split: Option<Split>,
    /// Endpoint counts in use.
    pub ready: u32,
    /// Endpoints that are to be expected.
    pub expected: u32,
    /// Share of the rule in ten-thousandths, as planned.
    pub share: u32,
    /// Share with the entry's overlay in force; none = the same.
    pub share_now: Option<u32>,
    /// Why it is so.
    pub reason: Reason,
    /// The same in a sentence with names and numbers.
    pub message: String,
}

/// Requests of a rule from one entry to one target at present, `GET /api/v1/traffic`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowView {
    /// `kind/namespace/name` of the global route.
    pub route: String,
    /// Index of the rule.
    pub rule: u16,
    /// `namespace/name:port`; empty when it is not known.
    pub backend: String,
    /// Where requests came in.
    pub entry: MemberId,
    /// Who answers.
    pub target: MemberId,
    /// Requests per second.
    pub per_second: f64,
    /// Share of them that failed, 0 to 1.
    pub error_share: f64,
    /// Half of them took at most so long; none when it is beyond the last bucket.
    pub p50_ms: Option<u64>,
    /// 99 % of them took at most so long; none when it is beyond the last bucket.
    pub p99_ms: Option<u64>,
    /// Share of the rule's requests from this entry that the target would get were all healthy, 0 to 1;
    /// none when the plan does not lead there.
    #[serde(default)]
    pub asked: Option<f64>,
    /// Share that it gets at present.
    #[serde(default)]
    pub effective: Option<f64>,
}

impl FlowView {
    /// What tells one from another, in the order of tables.
    pub fn key(&self) -> (&str, u16, &str, &MemberId, &MemberId) {
        (&self.route, self.rule, &self.backend, &self.entry, &self.target)
    }
}
