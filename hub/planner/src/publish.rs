//! Names that a DNS provider answers, and delegations that one holds: who writes them, and what is written.
//!
//! A provider holds one record set per name and chooses nothing, so it gets the members that an agent
//! would choose from. Exactly one member writes: two ExternalDNS would each take out what the other wrote.
//! The writer stays for as long as its agent is there; whoever takes over writes the same names.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::dns::{
    AnswerPolicy, Delegation, DnsName, DnsPolicy, MemberRecord, NameServer, Publish, Published,
    PublishedSet, RecordSet, Strategy, WhenNoneHealthy, Zones,
};
use fairlead_model::health::MemberState;
use fairlead_model::snapshot::Address;
use fairlead_model::{MemberId, Note, NsName, Reason};

use crate::Report;
use crate::fleet::{Fleet, Member};

const ENDPOINT_KIND: &str = "externaldns.k8s.io/v1alpha1/DNSEndpoint";
/// How long a parent zone's resolvers keep where a zone is served, in seconds.
const DELEGATION_TTL_S: u32 = 300;

type Publishers = BTreeMap<NsName, MemberId>;

/// Who writes for each policy.
pub(crate) fn elect(fleet: &Fleet<'_>, before: &Publishers, report: &mut Report) -> Publishers {
    let able: Vec<(&MemberId, &Member<'_>)> =
        fleet.members.iter().filter(|(_, member)| has_endpoints(member)).collect();
    let mut elected = Publishers::new();
    for policy in fleet.policy.dns.values().filter(|policy| is_written(policy)) {
        let held = before.get(&policy.name);
        let here = |id: &MemberId| able.iter().any(|(other, m)| *other == id && is_there(m));
        let kept = held.filter(|id| here(id));
        let next = || able.iter().find(|(_, member)| is_there(member)).map(|(id, _)| *id);
        // Nobody is there: whoever wrote last goes on as soon as it is back.
        let last = || held.filter(|id| able.iter().any(|(other, _)| other == id));
        let publisher = kept.or_else(next).or_else(last);
        let found = report.dns.entry(policy.name.clone()).or_default();
        found.publisher = publisher.cloned();
        match publisher {
            Some(publisher) => drop(elected.insert(policy.name.clone(), publisher.clone())),
            None => {
                let text = "no member serves the kind DNSEndpoint (the CRD of ExternalDNS)";
                found.notes.push(Note::new("publish", Reason::KindMissing, text));
            }
        }
    }
    elected
}

/// Whether somebody writes for it.
fn is_written(policy: &DnsPolicy) -> bool {
    policy.publish == Publish::ExternalDns || policy.delegation == Delegation::ExternalDns
}

fn has_endpoints(member: &Member<'_>) -> bool {
    let snapshot = member.snapshot.as_ref();
    snapshot.is_some_and(|snapshot| snapshot.cluster.kinds.contains(ENDPOINT_KIND))
}

/// Its agent can be told what to write.
fn is_there(member: &Member<'_>) -> bool {
    match member.health.state {
        MemberState::Up | MemberState::Recovering | MemberState::Suspect => true,
        MemberState::Joined | MemberState::AgentLost | MemberState::Down => false,
    }
}

/// Names by the member that writes them. `delegated` are zones that are answered by agents, by the policy
/// that asks for their delegation.
pub(crate) fn assign(
    zones: &Zones,
    delegated: &BTreeMap<NsName, (DnsName, Vec<NameServer>)>,
    publishers: &Publishers,
) -> BTreeMap<MemberId, BTreeMap<NsName, Published>> {
    let mut all: BTreeMap<MemberId, BTreeMap<NsName, Published>> = BTreeMap::new();
    for (policy, (zone, servers)) in delegated {
        // Without any server the records stay as they were: a zone that is not delegated does not exist.
        if let Some(publisher) = publishers.get(policy).filter(|_| !servers.is_empty()) {
            let of_policy = all.entry(publisher.clone()).or_default();
            of_policy.entry(policy.clone()).or_default().extend(delegation(zone, servers));
        }
    }
    for zone in zones.values() {
        for (name, set) in &zone.sets {
            let policy = zone.policies.get(&set.policy);
            let (Some(publisher), Some(policy)) = (publishers.get(&set.policy), policy) else {
                continue;
            };
            let of_policy = all.entry(publisher.clone()).or_default();
            let published = of_policy.entry(set.policy.clone()).or_default();
            published.insert(name.clone(), published_set(set, policy));
        }
    }
    all
}

/// What a parent zone says of a zone: its servers, and where those are whose names are in it (glue).
fn delegation(zone: &DnsName, servers: &[NameServer]) -> Published {
    let set = PublishedSet { ttl_s: DELEGATION_TTL_S, ..PublishedSet::default() };
    let names = servers.iter().map(|server| server.name.clone()).collect();
    let mut records =
        Published::from([(zone.clone(), PublishedSet { servers: names, ..set.clone() })]);
    for server in servers.iter().filter(|server| !server.addresses.is_empty()) {
        let glue = PublishedSet { addresses: server.addresses.clone(), ..set.clone() };
        records.insert(server.name.clone(), glue);
    }
    records
}

/// Never empty while any member has an address: a negative answer would be remembered everywhere.
fn published_set(set: &RecordSet, policy: &AnswerPolicy) -> PublishedSet {
    let healthy: Vec<&MemberRecord> = set.members.iter().filter(|r| r.out.is_none()).collect();
    let ttl_s = policy.ttl_s;
    if healthy.is_empty() && policy.when_none_healthy == WhenNoneHealthy::Fallback {
        let addresses = policy.fallback.clone();
        return PublishedSet { ttl_s, addresses, ..PublishedSet::default() };
    }
    let among = if healthy.is_empty() { set.members.iter().collect() } else { healthy };
    let first = among.iter().map(|record| record.tier).min();
    let first: Vec<&MemberRecord> =
        among.into_iter().filter(|record| Some(record.tier) == first).collect();
    let weighted = first.iter().any(|record| record.weight > 0);
    let chosen = first
        .iter()
        .filter(|record| policy.strategy != Strategy::Weighted || !weighted || record.weight > 0);
    let (mut addresses, mut alias) = (BTreeSet::new(), None);
    for address in chosen.flat_map(|record| &record.addresses) {
        match address {
            Address::Ip(ip) => drop(addresses.insert(*ip)),
            Address::Name(name) => alias = alias.or_else(|| DnsName::new(name).ok()),
        }
    }
    // A CNAME stands alone, so a set that has addresses has no alias.
    let alias = alias.filter(|_| addresses.is_empty());
    PublishedSet { ttl_s, addresses, alias, ..PublishedSet::default() }
}
