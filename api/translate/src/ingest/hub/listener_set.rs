//! ListenerSets: listeners that others add to a Gateway of ours.
//!
//! Members get one Gateway with the listeners of all sets: their gateways need not know the kind. A
//! Gateway takes no sets unless its `allowedListeners` says so. Its own listeners come first, then sets
//! by age and name; a later listener in conflict is refused, the earlier one stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::keys;
use fairlead_model::{Json, NsName, Reason};
use serde_json::json;

use super::HubObjects;
use super::gateway::{self, HubGateway, LISTENERS_MAX, Namespaces, Owner, Read};
use super::grant::Grants;
use super::verdict::{ListenerSetVerdict, Verdict};
use crate::{names, raw};

/// The label by which API servers tell the name of a namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Adds the listeners of sets to their Gateways.
pub(super) fn ingest_sets(
    objects: &HubObjects,
    gateways: &mut BTreeMap<NsName, HubGateway>,
    grants: &Grants,
) -> BTreeMap<NsName, ListenerSetVerdict> {
    let sets = objects.listener_sets.iter().filter(|(_, set)| !raw::is_deleting(set));
    let mut order: Vec<(&NsName, &Json)> = sets.collect();
    order.sort_by_key(|(name, set)| (raw::created_at(set), (*name).clone()));
    let mut verdicts = BTreeMap::new();
    for (name, set) in order {
        let Some(parent) = parent(name, set) else { continue };
        let (Some(gateway), Some(written)) =
            (gateways.get_mut(&parent), objects.gateways.get(&parent))
        else {
            continue; // Not ours.
        };
        let labels = objects.namespace_labels(&name.namespace);
        let accepted = if !is_allowed(written, &parent, name, &labels) {
            let text = "spec.allowedListeners of its Gateway does not let it attach";
            Verdict::no(Reason::NotAllowedByListeners, text)
        } else if gateway.global.is_none() {
            Verdict::no(Reason::NoMatchingParent, "its Gateway is not accepted")
        } else {
            attach(name, set, gateway, grants)
        };
        gateway.verdict.attached_sets += u32::from(accepted.is_yes());
        let verdict = ListenerSetVerdict {
            name: name.clone(),
            generation: raw::generation(set),
            gateway: parent,
            accepted,
            listeners: Vec::new(),
        };
        verdicts.insert(name.clone(), verdict);
    }
    verdicts
}

/// Gives what was decided about the listeners of sets back to them, once routes were counted.
pub(super) fn hand_back(gateway: &mut HubGateway, sets: &mut BTreeMap<NsName, ListenerSetVerdict>) {
    let listeners = std::mem::take(&mut gateway.verdict.listeners);
    for (listener, door) in listeners.into_iter().zip(&gateway.doors) {
        match door.set.as_ref().and_then(|set| sets.get_mut(set)) {
            Some(set) => set.listeners.push(listener),
            None => gateway.verdict.listeners.push(listener),
        }
    }
}

fn parent(name: &NsName, set: &Json) -> Option<NsName> {
    let reference = set.pointer("/spec/parentRef")?;
    let text = |field: &str| reference.get(field).and_then(Json::as_str);
    let is_gateway = text("group").unwrap_or(keys::GATEWAY_GROUP) == keys::GATEWAY_GROUP
        && text("kind").unwrap_or("Gateway") == "Gateway";
    let namespace = text("namespace").unwrap_or(&name.namespace);
    is_gateway.then_some(NsName::new(namespace, raw::field(reference, "name")?))
}

fn is_allowed(
    gateway: &Json,
    gateway_name: &NsName,
    set: &NsName,
    labels: &BTreeMap<String, String>,
) -> bool {
    let written = gateway.pointer("/spec/allowedListeners/namespaces");
    written.is_some_and(|written| {
        let from = gateway::namespaces_of(written, Namespaces::Nobody);
        from.admit(&gateway_name.namespace, &set.namespace, labels)
    })
}

