//! Queries per second of one agent's DNS server, beside Knot with the same records, asked by dnsperf in
//! turn; latencies of both; and what a flood costs the agent's other work.
//!
//! Both servers have one thread for UDP and the same one core, the client another one where the machine has
//! it. Needs `dnsperf`, `knotd` and `taskset` (packages dnsperf, knot, util-linux). Only ratios mean something:
//! everything else of the world shares the cores.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_crds::keys;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::process::Command;

use crate::{
    fleet::{Fleet, program::build_programs, shop},
    launch::Launch,
    object::ObjectKey,
    process::Unit,
    report::Row,
    wait::{self, Look},
    world::World,
};

const ZONE: &str = "example.com";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const DNS_PORT: u16 = 5353;
const KNOT_PORT: u16 = 5454;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(5);
const LATENCY_ROUND: Duration = Duration::from_secs(2);
/// Below what either can do, so that latency is that of answering and not of a queue.
const CALM_QPS: u32 = 2_000;
/// Many, but not all that either can do.
const BUSY_QPS: u32 = 10_000;
/// How often the agent has to repair a route, each time calm and flooded.
const REPAIRS: usize = 8;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn run(world: &World) -> Result<Vec<Row>> {
    tokio::task::spawn_blocking(build_programs).await??;
    let fleet = Fleet::new(world)?;
    let home = world.members().next().context("a world has a member")?.name().to_owned();
    set_up(&fleet, &home).await?;
    let address = world.member(&home)?.local()?.pods.address;
    let agent = SocketAddr::new(address.into(), DNS_PORT);
    let folder = world.folder().join("bench-dns");
    std::fs::create_dir_all(&folder)?;
    let queries = folder.join("queries");
    let names = ["A", "AAAA", "A", "A"].map(|kind| format!("{} {kind}\n", shop::HOST));
    std::fs::write(&queries, format!("{}no.{ZONE} A\n{ZONE} SOA\n", names.concat()))?;

    let knot = start_knot(world, &home, &folder, address).await?;
    let reference = SocketAddr::new(address.into(), KNOT_PORT);
    wait_answer(reference).await?;
    let pid = world.kubelet(&home)?.pid(keys::AGENT).context("the agent has no process")?;
    let pids = [pid, knot.pid().context("knot has no process")?];
    for server in pids {
        stay_on_last_core(server).await?;
    }
    let mut rows = compare_floods([agent, reference], pids, &queries).await?;
    for (name, rate) in [("calm", CALM_QPS), ("busy", BUSY_QPS)] {
        rows.extend(compare_latencies(name, rate, [agent, reference], &queries).await?);
    }
    knot.stop(Duration::from_secs(2)).await;
    rows.push(Row::new("route repaired, calm", "ms", &repairs(world, &home).await?));
    let length = LIMIT * 2;
    let flooded = tokio::select! {
        repaired = repairs(world, &home) => repaired?,
        flooded = flood(agent, &queries, length) => {
            let rate = flooded?;
            anyhow::bail!("{REPAIRS} repairs took longer than a flood of {length:?} at {rate}/s");
        }
    };
    rows.push(Row::new("route repaired, flooded", "ms", &flooded));
    Ok(rows)
}

/// As many queries as go, in turn, so that whatever else the machine does meets both. What a query costs a
/// server counts where the client or the machine is the bound.
async fn compare_floods(
    servers: [SocketAddr; 2],
    pids: [u32; 2],
    queries: &Path,
) -> Result<Vec<Row>> {
    let (mut rates, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (at, server) in servers.iter().enumerate() {
            let before = cpu_us(pids[at])?;
            let rate = flood(*server, queries, ROUND).await?;
            costs[at].push((cpu_us(pids[at])? - before) / (rate * ROUND.as_secs_f64()));
            rates[at].push(rate);
        }
    }
    Ok(vec![
        Row::new("agent", "queries/s", &rates[0]),
        Row::new("knot", "queries/s", &rates[1]),
        Row::new("agent / knot", "%", &percent(&rates[0], &rates[1])),
        Row::new("agent, CPU of a query", "µs", &costs[0]),
        Row::new("knot, CPU of a query", "µs", &costs[1]),
        Row::new("agent / knot, CPU of a query", "%", &percent(&costs[0], &costs[1])),
    ])
}

