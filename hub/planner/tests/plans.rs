//! What each member holds: both ends of a crossing, from one small fleet.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_model::follower::Follower;
use fairlead_model::plan::{
    DoorPort, DoorService, GatewayPlan, PeerPlan, SlotTarget, Trust, UsedFrom,
};
use fairlead_model::policy::Mirror;
use fairlead_model::snapshot::{Address, Knock, SniState, WeakDoor};
use fairlead_model::{MemberId, Millis, RouteKind, Way};
use fairlead_planner::{FleetInput, Planned, plan};
use fixture::{
    id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service, ns_name, route_key,
    snapshot_of,
};

/// East has nothing, west has `shop/cart`, south has a door that nobody uses.
fn mk_input() -> FleetInput {
    let mut members: std::collections::BTreeMap<_, _> = (1..)
        .zip(["east", "south", "west"])
        .map(|(n, name)| (id(name), mk_member(name, n)))
        .collect();
    let (spec, west) = members.get_mut(&id("west")).unwrap();
    spec.door_port = 9_443;
    let mut cart = mk_service(2, 2);
    cart.ports.get_mut(&80).unwrap().app_protocol = "kubernetes.io/h2c".to_owned();
    snapshot_of(west).services.insert(ns_name("shop/cart"), cart);
    let rule = mk_rule([mk_backend("shop/cart", 1)]);
    mk_fleet(members, vec![mk_route("GRPCRoute/shop/cart", vec![rule])])
}

#[test]
fn an_entry_knows_the_peers_that_it_uses() {
    let plans = plan(&mk_input()).plans;
    let east = &plans[&id("east")];
    let used = |(_, peer): &(&MemberId, &PeerPlan)| !peer.used_from.is_empty();
    let peers: Vec<_> = east.peers.iter().filter(used).map(|(id, _)| id).collect();
    assert_eq!(peers, [&id("west")]);
    let west = &east.peers[&id("west")];
    assert_eq!(west.uid.as_str(), "uid-west");
    assert_eq!(west.addresses, [Address::of("10.0.3.1")].into());
    assert_eq!((west.port, west.ca_pem.as_str()), (9_443, "CA of west"));
    let from = UsedFrom { kind: RouteKind::GRPCRoute, namespace: "shop".to_owned() };
    assert_eq!(west.used_from, [from].into());
    assert_eq!(west.app_protocols, ["kubernetes.io/h2c".to_owned()].into());
    assert!(!plans[&id("west")].peers.iter().any(|peer| used(&peer)));
}

#[test]
fn every_door_has_witnesses_that_it_answers() {
    let plans = plan(&mk_input()).plans;
    for (subject, plan) in &plans {
        for (witness, watcher) in plans.iter().filter(|(id, _)| *id != subject) {
            assert!(watcher.peers.contains_key(subject), "{witness} watches {subject}");
            assert!(plan.door.as_ref().unwrap().callers.contains_key(witness));
        }
    }
    // A door that lets strangers in proves nothing.
    let mut input = mk_input();
    let south = snapshot_of(input.members.get_mut(&id("south")).unwrap());
    south.door.knock = Knock::StrangerLetIn;
    let plans = plan(&input).plans;
    assert!(plans.values().all(|plan| !plan.peers.contains_key(&id("south"))));
}

#[test]
fn a_door_opens_to_its_callers_for_the_services_that_they_use() {
    let plans = plan(&mk_input()).plans;
    let door = plans[&id("west")].door.as_ref().unwrap();
    assert_eq!((door.class.as_str(), door.port), ("eg", 9_443));
    let cart =
        DoorService { from_namespace: "shop".to_owned(), service: ns_name("shop/cart"), port: 80 };
    assert_eq!(door.services, BTreeSet::from([cart]));
    let ca = |name: &str| (id(name), format!("CA of {name}"));
    assert_eq!(door.callers, [ca("east"), ca("south"), ca("west")].into());
}

#[test]
fn a_door_stands_before_anybody_uses_it() {
    let plans = plan(&mk_input()).plans;
    let door = plans[&id("south")].door.as_ref().unwrap();
    assert_eq!(door.port, 15_443);
    // Its own CA: the agent's knock at its own door must be answered.
    assert!(door.services.is_empty() && door.callers.contains_key(&id("south")));
    let mut input = mk_input();
    let south = &mut Arc::make_mut(&mut input.policy).members;
    south.get_mut(&id("south")).unwrap().gateway_class = None;
    assert!(plan(&input).plans[&id("south")].door.is_none());
}

