//! The same on an etcd, with a second hub: history, pins and changes that are being tried are in the store,
//! so they go on when another hub decides.
//!
//! The command asks the hub that `fairlead init` made, which passes questions on while it stands by.

use std::time::Instant;

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::json;

use super::{
    PATH, ROUTE, fine,
    staged::{GOOD, everywhere, flags, flowing, lead_to, restart_with, steps},
    wait_condition,
};
use crate::{
    etcd::{Etcd, Place},
    fleet::{
        Fleet,
        trial::{first_failures, pass},
    },
    report::{Facts, Finding, figures, seconds},
    scenario::replicas::hubs::{Hub, Hubs},
};

const AFTERWARDS: std::time::Duration = std::time::Duration::from_secs(2);
const FIRST: Hub = Hub(0);
const SECOND: Hub = Hub(1);

pub(super) async fn play(fleet: &Fleet<'_>, etcd: &Etcd, facts: &mut Facts) -> Result<()> {
    let stage = Stage { fleet, hubs: Hubs::new(fleet, &etcd.endpoints(), &flags())? };
    let told = tokio::select! {
        told = stage.tell(etcd, facts) => told,
        ended = stage.hubs.play_service() => ended.map(|never| match never {}),
    };
    // Also after a failure: without it nobody lets go of the members.
    let there = stage.hubs.start(FIRST).await;
    let removed = stage.hubs.remove().await;
    told.and(there).and(removed)
}

/// An etcd beside the hub's cluster.
pub(super) async fn start_etcd(fleet: &Fleet<'_>, folder: &std::path::Path) -> Result<Etcd> {
    let world = fleet.world();
    let local = world.hub().local()?;
    let place = Place::Cluster { namespace: local.namespace.clone(), address: local.address };
    Etcd::start(&world.tools().etcd, folder, &place, 1, 0).await
}

struct Stage<'a> {
    fleet: &'a Fleet<'a>,
    hubs: Hubs<'a>,
}

impl Stage<'_> {
    async fn tell(&self, etcd: &Etcd, facts: &mut Facts) -> Result<()> {
        facts
            .look("e0", "the hub moves to an etcd, and a second one stands by", async {
                self.move_over(etcd).await.map(|()| fine())
            })
            .await;
        let before =
            self.fleet.newest_change(ROUTE).await.context("the history on the etcd")?.number;
        let name =
            "the hub that decides is killed while a change is tried: it goes on with the other";
        facts.look("e1", name, self.tried()).await;
        let name = "a rollback under load with the second hub, by the history of the first";
        facts.look("e2", name, self.rolled_back(before)).await;
        let name = "the other hub takes over again: pin and history stay";
        facts.look("e3", name, self.taken_over(before)).await;
        facts.look("e4", "a release with it goes on with the history", self.released()).await;
        Ok(())
    }

    async fn move_over(&self, etcd: &Etcd) -> Result<()> {
        let env = [
            ("FAIRLEAD_ETCD_ENDPOINTS", etcd.endpoints().join(",")),
            ("FAIRLEAD_PEER_ADDRESS", self.hubs.address(FIRST)?.to_string()),
        ];
        restart_with(self.fleet, &env).await?;
        self.hubs.wait_decider(&[FIRST]).await?;
        self.fleet.wait_settled().await?;
        self.hubs.start(SECOND).await?;
        self.hubs.wait_standby(SECOND).await?;
        self.fleet.wait_live(PATH).await
    }

    /// Kills the hub that decides; when the other one does, in seconds.
    async fn kill(&self, hub: Hub, other: Hub) -> Result<f64> {
        let start = Instant::now();
        self.hubs.kill(hub).await?;
        self.hubs.wait_decider(&[other]).await?;
        Ok(seconds(start.elapsed()))
    }

    async fn back(&self, hub: Hub) -> Result<()> {
        self.hubs.start(hub).await?;
        self.hubs.wait_standby(hub).await?;
        self.fleet.wait_settled().await.map(drop)
    }

    async fn tried(&self) -> Result<Finding> {
        let running = flowing(self.fleet).await?;
        lead_to(self.fleet, GOOD).await?;
        let kind = keys::CONDITION_ROLLED_OUT;
        let said = wait_condition(self.fleet, kind, "False", "RollingOut").await?;
        let decides = self.kill(FIRST, SECOND).await?;
        let reached = everywhere(&running, "v2").await;
        pass(&running, AFTERWARDS).await?;
        let report = running.stop().await;
        self.back(FIRST).await?;
        reached?;
        let mut finding = steps(&report, "v2", &report);
        finding.figures.insert("said".into(), json!(said));
        finding.figures.insert("another_decides_after_s".into(), json!(decides));
        Ok(finding)
    }

    async fn rolled_back(&self, number: u64) -> Result<Finding> {
        let running = flowing(self.fleet).await?;
        let line = format!("fairlead rollback {ROUTE} --to {number}");
        let ran = self.fleet.at_hub(&line).await?;
        let took = ran.took;
        ran.expect_success()?;
        everywhere(&running, "v1").await?;
        pass(&running, AFTERWARDS).await?;
        let report = running.stop().await;
        let said = wait_condition(self.fleet, keys::CONDITION_PINNED, "True", "Pinned").await?;
        Ok(Finding::new(
            report.failed() == 0,
            figures([
                ("took_s", json!(seconds(took))),
                ("said", json!(said)),
                ("requests", json!(report.total())),
                ("failed", json!(report.failed())),
                ("failures", first_failures(&report)),
            ]),
        ))
    }

    async fn taken_over(&self, number: u64) -> Result<Finding> {
        let before = self.fleet.history(ROUTE).await?;
        let running = flowing(self.fleet).await?;
        let decides = self.kill(SECOND, FIRST).await?;
        self.back(SECOND).await?;
        pass(&running, AFTERWARDS).await?;
        let at = running.now();
        pass(&running, AFTERWARDS).await?;
        let report = running.stop().await;
        let after = self.fleet.history(ROUTE).await?;
        let kept = after.iter().filter(|entry| before.contains(entry)).count();
        let routes = self.fleet.routes().await?;
        let pinned = routes.iter().any(|view| view.pinned == Some(number));
        let late = report.only(|sample| sample.started >= at);
        let as_pinned = late.samples().iter().all(|sample| sample.outcome.version == "v1");
        let all_kept = !before.is_empty() && kept == before.len();
        Ok(Finding::new(
            pinned && as_pinned && late.total() > 0 && all_kept && report.failed() == 0,
            figures([
                ("another_decides_after_s", json!(decides)),
                ("entries_before", json!(before.len())),
                ("entries_after", json!(after.len())),
                ("kept", json!(kept)),
                ("pinned", json!(pinned)),
                ("requests", json!(report.total())),
                ("failed", json!(report.failed())),
                ("failures", first_failures(&report)),
            ]),
        ))
    }

    async fn released(&self) -> Result<Finding> {
        let before = self.fleet.newest_change(ROUTE).await?.number;
        let running = flowing(self.fleet).await?;
        let line = format!("fairlead rollback {ROUTE} --release");
        self.fleet.at_hub(&line).await?.expect_success()?;
        everywhere(&running, "v2").await?;
        pass(&running, AFTERWARDS).await?;
        let report = running.stop().await;
        let after = self.fleet.newest_change(ROUTE).await?.number;
        Ok(Finding::new(
            report.failed() == 0 && after > before,
            figures([
                ("revision", json!(format!("{before} -> {after}"))),
                ("requests", json!(report.total())),
                ("failed", json!(report.failed())),
                ("failures", first_failures(&report)),
            ]),
        ))
    }
}
