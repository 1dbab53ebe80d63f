//! What holds for every fleet. The checkers here read the input themselves and share no code with
//! the planner.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::health::MemberState;
use fairlead_model::plan::{SNI_LANES, SlotTarget};
use fairlead_model::policy::{
    Backend, BackendTarget, Failback, FailbackMode, GlobalRoute, MemberSpec, ParentRef, Rule,
    Scope, Spread, StaleMember, Tier, TierMembers, TrafficState,
};
use fairlead_model::recipe::{Faults, Split, WEIGHT_SUM, WhenUnavailable};
use fairlead_model::snapshot::{
    Address, Consent, GatewayRole, GrantFrom, Knock, SniState, WeakDoor,
};
use fairlead_model::{MemberId, Millis, Note, NsName, Reason, RouteKind, Way};
use fairlead_planner::{FleetInput, MemberInput, Planned, explain, plan};
use fixture::{id, mk_fleet, mk_member, mk_route, mk_service, ns_name, snapshot_of};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

const NAMES: [&str; 6] = ["east", "north", "south", "up", "west", "zed"];
const SERVICES: [&str; 5] = ["shop/cart", "shop/cart-v2", "shop/pay", "infra/auth", "shop/db"];

fn pick<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(of.to_vec())
}

fn member_id() -> impl Strategy<Value = MemberId> {
    pick(&NAMES).prop_map(id)
}

prop_compose! {
    fn export()(
        ready in 0..5_u32, missing in 0..5_u32, refused in prop::bool::weighted(0.1),
        grants in btree_set((pick(&RouteKind::ALL), pick(&["shop", "infra"])), 0..3),
        ports in rare(BTreeSet::from([80_u16, 443]), &[BTreeSet::from([80]), BTreeSet::from([443])]),
    ) -> fairlead_model::snapshot::ServiceState {
        let mut service = mk_service(ready, ready + missing);
        if refused {
            service.consent = Consent::Refused;
        }
        let port = service.ports.remove(&80).unwrap();
        service.ports = ports.into_iter().map(|number| (number, port.clone())).collect();
        let grant = |(kind, ns): (RouteKind, &str)| GrantFrom { kind, namespace: ns.to_owned() };
        service.grants = grants.into_iter().map(grant).collect();
        service
    }
}

/// Mostly `usual`.
fn rare<T: Clone + std::fmt::Debug + 'static>(
    usual: T,
    others: &[T],
) -> impl Strategy<Value = T> + use<T> {
    prop_oneof![9 => Just(usual), 1 => pick(others)]
}

