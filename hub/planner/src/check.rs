//! A linter for plans, and the brake.
//!
//! A finding keeps the decision before *of that route* and raises an alarm. A plan that takes away too
//! much capacity at once, without a person having asked for it, keeps every route that nobody edited:
//! more likely the hub is wrong than half of the fleet gone, and agents take out by themselves what
//! they cannot reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::plan::{EntryDecision, RouteDecision, RulePlan, SlotTarget};
use fairlead_model::policy::TrafficState;
use fairlead_model::recipe::{Candidate, Faults, SLOTS_MAX, Serve, Standing, WEIGHT_SUM};
use fairlead_model::{MemberId, Note, NsName, Reason, RouteKey};

use crate::fleet::Fleet;
use crate::routes::Decided;
use crate::{Freeze, Memory, Report};

/// Decisions by route, checked.
pub(crate) type Decisions = BTreeMap<RouteKey, Arc<RouteDecision>>;

/// With fewer serving members than this, nobody can tell a dead fleet from a blind hub.
const MEMBERS_MIN: usize = 3;
/// Findings told of one route.
const FINDINGS_MAX: usize = 5;

/// What the check lets through.
pub(crate) struct Guarded {
    pub(crate) decisions: Decisions,
    pub(crate) brake: Brake,
}

/// Whether decisions of routes that nobody edited were kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brake {
    Off,
    On,
}

/// The decisions that may go out.
pub(crate) fn guard(
    fleet: &Fleet<'_>,
    decided: Decided,
    memory: &Memory,
    report: &mut Report,
) -> Guarded {
    let keepable = keepable(fleet, &decided, memory);
    let brake = brake(fleet, &decided, &keepable, report);
    let mut decisions = Decisions::new();
    for (key, new) in decided {
        let old = memory.decisions.get(&key);
        let braked = brake.zip(keepable.get(&key)).filter(|(_, kept)| ***kept != new);
        let (reason, kept) = match braked {
            Some((reason, kept)) => (reason, Some(kept)),
            None => {
                let findings = findings(fleet, &new);
                if findings.is_empty() {
                    let same = old.filter(|old| ***old == new).cloned();
                    decisions.insert(key, same.unwrap_or_else(|| Arc::new(new)));
                    continue;
                }
                let alarm = Note::new(key.to_string(), Reason::CheckFailed, findings.join("; "));
                report.alarms.push(alarm);
                let sound = old.filter(|old| self::findings(fleet, old).is_empty());
                (Reason::CheckFailed, sound)
            }
        };
        if let Some(route) = report.routes.get_mut(&key) {
            route.kept = Some(reason);
        }
        decisions.extend(kept.map(|kept| (key, Arc::clone(kept))));
    }
    Guarded { decisions, brake: if brake.is_some() { Brake::On } else { Brake::Off } }
}

/// Why routes that nobody edited keep their decisions, if they do.
fn brake(
    fleet: &Fleet<'_>,
    decided: &Decided,
    keepable: &Decisions,
    report: &mut Report,
) -> Option<Reason> {
    // The hub tells of its doubts itself.
    if fleet.settings.freeze == Freeze::Unedited {
        return Some(Reason::FleetVanished);
    }
    let loss = capacity_loss(fleet, decided, keepable)?;
    report.alarms.push(loss);
    Some(Reason::CapacityLoss)
}

/// What the brake would keep: sound decisions of routes that nobody edited.
fn keepable(fleet: &Fleet<'_>, decided: &Decided, memory: &Memory) -> Decisions {
    let unedited = memory
        .decisions
        .iter()
        .filter(|(key, old)| decided.get(*key).is_some_and(|new| same(&new.route, &old.route)));
    unedited
        .map(|(key, old)| (key.clone(), without_drained(fleet, old)))
        .filter(|(_, kept)| findings(fleet, kept).is_empty())
        .collect()
}

