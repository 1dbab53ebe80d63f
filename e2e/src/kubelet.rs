//! A small kubelet: runs Fairlead's own Deployments as processes of this machine.
//!
//! For every Deployment in `fairlead-system` labelled `app.kubernetes.io/part-of: fairlead` it
//! makes a Pod object, starts the Pod's one container as a process in the cluster's network
//! namespace with exactly the flags, files and credentials that the template gives it, and
//! reports readiness. Services and EndpointSlices are then the real controllers' work.
//!
//! Plays also the cloud's load balancer for Services of that namespace: their address is the
//! cluster's. What it does not play: liveness probes, init containers, users, resources, more
//! than one replica. What it does not understand it refuses, with a waiting Pod that says why.

mod pod;
mod status;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, core::v1::Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use self::{
    pod::{PodPlan, plan_pod},
    status::Phase,
    volume::Volumes,
};
use crate::{cluster::Cluster, launch::Launch, process::Unit};

/// The namespace whose Deployments are run.
pub const NAMESPACE: &str = "fairlead-system";
const SELECTOR: &str = "app.kubernetes.io/part-of=fairlead";
/// On every Pod made here: the Deployment it belongs to.
const DEPLOYMENT_LABEL: &str = "fairlead.dev/e2e-deployment";
const PERIOD: Duration = Duration::from_millis(300);
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Real kubelets wait 30 s; nothing of ours needs so long.
const GRACE: Duration = Duration::from_secs(5);

/// What a person (or a fault) has asked of a kubelet.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wish {
    /// The whole machine is off.
    off: bool,
    /// Programs that are not to run.
    held: BTreeSet<String>,
}

/// The handle of one cluster's kubelet. Dropping it ends the loop; processes die with the world.
pub struct Kubelet {
    wish: watch::Sender<Wish>,
    /// The last wish that has been carried out completely.
    done: watch::Receiver<Wish>,
    /// The processes that run, by program.
    running: Arc<Mutex<BTreeMap<String, u32>>>,
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Starts the loop for one cluster. `programs` is the folder with the built binaries.
    pub(crate) fn start(cluster: Arc<Cluster>, programs: PathBuf) -> Result<Self> {
        let (wish, wishes) = watch::channel(Wish::default());
        let (tell, done) = watch::channel(Wish::default());
        let mut node = Node::new(cluster, programs)?;
        let running = node.running.clone();
        let task = tokio::spawn(async move {
            let mut wishes = wishes;
            loop {
                let wish = wishes.borrow_and_update().clone();
                match node.sync(&wish).await {
                    Ok(()) => {
                        tell.send_replace(wish);
                    }
                    // The API may be away; the processes go on, as they would on a real node.
                    Err(error) => {
                        node.say(&format!("{error:#}"));
                        node.obey(&wish).await;
                        tell.send_replace(wish);
                    }
                }
                node.tell_running();
                let _ = tokio::time::timeout(PERIOD, wishes.changed()).await;
            }
        });
        Ok(Self { wish, done, running, task })
    }

    /// Kills a program at once and keeps it down until [`Kubelet::release`].
    pub async fn hold(&self, program: &str) {
        self.ask(|wish| {
            wish.held.insert(program.to_owned());
        })
        .await;
    }

    /// Lets a held program run again.
    pub async fn release(&self, program: &str) {
        self.ask(|wish| {
            wish.held.remove(program);
        })
        .await;
    }

    /// Kills everything, as a power cut does; nothing is reported any more.
    pub async fn power_off(&self) {
        self.ask(|wish| wish.off = true).await;
    }

    pub async fn power_on(&self) {
        self.ask(|wish| wish.off = false).await;
    }

