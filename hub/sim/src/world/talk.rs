//! What hubs and agents want done, and when they want to be woken.

use fairlead_agent_core::session::{Input, Output};
use fairlead_model::Millis;
use fairlead_model::ledger::Ledger;
use fairlead_model::session::FromHub;

use super::{EPOCH_MS, Event, World};
use crate::bug::Bug;
use crate::fault::Node;
use crate::hub::{Act, Hub};
use crate::net::{Packet, Way};

impl World {
    pub(super) fn with_hub(&mut self, at: usize, act: impl FnOnce(&mut Hub, Millis) -> Vec<Act>) {
        let Some(hub) = &mut self.hubs[at] else { return };
        let now = Millis(EPOCH_MS + self.now + hub.skew);
        let acts = act(hub, now);
        for act in acts {
            self.act(act);
        }
        self.wake_hub(at);
    }

    pub(super) fn act(&mut self, act: Act) {
        match act {
            Act::Send(conn, message) => self.send(conn, Way::Down, Packet::Hub(message)),
            Act::Close(conn) => self.close(conn, Way::Down),
            Act::TakeEpoch(conn) => {
                let took = self.now + self.rng.range(1, 10);
                self.queue.push(took, Event::Epoch(conn));
            }
            Act::Wanted(digest, ledger) => drop(self.ledgers.insert(digest, ledger)),
            Act::Planned(planned) => self.check(|checker, view| checker.planned(&planned, view)),
            Act::Told(text) => self.tell(|| text),
        }
    }

    pub(super) fn wake_hub(&mut self, at: usize) {
        let Some(hub) = &self.hubs[at] else { return };
        let Some(due) = hub.next_deadline() else { return };
        let due = due.0.saturating_sub(EPOCH_MS + hub.skew).max(self.now + 1);
        if self.hub_wakes[at].is_none_or(|wake| due < wake || wake <= self.now) {
            self.hub_wakes[at] = Some(due);
            self.queue.push(due, Event::HubWake(at));
        }
    }

    pub(super) fn agent_tick(&mut self, member: usize) {
        let Some(agent) = &mut self.agents[member] else { return };
        let now = Millis(EPOCH_MS + self.now + agent.skew);
        let before = agent.readiness.gone();
        agent.readiness.tick(now);
        if agent.readiness.gone() != before {
            self.apply_soon(member);
        }
        self.tell_agent(member, Input::Tick);
    }

    pub(super) fn wake_agent(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        let deadlines = [agent.session.next_deadline(), agent.readiness.next_deadline()];
        let Some(due) = deadlines.into_iter().flatten().min() else { return };
        let due = due.0.saturating_sub(EPOCH_MS + agent.skew).max(self.now + 1);
        if self.agent_wakes[member].is_none_or(|wake| due < wake || wake <= self.now) {
            self.agent_wakes[member] = Some(due);
            self.queue.push(due, Event::AgentWake(member));
        }
    }

    pub(super) fn tell_agent(&mut self, member: usize, input: Input) {
        let jitter = self.rng.fraction();
        let Some(agent) = &mut self.agents[member] else { return };
        let now = Millis(EPOCH_MS + self.now + agent.skew);
        if input == Input::Disconnected {
            agent.conn = None;
        }
        for output in agent.tell(input, now, jitter) {
            self.agent_act(member, output);
        }
        self.wake_agent(member);
    }

    pub(super) fn agent_act(&mut self, member: usize, output: Output) {
        let Some(agent) = &mut self.agents[member] else { return };
        match output {
            Output::Dial => {
                let (generation, began) = (agent.generation, self.now);
                let at = self.now + 3 * self.latency(Node::Member(member), Node::Hub);
                self.queue.push(at, Event::Dialled { member, generation, began });
            }
            Output::Say(message) => {
                if let Some(conn) = agent.conn {
                    self.send(conn, Way::Up, Packet::Agent(Box::new(message)));
                }
            }
            Output::Hangup { .. } => {
                if let Some(conn) = agent.conn.take() {
                    self.close(conn, Way::Up);
                }
            }
            Output::Bundle(number, ledger) => self.take(member, number, ledger),
        }
    }

    pub(super) fn take(
        &mut self,
        member: usize,
        number: fairlead_model::PlanNumber,
        ledger: Ledger,
    ) {
        let digest = ledger.digest();
        self.check(|checker, view| checker.took(member, number, digest, view));
        let Some(agent) = &mut self.agents[member] else { return };
        agent.take(number, &ledger);
        self.disks[member].bundle = Some((number, ledger));
        self.start_probes(member);
        self.apply_soon(member);
    }

    /// The hub said something.
    pub(super) fn hear(&mut self, member: usize, message: FromHub) {
        if self.bug == Bug::AcceptOldNumbers
            && let FromHub::Bundle(update) = &message
            && self.disks[member].bundle.as_ref().is_some_and(|(held, _)| update.number < *held)
            && let Some(ledger) = self.ledgers.get(&update.delta.digest)
        {
            let ledger = ledger.as_ref().clone();
            return self.take(member, update.number, ledger);
        }
        self.tell_agent(member, Input::Heard(message));
    }
}
