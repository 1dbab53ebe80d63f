//! Each CEL rule lets the right objects through and refuses the wrong ones, with its message.
//! Bounds, patterns and enums are the API server's own work; the e2e world shows those.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_crds::{Failback, Failover, MemberCluster, StaleMember, TrafficPolicy};
use kube::core::cel::{ErrorKind, RootContext, ValidationError, Validator};
use serde_json::Value;

fn yaml(text: &str) -> Value {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).unwrap()
}

/// What an API server would refuse the object for, defaults filled in first as it does.
fn refusals(kind: &str, object: &str, old: Option<&str>) -> Vec<String> {
    let crd = fairlead_crds::crds().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
    let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let schema = serde_json::to_value(schema).unwrap();
    let old = old.map(yaml);
    let root = RootContext {
        api_version: fairlead_crds::keys::API_VERSION.to_owned(),
        api_group: fairlead_crds::keys::GROUP.to_owned(),
        kind: kind.to_owned(),
    };
    let found =
        Validator::new().validate_with_context(&schema, &yaml(object), old.as_ref(), Some(&root));
    let refused = |error: &ValidationError| {
        assert_eq!(error.kind, ErrorKind::ValidationFailure, "a broken rule: {error:?}");
        error.message.clone()
    };
    found.err().map(|errors| errors.as_slice().iter().map(refused).collect()).unwrap_or_default()
}

#[track_caller]
fn assert_refused(found: &[String], why: &str) {
    assert_eq!(found.len(), 1, "wanted one refusal with {why:?}, got {found:?}");
    assert!(found[0].contains(why), "wanted {why:?} in {:?}", found[0]);
}

fn member(name: &str, spec: &str) -> Vec<String> {
    refusals("MemberCluster", &member_yaml(name, spec), None)
}

fn member_yaml(name: &str, spec: &str) -> String {
    format!("{{metadata: {{name: {name}}}, spec: {spec}}}")
}

/// A policy with a good target and this tier.
fn tier(tier: &str) -> Vec<String> {
    policy(&format!("{{targetRefs: [{CART}], tiers: [{tier}]}}"))
}

fn policy(spec: &str) -> Vec<String> {
    refusals("TrafficPolicy", &format!("{{metadata: {{name: cart}}, spec: {spec}}}"), None)
}

const CART: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: cart}";

#[test]
fn member_name_is_a_label_of_at_most_50() {
    let longest = "a".repeat(50);
    assert_eq!(member(&longest, "{}"), [""; 0]);
    assert_eq!(member("eu-2", "{}"), [""; 0]);
    for name in [format!("{longest}a"), "eu.2".to_owned()] {
        assert_refused(&member(&name, "{}"), "RFC 1123 label of at most 50");
    }
}

#[test]
fn cluster_uid_can_be_set_once_and_never_changed() {
    let none = member_yaml("east", "{}");
    let first = member_yaml("east", "{clusterUID: 5b0c}");
    let other = member_yaml("east", "{clusterUID: 77aa}");
    let update = |new: &str, old: &str| refusals("MemberCluster", new, Some(old));
    assert_eq!(update(&first, &none), [""; 0]);
    assert_eq!(update(&first, &first), [""; 0]);
    assert_refused(&update(&other, &first), "clusterUID cannot change");
    assert_refused(&update(&none, &first), "clusterUID cannot change");
}

#[test]
fn door_addresses_are_unicast_ips_or_dns_names() {
    for good in ["192.0.2.7", "10.77.1.1", "'2001:db8::7'", "door.east.example.com"] {
        assert_eq!(member("east", &format!("{{eastWest: {{addresses: [{good}]}}}}")), [""; 0]);
    }
    for bad in [
        "127.0.0.1",
        "'::1'",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "east",
        "Door.Example.Com",
        "192.0.2.300",
        "'192.0.2.7:15443'",
        "'https://door.example.com'",
    ] {
        let found = member("east", &format!("{{eastWest: {{addresses: [192.0.2.7, {bad}]}}}}"));
        assert_refused(&found, "unicast IP address");
    }
}