fn member(number: usize) -> impl Strategy<Value = (MemberSpec, MemberInput)> {
    use MemberState::{AgentLost, Down, Joined, Recovering, Suspect, Up};
    let spec = (
        option::of(pick(&["eu", "us"])),
        option::of(pick(&["a", "b"])),
        rare(true, &[false]),
        rare(TrafficState::Active, &[TrafficState::Draining, TrafficState::Standby]),
        rare(false, &[true]),
    );
    let report = (
        rare(true, &[false]),
        vec(option::weighted(0.7, export()), SERVICES.len()),
        (
            rare(Knock::Shut, &[Knock::Unknown, Knock::StrangerLetIn]),
            rare(Some(Knock::Shut), &[None, Some(Knock::Unknown), Some(Knock::StrangerLetIn)]),
            rare(true, &[false]),
        ),
        rare(Some(true), &[Some(false), None]),
        rare(number, &[1]),
        rare(true, &[false]),
        rare(false, &[true]),
        rare(vec!["infra", "shop"], &[vec!["infra"], vec!["shop"]]),
    );
    let health = (rare(Up, &[AgentLost, Down, Joined, Recovering, Suspect]), 0..2_000_000_u64);
    (spec, report, health).prop_map(move |(spec, report, health)| {
        let (mut member_spec, mut input) = mk_member(NAMES[number], number);
        let (region, zone, has_class, traffic, nat) = spec;
        let (reported, services, knock, programmed, address, has_ca, lends, namespaces) = report;
        member_spec.region = region.map(str::to_owned);
        member_spec.zone = zone.map(str::to_owned);
        member_spec.traffic = traffic;
        if !has_class {
            member_spec.gateway_class = None;
        }
        if nat {
            member_spec.door_addresses = [Address::of("192.0.2.1")].into();
        }
        (input.health.state, input.received_at) = (health.0, Millis(health.1));
        let snapshot = snapshot_of(&mut input);
        snapshot.services = SERVICES
            .iter()
            .zip(services)
            .filter_map(|(name, service)| Some((ns_name(name), service?)))
            .collect();
        snapshot.door.knock = knock.0;
        snapshot.door.sni = knock.1.map(|knock| SniState { knock, ..SniState::default() });
        snapshot.door.weak = WeakDoor::ALL.into_iter().filter(|_| knock.2).collect();
        snapshot.namespaces = namespaces.into_iter().map(str::to_owned).collect();
        if !has_ca {
            snapshot.door.ca_pem = None;
        }
        let mut door = snapshot.gateways.values().next().unwrap().clone();
        door.programmed = programmed;
        door.addresses = [Address::of(&format!("10.0.0.{address}"))].into();
        if lends {
            let mut lent = door.clone();
            lent.role = GatewayRole::Lent(ns_name("infra/public"));
            snapshot.gateways.insert(ns_name("infra/edge"), lent);
        }
        *snapshot.gateways.get_mut(&ns_name("fairlead-system/fairlead-eastwest")).unwrap() = door;
        if !reported {
            input.snapshot = None;
        }
        (member_spec, input)
    })
}

fn tier() -> impl Strategy<Value = Tier> {
    let scopes = [Scope::SameCluster, Scope::SameZone, Scope::SameRegion, Scope::Any];
    let members = prop_oneof![
        pick(&scopes).prop_map(TierMembers::Scope),
        btree_set(member_id(), 0..4).prop_map(TierMembers::Names),
    ];
    let split = pick(&[Split::Endpoints, Split::Equal, Split::Weights]);
    (members, split, btree_map(member_id(), 0..3_u32, 0..4))
        .prop_map(|(members, split, weights)| Tier { members, split, weights })
}

fn backend() -> impl Strategy<Value = Backend> {
    let global = (pick(&SERVICES), pick(&[80_u16, 80, 443]))
        .prop_map(|(service, port)| BackendTarget::Global { service: ns_name(service), port });
    let target = prop_oneof![
        8 => global,
        1 => Just(BackendTarget::Own),
        1 => Just(BackendTarget::Invalid(Note::new("x", Reason::InvalidKind, ""))),
    ];
    (rare(1, &[0, 2, 3]), target).prop_map(|(weight, target)| Backend { weight, target })
}

prop_compose! {
    fn rule()(
        backends in prop_oneof![6 => vec(backend(), 1..4), 1 => vec(backend(), 10..20), 1 => Just(Vec::new())],
        tiers in option::weighted(0.3, vec(tier(), 0..4)), healthy_percent in 0..=120_u8,
        endpoints_min in 0..3_u32, fails in any::<bool>(), stale in option::of(0..2_000_u32),
        by_hand in any::<bool>(), after_s in 0..100_u32, ramp_s in 0..100_u32,
    ) -> Rule {
        let mut spread = Spread { healthy_percent, endpoints_min, ..Spread::default() };
        spread.tiers = tiers.unwrap_or(spread.tiers);
        let mode = if by_hand { FailbackMode::Manual } else { FailbackMode::Auto };
        spread.failback = Failback { mode, after_s, ramp_s };
        if fails {
            spread.when_unavailable = WhenUnavailable::Fail;
        }
        spread.stale = stale.map_or(StaleMember::Keep, StaleMember::DrainAfter);
        Rule { backends, spread, mirrors: Vec::new() }
    }
}

