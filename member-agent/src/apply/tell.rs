//! What the apply loop says of its passes: reports to the hub, metrics, spans and log lines.
//!
//! Says a thing when it is news, and changes nothing that is applied.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_agent_core::own::exception;
use fairlead_model::bundle::Bundle;
use fairlead_model::session::{ApplyReport, EXCEPTIONS_MAX, Exception};
use fairlead_model::{ObjectId, Reason};
use fairlead_telemetry::span::TraceContext;
use tracing::info;

use super::{Applier, Memory, Pass};
use crate::observe::{self, Controllers};
use crate::spans;

impl Applier {
    /// Says what became of the plan, when that is news.
    pub(super) fn report(&self, pass: &Pass, memory: &mut Memory) {
        let mut exceptions = self.complaints(&pass.held.bundle);
        exceptions.extend(pass.partly.clone());
        exceptions.extend(pass.diff.exceptions.clone());
        let failed = memory.failed.iter().map(|(id, failed)| (id.clone(), failed.why.clone()));
        exceptions.extend(failed);
        let more = exceptions.len().saturating_sub(EXCEPTIONS_MAX);
        self.metrics.exceptions(exceptions.values().map(|exception| exception.reason));
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let mut report = ApplyReport {
            number: pass.held.bundle.number,
            complete: true,
            objects: count(pass.held.bundle.objects.len()),
            written: count(memory.written.len()),
            programmed: false,
            moving: 0,
            exceptions: exceptions.into_iter().take(EXCEPTIONS_MAX).collect(),
            exceptions_more: count(more),
            refused: None,
        };
        let first = self.applied.borrow().as_ref().map(|r| r.number) != Some(report.number);
        if first {
            let took = self.clock.now().since(pass.held.at);
            self.begin_awaiting(pass, &report, memory);
            self.metrics.applied(report.number, took, self.clock.now());
            info!(
                plan = %report.number, objects = report.objects, written = report.written,
                exceptions = report.exceptions.len(), took_ms = took,
                trace_id = pass.held.trace.map(TraceContext::trace_id), "applied plan"
            );
        }
        self.tell_programmed(memory);
        report.programmed = memory.programmed == Some(report.number);
        report.moving = count(self.moving(memory));
        self.applied.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&report);
            *held = Some(report);
            changed
        });
    }

    /// A plan that changed something is over when the gateways have taken its routes.
    fn begin_awaiting(&self, pass: &Pass, report: &ApplyReport, memory: &mut Memory) {
        if report.written == 0 {
            return;
        }
        if let Some(trace) = pass.held.trace {
            spans::record_applied(&self.tracer, trace, pass.held.at, report);
        }
        let routes: BTreeSet<ObjectId> =
            memory.written.iter().filter(|id| id.kind.ends_with("Route")).cloned().collect();
        memory.awaiting = (!routes.is_empty()).then(|| spans::Awaiting {
            number: report.number,
            trace: pass.held.trace,
            arrived: pass.held.at,
            since: self.clock.now(),
            count: routes.len(),
            routes,
        });
    }

    /// How many routes are on their way into the gateways.
    fn moving(&self, memory: &mut Memory) -> usize {
        let state = self.cache.read();
        let controllers = Controllers::of(&state);
        // A route whose gateway is nobody's is never accepted; one that says no is told as an exception.
        let waits = |id: &ObjectId| {
            let live = state.live.get(id).filter(|live| live.is_ours());
            live.is_some_and(|live| controllers.is_awaited(id, live))
        };
        memory.moving.retain(waits);
        memory.moving.len() + memory.gentle.under_way()
    }

    /// Looks whether the gateways have taken what was written.
    fn tell_programmed(&self, memory: &mut Memory) {
        let Some(awaiting) = &mut memory.awaiting else { return };
        let state = self.cache.read();
        let controllers = Controllers::of(&state);
        // A route that is gone is awaited by nobody.
        awaiting
            .routes
            .retain(|id| state.live.get(id).is_some_and(|live| !controllers.is_accepted(id, live)));
        drop(state);
        if !awaiting.routes.is_empty() || memory.gentle.under_way() > 0 {
            return;
        }
        let now = self.clock.now();
        spans::record_programmed(&self.tracer, awaiting, now);
        self.metrics.programmed(now.since(awaiting.arrived));
        memory.programmed = Some(awaiting.number);
        memory.awaiting = None;
    }

    /// Says when members were taken out of our routes or back in.
    pub(super) fn tell_overlay(&self, pass: &Pass, memory: &mut Memory) {
        let report = &pass.overlay.report;
        self.metrics.overlay(report.out.len(), report.rules);
        let probes = self.reaches.borrow().clone();
        let (before, now) = (&memory.out, &report.out);
        let told =
            spans::record_overlay(&self.tracer, before, now, &probes, report.rules, report.number);
        if let Some(context) = told {
            self.metrics.overlay_changed(before, now);
            info!(
                trace_id = context.trace_id(), out = ?now, rules = report.rules,
                "the overlay changed"
            );
            memory.out.clone_from(now);
        }
    }

    /// What gateways say against our routes.
    fn complaints(&self, bundle: &Bundle) -> BTreeMap<ObjectId, Exception> {
        let state = self.cache.read();
        let controllers = Controllers::of(&state);
        let shadows = observe::shadows(&state);
        let routes = bundle.objects.keys().filter(|id| id.kind.ends_with("Route"));
        let complaints = routes.filter_map(|id| {
            let live = state.live.get(id).filter(|live| live.is_ours())?;
            let shadow = || Some((Reason::Shadowed, shadows.over(&live.content)?));
            let (reason, message) = controllers.complaint(id, live).or_else(shadow)?;
            Some((id.clone(), exception(reason, message)))
        });
        complaints.collect()
    }
}
