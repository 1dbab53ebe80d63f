//! Changing keys while all goes on, the hub's and a member's: what the next step is.
//!
//! A rotation is asked for by an annotation with a text that was not there before, and told by a record
//! beside it. It goes step by step; no step is taken before every member is known to hold what the step
//! before gave it, for a while. So nobody has to change together with anybody else, and a hub that
//! restarts goes on where it was. Pure: keys, CAs and members are values here, the time too.
//!
//! ```text
//!  capability keys   1 ─▶ 1 2 ─▶ 1 2 3 ─▶ 2 3 4     doors take the newest three, routes the one before
//!                                                   the newest: after three additions the first is gone
//!  CA of the hub     a ─▶ a (serves) + b (signs) ─▶ b
//!  crossing CA       a ─▶ a (signs) + b ─▶ a + b (signs) ─▶ b
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Millis;

/// So long everybody must hold a step before the next one: an agent says that it has written a route
/// before its gateway goes by it.
pub const SETTLE_MS: u64 = 5_000;
/// Additions after which no door takes a key that was there before.
pub const KEYS_ADDED: u32 = 3;
/// Names in a record; the others are counted.
const NAMES_MAX: usize = 10;

/// How a rotation stands, beside what is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// The text that asked for it.
    pub asked: String,
    /// Steps that are done.
    pub step: u32,
    /// Steps of it.
    pub of: u32,
    /// Who does not hold the last step yet: members, and for a crossing CA the hub or a gateway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// How many beyond those.
    #[serde(skip_serializing_if = "is_zero")]
    pub waiting_for_more: usize,
    /// All steps are done, and what was there before is gone.
    pub done: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Record {
    /// The same, waiting for these.
    #[must_use]
    pub fn waiting(&self, missing: &BTreeSet<String>) -> Self {
        Self {
            waiting_for: missing.iter().take(NAMES_MAX).cloned().collect(),
            waiting_for_more: missing.len().saturating_sub(NAMES_MAX),
            ..self.clone()
        }
    }

    /// The same, one step later; nobody is waited for.
    #[must_use]
    pub fn stepped(&self) -> Self {
        let step = self.step + 1;
        Self { step, waiting_for: Vec::new(), waiting_for_more: 0, ..self.clone() }
    }
}

/// What a rotation is decided by.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// What somebody asks for.
    pub asked: Option<&'a str>,
    /// How the last one stands.
    pub record: Option<&'a Record>,
    /// Who does not hold what is given out now, but for those that somebody said not to wait for.
    pub missing: &'a BTreeSet<String>,
    /// Since when nobody was missing; none while somebody is.
    pub whole_since: Option<Millis>,
    /// So long nobody must be missing.
    pub settle_ms: u64,
    /// Now.
    pub now: Millis,
}

/// What is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nobody asked for anything new.
    Nothing,
    /// Say who is waited for.
    Wait(Record),
    /// Take the step that this record counts; at the first one, begin.
    Step(Record),
}

/// Decides the next step of a rotation of so many. The step with the number `of` is the last: it
/// takes away what was there before.
pub fn next(look: Look<'_>, of: u32) -> Next {
    let current = look.record.filter(|record| !record.done);
    let record = match (current, look.asked) {
        (Some(record), _) => record.clone(),
        (None, Some(asked)) if look.record.is_none_or(|record| record.asked != asked) => {
            Record { asked: asked.to_owned(), of, ..Record::default() }
        }
        (None, _) => return Next::Nothing,
    };
    let settled = look.whole_since.is_some_and(|at| look.now.since(at) >= look.settle_ms);
    if !settled {
        return Next::Wait(record.waiting(look.missing));
    }
    let record = record.stepped();
    let done = record.step >= record.of;
    Next::Step(Record { done, ..record })
}

/// Steps in which capability keys change: additions, and in the end the old ones go.
pub const KEY_STEPS: u32 = KEYS_ADDED + 1;
/// Steps in which the CA of the hub changes: the new one beside the old, then it alone.
pub const CA_STEPS: u32 = 2;
/// Steps in which the crossing CA of a member changes: the new one beside the old, certificates of the
/// new one, then it alone.
pub const CROSSING_STEPS: u32 = 3;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000_000);

    fn mk_missing(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn decide(asked: Option<&str>, record: Option<&Record>, whole_for_ms: Option<u64>) -> Next {
        let missing = mk_missing(if whole_for_ms.is_some() { &[] } else { &["west"] });
        let whole_since = whole_for_ms.map(|ms| Millis(NOW.0 - ms));
        next(
            Look { asked, record, missing: &missing, whole_since, settle_ms: SETTLE_MS, now: NOW },
            CA_STEPS,
        )
    }

    fn mk_record(step: u32, done: bool) -> Record {
        Record { asked: "a".into(), step, of: CA_STEPS, done, ..Record::default() }
    }

    #[test]
    fn nothing_happens_unless_something_new_is_asked() {
        assert_eq!(decide(None, None, Some(SETTLE_MS)), Next::Nothing);
        assert_eq!(decide(None, Some(&mk_record(2, true)), Some(SETTLE_MS)), Next::Nothing);
        assert_eq!(decide(Some("a"), Some(&mk_record(2, true)), Some(SETTLE_MS)), Next::Nothing);
    }

    #[test]
    fn steps_are_taken_only_when_everybody_held_the_last_one_for_a_while() {
        let of = |record: Option<&Record>, whole| decide(Some("a"), record, whole);
        for whole in [None, Some(0), Some(SETTLE_MS - 1)] {
            assert!(matches!(of(None, whole), Next::Wait(record) if record.step == 0), "{whole:?}");
            let begun = mk_record(1, false);
            assert!(matches!(of(Some(&begun), whole), Next::Wait(r) if r.step == 1), "{whole:?}");
        }
        assert_eq!(of(None, Some(SETTLE_MS)), Next::Step(mk_record(1, false)));
        assert_eq!(of(Some(&mk_record(1, false)), Some(SETTLE_MS)), Next::Step(mk_record(2, true)));
    }

    #[test]
    fn who_is_waited_for_is_said_and_bounded() {
        let Next::Wait(record) = decide(Some("a"), None, None) else { panic!("a step") };
        assert_eq!(record.waiting_for, ["west"]);
        let many: Vec<String> = (0..NAMES_MAX + 3).map(|n| format!("m{n}")).collect();
        let many = mk_missing(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let record = mk_record(1, false).waiting(&many);
        assert_eq!((record.waiting_for.len(), record.waiting_for_more), (NAMES_MAX, 3));
        assert_eq!(record.stepped().waiting_for, [""; 0]);
    }

    #[test]
    fn a_begun_rotation_goes_on_when_its_asking_is_gone_or_another_is_asked() {
        let begun = mk_record(1, false);
        for asked in [None, Some("b")] {
            let Next::Step(record) = decide(asked, Some(&begun), Some(SETTLE_MS)) else {
                panic!("it stopped")
            };
            assert_eq!((record.asked.as_str(), record.done), ("a", true));
        }
        // Then the other one has its turn.
        assert!(matches!(
            decide(Some("b"), Some(&mk_record(2, true)), Some(SETTLE_MS)),
            Next::Step(record) if record.asked == "b" && record.step == 1
        ));
    }

    #[test]
    fn a_record_is_what_it_was_after_its_way_through_text() {
        let record = mk_record(1, false).waiting(&mk_missing(&["east"]));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert!(text.contains("\"waitingFor\":[\"east\"]"), "{text}");
        assert!(serde_json::from_str::<Record>("{\"unknown\": 1}").is_ok());
    }
}