#[test]
fn policy_as_designed_is_accepted() {
    let found = policy(
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: cart}], tiers: [\
         {members: {names: [eu-1, eu-2]}, split: Weights, weights: {eu-1: 70, eu-2: 30}}, \
         {members: {selector: {matchLabels: {use: spare}}}, split: Equal}, \
         {members: {scope: Any}}], \
         failover: {healthyPercent: 70, minEndpoints: 1, whenUnavailable: Redistribute}, \
         failback: {mode: Auto, afterSeconds: 30, rampSeconds: 60}, \
         staleMember: {mode: Drain, keepForSeconds: 600}}",
    );
    assert_eq!(found, [""; 0]);
}

#[test]
fn target_is_a_kind_that_policies_act_on() {
    for good in [
        CART,
        "{group: gateway.networking.k8s.io, kind: Gateway, name: public}",
        "{group: gateway.networking.k8s.io, kind: GRPCRoute, name: cart, sectionName: checkout}",
        "{group: gateway.networking.k8s.io, kind: Gateway, name: public, sectionName: https}",
        "{group: gateway.networking.k8s.io, kind: ListenerSet, name: team}",
        "{group: gateway.networking.k8s.io, kind: ListenerSet, name: team, sectionName: https}",
        "{group: multicluster.x-k8s.io, kind: ServiceImport, name: cart}",
    ] {
        assert_eq!(policy(&format!("{{targetRefs: [{good}]}}")), [""; 0]);
    }
    for bad in [
        "{group: '', kind: Service, name: cart}",
        "{group: gateway.networking.k8s.io, kind: ServiceImport, name: cart}",
        "{group: multicluster.x-k8s.io, kind: HTTPRoute, name: cart}",
    ] {
        assert_refused(&policy(&format!("{{targetRefs: [{bad}]}}")), "can target a Gateway");
    }
}

#[test]
fn a_service_has_no_sections() {
    let bad = "{group: multicluster.x-k8s.io, kind: ServiceImport, name: cart, sectionName: http}";
    assert_refused(&policy(&format!("{{targetRefs: [{bad}]}}")), "has neither");
}

#[test]
fn target_is_named_once() {
    let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: cart, sectionName: a}";
    assert_eq!(policy(&format!("{{targetRefs: [{CART}, {rule}]}}")), [""; 0]);
    assert_refused(&policy(&format!("{{targetRefs: [{CART}, {CART}]}}")), "named once");
    assert_refused(&policy(&format!("{{targetRefs: [{rule}, {CART}, {rule}]}}")), "named once");
}

#[test]
fn tier_chooses_its_members_in_exactly_one_way() {
    for good in ["{names: [east]}", "{selector: {}}", "{scope: SameZone}"] {
        assert_eq!(tier(&format!("{{members: {good}}}")), [""; 0]);
    }
    for bad in ["{}", "{names: [east], scope: Any}", "{selector: {}, scope: Any}"] {
        assert_refused(&tier(&format!("{{members: {bad}}}")), "exactly one of names");
    }
}

#[test]
fn selector_requirement_has_values_only_where_they_mean_something() {
    let with = |requirement: &str| {
        tier(&format!("{{members: {{selector: {{matchExpressions: [{requirement}]}}}}}}"))
    };
    assert_eq!(with("{key: env, operator: In, values: [prod]}"), [""; 0]);
    assert_eq!(with("{key: env, operator: Exists}"), [""; 0]);
    assert_refused(&with("{key: env, operator: NotIn}"), "need values");
    assert_refused(&with("{key: env, operator: Exists, values: [prod]}"), "need values");
}

#[test]
fn weights_are_given_if_and_only_if_the_split_is_weights() {
    assert_eq!(tier("{members: {scope: Any}, split: Weights, weights: {east: 1}}"), [""; 0]);
    assert_refused(&tier("{members: {scope: Any}, split: Weights}"), "needs weights");
    assert_refused(&tier("{members: {scope: Any}, weights: {east: 1}}"), "needs weights");
    assert_refused(
        &tier("{members: {scope: Any}, split: Equal, weights: {east: 1}}"),
        "needs weights",
    );
}

#[test]
fn weights_name_exactly_the_named_members() {
    let with = |weights: &str| {
        tier(&format!("{{members: {{names: [east, west]}}, split: Weights, weights: {weights}}}"))
    };
    assert_eq!(with("{east: 1, west: 0}"), [""; 0]);
    assert_refused(&with("{east: 1}"), "exactly the members");
    assert_refused(&with("{east: 1, west: 1, south: 1}"), "exactly the members");
}

