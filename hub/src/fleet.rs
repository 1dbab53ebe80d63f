//! What the hub knows of its members right now, shared by streams, conductor and views.
//!
//! Owns the one lock around [`Inventory`], [`Health`] and the live streams, and what follows when a
//! member is registered, connects, reports, goes silent or is removed. Never waits, plans or writes:
//! it marks [`Fleet::changed`] and [`Fleet::to_store`], and loops of their own re-read the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_hub_core::health::{Changed, Connected, Event, Health};
use fairlead_hub_core::hold::Sight;
use fairlead_hub_core::intake::Held;
use fairlead_hub_core::inventory::{Inventory, Report, ReportOrder};
use fairlead_hub_core::push::Wanted;
use fairlead_hub_core::session::{Close, Identity, Remembered, check_takeover};
use fairlead_model::health::{ApiServer, MemberHealth, MemberState, ProbeReport};
use fairlead_model::ledger::Digest;
use fairlead_model::session::{ApplyReport, CrossingHeld, Hello, OverlayReport};
use fairlead_model::{ClusterUid, MemberId, Millis, PlanNumber, Reason};
use tokio::sync::watch;

use crate::clock;
use crate::record::Stored;
use crate::signal::Signal;

/// What the hub knows of its members right now.
#[derive(Default)]
pub struct Fleet {
    state: Mutex<State>,
    /// Something that plans depend on changed.
    pub changed: Signal,
    /// Something that only statuses depend on changed.
    pub touched: Signal,
    /// Something that must survive a restart changed.
    pub to_store: Signal,
    /// Something that members are judged by changed: time alone may matter sooner now.
    pub evidence: Signal,
}

#[derive(Default)]
struct State {
    inventory: Inventory,
    health: Health,
    live: BTreeMap<MemberId, Live>,
    said: BTreeMap<MemberId, Said>,
    wanted: BTreeMap<MemberId, Wanted>,
    /// As the watch last told; none before it was synced.
    registered: Option<BTreeMap<MemberId, Option<ClusterUid>>>,
    /// Members that the store remembers and that have not reported since the start.
    awaited: BTreeMap<MemberId, ClusterUid>,
    unstored: BTreeSet<MemberId>,
    forgotten: BTreeSet<MemberId>,
    store_error: Option<String>,
}

/// A live stream.
struct Live {
    epoch: u64,
    hello: Hello,
    orders: watch::Sender<Orders>,
}

/// So long a plan may be under way to a member before it counts as not applied. Statuses keep still
/// meanwhile: a change of weights alone must not rewrite the status of every route twice.
const APPLY_PATIENCE_MS: u64 = 10_000;

/// What a stream is to do. Newest wins; nothing queues.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// The bundle that the member should hold.
    pub wanted: Option<Wanted>,
    /// Who does not hold the member's crossing CA yet, while it changes.
    pub crossing: Option<CrossingHeld>,
    /// End the stream.
    pub close: Option<Close>,
}

/// What a member's agent last said, and was told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Said {
    /// When its last message arrived.
    pub heard_at: Option<Millis>,
    /// Version of the agent.
    pub agent_version: String,
    /// Number of the newest plan that it was sent.
    pub sent: Option<PlanNumber>,
    /// When that was.
    pub sent_at: Option<Millis>,
    /// What became of its plan.
    pub applied: Option<ApplyReport>,
    /// Its overlay.
    pub overlay: OverlayReport,
    /// What it found about its peers' doors.
    pub probes: ProbeReport,
    /// Digest of the CAs that it believes; none from agents that do not say.
    pub trust: Option<Digest>,
}

impl Said {
    /// Until when its newest plan may be under way without a word about it; none when it was applied,
    /// or never sent.
    pub fn under_way_until(&self) -> Option<Millis> {
        let applied = self.applied.as_ref().filter(|report| report.complete);
        let is_under_way = self.sent.is_some() && applied.map(|report| report.number) != self.sent;
        let sent_at = self.sent_at.filter(|_| is_under_way)?;
        Some(sent_at.plus(APPLY_PATIENCE_MS))
    }
}

