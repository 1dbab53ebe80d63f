//! The history as a whole: real plans in, revisions, differences and earlier rules out.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use fairlead_model::MemberId;
use fairlead_model::health::MemberState;
use fairlead_model::history::{Cause, Move};
use fairlead_model::policy::{MemberSpec, Tier, TierMembers, TrafficState};
use fairlead_model::recipe::Split;
use fairlead_planner::{FleetInput, MemberInput, plan};

use super::*;
use crate::history_fixture::{
    id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service, ns_name, route_key,
    snapshot_of,
};

const CART: &str = "HTTPRoute/shop/cart";

/// Three members that lend a Gateway and serve `shop/cart`, and a history of what is planned for them.
struct Bench {
    input: FleetInput,
    history: History,
    recorder: Recorder,
    before: Option<(FleetInput, i64)>,
    generation: i64,
    pinned: Option<u64>,
    wobbles: u32,
}

fn weights(weights: [u32; 2]) -> GlobalRoute {
    let mut rule = mk_rule([mk_backend("shop/cart", 1)]);
    let members = TierMembers::Names(["east", "west"].map(id).into());
    rule.spread.tiers = vec![Tier {
        members,
        split: Split::Weights,
        weights: ["east", "west"].map(id).into_iter().zip(weights).collect(),
    }];
    rule.spread.from = Some(ns_name("shop/spread"));
    mk_route(CART, vec![rule])
}

fn mk_bench(limits: Limits) -> Bench {
    let member = |(number, name)| {
        let (spec, mut input) = mk_member(name, number);
        snapshot_of(&mut input).services.insert(ns_name("shop/cart"), mk_service(2, 2));
        (id(name), (spec, input))
    };
    let members: BTreeMap<MemberId, (MemberSpec, MemberInput)> =
        (1..).zip(["east", "south", "west"]).map(member).collect();
    let input = mk_fleet(members, vec![weights([50, 50])]);
    let history = History::new(limits);
    let recorder = Recorder::default();
    Bench { input, history, recorder, before: None, generation: 1, pinned: None, wobbles: 0 }
}

impl Bench {
    fn facts<'a>(input: &'a FleetInput, generation: i64, pinned: Option<u64>) -> Facts<'a> {
        let keys = || input.policy.routes.keys();
        Facts {
            policy: &input.policy,
            route_generations: keys().map(|key| (key, generation)).collect(),
            policy_generations: BTreeMap::new(),
            pinned: keys().filter_map(|key| Some((key, pinned?))).collect(),
            rollouts: BTreeMap::new(),
            states: input.members.iter().map(|(id, m)| (id, m.health.state)).collect(),
        }
    }

    /// Plans, and records what changed.
    fn round(&mut self) -> Option<u64> {
        let planned = plan(&self.input);
        self.input.memory = planned.memory;
        let before = self.before.take();
        let before = before.as_ref().map(|(input, at)| Self::facts(input, *at, self.pinned));
        let after = Self::facts(&self.input, self.generation, self.pinned);
        let drafts = self.recorder.round(&planned.decisions, before.as_ref(), &after);
        let number = self.history.add(self.input.now, drafts);
        self.before = Some((self.input.clone(), self.generation));
        number
    }

    fn declare(&mut self, route: GlobalRoute) {
        let mut policy = (*self.input.policy).clone();
        policy.routes.insert(route.key.clone(), Arc::new(route));
        self.input.policy = Arc::new(policy);
    }

    fn newest(&self) -> Entry {
        self.history.list(|_| true, 1).remove(0)
    }

    /// Weighs anew, so often.
    fn wobble(&mut self, times: u32) {
        for _ in 0..times {
            self.wobbles += 1;
            self.declare(weights([self.wobbles % 2 + 1, 3]));
            assert!(self.round().is_some());
        }
    }
}

fn moves(moves: &[Move]) -> Vec<String> {
    let line = |m: &Move| {
        let to = m.to.member.as_ref().map_or("itself", MemberId::as_str);
        format!("{}: {} {to} {} → {}", m.entries, m.to.backend, m.before, m.after)
    };
    moves.iter().map(line).collect()
}

