//! Which names a DNSPolicy publishes: hostnames that routes and listeners have in common.
//!
//! A name without a route is not published: its gateways would answer 404. Of two policies for one name
//! the one whose zone is deeper wins, then the older, then the first name.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::dns::{DnsName, DnsPolicy, DnsTarget};
use fairlead_model::policy::{GlobalRoute, Listener, ParentRef, Policy};
use fairlead_model::{Json, Note, NsName, Reason, RouteKey};

/// Names that one policy publishes at most: each is part of every member's bundle.
const NAMES_MAX: usize = 10_000;

/// A name's routes, the global gateways that they are attached to, and the listeners there.
pub(crate) type Sources = BTreeSet<Source>;
type Source = (RouteKey, NsName, String);

/// Names by policy, and what was refused.
#[derive(Default)]
pub(crate) struct Names<'a> {
    pub(crate) of: BTreeMap<&'a NsName, BTreeMap<DnsName, Sources>>,
    pub(crate) refused: BTreeMap<NsName, Vec<Note>>,
}

/// Gathers the names of every policy.
pub(crate) fn gather(policy: &Policy) -> Names<'_> {
    let mut names = Names::default();
    for route in policy.routes.values() {
        for parent in &route.parents {
            let Some(gateway) = policy.gateways.get(&parent.gateway) else { continue };
            let listeners = gateway.listeners.iter().filter(|l| attaches(parent, l));
            for listener in listeners {
                let Some(dns) = policy_of(policy, &parent.gateway, listener) else { continue };
                for text in hostnames(route, listener) {
                    let gateway = parent.gateway.clone();
                    let source = (route.key.clone(), gateway, listener.name.clone());
                    names.add(policy, dns, &text, source);
                }
            }
        }
    }
    names
}

impl<'a> Names<'a> {
    fn add(&mut self, all: &Policy, policy: &'a DnsPolicy, text: &str, source: Source) {
        let name = match check(all, policy, text) {
            Ok(name) => name,
            Err((reason, message)) => return self.refuse(policy, text, reason, &message),
        };
        let held = self.of.entry(&policy.name).or_default();
        if held.len() >= NAMES_MAX && !held.contains_key(&name) {
            let message = format!("a policy publishes {NAMES_MAX} names at most");
            return self.refuse(policy, text, Reason::TooLarge, &message);
        }
        held.entry(name).or_default().insert(source);
    }

    fn refuse(&mut self, policy: &DnsPolicy, text: &str, reason: Reason, message: &str) {
        let note = Note::new(fairlead_model::id::printable(text), reason, message);
        let notes = self.refused.entry(policy.name.clone()).or_default();
        if notes.len() < NAMES_MAX && !notes.contains(&note) {
            notes.push(note);
        }
    }
}

fn attaches(parent: &ParentRef, listener: &Listener) -> bool {
    parent.section.as_ref().is_none_or(|section| *section == listener.name)
        && parent.port.is_none_or(|port| port == listener.port)
}

/// The listener's own policy, else that of its Gateway.
fn policy_of<'a>(all: &'a Policy, gateway: &NsName, listener: &Listener) -> Option<&'a DnsPolicy> {
    let of = |section: Option<&str>| {
        let target = DnsTarget { gateway: gateway.clone(), section: section.map(str::to_owned) };
        all.dns.values().find(|policy| policy.targets.contains(&target))
    };
    of(Some(&listener.name)).or_else(|| of(None)).map(AsRef::as_ref)
}

/// Names that a route and a listener have in common: of each pair the narrower.
fn hostnames(route: &GlobalRoute, listener: &Listener) -> BTreeSet<String> {
    let own = route.spec.get("hostnames").and_then(Json::as_array);
    let own: Vec<&str> = own.into_iter().flatten().filter_map(Json::as_str).collect();
    match (&listener.hostname, own.as_slice()) {
        (None, []) => BTreeSet::new(),
        (Some(listener), []) => [listener.to_ascii_lowercase()].into(),
        (None, own) => own.iter().map(|name| name.to_ascii_lowercase()).collect(),
        (Some(listener), own) => own.iter().filter_map(|name| narrower(listener, name)).collect(),
    }
}

fn narrower(one: &str, two: &str) -> Option<String> {
    let (one, two) = (one.to_ascii_lowercase(), two.to_ascii_lowercase());
    let covers = |wide: &str, name: &str| {
        wide.strip_prefix('*')
            .is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
    };
    if one == two || covers(&one, &two) {
        return Some(two);
    }
    covers(&two, &one).then_some(one)
}

fn check(all: &Policy, policy: &DnsPolicy, text: &str) -> Result<DnsName, (Reason, String)> {
    let name = DnsName::new(text).map_err(|error| (Reason::NameUnusable, error.to_string()))?;
    if !name.is_within(&policy.zone) {
        return Err((Reason::OutsideZone, format!("it is not in zone {}", policy.zone)));
    }
    let deeper = all
        .dns
        .values()
        .map(|other| &other.zone)
        .find(|zone| zone.as_str().len() > policy.zone.as_str().len() && name.is_within(zone));
    if let Some(zone) = deeper {
        return Err((Reason::OutsideZone, format!("it is in zone {zone} of another policy")));
    }
    let server = name.as_str().strip_suffix(policy.zone.as_str()).unwrap_or_default();
    if server.starts_with("ns-") && server.matches('.').count() == 1 {
        let text = "names that begin with ns- are those of the zone's servers";
        return Err((Reason::NameUnusable, text.to_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_hostnames_the_narrower_is_published() {
        for (listener, route, want) in [
            ("*.example.com", "shop.example.com", Some("shop.example.com")),
            ("shop.example.com", "*.example.com", Some("shop.example.com")),
            ("*.example.com", "*.eu.example.com", Some("*.eu.example.com")),
            ("*.example.com", "*.example.com", Some("*.example.com")),
            ("Shop.example.com", "shop.Example.com", Some("shop.example.com")),
            ("*.example.com", "example.com", None),
            ("a.example.com", "b.example.com", None),
        ] {
            assert_eq!(narrower(listener, route).as_deref(), want, "{listener} {route}");
        }
    }
}
