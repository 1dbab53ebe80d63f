//! A world: one hub cluster and some members, made here or given by kubeconfigs.
//!
//! Owns the order in which a world comes up, and that nothing of it outlives its value: dropping
//! a world kills its processes and removes its namespaces, also while a panic unwinds. What a
//! killed harness leaves is swept at the next start (module `net`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::Value;

use crate::{
    backend::Backends,
    cluster::{Cluster, ClusterSpec, PodNetwork, Role, Site},
    gateway,
    kubelet::Kubelet,
    net::{Lan, POD, Slot, Stay},
    object::{self, ObjectKey},
    path, system,
    tool::Toolbox,
};

/// Which Gateway API CRDs the clusters get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayApi {
    Standard,
    Experimental,
}

/// Whether the clusters get the CRDs of MCS-API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum McsApi {
    Installed,
    Absent,
}

/// What a world consists of.
#[derive(Clone, Debug)]
pub struct WorldSpec {
    pub members: Vec<ClusterSpec>,
    pub gateway_api: GatewayApi,
    pub mcs_api: McsApi,
    pub stay: Stay,
}

impl Default for WorldSpec {
    fn default() -> Self {
        Self::with_members(3)
    }
}

/// Names and places that fixtures and documents use, too; further members are called `m4`, `m5`…
const PLACES: &[(&str, &str, &str)] =
    &[("east", "eu", "eu-1"), ("west", "eu", "eu-2"), ("south", "us", "us-1")];
/// Removing a namespace takes the controllers some seconds.
const FORGET_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);
/// Each member is several processes with about half a GiB together.
const MEMBERS_MAX: usize = 20;

impl WorldSpec {
    pub fn with_members(count: usize) -> Self {
        let member = |index: usize| match PLACES.get(index) {
            Some((name, region, zone)) => mk_spec(name, Role::Member, region, zone),
            None => mk_spec(&format!("m{}", index + 1), Role::Member, "us", "us-1"),
        };
        Self {
            members: (0..count).map(member).collect(),
            gateway_api: GatewayApi::Standard,
            mcs_api: McsApi::Installed,
            stay: Stay::WithCommand,
        }
    }

    fn clusters(&self) -> Vec<ClusterSpec> {
        let mut clusters = vec![mk_spec("hub", Role::Hub, "eu", "eu-1")];
        clusters.extend(self.members.iter().cloned());
        clusters
    }

    fn validate(&self) -> Result<()> {
        ensure!(self.members.len() <= MEMBERS_MAX, "a world has at most {MEMBERS_MAX} members");
        let mut seen = vec!["hub", "host", "bridge", "lan", "lo"];
        for member in &self.members {
            let name = member.name.as_str();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            // It becomes the name of a network link.
            ensure!(
                name.len() <= 15 && !name.is_empty() && name.chars().all(plain),
                "{name:?} cannot name a member: at most 15 lower-case letters and digits"
            );
            ensure!(!seen.contains(&name), "the name {name} is taken");
            seen.push(name);
        }
        Ok(())
    }
}

fn mk_spec(name: &str, role: Role, region: &str, zone: &str) -> ClusterSpec {
    ClusterSpec { name: name.into(), role, region: region.into(), zone: zone.into() }
}

/// A world that is up. Dropping it takes it down.
pub struct World {
    clusters: Vec<Arc<Cluster>>,
    kubelets: BTreeMap<String, Kubelet>,
    backends: Backends,
    // After the clusters: what watches them ends before they are killed.
    lan: Option<Lan>,
    folder: PathBuf,
    tools: Toolbox,
    /// How it was made; none for clusters that were there before.
    spec: Option<WorldSpec>,
    took: std::time::Duration,
}

/// Databases with room for their logs, gateways with their own copies of Envoy, logs.
const ROOM_BYTES: u64 = 2 << 30;

impl World {
    /// Brings up a world; returns when every API is ready and every gateway class accepted.
    pub async fn up(spec: WorldSpec) -> Result<Self> {
        spec.validate()?;
        system::ensure_root()?;
        system::ensure(system::WORLD)?;
        let tools = tokio::task::spawn_blocking(Toolbox::ready).await??;
        let start = Instant::now();
        let mut world = Self::prepare(&spec, tools).await?;
        system::ensure_room(&world.folder, ROOM_BYTES)?;
        eprintln!("world {}: starting in {}", world.run(), world.folder.display());
        let crds = tokio::task::spawn_blocking({
            let (tools, spec) = (world.tools.clone(), spec.clone());
            move || Crds::read(&tools, &spec)
        });
        let crds = async { anyhow::Ok(Arc::new(crds.await??)) };
        let (crds, ()) = tokio::try_join!(crds, world.start_apis())?;
        let bring_up = world.clusters.iter().map(|cluster| {
            let (cluster, crds, run) = (cluster.clone(), crds.clone(), world.run().to_owned());
            // Tasks of their own, so that both cores parse and encrypt.
            flatten(tokio::spawn(async move {
                furnish(&cluster, &crds)
                    .await
                    .with_context(|| format!("bringing up {}", cluster.name()))?;
                let seconds = start.elapsed().as_secs_f32();
                eprintln!("world {run}: {} is ready after {seconds:.1} s", cluster.name());
                anyhow::Ok(())
            }))
        });
        try_join_all(bring_up).await?;
        let programs = programs()?;
        for cluster in &world.clusters {
            let kubelet = Kubelet::start(cluster.clone(), programs.clone())?;
            world.kubelets.insert(cluster.name().to_owned(), kubelet);
        }
        world.took = start.elapsed();
        Ok(world)
    }

