//! Changes of weights as three members see them, with what is observed given by hand.

#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_model::health::MemberState;
use fairlead_model::policy::{MemberSpec, Tier, TierMembers, TrafficState};
use fairlead_model::recipe::Split;
use proptest::prelude::*;

use super::*;
use crate::fixture::{id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service};
use crate::fixture::{ns_name, route_key, snapshot_of};
use crate::{MemberInput, Planned, plan};

const CART: &str = "HTTPRoute/shop/cart";
const NAMES: [&str; 3] = ["east", "south", "west"];

/// Everything through every entry, by these weights of east and west.
fn weights(weights: [u32; 2]) -> GlobalRoute {
    let mut rule = mk_rule([mk_backend("shop/cart", 1)]);
    let members = TierMembers::Names(["east", "west"].map(id).into());
    let weights = ["east", "west"].map(id).into_iter().zip(weights).collect();
    rule.spread.tiers = vec![Tier { members, split: Split::Weights, weights }];
    mk_route(CART, vec![rule])
}

struct Bench(FleetInput);

fn mk_bench() -> Bench {
    let member = |(number, name)| {
        let (spec, mut input) = mk_member(name, number);
        snapshot_of(&mut input).services.insert(ns_name("shop/cart"), mk_service(2, 2));
        (id(name), (spec, input))
    };
    let members: BTreeMap<MemberId, (MemberSpec, MemberInput)> =
        (1..).zip(NAMES).map(member).collect();
    let mut input = mk_fleet(members, vec![weights([100, 0])]);
    input.rollout.settings = Some(RolloutSettings::default());
    let mut bench = Bench(input);
    bench.round(0);
    bench
}

impl Bench {
    fn declare(&mut self, route: GlobalRoute) {
        let mut policy = (*self.0.policy).clone();
        policy.routes.insert(route.key.clone(), Arc::new(route));
        self.0.policy = Arc::new(policy);
    }

    fn settings(&mut self) -> &mut RolloutSettings {
        self.0.rollout.settings.as_mut().unwrap()
    }

    fn observe(&mut self, taken: Taken, requests: u64, failed: u64) {
        let observed = Observed { taken, requests, failed };
        self.0.rollout.observed.insert(route_key(CART), observed);
    }

    fn round(&mut self, ms: u64) -> Planned {
        self.0.now = self.0.now.plus(ms);
        let planned = plan(&self.0);
        self.0.memory = planned.memory.clone();
        if let Some(at) = planned.wake_at {
            assert!(at > self.0.now, "{at:?} is not later than {:?}", self.0.now);
        }
        planned
    }

    fn down(&mut self, name: &str) {
        let health = &mut self.0.members.get_mut(&id(name)).unwrap().health;
        health.state = MemberState::Down;
    }
}

/// What west gets of each entry's requests, in the order of names.
fn to_west(planned: &Planned) -> [u32; 3] {
    NAMES.map(|entry| {
        let rule = &planned.decisions[&route_key(CART)].entries[&id(entry)].rules[0];
        let slots = rule.slots.iter().zip(&rule.recipe.weights);
        let west = slots.filter(|(slot, _)| match &slot.target {
            SlotTarget::Remote { member, .. } => *member == id("west"),
            SlotTarget::Local { .. } => entry == "west",
            SlotTarget::AsWritten => false,
        });
        west.map(|(_, weight)| *weight).sum()
    })
}

fn told(planned: &Planned) -> Option<(Reason, String)> {
    planned.report.routes[&route_key(CART)].rollout.clone()
}

const TRIED: [u32; 3] = [10_000, 0, 0];
const EVERYWHERE: [u32; 3] = [10_000; 3];

#[test]
fn a_large_change_is_tried_at_one_member_and_goes_on_when_it_goes_well() {
    let mut bench = mk_bench();
    bench.declare(weights([0, 100]));
    let planned = bench.round(1_000);
    assert_eq!(to_west(&planned), TRIED);
    assert_eq!(planned.wake_at, Some(bench.0.now.plus(60_000)));
    let (reason, message) = told(&planned).unwrap();
    assert_eq!(reason, Reason::RollingOut);
    assert!(message.contains("east") && message.contains("100 %"), "{message}");
    bench.observe(Taken::Yes, 0, 0);
    let planned = bench.round(1_000);
    assert_eq!((to_west(&planned), planned.wake_at), (TRIED, Some(bench.0.now.plus(120_000))));
    bench.observe(Taken::Yes, 50, 2);
    let planned = bench.round(14_999);
    assert_eq!((to_west(&planned), planned.wake_at), (TRIED, Some(bench.0.now.plus(1))));
    let planned = bench.round(1);
    assert_eq!((to_west(&planned), told(&planned)), (EVERYWHERE, None));
    assert!(planned.memory.rollouts.is_empty());
    assert_eq!(to_west(&bench.round(1)), EVERYWHERE);
}

