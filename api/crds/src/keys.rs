//! Every name that hub, agent, CLI, chart and users must spell alike: labels, annotations,
//! finalizers, conditions, controllers, field managers, objects, headers.
//!
//! Owns spelling only. Changing a value here orphans what older versions wrote: add a new key and
//! read both, or do not.

/// The word that stands for all of it: value of [`MANAGED_BY`] and [`PART_OF`].
pub const FAIRLEAD: &str = "fairlead";

// --- API groups and versions

/// Our own API group.
pub const GROUP: &str = "fairlead.dev";
/// The version of our own kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of our own kinds.
pub const API_VERSION: &str = "fairlead.dev/v1alpha1";
/// Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Multi-Cluster Services API.
pub const MCS_GROUP: &str = "multicluster.x-k8s.io";

// --- classes and controllers

/// The controllerName in GatewayClasses and route statuses that the hub writes.
pub const CONTROLLER_NAME: &str = "fairlead.dev/hub";
/// The GatewayClass of global gateways.
pub const GATEWAY_CLASS: &str = "fairlead";

// --- field managers of server-side apply, one per process

/// The hub's field manager.
pub const FIELD_MANAGER_HUB: &str = "fairlead-hub";
/// The agent's field manager.
pub const FIELD_MANAGER_AGENT: &str = "fairlead-agent";
/// The CLI's field manager.
pub const FIELD_MANAGER_CLI: &str = "fairlead-cli";

// --- labels

/// Says who owns an object. Value [`FAIRLEAD`] on every object that Fairlead writes; objects without
/// it are never touched. The chart's own objects carry `Helm` there.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Groups everything of Fairlead, the chart's objects included. Value [`FAIRLEAD`].
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// On what the CLI installs by hand in place of Helm: the value of [`MANAGED_BY`] there.
pub const MANAGED_BY_CLI: &str = "fairlead-cli";
/// The remote member that a Service, EndpointSlice or policy of ours stands for.
pub const LABEL_MEMBER: &str = "fairlead.dev/member";
/// Ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who writes an EndpointSlice. Value [`SLICE_MANAGED_BY_VALUE`]; not the EndpointSlice controller's, so that it keeps away.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`SLICE_MANAGED_BY`] on slices of ours.
pub const SLICE_MANAGED_BY_VALUE: &str = "fairlead.dev";
/// MCS: the imported service that an EndpointSlice belongs to.
pub const MCS_SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
/// MCS: the cluster that an EndpointSlice comes from.
pub const MCS_SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Region of a Node.
pub const TOPOLOGY_REGION: &str = "topology.kubernetes.io/region";
/// Zone of a Node.
pub const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";

// --- annotations

/// On a member's own Gateway, by its owner: `<namespace>/<name>` of the global gateway it is lent to.
pub const GLOBAL_GATEWAY: &str = "fairlead.dev/global-gateway";
/// On a lent Gateway, by its owner: [`BACKEND_CLIENT_CERT_ALLOW`] lets Fairlead set its client certificate.
pub const BACKEND_CLIENT_CERT: &str = "fairlead.dev/backend-client-cert";
/// The only value of [`BACKEND_CLIENT_CERT`] that means yes.
pub const BACKEND_CLIENT_CERT_ALLOW: &str = "allow";
/// On a mirrored object: `<kind>/<namespace>/<name>` of the hub's object, for people.
pub const MIRROR_OF: &str = "fairlead.dev/mirror-of";
/// On our routes and Gateways: with a value other than ExternalDNS's own, its gateway sources skip them.
pub const EXTERNAL_DNS_CONTROLLER: &str = "external-dns.alpha.kubernetes.io/controller";
/// Value of [`EXTERNAL_DNS_CONTROLLER`]; anything but `dns-controller` opts out.
pub const EXTERNAL_DNS_CONTROLLER_VALUE: &str = "fairlead.dev";
/// On a MemberCluster, by `fairlead failback`: the time of the request, RFC 3339. A new value gives the
/// member's traffic back.
pub const FAILBACK: &str = "fairlead.dev/failback";
/// On a Secret with keys of the hub or of a member's crossing, by `fairlead rotate`: the time of the request, RFC 3339. A new value
/// has new keys made and the old ones taken away, step by step.
pub const ROTATE: &str = "fairlead.dev/rotate";
/// Beside it: names of members that are not waited for, with commas between them.
pub const ROTATE_WITHOUT: &str = "fairlead.dev/rotate-without";
/// On the same Secret, by the hub or the agent: how far it is, JSON.
pub const ROTATION: &str = "fairlead.dev/rotation";
/// On [`CONFIG_MAP_AGENT_PINS`], by `fairlead trust`: `sha256:` hashes of crossing CAs that this member's
/// admin confirmed, with commas between them.
pub const TRUST: &str = "fairlead.dev/trust";
/// On a global route, by `fairlead rollback`: the revision of `fairlead history` whose rules and policies
/// it is pinned to. Without it the route is as it is written.
pub const PIN: &str = "fairlead.dev/pin";
/// Version of the installed Gateway API definitions.
pub const GATEWAY_BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
/// Channel of the installed Gateway API definitions: `standard` or `experimental`.
pub const GATEWAY_CHANNEL: &str = "gateway.networking.k8s.io/channel";

