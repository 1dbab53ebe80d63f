//! Numbers that order things across processes, and time as a value.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch. Always passed in, never read here.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This time and `ms` more; stays at the end of time instead of overflowing.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here; 0 when `earlier` is later (clocks step back).
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The number of a plan for one member. Only rises: the epoch is taken when a hub process takes
/// over the member's session, the counter rises with every plan. Nobody moves to an older one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct PlanNumber {
    /// Epoch of the hub session that made the plan; 0 means: no plan yet.
    pub epoch: u64,
    /// Rises within an epoch.
    pub counter: u64,
}

impl PlanNumber {
    /// Puts the parts together.
    pub const fn new(epoch: u64, counter: u64) -> Self {
        Self { epoch, counter }
    }

    /// The next number of the same epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, counter: self.counter + 1 }
    }
}

impl fmt::Display for PlanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// The number of a snapshot: the agent's incarnation (rises with every start) and a sequence in it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SnapshotNumber {
    /// Rises with every start of the agent.
    pub incarnation: u64,
    /// Rises within an incarnation.
    pub sequence: u64,
}

impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_beats_any_counter() {
        assert!(PlanNumber::new(2, 0) > PlanNumber::new(1, u64::MAX));
        assert!(PlanNumber::new(2, 1) > PlanNumber::new(2, 0));
    }

    #[test]
    fn time_does_not_underflow_when_a_clock_steps_back() {
        assert_eq!(Millis(5).since(Millis(9)), 0);
        assert_eq!(Millis(u64::MAX).plus(1), Millis(u64::MAX));
    }
}
