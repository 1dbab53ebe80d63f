//! Sums what spans mean to counts by flow. Bounded by the plan, since only what the plan names counts,
//! and by a number of flows.

use fairlead_model::traffic::{FLOWS_MAX, Flow, Outcome, TrafficReport};

use crate::attribution::{Hop, Meaning};

/// Counts since the last report.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    report: TrafficReport,
}

impl Sums {
    /// Counts a request that this entry sent on; what happens at doors is counted by its entry.
    pub fn add(&mut self, meaning: &Meaning<'_>, took_ms: u64, outcome: Outcome) {
        let (Hop::Entry, Some(route), Some(rule), Some(target)) =
            (meaning.hop, meaning.route, meaning.rule, meaning.target)
        else {
            return;
        };
        let flow = Flow {
            route: route.to_owned(),
            rule,
            backend: meaning.backend.unwrap_or_default().to_owned(),
            target: target.clone(),
        };
        if self.report.flows.len() >= FLOWS_MAX && !self.report.flows.contains_key(&flow) {
            self.report.left_out += 1;
            return;
        }
        self.report.flows.entry(flow).or_default().add(took_ms, outcome);
    }

    /// Takes the counts of the last `span_ms`. `sampled` is the share of requests that are traced, in
    /// parts of 10,000.
    pub fn take(&mut self, span_ms: u64, sampled: u32) -> TrafficReport {
        TrafficReport { span_ms, sampled, ..std::mem::take(&mut self.report) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::MemberId;

    fn meaning<'a>(hop: Hop, route: &'a str, target: &'a MemberId) -> Meaning<'a> {
        Meaning {
            hop,
            route: Some(route),
            rule: Some(0),
            backend: Some("shop/cart:80"),
            target: Some(target),
            tier: None,
            overlay: false,
        }
    }

    #[test]
    fn requests_count_at_their_entry_and_once() {
        let west = MemberId::new("west").unwrap();
        let mut sums = Sums::default();
        sums.add(&meaning(Hop::Entry, "HTTPRoute/shop/cart", &west), 3, Outcome::Answered);
        sums.add(&meaning(Hop::Door, "HTTPRoute/shop/cart", &west), 3, Outcome::Answered);
        let unknown = Meaning { target: None, ..meaning(Hop::Entry, "HTTPRoute/shop/cart", &west) };
        sums.add(&unknown, 3, Outcome::Failed);
        let report = sums.take(5_000, 10_000);
        let counts: Vec<_> =
            report.flows.iter().map(|(flow, it)| (flow.rule, it.requests)).collect();
        assert_eq!((report.span_ms, counts), (5_000, vec![(0, 1)]));
        assert!(sums.take(1, 10_000).flows.is_empty(), "they are taken once");
    }

    #[test]
    fn flows_are_bounded_and_what_is_left_out_is_counted() {
        let west = MemberId::new("west").unwrap();
        let mut sums = Sums::default();
        for n in 0..FLOWS_MAX + 3 {
            sums.add(
                &meaning(Hop::Entry, &format!("HTTPRoute/a/{n}"), &west),
                1,
                Outcome::Answered,
            );
        }
        sums.add(&meaning(Hop::Entry, "HTTPRoute/a/0", &west), 1, Outcome::Answered);
        let report = sums.take(1, 10_000);
        assert_eq!((report.flows.len(), report.left_out), (FLOWS_MAX, 3));
    }
}
