//! Which address serves a name of the clusterset, as tables.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fairlead_model::bundle::{BundleObject, Claim, Gate};
use fairlead_model::dns::DnsName;
use fairlead_model::recipe::{RECIPE_VERSION, Recipe, RecipeBackend, WhenUnavailable};
use fairlead_model::snapshot::{Address, EndpointCounts, GatewayRole, PortState, ServiceState};
use serde_json::json;

use super::*;
use crate::live::Keep;
use crate::names::Found;

const HOST: &str = "cart.shop.svc.clusterset.local";

fn cart() -> NsName {
    NsName::new("shop", "cart")
}

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A cluster to be changed by each test.
#[derive(Default)]
struct World {
    bundle: Bundle,
    snapshot: Snapshot,
    live: LiveObjects,
    resolved: Resolved,
    refused: BTreeSet<ObjectId>,
}

impl World {
    fn reach(&self) -> Clusterset {
        reach(&ClustersetInput {
            bundle: Some(&self.bundle),
            snapshot: &self.snapshot,
            live: &self.live,
            resolved: &self.resolved,
            refused: &self.refused,
        })
    }

    fn addresses(&self) -> Option<BTreeSet<IpAddr>> {
        self.reach().get(&cart()).map(|reach| reach.addresses.clone())
    }

    fn put(mut self, object: Json) -> Self {
        let (id, live) = LiveObject::of(object, Keep::Whole).unwrap();
        self.live.insert(id, Arc::new(live));
        self
    }

    /// The Service, exported, with ports `http` 80 and `metrics` 9090.
    fn exported(mut self, ready: u32, spec: Json) -> Self {
        let port = |name: &str| PortState {
            name: name.to_owned(),
            protocol: "TCP".to_owned(),
            app_protocol: String::new(),
        };
        let state = ServiceState {
            ports: [(80, port("http")), (9_090, port("metrics"))].into(),
            zones: [(String::new(), EndpointCounts { ready, total: 3 })].into(),
            ..ServiceState::default()
        };
        self.snapshot.services.insert(cart(), state);
        self.put(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "cart", "namespace": "shop"}, "spec": spec}))
    }

    fn gateway(mut self, listeners: &[(&str, u16, &str, Option<&str>)]) -> Self {
        let listener = |(name, port, protocol, host): &(&str, u16, &str, Option<&str>)| {
            let state = ListenerState {
                port: *port,
                protocol: (*protocol).to_owned(),
                hostname: host.map(str::to_owned),
                programmed: Some(true),
                message: String::new(),
            };
            ((*name).to_owned(), state)
        };
        let state = GatewayState {
            class: "eg".to_owned(),
            role: GatewayRole::Created(NsName::new("infra", "public")),
            programmed: Some(true),
            message: String::new(),
            addresses: [Address::of("192.0.2.1"), Address::of("2001:db8::1")].into(),
            listeners: listeners.iter().map(listener).collect(),
        };
        self.snapshot.gateways.insert(NsName::new("infra", "public-global"), state);
        self
    }

    /// A route whose rules lead to the service's port, with these matches.
    fn route(mut self, hostnames: Json, matches: &[Json], port: ServicePort) -> Self {
        let rule = |matches: &Json| json!({"matches": matches, "backendRefs": [{"name": "x"}]});
        let content = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "cart-global", "namespace": "shop",
                "labels": {"app.kubernetes.io/managed-by": "fairlead"}},
            "spec": {"hostnames": hostnames, "rules": matches.iter().map(rule).collect::<Vec<_>>(),
                "parentRefs": [{"name": "public-global", "namespace": "infra"}]}});
        let id = ObjectId::of(&content).unwrap();
        let object =
            BundleObject { content: content.clone(), gate: Gate::Open, claim: Claim::Whole };
        self.bundle.objects.insert(id.clone(), object);
        for at in 0..u16::try_from(matches.len()).unwrap() {
            let serve = Serve::Members {
                service: cart(),
                port,
                tiers: Vec::new(),
                when_unavailable: WhenUnavailable::default(),
            };
            let backends = vec![RecipeBackend { weight: 1, serve }];
            let recipe = Recipe { version: RECIPE_VERSION, backends, weights: vec![1] };
            self.bundle.recipes.insert(RuleId { object: id.clone(), rule: at }, recipe);
        }
        self.put(content)
    }
}