#[test]
fn what_stops_a_change_is_said_and_nobody_keeps_it() {
    let refused = Taken::Refused(Reason::NotAcceptedByGateway, "no such thing".to_owned());
    let table: [(Taken, u64, u64, u64, &str); 5] = [
        (Taken::Yes, 50, 3, 1, "3 of 50 requests that came in at east failed (limit 5 %)"),
        (Taken::Yes, 49, 0, 120_000, "49 requests came in at east within 120 s"),
        (Taken::Yes, 49, 49, 120_000, "49 requests came in at east within 120 s"),
        (Taken::NotYet, 0, 0, 60_000, "has not taken it within 60 s"),
        (refused, 0, 0, 1, "NotAcceptedByGateway: no such thing"),
    ];
    for (taken, requests, failed, after, text) in table {
        let mut bench = mk_bench();
        bench.declare(weights([0, 100]));
        bench.round(0);
        bench.observe(taken.clone(), 0, 0);
        if taken == Taken::Yes {
            assert_eq!(to_west(&bench.round(0)), TRIED);
        }
        bench.observe(taken, requests, failed);
        let planned = bench.round(after);
        assert_eq!(to_west(&planned), [0; 3], "{text}");
        let (reason, message) = told(&planned).unwrap();
        assert_eq!(reason, Reason::RolloutStopped);
        assert!(message.contains(text), "{message}");
        // It stays stopped, whatever comes later.
        bench.observe(Taken::Yes, 1_000, 0);
        let later = bench.round(1_000_000);
        assert_eq!((to_west(&later), told(&later)), ([0; 3], told(&planned)));
    }
}

#[test]
fn a_newer_edit_is_tried_anew_and_one_taken_back_ends_it() {
    let mut bench = mk_bench();
    bench.declare(weights([0, 100]));
    bench.round(0);
    bench.observe(Taken::Refused(Reason::FieldUnknown, String::new()), 0, 0);
    assert_eq!(to_west(&bench.round(1)), [0; 3]);
    bench.0.rollout.observed.clear();
    bench.declare(weights([30, 70]));
    let planned = bench.round(1);
    assert_eq!(to_west(&planned), [7_000, 0, 0]);
    bench.declare(weights([100, 0]));
    let planned = bench.round(1);
    assert_eq!((to_west(&planned), told(&planned)), ([0; 3], None));
    assert!(planned.memory.rollouts.is_empty());
}

#[test]
fn small_changes_new_routes_and_what_is_asked_for_at_once_are_not_tried() {
    let mut bench = mk_bench();
    bench.declare(weights([80, 20]));
    assert_eq!(to_west(&bench.round(1)), [2_000; 3]);
    let other = GlobalRoute { key: route_key("HTTPRoute/shop/other"), ..weights([0, 100]) };
    bench.declare(other);
    assert!(bench.round(1).memory.rollouts.is_empty());
    bench.0.rollout.at_once.insert(route_key(CART));
    bench.declare(weights([0, 100]));
    assert_eq!(to_west(&bench.round(1)), EVERYWHERE);
    bench.0.rollout.at_once.clear();
    bench.0.rollout.settings = None;
    bench.declare(weights([100, 0]));
    assert_eq!(to_west(&bench.round(1)), [0; 3]);
}

#[test]
fn a_match_or_filter_that_differs_counts_as_all_traffic() {
    let mut bench = mk_bench();
    let mut route = weights([100, 0]);
    route.spec = Arc::new(serde_json::json!({"rules": [{"matches": [1]}]}));
    bench.declare(route);
    let planned = bench.round(1);
    let rollout = &planned.memory.rollouts[&route_key(CART)];
    assert_eq!(rollout.moved_percent, 100);
    let tried = &planned.plans[&id("east")].routes[&route_key(CART)].route;
    let others = &planned.plans[&id("west")].routes[&route_key(CART)].route;
    assert!(Arc::ptr_eq(tried, &rollout.asked) && **others == *rollout.before);
}

#[test]
fn the_named_member_tries_else_the_one_with_the_least_traffic() {
    for (named, rates, want) in [
        (None, vec![("east", 9), ("west", 3)], "west"),
        (None, vec![], "east"),
        (Some("south"), vec![("west", 3)], "south"),
        (Some("nobody"), vec![("south", 3), ("west", 3)], "south"),
    ] {
        let mut bench = mk_bench();
        bench.settings().member = named.map(id);
        let rates = rates.into_iter().map(|(name, rate)| (id(name), rate)).collect();
        bench.0.rollout.rates.insert(route_key(CART), rates);
        bench.declare(weights([0, 100]));
        let planned = bench.round(1);
        let rollout = &planned.memory.rollouts[&route_key(CART)];
        assert!(
            matches!(&rollout.stage, Stage::Tried { member, .. } if *member == id(want)),
            "{want}"
        );
    }
}

#[test]
fn when_the_one_who_tries_dies_another_one_does() {
    let mut bench = mk_bench();
    bench.declare(weights([0, 100]));
    bench.round(1);
    bench.down("east");
    let planned = bench.round(1);
    assert_eq!(to_west(&planned)[1], 10_000);
    let rollout = &planned.memory.rollouts[&route_key(CART)];
    assert!(matches!(&rollout.stage, Stage::Tried { member, .. } if *member == id("south")));
}

