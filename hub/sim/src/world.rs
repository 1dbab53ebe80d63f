//! The world: processes, clusters and the network between them, on one virtual clock.
//!
//! Owns what happens when. Decides nothing that hub or agent decide; lets the checkers look.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_agent_core::probe::{Suspicion, TIMEOUT_MS};
use fairlead_agent_core::session::{Identity as AgentIdentity, Input, Output};
use fairlead_hub_core::session::Identity;
use fairlead_model::health::{PeerReach, ProbeOutcome, Reach};
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::policy::Policy;
use fairlead_model::session::FromHub;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{MemberId, Millis};
use fairlead_proto::ledger::snapshot_to_ledger;

use crate::agent::{Agent, Cluster, Disk};
use crate::bug::Bug;
use crate::bundle::{LiveRule, Target};
use crate::check::Checker;
use crate::fault::{Fault, Faults, Lie, Named, Node, Power};
use crate::hub::{Act, Hub, Store};
use crate::net::{Conn, Packet, Way};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::setup::{Setup, address, ca, uid};
use crate::traffic::View;

/// The start of virtual time, as processes without skew see it.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How often the traffic is looked at.
const LOOK_MS: u64 = 100;
/// A probe without a verdict before it waits as long as a connection takes over any distance.
const FIRST_PROBE_MS: u64 = 1_000;
/// A dial that nobody answers is given up.
const DIAL_MS: u64 = 20_000;
/// How long an agent takes to look at its own door, and when it looks again.
const OWN_DOOR_MS: u64 = 50;
const OWN_DOOR_AGAIN_MS: u64 = 1_000;
/// Probes between two looks at a peer's readiness.
const READINESS_EVERY: u64 = 3;

enum Event {
    Begin(u32, Fault),
    End(u32),
    Arrive(u64, Way, Packet),
    Dialled { member: usize, generation: u64, began: u64 },
    Epoch(u64),
    HubWake(usize),
    AgentWake(usize),
    Probe { member: usize, peer: MemberId, token: u64 },
    Probed { member: usize, peer: MemberId, token: u64, outcome: ProbeOutcome, started: u64 },
    Apply(usize, u64),
    OwnDoor(usize, u64),
    Look,
}

/// The world.
pub struct World {
    /// Milliseconds since the start.
    pub now: u64,
    /// The fleet.
    pub setup: Setup,
    /// What is in force.
    pub faults: Faults,
    /// What members hold.
    pub clusters: Vec<Cluster>,
    /// Their agents.
    pub agents: Vec<Option<Agent>>,
    /// The hub, and a second one that should not be.
    pub hubs: [Option<Hub>; 2],
    /// The checkers.
    pub checker: Checker,
    /// What happened, for people; none = nobody reads it.
    pub log: Option<Vec<String>>,
    /// When a route was written last.
    pub written_at: u64,
    queue: Queue<Event>,
    rng: Rng,
    bug: Bug,
    policy: Arc<Policy>,
    disks: Vec<Disk>,
    said: Vec<Option<Snapshot>>,
    stores: [Store; 2],
    old_store: Store,
    lease: u64,
    conns: BTreeMap<u64, Conn>,
    ledgers: BTreeMap<Digest, Arc<Ledger>>,
    made: u64,
    agent_wakes: Vec<Option<u64>>,
    hub_wakes: [Option<u64>; 2],
    apply_due: Vec<bool>,
    probes: u64,
    quiet_since: Option<u64>,
}

impl World {
    /// A world where everything has just been switched on.
    pub fn new(setup: Setup, rng: Rng, bug: Bug) -> Self {
        let count = setup.members.len();
        let mut world = Self {
            now: 0,
            faults: Faults::default(),
            clusters: vec![Cluster::default(); count],
            agents: (0..count).map(|_| None).collect(),
            hubs: [None, None],
            checker: Checker::default(),
            log: None,
            written_at: 0,
            queue: Queue::default(),
            rng,
            bug,
            policy: Arc::new(setup.policy(&Faults::default())),
            disks: vec![Disk::default(); count],
            said: vec![None; count],
            stores: [Store::default(), Store::default()],
            old_store: Store::default(),
            lease: 0,
            conns: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            made: 0,
            agent_wakes: vec![None; count],
            hub_wakes: [None, None],
            apply_due: vec![false; count],
            probes: 0,
            quiet_since: None,
            setup,
        };
        world.refresh();
        world.queue.push(LOOK_MS, Event::Look);
        world
    }

