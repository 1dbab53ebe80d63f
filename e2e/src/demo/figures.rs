//! What the demo measured, and whether it is what was promised. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::names::Names;
use super::traces::Crossing;
use crate::load::{Outcome, Report, ratio};

/// A part of the requests of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Share {
    pub(super) fraction: f64,
    pub(super) requests: usize,
}

/// Entry → who answered → part of its requests.
pub(super) type Shares = BTreeMap<String, BTreeMap<String, Share>>;

/// What became of the requests while a member was dead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Failover {
    pub(super) killed: String,
    /// Requests through surviving entries, from the kill on.
    pub(super) requests: usize,
    pub(super) failed_requests: usize,
    /// Kill → 99 % of the requests started in every later 200 ms window succeed.
    pub(super) recovered_after_ms: Option<f64>,
    /// Start of its machines → surviving entries send to it again as much as before.
    pub(super) returned_after_ms: Option<f64>,
}

/// A bad change, and the way back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rollback {
    /// What the route was led back to.
    pub(super) revision: u64,
    /// The bad change was seen in every entry.
    pub(super) changed: bool,
    /// Start of the command → every entry has been answered by what was there before.
    pub(super) back_after_ms: Option<f64>,
    /// The route is as it is written again, mended, and nothing moved.
    pub(super) released: bool,
    /// From the bad change on.
    pub(super) requests: usize,
    pub(super) failed_requests: usize,
}

impl Rollback {
    pub(super) fn line(&self) -> String {
        let (failed, requests) = (self.failed_requests, self.requests);
        match self.back_after_ms {
            Some(ms) => format!(
                "  Back in every entry {ms:.0} ms after the command was typed; {failed} of {requests} \
                 requests failed."
            ),
            None => format!("  It is not back; {failed} of {requests} requests failed."),
        }
    }

    fn problems(&self) -> impl Iterator<Item = String> {
        let Self { revision, failed_requests, .. } = self;
        let late = self.back_after_ms.is_none_or(|ms| ms > RECOVERY_MS_MAX);
        let rows = [
            (!self.changed, "an edited route was not live in every entry".to_owned()),
            (late, format!("a rollback to revision {revision} was not live in time")),
            (!self.released, "the release of a pin did not leave things as they were".to_owned()),
            (
                *failed_requests > 0,
                format!("{failed_requests} requests failed during a change and its rollback"),
            ),
        ];
        rows.into_iter().filter_map(|(is, problem)| is.then_some(problem))
    }
}

/// What a restart of the hub changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct HubRestart {
    /// Objects of ours in all members.
    pub(super) objects: usize,
    /// Those with another resourceVersion after it.
    pub(super) rewritten: Vec<String>,
    pub(super) requests: usize,
    pub(super) failed_requests: usize,
}

/// `demo.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Tools and programs built → the shop answers through every entry.
    pub(super) ready_s: f64,
    pub(super) programs_s: f64,
    pub(super) world_s: f64,
    /// Member → how long its join took.
    pub(super) join_s: BTreeMap<String, f64>,
    /// Requests to the cart: entry → target.
    pub(super) shares: Shares,
    /// Requests to the cart: entry → version of the service.
    pub(super) versions: Shares,
    /// Requests to the catalog, which one member has: entry → target.
    pub(super) catalog: Shares,
    pub(super) failed_requests: usize,
    pub(super) recovered_after_ms: Option<f64>,
    pub(super) failover: Option<Failover>,
    pub(super) rollback: Option<Rollback>,
    pub(super) hub_restart: Option<HubRestart>,
    /// What an agent answered for the shop's name.
    pub(super) names: Names,
    /// A request that crosses as a trace; none where Jaeger is not built.
    pub(super) crossing: Option<Crossing>,
    pub(super) passed: bool,
    /// What was not as promised.
    pub(super) problems: Vec<String>,
}

/// Parts of each entry's requests by what `key` says of an answer; failures are under `failed`.
pub(super) fn shares(report: &Report, key: impl Fn(&Outcome) -> String) -> Shares {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for sample in report.samples() {
        let outcome = &sample.outcome;
        let answered = outcome.is_success() && !outcome.target.is_empty();
        let who = if answered { key(outcome) } else { "failed".to_owned() };
        *counts.entry(sample.entry.clone()).or_default().entry(who).or_default() += 1;
    }
    let of_entry = |counts: BTreeMap<String, usize>| {
        let total = counts.values().sum();
        let share = |requests| Share { fraction: ratio(requests, total), requests };
        counts.into_iter().map(|(who, requests)| (who, share(requests))).collect()
    };
    counts.into_iter().map(|(entry, counts)| (entry, of_entry(counts))).collect()
}

/// Some 2,000 requests per entry: four standard deviations are 3.6 points at 20 %.
const TOLERANCE: f64 = 0.04;
const RECOVERY_MS_MAX: f64 = 10_000.0;