#[test]
fn a_change_of_weights_is_one_entry_that_says_what_moved_and_why() {
    let mut bench = mk_bench(Limits::default());
    assert_eq!(bench.round(), Some(1));
    assert_eq!(bench.newest().change, Change::Appeared);
    assert_eq!(bench.round(), None, "nothing changed");
    bench.declare(weights([80, 20]));
    assert_eq!(bench.round(), Some(2));
    let entry = bench.newest();
    assert_eq!(
        moves(&entry.moved),
        [
            "west: shop/cart:80 itself 5000 → 2000",
            "east: shop/cart:80 itself 5000 → 8000",
            "south, west: shop/cart:80 east 5000 → 8000",
            "east, south: shop/cart:80 west 5000 → 2000",
        ]
    );
    assert_eq!(
        entry.causes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["TrafficPolicy shop/spread: edited"]
    );
    assert_eq!(entry.rules, ["rules[0]: TrafficPolicy shop/spread differs"]);
}

#[test]
fn a_member_that_dies_is_the_cause() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.input.members.get_mut(&id("west")).unwrap().health.state = MemberState::Down;
    assert_eq!(bench.round(), Some(2));
    let entry = bench.newest();
    assert!(
        entry.causes.contains(&Cause::Member { member: id("west"), what: "Up → Down".into() }),
        "{:?}",
        entry.causes
    );
    assert!(entry.concerns(&id("west")) && entry.rules.is_empty());
    assert_eq!(bench.history.list(|entry| entry.concerns(&id("nobody")), 9), []);
}

#[test]
fn a_drain_is_an_edit_of_its_member_cluster() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    let mut policy = (*bench.input.policy).clone();
    policy.members.get_mut(&id("west")).unwrap().traffic = TrafficState::Draining;
    bench.input.policy = Arc::new(policy);
    bench.round();
    let causes = bench.newest().causes;
    let told = causes[0].to_string();
    assert_eq!(told, "MemberCluster west: trafficState Active → Draining");
}

#[test]
fn rules_are_those_of_the_revision_and_kept_once() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.declare(weights([80, 20]));
    bench.generation = 2;
    bench.round();
    bench.input.members.get_mut(&id("west")).unwrap().health.state = MemberState::Down;
    bench.round();
    let key = route_key(CART);
    assert_eq!(*bench.history.rules_of(&key, 1).unwrap(), weights([50, 50]));
    let second = bench.history.rules_of(&key, 2).unwrap();
    assert!(Arc::ptr_eq(&second, &bench.history.rules_of(&key, 3).unwrap()));
    let rules = bench.history.records().into_iter().filter(|r| matches!(r, RecordKey::Rules(..)));
    assert_eq!(rules.count(), 2);
}

#[test]
fn what_cannot_be_led_back_to_says_why() {
    let mut bench = mk_bench(Limits { entries_of_route: 2, ..Limits::default() });
    bench.round();
    bench.wobble(3);
    let cart = route_key(CART);
    assert_eq!(bench.history.rules_of(&cart, 9), Err(Missing::Future(9, 4)));
    assert_eq!(bench.history.rules_of(&cart, 1), Err(Missing::FellOut(1, 3)));
    bench.declare(mk_route("HTTPRoute/shop/other", vec![mk_rule([mk_backend("shop/cart", 1)])]));
    assert_eq!(bench.round(), Some(5));
    let nearest = "; in force then was its revision 4".to_owned();
    assert_eq!(bench.history.rules_of(&cart, 5), Err(Missing::OfOthers { number: 5, nearest }));
    let mut policy = (*bench.input.policy).clone();
    policy.routes.remove(&cart);
    bench.input.policy = Arc::new(policy);
    assert_eq!(bench.round(), Some(6));
    assert!(matches!(bench.history.rules_of(&cart, 6), Err(Missing::NoRules(6, _))));
}

#[test]
fn old_changes_fall_out_but_not_what_a_route_is_pinned_to() {
    let mut bench = mk_bench(Limits { entries: 5, ..Limits::default() });
    bench.round();
    bench.wobble(1);
    bench.history.keep_pinned([(route_key(CART), 2)]);
    bench.wobble(1);
    bench.wobble(20);
    let size = bench.history.size();
    assert_eq!((size.entries, size.oldest), (5, 2));
    assert!(bench.history.rules_of(&route_key(CART), 2).is_ok());
    bench.history.keep_pinned([]);
    bench.wobble(1);
    assert!(bench.history.size().oldest > 2);
}

#[test]
fn bytes_are_bounded_too_and_add_up() {
    let mut bench = mk_bench(Limits { bytes: 20_000, ..Limits::default() });
    bench.round();
    bench.wobble(40);
    let size = bench.history.size();
    let stored = |record: &RecordKey| bench.history.encode(record).unwrap().len();
    let sum: usize = bench.history.records().iter().map(stored).sum();
    assert_eq!(size.bytes, sum);
    assert!(size.bytes <= 20_000 && size.entries > 3, "{size:?}");
}

