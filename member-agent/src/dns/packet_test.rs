//! Messages as resolvers and attackers send them. The queries of RFC 8906 are in `rfc8906_test.rs`, noise in
//! `tests/fuzz_dns.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::Arc;

use fairlead_model::dns::{
    AnswerPolicy, DnsName, MemberRecord, NameServer, Network, RecordSet, Strategy, Zone, Zones,
};
use fairlead_model::snapshot::Address;
use fairlead_model::{MemberId, NsName};
use hickory_proto::op::OpCode;
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

pub(in crate::dns) fn mk_view(answers_max: u16, addresses: u8) -> View {
    let policy_name = NsName::new("infra", "names");
    let record = |(member, region): (&str, &str)| MemberRecord {
        member: MemberId::new(member).unwrap(),
        addresses: (0..addresses)
            .map(|n| Address::of(&format!("192.0.{}.{n}", u8::from(region == "us"))))
            .collect(),
        weight: 1,
        tier: 0,
        region: Some(region.to_owned()),
        out: None,
    };
    let set = RecordSet {
        policy: policy_name.clone(),
        members: [("east", "eu"), ("west", "us")].map(record).into(),
    };
    let policy = AnswerPolicy {
        strategy: Strategy::Geo,
        ttl_s: 30,
        answers_max,
        networks: vec![
            Network::parse("10.0.0.0/8", "eu").unwrap(),
            Network::parse("203.0.113.0/24", "us").unwrap(),
        ],
        ..AnswerPolicy::default()
    };
    let server = NameServer {
        name: name("ns-east.example.com"),
        addresses: ["192.0.2.53".parse().unwrap()].into(),
    };
    let zone = Zone {
        serial: 7,
        negative_ttl_s: 20,
        servers: vec![server],
        policies: [(policy_name, Arc::new(policy))].into(),
        sets: [(name("shop.example.com"), set.clone()), (name("*.example.com"), set)].into(),
    };
    let zones: Zones = [(name("example.com"), zone)].into();
    View::new(&zones, &BTreeSet::new())
}

pub(super) fn from() -> SocketAddr {
    "203.0.113.9:5300".parse().unwrap()
}

fn query(at: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4_711, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(at).unwrap(), kind));
    query
}

fn with_edns(mut query: Message, change: impl FnOnce(&mut Edns)) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(4_096);
    change(&mut edns);
    query.set_edns(edns);
    query
}

fn exchange(view: &View, query: &Message, transport: Transport) -> (Message, usize) {
    let outcome = respond(view, &query.to_vec().unwrap(), from(), transport, 9);
    let bytes = outcome.bytes.unwrap();
    (Message::from_vec(&bytes).unwrap(), bytes.len())
}

fn ask(query: &Message) -> Message {
    exchange(&mk_view(8, 1), query, Transport::Udp).0
}

#[test]
fn letters_come_back_as_they_were_written() {
    let reply = ask(&query("sHoP.eXample.cOM.", RecordType::A));
    assert_eq!(reply.queries[0].name.to_ascii(), "sHoP.eXample.cOM.");
    assert_eq!(reply.answers[0].name.to_ascii(), "sHoP.eXample.cOM.");
    assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
    assert_eq!((reply.metadata.id, reply.answers[0].ttl), (4_711, 30));
}

#[test]
fn transfers_other_classes_and_other_zones_are_refused() {
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    for refused in [
        query("example.com.", RecordType::AXFR),
        query("example.com.", RecordType::IXFR),
        query("example.org.", RecordType::A),
        query(".", RecordType::NS),
        chaos,
    ] {
        let reply = ask(&refused);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{refused}");
        assert!(!reply.metadata.authoritative && reply.answers.is_empty(), "{refused}");
    }
}

#[test]
fn an_answer_is_no_larger_than_its_receiver_takes() {
    let view = mk_view(200, 120);
    let plain = query("shop.example.com.", RecordType::A);
    let (reply, len) = exchange(&view, &plain, Transport::Udp);
    assert!(reply.metadata.truncation && reply.answers.is_empty() && len <= 512);
    let edns = with_edns(plain.clone(), |_| {});
    let (reply, len) = exchange(&view, &edns, Transport::Udp);
    assert!(reply.metadata.truncation && len <= UDP_LEN_MAX && reply.edns.is_some());
    let (reply, _) = exchange(&view, &plain, Transport::Tcp);
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 120, "those of the client's region");
}

