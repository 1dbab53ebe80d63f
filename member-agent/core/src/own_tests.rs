//! What an agent does not take from a hub.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use serde_json::json;

fn limits() -> Limits {
    let exports = BTreeSet::from([NsName::new("shop", "cart")]);
    Limits {
        denied: BTreeSet::from(["kube-system".to_owned()]),
        exports: Some(exports),
        ..Limits::open("fairlead-system")
    }
}

fn bundle_of(content: Json, claim: Claim) -> Bundle {
    let id = ObjectId::of(&content).unwrap();
    let object = BundleObject { content, gate: Gate::Open, claim };
    Bundle { objects: [(id, object)].into(), ..Bundle::default() }
}

/// What becomes of one object: its content, or the reason against it.
fn fate_of(content: Json, claim: Claim, limits: &Limits) -> Result<Json, (Reason, &'static str)> {
    let prepared = prepare(&bundle_of(content, claim), &BTreeMap::new(), limits);
    if let Some(wanted) = prepared.wanted.values().next() {
        return Ok((*wanted.content).clone());
    }
    match prepared.refused.values().next() {
        Some(why) => Err((why.reason, "keep")),
        None => Err((prepared.withdrawn.values().next().unwrap().reason, "withdraw")),
    }
}

fn whole(content: Json) -> Result<Json, (Reason, &'static str)> {
    fate_of(content, Claim::Whole, &limits())
}