#[test]
fn a_difference_is_what_moved_between_two_revisions_and_nothing_else() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.declare(weights([80, 20]));
    bench.round();
    bench.declare(weights([50, 50]));
    bench.round();
    let same = bench.history.diff(1, 3, |_| true).unwrap();
    assert_eq!((same.routes.len(), same.unknown.len()), (0, 0));
    let diff = bench.history.diff(2, 3, |_| true).unwrap();
    assert_eq!(moves(&diff.routes[0].moved).len(), 4);
    assert!(
        moves(&diff.routes[0].moved).contains(&"south, west: shop/cart:80 east 8000 → 5000".into())
    );
    assert_eq!(bench.history.diff(1, 7, |_| true), Err(Missing::Future(7, 3)));
    assert_eq!(bench.history.diff(0, 3, |_| true), Err(Missing::FellOut(0, 1)));
}

#[test]
fn what_is_stored_reads_back_and_goes_on() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.wobble(3);
    let (mut entries, mut rules) = (Vec::new(), Vec::new());
    for record in bench.history.records() {
        let bytes = bench.history.encode(&record).unwrap();
        assert_eq!(RecordKey::parse(&record.to_string()), Some(record.clone()));
        match record {
            RecordKey::Entry(..) => entries.push(serde_json::from_slice(&bytes).unwrap()),
            RecordKey::Rules(at, _) => rules.push((at, serde_json::from_slice(&bytes).unwrap())),
        }
    }
    let again = History::restore(Limits::default(), 4, entries, rules);
    assert_eq!(again.records(), bench.history.records());
    assert_eq!(again.size(), bench.history.size());
    bench.recorder = Recorder::after(&again);
    bench.history = again;
    bench.before = None;
    assert_eq!(bench.round(), None, "a restart is no change");
    bench.wobble(1);
    assert_eq!(bench.history.size().newest, 5);
}

#[test]
fn a_pin_and_its_release_are_changes_of_their_own() {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.pinned = Some(1);
    assert_eq!(bench.round(), Some(2));
    assert_eq!(
        bench.newest().causes[0].to_string(),
        "HTTPRoute shop/cart generation 1: pinned to revision 1"
    );
    bench.pinned = None;
    bench.round();
    let told = bench.newest().causes[0].to_string();
    assert_eq!(told, "HTTPRoute shop/cart generation 1: released from revision 1");
}

fn restored(history: &History) -> History {
    let (mut entries, mut rules) = (Vec::new(), Vec::new());
    for record in history.records() {
        let bytes = history.encode(&record).unwrap();
        match record {
            RecordKey::Entry(..) => entries.push(serde_json::from_slice(&bytes).unwrap()),
            RecordKey::Rules(at, _) => rules.push((at, serde_json::from_slice(&bytes).unwrap())),
        }
    }
    History::restore(history.limits, history.newest, entries, rules)
}

#[test]
fn what_a_route_is_pinned_to_survives_a_restart_beyond_the_bounds() {
    let limits = Limits { entries_of_route: 3, ..Limits::default() };
    let mut bench = mk_bench(limits);
    bench.round();
    bench.history.keep_pinned([(route_key(CART), 1)]);
    bench.wobble(5);
    let mut again = restored(&bench.history);
    assert!(again.rules_of(&route_key(CART), 1).is_ok());
    assert!(again.keep_pinned([(route_key(CART), 1)]));
    assert!(!again.keep_pinned([(route_key(CART), 1)]), "the same again is no change");
    bench.recorder = Recorder::after(&again);
    bench.history = again;
    bench.wobble(1);
    assert!(bench.history.rules_of(&route_key(CART), 1).is_ok());
    assert_eq!(bench.history.size().entries, 4);
}

/// A history of six changes whose route is pinned to the second.
fn mk_pinned() -> History {
    let mut bench = mk_bench(Limits::default());
    bench.round();
    bench.wobble(5);
    bench.history.keep_pinned([(route_key(CART), 2)]);
    bench.history
}

fn numbers(history: &History) -> Vec<u64> {
    history.list(|_| true, usize::MAX).iter().map(|entry| entry.number).collect()
}

