//! Makes the cluster hold what the plan says: one loop, level triggered.
//!
//! Woken by a new bundle, a verdict of the probes, a knock, or a change of an object, it computes all
//! that is due from what is known now (bundle, overlay, cache) and writes it, stage by stage, a few
//! at a time. Drift needs no code of its own: the difference shows. A verdict or a newer bundle
//! interrupts a long run of writes, and routes whose weights a failover changes go first.
//!
//! A write that fails is tried again with a growing wait, told in the report, and stops nothing else.

mod tell;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::diff::{Action, Diff, DiffInput, KindKey, Settled, Stage, diff_objects};
use fairlead_agent_core::field::{self, Pattern};
use fairlead_agent_core::gentle::{Change, Gentle};
use fairlead_agent_core::live::{Keep, LiveObject};
use fairlead_agent_core::names::{Resolved, fill_slices};
use fairlead_agent_core::overlay::{Overlay, OverlayInput, overlay_with};
use fairlead_agent_core::own::{Limits, exception, prepare};
use fairlead_agent_core::readiness::Counts;
use fairlead_model::bundle::Bundle;
use fairlead_model::health::ProbeReport;
use fairlead_model::session::{ApplyReport, Exception, OverlayReport};
use fairlead_model::snapshot::{Consent, Snapshot};
use fairlead_model::{Json, Millis, ObjectId, PlanNumber, Reason};
use fairlead_telemetry::span::{TraceContext, Tracer};
use fairlead_translate::ingest::member::AgentConfig;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::Client;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::alone::Belief;
use crate::api;
use crate::cache::{Cache, Read, State};
use crate::clock::Clock;
use crate::disk::KeptKnock;
use crate::metrics::Metrics;
use crate::observe::Controllers;
use crate::spans;
use crate::watch::Resources;
use crate::write::{differs, digest_of, wanted_of, what, write};

/// Writes at a time: an agent must not crowd a small API server.
const WRITES_MAX: usize = 8;
/// Changes of objects within that time are looked at together; plans and verdicts never wait.
const GATHER: Duration = Duration::from_millis(50);
/// The wait after a failed write: doubles up to the longest.
const RETRY_MIN_MS: u64 = 200;
const RETRY_MAX_MS: u64 = 30_000;
/// A definition that did not know a field is asked again after that: it may be a newer one by then.
const UNKNOWN_MS: u64 = 600_000;

/// The bundle that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// It, without what is not to be believed.
    pub bundle: Bundle,
    /// Objects that are therefore not as the hub wrote them.
    pub doubts: BTreeMap<ObjectId, Exception>,
    /// When it arrived, on the agent's clock.
    pub at: Millis,
    /// The trace of the change that it came from.
    pub trace: Option<TraceContext>,
}

/// What the loop is made of.
pub struct Applier {
    /// API server.
    pub client: Client,
    /// What is there.
    pub cache: Arc<Cache>,
    /// Time.
    pub clock: Clock,
    /// Consent.
    pub config: Arc<AgentConfig>,
    /// Our own namespace.
    pub namespace: Arc<str>,
    /// The plan.
    pub held: watch::Receiver<Option<Arc<Held>>>,
    /// Verdicts about peers.
    pub reaches: watch::Receiver<ProbeReport>,
    /// Whether they are to be believed.
    pub belief: watch::Receiver<Belief>,
    /// Services that have nothing ready.
    pub gone: watch::Receiver<Counts>,
    /// What the names of doors stand for.
    pub resolved: watch::Receiver<Arc<Resolved>>,
    /// The knock at our own door.
    pub knock: watch::Receiver<KeptKnock>,
    /// For what is exported.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What became of the plan.
    pub applied: watch::Sender<Option<ApplyReport>>,
    /// Which overlay is in force.
    pub overlay: watch::Sender<Option<OverlayReport>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub tracer: Tracer,
}

