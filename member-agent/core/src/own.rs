//! What the agent lets a hub write in its member: the closed list of kinds, places and shapes.
//!
//! The agent does not trust the hub blindly. A taken-over hub can misroute or stop global routes in
//! the namespaces that the agent's own configuration allows; it cannot read Secrets, write
//! elsewhere, or grant itself what nobody exported. [`prepare`] turns a bundle into what is wanted:
//! each object either cleaned (only metadata that we may set, our label, a digest) or refused with
//! a reason. It never fails as a whole.
//!
//! The spelling here repeats `fairlead-crds::keys`, which a pure crate cannot depend on; a test of
//! the agent keeps the two equal.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_model::bundle::{Bundle, BundleObject, Claim, Gate};
use fairlead_model::ledger::Ledger;
use fairlead_model::session::Exception;
use fairlead_model::snapshot::WeakDoor;
use fairlead_model::{Json, NsName, ObjectId, Reason};

/// Value of [`MANAGED_BY`] on what is ours.
pub const FAIRLEAD: &str = "fairlead";
/// Label that says who owns an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Our field manager.
pub const FIELD_MANAGER: &str = "fairlead-agent";
/// Annotation on what is ours: digest of what was applied. Lists of routes are atomic for
/// server-side apply, so without it a field that was taken out of a rule could not be told from a
/// default that the API server put in.
pub const DIGEST: &str = "fairlead.dev/digest";
/// Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// On a Gateway, by its owner: the global gateway it is lent to.
pub const GLOBAL_GATEWAY: &str = "fairlead.dev/global-gateway";
/// On a lent Gateway, by its owner: `allow` lets us set its client certificate.
pub const BACKEND_CLIENT_CERT: &str = "fairlead.dev/backend-client-cert";
/// The Secret that routes' gateways show at other members' doors; the only one a grant may name.
pub const SECRET_CLIENT: &str = "fairlead-eastwest-client";
/// Ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// On what stands for a remote member: which.
pub const MEMBER: &str = "fairlead.dev/member";
/// The Gateway of our doors.
pub const EAST_WEST_GATEWAY: &str = "fairlead-eastwest";
/// Start of the names of what stands for a remote member.
pub const MEMBER_PREFIX: &str = "member-";
/// Start of the names of what belongs to our doors.
pub const EAST_WEST_PREFIX: &str = "fairlead-eastwest";

/// Longest message of an exception, in characters.
pub const MESSAGE_CHARS_MAX: usize = 1_024;

/// What the agent's own configuration and its cluster let us do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Our own namespace.
    pub namespace: String,
    /// Namespaces where we may write; none = all.
    pub allowed: Option<BTreeSet<String>>,
    /// Namespaces where we may not, whatever else is said.
    pub denied: BTreeSet<String>,
    /// Further kinds that may follow a route, as (group, kind).
    pub following: BTreeSet<(String, String)>,
    /// Services whose owners export them, with the configuration's consent; none = not known yet.
    pub exports: Option<BTreeSet<NsName>>,
    /// Doors that need not prove who calls.
    pub weak: BTreeSet<WeakDoor>,
}

impl Limits {
    /// Limits of an agent that may write everywhere.
    pub fn open(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            allowed: None,
            denied: BTreeSet::new(),
            following: BTreeSet::new(),
            exports: Some(BTreeSet::new()),
            weak: BTreeSet::new(),
        }
    }

    fn allows(&self, namespace: &str) -> bool {
        let listed = self.allowed.as_ref().is_none_or(|allowed| allowed.contains(namespace));
        namespace == self.namespace || (listed && !self.denied.contains(namespace))
    }
}

/// An object that must be in the member.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// What to apply.
    pub content: Arc<Json>,
    /// Digest of `content` without the digest itself.
    pub digest: String,
    /// When.
    pub gate: Gate,
    /// On what terms.
    pub claim: Claim,
}

/// What a bundle comes to in this member.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prepared {
    /// Objects to hold.
    pub wanted: BTreeMap<ObjectId, Wanted>,
    /// Objects that are named but not to be written; what is live of them stays.
    pub refused: BTreeMap<ObjectId, Exception>,
    /// Objects that may not be here any more although they are named; what is live of them goes.
    pub withdrawn: BTreeMap<ObjectId, Exception>,
}

/// An exception with a bounded message.
pub fn exception(reason: Reason, message: impl AsRef<str>) -> Exception {
    let message = message.as_ref().chars().take(MESSAGE_CHARS_MAX).collect();
    Exception { reason, message }
}

