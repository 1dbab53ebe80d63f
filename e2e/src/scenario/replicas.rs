//! Two hubs on an etcd of three nodes: one decides and the other stands by. Whatever happens to either,
//! or to etcd, no request fails, no object is written again, and numbers only rise.
//!
//! The first hub is the one that `fairlead init` made; the second runs beside it with another port for its
//! read-only API, and opens the agents' port once it decides.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use fairlead_crds::keys;
use fairlead_model::{
    health::MemberState,
    view::{MemberView, StatusView},
};
use http::Request;
use http_body_util::Empty;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::spine::clean_up;
use crate::{
    etcd::{Etcd, Place},
    fault,
    fleet::{
        Fleet,
        program::program,
        trial::{Failback, PATH, pass, strict},
    },
    http1,
    launch::Launch,
    load::Running,
    process::Unit,
    report::{Facts, Figures, Finding, Holds, figures, milliseconds, seconds},
    wait::{self, Look},
    world::World,
};

const FAILBACK: Failback = Failback { after_s: 1, ramp_s: 0 };
/// Longer than a Lease lives without its holder, and a fleet takes to come back.
const TAKEN_LIMIT: Duration = Duration::from_secs(90);
const GRACE: Duration = Duration::from_secs(15);
/// Watched on, after all is as it was.
const AFTERWARDS: Duration = Duration::from_secs(3);
const FIRST_ADMIN: u16 = 8080;
const SECOND_ADMIN: u16 = 8090;
/// What /readyz says while another hub decides.
const OTHER_HUB: &str = "another hub";

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::new(world)?;
    let told = tell(&fleet, facts).await;
    // Also after a failure: other scenarios share the world.
    let cleaned = clean_up(&fleet).await.context("taking Fairlead out of the world again");
    told.and(cleaned)
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.open_trial(FAILBACK).await.context("setting the fleet up")?;
    let world = fleet.world();
    let local = world.hub().local()?;
    let place = Place::Cluster { namespace: local.namespace.clone(), address: local.address() };
    let folder = tempfile::tempdir_in(world.folder()).context("a folder for etcd")?;
    let etcd = Etcd::start(&world.tools().etcd, folder.path(), &place, 3, 0).await?;
    let stage = Stage { fleet, etcd };
    facts.look("a1", "a hub moves from its file to an etcd", stage.move_over()).await;
    let second = stage.second()?;
    second.unit.start().await?;
    facts.look("a2", "a second hub stands by", stage.stands_by(&second)).await;
    let name = "the hub that decides is killed: the other takes over";
    facts.look("b1", name, stage.killed(&second)).await;
    let name = "the hub that decides is stopped: the other takes over at once";
    facts.look("b2", name, stage.stopped(&second)).await;
    let name = "a paused hub loses its office, and steps down when it wakes up";
    facts.look("b3", name, stage.paused(&second)).await;
    let name = "etcd loses its majority: plans freeze, streams stay; then it goes on by itself";
    facts.look("c1", name, stage.no_majority(&second)).await;
    second.unit.stop(GRACE).await;
    Ok(())
}

struct Stage<'a> {
    fleet: &'a Fleet<'a>,
    etcd: Etcd,
}

/// The hub beside the one that `fairlead init` made.
struct Second {
    unit: Unit,
}

/// What must stay as it is, and what must rise.
struct Before {
    load: Running,
    changes: u64,
    numbers: Vec<(u64, u64)>,
}

