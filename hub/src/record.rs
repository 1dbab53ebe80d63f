//! What the hub keeps in its store, and under which keys.
//!
//! Owns the keys and the encoding. A record that cannot be read is dropped and noted: it costs one
//! full snapshot or one state, never the start of the hub.
//!
//! ```text
//!  hub                      {id, epoch}: this store's name and the last process epoch
//!  epoch/<member>           the last epoch of a session
//!  member/<member>          uid, order, age and digest of the snapshot: the member was connected once
//!  item/<member>/<key>      one entry of its snapshot
//!  planner/head             which pieces the planner's memory is in
//!  planner/piece/<n>/<i>    a piece of its n-th writing
//! ```
//!
//! What does not fit into one batch is written in several, and what makes it count, with a digest, in the
//! last one: after a crash in between, the whole is absent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_hub_core::inventory::{Report, ReportOrder};
use fairlead_hub_core::numbering::epoch_above;
use fairlead_model::ledger::Ledger;
use fairlead_model::{ClusterUid, MemberId, Millis, SnapshotNumber};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::store::{Batch, FencedStore, Outcome, Store, StoreError};

const HUB: &str = "hub";
const MEMORY: &str = "planner/head";
const MEMORY_PIECES: &str = "planner/piece/";
/// Bytes of a piece: four fit into a batch.
const PIECE_BYTES: usize = 256 << 10;
/// Tries of a compare-and-put: there is one writer, so more than one is a restart racing with itself.
const TRIES_MAX: usize = 5;

/// This store's name and the last process epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HubRecord {
    /// Random, made with the store: tells this hub from another one with another store.
    pub id: String,
    /// Epoch of the last process.
    pub epoch: u64,
}

/// What is remembered of a member besides its snapshot's items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemberRecord {
    uid: ClusterUid,
    epoch: u64,
    number: SnapshotNumber,
    received_at: Millis,
    /// False when it was connected but never reported.
    reported: bool,
    /// Of all items, hex; absent: written by a version that did not say.
    #[serde(default)]
    digest: String,
}

/// Which pieces the planner's memory is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemoryHead {
    /// Tells its pieces from those of another writing.
    writing: u64,
    pieces: usize,
    digest: String,
}

/// A member as the store remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its cluster.
    pub uid: ClusterUid,
    /// Its last snapshot, if it ever sent one.
    pub report: Option<Report>,
}

/// Why a number could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else writes the same store.
    #[error("the store is written by another process")]
    Contended,
    /// Another process has the store.
    #[error("the store has epoch {stored}, above this process's {epoch}")]
    Overtaken {
        /// In the store.
        stored: u64,
        /// Ours.
        epoch: u64,
    },
    /// There is no higher number.
    #[error("no epoch above {0} exists; the agent's state is not to be trusted")]
    Exhausted(u64),
}

/// Reads a record; one that cannot be read counts as absent.
fn read<T: for<'de> Deserialize<'de>>(key: &str, bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::warn!(key, %error, "dropped an unreadable record"))
        .ok()
}

fn write<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain data with text keys")
}

/// Reads this store's own record, and its revision; an empty one at 0 for a new store.
///
/// # Errors
/// When the store cannot be read.
pub fn read_hub(store: &dyn Store) -> Result<(HubRecord, u64), StoreError> {
    let Some(value) = store.get(HUB)? else { return Ok((HubRecord::default(), 0)) };
    Ok((read(HUB, &value.bytes).unwrap_or_default(), value.revision))
}

/// Writes this store's own record, if it still is at this revision; its new revision.
///
/// # Errors
/// When the store cannot be written, or somebody else wrote it: [`RecordError::Contended`].
fn write_hub(store: &dyn Store, record: &HubRecord, revision: u64) -> Result<u64, RecordError> {
    match store.compare_and_put(HUB, revision, write(record))? {
        Outcome::Written(at) => Ok(at),
        Outcome::Conflict => Err(RecordError::Contended),
    }
}

