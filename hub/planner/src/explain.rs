//! The report as sentences: why has this member that share?

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::health::MemberState;
use fairlead_model::plan::{EntryDecision, RulePlan};
use fairlead_model::policy::{BackendTarget, GlobalRoute, Rule, TrafficState};
use fairlead_model::recipe::{Candidate, RecipeTier, Serve, Split, Standing};
use fairlead_model::view::{
    BackendExplanation, EntryExplanation, Explanation, MemberShare, RuleExplanation,
};
use fairlead_model::{Json, MemberId, Millis, Note, Reason, RouteKey};

use crate::{Answer, Place, Planned, Ramp, Verdict, Verdicts, tiers};

/// Why a route's traffic goes where it goes, at one entry or at all; none when there is no such route.
pub fn explain(
    planned: &Planned,
    route: &RouteKey,
    from: Option<&MemberId>,
) -> Option<Explanation> {
    let decision = planned.decisions.get(route)?;
    let report = planned.report.routes.get(route).cloned().unwrap_or_default();
    let asked = |id: &MemberId| from.is_none_or(|from| from == id);
    let entry = |(id, entry): (&MemberId, &EntryDecision)| {
        let places = &planned.report.places;
        let (route, verdicts) = match &entry.route {
            Some(tried) => (tried, &report.verdicts_tried),
            None => (&decision.route, &report.verdicts),
        };
        let step = Step { route, verdicts, places, entry: id };
        (id.clone(), step.entry(entry))
    };
    let entries = decision.entries.iter().filter(|(id, _)| asked(id)).map(entry).collect();
    let mut notes = decision.notes.clone();
    notes.extend(report.kept.map(|why| Note::new("route", why, why.sentence())));
    Some(Explanation {
        route: route.clone(),
        entries,
        notes,
        asked: report
            .rollout
            .map(|(why, text)| Note::new(route.to_string(), why, text))
            .into_iter()
            .collect(),
    })
}

/// `namespace/name:port` of a service that members export, else as the user wrote it.
pub fn backend_name(route: &GlobalRoute, rule: usize, backend: usize) -> String {
    if let Some(BackendTarget::Global { service, port }) =
        route.rules.get(rule).and_then(|r| r.backends.get(backend)).map(|b| &b.target)
    {
        return format!("{service}:{port}");
    }
    let written = route.spec.pointer(&format!("/rules/{rule}/backendRefs/{backend}"));
    let field = |name: &str| written?.get(name).map(Json::to_string);
    let text = |name| field(name).map(|t| t.trim_matches('"').to_owned());
    let (kind, name) = (text("kind"), text("name"));
    let port = text("port").map(|port| format!(":{port}")).unwrap_or_default();
    let name = name.unwrap_or_else(|| format!("backendRefs[{backend}]"));
    format!("{} {name}{port}", kind.as_deref().unwrap_or("Service"))
}

struct Step<'a> {
    route: &'a GlobalRoute,
    verdicts: &'a [Vec<Option<Arc<Verdicts>>>],
    places: &'a BTreeMap<MemberId, Place>,
    entry: &'a MemberId,
}

