//! An API server of objects in a map, for tests: get, list, create, apply, merge, delete, permissions.
//!
//! Knows no schema and no defaults: what needs those is tested on real API servers in `e2e`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use fairlead_model::{Json, ObjectId};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::json;

use crate::cluster::{Cluster, Kind, Scope};

/// The API server.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Json>,
    writes: Vec<String>,
    denied: BTreeSet<String>,
    /// Objects that appear once a Deployment of that name is written.
    after: BTreeMap<String, Json>,
    /// Answers of the hub by path behind the proxy.
    hub: BTreeMap<String, (u16, Json)>,
}

impl Fake {
    /// With these objects.
    pub(crate) fn new(objects: impl IntoIterator<Item = Json>) -> Self {
        let fake = Self::default();
        objects.into_iter().for_each(|object| fake.put(object));
        fake
    }

    /// With the definitions of the Gateway API.
    pub(crate) fn with_gateway_api() -> Self {
        let plurals =
            ["gatewayclasses", "gateways", "httproutes", "referencegrants", "backendtlspolicies"];
        Self::new(plurals.map(|plural| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": format!("{plural}.gateway.networking.k8s.io"), "annotations": {
                    "gateway.networking.k8s.io/bundle-version": "v1.6.1",
                    "gateway.networking.k8s.io/channel": "standard"}}})
        }))
    }

    /// A client of it.
    pub(crate) fn cluster(&self) -> Cluster {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        Cluster::of(kube::Client::new(service, "default"))
    }

    /// Puts an object there, unrecorded.
    pub(crate) fn put(&self, object: Json) {
        self.state.lock().unwrap().store(object);
    }

    /// Puts an object there once the Deployment is written.
    pub(crate) fn put_after(&self, deployment: &str, object: Json) {
        self.state.lock().unwrap().after.insert(deployment.into(), object);
    }

    /// Denies everything on a resource.
    pub(crate) fn deny(&self, plural: &str) {
        self.state.lock().unwrap().denied.insert(plural.into());
    }

    /// What the hub behind the proxy answers.
    pub(crate) fn hub(&self, path: &str, code: u16, body: Json) {
        self.state.lock().unwrap().hub.insert(path.into(), (code, body));
    }

    /// What was written, as `VERB KIND/NAME`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }

    /// Paths of all objects.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    /// Removes what was recorded so far.
    pub(crate) fn forget_writes(&self) {
        self.state.lock().unwrap().writes.clear();
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Json = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or("").to_owned();
        let path = parts.uri.path().to_owned();
        let (code, answer) = self.state.lock().unwrap().handle(&parts.method, &path, &query, body);
        let body = Body::from(serde_json::to_vec(&answer).unwrap());
        Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap()
    }
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, query: &str, body: Json) -> (u16, Json) {
        if path == "/version" {
            return (200, json!({"gitVersion": "v1.36.3"}));
        }
        if path.ends_with("/selfsubjectaccessreviews") {
            let wanted = body["spec"]["resourceAttributes"]["resource"].as_str().unwrap();
            return (201, json!({"status": {"allowed": !self.denied.contains(wanted)}}));
        }
        if let Some((_, behind)) = path.split_once("/proxy/") {
            let found = self.hub.get(behind).cloned();
            return found.unwrap_or((404, json!({"error": "no such thing"})));
        }
        match *method {
            Method::GET => self.read(path, query),
            Method::POST => self.create(path, body),
            Method::PATCH => self.patch(path, body),
            Method::DELETE => self.delete(path),
            _ => (405, json!({"message": "method"})),
        }
    }

    fn read(&self, path: &str, query: &str) -> (u16, Json) {
        if let Some(object) = self.objects.get(path) {
            return (200, object.clone());
        }
        if let Some(discovery) = self.discover(path) {
            return (200, discovery);
        }
        let (collection, namespace) = split_namespace(path);
        let selector = query.split('&').find_map(|p| p.strip_prefix("labelSelector="));
        let items: Vec<&Json> = self
            .objects
            .iter()
            .filter(|(path, object)| {
                let (prefix, of) = split_namespace(path.rsplit_once('/').unwrap().0);
                let here = namespace.is_empty() || of == namespace;
                prefix == collection && here && selected(object, selector)
            })
            .map(|(_, object)| object)
            .collect();
        let is_name =
            items.is_empty() && path.rsplit('/').next().is_some_and(|last| !last.ends_with('s'));
        if is_name || (items.is_empty() && path.contains("customresourcedefinitions/")) {
            return (404, json!({"message": format!("{path} not found")}));
        }
        if items.is_empty() && self.is_object_path(path) {
            return (404, json!({"message": format!("{path} not found")}));
        }
        (200, json!({"items": items, "metadata": {}}))
    }

    /// Collections have an odd number of segments behind the version, objects an even one.
    fn is_object_path(&self, path: &str) -> bool {
        let rest = if path.starts_with("/api/") { 3 } else { 4 };
        let segments = path.split('/').count() - rest;
        segments.is_multiple_of(2)
    }

    /// API groups and their kinds, as far as there are objects of them.
    fn discover(&self, path: &str) -> Option<Json> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments.as_slice() {
            ["apis"] => {
                let groups: BTreeSet<String> = self.ids().map(|id| id.group.to_string()).collect();
                let groups = groups.iter().filter(|g| !g.is_empty()).map(|g| self.group(g));
                Some(json!({"groups": groups.collect::<Vec<_>>()}))
            }
            ["api", "v1"] => Some(self.resources("v1")),
            ["apis", group, version] => Some(self.resources(&format!("{group}/{version}"))),
            _ => None,
        }
    }

    fn group(&self, name: &str) -> Json {
        let id = self.ids().find(|id| *id.group == *name).unwrap();
        let version = json!({"groupVersion": id.api_version()});
        json!({"name": name, "preferredVersion": version, "versions": [version]})
    }

    fn resources(&self, api_version: &str) -> Json {
        let mut resources: BTreeMap<String, Json> = BTreeMap::new();
        for id in self.ids().filter(|id| id.api_version() == api_version) {
            let kind = Kind::known(api_version, &id.kind);
            let namespaced = kind.scope == Scope::Namespaced;
            let resource = json!({"name": kind.plural, "kind": kind.kind, "namespaced": namespaced,
                "verbs": ["get", "list", "delete"]});
            resources.insert(kind.plural, resource);
        }
        json!({"resources": resources.into_values().collect::<Vec<_>>()})
    }

    fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.objects.values().map(|object| ObjectId::of(object).unwrap())
    }

    fn create(&mut self, path: &str, body: Json) -> (u16, Json) {
        let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return (409, json!({"message": "already exists"}));
        }
        self.record("create", &body);
        self.store(body.clone());
        (201, body)
    }

    fn patch(&mut self, path: &str, body: Json) -> (u16, Json) {
        if body.get("apiVersion").is_some() {
            self.record("apply", &body);
            self.store(body.clone());
            let name = body["metadata"]["name"].as_str().unwrap();
            if body["kind"] == "Deployment"
                && let Some(object) = self.after.remove(name)
            {
                self.store(object);
            }
            return (200, body);
        }
        let Some(object) = self.objects.get_mut(path) else {
            return (404, json!({"message": "not found"}));
        };
        merge(object, &body);
        let object = object.clone();
        self.record("merge", &object);
        (200, object)
    }

    fn delete(&mut self, path: &str) -> (u16, Json) {
        match self.objects.remove(path) {
            Some(object) => {
                self.record("delete", &object);
                (200, object)
            }
            None => (404, json!({"message": "not found"})),
        }
    }

    fn record(&mut self, verb: &str, object: &Json) {
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        self.writes.push(format!(
            "{verb} {}/{}",
            text(&object["kind"]),
            text(&object["metadata"]["name"])
        ));
    }

    fn store(&mut self, mut object: Json) {
        let id = ObjectId::of(&object).unwrap();
        let kind = Kind::known(&id.api_version(), &id.kind);
        if object["kind"] == "CustomResourceDefinition" {
            object["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        }
        let root = if id.group.is_empty() { "/api" } else { "/apis" };
        let namespace = match kind.scope {
            Scope::Namespaced => format!("/namespaces/{}", id.namespace),
            Scope::Cluster => String::new(),
        };
        let path = format!("{root}/{}{namespace}/{}/{}", id.api_version(), kind.plural, id.name);
        self.objects.insert(path, object);
    }
}

/// The path without its namespace, and the namespace.
fn split_namespace(path: &str) -> (String, String) {
    match path.split_once("/namespaces/") {
        Some((before, after)) if after.contains('/') => {
            let (namespace, rest) = after.split_once('/').unwrap();
            (format!("{before}/{rest}"), namespace.to_owned())
        }
        _ => (path.to_owned(), String::new()),
    }
}

fn selected(object: &Json, selector: Option<&str>) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    let selector = selector.replace("%3D", "=").replace("%2F", "/");
    let (key, value) = selector.split_once('=').unwrap();
    object["metadata"]["labels"][key] == value
}

fn merge(into: &mut Json, patch: &Json) {
    match patch {
        Json::Object(map) => {
            for (key, value) in map {
                match (value, into.as_object_mut()) {
                    (Json::Null, Some(fields)) => drop(fields.remove(key)),
                    _ => merge(&mut into[key], value),
                }
            }
        }
        _ => *into = patch.clone(),
    }
}
