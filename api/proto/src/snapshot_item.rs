//! A snapshot as a ledger: one entry per gateway, class and service, three for the rest.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::ledger::Ledger;
use fairlead_model::snapshot::{
    Address, ClusterFacts, Consent, DoorState, ENDORSEMENTS_MAX, EndpointCounts, GatewayClassState,
    GatewayRole, GatewayState, GrantFrom, Knock, ListenerState, PortState, ServiceState, Snapshot,
    SniState, WeakDoor,
};
use fairlead_model::{ClusterUid, Millis, Note, NsName, Reason, RouteKind};
use prost::Message as _;

use crate::pb;
use crate::pb::snapshot_item::Item;

/// The ledger of a snapshot.
pub fn snapshot_to_ledger(snapshot: &Snapshot) -> Ledger {
    let mut entries = BTreeMap::new();
    let mut add = |key: String, item: Item| {
        entries.insert(key, pb::SnapshotItem { item: Some(item) }.encode_to_vec());
    };
    add("cluster".into(), Item::Cluster(cluster_to_pb(&snapshot.cluster)));
    add("door".into(), Item::Door(door_to_pb(&snapshot.door)));
    let names = snapshot.namespaces.iter().cloned().collect();
    add("namespaces".into(), Item::Namespaces(pb::Namespaces { names }));
    for (name, class) in &snapshot.classes {
        add(format!("class/{name}"), Item::GatewayClass(class_to_pb(name, class)));
    }
    for (name, gateway) in &snapshot.gateways {
        add(format!("gateway/{name}"), Item::Gateway(gateway_to_pb(name, gateway)));
    }
    for (name, service) in &snapshot.services {
        add(format!("service/{name}"), Item::Service(service_to_pb(name, service)));
    }
    Ledger::new(entries)
}

/// The snapshot of a ledger, and notes on entries that could not be read.
pub fn ledger_to_snapshot(ledger: &Ledger) -> (Snapshot, Vec<Note>) {
    let (mut snapshot, mut notes) = (Snapshot::default(), Vec::new());
    for (key, bytes) in ledger.entries() {
        let item = pb::SnapshotItem::decode(bytes.as_slice()).ok().and_then(|i| i.item);
        let Some(item) = item else {
            notes.push(Note::new(key, Reason::Unreadable, "entry of an unknown kind was left out"));
            continue;
        };
        if let Err(detail) = take(&mut snapshot, item) {
            notes.push(Note::new(key, Reason::Unreadable, detail));
        }
    }
    (snapshot, notes)
}

fn take(snapshot: &mut Snapshot, item: Item) -> Result<(), String> {
    match item {
        Item::Cluster(facts) => snapshot.cluster = cluster_from_pb(facts)?,
        Item::Door(door) => snapshot.door = door_from_pb(&door),
        Item::Namespaces(namespaces) => {
            snapshot.namespaces = namespaces.names.into_iter().collect();
        }
        Item::GatewayClass(class) => {
            let (name, state) = class_from_pb(class);
            snapshot.classes.insert(name, state);
        }
        Item::Gateway(gateway) => {
            let (name, state) = gateway_from_pb(gateway)?;
            snapshot.gateways.insert(name, state);
        }
        Item::Service(service) => {
            let (name, state) = service_from_pb(service)?;
            snapshot.services.insert(name, state);
        }
    }
    Ok(())
}

fn set(values: &BTreeSet<String>) -> pb::StringSet {
    pb::StringSet { values: values.iter().cloned().collect() }
}

fn cluster_to_pb(facts: &ClusterFacts) -> pb::ClusterFacts {
    pb::ClusterFacts {
        uid: facts.uid.as_ref().map(ToString::to_string).unwrap_or_default(),
        region: facts.region.clone(),
        zone: facts.zone.clone(),
        agent_version: facts.agent_version.clone(),
        kubernetes_version: facts.kubernetes_version.clone(),
        gateway_api_version: facts.gateway_api_version.clone(),
        gateway_api_channel: facts.gateway_api_channel.clone(),
        kinds: facts.kinds.iter().cloned().collect(),
        namespaces_allowed: facts.namespaces_allowed.as_ref().map(set),
        namespaces_denied: facts.namespaces_denied.iter().cloned().collect(),
        dns_addresses: facts.dns_addresses.iter().map(ToString::to_string).collect(),
    }
}

