//! The apply loop with its watches against an API server in a map.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::fake::Fake;
use crate::kind;
use crate::observe::{Facts, Observer};
use crate::watch::watch_kind;
use fairlead_agent_core::names::Found;
use fairlead_model::bundle::{BundleObject, Claim, Gate};
use fairlead_model::dns::DnsName;
use fairlead_model::health::{PeerReach, Reach};
use fairlead_model::recipe::{
    Candidate, RECIPE_VERSION, Recipe, RecipeBackend, RecipeTier, Serve, Split, Standing,
    WhenUnavailable,
};
use fairlead_model::snapshot::{Address, Knock};
use fairlead_model::{ClusterUid, MemberId, NsName};
use serde_json::json;
use std::time::Duration;

struct World {
    api: Fake,
    held: watch::Sender<Option<Arc<Held>>>,
    reaches: watch::Sender<ProbeReport>,
    _gone: watch::Sender<Counts>,
    resolved: watch::Sender<Arc<Resolved>>,
    knock: watch::Sender<KeptKnock>,
    applied: watch::Receiver<Option<ApplyReport>>,
    overlay: watch::Receiver<Option<OverlayReport>>,
    counter: u64,
    _crossing: watch::Sender<Option<Arc<crate::crossing::Crossing>>>,
    _facts: watch::Sender<Facts>,
    _belief: watch::Sender<Belief>,
}

impl World {
    fn start(api: Fake) -> Self {
        for name in ["fairlead-system", "shop"] {
            api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        let kinds = kind::watched([]);
        let cache = Cache::new(kinds.iter().map(|kind| KindKey::new(&kind.group, &kind.kind)));
        let namespace: Arc<str> = "fairlead-system".into();
        for kind in kinds {
            tokio::spawn(watch_kind(api.client(), kind, namespace.clone(), cache.clone()));
        }
        let (snapshot_tx, snapshot) = watch::channel(None);
        let (held, held_rx) = watch::channel(None);
        let (reaches, reaches_rx) = watch::channel(ProbeReport::new());
        let (gone, gone_rx) = watch::channel(BTreeMap::new());
        let (resolved, resolved_rx) = watch::channel(Arc::default());
        let (knock, knock_rx) = watch::channel(KeptKnock::default());
        let (belief, belief_rx) = watch::channel(Belief::default());
        let (applied_tx, applied) = watch::channel(None);
        let (overlay_tx, overlay) = watch::channel(None);
        let (crossing, crossing_rx) = watch::channel(None);
        let (facts, facts_rx) = watch::channel(Facts::default());
        let config = Arc::new(AgentConfig::default());
        let observer = Observer {
            dns_addresses: BTreeSet::new(),
            cache: cache.clone(),
            config: config.clone(),
            facts: facts_rx,
            crossing: crossing_rx,
            knock: knock_rx.clone(),
        };
        tokio::spawn(observer.run(snapshot_tx));
        let applier = Applier {
            client: api.client(),
            cache,
            clock: Clock::start(),
            config,
            namespace,
            held: held_rx,
            reaches: reaches_rx,
            gone: gone_rx,
            belief: belief_rx,
            resolved: resolved_rx,
            knock: knock_rx,
            snapshot,
            applied: applied_tx,
            overlay: overlay_tx,
            metrics: Arc::default(),
            tracer: Tracer::default(),
        };
        tokio::spawn(applier.run());
        Self {
            api,
            held,
            reaches,
            _gone: gone,
            resolved,
            knock,
            applied,
            overlay,
            counter: 0,
            _crossing: crossing,
            _facts: facts,
            _belief: belief,
        }
    }

    /// A new plan of these objects.
    fn plan(&mut self, objects: Vec<(Json, Gate)>) {
        let objects = objects.into_iter().map(|(content, gate)| {
            let object = BundleObject { content, gate, claim: Claim::Whole };
            (ObjectId::of(&object.content).unwrap(), object)
        });
        self.take(Bundle { objects: objects.collect(), ..Bundle::default() });
    }

    fn take(&mut self, mut bundle: Bundle) {
        self.counter += 1;
        bundle.number = PlanNumber::new(1, self.counter);
        self.held.send_replace(Some(Arc::new(Held {
            bundle,
            doubts: BTreeMap::new(),
            at: Millis(0),
            trace: None,
        })));
    }

    /// Waits for a report of the newest plan that fits.
    async fn reported(&mut self, what: &str, fits: impl Fn(&ApplyReport) -> bool) -> ApplyReport {
        let number = PlanNumber::new(1, self.counter);
        let wanted = |report: &Option<ApplyReport>| {
            report.as_ref().is_some_and(|r| r.number == number && fits(r))
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), self.applied.wait_for(wanted));
        let report = waited.await.map(|r| r.unwrap().clone());
        report.unwrap_or_else(|_| panic!("never: {what}")).unwrap()
    }

