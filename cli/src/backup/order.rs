//! In which order objects are restored, so that who came first still does.
//!
//! Between two routes or policies that want the same, the older one wins, and then the first name. A
//! restored object is new, to the second. So two objects whose names would turn their order around must
//! not be made in the same second: between waves, whoever restores waits for the next one. Pure.

use std::collections::BTreeSet;

use fairlead_model::Json;

/// Objects by waves: the order within a wave means nothing.
pub(crate) fn waves(objects: Vec<Json>) -> Vec<Vec<Json>> {
    let mut entries: Vec<(Entry, Json)> =
        objects.into_iter().map(|object| (Entry::of(&object), object)).collect();
    entries.sort_by(|(a, _), (b, _)| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    let mut waves: Vec<Vec<(Entry, Json)>> = Vec::new();
    for (entry, object) in entries {
        match waves.last_mut() {
            Some(wave) if !wave.iter().any(|(older, _)| older.must_precede(&entry)) => {
                wave.push((entry, object));
            }
            _ => waves.push(vec![(entry, object)]),
        }
    }
    let objects = |wave: Vec<(Entry, Json)>| wave.into_iter().map(|(_, object)| object).collect();
    waves.into_iter().map(objects).collect()
}

/// What the order depends on.
struct Entry {
    created: String,
    name: String,
    /// What it wants a part of; two with one in common are rivals.
    wants: BTreeSet<String>,
}

impl Entry {
    fn of(object: &Json) -> Self {
        let meta = &object["metadata"];
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let name = format!("{}/{}", text(&meta["namespace"]), text(&meta["name"]));
        Self { created: text(&meta["creationTimestamp"]), name, wants: wants_of(object) }
    }

    fn must_precede(&self, younger: &Self) -> bool {
        self.created < younger.created
            && younger.name < self.name
            && !self.wants.is_disjoint(&younger.wants)
    }
}

/// Parents of routes, targets of policies; hostnames are not looked at: too many waits cost seconds, one
/// too few another winner.
fn wants_of(object: &Json) -> BTreeSet<String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    // HTTP and gRPC routes share listeners and hostnames.
    let family = kind.replace("GRPCRoute", "HTTPRoute");
    let home = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let spec = &object["spec"];
    let lists = ["parentRefs", "targetRefs"].into_iter().filter_map(|field| spec[field].as_array());
    let single = ["parentRef", "targetRef"].into_iter().filter_map(|field| spec.get(field));
    let want = |reference: &Json| {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let namespace = reference["namespace"].as_str().unwrap_or(home);
        format!("{family} of {} {namespace}/{}", text("kind"), text("name"))
    };
    lists.flatten().chain(single).map(want).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(kind: &str, name: &str, second: u32, gateway: &str) -> Json {
        json!({"kind": kind, "metadata": {"namespace": "shop", "name": name,
            "creationTimestamp": format!("2026-11-21T10:00:{second:02}Z")},
            "spec": {"parentRefs": [{"name": gateway, "namespace": "infra"}]}})
    }

    fn names_of(wave: &[Json]) -> Vec<&str> {
        wave.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect()
    }

    fn names(waves: &[Vec<Json>]) -> Vec<Vec<&str>> {
        waves.iter().map(|wave| names_of(wave)).collect()
    }

    #[test]
    fn rivals_whose_names_turn_their_order_around_are_seconds_apart() {
        let objects = vec![
            route("HTTPRoute", "a", 5, "public"),
            route("GRPCRoute", "b", 1, "public"),
            route("HTTPRoute", "c", 2, "public"),
            route("HTTPRoute", "a-elsewhere", 9, "other"),
        ];
        assert_eq!(names(&waves(objects)), [vec!["b", "c"], vec!["a", "a-elsewhere"]]);
    }

    #[test]
    fn what_has_no_rival_needs_no_wait() {
        let same_second = vec![route("HTTPRoute", "b", 1, "g"), route("HTTPRoute", "a", 1, "g")];
        assert_eq!(names(&waves(same_second)), [["a", "b"]]);
        let other_family = vec![route("TCPRoute", "b", 1, "g"), route("HTTPRoute", "a", 2, "g")];
        assert_eq!(names(&waves(other_family)), [["b", "a"]]);
        let policy = |name: &str, second: u32| {
            json!({"kind": "TrafficPolicy", "metadata": {"namespace": "shop", "name": name,
                "creationTimestamp": format!("2026-11-21T10:00:{second:02}Z")},
                "spec": {"targetRefs": [{"kind": "HTTPRoute", "name": "cart"}]}})
        };
        assert_eq!(names(&waves(vec![policy("b", 1), policy("a", 2)])), [["b"], ["a"]]);
        assert!(waves(Vec::new()).is_empty());
        assert_eq!(waves(vec![json!({}), json!(7)]).len(), 1);
    }
}
