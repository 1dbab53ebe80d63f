//! Which statuses the hub wants, and when it writes none.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_model::health::{PeerReach, Reach};
use fairlead_model::session::Exception;
use fairlead_model::{ObjectId, PlanNumber};
use serde_json::json;

fn number(counter: u64) -> PlanNumber {
    PlanNumber::new(1, counter)
}

fn mk_now(sent: Option<u64>, applied: Option<ApplyReport>) -> MemberNow {
    let mut now = MemberNow { connected: true, ..MemberNow::default() };
    now.said.sent = sent.map(number);
    now.said.applied = applied;
    now
}

fn mk_applied(counter: u64) -> ApplyReport {
    ApplyReport { number: number(counter), complete: true, objects: 7, ..ApplyReport::default() }
}

#[test]
fn plan_applied_says_how_far_the_member_is() {
    let exception = Exception { reason: Reason::NameConflict, message: "not ours".into() };
    let id: ObjectId = "/v1/Service/shop/cart".parse().unwrap();
    let odd = ApplyReport { exceptions: [(id, exception.clone())].into(), ..mk_applied(2) };
    let refused = ApplyReport { refused: Some(exception), ..mk_applied(2) };
    let partly = ApplyReport { complete: false, ..mk_applied(2) };
    let rows = [
        (mk_now(None, None), None, Reason::WaitingForMembers),
        (mk_now(Some(2), None), Some(false), Reason::WaitingForMembers),
        (mk_now(Some(2), Some(mk_applied(1))), Some(false), Reason::WaitingForMembers),
        (mk_now(Some(2), Some(partly)), Some(false), Reason::WaitingForMembers),
        (mk_now(Some(2), Some(odd)), Some(false), Reason::NameConflict),
        (mk_now(Some(2), Some(refused)), Some(false), Reason::NameConflict),
        (mk_now(Some(2), Some(mk_applied(2))), Some(true), Reason::AsAsked),
    ];
    for (now, status, reason) in rows {
        let condition = plan_applied(&now);
        assert_eq!((condition.status, condition.reason), (status, reason), "{condition:?}");
    }
}

#[test]
fn one_witness_that_cannot_reach_the_door_is_named() {
    let found = |reach| PeerReach { reach, since: Millis(1) };
    let mut now = MemberNow::default();
    assert_eq!(reachable(&now).status, None);
    now.health.witnesses.insert(MemberId::new("west").unwrap(), found(Reach::Reachable));
    assert_eq!(reachable(&now).status, Some(true));
    now.health.witnesses.insert(MemberId::new("south").unwrap(), found(Reach::Refused));
    let condition = reachable(&now);
    assert_eq!((condition.status, condition.reason), (Some(false), Reason::DoorRefused));
    assert!(condition.message.contains("south") && !condition.message.contains("west"));
}

#[test]
fn a_lost_stream_and_one_that_never_was_are_told_apart() {
    let mut now = MemberNow::default();
    assert_eq!(connected(&now).reason, Reason::NoSnapshot);
    now.health.state = MemberState::AgentLost;
    assert_eq!(connected(&now).reason, Reason::AgentLost);
    now.connected = true;
    let headless = connected(&now);
    assert_eq!((headless.status, headless.reason), (Some(false), Reason::AgentLost));
    assert!(headless.message.contains("API server"));
    now.health.state = MemberState::Up;
    assert_eq!(connected(&now).status, Some(true));
}

#[test]
fn counts_are_written_only_when_they_are_far_off() {
    let counts = |endpoints| MemberCounts { gateways: 1, services: 2, endpoints, routes: 3 };
    let old = json!({"counts": {"gateways": 1, "services": 2, "endpoints": 100, "routes": 3}});
    for (endpoints, far) in [(100, false), (119, false), (81, false), (130, true), (0, true)] {
        assert_eq!(far_off(&old, Some(counts(endpoints))), far, "{endpoints}");
    }
    assert!(far_off(&old, Some(MemberCounts { services: 3, ..counts(100) })));
    assert!(far_off(&Json::Null, Some(counts(1))));
    assert!(!far_off(&old, None));
}

#[test]
fn nothing_about_members_is_said_before_the_first_plan() {
    let objects = Objects::default();
    let current = Current::default();
    let facts = Facts {
        current: &current,
        members: &BTreeMap::new(),
        objects: &objects,
        visible: &Verdicts::new(),
        now: Millis(0),
        now_text: "t",
    };
    assert!(facts.is_starting());
    let held = vec![fairlead_model::Note::new("hub", Reason::PolicyNotSynced, "")];
    let current = Current { held, ..Current::default() };
    let facts = Facts { current: &current, ..facts };
    assert!(!facts.is_starting(), "a kind that cannot be read must not hide the members");
}
