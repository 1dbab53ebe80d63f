//! What the answers of a peer's door mean.
//!
//! One machine per peer. It says when the next probe is due, takes how each one ended, and holds the
//! verdict. Fixed thresholds: two misses in a row take a peer out, three answers in a row and a
//! second of peace bring it back. A refusal is a miss like a timeout; which of the two it was is
//! kept, because people ask.
//!
//! Where machines are short of CPU, silence proves less: an answer that came late, a probe that started
//! or ended late say so, and for a while a peer must then be silent twice as often to be out. A
//! refusal proves what it always does.
//!
//! ```text
//!              2 misses in a row                    3 answers in a row, the first ≥ 1 s ago
//!   Unknown ─────────────────────▶ Refused/TimedOut ─────────────────────────────────────▶ Reachable
//!      │                                   ▲                                                   │
//!      └── 3 answers in all ──▶ Reachable  └───────────────── 2 misses in a row ───────────────┘
//! ```

use std::collections::BTreeMap;

use fairlead_model::health::{PeerReach, ProbeOutcome, ProbeReport, Reach};
use fairlead_model::{MemberId, Millis};

/// From the start of one probe to the start of the next.
pub const PERIOD_MS: u64 = 100;
/// A probe without an answer ends after that.
pub const TIMEOUT_MS: u64 = 250;
/// Misses in a row that take a peer out.
pub const FALL: u32 = 2;
/// Silent probes in a row that take a peer out where somebody is short of CPU.
pub const FALL_SLOW: u32 = 4;
/// A probe that starts or ends so much later than it should is a sign of that, …
const LATE_MS: u64 = 50;
/// … and so is an answer that takes so much longer than the fastest.
const SLOW_MS: u64 = 100;
/// A sign counts for so long.
const SLOW_FOR_MS: u64 = 10_000;
/// Answers that bring a peer in.
pub const RISE: u32 = 3;
/// A peer that was out comes back no sooner than that after its first answer.
pub const HOLD_MS: u64 = 1_000;
/// Probes of different peers drift by up to that, so that they do not start in step.
const JITTER_MS: u64 = 10;

/// One peer's door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProbe {
    verdict: PeerReach,
    misses: u32,
    /// How the last probe missed, and how often in a row it was so.
    missed: (Reach, u32),
    answers: u32,
    answers_since: Millis,
    due: Millis,
    seed: u64,
    /// The least time that an answer took, once there was one.
    fastest_ms: Option<u64>,
    slow_until: Millis,
}

impl PeerProbe {
    /// A peer that nothing is known of; its first probe is due at once. `seed` spreads the probes.
    pub fn new(seed: u64, now: Millis) -> Self {
        Self {
            verdict: PeerReach { reach: Reach::Unknown, since: now },
            misses: 0,
            missed: (Reach::Unknown, 0),
            answers: 0,
            answers_since: now,
            due: now,
            seed,
            fastest_ms: None,
            slow_until: Millis(0),
        }
    }

    /// When the next probe shall start.
    pub const fn next_deadline(&self) -> Millis {
        self.due
    }

    /// The verdict and since when it is.
    pub const fn verdict(&self) -> PeerReach {
        self.verdict
    }

    /// Takes the end of the probe that started at `started`. The next one starts a period after
    /// that start, or at once when it took longer.
    pub fn on_outcome(&mut self, outcome: ProbeOutcome, started: Millis, now: Millis) {
        self.look_for_slowness(outcome, started, now);
        self.seed = next_seed(self.seed);
        let drift = self.seed % (2 * JITTER_MS + 1);
        self.due = started.plus(PERIOD_MS - JITTER_MS + drift).max(now);
        match outcome {
            ProbeOutcome::Answered => self.on_answer(now),
            ProbeOutcome::Refused => self.on_miss(Reach::Refused, now),
            ProbeOutcome::TimedOut => self.on_miss(Reach::TimedOut, now),
        }
    }

    fn look_for_slowness(&mut self, outcome: ProbeOutcome, started: Millis, now: Millis) {
        let took = now.since(started);
        let is_slow = match outcome {
            ProbeOutcome::Answered => {
                let fastest = self.fastest_ms.map_or(took, |fastest| fastest.min(took));
                self.fastest_ms = Some(fastest);
                took - fastest > SLOW_MS
            }
            ProbeOutcome::TimedOut => took > TIMEOUT_MS + LATE_MS,
            ProbeOutcome::Refused => false,
        };
        let is_late = started.since(self.due) > LATE_MS;
        // Before the first verdict there is nothing to compare with.
        if (is_slow || is_late) && self.verdict.reach != Reach::Unknown {
            self.slow_until = now.plus(SLOW_FOR_MS);
        }
    }

