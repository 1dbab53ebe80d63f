//! The newest accepted snapshot of every member.
//!
//! Owns fencing: a report of an older session, or an older report of the same one, never replaces a
//! newer. Never decodes anything. A report that does not count is an error for its sender only.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{ClusterUid, MemberId, Millis, Note, SnapshotNumber};

/// What orders reports of one member: first the session, then the agent's own number.
///
/// The epoch comes first because an agent that lost its memory may start with a lower incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ReportOrder {
    /// Epoch of the session that took it.
    pub epoch: u64,
    /// The agent's number.
    pub number: SnapshotNumber,
}

/// An accepted snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The cluster that reported.
    pub uid: ClusterUid,
    /// Its place in the order of reports.
    pub order: ReportOrder,
    /// As it arrived.
    pub ledger: Arc<Ledger>,
    /// Digest of the ledger.
    pub digest: Digest,
    /// What it says.
    pub snapshot: Arc<Snapshot>,
    /// Items that could not be read.
    pub notes: Vec<Note>,
    /// When it arrived, or when its sender last said that it still holds.
    pub received_at: Millis,
}

/// The report is older than the one that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a newer snapshot of the member is held already")]
pub struct Fenced;

/// The newest accepted snapshot of every member.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    members: BTreeMap<MemberId, Report>,
}

impl Inventory {
    /// Takes a report in.
    ///
    /// # Errors
    /// [`Fenced`] when a newer one of the same cluster is held; nothing changes then.
    pub fn put(&mut self, member: MemberId, report: Report) -> Result<(), Fenced> {
        match self.members.get(&member) {
            // A name that was given to another cluster inherits nothing.
            Some(held) if held.uid == report.uid && held.order > report.order => Err(Fenced),
            _ => {
                self.members.insert(member, report);
                Ok(())
            }
        }
    }

    /// What is held of a member, if it is of this cluster.
    pub fn of(&self, member: &MemberId, uid: &ClusterUid) -> Option<&Report> {
        self.members.get(member).filter(|report| report.uid == *uid)
    }

    /// What is held of a member.
    pub fn get(&self, member: &MemberId) -> Option<&Report> {
        self.members.get(member)
    }

    /// The member said that what is held is still true.
    pub fn confirm(&mut self, member: &MemberId, now: Millis) {
        if let Some(report) = self.members.get_mut(member) {
            report.received_at = report.received_at.max(now);
        }
    }

    /// Forgets a member, after it was removed from the hub.
    pub fn remove(&mut self, member: &MemberId) -> Option<Report> {
        self.members.remove(member)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&MemberId, &Report)> {
        self.members.iter()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_report(uid: &str, epoch: u64, sequence: u64) -> Report {
        let ledger = Ledger::default();
        Report {
            uid: ClusterUid::new(uid).unwrap(),
            order: ReportOrder { epoch, number: SnapshotNumber { incarnation: 1, sequence } },
            digest: ledger.digest(),
            ledger: Arc::new(ledger),
            snapshot: Arc::default(),
            notes: Vec::new(),
            received_at: Millis(epoch * 100 + sequence),
        }
    }

    fn east() -> MemberId {
        MemberId::new("east").unwrap()
    }

    #[test]
    fn an_older_report_is_fenced_and_a_newer_one_counts() {
        // (held epoch, held sequence, new epoch, new sequence, taken)
        let rows = [
            (1, 5, 1, 6, true),
            (1, 5, 1, 4, false),
            (1, 5, 2, 1, true),
            (2, 1, 1, 9, false),
            (2, 1, 2, 1, true),
        ];
        for (epoch, sequence, new_epoch, new_sequence, taken) in rows {
            let mut inventory = Inventory::default();
            inventory.put(east(), mk_report("u1", epoch, sequence)).unwrap();
            let new = mk_report("u1", new_epoch, new_sequence);
            assert_eq!(inventory.put(east(), new.clone()).is_ok(), taken);
            let held = inventory.get(&east()).unwrap().order;
            assert_eq!(held == new.order, taken, "{new:?}");
        }
    }

    #[test]
    fn a_name_given_to_another_cluster_inherits_nothing() {
        let mut inventory = Inventory::default();
        inventory.put(east(), mk_report("u1", 9, 9)).unwrap();
        inventory.put(east(), mk_report("u2", 1, 1)).unwrap();
        assert!(inventory.of(&east(), &ClusterUid::new("u1").unwrap()).is_none());
        assert!(inventory.of(&east(), &ClusterUid::new("u2").unwrap()).is_some());
    }

    #[test]
    fn confirming_makes_a_report_younger_and_never_older() {
        let mut inventory = Inventory::default();
        inventory.put(east(), mk_report("u1", 1, 1)).unwrap();
        inventory.confirm(&east(), Millis(500));
        inventory.confirm(&east(), Millis(2));
        assert_eq!(inventory.get(&east()).unwrap().received_at, Millis(500));
    }
}