/// CPU time that a process has had, in microseconds.
fn cpu_us(pid: u32) -> Result<f64> {
    const TICK_US: f64 = 10_000.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a server's stat")?;
    // Behind the name, which may hold anything, the 12th and 13th are user and system time.
    let (_, fields) = stat.rsplit_once(')').context("stat without a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() * TICK_US)
}

fn percent(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs).filter(|(_, theirs)| **theirs > 0.0);
    pairs.map(|(ours, theirs)| 100.0 * ours / theirs).collect()
}

/// Latencies at a rate, in turn, and the ratio of each round's p99.
async fn compare_latencies(
    name: &str,
    rate: u32,
    servers: [SocketAddr; 2],
    queries: &Path,
) -> Result<Vec<Row>> {
    let (mut all, mut p99) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (at, server) in servers.iter().enumerate() {
            let found = latencies(*server, queries, rate).await?;
            p99[at].push(Row::new("", "", &found).p99);
            all[at].extend(found);
        }
    }
    Ok(vec![
        Row::new(&format!("agent, {name} ({rate}/s)"), "µs", &all[0]),
        Row::new(&format!("knot, {name} ({rate}/s)"), "µs", &all[1]),
        Row::new(&format!("agent / knot, p99 of rounds, {name}"), "%", &percent(&p99[0], &p99[1])),
    ])
}

fn last_core() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// All threads of a process, and those that come.
async fn stay_on_last_core(pid: u32) -> Result<()> {
    let words = ["-a", "-c", "-p", &last_core().to_string(), &pid.to_string()];
    let output = Command::new("taskset").args(words).output().await.context("taskset")?;
    ensure!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The agent's main work: how long a route of its own is away when somebody deletes it.
async fn repairs(world: &World, home: &str) -> Result<Vec<f64>> {
    let objects = world.member(home)?.objects();
    let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, "cart-global");
    let uid = |route: &serde_json::Value| route["metadata"]["uid"].clone();
    let mut found = Vec::new();
    for _ in 0..REPAIRS {
        let before = uid(&objects.get(&key).await?.context("there is no route to delete")?);
        let start = Instant::now();
        objects.delete(&key).await?;
        wait::until("the route to be back", LIMIT, || async {
            let there = objects.get(&key).await?;
            Ok(match there.is_some_and(|route| uid(&route) != before) {
                true => Look::Done(()),
                false => Look::Not("it is away".to_owned()),
            })
        })
        .await?;
        found.push(start.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(found)
}

/// One member that answers for the shop, without a bound on answers.
async fn set_up(fleet: &Fleet<'_>, home: &str) -> Result<()> {
    fleet.init().await?;
    fleet.join(home).await?;
    fleet.open_shop(home).await?;
    let policy = json!({
        "apiVersion": keys::API_VERSION, "kind": "DNSPolicy",
        "metadata": {"name": "names", "namespace": shop::GATEWAY_NAMESPACE},
        "spec": {
            "targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "Gateway", "name": "public"}],
            "zone": ZONE, "strategy": "All", "ttlSeconds": 30,
        },
    });
    fleet.world().hub().objects().apply(&policy).await?;
    let agent: Api<k8s_openapi::api::apps::v1::Deployment> =
        Api::namespaced(fleet.world().member(home)?.client(), keys::NAMESPACE);
    let unbound = json!({"name": "FAIRLEAD_DNS_RATE", "value": "0"});
    let patch = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "agent", "env": [unbound]},
    ]}}}});
    let kubelet = fleet.world().kubelet(home)?;
    let before = kubelet.pid(keys::AGENT);
    agent.patch(keys::AGENT, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    wait::until("the agent to start anew", LIMIT, || async {
        Ok(match kubelet.pid(keys::AGENT) {
            Some(pid) if Some(pid) != before => Look::Done(()),
            other => Look::Not(format!("its process is {other:?}")),
        })
    })
    .await?;
    fleet.wait_live(shop::CART).await?;
    let address = fleet.world().member(home)?.local()?.pods.address;
    wait_answer(SocketAddr::new(address.into(), DNS_PORT)).await
}

