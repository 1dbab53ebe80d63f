//! By which address this member reaches a service of the clusterset: what `clusterset.local` is answered with.
//!
//! Crossings between members carry HTTP and a capability that only routes of ours hold, so no address of
//! another member's would serve a client that merely resolves a name. What does serve it is here:
//!
//! ```text
//! headless, exported here ──────────────────────────────▶ our own ready endpoints
//! a route whose hostname is the very name, at a listener
//!   with the service's own port, all paths to it ────────▶ our gateway      (weights, failover)
//! exported here, something ready ────────────────────────▶ its ClusterIP     (all ports, no failover)
//! none of these ─────────────────────────────────────────▶ no address
//! ```
//!
//! A gateway that serves all of a service's ports goes before its ClusterIP: its address stays while
//! the local endpoints come and go. One that serves some of them would take the others away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_model::bundle::{Bundle, RuleId};
use fairlead_model::recipe::Serve;
use fairlead_model::snapshot::{Consent, GatewayState, ListenerState, Snapshot};
use fairlead_model::{Json, NsName, ObjectId, ServicePort};

use crate::live::{LiveObject, LiveObjects};
use crate::names::{Resolved, ips_of};
use crate::own::{GATEWAY_GROUP, SERVICE_NAME};

/// Where names of the clusterset are; the MCS-API allows no other.
pub const ZONE: &str = "clusterset.local";
/// Addresses or endpoints of one service at most.
const ANSWERS_MAX: usize = 256;

/// Services by name.
pub type Clusterset = BTreeMap<NsName, Reach>;

/// Everything that the answers depend on.
#[derive(Debug)]
pub struct ClustersetInput<'a> {
    /// The bundle in force.
    pub bundle: Option<&'a Bundle>,
    /// What is here.
    pub snapshot: &'a Snapshot,
    /// Services, EndpointSlices and routes in the API server.
    pub live: &'a LiveObjects,
    /// What the names of our gateways stand for.
    pub resolved: &'a Resolved,
    /// Routes that a gateway of theirs refuses.
    pub refused: &'a BTreeSet<ObjectId>,
}

/// How a service is reached from here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Addresses; empty: none serves a client that only knows the name.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports that have names.
    pub ports: BTreeSet<NamedPort>,
    /// Endpoints with names of their own, of a headless service.
    pub endpoints: Vec<Endpoint>,
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name, in lower case.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Number.
    pub number: ServicePort,
}

/// A ready endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// What it is called, in lower case; its address in letters where nobody named it.
    pub hostname: String,
    /// Address.
    pub address: IpAddr,
    /// Ports of its own: those of a Service mean nothing without a virtual address.
    pub ports: BTreeSet<NamedPort>,
}

/// Decides for every service that is known here.
pub fn reach(input: &ClustersetInput<'_>) -> Clusterset {
    let gateways = by_gateway(input);
    let mut found = Clusterset::new();
    for name in gateways.keys() {
        found.insert(name.clone(), Reach::default());
    }
    let given = input.snapshot.services.iter().filter(|(_, s)| s.consent == Consent::Given);
    for (name, _) in given {
        found.insert(name.clone(), Reach::default());
    }
    let slices = headless_slices(input.live);
    found.retain(|name, reach| {
        let here = live_service(input, name).filter(|_| is_given(input.snapshot, name));
        if here.is_some_and(is_headless) {
            reach.endpoints = slices.get(name).into_iter().flatten().cloned().collect();
            reach.endpoints.sort();
            reach.endpoints.dedup();
            reach.endpoints.truncate(ANSWERS_MAX);
            // A headless service without ready endpoints does not exist (MCS DNS 2.4.1).
            return !reach.endpoints.is_empty();
        }
        let at = gateways.get(name).and_then(best);
        *reach = at_address(input.snapshot, name, here, at);
        true
    });
    found
}

fn is_given(snapshot: &Snapshot, name: &NsName) -> bool {
    snapshot.services.get(name).is_some_and(|service| service.consent == Consent::Given)
}

