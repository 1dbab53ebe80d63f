//! Claims of a store that one process has open: they live in its memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Claim, Hold, StoreError};

/// Who holds which name.
#[derive(Debug, Default, Clone)]
pub(super) struct LocalClaims(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<BTreeMap<String, Held>>,
    ended: Condvar,
}

#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// Tells it from the one before.
    serial: u64,
    until: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalClaims {
    /// Claims a name, as [`super::Store::claim`] says.
    pub(super) fn claim(&self, name: &str, bytes: &[u8], ttl: Duration, wait: Duration) -> Claim {
        let give_up = Instant::now() + wait;
        let mut claims = self.0.lock();
        loop {
            let now = Instant::now();
            let before = claims.get(name);
            let until = match before {
                Some(held) if held.until > now => held.until,
                ended => {
                    let serial = ended.map_or(0, |held| held.serial + 1);
                    let held = Held { bytes: bytes.to_vec(), serial, until: now + ttl };
                    claims.insert(name.to_owned(), held);
                    let (shared, name) = (Arc::clone(&self.0), name.to_owned());
                    return Claim::Held(Box::new(LocalHold { shared, name, serial, ttl }));
                }
            };
            if now >= give_up {
                return Claim::Other(before.map(|held| held.bytes.clone()).unwrap_or_default());
            }
            let rest = until.min(give_up).saturating_duration_since(now);
            let woken = self.0.ended.wait_timeout(claims, rest);
            claims = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct LocalHold {
    shared: Arc<Shared>,
    name: String,
    serial: u64,
    ttl: Duration,
}

impl Hold for LocalHold {
    fn renew(&mut self) -> Result<bool, StoreError> {
        let now = Instant::now();
        let mut claims = self.shared.lock();
        let held = claims.get_mut(&self.name);
        let Some(held) = held.filter(|held| held.serial == self.serial && held.until > now) else {
            return Ok(false);
        };
        held.until = now + self.ttl;
        Ok(true)
    }

    fn release(self: Box<Self>) -> Result<(), StoreError> {
        let mut claims = self.shared.lock();
        if let Some(held) = claims.get_mut(&self.name)
            && held.serial == self.serial
        {
            // Kept with its serial: an older hold must not look like the next one.
            held.until = Instant::now();
        }
        drop(claims);
        self.shared.ended.notify_all();
        Ok(())
    }
}
