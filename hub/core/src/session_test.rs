//! What a session does with each message, and what it refuses.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_model::session::{Beat, Exception, SnapshotUpdate};
use fairlead_model::{PlanNumber, SnapshotNumber};

const T0: Millis = Millis(1_000);

fn mk_identity() -> Identity {
    Identity { member: MemberId::new("east").unwrap(), uid: ClusterUid::new("uid-east").unwrap() }
}

fn mk_hello() -> Hello {
    let Identity { member, uid } = mk_identity();
    Hello {
        member,
        uid,
        protocol: PROTOCOL,
        agent_version: "0.1.0".into(),
        incarnation: 3,
        bundle: None,
        now: T0,
    }
}

fn mk_beat() -> Beat {
    Beat { now: T0, api: ApiServer::Answers, trust: None }
}

fn mk_session() -> Session {
    Session::new(mk_identity(), "0.1.0", T0)
}

fn open_with(hello: Hello, known: Remembered) -> (Session, Vec<Output>) {
    let mut session = mk_session();
    let above = hello.bundle.map_or(0, |(number, _)| number.epoch);
    assert_eq!(session.message(FromAgent::Hello(hello), T0), [Output::TakeEpoch { above }]);
    let outputs = session.epoch_taken(above + 1, known, T0);
    (session, outputs)
}

fn mk_open() -> Session {
    open_with(mk_hello(), Remembered::default()).0
}

fn mk_ledger(value: u8) -> Ledger {
    Ledger::new([("a".to_owned(), vec![value])].into())
}

fn mk_held(value: u8) -> Held {
    let ledger = mk_ledger(value);
    let number = SnapshotNumber { incarnation: 2, sequence: 9 };
    Held { number, digest: ledger.digest(), ledger: Arc::new(ledger) }
}

fn mk_wanted(value: u8) -> Wanted {
    let ledger = mk_ledger(value);
    let (digest, ledger) = (ledger.digest(), Arc::new(ledger));
    Wanted { ledger, digest, caused_at: T0, trace_parent: String::new() }
}

fn full(value: u8) -> FromAgent {
    let number = SnapshotNumber { incarnation: 3, sequence: 1 };
    FromAgent::Snapshot(SnapshotUpdate { number, delta: mk_ledger(value).full() })
}

fn closed_with(outputs: &[Output]) -> Option<Reason> {
    outputs.iter().find_map(|output| match output {
        Output::Close(close) => Some(close.reason),
        _ => None,
    })
}

#[test]
fn a_hello_is_checked_against_the_certificate_and_the_protocol() {
    let protocol = |major, minor| Protocol { major, minor };
    let other = |name: &str| MemberId::new(name).unwrap();
    let rows = [
        (mk_hello(), None),
        (Hello { member: other("west"), ..mk_hello() }, Some(Reason::WrongIdentity)),
        (
            Hello { uid: ClusterUid::new("uid-west").unwrap(), ..mk_hello() },
            Some(Reason::WrongIdentity),
        ),
        (Hello { protocol: protocol(PROTOCOL.major, PROTOCOL.minor + 1), ..mk_hello() }, None),
        (
            Hello { protocol: protocol(PROTOCOL.major, PROTOCOL.minor + 2), ..mk_hello() },
            Some(Reason::VersionUnsupported),
        ),
        (
            Hello { protocol: protocol(PROTOCOL.major + 1, 0), ..mk_hello() },
            Some(Reason::VersionUnsupported),
        ),
    ];
    for (hello, want) in rows {
        let outputs = mk_session().message(FromAgent::Hello(hello.clone()), T0);
        assert_eq!(closed_with(&outputs), want, "{hello:?}");
    }
}

#[test]
fn every_message_out_of_order_ends_the_session() {
    let greeting = mk_session;
    let numbering = || {
        let mut session = mk_session();
        session.message(FromAgent::Hello(mk_hello()), T0);
        session
    };
    let rows = [
        (greeting(), full(1), Some(Reason::Unreadable)),
        (greeting(), FromAgent::Heartbeat(mk_beat()), Some(Reason::Unreadable)),
        (greeting(), FromAgent::Applied(ApplyReport::default()), Some(Reason::Unreadable)),
        (numbering(), FromAgent::Heartbeat(mk_beat()), Some(Reason::Unreadable)),
        (numbering(), FromAgent::Hello(mk_hello()), Some(Reason::Unreadable)),
        (mk_open(), FromAgent::Hello(mk_hello()), Some(Reason::Unreadable)),
        (mk_open(), FromAgent::Heartbeat(mk_beat()), None),
        (mk_open(), FromAgent::Probes(ProbeReport::new()), None),
        (mk_open(), FromAgent::Overlay(OverlayReport::default()), None),
        (mk_open(), full(1), None),
    ];
    for (mut session, message, want) in rows {
        let outputs = session.message(message.clone(), T0);
        assert_eq!(closed_with(&outputs), want, "{message:?}");
        if want.is_some() {
            assert_eq!(session.message(full(1), T0), [], "a closed session is silent");
        }
    }
}