impl Stage<'_> {
    fn admin(&self, port: u16) -> Result<SocketAddr> {
        Ok((self.fleet.world().hub().local()?.address(), port).into())
    }

    fn second(&self) -> Result<Second> {
        let world = self.fleet.world();
        let argv = [
            program("fairlead-hub")?.display().to_string(),
            "run".to_owned(),
            "--listen=0.0.0.0:8443".to_owned(),
            format!("--admin-listen=0.0.0.0:{SECOND_ADMIN}"),
            format!("--namespace={}", keys::NAMESPACE),
            format!("--etcd-endpoint={}", self.etcd.endpoints().join(",")),
        ];
        let kubeconfig = world.hub().kubeconfig().display().to_string();
        let launch = Launch {
            argv: argv.to_vec(),
            env: [("KUBECONFIG".to_owned(), kubeconfig)].into(),
            netns: Some(world.hub().local()?.namespace.clone()),
            ..Launch::default()
        };
        let log = world.folder().join("standby-hub.log");
        Ok(Second { unit: Unit::new("standby-hub", log, launch) })
    }

    async fn ask(&self, port: u16, path: &str) -> Result<String> {
        let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let answer = http1::send(self.admin(port)?, request).await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }

    async fn readiness(&self, port: u16) -> Result<String> {
        self.ask(port, "/readyz").await
    }

    async fn wait_ready(&self, port: u16, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(what, TAKEN_LIMIT, || async {
            let text = self.readiness(port).await?;
            Ok(if is(&text) { Look::Done(text) } else { Look::Not(text) })
        })
        .await
    }

    /// The plans that members hold, by (epoch, counter), once all of them have a stream.
    async fn wait_connected(&self, port: u16) -> Result<Vec<(u64, u64)>> {
        let members = self.fleet.world().members().count();
        wait::until("all members to be with the hub", TAKEN_LIMIT, || async {
            let status: StatusView =
                serde_json::from_str(&self.ask(port, "/api/v1/status").await?)?;
            let number = |text: &str| {
                let (epoch, counter) = text.split_once('.')?;
                Some((epoch.parse().ok()?, counter.parse().ok()?))
            };
            let settled = |view: &&MemberView| {
                view.plan_applied.is_some() && view.plan_applied == view.plan_wanted
            };
            let held: Vec<(u64, u64)> = status
                .members
                .iter()
                .filter(settled)
                .filter_map(|view| number(view.plan_applied.as_deref()?))
                .collect();
            Ok(match held.len() == members {
                true => Look::Done(held),
                false => Look::Not(format!("{} of {members} hold their plan", held.len())),
            })
        })
        .await
    }

    async fn before(&self, port: u16) -> Result<Before> {
        let numbers = self.wait_connected(port).await?;
        let changes = self.fleet.route_changes().await?;
        Ok(Before { load: self.fleet.start_left(PATH).await?, changes, numbers })
    }

    /// Whether nothing failed, nothing was written and numbers only rose, until now.
    async fn since(&self, before: Before, port: u16, more: Figures) -> Result<Finding> {
        let numbers = self.wait_connected(port).await?;
        pass(&before.load, AFTERWARDS).await?;
        let report = strict(&before.load.stop().await);
        let changes = self.fleet.route_changes().await? - before.changes;
        let risen = before.numbers.iter().zip(&numbers).all(|(before, now)| before <= now);
        let mut all = figures([
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
            ("route_changes", json!(changes)),
            ("numbers", json!(format!("{:?} -> {numbers:?}", before.numbers))),
        ]);
        all.extend(more);
        Ok(Finding::new(risen && changes == 0 && report.failed() == 0, all))
    }

    async fn move_over(&self) -> Result<Finding> {
        let before = self.before(FIRST_ADMIN).await?;
        let endpoints = self.etcd.endpoints().join(",");
        let env = json!([{"name": "FAIRLEAD_ETCD_ENDPOINTS", "value": endpoints}]);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": keys::NAMESPACE, "name": keys::HUB},
            "spec": {"template": {"spec": {"containers": [{"name": "hub", "env": env}]}}},
        });
        let start = Instant::now();
        self.fleet.world().hub().objects().apply(&deployment).await?;
        // Another store is another hub: it waits until the Lease of the one with the file is free.
        let first = before.numbers.clone();
        wait::until("the hub to plan from the etcd", TAKEN_LIMIT, || async {
            let now = self.wait_connected(FIRST_ADMIN).await?;
            let risen = now.iter().zip(&first).all(|(now, before)| now.0 > before.0);
            Ok(if risen { Look::Done(()) } else { Look::Not(format!("{now:?}")) })
        })
        .await?;
        let took = seconds(start.elapsed());
        self.since(before, FIRST_ADMIN, figures([("took_s", json!(took))])).await
    }

    async fn stands_by(&self, second: &Second) -> Result<Finding> {
        let waits = self.wait_ready(SECOND_ADMIN, "the second to wait", |t| t.contains(OTHER_HUB));
        let text = second.unit.unless_it_ends(waits).await?;
        let line = text.lines().find(|line| line.contains(OTHER_HUB)).unwrap_or_default();
        let first = self.readiness(FIRST_ADMIN).await?;
        Ok(Finding::new(
            first.starts_with("ok"),
            figures([("it_says", json!(line.trim_start_matches("[-] ")))]),
        ))
    }

    /// The first is killed; the second decides. The first comes back and stands by.
    async fn killed(&self, second: &Second) -> Result<Finding> {
        let before = self.before(FIRST_ADMIN).await?;
        let fault = self.fleet.world().fault();
        let start = Instant::now();
        fault.kill_hub().await?;
        let taken = self.wait_taken(SECOND_ADMIN, start);
        let more = second.unit.unless_it_ends(taken).await;
        fault.restore_hub().await?;
        let more = more?;
        self.wait_ready(FIRST_ADMIN, "the first to stand by", |t| t.contains(OTHER_HUB)).await?;
        self.since(before, SECOND_ADMIN, more).await
    }

    /// When a hub decides, and when all members are with it.
    async fn wait_taken(&self, port: u16, start: Instant) -> Result<Figures> {
        self.wait_ready(port, "the other hub to decide", |text| !text.contains(OTHER_HUB)).await?;
        let decides = milliseconds(start.elapsed());
        self.wait_connected(port).await?;
        let connected = milliseconds(start.elapsed());
        Ok(figures([("decides_ms", json!(decides)), ("all_connected_ms", json!(connected))]))
    }

    /// The second lets go when it is told to end, and the first takes over.
    async fn stopped(&self, second: &Second) -> Result<Finding> {
        let before = self.before(SECOND_ADMIN).await?;
        let start = Instant::now();
        second.unit.stop(GRACE).await;
        let more = self.wait_taken(FIRST_ADMIN, start).await?;
        second.unit.start().await?;
        self.stands_by(second).await?;
        self.since(before, FIRST_ADMIN, more).await
    }

    async fn paused(&self, second: &Second) -> Result<Finding> {
        let before = self.before(FIRST_ADMIN).await?;
        let kubelet = self.fleet.world().kubelet(self.fleet.world().hub().name())?;
        let first = kubelet.pid(fault::HUB).context("the hub does not run")?;
        let pid = Pid::from_raw(i32::try_from(first)?);
        kill(pid, Signal::SIGSTOP).context("pausing the hub")?;
        // It cannot open the agents' port, which a paused process holds on this one machine, and ends
        // for it; its office it has taken by then.
        let decides = wait::until("the second to decide", TAKEN_LIMIT, || async {
            if !second.unit.is_running() {
                return Ok(Look::Done(()));
            }
            let text = self.readiness(SECOND_ADMIN).await?;
            Ok(if text.contains(OTHER_HUB) { Look::Not(text) } else { Look::Done(()) })
        })
        .await;
        kill(pid, Signal::SIGCONT).context("waking the hub")?;
        decides?;
        wait::until("the first hub to step down", TAKEN_LIMIT, || async {
            Ok(match kubelet.pid(fault::HUB) {
                Some(now) if now == first => Look::Not("it goes on".to_owned()),
                _ => Look::Done(()),
            })
        })
        .await?;
        if !second.unit.is_running() {
            second.unit.start().await?;
        }
        let port = wait::until("one hub to decide", TAKEN_LIMIT, || async {
            for port in [FIRST_ADMIN, SECOND_ADMIN] {
                if self.readiness(port).await.is_ok_and(|text| text.starts_with("ok")) {
                    return Ok(Look::Done(port));
                }
            }
            Ok(Look::Not("nobody is ready".into()))
        })
        .await?;
        self.since(before, port, figures([("decides", json!(port))])).await
    }

    async fn no_majority(&self, second: &Second) -> Result<Finding> {
        let port = match self.readiness(FIRST_ADMIN).await {
            Ok(text) if text.starts_with("ok") => FIRST_ADMIN,
            _ => SECOND_ADMIN,
        };
        let before = self.before(port).await?;
        let kubelet = self.fleet.world().kubelet(self.fleet.world().hub().name())?;
        let hubs = || (kubelet.pid(fault::HUB), second.unit.pid());
        let pids = hubs();
        self.etcd.kill(0).await;
        self.etcd.kill(1).await;
        // Something must want to be written: a change that members report.
        let changed = self.report_something().await;
        let frozen = self.wait_ready(port, "the hub to say that its store is away", |text| {
            text.contains("StoreUnavailable")
        });
        let frozen = frozen.await;
        let streams = self.connected(port).await;
        self.etcd.revive(0).await?;
        self.etcd.revive(1).await?;
        changed?;
        let frozen = frozen?;
        let start = Instant::now();
        self.wait_ready(port, "the hub to go on", |text| text.starts_with("ok")).await?;
        let back = seconds(start.elapsed());
        let why = frozen.lines().find(|line| line.contains("store")).unwrap_or(&frozen).to_owned();
        if hubs() != pids {
            bail!("a hub was started again: {pids:?} became {:?}", hubs());
        }
        let all = streams? == self.fleet.world().members().count();
        let more = figures([
            ("why", json!(why)),
            ("streams_stay", json!(all)),
            ("ready_again_after_s", json!(back)),
        ]);
        let mut finding = self.since(before, port, more).await?;
        if !all {
            finding.holds = Holds::No;
        }
        Ok(finding)
    }

    async fn connected(&self, port: u16) -> Result<usize> {
        let status: StatusView = serde_json::from_str(&self.ask(port, "/api/v1/status").await?)?;
        Ok(status.members.iter().filter(|view| view.state == MemberState::Up).count())
    }

    /// A Service that nobody asks for: it is reported, so it is to be stored.
    async fn report_something(&self) -> Result<()> {
        let (member, name) = (self.fleet.world().members().next().context("no member")?, "late");
        self.fleet.serve(member.name(), name, "v1", 1).await
    }
}