    async fn prepare(spec: &WorldSpec, tools: Toolbox) -> Result<Self> {
        let runs = path::reports()?.join("runs");
        let slot = Slot::take(spec.stay, |run| runs.join(run))?;
        let folder = runs.join(slot.run());
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        point_latest(&runs, slot.run());
        forget_old_runs(&runs);
        let names: Vec<String> = spec.clusters().into_iter().map(|c| c.name).collect();
        let members: Vec<String> = spec.members.iter().map(|member| member.name.clone()).collect();
        let lan = Lan::up(slot, &names, &members)?;
        gateway::make_certificates(&folder, &tools)?;
        let mut clusters = Vec::new();
        for (number, spec) in (1..).zip(spec.clusters()) {
            let site = Site {
                run_folder: &folder,
                namespace: lan.slot().namespace(&spec.name),
                address: lan.slot().address(number, 1),
                pods: pod_network(lan.slot(), &spec, number),
                tools: &tools,
            };
            clusters.push(Arc::new(Cluster::prepare(spec, site).await?));
        }
        let took = std::time::Duration::ZERO;
        let (kubelets, backends) = (BTreeMap::new(), Backends::default());
        let spec = Some(spec.clone());
        Ok(Self { clusters, kubelets, backends, lan: Some(lan), folder, tools, spec, took })
    }

    async fn start_apis(&self) -> Result<()> {
        let starts = self.clusters.iter().map(|cluster| async {
            let context = || format!("starting the API of {}", cluster.name());
            cluster.start_api().await.with_context(context)
        });
        try_join_all(starts).await.map(drop)
    }

    /// A world of clusters that exist already. Nothing of them is started, stopped or removed.
    pub async fn existing(kubeconfigs: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let tools = tokio::task::spawn_blocking(Toolbox::ready).await??;
        ensure!(kubeconfigs.contains_key("hub"), "one of the kubeconfigs must be called hub");
        let mut clusters = Vec::new();
        for (name, file) in kubeconfigs {
            let role = if name == "hub" { Role::Hub } else { Role::Member };
            let spec = mk_spec(name, role, "", "");
            clusters.push(Arc::new(Cluster::existing(spec, file).await?));
        }
        let folder = path::reports()?.join("runs/existing");
        fs::create_dir_all(&folder).context("creating a run folder")?;
        let (kubelets, took) = (BTreeMap::new(), std::time::Duration::ZERO);
        let backends = Backends::default();
        let spec = None;
        Ok(Self { clusters, kubelets, backends, lan: None, folder, tools, spec, took })
    }

    pub fn hub(&self) -> &Arc<Cluster> {
        let mut clusters = self.clusters.iter();
        clusters.find(|c| c.spec.role == Role::Hub).expect("every constructor makes a hub")
    }

    pub fn member(&self, name: &str) -> Result<&Arc<Cluster>> {
        let found = self.members().find(|c| c.name() == name);
        found.with_context(|| format!("this world has no member {name}"))
    }

    pub fn members(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.iter().filter(|c| c.spec.role == Role::Member)
    }

    /// Removes namespaces and their echoes from all members, and waits until they are gone.
    pub async fn forget(&self, namespaces: &[&str]) -> Result<()> {
        for member in self.members() {
            self.backends.forget(member.name(), namespaces).await;
            for name in namespaces {
                member.objects().delete(&ObjectKey::new("v1", "Namespace", "", name)).await?;
            }
        }
        for member in self.members() {
            for name in namespaces {
                let key = ObjectKey::new("v1", "Namespace", "", name);
                member.objects().wait_gone(&key, FORGET_LIMIT).await?;
            }
        }
        Ok(())
    }