    fn on_answer(&mut self, now: Millis) {
        self.misses = 0;
        self.missed = (Reach::Unknown, 0);
        if self.answers == 0 {
            self.answers_since = now;
        }
        self.answers = self.answers.saturating_add(1);
        let held = match self.verdict.reach {
            Reach::Reachable => return,
            Reach::Unknown => true,
            Reach::Refused | Reach::TimedOut => now.since(self.answers_since) >= HOLD_MS,
        };
        if self.answers >= RISE && held {
            self.verdict = PeerReach { reach: Reach::Reachable, since: now };
        }
    }

    fn on_miss(&mut self, how: Reach, now: Millis) {
        self.misses = self.misses.saturating_add(1);
        let again = if self.missed.0 == how { self.missed.1.saturating_add(1) } else { 1 };
        self.missed = (how, again);
        // A peer without a verdict gets one in the end, also when it only answers now and then.
        if self.verdict.reach != Reach::Unknown {
            self.answers = 0;
        }
        let is_slow = how == Reach::TimedOut && now < self.slow_until;
        if self.misses < if is_slow { FALL_SLOW } else { FALL } {
            return;
        }
        self.answers = 0;
        if !self.verdict.reach.is_out() {
            self.verdict = PeerReach { reach: how, since: now };
        } else if again >= FALL {
            // How it is out may change; since when it is out does not.
            self.verdict.reach = how;
        }
    }
}

/// SplitMix64: a fixed walk, so that a replay drifts the same.
fn next_seed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Whether the agent should doubt itself rather than its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Suspicion {
    /// The verdicts count.
    #[default]
    None,
    /// Two or more, and over half, of the peers failed together: perhaps we are the one cut off.
    Alone,
}

/// Failures within that time of each other count as one event.
pub const ALONE_WINDOW_MS: u64 = 2_000;