/// What the loop remembers between passes.
#[derive(Default)]
struct Memory {
    settled: BTreeMap<ObjectId, Settled>,
    failed: BTreeMap<ObjectId, Failed>,
    unknown: BTreeMap<KindKey, (Millis, BTreeSet<Pattern>)>,
    resources: Resources,
    number: PlanNumber,
    written: BTreeSet<ObjectId>,
    /// Objects that the overlay changed in the pass before: giving back is as urgent as taking.
    overlaid: BTreeSet<ObjectId>,
    /// Backends on their way into routes and out of them.
    gentle: Gentle,
    /// Members that were out in the pass before.
    out: spans::Out,
    awaiting: Option<spans::Awaiting>,
    /// Routes that were written and that gateways have not taken yet.
    moving: BTreeSet<ObjectId>,
    /// The newest plan whose routes the gateways have taken.
    programmed: Option<PlanNumber>,
}

/// A write that failed.
struct Failed {
    digest: String,
    failures: u32,
    until: Millis,
    why: Exception,
}

/// What one pass wants.
struct Pass {
    held: Arc<Held>,
    diff: Diff,
    overlay: Overlay,
    urgent: BTreeSet<ObjectId>,
    partly: BTreeMap<ObjectId, Exception>,
}

/// How the writes of a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    /// All were tried.
    Through,
    /// There is more to be known by now: look again at once.
    Again,
}

/// A write under way: what, the version before it, and what the API server answers.
type Writing = BoxFuture<'static, (Action, Option<String>, kube::Result<Option<Json>>)>;

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    /// It is done.
    Done,
    /// It is tried again later.
    Failed,
    /// It is tried again at once, in another form.
    Reshaped,
}

impl Applier {
    /// Applies for ever.
    pub async fn run(mut self) {
        let mut memory = Memory::default();
        let mut changes = self.cache.subscribe();
        loop {
            changes.mark_unchanged();
            let Some(pass) = self.prepare_pass(&mut memory) else {
                if self.wait(&mut changes, None).await.is_err() {
                    return;
                }
                continue;
            };
            let report = pass.overlay.report.clone();
            self.overlay.send_if_modified(|held| {
                let changed = held.as_ref() != Some(&report);
                *held = Some(report);
                changed
            });
            let ran = self.write_all(&pass, &mut memory).await;
            if ran == Ran::Again {
                continue;
            }
            self.tell_overlay(&pass, &mut memory);
            self.report(&pass, &mut memory);
            let failed = memory.failed.values().map(|failed| failed.until);
            let retry = failed.chain(memory.gentle.wake_at(self.clock.now())).min();
            if self.wait(&mut changes, retry).await.is_err() {
                return;
            }
        }
    }

    /// Everything that is due, from what is known now.
    fn prepare_pass(&mut self, memory: &mut Memory) -> Option<Pass> {
        let held = self.held.borrow_and_update().clone()?;
        let reaches = self.reaches.borrow_and_update().clone();
        let suspicion = self.belief.borrow_and_update().of(&reaches);
        let gone = self.gone.borrow_and_update().clone();
        let knock = self.knock.borrow_and_update().clone();
        // There is a snapshot once every kind was heard of: before that, most would look missing.
        let snapshot = self.snapshot.borrow_and_update().clone()?;
        let now = self.clock.now();
        if memory.number != held.bundle.number {
            memory.number = held.bundle.number;
            memory.written.clear();
        }
        memory.unknown.retain(|_, (since, _)| now.since(*since) < UNKNOWN_MS);
        let verdicts = reaches.iter().map(|(id, peer)| (id.clone(), peer.reach)).collect();
        let state = self.cache.read();
        let faults =
            OverlayInput { bundle: &held.bundle, reaches: &verdicts, suspicion, live: &state.live };
        let mut overlay = overlay_with(&faults, &gone);
        let overlaid: BTreeSet<ObjectId> = overlay.contents.keys().cloned().collect();
        let urgent = overlaid.union(&memory.overlaid).cloned().collect();
        let resolved = self.resolved.borrow_and_update().clone();
        fill_slices(&held.bundle, &resolved, &state.live, &mut overlay.contents);
        let (mut partly, absent) = leave_out_unknown(&held.bundle, &mut overlay, &memory.unknown);
        partly.extend(held.doubts.clone());
        move_gently(now, &held.bundle, &mut overlay, &overlaid, &state, &mut memory.gentle);
        let mut prepared = prepare(&held.bundle, &overlay.contents, &self.limits(&snapshot));
        for (id, why) in absent {
            prepared.wanted.remove(&id);
            prepared.refused.insert(id, why);
        }
        let namespaces = state.is_synced("", "Namespace").then(|| {
            let live = state.of_kind("", "Namespace").filter(|(_, live)| !live.is_terminating());
            live.map(|(id, _)| id.name.to_string()).collect()
        });
        let diff = diff_objects(&DiffInput {
            prepared: Some(&prepared),
            live: &state.live,
            kinds: &state.kinds,
            namespaces: namespaces.as_ref(),
            knock: knock.knock,
            sni_knock: knock.sni.knock,
            settled: &memory.settled,
        });
        memory.settled.retain(|id, _| prepared.wanted.contains_key(id));
        let named = |id: &ObjectId| {
            prepared.wanted.contains_key(id) || diff.actions.iter().any(|a| a.id() == id)
        };
        memory.failed.retain(|id, _| named(id));
        memory.overlaid = overlaid;
        drop(state);
        Some(Pass { held, diff, overlay, urgent, partly })
    }