    /// Lets something be in force from `from` to `until`, if it ends.
    pub fn schedule(&mut self, number: u32, fault: Fault, from: u64, until: Option<u64>) {
        self.queue.push(from, Event::Begin(number, fault));
        if let Some(until) = until {
            self.queue.push(until, Event::End(number));
        }
    }

    /// Says that nothing is amiss from now on; none = that something is.
    pub fn set_quiet(&mut self, since: Option<u64>) {
        self.quiet_since = since;
    }

    /// Keeps a copy of the hub's store, to come back to.
    pub fn keep_store(&mut self) {
        if let Some(hub) = &self.hubs[0] {
            self.old_store = hub.store.clone();
        }
    }

    /// Runs until then, or until something is wrong.
    pub fn run(&mut self, until: u64) {
        while self.checker.violation.is_none() {
            let Some((at, event)) = self.queue.pop(until) else { break };
            self.now = at;
            self.handle(event);
        }
        self.now = self.now.max(until);
    }

    /// What a checker may see.
    pub fn view(&self) -> View<'_> {
        View {
            now: self.now,
            setup: &self.setup,
            faults: &self.faults,
            clusters: &self.clusters,
            agents: &self.agents,
        }
    }

    /// The time of a process whose clock runs ahead by that.
    pub fn clock(&self, skew: u64) -> Millis {
        Millis(EPOCH_MS + self.now + skew)
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>7.3} {}", seconds(now), text()));
        }
    }

    fn check(&mut self, check: impl FnOnce(&mut Checker, View<'_>)) {
        let mut checker = std::mem::take(&mut self.checker);
        check(&mut checker, self.view());
        self.checker = checker;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begin(number, fault) => {
                let names = self.setup.names();
                self.tell(|| format!("begin {}", Named(&fault, &names)));
                if fault == Fault::StoreOld {
                    self.stores[0] = self.old_store.clone();
                }
                self.faults.begin(number, fault);
                self.refresh();
            }
            Event::End(number) => {
                self.tell(|| format!("end {number}"));
                self.faults.end(number);
                self.refresh();
            }
            Event::Arrive(conn, way, packet) => self.arrive(conn, way, packet),
            Event::Dialled { member, generation, began } => self.dialled(member, generation, began),
            Event::Epoch(conn) => {
                let Some(hub) = self.conns.get(&conn).map(|conn| conn.hub) else { return };
                self.with_hub(hub, |hub, now| hub.epoch_taken(conn, now));
            }
            Event::HubWake(hub) => {
                if self.hub_wakes[hub] == Some(self.now) {
                    self.hub_wakes[hub] = None;
                    self.with_hub(hub, Hub::tick);
                }
            }
            Event::AgentWake(member) => {
                if self.agent_wakes[member] == Some(self.now) {
                    self.agent_wakes[member] = None;
                    self.agent_tick(member);
                }
            }
            Event::Probe { member, peer, token } => self.probe(member, peer, token),
            Event::Probed { member, peer, token, outcome, started } => {
                self.probed(member, &peer, token, outcome, started);
            }
            Event::Apply(member, generation) => self.apply(member, generation),
            Event::OwnDoor(member, generation) => self.own_door(member, generation),
            Event::Look => {
                let quiet_since = self.quiet_since;
                self.check(|checker, view| checker.look(quiet_since, view));
                self.queue.push(self.now + LOOK_MS, Event::Look);
            }
        }
    }

    /// Brings processes to what is in force.
    fn refresh(&mut self) {
        let policy = self.setup.policy(&self.faults);
        if *self.policy != policy {
            self.policy = Arc::new(policy);
            for hub in 0..self.hubs.len() {
                let policy = Arc::clone(&self.policy);
                self.with_hub(hub, |hub, now| hub.set_policy(policy, now));
            }
        }
        self.refresh_hubs();
        for member in 0..self.agents.len() {
            self.refresh_agent(member);
        }
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            for way in [Way::Up, Way::Down] {
                self.release(conn, way);
            }
        }
        self.check(Checker::changed);
    }

    fn refresh_hubs(&mut self) {
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

    fn start_hub(&mut self, at: usize, store_works: bool) {
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

    fn stop_hub(&mut self, at: usize) {
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

    fn refresh_agent(&mut self, member: usize) {
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

    fn start_agent(&mut self, member: usize) {
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

    fn stop_agent(&mut self, member: usize) {
        let agent = self.agents[member].take();
        if let Some(conn) = agent.and_then(|agent| agent.conn) {
            self.close(conn, Way::Up);
        }
    }

    /// The agent looks at its cluster.
    fn observe(&mut self, member: usize) {
        let snapshot = self.setup.snapshot(member, &self.faults);
        let lie = self.faults.lie(member);
        if self.said[member].as_ref() != Some(&snapshot) {
            let ledger = snapshot_to_ledger(&snapshot);
            self.hear_counts(member, member);
            self.said[member] = Some(snapshot);
            self.tell_agent(member, Input::Snapshot(ledger));
        }
        if lie.is_some() {
            self.say_probes(member);
        }
    }

    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    // --- streams

    fn latency(&mut self, a: Node, b: Node) -> u64 {
        let place = |node: Node| match node {
            Node::Hub => 7,
            Node::Member(m) => m as u64,
        };
        // The same for both directions, different for every pair.
        let base = 2 + (place(a) * 11 + place(b) * 11) % 29;
        base + self.rng.below(3) + self.faults.delay_ms(a, b)
    }

    fn send(&mut self, id: u64, way: Way, packet: Packet) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.pipe(way).stalled.push_back(packet);
        self.release(id, way);
    }

    /// Lets go what is not held up any more.
    fn release(&mut self, id: u64, way: Way) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = conn.ends(way);
        let agent_cut = self.faults.is_agent_cut(conn.member);
        if agent_cut || self.faults.is_cut(from, to) {
            return;
        }
        let stalled = match self.conns.get_mut(&id) {
            Some(conn) => std::mem::take(&mut conn.pipe(way).stalled),
            None => return,
        };
        for packet in stalled {
            let lost = self.faults.loss_percent();
            let mut at = self.now + self.latency(from, to);
            while self.rng.percent(lost) {
                at += 200;
            }
            if self.faults.are_streams_mangled() && !matches!(packet, Packet::Close) {
                at += if self.rng.percent(20) { self.rng.below(1_500) } else { 0 };
                if self.rng.percent(20) {
                    let again = at + self.rng.below(8_000);
                    self.queue.push(again, Event::Arrive(id, way, packet.clone()));
                }
                self.queue.push(at, Event::Arrive(id, way, packet));
                continue;
            }
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let pipe = conn.pipe(way);
            at = at.max(pipe.last_at);
            pipe.last_at = at;
            self.queue.push(at, Event::Arrive(id, way, packet));
        }
    }

    /// One side ends a stream: it hears nothing any more, and the other side learns of it.
    fn close(&mut self, id: u64, from: Way) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let other = match from {
            Way::Up => Way::Down,
            Way::Down => Way::Up,
        };
        conn.pipe(other).is_read = false;
        conn.pipe(other).stalled.clear();
        self.send(id, from, Packet::Close);
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(|conn| !conn.up.is_read && !conn.down.is_read) {
            self.conns.remove(&id);
        }
    }

    fn arrive(&mut self, id: u64, way: Way, packet: Packet) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (member, hub, generation) = (conn.member, conn.hub, conn.generation);
        if !conn.pipe(way).is_read {
            return;
        }
        if matches!(packet, Packet::Close) {
            conn.pipe(way).is_read = false;
            self.forget(id);
        }
        match (way, packet) {
            (Way::Up, Packet::Agent(message)) => {
                self.with_hub(hub, |hub, now| hub.message(id, *message, now));
            }
            (Way::Up, _) => self.with_hub(hub, |hub, now| {
                hub.disconnected(id, now);
                Vec::new()
            }),
            (Way::Down, packet) => {
                let agent = self.agents[member].as_ref();
                if agent.is_none_or(|a| a.generation != generation || a.conn != Some(id)) {
                    return;
                }
                match packet {
                    Packet::Hub(message) => self.hear(member, *message),
                    Packet::Agent(_) | Packet::Close => {
                        self.tell_agent(member, Input::Disconnected)
                    }
                }
            }
        }
    }

    // --- hub

    fn with_hub(&mut self, at: usize, act: impl FnOnce(&mut Hub, Millis) -> Vec<Act>) {
        let Some(hub) = &mut self.hubs[at] else { return };
        let now = Millis(EPOCH_MS + self.now + hub.skew);
        let acts = act(hub, now);
        for act in acts {
            self.act(act);
        }
        self.wake_hub(at);
    }

    fn act(&mut self, act: Act) {
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

    fn wake_hub(&mut self, at: usize) {
        let Some(hub) = &self.hubs[at] else { return };
        let Some(due) = hub.next_deadline() else { return };
        let due = due.0.saturating_sub(EPOCH_MS + hub.skew).max(self.now + 1);
        if self.hub_wakes[at].is_none_or(|wake| due < wake || wake <= self.now) {
            self.hub_wakes[at] = Some(due);
            self.queue.push(due, Event::HubWake(at));
        }
    }

    // --- agents

    fn agent_tick(&mut self, member: usize) {
        let Some(agent) = &mut self.agents[member] else { return };
        let now = Millis(EPOCH_MS + self.now + agent.skew);
        let before = agent.readiness.gone();
        agent.readiness.tick(now);
        if agent.readiness.gone() != before {
            self.apply_soon(member);
        }
        self.tell_agent(member, Input::Tick);
    }

    fn wake_agent(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        let deadlines = [agent.session.next_deadline(), agent.readiness.next_deadline()];
        let Some(due) = deadlines.into_iter().flatten().min() else { return };
        let due = due.0.saturating_sub(EPOCH_MS + agent.skew).max(self.now + 1);
        if self.agent_wakes[member].is_none_or(|wake| due < wake || wake <= self.now) {
            self.agent_wakes[member] = Some(due);
            self.queue.push(due, Event::AgentWake(member));
        }
    }

    fn tell_agent(&mut self, member: usize, input: Input) {
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

    fn agent_act(&mut self, member: usize, output: Output) {
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

    fn take(&mut self, member: usize, number: fairlead_model::PlanNumber, ledger: Ledger) {
        let digest = ledger.digest();
        self.check(|checker, view| checker.took(member, number, digest, view));
        let Some(agent) = &mut self.agents[member] else { return };
        agent.take(number, &ledger);
        self.disks[member].bundle = Some((number, ledger));
        self.start_probes(member);
        self.apply_soon(member);
    }

    /// The hub said something.
    fn hear(&mut self, member: usize, message: FromHub) {
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

    fn dialled(&mut self, member: usize, generation: u64, began: u64) {
        let Some(agent) = &self.agents[member] else { return };
        if agent.generation != generation {
            return;
        }
        let cut = self.faults.is_agent_cut(member)
            || self.faults.is_apart(Node::Member(member), Node::Hub);
        if cut {
            if self.now - began >= DIAL_MS {
                return self.tell_agent(member, Input::Disconnected);
            }
            // A handshake is tried again and again by the kernel.
            let at = self.now + self.rng.range(1_000, 3_000);
            return self.queue.push(at, Event::Dialled { member, generation, began });
        }
        let second = self.hubs[1].is_some() && self.rng.percent(50);
        let at = usize::from(second);
        let id = self.setup.members[member].id.clone();
        let identity = Identity { uid: uid(&id), member: id };
        if !self.hubs[at].as_ref().is_some_and(|hub| hub.is_registered(&identity)) {
            return self.tell_agent(member, Input::Disconnected);
        }
        let conn = self.number();
        self.conns.insert(conn, Conn::new(member, generation, at));
        self.with_hub(at, |hub, now| {
            hub.connected(conn, identity, now);
            Vec::new()
        });
        if let Some(agent) = &mut self.agents[member] {
            agent.conn = Some(conn);
        }
        self.tell_agent(member, Input::Connected);
    }

    // --- probes

    fn start_probes(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        for (id, peer) in agent.unprobed() {
            let (token, seed) = (self.number(), self.rng.any());
            let Some(agent) = &mut self.agents[member] else { return };
            let now = Millis(EPOCH_MS + self.now + agent.skew);
            let probe = fairlead_agent_core::probe::PeerProbe::new(seed, now);
            agent.probes.insert(id.clone(), (token, peer, probe));
            self.queue.push(self.now, Event::Probe { member, peer: id, token });
        }
    }

    /// A probe starts.
    fn probe(&mut self, member: usize, peer: MemberId, token: u64) {
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

    fn probed(
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
            self.say_probes(member);
            self.apply_soon(member);
        }
    }

    fn say_probes(&mut self, member: usize) {
        let Some(agent) = &self.agents[member] else { return };
        let mut report = agent.report.clone();
        let since = self.clock(agent.skew);
        let said = match self.faults.lie(member) {
            Some(Lie::NobodyAnswers) => Some(Reach::TimedOut),
            Some(Lie::EverybodyAnswers) => Some(Reach::Reachable),
            Some(Lie::ForeignAddress) | None => None,
        };
        if let Some(reach) = said {
            report.values_mut().for_each(|said| *said = PeerReach { reach, since });
        }
        self.tell_agent(member, Input::Probes(report));
    }

    /// An agent hears what a member's services have: of its own from its API server, of others by
    /// their doors, where their agents answer.
    fn hear_counts(&mut self, member: usize, of: usize) {
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
    fn own_door(&mut self, member: usize, generation: u64) {
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

    // --- writes

    fn apply_soon(&mut self, member: usize) {
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

    fn apply(&mut self, member: usize, generation: u64) {
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

#[expect(clippy::cast_precision_loss, reason = "minutes, for people")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
