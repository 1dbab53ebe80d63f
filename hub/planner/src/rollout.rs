//! Changes of users that one member tries before the others get them.
//!
//! Owns which change is large enough, who tries it, what counts as having gone well, and when it is stopped.
//! Staged is what users write, and nothing else: both the rules of before and those that are tried are decided
//! anew with every plan, so that failover, drains and withdrawn consent act in either at once. What a person
//! asks for at once (a pin), and what takes a reference away, is never staged.
//!
//! ```text
//!             large edit                 taken, and goes well
//!  at rest ──────────────▶ tried at one ──────────────────────▶ at rest, everywhere
//!     ▲                      │  │ refused, late, fails
//!     └─ taken back ─────────┘  ▼
//!     └─ taken back ──────── stopped ── another edit ──▶ tried anew
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::plan::{EntryDecision, RouteDecision, SlotTarget};
use fairlead_model::policy::{BackendTarget, GlobalRoute, Policy};
use fairlead_model::recipe::WEIGHT_SUM;
use fairlead_model::{Json, MemberId, Millis, Reason, RouteKey};
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::gateways::LocalGateways;
use crate::routes::Decided;
use crate::{
    FleetInput, Report, doors, explain::backend_name, failback, gateways, routes, stability,
};

/// Requests count from so long after the gateways took the change: what is told before may be of requests
/// that went by the rules of before.
pub const SETTLED_AFTER_MS: u64 = 5_000;

/// When changes are tried at one member first, and what is asked of them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutSettings {
    /// Share of a rule's requests that a change moves, in percent, above which it is tried first.
    pub above_percent: u8,
    /// Who tries; none, or one whom the change does not concern: the one with the least traffic.
    pub member: Option<MemberId>,
    /// Share of the requests there that may not fail, in percent.
    pub failed_percent: u8,
    /// Requests below which nothing is known.
    pub requests_min: u64,
    /// It must go well for that long.
    pub watch_ms: u64,
    /// Enough requests must have come by then.
    pub watch_ms_max: u64,
    /// The gateways must have taken it by then.
    pub take_ms_max: u64,
    /// What happens when too few requests have come.
    pub unheard: Unheard,
}

/// What happens to a change of which nothing is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// It goes on.
    GoOn,
    /// It is stopped.
    Stop,
}

impl Default for RolloutSettings {
    fn default() -> Self {
        Self {
            above_percent: 20,
            member: None,
            failed_percent: 5,
            requests_min: 50,
            watch_ms: 15_000,
            watch_ms_max: 120_000,
            take_ms_max: 60_000,
            unheard: Unheard::Stop,
        }
    }
}

/// What the planner is told for this.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RolloutInput {
    /// None: every change goes everywhere at once.
    pub settings: Option<RolloutSettings>,
    /// What became of the changes that are being tried, as of [`Stage::Tried`] in the memory.
    pub observed: BTreeMap<RouteKey, Observed>,
    /// Requests per 1,000 seconds, by route and entry, where they are known.
    pub rates: BTreeMap<RouteKey, BTreeMap<MemberId, u64>>,
    /// Routes that a person wants to be so at once.
    pub at_once: BTreeSet<RouteKey>,
}

/// What became of a change at the member that tries it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Whether its gateways took it.
    pub taken: Taken,
    /// Requests of the route there, from [`SETTLED_AFTER_MS`] after they did.
    pub requests: u64,
    /// Of these, those that failed.
    pub failed: u64,
}

/// Whether gateways took a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Taken {
    /// Nothing was heard yet.
    #[default]
    NotYet,
    /// They did.
    Yes,
    /// They did not, and why.
    Refused(Reason, String),
}

/// A change that is not everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The route as it is everywhere else.
    pub before: Arc<GlobalRoute>,
    /// The route as its user wants it.
    pub asked: Arc<GlobalRoute>,
    /// Share of a rule's requests that the change moves at most, in percent.
    pub moved_percent: u8,
    /// How far it is.
    pub stage: Stage,
}