#[test]
fn weights_that_are_all_zero_are_refused() {
    let found = tier("{members: {scope: Any}, split: Weights, weights: {east: 0, west: 0}}");
    assert_refused(&found, "above 0");
}

#[test]
fn stale_member_has_a_time_if_and_only_if_it_drains() {
    let with = |stale: &str| policy(&format!("{{targetRefs: [{CART}], staleMember: {stale}}}"));
    assert_eq!(with("{}"), [""; 0]);
    assert_eq!(with("{mode: Keep}"), [""; 0]);
    assert_eq!(with("{mode: Drain, keepForSeconds: 600}"), [""; 0]);
    assert_refused(&with("{mode: Drain}"), "needs keepForSeconds");
    assert_refused(&with("{keepForSeconds: 600}"), "needs keepForSeconds");
}

#[test]
fn empty_sections_read_as_their_defaults() {
    let read: TrafficPolicy = serde_json::from_value(yaml(&format!(
        "{{apiVersion: fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: cart}}, \
         spec: {{targetRefs: [{CART}], failover: {{}}, failback: {{}}, staleMember: {{}}}}}}"
    )))
    .unwrap();
    assert_eq!(read.spec.failover, Some(Failover::default()));
    assert_eq!(read.spec.failback, Some(Failback::default()));
    assert_eq!(read.spec.stale_member, Some(StaleMember::default()));
    let failover = Failover::default();
    assert_eq!((failover.healthy_percent, failover.min_endpoints), (70, 1));
}

#[test]
fn member_cluster_writes_what_it_read() {
    let object = yaml(
        "{apiVersion: fairlead.dev/v1alpha1, kind: MemberCluster, metadata: {name: east}, \
         spec: {clusterUID: 5b0c, location: {region: eu, zone: eu-a}, gatewayClassName: eg, \
         trafficState: Draining, drainSeconds: 60, eastWest: {port: 443, addresses: [192.0.2.7]}}}",
    );
    let read: MemberCluster = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), object);
}

fn names(spec: &str) -> Vec<String> {
    let target = "{group: gateway.networking.k8s.io, kind: Gateway, name: public}";
    let spec = format!("{{targetRefs: [{target}], zone: example.com{spec}}}");
    refusals("DNSPolicy", &format!("{{metadata: {{name: names}}, spec: {spec}}}"), None)
}

#[test]
fn each_dns_strategy_takes_its_own_fields_only() {
    for good in [
        "",
        ", weights: {east: 1}",
        ", strategy: Failover, tiers: [{members: [east]}]",
        ", strategy: Geo, networks: [{cidr: 10.0.0.0/8, region: eu}]",
        ", whenNoneHealthy: Fallback, fallback: [192.0.2.1, '2001:db8::1']",
        ", delegation: ExternalDNS",
    ] {
        assert_eq!(names(good), [""; 0], "{good}");
    }
    for (bad, why) in [
        (", strategy: All, weights: {east: 1}", "weights are for strategy Weighted only"),
        (", weights: {east: 0}", "at least one weight"),
        (", tiers: [{members: [east]}]", "tiers are for strategy Failover only"),
        (", strategy: Geo", "strategy Geo needs networks"),
        (", networks: [{cidr: 10.0.0.0/8, region: eu}]", "no other strategy takes them"),
        (", whenNoneHealthy: Fallback", "needs fallback"),
        (", fallback: [192.0.2.1]", "needs fallback"),
        (", publish: ExternalDNS, delegation: ExternalDNS", "is not delegated"),
    ] {
        assert_refused(&names(bad), why);
    }
}

#[test]
fn a_dns_policy_targets_gateways_each_once() {
    let with = |targets: &str| {
        let spec = format!("{{targetRefs: [{targets}], zone: example.com}}");
        refusals("DNSPolicy", &format!("{{metadata: {{name: names}}, spec: {spec}}}"), None)
    };
    let public = "{group: gateway.networking.k8s.io, kind: Gateway, name: public}";
    let listener =
        "{group: gateway.networking.k8s.io, kind: Gateway, name: public, sectionName: http}";
    assert_eq!(with(&format!("{public}, {listener}")), [""; 0]);
    assert_refused(&with(&format!("{public}, {public}")), "named once");
    assert_refused(&with(CART), "can target a Gateway");
}
