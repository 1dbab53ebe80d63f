//! Equal matches of two routes: the older route answers, the other's match is left out.
//!
//! The Gateway API lets the older route win, then the first name. In a member all of our routes are
//! about equally old, so that its gateway would choose by name; the hub's own times count.
//! A match is left out only where older routes have it on every listener and hostname of the route:
//! where they have it on some, the member's gateway settles the rest.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::policy::GlobalRoute;
use fairlead_model::{Json, Note, NsName, Reason, RouteKey, RouteKind};
use serde_json::json;

use super::gateway::HubGateway;
use super::hostname;
use super::verdict::{RouteVerdict, Verdict};
use crate::raw;

/// A listener of a Gateway, by position.
pub(super) type Attached = BTreeSet<(NsName, usize)>;

/// Where a match holds: kind of route, listener, hostname.
type Place = (RouteKind, NsName, usize, String);

/// Settles equal matches of all routes.
pub(super) fn settle(
    routes: &mut BTreeMap<RouteKey, GlobalRoute>,
    verdicts: &mut BTreeMap<RouteKey, RouteVerdict>,
    attached: &BTreeMap<RouteKey, Attached>,
    gateways: &BTreeMap<NsName, HubGateway>,
) {
    let mut order: Vec<RouteKey> =
        routes.keys().filter(|key| key.kind.has_headers()).cloned().collect();
    order.sort_by_key(|key| (routes[key].created_at, key.name.clone(), key.kind));
    let mut taken: BTreeMap<(Place, String), RouteKey> = BTreeMap::new();
    for key in order {
        let Some(route) = routes.get_mut(&key) else { continue };
        let places = places(&key, &route.spec, attached.get(&key), gateways);
        let lost = Loss::of(route, &places, &mut taken);
        let Some(first) = lost.notes.first().map(|note| note.message.clone()) else { continue };
        let is_empty = route.rules.is_empty();
        if let Some(verdict) = verdicts.get_mut(&key) {
            say(verdict, lost.notes, &first, is_empty);
        }
        if is_empty {
            routes.remove(&key);
        }
    }
}

fn say(verdict: &mut RouteVerdict, notes: Vec<Note>, first: &str, is_empty: bool) {
    let count = notes.len();
    verdict.notes.extend(notes);
    if is_empty {
        for parent in verdict.parents.iter_mut().filter(|parent| parent.accepted.is_yes()) {
            let message = format!("nothing of it is left: {first}");
            parent.accepted = Verdict::no(Reason::Conflicted, message);
        }
    } else if verdict.partially_invalid.is_none() {
        verdict.partially_invalid =
            Some(format!("Dropped Rule: {count} matches are left out, first: {first}"));
    }
}

/// What a route loses to older ones.
#[derive(Default)]
struct Loss {
    notes: Vec<Note>,
}

impl Loss {
    fn of(
        route: &mut GlobalRoute,
        places: &BTreeSet<Place>,
        taken: &mut BTreeMap<(Place, String), RouteKey>,
    ) -> Self {
        let mut loss = Self::default();
        let mut spec = (*route.spec).clone();
        let Some(rules) = spec.get_mut("rules").and_then(Json::as_array_mut) else { return loss };
        let mut kept = Vec::new();
        let mut models = Vec::new();
        for (at, (mut rule, model)) in
            std::mem::take(rules).into_iter().zip(std::mem::take(&mut route.rules)).enumerate()
        {
            let subject = format!("{} rules[{at}]", route.key);
            if loss.keep(&route.key, &mut rule, &subject, places, taken) {
                kept.push(rule);
                models.push(model);
            }
        }
        *rules = kept;
        route.rules = models;
        if !loss.notes.is_empty() {
            route.spec = std::sync::Arc::new(spec);
        }
        loss
    }

    /// Takes the matches out of a rule that older routes have; false when none is left.
    fn keep(
        &mut self,
        key: &RouteKey,
        rule: &mut Json,
        subject: &str,
        places: &BTreeSet<Place>,
        taken: &mut BTreeMap<(Place, String), RouteKey>,
    ) -> bool {
        let everything = vec![json!({})];
        let written = rule.get("matches").and_then(Json::as_array).filter(|list| !list.is_empty());
        let matches = written.unwrap_or(&everything).clone();
        let mut left = Vec::new();
        for one in matches {
            match self.winner(key, &one, places, taken) {
                Some(winner) => {
                    let message = format!(
                        "{winner} comes first (by age, then by name) and has the same match"
                    );
                    self.notes.push(Note::new(subject, Reason::Conflicted, message));
                }
                None => left.push(one),
            }
        }
        let is_left = !left.is_empty();
        if is_left && let Some(list) = rule.get_mut("matches").and_then(Json::as_array_mut) {
            list.retain(|one| left.contains(one));
        }
        is_left
    }

