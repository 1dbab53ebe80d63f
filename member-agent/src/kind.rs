//! Which kinds the agent watches, where, and how much of each it keeps.
//!
//! A table: a new kind is a line. Of what is not ours only the parts that are reported or compared
//! are kept, so that thousands of foreign objects and endpoints cost little memory.

use fairlead_agent_core::clusterset::{HEADLESS, is_headless_slice};
use fairlead_agent_core::live::Keep;
use fairlead_agent_core::own;
use fairlead_crds::keys;
use fairlead_model::{Json, NsName};
use fairlead_translate::ingest::member::{self, SliceCounts};
use serde_json::json;

/// Where objects of a kind are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The kind has no namespace.
    Cluster,
    /// In all namespaces.
    Everywhere,
    /// In our own namespace only.
    Own,
}

/// How much of a foreign object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trim {
    /// All of it.
    Nothing,
    /// Everything but its identity goes.
    ToIdentity,
    /// Identity, addresses, ports and type stay.
    Service,
    /// Identity stays, and apart from it counts per zone; of a headless Service ready endpoints, too.
    Slice,
    /// Identity and the labels of region and zone stay.
    Place,
    /// Identity, parents, hostnames and matches stay: what may take requests from a route of ours.
    Route,
}

/// Whether a report makes sense without a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing is reported before its objects are known: none would look like a withdrawal.
    Vital,
    /// Without the right to see it the rest goes on.
    Useful,
}

/// A kind that the agent watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedKind {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Versions that we understand, best first; empty = whatever the member prefers.
    pub versions: &'static [&'static str],
    /// Where.
    pub scope: Scope,
    /// How much stays.
    pub trim: Trim,
    /// What hangs on it.
    pub need: Need,
}

/// Kinds that a snapshot is made of.
const REPORTED: [&str; 7] = [
    "GatewayClass",
    "Gateway",
    "ReferenceGrant",
    "Service",
    "Namespace",
    "EndpointSlice",
    "ServiceExport",
];

/// Every kind of the agent; `following` are those that its configuration adds.
pub fn watched(following: impl IntoIterator<Item = (String, String)>) -> Vec<WatchedKind> {
    use Scope::{Cluster, Everywhere, Own};
    let table: &[(&str, &str, &'static [&'static str], Scope, Trim)] = &[
        (keys::GATEWAY_GROUP, "GatewayClass", &["v1"], Cluster, Trim::Nothing),
        (keys::GATEWAY_GROUP, "Gateway", &["v1"], Everywhere, Trim::Nothing),
        (keys::GATEWAY_GROUP, "HTTPRoute", &["v1"], Everywhere, Trim::Route),
        (keys::GATEWAY_GROUP, "GRPCRoute", &["v1"], Everywhere, Trim::Route),
        (keys::GATEWAY_GROUP, "TLSRoute", &["v1"], Everywhere, Trim::ToIdentity),
        (keys::GATEWAY_GROUP, "TCPRoute", &["v1", "v1alpha2"], Everywhere, Trim::ToIdentity),
        (keys::GATEWAY_GROUP, "UDPRoute", &["v1", "v1alpha2"], Everywhere, Trim::ToIdentity),
        (keys::GATEWAY_GROUP, "ReferenceGrant", &["v1", "v1beta1"], Everywhere, Trim::Nothing),
        (keys::GATEWAY_GROUP, "BackendTLSPolicy", &["v1"], Everywhere, Trim::ToIdentity),
        ("", "Service", &["v1"], Everywhere, Trim::Service),
        ("", "Namespace", &["v1"], Cluster, Trim::Place),
        ("", "Node", &["v1"], Cluster, Trim::Place),
        ("", "ConfigMap", &["v1"], Own, Trim::ToIdentity),
        ("discovery.k8s.io", "EndpointSlice", &["v1"], Everywhere, Trim::Slice),
        ("externaldns.k8s.io", "DNSEndpoint", &["v1alpha1"], Own, Trim::ToIdentity),
        (keys::MCS_GROUP, "ServiceExport", &["v1beta1", "v1alpha1"], Everywhere, Trim::Nothing),
    ];
    let fixed = table.iter().map(|(group, kind, versions, scope, trim)| WatchedKind {
        group: (*group).to_owned(),
        kind: (*kind).to_owned(),
        versions,
        scope: *scope,
        trim: *trim,
        need: if REPORTED.contains(kind) { Need::Vital } else { Need::Useful },
    });
    let following = following.into_iter().map(|(group, kind)| WatchedKind {
        group,
        kind,
        versions: &[],
        scope: Everywhere,
        trim: Trim::ToIdentity,
        need: Need::Useful,
    });
    let mut all: Vec<WatchedKind> = fixed.collect();
    for kind in following {
        // Named twice is watched once.
        if !all.iter().any(|k| (&k.group, &k.kind) == (&kind.group, &kind.kind)) {
            all.push(kind);
        }
    }
    all
}

