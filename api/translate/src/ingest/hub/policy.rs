//! TrafficPolicies: which one acts on which rule.
//!
//! The most specific wins, whole: a rule's own, then its route's, then that of the services it leads
//! to, then that of the listener that it is attached to, of the listener's ListenerSet, of a Gateway above.
//! Of two for one target the older wins, then the first name (GEP-713); the other is Conflicted.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::{TrafficPolicySpec, keys};
use fairlead_model::policy::{BackendTarget, GlobalRoute, Rule, Spread};
use fairlead_model::{Json, Millis, Note, NsName, Reason, RouteKey, RouteKind};
use serde::Deserialize as _;

use super::HubObjects;
use super::gateway::HubGateway;
use super::settle::Attached;
use super::verdict::{PolicyVerdict, TargetVerdict, Verdict};
use crate::raw;

/// What a policy can act on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Rule(RouteKey, String),
    Route(RouteKey),
    Import(NsName),
    /// A listener of a Gateway.
    Listener(NsName, String),
    /// A listener of a ListenerSet.
    SetListener(NsName, String),
    Set(NsName),
    Gateway(NsName),
}

/// A policy that was read.
struct Read {
    created_at: Millis,
    spread: Spread,
    targets: Vec<(Json, Result<Target, Verdict>)>,
}

/// Reads every policy, gives each rule its spread, and says what became of each policy's targets.
pub(super) fn apply_policies(
    objects: &HubObjects,
    gateways: &BTreeMap<NsName, HubGateway>,
    attached: &BTreeMap<RouteKey, Attached>,
    routes: &mut BTreeMap<RouteKey, GlobalRoute>,
    notes: &mut Vec<Note>,
) -> BTreeMap<NsName, PolicyVerdict> {
    let mut verdicts = BTreeMap::new();
    let mut policies = BTreeMap::new();
    for (name, object) in objects.traffic_policies.iter().filter(|(_, o)| !raw::is_deleting(o)) {
        let generation = raw::generation(object);
        match read(name, object) {
            Ok(policy) => drop(policies.insert(name, (generation, policy))),
            Err(message) => {
                notes.push(Note::new(
                    format!("TrafficPolicy {name}"),
                    Reason::Unreadable,
                    &*message,
                ));
                verdicts.insert(name.clone(), unreadable(object, generation, &message));
            }
        }
    }
    let named: BTreeSet<NsName> = routes
        .values()
        .flat_map(|route| &route.rules)
        .flat_map(services)
        .chain(objects.service_imports.keys())
        .cloned()
        .collect();
    let there = Existing { imports: &named, gateways, routes };
    let winners = winners(&policies, &there);
    for (name, (generation, policy)) in &policies {
        let judge = |(target_ref, target): &(Json, Result<Target, Verdict>)| TargetVerdict {
            target_ref: target_ref.clone(),
            accepted: judge(name, target, &there, &winners),
        };
        let targets = policy.targets.iter().map(judge).collect();
        verdicts.insert((*name).clone(), PolicyVerdict { generation: *generation, targets });
    }
    let spreads: BTreeMap<&Target, &Spread> =
        winners.iter().map(|(target, name)| (*target, &policies[*name].1.spread)).collect();
    let names: BTreeMap<RouteKey, Vec<Option<String>>> =
        routes.iter().map(|(key, route)| (key.clone(), rule_names(&route.spec))).collect();
    // A pinned route has the policies of then.
    let is_pinned = |key: &RouteKey| objects.pins.get(key).is_some_and(|pin| pin.at.is_some());
    let chosen: Vec<(RouteKey, usize, Spread)> = routes
        .iter()
        .filter(|(key, _)| !is_pinned(key))
        .flat_map(|(key, route)| {
            let names = &names[key];
            let spreads = &spreads;
            let listeners = Listeners { gateways, attached: attached.get(key) };
            let above = listeners.spread(spreads).or_else(|| of_gateway(route, spreads));
            route.rules.iter().enumerate().filter_map(move |(at, rule)| {
                let name = names.get(at).cloned().flatten();
                let own = choose(route, rule, name, spreads).or(above);
                Some((key.clone(), at, own?.clone()))
            })
        })
        .collect();
    for key in routes.keys() {
        let listeners = Listeners { gateways, attached: attached.get(key) };
        notes.extend(
            listeners
                .left_out(&spreads)
                .map(|message| Note::new(key.to_string(), Reason::Overridden, message)),
        );
    }
    for (key, at, spread) in chosen {
        if let Some(rule) = routes.get_mut(&key).and_then(|route| route.rules.get_mut(at)) {
            rule.spread = spread;
        }
    }
    verdicts
}

