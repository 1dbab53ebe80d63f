//! Routes of a member that take requests from ours.
//!
//! Of equal matches the older route answers, then the first name, and in a member ours are as old as the
//! day on which they came. Only equal matches are looked for: a more specific one is what its author
//! meant, and a gateway would tell nobody.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::{Json, NsName, RouteKind};
use serde_json::json;

use crate::ingest::hub::{canonical, intersects};
use crate::raw;

/// Routes of the member itself, by the Gateway that they name.
#[derive(Debug, Default)]
pub struct Shadows<'a>(BTreeMap<(RouteKind, NsName), Vec<&'a Json>>);

impl<'a> Shadows<'a> {
    /// Reads routes; ours are none of them.
    pub fn of(routes: impl IntoIterator<Item = &'a Json>) -> Self {
        let mut shadows = Self::default();
        let others = routes.into_iter().filter(|r| !raw::is_ours(r) && !raw::is_deleting(r));
        for (kind, route) in others.filter_map(|route| Some((kind(route)?, route))) {
            for parent in parents(route) {
                shadows.0.entry((kind, parent.gateway)).or_default().push(route);
            }
        }
        shadows
    }

    /// The first route with a match of one of ours that comes before it, in words.
    pub fn over(&self, ours: &Json) -> Option<String> {
        let (kind, order, parents) = (kind(ours)?, order(ours)?, parents(ours));
        let candidates =
            parents.iter().filter_map(|parent| self.0.get(&(kind, parent.gateway.clone())));
        let mut earlier: Vec<&Json> = candidates
            .flatten()
            .copied()
            .filter(|other| self::order(other).is_some_and(|theirs| theirs < order))
            .collect();
        if earlier.is_empty() {
            return None;
        }
        earlier.sort_by_key(|other| self::order(other));
        let own = matches(kind, ours);
        let shared = |other: &Json| {
            let meets =
                self::parents(other).iter().any(|one| parents.iter().any(|two| one.meets(two)));
            match meets && hosts_meet(ours, other) {
                true => own.intersection(&matches(kind, other)).count(),
                false => 0,
            }
        };
        let (other, count) = earlier
            .into_iter()
            .map(|other| (other, shared(other)))
            .find(|(_, count)| *count > 0)?;
        let name = raw::ns_name(other)?;
        let what = if count == 1 { "a match".to_owned() } else { format!("{count} matches") };
        Some(format!(
            "{kind} {name} of this member is older and has {what} of it; it answers there"
        ))
    }
}

fn kind(route: &Json) -> Option<RouteKind> {
    let written = raw::field(route, "kind")?;
    RouteKind::ALL.into_iter().find(|kind| kind.has_headers() && kind.as_str() == written)
}

fn order(route: &Json) -> Option<(fairlead_model::Millis, NsName)> {
    Some((raw::created_at(route), raw::ns_name(route)?))
}

/// A Gateway, or one listener of it.
struct Parent {
    gateway: NsName,
    section: Option<String>,
}

impl Parent {
    fn meets(&self, other: &Self) -> bool {
        let sections = self.section.as_ref().zip(other.section.as_ref());
        self.gateway == other.gateway && sections.is_none_or(|(one, two)| one == two)
    }
}

fn parents(route: &Json) -> Vec<Parent> {
    let own = raw::text(route, "/metadata/namespace").unwrap_or_default();
    let read = |written: &Json| {
        let is_gateway = raw::field(written, "kind").is_none_or(|kind| kind == "Gateway");
        let namespace = raw::field(written, "namespace").unwrap_or(own);
        let gateway = NsName::new(namespace, raw::field(written, "name").filter(|_| is_gateway)?);
        Some(Parent { gateway, section: raw::field(written, "sectionName").map(str::to_owned) })
    };
    raw::list(route, "/spec/parentRefs").iter().filter_map(read).collect()
}

