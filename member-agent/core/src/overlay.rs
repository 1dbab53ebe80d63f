//! How this entry's routes change while it cannot reach some of its peers.
//!
//! The overlay is the bundle with other weights at known positions, computed from each rule's recipe
//! by the very function that the planner used. Laws: without faults it is the bundle byte for byte;
//! it never empties a rule; it touches nothing but weights. It decides nothing for other entries.
//!
//! A peer without a verdict changes nothing: the live weights of a rule that names it stand, so that
//! a restart of the agent never gives traffic back to a dead member for the time of two probes.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::bundle::{Bundle, RuleId};
use fairlead_model::health::Reach;
use fairlead_model::recipe::{Faults, Recipe, Serve};
use fairlead_model::session::OverlayReport;
use fairlead_model::{Json, MemberId, ObjectId, Reason};

use crate::live::LiveObjects;
use crate::probe::Suspicion;
use crate::readiness::Counts;

/// Everything that the overlay depends on.
#[derive(Debug)]
pub struct OverlayInput<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// Verdicts about its peers; a peer of the bundle that is absent has none yet.
    pub reaches: &'a BTreeMap<MemberId, Reach>,
    /// Whether the verdicts are to be believed.
    pub suspicion: Suspicion,
    /// What is in the API server.
    pub live: &'a LiveObjects,
}

/// The contents that differ from the bundle's, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overlay {
    /// Changed contents by object; absent = as in the bundle.
    pub contents: BTreeMap<ObjectId, Json>,
    /// For the hub.
    pub report: OverlayReport,
}

/// Computes the overlay from what the probes say.
pub fn overlay(input: &OverlayInput<'_>) -> Overlay {
    overlay_with(input, &Counts::new())
}

/// Computes the overlay from what the probes say, and from services that have nothing ready
/// ([`crate::readiness`]), our own included.
pub fn overlay_with(input: &OverlayInput<'_>, gone: &Counts) -> Overlay {
    let mut overlay = Overlay::default();
    overlay.report.number = input.bundle.number;
    let mut changed: BTreeMap<&ObjectId, Vec<(u16, Vec<u32>)>> = BTreeMap::new();
    for (rule, recipe) in &input.bundle.recipes {
        let verdict = verdict_of(input, recipe);
        overlay.report.out.extend(verdict.out.iter().map(|(id, why)| (id.clone(), *why)));
        if let Some(weights) = weights_of(input, rule, recipe, &verdict, gone) {
            changed.entry(&rule.object).or_default().push((rule.rule, weights));
        }
    }
    for (id, rules) in changed {
        let Some(object) = input.bundle.objects.get(id) else { continue };
        let mut content = object.content.clone();
        let set = rules.iter().filter(|(rule, weights)| set_weights(&mut content, *rule, weights));
        let set = u32::try_from(set.count()).unwrap_or(u32::MAX);
        if set > 0 {
            overlay.report.rules += set;
            overlay.contents.insert(id.clone(), content);
        }
    }
    overlay
}

/// What the probes say of the members of one rule.
struct Verdict {
    out: BTreeMap<MemberId, Reason>,
    open: bool,
}

fn verdict_of(input: &OverlayInput<'_>, recipe: &Recipe) -> Verdict {
    let mut verdict = Verdict { out: BTreeMap::new(), open: false };
    for member in members_of(recipe) {
        // Whoever is no peer (ourselves, a member without a door) is not probed.
        if !input.bundle.peers.contains_key(member) {
            continue;
        }
        let reach = input.reaches.get(member).copied().unwrap_or_default();
        let why = match reach {
            Reach::Reachable => continue,
            Reach::Unknown => {
                verdict.open = true;
                continue;
            }
            Reach::Refused => Reason::DoorRefused,
            Reach::TimedOut => Reason::DoorTimedOut,
        };
        match input.suspicion {
            Suspicion::None => drop(verdict.out.insert(member.clone(), why)),
            Suspicion::Alone => verdict.open = true,
        }
    }
    verdict
}

