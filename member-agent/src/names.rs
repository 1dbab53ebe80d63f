//! Asks a resolver for the doors and gateways whose addresses are names, when the machine says so.
//!
//! Thin: which names, when, and what an answer means is [`Names`]. The resolver is the pod's own
//! (`/etc/resolv.conf`), or a given one, and keeps nothing itself: how long an answer holds is decided in one place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::dns::Family;
use fairlead_agent_core::names::{
    Ask, Heard, Names, Resolved, names_of, names_of_gateways, resolve_peers,
};
use fairlead_model::MemberId;
use fairlead_model::bundle::Peer;
use fairlead_model::snapshot::Snapshot;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::clock::Clock;

/// Questions at once.
const ASKS_MAX: usize = 8;
/// One server gets that long, twice.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Peers by name of the member.
pub type Peers = Arc<BTreeMap<MemberId, Peer>>;

/// Who knows names.
pub trait Resolve: Send + Sync + 'static {
    /// Asks once.
    fn resolve(&self, ask: Ask) -> BoxFuture<'static, Heard>;
}

/// Keeps what the names of doors stand for.
pub struct NameKeeper<R> {
    /// Time.
    pub clock: Clock,
    /// Peers as the bundle names them.
    pub peers: watch::Receiver<Peers>,
    /// Those of them that routes lead to.
    pub used: watch::Receiver<Peers>,
    /// Our own gateways.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Who knows.
    pub resolver: R,
    /// What is known.
    pub resolved: watch::Sender<Arc<Resolved>>,
    /// Peers as they are probed.
    pub probed: watch::Sender<Peers>,
    /// Peers as they are asked for their counts.
    pub asked: watch::Sender<Peers>,
}

impl<R: Resolve> NameKeeper<R> {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut names = Names::default();
        let mut out: FuturesUnordered<BoxFuture<'static, (Ask, Heard)>> = FuturesUnordered::new();
        let mut waiting: Vec<Ask> = Vec::new();
        loop {
            let peers = self.peers.borrow_and_update().clone();
            let used = self.used.borrow_and_update().clone();
            let mut wanted = names_of(&peers);
            let snapshot = self.snapshot.borrow_and_update().clone();
            wanted.extend(snapshot.as_deref().into_iter().flat_map(names_of_gateways));
            names.want(&wanted, self.clock.now());
            waiting.extend(names.due(self.clock.now()));
            while out.len() < ASKS_MAX
                && let Some(ask) = waiting.pop()
            {
                let answer = self.resolver.resolve(ask.clone());
                out.push(Box::pin(async move { (ask, answer.await) }));
            }
            let resolved = names.resolved();
            tell_peers(&self.probed, resolve_peers(&peers, &resolved));
            tell_peers(&self.asked, resolve_peers(&used, &resolved));
            self.tell(resolved);
            let deadline = names.next_deadline();
            let clock = self.clock;
            let due = async move {
                match deadline {
                    Some(at) => clock.until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changed = async {
                tokio::select! {
                    changed = self.peers.changed() => changed,
                    changed = self.used.changed() => changed,
                    changed = self.snapshot.changed() => changed,
                }
            };
            tokio::select! {
                Some((ask, heard)) = out.next() => {
                    debug!(name = %ask.name, family = ?ask.family, ?heard, "asked for a name");
                    names.hear(&ask, heard, self.clock.now());
                }
                changed = changed => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = due => {}
            }
        }
    }

    fn tell(&self, resolved: Resolved) {
        self.resolved.send_if_modified(|held| {
            let changed = **held != resolved;
            if changed {
                for (name, found) in resolved.iter().filter(|(name, f)| held.get(*name) != Some(*f))
                {
                    info!(%name, v4 = ?found.v4, v6 = ?found.v6, "a name stands for");
                }
                *held = Arc::new(resolved);
            }
            changed
        });
    }
}

fn tell_peers(to: &watch::Sender<Peers>, peers: BTreeMap<MemberId, Peer>) {
    to.send_if_modified(|held| {
        let changed = **held != peers;
        if changed {
            *held = Arc::new(peers);
        }
        changed
    });
}

/// A resolver on the network.
pub struct SystemResolver(Option<TokioResolver>);

impl SystemResolver {
    /// The one at these addresses, or the pod's own where there are none. Where that cannot be read, every
    /// question fails, and what is there stands.
    pub fn new(servers: &[SocketAddr]) -> Self {
        let build = || -> Result<TokioResolver, NetError> {
            let mut builder = match servers {
                [] => TokioResolver::builder_tokio()?,
                servers => TokioResolver::builder_with_config(
                    at_servers(servers),
                    TokioRuntimeProvider::default(),
                ),
            };
            let options = builder.options_mut();
            options.cache_size = 0;
            options.timeout = ASK_TIMEOUT;
            options.attempts = 2;
            builder.build()
        };
        match build() {
            Ok(resolver) => Self(Some(resolver)),
            Err(error) => {
                warn!(%error, "no resolver: doors whose addresses are names keep what they have");
                Self(None)
            }
        }
    }
}

fn at_servers(servers: &[SocketAddr]) -> ResolverConfig {
    let server = |server: &SocketAddr| {
        let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        (udp.port, tcp.port) = (server.port(), server.port());
        NameServerConfig::new(server.ip(), true, vec![udp, tcp])
    };
    ResolverConfig::from_parts(None, vec![], servers.iter().map(server).collect())
}

impl Resolve for SystemResolver {
    fn resolve(&self, ask: Ask) -> BoxFuture<'static, Heard> {
        let resolver = self.0.clone();
        Box::pin(async move {
            let Some(resolver) = resolver else { return Heard::Failed };
            // A dot at the end: no search list, the name is whole.
            let Ok(name) = Name::from_ascii(format!("{}.", ask.name)) else { return Heard::Failed };
            let kind = match ask.family {
                Family::V4 => RecordType::A,
                Family::V6 => RecordType::AAAA,
            };
            match resolver.lookup(name, kind).await {
                Ok(found) => {
                    // Aliases on the way hold no longer than they say.
                    let ttl_s = found.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
                    let ips = found.answers().iter().filter_map(|record| record.data.ip_addr());
                    Heard::Addresses { ips: ips.collect(), ttl_s }
                }
                Err(error) => heard(&error),
            }
        })
    }
}

/// What an error says of the name. Only a server that answers for it can say that there is nothing: with the
/// zone's SOA, or by NXDOMAIN.
fn heard(error: &NetError) -> Heard {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Heard::Absent { ttl_s: none.negative_ttl },
            ResponseCode::NoError if none.soa.is_some() => {
                Heard::Absent { ttl_s: none.negative_ttl }
            }
            _ => Heard::Failed,
        },
        _ => Heard::Failed,
    }
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