fn mk(api: &str, kind: &str, namespace: &str, name: &str, rest: Json) -> Json {
    let mut object = json!({"apiVersion": api, "kind": kind,
        "metadata": {"name": name, "namespace": namespace}});
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

const GATEWAY_V1: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "fairlead-system";

#[test]
fn only_metadata_that_is_ours_to_set_survives() {
    let mut route =
        mk(GATEWAY_V1, "HTTPRoute", "shop", "cart-global", json!({"spec": {"x": null}}));
    route["metadata"]["ownerReferences"] = json!([{"uid": "hub"}]);
    route["metadata"]["finalizers"] = json!(["stay"]);
    route["metadata"]["labels"] = json!({"team": "a", MANAGED_BY: "somebody"});
    route["status"] = json!({"parents": []});
    let got = whole(route).unwrap();
    let meta = got["metadata"].as_object().unwrap();
    assert_eq!(meta.keys().collect::<Vec<_>>(), ["annotations", "labels", "name", "namespace"]);
    assert_eq!(got["metadata"]["labels"], json!({"team": "a", MANAGED_BY: FAIRLEAD}));
    assert_eq!(got["metadata"]["annotations"][DIGEST].as_str().unwrap().len(), 32);
    assert_eq!(got.get("status"), None);
    assert_eq!(got["spec"], json!({}));
}

#[test]
fn the_digest_is_of_the_content_and_not_of_itself() {
    let route = |weight: u32| {
        mk(GATEWAY_V1, "HTTPRoute", "shop", "cart-global", json!({"spec": {"weight": weight}}))
    };
    let one = whole(route(1)).unwrap();
    let again = whole(one.clone()).unwrap();
    assert_eq!(one, again, "what was prepared once is prepared the same");
    let other = whole(route(2)).unwrap();
    assert_ne!(one["metadata"]["annotations"], other["metadata"]["annotations"]);
}

#[test]
fn secrets_and_everything_else_are_not_written() {
    let refused = Err((Reason::NotOurKind, "keep"));
    for (api, kind) in [
        ("v1", "Secret"),
        ("v1", "Pod"),
        ("apps/v1", "Deployment"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("gateway.envoyproxy.io/v1alpha1", "EnvoyExtensionPolicy"),
        ("gateway.networking.k8s.io.evil/v1", "HTTPRoute"),
    ] {
        assert_eq!(whole(mk(api, kind, OURS, "member-east", json!({}))), refused, "{kind}");
    }
    let cluster_wide = json!({"apiVersion": GATEWAY_V1, "kind": "GatewayClass",
        "metadata": {"name": "x"}});
    assert_eq!(whole(cluster_wide), refused);
}

#[test]
fn a_kind_that_the_configuration_allows_may_follow() {
    let policy =
        mk("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy", "shop", "a", json!({}));
    let mut open = limits();
    let key = ("gateway.envoyproxy.io".to_owned(), "BackendTrafficPolicy".to_owned());
    open.following.insert(key);
    assert!(fate_of(policy, Claim::Whole, &open).is_ok());
}

#[test]
fn in_a_namespace_that_the_member_keeps_what_is_there_is_withdrawn() {
    let route = |ns: &str| mk(GATEWAY_V1, "HTTPRoute", ns, "a-global", json!({}));
    assert_eq!(whole(route("kube-system")), Err((Reason::NamespaceNotAllowed, "withdraw")));
    let narrow = Limits { allowed: Some(["shop".to_owned()].into()), ..limits() };
    assert!(fate_of(route("shop"), Claim::Whole, &narrow).is_ok());
    assert!(fate_of(route(OURS), Claim::Whole, &narrow).is_ok(), "our own is always ours");
    let other = fate_of(route("bank"), Claim::Whole, &narrow);
    assert_eq!(other, Err((Reason::NamespaceNotAllowed, "withdraw")));
}

#[test]
fn services_and_slices_are_those_of_members_doors() {
    let service =
        |ns: &str, name: &str, spec: Json| mk("v1", "Service", ns, name, json!({"spec": spec}));
    let ports = json!({"ports": [{"name": "eastwest", "port": 15443}]});
    assert!(whole(service(OURS, "member-east", ports.clone())).is_ok());
    for bad in [
        service("shop", "member-east", ports.clone()),
        service(OURS, "fairlead-agent", ports),
        service(OURS, "member-east", json!({"selector": {"app": "a"}})),
        service(OURS, "member-east", json!({"type": "ExternalName", "externalName": "x"})),
    ] {
        assert_eq!(whole(bad), Err((Reason::NotOurKind, "keep")));
    }
    let slice = |service: &str, address: &str| {
        let mut slice = mk(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            OURS,
            "member-east-v4",
            json!({"endpoints": [{"addresses": [address]}]}),
        );
        slice["metadata"]["labels"] = json!({SERVICE_NAME: service});
        slice
    };
    assert!(whole(slice("member-east", "192.0.2.2")).is_ok());
    for (service, address) in [
        ("fairlead-agent", "192.0.2.2"),
        ("member-east", "127.0.0.1"),
        ("member-east", "::ffff:127.0.0.1"),
        ("member-east", "169.254.169.254"),
        ("member-east", "fe80::1"),
        ("member-east", "0.0.0.0"),
        ("member-east", "door.example.com"),
    ] {
        assert_eq!(whole(slice(service, address)), Err((Reason::NotOurKind, "keep")), "{address}");
    }
}

#[test]
fn grants_reach_exported_services_and_nothing_else() {
    let grant = |ns: &str, from: &str, to: Json| {
        mk(
            "gateway.networking.k8s.io/v1",
            "ReferenceGrant",
            ns,
            "fairlead-eastwest",
            json!({"spec": {
            "from": [{"group": GATEWAY_GROUP, "kind": "HTTPRoute", "namespace": from}], "to": to}}),
        )
    };
    let to = |kind: &str, name: &str| json!({"group": "", "kind": kind, "name": name});
    let both = json!([to("Service", "cart"), to("Service", "bank")]);
    let got = whole(grant("shop", OURS, both)).unwrap();
    assert_eq!(got["spec"]["to"], json!([to("Service", "cart")]), "bank is not exported");
    let none = whole(grant("shop", OURS, json!([to("Service", "bank")])));
    assert_eq!(none, Err((Reason::NotExported, "withdraw")));
    for bad in [
        grant("shop", OURS, json!([{"group": "", "kind": "Service"}])),
        grant("shop", OURS, json!([to("Secret", "cart")])),
        grant("shop", "bank", json!([to("Service", "cart")])),
        grant(OURS, "shop", json!([to("Secret", "fairlead-crossing-ca")])),
        grant(OURS, "shop", json!([to("Service", "fairlead-agent")])),
        grant(OURS, "shop", json!([])),
    ] {
        assert_eq!(whole(bad), Err((Reason::NotOurKind, "keep")));
    }
    assert!(whole(grant(OURS, "shop", json!([to("Service", "member-east")]))).is_ok());
    assert!(whole(grant(OURS, "infra", json!([to("Secret", SECRET_CLIENT)]))).is_ok());
    let unknown = Limits { exports: None, ..limits() };
    let early =
        fate_of(grant("shop", OURS, json!([to("Service", "cart")])), Claim::Whole, &unknown);
    assert_eq!(early, Err((Reason::Frozen, "keep")));
}

#[test]
fn policies_and_config_maps_are_those_of_members() {
    let policy = |ns: &str, target: &str| {
        mk(
            GATEWAY_V1,
            "BackendTLSPolicy",
            ns,
            "member-east",
            json!({"spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": target}]}}),
        )
    };
    assert!(whole(policy(OURS, "member-east")).is_ok());
    assert!(whole(policy(OURS, "cart")).is_err());
    assert!(whole(policy("shop", "member-east")).is_err());
    assert!(whole(mk("v1", "ConfigMap", OURS, "member-east", json!({}))).is_ok());
    assert!(whole(mk("v1", "ConfigMap", OURS, "fairlead-eastwest-callers", json!({}))).is_ok());
    assert!(whole(mk("v1", "ConfigMap", OURS, "fairlead-agent-config", json!({}))).is_err());
    assert!(whole(mk("v1", "ConfigMap", "shop", "member-east", json!({}))).is_err());
}

