//! Zones of a bundle as items: one for the zone itself and one for each of its names, so that a change
//! costs the names that it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use fairlead_model::dns::{
    AnswerPolicy, DnsName, MemberRecord, NameServer, Network, RecordSet, Strategy, WhenNoneHealthy,
    Zone, Zones,
};
use fairlead_model::snapshot::Address;
use fairlead_model::{MemberId, Note, NsName, Reason};

use crate::pb;
use crate::pb::bundle_item::Item;

/// Items of all zones, with their keys.
pub(crate) fn zones_to_items(zones: &Zones) -> impl Iterator<Item = (String, Item)> {
    zones.iter().flat_map(|(name, zone)| {
        let own = (format!("dns/{name}"), Item::DnsZone(zone_to_pb(name, zone)));
        let sets = zone.sets.iter().map(move |(set_name, set)| {
            let item = Item::DnsRecordSet(set_to_pb(name, set_name, set));
            (format!("dns/{name}/{set_name}"), item)
        });
        std::iter::once(own).chain(sets)
    })
}

/// Puts names into the zones that came before them; what has no zone or no policy is said.
pub(crate) fn put_sets(
    zones: &mut Zones,
    sets: Vec<(DnsName, DnsName, RecordSet)>,
    notes: &mut Vec<Note>,
) {
    for (zone, name, set) in sets {
        let known = zones.get_mut(&zone).filter(|zone| zone.policies.contains_key(&set.policy));
        match known {
            Some(zone) => drop(zone.sets.insert(name, set)),
            None => notes.push(Note::new(
                format!("dns/{zone}/{name}"),
                Reason::Unreadable,
                "a name without its zone or policy was left out",
            )),
        }
    }
}

fn zone_to_pb(name: &DnsName, zone: &Zone) -> pb::DnsZone {
    let server = |server: &NameServer| pb::DnsNameServer {
        name: server.name.to_string(),
        addresses: server.addresses.iter().map(ToString::to_string).collect(),
    };
    pb::DnsZone {
        zone: name.to_string(),
        serial: zone.serial,
        negative_ttl_s: zone.negative_ttl_s,
        servers: zone.servers.iter().map(server).collect(),
        policies: zone.policies.iter().map(|(name, policy)| policy_to_pb(name, policy)).collect(),
    }
}

/// The zone of an item, without names.
pub(crate) fn zone_from_pb(zone: pb::DnsZone) -> Result<(DnsName, Zone), String> {
    let server = |server: pb::DnsNameServer| {
        let addresses = parse_all(&server.addresses)?;
        Ok::<_, String>(NameServer { name: parse(&server.name)?, addresses })
    };
    let found = Zone {
        serial: zone.serial,
        negative_ttl_s: zone.negative_ttl_s,
        servers: zone.servers.into_iter().map(server).collect::<Result<_, _>>()?,
        policies: zone.policies.into_iter().map(policy_from_pb).collect::<Result<_, _>>()?,
        sets: BTreeMap::new(),
    };
    Ok((parse(&zone.zone)?, found))
}

fn policy_to_pb(name: &NsName, policy: &AnswerPolicy) -> pb::DnsAnswerPolicy {
    let network = |network: &Network| pb::DnsNetwork {
        cidr: format!("{}/{}", network.address, network.prefix_len),
        region: network.region.clone(),
    };
    pb::DnsAnswerPolicy {
        policy: name.to_string(),
        strategy: match policy.strategy {
            Strategy::Weighted => pb::DnsStrategy::Weighted,
            Strategy::Geo => pb::DnsStrategy::Geo,
            Strategy::Failover => pb::DnsStrategy::Failover,
            Strategy::All => pb::DnsStrategy::All,
        }
        .into(),
        ttl_s: policy.ttl_s,
        answers_max: policy.answers_max.into(),
        when_none_healthy: match policy.when_none_healthy {
            WhenNoneHealthy::All => pb::DnsWhenNoneHealthy::Unspecified,
            WhenNoneHealthy::None => pb::DnsWhenNoneHealthy::None,
            WhenNoneHealthy::Fallback => pb::DnsWhenNoneHealthy::Fallback,
        }
        .into(),
        fallback: policy.fallback.iter().map(ToString::to_string).collect(),
        networks: policy.networks.iter().map(network).collect(),
    }
}

fn policy_from_pb(policy: pb::DnsAnswerPolicy) -> Result<(NsName, Arc<AnswerPolicy>), String> {
    let strategy = match policy.strategy() {
        // A strategy of a newer hub: every healthy member is a right answer, if not the best.
        pb::DnsStrategy::Unspecified | pb::DnsStrategy::All => Strategy::All,
        pb::DnsStrategy::Weighted => Strategy::Weighted,
        pb::DnsStrategy::Geo => Strategy::Geo,
        pb::DnsStrategy::Failover => Strategy::Failover,
    };
    let when_none_healthy = match policy.when_none_healthy() {
        pb::DnsWhenNoneHealthy::Unspecified => WhenNoneHealthy::All,
        pb::DnsWhenNoneHealthy::None => WhenNoneHealthy::None,
        pb::DnsWhenNoneHealthy::Fallback => WhenNoneHealthy::Fallback,
    };
    let network = |network: &pb::DnsNetwork| {
        Network::parse(&network.cidr, &network.region).map_err(|e| e.to_string())
    };
    let found = AnswerPolicy {
        strategy,
        ttl_s: policy.ttl_s,
        answers_max: small(policy.answers_max)?.max(1),
        when_none_healthy,
        fallback: parse_all(&policy.fallback)?,
        networks: policy.networks.iter().map(network).collect::<Result<_, _>>()?,
    };
    Ok((parse(&policy.policy)?, Arc::new(found)))
}

fn set_to_pb(zone: &DnsName, name: &DnsName, set: &RecordSet) -> pb::DnsRecordSet {
    let member = |record: &MemberRecord| pb::DnsMember {
        member: record.member.to_string(),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        weight: record.weight,
        tier: record.tier.into(),
        region: record.region.clone(),
        out: record.out.map(|reason| reason.to_string()),
    };
    pb::DnsRecordSet {
        zone: zone.to_string(),
        name: name.to_string(),
        policy: set.policy.to_string(),
        members: set.members.iter().map(member).collect(),
    }
}

/// Zone, name and content of an item.
pub(crate) fn set_from_pb(set: pb::DnsRecordSet) -> Result<(DnsName, DnsName, RecordSet), String> {
    let member = |record: pb::DnsMember| {
        Ok::<_, String>(MemberRecord {
            member: MemberId::new(&record.member).map_err(|e| e.to_string())?,
            addresses: record.addresses.iter().map(|text| Address::of(text)).collect(),
            weight: record.weight,
            tier: small(record.tier)?,
            region: record.region,
            // Whatever a newer hub's reason is, the member is out.
            out: record.out.map(|name| crate::convert::reason_from(&name).unwrap_or(Reason::Down)),
        })
    };
    let (zone, name): (DnsName, DnsName) = (parse(&set.zone)?, parse(&set.name)?);
    if !name.is_within(&zone) {
        return Err(format!("{name} is not in zone {zone}"));
    }
    let members = set.members.into_iter().map(member).collect::<Result<_, _>>()?;
    Ok((zone, name, RecordSet { policy: parse(&set.policy)?, members }))
}

fn small(value: u32) -> Result<u16, String> {
    u16::try_from(value).map_err(|_| format!("{value} is out of range"))
}

fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn parse_all(texts: &[String]) -> Result<BTreeSet<IpAddr>, String> {
    texts.iter().map(|text| parse(text)).collect()
}
