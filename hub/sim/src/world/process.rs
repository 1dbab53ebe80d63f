//! Which processes run: hubs and agents start, stop, and learn what their clusters hold.

use std::sync::Arc;

use fairlead_agent_core::session::{Identity as AgentIdentity, Input};
use fairlead_proto::ledger::snapshot_to_ledger;

use super::World;
use super::prober::Truth;
use crate::agent::Agent;
use crate::hub::Hub;
use crate::net::Way;
use crate::setup::uid;

impl World {
    pub(super) fn refresh_hubs(&mut self) {
        let works = self.faults.store_works();
        let runs = [self.faults.hub_runs(), self.faults.has_second_hub()];
        for (at, runs) in runs.into_iter().enumerate() {
            match (&mut self.hubs[at], runs) {
                (Some(hub), true) => {
                    if hub.store_works != works {
                        hub.store_works = works;
                        let policy = Arc::clone(&self.policy);
                        self.with_hub(at, |hub, now| hub.set_policy(policy, now));
                    }
                }
                (Some(_), false) => self.stop_hub(at),
                (None, true) => self.start_hub(at, works),
                (None, false) => {}
            }
        }
    }

    pub(super) fn start_hub(&mut self, at: usize, store_works: bool) {
        let skew = self.rng.below(3_600_000);
        // The Lease of the hub's own cluster: it is not restored with the store. A second hub by
        // mistake lives in another cluster.
        let epoch = if at == 0 {
            self.lease += 1;
            self.lease
        } else {
            self.stores[1] = self.old_store.clone();
            1
        };
        let store = std::mem::take(&mut self.stores[at]);
        let start = (epoch, skew, self.setup.grace_ms);
        let now = self.clock(skew);
        let mut hub = Hub::start(store, Arc::clone(&self.policy), start, self.bug, now);
        hub.store_works = store_works;
        self.hubs[at] = Some(hub);
        self.tell(|| format!("hub {at} starts"));
        self.wake_hub(at);
    }

    pub(super) fn stop_hub(&mut self, at: usize) {
        let Some(hub) = self.hubs[at].take() else { return };
        let is_restored = self.faults.any_store_old();
        if !is_restored {
            self.stores[at] = hub.store;
        }
        self.tell(|| format!("hub {at} stops"));
        let conns = self.conns.iter().filter(|(_, conn)| conn.hub == at);
        let conns: Vec<u64> = conns.map(|(id, _)| *id).collect();
        for conn in conns {
            self.close(conn, Way::Down);
        }
    }

    pub(super) fn refresh_agent(&mut self, member: usize) {
        match (self.agents[member].is_some(), self.faults.agent_runs(member)) {
            (false, true) => self.start_agent(member),
            (true, false) => self.stop_agent(member),
            (true, true) | (false, false) => {}
        }
        if self.agents[member].is_some() && self.faults.api_answers(member) {
            self.observe(member);
            self.apply_soon(member);
        }
    }

    pub(super) fn start_agent(&mut self, member: usize) {
        let (id, disk) = (self.setup.members[member].id.clone(), &mut self.disks[member]);
        disk.incarnation += 1;
        let identity = AgentIdentity {
            uid: uid(&id),
            member: id,
            agent_version: "sim".to_owned(),
            incarnation: disk.incarnation,
        };
        let (skew, generation) = (self.rng.below(3_600_000), self.number());
        let now = self.clock(skew);
        let disk = &self.disks[member];
        self.agents[member] = Some(Agent::start(identity, disk, (generation, skew), self.bug, now));
        self.said[member] = None;
        self.apply_due[member] = false;
        self.start_probes(member);
        self.agent_tick(member);
    }

    pub(super) fn stop_agent(&mut self, member: usize) {
        let agent = self.agents[member].take();
        if let Some(conn) = agent.and_then(|agent| agent.conn) {
            self.close(conn, Way::Up);
        }
    }

    /// The agent looks at its cluster.
    pub(super) fn observe(&mut self, member: usize) {
        let snapshot = self.setup.snapshot(member, &self.faults);
        let lies = self.faults.lie(member).is_some();
        let lied = std::mem::replace(&mut self.lied[member], lies);
        if self.said[member].as_ref() != Some(&snapshot) {
            let ledger = snapshot_to_ledger(&snapshot);
            self.hear_counts(member, member);
            self.said[member] = Some(snapshot);
            self.tell_agent(member, Input::Snapshot(ledger));
        }
        if lies || lied {
            self.say_probes(member, if lies { Truth::AsBefore } else { Truth::Anew });
        }
    }
}
