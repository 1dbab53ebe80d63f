//! What is wanted against what is there: the writes that are due now, and what cannot be written.
//!
//! Level triggered: [`diff_objects`] is asked again after every change and always answers with all
//! that is due. "The same" means: every field we want has our value, we own exactly the fields we
//! want, and the digest of our last apply is that of what we want. So a restart writes nothing, a
//! default that the API server adds is not a difference, and whatever somebody else changes is.
//!
//! Never proposes to touch an object without our label, and never to prune on absence of news: only
//! kinds whose watch is synced, and only objects that the plan at hand does not name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::bundle::{Claim, Gate};
use fairlead_model::session::Exception;
use fairlead_model::snapshot::Knock;
use fairlead_model::{Json, ObjectId, Reason};

use crate::live::{LiveObject, LiveObjects};
use crate::own::{self, Prepared, Wanted, exception};

/// Group and kind; a member serves one version of it that we write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KindKey {
    /// API group, empty for the core.
    pub group: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
}

impl KindKey {
    /// Puts the two together.
    pub fn new(group: &str, kind: &str) -> Self {
        Self { group: group.into(), kind: kind.into() }
    }

    /// The kind of an object.
    pub fn of(id: &ObjectId) -> Self {
        Self { group: id.group.clone(), kind: id.kind.clone() }
    }
}

/// How far the watch of a kind is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KindState {
    /// The member does not serve it.
    Missing,
    /// Served, but what is there is not known (any more): neither written nor pruned.
    Unsynced,
    /// What is there is known, in this version.
    Synced {
        /// Version that is watched and written.
        version: Arc<str>,
    },
}

/// What was applied last and found in effect: says that a difference that is left is the API
/// server's doing (a default, a normal form) and that another write would change nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Digest of what was applied.
    pub digest: String,
    /// `resourceVersion` after that.
    pub resource_version: String,
}

/// Everything that the answer depends on.
#[derive(Debug)]
pub struct DiffInput<'a> {
    /// What the plan wants here; none = there is no plan, so nothing is pruned either.
    pub prepared: Option<&'a Prepared>,
    /// What is there.
    pub live: &'a LiveObjects,
    /// How far the watches are.
    pub kinds: &'a BTreeMap<KindKey, KindState>,
    /// Namespaces of the member; none = not known.
    pub namespaces: Option<&'a BTreeSet<String>>,
    /// What the knock at our own door found.
    pub knock: Knock,
    /// The same for its listener that tells services apart by SNI.
    pub sni_knock: Knock,
    /// What was applied last, by object.
    pub settled: &'a BTreeMap<ObjectId, Settled>,
}

/// A write that is due.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Apply an object that is not there. Without force: whoever was faster keeps the name.
    Create {
        /// Which.
        id: ObjectId,
        /// What.
        wanted: Wanted,
    },
    /// Apply an object of ours, whoever changed it in between.
    Update {
        /// Which.
        id: ObjectId,
        /// What.
        wanted: Wanted,
        /// `metadata.uid`, so that no other object is hit.
        uid: String,
        /// First path that differs, for the log.
        differs: String,
    },
    /// Apply our fields of an object of the member's own. Without force.
    SetFields {
        /// Which.
        id: ObjectId,
        /// What.
        wanted: Wanted,
        /// `metadata.uid`.
        uid: String,
    },
    /// Give our fields of an object of the member's own back.
    GiveBack {
        /// Which.
        id: ObjectId,
        /// `metadata.uid`.
        uid: String,
    },
    /// Delete an object of ours.
    Delete {
        /// Which.
        id: ObjectId,
        /// `metadata.uid`, so that no other object is hit.
        uid: String,
        /// Why.
        reason: Reason,
    },
}

impl Action {
    /// The object.
    pub fn id(&self) -> &ObjectId {
        match self {
            Self::Create { id, .. }
            | Self::Update { id, .. }
            | Self::SetFields { id, .. }
            | Self::GiveBack { id, .. }
            | Self::Delete { id, .. } => id,
        }
    }

