//! The spec of a TrafficPolicy → how traffic is spread.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds as crds;
use fairlead_model::policy::{
    Failback, FailbackMode, LabelOperator, LabelRequirement, LabelSelector, Scope, Spread,
    StaleMember, Tier, TierMembers,
};
use fairlead_model::recipe::{Split, WhenUnavailable};
use fairlead_model::{Json, MemberId, NsName};

use crate::raw;

/// What a policy asks for.
///
/// # Errors
/// Words for people when a part has no meaning; a policy is taken whole or not at all, since half of
/// one could send traffic where its author never wanted it.
pub(super) fn ingest_spread(
    from: &NsName,
    spec: &crds::TrafficPolicySpec,
) -> Result<Spread, String> {
    let mut spread = Spread { from: Some(from.clone()), ..Spread::default() };
    if let Some(tiers) = &spec.tiers {
        spread.tiers = tiers.iter().map(ingest_tier).collect::<Result<_, _>>()?;
    }
    if let Some(failover) = &spec.failover {
        spread.healthy_percent =
            u8::try_from(failover.healthy_percent.clamp(1, 100)).unwrap_or(100);
        spread.endpoints_min = unsigned(failover.min_endpoints);
        spread.when_unavailable = match failover.when_unavailable {
            crds::WhenUnavailable::Redistribute => WhenUnavailable::Redistribute,
            crds::WhenUnavailable::Fail => WhenUnavailable::Fail,
        };
    }
    if let Some(failback) = &spec.failback {
        spread.failback = Failback {
            mode: match failback.mode {
                crds::FailbackMode::Auto => FailbackMode::Auto,
                crds::FailbackMode::Manual => FailbackMode::Manual,
            },
            after_s: unsigned(failback.after_seconds),
            ramp_s: unsigned(failback.ramp_seconds),
        };
    }
    if let Some(stale) = &spec.stale_member {
        spread.stale = match (stale.mode, stale.keep_for_seconds) {
            (crds::StaleMode::Keep, _) => StaleMember::Keep,
            (crds::StaleMode::Drain, Some(seconds)) => StaleMember::DrainAfter(unsigned(seconds)),
            (crds::StaleMode::Drain, None) => {
                return Err("staleMember: mode Drain needs keepForSeconds".to_owned());
            }
        };
    }
    Ok(spread)
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

fn ingest_tier(tier: &crds::Tier) -> Result<Tier, String> {
    let id = |name: &String| MemberId::new(name).map_err(|error| error.to_string());
    let crds::TierMembers { names, selector, scope } = &tier.members;
    let members = match (names, selector, scope) {
        (Some(names), None, None) => {
            TierMembers::Names(names.iter().map(id).collect::<Result<BTreeSet<_>, _>>()?)
        }
        (None, Some(selector), None) => {
            let selector = serde_json::to_value(selector).map_err(|error| error.to_string())?;
            let selector = ingest_selector(&selector).ok_or("a selector cannot be read")?;
            TierMembers::Selector(selector)
        }
        (None, None, Some(scope)) => TierMembers::Scope(match scope {
            crds::Scope::SameCluster => Scope::SameCluster,
            crds::Scope::SameZone => Scope::SameZone,
            crds::Scope::SameRegion => Scope::SameRegion,
            crds::Scope::Any => Scope::Any,
        }),
        _ => return Err("a tier has exactly one of names, selector and scope".to_owned()),
    };
    let weights: BTreeMap<MemberId, u32> = tier
        .weights
        .iter()
        .flatten()
        .map(|(name, weight)| Ok((id(name)?, unsigned(*weight))))
        .collect::<Result<_, String>>()?;
    let split = match tier.split {
        crds::Split::Endpoints => Split::Endpoints,
        crds::Split::Equal => Split::Equal,
        crds::Split::Weights => Split::Weights,
    };
    Ok(Tier { members, split, weights })
}

/// A Kubernetes label selector. None when a part cannot be read: with it missing the rest would
/// select more.
pub(super) fn ingest_selector(written: &Json) -> Option<LabelSelector> {
    let written = written.as_object()?;
    let labels = match written.get("matchLabels") {
        None | Some(Json::Null) => BTreeMap::new(),
        Some(labels) => {
            let text =
                |(key, value): (&String, &Json)| Some((key.clone(), value.as_str()?.to_owned()));
            labels.as_object()?.iter().map(text).collect::<Option<_>>()?
        }
    };
    let expressions = match written.get("matchExpressions") {
        None | Some(Json::Null) => Vec::new(),
        Some(list) => list.as_array()?.iter().map(ingest_requirement).collect::<Option<_>>()?,
    };
    Some(LabelSelector { labels, expressions })
}

fn ingest_requirement(written: &Json) -> Option<LabelRequirement> {
    let operator = match raw::field(written, "operator")? {
        "In" => LabelOperator::In,
        "NotIn" => LabelOperator::NotIn,
        "Exists" => LabelOperator::Exists,
        "DoesNotExist" => LabelOperator::DoesNotExist,
        _ => return None,
    };
    let values = match written.get("values") {
        None | Some(Json::Null) => BTreeSet::new(),
        Some(values) => values
            .as_array()?
            .iter()
            .map(|v| v.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
    };
    Some(LabelRequirement { key: raw::field(written, "key")?.to_owned(), operator, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selector_that_cannot_be_read_in_part_is_none() {
        for bad in [
            json!(null),
            json!([]),
            json!({"matchLabels": {"a": 1}}),
            json!({"matchExpressions": [{"key": "a", "operator": "Near", "values": []}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": [1]}]}),
            json!({"matchExpressions": {}}),
        ] {
            assert_eq!(ingest_selector(&bad), None, "{bad}");
        }
        assert_eq!(ingest_selector(&json!({})), Some(LabelSelector::default()));
    }
}
