//! `fairlead-agent run`: puts the tasks together, in reading order, and waits for the end.
//!
//! Stopping leaves everything in place: routes, Services and certificates stay, traffic goes on. Only
//! `fairlead leave` takes them out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fairlead_agent_core::diff::KindKey;
use fairlead_agent_core::session::{Identity, Session};
use fairlead_model::ClusterUid;
use fairlead_model::bundle::Bundle;
use fairlead_model::health::ApiServer;
use fairlead_model::snapshot::Address;
use fairlead_telemetry::export::Exporter;
use fairlead_telemetry::queue::Queue;
use fairlead_telemetry::span::Tracer;
use fairlead_translate::ingest::member::AgentConfig;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::alone::{self, Belief};
use crate::api;
use crate::apply::Applier;
use crate::args::RunArgs;
use crate::bundles::{Bundles, Sources};
use crate::cache::{Cache, tell_api_server};
use crate::clock::{Clock, wall_now};
use crate::counts::Asker;
use crate::crossing::Keeper as CrossingKeeper;
use crate::dial::HubAddress;
use crate::disk::Disk;
use crate::dns::clusterset::ClustersetKeeper;
use crate::dns::{DnsServer, ViewKeeper, Views};
use crate::facts;
use crate::http::{self, Admin};
use crate::identity::{Identities, Introduction};
use crate::kind;
use crate::knock::Knocker;
use crate::metrics::Metrics;
use crate::names::{NameKeeper, SystemResolver};
use crate::observe::{Facts, Observer};
use crate::pin_store::{Confirmed, PinStore};
use crate::probe::Prober;
use crate::publish::{Publisher, token_id};
use crate::relay::Relay;
use crate::relay::enrich::Strip;
use crate::renewal::keep_fresh;
use crate::secret::Secrets;
use crate::spans;
use crate::uplink::{LinkState, Uplink};
use crate::watch::watch_kind;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When its configuration has no meaning, or something that it cannot do without is not there.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let config = Arc::new(read_config(&args.config)?);
    let hub = args.hub.as_deref().map(HubAddress::parse).transpose()?;
    let disk = Disk::open(&args.data_dir)?;
    let incarnation = disk.next_incarnation(wall_now().0 / 1_000)?;
    let client = Client::try_default().await.context("no way to the API server")?;
    info!(member = %args.member, version = env!("CARGO_PKG_VERSION"), incarnation, "starting");

    let (terminate, interrupt) = {
        let [a, b] = &mut stop;
        (a, b)
    };
    let mut tasks = JoinSet::new();
    tokio::select! {
        started = start(&args, config, hub, disk, incarnation, client, &mut tasks) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    tokio::select! {
        _ = terminate.recv() => info!("told to stop; everything stays in place"),
        _ = interrupt.recv() => info!("told to stop; everything stays in place"),
        Some(ended) = tasks.join_next() => {
            ended.context("a task panicked")??;
            anyhow::bail!("a task ended that should run for ever");
        }
    }
    Ok(())
}

