//! Every transition of a member's state, and when the fleet is held.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use MemberState::{AgentLost, Down, Joined, Recovering, Suspect, Up};

const STATES: [MemberState; 6] = [Joined, Up, Suspect, AgentLost, Down, Recovering];

fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

/// Every state, in the order of [`STATES`], under every stream, evidence and age.
#[test]
fn states_follow_the_table() {
    use Evidence::{Agreed, Answers, OneAccuses, Silence};
    let suspect = [Suspect, Suspect, Suspect, Suspect, Recovering, Recovering];
    let suspect_ripe = [Suspect, Suspect, Suspect, Suspect, Recovering, Suspect];
    let up = [Up, Up, Up, Up, Recovering, Recovering];
    let up_ripe = [Up, Up, Up, Up, Recovering, Up];
    let headless = [AgentLost, AgentLost, AgentLost, AgentLost, Recovering, Recovering];
    let headless_ripe = [AgentLost, AgentLost, AgentLost, AgentLost, Recovering, AgentLost];
    let lost = [AgentLost, AgentLost, AgentLost, AgentLost, Down, Recovering];
    let lost_ripe = [AgentLost, AgentLost, AgentLost, AgentLost, Down, AgentLost];
    let answers = [AgentLost, AgentLost, AgentLost, AgentLost, Recovering, Recovering];
    let answers_ripe = [AgentLost, AgentLost, AgentLost, AgentLost, Recovering, AgentLost];
    let accused = [Suspect, Suspect, Suspect, Suspect, Down, Recovering];
    let table = [
        (Line::Open, Silence, up, up_ripe),
        (Line::Open, Answers, up, up_ripe),
        (Line::Open, OneAccuses, suspect, suspect_ripe),
        (Line::Open, Agreed, suspect, suspect_ripe),
        (Line::Headless, Silence, headless, headless_ripe),
        (Line::Headless, Answers, headless, headless_ripe),
        (Line::Headless, OneAccuses, suspect, suspect_ripe),
        (Line::Headless, Agreed, suspect, suspect_ripe),
        (Line::Lost, Silence, lost, lost_ripe),
        (Line::Lost, Answers, answers, answers_ripe),
        (Line::Lost, OneAccuses, accused, [Down; 6]),
        (Line::Lost, Agreed, accused, [Down; 6]),
        (Line::Never, Silence, [Joined; 6], [Joined; 6]),
        (Line::Never, Answers, [Joined; 6], [Joined; 6]),
        (Line::Never, OneAccuses, [Joined; 6], [Joined; 6]),
        (Line::Never, Agreed, [Joined; 6], [Joined; 6]),
    ];
    for (line, evidence, young, ripe) in table {
        for (at, state) in STATES.into_iter().enumerate() {
            let text = format!("{state:?} {line:?} {evidence:?}");
            assert_eq!(next(state, line, evidence, Age::Young), young[at], "{text} young");
            assert_eq!(next(state, line, evidence, Age::Ripe), ripe[at], "{text} ripe");
        }
    }
}

#[test]
fn what_witnesses_say_together_follows_the_table() {
    use Evidence::{Agreed, Answers, OneAccuses, Silence};
    // (find it dead, find it alive, together)
    let table = [
        (0, 0, Silence),
        (0, 1, Answers),
        (0, 5, Answers),
        (1, 0, OneAccuses),
        (1, 1, Answers),
        (1, 4, Answers),
        (2, 0, Agreed),
        (2, 1, Agreed),
        (2, 2, Answers),
        (2, 3, Answers),
        (3, 2, Agreed),
        (4, 1, Agreed),
        (5, 0, Agreed),
    ];
    for (against, answers, want) in table {
        let said = |reach| PeerReach { reach, since: Millis(0) };
        let witnesses = (0..against + answers).map(|n| {
            let reach = match n {
                n if n >= against => Reach::Reachable,
                n if n % 2 == 0 => Reach::TimedOut,
                _ => Reach::Refused,
            };
            (id(&format!("w{n}")), said(reach))
        });
        let mut member = Member::default();
        member.health.witnesses = witnesses.collect();
        assert_eq!(member.evidence(None), want, "{against} {answers}");
        // The hub may be one of them.
        if against > 0 {
            member.health.witnesses.remove(&id("w0"));
            assert_eq!(member.evidence(Some(&said(Reach::TimedOut))), want, "{against} {answers}");
        }
    }
}

