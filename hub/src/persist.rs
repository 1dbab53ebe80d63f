//! Writes what must survive a restart, behind the backs of those who changed it.
//!
//! Owns the loop from [`Fleet::to_store`] to the store. Never holds up a stream: what is written is a
//! little behind what is known, and a crash costs one full snapshot of a member. While the store
//! cannot be written, plans are held and the writes are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_hub_core::history::RecordKey;
use fairlead_hub_core::inventory::Report;
use fairlead_model::MemberId;
use fairlead_model::ledger::Ledger;
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::history::{self, Chronicle};
use crate::metrics::{Metrics, Outcome};
use crate::record;
use crate::store::{Store, StoreError};

/// Changes that come within that time are one write: each costs a sync of the disk.
const GATHER: Duration = Duration::from_millis(500);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(2);

/// Writes what must survive a restart.
pub struct Persist {
    /// What is known.
    pub fleet: Arc<Fleet>,
    /// Where it goes.
    pub store: Arc<dyn Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The planner's memory, newest only.
    pub memory: Arc<MemorySlot>,
    /// What was decided before.
    pub chronicle: Arc<Chronicle>,
}

/// The newest memory of the planner that is not stored yet, encoded when it is written.
#[derive(Default)]
pub struct MemorySlot(Mutex<Option<Encode>>);

type Encode = Box<dyn FnOnce() -> Vec<u8> + Send>;

impl MemorySlot {
    /// Puts a newer one in place of what waits.
    pub fn put(&self, encode: impl FnOnce() -> Vec<u8> + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(encode));
    }

    fn take(&self) -> Option<Encode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the store holds; absent when it must be read first.
#[derive(Default)]
struct Written {
    /// Of each member's snapshot.
    reports: BTreeMap<MemberId, Arc<Ledger>>,
    /// Of the history.
    history: Option<BTreeSet<RecordKey>>,
}

impl Persist {
    /// Runs until `stop`, then writes what is left.
    pub async fn run(self, stop: CancellationToken) {
        let persist = Arc::new(self);
        let mut written = Written::default();
        loop {
            tokio::select! {
                _ = persist.fleet.to_store.wait() => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => break,
            }
            written = persist.round(written).await;
            if persist.fleet.store_error().is_some() {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => persist.fleet.to_store.mark(),
                    () = stop.cancelled() => break,
                }
            }
        }
        persist.round(written).await;
    }

    async fn round(self: &Arc<Self>, written: Written) -> Written {
        let persist = Arc::clone(self);
        let round = tokio::task::spawn_blocking(move || persist.write_all(written));
        // After a panic nothing is known of what the store holds.
        round.await.unwrap_or_default()
    }

    fn write_all(&self, mut written: Written) -> Written {
        let (reports, forgotten) = self.fleet.take_unstored();
        let mut result = match forgotten.is_empty() {
            true => Ok(()),
            false => record::forget(self.store.as_ref(), &forgotten),
        };
        if result.is_ok() {
            written.reports.retain(|member, _| !forgotten.contains(member));
        } else {
            self.fleet.restore_unstored([], forgotten);
        }
        for (member, report) in reports {
            match self.write_report(&member, &report, written.reports.get(&member)) {
                Ok(()) => {
                    written.reports.insert(member, report.ledger);
                }
                Err(error) => {
                    written.reports.remove(&member);
                    self.fleet.restore_unstored([member], Default::default());
                    result = Err(error);
                }
            }
        }
        if let Some(encode) = self.memory.take()
            && let Err(error) = record::write_memory(self.store.as_ref(), &encode())
        {
            // A newer one follows with the next plan.
            result = Err(error);
        }
        match history::write(self.store.as_ref(), &self.chronicle, written.history.take()) {
            Ok(held) => written.history = Some(held),
            Err(error) => result = Err(error),
        }
        self.tell(result);
        written
    }

    fn write_report(
        &self,
        member: &MemberId,
        report: &Report,
        written: Option<&Arc<Ledger>>,
    ) -> Result<(), StoreError> {
        let store = self.store.as_ref();
        match written {
            Some(written) => record::write_report(store, member, report, written),
            None => {
                record::write_report(store, member, report, &record::read_items(store, member)?)
            }
        }
    }

    fn tell(&self, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                self.metrics.count_store(Outcome::Done);
                self.fleet.set_store_error(None);
            }
            Err(error) => {
                self.metrics.count_store(Outcome::Failed);
                let source = std::error::Error::source(&error).map(ToString::to_string);
                let source = source.unwrap_or_default();
                tracing::error!(%error, source, "plans are held until the store can be written");
                self.fleet.set_store_error(Some(format!("{error}: {source}")));
            }
        }
    }
}
