//! Examples that a reader can check by hand. Members are `east`, `west`, `south`, …; `3/10` means
//! 3 ready of 10 expected endpoints. The threshold is 70 % where nothing else is said.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_model::recipe::{
    Candidate, Faults, RECIPE_VERSION, Recipe, RecipeBackend, RecipeTier, Serve, Split, Standing,
    WhenUnavailable,
};
use fairlead_model::snapshot::EndpointCounts;
use fairlead_model::{MemberId, NsName};
use fairlead_weights::divide;

fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn service() -> NsName {
    NsName::new("shop", "cart")
}

fn mk_candidate(slot: u16, member: &str, ready: u32, expected: u32) -> Candidate {
    let standing = Standing::Able;
    Candidate { member: id(member), slot, ready, expected, weight: 0, ramp_percent: 100, standing }
}

fn mk_tier(candidates: impl Into<Vec<Candidate>>) -> RecipeTier {
    let candidates = candidates.into();
    RecipeTier { split: Split::Endpoints, healthy_percent: 70, endpoints_min: 1, candidates }
}

fn mk_members(weight: u32, tiers: impl Into<Vec<RecipeTier>>) -> RecipeBackend {
    let when_unavailable = WhenUnavailable::Redistribute;
    let (service, tiers) = (service(), tiers.into());
    RecipeBackend { weight, serve: Serve::Members { service, port: 80, tiers, when_unavailable } }
}

fn mk_fixed(weight: u32, slot: u16) -> RecipeBackend {
    RecipeBackend { weight, serve: Serve::Fixed { slot } }
}

fn mk_recipe(backends: impl Into<Vec<RecipeBackend>>) -> Recipe {
    Recipe { version: RECIPE_VERSION, backends: backends.into(), weights: Vec::new() }
}

fn weights(backends: impl Into<Vec<RecipeBackend>>) -> Vec<u32> {
    divide(&mk_recipe(backends), &Faults::default())
}

fn unreachable(members: &[&str]) -> Faults {
    Faults { unreachable: members.iter().map(|m| id(m)).collect(), ..Faults::default() }
}

/// One tier for each member, in order.
fn chain(members: &[(u32, u32)]) -> Vec<RecipeTier> {
    let names = ["east", "west", "south", "north"];
    let tier = |(at, (ready, expected)): (usize, &(u32, u32))| {
        let slot = u16::try_from(at).unwrap();
        mk_tier([mk_candidate(slot, names[at], *ready, *expected)])
    };
    members.iter().enumerate().map(tier).collect()
}

/// Tiers of one member each: (ready, expected) → shares.
#[test]
fn one_member_tiers() {
    type Row = (&'static [(u32, u32)], &'static [u32]);
    let table: &[Row] = &[
        // 70 % and more is all.
        (&[(10, 10), (10, 10)], &[10_000, 0]),
        (&[(7, 10), (10, 10)], &[10_000, 0]),
        // 6 of 10 is 60 % of 70 %: 6/7 stay.
        (&[(6, 10), (10, 10)], &[8_571, 1_429]),
        // 35 % ready with a threshold of 70 %: half spills.
        (&[(35, 100), (10, 10)], &[5_000, 5_000]),
        // … and half of the half spills again: 1/2, then 1/2 of all is asked of west, which can take it.
        (&[(35, 100), (35, 100), (10, 10)], &[5_000, 5_000, 0]),
        // 10/70 = 1/7, then 2/7, the rest 4/7.
        (&[(1, 10), (2, 10), (9, 10)], &[1_429, 2_857, 5_714]),
        // Together less than everything (1/7 + 2/7 = 3/7): scaled up to 1/3 and 2/3.
        (&[(1, 10), (2, 10)], &[3_333, 6_667]),
        // None left: all goes on.
        (&[(0, 10), (1, 10)], &[0, 10_000]),
        // Nothing expected: the tier is not there.
        (&[(0, 0), (3, 3)], &[0, 10_000]),
        // Nobody: as if healthy, so that it fails where it belongs.
        (&[(0, 10), (0, 10)], &[10_000, 0]),
        (&[(0, 0), (0, 10)], &[0, 10_000]),
        (&[(0, 0), (0, 0)], &[10_000, 0]),
    ];
    for (members, expected) in table {
        assert_eq!(weights([mk_members(1, chain(members))]), *expected, "{members:?}");
    }
}