/// The store's name, made when it has none.
///
/// # Errors
/// When the store fails.
pub fn ensure_id(store: &dyn Store) -> Result<String, RecordError> {
    for _ in 0..TRIES_MAX {
        let (mut record, revision) = read_hub(store)?;
        if !record.id.is_empty() {
            return Ok(record.id);
        }
        record.id = format!("fairlead-hub-{:016x}", rand::random::<u64>());
        match write_hub(store, &record, revision) {
            // Another hub was faster, or this one was and the answer got lost.
            Ok(_) | Err(RecordError::Contended) => {}
            Err(error) => return Err(error),
        }
    }
    Err(RecordError::Contended)
}

/// Makes the store this process's own, whose epoch is above all before; gives what is known of members.
///
/// # Errors
/// When the store fails, or another process took it over with a higher epoch.
pub fn take_over(
    store: &FencedStore,
    epoch: u64,
) -> Result<BTreeMap<MemberId, Stored>, RecordError> {
    for _ in 0..TRIES_MAX {
        let (mut record, revision) = read_hub(store)?;
        if record.epoch > epoch {
            return Err(RecordError::Overtaken { stored: record.epoch, epoch });
        }
        // The Lease gives an epoch to one process: what has it is ours, its answer was lost.
        if record.epoch == epoch {
            store.fence(HUB, revision);
            return Ok(read_members(store)?);
        }
        record.epoch = epoch;
        match write_hub(store, &record, revision) {
            Ok(_) | Err(RecordError::Contended) => {}
            Err(error) => return Err(error),
        }
    }
    Err(RecordError::Contended)
}

/// Takes an epoch for a session of a member: above what is stored and above `seen`.
///
/// # Errors
/// When the store fails or no higher number exists.
pub fn take_epoch(store: &dyn Store, member: &MemberId, seen: &[u64]) -> Result<u64, RecordError> {
    let key = format!("epoch/{member}");
    for _ in 0..TRIES_MAX {
        let held = store.get(&key)?;
        let revision = held.as_ref().map_or(0, |value| value.revision);
        let stored: u64 = held.and_then(|value| read(&key, &value.bytes)).unwrap_or(0);
        let seen = seen.iter().copied().chain([stored]);
        let epoch = epoch_above(seen).ok_or(RecordError::Exhausted(u64::MAX))?;
        match store.compare_and_put(&key, revision, write(&epoch))? {
            Outcome::Written(_) => return Ok(epoch),
            Outcome::Conflict => {}
        }
    }
    Err(RecordError::Contended)
}

/// Remembers that a member was connected, before it ever reported.
///
/// # Errors
/// When the store cannot be written.
pub fn write_connected(
    store: &dyn Store,
    member: &MemberId,
    uid: &ClusterUid,
    now: Millis,
) -> Result<(), StoreError> {
    let key = format!("member/{member}");
    let known: Option<MemberRecord> = store.get(&key)?.and_then(|value| read(&key, &value.bytes));
    if known.is_some_and(|known| known.uid == *uid) {
        return Ok(());
    }
    let record = MemberRecord {
        uid: uid.clone(),
        epoch: 0,
        number: SnapshotNumber::default(),
        received_at: now,
        reported: false,
        digest: String::new(),
    };
    let put = vec![(key, write(&record))];
    // Whatever another cluster of that name reported is not this one's.
    let items = store.list(&format!("item/{member}/"))?;
    let delete = items.into_iter().map(|(key, _)| key).collect();
    commit_all(store, Batch { put, delete, ..Batch::default() })
}

/// Writes a batch of any size; what makes it count is its last put.
fn commit_all(store: &dyn Store, batch: Batch) -> Result<(), StoreError> {
    batch.split().into_iter().try_for_each(|part| store.commit(part).map(|_| ()))
}

/// Writes what turns the stored snapshot of a member (`written`) into this report.
///
/// # Errors
/// When the store cannot be written. What it holds of the member is then not known.
pub fn write_report(
    store: &dyn Store,
    member: &MemberId,
    report: &Report,
    written: &Ledger,
) -> Result<(), StoreError> {
    commit_all(store, report_batch(member, report, written))
}

