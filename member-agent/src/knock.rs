//! Tries our own door: a door is not trusted because its fields are set.
//!
//! With our certificate the probe route must answer; without one, and with one of a foreign CA, TLS
//! must refuse (with TLS 1.3 the refusal comes on the first read after the handshake). One stranger
//! who is let in is enough to shut the door; only all three outcomes together open it. Anything
//! unclear changes nothing. The verdict is kept on disk until it is disproved. Each listener of the door
//! has a verdict of its own: a gateway may ask for certificates at one of them and not at the other.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::snapshot::{Address, GatewayRole, Knock, Snapshot, SniState};
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

/// A listener of our door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listener {
    /// For requests with headers.
    Headers,
    /// For what is told apart by SNI.
    Sni,
}

impl Listener {
    /// Its name, or the start of the names of its lanes.
    fn name(self) -> &'static str {
        match self {
            Self::Headers => keys::EAST_WEST_LISTENER_HTTPS,
            Self::Sni => keys::EAST_WEST_LISTENER_TLS,
        }
    }

    /// What is asked there: the gateway itself answers requests; connections it can only pass on to us.
    fn path(self) -> &'static str {
        match self {
            Self::Headers => keys::PATH_PROBE,
            Self::Sni => keys::PATH_READINESS,
        }
    }
}

