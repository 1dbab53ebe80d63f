//! Accounts of a load: counts, shares, latencies, and how long requests kept failing. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

/// What became of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// `refused`, `timeout`, `reset`, `unreachable`, `connect`; empty when there was an answer.
    pub error: &'static str,
    /// The cluster that answered; empty if no echo did.
    pub target: String,
    /// The version of the service that answered.
    pub version: String,
    /// How many gateways it passed.
    pub gateways: usize,
}

impl Outcome {
    pub(super) fn failed(error: &'static str) -> Self {
        Self { error, ..Self::default() }
    }

    /// Answered, and not by an error of a server or gateway.
    pub fn is_success(&self) -> bool {
        self.error.is_empty() && self.status < 500
    }
}

/// One request. Times count from the start of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub entry: String,
    pub started: Duration,
    pub took: Duration,
    pub outcome: Outcome,
}

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tally {
    pub entry: String,
    pub target: String,
    pub version: String,
    pub status: u16,
    pub error: &'static str,
}

/// All samples of a load, ordered by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    samples: Vec<Sample>,
}

/// The window of the recovery figure, and how finely its start is looked for.
const WINDOW: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(10);
/// So much good time must have been seen before a recovery is believed.
const PROOF: Duration = Duration::from_secs(1);

impl Report {
    pub fn new(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| sample.started);
        Self { samples }
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    pub fn total(&self) -> usize {
        self.samples.len()
    }

    pub fn failed(&self) -> usize {
        self.samples.iter().filter(|sample| !sample.outcome.is_success()).count()
    }

    /// Only the samples that satisfy a condition.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Sample) -> bool) -> Self {
        Self { samples: self.samples.iter().filter(|sample| keep(sample)).cloned().collect() }
    }

    /// Exact counts.
    pub fn counts(&self) -> BTreeMap<Tally, usize> {
        let mut counts = BTreeMap::new();
        for sample in &self.samples {
            let outcome = sample.outcome.clone();
            let tally = Tally {
                entry: sample.entry.clone(),
                target: outcome.target,
                version: outcome.version,
                status: outcome.status,
                error: outcome.error,
            };
            *counts.entry(tally).or_default() += 1;
        }
        counts
    }

    /// Shares of the requests, by what `key` says of each; failed ones included.
    pub fn shares<K: Ord>(&self, key: impl Fn(&Sample) -> K) -> BTreeMap<K, f64> {
        let mut counts: BTreeMap<K, usize> = BTreeMap::new();
        for sample in &self.samples {
            *counts.entry(key(sample)).or_default() += 1;
        }
        let total = self.samples.len();
        counts.into_iter().map(|(key, count)| (key, ratio(count, total))).collect()
    }

    /// The latency below which this share of the requests stayed; zero without requests.
    pub fn latency(&self, quantile: f64) -> Duration {
        let mut times: Vec<Duration> = self.samples.iter().map(|sample| sample.took).collect();
        times.sort();
        let at = quantile_index(times.len(), quantile);
        times.get(at).copied().unwrap_or_default()
    }

    /// How long after `event` requests kept failing: the time from which on, of the requests
    /// started in every later 200 ms window, 99 % succeed. `None` when that was not seen for a
    /// second at least, or when no requests followed the event.
    pub fn recovered_after(&self, event: Duration) -> Option<Duration> {
        let last = self.samples.last()?.started;
        let mut recovered = event;
        let mut at = event;
        while at + STEP <= last {
            if !self.window_is_good(at) {
                recovered = at + STEP;
            }
            at += STEP;
        }
        (last.saturating_sub(recovered) >= PROOF).then(|| recovered - event)
    }

    /// A window in which nothing was started says nothing.
    fn window_is_good(&self, from: Duration) -> bool {
        let begin = self.samples.partition_point(|sample| sample.started < from);
        let end = self.samples.partition_point(|sample| sample.started < from + WINDOW);
        let window = &self.samples[begin..end];
        let good = window.iter().filter(|sample| sample.outcome.is_success()).count();
        window.is_empty() || good * 100 >= window.len() * 99
    }
}

/// A count's part of a total; 0 of nothing is 0.
pub(crate) fn ratio(count: usize, total: usize) -> f64 {
    let exact = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    if total == 0 { 0.0 } else { exact(count) / exact(total) }
}

/// The index of a quantile in a sorted list, nearest rank.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "lists have millions of entries at most, and the result is clamped to them"
)]
pub(crate) fn quantile_index(len: usize, quantile: f64) -> usize {
    let rank = (quantile.clamp(0.0, 1.0) * len as f64).ceil() as usize;
    rank.saturating_sub(1).min(len.saturating_sub(1))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_sample(started_ms: u64, status: u16, target: &str) -> Sample {
        Sample {
            entry: "west".into(),
            started: Duration::from_millis(started_ms),
            took: Duration::from_millis(1),
            outcome: Outcome { status, target: target.into(), ..Outcome::default() },
        }
    }

    /// One request every 5 ms for 4 s; those that started in `bad` milliseconds failed.
    fn mk_report(bad: std::ops::Range<u64>) -> Report {
        let status = |ms| if bad.contains(&ms) { 503 } else { 200 };
        Report::new((0..800).map(|i| mk_sample(i * 5, status(i * 5), "east")).collect())
    }

    #[test]
    fn recovery_is_the_end_of_the_last_bad_window() {
        let report = mk_report(1000..1700);
        let recovered = report.recovered_after(Duration::from_secs(1)).unwrap();
        // The request at 1695 ms is the last that failed.
        assert_eq!(recovered, Duration::from_millis(700));
        assert_eq!(report.failed(), 140);
    }

    #[test]
    fn no_failure_is_an_instant_recovery() {
        let report = mk_report(0..0);
        assert_eq!(report.recovered_after(Duration::from_secs(1)), Some(Duration::ZERO));
    }

    #[test]
    fn failing_until_the_end_is_no_recovery() {
        assert_eq!(mk_report(1000..9000).recovered_after(Duration::from_secs(1)), None);
        assert_eq!(mk_report(1000..3500).recovered_after(Duration::from_secs(1)), None);
    }

    #[test]
    fn one_failure_in_a_hundred_is_allowed() {
        let mut samples: Vec<Sample> = (0..4000).map(|ms| mk_sample(ms, 200, "east")).collect();
        samples[2000].outcome.status = 503;
        let report = Report::new(samples);
        assert_eq!(report.recovered_after(Duration::from_secs(1)), Some(Duration::ZERO));
    }

    #[test]
    fn shares_add_up_and_counts_are_exact() {
        let samples = (0..10).map(|i| mk_sample(i, 200, if i < 8 { "west" } else { "east" }));
        let report = Report::new(samples.collect());
        let shares = report.shares(|sample| sample.outcome.target.clone());
        assert_eq!(shares["west"], 0.8);
        assert!((shares.values().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(report.counts().values().sum::<usize>(), 10);
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        assert_eq!(quantile_index(100, 0.99), 98);
        assert_eq!(quantile_index(1, 0.5), 0);
        assert_eq!(quantile_index(0, 0.5), 0);
    }
}
