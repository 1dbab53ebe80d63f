//! A hub's process: the machines of `fairlead-hub-core` and the planner, put together as the real one
//! puts them together, without sockets and threads. What it wants done comes back as acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_hub_core::health::{Changed, Connected, Event, Health};
use fairlead_hub_core::hold::{HoldInput, Sight, fleet_vanished, hold};
use fairlead_hub_core::intake::Held;
use fairlead_hub_core::inventory::{Inventory, Report, ReportOrder};
use fairlead_hub_core::push::Wanted;
use fairlead_hub_core::session::{Identity, Output, Remembered, Session, check_takeover};
use fairlead_model::health::MemberState;
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::plan::MemberPlan;
use fairlead_model::policy::{Policy, TrafficState};
use fairlead_model::session::{FromAgent, FromHub};
use fairlead_model::snapshot::Consent;
use fairlead_model::{MemberId, Millis, Note};
use fairlead_planner::{FleetInput, Freeze, MemberInput, Memory, Planned, Settings, plan};
use fairlead_proto::ledger::{bundle_to_ledger, ledger_to_snapshot};

use crate::bug::Bug;
use crate::bundle::render;

/// Changes that come within that time are one plan.
const GATHER_MS: u64 = 10;

/// What a hub keeps through restarts.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// Last epoch by member.
    pub epochs: BTreeMap<MemberId, u64>,
    /// Last report by member.
    pub reports: BTreeMap<MemberId, Report>,
    /// The planner's memory.
    pub memory: Memory,
}

/// What the world must do.
#[derive(Debug)]
pub enum Act {
    /// Send this on a stream.
    Send(u64, Box<FromHub>),
    /// End a stream.
    Close(u64),
    /// Take an epoch and call [`Hub::epoch_taken`].
    TakeEpoch(u64),
    /// Keep this bundle's content at hand.
    Wanted(Digest, Arc<Ledger>),
    /// A plan was made.
    Planned(Box<Planned>),
    /// Something that people would like to know.
    Told(String),
}

/// A hub's process.
pub struct Hub {
    /// Its clock runs ahead by that.
    pub skew: u64,
    /// What it keeps.
    pub store: Store,
    /// Whether that can be written.
    pub store_works: bool,
    /// Above all epochs of processes before.
    pub epoch: u64,
    started_at: Millis,
    grace_ms: u64,
    bug: Bug,
    policy: Arc<Policy>,
    inventory: Inventory,
    health: Health,
    streams: BTreeMap<u64, Stream>,
    live: BTreeMap<MemberId, u64>,
    awaited: BTreeSet<MemberId>,
    wanted: BTreeMap<MemberId, (Arc<MemberPlan>, Wanted)>,
    plan_at: Option<Millis>,
    told: BTreeMap<MemberId, MemberState>,
    /// Why it does not plan, or keeps what nobody edits.
    pub held: Vec<Note>,
}

struct Stream {
    session: Session,
    above: u64,
}

impl Hub {
    /// A process that starts now with what its store has.
    pub fn start(
        store: Store,
        policy: Arc<Policy>,
        (epoch, skew, grace_ms): (u64, u64, u64),
        bug: Bug,
        now: Millis,
    ) -> Self {
        let mut hub = Self {
            skew,
            store,
            store_works: true,
            epoch,
            started_at: now,
            grace_ms,
            bug,
            policy: Arc::default(),
            inventory: Inventory::default(),
            health: Health::default(),
            streams: BTreeMap::new(),
            live: BTreeMap::new(),
            awaited: BTreeSet::new(),
            wanted: BTreeMap::new(),
            plan_at: Some(now.plus(GATHER_MS)),
            told: BTreeMap::new(),
            held: Vec::new(),
        };
        // Whoever is registered with a cluster was connected once, whatever the store remembers.
        hub.awaited = policy.members.keys().cloned().collect();
        if bug == Bug::PlanBeforeInventory {
            hub.awaited.clear();
        } else {
            for (member, report) in hub.store.reports.clone() {
                hub.inventory.put(member, report).expect("the inventory is empty");
            }
        }
        hub.set_policy(policy, now);
        hub
    }

