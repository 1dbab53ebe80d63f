//! Services of remote members as an entry sees them where there are no headers: for each a Service of its
//! own with slices to the door, and mTLS to it by a server name that nobody can guess.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::plan::{Passage, PeerPlan};
use fairlead_model::{Json, MemberId, Way};
use serde_json::json;

use super::Draft;
use super::peer::{Addresses, Slice, peer_metadata, slice, tls_policy};
use crate::capability::sni_label;
use crate::{CapabilityKeys, names};

/// Name of the one port of such a Service.
const PORT_NAME: &str = keys::EAST_WEST_PORT_NAME;

/// Renders every passage to a remote member.
pub(super) fn render_passages(
    member: &MemberId,
    peer: &PeerPlan,
    addresses: &Addresses,
    keyring: &CapabilityKeys,
    draft: &mut Draft,
) {
    // Routes of different kinds share a Service.
    let distinct: BTreeMap<String, &Passage> =
        peer.passages.iter().map(|passage| (names::passage(member, passage), passage)).collect();
    for (name, passage) in distinct {
        let host = match passage.way {
            Way::Header => continue,
            Way::Sni => match host(peer, passage, keyring) {
                Some(host) => Some(host),
                // Without a key: said once for all of the bundle.
                None => continue,
            },
            Way::Port => None,
        };
        draft.put(service(member, &name, passage, addresses));
        let of_family = |family: &str| names::passage_slice(&name, family);
        let protocol = protocol(passage.way);
        let port = json!({"name": PORT_NAME, "port": passage.door_port, "protocol": protocol});
        for (family, address_type, ips) in addresses.families() {
            let name_of_slice = of_family(family);
            let ports = vec![port.clone()];
            let shape = Slice { name: &name_of_slice, service: &name, address_type, ips, ports };
            draft.put(slice(member, shape));
        }
        if let Some(host) = host {
            draft.put(tls_policy(member, &name, &host));
        }
    }
}

fn host(peer: &PeerPlan, passage: &Passage, keyring: &CapabilityKeys) -> Option<String> {
    let epoch = keyring.current()?;
    let Passage { service, port, used_from, .. } = passage;
    let label = sni_label(keyring, epoch, &peer.uid, &used_from.namespace, service, *port)?;
    Some(names::sni_name(&label, &peer.uid))
}

fn protocol(way: Way) -> &'static str {
    match way {
        Way::Header | Way::Sni => "TCP",
        Way::Port => "UDP",
    }
}

fn service(member: &MemberId, name: &str, passage: &Passage, addresses: &Addresses) -> Json {
    let mut port = json!({
        "name": PORT_NAME,
        "protocol": protocol(passage.way),
        "port": passage.port,
        "targetPort": passage.door_port,
    });
    if !passage.app_protocol.is_empty() {
        port["appProtocol"] = passage.app_protocol.as_str().into();
    }
    let mut spec = json!({"ports": [port]});
    if addresses.in_v6() {
        spec["ipFamilyPolicy"] = "PreferDualStack".into();
    }
    let mut metadata = peer_metadata(member, name);
    let for_people = format!("Service/{}:{}", passage.service, passage.port);
    metadata["annotations"] = json!({keys::MIRROR_OF: for_people});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}
