//! MemberClusters → registered members.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_crds::{EAST_WEST_PORT, EastWest, MemberClusterSpec};
use fairlead_model::policy::{MemberSpec, TrafficState};
use fairlead_model::snapshot::Address;
use fairlead_model::{ClusterUid, Json, MemberId, Note, Reason};
use serde::Deserialize as _;

use crate::raw;

/// Reads every MemberCluster. One that cannot be read is left out, so it neither serves nor enters;
/// one that is being deleted is none any more.
pub(super) fn ingest_members(
    objects: &BTreeMap<String, Json>,
    notes: &mut Vec<Note>,
) -> BTreeMap<MemberId, MemberSpec> {
    let mut members = BTreeMap::new();
    for (name, object) in objects.iter().filter(|(_, object)| !raw::is_deleting(object)) {
        match ingest_member(name, object) {
            Ok((id, mut spec)) => {
                if spec.gateway_class.as_deref() == Some(keys::GATEWAY_CLASS) {
                    // Gateways of that class are what is asked for, not who serves it.
                    let text =
                        format!("gatewayClassName: nobody serves class {}", keys::GATEWAY_CLASS);
                    let subject = format!("MemberCluster {name}");
                    notes.push(Note::new(subject, Reason::UnsupportedValue, text));
                    spec.gateway_class = None;
                }
                members.insert(id, spec);
            }
            Err(message) => {
                notes.push(Note::new(format!("MemberCluster {name}"), Reason::Unreadable, message));
            }
        }
    }
    members
}

fn ingest_member(name: &str, object: &Json) -> Result<(MemberId, MemberSpec), String> {
    let id = MemberId::new(name).map_err(|error| error.to_string())?;
    let empty = Json::Object(serde_json::Map::new());
    let spec = object.get("spec").unwrap_or(&empty);
    let spec = MemberClusterSpec::deserialize(spec).map_err(|error| error.to_string())?;
    let uid = spec.cluster_uid.as_deref().map(ClusterUid::new).transpose();
    let EastWest { port, addresses } = spec.east_west.unwrap_or_default();
    let door_port = u16::try_from(port).ok().filter(|port| *port > 0);
    let default_port = u16::try_from(EAST_WEST_PORT).expect("a port number");
    Ok((
        id,
        MemberSpec {
            uid: uid.map_err(|error| error.to_string())?,
            membership: raw::text(object, "/metadata/uid").unwrap_or_default().to_owned(),
            region: spec.location.region,
            zone: spec.location.zone,
            labels: raw::texts(object, "/metadata/labels"),
            gateway_class: spec.gateway_class_name,
            traffic: match spec.traffic_state {
                fairlead_crds::TrafficState::Active => TrafficState::Active,
                fairlead_crds::TrafficState::Draining => TrafficState::Draining,
                fairlead_crds::TrafficState::Standby => TrafficState::Standby,
            },
            drain_s: u32::try_from(spec.drain_seconds).unwrap_or(0),
            failback_asked: raw::annotation(object, keys::FAILBACK).and_then(raw::millis),
            door_port: door_port.unwrap_or(default_port),
            door_addresses: addresses.iter().map(|address| Address::of(address)).collect(),
        },
    ))
}
