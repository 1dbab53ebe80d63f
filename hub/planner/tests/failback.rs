//! How traffic is given back: the series of shares that a member gets, by the planner's own clock.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::sync::Arc;

use fairlead_model::health::MemberState;
use fairlead_model::policy::{Failback, FailbackMode, TrafficState};
use fairlead_model::recipe::Serve;
use fairlead_model::{MemberId, Millis, Reason};
use fairlead_planner::{FleetInput, Freeze, Planned, STEPS, plan};
use fixture::{
    id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service, ns_name, route_key,
    snapshot_of,
};
use proptest::prelude::*;

/// North enters; east, south and west serve; all alike.
fn mk_input(failback: Failback) -> FleetInput {
    let names = ["east", "north", "south", "west"];
    let mut members: std::collections::BTreeMap<_, _> =
        (1..).zip(names).map(|(n, name)| (id(name), mk_member(name, n))).collect();
    for (_, (_, member)) in members.iter_mut().filter(|(name, _)| **name != id("north")) {
        snapshot_of(member).services.insert(ns_name("shop/cart"), mk_service(5, 5));
    }
    let mut rule = mk_rule([mk_backend("shop/cart", 1)]);
    rule.spread.failback = failback;
    mk_fleet(members, vec![mk_route("HTTPRoute/shop/cart", vec![rule])])
}

fn mk_auto(after_s: u32, ramp_s: u32) -> Failback {
    Failback { mode: FailbackMode::Auto, after_s, ramp_s }
}

fn set_state(input: &mut FleetInput, name: &str, state: MemberState) {
    let health = &mut input.members.get_mut(&id(name)).unwrap().health;
    (health.state, health.since) = (state, input.now);
}

fn set_traffic(input: &mut FleetInput, name: &str, traffic: TrafficState) {
    let members = &mut Arc::make_mut(&mut input.policy).members;
    members.get_mut(&id(name)).unwrap().traffic = traffic;
}

/// Plans and remembers.
fn step(input: &mut FleetInput) -> Planned {
    let planned = plan(input);
    input.memory = planned.memory.clone();
    planned
}

fn share(planned: &Planned, entry: &str, target: &str) -> u32 {
    let rule = &planned.decisions[&route_key("HTTPRoute/shop/cart")].entries[&id(entry)].rules[0];
    let Serve::Members { tiers, .. } = &rule.recipe.backends[0].serve else { panic!("{rule:?}") };
    let target: MemberId = id(target);
    let candidate = tiers.iter().flat_map(|t| &t.candidates).find(|c| c.member == target).unwrap();
    rule.recipe.weights[usize::from(candidate.slot)]
}

/// Lets time pass by the planner's own word; (milliseconds since, west's share at north).
fn series(input: &mut FleetInput) -> Vec<(u64, u32)> {
    let start = input.now;
    let mut planned = step(input);
    let mut series = vec![(0, share(&planned, "north", "west"))];
    while let Some(at) = planned.wake_at {
        assert!(at > input.now, "it wakes in the past");
        input.now = at;
        planned = step(input);
        let next = share(&planned, "north", "west");
        if series.last().unwrap().1 != next {
            series.push((input.now.since(start), next));
        }
        assert!(series.len() < 20, "{series:?}");
    }
    series
}

fn lost_and_back(failback: Failback) -> FleetInput {
    let mut input = mk_input(failback);
    step(&mut input);
    set_state(&mut input, "west", MemberState::Down);
    assert_eq!(share(&step(&mut input), "north", "west"), 0);
    input.now = input.now.plus(60_000);
    set_state(&mut input, "west", MemberState::Up);
    input
}

#[test]
fn a_member_waits_and_gets_its_traffic_in_five_steps() {
    let mut input = lost_and_back(mk_auto(30, 60));
    let want =
        [(0, 0), (30_000, 909), (45_000, 1_666), (60_000, 2_308), (75_000, 2_857), (90_000, 3_333)];
    assert_eq!(series(&mut input), want);
    assert!(input.memory.absences.is_empty(), "all is given back and forgotten");
}