#[test]
fn a_door_is_reached_by_the_addresses_that_its_spec_says() {
    let mut input = mk_input();
    let members = &mut Arc::make_mut(&mut input.policy).members;
    members.get_mut(&id("west")).unwrap().door_addresses = [Address::of("nat.example")].into();
    let plans = plan(&input).plans;
    assert_eq!(
        plans[&id("east")].peers[&id("west")].addresses,
        [Address::of("nat.example")].into()
    );
}

#[test]
fn a_gateway_is_created_under_its_own_name_and_a_suffix() {
    let plans = plan(&mk_input()).plans;
    let east = &plans[&id("east")];
    let created = &east.gateways[&ns_name("infra/public")];
    assert!(matches!(created, GatewayPlan::Created { class, .. } if class == "eg"));
    let route = &east.routes[&route_key("GRPCRoute/shop/cart")];
    assert_eq!(route.parents[0].gateway, ns_name("infra/public-global"));
}

#[test]
fn a_member_without_news_keeps_what_it_has() {
    let mut input = mk_input();
    input.members.get_mut(&id("east")).unwrap().snapshot = None;
    let planned = plan(&input);
    assert_eq!(planned.plans.keys().collect::<Vec<_>>(), [&id("south"), &id("west")]);
}

#[test]
fn a_reused_name_inherits_no_proof() {
    let mut input = mk_input();
    input.memory = plan(&input).memory;
    let unknown = |input: &mut FleetInput| {
        let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
        west.door.knock = Knock::Unknown;
    };
    unknown(&mut input);
    assert!(plan(&input).plans[&id("east")].peers.contains_key(&id("west")));
    let members = &mut Arc::make_mut(&mut input.policy).members;
    members.get_mut(&id("west")).unwrap().uid = Some("another".parse().unwrap());
    assert!(!plan(&input).plans[&id("east")].peers.contains_key(&id("west")));
}

#[test]
fn memory_forgets_what_no_longer_exists() {
    let mut input = mk_input();
    input.memory = plan(&input).memory;
    let policy = Arc::make_mut(&mut input.policy);
    policy.members.remove(&id("west"));
    policy.routes.clear();
    let memory = plan(&input).memory;
    assert!(memory.decisions.is_empty());
    assert!(!memory.counts.contains_key(&id("west")) && !memory.doors.contains_key(&id("west")));
    assert!(!memory.address_holders.values().any(|holder| *holder == id("west")));
}

#[test]
fn it_wakes_when_an_increase_is_due() {
    let mut input = mk_input();
    let first = plan(&input);
    assert_eq!(first.wake_at, None);
    input.memory = first.memory;
    let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
    west.services.insert(ns_name("shop/cart"), mk_service(9, 9));
    let second = plan(&input);
    assert_eq!(second.wake_at, Some(Millis(1_001_000)));
    input.memory = second.memory;
    input.now = second.wake_at.unwrap();
    assert_eq!(plan(&input).wake_at, None);
}

fn mk_follower() -> Follower {
    Follower {
        api_version: "gateway.envoyproxy.io/v1alpha1".to_owned(),
        kind: "BackendTrafficPolicy".to_owned(),
        name: ns_name("shop/limit"),
        spec: Arc::default(),
        routes: [route_key("GRPCRoute/shop/cart")].into(),
        gateways: BTreeSet::new(),
    }
}

fn serve(input: &mut FleetInput, member: &str, kind: &str) {
    let member = input.members.get_mut(&id(member)).unwrap();
    snapshot_of(member).cluster.kinds.insert(kind.to_owned());
}

#[test]
fn what_follows_a_route_goes_with_it_and_is_told_where_it_may_not() {
    let mut input = mk_input();
    let mut policy = (*input.policy).clone();
    policy.followers = vec![Arc::new(mk_follower())];
    let idle = Follower { routes: BTreeSet::new(), ..mk_follower() };
    policy.followers.push(Arc::new(idle));
    input.policy = Arc::new(policy);
    serve(&mut input, "east", &mk_follower().group_version_kind());
    let plans = plan(&input).plans;
    let fits = |member: &str| -> Vec<bool> {
        plans[&id(member)].following.iter().map(|following| following.fits).collect()
    };
    assert_eq!((fits("east"), fits("west")), (vec![true], vec![false]));
}

