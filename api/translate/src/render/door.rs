//! A member's own door: its Gateway, who may call, and what they may call.
//!
//! From a door a request goes to a **local** Service only, so it crosses at most once and cannot loop.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::bundle::{Claim, Gate};
use fairlead_model::plan::{DoorPlan, DoorService, MemberPlan, Trust};
use fairlead_model::{Json, NsName, Reason};
use serde_json::json;

use super::grant::{self, GRANT_ENTRIES_MAX};
use super::{Draft, GATEWAY_API, metadata, stream};
use crate::capability::{READINESS_PORT, capability, readiness_capability};
use crate::{CapabilityKeys, names, shard};

/// Most rules of one route, as the Gateway API says.
const RULES_MAX: usize = 16;
/// Most bytes of callers' CAs: a ConfigMap holds 1 MiB.
const CALLERS_BYTES_MAX: usize = 900_000;

/// Renders the door of a member.
pub(super) fn render_door(
    plan: &MemberPlan,
    door: &DoorPlan,
    keyring: &CapabilityKeys,
    draft: &mut Draft,
) {
    draft.put(gateway(door));
    if door.trust == Trust::ClientTrafficPolicy {
        draft.put(trust());
    }
    render_callers(plan, door, draft);
    draft.put(probe(plan));
    if let Some(readiness) = readiness(plan, keyring) {
        draft.put(readiness);
    }
    for (service, callers) in by_service(door) {
        render_service(plan, service, callers, keyring, draft);
    }
    stream::render_streams(plan, door, keyring, draft);
    render_grants(door, draft);
}

fn gateway(door: &DoorPlan) -> Json {
    let mut gateway = json!({
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": mirrorless_metadata(keys::EAST_WEST_GATEWAY),
        "spec": {
            "gatewayClassName": door.class,
            "tls": {"frontend": {"default": {"validation": {"caCertificateRefs": callers_ref()}}}},
            "listeners": [{
                "name": keys::EAST_WEST_LISTENER_HTTPS,
                "port": door.port,
                "protocol": "HTTPS",
                "tls": server_certificate(),
                // Only routes of our own namespace: anyone else's could catch other people's requests
                // by a more specific path.
                "allowedRoutes": {
                    "namespaces": {"from": "Same"},
                    "kinds": [{"group": keys::GATEWAY_GROUP, "kind": "HTTPRoute"}],
                },
            }],
        },
    });
    if let Some(listeners) = gateway["spec"]["listeners"].as_array_mut() {
        listeners.extend(stream::listeners(door));
    }
    gateway
}

/// Ends TLS with the door's own certificate.
pub(super) fn server_certificate() -> Json {
    let secret = keys::SECRET_EAST_WEST_SERVER;
    json!({
        "mode": "Terminate",
        "certificateRefs": [{"group": "", "kind": "Secret", "name": secret}],
    })
}

fn callers_ref() -> Json {
    json!([{"group": "", "kind": "ConfigMap", "name": keys::CONFIG_MAP_EAST_WEST_CALLERS}])
}

/// Callers have shown a member's certificate, so what they say of their client is true; without this the
/// service would be told the address of the entry's gateway, and that the client came by TLS.
///
/// It names the callers' CAs a second time: Envoy Gateway asks for no certificate at a TLS listener because
/// of `spec.tls.frontend`, only because of this; and
/// it looks again at a ConfigMap that a policy of its own names, but not at one that only a Gateway names:
/// a caller would come and go unnoticed.
fn trust() -> Json {
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "ClientTrafficPolicy",
        "metadata": metadata(keys::NAMESPACE, keys::EAST_WEST_GATEWAY),
        "spec": {
            "targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "Gateway", "name": keys::EAST_WEST_GATEWAY}],
            "clientIPDetection": {"xForwardedFor": {"numTrustedHops": 1}},
            "tls": {"clientValidation": {"caCertificateRefs": callers_ref()}},
        },
    })
}