#[test]
fn without_a_ramp_it_gets_all_at_once() {
    assert_eq!(series(&mut lost_and_back(mk_auto(0, 0))), [(0, 3_333)]);
    assert_eq!(series(&mut lost_and_back(mk_auto(5, 0))), [(0, 0), (5_000, 3_333)]);
}

#[test]
fn its_own_entry_does_not_wait() {
    let mut input = lost_and_back(mk_auto(30, 60));
    assert_eq!(share(&step(&mut input), "west", "west"), 10_000);
}

#[test]
fn an_undrained_member_ramps_at_its_own_entry_too() {
    let mut input = mk_input(mk_auto(30, 60));
    step(&mut input);
    set_traffic(&mut input, "west", TrafficState::Draining);
    assert_eq!(share(&step(&mut input), "west", "west"), 0);
    set_traffic(&mut input, "west", TrafficState::Active);
    let first = share(&step(&mut input), "west", "west");
    assert!((1..5_000).contains(&first), "{first}");
    input.now = input.now.plus(60_000);
    assert_eq!(share(&step(&mut input), "west", "west"), 10_000);
}

fn set_drain(input: &mut FleetInput, name: &str, seconds: u32) {
    let members = &mut Arc::make_mut(&mut input.policy).members;
    members.get_mut(&id(name)).unwrap().drain_s = seconds;
    set_traffic(input, name, TrafficState::Draining);
}

#[test]
fn a_drained_member_is_led_away_in_five_steps() {
    let mut input = mk_input(mk_auto(30, 60));
    step(&mut input);
    set_drain(&mut input, "west", 8);
    let want = [(0, 2_857), (2_000, 2_308), (4_000, 1_666), (6_000, 909), (8_000, 0)];
    assert_eq!(series(&mut input), want);
    assert_eq!(share(&step(&mut input), "west", "west"), 0);
}

#[test]
fn a_drained_member_leads_away_at_its_own_entry_too() {
    let mut input = mk_input(mk_auto(30, 60));
    step(&mut input);
    set_drain(&mut input, "west", 8);
    let mut own = vec![share(&step(&mut input), "west", "west")];
    for _ in 0..4 {
        input.now = input.now.plus(2_000);
        own.push(share(&step(&mut input), "west", "west"));
    }
    // A tier is healthy enough with 70 percent.
    assert_eq!(own, [10_000, 8_572, 5_714, 2_857, 0]);
}

#[test]
fn a_drain_that_cannot_wait_is_done_at_once() {
    let drained = |input: &mut FleetInput| {
        set_drain(input, "west", 8);
        share(&step(input), "north", "west")
    };
    let mut unknown = mk_input(mk_auto(30, 60));
    assert_eq!(drained(&mut unknown), 0, "the plan before did not know it");
    let mut ill = mk_input(mk_auto(30, 60));
    step(&mut ill);
    set_state(&mut ill, "west", MemberState::Down);
    assert_eq!(drained(&mut ill), 0, "it is out of health");
    let mut returning = lost_and_back(mk_auto(0, 60));
    assert_eq!(share(&step(&mut returning), "north", "west"), 909);
    assert_eq!(drained(&mut returning), 0, "it was on its way back");
    let mut hurried = mk_input(mk_auto(30, 60));
    step(&mut hurried);
    assert_eq!(drained(&mut hurried), 2_857);
    set_drain(&mut hurried, "west", 0);
    assert_eq!(share(&step(&mut hurried), "north", "west"), 0, "somebody is in a hurry now");
}

#[test]
fn by_hand_nothing_happens_until_a_person_asks() {
    let mut input = lost_and_back(Failback { mode: FailbackMode::Manual, after_s: 0, ramp_s: 40 });
    assert_eq!(series(&mut input), [(0, 0)]);
    input.now = input.now.plus(3_600_000);
    assert_eq!(series(&mut input), [(0, 0)]);
    let west = &mut Arc::make_mut(&mut input.policy).members;
    // A clock that is far behind: a new value is a new request.
    west.get_mut(&id("west")).unwrap().failback_asked = Some(Millis(1));
    let shares: Vec<u32> = series(&mut input).into_iter().map(|(_, share)| share).collect();
    assert_eq!(shares, [909, 1_666, 2_308, 2_857, 3_333]);
    // The same request does not count for the next loss.
    set_state(&mut input, "west", MemberState::Down);
    step(&mut input);
    set_state(&mut input, "west", MemberState::Up);
    assert_eq!(series(&mut input), [(0, 0)]);
}