fn cluster_from_pb(facts: pb::ClusterFacts) -> Result<ClusterFacts, String> {
    let uid = match facts.uid.as_str() {
        "" => None,
        text => Some(ClusterUid::new(text).map_err(|e| e.to_string())?),
    };
    Ok(ClusterFacts {
        uid,
        region: facts.region,
        zone: facts.zone,
        agent_version: facts.agent_version,
        kubernetes_version: facts.kubernetes_version,
        gateway_api_version: facts.gateway_api_version,
        gateway_api_channel: facts.gateway_api_channel,
        kinds: facts.kinds.into_iter().collect(),
        namespaces_allowed: facts.namespaces_allowed.map(|set| set.values.into_iter().collect()),
        namespaces_denied: facts.namespaces_denied.into_iter().collect(),
        dns_addresses: facts.dns_addresses.iter().map(|text| Address::of(text)).collect(),
    })
}

fn class_to_pb(name: &str, class: &GatewayClassState) -> pb::GatewayClass {
    pb::GatewayClass {
        name: name.to_owned(),
        controller: class.controller.clone(),
        accepted: class.accepted,
        features: class.features.as_ref().map(set),
    }
}

fn class_from_pb(class: pb::GatewayClass) -> (String, GatewayClassState) {
    let state = GatewayClassState {
        controller: class.controller,
        accepted: class.accepted,
        features: class.features.map(|set| set.values.into_iter().collect()),
    };
    (class.name, state)
}

fn gateway_to_pb(name: &NsName, gateway: &GatewayState) -> pb::Gateway {
    use pb::gateway::Role;
    let listener = |(name, l): (&String, &ListenerState)| pb::Listener {
        name: name.clone(),
        port: l.port.into(),
        protocol: l.protocol.clone(),
        hostname: l.hostname.clone(),
        programmed: l.programmed,
        message: l.message.clone(),
    };
    pb::Gateway {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        class: gateway.class.clone(),
        role: Some(match &gateway.role {
            GatewayRole::Lent(global) => Role::Lent(global.to_string()),
            GatewayRole::Created(global) => Role::Created(global.to_string()),
            GatewayRole::Door => Role::Door(pb::Empty {}),
        }),
        programmed: gateway.programmed,
        message: gateway.message.clone(),
        addresses: gateway.addresses.iter().map(ToString::to_string).collect(),
        listeners: gateway.listeners.iter().map(listener).collect(),
    }
}

fn gateway_from_pb(gateway: pb::Gateway) -> Result<(NsName, GatewayState), String> {
    use pb::gateway::Role;
    let global = |text: String| text.parse::<NsName>().map_err(|e| e.to_string());
    let role = match gateway.role.ok_or("a gateway without a role")? {
        Role::Lent(name) => GatewayRole::Lent(global(name)?),
        Role::Created(name) => GatewayRole::Created(global(name)?),
        Role::Door(_) => GatewayRole::Door,
    };
    let listeners =
        gateway.listeners.into_iter().map(listener_from_pb).collect::<Result<_, _>>()?;
    let state = GatewayState {
        class: gateway.class,
        role,
        programmed: gateway.programmed,
        message: gateway.message,
        addresses: gateway.addresses.iter().map(|text| Address::of(text)).collect(),
        listeners,
    };
    Ok((NsName::new(&gateway.namespace, &gateway.name), state))
}

fn listener_from_pb(listener: pb::Listener) -> Result<(String, ListenerState), String> {
    let state = ListenerState {
        port: port(listener.port)?,
        protocol: listener.protocol,
        hostname: listener.hostname,
        programmed: listener.programmed,
        message: listener.message,
    };
    Ok((listener.name, state))
}

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} is not a port"))
}