/// Metadata of what mirrors nothing in the hub but would be found by ExternalDNS's gateway sources.
pub(super) fn mirrorless_metadata(name: &str) -> Json {
    let mut metadata = metadata(keys::NAMESPACE, name);
    metadata["annotations"] =
        json!({keys::EXTERNAL_DNS_CONTROLLER: keys::EXTERNAL_DNS_CONTROLLER_VALUE});
    metadata
}

/// The CAs of those who may call. The member's own is among them, or its knock could never answer.
fn render_callers(plan: &MemberPlan, door: &DoorPlan, draft: &mut Draft) {
    if !door.callers.contains_key(&plan.member) {
        draft.note(
            format!("member {}", plan.member),
            Reason::NoCrossingCa,
            "its own crossing CA is not among its door's callers, so its knock cannot be answered",
        );
    }
    let mut bundle = String::new();
    let mut seen = BTreeSet::new();
    // The member's own first: without it the door is never proven shut.
    let own = door.callers.get_key_value(&plan.member);
    let others = door.callers.iter().filter(|(member, _)| **member != plan.member);
    for (member, pem) in own.into_iter().chain(others) {
        let pem = pem.trim();
        if pem.is_empty() || !seen.insert(pem) {
            continue;
        }
        if bundle.len() + pem.len() > CALLERS_BYTES_MAX {
            draft.note(
                format!("member {member}"),
                Reason::TooLarge,
                format!("its CA does not fit into {} any more", keys::CONFIG_MAP_EAST_WEST_CALLERS),
            );
            continue;
        }
        bundle.push_str(pem);
        bundle.push('\n');
    }
    draft.put(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(keys::NAMESPACE, keys::CONFIG_MAP_EAST_WEST_CALLERS),
        "data": {"ca.crt": bundle},
    }));
}

fn route(name: &str, rules: Vec<Json>) -> Json {
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": mirrorless_metadata(name),
        "spec": {
            "parentRefs": [{
                "group": keys::GATEWAY_GROUP,
                "kind": "Gateway",
                "name": keys::EAST_WEST_GATEWAY,
                "sectionName": keys::EAST_WEST_LISTENER_HTTPS,
            }],
            "rules": rules,
        },
    })
}

/// A route of the door's own, found by the door's name alone: what crosses keeps the host that its client
/// asked for, so that no path of a user's is taken away.
fn own_route(plan: &MemberPlan, name: &str, rules: Vec<Json>) -> Json {
    let mut route = route(name, rules);
    route["spec"]["hostnames"] = json!([names::server_name(&plan.uid)]);
    route
}

fn exact_path(path: &str) -> Json {
    json!([{"path": {"type": "Exact", "value": path}}])
}

/// Answered by the gateway itself, so that a probe says something about the door and nothing else.
fn probe(plan: &MemberPlan) -> Json {
    let redirect = json!({"hostname": "door.fairlead.internal", "statusCode": 302});
    own_route(
        plan,
        keys::ROUTE_PROBE,
        vec![json!({
            "matches": exact_path(keys::PATH_PROBE),
            "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}],
        })],
    )
}

/// For the agents of peers alone: whoever may send requests to the door (a client by a global route, an
/// author of routes in a namespace that uses it) could else read what the member exports.
fn readiness(plan: &MemberPlan, keyring: &CapabilityKeys) -> Option<Json> {
    let value = |epoch| readiness_capability(keyring, epoch, &plan.uid);
    let matches: Vec<Json> = keyring
        .accepted()
        .filter_map(value)
        .map(|value| {
            json!({
                "path": {"type": "Exact", "value": keys::PATH_READINESS},
                "headers": exact_header(&value),
            })
        })
        .collect();
    // Without matches it would answer everything.
    if matches.is_empty() {
        return None;
    }
    let agent = NsName::new(keys::NAMESPACE, keys::AGENT);
    let rule = json!({
        "matches": matches,
        "filters": [remove_header()],
        "backendRefs": [local_backend(&agent, READINESS_PORT)],
    });
    Some(own_route(plan, keys::ROUTE_READINESS, vec![rule]))
}

