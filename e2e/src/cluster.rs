//! One cluster: its processes, its address, its API, seen from the harness.
//!
//! A cluster made here is etcd, kube-apiserver and kube-controller-manager in one network
//! namespace; a member adds Envoy Gateway (module `gateway`). A cluster may also be somebody
//! else's, known by a kubeconfig alone: then it has an API, but nothing to start or kill.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use serde_json::json;

use crate::{
    clock::Clocks,
    gateway::Gateway,
    launch::Launch,
    object::{Objects, fill, parse},
    pki::{self, Authority, Leaf, Side},
    process::Unit,
    tool::Toolbox,
    wait::{self, Look},
};

/// The API server's port.
pub const API_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longer than any answer of an API server on a busy machine; nothing here watches.
const API_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Hub,
    Member,
}

/// Name and place of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    pub name: String,
    pub role: Role,
    pub region: String,
    pub zone: String,
}

/// A cluster of a world.
pub struct Cluster {
    pub(crate) spec: ClusterSpec,
    kubeconfig: PathBuf,
    objects: Objects,
    pub(crate) local: Option<Local>,
}

/// What only a cluster made by the harness has.
pub struct Local {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) pods: PodNetwork,
    /// Its folder in the run folder: data, certificates.
    pub(crate) dir: PathBuf,
    /// The run folder itself: one log file per process.
    pub(crate) logs: PathBuf,
    pub(crate) etcd: Unit,
    pub(crate) api: Unit,
    pub(crate) controllers: Unit,
    pub(crate) gateway: Option<Gateway>,
    pub(crate) clocks: Clocks,
    pub(crate) ca_pem: String,
}

/// Where the Pods of a cluster run.
#[derive(Clone, Debug)]
pub(crate) struct PodNetwork {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
}

/// Where a new cluster is to live.
pub(crate) struct Site<'a> {
    pub run_folder: &'a Path,
    pub namespace: String,
    pub address: Ipv4Addr,
    pub pods: PodNetwork,
    pub tools: &'a Toolbox,
}

impl Cluster {
    /// A cluster that exists already, known by its kubeconfig.
    pub async fn existing(spec: ClusterSpec, kubeconfig: &Path) -> Result<Self> {
        let client = client(kubeconfig).await?;
        let objects = Objects::new(client);
        Ok(Self { spec, kubeconfig: kubeconfig.to_owned(), objects, local: None })
    }

    /// Writes all files of a new cluster; nothing runs yet.
    pub(crate) async fn prepare(spec: ClusterSpec, site: Site<'_>) -> Result<Self> {
        let dir = site.run_folder.join(&spec.name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let credentials = Credentials::make(&dir, &spec.name, site.address)?;
        let kubeconfig = site.run_folder.join(format!("{}.kubeconfig", spec.name));
        let admin = credentials.ca.issue(Side::Client, "admin", &["system:masters"], &[])?;
        credentials.write_kubeconfig(&kubeconfig, &spec.name, site.address, &admin)?;
        let manager = "system:kube-controller-manager";
        let manager = credentials.ca.issue(Side::Client, manager, &[], &[])?;
        let manager_config = dir.join("controllers.kubeconfig");
        credentials.write_kubeconfig(&manager_config, &spec.name, site.address, &manager)?;

        let unit = |name: &str, program: &Path, args: Vec<String>| {
            let mut argv = vec![program.display().to_string()];
            argv.extend(args);
            let log = site.run_folder.join(format!("{}-{name}.log", spec.name));
            let netns = Some(site.namespace.clone());
            let launch = Launch { argv, netns, ..Launch::default() };
            Unit::new(format!("{} of {}", name, spec.name), log, launch)
        };
        let gateway = match spec.role {
            Role::Hub => None,
            Role::Member => Some(Gateway::prepare(&spec.name, &dir, &site, &kubeconfig)?),
        };
        let local = Local {
            etcd: unit("etcd", &site.tools.etcd, etcd_args(&dir, site.address)),
            api: unit("apiserver", &site.tools.kube_apiserver, api_args(&dir, site.address)),
            controllers: unit(
                "controllers",
                &site.tools.kube_controller_manager,
                controllers_args(&dir, &manager_config),
            ),
            gateway,
            clocks: Clocks::new(&dir),
            ca_pem: credentials.ca.cert_pem().to_owned(),
            namespace: site.namespace,
            address: site.address,
            pods: site.pods,
            dir,
            logs: site.run_folder.to_owned(),
        };
        let objects = Objects::new(client(&kubeconfig).await?);
        Ok(Self { spec, kubeconfig, objects, local: Some(local) })
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// Path of an administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn client(&self) -> Client {
        self.objects.client().clone()
    }

    /// Dynamic reads and writes.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The parts that only a cluster made here has; an error that names the cluster otherwise.
    pub fn local(&self) -> Result<&Local> {
        match &self.local {
            Some(local) => Ok(local),
            None => bail!("cluster {} was not made by the harness", self.spec.name),
        }
    }

    /// The address on which this cluster's gateways listen.
    pub async fn gateway_addr(&self) -> Result<Ipv4Addr> {
        if let Some(local) = &self.local {
            return Ok(local.address);
        }
        let gateways = self.objects.list("gateway.networking.k8s.io/v1", "Gateway", "").await?;
        gateways
            .iter()
            .filter_map(|gateway| gateway["status"]["addresses"][0]["value"].as_str()?.parse().ok())
            .next()
            .with_context(|| format!("no Gateway of {} has an address", self.spec.name))
    }

    /// Starts etcd and the API server, and waits until the API is ready.
    pub(crate) async fn start_api(&self) -> Result<()> {
        let local = self.local()?;
        local.etcd.start().await?;
        let port_open = wait::until("etcd to listen", START_LIMIT, || async {
            tokio::net::TcpStream::connect((local.address, ETCD_PORT)).await?;
            Ok(Look::Done(()))
        });
        local.etcd.unless_it_ends(port_open).await?;
        local.api.start().await?;
        self.wait_api().await
    }

    /// Waits until the API server says that it is ready.
    pub(crate) async fn wait_api(&self) -> Result<()> {
        let local = self.local()?;
        let ready = wait::until("the API to be ready", START_LIMIT, || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            self.client().request_text(request).await?;
            Ok(Look::Done(()))
        });
        local.api.unless_it_ends(ready).await
    }

