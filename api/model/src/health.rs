//! Evidence about members and doors, and what is made of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{MemberId, Millis};

/// How one probe of a door ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeOutcome {
    /// The door answered.
    Answered,
    /// The connection was refused or reset, or TLS failed: somebody is there, the door is not.
    Refused,
    /// Nothing came back in time.
    TimedOut,
}

/// Whether an entry can reach a member's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Reach {
    /// No verdict yet; the plan stands.
    #[default]
    Unknown,
    /// It answers.
    Reachable,
    /// It refuses.
    Refused,
    /// It does not answer.
    TimedOut,
}

impl Reach {
    /// True when the verdict is that the door cannot be reached.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Refused | Self::TimedOut)
    }
}

/// What an agent found about its peers, by peer.
pub type ProbeReport = BTreeMap<MemberId, PeerReach>;

/// A verdict about one peer's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReach {
    /// The verdict.
    pub reach: Reach,
    /// Since when.
    pub since: Millis,
}

/// Whether an agent reaches the API server of its own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApiServer {
    /// It does, or has not tried for long enough to know.
    #[default]
    Answers,
    /// Every watch is lost: nothing can be read or written.
    Lost,
}

/// What the hub holds a member for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum MemberState {
    /// Registered, never connected.
    #[default]
    Joined,
    /// Its stream is up.
    Up,
    /// Its stream is up or just gone, and some evidence speaks against its door.
    Suspect,
    /// Its stream, or its agent's way to the API server, is gone; its door is not proven dead, so its
    /// traffic stays.
    AgentLost,
    /// Its stream is gone and witnesses agree that its door is dead.
    Down,
    /// It was Down and is back, not yet trusted.
    Recovering,
}

/// What the hub knows of a member's health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberHealth {
    /// What the hub holds it for.
    pub state: MemberState,
    /// Since when.
    pub since: Millis,
    /// What its peers say of its door, by peer.
    pub witnesses: BTreeMap<MemberId, PeerReach>,
    /// What the hub itself says of its door, by outcomes of requests; none where that is not asked for.
    pub own: Option<PeerReach>,
}
