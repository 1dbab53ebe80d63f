//! One stream of one member: what it says, what it is told, when it ends.
//!
//! Owns the order of a session and every rule about a peer that breaks it. Never knows sockets or
//! other members; an agent can only report about itself. A broken rule ends this session with a
//! reason and changes nothing that was taken in before.
//!
//! ```text
//!  Greeting ──hello──▶ Numbering ──epoch_taken──▶ Open ──▶ Closed
//!      └── a wrong hello, silence, a broken rule ────────────▲
//! ```

use std::sync::Arc;

use fairlead_model::health::{ApiServer, ProbeReport};
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::session::{
    ApplyReport, BundleUpdate, FromAgent, FromHub, Hello, OverlayReport, PROTOCOL, Protocol,
    Welcome,
};
use fairlead_model::traffic::TrafficReport;
use fairlead_model::{ClusterUid, MemberId, Millis, Reason};

use crate::intake::{Held, Intake, Verdict};
use crate::push::{self, Push, Wanted};

/// How often both sides give a sign of life.
pub const HEARTBEAT_MS: u64 = 2_000;
/// Silence after which a stream is lost: five heartbeats, as on the other side. A machine that is
/// short of CPU misses two or three, and a lost stream moves no traffic anyway.
pub const SILENCE_MS_MAX: u64 = 5 * HEARTBEAT_MS;
/// Heartbeats after which an agent that sends no snapshot is taken to stand by the one that it was
/// offered. One could have been under way before the welcome arrived.
const BEATS_TO_CONFIRM: u8 = 2;

/// Who a certificate says the peer is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub uid: ClusterUid,
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Why.
    pub reason: Reason,
    /// Details and the next step.
    pub message: String,
}

impl Close {
    /// Puts the parts together.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What the caller must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Take an epoch above this one, put it into the store, and call [`Session::epoch_taken`].
    TakeEpoch {
        /// The highest epoch that the agent has seen.
        above: u64,
    },
    /// Send this.
    Send(FromHub),
    /// A snapshot was taken in.
    Snapshot(Held),
    /// What is held of the member is still true.
    Confirmed,
    /// What became of a plan.
    Applied(ApplyReport),
    /// What it found about its peers' doors.
    Probes(ProbeReport),
    /// Which overlay it applies.
    Overlay(OverlayReport),
    /// What its gateways did.
    Traffic(TrafficReport),
    /// Whether it reaches its API server changed.
    ApiServer(ApiServer),
    /// End the stream.
    Close(Close),
}

/// What the hub remembers of a member from earlier sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// The newest snapshot.
    pub snapshot: Option<Held>,
    /// The bundle that was last sent.
    pub bundle: Option<(Digest, Arc<Ledger>)>,
}

/// One stream of one member.
#[derive(Debug, Clone)]
pub struct Session {
    identity: Identity,
    hub_version: String,
    heard_at: Millis,
    beat_at: Millis,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Greeting,
    Numbering(Hello),
    Open(Box<Open>),
    Closed,
}

#[derive(Debug, Clone)]
struct Open {
    hello: Hello,
    epoch: u64,
    intake: Intake,
    push: Push,
    confirmation: Confirmation,
    /// What it said of its API server; every stream starts with a good one.
    api: ApiServer,
}

/// Whether the agent stands by the snapshot that it was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Confirmation {
    /// Nothing was offered, so silence says nothing.
    NotOffered,
    /// Offered; so many heartbeats came since.
    Offered(u8),
    Given,
}

impl Session {
    /// A new stream of the peer that this certificate belongs to.
    pub fn new(identity: Identity, hub_version: &str, now: Millis) -> Self {
        Self {
            identity,
            hub_version: hub_version.to_owned(),
            heard_at: now,
            beat_at: now,
            phase: Phase::Greeting,
        }
    }

    /// Who the peer is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the agent said first, once it was accepted.
    pub fn hello(&self) -> Option<&Hello> {
        match &self.phase {
            Phase::Numbering(hello) => Some(hello),
            Phase::Open(open) => Some(&open.hello),
            Phase::Greeting | Phase::Closed => None,
        }
    }