/// A fleet where everybody is connected at 0.
fn fleet(names: &[&str]) -> Health {
    let mut health = Health::default();
    for name in names {
        health.apply(&id(name), Event::Connected, Millis(0));
    }
    health
}

fn says(health: &mut Health, witness: &str, about: &[(&str, Reach)], now: u64) {
    let said =
        |(name, reach): &(&str, Reach)| (id(name), PeerReach { reach: *reach, since: Millis(now) });
    health.report_at(&id(witness), &about.iter().map(said).collect(), Millis(now));
}

/// Runs time to `end` by its own deadlines, with heartbeats of `alive`; every change of `member`.
fn run(
    health: &mut Health,
    member: &str,
    alive: &[&str],
    from: u64,
    end: u64,
) -> Vec<(u64, MemberState)> {
    let mut changes = Vec::new();
    let mut state = health.of(&id(member)).state;
    let mut now = from;
    while now < end {
        let due = health.next_deadline().map_or(end, |at| at.0);
        assert!(due > now, "a deadline that has passed: {due} at {now}");
        let beat = (now / 1_000 + 1) * 1_000;
        now = due.min(beat).min(end);
        if now == beat {
            for witness in alive {
                health.heard(&id(witness), Millis(now));
            }
        }
        health.tick(Millis(now));
        let after = health.of(&id(member));
        if after.state != state {
            assert_eq!(after.since, Millis(now));
            state = after.state;
            changes.push((now, state));
        }
    }
    changes
}

#[test]
fn a_lost_stream_alone_takes_nothing_away() {
    let mut health = fleet(&["east", "south", "west"]);
    health.apply(&id("west"), Event::Lost, Millis(10));
    assert_eq!(health.of(&id("west")).state, AgentLost);
    says(&mut health, "east", &[("west", Reach::Reachable)], 20);
    assert_eq!(run(&mut health, "west", &["east"], 20, 100_000), []);
}

#[test]
fn two_witnesses_and_a_lost_stream_make_a_member_down() {
    let mut health = fleet(&["east", "south", "west"]);
    says(&mut health, "east", &[("west", Reach::TimedOut)], 500);
    says(&mut health, "south", &[("west", Reach::Refused)], 500);
    assert_eq!(health.of(&id("west")).state, Suspect);
    // Its stream is up: that it is accused for long does not count.
    assert_eq!(run(&mut health, "west", &["east", "south", "west"], 500, 60_000), []);
    health.apply(&id("west"), Event::Lost, Millis(60_000));
    let changes = run(&mut health, "west", &["east", "south"], 60_000, 120_000);
    assert_eq!(changes, [(60_000 + STANDS_MS, Down)]);
}

#[test]
fn the_word_of_one_has_to_stand_three_times_as_long() {
    let mut health = fleet(&["east", "west"]);
    health.apply(&id("west"), Event::Lost, Millis(100));
    says(&mut health, "east", &[("west", Reach::TimedOut)], 700);
    assert_eq!(health.of(&id("west")).state, Suspect);
    let changes = run(&mut health, "west", &["east"], 700, 60_000);
    assert_eq!(changes, [(700 + 3 * STANDS_MS, Down)]);
}

#[test]
fn the_hub_may_be_the_second_witness() {
    let mut health = fleet(&["east", "west"]);
    health.apply(&id("west"), Event::Lost, Millis(100));
    says(&mut health, "east", &[("west", Reach::TimedOut)], 700);
    let own = [(id("west"), PeerReach { reach: Reach::TimedOut, since: Millis(700) })].into();
    health.report_own(own, Millis(700));
    assert_eq!(run(&mut health, "west", &["east"], 700, 60_000), [(700 + STANDS_MS, Down)]);
}

#[test]
fn one_that_lies_can_neither_bring_down_nor_keep_up() {
    let mut health = fleet(&["east", "liar", "south", "west"]);
    says(&mut health, "liar", &[("west", Reach::TimedOut)], 10);
    says(&mut health, "east", &[("west", Reach::Reachable)], 10);
    says(&mut health, "south", &[("west", Reach::Reachable)], 10);
    health.apply(&id("west"), Event::Lost, Millis(100));
    let all = ["east", "liar", "south"];
    assert_eq!(run(&mut health, "west", &all, 100, 60_000), []);
    assert_eq!(health.of(&id("west")).state, AgentLost);
    says(&mut health, "liar", &[("west", Reach::Reachable)], 60_000);
    says(&mut health, "east", &[("west", Reach::TimedOut)], 60_000);
    says(&mut health, "south", &[("west", Reach::TimedOut)], 60_000);
    assert_eq!(run(&mut health, "west", &all, 60_000, 90_000), [(60_000 + STANDS_MS, Down)]);
}

