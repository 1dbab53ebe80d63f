//! What one member reports about itself.
//!
//! A snapshot is a map of small items, so that a change costs what it touches: on the wire and in
//! the store it travels as keyed entries (see [`crate::ledger`]). It holds counts per service and
//! zone, never endpoints, because traffic between members goes through gateways.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{ClusterUid, Millis, NsName, ServicePort};

/// Everything that one member reports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Facts of the member as a whole.
    pub cluster: ClusterFacts,
    /// Gateway classes by name.
    pub classes: BTreeMap<String, GatewayClassState>,
    /// Gateways that matter to the hub: lent ones, ones that we made, the door.
    pub gateways: BTreeMap<NsName, GatewayState>,
    /// Exported services, also those whose export the member's configuration refuses.
    pub services: BTreeMap<NsName, ServiceState>,
    /// Namespaces of the member.
    pub namespaces: BTreeSet<String>,
    /// The member's east-west door.
    pub door: DoorState,
}

/// Facts of the member as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterFacts {
    /// UID of namespace kube-system; none before the first report.
    pub uid: Option<ClusterUid>,
    /// Region that most nodes name.
    pub region: Option<String>,
    /// Zone that most nodes name.
    pub zone: Option<String>,
    /// Version of the agent.
    pub agent_version: String,
    /// Version of the Kubernetes API server.
    pub kubernetes_version: String,
    /// `bundle-version` of the installed Gateway API CRDs; none when they are absent.
    pub gateway_api_version: Option<String>,
    /// Channel of the installed Gateway API CRDs.
    pub gateway_api_channel: Option<String>,
    /// Kinds that the member serves and we may write: `GROUP/VERSION/KIND`.
    pub kinds: BTreeSet<String>,
    /// Namespaces where the agent's own configuration lets us write; none = all.
    pub namespaces_allowed: Option<BTreeSet<String>>,
    /// Namespaces where it does not.
    pub namespaces_denied: BTreeSet<String>,
    /// Where the agent's DNS server is reached from outside; empty = nowhere.
    pub dns_addresses: BTreeSet<Address>,
}

/// A GatewayClass of the member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayClassState {
    /// `spec.controllerName`.
    pub controller: String,
    /// Accepted by its controller; none = it has not said.
    pub accepted: Option<bool>,
    /// `status.supportedFeatures`, none when the controller publishes none.
    pub features: Option<BTreeSet<String>>,
}

/// Feature of a gateway: a TLSRoute leads from a listener that ends TLS to a Service. The Gateway API's.
pub const FEATURE_TLS_ROUTE_TERMINATE: &str = "TLSRouteModeTerminate";
/// Feature of a gateway: BackendTLSPolicies and the Gateway's client certificate count for the backends of
/// TCPRoutes, TLSRoutes and mirrored copies too. Ours: the Gateway API has no name for it.
pub const FEATURE_STREAM_BACKEND_TLS: &str = "fairlead.dev/StreamBackendTLS";

impl GatewayClassState {
    /// Whether it is known to have a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.as_ref().is_some_and(|features| features.contains(feature))
    }
}

/// What a Gateway is to us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GatewayRole {
    /// A Gateway of the member, lent to the global gateway of that name by its owner.
    Lent(NsName),
    /// A Gateway that we made for the global gateway of that name.
    Created(NsName),
    /// The member's east-west door.
    Door,
}

/// A Gateway of the member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayState {
    /// Its class.
    pub class: String,
    /// What it is to us.
    pub role: GatewayRole,
    /// Programmed for the current generation; none = its controller has not said.
    pub programmed: Option<bool>,
    /// Message of the condition that speaks against it, bounded.
    #[serde(default)]
    pub message: String,
    /// IP addresses and host names; only trusted while programmed.
    #[serde(default)]
    pub addresses: BTreeSet<Address>,
    /// Listeners by name.
    #[serde(default)]
    pub listeners: BTreeMap<String, ListenerState>,
}

