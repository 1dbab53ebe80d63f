//! What is written, pruned, withheld and reported, case by case.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::own::{Limits, prepare};
use fairlead_model::bundle::{Bundle, BundleObject};
use proptest::prelude::*;
use serde_json::json;

/// An API server in a map: applies like the real one, as far as the diff can tell.
#[derive(Default, Clone)]
struct Server {
    live: LiveObjects,
    version: u64,
}

impl Server {
    fn put(&mut self, id: &ObjectId, content: Json, owned: Option<Json>) {
        self.version += 1;
        let live = LiveObject {
            uid: format!("uid-{}", id.name),
            resource_version: self.version.to_string(),
            content,
            owned,
        };
        self.live.insert(id.clone(), Arc::new(live));
    }

    fn run(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Create { id, wanted } | Action::Update { id, wanted, .. } => {
                    let mut content = (*wanted.content).clone();
                    content["status"] = json!({"said": "by the controller"});
                    let owned = fields_of(&wanted.content);
                    self.put(id, with_defaults(content), Some(owned));
                }
                Action::SetFields { id, wanted, .. } => {
                    let mut content = self.live[id].content.clone();
                    content["spec"]["tls"] = wanted.content["spec"]["tls"].clone();
                    self.put(id, content, Some(fields_of(&wanted.content)));
                }
                Action::GiveBack { id, .. } => {
                    let mut content = self.live[id].content.clone();
                    content["spec"].as_object_mut().unwrap().remove("tls");
                    self.put(id, content, None);
                }
                Action::Delete { id, .. } => drop(self.live.remove(id)),
            }
        }
    }
}

/// Defaults in lists of maps, as CRDs set them.
fn with_defaults(mut content: Json) -> Json {
    for rule in
        content.pointer_mut("/spec/rules").and_then(Json::as_array_mut).into_iter().flatten()
    {
        rule.as_object_mut().unwrap().entry("timeouts").or_insert(json!({"request": "0s"}));
    }
    content
}

/// `fieldsV1` of an apply; lists are atomic.
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
    let map = top.as_object_mut().unwrap();
    map.remove("apiVersion");
    map.remove("kind");
    let meta = map["metadata"].as_object_mut().unwrap();
    meta.remove("name");
    meta.remove("namespace");
    if meta.is_empty() {
        map.remove("metadata");
    }
    tree(&top)
}

fn kinds() -> BTreeMap<KindKey, KindState> {
    let synced = |version: &str| KindState::Synced { version: version.into() };
    let mut kinds = BTreeMap::from([(KindKey::new("", "Service"), synced("v1"))]);
    for kind in ["HTTPRoute", "Gateway", "BackendTLSPolicy", "TCPRoute"] {
        kinds.insert(KindKey::new(own::GATEWAY_GROUP, kind), synced("v1"));
    }
    kinds
}

struct World {
    prepared: Prepared,
    server: Server,
    kinds: BTreeMap<KindKey, KindState>,
    namespaces: BTreeSet<String>,
    knock: Knock,
    sni_knock: Knock,
    settled: BTreeMap<ObjectId, Settled>,
}

impl World {
    fn of(objects: Vec<(Json, Gate, Claim)>) -> Self {
        Self {
            prepared: prepare(
                &bundle_of(objects),
                &BTreeMap::new(),
                &Limits::open("fairlead-system"),
            ),
            server: Server::default(),
            kinds: kinds(),
            namespaces: ["shop", "infra", "fairlead-system"].map(String::from).into(),
            knock: Knock::Unknown,
            sni_knock: Knock::Unknown,
            settled: BTreeMap::new(),
        }
    }

    fn diff(&self) -> Diff {
        diff_objects(&DiffInput {
            prepared: Some(&self.prepared),
            live: &self.server.live,
            kinds: &self.kinds,
            namespaces: Some(&self.namespaces),
            knock: self.knock,
            sni_knock: self.sni_knock,
            settled: &self.settled,
        })
    }

    fn converge(&mut self) -> Diff {
        let diff = self.diff();
        self.server.run(&diff.actions);
        diff
    }

    fn reasons(&self) -> Vec<Reason> {
        self.diff().exceptions.values().map(|e| e.reason).collect()
    }
}

fn bundle_of(objects: Vec<(Json, Gate, Claim)>) -> Bundle {
    let objects = objects.into_iter().map(|(content, gate, claim)| {
        (ObjectId::of(&content).unwrap(), BundleObject { content, gate, claim })
    });
    Bundle { objects: objects.collect(), ..Bundle::default() }
}

