//! The form of a backup: what a hub cannot rebuild, as YAML that `kubectl` reads too.
//!
//! A header with a digest comes first, so that half a backup is never taken for a whole one; then the
//! hub's Secrets (its history is one of them), then every object that the hub reads, without what an API server adds. Never encrypts:
//! whoever takes a backup with Secrets pipes it through the tool that their organisation trusts.
//! Pure: who reads and writes is [`crate::command`].

pub(crate) mod order;

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairlead_crds::keys;
use fairlead_model::Json;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cluster::Kind;
use crate::yaml;

/// `apiVersion` of the header.
const API_VERSION: &str = "backup.fairlead.dev/v1";
const KIND: &str = "Backup";
/// Kinds of the Gateway API that the hub reads, in namespaces.
const GATEWAY_KINDS: [&str; 8] = [
    "Gateway",
    "HTTPRoute",
    "GRPCRoute",
    "TLSRoute",
    "TCPRoute",
    "UDPRoute",
    "ListenerSet",
    "ReferenceGrant",
];
const OWN_KINDS: [&str; 2] = ["TrafficPolicy", "DNSPolicy"];
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is told of a backup before its objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    /// When it was taken.
    pub(crate) taken_at: String,
    /// Where Fairlead lived.
    pub(crate) namespace: String,
    /// By which version of this tool.
    pub(crate) version: String,
    /// The address that agents know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    /// Whether the hub's Secrets are in it.
    pub(crate) secrets: bool,
}

/// A backup.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Backup {
    pub(crate) header: Header,
    /// In the order in which they are restored.
    pub(crate) objects: Vec<Json>,
}

/// Text that is no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BackupError {
    /// No header that this version knows.
    #[error("it does not begin with a {KIND} of {API_VERSION}")]
    NoHeader,
    /// The digest is another.
    #[error("it is cut short, or was changed: its digest is not that of its header")]
    Damaged,
    /// Not YAML.
    #[error("{0}")]
    Unreadable(String),
}

/// Whether objects of that kind belong into a backup.
pub(crate) fn is_saved(kind: &Kind) -> bool {
    let name = kind.kind.as_str();
    match kind.group.as_str() {
        keys::GATEWAY_GROUP => GATEWAY_KINDS.contains(&name),
        keys::GROUP => OWN_KINDS.contains(&name),
        keys::MCS_GROUP => name == "ServiceImport",
        group => keys::FOLLOWING_KINDS.iter().any(|f| f.group == group && f.kind == name),
    }
}

/// Whether the hub makes that object by itself.
pub(crate) fn is_derived(object: &Json) -> bool {
    object["metadata"]["labels"][keys::MANAGED_BY] == keys::FAIRLEAD
}