fn live_service<'a>(input: &ClustersetInput<'a>, name: &NsName) -> Option<&'a LiveObject> {
    input
        .live
        .get(&ObjectId::new("", "v1", "Service", &name.namespace, &name.name))
        .map(AsRef::as_ref)
}

/// A service with one address for everything.
fn at_address(
    snapshot: &Snapshot,
    name: &NsName,
    here: Option<&LiveObject>,
    gateway: Option<Served>,
) -> Reach {
    let state = snapshot.services.get(name).filter(|_| here.is_some());
    let named = |covers: &dyn Fn(ServicePort) -> bool| -> BTreeSet<NamedPort> {
        let ports = state.into_iter().flat_map(|state| &state.ports);
        let covered = ports.filter(|(number, _)| covers(**number));
        covered
            .filter_map(|(number, port)| named_port(&port.name, &port.protocol, *number))
            .collect()
    };
    let ready = state.is_some_and(|state| state.counts().ready > 0);
    let local = here.filter(|_| ready).map(cluster_ips).filter(|ips| !ips.is_empty());
    let all = |served: &Served| {
        state.is_none_or(|state| state.ports.keys().all(|port| served.ports.contains(port)))
    };
    match (gateway, local) {
        (Some(served), local) if local.is_none() || all(&served) => Reach {
            ports: named(&|number| served.ports.contains(&number)),
            addresses: served.addresses.into_iter().take(ANSWERS_MAX).collect(),
            endpoints: Vec::new(),
        },
        (_, Some(addresses)) => Reach { addresses, ports: named(&|_| true), endpoints: Vec::new() },
        (_, None) => Reach::default(),
    }
}

/// Unnamed ports have no SRV record; a name that is no label cannot have one.
fn named_port(name: &str, protocol: &str, number: ServicePort) -> Option<NamedPort> {
    let is_label = |text: &str| {
        (1..=62).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (is_label(name) && is_label(protocol)).then(|| NamedPort {
        name: name.to_ascii_lowercase(),
        protocol: protocol.to_ascii_lowercase(),
        number,
    })
}

/// What a gateway, or several alike, serve of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Served {
    ports: BTreeSet<ServicePort>,
    addresses: BTreeSet<IpAddr>,
}

type ByGateway = BTreeMap<NsName, Served>;

/// Gateways that serve most of the ports; all that serve the same ones are alike.
fn best(gateways: &ByGateway) -> Option<Served> {
    let usable = || gateways.values().filter(|served| !served.addresses.is_empty());
    // Of two that serve equally many, the one with the lower ports: the same in every run.
    let ports = usable().map(|s| &s.ports).max_by_key(|p| (p.len(), std::cmp::Reverse(*p)))?;
    let alike = usable().filter(|served| served.ports == *ports);
    let addresses = alike.flat_map(|served| &served.addresses).copied().collect();
    Some(Served { ports: ports.clone(), addresses })
}

/// What our gateways serve under names of the clusterset.
fn by_gateway(input: &ClustersetInput<'_>) -> BTreeMap<NsName, ByGateway> {
    let mut found: BTreeMap<NsName, ByGateway> = BTreeMap::new();
    let Some(bundle) = input.bundle else { return found };
    let is_route = |id: &ObjectId| &*id.group == GATEWAY_GROUP && carries_hosts(&id.kind);
    for (id, object) in bundle.objects.iter().filter(|(id, _)| is_route(id)) {
        let in_force = input.live.get(id).is_some_and(|live| live.is_ours());
        if !in_force || input.refused.contains(id) {
            continue;
        }
        for (gateway, state, listener) in listeners(input.snapshot, id, &object.content) {
            for host in hosts(&object.content, listener) {
                let Some(service) = service_of(&host) else { continue };
                if !catches_all(bundle, id, &object.content, &service, listener.port) {
                    continue;
                }
                let served = found.entry(service).or_default().entry(gateway.clone()).or_default();
                served.ports.insert(listener.port);
                // No alias: a stub resolver does not follow one that leads out of the zone.
                let ips =
                    state.addresses.iter().flat_map(|address| ips_of(address, input.resolved));
                served.addresses.extend(ips);
            }
        }
    }
    found
}

