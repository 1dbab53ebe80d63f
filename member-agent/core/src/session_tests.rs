//! The uplink's transitions: hello, resume, numbers, digests, backoff.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_model::ledger::Delta;
use fairlead_model::session::Protocol;
use proptest::prelude::*;

fn ledger(entries: &[(&str, &str)]) -> Ledger {
    Ledger::new(entries.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect())
}

struct World {
    session: Session,
    now: Millis,
}

impl World {
    fn new(bundle: Option<(PlanNumber, Ledger)>) -> Self {
        let identity = Identity {
            member: MemberId::new("east").unwrap(),
            uid: ClusterUid::new("uid-east").unwrap(),
            agent_version: "0.1.0".to_owned(),
            incarnation: 4,
        };
        let now = Millis(1_000);
        Self { session: Session::new(identity, bundle, now), now }
    }

    fn on(&mut self, input: Input) -> Vec<Output> {
        self.session.on(input, self.now, 0.0)
    }

    fn hear(&mut self, message: FromHub) -> Vec<Output> {
        self.on(Input::Heard(message))
    }

    /// Goes to the next deadline.
    fn wait(&mut self) -> Vec<Output> {
        self.now = self.session.next_deadline().unwrap().max(self.now);
        self.on(Input::Tick)
    }

    fn hello(&mut self) -> Hello {
        assert_eq!(self.wait(), [Output::Dial]);
        let out = self.on(Input::Connected);
        let [Output::Say(FromAgent::Hello(hello))] = out.as_slice() else { panic!("{out:?}") };
        hello.clone()
    }

    fn open(&mut self) -> Vec<Output> {
        self.hello();
        self.hear(welcome(None))
    }
}

fn welcome(snapshot: Option<(SnapshotNumber, Digest)>) -> FromHub {
    FromHub::Welcome(Welcome {
        protocol: PROTOCOL,
        hub_version: "0.1.0".to_owned(),
        epoch: 1,
        snapshot,
        now: Millis(0),
    })
}

fn bundle(number: PlanNumber, base: Option<PlanNumber>, delta: Delta) -> FromHub {
    FromHub::Bundle(BundleUpdate {
        number,
        base,
        delta,
        caused_at: Millis(0),
        trace_parent: String::new(),
    })
}

fn snapshots(out: &[Output]) -> Vec<SnapshotUpdate> {
    let snapshot = |o: &Output| match o {
        Output::Say(FromAgent::Snapshot(update)) => Some(update.clone()),
        _ => None,
    };
    out.iter().filter_map(snapshot).collect()
}

const N1: PlanNumber = PlanNumber::new(1, 1);
const N2: PlanNumber = PlanNumber::new(1, 2);

#[test]
fn the_hello_claims_what_is_on_disk() {
    let kept = ledger(&[("a", "1")]);
    let mut world = World::new(Some((N1, kept.clone())));
    let hello = world.hello();
    assert_eq!(hello.bundle, Some((N1, kept.digest())));
    assert_eq!((hello.incarnation, hello.protocol), (4, PROTOCOL));
}

#[test]
fn the_first_snapshot_is_everything_and_the_next_a_delta() {
    let mut world = World::new(None);
    let one = ledger(&[("a", "1"), ("b", "1")]);
    let two = ledger(&[("a", "2"), ("b", "1")]);
    world.open();
    let first = snapshots(&world.on(Input::Snapshot(one.clone())));
    assert_eq!(first[0].delta, one.full());
    assert_eq!(first[0].number, SnapshotNumber { incarnation: 4, sequence: 1 });
    assert_eq!(snapshots(&world.on(Input::Snapshot(two.clone()))), [], "one in flight");
    let next = snapshots(&world.hear(FromHub::SnapshotTaken(first[0].number)));
    assert_eq!(next[0].delta, two.delta_from(&one));
    assert!(!world.session.is_current());
    world.hear(FromHub::SnapshotTaken(next[0].number));
    assert!(world.session.is_current());
    assert_eq!(world.on(Input::Snapshot(two)), [], "the same again says nothing");
}

#[test]
fn changes_while_one_is_in_flight_are_sent_as_one() {
    let mut world = World::new(None);
    world.open();
    let first = snapshots(&world.on(Input::Snapshot(ledger(&[("a", "1")]))));
    for value in ["2", "3", "4"] {
        assert_eq!(world.on(Input::Snapshot(ledger(&[("a", value)]))), []);
    }
    let next = snapshots(&world.hear(FromHub::SnapshotTaken(first[0].number)));
    assert_eq!((next.len(), next[0].delta.put["a"].as_slice()), (1, b"4".as_slice()));
}