    /// Users say something else now.
    pub fn set_policy(&mut self, policy: Arc<Policy>, now: Millis) -> Vec<Act> {
        let mut acts = Vec::new();
        let gone: Vec<MemberId> = self.policy.members.keys().cloned().collect();
        for member in gone.iter().filter(|id| !policy.members.contains_key(*id)) {
            self.inventory.remove(member);
            self.store.reports.remove(member);
            self.health.remove(member);
            self.wanted.remove(member);
            self.awaited.remove(member);
            if let Some(conn) = self.live.remove(member) {
                self.streams.remove(&conn);
                acts.push(Act::Close(conn));
            }
        }
        for (member, spec) in &policy.members {
            let before = match self.awaited.contains(member) {
                true => Connected::Before,
                false => Connected::Never,
            };
            self.health.apply(member, Event::Registered { before }, now);
            self.health.place(member, spec.region.clone(), now);
        }
        self.policy = policy;
        self.mark(now);
        acts
    }

    /// Whether a certificate is a member's.
    pub fn is_registered(&self, identity: &Identity) -> bool {
        let spec = self.policy.members.get(&identity.member);
        spec.is_some_and(|spec| spec.uid.as_ref() == Some(&identity.uid))
    }

    /// A stream was opened.
    pub fn connected(&mut self, conn: u64, identity: Identity, now: Millis) {
        let session = Session::new(identity, "sim", now);
        self.streams.insert(conn, Stream { session, above: 0 });
    }

    /// A stream ended.
    pub fn disconnected(&mut self, conn: u64, now: Millis) {
        let Some(stream) = self.streams.remove(&conn) else { return };
        let member = &stream.session.identity().member;
        if self.live.get(member) == Some(&conn) {
            let member = member.clone();
            self.live.remove(&member);
            self.health.apply(&member, Event::Lost, now);
            self.mark(now);
        }
    }

    /// An agent said something.
    pub fn message(&mut self, conn: u64, message: FromAgent, now: Millis) -> Vec<Act> {
        let Some(stream) = self.streams.get_mut(&conn) else { return Vec::new() };
        let member = stream.session.identity().member.clone();
        let outputs = stream.session.message(message, now);
        if self.live.get(&member) == Some(&conn) && self.health.heard(&member, now) == Changed::Yes
        {
            self.mark(now);
        }
        self.outputs(conn, outputs, now)
    }

    /// The epoch that [`Act::TakeEpoch`] asked for can be taken.
    pub fn epoch_taken(&mut self, conn: u64, now: Millis) -> Vec<Act> {
        let Some(stream) = self.streams.get(&conn) else { return Vec::new() };
        let Some(hello) = stream.session.hello().cloned() else { return Vec::new() };
        let member = hello.member.clone();
        let live = self.live.get(&member).and_then(|conn| self.streams.get(conn));
        let may = check_takeover(live.and_then(|stream| stream.session.hello()), &hello);
        if !self.store_works || may.is_err() {
            return self.close(conn, now);
        }
        let seen = [self.store.epochs.get(&member).copied().unwrap_or(0), self.epoch, stream.above];
        let epoch = fairlead_hub_core::numbering::epoch_above(seen).expect("epochs are small");
        self.store.epochs.insert(member.clone(), epoch);
        let mut acts = Vec::new();
        if let Some(older) = self.live.insert(member.clone(), conn) {
            self.streams.remove(&older);
            acts.push(Act::Close(older));
        }
        self.health.apply(&member, Event::Connected, now);
        self.mark(now);
        let held = |report: &Report| Held {
            number: report.order.number,
            digest: report.digest,
            ledger: Arc::clone(&report.ledger),
        };
        let wanted = self.wanted.get(&member).map(|(_, wanted)| wanted.clone());
        let known = Remembered {
            snapshot: self.inventory.of(&member, &hello.uid).map(held),
            bundle: wanted.as_ref().map(|w| (w.digest, Arc::clone(&w.ledger))),
        };
        let stream = self.streams.get_mut(&conn).expect("it was found above");
        let mut outputs = stream.session.epoch_taken(epoch, known, now);
        outputs.extend(wanted.into_iter().flat_map(|wanted| stream.session.want(wanted)));
        acts.extend(self.outputs(conn, outputs, now));
        acts
    }