#[test]
fn a_witness_that_fell_silent_or_was_lost_is_not_believed() {
    let mut health = fleet(&["east", "south", "west"]);
    says(&mut health, "east", &[("west", Reach::TimedOut)], 0);
    says(&mut health, "south", &[("west", Reach::TimedOut)], 0);
    health.apply(&id("south"), Event::Lost, Millis(100));
    assert_eq!(health.of(&id("west")).witnesses.len(), 1);
    assert_eq!(health.next_deadline(), Some(Millis(WITNESS_MS_MAX)));
    health.tick(Millis(WITNESS_MS_MAX));
    assert!(health.of(&id("west")).witnesses.is_empty());
    assert_eq!(health.of(&id("west")).state, Up);
    // It is believed again when it is heard again.
    assert_eq!(health.heard(&id("east"), Millis(WITNESS_MS_MAX + 1)), Changed::Yes);
    assert_eq!(health.of(&id("west")).witnesses.len(), 1);
}

#[test]
fn down_ends_by_proof_only() {
    let down = || {
        let mut health = fleet(&["east", "south", "west"]);
        health.apply(&id("west"), Event::Lost, Millis(0));
        says(&mut health, "east", &[("west", Reach::TimedOut)], 0);
        says(&mut health, "south", &[("west", Reach::TimedOut)], 0);
        health.tick(Millis(STANDS_MS));
        assert_eq!(health.of(&id("west")).state, Down);
        health
    };
    let mut silent = down();
    assert_eq!(run(&mut silent, "west", &[], STANDS_MS, 100_000), [], "no news is no proof");
    let mut back = down();
    back.apply(&id("west"), Event::Connected, Millis(2_000));
    assert_eq!(back.of(&id("west")).state, Recovering);
    says(&mut back, "east", &[("west", Reach::Reachable)], 2_000);
    says(&mut back, "south", &[("west", Reach::Reachable)], 2_000);
    let changes = run(&mut back, "west", &["east", "south", "west"], 2_000, 60_000);
    assert_eq!(changes, [(2_000 + RECOVERING_MS, Up)]);
    let mut reached = down();
    says(&mut reached, "east", &[("west", Reach::Reachable)], 2_000);
    says(&mut reached, "south", &[("west", Reach::Reachable)], 2_000);
    assert_eq!(reached.of(&id("west")).state, Recovering);
    let changes = run(&mut reached, "west", &["east", "south"], 2_000, 60_000);
    assert_eq!(changes, [(2_000 + RECOVERING_MS, AgentLost)]);
    // And falls back at once when the proof is gone.
    let mut again = down();
    again.apply(&id("west"), Event::Connected, Millis(2_000));
    again.apply(&id("west"), Event::Lost, Millis(3_000));
    let changes = run(&mut again, "west", &["east", "south"], 3_000, 60_000);
    assert_eq!(changes, [(3_000 + STANDS_MS, Down)]);
}

#[test]
fn at_most_five_of_many_witnesses_count() {
    let names: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
    let mut health = fleet(&["west"]);
    for name in &names {
        health.apply(&id(name), Event::Connected, Millis(0));
        says(&mut health, name, &[("west", Reach::Reachable)], 0);
    }
    assert_eq!(health.of(&id("west")).witnesses.len(), witness::WITNESSES_MAX);
}

#[test]
fn events_before_a_stream_and_a_restart_of_the_hub() {
    let mut health = Health::default();
    let (never, before) = (Connected::Never, Connected::Before);
    health.apply(&id("east"), Event::Registered { before: never }, Millis(1));
    assert_eq!(health.of(&id("east")).state, Joined);
    health.apply(&id("east"), Event::Lost, Millis(1));
    assert_eq!(health.of(&id("east")).state, Joined, "there is no stream to lose");
    health.apply(&id("west"), Event::Registered { before }, Millis(1));
    assert_eq!(health.of(&id("west")).state, AgentLost);
    health.apply(&id("west"), Event::Connected, Millis(2));
    health.apply(&id("west"), Event::Registered { before }, Millis(3));
    assert_eq!(health.of(&id("west")).state, Up);
    assert!(!health.sights().contains_key(&id("east")));
    assert_eq!(health.sights()[&id("west")], Sight::Seen);
}