    fn limits(&self, snapshot: &Snapshot) -> Limits {
        let given = snapshot.services.iter().filter(|(_, s)| s.consent == Consent::Given);
        let following = &self.config.following_kinds;
        Limits {
            namespace: self.namespace.to_string(),
            allowed: self.config.namespaces_allowed(),
            denied: self.config.denied_namespaces.clone(),
            following: following.iter().map(|f| (f.group.clone(), f.kind.clone())).collect(),
            exports: Some(given.map(|(name, _)| name.clone()).collect()),
            weak: self.config.weak_doors.clone(),
        }
    }

    /// Writes what is due, stage by stage.
    async fn write_all(&mut self, pass: &Pass, memory: &mut Memory) -> Ran {
        let now = self.clock.now();
        let due = |action: &&Action| {
            let failed = memory.failed.get(action.id());
            failed.is_none_or(|failed| failed.until <= now || failed.digest != digest_of(action))
        };
        let rank = |action: &Action| {
            let urgent =
                matches!(action, Action::Update { .. }) && pass.urgent.contains(action.id());
            if urgent { Stage::Shut } else { action.stage() }
        };
        let mut queue: Vec<Action> = pass.diff.actions.iter().filter(due).cloned().collect();
        queue.sort_by_key(rank);
        let mut queue: VecDeque<Action> = queue.into();
        let mut writing: FuturesUnordered<Writing> = FuturesUnordered::new();
        let mut at = Stage::Shut;
        let mut route_failed = memory.failed.iter().any(|(id, _)| id.kind.ends_with("Route"));
        let mut ran = Ran::Through;
        loop {
            while writing.len() < WRITES_MAX
                && let Some(next) = queue.front()
                && (rank(next) == at || writing.is_empty())
            {
                at = rank(next);
                let Some(action) = queue.pop_front() else { break };
                // What a route that could not be changed still refers to must stay.
                if at == Stage::Prune && route_failed {
                    continue;
                }
                if let Some(future) = self.start(action, memory).await {
                    writing.push(future);
                }
            }
            if writing.is_empty() && queue.is_empty() {
                return ran;
            }
            tokio::select! {
                Some((action, before, result)) = writing.next() => {
                    match self.finish(&action, before, result, memory) {
                        Wrote::Done => {}
                        Wrote::Failed => route_failed |= action.id().kind.ends_with("Route"),
                        Wrote::Reshaped => ran = Ran::Again,
                    }
                }
                () = interrupted(&mut self.reaches, &mut self.held, &mut self.belief, &mut self.gone), if ran == Ran::Through => {
                    ran = Ran::Again;
                    queue.clear();
                }
            }
        }
    }

