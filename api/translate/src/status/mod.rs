//! What the hub says about its own objects, as the `status` of each.
//!
//! Owns conditions and their reasons by the rules of the Gateway API and GEP-713. Never decides: it
//! puts verdicts and what members report into words. Entries and conditions of other controllers stay.
//!
//! Every function takes the status that is there and returns the one to write; [`changed`] says
//! whether to write it. Times are passed in as RFC 3339 text.

mod condition;
mod dns;
mod gateway;
mod member;
mod policy;
mod route;

use std::collections::BTreeMap;

use fairlead_model::{Json, MemberId, Reason};

pub use dns::{DnsFacts, Visible, dns_policy_status};
pub use gateway::{GatewayFacts, gateway_class_status, gateway_status, listener_set_status};
pub use member::{MemberCondition, MemberFacts, member_cluster_status};
pub use policy::traffic_policy_status;
pub use route::route_status;

use crate::raw;

/// Members that are named in a condition; the rest is counted. All are in the hub's API.
const NAMED_MAX: usize = 10;

/// What members make of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberSummary {
    /// Members that hold it as asked.
    pub as_asked: u32,
    /// Members that do not, and why.
    pub differing: BTreeMap<MemberId, (Reason, String)>,
    /// Some of them only because a change is on its way to them since a moment.
    pub under_way: bool,
    /// Why a change is not everywhere on purpose: it is tried first, or was stopped.
    pub rollout: Option<(Reason, String)>,
}

impl MemberSummary {
    fn total(&self) -> usize {
        self.differing.len().saturating_add(usize::try_from(self.as_asked).unwrap_or(usize::MAX))
    }

    /// `in 2 of 3 members; not in west: NameConflict (…)`.
    fn sentence(&self) -> String {
        let mut text = format!("in {} of {} members", self.as_asked, self.total());
        let named: Vec<String> = self.differing.iter().take(NAMED_MAX).map(named).collect();
        if !named.is_empty() {
            text.push_str("; not in ");
            text.push_str(&named.join(", "));
        }
        let more = self.differing.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    }

    /// The reason of most members that differ; of equally many the first.
    fn main_reason(&self) -> Option<Reason> {
        let mut counts: BTreeMap<Reason, u32> = BTreeMap::new();
        for (reason, _) in self.differing.values() {
            *counts.entry(*reason).or_default() += 1;
        }
        counts.iter().rev().max_by_key(|(_, count)| **count).map(|(reason, _)| *reason)
    }
}

fn named((member, (reason, message)): (&MemberId, &(Reason, String))) -> String {
    const MESSAGE_CHARS_MAX: usize = 200;
    if message.is_empty() {
        return format!("{member}: {reason}");
    }
    let message: String = raw::bounded(message).chars().take(MESSAGE_CHARS_MAX).collect();
    format!("{member}: {reason} ({message})")
}

/// Whether a status is worth writing: anything but a time differs.
pub fn changed(old: &Json, new: &Json) -> bool {
    without_times(old) != without_times(new)
}

fn without_times(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            let kept =
                map.iter().filter(|(key, value)| *key != "lastTransitionTime" && !value.is_null());
            Json::Object(kept.map(|(key, value)| (key.clone(), without_times(value))).collect())
        }
        Json::Array(list) => Json::Array(list.iter().map(without_times).collect()),
        other => other.clone(),
    }
}

/// The status that is there, to be changed field by field: what we do not write stays.
fn base(existing: &Json) -> Json {
    if existing.is_object() { existing.clone() } else { Json::Object(serde_json::Map::new()) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_time_alone_is_no_change() {
        let status = |time: &str, value: u8| json!({"conditions": [{"type": "A", "lastTransitionTime": time}], "n": value});
        assert!(!changed(&status("a", 1), &status("b", 1)));
        assert!(changed(&status("a", 1), &status("a", 2)));
    }

    #[test]
    fn ten_members_are_named_and_the_rest_counted() {
        let differing = (10..22).map(|at| {
            (MemberId::new(&format!("m{at}")).unwrap(), (Reason::NameConflict, String::new()))
        });
        let summary = MemberSummary {
            as_asked: 3,
            differing: differing.collect(),
            ..MemberSummary::default()
        };
        let text = summary.sentence();
        assert!(text.starts_with("in 3 of 15 members; not in m10: NameConflict, m11"), "{text}");
        assert!(text.ends_with("m19: NameConflict and 2 more"), "{text}");
    }

    #[test]
    fn reason_of_most_members_is_the_main_one() {
        let of = |reasons: &[Reason]| {
            let differing = reasons.iter().enumerate().map(|(at, reason)| {
                (MemberId::new(&format!("m{at}")).unwrap(), (*reason, String::new()))
            });
            MemberSummary { differing: differing.collect(), ..MemberSummary::default() }
                .main_reason()
        };
        assert_eq!(
            of(&[Reason::Frozen, Reason::NameConflict, Reason::Frozen]),
            Some(Reason::Frozen)
        );
        assert_eq!(of(&[Reason::Frozen, Reason::NameConflict]), Some(Reason::NameConflict));
        assert_eq!(of(&[]), None);
    }
}
