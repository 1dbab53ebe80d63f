//! What users declared in the hub, as plain values.
//!
//! `translate` makes these from Kubernetes objects; whatever has no meaning is already dropped and
//! noted there. Route rules and gateway specs are kept as raw JSON next to the parts that the
//! planner reads, so that fields newer than this code survive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dns::DnsPolicy;
use crate::follower::Follower;
use crate::recipe::{Split, WhenUnavailable};
use crate::snapshot::Address;
use crate::{ClusterUid, Json, MemberId, Millis, Note, NsName, RouteKey, ServicePort};

/// Everything that users declared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Registered members.
    pub members: BTreeMap<MemberId, MemberSpec>,
    /// Global gateways that were accepted.
    pub gateways: BTreeMap<NsName, GlobalGateway>,
    /// Global routes with at least one accepted parent.
    pub routes: BTreeMap<RouteKey, Arc<GlobalRoute>>,
    /// Objects of other controllers that follow routes and gateways, in order of kind and name.
    pub followers: Vec<Arc<Follower>>,
    /// DNSPolicies that were accepted.
    pub dns: BTreeMap<NsName, Arc<DnsPolicy>>,
}

/// A registered member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberSpec {
    /// The cluster that owns the name.
    pub uid: Option<ClusterUid>,
    /// What tells this registration from an earlier one of the same cluster; only compared. Empty = unknown.
    pub membership: String,
    /// Region; overrides what the nodes say.
    pub region: Option<String>,
    /// Zone; overrides what the nodes say.
    pub zone: Option<String>,
    /// Labels of the MemberCluster, for selectors.
    pub labels: BTreeMap<String, String>,
    /// Class for Gateways that we create there; none = it can be an entry but not a target.
    pub gateway_class: Option<String>,
    /// Whether it takes traffic.
    pub traffic: TrafficState,
    /// Seconds over which its traffic is led away when it is drained.
    pub drain_s: u32,
    /// When a person last asked to give its traffic back. Only compared with itself: another value
    /// than before is a new request, whatever the clocks.
    pub failback_asked: Option<Millis>,
    /// Port of its door.
    pub door_port: u16,
    /// Addresses of its door as others see them (NAT); empty = those of its Gateway.
    pub door_addresses: BTreeSet<Address>,
}

/// Whether a member takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TrafficState {
    /// Takes traffic.
    #[default]
    Active,
    /// Its traffic is taken away on request.
    Draining,
    /// Takes traffic only when no active member can.
    Standby,
}

/// A Gateway of class fairlead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalGateway {
    /// Namespace and name.
    pub name: NsName,
    /// `metadata.creationTimestamp`; settles conflicts.
    pub created_at: Millis,
    /// Its `spec`, raw.
    pub spec: Arc<Json>,
    /// Listeners that were accepted, in the order of the spec.
    pub listeners: Vec<Listener>,
}

/// A listener of a global gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Name.
    pub name: String,
    /// Port.
    pub port: u16,
    /// Protocol, as written.
    pub protocol: String,
    /// Host name, none = all.
    pub hostname: Option<String>,
}

/// A route attached to a global gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalRoute {
    /// Kind, namespace and name.
    pub key: RouteKey,
    /// `metadata.creationTimestamp`; settles conflicts.
    pub created_at: Millis,
    /// Labels, annotations are not copied.
    pub labels: BTreeMap<String, String>,
    /// Its `spec`, raw.
    pub spec: Arc<Json>,
    /// `apiVersion`, raw: a member that serves another version says so.
    pub api_version: String,
    /// Accepted parents, in the order of the spec.
    pub parents: Vec<ParentRef>,
    /// What the planner reads of each rule, in the order of the spec.
    pub rules: Vec<Rule>,
}

/// An accepted parent of a global route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ParentRef {
    /// The global gateway.
    pub gateway: NsName,
    /// Listener name, as the user wrote it.
    pub section: Option<String>,
    /// Listener port, as the user wrote it.
    pub port: Option<u16>,
}

/// What the planner reads of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Backends, in the order of the spec.
    pub backends: Vec<Backend>,
    /// How traffic is spread over members.
    pub spread: Spread,
    /// ServiceImports that get copies of requests, each once, in the order of the spec.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
}

/// A ServiceImport that gets copies of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Service.
    pub service: NsName,
    /// Its port.
    pub port: ServicePort,
}

