//! How long requests fail when something dies: each kind of fault, with and without a hub.
//!
//! A round is each fault once with a hub and once without, a quiet minute with all cores busy, and,
//! in the first round of a run, what clients see that rely on DNS alone. Every measurement is
//! kept in a file at once; runs add to it, so that many short runs are one long one. Delete the file
//! `bench-failover-samples.json` to start anew.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use serde_json::{Value, json};

use super::Options;
use crate::{
    fleet::{
        Fleet, entry, shop,
        trial::{Failback, HubIs, Kind, PATH, SERVICE, Seen, VICTIM, judge},
    },
    load::{Load, Report, Sample},
    path,
    report::{Row, milliseconds},
    world::World,
};

const FAILBACK: Failback = Failback { after_s: 1, ramp_s: 0 };
const QUIET: Duration = Duration::from_secs(60);
/// Routes of the row with many of them.
const ROUTES: usize = 200;
const DNS: &str = "member killed, DNS with a TTL of 30 s alone";
const FALSE_FAILOVERS: &str = "false failovers in a quiet minute, all cores busy";
/// Clients that hold the victim's address, and how long answers live.
const DNS_CLIENTS: u32 = 10;
const DNS_TTL: Duration = Duration::from_secs(30);
/// Requests per second of each.
const DNS_RATE: f64 = 5.0;

pub(super) async fn run(world: &World, options: &Options) -> Result<Vec<Row>> {
    let fleet = Fleet::new(world)?;
    fleet.open_trial(FAILBACK).await?;
    let mut samples = Samples::read()?;
    for round in 0..options.rounds.unwrap_or(1) {
        for kind in Kind::MEASURED {
            for hub in [HubIs::Up, HubIs::Down] {
                let name = format!("{}, {}", kind.name(), hub.name());
                if !options.wants(&name) {
                    continue;
                }
                let seen = fleet.trial(kind, hub, PATH).await.with_context(|| name.clone())?;
                samples.add_seen(&name, &seen)?;
            }
        }
        if options.wants(FALSE_FAILOVERS) {
            let (changes, report) = fleet.quiet(QUIET).await?;
            // Out and in again are two changes of one failover.
            let failovers = u32::try_from(changes.div_ceil(2)).unwrap_or(u32::MAX);
            samples.add(FALSE_FAILOVERS, "1", f64::from(failovers))?;
            println!("quiet minute: {} of {} requests failed", report.failed(), report.total());
        }
        if round == 0 && options.wants(DNS) {
            samples.add_seen(DNS, &dns(&fleet).await?)?;
            fleet.wait_whole(PATH).await?;
        }
    }
    let many = format!("member killed, hub up, {ROUTES} routes");
    if options.wants(&many) {
        let path = open_many(&fleet).await?;
        for _ in 0..options.rounds.unwrap_or(1) {
            samples.add_seen(&many, &fleet.trial(Kind::MemberKilled, HubIs::Up, &path).await?)?;
        }
    }
    Ok(samples.rows())
}

/// Many more routes to the same service; the path of the one that is written last.
async fn open_many(fleet: &Fleet<'_>) -> Result<String> {
    let objects = fleet.world().hub().objects();
    let path = |n: usize| format!("/many-{n:03}");
    for n in 1..ROUTES {
        let backend = json!({"group": "multicluster.x-k8s.io", "kind": "ServiceImport",
            "name": SERVICE, "port": 80});
        objects
            .apply(&json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": format!("many-{n:03}"), "namespace": shop::NAMESPACE},
                "spec": {
                    "parentRefs": [{"name": "public", "namespace": shop::GATEWAY_NAMESPACE}],
                    "hostnames": [shop::HOST],
                    "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": path(n)}}],
                        "backendRefs": [backend]}],
                },
            }))
            .await?;
    }
    let last = path(ROUTES - 1);
    fleet.wait_live(&last).await?;
    fleet.wait_whole(&last).await?;
    Ok(last)
}