/// A member as one look at the fleet finds it.
#[derive(Debug, Clone, Default)]
pub struct MemberNow {
    /// Its last report.
    pub report: Option<Report>,
    /// What the hub holds it for.
    pub health: MemberHealth,
    /// What its agent last said.
    pub said: Said,
    /// Whether it has a stream now.
    pub connected: bool,
    /// Its report arrived, or was confirmed, since this process started.
    pub synced: bool,
    /// Digest of the bundle that it should hold.
    pub wanted: Option<Digest>,
}

impl MemberNow {
    /// It has written all of its newest plan, and its gateways have taken the routes of it.
    pub fn holds_newest(&self) -> bool {
        let applied = self.said.applied.as_ref().filter(|report| report.complete);
        let is_newest = |report: &ApplyReport| Some(report.number) == self.said.sent;
        self.connected && applied.is_some_and(|report| is_newest(report) && report.moving == 0)
    }
}

impl Fleet {
    /// Takes in what the store remembers, before anybody is connected.
    pub fn restore(&self, stored: BTreeMap<MemberId, Stored>) {
        let mut state = self.lock();
        for (member, stored) in stored {
            state.awaited.insert(member.clone(), stored.uid);
            if let Some(report) = stored.report {
                // The inventory is empty, so nothing can fence it.
                let _ = state.inventory.put(member, report);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves maps that are each whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members that the hub's objects name now: others are forgotten and their streams ended.
    pub fn register(&self, members: &BTreeMap<MemberId, Option<ClusterUid>>) {
        let now = clock::now();
        let mut state = self.lock();
        if state.registered.as_ref() == Some(members) {
            return;
        }
        if state.registered.is_none() {
            state.await_joined(members);
        }
        let gone = state.gone(members);
        for member in &gone {
            state.remove(member, members.get(member).and_then(Option::as_ref));
        }
        for member in members.keys() {
            let before = match state.awaited.contains_key(member) {
                true => Connected::Before,
                false => Connected::Never,
            };
            state.health.apply(member, Event::Registered { before }, now);
        }
        state.registered = Some(members.clone());
        state.forgotten.extend(gone);
        drop(state);
        self.changed.mark();
        self.to_store.mark();
    }

    /// Where members are: witnesses are chosen across regions.
    pub fn place(&self, regions: BTreeMap<MemberId, Option<String>>) {
        let now = clock::now();
        let mut state = self.lock();
        for (member, region) in regions {
            state.health.place(&member, region, now);
        }
    }

    /// Judges members anew when time alone may change what they are held for, until the caller stops.
    pub async fn judge(&self) {
        loop {
            let due = self.lock().health.next_deadline();
            tokio::select! {
                () = clock::sleep_until_some(due) => {}
                _ = self.evidence.wait() => continue,
            }
            let changed = self.lock().health.tick(clock::now());
            if changed == Changed::Yes {
                self.changed.mark();
            }
        }
    }

    /// Who has a stream, of the members that ever had one.
    pub fn sights(&self) -> BTreeMap<MemberId, Sight> {
        self.lock().health.sights()
    }

    /// What the watch says of a peer: registered, not, or not read yet.
    pub fn is_registered(&self, identity: &Identity) -> Option<bool> {
        let state = self.lock();
        let registered = state.registered.as_ref()?;
        Some(registered.get(&identity.member) == Some(&Some(identity.uid.clone())))
    }

    /// Whether a new stream may take the place of the live one.
    ///
    /// # Errors
    /// When the live one is of a later start of the agent.
    pub fn check_takeover(&self, hello: &Hello) -> Result<(), Close> {
        check_takeover(self.lock().live.get(&hello.member).map(|live| &live.hello), hello)
    }

    /// A stream with a new epoch: ends the older one of the member, and gives what the hub remembers.
    ///
    /// # Errors
    /// When a stream with a higher epoch is open already.
    pub fn open(
        &self,
        hello: &Hello,
        epoch: u64,
    ) -> Result<(Remembered, watch::Receiver<Orders>), Close> {
        let now = clock::now();
        let mut state = self.lock();
        if state.live.get(&hello.member).is_some_and(|live| live.epoch > epoch) {
            return Err(Close::new(Reason::OldNumber, "a newer stream of this member is open"));
        }
        let member = hello.member.clone();
        let remembered = state.remembered(&member, &hello.uid);
        let wanted = state.wanted.get(&member).cloned();
        let (orders, receiver) = watch::channel(Orders { wanted, ..Orders::default() });
        let live = Live { epoch, hello: hello.clone(), orders };
        if let Some(older) = state.live.insert(member.clone(), live) {
            older.close(Reason::OldNumber, "a newer stream of this member was opened");
        }
        state.health.apply(&member, Event::Connected, now);
        let said = state.said.entry(member).or_default();
        said.trust = None;
        said.agent_version.clone_from(&hello.agent_version);
        said.heard_at = Some(now);
        drop(state);
        self.changed.mark();
        self.evidence.mark();
        Ok((remembered, receiver))
    }

    /// A stream ended; nothing happens when a newer one took its place.
    pub fn close(&self, member: &MemberId, epoch: u64) {
        let mut state = self.lock();
        if state.live.get(member).is_none_or(|live| live.epoch != epoch) {
            return;
        }
        state.live.remove(member);
        state.health.apply(member, Event::Lost, clock::now());
        drop(state);
        self.changed.mark();
        self.evidence.mark();
    }

    /// The agent gave a sign of life.
    pub fn heard(&self, member: &MemberId, epoch: u64) {
        let now = clock::now();
        let mut state = self.lock();
        if state.live.get(member).is_none_or(|live| live.epoch != epoch) {
            return;
        }
        state.said.entry(member.clone()).or_default().heard_at = Some(now);
        let changed = state.health.heard(member, now);
        drop(state);
        if changed == Changed::Yes {
            self.changed.mark();
        }
    }

    /// An agent said which CAs it believes.
    pub fn trusts(&self, member: &MemberId, epoch: u64, trust: Option<Digest>) {
        let mut state = self.lock();
        if state.live.get(member).is_some_and(|live| live.epoch == epoch) {
            state.said.entry(member.clone()).or_default().trust = trust;
        }
    }

    /// An agent said whether it reaches its API server.
    pub fn api_server(&self, member: &MemberId, epoch: u64, api: ApiServer) {
        let mut state = self.lock();
        if state.live.get(member).is_none_or(|live| live.epoch != epoch) {
            return;
        }
        let changed = state.health.api_server(member, api, clock::now());
        drop(state);
        self.evidence.mark();
        if changed == Changed::Yes {
            self.changed.mark();
        }
    }

    /// The newest plan that a member was sent in its stream.
    pub fn sent(&self, member: &MemberId, epoch: u64, number: Option<PlanNumber>) {
        let mut state = self.lock();
        if state.live.get(member).is_some_and(|live| live.epoch == epoch) {
            let said = state.said.entry(member.clone()).or_default();
            if said.sent != number {
                said.sent = number;
                said.sent_at = Some(clock::now());
            }
        }
    }

    /// A snapshot was taken in.
    pub fn report(&self, identity: &Identity, epoch: u64, held: Held) {
        let (snapshot, notes) = crate::vet::snapshot_of(&identity.uid, &held.ledger);
        let report = Report {
            uid: identity.uid.clone(),
            order: ReportOrder { epoch, number: held.number },
            ledger: held.ledger,
            digest: held.digest,
            snapshot: Arc::new(snapshot),
            notes,
            received_at: clock::now(),
        };
        let member = &identity.member;
        let mut state = self.lock();
        if state.is_removed(identity) || state.inventory.put(member.clone(), report).is_err() {
            return;
        }
        state.awaited.remove(member);
        state.unstored.insert(member.clone());
        drop(state);
        self.changed.mark();
        self.to_store.mark();
    }

    /// The agent stands by what the hub holds of it.
    pub fn confirm(&self, member: &MemberId) {
        let mut state = self.lock();
        state.inventory.confirm(member, clock::now());
        let awaited = state.awaited.remove(member).is_some();
        drop(state);
        if awaited {
            self.changed.mark();
        }
    }

    /// What became of a plan.
    pub fn applied(&self, member: &MemberId, report: ApplyReport) {
        self.lock().said.entry(member.clone()).or_default().applied = Some(report);
        self.touched.mark();
    }

    /// Which overlay an agent applies.
    pub fn overlay(&self, member: &MemberId, report: OverlayReport) {
        self.lock().said.entry(member.clone()).or_default().overlay = report;
        self.touched.mark();
    }

    /// What an agent found about its peers' doors.
    pub fn probes(&self, member: &MemberId, report: ProbeReport) {
        let mut state = self.lock();
        let changed = state.health.report_at(member, &report, clock::now());
        state.said.entry(member.clone()).or_default().probes = report;
        drop(state);
        self.evidence.mark();
        if changed == Changed::Yes {
            self.changed.mark();
        }
    }

    /// What outcomes of requests say of members' doors: the hub's own word among the witnesses.
    pub fn outcomes(&self, said: ProbeReport) {
        if self.lock().health.report_own(said, clock::now()) == Changed::Yes {
            self.changed.mark();
        }
    }

    /// These members should hold these bundles; streams are told of what differs.
    pub fn want(&self, bundles: BTreeMap<MemberId, Wanted>) {
        let mut state = self.lock();
        for (member, wanted) in bundles {
            let same = |held: &Wanted| held.digest == wanted.digest;
            if state.wanted.get(&member).is_some_and(same) {
                continue;
            }
            if let Some(live) = state.live.get(&member) {
                let next = wanted.clone();
                live.orders.send_modify(|orders| orders.wanted = Some(next));
            }
            state.wanted.insert(member, wanted);
        }
    }

    /// Who does not hold the member's crossing CA yet; none = it does not change.
    pub fn tell_crossing(&self, member: &MemberId, held: Option<CrossingHeld>) {
        let state = self.lock();
        let Some(live) = state.live.get(member) else { return };
        live.orders.send_if_modified(|orders| {
            let changed = orders.crossing != held;
            orders.crossing = held;
            changed
        });
    }

    /// The bundle that a member should hold.
    pub fn wanted(&self, member: &MemberId) -> Option<Wanted> {
        self.lock().wanted.get(member).cloned()
    }

    /// All registered members as they are now.
    pub fn look(&self) -> BTreeMap<MemberId, MemberNow> {
        let state = self.lock();
        let registered = state.registered.as_ref();
        let members = registered.into_iter().flat_map(BTreeMap::keys);
        members.map(|member| (member.clone(), state.member(member))).collect()
    }

    /// What registered members are held for.
    pub fn states(&self) -> BTreeMap<MemberId, MemberState> {
        let state = self.lock();
        let members = state.registered.iter().flat_map(BTreeMap::keys);
        members.map(|member| (member.clone(), state.health.of(member).state)).collect()
    }

    /// Members that were connected, or had joined, before the start and have not reported since.
    pub fn awaited(&self) -> BTreeSet<MemberId> {
        let state = self.lock();
        let still = |(member, uid): &(&MemberId, &ClusterUid)| {
            let registered = state.registered.as_ref();
            registered.is_none_or(|r| r.get(*member) == Some(&Some((*uid).clone())))
        };
        state.awaited.iter().filter(still).map(|(member, _)| member.clone()).collect()
    }

    /// Why the store cannot be written, if so.
    pub fn store_error(&self) -> Option<String> {
        self.lock().store_error.clone()
    }

    /// Whether the store could be written.
    pub fn set_store_error(&self, error: Option<String>) {
        let mut state = self.lock();
        if state.store_error == error {
            return;
        }
        state.store_error = error;
        drop(state);
        self.changed.mark();
    }

    /// What is to be stored: new reports, and members to forget.
    pub fn take_unstored(&self) -> (BTreeMap<MemberId, Report>, BTreeSet<MemberId>) {
        let mut state = self.lock();
        let unstored = std::mem::take(&mut state.unstored);
        let report = |member: MemberId| {
            let report = state.inventory.get(&member)?.clone();
            Some((member, report))
        };
        let reports = unstored.into_iter().filter_map(report).collect();
        (reports, std::mem::take(&mut state.forgotten))
    }

    /// Puts back what could not be stored.
    pub fn restore_unstored(
        &self,
        reports: impl IntoIterator<Item = MemberId>,
        forgotten: BTreeSet<MemberId>,
    ) {
        let mut state = self.lock();
        state.unstored.extend(reports);
        state.forgotten.extend(forgotten);
    }
}

impl Live {
    fn close(&self, reason: Reason, message: &str) {
        let close = Close::new(reason, message);
        self.orders.send_modify(|orders| orders.close = Some(close));
    }
}

impl State {
    /// The first look at the hub's objects: who had joined by then is awaited, also when the store
    /// knows nothing of it. A hub that was rebuilt from a backup must not plan for half a fleet.
    fn await_joined(&mut self, members: &BTreeMap<MemberId, Option<ClusterUid>>) {
        for (member, uid) in members {
            let Some(uid) = uid.as_ref().filter(|_| self.inventory.get(member).is_none()) else {
                continue;
            };
            self.awaited.entry(member.clone()).or_insert_with(|| uid.clone());
        }
    }

    /// Members of which something is held and that are not registered, or belong to another cluster.
    fn gone(&self, members: &BTreeMap<MemberId, Option<ClusterUid>>) -> BTreeSet<MemberId> {
        let owner = |member: &MemberId| members.get(member).cloned().flatten();
        let stored = self.awaited.iter();
        let reported = self.inventory.iter().map(|(member, report)| (member, &report.uid));
        let mut gone: BTreeSet<MemberId> = stored
            .chain(reported)
            .filter(|(member, uid)| owner(member).as_ref() != Some(*uid))
            .map(|(member, _)| member.clone())
            .collect();
        // A stream may be younger than what the watch has seen; only what it saw before can be gone.
        let seen = self.registered.iter().flatten().filter_map(|(member, uid)| {
            let lost = uid.is_some() && members.get(member) != Some(uid);
            lost.then(|| member.clone())
        });
        gone.extend(seen);
        gone.retain(|member| !self.is_younger(member, members));
        gone
    }

    /// A live stream of a member that neither the last watch nor this one knows: it joined just now.
    fn is_younger(
        &self,
        member: &MemberId,
        members: &BTreeMap<MemberId, Option<ClusterUid>>,
    ) -> bool {
        let known_before = self.registered.as_ref().is_some_and(|r| r.contains_key(member));
        self.live.contains_key(member) && !known_before && !members.contains_key(member)
    }

    /// Drops what belongs to another cluster than `owner`, and the stream of such a one.
    fn remove(&mut self, member: &MemberId, owner: Option<&ClusterUid>) {
        if self.awaited.get(member) != owner {
            self.awaited.remove(member);
        }
        if self.inventory.get(member).map(|report| &report.uid) != owner {
            self.inventory.remove(member);
            self.unstored.remove(member);
        } else {
            // The record of the one before is taken from the store with all under its name.
            self.unstored.insert(member.clone());
        }
        if owner.is_some() && self.live.get(member).map(|live| &live.hello.uid) == owner {
            return;
        }
        self.health.remove(member);
        self.wanted.remove(member);
        self.said.remove(member);
        if let Some(live) = self.live.remove(member) {
            live.close(Reason::MemberRemoved, "the member was removed from the hub");
        }
    }

    /// True when the stream that a message came by is not the member's any more.
    fn is_removed(&self, identity: &Identity) -> bool {
        self.live.get(&identity.member).is_none_or(|live| live.hello.uid != identity.uid)
    }

    fn remembered(&self, member: &MemberId, uid: &ClusterUid) -> Remembered {
        let held = |report: &Report| Held {
            number: report.order.number,
            digest: report.digest,
            ledger: Arc::clone(&report.ledger),
        };
        let bundle = self.wanted.get(member).map(|w| (w.digest, Arc::clone(&w.ledger)));
        Remembered { snapshot: self.inventory.of(member, uid).map(held), bundle }
    }

    fn member(&self, member: &MemberId) -> MemberNow {
        let live = self.live.get(member);
        MemberNow {
            report: self.inventory.get(member).cloned(),
            health: self.health.of(member),
            said: self.said.get(member).cloned().unwrap_or_default(),
            connected: live.is_some(),
            synced: self.inventory.get(member).is_some() && !self.awaited.contains_key(member),
            wanted: self.wanted.get(member).map(|wanted| wanted.digest),
        }
    }
}

#[cfg(test)]
#[path = "fleet_test.rs"]
mod tests;
