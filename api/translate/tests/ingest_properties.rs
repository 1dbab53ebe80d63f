//! Whatever API servers hand out, reading it ends, is repeatable, and what cannot be read widens nothing.
#![expect(clippy::unwrap_used, reason = "tests")]

mod arbitrary;

use std::collections::BTreeMap;

use fairlead_model::{Json, NsName};
use fairlead_translate::ingest::hub::{HubObjects, ingest_hub};
use fairlead_translate::ingest::member::{
    AgentConfig, ExportPolicy, MemberObjects, ingest_route_acceptance, ingest_snapshot,
};
use fairlead_translate::status;
use proptest::prelude::*;
use serde_json::json;

const NOW: &str = "2026-01-01T00:00:00Z";

fn class() -> Json {
    json!({"metadata": {"name": "fairlead", "generation": 1}, "spec": {"controllerName": "fairlead.dev/hub"}})
}

fn gateway() -> Json {
    json!({
        "metadata": {"name": "public", "namespace": "infra", "generation": 1, "creationTimestamp": "2025-01-01T00:00:00Z",
            "annotations": {"fairlead.dev/global-gateway": "infra/public"}},
        "spec": {"gatewayClassName": "fairlead", "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example.com",
             "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchExpressions": [
                {"key": "team", "operator": "NotIn", "values": ["x"]}]}}, "kinds": [{"kind": "HTTPRoute"}]}}]},
        "status": {"addresses": [{"type": "IPAddress", "value": "192.0.2.1"}], "conditions": [
            {"type": "Programmed", "status": "True", "observedGeneration": 1, "reason": "Programmed", "message": ""}],
            "listeners": [{"name": "http", "conditions": []}]},
    })
}

fn policy() -> Json {
    json!({
        "metadata": {"name": "p", "namespace": "shop", "generation": 1},
        "spec": {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "cart", "sectionName": "main"}],
            "tiers": [{"members": {"names": ["east"]}, "split": "Weights", "weights": {"east": 1}},
                {"members": {"selector": {"matchLabels": {"a": "b"}}}}, {"members": {"scope": "Any"}}],
            "failover": {"healthyPercent": 70}, "staleMember": {"mode": "Drain", "keepForSeconds": 5}},
    })
}

fn grant() -> Json {
    json!({"metadata": {"name": "g", "namespace": "bank"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
        "to": [{"group": "multicluster.x-k8s.io", "kind": "ServiceImport"}]}})
}

fn member_cluster() -> Json {
    json!({"metadata": {"name": "east"}, "spec": {"clusterUID": "u", "location": {"region": "eu"},
        "eastWest": {"port": 443, "addresses": ["192.0.2.1"]}}})
}

fn dns_policy() -> Json {
    json!({"metadata": {"name": "names", "namespace": "infra", "generation": 2},
        "spec": {"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}],
            "zone": "example.com", "strategy": "Geo", "ttlSeconds": 30, "maxAnswers": 2,
            "networks": [{"cidr": "10.0.0.0/8", "region": "eu"}], "whenNoneHealthy": "Fallback",
            "fallback": ["192.0.2.1"], "weights": {"east": 1}, "tiers": [{"members": ["east"]}],
            "nameServers": ["ns.example.org"], "publish": "Authoritative"}})
}

fn key(text: &str) -> NsName {
    text.parse().unwrap()
}

fn listener_set() -> Json {
    json!({"metadata": {"name": "set", "namespace": "shop", "generation": 2},
        "spec": {"parentRef": {"name": "public", "namespace": "infra"}, "listeners": [
            {"name": "more", "port": 443, "protocol": "HTTPS", "hostname": "more.example.com",
                "tls": {"certificateRefs": [{"name": "cert"}]}, "allowedRoutes": {"namespaces": {"from": "Same"}}}]}})
}