async fn start_knot(
    world: &World,
    home: &str,
    folder: &Path,
    address: std::net::Ipv4Addr,
) -> Result<Unit> {
    let zone = format!(
        "$ORIGIN {ZONE}.\n\
         @ 30 SOA ns.{ZONE}. hostmaster.{ZONE}. 1 3600 600 1209600 30\n\
         @ 300 NS ns\n\
         ns 300 A {address}\n\
         shop 30 A {address}\n"
    );
    std::fs::write(folder.join(format!("{ZONE}.zone")), zone)?;
    let dir = folder.display();
    let config = format!(
        "server:\n    rundir: {dir}\n    listen: {address}@{KNOT_PORT}\n    udp-workers: 1\n    \
         tcp-workers: 1\n    background-workers: 1\n\
         log:\n  - target: stderr\n    any: warning\n\
         database:\n    storage: {dir}\n\
         zone:\n  - domain: {ZONE}\n    storage: {dir}\n    file: {ZONE}.zone\n"
    );
    let config_file = folder.join("knot.conf");
    std::fs::write(&config_file, config)?;
    let launch = Launch {
        argv: ["/usr/sbin/knotd", "-c", &config_file.display().to_string()]
            .map(str::to_owned)
            .into(),
        // Beside the agent, so that both are as far away.
        netns: Some(world.member(home)?.local()?.pods.namespace.clone()),
        ..Launch::default()
    };
    let knot = Unit::new("knot", folder.join("knot.log"), launch);
    knot.start().await.context("knotd (package knot)")?;
    Ok(knot)
}

async fn dig(server: SocketAddr) -> Result<String> {
    let (ip, port) = (format!("@{}", server.ip()), server.port().to_string());
    let output = Command::new("dig")
        .args([ip.as_str(), "-p", &port, "+short", "+time=1", "+tries=1", shop::HOST])
        .output()
        .await
        .context("dig (package bind9-dnsutils)")?;
    Ok(String::from_utf8(output.stdout)?)
}

async fn wait_answer(server: SocketAddr) -> Result<()> {
    wait::until(&format!("{server} to answer"), LIMIT, || async {
        let said = dig(server).await?;
        Ok(match said.lines().next().and_then(|line| line.parse::<std::net::IpAddr>().ok()) {
            Some(_) => Look::Done(()),
            None => Look::Not(format!("it says {said:?}")),
        })
    })
    .await
}

async fn dnsperf(server: SocketAddr, queries: &Path, words: &[&str]) -> Result<String> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    // Core 0; on a machine with one core that is the servers', too.
    let output = Command::new("taskset")
        .args(["-c", "0", "dnsperf"])
        .kill_on_drop(true)
        .args(["-s", &ip, "-p", &port, "-c", "8", "-d"])
        .arg(queries)
        .args(words)
        .output()
        .await
        .context("dnsperf (package dnsperf)")?;
    ensure!(output.status.success(), "dnsperf: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Queries a second, as many as go.
async fn flood(server: SocketAddr, queries: &Path, length: Duration) -> Result<f64> {
    let length = length.as_secs().to_string();
    let said = dnsperf(server, queries, &["-l", &length]).await?;
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Queries per second:"));
    Ok(line.context("dnsperf told no rate")?.trim().parse()?)
}

/// Latencies of single queries at a rate, in microseconds.
async fn latencies(server: SocketAddr, queries: &Path, rate: u32) -> Result<Vec<f64>> {
    let (length, rate) = (LATENCY_ROUND.as_secs().to_string(), rate.to_string());
    let said = dnsperf(server, queries, &["-l", &length, "-Q", &rate, "-v"]).await?;
    let latency = |line: &str| {
        let seconds: f64 = line
            .strip_prefix("> NO")
            .or(line.strip_prefix("> NX"))?
            .split(' ')
            .next_back()?
            .parse()
            .ok()?;
        Some(seconds * 1_000_000.0)
    };
    let found: Vec<f64> = said.lines().filter_map(latency).collect();
    ensure!(!found.is_empty(), "dnsperf told no latencies");
    Ok(found)
}
