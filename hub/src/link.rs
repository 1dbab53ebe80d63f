//! What agents say: streams of members, and the calls of joining clusters.
//!
//! Owns TLS and gRPC on the connections that [`crate::gate`] gives it, and one task per stream that carries messages to and from
//! [`fairlead_hub_core::session`]. Never decides what a message means. Everything is bounded:
//! handshakes, message sizes, silence, and what waits for a slow reader. A broken peer costs its own
//! stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_hub_core::session::{Close, Identity, Output, Remembered, SILENCE_MS_MAX, Session};
use fairlead_model::session::{
    ApplyReport, BundleUpdate, CROSSING_SINCE, CrossingHeld, FromAgent, FromHub, Hello, TRUST_SINCE,
};
use fairlead_model::{PlanNumber, Reason};
use fairlead_proto::convert::{AgentAssembler, hub_messages};
use fairlead_proto::pb::enrollment_server::EnrollmentServer;
use fairlead_proto::pb::fleet_server::FleetServer;
use fairlead_proto::{MESSAGE_BYTES_MAX, pb};
use fairlead_telemetry::span::Tracer;
use futures::{Stream, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::authority::{Authorities, Authority};
use crate::clock;
use crate::enroll::{EnrollService, check_registered};
use crate::fleet::{Fleet, Orders};
use crate::metrics::{Metrics, Stage};
use crate::record;
use crate::refusal::{peer_of, status};
use crate::registry::Registry;
use crate::spans::record_push;
use crate::store::Store;
use crate::traffic::Traffic;

/// Handshakes at once; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// A handshake that takes longer is no agent's.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait for a slow reader: a bundle's parts, not its successors.
const OUTBOX_MAX: usize = 16;
/// How often a connection without a stream is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Calls at once on one connection: a stream and a renewal.
const CALLS_PER_CONNECTION_MAX: u32 = 16;
/// Window of a stream: a whole part of a bundle fits.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// What the agents' port needs.
pub struct Link {
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// Whom agents are to believe.
    pub authority: Arc<Authority>,
    /// For epochs.
    pub store: Arc<dyn Store>,
    /// For members that the watch does not know yet.
    pub registry: Arc<dyn Registry>,
    /// Epoch of this process.
    pub epoch: u64,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What gateways did.
    pub traffic: Arc<Traffic>,
    /// Where spans go.
    pub tracer: Tracer,
    /// Ends all streams.
    pub stop: CancellationToken,
}

/// Serves agents' connections until `stop`.
///
/// # Errors
/// When gRPC fails as a whole.
pub async fn serve(
    sockets: mpsc::Receiver<TcpStream>,
    tls: Arc<rustls::ServerConfig>,
    link: Link,
    enroll: EnrollService,
) -> Result<(), tonic::transport::Error> {
    let stop = link.stop.clone();
    let fleet = FleetServer::new(FleetService { link: Arc::new(link) })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Zstd)
        .send_compressed(CompressionEncoding::Zstd);
    let enroll = EnrollmentServer::new(enroll).max_decoding_message_size(ENROLL_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(Duration::from_millis(SILENCE_MS_MAX)))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .add_service(fleet)
        .add_service(enroll)
        .serve_with_incoming_shutdown(incoming(sockets, tls), stop.cancelled_owned())
        .await
}

/// Largest message of a joining cluster, which may be a stranger.
const ENROLL_BYTES_MAX: usize = 64 << 10;

/// Connections after their handshakes, which run side by side: a slow client holds up nobody.
fn incoming(
    sockets: mpsc::Receiver<TcpStream>,
    tls: Arc<rustls::ServerConfig>,
) -> impl Stream<Item = std::io::Result<TlsStream<TcpStream>>> {
    let acceptor = TlsAcceptor::from(tls);
    ReceiverStream::new(sockets)
        .map(move |socket| handshake(acceptor.clone(), socket))
        .buffer_unordered(HANDSHAKES_MAX)
        .filter_map(|stream| std::future::ready(stream.map(Ok)))
}

async fn handshake(acceptor: TlsAcceptor, socket: TcpStream) -> Option<TlsStream<TcpStream>> {
    let peer = socket.peer_addr().ok();
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(?peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(?peer, "TLS handshake took too long");
            None
        }
    }
}

struct FleetService {
    link: Arc<Link>,
}

