//! A plan as the few objects that matter here, and back.
//!
//! Stands in for `translate::render`: routes with their weights, recipes and peers as they are, and
//! one object that says whom and what the member's own door lets in.

use std::collections::BTreeSet;

use fairlead_model::bundle::{Bundle, BundleObject, Claim, Gate, Peer, RuleId};
use fairlead_model::plan::{MemberPlan, PeerPlan, RulePlan, SlotTarget};
use fairlead_model::recipe::Serve;
use fairlead_model::{Json, MemberId, NsName, ObjectId, RouteKey};
use serde_json::json;

const API: &str = "gateway.networking.k8s.io/v1";

/// Where a live backendRef leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The entry's own service.
    Local(NsName),
    /// A remote member's door.
    Remote(MemberId, NsName),
    /// Nowhere.
    Nowhere,
}

/// A live rule: where it leads, with weights.
pub type LiveRule = Vec<(Target, u32)>;

/// The objects of a plan.
pub fn render(plan: &MemberPlan) -> Bundle {
    let mut bundle = Bundle::default();
    for (key, route) in &plan.routes {
        let refs = |rule: &RulePlan| {
            let slots = rule.slots.iter().zip(&rule.recipe.weights);
            let refs: Vec<Json> = slots.map(|(slot, w)| backend_ref(&slot.target, *w)).collect();
            json!({ "backendRefs": refs })
        };
        let rules: Vec<Json> = route.rules.iter().map(refs).collect();
        let metadata = metadata(&key.name.namespace, &format!("{}-global", key.name.name));
        let spec = json!({ "rules": rules });
        let content =
            json!({"apiVersion": API, "kind": "HTTPRoute", "metadata": metadata, "spec": spec});
        let object = put(&mut bundle, content);
        for (at, rule) in route.rules.iter().enumerate() {
            let is_members = |b: &_| matches!(b, Serve::Members { .. });
            if rule.recipe.backends.iter().any(|b| is_members(&b.serve)) {
                let rule_id = RuleId {
                    object: object.clone(),
                    rule: u16::try_from(at).expect("a rule or two"),
                };
                bundle.recipes.insert(rule_id, rule.recipe.clone());
            }
        }
    }
    bundle.peers = plan.peers.iter().map(|(id, p)| (id.clone(), peer(p))).collect();
    if let Some(door) = &plan.door {
        let services: BTreeSet<String> =
            door.services.iter().map(|s| s.service.to_string()).collect();
        let callers: BTreeSet<&MemberId> = door.callers.keys().collect();
        let metadata = metadata("fairlead-system", "door");
        let data = json!({"services": services, "callers": callers});
        let kind = "ConfigMap";
        put(
            &mut bundle,
            json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": data}),
        );
    }
    bundle
}

fn put(bundle: &mut Bundle, content: Json) -> ObjectId {
    let id = ObjectId::of(&content).expect("it has a kind and a name");
    let object = BundleObject { content, gate: Gate::Open, claim: Claim::Whole };
    bundle.objects.insert(id.clone(), object);
    id
}

fn metadata(namespace: &str, name: &str) -> Json {
    let labels = json!({"app.kubernetes.io/managed-by": "fairlead"});
    json!({"namespace": namespace, "name": name, "labels": labels})
}

fn backend_ref(target: &SlotTarget, weight: u32) -> Json {
    match target {
        SlotTarget::AsWritten => json!({"name": "nowhere", "weight": weight}),
        SlotTarget::Local { service, .. } => {
            json!({"name": service.name, "namespace": service.namespace, "weight": weight})
        }
        SlotTarget::Remote { member, service, .. } => {
            let name = format!("member-{member}.{service}");
            json!({"name": name, "namespace": "fairlead-system", "weight": weight})
        }
    }
}

fn peer(plan: &PeerPlan) -> Peer {
    Peer {
        uid: plan.uid.clone(),
        addresses: plan.addresses.clone(),
        port: plan.port,
        server_name: plan.uid.to_string(),
        ca_pem: plan.ca_pem.clone(),
        readiness: fairlead_model::bundle::Capability::default(),
    }
}

/// The object of a route.
pub fn route_id(key: &RouteKey) -> ObjectId {
    let name = format!("{}-global", key.name.name);
    ObjectId::new("gateway.networking.k8s.io", "v1", "HTTPRoute", &key.name.namespace, &name)
}

/// The rules of a live route.
pub fn read_rules(content: &Json) -> Vec<LiveRule> {
    let rules = content.pointer("/spec/rules").and_then(Json::as_array);
    let refs = |rule: &Json| {
        let refs = rule.get("backendRefs").and_then(Json::as_array);
        refs.into_iter().flatten().map(read_ref).collect()
    };
    rules.into_iter().flatten().map(refs).collect()
}

fn read_ref(backend: &Json) -> (Target, u32) {
    let text = |key: &str| backend.get(key).and_then(Json::as_str).unwrap_or_default();
    let weight = backend.get("weight").and_then(Json::as_u64).unwrap_or(1);
    let weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let (namespace, name) = (text("namespace"), text("name"));
    let target = match name.strip_prefix("member-").and_then(|rest| rest.split_once('.')) {
        Some((member, service)) => match (MemberId::new(member), service.parse()) {
            (Ok(member), Ok(service)) => Target::Remote(member, service),
            _ => Target::Nowhere,
        },
        None if namespace.is_empty() => Target::Nowhere,
        None => Target::Local(NsName::new(namespace, name)),
    };
    (target, weight)
}

/// What a live door lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Door {
    /// Services behind it.
    pub services: BTreeSet<NsName>,
    /// Members that may call.
    pub callers: BTreeSet<MemberId>,
}

/// Reads a live door.
pub fn read_door(content: &Json) -> Door {
    let texts = |pointer: &str| {
        let list = content.pointer(pointer).and_then(Json::as_array).cloned().unwrap_or_default();
        list.into_iter().filter_map(|text| text.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    Door {
        services: texts("/data/services").iter().filter_map(|t| t.parse().ok()).collect(),
        callers: texts("/data/callers").iter().filter_map(|t| MemberId::new(t).ok()).collect(),
    }
}