fn hub() -> impl Strategy<Value = HubObjects> {
    let follower = "gateway.envoyproxy.io/v1alpha1/BackendTrafficPolicy/shop/p";
    let any = arbitrary::damaged;
    (
        any(class()),
        (any(gateway()), any(listener_set())),
        any(arbitrary::route()),
        any(policy()),
        any(grant()),
        any(member_cluster()),
        any(dns_policy()),
    )
        .prop_map(move |(class, (gateway, set), route, policy, grant, member, dns)| {
            HubObjects {
                gateway_classes: [("fairlead".to_owned(), class)].into(),
                gateways: [(key("infra/public"), gateway)].into(),
                listener_sets: [(key("shop/set"), set)].into(),
                routes: [("HTTPRoute/shop/cart".parse().unwrap(), route)].into(),
                followers: [(follower.parse().unwrap(), policy.clone())].into(),
                traffic_policies: [(key("shop/p"), policy)].into(),
                reference_grants: [(key("bank/g"), grant)].into(),
                member_clusters: [("east".to_owned(), member)].into(),
                dns_policies: [(key("infra/names"), dns)].into(),
                namespaces: BTreeMap::new(),
                service_imports: BTreeMap::new(),
                pins: BTreeMap::new(),
            }
        })
}

fn service() -> Json {
    json!({"metadata": {"name": "cart", "namespace": "shop", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "http"}]}})
}

fn slice() -> Json {
    json!({"metadata": {"name": "cart-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["192.0.2.1"], "zone": "a", "conditions": {"ready": true, "terminating": false}},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": null}}]})
}

fn node() -> Json {
    json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "a"}}})
}

fn definition() -> Json {
    json!({"metadata": {"name": "httproutes.gateway.networking.k8s.io", "annotations": {
            "gateway.networking.k8s.io/bundle-version": "v1.6.1", "gateway.networking.k8s.io/channel": "standard"}},
        "spec": {"group": "gateway.networking.k8s.io", "names": {"kind": "HTTPRoute"},
            "versions": [{"name": "v1", "served": true}, {"name": "v1beta1", "served": false}]}})
}

fn namespace() -> Json {
    json!({"metadata": {"name": "kube-system", "uid": "5b0c"}})
}

fn member_objects(parts: [Json; 7]) -> MemberObjects {
    let [service, slice, gateway, grant, node, definition, namespace] = parts;
    MemberObjects {
        services: [(key("shop/cart"), service.clone())].into(),
        exports: [(key("shop/cart"), service)].into(),
        slices: [(key("shop/cart-1"), slice)].into(),
        gateways: [(key("infra/public"), gateway)].into(),
        grants: [(key("shop/g"), grant)].into(),
        nodes: [("n".to_owned(), node)].into(),
        definitions: [("d".to_owned(), definition)].into(),
        namespaces: [("kube-system".to_owned(), namespace)].into(),
        gateway_classes: [("eg".to_owned(), class())].into(),
    }
}

