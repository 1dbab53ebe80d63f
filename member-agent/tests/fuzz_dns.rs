//! Hostile input for the DNS packet path: whatever comes in, nothing panics, answers and memory stay bounded.
//!
//! A seeded mutational fuzzer without tools of its own: it starts from good queries, changes them, and keeps what was
//! answered in a way not seen before. `cargo verify` plays a fixed number of packets; for an hour of them:
//!
//! ```text
//! FUZZ_SECONDS=3600 cargo test -p fairlead-agent --test fuzz_dns -- --nocapture
//! FUZZ_SEED=7 cargo test -p fairlead-agent --test fuzz_dns       # another run; a failure names its packet
//! ```
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_agent::dns::packet::{Transport, UDP_LEN_MAX, respond, respond_at_length, truncated};
use fairlead_agent_core::clusterset::{Endpoint, NamedPort, Reach};
use fairlead_agent_core::dns::{View, mix};
use fairlead_model::dns::{
    AnswerPolicy, DnsName, MemberRecord, NameServer, Network, RecordSet, Strategy, Zone,
};
use fairlead_model::snapshot::Address;
use fairlead_model::{MemberId, NsName};
use hickory_proto::op::Message;

/// Packets when nobody asks for a time.
const PACKETS: u64 = 300_000;
/// Longest packet that is made: a bit more than is read from a datagram.
const LEN_MAX: usize = 5_000;
/// Packets that are kept to start from.
const CORPUS_MAX: usize = 512;
/// What the process may grow by, after a first round: nothing of a packet outlives its answer.
const GROWTH_KIB_MAX: u64 = 48 * 1_024;

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap();
        usize::try_from(self.next() % bound).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Values at which something happens, as often as all others.
        const EDGES: [u8; 10] = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xc1, 0xff];
        match self.next() & 1 {
            0 => EDGES[self.below(EDGES.len())],
            _ => u8::try_from(self.next() & 0xff).unwrap(),
        }
    }
}

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

