//! What must never be, looked at from outside: the checkers share no state with what they check.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fairlead_model::ledger::Digest;
use fairlead_model::plan::SlotTarget;
use fairlead_model::policy::BackendTarget;
use fairlead_model::recipe::Serve;
use fairlead_model::{NsName, ObjectId, PlanNumber};
use fairlead_planner::Planned;

use crate::bundle::Target;
use crate::fault::Lie;
use crate::setup::address;
use crate::traffic::View;

/// Requests of an entry may all fail for so long while somebody could serve them: two probes without
/// an answer, a look at ourselves, a write, and a second of peace for one that comes back.
pub const ZERO_SERVED_MS_MAX: u64 = 4_000;
/// So much longer where the API server takes seconds.
const SLOW_MS: u64 = 6_000;
/// Traffic where consent is gone must have ended when nothing was amiss for so long: the longest
/// silence and the longest wait between two dials.
const CONSENT_MS_MAX: u64 = 40_000;
/// Changes of one route within ten seconds: so many in any case, …
const CHANGES_MAX: usize = 10;
/// … and so many for each peer: out and in again once a second.
const CHANGES_PER_PEER: usize = 14;
const CHANGES_WINDOW_MS: u64 = 10_000;

/// A rule at an entry: entry, route, rule.
type Place = (usize, usize, usize);

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When it was seen.
    pub at: u64,
    /// What.
    pub text: String,
}

/// All checkers.
#[derive(Debug, Default)]
pub struct Checker {
    /// The first thing that was wrong.
    pub violation: Option<Violation>,
    newest: BTreeMap<usize, (PlanNumber, Digest)>,
    zero_since: BTreeMap<Place, u64>,
    able_since: BTreeMap<(Place, usize), u64>,
    /// Members that an entry knew as able to serve, by service.
    known: BTreeSet<(usize, NsName, usize)>,
    unwanted_since: BTreeMap<(usize, NsName), u64>,
    /// Members that were removed once, or said that their door is elsewhere: what they had was free
    /// for anybody then.
    gave_up: BTreeSet<usize>,
    changes: BTreeMap<(usize, ObjectId), VecDeque<u64>>,
}

impl Checker {
    fn report(&mut self, at: u64, text: String) {
        self.violation.get_or_insert(Violation { at, text });
    }

    /// A member took a bundle: numbers never go back.
    pub fn took(&mut self, m: usize, number: PlanNumber, digest: Digest, view: View<'_>) {
        if let Some((newest, held)) = self.newest.get(&m)
            && (number < *newest || number == *newest && digest != *held)
        {
            let (name, newest) = (&view.setup.members[m].id, *newest);
            self.report(view.now, format!("{name} took plan {number} after {newest}"));
        }
        self.newest.insert(m, (number, digest));
    }

    /// A plan was made: it leads to registered members only, by addresses that are theirs.
    pub fn planned(&mut self, planned: &Planned, view: View<'_>) {
        for (entry, plan) in &planned.plans {
            let slots = plan.routes.values().flat_map(|route| &route.rules);
            for slot in slots.flat_map(|rule| &rule.slots) {
                let SlotTarget::Remote { member, .. } = &slot.target else { continue };
                let index = view.setup.index(member);
                if index.is_none_or(|m| view.faults.is_removed(m)) {
                    let text = format!("{entry} is to send to {member}, which is no member");
                    self.report(view.now, text);
                }
            }
            for (peer, facts) in &plan.peers {
                let owner = |a: &_| (0..view.setup.members.len()).find(|m| address(*m) == *a);
                let foreign = facts
                    .addresses
                    .iter()
                    .filter_map(owner)
                    .find(|m| view.setup.members[*m].id != *peer && !self.gave_up.contains(m));
                if let Some(owner) = foreign {
                    let owner = &view.setup.members[owner].id;
                    let text = format!("{entry} is to reach {peer} by the address of {owner}");
                    self.report(view.now, text);
                }
            }
        }
    }

    /// A route was written.
    pub fn wrote(&mut self, m: usize, object: &ObjectId, view: View<'_>) {
        let changes = self.changes.entry((m, object.clone())).or_default();
        changes.push_back(view.now);
        while changes.front().is_some_and(|at| view.now - at > CHANGES_WINDOW_MS) {
            changes.pop_front();
        }
        let (count, peers) = (changes.len(), view.setup.members.len() - 1);
        if count > CHANGES_MAX + CHANGES_PER_PEER * peers {
            let name = &view.setup.members[m].id;
            let text = format!("{name} changed {object} {count} times in ten seconds");
            self.report(view.now, text);
        }
    }