#[test]
fn silence_goes_on_where_that_is_asked_for_and_says_so() {
    let mut bench = mk_bench();
    bench.settings().unheard = Unheard::GoOn;
    bench.declare(weights([0, 100]));
    bench.round(0);
    bench.observe(Taken::Yes, 3, 0);
    bench.round(0);
    let planned = bench.round(120_000);
    assert_eq!(to_west(&planned), EVERYWHERE);
    assert!(told(&planned).unwrap().1.contains("without evidence"));
}

#[test]
fn a_withdrawn_grant_acts_at_once() {
    let mut bench = mk_bench();
    let mut route = weights([100, 0]);
    let note = fairlead_model::Note::new("x", Reason::RefNotPermitted, "withdrawn");
    route.rules[0].backends[0].target = BackendTarget::Invalid(note);
    bench.declare(route);
    let planned = bench.round(1);
    assert!(planned.memory.rollouts.is_empty());
    assert_eq!(to_west(&planned), [0; 3]);
}

/// What may happen while a change is under way and is no edit of the route.
#[derive(Debug, Clone)]
enum Event {
    Ready(&'static str, u32),
    State(&'static str, MemberState),
    Traffic(&'static str, TrafficState),
    Withdraw(&'static str),
    Observe(u64, u64),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let name = || prop::sample::select(NAMES.to_vec());
    let states = vec![MemberState::Up, MemberState::Down, MemberState::AgentLost];
    let traffic = vec![TrafficState::Active, TrafficState::Draining, TrafficState::Standby];
    prop_oneof![
        (name(), 0..3_u32).prop_map(|(name, ready)| Event::Ready(name, ready)),
        (name(), prop::sample::select(states)).prop_map(|(name, state)| Event::State(name, state)),
        (name(), prop::sample::select(traffic)).prop_map(|(name, to)| Event::Traffic(name, to)),
        name().prop_map(Event::Withdraw),
        (0..100_u64, 0..3_u64).prop_map(|(requests, failed)| Event::Observe(requests, failed)),
        (0..30_000_u64).prop_map(Event::Wait),
    ]
}

impl Bench {
    fn happen(&mut self, event: &Event) -> u64 {
        let of = |input: &mut FleetInput, name: &str, service| {
            let services = &mut snapshot_of(input.members.get_mut(&id(name)).unwrap()).services;
            match service {
                Some(service) => drop(services.insert(ns_name("shop/cart"), service)),
                None => drop(services.remove(&ns_name("shop/cart"))),
            }
        };
        match event {
            Event::Ready(name, ready) => of(&mut self.0, name, Some(mk_service(*ready, 2))),
            Event::Withdraw(name) => of(&mut self.0, name, None),
            Event::State(name, state) => {
                self.0.members.get_mut(&id(name)).unwrap().health.state = *state;
            }
            Event::Traffic(name, traffic) => {
                let mut policy = (*self.0.policy).clone();
                policy.members.get_mut(&id(name)).unwrap().traffic = *traffic;
                self.0.policy = Arc::new(policy);
            }
            Event::Observe(requests, failed) => self.observe(Taken::Yes, *requests, *failed),
            Event::Wait(ms) => return *ms,
        }
        1
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Nothing that is no edit of the route is ever staged: every entry has what it would have at once,
    /// by the rules of before or, where it tries or all have it, by those that are asked for.
    #[test]
    fn only_edits_are_staged(events in prop::collection::vec(event(), 1..12), edit_at in 0..12_usize) {
        let mut bench = mk_bench();
        for (at, event) in events.iter().enumerate() {
            if at == edit_at {
                bench.declare(weights([0, 100]));
            }
            let ms = bench.happen(event);
            let before = bench.0.memory.clone();
            let planned = bench.round(ms);
            let plain = |route: Arc<GlobalRoute>| {
                let mut input = FleetInput { memory: before.clone(), ..bench.0.clone() };
                input.rollout = RolloutInput::default();
                input.memory.rollouts.clear();
                let mut policy = (*input.policy).clone();
                policy.routes.insert(route_key(CART), route);
                input.policy = Arc::new(policy);
                plan(&input).decisions.remove(&route_key(CART)).unwrap()
            };
            let rollout = planned.memory.rollouts.get(&route_key(CART));
            let asked = Arc::clone(&bench.0.policy.routes[&route_key(CART)]);
            let of_others = plain(rollout.map_or_else(|| Arc::clone(&asked), |r| Arc::clone(&r.before)));
            let of_trial = plain(asked);
            for (entry, decided) in &planned.decisions[&route_key(CART)].entries {
                let tries = rollout.is_some_and(|rollout| {
                    matches!(&rollout.stage, Stage::Tried { member, .. } if member == entry)
                });
                let want = if tries { &of_trial } else { &of_others };
                prop_assert_eq!(&decided.rules, &want.entries[entry].rules, "{} {:?}", entry, event);
                prop_assert_eq!(decided.route.is_some(), tries);
            }
        }
    }
}
