//! The cluster of a kubeconfig: read, apply, create, delete, ask what the caller may do.
//!
//! Owns the kinds that the CLI touches and the words of every failure that an API server causes.
//! Every request has a deadline and is made once, or again a few times while the server says "later"
//! (429); whoever waits for something asks again by itself.
//! Objects are raw JSON throughout, so that fields newer than this tool survive.

mod kind;

use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::{Json, ObjectId};
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub(crate) use self::kind::{
    Kind, Scope, config_map, definition, gateway_class, member_cluster, secret,
};
use self::kind::{served_kinds, served_versions};
use crate::args::Connection;
use crate::failure::Failure;

/// Longest time that one request may take: longer than an API server's own webhooks may.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(35);
/// Longest time that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Times that a server that says "later" is asked again: a definition that was just installed is not
/// listed for a second or so.
const LATER_TRIES_MAX: u32 = 10;
const LATER_EVERY: Duration = Duration::from_millis(500);
/// Objects per page of a list.
const PAGE: usize = 500;

/// What became of an object that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It was not there.
    Created,
    /// It was there, now it is as we want it.
    Configured,
    /// It was as we want it.
    Unchanged,
}

/// What to do when another tool set a field that we set too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflicts {
    /// Fail and name it.
    Refuse,
    /// Take the field over.
    TakeOver,
}

/// The cluster of a kubeconfig.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    server: String,
}

/// Why a request got no answer to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server answered with an error.
    #[error("{message}")]
    Status {
        /// HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
    /// No answer.
    #[error("{0}")]
    Unreachable(String),
}

impl RequestError {
    /// The HTTP status, when there was an answer.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Unreachable(_) => None,
        }
    }
}

