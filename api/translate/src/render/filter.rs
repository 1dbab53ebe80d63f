//! What has to change in a user's filters and references before a member may see them.
//!
//! Owns three things: the header of a remote backend, merged into the user's own modifier (a backendRef
//! has at most one); mirrors that name a ServiceImport; references that must fail in every member.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::policy::Mirror;
use fairlead_model::{Json, NsName, Reason};
use serde_json::json;

use super::Draft;

/// Most entries of `set`, `add` and `remove`, as the Gateway API says.
const HEADERS_MAX: usize = 16;

/// Kind of a reference that no member can resolve, so that its share fails as the spec says.
const INVALID_BACKEND_KIND: &str = "UnresolvedBackend";

/// Why a header could not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

/// Takes our header out of the modifiers of a list of filters: Envoy applies those of a rule after
/// those of a backend, so that a user's own `set` or `remove` of it would win over ours.
pub(super) fn strip_header(filters: &mut Json) -> bool {
    let mut found = false;
    for filter in filters.as_array_mut().into_iter().flatten() {
        if let Some(modifier) = filter.get_mut("requestHeaderModifier") {
            found |= strip_modifier(modifier);
        }
    }
    found
}

fn strip_modifier(modifier: &mut Json) -> bool {
    let is_ours = |name: Option<&str>| {
        name.is_some_and(|name| name.eq_ignore_ascii_case(keys::HEADER_BACKEND))
    };
    let mut found = false;
    for list in ["set", "add", "remove"] {
        let Some(entries) = modifier.get_mut(list).and_then(Json::as_array_mut) else { continue };
        let before = entries.len();
        entries.retain(|entry| {
            !is_ours(entry.as_str()) && !is_ours(entry.get("name").and_then(Json::as_str))
        });
        if entries.len() == before {
            continue;
        }
        found = true;
        if entries.is_empty()
            && let Some(lists) = modifier.as_object_mut()
        {
            lists.remove(list);
        }
    }
    found
}

/// Sets our header in the filters of a backendRef.
///
/// # Errors
/// [`NoRoom`] when the user's own modifier is full; the filters are unchanged then.
pub(super) fn set_header(backend: &mut Json, capability: &str) -> Result<(), NoRoom> {
    if !backend["filters"].is_array() {
        backend["filters"] = json!([]);
    }
    strip_header(&mut backend["filters"]);
    let entry = json!({"name": keys::HEADER_BACKEND, "value": capability});
    let filters = backend["filters"].as_array_mut().expect("made an array above");
    let own = filters
        .iter_mut()
        .find(|filter| filter.get("type").and_then(Json::as_str) == Some("RequestHeaderModifier"));
    let Some(own) = own else {
        filters.push(json!({
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": [entry]},
        }));
        return Ok(());
    };
    if !own["requestHeaderModifier"].is_object() {
        own["requestHeaderModifier"] = json!({});
    }
    // `set` replaces what a client sent. `add` would not, but the door takes exact values only, so
    // that a client who sends the header itself harms only itself.
    for list in ["set", "add"] {
        let entries = &mut own["requestHeaderModifier"][list];
        if !entries.is_array() {
            *entries = json!([]);
        }
        let entries = entries.as_array_mut().expect("made an array above");
        if entries.len() < HEADERS_MAX {
            entries.push(entry);
            return Ok(());
        }
    }
    Err(NoRoom)
}

/// Lets a backend without filters forget a header that a client sent as if it were ours. Beside remote
/// backends every backend has a filter by that: Envoy Gateway gives each backend of a rule a cluster of
/// its own name if one has filters, and all of them one cluster if none has. Were the local one without,
/// the names would change, and requests fail, whenever the last remote backend comes or goes.
pub(super) fn forget_header(backend: &mut Json) {
    let filters = backend.get("filters").and_then(Json::as_array);
    if filters.is_some_and(|filters| !filters.is_empty()) {
        return;
    }
    backend["filters"] = json!([{
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"remove": [keys::HEADER_BACKEND]},
    }]);
}

/// Where copies of requests go.
pub(super) struct MirrorTargets<'a> {
    /// Namespace of the route: where a reference without one leads.
    pub(super) namespace: &'a str,
    /// Service and port as written → the Service that takes them here, at the same port.
    pub(super) targets: BTreeMap<(NsName, u16), NsName>,
    /// Mirrors that the plan knows: why one of them has no target was said there.
    pub(super) told: &'a [Mirror],
}