/// A listener of a member's Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerState {
    /// Port.
    pub port: u16,
    /// Protocol, as written.
    pub protocol: String,
    /// Host name, none = all.
    pub hostname: Option<String>,
    /// Programmed for the current generation; none = not said.
    pub programmed: Option<bool>,
    /// Why not; empty when it is, or nobody says.
    pub message: String,
}

/// An address of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Address {
    /// An IPv4 or IPv6 address.
    Ip(std::net::IpAddr),
    /// A DNS name.
    Name(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Address {
    /// An IP when the text is one, else a name.
    pub fn of(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Ip)
    }
}

/// An exported service of the member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceState {
    /// When its owner exported it; the oldest export wins conflicts, as the MCS-API says.
    pub exported_at: Millis,
    /// Whether the member's own configuration lets the export count.
    pub consent: Consent,
    /// Ports by number.
    pub ports: BTreeMap<ServicePort, PortState>,
    /// Endpoint counts by zone; the empty name stands for endpoints without a zone.
    pub zones: BTreeMap<String, EndpointCounts>,
    /// Namespaces whose routes may refer to it (ReferenceGrants), by kind of route.
    pub grants: BTreeSet<GrantFrom>,
}

/// From where a reference is granted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GrantFrom {
    /// Kind of route.
    pub kind: crate::RouteKind,
    /// Namespace of the route.
    pub namespace: String,
}

/// What the member's own configuration says to an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Consent {
    /// The export counts.
    #[default]
    Given,
    /// The configuration refuses it.
    Refused,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortState {
    /// Name, empty when it has none.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// `appProtocol`, empty when it has none.
    pub app_protocol: String,
}

/// Endpoint counts: ready ones, and all that are not terminating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointCounts {
    /// Ready endpoints. `ready: nil` means ready, as the EndpointSlice API says.
    pub ready: u32,
    /// Endpoints that are not terminating; at least `ready`.
    pub total: u32,
}

impl ServiceState {
    /// The counts of all zones together.
    pub fn counts(&self) -> EndpointCounts {
        self.zones.values().fold(EndpointCounts::default(), |sum, zone| EndpointCounts {
            ready: sum.ready.saturating_add(zone.ready),
            total: sum.total.saturating_add(zone.total),
        })
    }
}

/// Most endorsements that a member shows: who was away for more changes of its CA has to be told by hand.
pub const ENDORSEMENTS_MAX: usize = 8;

/// The member's east-west door, as its own agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DoorState {
    /// Certificate of the member's crossing CA, PEM; two while it changes, none before it was made.
    pub ca_pem: Option<String>,
    /// Certificates that earlier CAs made for later ones, PEM each: whoever pinned an earlier one
    /// believes those after it. Oldest first, at most [`ENDORSEMENTS_MAX`].
    pub endorsements: Vec<String>,
    /// What the agent's own knock found.
    pub knock: Knock,
    /// Details of the knock, bounded.
    pub message: String,
    /// Its listener for what is told apart by SNI; none = the agent is of a version without one.
    pub sni: Option<SniState>,
    /// What the member's own configuration lets cross without a proof of who calls.
    pub weak: BTreeSet<WeakDoor>,
}

/// The listener of a member's door that tells services apart by SNI.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SniState {
    /// What the agent's knock at it found.
    pub knock: Knock,
    /// Details of the knock, bounded.
    pub message: String,
}

/// A class of doors that does not prove who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WeakDoor {
    /// Callers show no certificate.
    ServerOnly,
    /// No TLS.
    Open,
}

impl WeakDoor {
    /// Every class, in order.
    pub const ALL: [Self; 2] = [Self::ServerOnly, Self::Open];

    /// As the agent's configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerOnly => "ServerOnly",
            Self::Open => "Open",
        }
    }
}

/// What the agent's knock at its own door found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Knock {
    /// Not tried, or no clear result yet.
    #[default]
    Unknown,
    /// Answered with our certificate; refused by TLS without one and with a foreign one.
    Shut,
    /// Somebody without a right certificate was let in.
    StrangerLetIn,
}
