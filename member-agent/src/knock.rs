//! Tries our own door: a door is not trusted because its fields are set.
//!
//! With our certificate the probe route must answer; without one, and with one of a foreign CA, TLS
//! must refuse (with TLS 1.3 the refusal comes on the first read after the handshake). One stranger
//! who is let in is enough to shut the door; only all three outcomes together open it. Anything
//! unclear changes nothing. The verdict is kept on disk until it is disproved.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::snapshot::{Address, GatewayRole, Knock, Snapshot};
use fairlead_model::{ClusterUid, Millis};
use fairlead_translate::names;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::clock::wall_now;
use crate::crossing::Crossing;
use crate::disk::{Disk, KeptKnock};
use crate::door::{self, DoorError};
use crate::pki::{self, Purpose};
use crate::tls::{self, Leaf, TlsError, Trust};

/// A door that was found shut is tried again after that.
const SHUT_AGAIN: Duration = Duration::from_secs(10);
/// A door that is not proven shut is tried again after that: soon at first, when it is being made,
/// then with doubling waits.
const OPEN_AGAIN_MIN: Duration = Duration::from_millis(200);
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(5);
/// One try of one visitor.
const VISIT: Duration = Duration::from_secs(3);
/// A refusal that TLS 1.3 sends after the handshake is there by then.
const REFUSAL: Duration = Duration::from_millis(500);

/// What became of one visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// The probe route answered.
    Answered,
    /// Bytes came back over TLS, but not from the probe route.
    LetIn,
    /// TLS refused the visitor.
    Refused,
    /// Neither: no connection, silence, a connection cut without a word.
    Unclear(String),
}

/// What three visits come to; none = nothing, what was known stands.
pub fn judge(ours: &Visit, nobody: &Visit, stranger: &Visit) -> Option<KeptKnock> {
    let let_in = |visit: &Visit| matches!(visit, Visit::Answered | Visit::LetIn);
    let who = match (let_in(nobody), let_in(stranger)) {
        (true, true) => "callers without a certificate and callers with a foreign one",
        (true, false) => "callers without a certificate",
        (false, true) => "callers with a foreign certificate",
        (false, false) => {
            let shut =
                (ours, nobody, stranger) == (&Visit::Answered, &Visit::Refused, &Visit::Refused);
            let message = "answers our certificate, refuses none and a foreign one".to_owned();
            return shut.then_some(KeptKnock { knock: Knock::Shut, message });
        }
    };
    let message = format!(
        "the door lets in {who}; check what the gateway makes of spec.tls.frontend of Gateway {}/{}",
        keys::NAMESPACE,
        keys::EAST_WEST_GATEWAY
    );
    Some(KeptKnock { knock: Knock::StrangerLetIn, message })
}

/// Knocks for ever.
pub struct Knocker {
    /// Cluster.
    pub uid: ClusterUid,
    /// Where our door is.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Our certificates.
    pub crossing: watch::Receiver<Option<Arc<Crossing>>>,
    /// The verdict.
    pub verdict: watch::Sender<KeptKnock>,
    /// Where it is kept.
    pub disk: Disk,
}

impl Knocker {
    /// Knocks, again and again, and at once when the door changes.
    pub async fn run(mut self) {
        let mut said = String::new();
        let mut open_again = OPEN_AGAIN_MIN;
        let mut before = None;
        loop {
            let at = self.snapshot.borrow_and_update().as_deref().and_then(door_of);
            if at != before {
                open_again = OPEN_AGAIN_MIN;
                before.clone_from(&at);
            }
            let crossing = self.crossing.borrow_and_update().clone();
            let mut wait = SHUT_AGAIN;
            if let (Some((addresses, port)), Some(crossing)) = (&at, crossing) {
                match visit_all(&self.uid, addresses, *port, &crossing).await {
                    Ok((verdict, unclear)) => {
                        if !unclear.is_empty() && unclear != said {
                            info!(detail = %unclear, "the knock at our door is not clear yet");
                        }
                        said = unclear;
                        self.settle(verdict);
                    }
                    Err(error) => warn!(%error, "cannot knock at our door"),
                }
                if self.verdict.borrow().knock == Knock::Shut {
                    open_again = OPEN_AGAIN_MIN;
                } else {
                    wait = open_again;
                    open_again = (open_again * 2).min(OPEN_AGAIN_MAX);
                }
            }
            if self.wait(wait, at).await.is_err() {
                return;
            }
        }
    }

    fn settle(&self, verdict: Option<KeptKnock>) {
        let Some(verdict) = verdict.filter(|verdict| *verdict != *self.verdict.borrow()) else {
            return;
        };
        match verdict.knock {
            Knock::StrangerLetIn => error!(detail = %verdict.message, "our door is not shut"),
            Knock::Shut | Knock::Unknown => info!(detail = %verdict.message, "our door is shut"),
        }
        if let Err(error) = self.disk.keep_knock(&verdict) {
            warn!(%error, "cannot keep the knock's verdict");
        }
        self.verdict.send_replace(verdict);
    }

