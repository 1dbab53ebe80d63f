//! Numbers that never go back.
//!
//! Owns the choice of the next epoch and counting within one. Never stores anything: the caller puts
//! the epoch into the store before it is used. Fails by `None` when there is no higher number.

use fairlead_model::PlanNumber;

/// The epoch for a new session: above the one in the store, above the hub process's own and above
/// the one that the agent has seen. `None` when an agent claims the end of all numbers.
pub fn epoch_above(seen: impl IntoIterator<Item = u64>) -> Option<u64> {
    seen.into_iter().max().unwrap_or(0).checked_add(1)
}

/// Hands out the plan numbers of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter(PlanNumber);

impl Counter {
    /// Starts an epoch.
    pub const fn new(epoch: u64) -> Self {
        Self(PlanNumber::new(epoch, 0))
    }

    /// The next number.
    pub fn take(&mut self) -> PlanNumber {
        self.0 = self.0.next();
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_above_everything_seen() {
        assert_eq!(epoch_above([3, 9, 4]), Some(10));
        assert_eq!(epoch_above([]), Some(1));
    }

    #[test]
    fn the_end_of_all_numbers_is_refused() {
        assert_eq!(epoch_above([1, u64::MAX]), None);
    }

    #[test]
    fn numbers_of_an_epoch_rise() {
        let mut counter = Counter::new(7);
        let (first, second) = (counter.take(), counter.take());
        assert_eq!(first, PlanNumber::new(7, 1));
        assert!(second > first);
    }
}