impl Step<'_> {
    fn entry(&self, entry: &EntryDecision) -> EntryExplanation {
        let mut gateways: Vec<_> = entry.parents.iter().map(|p| p.gateway.clone()).collect();
        gateways.dedup();
        let rules = entry.rules.iter().enumerate();
        EntryExplanation {
            gateways,
            rules: rules.map(|(at, plan)| self.rule(at, plan)).collect(),
            overlay: BTreeMap::new(),
        }
    }

    fn rule(&self, at: usize, plan: &RulePlan) -> RuleExplanation {
        let backend = |(backend, recipe): (usize, &fairlead_model::recipe::RecipeBackend)| {
            let shares = plan.slots.iter().zip(&plan.recipe.weights);
            let own = shares.filter(|(slot, _)| usize::from(slot.backend) == backend);
            BackendExplanation {
                backend: backend_name(self.route, at, backend),
                weight: recipe.weight,
                share: own.map(|(_, weight)| *weight).sum(),
                members: self.members(at, backend, plan),
            }
        };
        RuleExplanation {
            rule: u16::try_from(at).unwrap_or(u16::MAX),
            backends: plan.recipe.backends.iter().enumerate().map(backend).collect(),
        }
    }

    fn members(&self, rule: usize, backend: usize, plan: &RulePlan) -> Vec<MemberShare> {
        let Some(of_route) = self.route.rules.get(rule) else { return Vec::new() };
        let none = Verdicts::new();
        let verdicts = self.verdicts.get(rule).and_then(|r| r.get(backend)?.as_deref());
        let verdicts = verdicts.unwrap_or(&none);
        let mut shares = Vec::new();
        if let Serve::Members { tiers, .. } = &plan.recipe.backends[backend].serve {
            let view = BackendView { step: self, rule: of_route, plan, backend, tiers, verdicts };
            for (at, tier) in tiers.iter().enumerate() {
                shares.extend(tier.candidates.iter().map(|c| view.candidate(at, tier, c)));
            }
        }
        let without: Vec<MemberShare> = verdicts
            .iter()
            .filter(|(id, _)| !shares.iter().any(|s| s.member == **id))
            .map(|(id, verdict)| self.without_slot(of_route, id, verdict))
            .collect();
        shares.extend(without);
        shares
    }

    fn place(&self, member: &MemberId) -> Place {
        self.places.get(member).cloned().unwrap_or_default()
    }

    fn answer(&self, member: &MemberId, verdict: &Verdict) -> Answer {
        verdict.answer((self.entry, &self.place(self.entry)), member)
    }

    fn tier_of(&self, rule: &Rule, member: &MemberId) -> Option<usize> {
        let (here, there) = (self.place(self.entry), self.place(member));
        tiers::tier_of(&rule.spread, (self.entry, &here), (member, &there))
    }

    /// A member that is no candidate.
    fn without_slot(&self, rule: &Rule, member: &MemberId, verdict: &Verdict) -> MemberShare {
        let reason = match self.answer(member, verdict) {
            Answer::No(reason) => reason,
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) | Answer::Out(_)
                if self.tier_of(rule, member).is_none() =>
            {
                Reason::NotInTiers
            }
            Answer::Out(reason) => reason,
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) => Reason::TooManyBackends,
        };
        let mut message = format!("{member} gets nothing: {}", clause(reason.sentence()));
        if reason == Reason::NoCrossingCa && self.places.get(self.entry).is_some_and(no_ca) {
            message = format!("{message} (that of the entry, {})", self.entry);
        }
        MemberShare {
            member: member.clone(),
            tier: None,
            tier_name: String::new(),
            split: None,
            ready: 0,
            expected: 0,
            share: 0,
            share_now: None,
            reason,
            message,
        }
    }
}

fn no_ca(place: &Place) -> bool {
    !place.has_crossing_ca
}

/// One backend of one rule at one entry.
struct BackendView<'a> {
    step: &'a Step<'a>,
    rule: &'a Rule,
    plan: &'a RulePlan,
    backend: usize,
    tiers: &'a [RecipeTier],
    verdicts: &'a Verdicts,
}