fn member() -> impl Strategy<Value = MemberObjects> {
    let any = |object: Json| arbitrary::damaged(object);
    (
        any(service()),
        any(slice()),
        any(gateway()),
        any(grant()),
        any(node()),
        any(definition()),
        any(namespace()),
    )
        .prop_map(|(a, b, c, d, e, f, g)| member_objects([a, b, c, d, e, f, g]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_hub_objects_are_read_and_said(objects in hub(), existing in arbitrary::json_value()) {
        let found = ingest_hub(&objects);
        prop_assert_eq!(&ingest_hub(&objects), &found);
        for route in found.policy.routes.values() {
            // What render relies on: positions agree.
            let written = route.spec["rules"].as_array().map_or(0, Vec::len);
            prop_assert_eq!(written, route.rules.len());
            for (raw, rule) in route.spec["rules"].as_array().into_iter().flatten().zip(&route.rules) {
                prop_assert_eq!(raw["backendRefs"].as_array().map_or(0, Vec::len), rule.backends.len());
            }
        }
        let members = status::MemberSummary::default();
        for verdict in found.classes.values() {
            status::gateway_class_status(&existing, verdict, NOW);
        }
        for verdict in found.gateways.values() {
            let facts = status::GatewayFacts::default();
            let first = status::gateway_status(&existing, verdict, &facts, NOW);
            prop_assert_eq!(&status::gateway_status(&first, verdict, &facts, "later"), &first);
        }
        for verdict in found.routes.values() {
            let first = status::route_status(&existing, verdict, &members, None, NOW);
            prop_assert_eq!(&status::route_status(&first, verdict, &members, None, "later"), &first);
        }
        for verdict in found.policies.values() {
            let first = status::traffic_policy_status(&existing, verdict, NOW);
            prop_assert!(!status::changed(&first, &status::traffic_policy_status(&first, verdict, "later")));
        }
    }

    #[test]
    fn any_member_objects_are_read(objects in member()) {
        for export_policy in [ExportPolicy::Explicit, ExportPolicy::All] {
            let config = AgentConfig { export_policy, ..AgentConfig::default() };
            let (snapshot, notes) = ingest_snapshot(&objects, &config);
            prop_assert_eq!(ingest_snapshot(&objects, &config), (snapshot.clone(), notes));
            for service in snapshot.services.values() {
                prop_assert!(service.zones.values().all(|zone| zone.ready <= zone.total));
            }
        }
    }

    #[test]
    fn any_route_status_is_read(route in arbitrary::damaged(arbitrary::route())) {
        ingest_route_acceptance(&route, "example.com/gw");
    }

    #[test]
    fn unknown_fields_of_a_route_survive(unknown in arbitrary::json_value()) {
        let mut route = arbitrary::route();
        let places = ["/spec", "/spec/rules/0", "/spec/rules/0/matches/0", "/spec/rules/0/backendRefs/0", "/spec/rules/0/filters/0"];
        for place in places {
            route.pointer_mut(place).unwrap()["fromTheFuture"] = unknown.clone();
        }
        let key = "HTTPRoute/shop/cart".parse().unwrap();
        let mut gateway = gateway();
        gateway["spec"]["listeners"][0]["allowedRoutes"] = json!({"namespaces": {"from": "All"}});
        let objects = HubObjects {
            gateway_classes: [("fairlead".to_owned(), class())].into(),
            gateways: [(NsName::new("infra", "public"), gateway)].into(),
            routes: [(key, route.clone())].into(),
            ..HubObjects::default()
        };
        let found = ingest_hub(&objects);
        prop_assert_eq!(&*found.policy.routes.values().next().unwrap().spec, &route["spec"]);
    }
}

#[test]
fn objects_of_a_member_come_to_its_snapshot() {
    let objects =
        member_objects([service(), slice(), gateway(), grant(), node(), definition(), namespace()]);
    let mut gathered = MemberObjects::default();
    for (api_version, kind, object) in [
        ("v1", "Service", service()),
        ("discovery.k8s.io/v1", "EndpointSlice", slice()),
        ("multicluster.x-k8s.io/v1beta1", "ServiceExport", service()),
        ("v1", "Node", node()),
        ("v1", "Namespace", namespace()),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition", definition()),
    ] {
        let mut object = object;
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        assert!(gathered.insert(object));
    }
    assert!(!gathered.insert(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "namespace": "b"}})
    ));
    let (snapshot, _) = ingest_snapshot(&gathered, &AgentConfig::default());
    assert_eq!(snapshot.services, ingest_snapshot(&objects, &AgentConfig::default()).0.services);
    let counts = snapshot.services[&key("shop/cart")].counts();
    assert_eq!((counts.ready, counts.total), (2, 2));
    let cluster = snapshot.cluster;
    assert_eq!((cluster.region.as_deref(), cluster.zone.as_deref()), (Some("eu"), Some("a")));
    assert_eq!(cluster.uid.unwrap().as_str(), "5b0c");
    assert_eq!(cluster.gateway_api_version.as_deref(), Some("v1.6.1"));
    assert!(cluster.kinds.contains("gateway.networking.k8s.io/v1/HTTPRoute"));
    assert!(!cluster.kinds.contains("gateway.networking.k8s.io/v1beta1/HTTPRoute"));
}