// --- finalizers

/// On a MemberCluster: the hub withdraws the member's certificate and plans before it goes.
pub const FINALIZER_MEMBER: &str = "fairlead.dev/member";

// --- condition types of MemberCluster

/// The member has an identity of this hub.
pub const CONDITION_JOINED: &str = "Joined";
/// The member's agent has a stream to the hub.
pub const CONDITION_CONNECTED: &str = "Connected";
/// The hub knows all that the member reports.
pub const CONDITION_INVENTORY_SYNCED: &str = "InventorySynced";
/// The member holds what its newest plan says.
pub const CONDITION_PLAN_APPLIED: &str = "PlanApplied";
/// Other members reach its door.
pub const CONDITION_REACHABLE: &str = "Reachable";
/// Its door refuses strangers, by trial.
pub const CONDITION_DOOR_SHUT: &str = "DoorShut";
/// The listener of its door that tells services apart by SNI refuses strangers, by trial.
pub const CONDITION_SNI_DOOR_SHUT: &str = "SNIDoorShut";
/// It consented to doors that prove nothing of who calls.
pub const CONDITION_WEAK_DOOR: &str = "WeakDoor";
/// All conditions of a MemberCluster, in the order in which they come true.
pub const MEMBER_CONDITIONS: [&str; 8] = [
    CONDITION_JOINED,
    CONDITION_CONNECTED,
    CONDITION_INVENTORY_SYNCED,
    CONDITION_PLAN_APPLIED,
    CONDITION_REACHABLE,
    CONDITION_DOOR_SHUT,
    CONDITION_SNI_DOOR_SHUT,
    CONDITION_WEAK_DOOR,
];

// --- condition types of Gateway API that the hub writes

/// The object is understood and taken.
pub const CONDITION_ACCEPTED: &str = "Accepted";
/// What the object asks for is in effect.
pub const CONDITION_PROGRAMMED: &str = "Programmed";
/// All references of the object lead somewhere.
pub const CONDITION_RESOLVED_REFS: &str = "ResolvedRefs";
/// Some rules of a route were left out.
pub const CONDITION_PARTIALLY_INVALID: &str = "PartiallyInvalid";
/// A listener cannot live beside another.
pub const CONDITION_CONFLICTED: &str = "Conflicted";
/// Another listener takes some of a listener's hostnames, too.
pub const CONDITION_OVERLAPPING_TLS: &str = "OverlappingTLSConfig";
/// Clients without a valid certificate are let in where the Gateway asks for one.
pub const CONDITION_INSECURE_FRONTEND: &str = "InsecureFrontendValidationMode";
/// Every name of a DNSPolicy is answered.
pub const CONDITION_SERVED: &str = "Served";
/// Condition of a DNSPolicy: a resolver answers its names as they are published.
pub const CONDITION_DNS_VISIBLE: &str = "DNSVisible";
/// Ours, on routes: whether the pin that is asked for by [`PIN`] is in force. Absent without one.
pub const CONDITION_PINNED: &str = "fairlead.dev/Pinned";
/// Ours, on routes: False while a change is tried at one member first, or was stopped there. Absent else.
pub const CONDITION_ROLLED_OUT: &str = "fairlead.dev/RolledOut";
/// Ours, on routes: the members that differ from what the route asks for.
pub const CONDITION_MEMBERS_PROGRAMMED: &str = "fairlead.dev/MembersProgrammed";

// --- namespaces and object names

