//! Which members one answer names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_model::MemberId;
use fairlead_model::dns::{AnswerPolicy, MemberRecord, RecordSet, Strategy, WhenNoneHealthy};
use fairlead_model::snapshot::Address;

use super::Geo;

/// Family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What one name answers with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picked<'a> {
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// Another name.
    Alias(&'a str),
    /// The name exists and has nothing of that kind.
    Nothing,
}

/// A name with everything that can be known before a query comes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SetView {
    pub(super) ttl_s: u32,
    answers_max: usize,
    all: Vec<Candidate>,
    /// By region, for Geo.
    regions: BTreeMap<String, Vec<Candidate>>,
    geo: Option<Arc<Geo>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    addresses: Vec<IpAddr>,
    /// Where the member has no address of its own but a name.
    alias: Option<String>,
    weight: u32,
}

impl SetView {
    /// `unreachable` are members that this agent itself cannot reach.
    pub(super) fn new(
        set: &RecordSet,
        policy: &AnswerPolicy,
        geo: Option<Arc<Geo>>,
        unreachable: &BTreeSet<MemberId>,
    ) -> Self {
        let healthy = healthy(set, unreachable);
        let chosen = match (healthy.is_empty(), policy.when_none_healthy) {
            (false, _) => healthy,
            (true, WhenNoneHealthy::All) => set.members.iter().collect(),
            (true, WhenNoneHealthy::None | WhenNoneHealthy::Fallback) => Vec::new(),
        };
        let first = chosen.iter().map(|record| record.tier).min();
        let chosen: Vec<&MemberRecord> =
            chosen.into_iter().filter(|record| Some(record.tier) == first).collect();
        let mut all: Vec<Candidate> = chosen.iter().map(|record| candidate(record)).collect();
        if chosen.is_empty() && policy.when_none_healthy == WhenNoneHealthy::Fallback {
            let addresses = policy.fallback.iter().copied().collect();
            all = vec![Candidate { addresses, alias: None, weight: 1 }];
        }
        let mut regions: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        let is_geo = policy.strategy == Strategy::Geo;
        for record in chosen.iter().filter(|_| is_geo) {
            if let Some(region) = &record.region {
                regions.entry(region.clone()).or_default().push(candidate(record));
            }
        }
        let answers_max = usize::from(policy.answers_max.max(1));
        Self { ttl_s: policy.ttl_s, answers_max, all, regions, geo: geo.filter(|_| is_geo) }
    }

    /// Whether the answer depends on where the client is.
    pub(super) fn is_regional(&self) -> bool {
        self.geo.is_some()
    }

    /// Addresses of a family, or another name.
    pub(super) fn addresses(&self, client: IpAddr, family: Family, seed: u64) -> Picked<'_> {
        let fits = |c: &Candidate| c.alias.is_some() || c.has(family);
        let mut rest: Vec<&Candidate> = self.near(client).iter().filter(|c| fits(c)).collect();
        let mut addresses = Vec::new();
        let mut seed = seed;
        while addresses.len() < self.answers_max && !rest.is_empty() {
            seed = super::mix(seed);
            let candidate = rest.swap_remove(draw(&rest, seed));
            match &candidate.alias {
                Some(alias) if addresses.is_empty() => return Picked::Alias(alias),
                // Nothing may stand beside an alias, so this member is not in this answer.
                Some(_) => {}
                None => candidate.add(family, self.answers_max, seed, &mut addresses),
            }
        }
        if addresses.is_empty() { Picked::Nothing } else { Picked::Addresses(addresses) }
    }

    /// The other name that stands for everything, when there is one in every case.
    pub(super) fn alias(&self, client: IpAddr, seed: u64) -> Option<&str> {
        let near: Vec<&Candidate> = self.near(client).iter().collect();
        if near.iter().any(|candidate| candidate.alias.is_none()) {
            return None;
        }
        near.get(draw(&near, super::mix(seed)))?.alias.as_deref()
    }

    fn near(&self, client: IpAddr) -> &[Candidate] {
        let region = self.geo.as_ref().and_then(|geo| geo.region(client));
        region.and_then(|region| self.regions.get(region)).unwrap_or(&self.all)
    }
}

/// Members that are healthy and that this agent reaches. One that reaches nobody may be cut off itself:
/// then the plan counts.
fn healthy<'a>(set: &'a RecordSet, unreachable: &BTreeSet<MemberId>) -> Vec<&'a MemberRecord> {
    let planned = || set.members.iter().filter(|record| record.out.is_none());
    let reached: Vec<&MemberRecord> =
        planned().filter(|record| !unreachable.contains(&record.member)).collect();
    if reached.is_empty() { planned().collect() } else { reached }
}

fn candidate(record: &MemberRecord) -> Candidate {
    let mut addresses = Vec::new();
    let mut alias = None;
    for address in &record.addresses {
        match address {
            Address::Ip(ip) => addresses.push(*ip),
            Address::Name(name) => alias = Some(name.to_ascii_lowercase()),
        }
    }
    let alias = alias.filter(|_| addresses.is_empty());
    Candidate { addresses, alias, weight: record.weight }
}

impl Candidate {
    fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        let wanted = move |ip: &&IpAddr| ip.is_ipv4() == (family == Family::V4);
        self.addresses.iter().filter(wanted).copied()
    }

    fn has(&self, family: Family) -> bool {
        self.of(family).next().is_some()
    }

    /// Starts anywhere, so that no address of a member is preferred.
    fn add(&self, family: Family, max: usize, seed: u64, to: &mut Vec<IpAddr>) {
        let own: Vec<IpAddr> = self.of(family).collect();
        let start = usize::try_from(seed >> 32).unwrap_or(0) % own.len().max(1);
        let turned = own.iter().cycle().skip(start).take(own.len());
        to.extend(turned.take(max.saturating_sub(to.len())));
    }
}

/// An index by weight; by chance alone when nobody has any.
fn draw(candidates: &[&Candidate], seed: u64) -> usize {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    if total == 0 {
        let count = u64::try_from(candidates.len()).unwrap_or(u64::MAX).max(1);
        return usize::try_from(scale(seed, count)).unwrap_or(0);
    }
    let mut left = scale(seed, total);
    for (at, candidate) in candidates.iter().enumerate() {
        match left.checked_sub(u64::from(candidate.weight)) {
            Some(rest) => left = rest,
            None => return at,
        }
    }
    0
}

/// A number below `bound`, evenly: a remainder would prefer the small ones.
fn scale(seed: u64, bound: u64) -> u64 {
    u64::try_from((u128::from(seed) * u128::from(bound)) >> 64).unwrap_or(0)
}
