//! Tiers, spill-over and apportionment: the one piece that planner and agent both use.
//!
//! Owns the arithmetic that turns a [`Recipe`] and the [`Faults`] an agent has found since into the
//! weights of one rule's backendRefs. Integers only, no clock, no randomness: planner and agent, on
//! whatever machine, come to the same numbers. Never decides who may serve and never fails: values
//! that make no sense are bent to the nearest that do (see the corners below).
//!
//! For one backend, with `θ` = `healthy_percent`:
//!
//! ```text
//! w    = expected | 1 | given weight        0 when nothing is expected of the member
//! h    = ready / expected                   0 when out, unreachable, or below endpoints_min while
//!                                           another member (of any tier) can serve
//! tier = min(rest, Σ w·h·ramp / (Σ w · θ))  split in proportion to w·h·ramp; the rest goes on
//! ```
//!
//! `Σ w` counts members that are out of health too: health is not eligibility. When all tiers
//! together take less than everything, their shares are scaled up.
//!
//! Then the rule. Each backend has its nominal share, by the users' weights. The share of a backend
//! that nobody can serve goes to the backends that are served, in proportion to their weights, or
//! stays where it would go if its members were healthy, so that it fails there (`WhenUnavailable`).
//! [`Serve::Fixed`] keeps its share.
//!
//! Corners:
//!
//! - `expected` is at least `ready`; `healthy_percent` is bent to 1..=100, a ramp to 0..=100.
//! - A ramp of 0 is a wait: it holds a member back only while another one serves the backend.
//! - A member that is out of health (not drained) is called back when `faults` leave nobody else and
//!   it is not among the unreachable.
//! - A backend of weight 0 gets nothing, whatever else is true.
//! - A fixed backend takes shares of others only when no backend with members is served.
//! - Nothing in the rule can be served: every backend keeps its nominal share, where it would go if
//!   its members were healthy. A rule is never all zero by ill health.
//! - The same, but only because of `faults`: the weights of the plan, as given.
//! - "If its members were healthy" prefers members that are able; takes those that are out but of
//!   which something is expected (down) when there is no other; then able ones of which nothing is
//!   expected. It never names a member that is out and of which nothing is expected: that is how a
//!   planner writes a drained one. A backend with no such slot cannot hold a share; the others take it.
//! - The sum is [`WEIGHT_SUM`] unless no backend with a weight has a slot to go to: then all are 0.
//! - Two candidates of one slot add up. The result is as long as the recipe's weights, or longer when
//!   a slot lies beyond them.
//! - A recipe of another version: `faults` may only zero slots, the others take what is freed in
//!   proportion to their weights; its own sum is kept.

mod apportion;
mod tier;

use std::collections::BTreeMap;

use fairlead_model::recipe::{
    Faults, RECIPE_VERSION, Recipe, RecipeBackend, Serve, WEIGHT_SUM, WhenUnavailable,
};

use crate::apportion::apportion;

/// The weights of a rule, by slot.
///
/// With no faults this is what the planner puts into a bundle; see the module for every corner.
pub fn divide(recipe: &Recipe, faults: &Faults) -> Vec<u32> {
    if recipe.version != RECIPE_VERSION {
        return zero_unreachable(recipe, faults);
    }
    let outcomes = outcomes(recipe, faults);
    if !serves(&outcomes) && !faults.is_empty() && serves(&self::outcomes(recipe, &NO_FAULTS)) {
        return as_planned(recipe);
    }
    let shares = backend_shares(recipe, &outcomes);
    let mut weights = vec![0; slots(recipe)];
    for (outcome, share) in outcomes.iter().zip(shares) {
        let parts = outcome.parts();
        let amounts: Vec<u128> = parts.values().copied().collect();
        for (slot, part) in parts.keys().zip(apportion(share, &amounts)) {
            weights[usize::from(*slot)] += part;
        }
    }
    weights
}

static NO_FAULTS: Faults = Faults {
    unreachable: std::collections::BTreeSet::new(),
    counts: BTreeMap::new(),
    ramps: BTreeMap::new(),
};

/// Parts of a backend's share by slot; only their proportions mean something.
type Parts = BTreeMap<u16, u128>;

/// What can become of a backend's share.
enum Outcome {
    /// Members serve it.
    Served(Parts),
    /// It is one backendRef and always keeps its share.
    Fixed(Parts),
    /// Nobody serves it: it would go there and fail.
    Unserved(Parts, WhenUnavailable),
    /// It has no weight, or no slot that could hold a share.
    Nowhere(Parts),
}

impl Outcome {
    fn parts(&self) -> &Parts {
        match self {
            Self::Served(parts) | Self::Fixed(parts) | Self::Nowhere(parts) => parts,
            Self::Unserved(parts, _) => parts,
        }
    }
}