fn route(name: &str, spec: Json) -> Json {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn open(content: Json) -> (Json, Gate, Claim) {
    (content, Gate::Open, Claim::Whole)
}

fn rules(weight: u32) -> Json {
    json!({"rules": [{"backendRefs": [{"name": "cart", "weight": weight}]}]})
}

fn only_action(diff: &Diff) -> &Action {
    assert_eq!(diff.actions.len(), 1, "{diff:?}");
    &diff.actions[0]
}

#[test]
fn what_was_applied_is_not_written_again_whatever_defaults_came_in() {
    let mut world = World::of(vec![open(route("cart-global", rules(80)))]);
    assert!(matches!(only_action(&world.converge()), Action::Create { .. }));
    assert_eq!(world.diff(), Diff::default());
}

#[test]
fn a_value_that_somebody_changed_is_repaired() {
    let mut world = World::of(vec![open(route("cart-global", rules(80)))]);
    world.converge();
    let id = world.prepared.wanted.keys().next().unwrap().clone();
    let mut live = (*world.server.live[&id]).clone();
    live.content["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(1);
    world.server.live.insert(id, Arc::new(live));
    let diff = world.converge();
    let Action::Update { differs, uid, .. } = only_action(&diff) else { panic!("{diff:?}") };
    assert_eq!(
        (differs.as_str(), uid.as_str()),
        (".spec.rules[0].backendRefs[0].weight", "uid-cart-global")
    );
    assert_eq!(world.diff(), Diff::default());
}

#[test]
fn a_field_that_the_plan_dropped_from_a_rule_is_taken_out() {
    let with = json!({"rules": [{"filters": [{"type": "X"}], "backendRefs": [{"name": "cart"}]}]});
    let mut world = World::of(vec![open(route("cart-global", with))]);
    world.converge();
    let without = json!({"rules": [{"backendRefs": [{"name": "cart"}]}]});
    world.prepared = World::of(vec![open(route("cart-global", without))]).prepared;
    assert!(matches!(only_action(&world.converge()), Action::Update { .. }));
    assert_eq!(world.diff(), Diff::default());
}

#[test]
fn a_field_that_somebody_added_to_what_we_own_is_repaired() {
    let mut world = World::of(vec![open(route("cart-global", rules(80)))]);
    world.converge();
    let id = world.prepared.wanted.keys().next().unwrap().clone();
    let mut live = (*world.server.live[&id]).clone();
    // kubectl edit of an atomic list takes its ownership from us.
    live.content["spec"]["rules"][0]["filters"] = json!([{"type": "Evil"}]);
    live.owned.as_mut().unwrap().as_object_mut().unwrap().remove("f:spec");
    world.server.live.insert(id, Arc::new(live));
    let diff = world.diff();
    let Action::Update { differs, .. } = only_action(&diff) else { panic!("{diff:?}") };
    assert_eq!(differs, "metadata.managedFields");
}

#[test]
fn a_difference_that_a_write_cannot_remove_is_left_alone() {
    let mut world = World::of(vec![open(route("cart-global", rules(80)))]);
    world.converge();
    let (id, wanted) = world.prepared.wanted.iter().next().unwrap();
    let mut live = (*world.server.live[id]).clone();
    live.content["spec"]["rules"][0]["backendRefs"][0]["name"] = json!("CART");
    let settled =
        Settled { digest: wanted.digest.clone(), resource_version: live.resource_version.clone() };
    world.settled.insert(id.clone(), settled);
    world.server.live.insert(id.clone(), Arc::new(live.clone()));
    assert_eq!(world.diff().actions, []);
    live.resource_version = "somebody wrote".to_owned();
    let id = id.clone();
    world.server.live.insert(id, Arc::new(live));
    assert_eq!(world.diff().actions.len(), 1);
}

#[test]
fn a_foreign_object_of_our_name_is_a_conflict_and_is_not_touched() {
    let mut world = World::of(vec![open(route("cart-global", rules(80)))]);
    let id = world.prepared.wanted.keys().next().unwrap().clone();
    world.server.put(&id, route("cart-global", rules(1)), None);
    assert_eq!(world.reasons(), [Reason::NameConflict]);
    assert_eq!(world.diff().actions, []);
}

#[test]
fn what_no_plan_names_is_pruned_if_it_is_ours_and_its_kind_is_synced() {
    let mut world =
        World::of(vec![open(route("a-global", rules(1))), open(route("b-global", rules(1)))]);
    world.converge();
    let foreign = route("foreign", rules(1));
    let foreign_id = ObjectId::of(&foreign).unwrap();
    world.server.put(&foreign_id, foreign, None);
    world.prepared = World::of(vec![open(route("b-global", rules(1)))]).prepared;
    let key = KindKey::new(own::GATEWAY_GROUP, "HTTPRoute");
    world.kinds.insert(key.clone(), KindState::Unsynced);
    assert_eq!(world.diff().actions, [], "frozen, not pruned");
    assert_eq!(world.reasons(), [Reason::Frozen]);
    world.kinds.insert(key, KindState::Synced { version: "v1".into() });
    let diff = world.converge();
    assert!(matches!(only_action(&diff), Action::Delete { id, .. } if &*id.name == "a-global"));
    assert!(world.server.live.contains_key(&foreign_id));
}

#[test]
fn without_a_plan_nothing_is_pruned() {
    let mut world = World::of(vec![open(route("a-global", rules(1)))]);
    world.converge();
    let diff = diff_objects(&DiffInput {
        prepared: None,
        live: &world.server.live,
        kinds: &world.kinds,
        namespaces: None,
        knock: Knock::Unknown,
        sni_knock: Knock::Unknown,
        settled: &BTreeMap::new(),
    });
    assert_eq!(diff, Diff::default());
}

#[test]
fn what_cannot_be_written_here_is_said() {
    let mut elsewhere = route("a-global", rules(1));
    elsewhere["metadata"]["namespace"] = json!("nowhere");
    assert_eq!(World::of(vec![open(elsewhere)]).reasons(), [Reason::NamespaceMissing]);
    let mut grpc = route("a-global", rules(1));
    grpc["kind"] = json!("GRPCRoute");
    assert_eq!(World::of(vec![open(grpc)]).reasons(), [Reason::KindMissing]);
    let mut old = route("a-global", rules(1));
    old["apiVersion"] = json!("gateway.networking.k8s.io/v1alpha2");
    let mut world = World::of(vec![open(old)]);
    assert_eq!(world.reasons(), [Reason::KindMissing]);
    let live = with_label(route("a-global", rules(1)));
    world.server.put(&ObjectId::of(&live).unwrap(), live, None);
    assert_eq!(world.diff().actions, [], "named in another version is still named");
}

fn with_label(mut object: Json) -> Json {
    object["metadata"]["labels"] = json!({own::MANAGED_BY: own::FAIRLEAD});
    object
}

#[test]
fn door_routes_wait_for_the_knock_and_go_when_a_stranger_was_let_in() {
    let mut door = route("shop.cart", rules(1));
    door["metadata"]["namespace"] = json!("fairlead-system");
    let mut world =
        World::of(vec![(door, Gate::DoorShut, Claim::Whole), open(route("a-global", rules(1)))]);
    let diff = world.converge();
    assert!(matches!(only_action(&diff), Action::Create { id, .. } if &*id.name == "a-global"));
    assert_eq!(world.reasons(), [Reason::Withheld]);
    world.knock = Knock::Shut;
    assert!(matches!(only_action(&world.converge()), Action::Create { .. }));
    world.knock = Knock::Unknown;
    assert_eq!((world.diff().actions, world.reasons()), (vec![], vec![Reason::Withheld]));
    world.knock = Knock::StrangerLetIn;
    let diff = world.converge();
    assert_eq!(only_action(&diff).stage(), Stage::Shut);
    assert_eq!(world.reasons(), [Reason::StrangerLetIn]);
    assert_eq!(world.diff().actions, []);
}

#[test]
fn each_listener_of_the_door_has_a_knock_of_its_own() {
    let mut door = route("shop.db.5432.shop.sni", rules(1));
    door["metadata"]["namespace"] = json!("fairlead-system");
    let mut world = World::of(vec![(door, Gate::SniDoorShut, Claim::Whole)]);
    world.knock = Knock::Shut;
    assert_eq!((world.converge().actions, world.reasons()), (vec![], vec![Reason::Withheld]));
    world.sni_knock = Knock::Shut;
    assert!(matches!(only_action(&world.converge()), Action::Create { .. }));
    world.knock = Knock::StrangerLetIn;
    assert_eq!(world.diff().actions, []);
    world.sni_knock = Knock::StrangerLetIn;
    assert_eq!(only_action(&world.converge()).stage(), Stage::Shut);
}

fn lent(consent: &str) -> Json {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "public", "namespace": "infra", "annotations": {
            own::GLOBAL_GATEWAY: "infra/public", own::BACKEND_CLIENT_CERT: consent}},
        "spec": {"gatewayClassName": "eg"}})
}

