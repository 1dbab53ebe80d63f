//! `MemberCluster`: a cluster that joined, as people see and steer it.
//!
//! Owns the kind's shape and validation. Its name is the member's id everywhere. Never holds
//! numbers of plans, endpoints or anything else that changes with traffic: those would wake every
//! watcher of the kind for nothing.

#![expect(
    unreachable_pub,
    reason = "the KubeSchema derive copies our public structs into a private function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What people say about a member, and what join found out.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "MemberCluster",
    plural = "memberclusters",
    singular = "membercluster",
    shortname = "mc",
    category = "fairlead",
    doc = "A cluster that takes part in this hub's global routes. Its name is the id of the member: an RFC 1123 label of at most 50 characters.",
    status = "MemberClusterStatus",
    derive = "PartialEq",
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.location.region"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.location.zone"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.gatewayClassName"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.trafficState"),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(
        name = "Applied",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"PlanApplied\")].status"
    ),
    printcolumn(
        name = "Reachable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Reachable\")].status",
        priority = "1"
    ),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    // The name becomes part of Service names ("member-<name>") and certificate names.
    validation = Rule::new("size(self.metadata.name) <= 50 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name must be an RFC 1123 label of at most 50 characters: lower-case letters, digits and '-', first and last not '-'"),
)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.clusterUID) || (has(self.clusterUID) && self.clusterUID == oldSelf.clusterUID)")
        .message("clusterUID cannot change once it is set; to give the name to another cluster, delete this MemberCluster and join again")
        .field_path(".clusterUID")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberClusterSpec {
    /// UID of the member's namespace kube-system. Set by join, and fixed from then on: a second cluster
    /// that claims the name is refused.
    #[serde(rename = "clusterUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Za-z._-]+$"))]
    pub cluster_uid: Option<String>,

    /// Where the member is; tiers by scope compare it. Join proposes what the labels of the member's
    /// nodes say.
    #[serde(default, skip_serializing_if = "Location::is_empty")]
    pub location: Location,

    /// Class of the Gateways that Fairlead creates in the member. Without one the member can be an entry
    /// (through Gateways that it lends) but not a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN))]
    pub gateway_class_name: Option<String>,

    /// Whether the member takes traffic of global routes. Active: as policies say. Draining: its traffic is
    /// led away and it gets no new share. Standby: it serves only what no active member can.
    #[serde(default)]
    pub traffic_state: TrafficState,

    /// Seconds over which a drain leads the traffic away, in five steps, so that the others can grow
    /// into it. 0: at once.
    #[serde(default = "drain_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub drain_seconds: i32,

    /// The member's door for other members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub east_west: Option<EastWest>,
}

/// Whether a member takes traffic.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficState {
    /// As policies say.
    #[default]
    Active,
    /// No traffic, on request.
    Draining,
    /// Only what nobody active can serve.
    Standby,
}

/// Where a member is. Regions and zones are compared as they are written, a zone only together with its
/// region.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// Region, such as eu-central-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::LABEL_VALUE))]
    pub region: Option<String>,
    /// Zone within the region, such as eu-central-1a.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::LABEL_VALUE))]
    pub zone: Option<String>,
}

impl Location {
    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_none() && self.zone.is_none()
    }
}

/// Seconds over which a drain leads traffic away unless a member says otherwise.
pub const DRAIN_SECONDS: i32 = 10;

fn drain_seconds() -> i32 {
    DRAIN_SECONDS
}

/// Port of the doors unless a member says otherwise.
pub const EAST_WEST_PORT: i32 = 15443;

fn east_west_port() -> i32 {
    EAST_WEST_PORT
}

/// How other members reach a member's door.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EastWest {
    /// Port of the door for requests (HTTPS), as other members dial it.
    #[serde(default = "east_west_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,

    /// IP addresses or DNS names at which other members reach the door, where they are not those that the
    /// member's Gateway reports (NAT, a load balancer in front).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    // API servers refuse loopback, link-local and multicast addresses in EndpointSlices; say so here.
    #[x_kube(
        validation = Rule::new("self.all(a, isIP(a) ? ip(a).isGlobalUnicast() : a.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?[.])+[a-z]([-a-z0-9]*[a-z0-9])?$'))")
            .message("each address must be a unicast IP address (not loopback, not link-local) or a lower-case DNS name with a dot in it")
    )]
    pub addresses: Vec<String>,
}

impl Default for EastWest {
    fn default() -> Self {
        Self { port: EAST_WEST_PORT, addresses: Vec::new() }
    }
}

/// What the hub saw of the member. Written by the hub only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberClusterStatus {
    /// Joined, Connected, InventorySynced, PlanApplied, Reachable, DoorShut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The metadata.generation that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,

    /// Version of the member's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,

    /// Version of the Gateway API definitions in the member, with the channel where it is not standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub gateway_api_version: Option<String>,

    /// How much the member reported, rounded in time: not written for every change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<MemberCounts>,
}

/// How much a member reported.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberCounts {
    /// Gateways that global routes can use as an entry.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub gateways: i32,
    /// Exported Services.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub services: i32,
    /// Ready endpoints of the exported Services.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub endpoints: i32,
    /// Routes that Fairlead holds in the member.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub routes: i32,
}
