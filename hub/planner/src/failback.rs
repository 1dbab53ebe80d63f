//! Giving traffic back, and leading it away on request: who was out, since when it is back, and how
//! much it is given by now.
//!
//! A member that was out of health waits until it was back for a while, then gets its traffic in at
//! most five steps; one that a person had drained needs no wait, for nothing was wrong with it. With
//! failback by hand a person starts it. A member that never was out never ramps, and endpoints that
//! become ready again do not either: only whole members come back into a herd.
//!
//! ```text
//!  out ──back──▶ waiting ──after_s, or a person──▶ 20 % ─▶ 40 % ─▶ 60 % ─▶ 80 % ─▶ all (forgotten)
//!   ▲               │ in doubt                       │      each ramp_s / 4
//!   └───────────────┴──────────── out again ─────────┘
//! ```
//!
//! A drain goes the same way down: 80 % at once, and nothing after `drain_s`. A member that was not
//! whole when it was drained goes out at once, and so does one of which the last plan knows nothing.
//!
//! Waiting is [`Answer::Waiting`] and not out: it ends at once when nobody else can serve.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::health::{MemberState, Reach};
use fairlead_model::policy::{
    Failback, FailbackMode, MemberSpec, Policy, StaleMember, TrafficState,
};
use fairlead_model::{MemberId, Millis, Reason};

use crate::fleet::Member;
use crate::{Absence, Absences, Answer, Memory, Ramp};

/// Most steps from nothing to all.
pub const STEPS: u64 = 5;

/// Every member's absences, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct Failbacks {
    pub(crate) members: BTreeMap<MemberId, Absences>,
    pub(crate) wake_at: Option<Millis>,
}

/// How a member stands with respect to one kind of absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// It is out.
    Out,
    /// Nothing proves that it is back: one that was out stays so, any other is untouched.
    Doubtful,
    Here,
}

/// How far a member is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It is out still.
    Out,
    /// It is back and waits until then; none = for a person.
    Waiting(Option<Millis>),
    Ramping(Ramp),
    Whole,
}

/// What else decides how far a member is given back.
#[derive(Debug, Clone, Copy)]
struct Rules {
    now: Millis,
    failback: Failback,
    drain_s: u32,
    kind: Kind,
}

/// Kinds of absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Out of health, or of fresh reports.
    Ill,
    /// Drained by a person.
    Drained,
}

/// Brings the memory of absences up to date.
pub(crate) fn settle(
    now: Millis,
    policy: &Policy,
    members: &BTreeMap<MemberId, Member<'_>>,
    memory: &Memory,
) -> Failbacks {
    let rules = || policy.routes.values().flat_map(|route| &route.rules);
    let configs: BTreeSet<Failback> = rules().map(|rule| rule.spread.failback).collect();
    let stale: BTreeSet<u32> = rules()
        .filter_map(|rule| match rule.spread.stale {
            StaleMember::Keep => None,
            StaleMember::DrainAfter(seconds) => Some(seconds),
        })
        .collect();
    let none = Absences::default();
    let mut failbacks = Failbacks::default();
    for (id, member) in members {
        // The clock may have been set back: what is in the future counts from now.
        let before = &memory.absences.get(id).unwrap_or(&none).not_after(now);
        let step = Step {
            now,
            configs: &configs,
            asked: member.spec.failback_asked,
            drain_s: member.spec.drain_s,
            is_whole: memory.counts.contains_key(id) && *before == none,
        };
        let after = Absences {
            ill: step.of(before.ill, Kind::Ill, illness(member, now)),
            drained: step.of(before.drained, Kind::Drained, drain(member)),
            stale: stale
                .iter()
                .filter_map(|seconds| {
                    let before = before.stale.get(seconds).copied();
                    let presence = staleness(member, now, *seconds);
                    Some((*seconds, step.of(before, Kind::Ill, presence)?))
                })
                .collect(),
        };
        failbacks.wake_at = failbacks.wake_at.into_iter().chain(step.wake_at(&after)).min();
        if after != none {
            failbacks.members.insert(id.clone(), after);
        }
    }
    failbacks
}