    async fn start(&self, action: Action, memory: &mut Memory) -> Option<Writing> {
        let resource = match memory.resources.of(&self.client, action.id()).await {
            Ok(Some(resource)) => resource,
            Ok(None) => {
                self.fail(
                    &action,
                    memory,
                    Reason::KindMissing,
                    "the kind is not served".to_owned(),
                );
                return None;
            }
            Err(error) => {
                self.fail(&action, memory, Reason::ApplyRefused, api::message(&error));
                return None;
            }
        };
        let client = self.client.clone();
        let live = self.cache.read().live.get(action.id()).cloned();
        let before = live.map(|live| live.resource_version.clone());
        Some(Box::pin(async move {
            let result = write(&client, &resource, &action).await;
            (action, before, result)
        }))
    }

    fn finish(
        &self,
        action: &Action,
        before: Option<String>,
        result: kube::Result<Option<Json>>,
        memory: &mut Memory,
    ) -> Wrote {
        match result {
            Ok(answer) => {
                self.succeed(action, before, answer, memory);
                Wrote::Done
            }
            Err(error) => self.refuse(action, &error, memory),
        }
    }

    fn succeed(
        &self,
        action: &Action,
        before: Option<String>,
        answer: Option<Json>,
        memory: &mut Memory,
    ) {
        let id = action.id();
        memory.failed.remove(id);
        match (action, answer) {
            (Action::Delete { uid, reason, .. }, lives_on) => {
                info!(object = %id, %reason, "deleted");
                self.metrics.written("delete");
                memory.written.insert(id.clone());
                let lives_on = lives_on.and_then(|it| LiveObject::of(it, Keep::Whole).ok());
                match lives_on {
                    Some((id, live)) => self.cache.put(Read { id, live, counts: None }),
                    None => self.cache.remove(id, uid),
                }
            }
            (_, Some(answer)) => {
                let Ok((read, live)) = LiveObject::of(answer, Keep::Whole) else { return };
                if before.as_ref() == Some(&live.resource_version) {
                    debug!(object = %id, "already as wanted");
                } else {
                    info!(object = %id, what = what(action), differs = differs(action), "applied");
                    self.metrics.written(what(action));
                    memory.written.insert(id.clone());
                    if id.kind.ends_with("Route") {
                        memory.moving.insert(id.clone());
                    }
                }
                if let Some(wanted) = wanted_of(action) {
                    let settled = Settled {
                        digest: wanted.digest.clone(),
                        resource_version: live.resource_version.clone(),
                    };
                    memory.settled.insert(id.clone(), settled);
                }
                self.cache.put(Read { id: read, live, counts: None });
            }
            (_, None) => {}
        }
    }

    fn refuse(&self, action: &Action, error: &kube::Error, memory: &mut Memory) -> Wrote {
        let message = api::message(error);
        let unknown = field::unknown_fields(&message);
        if !unknown.is_empty() {
            let kind = KindKey::of(action.id());
            let known = memory.unknown.entry(kind).or_default();
            known.0 = self.clock.now();
            // A field that was already left out must not bring us here again.
            let before = known.1.len();
            known.1.extend(unknown);
            if known.1.len() > before {
                warn!(object = %action.id(), detail = %message, "this cluster does not know a field");
                return Wrote::Reshaped;
            }
        }
        let forced = matches!(action, Action::Update { .. } | Action::Delete { .. });
        let reason = match api::code(error) {
            Some(403) => Reason::Forbidden,
            Some(409) if !forced => Reason::NameConflict,
            Some(404) => {
                memory.resources.forget();
                Reason::ApplyRefused
            }
            _ => Reason::ApplyRefused,
        };
        self.fail(action, memory, reason, message);
        Wrote::Failed
    }

    fn fail(&self, action: &Action, memory: &mut Memory, reason: Reason, message: String) {
        let digest = digest_of(action);
        let before = memory.failed.get(action.id()).filter(|failed| failed.digest == digest);
        let failures = before.map_or(0, |failed| failed.failures);
        warn!(object = %action.id(), what = what(action), %reason, detail = %message, failures, "write failed");
        self.metrics.failed(reason);
        let wait = RETRY_MIN_MS.saturating_mul(1 << failures.min(10)).min(RETRY_MAX_MS);
        let failed = Failed {
            digest,
            failures: failures.saturating_add(1),
            until: self.clock.now().plus(wait),
            why: exception(reason, message),
        };
        memory.failed.insert(action.id().clone(), failed);
    }

