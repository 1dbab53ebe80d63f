//! What requests that flow anyway say of members' doors: the hub's own word among the witnesses.
//!
//! Owns outcomes of the last seconds by entry and target, and when they accuse. Off unless thresholds are
//! given. Its word is one of several ([`crate::health`]): with a stream open it makes a member Suspect at
//! most, so services that answer nothing but errors take nobody's traffic away by this alone. Who is sent
//! nothing is said nothing of.

use std::collections::{BTreeMap, VecDeque};

use fairlead_model::health::{PeerReach, ProbeReport, Reach};
use fairlead_model::traffic::TrafficReport;
use fairlead_model::{MemberId, Millis};

/// Outcomes count for that long: three reports.
pub const WINDOW_MS: u64 = 15_000;

/// When outcomes accuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Part of the requests that must fail, in percent, 1 to 100.
    pub failed_percent: u8,
    /// Requests from an entry to a target in the window below which they say nothing.
    pub requests_min: u64,
}

/// Outcomes and what they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passive {
    thresholds: Thresholds,
    /// By target, then entry.
    seen: BTreeMap<MemberId, BTreeMap<MemberId, VecDeque<Seen>>>,
    verdicts: ProbeReport,
}

/// Requests of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    at: Millis,
    requests: u64,
    failed: u64,
}

impl Passive {
    /// Knows nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, seen: BTreeMap::new(), verdicts: ProbeReport::new() }
    }

    /// Takes what an entry's gateways did; gives the verdicts of now.
    pub fn report(
        &mut self,
        entry: &MemberId,
        report: &TrafficReport,
        now: Millis,
    ) -> &ProbeReport {
        let mut sums: BTreeMap<&MemberId, Seen> = BTreeMap::new();
        for (flow, counts) in &report.flows {
            // A request that stays says nothing of a door.
            if flow.target == *entry {
                continue;
            }
            let sum = sums.entry(&flow.target).or_insert(Seen { at: now, requests: 0, failed: 0 });
            sum.requests = sum.requests.saturating_add(counts.requests);
            sum.failed = sum.failed.saturating_add(counts.errors);
        }
        if sums.is_empty() {
            // The last report of an entry that fell silent; there may be no other to forget it by.
            self.drop_entry(entry);
        }
        for (target, sum) in sums {
            let entries = self.seen.entry(target.clone()).or_default();
            entries.entry(entry.clone()).or_default().push_back(sum);
        }
        self.judge(now)
    }

    /// An entry or target whose stream is gone says nothing more.
    pub fn forget(&mut self, entry: &MemberId, now: Millis) -> &ProbeReport {
        self.drop_entry(entry);
        self.judge(now)
    }

    fn drop_entry(&mut self, entry: &MemberId) {
        for entries in self.seen.values_mut() {
            entries.remove(entry);
        }
    }

    fn judge(&mut self, now: Millis) -> &ProbeReport {
        for entries in self.seen.values_mut() {
            for seen in entries.values_mut() {
                // A report may tell of the time just before it.
                seen.retain(|seen| now.since(seen.at) < WINDOW_MS);
            }
            entries.retain(|_, seen| !seen.is_empty());
        }
        self.seen.retain(|_, entries| !entries.is_empty());
        let thresholds = self.thresholds;
        let verdict = |entries: &BTreeMap<MemberId, VecDeque<Seen>>| {
            let said: Vec<bool> =
                entries.values().filter_map(|seen| fails(seen, thresholds)).collect();
            match (said.is_empty(), said.iter().all(|fails| *fails)) {
                (true, _) => None,
                (false, true) => Some(Reach::Refused),
                // One entry that gets through proves the door.
                (false, false) => Some(Reach::Reachable),
            }
        };
        let before = std::mem::take(&mut self.verdicts);
        for (target, entries) in &self.seen {
            let Some(reach) = verdict(entries) else { continue };
            let since =
                before.get(target).filter(|held| held.reach == reach).map(|held| held.since);
            let said = PeerReach { reach, since: since.unwrap_or(now) };
            self.verdicts.insert(target.clone(), said);
        }
        &self.verdicts
    }
}

