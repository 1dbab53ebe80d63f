//! The hub's process from start to stop, in reading order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use fairlead_hub_core::visible::Verdicts;
use fairlead_model::Millis;
use fairlead_telemetry::export::Exporter;
use fairlead_telemetry::queue::Queue;
use fairlead_telemetry::span::Tracer;
use fairlead_translate::CapabilityKeys;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Start};
use crate::args::RunArgs;
use crate::authority::{Authorities, Authority};
use crate::conductor::{Conductor, Current};
use crate::crossing::tell_crossings;
use crate::enroll::EnrollService;
use crate::events::Events;
use crate::fleet::Fleet;
use crate::gate::Way;
use crate::history::copy::Copyist;
use crate::history::{Chronicle, Scribe};
use crate::lease::HubLease;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::office::Office;
use crate::persist::{MemorySlot, Persist};
use crate::registry::KubeRegistry;
use crate::rotation::{Capabilities, HubCa, turn};
use crate::signal::Signal;
use crate::status::StatusWriter;
use crate::store::{EmbeddedStore, EtcdStore, FencedStore, Store, StoreError};
use crate::tls::{HubCertificate, server_config};
use crate::together::together;
use crate::traffic::Traffic;
use crate::trial::Trials;
use crate::upkeep::{publish, renew, server_names};
use crate::visible::Lookout;
use crate::watch::Objects;
use crate::{
    admin, bootstrap, clock, events, gate, history, lease, link, record, spans, watch as objects,
};

/// Pause between tries of a step of the start.
const RETRY: Duration = Duration::from_secs(2);
/// Connections that wait for their handshake; more wait at the gate.
const SOCKETS_MAX: usize = 64;
/// How long the parts may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the hub until it is told to stop.
///
/// # Errors
/// When it cannot start, or another hub took over.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    // Two providers may be linked by features of others: name ours before anything uses TLS.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed before"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    runtime.block_on(async {
        tokio::spawn(stop_on_signal(stop.clone()));
        run_until(args, stop).await
    })
}

