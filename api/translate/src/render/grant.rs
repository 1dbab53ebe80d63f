//! ReferenceGrants: from some kinds of some namespaces to exactly the named objects.

use fairlead_crds::keys;
use fairlead_model::Json;
use serde_json::json;

use super::{GATEWAY_API, metadata};

/// Most entries of `from` and of `to`, as the Gateway API says.
pub(super) const GRANT_ENTRIES_MAX: usize = 16;

/// An entry of `from`: a Gateway API kind of a namespace.
pub(super) fn from(kind: &str, namespace: &str) -> Json {
    json!({"group": keys::GATEWAY_GROUP, "kind": kind, "namespace": namespace})
}

/// An entry of `to`: an object of the core group.
pub(super) fn to(kind: &str, name: &str) -> Json {
    json!({"group": "", "kind": kind, "name": name})
}

/// A grant.
pub(super) fn grant(namespace: &str, name: &str, from: Vec<Json>, to: Vec<Json>) -> Json {
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "ReferenceGrant",
        "metadata": metadata(namespace, name),
        "spec": {"from": from, "to": to},
    })
}
