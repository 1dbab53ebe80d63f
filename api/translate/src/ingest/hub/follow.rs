//! Which objects of other controllers follow which global routes and gateways.
//!
//! A policy follows what its `targetRef` or `targetRefs` name in its own namespace; a filter follows the
//! HTTPRoutes and GRPCRoutes whose filters name it by ExtensionRef. What chooses its targets by labels
//! does not follow: its copy would choose among the member's own routes, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_crds::keys;
use fairlead_model::follower::Follower;
use fairlead_model::policy::{GlobalGateway, GlobalRoute};
use fairlead_model::{Json, Note, NsName, ObjectId, Reason, RouteKey, RouteKind};

use crate::raw;

/// What a filter names: group, kind, namespace and name.
type Named = (String, String, NsName);

/// Finds the objects that follow something, in order of their ids.
pub(super) fn ingest_followers(
    objects: &BTreeMap<ObjectId, Json>,
    routes: &BTreeMap<RouteKey, Arc<GlobalRoute>>,
    gateways: &BTreeMap<NsName, GlobalGateway>,
    notes: &mut Vec<Note>,
) -> Vec<Arc<Follower>> {
    let named = named_by_filters(routes);
    let mut followers = Vec::new();
    let counts = |object: &Json| !raw::is_deleting(object) && !raw::is_ours(object);
    for (id, object) in objects.iter().filter(|(_, object)| counts(object)) {
        let name = NsName { namespace: id.namespace.clone(), name: id.name.clone() };
        let targets = targets(object);
        let mut of_routes: BTreeSet<RouteKey> =
            targets.iter().filter_map(|target| route(&name, target)).collect();
        of_routes.retain(|key| routes.contains_key(key));
        let by_filter = (id.group.to_string(), id.kind.to_string(), name.clone());
        of_routes.extend(named.get(&by_filter).into_iter().flatten().cloned());
        let mut of_gateways: BTreeSet<NsName> =
            targets.iter().filter_map(|target| gateway(&name, target)).collect();
        of_gateways.retain(|name| gateways.contains_key(name));
        if object.pointer("/spec/targetSelectors").is_some() {
            let message = "targetSelectors does not follow: in a member it would choose the member's \
                           own routes, too; name the targets";
            let subject = format!("{} {name}", id.kind);
            notes.push(Note::new(subject, Reason::UnsupportedValue, message));
        }
        if of_routes.is_empty() && of_gateways.is_empty() {
            continue;
        }
        followers.push(Arc::new(Follower {
            api_version: id.api_version(),
            kind: id.kind.to_string(),
            name,
            spec: Arc::new(object.get("spec").cloned().unwrap_or_default()),
            routes: of_routes,
            gateways: of_gateways,
        }));
    }
    followers
}

fn targets(object: &Json) -> Vec<&Json> {
    let one = object.pointer("/spec/targetRef").filter(|target| target.is_object());
    one.into_iter().chain(raw::list(object, "/spec/targetRefs")).collect()
}

fn is_gateway_api(target: &Json) -> bool {
    raw::field(target, "group") == Some(keys::GATEWAY_GROUP)
}

fn route(from: &NsName, target: &Json) -> Option<RouteKey> {
    let kind = raw::field(target, "kind").filter(|_| is_gateway_api(target))?;
    let kind = RouteKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some(RouteKey { kind, name: NsName::new(&from.namespace, raw::field(target, "name")?) })
}

fn gateway(from: &NsName, target: &Json) -> Option<NsName> {
    let is_gateway = is_gateway_api(target) && raw::field(target, "kind") == Some("Gateway");
    is_gateway.then_some(NsName::new(&from.namespace, raw::field(target, "name")?))
}

/// What filters of routes name, and which routes do.
fn named_by_filters(
    routes: &BTreeMap<RouteKey, Arc<GlobalRoute>>,
) -> BTreeMap<Named, BTreeSet<RouteKey>> {
    let mut named: BTreeMap<Named, BTreeSet<RouteKey>> = BTreeMap::new();
    for (key, route) in routes {
        for rule in raw::list(&route.spec, "/rules") {
            let backends = raw::list(rule, "/backendRefs").iter();
            for filters in backends.chain([rule]).map(|holder| raw::list(holder, "/filters")) {
                for reference in filters.iter().filter_map(|filter| filter.get("extensionRef")) {
                    let text = |field: &str| raw::field(reference, field).map(str::to_owned);
                    let (Some(group), Some(kind), Some(name)) =
                        (text("group"), text("kind"), text("name"))
                    else {
                        continue;
                    };
                    let name = NsName::new(&key.name.namespace, &name);
                    named.entry((group, kind, name)).or_default().insert(key.clone());
                }
            }
        }
    }
    named
}
