//! Remote members as an entry sees them: a Service with slices to the door, and mTLS to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_crds::keys;
use fairlead_model::bundle::{Capability, Peer};
use fairlead_model::dns::DnsName;
use fairlead_model::plan::{MemberPlan, PeerPlan};
use fairlead_model::snapshot::Address;
use fairlead_model::{Json, MemberId, Reason, RouteKind};
use serde_json::json;

use super::grant::{self, GRANT_ENTRIES_MAX};
use super::{Draft, GATEWAY_API, metadata, passage, set_label};
use crate::capability::readiness_capability;
use crate::{CapabilityKeys, names, shard};

/// Most addresses of one door that we write; a door has a load balancer or two, not a fleet.
const ADDRESSES_MAX: usize = 64;

/// What a gateway must speak through a door. The hop is always TLS; this is about what is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inner {
    /// Whatever the two gateways agree on.
    Any,
    /// HTTP/2: gRPC.
    Http2,
    /// HTTP/1.1: WebSocket upgrades.
    WebSocket,
}

impl Inner {
    /// What the `appProtocol` of the service behind the door asks for.
    pub(super) fn of(app_protocol: &str) -> Self {
        match app_protocol {
            "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Self::Http2,
            "kubernetes.io/ws" | "kubernetes.io/wss" => Self::WebSocket,
            _ => Self::Any,
        }
    }

    /// Name of the port. EndpointSlices are matched to ports by it.
    fn port_name(self) -> String {
        match self {
            Self::Any => keys::EAST_WEST_PORT_NAME.to_owned(),
            Self::Http2 => format!("{}-h2c", keys::EAST_WEST_PORT_NAME),
            Self::WebSocket => format!("{}-ws", keys::EAST_WEST_PORT_NAME),
        }
    }

    /// Number of the port in the Service. Numbers of a Service must differ, whereas all of them lead to
    /// the one port of the door; they are fixed, so that routes do not change with a door's port.
    pub(super) fn service_port(self) -> u16 {
        match self {
            Self::Any => 15443,
            Self::Http2 => 15444,
            Self::WebSocket => 15445,
        }
    }

    fn app_protocol(self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::Http2 => Some("kubernetes.io/h2c"),
            Self::WebSocket => Some("kubernetes.io/ws"),
        }
    }
}

/// Renders every peer of the plan, and the grants for the routes that use them.
pub(super) fn render_peers(plan: &MemberPlan, keyring: &CapabilityKeys, draft: &mut Draft) {
    draft.bundle.cas.clone_from(&plan.cas);
    for (member, peer) in &plan.peers {
        draft.bundle.peers.insert(member.clone(), probed(peer, keyring));
        // A witness asks the door itself; nothing in its cluster leads there.
        if !peer.is_used() {
            continue;
        }
        let addresses = split_addresses(member, peer, draft);
        draft.put(ca(member, peer));
        if !peer.used_from.is_empty() {
            render_peer(member, peer, &addresses, draft);
        }
        passage::render_passages(member, peer, &addresses, keyring, draft);
    }
    render_route_grants(plan, draft);
}

fn render_peer(member: &MemberId, peer: &PeerPlan, addresses: &Addresses, draft: &mut Draft) {
    let name = names::peer(member);
    draft.put(service(member, peer, addresses.in_v6()));
    for (family, address_type, ips) in addresses.families() {
        let port =
            |inner: Inner| json!({"name": inner.port_name(), "port": peer.port, "protocol": "TCP"});
        let ports = inners(peer).into_iter().map(port).collect();
        let name_of_slice = names::peer_slice(member, family);
        let shape = Slice { name: &name_of_slice, service: &name, address_type, ips, ports };
        draft.put(slice(member, shape));
    }
    draft.put(tls_policy(member, &name, &names::server_name(&peer.uid)));
}

fn probed(peer: &PeerPlan, keyring: &CapabilityKeys) -> Peer {
    let readiness = keyring.current().and_then(|now| readiness_capability(keyring, now, &peer.uid));
    Peer {
        uid: peer.uid.clone(),
        addresses: peer.addresses.clone(),
        port: peer.port,
        server_name: names::server_name(&peer.uid),
        ca_pem: peer.ca_pem.clone(),
        readiness: Capability(readiness.unwrap_or_default()),
    }
}

/// Addresses of a door.
#[derive(Default)]
pub(super) struct Addresses {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// There are names, too.
    has_names: bool,
}

impl Addresses {
    pub(super) fn in_v6(&self) -> bool {
        self.has_names || !self.v6.is_empty()
    }

    /// The slices that stand for them: family, type, addresses. One stays even when it is empty: without any,
    /// gateways forget the Service's ports. A name may stand for addresses of either family; the member's
    /// agent puts them in.
    pub(super) fn families(&self) -> Vec<(&'static str, &'static str, &[IpAddr])> {
        let mut families = Vec::new();
        if self.has_names || !self.v4.is_empty() || self.v6.is_empty() {
            families.push(("v4", "IPv4", &*self.v4));
        }
        if self.in_v6() {
            families.push(("v6", "IPv6", &*self.v6));
        }
        families
    }
}

