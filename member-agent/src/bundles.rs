//! The bundle that counts: the hub's last one, held against what this member believes.
//!
//! Owns the one way from the hub, or from the disk, to those who act by it. A bundle counts first and is
//! kept on the disk then. Looked at again when our own CA, a pin or an admin's word changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::bundle::{Bundle, Peer};
use fairlead_model::ledger::Ledger;
use fairlead_model::pin::CaPin;
use fairlead_model::{ClusterUid, MemberId, Millis, PlanNumber};
use fairlead_proto::ledger::ledger_to_bundle;
use fairlead_telemetry::span::TraceContext;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::apply::Held;
use crate::clock::Clock;
use crate::crossing::Crossing;
use crate::disk::Disk;
use crate::pin_store::Confirmed;
use crate::pins::{Beliefs, Pins, admit};
use crate::uplink::Taken;

/// Hands the bundle that counts to those who need it.
pub(crate) struct Bundles {
    clock: Clock,
    uid: ClusterUid,
    beliefs: Beliefs,
    last: Option<Last>,
    /// What is to be kept of beliefs.
    pub(crate) pins: watch::Sender<Pins>,
    /// All of it.
    pub(crate) held: watch::Sender<Option<Arc<Held>>>,
    /// Doors to probe.
    pub(crate) peers: watch::Sender<Arc<BTreeMap<MemberId, Peer>>>,
    /// Those that routes lead to.
    pub(crate) used: watch::Sender<Arc<BTreeMap<MemberId, Peer>>>,
}

/// A bundle as the hub sent it.
struct Last {
    bundle: Bundle,
    at: Millis,
    trace: Option<TraceContext>,
}

/// What bundles are held against, as it changes.
pub(crate) struct Sources {
    pub(crate) crossing: watch::Receiver<Option<Arc<Crossing>>>,
    pub(crate) confirmed: watch::Receiver<Confirmed>,
}

impl Bundles {
    pub(crate) fn new(clock: Clock, uid: ClusterUid, pins: Pins) -> Self {
        let peers = || watch::Sender::new(Arc::default());
        let own = Some((uid.clone(), String::new()));
        Self {
            clock,
            uid,
            pins: watch::Sender::new(pins.clone()),
            beliefs: Beliefs { pins, own, ..Beliefs::default() },
            last: None,
            held: watch::Sender::new(None),
            peers: peers(),
            used: peers(),
        }
    }

    pub(crate) fn take_ledger(
        &mut self,
        number: PlanNumber,
        ledger: &Ledger,
        trace: Option<TraceContext>,
    ) {
        let (mut bundle, notes) = ledger_to_bundle(ledger);
        for note in notes {
            warn!(subject = %note.subject, reason = %note.reason, detail = %note.message, "part of a bundle left out");
        }
        bundle.number = number;
        self.take(bundle, trace);
    }

    pub(crate) fn take(&mut self, bundle: Bundle, trace: Option<TraceContext>) {
        self.last = Some(Last { bundle, at: self.clock.now(), trace });
        self.look();
    }

    /// Holds the last bundle against what is believed now.
    fn look(&mut self) {
        let Some(Last { bundle, at, trace }) = &self.last else { return };
        let admitted = admit(bundle.clone(), &self.beliefs);
        tell(&self.beliefs.pins, &admitted.pins);
        self.beliefs.pins = admitted.pins;
        self.pins.send_if_modified(|pins| {
            let changed = *pins != self.beliefs.pins;
            pins.clone_from(&self.beliefs.pins);
            changed
        });
        let bundle = admitted.bundle;
        for (tell, peers) in
            [(&self.used, bundle.used_peers()), (&self.peers, bundle.peers.clone())]
        {
            tell.send_if_modified(|held| {
                let changed = **held != peers;
                if changed {
                    *held = Arc::new(peers);
                }
                changed
            });
        }
        let held = Held { bundle, doubts: admitted.doubts, at: *at, trace: *trace };
        self.held.send_if_modified(|before| {
            let changed = before.as_deref() != Some(&held);
            if changed {
                *before = Some(Arc::new(held));
            }
            changed
        });
    }

    /// Takes what comes, for ever.
    pub(crate) async fn run(
        mut self,
        mut incoming: Option<mpsc::Receiver<Taken>>,
        mut sources: Sources,
        disk: Disk,
    ) {
        loop {
            tokio::select! {
                Some(taken) = next(&mut incoming) => {
                    let Taken { number, ledger, trace_parent } = taken;
                    self.take_ledger(number, &ledger, trace_parent.parse().ok());
                    keep(&disk, number, ledger).await;
                }
                Ok(()) = sources.crossing.changed() => {
                    let crossing = sources.crossing.borrow_and_update().clone();
                    let own = crossing.map(|own| own.ca_pem.clone()).unwrap_or_default();
                    self.beliefs.own = Some((self.uid.clone(), own));
                    self.look();
                }
                Ok(()) = sources.confirmed.changed() => {
                    self.beliefs.confirmed.clone_from(&sources.confirmed.borrow_and_update());
                    self.look();
                }
                // Whoever sends is gone, and so is the process.
                else => std::future::pending().await,
            }
        }
    }
}

async fn next(incoming: &mut Option<mpsc::Receiver<Taken>>) -> Option<Taken> {
    match incoming {
        Some(incoming) => incoming.recv().await,
        None => std::future::pending().await,
    }
}

async fn keep(disk: &Disk, number: PlanNumber, ledger: Ledger) {
    let disk = disk.clone();
    let kept = tokio::task::spawn_blocking(move || disk.keep_bundle(number, &ledger)).await;
    match kept {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "cannot keep the bundle"),
        Err(error) => warn!(%error, "cannot keep the bundle"),
    }
}

/// Says whose CA is doubted when that is news.
fn tell(before: &Pins, now: &Pins) {
    for (uid, pin) in now {
        let known = before.get(uid).map(|pin| &pin.refused);
        let CaPin { member, refused, .. } = pin;
        if !refused.is_empty() && known != Some(refused) {
            warn!(%member, cluster = %uid, shown = %refused.join(", "), "a peer's crossing CA is not believed: the one before did not sign it; the one before stays");
        }
    }
}
