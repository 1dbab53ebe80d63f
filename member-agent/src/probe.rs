//! Asks peers' doors whether they answer, over connections that are kept open.
//!
//! One task per peer, as the bundle names them; the verdicts go into one report that the overlay and
//! the hub read. A connection in the making outlives a probe's timeout: over long distances TCP, TLS
//! and the request together take longer than one probe may, and that is no fault of the door.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::probe::{PeerProbe, TIMEOUT_MS};
use fairlead_crds::keys;
use fairlead_model::MemberId;
use fairlead_model::bundle::Peer;
use fairlead_model::health::{ProbeOutcome, ProbeReport, Reach};
use fairlead_model::snapshot::Address;
use futures::FutureExt as _;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::crossing::Crossing;
use crate::door::{self, Answer, Connection, DoorError, Question};
use crate::metrics::ProbeMetrics;
use crate::tls::{self, Trust};

/// An address that does not connect within that time is left for the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection is replaced by a new one after that: a door that believes nobody any more, or that nobody
/// believes, is as ever to those that stand.
const FRESH_AFTER: Duration = Duration::from_secs(10);
/// Doors that one agent probes at most.
pub const PEERS_MAX: usize = 64;

/// A timer that is so late was kept waiting by others.
const LATE: Duration = Duration::from_millis(20);
/// What a late probe gets more.
const GRACE: Duration = Duration::from_millis(100);

/// Starts and stops the probes.
pub struct Prober {
    /// Time.
    pub clock: Clock,
    /// Peers to probe.
    pub peers: watch::Receiver<Arc<BTreeMap<MemberId, Peer>>>,
    /// Our certificates.
    pub crossing: watch::Receiver<Option<Arc<Crossing>>>,
    /// Verdicts.
    pub report: watch::Sender<ProbeReport>,
    /// Counters.
    pub metrics: ProbeMetrics,
}

/// What a running probe was started with; another peer or certificate means another probe.
type Running = BTreeMap<MemberId, (Peer, Arc<Crossing>, AbortHandle)>;

