//! What the hub holds each member for.
//!
//! Owns the states of members, what witnesses say of their doors, and how long evidence must stand.
//! Never opens or closes a stream and never takes traffic away: a lost stream alone, or an agent that
//! lost its API server, is `AgentLost`, and its traffic stays. A verdict about a member that nobody registered is dropped; a report of a
//! witness whose own stream is gone, or that was silent for too long, counts for nothing.
//!
//! ```text
//!                      ┌──────────── stream back ───────────┐
//!  Joined ─stream─▶ Up ─lost─▶ AgentLost ─accused─▶ Suspect ─it stands─▶ Down
//!                   ▲ └─accused─▶ Suspect ◀─────────┘                     │ stream back, or
//!                   └────────── after a while ◀── Recovering ◀────────────┘ witnesses reach it
//! ```
//!
//! *Accused*: more witnesses find the door dead than alive. A lost stream and an accusation of two
//! make a member Down when they stood for [`STANDS_MS`]; the word of a single one has to stand three
//! times as long. A majority and not every witness, so that one that lies can neither bring another
//! down nor keep a dead one up. Down ends by proof only: no news is no proof.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::health::{ApiServer, MemberHealth, MemberState, PeerReach, ProbeReport, Reach};
use fairlead_model::{MemberId, Millis};
use fairlead_planner::witness::{self, Region};

use crate::hold::Sight;

/// How long two witnesses must agree. Short: their own verdicts are settled already, and traffic has
/// left by the agents' overlays before the hub judges.
pub const STANDS_MS: u64 = 1_000;
/// How long the word of a single witness must stand.
pub const STANDS_ALONE_MS: u64 = 3 * STANDS_MS;
/// How long a member that was Down is shown as Recovering.
pub const RECOVERING_MS: u64 = 10_000;
/// A witness that said nothing for that long, not even a heartbeat, is not believed: three heartbeats.
pub const WITNESS_MS_MAX: u64 = 3 * crate::session::HEARTBEAT_MS;

/// What the hub holds every registered member for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    members: BTreeMap<MemberId, Member>,
    /// What the hub itself found about members' doors, by outcomes of requests where that is asked for.
    own: ProbeReport,
    latest: Millis,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Member {
    health: MemberHealth,
    stream: Stream,
    /// Since when it is accused without a break.
    accused_since: Option<Millis>,
    region: Region,
    /// Of whom it says something.
    speaks_of: BTreeSet<MemberId>,
    /// What others say of it, whether they are believed or not.
    said: BTreeMap<MemberId, PeerReach>,
    /// Its last sign of life.
    heard_at: Millis,
    /// Whether its agent reaches its API server, as the open stream says.
    api: ApiServer,
}

/// A member's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stream {
    /// It never had one.
    #[default]
    Never,
    Open,
    Lost {
        since: Millis,
    },
}

/// What happened to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is registered; `connected_before` tells whether the store remembers a stream of it.
    Registered {
        /// Whether it ever had a stream.
        before: Connected,
    },
    /// It has a stream.
    Connected,
    /// Its stream is gone.
    Lost,
}

/// Whether a member ever had a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connected {
    /// Never.
    Never,
    /// Before this hub process started.
    Before,
}

/// Whether an event changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// It did not.
    No,
}

/// What is known of a stream, for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Never,
    Open,
    /// Open, but the agent does not reach its API server.
    Headless,
    Lost,
}

/// What witnesses say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// Nobody says anything.
    Silence,
    /// The door answers at least as many as it fails.
    Answers,
    /// One finds it dead, nobody alive.
    OneAccuses,
    /// Two or more, and the most, find it dead.
    Agreed,
}

impl Evidence {
    const fn accuses(self) -> bool {
        matches!(self, Self::OneAccuses | Self::Agreed)
    }

    /// How long it must stand before it makes a member Down.
    const fn stands_ms(self) -> u64 {
        match self {
            Self::Agreed => STANDS_MS,
            Self::OneAccuses | Self::Answers | Self::Silence => STANDS_ALONE_MS,
        }
    }
}

