//! Names in the public DNS: what users ask for ([`DnsPolicy`]) and what answers for them ([`Zone`]).
//!
//! A zone is complete: whoever holds it can answer every query without asking anybody. Which member is
//! named in an answer is chosen per query, from the candidates and their weights, tiers and regions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{IdError, printable};
use crate::snapshot::Address;
use crate::{MemberId, Millis, NsName, Reason};

/// Longest name, without the dot at its end.
const NAME_LEN_MAX: usize = 253;
/// Longest label.
const LABEL_LEN_MAX: usize = 63;
/// Name servers of a zone at most: referrals to more do not fit into small answers.
pub const NAME_SERVERS_MAX: usize = 8;

/// A host name in lower case, without the dot at its end; the first label may be `*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// Validates a name; upper case and a dot at the end are taken away.
    ///
    /// # Errors
    /// [`IdError::Form`] when it is no host name.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let mut labels = name.split('.');
        let first = labels.next().unwrap_or_default();
        let fits = name.len() <= NAME_LEN_MAX
            && (is_label(first) || (first == "*" && name.len() > 1))
            && labels.all(is_label);
        match fits {
            true => Ok(Self(name.into())),
            false => Err(IdError::Form {
                what: "DNS name",
                value: printable(text),
                form: "LABEL.LABEL… of letters, digits and '-'",
            }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `*.…`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// True for the zone's own name and every name below it.
    pub fn is_within(&self, zone: &Self) -> bool {
        is_within(&self.0, &zone.0)
    }
}

/// Whether a name in lower case is another one or below it.
pub fn is_within(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Underscores are no host names, but services with them are published.
fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=LABEL_LEN_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl TryFrom<String> for DnsName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(&text)
    }
}

impl std::str::FromStr for DnsName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> String {
        name.0.to_string()
    }
}

impl std::fmt::Display for DnsName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for DnsName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What users ask of the names of global gateways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsPolicy {
    /// The DNSPolicy.
    pub name: NsName,
    /// `metadata.creationTimestamp`; settles conflicts.
    pub created_at: Millis,
    /// The zone that its names are in.
    pub zone: DnsName,
    /// Gateways, or listeners of them, that it acts on.
    pub targets: BTreeSet<DnsTarget>,
    /// How queries are answered.
    pub answer: Arc<AnswerPolicy>,
    /// How long the absence of a name may be remembered, in seconds.
    pub negative_ttl_s: u32,
    /// Who answers.
    pub publish: Publish,
    /// Who tells the parent zone.
    pub delegation: Delegation,
    /// Members' given weights; none = all alike. A member that is not named has 0.
    pub weights: Option<BTreeMap<MemberId, u32>>,
    /// Members that are tried in this order, for [`Strategy::Failover`]; all others come last.
    pub tiers: Vec<BTreeSet<MemberId>>,
    /// Name servers that the parent zone names, where they are not the agents' own addresses.
    pub name_servers: BTreeSet<DnsName>,
}

/// A global gateway, or one of its listeners.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsTarget {
    /// The global gateway.
    pub gateway: NsName,
    /// Listener; none = all.
    pub section: Option<String>,
}

/// Who answers for the names of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Publish {
    /// Every agent, as an authoritative server.
    #[default]
    Authoritative,
    /// A DNS provider, through ExternalDNS.
    ExternalDns,
}

/// Who writes a zone's name servers into its parent zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Delegation {
    /// A person.
    #[default]
    Manual,
    /// A DNS provider that has the parent zone, through ExternalDNS.
    ExternalDns,
}

/// How queries are answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AnswerPolicy {
    /// Which members an answer names.
    pub strategy: Strategy,
    /// How long an answer may be kept, in seconds.
    pub ttl_s: u32,
    /// Addresses in one answer at most; at least 1.
    pub answers_max: u16,
    /// What is answered when no member is healthy.
    pub when_none_healthy: WhenNoneHealthy,
    /// Addresses for [`WhenNoneHealthy::Fallback`].
    pub fallback: BTreeSet<IpAddr>,
    /// Where clients are, for [`Strategy::Geo`].
    pub networks: Vec<Network>,
}

/// Which members an answer names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Strategy {
    /// By weight.
    #[default]
    Weighted,
    /// Those of the client's region.
    Geo,
    /// Those of the first tier with a healthy member.
    Failover,
    /// All.
    All,
}