#[test]
fn a_door_is_told_to_trust_its_callers_where_there_is_a_word_for_it() {
    let mut input = mk_input();
    serve(&mut input, "west", "gateway.envoyproxy.io/v1alpha1/ClientTrafficPolicy");
    let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
    let controller = "gateway.envoyproxy.io/gatewayclass-controller".to_owned();
    west.classes.entry("eg".to_owned()).or_default().controller = controller;
    let plans = plan(&input).plans;
    let trust = |member: &str| plans[&id(member)].door.as_ref().unwrap().trust;
    assert_eq!((trust("west"), trust("south")), (Trust::ClientTrafficPolicy, Trust::Unsaid));
}

/// A route of west whose copies go to what only east has.
#[test]
fn copies_go_to_one_member_by_sni() {
    let mut input = mk_input();
    let policy = Arc::make_mut(&mut input.policy);
    let key = route_key("HTTPRoute/shop/copied");
    let mut rule = mk_rule([mk_backend("shop/cart", 1)]);
    rule.mirrors = vec![
        Mirror { service: ns_name("shop/cart"), port: 80 },
        Mirror { service: ns_name("shop/nowhere"), port: 80 },
    ];
    policy.routes = [(key.clone(), Arc::new(mk_route("HTTPRoute/shop/copied", vec![rule])))].into();
    // Until the listener is proven shut there are no copies, and requests cross as ever.
    let planned = plan(&input);
    let rule = |planned: &Planned, entry: &str| {
        planned.decisions[&key].entries[&id(entry)].rules[0].clone()
    };
    assert_eq!(rule(&planned, "east").mirrors, []);
    assert_eq!(rule(&planned, "west").mirrors.len(), 1, "its own needs no door");
    let notes = &planned.decisions[&key].notes;
    let said: Vec<String> = notes.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|n| n.contains("CrossingUnsupported")), "{said:?}");
    assert!(said.iter().any(|n| n.contains("shop/nowhere") && n.contains("no member")), "{said:?}");

    let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
    west.door.sni = Some(SniState { knock: Knock::Shut, ..SniState::default() });
    let planned = plan(&input);
    let SlotTarget::Remote { member, .. } = &rule(&planned, "east").mirrors[0] else {
        panic!("copies of east do not go to west")
    };
    assert_eq!(member, &id("west"));
    let door = planned.plans[&id("west")].door.clone().unwrap();
    let behind = door.sni.unwrap();
    assert_eq!((behind.port, behind.services.len()), (9_444, 1));
    let passages = &planned.plans[&id("east")].peers[&id("west")].passages;
    assert_eq!(
        passages.iter().map(|p| (p.way, p.door_port)).collect::<Vec<_>>(),
        [(Way::Sni, 9_444)]
    );
}

#[test]
fn a_port_of_a_door_belongs_to_one_service_and_needs_consent() {
    let mut input = mk_input();
    let policy = Arc::make_mut(&mut input.policy);
    let route = mk_route("UDPRoute/shop/cart", vec![mk_rule([mk_backend("shop/cart", 1)])]);
    policy.routes = [(route.key.clone(), Arc::new(route))].into();
    let ports = |input: &FleetInput| plan(input).plans[&id("west")].door.clone().unwrap().ports;
    assert_eq!(ports(&input).len(), 0);
    let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
    west.door.weak = [WeakDoor::Open].into();
    let own = DoorPort { door_port: 9_448, service: ns_name("shop/cart"), port: 80 };
    assert_eq!(ports(&input), [own].into());
}

/// Envoy takes two endpoints of one address and port for one.
#[test]
fn services_of_one_rule_behind_one_door_have_a_lane_each() {
    let mut input = mk_input();
    let west = snapshot_of(input.members.get_mut(&id("west")).unwrap());
    west.door.sni = Some(SniState { knock: Knock::Shut, ..SniState::default() });
    for name in ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"] {
        west.services.insert(ns_name(name), mk_service(1, 1));
    }
    let backends = ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"].map(|s| mk_backend(s, 1));
    let route = mk_route("TCPRoute/shop/db", vec![mk_rule(backends)]);
    Arc::make_mut(&mut input.policy).routes = [(route.key.clone(), Arc::new(route))].into();
    let planned = plan(&input);
    let passages = &planned.plans[&id("east")].peers[&id("west")].passages;
    let ports: Vec<(String, u16)> =
        passages.iter().map(|p| (p.service.name.to_string(), p.door_port)).collect();
    let expected = [("a", 9_444), ("b", 9_445), ("c", 9_446), ("d", 9_447)];
    assert_eq!(ports, expected.map(|(name, port)| (name.to_owned(), port)));
}
