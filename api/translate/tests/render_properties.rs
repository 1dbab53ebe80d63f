//! Whatever a plan holds, rendering ends, is repeatable, and does not lose what it does not know.
#![expect(clippy::unwrap_used, reason = "tests")]

mod arbitrary;

use fairlead_crds::keys;
use fairlead_model::bundle::Bundle;
use fairlead_model::plan::MemberPlan;
use fairlead_translate::{CapabilityKeys, render};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};

fn keyring() -> CapabilityKeys {
    CapabilityKeys { epochs: [(7, [7; 32])].into() }
}

fn slot() -> impl Strategy<Value = Value> {
    let local = json!({"Local": {"service": "shop/cart", "port": 80}});
    let remote = |member: &str| json!({"Remote": {"member": member, "service": "shop/cart", "port": 80, "app_protocol": ""}});
    let target = prop_oneof![
        Just(json!("AsWritten")),
        Just(local),
        Just(remote("east")),
        Just(remote("not-a-peer")),
    ];
    (0u16..4, target).prop_map(|(backend, target)| json!({"backend": backend, "target": target}))
}

/// A plan whose route has any spec, and rules that may or may not fit it.
fn plan(
    kind: &'static str,
    spec: impl Strategy<Value = Value>,
) -> impl Strategy<Value = MemberPlan> {
    let rule = (proptest::collection::vec(slot(), 0..4), proptest::collection::vec(0u32..100, 0..5))
        .prop_map(|(slots, weights)| {
            json!({"slots": slots, "recipe": {"version": 1, "backends": [], "weights": weights}})
        });
    let rules = proptest::collection::vec(rule, 0..3);
    (spec, arbitrary::json_value(), rules).prop_map(move |(spec, gateway, rules)| {
        let key = format!("{kind}/shop/cart");
        serde_json::from_value(json!({
            "member": "west", "uid": "uid-west",
            "gateways": {"infra/public": {"Created": {"class": "eg", "spec": gateway}}},
            "routes": {key.clone(): {
                "parents": [{"gateway": "infra/public", "section": null, "port": null}],
                "rules": rules,
                "route": {"key": key, "created_at": 0, "labels": {}, "parents": [], "rules": [],
                    "spec": spec, "api_version": "gateway.networking.k8s.io/v1"},
            }},
            "peers": {"east": {"uid": "uid-east", "addresses": [{"Ip": "192.0.2.2"}], "port": 15443, "ca_pem": "CA",
                "used_from": [], "app_protocols": [""]}},
            "door": null,
        }))
        .unwrap()
    })
}

fn rendered_route(bundle: &Bundle) -> Option<&Value> {
    bundle
        .objects
        .iter()
        .find(|(id, _)| &*id.name == "cart-global")
        .map(|(_, object)| &object.content)
}

/// Every remote backend carries a capability and nothing else of that name.
fn forged(backend: &Value) -> bool {
    let is_remote = backend["name"].as_str().is_some_and(|name| name.starts_with("member-"))
        && backend["namespace"] == keys::NAMESPACE;
    let values: Vec<&Value> = ["set", "add"]
        .into_iter()
        .flat_map(|list| {
            backend["filters"].as_array().into_iter().flatten().filter_map(move |filter| {
                filter.pointer(&format!("/requestHeaderModifier/{list}"))?.as_array()
            })
        })
        .flatten()
        .filter(|header| header["name"] == keys::HEADER_BACKEND)
        .map(|header| &header["value"])
        .collect();
    is_remote && (values.len() != 1 || values[0].as_str().is_none_or(|value| value.len() != 64))
}

proptest! {
    #[test]
    fn any_spec_renders_and_renders_alike(
        plan in prop_oneof![
            plan("HTTPRoute", arbitrary::json_value()),
            plan("HTTPRoute", arbitrary::damaged(arbitrary::route()["spec"].clone())),
            plan("GRPCRoute", arbitrary::damaged(arbitrary::route()["spec"].clone())),
            plan("TCPRoute", arbitrary::damaged(arbitrary::route()["spec"].clone())),
        ],
    ) {
        let (bundle, notes) = render(&plan, &keyring());
        prop_assert_eq!(render(&plan, &keyring()), (bundle.clone(), notes));
        for object in bundle.objects.values() {
            prop_assert!(object.content.pointer("/metadata/ownerReferences").is_none());
        }
        let Some(route) = rendered_route(&bundle) else { return Ok(()) };
        for rule in route["spec"]["rules"].as_array().into_iter().flatten() {
            for backend in rule["backendRefs"].as_array().into_iter().flatten() {
                prop_assert!(!forged(backend), "{backend}");
            }
        }
    }

    #[test]
    fn unknown_fields_survive(unknown in arbitrary::json_value()) {
        let mut spec = arbitrary::route()["spec"].clone();
        for pointer in ["", "/rules/0", "/rules/0/matches/0", "/rules/0/backendRefs/0", "/rules/0/filters/0"] {
            spec.pointer_mut(pointer).unwrap()["fromTheFuture"] = unknown.clone();
        }
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut plan = plan("HTTPRoute", Just(spec)).new_tree(&mut runner).unwrap().current();
        let route = plan.routes.values_mut().next().unwrap();
        route.rules = serde_json::from_value(json!([{
            "slots": [{"backend": 0, "target": {"Remote": {"member": "east", "service": "shop/cart", "port": 80, "app_protocol": ""}}}],
            "recipe": {"version": 1, "backends": [], "weights": [10_000]},
        }])).unwrap();
        let (bundle, _) = render(&plan, &keyring());
        let spec = &rendered_route(&bundle).unwrap()["spec"];
        for pointer in ["", "/rules/0", "/rules/0/matches/0", "/rules/0/backendRefs/0", "/rules/0/filters/0"] {
            prop_assert_eq!(&spec.pointer(pointer).unwrap()["fromTheFuture"], &unknown);
        }
    }
}
