//! Arbitrary JSON, and good objects with arbitrary damage.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Words that our readers look for, so that arbitrary JSON gets past the first check.
const WORDS: [&str; 24] = [
    "name",
    "namespace",
    "kind",
    "group",
    "port",
    "weight",
    "filters",
    "backendRefs",
    "matches",
    "rules",
    "spec",
    "status",
    "metadata",
    "type",
    "conditions",
    "listeners",
    "parentRefs",
    "requestHeaderModifier",
    "requestMirror",
    "backendRef",
    "set",
    "endpoints",
    "ServiceImport",
    "multicluster.x-k8s.io",
];

/// JSON of any shape.
pub(crate) fn json_value() -> impl Strategy<Value = Value> {
    let word = || proptest::sample::select(WORDS.as_slice()).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(word(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// An object with some of its values replaced by anything.
pub(crate) fn damaged(object: Value) -> impl Strategy<Value = Value> {
    let damage = (any::<proptest::sample::Index>(), json_value());
    proptest::collection::vec(damage, 0..4).prop_map(move |damages| {
        let mut object = object.clone();
        for (index, value) in damages {
            let paths = paths(&object);
            let path = index.get(&paths);
            *object.pointer_mut(path).expect("a path of this object") = value;
        }
        object
    })
}

/// JSON pointers of everything in a value.
fn paths(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let nested: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (escaped(k), v)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(at, v)| (at.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, inner) in nested {
        found.extend(paths(inner).into_iter().map(|path| format!("/{key}{path}")));
    }
    found
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A route with one of everything.
pub(crate) fn route() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "cart", "namespace": "shop", "generation": 1, "labels": {"a": "b"}},
        "spec": {
            "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "http", "port": 80}],
            "hostnames": ["shop.example.com"],
            "rules": [{
                "name": "main",
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "filters": [
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}},
                    {"type": "RequestMirror", "requestMirror": {"backendRef":
                        {"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "m", "port": 80}}},
                ],
                "backendRefs": [
                    {"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "cart", "port": 80, "weight": 8,
                     "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}]},
                    {"name": "own", "port": 80},
                ],
            }],
        },
        "status": {"parents": [{"parentRef": {"name": "public"}, "controllerName": "example.com/gw", "conditions": [
            {"type": "Accepted", "status": "True", "observedGeneration": 1, "reason": "Accepted", "message": ""},
            {"type": "ResolvedRefs", "status": "True", "observedGeneration": 1, "reason": "ResolvedRefs", "message": ""}]}]},
    })
}
