//! Ports of a door that belong to one service each, for what carries neither headers nor TLS.
//!
//! Only where the member itself consented to doors that anybody can use. A service keeps its port while
//! some route names it; a port that was just given back is the last to be given out again, since datagrams
//! for its last service may still be on their way.

use std::collections::BTreeSet;

use fairlead_model::plan::{DoorPort, SNI_LANES};
use fairlead_model::policy::BackendTarget;
use fairlead_model::snapshot::{Snapshot, WeakDoor};
use fairlead_model::{MemberId, NsName, Reason, ServicePort, Way};

use crate::FleetInput;
use crate::memory::DoorMemory;

/// Ports that one door gives out at most: a Gateway has 64 listeners.
pub(crate) const PORTS_MAX: u16 = 16;
/// The first of them, after the door's own: after its listeners for headers and for SNI.
const FIRST: u16 = 1 + SNI_LANES;
const UDP_ROUTE: &str = "gateway.networking.k8s.io/v1/UDPRoute";

/// Gives every service that needs one a port, as far as they go.
pub(super) fn assign(
    input: &FleetInput,
    memory: &mut std::collections::BTreeMap<MemberId, DoorMemory>,
) {
    let used = services_used(input);
    for (id, door) in memory {
        let snapshot = input.members.get(id).and_then(|member| member.snapshot.as_deref());
        // Absence of news is not news.
        let Some(snapshot) = snapshot else { continue };
        let wanted = used.iter().filter(|(service, port)| {
            let exported = snapshot.services.get(service);
            exported.is_some_and(|state| state.ports.contains_key(port))
        });
        let wanted: BTreeSet<_> = if may(snapshot) { wanted.collect() } else { BTreeSet::new() };
        let mut before = std::mem::take(&mut door.ports);
        before.retain(|own| in_range(own.door_port, door.port));
        door.ports = deal(&wanted, &before, door.port);
    }
}

/// Why a service without a port has none.
pub(super) fn refusal(snapshot: Option<&Snapshot>) -> Reason {
    match snapshot {
        None => Reason::NoSnapshot,
        Some(snapshot) if !snapshot.door.weak.contains(&WeakDoor::Open) => {
            Reason::CrossingUnsupported
        }
        Some(snapshot) if !may(snapshot) => Reason::KindMissing,
        Some(_) => Reason::NoPortLeft,
    }
}

fn may(snapshot: &Snapshot) -> bool {
    snapshot.door.weak.contains(&WeakDoor::Open) && snapshot.cluster.kinds.contains(UDP_ROUTE)
}

type Service = (NsName, ServicePort);

fn services_used(input: &FleetInput) -> BTreeSet<Service> {
    let routes = input.policy.routes.values().filter(|route| route.key.kind.way() == Way::Port);
    let backends = routes.flat_map(|route| &route.rules).flat_map(|rule| &rule.backends);
    let global = backends.filter_map(|backend| match &backend.target {
        BackendTarget::Global { service, port } => Some((service.clone(), *port)),
        BackendTarget::Own | BackendTarget::Invalid(_) => None,
    });
    global.collect()
}

fn in_range(port: u16, door_port: u16) -> bool {
    port.checked_sub(door_port).is_some_and(|at| (FIRST..FIRST + PORTS_MAX).contains(&at))
}

fn deal(
    wanted: &BTreeSet<&Service>,
    before: &BTreeSet<DoorPort>,
    door_port: u16,
) -> BTreeSet<DoorPort> {
    let is_wanted =
        |own: &&DoorPort| wanted.iter().any(|(s, p)| *s == own.service && *p == own.port);
    let mut dealt: BTreeSet<DoorPort> = before.iter().filter(is_wanted).cloned().collect();
    let all = (FIRST..FIRST + PORTS_MAX).filter_map(|at| door_port.checked_add(at));
    let mut free: Vec<u16> =
        all.filter(|port| !dealt.iter().any(|own| own.door_port == *port)).collect();
    free.sort_by_key(|port| (before.iter().any(|own| own.door_port == *port), *port));
    let has = |service: &Service| {
        before.iter().any(|own| own.service == service.0 && own.port == service.1)
    };
    let new = wanted.iter().filter(|service| !has(service));
    let new: Vec<DoorPort> = new
        .zip(free)
        .map(|((service, port), door_port)| DoorPort {
            door_port,
            service: service.clone(),
            port: *port,
        })
        .collect();
    dealt.extend(new);
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(number: u16) -> Service {
        (NsName::new("shop", &format!("s{number:02}")), 53)
    }

    fn ports_of(dealt: &BTreeSet<DoorPort>) -> Vec<(String, u16)> {
        dealt.iter().map(|own| (own.service.name.to_string(), own.door_port)).collect()
    }

    #[test]
    fn a_service_keeps_its_port_and_a_port_rests() {
        let (a, b, c) = (service(1), service(2), service(3));
        let first = deal(&[&a, &b].into(), &BTreeSet::new(), 15_443);
        assert_eq!(ports_of(&first), [("s01".into(), 15_448), ("s02".into(), 15_449)]);
        let second = deal(&[&b, &c].into(), &first, 15_443);
        assert_eq!(ports_of(&second), [("s02".into(), 15_449), ("s03".into(), 15_450)]);
    }

    #[test]
    fn there_are_so_many_ports_and_no_more() {
        let all: Vec<Service> = (0..40).map(service).collect();
        let dealt = deal(&all.iter().collect(), &BTreeSet::new(), 15_443);
        assert_eq!(dealt.len(), usize::from(PORTS_MAX));
        assert!(dealt.iter().all(|own| in_range(own.door_port, 15_443)));
        // A full deal gives a freed port at once.
        let next = deal(&all.iter().skip(1).collect(), &dealt, 15_443);
        assert_eq!(next.len(), usize::from(PORTS_MAX));
        assert!(dealt.iter().skip(1).all(|own| next.contains(own)));
        assert_eq!(deal(&all.iter().collect(), &BTreeSet::new(), 65_527).len(), 4);
    }
}