/// A zone with everything a zone can have: wildcard, alias, regions, both families.
fn zones() -> View {
    let policy = NsName::new("infra", "names");
    let record = |(member, address, region): (&str, &str, &str)| MemberRecord {
        member: MemberId::new(member).unwrap(),
        addresses: [Address::of(address)].into(),
        weight: 1,
        tier: 0,
        region: Some(region.to_owned()),
        out: None,
    };
    let many = (0..100u8).map(|n| (format!("m{n}"), format!("192.0.2.{n}")));
    let many: Vec<MemberRecord> = many.map(|(m, a)| record((&m, &a, "eu"))).collect();
    let of = |members: Vec<MemberRecord>| RecordSet { policy: policy.clone(), members };
    let answer = AnswerPolicy {
        strategy: Strategy::Geo,
        ttl_s: 30,
        answers_max: 100,
        networks: vec![Network::parse("10.0.0.0/8", "eu").unwrap()],
        ..AnswerPolicy::default()
    };
    let server = NameServer {
        name: name("ns-east.example.com"),
        addresses: ["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()].into(),
    };
    let zone = Zone {
        serial: 7,
        negative_ttl_s: 20,
        servers: vec![server],
        policies: [(policy.clone(), Arc::new(answer))].into(),
        sets: [
            (name("shop.example.com"), of(many)),
            (name("*.example.com"), of(vec![record(("east", "2001:db8::1", "eu"))])),
            (name("alias.example.com"), of(vec![record(("west", "lb.example.net", "us"))])),
        ]
        .into(),
    };
    View::new(&[(name("example.com"), zone)].into(), &BTreeSet::new())
}

fn clusterset() -> View {
    let port = NamedPort { name: "http".to_owned(), protocol: "tcp".to_owned(), number: 80 };
    let endpoint = |n: u8| Endpoint {
        hostname: format!("pet-{n}"),
        address: [10, 0, 0, n].into(),
        ports: [port.clone()].into(),
    };
    let pets = Reach { endpoints: (0..200).map(endpoint).collect(), ..Reach::default() };
    let services = [(NsName::new("shop", "pets"), pets)].into();
    View::of_clusterset(&services, &MemberId::new("east").unwrap(), 7)
}

/// Good queries: every type that means something, with and without EDNS and its options.
fn seeds() -> Vec<Vec<u8>> {
    const NAMES: [&str; 9] = [
        "example.com",
        "sHoP.example.com",
        "a.b.example.com",
        "alias.example.com",
        "ns-east.example.com",
        "example.org",
        "pets.shop.svc.clusterset.local",
        "_http._tcp.pets.shop.svc.clusterset.local",
        "dns-version.clusterset.local",
    ];
    const TYPES: [u16; 13] = [1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 252, 255, 1_000];
    const OPTS: [&[u8]; 4] = [
        &[],
        &[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0],
        // A client subnet, and DO.
        &[0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 10, 1, 2],
        // Version 1 and an unknown option.
        &[0, 0, 41, 0x02, 0, 0, 1, 0, 0x40, 0, 4, 0, 100, 0, 0],
    ];
    let mut seeds = Vec::new();
    for (at, (name, opt)) in NAMES.iter().flat_map(|n| OPTS.map(|o| (n, o))).enumerate() {
        let kind = TYPES[at % TYPES.len()];
        let additional = u8::from(!opt.is_empty());
        let mut packet = vec![0x12, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        for label in name.split('.') {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend(label.bytes());
        }
        packet.push(0);
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(opt);
        seeds.push(packet);
    }
    seeds
}

fn mutate(packet: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    for _ in 0..=chance.below(6) {
        let at = chance.below(packet.len());
        match chance.below(9) {
            _ if packet.is_empty() => packet.push(chance.byte()),
            0 => packet[at] ^= 1 << chance.below(8),
            1 | 2 => packet[at] = chance.byte(),
            3 => packet.truncate(at),
            4 => packet.insert(at, chance.byte()),
            5 => drop(packet.remove(at)),
            // A piece of itself again: records, labels and options many times over.
            6 => {
                let piece = packet[at..].to_vec();
                for _ in 0..=chance.below(64) {
                    packet.extend(&piece);
                }
            }
            7 => {
                packet.truncate(at);
                packet.extend(&other[chance.below(other.len())..]);
            }
            // A pointer of a compressed name to anywhere, itself included.
            _ => {
                let target = u16::try_from(chance.below(packet.len())).unwrap() | 0xc000;
                packet.splice(at..(at + 2).min(packet.len()), target.to_be_bytes());
            }
        }
        packet.truncate(LEN_MAX);
    }
}

/// Most packets keep a header that lets them in: what stands behind it is where the work is.
fn mend_header(packet: &mut [u8], base: &[u8], chance: &mut Chance) {
    const HEADER_LEN: usize = 12;
    if chance.below(4) > 0 && packet.len() >= HEADER_LEN && base.len() >= HEADER_LEN {
        packet[..HEADER_LEN].copy_from_slice(&base[..HEADER_LEN]);
    }
}

/// What must hold of every answer.
fn check(packet: &[u8], bytes: &[u8], transport: Transport) {
    assert!(bytes.len() >= 12 && bytes[..2] == packet[..2], "it belongs to the query");
    assert!(bytes[2] & 0x80 != 0 && packet[2] & 0x80 == 0, "queries are answered, answers are not");
    assert_eq!(bytes[2] & 0x78, packet[2] & 0x78, "the opcode is that of the query");
    assert_eq!(bytes[3] & 0xe0, 0, "no recursion, nothing authentic, nothing reserved");
    match transport {
        Transport::Udp => assert!(bytes.len() <= UDP_LEN_MAX, "{} bytes", bytes.len()),
        Transport::Tcp => assert!(bytes.len() <= 65_535, "{} bytes", bytes.len()),
    }
    if packet[2] & 0x78 == 0 {
        Message::from_vec(bytes).expect("it can be read");
    }
}

/// One packet against one view; what kind of answer it got.
fn play(view: &View, packet: &[u8], seed: u64) -> Vec<(&'static str, u8, usize)> {
    let from: SocketAddr = "203.0.113.9:5300".parse().unwrap();
    let mut kinds = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        let outcome = respond(view, packet, from, transport, seed);
        let answers = outcome.bytes.as_ref().map_or(0, |bytes| usize::from(bytes[7]));
        let flags = outcome.bytes.as_ref().map_or(0, |bytes| bytes[2]);
        kinds.push((outcome.label, flags, answers));
        if let Some(bytes) = &outcome.bytes {
            check(packet, bytes, transport);
        }
        let whole = respond_at_length(view, packet, from, transport, seed);
        assert_eq!(outcome.label, whole.label, "the short way is that of the long one");
        if outcome.bytes != whole.bytes {
            let read =
                |bytes: Option<Vec<u8>>| bytes.map(|bytes| Message::from_vec(&bytes).unwrap());
            assert_eq!(read(outcome.bytes), read(whole.bytes), "both say the same");
        }
    }
    if let Some(bytes) = truncated(packet).bytes {
        assert!(bytes.len() <= packet.len().max(12), "no more than came");
        assert!(bytes[..2] == packet[..2] && bytes[2] & 0x82 == 0x82, "come over TCP");
    }
    kinds
}

/// The most memory that this process ever had, in KiB; none where nobody says.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn hostile_packets_get_bounded_answers_or_none() {
    let seed = number("FUZZ_SEED").unwrap_or(8_906);
    let until = number("FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let views = [zones(), clusterset()];
    let mut corpus = seeds();
    let mut seen: BTreeSet<Vec<(&str, u8, usize)>> = BTreeSet::new();
    let mut labels: BTreeMap<&str, u64> = BTreeMap::new();
    let mut chance = Chance(seed);
    let (mut packets, mut warm) = (0u64, None);
    while until.map_or(packets < PACKETS, |until| Instant::now() < until) {
        let base = &corpus[chance.below(corpus.len())];
        let other = &corpus[chance.below(corpus.len())];
        let mut packet = base.clone();
        mutate(&mut packet, other, &mut chance);
        mend_header(&mut packet, base, &mut chance);
        let view = &views[chance.below(views.len())];
        let roll = chance.next();
        let played = catch_unwind(AssertUnwindSafe(|| play(view, &packet, roll)));
        let Ok(kinds) = played else {
            let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("seed {seed}, packet {packets}: {hex}");
        };
        labels.entry(kinds[0].0).and_modify(|count| *count += 1).or_insert(1);
        if corpus.len() < CORPUS_MAX && packet.len() <= 512 && seen.insert(kinds) {
            corpus.push(packet);
        }
        packets += 1;
        if packets == PACKETS / 10 {
            warm = peak_kib();
        }
    }
    let grown = warm.zip(peak_kib()).map(|(warm, now)| now.saturating_sub(warm));
    println!("{packets} packets, corpus {}, {grown:?} KiB more, {labels:?}", corpus.len());
    assert!(grown.unwrap_or(0) <= GROWTH_KIB_MAX, "grew by {grown:?} KiB");
    // A fuzzer whose packets are all thrown away at the door shows nothing.
    for wanted in ["noerror", "nxdomain", "refused", "formerr", "notimp", "badvers", "ignored"] {
        assert!(labels.contains_key(wanted), "no packet got to {wanted}: {labels:?}");
    }
}