    /// The hub and all members.
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// The run folder: kubeconfigs, and one log file per process.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn tools(&self) -> &Toolbox {
        &self.tools
    }

    /// How long it took from built tools to ready.
    pub fn took(&self) -> std::time::Duration {
        self.took
    }

    /// The name of the run; `existing` for clusters that were there before.
    pub fn run(&self) -> &str {
        self.lan.as_ref().map_or("existing", |lan| lan.slot().run())
    }

    /// The kubelet of a cluster made here.
    pub fn kubelet(&self, cluster: &str) -> Result<&Kubelet> {
        let found = self.kubelets.get(cluster);
        found.with_context(|| format!("cluster {cluster} has no kubelet of the harness"))
    }

    /// The machine's own address in the world: what runs there is reached from every cluster.
    pub fn host_address(&self) -> Result<std::net::Ipv4Addr> {
        Ok(self.lan()?.slot().host_address())
    }

    /// Brings a cluster whose API is empty to where it was when the world was new.
    pub(crate) async fn furnish(&self, cluster: &Cluster) -> Result<()> {
        let spec = self.spec.clone().context("this cluster was not made by the harness")?;
        let tools = self.tools.clone();
        let crds = tokio::task::spawn_blocking(move || Crds::read(&tools, &spec)).await??;
        furnish(cluster, &crds).await
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    pub(crate) fn lan(&self) -> Result<&Lan> {
        match &self.lan {
            Some(lan) => Ok(lan),
            None => {
                bail!("these clusters were not made by the harness: it cannot touch their wires")
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(lan) = self.lan.take() else { return };
        self.kubelets.clear();
        drop(lan);
        // Logs stay; data, keys and sockets go.
        for cluster in &self.clusters {
            let _ = fs::remove_dir_all(self.folder.join(cluster.name()));
        }
        let _ = fs::remove_dir_all(self.folder.join(gateway::CERTIFICATES));
    }
}

/// A hub's Pods run where its cluster does, so that agents dial the cluster's address; a member's
/// run beside its gateway.
fn pod_network(slot: &Slot, spec: &ClusterSpec, number: u8) -> PodNetwork {
    match spec.role {
        Role::Hub => {
            PodNetwork { namespace: slot.namespace(&spec.name), address: slot.address(number, 1) }
        }
        Role::Member => PodNetwork {
            namespace: slot.pods_namespace(&spec.name),
            address: slot.address(number, POD),
        },
    }
}

/// Objects that every cluster gets before anything else.
struct Crds {
    gateway_api: Vec<Value>,
    mcs_api: Vec<Value>,
    envoy_gateway: Vec<Value>,
}

impl Crds {
    fn read(tools: &Toolbox, spec: &WorldSpec) -> Result<Self> {
        let channel = match spec.gateway_api {
            GatewayApi::Standard => "gateway-standard",
            GatewayApi::Experimental => "gateway-experimental",
        };
        let mcs_api = match spec.mcs_api {
            McsApi::Installed => object::parse_folder(&tools.crds.join("mcs"))?,
            McsApi::Absent => Vec::new(),
        };
        Ok(Self {
            gateway_api: object::parse_folder(&tools.crds.join(channel))?,
            mcs_api,
            envoy_gateway: object::parse_folder(&tools.envoy_gateway_crds)?,
        })
    }
}

/// From a ready API to a cluster that Fairlead could be installed in.
async fn furnish(cluster: &Cluster, crds: &Crds) -> Result<()> {
    cluster.start_controllers().await?;
    cluster.write_node().await?;
    let objects = cluster.objects();
    objects.apply_crds(&crds.gateway_api).await?;
    objects.apply_crds(&crds.mcs_api).await?;
    if let Some(gateway) = &cluster.local()?.gateway {
        objects.apply_crds(&crds.envoy_gateway).await?;
        gateway.install(cluster).await?;
    }
    Ok(())
}

/// The folder of this program, where cargo puts the hub's and the agent's, too.
fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    own.parent().map(Path::to_path_buf).context("this program lies in no folder")
}

async fn flatten(task: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    task.await.context("a task of the world ended badly")?
}

/// `runs/latest` is a convenience; a world does not fail for it.
fn point_latest(runs: &Path, run: &str) {
    let link = runs.join("latest");
    let _ = fs::remove_file(&link);
    let _ = std::os::unix::fs::symlink(run, &link);
}

/// Logs of this many runs are kept.
const RUNS_KEPT: usize = 20;

fn forget_old_runs(runs: &Path) {
    let held: Vec<String> =
        crate::net::holders().unwrap_or_default().into_iter().map(|holder| holder.run).collect();
    let Ok(entries) = fs::read_dir(runs) else { return };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !held.contains(&entry.file_name().to_string_lossy().into_owned()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    for (_, path) in found.iter().rev().skip(RUNS_KEPT) {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn default_world_is_the_one_of_the_documents() {
        let spec = WorldSpec::default();
        let names: Vec<&str> = spec.members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["east", "west", "south"]);
        spec.validate().unwrap();
    }

    #[test]
    fn names_that_cannot_be_links_are_refused() {
        for name in ["hub", "lan", "East", "a-b", "averyveryverylongname", ""] {
            let mut spec = WorldSpec::with_members(1);
            spec.members[0].name = name.into();
            assert!(spec.validate().is_err(), "{name}");
        }
    }
}
