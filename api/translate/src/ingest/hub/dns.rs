//! DNSPolicies: which one acts on which listener, and what it asks for.
//!
//! A policy acts in its own namespace only. Of two for one target the older wins, then the first name
//! (GEP-713); that one of a listener goes before that of its Gateway is the planner's to see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_crds as crds;
use fairlead_crds::keys;
use fairlead_model::dns::{
    AnswerPolicy, Delegation, DnsName, DnsPolicy, DnsTarget, Network, Publish, Strategy,
    WhenNoneHealthy,
};
use fairlead_model::{Json, MemberId, Millis, Note, NsName, Reason};
use serde::Deserialize as _;

use super::gateway::HubGateway;
use super::verdict::{DnsVerdict, Verdict};
use crate::raw;

/// Addresses in one answer, where the policy does not say: more would not help any client.
const ANSWERS_DEFAULT: u16 = 8;

type Policies = BTreeMap<NsName, Arc<DnsPolicy>>;

/// Policies that act on something, and what became of each.
pub(super) fn ingest_dns_policies(
    objects: &BTreeMap<NsName, Json>,
    gateways: &BTreeMap<NsName, HubGateway>,
    notes: &mut Vec<Note>,
) -> (Policies, BTreeMap<NsName, DnsVerdict>) {
    let mut read = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for (name, object) in objects.iter().filter(|(_, object)| !raw::is_deleting(object)) {
        match read_policy(name, object) {
            Ok(policy) => drop(read.insert(name.clone(), policy)),
            Err(message) => {
                notes.push(Note::new(format!("DNSPolicy {name}"), Reason::Unreadable, &*message));
                let accepted = Verdict::no(Reason::Unreadable, message);
                let generation = raw::generation(object);
                verdicts.insert(name.clone(), DnsVerdict { generation, accepted });
            }
        }
    }
    let winners = winners(&read);
    let mut accepted = Policies::new();
    for (name, mut policy) in read {
        let refusals: Vec<Verdict> = policy
            .targets
            .iter()
            .filter_map(|target| refusal(&name, target, gateways, &winners))
            .collect();
        policy.targets.retain(|target| refusal(&name, target, gateways, &winners).is_none());
        let verdict = match policy.targets.is_empty() {
            true => refusals.into_iter().next().unwrap_or_default(),
            false => Verdict::Yes,
        };
        let generation = raw::generation(&objects[&name]);
        verdicts.insert(name.clone(), DnsVerdict { generation, accepted: verdict.clone() });
        if verdict.is_yes() {
            accepted.insert(name, Arc::new(policy));
        }
    }
    (accepted, verdicts)
}

fn winners(policies: &BTreeMap<NsName, DnsPolicy>) -> BTreeMap<DnsTarget, NsName> {
    let mut winners: BTreeMap<DnsTarget, (Millis, NsName)> = BTreeMap::new();
    for (name, policy) in policies {
        for target in &policy.targets {
            let claim = (policy.created_at, name.clone());
            let first = winners.entry(target.clone()).or_insert_with(|| claim.clone());
            *first = claim.min(first.clone());
        }
    }
    winners.into_iter().map(|(target, (_, name))| (target, name)).collect()
}

fn refusal(
    name: &NsName,
    target: &DnsTarget,
    gateways: &BTreeMap<NsName, HubGateway>,
    winners: &BTreeMap<DnsTarget, NsName>,
) -> Option<Verdict> {
    let DnsTarget { gateway, section } = target;
    let Some(there) = gateways.get(gateway) else {
        let what =
            format!("Gateway {gateway} does not exist, or is not of class {}", keys::GATEWAY_CLASS);
        return Some(Verdict::no(Reason::TargetNotFound, what));
    };
    if let Some(section) = section
        && !there.has_listener(section)
    {
        let what = format!("Gateway {gateway} has no listener named {section}");
        return Some(Verdict::no(Reason::TargetNotFound, what));
    }
    let winner = winners.get(target).filter(|winner| *winner != name)?;
    let what = format!("DNSPolicy {winner} acts on this target already");
    Some(Verdict::no(Reason::Conflicted, what))
}

