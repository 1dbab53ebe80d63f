//! What agents find out by themselves: peers' doors, what is ready behind them, their own door.

use fairlead_agent_core::probe::{PeerProbe, Suspicion, TIMEOUT_MS};
use fairlead_agent_core::session::Input;
use fairlead_model::health::{PeerReach, ProbeOutcome, Reach};
use fairlead_model::{MemberId, Millis};

use super::{
    EPOCH_MS, Event, FIRST_PROBE_MS, OWN_DOOR_AGAIN_MS, OWN_DOOR_MS, READINESS_EVERY, World,
};
use crate::fault::{Lie, Node, Power};
use crate::setup::{address, ca};

/// How an agent that does not lie tells what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    AsBefore,
    /// It lied before: what is true is news again.
    Anew,
}

impl World {
    pub(super) fn start_probes(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        for (id, peer) in agent.unprobed() {
            let (token, seed) = (self.number(), self.rng.any());
            let Some(agent) = &mut self.agents[member] else { return };
            let now = Millis(EPOCH_MS + self.now + agent.skew);
            let probe = PeerProbe::new(seed, now);
            agent.probes.insert(id.clone(), (token, peer, probe));
            self.queue.push(self.now, Event::Probe { member, peer: id, token });
        }
    }

    /// A probe starts.
    pub(super) fn probe(&mut self, member: usize, peer: MemberId, token: u64) {
        let Some(agent) = &self.agents[member] else { return };
        let Some((_, facts, probe)) = agent.probes.get(&peer).filter(|(t, ..)| *t == token) else {
            return;
        };
        let is_first = probe.verdict().reach == Reach::Unknown;
        let timeout = if is_first { FIRST_PROBE_MS } else { TIMEOUT_MS };
        let Some(target) = self.setup.index(&peer) else { return };
        let found = facts.addresses.contains(&address(target)) && facts.ca_pem == ca(&peer);
        let (a, b) = (Node::Member(member), Node::Member(target));
        let started = self.now;
        let took = 2 * self.latency(a, b);
        let door = &self.clusters[target].door;
        let lost = self.faults.loss_percent();
        let silent = self.faults.is_agent_cut(member)
            || self.faults.is_apart(a, b)
            || self.faults.power(target) == Power::Gone
            || took > timeout;
        let refused = !found
            || !self.faults.gateway_runs(target)
            || !door.callers.contains(&self.setup.members[member].id);
        let (outcome, at) = if silent || self.rng.percent(lost) || self.rng.percent(lost) {
            (ProbeOutcome::TimedOut, self.now + timeout)
        } else if refused {
            (ProbeOutcome::Refused, self.now + took)
        } else {
            (ProbeOutcome::Answered, self.now + took)
        };
        self.probes += 1;
        if outcome == ProbeOutcome::Answered && self.probes.is_multiple_of(READINESS_EVERY) {
            self.hear_counts(member, target);
        }
        self.queue.push(at, Event::Probed { member, peer, token, outcome, started });
    }

    pub(super) fn probed(
        &mut self,
        member: usize,
        peer: &MemberId,
        token: u64,
        outcome: ProbeOutcome,
        started: u64,
    ) {
        let Some(agent) = &mut self.agents[member] else { return };
        if agent.probes.get(peer).is_none_or(|(t, ..)| *t != token) {
            return;
        }
        let (skew, now) = (agent.skew, Millis(EPOCH_MS + self.now + agent.skew));
        let changed = agent.probed(peer, outcome, Millis(EPOCH_MS + started + skew), now);
        let due = agent.probes.get(peer).map_or(now, |(_, _, probe)| probe.next_deadline());
        let due = due.0.saturating_sub(EPOCH_MS + skew).max(self.now);
        self.queue.push(due, Event::Probe { member, peer: peer.clone(), token });
        if changed {
            let reach = agent.report.get(peer).map(|said| said.reach).unwrap_or_default();
            let generation = agent.generation;
            if agent.suspicion() == Suspicion::Alone {
                self.queue.push(self.now + OWN_DOOR_MS, Event::OwnDoor(member, generation));
            }
            let name = &self.setup.members[member].id;
            let text = format!("{name} finds {peer} {reach:?}");
            self.tell(|| text);
            self.say_probes(member, Truth::AsBefore);
            self.apply_soon(member);
        }
    }

    pub(super) fn say_probes(&mut self, member: usize, truth: Truth) {
        let Some(agent) = &self.agents[member] else { return };
        let mut report = agent.report.clone();
        let since = self.clock(agent.skew);
        let said = match self.faults.lie(member) {
            Some(Lie::NobodyAnswers) => Some(Reach::TimedOut),
            Some(Lie::EverybodyAnswers) => Some(Reach::Reachable),
            Some(Lie::ForeignAddress) | None => None,
        };
        for told in report.values_mut().filter(|_| said.is_some() || truth == Truth::Anew) {
            *told = PeerReach { reach: said.unwrap_or(told.reach), since };
        }
        self.tell_agent(member, Input::Probes(report));
    }

    /// An agent hears what a member's services have: of its own from its API server, of others by
    /// their doors, where their agents answer.
    pub(super) fn hear_counts(&mut self, member: usize, of: usize) {
        let answers = member == of || self.agents[of].is_some() && self.faults.api_answers(of);
        if !answers {
            return;
        }
        let snapshot = self.setup.snapshot(of, &self.faults);
        let counts = snapshot.services.iter().map(|(name, s)| (name.clone(), s.counts())).collect();
        let id = self.setup.members[of].id.clone();
        let Some(agent) = &mut self.agents[member] else { return };
        let before = agent.readiness.gone();
        let now = Millis(EPOCH_MS + self.now + agent.skew);
        agent.readiness.on_counts(&id, &counts, now);
        if agent.readiness.gone() != before {
            self.apply_soon(member);
        }
        self.wake_agent(member);
    }

    /// An agent that seems to be alone asks its own door.
    pub(super) fn own_door(&mut self, member: usize, generation: u64) {
        let answers = self.faults.gateway_runs(member) && !self.faults.is_agent_cut(member);
        let Some(agent) = &mut self.agents[member] else { return };
        if agent.generation != generation || agent.suspicion() != Suspicion::Alone {
            return;
        }
        if answers {
            agent.believed = Some(agent.report.clone());
            self.apply_soon(member);
        } else {
            let again = self.now + OWN_DOOR_AGAIN_MS;
            self.queue.push(again, Event::OwnDoor(member, generation));
        }
    }
}
