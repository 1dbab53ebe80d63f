//! From cached objects to snapshots and acceptance.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::cache::Read;
use crate::kind::{self, Trim};
use fairlead_agent_core::diff::KindKey;
use fairlead_agent_core::own;
use fairlead_model::snapshot::{EndpointCounts, Knock};
use serde_json::json;

fn cache_of(objects: Vec<(Trim, Json)>) -> Arc<Cache> {
    let kinds = kind::watched([]);
    let cache = Cache::new(kinds.iter().map(|k| KindKey::new(&k.group, &k.kind)));
    for kind in &kinds {
        cache.replace(&KindKey::new(&kind.group, &kind.kind), "v1", Vec::new());
    }
    for (trim, object) in objects {
        let trimmed = kind::trim(trim, object);
        let (id, live) = LiveObject::of(trimmed.object, trimmed.keep).unwrap();
        cache.put(Read { id, live, counts: trimmed.counts });
    }
    cache
}

fn mk(api: &str, kind: &str, name: &str, rest: Json) -> Json {
    let mut object =
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

fn slice(name: &str, ready: &[bool]) -> Json {
    let endpoints: Vec<Json> = ready
        .iter()
        .map(
            |ready| json!({"addresses": ["10.0.0.1"], "zone": "a", "conditions": {"ready": ready}}),
        )
        .collect();
    let mut slice = mk(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        name,
        json!({
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints}),
    );
    slice["metadata"]["labels"] = json!({own::SERVICE_NAME: "cart"});
    slice
}

fn observe(objects: Vec<(Trim, Json)>) -> (Snapshot, Vec<Note>) {
    let cache = cache_of(objects);
    let state = cache.read();
    snapshot_of(&state, &AgentConfig::default(), Facts::default(), DoorState::default())
}

fn cart() -> (Trim, Json) {
    (Trim::Service, mk("v1", "Service", "cart", json!({"spec": {"ports": [{"port": 80}]}})))
}

fn export() -> (Trim, Json) {
    (Trim::Nothing, mk("multicluster.x-k8s.io/v1beta1", "ServiceExport", "cart", json!({})))
}

#[test]
fn the_addresses_of_our_dns_service_are_reported() {
    let service = |labels: Json| {
        let mut service = mk(
            "v1",
            "Service",
            keys::SERVICE_DNS,
            json!({
                "spec": {"ports": [{"port": 53}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.53"}, {"hostname": "lb.example"}]}},
            }),
        );
        service["metadata"]["labels"] = labels;
        (Trim::Service, service)
    };
    let (ours, _) = observe(vec![service(json!({keys::PART_OF: keys::FAIRLEAD}))]);
    let wanted = [Address::of("192.0.2.53"), Address::of("lb.example")];
    assert_eq!(ours.cluster.dns_addresses, wanted.into());
    let (theirs, _) = observe(vec![service(json!({}))]);
    assert!(theirs.cluster.dns_addresses.is_empty());
}

#[test]
fn an_exported_service_is_reported_with_counts_of_its_slices() {
    let (snapshot, notes) = observe(vec![
        cart(),
        export(),
        (Trim::Slice, slice("cart-1", &[true, true, false])),
        (Trim::Slice, slice("cart-2", &[true])),
    ]);
    let service = &snapshot.services[&NsName::new("shop", "cart")];
    assert_eq!(
        service.zones,
        BTreeMap::from([("a".to_owned(), EndpointCounts { ready: 3, total: 4 })])
    );
    assert_eq!(notes, []);
}

#[test]
fn what_nobody_exports_is_not_reported_and_an_export_of_nothing_is_said() {
    assert!(observe(vec![cart()]).0.services.is_empty());
    let (snapshot, notes) = observe(vec![export()]);
    assert!(snapshot.services.is_empty());
    assert_eq!(notes[0].reason, Reason::NotExported);
}

#[test]
fn kinds_that_we_may_write_are_reported_with_their_version() {
    let (snapshot, _) = observe(vec![]);
    assert!(snapshot.cluster.kinds.contains("gateway.networking.k8s.io/v1/HTTPRoute"));
    assert!(snapshot.cluster.kinds.contains("/v1/Service"));
    assert!(!snapshot.cluster.kinds.iter().any(|kind| kind.ends_with("/Node")));
}

#[test]
fn the_door_and_the_facts_are_reported_as_given() {
    let cache = cache_of(vec![]);
    let state = cache.read();
    let door = DoorState {
        ca_pem: Some("pem".to_owned()),
        knock: Knock::Shut,
        message: "m".to_owned(),
        ..DoorState::default()
    };
    let facts = Facts { kubernetes_version: "v1.36.3".to_owned(), ..Facts::default() };
    let (snapshot, _) = snapshot_of(&state, &AgentConfig::default(), facts, door.clone());
    assert_eq!(snapshot.door, door);
    assert_eq!(snapshot.cluster.kubernetes_version, "v1.36.3");
    assert!(!snapshot.cluster.agent_version.is_empty());
}

#[test]
fn what_the_gateways_controller_says_against_a_route_of_ours_is_found() {
    let gateway = mk(
        "gateway.networking.k8s.io/v1",
        "Gateway",
        "public",
        json!({"spec": {"gatewayClassName": "eg"}}),
    );
    let mut class = mk(
        "gateway.networking.k8s.io/v1",
        "GatewayClass",
        "eg",
        json!({"spec": {"controllerName": "a/b"}}),
    );
    class["metadata"].as_object_mut().unwrap().remove("namespace");
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Odd", "message": "m"});
    let mut route = mk(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "cart-global",
        json!({
        "spec": {"parentRefs": [{"name": "public"}]},
        "status": {"parents": [
            {"controllerName": "other/one", "conditions": [condition("Accepted", "True")]},
            {"controllerName": "a/b", "conditions": [condition("Accepted", "False")]}]}}),
    );
    route["metadata"]["labels"] = json!({own::MANAGED_BY: own::FAIRLEAD});
    let id = ObjectId::of(&route).unwrap();
    let cache =
        cache_of(vec![(Trim::Nothing, gateway), (Trim::Nothing, class), (Trim::ToIdentity, route)]);
    let state = cache.read();
    let (reason, message) = Controllers::of(&state).complaint(&id, &state.live[&id]).unwrap();
    assert_eq!((reason, message.contains("Odd")), (Reason::NotAcceptedByGateway, true));
}
