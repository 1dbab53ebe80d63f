//! Gateways and GatewayClasses of a member.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::snapshot::{
    Address, GatewayClassState, GatewayRole, GatewayState, ListenerState,
};
use fairlead_model::{Json, Note, NsName, Reason};

use super::CapabilityFix;
use super::feature::known_features;
use crate::raw;

/// Most addresses, as the Gateway API says.
const ADDRESSES_MAX: usize = 16;
/// Most listeners, as the Gateway API says.
const LISTENERS_MAX: usize = 64;

/// What a GatewayClass can do: what its controller publishes, else what is known of it; corrected by
/// the member's own configuration.
pub fn ingest_gateway_class(class: &Json, fix: Option<&CapabilityFix>) -> GatewayClassState {
    let controller = raw::text(class, "/spec/controllerName").unwrap_or_default().to_owned();
    let accepted =
        raw::condition(raw::list(class, "/status/conditions"), "Accepted", raw::generation(class));
    // Objects since v1.1, plain text before.
    let name = |feature: &Json| {
        feature.as_str().or_else(|| raw::field(feature, "name")).map(str::to_owned)
    };
    let published: BTreeSet<String> =
        raw::list(class, "/status/supportedFeatures").iter().filter_map(name).collect();
    let known =
        || known_features(&controller).map(|list| list.iter().map(|f| (*f).to_owned()).collect());
    let mut features = if published.is_empty() { known() } else { Some(published) };
    if let Some(fix) = fix {
        let features: &mut BTreeSet<String> = features.get_or_insert_default();
        features.extend(fix.supported.iter().cloned());
        features.retain(|feature| !fix.unsupported.contains(feature));
    }
    GatewayClassState { accepted: accepted.and_then(|c| c.verdict()), controller, features }
}

/// A Gateway that matters to the hub: lent by its owner, made by us, or the door. None: any other.
///
/// Listeners of ListenerSets are not read.
pub fn ingest_gateway(gateway: &Json) -> (Option<GatewayState>, Vec<Note>) {
    let mut notes = Vec::new();
    if raw::is_deleting(gateway) {
        return (None, notes);
    }
    let class = raw::text(gateway, "/spec/gatewayClassName").unwrap_or_default().to_owned();
    let Some(role) = role(gateway, &class, &mut notes) else { return (None, notes) };
    let generation = raw::generation(gateway);
    let conditions = raw::list(gateway, "/status/conditions");
    let programmed = raw::condition(conditions, "Programmed", generation);
    let verdict = programmed.and_then(|condition| condition.verdict());
    let message = match verdict {
        Some(true) => String::new(),
        Some(false) | None => complaint(conditions, generation),
    };
    let state = GatewayState {
        class,
        role,
        programmed: verdict,
        message,
        // An address of a Gateway that is not programmed is one of before, or one that was only asked for.
        addresses: if verdict == Some(true) { addresses(gateway) } else { BTreeSet::new() },
        listeners: listeners(gateway, generation),
    };
    (Some(state), notes)
}

fn role(gateway: &Json, class: &str, notes: &mut Vec<Note>) -> Option<GatewayRole> {
    let name = raw::ns_name(gateway)?;
    if raw::is_ours(gateway) {
        if &*name.namespace == keys::NAMESPACE && &*name.name == keys::EAST_WEST_GATEWAY {
            return Some(GatewayRole::Door);
        }
        let mirrored = raw::annotation(gateway, keys::MIRROR_OF)?.strip_prefix("Gateway/")?;
        return Some(GatewayRole::Created(mirrored.parse().ok()?));
    }
    let lent_to = raw::annotation(gateway, keys::GLOBAL_GATEWAY)?;
    let subject = format!("Gateway {name}");
    if class == keys::GATEWAY_CLASS {
        let message = format!("a Gateway of class {class} is a global one and cannot be lent");
        notes.push(Note::new(subject, Reason::UnsupportedValue, message));
        return None;
    }
    let Ok(global) = lent_to.parse::<NsName>() else {
        let message = format!(
            "annotation {} is {:?}, not <namespace>/<name> of a global gateway",
            keys::GLOBAL_GATEWAY,
            fairlead_model::id::printable(lent_to)
        );
        notes.push(Note::new(subject, Reason::Unreadable, message));
        return None;
    };
    Some(GatewayRole::Lent(global))
}

/// What speaks against it: the condition that explains most comes first.
fn complaint(conditions: &[Json], generation: i64) -> String {
    let against = ["Accepted", "ResolvedRefs", "Programmed"]
        .into_iter()
        .filter_map(|kind| raw::condition(conditions, kind, generation))
        .find(|condition| condition.verdict() == Some(false));
    against.map_or_else(String::new, |c| raw::bounded(&format!("{}: {}", c.reason, c.message)))
}

fn addresses(gateway: &Json) -> BTreeSet<Address> {
    let values =
        raw::list(gateway, "/status/addresses").iter().filter_map(|a| raw::field(a, "value"));
    values.filter_map(address).take(ADDRESSES_MAX).collect()
}

/// An IP address or a host name; anything else is no address.
fn address(value: &str) -> Option<Address> {
    let value = value.trim_end_matches('.').to_ascii_lowercase();
    let address = Address::of(&value);
    let is_host = |name: &str| {
        name.len() <= 253 && name.split('.').all(|label| fairlead_model::id::is_label(label, 63))
    };
    match &address {
        Address::Ip(_) => Some(address),
        Address::Name(name) => is_host(name).then_some(address),
    }
}

