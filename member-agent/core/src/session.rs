//! The agent's side of the stream to the hub.
//!
//! Owns what is said when, which bundle counts, and when to try again. The driver (`uplink`) dials,
//! carries messages and keeps time; it tells this machine what happened and does what it answers.
//!
//! ```text
//!   Down ──deadline──▶ Dialing ──connected──▶ Greeting ──welcome──▶ Open
//!    ▲                    │ failed                │ silence, refusal   │ silence, broken bundle
//!    └────────────────────┴───────────────────────┴────────────────────┘  backoff with jitter
//! ```
//!
//! Snapshots: the newest wins, one delta is in flight until the hub took it. Bundles: nobody moves to
//! an older number; a delta that does not fit drops the stream, and the next hello claims no bundle,
//! so that the hub sends everything once. Reports: the newest of each kind, again after a reconnect.
//! Losing the stream never changes what the member holds.

use std::cmp::Ordering;

use fairlead_model::health::{ApiServer, ProbeReport};
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::session::{
    ApplyReport, Beat, BundleUpdate, FromAgent, FromHub, Hello, OverlayReport, PROTOCOL,
    SnapshotUpdate, TRAFFIC_SINCE, Welcome,
};
use fairlead_model::traffic::TrafficReport;
use fairlead_model::{ClusterUid, MemberId, Millis, PlanNumber, Reason, SnapshotNumber};

use crate::own::exception;

/// From one of our heartbeats to the next.
pub const HEARTBEAT_MS: u64 = 2_000;
/// A hub that says nothing for that long is gone.
pub const SILENCE_MS: u64 = 10_000;
/// A hub that does not answer a hello for that long is gone.
pub const GREETING_MS: u64 = 10_000;
/// The first wait before a new try.
pub const BACKOFF_MIN_MS: u64 = 200;
/// The longest wait before a new try.
pub const BACKOFF_MAX_MS: u64 = 10_000;
/// A stream that stood that long was a good one: the next wait is short again.
pub const GOOD_STREAM_MS: u64 = 5_000;

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the member.
    pub member: MemberId,
    /// Its cluster.
    pub uid: ClusterUid,
    /// Version of the agent.
    pub agent_version: String,
    /// Rises with every start.
    pub incarnation: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Nothing but time.
    Tick,
    /// The dial that was asked for succeeded.
    Connected,
    /// The dial failed, or the stream broke.
    Disconnected,
    /// The hub said something.
    Heard(FromHub),
    /// The snapshot is now this.
    Snapshot(Ledger),
    /// Something became of a plan.
    Applied(ApplyReport),
    /// Verdicts about peers changed.
    Probes(ProbeReport),
    /// The overlay changed.
    Overlay(OverlayReport),
    /// Whether our API server can be reached changed.
    ApiServer(ApiServer),
    /// What gateways did since the last report. Not kept: a report that nobody hears is old news.
    Traffic(TrafficReport),
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Dial the hub.
    Dial,
    /// Say this on the stream.
    Say(FromAgent),
    /// Drop the stream.
    Hangup {
        /// Why, for the log.
        why: Hangup,
    },
    /// This bundle counts from now on.
    Bundle(PlanNumber, Ledger),
}

/// Why we drop a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// The hub fell silent.
    Silence,
    /// The hub speaks another major version of the protocol.
    Version,
    /// A bundle did not fit its digest or its base.
    BrokenBundle,
    /// The hub said something out of turn.
    OutOfTurn,
}

#[derive(Debug, Clone, PartialEq)]
enum Link {
    Down { retry_at: Millis },
    Dialing,
    Greeting { since: Millis },
    Open(Open),
}

/// State of an open stream.
#[derive(Debug, Clone, PartialEq)]
struct Open {
    since: Millis,
    heard_at: Millis,
    beat_at: Millis,
    /// What the hub holds of ours; none = it must get everything.
    base: Option<Ledger>,
    /// What is on its way.
    in_flight: Option<(SnapshotNumber, Ledger)>,
    /// The hub has heard at least one number of this stream, so that it knows it is current.
    said_current: bool,
    /// The hub knows traffic reports.
    takes_traffic: bool,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Session {
    identity: Identity,
    link: Link,
    failures: u32,
    /// The next hello claims no bundle.
    claim_nothing: bool,
    bundle: Option<(PlanNumber, Digest, Ledger)>,
    snapshot: Option<Ledger>,
    /// The last snapshot that the hub took, for resuming.
    taken: Option<(SnapshotNumber, Ledger)>,
    sequence: u64,
    applied: Option<ApplyReport>,
    probes: Option<ProbeReport>,
    overlay: Option<OverlayReport>,
    api: ApiServer,
}

impl Session {
    /// A session that dials at once. `bundle` is the last one that was kept on disk.
    pub fn new(identity: Identity, bundle: Option<(PlanNumber, Ledger)>, now: Millis) -> Self {
        let bundle = bundle.map(|(number, ledger)| (number, ledger.digest(), ledger));
        Self {
            identity,
            link: Link::Down { retry_at: now },
            failures: 0,
            claim_nothing: false,
            bundle,
            snapshot: None,
            taken: None,
            sequence: 0,
            applied: None,
            probes: None,
            overlay: None,
            api: ApiServer::default(),
        }
    }

