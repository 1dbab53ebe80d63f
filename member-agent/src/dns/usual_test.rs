//! The short way says what the long one does, for queries as resolvers send them. Noise is in `tests/fuzz_dns.rs`.
#![expect(clippy::unwrap_used, reason = "tests")]

use hickory_proto::op::Message;

use super::super::packet::{Transport, respond_at_length, tests::mk_view};
use super::*;

const COOKIE: &[u8] = &[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
const DNSSEC: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0];
const SUBNET: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 10, 1, 2];
const CUT: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 5, 0, 10, 0, 8, 1];
const VERSION_1: &[u8] = &[0, 0, 41, 0x04, 0xd0, 0, 1, 0, 0, 0, 0];

fn query(name: &str, kind: u16, flags: [u8; 2], additional: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xab, 0xcd, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0];
    packet.push(u8::from(!additional.is_empty()));
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(additional);
    packet
}

fn both(packet: &[u8]) -> (Option<Outcome>, Outcome) {
    let (view, from) = (mk_view(4, 3), "10.1.2.3:5300".parse().unwrap());
    let long = respond_at_length(&view, packet, from, Transport::Udp, 7);
    (answer(&view, packet, from, 7), long)
}

#[test]
fn both_ways_say_the_same() {
    let names = [
        "shop.example.com",
        "sHoP.Example.COM",
        "a.b.example.com",
        "example.com",
        "ns-east.example.com",
        "no.shop.example.com",
        "example.org",
        "",
        "x.com",
        "sh\u{0}p.example.com",
    ];
    for name in names {
        for kind in [1, 2, 5, 6, 28] {
            for additional in [&[][..], COOKIE, DNSSEC] {
                for flags in [[0, 0], [1, 0], [1, 0x30]] {
                    let (short, long) = both(&query(name, kind, flags, additional));
                    let short = short.unwrap_or_else(|| panic!("{name:?} {kind} is usual"));
                    assert_eq!(short.label, long.label, "{name:?} {kind}");
                    let (short, long) = (short.bytes.unwrap(), long.bytes.unwrap());
                    let read = |bytes: &[u8]| Message::from_vec(bytes).unwrap();
                    assert_eq!(read(&short), read(&long), "{name:?} {kind} {additional:?}");
                    let question = 12..12 + name.len() + 5;
                    assert_eq!(short.get(question.clone()), long.get(question), "case is kept");
                }
            }
        }
    }
}

#[test]
fn what_is_not_usual_goes_the_long_way() {
    let name = "shop.example.com";
    let good = || query(name, 1, [1, 0], &[]);
    let with = |at: usize, byte: u8| {
        let mut packet = good();
        packet[at] = byte;
        packet
    };
    let mut trailing = good();
    trailing.push(0);
    let mut other_class = good();
    *other_class.last_mut().unwrap() = 3;
    let label = "a".repeat(63);
    let too_long = [label.as_str(); 4].join(".");
    for (why, packet) in [
        ("an answer", with(2, 0x80)),
        ("another opcode", with(2, 0x20)),
        ("a code in a query", with(3, 1)),
        ("no question", with(5, 0)),
        ("two questions", with(5, 2)),
        ("an answer inside", with(7, 1)),
        ("a missing additional record", with(11, 1)),
        ("a pointer", with(12, 0xc0)),
        ("trailing bytes", trailing),
        ("another class", other_class),
        ("a header alone", good()[..12].to_vec()),
        ("half a name", good()[..15].to_vec()),
        ("a name that is too long", query(&too_long, 1, [1, 0], &[])),
        ("ANY", query(name, 255, [1, 0], &[])),
        ("AXFR", query(name, 252, [1, 0], &[])),
        ("a client subnet", query(name, 1, [1, 0], SUBNET)),
        ("an option that is cut", query(name, 1, [1, 0], CUT)),
        ("another version", query(name, 1, [1, 0], VERSION_1)),
    ] {
        assert_eq!(both(&packet).0, None, "{why}");
    }
}

#[test]
fn what_does_not_fit_goes_the_long_way() {
    let from = "10.1.2.3:5300".parse().unwrap();
    let view = mk_view(200, 100);
    let packet = query("shop.example.com", 1, [1, 0], &[]);
    assert_eq!(answer(&view, &packet, from, 7), None);
    let long = respond_at_length(&view, &packet, from, Transport::Udp, 7);
    assert!(Message::from_vec(&long.bytes.unwrap()).unwrap().metadata.truncation);
}
