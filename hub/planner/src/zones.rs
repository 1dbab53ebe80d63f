//! Which member's public addresses answer for which name, and with what weight.
//!
//! A member that cannot take traffic stays in the set, marked as out: agents come back to it at once, and
//! a set is never empty while somebody could be named. Addresses are remembered for as long as the
//! member serves the name, because a gateway that loses its status does not lose its address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::dns::{
    Delegation, DnsName, DnsPolicy, MemberRecord, NAME_SERVERS_MAX, NameServer, Publish, Published,
    RecordSet, Zone, Zones,
};
use fairlead_model::health::MemberState;
use fairlead_model::policy::TrafficState;
use fairlead_model::snapshot::Address;
use fairlead_model::{MemberId, Millis, Note, NsName, Reason};

use crate::check::Decisions;
use crate::fleet::{Fleet, Member};
use crate::gateways::LocalGateways;
use crate::names::{self, Sources};
use crate::publish;
use crate::{DnsMemory, DnsReport, Freeze, Report};

/// Members of a set at most: more would not fit into any answer.
const MEMBERS_MAX: usize = 256;
/// Tier of members that are out on request: named only when there is nobody else.
const TIER_DRAINED: u16 = u16::MAX;
/// Tier of members that serve only when nobody else can.
const TIER_STANDBY: u16 = u16::MAX - 1;

/// What the agents answer for.
pub(crate) struct Dns {
    pub(crate) zones: Arc<Zones>,
    pub(crate) published: BTreeMap<MemberId, BTreeMap<NsName, Published>>,
    pub(crate) memory: DnsMemory,
}

/// Puts every zone together.
pub(crate) fn assemble(
    fleet: &Fleet<'_>,
    gateways: &LocalGateways,
    decisions: &Decisions,
    before: &DnsMemory,
    report: &mut Report,
) -> Dns {
    let step = Step { fleet, gateways, decisions, before };
    let mut names = names::gather(fleet.policy);
    let (mut answered, mut published) = (Zones::new(), Zones::new());
    let (mut addresses, mut delegated) = (BTreeMap::new(), BTreeMap::new());
    for policy in by_age(fleet) {
        let mut found = DnsReport {
            refused: names.refused.remove(&policy.name).unwrap_or_default(),
            ..DnsReport::default()
        };
        let zones = match policy.publish {
            Publish::Authoritative => &mut answered,
            Publish::ExternalDns => &mut published,
        };
        let zone = zones.entry(policy.zone.clone()).or_insert_with(|| step.empty_zone(policy));
        zone.policies.insert(policy.name.clone(), Arc::clone(&policy.answer));
        let sources = names.of.remove(&policy.name).unwrap_or_default();
        step.fill(policy, sources, zone, &mut addresses, &mut found);
        if policy.publish == Publish::Authoritative {
            tell_servers(policy, zone, &mut found);
            delegate(policy, zone, &mut delegated);
        }
        report.dns.insert(policy.name.clone(), found);
    }
    for (name, zone) in &mut answered {
        zone.serial = serial(zone, before.zones.get(name).map(AsRef::as_ref), fleet.now);
    }
    let publishers = publish::elect(fleet, &before.publishers, report);
    let published = publish::assign(&published, &delegated, &publishers);
    let remembered = answered.iter().map(|(name, zone)| (name.clone(), Arc::new(zone.clone())));
    let memory = DnsMemory { zones: remembered.collect(), addresses, publishers };
    Dns { zones: Arc::new(answered), published, memory }
}

/// What the parent zone has to name.
fn tell_servers(policy: &DnsPolicy, zone: &Zone, found: &mut DnsReport) {
    found.servers.clone_from(&zone.servers);
    if zone.servers.is_empty() {
        let text = "no agent has a DNS address that the parent zone could name \
                    (dns.service or dns.addresses of the agent's chart); set nameServers";
        found.notes.push(Note::new(policy.zone.as_str(), Reason::NoNameServer, text));
    }
}

/// One of a zone's policies speaks to the parent: the oldest that asks for it.
fn delegate(
    policy: &DnsPolicy,
    zone: &Zone,
    delegated: &mut BTreeMap<NsName, (DnsName, Vec<NameServer>)>,
) {
    let asks = policy.delegation == Delegation::ExternalDns;
    if asks && !delegated.values().any(|(name, _)| *name == policy.zone) {
        let told = (policy.zone.clone(), zone.servers.clone());
        delegated.insert(policy.name.clone(), told);
    }
}