fn report_batch(member: &MemberId, report: &Report, written: &Ledger) -> Batch {
    let delta = report.ledger.delta_from(written);
    let item = |key: &str| format!("item/{member}/{key}");
    let head = MemberRecord {
        uid: report.uid.clone(),
        epoch: report.order.epoch,
        number: report.order.number,
        received_at: report.received_at,
        reported: true,
        digest: hex(&report.digest),
    };
    let mut put: Vec<_> = delta.put.into_iter().map(|(key, value)| (item(&key), value)).collect();
    put.push((format!("member/{member}"), write(&head)));
    let delete = delta.delete.iter().map(|key| item(key)).collect();
    Batch { put, delete, ..Batch::default() }
}

/// Forgets members that are not registered any more; their epochs stay, so that a reused name never
/// gets an old number.
///
/// # Errors
/// When the store cannot be written.
pub fn forget(store: &dyn Store, members: &BTreeSet<MemberId>) -> Result<(), StoreError> {
    for member in members {
        let items = store.list(&format!("item/{member}/"))?;
        let mut delete: Vec<String> = items.into_iter().map(|(key, _)| key).collect();
        // Last: while it is there, the rest is found again.
        delete.push(format!("member/{member}"));
        commit_all(store, Batch { delete, ..Batch::default() })?;
    }
    Ok(())
}

/// Reads all members back.
///
/// # Errors
/// When the store cannot be read.
pub fn read_members(store: &dyn Store) -> Result<BTreeMap<MemberId, Stored>, StoreError> {
    let mut members = BTreeMap::new();
    for (key, value) in store.list("member/")? {
        let Some(member) = key.strip_prefix("member/").and_then(|id| MemberId::new(id).ok()) else {
            tracing::warn!(key, "dropped a record of no member");
            continue;
        };
        let Some(record) = read::<MemberRecord>(&key, &value.bytes) else { continue };
        let report = match record.reported {
            true => read_report(store, &member, &record)?,
            false => None,
        };
        members.insert(member, Stored { uid: record.uid, report });
    }
    Ok(members)
}

/// The stored items of a member's snapshot.
///
/// # Errors
/// When the store cannot be read.
pub fn read_items(store: &dyn Store, member: &MemberId) -> Result<Ledger, StoreError> {
    let prefix = format!("item/{member}/");
    let entry = |(key, value): (String, crate::store::Value)| {
        key.strip_prefix(&prefix).map(|key| (key.to_owned(), value.bytes))
    };
    Ok(Ledger::new(store.list(&prefix)?.into_iter().filter_map(entry).collect()))
}

