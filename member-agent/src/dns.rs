//! The agent's authoritative DNS server: sockets around [`packet`].
//!
//! Owns the view that is answered from (swapped as a whole when the bundle or reachability changes), the
//! bound on answers to each network, and the sockets. UDP has a thread of its own, so that a flood of
//! queries costs at most that thread and never the tasks that keep routes right. Never recurses, never
//! asks anybody anything, and goes on with what it has for as long as the hub is away.

pub mod clusterset;
pub mod packet;
mod usual;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_agent_core::dns::{Admit, Rate, View, mix};
use fairlead_agent_core::probe::Suspicion;
use fairlead_model::MemberId;
use fairlead_model::health::ProbeReport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info, warn};

use crate::alone::Belief;
use crate::apply::Held;
use crate::clock::Clock;
use crate::metrics::Metrics;
use packet::{Outcome, Transport, respond, truncated};

/// Connections at once; whoever comes beyond is closed.
const CONNECTIONS_MAX: usize = 256;
/// A connection that says nothing for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Queries over one connection.
const QUERIES_MAX: usize = 1_000;
/// Longest query that is read from a datagram; larger ones are no queries.
const QUERY_LEN_MAX: usize = 4_096;
/// Pause after a socket error that may come again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What is answered from.
pub type Views = Arc<ArcSwap<View>>;

/// Keeps the view as bundle and reachability say.
pub struct ViewKeeper {
    /// The bundle in force.
    pub held: watch::Receiver<Option<Arc<Held>>>,
    /// What the probes found.
    pub report: watch::Receiver<ProbeReport>,
    /// Whether they are believed.
    pub belief: watch::Receiver<Belief>,
    /// Where the view goes.
    pub views: Views,
}

impl ViewKeeper {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut told = BTreeSet::new();
        loop {
            let held = self.held.borrow_and_update().clone();
            let report = self.report.borrow_and_update().clone();
            let unreachable = unreachable(&report, &self.belief.borrow_and_update());
            if let Some(held) = held {
                let view = View::new(&held.bundle.zones, &unreachable);
                let serials: BTreeSet<(String, u32)> =
                    view.serials().map(|(zone, serial)| (zone.to_owned(), serial)).collect();
                self.views.store(Arc::new(view));
                for (zone, serial) in serials.difference(&told) {
                    info!(zone, serial, plan = %held.bundle.number, "answers for zone");
                }
                told = serials;
            }
            let changed = tokio::select! {
                changed = self.held.changed() => changed,
                changed = self.report.changed() => changed,
                changed = self.belief.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// Members that this agent cannot reach; none while it doubts itself.
fn unreachable(report: &ProbeReport, belief: &Belief) -> BTreeSet<MemberId> {
    match belief.of(report) {
        Suspicion::Alone => BTreeSet::new(),
        Suspicion::None => {
            report.iter().filter(|(_, p)| p.reach.is_out()).map(|(id, _)| id.clone()).collect()
        }
    }
}

/// The server.
pub struct DnsServer {
    /// What is answered from.
    pub views: Views,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// Answers a second to one network over UDP; 0 = no bound.
    pub rate_per_s: u32,
}

impl DnsServer {
    /// Serves at an address, over both transports. Returns when a socket cannot be had.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn serve(self, listen: SocketAddr) -> std::io::Result<()> {
        let tcp = TcpListener::bind(listen).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?)?;
        let server = Arc::new(self);
        let datagrams = Arc::clone(&server);
        // It blocks in a receive for ever and ends with the process.
        std::thread::Builder::new()
            .name("dns-udp".to_owned())
            .spawn(move || datagrams.serve_udp(&udp))?;
        server.serve_tcp(tcp).await;
        Ok(())
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut rate = Rate::new(self.rate_per_s, rand::random());
        let mut seed: u64 = rand::random();
        let mut buffer = [0u8; QUERY_LEN_MAX];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) => {
                    debug!(%error, "cannot receive");
                    std::thread::sleep(ERROR_PAUSE);
                    continue;
                }
            };
            seed = mix(seed);
            let outcome = match rate.admit(from.ip(), self.clock.now()) {
                Admit::Answer => {
                    respond(&self.views.load(), &buffer[..len], from, Transport::Udp, seed)
                }
                Admit::Truncate => truncated(&buffer[..len]),
                Admit::Drop => Outcome { bytes: None, label: "dropped" },
            };
            self.metrics.dns_query("udp", outcome.label);
            if let Some(bytes) = outcome.bytes
                && let Err(error) = socket.send_to(&bytes, from)
            {
                debug!(%error, "cannot answer");
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection for DNS");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.dns_query("tcp", "dropped");
                continue;
            };
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = server.converse(stream, from).await {
                    debug!(%error, %from, "connection for DNS ended");
                }
                drop(place);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: SocketAddr) -> std::io::Result<()> {
        for _ in 0..QUERIES_MAX {
            let Some(query) = timely(read_message(&mut stream)).await? else { break };
            let seed = rand::random();
            let outcome = respond(&self.views.load(), &query, from, Transport::Tcp, seed);
            self.metrics.dns_query("tcp", outcome.label);
            let Some(bytes) = outcome.bytes else { break };
            let Ok(len) = u16::try_from(bytes.len()) else { break };
            // One write, so that length and message share a segment.
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(bytes);
            timely(stream.write_all(&framed)).await?;
        }
        Ok(())
    }
}

/// A message behind its length; none at the end of the stream.
async fn read_message(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u16().await {
        Ok(len) => len,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn timely<T>(work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    match tokio::time::timeout(IDLE_MAX, work).await {
        Ok(result) => result,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
#[path = "dns_test.rs"]
mod tests;
