//! e: a link between two members is cut. Only these two stop using each other.

use anyhow::Result;
use fairlead_model::view::MemberView;
use serde_json::json;

use super::finding;
use crate::{
    fleet::{
        Fleet,
        trial::{Kind, NEIGHBOUR, PATH, VICTIM},
    },
    report::{Facts, Finding, figures},
};

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "a link is cut: only these two stop using each other";
    facts.look("e1", name, cut(fleet, Kind::LinkCut)).await;
    facts.look("e2", &format!("{name}, one way"), cut(fleet, Kind::LinkCutOneWay)).await;
}

async fn cut(fleet: &Fleet<'_>, kind: Kind) -> Result<Finding> {
    let seen = fleet.watch_fault(kind, PATH).await;
    let status = fleet.status().await;
    kind.mend(fleet.world()).await?;
    fleet.wait_whole(PATH).await?;
    let mut pairs: Vec<String> = status?.members.iter().flat_map(out).collect();
    pairs.sort();
    let expected =
        [format!("{VICTIM} without {NEIGHBOUR}"), format!("{NEIGHBOUR} without {VICTIM}")];
    let only_these = pairs == expected;
    Ok(finding(&seen?, only_these, figures([("overlays", json!(pairs))])))
}

/// Whom a member's agent has taken out.
fn out(view: &MemberView) -> Vec<String> {
    view.overlay.out.keys().map(|peer| format!("{} without {peer}", view.member)).collect()
}