/// What is answered when no member is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum WhenNoneHealthy {
    /// All members, as if they were healthy: the evidence may be wrong, and no answer is kept too.
    #[default]
    All,
    /// The name exists and has no address.
    None,
    /// Given addresses.
    Fallback,
}

/// A network and the region that it is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network {
    /// First address.
    pub address: IpAddr,
    /// Leading bits that count.
    pub prefix_len: u8,
    /// Region.
    pub region: String,
}

impl Network {
    /// Reads `ADDRESS/LENGTH`; bits behind the length do not count.
    ///
    /// # Errors
    /// [`IdError::Form`] when it is no network.
    pub fn parse(cidr: &str, region: &str) -> Result<Self, IdError> {
        let form = || IdError::Form {
            what: "network",
            value: printable(cidr),
            form: "ADDRESS/PREFIX-LENGTH",
        };
        let (address, prefix_len) = cidr.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| form())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        match prefix_len <= bits {
            true => Ok(Self { address, prefix_len, region: region.to_owned() }),
            false => Err(form()),
        }
    }
}

/// Names of one policy as a DNS provider gets them: without choosing per query.
pub type Published = BTreeMap<DnsName, PublishedSet>;

/// What a DNS provider answers for one name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PublishedSet {
    /// How long an answer may be kept, in seconds.
    pub ttl_s: u32,
    /// Addresses; empty where there is another name.
    pub addresses: BTreeSet<IpAddr>,
    /// The other name.
    pub alias: Option<DnsName>,
    /// Name servers, where the name is a zone of its own.
    pub servers: BTreeSet<DnsName>,
}

/// Zones by name.
pub type Zones = BTreeMap<DnsName, Zone>;

/// A zone, complete.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// The same on all servers for the same content; only rises.
    pub serial: u32,
    /// How long the absence of a name may be remembered, in seconds.
    pub negative_ttl_s: u32,
    /// Name servers.
    pub servers: Vec<NameServer>,
    /// How queries are answered, by policy.
    pub policies: BTreeMap<NsName, Arc<AnswerPolicy>>,
    /// Names that exist.
    pub sets: BTreeMap<DnsName, RecordSet>,
}

/// A name server of a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameServer {
    /// Its name.
    pub name: DnsName,
    /// Its addresses, when its name is in the zone.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is known about one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSet {
    /// One of the zone's policies.
    pub policy: NsName,
    /// Members that can be named, healthy or not, by name.
    pub members: Vec<MemberRecord>,
}

/// A member that can be named in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Member.
    pub member: MemberId,
    /// Public addresses of its gateway.
    pub addresses: BTreeSet<Address>,
    /// Weight among the members of its tier.
    pub weight: u32,
    /// Index of its tier.
    pub tier: u16,
    /// Its region, for [`Strategy::Geo`].
    pub region: Option<String>,
    /// Why it is out; none = it is healthy.
    pub out: Option<Reason>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::new(text).unwrap()
    }

    #[test]
    fn names_are_lower_case_without_a_dot_at_the_end() {
        assert_eq!(name("Shop.Example.COM.").as_str(), "shop.example.com");
        assert!(name("*.example.com").is_wildcard());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("{}.example", "a".repeat(64));
        let bad =
            ["", ".", "*", "a..b", "-a.b", "a-.b", "a b", "a.*.b", "*a.b", "ä.example", &long];
        for text in bad {
            assert!(DnsName::new(text).is_err(), "{text:?}");
        }
        assert!(DnsName::new(&vec!["abcdefg"; 32].join(".")).is_err(), "254 characters and more");
    }

    #[test]
    fn a_zone_has_itself_and_what_is_below() {
        let zone = name("example.com");
        for (text, within) in [
            ("example.com", true),
            ("a.b.example.com", true),
            ("*.example.com", true),
            ("notexample.com", false),
            ("com", false),
        ] {
            assert_eq!(name(text).is_within(&zone), within, "{text}");
        }
    }

    #[test]
    fn networks_have_a_length_that_fits_their_family() {
        assert!(Network::parse("10.0.0.0/8", "eu").is_ok());
        assert!(Network::parse("2001:db8::/32", "eu").is_ok());
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "::/129", "x/1"] {
            assert!(Network::parse(bad, "eu").is_err(), "{bad}");
        }
    }
}