fn web() -> World {
    World::default().gateway(&[("http", 80, "HTTP", None)])
}

fn own_ip() -> Json {
    json!({"clusterIPs": ["10.96.0.7", "fd00::7"]})
}

const GATEWAY: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const OWN: [&str; 2] = ["10.96.0.7", "fd00::7"];

#[test]
fn an_address_is_named_only_where_it_serves_the_service() {
    let all = || vec![json!([{"path": {"type": "PathPrefix", "value": "/"}}])];
    let hosts = || json!([HOST]);
    let cases: Vec<(&str, World, Option<&[&str]>)> = vec![
        ("nothing is known", web(), None),
        ("exported, ready", web().exported(2, own_ip()), Some(&OWN)),
        ("exported, nothing ready", web().exported(0, own_ip()), Some(&[])),
        ("a route under the name", web().route(hosts(), &all(), 80), Some(&GATEWAY)),
        (
            "the gateway serves one port of two, and here is something ready",
            web().exported(2, own_ip()).route(hosts(), &all(), 80),
            Some(&OWN),
        ),
        (
            "the gateway serves one port of two, and nothing is ready here",
            web().exported(0, own_ip()).route(hosts(), &all(), 80),
            Some(&GATEWAY),
        ),
        ("a rule without matches", web().route(hosts(), &[json!([])], 80), Some(&GATEWAY)),
        (
            "capitals",
            web().route(json!(["Cart.Shop.svc.clusterset.LOCAL"]), &all(), 80),
            Some(&GATEWAY),
        ),
        ("another name", web().route(json!(["shop.example.com"]), &all(), 80), None),
        ("a wildcard", web().route(json!(["*.shop.svc.clusterset.local"]), &all(), 80), None),
        ("any name", web().route(json!([]), &all(), 80), None),
        ("another port", web().route(hosts(), &all(), 8_080), None),
        ("one path", web().route(hosts(), &[json!([{"path": {"value": "/cart"}}])], 80), None),
        (
            "a header is asked for",
            web().route(hosts(), &[json!([{"headers": [{"name": "a", "value": "b"}]}])], 80),
            None,
        ),
        (
            "one path, then everything",
            web().route(hosts(), &[json!([{"path": {"value": "/x"}}]), json!([{"path": {}}])], 80),
            Some(&GATEWAY),
        ),
        (
            "the listener's host name",
            World::default().gateway(&[("http", 80, "HTTP", Some(HOST))]).route(
                json!(null),
                &all(),
                80,
            ),
            Some(&GATEWAY),
        ),
        (
            "a listener for other names",
            World::default().gateway(&[("http", 80, "HTTP", Some("*.example.com"))]).route(
                hosts(),
                &all(),
                80,
            ),
            None,
        ),
        (
            "a listener that carries no HTTP",
            World::default().gateway(&[("tcp", 80, "TCP", None)]).route(hosts(), &all(), 80),
            None,
        ),
    ];
    for (what, world, wanted) in cases {
        assert_eq!(world.addresses(), wanted.map(ips), "{what}");
    }
}

#[test]
fn a_gateway_for_all_ports_goes_before_the_cluster_ip_and_stays() {
    let everything = vec![json!([])];
    for ready in [0, 2] {
        let mut world = web().exported(ready, own_ip()).route(json!([HOST]), &everything, 80);
        world.snapshot.services.get_mut(&cart()).unwrap().ports.remove(&9_090);
        let reach = &world.reach()[&cart()];
        assert_eq!(reach.addresses, ips(&GATEWAY), "{ready} ready");
        let ports: Vec<_> = reach.ports.iter().map(|p| (p.name.as_str(), p.number)).collect();
        assert_eq!(ports, [("http", 80)]);
    }
}

