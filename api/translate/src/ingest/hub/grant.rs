//! ReferenceGrants of the hub: who may refer to what in another namespace. A grant that is gone, or
//! going, grants nothing; one that an agent wrote is no owner's word.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::{Json, NsName, RouteKey};

use crate::raw;

/// Who is granted, and what: kind of the Gateway API, its namespace, group/kind granted, name.
type Entry = (String, String, String, Option<String>);

/// All grants, by the namespace that grants.
pub(super) struct Grants(BTreeMap<String, BTreeSet<Entry>>);

impl Grants {
    /// Reads grants.
    pub(super) fn new(objects: &BTreeMap<NsName, Json>) -> Self {
        let mut grants: BTreeMap<String, BTreeSet<Entry>> = BTreeMap::new();
        let counts = |object: &Json| !raw::is_deleting(object) && !raw::is_ours(object);
        for (name, object) in objects.iter().filter(|(_, object)| counts(object)) {
            let entries = grants.entry(name.namespace.to_string()).or_default();
            for from in raw::list(object, "/spec/from") {
                let Some((kind, namespace)) = granted_from(from) else { continue };
                let to = raw::list(object, "/spec/to").iter().filter_map(granted);
                entries.extend(to.map(|(to, name)| (kind.clone(), namespace.clone(), to, name)));
            }
        }
        Self(grants)
    }

    /// Whether a route may refer to an object.
    pub(super) fn permits(&self, route: &RouteKey, group: &str, kind: &str, to: &NsName) -> bool {
        self.permits_from(route.kind.as_str(), &route.name.namespace, group, kind, to)
    }

    /// Whether an object of the Gateway API may refer to another.
    pub(super) fn permits_from(
        &self,
        from_kind: &str,
        from_namespace: &str,
        group: &str,
        kind: &str,
        to: &NsName,
    ) -> bool {
        if *to.namespace == *from_namespace {
            return true;
        }
        let Some(entries) = self.0.get(&*to.namespace) else { return false };
        let entry = |name: Option<String>| {
            (from_kind.to_owned(), from_namespace.to_owned(), format!("{group}/{kind}"), name)
        };
        entries.contains(&entry(None)) || entries.contains(&entry(Some(to.name.to_string())))
    }
}

fn granted_from(from: &Json) -> Option<(String, String)> {
    let is_gateway_api = raw::field(from, "group") == Some(keys::GATEWAY_GROUP);
    let kind = raw::field(from, "kind").filter(|_| is_gateway_api)?;
    Some((kind.to_owned(), raw::field(from, "namespace")?.to_owned()))
}

/// Without a name all objects of the kind are granted; with one that cannot be read none is.
fn granted(to: &Json) -> Option<(String, Option<String>)> {
    let group = to.get("group").and_then(Json::as_str).unwrap_or_default();
    let name = match to.get("name") {
        None | Some(Json::Null) => None,
        Some(name) => Some(name.as_str()?.to_owned()).filter(|name| !name.is_empty()),
    };
    Some((format!("{group}/{}", raw::field(to, "kind")?), name))
}
