//! The bounded history of decisions: what was decided of each route, when and why, and the rules as they
//! were, so that a route can be led back to them.
//!
//! Owns revisions and their bounds: so many changes, so many of one route, so many bytes. The oldest fall out
//! first; the newest of a route that is there stays longest, and what a route is pinned to stays always.
//! Holds no object and no capability. Numbers only rise; what a crash keeps from being stored is found
//! again as a change, under a number that nobody has seen stored.
//!
//! ```text
//!  decisions ─▶ Recorder ─▶ Draft ─▶ History ─▶ views, pins
//!                                       ├─▶ records ─▶ (store)
//!                                       └─▶ Extract ─▶ (copy outside of the store)
//! ```

mod cause;
mod classes;
mod extract;
mod recorder;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use fairlead_model::history::{Change, DiffView, Entry, HistorySize, Names, RouteDiff, Shares};
use fairlead_model::policy::GlobalRoute;
use fairlead_model::{Millis, Reason, RouteKey};
use serde::Serialize;

pub use cause::Facts;
pub use extract::{Extract, Portion};
pub use recorder::{Draft, Recorder};

use classes::Classes;

/// Most bytes of a record: four of these fit into one write of a store. Larger rules are not kept.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// Higher revisions are not kept free for whoever asks for them.
const ASKED_MAX: u64 = 1 << 32;

/// Bounds of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most changes.
    pub entries: usize,
    /// Most changes of one route: one that flaps must not push out the others'.
    pub entries_of_route: usize,
    /// Most bytes of changes and rules, as stored.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 10_000, entries_of_route: 200, bytes: 32 << 20 }
    }
}

/// What a record of the history is: each is written once and never changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// The rules of a route as they were from a revision on.
    Rules(u64, RouteKey),
    /// A change.
    Entry(u64, RouteKey),
}

/// A route as it was last recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Last {
    pub(crate) shares: Shares,
    pub(crate) route: Option<Arc<GlobalRoute>>,
    pub(crate) pinned: Option<u64>,
}

/// Why a route cannot be led back to a revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There never was one of that number.
    #[error("there is no revision {0} yet; the newest is {1}")]
    Future(u64, u64),
    /// It is too old.
    #[error("revision {0} is in the history no more; the oldest of this route is {1}")]
    FellOut(u64, u64),
    /// It was a change of other routes.
    #[error("revision {number} is no change of this route{nearest}")]
    OfOthers {
        /// The revision.
        number: u64,
        /// The one of this route that was in force then, in words; may be empty.
        nearest: String,
    },
    /// Its rules are not kept.
    #[error("the rules of revision {0} are not kept: {1}")]
    NoRules(u64, &'static str),
}

impl Missing {
    /// The same as a reason.
    pub fn reason(&self) -> Reason {
        Reason::RevisionUnknown
    }
}

/// The history.
#[derive(Debug, Clone)]
pub struct History {
    limits: Limits,
    newest: u64,
    entries: BTreeMap<(u64, RouteKey), Weighed<Entry>>,
    rules: BTreeMap<(u64, RouteKey), Weighed<GlobalRoute>>,
    by_route: BTreeMap<RouteKey, BTreeSet<u64>>,
    pinned: BTreeSet<(u64, RouteKey)>,
    bytes: usize,
}

/// A value and what it takes when it is stored.
#[derive(Debug)]
struct Weighed<T> {
    value: Arc<T>,
    bytes: usize,
}

impl<T> Clone for Weighed<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), bytes: self.bytes }
    }
}

impl<T: Serialize> Weighed<T> {
    fn of(value: Arc<T>) -> Self {
        let bytes = encode(&*value).len();
        Self { value, bytes }
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data with text keys")
}

impl History {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            newest: 0,
            entries: BTreeMap::new(),
            rules: BTreeMap::new(),
            by_route: BTreeMap::new(),
            pinned: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// What a store has, in whatever order. Bounds are for [`Self::add`]: what routes are pinned to, which
    /// stays besides, is not known yet.
    pub fn restore(
        limits: Limits,
        newest: u64,
        entries: Vec<Entry>,
        rules: Vec<(u64, GlobalRoute)>,
    ) -> Self {
        let mut history = Self::new(limits);
        history.newest = newest;
        for (number, route) in rules {
            history.put_rules(number, Weighed::of(Arc::new(route)));
        }
        for entry in entries {
            history.newest = history.newest.max(entry.number);
            history.put_entry(Weighed::of(Arc::new(entry)));
        }
        history.drop_unused_rules();
        history
    }

