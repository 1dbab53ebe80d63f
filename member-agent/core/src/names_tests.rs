//! Names of doors: the transitions as a table, and what becomes of slices.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fairlead_model::ClusterUid;
use fairlead_model::bundle::{BundleObject, Claim, Gate};
use proptest::prelude::*;

use super::*;
use crate::live::{Keep, LiveObject};

const DOOR: &str = "door.example.net";

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

fn addresses(texts: &[&str]) -> Heard {
    Heard::Addresses { ips: ips(texts), ttl_s: 60 }
}

fn absent() -> Heard {
    Heard::Absent { ttl_s: Some(20) }
}

/// Says things one after the other, each when it is asked for; what is known then, and how long the next
/// question waits.
fn after(said: &[Heard]) -> (Option<BTreeSet<IpAddr>>, u64) {
    let ask = Ask { name: name(DOOR), family: Family::V4 };
    let (mut names, mut now) = (Names::default(), Millis(1_000));
    names.want(&[name(DOOR)].into(), now);
    let mut wait = 0;
    for heard in said {
        let due = names.due(now);
        assert!(due.contains(&ask), "it is asked for when its time has come");
        names.hear(&ask, heard.clone(), now);
        let next = names.entries[&ask].next;
        wait = next.since(now);
        now = next;
    }
    (names.resolved()[&name(DOOR)].v4.clone(), wait)
}

/// What it is, what is said, what is known then, and how long the next question waits.
type Case = (&'static str, Vec<Heard>, Option<&'static [&'static str]>, u64);

#[test]
fn every_transition() {
    const A: &[&str] = &["192.0.2.1"];
    const B: &[&str] = &["192.0.2.2"];
    let cases: Vec<Case> = vec![
        ("found", vec![addresses(A)], Some(A), 60_000),
        ("it moved", vec![addresses(A), addresses(B)], Some(B), 60_000),
        ("never an answer", vec![Heard::Failed], None, 1_000),
        ("failures grow rarer", vec![Heard::Failed, Heard::Failed, Heard::Failed], None, 4_000),
        ("a failure after an answer", vec![addresses(A), Heard::Failed], Some(A), 1_000),
        (
            "failures for ever",
            [vec![addresses(A)], vec![Heard::Failed; 20]].concat(),
            Some(A),
            30_000,
        ),
        ("absent once", vec![addresses(A), absent()], Some(A), 20_000),
        ("absent twice", vec![addresses(A), absent(), absent()], Some(&[]), 20_000),
        ("absent, failed", vec![addresses(A), absent(), Heard::Failed], Some(A), 1_000),
        (
            "absent, failed, absent",
            vec![addresses(A), absent(), Heard::Failed, absent()],
            Some(&[]),
            20_000,
        ),
        ("absent, then back", vec![addresses(A), absent(), addresses(B)], Some(B), 60_000),
        (
            "doubt does not outlive an answer",
            vec![addresses(A), absent(), addresses(A), absent()],
            Some(A),
            20_000,
        ),
        ("absent from the start", vec![absent()], None, 20_000),
        ("absent from the start, twice", vec![absent(), absent()], Some(&[]), 20_000),
        ("back after an absence", vec![absent(), absent(), addresses(A)], Some(A), 60_000),
        (
            "an absence that does not say how long",
            vec![Heard::Absent { ttl_s: None }],
            None,
            30_000,
        ),
        ("a TTL of nothing", vec![Heard::Addresses { ips: ips(A), ttl_s: 0 }], Some(A), 5_000),
        (
            "a TTL of years",
            vec![Heard::Addresses { ips: ips(A), ttl_s: u32::MAX }],
            Some(A),
            3_600_000,
        ),
        (
            "what is no address of a door",
            vec![addresses(&[
                "127.0.0.1",
                "169.254.169.254",
                "0.0.0.0",
                "2001:db8::1",
                "192.0.2.1",
            ])],
            Some(A),
            60_000,
        ),
        ("nothing but that", vec![addresses(A), addresses(&["127.0.0.1"])], Some(A), 1_000),
        ("no address at all", vec![addresses(A), addresses(&[])], Some(A), 1_000),
    ];
    for (what, said, known, wait) in cases {
        assert_eq!(after(&said), (known.map(ips), wait), "{what}");
    }
}

#[test]
fn a_question_is_out_once_and_late_answers_to_forgotten_ones_are_nothing() {
    let mut names = Names::default();
    names.want(&[name(DOOR)].into(), Millis(0));
    let asked = names.due(Millis(0));
    assert_eq!(asked.len(), 2, "both families");
    assert!(names.due(Millis(9)).is_empty() && names.next_deadline().is_none());
    names.want(&BTreeSet::new(), Millis(0));
    names.hear(&asked[0], addresses(&["192.0.2.1"]), Millis(0));
    assert!(names.resolved().is_empty());
    names.want(&[name(DOOR)].into(), Millis(50));
    assert_eq!(names.next_deadline(), Some(Millis(50)), "it is asked for anew");
}

#[test]
fn names_are_bounded() {
    let mut names = Names::default();
    names.want(&(0..1_000).map(|n| name(&format!("d{n}.example.net"))).collect(), Millis(0));
    assert_eq!(names.due(Millis(0)).len(), 2 * NAMES_MAX);
    let many = (0..200u8).map(|n| format!("192.0.2.{n}"));
    let many: Vec<String> = many.collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (known, _) = after(&[addresses(&many)]);
    assert_eq!(known.unwrap().len(), ADDRESSES_MAX);
}

fn peer(addresses: &[&str]) -> Peer {
    Peer {
        uid: ClusterUid::new("uid-west").unwrap(),
        addresses: addresses.iter().map(|text| Address::of(text)).collect(),
        port: 15_443,
        server_name: "west".to_owned(),
        ca_pem: String::new(),
        readiness: fairlead_model::bundle::Capability::default(),
    }
}

fn slice(address_type: &str, ips: &[&str]) -> Json {
    let endpoints: Vec<Json> = ips.iter().map(|ip| endpoint(&ip.parse().unwrap())).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": address_type,
        "metadata": {"name": format!("member-west-{address_type}").to_lowercase(), "namespace": "fairlead-system",
            "labels": {SERVICE_NAME: "member-west", "app.kubernetes.io/managed-by": "fairlead"}},
        "ports": [{"name": "door", "port": 15_443}], "endpoints": endpoints})
}