#[test]
fn a_tier_is_split_by_ready_endpoints() {
    // 20 of 30 ready: 66.7 % of 70 % = 20/21 stay, as 10 : 10 : 0; 1/21 spills.
    let tiers = [
        mk_tier([
            mk_candidate(0, "east", 10, 10),
            mk_candidate(1, "south", 10, 10),
            mk_candidate(2, "west", 0, 10),
        ]),
        mk_tier([mk_candidate(3, "north", 5, 5)]),
    ];
    assert_eq!(weights([mk_members(1, tiers)]), [4_762, 4_762, 0, 476]);
}

#[test]
fn equal_split_counts_members_not_endpoints() {
    // h = 1, 1/2, 1: 2.5 parts of 3, above 70 %: split 2 : 1 : 2.
    let equal =
        |candidates: Vec<Candidate>| RecipeTier { split: Split::Equal, ..mk_tier(candidates) };
    let three = vec![
        mk_candidate(0, "east", 2, 2),
        mk_candidate(1, "south", 50, 100),
        mk_candidate(2, "west", 9, 9),
    ];
    assert_eq!(weights([mk_members(1, [equal(three)])]), [4_000, 2_000, 4_000]);
}

#[test]
fn given_weights_with_one_member_at_a_tenth() {
    // w·h = 70 · 1/10 + 30 · 1 = 37 of 100; θ 70 %: 37/70 stay, split 7 : 30; 33/70 spill.
    let given = |slot, member: &str, weight, ready| Candidate {
        weight,
        ..mk_candidate(slot, member, ready, 10)
    };
    let tiers = [
        RecipeTier {
            split: Split::Weights,
            ..mk_tier([given(0, "east", 70, 1), given(1, "west", 30, 10)])
        },
        mk_tier([mk_candidate(2, "south", 4, 4)]),
    ];
    assert_eq!(weights([mk_members(1, tiers)]), [1_000, 4_286, 4_714]);
}

#[test]
fn a_given_weight_of_zero_gets_nothing_even_alone() {
    let tier = RecipeTier { split: Split::Weights, ..mk_tier([mk_candidate(0, "east", 5, 5)]) };
    assert_eq!(weights([mk_members(1, [tier.clone()])]), [0]);
    assert_eq!(weights([mk_members(1, [tier]), mk_fixed(1, 1)]), [0, 10_000]);
}

#[test]
fn below_min_endpoints_takes_nothing_while_another_can() {
    let min = |members: &[(u32, u32)]| {
        let tiers = chain(members).into_iter();
        tiers.map(|tier| RecipeTier { endpoints_min: 3, ..tier }).collect::<Vec<_>>()
    };
    assert_eq!(weights([mk_members(1, min(&[(2, 2), (3, 3)]))]), [0, 10_000]);
    assert_eq!(weights([mk_members(1, min(&[(3, 3), (3, 3)]))]), [10_000, 0]);
    // Nobody has three: little is better than nothing.
    assert_eq!(weights([mk_members(1, min(&[(2, 2), (0, 3)]))]), [10_000, 0]);
}

#[test]
fn a_ramp_scales_what_a_member_can_take() {
    // 20 % of the ramp, threshold 70 %: 2/7 in east, the rest stays in west.
    let mut tiers = chain(&[(10, 10), (10, 10)]);
    tiers[0].candidates[0].ramp_percent = 20;
    let recipe = mk_recipe([mk_members(1, tiers)]);
    assert_eq!(divide(&recipe, &Faults::default()), [2_857, 7_143]);
    let ramps = |percent| Faults { ramps: [(id("east"), percent)].into(), ..Faults::default() };
    assert_eq!(divide(&recipe, &ramps(60)), [8_571, 1_429]);
    assert_eq!(divide(&recipe, &ramps(0)), [0, 10_000]);
    assert_eq!(divide(&recipe, &ramps(100)), [10_000, 0]);
}