impl BackendView<'_> {
    fn candidate(&self, at: usize, tier: &RecipeTier, candidate: &Candidate) -> MemberShare {
        let member = &candidate.member;
        let share = self.share(candidate);
        let reason = self.reason(at, tier, candidate, share);
        let in_policy = self.step.tier_of(self.rule, member).unwrap_or(at);
        let tier_name = tiers::name_of(&self.rule.spread, in_policy);
        // Nothing is expected of a drained member; counts would only look like ill health.
        let counts = match candidate.standing {
            Standing::Out if candidate.expected == 0 => String::new(),
            _ => format!(", {} of {} endpoints ready", candidate.ready, candidate.expected),
        };
        let place = format!("tier {} {tier_name}", in_policy + 1);
        let why = match reason {
            Reason::AsAsked if share > 0 => String::new(),
            Reason::AsAsked => ": its part is less than 0.01 %".to_owned(),
            Reason::NothingReadyAnywhere => {
                ": nothing is ready for it anywhere, so its share fails here".to_owned()
            }
            Reason::BelowMinEndpoints => {
                format!(": {} ({})", clause(reason.sentence()), tier.endpoints_min)
            }
            reason => {
                format!(": {}{}", clause(reason.sentence()), self.when(reason, candidate, share))
            }
        };
        MemberShare {
            member: member.clone(),
            tier: u16::try_from(in_policy).ok(),
            tier_name,
            split: Some(tier.split),
            ready: candidate.ready,
            expected: candidate.expected,
            share,
            share_now: None,
            reason,
            message: format!("{member} gets {}, {place}{counts}{why}", percent(share)),
        }
    }

    /// How far it is given back, and when it is given more.
    fn when(&self, reason: Reason, candidate: &Candidate, share: u32) -> String {
        let verdict = self.verdicts.get(&candidate.member);
        match (reason, verdict.map(|v| self.step.answer(&candidate.member, v))) {
            (Reason::Ramping, Some(Answer::Ramping(Ramp { percent, next_at, full_at }))) => {
                let (next, full) = (time_of_day(next_at), time_of_day(full_at));
                format!("; {percent} % of its part now, the next step at {next}, all at {full}")
            }
            (Reason::Drained, Some(Answer::Ramping(Ramp { percent, next_at, full_at }))) => {
                let (next, gone) = (time_of_day(next_at), time_of_day(full_at));
                format!("; {percent} % of its part still, the next step at {next}, none at {gone}")
            }
            (Reason::Recovering, Some(Answer::Waiting(_))) if share > 0 => {
                "; nobody else can serve, so it does not wait".to_owned()
            }
            (Reason::Recovering, Some(Answer::Waiting(Some(until)))) => {
                format!("; it is given traffic from {}", time_of_day(until))
            }
            (Reason::AwaitingFailback, _) => {
                format!("; give it back with: fairlead failback {}", candidate.member)
            }
            _ => String::new(),
        }
    }

    fn share(&self, candidate: &Candidate) -> u32 {
        self.plan.recipe.weights.get(usize::from(candidate.slot)).copied().unwrap_or(0)
    }

    fn reason(&self, at: usize, tier: &RecipeTier, candidate: &Candidate, share: u32) -> Reason {
        if candidate.standing == Standing::Out {
            let verdict = self.verdicts.get(&candidate.member);
            return match verdict.map(|v| self.step.answer(&candidate.member, v)) {
                Some(Answer::Out(reason) | Answer::No(reason)) => reason,
                // A decision that was kept: the report is newer.
                Some(Answer::Able | Answer::Ramping(_) | Answer::Waiting(_)) | None => Reason::Down,
            };
        }
        let place = self.step.place(&candidate.member);
        if share > 0 {
            return match place.state {
                _ if candidate.ready == 0 => Reason::NothingReadyAnywhere,
                _ if candidate.ramp_percent == 0 => Reason::Recovering,
                _ if candidate.ramp_percent < 100 => match place.traffic {
                    TrafficState::Draining => Reason::Drained,
                    TrafficState::Active | TrafficState::Standby => Reason::Ramping,
                },
                MemberState::AgentLost => Reason::AgentLost,
                MemberState::Suspect => Reason::Suspect,
                MemberState::Recovering => Reason::Recovering,
                MemberState::Joined | MemberState::Up | MemberState::Down => Reason::AsAsked,
            };
        }
        let weighs = tier.split != Split::Weights || candidate.weight > 0;
        if self.plan.recipe.backends[self.backend].weight == 0 || !weighs {
            Reason::WeightZero
        } else if candidate.ready == 0 {
            Reason::NoReadyEndpoints
        } else if candidate.ready < tier.endpoints_min {
            Reason::BelowMinEndpoints
        } else if candidate.ramp_percent == 0 {
            Reason::Recovering
        } else if self.tiers[..at].iter().flat_map(|t| &t.candidates).any(|c| self.share(c) > 0) {
            match place.traffic {
                TrafficState::Standby => Reason::Standby,
                TrafficState::Active | TrafficState::Draining => Reason::EarlierTierServes,
            }
        } else {
            Reason::AsAsked
        }
    }
}

/// A sentence as part of another one.
fn clause(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Ten-thousandths as people read them.
fn percent(share: u32) -> String {
    format!("{}.{:02} %", share / 100, share % 100)
}

/// A time within the day that it is part of: steps are minutes apart at most.
fn time_of_day(at: Millis) -> String {
    let seconds = at.0.div_ceil(1_000) % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}