    async fn reasons(&mut self, reason: Reason) -> ApplyReport {
        self.reported(reason.as_str(), |r| r.exceptions.values().any(|e| e.reason == reason)).await
    }

    async fn clean(&mut self) -> ApplyReport {
        self.reported("no exceptions", |report| report.exceptions.is_empty()).await
    }
}

fn route(namespace: &str, name: &str, rules: Json) -> Json {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace}, "spec": {"rules": rules}})
}

fn cart() -> Json {
    route("shop", "cart-global", json!([{"backendRefs": [{"name": "cart", "weight": 1}]}]))
}

fn id_of(object: &Json) -> ObjectId {
    ObjectId::of(object).unwrap()
}

#[tokio::test]
async fn a_plan_is_applied_repaired_and_pruned() {
    let mut world = World::start(Fake::new());
    let id = id_of(&cart());
    world.plan(vec![(cart(), Gate::Open)]);
    let report = world.clean().await;
    assert_eq!((report.objects, report.written), (1, 1));
    world.api.edit(&id, |route| route["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(7));
    let repaired = |objects: &BTreeMap<ObjectId, Json>| {
        objects.get(&id).is_some_and(|o| o["spec"]["rules"] == cart()["spec"]["rules"])
    };
    world.api.until("drift is repaired", repaired).await;
    world.api.remove(&id);
    world.api.until("a deleted object is made again", |objects| objects.contains_key(&id)).await;
    world.plan(vec![]);
    world.api.until("what no plan names is gone", |objects| !objects.contains_key(&id)).await;
}

#[tokio::test]
async fn a_second_agent_on_the_same_cluster_writes_nothing() {
    let mut world = World::start(Fake::new());
    world.plan(vec![(cart(), Gate::Open)]);
    world.clean().await;
    let before = world.api.writes();
    let mut again = World::start(world.api.clone());
    again.plan(vec![(cart(), Gate::Open)]);
    let report = again.clean().await;
    assert_eq!(report.written, 0);
    assert_eq!(again.api.writes(), before);
}

#[tokio::test]
async fn a_foreign_object_is_not_touched_and_taken_over_once_it_is_gone() {
    let api = Fake::new();
    let mut foreign = cart();
    foreign["spec"]["rules"] = json!([{"theirs": true}]);
    api.put(foreign.clone());
    let mut world = World::start(api);
    world.plan(vec![(cart(), Gate::Open)]);
    world.reasons(Reason::NameConflict).await;
    assert_eq!(world.api.get(&id_of(&cart())).unwrap()["spec"], foreign["spec"]);
    assert_eq!(world.api.writes(), Vec::<String>::new());
    world.api.remove(&id_of(&cart()));
    world.clean().await;
}

#[tokio::test]
async fn a_write_that_is_refused_is_told_and_tried_again_and_stops_nothing_else() {
    let mut world = World::start(Fake::new());
    world.api.refuse("ConfigMap", 403);
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "member-east-ca", "namespace": "fairlead-system"}, "data": {"a": "b"}});
    world.plan(vec![(config.clone(), Gate::Open), (cart(), Gate::Open)]);
    let report = world.reasons(Reason::Forbidden).await;
    assert_eq!(report.exceptions.len(), 1);
    assert!(world.api.get(&id_of(&cart())).is_some());
    world.api.refuse("ConfigMap", 0);
    world.clean().await;
    assert!(world.api.get(&id_of(&config)).is_some());
}

