//! What holds for every recipe.
//!
//! "±1" below is one of the [`WEIGHT_SUM`] units: a part is its exact quota rounded down or up.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_model::recipe::{
    Candidate, Faults, RECIPE_VERSION, Recipe, RecipeBackend, RecipeTier, Serve, Split, Standing,
    WEIGHT_SUM, WhenUnavailable,
};
use fairlead_model::snapshot::EndpointCounts;
use fairlead_model::{MemberId, NsName};
use fairlead_weights::divide;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

fn id(at: u16) -> MemberId {
    MemberId::new(&format!("m{at:02}")).unwrap()
}

fn service(at: usize) -> NsName {
    NsName::new("shop", &format!("s{at}"))
}

/// How large the numbers of a recipe get.
#[derive(Clone, Copy)]
enum Size {
    /// As in life.
    Small,
    /// Whatever fits.
    Any,
}

fn number(size: Size) -> BoxedStrategy<u32> {
    match size {
        Size::Small => (0..40_u32).boxed(),
        Size::Any => prop_oneof![0..3_u32, any::<u32>(), Just(u32::MAX)].boxed(),
    }
}

fn split() -> impl Strategy<Value = Split> {
    prop_oneof![Just(Split::Endpoints), Just(Split::Equal), Just(Split::Weights)]
}

prop_compose! {
    fn candidate(size: Size)(
        ready in number(size), missing in number(size), weight in number(size),
        ramp_percent in prop_oneof![4 => Just(100_u8), 1 => 0..=100_u8],
        out in prop_oneof![4 => Just(false), 1 => Just(true)],
    ) -> Candidate {
        let standing = if out { Standing::Out } else { Standing::Able };
        let expected = ready.saturating_add(missing);
        Candidate { member: id(0), slot: 0, ready, expected, weight, ramp_percent, standing }
    }
}

prop_compose! {
    fn tier(size: Size)(
        split in split(), healthy_percent in 1..=100_u8, endpoints_min in 0..4_u32,
        candidates in vec(candidate(size), 0..4),
    ) -> RecipeTier {
        RecipeTier { split, healthy_percent, endpoints_min, candidates }
    }
}

fn backend(size: Size) -> impl Strategy<Value = RecipeBackend> {
    let when = prop_oneof![Just(WhenUnavailable::Redistribute), Just(WhenUnavailable::Fail)];
    let members = (vec(tier(size), 0..4), when).prop_map(|(tiers, when_unavailable)| {
        Serve::Members { service: service(0), port: 80, tiers, when_unavailable }
    });
    let serve = prop_oneof![1 => Just(Serve::Fixed { slot: 0 }), 5 => members];
    (number(size), serve).prop_map(|(weight, serve)| RecipeBackend { weight, serve })
}

/// Gives every candidate a slot of its own, and ids that start again with every backend.
fn number_slots(mut backends: Vec<RecipeBackend>) -> Recipe {
    let mut next = 0;
    for (at, backend) in backends.iter_mut().enumerate() {
        match &mut backend.serve {
            Serve::Fixed { slot } => {
                *slot = next;
                next += 1;
            }
            Serve::Members { service: name, tiers, .. } => {
                *name = service(at);
                for (n, c) in (0..).zip(tiers.iter_mut().flat_map(|t| &mut t.candidates)) {
                    (c.member, c.slot) = (id(n), next);
                    next += 1;
                }
            }
        }
    }
    let mut recipe = Recipe { version: RECIPE_VERSION, backends, weights: Vec::new() };
    recipe.weights = divide(&recipe, &Faults::default());
    recipe
}

fn recipe(size: Size) -> impl Strategy<Value = Recipe> {
    vec(backend(size), 1..4).prop_map(number_slots)
}

