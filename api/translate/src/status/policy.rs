//! Status of TrafficPolicies, in the form of GEP-713.

use fairlead_crds::keys;
use fairlead_model::{Json, Reason};
use serde_json::json;

use super::base;
use super::condition::{Stamp, Wanted, conditions};
use crate::ingest::hub::{PolicyVerdict, TargetVerdict, Verdict};
use crate::raw;

/// Most ancestors, as GEP-713 says.
const ANCESTORS_MAX: usize = 16;

/// Status of a TrafficPolicy: one entry for each target.
pub fn traffic_policy_status(existing: &Json, verdict: &PolicyVerdict, now: &str) -> Json {
    let stamp = Stamp { generation: verdict.generation, now };
    let entries = raw::list(existing, "/ancestors");
    let is_ours =
        |entry: &&Json| raw::field(entry, "controllerName") == Some(keys::CONTROLLER_NAME);
    let mut ancestors: Vec<Json> =
        entries.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for target in &verdict.targets {
        let reference = ancestor_ref(target);
        let before =
            entries.iter().filter(is_ours).find(|e| e.get("ancestorRef") == Some(&reference));
        let existing = before.map_or(&[][..], |entry| raw::list(entry, "/conditions"));
        let wanted = vec![accepted(&target.accepted)];
        ancestors.push(json!({
            "ancestorRef": reference,
            "controllerName": keys::CONTROLLER_NAME,
            "conditions": conditions(existing, &[keys::CONDITION_ACCEPTED], wanted, stamp),
        }));
    }
    ancestors.truncate(ANCESTORS_MAX);
    let mut status = base(existing);
    status["ancestors"] = ancestors.into();
    status
}

/// The target itself, with those fields of the reference that an ancestorRef has.
fn ancestor_ref(target: &TargetVerdict) -> Json {
    let fields = ["group", "kind", "name", "sectionName"];
    let taken = fields.iter().filter_map(|field| {
        Some(((*field).to_owned(), target.target_ref.get(*field)?.as_str()?.into()))
    });
    Json::Object(taken.collect())
}

fn accepted(verdict: &Verdict) -> Wanted {
    let mut wanted = Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", verdict);
    // GEP-713 knows Accepted, Conflicted, Invalid and TargetNotFound.
    if let Verdict::No { reason, .. } = verdict
        && !matches!(reason, Reason::Conflicted | Reason::TargetNotFound)
    {
        wanted.reason = "Invalid".to_owned();
    }
    wanted
}
