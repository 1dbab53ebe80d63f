//! One fault under load: what requests through the members that are left see of it.
//!
//! One service runs in every member, and every entry uses every member the same. Traffic enters by the
//! members that the fault leaves alone, fast enough that each 200 ms window has a hundred requests. The
//! clock starts before the first signal is sent or the first packet lost, so it includes the time that
//! the killing takes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Fleet, program::build_programs, shop};
use crate::{
    load::{Load, Report, Running, Sample},
    object::{self, ObjectKey, fill},
    wait::{self, Look},
    world::World,
};

/// The member that suffers.
pub const VICTIM: &str = "east";
/// The entry that loses its link to it.
pub const NEIGHBOUR: &str = "west";
/// The service.
pub const SERVICE: &str = "target";
/// The path of its route.
pub const PATH: &str = "/target";
/// Requests per second over all entries: a hundred in each window, and some more.
pub const RATE: f64 = 520.0;
/// Requests are watched for so long after a fault.
pub const HORIZON: Duration = Duration::from_secs(10);
/// So much traffic is seen before it.
const STEADY: Duration = Duration::from_millis(1_500);
/// Starting a whole cluster takes most of this.
const RETURN_LIMIT: Duration = Duration::from_secs(180);
/// Requests of one look at who answers.
const LOOK_REQUESTS: u64 = 60;
/// Of a third, on a small sample.
const EVEN_SHARE_MIN: f64 = 0.15;

/// Failures end at about a second; this is for a busy machine.
pub const RECOVERED_MAX: Duration = Duration::from_secs(10);
/// Longer than that, so that it is told how long it took.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// What comes after a command: connections that were open, routes that are written late.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Failures that are told one by one.
const FAILURES_TOLD: usize = 5;

const YAML: &str = include_str!("../../shop/failover.yaml");

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL for all processes of the member; its link stays up.
    MemberKilled,
    /// All packets to and from the member are dropped.
    MemberBlackholed,
    /// SIGKILL for its gateway.
    GatewayKilled,
    /// SIGKILL for all endpoints of its service, which are not ready then.
    EndpointsGone,
    /// Packets between it and one entry are dropped.
    LinkCut,
    /// The same, of one direction.
    LinkCutOneWay,
}

impl Kind {
    /// Those that the bench measures.
    pub const MEASURED: [Self; 5] = [
        Self::MemberKilled,
        Self::MemberBlackholed,
        Self::GatewayKilled,
        Self::EndpointsGone,
        Self::LinkCut,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemberKilled => "member killed",
            Self::MemberBlackholed => "member blackholed",
            Self::GatewayKilled => "gateway killed",
            Self::EndpointsGone => "endpoints gone",
            Self::LinkCut => "link cut",
            Self::LinkCutOneWay => "link cut one way",
        }
    }

    async fn begin(self, world: &World) -> Result<()> {
        let fault = world.fault();
        match self {
            Self::MemberKilled => fault.kill_member(VICTIM).await,
            Self::MemberBlackholed => fault.isolate(VICTIM),
            Self::GatewayKilled => fault.kill_gateway(VICTIM).await,
            Self::EndpointsGone => {
                // As pods that crash: first nobody listens, then the slice says so.
                world.backends().kill(VICTIM).await;
                set_ready(world, 0).await
            }
            Self::LinkCut => fault.cut(VICTIM, NEIGHBOUR),
            Self::LinkCutOneWay => fault.cut_one_way(VICTIM, NEIGHBOUR),
        }
    }

    /// Takes the fault away again.
    pub async fn mend(self, world: &World) -> Result<()> {
        let fault = world.fault();
        match self {
            Self::MemberKilled => fault.restore_member(VICTIM).await,
            Self::MemberBlackholed => fault.rejoin(VICTIM),
            Self::GatewayKilled => fault.restore_gateway(VICTIM).await,
            Self::EndpointsGone => {
                world.backends().start(VICTIM).await?;
                set_ready(world, shop::REPLICAS).await
            }
            Self::LinkCut => fault.mend(VICTIM, NEIGHBOUR),
            Self::LinkCutOneWay => fault.mend_one_way(VICTIM, NEIGHBOUR),
        }
    }
}

async fn set_ready(world: &World, ready: u8) -> Result<()> {
    world.set_ready(VICTIM, shop::NAMESPACE, SERVICE, ready, shop::REPLICAS).await
}

/// Whether there is a hub meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HubIs {
    Up,
    Down,
}

impl HubIs {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "hub up",
            Self::Down => "hub down",
        }
    }
}

/// What requests saw of a fault.
#[derive(Clone, Debug)]
pub struct Seen {
    /// From the fault until 99 % of the requests started in every later window succeed.
    pub recovered: Option<Duration>,
    pub failed: usize,
    pub requests: usize,
    /// Those that had ended by then.
    pub failed_before: usize,
    /// What failed how, in words.
    pub failures: BTreeMap<String, usize>,
}

