//! The stream to the hub: dials, carries messages, keeps time for the session machine.
//!
//! Everything that is said or believed is decided in `fairlead-agent-core::session`. A hub that is
//! away costs nothing but news: the stream is tried again with growing, jittered waits, for ever.

use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::session::{Input, Output, Session};
use fairlead_model::health::{ApiServer, ProbeReport};
use fairlead_model::ledger::Ledger;
use fairlead_model::session::{ApplyReport, CrossingHeld, FromAgent, FromHub, OverlayReport};
use fairlead_model::snapshot::Snapshot;
use fairlead_model::traffic::TrafficReport;
use fairlead_model::{Millis, PlanNumber, Reason};
use fairlead_proto::convert::{HubAssembler, agent_messages};
use fairlead_proto::ledger::snapshot_to_ledger;
use fairlead_proto::pb::fleet_client::FleetClient;
use fairlead_proto::{MESSAGE_BYTES_MAX, pb};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::dial;
use crate::identity::{Identities, IdentityError};
use crate::metrics::Metrics;
use crate::spans;
use crate::tls::Trust;

/// Messages that wait for a slow network; a snapshot is cut into parts of 256 KiB.
const OUTBOX: usize = 16;
/// What the hub said and we have not looked at.
const INBOX: usize = 16;
/// An outbox that stays full for that long belongs to a dead stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Getting an identity and a connection takes no longer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// What /readyz says about the hub.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// The stream is open.
    pub open: bool,
    /// What stood in the way at the last try; empty = nothing.
    pub trouble: String,
    /// The hub said no at the last try: the reason's name.
    pub refused: Option<String>,
}

/// A bundle that counts from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Its number.
    pub number: PlanNumber,
    /// It.
    pub ledger: Ledger,
    /// W3C context of the change that it came from; empty when the hub gave none.
    pub trace_parent: String,
}

/// What the loop is made of.
pub struct Uplink {
    /// Time.
    pub clock: Clock,
    /// The machine.
    pub session: Session,
    /// Who we are.
    pub identities: Arc<Identities>,
    /// What we report.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What became of plans.
    pub applied: watch::Receiver<Option<ApplyReport>>,
    /// Verdicts about peers.
    pub probes: watch::Receiver<ProbeReport>,
    /// The overlay.
    pub overlay: watch::Receiver<Option<OverlayReport>>,
    /// Whether our API server can be reached.
    pub api: watch::Receiver<ApiServer>,
    /// What gateways did.
    pub traffic: watch::Receiver<Option<TrafficReport>>,
    /// Who does not hold our crossing CA yet, as the hub says; none while it says nothing.
    pub crossing_held: watch::Sender<Option<CrossingHeld>>,
    /// Where bundles go.
    pub bundles: mpsc::Sender<Taken>,
    /// For /readyz.
    pub state: watch::Sender<LinkState>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Why there is no stream.
struct Trouble {
    why: String,
    refused: Option<String>,
}

impl Trouble {
    fn of(why: impl Into<String>) -> Self {
        Self { why: why.into(), refused: None }
    }
}

/// What the tasks of a stream tell the loop.
enum Event {
    Connected { outbox: mpsc::Sender<pb::AgentMessage> },
    Heard(FromHub),
    Ended(Trouble),
}

/// The stream at hand: dropping it ends its tasks.
#[derive(Default)]
struct Stream {
    task: Option<AbortHandle>,
    events: Option<mpsc::Receiver<Event>>,
    outbox: Option<mpsc::Sender<pb::AgentMessage>>,
    /// The trace of the newest bundle that was heard of.
    trace_parent: String,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Uplink {
    /// Talks to the hub for ever.
    pub async fn run(mut self) {
        let mut stream = Stream::default();
        loop {
            let deadline = self.session.next_deadline();
            let input = tokio::select! {
                () = until(self.clock, deadline) => Input::Tick,
                event = next_event(&mut stream) => match self.on_event(event, &mut stream) {
                    Some(input) => input,
                    None => continue,
                },
                Ok(()) = self.snapshot.changed() => {
                    let Some(snapshot) = self.snapshot.borrow_and_update().clone() else { continue };
                    Input::Snapshot(snapshot_to_ledger(&snapshot))
                }
                Ok(()) = self.applied.changed() => {
                    let Some(report) = self.applied.borrow_and_update().clone() else { continue };
                    Input::Applied(report)
                }
                Ok(()) = self.probes.changed() => Input::Probes(self.probes.borrow_and_update().clone()),
                Ok(()) = self.overlay.changed() => {
                    let Some(report) = self.overlay.borrow_and_update().clone() else { continue };
                    Input::Overlay(report)
                }
                Ok(()) = self.api.changed() => Input::ApiServer(*self.api.borrow_and_update()),
                Ok(()) = self.traffic.changed() => {
                    let Some(report) = self.traffic.borrow_and_update().clone() else { continue };
                    Input::Traffic(report)
                }
            };
            self.step(input, &mut stream).await;
        }
    }

    async fn step(&mut self, input: Input, stream: &mut Stream) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let was_open = self.session.is_open();
            let outputs = self.session.on(input, self.clock.now(), rand::random());
            for output in outputs {
                if !self.act(output, stream).await {
                    next = Some(Input::Disconnected);
                    break;
                }
            }
            self.tell(was_open);
        }
    }

