//! What one member must hold: an immutable, numbered value that leaves nothing to choose.
//!
//! The planner decides per route and entry ([`RouteDecision`]); [`MemberPlan`] is one member's part
//! of it. `translate::render` turns a member's plan into objects without deciding anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bundle::CrossingCa;
use crate::dns::{Published, Zones};
use crate::follower::FollowerPlan;
use crate::policy::GlobalRoute;
use crate::recipe::Recipe;
use crate::snapshot::Address;
use crate::{ClusterUid, Json, MemberId, Note, NsName, RouteKey, ServicePort, Way};

/// What one member must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberPlan {
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub uid: ClusterUid,
    /// Global gateways as this member serves them.
    pub gateways: BTreeMap<NsName, GatewayPlan>,
    /// Global routes as this member serves them.
    pub routes: BTreeMap<RouteKey, RoutePlan>,
    /// Remote members that its routes use.
    pub peers: BTreeMap<MemberId, PeerPlan>,
    /// Its own door; none when it has no class for one, or nobody needs it.
    pub door: Option<DoorPlan>,
    /// Objects of other controllers that follow what it holds.
    #[serde(default)]
    pub following: Vec<FollowerPlan>,
    /// Zones that its agent answers for: the same in every member.
    #[serde(default)]
    pub zones: Arc<Zones>,
    /// Names that it alone writes for ExternalDNS, by DNSPolicy.
    #[serde(default)]
    pub published: BTreeMap<NsName, Published>,
    /// Whose crossing CAs the peers and the door's callers are, its own among them.
    #[serde(default)]
    pub cas: BTreeMap<MemberId, CrossingCa>,
}

/// A global gateway as one member serves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GatewayPlan {
    /// A Gateway of the member's own; only the client certificate is ours.
    Lent {
        /// The member's Gateway.
        local: NsName,
    },
    /// A Gateway that we make.
    Created {
        /// Class.
        class: String,
        /// `spec` of the global gateway, raw; class and client certificate are replaced.
        spec: Arc<Json>,
    },
}

/// A global route as one entry serves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoutePlan {
    /// The route as its user wrote it.
    pub route: Arc<GlobalRoute>,
    /// Gateways of the member that it attaches to.
    pub parents: Vec<LocalParent>,
    /// One for each rule, in the order of the spec.
    pub rules: Vec<RulePlan>,
}

/// A Gateway of the member that a route attaches to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LocalParent {
    /// The member's Gateway.
    pub gateway: NsName,
    /// Listener name.
    pub section: Option<String>,
    /// Listener port.
    pub port: Option<u16>,
}

/// A rule as one entry serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePlan {
    /// backendRefs in order; position = slot of the recipe.
    pub slots: Vec<Slot>,
    /// What the weights come from, and the weights.
    pub recipe: Recipe,
    /// Who gets the copies of requests; a mirror of the rule that is absent is left out.
    #[serde(default)]
    pub mirrors: Vec<SlotTarget>,
}

impl RulePlan {
    /// The lane of a slot: how many slots before it lead to the same member.
    pub fn lane(&self, slot: usize) -> u16 {
        let member = |slot: &Slot| match &slot.target {
            SlotTarget::Remote { member, .. } => Some(member.clone()),
            SlotTarget::AsWritten | SlotTarget::Local { .. } => None,
        };
        let Some(own) = self.slots.get(slot).and_then(member) else { return 0 };
        let before = self.slots.iter().take(slot).filter_map(member);
        u16::try_from(before.filter(|other| *other == own).count()).unwrap_or(u16::MAX)
    }
}

/// Lanes of a door by SNI: listeners that are all alike. Envoy knows endpoints of one route by address and
/// port, so that services of one rule behind one door must each be reached by another port.
pub const SNI_LANES: u16 = 4;

/// One backendRef of a rendered rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Index of the user's backendRef that it stands for; its filters come along.
    pub backend: u16,
    /// Where it leads.
    pub target: SlotTarget,
}

/// Where a backendRef leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotTarget {
    /// As the user wrote it.
    AsWritten,
    /// The entry's own Service.
    Local {
        /// Service.
        service: NsName,
        /// Its port.
        port: ServicePort,
    },
    /// A remote member's door.
    Remote {
        /// The member.
        member: MemberId,
        /// Service behind the door.
        service: NsName,
        /// Its port.
        port: ServicePort,
        /// `appProtocol` of that port, empty when it has none; one of [`PeerPlan::app_protocols`].
        app_protocol: String,
    },
}

