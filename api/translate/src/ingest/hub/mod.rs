//! The hub's objects → policy, and a verdict about each object for its status.
//!
//! Owns the rules of the Gateway API for what attaches to what, and GEP-713 for policies. Never looks
//! at members: whether anybody can serve a backend is the planner's question.
//!
//! What an agent wrote is none of the hub's: in a hub that is a member its copies are in the same API.
//!
//! An unreadable part never widens a match: a rule that cannot be read is left out, a hostname that
//! cannot be read refuses the route.

mod attach;
mod dns;
mod follow;
mod gateway;
mod grant;
mod hostname;
mod listener_set;
mod member;
mod pin;
mod policy;
mod route;
mod rule;
mod settle;
mod spread;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_crds::keys;
use fairlead_model::policy::{GlobalRoute, Policy};
use fairlead_model::{Json, Note, NsName, ObjectId, RouteKey, RouteKind};

pub use pin::{Pin, PinVerdict, asked_pins};
pub use verdict::{
    CertificateFault, ClassVerdict, Conflict, DnsVerdict, GatewayVerdict, ListenerSetVerdict,
    ListenerVerdict, ParentVerdict, PolicyVerdict, RouteVerdict, TargetVerdict, Verdict,
};

pub(crate) use hostname::intersects;
pub(crate) use settle::canonical;

use crate::raw;

/// Raw objects of the hub, by kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HubObjects {
    /// MemberClusters by name.
    pub member_clusters: BTreeMap<String, Json>,
    /// GatewayClasses by name.
    pub gateway_classes: BTreeMap<String, Json>,
    /// Gateways.
    pub gateways: BTreeMap<NsName, Json>,
    /// ListenerSets.
    pub listener_sets: BTreeMap<NsName, Json>,
    /// Routes of every kind.
    pub routes: BTreeMap<RouteKey, Json>,
    /// ReferenceGrants.
    pub reference_grants: BTreeMap<NsName, Json>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Json>,
    /// TrafficPolicies.
    pub traffic_policies: BTreeMap<NsName, Json>,
    /// DNSPolicies.
    pub dns_policies: BTreeMap<NsName, Json>,
    /// ServiceImports.
    pub service_imports: BTreeMap<NsName, Json>,
    /// Objects of other controllers that may follow routes and gateways.
    pub followers: BTreeMap<ObjectId, Json>,
    /// Routes that are pinned, as far as the caller knows of earlier revisions.
    pub pins: BTreeMap<RouteKey, Pin>,
}

impl HubObjects {
    /// Takes an object of a kind that matters here. False: it is of another kind, or has no name.
    pub fn insert(&mut self, object: Json) -> bool {
        let Ok(id) = ObjectId::of(&object) else { return false };
        let name = NsName { namespace: id.namespace.clone(), name: id.name.clone() };
        let cluster_scoped = match (&*id.group, &*id.kind) {
            (keys::GROUP, "MemberCluster") => Some(&mut self.member_clusters),
            (keys::GATEWAY_GROUP, "GatewayClass") => Some(&mut self.gateway_classes),
            ("", "Namespace") => Some(&mut self.namespaces),
            _ => None,
        };
        if let Some(map) = cluster_scoped {
            map.insert(name.name.to_string(), object);
            return true;
        }
        if name.namespace.is_empty() {
            return false;
        }
        let route = RouteKind::ALL.into_iter().find(|kind| kind.as_str() == &*id.kind);
        if let (keys::GATEWAY_GROUP, Some(kind)) = (&*id.group, route) {
            self.routes.insert(RouteKey { kind, name }, object);
            return true;
        }
        let follows =
            |known: &&keys::FollowingKind| known.group == &*id.group && known.kind == &*id.kind;
        if keys::FOLLOWING_KINDS.iter().any(|known| follows(&known)) {
            self.followers.insert(id, object);
            return true;
        }
        let namespaced = match (&*id.group, &*id.kind) {
            (keys::GATEWAY_GROUP, "Gateway") => &mut self.gateways,
            (keys::GATEWAY_GROUP, "ListenerSet") => &mut self.listener_sets,
            (keys::GATEWAY_GROUP, "ReferenceGrant") => &mut self.reference_grants,
            (keys::GROUP, "TrafficPolicy") => &mut self.traffic_policies,
            (keys::GROUP, "DNSPolicy") => &mut self.dns_policies,
            (keys::MCS_GROUP, "ServiceImport") => &mut self.service_imports,
            _ => return false,
        };
        namespaced.insert(name, object);
        true
    }