fn read(name: &NsName, object: &Json) -> Result<Read, String> {
    let spec = object.get("spec").ok_or("it has no spec")?;
    let spec =
        TrafficPolicySpec::deserialize(spec).map_err(|error| raw::bounded(&error.to_string()))?;
    let spread = super::spread::ingest_spread(name, &spec)?;
    let targets = raw::list(object, "/spec/targetRefs");
    let targets = targets.iter().map(|r| (r.clone(), target(&name.namespace, r))).collect();
    Ok(Read { created_at: raw::created_at(object), spread, targets })
}

/// Said of every target, so that somebody who looks at the policy sees it.
fn unreadable(object: &Json, generation: i64, message: &str) -> PolicyVerdict {
    let target = |target_ref: &Json| TargetVerdict {
        target_ref: target_ref.clone(),
        accepted: Verdict::no(Reason::Unreadable, message),
    };
    let targets = raw::list(object, "/spec/targetRefs").iter().filter(|r| r.is_object());
    PolicyVerdict { generation, targets: targets.map(target).collect() }
}

/// A policy acts in its own namespace only.
fn target(namespace: &str, written: &Json) -> Result<Target, Verdict> {
    let text = |name: &str| written.get(name).and_then(Json::as_str).unwrap_or_default();
    let name = NsName::new(namespace, text("name"));
    let route = RouteKind::ALL.into_iter().find(|kind| kind.as_str() == text("kind"));
    let section = raw::field(written, "sectionName").map(str::to_owned);
    match (text("group"), text("kind"), route) {
        (keys::GATEWAY_GROUP, "Gateway", _) => Ok(match section {
            Some(section) => Target::Listener(name, section),
            None => Target::Gateway(name),
        }),
        (keys::GATEWAY_GROUP, "ListenerSet", _) => Ok(match section {
            Some(section) => Target::SetListener(name, section),
            None => Target::Set(name),
        }),
        (keys::MCS_GROUP, "ServiceImport", _) if section.is_some() => {
            Err(Verdict::no(Reason::UnsupportedValue, "a ServiceImport has no sections"))
        }
        (keys::MCS_GROUP, "ServiceImport", _) => Ok(Target::Import(name)),
        (keys::GATEWAY_GROUP, _, Some(kind)) => {
            let key = RouteKey { kind, name };
            Ok(match section {
                Some(section) => Target::Rule(key, section),
                None => Target::Route(key),
            })
        }
        (_, kind, _) => {
            let kind = fairlead_model::id::printable(kind);
            Err(Verdict::no(Reason::InvalidKind, format!("a TrafficPolicy cannot act on a {kind}")))
        }
    }
}

/// What there is to act on.
struct Existing<'a> {
    /// The hub keeps ServiceImports of what members export; one that a route names counts too.
    imports: &'a BTreeSet<NsName>,
    gateways: &'a BTreeMap<NsName, HubGateway>,
    routes: &'a BTreeMap<RouteKey, GlobalRoute>,
}

impl Existing<'_> {
    fn has(&self, target: &Target) -> bool {
        match target {
            Target::Gateway(name) => self.gateways.contains_key(name),
            Target::Route(key) => self.routes.contains_key(key),
            Target::Rule(key, section) => self.routes.get(key).is_some_and(|route| {
                rule_names(&route.spec).iter().flatten().any(|name| name == section)
            }),
            Target::Import(name) => self.imports.contains(name),
            Target::Listener(name, section) => {
                self.gateways.get(name).is_some_and(|gateway| gateway.has_listener(section))
            }
            Target::Set(name) => self.has_set(name, None),
            Target::SetListener(name, section) => self.has_set(name, Some(section)),
        }
    }

    /// A ListenerSet that one of our Gateways takes, with a listener of that name.
    fn has_set(&self, set: &NsName, section: Option<&str>) -> bool {
        let mut listeners = self.gateways.values().flat_map(HubGateway::named);
        listeners.any(|(of, name)| of == Some(set) && section.is_none_or(|section| section == name))
    }
}

/// Services that a rule leads to.
fn services(rule: &Rule) -> impl Iterator<Item = &NsName> {
    rule.backends.iter().filter_map(|backend| match &backend.target {
        BackendTarget::Global { service, .. } => Some(service),
        BackendTarget::Own | BackendTarget::Invalid(_) => None,
    })
}

/// Names of the rules; a rule may have none.
fn rule_names(spec: &Json) -> Vec<Option<String>> {
    raw::list(spec, "/rules")
        .iter()
        .map(|rule| raw::field(rule, "name").map(str::to_owned))
        .collect()
}

/// The policy that acts on each target: the oldest, then the first name.
fn winners<'a>(
    policies: &'a BTreeMap<&'a NsName, (i64, Read)>,
    there: &Existing<'_>,
) -> BTreeMap<&'a Target, &'a NsName> {
    let mut winners: BTreeMap<&Target, (Millis, &NsName)> = BTreeMap::new();
    for (name, (_, policy)) in policies {
        for target in policy.targets.iter().filter_map(|(_, target)| target.as_ref().ok()) {
            if !there.has(target) {
                continue;
            }
            let claim = (policy.created_at, *name);
            let first = winners.entry(target).or_insert(claim);
            *first = claim.min(*first);
        }
    }
    winners.into_iter().map(|(target, (_, name))| (target, name)).collect()
}