    /// Lower stages are finished before higher ones begin. What must go for safety goes first; what
    /// routes refer to comes before them and goes after them.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Delete { reason: Reason::StrangerLetIn, .. } => Stage::Shut,
            Self::Delete { id, .. } if is_route(id) => Stage::PruneRoutes,
            Self::Delete { .. } | Self::GiveBack { .. } => Stage::Prune,
            Self::Create { id, .. } | Self::Update { id, .. } if is_route(id) => Stage::Routes,
            Self::SetFields { .. } => Stage::Gateways,
            Self::Create { id, .. } | Self::Update { id, .. } => match &*id.kind {
                "Gateway" => Stage::Gateways,
                _ => Stage::Support,
            },
        }
    }
}

/// The order of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Routes of a door that lets strangers in go.
    Shut,
    /// Services, slices, certificates, grants, policies.
    Support,
    /// Gateways.
    Gateways,
    /// Routes.
    Routes,
    /// Routes that no plan names go.
    PruneRoutes,
    /// Everything else that no plan names goes.
    Prune,
}

fn is_route(id: &ObjectId) -> bool {
    &*id.group == own::GATEWAY_GROUP && id.kind.ends_with("Route")
}

/// Writes that are due, in order, and what cannot be written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Diff {
    /// Writes by stage, then by object.
    pub actions: Vec<Action>,
    /// Objects that are not as the plan wants them, and no write would help.
    pub exceptions: BTreeMap<ObjectId, Exception>,
}

/// Compares what is wanted with what is there.
pub fn diff_objects(input: &DiffInput<'_>) -> Diff {
    let Some(prepared) = input.prepared else { return Diff::default() };
    let mut diff = Diff::default();
    for (id, wanted) in &prepared.wanted {
        let decision = decide(input, id, wanted);
        diff.actions.extend(decision.action);
        diff.exceptions.extend(decision.why.map(|why| (id.clone(), why)));
    }
    let refused = prepared.refused.iter().chain(&prepared.withdrawn);
    diff.exceptions.extend(refused.map(|(id, why)| (id.clone(), why.clone())));
    diff.actions.extend(prune(input, prepared));
    diff.actions.sort_by(|a, b| (a.stage(), a.id()).cmp(&(b.stage(), b.id())));
    diff
}

/// What becomes of one object that is wanted.
#[derive(Debug, Default)]
struct Decision {
    why: Option<Exception>,
    action: Option<Action>,
}

impl Decision {
    fn nothing() -> Self {
        Self::default()
    }
    fn act(action: Action) -> Self {
        Self { why: None, action: Some(action) }
    }
    fn except(reason: Reason, message: impl AsRef<str>) -> Self {
        Self { why: Some(exception(reason, message)), action: None }
    }
    fn and(self, action: Option<Action>) -> Self {
        Self { action, ..self }
    }
}

fn decide(input: &DiffInput<'_>, id: &ObjectId, wanted: &Wanted) -> Decision {
    match input.kinds.get(&KindKey::of(id)) {
        None | Some(KindState::Missing) => {
            let message = format!("this cluster does not serve {} {}", id.api_version(), id.kind);
            return Decision::except(Reason::KindMissing, message);
        }
        Some(KindState::Unsynced) => {
            let message = format!("the watch of {} is not synced", id.kind);
            return Decision::except(Reason::Frozen, message);
        }
        Some(KindState::Synced { version }) if *version != id.version => {
            let message = format!("this cluster is written to in version {version}");
            return Decision::except(Reason::KindMissing, message);
        }
        Some(KindState::Synced { .. }) => {}
    }
    let live = input.live.get(id);
    match wanted.claim {
        Claim::Fields => decide_fields(input, id, wanted, live),
        Claim::Whole => decide_whole(input, id, wanted, live),
    }
}

fn decide_whole(
    input: &DiffInput<'_>,
    id: &ObjectId,
    wanted: &Wanted,
    live: Option<&Arc<LiveObject>>,
) -> Decision {
    if live.is_some_and(|live| !live.is_ours()) {
        let message = format!(
            "{} exists and is not labelled {}={}; rename or remove it",
            id.for_people(),
            own::MANAGED_BY,
            own::FAIRLEAD
        );
        return Decision::except(Reason::NameConflict, message);
    }
    if input.namespaces.is_some_and(|all| !all.contains(&*id.namespace)) {
        let message = format!("namespace {} does not exist in this cluster", id.namespace);
        return Decision::except(Reason::NamespaceMissing, message);
    }
    let knock = match wanted.gate {
        Gate::Open => Knock::Shut,
        Gate::DoorShut => input.knock,
        Gate::SniDoorShut => input.sni_knock,
    };
    if knock != Knock::Shut {
        return withhold(knock, id, live);
    }
    let Some(live) = live else {
        return Decision::act(Action::Create { id: id.clone(), wanted: wanted.clone() });
    };
    // It will be created again as soon as it is gone.
    if live.is_terminating() || is_settled(input, id, wanted, live) {
        return Decision::nothing();
    }
    Decision::nothing().and(difference(wanted, live).map(|differs| Action::Update {
        id: id.clone(),
        wanted: wanted.clone(),
        uid: live.uid.clone(),
        differs,
    }))
}