/// Whether what is seen was seen for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Young,
    Ripe,
}

/// The state that follows. The whole table. `age` is that of the accusation where there is one, else
/// that of the recovery.
const fn next(state: MemberState, line: Line, evidence: Evidence, age: Age) -> MemberState {
    use MemberState::{AgentLost, Down, Joined, Recovering, Suspect, Up};
    match (line, state) {
        // Nothing is expected of it yet.
        (Line::Never, Joined | Up | Suspect | AgentLost | Down | Recovering) => Joined,
        (Line::Open | Line::Headless, Down) => Recovering,
        (Line::Open | Line::Headless, Recovering) if matches!(age, Age::Young) => Recovering,
        (Line::Open | Line::Headless, Joined | Up | Suspect | AgentLost | Recovering) => {
            match (evidence.accuses(), line) {
                (true, _) => Suspect,
                (false, Line::Headless) => AgentLost,
                (false, Line::Never | Line::Open | Line::Lost) => Up,
            }
        }
        (Line::Lost, Down) => match evidence {
            Evidence::Answers => Recovering,
            Evidence::Silence | Evidence::OneAccuses | Evidence::Agreed => Down,
        },
        (Line::Lost, Joined | Up | Suspect | AgentLost | Recovering) => {
            match (evidence.accuses(), age, state) {
                (true, Age::Ripe, _) => Down,
                (true | false, Age::Young, Recovering) => Recovering,
                (true, Age::Young, _) => Suspect,
                (false, _, _) => AgentLost,
            }
        }
    }
}

impl Health {
    /// Takes an event in; tells whether anything changed.
    pub fn apply(&mut self, member: &MemberId, event: Event, now: Millis) -> Changed {
        let entry = self.members.entry(member.clone()).or_insert_with(|| Member {
            health: MemberHealth { since: now, ..MemberHealth::default() },
            heard_at: now,
            ..Member::default()
        });
        match (event, entry.stream) {
            (Event::Registered { before: Connected::Before }, Stream::Never) => {
                entry.stream = Stream::Lost { since: now };
            }
            (Event::Registered { .. }, _) => {}
            (Event::Connected, _) => {
                entry.stream = Stream::Open;
                entry.heard_at = now;
                entry.api = ApiServer::default();
            }
            (Event::Lost, Stream::Open) => {
                entry.stream = Stream::Lost { since: now };
                // What a witness said before it was lost is no evidence of what is so now.
                let spoke_of = std::mem::take(&mut entry.speaks_of);
                self.silence(member, &spoke_of);
                return self.judge(spoke_of.iter().chain([member]), now);
            }
            (Event::Lost, Stream::Never | Stream::Lost { .. }) => {}
        }
        self.judge([member], now)
    }

    /// Says where a member is: witnesses are chosen across regions.
    pub fn place(&mut self, member: &MemberId, region: Region, now: Millis) -> Changed {
        match self.members.get_mut(member) {
            Some(entry) if entry.region != region => entry.region = region,
            Some(_) | None => return Changed::No,
        }
        let spoken_of = self.members.get(member).map(|m| m.speaks_of.clone()).unwrap_or_default();
        self.judge(&spoken_of, now)
    }

    /// An agent said whether it reaches its API server.
    pub fn api_server(&mut self, member: &MemberId, api: ApiServer, now: Millis) -> Changed {
        let Some(entry) = self.members.get_mut(member) else { return Changed::No };
        entry.api = api;
        self.judge([member], now)
    }

    /// A witness gave a sign of life: what it said goes on counting.
    pub fn heard(&mut self, witness: &MemberId, now: Millis) -> Changed {
        let Some(entry) = self.members.get_mut(witness) else { return Changed::No };
        let was_believed = entry.is_believed(now);
        entry.heard_at = entry.heard_at.max(now);
        if was_believed {
            return Changed::No;
        }
        let spoken_of = entry.speaks_of.clone();
        self.judge(&spoken_of, now)
    }

