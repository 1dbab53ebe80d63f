//! Why a route's decision changed, read off what was known before and after.
//!
//! Owns the comparison: what users edited comes first, then who is held for something else, then counts.
//! Several things may have changed at once; all that bear on the route are told, within a bound.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::health::MemberState;
use fairlead_model::history::{CAUSES_MAX, Cause};
use fairlead_model::plan::RouteDecision;
use fairlead_model::policy::{GlobalRoute, MemberSpec, Policy};
use fairlead_model::recipe::{Serve, Standing};
use fairlead_model::{MemberId, NsName, RouteKey};

/// What was known when a plan was made.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// What users declared.
    pub policy: &'a Policy,
    /// Generations of global routes.
    pub route_generations: BTreeMap<&'a RouteKey, i64>,
    /// Generations of TrafficPolicies.
    pub policy_generations: BTreeMap<&'a NsName, i64>,
    /// Routes that are pinned, and to which revision.
    pub pinned: BTreeMap<&'a RouteKey, u64>,
    /// How far changes of routes are that are not everywhere, in words.
    pub rollouts: BTreeMap<&'a RouteKey, &'a str>,
    /// What members are held for.
    pub states: BTreeMap<&'a MemberId, MemberState>,
}

/// A route before and after.
pub(crate) struct Pair<'a> {
    pub(crate) key: &'a RouteKey,
    pub(crate) route: (Option<&'a GlobalRoute>, Option<&'a GlobalRoute>),
    pub(crate) decision: (Option<&'a RouteDecision>, Option<&'a RouteDecision>),
    pub(crate) pinned: (Option<u64>, Option<u64>),
}

/// Why, as far as can be told; before is none at the start.
pub(crate) fn causes(pair: &Pair<'_>, before: Option<&Facts<'_>>, after: &Facts<'_>) -> Vec<Cause> {
    let mut found: Vec<Cause> = of_route(pair, before, after).into_iter().collect();
    found.extend(of_policies(pair, after));
    let then = pair.decision.0.map(Standings::of).unwrap_or_default();
    let now = pair.decision.1.map(Standings::of).unwrap_or_default();
    if let Some(before) = before {
        found.extend(of_members(before, after, &then, &now));
        found.extend(of_counts(pair, &then, &now));
        found.extend(of_entries(pair));
    }
    found.truncate(CAUSES_MAX);
    found
}

fn of_route(pair: &Pair<'_>, before: Option<&Facts<'_>>, after: &Facts<'_>) -> Option<Cause> {
    let generation = |facts: &Facts<'_>| facts.route_generations.get(pair.key).copied();
    let then = before.and_then(generation);
    let now = generation(after);
    let staged =
        |facts: Option<&Facts<'_>>| facts?.rollouts.get(pair.key).map(|text| (*text).to_owned());
    let what = match (pair.pinned, pair.route) {
        ((before, Some(to)), _) if before != Some(to) => format!("pinned to revision {to}"),
        ((Some(from), None), _) => format!("released from revision {from}"),
        (_, (None, Some(_))) => "attached".to_owned(),
        _ if staged(before) != staged(Some(after)) => match staged(Some(after)) {
            Some(text) => text,
            None => "edited; it is everywhere now".to_owned(),
        },
        (_, (Some(_), None)) => "deleted, or attached no more".to_owned(),
        (_, (Some(old), Some(new))) if is_edited(old, new) => match then == now {
            true => "what it refers to, or what may attach to its Gateways, changed".to_owned(),
            false => "edited".to_owned(),
        },
        _ => return None,
    };
    let (kind, name) = (pair.key.kind.to_string(), pair.key.name.to_string());
    Some(Cause::Object { kind, name, generation: now, what })
}

/// Differs in something other than its TrafficPolicies.
fn is_edited(old: &GlobalRoute, new: &GlobalRoute) -> bool {
    let own = |route: &GlobalRoute| {
        let mut route = route.clone();
        route.rules.iter_mut().for_each(|rule| rule.spread = Default::default());
        route
    };
    own(old) != own(new)
}

fn of_policies(pair: &Pair<'_>, after: &Facts<'_>) -> Vec<Cause> {
    let ((Some(old), Some(new)), true) = (pair.route, pair.pinned.0 == pair.pinned.1) else {
        return Vec::new();
    };
    let rules = old.rules.iter().zip(&new.rules).filter(|(old, new)| old.spread != new.spread);
    let named = rules.filter_map(|(old, new)| {
        let (then, now) = (old.spread.from.as_ref(), new.spread.from.as_ref());
        Some(match (then, now) {
            (_, Some(now)) if then == Some(now) => (now, "edited"),
            (_, Some(now)) => (now, "acts on it from now on"),
            (Some(then), None) => (then, "acts on it no more"),
            (None, None) => return None,
        })
    });
    let named: BTreeSet<(&NsName, &str)> = named.collect();
    let cause = |(name, what): (&NsName, &str)| Cause::Object {
        kind: "TrafficPolicy".to_owned(),
        name: name.to_string(),
        generation: after.policy_generations.get(name).copied(),
        what: what.to_owned(),
    };
    named.into_iter().map(cause).collect()
}