type Outbox = mpsc::Sender<Result<pb::HubMessage, Status>>;

#[tonic::async_trait]
impl pb::fleet_server::Fleet for FleetService {
    type SessionStream = ReceiverStream<Result<pb::HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer_of(&request)?;
        if peer.is_expired(clock::now()) {
            return Err(status(Reason::CertificateExpired, "it can only be renewed"));
        }
        let address = request.remote_addr();
        self.link.check_peer(&peer.identity).await?;
        let (outbox, stream) = mpsc::channel(OUTBOX_MAX);
        let task = SessionTask {
            session: Session::new(peer.identity, env!("CARGO_PKG_VERSION"), clock::now()),
            link: Arc::clone(&self.link),
            assembler: AgentAssembler::default(),
            outbox,
            orders: None,
            crossing: None,
            authorities: None,
            epoch: None,
            told: None,
        };
        tokio::spawn(task.run(request.into_inner(), address));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Link {
    /// The watch answers for members that it has seen; one that it has not may have joined just now.
    async fn check_peer(&self, identity: &Identity) -> Result<(), Status> {
        if self.fleet.is_registered(identity) == Some(true) {
            return Ok(());
        }
        check_registered(self.registry.as_ref(), identity).await
    }
}

/// Carries one stream.
struct SessionTask {
    session: Session,
    link: Arc<Link>,
    assembler: AgentAssembler,
    outbox: Outbox,
    orders: Option<watch::Receiver<Orders>>,
    /// What was said last of who holds the member's crossing CA.
    crossing: Option<CrossingHeld>,
    /// None while nobody knows whether the agent takes them.
    authorities: Option<watch::Receiver<Arc<Authorities>>>,
    epoch: Option<u64>,
    /// The newest plan whose way to the member was counted.
    told: Option<Told>,
}

/// What was counted of a plan.
#[derive(Debug, Clone, Copy)]
struct Told {
    number: PlanNumber,
    /// Its routes were said to be accepted.
    programmed: bool,
    /// Routes that were said to be on their way.
    moving: u32,
}

/// How a stream ends.
enum End {
    /// With a reason to tell.
    Close(Close),
    /// The peer is gone.
    Lost,
    /// The hub stops.
    Stop,
}

/// What woke a stream.
enum Woken {
    Message(FromAgent),
    Broken(Close),
    Gone,
    Orders,
    Authorities,
    Time,
    Stop,
}

impl SessionTask {
    async fn run(mut self, mut inbox: Streaming<pb::AgentMessage>, address: Option<SocketAddr>) {
        let member = self.session.identity().member.clone();
        let end = loop {
            let outputs = match self.next(&mut inbox).await {
                Woken::Message(message) => self.message(message),
                Woken::Orders => self.take_orders(),
                Woken::Authorities => self.take_authorities(),
                Woken::Time => self.session.tick(clock::now()),
                Woken::Broken(close) => vec![Output::Close(close)],
                Woken::Gone => break End::Lost,
                Woken::Stop => break End::Stop,
            };
            if let Err(end) = self.act(outputs).await {
                break end;
            }
        };
        if let Some(epoch) = self.epoch {
            self.link.fleet.close(&member, epoch);
            let said = self.link.traffic.forget(&member, clock::now());
            said.into_iter().for_each(|said| self.link.fleet.outcomes(said));
        }
        let told = match end {
            End::Close(close) => {
                let Close { reason, message } = &close;
                tracing::info!(%member, ?address, %reason, detail = message, "ended a stream");
                self.link.metrics.count_ended(*reason);
                status(*reason, message)
            }
            End::Stop => Status::unavailable("the hub stops; dial again"),
            End::Lost => {
                tracing::info!(%member, ?address, "a stream was lost");
                self.link.metrics.count_ended(Reason::AgentLost);
                return;
            }
        };
        // A peer that does not read does not learn why.
        let _ = self.outbox.try_send(Err(told));
    }