/// Rewrites mirrors that name a ServiceImport to what takes the copies here, or takes them out.
pub(super) fn rewrite_mirrors(
    filters: &mut Json,
    targets: &MirrorTargets<'_>,
    subject: &str,
    draft: &mut Draft,
) {
    let Some(list) = filters.as_array_mut() else { return };
    list.retain_mut(|filter| {
        let Some(backend) = filter.pointer_mut("/requestMirror/backendRef") else { return true };
        if !is_service_import(backend) {
            return true;
        }
        let reference = reference(backend, targets.namespace);
        if let Some(key) = &reference
            && let Some(to) = targets.targets.get(key)
        {
            point_to_service(backend, to, key.1);
            return true;
        }
        let is_told = reference.is_some_and(|(service, port)| {
            targets.told.iter().any(|mirror| mirror.service == service && mirror.port == port)
        });
        if !is_told {
            let name = backend.get("name").and_then(Json::as_str).unwrap_or_default().to_owned();
            let message = format!("requests are not mirrored to {name}: the plan does not know it");
            draft.note(subject, Reason::CheckFailed, message);
        }
        false
    });
}

/// True for a reference to a ServiceImport.
pub(super) fn is_service_import(reference: &Json) -> bool {
    let text = |name: &str| reference.get(name).and_then(Json::as_str);
    text("kind") == Some("ServiceImport") && text("group") == Some(keys::MCS_GROUP)
}

fn reference(backend: &Json, namespace: &str) -> Option<(NsName, u16)> {
    let namespace = crate::raw::field(backend, "namespace").unwrap_or(namespace);
    Some((
        NsName::new(namespace, crate::raw::field(backend, "name")?),
        crate::raw::port(backend, "port")?,
    ))
}

/// Makes a reference lead to a Service. Everything else that the user wrote there stays.
pub(super) fn point_to_service(reference: &mut Json, service: &NsName, port: u16) {
    reference["group"] = "".into();
    reference["kind"] = "Service".into();
    reference["namespace"] = (*service.namespace).into();
    reference["name"] = (*service.name).into();
    reference["port"] = port.into();
}

/// Makes a reference fail in every member, whatever lives there under its name: its share fails.
pub(super) fn point_to_nothing(reference: &mut Json) {
    reference["group"] = keys::GROUP.into();
    reference["kind"] = INVALID_BACKEND_KIND.into();
    if crate::raw::field(reference, "name").is_none() {
        reference["name"] = "unreadable".into();
    }
    if let Some(fields) = reference.as_object_mut() {
        // Without a namespace no grant is asked for: the reason stays InvalidKind, not RefNotPermitted.
        fields.remove("namespace");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn modifier(lists: Json) -> Json {
        json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": lists}]})
    }

    fn headers(count: usize) -> Vec<Json> {
        (0..count).map(|at| json!({"name": format!("h{at}"), "value": "v"})).collect()
    }

    #[test]
    fn header_is_merged_into_the_users_own_modifier() {
        let mut backend = modifier(json!({"set": [{"name": "x", "value": "y"}], "later": 1}));
        set_header(&mut backend, "cap").unwrap();
        assert_eq!(
            backend,
            modifier(json!({"later": 1, "set": [
                {"name": "x", "value": "y"}, {"name": "fairlead-backend", "value": "cap"}]}))
        );
    }

    #[test]
    fn user_cannot_set_or_remove_our_header_in_any_case() {
        let mut backend = modifier(json!({
            "set": [{"name": "Fairlead-Backend", "value": "forged"}],
            "add": [{"name": "fairlead-backend", "value": "forged"}],
            "remove": ["FAIRLEAD-BACKEND", "other"],
        }));
        set_header(&mut backend, "cap").unwrap();
        assert_eq!(
            backend,
            modifier(json!({"set": [{"name": "fairlead-backend", "value": "cap"}],
                "remove": ["other"]}))
        );
    }

    #[test]
    fn full_modifier_takes_the_header_in_its_other_list() {
        let mut backend = modifier(json!({"set": headers(16)}));
        set_header(&mut backend, "cap").unwrap();
        assert_eq!(
            backend.pointer("/filters/0/requestHeaderModifier/add/0/value"),
            Some(&json!("cap"))
        );
        let mut full = modifier(json!({"set": headers(16), "add": headers(16)}));
        assert_eq!(set_header(&mut full, "cap"), Err(NoRoom));
    }

    #[test]
    fn filters_of_a_wrong_type_do_no_harm() {
        for filters in [json!(null), json!("x"), json!([1, "x", {"type": 3}])] {
            let mut backend = json!({"filters": filters});
            set_header(&mut backend, "cap").unwrap();
        }
        for modifier in [json!(null), json!(3), json!({"set": 1})] {
            let mut backend = json!({"filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": modifier}]});
            set_header(&mut backend, "cap").unwrap();
        }
    }
}
