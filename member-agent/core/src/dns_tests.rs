//! Every rule of the answers, as tables.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use fairlead_model::dns::{
    AnswerPolicy, MemberRecord, Network, RecordSet, Strategy, WhenNoneHealthy,
};
use fairlead_model::snapshot::Address;
use fairlead_model::{NsName, Reason};
use proptest::prelude::{Just, any, prop_assert, prop_oneof, proptest};

use super::*;

const V4: Kind = Kind::Address(Family::V4);
const V6: Kind = Kind::Address(Family::V6);

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

fn id(text: &str) -> MemberId {
    MemberId::new(text).unwrap()
}

fn client() -> IpAddr {
    "203.0.113.9".parse().unwrap()
}

fn policy(strategy: Strategy) -> AnswerPolicy {
    let answers_max = if strategy == Strategy::Weighted { 1 } else { 8 };
    AnswerPolicy { strategy, ttl_s: 30, answers_max, ..AnswerPolicy::default() }
}

fn record(member: &str, addresses: &[&str]) -> MemberRecord {
    MemberRecord {
        member: id(member),
        addresses: addresses.iter().map(|a| Address::of(a)).collect(),
        weight: 1,
        tier: 0,
        region: None,
        out: None,
    }
}

/// East, west and south with an address of each family.
fn three() -> Vec<MemberRecord> {
    [("east", 1), ("south", 2), ("west", 3)]
        .map(|(name, n)| record(name, &[&format!("192.0.2.{n}"), &format!("2001:db8::{n}")]))
        .into()
}

fn zone(policy: AnswerPolicy, sets: &[(&str, Vec<MemberRecord>)]) -> Zones {
    let policy_name = NsName::new("infra", "names");
    let set = |(set_name, members): &(&str, Vec<MemberRecord>)| {
        let set = RecordSet { policy: policy_name.clone(), members: members.clone() };
        (name(set_name), set)
    };
    let server = NameServer {
        name: name("ns-east.example.com"),
        addresses: ["192.0.2.53".parse().unwrap()].into(),
    };
    let zone = Zone {
        serial: 7,
        negative_ttl_s: 20,
        servers: vec![server],
        policies: [(policy_name.clone(), Arc::new(policy))].into(),
        sets: sets.iter().map(set).collect(),
    };
    [(name("example.com"), zone)].into()
}

fn view(policy: AnswerPolicy, members: Vec<MemberRecord>) -> View {
    View::new(&zone(policy, &[("shop.example.com", members)]), &BTreeSet::new())
}

/// Owners other than the asked name, and contents, as text.
fn text(records: &[Record<'_>]) -> Vec<String> {
    let one = |record: &Record<'_>| {
        let data = match &record.data {
            Data::Address(ip) => ip.to_string(),
            Data::Alias(name) => format!("CNAME {name}"),
            Data::Server(name) => format!("NS {name}"),
            Data::Start(start) => format!("SOA {} {}", start.server, start.serial),
            Data::Location { port, target, .. } => format!("SRV {port} {target}"),
            Data::Text(text) => format!("TXT {text}"),
            Data::NoAny => "HINFO".to_owned(),
        };
        format!(
            "{}{} {data}",
            record.owner.map(|o| format!("{o} ")).unwrap_or_default(),
            record.ttl_s
        )
    };
    records.iter().map(one).collect()
}

fn sorted(view: &View, at: &str, kind: Kind) -> Vec<String> {
    let mut found = text(&view.answer(at, kind, client(), 5).answers);
    found.sort();
    found
}

fn shares(view: &View, from: IpAddr, queries: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for seed in 0..queries {
        let reply = view.answer("shop.example.com", V4, from, mix(seed));
        for answer in text(&reply.answers) {
            *counts.entry(answer).or_default() += 1;
        }
    }
    counts
}

