//! The world: processes, clusters and the network between them, on one virtual clock.
//!
//! Owns what happens when. Decides nothing that hub or agent decide; lets the checkers look.

mod prober;
mod process;
mod stream;
mod talk;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::health::ProbeOutcome;
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::policy::Policy;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{MemberId, Millis};

use crate::agent::{Agent, Cluster, Disk};
use crate::bug::Bug;
use crate::check::Checker;
use crate::fault::{Fault, Faults, Named};
use crate::hub::{Hub, Store};
use crate::net::{Conn, Packet, Way};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::traffic::View;

pub use write::show;

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
    /// Who lied when it was last looked at: the truth must be told after a lie.
    lied: Vec<bool>,
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
            lied: vec![false; count],
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

    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds, for people")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
