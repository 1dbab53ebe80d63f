//! What gateways did in the last seconds, as the agents tell: for `fairlead top` and `explain`.
//!
//! Owns the newest report of each member and nothing older. Never a reason to plan: passive evidence
//! has no say until it is proven.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use fairlead_model::traffic::{Flow, FlowCounts, TrafficReport};
use fairlead_model::view::FlowView;
use fairlead_model::{MemberId, Millis};

/// A report that is older says nothing of now.
const FRESH_MS: u64 = 20_000;

/// The newest reports.
#[derive(Debug, Default)]
pub struct Traffic {
    reports: Mutex<BTreeMap<MemberId, (Millis, TrafficReport)>>,
}

impl Traffic {
    /// Takes a report in.
    pub fn put(&self, member: &MemberId, now: Millis, report: TrafficReport) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(member.clone(), (now, report));
        // Of members that are gone nothing is heard again.
        reports.retain(|_, (at, _)| now.since(*at) < FRESH_MS);
    }

    /// Rates of now, by route, rule, backend, entry, target.
    pub fn flows(&self, now: Millis) -> Vec<FlowView> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = reports.iter().filter(|(_, (at, _))| now.since(*at) < FRESH_MS);
        let mut flows: Vec<FlowView> = fresh
            .flat_map(|(entry, (_, report))| {
                report.flows.iter().map(move |(flow, counts)| view(entry, report, flow, counts))
            })
            .collect();
        flows.sort_by(|a, b| a.key().cmp(&b.key()));
        flows
    }
}

fn view(entry: &MemberId, report: &TrafficReport, flow: &Flow, counts: &FlowCounts) -> FlowView {
    let seconds = report.span_ms.max(1) as f64 / 1_000.0;
    let sampled = f64::from(report.sampled.clamp(1, 10_000)) / 10_000.0;
    FlowView {
        route: flow.route.clone(),
        rule: flow.rule,
        backend: flow.backend.clone(),
        entry: entry.clone(),
        target: flow.target.clone(),
        per_second: counts.requests as f64 / seconds / sampled,
        error_share: counts.errors as f64 / counts.requests.max(1) as f64,
        p50_ms: counts.latency_ms(0.5),
        p99_ms: counts.latency_ms(0.99),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::traffic::Outcome;

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn report(requests: u64) -> TrafficReport {
        let flow = Flow {
            route: "HTTPRoute/shop/cart".to_owned(),
            rule: 0,
            backend: "shop/cart:80".to_owned(),
            target: member("west"),
        };
        let mut counts = FlowCounts::default();
        for n in 0..requests {
            counts.add(7, if n == 0 { Outcome::Failed } else { Outcome::Answered });
        }
        let flows = [(flow, counts)].into();
        TrafficReport { span_ms: 5_000, sampled: 1_000, flows, left_out: 0 }
    }

    #[test]
    fn rates_are_corrected_for_sampling() {
        let traffic = Traffic::default();
        traffic.put(&member("east"), Millis(1_000), report(10));
        let flows = traffic.flows(Millis(2_000));
        let flow = flows.first().unwrap();
        assert!((flow.per_second - 20.0).abs() < 1e-9, "{}", flow.per_second);
        assert!((flow.error_share - 0.1).abs() < 1e-9);
        assert_eq!(
            (flow.p50_ms, flow.entry.as_str(), flow.target.as_str()),
            (Some(10), "east", "west")
        );
    }

    #[test]
    fn old_reports_say_nothing() {
        let traffic = Traffic::default();
        traffic.put(&member("east"), Millis(1_000), report(10));
        assert!(traffic.flows(Millis(1_000 + FRESH_MS)).is_empty());
    }
}
