//! "Something changed": a flag that wakes one loop, with the time of the first change since.
//!
//! Owns nothing but the flag. Any number of changes before the loop looks are one: the loop reads the
//! state again, never the change.

use std::sync::{Mutex, PoisonError};

use fairlead_model::Millis;
use tokio::sync::Notify;

use crate::clock;

/// Wakes one loop.
#[derive(Debug, Default)]
pub struct Signal {
    since: Mutex<Option<Millis>>,
    notify: Notify,
}

impl Signal {
    /// Something changed.
    pub fn mark(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(clock::now);
        drop(since);
        self.notify.notify_one();
    }

    /// Waits for a change; gives the time of the first one since the last wait ended.
    pub async fn wait(&self) -> Millis {
        loop {
            if let Some(since) = self.take() {
                return since;
            }
            self.notify.notified().await;
        }
    }

    /// Takes the flag down, if it is up.
    pub fn take(&self) -> Option<Millis> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
