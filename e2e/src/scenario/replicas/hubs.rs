//! Three hubs of one etcd: one that `fairlead init` made, two on nodes of their own beside it, and the
//! Service before them.
//!
//! Owns their processes and addresses, and what kube-proxy and a Deployment would do for them: only ready
//! ones get connections, and one that ended is started again.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use fairlead_crds::keys;
use fairlead_model::view::StatusView;
use http::Request;
use http_body_util::Empty;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    fault,
    fleet::{Fleet, HUB_PORT, program::program},
    http1,
    launch::Launch,
    net,
    process::Unit,
    wait::{self, Look},
};

const ADMIN_PORT: u16 = 8080;
/// The last octet of the first node's address.
const FIRST_NODE: u8 = 201;
const NODES: u8 = 2;
/// Longer than a dead hub's claim lives, and a fleet takes to come back.
pub(in crate::scenario) const LIMIT: Duration = Duration::from_secs(90);
const GRACE: Duration = Duration::from_secs(15);
/// How often a Service looks who is ready.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// A paused process takes connections and answers none.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// One of the hubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::scenario) struct Hub(pub usize);

pub(in crate::scenario) const ALL: [Hub; 3] = [Hub(0), Hub(1), Hub(2)];

/// The hubs.
pub(in crate::scenario) struct Hubs<'a> {
    fleet: &'a Fleet<'a>,
    nodes: Vec<Node>,
    served: Mutex<Served>,
}

/// What the Service leads to.
#[derive(Default)]
struct Served {
    by: Option<Vec<Hub>>,
    /// No new connections for this one.
    leaving: Option<Hub>,
}

struct Node {
    unit: Unit,
    namespace: String,
    address: Ipv4Addr,
}

impl<'a> Hubs<'a> {
    /// Makes the two nodes, whose hubs get this environment; nothing runs there yet.
    pub(in crate::scenario) fn new(
        fleet: &'a Fleet<'a>,
        etcd: &[String],
        env: &[(&str, String)],
    ) -> Result<Self> {
        let world = fleet.world();
        let local = world.hub().local()?;
        let [a, b, c, _] = local.address.octets();
        let node = |n: u8| {
            let address = Ipv4Addr::new(a, b, c, FIRST_NODE + n);
            let namespace = format!("{}-node{n}", local.namespace);
            let device = format!("node{n}");
            net::add_beside(&local.namespace, &namespace, &device, local.address, address)?;
            let argv = [
                program("fairlead-hub")?.display().to_string(),
                "run".to_owned(),
                format!("--listen=0.0.0.0:{HUB_PORT}"),
                format!("--admin-listen=0.0.0.0:{ADMIN_PORT}"),
                format!("--peer-address={address}"),
                format!("--namespace={}", keys::NAMESPACE),
                format!("--etcd-endpoint={}", etcd.join(",")),
            ];
            let kubeconfig = ("KUBECONFIG", world.hub().kubeconfig().display().to_string());
            let env = env.iter().cloned().chain([kubeconfig]);
            let launch = Launch {
                argv: argv.to_vec(),
                env: env.map(|(name, value)| (name.to_owned(), value)).collect(),
                netns: Some(namespace.clone()),
                ..Launch::default()
            };
            let log = world.folder().join(format!("hub-{}.log", n + 2));
            let unit = Unit::new(format!("hub {}", n + 2), log, launch);
            anyhow::Ok(Node { unit, namespace, address })
        };
        let nodes = (0..NODES).map(node).collect::<Result<_>>()?;
        Ok(Self { fleet, nodes, served: Mutex::default() })
    }

    /// Ends what runs on the nodes, and takes them and the Service away.
    pub(in crate::scenario) async fn remove(&self) -> Result<()> {
        let cluster = self.cluster()?;
        net::nft(&cluster, "table ip service\ndelete table ip service\n")?;
        for node in &self.nodes {
            node.unit.stop(GRACE).await;
            net::remove_beside(&cluster, &node.namespace, node.address)?;
        }
        Ok(())
    }

    fn cluster(&self) -> Result<String> {
        Ok(self.fleet.world().hub().local()?.namespace.clone())
    }