    fn tell(&self, was_open: bool) {
        let open = self.session.is_open();
        if open == was_open {
            return;
        }
        match open {
            true => {
                info!("connected to the hub");
                self.metrics.connected();
                self.state.send_replace(LinkState { open, ..LinkState::default() });
            }
            false => {
                warn!("the stream to the hub ended");
                self.metrics.disconnected();
                self.state.send_modify(|state| state.open = false);
            }
        }
    }

    /// Does what the machine says; false = the stream is gone.
    async fn act(&self, output: Output, stream: &mut Stream) -> bool {
        match output {
            Output::Dial => {
                *stream = dial_in_background(self.identities.clone());
                true
            }
            Output::Say(mut message) => {
                if let FromAgent::Heartbeat(beat) = &mut message {
                    beat.trust = self.identities.trust();
                }
                say(stream, &message).await
            }
            Output::Hangup { why } => {
                warn!(?why, "leaving the stream to the hub");
                *stream = Stream::default();
                true
            }
            Output::Bundle(number, ledger) => {
                let trace_parent = std::mem::take(&mut stream.trace_parent);
                info!(
                    plan = %number, entries = ledger.entries().len(),
                    trace_id = spans::trace_id(&trace_parent), "took a bundle"
                );
                // The receiver lives as long as the process.
                let _ = self.bundles.send(Taken { number, ledger, trace_parent }).await;
                true
            }
        }
    }

    fn on_event(&self, event: Option<Event>, stream: &mut Stream) -> Option<Input> {
        let trouble = |Trouble { why, refused }| {
            let same = self.state.borrow().trouble == why;
            if !same {
                warn!(%why, "no stream to the hub");
            }
            self.state.send_replace(LinkState { open: false, trouble: why, refused });
        };
        match event {
            Some(Event::Connected { outbox }) => {
                stream.outbox = Some(outbox);
                Some(Input::Connected)
            }
            Some(Event::Heard(FromHub::Trust(ca_pem))) => {
                self.identities.tell(ca_pem);
                None
            }
            Some(Event::Heard(FromHub::Crossing(held))) => {
                self.crossing_held.send_replace(Some(held));
                None
            }
            Some(Event::Heard(message)) => {
                if let FromHub::Bundle(update) = &message {
                    stream.trace_parent.clone_from(&update.trace_parent);
                }
                Some(Input::Heard(message))
            }
            Some(Event::Ended(why)) => {
                trouble(why);
                self.crossing_held.send_replace(None);
                *stream = Stream::default();
                Some(Input::Disconnected)
            }
            None => {
                self.crossing_held.send_replace(None);
                *stream = Stream::default();
                Some(Input::Disconnected)
            }
        }
    }
}

