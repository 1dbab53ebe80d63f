//! d: local first, and what spills over when too few local endpoints are ready.
//!
//! With 7 of 20 ready and a threshold of 70 %, the own cluster takes .35/.70 = half; the rest
//! goes to the same region before any other.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::{EAST, SOUTH, Stage, WEST, route, route_key, send, share_of, wait_shares};
use crate::{
    fleet::shop,
    report::{Facts, Finding, figures, seconds},
};

const SERVICE: &str = "tea";
const PATH: &str = "/tea";
const REPLICAS: u8 = 20;
const FEW: u8 = 7;
const REQUESTS: u64 = 4000;
/// 3 points: almost four standard deviations at one half.
const TOLERANCE: f64 = 0.03;

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    for member in fleet.world().members() {
        fleet.serve(member.name(), SERVICE, "v1", REPLICAS).await?;
    }
    let tea = route(SERVICE, PATH, &[(SERVICE, 1)], &Value::Null);
    fleet.world().hub().objects().apply(&tea).await?;
    fleet.wait_live(PATH).await?;
    // The door that was shut before and is open again counts as just returned for a while.
    fleet.wait_ramped(&format!("{}/{SERVICE}", shop::NAMESPACE)).await?;
    facts.look("d1", "with healthy endpoints all stays local", all_local(stage, REPLICAS)).await;
    facts.look("d2", "with 35 % ready half spills, same region first", half(stage)).await;
    facts.look("d3", "with none ready all goes", none(stage)).await;
    facts.look("d4", "with all ready again all comes back", all_local(stage, REPLICAS)).await;
    fleet.world().hub().objects().delete(&route_key(SERVICE)).await?;
    for member in fleet.world().members() {
        fleet.unserve(member.name(), SERVICE).await?;
    }
    Ok(())
}

async fn set_ready(stage: &Stage<'_>, ready: u8) -> Result<Instant> {
    let world = stage.fleet.world();
    world.set_ready(EAST, shop::NAMESPACE, SERVICE, ready, REPLICAS).await?;
    Ok(Instant::now())
}

async fn all_local(stage: &Stage<'_>, ready: u8) -> Result<Finding> {
    let start = set_ready(stage, ready).await?;
    wait_shares(&stage.fleet, EAST, PATH, &[(EAST, 1.0)]).await?;
    let moved = seconds(start.elapsed());
    let report = send(&stage.fleet, EAST, PATH, REQUESTS).await?;
    let local = share_of(&report, EAST);
    let more = [
        ("local", json!(local)),
        ("requests", json!(report.total())),
        ("failed", json!(report.failed())),
        ("moved_after_s", json!(moved)),
    ];
    Ok(Finding::new(local >= 0.999 && report.failed() == 0, figures(more)))
}

async fn half(stage: &Stage<'_>) -> Result<Finding> {
    let start = set_ready(stage, FEW).await?;
    wait_shares(&stage.fleet, EAST, PATH, &[(EAST, 0.5), (WEST, 0.5)]).await?;
    let moved = seconds(start.elapsed());
    let report = send(&stage.fleet, EAST, PATH, REQUESTS).await?;
    let (east, west, south) =
        (share_of(&report, EAST), share_of(&report, WEST), share_of(&report, SOUTH));
    let near = |share: f64| (share - 0.5).abs() <= TOLERANCE;
    let holds = near(east) && near(west) && south == 0.0 && report.failed() == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("local", json!(east)),
            ("same_region", json!(west)),
            ("other_region", json!(south)),
            ("failed", json!(report.failed())),
            ("moved_after_s", json!(moved)),
        ]),
    ))
}

async fn none(stage: &Stage<'_>) -> Result<Finding> {
    let start = set_ready(stage, 0).await?;
    wait_shares(&stage.fleet, EAST, PATH, &[(WEST, 1.0)]).await?;
    let moved = seconds(start.elapsed());
    let report = send(&stage.fleet, EAST, PATH, REQUESTS).await?;
    let (east, west) = (share_of(&report, EAST), share_of(&report, WEST));
    let holds = east == 0.0 && west >= 0.999 && report.failed() == 0;
    let more = [
        ("local", json!(east)),
        ("same_region", json!(west)),
        ("failed", json!(report.failed())),
        ("moved_after_s", json!(moved)),
    ];
    Ok(Finding::new(holds, figures(more)))
}