/// Whether one entry's requests fail; none when they are too few to say.
fn fails(seen: &VecDeque<Seen>, thresholds: Thresholds) -> Option<bool> {
    let requests: u64 = seen.iter().fold(0, |sum, seen| sum.saturating_add(seen.requests));
    let failed: u64 = seen.iter().fold(0, |sum, seen| sum.saturating_add(seen.failed));
    let share = u128::from(failed) * 100;
    (requests >= thresholds.requests_min.max(1))
        .then(|| share >= u128::from(requests) * u128::from(thresholds.failed_percent))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::traffic::{Flow, FlowCounts};

    const THRESHOLDS: Thresholds = Thresholds { failed_percent: 90, requests_min: 20 };

    fn id(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn report(target: &str, requests: u64, errors: u64) -> TrafficReport {
        let flow = Flow {
            route: "HTTPRoute/shop/cart".to_owned(),
            rule: 0,
            backend: "shop/cart:80".to_owned(),
            target: id(target),
        };
        let counts = FlowCounts { requests, errors, ..FlowCounts::default() };
        TrafficReport { flows: [(flow, counts)].into(), ..TrafficReport::default() }
    }

    fn reach(verdicts: &ProbeReport, target: &str) -> Option<(Reach, u64)> {
        verdicts.get(&id(target)).map(|said| (said.reach, said.since.0))
    }

    #[test]
    fn most_must_fail_and_there_must_be_enough() {
        for (requests, errors, want) in [
            (19, 19, None),
            (20, 20, Some(Reach::Refused)),
            (20, 18, Some(Reach::Refused)),
            (20, 17, Some(Reach::Reachable)),
            (0, 0, None),
        ] {
            let mut passive = Passive::new(THRESHOLDS);
            let said =
                passive.report(&id("east"), &report("west", requests, errors), Millis(5_000));
            assert_eq!(reach(said, "west").map(|(reach, _)| reach), want, "{requests} {errors}");
        }
    }

    #[test]
    fn one_entry_that_gets_through_proves_the_door() {
        let mut passive = Passive::new(THRESHOLDS);
        passive.report(&id("east"), &report("west", 50, 50), Millis(5_000));
        let said = passive.report(&id("south"), &report("west", 50, 0), Millis(6_000));
        assert_eq!(reach(said, "west"), Some((Reach::Reachable, 6_000)));
    }

    #[test]
    fn a_verdict_keeps_its_time_and_old_outcomes_pass() {
        let mut passive = Passive::new(THRESHOLDS);
        passive.report(&id("east"), &report("west", 50, 50), Millis(5_000));
        let said = passive.report(&id("east"), &report("west", 50, 50), Millis(10_000));
        assert_eq!(reach(said, "west"), Some((Reach::Refused, 5_000)));
        // Another target's report is enough to let it pass.
        let said = passive.report(&id("south"), &report("east", 50, 0), Millis(25_001));
        assert_eq!(reach(said, "west"), None);
        assert_eq!(reach(said, "east"), Some((Reach::Reachable, 25_001)));
    }

    #[test]
    fn who_falls_silent_or_is_lost_says_nothing_more() {
        let mut passive = Passive::new(THRESHOLDS);
        passive.report(&id("east"), &report("west", 50, 50), Millis(5_000));
        let said = passive.report(&id("east"), &TrafficReport::default(), Millis(6_000));
        assert!(said.is_empty());
        passive.report(&id("east"), &report("west", 50, 50), Millis(7_000));
        assert!(passive.forget(&id("east"), Millis(7_500)).is_empty());
    }

    #[test]
    fn what_stays_in_its_cluster_says_nothing_of_a_door() {
        let mut passive = Passive::new(THRESHOLDS);
        assert!(passive.report(&id("east"), &report("east", 50, 50), Millis(5_000)).is_empty());
    }
}