/// Addresses by family. What an API server would refuse is left out here, or it would refuse the
/// whole slice and with it the good addresses.
fn split_addresses(member: &MemberId, peer: &PeerPlan, draft: &mut Draft) -> Addresses {
    let subject = format!("member {member}");
    let mut ips = Vec::new();
    let mut has_names = false;
    for address in &peer.addresses {
        match address {
            Address::Ip(ip) if is_endpoint(ip) => ips.push(*ip),
            Address::Ip(ip) => draft.note(
                &subject,
                Reason::UnsupportedValue,
                format!("door address {ip} is no unicast address that other clusters can reach"),
            ),
            Address::Name(name) if DnsName::new(name).is_ok_and(|name| !name.is_wildcard()) => {
                has_names = true;
            }
            Address::Name(name) => draft.note(
                &subject,
                Reason::UnsupportedValue,
                format!("door address {name} is neither an IP address nor a host name"),
            ),
        }
    }
    if ips.len() > ADDRESSES_MAX {
        draft.note(
            &subject,
            Reason::TooLarge,
            format!("{} door addresses, the first {ADDRESSES_MAX} are used", ips.len()),
        );
        ips.truncate(ADDRESSES_MAX);
    }
    let (v4, v6) = ips.into_iter().partition(IpAddr::is_ipv4);
    Addresses { v4, v6, has_names }
}

/// Addresses that the API server takes in an EndpointSlice.
fn is_endpoint(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Ports that the services behind the door ask for; the plain one is always there.
fn inners(peer: &PeerPlan) -> BTreeSet<Inner> {
    let asked = peer.app_protocols.iter().map(|protocol| Inner::of(protocol));
    asked.chain([Inner::Any]).collect()
}

fn service(member: &MemberId, peer: &PeerPlan, has_v6: bool) -> Json {
    let port = |inner: Inner| {
        let mut port = json!({
            "name": inner.port_name(),
            "protocol": "TCP",
            "port": inner.service_port(),
            "targetPort": peer.port,
        });
        if let Some(protocol) = inner.app_protocol() {
            port["appProtocol"] = protocol.into();
        }
        port
    };
    let mut spec = json!({"ports": inners(peer).into_iter().map(port).collect::<Vec<_>>()});
    if has_v6 {
        spec["ipFamilyPolicy"] = "PreferDualStack".into();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": peer_metadata(member, &names::peer(member)), "spec": spec})
}

/// A slice of a Service that leads to a door.
pub(super) struct Slice<'a> {
    pub(super) name: &'a str,
    pub(super) service: &'a str,
    pub(super) address_type: &'a str,
    pub(super) ips: &'a [IpAddr],
    pub(super) ports: Vec<Json>,
}

pub(super) fn slice(member: &MemberId, slice: Slice<'_>) -> Json {
    // Conditions in full: some gateways dereference them, some take a missing `ready` for no.
    let endpoint = |ip: &IpAddr| {
        json!({
            "addresses": [ip.to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        })
    };
    let mut metadata = peer_metadata(member, slice.name);
    set_label(&mut metadata, keys::SERVICE_NAME, slice.service);
    set_label(&mut metadata, keys::SLICE_MANAGED_BY, keys::SLICE_MANAGED_BY_VALUE);
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": slice.address_type,
        "ports": slice.ports,
        "endpoints": slice.ips.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn ca(member: &MemberId, peer: &PeerPlan) -> Json {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": peer_metadata(member, &names::peer_ca(member)),
        "data": {"ca.crt": peer.ca_pem},
    })
}

/// mTLS to a Service that leads to a door, under the server name `host`.
pub(super) fn tls_policy(member: &MemberId, service: &str, host: &str) -> Json {
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "BackendTLSPolicy",
        "metadata": peer_metadata(member, service),
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": service}],
            "validation": {
                "hostname": host,
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": names::peer_ca(member)}],
            },
        },
    })
}

pub(super) fn peer_metadata(member: &MemberId, name: &str) -> Json {
    let mut metadata = metadata(keys::NAMESPACE, name);
    set_label(&mut metadata, keys::LABEL_MEMBER, member.as_str());
    metadata
}

/// Lets the routes of each namespace reach what they use of other members, and nothing else.
fn render_route_grants(plan: &MemberPlan, draft: &mut Draft) {
    let mut used: BTreeMap<&str, (BTreeSet<RouteKind>, BTreeSet<String>)> = BTreeMap::new();
    for (member, peer) in &plan.peers {
        let whole = peer.used_from.iter().map(|from| (from, names::peer(member)));
        let passages = peer.passages.iter();
        let passages = passages.map(|one| (&one.used_from, names::passage(member, one)));
        for (from, service) in whole.chain(passages) {
            let (kinds, services) = used.entry(&from.namespace).or_default();
            kinds.insert(from.kind);
            services.insert(service);
        }
    }
    for (namespace, (kinds, services)) in used {
        let services: Vec<String> = services.into_iter().collect();
        // Sharded by what follows the common start, so that grants of before keep their names.
        let key = |service: &String| service.replacen(&keys::member_object(""), "", 1);
        for (bits, services) in shard::shard(services, GRANT_ENTRIES_MAX, key) {
            draft.put(grant::grant(
                keys::NAMESPACE,
                &names::routes_grant(namespace, &bits),
                kinds.iter().map(|kind| grant::from(kind.as_str(), namespace)).collect(),
                services.iter().map(|service| grant::to("Service", service)).collect(),
            ));
        }
    }
}