    /// Replaces all that one member says of its peers' doors.
    pub fn report_at(&mut self, witness: &MemberId, report: &ProbeReport, now: Millis) -> Changed {
        let Some(entry) = self.members.get_mut(witness) else { return Changed::No };
        entry.heard_at = entry.heard_at.max(now);
        let before = std::mem::take(&mut entry.speaks_of);
        let mut speaks_of = BTreeSet::new();
        for (subject, said) in report {
            // Nobody is a witness of itself, and no verdict is no evidence.
            let counts = subject != witness && said.reach != Reach::Unknown;
            if let Some(entry) = self.members.get_mut(subject).filter(|_| counts) {
                let held = entry.said.entry(witness.clone()).or_insert(*said);
                // A report that was overtaken on its way says nothing new.
                if held.since <= said.since {
                    *held = *said;
                }
                speaks_of.insert(subject.clone());
            }
        }
        self.silence(witness, &before.difference(&speaks_of).cloned().collect());
        if let Some(entry) = self.members.get_mut(witness) {
            entry.speaks_of.clone_from(&speaks_of);
        }
        self.judge(before.union(&speaks_of), now)
    }

    /// [`Self::report_at`] the time of the newest event, for callers without a clock at hand.
    pub fn report(&mut self, witness: &MemberId, report: &ProbeReport) -> Changed {
        self.report_at(witness, report, self.latest)
    }

    /// Replaces all that the hub itself found: it may be one of the witnesses.
    pub fn report_own(&mut self, report: ProbeReport, now: Millis) -> Changed {
        let before = std::mem::replace(&mut self.own, report);
        let now_said = self.own.clone();
        let differs = |id: &&MemberId| before.get(*id) != now_said.get(*id);
        let differing: BTreeSet<&MemberId> =
            before.keys().chain(now_said.keys()).filter(differs).collect();
        self.judge(differing, now)
    }

    /// Time passed.
    pub fn tick(&mut self, now: Millis) -> Changed {
        let all: Vec<MemberId> = self.members.keys().cloned().collect();
        self.judge(&all, now)
    }

    /// When [`Self::tick`] has something to do at the latest; later than the time of the last call.
    pub fn next_deadline(&self) -> Option<Millis> {
        let deadlines = self.members.values().flat_map(|member| {
            let expires = member.is_believed(self.latest) && !member.speaks_of.is_empty();
            let expires = expires.then(|| member.heard_at.plus(WITNESS_MS_MAX));
            expires.into_iter().chain(member.ripe_at())
        });
        deadlines.filter(|at| *at > self.latest).min()
    }

    /// Forgets a member and what it said of others.
    pub fn remove(&mut self, member: &MemberId) {
        self.own.remove(member);
        let Some(gone) = self.members.remove(member) else { return };
        self.silence(member, &gone.speaks_of);
        for witness in gone.said.keys() {
            if let Some(witness) = self.members.get_mut(witness) {
                witness.speaks_of.remove(member);
            }
        }
        self.judge(&gone.speaks_of, self.latest);
    }

    /// What a member is held for.
    pub fn of(&self, member: &MemberId) -> MemberHealth {
        self.members.get(member).map(|entry| entry.health.clone()).unwrap_or_default()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&MemberId, &MemberHealth)> {
        self.members.iter().map(|(id, entry)| (id, &entry.health))
    }

    /// Who has a stream, for [`crate::hold::fleet_vanished`]. Members that never had one are left out.
    pub fn sights(&self) -> BTreeMap<MemberId, Sight> {
        let sight = |(id, member): (&MemberId, &Member)| {
            let sight = match member.stream {
                Stream::Never => return None,
                Stream::Open => Sight::Seen,
                Stream::Lost { since } => Sight::Lost { since },
            };
            Some((id.clone(), sight))
        };
        self.members.iter().filter_map(sight).collect()
    }

    /// Takes back what a witness said of these.
    fn silence(&mut self, witness: &MemberId, subjects: &BTreeSet<MemberId>) {
        for subject in subjects {
            if let Some(subject) = self.members.get_mut(subject) {
                subject.said.remove(witness);
            }
        }
    }