    /// The epoch, once it was taken.
    pub fn epoch(&self) -> Option<u64> {
        match &self.phase {
            Phase::Open(open) => Some(open.epoch),
            Phase::Greeting | Phase::Numbering(_) | Phase::Closed => None,
        }
    }

    /// The agent said something.
    pub fn message(&mut self, message: FromAgent, now: Millis) -> Vec<Output> {
        self.heard_at = now;
        match &mut self.phase {
            Phase::Greeting => self.greet(message),
            Phase::Numbering(_) => {
                self.end(Reason::Unreadable, "a message before the answer to the hello")
            }
            Phase::Open(open) => {
                let outputs = open.message(message);
                self.closing(outputs)
            }
            Phase::Closed => Vec::new(),
        }
    }

    /// The epoch that was asked for is in the store.
    pub fn epoch_taken(&mut self, epoch: u64, known: Remembered, now: Millis) -> Vec<Output> {
        let Phase::Numbering(hello) = &self.phase else { return Vec::new() };
        let hello = hello.clone();
        let intake = Intake::resume(known.snapshot);
        let welcome = Welcome {
            protocol: PROTOCOL,
            hub_version: self.hub_version.clone(),
            epoch,
            snapshot: intake.offer(),
            now,
        };
        let confirmation = match &welcome.snapshot {
            Some(_) => Confirmation::Offered(0),
            None => Confirmation::NotOffered,
        };
        let push = Push::new(epoch, hello.bundle, known.bundle);
        let api = ApiServer::default();
        self.phase = Phase::Open(Box::new(Open { hello, epoch, intake, push, confirmation, api }));
        vec![Output::Send(FromHub::Welcome(welcome))]
    }

    /// The member should hold this bundle from now on.
    pub fn want(&mut self, wanted: Wanted) -> Vec<Output> {
        match &mut self.phase {
            Phase::Open(open) => send_bundle(open.push.want(wanted)),
            Phase::Greeting | Phase::Numbering(_) | Phase::Closed => Vec::new(),
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now: Millis) -> Vec<Output> {
        if matches!(self.phase, Phase::Closed) {
            return Vec::new();
        }
        let silence = now.since(self.heard_at);
        if silence >= SILENCE_MS_MAX {
            return self.end(Reason::AgentLost, &format!("nothing heard for {silence} ms"));
        }
        let open = matches!(self.phase, Phase::Open(_));
        if !open || now.since(self.beat_at) < HEARTBEAT_MS {
            return Vec::new();
        }
        self.beat_at = now;
        vec![Output::Send(FromHub::Heartbeat(now))]
    }

    /// When [`Session::tick`] has something to do at the latest.
    pub fn wake_at(&self) -> Millis {
        self.heard_at.plus(SILENCE_MS_MAX).min(self.beat_at.plus(HEARTBEAT_MS))
    }

    /// Number of the newest bundle that was sent here.
    pub fn sent(&self) -> Option<fairlead_model::PlanNumber> {
        match &self.phase {
            Phase::Open(open) => open.push.sent(),
            Phase::Greeting | Phase::Numbering(_) | Phase::Closed => None,
        }
    }

    fn greet(&mut self, message: FromAgent) -> Vec<Output> {
        let FromAgent::Hello(hello) = message else {
            return self.end(Reason::Unreadable, "the first message must be a hello");
        };
        if let Err(close) = check_hello(&self.identity, &hello) {
            return self.end(close.reason, &close.message);
        }
        let above = hello.bundle.map_or(0, |(number, _)| number.epoch);
        self.phase = Phase::Numbering(hello);
        vec![Output::TakeEpoch { above }]
    }

    fn end(&mut self, reason: Reason, message: &str) -> Vec<Output> {
        self.phase = Phase::Closed;
        vec![Output::Close(Close::new(reason, message))]
    }

    fn closing(&mut self, outputs: Vec<Output>) -> Vec<Output> {
        if outputs.iter().any(|output| matches!(output, Output::Close(_))) {
            self.phase = Phase::Closed;
        }
        outputs
    }
}

impl Open {
    fn message(&mut self, message: FromAgent) -> Vec<Output> {
        match message {
            FromAgent::Hello(_) => close(Reason::Unreadable, "a second hello in one stream"),
            FromAgent::Snapshot(update) => self.snapshot(&update),
            FromAgent::Applied(report) => self.applied(report),
            FromAgent::Probes(report) => vec![Output::Probes(report)],
            FromAgent::Overlay(report) => vec![Output::Overlay(report)],
            FromAgent::Traffic(report) => vec![Output::Traffic(report)],
            FromAgent::Heartbeat(beat) => {
                let mut outputs = self.heartbeat();
                if std::mem::replace(&mut self.api, beat.api) != beat.api {
                    outputs.push(Output::ApiServer(beat.api));
                }
                outputs
            }
        }
    }

