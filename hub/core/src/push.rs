//! Sending a member its bundles: the newest wins, one under way at a time, differences only.
//!
//! Owns the numbers of one session and what its agent is known to hold. Never renders anything and
//! never sends content that the agent has: equal digests cost a number at most. A slow member loses
//! bundles in between, never the last one.

use std::sync::Arc;

use fairlead_model::ledger::{Delta, Digest, Ledger};
use fairlead_model::session::{ApplyReport, BundleUpdate};
use fairlead_model::{Millis, PlanNumber, Reason};

use crate::numbering::Counter;

/// Heartbeats that count as an answer when no report comes. A stream keeps its order, so two
/// heartbeats after the bundle mean that the agent lives and reads; its report may be long in coming.
const BEATS_AS_ANSWER: u8 = 2;

/// A bundle that a member should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its entries.
    pub ledger: Arc<Ledger>,
    /// Their digest.
    pub digest: Digest,
    /// When the change that caused it was seen.
    pub caused_at: Millis,
    /// W3C trace context of that change.
    pub trace_parent: String,
}

/// What the agent is known to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AtAgent {
    number: PlanNumber,
    digest: Digest,
    /// Its content, where it is known here.
    ledger: Option<Arc<Ledger>>,
}

/// A bundle that was sent and not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnderWay {
    number: PlanNumber,
    beats: u8,
}

/// The bundle side of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    epoch: u64,
    counter: Counter,
    at_agent: Option<AtAgent>,
    under_way: Option<UnderWay>,
    wanted: Option<Wanted>,
    /// Digest of a bundle that the agent refused although it was sent whole.
    given_up: Option<Digest>,
    last_was_full: bool,
}

impl Push {
    /// Starts an epoch. `reported` is what the agent says it holds, `known` the bundle that was last
    /// sent to this member.
    pub fn new(
        epoch: u64,
        reported: Option<(PlanNumber, Digest)>,
        known: Option<(Digest, Arc<Ledger>)>,
    ) -> Self {
        let at_agent = reported.map(|(number, digest)| AtAgent {
            number,
            digest,
            ledger: known.filter(|(known, _)| *known == digest).map(|(_, ledger)| ledger),
        });
        Self {
            epoch,
            counter: Counter::new(epoch),
            at_agent,
            under_way: None,
            wanted: None,
            given_up: None,
            last_was_full: false,
        }
    }

    /// The member should hold this from now on.
    pub fn want(&mut self, wanted: Wanted) -> Option<BundleUpdate> {
        self.wanted = Some(wanted);
        self.next()
    }

    /// The agent said what became of a bundle.
    pub fn applied(&mut self, report: &ApplyReport) -> Option<BundleUpdate> {
        let answered = self.under_way.is_some_and(|sent| report.number >= sent.number);
        if answered {
            self.under_way = None;
        }
        let newest = self.at_agent.as_ref().is_some_and(|held| held.number == report.number);
        if report.refused.is_some() && newest {
            self.refused();
        }
        self.next()
    }

    /// The agent gave a sign of life.
    pub fn heard(&mut self) -> Option<BundleUpdate> {
        let sent = self.under_way.as_mut()?;
        sent.beats += 1;
        if sent.beats >= BEATS_AS_ANSWER {
            self.under_way = None;
        }
        self.next()
    }

    /// The number of the newest bundle that was sent in this session.
    pub fn sent(&self) -> Option<PlanNumber> {
        self.at_agent.as_ref().map(|held| held.number).filter(|number| number.epoch == self.epoch)
    }

    /// A refused bundle is sent whole once; a whole one that is refused waits for the next change.
    fn refused(&mut self) {
        if self.last_was_full {
            self.given_up = self.wanted.as_ref().map(|wanted| wanted.digest);
        }
        self.at_agent = None;
    }

    fn next(&mut self) -> Option<BundleUpdate> {
        if self.under_way.is_some() {
            return None;
        }
        let wanted = self.wanted.as_ref()?;
        if self.given_up == Some(wanted.digest) {
            return None;
        }
        let held = self.at_agent.as_ref();
        if held.is_some_and(|held| held.digest == wanted.digest && held.number.epoch == self.epoch)
        {
            return None;
        }
        let (base, delta) = difference(held, wanted);
        self.last_was_full = !delta.based;
        let number = self.counter.take();
        self.under_way = Some(UnderWay { number, beats: 0 });
        self.at_agent = Some(AtAgent {
            number,
            digest: wanted.digest,
            ledger: Some(Arc::clone(&wanted.ledger)),
        });
        let (caused_at, trace_parent) = (wanted.caused_at, wanted.trace_parent.clone());
        Some(BundleUpdate { number, base, delta, caused_at, trace_parent })
    }
}

/// What turns the agent's bundle into the wanted one, and what that is based on.
fn difference(held: Option<&AtAgent>, wanted: &Wanted) -> (Option<PlanNumber>, Delta) {
    match held {
        Some(held) if held.digest == wanted.digest => {
            let same = Delta { based: true, digest: wanted.digest, ..Delta::default() };
            (Some(held.number), same)
        }
        Some(AtAgent { number, ledger: Some(ledger), .. }) => {
            (Some(*number), wanted.ledger.delta_from(ledger))
        }
        _ => (None, wanted.ledger.full()),
    }
}

