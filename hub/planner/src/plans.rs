//! Puts every member's plan together from the checked decisions. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::bundle::CrossingCa;
use fairlead_model::follower::{Follower, FollowerPlan};
use fairlead_model::plan::{
    DoorPlan, DoorPort, DoorService, EntryDecision, MemberPlan, Passage, PeerPlan, RoutePlan,
    SNI_LANES, SlotTarget, SniDoor, Trust, UsedFrom,
};
use fairlead_model::{MemberId, RouteKey, Way};

use crate::Answer;
use crate::check::Decisions;
use crate::doors::{Door, door_port};
use crate::fleet::{Fleet, Member};
use crate::gateways::LocalGateways;
use crate::memory::DoorMemory;
use crate::witness;
use crate::zones::Dns;

/// Doors that a member is asked to probe, those of its routes included: more, and it is no witness.
const DOORS_PROBED_MAX: usize = 64;

/// What leads to a member's door.
#[derive(Default)]
struct Callers {
    services: BTreeSet<DoorService>,
    sni_services: BTreeSet<DoorService>,
    ports: BTreeSet<DoorPort>,
    members: BTreeSet<MemberId>,
}

/// Every member's plan; a member whose snapshot or cluster is not known has none and keeps what it has.
pub(crate) fn assemble(
    fleet: &Fleet<'_>,
    gateways: &LocalGateways,
    decisions: &Decisions,
    dns: &Dns,
) -> BTreeMap<MemberId, Arc<MemberPlan>> {
    let mut plans = BTreeMap::new();
    let mut callers: BTreeMap<MemberId, Callers> = BTreeMap::new();
    for (id, member) in &fleet.members {
        let (Some(uid), true) = (&member.uid, member.snapshot.is_some()) else { continue };
        let mut plan = MemberPlan {
            member: id.clone(),
            uid: uid.clone(),
            gateways: BTreeMap::new(),
            routes: BTreeMap::new(),
            peers: BTreeMap::new(),
            door: None,
            following: Vec::new(),
            zones: Arc::clone(&dns.zones),
            published: dns.published.get(id).cloned().unwrap_or_default(),
            cas: BTreeMap::new(),
        };
        for (global, local) in gateways.get(id).into_iter().flatten() {
            plan.gateways.insert(global.clone(), local.plan.clone());
        }
        for (key, decision) in decisions {
            let Some(entry) = decision.entries.get(id) else { continue };
            add_crossings(fleet, key, entry, &mut plan, &mut callers);
            let EntryDecision { parents, rules, route } = entry.clone();
            let route = route.unwrap_or_else(|| Arc::clone(&decision.route));
            plan.routes.insert(key.clone(), RoutePlan { route, parents, rules });
        }
        plan.following = following(fleet, member, &plan);
        plans.insert(id.clone(), plan);
    }
    add_witnesses(fleet, &mut plans, &mut callers);
    for (id, member) in &fleet.members {
        let Some(plan) = plans.get_mut(id) else { continue };
        plan.door = door(fleet, id, member, callers.remove(id).unwrap_or_default());
        plan.cas = cas(fleet, plan);
    }
    plans.into_iter().map(|(id, plan)| (id, Arc::new(plan))).collect()
}

/// What follows the member's routes and gateways. A kind that the member does not let follow stays in
/// the list, so that it is told.
fn following(fleet: &Fleet<'_>, member: &Member<'_>, plan: &MemberPlan) -> Vec<FollowerPlan> {
    let Some(snapshot) = &member.snapshot else { return Vec::new() };
    let concerns = |follower: &&Arc<Follower>| {
        follower.routes.iter().any(|route| plan.routes.contains_key(route))
            || follower.gateways.iter().any(|gateway| plan.gateways.contains_key(gateway))
    };
    let planned = |follower: &Arc<Follower>| FollowerPlan {
        follower: Arc::clone(follower),
        fits: snapshot.cluster.kinds.contains(&follower.group_version_kind()),
    };
    fleet.policy.followers.iter().filter(concerns).map(planned).collect()
}