fn client_certificate() -> Json {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "public", "namespace": "infra"},
        "spec": {"tls": {"backend": {"clientCertificateRef":
            {"name": own::SECRET_CLIENT, "namespace": "fairlead-system"}}}}})
}

#[test]
fn of_a_lent_gateway_one_field_is_set_with_consent_and_given_back() {
    let mut world = World::of(vec![(client_certificate(), Gate::Open, Claim::Fields)]);
    assert_eq!(world.reasons(), [Reason::NoGateway]);
    let id = ObjectId::of(&lent("")).unwrap();
    let policy = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
        "metadata": {"name": "theirs", "namespace": "infra"}});
    world.server.put(&ObjectId::of(&policy).unwrap(), policy.clone(), None);
    world.server.put(&id, lent("no"), None);
    assert_eq!(world.reasons(), [Reason::RefNotPermitted], "others use backend TLS");
    world.server.put(&id, lent("allow"), None);
    assert!(matches!(only_action(&world.converge()), Action::SetFields { .. }));
    assert_eq!(world.diff(), Diff::default());
    world.prepared = Prepared::default();
    assert!(matches!(only_action(&world.converge()), Action::GiveBack { .. }));
    assert_eq!(world.diff(), Diff::default());
    assert!(world.server.live.contains_key(&id), "the Gateway is its owner's");
}