    fn node(&self, hub: Hub) -> Option<&Node> {
        self.nodes.get(hub.0.checked_sub(1)?)
    }

    pub(in crate::scenario) fn address(&self, hub: Hub) -> Result<Ipv4Addr> {
        match self.node(hub) {
            Some(node) => Ok(node.address),
            None => Ok(self.fleet.world().hub().local()?.address),
        }
    }

    pub(in crate::scenario) fn pid(&self, hub: Hub) -> Result<Option<u32>> {
        match self.node(hub) {
            Some(node) => Ok(node.unit.pid()),
            None => {
                let world = self.fleet.world();
                Ok(world.kubelet(world.hub().name())?.pid(fault::HUB))
            }
        }
    }

    /// Starts it, if it does not run.
    pub(in crate::scenario) async fn start(&self, hub: Hub) -> Result<()> {
        match self.node(hub) {
            Some(node) if node.unit.is_running() => Ok(()),
            Some(node) => node.unit.start().await,
            None => self.fleet.world().fault().restore_hub().await,
        }
    }

    /// SIGKILL; it stays down.
    pub(in crate::scenario) async fn kill(&self, hub: Hub) -> Result<()> {
        match self.node(hub) {
            Some(node) => node.unit.kill().await,
            None => self.fleet.world().fault().kill_hub().await?,
        }
        Ok(())
    }

    /// What a rolling upgrade does to a Pod: no new connections, SIGTERM, and a new one in its place.
    pub(in crate::scenario) async fn replace(&self, hub: Hub) -> Result<()> {
        self.leave(Some(hub));
        self.serve_ready().await?;
        let replaced = self.start_again(hub).await;
        self.leave(None);
        replaced
    }