/// The memory when the brake kept what was decided before: nobody was taken out by this plan, so
/// nobody has to come back.
pub(crate) fn without_new_absences(
    after: BTreeMap<MemberId, Absences>,
    before: &BTreeMap<MemberId, Absences>,
) -> BTreeMap<MemberId, Absences> {
    let known = |after: Option<Absence>, before: Option<Absence>| match (after, before) {
        (Some(after), Some(before))
            if after.back_since.is_none() && before.back_since.is_some() =>
        {
            Some(before)
        }
        (Some(after), None) if after.back_since.is_none() => None,
        (after, _) => after,
    };
    let none = Absences::default();
    let member = |(id, after): (MemberId, Absences)| {
        let before = before.get(&id).unwrap_or(&none);
        let stale = after.stale.into_iter().filter_map(|(seconds, absence)| {
            Some((seconds, known(Some(absence), before.stale.get(&seconds).copied())?))
        });
        let kept = Absences {
            ill: known(after.ill, before.ill),
            // A drain acts under the brake too.
            drained: after.drained,
            stale: stale.collect(),
        };
        (kept != none).then_some((id, kept))
    };
    after.into_iter().filter_map(member).collect()
}

impl Absences {
    /// What a member that is able otherwise may be given for traffic that comes by its door.
    pub(crate) fn remote(
        &self,
        (now, member): (Millis, &MemberSpec),
        failback: Failback,
        stale: StaleMember,
    ) -> Answer {
        let drain_s = member.drain_s;
        let of_stale = match stale {
            StaleMember::Keep => None,
            StaleMember::DrainAfter(seconds) => self.stale.get(&seconds),
        };
        let kinds = [
            (self.ill.as_ref(), Kind::Ill),
            (self.drained.as_ref(), Kind::Drained),
            (of_stale, Kind::Ill),
        ];
        let absences = kinds.into_iter().filter_map(|(absence, kind)| Some((absence?, kind)));
        let all = absences
            .map(|(absence, kind)| progress(absence, Rules { now, failback, drain_s, kind }));
        answer(failback, all)
    }

    /// The same for traffic that enters by its own gateway: that one was never out of reach.
    pub(crate) fn local(&self, (now, member): (Millis, &MemberSpec), failback: Failback) -> Answer {
        let rules = Rules { now, failback, drain_s: member.drain_s, kind: Kind::Drained };
        answer(failback, self.drained.iter().map(|absence| progress(absence, rules)))
    }
}

/// The least of several.
fn answer(failback: Failback, all: impl Iterator<Item = Progress>) -> Answer {
    let mut least = Answer::Able;
    for progress in all {
        least = match (progress, least) {
            (_, Answer::Out(_)) | (Progress::Whole, _) => least,
            (Progress::Waiting(None), _) => Answer::Out(Reason::AwaitingFailback),
            (Progress::Out, _) => match failback.mode {
                FailbackMode::Manual => Answer::Out(Reason::AwaitingFailback),
                FailbackMode::Auto => Answer::Waiting(None),
            },
            (Progress::Waiting(until), Answer::Waiting(other)) => {
                Answer::Waiting(other.and(until.max(other)))
            }
            (Progress::Waiting(until), _) => Answer::Waiting(until),
            (Progress::Ramping(_), Answer::Waiting(_)) => least,
            (Progress::Ramping(ramp), Answer::Ramping(other)) if other.percent <= ramp.percent => {
                least
            }
            (Progress::Ramping(ramp), _) => Answer::Ramping(ramp),
        };
    }
    least
}

fn progress(absence: &Absence, rules: Rules) -> Progress {
    let Some(back) = absence.back_since else { return away(absence, rules) };
    let asked = absence.asked_since.map(|asked| asked.max(back));
    let start = match (rules.kind, rules.failback.mode) {
        (Kind::Drained, _) => Some(back),
        (Kind::Ill, FailbackMode::Manual) => asked,
        (Kind::Ill, FailbackMode::Auto) => {
            let healthy = back.plus(u64::from(rules.failback.after_s) * 1_000);
            Some(asked.map_or(healthy, |asked| asked.min(healthy)))
        }
    };
    match start {
        None => Progress::Waiting(None),
        Some(start) if rules.now < start => Progress::Waiting(Some(start)),
        Some(start) => ramp(start, rules.failback.ramp_s, rules.now),
    }
}

fn away(absence: &Absence, rules: Rules) -> Progress {
    let (Kind::Drained, Some(since)) = (rules.kind, absence.out_since) else {
        return Progress::Out;
    };
    let (step_ms, gone_ms) =
        (u64::from(rules.drain_s) * 1_000 / (STEPS - 1), rules.now.since(since));
    let left = (STEPS - 1).saturating_sub(gone_ms.checked_div(step_ms).unwrap_or(STEPS));
    if left == 0 {
        return Progress::Out;
    }
    Progress::Ramping(Ramp {
        percent: u8::try_from(left * 100 / STEPS).expect("less than a hundred"),
        next_at: since.plus((STEPS - left) * step_ms),
        full_at: since.plus((STEPS - 1) * step_ms),
    })
}