    /// When a [`Input::Tick`] is due; none while a dial is under way.
    pub fn next_deadline(&self) -> Option<Millis> {
        match &self.link {
            Link::Down { retry_at } => Some(*retry_at),
            Link::Dialing => None,
            Link::Greeting { since } => Some(since.plus(GREETING_MS)),
            Link::Open(open) => Some(open.beat_at.min(open.heard_at.plus(SILENCE_MS))),
        }
    }

    /// True while the hub and we talk.
    pub fn is_open(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// True when the hub holds all that we last reported.
    pub fn is_current(&self) -> bool {
        match &self.link {
            Link::Open(open) => open.in_flight.is_none() && open.base == self.snapshot,
            _ => false,
        }
    }

    /// Takes what happened; says what to do. `jitter` is a number in 0..1 that spreads the reconnects
    /// of many agents.
    pub fn on(&mut self, input: Input, now: Millis, jitter: f64) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Tick => self.on_tick(now, jitter, &mut out),
            Input::Connected => self.on_connected(now, &mut out),
            Input::Disconnected => self.go_down(now, jitter),
            Input::Heard(message) => self.on_heard(message, now, jitter, &mut out),
            Input::Snapshot(ledger) => self.snapshot = Some(ledger),
            Input::Applied(report) => self.on_applied(report, &mut out),
            Input::Probes(report) => {
                self.say_if_open(FromAgent::Probes(report.clone()), &mut out);
                self.probes = Some(report);
            }
            Input::Overlay(report) => {
                self.say_if_open(FromAgent::Overlay(report.clone()), &mut out);
                self.overlay = Some(report);
            }
            Input::ApiServer(api) => {
                self.api = api;
                if let Link::Open(open) = &mut self.link {
                    open.beat_at = now;
                    self.on_tick(now, jitter, &mut out);
                }
            }
            Input::Traffic(report) => {
                if matches!(&self.link, Link::Open(open) if open.takes_traffic) {
                    out.push(Output::Say(FromAgent::Traffic(report)));
                }
            }
        }
        self.say_snapshot(&mut out);
        out
    }