/// The oldest first: it keeps a name that two of them want, and what is said once for a zone is its.
fn by_age<'a>(fleet: &Fleet<'a>) -> Vec<&'a DnsPolicy> {
    let mut policies: Vec<&DnsPolicy> = fleet.policy.dns.values().map(AsRef::as_ref).collect();
    policies.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
    policies
}

/// The same content keeps its serial; another one gets a higher one. The clock is in it so that serials
/// rise also after everything that the hub remembered was lost.
fn serial(zone: &Zone, before: Option<&Zone>, now: Millis) -> u32 {
    let seconds = u32::try_from(now.0 / 1_000).unwrap_or(u32::MAX);
    match before {
        Some(before) if is_same(zone, before) => before.serial,
        Some(before) => before.serial.saturating_add(1).max(seconds),
        None => seconds.max(1),
    }
}

fn is_same(zone: &Zone, before: &Zone) -> bool {
    zone.negative_ttl_s == before.negative_ttl_s
        && zone.servers == before.servers
        && zone.policies == before.policies
        && zone.sets == before.sets
}

type Refusal = (Reason, String);
type Addresses = BTreeMap<MemberId, BTreeMap<NsName, BTreeSet<Address>>>;

struct Step<'a> {
    fleet: &'a Fleet<'a>,
    gateways: &'a LocalGateways,
    decisions: &'a Decisions,
    before: &'a DnsMemory,
}