/// An object without what its API server and its controllers added.
pub(crate) fn bare(object: &Json) -> Json {
    let mut meta = serde_json::Map::new();
    for field in ["name", "namespace", "labels", "annotations", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            meta.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(annotations) = meta.get_mut("annotations").and_then(Json::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let mut bare = object.as_object().cloned().unwrap_or_default();
    bare.remove("status");
    bare.insert("metadata".to_owned(), Json::Object(meta));
    Json::Object(bare)
}

/// What a route is pinned to, as the hub lists it.
fn pin_of(object: &Json) -> Option<String> {
    let meta = &object["metadata"];
    let revision: u64 = meta["annotations"][keys::PIN].as_str()?.trim().parse().ok()?;
    let text = |field: &str| meta[field].as_str();
    let kind = object["kind"].as_str()?;
    Some(format!("{kind}/{}/{} {revision}", text("namespace")?, text("name")?))
}

impl Backup {
    /// Pins of routes whose rules of then are not in it, for people.
    pub(crate) fn pins_lacking(&self) -> Vec<String> {
        let is_history = |object: &&Json| {
            object["kind"] == "Secret" && object["metadata"]["name"] == keys::SECRET_HUB_HISTORY
        };
        let listed = self.objects.iter().find(is_history).and_then(|secret| {
            let bytes = STANDARD.decode(secret["data"][keys::HISTORY_PINS].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        });
        let listed = listed.unwrap_or_default();
        let kept: BTreeSet<&str> = listed.lines().collect();
        let pins = self.objects.iter().filter_map(pin_of);
        pins.filter(|pin| !kept.contains(pin.as_str())).collect()
    }

    /// As text.
    pub(crate) fn write(&self) -> String {
        let body = yaml::write_all(&self.objects);
        let mut spec = serde_json::to_value(&self.header).expect("text and truth");
        spec["sha256"] = digest(&body).into();
        let header = json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": keys::HUB}, "spec": spec,
        });
        format!("{}{body}", yaml::write_all([&header]))
    }

    /// From text.
    ///
    /// # Errors
    /// When it is no whole backup.
    pub(crate) fn read(text: &str) -> Result<Self, BackupError> {
        let start = text.find("\n---\n").map_or(text.len(), |at| at + 1);
        let (head, body) = text.split_at(start);
        let read = |text| {
            yaml::read("the backup", text).map_err(|e| BackupError::Unreadable(e.to_string()))
        };
        let head = read(head)?.into_iter().next().unwrap_or_default();
        if head["apiVersion"] != API_VERSION || head["kind"] != KIND {
            return Err(BackupError::NoHeader);
        }
        let header = Header::deserialize(&head["spec"]).map_err(|_| BackupError::NoHeader)?;
        if head["spec"]["sha256"] != digest(body) {
            return Err(BackupError::Damaged);
        }
        Ok(Self { header, objects: read(body)? })
    }
}

fn digest(body: &str) -> String {
    Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_backup() -> Backup {
        Backup {
            header: Header {
                taken_at: "2026-11-21T20:00:00Z".into(),
                namespace: "fairlead-system".into(),
                version: "0.1.0".into(),
                address: Some("https://hub.example.com:8443".into()),
                secrets: true,
            },
            objects: vec![
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"k": "eWVz"}}),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"},
                    "data": {"text": "one\n---\ntwo\n", "on": "yes"}}),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let backup = mk_backup();
        assert_eq!(Backup::read(&backup.write()).unwrap(), backup);
    }

    #[test]
    fn every_cut_and_every_change_is_found() {
        let text = mk_backup().write();
        for end in 0..text.len() - 1 {
            assert!(Backup::read(&text[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(Backup::read(&text.replace("eWVz", "bm8=")), Err(BackupError::Damaged));
        assert_eq!(Backup::read(""), Err(BackupError::NoHeader));
        assert_eq!(Backup::read("kind: Secret"), Err(BackupError::NoHeader));
        assert!(matches!(Backup::read("{"), Err(BackupError::Unreadable(_))));
    }

    #[test]
    fn pins_that_the_history_does_not_have_are_named() {
        let route = |name: &str, pin: &str| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": name, "namespace": "shop", "annotations": {keys::PIN: pin}}})
        };
        let mut backup = mk_backup();
        assert_eq!(backup.pins_lacking(), [""; 0]);
        backup.objects.extend([route("a", "7"), route("b", " 8 "), route("c", "none")]);
        let lacking = ["HTTPRoute/shop/a 7", "HTTPRoute/shop/b 8"];
        assert_eq!(backup.pins_lacking(), lacking);
        let pins = STANDARD.encode("HTTPRoute/shop/b 8\nHTTPRoute/shop/a 6\n");
        backup.objects.push(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": keys::SECRET_HUB_HISTORY}, "data": {keys::HISTORY_PINS: pins}}));
        assert_eq!(backup.pins_lacking(), lacking[..1]);
        backup.objects.last_mut().unwrap()["data"] = json!({keys::HISTORY_PINS: "%"});
        assert_eq!(backup.pins_lacking(), lacking);
    }

    #[test]
    fn what_others_added_stays_behind() {
        let object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "uid": "u",
            "creationTimestamp": "2026-11-21T20:00:00Z", "finalizers": ["f"], "managedFields": [],
            "annotations": {LAST_APPLIED: "{}", "mine": "1"}}, "spec": {"a": 1}, "status": {"b": 2}});
        let expected = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a",
            "creationTimestamp": "2026-11-21T20:00:00Z", "annotations": {"mine": "1"}}, "spec": {"a": 1}});
        assert_eq!(bare(&object), expected);
    }
}
