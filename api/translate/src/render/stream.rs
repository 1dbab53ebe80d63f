//! A member's own door for what carries no headers: a listener that tells services apart by SNI, and ports
//! of one service each where the member consented to them.

use fairlead_crds::keys;
use fairlead_model::bundle::{Claim, Gate};
use fairlead_model::plan::{DoorPlan, DoorPort, DoorService, MemberPlan, SNI_LANES, SniDoor};
use fairlead_model::{Json, NsName};
use serde_json::json;

use super::door::{local_backend, mirrorless_metadata, server_certificate};
use super::{Draft, GATEWAY_API};
use crate::capability::READINESS_PORT;
use crate::capability::sni_label;
use crate::{CapabilityKeys, names};

/// The listeners, for the door's Gateway.
pub(super) fn listeners(door: &DoorPlan) -> Vec<Json> {
    // Only routes of our own namespace, as at the door for headers.
    let allowed = |kind: &str| {
        json!({
            "namespaces": {"from": "Same"},
            "kinds": [{"group": keys::GATEWAY_GROUP, "kind": kind}],
        })
    };
    let lanes = door.sni.iter().flat_map(|sni| (0..SNI_LANES).map(|lane| (lane, sni.port + lane)));
    let sni = lanes.map(|(lane, port)| {
        json!({
            "name": keys::sni_listener(lane),
            "port": port,
            "protocol": "TLS",
            "tls": server_certificate(),
            "allowedRoutes": allowed("TLSRoute"),
        })
    });
    let ports = door.ports.iter().map(|own| {
        json!({
            "name": port_listener(own),
            "port": own.door_port,
            "protocol": "UDP",
            "allowedRoutes": allowed("UDPRoute"),
        })
    });
    sni.chain(ports).collect()
}

/// Renders the routes.
pub(super) fn render_streams(
    plan: &MemberPlan,
    door: &DoorPlan,
    keyring: &CapabilityKeys,
    draft: &mut Draft,
) {
    if let Some(sni) = &door.sni {
        draft.put(probe(plan));
        render_sni(plan, sni, keyring, draft);
    }
    for own in &door.ports {
        let name = names::port_route(&own.service, own.port);
        let section = port_listener(own);
        draft.put(route("UDPRoute", &name, &[section], None, (&own.service, own.port)));
    }
}

/// Every lane: which one is used is the entries' business.
fn lanes() -> Vec<String> {
    (0..SNI_LANES).map(keys::sni_listener).collect()
}

fn port_listener(own: &DoorPort) -> String {
    format!("{}-{}", keys::EAST_WEST_LISTENER_UDP, own.door_port)
}

fn render_sni(plan: &MemberPlan, sni: &SniDoor, keyring: &CapabilityKeys, draft: &mut Draft) {
    for behind in &sni.services {
        let DoorService { from_namespace, service, port } = behind;
        let label = |epoch| sni_label(keyring, epoch, &plan.uid, from_namespace, service, *port);
        let hosts: Vec<String> = keyring
            .accepted()
            .filter_map(label)
            .map(|label| names::sni_name(&label, &plan.uid))
            .collect();
        // A route without host names would take every connection.
        if hosts.is_empty() {
            continue;
        }
        let name = names::sni_route(behind);
        let content = route("TLSRoute", &name, &lanes(), Some(hosts), (service, *port));
        draft.put_as(content, Gate::SniDoorShut, Claim::Whole);
    }
}

/// What the knock asks for. No gateway answers a TLS connection itself, so the agent does: with the counts
/// that it tells peers anyway.
fn probe(plan: &MemberPlan) -> Json {
    let agent = NsName::new(keys::NAMESPACE, keys::AGENT);
    let host = names::server_name(&plan.uid);
    let hosts = Some(vec![host]);
    route("TLSRoute", keys::ROUTE_PROBE_SNI, &lanes(), hosts, (&agent, READINESS_PORT))
}

fn route(
    kind: &str,
    name: &str,
    sections: &[String],
    hosts: Option<Vec<String>>,
    (service, port): (&NsName, u16),
) -> Json {
    let parent = |section: &String| {
        json!({
            "group": keys::GATEWAY_GROUP,
            "kind": "Gateway",
            "name": keys::EAST_WEST_GATEWAY,
            "sectionName": section,
        })
    };
    let mut route = json!({
        "apiVersion": GATEWAY_API,
        "kind": kind,
        "metadata": mirrorless_metadata(name),
        "spec": {
            "parentRefs": sections.iter().map(parent).collect::<Vec<_>>(),
            "rules": [{"backendRefs": [local_backend(service, port)]}],
        },
    });
    if let Some(hosts) = hosts {
        route["spec"]["hostnames"] = hosts.into();
    }
    route
}
