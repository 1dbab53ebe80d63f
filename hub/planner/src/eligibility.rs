//! May a member serve a backend? Every no has a reason.
//!
//! Health is not eligibility: a member that is down stays a candidate that takes nothing, so that it
//! is probed and can come back at once. The answer does not depend on the entry but for being it.

use fairlead_model::policy::{Failback, StaleMember, TrafficState};
use fairlead_model::snapshot::{Consent, GrantFrom};
use fairlead_model::{MemberId, NsName, Reason, RouteKey, ServicePort};

use crate::fleet::{Fleet, Member};
use crate::{Absences, Answer, Verdict, Verdicts};

/// A backend as a route uses it.
pub(crate) struct Use<'a> {
    pub(crate) service: &'a NsName,
    pub(crate) port: ServicePort,
    pub(crate) route: &'a RouteKey,
    pub(crate) stale: StaleMember,
    pub(crate) failback: Failback,
}

/// The verdict on every member.
pub(crate) fn judge(fleet: &Fleet<'_>, use_: &Use<'_>) -> Verdicts {
    let verdict = |(id, member): (&MemberId, &Member<'_>)| match refusal(member, use_) {
        Some(reason) => Verdict { local: Answer::No(reason), remote: Answer::No(reason) },
        None => {
            let absences = fleet.failbacks.members.get(id);
            Verdict {
                local: local(fleet, member, use_, absences),
                remote: remote(fleet, member, use_, absences),
            }
        }
    };
    fleet.members.iter().map(|member| (member.0.clone(), verdict(member))).collect()
}

/// Why the member may not serve it for anybody.
fn refusal(member: &Member<'_>, use_: &Use<'_>) -> Option<Reason> {
    let Some(snapshot) = &member.snapshot else { return Some(Reason::NoSnapshot) };
    let Some(service) = snapshot.services.get(use_.service) else {
        return Some(Reason::NotExported);
    };
    if service.consent == Consent::Refused {
        return Some(Reason::ExportNotAllowed);
    }
    if !service.ports.contains_key(&use_.port) {
        return Some(Reason::PortNotExported);
    }
    let from = &use_.route.name.namespace;
    // An export is consent to be called from the same namespace; more needs a ReferenceGrant.
    if *from != use_.service.namespace {
        let grant = GrantFrom { kind: use_.route.kind, namespace: from.to_string() };
        if !service.grants.contains(&grant) {
            return Some(Reason::NoReferenceGrant);
        }
    }
    None
}

/// Its own entry needs no door, and whoever reached it proved that it is neither down nor lost.
fn local(
    fleet: &Fleet<'_>,
    member: &Member<'_>,
    use_: &Use<'_>,
    absences: Option<&Absences>,
) -> Answer {
    let given = |a: &Absences| a.local((fleet.now, member.spec), use_.failback);
    let given = absences.map_or(Answer::Able, given);
    match member.spec.traffic {
        TrafficState::Draining => led_away(given),
        TrafficState::Active | TrafficState::Standby => given,
    }
}

/// A drained member has what the steps of its drain leave it.
fn led_away(given: Answer) -> Answer {
    match given {
        Answer::Ramping(ramp) => Answer::Ramping(ramp),
        Answer::Able | Answer::Waiting(_) | Answer::Out(_) | Answer::No(_) => {
            Answer::Out(Reason::Drained)
        }
    }
}

fn remote(
    fleet: &Fleet<'_>,
    member: &Member<'_>,
    use_: &Use<'_>,
    absences: Option<&Absences>,
) -> Answer {
    if let Answer::No(reason) = member.door.answer {
        return Answer::No(reason);
    }
    if !use_.route.kind.has_headers() {
        return Answer::No(Reason::CrossingUnsupported);
    }
    let given = |a: &Absences| a.remote((fleet.now, member.spec), use_.failback, use_.stale);
    let given = absences.map_or(Answer::Able, given);
    if member.spec.traffic == TrafficState::Draining {
        let healthy = !is_stale(fleet, member, use_) && member.ill(fleet.now).is_none();
        return if healthy { led_away(given) } else { Answer::Out(Reason::Drained) };
    }
    if is_stale(fleet, member, use_) {
        return Answer::Out(Reason::StaleInventory);
    }
    if let Some(reason) = member.ill(fleet.now) {
        return Answer::Out(reason);
    }
    given
}

fn is_stale(fleet: &Fleet<'_>, member: &Member<'_>, use_: &Use<'_>) -> bool {
    match use_.stale {
        StaleMember::Keep => false,
        StaleMember::DrainAfter(seconds) => member.is_stale(fleet.now, seconds),
    }
}