fn ramp(start: Millis, ramp_s: u32, now: Millis) -> Progress {
    let (whole_ms, gaps) = (u64::from(ramp_s) * 1_000, STEPS - 1);
    let full_at = start.plus(whole_ms);
    if now >= full_at {
        return Progress::Whole;
    }
    let step = now.since(start) * gaps / whole_ms;
    let percent = (step + 1) * 100 / STEPS;
    Progress::Ramping(Ramp {
        percent: u8::try_from(percent).expect("less than the last step"),
        next_at: start.plus(((step + 1) * whole_ms).div_ceil(gaps)),
        full_at,
    })
}

struct Step<'a> {
    now: Millis,
    configs: &'a BTreeSet<Failback>,
    asked: Option<Millis>,
    drain_s: u32,
    /// The plan before knew it, and had given it all.
    is_whole: bool,
}

impl Step<'_> {
    /// The absence after this look; none = there is none, or all is given back everywhere.
    fn of(&self, before: Option<Absence>, kind: Kind, presence: Presence) -> Option<Absence> {
        let next = match (presence, before) {
            (Presence::Out, Some(before)) if before.back_since.is_none() => before,
            (Presence::Out, _) => Absence {
                out_since: self.is_whole.then_some(self.now),
                back_since: None,
                asked_before: self.asked,
                asked_since: None,
            },
            (Presence::Doubtful | Presence::Here, None) => return None,
            (Presence::Doubtful, Some(before)) if self.has_begun(&before, kind) => before,
            (Presence::Doubtful, Some(before)) => Absence { back_since: None, ..before },
            (Presence::Here, Some(before)) => {
                let since = before.back_since.unwrap_or(self.now);
                Absence { back_since: Some(since), ..before }
            }
        };
        let is_new_request = self.asked.is_some() && self.asked != next.asked_before;
        let asked_since = next.asked_since.or(is_new_request.then_some(self.now));
        let next = Absence { asked_since, ..next };
        (!self.is_over(&next, kind)).then_some(next)
    }

    fn progress(&self, absence: &Absence, kind: Kind) -> impl Iterator<Item = Progress> {
        let (now, drain_s, absence) = (self.now, self.drain_s, *absence);
        let rules = move |failback: &Failback| Rules { now, failback: *failback, drain_s, kind };
        self.configs.iter().map(move |failback| progress(&absence, rules(failback)))
    }

    fn has_begun(&self, absence: &Absence, kind: Kind) -> bool {
        self.progress(absence, kind).any(|p| matches!(p, Progress::Ramping(_) | Progress::Whole))
    }

    fn is_over(&self, absence: &Absence, kind: Kind) -> bool {
        absence.back_since.is_some() && self.progress(absence, kind).all(|p| p == Progress::Whole)
    }

    fn wake_at(&self, absences: &Absences) -> Option<Millis> {
        let ill = absences.ill.iter().chain(absences.stale.values()).map(|a| (a, Kind::Ill));
        let all = ill.chain(absences.drained.iter().map(|a| (a, Kind::Drained)));
        let progress = all.flat_map(|(absence, kind)| self.progress(absence, kind));
        progress
            .filter_map(|progress| match progress {
                Progress::Waiting(until) => until,
                Progress::Ramping(ramp) => Some(ramp.next_at),
                Progress::Out | Progress::Whole => None,
            })
            .min()
    }
}

fn drain(member: &Member<'_>) -> Presence {
    match member.spec.traffic {
        TrafficState::Draining => Presence::Out,
        TrafficState::Active | TrafficState::Standby => Presence::Here,
    }
}

fn staleness(member: &Member<'_>, now: Millis, seconds: u32) -> Presence {
    if member.is_stale(now, seconds) { Presence::Out } else { Presence::Here }
}

fn illness(member: &Member<'_>, now: Millis) -> Presence {
    if member.ill(now).is_some() {
        return Presence::Out;
    }
    let proven = member.health.witnesses.values().any(|w| w.reach == Reach::Reachable);
    match member.health.state {
        MemberState::Up | MemberState::Recovering => Presence::Here,
        MemberState::Joined | MemberState::AgentLost | MemberState::Suspect if proven => {
            Presence::Here
        }
        // Its own word is all there is: enough to keep what it has, not enough to be given more.
        MemberState::Joined | MemberState::AgentLost | MemberState::Suspect | MemberState::Down => {
            Presence::Doubtful
        }
    }
}