#[test]
fn a_member_that_is_out_still_counts_for_its_tiers_capacity() {
    // As in the split above: 1/3 of the tier is gone, 20/21 stay.
    let mut tiers = vec![
        mk_tier([
            mk_candidate(0, "east", 10, 10),
            mk_candidate(1, "south", 10, 10),
            mk_candidate(2, "west", 10, 10),
        ]),
        mk_tier([mk_candidate(3, "north", 5, 5)]),
    ];
    tiers[0].candidates[2].standing = Standing::Out;
    assert_eq!(weights([mk_members(1, tiers)]), [4_762, 4_762, 0, 476]);
}

#[test]
fn the_users_weights_hold_while_members_die() {
    let two = |first: u16, east| {
        [mk_tier([mk_candidate(first, "east", east, 4), mk_candidate(first + 1, "west", 4, 4)])]
    };
    let rule = |east| weights([mk_members(80, two(0, east)), mk_members(20, two(2, east))]);
    assert_eq!(rule(4), [4_000, 4_000, 1_000, 1_000]);
    assert_eq!(rule(0), [0, 8_000, 0, 2_000]);
}

#[test]
fn what_nobody_serves_goes_to_those_that_are_served() {
    let dead = |slot| [mk_tier([mk_candidate(slot, "east", 0, 4)])];
    let live = |slot| [mk_tier([mk_candidate(slot, "west", 4, 4)])];
    // In proportion: 50 is freed and goes 30 : 20.
    let rule = [mk_members(50, dead(0)), mk_members(30, live(1)), mk_members(20, live(2))];
    assert_eq!(weights(rule), [0, 6_000, 4_000]);
    // A fixed backend keeps its share, no more, while others can take what is freed …
    let rule = [mk_members(50, dead(0)), mk_members(30, live(1)), mk_fixed(20, 2)];
    assert_eq!(weights(rule), [0, 8_000, 2_000]);
    // … and takes it when nobody else can.
    assert_eq!(weights([mk_members(80, dead(0)), mk_fixed(20, 1)]), [0, 10_000]);
    // Nothing at all is served: everything fails where it belongs.
    assert_eq!(weights([mk_members(80, dead(0)), mk_members(20, dead(1))]), [8_000, 2_000]);
    // A backend of weight 0 never takes over.
    assert_eq!(weights([mk_members(80, dead(0)), mk_members(0, live(1))]), [10_000, 0]);
    assert_eq!(weights([mk_members(0, dead(0)), mk_members(0, live(1))]), [0, 0]);
}

#[test]
fn a_backend_that_is_to_fail_keeps_its_share() {
    let fail = |mut backend: RecipeBackend| {
        if let Serve::Members { when_unavailable, .. } = &mut backend.serve {
            *when_unavailable = WhenUnavailable::Fail;
        }
        backend
    };
    let dead = [mk_tier([mk_candidate(0, "east", 0, 4), mk_candidate(1, "west", 0, 12)])];
    let live = [mk_tier([mk_candidate(2, "west", 4, 4)])];
    let rule = [fail(mk_members(80, dead)), mk_members(20, live)];
    assert_eq!(weights(rule), [2_000, 6_000, 2_000]);
}

#[test]
fn a_drained_member_is_never_the_one_to_fail() {
    // Out and nothing expected of it: how a planner writes a drained member.
    let drained =
        |slot, member| Candidate { standing: Standing::Out, ..mk_candidate(slot, member, 0, 0) };
    let tiers = [mk_tier([drained(0, "east"), mk_candidate(1, "west", 0, 0)])];
    assert_eq!(weights([mk_members(1, tiers)]), [0, 10_000]);
    assert_eq!(weights([mk_members(1, [mk_tier([drained(0, "east")])])]), [0]);
}

