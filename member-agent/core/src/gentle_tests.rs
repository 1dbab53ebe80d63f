//! Two writes for a first and a last share, one for everything that cannot wait.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use serde_json::json;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn route(weights: &[u32]) -> Json {
    let refs = weights.iter().zip(NAMES);
    let refs: Vec<Json> =
        refs.map(|(weight, name)| json!({"name": name, "port": 80, "weight": weight})).collect();
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "cart-global"},
        "spec": {"rules": [{"backendRefs": refs}]}})
}

fn weights_of(content: &Json) -> Vec<u32> {
    refs_of(content, 0).unwrap().iter().map(weight_of).collect()
}

/// A gateway whose route is written as the steps say.
struct World {
    gentle: Gentle,
    live: Json,
    taken: bool,
    now: Millis,
}

impl World {
    fn new(live: &[u32]) -> Self {
        Self { gentle: Gentle::default(), live: route(live), taken: true, now: Millis(1_000) }
    }

    /// One pass at a later time; the weights that are there after it.
    fn pass(&mut self, after_ms: u64, wanted: &[u32], failover: bool) -> Vec<u32> {
        self.now = self.now.plus(after_ms);
        let wanted = route(wanted);
        let (id, live) = LiveObject::of(self.live.clone(), crate::live::Keep::Whole).unwrap();
        let change = Change { id: &id, wanted: &wanted, live: &live, taken: self.taken, failover };
        if self.gentle.is_at_rest(&id, &wanted, &live) {
            assert_eq!(self.gentle.step(self.now, &change), None, "at rest there is nothing to do");
        }
        self.live = self.gentle.step(self.now, &change).unwrap_or(wanted);
        weights_of(&self.live)
    }
}

#[test]
fn a_first_share_comes_after_a_trace_that_the_gateway_has_taken() {
    let mut world = World::new(&[10_000, 0]);
    world.taken = false;
    assert_eq!(world.pass(0, &[5_000, 5_000], false), [1_000_000, 1]);
    assert_eq!(world.pass(400, &[5_000, 5_000], false), [1_000_000, 1]);
    world.taken = true;
    assert_eq!(world.pass(10, &[5_000, 5_000], false), [1_000_000, 1]);
    assert_eq!(world.gentle.wake_at(world.now), Some(world.now.plus(SETTLE_MS)));
    assert_eq!(world.pass(SETTLE_MS - 1, &[5_000, 5_000], false), [1_000_000, 1]);
    assert_eq!(world.pass(1, &[5_000, 5_000], false), [5_000, 5_000]);
    // It does not begin again while that write is on its way, and is over after it.
    assert_eq!(world.gentle.wake_at(world.now), None);
    assert_eq!(world.gentle.under_way(), 1);
    assert_eq!(world.pass(1, &[5_000, 5_000], false), [5_000, 5_000]);
    assert_eq!(world.gentle.under_way(), 0);
}

#[test]
fn a_gateway_that_says_nothing_holds_nothing_up_for_long() {
    let mut world = World::new(&[10_000, 0]);
    world.taken = false;
    assert_eq!(world.pass(0, &[5_000, 5_000], false), [1_000_000, 1]);
    assert_eq!(world.pass(SILENCE_MS, &[5_000, 5_000], false), [5_000, 5_000]);
}

#[test]
fn a_last_share_goes_by_way_of_a_trace() {
    let mut world = World::new(&[5_000, 2_500, 2_500]);
    assert_eq!(world.pass(0, &[7_500, 2_500, 0], false), [1_000_000, 333_333, 1]);
    assert_eq!(world.pass(10, &[7_500, 2_500, 0], false), [1_000_000, 333_333, 1]);
    assert_eq!(world.pass(SETTLE_MS, &[7_500, 2_500, 0], false), [7_500, 2_500, 0]);
}

#[test]
fn others_move_on_while_one_comes_in() {
    let mut world = World::new(&[5_000, 5_000, 0]);
    world.pass(0, &[4_000, 4_000, 2_000], false);
    // The ramp of another step changes nothing for the trickle, and does not make it wait longer.
    assert_eq!(world.pass(100, &[2_000, 4_000, 4_000], false), [500_000, 1_000_000, 1]);
    assert_eq!(world.pass(SETTLE_MS, &[2_000, 4_000, 4_000], false), [2_000, 4_000, 4_000]);
}