    /// The process of a program, while it runs.
    pub fn pid(&self, program: &str) -> Option<u32> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(program).copied()
    }

    async fn ask(&self, change: impl FnOnce(&mut Wish)) {
        self.wish.send_modify(change);
        let wanted = self.wish.borrow().clone();
        let mut done = self.done.clone();
        // An error means that the loop has ended, and with it every program.
        let _ = done.wait_for(|done| *done == wanted).await;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One cluster's machine: what runs on it.
struct Node {
    cluster: Arc<Cluster>,
    programs: PathBuf,
    log: PathBuf,
    said: String,
    workloads: BTreeMap<String, Workload>,
    running: Arc<Mutex<BTreeMap<String, u32>>>,
}

/// One Deployment's Pod.
struct Workload {
    plan: PodPlan,
    pod: String,
    volumes: Volumes,
    unit: Unit,
    phase: Phase,
    restarts: i32,
    started: bool,
    ended: Option<Instant>,
    reported: String,
}

impl Node {
    fn new(cluster: Arc<Cluster>, programs: PathBuf) -> Result<Self> {
        let log = cluster.local()?.logs.join(format!("{}-kubelet.log", cluster.name()));
        Ok(Self {
            cluster,
            programs,
            log,
            said: String::new(),
            workloads: BTreeMap::new(),
            running: Arc::default(),
        })
    }

    fn tell_running(&self) {
        let pids = self
            .workloads
            .values()
            .filter_map(|workload| Some((workload.plan.program.clone(), workload.unit.pid()?)));
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = pids.collect();
    }

    /// One line in the kubelet's log; a line like the one before is not repeated.
    fn say(&mut self, line: &str) {
        if self.said == line {
            return;
        }
        line.clone_into(&mut self.said);
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&self.log) {
            let now = jiff::Timestamp::now();
            let _ = writeln!(file, "{now:.3} {line}");
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), NAMESPACE)
    }

    /// What needs no API: kills what is not to run.
    async fn obey(&mut self, wish: &Wish) {
        for workload in self.workloads.values_mut() {
            if wish.off || wish.held.contains(&workload.plan.program) {
                workload.unit.kill().await;
            }
        }
    }

    async fn sync(&mut self, wish: &Wish) -> Result<()> {
        self.obey(wish).await;
        if wish.off {
            return Ok(());
        }
        let params = ListParams::default().labels(SELECTOR);
        let deployments = self.api::<Deployment>().list(&params).await;
        let deployments = deployments.context("listing Deployments")?.items;
        self.remove_unwanted(&deployments).await?;
        for deployment in &deployments {
            let name = deployment.name_any();
            if let Err(error) = self.sync_deployment(deployment, wish).await {
                self.say(&format!("Deployment {name}: {error:#}"));
            }
        }
        self.confirm_deletions().await?;
        self.play_load_balancer().await
    }

    async fn remove_unwanted(&mut self, deployments: &[Deployment]) -> Result<()> {
        let wanted = |name: &str| {
            deployments.iter().any(|deployment| {
                let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                deployment.name_any() == name && replicas != Some(0)
            })
        };
        let names: Vec<String> = self.workloads.keys().cloned().collect();
        for name in names.iter().filter(|name| !wanted(name)) {
            self.remove(name).await?;
        }
        Ok(())
    }

    /// Stops a workload and removes its Pod.
    async fn remove(&mut self, name: &str) -> Result<()> {
        let Some(workload) = self.workloads.remove(name) else { return Ok(()) };
        self.say(&format!("stopping {}", workload.pod));
        workload.unit.stop(GRACE).await;
        self.delete_pod(&workload.pod).await
    }

    async fn delete_pod(&self, name: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        match self.api::<Pod>().delete(name, &now).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting Pod {name}")),
        }
    }

    /// Pods that somebody deletes wait for their kubelet's word that they have stopped; Pods that
    /// a kubelet before us left are nobody's.
    async fn confirm_deletions(&mut self) -> Result<()> {
        let params = ListParams::default().labels(DEPLOYMENT_LABEL);
        for pod in self.api::<Pod>().list(&params).await.context("listing Pods")? {
            let name = pod.name_any();
            let owner = self.workloads.iter().find(|(_, workload)| workload.pod == name);
            let owner = owner.map(|(owner, _)| owner.clone());
            match (owner, pod.metadata.deletion_timestamp.is_some()) {
                (Some(owner), true) => self.remove(&owner).await?,
                (None, _) => self.delete_pod(&name).await?,
                (Some(_), false) => {}
            }
        }
        Ok(())
    }

    async fn sync_deployment(&mut self, deployment: &Deployment, wish: &Wish) -> Result<()> {
        let name = deployment.name_any();
        if deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0) {
            return status::report_none(self.cluster.objects(), deployment).await;
        }
        let local = self.cluster.local()?;
        let plan = plan_pod(deployment, &self.cluster.node(), local.pods.address)?;
        if self.workloads.get(&name).is_some_and(|workload| workload.plan.hash != plan.hash) {
            self.remove(&name).await?;
        }
        if !self.workloads.contains_key(&name) {
            self.create(deployment, plan).await?;
        }
        let Some(mut workload) = self.workloads.remove(&name) else { return Ok(()) };
        let held = wish.held.contains(&workload.plan.program);
        let result = self.drive(deployment, &mut workload, held).await;
        self.workloads.insert(name, workload);
        result
    }

    /// Makes the Pod object; the process is started when its volumes are there.
    async fn create(&mut self, deployment: &Deployment, plan: PodPlan) -> Result<()> {
        let local = self.cluster.local()?;
        let name = deployment.name_any();
        let pod = plan.pod_object(deployment, &self.cluster.node(), DEPLOYMENT_LABEL)?;
        self.delete_pod(&pod.name_any()).await?;
        let created = self.api::<Pod>().create(&PostParams::default(), &pod).await;
        let created = created.context("creating a Pod")?;
        let pod_name = created.name_any();
        let volumes = Volumes::new(local, &name, &plan, &created)?;
        let log = local.logs.join(format!("{}-{name}.log", self.cluster.name()));
        let unit = Unit::new(format!("{name} of {}", self.cluster.name()), log, Launch::default());
        self.say(&format!("created Pod {pod_name}"));
        let workload = Workload {
            plan,
            pod: pod_name,
            volumes,
            unit,
            phase: Phase::Waiting("ContainerCreating".into(), String::new()),
            restarts: 0,
            started: false,
            ended: None,
            reported: String::new(),
        };
        self.workloads.insert(name, workload);
        Ok(())
    }

    /// One step of one workload: volumes, process, readiness, report.
    async fn drive(
        &mut self,
        deployment: &Deployment,
        workload: &mut Workload,
        held: bool,
    ) -> Result<()> {
        let synced = workload.volumes.sync(&self.cluster.client()).await;
        if !workload.unit.is_running() && !held {
            match synced {
                Ok(()) => self.start_when_due(workload).await?,
                Err(error) => {
                    let why = format!("{error:#}");
                    self.say(&format!("Pod {} waits: {why}", workload.pod));
                    workload.phase = Phase::Waiting("ContainerCreating".into(), why);
                }
            }
        }
        if workload.unit.is_running() {
            let address = self.cluster.local()?.pods.address;
            let ready = match &workload.plan.probe {
                Some(probe) => probe.passes(address).await,
                None => true,
            };
            workload.phase = if ready { Phase::Ready } else { Phase::Running };
        } else if held {
            workload.phase = Phase::Waiting("CrashLoopBackOff".into(), "held by a test".into());
        }
        let report = status::Report {
            deployment,
            pod: &workload.pod,
            plan: &workload.plan,
            phase: &workload.phase,
            restarts: workload.restarts,
            address: self.cluster.local()?.pods.address,
        };
        let text = report.fingerprint();
        if workload.reported != text {
            report.write(self.cluster.objects()).await?;
            workload.reported = text;
        }
        Ok(())
    }

    async fn start_when_due(&mut self, workload: &mut Workload) -> Result<()> {
        if workload.started {
            let ended = *workload.ended.get_or_insert_with(Instant::now);
            workload.phase = Phase::Waiting("CrashLoopBackOff".into(), "it ended".into());
            if ended.elapsed() < RESTART_AFTER {
                return Ok(());
            }
            workload.restarts += 1;
        }
        let local = self.cluster.local()?;
        let launch = workload
            .plan
            .launch(local, &workload.pod, &workload.volumes, &self.programs)
            .map(|launch| local.clocks.program.equip(launch));
        match launch {
            Ok(launch) => workload.unit.set_launch(launch),
            Err(error) => {
                let why = format!("{error:#}");
                self.say(&format!("Pod {}: {why}", workload.pod));
                workload.phase = Phase::Waiting("ErrImagePull".into(), why);
                return Ok(());
            }
        }
        workload.unit.start().await?;
        workload.started = true;
        workload.ended = None;
        self.say(&format!("started Pod {} (restart {})", workload.pod, workload.restarts));
        Ok(())
    }

    /// Services of type LoadBalancer get the cluster's address, where their Pods listen.
    async fn play_load_balancer(&mut self) -> Result<()> {
        let address = self.cluster.local()?.address.to_string();
        let services = self.api::<Service>().list(&ListParams::default()).await;
        for service in services.context("listing Services")? {
            let wanted = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
            if wanted != Some("LoadBalancer") || status::has_address(&service, &address) {
                continue;
            }
            status::give_address(self.cluster.objects(), &service, &address).await?;
            self.say(&format!("Service {} got {address}", service.name_any()));
        }
        Ok(())
    }
}
