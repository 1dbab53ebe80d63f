//! The history of decisions, as the hub keeps it: who fills it, and its records in the store.
//!
//! Thin: what is a change, and how much is kept, is [`fairlead_hub_core::history`]. Looks at what was decided
//! last, on a loop of its own, so that no plan waits for it; rounds that follow each other faster than it
//! looks are told as one. Written by [`crate::persist`], and a part of it outside of the store by [`copy`].
//!
//! ```text
//!  history/head                     the newest revision
//!  history/rules/<n>/<route>        the rules of a route as they were from revision n on
//!  history/entry/<n>/<route>        a change
//! ```

pub mod copy;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use fairlead_hub_core::history::{Draft, Facts, History, Limits, RecordKey, Recorder};
use fairlead_planner::Planned;
use fairlead_translate::ingest::hub::Ingested;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::conductor::Current;
use crate::fleet::Fleet;
use crate::signal::Signal;
use crate::store::{Batch, Store, StoreError};

const PREFIX: &str = "history/";
const HEAD: &str = "history/head";
/// Changes of one revision that are logged.
const LOGGED_MAX: usize = 5;

/// The history, shared by those who fill, read and store it.
pub struct Chronicle {
    history: Mutex<History>,
    /// Told of every decision.
    pub decided: Signal,
    /// Told of every change that is entered.
    pub entered: Signal,
    /// Told when routes are pinned or released.
    pub pinned: Signal,
}

impl Default for Chronicle {
    fn default() -> Self {
        Self::new(History::new(Limits::default()))
    }
}

impl Chronicle {
    /// With what is known already.
    pub fn new(history: History) -> Self {
        Self {
            history: Mutex::new(history),
            decided: Signal::default(),
            entered: Signal::default(),
            pinned: Signal::default(),
        }
    }

    /// The history; hold it shortly.
    pub fn history(&self) -> MutexGuard<'_, History> {
        // A panic elsewhere leaves a history that is short of a change at worst.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills the history.
pub struct Scribe {
    /// The history.
    pub chronicle: Arc<Chronicle>,
    /// What was decided last.
    pub current: Arc<ArcSwap<Current>>,
    /// Told that there is something to store.
    pub fleet: Arc<Fleet>,
}

/// What was decided in the round that was looked at last.
type Last = Option<(Arc<Ingested>, Arc<Planned>)>;

impl Scribe {
    /// Runs for ever.
    pub async fn run(self) {
        let scribe = Arc::new(self);
        let mut carried = (Recorder::after(&scribe.chronicle.history()), None);
        loop {
            scribe.chronicle.decided.wait().await;
            let round = Arc::clone(&scribe);
            // Pictures of many routes take a while: not on a thread that serves others.
            let done = tokio::task::spawn_blocking(move || round.round(carried)).await;
            carried = match done {
                Ok(carried) => carried,
                Err(error) => {
                    tracing::error!(%error, "a round of history failed");
                    (Recorder::after(&scribe.chronicle.history()), None)
                }
            };
        }
    }

    fn round(&self, (mut recorder, last): (Recorder, Last)) -> (Recorder, Last) {
        let current = self.current.load_full();
        let Some(planned) = current.planned.as_ref().filter(|_| current.held.is_empty()) else {
            return (recorder, last);
        };
        let after = facts(&current.ingested, planned);
        let before = last.as_ref().map(|(ingested, planned)| facts(ingested, planned));
        let drafts = recorder.round(&planned.decisions, before.as_ref(), &after);
        if !drafts.is_empty() {
            let lines = lines(&drafts);
            let number = self.chronicle.history().add(clock::now(), drafts);
            tracing::info!(revision = number, changes = lines, "decided otherwise");
            self.fleet.to_store.mark();
            self.chronicle.entered.mark();
        }
        (recorder, Some((Arc::clone(&current.ingested), Arc::clone(planned))))
    }
}

fn lines(drafts: &[Draft]) -> String {
    let mut lines: Vec<String> = drafts.iter().take(LOGGED_MAX).map(Draft::line).collect();
    if drafts.len() > LOGGED_MAX {
        lines.push(format!("and {} more", drafts.len() - LOGGED_MAX));
    }
    lines.join("; ")
}

fn facts<'a>(ingested: &'a Ingested, planned: &'a Planned) -> Facts<'a> {
    Facts {
        policy: &ingested.policy,
        route_generations: ingested.routes.iter().map(|(k, v)| (k, v.generation)).collect(),
        policy_generations: ingested.policies.iter().map(|(k, v)| (k, v.generation)).collect(),
        pinned: ingested
            .routes
            .iter()
            .filter_map(|(key, verdict)| Some((key, verdict.pin.as_ref()?.at?)))
            .collect(),
        rollouts: planned
            .report
            .routes
            .iter()
            .filter_map(|(key, report)| Some((key, report.rollout.as_ref()?.1.as_str())))
            .collect(),
        states: planned.report.places.iter().map(|(id, place)| (id, place.state)).collect(),
    }
}

/// The newest revision that was stored.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Head {
    newest: u64,
}