fn members_of(recipe: &Recipe) -> BTreeSet<&MemberId> {
    let tiers = recipe.backends.iter().filter_map(|backend| match &backend.serve {
        Serve::Fixed { .. } => None,
        Serve::Members { tiers, .. } => Some(tiers),
    });
    tiers.flatten().flat_map(|tier| &tier.candidates).map(|candidate| &candidate.member).collect()
}

/// The weights of a rule where they are not the plan's.
fn weights_of(
    input: &OverlayInput<'_>,
    rule: &RuleId,
    recipe: &Recipe,
    verdict: &Verdict,
    gone: &Counts,
) -> Option<Vec<u32>> {
    let planned = &input.bundle.objects.get(&rule.object)?.content;
    if verdict.open
        && let Some(live) = input.live.get(&rule.object).filter(|live| live.is_ours())
        && let Some(weights) = live_weights(planned, &live.content, rule.rule)
    {
        return Some(weights);
    }
    let counts = gone_of(recipe, gone);
    if verdict.out.is_empty() && counts.is_empty() {
        return None;
    }
    let unreachable = verdict.out.keys().cloned().collect();
    let faults = Faults { unreachable, counts, ..Faults::default() };
    let weights = fairlead_weights::divide(recipe, &faults);
    let any = weights.iter().any(|weight| *weight > 0);
    any.then_some(weights)
}

/// What is gone of that which the plan counts on.
fn gone_of(recipe: &Recipe, gone: &Counts) -> Counts {
    let mut counts = Counts::new();
    for backend in &recipe.backends {
        let Serve::Members { service, tiers, .. } = &backend.serve else { continue };
        for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
            let said = gone.get(&candidate.member).and_then(|services| services.get(service));
            if let Some(said) = said.filter(|_| candidate.ready > 0) {
                let of_member = counts.entry(candidate.member.clone()).or_default();
                of_member.insert(service.clone(), *said);
            }
        }
    }
    counts
}

/// The weights of a live rule whose backends are those of the planned one.
fn live_weights(planned: &Json, live: &Json, rule: u16) -> Option<Vec<u32>> {
    let (planned, live) = (refs_of(planned, rule)?, refs_of(live, rule)?);
    let same = planned.len() == live.len()
        && planned.iter().zip(live).all(|(a, b)| target_of(a) == target_of(b));
    let weights: Vec<u32> = live.iter().map(weight_of).collect();
    (same && weights.iter().any(|weight| *weight > 0)).then_some(weights)
}

pub(crate) fn refs_of(route: &Json, rule: u16) -> Option<&Vec<Json>> {
    route.pointer(&format!("/spec/rules/{rule}/backendRefs"))?.as_array()
}

/// What a backendRef names, with the API's defaults; without weight and filters.
pub(crate) fn target_of(backend: &Json) -> [Option<&Json>; 5] {
    let some =
        |key: &str, default: &str| backend.get(key).filter(|value| value.as_str() != Some(default));
    [
        some("group", ""),
        some("kind", "Service"),
        backend.get("namespace"),
        backend.get("name"),
        backend.get("port"),
    ]
}

pub(crate) fn weight_of(backend: &Json) -> u32 {
    let weight = backend.get("weight").map_or(Some(1), Json::as_u64);
    weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1)
}

/// Sets a rule's weights; true when one of them changed.
fn set_weights(content: &mut Json, rule: u16, weights: &[u32]) -> bool {
    let pointer = format!("/spec/rules/{rule}/backendRefs");
    let Some(refs) = content.pointer_mut(&pointer).and_then(Json::as_array_mut) else {
        return false;
    };
    // A recipe that does not fit its rule says nothing about it.
    if refs.len() != weights.len() {
        return false;
    }
    let mut changed = false;
    for (backend, weight) in refs.iter_mut().zip(weights) {
        if weight_of(backend) == *weight {
            continue;
        }
        if let Some(fields) = backend.as_object_mut() {
            fields.insert("weight".to_owned(), (*weight).into());
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
