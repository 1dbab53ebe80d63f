//! a, the end of it: a member leaves, and may come back.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::json;

use super::{ACT_LIMIT, SOUTH, Stage, WEST, door::Door};
use crate::{
    fleet::{dump::Dump, shop},
    object::ObjectKey,
    report::{Facts, Finding, figures, seconds},
};

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let door = Door::of(stage, WEST, SOUTH).await.context("finding west's door")?;
    let name = "`fairlead leave` removes every object of ours and only those";
    facts.look("a13", name, leave(stage)).await;
    let name = "the gateway of a member that left is refused by the others' doors";
    facts.look("a14", name, door.wait_refused()).await;
    facts.look("a15", "a cluster that left can join again", come_back(stage)).await;
    Ok(())
}

async fn leave(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let south = fleet.world().member(SOUTH)?;
    let before = Dump::take(south).await?;
    let ran = fleet.leave(SOUTH).await?;
    // Its namespace goes with all that controllers put there, which takes them a moment.
    let home = ObjectKey::new("v1", "Namespace", "", keys::NAMESPACE);
    south.objects().wait_gone(&home, ACT_LIMIT).await?;
    let after = Dump::take(south).await?;
    let elsewhere = |key: &str| {
        !key.contains(&format!(" {}/", keys::NAMESPACE))
            && key != format!("Namespace {}", keys::NAMESPACE)
    };
    let ours_left: Vec<String> = leftovers(&after.ours());
    let foreign = |dump: &Dump| dump.foreign().only(|key, _| elsewhere(key));
    let touched = foreign(&before).changes_until(&foreign(&after));
    // Against the very beginning: nothing but the shop may have come, and nothing may have gone.
    let first = &stage.before[SOUTH];
    let of_shop = [shop::NAMESPACE, shop::GATEWAY_NAMESPACE];
    let is_shops = |key: &str| {
        of_shop
            .iter()
            .any(|ns| key.contains(&format!(" {ns}/")) || key == format!("Namespace {ns}"))
    };
    let came: BTreeSet<&str> =
        after.keys().difference(&first.keys()).copied().filter(|key| !is_shops(key)).collect();
    let went: BTreeSet<&str> = first.keys().difference(&after.keys()).copied().collect();
    let service = ObjectKey::new("v1", "Service", keys::NAMESPACE, &keys::member_object(SOUTH));
    fleet.world().member(WEST)?.objects().wait_gone(&service, ACT_LIMIT).await?;
    let holds = ours_left.is_empty() && touched.is_empty() && came.is_empty() && went.is_empty();
    Ok(Finding::new(
        holds,
        figures([
            ("took_s", json!(seconds(ran.took))),
            ("removed", json!(before.len().saturating_sub(after.len()))),
            ("ours_left", json!(ours_left)),
            ("foreign_touched", json!(touched)),
            ("new_since_before_join", json!(came)),
            ("lost_since_before_join", json!(went)),
        ]),
    ))
}

fn leftovers(ours: &Dump) -> Vec<String> {
    ours.keys().into_iter().map(str::to_owned).collect()
}

async fn come_back(stage: &Stage<'_>) -> Result<Finding> {
    let ran = stage.fleet.join(SOUTH).await?;
    stage.fleet.wait_settled().await?;
    stage.fleet.wait_live(shop::CART).await?;
    Ok(Finding::new(true, figures([("took_s", json!(seconds(ran.took)))])))
}