fn carries_hosts(kind: &str) -> bool {
    matches!(kind, "HTTPRoute" | "GRPCRoute")
}

/// Listeners of our gateways that a rendered route is attached to.
fn listeners<'a>(
    snapshot: &'a Snapshot,
    route: &'a ObjectId,
    content: &'a Json,
) -> impl Iterator<Item = (NsName, &'a GatewayState, &'a ListenerState)> {
    let text = |value: &'a Json, key: &str| value.get(key).and_then(Json::as_str);
    let parents = content.pointer("/spec/parentRefs").and_then(Json::as_array);
    parents.into_iter().flatten().flat_map(move |parent| {
        let namespace = text(parent, "namespace").unwrap_or(&route.namespace);
        let name = NsName::new(namespace, text(parent, "name").unwrap_or_default());
        let section = text(parent, "sectionName");
        let port = parent.get("port").and_then(Json::as_u64);
        let state = snapshot.gateways.get(&name).filter(|s| s.programmed != Some(false));
        state.into_iter().flat_map(move |state| {
            let name = name.clone();
            let fits = move |(listener, it): &(&String, &ListenerState)| {
                section.is_none_or(|section| section == *listener)
                    && port.is_none_or(|port| port == u64::from(it.port))
                    && it.programmed != Some(false)
                    && matches!(it.protocol.as_str(), "HTTP" | "HTTPS")
            };
            state.listeners.iter().filter(fits).map(move |(_, it)| (name.clone(), state, it))
        })
    })
}

/// The exact host names by which a route is reached at a listener. A wildcard says too little: what else
/// answers below it is not known here.
fn hosts(content: &Json, listener: &ListenerState) -> Vec<String> {
    let of_listener = listener.hostname.as_ref().map(|host| host.to_ascii_lowercase());
    let of_route = content.pointer("/spec/hostnames").and_then(Json::as_array);
    let of_route = of_route.into_iter().flatten().filter_map(Json::as_str);
    let mut of_route: Vec<String> = of_route.map(str::to_ascii_lowercase).collect();
    let Some(of_listener) = of_listener else { return of_route };
    if of_route.is_empty() {
        return vec![of_listener];
    }
    of_route.retain(|host| {
        *host == of_listener || of_listener.strip_prefix('*').is_some_and(|end| host.ends_with(end))
    });
    of_route
}

/// `SERVICE.NAMESPACE.svc.clusterset.local`.
fn service_of(host: &str) -> Option<NsName> {
    let rest = host.strip_suffix(ZONE)?.strip_suffix(".svc.")?;
    let (service, namespace) = rest.split_once('.')?;
    let fits = |label: &str| !label.is_empty() && label != "*" && !label.contains('.');
    (fits(service) && fits(namespace)).then(|| NsName::new(namespace, service))
}

/// Whether a rule takes whatever no other rule takes, and leads to this port of the service.
fn catches_all(
    bundle: &Bundle,
    id: &ObjectId,
    content: &Json,
    service: &NsName,
    port: ServicePort,
) -> bool {
    let rules = content.pointer("/spec/rules").and_then(Json::as_array);
    let is_open = |rule: &Json| match rule.get("matches").and_then(Json::as_array) {
        None => true,
        Some(matches) => matches.is_empty() || matches.iter().any(takes_everything),
    };
    (0u16..).zip(rules.into_iter().flatten()).filter(|(_, rule)| is_open(rule)).any(|(at, _)| {
        let rule = RuleId { object: id.clone(), rule: at };
        let backends = bundle.recipes.get(&rule).into_iter().flat_map(|recipe| &recipe.backends);
        backends.into_iter().any(|backend| match &backend.serve {
            Serve::Members { service: of, port: at, .. } => of == service && *at == port,
            Serve::Fixed { .. } => false,
        })
    })
}

