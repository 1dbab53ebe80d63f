//! A change that turns out bad, and the way back: history, rollback, mended, released.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Show,
    figures::{Figures, Rollback},
    telling,
};
use crate::{fleet::shop, load::Report, report::milliseconds};

const ROUTE: &str = "shop/cart";
/// Longer than a change takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// What the last answers say.
const LATELY: Duration = Duration::from_secs(1);
/// Weights of the stable version and of the canary, as the shop's file has them.
const GOOD: [u32; 2] = [80, 20];
const BAD: [u32; 2] = [0, 100];

impl Show<'_, '_> {
    pub(super) async fn rollback(&mut self, figures: &mut Figures) -> Result<()> {
        let fleet = self.fleet;
        self.screen
            .say("\n── A change that turns out bad: all requests to the canary. And the way back");
        let then = fleet.newest_change(ROUTE).await?.number;
        let at = self.cart.now();
        self.edit(GOOD, BAD).await?;
        let changed = self
            .watch(LIMIT, |load, now| is_at_all(&load.so_far(), now, |seen| !seen.contains("v1")))
            .await;
        // The history has it a moment after the gateways.
        fleet.newest_change(ROUTE).await?;
        self.show_command(&format!("fairlead history {ROUTE} --limit 1")).await?;
        let asked_at = self.cart.now();
        self.show_command(&format!("fairlead rollback {ROUTE} --to {then}")).await?;
        self.watch(LIMIT, |load, _| back_at(&load.so_far(), asked_at).is_some()).await;
        let back = back_at(&self.cart.so_far(), asked_at).map(|at| at.saturating_sub(asked_at));
        // Nothing moves: it waits for the release, which finds what is in force already.
        self.edit(BAD, GOOD).await?;
        self.show_command(&format!("fairlead rollback {ROUTE} --release")).await?;
        let released = fleet.routes().await?.iter().all(|route| route.pinned.is_none());
        let until = self.cart.now() + LATELY;
        self.watch(LATELY * 2, |_, now| now >= until).await;
        let (all, now) = (self.cart.so_far(), self.cart.now());
        let kept = is_at_all(&all, now, |seen| seen.contains("v1"));
        fleet.wait_settled().await.context("the fleet does not settle after the release")?;
        let since = all.only(|sample| sample.started >= at);
        let rollback = Rollback {
            revision: then,
            changed,
            back_after_ms: back.map(milliseconds),
            released: released && kept,
            requests: since.total(),
            failed_requests: since.failed(),
        };
        self.screen.say(&rollback.line());
        figures.rollback = Some(rollback);
        Ok(())
    }

    async fn edit(&mut self, [v1, v2]: [u32; 2], to: [u32; 2]) -> Result<()> {
        self.screen.say(&format!(
            "[hub] $ kubectl -n shop edit httproute cart   (weights {v1}:{v2} → {}:{})",
            to[0], to[1]
        ));
        self.fleet.hub().objects().apply(&cart(to)).await.map(drop)
    }

    async fn show_command(&mut self, line: &str) -> Result<()> {
        let ran = self.fleet.at_hub(line).await?;
        self.screen.say(&telling("hub", &ran));
        ran.expect_success().map(drop)
    }
}

/// The cart's route with other weights.
fn cart([v1, v2]: [u32; 2]) -> Value {
    shop::route("cart", shop::CART, &[("cart", v1), ("cart-v2", v2)], &json!(null))
}

/// Whether the versions that answered lately are such, for each entry.
fn is_at_all(report: &Report, now: Duration, is: impl Fn(&BTreeSet<&str>) -> bool) -> bool {
    let since = now.saturating_sub(LATELY);
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in report.samples().iter().filter(|sample| sample.started >= since) {
        let of_entry = seen.entry(&sample.entry).or_default();
        if sample.outcome.is_success() {
            of_entry.insert(&sample.outcome.version);
        }
    }
    !seen.is_empty() && seen.values().all(|seen| !seen.is_empty() && is(seen))
}

/// When the last of the entries had the stable version again.
fn back_at(report: &Report, asked_at: Duration) -> Option<Duration> {
    let mut first: BTreeMap<&str, Option<Duration>> = BTreeMap::new();
    for sample in report.samples().iter().filter(|sample| sample.started >= asked_at) {
        let of_entry = first.entry(&sample.entry).or_default();
        if sample.outcome.version == "v1" && of_entry.is_none_or(|at| sample.started < at) {
            *of_entry = Some(sample.started);
        }
    }
    first.into_values().collect::<Option<Vec<_>>>()?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Outcome, Sample};

    fn mk_report(answers: &[(&str, u64, &str)]) -> Report {
        let sample = |(entry, at, version): &(&str, u64, &str)| Sample {
            entry: (*entry).into(),
            started: Duration::from_millis(*at),
            took: Duration::ZERO,
            outcome: Outcome { status: 200, version: (*version).into(), ..Outcome::default() },
        };
        Report::new(answers.iter().map(sample).collect())
    }

    #[test]
    fn it_is_back_when_the_last_entry_has_it() {
        let ms = Duration::from_millis;
        let answers = [("east", 100, "v1"), ("east", 900, "v2"), ("west", 900, "v2")];
        let mut answers = answers.to_vec();
        assert_eq!(back_at(&mk_report(&answers), ms(500)), None);
        answers.extend([("east", 1_000, "v1"), ("east", 1_400, "v1")]);
        assert_eq!(back_at(&mk_report(&answers), ms(500)), None);
        answers.push(("west", 1_200, "v1"));
        assert_eq!(back_at(&mk_report(&answers), ms(500)), Some(ms(1_200)));
        assert_eq!(back_at(&mk_report(&[]), ms(500)), None);
    }

    #[test]
    fn what_every_entry_saw_lately_counts() {
        let answers = [("east", 100, "v1"), ("east", 1_900, "v2"), ("west", 1_900, "v2")];
        let only_canary = |seen: &BTreeSet<&str>| !seen.contains("v1");
        let at = |now| is_at_all(&mk_report(&answers), Duration::from_millis(now), only_canary);
        assert!(at(2_000) && !at(1_000) && !at(9_000));
    }
}
