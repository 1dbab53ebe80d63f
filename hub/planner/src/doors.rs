//! Which doors may be used: is it there, proven shut, and the member's alone?
//!
//! A door that was trusted once is remembered, so that what is merely unknown for a moment (an agent
//! restarts, a controller has not observed a new generation) moves no traffic. What speaks clearly
//! against it counts at once.

mod ports;
mod sni;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::bundle::CrossingCa;
use fairlead_model::policy::MemberSpec;
use fairlead_model::snapshot::{Address, GatewayRole, GatewayState, Knock, Snapshot};
use fairlead_model::{ClusterUid, MemberId, Note, NsName, Reason, ServicePort};

use crate::{Answer, DoorMemory, FleetInput, Report};

/// Port of a door when the member's spec names none.
const DOOR_PORT: u16 = 15_443;

pub(crate) struct Examined {
    pub(crate) doors: BTreeMap<MemberId, Door>,
    pub(crate) memory: BTreeMap<MemberId, DoorMemory>,
    pub(crate) address_holders: BTreeMap<String, MemberId>,
}

/// A member's door.
pub(crate) struct Door {
    /// May remote traffic come by it?
    pub(crate) answer: Answer,
    /// How it is reached; none = it never was trusted.
    pub(crate) facts: Option<DoorMemory>,
    /// The member's crossing CA, also of one without a door: an entry needs it too.
    pub(crate) ca: Option<CrossingCa>,
    /// Port of the listener that tells services apart by SNI, where the member can have one.
    pub(crate) sni_port: Option<u16>,
    /// Why nothing may come by that listener, beyond `answer`.
    pub(crate) sni_refusal: Option<Reason>,
    /// Why a service has no port of its own there; none = it has, or finds it in `facts`.
    pub(crate) port_refusal: Reason,
}

impl Door {
    /// The port of the door that a service has for itself.
    pub(crate) fn port_of(&self, service: &NsName, port: ServicePort) -> Option<u16> {
        let ports = self.facts.iter().flat_map(|door| &door.ports);
        let own = ports.filter(|own| own.service == *service && own.port == port);
        own.map(|own| own.door_port).next()
    }
}

/// Examines the door of every registered member.
pub(crate) fn examine(input: &FleetInput, report: &mut Report) -> Examined {
    let mut memory = BTreeMap::new();
    let mut answers = BTreeMap::new();
    for (id, spec) in &input.policy.members {
        let snapshot = input.members.get(id).and_then(|m| m.snapshot.as_deref());
        let Some(uid) = cluster_uid(spec, snapshot) else {
            answers.insert(id.clone(), Answer::No(Reason::NoSnapshot));
            continue;
        };
        let before = input.memory.doors.get(id).filter(|door| door.uid == *uid);
        let Some(snapshot) = snapshot else {
            memory.extend(before.map(|door| (id.clone(), door.clone())));
            answers.insert(id.clone(), Answer::No(Reason::NoSnapshot));
            continue;
        };
        let (facts, answer) = examine_one(spec, snapshot, uid, before);
        memory.insert(id.clone(), facts);
        answers.insert(id.clone(), answer);
    }
    let address_holders = settle_addresses(input, &memory, &mut answers, report);
    ports::assign(input, &mut memory);
    let losers =
        answers.iter().filter(|(_, answer)| **answer == Answer::No(Reason::AddressConflict));
    for (loser, _) in losers {
        without_claim(input, loser, &address_holders, &mut memory);
    }
    let door = |(id, answer): (MemberId, Answer)| {
        let facts = memory.get(&id).filter(|door| !door.addresses.is_empty()).cloned();
        let spec = input.policy.members.get(&id);
        let membership = spec.map(|spec| spec.membership.as_str()).unwrap_or_default();
        let ca = memory.get(&id).and_then(|door| crossing_ca(door, membership));
        let snapshot = input.members.get(&id).and_then(|m| m.snapshot.as_deref());
        let sni = sni::examine(&id, spec.zip(snapshot), memory.get(&id), &address_holders);
        let port_refusal = ports::refusal(snapshot);
        let (sni_port, sni_refusal) = (sni.port, sni.refusal);
        (id, Door { answer, facts, ca, sni_port, sni_refusal, port_refusal })
    };
    let doors = answers.into_iter().map(door).collect();
    Examined { doors, memory, address_holders }
}

fn crossing_ca(door: &DoorMemory, membership: &str) -> Option<CrossingCa> {
    Some(CrossingCa {
        uid: door.uid.clone(),
        membership: membership.to_owned(),
        ca_pem: door.ca_pem.clone()?,
        endorsements: door.endorsements.clone(),
    })
}

/// The cluster that a member is: what the hub registered, else what it says itself.
pub(crate) fn cluster_uid<'a>(
    spec: &'a MemberSpec,
    snapshot: Option<&'a Snapshot>,
) -> Option<&'a ClusterUid> {
    spec.uid.as_ref().or_else(|| snapshot.and_then(|s| s.cluster.uid.as_ref()))
}

/// The port of a member's door.
pub(crate) fn door_port(spec: &MemberSpec) -> u16 {
    if spec.door_port == 0 { DOOR_PORT } else { spec.door_port }
}

