//! What gateways did: counts of requests by where they were sent, as read from their spans.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::MemberId;

/// Upper bounds of the latency buckets, in milliseconds; one more bucket holds the rest.
pub const LATENCY_BOUNDS_MS: [u64; 10] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000];
/// Buckets of a histogram.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;
/// Most flows that one report carries.
pub const FLOWS_MAX: usize = 2_000;

/// Where one entry sent requests of a rule. The entry is who reports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// `kind/namespace/name` of the global route.
    pub route: String,
    /// Index of the rule.
    pub rule: u16,
    /// `namespace/name:port`; empty when it is not known.
    pub backend: String,
    /// Who answered, or should have.
    pub target: MemberId,
}

/// Requests of one flow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowCounts {
    /// Requests.
    pub requests: u64,
    /// Of these, those that failed: no answer, or one of the server's faults.
    pub errors: u64,
    /// Requests by how long they took, see [`LATENCY_BOUNDS_MS`].
    pub latency: [u64; LATENCY_BUCKETS],
}

impl FlowCounts {
    /// Counts one request.
    pub fn add(&mut self, took_ms: u64, outcome: Outcome) {
        self.requests += 1;
        self.errors += u64::from(outcome == Outcome::Failed);
        let bucket = LATENCY_BOUNDS_MS.iter().position(|bound| took_ms <= *bound);
        self.latency[bucket.unwrap_or(LATENCY_BUCKETS - 1)] += 1;
    }

    /// The bound below which a share of the requests stayed, in milliseconds; none without requests,
    /// or when it lies beyond the last bound.
    pub fn latency_ms(&self, share: f64) -> Option<u64> {
        let total: u64 = self.latency.iter().sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of a few seconds, share is 0 to 1"
        )]
        let rank = ((total as f64) * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (count, bound) in self.latency.iter().zip(LATENCY_BOUNDS_MS) {
            seen += count;
            if seen >= rank && total > 0 {
                return Some(bound);
            }
        }
        None
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// Without one, or with one of the server's faults.
    Failed,
}

/// What the gateways of one member did since the report before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficReport {
    /// How long that was.
    pub span_ms: u64,
    /// Share of requests that gateways trace, in parts of 10,000: the counts are of traced ones.
    pub sampled: u32,
    /// Counts.
    pub flows: BTreeMap<Flow, FlowCounts>,
    /// Requests of flows beyond [`FLOWS_MAX`].
    pub left_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let mut counts = FlowCounts::default();
        assert_eq!(counts.latency_ms(0.5), None);
        for took in [1, 7, 7, 7, 90, 90, 90, 90, 90, 60_000] {
            counts.add(took, Outcome::Answered);
        }
        assert_eq!(counts.latency_ms(0.1), Some(5));
        assert_eq!(counts.latency_ms(0.5), Some(100));
        assert_eq!(counts.latency_ms(0.99), None, "beyond the last bound");
    }

    #[test]
    fn failed_requests_are_counted_among_all() {
        let mut counts = FlowCounts::default();
        counts.add(1, Outcome::Failed);
        counts.add(1, Outcome::Answered);
        assert_eq!((counts.requests, counts.errors), (2, 1));
    }
}