/// Clients of a name that leads to all members, whose answers run out evenly over the TTL: the record
/// of the dead member is gone at once, which is better than any health check can do.
async fn dns(fleet: &Fleet<'_>) -> Result<Seen> {
    let world = fleet.world();
    let entries = fleet.entries().await?;
    let victim = entry(world.member(VICTIM)?).await?;
    let left: Vec<_> = entries.iter().filter(|(name, _)| *name != VICTIM).collect();
    let whole = DNS_TTL + Duration::from_secs(5);
    let client = |number: u32| {
        let (name, address) = left[number as usize % left.len()];
        let (load, expires) =
            (Load::new(shop::HOST, PATH).rate(DNS_RATE), DNS_TTL * number / DNS_CLIENTS);
        async move {
            let before = load.clone().entry(VICTIM, victim).lasting(expires).run().await;
            let after = load.entry(name, *address).lasting(whole - expires).run().await;
            merged([(Duration::ZERO, before), (expires, after)])
        }
    };
    let mut others = Load::new(shop::HOST, PATH).rate(DNS_RATE * f64::from(2 * DNS_CLIENTS));
    for (name, address) in &left {
        others = others.entry(name, **address);
    }
    let fault = world.fault();
    let killed = fault.kill_member(VICTIM);
    let clients = join_all((1..=DNS_CLIENTS).map(client));
    let (clients, others, killed) = tokio::join!(clients, others.lasting(whole).run(), killed);
    world.fault().restore_member(VICTIM).await?;
    killed?;
    let all = clients.into_iter().chain([others]).map(|report| (Duration::ZERO, report));
    Ok(judge(&merged(all), Duration::ZERO))
}

/// Reports of loads that started at different times, as one.
fn merged(reports: impl IntoIterator<Item = (Duration, Report)>) -> Report {
    let shifted = reports.into_iter().flat_map(|(by, report)| {
        let shift =
            move |sample: &Sample| Sample { started: sample.started + by, ..sample.clone() };
        report.samples().iter().map(shift).collect::<Vec<_>>()
    });
    Report::new(shifted.collect())
}

/// All measurements of all runs, by row: unit and values.
struct Samples {
    file: PathBuf,
    rows: BTreeMap<String, (String, Vec<f64>)>,
}

impl Samples {
    fn read() -> Result<Self> {
        let file = path::reports()?.join("bench-failover-samples.json");
        let rows = match fs::read_to_string(&file) {
            Ok(text) => read_rows(&text).with_context(|| file.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => bail!("reading {}: {error}", file.display()),
        };
        Ok(Self { file, rows })
    }

    fn add_seen(&mut self, name: &str, seen: &Seen) -> Result<()> {
        println!(
            "{name}: {:.0} ms, {} of {} requests failed, {} before the fault; {:?}",
            milliseconds(seen.recovered_or_horizon()),
            seen.failed,
            seen.requests,
            seen.failed_before,
            seen.failures
        );
        let failed = u32::try_from(seen.failed).unwrap_or(u32::MAX);
        self.add(&format!("{name}: failed requests"), "1", f64::from(failed))?;
        self.add(name, "ms", milliseconds(seen.recovered_or_horizon()))
    }

    /// Written at once: a run that is interrupted loses nothing.
    fn add(&mut self, name: &str, unit: &str, value: f64) -> Result<()> {
        let row = self.rows.entry(name.to_owned()).or_insert_with(|| (unit.to_owned(), Vec::new()));
        row.1.push(value);
        let text = serde_json::to_string_pretty(&json!(self.rows)).context("writing samples")?;
        fs::write(&self.file, text).with_context(|| format!("writing {}", self.file.display()))
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.iter().map(|(name, (unit, values))| Row::new(name, unit, values)).collect()
    }
}

fn read_rows(text: &str) -> Result<BTreeMap<String, (String, Vec<f64>)>> {
    let value: Value = serde_json::from_str(text)?;
    Ok(serde_json::from_value(value)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::load::Outcome;

    #[test]
    fn samples_of_runs_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("samples.json");
        let mut samples = Samples { file: file.clone(), rows: BTreeMap::new() };
        samples.add("a", "ms", 1.0).unwrap();
        let rows = read_rows(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut samples = Samples { file, rows };
        samples.add("a", "ms", 3.0).unwrap();
        let rows = samples.rows();
        assert_eq!((rows.len(), rows[0].n, rows[0].max), (1, 2, 3.0));
    }

    #[test]
    fn merged_reports_keep_their_times() {
        let mk = |ms: u64| {
            let outcome = Outcome { status: 200, ..Outcome::default() };
            let started = Duration::from_millis(ms);
            Report::new(vec![Sample { entry: "e".into(), started, took: started, outcome }])
        };
        let all = merged([(Duration::ZERO, mk(5)), (Duration::from_secs(1), mk(7))]);
        let times: Vec<u128> = all.samples().iter().map(|s| s.started.as_millis()).collect();
        assert_eq!(times, [5, 1_007]);
    }
}
