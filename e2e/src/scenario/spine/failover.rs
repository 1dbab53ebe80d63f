//! e: a member dies under load. How long do requests through the others fail, and when does it
//! get traffic again?
//!
//! Every member answers for every entry meanwhile, so that a third of each surviving entry's
//! requests goes to the dead one until its agents act.

use std::time::{Duration, Instant};

use anyhow::Result;
use fairlead_crds::keys;
use serde_json::json;

use super::{EAST, SOUTH, Stage, WEST, wait_shares};
use crate::{
    fleet::{
        shop,
        trial::{RECOVERED_MAX, failures, strict},
    },
    load::{Report, Running},
    object::ObjectKey,
    report::{Facts, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
};

const VICTIM: &str = EAST;
const RATE: f64 = 300.0;
const WATCH_LIMIT: Duration = Duration::from_secs(40);
/// So much traffic is seen before the fault.
const STEADY: Duration = Duration::from_secs(2);
/// Starting a whole cluster takes most of this.
const RETURN_LIMIT: Duration = Duration::from_secs(180);

/// How a member dies.
#[derive(Clone, Copy)]
enum Death {
    /// Processes and network: nobody answers, not even to refuse.
    Silent,
    /// Only processes: connections are refused.
    Loud,
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    fleet.spread_cart().await?;
    let third = 1.0 / 3.0;
    for entry in [EAST, WEST, SOUTH] {
        let wanted = [EAST, WEST, SOUTH].map(|member| (member, third));
        wait_shares(fleet, entry, shop::CART, &wanted).await?;
    }
    fleet.wait_settled().await?;
    facts.look("e1", "a member vanishes: the others recover", killed(stage, Death::Silent)).await;
    facts.look("e2", "it returns and gets traffic again", returned(stage)).await;
    facts
        .look("e3", "a member's processes die: the others recover", killed(stage, Death::Loud))
        .await;
    facts.look("e4", "it returns once more", returned(stage)).await;
    let policy =
        ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, "cart-everywhere");
    fleet.world().hub().objects().delete(&policy).await?;
    fleet.wait_settled().await?;
    Ok(())
}

async fn start_load(stage: &Stage<'_>) -> Result<Running> {
    let mut load = stage.fleet.load(shop::CART).await?;
    load.entries.retain(|entry| entry.name != VICTIM);
    let running = load.rate(RATE).start();
    wait::until("some steady traffic", STEADY * 3, || async {
        Ok(if running.now() >= STEADY { Look::Done(()) } else { Look::Not("not yet".into()) })
    })
    .await?;
    Ok(running)
}

async fn killed(stage: &Stage<'_>, death: Death) -> Result<Finding> {
    let world = stage.fleet.world();
    let load = start_load(stage).await?;
    let at = load.now();
    if matches!(death, Death::Silent) {
        world.fault().isolate(VICTIM)?;
    }
    world.fault().kill_member(VICTIM).await?;
    let watched = wait::until("requests to recover", WATCH_LIMIT, || async {
        Ok(match strict(&load.settled()).recovered_after(at) {
            Some(_) => Look::Done(()),
            None => Look::Not(format!("{} have failed", load.so_far().failed())),
        })
    })
    .await;
    let report = strict(&load.stop().await);
    let recovered = report.recovered_after(at);
    // Not what was on its way when it happened.
    let before = report.only(|sample| sample.started + sample.took < at);
    let after = report.only(|sample| sample.started >= at);
    let to_victim = answered_by_victim(&before);
    let holds = watched.is_ok()
        && recovered.is_some_and(|time| time <= RECOVERED_MAX)
        && before.failed() == 0
        && to_victim > 0;
    Ok(Finding::new(
        holds,
        figures([
            ("recovered_after_ms", json!(recovered.map(milliseconds))),
            ("failed", json!(after.failed())),
            ("requests", json!(after.total())),
            ("failed_before", json!(before.failed())),
            ("failures", json!(failures(&report))),
        ]),
    ))
}

fn answered_by_victim(report: &Report) -> usize {
    report.samples().iter().filter(|sample| sample.outcome.target == VICTIM).count()
}

async fn returned(stage: &Stage<'_>) -> Result<Finding> {
    let world = stage.fleet.world();
    let load = start_load(stage).await?;
    let at = load.now();
    let start = Instant::now();
    world.fault().rejoin(VICTIM)?;
    world.fault().restore_member(VICTIM).await?;
    let machines = seconds(start.elapsed());
    wait::until("the member to get its share again", RETURN_LIMIT, || async {
        let now = load.now();
        let last = load.so_far().only(|sample| sample.started + Duration::from_secs(2) >= now);
        let (there, all) = (answered_by_victim(&last), last.total());
        // A third, give or take what is still under way.
        Ok(match there * 4 >= all && all > 0 {
            true => Look::Done(()),
            false => Look::Not(format!("it answers {there} of {all} requests")),
        })
    })
    .await?;
    let took = seconds(start.elapsed());
    stage.fleet.wait_settled().await?;
    let report = strict(&load.stop().await).only(|sample| sample.started >= at);
    Ok(Finding::new(
        report.failed() == 0,
        figures([
            ("returned_after_s", json!(took)),
            ("machines_s", json!(machines)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
            ("failures", json!(failures(&report))),
        ]),
    ))
}
