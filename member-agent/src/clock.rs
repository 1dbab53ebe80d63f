//! The agent's only clock.
//!
//! Wall time at the start plus monotonic time since: a step of the wall clock neither fakes a
//! timeout nor stops the probes.

use std::time::{Duration, Instant, SystemTime};

use fairlead_model::Millis;

/// A clock that never steps.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    wall: Millis,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        Self { started: Instant::now(), wall: wall_now() }
    }

    /// Now.
    pub fn now(&self) -> Millis {
        let elapsed = self.started.elapsed().as_millis();
        self.wall.plus(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Waits until a time on this clock.
    pub async fn until(&self, at: Millis) {
        tokio::time::sleep(Duration::from_millis(at.since(self.now()))).await;
    }
}

/// The wall clock, for certificates and for what is shown to people.
pub fn wall_now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