    /// Waits for the time, or for another door or another certificate.
    async fn wait(
        &mut self,
        time: Duration,
        at: Option<(Vec<Address>, u16)>,
    ) -> Result<(), watch::error::RecvError> {
        let time = tokio::time::sleep(time);
        tokio::pin!(time);
        loop {
            tokio::select! {
                () = &mut time => return Ok(()),
                changed = self.crossing.changed() => return changed,
                changed = self.snapshot.changed() => {
                    changed?;
                    let now = self.snapshot.borrow_and_update().as_deref().and_then(door_of);
                    if now != at {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Addresses and port of our own door, once it is programmed.
pub fn door_of(snapshot: &Snapshot) -> Option<(Vec<Address>, u16)> {
    let door = snapshot.gateways.values().find(|gateway| gateway.role == GatewayRole::Door)?;
    let listener = door.listeners.get(keys::EAST_WEST_LISTENER_HTTPS)?;
    let addresses: Vec<Address> = door.addresses.iter().cloned().collect();
    (!addresses.is_empty()).then_some((addresses, listener.port))
}

/// Knocks at every address; the worst counts. The text says what was unclear.
async fn visit_all(
    uid: &ClusterUid,
    addresses: &[Address],
    port: u16,
    crossing: &Crossing,
) -> Result<(Option<KeptKnock>, String), TlsError> {
    let name = names::server_name(uid);
    let ours = Trust::Ca(crossing.ca_pem.clone());
    let alpn = ["http/1.1"];
    let with_ours = Arc::new(tls::client_config(&ours, Some(&crossing.client), &alpn)?);
    // Strangers do not care who answers; nothing is sent that could be stolen.
    let with_none = Arc::new(tls::client_config(&Trust::Anybody, None, &alpn)?);
    let stranger = foreign_leaf(uid, wall_now());
    let with_foreign = match &stranger {
        Some(leaf) => Arc::new(tls::client_config(&Trust::Anybody, Some(leaf), &alpn)?),
        None => return Ok((None, "no foreign certificate could be made".to_owned())),
    };
    let mut verdicts = Vec::new();
    let mut unclear = String::new();
    for address in addresses {
        let (ours, nobody, stranger) = tokio::join!(
            visit_as_member(&with_ours, &name, address, port),
            visit_as_stranger(&with_none, &name, address, port),
            visit_as_stranger(&with_foreign, &name, address, port),
        );
        let verdict = judge(&ours, &nobody, &stranger);
        if verdict.is_none() {
            unclear = format!("{address}: ours {ours:?}, without {nobody:?}, foreign {stranger:?}");
        }
        verdicts.push(verdict);
    }
    let let_in = |verdict: &&Option<KeptKnock>| {
        verdict.as_ref().is_some_and(|kept| kept.knock == Knock::StrangerLetIn)
    };
    if let Some(worst) = verdicts.iter().find(let_in) {
        return Ok((worst.clone(), unclear));
    }
    let all_shut = verdicts.iter().all(Option::is_some);
    Ok((verdicts.into_iter().next().flatten().filter(|_| all_shut), unclear))
}

/// The very name of our own callers, of a CA that nobody knows.
fn foreign_leaf(uid: &ClusterUid, now: Millis) -> Option<Leaf> {
    let ca = pki::make_ca("fairlead knock", now).ok()?;
    pki::make_leaf(&ca, &names::client_name(uid), Purpose::Client, now).ok()
}

/// Visits with our own certificate, as a peer would.
pub async fn visit_as_member(
    config: &Arc<ClientConfig>,
    name: &str,
    address: &Address,
    port: u16,
) -> Visit {
    let visit = async {
        let mut connection = door::open(config, name, address, port).await?;
        connection.get(keys::PATH_PROBE).await
    };
    match tokio::time::timeout(VISIT, visit).await {
        Ok(Ok(status)) if door::is_answer(status) => Visit::Answered,
        Ok(Ok(status)) => Visit::Unclear(format!("status {status}")),
        Ok(Err(error)) => Visit::Unclear(crate::dial::root_cause(&error)),
        Err(_) => Visit::Unclear("no answer".to_owned()),
    }
}

/// Visits as somebody whom the door must not let in.
pub async fn visit_as_stranger(
    config: &Arc<ClientConfig>,
    name: &str,
    address: &Address,
    port: u16,
) -> Visit {
    match tokio::time::timeout(VISIT, stranger(config, name, address, port)).await {
        Ok(visit) => visit,
        Err(_) => Visit::Unclear("no answer".to_owned()),
    }
}

async fn stranger(config: &Arc<ClientConfig>, name: &str, address: &Address, port: u16) -> Visit {
    let mut stream = match door::open_tls(config, name, address, port).await {
        Ok(stream) => stream,
        Err(DoorError::Connect { source, .. }) => return refusal(&source),
        Err(error) => return Visit::Unclear(error.to_string()),
    };
    let mut bytes = [0; 16];
    // First wait for the refusal: a request sent into a closing connection could turn its alert into
    // a reset, and a reset proves nothing.
    if let Ok(read) = tokio::time::timeout(REFUSAL, stream.read(&mut bytes)).await {
        return ending(read);
    }
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: fairlead-agent\r\nConnection: close\r\n\r\n",
        keys::PATH_PROBE
    );
    if let Err(error) = stream.write_all(request.as_bytes()).await {
        return refusal(&error);
    }
    ending(stream.read(&mut bytes).await)
}

fn ending(read: io::Result<usize>) -> Visit {
    match read {
        Ok(0) => Visit::Unclear("closed without a word".to_owned()),
        Ok(_) => Visit::LetIn,
        Err(error) => refusal(&error),
    }
}

/// Only an alert is a refusal: a reset may have any cause.
fn refusal(error: &io::Error) -> Visit {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match alert {
        Some(rustls::Error::AlertReceived(_)) => Visit::Refused,
        _ => Visit::Unclear(error.to_string()),
    }
}

#[cfg(test)]
#[path = "knock_test.rs"]
mod tests;
