//! One rule at one entry: slots, recipe, weights.

use std::sync::Arc;

use fairlead_model::plan::{RulePlan, Slot, SlotTarget};
use fairlead_model::policy::{Backend, BackendTarget, Rule, Spread};
use fairlead_model::recipe::{
    Candidate, Faults, RECIPE_VERSION, Recipe, RecipeBackend, RecipeTier, SLOTS_MAX, Serve, Split,
    Standing, WhenUnavailable,
};
use fairlead_model::{MemberId, NsName, Reason, ServicePort};

use crate::fleet::{Fleet, Member};
use crate::slots::{self, Applicant};
use crate::{Answer, InUse, Verdicts, tiers};

/// One rule at one entry.
pub(crate) struct RuleStep<'a> {
    pub(crate) fleet: &'a Fleet<'a>,
    pub(crate) entry: (&'a MemberId, &'a Member<'a>),
    pub(crate) rule: &'a Rule,
    pub(crate) verdicts: &'a [Option<Arc<Verdicts>>],
}

/// What the step decided.
pub(crate) struct Decided {
    pub(crate) plan: RulePlan,
    /// Global backends that nobody may serve here.
    pub(crate) unserved: Vec<usize>,
    /// Backends with members that found no slot: how many, of how many.
    pub(crate) dropped: Vec<(usize, usize, usize)>,
}

/// How a backend is written.
enum Shape<'a> {
    AsWritten,
    Members { service: &'a NsName, port: ServicePort, tiers: Vec<Vec<Applicant<'a>>> },
}

impl<'a> RuleStep<'a> {
    pub(crate) fn decide(&self) -> Decided {
        // More than 16 backends are against the spec; those beyond can have no slot.
        let backends = &self.rule.backends[..self.rule.backends.len().min(SLOTS_MAX)];
        let mut shapes: Vec<Shape<'a>> = (0..backends.len()).map(|at| self.shape(at)).collect();
        let is_global = |b: &Backend| matches!(b.target, BackendTarget::Global { .. });
        let unserved = (0..backends.len())
            .filter(|at| is_global(&backends[*at]) && matches!(shapes[*at], Shape::AsWritten))
            .collect();
        self.let_shares_fail(backends, &mut shapes);
        let dropped = self.fit_into_slots(&mut shapes);

        let mut slots = Vec::new();
        let recipe_backends = backends.iter().zip(shapes).enumerate();
        let recipe_backends = recipe_backends
            .map(|(at, (backend, shape))| RecipeBackend {
                weight: backend.weight,
                serve: self.serve(at, shape, &mut slots),
            })
            .collect();
        let mut recipe =
            Recipe { version: RECIPE_VERSION, backends: recipe_backends, weights: Vec::new() };
        recipe.weights = fairlead_weights::divide(&recipe, &Faults::default());
        Decided { plan: RulePlan { slots, recipe, mirrors: Vec::new() }, unserved, dropped }
    }