#[test]
fn a_hub_that_wants_everything_gets_it() {
    let mut world = World::new(None);
    world.open();
    let one = ledger(&[("a", "1")]);
    world.on(Input::Snapshot(one.clone()));
    let again = snapshots(&world.hear(FromHub::SnapshotWanted));
    assert_eq!((again[0].delta.clone(), again[0].number.sequence), (one.full(), 2));
    world.hear(FromHub::SnapshotTaken(SnapshotNumber { incarnation: 4, sequence: 1 }));
    assert!(!world.session.is_current(), "what was lost cannot be taken");
}

#[test]
fn a_reconnect_resumes_where_number_and_digest_fit() {
    let mut world = World::new(None);
    world.open();
    let one = ledger(&[("a", "1")]);
    let first = snapshots(&world.on(Input::Snapshot(one.clone())))[0].number;
    world.hear(FromHub::SnapshotTaken(first));
    world.on(Input::Disconnected);
    world.hello();
    let out = snapshots(&world.hear(welcome(Some((first, one.digest())))));
    assert!(out[0].delta.is_empty() && out[0].delta.based, "nothing but: I am current");
    world.on(Input::Disconnected);
    world.hello();
    let out = snapshots(&world.hear(welcome(Some((first, [0; 32])))));
    assert_eq!(out[0].delta, one.full(), "another digest costs everything once");
}

#[test]
fn reports_are_said_again_after_a_reconnect() {
    let mut world = World::new(None);
    let applied = ApplyReport { number: N1, complete: true, ..ApplyReport::default() };
    assert_eq!(world.on(Input::Applied(applied.clone())), [], "nobody listens");
    world.on(Input::Overlay(OverlayReport::default()));
    let out = world.open();
    let said: Vec<_> = out.into_iter().collect();
    assert_eq!(
        said,
        [
            Output::Say(FromAgent::Overlay(OverlayReport::default())),
            Output::Say(FromAgent::Applied(applied)),
        ]
    );
}

#[test]
fn bundles_follow_each_other_by_deltas() {
    let mut world = World::new(None);
    world.open();
    let (one, two) = (ledger(&[("a", "1")]), ledger(&[("b", "1")]));
    assert_eq!(world.hear(bundle(N1, None, one.full())), [Output::Bundle(N1, one.clone())]);
    let next = world.hear(bundle(N2, Some(N1), two.delta_from(&one)));
    assert_eq!(next, [Output::Bundle(N2, two)]);
}

#[test]
fn an_older_number_is_refused_and_the_stream_goes_on() {
    let kept = ledger(&[("a", "1")]);
    let mut world = World::new(Some((N2, kept)));
    world.open();
    let out = world.hear(bundle(N1, None, ledger(&[]).full()));
    let [Output::Say(FromAgent::Applied(report))] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(report.refused.as_ref().unwrap().reason, Reason::OldNumber);
    assert_eq!(report.number, N1);
    assert!(world.session.is_open());
    let other = world.hear(bundle(N2, None, ledger(&[("b", "1")]).full()));
    assert!(
        matches!(other.as_slice(), [Output::Say(FromAgent::Applied(r))] if r.refused.is_some())
    );
}

#[test]
fn the_number_that_is_held_is_confirmed_without_a_new_bundle() {
    let kept = ledger(&[("a", "1")]);
    let mut world = World::new(Some((N1, kept.clone())));
    let report = ApplyReport { number: N1, complete: true, ..ApplyReport::default() };
    world.on(Input::Applied(report.clone()));
    world.open();
    let out = world.hear(bundle(N1, None, kept.full()));
    assert_eq!(out, [Output::Say(FromAgent::Applied(report))]);
}

#[test]
fn a_bundle_that_does_not_fit_costs_one_full_one() {
    let kept = ledger(&[("a", "1")]);
    for broken in [
        bundle(N2, Some(PlanNumber::new(1, 0)), ledger(&[]).delta_from(&kept)),
        bundle(N2, Some(N1), ledger(&[]).delta_from(&ledger(&[("z", "1")]))),
        bundle(N2, None, ledger(&[("x", "1")]).delta_from(&kept)),
    ] {
        let mut world = World::new(Some((N1, kept.clone())));
        world.open();
        assert_eq!(world.hear(broken), [Output::Hangup { why: Hangup::BrokenBundle }]);
        assert_eq!(world.hello().bundle, None, "claims nothing");
        world.hear(welcome(None));
        // The hub may well send the number that we held: we said that we hold none.
        let full = ledger(&[("c", "1")]);
        assert_eq!(world.hear(bundle(N1, None, full.full())), [Output::Bundle(N1, full.clone())]);
        world.on(Input::Disconnected);
        assert_eq!(world.hello().bundle, Some((N1, full.digest())));
    }
}

