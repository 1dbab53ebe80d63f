//! What is in the member's API server, as far as the agent keeps it.
//!
//! Owns the trimming: of an object that is not ours and that nobody reads, only its identity stays,
//! so that a cluster with thousands of foreign objects costs little. Ours are kept whole, without
//! the bookkeeping of other field managers.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::{IdError, Json, ObjectId};

use crate::own;

/// Objects by id.
pub type LiveObjects = BTreeMap<ObjectId, Arc<LiveObject>>;

/// How much of a foreign object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All but the bookkeeping of field managers.
    Whole,
    /// Identity only.
    Identity,
}

/// An object as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveObject {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// The object without `metadata.managedFields`.
    pub content: Json,
    /// The fields that we own (`fieldsV1` of our own applies); none when we own nothing.
    pub owned: Option<Json>,
}

impl LiveObject {
    /// Reads an object and trims it.
    ///
    /// # Errors
    /// [`IdError`] when it does not say what it is.
    pub fn of(mut object: Json, keep: Keep) -> Result<(ObjectId, Self), IdError> {
        let id = ObjectId::of(&object)?;
        let owned = take_owned(&mut object);
        let text = |field: &str| {
            let value = object.pointer("/metadata").and_then(|meta| meta.get(field));
            value.and_then(Json::as_str).unwrap_or_default().to_owned()
        };
        let (uid, resource_version) = (text("uid"), text("resourceVersion"));
        let content = match keep {
            Keep::Identity if !is_ours(&object) => identity_of(&object),
            Keep::Identity | Keep::Whole => object,
        };
        Ok((id, Self { uid, resource_version, content, owned }))
    }

    /// True when it carries our label, so that it is ours to change and to prune.
    pub fn is_ours(&self) -> bool {
        is_ours(&self.content)
    }

    /// True when somebody asked for its deletion and it waits for finalizers.
    pub fn is_terminating(&self) -> bool {
        self.content.pointer("/metadata/deletionTimestamp").is_some()
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.content.pointer("/metadata/annotations")?.get(key)?.as_str()
    }
}

fn is_ours(object: &Json) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.and_then(|l| l.get(own::MANAGED_BY)).and_then(Json::as_str) == Some(own::FAIRLEAD)
}

/// Removes `metadata.managedFields` and returns the fields that our own applies own.
fn take_owned(object: &mut Json) -> Option<Json> {
    let managed = object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")?;
    let Json::Array(entries) = managed else { return None };
    let text = |entry: &Json, key: &str| entry.get(key).and_then(Json::as_str).map(str::to_owned);
    entries.into_iter().find_map(|mut entry| {
        let ours = text(&entry, "manager").as_deref() == Some(own::FIELD_MANAGER)
            && text(&entry, "operation").as_deref() == Some("Apply")
            && entry.get("subresource").and_then(Json::as_str).unwrap_or_default().is_empty();
        let fields = entry.get_mut("fieldsV1").map(Json::take)?;
        let any = fields.as_object().is_some_and(|map| !map.is_empty());
        (ours && any).then_some(fields)
    })
}

fn identity_of(object: &Json) -> Json {
    let meta = object.get("metadata");
    let field = |name: &str| meta.and_then(|m| m.get(name)).cloned().unwrap_or(Json::Null);
    serde_json::json!({
        "apiVersion": object.get("apiVersion"),
        "kind": object.get("kind"),
        "metadata": {"name": field("name"), "namespace": field("namespace")},
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(label: &str) -> Json {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "resourceVersion": "7",
                "labels": {"app.kubernetes.io/managed-by": label},
                "managedFields": [
                    {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {"f:x": {}}}},
                    {"manager": "fairlead-agent", "operation": "Update", "fieldsV1": {"f:y": {}}},
                    {"manager": "fairlead-agent", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"ports": []}})
    }

    #[test]
    fn ours_is_kept_whole_with_only_our_fields_noted() {
        let (id, live) = LiveObject::of(object("fairlead"), Keep::Identity).unwrap();
        assert_eq!(id.to_string(), "/v1/Service/b/a");
        assert!(live.is_ours() && live.content.get("spec").is_some());
        assert_eq!(live.owned, Some(json!({"f:spec": {}})));
        assert_eq!((live.uid.as_str(), live.resource_version.as_str()), ("u", "7"));
        assert!(live.content.pointer("/metadata/managedFields").is_none());
    }

    #[test]
    fn of_a_foreign_object_only_the_identity_stays() {
        let (_, live) = LiveObject::of(object("Helm"), Keep::Identity).unwrap();
        assert!(!live.is_ours() && live.content.get("spec").is_none());
        let (_, live) = LiveObject::of(object("Helm"), Keep::Whole).unwrap();
        assert!(!live.is_ours() && live.content.get("spec").is_some());
    }

    #[test]
    fn an_object_without_a_name_is_an_error() {
        assert!(LiveObject::of(json!({"kind": "Service"}), Keep::Whole).is_err());
        assert!(LiveObject::of(json!(7), Keep::Whole).is_err());
    }
}
