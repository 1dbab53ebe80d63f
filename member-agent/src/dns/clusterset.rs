//! Keeps what is answered for `clusterset.local` as the cluster and the bundle are.
//!
//! It has sockets of its own: names and addresses of a cluster's services are nobody's business outside, and
//! the port that the world asks does not know them. Before every kind was heard of there is no zone at
//! all: that a service does not exist must be known, not assumed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::clusterset::{Clusterset, ClustersetInput, reach};
use fairlead_agent_core::dns::View;
use fairlead_agent_core::names::Resolved;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{MemberId, ObjectId};
use tokio::sync::watch;
use tracing::info;

use super::Views;
use crate::apply::Held;
use crate::cache::Cache;
use crate::observe::Controllers;

/// Changes within that time are read together.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the view.
pub struct ClustersetKeeper {
    /// This member.
    pub member: MemberId,
    /// Objects.
    pub cache: Arc<Cache>,
    /// What is exported, and our gateways.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The bundle in force.
    pub held: watch::Receiver<Option<Arc<Held>>>,
    /// What the names of our gateways stand for.
    pub resolved: watch::Receiver<Arc<Resolved>>,
    /// Where the view goes.
    pub views: Views,
    /// First serial: above that of any run before.
    pub serial: u32,
}

impl ClustersetKeeper {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut changes = self.cache.subscribe();
        let mut told: Option<Clusterset> = None;
        loop {
            changes.mark_unchanged();
            let next = self.look();
            if next.is_some() && next != told {
                self.answer(next.as_ref());
                told = next;
            }
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = self.snapshot.changed() => changed,
                changed = self.held.changed() => changed,
                changed = self.resolved.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    fn look(&mut self) -> Option<Clusterset> {
        let snapshot = self.snapshot.borrow_and_update().clone()?;
        let held = self.held.borrow_and_update().clone();
        let bundle = held.as_ref().map(|held| &held.bundle);
        let resolved = self.resolved.borrow_and_update().clone();
        let state = self.cache.read();
        let controllers = Controllers::of(&state);
        let routes = bundle.into_iter().flat_map(|bundle| bundle.objects.keys());
        let refused: BTreeSet<ObjectId> = routes
            .filter(|id| {
                let live = state.live.get(id);
                live.is_some_and(|live| controllers.complaint(id, live).is_some())
            })
            .cloned()
            .collect();
        let input = ClustersetInput {
            bundle,
            snapshot: &snapshot,
            live: &state.live,
            resolved: &resolved,
            refused: &refused,
        };
        Some(reach(&input))
    }

    fn answer(&mut self, services: Option<&Clusterset>) {
        let Some(services) = services else { return };
        let view = View::of_clusterset(services, &self.member, self.serial);
        info!(services = services.len(), serial = self.serial, "answers for clusterset.local");
        self.views.store(Arc::new(view));
        self.serial = self.serial.saturating_add(1);
    }
}

#[cfg(test)]
#[path = "clusterset_test.rs"]
mod tests;