    /// Labels of a namespace. Its name is one of them, as API servers see to.
    fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let object = self.namespaces.get(namespace);
        let mut labels = object.map(|ns| raw::texts(ns, "/metadata/labels")).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

/// What the hub's objects come to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ingested {
    /// What users declared.
    pub policy: Policy,
    /// GatewayClasses of our controller.
    pub classes: BTreeMap<String, ClassVerdict>,
    /// Gateways of those classes.
    pub gateways: BTreeMap<NsName, GatewayVerdict>,
    /// ListenerSets of those Gateways.
    pub listener_sets: BTreeMap<NsName, ListenerSetVerdict>,
    /// Routes with a parent among those Gateways.
    pub routes: BTreeMap<RouteKey, RouteVerdict>,
    /// TrafficPolicies.
    pub policies: BTreeMap<NsName, PolicyVerdict>,
    /// DNSPolicies.
    pub dns_policies: BTreeMap<NsName, DnsVerdict>,
    /// What was dropped or refused.
    pub notes: Vec<Note>,
}

/// Reads the hub's objects.
pub fn ingest_hub(objects: &HubObjects) -> Ingested {
    let mut out = Ingested::default();
    out.policy.members = member::ingest_members(&objects.member_clusters, &mut out.notes);
    out.classes = gateway::ingest_classes(&objects.gateway_classes);
    let grants = grant::Grants::new(&objects.reference_grants);
    let mut gateways = gateway::ingest_gateways(&objects.gateways, &out.classes, &grants);
    out.listener_sets = listener_set::ingest_sets(objects, &mut gateways, &grants);
    gateways.values_mut().for_each(gateway::judge_overlaps);

    let mut routes: BTreeMap<RouteKey, GlobalRoute> = BTreeMap::new();
    let mut attached: BTreeMap<RouteKey, settle::Attached> = BTreeMap::new();
    for (key, route) in objects.routes.iter().filter(|(_, route)| !raw::is_ours(route)) {
        let pin = objects.pins.get(key);
        let then = pin.and_then(|pin| pin.at.as_ref()).map(|(_, route)| route);
        let as_of = then.map(|then| pin::as_of(route, then));
        let route = as_of.as_ref().unwrap_or(route);
        let labels = objects.namespace_labels(&key.name.namespace);
        let attachment = attach::attach(key, route, &labels, &gateways, &out.listener_sets);
        let listeners = attachment.listeners.clone();
        let Some((mut verdict, mut global)) = route::ingest_route(key, route, attachment, &grants)
        else {
            continue; // No parent of ours: not our route.
        };
        verdict.pin = pin.map(Pin::verdict);
        if let (Some(global), Some(then)) = (&mut global, then) {
            pin::spread_as_of(global, then);
        }
        attached.insert(key.clone(), listeners);
        out.routes.insert(key.clone(), verdict);
        routes.extend(global.map(|global| (key.clone(), global)));
    }
    settle::settle(&mut routes, &mut out.routes, &attached, &gateways);
    for listeners in routes.keys().filter_map(|key| attached.get(key)) {
        count_attached(listeners, &mut gateways);
    }
    out.notes.extend(out.routes.values().flat_map(|verdict| verdict.notes.iter().cloned()));

    out.policies =
        policy::apply_policies(objects, &gateways, &attached, &mut routes, &mut out.notes);
    (out.policy.dns, out.dns_policies) =
        dns::ingest_dns_policies(&objects.dns_policies, &gateways, &mut out.notes);
    out.policy.routes = routes.into_iter().map(|(key, route)| (key, Arc::new(route))).collect();
    for (name, mut gateway) in gateways {
        listener_set::hand_back(&mut gateway, &mut out.listener_sets);
        out.policy.gateways.extend(gateway.global.map(|global| (name.clone(), global)));
        out.gateways.insert(name, gateway.verdict);
    }
    let Policy { routes, gateways, .. } = &out.policy;
    out.policy.followers =
        follow::ingest_followers(&objects.followers, routes, gateways, &mut out.notes);
    out
}

/// Only routes that are accepted count at their listeners.
fn count_attached(
    listeners: &BTreeSet<(NsName, usize)>,
    gateways: &mut BTreeMap<NsName, gateway::HubGateway>,
) {
    for (name, at) in listeners {
        let gateway = gateways.get_mut(name);
        if let Some(listener) = gateway.and_then(|gateway| gateway.verdict.listeners.get_mut(*at)) {
            listener.attached = listener.attached.saturating_add(1);
        }
    }
}