#[tokio::test]
async fn what_the_api_server_finds_invalid_is_told_in_its_words() {
    let mut world = World::start(Fake::new());
    world.api.refuse("HTTPRoute", 422);
    world.plan(vec![(cart(), Gate::Open)]);
    let report = world.reasons(Reason::ApplyRefused).await;
    assert_eq!(report.exceptions.len(), 1);
}

#[tokio::test]
async fn a_rule_with_a_field_that_the_cluster_does_not_know_is_left_out() {
    let mut world = World::start(Fake::new());
    world.api.forget_field("cookies");
    let rules = json!([{"backendRefs": []}, {"cookies": [], "backendRefs": []}]);
    let route = route("shop", "cart-global", rules);
    world.plan(vec![(route.clone(), Gate::Open)]);
    world.reasons(Reason::FieldUnknown).await;
    let id = id_of(&route);
    let one = |objects: &BTreeMap<ObjectId, Json>| {
        objects.get(&id).is_some_and(|o| o["spec"]["rules"].as_array().unwrap().len() == 1)
    };
    world.api.until("the other rule is applied", one).await;
}

#[tokio::test]
async fn a_kind_that_is_not_served_is_told_and_the_rest_goes_on() {
    let api = Fake::new();
    api.forget_kind("TCPRoute");
    let mut world = World::start(api);
    let mut tcp = cart();
    tcp["kind"] = json!("TCPRoute");
    world.plan(vec![(tcp, Gate::Open), (cart(), Gate::Open)]);
    let report = world.reasons(Reason::KindMissing).await;
    assert_eq!((report.exceptions.len(), report.written), (1, 1));
}

#[tokio::test]
async fn door_routes_follow_the_knock() {
    let mut world = World::start(Fake::new());
    let door = route("fairlead-system", "shop.cart", json!([{"backendRefs": []}]));
    let id = id_of(&door);
    world.plan(vec![(door, Gate::DoorShut)]);
    world.reasons(Reason::Withheld).await;
    assert_eq!(world.api.get(&id), None);
    let found = |knock| KeptKnock { knock, ..KeptKnock::default() };
    world.knock.send_replace(found(Knock::Shut));
    world.api.until("a shut door gets its routes", |objects| objects.contains_key(&id)).await;
    world.knock.send_replace(found(Knock::StrangerLetIn));
    world.api.until("an open door loses them", |objects| !objects.contains_key(&id)).await;
    world.reasons(Reason::StrangerLetIn).await;
}