    /// Time passed.
    pub fn tick(&mut self, now: Millis) -> Vec<Act> {
        let conns: Vec<u64> = self.streams.keys().copied().collect();
        let mut acts = Vec::new();
        for conn in conns {
            let Some(stream) = self.streams.get_mut(&conn) else { continue };
            let outputs = stream.session.tick(now);
            acts.extend(self.outputs(conn, outputs, now));
        }
        if self.health.tick(now) == Changed::Yes {
            self.mark(now);
        }
        self.tell_states(&mut acts);
        if self.plan_at.is_some_and(|at| at <= now) {
            acts.extend(self.plan(now));
        }
        acts
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        let sessions = self.streams.values().map(|stream| stream.session.wake_at());
        sessions.chain(self.health.next_deadline()).chain(self.plan_at).min()
    }

    /// What it holds a member for.
    pub fn state_of(&self, member: &MemberId) -> MemberState {
        self.health.of(member).state
    }

    fn mark(&mut self, now: Millis) {
        let due = now.plus(GATHER_MS);
        self.plan_at = Some(self.plan_at.map_or(due, |at| at.min(due)));
    }

    fn close(&mut self, conn: u64, now: Millis) -> Vec<Act> {
        self.disconnected(conn, now);
        vec![Act::Close(conn)]
    }

    fn outputs(&mut self, conn: u64, outputs: Vec<Output>, now: Millis) -> Vec<Act> {
        let mut acts = Vec::new();
        for output in outputs {
            let Some(stream) = self.streams.get_mut(&conn) else { break };
            let identity = stream.session.identity().clone();
            match output {
                Output::TakeEpoch { above } => {
                    stream.above = above;
                    acts.push(Act::TakeEpoch(conn));
                }
                Output::Send(message) => acts.push(Act::Send(conn, Box::new(message))),
                Output::Snapshot(held) => {
                    let epoch = stream.session.epoch().unwrap_or(0);
                    self.report(&identity, epoch, held, now);
                }
                Output::Confirmed => {
                    self.inventory.confirm(&identity.member, now);
                    if self.awaited.remove(&identity.member) {
                        self.mark(now);
                    }
                }
                Output::Probes(report) => {
                    let live = self.live.get(&identity.member) == Some(&conn);
                    if live && self.health.report_at(&identity.member, &report, now) == Changed::Yes
                    {
                        self.mark(now);
                    }
                }
                Output::ApiServer(api) => {
                    if self.health.api_server(&identity.member, api, now) == Changed::Yes {
                        self.mark(now);
                    }
                }
                Output::Applied(_) | Output::Overlay(_) | Output::Traffic(_) => {}
                Output::Close(_) => acts.extend(self.close(conn, now)),
            }
        }
        acts
    }

    fn report(&mut self, identity: &Identity, epoch: u64, held: Held, now: Millis) {
        let (snapshot, notes) = ledger_to_snapshot(&held.ledger);
        let report = Report {
            uid: identity.uid.clone(),
            order: ReportOrder { epoch, number: held.number },
            ledger: held.ledger,
            digest: held.digest,
            snapshot: Arc::new(snapshot),
            notes,
            received_at: now,
        };
        if self.inventory.put(identity.member.clone(), report.clone()).is_ok() {
            if self.store_works {
                self.store.reports.insert(identity.member.clone(), report);
            }
            self.awaited.remove(&identity.member);
            self.mark(now);
        }
    }