    /// Judges these members anew.
    fn judge<'a>(
        &mut self,
        members: impl IntoIterator<Item = &'a MemberId>,
        now: Millis,
    ) -> Changed {
        self.latest = self.latest.max(now);
        let mut changed = Changed::No;
        for id in members {
            let witnesses = self.witnesses_of(id, now);
            let Some(member) = self.members.get_mut(id) else { continue };
            if member.judge(witnesses, self.own.get(id), now) == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        changed
    }

    /// What is believed of a member's door: at most [`witness::WITNESSES_MAX`] count.
    fn witnesses_of(&self, subject: &MemberId, now: Millis) -> BTreeMap<MemberId, PeerReach> {
        let Some(member) = self.members.get(subject) else { return BTreeMap::new() };
        let believed = member.said.keys().filter_map(|id| {
            let witness = self.members.get(id).filter(|witness| witness.is_believed(now))?;
            Some((id, witness.region.as_deref()))
        });
        let chosen = witness::choose(subject, believed);
        chosen.into_iter().map(|id| (id.clone(), member.said[id])).collect()
    }
}

impl Member {
    fn is_believed(&self, now: Millis) -> bool {
        self.stream == Stream::Open && now.since(self.heard_at) < WITNESS_MS_MAX
    }

    fn line(&self) -> Line {
        match (self.stream, self.api) {
            (Stream::Never, _) => Line::Never,
            (Stream::Open, ApiServer::Answers) => Line::Open,
            (Stream::Open, ApiServer::Lost) => Line::Headless,
            (Stream::Lost { .. }, _) => Line::Lost,
        }
    }

    fn judge(
        &mut self,
        witnesses: BTreeMap<MemberId, PeerReach>,
        own: Option<&PeerReach>,
        now: Millis,
    ) -> Changed {
        let before = (
            self.health.state,
            self.health.witnesses == witnesses && self.health.own.as_ref() == own,
        );
        self.health.witnesses = witnesses;
        self.health.own = own.copied();
        let evidence = self.evidence(own);
        // The accusation that matters is one that stands while the stream is gone.
        self.accused_since = match (evidence.accuses(), self.stream) {
            (true, Stream::Lost { since }) => {
                Some(self.accused_since.unwrap_or(now).max(since).min(now))
            }
            _ => None,
        };
        let state = next(self.health.state, self.line(), evidence, self.age(evidence, now));
        if state != self.health.state {
            self.health.state = state;
            self.health.since = now;
        }
        if before == (state, true) { Changed::No } else { Changed::Yes }
    }

    fn evidence(&self, own: Option<&PeerReach>) -> Evidence {
        let said = || self.health.witnesses.values().chain(own);
        let against = said().filter(|s| s.reach.is_out()).count();
        let answers = said().filter(|s| s.reach == Reach::Reachable).count();
        match (against, answers) {
            (0, 0) => Evidence::Silence,
            (1, 0) => Evidence::OneAccuses,
            (against, answers) if against > answers => Evidence::Agreed,
            _ => Evidence::Answers,
        }
    }

    fn age(&self, evidence: Evidence, now: Millis) -> Age {
        let (since, needed) = match self.accused_since {
            Some(since) => (since, evidence.stands_ms()),
            None => (self.health.since, RECOVERING_MS),
        };
        if now.since(since) >= needed { Age::Ripe } else { Age::Young }
    }

    /// Times at which time alone may change its state, past ones included.
    fn ripe_at(&self) -> impl Iterator<Item = Millis> {
        let recovering = self.health.state == MemberState::Recovering;
        let recovered = recovering.then(|| self.health.since.plus(RECOVERING_MS));
        let accused = self.accused_since.filter(|_| self.health.state != MemberState::Down);
        let down = accused.into_iter().flat_map(|s| [s.plus(STANDS_MS), s.plus(STANDS_ALONE_MS)]);
        down.chain(recovered)
    }
}

#[cfg(test)]
#[path = "health_test.rs"]
mod tests;