/// What a decision says of members, by member and service.
#[derive(Default)]
struct Standings<'a>(BTreeMap<(&'a MemberId, &'a NsName), Said>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    ready: u32,
    expected: u32,
    ramp_percent: u8,
    able: bool,
}

impl<'a> Standings<'a> {
    fn of(decision: &'a RouteDecision) -> Self {
        let mut said = BTreeMap::new();
        let rules = decision
            .entries
            .iter()
            .flat_map(|(id, entry)| entry.rules.iter().map(move |rule| (id, rule)));
        for (entry, rule) in rules {
            for backend in &rule.recipe.backends {
                let Serve::Members { service, tiers, .. } = &backend.serve else { continue };
                for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
                    let now = Said {
                        ready: candidate.ready,
                        expected: candidate.expected,
                        ramp_percent: candidate.ramp_percent,
                        able: candidate.standing == Standing::Able,
                    };
                    // What others hold it for says more than what it holds itself for.
                    let at = (&candidate.member, service);
                    if candidate.member == *entry {
                        said.entry(at).or_insert(now);
                    } else {
                        said.insert(at, now);
                    }
                }
            }
        }
        Self(said)
    }

    fn has(&self, member: &MemberId) -> bool {
        self.0.keys().any(|(of, _)| *of == member)
    }
}

fn of_members(
    before: &Facts<'_>,
    after: &Facts<'_>,
    then: &Standings<'_>,
    now: &Standings<'_>,
) -> Vec<Cause> {
    let (old, new) = (&before.policy.members, &after.policy.members);
    let members: BTreeSet<&MemberId> = old.keys().chain(new.keys()).collect();
    let mut found = Vec::new();
    for member in members.into_iter().filter(|member| then.has(member) || now.has(member)) {
        if let Some(what) = spec_change(old.get(member), new.get(member)) {
            let (kind, name) = ("MemberCluster".to_owned(), member.to_string());
            found.push(Cause::Object { kind, name, generation: None, what });
        }
        let state = |facts: &Facts<'_>| facts.states.get(member).copied();
        if let (Some(then), Some(now)) = (state(before), state(after))
            && then != now
        {
            let what = format!("{then:?} → {now:?}");
            found.push(Cause::Member { member: member.clone(), what });
        }
    }
    found
}

fn spec_change(old: Option<&MemberSpec>, new: Option<&MemberSpec>) -> Option<String> {
    match (old, new) {
        (Some(old), Some(new)) if old.traffic != new.traffic => {
            Some(format!("trafficState {:?} → {:?}", old.traffic, new.traffic))
        }
        (Some(old), Some(new)) if old != new => Some("edited".to_owned()),
        (None, Some(_)) => Some("joined".to_owned()),
        (Some(_), None) => Some("removed".to_owned()),
        _ => None,
    }
}

fn of_counts(pair: &Pair<'_>, then: &Standings<'_>, now: &Standings<'_>) -> Vec<Cause> {
    let is_edited = matches!(pair.route, (Some(old), Some(new)) if is_edited(old, new));
    let has = |standings: &Standings<'_>, service: &NsName| {
        standings.0.keys().any(|(_, of)| *of == service)
    };
    // Whoever leads a route to another service says nothing of those who serve either.
    let bears = |at: &&(&MemberId, &NsName)| !is_edited || (has(then, at.1) && has(now, at.1));
    let all: BTreeSet<_> = then.0.keys().chain(now.0.keys()).filter(bears).collect();
    let cause = |at: &(&MemberId, &NsName)| {
        let (member, service) = *at;
        let what = match (then.0.get(at), now.0.get(at)) {
            (None, Some(_)) => format!("may serve {service} from now on"),
            (Some(_), None) => format!("may not serve {service} any more"),
            (Some(then), Some(now)) if then.able != now.able => match now.able {
                true => format!("is back for {service}"),
                false => format!("is out for {service}"),
            },
            (Some(then), Some(now)) if then.ramp_percent != now.ramp_percent => {
                format!(
                    "is given {} % of its share, before {} %",
                    now.ramp_percent, then.ramp_percent
                )
            }
            (Some(then), Some(now)) if then != now => {
                let (ready, expected) = (now.ready, now.expected);
                format!("{service} {}/{} → {ready}/{expected} ready", then.ready, then.expected)
            }
            _ => return None,
        };
        Some(Cause::Member { member: member.clone(), what })
    };
    all.into_iter().filter_map(cause).collect()
}

fn of_entries(pair: &Pair<'_>) -> Vec<Cause> {
    let (Some(then), Some(now)) = pair.decision else { return Vec::new() };
    let cause = |member: &MemberId, what: &str| Cause::Member {
        member: member.clone(),
        what: what.to_owned(),
    };
    let joined = now.entries.keys().filter(|entry| !then.entries.contains_key(*entry));
    let left = then.entries.keys().filter(|entry| !now.entries.contains_key(*entry));
    let joined = joined.map(|member| cause(member, "is an entry from now on"));
    joined.chain(left.map(|member| cause(member, "is no entry any more"))).collect()
}
