//! Requests to the member's API server, as raw JSON.
//!
//! Objects are never read into closed types: one field or enum value that this version does not know
//! must not cost a whole list. Fails with kube's errors; callers decide what they mean.

use fairlead_model::{Json, ObjectId};
use kube::Client;
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::Request;

/// A kind as the API server serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Plural.
    pub plural: String,
}

impl Resource {
    /// `apiVersion` as Kubernetes writes it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            return self.version.clone();
        }
        format!("{}/{}", self.group, self.version)
    }

    /// Path of the collection, of one namespace or of all.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let (version, plural) = (self.api_version(), &self.plural);
        if namespace.is_empty() {
            return format!("{root}/{version}/{plural}");
        }
        format!("{root}/{version}/namespaces/{namespace}/{plural}")
    }
}

/// Finds how a kind is served: the first of `versions` that has it, or the group's preferred one.
///
/// # Errors
/// kube's, when discovery cannot be read. `Ok(None)`: it is not served.
pub async fn discover(
    client: &Client,
    group: &str,
    kind: &str,
    versions: &[&str],
) -> kube::Result<Option<Resource>> {
    let served: Vec<String> = if group.is_empty() {
        vec!["v1".to_owned()]
    } else {
        match client.request::<Json>(get(&format!("/apis/{group}"))?).await {
            Ok(group) => served_versions(&group),
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    let candidates: Vec<&str> = if versions.is_empty() {
        served.iter().map(String::as_str).take(1).collect()
    } else {
        versions.iter().copied().filter(|v| served.iter().any(|s| s == v)).collect()
    };
    for version in candidates {
        let path = match group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        let resources = match client.request::<Json>(get(&path)?).await {
            Ok(resources) => resources,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(error),
        };
        if let Some(plural) = plural_of(&resources, kind) {
            return Ok(Some(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                plural,
            }));
        }
    }
    Ok(None)
}

/// Versions of an APIGroup, the preferred one first.
fn served_versions(group: &Json) -> Vec<String> {
    let text = |value: Option<&Json>| value.and_then(Json::as_str).map(str::to_owned);
    let preferred = text(group.pointer("/preferredVersion/version"));
    let all = group.get("versions").and_then(Json::as_array).into_iter().flatten();
    let others =
        all.filter_map(|v| text(v.get("version"))).filter(|v| Some(v) != preferred.as_ref());
    preferred.iter().cloned().chain(others).collect()
}

fn plural_of(resources: &Json, kind: &str) -> Option<String> {
    let all = resources.get("resources").and_then(Json::as_array)?;
    let named = all.iter().filter(|r| r.get("kind").and_then(Json::as_str) == Some(kind));
    let names = named.filter_map(|r| r.get("name").and_then(Json::as_str));
    // `httproutes/status` is of the same kind.
    names.filter(|name| !name.contains('/')).map(str::to_owned).next()
}

fn get(path: &str) -> kube::Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// Objects, each saying its `apiVersion` and `kind`.
    pub items: Vec<Json>,
    /// For the next page; none = this was the last.
    pub next: Option<String>,
    /// Where a watch goes on.
    pub resource_version: String,
}

/// Objects on a page: bounds what is in memory untrimmed.
const PAGE: u32 = 200;

/// Lists a page.
///
/// # Errors
/// kube's.
pub async fn list(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    next: Option<String>,
) -> kube::Result<Page> {
    let params = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
    let request = Request::new(resource.path(namespace)).list(&params);
    let mut list: Json = client.request(request.map_err(kube::Error::BuildRequest)?).await?;
    let meta = |field: &str| {
        let text = list.pointer("/metadata").and_then(|m| m.get(field)).and_then(Json::as_str);
        text.unwrap_or_default().to_owned()
    };
    let (token, resource_version) = (meta("continue"), meta("resourceVersion"));
    let items = match list.get_mut("items").map(Json::take) {
        Some(Json::Array(items)) => items,
        _ => Vec::new(),
    };
    let items = items.into_iter().map(|item| with_type(item, resource)).collect();
    Ok(Page { items, next: Some(token).filter(|t| !t.is_empty()), resource_version })
}

/// Objects in lists of built-in kinds do not say what they are.
pub fn with_type(mut item: Json, resource: &Resource) -> Json {
    if let Some(fields) = item.as_object_mut() {
        fields.insert("apiVersion".to_owned(), resource.api_version().into());
        fields.insert("kind".to_owned(), resource.kind.clone().into());
    }
    item
}

