//! Routes that a person pinned to an earlier revision: read as if their user had never written anything
//! else, so that all that others have to say (listeners, grants, other routes, members) holds as of now.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::keys;
use fairlead_model::policy::{GlobalRoute, Spread};
use fairlead_model::{Json, Reason, RouteKey};

use super::HubObjects;
use crate::raw;

/// What a route is pinned to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pin {
    /// The revision, and the rules and policies of then; none: the pin has no effect.
    pub at: Option<(u64, Arc<GlobalRoute>)>,
    /// Why what is asked for cannot be had.
    pub fault: Option<(Reason, String)>,
}

/// What is said of a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinVerdict {
    /// The revision that is in force; none: the route is as it is written.
    pub at: Option<u64>,
    /// Why what is asked for cannot be had.
    pub fault: Option<(Reason, String)>,
}

impl Pin {
    pub(super) fn verdict(&self) -> PinVerdict {
        PinVerdict { at: self.at.as_ref().map(|(number, _)| *number), fault: self.fault.clone() }
    }
}

/// Revisions that routes ask for by annotation; an error says what is wrong with its value.
pub fn asked_pins(objects: &HubObjects) -> BTreeMap<RouteKey, Result<u64, String>> {
    let asked = |(key, object): (&RouteKey, &Json)| {
        let text = raw::annotation(object, keys::PIN)?;
        let number = text.trim().parse::<u64>().ok().filter(|number| *number > 0);
        let bad = || {
            let text = fairlead_model::id::printable(text);
            format!("annotation {} is {text:?}, which is no revision", keys::PIN)
        };
        Some((key.clone(), number.ok_or_else(bad)))
    };
    objects.routes.iter().filter_map(asked).collect()
}

/// A route with the rules of then. Where it attaches is as of now: that is for its Gateways to say.
pub(super) fn as_of(object: &Json, then: &GlobalRoute) -> Json {
    const OF_NOW: [&str; 2] = ["parentRefs", "useDefaultGateways"];
    let mut spec = (*then.spec).clone();
    if let Some(fields) = spec.as_object_mut() {
        for field in OF_NOW {
            match object.pointer(&format!("/spec/{field}")) {
                Some(now) => drop(fields.insert(field.to_owned(), now.clone())),
                None => drop(fields.remove(field)),
            }
        }
    }
    let mut pinned = object.clone();
    pinned["spec"] = spec;
    pinned
}

/// Gives each rule the policy that acted on it then. Rules that cannot be read any more are left out of
/// the route that was read, so they are found by what is written in them.
pub(super) fn spread_as_of(route: &mut GlobalRoute, then: &GlobalRoute) {
    let written = |route: &GlobalRoute| raw::list(&route.spec, "/rules").to_vec();
    let mut left: Vec<(Json, Spread)> =
        written(then).into_iter().zip(then.rules.iter().map(|rule| rule.spread.clone())).collect();
    for (raw, rule) in written(route).into_iter().zip(&mut route.rules) {
        if let Some(at) = left.iter().position(|(then, _)| *then == raw) {
            rule.spread = left.remove(at).1;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::super::ingest_hub;
    use super::*;

    fn mk_objects(weights: [u32; 2], healthy_percent: u8) -> HubObjects {
        let group = "gateway.networking.k8s.io/v1";
        let backend = |(name, weight): (&str, u32)| {
            json!({"group": keys::MCS_GROUP, "kind": "ServiceImport",
            "name": name, "port": 80, "weight": weight})
        };
        let backends: Vec<Json> =
            ["cart", "cart-v2"].into_iter().zip(weights).map(backend).collect();
        let mut objects = HubObjects::default();
        for object in [
            json!({"apiVersion": group, "kind": "GatewayClass", "metadata": {"name": "fairlead"},
                "spec": {"controllerName": keys::CONTROLLER_NAME}}),
            json!({"apiVersion": group, "kind": "Gateway", "metadata": {"name": "public", "namespace": "shop"},
                "spec": {"gatewayClassName": "fairlead",
                    "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}}),
            json!({"apiVersion": group, "kind": "HTTPRoute",
                "metadata": {"name": "cart", "namespace": "shop", "generation": 7,
                    "annotations": {keys::PIN: "4"}},
                "spec": {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": backends}]}}),
            json!({"apiVersion": keys::API_VERSION, "kind": "TrafficPolicy",
                "metadata": {"name": "spread", "namespace": "shop"},
                "spec": {"targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "HTTPRoute", "name": "cart"}],
                    "failover": {"healthyPercent": healthy_percent}}}),
        ] {
            assert!(objects.insert(object));
        }
        objects
    }

    fn key() -> RouteKey {
        "HTTPRoute/shop/cart".parse().unwrap()
    }

    fn pin_to(objects: &mut HubObjects, route: Arc<GlobalRoute>) {
        objects.pins.insert(key(), Pin { at: Some((4, route)), fault: None });
    }

    #[test]
    fn a_pinned_route_has_rules_and_policies_of_then() {
        let then = Arc::clone(&ingest_hub(&mk_objects([90, 10], 80)).policy.routes[&key()]);
        let mut now = mk_objects([0, 100], 20);
        assert_ne!(ingest_hub(&now).policy.routes[&key()], then);
        pin_to(&mut now, Arc::clone(&then));
        let pinned = ingest_hub(&now);
        assert_eq!(pinned.policy.routes[&key()], then);
        let verdict = &pinned.routes[&key()];
        assert_eq!((verdict.generation, verdict.pin.as_ref().unwrap().at), (7, Some(4)));
    }

    #[test]
    fn what_listeners_and_parents_say_holds_as_of_now() {
        let then = Arc::clone(&ingest_hub(&mk_objects([90, 10], 80)).policy.routes[&key()]);
        let mut now = mk_objects([90, 10], 80);
        let gateway = now.gateways.values_mut().next().unwrap();
        gateway["spec"]["listeners"][0]["allowedRoutes"] =
            json!({"kinds": [{"kind": "GRPCRoute"}]});
        pin_to(&mut now, Arc::clone(&then));
        assert!(!ingest_hub(&now).policy.routes.contains_key(&key()));
        let mut now = mk_objects([90, 10], 80);
        now.routes.get_mut(&key()).unwrap()["spec"]["parentRefs"] = json!([{"name": "other"}]);
        pin_to(&mut now, then);
        assert!(!ingest_hub(&now).routes.contains_key(&key()));
    }

    #[test]
    fn the_annotation_is_a_revision_or_says_what_is_wrong() {
        let mut objects = mk_objects([1, 1], 50);
        assert_eq!(asked_pins(&objects), [(key(), Ok(4))].into());
        for bad in ["", "0", "-1", "four", "99999999999999999999"] {
            objects.routes.get_mut(&key()).unwrap()["metadata"]["annotations"][keys::PIN] =
                bad.into();
            assert!(asked_pins(&objects)[&key()].is_err(), "{bad}");
        }
    }
}
