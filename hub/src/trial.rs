//! What became of changes that one member tries: gathers what the planner is told of them.
//!
//! Thin: who tries, and what that proves, is the planner's ([`fairlead_planner::RolloutInput`]). A member has
//! taken a change when it reports a plan that it was given since as applied, with nothing still on its way to
//! its gateways; how requests went there is told by their spans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::policy::GlobalRoute;
use fairlead_model::{MemberId, Millis, RouteKey};
use fairlead_planner::{
    Observed, Planned, Rollout, RolloutInput, RolloutSettings, SETTLED_AFTER_MS, Stage, Taken,
};

use crate::fleet::MemberNow;
use crate::traffic::Traffic;
use crate::view::exception_of_route;

/// While something is tried, it is looked at that often.
const LOOK_EVERY_MS: u64 = 2_000;

/// Which changes are tried, and what tells how they go.
pub struct Trials {
    /// None = no change is tried.
    pub settings: Option<RolloutSettings>,
    /// What gateways did.
    pub traffic: Arc<Traffic>,
}

/// What is known when a plan is made.
pub(crate) struct Sight<'a> {
    /// What is being tried.
    pub(crate) memory: &'a BTreeMap<RouteKey, Rollout>,
    pub(crate) members: &'a BTreeMap<MemberId, MemberNow>,
    /// Routes whose changes are never tried.
    pub(crate) pinned: BTreeSet<RouteKey>,
    pub(crate) now: Millis,
}

impl Trials {
    /// What the planner is told.
    pub(crate) fn input(&self, sight: Sight<'_>) -> RolloutInput {
        let Some(settings) = &self.settings else { return RolloutInput::default() };
        let observed = |(key, rollout): (&RouteKey, &Rollout)| match &rollout.stage {
            Stage::Tried { member, since, .. } => {
                let seen = self.traffic.watched(key, member);
                let taken = taken(sight.members.get(member), key, &rollout.asked, *since);
                let observed = Observed { taken, requests: seen.requests, failed: seen.failed };
                Some((key.clone(), observed))
            }
            Stage::Stopped { .. } => None,
        };
        RolloutInput {
            settings: Some(settings.clone()),
            observed: sight.memory.iter().filter_map(observed).collect(),
            rates: self.traffic.rates(sight.now),
            at_once: sight.pinned,
        }
    }

    /// Counts from now on what tells of the changes that are tried.
    pub(crate) fn watch(&self, memory: &BTreeMap<RouteKey, Rollout>) {
        self.traffic.watch(watched(memory));
    }
}

/// Whether a member has taken a change that it was given since then.
fn taken(member: Option<&MemberNow>, key: &RouteKey, route: &GlobalRoute, since: Millis) -> Taken {
    let Some(now) = member else { return Taken::NotYet };
    let said = &now.said;
    let Some(applied) = &said.applied else { return Taken::NotYet };
    let is_newer = said.sent_at.is_some_and(|at| at >= since);
    if !is_newer || !applied.complete || Some(applied.number) != said.sent {
        return Taken::NotYet;
    }
    if let Some((reason, message)) = exception_of_route(now, key, &route.api_version) {
        return Taken::Refused(reason, message);
    }
    if applied.moving > 0 { Taken::NotYet } else { Taken::Yes }
}

/// What is to be counted from now on.
fn watched(memory: &BTreeMap<RouteKey, Rollout>) -> BTreeMap<(RouteKey, MemberId), Millis> {
    let watch = |(key, rollout): (&RouteKey, &Rollout)| match &rollout.stage {
        Stage::Tried { member, taken_at: Some(at), .. } => {
            Some(((key.clone(), member.clone()), at.plus(SETTLED_AFTER_MS)))
        }
        Stage::Tried { taken_at: None, .. } | Stage::Stopped { .. } => None,
    };
    memory.iter().filter_map(watch).collect()
}

/// When to plan again: soon while something is tried, since what is heard of it does not wake the planner.
pub(crate) fn wake_at(planned: &Planned, now: Millis) -> Option<Millis> {
    let tried = |rollout: &Rollout| matches!(rollout.stage, Stage::Tried { .. });
    let look = planned.memory.rollouts.values().any(tried).then(|| now.plus(LOOK_EVERY_MS));
    planned.wake_at.into_iter().chain(look).min()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::session::{ApplyReport, Exception};
    use fairlead_model::{PlanNumber, Reason};
    use serde_json::json;

    fn route() -> GlobalRoute {
        serde_json::from_value(json!({"key": "HTTPRoute/shop/cart", "created_at": 0, "labels": {},
            "spec": {}, "api_version": "gateway.networking.k8s.io/v1", "parents": [], "rules": []}))
        .unwrap()
    }

    fn mk_member(applied: ApplyReport, sent_at: u64) -> MemberNow {
        let mut now = MemberNow::default();
        now.said.sent = Some(PlanNumber::new(1, 5));
        now.said.sent_at = Some(Millis(sent_at));
        now.said.applied = Some(applied);
        now
    }

    #[test]
    fn taken_is_what_is_applied_of_a_plan_that_was_given_since() {
        let of = |member: &MemberNow| taken(Some(member), &route().key, &route(), Millis(100));
        let whole =
            ApplyReport { number: PlanNumber::new(1, 5), complete: true, ..ApplyReport::default() };
        assert_eq!(of(&mk_member(whole.clone(), 100)), Taken::Yes);
        assert_eq!(of(&mk_member(whole.clone(), 99)), Taken::NotYet, "the plan of before");
        let older = ApplyReport { number: PlanNumber::new(1, 4), ..whole.clone() };
        assert_eq!(of(&mk_member(older, 100)), Taken::NotYet);
        let moving = ApplyReport { moving: 1, ..whole.clone() };
        assert_eq!(of(&mk_member(moving, 100)), Taken::NotYet);
        let id = "gateway.networking.k8s.io/v1/HTTPRoute/shop/cart-global".parse().unwrap();
        let exception = Exception { reason: Reason::FieldUnknown, message: "x".into() };
        let refused = ApplyReport { exceptions: [(id, exception)].into(), ..whole };
        assert_eq!(of(&mk_member(refused, 100)), Taken::Refused(Reason::FieldUnknown, "x".into()));
        assert_eq!(taken(None, &route().key, &route(), Millis(0)), Taken::NotYet);
    }
}