/// How far a change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// One member tries it.
    Tried {
        /// Who.
        member: MemberId,
        /// Since when.
        since: Millis,
        /// When its gateways had taken it.
        taken_at: Option<Millis>,
    },
    /// Nobody has it.
    Stopped {
        /// Why, with figures.
        message: String,
    },
}

/// What one member tries.
pub(crate) struct Trial {
    pub(crate) member: MemberId,
    pub(crate) route: Arc<GlobalRoute>,
}

/// What is to be planned.
pub(crate) struct Settled {
    /// With the routes of before where a change is not everywhere.
    pub(crate) policy: Arc<Policy>,
    pub(crate) trials: BTreeMap<RouteKey, Trial>,
    pub(crate) memory: BTreeMap<RouteKey, Rollout>,
    pub(crate) told: BTreeMap<RouteKey, (Reason, String)>,
    pub(crate) wake_at: Option<Millis>,
}

/// Which changes go everywhere, which are tried, and which are held back.
pub(crate) fn settle(input: &FleetInput) -> Settled {
    let mut settled = Settled {
        policy: Arc::clone(&input.policy),
        trials: BTreeMap::new(),
        memory: BTreeMap::new(),
        told: BTreeMap::new(),
        wake_at: None,
    };
    let Some(settings) = &input.rollout.settings else { return settled };
    let changes = changes(input);
    if changes.is_empty() {
        return settled;
    }
    let counts = stability::settle(input);
    let mut report = Report::default();
    let doors = doors::examine(input, &mut report);
    let mut fleet = Fleet::gather(input, &counts.in_use, &doors.doors);
    fleet.failbacks = failback::settle(input.now, &input.policy, &fleet.members, &input.memory);
    let gateways = gateways::assign(&fleet, &mut report);
    let bench = Bench { input, settings, fleet: &fleet, gateways: &gateways, report: &report };
    for (key, before, asked) in changes {
        let next = bench.next(key, &before, asked);
        settled.told.extend(next.told().map(|told| (key.clone(), told)));
        let (rollout, wake_at) = match next {
            Next::Everywhere { .. } => continue,
            Next::Held(rollout, wake_at) => (rollout, wake_at),
        };
        settled.wake_at = settled.wake_at.into_iter().chain(wake_at).min();
        Arc::make_mut(&mut settled.policy).routes.insert(key.clone(), Arc::clone(&rollout.before));
        if let Stage::Tried { member, .. } = &rollout.stage {
            let route = Arc::clone(&rollout.asked);
            settled.trials.insert(key.clone(), Trial { member: member.clone(), route });
        }
        settled.memory.insert(key.clone(), rollout);
    }
    settled
}

impl Settled {
    /// Gives those who try something its rules.
    pub(crate) fn try_out(
        &self,
        fleet: &Fleet<'_>,
        gateways: &LocalGateways,
        decided: &mut Decided,
        report: &mut Report,
    ) {
        for (key, trial) in &self.trials {
            let (mut tried, verdicts) = routes::decide_one(fleet, gateways, &trial.route, report);
            if let (Some(decision), Some(mut entry)) =
                (decided.get_mut(key), tried.entries.remove(&trial.member))
            {
                entry.route = Some(Arc::clone(&trial.route));
                decision.entries.insert(trial.member.clone(), entry);
            }
            if let Some(route) = report.routes.get_mut(key) {
                route.verdicts_tried = verdicts;
            }
        }
        for (key, told) in &self.told {
            if let Some(route) = report.routes.get_mut(key) {
                route.rollout = Some(told.clone());
            }
        }
    }
}

type Changed<'a> = (&'a RouteKey, Arc<GlobalRoute>, &'a Arc<GlobalRoute>);

/// Routes whose users ask for something else than what is everywhere, and may have to wait for it.
fn changes(input: &FleetInput) -> Vec<Changed<'_>> {
    let mut changes = Vec::new();
    for (key, asked) in &input.policy.routes {
        let decided = || input.memory.decisions.get(key).map(|decision| &decision.route);
        let kept = input.memory.rollouts.get(key).map(|rollout| &rollout.before);
        let Some(before) = kept.or_else(decided) else { continue };
        if before == asked
            || input.rollout.at_once.contains(key)
            || loses_a_reference(before, asked)
        {
            continue;
        }
        let before = attached_as(before, asked);
        if before != *asked {
            changes.push((key, before, asked));
        }
    }
    changes
}