    async fn next(&mut self, inbox: &mut Streaming<pb::AgentMessage>) -> Woken {
        loop {
            let wake_at = self.session.wake_at();
            tokio::select! {
                message = inbox.next() => match message {
                    Some(Ok(message)) => match self.assembler.push(message) {
                        Ok(Some(message)) => return Woken::Message(message),
                        Ok(None) => {}
                        Err(error) => {
                            return Woken::Broken(Close::new(Reason::Unreadable, error.to_string()));
                        }
                    },
                    Some(Err(error)) if error.code() == tonic::Code::OutOfRange => {
                        return Woken::Broken(Close::new(Reason::TooLarge, error.message()));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a stream broke");
                        return Woken::Gone;
                    }
                    None => return Woken::Gone,
                },
                () = changed(&mut self.orders) => return Woken::Orders,
                () = changed(&mut self.authorities) => return Woken::Authorities,
                () = clock::sleep_until(wake_at) => return Woken::Time,
                () = self.link.stop.cancelled() => return Woken::Stop,
            }
        }
    }

    fn message(&mut self, message: FromAgent) -> Vec<Output> {
        if let (FromAgent::Heartbeat(beat), Some(epoch)) = (&message, self.epoch) {
            self.link.fleet.trusts(&self.session.identity().member, epoch, beat.trust);
        }
        let outputs = self.session.message(message, clock::now());
        if let Some(epoch) = self.epoch {
            let member = &self.session.identity().member;
            self.link.fleet.heard(member, epoch);
        }
        outputs
    }

    fn take_authorities(&mut self) -> Vec<Output> {
        let Some(authorities) = &mut self.authorities else { return Vec::new() };
        let ca_pem = authorities.borrow_and_update().bundle_pem();
        vec![Output::Send(FromHub::Trust(ca_pem))]
    }

    fn take_orders(&mut self) -> Vec<Output> {
        let Some(orders) = &mut self.orders else { return Vec::new() };
        let orders = orders.borrow_and_update().clone();
        if let Some(close) = orders.close {
            return vec![Output::Close(close)];
        }
        let mut outputs = orders.wanted.map(|wanted| self.session.want(wanted)).unwrap_or_default();
        outputs.extend(self.tell_crossing(orders.crossing));
        outputs
    }

    fn tell_crossing(&mut self, held: Option<CrossingHeld>) -> Option<Output> {
        let takes_it = |hello: &Hello| hello.protocol.minor >= CROSSING_SINCE;
        if !self.session.hello().is_some_and(takes_it) || self.crossing == held {
            return None;
        }
        self.crossing.clone_from(&held);
        held.map(|held| Output::Send(FromHub::Crossing(held)))
    }

    /// Carries outputs out.
    async fn act(&mut self, outputs: Vec<Output>) -> Result<(), End> {
        for output in outputs {
            match output {
                Output::TakeEpoch { above } => {
                    let outputs = self.take_epoch(above).await.map_err(End::Close)?;
                    // A welcome asks for nothing more, so this ends.
                    Box::pin(self.act(outputs)).await?;
                }
                Output::Send(message) => self.send(&message).await?,
                Output::Close(close) => return Err(End::Close(close)),
                Output::Snapshot(held) => {
                    let epoch = self.epoch.unwrap_or_default();
                    self.link.fleet.report(self.session.identity(), epoch, held);
                }
                Output::Confirmed => self.link.fleet.confirm(&self.session.identity().member),
                Output::Applied(report) => {
                    self.tell_propagation(&report);
                    self.link.fleet.applied(&self.session.identity().member, report);
                }
                Output::Probes(report) => {
                    self.link.fleet.probes(&self.session.identity().member, report);
                }
                Output::ApiServer(api) => {
                    let epoch = self.epoch.unwrap_or_default();
                    self.link.fleet.api_server(&self.session.identity().member, epoch, api);
                }
                Output::Traffic(report) => {
                    let member = &self.session.identity().member;
                    let said = self.link.traffic.put(member, clock::now(), report);
                    said.into_iter().for_each(|said| self.link.fleet.outcomes(said));
                }
                Output::Overlay(report) => {
                    self.link.fleet.overlay(&self.session.identity().member, report);
                }
            }
        }
        Ok(())
    }

    /// How long it took from a change to a bundle on its way; what is only said again is no change.
    fn tell_sent(&self, update: &BundleUpdate) {
        if !update.delta.is_empty() {
            let took_ms = clock::now().since(update.caused_at);
            self.link.metrics.count_propagation(Stage::Sent, took_ms);
        }
    }

