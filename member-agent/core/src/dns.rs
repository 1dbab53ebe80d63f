//! What the agent answers in the DNS. Pure: zones and a question in, an answer out.
//!
//! A [`View`] is made when zones or reachability change and holds everything that can be known before a
//! query comes; it is swapped as a whole, so that no answer mixes two plans. Chance comes in as a seed.
//! Messages on the wire are not known here.
//!
//! ```text
//! zones of the bundle ─┐
//! unreachable members ─┴▶ View::new ─▶ view.answer(question, client, seed) ─▶ Reply
//! ```

mod choice;
mod clusterset;
mod geo;
mod rate;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_model::MemberId;
use fairlead_model::dns::{DnsName, NameServer, Strategy, Zone, Zones};

pub use choice::{Family, Picked};
pub use geo::Geo;
pub use rate::{Admit, Rate};

use choice::SetView;
use clusterset::Fixed;

/// How long what a zone says of itself may be kept, in seconds.
const APEX_TTL_S: u32 = 300;
/// How long the refusal of ANY may be kept, in seconds.
const ANY_TTL_S: u32 = 3_600;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addresses.
    Address(Family),
    /// Another name.
    Alias,
    /// Name servers.
    Servers,
    /// Start of authority.
    Start,
    /// Where a port of a service is (SRV).
    Location,
    /// Text.
    Text,
    /// Everything (RFC 8482: nobody gets it).
    Any,
    /// Whatever else; no name here has it.
    Other,
}

/// How a question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The name exists.
    NoError,
    /// The name does not exist.
    NameError,
    /// The name is in no zone of ours.
    Refused,
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Owner; none = the name that was asked for, as it was written.
    pub owner: Option<&'a str>,
    /// How long it may be kept, in seconds.
    pub ttl_s: u32,
    /// Content.
    pub data: Data<'a>,
}

/// Content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data<'a> {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Alias(&'a str),
    /// NS.
    Server(&'a str),
    /// SOA.
    Start(&'a Start),
    /// SRV.
    Location {
        /// The lowest is tried first.
        priority: u16,
        /// Share among those of one priority.
        weight: u16,
        /// Port.
        port: u16,
        /// Name of the host.
        target: &'a str,
    },
    /// TXT.
    Text(&'a str),
    /// HINFO of RFC 8482.
    NoAny,
}

/// A zone's start of authority. Refresh and the like have no meaning here: nobody transfers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// First name server.
    pub server: String,
    /// Mailbox as a name.
    pub contact: String,
    /// Serial.
    pub serial: u32,
    /// How long a negative answer may be kept, in seconds.
    pub negative_ttl_s: u32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<'a> {
    /// How it went.
    pub code: Code,
    /// Answer section.
    pub answers: Vec<Record<'a>>,
    /// Authority section.
    pub authority: Vec<Record<'a>>,
    /// Additional section.
    pub additional: Vec<Record<'a>>,
    /// It depends on where the client is.
    pub is_regional: bool,
}

/// All zones, ready to answer.
#[derive(Debug, Clone, Default)]
pub struct View {
    zones: HashMap<Box<str>, ZoneView>,
}

#[derive(Debug, Clone)]
struct ZoneView {
    name: Box<str>,
    start: Start,
    servers: Vec<NameServer>,
    names: HashMap<Box<str>, Node>,
}

/// What is at a name.
#[derive(Debug, Clone)]
enum Node {
    /// There is a name below it, so it exists.
    Empty,
    /// A name server of the zone.
    Server(BTreeSet<IpAddr>),
    /// A published name.
    Set(SetView),
    /// A name whose records are always the same.
    Fixed(Fixed),
}

impl View {
    /// `unreachable` are members that this agent itself cannot reach.
    pub fn new(zones: &Zones, unreachable: &BTreeSet<MemberId>) -> Self {
        let view =
            |(name, zone)| (Box::from(DnsName::as_str(name)), zone_view(name, zone, unreachable));
        Self { zones: zones.iter().map(view).collect() }
    }

    /// Serials by zone.
    pub fn serials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.zones.values().map(|zone| (&*zone.name, zone.start.serial))
    }

    /// Answers a question; `name` is in lower case and has no dot at its end. `seed` is chance.
    pub fn answer(&self, name: &str, kind: Kind, client: IpAddr, seed: u64) -> Reply<'_> {
        match self.zone_of(name) {
            Some(zone) => zone.answer(name, kind, client, seed),
            None => Reply::empty(Code::Refused),
        }
    }

    /// The deepest zone that a name is in.
    fn zone_of(&self, name: &str) -> Option<&ZoneView> {
        suffixes(name).find_map(|suffix| self.zones.get(suffix))
    }
}

/// A name, then its parents.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent))
}

