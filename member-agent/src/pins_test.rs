//! Whose CA is believed, and what becomes of a bundle.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::OnceLock;

use fairlead_model::Millis;
use fairlead_model::bundle::{BundleObject, Capability, Claim, Gate, Peer};
use serde_json::json;

use super::*;
use crate::tls::Leaf;

const NOW: Millis = Millis(1_800_000_000_000);
/// Nobody changes this one.
static NORTH: OnceLock<Leaf> = OnceLock::new();

fn mk_ca() -> Leaf {
    pki::make_ca("fairlead crossing u-west", NOW).unwrap()
}

fn uid(text: &str) -> ClusterUid {
    ClusterUid::new(text).unwrap()
}

fn id(name: &str) -> ObjectId {
    ObjectId::new("", "v1", "ConfigMap", "fairlead-system", name)
}

/// What the hub sends: west is a peer and a caller, with these CAs.
fn mk_bundle(cas: &[&Leaf], endorsements: &[String], membership: &str) -> Bundle {
    let ca_pem: String = cas.iter().map(|ca| ca.cert_pem.clone()).collect();
    let other = NORTH.get_or_init(mk_ca).cert_pem.clone();
    let member = |name: &str| MemberId::new(name).unwrap();
    let ca = |uid: ClusterUid, ca_pem: &str, endorsements: &[String]| CrossingCa {
        uid,
        membership: membership.to_owned(),
        ca_pem: ca_pem.to_owned(),
        endorsements: endorsements.to_vec(),
    };
    let map = |name: &str, text: &str| {
        let content = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "fairlead-system"}, "data": {"ca.crt": text}});
        (id(name), BundleObject { content, gate: Gate::Open, claim: Claim::Whole })
    };
    let peer = Peer {
        uid: uid("u-west"),
        addresses: BTreeSet::new(),
        port: 15_443,
        server_name: "door".to_owned(),
        ca_pem: ca_pem.clone(),
        readiness: Capability::default(),
    };
    Bundle {
        objects: [
            map("member-west", &ca_pem),
            map("member-north", &other),
            map(keys::CONFIG_MAP_EAST_WEST_CALLERS, &format!("{other}{ca_pem}")),
        ]
        .into(),
        peers: [(member("west"), peer)].into(),
        cas: [
            (member("west"), ca(uid("u-west"), &ca_pem, endorsements)),
            (member("north"), ca(uid("u-north"), &other, &[])),
        ]
        .into(),
        ..Bundle::default()
    }
}

fn text<'a>(admitted: &'a Admitted, name: &str) -> &'a str {
    admitted.bundle.objects[&id(name)].content["data"]["ca.crt"].as_str().unwrap()
}

/// The CAs of west, wherever they stand; the same everywhere.
fn believed(admitted: &Admitted) -> Vec<String> {
    let peer = pki::split(&admitted.bundle.peers[&MemberId::new("west").unwrap()].ca_pem);
    let map = pki::split(text(admitted, "member-west"));
    let callers = pki::split(text(admitted, keys::CONFIG_MAP_EAST_WEST_CALLERS));
    let north = pki::split(text(admitted, "member-north"));
    let of_west: Vec<_> = callers.into_iter().filter(|pem| !north.contains(pem)).collect();
    assert_eq!((&peer, &peer), (&map, &of_west));
    peer
}

fn pems(cas: &[&Leaf]) -> Vec<String> {
    cas.iter().map(|ca| ca.cert_pem.clone()).collect()
}

fn after(first: &Bundle) -> Beliefs {
    Beliefs { pins: admit(first.clone(), &Beliefs::default()).pins, ..Beliefs::default() }
}

#[test]
fn the_first_ca_is_believed_and_another_is_not() {
    let [old, new] = [mk_ca(), mk_ca()];
    let first = mk_bundle(&[&old], &[], "m1");
    let admitted = admit(first.clone(), &Beliefs::default());
    assert_eq!((&admitted.bundle, admitted.doubts.len()), (&first, 0));
    let beliefs = after(&first);
    let admitted = admit(mk_bundle(&[&new], &[], "m1"), &beliefs);
    assert_eq!(believed(&admitted), pems(&[&old]));
    let doubted: Vec<_> = admitted.doubts.keys().cloned().collect();
    assert_eq!(doubted, [id(keys::CONFIG_MAP_EAST_WEST_CALLERS), id("member-west")]);
    let doubt = &admitted.doubts[&id("member-west")];
    let hash = hash(&new.cert_pem).unwrap();
    assert_eq!(doubt.reason, Reason::UntrustedCa);
    assert!(doubt.message.contains(&format!("fairlead trust west --ca {hash}")), "{doubt:?}");
    assert_eq!(admitted.pins[&uid("u-west")].refused, [hash]);
    // The real one comes back: nothing is left of the doubt.
    let beliefs = Beliefs { pins: admitted.pins, ..Beliefs::default() };
    let admitted = admit(first.clone(), &beliefs);
    assert_eq!((&admitted.bundle, admitted.doubts.len()), (&first, 0));
    assert_eq!(admitted.pins[&uid("u-west")].refused, [""; 0]);
}