async fn start(
    args: &RunArgs,
    config: Arc<AgentConfig>,
    hub: Option<HubAddress>,
    disk: Disk,
    incarnation: u64,
    client: Client,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let clock = Clock::start();
    let (queue, exporter) = open_backend(args)?;
    let metrics = Arc::new(Metrics::new(queue.as_deref().map(Queue::counts)));
    let namespace: Arc<str> = args.namespace.as_str().into();

    // What there is.
    let following = config.following_kinds.iter().map(|f| (f.group.clone(), f.kind.clone()));
    let kinds = kind::watched(following);
    let cache = Cache::new(kinds.iter().map(|kind| KindKey::new(&kind.group, &kind.kind)));
    let (snapshot_tx, snapshot) = watch::channel(None);
    let (crossing_tx, crossing) = watch::channel(None);
    let (knock_tx, knock) = watch::channel(disk.knock());
    let (applied_tx, applied) = watch::channel(None);
    let (overlay_tx, overlay) = watch::channel(None);
    let (report_tx, report) = watch::channel(BTreeMap::new());
    let (belief_tx, belief) = watch::channel(Belief::default());
    let (link_tx, link) = watch::channel(LinkState::default());
    let (facts_tx, facts) = watch::channel(Facts::default());

    // Health first, so that waiting for the API server can be seen.
    let admin = Admin {
        cache: cache.clone(),
        link: hub.is_some().then_some(link.clone()),
        crossing: crossing.clone(),
        knock: knock.clone(),
        applied: applied.clone(),
        metrics: metrics.clone(),
    };
    spawn_server(tasks, "--admin-listen", http::serve_admin(args.admin_listen, admin));
    let readiness = http::serve_readiness(args.readiness_listen, snapshot.clone());
    spawn_server(tasks, "--readiness-listen", readiness);

    let uid = cluster_uid(&client).await;
    info!(cluster = %uid, "this cluster");
    for kind in kinds {
        let watch = watch_kind(client.clone(), kind, namespace.clone(), cache.clone());
        tasks.spawn(endless(watch));
    }
    tasks.spawn(endless(facts::keep_facts(client.clone(), uid.clone(), facts_tx)));

    // What gateways say of requests.
    let strip = Strip::of(&args.relay_strip);
    let tracer = Tracer::new(queue.clone(), args.trace_ratio, spans::resource(&args.member, &uid));
    let relay = Relay::new(&args.member, &uid, strip, queue, metrics.relay());
    let relay = Arc::new(relay);
    if let Some(exporter) = exporter {
        tasks.spawn(endless(exporter.run()));
    }
    let relay_serve = relay.clone().serve(args.otlp_listen, args.otlp_http_listen);
    spawn_server(tasks, "--otlp-listen or --otlp-http-listen", relay_serve);

    // Who we are to peers and to the hub.
    let secrets = Secrets::new(client.clone(), &namespace);
    let (crossing_held_tx, crossing_held) = watch::channel(None);
    let keeper = CrossingKeeper {
        secrets: secrets.clone(),
        uid: uid.clone(),
        clock,
        snapshot: snapshot.clone(),
        held: crossing_held,
    };
    tasks.spawn(endless(keeper.run(crossing_tx)));
    let observer = Observer {
        dns_addresses: args.dns_address.iter().map(|text| Address::of(text)).collect(),
        cache: cache.clone(),
        config: config.clone(),
        facts,
        crossing: crossing.clone(),
        knock: knock.clone(),
    };
    tasks.spawn(endless(observer.run(snapshot_tx)));

    // What is to be.
    let pin_store = PinStore::new(client.clone(), &namespace);
    let mut bundles = Bundles::new(clock, uid.clone(), pin_store.load().await);
    let (confirmed_tx, confirmed) = watch::channel(Confirmed::new());
    tasks.spawn(endless(pin_store.keep(bundles.pins.subscribe(), confirmed_tx)));
    let sources = Sources { crossing: crossing.clone(), confirmed };
    let kept = match &args.bundle {
        Some(path) => {
            bundles.take(read_bundle(path)?, None);
            None
        }
        None => disk.bundle(),
    };
    if let Some((number, ledger)) = &kept {
        info!(plan = %number, "goes on with the bundle of before");
        bundles.take_ledger(*number, ledger, None);
    }
    let held = bundles.held.subscribe();
    let (resolved_tx, resolved) = watch::channel(Arc::default());
    let (probed_tx, peers) = watch::channel(Arc::default());
    let (asked_tx, asked) = watch::channel(Arc::default());
    let names = NameKeeper {
        clock,
        peers: bundles.peers.subscribe(),
        used: bundles.used.subscribe(),
        snapshot: snapshot.clone(),
        resolver: SystemResolver::new(&args.resolver),
        resolved: resolved_tx,
        probed: probed_tx,
        asked: asked_tx,
    };
    tasks.spawn(endless(names.run()));
    let (traffic_tx, traffic) = watch::channel(None);
    let percent = args.gateway_sampling_percent;
    tasks.spawn(endless(relay.clone().tell_traffic(percent, traffic_tx)));
    let known = relay.keep_known(held.clone(), overlay.clone(), snapshot.clone());
    tasks.spawn(endless(known));
    let prober = Prober {
        clock,
        peers: peers.clone(),
        crossing: crossing.clone(),
        report: report_tx,
        metrics: metrics.probe(),
    };
    tasks.spawn(endless(prober.run()));
    let (gone_tx, gone) = watch::channel(BTreeMap::new());
    let asker = Asker {
        clock,
        member: args.member.clone(),
        peers: asked,
        crossing: crossing.clone(),
        snapshot: snapshot.clone(),
        gone: gone_tx,
    };
    tasks.spawn(endless(asker.run()));
    let knocker = Knocker {
        uid: uid.clone(),
        snapshot: snapshot.clone(),
        crossing: crossing.clone(),
        verdict: knock_tx,
        disk: disk.clone(),
    };
    tasks.spawn(endless(knocker.run()));
    let doubt =
        alone::doubt(uid.clone(), report.clone(), snapshot.clone(), crossing.clone(), belief_tx);
    tasks.spawn(endless(doubt));
    let views = Views::default();
    let keeper = ViewKeeper {
        held: bundles.held.subscribe(),
        report: report.clone(),
        belief: belief.clone(),
        views: views.clone(),
    };
    tasks.spawn(endless(keeper.run()));
    let dns = DnsServer { views, metrics: metrics.clone(), clock, rate_per_s: args.dns_rate };
    spawn_server(tasks, "--dns-listen", dns.serve(args.dns_listen));
    let inside = Views::default();
    let keeper = ClustersetKeeper {
        member: args.member.clone(),
        cache: cache.clone(),
        snapshot: snapshot.clone(),
        held: bundles.held.subscribe(),
        resolved: resolved.clone(),
        views: inside.clone(),
        serial: u32::try_from(wall_now().0 / 1_000).unwrap_or(1),
    };
    tasks.spawn(endless(keeper.run()));
    // The cluster's DNS asks for everybody, from one address: a bound per client would hit all of them.
    let dns = DnsServer { views: inside, metrics: metrics.clone(), clock, rate_per_s: 0 };
    spawn_server(tasks, "--clusterset-listen", dns.serve(args.clusterset_listen));
    let applier = Applier {
        client: client.clone(),
        cache: cache.clone(),
        clock,
        config,
        namespace: namespace.clone(),
        held,
        reaches: report.clone(),
        belief,
        gone,
        resolved,
        knock,
        snapshot: snapshot.clone(),
        applied: applied_tx,
        overlay: overlay_tx,
        metrics: metrics.clone(),
        tracer: tracer.clone(),
    };
    tasks.spawn(endless(applier.run()));

    // The hub.
    let Some(hub) = hub else {
        tasks.spawn(endless(bundles.run(None, sources, disk)));
        return Ok(());
    };
    let (api_tx, api) = watch::channel(ApiServer::default());
    tasks.spawn(endless(tell_api_server(cache.clone(), api_tx)));
    let (bundles_tx, bundles_rx) = mpsc::channel(1);
    tasks.spawn(endless(bundles.run(Some(bundles_rx), sources, disk)));
    let publisher = Publisher {
        client,
        namespace,
        member: args.member.clone(),
        token_id: token_id(&args.bootstrap_dir),
        cache,
        link,
        applied: applied.clone(),
    };
    tasks.spawn(endless(publisher.run()));
    let introduction = Introduction {
        member: args.member.clone(),
        uid: uid.clone(),
        region: args.region.clone(),
        zone: args.zone.clone(),
        gateway_class: args.gateway_class.clone(),
    };
    let bootstrap_dir = args.bootstrap_dir.clone();
    let identities = Arc::new(Identities::new(secrets, hub, introduction, bootstrap_dir, tracer));
    tasks.spawn(endless(keep_fresh(identities.clone())));
    let identity = Identity {
        member: args.member.clone(),
        uid,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation,
    };
    let uplink = Uplink {
        clock,
        session: Session::new(identity, kept, clock.now()),
        identities,
        snapshot,
        applied,
        probes: report,
        overlay,
        api,
        traffic,
        crossing_held: crossing_held_tx,
        bundles: bundles_tx,
        state: link_tx,
        metrics,
    };
    tasks.spawn(endless(uplink.run()));
    Ok(())
}

