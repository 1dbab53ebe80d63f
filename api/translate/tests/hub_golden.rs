//! What the hub makes of its own objects: rules, spreads and statuses. See `golden/mod.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;

use std::collections::BTreeMap;

use fairlead_model::policy::{Backend, BackendTarget, Spread};
use fairlead_model::{MemberId, NsName, Reason, RouteKey};
use fairlead_translate::ingest::hub::{HubObjects, Ingested, Pin, ingest_hub};
use fairlead_translate::status::{
    GatewayFacts, MemberSummary, dns_policy_status, gateway_class_status, gateway_status,
    listener_set_status, route_status, traffic_policy_status,
};
use serde_json::{Map, Value, json};

const NOW: &str = "2026-01-01T00:00:00Z";

/// The class and the Gateway that most goldens share.
const COMMON: &str = "
- {apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: fairlead, generation: 1}, spec: {controllerName: fairlead.dev/hub}}
- apiVersion: gateway.networking.k8s.io/v1
  kind: Gateway
  metadata: {name: public, namespace: infra, generation: 1, creationTimestamp: 2025-01-01T00:00:00Z}
  spec: {gatewayClassName: fairlead, allowedListeners: {namespaces: {from: All}}, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}
";

/// Objects of a golden; `common: false` leaves the shared ones out, `served_by: 0` all members;
/// `differing` are members that do not hold an object as asked, `found` is what the inventory says against
/// the references of routes; `failing` are listeners that members do not serve; `show: spread` shows all of what a policy asks for.
fn objects(input: &Value) -> (HubObjects, Map<String, Value>) {
    let mut objects = HubObjects::default();
    let mut statuses = Map::new();
    let common = if input["common"] == false { json!([]) } else { golden::yaml(COMMON) };
    for object in common.as_array().unwrap().iter().chain(input["objects"].as_array().unwrap()) {
        let mut object = object.clone();
        object["metadata"]["generation"] =
            object["metadata"]["generation"].as_i64().unwrap_or(1).into();
        let id = format!(
            "{}/{}",
            object["kind"].as_str().unwrap(),
            object["metadata"]["name"].as_str().unwrap()
        );
        statuses.insert(id, object["status"].clone());
        assert!(objects.insert(object.clone()), "{object}");
    }
    (objects, statuses)
}

fn backend(backend: &Backend) -> String {
    let target = match &backend.target {
        BackendTarget::Global { service, port } => format!("{service}:{port} everywhere"),
        BackendTarget::Own => "each entry's own".to_owned(),
        BackendTarget::Invalid(note) => format!("fails: {}", note.reason),
    };
    format!("{} {target}", backend.weight)
}

fn reason(text: &Value) -> Reason {
    serde_json::from_value(text.clone()).unwrap()
}

fn route(ingested: &Ingested, key: &RouteKey, input: &Value) -> Value {
    let Some(route) = ingested.policy.routes.get(key) else { return "no global route".into() };
    let parents: Vec<String> = route
        .parents
        .iter()
        .map(|p| {
            format!(
                "{} {} {}",
                p.gateway,
                p.section.as_deref().unwrap_or("*"),
                p.port.map_or("*".into(), |p| p.to_string())
            )
        })
        .collect();
    let rules: Vec<Value> = route
        .rules
        .iter()
        .map(|rule| {
            let from = rule.spread.from.as_ref().map(ToString::to_string);
            let mut shown =
                json!({"backends": rule.backends.iter().map(backend).collect::<Vec<_>>()});
            if input["show"] == "spread" {
                shown["spread"] = serde_json::to_value(&rule.spread).unwrap();
            } else if rule.spread != Spread::default() {
                shown["policy"] = from.into();
                shown["healthy_percent"] = rule.spread.healthy_percent.into();
            }
            shown
        })
        .collect();
    json!({"parents": parents, "spec": *route.spec, "rules": rules})
}

