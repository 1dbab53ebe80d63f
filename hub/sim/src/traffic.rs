//! Requests, as shares: which of those that enter at a member are answered.

use fairlead_model::NsName;
use fairlead_model::recipe::{Serve, Standing};

use crate::agent::{Agent, Cluster};
use crate::bundle::{LiveRule, Target, route_id};
use crate::fault::{Faults, Node, Power};
use crate::setup::Setup;

/// The world as a checker may see it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Time, in milliseconds since the start.
    pub now: u64,
    /// The fleet.
    pub setup: &'a Setup,
    /// What is in force.
    pub faults: &'a Faults,
    /// What members hold.
    pub clusters: &'a [Cluster],
    /// Their agents; none = it does not run.
    pub agents: &'a [Option<Agent>],
}

impl View<'_> {
    /// Ready endpoints of a service in a member.
    pub fn ready(&self, member: usize, service: &NsName) -> u32 {
        let base = self.setup.members[member].services.get(service);
        base.map_or(0, |base| self.faults.ready(member, service, *base))
    }

    /// Whether a member lets its service be called, and people let the member serve.
    pub fn may_serve(&self, member: usize, service: &NsName) -> bool {
        self.setup.members[member].services.contains_key(service)
            && !self.faults.is_refused(member, service)
            && !self.faults.is_unexported(member, service)
            && !self.faults.is_drained(member)
            && !self.faults.is_removed(member)
    }

    /// Whether a request that enters at `entry` is answered by that member.
    pub fn answers(&self, entry: usize, target: usize, service: &NsName) -> bool {
        if self.faults.power(target) != Power::On || self.ready(target, service) == 0 {
            return false;
        }
        if entry == target {
            return true;
        }
        let door = &self.clusters[target].door;
        !self.faults.is_apart(Node::Member(entry), Node::Member(target))
            && self.faults.gateway_runs(target)
            && door.services.contains(service)
            && door.callers.contains(&self.setup.members[entry].id)
    }

    /// Whether the way between two is as good as it can be: a prober would not be misled.
    pub fn is_clean(&self, entry: usize, target: usize) -> bool {
        let (a, b) = (Node::Member(entry), Node::Member(target));
        entry == target || (self.faults.loss_percent() == 0 && self.faults.delay_ms(a, b) == 0)
    }

    /// Whether clients reach a member's gateway, and its agent can act.
    pub fn is_entry(&self, member: usize) -> bool {
        self.faults.gateway_runs(member)
            && self.agents[member].is_some()
            && self.faults.api_answers(member)
            && !self.faults.is_agent_cut(member)
    }

    /// The sum of the weights that are answered.
    pub fn served(&self, entry: usize, rule: &LiveRule) -> u64 {
        let answered = |(target, weight): &&(Target, u32)| {
            *weight > 0
                && match target {
                    Target::Local(service) => self.answers(entry, entry, service),
                    Target::Remote(id, service) => {
                        self.setup.index(id).is_some_and(|to| self.answers(entry, to, service))
                    }
                    Target::Nowhere => false,
                }
        };
        rule.iter().filter(answered).map(|(_, weight)| u64::from(*weight)).sum()
    }

    /// Whether the plan that an entry holds keeps a member out of a rule on purpose.
    pub fn is_out(&self, entry: usize, (route, rule): (usize, usize), target: usize) -> bool {
        let Some(bundle) = self.agents[entry].as_ref().and_then(|agent| agent.bundle.as_ref())
        else {
            return false;
        };
        let (object, target) =
            (route_id(&self.setup.routes[route].key), &self.setup.members[target].id);
        let recipes = bundle
            .recipes
            .iter()
            .filter(|(id, _)| id.object == object && usize::from(id.rule) == rule);
        let tiers =
            recipes.flat_map(|(_, recipe)| &recipe.backends).filter_map(|b| match &b.serve {
                Serve::Members { tiers, .. } => Some(tiers),
                Serve::Fixed { .. } => None,
            });
        let mut candidates = tiers.flatten().flat_map(|tier| &tier.candidates);
        candidates.any(|c| c.member == *target && c.standing == Standing::Out)
    }
}