/// None when the items are not those of the head: the member sends them again.
fn read_report(
    store: &dyn Store,
    member: &MemberId,
    record: &MemberRecord,
) -> Result<Option<Report>, StoreError> {
    let ledger = read_items(store, member)?;
    let digest = ledger.digest();
    if !record.digest.is_empty() && record.digest != hex(&digest) {
        tracing::warn!(%member, "dropped a stored snapshot that was written in part");
        return Ok(None);
    }
    let (snapshot, notes) = crate::vet::snapshot_of(&record.uid, &ledger);
    Ok(Some(Report {
        uid: record.uid.clone(),
        order: ReportOrder { epoch: record.epoch, number: record.number },
        digest,
        ledger: Arc::new(ledger),
        snapshot: Arc::new(snapshot),
        notes,
        received_at: record.received_at,
    }))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads the planner's memory; the default when there is none.
///
/// # Errors
/// When the store cannot be read.
pub fn read_memory<T: for<'de> Deserialize<'de> + Default>(
    store: &dyn Store,
) -> Result<T, StoreError> {
    let Some(head) = store.get(MEMORY)? else { return Ok(T::default()) };
    let Some(head) = read::<MemoryHead>(MEMORY, &head.bytes) else { return Ok(T::default()) };
    let pieces = store.list(&pieces_of(head.writing))?;
    let bytes = pieces.into_iter().take(head.pieces).flat_map(|(_, value)| value.bytes);
    let bytes: Vec<u8> = bytes.collect();
    if hex(&Sha256::digest(&bytes)) != head.digest {
        tracing::warn!("dropped a memory of the planner that was written in part");
        return Ok(T::default());
    }
    Ok(read(MEMORY, &bytes).unwrap_or_default())
}

/// Writes the planner's memory.
///
/// # Errors
/// When the store cannot be written; the one before stays.
pub fn write_memory(store: &dyn Store, bytes: &[u8]) -> Result<(), StoreError> {
    let before = store.get(MEMORY)?.and_then(|v| read::<MemoryHead>(MEMORY, &v.bytes));
    let writing = before.as_ref().map_or(0, |head| head.writing.wrapping_add(1));
    let piece =
        |(n, bytes): (usize, &[u8])| (format!("{}{n:06}", pieces_of(writing)), bytes.to_vec());
    let pieces: Vec<_> = bytes.chunks(PIECE_BYTES).enumerate().map(piece).collect();
    let digest = hex(&Sha256::digest(bytes));
    let head = MemoryHead { writing, pieces: pieces.len(), digest };
    // Of the writing before, and what a crash left of this one.
    let mut old: Vec<String> = store.list(MEMORY_PIECES)?.into_iter().map(|(key, _)| key).collect();
    old.retain(|key| pieces.iter().all(|(piece, _)| piece != key));
    let head = (MEMORY.to_owned(), write(&head));
    let mut whole = Batch { put: pieces, delete: old, ..Batch::default() };
    if whole.check().is_err() {
        // The old ones count until the head names the new ones.
        commit_all(store, Batch { put: std::mem::take(&mut whole.put), ..Batch::default() })?;
        store.commit(Batch { put: vec![head], ..Batch::default() })?;
        return commit_all(store, whole);
    }
    whole.put.push(head);
    commit_all(store, whole)
}

/// Keys of the pieces of the n-th writing.
fn pieces_of(writing: u64) -> String {
    format!("{MEMORY_PIECES}{writing:020}/")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;
    use fairlead_model::snapshot::{ClusterFacts, Snapshot};

    fn east() -> MemberId {
        MemberId::new("east").unwrap()
    }

    fn uid(text: &str) -> ClusterUid {
        ClusterUid::new(text).unwrap()
    }

    fn mk_report(namespaces: &[&str]) -> Report {
        let snapshot = Snapshot {
            cluster: ClusterFacts { uid: Some(uid("u1")), ..ClusterFacts::default() },
            namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
            ..Snapshot::default()
        };
        let ledger = fairlead_proto::ledger::snapshot_to_ledger(&snapshot);
        Report {
            uid: uid("u1"),
            order: ReportOrder { epoch: 3, number: SnapshotNumber { incarnation: 7, sequence: 9 } },
            digest: ledger.digest(),
            ledger: Arc::new(ledger),
            snapshot: Arc::new(snapshot),
            notes: Vec::new(),
            received_at: Millis(5),
        }
    }

    fn mk_store() -> (tempfile::TempDir, EmbeddedStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn epochs_rise_above_all_that_was_seen() {
        let (_dir, store) = mk_store();
        assert_eq!(take_epoch(&store, &east(), &[0, 4]).unwrap(), 5);
        assert_eq!(take_epoch(&store, &east(), &[0, 0]).unwrap(), 6);
        let other = MemberId::new("west").unwrap();
        assert_eq!(take_epoch(&store, &other, &[0, 0]).unwrap(), 1);
        assert!(matches!(take_epoch(&store, &other, &[u64::MAX]), Err(RecordError::Exhausted(_))));
    }

    #[test]
    fn a_report_reads_back_also_after_a_change() {
        let (_dir, store) = mk_store();
        let (first, second) = (mk_report(&["a", "b"]), mk_report(&["b"]));
        write_report(&store, &east(), &first, &Ledger::default()).unwrap();
        write_report(&store, &east(), &second, &first.ledger).unwrap();
        let members = read_members(&store).unwrap();
        assert_eq!(members[&east()], Stored { uid: uid("u1"), report: Some(second) });
    }

    #[test]
    fn an_unchanged_report_writes_its_head_only() {
        let report = mk_report(&["a"]);
        let batch = report_batch(&east(), &report, &report.ledger);
        assert_eq!((batch.put.len(), batch.delete.len()), (1, 0));
    }

    #[test]
    fn a_reused_name_inherits_no_items() {
        let (_dir, store) = mk_store();
        write_report(&store, &east(), &mk_report(&["a"]), &Ledger::default()).unwrap();
        write_connected(&store, &east(), &uid("u1"), Millis(1)).unwrap();
        assert!(read_members(&store).unwrap()[&east()].report.is_some());
        write_connected(&store, &east(), &uid("u2"), Millis(1)).unwrap();
        let stored = read_members(&store).unwrap().remove(&east()).unwrap();
        assert_eq!(stored, Stored { uid: uid("u2"), report: None });
    }

    #[test]
    fn a_forgotten_member_leaves_only_its_epoch() {
        let (_dir, store) = mk_store();
        take_epoch(&store, &east(), &[]).unwrap();
        write_report(&store, &east(), &mk_report(&["a"]), &Ledger::default()).unwrap();
        forget(&store, &[east()].into()).unwrap();
        assert!(read_members(&store).unwrap().is_empty());
        assert_eq!(store.list("item/").unwrap(), []);
        assert_eq!(take_epoch(&store, &east(), &[]).unwrap(), 2);
    }

    #[test]
    fn an_unreadable_record_costs_itself_only() {
        let (_dir, store) = mk_store();
        write_report(&store, &east(), &mk_report(&["a"]), &Ledger::default()).unwrap();
        let put = vec![
            ("member/west".to_owned(), b"{".to_vec()),
            ("member/B@d".to_owned(), b"{}".to_vec()),
        ];
        store.commit(Batch { put, ..Batch::default() }).unwrap();
        assert_eq!(read_members(&store).unwrap().len(), 1);
    }

    #[test]
    fn a_report_that_was_written_in_part_is_asked_for_again() {
        let (_dir, store) = mk_store();
        // Whatever items say: what counts is how many there are.
        let items = (0..250).map(|n| (format!("odd/{n}"), vec![0]));
        let ledger = Ledger::new(items.collect());
        let (snapshot, notes) = fairlead_proto::ledger::ledger_to_snapshot(&ledger);
        let report = Report {
            digest: ledger.digest(),
            ledger: Arc::new(ledger),
            snapshot: Arc::new(snapshot),
            notes,
            ..mk_report(&[])
        };
        let mut parts = report_batch(&east(), &report, &Ledger::default()).split();
        assert!(parts.len() > 2, "{}", parts.len());
        let last = parts.pop().unwrap();
        write_report(&store, &east(), &mk_report(&["old"]), &Ledger::default()).unwrap();
        for part in parts {
            store.commit(part).unwrap();
            assert_eq!(read_members(&store).unwrap()[&east()].report, None);
        }
        store.commit(last).unwrap();
        // What the crash left of the one before is still there: only a full writing makes it whole.
        let written = read_items(&store, &east()).unwrap();
        write_report(&store, &east(), &report, &written).unwrap();
        assert_eq!(read_members(&store).unwrap()[&east()].report, Some(report));
    }

    #[test]
    fn a_memory_of_any_size_reads_back() {
        let (_dir, store) = mk_store();
        assert_eq!(read_memory::<String>(&store).unwrap(), "");
        for size in [0, 10, PIECE_BYTES, 5 << 20, 20, 3 << 20] {
            let memory = "x".repeat(size);
            write_memory(&store, &write(&memory)).unwrap();
            assert!(read_memory::<String>(&store).unwrap() == memory, "{size}");
            let pieces = store.list(MEMORY_PIECES).unwrap().len();
            assert_eq!(pieces, (size + 2).div_ceil(PIECE_BYTES), "pieces of {size}");
        }
    }

    #[test]
    fn a_memory_that_was_written_in_part_leaves_the_one_before() {
        let (_dir, store) = mk_store();
        write_memory(&store, &write(&"before")).unwrap();
        let stray = (format!("{}000000", pieces_of(1)), b"half".to_vec());
        store.commit(Batch { put: vec![stray], ..Batch::default() }).unwrap();
        assert_eq!(read_memory::<String>(&store).unwrap(), "before");
        write_memory(&store, &write(&"after")).unwrap();
        assert_eq!(read_memory::<String>(&store).unwrap(), "after");
        assert_eq!(store.list(MEMORY_PIECES).unwrap().len(), 1);
    }
}