/// Turns a bundle, with the overlay's contents in place of its own, into what is wanted here.
pub fn prepare(bundle: &Bundle, overlay: &BTreeMap<ObjectId, Json>, limits: &Limits) -> Prepared {
    let mut prepared = Prepared::default();
    for (id, object) in &bundle.objects {
        let content = overlay.get(id).unwrap_or(&object.content);
        match prepare_object(id, object, content, limits) {
            Ok(wanted) => drop(prepared.wanted.insert(id.clone(), wanted)),
            Err(Refusal::Keep(why)) => drop(prepared.refused.insert(id.clone(), why)),
            Err(Refusal::Withdraw(why)) => drop(prepared.withdrawn.insert(id.clone(), why)),
        }
    }
    prepared
}

/// Why an object is not wanted, and what becomes of a live one.
enum Refusal {
    /// It stays as it is.
    Keep(Exception),
    /// It goes: the member's consent was taken back.
    Withdraw(Exception),
}

fn keep(reason: Reason, message: impl AsRef<str>) -> Refusal {
    Refusal::Keep(exception(reason, message))
}

fn prepare_object(
    id: &ObjectId,
    object: &BundleObject,
    content: &Json,
    limits: &Limits,
) -> Result<Wanted, Refusal> {
    if ObjectId::of(content).as_ref() != Ok(id) {
        return Err(keep(Reason::Unreadable, format!("the content is not that of {id}")));
    }
    let cleaned = match object.claim {
        Claim::Whole => prepare_whole(id, content, limits)?,
        Claim::Fields => prepare_fields(id, content, limits)?,
    };
    let digest = digest_of(&cleaned);
    let content = match object.claim {
        Claim::Whole => with_digest(cleaned, &digest),
        Claim::Fields => cleaned,
    };
    Ok(Wanted { content: Arc::new(content), digest, gate: object.gate, claim: object.claim })
}

/// The kinds of design §4, and where each may be.
fn prepare_whole(id: &ObjectId, content: &Json, limits: &Limits) -> Result<Json, Refusal> {
    let own = &*id.namespace == limits.namespace.as_str();
    if id.namespace.is_empty() {
        return Err(not_ours(id, "only namespaced objects"));
    }
    if !limits.allows(&id.namespace) {
        let message = format!(
            "this member's agent configuration keeps namespace {} for itself",
            id.namespace
        );
        return Err(Refusal::Withdraw(exception(Reason::NamespaceNotAllowed, message)));
    }
    let mut cleaned = clean(content);
    match (&*id.group, &*id.kind, own) {
        (GATEWAY_GROUP, "UDPRoute", true) => check_weak(id, limits)?,
        (GATEWAY_GROUP, "Gateway", true) if &*id.name == EAST_WEST_GATEWAY => {
            leave_out_weak(&mut cleaned, limits);
        }
        (GATEWAY_GROUP, "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" | "UDPRoute", _)
        | (GATEWAY_GROUP, "Gateway", _)
        | ("multicluster.x-k8s.io", "ServiceImport", _)
        | ("externaldns.k8s.io", "DNSEndpoint", true) => {}
        (GATEWAY_GROUP, "ReferenceGrant", _) => check_grant(id, &mut cleaned, limits)?,
        (GATEWAY_GROUP, "BackendTLSPolicy", true) => check_tls_policy(id, &cleaned)?,
        ("", "Service", true) => check_service(id, &cleaned)?,
        ("discovery.k8s.io", "EndpointSlice", true) => check_slice(id, &cleaned)?,
        ("", "ConfigMap", true) => check_name(id)?,
        (group, kind, _) => {
            if !limits.following.contains(&(group.to_owned(), kind.to_owned())) {
                return Err(not_ours(id, "this kind is not written here"));
            }
        }
    }
    Ok(cleaned)
}

fn not_ours(id: &ObjectId, why: &str) -> Refusal {
    keep(Reason::NotOurKind, format!("{}: {why}", id.for_people()))
}

/// A route in our own namespace stands behind our door.
fn check_weak(id: &ObjectId, limits: &Limits) -> Result<(), Refusal> {
    if limits.weak.contains(&WeakDoor::Open) {
        return Ok(());
    }
    let message = format!(
        "{}: anybody could come by it, and this member's agent configuration (weakDoors) does not name Open",
        id.for_people()
    );
    Err(Refusal::Withdraw(exception(Reason::NotOurKind, message)))
}

/// Listeners of our door that could not know who calls are left out where the member did not consent.
fn leave_out_weak(gateway: &mut Json, limits: &Limits) {
    if limits.weak.contains(&WeakDoor::Open) {
        return;
    }
    if let Some(listeners) = gateway.pointer_mut("/spec/listeners").and_then(Json::as_array_mut) {
        listeners.retain(|listener| {
            let protocol = listener.get("protocol").and_then(Json::as_str);
            let mode = listener.pointer("/tls/mode").and_then(Json::as_str);
            matches!(protocol, Some("HTTPS" | "TLS")) && matches!(mode, None | Some("Terminate"))
        });
    }
}