/// What stays of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Trimmed {
    /// The object, or what is left of it.
    pub object: Json,
    /// How much of that the cache keeps.
    pub keep: Keep,
    /// Of a foreign EndpointSlice: its Service and what it counts.
    pub counts: Option<(NsName, SliceCounts)>,
}

/// Trims a foreign object; one of ours stays whole.
pub fn trim(trim: Trim, object: Json) -> Trimmed {
    let kept = |object, keep| Trimmed { object, keep, counts: None };
    if is_ours(&object) {
        return kept(object, Keep::Whole);
    }
    match trim {
        Trim::Nothing => kept(object, Keep::Whole),
        Trim::ToIdentity => kept(object, Keep::Identity),
        // Its addresses are reported.
        Trim::Service if is_dns(&object) => kept(object, Keep::Whole),
        Trim::Service => kept(trim_service(&object), Keep::Whole),
        Trim::Place => kept(trim_place(&object), Keep::Whole),
        Trim::Route => kept(trim_route(&object), Keep::Whole),
        Trim::Slice => {
            let counts = member::slice_service(&object).zip(member::ingest_slice_counts(&object));
            match is_headless_slice(&object) {
                // They are answers of clusterset.local.
                true => Trimmed { object: trim_slice(&object), keep: Keep::Whole, counts },
                false => Trimmed { object, keep: Keep::Identity, counts },
            }
        }
    }
}

fn is_ours(object: &Json) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.and_then(|l| l.get(own::MANAGED_BY)).and_then(Json::as_str) == Some(own::FAIRLEAD)
}

fn is_dns(object: &Json) -> bool {
    object.pointer("/metadata/name").and_then(Json::as_str) == Some(keys::SERVICE_DNS)
}

/// Identity, lifetime, and further fields.
fn trimmed(object: &Json, labels: &[&str], rest: Json) -> Json {
    let pick = |from: Option<&Json>, keys: &[&str]| {
        let fields =
            keys.iter().filter_map(|key| Some(((*key).to_owned(), from?.get(*key)?.clone())));
        fields.collect::<serde_json::Map<_, _>>()
    };
    const METADATA: [&str; 6] =
        ["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"];
    let mut metadata = pick(object.get("metadata"), &METADATA);
    let labels = pick(object.pointer("/metadata/labels"), labels);
    metadata.insert("labels".to_owned(), Json::Object(labels));
    let mut kept = pick(Some(object), &["apiVersion", "kind"]);
    kept.insert("metadata".to_owned(), Json::Object(metadata));
    if let Json::Object(rest) = rest {
        kept.extend(rest);
    }
    Json::Object(kept)
}

fn trim_service(object: &Json) -> Json {
    let field = |key: &str| object.get("spec").and_then(|spec| spec.get(key)).cloned();
    let (ports, of_type, ips) = (field("ports"), field("type"), field("clusterIPs"));
    trimmed(object, &[], json!({"spec": {"clusterIPs": ips, "ports": ports, "type": of_type}}))
}