    /// Starts the controllers. They retry until the API is there.
    pub(crate) async fn start_controllers(&self) -> Result<()> {
        self.local()?.controllers.start().await
    }

    /// What every world's cluster holds before anything of Fairlead: one Node with its place.
    pub(crate) async fn write_node(&self) -> Result<()> {
        let address = self.local()?.address.to_string();
        let node = self.node();
        let values = [
            ("NODE", node.as_str()),
            ("REGION", &self.spec.region),
            ("ZONE", &self.spec.zone),
            ("ADDRESS", &address),
        ];
        let objects = fill(include_str!("../manifests/node.yaml"), &values)?;
        self.objects.apply_yaml(&objects).await?;
        for status in parse(&fill(include_str!("../manifests/node-status.yaml"), &values)?)? {
            self.objects.apply_status(&status).await?;
        }
        Ok(())
    }

    /// The name of its one Node.
    pub(crate) fn node(&self) -> String {
        format!("{}-node", self.spec.name)
    }

    /// Kills all processes of the cluster at once. The API server goes before its etcd: without
    /// one it would not leave on its own.
    pub(crate) async fn kill_processes(&self) -> Result<()> {
        let local = self.local()?;
        let gateway = async {
            if let Some(gateway) = &local.gateway {
                gateway.kill().await;
            }
        };
        tokio::join!(local.api.kill(), local.controllers.kill(), local.etcd.kill(), gateway);
        Ok(())
    }
}

impl Local {
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The network namespace, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster's own CA certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Its folder for data and state in the run folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A client for a kubeconfig's current context.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("reading {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("understanding {}", kubeconfig.display()))?;
    // The defaults wait minutes for a cluster whose wire was cut, and a kubelet that waits cannot
    // kill anything.
    config.connect_timeout = Some(API_PATIENCE);
    config.read_timeout = Some(API_PATIENCE);
    config.write_timeout = Some(API_PATIENCE);
    Client::try_from(config).context("making a Kubernetes client")
}

/// The certificates and keys of one cluster, written into its folder.
struct Credentials {
    ca: Authority,
}

impl Credentials {
    fn make(dir: &Path, name: &str, address: Ipv4Addr) -> Result<Self> {
        let ca = Authority::new(&format!("{name}-ca"))?;
        let address = address.to_string();
        let names = [
            address.as_str(),
            "127.0.0.1",
            "10.96.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        let serving = ca.issue(Side::Server, "kube-apiserver", &[], &names)?;
        write(dir, "ca.crt", ca.cert_pem())?;
        write(dir, "ca.key", &ca.key_pem())?;
        write(dir, "apiserver.crt", &serving.cert_pem)?;
        write(dir, "apiserver.key", &serving.key_pem)?;
        let (private, public) = pki::new_key_pair()?;
        write(dir, "service-accounts.key", &private)?;
        write(dir, "service-accounts.pub", &public)?;
        Ok(Self { ca })
    }

    fn write_kubeconfig(
        &self,
        file: &Path,
        cluster: &str,
        address: Ipv4Addr,
        leaf: &Leaf,
    ) -> Result<()> {
        let encode = |pem: &str| BASE64_STANDARD.encode(pem);
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": cluster,
            "clusters": [{"name": cluster, "cluster": {
                "server": format!("https://{address}:{API_PORT}"),
                "certificate-authority-data": encode(self.ca.cert_pem()),
            }}],
            "users": [{"name": cluster, "user": {
                "client-certificate-data": encode(&leaf.cert_pem),
                "client-key-data": encode(&leaf.key_pem),
            }}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        });
        let text = serde_json::to_string_pretty(&config).context("writing a kubeconfig")?;
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let file = dir.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

fn etcd_args(dir: &Path, address: Ipv4Addr) -> Vec<String> {
    let peer = "http://127.0.0.1:2380";
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://{address}:{ETCD_PORT}"),
        format!("--advertise-client-urls=http://{address}:{ETCD_PORT}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // The cluster's own durability is not what is tested here; Fairlead's store is elsewhere.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_args(dir: &Path, address: Ipv4Addr) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://{address}:{ETCD_PORT}"),
        format!("--advertise-address={address}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--cert-dir={}", dir.join("apiserver-certs").display()),
        // A test cluster has few clients; sharing them out fairly only costs CPU.
        "--enable-priority-and-fairness=false".into(),
        "--profiling=false".into(),
        // Deleted objects are a fact of many tests; half an hour of events is not.
        "--event-ttl=10m".into(),
    ]
}

fn controllers_args(dir: &Path, kubeconfig: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        // The harness plays the kubelet: it owns the status of Deployments, and its nodes send no
        // heartbeats, for which the lifecycle controllers would evict everything.
        "--controllers=*,-deployment-controller,-node-lifecycle-controller,-replicaset-controller"
            .into(),
        "--secure-port=0".into(),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=300".into(),
        "--profiling=false".into(),
    ]
}
