//! f, g: the hub is away, or most members vanish at once. Nothing changes that need not.

use anyhow::{Context, Result};
use serde_json::json;

use super::{AWAY, JUDGED_LIMIT, finding, seen_figures, unmoved};
use crate::{
    fleet::{
        Fleet,
        trial::{Kind, PATH, pass, strict},
    },
    report::{Facts, Finding, figures, seconds},
    wait::{self, Look},
};

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    facts.look("f1", "the hub is away: nothing changes", hub_away(fleet)).await;
    facts.look("f2", "meanwhile a member vanishes: others stop sending", without_hub(fleet)).await;
    facts.look("f3", "the hub is back: nothing is written", hub_back(fleet)).await;
    facts.look("g1", "most agents vanish at once: the hub freezes", frozen(fleet)).await;
    facts.look("g2", "they are back: it plans again", thawed(fleet)).await;
}

/// It stays away for the next two facts.
async fn hub_away(fleet: &Fleet<'_>) -> Result<Finding> {
    unmoved(fleet, async {
        fleet.world().fault().kill_hub().await?;
        Ok(json!("nothing: the hub is away"))
    })
    .await
}

async fn without_hub(fleet: &Fleet<'_>) -> Result<Finding> {
    let seen = fleet.watch_fault(Kind::MemberBlackholed, PATH).await;
    Kind::MemberBlackholed.mend(fleet.world()).await?;
    let back = fleet.wait_even(PATH).await;
    let seen = seen?;
    back.context("after the member was back")?;
    Ok(finding(&seen, true, seen_figures(&seen)))
}

async fn hub_back(fleet: &Fleet<'_>) -> Result<Finding> {
    let before = fleet.route_changes().await?;
    let load = fleet.start_left(PATH).await?;
    fleet.world().fault().restore_hub().await?;
    let settled = fleet.wait_settled().await?;
    pass(&load, AWAY).await?;
    let report = strict(&load.stop().await);
    let changes = fleet.route_changes().await? - before;
    Ok(Finding::new(
        report.failed() == 0 && changes == 0,
        figures([
            ("settled_after_s", json!(seconds(settled))),
            ("route_changes", json!(changes)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

async fn frozen(fleet: &Fleet<'_>) -> Result<Finding> {
    unmoved(fleet, async {
        for member in fleet.world().members() {
            fleet.world().fault().kill_agent(member.name()).await?;
        }
        wait::until("the hub to freeze", JUDGED_LIMIT, || async {
            Ok(match fleet.status().await?.frozen {
                Some(note) => Look::Done(json!(note.to_string())),
                None => Look::Not("it plans".into()),
            })
        })
        .await
    })
    .await
}

async fn thawed(fleet: &Fleet<'_>) -> Result<Finding> {
    for member in fleet.world().members() {
        fleet.world().fault().restore_agent(member.name()).await?;
    }
    fleet.wait_whole(PATH).await?;
    let frozen = fleet.status().await?.frozen;
    Ok(Finding::new(frozen.is_none(), figures([("frozen", json!(frozen.map(|n| n.to_string())))])))
}