#[test]
fn a_change_that_the_old_one_signed_is_followed_to_its_end() {
    let [old, new] = [mk_ca(), mk_ca()];
    let endorsements = [pki::endorse(&old, &new, NOW).unwrap()];
    let mut beliefs = after(&mk_bundle(&[&old], &[], "m1"));
    for cas in [&[&old, &new][..], &[&new]] {
        let bundle = mk_bundle(cas, &endorsements, "m1");
        let admitted = admit(bundle.clone(), &beliefs);
        assert_eq!((&admitted.bundle, admitted.doubts.len()), (&bundle, 0));
        beliefs.pins = admitted.pins;
    }
    // The old one, with its key in whoever's hands, is not believed any more.
    let admitted = admit(mk_bundle(&[&old], &endorsements, "m1"), &beliefs);
    assert_eq!(believed(&admitted), pems(&[&new]));
}

#[test]
fn who_shows_a_stranger_beside_the_real_one_gets_the_real_one_only() {
    let [old, evil] = [mk_ca(), mk_ca()];
    let beliefs = after(&mk_bundle(&[&old], &[], "m1"));
    let admitted = admit(mk_bundle(&[&old, &evil], &[], "m1"), &beliefs);
    assert_eq!(believed(&admitted), pems(&[&old]));
    assert_eq!(admitted.doubts.len(), 2);
}

#[test]
fn an_admin_confirms_and_a_new_registration_begins_anew() {
    let [old, new] = [mk_ca(), mk_ca()];
    let first = mk_bundle(&[&old], &[], "m1");
    let confirmed = [hash(&new.cert_pem).unwrap()].into();
    let beliefs = Beliefs { confirmed, ..after(&first) };
    let admitted = admit(mk_bundle(&[&new], &[], "m1"), &beliefs);
    assert_eq!((believed(&admitted), admitted.doubts.len()), (pems(&[&new]), 0));
    let admitted = admit(mk_bundle(&[&new], &[], "m2"), &after(&first));
    assert_eq!((believed(&admitted), admitted.doubts.len()), (pems(&[&new]), 0));
}

#[test]
fn of_ourselves_we_know_better_and_doubt_nobody() {
    let [ours, other] = [mk_ca(), mk_ca()];
    let own = Some((uid("u-west"), ours.cert_pem.clone()));
    let beliefs = Beliefs { own, ..Beliefs::default() };
    let admitted = admit(mk_bundle(&[&other], &[], "m1"), &beliefs);
    assert_eq!((believed(&admitted), admitted.doubts.len()), (pems(&[&ours]), 0));
    assert!(admitted.pins[&uid("u-west")].own);
    // At a start it is not known for a moment: nothing changes.
    let own = Some((uid("u-west"), String::new()));
    let beliefs = Beliefs { own, pins: admitted.pins.clone(), ..Beliefs::default() };
    let bundle = mk_bundle(&[&other], &[], "m1");
    let again = admit(bundle.clone(), &beliefs);
    assert_eq!(
        (&again.bundle, &again.pins[&uid("u-west")]),
        (&bundle, &admitted.pins[&uid("u-west")])
    );
}

#[test]
fn a_hub_that_does_not_say_whose_a_ca_is_is_taken_at_its_word() {
    let [old, new] = [mk_ca(), mk_ca()];
    let beliefs = after(&mk_bundle(&[&old], &[], "m1"));
    let bundle = Bundle { cas: BTreeMap::new(), ..mk_bundle(&[&new], &[], "m1") };
    let admitted = admit(bundle.clone(), &beliefs);
    assert_eq!((admitted.bundle, admitted.doubts.len()), (bundle, 0));
    assert_eq!(admitted.pins, beliefs.pins);
}

#[test]
fn a_text_without_a_certificate_pins_nothing() {
    let mut bundle = mk_bundle(&[&mk_ca()], &[], "m1");
    bundle.cas.get_mut(&MemberId::new("west").unwrap()).unwrap().ca_pem = "x".to_owned();
    let admitted = admit(bundle.clone(), &Beliefs::default());
    assert_eq!(admitted.bundle, bundle);
    assert!(!admitted.pins.contains_key(&uid("u-west")));
}

#[test]
fn pins_are_bounded_and_those_that_are_named_stay() {
    let first = mk_bundle(&[&mk_ca()], &[], "m1");
    let pin = |n| (uid(&format!("gone-{n}")), CaPin::default());
    let beliefs = Beliefs { pins: (0..PINS_MAX).map(pin).collect(), ..Beliefs::default() };
    let pins = admit(first, &beliefs).pins;
    assert_eq!(pins.len(), PINS_MAX);
    assert!(pins.contains_key(&uid("u-west")) && pins.contains_key(&uid("u-north")));
}
