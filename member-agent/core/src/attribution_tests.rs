//! What gateways say, and what it means. The names are those of real spans.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_model::bundle::{BundleObject, Claim, Gate, Peer};
use fairlead_model::recipe::{
    Candidate, RECIPE_VERSION, RecipeBackend, RecipeTier, Split, Standing, WhenUnavailable,
};
use serde_json::json;

use super::*;

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn object(content: Json) -> (ObjectId, BundleObject) {
    let id = ObjectId::of(&content).unwrap();
    (id, BundleObject { content, gate: Gate::Open, claim: Claim::Whole })
}

fn route(name: &str, backends: &[(&str, &str, u16)]) -> Json {
    let refs: Vec<Json> = backends
        .iter()
        .map(|(namespace, name, port)| json!({"namespace": namespace, "name": name, "port": port}))
        .collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "namespace": "shop", "name": format!("{name}-global"),
            "annotations": {"fairlead.dev/mirror-of": format!("HTTPRoute/shop/{name}")},
        },
        "spec": {"rules": [{"backendRefs": refs}]},
    })
}

fn tier(candidates: &[(&str, u16)]) -> RecipeTier {
    let candidate = |(name, slot): &(&str, u16)| Candidate {
        member: member(name),
        slot: *slot,
        ready: 2,
        expected: 2,
        weight: 0,
        ramp_percent: 100,
        standing: Standing::Able,
    };
    RecipeTier {
        split: Split::Endpoints,
        healthy_percent: 70,
        endpoints_min: 1,
        candidates: candidates.iter().map(candidate).collect(),
    }
}

fn backend(service: &str, tiers: Vec<RecipeTier>) -> RecipeBackend {
    RecipeBackend {
        weight: 1,
        serve: Serve::Members {
            service: NsName::new("shop", service),
            port: 80,
            tiers,
            when_unavailable: WhenUnavailable::Redistribute,
        },
    }
}

/// East's bundle: cart here and in west, cart-v2 in west alone, a door for cart.
fn bundle() -> Bundle {
    let mut bundle = Bundle { number: PlanNumber::new(3, 17), ..Bundle::default() };
    let cart = route(
        "cart",
        &[
            ("shop", "cart", 80),
            ("fairlead-system", "member-west", 15443),
            ("fairlead-system", "member-west", 15443),
        ],
    );
    let (id, cart) = object(cart);
    let recipe = Recipe {
        version: RECIPE_VERSION,
        backends: vec![
            backend("cart", vec![tier(&[("east", 0)]), tier(&[("west", 1)])]),
            backend("cart-v2", vec![tier(&[("west", 2)])]),
        ],
        weights: vec![8_000, 0, 2_000],
    };
    bundle.recipes.insert(RuleId { object: id.clone(), rule: 0 }, recipe);
    bundle.objects.insert(id, cart);
    let (id, tea) = object(route("tea", &[("fairlead-system", "member-west", 15443)]));
    bundle.objects.insert(id, tea);
    let (id, door) = object(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "fairlead-system", "name": "shop.cart"},
        "spec": {"rules": [{"backendRefs": [{"namespace": "shop", "name": "cart", "port": 80}]}]},
    }));
    bundle.objects.insert(id, door);
    let peer = Peer {
        uid: fairlead_model::ClusterUid::new("uid-west").unwrap(),
        addresses: [Address::Ip("10.77.3.1".parse().unwrap())].into(),
        port: 15443,
        server_name: String::new(),
        ca_pem: String::new(),
        readiness: fairlead_model::bundle::Capability::default(),
    };
    bundle.peers.insert(member("west"), peer);
    bundle
}

fn atlas(out: &[&str]) -> Atlas {
    let out = out.iter().map(|name| member(name)).collect();
    Atlas::of(&member("east"), &bundle(), &out)
}

/// Hop, route, rule, backend, target, tier, overlay.
fn told(atlas: &Atlas, hint: Hint<'_>) -> String {
    let Some(m) = atlas.meaning(&hint) else { return "nothing".to_owned() };
    let number = |n: Option<u16>| n.map_or("-".to_owned(), |n| n.to_string());
    format!(
        "{} {} {} {} {} {}{}",
        m.hop.as_str(),
        m.route.unwrap_or("-"),
        number(m.rule),
        m.backend.unwrap_or("-"),
        m.target.map_or("-", MemberId::as_str),
        number(m.tier),
        if m.overlay { " overlay" } else { "" },
    )
}

#[test]
fn envoys_names_and_addresses_say_who_answered() {
    const CART: &str = "httproute/shop/cart-global/rule/0";
    let rows = [
        (0, "10.244.0.5:8080", "entry HTTPRoute/shop/cart 0 shop/cart:80 east 1"),
        (1, "10.77.3.1:15443", "entry HTTPRoute/shop/cart 0 shop/cart:80 west 2"),
        (2, "10.77.3.1:15443", "entry HTTPRoute/shop/cart 0 shop/cart-v2:80 west 1"),
        // Nobody was reached: the place says who was meant.
        (2, "", "entry HTTPRoute/shop/cart 0 shop/cart-v2:80 west 1"),
        // A name of the plan before: the address is the truth, the backend is not known.
        (0, "10.77.3.1:15443", "entry HTTPRoute/shop/cart 0 - west -"),
        (9, "10.244.0.5:8080", "entry HTTPRoute/shop/cart 0 shop/cart:80 east 1"),
    ];
    for (slot, address, want) in rows {
        let upstream = format!("{CART}/backend/{slot}");
        let address = Some(address).filter(|address| !address.is_empty());
        let hint = Hint { upstream: Some(&upstream), address, ..Hint::default() };
        assert_eq!(told(&atlas(&[]), hint), want, "{slot} {address:?}");
    }
}