/// A backend of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The user's weight (spec default 1).
    pub weight: u32,
    /// What it refers to.
    pub target: BackendTarget,
}

/// What a backend refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendTarget {
    /// A ServiceImport: served by every member that exports the service.
    Global {
        /// Service.
        service: NsName,
        /// Its port.
        port: ServicePort,
    },
    /// A Service or another kind: each entry's own, carried as it is.
    Own,
    /// Cannot be resolved: keeps its share and fails, as the spec says.
    Invalid(Note),
}

/// How a rule's traffic is spread over members: the traffic policy that applies to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The TrafficPolicy it comes from; none = the defaults.
    pub from: Option<NsName>,
    /// Tiers, tried in order.
    pub tiers: Vec<Tier>,
    /// Share of healthy capacity below which a tier spills, in percent (1 to 100).
    pub healthy_percent: u8,
    /// Ready endpoints below which a member takes nothing while others can.
    pub endpoints_min: u32,
    /// What happens to a backend that nobody can serve.
    pub when_unavailable: WhenUnavailable,
    /// How traffic is given back.
    pub failback: Failback,
    /// What becomes of a member whose reports are old.
    pub stale: StaleMember,
}

impl Default for Spread {
    /// Local first: same cluster, same zone, same region, any.
    fn default() -> Self {
        let scopes = [Scope::SameCluster, Scope::SameZone, Scope::SameRegion, Scope::Any];
        Self {
            from: None,
            tiers: scopes.map(|scope| Tier::of(TierMembers::Scope(scope))).into(),
            healthy_percent: 70,
            endpoints_min: 1,
            when_unavailable: WhenUnavailable::Redistribute,
            failback: Failback::default(),
            stale: StaleMember::Keep,
        }
    }
}

/// A set of members that is tried together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Which members; one that an earlier tier holds already is not taken again.
    pub members: TierMembers,
    /// How the tier's traffic is split.
    pub split: Split,
    /// Given weights, for [`Split::Weights`]; a member without one has 0.
    pub weights: BTreeMap<MemberId, u32>,
}

impl Tier {
    /// A tier of these members, split by expected endpoints.
    pub fn of(members: TierMembers) -> Self {
        Self { members, split: Split::Endpoints, weights: BTreeMap::new() }
    }
}

/// Which members a tier has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TierMembers {
    /// These.
    Names(BTreeSet<MemberId>),
    /// Those whose labels fit.
    Selector(LabelSelector),
    /// Those near the entry.
    Scope(Scope),
}

/// A Kubernetes label selector.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelSelector {
    /// Labels that must be equal.
    pub labels: BTreeMap<String, String>,
    /// Further requirements.
    pub expressions: Vec<LabelRequirement>,
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRequirement {
    /// Label.
    pub key: String,
    /// What must hold.
    pub operator: LabelOperator,
    /// Values for In and NotIn.
    pub values: BTreeSet<String>,
}

/// What must hold of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelOperator {
    /// Is one of the values.
    In,
    /// Is none of the values, or absent.
    NotIn,
    /// Is there.
    Exists,
    /// Is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether labels fit.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = self.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        equal && self.expressions.iter().all(|r| r.matches(labels))
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|v| self.values.contains(v)),
            LabelOperator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// Nearness to the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// The entry itself.
    SameCluster,
    /// Members of the entry's region and zone.
    SameZone,
    /// Members of the entry's region.
    SameRegion,
    /// Every member.
    Any,
}

/// How traffic is given back to a member that recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failback {
    /// By itself or on request.
    pub mode: FailbackMode,
    /// Healthy for that long before it starts, in seconds.
    pub after_s: u32,
    /// From nothing to all within that time, in seconds.
    pub ramp_s: u32,
}

impl Default for Failback {
    fn default() -> Self {
        Self { mode: FailbackMode::Auto, after_s: 30, ramp_s: 60 }
    }
}

/// Who gives traffic back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailbackMode {
    /// The hub, by itself.
    Auto,
    /// A person, with `fairlead failback`.
    Manual,
}

/// What becomes of a member whose reports are old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StaleMember {
    /// Its last report goes on counting.
    #[default]
    Keep,
    /// It is drained after that many seconds.
    DrainAfter(u32),
}