/// A remote member as an entry sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerPlan {
    /// Its cluster.
    pub uid: ClusterUid,
    /// Addresses of its door.
    pub addresses: BTreeSet<Address>,
    /// Port of its door.
    pub port: u16,
    /// Its crossing CA, PEM.
    pub ca_pem: String,
    /// Kinds and namespaces of the routes that use it by headers, for the ReferenceGrant.
    pub used_from: BTreeSet<UsedFrom>,
    /// `appProtocol`s of the services that are used there: a port of `member-<id>` for each, so that
    /// the entry's gateway speaks HTTP/2 where the service needs it (gRPC).
    pub app_protocols: BTreeSet<String>,
    /// What is used there without headers.
    #[serde(default)]
    pub passages: BTreeSet<Passage>,
}

impl PeerPlan {
    /// Whether anything leads there; else its door is only watched.
    pub fn is_used(&self) -> bool {
        !(self.used_from.is_empty() && self.passages.is_empty())
    }
}

/// A service behind a remote member's door that has a Service of its own in the entry: what goes there has
/// no headers, and only the connection can tell where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Passage {
    /// Service.
    pub service: NsName,
    /// Its port.
    pub port: ServicePort,
    /// Kind and namespace of the routes that use it.
    pub used_from: UsedFrom,
    /// `appProtocol` of that port, empty when it has none.
    pub app_protocol: String,
    /// Port of the door.
    pub door_port: u16,
    /// Which of the door's lanes that is.
    #[serde(default)]
    pub lane: u16,
    /// What tells it from others there.
    pub way: Way,
}

/// A kind of route in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UsedFrom {
    /// Kind of route.
    pub kind: crate::RouteKind,
    /// Namespace of the route.
    pub namespace: String,
}

/// A member's own door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorPlan {
    /// Class of the Gateway.
    pub class: String,
    /// Port of the https listener.
    pub port: u16,
    /// Services that other members' plans lead to.
    pub services: BTreeSet<DoorService>,
    /// Members that may call, with their crossing CAs (PEM).
    pub callers: BTreeMap<MemberId, String>,
    /// How its gateway is told that what callers say of the client is true.
    #[serde(default)]
    pub trust: Trust,
    /// What is told apart by SNI; none = the member's gateway or agent cannot do that.
    #[serde(default)]
    pub sni: Option<SniDoor>,
    /// Services with a port of their own, which anybody can reach. The member consented to that.
    #[serde(default)]
    pub ports: BTreeSet<DoorPort>,
}

/// The listeners of a door that tell services apart by SNI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SniDoor {
    /// Port of the first; the other lanes follow.
    pub port: u16,
    /// Services that other members' plans lead to.
    pub services: BTreeSet<DoorService>,
}

/// A service with a port of its own at a door.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DoorPort {
    /// Port of the door.
    pub door_port: u16,
    /// Service.
    pub service: NsName,
    /// Its port.
    pub port: ServicePort,
}

/// How a door's gateway is told that callers, who are gateways themselves, speak the truth about their
/// client: its address and scheme. The Gateway API has no field for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Trust {
    /// Not at all: what the door's gateway sees of the hop is what the service is told.
    #[default]
    Unsaid,
    /// By a ClientTrafficPolicy of Envoy Gateway.
    ClientTrafficPolicy,
}

/// A service behind a door.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DoorService {
    /// Namespace of the routes that lead to it: part of the capability.
    pub from_namespace: String,
    /// Service.
    pub service: NsName,
    /// Its port.
    pub port: ServicePort,
}

/// Every entry's decision for one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteDecision {
    /// The route.
    pub route: Arc<GlobalRoute>,
    /// By entry; an entry that is absent does not serve the route, the notes say why.
    pub entries: BTreeMap<MemberId, EntryDecision>,
    /// What was left out, by member or for the route as a whole.
    pub notes: Vec<Note>,
}

/// One entry's decision for one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryDecision {
    /// Gateways of the entry that the route attaches to.
    pub parents: Vec<LocalParent>,
    /// One for each rule.
    pub rules: Vec<RulePlan>,
    /// The route that the rules are of, where the entry tries a change that the others do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<GlobalRoute>>,
}