/// Lets witnesses watch the doors that their own routes do not use, as far as a member can be asked to.
fn add_witnesses(
    fleet: &Fleet<'_>,
    plans: &mut BTreeMap<MemberId, MemberPlan>,
    callers: &mut BTreeMap<MemberId, Callers>,
) {
    let region = |(id, member): (&MemberId, &Member<'_>)| (id.clone(), member.region());
    let able = fleet.members.iter().filter(|(id, _)| plans.contains_key(*id));
    let members: BTreeMap<MemberId, witness::Region> = able.map(region).collect();
    for subject in members.keys() {
        let door = fleet.members.get(subject).map(|member| member.door);
        let Some(Door { answer, facts: Some(facts), .. }) = door else { continue };
        // A door that may not be used proves nothing about its member, least of all at an address
        // that is another one's.
        if matches!(answer, Answer::No(_)) {
            continue;
        }
        for id in witness::assign(subject, &members) {
            let Some(plan) = plans.get_mut(&id) else { continue };
            if plan.peers.contains_key(subject) || plan.peers.len() >= DOORS_PROBED_MAX {
                continue;
            }
            plan.peers.insert(subject.clone(), peer(facts));
            callers.entry(subject.clone()).or_default().members.insert(id);
        }
    }
}

/// A member as others see it; used from nowhere yet.
fn peer(facts: &DoorMemory) -> PeerPlan {
    PeerPlan {
        uid: facts.uid.clone(),
        addresses: facts.addresses.clone(),
        port: facts.port,
        ca_pem: facts.ca_pem.clone().unwrap_or_default(),
        used_from: BTreeSet::new(),
        app_protocols: BTreeSet::new(),
        passages: BTreeSet::new(),
    }
}

/// Notes which members an entry's route uses, on both sides.
fn add_crossings(
    fleet: &Fleet<'_>,
    route: &RouteKey,
    entry: &EntryDecision,
    plan: &mut MemberPlan,
    callers: &mut BTreeMap<MemberId, Callers>,
) {
    for rule in &entry.rules {
        let way = route.kind.way();
        let slots = rule.slots.iter().enumerate();
        let slots = slots.map(|(at, slot)| (&slot.target, way, rule.lane(at)));
        let copies = rule.mirrors.iter().map(|target| (target, Way::Sni, 0));
        for crossing in slots.chain(copies) {
            add_crossing(fleet, route, crossing, plan, callers);
        }
    }
}

fn add_crossing(
    fleet: &Fleet<'_>,
    route: &RouteKey,
    (target, way, lane): (&SlotTarget, Way, u16),
    plan: &mut MemberPlan,
    callers: &mut BTreeMap<MemberId, Callers>,
) {
    let SlotTarget::Remote { member, service, port, app_protocol } = target else { return };
    let Some(door) = fleet.members.get(member).map(|m| m.door) else { return };
    let Some(facts) = &door.facts else { return };
    let namespace = route.name.namespace.to_string();
    let used_from = UsedFrom { kind: route.kind, namespace: namespace.clone() };
    let (service, port) = (service.clone(), *port);
    let behind = DoorService { from_namespace: namespace, service: service.clone(), port };
    let door_port = match way {
        Way::Header => Some(facts.port),
        Way::Sni => door.sni_port.filter(|_| lane < SNI_LANES).map(|port| port + lane),
        Way::Port => door.port_of(&service, port),
    };
    // More services of one rule than lanes, or a decision of before that leads to what is there no more.
    let Some(door_port) = door_port else { return };
    let peer = plan.peers.entry(member.clone()).or_insert_with(|| peer(facts));
    let target = callers.entry(member.clone()).or_default();
    target.members.insert(plan.member.clone());
    match way {
        Way::Header => {
            peer.used_from.insert(used_from);
            peer.app_protocols.insert(app_protocol.clone());
            target.services.insert(behind);
            return;
        }
        Way::Sni => {
            target.sni_services.insert(behind);
        }
        Way::Port => {
            target.ports.insert(DoorPort { door_port, service: service.clone(), port });
        }
    }
    let app_protocol = app_protocol.clone();
    let lane = if way == Way::Sni { lane } else { 0 };
    peer.passages.insert(Passage { service, port, used_from, app_protocol, door_port, lane, way });
}

/// A door stands wherever there is a class for it, also while nobody uses it: it has to be there
/// to be proven shut before the first service is put behind it.
fn door(
    fleet: &Fleet<'_>,
    id: &MemberId,
    member: &Member<'_>,
    callers: Callers,
) -> Option<DoorPlan> {
    let class = member.spec.gateway_class.clone()?;
    // Without its own CA the door could answer nobody, not even the member's own knock.
    member.door.ca.as_ref()?;
    let ca = |id: MemberId| {
        let pem = fleet.members.get(&id)?.door.ca.as_ref()?.ca_pem.clone();
        Some((id, pem))
    };
    let sni_port = member.door.sni_port;
    Some(DoorPlan {
        class,
        port: door_port(member.spec),
        services: callers.services,
        callers: callers.members.into_iter().chain([id.clone()]).filter_map(ca).collect(),
        trust: trust(member),
        sni: sni_port.map(|port| SniDoor { port, services: callers.sni_services }),
        ports: callers.ports,
    })
}

/// Whose the CAs are that stand in the plan.
fn cas(fleet: &Fleet<'_>, plan: &MemberPlan) -> BTreeMap<MemberId, CrossingCa> {
    let callers = plan.door.iter().flat_map(|door| door.callers.keys());
    let ca = |id: &MemberId| Some((id.clone(), fleet.members.get(id)?.door.ca.clone()?));
    plan.peers.keys().chain(callers).filter_map(ca).collect()
}

fn trust(member: &Member<'_>) -> Trust {
    const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/gatewayclass-controller";
    const POLICY: &str = "gateway.envoyproxy.io/v1alpha1/ClientTrafficPolicy";
    let (Some(snapshot), Some(class)) = (&member.snapshot, &member.spec.gateway_class) else {
        return Trust::Unsaid;
    };
    let controller = snapshot.classes.get(class).map(|class| class.controller.as_str());
    // The agent reports only kinds that its configuration lets us write.
    match controller == Some(ENVOY_GATEWAY) && snapshot.cluster.kinds.contains(POLICY) {
        true => Trust::ClientTrafficPolicy,
        false => Trust::Unsaid,
    }
}