/// Somebody withdrew a grant: what he no longer agrees to must not go on.
fn loses_a_reference(before: &GlobalRoute, asked: &GlobalRoute) -> bool {
    let invalid = |route: &GlobalRoute| {
        let backends = route.rules.iter().flat_map(|rule| &rule.backends);
        backends.filter(|backend| matches!(backend.target, BackendTarget::Invalid(_))).count()
    };
    let mirrors =
        |route: &GlobalRoute| route.rules.iter().map(|rule| rule.mirrors.len()).sum::<usize>();
    invalid(asked) > invalid(before) || mirrors(asked) < mirrors(before)
}

/// The rules of before where the route attaches now: that is for its Gateways to say.
fn attached_as(before: &Arc<GlobalRoute>, asked: &GlobalRoute) -> Arc<GlobalRoute> {
    let mut before = Arc::clone(before);
    let same = before.parents == asked.parents
        && before.labels == asked.labels
        && before.api_version == asked.api_version
        && before.created_at == asked.created_at
        && before.spec.get("parentRefs") == asked.spec.get("parentRefs");
    if !same {
        let route = Arc::make_mut(&mut before);
        route.parents.clone_from(&asked.parents);
        route.labels.clone_from(&asked.labels);
        route.api_version.clone_from(&asked.api_version);
        route.created_at = asked.created_at;
        if let (Some(fields), Some(parents)) =
            (Arc::make_mut(&mut route.spec).as_object_mut(), asked.spec.get("parentRefs"))
        {
            fields.insert("parentRefs".to_owned(), parents.clone());
        }
    }
    before
}

/// What becomes of a change now.
enum Next {
    /// It goes everywhere; why, where that is worth telling.
    Everywhere { unheard: bool },
    /// It does not; until when at most.
    Held(Rollout, Option<Millis>),
}

impl Next {
    fn told(&self) -> Option<(Reason, String)> {
        match self {
            Self::Everywhere { unheard: false } => None,
            Self::Everywhere { unheard: true } => {
                let text = "goes on to all members without evidence: too few requests came";
                Some((Reason::AsAsked, text.to_owned()))
            }
            Self::Held(Rollout { stage: Stage::Stopped { message }, .. }, _) => {
                Some((Reason::RolloutStopped, message.clone()))
            }
            Self::Held(Rollout { stage: Stage::Tried { member, .. }, moved_percent, .. }, _) => {
                let text = format!(
                    "tried at {member} first, since it moves up to {moved_percent} % of a rule's requests; \
                     the others keep what was before"
                );
                Some((Reason::RollingOut, text))
            }
        }
    }
}

/// What a change is judged with.
struct Bench<'a> {
    input: &'a FleetInput,
    settings: &'a RolloutSettings,
    fleet: &'a Fleet<'a>,
    gateways: &'a LocalGateways,
    report: &'a Report,
}

