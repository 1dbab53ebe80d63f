//! Faults: what breaks in a world, and how it is made whole again.
//!
//! Wires are cut so that nobody is told, as broken wires do: packets vanish, no error comes back.
//! A link between two members is cut where packets *arrive*, by a routing rule ahead of the local
//! addresses; a member is cut off by unplugging it from the bridge. Killing sends SIGKILL: nothing is
//! flushed, closed or said good-bye to.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::{Cluster, Local},
    net, system,
    world::World,
};

const AGENT: &str = "fairlead-agent";
/// The hub's program.
pub const HUB: &str = "fairlead-hub";
/// Routing rules of cuts come before the one for local addresses (100).
const CUT_PRIORITY: u32 = 10;

/// All faults of a world.
pub struct Faults<'a>(pub(crate) &'a World);

impl World {
    /// The faults of this world. Each call fails where a cluster was not made by the harness.
    pub fn fault(&self) -> Faults<'_> {
        Faults(self)
    }
}

impl Faults<'_> {
    fn local(&self, name: &str) -> Result<&Local> {
        self.cluster(name)?.local()
    }

    /// A member, or the hub's cluster by the name `hub`.
    fn cluster(&self, name: &str) -> Result<&Cluster> {
        if name == self.0.hub().name() {
            return Ok(self.0.hub());
        }
        Ok(self.0.member(name)?)
    }

    /// Kills all processes of a cluster at once. Its link stays up: connections are refused.
    pub async fn kill_member(&self, name: &str) -> Result<()> {
        let cluster = self.cluster(name)?;
        let local = cluster.local()?;
        let (namespace, pods) = (local.namespace.clone(), local.pods.namespace.clone());
        cluster.kill_processes().await?;
        self.0.backends().kill(name).await;
        // Pods, and programs that others started. Before the kubelet: behind a cut wire it waits
        // for its API.
        tokio::task::spawn_blocking(move || {
            net::kill_inhabitants(&pods);
            net::kill_inhabitants(&namespace);
        })
        .await?;
        self.0.kubelet(name)?.power_off().await;
        Ok(())
    }

    /// Starts all of it again; returns when the API is ready and the gateway's process runs.
    pub async fn restore_member(&self, name: &str) -> Result<()> {
        let cluster = self.cluster(name)?;
        let local = cluster.local()?;
        self.0.backends().start(name).await?;
        if !local.etcd.is_running() {
            cluster.start_api().await?;
        }
        if !local.controllers.is_running() {
            cluster.start_controllers().await?;
        }
        self.start_gateway_if_down(local).await?;
        self.0.kubelet(name)?.power_on().await;
        Ok(())
    }

    /// Kills Envoy Gateway and its Envoy.
    pub async fn kill_gateway(&self, member: &str) -> Result<()> {
        let gateway = self.local(member)?.gateway.as_ref();
        gateway.with_context(|| format!("{member} has no gateway"))?.kill().await;
        Ok(())
    }

    pub async fn restore_gateway(&self, member: &str) -> Result<()> {
        self.start_gateway_if_down(self.local(member)?).await
    }

    async fn start_gateway_if_down(&self, local: &Local) -> Result<()> {
        match &local.gateway {
            Some(gateway) if !gateway.is_running() => gateway.start(&local.clocks.gateway).await,
            _ => Ok(()),
        }
    }

    /// Loses the hub's cluster for good: its processes, its data, and the volumes of its Pods.
    pub async fn lose_hub_cluster(&self) -> Result<()> {
        let hub = self.0.hub();
        let local = hub.local()?;
        self.0.kubelet(hub.name())?.power_off().await;
        hub.kill_processes().await?;
        for folder in ["etcd", "claims", "pods"] {
            let folder = local.dir().join(folder);
            if folder.exists() {
                fs::remove_dir_all(&folder)
                    .with_context(|| format!("removing {}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// A new and empty cluster at the address of the one that was lost.
    pub async fn new_hub_cluster(&self) -> Result<()> {
        let hub = self.0.hub();
        hub.start_api().await?;
        self.0.furnish(hub).await?;
        self.0.kubelet(hub.name())?.power_on().await;
        Ok(())
    }

    /// Kills a cluster's API server; its etcd stays.
    pub async fn kill_api(&self, cluster: &str) -> Result<()> {
        self.local(cluster)?.api.kill().await;
        Ok(())
    }

    pub async fn restore_api(&self, cluster: &str) -> Result<()> {
        self.local(cluster)?.api.start().await?;
        self.cluster(cluster)?.wait_api().await
    }

    /// Kills a member's agent and keeps it down.
    pub async fn kill_agent(&self, member: &str) -> Result<()> {
        self.0.kubelet(member)?.hold(AGENT).await;
        Ok(())
    }

    pub async fn restore_agent(&self, member: &str) -> Result<()> {
        self.0.kubelet(member)?.release(AGENT).await;
        Ok(())
    }

    /// Kills the hub's process and keeps it down; its cluster stays.
    pub async fn kill_hub(&self) -> Result<()> {
        self.0.kubelet(self.0.hub().name())?.hold(HUB).await;
        Ok(())
    }

    pub async fn restore_hub(&self) -> Result<()> {
        self.0.kubelet(self.0.hub().name())?.release(HUB).await;
        Ok(())
    }

    /// Cuts the link between two clusters; both reach everybody else.
    pub fn cut(&self, a: &str, b: &str) -> Result<()> {
        self.cut_one_way(a, b)?;
        self.cut_one_way(b, a)
    }

    /// Loses every packet from one cluster to another, but not those of the other direction.
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.rule("add", from, to)
    }

    /// Mends a link that [`Faults::cut`] cut.
    pub fn mend(&self, a: &str, b: &str) -> Result<()> {
        self.mend_one_way(a, b)?;
        self.mend_one_way(b, a)
    }

    pub fn mend_one_way(&self, from: &str, to: &str) -> Result<()> {
        self.rule("del", from, to)
    }

    fn rule(&self, verb: &str, from: &str, to: &str) -> Result<()> {
        let [a, b, c, _] = self.local(from)?.address.octets();
        let to = self.local(to)?;
        let line =
            format!("rule {verb} pref {CUT_PRIORITY} from {a}.{b}.{c}.0/24 iif eth0 blackhole");
        net::batch(&to.namespace, &[line])
    }

    /// Loses every packet to and from a cluster, without its knowing.
    pub fn isolate(&self, cluster: &str) -> Result<()> {
        self.plug(cluster, "nomaster")
    }

    /// Connects an isolated cluster again.
    pub fn rejoin(&self, cluster: &str) -> Result<()> {
        self.plug(cluster, "master bridge")
    }

    /// Takes a cluster's wire out of the bridge or puts it back; its own end stays up all along.
    fn plug(&self, cluster: &str, how: &str) -> Result<()> {
        let cluster = self.cluster(cluster)?;
        self.0.lan()?.on_bridge(&[format!("link set dev {} {how}", cluster.name())])
    }

    /// Delays every packet to and from a cluster by this time each way. Needs the kernel's netem.
    pub fn delay(&self, cluster: &str, time: std::time::Duration) -> Result<()> {
        self.netem(cluster, &["delay", &format!("{}ms", time.as_millis())])
    }

    /// Loses this share (0 to 1) of the packets to and from a cluster, each way. Uses the
    /// kernel's netem, and nftables where the kernel has none.
    pub fn lose(&self, cluster: &str, share: f64) -> Result<()> {
        let percent = share.clamp(0.0, 1.0) * 100.0;
        if self.netem(cluster, &["loss", &format!("{percent}%")]).is_ok() {
            return Ok(());
        }
        system::ensure(system::LOSS)?;
        let name = self.cluster(cluster)?.name();
        let odds = match percent {
            100.0.. => "drop".to_owned(),
            _ => format!("numgen random mod 1000 < {:.0} drop", percent * 10.0),
        };
        let rules = format!(
            "table bridge loss-{name} {{ chain forward {{ type filter hook forward priority 0; \
             iifname {name} {odds}; oifname {name} {odds}; }}; chain input {{ type filter hook \
             input priority 0; iifname {name} {odds}; }}; }}"
        );
        self.nft(&rules)
    }

    /// Takes delay and loss away again.
    pub fn calm(&self, cluster: &str) -> Result<()> {
        let name = self.cluster(cluster)?.name();
        let lan = self.0.lan()?.slot().namespace("lan");
        let member = self.local(cluster)?.namespace.clone();
        for (namespace, device) in [(lan.as_str(), name), (member.as_str(), "eth0")] {
            // Fails where there is none, which is what is wanted.
            let _ = tc(namespace, &["qdisc", "del", "dev", device, "root"]);
        }
        if system::answers(&["nft", "--version"]) {
            let _ = self.nft(&format!("delete table bridge loss-{name}"));
        }
        Ok(())
    }

    fn netem(&self, cluster: &str, what: &[&str]) -> Result<()> {
        let name = self.cluster(cluster)?.name();
        let lan = self.0.lan()?.slot().namespace("lan");
        let member = self.local(cluster)?.namespace.clone();
        for (namespace, device) in [(lan.as_str(), name), (member.as_str(), "eth0")] {
            let mut args = vec!["qdisc", "replace", "dev", device, "root", "netem"];
            args.extend(what);
            tc(namespace, &args).context("this needs netem, which this kernel may lack")?;
        }
        Ok(())
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let lan = self.0.lan()?.slot().namespace("lan");
        let output = Command::new("ip").args(["netns", "exec", &lan, "nft", rules]).output();
        let output = output.context("starting nft")?;
        if !output.status.success() {
            bail!("nft failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

fn tc(namespace: &str, args: &[&str]) -> Result<()> {
    let output = Command::new("tc").args(["-n", namespace]).args(args).output();
    let output = output.context("starting tc")?;
    if !output.status.success() {
        bail!("tc failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
