//! Taking a member's snapshot in, update by update.
//!
//! Owns the held ledger of one session and the rules of resuming. Never asks twice for the same
//! thing: a full snapshot that does not fit its own digest ends the session. Bounded by
//! [`SNAPSHOT_BYTES_MAX`] and [`SNAPSHOT_ENTRIES_MAX`].

use std::sync::Arc;

use fairlead_model::ledger::{Delta, Digest, Ledger};
use fairlead_model::session::SnapshotUpdate;
use fairlead_model::{Reason, SnapshotNumber};

use crate::session::Close;

/// Largest snapshot: 10,000 services in 100 zones fit several times.
pub const SNAPSHOT_BYTES_MAX: usize = 16 << 20;
/// Most items of a snapshot.
pub const SNAPSHOT_ENTRIES_MAX: usize = 100_000;

/// A snapshot as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub number: SnapshotNumber,
    /// Digest of the ledger.
    pub digest: Digest,
    /// Its items.
    pub ledger: Arc<Ledger>,
}

/// What to do about an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It fits.
    Taken(Held),
    /// It does not fit: ask for everything.
    AskFull,
    /// It was under way when everything was asked for.
    Ignore,
    /// Its sender cannot go on.
    Close(Close),
}

/// The snapshot side of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intake {
    held: Option<Held>,
    last: Option<SnapshotNumber>,
    full: Full,
}

/// Whether everything was asked for and has not come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    NotAsked,
    Asked,
}

impl Intake {
    /// Starts from what is held of an earlier session.
    pub fn resume(held: Option<Held>) -> Self {
        Self { held, last: None, full: Full::NotAsked }
    }

    /// What the agent may go on from.
    pub fn offer(&self) -> Option<(SnapshotNumber, Digest)> {
        self.held.as_ref().map(|held| (held.number, held.digest))
    }

    /// Takes an update in.
    pub fn update(&mut self, update: &SnapshotUpdate) -> Verdict {
        let number = update.number;
        if self.last.is_some_and(|last| number <= last) {
            return Verdict::Close(Close::new(
                Reason::OldNumber,
                format!("snapshot {number} came after {}", self.last.unwrap_or_default()),
            ));
        }
        self.last = Some(number);
        if update.delta.based && self.full == Full::Asked {
            return Verdict::Ignore;
        }
        match self.apply(&update.delta) {
            Some(ledger) => self.take(number, update.delta.digest, ledger),
            None if update.delta.based => {
                self.full = Full::Asked;
                Verdict::AskFull
            }
            // Asking again would bring the same bytes: never a loop.
            None => Verdict::Close(Close::new(
                Reason::Unreadable,
                format!("the full snapshot {number} does not fit its own digest"),
            )),
        }
    }

    fn apply(&self, delta: &Delta) -> Option<Ledger> {
        match &self.held {
            Some(held) => held.ledger.apply(delta).ok(),
            None if delta.based => None,
            None => Ledger::default().apply(delta).ok(),
        }
    }

    fn take(&mut self, number: SnapshotNumber, digest: Digest, ledger: Ledger) -> Verdict {
        let (bytes, entries) = (ledger.bytes(), ledger.entries().len());
        if bytes > SNAPSHOT_BYTES_MAX || entries > SNAPSHOT_ENTRIES_MAX {
            return Verdict::Close(Close::new(
                Reason::TooLarge,
                format!(
                    "snapshot {number} has {entries} items and {bytes} bytes; the limits are \
                     {SNAPSHOT_ENTRIES_MAX} and {SNAPSHOT_BYTES_MAX}: export fewer services"
                ),
            ));
        }
        let held = Held { number, digest, ledger: Arc::new(ledger) };
        self.held = Some(held.clone());
        self.full = Full::NotAsked;
        Verdict::Taken(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_ledger(entries: &[(&str, &str)]) -> Ledger {
        Ledger::new(entries.iter().map(|(k, v)| ((*k).into(), v.as_bytes().to_vec())).collect())
    }

    fn mk_update(sequence: u64, delta: Delta) -> SnapshotUpdate {
        SnapshotUpdate { number: SnapshotNumber { incarnation: 1, sequence }, delta }
    }

    fn broken(mut delta: Delta) -> Delta {
        delta.digest = [9; 32];
        delta
    }

    #[test]
    fn deltas_build_on_what_is_held() {
        let (one, two) = (mk_ledger(&[("a", "1")]), mk_ledger(&[("a", "1"), ("b", "2")]));
        let mut intake = Intake::resume(None);
        assert!(matches!(intake.update(&mk_update(1, one.full())), Verdict::Taken(_)));
        let Verdict::Taken(held) = intake.update(&mk_update(2, two.delta_from(&one))) else {
            panic!("the delta fits")
        };
        assert_eq!((*held.ledger).clone(), two);
        assert_eq!(intake.offer(), Some((held.number, two.digest())));
    }

    #[test]
    fn a_session_resumes_from_the_stored_snapshot() {
        let (one, two) = (mk_ledger(&[("a", "1")]), mk_ledger(&[("a", "2")]));
        let held = Held {
            number: SnapshotNumber::default(),
            digest: one.digest(),
            ledger: Arc::new(one.clone()),
        };
        let mut intake = Intake::resume(Some(held));
        assert!(matches!(intake.update(&mk_update(1, two.delta_from(&one))), Verdict::Taken(_)));
    }

    #[test]
    fn a_mismatch_asks_once_and_what_was_under_way_is_ignored() {
        let ledger = mk_ledger(&[("a", "1")]);
        let mut intake = Intake::resume(None);
        let based = ledger.delta_from(&Ledger::default());
        assert_eq!(intake.update(&mk_update(1, based.clone())), Verdict::AskFull);
        assert_eq!(intake.update(&mk_update(2, based)), Verdict::Ignore);
        assert!(matches!(intake.update(&mk_update(3, ledger.full())), Verdict::Taken(_)));
        // Asked again only after the first question was answered.
        let foreign = broken(ledger.delta_from(&ledger));
        assert_eq!(intake.update(&mk_update(4, foreign)), Verdict::AskFull);
    }

    #[test]
    fn a_full_snapshot_that_does_not_fit_ends_the_session() {
        let mut intake = Intake::resume(None);
        let verdict = intake.update(&mk_update(1, broken(mk_ledger(&[("a", "1")]).full())));
        assert!(matches!(verdict, Verdict::Close(close) if close.reason == Reason::Unreadable));
    }

    #[test]
    fn numbers_of_a_session_rise() {
        let mut intake = Intake::resume(None);
        let ledger = mk_ledger(&[("a", "1")]);
        intake.update(&mk_update(5, ledger.full()));
        let verdict = intake.update(&mk_update(5, ledger.full()));
        assert!(matches!(verdict, Verdict::Close(close) if close.reason == Reason::OldNumber));
    }

    #[test]
    fn a_snapshot_beyond_the_limits_ends_the_session() {
        let bytes = Ledger::new([("a".into(), vec![0; SNAPSHOT_BYTES_MAX])].into());
        let entries = (0..=SNAPSHOT_ENTRIES_MAX).map(|n| (n.to_string(), Vec::new()));
        for ledger in [bytes, Ledger::new(entries.collect())] {
            let verdict = Intake::resume(None).update(&mk_update(1, ledger.full()));
            assert!(matches!(verdict, Verdict::Close(close) if close.reason == Reason::TooLarge));
        }
        let last = Intake::resume(None).update(&mk_update(1, mk_ledger(&[("a", "1")]).full()));
        assert!(matches!(last, Verdict::Taken(_)), "{last:?}");
    }
}