fn exact_header(capability: &str) -> Json {
    json!([{"type": "Exact", "name": keys::HEADER_BACKEND, "value": capability}])
}

/// Services are not to see how they were reached.
fn remove_header() -> Json {
    json!({
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"remove": [keys::HEADER_BACKEND]},
    })
}

pub(super) fn local_backend(service: &NsName, port: u16) -> Json {
    json!({
        "group": "",
        "kind": "Service",
        "namespace": &*service.namespace,
        "name": &*service.name,
        "port": port,
    })
}

fn by_service(door: &DoorPlan) -> BTreeMap<&NsName, Vec<&DoorService>> {
    let mut services: BTreeMap<&NsName, Vec<&DoorService>> = BTreeMap::new();
    for service in &door.services {
        services.entry(&service.service).or_default().push(service);
    }
    services
}

/// The door routes of a service: a rule for each namespace and port that may reach it.
fn render_service(
    plan: &MemberPlan,
    service: &NsName,
    callers: Vec<&DoorService>,
    keyring: &CapabilityKeys,
    draft: &mut Draft,
) {
    let key = |caller: &&DoorService| format!("{}:{}", caller.from_namespace, caller.port);
    for (bits, callers) in shard::shard(callers, RULES_MAX, key) {
        let rules: Vec<Json> =
            callers.into_iter().filter_map(|caller| rule(plan, caller, keyring)).collect();
        // A route without rules means a route that matches everything.
        if !rules.is_empty() {
            let name = names::door_route(service, &bits);
            draft.put_as(route(&name, rules), Gate::DoorShut, Claim::Whole);
        }
    }
}

/// A rule matches the exact capabilities of the accepted epochs; none when there is no key, since a
/// rule without matches would match everything.
fn rule(plan: &MemberPlan, caller: &DoorService, keyring: &CapabilityKeys) -> Option<Json> {
    let DoorService { from_namespace, service, port } = caller;
    let value = |epoch| capability(keyring, epoch, &plan.uid, from_namespace, service, *port);
    let matches: Vec<Json> = keyring
        .accepted()
        .filter_map(value)
        .map(|value| json!({"headers": exact_header(&value)}))
        .collect();
    if matches.is_empty() {
        return None;
    }
    Some(json!({
        "matches": matches,
        "filters": [remove_header()],
        "backendRefs": [local_backend(service, *port)],
        // How long a request may take is the entry's business: Envoy would cut it at 15 s here.
        "timeouts": {"request": "0s"},
    }))
}

/// From our doors to exactly the services that some plan uses.
fn render_grants(door: &DoorPlan, draft: &mut Draft) {
    let mut namespaces: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let by_sni = door.sni.iter().flat_map(|sni| &sni.services);
    let by_tls = door.services.iter().chain(by_sni).map(|behind| &behind.service);
    for service in by_tls.chain(door.ports.iter().map(|own| &own.service)) {
        namespaces.entry(&service.namespace).or_default().insert(&service.name);
    }
    let mut kinds = vec!["HTTPRoute", "GRPCRoute"];
    kinds.extend(door.sni.iter().map(|_| "TLSRoute"));
    kinds.extend(door.ports.first().map(|_| "UDPRoute"));
    // Within our own namespace no grant is needed.
    namespaces.remove(keys::NAMESPACE);
    for (namespace, services) in namespaces {
        let services: Vec<&str> = services.into_iter().collect();
        for (bits, services) in shard::shard(services, GRANT_ENTRIES_MAX, |s| (*s).to_owned()) {
            draft.put(grant::grant(
                namespace,
                &names::door_grant(&bits),
                kinds.iter().map(|kind| grant::from(kind, keys::NAMESPACE)).collect(),
                services.iter().map(|service| grant::to("Service", service)).collect(),
            ));
        }
    }
}