    fn snapshot(&mut self, update: &fairlead_model::session::SnapshotUpdate) -> Vec<Output> {
        match self.intake.update(update) {
            Verdict::Taken(held) => {
                self.confirmation = Confirmation::Given;
                let taken = FromHub::SnapshotTaken(held.number);
                vec![Output::Snapshot(held), Output::Send(taken)]
            }
            Verdict::AskFull => {
                self.confirmation = Confirmation::NotOffered;
                vec![Output::Send(FromHub::SnapshotWanted)]
            }
            Verdict::Ignore => Vec::new(),
            Verdict::Close(close) => vec![Output::Close(close)],
        }
    }

    fn applied(&mut self, report: ApplyReport) -> Vec<Output> {
        if push::is_fatal(&report) {
            let number = report.number;
            let mut outputs = vec![Output::Applied(report)];
            let message =
                format!("the agent holds a newer plan than {number}: another hub sent it");
            outputs.extend(close(Reason::OldNumber, &message));
            return outputs;
        }
        let next = self.push.applied(&report);
        let mut outputs = vec![Output::Applied(report)];
        outputs.extend(send_bundle(next));
        outputs
    }

    fn heartbeat(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        match self.confirmation {
            Confirmation::Offered(beats) if beats + 1 >= BEATS_TO_CONFIRM => {
                self.confirmation = Confirmation::Given;
                outputs.push(Output::Confirmed);
            }
            Confirmation::Offered(beats) => self.confirmation = Confirmation::Offered(beats + 1),
            Confirmation::Given => outputs.push(Output::Confirmed),
            Confirmation::NotOffered => {}
        }
        outputs.extend(send_bundle(self.push.heard()));
        outputs
    }
}

fn close(reason: Reason, message: &str) -> Vec<Output> {
    vec![Output::Close(Close::new(reason, message))]
}

fn send_bundle(update: Option<BundleUpdate>) -> Vec<Output> {
    update.map(|update| Output::Send(FromHub::Bundle(update))).into_iter().collect()
}

fn check_hello(identity: &Identity, hello: &Hello) -> Result<(), Close> {
    if hello.member != identity.member || hello.uid != identity.uid {
        return Err(Close::new(
            Reason::WrongIdentity,
            format!(
                "the certificate is for member {} of cluster {}, the hello for {} of {}",
                identity.member, identity.uid, hello.member, hello.uid
            ),
        ));
    }
    if !speaks(PROTOCOL, hello.protocol) {
        let Protocol { major, minor } = hello.protocol;
        return Err(Close::new(
            Reason::VersionUnsupported,
            format!(
                "the agent {} speaks protocol {major}.{minor}, this hub {}.{}: bring hub and agent \
                 within one version of each other",
                hello.agent_version, PROTOCOL.major, PROTOCOL.minor
            ),
        ));
    }
    Ok(())
}

/// Peers of one major understand each other; additions of newer minors are skipped by the older.
/// More than one minor apart was never tried.
const fn speaks(ours: Protocol, theirs: Protocol) -> bool {
    ours.major == theirs.major && ours.minor.abs_diff(theirs.minor) <= 1
}

/// Whether a new stream may take the place of the live one of the same member.
///
/// # Errors
/// [`Reason::OldNumber`] when the live one is of a later start of the agent: an old pod that goes on
/// must not push the new one out again and again.
pub fn check_takeover(live: Option<&Hello>, new: &Hello) -> Result<(), Close> {
    match live {
        Some(live) if live.incarnation > new.incarnation => Err(Close::new(
            Reason::OldNumber,
            format!(
                "a later start of this member's agent is connected ({} after {}); stop this one",
                live.incarnation, new.incarnation
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