/// Ready endpoints with what names them.
fn trim_slice(object: &Json) -> Json {
    let is_ready = |endpoint: &&Json| {
        endpoint.pointer("/conditions/ready").and_then(Json::as_bool) != Some(false)
    };
    let endpoints = object.get("endpoints").and_then(Json::as_array);
    let ready = endpoints.into_iter().flatten().filter(is_ready).map(|endpoint| {
        json!({"addresses": endpoint.get("addresses"), "hostname": endpoint.get("hostname")})
    });
    let ready: Vec<Json> = ready.collect();
    trimmed(
        object,
        &[own::SERVICE_NAME, HEADLESS],
        json!({"endpoints": ready, "ports": object.get("ports")}),
    )
}

fn trim_route(object: &Json) -> Json {
    let field = |key: &str| object.get("spec").and_then(|spec| spec.get(key)).cloned();
    let rules = object.pointer("/spec/rules").and_then(Json::as_array);
    let matches = |rule: &Json| json!({"matches": rule.get("matches")});
    let rules: Vec<Json> = rules.into_iter().flatten().map(matches).collect();
    let (parents, hosts) = (field("parentRefs"), field("hostnames"));
    trimmed(
        object,
        &[],
        json!({"spec": {"parentRefs": parents, "hostnames": hosts, "rules": rules}}),
    )
}