fn bundle(door: &[&str], slices: &[Json]) -> Bundle {
    let mut bundle = Bundle::default();
    bundle.peers.insert(MemberId::new("west").unwrap(), peer(door));
    for slice in slices {
        let object = BundleObject { content: slice.clone(), gate: Gate::Open, claim: Claim::Whole };
        bundle.objects.insert(ObjectId::of(slice).unwrap(), object);
    }
    bundle
}

fn filled(
    bundle: &Bundle,
    resolved: &Resolved,
    live: &[Json],
) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let live: LiveObjects = live
        .iter()
        .map(|object| {
            let (id, live) = LiveObject::of(object.clone(), Keep::Whole).unwrap();
            (id, Arc::new(live))
        })
        .collect();
    let mut contents = BTreeMap::new();
    fill_slices(bundle, resolved, &live, &mut contents);
    contents.iter().map(|(id, slice)| (id.name.to_string(), endpoint_ips(slice))).collect()
}

fn found(v4: Option<&[&str]>, v6: Option<&[&str]>) -> Resolved {
    [(name(DOOR), Found { v4: v4.map(ips), v6: v6.map(ips) })].into()
}

#[test]
fn slices_have_what_the_names_stand_for_in_both_families() {
    let slices = [slice("IPv4", &[]), slice("IPv6", &[])];
    let bundle = bundle(&["Door.Example.NET."], &slices);
    let resolved = found(Some(&["192.0.2.1"]), Some(&["2001:db8::1"]));
    let wanted: BTreeMap<String, BTreeSet<IpAddr>> = [
        ("member-west-ipv4".to_owned(), ips(&["192.0.2.1"])),
        ("member-west-ipv6".to_owned(), ips(&["2001:db8::1"])),
    ]
    .into();
    assert_eq!(filled(&bundle, &resolved, &[]), wanted);
}