prop_compose! {
    fn route()(
        kind in rare(RouteKind::HTTPRoute, &RouteKind::ALL), ns in pick(&["shop", "infra"]),
        name in pick(&["a", "b", "c"]), rules in vec(rule(), 1..3),
        section in option::weighted(0.1, pick(&["http", "other"])),
    ) -> GlobalRoute {
        let mut route = mk_route(&format!("{kind}/{ns}/{name}"), rules);
        let section = section.map(str::to_owned);
        route.parents = vec![ParentRef { gateway: ns_name("infra/public"), section, port: None }];
        route
    }
}

fn fleet() -> impl Strategy<Value = FleetInput> {
    let members = (member(0), member(1), member(2), member(3), member(4), member(5));
    (members, rare(6, &[0, 1, 2, 3, 4, 5]), vec(route(), 1..6)).prop_map(|(m, count, routes)| {
        let all = [m.0, m.1, m.2, m.3, m.4, m.5];
        let named = NAMES.iter().map(|name| id(name)).zip(all).take(count);
        mk_fleet(named.collect(), routes)
    })
}

/// What becomes of a fleet before it is planned again.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// All of it is another one.
    Another,
    /// Its routes stay, its members are others.
    OtherMembers,
    /// Members go down.
    Disaster,
    /// Members come back.
    Return,
}

/// Two fleets, the second planned with the memory of the first.
fn history() -> impl Strategy<Value = (FleetInput, FleetInput, u64)> {
    let times = prop_oneof![Just(0), 0..3_000_u64, 0..1_000_000_u64];
    let then = pick(&[Then::Another, Then::OtherMembers, Then::Disaster, Then::Return]);
    let down = btree_set(member_id(), 2..6);
    (fleet(), fleet(), then, down, times).prop_map(|(first, mut second, then, down, ms)| {
        match then {
            Then::Another => {}
            Then::OtherMembers => {
                Arc::make_mut(&mut second.policy).routes = first.policy.routes.clone();
            }
            Then::Disaster => {
                second = first.clone();
                for (_, member) in second.members.iter_mut().filter(|(id, _)| down.contains(*id)) {
                    member.health.state = MemberState::Down;
                }
            }
            Then::Return => {
                second = first.clone();
                let mut first = first;
                for (_, member) in first.members.iter_mut().filter(|(id, _)| down.contains(*id)) {
                    member.health.state = MemberState::Down;
                }
                return (first, second, ms);
            }
        }
        (first, second, ms)
    })
}

fn after(first: &FleetInput, mut second: FleetInput, ms: u64) -> FleetInput {
    second.memory = plan(first).memory;
    second.now = first.now.plus(ms);
    second
}

/// Everything that a plan sends somewhere: entry, route's kind and namespace, target, service, port,
/// weight.
struct Sent<'a> {
    entry: &'a MemberId,
    kind: RouteKind,
    namespace: &'a str,
    target: &'a MemberId,
    service: &'a NsName,
    port: u16,
    weight: u32,
    lane: u16,
}

fn sent(planned: &Planned) -> Vec<Sent<'_>> {
    let mut all = Vec::new();
    for plan in planned.plans.values() {
        for (key, route) in &plan.routes {
            for rule in &route.rules {
                let slots = rule.slots.iter().enumerate().zip(&rule.recipe.weights);
                for ((at, slot), weight) in slots {
                    let (target, service, port) = match &slot.target {
                        SlotTarget::AsWritten => continue,
                        SlotTarget::Local { service, port } => (&plan.member, service, *port),
                        SlotTarget::Remote { member, service, port, .. } => {
                            (member, service, *port)
                        }
                    };
                    all.push(Sent {
                        entry: &plan.member,
                        kind: key.kind,
                        namespace: &key.name.namespace,
                        target,
                        service,
                        port,
                        weight: *weight,
                        lane: rule.lane(at),
                    });
                }
            }
        }
    }
    all
}

