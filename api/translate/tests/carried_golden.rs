//! What users write in the hub, and what of it arrives in a member: one golden for each field of the
//! Gateway API that is carried, with the places that are rewritten. `complete.rs` sees to it that none is
//! missing. See `golden/mod.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::plan::{
    GatewayPlan, LocalParent, MemberPlan, PeerPlan, RoutePlan, RulePlan, Slot, SlotTarget,
};
use fairlead_model::policy::{BackendTarget, GlobalRoute, Rule};
use fairlead_model::recipe::{RECIPE_VERSION, Recipe};
use fairlead_model::{Json, MemberId, NsName};
use fairlead_translate::ingest::hub::{HubObjects, ingest_hub};
use fairlead_translate::{CapabilityKeys, render};
use serde_json::{Value, json};

/// A Gateway that takes every kind of route.
const COMMON: &str = "
- {apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: fairlead}, spec: {controllerName: fairlead.dev/hub}}
- apiVersion: gateway.networking.k8s.io/v1
  kind: Gateway
  metadata: {name: public, namespace: infra}
  spec:
    gatewayClassName: fairlead
    listeners:
    - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
    - {name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
    - {name: tcp, port: 9000, protocol: TCP, allowedRoutes: {namespaces: {from: All}}}
    - {name: udp, port: 9000, protocol: UDP, allowedRoutes: {namespaces: {from: All}}}
";

fn west() -> MemberId {
    MemberId::new("west").unwrap()
}

/// A backend that is global is served here; with `crosses`, by west.
fn target(written: &BackendTarget, crosses: bool) -> SlotTarget {
    match written {
        BackendTarget::Global { service, port } if crosses => SlotTarget::Remote {
            member: west(),
            service: service.clone(),
            port: *port,
            app_protocol: "kubernetes.io/h2c".to_owned(),
        },
        BackendTarget::Global { service, port } => {
            SlotTarget::Local { service: service.clone(), port: *port }
        }
        BackendTarget::Own | BackendTarget::Invalid(_) => SlotTarget::AsWritten,
    }
}

fn rule(rule: &Rule, crosses: bool) -> RulePlan {
    let slot = |(at, backend): (usize, &fairlead_model::policy::Backend)| Slot {
        backend: at.try_into().unwrap(),
        target: target(&backend.target, crosses),
    };
    let mirror = |mirror: &fairlead_model::policy::Mirror| SlotTarget::Local {
        service: mirror.service.clone(),
        port: mirror.port,
    };
    let weights = rule.backends.iter().map(|backend| backend.weight).collect();
    RulePlan {
        slots: rule.backends.iter().enumerate().map(slot).collect(),
        recipe: Recipe { version: RECIPE_VERSION, backends: Vec::new(), weights },
        mirrors: rule.mirrors.iter().map(mirror).collect(),
    }
}

fn route(route: &std::sync::Arc<GlobalRoute>, crosses: bool) -> RoutePlan {
    let parent = |parent: &fairlead_model::policy::ParentRef| LocalParent {
        gateway: NsName::new(&parent.gateway.namespace, &format!("{}-global", parent.gateway.name)),
        section: parent.section.clone(),
        port: parent.port,
    };
    RoutePlan {
        parents: route.parents.iter().map(parent).collect(),
        rules: route.rules.iter().map(|one| rule(one, crosses)).collect(),
        route: route.clone(),
    }
}

fn plan(objects: &HubObjects, crosses: bool) -> MemberPlan {
    let policy = ingest_hub(objects).policy;
    let created = |spec: &std::sync::Arc<Json>| GatewayPlan::Created {
        class: "eg".to_owned(),
        spec: spec.clone(),
    };
    let peer = PeerPlan {
        uid: fairlead_model::ClusterUid::new("uid-west").unwrap(),
        addresses: BTreeSet::new(),
        port: 15443,
        ca_pem: String::new(),
        used_from: BTreeSet::new(),
        app_protocols: BTreeSet::new(),
        passages: BTreeSet::new(),
    };
    let gateways = policy.gateways.iter().map(|(name, g)| (name.clone(), created(&g.spec)));
    MemberPlan {
        member: MemberId::new("east").unwrap(),
        uid: fairlead_model::ClusterUid::new("uid-east").unwrap(),
        gateways: gateways.collect(),
        routes: policy.routes.iter().map(|(key, one)| (key.clone(), route(one, crosses))).collect(),
        peers: if crosses { [(west(), peer)].into() } else { BTreeMap::new() },
        door: None,
        following: Vec::new(),
        zones: Default::default(),
        published: BTreeMap::new(),
        cas: BTreeMap::new(),
    }
}

/// Leaves of a value by path. Entries of lists have no numbers, so that a list that grew is not another.
fn leaves(value: &Value, path: &str, out: &mut BTreeMap<String, BTreeSet<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), out));
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter().for_each(|value| leaves(value, &format!("{path}[]"), out));
        }
        leaf => drop(out.entry(path.to_owned()).or_default().insert(leaf.to_string())),
    }
}

/// Paths that differ.
fn rewritten(written: &Value, rendered: &Value) -> Vec<String> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(&written["spec"], "spec", &mut before);
    leaves(&rendered["spec"], "spec", &mut after);
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

fn carried(input: &Value) -> Value {
    let mut objects = HubObjects::default();
    let written = input["objects"].as_array().unwrap();
    for object in golden::yaml(COMMON).as_array().unwrap().iter().chain(written) {
        assert!(objects.insert(object.clone()), "{object}");
    }
    let keyring = CapabilityKeys { epochs: [(1, [1; 32])].into() };
    let (bundle, notes) = render(&plan(&objects, input["crosses"] == true), &keyring);
    let mut out = json!({});
    if !notes.is_empty() {
        out["notes"] = notes.iter().map(ToString::to_string).collect();
    }
    for object in written {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str());
        let of = format!(
            "{kind}/{}/{}",
            object["metadata"]["namespace"].as_str().unwrap(),
            name.unwrap()
        );
        let mirrors = bundle.objects.values().map(|object| &object.content);
        let mirror = mirrors.into_iter().find(|content| {
            content["kind"] == kind
                && content["metadata"]["annotations"]["fairlead.dev/mirror-of"] == of
        });
        if let Some(mirror) = mirror {
            out[&of] = json!({"rewritten": rewritten(object, mirror), "spec": mirror["spec"]});
        }
    }
    out
}

#[test]
fn what_users_write_arrives_in_members() {
    golden::check("carried", carried);
}