fn outcomes(recipe: &Recipe, faults: &Faults) -> Vec<Outcome> {
    recipe.backends.iter().map(|backend| outcome(backend, faults)).collect()
}

fn outcome(backend: &RecipeBackend, faults: &Faults) -> Outcome {
    if backend.weight == 0 {
        return Outcome::Nowhere(Parts::new());
    }
    match &backend.serve {
        Serve::Fixed { slot } => Outcome::Fixed(Parts::from([(*slot, 1)])),
        Serve::Members { service, tiers, when_unavailable, .. } => {
            let capacities = tier::capacities(tiers, service, faults);
            let served = tier::spill(&capacities);
            if !served.is_empty() {
                return Outcome::Served(served);
            }
            let nominal = tier::as_if_healthy(&capacities);
            if nominal.is_empty() {
                return Outcome::Nowhere(nominal);
            }
            Outcome::Unserved(nominal, *when_unavailable)
        }
    }
}

fn serves(outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|o| matches!(o, Outcome::Served(_) | Outcome::Fixed(_)))
}

/// Each backend's part of [`WEIGHT_SUM`]: its nominal share, and its part of what others freed.
fn backend_shares(recipe: &Recipe, outcomes: &[Outcome]) -> Vec<u32> {
    let asked: Vec<u128> = recipe.backends.iter().map(|b| u128::from(b.weight)).collect();
    let mut shares = apportion(WEIGHT_SUM, &asked);
    let receives = receivers(outcomes);
    let mut freed = 0;
    for (share, outcome) in shares.iter_mut().zip(outcomes) {
        let frees = match outcome {
            Outcome::Served(_) | Outcome::Fixed(_) => false,
            // Among their likes: nothing is served, so a share may as well fail where it belongs.
            Outcome::Unserved(_, WhenUnavailable::Redistribute) => !receives(outcome),
            Outcome::Unserved(_, WhenUnavailable::Fail) => false,
            Outcome::Nowhere(_) => true,
        };
        if frees {
            freed += std::mem::take(share);
        }
    }
    let takers: Vec<u128> =
        outcomes.iter().zip(&asked).map(|(o, w)| if receives(o) { *w } else { 0 }).collect();
    shares.iter_mut().zip(apportion(freed, &takers)).for_each(|(share, more)| *share += more);
    shares
}

/// Who takes what is freed: those with members that serve; else the fixed ones; else all.
fn receivers(outcomes: &[Outcome]) -> fn(&Outcome) -> bool {
    let served = |o: &Outcome| matches!(o, Outcome::Served(_));
    let fixed = |o: &Outcome| matches!(o, Outcome::Fixed(_));
    if outcomes.iter().any(served) {
        served
    } else if outcomes.iter().any(fixed) {
        fixed
    } else {
        |o| matches!(o, Outcome::Unserved(..))
    }
}

/// The plan as given; recomputed when what is given cannot have come from a planner.
fn as_planned(recipe: &Recipe) -> Vec<u32> {
    let sum: u64 = recipe.weights.iter().copied().map(u64::from).sum();
    if sum == u64::from(WEIGHT_SUM) && recipe.weights.len() >= slots(recipe) {
        return recipe.weights.clone();
    }
    divide(recipe, &NO_FAULTS)
}

/// All that may be done with a recipe that this code does not understand.
fn zero_unreachable(recipe: &Recipe, faults: &Faults) -> Vec<u32> {
    let mut left: Vec<u128> = recipe.weights.iter().copied().map(u128::from).collect();
    let sum: u128 = left.iter().sum();
    for backend in &recipe.backends {
        let Serve::Members { tiers, .. } = &backend.serve else { continue };
        for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
            if faults.unreachable.contains(&candidate.member)
                && let Some(weight) = left.get_mut(usize::from(candidate.slot))
            {
                *weight = 0;
            }
        }
    }
    let kept: u128 = left.iter().sum();
    // Nothing unreachable carries weight, or everything does: the plan stands as given.
    if kept == sum || kept == 0 {
        return recipe.weights.clone();
    }
    apportion(u32::try_from(sum).unwrap_or(u32::MAX), &left)
}

fn slots(recipe: &Recipe) -> usize {
    let of_backend = |backend: &RecipeBackend| match &backend.serve {
        Serve::Fixed { slot } => usize::from(*slot) + 1,
        Serve::Members { tiers, .. } => {
            let candidates = tiers.iter().flat_map(|tier| &tier.candidates);
            candidates.map(|c| usize::from(c.slot) + 1).max().unwrap_or(0)
        }
    };
    let highest = recipe.backends.iter().map(of_backend).max().unwrap_or(0);
    highest.max(recipe.weights.len())
}