    /// Enters the changes of one round; gives their revision, if there are any.
    pub fn add(&mut self, now: Millis, drafts: Vec<Draft>) -> Option<u64> {
        if drafts.is_empty() {
            return None;
        }
        self.newest = self.newest.saturating_add(1);
        let number = self.newest;
        for draft in drafts {
            let policy = draft.policy.and_then(|route| self.keep_rules(number, route));
            self.put_entry(fitted(Entry {
                number,
                at: now,
                route: draft.route,
                change: draft.change,
                causes: draft.causes,
                rules: draft.rules,
                moved: draft.moved,
                shares: draft.shares,
                pinned: draft.pinned,
                policy,
            }));
        }
        self.prune();
        Some(number)
    }

    /// What routes are pinned to stays, whatever its age. Says whether that is other than before.
    pub fn keep_pinned(&mut self, pinned: impl IntoIterator<Item = (RouteKey, u64)>) -> bool {
        let pinned = pinned.into_iter().map(|(route, number)| (number, route)).collect();
        std::mem::replace(&mut self.pinned, pinned) != self.pinned
    }

    /// Revisions from now on are above this number: somebody asks for it, and must not get what it will mean
    /// some day. So numbers do not go back either when a store is lost or an older copy of it is restored.
    /// Not above all that a line of text can say: later revisions must have numbers that can be asked for.
    pub fn rise_above(&mut self, number: u64) {
        if number <= ASKED_MAX {
            self.newest = self.newest.max(number);
        }
    }

    /// The number under which rules are kept: that of the change before, when they are the same.
    fn keep_rules(&mut self, number: u64, route: Arc<GlobalRoute>) -> Option<u64> {
        let key = route.key.clone();
        if let Some(before) = self.last_entry(&key).and_then(|entry| entry.policy)
            && let Some(kept) = self.rules.get(&(before, key))
            && *kept.value == *route
        {
            return Some(before);
        }
        let sized = Weighed::of(route);
        if sized.bytes > RECORD_BYTES_MAX {
            return None;
        }
        self.put_rules(number, sized);
        Some(number)
    }

    fn put_rules(&mut self, number: u64, rules: Weighed<GlobalRoute>) {
        self.bytes += rules.bytes;
        let key = rules.value.key.clone();
        if let Some(before) = self.rules.insert((number, key), rules) {
            self.bytes -= before.bytes;
        }
    }

    fn put_entry(&mut self, entry: Weighed<Entry>) {
        let (number, route) = (entry.value.number, entry.value.route.clone());
        self.bytes += entry.bytes;
        self.by_route.entry(route.clone()).or_default().insert(number);
        if let Some(before) = self.entries.insert((number, route), entry) {
            self.bytes -= before.bytes;
        }
    }

    fn last_entry(&self, route: &RouteKey) -> Option<&Arc<Entry>> {
        let number = self.by_route.get(route)?.last()?;
        self.entries.get(&(*number, route.clone())).map(|entry| &entry.value)
    }

    /// Routes that are there, as they were last recorded.
    pub(crate) fn last(&self) -> BTreeMap<RouteKey, Last> {
        let last = |route: &RouteKey| {
            let entry = self.last_entry(route).filter(|entry| entry.change != Change::Gone)?;
            let rules = entry.policy.and_then(|number| self.rules.get(&(number, route.clone())));
            let route = rules.map(|rules| Arc::clone(&rules.value));
            Some(Last { shares: entry.shares.clone(), route, pinned: entry.pinned })
        };
        self.by_route.keys().filter_map(|key| Some((key.clone(), last(key)?))).collect()
    }

    // --- bounds

