//! The zone `clusterset.local`: records as the DNS specification of the MCS-API asks for them.
//!
//! Which addresses there are is decided elsewhere ([`crate::clusterset`]); here they get names. A record of
//! the specification that this zone does not have: PTR, since the reverse zones are not ours.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_model::MemberId;

use super::{Data, Family, Kind, Node, Record, Start, View, ZoneView, suffixes};
use crate::clusterset::{Clusterset, NamedPort, Reach, ZONE};

/// Clients shall notice soon when an address moves.
const TTL_S: u32 = 5;
/// How long the schema version may be kept, as the specification shows it.
const VERSION_TTL_S: u32 = 28_800;
/// Of the specification.
const VERSION: &str = "1.0.0";
/// How long it may be kept that a service is not there.
const NEGATIVE_TTL_S: u32 = 5;
/// Priority and weight of every SRV record: all alike, nobody weighs here.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 100;

/// Records that do not depend on who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fixed {
    ttl_s: u32,
    addresses: BTreeSet<IpAddr>,
    /// Port and name of where it is served.
    locations: BTreeSet<(u16, Box<str>)>,
    text: Option<&'static str>,
}

impl View {
    /// The one zone of the clusterset, as it looks from `member`.
    pub fn of_clusterset(services: &Clusterset, member: &MemberId, serial: u32) -> Self {
        let mut names: BTreeMap<String, Fixed> = BTreeMap::new();
        let version = Fixed { ttl_s: VERSION_TTL_S, text: Some(VERSION), ..Fixed::default() };
        names.insert(format!("dns-version.{ZONE}"), version);
        for (service, reach) in services {
            let name = format!("{}.{}.svc.{ZONE}", service.name, service.namespace);
            put_service(&mut names, &name.to_ascii_lowercase(), reach, member);
        }
        let mut nodes: HashMap<Box<str>, Node> = HashMap::new();
        for below in names.keys().flat_map(|name| suffixes(name)) {
            if fairlead_model::dns::is_within(below, ZONE) && !nodes.contains_key(below) {
                nodes.insert(below.into(), Node::Empty);
            }
        }
        nodes.extend(names.into_iter().map(|(name, fixed)| (name.into(), Node::Fixed(fixed))));
        let start = Start {
            server: format!("ns.{ZONE}"),
            contact: format!("hostmaster.{ZONE}"),
            serial,
            negative_ttl_s: NEGATIVE_TTL_S,
        };
        let zone = ZoneView { name: ZONE.into(), start, servers: Vec::new(), names: nodes };
        Self { zones: [(ZONE.into(), zone)].into() }
    }
}

fn put_service(names: &mut BTreeMap<String, Fixed>, name: &str, reach: &Reach, member: &MemberId) {
    let mut addresses = reach.addresses.clone();
    addresses.extend(reach.endpoints.iter().map(|endpoint| endpoint.address));
    let own = names.entry(name.to_owned()).or_default();
    own.ttl_s = TTL_S;
    own.addresses.extend(addresses);
    put_ports(names, name, &reach.ports, name);
    for endpoint in &reach.endpoints {
        let target = format!("{}.{member}.{name}", endpoint.hostname);
        let at = names.entry(target.clone()).or_default();
        at.ttl_s = TTL_S;
        at.addresses.insert(endpoint.address);
        put_ports(names, name, &endpoint.ports, &target);
    }
}

fn put_ports(
    names: &mut BTreeMap<String, Fixed>,
    service: &str,
    ports: &BTreeSet<NamedPort>,
    target: &str,
) {
    for port in ports {
        let name = format!("_{}._{}.{service}", port.name, port.protocol);
        let at = names.entry(name).or_default();
        at.ttl_s = TTL_S;
        at.locations.insert((port.number, target.into()));
    }
}

impl Fixed {
    /// Its records of a kind, beginning anywhere, so that no address is preferred.
    pub(super) fn records(&self, kind: Kind, seed: u64) -> Vec<Record<'_>> {
        let data: Vec<Data<'_>> = match kind {
            Kind::Address(family) => self.of(family).map(Data::Address).collect(),
            Kind::Location => self.locations.iter().map(location).collect(),
            Kind::Text => self.text.into_iter().map(Data::Text).collect(),
            Kind::Alias | Kind::Servers | Kind::Start | Kind::Any | Kind::Other => Vec::new(),
        };
        let start = usize::try_from(seed >> 32).unwrap_or(0) % data.len().max(1);
        let mut records: Vec<Record<'_>> =
            data.into_iter().map(|data| Record { owner: None, ttl_s: self.ttl_s, data }).collect();
        records.rotate_left(start);
        records
    }

    /// Addresses, for whoever was led here.
    pub(super) fn glue<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = Record<'a>> {
        self.addresses.iter().map(move |ip| Record {
            owner: Some(owner),
            ttl_s: self.ttl_s,
            data: Data::Address(*ip),
        })
    }

    fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().filter(move |ip| ip.is_ipv4() == (family == Family::V4)).copied()
    }
}

fn location((port, target): &(u16, Box<str>)) -> Data<'_> {
    Data::Location { priority: PRIORITY, weight: WEIGHT, port: *port, target }
}

#[cfg(test)]
#[path = "clusterset_tests.rs"]
mod tests;
