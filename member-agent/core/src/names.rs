//! Doors and gateways whose addresses are names, as cloud load balancers have them: what the names stand for,
//! and what that makes of the slices of the crossing.
//!
//! One small machine for each name and family. Time comes in, and who asks the resolver is not known here.
//!
//! ```text
//!              addresses                     absent          absent again, a negative TTL later
//!  Unknown ──────────────▶ Known {ips} ───────────────▶ doubted ───────────────▶ Known {}
//!     │  ▲                    │   ▲ ▲                      │                        │
//!     └──┘ failed      failed └───┘ └──────────────────────┴────── addresses ───────┘
//! ```
//!
//! A resolver that fails says nothing: the last answer stands, however old. Where there was no answer yet
//! (the agent has just started), what is in the API server stands: slices are never emptied for want of
//! news, only because a name is known to have no address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_model::bundle::{Bundle, Peer};
use fairlead_model::dns::DnsName;
use fairlead_model::snapshot::{Address, GatewayRole, Snapshot};
use fairlead_model::{Json, MemberId, Millis, ObjectId};
use serde_json::json;

use crate::dns::Family;
use crate::live::LiveObjects;
use crate::own::{MEMBER, MEMBER_PREFIX, SERVICE_NAME, may_be_a_door};

/// Names that are asked for at most; a fleet has a door or two per member.
const NAMES_MAX: usize = 256;
/// Addresses of one name and family at most.
const ADDRESSES_MAX: usize = 32;
/// Addresses in one slice at most.
const SLICE_MAX: usize = 64;
/// No name is asked for more often than that, whatever its TTL.
const TTL_MIN_S: u32 = 5;
/// An answer is asked for again after that, whatever its TTL.
const TTL_MAX_S: u32 = 3_600;
/// For an absence that does not say how long it holds.
const ABSENT_TTL_S: u32 = 30;
/// An absence is asked for again after that: a door that is made anew shall be found.
const ABSENT_TTL_MAX_S: u32 = 300;
/// The wait after a failure: doubles up to the longest.
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 30_000;

/// What a resolver said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These addresses.
    Addresses {
        /// Of the family that was asked for.
        ips: BTreeSet<IpAddr>,
        /// How long they may be kept, in seconds.
        ttl_s: u32,
    },
    /// The name does not exist, or has no address of the family: somebody who must know said so.
    Absent {
        /// How long that may be kept, in seconds, where it was said.
        ttl_s: Option<u32>,
    },
    /// No answer, or one that means nothing.
    Failed,
}

/// What one name stands for; none = not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// IPv4.
    pub v4: Option<BTreeSet<IpAddr>>,
    /// IPv6.
    pub v6: Option<BTreeSet<IpAddr>>,
}

/// What names stand for.
pub type Resolved = BTreeMap<DnsName, Found>;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// The name.
    pub name: DnsName,
    /// The family.
    pub family: Family,
}

/// All names.
#[derive(Debug, Default)]
pub struct Names {
    entries: BTreeMap<Ask, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    known: Option<BTreeSet<IpAddr>>,
    /// The last that was heard is that there is nothing.
    doubted: bool,
    failures: u32,
    asking: bool,
    next: Millis,
}

impl Names {
    /// Says which names matter from now on. What is known of others is forgotten.
    pub fn want(&mut self, names: &BTreeSet<DnsName>, now: Millis) {
        self.entries.retain(|ask, _| names.contains(&ask.name));
        for name in names.iter().take(NAMES_MAX) {
            for family in [Family::V4, Family::V6] {
                let ask = Ask { name: name.clone(), family };
                let new = || Entry { next: now, ..Entry::default() };
                self.entries.entry(ask).or_insert_with(new);
            }
        }
    }

    /// Questions that are to be asked now; each is out until it is answered.
    pub fn due(&mut self, now: Millis) -> Vec<Ask> {
        let due = self.entries.iter_mut().filter(|(_, entry)| !entry.asking && entry.next <= now);
        due.map(|(ask, entry)| {
            entry.asking = true;
            ask.clone()
        })
        .collect()
    }

    /// When there is something to ask next.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.entries.values().filter(|entry| !entry.asking).map(|entry| entry.next).min()
    }

    /// Takes what a resolver said.
    pub fn hear(&mut self, ask: &Ask, heard: Heard, now: Millis) {
        let Some(entry) = self.entries.get_mut(ask) else { return };
        entry.asking = false;
        let seconds = |s: u32| u64::from(s) * 1_000;
        let wait = match usable(heard, ask.family) {
            Heard::Addresses { ips, ttl_s } => {
                entry.known = Some(ips);
                (entry.doubted, entry.failures) = (false, 0);
                seconds(ttl_s.clamp(TTL_MIN_S, TTL_MAX_S))
            }
            Heard::Absent { ttl_s } => {
                if entry.doubted {
                    entry.known = Some(BTreeSet::new());
                }
                (entry.doubted, entry.failures) = (true, 0);
                seconds(ttl_s.unwrap_or(ABSENT_TTL_S).clamp(TTL_MIN_S, ABSENT_TTL_MAX_S))
            }
            Heard::Failed => {
                let wait = RETRY_MIN_MS.saturating_mul(1 << entry.failures.min(10));
                entry.failures = entry.failures.saturating_add(1);
                wait.min(RETRY_MAX_MS)
            }
        };
        entry.next = now.plus(wait);
    }

    /// What is known.
    pub fn resolved(&self) -> Resolved {
        let mut resolved = Resolved::new();
        for (ask, entry) in &self.entries {
            let found = resolved.entry(ask.name.clone()).or_default();
            match ask.family {
                Family::V4 => found.v4.clone_from(&entry.known),
                Family::V6 => found.v6.clone_from(&entry.known),
            }
        }
        resolved
    }
}

