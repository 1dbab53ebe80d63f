//! From what is known to what members should hold: the hub's one loop of decisions.
//!
//! Owns when to plan: after every change, gathered for a moment, and when the planner says that time
//! alone changes the answer. Reads everything anew each time and decides nothing itself: ingest, plan
//! and render are pure and run on a thread of their own. Never plans while there is a reason not to
//! ([`fairlead_hub_core::hold`]); members keep what they hold then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use fairlead_hub_core::hold::{HoldInput, Sight, fleet_vanished, hold};
use fairlead_hub_core::push::Wanted;
use fairlead_model::bundle::Bundle;
use fairlead_model::health::MemberState;
use fairlead_model::plan::MemberPlan;
use fairlead_model::policy::{GlobalRoute, MemberSpec, Policy, TrafficState};
use fairlead_model::{MemberId, Millis, Note, Reason, RouteKey};
use fairlead_planner::{FleetInput, Freeze, MemberInput, Memory, Planned, Settings, plan};
use fairlead_telemetry::span::Tracer;
use fairlead_translate::ingest::hub::{HubObjects, Ingested, Pin, asked_pins, ingest_hub};
use fairlead_translate::{CapabilityKeys, render};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::fleet::{Fleet, MemberNow};
use crate::history::Chronicle;
use crate::metrics::Metrics;
use crate::persist::MemorySlot;
use crate::signal::Signal;
use crate::spans;
use crate::trial::{self, Trials};
use crate::watch::{KINDS, Objects};

/// Changes that come within that time are one plan. Short, since it is a part of how long a user's
/// change takes to be live.
const GATHER: Duration = Duration::from_millis(4);

/// What the hub decided last, for statuses and views.
#[derive(Default)]
pub struct Current {
    /// What the hub's objects came to.
    pub ingested: Arc<Ingested>,
    /// The last plan; none before the first.
    pub planned: Option<Arc<Planned>>,
    /// What it was rendered to.
    pub rendered: BTreeMap<MemberId, Arc<Rendered>>,
    /// Why the hub does not plan now; empty = it does.
    pub held: Vec<Note>,
    /// Why it doubts itself and keeps what nobody edits, if it does.
    pub frozen: Option<Note>,
    /// The newest epoch of the keys that it was rendered with.
    pub keyed: Option<u32>,
}

/// A member's plan as objects.
pub struct Rendered {
    plan: Arc<MemberPlan>,
    /// The objects.
    pub bundle: Bundle,
    /// What could not be rendered.
    pub notes: Vec<Note>,
    wanted: Wanted,
}

impl Rendered {
    /// When the change was seen that this came from.
    pub fn caused_at(&self) -> Millis {
        self.wanted.caused_at
    }
}

/// The loop of decisions.
pub struct Conductor {
    /// The hub's own objects.
    pub objects: Arc<Objects>,
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// Keys of capabilities.
    pub keys: Arc<ArcSwap<CapabilityKeys>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where the decision is published.
    pub current: Arc<ArcSwap<Current>>,
    /// Told of every decision.
    pub decided: Arc<Signal>,
    /// What was decided before.
    pub chronicle: Arc<Chronicle>,
    /// Which changes are tried at one member first.
    pub trials: Trials,
    /// Where the planner's memory is kept.
    pub memory_slot: Arc<MemorySlot>,
    /// When the process started.
    pub started_at: Millis,
    /// How long to wait for members after that.
    pub grace_ms: u64,
    /// Where spans go.
    pub tracer: Tracer,
}

/// What goes from round to round.
#[derive(Default)]
struct Carried {
    memory: Memory,
    rendered: BTreeMap<MemberId, Arc<Rendered>>,
    planned: Option<Arc<Planned>>,
    wake_at: Option<Millis>,
    states: BTreeMap<MemberId, MemberState>,
    keyed: Option<u32>,
    pins: BTreeMap<RouteKey, (u64, Arc<GlobalRoute>)>,
}

