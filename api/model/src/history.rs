//! What was decided before: revisions of routes' decisions, why each came about, and what it moved.
//!
//! Owns the values only; `fairlead-hub-core` keeps them within bounds. A revision is a number that rises
//! with every round of planning in which traffic, or what a user asks for, changed; all routes that changed
//! in that round share it. No object and no capability is part of it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MemberId, Millis, RouteKey};

/// Names that one list of members carries; the rest is counted.
pub const NAMES_MAX: usize = 64;
/// Classes of entries of one route that are kept.
pub const CLASSES_MAX: usize = 64;
/// Moves told of one change.
pub const MOVES_MAX: usize = 64;
/// Causes told of one change, and lines about rules.
pub const CAUSES_MAX: usize = 8;

/// Members by name, as many as fit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Names {
    /// In order, at most [`NAMES_MAX`].
    pub names: Vec<MemberId>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Names {
    /// As many of them as fit.
    pub fn of(members: &BTreeSet<MemberId>) -> Self {
        let names: Vec<MemberId> = members.iter().take(NAMES_MAX).cloned().collect();
        let more = u32::try_from(members.len() - names.len()).unwrap_or(u32::MAX);
        Self { names, more }
    }

    /// True when there is nobody.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.more == 0
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names.iter().map(MemberId::as_str).collect();
        f.write_str(&names.join(", "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Where a route's requests go, by classes of entries that send alike.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shares {
    /// Classes, in the order of their first names; at most [`CLASSES_MAX`].
    pub classes: Vec<EntryClass>,
    /// Classes that did not fit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u32,
}

/// Entries that send a route's requests alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryClass {
    /// Who they are.
    pub entries: Names,
    /// Where requests go, in order; what gets nothing is absent.
    pub shares: Vec<Share>,
}

/// A share of a rule's requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Share {
    /// Where they go.
    #[serde(flatten)]
    pub to: Destination,
    /// In ten-thousandths of the rule's.
    pub share: u32,
}

/// Where a share of a rule's requests goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Destination {
    /// Index of the rule.
    pub rule: u16,
    /// `namespace/name:port` of a service that members export, else as the user wrote it.
    pub backend: String,
    /// Who answers; none = the entry itself.
    pub member: Option<MemberId>,
}

/// What moved for some entries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Move {
    /// For whom.
    pub entries: Names,
    /// Whose share it is.
    #[serde(flatten)]
    pub to: Destination,
    /// Before, in ten-thousandths of the rule's requests.
    pub before: u32,
    /// After.
    pub after: u32,
}

/// Why a decision changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody changed an object of the hub.
    Object {
        /// Its kind.
        kind: String,
        /// Its name, with its namespace if it has one.
        name: String,
        /// Its generation, where that is known.
        generation: Option<i64>,
        /// What about it, in words.
        what: String,
    },
    /// A member, or what is known of it, changed.
    Member {
        /// Who.
        member: MemberId,
        /// What about it, in words.
        what: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { kind, name, generation: Some(generation), what } => {
                write!(f, "{kind} {name} generation {generation}: {what}")
            }
            Self::Object { kind, name, generation: None, what } => {
                write!(f, "{kind} {name}: {what}")
            }
            Self::Member { member, what } => write!(f, "member {member}: {what}"),
        }
    }
}

/// What became of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It was not there before, as far as the history knows.
    Appeared,
    /// It is decided otherwise.
    Changed,
    /// It is no global route any more.
    Gone,
}

/// One change of a route's decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The revision.
    pub number: u64,
    /// When.
    pub at: Millis,
    /// The route.
    pub route: RouteKey,
    /// What became of it.
    pub change: Change,
    /// Why, at most [`CAUSES_MAX`].
    pub causes: Vec<Cause>,
    /// What differs in its rules, in words, at most [`CAUSES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// What moved, at most [`MOVES_MAX`].
    pub moved: Vec<Move>,
    /// Where requests go from then on.
    pub shares: Shares,
    /// The revision that the route was pinned to then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<u64>,
    /// The revision under which the rules are kept; none: too large to be kept, or the route is gone. Then
    /// nobody can roll back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<u64>,
}

impl Entry {
    /// Whether it has to do with a member: it is a cause, or gets or sends what moved.
    pub fn concerns(&self, member: &MemberId) -> bool {
        let caused =
            |cause: &Cause| matches!(cause, Cause::Member { member: who, .. } if who == member);
        let moved = |moved: &Move| {
            moved.to.member.as_ref() == Some(member) || moved.entries.names.contains(member)
        };
        self.causes.iter().any(caused) || self.moved.iter().any(moved)
    }
}

/// How much history there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HistorySize {
    /// Newest revision; 0 = there was none.
    pub newest: u64,
    /// Oldest revision that is kept; 0 = there is none.
    pub oldest: u64,
    /// Changes that are kept.
    pub entries: usize,
    /// Most that are.
    pub entries_max: usize,
    /// Bytes of them and of the rules that belong to them, as stored.
    pub bytes: usize,
    /// Most that are.
    pub bytes_max: usize,
}

/// `GET /api/v1/history[?route=ROUTE][&member=MEMBER][&limit=N]`: the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryView {
    /// The hub's clock.
    pub now: Millis,
    /// How much there is in all.
    pub size: HistorySize,
    /// Changes.
    pub entries: Vec<Entry>,
}

/// What differs between two revisions, `GET /api/v1/diff?from=N[&to=M][&route=ROUTE]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffView {
    /// The one.
    pub from: u64,
    /// The other.
    pub to: u64,
    /// Routes that differ.
    pub routes: Vec<RouteDiff>,
    /// Routes of which it is not known any more how they were at one of the two.
    pub unknown: Vec<RouteKey>,
}

/// What differs of one route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDiff {
    /// The route.
    pub route: RouteKey,
    /// What became of it from the one to the other.
    pub change: Change,
    /// Differences of rules, in words.
    pub rules: Vec<String>,
    /// Entries that it has only at the later one.
    pub joined: Names,
    /// Entries that it has only at the earlier one.
    pub left: Names,
    /// What moved.
    pub moved: Vec<Move>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_are_counted() {
        let members: BTreeSet<MemberId> =
            (0..NAMES_MAX + 2).map(|n| MemberId::new(&format!("m{n:03}")).unwrap()).collect();
        let names = Names::of(&members);
        assert_eq!((names.names.len(), names.more), (NAMES_MAX, 2));
        assert!(names.to_string().ends_with("m063 and 2 more"), "{names}");
        assert!(Names::default().is_empty() && !names.is_empty());
    }

    #[test]
    fn a_cause_is_a_line_for_people() {
        let object = Cause::Object {
            kind: "HTTPRoute".into(),
            name: "shop/cart".into(),
            generation: Some(3),
            what: "edited".into(),
        };
        assert_eq!(object.to_string(), "HTTPRoute shop/cart generation 3: edited");
        let member = MemberId::new("east").unwrap();
        let cause = Cause::Member { member, what: "Up → Down".into() };
        assert_eq!(cause.to_string(), "member east: Up → Down");
    }
}