fn zone_view(name: &DnsName, zone: &Zone, unreachable: &BTreeSet<MemberId>) -> ZoneView {
    let geo: HashMap<_, _> = zone
        .policies
        .iter()
        .filter(|(_, policy)| policy.strategy == Strategy::Geo)
        .map(|(name, policy)| (name, Arc::new(Geo::new(&policy.networks))))
        .collect();
    let mut names: HashMap<Box<str>, Node> = HashMap::new();
    for (set_name, set) in &zone.sets {
        let Some(policy) = zone.policies.get(&set.policy) else { continue };
        let view = SetView::new(set, policy, geo.get(&set.policy).cloned(), unreachable);
        names.insert(set_name.as_str().into(), Node::Set(view));
    }
    for server in zone.servers.iter().filter(|server| !server.addresses.is_empty()) {
        names.entry(server.name.as_str().into()).or_insert(Node::Server(server.addresses.clone()));
    }
    let known: Vec<Box<str>> = names.keys().cloned().collect();
    for below in known.iter().flat_map(|known| suffixes(known)) {
        if fairlead_model::dns::is_within(below, name.as_str()) {
            names.entry(below.into()).or_insert(Node::Empty);
        }
    }
    names.entry(name.as_str().into()).or_insert(Node::Empty);
    let server = zone.servers.first().map(|server| server.name.to_string());
    let start = Start {
        server: server.unwrap_or_else(|| format!("ns.{name}")),
        contact: format!("hostmaster.{name}"),
        serial: zone.serial,
        negative_ttl_s: zone.negative_ttl_s,
    };
    ZoneView { name: name.as_str().into(), start, servers: zone.servers.clone(), names }
}

impl ZoneView {
    fn answer(&self, name: &str, kind: Kind, client: IpAddr, seed: u64) -> Reply<'_> {
        let Some(node) = self.find(name) else { return self.negative(Code::NameError) };
        let mut reply = match kind {
            Kind::Any => Reply::of(Record { owner: None, ttl_s: ANY_TTL_S, data: Data::NoAny }),
            Kind::Start if name == &*self.name => Reply::of(self.start(None)),
            Kind::Servers if name == &*self.name => self.servers(),
            _ => self.at(node, kind, client, seed),
        };
        if reply.answers.is_empty() {
            reply = Reply { is_regional: reply.is_regional, ..self.negative(Code::NoError) };
        }
        reply
    }

    /// What is at a name, or at the wildcard that stands for it (RFC 4592): the one below the closest
    /// name that exists.
    fn find(&self, name: &str) -> Option<&Node> {
        if let Some(node) = self.names.get(name) {
            return Some(node);
        }
        let closest = suffixes(name).find(|suffix| self.names.contains_key(*suffix))?;
        self.names.get(format!("*.{closest}").as_str())
    }

    fn at<'a>(&'a self, node: &'a Node, kind: Kind, client: IpAddr, seed: u64) -> Reply<'a> {
        let mut reply = Reply::empty(Code::NoError);
        match (node, kind) {
            (Node::Set(set), Kind::Address(family)) => {
                reply.is_regional = set.is_regional();
                let record = |data| Record { owner: None, ttl_s: set.ttl_s, data };
                match set.addresses(client, family, seed) {
                    Picked::Addresses(found) => {
                        reply.answers = found.into_iter().map(Data::Address).map(record).collect();
                    }
                    Picked::Alias(alias) => reply.answers.push(record(Data::Alias(alias))),
                    Picked::Nothing => {}
                }
            }
            (Node::Set(set), _) => {
                reply.is_regional = set.is_regional();
                let alias = set.alias(client, seed);
                reply.answers.extend(alias.map(|alias| Record {
                    owner: None,
                    ttl_s: set.ttl_s,
                    data: Data::Alias(alias),
                }));
            }
            (Node::Server(addresses), Kind::Address(family)) => {
                let of = addresses.iter().filter(|ip| ip.is_ipv4() == (family == Family::V4));
                reply.answers = of
                    .map(|ip| Record { owner: None, ttl_s: APEX_TTL_S, data: Data::Address(*ip) })
                    .collect();
            }
            (Node::Fixed(fixed), _) => {
                reply.answers = fixed.records(kind, seed);
                reply.additional = self.led_to(&reply.answers);
            }
            (Node::Empty | Node::Server(_), _) => {}
        }
        reply
    }

    /// Addresses of the hosts that an answer names, so that nobody has to ask again.
    fn led_to<'a>(&'a self, answers: &[Record<'a>]) -> Vec<Record<'a>> {
        let targets = answers.iter().filter_map(|record| match record.data {
            Data::Location { target, .. } => Some(target),
            _ => None,
        });
        let targets: BTreeSet<&str> = targets.collect();
        let hosts = targets.into_iter().filter_map(|name| match self.names.get(name) {
            Some(Node::Fixed(fixed)) => Some(fixed.glue(name)),
            _ => None,
        });
        hosts.flatten().collect()
    }

    fn servers(&self) -> Reply<'_> {
        let mut reply = Reply::empty(Code::NoError);
        for server in &self.servers {
            let data = Data::Server(server.name.as_str());
            reply.answers.push(Record { owner: None, ttl_s: APEX_TTL_S, data });
            reply.additional.extend(server.addresses.iter().map(|ip| Record {
                owner: Some(server.name.as_str()),
                ttl_s: APEX_TTL_S,
                data: Data::Address(*ip),
            }));
        }
        reply
    }

    fn start(&self, owner: Option<&'static str>) -> Record<'_> {
        Record { owner, ttl_s: self.start.negative_ttl_s, data: Data::Start(&self.start) }
    }

    fn negative(&self, code: Code) -> Reply<'_> {
        let mut reply = Reply::empty(code);
        reply.authority.push(Record { owner: Some(&self.name), ..self.start(None) });
        reply
    }
}

impl<'a> Reply<'a> {
    fn empty(code: Code) -> Self {
        let (answers, authority, additional) = (Vec::new(), Vec::new(), Vec::new());
        Self { code, answers, authority, additional, is_regional: false }
    }

    fn of(record: Record<'a>) -> Self {
        let mut reply = Self::empty(Code::NoError);
        reply.answers.push(record);
        reply
    }
}

/// SplitMix64: spreads a seed evenly.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
