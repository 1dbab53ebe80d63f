//! The hub's own objects, as the API server tells of them.
//!
//! Owns one watch per kind and the newest state of every object. Kinds know nothing of each other: one
//! that is missing, forbidden or broken never holds up the rest. Objects are kept as they are, unread,
//! so that one that nobody understands costs only itself. A kind that vanishes keeps its last objects:
//! only a watch that goes on can prove that something was deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::{Json, NsName};
use futures::StreamExt as _;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::signal::Signal;

/// A kind that the hub reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Kubernetes kind.
    pub name: &'static str,
    group: &'static str,
    /// Versions that will do, the best first.
    versions: &'static [&'static str],
    /// Plural in the API.
    pub plural: &'static str,
}

const fn gateway(
    name: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
) -> Kind {
    Kind { name, group: keys::GATEWAY_GROUP, versions, plural }
}

const fn following(at: usize) -> Kind {
    let keys::FollowingKind { group, kind, resource, versions } = keys::FOLLOWING_KINDS[at];
    Kind { name: kind, group, versions, plural: resource }
}

const fn own(name: &'static str, plural: &'static str) -> Kind {
    Kind { name, group: keys::GROUP, versions: &[keys::VERSION], plural }
}

/// Every kind that the hub reads.
pub const KINDS: [Kind; 14 + keys::FOLLOWING_KINDS.len()] = [
    gateway("GatewayClass", &["v1"], "gatewayclasses"),
    gateway("Gateway", &["v1"], "gateways"),
    gateway("HTTPRoute", &["v1"], "httproutes"),
    gateway("GRPCRoute", &["v1"], "grpcroutes"),
    gateway("TLSRoute", &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
    gateway("TCPRoute", &["v1", "v1alpha2"], "tcproutes"),
    gateway("UDPRoute", &["v1", "v1alpha2"], "udproutes"),
    gateway("ListenerSet", &["v1"], "listenersets"),
    gateway("ReferenceGrant", &["v1", "v1beta1"], "referencegrants"),
    Kind { name: "Namespace", group: "", versions: &["v1"], plural: "namespaces" },
    Kind {
        name: "ServiceImport",
        group: keys::MCS_GROUP,
        versions: &["v1beta1", "v1alpha1"],
        plural: "serviceimports",
    },
    own("MemberCluster", "memberclusters"),
    own("TrafficPolicy", "trafficpolicies"),
    following(0),
    following(1),
    following(2),
    following(3),
    following(4),
    own("DNSPolicy", "dnspolicies"),
];

/// First pause after an error.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest pause after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// How often a kind that is not installed is asked for again.
const ABSENT_RETRY: Duration = Duration::from_secs(5);
/// Rounds over all versions after which a kind counts as not installed: an API server that just
/// started may not serve it yet, and taking that for "no routes" would take everything down.
const ABSENT_ROUNDS: u32 = 2;

/// How far the hub is with a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Progress {
    /// Not read yet.
    #[default]
    Pending,
    /// Read, and told of changes.
    Synced,
    /// Not installed in the hub cluster; there are none.
    Absent,
    /// It cannot be read at present; what was read before stays.
    Failing(String),
}

/// The objects of a kind, by namespace and name; the namespace is empty for cluster-scoped kinds.
pub type KindObjects = BTreeMap<NsName, Arc<Json>>;

/// The newest state of all kinds.
#[derive(Default)]
pub struct Objects {
    kinds: Mutex<BTreeMap<&'static str, KindState>>,
    /// Something that plans depend on changed.
    pub changed: Signal,
    /// Something else changed, a status say.
    pub touched: Signal,
}

#[derive(Debug, Clone, Default)]
struct KindState {
    progress: Progress,
    /// It was read once; an error after that does not take the objects away.
    known: bool,
    objects: Arc<KindObjects>,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, KindState>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All objects of a kind.
    pub fn of(&self, kind: &str) -> Arc<KindObjects> {
        self.lock().get(kind).map(|state| Arc::clone(&state.objects)).unwrap_or_default()
    }