/// A policy is taken whole or not at all: half of one could name members that its author left out.
fn read_policy(name: &NsName, object: &Json) -> Result<DnsPolicy, String> {
    let spec = object.get("spec").ok_or("it has no spec")?;
    let spec =
        crds::DnsPolicySpec::deserialize(spec).map_err(|error| raw::bounded(&error.to_string()))?;
    let zone = dns_name(&spec.zone)?;
    if zone.is_wildcard() {
        return Err("zone: a wildcard is no zone".to_owned());
    }
    let target = |target: &crds::DnsTargetRef| match (target.group.as_str(), target.kind.as_str()) {
        (keys::GATEWAY_GROUP, "Gateway") => Ok(DnsTarget {
            gateway: NsName::new(&name.namespace, &target.name),
            section: target.section_name.clone(),
        }),
        (_, kind) => {
            let kind = fairlead_model::id::printable(kind);
            Err(format!("targetRefs: a DNSPolicy cannot act on a {kind}"))
        }
    };
    let tier = |tier: &crds::DnsTier| tier.members.iter().map(|name| member(name)).collect();
    let weight = |(name, weight): (&String, &i32)| {
        Ok::<_, String>((member(name)?, u32::try_from(*weight).unwrap_or_default()))
    };
    let weights = spec.weights.as_ref().map(|all| all.iter().map(weight).collect()).transpose()?;
    Ok(DnsPolicy {
        name: name.clone(),
        created_at: raw::created_at(object),
        zone,
        targets: spec.target_refs.iter().map(target).collect::<Result<_, _>>()?,
        answer: Arc::new(answer(&spec)?),
        negative_ttl_s: seconds(spec.negative_ttl_seconds),
        publish: match spec.publish {
            crds::DnsPublish::Authoritative => Publish::Authoritative,
            crds::DnsPublish::ExternalDNS => Publish::ExternalDns,
        },
        delegation: match spec.delegation {
            crds::DnsDelegation::Manual => Delegation::Manual,
            crds::DnsDelegation::ExternalDNS => Delegation::ExternalDns,
        },
        weights,
        tiers: spec.tiers.iter().flatten().map(tier).collect::<Result<_, _>>()?,
        name_servers: spec
            .name_servers
            .iter()
            .flatten()
            .map(|name| dns_name(name))
            .collect::<Result<BTreeSet<_>, _>>()?,
    })
}

fn answer(spec: &crds::DnsPolicySpec) -> Result<AnswerPolicy, String> {
    let strategy = match spec.strategy {
        crds::DnsStrategy::Weighted => Strategy::Weighted,
        crds::DnsStrategy::Geo => Strategy::Geo,
        crds::DnsStrategy::Failover => Strategy::Failover,
        crds::DnsStrategy::All => Strategy::All,
    };
    let answers_default = if strategy == Strategy::Weighted { 1 } else { ANSWERS_DEFAULT };
    let answers_max = spec.max_answers.and_then(|max| u16::try_from(max).ok());
    let address = |text: &String| {
        text.parse().map_err(|_| {
            format!("fallback: {} is no IP address", fairlead_model::id::printable(text))
        })
    };
    let network = |network: &crds::DnsNetwork| {
        Network::parse(&network.cidr, &network.region).map_err(|error| error.to_string())
    };
    Ok(AnswerPolicy {
        strategy,
        ttl_s: seconds(spec.ttl_seconds),
        answers_max: answers_max.unwrap_or(answers_default).max(1),
        when_none_healthy: match spec.when_none_healthy {
            crds::WhenNoneHealthy::All => WhenNoneHealthy::All,
            crds::WhenNoneHealthy::None => WhenNoneHealthy::None,
            crds::WhenNoneHealthy::Fallback => WhenNoneHealthy::Fallback,
        },
        fallback: spec.fallback.iter().flatten().map(address).collect::<Result<_, _>>()?,
        networks: spec.networks.iter().flatten().map(network).collect::<Result<_, _>>()?,
    })
}

/// 0 would be legal and makes every resolver ask for every request; the CRD has 1 as the least.
fn seconds(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default().max(1)
}

fn dns_name(text: &str) -> Result<DnsName, String> {
    DnsName::new(text).map_err(|error| error.to_string())
}

fn member(name: &str) -> Result<MemberId, String> {
    MemberId::new(name).map_err(|error| error.to_string())
}