impl Seen {
    /// The time until they recovered; the whole horizon when they did not.
    pub fn recovered_or_horizon(&self) -> Duration {
        self.recovered.unwrap_or(HORIZON)
    }
}

/// What requests saw of a command.
#[derive(Clone, Debug)]
pub struct Commanded {
    pub report: Report,
    /// How long the command took.
    pub took: Duration,
    /// When it had ended, since the first request.
    pub ended_at: Duration,
}

/// How members that come back get their traffic.
#[derive(Clone, Copy, Debug)]
pub struct Failback {
    pub after_s: u32,
    pub ramp_s: u32,
}

impl Fleet<'_> {
    /// Installs Fairlead and the service, and waits until every entry uses every member.
    pub async fn open_trial(&self, failback: Failback) -> Result<()> {
        tokio::task::spawn_blocking(build_programs).await??;
        self.init().await?;
        self.join_all().await?;
        for member in self.world().members() {
            member.objects().apply(&object::namespace(shop::NAMESPACE)).await?;
            member.objects().apply(&object::namespace(shop::GATEWAY_NAMESPACE)).await?;
            self.serve(member.name(), SERVICE, "v1", shop::REPLICAS).await?;
        }
        self.set_failback(failback).await?;
        self.wait_live(PATH).await?;
        self.wait_settled().await?;
        self.wait_even(PATH).await
    }

    /// Writes route and policy.
    pub async fn set_failback(&self, Failback { after_s, ramp_s }: Failback) -> Result<()> {
        let (after, ramp) = (after_s.to_string(), ramp_s.to_string());
        let yaml = fill(YAML, &[("AFTER", &after), ("RAMP", &ramp)])?;
        self.hub().objects().apply_yaml(&yaml).await
    }

    /// Waits until every entry leads to every member.
    pub async fn wait_even(&self, path: &str) -> Result<()> {
        wait::until(
            &format!("every entry to use every member for {path}"),
            RETURN_LIMIT,
            || async {
                for (name, address) in self.entries().await? {
                    let load = Load::new(shop::HOST, path).entry(&name, address);
                    let report = strict(&load.requests(LOOK_REQUESTS, 8).run().await);
                    let shares = report.shares(|sample| sample.outcome.target.clone());
                    let of = |member: &str| shares.get(member).copied().unwrap_or_default();
                    let even = self.world().members().all(|m| of(m.name()) >= EVEN_SHARE_MIN);
                    if report.failed() > 0 || !even {
                        let failed = report.failed();
                        return Ok(Look::Not(format!(
                            "through {name} {shares:?}, {failed} failed"
                        )));
                    }
                }
                Ok(Look::Done(()))
            },
        )
        .await
    }

    /// A load through the entries that are left.
    pub async fn start_left(&self, path: &str) -> Result<Running> {
        let mut load = self.load(path).await?;
        load.entries.retain(|entry| entry.name != VICTIM);
        let running = load.rate(RATE).start();
        pass(&running, STEADY).await?;
        Ok(running)
    }

    /// Lets something fail and watches; it stays broken.
    pub async fn watch_fault(&self, kind: Kind, path: &str) -> Result<Seen> {
        let load = self.start_left(path).await?;
        let at = load.now();
        let began = kind.begin(self.world()).await;
        pass(&load, HORIZON.saturating_sub(load.now().saturating_sub(at))).await?;
        began.with_context(|| format!("beginning {}", kind.name()))?;
        Ok(judge(&load.stop().await, at))
    }

    /// One fault from start to end: all is as before afterwards.
    pub async fn trial(&self, kind: Kind, hub: HubIs, path: &str) -> Result<Seen> {
        if hub == HubIs::Down {
            self.world().fault().kill_hub().await?;
        }
        let seen = self.watch_fault(kind, path).await;
        kind.mend(self.world()).await?;
        if hub == HubIs::Down {
            self.world().fault().restore_hub().await?;
        }
        let seen = seen?;
        self.wait_whole(path).await?;
        Ok(seen)
    }

    /// A member vanishes and dies while requests come in by the others; gives when those succeed again. It
    /// stays dead until [`Self::bring_back`].
    pub async fn lose_member(&self, member: &str, path: &str, rate: f64) -> Result<Duration> {
        let mut load = self.load(path).await?;
        load.entries.retain(|entry| entry.name != member);
        let running = load.rate(rate).start();
        pass(&running, STEADY).await?;
        let at = running.now();
        self.world().fault().isolate(member)?;
        self.world().fault().kill_member(member).await?;
        let recovered = wait::until("requests to recover", RECOVERY_LIMIT, || async {
            Ok(match strict(&running.settled()).recovered_after(at) {
                Some(time) => Look::Done(time),
                None => Look::Not(format!("{} have failed", running.so_far().failed())),
            })
        })
        .await?;
        running.stop().await;
        Ok(recovered)
    }

    /// Starts a member that was lost, and waits until it holds its plan.
    pub async fn bring_back(&self, member: &str) -> Result<()> {
        self.world().fault().rejoin(member)?;
        self.world().fault().restore_member(member).await?;
        self.wait_settled().await.map(drop)
    }

    /// Runs a command with the hub's kubeconfig while requests go through all entries.
    pub async fn under_load(&self, path: &str, rate: f64, line: &str) -> Result<Commanded> {
        let running = self.load(path).await?.rate(rate).start();
        pass(&running, STEADY).await?;
        let start = Instant::now();
        self.at_hub(line).await?.expect_success()?;
        let (took, ended_at) = (start.elapsed(), running.now());
        pass(&running, AFTERWARDS).await?;
        Ok(Commanded { report: running.stop().await, took, ended_at })
    }

    /// Waits until all is as it was.
    pub async fn wait_whole(&self, path: &str) -> Result<()> {
        self.wait_settled().await?;
        self.wait_even(path).await
    }

    /// How often the routes of all members were changed since they were made.
    pub async fn route_changes(&self) -> Result<u64> {
        let key = rendered_route(SERVICE);
        let mut changes = 0;
        for member in self.world().members() {
            let route = member.objects().get(&key).await?;
            let route = route.with_context(|| format!("{} has no {key}", member.name()))?;
            changes += route["metadata"]["generation"].as_u64().unwrap_or_default();
        }
        Ok(changes)
    }

    /// Lets all cores work for so long, under load; how often routes were changed meanwhile, and what
    /// requests saw.
    pub async fn quiet(&self, time: Duration) -> Result<(u64, Report)> {
        let before = self.route_changes().await?;
        let load = self.start_left(PATH).await?;
        let busy = Busy::start();
        let passed = pass(&load, time).await;
        drop(busy);
        let report = strict(&load.stop().await);
        passed?;
        Ok((self.route_changes().await? - before, report))
    }
}

