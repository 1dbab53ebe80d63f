//! Knocks at doors that are shut, open and half open, on loopback.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::testing::{LetsIn, TestDoor, TestMember};

async fn knock(member: &TestMember, door: &TestDoor) -> (Option<(Knock, String)>, String) {
    let address = Address::Ip(door.address.ip());
    let port = door.address.port();
    visit_all(&member.uid, Listener::Headers, &[(address, port)], &member.crossing).await.unwrap()
}

#[tokio::test]
async fn a_door_that_asks_for_our_certificates_is_shut() {
    let member = TestMember::new("uid-east");
    let door = member.open_door(LetsIn::Callers, 302).await;
    let (verdict, unclear) = knock(&member, &door).await;
    assert_eq!(verdict.map(|v| v.0), Some(Knock::Shut), "{unclear}");
}

#[tokio::test]
async fn one_lane_that_lets_anybody_in_is_enough() {
    let member = TestMember::new("uid-east");
    let shut = member.open_door(LetsIn::Callers, 302).await;
    let open = member.open_door(LetsIn::Everybody, 302).await;
    let places = [&shut, &open].map(|door| (Address::Ip(door.address.ip()), door.address.port()));
    let found = async |places| {
        let got = visit_all(&member.uid, Listener::Sni, places, &member.crossing).await;
        got.unwrap().0.map(|(knock, _)| knock)
    };
    assert_eq!(found(&places).await, Some(Knock::StrangerLetIn));
    assert_eq!(found(&places[..1]).await, Some(Knock::Shut));
}

#[tokio::test]
async fn a_door_that_lets_anybody_in_is_found_out() {
    let member = TestMember::new("uid-east");
    let door = member.open_door(LetsIn::Everybody, 302).await;
    let verdict = knock(&member, &door).await.0.unwrap();
    assert_eq!(verdict.0, Knock::StrangerLetIn);
    assert!(verdict.1.contains("without a certificate and callers with a foreign one"));
}

#[tokio::test]
async fn a_door_without_probe_route_proves_nothing() {
    let member = TestMember::new("uid-east");
    let door = member.open_door(LetsIn::Callers, 404).await;
    let (verdict, unclear) = knock(&member, &door).await;
    assert_eq!(verdict, None);
    assert!(unclear.contains("404"), "{unclear}");
}

#[tokio::test]
async fn a_door_of_another_ca_proves_nothing() {
    let member = TestMember::new("uid-east");
    let other = TestMember::new("uid-east");
    let door = other.open_door(LetsIn::Callers, 302).await;
    assert_eq!(knock(&member, &door).await.0, None);
}

#[tokio::test]
async fn nobody_at_home_proves_nothing() {
    let member = TestMember::new("uid-east");
    let door = member.open_door(LetsIn::Callers, 302).await;
    let address = door.address;
    drop(door);
    let at = [(Address::Ip(address.ip()), address.port())];
    let listener = Listener::Headers;
    let got = visit_all(&member.uid, listener, &at, &member.crossing).await.unwrap();
    assert_eq!(got.0, None);
}

#[test]
fn the_worst_visit_counts() {
    use Visit::{Answered, LetIn, Refused, Unclear};
    let unclear = || Unclear(String::new());
    let of = |ours: &Visit, nobody: &Visit, stranger: &Visit| {
        judge(Listener::Sni, ours, nobody, stranger).map(|(knock, _)| knock)
    };
    assert_eq!(of(&Answered, &Refused, &Refused), Some(Knock::Shut));
    assert_eq!(of(&unclear(), &Refused, &LetIn), Some(Knock::StrangerLetIn));
    assert_eq!(of(&Answered, &LetIn, &Refused), Some(Knock::StrangerLetIn));
    assert_eq!(
        of(&unclear(), &Refused, &Refused),
        None,
        "a door that answers nobody proves nothing"
    );
    assert_eq!(of(&Answered, &unclear(), &Refused), None);
    assert_eq!(of(&LetIn, &Refused, &Refused), None);
}