/// Looks for peers that went out together.
pub fn suspect(peers: &ProbeReport) -> Suspicion {
    let out: BTreeMap<&MemberId, Millis> =
        peers.iter().filter(|(_, p)| p.reach.is_out()).map(|(id, p)| (id, p.since)).collect();
    let together = |start: &Millis| {
        out.values().filter(|s| *s >= start && s.since(*start) <= ALONE_WINDOW_MS).count()
    };
    let most = out.values().map(together).max().unwrap_or(0);
    if most >= 2 && 2 * most > peers.len() { Suspicion::Alone } else { Suspicion::None }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use ProbeOutcome::{Answered, Refused, TimedOut};

    /// Runs outcomes, one per period; the verdict after each.
    fn run(probe: &mut PeerProbe, outcomes: &[ProbeOutcome]) -> Vec<Reach> {
        let step = |outcome: &ProbeOutcome| {
            let started = probe.next_deadline();
            probe.on_outcome(*outcome, started, started.plus(5));
            probe.verdict().reach
        };
        outcomes.iter().map(step).collect()
    }

    fn mk() -> PeerProbe {
        PeerProbe::new(7, Millis(1_000))
    }

    #[test]
    fn transitions() {
        use Reach::{Reachable, Unknown};
        let table: &[(&[ProbeOutcome], &[Reach])] = &[
            (&[Answered, Answered, Answered], &[Unknown, Unknown, Reachable]),
            (&[Refused, Refused], &[Unknown, Reach::Refused]),
            (&[TimedOut, TimedOut], &[Unknown, Reach::TimedOut]),
            (&[Refused, TimedOut], &[Unknown, Reach::TimedOut]),
            (
                &[TimedOut, Answered, TimedOut, TimedOut],
                &[Unknown, Unknown, Unknown, Reach::TimedOut],
            ),
            (
                &[Answered, TimedOut, Answered, TimedOut, Answered],
                &[Unknown, Unknown, Unknown, Unknown, Reachable],
            ),
            (
                &[Answered, Answered, Answered, TimedOut, Answered, TimedOut, Refused],
                &[Unknown, Unknown, Reachable, Reachable, Reachable, Reachable, Reach::Refused],
            ),
        ];
        for (outcomes, verdicts) in table {
            assert_eq!(run(&mut mk(), outcomes), *verdicts, "{outcomes:?}");
        }
    }

    #[test]
    fn a_peer_that_was_out_comes_back_after_a_second_of_answers() {
        let mut probe = mk();
        run(&mut probe, &[TimedOut, TimedOut]);
        let first = probe.next_deadline().plus(5);
        let verdicts = run(&mut probe, &[Answered; 9]);
        assert!(verdicts.iter().all(|r| *r == Reach::TimedOut), "{verdicts:?}");
        let mut back = Millis(0);
        while probe.verdict().reach.is_out() {
            back = probe.next_deadline().plus(5);
            run(&mut probe, &[Answered]);
        }
        let took = back.since(first);
        assert!((HOLD_MS..HOLD_MS + 2 * PERIOD_MS).contains(&took), "{took}");
        assert_eq!(probe.verdict().since, back);
    }

    #[test]
    fn one_miss_starts_the_second_of_peace_again() {
        let mut probe = mk();
        run(&mut probe, &[TimedOut, TimedOut]);
        run(&mut probe, &[Answered; 9]);
        run(&mut probe, &[TimedOut]);
        assert!(run(&mut probe, &[Answered; 9]).iter().all(|r| r.is_out()));
    }

    #[test]
    fn how_it_is_out_may_change_but_not_since_when() {
        let mut probe = mk();
        run(&mut probe, &[Refused, Refused]);
        let since = probe.verdict().since;
        assert_eq!(run(&mut probe, &[TimedOut, Refused]), [Reach::Refused; 2], "no flapping");
        assert_eq!(run(&mut probe, &[TimedOut, TimedOut]), [Reach::Refused, Reach::TimedOut]);
        assert_eq!(probe.verdict().since, since);
    }

    #[test]
    fn probes_start_a_period_apart_and_at_once_after_a_timeout() {
        let mut probe = mk();
        let start = probe.next_deadline();
        probe.on_outcome(Answered, start, start.plus(3));
        let gap = probe.next_deadline().since(start);
        assert!((PERIOD_MS - JITTER_MS..=PERIOD_MS + JITTER_MS).contains(&gap), "{gap}");
        let start = probe.next_deadline();
        probe.on_outcome(TimedOut, start, start.plus(TIMEOUT_MS));
        assert_eq!(probe.next_deadline(), start.plus(TIMEOUT_MS));
    }

    #[test]
    fn a_dead_door_is_out_within_seven_tenths_of_a_second() {
        let worst = PERIOD_MS + JITTER_MS + u64::from(FALL) * TIMEOUT_MS;
        assert!(worst <= 700, "{worst}");
    }

    /// An answer after so long, then silence: how many silent probes until it is out.
    fn silent_until_out(answer_ms: u64, late_ms: u64) -> u32 {
        let mut probe = mk();
        run(&mut probe, &[Answered; 3]);
        let start = probe.next_deadline().plus(late_ms);
        probe.on_outcome(Answered, start, start.plus(answer_ms));
        let mut silent = 0;
        while !probe.verdict().reach.is_out() {
            let start = probe.next_deadline();
            probe.on_outcome(TimedOut, start, start.plus(TIMEOUT_MS));
            silent += 1;
        }
        silent
    }

    #[test]
    fn silence_proves_less_where_cpu_is_short() {
        assert_eq!(silent_until_out(5, 0), FALL);
        assert_eq!(silent_until_out(5 + SLOW_MS, 0), FALL, "a long way is not slow");
        assert_eq!(silent_until_out(6 + SLOW_MS, 0), FALL_SLOW, "a late answer");
        assert_eq!(silent_until_out(5, LATE_MS + 1), FALL_SLOW, "a late start");
    }

    #[test]
    fn a_refusal_needs_no_patience_and_slowness_passes() {
        let mut probe = mk();
        run(&mut probe, &[Answered; 3]);
        let start = probe.next_deadline();
        probe.on_outcome(Answered, start, start.plus(200));
        assert_eq!(run(&mut probe.clone(), &[Refused, Refused])[1], Reach::Refused);
        let end = start.plus(200 + SLOW_FOR_MS);
        while probe.next_deadline() < end {
            run(&mut probe, &[Answered]);
        }
        assert_eq!(run(&mut probe, &[TimedOut, TimedOut])[1], Reach::TimedOut);
    }

    #[test]
    fn a_dead_door_is_out_within_a_second_and_a_half_wherever_cpu_is_short() {
        let worst = PERIOD_MS + JITTER_MS + u64::from(FALL_SLOW) * TIMEOUT_MS;
        assert!(worst <= 1_300, "{worst}");
    }

    fn report(since: &[(&str, Reach, u64)]) -> ProbeReport {
        let peer = |(id, reach, since): &(&str, Reach, u64)| {
            (MemberId::new(id).unwrap(), PeerReach { reach: *reach, since: Millis(*since) })
        };
        since.iter().map(peer).collect()
    }

    #[test]
    fn an_agent_doubts_itself_when_over_half_of_its_peers_fail_together() {
        use Reach::{Reachable, TimedOut};
        let alone = |peers: &[_]| suspect(&report(peers)) == Suspicion::Alone;
        assert!(!alone(&[]));
        assert!(!alone(&[("a", TimedOut, 0)]), "one is not enough");
        assert!(!alone(&[("a", TimedOut, 0), ("b", Reachable, 0)]));
        assert!(alone(&[("a", TimedOut, 0), ("b", TimedOut, 900)]));
        assert!(!alone(&[("a", TimedOut, 0), ("b", TimedOut, 9_000)]), "not together");
        let half =
            [("a", TimedOut, 0), ("b", TimedOut, 0), ("c", Reachable, 0), ("d", Reachable, 0)];
        assert!(!alone(&half), "half is not over half");
    }
}
