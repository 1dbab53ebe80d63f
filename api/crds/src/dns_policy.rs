//! `DNSPolicy`: how the names of a global gateway are answered in the public DNS.
//!
//! Owns the kind's shape, defaults and validation. Never says what happens when two policies want the
//! same name: that is the hub's part (the older keeps it).

#![expect(
    clippy::duplicated_attributes,
    reason = "each printed column of the kind has a type and a path"
)]
#![expect(
    unreachable_pub,
    reason = "the KubeSchema derive copies our public structs into a private function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::schema;

/// How the names of a global gateway are answered.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "DNSPolicy",
    plural = "dnspolicies",
    singular = "dnspolicy",
    shortname = "dnsp",
    category = "fairlead",
    namespaced,
    doc = "How the names of a global gateway, or of one of its listeners, are answered in the DNS. Of two policies that name the same thing the older acts.",
    label("gateway.networking.k8s.io/policy", "Direct"),
    status = "DnsPolicyStatus",
    derive = "PartialEq",
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.zone"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.strategy"),
    printcolumn(name = "Names", type_ = "integer", json_path = ".status.names"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Served",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Served\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.weights) || self.strategy == 'Weighted'")
        .message("weights are for strategy Weighted only")
        .field_path(".weights"),
    validation = Rule::new("!has(self.tiers) || self.strategy == 'Failover'")
        .message("tiers are for strategy Failover only")
        .field_path(".tiers"),
    validation = Rule::new("self.strategy == 'Geo' ? has(self.networks) : !has(self.networks)")
        .message("strategy Geo needs networks, and no other strategy takes them")
        .field_path(".networks"),
    validation = Rule::new("self.whenNoneHealthy == 'Fallback' ? has(self.fallback) : !has(self.fallback)")
        .message("whenNoneHealthy Fallback needs fallback, and nothing else takes it")
        .field_path(".fallback"),
    validation = Rule::new("self.delegation == 'Manual' || self.publish == 'Authoritative'")
        .message("a zone that a DNS provider answers for is not delegated to the agents")
        .field_path(".delegation")
)]
pub struct DnsPolicySpec {
    /// What the policy is attached to, in its own namespace: Gateways of class fairlead, or one listener
    /// of such a Gateway.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(
        validation = Rule::new("self.all(a, self.exists_one(b, a.name == b.name && (has(a.sectionName) ? has(b.sectionName) && a.sectionName == b.sectionName : !has(b.sectionName))))")
            .message("each target may be named once")
    )]
    pub target_refs: Vec<DnsTargetRef>,

    /// The zone: only names in it are answered. A parent zone delegates it to the agents, or a DNS
    /// provider hosts it.
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN))]
    pub zone: String,

    /// Which members an answer names. Weighted: one by weight. Geo: those of the client's region, while one
    /// is healthy. Failover: those of the first tier with a healthy one. All: all.
    #[serde(default)]
    pub strategy: DnsStrategy,

    /// How long an answer may be kept: the longest time that a client goes on using a member that failed.
    #[serde(default = "ttl_seconds")]
    #[schemars(range(min = 1, max = 86_400))]
    pub ttl_seconds: i32,

    /// How long the absence of a name may be remembered.
    #[serde(default = "negative_ttl_seconds")]
    #[schemars(range(min = 1, max = 3_600))]
    pub negative_ttl_seconds: i32,

    /// Addresses in one answer at most. Without it: 1 for Weighted, else 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub max_answers: Option<i32>,

    /// What is answered while no member is healthy. All: every member, since the evidence may be wrong.
    /// None: no address, which resolvers remember. Fallback: given addresses.
    #[serde(default)]
    pub when_none_healthy: WhenNoneHealthy,

    /// Addresses for whenNoneHealthy Fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 2, max = 45)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("fallback takes IP addresses"))]
    pub fallback: Option<Vec<String>>,

    /// Weight of each member, for strategy Weighted. Without it all weigh the same; a member that is not named
    /// weighs 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "weights", extend("x-kubernetes-map-type" = "granular"))]
    #[x_kube(validation = Rule::new("self.exists(w, self[w] > 0)").message("at least one weight must be above 0"))]
    pub weights: Option<BTreeMap<String, i32>>,

    /// Members in the order in which they are tried, for strategy Failover. Those not named come last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub tiers: Option<Vec<DnsTier>>,

    /// Where clients are, for strategy Geo: by the client's network where the resolver tells it (EDNS client
    /// subnet), else by the resolver's own address. The longest network that fits counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), extend("x-kubernetes-list-type" = "atomic"))]
    pub networks: Option<Vec<DnsNetwork>>,

    /// Names of the servers that the parent zone names, where they are not the agents' own. Without it
    /// ns-MEMBER.ZONE, with the address at which the DNS server of the member's agent is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub name_servers: Option<Vec<String>>,

    /// Who answers. Authoritative: the agents. ExternalDNS: a DNS provider; one member's agent writes a
    /// DNSEndpoint for the ExternalDNS of its cluster.
    #[serde(default)]
    pub publish: DnsPublish,

    /// Who writes the zone's name servers and their addresses into the parent zone. Manual: a person, from
    /// status.nameServers. ExternalDNS: one member's agent writes them into a DNSEndpoint, for an ExternalDNS
    /// whose provider has the parent zone.
    #[serde(default)]
    pub delegation: DnsDelegation,
}

