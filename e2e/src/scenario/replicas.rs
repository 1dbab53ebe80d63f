//! Three hubs on an etcd of three nodes: one decides, the others stand by and pass on what comes to them.
//! Whatever happens to any of them, or to etcd, no request fails, no object is written again, and numbers
//! only rise.

pub(super) mod hubs;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fairlead_crds::keys;
use fairlead_model::health::MemberState;
use serde_json::json;

use self::hubs::{ALL, Hub, Hubs, LIMIT};
use super::{and_clear, spine::clean_up};
use crate::{
    etcd::{Etcd, Place},
    fleet::{
        Fleet, plans_held,
        trial::{Failback, PATH, pass, strict},
    },
    load::Running,
    report::{Facts, Figures, Finding, Holds, figures, milliseconds, seconds},
    wait::{self, Look},
    world::World,
};

const FAILBACK: Failback = Failback { after_s: 1, ramp_s: 0 };
/// Watched on, after all is as it was.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Of the etcd.
const NODES: usize = 3;
/// Client ports of the nodes, for nftables.
const ETCD_PORTS: &str = "23790-23792";
/// The node whose hub is cut off from etcd.
const CUT: Hub = Hub(2);

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::new(world)?;
    let local = world.hub().local()?;
    let place = Place::Cluster { namespace: local.namespace.clone(), address: local.address };
    let folder = tempfile::tempdir_in(world.folder()).context("a folder for etcd")?;
    let etcd = Etcd::start(&world.tools().etcd, folder.path(), &place, NODES, 0).await?;
    let told = and_clear(tell(&fleet, &etcd, facts), clean_up(&fleet)).await;
    // The hub must have its store until its members are gone.
    for node in 0..NODES {
        etcd.kill(node).await;
    }
    told
}

async fn tell(fleet: &Fleet<'_>, etcd: &Etcd, facts: &mut Facts) -> Result<()> {
    fleet.open_trial(FAILBACK).await.context("setting the fleet up")?;
    let stage = Stage { fleet, hubs: Hubs::new(fleet, &etcd.endpoints(), &[])?, etcd };
    let told = tokio::select! {
        told = stage.tell(facts) => told,
        ended = stage.hubs.play_service() => ended.map(|never| match never {}),
    };
    let removed = stage.hubs.remove().await;
    told.and(removed)
}

struct Stage<'a> {
    fleet: &'a Fleet<'a>,
    hubs: Hubs<'a>,
    etcd: &'a Etcd,
}

/// What must stay as it is, and what must rise.
struct Before {
    load: Running,
    changes: u64,
    numbers: BTreeMap<String, (u64, u64)>,
}

