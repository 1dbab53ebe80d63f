//! TrafficPolicies: which one acts on which rule.
//!
//! The most specific wins, whole: a rule's own, then its route's, then that of the services it leads
//! to, then that of a Gateway above. Of two for one target the older wins, then the first name
//! (GEP-713); the other is Conflicted.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::{TrafficPolicySpec, keys};
use fairlead_model::policy::{BackendTarget, GlobalRoute, Rule, Spread};
use fairlead_model::{Json, Millis, Note, NsName, Reason, RouteKey, RouteKind};
use serde::Deserialize as _;

use super::HubObjects;
use super::gateway::HubGateway;
use super::verdict::{PolicyVerdict, TargetVerdict, Verdict};
use crate::raw;

/// What a policy can act on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Rule(RouteKey, String),
    Route(RouteKey),
    Import(NsName),
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
            route.rules.iter().enumerate().filter_map(move |(at, rule)| {
                let name = names.get(at).cloned().flatten();
                Some((key.clone(), at, choose(route, rule, name, spreads)?.clone()))
            })
        })
        .collect();
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
    match (text("group"), text("kind"), route) {
        (keys::GATEWAY_GROUP, "Gateway", _) => Ok(Target::Gateway(name)),
        (keys::MCS_GROUP, "ServiceImport", _) => Ok(Target::Import(name)),
        (keys::GATEWAY_GROUP, _, Some(kind)) => {
            let key = RouteKey { kind, name };
            Ok(match raw::field(written, "sectionName") {
                Some(section) => Target::Rule(key, section.to_owned()),
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
        }
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

/// The spread of a rule; none = the defaults.
fn choose<'a>(
    route: &GlobalRoute,
    rule: &Rule,
    name: Option<String>,
    spreads: &BTreeMap<&Target, &'a Spread>,
) -> Option<&'a Spread> {
    let of = |target: Target| spreads.get(&target).copied();
    let own = name.and_then(|name| of(Target::Rule(route.key.clone(), name)));
    own.or_else(|| of(Target::Route(route.key.clone())))
        .or_else(|| of_services(rule, spreads))
        .or_else(|| {
            route.parents.iter().find_map(|parent| of(Target::Gateway(parent.gateway.clone())))
        })
}

/// A rule has one spread, so the policy of a service counts only where all services of the rule have it.
fn of_services<'a>(rule: &Rule, spreads: &BTreeMap<&Target, &'a Spread>) -> Option<&'a Spread> {
    let mut found =
        services(rule).map(|service| spreads.get(&Target::Import(service.clone())).copied());
    let first = found.next()??;
    found.all(|other| other.is_some_and(|other| other.from == first.from)).then_some(first)
}