    fn leave(&self, hub: Option<Hub>) {
        self.served().leaving = hub;
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start_again(&self, hub: Hub) -> Result<()> {
        match self.node(hub) {
            Some(node) => {
                node.unit.stop(GRACE).await;
                node.unit.start().await
            }
            None => {
                let before = self.pid(hub)?.context("the hub does not run")?;
                signal(before, Signal::SIGTERM)?;
                wait::until("the kubelet to start the hub again", LIMIT, || async {
                    Ok(match self.pid(hub)? {
                        Some(pid) if pid != before => Look::Done(()),
                        pid => Look::Not(format!("{pid:?}")),
                    })
                })
                .await
            }
        }
    }

    pub(in crate::scenario) fn pause(&self, hub: Hub) -> Result<()> {
        signal(self.pid(hub)?.context("the hub does not run")?, Signal::SIGSTOP)
    }

    pub(in crate::scenario) fn wake(&self, hub: Hub) -> Result<()> {
        signal(self.pid(hub)?.context("the hub does not run")?, Signal::SIGCONT)
    }

    /// Loses all packets from a node to the etcd.
    pub(in crate::scenario) fn cut_from_etcd(&self, hub: Hub, ports: &str) -> Result<()> {
        let from = self.node(hub).context("the first hub shares its node with the etcd")?.address;
        let rules = format!(
            "table ip partition {{ chain input {{ type filter hook input priority 0; \
             ip saddr {from} tcp dport {ports} drop; }}; }}\n"
        );
        net::nft(&self.cluster()?, &rules)
    }

    pub(in crate::scenario) fn mend(&self) -> Result<()> {
        net::nft(&self.cluster()?, "table ip partition\ndelete table ip partition\n")
    }

    /// Leads new connections to the hub's address to these.
    fn serve_by(&self, hubs: &[Hub]) -> Result<()> {
        let to = self.fleet.world().hub().local()?.address;
        let mut targets = Vec::new();
        for (n, hub) in hubs.iter().enumerate() {
            targets.push(format!("{n} : {}", self.address(*hub)?));
        }
        let lead = match targets.len() {
            0 => String::new(),
            n => format!(
                // Not from the nodes: what a hub passes on is for that very hub.
                "add rule ip service prerouting iifname eth0 ip daddr {to} tcp dport {HUB_PORT} dnat to \
                 numgen inc mod {n} map {{ {} }}",
                targets.join(", ")
            ),
        };
        // The chain stays: without one, answers to connections that exist are not translated back.
        let rules = format!(
            "table ip service {{ chain prerouting {{ type nat hook prerouting priority dstnat; }}; }}\n\
             flush chain ip service prerouting\n{lead}\n"
        );
        net::nft(&self.cluster()?, &rules)
    }

    /// Leads new connections to those that are ready now.
    async fn serve_ready(&self) -> Result<()> {
        let mut ready = Vec::new();
        for hub in ALL {
            let leaves = self.served().leaving == Some(hub);
            if !leaves && self.readiness(hub).await.is_ok_and(|text| text.starts_with("ok")) {
                ready.push(hub);
            }
        }
        if self.served().by.as_ref() != Some(&ready) {
            self.serve_by(&ready)?;
            self.served().by = Some(ready);
        }
        Ok(())
    }

    /// Plays the Service as long as it is polled.
    pub(in crate::scenario) async fn play_service(&self) -> Result<std::convert::Infallible> {
        loop {
            self.serve_ready().await?;
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// Starts again what ended by itself, as a kubelet does.
    pub(in crate::scenario) async fn tend(&self, hub: Hub) -> Result<()> {
        match self.pid(hub)? {
            None => self.start(hub).await,
            Some(_) => Ok(()),
        }
    }

    async fn ask(&self, hub: Hub, path: &str) -> Result<String> {
        let to = SocketAddr::from((self.address(hub)?, ADMIN_PORT));
        let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, http1::send(to, request));
        let answer = answer.await.context("it does not answer")??;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }

    pub(in crate::scenario) async fn readiness(&self, hub: Hub) -> Result<String> {
        self.ask(hub, "/readyz").await
    }

    pub(in crate::scenario) async fn status(&self, hub: Hub) -> Result<StatusView> {
        Ok(serde_json::from_str(&self.ask(hub, "/api/v1/status").await?)?)
    }

    /// A gauge or counter of a hub without labels.
    async fn figure(&self, hub: Hub, name: &str) -> Result<f64> {
        let text = self.ask(hub, "/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let line = line.with_context(|| format!("{hub:?} shows no {name}"))?;
        line.parse().with_context(|| format!("{name} {line}"))
    }

    pub(in crate::scenario) async fn decides(&self, hub: Hub) -> Result<bool> {
        Ok(self.figure(hub, "fairlead_hub_deciding").await? > 0.0)
    }

    /// Waits until one of these decides.
    pub(in crate::scenario) async fn wait_decider(&self, among: &[Hub]) -> Result<Hub> {
        wait::until("a hub to decide", LIMIT, || async {
            for hub in among {
                if self.decides(*hub).await.unwrap_or(false) {
                    return Ok(Look::Done(*hub));
                }
            }
            Ok(Look::Not("nobody decides".to_owned()))
        })
        .await
    }

    /// Waits until a hub stands by, and says what it says of that.
    pub(in crate::scenario) async fn wait_standby(&self, hub: Hub) -> Result<String> {
        wait::until(&format!("{hub:?} to stand by"), LIMIT, || async {
            self.tend(hub).await?;
            let text = self.readiness(hub).await?;
            let line = text.lines().find(|line| line.contains("another hub"));
            Ok(match line {
                Some(line) if text.starts_with("ok") => {
                    Look::Done(line.trim_start_matches("[i] ").to_owned())
                }
                _ => Look::Not(text),
            })
        })
        .await
    }

    /// Which of them pass how many connections on, and who decides.
    pub(in crate::scenario) async fn spread(&self) -> Result<Value> {
        let mut spread = serde_json::Map::new();
        for hub in ALL {
            let passed = self.figure(hub, "fairlead_hub_passed_connections").await?;
            let text = match self.decides(hub).await? {
                true => json!("decides"),
                false => json!(format!("passes {passed} on")),
            };
            spread.insert(format!("hub {}", hub.0 + 1), text);
        }
        Ok(Value::Object(spread))
    }

    /// The one that decides, of all.
    pub(in crate::scenario) async fn decider(&self) -> Result<Hub> {
        self.wait_decider(&ALL).await
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(i32::try_from(pid)?), signal) {
        Ok(()) => Ok(()),
        Err(error) => bail!("{signal} to {pid}: {error}"),
    }
}