impl Stage<'_> {
    async fn tell(&self, facts: &mut Facts) -> Result<()> {
        facts.look("a1", "a hub moves from its file to an etcd", self.move_over()).await;
        facts.look("a2", "two more hubs stand by, ready, and pass on", self.stand_by()).await;
        let name = "the hub that decides is killed, three times: another one takes over";
        facts.look("b1", name, self.killed()).await;
        let name = "a hub that stands by is killed: its connections find another one";
        facts.look("b2", name, self.standby_killed()).await;
        let name = "the hub that decides is stopped: another one takes over at once";
        facts.look("b3", name, self.stopped()).await;
        let name =
            "the hub that decides is paused: it loses its office, and steps down when it wakes up";
        facts.look("b4", name, self.paused()).await;
        let name = "the hub that decides is cut off from etcd: another one takes over";
        facts.look("b5", name, self.partitioned()).await;
        let name = "etcd loses its majority: plans freeze, streams stay; then it goes on by itself";
        facts.look("c1", name, self.no_majority()).await;
        let name = "a rolling upgrade replaces all three, one after another";
        facts.look("c2", name, self.upgraded()).await;
        Ok(())
    }

    /// The plans that members hold once all of them have a stream, asked at any hub.
    async fn wait_connected(&self, at: Hub) -> Result<BTreeMap<String, (u64, u64)>> {
        let members = self.fleet.world().members().count();
        wait::until("all members to be with the hub", LIMIT, || async {
            let mut status = self.hubs.status(at).await?;
            status.members.retain(|view| {
                view.state == MemberState::Up
                    && view.plan_applied.is_some()
                    && view.plan_applied == view.plan_wanted
            });
            let held = plans_held(&status);
            Ok(match held.len() == members {
                true => Look::Done(held),
                false => Look::Not(format!("{} of {members} hold their plan", held.len())),
            })
        })
        .await
    }

    async fn before(&self) -> Result<Before> {
        let decider = self.hubs.decider().await?;
        let numbers = self.wait_connected(decider).await?;
        let changes = self.fleet.route_changes().await?;
        Ok(Before { load: self.fleet.start_left(PATH).await?, changes, numbers })
    }

    /// Whether nothing failed, nothing was written and numbers only rose, until now.
    async fn since(&self, before: Before, more: Figures) -> Result<Finding> {
        let decider = self.hubs.decider().await?;
        let numbers = self.wait_connected(decider).await?;
        pass(&before.load, AFTERWARDS).await?;
        let report = strict(&before.load.stop().await);
        let changes = self.fleet.route_changes().await? - before.changes;
        let risen = before.numbers.iter().all(|(member, was)| numbers.get(member) >= Some(was));
        let shown = |numbers: &BTreeMap<String, (u64, u64)>| {
            let each = numbers.values().map(|(epoch, counter)| format!("{epoch}.{counter}"));
            each.collect::<Vec<_>>().join(" ")
        };
        let mut all = figures([
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
            ("route_changes", json!(changes)),
            ("numbers", json!(format!("{} -> {}", shown(&before.numbers), shown(&numbers)))),
        ]);
        all.extend(more);
        Ok(Finding::new(risen && changes == 0 && report.failed() == 0, all))
    }

    /// When a hub decides, and when all members are with it.
    async fn taken(&self, among: &[Hub], start: Instant) -> Result<(Hub, f64, f64)> {
        let hub = self.hubs.wait_decider(among).await?;
        let decides = milliseconds(start.elapsed());
        self.wait_connected(hub).await?;
        Ok((hub, decides, milliseconds(start.elapsed())))
    }

    async fn move_over(&self) -> Result<Finding> {
        let before = self.before().await?;
        let endpoints = self.etcd.endpoints().join(",");
        let address = self.hubs.address(Hub(0))?;
        let env = json!([
            {"name": "FAIRLEAD_ETCD_ENDPOINTS", "value": endpoints},
            {"name": "FAIRLEAD_PEER_ADDRESS", "value": address.to_string()},
        ]);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": keys::NAMESPACE, "name": keys::HUB},
            "spec": {"template": {"spec": {"containers": [{"name": "hub", "env": env}]}}},
        });
        let start = Instant::now();
        self.fleet.world().hub().objects().apply(&deployment).await?;
        // Another store is another hub: it waits until the Lease of the one with the file is free.
        let first = before.numbers.clone();
        wait::until("the hub to plan from the etcd", LIMIT, || async {
            let now = self.wait_connected(Hub(0)).await?;
            let risen = first.iter().all(|(member, was)| now[member].0 > was.0);
            Ok(if risen { Look::Done(()) } else { Look::Not(format!("{now:?}")) })
        })
        .await?;
        let took = seconds(start.elapsed());
        self.since(before, figures([("took_s", json!(took))])).await
    }

    async fn stand_by(&self) -> Result<Finding> {
        let before = self.before().await?;
        let mut says = String::new();
        for hub in [Hub(1), Hub(2)] {
            self.hubs.start(hub).await?;
            says = self.hubs.wait_standby(hub).await?;
        }
        // What people see does not depend on whom they ask.
        let (here, there) = (self.hubs.status(Hub(0)).await?, self.hubs.status(Hub(2)).await?);
        let same = plans_held(&here) == plans_held(&there);
        let more = figures([("they_say", json!(says)), ("same_answers", json!(same))]);
        let mut finding = self.since(before, more).await?;
        if !same {
            finding.holds = Holds::No;
        }
        Ok(finding)
    }

    /// Each time it comes back and stands by.
    async fn killed(&self) -> Result<Finding> {
        let before = self.before().await?;
        let (mut decides, mut connected) = (Vec::new(), Vec::new());
        for _ in ALL {
            let decider = self.hubs.decider().await?;
            let others: Vec<Hub> = ALL.into_iter().filter(|hub| *hub != decider).collect();
            let start = Instant::now();
            self.hubs.kill(decider).await?;
            let taken = self.taken(&others, start).await;
            self.hubs.start(decider).await?;
            let (_, decides_ms, connected_ms) = taken?;
            decides.push(decides_ms);
            connected.push(connected_ms);
            self.hubs.wait_standby(decider).await?;
        }
        let more = figures([
            ("decides_ms", json!(decides)),
            ("all_connected_ms", json!(connected)),
            ("spread", self.hubs.spread().await?),
        ]);
        self.since(before, more).await
    }

    async fn standby_killed(&self) -> Result<Finding> {
        let before = self.before().await?;
        let decider = self.hubs.decider().await?;
        let start = Instant::now();
        for hub in ALL.into_iter().filter(|hub| *hub != decider) {
            self.hubs.kill(hub).await?;
        }
        self.wait_connected(decider).await?;
        let connected = milliseconds(start.elapsed());
        for hub in ALL.into_iter().filter(|hub| *hub != decider) {
            self.hubs.start(hub).await?;
            self.hubs.wait_standby(hub).await?;
        }
        let stays = self.hubs.decides(decider).await?;
        let more = figures([("both_ms", json!(connected)), ("the_same_decides", json!(stays))]);
        let mut finding = self.since(before, more).await?;
        if !stays {
            finding.holds = Holds::No;
        }
        Ok(finding)
    }

    async fn stopped(&self) -> Result<Finding> {
        let before = self.before().await?;
        let decider = self.hubs.decider().await?;
        let others: Vec<Hub> = ALL.into_iter().filter(|hub| *hub != decider).collect();
        let start = Instant::now();
        // Replacing it takes a moment; who takes over meanwhile is what counts.
        let (replaced, taken) =
            tokio::join!(self.hubs.replace(decider), self.taken(&others, start));
        replaced?;
        let (_, decides, connected) = taken?;
        self.hubs.wait_standby(decider).await?;
        let more =
            figures([("decides_ms", json!(decides)), ("all_connected_ms", json!(connected))]);
        self.since(before, more).await
    }

    async fn paused(&self) -> Result<Finding> {
        let before = self.before().await?;
        let decider = self.hubs.decider().await?;
        let others: Vec<Hub> = ALL.into_iter().filter(|hub| *hub != decider).collect();
        let pid = self.hubs.pid(decider)?;
        let start = Instant::now();
        self.hubs.pause(decider)?;
        let taken = self.taken(&others, start).await;
        self.hubs.wake(decider)?;
        let (_, decides, connected) = taken?;
        wait::until("the paused hub to step down", LIMIT, || async {
            Ok(match self.hubs.pid(decider)? {
                now if now == pid => Look::Not("it goes on".to_owned()),
                _ => Look::Done(()),
            })
        })
        .await?;
        self.hubs.wait_standby(decider).await?;
        let more =
            figures([("decides_ms", json!(decides)), ("all_connected_ms", json!(connected))]);
        self.since(before, more).await
    }

    /// Makes the hub on a node of its own the one that decides.
    async fn promote(&self, hub: Hub) -> Result<()> {
        for other in ALL.into_iter().filter(|other| *other != hub) {
            if self.hubs.decides(other).await.unwrap_or(false) {
                // The others that stand by might take over instead: they are not there meanwhile.
                for third in ALL.into_iter().filter(|third| *third != hub && *third != other) {
                    self.hubs.kill(third).await?;
                }
                self.hubs.kill(other).await?;
                self.hubs.wait_decider(&[hub]).await?;
            }
        }
        for other in ALL.into_iter().filter(|other| *other != hub) {
            self.hubs.start(other).await?;
            self.hubs.wait_standby(other).await?;
        }
        Ok(())
    }

    async fn partitioned(&self) -> Result<Finding> {
        self.promote(CUT).await?;
        let before = self.before().await?;
        let pid = self.hubs.pid(CUT)?;
        let start = Instant::now();
        self.hubs.cut_from_etcd(CUT, ETCD_PORTS)?;
        let taken = self.taken(&[Hub(0), Hub(1)], start).await;
        let stepped = wait::until("the hub that is cut off to step down", LIMIT, || async {
            Ok(match self.hubs.pid(CUT)? {
                now if now == pid => Look::Not("it goes on".to_owned()),
                _ => Look::Done(()),
            })
        })
        .await;
        self.hubs.mend()?;
        stepped?;
        let (_, decides, connected) = taken?;
        self.hubs.wait_standby(CUT).await?;
        let more =
            figures([("decides_ms", json!(decides)), ("all_connected_ms", json!(connected))]);
        self.since(before, more).await
    }

    async fn no_majority(&self) -> Result<Finding> {
        let before = self.before().await?;
        let decider = self.hubs.decider().await?;
        let pids = || ALL.map(|hub| self.hubs.pid(hub).ok().flatten());
        let running = pids();
        self.etcd.kill(0).await;
        self.etcd.kill(1).await;
        // Something must want to be written: a change that members report.
        let changed = self.report_something().await;
        let frozen = wait::until("the hub to say that its store is away", LIMIT, || async {
            let text = self.hubs.readiness(decider).await?;
            let line = text.lines().find(|line| line.contains("StoreUnavailable"));
            Ok(line.map_or_else(|| Look::Not(text.clone()), |line| Look::Done(line.to_owned())))
        })
        .await;
        let streams = self.streams(decider).await;
        self.etcd.revive(0).await?;
        self.etcd.revive(1).await?;
        changed?;
        let why = frozen?;
        let start = Instant::now();
        wait::until("the hub to go on", LIMIT, || async {
            let text = self.hubs.readiness(decider).await?;
            Ok(if text.starts_with("ok") { Look::Done(()) } else { Look::Not(text) })
        })
        .await?;
        let back = seconds(start.elapsed());
        if pids() != running {
            bail!("a hub was started again: {running:?} became {:?}", pids());
        }
        let all = streams? == self.fleet.world().members().count();
        let more = figures([
            ("why", json!(why)),
            ("streams_stay", json!(all)),
            ("ready_again_after_s", json!(back)),
        ]);
        let mut finding = self.since(before, more).await?;
        if !all {
            finding.holds = Holds::No;
        }
        Ok(finding)
    }

    async fn streams(&self, at: Hub) -> Result<usize> {
        let status = self.hubs.status(at).await?;
        Ok(status.members.iter().filter(|view| view.state == MemberState::Up).count())
    }

    /// A Service that nobody asks for: it is reported, so it is to be stored.
    async fn report_something(&self) -> Result<()> {
        let (member, name) = (self.fleet.world().members().next().context("no member")?, "late");
        self.fleet.serve(member.name(), name, "v1", 1).await
    }

    async fn upgraded(&self) -> Result<Finding> {
        let before = self.before().await?;
        let start = Instant::now();
        for hub in ALL {
            self.hubs.replace(hub).await?;
            // As a Deployment does: the next one when this one is ready.
            wait::until(&format!("{hub:?} to be ready"), LIMIT, || async {
                let text = self.hubs.readiness(hub).await?;
                Ok(if text.starts_with("ok") { Look::Done(()) } else { Look::Not(text) })
            })
            .await?;
        }
        let took = seconds(start.elapsed());
        let spread = self.hubs.spread().await?;
        self.since(before, figures([("took_s", json!(took)), ("spread", spread)])).await
    }
}