async fn until(clock: Clock, deadline: Option<Millis>) {
    match deadline {
        Some(at) => clock.until(at).await,
        None => std::future::pending().await,
    }
}

async fn next_event(stream: &mut Stream) -> Option<Event> {
    match &mut stream.events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn say(stream: &Stream, message: &FromAgent) -> bool {
    let Some(outbox) = &stream.outbox else { return false };
    for part in agent_messages(message) {
        let sent = tokio::time::timeout(SEND_TIMEOUT, outbox.send(part)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return false;
        }
    }
    true
}

fn dial_in_background(identities: Arc<Identities>) -> Stream {
    let (events_tx, events) = mpsc::channel(INBOX);
    let task = tokio::spawn(async move {
        let trouble = match tokio::time::timeout(DIAL_TIMEOUT, connect(&identities)).await {
            Ok(Ok(client)) => talk(client, &events_tx).await,
            Ok(Err(trouble)) => trouble,
            Err(_) => Trouble::of("the hub does not answer"),
        };
        if trouble.refused.as_deref() == Some(Reason::CertificateExpired.as_str()) {
            identities.doubt();
        }
        // The loop may have turned to another stream: then nobody wants to know.
        let _ = events_tx.send(Event::Ended(trouble)).await;
    });
    let (task, events) = (Some(task.abort_handle()), Some(events));
    Stream { task, events, outbox: None, trace_parent: String::new() }
}

type Client = FleetClient<tonic::transport::Channel>;

async fn connect(identities: &Identities) -> Result<Client, Trouble> {
    let identity = identities.obtain().await.map_err(|error| Trouble {
        why: error.to_string(),
        refused: match error {
            IdentityError::Refused { reason, .. } => Some(reason),
            // Nobody refused, but no later try will end otherwise either.
            IdentityError::Dial(error) if error.is_other_hub() => Some("CaHashMismatch".to_owned()),
            IdentityError::NoToken { .. } => Some("NoToken".to_owned()),
            IdentityError::Dial(_) | IdentityError::Secret { .. } | IdentityError::Pki(_) => None,
        },
    })?;
    let trust = Trust::Ca(identity.ca_pem.clone());
    let channel = dial::dial(&identities.hub, &trust, Some(&identity.leaf)).await;
    let channel = channel.map_err(|error| Trouble::of(error.to_string()))?;
    Ok(FleetClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
        .accept_compressed(tonic::codec::CompressionEncoding::Zstd)
        .send_compressed(tonic::codec::CompressionEncoding::Zstd))
}

/// Carries a stream until it ends; says why it did.
async fn talk(mut client: Client, events: &mpsc::Sender<Event>) -> Trouble {
    let (outbox, messages) = mpsc::channel(OUTBOX);
    if events.send(Event::Connected { outbox }).await.is_err() {
        return Trouble::of("");
    }
    // The hub may answer only after our hello, which goes out while this waits.
    let mut inbound = match client.session(ReceiverStream::new(messages)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status_trouble(&status),
    };
    let mut assembler = HubAssembler::default();
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Trouble::of("the hub closed the stream"),
            Err(status) => return status_trouble(&status),
        };
        match assembler.push(message) {
            Ok(None) => {}
            Ok(Some(message)) => {
                if events.send(Event::Heard(message)).await.is_err() {
                    return Trouble::of("");
                }
            }
            Err(error) => return Trouble::of(format!("the hub sent what has no meaning: {error}")),
        }
    }
}

fn status_trouble(status: &tonic::Status) -> Trouble {
    let refused = status.metadata().get("fairlead-reason").and_then(|value| value.to_str().ok());
    let refused = refused.map(str::to_owned);
    let reason = refused.clone().unwrap_or_else(|| status.code().to_string());
    let why = match status.message() {
        "" => format!("{reason}: {}", dial::root_cause(status)),
        message => format!("{reason}: {message}"),
    };
    Trouble { why, refused }
}

#[cfg(test)]
#[path = "uplink_test.rs"]
mod tests;