fn listeners(gateway: &Json, generation: i64) -> BTreeMap<String, ListenerState> {
    let mut listeners = BTreeMap::new();
    for listener in raw::list(gateway, "/spec/listeners").iter().take(LISTENERS_MAX) {
        let (Some(name), Some(port)) = (raw::field(listener, "name"), raw::port(listener, "port"))
        else {
            continue; // No API server lets such a listener in.
        };
        let status = raw::list(gateway, "/status/listeners")
            .iter()
            .find(|status| raw::field(status, "name") == Some(name));
        let conditions = status.map_or(&[][..], |status| raw::list(status, "/conditions"));
        let programmed =
            raw::condition(conditions, "Programmed", generation).and_then(|c| c.verdict());
        let message = match programmed {
            Some(false) => complaint(conditions, generation),
            Some(true) | None => String::new(),
        };
        let state = ListenerState {
            port,
            protocol: raw::field(listener, "protocol").unwrap_or_default().to_owned(),
            hostname: raw::field(listener, "hostname").map(str::to_owned),
            programmed,
            message,
        };
        listeners.insert(name.to_owned(), state);
    }
    listeners
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn lent(status: Json) -> Json {
        json!({
            "metadata": {"name": "edge", "namespace": "infra", "generation": 2,
                "annotations": {"fairlead.dev/global-gateway": "infra/public"}},
            "spec": {"gatewayClassName": "eg", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
            "status": status,
        })
    }

    fn programmed(generation: i64, status: &str) -> Json {
        json!({
            "addresses": [{"type": "IPAddress", "value": "192.0.2.7"}, {"type": "Hostname", "value": "LB.example.com."},
                {"type": "Hostname", "value": "not a host"}],
            "conditions": [{"type": "Programmed", "status": status, "observedGeneration": generation,
                "reason": "Programmed", "message": "hello"}],
            "listeners": [{"name": "http", "conditions": [
                {"type": "Programmed", "status": "True", "observedGeneration": generation}]}],
        })
    }

    fn state(gateway: &Json) -> GatewayState {
        ingest_gateway(gateway).0.unwrap()
    }

    #[test]
    fn lent_gateway_is_known_by_its_annotation() {
        let gateway = state(&lent(programmed(2, "True")));
        assert_eq!(gateway.role, GatewayRole::Lent("infra/public".parse().unwrap()));
        let addresses: Vec<String> = gateway.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (addresses, gateway.programmed),
            (vec!["192.0.2.7".into(), "lb.example.com".into()], Some(true))
        );
        assert_eq!(gateway.listeners["http"].programmed, Some(true));
    }

    #[test]
    fn condition_of_an_older_generation_says_nothing() {
        let gateway = state(&lent(programmed(1, "True")));
        assert_eq!((gateway.programmed, gateway.addresses.len()), (None, 0));
        assert_eq!(gateway.listeners["http"].programmed, None);
    }

    #[test]
    fn missing_condition_is_unknown_and_not_false() {
        let gateway = state(&lent(json!({"addresses": [{"value": "192.0.2.7"}]})));
        assert_eq!((gateway.programmed, gateway.addresses.len()), (None, 0));
    }

    #[test]
    fn gateway_that_is_not_programmed_says_why_and_has_no_address() {
        let gateway = state(&lent(programmed(2, "False")));
        assert_eq!((gateway.programmed, gateway.addresses.len()), (Some(false), 0));
        assert_eq!(gateway.message, "Programmed: hello");
    }

    #[test]
    fn global_gateway_cannot_be_lent() {
        let mut gateway = lent(json!({}));
        gateway["spec"]["gatewayClassName"] = "fairlead".into();
        let (state, notes) = ingest_gateway(&gateway);
        assert_eq!((state, notes[0].reason), (None, Reason::UnsupportedValue));
    }

    #[test]
    fn annotation_without_a_name_is_noted() {
        let mut gateway = lent(json!({}));
        gateway["metadata"]["annotations"]["fairlead.dev/global-gateway"] = "public".into();
        let (state, notes) = ingest_gateway(&gateway);
        assert_eq!((state, notes[0].reason), (None, Reason::Unreadable));
    }

    #[test]
    fn other_gateways_and_those_on_their_way_out_do_not_matter() {
        let other = json!({"metadata": {"name": "a", "namespace": "b"}});
        assert_eq!(ingest_gateway(&other), (None, vec![]));
        let mut going = lent(json!({}));
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(ingest_gateway(&going), (None, vec![]));
    }

    #[test]
    fn our_own_gateways_are_known_by_our_label() {
        let mut gateway = json!({"metadata": {"name": "public-global", "namespace": "infra",
            "labels": {"app.kubernetes.io/managed-by": "fairlead"},
            "annotations": {"fairlead.dev/mirror-of": "Gateway/infra/public"}}});
        assert_eq!(state(&gateway).role, GatewayRole::Created("infra/public".parse().unwrap()));
        gateway["metadata"]["name"] = "fairlead-eastwest".into();
        gateway["metadata"]["namespace"] = "fairlead-system".into();
        assert_eq!(state(&gateway).role, GatewayRole::Door);
        gateway["metadata"]["labels"] = json!({});
        assert_eq!(ingest_gateway(&gateway).0, None);
    }

    #[test]
    fn published_features_win_and_configuration_corrects_them() {
        let class = json!({"spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "status": {"supportedFeatures": [{"name": "A"}, "B"]}});
        let fix =
            CapabilityFix { supported: ["C".into()].into(), unsupported: ["A".into()].into() };
        let features = |class: &Json, fix| ingest_gateway_class(class, fix).features.unwrap();
        assert_eq!(features(&class, None).len(), 2);
        assert_eq!(features(&class, Some(&fix)), ["B".to_owned(), "C".to_owned()].into());
        let silent = json!({"spec": class["spec"]});
        assert!(features(&silent, None).contains("HTTPRouteRequestMirror"));
        assert_eq!(ingest_gateway_class(&json!({}), None).features, None);
    }
}
