//! A route that was pinned to an earlier revision before the hub was lost: its meaning is in the backup.

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_model::history::Entry;
use serde_json::{Value, json};

use crate::{
    fleet::{
        Fleet, shop,
        trial::{PATH, SERVICE},
    },
    report::{Finding, figures},
    scenario::spine::{route, route_key},
    wait::{self, Look},
};

const ROUTE: &str = "shop/target";
const HEADER: &str = "x-edition";

/// Edits the route, and leads it back to what it was before; gives the change that it is pinned to.
pub(super) async fn pin(fleet: &Fleet<'_>) -> Result<Entry> {
    let then = fleet.newest_change(ROUTE).await?;
    let set = json!([{"name": HEADER, "value": "2"}]);
    let filters =
        json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}}]);
    fleet.hub().objects().apply(&route(SERVICE, PATH, &[(SERVICE, 1)], &filters)).await?;
    wait_edited(fleet).await?;
    fleet
        .at_hub(&format!("fairlead rollback {ROUTE} --to {}", then.number))
        .await?
        .expect_success()?;
    wait_as_before(fleet).await?;
    Ok(then)
}

fn is_edited(seen: &shop::Seen) -> bool {
    seen.headers.contains_key(HEADER)
}

async fn wait_edited(fleet: &Fleet<'_>) -> Result<()> {
    fleet.wait_answers(PATH, "as written", |seen| seen.status == 200 && is_edited(seen)).await
}

async fn wait_as_before(fleet: &Fleet<'_>) -> Result<()> {
    let is = |seen: &shop::Seen| seen.status == 200 && seen.echo.is_some() && !is_edited(seen);
    fleet.wait_answers(PATH, "as before the edit", is).await
}

/// What the hub says of the pin.
async fn condition(fleet: &Fleet<'_>) -> Result<String> {
    let object = fleet.hub().objects().get(&route_key(SERVICE)).await?;
    let object = object.context("the route is gone")?;
    let conditions = object.pointer("/status/parents/0/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|c| c["type"] == keys::CONDITION_PINNED);
    let found = found.context("the route has no condition")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok(format!("{} {}", text("status"), text("reason")))
}

/// The new hub knows what the pin means, and what the route is without it.
pub(super) async fn held(fleet: &Fleet<'_>, then: &Entry) -> Result<Finding> {
    let said = wait::until("the new hub to tell of the pin", super::SETTLE_LIMIT, || async {
        Ok(match condition(fleet).await {
            Ok(said) if said.starts_with("True") => Look::Done(said),
            Ok(said) => Look::Not(said),
            Err(error) => Look::Not(format!("{error:#}")),
        })
    })
    .await?;
    let routes = fleet.routes().await?;
    let listed = routes.iter().find(|view| view.route.name.to_string() == ROUTE);
    let pinned = listed.and_then(|view| view.pinned);
    let history = fleet.history(ROUTE).await?;
    let known = history.contains(then);
    let before = history.iter().filter(|entry| entry.number <= then.number).count();
    wait_as_before(fleet).await?;
    let line = format!("fairlead rollback {ROUTE} --release");
    fleet.at_hub(&line).await?.expect_success()?;
    wait_edited(fleet).await?;
    Ok(Finding::new(
        pinned == Some(then.number) && known,
        figures([
            ("said", json!(said)),
            ("pinned", json!(pinned)),
            ("of", json!(then.number)),
            ("known", json!(known)),
            ("changes_up_to_it", json!(before)),
            ("changes", json!(history.len())),
        ]),
    ))
}