    fn shape(&self, at: usize) -> Shape<'a> {
        let (BackendTarget::Global { service, port }, Some(verdicts)) =
            (&self.rule.backends[at].target, &self.verdicts[at])
        else {
            return Shape::AsWritten;
        };
        let entry = (self.entry.0, &self.entry.1.place);
        let spread = &self.rule.spread;
        let mut by_tier = vec![Vec::new(); spread.tiers.len() + 1];
        for (member, verdict) in verdicts.iter() {
            let drained = match verdict.answer(entry, member) {
                Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) => false,
                Answer::Out(reason) => is_drain(reason),
                Answer::No(_) => continue,
            };
            let Some((member, facts)) = self.fleet.members.get_key_value(member) else { continue };
            if let Some(tier) = tiers::tier_of(spread, entry, (member, &facts.place)) {
                by_tier[tier].push(Applicant { member, drained });
            }
        }
        if by_tier.iter().all(Vec::is_empty) {
            return Shape::AsWritten;
        }
        Shape::Members { service, port: *port, tiers: by_tier }
    }

    /// A backend whose members are all drained, or of weight 0, has nowhere to fail: it is written as
    /// the user wrote it, so that a drained member gets nothing even then. Not so when other
    /// backends take its share: then its members keep their places.
    fn let_shares_fail(&self, backends: &[Backend], shapes: &mut [Shape<'a>]) {
        let holds: Vec<bool> =
            shapes.iter().enumerate().map(|(at, shape)| self.holds_share(at, shape)).collect();
        let redistributes = self.rule.spread.when_unavailable == WhenUnavailable::Redistribute;
        let taken_over =
            redistributes && holds.iter().zip(backends).any(|(h, b)| *h && b.weight > 0);
        for ((shape, backend), holds) in shapes.iter_mut().zip(backends).zip(holds) {
            if !holds && !taken_over && backend.weight > 0 {
                *shape = Shape::AsWritten;
            }
        }
    }

    fn holds_share(&self, at: usize, shape: &Shape<'a>) -> bool {
        let Shape::Members { service, tiers, .. } = shape else { return true };
        let holds = |(tier, applicant): (usize, &Applicant<'_>)| {
            let candidate = self.candidate(at, tier, applicant.member, service, 0);
            let weighs = self.split(tier) != Split::Weights || candidate.weight > 0;
            weighs && (candidate.standing == Standing::Able || candidate.expected > 0)
        };
        let tiers = tiers.iter().enumerate();
        tiers.flat_map(|(t, tier)| tier.iter().map(move |a| (t, a))).any(holds)
    }

    fn fit_into_slots(&self, shapes: &mut [Shape<'a>]) -> Vec<(usize, usize, usize)> {
        let fixed = shapes.iter().filter(|s| matches!(s, Shape::AsWritten)).count();
        let max = slots::members_max(fixed, shapes.len() - fixed);
        let mut dropped = Vec::new();
        for (at, shape) in shapes.iter_mut().enumerate() {
            let Shape::Members { service, tiers, .. } = shape else { continue };
            let all = tiers.iter().map(Vec::len).sum();
            let without = slots::choose(tiers, max, self.entry.0, service);
            if !without.is_empty() {
                dropped.push((at, without.len(), all));
            }
        }
        dropped
    }

    fn serve(&self, at: usize, shape: Shape<'a>, slots: &mut Vec<Slot>) -> Serve {
        let backend = number(at);
        let (service, port, by_tier) = match shape {
            Shape::AsWritten => {
                slots.push(Slot { backend, target: SlotTarget::AsWritten });
                return Serve::Fixed { slot: number(slots.len() - 1) };
            }
            Shape::Members { service, port, tiers } => (service, port, tiers),
        };
        // In the order of members and not of tiers: a member that changes its tier keeps its place.
        let mut members: Vec<&MemberId> = by_tier.iter().flatten().map(|a| a.member).collect();
        members.sort();
        let first = slots.len();
        slots.extend(members.iter().map(|m| Slot {
            backend,
            target: target(self.fleet, self.entry.0, m, (service, port)),
        }));
        let slot = |member: &MemberId| {
            let place = members.binary_search(&member).expect("it was put there above");
            number(first + place)
        };
        let spread = &self.rule.spread;
        let tier = |(tier, applicants): (usize, Vec<Applicant<'_>>)| RecipeTier {
            split: self.split(tier),
            healthy_percent: spread.healthy_percent,
            endpoints_min: spread.endpoints_min,
            candidates: applicants
                .iter()
                .map(|a| self.candidate(at, tier, a.member, service, slot(a.member)))
                .collect(),
        };
        let tiers = by_tier.into_iter().enumerate().filter(|(_, tier)| !tier.is_empty());
        Serve::Members {
            service: service.clone(),
            port,
            tiers: tiers.map(tier).collect(),
            when_unavailable: spread.when_unavailable,
        }
    }

    fn candidate(
        &self,
        backend: usize,
        tier: usize,
        member: &MemberId,
        service: &NsName,
        slot: u16,
    ) -> Candidate {
        let entry = (self.entry.0, &self.entry.1.place);
        let verdict = self.verdicts[backend].as_ref().and_then(|v| v.get(member));
        let answer = verdict.map_or(Answer::No(Reason::NotExported), |v| v.answer(entry, member));
        let counts = self.fleet.members.get(member).map(|m| m.counts_of(service));
        let given = self.rule.spread.tiers.get(tier).and_then(|t| t.weights.get(member)).copied();
        let (counts, weight, standing) = match answer {
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) => {
                (counts.unwrap_or_default(), given.unwrap_or(0), Standing::Able)
            }
            // Drained is not ill: nothing is expected of it, so its tier is as healthy as without it.
            Answer::Out(reason) if is_drain(reason) => (InUse::default(), 0, Standing::Out),
            Answer::Out(_) | Answer::No(_) => {
                (counts.unwrap_or_default(), given.unwrap_or(0), Standing::Out)
            }
        };
        Candidate {
            member: member.clone(),
            slot,
            ready: counts.ready,
            expected: counts.expected,
            weight,
            ramp_percent: match answer {
                Answer::Ramping(ramp) => ramp.percent,
                Answer::Waiting(_) => 0,
                Answer::Able | Answer::Out(_) | Answer::No(_) => 100,
            },
            standing,
        }
    }

    fn split(&self, tier: usize) -> Split {
        split_of(&self.rule.spread, tier)
    }
}

/// Where a member's service is for an entry.
pub(crate) fn target(
    fleet: &Fleet<'_>,
    entry: &MemberId,
    member: &MemberId,
    (service, port): (&NsName, ServicePort),
) -> SlotTarget {
    let service = service.clone();
    if member == entry {
        return SlotTarget::Local { service, port };
    }
    let snapshot = fleet.members.get(member).and_then(|m| m.snapshot.as_ref());
    let ports = snapshot.and_then(|s| s.services.get(&service)).map(|s| &s.ports);
    let app_protocol = ports.and_then(|p| p.get(&port)).map(|p| p.app_protocol.clone());
    let app_protocol = app_protocol.unwrap_or_default();
    SlotTarget::Remote { member: member.clone(), service, port, app_protocol }
}

/// The standby tier is split by endpoints.
fn split_of(spread: &Spread, tier: usize) -> Split {
    spread.tiers.get(tier).map_or(Split::Endpoints, |tier| tier.split)
}

/// Taken out on request, or by a policy, and not for ill health.
fn is_drain(reason: Reason) -> bool {
    matches!(reason, Reason::Drained | Reason::StaleInventory)
}

fn number(at: usize) -> u16 {
    u16::try_from(at).expect("a rule has at most 16 slots")
}
