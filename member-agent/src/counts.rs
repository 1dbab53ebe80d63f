//! Asks peers behind their doors which of their services have endpoints that are ready.
//!
//! One task per peer, over a connection of its own: an agent that is slow to answer must not look like a
//! dead door. What peers say, and our own snapshot, go into one machine
//! ([`fairlead_agent_core::readiness`]); the overlay reads what it comes to. A peer that does not answer
//! says nothing: what it said last stands. A question that was answered before waits at the peer until
//! there is another answer, so that news comes at once and silence costs little; a peer that does not
//! know this idiom is asked five times a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::readiness::{
    ASK_BYTES_PER_MS, ASK_PERIOD_MS, ASK_WAIT_MS, Counts, Readiness,
};
use fairlead_crds::keys;
use fairlead_model::bundle::{Capability, Peer};
use fairlead_model::snapshot::{EndpointCounts, Snapshot};
use fairlead_model::{MemberId, NsName};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::crossing::Crossing;
use crate::door::{Answer, Question};
use crate::http;
use crate::probe::{Link, PEERS_MAX};
use crate::tls::{self, Trust};

/// After a question without an answer.
const AGAIN: Duration = Duration::from_secs(2);
/// A question without an answer ends after that: a second more than a peer may wait with it.
const TIMEOUT: Duration = Duration::from_millis(ASK_WAIT_MS + 1_000);
/// Answers on their way to the machine.
const SAID_MAX: usize = 64;

/// What one member says of its services.
type Services = BTreeMap<NsName, EndpointCounts>;

/// Asks peers and keeps what is gone.
pub struct Asker {
    /// Time.
    pub clock: Clock,
    /// Our own name.
    pub member: MemberId,
    /// Peers to ask.
    pub peers: watch::Receiver<Arc<BTreeMap<MemberId, Peer>>>,
    /// Our certificates.
    pub crossing: watch::Receiver<Option<Arc<Crossing>>>,
    /// What we have ourselves.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Services that are gone.
    pub gone: watch::Sender<Counts>,
}

/// What a running task was started with.
type Running = BTreeMap<MemberId, (Peer, Arc<Crossing>, AbortHandle)>;

impl Asker {
    /// Asks for ever.
    pub async fn run(mut self) {
        let (say, mut said) = mpsc::channel(SAID_MAX);
        let (mut machine, mut running) = (Readiness::default(), Running::new());
        self.restart(&mut running, &mut machine, &say);
        loop {
            let (clock, due) = (self.clock, machine.next_deadline());
            let ripe = async move {
                match due {
                    Some(at) => clock.until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((member, counts)) = said.recv() => {
                    machine.on_counts(&member, &counts, self.clock.now());
                }
                Ok(()) = self.peers.changed() => self.restart(&mut running, &mut machine, &say),
                Ok(()) = self.crossing.changed() => self.restart(&mut running, &mut machine, &say),
                Ok(()) = self.snapshot.changed() => self.look_at_ourselves(&mut machine),
                () = ripe => machine.tick(self.clock.now()),
                else => return,
            }
            self.publish(&machine.gone());
        }
    }

    fn look_at_ourselves(&mut self, machine: &mut Readiness) {
        let Some(snapshot) = self.snapshot.borrow_and_update().clone() else { return };
        let counts = snapshot.services.iter().map(|(name, s)| (name.clone(), s.counts())).collect();
        machine.on_counts(&self.member, &counts, self.clock.now());
    }

    fn publish(&self, gone: &Counts) {
        self.gone.send_if_modified(|held| {
            if held == gone {
                return false;
            }
            let names = |counts: &Counts| -> Vec<String> {
                let of = |(m, s): (&MemberId, &Services)| {
                    s.keys().map(|service| format!("{service} in {m}")).collect::<Vec<_>>()
                };
                counts.iter().flat_map(of).take(10).collect()
            };
            info!(services = ?names(gone), "services without ready endpoints");
            held.clone_from(gone);
            true
        });
    }

    /// One task for each peer of now, none for others.
    fn restart(
        &mut self,
        running: &mut Running,
        machine: &mut Readiness,
        say: &mpsc::Sender<(MemberId, Services)>,
    ) {
        let peers = self.peers.borrow_and_update().clone();
        let crossing = self.crossing.borrow_and_update().clone();
        running.retain(|member, (peer, with, task)| {
            let stays = peers.get(member) == Some(peer) && crossing.as_ref() == Some(with);
            if !stays {
                task.abort();
            }
            stays
        });
        machine.retain(|member| *member == self.member || peers.contains_key(member));
        let Some(crossing) = crossing else { return };
        for (member, peer) in peers.iter().take(PEERS_MAX) {
            if running.contains_key(member) {
                continue;
            }
            let trust = Trust::Ca(peer.ca_pem.clone());
            match tls::client_config(&trust, Some(&crossing.client), &["http/1.1"]) {
                Ok(config) => {
                    let link = Link::new(peer.clone(), Arc::new(config));
                    let capability = peer.readiness.clone();
                    let asking = ask_peer(member.clone(), link, capability, say.clone());
                    let task = tokio::spawn(asking);
                    let running_as = (peer.clone(), crossing.clone(), task.abort_handle());
                    running.insert(member.clone(), running_as);
                }
                Err(error) => warn!(%member, %error, "peer cannot be asked for its counts"),
            }
        }
    }
}

async fn ask_peer(
    member: MemberId,
    mut link: Link,
    capability: Capability,
    say: mpsc::Sender<(MemberId, Services)>,
) {
    let (mut last, mut seen) = (None, None::<String>);
    loop {
        let asked = Instant::now();
        let seen_before = seen.as_deref();
        let question =
            Question { path: keys::PATH_READINESS, seen: seen_before, capability: &capability.0 };
        let bytes = match tokio::time::timeout(TIMEOUT, link.read(question)).await {
            Ok(Ok(Answer { status: 304, .. })) => 0,
            Ok(Ok(Answer { status: 200, body, tag })) => {
                let Some(counts) = http::read_readiness(&body) else {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                seen = tag;
                if last.as_ref() != Some(&counts) {
                    last = Some(counts.clone());
                    if say.send((member.clone(), counts)).await.is_err() {
                        return;
                    }
                }
                u64::try_from(body.len()).unwrap_or(u64::MAX)
            }
            failed => {
                if failed.is_err() {
                    link.on_timeout();
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let pause = Duration::from_millis(ASK_PERIOD_MS + bytes / ASK_BYTES_PER_MS);
        tokio::time::sleep_until(asked + pause).await;
    }
}

#[cfg(test)]
#[path = "counts_test.rs"]
mod tests;
