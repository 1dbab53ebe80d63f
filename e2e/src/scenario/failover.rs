//! Failover: every row of the design's table of failures, on real components, with its figure.
//!
//! All entries use all members; traffic enters by `west` and `south`, and `east` suffers. Limits are
//! wide, for busy machines: the figures are what counts, and `cargo e2e bench failover` measures them.
//! More bad objects are facts of `badinput`, more of hubs against each other in `hub/sim/scripts`.

mod bad;
mod fleet_wide;
mod link;
mod second;
mod store;

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_model::{health::MemberState, view::MemberView};
use serde_json::{Value, json};

use super::{and_clear, spine::clean_up};
use crate::{
    fleet::{
        Fleet,
        trial::{Failback, HubIs, Kind, PATH, Seen, VICTIM, judge, pass, rendered_rules, strict},
    },
    load::Report,
    report::{Facts, Figures, Finding, figures, milliseconds},
    wait::{self, Look},
    world::World,
};

/// Short, to be watched, but long enough to be seen step by step.
const FAILBACK: Failback = Failback { after_s: 2, ramp_s: 8 };
/// Wide, for a busy machine.
const RECOVERED_MAX: Duration = Duration::from_secs(5);
/// How long the hub may take to see what happened: the longest silence on a stream, and some more.
const JUDGED_LIMIT: Duration = Duration::from_secs(40);
/// Something is watched for so long that must change nothing.
const AWAY: Duration = Duration::from_secs(8);
const QUIET: Duration = Duration::from_secs(20);
const RETURN_LIMIT: Duration = Duration::from_secs(120);

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::new(world)?;
    and_clear(tell(&fleet, facts), clean_up(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.open_trial(FAILBACK).await.context("setting the fleet up")?;
    facts.look("a1", "a member dies: others stop sending; Down", killed(fleet)).await;
    facts.look("a2", "it comes back step by step, nothing fails", failback(fleet)).await;
    facts.look("a3", "a member vanishes: others stop sending; Down", blackholed(fleet)).await;
    facts.look("b1", "only its agent dies: its traffic stays", agent_lost(fleet)).await;
    facts.look("b2", "only its API server dies: its traffic stays", api_lost(fleet)).await;
    facts.look("c1", "only its gateway dies: others stop; it reports on", gateway(fleet)).await;
    let gone = "all endpoints of a service gone: others stop sending";
    facts.look("d1", gone, endpoints(fleet, HubIs::Up)).await;
    facts.look("d2", &format!("{gone}, without a hub"), endpoints(fleet, HubIs::Down)).await;
    link::play(fleet, facts).await;
    fleet_wide::play(fleet, facts).await;
    store::play(fleet, facts).await;
    second::play(fleet, facts).await;
    facts.look("i1", "all cores busy: no false failover", quiet(fleet)).await;
    facts.look("j1", "bad objects spoil nothing else", bad::objects(fleet)).await;
    Ok(())
}

/// A finding about a fault: recovered in time, and whatever else holds.
fn finding(seen: &Seen, also: bool, more: Figures) -> Finding {
    let in_time = seen.recovered.is_some_and(|time| time <= RECOVERED_MAX);
    let mut all = seen_figures(seen);
    all.extend(more);
    Finding::new(in_time && seen.failed_before == 0 && also, all)
}

fn seen_figures(seen: &Seen) -> Figures {
    figures([
        ("recovered_after_ms", json!(seen.recovered.map(milliseconds))),
        ("failed", json!(seen.failed)),
        ("failures", json!(seen.failures)),
        ("requests", json!(seen.requests)),
        ("failed_before", json!(seen.failed_before)),
    ])
}

/// Waits until the hub holds the victim for this.
async fn wait_state(fleet: &Fleet<'_>, wanted: &[MemberState]) -> Result<MemberView> {
    wait::until(&format!("{VICTIM} to be held for {wanted:?}"), JUDGED_LIMIT, || async {
        let view = fleet.member_view(VICTIM).await?;
        Ok(match wanted.contains(&view.state) {
            true => Look::Done(view),
            false => Look::Not(format!("it is {:?}", view.state)),
        })
    })
    .await
}

/// Whether and why the hub says that a member's door can be reached, on its MemberCluster.
async fn reachable(fleet: &Fleet<'_>) -> Result<String> {
    let (status, reason) =
        super::spine::member_condition(fleet, VICTIM, keys::CONDITION_REACHABLE).await?;
    Ok(format!("{status} {reason}"))
}

async fn killed(fleet: &Fleet<'_>) -> Result<Finding> {
    let seen = fleet.watch_fault(Kind::MemberKilled, PATH).await?;
    let down = wait_state(fleet, &[MemberState::Down]).await;
    let shown = figures([
        ("held_for", json!(down.as_ref().map(|view| format!("{:?}", view.state)).ok())),
        ("reachable", json!(reachable(fleet).await?)),
    ]);
    Ok(finding(&seen, down.is_ok(), shown))
}

/// The series of the member's share while it comes back, a value a second.
async fn failback(fleet: &Fleet<'_>) -> Result<Finding> {
    let load = fleet.start_left(PATH).await?;
    Kind::MemberKilled.mend(fleet.world()).await?;
    let returned = wait::until("the member to get its share again", RETURN_LIMIT, || async {
        let now = load.now();
        let second = Duration::from_secs(1);
        let last = load.so_far().only(|sample| sample.started + second >= now);
        // A third, give or take.
        Ok(match last.total() > 0 && share(&last) > 0.28 {
            true => Look::Done(()),
            false => Look::Not(format!("its share is {:.2}", share(&last))),
        })
    })
    .await;
    pass(&load, Duration::from_secs(2)).await?;
    let report = strict(&load.stop().await);
    let series = series(&report);
    fleet.wait_whole(PATH).await?;
    returned?;
    // A ramp has values between nothing and all.
    let between = series.iter().filter(|share| **share > 0.02 && **share < 0.28).count();
    Ok(Finding::new(
        report.failed() == 0 && between >= 2,
        figures([
            ("failed", json!(report.failed())),
            ("failures", json!(judge(&report, Duration::ZERO).failures)),
            ("requests", json!(report.total())),
            ("share_by_second", json!(series)),
        ]),
    ))
}

fn share(report: &Report) -> f64 {
    let shares = report.shares(|sample| sample.outcome.target.clone());
    shares.get(VICTIM).copied().unwrap_or_default()
}

/// The victim's share in each second, from the last second without it on.
fn series(report: &Report) -> Vec<f64> {
    let last = report.samples().last().map_or(0, |sample| sample.started.as_secs());
    let of = |second: u64| share(&report.only(|sample| sample.started.as_secs() == second));
    let all: Vec<f64> = (0..last).map(|s| (of(s) * 100.0).round() / 100.0).collect();
    let first = all.iter().position(|share| *share > 0.0).unwrap_or(0);
    all[first.saturating_sub(1)..].to_vec()
}

async fn blackholed(fleet: &Fleet<'_>) -> Result<Finding> {
    let seen = fleet.watch_fault(Kind::MemberBlackholed, PATH).await;
    let down = wait_state(fleet, &[MemberState::Down]).await;
    Kind::MemberBlackholed.mend(fleet.world()).await?;
    fleet.wait_whole(PATH).await?;
    let shown = json!(down.as_ref().map(|view| format!("{:?}", view.state)).ok());
    Ok(finding(&seen?, down.is_ok(), figures([("held_for", shown)])))
}

/// Something that must change nothing for requests; `shown` is what the hub says meanwhile.
async fn unmoved(
    fleet: &Fleet<'_>,
    during: impl Future<Output = Result<Value>>,
) -> Result<Finding> {
    let rules = [
        rendered_rules(fleet.world(), "west").await?,
        rendered_rules(fleet.world(), "south").await?,
    ];
    let load = fleet.start_left(PATH).await?;
    let shown = during.await;
    let passed = pass(&load, AWAY).await;
    let now = load.now();
    let report = strict(&load.stop().await);
    passed?;
    let last = report.only(|sample| sample.started + AWAY / 2 >= now);
    let same = rules
        == [
            rendered_rules(fleet.world(), "west").await?,
            rendered_rules(fleet.world(), "south").await?,
        ];
    Ok(Finding::new(
        report.failed() == 0 && same && share(&last) > 0.28 && shown.is_ok(),
        figures([
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
            ("share_stays", json!((share(&last) * 100.0).round() / 100.0)),
            ("routes_unchanged", json!(same)),
            ("shown", shown.unwrap_or_else(|error| json!(format!("{error:#}")))),
        ]),
    ))
}

async fn agent_lost(fleet: &Fleet<'_>) -> Result<Finding> {
    fleet.world().fault().kill_agent(VICTIM).await?;
    let found = unmoved(fleet, async {
        let view = wait_state(fleet, &[MemberState::AgentLost]).await?;
        Ok(json!(format!("{:?}", view.state)))
    })
    .await;
    fleet.world().fault().restore_agent(VICTIM).await?;
    fleet.wait_whole(PATH).await?;
    found
}

async fn api_lost(fleet: &Fleet<'_>) -> Result<Finding> {
    fleet.world().fault().kill_api(VICTIM).await?;
    let found = unmoved(fleet, async {
        let view = wait_state(fleet, &[MemberState::AgentLost]).await?;
        Ok(json!(format!("{:?}", view.state)))
    })
    .await;
    fleet.world().fault().restore_api(VICTIM).await?;
    fleet.wait_whole(PATH).await?;
    found
}

async fn gateway(fleet: &Fleet<'_>) -> Result<Finding> {
    let seen = fleet.watch_fault(Kind::GatewayKilled, PATH).await;
    let view = wait_state(fleet, &[MemberState::Suspect]).await;
    let before = view.as_ref().ok().and_then(|view| view.heard_at);
    let heard = wait::until("another word of its agent", JUDGED_LIMIT, || async {
        let heard = fleet.member_view(VICTIM).await?.heard_at;
        Ok(if heard > before { Look::Done(()) } else { Look::Not("nothing yet".into()) })
    })
    .await;
    Kind::GatewayKilled.mend(fleet.world()).await?;
    fleet.wait_whole(PATH).await?;
    let reports = view.is_ok() && heard.is_ok();
    let held = json!(view.as_ref().map(|view| format!("{:?}", view.state)).ok());
    Ok(finding(&seen?, reports, figures([("held_for", held)])))
}

async fn endpoints(fleet: &Fleet<'_>, hub: HubIs) -> Result<Finding> {
    let seen = fleet.trial(Kind::EndpointsGone, hub, PATH).await?;
    Ok(finding(&seen, true, Figures::new()))
}

async fn quiet(fleet: &Fleet<'_>) -> Result<Finding> {
    let (changes, report) = fleet.quiet(QUIET).await?;
    Ok(Finding::new(
        changes == 0,
        figures([
            ("route_changes", json!(changes)),
            ("seconds", json!(QUIET.as_secs())),
            ("requests", json!(report.total())),
            ("failed", json!(report.failed())),
        ]),
    ))
}
