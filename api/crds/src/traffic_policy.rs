//! `TrafficPolicy`: how the traffic of a global route is spread over members.
//!
//! Owns the kind's shape, defaults and validation. Never says what a policy means when two of them
//! meet: that is the hub's part (the most specific target wins, whole, not field by field).

#![expect(
    clippy::duplicated_attributes,
    reason = "each printed column of the kind has a type and a path"
)]
#![expect(
    unreachable_pub,
    reason = "the KubeSchema derive copies our public structs into a private function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::schema;

/// How traffic is spread, when it fails over, and how it comes back.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    singular = "trafficpolicy",
    shortname = "tp",
    category = "fairlead",
    namespaced,
    doc = "How the traffic of global routes is spread over members. Attached to a Gateway, a ListenerSet, a listener of either, a route, a rule of a route or a ServiceImport of the same namespace; the most specific attachment wins.",
    label("gateway.networking.k8s.io/policy", "Inherited"),
    status = "TrafficPolicyStatus",
    derive = "PartialEq",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRefs[0].kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRefs[0].name"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What the policy is attached to, in its own namespace.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(
        validation = Rule::new("self.all(a, self.exists_one(b, a.group == b.group && a.kind == b.kind && a.name == b.name && (has(a.sectionName) ? has(b.sectionName) && a.sectionName == b.sectionName : !has(b.sectionName))))")
            .message("each target may be named once")
    )]
    pub target_refs: Vec<TargetRef>,

    /// Sets of members that are tried in this order: a tier gets what the tiers before it cannot take.
    /// Without tiers: the entry's own cluster, then its zone, then its region, then any member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub tiers: Option<Vec<Tier>>,

    /// When a tier or a member counts as failing. Without it: the defaults of its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,

    /// How a member that recovered gets its traffic back. Without it: the defaults of its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failback: Option<Failback>,

    /// What becomes of a member whose agent is silent while nothing proves that its door is down.
    /// Without it: its traffic is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_member: Option<StaleMember>,
}

/// One object, or one part of it, in the policy's own namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.group == 'gateway.networking.k8s.io' && self.kind in ['Gateway', 'ListenerSet', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'UDPRoute']) || (self.group == 'multicluster.x-k8s.io' && self.kind == 'ServiceImport')")
        .message("a TrafficPolicy can target a Gateway, ListenerSet, HTTPRoute, GRPCRoute, TLSRoute, TCPRoute or UDPRoute (gateway.networking.k8s.io) or a ServiceImport (multicluster.x-k8s.io)"),
    validation = Rule::new("!has(self.sectionName) || self.kind != 'ServiceImport'")
        .message("sectionName names a rule of a route or a listener; a ServiceImport has neither")
        .field_path(".sectionName")
)]
pub struct TargetRef {
    /// API group of the target.
    #[schemars(length(max = 253), regex(pattern = schema::GROUP))]
    pub group: String,
    /// Kind of the target: Gateway, ListenerSet, HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, UDPRoute or ServiceImport.
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::KIND))]
    pub kind: String,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of one rule of a route, or of one listener of a Gateway or ListenerSet. Without it: all of the
    /// target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN))]
    pub section_name: Option<String>,
}

/// Members that are tried together.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.split == 'Weights' ? has(self.weights) : !has(self.weights)")
        .message("split Weights needs weights, and no other split takes them")
        .field_path(".weights"),
    validation = Rule::new("!has(self.weights) || !has(self.members.names) || (self.members.names.all(n, n in self.weights) && self.weights.all(w, w in self.members.names))")
        .message("weights must name exactly the members of the tier")
        .field_path(".weights")
)]
pub struct Tier {
    /// Which members are in the tier. A member in several tiers is used in the first of them.
    pub members: TierMembers,

    /// How the tier's traffic is split among its members. Endpoints: by the endpoints that each should have.
    /// Equal: the same for each. Weights: as given. In each case times the healthy share of the member.
    #[serde(default)]
    pub split: Split,

    /// Weight of each member, for split Weights. A member of the tier that is not named weighs 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        schema_with = "weights",
        extend("x-kubernetes-map-type" = "granular")
    )]
    #[x_kube(validation = Rule::new("self.exists(w, self[w] > 0)").message("at least one weight must be above 0"))]
    pub weights: Option<BTreeMap<String, i32>>,
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

/// Exactly one way to choose members.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.names), has(self.selector), has(self.scope)].filter(x, x).size() == 1")
        .message("exactly one of names, selector and scope must be set")
)]
pub struct TierMembers {
    /// Members by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 50), regex(pattern = schema::LABEL)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub names: Option<Vec<String>>,

    /// Members by the labels of their MemberCluster. An empty selector is all members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: Option<LabelSelector>,