#[test]
fn a_name_without_a_place_is_told_by_the_address() {
    let upstream = Some("httproute/shop/tea-global/rule/0");
    let hint = Hint { upstream, address: Some("10.77.3.1:15443"), ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry HTTPRoute/shop/tea 0 - west -");
    let hint = Hint { upstream, ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry HTTPRoute/shop/tea 0 - - -");
}

#[test]
fn at_a_door_this_member_answers() {
    let upstream = Some("httproute/fairlead-system/shop.cart/rule/0/backend/0");
    let hint = Hint { upstream, address: Some("10.244.0.5:8080"), ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "door - 0 shop/cart:80 east -");
}

/// The same bundle with its route `cart` as a GRPCRoute beside the HTTPRoute of that name.
fn grpc_atlas() -> Atlas {
    let mut bundle = bundle();
    let http = ObjectId::new("gateway.networking.k8s.io", "v1", "HTTPRoute", "shop", "cart-global");
    let mut content = bundle.objects[&http].content.clone();
    content["kind"] = json!("GRPCRoute");
    content["metadata"]["annotations"]["fairlead.dev/mirror-of"] = json!("GRPCRoute/shop/cart");
    let recipe = bundle.recipes[&RuleId { object: http, rule: 0 }].clone();
    let (id, grpc) = object(content);
    bundle.recipes.insert(RuleId { object: id.clone(), rule: 0 }, recipe);
    bundle.objects.insert(id, grpc);
    Atlas::of(&member("east"), &bundle, &BTreeSet::new())
}

#[test]
fn grpc_routes_are_told_from_http_routes_of_their_name() {
    let atlas = grpc_atlas();
    for (slot, address, want) in [
        (0, "10.244.0.5:8080", "entry GRPCRoute/shop/cart 0 shop/cart:80 east 1"),
        (1, "10.77.3.1:15443", "entry GRPCRoute/shop/cart 0 shop/cart:80 west 2"),
        (2, "10.77.3.1:15443", "entry GRPCRoute/shop/cart 0 shop/cart-v2:80 west 1"),
    ] {
        let upstream = format!("grpcroute/shop/cart-global/rule/0/backend/{slot}");
        let hint = Hint { upstream: Some(&upstream), address: Some(address), ..Hint::default() };
        assert_eq!(told(&atlas, hint), want);
    }
    let upstream = Some("httproute/shop/cart-global/rule/0/backend/0");
    let hint = Hint { upstream, address: Some("10.244.0.5:8080"), ..Hint::default() };
    assert_eq!(told(&atlas, hint), "entry HTTPRoute/shop/cart 0 shop/cart:80 east 1");
    let router = Some("grpcroute-shop-cart-global-gw-infra-public-ep-web-0-1a2b@kubernetesgateway");
    let service = Some("grpcroute-x-svc-fairlead-system-member-west-1@kubernetesgateway");
    let hint = Hint { router, service, ..Hint::default() };
    assert_eq!(told(&atlas, hint), "entry GRPCRoute/shop/cart 0 - west -");
}

#[test]
fn an_overlay_shows_on_the_rules_that_it_changes() {
    let upstream = Some("httproute/shop/cart-global/rule/0/backend/0");
    let hint = Hint { upstream, address: Some("10.244.0.5:8080"), ..Hint::default() };
    let want = "entry HTTPRoute/shop/cart 0 shop/cart:80 east 1 overlay";
    assert_eq!(told(&atlas(&["west"]), hint), want);
    assert!(!told(&atlas(&["south"]), hint).ends_with("overlay"));
}

#[test]
fn what_the_plan_does_not_know_stays_unattributed() {
    for upstream in [
        "httproute/shop/cart/rule/0/backend/0",
        "httproute/bank/cart-global/rule/0/backend/0",
        "xds_cluster",
        "",
        "/rule/",
        "httproute/shop/cart-global/rule",
    ] {
        let hint =
            Hint { upstream: Some(upstream), address: Some("10.244.0.5:8080"), ..Hint::default() };
        assert_eq!(told(&atlas(&[]), hint), "nothing", "{upstream}");
    }
    let far = "httproute/shop/cart-global/rule/70000/backend/0";
    let hint = Hint { upstream: Some(far), ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry HTTPRoute/shop/cart 0 - - -");
}

#[test]
fn traefiks_names_are_read_too() {
    let router = Some("httproute-shop-cart-global-gw-infra-public-ep-web-0-1a2b@kubernetesgateway");
    let service = Some("fairlead-system-member-west-http-15443@kubernetesgateway");
    let hint = Hint { router, service, ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry HTTPRoute/shop/cart 0 - west -");
    let hint = Hint { router, address: Some("10.244.0.5:8080"), ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry HTTPRoute/shop/cart 0 shop/cart:80 east 1");
    let hint = Hint { address: Some("10.77.3.1:15443"), ..Hint::default() };
    assert_eq!(told(&atlas(&[]), hint), "entry - - - west -");
}
