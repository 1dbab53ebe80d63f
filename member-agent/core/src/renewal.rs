//! When the agent's certificate is renewed, and how often that is tried.
//!
//! Owns two thirds of a life, and the waits after tries that failed or changed nothing. Never reads a
//! certificate or a clock, and never believes the clock it is told: one that is wrong by days must
//! neither keep a certificate from being renewed nor have it renewed without end.

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

/// What became of the last tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// The last one brought what it should.
    Well,
    /// So many failed in a row.
    Failed(u32),
    /// The last one brought a certificate that is due by our clock, as the one before: our clock and the
    /// hub's are days apart, and the next one will be no better.
    InVain,
}

impl Tried {
    /// After one more that failed.
    #[must_use]
    pub fn failed(self) -> Self {
        match self {
            Self::Well | Self::InVain => Self::Failed(1),
            Self::Failed(times) => Self::Failed(times.saturating_add(1)),
        }
    }
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

    /// True when it is time for a new one. One of the future is: it was made before a clock was set
    /// back, ours or the hub's.
    pub fn is_due(self, now: Millis) -> bool {
        now >= self.due_at() || now < self.not_before
    }

    /// True while it can be shown for more than its own renewal.
    pub fn is_valid(self, now: Millis) -> bool {
        now >= self.not_before && now < self.not_after
    }
}

/// How long to wait before the next try. `jitter` is any number: agents that failed together do not try
/// together again.
pub fn wait_ms(life: Life, trust: Trust, tried: Tried, now: Millis, jitter: u64) -> u64 {
    let about = |wait: u64| wait / 2 + jitter % (wait / 2 + 1);
    match (tried, trust) {
        (Tried::Failed(times), _) => {
            let doubled = RETRY_MS.saturating_mul(1 << times.saturating_sub(1).min(10));
            about(doubled.min(RETRY_MS_MAX))
        }
        (_, Trust::Outdated) => jitter % SPREAD_MS,
        (Tried::InVain, Trust::AsTold) => about(SLEEP_MS_MAX),
        (Tried::Well, Trust::AsTold) if life.is_due(now) => 0,
        (Tried::Well, Trust::AsTold) => life.due_at().since(now).min(SLEEP_MS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { not_before: Millis(9_000), not_after: Millis(39_000) };

    #[test]
    fn a_certificate_is_due_after_two_thirds_and_good_until_its_end() {
        let rows = [
            (0, true, false),
            (8_999, true, false),
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
        let rows = [(8_999, 0), (9_000, 20_000), (28_000, 1_000), (29_000, 0), (99_000, 0)];
        for (now, want) in rows {
            assert_eq!(wait_ms(LIFE, Trust::AsTold, Tried::Well, Millis(now), 7), want);
        }
        let long = Life { not_after: Millis(u64::MAX / 4), ..LIFE };
        let of = |trust, jitter| wait_ms(long, trust, Tried::Well, Millis(9_000), jitter);
        assert_eq!(of(Trust::AsTold, 7), SLEEP_MS_MAX);
        assert!(of(Trust::Outdated, u64::MAX) < SPREAD_MS);
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_a_bound() {
        for jitter in [0, 1, 499, 12_345, u64::MAX] {
            let of = |times| {
                wait_ms(LIFE, Trust::Outdated, Tried::Failed(times), Millis(30_000), jitter)
            };
            assert!((500..=1_000).contains(&of(1)), "{}", of(1));
            assert!((1_000..=2_000).contains(&of(2)), "{}", of(2));
            for times in [8, 40, u32::MAX] {
                assert!((RETRY_MS_MAX / 2..=RETRY_MS_MAX).contains(&of(times)));
            }
        }
    }

    #[test]
    fn a_clock_that_is_wrong_by_days_renews_now_and_then_and_not_without_end() {
        for now in [Millis(0), Millis(900_000)] {
            assert!(LIFE.is_due(now));
            for jitter in [0, 7, u64::MAX] {
                let wait = wait_ms(LIFE, Trust::AsTold, Tried::InVain, now, jitter);
                assert!((SLEEP_MS_MAX / 2..=SLEEP_MS_MAX).contains(&wait), "{wait}");
                // Another CA of the hub is fetched at once all the same.
                assert!(wait_ms(LIFE, Trust::Outdated, Tried::InVain, now, jitter) < SPREAD_MS);
            }
        }
    }

    #[test]
    fn failures_are_counted_from_the_last_that_went_well() {
        assert_eq!(Tried::Well.failed(), Tried::Failed(1));
        assert_eq!(Tried::InVain.failed(), Tried::Failed(1));
        assert_eq!(Tried::Failed(1).failed(), Tried::Failed(2));
        assert_eq!(Tried::Failed(u32::MAX).failed(), Tried::Failed(u32::MAX));
    }
}