    /// The route that has a match everywhere where this one would; else it is this one's from now on.
    fn winner(
        &self,
        key: &RouteKey,
        one: &Json,
        places: &BTreeSet<Place>,
        taken: &mut BTreeMap<(Place, String), RouteKey>,
    ) -> Option<RouteKey> {
        let canonical = canonical(key.kind, one);
        let claim = |place: &Place| (place.clone(), canonical.clone());
        let other = |place: &Place| taken.get(&claim(place)).filter(|holder| *holder != key);
        if !places.is_empty() && places.iter().all(|place| other(place).is_some()) {
            return places.iter().find_map(|place| other(place).cloned());
        }
        for place in places {
            taken.entry(claim(place)).or_insert_with(|| key.clone());
        }
        None
    }
}

/// Listeners and hostnames of a route.
fn places(
    key: &RouteKey,
    spec: &Json,
    attached: Option<&Attached>,
    gateways: &BTreeMap<NsName, HubGateway>,
) -> BTreeSet<Place> {
    let hostnames: Vec<&str> =
        raw::list(spec, "/hostnames").iter().filter_map(Json::as_str).collect();
    let mut places = BTreeSet::new();
    for (name, at) in attached.into_iter().flatten() {
        let Some(door) = gateways.get(name).and_then(|gateway| gateway.doors.get(*at)) else {
            continue;
        };
        let own = door.hostname.as_deref();
        let fitting: Vec<&str> =
            hostnames.iter().copied().filter(|host| hostname::intersects(own, &[*host])).collect();
        let hosts = if fitting.is_empty() { vec![own.unwrap_or("*")] } else { fitting };
        for host in hosts {
            places.insert((key.kind, name.clone(), *at, host.to_ascii_lowercase()));
        }
    }
    places
}

/// One spelling for matches that take the same requests.
pub(crate) fn canonical(kind: RouteKind, one: &Json) -> String {
    let mut one = one.clone();
    let Some(fields) = one.as_object_mut() else { return one.to_string() };
    if kind == RouteKind::HTTPRoute {
        let path = fields.entry("path").or_insert_with(|| json!({}));
        default(path, "type", "PathPrefix");
        default(path, "value", "/");
    } else if let Some(method) = fields.get_mut("method") {
        default(method, "type", "Exact");
    }
    for (list, is_header) in [("headers", true), ("queryParams", false)] {
        let Some(entries) = fields.get_mut(list).and_then(Json::as_array_mut) else { continue };
        for entry in entries.iter_mut() {
            default(entry, "type", "Exact");
            if is_header && let Some(Json::String(name)) = entry.get_mut("name") {
                name.make_ascii_lowercase();
            }
        }
        entries.sort_by_key(ToString::to_string);
        if entries.is_empty() {
            fields.remove(list);
        }
    }
    one.to_string()
}

fn default(value: &mut Json, field: &str, text: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.entry(field).or_insert_with(|| text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_match_are_one() {
        let http = |one: Json| canonical(RouteKind::HTTPRoute, &one);
        assert_eq!(http(json!({})), http(json!({"path": {"type": "PathPrefix", "value": "/"}})));
        assert_eq!(
            http(json!({"headers": [{"name": "A", "value": "1"}, {"name": "b", "value": "2"}]})),
            http(
                json!({"queryParams": [], "headers": [{"name": "B", "value": "2", "type": "Exact"},
                {"name": "a", "value": "1"}]})
            )
        );
        assert_ne!(http(json!({"method": "GET"})), http(json!({})));
        assert_eq!(
            canonical(RouteKind::GRPCRoute, &json!({"method": {"service": "a"}})),
            canonical(RouteKind::GRPCRoute, &json!({"method": {"service": "a", "type": "Exact"}}))
        );
    }

    #[test]
    fn what_cannot_be_read_is_only_equal_to_itself() {
        assert_eq!(canonical(RouteKind::HTTPRoute, &json!(3)), "3");
        let odd = json!({"path": 3, "headers": "x"});
        assert_eq!(canonical(RouteKind::HTTPRoute, &odd), odd.to_string());
    }
}
