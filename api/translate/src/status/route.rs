//! Status of routes: entries of other controllers stay as they are.

use fairlead_crds::keys;
use fairlead_model::{Json, Reason};
use serde_json::json;

use super::condition::{Stamp, Wanted, conditions};
use super::{MemberSummary, base};
use crate::ingest::hub::{ParentVerdict, PinVerdict, RouteVerdict, Verdict};
use crate::raw;

/// Most parents, as the Gateway API says.
const PARENTS_MAX: usize = 32;

/// Status of a route. `found` is what the inventory says against its references, where the hub's own
/// objects say nothing: a ServiceImport that no member exports.
pub fn route_status(
    existing: &Json,
    verdict: &RouteVerdict,
    members: &MemberSummary,
    found: Option<&(Reason, String)>,
    now: &str,
) -> Json {
    let stamp = Stamp { generation: verdict.generation, now };
    let entries = raw::list(existing, "/parents");
    let is_ours =
        |entry: &&Json| raw::field(entry, "controllerName") == Some(keys::CONTROLLER_NAME);
    let mut parents: Vec<Json> = entries.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    let resolved = match (&verdict.resolved, found) {
        (Verdict::Yes, Some((reason, message))) => Verdict::no(*reason, message.as_str()),
        (own, _) => own.clone(),
    };
    for parent in &verdict.parents {
        let before =
            entries.iter().filter(is_ours).find(|e| e.get("parentRef") == Some(&parent.parent_ref));
        parents.push(json!({
            "parentRef": parent.parent_ref,
            "controllerName": keys::CONTROLLER_NAME,
            "conditions": parent_conditions(before, verdict, parent, &resolved, members, stamp),
        }));
    }
    parents.truncate(PARENTS_MAX);
    let mut status = base(existing);
    status["parents"] = parents.into();
    status
}

fn parent_conditions(
    before: Option<&Json>,
    verdict: &RouteVerdict,
    parent: &ParentVerdict,
    resolved: &Verdict,
    members: &MemberSummary,
    stamp: Stamp<'_>,
) -> Json {
    let mut wanted = vec![
        Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", &parent.accepted),
        Wanted::of(keys::CONDITION_RESOLVED_REFS, "ResolvedRefs", resolved),
    ];
    if parent.accepted.is_yes()
        && let Some(message) = &verdict.partially_invalid
    {
        let reason = Reason::UnsupportedValue;
        wanted.push(Wanted::new(keys::CONDITION_PARTIALLY_INVALID, "True", reason, message));
    }
    if parent.accepted.is_yes()
        && let Some(pin) = &verdict.pin
    {
        wanted.push(pinned(pin));
    }
    if parent.accepted.is_yes()
        && let Some((reason, message)) = &members.rollout
    {
        wanted.push(Wanted::new(keys::CONDITION_ROLLED_OUT, "False", *reason, message));
    }
    let before = before.map_or(&[][..], |entry| raw::list(entry, "/conditions"));
    let mut ours = vec![
        keys::CONDITION_ACCEPTED,
        keys::CONDITION_RESOLVED_REFS,
        keys::CONDITION_PARTIALLY_INVALID,
        keys::CONDITION_PINNED,
        keys::CONDITION_ROLLED_OUT,
    ];
    // What was said of this very generation holds while a change of the plan is on its way.
    let keeps = parent.accepted.is_yes()
        && members.under_way
        && before.iter().any(|condition| says_programmed(condition, stamp.generation));
    if !keeps {
        ours.push(keys::CONDITION_MEMBERS_PROGRAMMED);
        if parent.accepted.is_yes() {
            wanted.push(members_programmed(members));
        }
    }
    conditions(before, &ours, wanted, stamp)
}

fn says_programmed(condition: &Json, generation: i64) -> bool {
    raw::field(condition, "type") == Some(keys::CONDITION_MEMBERS_PROGRAMMED)
        && condition["observedGeneration"] == generation
}

