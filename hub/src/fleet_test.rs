//! The hub's fleet from message to bundle, without sockets and clusters.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_model::health::MemberState;
use fairlead_model::ledger::Ledger;
use fairlead_model::session::PROTOCOL;
use fairlead_model::{Millis, SnapshotNumber};

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn identity(name: &str) -> Identity {
    Identity { member: member(name), uid: ClusterUid::new(&format!("uid-{name}")).unwrap() }
}

fn mk_hello(name: &str, incarnation: u64) -> Hello {
    let Identity { member, uid } = identity(name);
    let agent_version = "0.1.0".to_owned();
    let (protocol, now) = (PROTOCOL, Millis(0));
    Hello { member, uid, protocol, agent_version, incarnation, bundle: None, now }
}

fn registered(names: &[&str]) -> BTreeMap<MemberId, Option<ClusterUid>> {
    names.iter().map(|name| (member(name), Some(identity(name).uid))).collect()
}

fn mk_held() -> Held {
    let ledger = Ledger::default();
    let number = SnapshotNumber { incarnation: 1, sequence: 1 };
    Held { number, digest: ledger.digest(), ledger: Arc::new(ledger) }
}

fn mk_wanted(value: u8) -> Wanted {
    let ledger = Ledger::new([("a".to_owned(), vec![value])].into());
    let (digest, ledger) = (ledger.digest(), Arc::new(ledger));
    Wanted { ledger, digest, caused_at: Millis(0), trace_parent: String::new() }
}

fn stored(name: &str) -> BTreeMap<MemberId, Stored> {
    let held = mk_held();
    let report = Report {
        uid: identity(name).uid,
        order: ReportOrder { epoch: 1, number: held.number },
        ledger: held.ledger,
        digest: held.digest,
        snapshot: Arc::default(),
        notes: Vec::new(),
        received_at: Millis(1),
    };
    [(member(name), Stored { uid: report.uid.clone(), report: Some(report) })].into()
}

fn closed(orders: &watch::Receiver<Orders>) -> Option<Reason> {
    orders.borrow().close.as_ref().map(|close| close.reason)
}

#[test]
fn a_newer_stream_fences_the_older_one() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["east"]));
    let (_, older) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    let (_, newer) = fleet.open(&mk_hello("east", 1), 2).unwrap();
    assert_eq!((closed(&older), closed(&newer)), (Some(Reason::OldNumber), None));
    fleet.close(&member("east"), 1);
    assert!(fleet.look()[&member("east")].connected, "the end of the older one ends nothing");
    assert_eq!(fleet.open(&mk_hello("east", 1), 1).unwrap_err().reason, Reason::OldNumber);
}

#[test]
fn a_removed_member_loses_its_stream_and_leaves_nothing() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["east", "west"]));
    let (_, orders) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    fleet.report(&identity("east"), 1, mk_held());
    fleet.register(&registered(&["west"]));
    assert_eq!(closed(&orders), Some(Reason::MemberRemoved));
    assert_eq!(fleet.look().keys().collect::<Vec<_>>(), [&member("west")]);
    assert_eq!(fleet.take_unstored().1, [member("east")].into());
    // A message that was under way brings nothing back.
    fleet.report(&identity("east"), 1, mk_held());
    assert!(fleet.take_unstored().0.is_empty());
}

#[test]
fn a_member_that_joined_just_now_survives_an_older_view_of_the_watch() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["west"]));
    let (_, orders) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    fleet.report(&identity("east"), 1, mk_held());
    fleet.register(&registered(&["west", "south"]));
    assert_eq!(closed(&orders), None);
    fleet.register(&registered(&["west", "south", "east"]));
    assert!(fleet.look()[&member("east")].synced);
    fleet.register(&registered(&["west", "south"]));
    assert_eq!(closed(&orders), Some(Reason::MemberRemoved));
}

#[test]
fn a_name_given_to_another_cluster_ends_the_stream_of_the_old_one() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["east"]));
    let (_, orders) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    let other = ClusterUid::new("uid-other").unwrap();
    fleet.register(&[(member("east"), Some(other))].into());
    assert_eq!(closed(&orders), Some(Reason::MemberRemoved));
    assert_eq!(fleet.is_registered(&identity("east")), Some(false));
}

#[test]
fn after_a_restart_stored_members_are_awaited_until_they_report() {
    let fleet = Fleet::default();
    fleet.restore(stored("east"));
    assert_eq!(fleet.is_registered(&identity("east")), None);
    fleet.register(&registered(&["east"]));
    assert_eq!(fleet.awaited(), [member("east")].into());
    // Who joins later is nobody's loss.
    fleet.register(&registered(&["east", "west"]));
    assert_eq!(fleet.awaited(), [member("east")].into());
    let look = fleet.look();
    assert_eq!(look[&member("east")].health.state, MemberState::AgentLost);
    assert_eq!(look[&member("west")].health.state, MemberState::Joined);
    assert!(!look[&member("east")].synced);
    let (remembered, _orders) = fleet.open(&mk_hello("east", 1), 2).unwrap();
    assert!(remembered.snapshot.is_some());
    assert_eq!(fleet.awaited().len(), 1, "a stream alone is no report");
    fleet.confirm(&member("east"));
    assert!(fleet.awaited().is_empty());
}

#[test]
fn a_hub_without_a_memory_awaits_those_who_had_joined() {
    let fleet = Fleet::default();
    let mut members = registered(&["east", "west"]);
    members.insert(member("never-joined"), None);
    fleet.register(&members);
    assert_eq!(fleet.awaited(), [member("east"), member("west")].into());
    let (_, _orders) = fleet.open(&mk_hello("east", 1), 2).unwrap();
    fleet.report(&identity("east"), 2, mk_held());
    assert_eq!(fleet.awaited(), [member("west")].into());
}

#[test]
fn a_member_removed_while_the_hub_was_away_is_not_awaited() {
    let fleet = Fleet::default();
    fleet.restore(stored("east"));
    fleet.register(&registered(&["west"]));
    assert!(!fleet.awaited().contains(&member("east")));
    assert_eq!(fleet.take_unstored().1, [member("east")].into());
}

#[test]
fn a_lost_stream_leaves_the_inventory() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["east"]));
    let (_, _orders) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    fleet.report(&identity("east"), 1, mk_held());
    fleet.close(&member("east"), 1);
    let east = fleet.look().remove(&member("east")).unwrap();
    assert_eq!(east.health.state, MemberState::AgentLost);
    assert!(east.report.is_some() && !east.connected);
}

#[test]
fn streams_are_told_only_of_bundles_that_differ() {
    let fleet = Fleet::default();
    fleet.register(&registered(&["east"]));
    let (_, mut orders) = fleet.open(&mk_hello("east", 1), 1).unwrap();
    orders.borrow_and_update();
    for (value, told) in [(1, true), (1, false), (2, true)] {
        fleet.want([(member("east"), mk_wanted(value))].into());
        assert_eq!(orders.has_changed().unwrap(), told, "{value}");
        orders.borrow_and_update();
    }
    let (remembered, _orders) = fleet.open(&mk_hello("east", 1), 2).unwrap();
    assert_eq!(remembered.bundle.unwrap().0, mk_wanted(2).digest);
}