/// A match of nothing but the path prefix `/`, which is also the default.
fn takes_everything(of: &Json) -> bool {
    let Some(fields) = of.as_object() else { return false };
    let Some(path) = fields.get("path") else { return fields.is_empty() };
    let text = |key: &str, default: &'static str| match path.get(key) {
        None => Some(default),
        Some(value) => value.as_str(),
    };
    fields.len() == 1
        && text("type", "PathPrefix") == Some("PathPrefix")
        && text("value", "/") == Some("/")
}

fn cluster_ips(service: &LiveObject) -> BTreeSet<IpAddr> {
    let spec = service.content.get("spec");
    let all = spec.and_then(|spec| spec.get("clusterIPs")).and_then(Json::as_array);
    let one = spec.and_then(|spec| spec.get("clusterIP"));
    all.into_iter().flatten().chain(one).filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn is_headless(service: &LiveObject) -> bool {
    let spec = service.content.get("spec");
    let first = spec.and_then(|s| s.pointer("/clusterIPs/0").or_else(|| s.get("clusterIP")));
    first.and_then(Json::as_str) == Some("None")
}

/// Ready endpoints by Service, of the slices that were kept whole ([`is_headless_slice`]).
fn headless_slices(live: &LiveObjects) -> BTreeMap<NsName, Vec<Endpoint>> {
    let mut found: BTreeMap<NsName, Vec<Endpoint>> = BTreeMap::new();
    for (id, slice) in live.iter().filter(|(id, _)| &*id.kind == "EndpointSlice") {
        if slice.is_ours() {
            continue;
        }
        let service = slice.content.pointer("/metadata/labels").and_then(|l| l.get(SERVICE_NAME));
        let Some(service) = service.and_then(Json::as_str) else { continue };
        let endpoints = endpoints_of(&slice.content);
        found.entry(NsName::new(&id.namespace, service)).or_default().extend(endpoints);
    }
    found
}

/// Label that the EndpointSlice controller sets on slices of headless Services.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// Whether the endpoints of a slice are answers, so that they must be kept.
pub fn is_headless_slice(slice: &Json) -> bool {
    slice.pointer("/metadata/labels").is_some_and(|labels| labels.get(HEADLESS).is_some())
}

fn endpoints_of(slice: &Json) -> Vec<Endpoint> {
    let list = |key: &str| slice.get(key).and_then(Json::as_array).into_iter().flatten();
    let text = |value: &Json, key: &str| value.get(key).and_then(Json::as_str).map(str::to_owned);
    let port = |port: &Json| {
        let number = ServicePort::try_from(port.get("port")?.as_u64()?).ok()?;
        let protocol = text(port, "protocol").unwrap_or_else(|| "TCP".to_owned());
        named_port(&text(port, "name")?, &protocol, number)
    };
    let ports: BTreeSet<NamedPort> = list("ports").filter_map(port).collect();
    // No word is a yes, as the EndpointSlice API says.
    let is_ready = |endpoint: &&Json| {
        endpoint.pointer("/conditions/ready").and_then(Json::as_bool) != Some(false)
    };
    let endpoint = |endpoint: &Json| {
        let addresses = endpoint.get("addresses").and_then(Json::as_array).cloned();
        let hostname = text(endpoint, "hostname").map(|name| name.to_ascii_lowercase());
        let ports = ports.clone();
        addresses.into_iter().flatten().filter_map(move |address| {
            let address: IpAddr = address.as_str()?.parse().ok()?;
            let hostname = hostname.clone().unwrap_or_else(|| spelled(address));
            Some(Endpoint { hostname, address, ports: ports.clone() })
        })
    };
    list("endpoints").filter(is_ready).flat_map(endpoint).collect()
}

/// An address as a label.
fn spelled(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => address.to_string().replace('.', "-"),
        // In full: a label may not begin or end with a dash.
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("-"),
    }
}

#[cfg(test)]
#[path = "clusterset_tests.rs"]
mod tests;