/// Door routes wait for the knock. A door that lets strangers in loses those it has; one without a
/// verdict keeps them, since a restart of the agent proves nothing against it.
fn withhold(knock: Knock, id: &ObjectId, live: Option<&Arc<LiveObject>>) -> Decision {
    if knock != Knock::StrangerLetIn {
        let message = "held back until the agent's knock finds the door shut for strangers";
        return Decision::except(Reason::Withheld, message);
    }
    let delete = live.map(|live| Action::Delete {
        id: id.clone(),
        uid: live.uid.clone(),
        reason: Reason::StrangerLetIn,
    });
    let message = "withdrawn: the door let somebody in without a right certificate";
    Decision::except(Reason::StrangerLetIn, message).and(delete)
}

fn decide_fields(
    input: &DiffInput<'_>,
    id: &ObjectId,
    wanted: &Wanted,
    live: Option<&Arc<LiveObject>>,
) -> Decision {
    let Some(live) = live else {
        let message = format!("{} does not exist in this cluster", id.for_people());
        return Decision::except(Reason::NoGateway, message);
    };
    let lent = live.annotation(own::GLOBAL_GATEWAY).is_some();
    let allowed = live.annotation(own::BACKEND_CLIENT_CERT) == Some("allow");
    if !lent || !(allowed || nobody_else_uses_backend_tls(input)) {
        let message = format!(
            "{} needs the annotation {}=allow: its client certificate is shown to every TLS backend",
            id.for_people(),
            own::BACKEND_CLIENT_CERT
        );
        return Decision::except(Reason::RefNotPermitted, message).and(give_back(id, live));
    }
    if live.is_terminating() || is_settled(input, id, wanted, live) {
        return Decision::nothing();
    }
    let owned = live.owned.as_ref().is_some_and(|owned| owns_exactly(owned, &wanted.content));
    if owned && first_difference(&wanted.content, &live.content, "").is_none() {
        return Decision::nothing();
    }
    Decision::act(Action::SetFields {
        id: id.clone(),
        wanted: wanted.clone(),
        uid: live.uid.clone(),
    })
}

fn nobody_else_uses_backend_tls(input: &DiffInput<'_>) -> bool {
    let kind = KindKey::new(own::GATEWAY_GROUP, "BackendTLSPolicy");
    match input.kinds.get(&kind) {
        Some(KindState::Unsynced) => false,
        None | Some(KindState::Missing) => true,
        Some(KindState::Synced { .. }) => {
            let policies = input.live.iter().filter(|(id, _)| KindKey::of(id) == kind);
            policies.map(|(_, live)| live).all(|live| live.is_ours())
        }
    }
}

fn is_settled(input: &DiffInput<'_>, id: &ObjectId, wanted: &Wanted, live: &LiveObject) -> bool {
    input.settled.get(id).is_some_and(|settled| {
        settled.digest == wanted.digest && settled.resource_version == live.resource_version
    })
}

/// Objects of ours that the plan does not name, and fields of ours that it does not claim.
fn prune<'a>(
    input: &'a DiffInput<'_>,
    prepared: &'a Prepared,
) -> impl Iterator<Item = Action> + 'a {
    // By kind and name only: an object that is wanted in another version is still named.
    let named =
        |id: &ObjectId| (id.group.clone(), id.kind.clone(), id.namespace.clone(), id.name.clone());
    let stay = prepared.wanted.keys().chain(prepared.refused.keys());
    let stay: BTreeSet<_> = stay.map(named).collect();
    input.live.iter().filter_map(move |(id, live)| {
        let state = input.kinds.get(&KindKey::of(id))?;
        if !matches!(state, KindState::Synced { .. }) || stay.contains(&named(id)) {
            return None;
        }
        if live.is_terminating() {
            return None;
        }
        if !live.is_ours() {
            return give_back(id, live);
        }
        let reason = prepared.withdrawn.get(id).map_or(Reason::AsAsked, |why| why.reason);
        Some(Action::Delete { id: id.clone(), uid: live.uid.clone(), reason })
    })
}