    fn on_tick(&mut self, now: Millis, jitter: f64, out: &mut Vec<Output>) {
        match &mut self.link {
            Link::Down { retry_at } if *retry_at <= now => {
                self.link = Link::Dialing;
                out.push(Output::Dial);
            }
            Link::Greeting { since } if now.since(*since) >= GREETING_MS => {
                self.hang_up(Hangup::Silence, now, jitter, out);
            }
            Link::Open(open) if now.since(open.heard_at) >= SILENCE_MS => {
                self.hang_up(Hangup::Silence, now, jitter, out);
            }
            Link::Open(open) if open.beat_at <= now => {
                open.beat_at = now.plus(HEARTBEAT_MS);
                out.push(Output::Say(FromAgent::Heartbeat(Beat {
                    now,
                    api: self.api,
                    trust: None,
                })));
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.link = Link::Greeting { since: now };
        let claim = self.bundle.as_ref().filter(|_| !self.claim_nothing);
        out.push(Output::Say(FromAgent::Hello(Hello {
            member: self.identity.member.clone(),
            uid: self.identity.uid.clone(),
            protocol: PROTOCOL,
            agent_version: self.identity.agent_version.clone(),
            incarnation: self.identity.incarnation,
            bundle: claim.map(|(number, digest, _)| (*number, *digest)),
            now,
        })));
    }

    fn on_heard(&mut self, message: FromHub, now: Millis, jitter: f64, out: &mut Vec<Output>) {
        if let (Link::Greeting { .. }, FromHub::Welcome(welcome)) = (&self.link, &message) {
            return self.on_welcome(welcome, now, jitter, out);
        }
        let Link::Open(open) = &mut self.link else {
            return self.hang_up(Hangup::OutOfTurn, now, jitter, out);
        };
        open.heard_at = now;
        match message {
            FromHub::Welcome(_) => self.hang_up(Hangup::OutOfTurn, now, jitter, out),
            // Whom to believe is the business of who has the certificate.
            FromHub::Heartbeat(_) | FromHub::Trust(_) | FromHub::Crossing(_) => {}
            FromHub::SnapshotWanted => {
                open.base = None;
                open.in_flight = None;
                open.said_current = false;
            }
            FromHub::SnapshotTaken(number) => {
                // Only what is in flight can be taken; anything else is old news.
                if let Some((_, ledger)) = open.in_flight.take_if(|(sent, _)| *sent == number) {
                    open.base = Some(ledger.clone());
                    self.taken = Some((number, ledger));
                }
            }
            FromHub::Bundle(update) => self.on_bundle(update, now, jitter, out),
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome, now: Millis, jitter: f64, out: &mut Vec<Output>) {
        if welcome.protocol.major != PROTOCOL.major {
            return self.hang_up(Hangup::Version, now, jitter, out);
        }
        let resumed = self
            .taken
            .as_ref()
            .filter(|(number, ledger)| welcome.snapshot == Some((*number, ledger.digest())));
        self.link = Link::Open(Open {
            since: now,
            heard_at: now,
            beat_at: now.plus(HEARTBEAT_MS),
            base: resumed.map(|(_, ledger)| ledger.clone()),
            in_flight: None,
            said_current: false,
            takes_traffic: welcome.protocol.minor >= TRAFFIC_SINCE,
        });
        let reports = [
            self.probes.clone().map(FromAgent::Probes),
            self.overlay.clone().map(FromAgent::Overlay),
            self.applied.clone().map(FromAgent::Applied),
        ];
        out.extend(reports.into_iter().flatten().map(Output::Say));
    }

    /// Sends what the hub does not hold yet, unless something is on its way. After each welcome
    /// something is sent even if nothing changed: it tells the hub that what it holds is current.
    fn say_snapshot(&mut self, out: &mut Vec<Output>) {
        let (Link::Open(open), Some(snapshot)) = (&mut self.link, &self.snapshot) else { return };
        let current = open.base.as_ref() == Some(snapshot) && open.said_current;
        if open.in_flight.is_some() || current {
            return;
        }
        self.sequence += 1;
        let number =
            SnapshotNumber { incarnation: self.identity.incarnation, sequence: self.sequence };
        let delta = match &open.base {
            Some(base) => snapshot.delta_from(base),
            None => snapshot.full(),
        };
        open.in_flight = Some((number, snapshot.clone()));
        open.said_current = true;
        out.push(Output::Say(FromAgent::Snapshot(SnapshotUpdate { number, delta })));
    }

    fn on_bundle(&mut self, update: BundleUpdate, now: Millis, jitter: f64, out: &mut Vec<Output>) {
        let number = update.number;
        if let Some((held, digest, _)) = &self.bundle {
            match number.cmp(held) {
                Ordering::Less => return refuse(number, *held, out),
                // Said again: what we hold is what is meant.
                Ordering::Equal if update.delta.digest == *digest => {
                    let again = self.applied.clone().filter(|report| report.number == number);
                    out.extend(again.map(|report| Output::Say(FromAgent::Applied(report))));
                    self.claim_nothing = false;
                    return;
                }
                Ordering::Equal if !self.claim_nothing => return refuse(number, *held, out),
                Ordering::Equal | Ordering::Greater => {}
            }
        }
        let empty = Ledger::default();
        let base = match (&self.bundle, update.base) {
            (_, None) if !update.delta.based => Some(&empty),
            (Some((held, _, ledger)), Some(base)) if *held == base && !self.claim_nothing => {
                Some(ledger)
            }
            _ => None,
        };
        let Some(ledger) = base.and_then(|base| base.apply(&update.delta).ok()) else {
            self.claim_nothing = true;
            return self.hang_up(Hangup::BrokenBundle, now, jitter, out);
        };
        self.claim_nothing = false;
        self.bundle = Some((number, update.delta.digest, ledger.clone()));
        out.push(Output::Bundle(number, ledger));
    }

    fn on_applied(&mut self, report: ApplyReport, out: &mut Vec<Output>) {
        let current = self.bundle.as_ref().map(|(number, ..)| *number);
        self.say_if_open(FromAgent::Applied(report.clone()), out);
        if current.is_none_or(|current| report.number >= current) {
            self.applied = Some(report);
        }
    }

    fn say_if_open(&self, message: FromAgent, out: &mut Vec<Output>) {
        if self.is_open() {
            out.push(Output::Say(message));
        }
    }

    fn hang_up(&mut self, why: Hangup, now: Millis, jitter: f64, out: &mut Vec<Output>) {
        out.push(Output::Hangup { why });
        self.go_down(now, jitter);
    }

    fn go_down(&mut self, now: Millis, jitter: f64) {
        match &self.link {
            Link::Down { .. } => return,
            Link::Open(open) if now.since(open.since) >= GOOD_STREAM_MS => self.failures = 0,
            Link::Dialing | Link::Greeting { .. } | Link::Open(_) => {}
        }
        self.link = Link::Down { retry_at: now.plus(backoff_ms(self.failures, jitter)) };
        self.failures = self.failures.saturating_add(1);
    }
}

fn refuse(number: PlanNumber, held: PlanNumber, out: &mut Vec<Output>) {
    let message = format!("plan {number} is refused: {held} was seen before");
    out.push(Output::Say(FromAgent::Applied(ApplyReport {
        number,
        refused: Some(exception(Reason::OldNumber, message)),
        ..ApplyReport::default()
    })));
}

/// Doubles from the least to the longest wait; jitter takes up to half of it away, so that agents
/// that lost the hub together do not come back together.
pub fn backoff_ms(failures: u32, jitter: f64) -> u64 {
    let doubled = BACKOFF_MIN_MS.saturating_mul(1 << failures.min(10));
    let whole = doubled.min(BACKOFF_MAX_MS);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "at most ten thousand times a number of 0 to 1"
    )]
    let less = (whole as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as u64;
    whole - less
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