/// Only what is named for a member or for our doors, so that nothing else in our namespace (the
/// agent's own configuration, its identity) can be reached.
fn check_name(id: &ObjectId) -> Result<(), Refusal> {
    if id.name.starts_with(MEMBER_PREFIX) || id.name.starts_with(EAST_WEST_PREFIX) {
        return Ok(());
    }
    Err(not_ours(id, "only names that start with member- or fairlead-eastwest"))
}

fn check_service(id: &ObjectId, content: &Json) -> Result<(), Refusal> {
    if !id.name.starts_with(MEMBER_PREFIX) {
        return Err(not_ours(id, "only Services named member-*"));
    }
    // A selector would reach pods of ours; an ExternalName is CVE-2021-25740.
    let spec = content.get("spec");
    let has = |field: &str| spec.and_then(|s| s.get(field)).is_some();
    let kind = spec.and_then(|s| s.get("type")).and_then(Json::as_str).unwrap_or("ClusterIP");
    if has("selector") || has("externalName") || has("externalIPs") || kind != "ClusterIP" {
        return Err(not_ours(id, "a member Service is a ClusterIP without selector"));
    }
    Ok(())
}

fn check_slice(id: &ObjectId, content: &Json) -> Result<(), Refusal> {
    let labels = content.pointer("/metadata/labels");
    let service = labels.and_then(|l| l.get(SERVICE_NAME)).and_then(Json::as_str);
    if !service.is_some_and(|name| name.starts_with(MEMBER_PREFIX)) {
        return Err(not_ours(id, "only EndpointSlices of Services named member-*"));
    }
    for address in texts(content, &["endpoints", "*", "addresses", "*"]) {
        match address.parse::<IpAddr>() {
            Ok(ip) if may_be_a_door(ip) => {}
            _ => {
                let why = format!("{address:?} is not an address of a member's door");
                return Err(not_ours(id, &why));
            }
        }
    }
    Ok(())
}

/// A door is never on this host, nor where clouds keep their metadata services.
pub(crate) fn may_be_a_door(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || local)
}

fn check_tls_policy(id: &ObjectId, content: &Json) -> Result<(), Refusal> {
    let targets = list(content, "/spec/targetRefs");
    let to_member = |target: &Json| {
        let text = |key: &str| target.get(key).and_then(Json::as_str).unwrap_or_default();
        text("group").is_empty()
            && text("kind") == "Service"
            && text("name").starts_with(MEMBER_PREFIX)
    };
    if targets.is_empty() || !targets.iter().all(to_member) {
        return Err(not_ours(id, "only for Services named member-*"));
    }
    Ok(())
}

/// Grants only to exported Services, from our own namespace; in our own namespace only to member
/// Services and to the one Secret that gateways show. What is not exported (any more) is taken out
/// here, without waiting for a hub.
fn check_grant(id: &ObjectId, content: &mut Json, limits: &Limits) -> Result<(), Refusal> {
    let own = &*id.namespace == limits.namespace.as_str();
    let from_own = |from: &Json| {
        from.get("namespace").and_then(Json::as_str) == Some(limits.namespace.as_str())
    };
    if !own && !list(content, "/spec/from").iter().all(from_own) {
        return Err(not_ours(id, "grants only to routes of our own namespace"));
    }
    let Some(to) = content.pointer_mut("/spec/to").and_then(Json::as_array_mut) else {
        return Err(not_ours(id, "a grant must say to what"));
    };
    // Without a name it would grant everything.
    let named = |to: &Json, group: &str, kind: &str| {
        let text = |key: &str| to.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        (text("group") == group && text("kind") == kind && !text("name").is_empty())
            .then(|| text("name"))
    };
    if own {
        let fits = |to: &Json| {
            named(to, "", "Service").is_some_and(|name| name.starts_with(MEMBER_PREFIX))
                || named(to, "", "Secret").as_deref() == Some(SECRET_CLIENT)
        };
        if to.is_empty() || !to.iter().all(fits) {
            return Err(not_ours(id, "grants only to member Services and the client certificate"));
        }
        return Ok(());
    }
    if !to.iter().all(|to| named(to, "", "Service").is_some()) {
        return Err(not_ours(id, "grants only to named Services"));
    }
    let Some(exports) = &limits.exports else {
        return Err(keep(Reason::Frozen, "ServiceExports of this member are not known yet"));
    };
    let exported = |to: &Json| {
        let name = named(to, "", "Service").unwrap_or_default();
        exports.contains(&NsName::new(&id.namespace, &name))
    };
    to.retain(exported);
    if to.is_empty() {
        let message = format!("no Service of this grant is exported in {}", id.namespace);
        return Err(Refusal::Withdraw(exception(Reason::NotExported, message)));
    }
    Ok(())
}