#[test]
fn an_extract_has_pins_first_and_then_the_newest() {
    let history = mk_pinned();
    let whole = history.extract(usize::MAX);
    assert_eq!((whole.pins.len(), whole.left_out), (1, 0));
    let mut again = History::new(Limits::default());
    assert_eq!(again.take_in(Portion::read(&whole.text())), 6);
    assert_eq!((again.records(), again.size()), (history.records(), history.size()));
    assert_eq!(again.take_in(Portion::read(&whole.text())), 0);
    // Less and less room: first the oldest go, then nothing but the newest number is left.
    let mut sizes = BTreeSet::new();
    for room in (0..whole.text().len()).step_by(100) {
        let extract = history.extract(room);
        assert!(extract.text().len() <= room + FRAME, "{room}");
        assert_eq!(extract.pins.len() + extract.left_out, 1);
        let mut again = History::new(Limits::default());
        again.take_in(Portion::read(&extract.text()));
        assert_eq!(again.size().newest, 6);
        let mut found = numbers(&again);
        let pinned = found.iter().position(|number| *number == 2);
        match pinned {
            Some(at) => drop(found.remove(at)),
            None => assert!(!extract.pins.contains(&(route_key(CART), 2))),
        }
        let newest: Vec<u64> = [6, 5, 4, 3, 1].into_iter().take(found.len()).collect();
        assert_eq!(found, newest, "{room}");
        sizes.insert(found.len());
    }
    assert_eq!(sizes.last(), Some(&4));
}

/// The line that is always there.
const FRAME: usize = 64;

#[test]
fn an_extract_that_was_damaged_costs_what_was_damaged() {
    let text = String::from_utf8(mk_pinned().extract(usize::MAX).text()).unwrap();
    let mut odd = text.replacen("{\"entry\"", "{\"entyr\"", 1);
    odd.push_str("\n\n{}\n[]\nnull\n{\"newest\":18446744073709551615}\n{\"newest\":-1}\n\u{0}\n");
    odd.push_str(&format!("{{\"entry\":\"{}\"}}\n", "x".repeat(RECORD_BYTES_MAX + 100)));
    let portion = Portion::read(odd.as_bytes());
    assert_eq!(portion.dropped, 8);
    let mut history = History::new(Limits::default());
    assert_eq!(history.take_in(portion), 5);
    assert_eq!(history.size().newest, 6);
    // Cut anywhere, what comes before the cut is there.
    let mut most = 0;
    for end in (0..=text.len()).step_by(97).chain([text.len()]) {
        let portion = Portion::read(&text.as_bytes()[..end]);
        assert!(portion.dropped <= 1, "{end}");
        let taken = History::new(Limits::default()).take_in(portion);
        assert!(taken >= most, "{end}");
        most = taken;
    }
    assert_eq!(most, 6);
}

#[test]
fn what_another_life_of_the_hub_numbered_otherwise_is_left_out() {
    let mut bench = mk_bench(Limits::default());
    bench.input.now = Millis(1_000_000);
    bench.round();
    bench.wobble(5);
    let portion = || Portion::read(&bench.history.extract(usize::MAX).text());
    let mk_later = |above: u64| {
        let mut later = mk_bench(Limits::default());
        later.input.now = Millis(2_000_000);
        later.history.rise_above(above);
        later.round();
        later.history
    };
    // It began anew, at 1: all that was numbered above is older, and left out.
    let mut anew = mk_later(0);
    assert_eq!(anew.take_in(portion()), 0);
    assert_eq!((numbers(&anew), anew.size().newest), (vec![1], 6));
    // It knew that 3 was asked for: what is below comes before, the rest is left out.
    let mut knew = mk_later(3);
    assert_eq!(knew.take_in(portion()), 3);
    assert_eq!(numbers(&knew), [4, 3, 2, 1]);
    assert!(knew.rules_of(&route_key(CART), 3).is_ok());
    // An older copy of the store goes on where it was.
    let mut older = restored(&bench.history);
    older.drop_entry(&(6, route_key(CART)));
    assert_eq!(older.take_in(portion()), 1);
    assert_eq!(older.records(), bench.history.records());
}

#[test]
fn nobody_uses_up_the_numbers_by_asking_for_them() {
    let mut bench = mk_bench(Limits::default());
    bench.history.rise_above(u64::MAX);
    assert_eq!(bench.round(), Some(1));
    bench.history.rise_above(ASKED_MAX);
    bench.wobble(2);
    assert_eq!(bench.history.size().newest, ASKED_MAX + 2);
    assert!(bench.history.rules_of(&route_key(CART), ASKED_MAX + 1).is_ok());
}