#[test]
fn addresses_of_the_plan_stay_beside_those_of_names() {
    let bundle = bundle(&["192.0.2.9", DOOR], &[slice("IPv4", &["192.0.2.9"])]);
    let resolved = found(Some(&["192.0.2.1"]), None);
    let slices = filled(&bundle, &resolved, &[]);
    assert_eq!(slices["member-west-ipv4"], ips(&["192.0.2.1", "192.0.2.9"]));
}

/// After a restart, and for as long as no resolver answers.
#[test]
fn before_there_is_an_answer_the_live_slice_stands() {
    let bundle = bundle(&[DOOR], &[slice("IPv4", &[])]);
    let live = [slice("IPv4", &["192.0.2.7"])];
    for unknown in [Resolved::new(), found(None, None), found(None, Some(&[]))] {
        assert_eq!(filled(&bundle, &unknown, &live)["member-west-ipv4"], ips(&["192.0.2.7"]));
    }
    let gone = filled(&bundle, &found(Some(&[]), None), &live);
    assert!(gone.is_empty(), "known to be nothing: as the bundle has it");
}

#[test]
fn without_names_the_bundle_is_applied_as_it_is() {
    let bundle = bundle(&["192.0.2.9"], &[slice("IPv4", &["192.0.2.9"])]);
    let live = [slice("IPv4", &["192.0.2.7"])];
    assert!(filled(&bundle, &found(Some(&["192.0.2.1"]), None), &live).is_empty());
}

#[test]
fn peers_are_probed_where_their_slices_lead() {
    let peers = [(MemberId::new("west").unwrap(), peer(&["192.0.2.9", DOOR]))].into();
    let at = |resolved: &Resolved| -> Vec<String> {
        let peers = resolve_peers(&peers, resolved);
        peers.values().flat_map(|p| &p.addresses).map(ToString::to_string).collect()
    };
    assert_eq!(at(&Resolved::new()), ["192.0.2.9", DOOR]);
    assert_eq!(at(&found(None, None)), ["192.0.2.9", DOOR]);
    let known = found(Some(&["192.0.2.1"]), Some(&["2001:db8::1"]));
    assert_eq!(at(&known), ["192.0.2.1", "192.0.2.9", "2001:db8::1"]);
    assert_eq!(at(&found(Some(&[]), None)), ["192.0.2.9"]);
}

proptest! {
    /// However long the resolver fails, and whatever was there: nothing that was known is lost.
    #[test]
    fn a_failing_resolver_never_takes_an_address_away(
        before in proptest::collection::vec(0u8..4, 0..12),
        failures in 1usize..20,
    ) {
        let said: Vec<Heard> = before.iter().map(|what| match what {
            0 => addresses(&["192.0.2.1"]),
            1 => addresses(&["192.0.2.2", "192.0.2.3"]),
            2 => absent(),
            _ => Heard::Failed,
        }).collect();
        let (known, _) = after(&said);
        let (later, wait) = after(&[said, vec![Heard::Failed; failures]].concat());
        prop_assert_eq!(known, later);
        prop_assert!((RETRY_MIN_MS..=RETRY_MAX_MS).contains(&wait));
    }
}

/// Services of one service each are not called after their member; their label says whose they are.
#[test]
fn slices_of_a_services_own_door_are_filled_too() {
    let mut own = slice("IPv4", &[]);
    own["metadata"]["name"] = json!("member--db-0123456789abcdef0123-v4");
    own["metadata"]["labels"][SERVICE_NAME] = json!("member--db-0123456789abcdef0123");
    let nobody = filled(&bundle(&[DOOR], &[own.clone()]), &found(Some(&["192.0.2.1"]), None), &[]);
    assert_eq!(nobody.len(), 0);
    own["metadata"]["labels"][MEMBER] = json!("west");
    let slices = filled(&bundle(&[DOOR], &[own]), &found(Some(&["192.0.2.1"]), None), &[]);
    assert_eq!(slices["member--db-0123456789abcdef0123-v4"], ips(&["192.0.2.1"]));
}