#[test]
fn all_names_every_healthy_member_in_the_family_that_is_asked_for() {
    let view = view(policy(Strategy::All), three());
    assert_eq!(
        sorted(&view, "shop.example.com", V4),
        ["30 192.0.2.1", "30 192.0.2.2", "30 192.0.2.3"]
    );
    assert_eq!(
        sorted(&view, "shop.example.com", V6),
        ["30 2001:db8::1", "30 2001:db8::2", "30 2001:db8::3"]
    );
}

#[test]
fn the_zone_says_who_it_is() {
    let view = view(policy(Strategy::All), three());
    let reply = view.answer("example.com", Kind::Start, client(), 0);
    assert_eq!(text(&reply.answers), ["20 SOA ns-east.example.com 7"]);
    let reply = view.answer("example.com", Kind::Servers, client(), 0);
    assert_eq!(text(&reply.answers), ["300 NS ns-east.example.com"]);
    assert_eq!(text(&reply.additional), ["ns-east.example.com 300 192.0.2.53"]);
    assert_eq!(sorted(&view, "ns-east.example.com", V4), ["300 192.0.2.53"]);
}

#[test]
fn what_is_not_there_is_said_with_the_zones_soa() {
    let sets = [("shop.example.com", three()), ("a.b.example.com", three())];
    let view = View::new(&zone(policy(Strategy::All), &sets), &BTreeSet::new());
    let soa = ["example.com 20 SOA ns-east.example.com 7"];
    for (at, kind, code) in [
        ("nope.example.com", V4, Code::NameError),
        ("x.shop.example.com", V4, Code::NameError),
        ("shop.example.com", Kind::Other, Code::NoError),
        ("shop.example.com", Kind::Servers, Code::NoError),
        ("shop.example.com", Kind::Start, Code::NoError),
        ("example.com", V4, Code::NoError),
        ("ns-east.example.com", V6, Code::NoError),
        // A name with something below it exists.
        ("b.example.com", V4, Code::NoError),
    ] {
        let reply = view.answer(at, kind, client(), 0);
        assert_eq!((reply.code, text(&reply.answers)), (code, vec![]), "{at} {kind:?}");
        assert_eq!(text(&reply.authority), soa, "{at} {kind:?}");
    }
    let reply = view.answer("example.org", V4, client(), 0);
    assert_eq!((reply.code, text(&reply.authority)), (Code::Refused, vec![]));
}

#[test]
fn a_wildcard_stands_for_what_does_not_exist_otherwise() {
    let sets = [
        ("*.example.com", vec![record("east", &["192.0.2.1"])]),
        ("shop.example.com", vec![record("west", &["192.0.2.3"])]),
    ];
    let view = View::new(&zone(policy(Strategy::All), &sets), &BTreeSet::new());
    assert_eq!(sorted(&view, "any.example.com", V4), ["30 192.0.2.1"]);
    assert_eq!(sorted(&view, "deep.any.example.com", V4), ["30 192.0.2.1"]);
    assert_eq!(sorted(&view, "shop.example.com", V4), ["30 192.0.2.3"]);
    // RFC 4592: the closest name that exists has no wildcard below it.
    assert_eq!(view.answer("x.shop.example.com", V4, client(), 0).code, Code::NameError);
    assert_eq!(view.answer("any.example.com", Kind::Other, client(), 0).code, Code::NoError);
}

#[test]
fn nobody_gets_everything() {
    let view = view(policy(Strategy::All), three());
    assert_eq!(sorted(&view, "shop.example.com", Kind::Any), ["3600 HINFO"]);
    assert_eq!(view.answer("no.example.com", Kind::Any, client(), 0).code, Code::NameError);
}

#[test]
fn shares_of_answers_are_the_weights() {
    let mut members = three();
    for (member, weight) in members.iter_mut().zip([70, 20, 10]) {
        member.weight = weight;
    }
    let counts = shares(&view(policy(Strategy::Weighted), members), client(), 10_000);
    for (n, percent) in [(1, 70.0), (2, 20.0), (3, 10.0)] {
        let share = 100.0 * f64::from(u32::try_from(counts[&format!("30 192.0.2.{n}")]).unwrap())
            / 10_000.0;
        assert!((share - percent).abs() < 1.5, "{counts:?}");
    }
}