    /// How far the hub is with each kind.
    pub fn progress(&self) -> BTreeMap<&'static str, Progress> {
        let state = self.lock();
        let progress = |kind: &Kind| {
            (kind.name, state.get(kind.name).map(|s| s.progress.clone()).unwrap_or_default())
        };
        KINDS.iter().map(progress).collect()
    }

    /// Kinds without which no plan may be made: never read, and not known to be absent.
    pub fn unsynced(&self) -> BTreeSet<String> {
        let state = self.lock();
        let known = |kind: &&Kind| state.get(kind.name).is_some_and(|state| state.known);
        KINDS.iter().filter(|kind| !known(kind)).map(|kind| kind.name.to_owned()).collect()
    }

    pub(crate) fn reset(&self, kind: &Kind, objects: KindObjects) {
        let mut kinds = self.lock();
        let state = kinds.entry(kind.name).or_default();
        let same = state.known && equal_but_noise(&state.objects, &objects);
        *state = KindState { progress: Progress::Synced, known: true, objects: Arc::new(objects) };
        drop(kinds);
        if same { self.touched.mark() } else { self.changed.mark() }
    }

    fn apply(&self, kind: &Kind, name: NsName, object: Json) {
        let mut kinds = self.lock();
        let state = kinds.entry(kind.name).or_default();
        state.progress = Progress::Synced;
        let objects = Arc::make_mut(&mut state.objects);
        let before = objects.insert(name, Arc::new(object.clone()));
        let same = before.is_some_and(|before| without_noise(&before) == without_noise(&object));
        drop(kinds);
        if same { self.touched.mark() } else { self.changed.mark() }
    }

    fn delete(&self, kind: &Kind, name: &NsName) {
        let mut kinds = self.lock();
        let state = kinds.entry(kind.name).or_default();
        Arc::make_mut(&mut state.objects).remove(name);
        drop(kinds);
        self.changed.mark();
    }

    pub(crate) fn set_progress(&self, kind: &Kind, progress: Progress) {
        let mut kinds = self.lock();
        let state = kinds.entry(kind.name).or_default();
        if state.progress == progress {
            return;
        }
        state.known |= progress == Progress::Absent;
        state.progress = progress;
        drop(kinds);
        self.changed.mark();
    }
}

/// An object without what its own status writers and the API server change all the time.
fn without_noise(object: &Json) -> Json {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    object
}

fn equal_but_noise(before: &KindObjects, after: &KindObjects) -> bool {
    before.len() == after.len()
        && before
            .iter()
            .zip(after)
            .all(|((name, a), (other, b))| name == other && without_noise(a) == without_noise(b))
}

/// Watches every kind until `stop`.
pub async fn watch_all(
    client: Client,
    objects: Arc<Objects>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let watches = KINDS.iter().map(|kind| {
        let watch = Watch {
            kind: *kind,
            client: client.clone(),
            objects: Arc::clone(&objects),
            metrics: Arc::clone(&metrics),
        };
        watch.run()
    });
    tokio::select! {
        _ = futures::future::join_all(watches) => {}
        () = stop.cancelled() => {}
    }
}

struct Watch {
    kind: Kind,
    client: Client,
    objects: Arc<Objects>,
    metrics: Arc<Metrics>,
}

impl Watch {
    async fn run(self) {
        let mut rounds = 0;
        loop {
            for version in self.kind.versions {
                if self.watch_version(version).await == Ended::AfterSync {
                    rounds = 0;
                }
            }
            rounds += 1;
            if rounds >= ABSENT_ROUNDS {
                self.set_progress(Progress::Absent);
            }
            tokio::time::sleep(ABSENT_RETRY).await;
        }
    }

