//! e: the hub's Events tell what happened to members.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::{LIMIT, WEST};
use crate::{
    fleet::Fleet,
    report::{Facts, Finding, figures},
    wait::{self, Look},
};

/// What happened to members in the facts before this one, and in it.
const EXPECTED: [&str; 6] =
    ["MemberJoined", "TokenExpired", "AgentLost", "Connected", "Drained", "MemberRemoved"];
/// A refused join alone is tried a dozen times; the same again is counted in one object.
const OBJECTS_MAX: usize = 40;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "joins, refusals, losses, drains and removals are Events of the MemberClusters";
    facts.look("e1", name, events(fleet)).await;
}

async fn events(fleet: &Fleet<'_>) -> Result<Finding> {
    fleet.world().fault().kill_agent(WEST).await?;
    let lost = wait_event(fleet, "AgentLost").await;
    fleet.world().fault().restore_agent(WEST).await?;
    lost?;
    fleet.at_hub(&format!("fairlead drain {WEST} --over 0s --force")).await?.expect_success()?;
    wait_event(fleet, "Drained").await?;
    fleet.at_hub(&format!("fairlead undrain {WEST}")).await?.expect_success()?;
    for reason in EXPECTED {
        wait_event(fleet, reason).await?;
    }
    let told = told(fleet).await?;
    let objects: usize = told.values().map(|(objects, _)| objects).sum();
    let mut more = figures([("objects", json!(objects))]);
    for (reason, (_, note)) in &told {
        more.insert(reason.clone(), json!(note));
    }
    Ok(Finding::new(objects <= OBJECTS_MAX, more))
}

async fn wait_event(fleet: &Fleet<'_>, reason: &str) -> Result<()> {
    wait::until(&format!("an Event {reason}"), LIMIT, || async {
        let told = told(fleet).await?;
        Ok(match told.contains_key(reason) {
            true => Look::Done(()),
            false => Look::Not(format!("{:?}", told.keys())),
        })
    })
    .await
}

/// By reason: how many objects, and what one of them says.
async fn told(fleet: &Fleet<'_>) -> Result<BTreeMap<String, (usize, String)>> {
    let events = fleet.world().hub().objects().list("events.k8s.io/v1", "Event", "").await?;
    let mut told: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for event in events.iter().filter(|event| event["regarding"]["kind"] == "MemberCluster") {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let name = event["regarding"]["name"].as_str().unwrap_or_default();
        let entry = told.entry(text("reason")).or_default();
        *entry = (entry.0 + 1, format!("{name}: {}", text("note")));
    }
    Ok(told)
}