#[test]
fn a_member_of_weight_zero_answers_only_when_it_is_alone() {
    let mut members = three();
    members[1].weight = 0;
    let counts = shares(&view(policy(Strategy::Weighted), members.clone()), client(), 1_000);
    assert!(!counts.contains_key("30 192.0.2.2"), "{counts:?}");
    for other in [0, 2] {
        members[other].out = Some(Reason::Down);
    }
    let counts = shares(&view(policy(Strategy::Weighted), members), client(), 100);
    assert_eq!(counts, [("30 192.0.2.2".to_owned(), 100)].into());
}

#[test]
fn geo_names_the_clients_region_and_everybody_where_it_has_nobody() {
    let mut policy = policy(Strategy::Geo);
    let networks = [("10.0.0.0/8", "eu"), ("10.7.0.0/16", "us"), ("10.9.0.0/16", "mars")];
    policy.networks = networks.map(|(cidr, region)| Network::parse(cidr, region).unwrap()).into();
    let mut members = three();
    for (member, region) in members.iter_mut().zip(["eu", "us", "eu"]) {
        member.region = Some(region.to_owned());
    }
    let from = |view: &View, from: &str| {
        shares(view, from.parse().unwrap(), 1).into_keys().collect::<Vec<_>>()
    };
    let all = ["30 192.0.2.1", "30 192.0.2.2", "30 192.0.2.3"];
    let healthy = view(policy.clone(), members.clone());
    assert_eq!(from(&healthy, "10.1.1.1"), ["30 192.0.2.1", "30 192.0.2.3"]);
    assert_eq!(from(&healthy, "10.7.1.1"), ["30 192.0.2.2"]);
    assert_eq!(from(&healthy, "10.9.1.1"), all, "nobody there");
    assert_eq!(from(&healthy, "192.0.2.200"), all, "not known where");
    assert!(healthy.answer("shop.example.com", V4, client(), 0).is_regional);
    members[1].out = Some(Reason::Down);
    assert_eq!(from(&view(policy, members), "10.7.1.1"), ["30 192.0.2.1", "30 192.0.2.3"]);
}

#[test]
fn failover_names_the_first_tier_with_a_healthy_member() {
    let mut members = three();
    for (member, tier) in members.iter_mut().zip([1, 0, 2]) {
        member.tier = tier;
    }
    let now = |members: &[MemberRecord], out: &[&str]| {
        let sets = [("shop.example.com", members.to_vec())];
        let out = out.iter().map(|name| id(name)).collect();
        sorted(&View::new(&zone(policy(Strategy::Failover), &sets), &out), "shop.example.com", V4)
    };
    assert_eq!(now(&members, &[]), ["30 192.0.2.2"]);
    assert_eq!(now(&members, &["south"]), ["30 192.0.2.1"]);
    members[0].out = Some(Reason::Drained);
    assert_eq!(now(&members, &["south"]), ["30 192.0.2.3"]);
    // Whoever reaches nobody is perhaps alone: the plan counts.
    assert_eq!(now(&members, &["south", "west"]), ["30 192.0.2.2"]);
}

#[test]
fn a_tier_does_not_depend_on_the_family() {
    let mut members = vec![record("east", &["192.0.2.1"]), record("west", &["2001:db8::3"])];
    members[1].tier = 1;
    let view = view(policy(Strategy::Failover), members);
    // Else clients that prefer IPv6 would all go to the member that is to wait.
    let reply = view.answer("shop.example.com", V6, client(), 0);
    assert_eq!((reply.code, reply.answers.len(), reply.authority.len()), (Code::NoError, 0, 1));
}

