//! What folders cannot say, filled in: what only running clusters know, and what people leave out of
//! files. Every assumption is told. Nothing that a folder says is ever changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fairlead_crds::keys;
use fairlead_model::policy::MemberSpec;
use fairlead_model::snapshot::{
    Address, EndpointCounts, GatewayRole, GatewayState, Knock, ServiceState, Snapshot, SniState,
};
use fairlead_model::{ClusterUid, MemberId, NsName};
use fairlead_translate::ingest::hub::HubObjects;
use fairlead_translate::ingest::member::MemberObjects;
use serde_json::json;

use super::Folders;

/// What may be assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assume {
    /// Addresses and CAs of doors that the folders do not have.
    pub(crate) doors: Doors,
    /// Ready endpoints of an exported Service without EndpointSlices.
    pub(crate) endpoints: u32,
}

/// Whether doors that the folders do not have are assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doors {
    /// They are, with addresses and certificates from documentation.
    Assumed,
    /// Only those of the folders count.
    AsWritten,
}

/// Kinds of the Gateway API that a member without definitions is assumed to serve.
const KINDS: [&str; 8] = [
    "BackendTLSPolicy",
    "GRPCRoute",
    "Gateway",
    "HTTPRoute",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
];

/// Adds the GatewayClass and the MemberClusters that the hub's folder leaves out.
pub(crate) fn fill_folders(folders: &mut Folders, assumed: &mut Vec<String>) {
    let classes = &mut folders.hub.gateway_classes;
    if !classes.values().any(|class| class["spec"]["controllerName"] == keys::CONTROLLER_NAME) {
        let class = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": keys::GATEWAY_CLASS},
            "spec": {"controllerName": keys::CONTROLLER_NAME},
        });
        classes.insert(keys::GATEWAY_CLASS.into(), class);
        assumed.push(format!("hub: GatewayClass {}", keys::GATEWAY_CLASS));
    }
    for (id, folder) in &folders.members {
        if folders.hub.member_clusters.contains_key(id.as_str()) {
            continue;
        }
        let class = only_class(&folder.objects);
        let spec = class.as_ref().map_or_else(|| json!({}), |c| json!({"gatewayClassName": c}));
        let object = json!({
            "apiVersion": keys::API_VERSION,
            "kind": "MemberCluster",
            "metadata": {"name": id.as_str()},
            "spec": spec,
        });
        folders.hub.member_clusters.insert(id.to_string(), object);
        let class = class.unwrap_or_else(|| "none".into());
        assumed.push(format!("hub: MemberCluster {id} with gateway class {class}"));
    }
}

/// The class that `fairlead join` would propose; acceptance is not known here.
fn only_class(objects: &MemberObjects) -> Option<String> {
    let served = objects
        .gateway_classes
        .iter()
        .filter(|(_, class)| class["spec"]["controllerName"] != keys::CONTROLLER_NAME)
        .map(|(name, _)| name.clone());
    let used = objects.gateways.values().filter_map(|g| g["spec"]["gatewayClassName"].as_str());
    let served: BTreeSet<String> = served.collect();
    let used: BTreeSet<String> = used.map(str::to_owned).collect();
    let all = if served.is_empty() { used } else { served };
    if all.len() == 1 { all.into_iter().next() } else { None }
}

/// Namespaces of the hub's global gateways and routes.
pub(crate) fn namespaces_of(hub: &HubObjects) -> BTreeSet<String> {
    let gateways = hub.gateways.keys().map(|name| &name.namespace);
    let routes = hub.routes.keys().map(|key| &key.name.namespace);
    gateways.chain(routes).map(ToString::to_string).collect()
}

/// What is known of a member besides its objects.
pub(crate) struct Known<'a> {
    /// Its name.
    pub(crate) id: &'a MemberId,
    /// Its position among the members, from 1.
    pub(crate) number: usize,
    /// What the hub says of it.
    pub(crate) spec: Option<&'a MemberSpec>,
    /// Its crossing CA.
    pub(crate) ca_pem: Option<&'a str>,
    /// Namespaces that global routes and gateways live in.
    pub(crate) namespaces: &'a BTreeSet<String>,
}

/// Fills a member's snapshot.
pub(crate) fn fill_snapshot(
    snapshot: &mut Snapshot,
    known: &Known<'_>,
    assume: Assume,
    assumed: &mut Vec<String>,
) {
    let mut say = |text: String| assumed.push(format!("{}: {text}", known.id));
    env!("CARGO_PKG_VERSION").clone_into(&mut snapshot.cluster.agent_version);
    fill_uid(snapshot, known, &mut say);
    fill_kinds(snapshot, &mut say);
    fill_namespaces(snapshot, known, &mut say);
    for (name, service) in &mut snapshot.services {
        fill_endpoints(name, service, assume.endpoints, &mut say);
    }
    // Nobody can knock at a file.
    snapshot.door.knock = Knock::Shut;
    snapshot.door.sni = Some(SniState { knock: Knock::Shut, ..SniState::default() });
    snapshot.door.ca_pem = known.ca_pem.map(str::to_owned);
    if assume.doors == Doors::Assumed {
        fill_ca(snapshot, known, &mut say);
        fill_door(snapshot, known, &mut say);
    }
}

fn fill_uid(snapshot: &mut Snapshot, known: &Known<'_>, say: &mut impl FnMut(String)) {
    if snapshot.cluster.uid.is_some() {
        return;
    }
    let registered = known.spec.and_then(|spec| spec.uid.clone());
    snapshot.cluster.uid = registered.or_else(|| {
        let uid = format!("uid-of-{}", known.id);
        say(format!("cluster UID {uid}"));
        ClusterUid::new(&uid).ok()
    });
}