impl Bench<'_> {
    fn next(&self, key: &RouteKey, before: &Arc<GlobalRoute>, asked: &Arc<GlobalRoute>) -> Next {
        let known = self.input.memory.rollouts.get(key).filter(|known| known.asked == *asked);
        if let Some(Rollout { stage: Stage::Stopped { message }, moved_percent, .. }) = known {
            let stage = Stage::Stopped { message: message.clone() };
            return self.hold((before, asked), *moved_percent, stage, None);
        }
        let moved = self.moved(before, asked);
        if let Some(Rollout { stage: Stage::Tried { member, since, taken_at }, .. }) = known
            && self.can_try(member, &moved)
        {
            let percent = known.map_or(0, |known| known.moved_percent);
            let observed = self.input.rollout.observed.get(key).cloned().unwrap_or_default();
            return match self.judge(member, *since, *taken_at, &observed) {
                Verdict::GoOn { unheard } => Next::Everywhere { unheard },
                Verdict::Wait { taken_at, until } => {
                    let (member, since) = (member.clone(), *since);
                    let stage = Stage::Tried { member, since, taken_at };
                    self.hold((before, asked), percent, stage, Some(until))
                }
                Verdict::Stop(message) => {
                    self.hold((before, asked), percent, Stage::Stopped { message }, None)
                }
            };
        }
        let percent = moved.values().copied().max().unwrap_or(0);
        match self.choose(key, &moved) {
            Some(member) if percent > self.settings.above_percent => {
                let since = self.input.now;
                let until = since.plus(self.settings.take_ms_max);
                let stage = Stage::Tried { member, since, taken_at: None };
                self.hold((before, asked), percent, stage, Some(until))
            }
            _ => Next::Everywhere { unheard: false },
        }
    }

    fn hold(
        &self,
        (before, asked): (&Arc<GlobalRoute>, &Arc<GlobalRoute>),
        moved_percent: u8,
        stage: Stage,
        until: Option<Millis>,
    ) -> Next {
        let (before, asked) = (Arc::clone(before), Arc::clone(asked));
        Next::Held(Rollout { before, asked, moved_percent, stage }, until)
    }

    /// How much the change moves at each entry, in percent of a rule's requests; entries where nothing
    /// moves are absent.
    fn moved(&self, before: &Arc<GlobalRoute>, asked: &Arc<GlobalRoute>) -> BTreeMap<MemberId, u8> {
        let decide = |route| routes::decide_one(self.fleet, self.gateways, route, self.report);
        let ((before, _), (asked, _)) = (decide(before), decide(asked));
        let otherwise = differs_otherwise(&before.route, &asked.route);
        let moved = |(id, entry): (&MemberId, &EntryDecision)| {
            let then = before.entries.get(id)?;
            let moved = match otherwise {
                true => 100,
                false => moved_percent((&before, then), (&asked, entry)),
            };
            (moved > 0).then(|| (id.clone(), moved))
        };
        asked.entries.iter().filter_map(moved).collect()
    }

    /// Who is gone, or whom the change does not concern any more, can try nothing.
    fn can_try(&self, member: &MemberId, moved: &BTreeMap<MemberId, u8>) -> bool {
        let facts = self.fleet.members.get(member);
        moved.contains_key(member) && facts.is_some_and(|m| m.ill(self.input.now).is_none())
    }

    /// The named one; else the one with the least traffic, but some; else the first.
    fn choose(&self, key: &RouteKey, moved: &BTreeMap<MemberId, u8>) -> Option<MemberId> {
        let able: Vec<&MemberId> = moved.keys().filter(|id| self.can_try(id, moved)).collect();
        if let Some(named) = self.settings.member.as_ref().filter(|id| able.contains(id)) {
            return Some(named.clone());
        }
        let rates = self.input.rollout.rates.get(key);
        let rate = |id: &MemberId| rates.and_then(|rates| rates.get(id)).copied().unwrap_or(0);
        let busy =
            able.iter().filter(|id| rate(id) > 0).min_by_key(|id| (rate(id), (**id).clone()));
        busy.or_else(|| able.first()).map(|id| (*id).clone())
    }

    fn judge(
        &self,
        member: &MemberId,
        since: Millis,
        taken_at: Option<Millis>,
        observed: &Observed,
    ) -> Verdict {
        let (now, settings) = (self.input.now, self.settings);
        let taken_at = match (taken_at, &observed.taken) {
            (Some(at), _) => at.min(now),
            (None, Taken::Yes) => now,
            (None, Taken::Refused(reason, message)) => {
                return Verdict::Stop(format!("{member} does not take it: {reason}: {message}"));
            }
            (None, Taken::NotYet) => {
                let until = since.min(now).plus(settings.take_ms_max);
                if until <= now {
                    let seconds = settings.take_ms_max / 1_000;
                    return Verdict::Stop(format!("{member} has not taken it within {seconds} s"));
                }
                return Verdict::Wait { taken_at: None, until };
            }
        };
        let Observed { requests, failed, .. } = *observed;
        let is_enough = requests >= settings.requests_min.max(1);
        let limit = u128::from(requests) * u128::from(settings.failed_percent);
        if is_enough && failed > 0 && u128::from(failed) * 100 >= limit {
            return Verdict::Stop(format!(
                "{failed} of {requests} requests that came in at {member} failed (limit {} %)",
                settings.failed_percent
            ));
        }
        let (early, late) =
            (taken_at.plus(settings.watch_ms), taken_at.plus(settings.watch_ms_max));
        match (is_enough, settings.unheard) {
            (true, _) if early <= now => Verdict::GoOn { unheard: false },
            (true, _) => Verdict::Wait { taken_at: Some(taken_at), until: early },
            (false, _) if late > now => Verdict::Wait { taken_at: Some(taken_at), until: late },
            (false, Unheard::GoOn) => Verdict::GoOn { unheard: true },
            (false, Unheard::Stop) => Verdict::Stop(format!(
                "{requests} requests came in at {member} within {} s, and {} are asked for",
                settings.watch_ms_max / 1_000,
                settings.requests_min
            )),
        }
    }
}