/// What lives from start to stop.
struct Hub {
    args: RunArgs,
    started_at: Millis,
    store: Arc<FencedStore>,
    fleet: Arc<Fleet>,
    objects: Arc<Objects>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    traffic: Arc<Traffic>,
    current: Arc<ArcSwap<Current>>,
    decided: Arc<Signal>,
    chronicle: Arc<Chronicle>,
    start: Arc<Start>,
    ways: watch::Sender<Way>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

async fn run_until(args: RunArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let store = open_store(&args).await?;
    let (queue, exporter) = open_backend(&args)?;
    let tracer = Tracer::new(queue.clone(), args.trace_ratio, spans::resource());
    let traffic = Arc::new(Traffic::new(args.passive()));
    let hub = Hub {
        args,
        started_at: clock::now(),
        fleet: Arc::default(),
        store,
        objects: Arc::default(),
        metrics: Arc::new(Metrics::new(queue.as_deref().map(Queue::counts))),
        tracer,
        traffic,
        current: Arc::default(),
        decided: Arc::default(),
        chronicle: Arc::default(),
        start: Arc::default(),
        ways: watch::Sender::default(),
        tasks: TaskTracker::new(),
        stop: stop.clone(),
    };
    if let Some(exporter) = exporter {
        hub.spawn(exporter.run());
    }
    hub.serve_admin().await?;
    let client = Client::try_default().await.context("no Kubernetes cluster is configured")?;
    hub.watch(&client);
    let agents = hub.open_gate().await?;
    let Some(office) = hub.take_office(agents).await? else {
        hub.shut_down().await;
        return Ok(());
    };
    // Nothing is decided without the office, and nobody holds it who does not decide.
    let kept = async { Ok(office.keep(stop.clone()).await?) };
    let ended = together(&stop, STOP_TIMEOUT, hub.decide(&client, &office), kept).await;
    hub.shut_down().await;
    // After the last write: the next hub reads what this one knew.
    office.release().await;
    ended
}

/// The store: in etcd if one is named, else in a file.
async fn open_store(args: &RunArgs) -> anyhow::Result<Arc<FencedStore>> {
    let (etcd, data_dir) = (args.etcd.options(), args.data_dir.clone());
    let open = move || -> Result<Arc<dyn Store>, StoreError> {
        Ok(match etcd {
            Some(options) => Arc::new(EtcdStore::open(&options)?),
            None => Arc::new(EmbeddedStore::open(&data_dir)?),
        })
    };
    let store = tokio::task::spawn_blocking(open).await??;
    Ok(Arc::new(FencedStore::new(store)))
}

/// The way to the OTLP backend, if one is named.
fn open_backend(args: &RunArgs) -> anyhow::Result<(Option<Arc<Queue>>, Option<Exporter>)> {
    let Some(backend) = args.backend.backend()? else { return Ok((None, None)) };
    let queue = Arc::new(Queue::new(args.backend.queue_bytes()));
    let exporter = Exporter::new(queue.clone(), &backend)?;
    Ok((Some(queue), Some(exporter)))
}

impl Hub {
    /// The read-only API comes first: it tells what the start waits for.
    async fn serve_admin(&self) -> anyhow::Result<()> {
        let address = self.args.admin_listen;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for the admin API"))?;
        let admin = Arc::new(Admin {
            current: Arc::clone(&self.current),
            fleet: Arc::clone(&self.fleet),
            objects: Arc::clone(&self.objects),
            metrics: Arc::clone(&self.metrics),
            traffic: Arc::clone(&self.traffic),
            chronicle: Arc::clone(&self.chronicle),
            started_at: self.started_at,
            start: Arc::clone(&self.start),
            ways: self.ways.subscribe(),
        });
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            if let Err(error) = admin::serve(listener, admin, stop).await {
                tracing::error!(%error, "the admin API ended");
            }
        });
        tracing::info!(%address, "serving the admin API");
        Ok(())
    }

    fn watch(&self, client: &Client) {
        let (objects, metrics) = (Arc::clone(&self.objects), Arc::clone(&self.metrics));
        self.tasks.spawn(objects::watch_all(client.clone(), objects, metrics, self.stop.clone()));
    }

    /// Opens the agents' port; connections go where [`Self::ways`] says. Gives the address.
    async fn open_gate(&self) -> anyhow::Result<SocketAddr> {
        let address = self.args.listen;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for agents"))?;
        let address = listener.local_addr()?;
        self.spawn(gate::run(listener, self.ways.subscribe(), Arc::clone(&self.metrics)));
        tracing::info!(%address, "listening for agents");
        Ok(address)
    }

    /// Waits until this hub holds the store's claim to decide; none when it was told to stop before.
    async fn take_office(&self, agents: SocketAddr) -> anyhow::Result<Option<Office>> {
        let store = self.store.clone();
        let id = tokio::task::spawn_blocking(move || record::ensure_id(store.as_ref())).await??;
        let seat = self.args.seat(lease::holder(&id, rand::random()), agents);
        let office = Office::new(self.store.clone(), seat, self.ways.clone());
        Ok(tokio::select! {
            () = office.take(|why| self.start.wait(why)) => Some(office),
            () = self.stop.cancelled() => None,
        })
    }

    /// All that only one hub may do. Ends when it must not go on.
    async fn decide(&self, client: &Client, office: &Office) -> anyhow::Result<()> {
        let taken = async {
            let lease = self.take_lease(client, office.holder()).await?;
            let own = self.own_objects(client).await;
            anyhow::Ok((lease, own, self.read_history(client).await?))
        };
        let (lease, (authorities, keys), copyist) = tokio::select! {
            taken = taken => taken?,
            () = self.stop.cancelled() => return Ok(()),
        };
        let (authority, epoch) = (Arc::new(Authority::new(authorities)), lease.epoch());
        let certificate = self.server_certificate(client, &authority).await?;
        let keys = Arc::new(ArcSwap::from_pointee(keys));
        self.spawn_conductor(Arc::clone(&keys)).await?;
        self.spawn(copyist.run());
        self.spawn_status(client);
        self.spawn_upkeep(client, &authority, &certificate);
        self.spawn_rotation(client, &authority, keys);
        let served = self.serve_agents(client, authority, certificate, epoch)?;
        // No agents without the Lease, no Lease without agents.
        let kept = async { Ok(lease.keep(self.stop.clone()).await?) };
        together(&self.stop, STOP_TIMEOUT, served, kept).await
    }

    fn spawn_status(&self, client: &Client) {
        let visible: Arc<ArcSwap<Verdicts>> = Arc::default();
        if self.args.dns_check_seconds > 0 {
            let lookout = Lookout {
                current: Arc::clone(&self.current),
                verdicts: Arc::clone(&visible),
                changed: Arc::clone(&self.decided),
                period: Duration::from_secs(self.args.dns_check_seconds),
                servers: self.args.dns_resolver.clone(),
            };
            self.spawn(lookout.run());
        }
        let status = StatusWriter {
            client: client.clone(),
            objects: Arc::clone(&self.objects),
            fleet: Arc::clone(&self.fleet),
            current: Arc::clone(&self.current),
            decided: Arc::clone(&self.decided),
            visible,
            metrics: Arc::clone(&self.metrics),
        };
        self.tasks.spawn(status.run(self.stop.clone()));
    }

    /// Takes the Lease; from then on the store and its numbers are this hub's own.
    async fn take_lease(&self, client: &Client, holder: &str) -> anyhow::Result<HubLease> {
        let stored = self.read(|store| record::read_hub(store)).await?.0.epoch;
        let tell = |why| self.start.wait(why);
        let namespace = &self.args.namespace;
        let lease = HubLease::acquire(client, namespace, holder, stored, tell).await;
        let epoch = lease.epoch();
        let known = self.read(move |store| record::take_over(store, epoch)).await?;
        self.fleet.restore(known);
        tracing::info!(epoch, holder, "took the Lease");
        Ok(lease)
    }

    /// Reads the store on a thread that may wait.
    async fn read<T, E>(
        &self,
        read: impl FnOnce(&FencedStore) -> Result<T, E> + Send + 'static,
    ) -> anyhow::Result<T>
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let store = Arc::clone(&self.store);
        Ok(tokio::task::spawn_blocking(move || read(&store)).await??)
    }

    /// CA and keys, waiting for the API server as long as it takes.
    async fn own_objects(&self, client: &Client) -> (Authorities, CapabilityKeys) {
        let namespace = &self.args.namespace;
        loop {
            let ca = bootstrap::ensure_ca(client, namespace).await;
            let error = match (ca, bootstrap::ensure_keys(client, namespace).await) {
                (Ok(ca), Ok(keys)) => return (ca, keys),
                (Err(error), _) | (_, Err(error)) => error,
            };
            self.start.wait(format!("{:#}", anyhow::Error::from(error)));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The history as the store has it, and what only its copy has.
    async fn read_history(&self, client: &Client) -> anyhow::Result<Copyist> {
        let limits = self.args.history();
        *self.chronicle.history() = self.read(move |store| history::read(store, limits)).await?;
        let namespace = &self.args.namespace;
        loop {
            let (chronicle, fleet) = (Arc::clone(&self.chronicle), Arc::clone(&self.fleet));
            match Copyist::open(client, namespace, chronicle, fleet).await {
                Ok(copyist) => return Ok(copyist),
                Err(error) => self.start.wait(format!("{:#}", anyhow::Error::from(error))),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn server_certificate(
        &self,
        client: &Client,
        authority: &Authority,
    ) -> anyhow::Result<Arc<HubCertificate>> {
        let names = server_names(client, &self.args).await;
        let authorities = authority.now();
        tracing::info!(?names, ca = authorities.server().hash(), "made the hub's certificate");
        let certificate = authorities.server().issue_server(&names, clock::now())?;
        Ok(Arc::new(HubCertificate::new(certificate)?))
    }

    async fn spawn_conductor(&self, keys: Arc<ArcSwap<CapabilityKeys>>) -> anyhow::Result<()> {
        let memory_slot = Arc::new(MemorySlot::default());
        let conductor = Conductor {
            objects: Arc::clone(&self.objects),
            fleet: Arc::clone(&self.fleet),
            keys,
            metrics: Arc::clone(&self.metrics),
            current: Arc::clone(&self.current),
            decided: Arc::clone(&self.decided),
            chronicle: Arc::clone(&self.chronicle),
            trials: Trials {
                settings: self.args.rollout.settings(),
                traffic: Arc::clone(&self.traffic),
            },
            memory_slot: Arc::clone(&memory_slot),
            started_at: clock::now(),
            grace_ms: self.args.grace_seconds.saturating_mul(1_000),
            tracer: self.tracer.clone(),
        };
        let memory = self.read(|store| record::read_memory(store)).await?;
        self.tasks.spawn(conductor.run(memory, self.stop.clone()));
        let fleet = Arc::clone(&self.fleet);
        self.spawn(async move { fleet.judge().await });
        let scribe = Scribe {
            chronicle: Arc::clone(&self.chronicle),
            current: Arc::clone(&self.current),
            fleet: Arc::clone(&self.fleet),
        };
        self.spawn(scribe.run());
        let persist = Persist {
            fleet: Arc::clone(&self.fleet),
            store: self.store.clone(),
            metrics: Arc::clone(&self.metrics),
            memory: memory_slot,
            chronicle: Arc::clone(&self.chronicle),
        };
        self.tasks.spawn(persist.run(self.stop.clone()));
        Ok(())
    }

    /// What is done again from time to time.
    fn spawn_upkeep(
        &self,
        client: &Client,
        authority: &Arc<Authority>,
        certificate: &Arc<HubCertificate>,
    ) {
        let (args, certificate) = (self.args.clone(), Arc::clone(certificate));
        self.spawn(publish(client.clone(), args.clone(), Arc::clone(authority)));
        self.spawn(renew(client.clone(), args, Arc::clone(authority), certificate));
    }

    /// What changes when somebody asks for it.
    fn spawn_rotation(
        &self,
        client: &Client,
        authority: &Arc<Authority>,
        keys: Arc<ArcSwap<CapabilityKeys>>,
    ) {
        let (fleet, current) = (Arc::clone(&self.fleet), Arc::clone(&self.current));
        self.spawn(tell_crossings(Arc::clone(&fleet), Arc::clone(&current)));
        let ca = HubCa {
            authority: Arc::clone(authority),
            fleet: Arc::clone(&fleet),
            current: Arc::clone(&current),
        };
        let at = || (client.clone(), self.args.namespace.clone(), Arc::clone(&self.metrics));
        let (of_api, namespace, metrics) = at();
        self.spawn(turn(of_api, namespace, metrics, ca));
        let (of_api, namespace, metrics) = at();
        self.spawn(turn(of_api, namespace, metrics, Capabilities { keys, fleet, current }));
    }

    fn spawn_events(&self, client: &Client) -> Events {
        let (events, writer) = events::open(client, Arc::clone(&self.objects));
        self.spawn(writer.run());
        self.spawn(events.clone().follow(Arc::clone(&self.fleet), Arc::clone(&self.current)));
        events
    }

    /// Runs what has no end of its own until the hub stops.
    fn spawn(&self, endless: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = endless => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Takes agents' connections from now on; gives what serves them.
    fn serve_agents(
        &self,
        client: &Client,
        authority: Arc<Authority>,
        certificate: Arc<HubCertificate>,
        epoch: u64,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
        let tls = Arc::new(server_config(Arc::clone(&authority), certificate)?);
        let registry = Arc::new(KubeRegistry::new(client, &self.args.namespace));
        let enroll = EnrollService::new(
            Arc::clone(&authority),
            self.args.agent_certificate_ms(),
            registry.clone(),
            self.spawn_events(client),
            self.tracer.clone(),
        );
        let link = Link {
            fleet: Arc::clone(&self.fleet),
            authority,
            store: self.store.clone(),
            registry,
            epoch,
            metrics: Arc::clone(&self.metrics),
            traffic: Arc::clone(&self.traffic),
            tracer: self.tracer.clone(),
            stop: self.stop.clone(),
        };
        let (server, sockets) = mpsc::channel(SOCKETS_MAX);
        self.ways.send_replace(Way::Own(server));
        self.metrics.set_deciding();
        self.start.done();
        tracing::info!("serving agents");
        Ok(async move { Ok(link::serve(sockets, tls, link, enroll).await?) })
    }

    async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        match tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("some parts did not stop in time"),
        }
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be received; the hub stops only when it is killed");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("told to stop");
    stop.cancel();
}
