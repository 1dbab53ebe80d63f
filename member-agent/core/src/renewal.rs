//! When the agent's certificate is renewed, and how often that is tried.
//!
//! Owns two thirds of a life, and the waits after failures. Never reads a certificate or a clock.

use fairlead_model::Millis;

/// First wait after a renewal that failed; doubled with each further one.
const RETRY_MS: u64 = 1_000;
/// Longest wait after failures: a certificate that is due can wait minutes, a hub that is away cannot
/// be hurried.
const RETRY_MS_MAX: u64 = 60_000;
/// Longest sleep: wall clocks step, and machines are suspended.
const SLEEP_MS_MAX: u64 = 600_000;

/// Agents that are told at once of another CA renew within that time.
const SPREAD_MS: u64 = 1_000;

/// Whether we believe whom the hub says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Yes, or it said nothing.
    AsTold,
    /// The hub's CA changes: a renewal brings the new one.
    Outdated,
}

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Valid from.
    pub not_before: Millis,
    /// Valid until.
    pub not_after: Millis,
}

impl Life {
    /// When two thirds of it are over.
    pub fn due_at(self) -> Millis {
        self.not_before.plus(self.not_after.since(self.not_before) / 3 * 2)
    }

    /// True when it is time for a new one.
    pub fn is_due(self, now: Millis) -> bool {
        now >= self.due_at()
    }

    /// True while it can be shown for more than its own renewal.
    pub fn is_valid(self, now: Millis) -> bool {
        now >= self.not_before && now < self.not_after
    }
}

/// How long to wait before the next try, after so many that failed in a row. `jitter` is any number:
/// agents that failed together do not try together again.
pub fn wait_ms(life: Life, trust: Trust, failures: u32, now: Millis, jitter: u64) -> u64 {
    if failures == 0 {
        return match trust {
            Trust::AsTold => life.due_at().since(now).min(SLEEP_MS_MAX),
            Trust::Outdated => jitter % SPREAD_MS,
        };
    }
    let wait = RETRY_MS.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RETRY_MS_MAX);
    wait / 2 + jitter % (wait / 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { not_before: Millis(9_000), not_after: Millis(39_000) };

    #[test]
    fn a_certificate_is_due_after_two_thirds_and_good_until_its_end() {
        let rows = [
            (8_999, false, false),
            (9_000, false, true),
            (28_999, false, true),
            (29_000, true, true),
            (38_999, true, true),
            (39_000, true, false),
        ];
        for (now, due, valid) in rows {
            let now = Millis(now);
            assert_eq!((LIFE.is_due(now), LIFE.is_valid(now)), (due, valid), "{now:?}");
        }
    }

    #[test]
    fn it_is_waited_for_but_never_slept_through() {
        let rows = [(9_000, 20_000), (28_000, 1_000), (29_000, 0), (99_000, 0)];
        for (now, want) in rows {
            assert_eq!(wait_ms(LIFE, Trust::AsTold, 0, Millis(now), 7), want);
        }
        let long = Life { not_after: Millis(u64::MAX / 4), ..LIFE };
        assert_eq!(wait_ms(long, Trust::AsTold, 0, Millis(9_000), 7), SLEEP_MS_MAX);
        assert!(wait_ms(long, Trust::Outdated, 0, Millis(9_000), u64::MAX) < SPREAD_MS);
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_a_bound() {
        for jitter in [0, 1, 499, 12_345, u64::MAX] {
            let of = |failures| wait_ms(LIFE, Trust::Outdated, failures, Millis(30_000), jitter);
            assert!((500..=1_000).contains(&of(1)), "{}", of(1));
            assert!((1_000..=2_000).contains(&of(2)), "{}", of(2));
            for failures in [8, 40, u32::MAX] {
                assert!((RETRY_MS_MAX / 2..=RETRY_MS_MAX).contains(&of(failures)));
            }
        }
    }
}