/// A decision that the brake keeps, but for what a person asked: drains act all the same.
fn without_drained(fleet: &Fleet<'_>, old: &Arc<RouteDecision>) -> Arc<RouteDecision> {
    let is_drained = |candidate: &Candidate| {
        let member = fleet.members.get(&candidate.member);
        member.is_some_and(|m| m.spec.traffic == TrafficState::Draining)
            && (candidate.standing == Standing::Able || candidate.expected > 0)
    };
    let mut kept = Arc::clone(old);
    for (entry, of_entry) in &old.entries {
        for (at, rule) in of_entry.rules.iter().enumerate() {
            if !candidates(rule).any(is_drained) {
                continue;
            }
            let entries = &mut Arc::make_mut(&mut kept).entries;
            let of_entry = entries.get_mut(entry).expect("the copy has the same entries");
            let recipe = &mut of_entry.rules[at].recipe;
            for backend in &mut recipe.backends {
                let Serve::Members { tiers, .. } = &mut backend.serve else { continue };
                let candidates = tiers.iter_mut().flat_map(|tier| &mut tier.candidates);
                candidates.filter(|c| is_drained(c)).for_each(drain);
            }
            recipe.weights = fairlead_weights::divide(recipe, &Faults::default());
        }
    }
    kept
}

/// As the weights step writes a drained candidate.
fn drain(candidate: &mut Candidate) {
    (candidate.ready, candidate.expected, candidate.weight) = (0, 0, 0);
    candidate.standing = Standing::Out;
}

/// What is wrong with a decision, in words.
fn findings(fleet: &Fleet<'_>, decision: &RouteDecision) -> Vec<String> {
    let mut found = Vec::new();
    for (entry, of_entry) in &decision.entries {
        if !fleet.members.contains_key(entry) {
            found.push(format!("entry {entry} is no member"));
        }
        if of_entry.rules.len() != decision.route.rules.len() {
            found.push(format!("entry {entry} does not have the rules of its route"));
        }
        for (at, rule) in of_entry.rules.iter().enumerate() {
            let wrong = rule_findings(fleet, entry, rule);
            found
                .extend(wrong.into_iter().map(|text| format!("entry {entry} rules[{at}]: {text}")));
            if found.len() >= FINDINGS_MAX {
                return found;
            }
        }
    }
    found
}

fn rule_findings(fleet: &Fleet<'_>, entry: &MemberId, rule: &RulePlan) -> Vec<String> {
    let mut found = Vec::new();
    let weights = &rule.recipe.weights;
    if rule.slots.len() > SLOTS_MAX {
        found.push(format!("{} backendRefs", rule.slots.len()));
    }
    if weights.len() != rule.slots.len() {
        found.push(format!("{} weights for {} backendRefs", weights.len(), rule.slots.len()));
    }
    let sum: u64 = weights.iter().copied().map(u64::from).sum();
    let asked = rule.recipe.backends.iter().any(|b| b.weight > 0);
    if sum != if asked { u64::from(WEIGHT_SUM) } else { 0 } {
        found.push(format!("shares add up to {sum}"));
    }
    for slot in &rule.slots {
        let SlotTarget::Remote { member, .. } = &slot.target else { continue };
        if member == entry {
            found.push("leads out of the entry and back".to_owned());
        }
        match fleet.members.get(member).map(|m| m.door.facts.is_some()) {
            Some(true) => {}
            Some(false) => found.push(format!("leads to member {member}, which has no door")),
            None => found.push(format!("leads to {member}, which is no member")),
        }
    }
    for Candidate { member, slot, .. } in candidates(rule) {
        let target = rule.slots.get(usize::from(*slot)).map(|slot| &slot.target);
        let fits = match target {
            Some(SlotTarget::Remote { member: to, .. }) => to == member,
            Some(SlotTarget::Local { .. }) => member == entry,
            Some(SlotTarget::AsWritten) | None => false,
        };
        if !fits {
            found.push(format!("backendRef {slot} is not that of member {member}"));
        }
    }
    found
}

fn candidates(rule: &RulePlan) -> impl Iterator<Item = &Candidate> {
    let members = rule.recipe.backends.iter().filter_map(|backend| match &backend.serve {
        Serve::Members { tiers, .. } => Some(tiers),
        Serve::Fixed { .. } => None,
    });
    members.flatten().flat_map(|tier| &tier.candidates)
}