/// Why the agent's refusal ends the session: it knows a newer number than this hub.
pub fn is_fatal(report: &ApplyReport) -> bool {
    report.refused.as_ref().is_some_and(|refused| refused.reason == Reason::OldNumber)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::session::Exception;

    fn mk_wanted(value: &str) -> Wanted {
        let ledger = Ledger::new(
            [("a".to_owned(), value.as_bytes().to_vec()), ("b".to_owned(), vec![0])].into(),
        );
        Wanted {
            digest: ledger.digest(),
            ledger: Arc::new(ledger),
            caused_at: Millis(1),
            trace_parent: String::new(),
        }
    }

    fn mk_report(number: PlanNumber) -> ApplyReport {
        ApplyReport { number, complete: true, ..ApplyReport::default() }
    }

    fn mk_refusal(number: PlanNumber, reason: Reason) -> ApplyReport {
        let refused = Some(Exception { reason, message: String::new() });
        ApplyReport { number, refused, ..ApplyReport::default() }
    }

    #[test]
    fn an_agent_without_a_bundle_gets_it_whole() {
        let update = Push::new(4, None, None).want(mk_wanted("1")).unwrap();
        assert_eq!(
            (update.number, update.base, update.delta.based),
            (PlanNumber::new(4, 1), None, false)
        );
    }

    #[test]
    fn an_agent_that_holds_the_wanted_content_gets_only_the_number() {
        let wanted = mk_wanted("1");
        let before = PlanNumber::new(2, 7);
        let update = Push::new(4, Some((before, wanted.digest)), None).want(wanted).unwrap();
        assert_eq!((update.number, update.base), (PlanNumber::new(4, 1), Some(before)));
        assert!(update.delta.is_empty());
    }

    #[test]
    fn a_known_base_costs_only_the_difference() {
        let (old, new) = (mk_wanted("1"), mk_wanted("2"));
        let before = PlanNumber::new(2, 7);
        let known = Some((old.digest, Arc::clone(&old.ledger)));
        let update = Push::new(4, Some((before, old.digest)), known).want(new.clone()).unwrap();
        assert_eq!(update.base, Some(before));
        assert_eq!(update.delta.put.len(), 1);
        assert_eq!(old.ledger.apply(&update.delta).unwrap(), *new.ledger);
    }

    #[test]
    fn an_unknown_base_costs_everything() {
        let update =
            Push::new(4, Some((PlanNumber::new(2, 7), [1; 32])), None).want(mk_wanted("1"));
        assert!(!update.unwrap().delta.based);
    }

    #[test]
    fn a_slow_member_loses_bundles_in_between_and_never_the_last() {
        let mut push = Push::new(1, None, None);
        let first = push.want(mk_wanted("1")).unwrap();
        assert_eq!(push.want(mk_wanted("2")), None);
        assert_eq!(push.want(mk_wanted("3")), None);
        let last = push.applied(&mk_report(first.number)).unwrap();
        assert_eq!((last.number, last.base), (PlanNumber::new(1, 2), Some(first.number)));
        assert_eq!(last.delta.digest, mk_wanted("3").digest);
        assert_eq!(push.applied(&mk_report(last.number)), None);
    }

    #[test]
    fn the_same_content_is_not_sent_twice() {
        let mut push = Push::new(1, None, None);
        let first = push.want(mk_wanted("1")).unwrap();
        push.applied(&mk_report(first.number));
        assert_eq!(push.want(mk_wanted("1")), None);
        assert_eq!(push.sent(), Some(first.number));
    }

    #[test]
    fn two_heartbeats_answer_for_a_report_that_does_not_come() {
        let mut push = Push::new(1, None, None);
        push.want(mk_wanted("1")).unwrap();
        push.want(mk_wanted("2"));
        assert_eq!(push.heard(), None);
        assert!(push.heard().is_some());
    }

    #[test]
    fn an_old_report_answers_nothing() {
        let mut push = Push::new(1, None, None);
        let first = push.want(mk_wanted("1")).unwrap();
        push.applied(&mk_report(first.number));
        push.want(mk_wanted("2")).unwrap();
        push.want(mk_wanted("3"));
        assert_eq!(push.applied(&mk_report(first.number)), None);
    }

    #[test]
    fn a_refused_difference_is_sent_whole_once() {
        let mut push = Push::new(1, None, None);
        let first = push.want(mk_wanted("1")).unwrap();
        push.applied(&mk_report(first.number));
        let second = push.want(mk_wanted("2")).unwrap();
        let whole = push.applied(&mk_refusal(second.number, Reason::Unreadable)).unwrap();
        assert!(!whole.delta.based && whole.number > second.number);
        assert_eq!(push.applied(&mk_refusal(whole.number, Reason::Unreadable)), None);
        assert_eq!(push.want(mk_wanted("2")), None, "the same content would be refused again");
        assert!(push.want(mk_wanted("3")).is_some());
    }

    #[test]
    fn only_an_older_number_is_fatal() {
        let number = PlanNumber::new(1, 1);
        assert!(is_fatal(&mk_refusal(number, Reason::OldNumber)));
        assert!(!is_fatal(&mk_refusal(number, Reason::Unreadable)));
        assert!(!is_fatal(&mk_report(number)));
    }
}