#[test]
fn when_nobody_is_healthy_the_policy_says_what_is_named() {
    let mut members = three();
    for member in &mut members {
        member.out = Some(Reason::Down);
    }
    let now = |when_none_healthy| {
        let fallback = ["198.51.100.1".parse().unwrap()].into();
        let policy = AnswerPolicy { when_none_healthy, fallback, ..policy(Strategy::All) };
        sorted(&view(policy, members.clone()), "shop.example.com", V4)
    };
    assert_eq!(now(WhenNoneHealthy::All).len(), 3);
    assert_eq!(now(WhenNoneHealthy::None), [""; 0]);
    assert_eq!(now(WhenNoneHealthy::Fallback), ["30 198.51.100.1"]);
}

#[test]
fn a_member_whose_address_is_a_name_is_an_alias_and_stands_alone() {
    let mut members = three();
    members[0] = record("east", &["Lb.Example.NET"]);
    let mixed = view(policy(Strategy::All), members.clone());
    for seed in 0..200 {
        let reply = mixed.answer("shop.example.com", V4, client(), mix(seed));
        let aliases = reply.answers.iter().filter(|r| matches!(r.data, Data::Alias(_))).count();
        assert!(aliases == 0 || reply.answers.len() == 1, "{:?}", text(&reply.answers));
    }
    let alone = view(policy(Strategy::All), vec![members[0].clone()]);
    for kind in [V4, V6, Kind::Alias, Kind::Other] {
        assert_eq!(
            sorted(&alone, "shop.example.com", kind),
            ["30 CNAME lb.example.net"],
            "{kind:?}"
        );
    }
}

#[test]
fn an_answer_has_no_more_addresses_than_the_policy_says_and_none_twice() {
    let policy = AnswerPolicy { answers_max: 2, ..policy(Strategy::All) };
    let view = view(policy, three());
    let counts = shares(&view, client(), 3_000);
    assert_eq!(counts.values().sum::<u64>(), 6_000);
    assert!(counts.values().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
}

#[test]
fn of_two_zones_the_deeper_answers() {
    let mut zones = zone(policy(Strategy::All), &[("shop.example.com", three())]);
    let inner = Zone { serial: 9, ..Zone::default() };
    zones.insert(name("shop.example.com"), inner);
    let view = View::new(&zones, &BTreeSet::new());
    let reply = view.answer("shop.example.com", V4, client(), 0);
    assert_eq!(text(&reply.authority), ["shop.example.com 0 SOA ns.shop.example.com 9"]);
}

proptest! {
    /// Any set at any name: an answer names members of the set only, and never an alias beside others.
    #[test]
    fn answers_are_of_the_set(
        weights in proptest::collection::vec((0u32..5, 0u16..3, any::<bool>(), 0u8..3), 1..6),
        max in 1u16..5,
        seed: u64,
        strategy in prop_oneof![Just(Strategy::Weighted), Just(Strategy::Failover), Just(Strategy::All)],
    ) {
        let members: Vec<MemberRecord> = weights.iter().enumerate().map(|(n, (weight, tier, out, kind))| {
            let ip = format!("192.0.2.{n}");
            let addresses: &[&str] = match kind { 0 => &[&ip], 1 => &["2001:db8::9", &ip], _ => &["lb.example.net"] };
            let mut record = record(&format!("m{n}"), addresses);
            (record.weight, record.tier) = (*weight, *tier);
            record.out = out.then_some(Reason::Down);
            record
        }).collect();
        let policy = AnswerPolicy { answers_max: max, ..policy(strategy) };
        let view = view(policy, members.clone());
        let reply = view.answer("shop.example.com", V4, client(), seed);
        let aliases = reply.answers.iter().filter(|r| matches!(r.data, Data::Alias(_))).count();
        prop_assert!(aliases == 0 || reply.answers.len() == 1);
        prop_assert!(reply.answers.len() <= usize::from(max));
        let able = members.iter().any(|m| m.out.is_none());
        for answer in &reply.answers {
            if let Data::Address(ip) = &answer.data {
                let of = members.iter().find(|m| m.addresses.contains(&Address::Ip(*ip))).unwrap();
                prop_assert!(of.out.is_none() || !able, "a member that is out was named");
            }
        }
    }
}