impl Cluster {
    /// Opens the cluster that the options name. Nothing is sent yet.
    pub(crate) async fn open(connection: &Connection) -> Result<Self, Failure> {
        let mut config = read_config(connection).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Waiting is done by those who wait, with progress; a retry in the client would hide it.
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config)
            .map_err(|e| Failure::failed("cannot use the kubeconfig", chain(&e)))?;
        Ok(Self { client, server: server.trim_end_matches('/').to_owned() })
    }

    #[cfg(test)]
    pub(crate) fn of(client: Client) -> Self {
        Self { client, server: "https://fake".into() }
    }

    /// Address of the API server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Version of the API server: the first request of most commands, so its failure says most.
    pub(crate) async fn version(&self) -> Result<String, Failure> {
        let what = format!("cannot reach the API server {}", self.server);
        let next =
            "check --kubeconfig and --context; `kubectl version` must work with the same ones";
        let answer = self.send(Method::GET, "/version", None).await;
        let info = answer.map_err(|e| Failure::failed(what, e).next(next))?;
        Ok(info["gitVersion"].as_str().unwrap_or("of unknown version").to_owned())
    }

    /// An object, none when it (or its kind) is not there.
    pub(crate) async fn get(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Json>, Failure> {
        match self.send(Method::GET, &kind.path(namespace, name), None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(self.failure("read", &title(kind, namespace, name), &error)),
        }
    }

    /// Objects of a kind; an empty namespace means all of them. None when the kind is not served.
    pub(crate) async fn list(
        &self,
        kind: &Kind,
        namespace: &str,
        selector: &str,
    ) -> Result<Option<Vec<Json>>, Failure> {
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let page = self.page(kind, namespace, selector, &next).await;
            let mut page = match page {
                Ok(page) => page,
                Err(error) if error.code() == Some(404) => return Ok(None),
                Err(error) => return Err(self.failure("list", &kind.resource(), &error)),
            };
            if let Some(list) = page["items"].as_array_mut() {
                items.extend(list.drain(..).map(|item| typed(kind, item)));
            }
            next = page["metadata"]["continue"].as_str().unwrap_or("").to_owned();
            if next.is_empty() {
                return Ok(Some(items));
            }
        }
    }

    async fn page(
        &self,
        kind: &Kind,
        namespace: &str,
        selector: &str,
        next: &str,
    ) -> Result<Json, RequestError> {
        let mut path = format!("{}?limit={PAGE}", kind.path(namespace, ""));
        for (key, value) in [("labelSelector", selector), ("continue", next)] {
            if !value.is_empty() {
                path.push_str(&format!("&{key}={}", encoded(value)));
            }
        }
        self.send(Method::GET, &path, None).await
    }

    /// Server-side apply with the CLI's field manager.
    pub(crate) async fn apply(
        &self,
        object: &Json,
        conflicts: Conflicts,
    ) -> Result<Applied, Failure> {
        self.apply_as(keys::FIELD_MANAGER_CLI, object, conflicts).await
    }

    /// Server-side apply with any field manager; with the agent's, to give fields back.
    pub(crate) async fn apply_as(
        &self,
        manager: &str,
        object: &Json,
        conflicts: Conflicts,
    ) -> Result<Applied, Failure> {
        let id = ObjectId::of(object).expect("we built the object");
        let kind = Kind::known(&id.api_version(), &id.kind);
        let before = self.get(&kind, &id.namespace, &id.name).await?;
        let force = conflicts == Conflicts::TakeOver;
        let path = kind.path(&id.namespace, &id.name);
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let after = self.send(Method::PATCH, &path, Some(object)).await;
        let after = after.map_err(|e| self.failure("apply", &id.for_people(), &e))?;
        Ok(applied(before.as_ref(), &after))
    }

    /// Creates an object; false when it was there already.
    pub(crate) async fn create(&self, object: &Json) -> Result<Created, Failure> {
        let id = ObjectId::of(object).expect("we built the object");
        self.create_in(&Kind::known(&id.api_version(), &id.kind), object).await
    }

    /// The same for a kind that the cluster told of.
    pub(crate) async fn create_in(&self, kind: &Kind, object: &Json) -> Result<Created, Failure> {
        let id = ObjectId::of(object).expect("whoever asks has looked");
        let path =
            format!("{}?fieldManager={}", kind.path(&id.namespace, ""), keys::FIELD_MANAGER_CLI);
        match self.send(Method::POST, &path, Some(object)).await {
            Ok(_) => Ok(Created::Now),
            Err(error) if error.code() == Some(409) => Ok(Created::Before),
            Err(error) => Err(self.failure("create", &id.for_people(), &error)),
        }
    }

    /// Changes fields of an object by a JSON merge patch.
    pub(crate) async fn merge(
        &self,
        kind: &Kind,
        name: &NameIn<'_>,
        patch: &Json,
    ) -> Result<(), Failure> {
        let path = kind.path(name.namespace, name.name);
        let path = format!("{path}?fieldManager={}", keys::FIELD_MANAGER_CLI);
        let answer = self.exchange(Method::PATCH, &path, Some(patch), MERGE_PATCH).await;
        let title = title(kind, name.namespace, name.name);
        answer.map(drop).map_err(|e| self.failure("change", &title, &e))
    }

    /// Deletes an object with all that it owns; false when it was not there.
    pub(crate) async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Deleted, Failure> {
        let path = format!("{}?propagationPolicy=Background", kind.path(namespace, name));
        match self.send(Method::DELETE, &path, None).await {
            Ok(_) => Ok(Deleted::Now),
            Err(error) if error.code() == Some(404) => Ok(Deleted::Before),
            Err(error) => Err(self.failure("delete", &title(kind, namespace, name), &error)),
        }
    }

    /// Whether the caller may do this, as the API server's own authorizer says.
    pub(crate) async fn may(
        &self,
        verb: &str,
        kind: &Kind,
        namespace: &str,
    ) -> Result<Permission, Failure> {
        let namespace = if kind.scope == Scope::Cluster { "" } else { namespace };
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "verb": verb, "group": kind.group, "resource": kind.plural, "namespace": namespace,
            }},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.send(Method::POST, path, Some(&review)).await;
        let answer = answer.map_err(|e| self.failure("ask for", "permissions", &e))?;
        let allowed = answer["status"]["allowed"] == true;
        Ok(if allowed { Permission::Granted } else { Permission::Denied })
    }

    /// Every kind of namespaced object that the cluster serves and can list, each once, in its group's
    /// preferred version.
    pub(crate) async fn namespaced_kinds(&self) -> Result<Vec<Kind>, Failure> {
        let groups = self.discover("/apis").await?;
        let mut versions = vec!["v1".to_owned()];
        versions
            .extend(groups["groups"].as_array().into_iter().flatten().flat_map(served_versions));
        let mut kinds: Vec<Kind> = Vec::new();
        for version in versions {
            let root = if version.contains('/') { "/apis" } else { "/api" };
            let answer = self.discover(&format!("{root}/{version}")).await?;
            for kind in served_kinds(&version, &answer) {
                // Versions come preferred first; an older one only adds kinds that it alone has.
                let known = kinds.iter().any(|k| k.kind == kind.kind && k.group == kind.group);
                if !known && kind.scope == Scope::Namespaced {
                    kinds.push(kind);
                }
            }
        }
        Ok(kinds)
    }

    async fn discover(&self, path: &str) -> Result<Json, Failure> {
        let answer = self.send(Method::GET, path, None).await;
        answer.map_err(|e| self.failure("read", &format!("API {path}"), &e))
    }

    /// One request: its answer as JSON, or why there is none.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Json, RequestError> {
        let content = if method == Method::PATCH { APPLY_PATCH } else { PLAIN_JSON };
        self.exchange(method, path, body, content).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
        content: &str,
    ) -> Result<Json, RequestError> {
        for _ in 1..LATER_TRIES_MAX {
            match self.exchange_once(method.clone(), path, body, content).await {
                Err(error) if error.code() == Some(429) => tokio::time::sleep(LATER_EVERY).await,
                answer => return answer,
            }
        }
        self.exchange_once(method, path, body, content).await
    }

    async fn exchange_once(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
        content: &str,
    ) -> Result<Json, RequestError> {
        let bytes = body.map(|b| serde_json::to_vec(b).expect("JSON is text")).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content)
            .body(kube::client::Body::from(bytes))
            .map_err(|e| RequestError::Unreachable(e.to_string()))?;
        let (status, text) = tokio::time::timeout(REQUEST_TIMEOUT, self.roundtrip(request))
            .await
            .map_err(|_| RequestError::Unreachable("no answer in time".into()))??;
        if !status.is_success() {
            return Err(RequestError::Status { code: status.as_u16(), message: complaint(&text) });
        }
        serde_json::from_str(&text).map_err(|e| RequestError::Unreachable(format!("not JSON: {e}")))
    }

    async fn roundtrip(
        &self,
        request: Request<kube::client::Body>,
    ) -> Result<(StatusCode, String), RequestError> {
        let unreachable = |e: &dyn std::error::Error| RequestError::Unreachable(chain(e));
        let answer = self.client.send(request).await.map_err(|error| match error {
            // The client's own words would only repeat that there was an error.
            kube::Error::Service(cause) => unreachable(&*cause),
            error => unreachable(&error),
        })?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|e| unreachable(&e))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    fn failure(&self, verb: &str, title: &str, error: &RequestError) -> Failure {
        let failure = Failure::failed(format!("cannot {verb} {title}"), error);
        match error.code() {
            Some(401) => failure.next("log in again; the kubeconfig's credentials are not accepted"),
            Some(403) => failure.next("use a context that may, or ask an admin of the cluster"),
            Some(409) => failure.next(
                "another tool set the same fields; if that is Helm, go on with Helm, else take them \
                 over with --force-conflicts",
            ),
            None => failure.next(format!("check that {} can be reached from here", self.server)),
            Some(_) => failure,
        }
    }
}