/// Of a member's own Gateway one field is ours: the reference to our own client certificate.
fn prepare_fields(id: &ObjectId, content: &Json, limits: &Limits) -> Result<Json, Refusal> {
    if &*id.group != GATEWAY_GROUP || &*id.kind != "Gateway" {
        return Err(not_ours(id, "fields are only set on lent Gateways"));
    }
    if !limits.allows(&id.namespace) {
        let message = format!(
            "this member's agent configuration keeps namespace {} for itself",
            id.namespace
        );
        return Err(Refusal::Withdraw(exception(Reason::NamespaceNotAllowed, message)));
    }
    let reference = content.pointer("/spec/tls/backend/clientCertificateRef");
    let text = |key: &str| reference.and_then(|r| r.get(key)).and_then(Json::as_str);
    let right = text("name") == Some(SECRET_CLIENT)
        && text("namespace").unwrap_or(&id.namespace) == limits.namespace
        && text("kind").unwrap_or("Secret") == "Secret"
        && text("group").unwrap_or_default().is_empty();
    if !right {
        return Err(not_ours(id, "only the client certificate is set on a lent Gateway"));
    }
    Ok(serde_json::json!({
        "apiVersion": id.api_version(),
        "kind": &*id.kind,
        "metadata": {"name": &*id.name, "namespace": &*id.namespace},
        "spec": {"tls": {"backend": {"clientCertificateRef": reference}}},
    }))
}

/// Only the metadata that is ours to set, no status, no nulls; with our label. Owner references
/// would let the member's garbage collector delete the object, finalizers would keep it for ever.
fn clean(content: &Json) -> Json {
    let mut cleaned = without_nulls(content);
    let Some(top) = cleaned.as_object_mut() else { return cleaned };
    top.remove("status");
    if let Some(meta) = top.get_mut("metadata").and_then(Json::as_object_mut) {
        meta.retain(|key, _| matches!(&**key, "name" | "namespace" | "labels" | "annotations"));
        set_in(meta, "labels", MANAGED_BY, FAIRLEAD);
        if let Some(annotations) = meta.get_mut("annotations").and_then(Json::as_object_mut) {
            annotations.remove(DIGEST);
            if annotations.is_empty() {
                meta.remove("annotations");
            }
        }
    }
    cleaned
}

fn set_in(meta: &mut serde_json::Map<String, Json>, map: &str, key: &str, value: &str) {
    let entry = meta.entry(map).or_insert_with(|| Json::Object(serde_json::Map::new()));
    if !entry.is_object() {
        *entry = Json::Object(serde_json::Map::new());
    }
    if let Some(entries) = entry.as_object_mut() {
        entries.insert(key.to_owned(), value.into());
    }
}

fn with_digest(mut content: Json, digest: &str) -> Json {
    if let Some(meta) = content.get_mut("metadata").and_then(Json::as_object_mut) {
        set_in(meta, "annotations", DIGEST, digest);
    }
    content
}

fn without_nulls(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Json::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Json::Array(items) => Json::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// The first half of a SHA-256 over the content with sorted keys, in hex.
fn digest_of(content: &Json) -> String {
    let mut text = String::new();
    write_sorted(content, &mut text);
    let digest = Ledger::new(BTreeMap::from([(String::new(), text.into_bytes())])).digest();
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON with sorted keys, whatever order the map type keeps.
fn write_sorted(value: &Json, out: &mut String) {
    match value {
        Json::Object(map) => {
            let sorted: BTreeMap<&String, &Json> = map.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&Json::String(key.clone()).to_string());
                out.push(':');
                write_sorted(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn list<'a>(content: &'a Json, pointer: &str) -> &'a [Json] {
    content.pointer(pointer).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// All texts at a path, `*` standing for every element of a list.
fn texts<'a>(content: &'a Json, path: &[&str]) -> Vec<&'a str> {
    let mut nodes = vec![content];
    for step in path {
        nodes = match *step {
            "*" => nodes.iter().flat_map(|n| n.as_array().map_or(&[][..], Vec::as_slice)).collect(),
            key => nodes.iter().filter_map(|n| n.get(key)).collect(),
        };
    }
    nodes.into_iter().filter_map(Json::as_str).collect()
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
