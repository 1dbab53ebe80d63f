//! What an agent believes of its member's objects: the snapshot, what the gateway says of our routes, and
//! whose routes come before them. See `golden/mod.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;

use fairlead_translate::ingest::member::{
    AgentConfig, MemberObjects, Shadows, ingest_route_acceptance, ingest_snapshot,
};
use serde_json::{Value, json};

const CONTROLLER: &str = "gateway.envoyproxy.io/gatewayclass-controller";

/// Without what says nothing.
fn brief(value: Value) -> Value {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    match value {
        Value::Object(map) => {
            let fields = map.into_iter().map(|(key, value)| (key, brief(value)));
            Value::Object(fields.filter(|(_, value)| says(value)).collect())
        }
        Value::Array(list) => list.into_iter().map(brief).collect(),
        other => other,
    }
}

fn reported(input: &Value) -> Value {
    let config: AgentConfig =
        serde_json::from_value(input.get("config").cloned().unwrap_or_else(|| json!({}))).unwrap();
    config.validate().unwrap();
    let mut objects = MemberObjects::default();
    let mut routes = Vec::new();
    for object in input["objects"].as_array().unwrap() {
        if object["kind"].as_str().unwrap().ends_with("Route") {
            routes.push(object);
        } else {
            assert!(objects.insert(object.clone()), "{object}");
        }
    }
    let (mut snapshot, notes) = ingest_snapshot(&objects, &config);
    if objects.definitions.is_empty() {
        snapshot.cluster.kinds.clear(); // What every API server serves.
    }
    if input.get("config").is_none() {
        snapshot.cluster.namespaces_denied.clear();
    }
    let mut out = brief(json!({
        "notes": notes.iter().map(ToString::to_string).collect::<Vec<_>>(), "snapshot": snapshot,
    }));
    let shadows = Shadows::of(routes.iter().copied());
    let is_ours = |route: &&&Value| {
        route.pointer("/metadata/labels/app.kubernetes.io~1managed-by") == Some(&json!("fairlead"))
    };
    for route in routes.iter().filter(is_ours) {
        let said = ingest_route_acceptance(route, CONTROLLER);
        let said = said.map(|(yes, reason, message)| format!("{yes} {reason} {message}"));
        out["routes"][route["metadata"]["name"].as_str().unwrap()] =
            brief(json!({"gateway_says": said, "shadowed_by": shadows.over(route)}));
    }
    out
}

#[test]
fn members_report_what_is_written_down() {
    golden::check("member", reported);
}