/// `cart` served by ourselves and by east, half each.
fn split() -> Bundle {
    let refs = json!([{"name": "cart", "weight": 5000}, {"name": "member-east", "weight": 5000}]);
    let content = route("shop", "cart-global", json!([{"backendRefs": refs}]));
    let candidate = |member: &str, slot: u16| Candidate {
        member: MemberId::new(member).unwrap(),
        slot,
        ready: 1,
        expected: 1,
        weight: 0,
        ramp_percent: 100,
        standing: Standing::Able,
    };
    let tier = RecipeTier {
        split: Split::Endpoints,
        healthy_percent: 70,
        endpoints_min: 1,
        candidates: vec![candidate("east", 1), candidate("west", 0)],
    };
    let serve = Serve::Members {
        service: NsName::new("shop", "cart"),
        port: 80,
        tiers: vec![tier],
        when_unavailable: WhenUnavailable::Redistribute,
    };
    let recipe = Recipe {
        version: RECIPE_VERSION,
        backends: vec![RecipeBackend { weight: 1, serve }],
        weights: vec![5000, 5000],
    };
    let id = id_of(&content);
    let peer = fairlead_model::bundle::Peer {
        uid: ClusterUid::new("uid-east").unwrap(),
        addresses: BTreeSet::new(),
        port: 15443,
        server_name: "door".to_owned(),
        ca_pem: String::new(),
        readiness: fairlead_model::bundle::Capability::default(),
    };
    Bundle {
        objects: [(id.clone(), BundleObject { content, gate: Gate::Open, claim: Claim::Whole })]
            .into(),
        recipes: [(fairlead_model::bundle::RuleId { object: id, rule: 0 }, recipe)].into(),
        peers: [(MemberId::new("east").unwrap(), peer)].into(),
        ..Bundle::default()
    }
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_loses_its_weight_and_gets_it_back() {
    let mut world = World::start(Fake::new());
    let verdict = |reach| {
        ProbeReport::from([(MemberId::new("east").unwrap(), PeerReach { reach, since: Millis(1) })])
    };
    let id = split().objects.keys().next().unwrap().clone();
    let weights = |objects: &BTreeMap<ObjectId, Json>, wanted: [u32; 2]| {
        let refs = |o: &Json| o["spec"]["rules"][0]["backendRefs"].clone();
        objects.get(&id).is_some_and(|o| {
            let refs = refs(o);
            [refs[0]["weight"].clone(), refs[1]["weight"].clone()] == wanted.map(Json::from)
        })
    };
    world.reaches.send_replace(verdict(Reach::Reachable));
    world.take(split());
    world.api.until("the plan as given", |objects| weights(objects, [5000, 5000])).await;
    world.reaches.send_replace(verdict(Reach::TimedOut));
    world.api.until("all at home", |objects| weights(objects, [10000, 0])).await;
    let told = world.overlay.wait_for(|report| report.as_ref().is_some_and(|r| r.rules == 1));
    let told = tokio::time::timeout(Duration::from_secs(20), told).await.unwrap().unwrap().clone();
    assert_eq!(told.unwrap().out.values().next(), Some(&Reason::DoorTimedOut));
    world.reaches.send_replace(verdict(Reach::Reachable));
    world.api.until("as planned again", |objects| weights(objects, [5000, 5000])).await;
}

#[tokio::test]
async fn the_slice_of_a_door_follows_its_name() {
    let mut world = World::start(Fake::new());
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "member-east-v4", "namespace": "fairlead-system",
            "labels": {"kubernetes.io/service-name": "member-east"}},
        "ports": [{"name": "door", "port": 15443}], "endpoints": []});
    let id = id_of(&slice);
    let mut bundle = split();
    bundle.peers.values_mut().for_each(|peer| {
        peer.addresses = [Address::of("door.example.net")].into();
    });
    let object = BundleObject { content: slice, gate: Gate::Open, claim: Claim::Whole };
    bundle.objects.insert(id.clone(), object);
    let has = |objects: &BTreeMap<ObjectId, Json>, wanted: &str| {
        let slice = objects.get(&id);
        slice.is_some_and(|slice| slice["endpoints"][0]["addresses"] == json!([wanted]))
    };
    let stand_for = |address: &str| {
        let v4 = Some([address.parse().unwrap()].into());
        let name = DnsName::new("door.example.net").unwrap();
        Arc::new(Resolved::from([(name, Found { v4, v6: None })]))
    };
    world.take(bundle);
    world.api.until("the plan as given", |objects| objects.contains_key(&id)).await;
    for address in ["192.0.2.1", "192.0.2.2"] {
        world.resolved.send_replace(stand_for(address));
        world.api.until("the slice follows", |objects| has(objects, address)).await;
    }
}