#[test]
fn an_unreachable_member_is_taken_out_at_once() {
    let recipe = mk_recipe([mk_members(80, chain(&[(9, 9), (9, 9)])), mk_fixed(20, 2)]);
    assert_eq!(divide(&recipe, &unreachable(&[])), [8_000, 0, 2_000]);
    assert_eq!(divide(&recipe, &unreachable(&["east"])), [0, 8_000, 2_000]);
    assert_eq!(divide(&recipe, &unreachable(&["east", "west"])), [0, 0, 10_000]);
}

#[test]
fn when_faults_leave_nobody_the_plan_stands_as_given() {
    let mut recipe = mk_recipe([mk_members(1, chain(&[(35, 100), (9, 9)]))]);
    recipe.weights = divide(&recipe, &Faults::default());
    assert_eq!(recipe.weights, [5_000, 5_000]);
    assert_eq!(divide(&recipe, &unreachable(&["east", "west"])), [5_000, 5_000]);
}

#[test]
fn newer_counts_replace_ready_and_keep_expected() {
    let recipe = mk_recipe([mk_members(1, chain(&[(10, 10), (10, 10)]))]);
    let counts = |ready, total| {
        let of_service = [(service(), EndpointCounts { ready, total })].into();
        Faults { counts: [(id("east"), of_service)].into(), ..Faults::default() }
    };
    assert_eq!(divide(&recipe, &counts(0, 0)), [0, 10_000]);
    assert_eq!(divide(&recipe, &counts(6, 6)), [8_571, 1_429]);
    assert_eq!(divide(&recipe, &counts(20, 20)), [10_000, 0]);
}

#[test]
fn a_recipe_of_another_version_is_only_zeroed() {
    let mut recipe = mk_recipe([mk_members(1, chain(&[(9, 9), (9, 9), (9, 9)]))]);
    recipe.version = RECIPE_VERSION + 1;
    recipe.weights = vec![5_000, 3_000, 2_000];
    assert_eq!(divide(&recipe, &Faults::default()), [5_000, 3_000, 2_000]);
    assert_eq!(divide(&recipe, &unreachable(&["east"])), [0, 6_000, 4_000]);
    assert_eq!(divide(&recipe, &unreachable(&["east", "west", "south"])), [5_000, 3_000, 2_000]);
    // Its own sum is kept: a later version may use another.
    recipe.weights = vec![50, 30, 20];
    assert_eq!(divide(&recipe, &unreachable(&["south"])), [63, 37, 0]);
}

#[test]
fn a_wait_holds_back_only_while_another_serves() {
    let mut waits = mk_candidate(1, "west", 10, 10);
    waits.ramp_percent = 0;
    let tiers = |ready| [mk_tier([mk_candidate(0, "east", ready, 10), waits.clone()])];
    assert_eq!(weights([mk_members(1, tiers(10))]), [10_000, 0]);
    assert_eq!(weights([mk_members(1, tiers(1))]), [10_000, 0]);
    assert_eq!(weights([mk_members(1, tiers(0))]), [0, 10_000]);
    // An agent that loses the others does the same.
    let mut recipe = mk_recipe([mk_members(1, tiers(10))]);
    recipe.weights = divide(&recipe, &Faults::default());
    assert_eq!(divide(&recipe, &unreachable(&["east"])), [0, 10_000]);
}

#[test]
fn an_agent_calls_back_whom_it_reaches_when_all_others_are_gone() {
    let mut down = mk_candidate(1, "west", 10, 10);
    down.standing = Standing::Out;
    let mut drained = mk_candidate(2, "south", 0, 0);
    drained.standing = Standing::Out;
    let tier = mk_tier([mk_candidate(0, "east", 10, 10), down, drained]);
    let mut recipe = mk_recipe([mk_members(1, [tier])]);
    recipe.weights = divide(&recipe, &Faults::default());
    assert_eq!(recipe.weights, [10_000, 0, 0]);
    assert_eq!(divide(&recipe, &unreachable(&["east"])), [0, 10_000, 0]);
    // Nobody at all: the plan as given.
    assert_eq!(divide(&recipe, &unreachable(&["east", "west"])), [10_000, 0, 0]);
}