/// Which services a member serves somewhere, with the endpoints that are expected of it.
type Serving = BTreeMap<MemberId, BTreeMap<NsName, u32>>;

/// A note when too much would be taken away.
///
/// Every member that serves counts the same, however large: one big cluster that dies is one member,
/// and its traffic must move. Within a member, services count by expected endpoints. Routes that
/// are new, edited or deleted were asked for; so were drains, removals and members without a class.
fn capacity_loss(fleet: &Fleet<'_>, decided: &Decided, keepable: &Decisions) -> Option<Note> {
    let now = serving(decided.values());
    let then = serving(keepable.values().map(|old| &**old));
    let members = then.keys().chain(now.keys()).filter(|member| !was_asked(fleet, member));
    let members: BTreeSet<&MemberId> = members.collect();
    if members.len() < MEMBERS_MIN {
        return None;
    }
    const WHOLE: u64 = 10_000;
    let lost: BTreeMap<&MemberId, u64> = then
        .iter()
        .filter(|(member, _)| !was_asked(fleet, member))
        .map(|(member, services)| (member, lost_part(services, now.get(member), WHOLE)))
        .filter(|(_, part)| *part > 0)
        .collect();
    let whole = u64::try_from(members.len()).unwrap_or(u64::MAX).saturating_mul(WHOLE);
    let percent = lost.values().sum::<u64>().saturating_mul(100) / whole;
    if percent <= u64::from(fleet.settings.capacity_loss_percent_max) {
        return None;
    }
    let names: Vec<&str> = lost.keys().take(10).map(|m| m.as_str()).collect();
    let text = format!(
        "{percent} % of the serving capacity would go at once (limit {} %): {}; routes stay as they \
         were until these members are back, or drained on purpose",
        fleet.settings.capacity_loss_percent_max,
        names.join(", "),
    );
    Some(Note::new("fleet", Reason::CapacityLoss, text))
}

fn same<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

fn was_asked(fleet: &Fleet<'_>, member: &MemberId) -> bool {
    fleet.members.get(member).is_none_or(|member| {
        member.spec.traffic == TrafficState::Draining || member.spec.gateway_class.is_none()
    })
}

fn serving<'a>(decisions: impl Iterator<Item = &'a RouteDecision>) -> Serving {
    let mut serving = Serving::new();
    let entries = |d: &'a RouteDecision| d.entries.iter();
    for (entry, of_entry) in decisions.flat_map(entries) {
        add_serving(entry, of_entry, &mut serving);
    }
    serving
}

fn add_serving(entry: &MemberId, of_entry: &EntryDecision, serving: &mut Serving) {
    for backend in of_entry.rules.iter().flat_map(|rule| &rule.recipe.backends) {
        let Serve::Members { service, tiers, .. } = &backend.serve else { continue };
        let candidates = tiers.iter().flat_map(|tier| &tier.candidates);
        // What a member serves for itself says nothing about whether others still have it.
        let serves = |c: &&Candidate| c.standing == Standing::Able && c.ramp_percent > 0;
        for c in candidates.filter(serves).filter(|c| c.member != *entry) {
            let services = match serving.get_mut(&c.member) {
                Some(services) => services,
                None => serving.entry(c.member.clone()).or_default(),
            };
            match services.get_mut(service) {
                Some(expected) => *expected = (*expected).max(c.expected),
                None => {
                    services.insert(service.clone(), c.expected);
                }
            }
        }
    }
}

