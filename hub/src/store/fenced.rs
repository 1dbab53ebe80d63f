//! A store that others may take over: it writes only as long as nobody did.
//!
//! Owns the fence: a key that whoever takes over writes, and whose revision every later write
//! expects. So a hub that was paused, and is not the one that decides any more, cannot write over what
//! its successor wrote. Until the fence is put up, everything is written.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Batch, Claim, Outcome, Store, StoreError, Value};

/// A store with a fence.
pub struct FencedStore {
    inner: Arc<dyn Store>,
    fence: OnceLock<(String, u64)>,
}

impl FencedStore {
    /// Without a fence as yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, fence: OnceLock::new() }
    }

    /// Puts it up: from now on the key must be at this revision. The first one counts.
    pub fn fence(&self, key: &str, revision: u64) {
        let _ = self.fence.set((key.to_owned(), revision));
    }
}

impl Store for FencedStore {
    fn get(&self, key: &str) -> Result<Option<Value>, StoreError> {
        self.inner.get(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, StoreError> {
        self.inner.list(prefix)
    }

    fn claim(
        &self,
        name: &str,
        bytes: &[u8],
        ttl: Duration,
        wait: Duration,
    ) -> Result<Claim, StoreError> {
        self.inner.claim(name, bytes, ttl, wait)
    }

    fn commit(&self, mut batch: Batch) -> Result<Outcome, StoreError> {
        let Some((key, revision)) = self.fence.get() else { return self.inner.commit(batch) };
        batch.expect.push((key.clone(), *revision));
        let outcome = self.inner.commit(batch)?;
        if outcome == Outcome::Conflict {
            let now = self.inner.get(key)?.map_or(0, |value| value.revision);
            if now != *revision {
                return Err(StoreError::Fenced);
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::EmbeddedStore;
    use super::*;

    fn put(key: &str) -> Batch {
        Batch { put: vec![(key.to_owned(), b"1".to_vec())], ..Batch::default() }
    }

    #[test]
    fn who_was_overtaken_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shared: Arc<dyn Store> = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
        let old = FencedStore::new(Arc::clone(&shared));
        let Outcome::Written(at) = old.commit(put("hub")).unwrap() else { panic!("conflict") };
        old.fence("hub", at);
        old.commit(put("a")).unwrap();
        let conflict = old.compare_and_put("a", 0, b"2".to_vec()).unwrap();
        assert_eq!(conflict, Outcome::Conflict, "an ordinary conflict stays one");
        shared.commit(put("hub")).unwrap();
        assert!(matches!(old.commit(put("b")), Err(StoreError::Fenced)));
        assert_eq!(shared.get("b").unwrap(), None);
        assert!(old.get("a").unwrap().is_some());
    }
}
