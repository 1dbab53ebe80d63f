//! Which endpoint counts are in use: hysteresis between what members report and what moves weights.
//!
//! `expected` is what should be ready: all endpoints that are not terminating, but no more than were
//! ready at some time in the last ten minutes (a scale-up that never becomes ready is not a loss),
//! and no less than are ready. Counts in use follow at once when a member gets worse, and after a
//! short while when it gets better, so that a rolling restart does not rewrite routes with every pod.

use std::collections::BTreeMap;

use fairlead_model::snapshot::EndpointCounts;
use fairlead_model::{MemberId, Millis, NsName};

use crate::{CountMemory, FleetInput, InUse, Settings};

const MINUTE_MS: u64 = 60_000;
/// Minutes for which a peak counts.
const PEAK_MINUTES: u64 = 10;

/// Counts by member and service.
pub(crate) type CountsInUse = BTreeMap<MemberId, BTreeMap<NsName, InUse>>;

pub(crate) struct Settled {
    pub(crate) in_use: CountsInUse,
    pub(crate) memory: BTreeMap<MemberId, BTreeMap<NsName, CountMemory>>,
    pub(crate) wake_at: Option<Millis>,
}

/// The counts in use of every exported service.
pub(crate) fn settle(input: &FleetInput) -> Settled {
    let mut settled =
        Settled { in_use: CountsInUse::new(), memory: BTreeMap::new(), wake_at: None };
    for member in input.policy.members.keys() {
        let before = input.memory.counts.get(member);
        let Some(snapshot) = input.members.get(member).and_then(|m| m.snapshot.as_ref()) else {
            // No report is no news: what was known of its peaks stays.
            settled.memory.extend(before.map(|counts| (member.clone(), counts.clone())));
            continue;
        };
        let mut in_use = BTreeMap::new();
        let mut memory = BTreeMap::new();
        for (service, state) in &snapshot.services {
            let before = before.and_then(|services| services.get(service));
            let (after, wake_at) = settle_one(input.now, state.counts(), before, &input.settings);
            in_use.insert(service.clone(), after.in_use);
            memory.insert(service.clone(), after);
            settled.wake_at = settled.wake_at.into_iter().chain(wake_at).min();
        }
        settled.in_use.insert(member.clone(), in_use);
        settled.memory.insert(member.clone(), memory);
    }
    settled
}

fn settle_one(
    now: Millis,
    counts: EndpointCounts,
    before: Option<&CountMemory>,
    settings: &Settings,
) -> (CountMemory, Option<Millis>) {
    let mut peaks = before.map(|b| b.peaks.clone()).unwrap_or_default();
    let minute = now.0 / MINUTE_MS;
    // Minutes after this one: the clock was set back.
    peaks.retain(|m, _| *m <= minute && minute - *m < PEAK_MINUTES);
    let peak = peaks.entry(minute).or_default();
    *peak = (*peak).max(counts.ready);
    let highest = peaks.values().copied().max().unwrap_or(0);
    let seen = InUse { ready: counts.ready, expected: counts.total.min(highest).max(counts.ready) };

    let mut wake_at = peak_leaves_at(&peaks, seen);
    let mut after = CountMemory { peaks, in_use: seen, rising_since: None };
    let Some(before) = before else { return (after, wake_at) };
    match change(before.in_use, seen, settings.counts_change_percent) {
        Change::Worse => {}
        Change::Small => after.in_use = before.in_use,
        Change::Better => {
            let since = before.rising_since.unwrap_or(now).min(now);
            if now.since(since) < settings.counts_coalesce_ms {
                after.in_use = before.in_use;
                after.rising_since = Some(since);
                wake_at =
                    wake_at.into_iter().chain([since.plus(settings.counts_coalesce_ms)]).min();
            }
        }
    }
    (after, wake_at)
}

/// When less will be expected because a peak is too old.
fn peak_leaves_at(peaks: &BTreeMap<u64, u32>, seen: InUse) -> Option<Millis> {
    if seen.expected <= seen.ready {
        return None;
    }
    let (minute, _) = peaks.iter().rev().find(|(_, ready)| **ready >= seen.expected)?;
    Some(Millis((minute + PEAK_MINUTES).saturating_mul(MINUTE_MS)))
}

enum Change {
    Small,
    Worse,
    Better,
}

