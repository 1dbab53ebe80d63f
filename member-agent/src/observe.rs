//! What the member looks like to the hub: the cache, read into a snapshot.
//!
//! Uses the very functions of `fairlead plan DIR` (translate's ingest) on what the watches keep. One
//! task: woken by changes, it waits a moment for more of them, reads everything again, and sends the
//! snapshot only if it differs. Before every kind has answered once, nothing is reported: an empty
//! list would look like a withdrawal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::diff::KindState;
use fairlead_agent_core::live::LiveObject;
use fairlead_crds::keys;
use fairlead_model::snapshot::{Address, ClusterFacts, DoorState, ServiceState, Snapshot};
use fairlead_model::{ClusterUid, Json, Note, NsName, ObjectId, Reason};
use fairlead_translate::ingest::member::{
    self, AgentConfig, SliceCounts, ingest_gateway, ingest_gateway_class, ingest_location,
    ingest_service, sum_slice_counts,
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cache::{Cache, State};
use crate::crossing::Crossing;
use crate::disk::KeptKnock;

/// Changes within that time are read together.
const GATHER: Duration = Duration::from_millis(50);

/// What is not in the watched objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Cluster.
    pub uid: Option<ClusterUid>,
    /// Version of the API server.
    pub kubernetes_version: String,
    /// Version of the Gateway API definitions.
    pub gateway_api_version: Option<String>,
    /// Their channel.
    pub gateway_api_channel: Option<String>,
}

/// The inputs of a snapshot.
pub struct Observer {
    /// Where our DNS server is reached from outside, as a person says; empty = as its Service says.
    pub dns_addresses: BTreeSet<Address>,
    /// Objects.
    pub cache: Arc<Cache>,
    /// Consent.
    pub config: Arc<AgentConfig>,
    /// Facts.
    pub facts: watch::Receiver<Facts>,
    /// Our certificates.
    pub crossing: watch::Receiver<Option<Arc<Crossing>>>,
    /// What the knock found.
    pub knock: watch::Receiver<KeptKnock>,
}

impl Observer {
    /// Keeps the snapshot equal to the cluster.
    pub async fn run(mut self, snapshot: watch::Sender<Option<Arc<Snapshot>>>) {
        let mut changes = self.cache.subscribe();
        let mut told: Vec<Note> = Vec::new();
        loop {
            if self.cache.read().unanswered.is_empty() {
                let (next, notes) = self.observe();
                if notes != told {
                    notes.iter().for_each(|note| warn!(subject = %note.subject, reason = %note.reason, detail = %note.message, "left out of the report"));
                    told = notes;
                }
                snapshot.send_if_modified(|held| {
                    let changed = held.as_deref() != Some(&next);
                    if held.is_none() {
                        info!(
                            services = next.services.len(),
                            gateways = next.gateways.len(),
                            "first snapshot"
                        );
                    }
                    if changed {
                        *held = Some(Arc::new(next));
                    }
                    changed
                });
            }
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = self.facts.changed() => changed,
                changed = self.crossing.changed() => changed,
                changed = self.knock.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
        }
    }

    fn observe(&mut self) -> (Snapshot, Vec<Note>) {
        let facts = self.facts.borrow_and_update().clone();
        let crossing = self.crossing.borrow_and_update().clone();
        let knock = self.knock.borrow_and_update().clone();
        let door = DoorState {
            ca_pem: crossing.as_ref().map(|c| c.ca_pem.clone()),
            endorsements: crossing.map(|c| c.endorsements.clone()).unwrap_or_default(),
            knock: knock.knock,
            message: knock.message,
            sni: Some(knock.sni),
            weak: self.config.weak_doors.clone(),
        };
        let state = self.cache.read();
        let (mut snapshot, notes) = snapshot_of(&state, &self.config, facts, door);
        if !self.dns_addresses.is_empty() {
            snapshot.cluster.dns_addresses.clone_from(&self.dns_addresses);
        }
        (snapshot, notes)
    }
}