#[test]
fn what_cannot_wait_does_not() {
    /// Name, what is there, what is wanted, whether peers are out, what is written.
    type Case<'a> = (&'a str, &'a [u32], &'a [u32], bool, &'a [u32]);
    let cases: [Case<'_>; 7] = [
        ("a failover takes at once", &[5_000, 5_000], &[10_000, 0], true, &[10_000, 0]),
        ("and gives at once", &[5_000, 5_000, 0], &[5_000, 0, 5_000], true, &[5_000, 0, 5_000]),
        ("nobody else serves", &[0, 0], &[5_000, 5_000], false, &[5_000, 5_000]),
        ("all traffic moves", &[10_000, 0], &[0, 10_000], false, &[0, 10_000]),
        ("a trickle is wanted", &[1_000_000, 0], &[1_000_000, 1], false, &[1_000_000, 1]),
        ("a backend is named no more", &[5_000, 5_000], &[10_000], false, &[10_000]),
        ("shares only change", &[5_000, 5_000], &[9_999, 1_000], false, &[9_999, 1_000]),
    ];
    for (name, live, wanted, failover, expected) in cases {
        assert_eq!(World::new(live).pass(0, wanted, failover), expected, "{name}");
    }
    // While one peer is out, another may come in gently.
    let mut world = World::new(&[10_000, 0, 0]);
    assert_eq!(world.pass(0, &[5_000, 0, 5_000], true), [1_000_000, 0, 1]);
}

#[test]
fn a_failover_in_between_ends_it() {
    let mut world = World::new(&[5_000, 5_000, 0]);
    assert_eq!(world.pass(0, &[3_000, 3_000, 4_000], false), [1_000_000, 1_000_000, 1]);
    assert_eq!(world.pass(10, &[5_000, 0, 5_000], true), [5_000, 0, 5_000]);
}

#[test]
fn content_that_is_no_route_is_left_alone() {
    let mut gentle = Gentle::default();
    for wanted in [json!(null), json!({"spec": {"rules": 7}}), json!({"spec": {"rules": [{}, 1]}})]
    {
        let (id, live) = LiveObject::of(route(&[1]), crate::live::Keep::Whole).unwrap();
        let change = Change { id: &id, wanted: &wanted, live: &live, taken: true, failover: false };
        assert_eq!(gentle.step(Millis(1), &change), None);
    }
}

proptest! {
    /// Whatever is wanted in whatever order: it is there in the end, no write empties a rule, and
    /// without a failover no write gives a real share to a backend that had none, or takes all of one,
    /// while another backend stays.
    #[test]
    fn it_ends_as_wanted_and_never_jumps(
        wishes in prop::collection::vec(
            (prop::collection::vec(0u32..10_000, 3..4), 0u64..2_000, any::<bool>(), any::<bool>()), 1..12)
    ) {
        let mut world = World::new(&[5_000, 5_000, 0]);
        let mut last = vec![5_000, 5_000, 0];
        for (mut wanted, after, taken, failover) in wishes {
            if wanted.iter().all(|weight| *weight == 0) {
                wanted[0] = 1;
            }
            world.taken = taken;
            let (before, waited) = (weights_of(&world.live), world.gentle.under_way() > 0);
            let after_pass = world.pass(after, &wanted, failover);
            prop_assert!(after_pass.iter().any(|weight| *weight > 0));
            let stays = (0..3).any(|at| is_share(&before, at) && is_share(&wanted, at));
            if !failover && stays && !waited {
                for at in 0..3 {
                    let jumps = (before[at] == 0 && is_share(&after_pass, at))
                        || (is_share(&before, at) && after_pass[at] == 0);
                    prop_assert!(!jumps, "{before:?} {after_pass:?} for {wanted:?}");
                }
            }
            last = wanted;
        }
        for _ in 0..4 {
            world.pass(SILENCE_MS, &last, false);
        }
        prop_assert_eq!(weights_of(&world.live), last);
        prop_assert_eq!(world.gentle.under_way(), 0);
    }
}

fn is_share(weights: &[u32], at: usize) -> bool {
    let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    u64::from(weights[at]) * TRICKLE_PART >= all.max(1)
}
