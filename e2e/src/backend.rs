//! Echo backends in members: a process, a Service without selector, and a slice by hand.
//!
//! Replicas are addresses of the member's link, all served by one process; which of them are
//! ready is what the slice says, so that a test can make any share of a service unready at once.

use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex, sync::PoisonError, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::{
    cluster::Cluster,
    launch::Launch,
    net::{FIRST_REPLICA, REPLICAS_MAX},
    object, path,
    pki::Leaf,
    process::Unit,
    wait::{self, Look},
    world::World,
};

/// A service to be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    pub namespace: String,
    pub name: String,
    pub version: String,
    pub replicas: u8,
    /// `kubernetes.io/h2c` for gRPC; `None` leaves the Service's port without one.
    pub app_protocol: Option<String>,
    /// Where it sends spans, OTLP over HTTP; in members of the harness only.
    pub spans_to: Option<SocketAddr>,
    /// It speaks TLS with this certificate; in members of the harness only.
    pub tls: Option<Leaf>,
    /// What its port carries; datagrams in members of the harness only.
    pub transport: Transport,
}

/// What a port carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl Echo {
    pub fn new(namespace: &str, name: &str, version: &str, replicas: u8) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
            replicas,
            app_protocol: None,
            spans_to: None,
            tls: None,
            transport: Transport::Tcp,
        }
    }

    #[must_use]
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        self.app_protocol = Some(protocol.into());
        self
    }

    #[must_use]
    pub fn spans_to(mut self, address: SocketAddr) -> Self {
        self.spans_to = Some(address);
        self
    }
}

/// The Service's port; the process listens elsewhere.
pub const SERVICE_PORT: u16 = 80;
const FIRST_PORT: u16 = 20_000;
const START_LIMIT: Duration = Duration::from_secs(10);

/// The echo processes of a world, by cluster, namespace and name.
#[derive(Default)]
pub(crate) struct Backends {
    running: Mutex<BTreeMap<(String, String, String), Arc<Backend>>>,
}

struct Backend {
    unit: Unit,
    address: SocketAddr,
}

impl Backends {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String, String), Arc<Backend>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, cluster: &str) -> Vec<Arc<Backend>> {
        let map = self.map();
        map.iter().filter(|(key, _)| key.0 == cluster).map(|(_, value)| value.clone()).collect()
    }

    /// A free port of a cluster: one more than the highest in use.
    fn next_port(&self, cluster: &str) -> u16 {
        let ports = self.of(cluster).into_iter().map(|backend| backend.address.port());
        ports.max().map_or(FIRST_PORT, |port| port + 1)
    }

    pub(crate) async fn kill(&self, cluster: &str) {
        for backend in self.of(cluster) {
            backend.unit.kill().await;
        }
    }

    /// Ends the echoes of a cluster's namespaces.
    pub(crate) async fn forget(&self, cluster: &str, namespaces: &[&str]) {
        let gone: Vec<_> = {
            let mut map = self.map();
            let ours = |key: &(String, String, String)| {
                key.0 == cluster && namespaces.contains(&key.1.as_str())
            };
            let keys: Vec<_> = map.keys().filter(|key| ours(key)).cloned().collect();
            keys.iter().filter_map(|key| map.remove(key)).collect()
        };
        for backend in gone {
            backend.unit.kill().await;
        }
    }

    pub(crate) async fn start(&self, cluster: &str) -> Result<()> {
        for backend in self.of(cluster) {
            if !backend.unit.is_running() {
                backend.start().await?;
            }
        }
        Ok(())
    }
}

impl Backend {
    async fn start(&self) -> Result<()> {
        self.unit.start().await?;
        let listening = wait::until("an echo to listen", START_LIMIT, || async {
            tokio::net::TcpStream::connect(self.address).await?;
            Ok(Look::Done(()))
        });
        self.unit.unless_it_ends(listening).await
    }
}

impl World {
    /// Starts an echo in a member and writes its Service and slice, all replicas ready.
    /// Called again for the same service it changes version and replicas.
    pub async fn deploy_echo(&self, member: &str, echo: &Echo) -> Result<()> {
        ensure!(echo.replicas <= REPLICAS_MAX, "at most {REPLICAS_MAX} replicas can be played");
        let cluster = self.member(member)?;
        if cluster.local.is_none() {
            return deploy_image(cluster, echo).await;
        }
        let key = (member.to_owned(), echo.namespace.clone(), echo.name.clone());
        let old = self.backends().map().remove(&key);
        if let Some(old) = old {
            old.unit.kill().await;
        }
        let port = self.backends().next_port(member);
        let backend = Arc::new(mk_backend(cluster, echo, port)?);
        backend.start().await?;
        self.backends().map().insert(key, backend);
        let objects = cluster.objects();
        objects.apply(&object::namespace(&echo.namespace)).await?;
        objects.apply(&service(echo, port)).await?;
        let replicas = echo.replicas;
        let mut slice = slice(cluster, &echo.namespace, &echo.name, port, replicas, replicas)?;
        slice["ports"][0]["protocol"] = json!(echo.transport.as_str());
        objects.apply(&slice).await.map(drop)
    }

