//! What a plan looks like as objects. See `golden/mod.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;

use fairlead_model::plan::MemberPlan;
use fairlead_translate::{CapabilityKeys, render};
use serde_json::{Value, json};

/// Fills in what a golden may leave out because its fact does not hang on it.
fn expand(input: &Value) -> Value {
    let mut plan = json!({"member": "west", "uid": "uid-west", "gateways": {}, "routes": {},
        "peers": {}, "door": null});
    for (key, value) in input.as_object().unwrap() {
        plan[key] = value.clone();
    }
    for (key, route) in plan["routes"].as_object_mut().unwrap() {
        let written = route["route"].take();
        let mut full = json!({"key": key, "created_at": 0, "labels": {}, "parents": [], "rules": [],
            "spec": {}, "api_version": "gateway.networking.k8s.io/v1"});
        for (field, value) in written.as_object().unwrap() {
            full[field] = value.clone();
        }
        route["route"] = full;
        if route["parents"].is_null() {
            route["parents"] = json!([{"gateway": "infra/public", "section": null, "port": null}]);
        }
        for rule in route["rules"].as_array_mut().unwrap() {
            let weights = rule.as_object_mut().unwrap().remove("weights").unwrap();
            rule["recipe"] = json!({"version": 1, "backends": [], "weights": weights});
        }
    }
    for (member, peer) in plan["peers"].as_object_mut().unwrap() {
        let mut full = json!({"uid": format!("uid-{member}"), "addresses": [{"Ip": "192.0.2.2"}],
            "port": 15443, "ca_pem": format!("CA of {member}\n"), "app_protocols": [""],
            "used_from": [{"kind": "HTTPRoute", "namespace": "shop"}]});
        for (field, value) in peer.as_object().unwrap() {
            full[field] = value.clone();
        }
        *peer = full;
    }
    plan
}

fn rendered(input: &Value) -> Value {
    let plan: MemberPlan = serde_json::from_value(expand(input)).unwrap();
    let keyring = CapabilityKeys { epochs: [(1, [1; 32]), (2, [2; 32])].into() };
    let (bundle, notes) = render(&plan, &keyring);
    let objects: Vec<Value> = bundle
        .objects
        .values()
        .map(|object| {
            let mut content = object.content.clone();
            let mut holds = Vec::new();
            if object.gate != Default::default() {
                holds.push(json!({"gate": object.gate}));
            }
            if object.claim != Default::default() {
                holds.push(json!({"claim": object.claim}));
            }
            if !holds.is_empty() {
                content["#"] = holds.into();
            }
            content
        })
        .collect();
    json!({"notes": notes.iter().map(ToString::to_string).collect::<Vec<_>>(), "objects": objects})
}

#[test]
fn plans_render_as_written_down() {
    golden::check("render", rendered);
}