#[test]
fn since_moves_only_with_the_state() {
    let mut health = Health::default();
    let east = id("east");
    assert_eq!(health.apply(&east, Event::Connected, Millis(1)), Changed::Yes);
    assert_eq!(health.apply(&east, Event::Connected, Millis(2)), Changed::No);
    assert_eq!(health.of(&east).since, Millis(1));
    assert_eq!(health.apply(&east, Event::Lost, Millis(3)), Changed::Yes);
    assert_eq!(health.of(&east).since, Millis(3));
}

#[test]
fn a_probe_report_replaces_what_its_sender_said_before() {
    let mut health = fleet(&["east", "south", "west"]);
    let refused = PeerReach { reach: Reach::Refused, since: Millis(5) };
    let east = id("east");
    let report = [(id("west"), refused), (id("stranger"), refused), (east.clone(), refused)];
    assert_eq!(health.report(&east, &report.clone().into()), Changed::Yes);
    assert_eq!(health.report(&east, &report.into()), Changed::No);
    assert_eq!(health.of(&id("west")).witnesses[&east], refused);
    assert!(health.of(&id("stranger")).witnesses.is_empty());
    assert!(health.of(&east).witnesses.is_empty(), "nobody is a witness of itself");
    assert_eq!(health.report(&east, &ProbeReport::new()), Changed::Yes);
    assert!(health.of(&id("west")).witnesses.is_empty());
}

#[test]
fn a_report_that_was_overtaken_changes_nothing() {
    let mut health = fleet(&["east", "west"]);
    let report = |reach, since| [(id("west"), PeerReach { reach, since: Millis(since) })].into();
    health.report_at(&id("east"), &report(Reach::TimedOut, 10), Millis(10));
    health.report_at(&id("east"), &report(Reach::Reachable, 20), Millis(20));
    health.report_at(&id("east"), &report(Reach::TimedOut, 10), Millis(30));
    assert_eq!(health.of(&id("west")).witnesses[&id("east")].reach, Reach::Reachable);
    // In another stream its clock may be another one.
    health.apply(&id("east"), Event::Lost, Millis(40));
    health.apply(&id("east"), Event::Connected, Millis(50));
    health.report_at(&id("east"), &report(Reach::TimedOut, 5), Millis(50));
    assert_eq!(health.of(&id("west")).witnesses[&id("east")].reach, Reach::TimedOut);
}

#[test]
fn a_removed_member_is_no_witness_any_more() {
    let mut health = fleet(&["east", "west"]);
    says(&mut health, "east", &[("west", Reach::Refused)], 5);
    health.remove(&id("east"));
    assert!(health.of(&id("west")).witnesses.is_empty());
    assert_eq!(health.of(&id("west")).state, Up);
}

#[test]
fn a_clock_that_steps_back_breaks_nothing() {
    let mut health = fleet(&["east", "south", "west"]);
    health.apply(&id("west"), Event::Lost, Millis(50_000));
    says(&mut health, "east", &[("west", Reach::TimedOut)], 48_000);
    says(&mut health, "south", &[("west", Reach::TimedOut)], 48_000);
    assert_eq!(health.of(&id("west")).state, Suspect);
    health.tick(Millis(52_000));
    assert_eq!(health.of(&id("west")).state, Down);
}

#[test]
fn an_agent_without_its_api_server_is_shown_and_keeps_its_traffic() {
    let mut health = Health::default();
    health.apply(&id("west"), Event::Registered { before: Connected::Never }, Millis(0));
    health.apply(&id("west"), Event::Connected, Millis(1));
    assert_eq!(health.api_server(&id("west"), ApiServer::Lost, Millis(2)), Changed::Yes);
    assert_eq!(health.of(&id("west")).state, AgentLost);
    assert_eq!(health.api_server(&id("west"), ApiServer::Answers, Millis(3)), Changed::Yes);
    assert_eq!(health.of(&id("west")).state, Up);
    // A new stream starts afresh: it says so again if it is still so.
    health.api_server(&id("west"), ApiServer::Lost, Millis(4));
    health.apply(&id("west"), Event::Lost, Millis(5));
    health.apply(&id("west"), Event::Connected, Millis(6));
    assert_eq!(health.of(&id("west")).state, Up);
    assert_eq!(health.api_server(&id("nobody"), ApiServer::Lost, Millis(7)), Changed::No);
}