#[test]
fn geo_goes_by_the_clients_network_and_says_how_far_that_holds() {
    let region = |reply: &Message| match &reply.answers[0].data {
        RData::A(a) => a.0.octets()[2],
        other => panic!("{other}"),
    };
    let at = |subnet| {
        with_edns(query("shop.example.com.", RecordType::A), |edns| {
            edns.options_mut().insert(EdnsOption::Subnet(subnet));
        })
    };
    let told = |reply: &Message| match reply.edns.as_ref().unwrap().option(EdnsCode::Subnet) {
        Some(EdnsOption::Subnet(s)) => (s.addr(), s.source_prefix(), s.scope_prefix()),
        other => panic!("{other:?}"),
    };
    let net: IpAddr = "10.1.2.0".parse().unwrap();
    assert_eq!(region(&ask(&query("shop.example.com.", RecordType::A))), 1, "the resolver's");
    let reply = ask(&at(ClientSubnet::new(net, 24, 0)));
    assert_eq!((region(&reply), told(&reply)), (0, (net, 24, 24)));
    let none: IpAddr = "0.0.0.0".parse().unwrap();
    let reply = ask(&at(ClientSubnet::new(none, 0, 0)));
    assert_eq!((region(&reply), told(&reply)), (1, (none, 0, 0)), "told to keep out of it");
    let reply = ask(&at(ClientSubnet::new(net, 24, 24)));
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn a_dot_inside_of_a_label_is_no_dot_between_two() {
    let mut odd = query("x.", RecordType::A);
    let labels: [&[u8]; 3] = [b"shop.example", b"com", b"zz"];
    odd.queries[0].name = Name::from_labels(labels[..2].iter().copied()).unwrap();
    assert_eq!(ask(&odd).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn what_is_no_query_gets_nothing_and_what_cannot_be_read_a_header() {
    let view = mk_view(8, 1);
    let send = |bytes: &[u8]| respond(&view, bytes, from(), Transport::Udp, 0);
    let good = query("shop.example.com.", RecordType::A).to_vec().unwrap();
    let mut answer = good.clone();
    answer[2] |= 0x80;
    for silent in [&[][..], &good[..11], &answer] {
        assert_eq!(send(silent), Outcome { bytes: None, label: "ignored" });
    }
    let nowhere: SocketAddr = "203.0.113.9:0".parse().unwrap();
    assert_eq!(respond(&view, &good, nowhere, Transport::Udp, 0).bytes, None);
    let cut = send(&good[..good.len() - 3]);
    assert_eq!((cut.label, cut.bytes.unwrap().len()), ("formerr", 12));
    let mut none = Message::new(1, MessageType::Query, OpCode::Query);
    assert_eq!(ask(&none).metadata.response_code, ResponseCode::FormErr);
    let twice = Query::query(Name::from_ascii("shop.example.com.").unwrap(), RecordType::A);
    none.add_query(twice.clone()).add_query(twice);
    assert_eq!(ask(&none).metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn whoever_is_sent_to_tcp_gets_no_more_than_they_sent() {
    let good = query("shop.example.com.", RecordType::A).to_vec().unwrap();
    let outcome = truncated(&good);
    let bytes = outcome.bytes.unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.metadata.truncation && bytes.len() <= good.len());
    assert_eq!((reply.metadata.id, outcome.label), (4_711, "limited"));
    assert_eq!(truncated(&[0xff; 40]).bytes, None);
    // The name is a pointer into the header; written out it is a byte longer.
    let abbreviated = [0x12, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x02, 0, 16, 0, 1];
    assert_eq!(truncated(&abbreviated).bytes.map(|bytes| bytes.len()), Some(12));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Noise, and good queries with some bytes changed: no panic, and what is sent can be read again.
    #[test]
    fn any_bytes_get_a_readable_answer_or_none(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        start in 0usize..4,
        seed: u64,
        tcp: bool,
    ) {
        let view = mk_view(8, 3);
        let mut packet = match start {
            0 => noise,
            1 => query("sHop.example.com.", RecordType::A).to_vec().unwrap(),
            2 => with_edns(query("a.b.example.com.", RecordType::ANY), |edns| {
                let subnet = ClientSubnet::new("10.1.2.0".parse().unwrap(), 24, 0);
                edns.options_mut().insert(EdnsOption::Subnet(subnet));
            }).to_vec().unwrap(),
            _ => with_edns(query("example.com.", RecordType::NS), |_| {}).to_vec().unwrap(),
        };
        for (at, value) in flips {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        for outcome in [respond(&view, &packet, from(), transport, seed), truncated(&packet)] {
            if let Some(bytes) = outcome.bytes {
                prop_assert_eq!(&bytes[..2], &packet[..2]);
                prop_assert!(bytes[2] & 0x80 != 0, "an answer is marked as one");
                prop_assert!(tcp || bytes.len() <= UDP_LEN_MAX);
                let op_code = OpCode::from_u8((packet[2] >> 3) & 0x0f);
                prop_assert!(bytes.len() == 12 || op_code != OpCode::Query || Message::from_vec(&bytes).is_ok());
            }
        }
    }
}

/// `FUZZ_CASES` for as long as somebody likes.
fn cases() -> u32 {
    std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000)
}