/// Without what no door can have; an answer of which nothing is left says nothing.
fn usable(heard: Heard, family: Family) -> Heard {
    let Heard::Addresses { ips, ttl_s } = heard else { return heard };
    let fits = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4) && may_be_a_door(*ip);
    let ips: BTreeSet<IpAddr> = ips.into_iter().filter(fits).take(ADDRESSES_MAX).collect();
    match ips.is_empty() {
        true => Heard::Failed,
        false => Heard::Addresses { ips, ttl_s },
    }
}

/// Names among the addresses of peers' doors.
pub fn names_of(peers: &BTreeMap<MemberId, Peer>) -> BTreeSet<DnsName> {
    peers.values().flat_map(|peer| &peer.addresses).filter_map(name_of).collect()
}

/// Names among the addresses of this member's own gateways.
pub fn names_of_gateways(snapshot: &Snapshot) -> BTreeSet<DnsName> {
    let gateways = snapshot.gateways.values().filter(|gateway| gateway.role != GatewayRole::Door);
    gateways.flat_map(|gateway| &gateway.addresses).filter_map(name_of).collect()
}

/// What is known to be behind an address: itself, or what its name stands for.
pub fn ips_of(address: &Address, resolved: &Resolved) -> BTreeSet<IpAddr> {
    match (address, name_of(address).and_then(|name| resolved.get(&name))) {
        (Address::Ip(ip), _) => [*ip].into(),
        (Address::Name(_), Some(found)) => {
            found.v4.iter().chain(&found.v6).flatten().copied().collect()
        }
        (Address::Name(_), None) => BTreeSet::new(),
    }
}

fn name_of(address: &Address) -> Option<DnsName> {
    match address {
        Address::Ip(_) => None,
        Address::Name(name) => DnsName::new(name).ok().filter(|name| !name.is_wildcard()),
    }
}

/// The peers as they are probed: at the very addresses that their slices have. A name that nothing is known
/// of stays a name.
pub fn resolve_peers(
    peers: &BTreeMap<MemberId, Peer>,
    resolved: &Resolved,
) -> BTreeMap<MemberId, Peer> {
    let addresses = |address: &Address| -> Vec<Address> {
        let found = name_of(address).and_then(|name| resolved.get(&name));
        let known = |found: &Found| found.v4.is_some() || found.v6.is_some();
        match found.filter(|found| known(found)) {
            None => vec![address.clone()],
            Some(found) => {
                let ips = found.v4.iter().chain(&found.v6).flatten();
                ips.map(|ip| Address::Ip(*ip)).collect()
            }
        }
    };
    let resolve = |(member, peer): (&MemberId, &Peer)| {
        let addresses = peer.addresses.iter().flat_map(addresses).collect();
        (member.clone(), Peer { addresses, ..peer.clone() })
    };
    peers.iter().map(resolve).collect()
}

/// Puts what names stand for into the slices of their doors, over the bundle's own.
pub fn fill_slices(
    bundle: &Bundle,
    resolved: &Resolved,
    live: &LiveObjects,
    contents: &mut BTreeMap<ObjectId, Json>,
) {
    let is_slice = |id: &ObjectId| &*id.kind == "EndpointSlice";
    for (id, object) in bundle.objects.iter().filter(|(id, _)| is_slice(id)) {
        let labels = object.content.pointer("/metadata/labels");
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Json::as_str);
        let named = || label(SERVICE_NAME)?.strip_prefix(MEMBER_PREFIX);
        let member = label(MEMBER).or_else(named).and_then(|name| MemberId::new(name).ok());
        let Some(peer) = member.and_then(|member| bundle.peers.get(&member)) else { continue };
        let family = match object.content.get("addressType").and_then(Json::as_str) {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            _ => continue,
        };
        let live = live.get(id).filter(|live| live.is_ours()).map(|live| &live.content);
        let Some(ips) = addresses_of(peer, family, resolved, &object.content, live) else {
            continue;
        };
        let mut content = object.content.clone();
        if let Some(fields) = content.as_object_mut() {
            fields.insert("endpoints".to_owned(), ips.iter().map(endpoint).collect());
        }
        if content != object.content {
            contents.insert(id.clone(), content);
        }
    }
}

/// Every address that a slice has to have; none where its door has no name.
fn addresses_of(
    peer: &Peer,
    family: Family,
    resolved: &Resolved,
    planned: &Json,
    live: Option<&Json>,
) -> Option<BTreeSet<IpAddr>> {
    let names: Vec<DnsName> = peer.addresses.iter().filter_map(name_of).collect();
    if names.is_empty() {
        return None;
    }
    let mut ips = endpoint_ips(planned);
    for name in names {
        let found = resolved.get(&name).and_then(|found| match family {
            Family::V4 => found.v4.as_ref(),
            Family::V6 => found.v6.as_ref(),
        });
        match found {
            Some(found) => ips.extend(found),
            // Not known yet: what was written in an earlier life is the last answer.
            None => ips.extend(live.map(endpoint_ips).unwrap_or_default()),
        }
    }
    Some(ips.into_iter().take(SLICE_MAX).collect())
}

fn endpoint_ips(slice: &Json) -> BTreeSet<IpAddr> {
    let endpoints = slice.get("endpoints").and_then(Json::as_array).into_iter().flatten();
    let addresses = endpoints.filter_map(|endpoint| endpoint.get("addresses")?.as_array());
    addresses.flatten().filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// As the hub renders it: conditions in full, since some gateways take a missing one for no.
fn endpoint(ip: &IpAddr) -> Json {
    json!({
        "addresses": [ip.to_string()],
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