fn pinned(pin: &PinVerdict) -> Wanted {
    let kind = keys::CONDITION_PINNED;
    let in_force = match pin.at {
        Some(number) => format!("rules and policies are those of revision {number}"),
        None => "rules and policies are as written".to_owned(),
    };
    match &pin.fault {
        None => Wanted::new(kind, "True", Reason::Pinned, in_force),
        Some((reason, message)) => {
            Wanted::new(kind, "False", *reason, format!("{message}; {in_force}"))
        }
    }
}

fn members_programmed(members: &MemberSummary) -> Wanted {
    let kind = keys::CONDITION_MEMBERS_PROGRAMMED;
    match members.main_reason() {
        Some(reason) => Wanted::new(kind, "False", reason, members.sentence()),
        None if members.as_asked == 0 => {
            Wanted::new(kind, "Unknown", Reason::WaitingForMembers, "no member serves it yet")
        }
        None => Wanted::new(kind, "True", Reason::AsAsked, members.sentence()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_model::MemberId;

    use super::*;

    fn mk_verdict(generation: i64) -> RouteVerdict {
        let gateway = "infra/public".parse().unwrap();
        let parent = ParentVerdict { parent_ref: json!({}), gateway, accepted: Verdict::Yes };
        RouteVerdict { generation, parents: vec![parent], ..RouteVerdict::default() }
    }

    fn programmed(status: &Json) -> (String, i64) {
        let conditions = raw::list(&status["parents"][0], "/conditions");
        let is = |c: &&Json| c["type"] == keys::CONDITION_MEMBERS_PROGRAMMED;
        let condition = conditions.iter().find(is).unwrap();
        let generation = condition["observedGeneration"].as_i64().unwrap();
        (condition["status"].as_str().unwrap().to_owned(), generation)
    }

    #[test]
    fn a_pin_is_a_condition_and_goes_with_its_release() {
        let condition = |status: &Json| {
            let conditions = raw::list(&status["parents"][0], "/conditions").to_vec();
            let found = conditions.into_iter().find(|c| c["type"] == keys::CONDITION_PINNED);
            found.map(|c| {
                (c["status"].to_string(), c["reason"].to_string(), c["message"].to_string())
            })
        };
        let status = |existing: &Json, pin: Option<PinVerdict>| {
            let verdict = RouteVerdict { pin, ..mk_verdict(1) };
            route_status(existing, &verdict, &MemberSummary::default(), None, "t1")
        };
        let pinned = status(&Json::Null, Some(PinVerdict { at: Some(7), fault: None }));
        let (is, reason, message) = condition(&pinned).unwrap();
        assert_eq!((&*is, &*reason), ("\"True\"", "\"Pinned\""));
        assert!(message.contains("revision 7"), "{message}");
        let fault = Some((Reason::RevisionUnknown, "there is no revision 9 yet".to_owned()));
        let refused = status(&pinned, Some(PinVerdict { at: None, fault }));
        let (is, reason, message) = condition(&refused).unwrap();
        assert_eq!((&*is, &*reason), ("\"False\"", "\"RevisionUnknown\""));
        assert!(message.contains("as written"), "{message}");
        assert_eq!(condition(&status(&refused, None)), None);
    }

    #[test]
    fn what_was_said_of_a_generation_holds_while_a_plan_is_under_way() {
        let all = MemberSummary { as_asked: 2, ..MemberSummary::default() };
        let waiting = |under_way| {
            let why = (Reason::WaitingForMembers, "not applied yet".to_owned());
            let differing = [(MemberId::new("east").unwrap(), why)].into();
            MemberSummary { as_asked: 1, differing, under_way, rollout: None }
        };
        let first = route_status(&Json::Null, &mk_verdict(1), &all, None, "t1");
        let moving = route_status(&first, &mk_verdict(1), &waiting(true), None, "t2");
        assert_eq!(moving, first);
        let stuck = route_status(&first, &mk_verdict(1), &waiting(false), None, "t2");
        assert_eq!(programmed(&stuck), ("False".into(), 1));
        let edited = route_status(&first, &mk_verdict(2), &waiting(true), None, "t2");
        assert_eq!(programmed(&edited), ("False".into(), 2));
    }
}