    /// How long it took from a change to a plan that is in place, and to routes that gateways have
    /// taken: once for each plan.
    fn tell_propagation(&mut self, report: &ApplyReport) {
        let member = &self.session.identity().member;
        let metrics = &self.link.metrics;
        let told = self.told.filter(|told| told.number == report.number);
        // That gateways have taken it is no news of what became of the plan.
        let same =
            |told: Told| told.programmed == report.programmed && told.moving == report.moving;
        if told.is_none_or(same) {
            metrics.count_applied(report);
        }
        if !report.complete || self.session.sent() != Some(report.number) {
            return;
        }
        self.told = Some(Told {
            number: report.number,
            programmed: report.programmed,
            moving: report.moving,
        });
        let Some(wanted) = self.link.fleet.wanted(member).filter(|_| report.written > 0) else {
            return;
        };
        let took_ms = clock::now().since(wanted.caused_at);
        if told.is_none() {
            metrics.count_propagation(Stage::Applied, took_ms);
        }
        if report.programmed && told.is_none_or(|told| !told.programmed) {
            metrics.count_propagation(Stage::Programmed, took_ms);
        }
    }

    async fn take_epoch(&mut self, above: u64) -> Result<Vec<Output>, Close> {
        let Some(hello) = self.session.hello().cloned() else { return Ok(Vec::new()) };
        self.link.fleet.check_takeover(&hello)?;
        let (store, process) = (Arc::clone(&self.link.store), self.link.epoch);
        let (member, uid) = (hello.member.clone(), hello.uid.clone());
        let taken = tokio::task::spawn_blocking(move || {
            let epoch = record::take_epoch(store.as_ref(), &member, &[process, above])?;
            record::write_connected(store.as_ref(), &member, &uid, clock::now())?;
            Ok::<_, record::RecordError>(epoch)
        });
        let epoch = match taken.await {
            Ok(Ok(epoch)) => epoch,
            Ok(Err(error)) => {
                tracing::error!(member = %hello.member, %error, "cannot take an epoch");
                return Err(Close::new(Reason::StoreUnavailable, error.to_string()));
            }
            Err(error) => return Err(Close::new(Reason::StoreUnavailable, error.to_string())),
        };
        let (remembered, orders): (Remembered, _) = self.link.fleet.open(&hello, epoch)?;
        tracing::info!(
            member = %hello.member, epoch, agent = hello.agent_version,
            incarnation = hello.incarnation, "opened a stream"
        );
        self.epoch = Some(epoch);
        self.orders = Some(orders);
        if hello.protocol.minor >= TRUST_SINCE {
            let mut authorities = self.link.authority.subscribe();
            authorities.mark_changed();
            self.authorities = Some(authorities);
        }
        let mut outputs = self.session.epoch_taken(epoch, remembered, clock::now());
        // The bundle that was wanted before the stream came is no change that would wake it.
        outputs.extend(self.take_orders());
        Ok(outputs)
    }

    async fn send(&self, message: &FromHub) -> Result<(), End> {
        let late = || Close::new(Reason::AgentLost, "the agent does not read its stream");
        let mut bytes = 0;
        let start = std::time::SystemTime::now();
        for message in hub_messages(message) {
            bytes += prost::Message::encoded_len(&message);
            let sent = self.outbox.send(Ok(message));
            let silence = Duration::from_millis(SILENCE_MS_MAX);
            match tokio::time::timeout(silence, sent).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(End::Lost),
                Err(_) => return Err(End::Close(late())),
            }
        }
        if let FromHub::Bundle(update) = message {
            self.link.metrics.count_push(update, bytes);
            self.tell_sent(update);
            let member = &self.session.identity().member;
            let (number, parent) = (update.number, &update.trace_parent);
            record_push(&self.link.tracer, member, number, parent, start, bytes);
            tracing::debug!(
                member = %self.session.identity().member, number = %update.number, bytes,
                changed = update.delta.put.len(), removed = update.delta.delete.len(), "sent a bundle"
            );
            if let Some(epoch) = self.epoch {
                let member = &self.session.identity().member;
                self.link.fleet.sent(member, epoch, self.session.sent());
            }
        }
        Ok(())
    }
}

/// Waits until something changes; for ever while there is nothing to come.
async fn changed<T>(watched: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = watched {
        if receiver.changed().await.is_ok() {
            return;
        }
        // The fleet forgot this stream: its close order came before.
        *watched = None;
    }
    std::future::pending::<()>().await;
}