/// What is not as the shop's files and the demo promise.
pub(super) fn problems(figures: &Figures, members: &[String], catalog_home: &str) -> Vec<String> {
    let even = ratio(1, members.len());
    let targets: Vec<(&str, f64)> = members.iter().map(|m| (m.as_str(), even)).collect();
    let mut problems = Vec::new();
    for entry in members {
        problems.extend(off("cart", &figures.shares, entry, &targets));
        problems.extend(off("cart", &figures.versions, entry, &[("v1", 0.8), ("v2", 0.2)]));
        problems.extend(off("catalog", &figures.catalog, entry, &[(catalog_home, 1.0)]));
    }
    match figures.recovered_after_ms {
        None => problems.push("requests did not recover after a member was killed".into()),
        Some(ms) if ms > RECOVERY_MS_MAX => {
            problems.push(format!("requests recovered only {ms:.0} ms after a member was killed"));
        }
        Some(_) => {}
    }
    if figures.failover.as_ref().is_some_and(|failover| failover.returned_after_ms.is_none()) {
        problems.push("the member that came back got no traffic".into());
    }
    problems.extend(figures.rollback.iter().flat_map(Rollback::problems));
    if let Some(restart) = &figures.hub_restart {
        if !restart.rewritten.is_empty() {
            let which = restart.rewritten.join(", ");
            problems.push(format!("a restart of the hub rewrote objects: {which}"));
        }
        if restart.failed_requests > 0 {
            let failed = restart.failed_requests;
            problems.push(format!("{failed} requests failed while the hub was restarted"));
        }
    }
    problems
}

/// Shares of one entry that differ from what was asked for.
fn off(what: &str, shares: &Shares, entry: &str, wanted: &[(&str, f64)]) -> Vec<String> {
    let Some(found) = shares.get(entry) else {
        return vec![format!("{what} through {entry}: no requests")];
    };
    let share = |who: &str| found.get(who).map_or(0.0, |share| share.fraction);
    let differs = |(who, wanted): &&(&str, f64)| (share(who) - wanted).abs() > TOLERANCE;
    let mut problems: Vec<String> = wanted
        .iter()
        .filter(differs)
        .map(|(who, wanted)| {
            let (share, wanted) = (share(who) * 100.0, wanted * 100.0);
            format!("{what} through {entry}: {who} got {share:.1} % instead of {wanted:.1} %")
        })
        .collect();
    if let Some(failed) = found.get("failed") {
        problems.push(format!("{what} through {entry}: {} requests failed", failed.requests));
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Sample;

    fn mk_report(entry: &str, answers: &[(&str, &str, usize)]) -> Report {
        let sample = |target: &str, version: &str| Sample {
            entry: entry.into(),
            started: Duration::ZERO,
            took: Duration::ZERO,
            outcome: Outcome {
                status: if target.is_empty() { 503 } else { 200 },
                target: target.into(),
                version: version.into(),
                ..Outcome::default()
            },
        };
        let times = |(target, version, n): &(&str, &str, usize)| vec![sample(target, version); *n];
        Report::new(answers.iter().flat_map(times).collect())
    }

    /// The same shares for two entries.
    fn mk_shares(answers: &[(&str, &str, usize)], key: fn(&Outcome) -> String) -> Shares {
        let of_east = shares(&mk_report("east", answers), key)["east"].clone();
        ["east", "west"].map(|entry| (entry.to_owned(), of_east.clone())).into()
    }

    fn mk_figures() -> Figures {
        let cart = [("east", "v1", 40), ("west", "v1", 40), ("east", "v2", 10), ("west", "v2", 10)];
        Figures {
            shares: mk_shares(&cart, |o| o.target.clone()),
            versions: mk_shares(&cart, |o| o.version.clone()),
            catalog: mk_shares(&[("west", "v1", 9)], |o| o.target.clone()),
            recovered_after_ms: Some(700.0),
            ..Figures::default()
        }
    }

    #[test]
    fn what_was_promised_is_no_problem() {
        let members = ["east".to_owned(), "west".to_owned()];
        assert_eq!(problems(&mk_figures(), &members, "west"), Vec::<String>::new());
    }

    #[test]
    fn every_broken_promise_is_told() {
        let members = ["east".to_owned(), "west".to_owned()];
        let mut figures = mk_figures();
        figures.shares =
            shares(&mk_report("east", &[("east", "v1", 9), ("", "", 1)]), |o| o.target.clone());
        figures.recovered_after_ms = Some(12_000.0);
        figures.hub_restart = Some(HubRestart {
            objects: 3,
            rewritten: vec!["~ A x".into()],
            requests: 9,
            failed_requests: 1,
        });
        figures.rollback = Some(Rollback {
            revision: 7,
            changed: false,
            back_after_ms: Some(11_000.0),
            released: false,
            requests: 9,
            failed_requests: 2,
        });
        let text = problems(&figures, &members, "west").join("\n");
        for part in [
            "cart through east: east got 90.0 % instead of 50.0 %",
            "cart through east: 1 requests failed",
            "cart through west: no requests",
            "only 12000 ms",
            "rewrote objects: ~ A x",
            "1 requests failed while the hub",
            "an edited route was not live",
            "to revision 7 was not live in time",
            "the release of a pin did not",
            "2 requests failed during a change",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        figures.recovered_after_ms = None;
        assert!(problems(&figures, &members, "west").join("\n").contains("did not recover"));
    }
}
