//! h: the hub's store is restored from an older copy. Numbers go on rising, and nothing is lost.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::json;

use crate::{
    fleet::{
        Fleet,
        trial::{PATH, VICTIM, strict},
    },
    object::ObjectKey,
    report::{Facts, Finding, figures},
};

/// The hub's store in its volume.
const FILE: &str = "fairlead.redb";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    facts.look("h1", "an older copy of the store: numbers go on rising", restored(fleet)).await;
}

async fn restored(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    world.fault().kill_hub().await?;
    let folder = world.hub().local()?.dir();
    let store = find(folder)?.with_context(|| format!("no {FILE} in {}", folder.display()))?;
    let copy = store.with_extension("older");
    fs::copy(&store, &copy).context("copying the store")?;
    world.fault().restore_hub().await?;
    fleet.wait_settled().await?;
    set_traffic(fleet, "Standby").await?;
    fleet.wait_settled().await?;
    set_traffic(fleet, "Active").await?;
    fleet.wait_whole(PATH).await?;
    let before = numbers(fleet).await?;

    let load = fleet.start_left(PATH).await?;
    world.fault().kill_hub().await?;
    fs::rename(&copy, &store).context("putting the older copy back")?;
    world.fault().restore_hub().await?;
    fleet.wait_settled().await?;
    let report = strict(&load.stop().await);
    fleet.wait_whole(PATH).await?;
    let after = numbers(fleet).await?;
    let risen = before.len() == after.len() && before.iter().zip(&after).all(|(b, a)| b <= a);
    let shown = |numbers: &[(u64, u64)]| {
        numbers.iter().map(|(epoch, counter)| format!("{epoch}.{counter}")).collect::<Vec<_>>()
    };
    Ok(Finding::new(
        risen && report.failed() == 0,
        figures([
            ("before", json!(shown(&before))),
            ("after", json!(shown(&after))),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// A change of plans that asks for none of the traffic that is measured.
async fn set_traffic(fleet: &Fleet<'_>, state: &str) -> Result<()> {
    let objects = fleet.world().hub().objects();
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", VICTIM);
    let member = objects.get(&key).await?.with_context(|| format!("there is no {key}"))?;
    let mut spec = member["spec"].clone();
    spec["trafficState"] = json!(state);
    let wanted = json!({"apiVersion": keys::API_VERSION, "kind": "MemberCluster",
        "metadata": {"name": VICTIM}, "spec": spec});
    objects.apply(&wanted).await.map(drop)
}

/// The plans that members hold, by (epoch, counter).
async fn numbers(fleet: &Fleet<'_>) -> Result<Vec<(u64, u64)>> {
    let members = fleet.status().await?.members;
    let number = |text: &str| {
        let (epoch, counter) = text.split_once('.')?;
        Some((epoch.parse().ok()?, counter.parse().ok()?))
    };
    members
        .iter()
        .map(|view| {
            let text = view.plan_applied.as_deref().unwrap_or_default();
            number(text).with_context(|| format!("{} holds plan {text:?}", view.member))
        })
        .collect()
}

fn find(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|name| name == FILE) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