#[test]
fn a_frozen_hub_keeps_what_nobody_edits() {
    let mut input = mk_input(mk_auto(30, 60));
    step(&mut input);
    input.settings.freeze = Freeze::Unedited;
    for name in ["south", "west"] {
        set_state(&mut input, name, MemberState::Down);
    }
    let frozen = step(&mut input);
    assert_eq!(share(&frozen, "north", "west"), 3_333);
    let key = route_key("HTTPRoute/shop/cart");
    assert_eq!(frozen.report.routes[&key].kept, Some(Reason::FleetVanished));
    assert!(input.memory.absences.is_empty(), "nothing was taken away");
    // A person drains, edits and deletes all the same.
    let mut drained = input.clone();
    set_traffic(&mut drained, "west", TrafficState::Draining);
    assert_eq!(share(&step(&mut drained), "north", "west"), 0);
    let mut edited = input.clone();
    let routes = &mut Arc::make_mut(&mut edited.policy).routes;
    Arc::make_mut(routes.get_mut(&key).unwrap()).created_at = Millis(7);
    assert_eq!(share(&step(&mut edited), "north", "west"), 0);
    let mut deleted = input.clone();
    Arc::make_mut(&mut deleted.policy).routes.clear();
    assert!(step(&mut deleted).decisions.is_empty());
    let mut removed = input.clone();
    Arc::make_mut(&mut removed.policy).members.remove(&id("west"));
    assert_eq!(share(&step(&mut removed), "north", "east"), 10_000);
    // They come back, and the hub goes on as if nothing had been.
    input.settings.freeze = Freeze::Off;
    for name in ["south", "west"] {
        set_state(&mut input, name, MemberState::Up);
    }
    assert_eq!(series(&mut input), [(0, 3_333)]);
}

#[test]
fn a_clock_that_steps_back_does_not_hold_a_member_forever() {
    let mut input = lost_and_back(mk_auto(30, 60));
    step(&mut input);
    input.now = Millis(5);
    assert_eq!(series(&mut input).last().unwrap(), &(90_000, 3_333));
}

#[test]
fn a_clock_that_steps_back_does_not_hold_up_a_drain() {
    let mut input = mk_input(mk_auto(30, 60));
    step(&mut input);
    set_drain(&mut input, "west", 8);
    assert_eq!(share(&step(&mut input), "north", "west"), 2_857);
    input.now = Millis(5);
    let want = [(0, 2_857), (2_000, 2_308), (4_000, 1_666), (6_000, 909), (8_000, 0)];
    assert_eq!(series(&mut input), want);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_given_back_only_rises_in_few_steps_to_all(
        after_s in 0..100_u32, ramp_s in 0..100_u32, looks in prop::collection::vec(1..9_000_u64, 0..30),
    ) {
        let back = lost_and_back(mk_auto(after_s, ramp_s));
        let steps = series(&mut back.clone());
        prop_assert!(steps.windows(2).all(|pair| pair[0].1 < pair[1].1), "{steps:?}");
        let given: Vec<&(u64, u32)> = steps.iter().filter(|(_, share)| *share > 0).collect();
        prop_assert!(given.len() <= usize::try_from(STEPS).unwrap(), "{steps:?}");
        let (start, end) = (u64::from(after_s) * 1_000, u64::from(after_s + ramp_s) * 1_000);
        prop_assert_eq!(given[0].0, start);
        prop_assert_eq!(*given[given.len() - 1], (end, 3_333));
        // Whoever looks in between sees the same.
        let (mut input, began) = (back.clone(), back.now);
        for wait in looks {
            let at = input.now.since(began);
            let due = steps.iter().rev().find(|(since, _)| *since <= at).unwrap();
            prop_assert_eq!(share(&step(&mut input), "north", "west"), due.1);
            input.now = input.now.plus(wait);
        }
    }
}