    /// Members by their distance from the entry: SameCluster, SameZone, SameRegion or Any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// Distance between an entry and a target. Each includes the ones before it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The entry itself.
    SameCluster,
    /// Members in the entry's zone.
    SameZone,
    /// Members in the entry's region.
    SameRegion,
    /// Every member.
    Any,
}

/// How a tier's traffic is split.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// By expected endpoints.
    #[default]
    Endpoints,
    /// The same for each member.
    Equal,
    /// By given weights.
    Weights,
}

fn healthy_percent() -> i32 {
    70
}

fn min_endpoints() -> i32 {
    1
}

/// When traffic leaves a tier or a member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// A tier takes all traffic as long as at least this share of its endpoints is ready. Below, it
    /// takes less in proportion, and the next tier gets the rest.
    #[serde(default = "healthy_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_percent: i32,

    /// A member with fewer ready endpoints gets nothing while others can serve.
    #[serde(default = "min_endpoints")]
    #[schemars(range(min = 0, max = 100_000))]
    pub min_endpoints: i32,

    /// What becomes of the share of a backend that exists but is ready nowhere. Redistribute: the other
    /// backends of the rule take it. Fail: those requests fail.
    #[serde(default)]
    pub when_unavailable: WhenUnavailable,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            healthy_percent: healthy_percent(),
            min_endpoints: min_endpoints(),
            when_unavailable: WhenUnavailable::default(),
        }
    }
}

/// What becomes of a share that nobody can serve.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnavailable {
    /// The rule's other backends take it.
    #[default]
    Redistribute,
    /// Those requests fail.
    Fail,
}

fn after_seconds() -> i32 {
    30
}

fn ramp_seconds() -> i32 {
    60
}

/// How a member that recovered gets its traffic back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failback {
    /// Auto: when the member has been healthy for long enough. Manual: when somebody runs `fairlead failback`.
    #[serde(default)]
    pub mode: FailbackMode,

    /// How long the member must be healthy without a break before it gets traffic again.
    #[serde(default = "after_seconds")]
    #[schemars(range(min = 0, max = 86_400))]
    pub after_seconds: i32,

    /// How long its share takes to grow back, in steps. 0: at once.
    #[serde(default = "ramp_seconds")]
    #[schemars(range(min = 0, max = 86_400))]
    pub ramp_seconds: i32,
}

impl Default for Failback {
    fn default() -> Self {
        Self {
            mode: FailbackMode::default(),
            after_seconds: after_seconds(),
            ramp_seconds: ramp_seconds(),
        }
    }
}

/// Who gives traffic back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailbackMode {
    /// The hub, after a time.
    #[default]
    Auto,
    /// A person.
    Manual,
}

/// What becomes of a member whose agent is silent. One shape for both answers: a field that is a word
/// in one object and a map in another is no structural schema.
///
/// `{mode: Keep}` or `{mode: Drain, keepForSeconds: 600}`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'Drain' ? has(self.keepForSeconds) : !has(self.keepForSeconds)")
        .message("mode Drain needs keepForSeconds, and mode Keep does not take it")
        .field_path(".keepForSeconds")
)]
pub struct StaleMember {
    /// Keep: it keeps its traffic, however long. Drain: it is drained after keepForSeconds.
    #[serde(default)]
    pub mode: StaleMode,

    /// How long it keeps its traffic, for mode Drain. The clock runs only while the hub itself is well and
    /// nothing proves the member's door to be up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub keep_for_seconds: Option<i32>,
}

/// What becomes of a silent member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleMode {
    /// It keeps its traffic.
    #[default]
    Keep,
    /// It is drained after a time.
    Drain,
}

/// What became of the policy, in the form of GEP-713. Written by the hub only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicyStatus {
    /// For each object that the policy acts on through the hub: whether it does. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub ancestors: Vec<PolicyAncestorStatus>,
}

/// What became of the policy for one object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    /// The object: a target of the policy, or the Gateway above it.
    pub ancestor_ref: AncestorRef,
    /// Who wrote this entry: fairlead.dev/hub.
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::CONTROLLER_NAME))]
    pub controller_name: String,
    /// Accepted, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

fn gateway_group() -> String {
    crate::keys::GATEWAY_GROUP.to_owned()
}

fn gateway_kind() -> String {
    "Gateway".to_owned()
}

/// A reference in a status, of the form of a Gateway API parentRef.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// API group.
    #[serde(default = "gateway_group")]
    #[schemars(length(max = 253), regex(pattern = schema::GROUP))]
    pub group: String,
    /// Kind.
    #[serde(default = "gateway_kind")]
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::KIND))]
    pub kind: String,
    /// Namespace; without it the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::LABEL))]
    pub namespace: Option<String>,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Part of the object: a listener or a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = schema::SUBDOMAIN))]
    pub section_name: Option<String>,
    /// Port of a Gateway, where that told listeners apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}