#[test]
fn of_a_lent_gateway_only_our_client_certificate_is_set() {
    let gateway = |name: &str| {
        let mut gateway = mk(
            GATEWAY_V1,
            "Gateway",
            "infra",
            "public",
            json!({"spec": {
            "gatewayClassName": "evil",
            "tls": {"backend": {"clientCertificateRef": {"name": name, "namespace": OURS}}}}}),
        );
        gateway["metadata"]["labels"] = json!({"x": "y"});
        gateway
    };
    let got = fate_of(gateway(SECRET_CLIENT), Claim::Fields, &limits()).unwrap();
    assert_eq!(got["spec"].as_object().unwrap().len(), 1, "the class is not touched");
    assert_eq!(got["metadata"], json!({"name": "public", "namespace": "infra"}));
    let other = fate_of(gateway("shop-tls"), Claim::Fields, &limits());
    assert_eq!(other, Err((Reason::NotOurKind, "keep")));
    let route = mk(GATEWAY_V1, "HTTPRoute", "shop", "cart", json!({}));
    assert!(fate_of(route, Claim::Fields, &limits()).is_err());
}

#[test]
fn content_under_a_wrong_id_is_refused() {
    let mut bundle = bundle_of(mk(GATEWAY_V1, "HTTPRoute", "shop", "a", json!({})), Claim::Whole);
    let object = bundle.objects.values_mut().next().unwrap();
    object.content = mk("v1", "Secret", "shop", "a", json!({}));
    let prepared = prepare(&bundle, &BTreeMap::new(), &limits());
    assert_eq!(prepared.refused.values().next().unwrap().reason, Reason::Unreadable);
    assert!(prepared.wanted.is_empty());
}

fn door(listeners: Json) -> Json {
    mk(GATEWAY_V1, "Gateway", OURS, "fairlead-eastwest", json!({"spec": {"listeners": listeners}}))
}

#[test]
fn doors_that_prove_nothing_need_the_members_own_consent() {
    let listeners = json!([
        {"name": "https", "protocol": "HTTPS", "tls": {"mode": "Terminate"}},
        {"name": "tls", "protocol": "TLS", "tls": {"mode": "Terminate"}},
        {"name": "pass", "protocol": "TLS", "tls": {"mode": "Passthrough"}},
        {"name": "http", "protocol": "HTTP"},
        {"name": "udp-15445", "protocol": "UDP"},
    ]);
    let route = |namespace| mk(GATEWAY_V1, "UDPRoute", namespace, "shop.dns.53.port", json!({}));
    let names = |gateway: Json| {
        let listeners = gateway["spec"]["listeners"].as_array().unwrap().clone();
        listeners.iter().map(|l| l["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(whole(door(listeners.clone())).unwrap()), ["https", "tls"]);
    assert_eq!(whole(route(OURS)), Err((Reason::NotOurKind, "withdraw")));
    assert!(whole(route("shop")).is_ok(), "a route of an entry asks for no consent");
    let open = Limits { weak: [WeakDoor::Open].into(), ..limits() };
    let got = fate_of(door(listeners), Claim::Whole, &open).unwrap();
    assert_eq!(names(got).len(), 5);
    assert!(fate_of(route(OURS), Claim::Whole, &open).is_ok());
    let server_only = Limits { weak: [WeakDoor::ServerOnly].into(), ..limits() };
    assert!(fate_of(route(OURS), Claim::Whole, &server_only).is_err());
}