fn attach(name: &NsName, set: &Json, gateway: &mut HubGateway, grants: &Grants) -> Verdict {
    let owner = Owner { kind: "ListenerSet", name };
    let mut any = false;
    for mut read in gateway::read_listeners(&owner, raw::list(set, "/spec/listeners"), grants) {
        gateway::judge_listener(&read.listener, gateway.listeners.iter(), &mut read.verdict);
        if read.verdict.accepted.is_yes() && gateway.listeners.len() >= LISTENERS_MAX {
            let text = format!("the Gateway and its sets have {LISTENERS_MAX} listeners already");
            read.verdict.accepted = Verdict::no(Reason::TooLarge, text);
        }
        any |= read.verdict.accepted.is_yes();
        add(name, read, gateway);
    }
    if any {
        Verdict::Yes
    } else {
        Verdict::no(Reason::UnsupportedValue, "none of its listeners can be used")
    }
}

fn add(set: &NsName, read: Read, gateway: &mut HubGateway) {
    let Read { mut listener, mut door, verdict, mut written } = read;
    door.set = Some(set.clone());
    if verdict.accepted.is_yes() {
        listener.name = names::set_listener(set, &listener.name);
        written["name"] = listener.name.as_str().into();
        settle_in(&mut written, &set.namespace);
        // One with a certificate that it was not granted is left out: in the Gateway, whose namespace may
        // be that of the Secret, nobody would ask for a grant any more.
        let global = gateway.global.as_mut().filter(|_| verdict.certificates.is_none());
        if let Some(global) = global {
            let spec = Arc::make_mut(&mut global.spec);
            if let Some(listeners) = spec.get_mut("listeners").and_then(Json::as_array_mut) {
                listeners.push(written);
            }
            global.listeners.push(listener.clone());
        }
        gateway.listeners.push(listener);
    }
    gateway.doors.push(door);
    gateway.verdict.listeners.push(verdict);
}

/// What a listener leaves unsaid means the namespace of its set; in the Gateway it would mean that of
/// the Gateway.
fn settle_in(listener: &mut Json, namespace: &str) {
    for list in ["/tls/certificateRefs", "/tls/frontendValidation/caCertificateRefs"] {
        let Some(references) = listener.pointer_mut(list).and_then(Json::as_array_mut) else {
            continue;
        };
        for reference in references.iter_mut().filter_map(Json::as_object_mut) {
            reference.entry("namespace").or_insert_with(|| namespace.into());
        }
    }
    // What cannot be read lets nobody in, and stays as it is.
    let is_same = match listener.pointer("/allowedRoutes/namespaces/from") {
        None | Some(Json::Null) => true,
        Some(from) => from == "Same",
    };
    if is_same {
        if !listener["allowedRoutes"].is_object() {
            listener["allowedRoutes"] = json!({});
        }
        listener["allowedRoutes"]["namespaces"] = json!({
            "from": "Selector",
            "selector": {"matchLabels": {NAMESPACE_NAME: namespace}},
        });
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::ingest::hub::ingest_hub;

    #[test]
    fn a_gateway_and_its_sets_have_64_listeners_at_most() {
        let listener =
            |n: usize| json!({"name": format!("l{n}"), "port": n + 1, "protocol": "TCP"});
        let meta = |name: &str| json!({"name": name, "namespace": "infra"});
        let mut objects = HubObjects::default();
        for object in [
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": "fairlead"}, "spec": {"controllerName": keys::CONTROLLER_NAME}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta("g"),
                "spec": {"gatewayClassName": "fairlead", "allowedListeners": {"namespaces": {"from": "All"}},
                    "listeners": (0..63).map(listener).collect::<Vec<_>>()}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "ListenerSet", "metadata": meta("s"),
                "spec": {"parentRef": {"name": "g"}, "listeners": [listener(70), listener(71)]}}),
        ] {
            assert!(objects.insert(object));
        }
        let found = ingest_hub(&objects);
        let set = &found.listener_sets[&NsName::new("infra", "s")];
        let accepted: Vec<bool> = set.listeners.iter().map(|l| l.accepted.is_yes()).collect();
        assert_eq!((accepted, set.accepted.is_yes()), (vec![true, false], true));
        let gateway = &found.policy.gateways[&NsName::new("infra", "g")];
        assert_eq!(gateway.spec["listeners"].as_array().unwrap().len(), 64);
    }
}