/// Where Fairlead lives, in the hub and in members.
pub const NAMESPACE: &str = "fairlead-system";
/// The hub's Deployment, Service, ServiceAccount, roles, ConfigMap.
pub const HUB: &str = "fairlead-hub";
/// The Service that shows the hub's agent port, and only that, to other clusters.
pub const HUB_PUBLIC: &str = "fairlead-hub-public";
/// Port of the hub's Service for agents.
pub const PORT_NAME_GRPC: &str = "grpc";
/// Port of hub's and agent's Services for the read-only API, health and metrics.
pub const PORT_NAME_ADMIN: &str = "http-admin";
/// Port of the agent's Service for peers' questions.
pub const PORT_NAME_READINESS: &str = "http-readiness";
/// The agent's Deployment, Service, ServiceAccount, roles, ConfigMap.
pub const AGENT: &str = "fairlead-agent";
/// The member's Service by which its agent's DNS server is reached from outside.
pub const SERVICE_DNS: &str = "fairlead-dns";
/// End of the name of an object that mirrors one of the hub.
pub const GLOBAL_SUFFIX: &str = "-global";
/// Hub Secret: the CA that signs agents' certificates.
pub const SECRET_HUB_CA: &str = "fairlead-hub-ca";
/// Hub Secret: the keys behind capabilities and signed messages.
pub const SECRET_HUB_KEYS: &str = "fairlead-hub-keys";
/// Hub Secret: what routes are pinned to and the newest changes, for a hub that lost its store.
pub const SECRET_HUB_HISTORY: &str = "fairlead-hub-history";
/// Key in [`SECRET_HUB_HISTORY`]: `<kind>/<namespace>/<name> <revision>`, a line for each pin whose rules are there.
pub const HISTORY_PINS: &str = "pins";
/// Hub Secrets of this type are join tokens (hashed).
pub const SECRET_TYPE_JOIN_TOKEN: &str = "fairlead.dev/join-token";
/// Start of a join token Secret's name; the token's id follows.
pub const JOIN_TOKEN_PREFIX: &str = "fairlead-token-";
/// On join token Secrets. Value `true`.
pub const LABEL_TOKEN: &str = "fairlead.dev/token";
/// Hub ConfigMap: what `fairlead token create` tells a joining cluster about the hub.
pub const CONFIG_MAP_HUB: &str = "fairlead-hub-info";
/// Hub Lease that fences epochs: a restored store or a second hub takes a number above it.
pub const LEASE_HUB: &str = "fairlead-hub";
/// Agent ConfigMap: key `agent.yaml` holds the cluster's consent.
pub const CONFIG_MAP_AGENT: &str = "fairlead-agent";
/// Key in [`CONFIG_MAP_AGENT`].
pub const AGENT_CONFIG: &str = "agent.yaml";
/// Agent ConfigMap: what the agent says of its join. Not labelled as managed by us: no plan names it.
pub const CONFIG_MAP_AGENT_STATE: &str = "fairlead-agent-state";
/// Agent ConfigMap: the crossing CAs of other members that it believes, by cluster. Not labelled as managed
/// by us: no plan names it.
pub const CONFIG_MAP_AGENT_PINS: &str = "fairlead-agent-pins";
/// Agent Secret: token and hub address for the first contact.
pub const SECRET_AGENT_BOOTSTRAP: &str = "fairlead-agent-bootstrap";
/// Key in [`SECRET_AGENT_BOOTSTRAP`]: the join token.
pub const BOOTSTRAP_TOKEN: &str = "token";
/// Key in [`SECRET_AGENT_BOOTSTRAP`]: the hash of the hub's CA that the agent pins.
pub const BOOTSTRAP_CA_HASH: &str = "ca-hash";
/// Key in [`SECRET_AGENT_BOOTSTRAP`]: the hub's address.
pub const BOOTSTRAP_HUB: &str = "hub";
/// Agent Secret: the agent's key, certificate and the hub's CA.
pub const SECRET_AGENT_IDENTITY: &str = "fairlead-agent-identity";
/// Member Secret: key and certificate of the member's own crossing CA.
pub const SECRET_CROSSING_CA: &str = "fairlead-crossing-ca";
/// Member Secret: the doors' server certificate.
pub const SECRET_EAST_WEST_SERVER: &str = "fairlead-eastwest-server";
/// Member Secret: the certificate that the member's gateways show at other members' doors.
pub const SECRET_EAST_WEST_CLIENT: &str = "fairlead-eastwest-client";
/// Member ConfigMap: CA certificates of the members that the doors let in.
pub const CONFIG_MAP_EAST_WEST_CALLERS: &str = "fairlead-eastwest-callers";
/// The Gateway of the doors, and the start of the ReferenceGrants that belong to it.
pub const EAST_WEST_GATEWAY: &str = "fairlead-eastwest";
/// Listener of the header door.
pub const EAST_WEST_LISTENER_HTTPS: &str = "https";
/// First listener of the SNI door.
pub const EAST_WEST_LISTENER_TLS: &str = "tls";
/// Listener of a lane of the SNI door: `tls`, `tls-2` and so on.
pub fn sni_listener(lane: u16) -> String {
    match lane {
        0 => EAST_WEST_LISTENER_TLS.to_owned(),
        lane => format!("{EAST_WEST_LISTENER_TLS}-{}", lane + 1),
    }
}
/// Listeners for one service each: this and their port.
pub const EAST_WEST_LISTENER_UDP: &str = "udp";
/// Name of the port of a member Service.
pub const EAST_WEST_PORT_NAME: &str = "eastwest";
/// The route that peers probe and the knock uses.
pub const ROUTE_PROBE: &str = "probe";
/// The route that the knock uses at the SNI door.
pub const ROUTE_PROBE_SNI: &str = "probe-sni";
/// The route to the agent's ready counts.
pub const ROUTE_READINESS: &str = "readiness";
/// ReferenceGrant in our namespace for routes that send to member Services.
pub const GRANT_ROUTES: &str = "fairlead-routes";
/// ReferenceGrant in our namespace for Gateways that show our client certificate.
pub const GRANT_CLIENT_CERT: &str = "fairlead-client-cert";