const APPLY_PATCH: &str = "application/apply-patch+yaml";
const MERGE_PATCH: &str = "application/merge-patch+json";
const PLAIN_JSON: &str = "application/json";

/// An object's namespace (empty for none) and name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameIn<'a> {
    /// Namespace.
    pub(crate) namespace: &'a str,
    /// Name.
    pub(crate) name: &'a str,
}

/// Whether a creation made the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// It did.
    Now,
    /// The object was there.
    Before,
}

/// Whether a deletion took the object away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// It did.
    Now,
    /// The object was not there.
    Before,
}

/// What the authorizer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Yes.
    Granted,
    /// No.
    Denied,
}

async fn read_config(connection: &Connection) -> Result<Config, Failure> {
    let what = "cannot use the kubeconfig";
    let next = "name one with --kubeconfig or KUBECONFIG";
    let options = KubeConfigOptions { context: connection.context.clone(), ..Default::default() };
    let file = match &connection.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    match file {
        Ok(file) => Config::from_custom_kubeconfig(file, &options).await,
        // Inside a pod there is no kubeconfig but a service account.
        Err(_) if connection.kubeconfig.is_none() && connection.context.is_none() => {
            return Config::infer().await.map_err(|e| Failure::failed(what, chain(&e)).next(next));
        }
        Err(error) => Err(error),
    }
    .map_err(|e| Failure::failed(what, chain(&e)).next(next))
}

/// All causes of an error in one line, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    text
}

/// What an error answer says: the message of a Kubernetes Status, or the text itself.
fn complaint(text: &str) -> String {
    let status: Json = serde_json::from_str(text).unwrap_or_default();
    let said = status["message"].as_str().or_else(|| status["error"].as_str());
    bounded(said.unwrap_or(text).trim())
}

fn bounded(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(COMPLAINT_SHOWN_MAX)
        .collect();
    if text.chars().count() > COMPLAINT_SHOWN_MAX {
        shown.push('…');
    }
    shown
}

/// Characters of a server's complaint that are shown: validation errors name many fields.
const COMPLAINT_SHOWN_MAX: usize = 1_000;

fn title(kind: &Kind, namespace: &str, name: &str) -> String {
    ObjectId::new(&kind.group, &kind.version, &kind.kind, namespace, name).for_people()
}

/// Items of a list carry no `apiVersion` and `kind` of their own.
fn typed(kind: &Kind, mut item: Json) -> Json {
    item["apiVersion"] = kind.api_version().into();
    item["kind"] = kind.kind.clone().into();
    item
}

fn applied(before: Option<&Json>, after: &Json) -> Applied {
    let version = |object: &Json| object["metadata"]["resourceVersion"].clone();
    match before {
        None => Applied::Created,
        Some(before) if version(before) == version(after) => Applied::Unchanged,
        Some(_) => Applied::Configured,
    }
}

/// Percent-encodes a value of a query or a segment of a path.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_the_status_message_or_the_text_and_bounded() {
        assert_eq!(complaint(r#"{"kind":"Status","message":"no"}"#), "no");
        assert_eq!(complaint(r#"{"error":"no"}"#), "no");
        assert_eq!(complaint(" bad gateway\n"), "bad gateway");
        assert!(complaint(&"x".repeat(100_000)).chars().count() <= COMPLAINT_SHOWN_MAX + 1);
    }

    #[test]
    fn values_of_queries_are_encoded() {
        assert_eq!(encoded("a=b,c/d é"), "a%3Db%2Cc%2Fd%20%C3%A9");
    }
}