    fn prune(&mut self) {
        let per_route = self.limits.entries_of_route.max(1);
        let crowded: Vec<(u64, RouteKey)> = self
            .by_route
            .iter()
            .filter(|(_, numbers)| numbers.len() > per_route)
            .flat_map(|(route, numbers)| {
                let surplus = numbers.len() - per_route;
                numbers.iter().take(surplus).map(move |number| (*number, route.clone()))
            })
            .collect();
        crowded.iter().for_each(|key| self.drop_entry(key));
        // Those that are the newest of their route go last.
        let is_last = |history: &Self, key: &(u64, RouteKey)| {
            history
                .last_entry(&key.1)
                .is_some_and(|last| last.number == key.0 && last.change != Change::Gone)
        };
        for spare_last in [true, false] {
            if !self.is_over() {
                return;
            }
            let keys: Vec<(u64, RouteKey)> = self.entries.keys().cloned().collect();
            for key in keys {
                if !self.is_over() {
                    return;
                }
                if !(spare_last && is_last(self, &key)) {
                    self.drop_entry(&key);
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.entries.len() > self.limits.entries || self.bytes > self.limits.bytes
    }

    /// Drops a change, and its rules when no other has them.
    fn drop_entry(&mut self, key: &(u64, RouteKey)) {
        if self.pinned.contains(key) {
            return;
        }
        let Some(entry) = self.entries.remove(key) else { return };
        self.bytes -= entry.bytes;
        if let Some(numbers) = self.by_route.get_mut(&key.1) {
            numbers.remove(&key.0);
            if numbers.is_empty() {
                self.by_route.remove(&key.1);
            }
        }
        let Some(number) = entry.value.policy else { return };
        if !self.has_rules_of(number, &key.1)
            && let Some(rules) = self.rules.remove(&(number, key.1.clone()))
        {
            self.bytes -= rules.bytes;
        }
    }

    /// Whether a change that is kept has the rules of that number.
    fn has_rules_of(&self, number: u64, route: &RouteKey) -> bool {
        let numbers = self.by_route.get(route).into_iter().flatten();
        let mut entries = numbers.filter_map(|n| self.entries.get(&(*n, route.clone())));
        entries.any(|entry| entry.value.policy == Some(number))
    }

    /// What a crash left behind.
    fn drop_unused_rules(&mut self) {
        let keys: Vec<(u64, RouteKey)> = self.rules.keys().cloned().collect();
        for key in keys {
            if !self.has_rules_of(key.0, &key.1)
                && let Some(rules) = self.rules.remove(&key)
            {
                self.bytes -= rules.bytes;
            }
        }
    }

    // --- questions

    /// How much there is.
    pub fn size(&self) -> HistorySize {
        HistorySize {
            newest: self.newest,
            oldest: self.entries.keys().next().map_or(0, |(number, _)| *number),
            entries: self.entries.len(),
            entries_max: self.limits.entries,
            bytes: self.bytes,
            bytes_max: self.limits.bytes,
        }
    }

    /// Changes, the newest first.
    pub fn list(&self, is_asked: impl Fn(&Entry) -> bool, limit: usize) -> Vec<Entry> {
        let entries = self.entries.values().rev().map(|entry| &entry.value);
        entries.filter(|entry| is_asked(entry)).take(limit).map(|entry| (**entry).clone()).collect()
    }

    /// The rules of a route as of one of its own revisions.
    ///
    /// # Errors
    /// Why there are none.
    pub fn rules_of(&self, route: &RouteKey, number: u64) -> Result<Arc<GlobalRoute>, Missing> {
        if number > self.newest {
            return Err(Missing::Future(number, self.newest));
        }
        let key = (number, route.clone());
        let Some(entry) = self.entries.get(&key) else { return Err(self.missing(route, number)) };
        if entry.value.change == Change::Gone {
            return Err(Missing::NoRules(number, "the route was deleted then"));
        }
        let rules = entry.value.policy.and_then(|at| self.rules.get(&(at, route.clone())));
        let rules = rules.map(|rules| Arc::clone(&rules.value));
        rules.ok_or(Missing::NoRules(number, "they were too large"))
    }

    fn missing(&self, route: &RouteKey, number: u64) -> Missing {
        let numbers = self.by_route.get(route);
        match numbers.and_then(|numbers| numbers.first()) {
            Some(oldest) if number < *oldest => {
                let first = self.entries.get(&(*oldest, route.clone()));
                match first.map(|entry| entry.value.change) {
                    Some(Change::Appeared) => Missing::OfOthers { number, nearest: String::new() },
                    _ => Missing::FellOut(number, *oldest),
                }
            }
            _ => {
                let then = numbers.and_then(|numbers| numbers.range(..number).next_back());
                let words = |then: &u64| format!("; in force then was its revision {then}");
                Missing::OfOthers { number, nearest: then.map(words).unwrap_or_default() }
            }
        }
    }

    /// A route at a revision: its change in force then; an error when that is not known any more.
    fn at(&self, route: &RouteKey, number: u64) -> Result<Option<&Arc<Entry>>, ()> {
        let Some(numbers) = self.by_route.get(route) else { return Ok(None) };
        let entry = |number: &u64| self.entries.get(&(*number, route.clone())).map(|e| &e.value);
        match numbers.range(..=number).next_back() {
            Some(then) => Ok(entry(then).filter(|entry| entry.change != Change::Gone)),
            None => match numbers.first().and_then(entry).map(|entry| entry.change) {
                None | Some(Change::Appeared) => Ok(None),
                Some(Change::Changed | Change::Gone) => Err(()),
            },
        }
    }

    /// What differs between two revisions, of the routes that are asked for.
    ///
    /// # Errors
    /// When one of them is not yet there, or older than all that is kept.
    pub fn diff(
        &self,
        from: u64,
        to: u64,
        is_asked: impl Fn(&RouteKey) -> bool,
    ) -> Result<DiffView, Missing> {
        let oldest = self.size().oldest;
        for number in [from, to] {
            if number > self.newest {
                return Err(Missing::Future(number, self.newest));
            }
            if number < oldest {
                return Err(Missing::FellOut(number, oldest));
            }
        }
        let mut view = DiffView { from, to, routes: Vec::new(), unknown: Vec::new() };
        for key in self.by_route.keys().filter(|key| is_asked(key)) {
            match (self.at(key, from), self.at(key, to)) {
                (Ok(before), Ok(after)) => view.routes.extend(self.differ(key, before, after)),
                (Err(()), _) | (_, Err(())) => view.unknown.push(key.clone()),
            }
        }
        Ok(view)
    }

    fn differ(
        &self,
        key: &RouteKey,
        before: Option<&Arc<Entry>>,
        after: Option<&Arc<Entry>>,
    ) -> Option<RouteDiff> {
        let change = match (before, after) {
            (None, None) => return None,
            (None, Some(_)) => Change::Appeared,
            (Some(_), None) => Change::Gone,
            (Some(_), Some(_)) => Change::Changed,
        };
        let rules = |entry: Option<&Arc<Entry>>| {
            let kept = self.rules.get(&(entry?.policy?, key.clone()))?;
            Some(Arc::clone(&kept.value))
        };
        let rules = match (rules(before), rules(after)) {
            (Some(then), Some(now)) => rules::differences(&then, &now),
            _ => Vec::new(),
        };
        let classes = |entry: Option<&Arc<Entry>>| {
            entry.map(|entry| Classes::kept(&entry.shares)).unwrap_or_default()
        };
        let moved = classes(before).moved_to(&classes(after));
        (change != Change::Changed || !moved.is_empty() || !rules.is_empty()).then(|| RouteDiff {
            route: key.clone(),
            change,
            rules,
            joined: Names::of(&moved.joined),
            left: Names::of(&moved.left),
            moved: moved.moves,
        })
    }

    // --- records

    /// What a store should hold.
    pub fn records(&self) -> BTreeSet<RecordKey> {
        let rules = self.rules.keys().map(|(number, key)| RecordKey::Rules(*number, key.clone()));
        let entries =
            self.entries.keys().map(|(number, key)| RecordKey::Entry(*number, key.clone()));
        rules.chain(entries).collect()
    }

    /// A record as it is stored; none when it has fallen out.
    pub fn encode(&self, record: &RecordKey) -> Option<Vec<u8>> {
        match record {
            RecordKey::Rules(number, key) => {
                self.rules.get(&(*number, key.clone())).map(|rules| encode(&*rules.value))
            }
            RecordKey::Entry(number, key) => {
                self.entries.get(&(*number, key.clone())).map(|entry| encode(&*entry.value))
            }
        }
    }
}

/// A change that one write of a store has room for: classes and moves that do not fit are left out.
fn fitted(mut entry: Entry) -> Weighed<Entry> {
    loop {
        let weighed = Weighed::of(Arc::new(entry));
        let (classes, moves) = (&weighed.value.shares.classes, &weighed.value.moved);
        if weighed.bytes <= RECORD_BYTES_MAX || (classes.is_empty() && moves.is_empty()) {
            return weighed;
        }
        entry = (*weighed.value).clone();
        let kept = entry.shares.classes.len() / 2;
        let dropped = u32::try_from(entry.shares.classes.len() - kept).unwrap_or(u32::MAX);
        entry.shares.classes.truncate(kept);
        entry.shares.more = entry.shares.more.saturating_add(dropped);
        entry.moved.truncate(entry.moved.len() / 2);
    }
}

const RULES_PREFIX: &str = "rules/";
const ENTRY_PREFIX: &str = "entry/";

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(number, route) => write!(f, "{RULES_PREFIX}{number:020}/{route}"),
            Self::Entry(number, route) => write!(f, "{ENTRY_PREFIX}{number:020}/{route}"),
        }
    }
}

impl RecordKey {
    /// Reads a key back.
    pub fn parse(text: &str) -> Option<Self> {
        let parts = |rest: &str| {
            let (number, route) = rest.split_once('/')?;
            Some((number.parse().ok()?, route.parse().ok()?))
        };
        if let Some(rest) = text.strip_prefix(RULES_PREFIX) {
            let (number, route) = parts(rest)?;
            return Some(Self::Rules(number, route));
        }
        let (number, route) = parts(text.strip_prefix(ENTRY_PREFIX)?)?;
        Some(Self::Entry(number, route))
    }
}

#[cfg(test)]
#[path = "history_test.rs"]
mod tests;