/// The snapshot of what is known.
pub fn snapshot_of(
    state: &State,
    config: &AgentConfig,
    facts: Facts,
    door: DoorState,
) -> (Snapshot, Vec<Note>) {
    let mut notes = Vec::new();
    let mut snapshot =
        Snapshot { cluster: cluster(state, config, facts), door, ..Snapshot::default() };
    for (id, class) in state.of_kind(keys::GATEWAY_GROUP, "GatewayClass") {
        let fix = config.capabilities.get(&*id.name);
        let class = ingest_gateway_class(&class.content, fix);
        snapshot.classes.insert(id.name.to_string(), class);
    }
    for (id, gateway) in state.of_kind(keys::GATEWAY_GROUP, "Gateway") {
        let (gateway, more) = ingest_gateway(&gateway.content);
        notes.extend(more);
        let name = NsName { namespace: id.namespace.clone(), name: id.name.clone() };
        snapshot.gateways.extend(gateway.map(|gateway| (name, gateway)));
    }
    snapshot.services = services(state, config, &mut notes);
    let namespaces = state.of_kind("", "Namespace").filter(|(_, live)| !live.is_terminating());
    snapshot.namespaces = namespaces.map(|(id, _)| id.name.to_string()).collect();
    (snapshot, notes)
}

fn cluster(state: &State, config: &AgentConfig, facts: Facts) -> ClusterFacts {
    let nodes = state.of_kind("", "Node").map(|(_, node)| &node.content);
    let (region, zone) = ingest_location(nodes);
    // Read, never written by us.
    const READ_ONLY: [&str; 4] = ["GatewayClass", "Namespace", "Node", "ServiceExport"];
    let kinds = state.kinds.iter().filter_map(|(key, watch)| match watch {
        KindState::Synced { version } if !READ_ONLY.contains(&&*key.kind) => {
            Some(format!("{}/{version}/{}", key.group, key.kind))
        }
        _ => None,
    });
    ClusterFacts {
        uid: facts.uid,
        region,
        zone,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kubernetes_version: facts.kubernetes_version,
        gateway_api_version: facts.gateway_api_version,
        gateway_api_channel: facts.gateway_api_channel,
        kinds: kinds.collect(),
        namespaces_allowed: config.namespaces_allowed(),
        namespaces_denied: config.denied_namespaces.clone(),
        dns_addresses: dns_addresses(state),
    }
}

/// What the load balancer of our DNS Service was given; whose label is not ours is somebody else's.
fn dns_addresses(state: &State) -> BTreeSet<Address> {
    let ours = |content: &&Json| {
        content.pointer("/metadata/labels/app.kubernetes.io~1part-of").and_then(Json::as_str)
            == Some(keys::FAIRLEAD)
    };
    let services = state.of_kind("", "Service").filter(|(id, _)| &*id.name == keys::SERVICE_DNS);
    let ingresses = services
        .map(|(_, live)| &live.content)
        .filter(ours)
        .filter_map(|content| content.pointer("/status/loadBalancer/ingress")?.as_array())
        .flatten();
    ingresses
        .filter_map(|ingress| {
            let text = |field: &str| ingress.get(field).and_then(Json::as_str);
            text("ip").or_else(|| text("hostname")).map(Address::of)
        })
        .collect()
}

fn services(
    state: &State,
    config: &AgentConfig,
    notes: &mut Vec<Note>,
) -> BTreeMap<NsName, ServiceState> {
    let name_of = |id: &ObjectId| NsName { namespace: id.namespace.clone(), name: id.name.clone() };
    let mut counts: BTreeMap<&NsName, Vec<&SliceCounts>> = BTreeMap::new();
    for (service, slice) in state.slices.values() {
        counts.entry(service).or_default().push(slice);
    }
    let mut grants: BTreeMap<&str, Vec<&Json>> = BTreeMap::new();
    for (id, grant) in state.of_kind(keys::GATEWAY_GROUP, "ReferenceGrant") {
        grants.entry(&id.namespace).or_default().push(&grant.content);
    }
    let exports = state.of_kind(keys::MCS_GROUP, "ServiceExport");
    let exports: BTreeMap<NsName, &Json> =
        exports.map(|(id, export)| (name_of(id), &export.content)).collect();
    let mut services = BTreeMap::new();
    for (id, service) in state.of_kind("", "Service") {
        let name = name_of(id);
        let of_namespace = grants.get(&*name.namespace).into_iter().flatten().copied();
        let export = exports.get(&name).copied();
        let (found, more) =
            ingest_service(&service.content, export, std::iter::empty(), of_namespace, config);
        notes.extend(more);
        let Some(mut found) = found else { continue };
        let slices = counts.get(&name).map_or(&[][..], Vec::as_slice);
        found.zones = sum_slice_counts(slices.iter().copied());
        notes.extend(without_ports(&name, slices));
        services.insert(name, found);
    }
    for name in exports.keys().filter(|name| !services.contains_key(*name)) {
        if state.live.keys().any(|id| &*id.kind == "Service" && name_of(id) == *name) {
            continue; // The Service is there; why it does not count was said above.
        }
        let message = "there is no Service of that name; create it or delete the ServiceExport";
        notes.push(Note::new(format!("ServiceExport {name}"), Reason::NotExported, message));
    }
    services
}