fn service_to_pb(name: &NsName, service: &ServiceState) -> pb::Service {
    let port = |(number, p): (&u16, &PortState)| pb::Port {
        port: (*number).into(),
        name: p.name.clone(),
        protocol: p.protocol.clone(),
        app_protocol: p.app_protocol.clone(),
    };
    let zone = |(zone, counts): (&String, &EndpointCounts)| pb::ZoneCounts {
        zone: zone.clone(),
        ready: counts.ready,
        total: counts.total,
    };
    let grant = |g: &GrantFrom| pb::GrantFrom {
        kind: g.kind.as_str().to_owned(),
        namespace: g.namespace.clone(),
    };
    pb::Service {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        exported_at_ms: service.exported_at.0,
        consent_refused: service.consent == Consent::Refused,
        ports: service.ports.iter().map(port).collect(),
        zones: service.zones.iter().map(zone).collect(),
        grants: service.grants.iter().map(grant).collect(),
    }
}

fn service_from_pb(service: pb::Service) -> Result<(NsName, ServiceState), String> {
    let ports = service.ports.into_iter().map(port_from_pb).collect::<Result<_, _>>()?;
    let zones = service.zones.into_iter().map(|z| {
        // A liar must not make more ready endpoints than there are.
        let counts = EndpointCounts { ready: z.ready.min(z.total), total: z.total };
        (z.zone, counts)
    });
    let state = ServiceState {
        exported_at: Millis(service.exported_at_ms),
        consent: if service.consent_refused { Consent::Refused } else { Consent::Given },
        ports,
        zones: zones.collect(),
        // A kind that this version does not know grants nothing.
        grants: service.grants.into_iter().filter_map(grant_from_pb).collect(),
    };
    Ok((NsName::new(&service.namespace, &service.name), state))
}

fn port_from_pb(p: pb::Port) -> Result<(u16, PortState), String> {
    let state = PortState { name: p.name, protocol: p.protocol, app_protocol: p.app_protocol };
    Ok((port(p.port)?, state))
}

fn grant_from_pb(grant: pb::GrantFrom) -> Option<GrantFrom> {
    let kind = RouteKind::ALL.into_iter().find(|kind| kind.as_str() == grant.kind)?;
    Some(GrantFrom { kind, namespace: grant.namespace })
}

fn door_to_pb(door: &DoorState) -> pb::Door {
    pb::Door {
        ca_pem: door.ca_pem.clone(),
        endorsements: door.endorsements.clone(),
        knock: knock_to_pb(door.knock).into(),
        message: door.message.clone(),
        sni: door.sni.as_ref().map(|sni| pb::SniListener {
            knock: knock_to_pb(sni.knock).into(),
            message: sni.message.clone(),
        }),
        weak: door.weak.iter().map(|class| class.as_str().to_owned()).collect(),
    }
}

fn knock_to_pb(knock: Knock) -> pb::Knock {
    match knock {
        Knock::Unknown => pb::Knock::Unspecified,
        Knock::Shut => pb::Knock::Shut,
        Knock::StrangerLetIn => pb::Knock::StrangerLetIn,
    }
}

fn knock_from_pb(knock: pb::Knock) -> Knock {
    match knock {
        pb::Knock::Unspecified => Knock::Unknown,
        pb::Knock::Shut => Knock::Shut,
        pb::Knock::StrangerLetIn => Knock::StrangerLetIn,
    }
}

fn door_from_pb(door: &pb::Door) -> DoorState {
    // A class that this version does not know is no consent.
    let weak = |class: &WeakDoor| door.weak.iter().any(|text| text == class.as_str());
    DoorState {
        ca_pem: door.ca_pem.clone(),
        endorsements: door.endorsements.iter().take(ENDORSEMENTS_MAX).cloned().collect(),
        knock: knock_from_pb(door.knock()),
        message: door.message.clone(),
        sni: door.sni.as_ref().map(|sni| SniState {
            knock: knock_from_pb(sni.knock()),
            message: sni.message.clone(),
        }),
        weak: WeakDoor::ALL.into_iter().filter(weak).collect(),
    }
}
