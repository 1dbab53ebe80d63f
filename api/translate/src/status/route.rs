//! Status of routes: entries of other controllers stay as they are.

use fairlead_crds::keys;
use fairlead_model::{Json, Reason};
use serde_json::json;

use super::condition::{Stamp, Wanted, conditions};
use super::{MemberSummary, base};
use crate::ingest::hub::{ParentVerdict, RouteVerdict, Verdict};
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
    if parent.accepted.is_yes() {
        if let Some(message) = &verdict.partially_invalid {
            let reason = Reason::UnsupportedValue;
            wanted.push(Wanted::new(keys::CONDITION_PARTIALLY_INVALID, "True", reason, message));
        }
        wanted.push(members_programmed(members));
    }
    let ours = [
        keys::CONDITION_ACCEPTED,
        keys::CONDITION_RESOLVED_REFS,
        keys::CONDITION_PARTIALLY_INVALID,
        keys::CONDITION_MEMBERS_PROGRAMMED,
    ];
    conditions(
        before.map_or(&[][..], |entry| raw::list(entry, "/conditions")),
        &ours,
        wanted,
        stamp,
    )
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