    fn plan(&mut self, now: Millis) -> Vec<Act> {
        self.plan_at = None;
        let hold = hold(&HoldInput {
            now,
            started_at: self.started_at,
            grace_ms: self.grace_ms,
            unsynced: BTreeSet::new(),
            awaited: self.awaited.clone(),
            store_error: (!self.store_works).then(|| "it does not answer".to_owned()),
            fenced: None,
        });
        let held = hold.is_held();
        let mut notes = hold.notes;
        let vanished = if held { None } else { fleet_vanished(&self.sights()) };
        let freeze = if vanished.is_some() { Freeze::Unedited } else { Freeze::Off };
        notes.extend(vanished);
        let mut acts = Vec::new();
        let reasons = |notes: &[Note]| notes.iter().map(|n| n.reason).collect::<Vec<_>>();
        if reasons(&notes) != reasons(&self.held) {
            let text = match notes.as_slice() {
                [] => "hub plans".to_owned(),
                notes => notes.iter().map(|n| format!("hub holds: {}", n.reason)).collect(),
            };
            acts.push(Act::Told(text));
        }
        self.held = notes;
        if held {
            self.plan_at = hold.wake_at;
            return acts;
        }
        let settings = Settings { freeze, ..Settings::default() };
        let planned = plan(&self.input(settings, now));
        for (member, plan) in &planned.plans {
            if self.wanted.get(member).is_some_and(|(before, _)| before == plan) {
                continue;
            }
            acts.extend(self.want(member, plan, now));
        }
        self.plan_at = planned.wake_at;
        self.store.memory = planned.memory.clone();
        acts.push(Act::Planned(Box::new(planned)));
        acts
    }

    fn want(&mut self, member: &MemberId, plan: &Arc<MemberPlan>, now: Millis) -> Vec<Act> {
        let ledger = Arc::new(bundle_to_ledger(&render(plan)));
        let wanted = Wanted {
            digest: ledger.digest(),
            ledger: Arc::clone(&ledger),
            caused_at: now,
            trace_parent: String::new(),
        };
        let same = self.wanted.get(member).is_some_and(|(_, w)| w.digest == wanted.digest);
        self.wanted.insert(member.clone(), (Arc::clone(plan), wanted.clone()));
        if same {
            return Vec::new();
        }
        let mut acts = vec![Act::Wanted(wanted.digest, ledger)];
        let conn = self.live.get(member).copied();
        if let Some(stream) = conn.and_then(|conn| self.streams.get_mut(&conn)) {
            let outputs = stream.session.want(wanted);
            acts.extend(self.outputs(conn.expect("its stream was found"), outputs, now));
        }
        acts
    }

    fn input(&self, settings: Settings, now: Millis) -> FleetInput {
        let member = |id: &MemberId| {
            let report = self.inventory.get(id);
            let mut snapshot = report.map(|report| Arc::clone(&report.snapshot));
            if self.bug == Bug::IgnoreConsent
                && let Some(snapshot) = &mut snapshot
            {
                let services = Arc::make_mut(snapshot).services.values_mut();
                services.for_each(|service| service.consent = Consent::Given);
            }
            let received_at = report.map(|report| report.received_at).unwrap_or_default();
            (id.clone(), MemberInput { snapshot, received_at, health: self.health.of(id) })
        };
        let mut policy = Arc::clone(&self.policy);
        if self.bug == Bug::IgnoreDrain {
            let members = Arc::make_mut(&mut policy).members.values_mut();
            members.for_each(|spec| spec.traffic = TrafficState::Active);
        }
        let mut memory = self.store.memory.clone();
        if self.bug == Bug::TrustAddresses {
            memory.address_holders.clear();
        }
        let members = policy.members.keys().map(member).collect();
        FleetInput { now, policy, members, memory, settings, rollout: Default::default() }
    }

    fn sights(&self) -> BTreeMap<MemberId, Sight> {
        let excused = |id: &MemberId| {
            let spec = self.policy.members.get(id);
            spec.is_none_or(|spec| spec.traffic == TrafficState::Draining)
        };
        let sight = |(id, sight): (MemberId, Sight)| match sight {
            Sight::Lost { .. } if excused(&id) => (id, Sight::Excused),
            sight => (id, sight),
        };
        self.health.sights().into_iter().map(sight).collect()
    }

    fn tell_states(&mut self, acts: &mut Vec<Act>) {
        for (id, health) in self.health.iter() {
            if self.told.insert(id.clone(), health.state) != Some(health.state) {
                acts.push(Act::Told(format!("hub holds {id} for {:?}", health.state)));
            }
        }
    }
}
