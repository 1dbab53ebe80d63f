//! Finds what changed between two rounds of planning, for the history.
//!
//! Owns what was last recorded of each route. Reads whole states, never events: rounds that nobody looked
//! at are told together with the next. What moves nothing and changes no rule is not told.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::RouteKey;
use fairlead_model::history::{Cause, Change, Move, Shares};
use fairlead_model::plan::RouteDecision;
use fairlead_model::policy::GlobalRoute;

use super::cause::{Facts, Pair, causes};
use super::classes::{Classes, Moved};
use super::rules::differences;
use super::{History, Last};

/// A change that is to be entered.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub(crate) route: RouteKey,
    pub(crate) change: Change,
    pub(crate) causes: Vec<Cause>,
    pub(crate) rules: Vec<String>,
    pub(crate) moved: Vec<Move>,
    pub(crate) shares: Shares,
    pub(crate) pinned: Option<u64>,
    pub(crate) policy: Option<Arc<GlobalRoute>>,
}

/// Finds what changed.
#[derive(Debug, Default)]
pub struct Recorder {
    seen: BTreeMap<RouteKey, Seen>,
}

/// A route as it was last looked at.
#[derive(Debug)]
struct Seen {
    /// None: before the start, and only what was kept of it is known.
    decision: Option<Arc<RouteDecision>>,
    last: Last,
}

type Decisions = BTreeMap<RouteKey, Arc<RouteDecision>>;

impl Recorder {
    /// Goes on from what a history has.
    pub fn after(history: &History) -> Self {
        let seen = |(key, last): (RouteKey, Last)| (key, Seen { decision: None, last });
        Self { seen: history.last().into_iter().map(seen).collect() }
    }

    /// What changed since the round before.
    pub fn round(
        &mut self,
        decisions: &Decisions,
        before: Option<&Facts<'_>>,
        after: &Facts<'_>,
    ) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for (key, decision) in decisions {
            let pinned = after.pinned.get(key).copied();
            let known = self.seen.get(key);
            let is_same = |seen: &Seen| {
                let same = seen.decision.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, decision));
                same && seen.last.pinned == pinned
            };
            if known.is_some_and(is_same) {
                continue;
            }
            let draft = change(key, known, (decision, pinned), before, after);
            let last = match (&draft, known) {
                (None, Some(seen)) => seen.last.clone(),
                (Some(draft), _) => {
                    Last { shares: draft.shares.clone(), route: draft.policy.clone(), pinned }
                }
                (None, None) => Last::default(),
            };
            self.seen.insert(key.clone(), Seen { decision: Some(Arc::clone(decision)), last });
            drafts.extend(draft);
        }
        let gone = |key: &&RouteKey| {
            !decisions.contains_key(*key) && !after.policy.routes.contains_key(*key)
        };
        let gone: Vec<RouteKey> = self.seen.keys().filter(gone).cloned().collect();
        for key in gone {
            let seen = self.seen.remove(&key);
            drafts.extend(seen.map(|seen| parting(key, &seen, before, after)));
        }
        drafts
    }
}

/// What changed of a route that is there; none when nothing that matters did.
fn change(
    key: &RouteKey,
    known: Option<&Seen>,
    (decision, pinned): (&Arc<RouteDecision>, Option<u64>),
    before: Option<&Facts<'_>>,
    after: &Facts<'_>,
) -> Option<Draft> {
    let classes = Classes::of(decision);
    let then = |seen: &Seen| match &seen.decision {
        Some(decision) => Classes::of(decision),
        None => Classes::kept(&seen.last.shares),
    };
    let moved = known.map(|seen| then(seen).moved_to(&classes));
    let old = known.and_then(|seen| seen.last.route.as_deref());
    // Rules that were too large to be kept are told by their own round only.
    let rules = old.map(|old| differences(old, &decision.route)).unwrap_or_default();
    let was_pinned = known.and_then(|seen| seen.last.pinned);
    if let Some(moved) = &moved
        && moved.is_empty()
        && rules.is_empty()
        && was_pinned == pinned
    {
        return None;
    }
    let pair = Pair {
        key,
        route: (old, Some(&decision.route)),
        decision: (known.and_then(|seen| seen.decision.as_deref()), Some(decision)),
        pinned: (was_pinned, pinned),
    };
    let change = if known.is_some() { Change::Changed } else { Change::Appeared };
    let Moved { moves, .. } = moved.unwrap_or_default();
    Some(Draft {
        route: key.clone(),
        change,
        causes: causes(&pair, before, after),
        rules,
        moved: moves,
        shares: classes.to_shares(),
        pinned,
        policy: Some(Arc::clone(&decision.route)),
    })
}

fn parting(key: RouteKey, seen: &Seen, before: Option<&Facts<'_>>, after: &Facts<'_>) -> Draft {
    let pair = Pair {
        key: &key,
        route: (seen.last.route.as_deref(), None),
        decision: (None, None),
        pinned: (None, None),
    };
    let causes = causes(&pair, before, after);
    Draft {
        change: Change::Gone,
        causes,
        rules: Vec::new(),
        moved: Vec::new(),
        shares: Shares::default(),
        pinned: None,
        policy: None,
        route: key,
    }
}

impl Draft {
    /// The route and why it changed, in one line.
    pub fn line(&self) -> String {
        let causes: Vec<String> = self.causes.iter().map(ToString::to_string).collect();
        format!("{}: {}", self.route, causes.join("; "))
    }
}