async fn endless(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

fn spawn_server(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    flag: &'static str,
    server: impl Future<Output = std::io::Result<()>> + Send + 'static,
) {
    tasks.spawn(async move { server.await.with_context(|| format!("cannot serve at {flag}")) });
}

/// The way to the OTLP backend, if one is named.
fn open_backend(args: &RunArgs) -> anyhow::Result<(Option<Arc<Queue>>, Option<Exporter>)> {
    let Some(backend) = args.backend.backend()? else { return Ok((None, None)) };
    let queue = Arc::new(Queue::new(args.backend.queue_bytes()));
    let exporter = Exporter::new(queue.clone(), &backend)?;
    Ok((Some(queue), Some(exporter)))
}

fn read_config(path: &Path) -> anyhow::Result<AgentConfig> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            info!(path = %path.display(), "no configuration: defaults are used");
            return Ok(AgentConfig::default());
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let options = serde_saphyr::options! { strict_booleans: true };
    let config: AgentConfig = serde_saphyr::from_str_with_options(&text, options)
        .with_context(|| format!("{} has no meaning", path.display()))?;
    config.validate().with_context(|| format!("{} has no meaning", path.display()))?;
    Ok(config)
}

fn read_bundle(path: &Path) -> anyhow::Result<Bundle> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no bundle", path.display()))
}

/// The UID of kube-system. Without it nothing of ours has a name, so it is waited for.
async fn cluster_uid(client: &Client) -> ClusterUid {
    let namespaces = api::Resource {
        group: String::new(),
        version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        plural: "namespaces".to_owned(),
    };
    loop {
        let trouble = match api::get_object(client, &namespaces, "", "kube-system").await {
            Ok(Some(object)) => {
                let uid = object.pointer("/metadata/uid").and_then(|uid| uid.as_str());
                match ClusterUid::new(uid.unwrap_or_default()) {
                    Ok(uid) => return uid,
                    Err(error) => error.to_string(),
                }
            }
            Ok(None) => "namespace kube-system does not exist".to_owned(),
            Err(error) => api::message(&error),
        };
        warn!(%trouble, "cannot learn the cluster's UID yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
