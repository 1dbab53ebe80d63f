//! What agents write into their clusters, when the API server lets them.

use super::{Event, World};
use crate::bundle::{LiveRule, Target};

impl World {
    pub(super) fn apply_soon(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        if self.apply_due[member] {
            return;
        }
        self.apply_due[member] = true;
        let generation = agent.generation;
        let slow = self.faults.is_slow(member);
        let wait = if slow { self.rng.range(1_000, 3_000) } else { self.rng.range(10, 40) };
        self.queue.push(self.now + wait, Event::Apply(member, generation));
    }

    pub(super) fn apply(&mut self, member: usize, generation: u64) {
        let Some(agent) = &mut self.agents[member] else { return };
        if agent.generation != generation {
            return;
        }
        self.apply_due[member] = false;
        // It is tried again when the API server answers.
        if !self.faults.api_answers(member) {
            return;
        }
        let (written, inputs) = agent.apply(&mut self.clusters[member]);
        for (object, rules) in written {
            let Some(rules) = rules else { continue };
            self.written_at = self.now;
            let name = &self.setup.members[member].id;
            let text = format!("{name} {} {}", object.name, show(&rules));
            self.tell(|| text);
            self.check(|checker, view| checker.wrote(member, &object, view));
        }
        self.check(|checker, view| checker.applied(member, view));
        for input in inputs {
            self.tell_agent(member, input);
        }
    }
}

/// Live rules for people.
pub fn show(rules: &[LiveRule]) -> String {
    let target = |(target, weight): &(Target, u32)| match target {
        Target::Local(service) => format!("here/{}:{weight}", service.name),
        Target::Remote(member, service) => format!("{member}/{}:{weight}", service.name),
        Target::Nowhere => format!("nowhere:{weight}"),
    };
    let rule = |rule: &LiveRule| rule.iter().map(target).collect::<Vec<_>>().join(" ");
    rules.iter().map(rule).collect::<Vec<_>>().join(" | ")
}
