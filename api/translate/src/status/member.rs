//! Status of MemberClusters.

use std::collections::BTreeMap;

use fairlead_crds::{MemberCounts, keys};
use fairlead_model::{Json, Reason};
use serde_json::json;

use super::base;
use super::condition::{Stamp, Wanted, conditions};
use crate::raw;

/// What the hub knows of a member, for its MemberCluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemberFacts {
    /// By type; one of [`keys::MEMBER_CONDITIONS`]. A type that is absent keeps what is written.
    pub conditions: BTreeMap<&'static str, MemberCondition>,
    /// Version of the agent.
    pub agent_version: Option<String>,
    /// Version of the Gateway API, with its channel where that is not standard.
    pub gateway_api_version: Option<String>,
    /// How much it reported.
    pub counts: Option<MemberCounts>,
}

/// One aspect of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberCondition {
    /// Yes, no, or not known.
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// Details for people.
    pub message: String,
}

/// Status of a MemberCluster.
pub fn member_cluster_status(
    existing: &Json,
    generation: i64,
    facts: &MemberFacts,
    now: &str,
) -> Json {
    let known = |kind: &&&'static str| facts.conditions.contains_key(**kind);
    let ours: Vec<&'static str> = keys::MEMBER_CONDITIONS.iter().filter(known).copied().collect();
    let wanted = ours.iter().map(|kind| wanted(kind, &facts.conditions[kind])).collect();
    let stamp = Stamp { generation, now };
    let mut status = base(existing);
    status["conditions"] = conditions(raw::list(existing, "/conditions"), &ours, wanted, stamp);
    status["observedGeneration"] = generation.into();
    let texts =
        [("agentVersion", &facts.agent_version), ("gatewayApiVersion", &facts.gateway_api_version)];
    for (field, value) in texts {
        if let Some(value) = value {
            // The kind takes 64 characters; a member may report anything.
            status[field] = raw::bounded(value).chars().take(64).collect::<String>().into();
        }
    }
    if let Some(MemberCounts { gateways, services, endpoints, routes }) = facts.counts {
        status["counts"] = json!({"gateways": gateways, "services": services, "endpoints": endpoints, "routes": routes});
    }
    status
}

fn wanted(kind: &'static str, condition: &MemberCondition) -> Wanted {
    let status = match condition.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    Wanted::new(kind, status, condition.reason, &condition.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: &'static str, status: Option<bool>) -> MemberFacts {
        let condition = MemberCondition { status, reason: Reason::AsAsked, message: String::new() };
        MemberFacts {
            conditions: [(kind, condition)].into(),
            agent_version: Some("v".repeat(100)),
            ..MemberFacts::default()
        }
    }

    #[test]
    fn what_is_not_known_stays_as_written() {
        let first =
            member_cluster_status(&Json::Null, 1, &facts(keys::CONDITION_JOINED, Some(true)), "t1");
        let second =
            member_cluster_status(&first, 2, &facts(keys::CONDITION_CONNECTED, None), "t2");
        let of = |kind: &str| {
            raw::list(&second, "/conditions")
                .iter()
                .find(|c| c["type"] == kind)
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(
            (of("Joined")["lastTransitionTime"].clone(), of("Connected")["status"].clone()),
            ("t1".into(), "Unknown".into())
        );
        assert_eq!(
            (second["observedGeneration"].clone(), second["agentVersion"].as_str().map(str::len)),
            (2.into(), Some(64))
        );
    }

    #[test]
    fn same_facts_change_nothing() {
        let first =
            member_cluster_status(&Json::Null, 1, &facts(keys::CONDITION_JOINED, Some(true)), "t1");
        let again =
            member_cluster_status(&first, 1, &facts(keys::CONDITION_JOINED, Some(true)), "t2");
        assert_eq!(first, again);
    }
}