#[test]
fn what_gateways_say_counts() {
    let world = || web().route(json!([HOST]), &[json!([])], 80);
    let mut refused = world();
    refused.refused = refused.bundle.objects.keys().cloned().collect();
    assert_eq!(refused.addresses(), None, "the route was refused");
    let mut absent = world();
    absent.live.clear();
    assert_eq!(absent.addresses(), None, "the route was not written yet");
    let mut down = world();
    down.snapshot.gateways.values_mut().for_each(|gateway| gateway.programmed = Some(false));
    assert_eq!(down.addresses(), None, "the gateway is not programmed");
    let mut alias = world();
    alias.snapshot.gateways.values_mut().for_each(|gateway| {
        gateway.addresses = [Address::of("lb.example.net")].into();
    });
    assert_eq!(alias.addresses(), Some(BTreeSet::new()), "the gateway has a name only");
    let found = Found { v4: Some(ips(&["192.0.2.7"])), v6: None };
    alias.resolved.insert(DnsName::new("lb.example.net").unwrap(), found);
    assert_eq!(
        alias.addresses(),
        Some(ips(&["192.0.2.7"])),
        "and it is known what that stands for"
    );
}

#[test]
fn without_consent_nothing_is_named() {
    let mut world = web().exported(2, own_ip());
    world.snapshot.services.get_mut(&cart()).unwrap().consent = Consent::Refused;
    assert_eq!(world.addresses(), None);
}

fn slice(name: &str, labels: Json, endpoints: Json) -> Json {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "ports": [{"name": "http", "port": 8_080, "protocol": "TCP"}, {"port": 1}],
        "endpoints": endpoints})
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    let labels = json!({SERVICE_NAME: "cart", HEADLESS: ""});
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "hostname": "Pet-0", "conditions": {"ready": true}},
        {"addresses": ["10.0.0.2"], "conditions": {}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
        {"addresses": ["fd00::4"]},
    ]);
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
    let world = web().exported(2, headless).put(slice("cart-a", labels, endpoints));
    let reach = &world.reach()[&cart()];
    let found: Vec<_> =
        reach.endpoints.iter().map(|e| (e.hostname.as_str(), e.address.to_string())).collect();
    let wanted = [
        ("10-0-0-2", "10.0.0.2".to_owned()),
        ("fd00-0-0-0-0-0-0-4", "fd00::4".to_owned()),
        ("pet-0", "10.0.0.1".to_owned()),
    ];
    assert_eq!(found, wanted);
    assert!(reach.addresses.is_empty() && reach.ports.is_empty());
    let ports: Vec<_> = reach.endpoints[0].ports.iter().map(|p| p.number).collect();
    assert_eq!(ports, [8_080], "the pod's port; one without a name has no record");
}

#[test]
fn a_headless_service_without_ready_endpoints_does_not_exist() {
    let world = web().exported(0, json!({"clusterIP": "None"}));
    assert!(world.reach().is_empty());
}

#[test]
fn endpoints_without_bounds_are_cut() {
    let labels = json!({SERVICE_NAME: "cart", HEADLESS: ""});
    let endpoint = |n: u32| json!({"addresses": [std::net::Ipv4Addr::from(n).to_string()]});
    let endpoints: Vec<Json> = (0..1_000).map(endpoint).collect();
    let world =
        web().exported(2, json!({"clusterIP": "None"})).put(slice("a", labels, json!(endpoints)));
    assert_eq!(world.reach()[&cart()].endpoints.len(), ANSWERS_MAX);
}

#[test]
fn objects_that_make_no_sense_name_nothing() {
    let labels = || json!({SERVICE_NAME: "cart", HEADLESS: ""});
    for endpoints in
        [json!(null), json!("x"), json!([1, {"addresses": "x"}, {"addresses": ["y", 3]}])]
    {
        let world =
            web().exported(2, json!({"clusterIP": "None"})).put(slice("a", labels(), endpoints));
        assert!(world.reach().is_empty());
    }
    for (hostnames, matches) in [
        (json!("x"), json!(1)),
        (json!([3]), json!([7])),
        (json!(["svc.clusterset.local"]), json!([])),
    ] {
        assert!(web().route(hostnames, &[matches], 80).reach().is_empty());
    }
}