fn trim_place(object: &Json) -> Json {
    trimmed(object, &[keys::TOPOLOGY_REGION, keys::TOPOLOGY_ZONE], json!({}))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_slice_becomes_counts_whatever_its_size() {
        let endpoint = |i: u32| json!({"addresses": ["10.0.0.1"], "zone": "a", "conditions": {"ready": !i.is_multiple_of(4)}});
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "cart-x", "namespace": "shop", "labels": {own::SERVICE_NAME: "cart", "x": "y"}},
            "endpoints": (0..1_000).map(endpoint).collect::<Vec<_>>(), "ports": [{"port": 80}]});
        let kept = trim(Trim::Slice, slice);
        let (service, counts) = kept.counts.unwrap();
        assert_eq!(service, NsName::new("shop", "cart"));
        assert_eq!((counts.zones["a"].ready, counts.zones["a"].total), (750, 1_000));
        assert_eq!(kept.keep, Keep::Identity);
    }

    #[test]
    fn of_a_headless_slice_the_ready_endpoints_stay() {
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "pets-x", "namespace": "shop",
                "labels": {own::SERVICE_NAME: "pets", HEADLESS: "", "x": "y"}},
            "endpoints": [
                {"addresses": ["10.0.0.1"], "hostname": "pet-0", "nodeName": "n", "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}],
            "ports": [{"name": "http", "port": 80}]});
        let kept = trim(Trim::Slice, slice);
        assert_eq!(kept.keep, Keep::Whole);
        assert_eq!(
            kept.object["endpoints"],
            json!([{"addresses": ["10.0.0.1"], "hostname": "pet-0"}])
        );
        assert_eq!(
            kept.object["metadata"]["labels"],
            json!({own::SERVICE_NAME: "pets", HEADLESS: ""})
        );
        assert_eq!(kept.counts.map(|(_, counts)| counts.zones[""].total), Some(2));
    }

    #[test]
    fn slices_that_make_no_sense_count_nothing() {
        for endpoints in [json!(null), json!("x"), json!([])] {
            let slice = json!({"apiVersion": "v1", "kind": "EndpointSlice", "endpoints": endpoints,
                "metadata": {"name": "a"}});
            assert_eq!(trim(Trim::Slice, slice).counts, None);
        }
    }

    #[test]
    fn of_services_and_nodes_only_what_is_reported_stays() {
        let object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "uid": "u",
            "annotations": {"big": "x"}, "labels": {"a": "b", keys::TOPOLOGY_ZONE: "z"}},
            "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}, "status": {"images": []}});
        let service = trim(Trim::Service, object.clone()).object;
        let wanted = json!({"clusterIPs": null, "ports": [{"port": 80}], "type": null});
        assert_eq!(service["spec"], wanted);
        let node = trim(Trim::Place, object).object;
        assert_eq!(
            node["metadata"],
            json!({"name": "a", "uid": "u", "labels": {keys::TOPOLOGY_ZONE: "z"}})
        );
        assert_eq!(node.as_object().unwrap().len(), 3);
    }

    #[test]
    fn ours_is_never_trimmed() {
        let ours =
            json!({"metadata": {"labels": {own::MANAGED_BY: own::FAIRLEAD}}, "endpoints": [1]});
        for how in [Trim::ToIdentity, Trim::Service, Trim::Slice, Trim::Place] {
            let kept = trim(how, ours.clone());
            assert_eq!((kept.object, kept.keep), (ours.clone(), Keep::Whole));
        }
    }

    #[test]
    fn a_kind_that_follows_is_watched_once() {
        let kind = ("gateway.envoyproxy.io".to_owned(), "BackendTrafficPolicy".to_owned());
        let service = (String::new(), "Service".to_owned());
        let all = watched([kind.clone(), kind, service]);
        assert_eq!(all.len(), watched([]).len() + 1);
        let last = all.last().unwrap();
        assert_eq!((last.kind.as_str(), last.scope), ("BackendTrafficPolicy", Scope::Everywhere));
    }

    /// The pure crate repeats what it may not depend on.
    #[test]
    fn names_are_spelled_alike_everywhere() {
        assert_eq!(own::FAIRLEAD, keys::FAIRLEAD);
        assert_eq!(own::MANAGED_BY, keys::MANAGED_BY);
        assert_eq!(own::FIELD_MANAGER, keys::FIELD_MANAGER_AGENT);
        assert_eq!(own::GATEWAY_GROUP, keys::GATEWAY_GROUP);
        assert_eq!(own::GLOBAL_GATEWAY, keys::GLOBAL_GATEWAY);
        assert_eq!(own::BACKEND_CLIENT_CERT, keys::BACKEND_CLIENT_CERT);
        assert_eq!(own::SECRET_CLIENT, keys::SECRET_EAST_WEST_CLIENT);
        assert_eq!(own::SERVICE_NAME, keys::SERVICE_NAME);
        assert_eq!(own::MEMBER, keys::LABEL_MEMBER);
        assert_eq!(own::EAST_WEST_GATEWAY, keys::EAST_WEST_GATEWAY);
        assert!(keys::member_object("east").starts_with(own::MEMBER_PREFIX));
        assert!(keys::EAST_WEST_GATEWAY.starts_with(own::EAST_WEST_PREFIX));
        assert!(keys::CONFIG_MAP_EAST_WEST_CALLERS.starts_with(own::EAST_WEST_PREFIX));
    }

    #[test]
    fn of_a_foreign_route_what_may_take_our_requests_stays() {
        let route = json!({
            "apiVersion": "v1", "kind": "HTTPRoute",
            "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "t", "annotations": {"big": "x"}},
            "spec": {"parentRefs": [{"name": "g"}], "hostnames": ["h"], "rules": [
                {"matches": [{"path": {"value": "/"}}], "filters": [{"type": "x"}], "backendRefs": [{"name": "b"}]}]},
            "status": {"parents": []},
        });
        let kept = trim(Trim::Route, route).object;
        assert_eq!(
            kept,
            json!({
                "apiVersion": "v1", "kind": "HTTPRoute",
                "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "t", "labels": {}},
                "spec": {"parentRefs": [{"name": "g"}], "hostnames": ["h"], "rules": [
                    {"matches": [{"path": {"value": "/"}}]}]},
            })
        );
    }
}
