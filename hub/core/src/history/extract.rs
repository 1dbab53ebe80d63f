//! The part of a history that is kept a second time, outside of the store: a hub that lost its store, or was
//! made anew from a backup, still knows what its routes are pinned to.
//!
//! Owns what belongs to it, its form, and taking it in again. First what routes are pinned to, then the newest
//! changes without a gap, each with its rules, as many as fit. What is read may have been written by anybody:
//! a line that is not what it should be costs itself.
//!
//! ```text
//!  {"newest":42}
//!  {"rules":[40,{…}]}
//!  {"entry":{…}}
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_model::history::Entry;
use fairlead_model::policy::GlobalRoute;
use fairlead_model::{Millis, RouteKey};
use serde::{Deserialize, Serialize};

use super::{History, RECORD_BYTES_MAX, RecordKey, Weighed, encode};

/// What a line is longer than its record, at most.
const FRAME_BYTES: usize = 64;
/// Larger revisions are nobody's: numbers must go on rising after them.
const REVISION_MAX: u64 = 1 << 53;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The newest revision.
    Newest(u64),
    /// The rules of a route as they were from a revision on.
    Rules(u64, Arc<GlobalRoute>),
    /// A change.
    Entry(Arc<Entry>),
}

/// What is kept a second time.
#[derive(Debug, Clone)]
pub struct Extract {
    lines: Vec<Line>,
    /// The pins whose rules are in it.
    pub pins: BTreeSet<(RouteKey, u64)>,
    /// Pins whose rules had no room.
    pub left_out: usize,
}

/// What was read of such a part.
#[derive(Debug, Clone, Default)]
pub struct Portion {
    newest: u64,
    entries: Vec<Arc<Entry>>,
    rules: Vec<(u64, Arc<GlobalRoute>)>,
    /// Lines that could not be read.
    pub dropped: usize,
}

impl Extract {
    /// As text, a line for each record.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for line in &self.lines {
            text.extend(encode(line));
            text.push(b'\n');
        }
        text
    }
}

impl Portion {
    /// From text; whoever reads it bounds it.
    pub fn read(text: &[u8]) -> Self {
        let mut portion = Self::default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let fits = line.len() <= RECORD_BYTES_MAX + FRAME_BYTES;
            match fits.then(|| serde_json::from_slice(line)) {
                Some(Ok(Line::Newest(number))) if number <= REVISION_MAX => {
                    portion.newest = portion.newest.max(number);
                }
                Some(Ok(Line::Rules(number, route))) if number <= REVISION_MAX => {
                    portion.rules.push((number, route));
                }
                Some(Ok(Line::Entry(entry))) if entry.number <= REVISION_MAX => {
                    portion.entries.push(entry);
                }
                Some(Ok(_) | Err(_)) | None => portion.dropped += 1,
            }
        }
        portion
    }
}

impl History {
    /// The part that is to be kept a second time, in about so many bytes.
    pub fn extract(&self, bytes_max: usize) -> Extract {
        let mut packer = Packer {
            history: self,
            room: bytes_max,
            packed: BTreeSet::new(),
            lines: vec![Line::Newest(self.newest)],
        };
        let (pins, left_out): (Vec<_>, Vec<_>) =
            self.pinned.iter().partition(|key| packer.put(key));
        // Without a gap: what is older than the first that has no room is not there.
        let _ = self.entries.keys().rev().all(|key| packer.put(key));
        Extract {
            lines: packer.lines,
            pins: pins.into_iter().map(|(number, route)| (route.clone(), *number)).collect(),
            left_out: left_out.len(),
        }
    }

    /// Takes in what is not there yet; says how many changes that were.
    ///
    /// What is there wins. Of another life of this hub, in which it gave the same numbers to other changes, only
    /// what its own do not contradict is taken: what was entered earlier must not have a higher number.
    pub fn take_in(&mut self, portion: Portion) -> usize {
        let latest = self.latest();
        let is_new = |entry: &&Arc<Entry>| {
            let since = latest.partition_point(|(number, _)| *number <= entry.number);
            let before = since.checked_sub(1).map(|at| latest[at].1);
            before.is_none_or(|before| before <= entry.at)
                && !self.entries.contains_key(&(entry.number, entry.route.clone()))
        };
        let new: Vec<Arc<Entry>> = portion.entries.iter().filter(is_new).cloned().collect();
        for (number, route) in portion.rules {
            if !self.rules.contains_key(&(number, route.key.clone())) {
                self.put_rules(number, Weighed::of(route));
            }
        }
        self.newest = self.newest.max(portion.newest);
        let before = self.entries.len();
        for entry in new {
            self.newest = self.newest.max(entry.number);
            self.put_entry(Weighed::of(entry));
        }
        self.drop_unused_rules();
        self.entries.len() - before
    }

    /// For each revision, the latest time of a change up to it.
    fn latest(&self) -> Vec<(u64, Millis)> {
        let mut latest = Millis(0);
        let times = self.entries.iter().map(|((number, _), entry)| {
            latest = latest.max(entry.value.at);
            (*number, latest)
        });
        times.collect()
    }
}

/// Gathers lines while there is room.
struct Packer<'a> {
    history: &'a History,
    room: usize,
    packed: BTreeSet<RecordKey>,
    lines: Vec<Line>,
}

impl Packer<'_> {
    /// A change with its rules, wholly or not at all.
    fn put(&mut self, key: &(u64, RouteKey)) -> bool {
        let Some(entry) = self.history.entries.get(key) else { return false };
        let rules_key = entry.value.policy.map(|number| (number, key.1.clone()));
        let rules = rules_key.and_then(|key| Some((self.history.rules.get(&key)?, key)));
        let mut wanted = Vec::new();
        if let Some((rules, (number, route))) = rules {
            let line = Line::Rules(number, Arc::clone(&rules.value));
            wanted.push((RecordKey::Rules(number, route), rules.bytes, line));
        }
        let line = Line::Entry(Arc::clone(&entry.value));
        wanted.push((RecordKey::Entry(key.0, key.1.clone()), entry.bytes, line));
        wanted.retain(|(record, ..)| !self.packed.contains(record));
        let bytes: usize = wanted.iter().map(|(_, bytes, _)| bytes + FRAME_BYTES).sum();
        let Some(room) = self.room.checked_sub(bytes) else { return false };
        self.room = room;
        for (record, _, line) in wanted {
            self.packed.insert(record);
            self.lines.push(line);
        }
        true
    }
}