fn without_ports(name: &NsName, slices: &[&SliceCounts]) -> Option<Note> {
    let without: u32 = slices.iter().map(|slice| slice.without_port).sum();
    let message = format!(
        "{without} endpoints are in EndpointSlices without ports and do not count; \
         check that targetPort is a port of the pods"
    );
    (without > 0).then(|| Note::new(format!("Service {name}"), Reason::NoReadyEndpoints, message))
}

/// Routes of the member itself that may take requests from ours.
pub fn shadows(state: &State) -> member::Shadows<'_> {
    let routes = ["HTTPRoute", "GRPCRoute"]
        .into_iter()
        .flat_map(|kind| state.of_kind(keys::GATEWAY_GROUP, kind))
        .map(|(_, live)| &live.content);
    member::Shadows::of(routes)
}

/// The controller of each Gateway, as its class says.
#[derive(Debug, Default)]
pub struct Controllers(BTreeMap<(String, String), String>);

impl Controllers {
    /// Reads Gateways and classes.
    pub fn of(state: &State) -> Self {
        let text = |live: &LiveObject, pointer: &str| {
            live.content.pointer(pointer).and_then(Json::as_str).map(str::to_owned)
        };
        let classes: BTreeMap<String, String> = state
            .of_kind(keys::GATEWAY_GROUP, "GatewayClass")
            .filter_map(|(id, live)| {
                Some((id.name.to_string(), text(live, "/spec/controllerName")?))
            })
            .collect();
        let gateways = state.of_kind(keys::GATEWAY_GROUP, "Gateway").filter_map(|(id, live)| {
            let class = text(live, "/spec/gatewayClassName")?;
            let name = (id.namespace.to_string(), id.name.to_string());
            Some((name, classes.get(&class)?.clone()))
        });
        Self(gateways.collect())
    }

    /// What gateways say against a route of ours as it is now; none = nothing, or not yet.
    pub fn complaint(&self, id: &ObjectId, live: &LiveObject) -> Option<(Reason, String)> {
        self.of_route(id, live).into_iter().find_map(|controller| {
            let (accepted, reason, message) =
                member::ingest_route_acceptance(&live.content, controller)?;
            (!accepted).then_some((reason, message))
        })
    }

    /// True when every gateway of a route has taken it as it is now.
    pub fn is_accepted(&self, id: &ObjectId, live: &LiveObject) -> bool {
        let controllers = self.of_route(id, live);
        let accepts = |controller: &&String| {
            member::ingest_route_acceptance(&live.content, controller)
                .is_some_and(|(accepted, ..)| accepted)
        };
        !controllers.is_empty() && controllers.iter().all(accepts)
    }

    /// True while a gateway of a route has not said what it makes of it as it is now.
    pub fn is_awaited(&self, id: &ObjectId, live: &LiveObject) -> bool {
        let said = |controller: &&String| {
            member::ingest_route_acceptance(&live.content, controller).is_some()
        };
        !self.of_route(id, live).iter().all(said)
    }

    /// The controllers of a route's gateways.
    fn of_route(&self, id: &ObjectId, live: &LiveObject) -> BTreeSet<&String> {
        let text =
            |value: &Json, key: &str| value.get(key).and_then(Json::as_str).map(str::to_owned);
        let parents = live.content.pointer("/spec/parentRefs").and_then(Json::as_array);
        parents
            .into_iter()
            .flatten()
            .filter_map(|parent| {
                let namespace =
                    text(parent, "namespace").unwrap_or_else(|| id.namespace.to_string());
                self.0.get(&(namespace, text(parent, "name")?))
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "observe_test.rs"]
mod tests;