    /// Waits for a reason to look again.
    async fn wait(
        &mut self,
        changes: &mut watch::Receiver<u64>,
        retry: Option<Millis>,
    ) -> Result<(), watch::error::RecvError> {
        let clock = self.clock;
        let retry = async move {
            match retry {
                Some(at) => clock.until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.held.changed() => return changed,
            changed = self.reaches.changed() => return changed,
            changed = self.belief.changed() => return changed,
            changed = self.gone.changed() => return changed,
            changed = self.knock.changed() => return changed,
            changed = self.resolved.changed() => return changed,
            changed = self.snapshot.changed() => changed?,
            changed = changes.changed() => changed?,
            () = retry => return Ok(()),
        }
        tokio::select! {
            changed = self.held.changed() => changed,
            changed = self.reaches.changed() => changed,
            changed = self.belief.changed() => changed,
            () = tokio::time::sleep(GATHER) => Ok(()),
        }
    }
}

/// Ends when something came up that cannot wait for a long run of writes.
async fn interrupted(
    reaches: &mut watch::Receiver<ProbeReport>,
    held: &mut watch::Receiver<Option<Arc<Held>>>,
    belief: &mut watch::Receiver<Belief>,
    gone: &mut watch::Receiver<Counts>,
) {
    tokio::select! {
        Ok(()) = gone.changed() => {}
        Ok(()) = reaches.changed() => {}
        Ok(()) = held.changed() => {}
        Ok(()) = belief.changed() => {}
        else => std::future::pending().await,
    }
}

/// Brings backends into routes and out of them by way of a trickle.
fn move_gently(
    now: Millis,
    bundle: &Bundle,
    overlay: &mut Overlay,
    overlaid: &BTreeSet<ObjectId>,
    state: &State,
    gentle: &mut Gentle,
) {
    let routes = |id: &ObjectId| id.kind.ends_with("Route") && bundle.objects.contains_key(id);
    gentle.retain(routes);
    let controllers = Controllers::of(state);
    for (id, object) in bundle.objects.iter().filter(|(id, _)| id.kind.ends_with("Route")) {
        let Some(live) = state.live.get(id).filter(|live| live.is_ours()) else { continue };
        let wanted = overlay.contents.get(id).unwrap_or(&object.content);
        if gentle.is_at_rest(id, wanted, live) {
            continue;
        }
        let taken = controllers.is_accepted(id, live);
        let change = Change { id, wanted, live, taken, failover: overlaid.contains(id) };
        if let Some(content) = gentle.step(now, &change) {
            overlay.contents.insert(id.clone(), content);
        }
    }
}

/// Takes rules with unknown fields out of what will be applied. Tells what is applied in part, and
/// what cannot be applied at all.
fn leave_out_unknown(
    bundle: &Bundle,
    overlay: &mut Overlay,
    unknown: &BTreeMap<KindKey, (Millis, BTreeSet<Pattern>)>,
) -> (BTreeMap<ObjectId, Exception>, BTreeMap<ObjectId, Exception>) {
    let (mut partly, mut absent) = (BTreeMap::new(), BTreeMap::new());
    if unknown.is_empty() {
        return (partly, absent);
    }
    for (id, object) in &bundle.objects {
        let Some((_, patterns)) = unknown.get(&KindKey::of(id)) else { continue };
        let content = overlay.contents.get(id).unwrap_or(&object.content);
        match field::leave_out(content, patterns) {
            (Some(_), text) if text.is_empty() => {}
            (Some(reduced), text) => {
                partly.insert(id.clone(), exception(Reason::FieldUnknown, text));
                overlay.contents.insert(id.clone(), reduced);
            }
            (None, text) => {
                absent.insert(id.clone(), exception(Reason::FieldUnknown, text));
            }
        }
    }
    (partly, absent)
}

#[cfg(test)]
#[path = "apply_test.rs"]
mod tests;