/// Only Gateways are ever lent.
fn give_back(id: &ObjectId, live: &LiveObject) -> Option<Action> {
    let ours = live.owned.is_some() && !live.is_ours() && &*id.kind == "Gateway";
    ours.then(|| Action::GiveBack { id: id.clone(), uid: live.uid.clone() })
}

/// The first path where a live object of ours is not as wanted.
pub fn difference(wanted: &Wanted, live: &LiveObject) -> Option<String> {
    if live.annotation(own::DIGEST) != Some(&wanted.digest) {
        return Some(format!("metadata.annotations[{}]", own::DIGEST));
    }
    if let Some(path) = first_difference(&wanted.content, &live.content, "") {
        return Some(path);
    }
    let owned = live.owned.as_ref().is_some_and(|owned| owns_exactly(owned, &wanted.content));
    (!owned).then(|| "metadata.managedFields".to_owned())
}

/// The first path whose wanted value the live object does not have. It may have more.
fn first_difference(wanted: &Json, live: &Json, path: &str) -> Option<String> {
    match (wanted, live) {
        (Json::Object(wanted), Json::Object(live)) => wanted.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match live.get(key) {
                Some(live) => first_difference(value, live, &path),
                None if is_nothing(value) => None,
                None => Some(path),
            }
        }),
        (Json::Array(wanted), Json::Array(live)) if wanted.len() == live.len() => {
            let pairs = wanted.iter().zip(live).enumerate();
            pairs.into_iter().find_map(|(index, (wanted, live))| {
                first_difference(wanted, live, &format!("{path}[{index}]"))
            })
        }
        (Json::Number(wanted), Json::Number(live)) if wanted.as_f64() == live.as_f64() => None,
        (wanted, live) if wanted == live => None,
        _ => Some(path.to_owned()),
    }
}

/// An empty map or list that the API server did not keep is no difference.
fn is_nothing(value: &Json) -> bool {
    match value {
        Json::Object(map) => map.values().all(is_nothing),
        Json::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// True when we own every field that we want and none that we do not want.
fn owns_exactly(owned: &Json, wanted: &Json) -> bool {
    let Some(wanted) = wanted.as_object() else { return false };
    let mut top = wanted.clone();
    top.remove("apiVersion");
    top.remove("kind");
    if let Some(meta) = top.get_mut("metadata").and_then(Json::as_object_mut) {
        meta.remove("name");
        meta.remove("namespace");
        if meta.is_empty() {
            top.remove("metadata");
        }
    }
    owns(owned, &Json::Object(top))
}

/// Walks `fieldsV1`: `f:` a field, `k:` an element by its keys, `v:` an element by its value, `.`
/// the thing itself, `{}` a leaf or an atomic list or map.
fn owns(owned: &Json, wanted: &Json) -> bool {
    let Some(owned) = owned.as_object() else { return false };
    if owned.keys().all(|key| key == ".") {
        return true;
    }
    match wanted {
        Json::Object(fields) => {
            let known = |(key, child): (&String, &Json)| match key.strip_prefix("f:") {
                Some(name) => fields.get(name).is_some_and(|value| owns(child, value)),
                None => key == ".",
            };
            let held = |(name, value): (&String, &Json)| {
                is_nothing(value) || owned.contains_key(&format!("f:{name}"))
            };
            owned.iter().all(known) && fields.iter().all(held)
        }
        Json::Array(items) => {
            let elements = owned.iter().filter(|(key, _)| *key != ".");
            elements.clone().count() == items.len()
                && elements.into_iter().all(|(key, child)| {
                    items.iter().any(|item| is_element(key, item) && owns(child, item))
                })
        }
        _ => false,
    }
}

fn is_element(key: &str, item: &Json) -> bool {
    let parse = |text: &str| serde_json::from_str::<Json>(text).ok();
    if let Some(value) = key.strip_prefix("v:").and_then(parse) {
        return value == *item;
    }
    let Some(Json::Object(keys)) = key.strip_prefix("k:").and_then(parse) else { return false };
    // A key that we leave to its default is not in our element.
    keys.iter().all(|(name, value)| item.get(name).is_none_or(|have| have == value))
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