    /// Watches one version until the API server says that it does not serve it.
    async fn watch_version(&self, version: &'static str) -> Ended {
        let Kind { name, group, plural, .. } = self.kind;
        let kind = GroupVersionKind::gvk(group, version, name);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
        let mut fresh = KindObjects::new();
        let mut backoff = BACKOFF_MIN;
        let mut ended = Ended::Unserved;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) if is_unserved(&error) => return ended,
                Err(error) => {
                    let message = describe(&error);
                    tracing::warn!(kind = name, detail = message, "cannot watch a kind");
                    self.set_progress(Progress::Failing(message));
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            backoff = BACKOFF_MIN;
            match event {
                Event::Init => fresh.clear(),
                Event::InitApply(object) => {
                    fresh.insert(name_of(&object), Arc::new(json_of(object, &resource)));
                }
                Event::InitDone => {
                    ended = Ended::AfterSync;
                    self.objects.reset(&self.kind, std::mem::take(&mut fresh));
                    self.set_progress(Progress::Synced);
                }
                Event::Apply(object) => {
                    let name = name_of(&object);
                    self.objects.apply(&self.kind, name, json_of(object, &resource));
                }
                Event::Delete(object) => self.objects.delete(&self.kind, &name_of(&object)),
            }
        }
        ended
    }

    fn set_progress(&self, progress: Progress) {
        self.metrics.set_watch(self.kind.name, progress == Progress::Synced);
        self.objects.set_progress(&self.kind, progress);
    }
}

/// How the watch of one version ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The version was never served.
    Unserved,
    /// It was, and is not any more.
    AfterSync,
}

fn is_unserved(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status,
        _ => return false,
    };
    // A group of which nothing is served answers in plain text, without a reason.
    status.is_not_found() || status.code == 404
}

fn describe(error: &watcher::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}").chars().take(300).collect()
}

fn name_of(object: &DynamicObject) -> NsName {
    NsName::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

fn json_of(mut object: DynamicObject, resource: &ApiResource) -> Json {
    object.metadata.managed_fields = None;
    // Lists of built-in kinds leave these out of their items.
    let types = object.types.get_or_insert_default();
    types.api_version.clone_from(&resource.api_version);
    types.kind.clone_from(&resource.kind);
    serde_json::to_value(object).expect("an object that came as JSON is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ROUTE: &Kind = &KINDS[2];

    fn mk_route(version: u32, weight: u32, status: &str) -> Json {
        json!({"metadata": {"name": "cart", "resourceVersion": version.to_string()},
            "spec": {"weight": weight}, "status": {"x": status}})
    }

    fn cart() -> NsName {
        NsName::new("shop", "cart")
    }

    #[test]
    fn only_what_users_write_wakes_the_planner() {
        let objects = Objects::default();
        objects.apply(ROUTE, cart(), mk_route(1, 1, "a"));
        assert!(objects.changed.take().is_some());
        objects.apply(ROUTE, cart(), mk_route(2, 1, "b"));
        assert!(objects.changed.take().is_none() && objects.touched.take().is_some());
        objects.apply(ROUTE, cart(), mk_route(3, 2, "b"));
        assert!(objects.changed.take().is_some());
        objects.reset(ROUTE, [(cart(), Arc::new(mk_route(4, 2, "c")))].into());
        objects.changed.take();
        objects.reset(ROUTE, [(cart(), Arc::new(mk_route(5, 2, "d")))].into());
        assert!(objects.changed.take().is_none());
        assert_eq!(objects.of("HTTPRoute")[&cart()]["status"]["x"], "d");
    }

    #[test]
    fn a_kind_counts_when_it_was_read_or_is_known_to_be_absent() {
        let objects = Objects::default();
        assert_eq!(objects.unsynced().len(), KINDS.len());
        objects.reset(ROUTE, KindObjects::new());
        objects.set_progress(&KINDS[0], Progress::Absent);
        objects.set_progress(&KINDS[1], Progress::Failing("x".into()));
        let unsynced = objects.unsynced();
        assert!(!unsynced.contains("HTTPRoute") && !unsynced.contains("GatewayClass"));
        assert!(unsynced.contains("Gateway"));
    }

    #[test]
    fn a_kind_that_fails_later_keeps_its_objects() {
        let objects = Objects::default();
        objects.reset(ROUTE, [(cart(), Arc::new(mk_route(1, 1, "a")))].into());
        for progress in [Progress::Failing("forbidden".into()), Progress::Absent] {
            objects.set_progress(ROUTE, progress);
            assert_eq!(objects.of("HTTPRoute").len(), 1);
            assert!(!objects.unsynced().contains("HTTPRoute"));
        }
    }
}