impl Prober {
    /// Keeps a probe running for each peer.
    pub async fn run(mut self) {
        let mut running = Running::new();
        loop {
            let peers = self.peers.borrow_and_update().clone();
            let crossing = self.crossing.borrow_and_update().clone();
            self.stop_stale(&mut running, &peers, crossing.as_ref());
            if let Some(crossing) = crossing {
                self.start_missing(&mut running, &peers, &crossing);
            }
            let changed = tokio::select! {
                changed = self.peers.changed() => changed,
                changed = self.crossing.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn stop_stale(
        &self,
        running: &mut Running,
        peers: &BTreeMap<MemberId, Peer>,
        crossing: Option<&Arc<Crossing>>,
    ) {
        running.retain(|member, (peer, with, task)| {
            let stays = peers.get(member) == Some(peer) && crossing == Some(with);
            if !stays {
                task.abort();
            }
            stays
        });
        self.report.send_if_modified(|report| {
            let before = report.len();
            report.retain(|member, _| peers.contains_key(member));
            before != report.len()
        });
    }

    fn start_missing(
        &self,
        running: &mut Running,
        peers: &BTreeMap<MemberId, Peer>,
        crossing: &Arc<Crossing>,
    ) {
        if peers.len() > PEERS_MAX {
            warn!(peers = peers.len(), limit = PEERS_MAX, "too many peers: some are not probed");
        }
        for (member, peer) in peers.iter().take(PEERS_MAX) {
            if running.contains_key(member) {
                continue;
            }
            let trust = Trust::Ca(peer.ca_pem.clone());
            let config = match tls::client_config(&trust, Some(&crossing.client), &["http/1.1"]) {
                Ok(config) => Arc::new(config),
                Err(error) => {
                    warn!(%member, %error, "peer cannot be probed");
                    continue;
                }
            };
            let task = probe_peer(
                self.clock,
                member.clone(),
                Link::new(peer.clone(), config),
                self.report.clone(),
                self.metrics.clone(),
            );
            let task = tokio::spawn(task).abort_handle();
            running.insert(member.clone(), (peer.clone(), crossing.clone(), task));
        }
    }
}

async fn probe_peer(
    clock: Clock,
    member: MemberId,
    mut link: Link,
    report: watch::Sender<ProbeReport>,
    metrics: ProbeMetrics,
) {
    let mut hash = DefaultHasher::new();
    member.hash(&mut hash);
    let mut probe = PeerProbe::new(hash.finish(), clock.now());
    let shown = Shown { metrics, member: &member };
    loop {
        clock.until(probe.next_deadline()).await;
        let started = clock.now();
        let before = probe.verdict();
        // The first verdict may take as long as a connection over any distance.
        let timeout = match before.reach {
            Reach::Unknown => CONNECT_TIMEOUT,
            Reach::Reachable | Reach::Refused | Reach::TimedOut => {
                Duration::from_millis(TIMEOUT_MS)
            }
        };
        let outcome = match in_time(timeout, link.ask()).await {
            Ok(Ok(status)) if door::is_answer(status) => ProbeOutcome::Answered,
            Ok(Ok(status)) => {
                debug!(%member, status, "door without probe route");
                ProbeOutcome::Refused
            }
            Ok(Err(error)) => {
                debug!(%member, error = %crate::dial::root_cause(&error), "door does not answer");
                if error.is_silence() { ProbeOutcome::TimedOut } else { ProbeOutcome::Refused }
            }
            Err(_) => {
                link.on_timeout();
                ProbeOutcome::TimedOut
            }
        };
        let ended = clock.now();
        probe.on_outcome(outcome, started, ended);
        let verdict = probe.verdict();
        shown.metrics.probed(&member, outcome, ended.since(started), verdict.reach);
        if verdict.reach != before.reach {
            info!(peer = %member, reach = ?verdict.reach, "door verdict");
        }
        report.send_if_modified(|report| report.insert(member.clone(), verdict) != Some(verdict));
    }
}

/// A peer among the metrics. It leaves with its probe, whichever way that ends.
struct Shown<'a> {
    metrics: ProbeMetrics,
    member: &'a MemberId,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.metrics.forget(self.member);
    }
}

/// Waits for an answer. Where the timer itself was late, the answer may lie here already, unread, because
/// whoever reads it had no CPU either: then it gets a moment more.
async fn in_time<T>(timeout: Duration, ask: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut ask = std::pin::pin!(ask);
    let start = Instant::now();
    match tokio::time::timeout(timeout, &mut ask).await {
        Err(_) if start.elapsed() > timeout + LATE => tokio::time::timeout(GRACE, ask).await,
        ended => ended,
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, DoorError>> + Send>>;

/// A connection in the making beside one that stands.
struct Fresh(JoinHandle<Result<Connection, DoorError>>);

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The connection to one peer's door.
pub(crate) struct Link {
    peer: Peer,
    addresses: Vec<Address>,
    at: usize,
    config: Arc<ClientConfig>,
    open: Option<Connection>,
    opened_at: Instant,
    connecting: Option<Connecting>,
    fresh: Option<Fresh>,
}

impl Link {
    pub(crate) fn new(peer: Peer, config: Arc<ClientConfig>) -> Self {
        let addresses = peer.addresses.iter().cloned().collect();
        let opened_at = Instant::now();
        let (open, connecting, fresh) = (None, None, None);
        Self { peer, addresses, at: 0, config, open, opened_at, connecting, fresh }
    }

    /// Asks the door. May be dropped while it waits; then [`Self::on_timeout`] must be told.
    async fn ask(&mut self) -> Result<u16, DoorError> {
        self.read(Question::of(keys::PATH_PROBE)).await.map(|answer| answer.status)
    }

    /// The same for any question, with what it says.
    pub(crate) async fn read(&mut self, question: Question<'_>) -> Result<Answer, DoorError> {
        self.refresh();
        // A kept connection may have been closed for good reasons, e.g. a new listener: once more.
        if let Some(open) = self.open.as_mut().filter(|open| !open.is_closed())
            && let Ok(answer) = open.read(question).await
        {
            return Ok(answer);
        }
        self.open = None;
        let mut tried = 0;
        loop {
            match self.connect().await {
                Ok(connection) => {
                    self.opened_at = Instant::now();
                    return self.open.insert(connection).read(question).await;
                }
                // Refused at one address: perhaps another one stands.
                Err(error) => {
                    self.at = self.at.wrapping_add(1);
                    tried += 1;
                    if tried >= self.addresses.len() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Replaces a connection that has stood for a while, when another one can be had; only a clear no by
    /// TLS is held against the door.
    fn refresh(&mut self) {
        let made = self.fresh.as_mut().and_then(|fresh| (&mut fresh.0).now_or_never());
        if let Some(made) = made {
            self.fresh = None;
            self.opened_at = Instant::now();
            match made {
                Ok(Ok(connection)) => self.open = Some(connection),
                // The next one is opened while its asker waits, and tells.
                Ok(Err(error)) if error.is_distrust() => self.open = None,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let is_old = self.open.is_some() && self.opened_at.elapsed() >= FRESH_AFTER;
        if is_old && self.fresh.is_none() && !self.addresses.is_empty() {
            self.fresh = Some(Fresh(tokio::spawn(self.begin())));
        }
    }

    async fn connect(&mut self) -> Result<Connection, DoorError> {
        if self.addresses.is_empty() {
            let source = std::io::ErrorKind::AddrNotAvailable.into();
            return Err(DoorError::Connect { address: self.peer.server_name.clone(), source });
        }
        let connecting = match self.connecting.take() {
            Some(connecting) => connecting,
            None => self.begin(),
        };
        let result = self.connecting.insert(connecting).await;
        self.connecting = None;
        result
    }

    fn begin(&self) -> Connecting {
        let address = self.addresses[self.at % self.addresses.len()].clone();
        let (config, port) = (self.config.clone(), self.peer.port);
        let name = self.peer.server_name.clone();
        Box::pin(async move {
            let open = door::open(&config, &name, &address, port);
            match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
                Ok(connection) => connection,
                Err(_) => Err(DoorError::Connect {
                    address: format!("{address}:{port}"),
                    source: std::io::ErrorKind::TimedOut.into(),
                }),
            }
        })
    }

    /// A request without an answer spoils its connection; a connection in the making goes on.
    pub(crate) fn on_timeout(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
#[path = "probe_test.rs"]
mod tests;