/// Name of all that stands for a remote member: Service, CA ConfigMap, BackendTLSPolicy.
pub fn member_object(member: &str) -> String {
    format!("member-{member}")
}

/// Name of the EndpointSlice of a remote member for one address family (`v4` or `v6`).
pub fn member_slice(member: &str, family: &str) -> String {
    format!("member-{member}-{family}")
}

/// The fixed name in the certificate of a member's door.
pub fn door_hostname(cluster_uid: &str) -> String {
    format!("door.{}.fairlead.internal", cluster_uid.to_ascii_lowercase())
}

// --- kinds of others

/// A kind of another controller that may follow a global route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowingKind {
    /// API group.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural in the API.
    pub resource: &'static str,
    /// Versions that are carried, best first.
    pub versions: &'static [&'static str],
}

const V1_ALPHA_1: &[&str] = &["v1alpha1"];

/// Kinds that the hub reads and lets follow; each member's agent decides for itself. None of them
/// carries code.
pub const FOLLOWING_KINDS: [FollowingKind; 5] = [
    following(
        "gateway.envoyproxy.io",
        "BackendTrafficPolicy",
        "backendtrafficpolicies",
        V1_ALPHA_1,
    ),
    following("gateway.envoyproxy.io", "ClientTrafficPolicy", "clienttrafficpolicies", V1_ALPHA_1),
    following("gateway.envoyproxy.io", "SecurityPolicy", "securitypolicies", V1_ALPHA_1),
    following("kuadrant.io", "RateLimitPolicy", "ratelimitpolicies", &["v1"]),
    following("traefik.io", "Middleware", "middlewares", V1_ALPHA_1),
];

const fn following(
    group: &'static str,
    kind: &'static str,
    resource: &'static str,
    versions: &'static [&'static str],
) -> FollowingKind {
    FollowingKind { group, kind, resource, versions }
}

// --- on the wire

/// The header that carries a capability through the header door. Removed at the door.
pub const HEADER_BACKEND: &str = "fairlead-backend";
/// Path that peers probe at a door; answered by the gateway itself.
pub const PATH_PROBE: &str = "/.well-known/fairlead/probe";
/// Path of the agent's ready counts behind a door.
pub const PATH_READINESS: &str = "/.well-known/fairlead/readiness";

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;
    use crate::{MemberCluster, TrafficPolicy};

    #[test]
    fn kinds_are_of_our_group_and_version() {
        assert_eq!(API_VERSION, format!("{GROUP}/{VERSION}"));
        assert_eq!(MemberCluster::api_version(&()), API_VERSION);
        assert_eq!(TrafficPolicy::api_version(&()), API_VERSION);
    }

    #[test]
    fn objects_of_the_longest_member_name_fit_a_dns_label() {
        let longest = "m".repeat(50);
        assert!(member_object(&longest).len() <= 63);
        assert!(member_slice(&longest, "v4").len() <= 63);
    }
}
