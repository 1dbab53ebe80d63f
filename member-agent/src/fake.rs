//! An API server of objects in a map, for tests: discovery, list, watch, create, apply, delete.
//!
//! Applies know who owns a field only at the top of `spec`, and no schema but a list of fields that it
//! does not know. What needs more is tried on real API servers in `e2e`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_model::{Json, ObjectId};
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::broadcast;

use crate::kind;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The API server.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
}

/// A change: the version it made, of what, and what a watch says of it.
type Event = (u64, ObjectId, Json);

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectId, Json>,
    version: u64,
    /// Kind and what is answered to writes of it.
    refused: BTreeMap<String, u16>,
    /// Kinds that are not served.
    missing: BTreeSet<String>,
    /// A field of rules that no definition knows.
    unknown: Option<String>,
    writes: Vec<String>,
    history: Vec<Event>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), events: broadcast::channel(1_024).0 }
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Answers writes of a kind with a status; 0 = takes them again.
    pub(crate) fn refuse(&self, kind: &str, status: u16) {
        self.state.lock().unwrap().refused.insert(kind.to_owned(), status);
    }

    /// Does not know a field of rules.
    pub(crate) fn forget_field(&self, field: &str) {
        self.state.lock().unwrap().unknown = Some(field.to_owned());
    }

    /// Does not serve a kind.
    pub(crate) fn forget_kind(&self, kind: &str) {
        self.state.lock().unwrap().missing.insert(kind.to_owned());
    }

    /// Writes an object as somebody else would.
    pub(crate) fn put(&self, mut object: Json) {
        let id = ObjectId::of(&object).unwrap();
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version.to_string();
        let before = state.objects.get(&id);
        let uid = before.map_or(json!(format!("uid-{version}")), |o| o["metadata"]["uid"].clone());
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = version.into();
        state.objects.insert(id.clone(), object.clone());
        self.tell(&mut state, id, json!({"type": "MODIFIED", "object": object}));
    }

    fn tell(&self, state: &mut State, id: ObjectId, event: Json) {
        let event = (state.version, id, event);
        state.history.push(event.clone());
        let _ = self.events.send(event);
    }

    /// Changes an object in place, as `kubectl edit` would: its fields are no longer ours alone.
    pub(crate) fn edit(&self, id: &ObjectId, edit: impl FnOnce(&mut Json)) {
        let mut object = self.get(id).unwrap();
        edit(&mut object);
        self.put(object);
    }

    pub(crate) fn get(&self, id: &ObjectId) -> Option<Json> {
        self.state.lock().unwrap().objects.get(id).cloned()
    }

    pub(crate) fn remove(&self, id: &ObjectId) {
        let mut state = self.state.lock().unwrap();
        let Some(mut object) = state.objects.remove(id) else { return };
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        self.tell(&mut state, id.clone(), json!({"type": "DELETED", "object": object}));
    }

    /// `VERB KIND NAME` of every write that was tried, in order.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }

    /// Waits until the objects are as wanted.
    pub(crate) async fn until(&self, what: &str, fits: impl Fn(&BTreeMap<ObjectId, Json>) -> bool) {
        let mut events = self.events.subscribe();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if fits(&self.state.lock().unwrap().objects) {
                return;
            }
            let woken = tokio::time::timeout_at(deadline, events.recv()).await;
            assert!(woken.is_ok(), "never: {what}; writes: {:?}", self.writes());
        }
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Json = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let (group, version, rest) = match path.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group] => return self.group(group),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return status(404, "no such path"),
        };
        if rest.is_empty() {
            return self.resources(group);
        }
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let Some(kind) = self.kind_of(group, rest[0]) else { return status(404, "no such kind") };
        let name = rest.get(1).copied().unwrap_or_default();
        let id = ObjectId::new(group, version, &kind, namespace, name);
        match (parts.method, name.is_empty()) {
            (Method::GET, true) if query.contains("watch=true") => self.watch(&id, from_of(&query)),
            (Method::GET, true) => self.list(&id),
            (Method::GET, false) => match self.get(&id) {
                Some(object) => ok(&object),
                None => status(404, "not found"),
            },
            (Method::POST, true) => self.create(ObjectId::of(&body).unwrap(), body),
            (Method::PATCH, false) => self.apply(id, body, query.contains("force=true")),
            (Method::DELETE, false) => self.delete(&id, &body),
            _ => status(405, "no"),
        }
    }

    fn kinds(&self) -> Vec<(String, String)> {
        let missing = self.state.lock().unwrap().missing.clone();
        let table = kind::watched([]).into_iter().map(|kind| (kind.group, kind.kind));
        let secret = (String::new(), "Secret".to_owned());
        table.chain([secret]).filter(|(_, kind)| !missing.contains(kind)).collect()
    }

    fn kind_of(&self, group: &str, plural: &str) -> Option<String> {
        let kinds = self.kinds().into_iter();
        kinds.filter(|(g, kind)| g == group && plural_of(kind) == plural).map(|(_, k)| k).next()
    }

    fn group(&self, group: &str) -> Answer {
        if !self.kinds().iter().any(|(g, _)| g == group) {
            return status(404, "no such group");
        }
        let versions: Vec<Json> =
            ["v1", "v1beta1"].iter().map(|version| json!({"version": version})).collect();
        ok(&json!({"preferredVersion": {"version": "v1"}, "versions": versions}))
    }

    fn resources(&self, group: &str) -> Answer {
        let kinds = self.kinds().into_iter().filter(|(g, _)| g == group);
        let resources: Vec<Json> =
            kinds.map(|(_, kind)| json!({"name": plural_of(&kind), "kind": kind})).collect();
        ok(&json!({"resources": resources}))
    }

    fn list(&self, of: &ObjectId) -> Answer {
        let state = self.state.lock().unwrap();
        let items: Vec<&Json> =
            state.objects.iter().filter(|(id, _)| is_in(id, of)).map(|(_, o)| o).collect();
        ok(&json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}))
    }

    fn watch(&self, of: &ObjectId, from: u64) -> Answer {
        let state = self.state.lock().unwrap();
        let live = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let missed: Vec<Event> = state.history.clone();
        let of = of.clone();
        let all =
            futures::stream::iter(missed).chain(live.filter_map(|e| std::future::ready(e.ok())));
        let lines = all.filter_map(move |(version, id, event)| {
            let line = (version > from && is_in(&id, &of))
                .then(|| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
            std::future::ready(line)
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }

    fn create(&self, id: ObjectId, object: Json) -> Answer {
        if self.get(&id).is_some() {
            return status(409, "already exists");
        }
        self.put(object);
        self.note("create", &id);
        ok(&self.get(&id).unwrap())
    }

    fn note(&self, verb: &str, id: &ObjectId) {
        self.state.lock().unwrap().writes.push(format!("{verb} {} {}", id.kind, id.name));
    }

    fn apply(&self, id: ObjectId, content: Json, force: bool) -> Answer {
        self.note("apply", &id);
        let state = self.state.lock().unwrap();
        if let Some(status_code @ 1..) = state.refused.get(&*id.kind).copied() {
            return status(status_code, "refused");
        }
        if let Some(field) = &state.unknown
            && let Some(at) = rules(&content).iter().position(|rule| rule.get(field).is_some())
        {
            let message = format!(
                "failed to create typed patch object: .spec.rules[{at}].{field}: field not declared in schema"
            );
            return status(500, &message);
        }
        let before = state.objects.get(&id).cloned();
        drop(state);
        let wanted_uid = content.pointer("/metadata/uid").cloned();
        if wanted_uid.is_some()
            && wanted_uid != before.as_ref().map(|b| b["metadata"]["uid"].clone())
        {
            return status(409, "uid precondition failed");
        }
        let mut object = before.clone().unwrap_or_else(|| json!({}));
        if !force && before.is_some() && !is_ours(&object) && conflicts(&object, &content) {
            return status(409, "conflict with another field manager");
        }
        merge(&mut object, &content);
        object["metadata"]["managedFields"] = json!([
            {"manager": "fairlead-agent", "operation": "Apply", "fieldsV1": fields_of(&content)}]);
        let same = before.as_ref().is_some_and(|before| *before == object);
        if !same {
            self.put(object);
        }
        ok(&self.get(&id).unwrap())
    }

    fn delete(&self, id: &ObjectId, body: &Json) -> Answer {
        self.note("delete", id);
        let Some(object) = self.get(id) else { return status(404, "not found") };
        if body.pointer("/preconditions/uid") != object.pointer("/metadata/uid") {
            return status(409, "uid precondition failed");
        }
        self.remove(id);
        ok(&json!({"kind": "Status", "status": "Success"}))
    }
}

fn from_of(query: &str) -> u64 {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let from = pairs.find(|(key, _)| *key == "resourceVersion");
    from.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

fn plural_of(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    match kind {
        "GatewayClass" => format!("{lower}es"),
        "BackendTLSPolicy" => "backendtlspolicies".to_owned(),
        _ => format!("{lower}s"),
    }
}

fn is_in(id: &ObjectId, of: &ObjectId) -> bool {
    id.group == of.group
        && id.kind == of.kind
        && (of.namespace.is_empty() || id.namespace == of.namespace)
}

fn is_ours(object: &Json) -> bool {
    object.pointer("/metadata/labels/app.kubernetes.io~1managed-by") == Some(&json!("fairlead"))
}

fn rules(content: &Json) -> &[Json] {
    content.pointer("/spec/rules").and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

fn conflicts(object: &Json, content: &Json) -> bool {
    let fields = content.get("spec").and_then(Json::as_object);
    fields.into_iter().flatten().any(|(key, value)| {
        object.pointer("/spec").and_then(|spec| spec.get(key)).is_some_and(|have| have != value)
    })
}

/// Replaces `spec` and other top fields, merges metadata.
fn merge(object: &mut Json, content: &Json) {
    for (key, value) in content.as_object().unwrap() {
        match (key.as_str(), value.as_object()) {
            ("metadata", Some(fields)) => {
                for (key, value) in fields {
                    object["metadata"][key] = value.clone();
                }
            }
            _ => object[key] = value.clone(),
        }
    }
}

fn fields_of(content: &Json) -> Json {
    fn tree(value: &Json) -> Json {
        match value {
            Json::Object(map) => {
                Json::Object(map.iter().map(|(k, v)| (format!("f:{k}"), tree(v))).collect())
            }
            _ => json!({}),
        }
    }
    let mut top = content.clone();
    for key in ["apiVersion", "kind"] {
        top.as_object_mut().unwrap().remove(key);
    }
    for key in ["name", "namespace", "uid"] {
        top["metadata"].as_object_mut().unwrap().remove(key);
    }
    tree(&top)
}

fn ok(object: &Json) -> Answer {
    Response::new(BodyExt::boxed(Full::new(Bytes::from(object.to_string()))))
}

fn status(code: u16, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": "", "message": message});
    let mut answer = ok(&body);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}
