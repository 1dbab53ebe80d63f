//! Kubernetes objects as YAML and JSON: parsing, applying, waiting for conditions.
//!
//! Everything is dynamic: fields that no type of ours knows survive. Writes are server-side
//! apply with the field manager `fairlead-e2e`, forced, as a person at a terminal would.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    },
    discovery::{ApiCapabilities, Scope, pinned_kind},
};
use serde_json::{Value, json};

use crate::wait::{self, Look};

const MANAGER: &str = "fairlead-e2e";
/// More at a time only makes a starting API server slower.
const APPLY_AT_ONCE: usize = 6;
/// Attempts of a write whose connection fails.
const ATTEMPTS: usize = 4;

/// Reads all documents of a YAML text; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).context("reading YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Reads every `.yaml` file of a folder, in the order of their names.
pub fn parse_folder(dir: &Path) -> Result<Vec<Value>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|ext| ext == "yaml" || ext == "yml"));
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        objects.extend(parse(&text).with_context(|| format!("in {}", file.display()))?);
    }
    Ok(objects)
}

/// Fills `${NAME}` in a template; an unknown name is an error, not an empty string.
pub fn fill(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    if let Some(at) = text.find("${") {
        let name: String = text[at..].chars().take(40).take_while(|c| *c != '}').collect();
        bail!("nothing was given for {name}}}");
    }
    Ok(text)
}

/// Names one object for people and for lookups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectKey {
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Self { api_version: api_version.into(), kind: kind.into(), namespace, name: name.into() }
    }

    pub fn of(object: &Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let required = |pointer: &str| {
            text(pointer).map(str::to_owned).with_context(|| format!("an object lacks {pointer}"))
        };
        Ok(Self {
            api_version: required("/apiVersion")?,
            kind: required("/kind")?,
            namespace: text("/metadata/namespace").map(str::to_owned),
            name: required("/metadata/name")?,
        })
    }

    fn gvk(&self) -> GroupVersionKind {
        gvk(&self.api_version, &self.kind)
    }
}

fn gvk(api_version: &str, kind: &str) -> GroupVersionKind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    GroupVersionKind::gvk(group, version, kind)
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Does a call that may be done twice again while its connection fails: an API server that starts
/// together with three others on two cores sometimes does not come to a handshake in time.
async fn patiently<T, F>(call: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(kube::Error::Service(_) | kube::Error::HyperError(_)) => {}
            ended => return ended,
        }
    }
    call().await
}

/// Dynamic reads and writes in one cluster; remembers which kinds it serves.
pub struct Objects {
    client: Client,
    kinds: Mutex<BTreeMap<(String, String), (ApiResource, ApiCapabilities)>>,
}