/// A rendered route of the shop.
pub fn rendered_route(name: &str) -> ObjectKey {
    let name = format!("{name}-global");
    ObjectKey::new("gateway.networking.k8s.io/v1", "HTTPRoute", shop::NAMESPACE, &name)
}

/// Rules of a rendered route, to be compared.
pub async fn rendered_rules(world: &World, member: &str) -> Result<Value> {
    let route = world.member(member)?.objects().get(&rendered_route(SERVICE)).await?;
    Ok(route.context("the route is not there")?["spec"]["rules"].clone())
}

/// What a load saw of something that happened `at` a time of it.
pub fn judge(report: &Report, at: Duration) -> Seen {
    let report = strict(report);
    let after = report.only(|sample| sample.started >= at);
    Seen {
        recovered: report.recovered_after(at),
        failed: after.failed(),
        requests: after.total(),
        // Not what was on its way when it happened.
        failed_before: report.only(|sample| sample.started + sample.took < at).failed(),
        failures: failures(&report),
    }
}

/// What failed how, in words.
pub fn failures(report: &Report) -> BTreeMap<String, usize> {
    let failed = report.only(|sample| !sample.outcome.is_success());
    let mut failures = BTreeMap::new();
    for (tally, count) in failed.counts() {
        let text = format!("{} {} {}", tally.entry, tally.status, tally.error);
        *failures.entry(text.trim_end().to_owned()).or_default() += count;
    }
    failures
}

/// The first failures, each with its time since the first request.
pub fn first_failures(report: &Report) -> Value {
    let failed = report.samples().iter().filter(|sample| !sample.outcome.is_success());
    let text = |sample: &Sample| {
        let outcome = &sample.outcome;
        let (status, error) = (outcome.status, outcome.error);
        json!(format!("{} {status} {error} at {:.2} s", sample.entry, sample.started.as_secs_f64()))
    };
    failed.take(FAILURES_TOLD).map(text).collect()
}

/// An answer that is not the service's is a failure too, whatever its status: a door that is up
/// before its routes answers 404.
pub fn strict(report: &Report) -> Report {
    let mut samples = report.samples().to_vec();
    for sample in samples.iter_mut().filter(|sample| sample.outcome.target.is_empty()) {
        if sample.outcome.is_success() {
            sample.outcome.error = "not the service";
        }
    }
    Report::new(samples)
}

/// Lets traffic flow for so long.
pub async fn pass(load: &Running, time: Duration) -> Result<()> {
    let until = load.now() + time;
    wait::until("some time to pass", time * 2 + Duration::from_secs(5), || async {
        Ok(match load.now() >= until {
            true => Look::Done(()),
            false => Look::Not("not yet".into()),
        })
    })
    .await
}

/// Threads that work as hard as they can, two for each core.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spin = |_| {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..2 * cores).map(spin).collect();
        Self { stop, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