#[test]
fn another_major_version_is_not_talked_to() {
    let mut world = World::new(None);
    world.hello();
    let mut other = welcome(None);
    if let FromHub::Welcome(welcome) = &mut other {
        welcome.protocol = Protocol { major: 2, minor: 0 };
    }
    assert_eq!(world.hear(other), [Output::Hangup { why: Hangup::Version }]);
}

#[test]
fn a_silent_hub_is_left_and_a_talking_one_kept() {
    let mut world = World::new(None);
    world.open();
    let start = world.now;
    while world.session.is_open() {
        let out = world.wait();
        assert!(out.len() == 1, "a heartbeat or the end: {out:?}");
    }
    assert_eq!(world.now.since(start), SILENCE_MS);
    let mut world = World::new(None);
    world.open();
    for _ in 0..20 {
        assert!(matches!(world.wait()[..], [Output::Say(FromAgent::Heartbeat(_))]));
        world.hear(FromHub::Heartbeat(Millis(0)));
    }
}

#[test]
fn a_lost_api_server_is_said_at_once_and_with_every_heartbeat() {
    let mut world = World::new(None);
    // Nobody listens yet: it is said once the stream is open.
    assert_eq!(world.on(Input::ApiServer(ApiServer::Lost)), []);
    world.open();
    let beat = |world: &World, api| {
        vec![Output::Say(FromAgent::Heartbeat(Beat { now: world.now, api, trust: None }))]
    };
    let said = world.wait();
    assert_eq!(said, beat(&world, ApiServer::Lost));
    let said = world.on(Input::ApiServer(ApiServer::Answers));
    assert_eq!(said, beat(&world, ApiServer::Answers));
    let said = world.wait();
    assert_eq!(said, beat(&world, ApiServer::Answers));
}

#[test]
fn words_out_of_turn_end_the_stream() {
    let mut world = World::new(None);
    world.hello();
    assert_eq!(world.hear(FromHub::SnapshotWanted), [Output::Hangup { why: Hangup::OutOfTurn }]);
    world.open();
    assert_eq!(world.hear(welcome(None)), [Output::Hangup { why: Hangup::OutOfTurn }]);
}

#[test]
fn waits_double_up_to_ten_seconds_and_are_short_after_a_good_stream() {
    let mut world = World::new(None);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let before = world.now;
        assert_eq!(world.wait(), [Output::Dial]);
        waits.push(world.now.since(before));
        world.on(Input::Disconnected);
    }
    assert_eq!(waits, [0, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
    world.open();
    world.now = world.now.plus(GOOD_STREAM_MS);
    world.on(Input::Disconnected);
    assert_eq!(world.session.next_deadline().unwrap().since(world.now), 200);
    assert_eq!((backoff_ms(0, 1.0), backoff_ms(99, 0.5)), (100, 7_500));
}

proptest! {
    /// Whatever a hub says, numbers never go back and nothing panics.
    #[test]
    fn numbers_never_go_back(steps in proptest::collection::vec((0u64..3, 0u64..4, any::<bool>(), 0u8..4), 0..40)) {
        let mut world = World::new(None);
        let mut highest = PlanNumber::default();
        for (epoch, counter, based, what) in steps {
            if !world.session.is_open() {
                while world.wait() != [Output::Dial] {}
                world.on(Input::Connected);
                world.hear(welcome(None));
            }
            let number = PlanNumber::new(epoch, counter);
            let (old, new) = (ledger(&[]), ledger(&[("a", &what.to_string())]));
            let message = match what {
                0 => FromHub::SnapshotWanted,
                1 => FromHub::SnapshotTaken(SnapshotNumber { incarnation: epoch, sequence: counter }),
                _ if based => bundle(number, Some(highest), new.delta_from(&old)),
                _ => bundle(number, None, new.full()),
            };
            for output in world.hear(message) {
                if let Output::Bundle(number, _) = output {
                    prop_assert!(number >= highest);
                    highest = number;
                }
            }
        }
    }
}