/// Reads the history; what cannot be read is dropped and noted.
///
/// # Errors
/// When the store cannot be read.
pub fn read(store: &dyn Store, limits: Limits) -> Result<History, StoreError> {
    let mut newest = 0;
    let (mut entries, mut rules) = (Vec::new(), Vec::new());
    for (key, value) in store.list(PREFIX)? {
        let record = key.strip_prefix(PREFIX).and_then(RecordKey::parse);
        let read = match record {
            _ if key == HEAD => {
                serde_json::from_slice(&value.bytes).map(|h: Head| newest = h.newest)
            }
            Some(RecordKey::Entry(..)) => {
                serde_json::from_slice(&value.bytes).map(|entry| entries.push(entry))
            }
            Some(RecordKey::Rules(number, _)) => {
                serde_json::from_slice(&value.bytes).map(|route| rules.push((number, route)))
            }
            None => continue,
        };
        if let Err(error) = read {
            tracing::warn!(key, %error, "dropped an unreadable record");
        }
    }
    Ok(History::restore(limits, newest, entries, rules))
}

/// Records that the store holds.
///
/// # Errors
/// When the store cannot be read.
fn written(store: &dyn Store) -> Result<BTreeSet<RecordKey>, StoreError> {
    let keys = store.list(PREFIX)?.into_iter().map(|(key, _)| key);
    Ok(keys.filter_map(|key| RecordKey::parse(key.strip_prefix(PREFIX)?)).collect())
}

/// Writes what the store lacks of the history and removes what fell out of it. Gives what it holds then.
///
/// # Errors
/// When the store cannot be written; what it holds is not known then.
pub fn write(
    store: &dyn Store,
    chronicle: &Chronicle,
    held: Option<BTreeSet<RecordKey>>,
) -> Result<BTreeSet<RecordKey>, StoreError> {
    let held = match held {
        Some(held) => held,
        None => written(store)?,
    };
    let key = |record: &RecordKey| format!("{PREFIX}{record}");
    let history = chronicle.history();
    let wanted = history.records();
    if wanted == held {
        return Ok(held);
    }
    // Rules come before the changes that name them, and go after them.
    let put = wanted.difference(&held).filter_map(|r| Some((key(r), history.encode(r)?)));
    let mut put: Vec<(String, Vec<u8>)> = put.collect();
    let head = Head { newest: history.size().newest };
    drop(history);
    let head = serde_json::to_vec(&head).expect("a number is plain data");
    put.push((HEAD.to_owned(), head));
    let mut delete: Vec<String> = held.difference(&wanted).map(key).collect();
    delete.reverse();
    for part in (Batch { put, delete, ..Batch::default() }).split() {
        store.commit(part)?;
    }
    Ok(wanted)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;
    use fairlead_model::Millis;
    use fairlead_model::history::{Change, Entry, Shares};

    pub(super) fn mk_entry(number: u64) -> Entry {
        Entry {
            number,
            at: Millis(number),
            route: "HTTPRoute/shop/cart".parse().unwrap(),
            change: Change::Changed,
            causes: Vec::new(),
            rules: Vec::new(),
            moved: Vec::new(),
            shares: Shares::default(),
            pinned: None,
            policy: None,
        }
    }

    fn mk_chronicle(numbers: std::ops::Range<u64>) -> Chronicle {
        let entries = numbers.map(mk_entry).collect();
        Chronicle::new(History::restore(Limits::default(), 0, entries, Vec::new()))
    }

    #[test]
    fn a_history_reads_back_and_what_fell_out_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        let limits = Limits::default();
        assert_eq!(read(&store, limits).unwrap().size().newest, 0);
        let chronicle = mk_chronicle(1..250);
        let held = write(&store, &chronicle, None).unwrap();
        assert_eq!(read(&store, limits).unwrap().size(), chronicle.history().size());
        // Whether it is known what the store holds or not.
        for held in [Some(held), None] {
            let later = mk_chronicle(200..260);
            let now = write(&store, &later, held).unwrap();
            assert_eq!(now, later.history().records());
            assert_eq!(read(&store, limits).unwrap().size(), later.history().size());
        }
    }

    #[test]
    fn a_number_is_not_used_again_when_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        let history = History::restore(Limits::default(), 41, vec![mk_entry(41)], Vec::new());
        write(&store, &Chronicle::new(history), None).unwrap();
        store.delete(&format!("{PREFIX}{}", RecordKey::Entry(41, mk_entry(41).route))).unwrap();
        assert_eq!(read(&store, Limits::default()).unwrap().size().newest, 41);
    }

    #[test]
    fn an_unreadable_record_costs_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        write(&store, &mk_chronicle(1..3), None).unwrap();
        let key = format!("{PREFIX}entry/00000000000000000009/HTTPRoute/shop/cart");
        let put = vec![(key, b"{".to_vec()), (format!("{PREFIX}odd"), Vec::new())];
        store.commit(Batch { put, ..Batch::default() }).unwrap();
        assert_eq!(read(&store, Limits::default()).unwrap().size().entries, 2);
    }
}