/// Only the words of conditions: the rest of their form has tests of its own.
fn brief(status: &Value) -> Value {
    match status {
        Value::Array(list) => {
            let condition = |c: &Value| {
                let text = |field: &str| c[field].as_str().unwrap().to_owned();
                let head = format!(
                    "{} {} {} @{}",
                    text("type"),
                    text("status"),
                    text("reason"),
                    c["observedGeneration"]
                );
                if text("message").is_empty() {
                    head
                } else {
                    format!("{head}: {}", text("message"))
                }
            };
            if list.iter().all(|c| c.get("lastTransitionTime").is_some()) {
                return list.iter().map(condition).collect();
            }
            list.iter().map(brief).collect()
        }
        Value::Object(map) => {
            Value::Object(map.iter().map(|(k, v)| (k.clone(), brief(v))).collect())
        }
        other => other.clone(),
    }
}

fn ingested(input: &Value) -> Value {
    let (mut objects, statuses) = objects(input);
    // Pins whose revision cannot be had, as the hub's history says: route, reason, message.
    for (key, why) in input["pins"].as_object().into_iter().flatten() {
        let fault = Some((reason(&why[0]), why[1].as_str().unwrap().to_owned()));
        objects.pins.insert(key.parse().unwrap(), Pin { at: None, fault });
    }
    let found = ingest_hub(&objects);
    let status = |kind: &str, name: &NsName| {
        statuses.get(&format!("{kind}/{}", name.name)).cloned().unwrap_or_default()
    };
    // Two members serve everything unless a golden says otherwise.
    let as_asked = input["served_by"].as_u64().map_or(2, |count| count.try_into().unwrap());
    let differing = input["differing"].as_object().into_iter().flatten().map(|(member, why)| {
        let message = why[1].as_str().unwrap().to_owned();
        (MemberId::new(member).unwrap(), (reason(&why[0]), message))
    });
    let members =
        MemberSummary { as_asked, differing: differing.collect(), under_way: false, rollout: None };
    let against = input["found"]
        .as_array()
        .map(|found| (reason(&found[0]), found[1].as_str().unwrap().to_owned()));
    let failing: BTreeMap<String, BTreeMap<MemberId, String>> = input
        .get("failing")
        .map(|failing| serde_json::from_value(failing.clone()).unwrap())
        .unwrap_or_default();
    let address = fairlead_model::snapshot::Address::of("192.0.2.7");
    let facts = GatewayFacts {
        addresses: if as_asked > 0 { [address].into() } else { [].into() },
        members: members.clone(),
        in_part: u32::try_from(failing.len()).unwrap(),
        failing: failing.clone(),
    };
    let mut out = json!({"notes": found.notes.iter().map(ToString::to_string).collect::<Vec<_>>()});
    if input["common"] == false {
        for (name, verdict) in &found.classes {
            out["classes"][name] = brief(&gateway_class_status(&Value::Null, verdict, NOW));
        }
        for (name, verdict) in &found.gateways {
            out["gateways"][name.to_string()] =
                brief(&gateway_status(&status("Gateway", name), verdict, &facts, NOW));
        }
    }
    for (name, verdict) in &found.listener_sets {
        let written = listener_set_status(&status("ListenerSet", name), verdict, &facts, NOW);
        out["listener_sets"][name.to_string()] = brief(&written);
    }
    for (name, gateway) in &found.policy.gateways {
        if found.gateways[name].attached_sets > 0 {
            out["members_hold"][name.to_string()] = gateway.spec["listeners"].clone();
        }
    }
    for (key, verdict) in &found.routes {
        let there = status(key.kind.as_str(), &key.name);
        let written = route_status(&there, verdict, &members, against.as_ref(), NOW);
        out["routes"][key.to_string()] =
            json!({"model": route(&found, key, input), "status": brief(&written)});
    }
    for (name, verdict) in &found.policies {
        let written = traffic_policy_status(&status("TrafficPolicy", name), verdict, NOW);
        out["policies"][name.to_string()] = brief(&written);
    }
    if !found.policy.followers.is_empty() {
        out["followers"] = serde_json::to_value(&found.policy.followers).unwrap();
    }
    for (name, verdict) in &found.dns_policies {
        let written = dns_policy_status(&status("DNSPolicy", name), verdict, None, NOW);
        out["dns"][name.to_string()] = json!({
            "model": found.policy.dns.get(name).map(|policy| serde_json::to_value(policy).unwrap()),
            "status": brief(&written),
        });
    }
    if !found.policy.members.is_empty() {
        out["members"] = serde_json::to_value(&found.policy.members).unwrap();
    }
    out
}

#[test]
fn hub_objects_come_to_what_is_written_down() {
    golden::check("hub", ingested);
}