impl Objects {
    pub fn new(client: Client) -> Self {
        Self { client, kinds: Mutex::new(BTreeMap::new()) }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Applies one object, its status left out.
    pub async fn apply(&self, object: &Value) -> Result<Value> {
        let key = ObjectKey::of(object)?;
        let api = self.api(&key).await?;
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        let applied = patiently(|| api.patch(&key.name, &params, &patch)).await;
        let applied = applied.with_context(|| format!("applying {key}"))?;
        serde_json::to_value(applied).context("reading an applied object")
    }

    /// Asks the API server whether it would take an object as it is; nothing is written.
    pub async fn try_apply(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        let api = self.api(&key).await?;
        let params = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER).force() };
        let tried = api.patch(&key.name, &params, &Patch::Apply(object)).await;
        tried.map(drop).with_context(|| format!("trying {key}"))
    }

    /// Applies one object's status.
    pub async fn apply_status(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        let api = self.api(&key).await?;
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        let applied = patiently(|| api.patch_status(&key.name, &params, &patch)).await;
        applied.with_context(|| format!("applying the status of {key}"))?;
        Ok(())
    }

    /// Applies objects in their order, so that namespaces come before what is in them.
    pub async fn apply_all(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.apply(object).await?;
        }
        Ok(())
    }

    /// Reads YAML and applies it, as `kubectl apply --server-side -f` would.
    pub async fn apply_yaml(&self, text: &str) -> Result<()> {
        self.apply_all(&parse(text)?).await
    }

    /// Applies CRDs (and policies that ship with them) and waits until they are served.
    pub async fn apply_crds(&self, objects: &[Value]) -> Result<()> {
        // Futures made first: a closure inside the stream would not be general enough to be sent.
        let applications: Vec<_> = objects.iter().map(|object| self.apply(object)).collect();
        let mut running = stream::iter(applications).buffer_unordered(APPLY_AT_ONCE);
        while running.try_next().await?.is_some() {}
        for object in objects {
            let key = ObjectKey::of(object)?;
            if key.kind == "CustomResourceDefinition" {
                self.wait_condition(&key, "Established", Duration::from_secs(60)).await?;
                self.wait_served(object).await?;
            }
        }
        Ok(())
    }

    /// A CRD that is Established shows up in discovery a moment later.
    async fn wait_served(&self, crd: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (group, kind) = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["kind"]));
        let versions = crd["spec"]["versions"].as_array().cloned().unwrap_or_default();
        for version in versions.iter().filter(|version| version["served"] == true) {
            let gvk = GroupVersionKind::gvk(&group, &text(&version["name"]), &kind);
            wait::until(&format!("{kind} to be served"), Duration::from_secs(30), || async {
                self.kind(&gvk).await?;
                Ok(Look::Done(()))
            })
            .await?;
        }
        Ok(())
    }

    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Value>> {
        let api = self.api(key).await?;
        let found = api.get_opt(&key.name).await.with_context(|| format!("reading {key}"))?;
        found.map(|object| serde_json::to_value(object).context("reading an object")).transpose()
    }

    /// All objects of a kind, everywhere, by label selector ("" for all).
    pub async fn list(&self, api_version: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let (resource, _) = self.kind(&gvk(api_version, kind)).await?;
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let params = ListParams::default().labels(selector);
        let listed = api.list(&params).await.with_context(|| format!("listing {kind}"))?;
        listed
            .items
            .into_iter()
            .map(|mut object| {
                // List items come without their kind.
                object.types = Some(kube::api::TypeMeta {
                    api_version: api_version.to_owned(),
                    kind: kind.to_owned(),
                });
                serde_json::to_value(object).context("reading an object")
            })
            .collect()
    }

    /// Deletes an object; one that is not there is fine.
    pub async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let api = self.api(key).await?;
        match api.delete(&key.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting {key}")),
        }
    }

    /// Waits until an object does not exist.
    pub async fn wait_gone(&self, key: &ObjectKey, limit: Duration) -> Result<()> {
        wait::until(&format!("{key} to be gone"), limit, || async {
            Ok(match self.get(key).await? {
                None => Look::Done(()),
                Some(_) => Look::Not("it still exists".into()),
            })
        })
        .await
    }

    /// Waits until `status.conditions` holds the type as True for the current generation.
    pub async fn wait_condition(&self, key: &ObjectKey, kind: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("{key} to be {kind}"), limit, || async {
            let Some(object) = self.get(key).await? else {
                return Ok(Look::Not("it does not exist".into()));
            };
            Ok(condition(&object["status"]["conditions"], &object, kind))
        })
        .await
    }

    /// Waits until every parent of a route says Accepted and ResolvedRefs.
    pub async fn wait_route(&self, key: &ObjectKey, limit: Duration) -> Result<()> {
        wait::until(&format!("{key} to be accepted"), limit, || async {
            let Some(route) = self.get(key).await? else {
                return Ok(Look::Not("it does not exist".into()));
            };
            let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
            if parents.is_empty() {
                return Ok(Look::Not("no gateway has said anything".into()));
            }
            for parent in &parents {
                for kind in ["Accepted", "ResolvedRefs"] {
                    if let Look::Not(why) = condition(&parent["conditions"], &route, kind) {
                        return Ok(Look::Not(why));
                    }
                }
            }
            Ok(Look::Done(()))
        })
        .await
    }

    async fn api(&self, key: &ObjectKey) -> Result<Api<DynamicObject>> {
        let (resource, capabilities) = self.kind(&key.gvk()).await?;
        Ok(match (&key.namespace, &capabilities.scope) {
            (Some(namespace), _) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            (None, Scope::Cluster) => Api::all_with(self.client.clone(), &resource),
            (None, Scope::Namespaced) => {
                Api::default_namespaced_with(self.client.clone(), &resource)
            }
        })
    }

    async fn kind(&self, gvk: &GroupVersionKind) -> Result<(ApiResource, ApiCapabilities)> {
        let key = (gvk.api_version(), gvk.kind.clone());
        if let Some(known) = self.kinds().get(&key) {
            return Ok(known.clone());
        }
        let found = pinned_kind(&self.client, gvk).await;
        let found = found.with_context(|| format!("looking for the kind {} {}", key.0, key.1))?;
        self.kinds().insert(key, found.clone());
        Ok(found)
    }

    fn kinds(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), (ApiResource, ApiCapabilities)>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a condition list holds `kind` as True and not for an older generation.
fn condition(conditions: &Value, object: &Value, kind: &str) -> Look<()> {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    let list = conditions.as_array().cloned().unwrap_or_default();
    let Some(found) = list.iter().find(|condition| condition["type"] == kind) else {
        return Look::Not(format!("it has no condition {kind}"));
    };
    if found["observedGeneration"].as_i64().is_some_and(|seen| seen < generation) {
        return Look::Not(format!("{kind} is about an older generation"));
    }
    if found["status"] == "True" {
        return Look::Done(());
    }
    Look::Not(format!(
        "{kind} is {} ({}: {})",
        found["status"].as_str().unwrap_or_default(),
        found["reason"].as_str().unwrap_or_default(),
        found["message"].as_str().unwrap_or_default()
    ))
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A Secret of type kubernetes.io/tls.
pub fn tls_secret(namespace: &str, name: &str, leaf: &crate::pki::Leaf) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"namespace": namespace, "name": name},
        "stringData": {"tls.crt": leaf.cert_pem, "tls.key": leaf.key_pem},
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn yaml_booleans_are_only_true_and_false() {
        let objects = parse("kind: A\nlist: [y, no, true]\n---\n---\nkind: B\n").unwrap();
        assert_eq!(objects[0]["list"], json!(["y", "no", true]));
        assert_eq!(objects.len(), 2);
    }

    #[test]
    fn unfilled_names_are_an_error() {
        assert_eq!(fill("a: ${X}", &[("X", "1")]).unwrap(), "a: 1");
        assert!(fill("a: ${Y}", &[("X", "1")]).unwrap_err().to_string().contains("${Y}"));
    }

    #[test]
    fn condition_of_an_older_generation_does_not_count() {
        let object = json!({"metadata": {"generation": 2}});
        let old = json!([{"type": "Ready", "status": "True", "observedGeneration": 1}]);
        assert!(matches!(condition(&old, &object, "Ready"), Look::Not(_)));
        let new = json!([{"type": "Ready", "status": "True", "observedGeneration": 2}]);
        assert!(matches!(condition(&new, &object, "Ready"), Look::Done(())));
    }
}