/// What three visits come to; none = nothing, what was known stands.
pub fn judge(
    listener: Listener,
    ours: &Visit,
    nobody: &Visit,
    stranger: &Visit,
) -> Option<(Knock, String)> {
    let let_in = |visit: &Visit| matches!(visit, Visit::Answered | Visit::LetIn);
    let who = match (let_in(nobody), let_in(stranger)) {
        (true, true) => "callers without a certificate and callers with a foreign one",
        (true, false) => "callers without a certificate",
        (false, true) => "callers with a foreign certificate",
        (false, false) => {
            let shut =
                (ours, nobody, stranger) == (&Visit::Answered, &Visit::Refused, &Visit::Refused);
            let message = "answers our certificate, refuses none and a foreign one".to_owned();
            return shut.then_some((Knock::Shut, message));
        }
    };
    let message = format!(
        "listener {} of the door lets in {who}; check what the gateway makes of spec.tls.frontend, and of \
         the policies that name Gateway {}/{}",
        listener.name(),
        keys::NAMESPACE,
        keys::EAST_WEST_GATEWAY
    );
    Some((Knock::StrangerLetIn, message))
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
        let mut said = BTreeMap::new();
        let mut open_again = OPEN_AGAIN_MIN;
        let mut before = Doors::default();
        loop {
            let at = self.snapshot.borrow_and_update().as_deref().map(doors_of).unwrap_or_default();
            if at != before {
                open_again = OPEN_AGAIN_MIN;
                before.clone_from(&at);
            }
            let crossing = self.crossing.borrow_and_update().clone();
            let mut wait = SHUT_AGAIN;
            if let Some(crossing) = crossing.filter(|_| !at.is_empty()) {
                for (listener, places) in &at {
                    self.knock(*listener, places, &crossing, &mut said).await;
                }
                if self.all_shut(&at) {
                    open_again = OPEN_AGAIN_MIN;
                } else {
                    wait = open_again;
                    open_again = (open_again * 2).min(OPEN_AGAIN_MAX);
                }
            }
            if self.wait(wait, &at).await.is_err() {
                return;
            }
        }
    }

    async fn knock(
        &self,
        listener: Listener,
        places: &[(Address, u16)],
        crossing: &Crossing,
        said: &mut BTreeMap<Listener, String>,
    ) {
        match visit_all(&self.uid, listener, places, crossing).await {
            Ok((verdict, unclear)) => {
                let before = said.insert(listener, unclear.clone());
                if !unclear.is_empty() && before != Some(unclear.clone()) {
                    info!(?listener, detail = %unclear, "the knock at our door is not clear yet");
                }
                self.settle(listener, verdict);
            }
            Err(error) => warn!(%error, "cannot knock at our door"),
        }
    }

    fn all_shut(&self, at: &Doors) -> bool {
        let verdict = self.verdict.borrow();
        at.keys().all(|listener| match listener {
            Listener::Headers => verdict.knock == Knock::Shut,
            Listener::Sni => verdict.sni.knock == Knock::Shut,
        })
    }

    fn settle(&self, listener: Listener, verdict: Option<(Knock, String)>) {
        let Some((knock, message)) = verdict else { return };
        let mut kept = self.verdict.borrow().clone();
        match listener {
            Listener::Headers => (kept.knock, kept.message) = (knock, message.clone()),
            Listener::Sni => kept.sni = SniState { knock, message: message.clone() },
        }
        if kept == *self.verdict.borrow() {
            return;
        }
        match knock {
            Knock::StrangerLetIn => error!(?listener, detail = %message, "our door is not shut"),
            Knock::Shut | Knock::Unknown => {
                info!(?listener, detail = %message, "our door is shut");
            }
        }
        if let Err(error) = self.disk.keep_knock(&kept) {
            warn!(%error, "cannot keep the knock's verdict");
        }
        self.verdict.send_replace(kept);
    }

    /// Waits for the time, or for another door or another certificate.
    async fn wait(&mut self, time: Duration, at: &Doors) -> Result<(), watch::error::RecvError> {
        let time = tokio::time::sleep(time);
        tokio::pin!(time);
        loop {
            tokio::select! {
                () = &mut time => return Ok(()),
                changed = self.crossing.changed() => return changed,
                changed = self.snapshot.changed() => {
                    changed?;
                    let now = self.snapshot.borrow_and_update();
                    if now.as_deref().map(doors_of).unwrap_or_default() != *at {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Addresses and port of our own door for requests, once it is programmed.
pub fn door_of(snapshot: &Snapshot) -> Option<(Vec<Address>, u16)> {
    let places = doors_of(snapshot).remove(&Listener::Headers)?;
    let port = places.first()?.1;
    Some((places.into_iter().map(|(address, _)| address).collect(), port))
}

/// Listeners of our own door, with every address and port.
type Doors = BTreeMap<Listener, Vec<(Address, u16)>>;

fn doors_of(snapshot: &Snapshot) -> Doors {
    let doors = snapshot.gateways.values().filter(|gateway| gateway.role == GatewayRole::Door);
    let mut all = Doors::new();
    for door in doors.take(1) {
        for (name, state) in &door.listeners {
            let listener = if name == Listener::Headers.name() {
                Listener::Headers
            } else if name.starts_with(Listener::Sni.name()) {
                Listener::Sni
            } else {
                continue;
            };
            let places = door.addresses.iter().map(|address| (address.clone(), state.port));
            all.entry(listener).or_default().extend(places);
        }
    }
    all.retain(|_, places| !places.is_empty());
    all
}

/// Knocks at every address and port; the worst counts. The text says what was unclear.
async fn visit_all(
    uid: &ClusterUid,
    listener: Listener,
    places: &[(Address, u16)],
    crossing: &Crossing,
) -> Result<(Option<(Knock, String)>, String), TlsError> {
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
    for (address, port) in places {
        let (ours, nobody, stranger) = tokio::join!(
            visit(&with_ours, &name, address, *port, listener.path()),
            visit_as_stranger(&with_none, &name, address, *port),
            visit_as_stranger(&with_foreign, &name, address, *port),
        );
        let verdict = judge(listener, &ours, &nobody, &stranger);
        if verdict.is_none() {
            unclear = format!(
                "{address}:{port}: ours {ours:?}, without {nobody:?}, foreign {stranger:?}"
            );
        }
        verdicts.push(verdict);
    }
    let let_in = |verdict: &&Option<(Knock, String)>| {
        verdict.as_ref().is_some_and(|(knock, _)| *knock == Knock::StrangerLetIn)
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
    pki::make_leaf(&ca, &[names::client_name(uid)], Purpose::Client, now).ok()
}

/// Visits with our own certificate, as a peer would.
pub async fn visit_as_member(
    config: &Arc<ClientConfig>,
    name: &str,
    address: &Address,
    port: u16,
) -> Visit {
    visit(config, name, address, port, keys::PATH_PROBE).await
}

async fn visit(
    config: &Arc<ClientConfig>,
    name: &str,
    address: &Address,
    port: u16,
    path: &str,
) -> Visit {
    let visit = async {
        let mut connection = door::open(config, name, address, port).await?;
        connection.get(path).await
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