/// Routes whose decision was kept from before are older than the input.
fn nothing_was_kept(planned: &Planned) -> bool {
    planned.report.routes.values().all(|route| route.kept.is_none())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_same_again_changes_nothing((first, second, ms) in history()) {
        let mut input = after(&first, second, ms);
        let once = plan(&input);
        prop_assert_eq!(&plan(&input), &once);
        input.memory = once.memory.clone();
        let twice = plan(&input);
        prop_assert_eq!(&twice.plans, &once.plans);
        prop_assert_eq!(&twice.decisions, &once.decisions);
        prop_assert_eq!(&twice.memory, &once.memory);
        prop_assert_eq!(twice.wake_at, once.wake_at);
        for (key, decision) in &twice.decisions {
            prop_assert!(Arc::ptr_eq(decision, &once.decisions[key]));
        }
    }

    #[test]
    fn shares_are_conserved_and_slots_bounded((first, second, ms) in history()) {
        let planned = plan(&after(&first, second, ms));
        for plan in planned.plans.values() {
            for route in plan.routes.values() {
                prop_assert_eq!(route.rules.len(), route.route.rules.len());
                for (rule, asked) in route.rules.iter().zip(&route.route.rules) {
                    let sum: u32 = rule.recipe.weights.iter().sum();
                    let any = asked.backends.iter().take(16).any(|b| b.weight > 0);
                    prop_assert_eq!(sum, if any { WEIGHT_SUM } else { 0 });
                    prop_assert!(rule.slots.len() <= 16);
                    prop_assert_eq!(rule.slots.len(), rule.recipe.weights.len());
                    let again = fairlead_weights::divide(&rule.recipe, &Faults::default());
                    prop_assert_eq!(&again, &rule.recipe.weights);
                }
            }
        }
    }

    #[test]
    fn nobody_sends_where_consent_is_missing((first, second, ms) in history()) {
        let input = after(&first, second, ms);
        let planned = plan(&input);
        if !nothing_was_kept(&planned) {
            return Ok(());
        }
        for s in sent(&planned) {
            let snapshot = input.members[s.target].snapshot.as_ref().unwrap();
            let state = snapshot.services.get(s.service);
            prop_assert!(state.is_some(), "{} does not export {}", s.target, s.service);
            let state = state.unwrap();
            prop_assert_eq!(state.consent, Consent::Given);
            prop_assert!(state.ports.contains_key(&s.port));
            let grant = GrantFrom { kind: s.kind, namespace: s.namespace.to_owned() };
            prop_assert!(s.namespace == &*s.service.namespace || state.grants.contains(&grant));
            if s.entry != s.target {
                prop_assert!(input.policy.members[s.target].gateway_class.is_some());
                prop_assert!(snapshot.door.knock != Knock::StrangerLetIn);
                match s.kind.way() {
                    Way::Header => {}
                    Way::Sni => {
                        let sni = snapshot.door.sni.as_ref();
                        prop_assert!(sni.is_some_and(|sni| sni.knock != Knock::StrangerLetIn));
                    }
                    Way::Port => prop_assert!(snapshot.door.weak.contains(&WeakDoor::Open)),
                }
            }
        }
    }

    /// Not even from decisions that were kept.
    #[test]
    fn a_drained_member_gets_no_traffic((first, second, ms) in history()) {
        let input = after(&first, second, ms);
        let planned = plan(&input);
        for s in sent(&planned) {
            let drained = input.policy.members[s.target].traffic == TrafficState::Draining;
            prop_assert!(!drained || s.weight == 0, "{} sends to {}", s.entry, s.target);
        }
    }

    #[test]
    fn both_sides_of_a_crossing_know_each_other((first, second, ms) in history()) {
        let input = after(&first, second, ms);
        let planned = plan(&input);
        let mut addresses: BTreeMap<&MemberId, _> = BTreeMap::new();
        for plan in planned.plans.values() {
            for (peer, facts) in &plan.peers {
                prop_assert!(!facts.addresses.is_empty() && peer != &plan.member);
                addresses.insert(peer, (&facts.addresses, facts.port));
            }
        }
        for s in sent(&planned).iter().filter(|s| s.entry != s.target) {
            let peer = planned.plans[s.entry].peers.get(s.target);
            // What is kept from before may lead to a listener or port that is there no more.
            prop_assert!(peer.is_some() || s.kind.way() != Way::Header);
            // More services of one rule than lanes: what is beyond fails, and says so.
            let beyond = s.kind.way() == Way::Sni && s.lane >= SNI_LANES;
            if beyond || !nothing_was_kept(&planned) {
                continue;
            }
            let door = planned.plans[s.target].door.as_ref().unwrap();
            prop_assert!(door.callers.contains_key(s.entry));
            let behind = |d: &fairlead_model::plan::DoorService| {
                d.from_namespace == s.namespace && &d.service == s.service && d.port == s.port
            };
            let peer = peer.unwrap();
            let has_passage = peer.passages.iter().any(|p| {
                p.way == s.kind.way()
                    && p.used_from.namespace == s.namespace
                    && &p.service == s.service
                    && p.port == s.port
            });
            prop_assert_eq!(has_passage, s.kind.way() != Way::Header);
            let there = match s.kind.way() {
                Way::Header => door.services.iter().any(behind),
                Way::Sni => door.sni.as_ref().is_some_and(|sni| sni.services.iter().any(behind)),
                Way::Port => {
                    door.ports.iter().any(|own| &own.service == s.service && own.port == s.port)
                }
            };
            prop_assert!(there);
        }
        let distinct: BTreeSet<_> = addresses.values().collect();
        prop_assert_eq!(distinct.len(), addresses.len(), "two members with one address");
    }

    #[test]
    fn every_entry_and_every_share_is_explained((first, second, ms) in history()) {
        let planned = plan(&after(&first, second, ms));
        for (key, decision) in &planned.decisions {
            let explanation = explain(&planned, key, None).unwrap();
            prop_assert_eq!(explanation.entries.len(), decision.entries.len());
            for (entry, of_entry) in &explanation.entries {
                for (rule, plan) in of_entry.rules.iter().zip(&decision.entries[entry].rules) {
                    let shares: u32 = rule.backends.iter().map(|b| b.share).sum();
                    prop_assert_eq!(shares, plan.recipe.weights.iter().sum::<u32>());
                    for backend in &rule.backends {
                        let of_members: u32 = backend.members.iter().map(|m| m.share).sum();
                        prop_assert!(of_members == backend.share || of_members == 0);
                        let ids: BTreeSet<_> = backend.members.iter().map(|m| &m.member).collect();
                        prop_assert_eq!(ids.len(), backend.members.len());
                    }
                }
                let one = explain(&planned, key, Some(entry)).unwrap();
                prop_assert_eq!(one.entries.keys().collect::<Vec<_>>(), [entry]);
            }
        }
    }

    #[test]
    fn memory_survives_the_store((first, second, ms) in history()) {
        let memory = plan(&after(&first, second, ms)).memory;
        let text = serde_json::to_string(&memory).unwrap();
        prop_assert_eq!(serde_json::from_str::<fairlead_planner::Memory>(&text).unwrap(), memory);
    }

    #[test]
    fn what_a_member_does_is_of_no_concern_to_routes_that_do_not_use_it(
        first in fleet(), other in member(5),
    ) {
        // A member that exports nothing, joined to the fleet, moves no traffic.
        let before = plan(&first);
        let (spec, mut input) = other;
        if let Some(snapshot) = input.snapshot.as_mut() {
            Arc::make_mut(snapshot).services.clear();
            Arc::make_mut(snapshot).gateways.clear();
        }
        let mut spec = spec;
        spec.door_addresses.clear();
        let mut second = first.clone();
        Arc::make_mut(&mut second.policy).members.insert(id("zzz"), spec);
        second.members.insert(id("zzz"), input);
        let after = plan(&second);
        for (member, plan) in &before.plans {
            prop_assert_eq!(&plan.routes, &after.plans[member].routes);
        }
    }
}
