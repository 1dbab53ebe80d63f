//! Everything that a cluster holds, to compare before and after.
//!
//! A dump lists every kind that can be listed. Left out are kinds that change all the time by
//! themselves (events, leases) or follow others (the addresses of Services). Never writes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, TypeMeta},
    discovery::{Discovery, verbs},
};
use serde_json::Value;

use crate::cluster::Cluster;

/// Kinds that change without anybody's wanting.
const RESTLESS: &[&str] = &["Event", "Lease", "ComponentStatus", "IPAddress"];
/// Lists at a time.
const LISTS_AT_ONCE: usize = 8;

/// All objects of a cluster at about one time, by `Kind namespace/name` and API group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    objects: BTreeMap<String, Value>,
}

impl Dump {
    pub async fn take(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client();
        let discovery = Discovery::new(client.clone()).run_aggregated().await;
        let discovery = discovery.with_context(|| format!("discovery in {}", cluster.name()))?;
        let kinds: Vec<ApiResource> = discovery
            .groups()
            .flat_map(|group| group.recommended_resources())
            .filter(|(kind, can)| {
                can.supports_operation(verbs::LIST) && !RESTLESS.contains(&kind.kind.as_str())
            })
            .map(|(kind, _)| kind)
            .collect();
        let lists: Vec<_> = kinds.into_iter().map(|kind| list(client.clone(), kind)).collect();
        let lists: Vec<Vec<(String, Value)>> =
            stream::iter(lists).buffer_unordered(LISTS_AT_ONCE).try_collect().await?;
        Ok(Self { objects: lists.into_iter().flatten().collect() })
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.objects.get(key)
    }

    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    pub fn keys(&self) -> BTreeSet<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    /// Only the objects that satisfy a condition on key and object.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str, &Value) -> bool) -> Self {
        let objects = self.objects.iter().filter(|(key, object)| keep(key, object));
        Self { objects: objects.map(|(key, object)| (key.clone(), object.clone())).collect() }
    }

    /// What carries a label of Fairlead.
    #[must_use]
    pub fn ours(&self) -> Self {
        self.only(|_, object| is_ours(object))
    }

    /// The same without what a kubelet and the controllers write because a process restarted.
    #[must_use]
    pub fn ours_but_pods(&self) -> Self {
        self.only(|key, object| is_ours(object) && !is_of_a_pod(key))
    }

    /// What does not.
    #[must_use]
    pub fn foreign(&self) -> Self {
        self.only(|_, object| !is_ours(object))
    }

    /// Objects that were written between two dumps: added, removed, or with another
    /// resourceVersion. One line each.
    pub fn writes_until(&self, later: &Self) -> Vec<String> {
        self.compare(later, |object| object["metadata"]["resourceVersion"].clone())
    }

    /// Objects whose content a person would call changed: everything but status and the API
    /// server's own bookkeeping. One line each.
    pub fn changes_until(&self, later: &Self) -> Vec<String> {
        self.compare(later, content)
    }

    /// Objects that say something else, whoever made them and when. One line each.
    pub fn differences_to(&self, later: &Self) -> Vec<String> {
        self.compare(later, meaning)
    }

    fn compare(&self, later: &Self, of: impl Fn(&Value) -> Value) -> Vec<String> {
        let keys: BTreeSet<&String> = self.objects.keys().chain(later.objects.keys()).collect();
        let line = |key: &String| match (self.objects.get(key), later.objects.get(key)) {
            (Some(_), None) => Some(format!("- {key}")),
            (None, Some(_)) => Some(format!("+ {key}")),
            (Some(a), Some(b)) if of(a) != of(b) => Some(format!("~ {key}{}", writers(b))),
            _ => None,
        };
        keys.into_iter().filter_map(line).collect()
    }
}

fn is_of_a_pod(key: &str) -> bool {
    [
        "Pod ",
        "Deployment.apps ",
        "EndpointSlice.discovery.k8s.io fairlead-system/fairlead-",
        "Endpoints ",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

/// The key of an object in a dump.
pub fn key(api_version: &str, kind: &str, namespace: &str, name: &str) -> String {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let place = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("{kind}{group} {place}{name}")
}

async fn list(client: kube::Client, kind: ApiResource) -> Result<Vec<(String, Value)>> {
    let api: Api<DynamicObject> = Api::all_with(client, &kind);
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed,
        // A CRD that went between discovery and here has no objects.
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", kind.kind)),
    };
    let keyed = |mut object: DynamicObject| {
        object.types =
            Some(TypeMeta { api_version: kind.api_version.clone(), kind: kind.kind.clone() });
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let key = key(&kind.api_version, &kind.kind, &namespace, &name);
        Ok((key, serde_json::to_value(object).context("reading an object")?))
    };
    listed.items.into_iter().map(keyed).collect()
}

fn is_ours(object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    labels["app.kubernetes.io/managed-by"] == "fairlead"
        || labels["app.kubernetes.io/part-of"] == "fairlead"
}

fn content(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    if object["kind"] == "GatewayClass"
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        // Its controller marks by a finalizer whether any Gateway is of the class.
        metadata.remove("finalizers");
    }
    object
}

/// Content without what tells one incarnation of an object from the next.
fn meaning(object: &Value) -> Value {
    let mut object = content(object);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in ["uid", "creationTimestamp", "generation"] {
            metadata.remove(key);
        }
    }
    if object["kind"] == "Service"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        // Given by the API server to each incarnation.
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    object
}

/// Who wrote last, for the reader of a failure.
fn writers(object: &Value) -> String {
    let fields = object["metadata"]["managedFields"].as_array();
    let latest = fields.into_iter().flatten().max_by_key(|entry| entry["time"].as_str());
    let text = |key: &str| latest.and_then(|entry| entry[key].as_str()).unwrap_or("").to_owned();
    match (text("manager"), text("subresource")) {
        (manager, _) if manager.is_empty() => String::new(),
        (manager, part) if part.is_empty() => format!(" (by {manager})"),
        (manager, part) => format!(" (its {part}, by {manager})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_dump(objects: &[(&str, Value)]) -> Dump {
        Dump { objects: objects.iter().map(|(key, o)| ((*key).to_owned(), o.clone())).collect() }
    }

    #[test]
    fn a_status_is_a_write_but_no_change() {
        let object = |version: &str, status: &str| json!({"metadata": {"resourceVersion": version}, "spec": 1, "status": status});
        let (before, after) =
            (mk_dump(&[("A x", object("1", "a"))]), mk_dump(&[("A x", object("2", "b"))]));
        assert_eq!(before.writes_until(&after), ["~ A x"]);
        assert!(before.changes_until(&after).is_empty());
    }

    #[test]
    fn what_came_and_went_is_told() {
        let (before, after) = (mk_dump(&[("A x", json!({}))]), mk_dump(&[("A y", json!({}))]));
        assert_eq!(before.changes_until(&after), ["- A x", "+ A y"]);
    }

    #[test]
    fn labels_tell_whose_an_object_is() {
        let ours = json!({"metadata": {"labels": {"app.kubernetes.io/part-of": "fairlead"}}});
        let dump = mk_dump(&[("A ours", ours), ("A foreign", json!({"metadata": {}}))]);
        assert_eq!(dump.ours().keys(), BTreeSet::from(["A ours"]));
        assert_eq!(dump.foreign().keys(), BTreeSet::from(["A foreign"]));
        assert_eq!(key("a/v1", "K", "n", "x"), "K.a n/x");
        assert_eq!(key("v1", "K", "", "x"), "K x");
    }
}