    /// Says that of `total` replicas the first `ready` are ready.
    pub async fn set_ready(
        &self,
        member: &str,
        namespace: &str,
        name: &str,
        ready: u8,
        total: u8,
    ) -> Result<()> {
        ensure!(ready <= total && total <= REPLICAS_MAX, "{ready} of {total} cannot be ready");
        let cluster = self.member(member)?;
        let key = (member.to_owned(), namespace.to_owned(), name.to_owned());
        let port = self.backends().map().get(&key).map(|backend| backend.address.port());
        let port = port.with_context(|| format!("{member} plays no {namespace}/{name}"))?;
        let slice = slice(cluster, namespace, name, port, ready, total)?;
        cluster.objects().apply(&slice).await.map(drop)
    }

    /// Ends a member's echo and removes its Service; the namespace stays.
    pub async fn remove_echo(&self, member: &str, namespace: &str, name: &str) -> Result<()> {
        let key = (member.to_owned(), namespace.to_owned(), name.to_owned());
        let old = self.backends().map().remove(&key);
        if let Some(old) = old {
            old.unit.kill().await;
        }
        let objects = self.member(member)?.objects();
        let slice = object::ObjectKey::new(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            namespace,
            &format!("{name}-echo"),
        );
        objects.delete(&slice).await?;
        objects.delete(&object::ObjectKey::new("v1", "Service", namespace, name)).await
    }
}

fn mk_backend(cluster: &Cluster, echo: &Echo, port: u16) -> Result<Backend> {
    let local = cluster.local()?;
    let address = SocketAddr::from((local.address, port));
    let mut argv = vec![
        path::own_program().display().to_string(),
        "echo".into(),
        format!("--listen=0.0.0.0:{port}"),
        format!("--cluster={}", cluster.name()),
        format!("--service={}", echo.name),
        format!("--version={}", echo.version),
    ];
    argv.extend(echo.spans_to.map(|to| format!("--spans-to={to}")));
    if let Some(leaf) = &echo.tls {
        let file = local.logs.join(format!("{}-echo-{}.pem", cluster.name(), echo.name));
        std::fs::write(&file, format!("{}{}", leaf.cert_pem, leaf.key_pem))
            .with_context(|| format!("writing {}", file.display()))?;
        argv.push(format!("--tls={}", file.display()));
    }
    if echo.transport == Transport::Udp {
        let [a, b, c, _] = local.address.octets();
        let replica = |n: u8| format!("--udp={a}.{b}.{c}.{}:{port}", FIRST_REPLICA + n);
        argv.extend((0..echo.replicas).map(replica));
    }
    let launch = Launch { argv, netns: Some(local.namespace.clone()), ..Launch::default() };
    let log = local.logs.join(format!("{}-echo-{}.log", cluster.name(), echo.name));
    let unit = Unit::new(format!("echo {} of {}", echo.name, cluster.name()), log, launch);
    Ok(Backend { unit, address })
}

/// Names the image of the harness for clusters that were not made by it.
const IMAGE: &str = "FAIRLEAD_E2E_IMAGE";
const IMAGE_PORT: u16 = 8080;
const IMAGE_LIMIT: Duration = Duration::from_secs(180);

/// In a cluster with kubelets of its own an echo is an ordinary Deployment.
async fn deploy_image(cluster: &Cluster, echo: &Echo) -> Result<()> {
    let image = std::env::var(IMAGE).with_context(|| {
        format!(
            "{} was not made by the harness: set {IMAGE} to an image of the program fairlead-e2e \
             that it can pull",
            cluster.name()
        )
    })?;
    let labels = json!({"app": echo.name});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": echo.name, "namespace": echo.namespace},
        "spec": {
            "replicas": echo.replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "echo", "image": image,
                    "command": ["fairlead-e2e"],
                    "args": [
                        "echo",
                        format!("--listen=0.0.0.0:{IMAGE_PORT}"),
                        format!("--cluster={}", cluster.name()),
                        format!("--service={}", echo.name),
                        format!("--version={}", echo.version),
                    ],
                    "readinessProbe": {"httpGet": {"path": "/", "port": IMAGE_PORT}},
                }]},
            },
        },
    });
    let mut service = service(echo, IMAGE_PORT);
    service["spec"]["selector"] = labels;
    let objects = cluster.objects();
    objects.apply(&object::namespace(&echo.namespace)).await?;
    objects.apply(&service).await?;
    objects.apply(&deployment).await?;
    let key = object::ObjectKey::of(&deployment)?;
    objects.wait_condition(&key, "Available", IMAGE_LIMIT).await
}

fn service(echo: &Echo, target: u16) -> Value {
    let mut port = json!({"name": "http", "port": SERVICE_PORT, "targetPort": target});
    port["protocol"] = json!(echo.transport.as_str());
    if let Some(protocol) = &echo.app_protocol {
        port["appProtocol"] = json!(protocol);
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": echo.name, "namespace": echo.namespace},
        "spec": {"ports": [port]},
    })
}

fn slice(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    port: u16,
    ready: u8,
    total: u8,
) -> Result<Value> {
    let local = cluster.local()?;
    let [a, b, c, _] = local.address.octets();
    let endpoint = |replica: u8| {
        let is_ready = replica < ready;
        json!({
            "addresses": [format!("{a}.{b}.{c}.{}", FIRST_REPLICA + replica)],
            "conditions": {"ready": is_ready, "serving": is_ready, "terminating": false},
            "nodeName": cluster.node(),
            "zone": cluster.spec.zone,
        })
    };
    Ok(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-echo"), "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "fairlead-e2e",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": (0..total).map(endpoint).collect::<Vec<_>>(),
    }))
}