    /// A member's objects are what its plan says: whom it knows as able to serve.
    pub fn applied(&mut self, entry: usize, view: View<'_>) {
        let bundle = view.agents[entry].as_ref().and_then(|agent| agent.bundle.as_ref());
        for recipe in bundle.into_iter().flat_map(|bundle| bundle.recipes.values()) {
            for backend in &recipe.backends {
                let Serve::Members { service, tiers, .. } = &backend.serve else { continue };
                for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
                    let Some(target) = view.setup.index(&candidate.member) else { continue };
                    if candidate.ready > 0 && is_able(view, target, service) {
                        self.known.insert((entry, service.clone(), target));
                    }
                }
            }
        }
    }

    /// Something began or ended.
    pub fn changed(&mut self, view: View<'_>) {
        self.known.retain(|(_, service, target)| is_able(view, *target, service));
        for (m, member) in view.setup.members.iter().enumerate() {
            let moved = view.faults.lie(m) == Some(Lie::ForeignAddress);
            if moved || view.faults.is_removed(m) {
                self.gave_up.insert(m);
            }
            for service in member.services.keys() {
                let key = (m, service.clone());
                if view.may_serve(m, service) {
                    self.unwanted_since.remove(&key);
                } else {
                    self.unwanted_since.entry(key).or_insert(view.now);
                }
            }
        }
    }

    /// Looks at the traffic. `quiet_since` is when the last disturbance ended, if it did.
    pub fn look(&mut self, quiet_since: Option<u64>, view: View<'_>) {
        for entry in 0..view.setup.members.len() {
            for (r, route) in view.setup.routes.iter().enumerate() {
                let rules = view.clusters[entry].rules(&route.key);
                for (at, rule) in rules.iter().enumerate() {
                    self.look_for_zero((entry, r, at), view.served(entry, rule), view);
                    if let Some(since) = quiet_since {
                        self.look_for_consent(entry, rule, since, view);
                    }
                }
            }
        }
    }

    /// Requests never all fail for long while somebody whom the entry knew can serve them.
    fn look_for_zero(&mut self, place: Place, served: u64, view: View<'_>) {
        let (entry, route, rule) = place;
        if served > 0 || !view.is_entry(entry) {
            self.zero_since.remove(&place);
        } else {
            self.zero_since.entry(place).or_insert(view.now);
        }
        let Some(since) = self.zero_since.get(&place).copied() else { return };
        let backends = &view.setup.routes[route].rules[rule].backends;
        let services: Vec<&NsName> = backends
            .iter()
            .filter_map(|backend| match &backend.target {
                BackendTarget::Global { service, .. } if backend.weight > 0 => Some(service),
                _ => None,
            })
            .collect();
        let slow = if view.faults.is_slow(entry) { SLOW_MS } else { 0 };
        for target in 0..view.setup.members.len() {
            let can = services.iter().any(|service| {
                self.known.contains(&(entry, (*service).clone(), target))
                    && view.answers(entry, target, service)
            });
            let can =
                can && view.is_clean(entry, target) && !view.is_out(entry, (route, rule), target);
            if !can {
                self.able_since.remove(&(place, target));
                continue;
            }
            let able = *self.able_since.entry((place, target)).or_insert(view.now);
            let both = able.max(since);
            if view.now - both > ZERO_SERVED_MS_MAX + slow {
                let (entry, to) = (&view.setup.members[entry].id, &view.setup.members[target].id);
                let (name, ms) = (&view.setup.routes[route].key, view.now - both);
                let text = format!("{entry} fails all of {name} for {ms} ms while {to} can serve");
                self.report(view.now, text);
            }
        }
    }

    /// Nobody goes on sending where consent is gone.
    fn look_for_consent(
        &mut self,
        entry: usize,
        rule: &[(Target, u32)],
        quiet_since: u64,
        view: View<'_>,
    ) {
        if view.faults.is_removed(entry) {
            return;
        }
        for (target, weight) in rule {
            let (to, service) = match target {
                Target::Local(service) => (Some(entry), service),
                Target::Remote(id, service) => (view.setup.index(id), service),
                Target::Nowhere => continue,
            };
            let Some(to) = to.filter(|_| *weight > 0) else { continue };
            let Some(since) = self.unwanted_since.get(&(to, service.clone())) else { continue };
            if view.now - quiet_since.max(*since) > CONSENT_MS_MAX {
                let (entry, to) = (&view.setup.members[entry].id, &view.setup.members[to].id);
                let text = format!("{entry} sends {service} to {to}, which must not have it");
                self.report(view.now, text);
            }
        }
    }
}

/// Whether a member can serve as far as itself is concerned.
fn is_able(view: View<'_>, target: usize, service: &NsName) -> bool {
    view.may_serve(target, service) && view.ready(target, service) > 0
}