fn change(from: InUse, to: InUse, percent: u8) -> Change {
    // h = ready / expected, compared crosswise.
    let h_from = u64::from(from.ready) * u64::from(to.expected);
    let h_to = u64::from(to.ready) * u64::from(from.expected);
    let zero = |a: u32, b: u32| (a == 0) != (b == 0);
    let matters = zero(from.ready, to.ready)
        || zero(from.expected, to.expected)
        || differs(h_from, h_to, percent)
        || differs(from.expected.into(), to.expected.into(), percent);
    if !matters {
        Change::Small
    } else if to.ready < from.ready || h_to < h_from {
        Change::Worse
    } else {
        Change::Better
    }
}

/// By that many percent or more of what it was.
fn differs(from: u64, to: u64, percent: u8) -> bool {
    from != to && u128::from(from.abs_diff(to)) * 100 >= u128::from(from) * u128::from(percent)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Feeds (milliseconds, ready, total) and returns what is in use after each.
    fn in_use(feed: &[(u64, u32, u32)]) -> Vec<(u32, u32)> {
        let mut memory = None;
        let mut out = Vec::new();
        for (ms, ready, total) in feed {
            let counts = EndpointCounts { ready: *ready, total: *total };
            let settings = Settings::default();
            let (after, _) = settle_one(Millis(*ms), counts, memory.as_ref(), &settings);
            out.push((after.in_use.ready, after.in_use.expected));
            memory = Some(after);
        }
        out
    }

    fn writes(feed: &[(u64, u32, u32)]) -> usize {
        in_use(feed).windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    #[test]
    fn what_never_was_ready_is_not_expected() {
        assert_eq!(in_use(&[(0, 10, 10), (10, 10, 20)]), [(10, 10), (10, 10)]);
    }

    #[test]
    fn a_crash_counts_at_once_and_is_expected_back_for_ten_minutes() {
        let minute = MINUTE_MS;
        let feed = [(0, 10, 10), (1, 4, 10), (9 * minute, 4, 10), (10 * minute, 4, 10)];
        assert_eq!(in_use(&feed), [(10, 10), (4, 10), (4, 10), (4, 10)]);
        // Then what is left is all there is; a second later, as with any increase.
        let mut feed = feed.to_vec();
        feed.push((10 * minute + 1_000, 4, 10));
        assert_eq!(*in_use(&feed).last().unwrap(), (4, 4));
    }

    #[test]
    fn an_increase_waits_for_more() {
        let feed = [(0, 0, 9), (100, 3, 9), (600, 6, 9), (1_099, 8, 9), (1_100, 9, 9)];
        assert_eq!(in_use(&feed), [(0, 0), (0, 0), (0, 0), (0, 0), (9, 9)]);
    }

    #[test]
    fn less_than_ten_percent_is_nothing() {
        assert_eq!(writes(&[(0, 100, 100), (9_000, 91, 100), (18_000, 95, 100)]), 0);
        assert_eq!(writes(&[(0, 100, 100), (9_000, 90, 100)]), 1);
    }

    #[test]
    fn a_rolling_restart_costs_at_most_two_writes() {
        // One at a time, each new one ready 300 ms before the next goes, for half a minute.
        let mut feed = vec![(0, 10, 10)];
        for pod in 0..10 {
            feed.push((3_000 * pod + 1_000, 9, 10));
            feed.push((3_000 * pod + 3_700, 10, 10));
        }
        feed.push((40_000, 10, 10));
        assert!(writes(&feed) <= 2, "{:?}", in_use(&feed));
        // With a surge instead: a new one is ready before an old one goes.
        let mut feed = vec![(0, 4, 4)];
        for pod in 0..4 {
            feed.push((3_000 * pod + 1_000, 4, 5));
            feed.push((3_000 * pod + 3_000, 5, 5));
            feed.push((3_000 * pod + 3_300, 4, 4));
        }
        feed.push((40_000, 4, 4));
        assert!(writes(&feed) <= 2, "{:?}", in_use(&feed));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_hold_an_increase() {
        let feed = [(900_000, 2, 2), (900_100, 4, 4), (100, 4, 4), (1_100, 4, 4)];
        assert_eq!(*in_use(&feed).last().unwrap(), (4, 4));
    }

    #[test]
    fn it_says_when_time_alone_changes_the_answer() {
        let settings = Settings::default();
        let all = EndpointCounts { ready: 10, total: 10 };
        let (first, wake) = settle_one(Millis(0), all, None, &settings);
        assert_eq!(wake, None);
        let half = EndpointCounts { ready: 5, total: 10 };
        let (second, wake) = settle_one(Millis(70_000), half, Some(&first), &settings);
        assert_eq!(wake, Some(Millis(600_000)));
        let (_, wake) = settle_one(Millis(71_000), all, Some(&second), &settings);
        assert_eq!(wake, Some(Millis(72_000)));
    }
}