/// The request of a watch.
///
/// # Errors
/// kube's, when the parameters have no meaning.
pub fn watch_request(
    resource: &Resource,
    namespace: &str,
    from: &str,
    seconds: u32,
) -> kube::Result<http::Request<Vec<u8>>> {
    let params = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
    let request = Request::new(resource.path(namespace)).watch(&params, from);
    request.map_err(kube::Error::BuildRequest)
}

/// Gets an object; none = it does not exist.
///
/// # Errors
/// kube's.
pub async fn get_object(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> kube::Result<Option<Json>> {
    let request = Request::new(resource.path(namespace)).get(name, &GetParams::default());
    match client.request(request.map_err(kube::Error::BuildRequest)?).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces an object as it was read: by its version, nobody's write is lost.
///
/// # Errors
/// kube's.
pub async fn replace(client: &Client, resource: &Resource, object: &Json) -> kube::Result<Json> {
    let text = |pointer| object.pointer(pointer).and_then(Json::as_str).unwrap_or("");
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let params = PostParams {
        field_manager: Some(fairlead_crds::keys::FIELD_MANAGER_AGENT.to_owned()),
        ..PostParams::default()
    };
    let request = Request::new(resource.path(namespace)).replace(name, &params, body);
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// Creates an object; a name that is taken is an error (`is_already_exists`).
///
/// # Errors
/// kube's.
pub async fn create(client: &Client, resource: &Resource, object: &Json) -> kube::Result<Json> {
    let namespace = object.pointer("/metadata/namespace").and_then(Json::as_str).unwrap_or("");
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let params = PostParams {
        field_manager: Some(fairlead_crds::keys::FIELD_MANAGER_AGENT.to_owned()),
        ..PostParams::default()
    };
    let request = Request::new(resource.path(namespace)).create(&params, body);
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// Whether an apply may take fields from other field managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// It may.
    Yes,
    /// A field of another manager with another value is a conflict.
    No,
}

/// Applies an object. Unknown fields are an error and nothing is written: an older definition that
/// dropped a match would widen a rule.
///
/// # Errors
/// kube's.
pub async fn apply(
    client: &Client,
    resource: &Resource,
    id: &ObjectId,
    content: &Json,
    force: Force,
) -> kube::Result<Json> {
    let params = PatchParams {
        force: force == Force::Yes,
        ..PatchParams::apply(fairlead_crds::keys::FIELD_MANAGER_AGENT).validation_strict()
    };
    let request = Request::new(resource.path(&id.namespace));
    let request = request.patch(&id.name, &params, &Patch::Apply(content));
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// Deletes an object of that uid; gives it back when it lives on until its finalizers are done.
///
/// # Errors
/// kube's; one that is gone already is none.
pub async fn delete(
    client: &Client,
    resource: &Resource,
    id: &ObjectId,
    uid: &str,
) -> kube::Result<Option<Json>> {
    let params = DeleteParams {
        preconditions: Some(kube::api::Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    let request = Request::new(resource.path(&id.namespace)).delete(&id.name, &params);
    match client.request::<Json>(request.map_err(kube::Error::BuildRequest)?).await {
        // A Status says that it is gone; so does an object that nothing holds back: of some kinds the
        // API server answers with what it was.
        Ok(answer) => {
            let lives_on = answer.pointer("/metadata/deletionTimestamp").is_some();
            Ok(Some(answer).filter(|_| lives_on))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True for 404.
pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// The HTTP status of a refusal by the API server; none when it did not answer.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// A refusal in the API server's own words.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_those_of_the_api_server() {
        let resource = |group: &str, version: &str, plural: &str| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: String::new(),
            plural: plural.to_owned(),
        };
        assert_eq!(resource("", "v1", "services").path("shop"), "/api/v1/namespaces/shop/services");
        assert_eq!(resource("a.b", "v1", "xs").path(""), "/apis/a.b/v1/xs");
    }

    #[test]
    fn the_preferred_version_comes_first_and_subresources_do_not_count() {
        let group = json!({"preferredVersion": {"version": "v1"},
            "versions": [{"version": "v1alpha2"}, {"version": "v1"}]});
        assert_eq!(served_versions(&group), ["v1", "v1alpha2"]);
        let resources = json!({"resources": [
            {"name": "httproutes/status", "kind": "HTTPRoute"}, {"name": "httproutes", "kind": "HTTPRoute"}]});
        assert_eq!(plural_of(&resources, "HTTPRoute").as_deref(), Some("httproutes"));
        assert_eq!(plural_of(&resources, "TCPRoute"), None);
    }
}