fn fill_kinds(snapshot: &mut Snapshot, say: &mut impl FnMut(String)) {
    let prefix = format!("{}/", keys::GATEWAY_GROUP);
    if snapshot.cluster.kinds.iter().any(|kind| kind.starts_with(&prefix)) {
        return;
    }
    snapshot.cluster.kinds.extend(KINDS.iter().map(|kind| format!("{prefix}v1/{kind}")));
    say("Gateway API v1 with all its kinds".into());
}

fn fill_namespaces(snapshot: &mut Snapshot, known: &Known<'_>, say: &mut impl FnMut(String)) {
    if snapshot.namespaces.iter().any(|namespace| namespace != "kube-system") {
        return;
    }
    let own = snapshot.services.keys().chain(snapshot.gateways.keys());
    let own: BTreeSet<String> = own.map(|name| name.namespace.to_string()).collect();
    snapshot.namespaces.extend(own.into_iter().chain(known.namespaces.iter().cloned()));
    let names: Vec<&str> = snapshot.namespaces.iter().map(String::as_str).collect();
    say(format!("namespaces {}", names.join(", ")));
}

fn fill_endpoints(
    name: &NsName,
    service: &mut ServiceState,
    endpoints: u32,
    say: &mut impl FnMut(String),
) {
    if endpoints == 0 || !service.zones.is_empty() {
        return;
    }
    service.zones.insert(String::new(), EndpointCounts { ready: endpoints, total: endpoints });
    say(format!("Service {name} has ready endpoints: {endpoints}"));
}

fn fill_ca(snapshot: &mut Snapshot, known: &Known<'_>, say: &mut impl FnMut(String)) {
    if snapshot.door.ca_pem.is_some() {
        return;
    }
    let text = BASE64_STANDARD.encode(format!("stands for the crossing CA of {}", known.id));
    snapshot.door.ca_pem =
        Some(format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"));
    say("a crossing CA that is none".into());
}

fn fill_door(snapshot: &mut Snapshot, known: &Known<'_>, say: &mut impl FnMut(String)) {
    let name = NsName::new(keys::NAMESPACE, keys::EAST_WEST_GATEWAY);
    let Some(class) = known.spec.and_then(|spec| spec.gateway_class.clone()) else {
        return;
    };
    let there = snapshot.gateways.get(&name);
    if there.is_some_and(|door| door.programmed == Some(true) && !door.addresses.is_empty()) {
        return;
    }
    let address = documentation_address(known.number);
    say(format!("its door is at {address}"));
    let door = GatewayState {
        class,
        role: GatewayRole::Door,
        programmed: Some(true),
        message: String::new(),
        addresses: [Address::Ip(address)].into(),
        listeners: there.map(|door| door.listeners.clone()).unwrap_or_default(),
    };
    snapshot.gateways.insert(name, door);
}

/// An address of RFC 5737 or RFC 3849: nobody has it.
fn documentation_address(number: usize) -> IpAddr {
    match u8::try_from(number) {
        Ok(last) if last < 255 => Ipv4Addr::new(192, 0, 2, last).into(),
        _ => {
            let last = u16::try_from(number).unwrap_or(u16::MAX);
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn known<'a>(id: &'a MemberId, none: &'a BTreeSet<String>) -> Known<'a> {
        Known { id, number: 3, spec: None, ca_pem: None, namespaces: none }
    }

    const ALL: Assume = Assume { doors: Doors::Assumed, endpoints: 2 };

    #[test]
    fn what_a_folder_says_is_not_changed() {
        let (id, none) = (MemberId::new("east").unwrap(), BTreeSet::new());
        let spec = MemberSpec { gateway_class: Some("eg".into()), ..MemberSpec::default() };
        let known = Known { spec: Some(&spec), ca_pem: Some("pem"), ..known(&id, &none) };
        let mut snapshot = Snapshot::default();
        fill_snapshot(&mut snapshot, &known, ALL, &mut Vec::new());
        snapshot.cluster.uid = Some(ClusterUid::new("real").unwrap());
        snapshot.namespaces.insert("shop".into());
        let (before, mut assumed) = (snapshot.clone(), Vec::new());
        fill_snapshot(&mut snapshot, &known, ALL, &mut assumed);
        assert_eq!(snapshot, before);
        assert_eq!(assumed, Vec::<String>::new());
    }

    #[test]
    fn services_without_slices_get_endpoints_and_others_keep_theirs() {
        let mut service = ServiceState::default();
        let name = NsName::new("a", "b");
        fill_endpoints(&name, &mut service, 2, &mut |_| ());
        assert_eq!(service.counts().ready, 2);
        service.zones.insert(String::new(), EndpointCounts { ready: 0, total: 3 });
        fill_endpoints(&name, &mut service, 2, &mut |_| ());
        assert_eq!(service.counts().ready, 0);
    }

    #[test]
    fn every_door_has_an_address_of_its_own() {
        let all: BTreeSet<IpAddr> = (1..=1_000).map(documentation_address).collect();
        assert_eq!(all.len(), 1_000);
    }

    #[test]
    fn the_only_class_is_taken_and_the_hubs_own_does_not_count() {
        let mut objects = MemberObjects::default();
        let mut put = |name: &str, controller: &str| {
            let class = json!({"spec": {"controllerName": controller}});
            objects.gateway_classes.insert(name.into(), class);
            only_class(&objects)
        };
        assert_eq!(put("fairlead", keys::CONTROLLER_NAME), None);
        assert_eq!(put("eg", "example.com/eg").as_deref(), Some("eg"));
        assert_eq!(put("traefik", "example.com/traefik"), None);
    }
}