impl Step<'_> {
    /// Puts a policy's names into its zone.
    fn fill(
        &self,
        policy: &DnsPolicy,
        names: BTreeMap<DnsName, Sources>,
        zone: &mut Zone,
        addresses: &mut Addresses,
        found: &mut DnsReport,
    ) {
        for (name, sources) in names {
            if let Some(held) = zone.sets.get(&name) {
                let text = format!("DNSPolicy {} publishes it already", held.policy);
                found.refused.push(Note::new(name.as_str(), Reason::Conflicted, text));
                continue;
            }
            match self.record_set(policy, &name, &sources, addresses) {
                Ok(set) => {
                    zone.sets.insert(name, set);
                    found.names += 1;
                }
                Err((reason, text)) => {
                    found.refused.push(Note::new(name.as_str(), reason, text));
                }
            }
        }
    }

    fn empty_zone(&self, policy: &DnsPolicy) -> Zone {
        Zone {
            serial: 0,
            negative_ttl_s: policy.negative_ttl_s,
            servers: self.servers(policy),
            policies: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Servers of before stay while they are not Down: what a parent zone names changes slowly.
    fn servers(&self, policy: &DnsPolicy) -> Vec<NameServer> {
        if !policy.name_servers.is_empty() {
            let given = policy.name_servers.iter().take(NAME_SERVERS_MAX);
            let server = |name: &DnsName| NameServer { name: name.clone(), addresses: [].into() };
            return given.map(server).collect();
        }
        let before = self.before.zones.get(&policy.zone).map(|zone| zone.servers.as_slice());
        let known =
            |server: &NameServer| before.is_some_and(|b| b.iter().any(|s| s.name == server.name));
        let mut found: Vec<(bool, bool, NameServer)> = Vec::new();
        for (id, member) in &self.fleet.members {
            let down = member.health.state == MemberState::Down;
            for server in servers_of(id, member, &policy.zone) {
                found.push((down, !known(&server), server));
            }
        }
        found.sort();
        found.dedup_by(|a, b| a.2.name == b.2.name);
        let mut servers: Vec<NameServer> =
            found.into_iter().take(NAME_SERVERS_MAX).map(|(_, _, server)| server).collect();
        servers.sort();
        servers
    }

    fn record_set(
        &self,
        policy: &DnsPolicy,
        name: &DnsName,
        sources: &Sources,
        remembered: &mut Addresses,
    ) -> Result<RecordSet, Refusal> {
        let mut members = Vec::new();
        for (id, member) in &self.fleet.members {
            let (mut addresses, out) = self.addresses(id, member, sources, remembered);
            if *name == policy.zone {
                // A zone's own name has an SOA, and nothing may stand beside a CNAME.
                addresses.retain(|address| matches!(address, Address::Ip(_)));
            }
            if addresses.is_empty() {
                continue;
            }
            members.push(MemberRecord {
                member: id.clone(),
                addresses,
                weight: weight(policy, id),
                tier: tier(policy, id, member),
                region: member.place.region.clone(),
                out: self.spared(policy, name, id, out),
            });
        }
        members.truncate(MEMBERS_MAX);
        if members.is_empty() {
            let text = "no member serves one of its routes at a gateway with an address";
            return Err((Reason::NoPublicAddress, text.to_owned()));
        }
        Ok(RecordSet { policy: policy.name.clone(), members })
    }

    /// Addresses of the gateways by which a member serves any of the routes, and why it is out.
    fn addresses(
        &self,
        id: &MemberId,
        member: &Member<'_>,
        sources: &Sources,
        remembered: &mut Addresses,
    ) -> (BTreeSet<Address>, Option<Reason>) {
        let mut all = BTreeSet::new();
        let mut unprogrammed = true;
        let mut listener_fails = false;
        for (route, gateway, listener) in sources {
            let local = self.gateways.get(id).and_then(|local| local.get(gateway));
            let entry = self.decisions.get(route).and_then(|decision| decision.entries.get(id));
            let (Some(local), Some(entry)) = (local, entry) else { continue };
            if !entry.parents.iter().any(|parent| parent.gateway == local.name) {
                continue;
            }
            let state = member.snapshot.as_ref().and_then(|s| s.gateways.get(&local.name));
            let live = state.filter(|s| s.programmed == Some(true) && !s.addresses.is_empty());
            let before = || self.before.addresses.get(id)?.get(&local.name);
            let found = match live {
                Some(state) => state.addresses.clone(),
                None => before().cloned().unwrap_or_default(),
            };
            unprogrammed &= live.is_none();
            // A name is one for all ports: who asks for it may come by the one that does not answer.
            let listener = live.and_then(|state| state.listeners.get(listener));
            listener_fails |= listener.is_some_and(|state| state.programmed == Some(false));
            let usable = found.iter().filter(|address| is_usable(address)).cloned();
            all.extend(usable);
            remembered.entry(id.clone()).or_default().insert(local.name.clone(), found);
        }
        let out = match (member.spec.traffic, member.health.state) {
            (TrafficState::Draining, _) => Some(Reason::Drained),
            (_, MemberState::Down) => Some(Reason::Down),
            _ if unprogrammed => Some(Reason::GatewayNotProgrammed),
            _ if listener_fails => Some(Reason::ListenerNotProgrammed),
            _ => None,
        };
        (all, out)
    }

    /// While the hub doubts itself nobody goes out but on request.
    fn spared(
        &self,
        policy: &DnsPolicy,
        name: &DnsName,
        id: &MemberId,
        out: Option<Reason>,
    ) -> Option<Reason> {
        let was_in = || {
            let set = self.before.zones.get(&policy.zone)?.sets.get(name)?;
            set.members.iter().find(|record| record.member == *id && record.out.is_none())
        };
        let doubts = self.fleet.settings.freeze == Freeze::Unedited;
        out.filter(|reason| !(doubts && *reason != Reason::Drained && was_in().is_some()))
    }
}

fn weight(policy: &DnsPolicy, id: &MemberId) -> u32 {
    match &policy.weights {
        None => 1,
        Some(weights) => weights.get(id).copied().unwrap_or(0),
    }
}

fn tier(policy: &DnsPolicy, id: &MemberId, member: &Member<'_>) -> u16 {
    match member.spec.traffic {
        TrafficState::Draining => return TIER_DRAINED,
        TrafficState::Standby => return TIER_STANDBY,
        TrafficState::Active => {}
    }
    let named = policy.tiers.iter().position(|tier| tier.contains(id));
    let index = named.unwrap_or(policy.tiers.len());
    u16::try_from(index).map_or(TIER_STANDBY - 1, |index| index.min(TIER_STANDBY - 1))
}

/// What no client outside could use would only cost it time; a name that is none would spoil the answer.
fn is_usable(address: &Address) -> bool {
    match address {
        Address::Ip(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast(),
        Address::Name(name) => DnsName::new(name).is_ok_and(|name| !name.is_wildcard()),
    }
}

/// Names of one member's DNS server: one of ours for its addresses, its own where the address is a name.
fn servers_of(id: &MemberId, member: &Member<'_>, zone: &DnsName) -> Vec<NameServer> {
    let all = member.snapshot.iter().flat_map(|snapshot| &snapshot.cluster.dns_addresses);
    let mut ours = BTreeSet::new();
    let mut servers = Vec::new();
    for address in all.filter(|address| is_usable(address)) {
        match address {
            Address::Ip(ip) => drop(ours.insert(*ip)),
            Address::Name(name) => servers.extend(
                DnsName::new(name).ok().map(|name| NameServer { name, addresses: [].into() }),
            ),
        }
    }
    if !ours.is_empty()
        && let Ok(name) = DnsName::new(&format!("ns-{id}.{zone}"))
    {
        servers.push(NameServer { name, addresses: ours });
    }
    servers
}