fn faults() -> impl Strategy<Value = Faults> {
    let ids = || (0..12_u16).prop_map(id);
    let counts = (any::<u32>(), any::<u32>())
        .prop_map(|(ready, total)| EndpointCounts { ready: ready % 50, total: total % 50 });
    let services = btree_map((0..3_usize).prop_map(service), counts, 0..3);
    let parts = (
        btree_set(ids(), 0..6),
        btree_map(ids(), services, 0..3),
        btree_map(ids(), any::<u8>(), 0..3),
    );
    parts.prop_map(|(unreachable, counts, ramps)| Faults { unreachable, counts, ramps })
}

fn candidates(recipe: &Recipe) -> Vec<(usize, usize, Candidate)> {
    let mut all = Vec::new();
    for (b, backend) in recipe.backends.iter().enumerate() {
        let Serve::Members { tiers, .. } = &backend.serve else { continue };
        for (t, tier) in tiers.iter().enumerate() {
            all.extend(tier.candidates.iter().map(|c| (b, t, c.clone())));
        }
    }
    all
}

fn candidate_mut(recipe: &mut Recipe, slot: u16) -> &mut Candidate {
    let tiers = recipe.backends.iter_mut().filter_map(|b| match &mut b.serve {
        Serve::Fixed { .. } => None,
        Serve::Members { tiers, .. } => Some(tiers),
    });
    tiers.flatten().flat_map(|t| &mut t.candidates).find(|c| c.slot == slot).unwrap()
}

fn share(weights: &[u32], slot: u16) -> u32 {
    weights[usize::from(slot)]
}

/// Somebody with a weight has something that a share can be left at.
fn can_hold_a_share(recipe: &Recipe) -> bool {
    recipe.backends.iter().any(|backend| {
        let holds = |split, c: &Candidate| {
            let weighs = split != Split::Weights || c.weight > 0;
            weighs && (c.standing == Standing::Able || c.expected > 0)
        };
        backend.weight > 0
            && match &backend.serve {
                Serve::Fixed { .. } => true,
                Serve::Members { tiers, .. } => {
                    tiers.iter().any(|t| t.candidates.iter().any(|c| holds(t.split, c)))
                }
            }
    })
}

/// One backend with one tier of one split.
fn one_tier(split: Split, percent: u8, members: Vec<(u32, u32)>) -> Recipe {
    let member = |(ready, expected): (u32, u32)| Candidate {
        member: id(0),
        slot: 0,
        ready,
        expected,
        weight: 7,
        ramp_percent: 100,
        standing: Standing::Able,
    };
    let candidates = members.into_iter().map(member).collect();
    let tier = RecipeTier { split, healthy_percent: percent, endpoints_min: 1, candidates };
    number_slots(vec![RecipeBackend {
        weight: 1,
        serve: Serve::Members {
            service: service(0),
            port: 80,
            tiers: vec![tier],
            when_unavailable: WhenUnavailable::Redistribute,
        },
    }])
}