/// What one decision is made of.
struct Round<'a> {
    policy: &'a Policy,
    members: &'a BTreeMap<MemberId, MemberNow>,
    freeze: Freeze,
    pinned: &'a BTreeMap<RouteKey, (u64, Arc<GlobalRoute>)>,
    caused_at: Millis,
}

impl Conductor {
    /// Runs until `stop`, starting from the memory of the process before.
    pub async fn run(self, memory: Memory, stop: CancellationToken) {
        let conductor = Arc::new(self);
        let mut carried = Carried { memory, ..Carried::default() };
        loop {
            let caused_at = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                at = conductor.objects.changed.wait() => at,
                at = conductor.fleet.changed.wait() => at,
                () = clock::sleep_until_some(carried.wake_at) => clock::now(),
            };
            tokio::time::sleep(GATHER).await;
            conductor.objects.changed.take();
            conductor.fleet.changed.take();
            let round = Arc::clone(&conductor);
            let done = tokio::task::spawn_blocking(move || round.round(carried, caused_at)).await;
            carried = match done {
                Ok(carried) => carried,
                Err(error) => {
                    // The planner never panics on any input, as its tests say; if it does, members
                    // keep what they hold and the next change is tried from an empty memory.
                    tracing::error!(%error, "a round of planning failed");
                    Carried::default()
                }
            };
        }
    }

    /// One decision, from everything that is known.
    fn round(&self, mut carried: Carried, caused_at: Millis) -> Carried {
        let started = Instant::now();
        let mut objects = self.hub_objects();
        // Out of what is carried, which the plan changes.
        let mut pinned = std::mem::take(&mut carried.pins);
        objects.pins = self.pins(&objects, &mut pinned);
        let ingested = Arc::new(ingest_hub(&objects));
        let unsynced = self.objects.unsynced();
        if !unsynced.contains("MemberCluster") {
            let owner = |(id, spec): (&MemberId, &MemberSpec)| (id.clone(), spec.uid.clone());
            self.fleet.register(&ingested.policy.members.iter().map(owner).collect());
        }
        let members = self.fleet.look();
        self.fleet.place(regions(&ingested.policy, &members));
        let hold = hold(&HoldInput {
            now: clock::now(),
            started_at: self.started_at,
            grace_ms: self.grace_ms,
            unsynced,
            awaited: self.fleet.awaited(),
            store_error: self.fleet.store_error(),
            fenced: None,
        });
        let mut frozen = None;
        if hold.is_held() {
            // Whatever is missing, nothing is planned from it.
            carried.wake_at = hold.wake_at;
        } else {
            frozen = fleet_vanished(&sights(self.fleet.sights(), &ingested.policy));
            let freeze = if frozen.is_some() { Freeze::Unedited } else { Freeze::Off };
            let (policy, pinned) = (&ingested.policy, &pinned);
            let round = Round { policy, members: &members, freeze, pinned, caused_at };
            self.plan(&mut carried, &round, started);
        }
        carried.pins = pinned;
        self.tell(&members, &hold.notes, frozen.as_ref());
        self.current.store(Arc::new(Current {
            ingested,
            planned: carried.planned.clone(),
            rendered: carried.rendered.clone(),
            held: hold.notes,
            frozen,
            keyed: carried.keyed,
        }));
        self.decided.mark();
        self.chronicle.decided.mark();
        carried
    }

    fn plan(&self, carried: &mut Carried, round: &Round<'_>, started: Instant) {
        let (members, now) = (round.members, clock::now());
        let rollout = self.trials.input(trial::Sight {
            memory: &carried.memory.rollouts,
            members,
            pinned: round.pinned.keys().cloned().collect(),
            now,
        });
        let planned = plan(&FleetInput {
            now,
            policy: Arc::new(round.policy.clone()),
            members: members.iter().map(|(id, now)| (id.clone(), member_input(now))).collect(),
            memory: std::mem::take(&mut carried.memory),
            settings: Settings { freeze: round.freeze, ..Settings::default() },
            rollout,
        });
        self.trials.watch(&planned.memory.rollouts);
        let context = self.tracer.root();
        let trace_parent = context.to_string();
        let keys = self.keys.load_full();
        if carried.keyed != keys.newest() {
            // The same plans come to other objects.
            carried.rendered.clear();
            carried.keyed = keys.newest();
        }
        let mut rendered = BTreeMap::new();
        let mut changed = Vec::new();
        for (member, plan) in &planned.plans {
            let before = carried.rendered.get(member).filter(|r| r.plan == *plan);
            let next = match before {
                Some(same) => Arc::clone(same),
                None => {
                    changed.push(member.clone());
                    Arc::new(rendered_plan(plan, &keys, round.caused_at, &trace_parent))
                }
            };
            rendered.insert(member.clone(), next);
        }
        let wanted = rendered.iter().map(|(id, r)| (id.clone(), r.wanted.clone())).collect();
        self.fleet.want(wanted);
        let took = started.elapsed();
        self.metrics.count_plan(took.as_secs_f64(), planned.report.alarms.len());
        let routes = planned.decisions.len();
        let health = members.iter().map(|(id, now)| (id.clone(), now.health.clone())).collect();
        let moved = spans::moved(&carried.states, &health);
        moved.iter().for_each(|(_, _, health)| self.metrics.count_move(health.state));
        carried.states = health.into_iter().map(|(id, health)| (id, health.state)).collect();
        if !changed.is_empty() || !moved.is_empty() {
            tracing::info!(
                trace_id = context.trace_id(),
                took_ms = took.as_millis(),
                routes,
                members = changed.len(),
                "planned"
            );
            spans::record_round(
                &self.tracer,
                &spans::Round {
                    context,
                    caused_at: round.caused_at,
                    planned_at: SystemTime::now() - took,
                    took,
                    routes,
                    changed: &changed,
                    moved: &moved,
                },
            );
        }
        carried.rendered = rendered;
        carried.memory = planned.memory.clone();
        carried.wake_at = trial::wake_at(&planned, now);
        self.keep_memory(&planned.memory);
        for alarm in new_alarms(carried.planned.as_deref(), &planned) {
            tracing::error!(subject = alarm.subject, reason = %alarm.reason, detail = alarm.message, "alarm");
        }
        carried.planned = Some(Arc::new(planned));
    }

    fn keep_memory(&self, memory: &Memory) {
        let memory = memory.clone();
        self.memory_slot.put(move || {
            serde_json::to_vec(&memory).expect("the memory is plain data with text keys")
        });
        self.fleet.to_store.mark();
    }

    fn tell(&self, members: &BTreeMap<MemberId, MemberNow>, held: &[Note], frozen: Option<&Note>) {
        let states: Vec<(&MemberId, MemberState)> =
            members.iter().map(|(id, now)| (id, now.health.state)).collect();
        let sessions = members.values().filter(|now| now.connected).count();
        self.metrics.set_members(states, sessions);
        let arrived = |(id, now): (_, &MemberNow)| Some((id, now.report.as_ref()?.received_at));
        self.metrics.set_snapshots(members.iter().filter_map(arrived));
        self.metrics.set_held(held.iter().chain(frozen));
        let before = self.current.load();
        if before.held != held {
            match held {
                [] => tracing::info!("planning"),
                notes => tracing::warn!(why = %listed(notes), "not planning"),
            }
        }
        match (&before.frozen, frozen) {
            (None, Some(note)) => tracing::error!(why = %note, "frozen: too much vanished at once"),
            (Some(_), None) => tracing::info!("not frozen any more"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// What routes are pinned to. One that asks for what cannot be had stays as it is: at what it was pinned
    /// to before, or as it is written.
    fn pins(
        &self,
        objects: &HubObjects,
        before: &mut BTreeMap<RouteKey, (u64, Arc<GlobalRoute>)>,
    ) -> BTreeMap<RouteKey, Pin> {
        let asked = asked_pins(objects);
        before.retain(|key, _| asked.contains_key(key));
        let is_synced = self.objects.unsynced().is_empty();
        let mut history = self.chronicle.history();
        let mut pins = BTreeMap::new();
        for (key, number) in asked {
            let found =
                number.map_err(|what| (Reason::UnsupportedValue, what)).and_then(|number| {
                    let rules = history.rules_of(&key, number);
                    history.rise_above(number);
                    let missing = rules.map_err(|missing| (missing.reason(), missing.to_string()));
                    missing.map(|rules| (number, rules))
                });
            let pin = match found {
                Ok(at) => {
                    // The very same value again is no change.
                    if before.get(&key).is_none_or(|before| before.0 != at.0) {
                        before.insert(key.clone(), at);
                    }
                    Pin { at: before.get(&key).cloned(), fault: None }
                }
                Err(fault) => Pin { at: before.get(&key).cloned(), fault: Some(fault) },
            };
            pins.insert(key, pin);
        }
        let in_force = before.iter().map(|(key, (number, _))| (key.clone(), *number));
        // Pins of routes that are not read yet are not gone.
        if is_synced && history.keep_pinned(in_force) {
            self.chronicle.pinned.mark();
        }
        pins
    }

    fn hub_objects(&self) -> HubObjects {
        let mut objects = HubObjects::default();
        for kind in &KINDS {
            for object in self.objects.of(kind.name).values() {
                objects.insert(object.as_ref().clone());
            }
        }
        objects
    }
}

fn rendered_plan(
    plan: &Arc<MemberPlan>,
    keys: &CapabilityKeys,
    caused_at: Millis,
    trace_parent: &str,
) -> Rendered {
    let (bundle, notes) = render(plan, keys);
    let ledger = fairlead_proto::ledger::bundle_to_ledger(&bundle);
    let wanted = Wanted {
        digest: ledger.digest(),
        ledger: Arc::new(ledger),
        caused_at,
        trace_parent: trace_parent.to_owned(),
    };
    Rendered { plan: Arc::clone(plan), bundle, notes, wanted }
}

/// Where members are: as the hub says, else as they say themselves.
fn regions(
    policy: &Policy,
    members: &BTreeMap<MemberId, MemberNow>,
) -> BTreeMap<MemberId, Option<String>> {
    let said = |id: &MemberId| members.get(id)?.report.as_ref()?.snapshot.cluster.region.clone();
    let place = |(id, spec): (&MemberId, &MemberSpec)| {
        (id.clone(), spec.region.clone().or_else(|| said(id)))
    };
    policy.members.iter().map(place).collect()
}

/// Who is drained is not missed: a person took its traffic away before.
fn sights(fleet: BTreeMap<MemberId, Sight>, policy: &Policy) -> BTreeMap<MemberId, Sight> {
    let excused = |id: &MemberId| {
        policy.members.get(id).is_none_or(|spec| spec.traffic == TrafficState::Draining)
    };
    let sight = |(id, sight): (MemberId, Sight)| match sight {
        Sight::Lost { .. } if excused(&id) => (id, Sight::Excused),
        Sight::Seen | Sight::Lost { .. } | Sight::Excused => (id, sight),
    };
    fleet.into_iter().map(sight).collect()
}

fn member_input(now: &MemberNow) -> MemberInput {
    let report = now.report.as_ref();
    MemberInput {
        snapshot: report.map(|report| Arc::clone(&report.snapshot)),
        received_at: report.map(|report| report.received_at).unwrap_or_default(),
        health: now.health.clone(),
    }
}

/// Alarms that the plan before did not raise: each is logged once, not with every plan.
fn new_alarms<'a>(
    before: Option<&'a Planned>,
    now: &'a Planned,
) -> impl Iterator<Item = &'a Note> + 'a {
    let known = move |note: &Note| {
        before.is_some_and(|before| {
            let same = |a: &Note| a.subject == note.subject && a.reason == note.reason;
            before.report.alarms.iter().any(same)
        })
    };
    now.report.alarms.iter().filter(move |note| !known(note))
}

fn listed(notes: &[Note]) -> String {
    notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "conductor_test.rs"]
mod tests;
