//! A keyed map of opaque values that two processes keep equal by deltas.
//!
//! Snapshots (agent → hub) and bundles (hub → agent) travel as ledgers: a delta names what it is
//! based on and the digest of the result. The digest is over the bytes as the sender wrote them, so
//! peers of different versions agree on it. A digest that does not fit costs one full transfer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256 over the sorted entries of a ledger.
pub type Digest = [u8; 32];

/// Keys and values, and nothing about what they mean.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(BTreeMap<String, Vec<u8>>);

/// What turns one ledger into another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// False: `put` is everything there is. True: `put` and `delete` change the base.
    pub based: bool,
    /// Entries to set.
    pub put: BTreeMap<String, Vec<u8>>,
    /// Keys to remove.
    pub delete: Vec<String>,
    /// Digest of the result.
    pub digest: Digest,
}

/// The result of a delta is not what its sender holds: ask for everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger does not fit its digest")]
pub struct DigestMismatch;

impl Ledger {
    /// A ledger of these entries.
    pub fn new(entries: BTreeMap<String, Vec<u8>>) -> Self {
        Self(entries)
    }

    /// The entries.
    pub fn entries(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.0
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// SHA-256 over the sorted entries, each with its lengths, so that no two ledgers run together.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for (key, value) in &self.0 {
            hash.update((key.len() as u64).to_be_bytes());
            hash.update(key);
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value);
        }
        hash.finalize().into()
    }

    /// Everything, as a delta based on nothing.
    pub fn full(&self) -> Delta {
        Delta { based: false, put: self.0.clone(), delete: Vec::new(), digest: self.digest() }
    }

    /// What turns `base` into this ledger.
    pub fn delta_from(&self, base: &Self) -> Delta {
        let changed = |(key, value): &(&String, &Vec<u8>)| base.0.get(*key) != Some(*value);
        Delta {
            based: true,
            put: self.0.iter().filter(changed).map(|(k, v)| (k.clone(), v.clone())).collect(),
            delete: base.0.keys().filter(|key| !self.0.contains_key(*key)).cloned().collect(),
            digest: self.digest(),
        }
    }

    /// The ledger that `delta` makes of this one.
    ///
    /// # Errors
    /// [`DigestMismatch`] when the result is not what the sender holds; this ledger is unchanged.
    pub fn apply(&self, delta: &Delta) -> Result<Self, DigestMismatch> {
        let mut next = if delta.based { self.clone() } else { Self::default() };
        for key in &delta.delete {
            next.0.remove(key);
        }
        for (key, value) in &delta.put {
            next.0.insert(key.clone(), value.clone());
        }
        if next.digest() == delta.digest { Ok(next) } else { Err(DigestMismatch) }
    }
}

impl Delta {
    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.based && self.put.is_empty() && self.delete.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ledger() -> impl Strategy<Value = Ledger> {
        proptest::collection::btree_map(
            "[a-d]{1,2}",
            proptest::collection::vec(any::<u8>(), 0..4),
            0..8,
        )
        .prop_map(Ledger::new)
    }

    proptest! {
        #[test]
        fn a_delta_turns_base_into_next(base in ledger(), next in ledger()) {
            prop_assert_eq!(base.apply(&next.delta_from(&base)).unwrap(), next.clone());
            prop_assert_eq!(base.apply(&next.full()).unwrap(), next);
        }

        #[test]
        fn a_delta_on_another_base_is_noticed(base in ledger(), other in ledger(), next in ledger()) {
            if let Ok(got) = other.apply(&next.delta_from(&base)) {
                prop_assert_eq!(got, next);
            }
        }
    }

    #[test]
    fn entries_do_not_run_together_in_the_digest() {
        let one = Ledger::new([("ab".to_owned(), b"c".to_vec())].into());
        let two = Ledger::new([("a".to_owned(), b"bc".to_vec())].into());
        assert_ne!(one.digest(), two.digest());
    }
}