fn hosts_meet(one: &Json, two: &Json) -> bool {
    let hosts = |route: &'_ Json| -> Vec<String> {
        let names = raw::list(route, "/spec/hostnames").iter().filter_map(Json::as_str);
        names.map(str::to_owned).collect()
    };
    let (one, two) = (hosts(one), hosts(two));
    let two: Vec<&str> = two.iter().map(String::as_str).collect();
    one.is_empty() || one.iter().any(|host| intersects(Some(host), &two))
}

fn matches(kind: RouteKind, route: &Json) -> BTreeSet<String> {
    let everything = [json!({})];
    let of = |rule: &Json| {
        let written = raw::list(rule, "/matches");
        let all = if written.is_empty() { &everything[..] } else { written };
        all.iter().map(|one| canonical(kind, one)).collect::<Vec<_>>()
    };
    raw::list(route, "/spec/rules").iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, created: &str, spec: Json) -> Json {
        let meta = json!({"name": name, "namespace": "shop", "creationTimestamp": created});
        let mut route = json!({"kind": "HTTPRoute", "metadata": meta, "spec": spec});
        route["spec"]["parentRefs"] = json!([{"name": "public", "namespace": "infra"}]);
        route
    }

    const OLD: &str = "2025-01-01T00:00:00Z";
    const NEW: &str = "2026-01-01T00:00:00Z";

    fn cart() -> Json {
        json!({"hostnames": ["shop.example.com"], "rules": [{"matches": [{"path": {"value": "/cart"}}]}]})
    }

    fn shadow(ours: &Json, theirs: &Json) -> bool {
        Shadows::of([theirs]).over(ours).is_some()
    }

    #[test]
    fn an_older_route_with_the_same_match_is_told() {
        let ours = route("cart-global", NEW, cart());
        let theirs = route("mine", OLD, cart());
        let told = Shadows::of([&theirs]).over(&ours).unwrap_or_default();
        assert!(told.contains("HTTPRoute shop/mine") && told.contains("a match"), "{told}");
    }

    #[test]
    fn the_same_age_is_settled_by_name() {
        let ours = route("cart-global", OLD, cart());
        assert!(shadow(&ours, &route("a", OLD, cart())));
        assert!(!shadow(&ours, &route("z", OLD, cart())));
    }

    #[test]
    fn what_comes_later_or_never_meets_takes_nothing() {
        let ours = route("cart-global", NEW, cart());
        let mut other_path = cart();
        other_path["rules"][0]["matches"][0]["path"]["value"] = json!("/cart/more");
        let mut other_host = cart();
        other_host["hostnames"] = json!(["other.example.com"]);
        let mut other_gateway = route("mine", OLD, cart());
        other_gateway["spec"]["parentRefs"][0]["name"] = json!("theirs");
        let mut going = route("mine", OLD, cart());
        going["metadata"]["deletionTimestamp"] = json!(NEW);
        let mut of_ours = route("mine", OLD, cart());
        of_ours["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "fairlead"});
        for theirs in [
            route("mine", "2027-01-01T00:00:00Z", cart()),
            route("mine", OLD, other_path),
            route("mine", OLD, other_host),
            other_gateway,
            going,
            of_ours,
            json!({"kind": "HTTPRoute"}),
            json!(3),
        ] {
            assert!(!shadow(&ours, &theirs), "{theirs}");
        }
    }

    #[test]
    fn hostnames_and_matches_meet_in_every_spelling() {
        let ours = route("cart-global", NEW, cart());
        let spelled = json!({"hostnames": ["*.Example.com"], "rules": [{"matches": [
            {"path": {"type": "PathPrefix", "value": "/cart"}, "headers": []}]}]});
        assert!(shadow(&ours, &route("mine", OLD, spelled)));
        let everything = route("all-global", NEW, json!({"rules": [{}]}));
        assert!(shadow(&everything, &route("mine", OLD, json!({"rules": [{"matches": [{}]}]}))));
    }
}