fn ttl_seconds() -> i32 {
    30
}

fn negative_ttl_seconds() -> i32 {
    30
}

/// A Gateway of class fairlead in the policy's own namespace, or a listener of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.group == 'gateway.networking.k8s.io' && self.kind == 'Gateway'")
        .message("a DNSPolicy can target a Gateway (gateway.networking.k8s.io)")
)]
pub struct DnsTargetRef {
    /// API group of the target.
    #[schemars(length(max = 253), regex(pattern = schema::GROUP))]
    pub group: String,
    /// Kind of the target: Gateway.
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::KIND))]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of one listener. Without it: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN))]
    pub section_name: Option<String>,
}

/// Written by hand because bounds on the values of a map have no attribute.
fn weights(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 64,
        "additionalProperties": {
            "type": "integer",
            "format": "int32",
            "minimum": 0,
            "maximum": 1_000_000,
        },
    })
}

/// Members that are tried together.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DnsTier {
    /// Members by name. A member in several tiers is used in the first of them.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 50), regex(pattern = schema::LABEL)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub members: Vec<String>,
}

/// A network and where it is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DnsNetwork {
    /// IPv4 or IPv6 network, as ADDRESS/LENGTH.
    #[schemars(length(min = 4, max = 49))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr takes a network, as 192.0.2.0/24"))]
    pub cidr: String,
    /// Region, as the location of a MemberCluster names it.
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::LABEL_VALUE))]
    pub region: String,
}

/// Which members an answer names.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsStrategy {
    /// One by weight.
    #[default]
    Weighted,
    /// Those of the client's region.
    Geo,
    /// Those of the first tier with a healthy one.
    Failover,
    /// All.
    All,
}

/// What is answered while no member is healthy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenNoneHealthy {
    /// Every member.
    #[default]
    All,
    /// No address.
    None,
    /// Given addresses.
    Fallback,
}

/// Who answers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPublish {
    /// The agents.
    #[default]
    Authoritative,
    /// A DNS provider, by way of ExternalDNS.
    ExternalDNS,
}

/// Who writes the zone's name servers into the parent zone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsDelegation {
    /// A person.
    #[default]
    Manual,
    /// A DNS provider that has the parent zone, by way of ExternalDNS.
    ExternalDNS,
}

/// What became of the policy. Written by the hub only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DnsPolicyStatus {
    /// Accepted: its targets exist and it is the one that acts on them. Served: all of its names are answered.
    /// DNSVisible: a resolver answers them as they are published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Names that are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub names: Option<i32>,
    /// Servers that the parent zone has to name, at most 8, each with its addresses where its name is in the zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 1_024)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub name_servers: Vec<String>,
}
