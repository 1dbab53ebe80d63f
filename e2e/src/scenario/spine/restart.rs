//! g: hub and agents restart under load: nothing is rewritten, nothing is lost.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Stage, dump_members};
use crate::{
    fleet::{dump::Dump, shop},
    load::Running,
    report::{Facts, Finding, figures, seconds},
    wait::{self, Look},
};

const RATE: f64 = 300.0;
/// Longer than any heartbeat: everybody notices.
const AWAY: Duration = Duration::from_secs(8);

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    stage.fleet.wait_settled().await?;
    facts.look("g1", "the hub restarts: nothing rewritten, nothing lost", hub(stage)).await;
    facts.look("g2", "all agents restart: nothing rewritten, nothing lost", agents(stage)).await;
    Ok(())
}

async fn hub(stage: &Stage<'_>) -> Result<Finding> {
    let world = stage.fleet.world();
    let before = Before::take(stage).await?;
    let started_before = stage.fleet.status().await?.started_at;
    world.fault().kill_hub().await?;
    before.stay(AWAY).await?;
    world.fault().restore_hub().await?;
    let settled = stage.fleet.wait_settled().await.context("after the hub's restart")?;
    let restarted = stage.fleet.status().await?.started_at != started_before;
    before.compare(stage, settled, restarted).await
}

async fn agents(stage: &Stage<'_>) -> Result<Finding> {
    let world = stage.fleet.world();
    let before = Before::take(stage).await?;
    for member in world.members() {
        world.fault().kill_agent(member.name()).await?;
    }
    before.stay(AWAY).await?;
    for member in world.members() {
        world.fault().restore_agent(member.name()).await?;
    }
    let settled = stage.fleet.wait_settled().await.context("after the agents' restart")?;
    before.compare(stage, settled, true).await
}

/// Objects and traffic from before a restart on.
struct Before {
    members: BTreeMap<String, Dump>,
    hub: Dump,
    load: Running,
}

impl Before {
    async fn take(stage: &Stage<'_>) -> Result<Self> {
        let load = stage.fleet.load(shop::CART).await?.rate(RATE).start();
        let hub = Dump::take(stage.fleet.world().hub()).await?;
        Ok(Self { members: dump_members(stage.fleet.world()).await?, hub, load })
    }

    /// Lets traffic flow for so long.
    async fn stay(&self, time: Duration) -> Result<()> {
        let until = self.load.now() + time;
        wait::until("some time to pass", time * 2, || async {
            Ok(match self.load.now() >= until {
                true => Look::Done(()),
                false => Look::Not("not yet".into()),
            })
        })
        .await
    }

    async fn compare(
        self,
        stage: &Stage<'_>,
        settled: Duration,
        restarted: bool,
    ) -> Result<Finding> {
        let after = dump_members(stage.fleet.world()).await?;
        let report = self.load.stop().await;
        let mut rewritten = Vec::new();
        let mut objects = 0;
        for (member, before) in &self.members {
            let (before, after) = (before.ours_but_pods(), after[member].ours_but_pods());
            objects += before.len();
            let writes = before.writes_until(&after);
            rewritten.extend(writes.into_iter().map(|line| format!("{member}: {line}")));
        }
        let users = |key: &str| key.contains("gateway.networking.k8s.io");
        let hub_after = Dump::take(stage.fleet.world().hub()).await?;
        let hub_before = self.hub.only(|key, _| users(key));
        let hub = hub_before.writes_until(&hub_after.only(|key, _| users(key)));
        let holds = rewritten.is_empty() && hub.is_empty() && report.failed() == 0 && restarted;
        Ok(Finding::new(
            holds,
            figures([
                ("objects", json!(objects)),
                ("rewritten", json!(rewritten)),
                ("rewritten_in_hub", json!(hub)),
                ("requests", json!(report.total())),
                ("failed", json!(report.failed())),
                ("settled_after_s", json!(seconds(settled))),
            ]),
        ))
    }
}