#[test]
fn the_epoch_is_asked_for_above_what_the_agent_has_seen() {
    let hello = Hello { bundle: Some((PlanNumber::new(41, 3), [0; 32])), ..mk_hello() };
    let (session, _) = open_with(hello, Remembered::default());
    assert_eq!(session.epoch(), Some(42));
}

#[test]
fn the_welcome_offers_what_is_held() {
    let held = mk_held(1);
    let known = Remembered { snapshot: Some(held.clone()), ..Remembered::default() };
    let (_, outputs) = open_with(mk_hello(), known);
    let [Output::Send(FromHub::Welcome(welcome))] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    assert_eq!(welcome.snapshot, Some((held.number, held.digest)));
}

#[test]
fn a_snapshot_is_taken_in_and_acknowledged() {
    let mut session = mk_open();
    let outputs = session.message(full(1), T0);
    let number = SnapshotNumber { incarnation: 3, sequence: 1 };
    assert!(matches!(&outputs[0], Output::Snapshot(held) if held.number == number));
    assert_eq!(outputs[1], Output::Send(FromHub::SnapshotTaken(number)));
}

#[test]
fn an_agent_that_resumes_in_silence_confirms_with_its_second_heartbeat() {
    let known = Remembered { snapshot: Some(mk_held(1)), ..Remembered::default() };
    let (mut session, _) = open_with(mk_hello(), known);
    assert_eq!(session.message(FromAgent::Heartbeat(mk_beat()), T0), []);
    assert_eq!(session.message(FromAgent::Heartbeat(mk_beat()), T0), [Output::Confirmed]);
}

#[test]
fn an_agent_that_was_offered_nothing_confirms_nothing_by_heartbeats() {
    let mut session = mk_open();
    for _ in 0..5 {
        assert_eq!(session.message(FromAgent::Heartbeat(mk_beat()), T0), []);
    }
}

#[test]
fn a_bundle_goes_out_and_its_report_comes_back() {
    let mut session = mk_open();
    let outputs = session.want(mk_wanted(1));
    let [Output::Send(FromHub::Bundle(update))] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!(session.sent(), Some(update.number));
    let report = ApplyReport { number: update.number, ..ApplyReport::default() };
    assert_eq!(session.message(FromAgent::Applied(report.clone()), T0), [Output::Applied(report)]);
}

#[test]
fn no_bundle_before_the_welcome() {
    assert_eq!(mk_session().want(mk_wanted(1)), []);
}

#[test]
fn an_agent_with_a_newer_plan_ends_the_session() {
    let mut session = mk_open();
    session.want(mk_wanted(1));
    let refused = Some(Exception { reason: Reason::OldNumber, message: String::new() });
    let report = ApplyReport { number: PlanNumber::new(1, 1), refused, ..ApplyReport::default() };
    assert_eq!(
        closed_with(&session.message(FromAgent::Applied(report), T0)),
        Some(Reason::OldNumber)
    );
}

#[test]
fn silence_ends_the_session() {
    let mut session = mk_open();
    assert_eq!(session.wake_at(), T0.plus(HEARTBEAT_MS));
    let beat = session.tick(T0.plus(HEARTBEAT_MS));
    assert_eq!(beat, [Output::Send(FromHub::Heartbeat(T0.plus(HEARTBEAT_MS)))]);
    assert_eq!(session.tick(T0.plus(HEARTBEAT_MS + 1)), []);
    session.message(FromAgent::Heartbeat(mk_beat()), T0.plus(7_000));
    assert_eq!(closed_with(&session.tick(T0.plus(7_000 + SILENCE_MS_MAX - 1))), None);
    let outputs = session.tick(T0.plus(7_000 + SILENCE_MS_MAX));
    assert_eq!(closed_with(&outputs), Some(Reason::AgentLost));
}

#[test]
fn a_peer_that_never_says_hello_is_dropped() {
    let outputs = mk_session().tick(T0.plus(SILENCE_MS_MAX));
    assert_eq!(closed_with(&outputs), Some(Reason::AgentLost));
}

#[test]
fn a_later_start_of_the_agent_fences_an_earlier_one() {
    let at = |incarnation| Hello { incarnation, ..mk_hello() };
    assert!(check_takeover(None, &at(1)).is_ok());
    assert!(check_takeover(Some(&at(1)), &at(2)).is_ok());
    assert!(check_takeover(Some(&at(2)), &at(2)).is_ok(), "the same process dialled again");
    assert_eq!(check_takeover(Some(&at(3)), &at(2)).unwrap_err().reason, Reason::OldNumber);
}

#[test]
fn a_lost_api_server_is_told_once() {
    let mut session = mk_open();
    let lost = Beat { api: ApiServer::Lost, ..mk_beat() };
    assert_eq!(session.message(FromAgent::Heartbeat(mk_beat()), T0), []);
    let told = session.message(FromAgent::Heartbeat(lost), T0);
    assert_eq!(told, [Output::ApiServer(ApiServer::Lost)]);
    assert_eq!(session.message(FromAgent::Heartbeat(lost), T0), []);
    let told = session.message(FromAgent::Heartbeat(mk_beat()), T0);
    assert_eq!(told, [Output::ApiServer(ApiServer::Answers)]);
}