fn examine_one(
    spec: &MemberSpec,
    snapshot: &Snapshot,
    uid: &ClusterUid,
    before: Option<&DoorMemory>,
) -> (DoorMemory, Answer) {
    let gateway = door_gateway(snapshot);
    let said = &snapshot.door;
    let (ca_pem, endorsements) = match (&said.ca_pem, before) {
        (None, Some(before)) => (before.ca_pem.clone(), before.endorsements.clone()),
        (ca_pem, _) => (ca_pem.clone(), said.endorsements.clone()),
    };
    let proven_shut = match snapshot.door.knock {
        Knock::Shut => true,
        Knock::Unknown => before.is_some_and(|door| door.proven_shut && door.ca_pem == ca_pem),
        Knock::StrangerLetIn => false,
    };
    let addresses = addresses(spec, gateway, before);
    let refusal = if spec.gateway_class.is_none() {
        Some(Reason::NoGatewayClass)
    } else if snapshot.door.knock == Knock::StrangerLetIn {
        Some(Reason::StrangerLetIn)
    } else if gateway.is_none() || addresses.is_empty() {
        match gateway.and_then(|g| g.programmed) {
            Some(false) => Some(Reason::GatewayNotProgrammed),
            _ => Some(Reason::NoDoorAddress),
        }
    } else if !proven_shut {
        Some(Reason::DoorNotShut)
    } else if ca_pem.is_none() {
        Some(Reason::NoCrossingCa)
    } else {
        None
    };
    let answer = match (refusal, gateway.and_then(|g| g.programmed)) {
        (Some(reason), _) => Answer::No(reason),
        // A matter of health: it stays a candidate and is probed on.
        (None, Some(false)) => Answer::Out(Reason::GatewayNotProgrammed),
        (None, _) => Answer::Able,
    };
    let port = door_port(spec);
    let sni_proven_shut = sni::is_proven_shut(snapshot, before.filter(|d| d.ca_pem == ca_pem));
    let ports = before.map(|door| door.ports.clone()).unwrap_or_default();
    let facts = DoorMemory {
        uid: uid.clone(),
        addresses,
        port,
        ca_pem,
        endorsements,
        proven_shut,
        sni_proven_shut,
        ports,
    };
    (facts, answer)
}

/// The door's Gateway; a programmed one when there are several.
fn door_gateway(snapshot: &Snapshot) -> Option<&GatewayState> {
    let doors = || snapshot.gateways.values().filter(|g| g.role == GatewayRole::Door);
    doors().find(|g| g.programmed == Some(true)).or_else(|| doors().next())
}

/// As the spec says (NAT), else as the Gateway says while it is programmed, else as before.
fn addresses(
    spec: &MemberSpec,
    gateway: Option<&GatewayState>,
    before: Option<&DoorMemory>,
) -> BTreeSet<Address> {
    if !spec.door_addresses.is_empty() {
        return spec.door_addresses.clone();
    }
    match gateway {
        Some(gateway) if gateway.programmed == Some(true) => gateway.addresses.clone(),
        _ => before.map(|door| door.addresses.clone()).unwrap_or_default(),
    }
}

/// Gives every address to one member; the others' doors are refused.
///
/// Who held it keeps it, so that a newcomer cannot take traffic over by claiming an address; then
/// who was declared to have it; then the smaller name.
fn settle_addresses(
    input: &FleetInput,
    doors: &BTreeMap<MemberId, DoorMemory>,
    answers: &mut BTreeMap<MemberId, Answer>,
    report: &mut Report,
) -> BTreeMap<String, MemberId> {
    let mut claims: BTreeMap<String, BTreeSet<&MemberId>> = BTreeMap::new();
    for (id, door) in doors {
        for address in &door.addresses {
            claims.entry(claim(address, door.port)).or_default().insert(id);
        }
    }
    let declared = |id: &&MemberId| {
        input.policy.members.get(*id).is_some_and(|s| !s.door_addresses.is_empty())
    };
    let mut holders = BTreeMap::new();
    for (address, claimants) in claims {
        let before = input.memory.address_holders.get(&address);
        let first = claimants.iter().copied().next();
        let holder = before
            .filter(|id| claimants.contains(id))
            .or_else(|| claimants.iter().copied().find(declared))
            .or(first)
            .expect("a claim has a claimant");
        for loser in claimants.iter().filter(|id| **id != holder) {
            answers.insert((*loser).clone(), Answer::No(Reason::AddressConflict));
            let text = format!("address {address} of its door belongs to member {holder}");
            report.alarms.push(Note::new(
                format!("member {loser}"),
                Reason::AddressConflict,
                format!("{text}; correct spec.eastWest of one of them"),
            ));
        }
        holders.insert(address, holder.clone());
    }
    holders
}

/// What is remembered of a door that claims another one's address is what was known before the claim,
/// or no address at all: decisions that are kept from before must not lead to somebody else.
fn without_claim(
    input: &FleetInput,
    loser: &MemberId,
    holders: &BTreeMap<String, MemberId>,
    memory: &mut BTreeMap<MemberId, DoorMemory>,
) {
    let Some(door) = memory.get_mut(loser) else { return };
    let is_free = |before: &&DoorMemory| {
        before.uid == door.uid
            && before.addresses.iter().all(|address| {
                holders.get(&claim(address, before.port)).is_none_or(|holder| holder == loser)
            })
    };
    match input.memory.doors.get(loser).filter(is_free) {
        Some(before) => door.clone_from(before),
        None => door.addresses.clear(),
    }
}

/// One spelling for each address, so that two spellings are one claim.
pub(super) fn claim(address: &Address, port: u16) -> String {
    match address {
        Address::Ip(ip) => format!("{} {port}", ip.to_canonical()),
        Address::Name(name) => {
            format!("{} {port}", name.trim_end_matches('.').to_ascii_lowercase())
        }
    }
}
