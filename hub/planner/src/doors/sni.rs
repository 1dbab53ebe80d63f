//! The listener of a door that tells services apart by SNI: can the member have one, and is it proven shut?

use std::collections::BTreeMap;

use fairlead_model::plan::SNI_LANES;
use fairlead_model::policy::MemberSpec;
use fairlead_model::snapshot::{FEATURE_TLS_ROUTE_TERMINATE, Knock, Snapshot};
use fairlead_model::{MemberId, Reason};

use super::claim;
use crate::memory::DoorMemory;

const TLS_ROUTE: &str = "gateway.networking.k8s.io/v1/TLSRoute";
const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/gatewayclass-controller";
const CLIENT_TRAFFIC_POLICY: &str = "gateway.envoyproxy.io/v1alpha1/ClientTrafficPolicy";

/// What was found.
pub(super) struct Examined {
    /// Its port; none = the member cannot have it.
    pub(super) port: Option<u16>,
    /// Why nothing may come by it.
    pub(super) refusal: Option<Reason>,
}

/// Examines the listener of one member.
pub(super) fn examine(
    id: &MemberId,
    known: Option<(&MemberSpec, &Snapshot)>,
    facts: Option<&DoorMemory>,
    address_holders: &BTreeMap<String, MemberId>,
) -> Examined {
    let none = |reason| Examined { port: None, refusal: Some(reason) };
    let Some((spec, snapshot)) = known else { return none(Reason::NoSnapshot) };
    if let Some(reason) = inability(spec, snapshot) {
        return none(reason);
    }
    let Some(port) = port_of(super::door_port(spec)) else { return none(Reason::NoPortLeft) };
    let stranger_let_in =
        snapshot.door.sni.as_ref().is_some_and(|sni| sni.knock == Knock::StrangerLetIn);
    // Behind one address the next port may be another member's door.
    let is_taken = facts.iter().flat_map(|door| &door.addresses).any(|address| {
        let holder = |lane| address_holders.get(&claim(address, port + lane));
        (0..SNI_LANES).filter_map(holder).any(|holder| holder != id)
    });
    let refusal = if stranger_let_in {
        Some(Reason::StrangerLetIn)
    } else if is_taken {
        Some(Reason::AddressConflict)
    } else if !facts.is_some_and(|door| door.sni_proven_shut) {
        Some(Reason::DoorNotShut)
    } else {
        None
    };
    Examined { port: Some(port), refusal }
}

/// The next port after the door's first, if there is room for all lanes.
fn port_of(door_port: u16) -> Option<u16> {
    door_port.checked_add(SNI_LANES).and(door_port.checked_add(1))
}

/// Proven shut now, or before and not disproved.
pub(super) fn is_proven_shut(snapshot: &Snapshot, before: Option<&DoorMemory>) -> bool {
    match snapshot.door.sni.as_ref().map(|sni| sni.knock) {
        Some(Knock::Shut) => true,
        Some(Knock::Unknown) => before.is_some_and(|door| door.sni_proven_shut),
        Some(Knock::StrangerLetIn) | None => false,
    }
}

/// Why a member cannot have such a listener at all.
fn inability(spec: &MemberSpec, snapshot: &Snapshot) -> Option<Reason> {
    if snapshot.door.sni.is_none() {
        return Some(Reason::CrossingUnsupported);
    }
    let class = spec.gateway_class.as_ref().and_then(|class| snapshot.classes.get(class));
    if !class.is_some_and(|class| class.has(FEATURE_TLS_ROUTE_TERMINATE)) {
        return Some(Reason::UnsupportedFeature);
    }
    let serves = |kind: &str| snapshot.cluster.kinds.contains(kind);
    let is_envoy_gateway = class.is_some_and(|class| class.controller == ENVOY_GATEWAY);
    // Without its own policy that one is known to let strangers in.
    if !serves(TLS_ROUTE) || (is_envoy_gateway && !serves(CLIENT_TRAFFIC_POLICY)) {
        return Some(Reason::KindMissing);
    }
    None
}