/// How much of what a member served is gone, in parts of `whole`.
fn lost_part(then: &BTreeMap<NsName, u32>, now: Option<&BTreeMap<NsName, u32>>, whole: u64) -> u64 {
    // At least 1 each, so that a service without endpoints is something too.
    let size = |expected: &u32| u64::from(*expected).max(1);
    let is_lost = |service: &NsName| now.is_none_or(|now| !now.contains_key(service));
    let lost: u64 = then.iter().filter(|(s, _)| is_lost(s)).map(|(_, e)| size(e)).sum();
    let kept: u64 = now.into_iter().flatten().map(|(_, e)| size(e)).sum();
    match lost + kept {
        0 => 0,
        all => (u128::from(lost) * u128::from(whole) / u128::from(all)).try_into().unwrap_or(whole),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fixture::{id, mk_backend, mk_fleet, mk_member, mk_route, mk_rule, mk_service};
    use crate::fixture::{ns_name, route_key, snapshot_of};
    use crate::{FleetInput, doors, plan, stability};

    fn mk_input() -> FleetInput {
        let member = |(number, name)| {
            let (spec, mut input) = mk_member(name, number);
            snapshot_of(&mut input).services.insert(ns_name("shop/cart"), mk_service(1, 1));
            (id(name), (spec, input))
        };
        let members = (1..).zip(["east", "west"]).map(member).collect();
        let rule = mk_rule([mk_backend("shop/cart", 1)]);
        mk_fleet(members, vec![mk_route("HTTPRoute/shop/cart", vec![rule])])
    }

    fn with_fleet<T>(input: &FleetInput, test: impl FnOnce(&Fleet<'_>) -> T) -> T {
        let counts = stability::settle(input);
        let doors = doors::examine(input, &mut Report::default());
        test(&Fleet::gather(input, &counts.in_use, &doors.doors))
    }

    fn east_rule(decision: &mut RouteDecision) -> &mut RulePlan {
        &mut decision.entries.get_mut(&id("east")).unwrap().rules[0]
    }

    fn lead_to(rule: &mut RulePlan, to: &str) {
        let remote =
            rule.slots.iter_mut().find(|s| matches!(s.target, SlotTarget::Remote { .. })).unwrap();
        if let SlotTarget::Remote { member, .. } = &mut remote.target {
            *member = id(to);
        }
    }

    #[test]
    fn every_rule_of_a_plan_is_checked() {
        let input = mk_input();
        let good = (*plan(&input).decisions[&route_key("HTTPRoute/shop/cart")]).clone();
        type Break = fn(&mut RulePlan);
        let table: [(Break, &str); 7] = [
            (|r| r.recipe.weights[0] += 1, "shares add up to 10001"),
            (|r| r.recipe.weights.push(0), "3 weights for 2 backendRefs"),
            (|r| r.slots = vec![r.slots[0].clone(); 17], "17 backendRefs"),
            (|r| lead_to(r, "south"), "leads to south, which is no member"),
            (|r| lead_to(r, "east"), "leads out of the entry and back"),
            (|r| r.slots.swap(0, 1), "backendRef 0 is not that of member east"),
            (
                |r| r.slots[1].target = SlotTarget::AsWritten,
                "backendRef 1 is not that of member west",
            ),
        ];
        with_fleet(&input, |fleet| {
            assert_eq!(findings(fleet, &good), [""; 0]);
            for (break_it, text) in table {
                let mut bad = good.clone();
                break_it(east_rule(&mut bad));
                let found = findings(fleet, &bad).join("; ");
                assert!(found.contains(&format!("entry east rules[0]: {text}")), "{text}: {found}");
            }
        });
    }

    #[test]
    fn a_finding_keeps_the_decision_before_of_that_route_only() {
        let input = mk_input();
        let before = plan(&input).memory;
        let key = route_key("HTTPRoute/shop/cart");
        let mut bad = (*before.decisions[&key]).clone();
        east_rule(&mut bad).recipe.weights[0] = 1;
        let other = RouteDecision { entries: BTreeMap::new(), ..bad.clone() };
        let other_key = route_key("HTTPRoute/shop/other");
        let decided = Decided::from([(key.clone(), bad), (other_key.clone(), other.clone())]);
        let mut report = Report::default();
        let kept = with_fleet(&input, |fleet| guard(fleet, decided.clone(), &before, &mut report))
            .decisions;
        assert!(Arc::ptr_eq(&kept[&key], &before.decisions[&key]));
        assert_eq!(*kept[&other_key], other);
        let reasons: Vec<Reason> = report.alarms.iter().map(|alarm| alarm.reason).collect();
        assert_eq!(reasons, [Reason::CheckFailed]);
        // Without one before, the route is left out: nothing is better than something wrong.
        let none = Memory::default();
        let kept = with_fleet(&input, |fleet| guard(fleet, decided, &none, &mut report)).decisions;
        assert!(!kept.contains_key(&key));
    }
}
