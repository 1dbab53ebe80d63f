//! A member's objects → its snapshot.
//!
//! Owns what the agent believes of what it sees, one object at a time, so that a change costs what it
//! touches; [`ingest_snapshot`] puts the same functions together for `fairlead plan DIR`.
//! Never reports endpoints, only counts; never reads Secrets.

mod config;
mod definition;
mod feature;
mod gateway;
mod place;
mod route;
mod service;
mod shadow;
mod slice;

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::snapshot::{ClusterFacts, Snapshot};
use fairlead_model::{ClusterUid, Json, Note, NsName, Reason};

pub use config::{AgentConfig, CapabilityFix, ConfigError, ExportPolicy, FollowingKind};
pub use definition::{Definitions, ingest_definitions};
pub use gateway::{ingest_gateway, ingest_gateway_class};
pub use place::ingest_location;
pub use route::ingest_route_acceptance;
pub use service::{ingest_grants, ingest_service};
pub use shadow::Shadows;
pub use slice::{Family, SliceCounts, ingest_slice_counts, slice_service, sum_slice_counts};

use crate::raw;

/// Raw objects of a member, by kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemberObjects {
    /// GatewayClasses by name.
    pub gateway_classes: BTreeMap<String, Json>,
    /// Gateways.
    pub gateways: BTreeMap<NsName, Json>,
    /// Services.
    pub services: BTreeMap<NsName, Json>,
    /// ServiceExports.
    pub exports: BTreeMap<NsName, Json>,
    /// EndpointSlices.
    pub slices: BTreeMap<NsName, Json>,
    /// ReferenceGrants.
    pub grants: BTreeMap<NsName, Json>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Json>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Json>,
    /// CustomResourceDefinitions by name.
    pub definitions: BTreeMap<String, Json>,
}

impl MemberObjects {
    /// Takes an object of a kind that matters here. False: it is of another kind, or has no name.
    pub fn insert(&mut self, object: Json) -> bool {
        let Ok(id) = fairlead_model::ObjectId::of(&object) else { return false };
        let name = id.name.to_string();
        let ns_name = NsName { namespace: id.namespace.clone(), name: id.name.clone() };
        let cluster_scoped = match (&*id.group, &*id.kind) {
            (keys::GATEWAY_GROUP, "GatewayClass") => Some(&mut self.gateway_classes),
            ("", "Namespace") => Some(&mut self.namespaces),
            ("", "Node") => Some(&mut self.nodes),
            ("apiextensions.k8s.io", "CustomResourceDefinition") => Some(&mut self.definitions),
            _ => None,
        };
        if let Some(map) = cluster_scoped {
            map.insert(name, object);
            return true;
        }
        let namespaced = match (&*id.group, &*id.kind) {
            (keys::GATEWAY_GROUP, "Gateway") => &mut self.gateways,
            (keys::GATEWAY_GROUP, "ReferenceGrant") => &mut self.grants,
            ("", "Service") => &mut self.services,
            (keys::MCS_GROUP, "ServiceExport") => &mut self.exports,
            ("discovery.k8s.io", "EndpointSlice") => &mut self.slices,
            _ => return false,
        };
        if ns_name.namespace.is_empty() {
            return false;
        }
        namespaced.insert(ns_name, object);
        true
    }
}

/// The snapshot of a member. The door's state and the versions of agent and API server are not in its
/// objects: the caller sets them.
pub fn ingest_snapshot(objects: &MemberObjects, config: &AgentConfig) -> (Snapshot, Vec<Note>) {
    let mut snapshot = Snapshot::default();
    let mut notes = Vec::new();
    snapshot.cluster = ingest_cluster(objects, config, &mut notes);
    for (name, class) in &objects.gateway_classes {
        let fix = config.capabilities.get(name);
        snapshot.classes.insert(name.clone(), ingest_gateway_class(class, fix));
    }
    for (name, gateway) in &objects.gateways {
        let (state, more) = ingest_gateway(gateway);
        notes.extend(more);
        snapshot.gateways.extend(state.map(|state| (name.clone(), state)));
    }
    ingest_services(objects, config, &mut snapshot, &mut notes);
    snapshot.namespaces = objects.namespaces.iter().filter(live).map(|(n, _)| n.clone()).collect();
    (snapshot, notes)
}

fn live(entry: &(&String, &Json)) -> bool {
    !raw::is_deleting(entry.1)
}

/// Facts of the member as a whole, without what is not in its objects.
fn ingest_cluster(
    objects: &MemberObjects,
    config: &AgentConfig,
    notes: &mut Vec<Note>,
) -> ClusterFacts {
    let (region, zone) = ingest_location(objects.nodes.values());
    let definitions = ingest_definitions(objects.definitions.values(), config);
    let uid = objects.namespaces.get("kube-system").and_then(|ns| raw::text(ns, "/metadata/uid"));
    let uid = uid.and_then(|uid| match ClusterUid::new(uid) {
        Ok(uid) => Some(uid),
        Err(error) => {
            notes.push(Note::new("Namespace kube-system", Reason::Unreadable, error.to_string()));
            None
        }
    });
    ClusterFacts {
        uid,
        region,
        zone,
        gateway_api_version: definitions.gateway_api_version,
        gateway_api_channel: definitions.gateway_api_channel,
        kinds: definitions.kinds,
        namespaces_allowed: config.namespaces_allowed(),
        namespaces_denied: config.denied_namespaces.clone(),
        ..ClusterFacts::default()
    }
}

fn ingest_services(
    objects: &MemberObjects,
    config: &AgentConfig,
    snapshot: &mut Snapshot,
    notes: &mut Vec<Note>,
) {
    let mut slices: BTreeMap<NsName, Vec<&Json>> = BTreeMap::new();
    for slice in objects.slices.values() {
        if let Some(service) = slice_service(slice) {
            slices.entry(service).or_default().push(slice);
        }
    }
    for (name, service) in &objects.services {
        let of_service = slices.get(name).into_iter().flatten().copied();
        let grants = objects.grants.iter().filter(|(grant, _)| grant.namespace == name.namespace);
        let (state, more) = ingest_service(
            service,
            objects.exports.get(name),
            of_service,
            grants.map(|(_, grant)| grant),
            config,
        );
        notes.extend(more);
        snapshot.services.extend(state.map(|state| (name.clone(), state)));
    }
    for name in objects.exports.keys().filter(|name| !objects.services.contains_key(*name)) {
        let message = "there is no Service of that name; create it or delete the ServiceExport";
        notes.push(Note::new(format!("ServiceExport {name}"), Reason::NotExported, message));
    }
}