fn judge(
    name: &NsName,
    target: &Result<Target, Verdict>,
    there: &Existing<'_>,
    winners: &BTreeMap<&Target, &NsName>,
) -> Verdict {
    let target = match target {
        Ok(target) => target,
        Err(verdict) => return verdict.clone(),
    };
    if !there.has(target) {
        let what = match target {
            Target::Rule(key, section) => {
                format!("{key} has no rule named {section}, or is no global route")
            }
            Target::Route(key) => format!("{key} does not exist, or is no global route"),
            Target::Import(import) => {
                format!("ServiceImport {import} does not exist and no route names it")
            }
            Target::Listener(gateway, section) => {
                format!("Gateway {gateway} has no listener named {section}, or is not of our class")
            }
            Target::SetListener(set, section) => {
                format!("ListenerSet {set} has no listener named {section}, or no Gateway takes it")
            }
            Target::Set(set) => {
                format!("ListenerSet {set} does not exist, or no Gateway of ours takes it")
            }
            Target::Gateway(gateway) => format!(
                "Gateway {gateway} does not exist, or is not of class {}",
                keys::GATEWAY_CLASS
            ),
        };
        return Verdict::no(Reason::TargetNotFound, what);
    }
    match winners.get(target) {
        Some(winner) if *winner != name => Verdict::no(
            Reason::Conflicted,
            format!("TrafficPolicy {winner} acts on this target already"),
        ),
        _ => Verdict::Yes,
    }
}

/// What acts on a rule by itself, its route or its services.
fn choose<'a>(
    route: &GlobalRoute,
    rule: &Rule,
    name: Option<String>,
    spreads: &BTreeMap<&Target, &'a Spread>,
) -> Option<&'a Spread> {
    let of = |target: Target| spreads.get(&target).copied();
    let own = name.and_then(|name| of(Target::Rule(route.key.clone(), name)));
    own.or_else(|| of(Target::Route(route.key.clone()))).or_else(|| of_services(rule, spreads))
}

/// What acts on the first Gateway of a route that has a policy.
fn of_gateway<'a>(
    route: &GlobalRoute,
    spreads: &BTreeMap<&Target, &'a Spread>,
) -> Option<&'a Spread> {
    let of = |gateway: &NsName| spreads.get(&Target::Gateway(gateway.clone())).copied();
    route.parents.iter().find_map(|parent| of(&parent.gateway))
}

/// The listeners that a route is attached to.
struct Listeners<'a> {
    gateways: &'a BTreeMap<NsName, HubGateway>,
    attached: Option<&'a Attached>,
}

impl Listeners<'_> {
    /// What acts on all of them: a rule has one spread, whichever listener a request came by.
    fn spread<'s>(&self, spreads: &BTreeMap<&Target, &'s Spread>) -> Option<&'s Spread> {
        let mut found = self.each(spreads);
        let first = found.next()??;
        found.all(|other| other.is_some_and(|other| other.from == first.from)).then_some(first)
    }

    /// Policies of some of them that do not act, in words.
    fn left_out(&self, spreads: &BTreeMap<&Target, &Spread>) -> impl Iterator<Item = String> {
        let some = match self.spread(spreads) {
            Some(_) => BTreeSet::new(),
            None => self.each(spreads).flatten().filter_map(|spread| spread.from.clone()).collect(),
        };
        some.into_iter().map(|policy: NsName| {
            format!("TrafficPolicy {policy} acts on some of its listeners only, and so not on it")
        })
    }

    /// The policy of each listener, else of its ListenerSet.
    fn each<'s>(
        &self,
        spreads: &BTreeMap<&Target, &'s Spread>,
    ) -> impl Iterator<Item = Option<&'s Spread>> {
        let listener = |(name, at): &(NsName, usize)| {
            let gateway = self.gateways.get(name)?;
            let (set, section) = gateway.named().nth(*at)?;
            let of = |target: Target| spreads.get(&target).copied();
            let section = section.to_owned();
            match set {
                Some(set) => of(Target::SetListener(set.clone(), section))
                    .or_else(|| of(Target::Set(set.clone()))),
                None => of(Target::Listener(name.clone(), section)),
            }
        };
        self.attached.into_iter().flatten().map(listener).collect::<Vec<_>>().into_iter()
    }
}

/// A rule has one spread, so the policy of a service counts only where all services of the rule have it.
fn of_services<'a>(rule: &Rule, spreads: &BTreeMap<&Target, &'a Spread>) -> Option<&'a Spread> {
    let mut found =
        services(rule).map(|service| spreads.get(&Target::Import(service.clone())).copied());
    let first = found.next()??;
    found.all(|other| other.is_some_and(|other| other.from == first.from)).then_some(first)
}