#[test]
fn what_routes_refer_to_comes_before_them_and_goes_after_them() {
    let mut service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "member-east", "namespace": "fairlead-system"}, "spec": {}});
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "public-global", "namespace": "infra"}, "spec": {}});
    let all =
        |service: Json| vec![open(route("a", rules(1))), open(gateway.clone()), open(service)];
    let mut world = World::of(all(service.clone()));
    let order =
        |diff: &Diff| diff.actions.iter().map(|a| a.id().kind.to_string()).collect::<Vec<_>>();
    assert_eq!(order(&world.converge()), ["Service", "Gateway", "HTTPRoute"]);
    world.prepared = Prepared::default();
    service["x"] = json!(1);
    assert_eq!(order(&world.converge())[0], "HTTPRoute");
    assert!(world.server.live.is_empty());
}

#[test]
fn an_object_that_is_being_deleted_is_waited_for() {
    let mut world = World::of(vec![open(route("a-global", rules(1)))]);
    world.converge();
    let id = world.prepared.wanted.keys().next().unwrap().clone();
    let mut live = (*world.server.live[&id]).clone();
    live.content["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.server.live.insert(id, Arc::new(live));
    assert_eq!(world.diff().actions, []);
    world.prepared = Prepared::default();
    assert_eq!(world.diff().actions, []);
}

#[test]
fn ownership_is_compared_through_keyed_lists() {
    let wanted = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"ports": [{"port": 15443, "name": "eastwest"}]}});
    let owned = |ports: Json| json!({"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:ports": ports}});
    let key = r#"k:{"port":15443,"protocol":"TCP"}"#;
    let element = json!({".": {}, "f:name": {}, "f:port": {}});
    assert!(owns_exactly(&owned(json!({key: element})), &wanted));
    assert!(!owns_exactly(&owned(json!({key: {".": {}, "f:port": {}}})), &wanted), "a field less");
    let more = json!({key: element, r#"k:{"port":80,"protocol":"TCP"}"#: element});
    assert!(!owns_exactly(&owned(more), &wanted), "an element more");
    assert!(
        !owns_exactly(&json!({"f:spec": {"f:ports": {key: element}}}), &wanted),
        "a label less"
    );
}

prop_compose! {
    fn any_spec()(
        weights in proptest::collection::vec(0u32..3, 0..3),
        host in proptest::option::of("[a-b]"),
        filter in any::<bool>(),
    ) -> Json {
        let refs: Vec<Json> = weights.iter().map(|w| json!({"name": "cart", "weight": w})).collect();
        let mut rule = json!({"backendRefs": refs});
        if filter {
            rule["filters"] = json!([{"type": "X"}]);
        }
        let mut spec = json!({"rules": [rule]});
        if let Some(host) = host {
            spec["hostnames"] = json!([host]);
        }
        spec
    }
}

fn any_world() -> impl Strategy<Value = BTreeMap<String, (Json, bool)>> {
    proptest::collection::btree_map("[a-d]", (any_spec(), any::<bool>()), 0..4)
}

fn world_of(routes: &BTreeMap<String, (Json, bool)>) -> World {
    let gate = |shut: bool| if shut { Gate::DoorShut } else { Gate::Open };
    let objects = routes
        .iter()
        .map(|(name, (spec, shut))| (route(name, spec.clone()), gate(*shut), Claim::Whole));
    World::of(objects.collect())
}

proptest! {
    #[test]
    fn after_the_diff_was_applied_there_is_no_diff(
        before in any_world(), after in any_world(),
        knock in prop_oneof![Just(Knock::Unknown), Just(Knock::Shut), Just(Knock::StrangerLetIn)],
    ) {
        let mut world = world_of(&before);
        world.knock = Knock::Shut;
        world.converge();
        prop_assert_eq!(world.diff().actions, vec![]);
        world.prepared = world_of(&after).prepared;
        world.knock = knock;
        world.converge();
        prop_assert_eq!(world.diff().actions, vec![]);
        if knock == Knock::Shut {
            prop_assert_eq!(world.server.live.len(), after.len());
        }
    }
}