/// What is thought of a change that is being tried.
enum Verdict {
    GoOn { unheard: bool },
    Wait { taken_at: Option<Millis>, until: Millis },
    Stop(String),
}

/// Two versions differ in something other than where requests go: matches, filters, host names. How much
/// of the traffic that is cannot be told, so it counts as all of it.
fn differs_otherwise(before: &GlobalRoute, asked: &GlobalRoute) -> bool {
    let bare = |route: &GlobalRoute| {
        let mut spec = (*route.spec).clone();
        let rules = spec.get_mut("rules").and_then(Json::as_array_mut);
        for rule in rules.into_iter().flatten() {
            if let Some(fields) = rule.as_object_mut() {
                fields.remove("backendRefs");
            }
        }
        spec
    };
    let filters = |route: &GlobalRoute| -> BTreeSet<String> {
        let rules = route.spec.get("rules").and_then(Json::as_array);
        let refs =
            rules.into_iter().flatten().filter_map(|rule| rule.get("backendRefs")?.as_array());
        refs.flatten().filter_map(|one| one.get("filters")).map(Json::to_string).collect()
    };
    bare(before) != bare(asked) || filters(before) != filters(asked)
}

/// The largest share of a rule's requests that goes elsewhere, in percent, rounded up.
fn moved_percent(
    (before, then): (&RouteDecision, &EntryDecision),
    (asked, now): (&RouteDecision, &EntryDecision),
) -> u8 {
    if then.rules.len() != now.rules.len() {
        return 100;
    }
    let rules = 0..then.rules.len();
    let moved = rules.map(|at| {
        let shares = |decision: &RouteDecision, entry: &EntryDecision| {
            let mut shares: BTreeMap<(String, Option<MemberId>), u32> = BTreeMap::new();
            let rule = &entry.rules[at];
            for (slot, weight) in rule.slots.iter().zip(&rule.recipe.weights) {
                let member = match &slot.target {
                    SlotTarget::Remote { member, .. } => Some(member.clone()),
                    SlotTarget::AsWritten | SlotTarget::Local { .. } => None,
                };
                let backend = backend_name(&decision.route, at, usize::from(slot.backend));
                *shares.entry((backend, member)).or_default() += *weight;
            }
            shares
        };
        let (then, now) = (shares(before, then), shares(asked, now));
        let of = |shares: &BTreeMap<_, u32>, key| shares.get(key).copied().unwrap_or(0);
        let keys: BTreeSet<_> = then.keys().chain(now.keys()).collect();
        let more = keys.iter().map(|key| of(&now, key).saturating_sub(of(&then, key))).sum::<u32>();
        let less = keys.iter().map(|key| of(&then, key).saturating_sub(of(&now, key))).sum::<u32>();
        more.max(less)
    });
    let most = moved.max().unwrap_or(0);
    u8::try_from(most.min(WEIGHT_SUM).div_ceil(WEIGHT_SUM / 100)).unwrap_or(100)
}

#[cfg(test)]
#[path = "rollout_test.rs"]
mod tests;