fn tiers_mut(recipe: &mut Recipe) -> &mut Vec<RecipeTier> {
    match &mut recipe.backends[0].serve {
        Serve::Members { tiers, .. } => tiers,
        Serve::Fixed { .. } => unreachable!("made of members"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_sum_is_fixed(recipe in recipe(Size::Any), faults in faults()) {
        for faults in [Faults::default(), faults] {
            let sum: u64 = divide(&recipe, &faults).into_iter().map(u64::from).sum();
            let wanted = if can_hold_a_share(&recipe) { u64::from(WEIGHT_SUM) } else { 0 };
            // Newer counts can make something expected where nothing was.
            if faults.counts.is_empty() || wanted > 0 {
                prop_assert_eq!(sum, wanted);
            }
        }
    }

    #[test]
    fn without_faults_it_is_the_plan(recipe in recipe(Size::Any)) {
        prop_assert_eq!(divide(&recipe, &Faults::default()), recipe.weights.clone());
        let mut other = recipe.clone();
        other.version += 1;
        prop_assert_eq!(divide(&other, &Faults::default()), recipe.weights);
    }

    /// Own share: never more than one unit up. Slots of later tiers: never more than one unit down.
    #[test]
    fn a_member_that_gets_worse_gets_no_more_and_later_tiers_no_less(
        recipe in recipe(Size::Small), pick in any::<prop::sample::Index>(), worse in any::<u32>(),
    ) {
        let all = candidates(&recipe);
        if all.is_empty() {
            return Ok(());
        }
        let (backend, tier, candidate) = pick.get(&all).clone();
        let mut after = recipe.clone();
        candidate_mut(&mut after, candidate.slot).ready = worse % (candidate.ready + 1);
        let after = divide(&after, &Faults::default());
        prop_assert!(share(&after, candidate.slot) <= share(&recipe.weights, candidate.slot) + 1);
        for (b, t, later) in &all {
            if *b == backend && *t > tier {
                prop_assert!(share(&after, later.slot) + 1 >= share(&recipe.weights, later.slot));
            }
        }
    }

    /// While the others can take everything, a member's share follows its ready endpoints down to
    /// nothing, and no step is larger than what one endpoint is of the tier: `1 / (Σ w · θ)`.
    #[test]
    fn no_jump_at_zero(
        members in vec((1..20_u32, 0..20_u32), 1..4), percent in 1..=100_u8, pick in any::<prop::sample::Index>(),
    ) {
        let members: Vec<_> = members.into_iter().map(|(r, missing)| (r, r + missing)).collect();
        let sum: u32 = members.iter().map(|m| m.1).sum();
        let mut recipe = one_tier(Split::Endpoints, percent, members.clone());
        let slot = u16::try_from(pick.index(members.len())).unwrap();
        // A last tier that can take everything.
        let mut last = one_tier(Split::Endpoints, 1, vec![(1, 1)]);
        let mut last = tiers_mut(&mut last).remove(0);
        (last.candidates[0].slot, last.candidates[0].member) = (90, id(90));
        tiers_mut(&mut recipe).push(last);
        let step = WEIGHT_SUM * 100 / (sum * u32::from(percent)) + 2;
        let mut before = share(&divide(&recipe, &Faults::default()), slot);
        for ready in (0..members[usize::from(slot)].0).rev() {
            candidate_mut(&mut recipe, slot).ready = ready;
            let now = share(&divide(&recipe, &Faults::default()), slot);
            prop_assert!(now <= before + 1 && before <= now + step, "{before} -> {now}, step {step}");
            before = now;
        }
        prop_assert_eq!(before, 0);
    }

    #[test]
    fn scaling_up_moves_nothing_between_tiers_of_one_member(
        sizes in vec(1..100_u32, 1..5), pick in any::<prop::sample::Index>(), factor in 1..10_u32,
    ) {
        let mut recipe = one_tier(Split::Endpoints, 70, vec![(sizes[0], sizes[0])]);
        for size in &sizes[1..] {
            let tier = tiers_mut(&mut one_tier(Split::Endpoints, 70, vec![(*size, *size)])).remove(0);
            tiers_mut(&mut recipe).push(tier);
        }
        let mut recipe = number_slots(recipe.backends);
        let slot = u16::try_from(pick.index(sizes.len())).unwrap();
        let candidate = candidate_mut(&mut recipe, slot);
        candidate.ready *= factor;
        candidate.expected *= factor;
        prop_assert_eq!(divide(&recipe, &Faults::default()), recipe.weights);
    }

    /// Exactly, whatever becomes of members, as long as each backend has one that serves.
    #[test]
    fn the_users_weights_hold(
        recipe in recipe(Size::Small), faults in faults(), weights in vec(1..1_000_u32, 3),
    ) {
        let mut recipe = recipe;
        for (backend, weight) in recipe.backends.iter_mut().zip(&weights) {
            backend.weight = *weight;
            let Serve::Members { tiers, .. } = &mut backend.serve else { continue };
            let mut sure = tiers_mut(&mut one_tier(Split::Equal, 50, vec![(9, 9)])).remove(0);
            sure.candidates[0].member = id(99);
            tiers.push(sure);
        }
        let backends: Vec<_> = recipe.backends.clone();
        let mut recipe = number_slots(backends);
        // The sure ones keep an id that no fault names.
        let sure: Vec<u16> = recipe.backends.iter().filter_map(|b| match &b.serve {
            Serve::Members { tiers, .. } => Some(tiers.last().unwrap().candidates[0].slot),
            Serve::Fixed { .. } => None,
        }).collect();
        for slot in sure {
            candidate_mut(&mut recipe, slot).member = id(99);
        }
        let of_backend = |weights: &[u32]| -> Vec<u32> {
            recipe.backends.iter().map(|b| match &b.serve {
                Serve::Fixed { slot } => share(weights, *slot),
                Serve::Members { tiers, .. } => {
                    tiers.iter().flat_map(|t| &t.candidates).map(|c| share(weights, c.slot)).sum()
                }
            }).collect()
        };
        let asked: u32 = recipe.backends.iter().map(|b| b.weight).sum();
        let shares = of_backend(&divide(&recipe, &faults));
        prop_assert_eq!(&shares, &of_backend(&recipe.weights));
        for (backend, share) in recipe.backends.iter().zip(shares) {
            let quota = backend.weight * WEIGHT_SUM / asked;
            prop_assert!(share == quota || share == quota + 1);
        }
    }

    #[test]
    fn the_order_of_candidates_does_not_matter(recipe in recipe(Size::Any), faults in faults()) {
        let mut turned = recipe.clone();
        for backend in &mut turned.backends {
            let Serve::Members { tiers, .. } = &mut backend.serve else { continue };
            tiers.iter_mut().for_each(|tier| tier.candidates.reverse());
        }
        prop_assert_eq!(divide(&turned, &faults), divide(&recipe, &faults));
    }

    #[test]
    fn an_unreachable_member_gets_nothing_while_another_serves(
        recipe in recipe(Size::Small), faults in faults(),
    ) {
        let faults = Faults { unreachable: faults.unreachable, ..Faults::default() };
        let after = divide(&recipe, &faults);
        let serves = |tier: &RecipeTier, c: &Candidate| {
            let weighs = tier.split != Split::Weights || c.weight > 0;
            let able = c.standing == Standing::Able && c.ready > 0 && c.ramp_percent > 0;
            weighs && able && !faults.unreachable.contains(&c.member)
        };
        for backend in &recipe.backends {
            let Serve::Members { tiers, .. } = &backend.serve else { continue };
            if !tiers.iter().any(|tier| tier.candidates.iter().any(|c| serves(tier, c))) {
                continue;
            }
            for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
                if faults.unreachable.contains(&candidate.member) {
                    prop_assert_eq!(share(&after, candidate.slot), 0);
                }
            }
        }
    }

    #[test]
    fn nonsense_never_panics(
        backends in vec(backend(Size::Any), 0..5), faults in faults(), version in 0..3_u16,
        weights in vec(any::<u32>(), 0..20), slots in vec(any::<u16>(), 60),
        percents in vec(any::<u8>(), 60),
    ) {
        let mut recipe = Recipe { version, backends, weights };
        let mut odd = slots.into_iter().zip(percents).cycle();
        for backend in &mut recipe.backends {
            let Serve::Members { tiers, .. } = &mut backend.serve else { continue };
            for tier in tiers {
                tier.healthy_percent = odd.next().unwrap().1;
                for candidate in &mut tier.candidates {
                    (candidate.slot, candidate.ramp_percent) = odd.next().unwrap();
                    candidate.expected /= 2;
                }
            }
        }
        let weights = divide(&recipe, &faults);
        prop_assert!(weights.len() >= recipe.weights.len());
        let sum: u64 = weights.into_iter().map(u64::from).sum();
        prop_assert!(version != RECIPE_VERSION || sum == 0 || sum == u64::from(WEIGHT_SUM));
    }
}
