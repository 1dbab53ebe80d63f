//! The queries of RFC 8906 section 8, byte by byte, and what each is to be answered with.
//!
//! Messages are put together and taken apart by hand: with the same library on both sides, one mistake could
//! hide another.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::tests::{from, mk_view};
use super::*;

const ZONE: &[u8] = b"\x07example\x03com\x00";
const SOA: u16 = 6;
const DNSKEY: u16 = 48;
const OPT: u16 = 41;
// Bits of the header's flags.
const RD: u16 = 0x0100;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
const Z: u16 = 0x0040;
/// In the OPT record's flags.
const DO: u16 = 0x8000;

/// The OPT record of a query.
#[derive(Clone, Copy, Default)]
struct Opt {
    version: u8,
    flags: u16,
    size: u16,
    /// Options on the wire.
    options: &'static [u8],
}

struct Line {
    what: &'static str,
    flags: u16,
    kind: u16,
    opt: Option<Opt>,
    /// Code with its extended part.
    code: u16,
    soa: bool,
    /// Bits of AA, RD, AD, Z and TC that have to be set; all others have to be clear.
    bits: u16,
}

/// A plain query for the zone's SOA that has to be answered with it.
const PLAIN: Line = Line { what: "", flags: 0, kind: SOA, opt: None, code: 0, soa: true, bits: AA };
const EDNS: Opt = Opt { version: 0, flags: 0, size: 1_232, options: &[] };
const VERSION_1: Opt = Opt { version: 1, ..EDNS };
const BADVERS: Line = Line { code: 16, soa: false, bits: 0, ..PLAIN };
/// Option 100, empty.
const UNKNOWN: &[u8] = &[0, 100, 0, 0];
/// COOKIE, NSID, EXPIRE, and a client subnet of 0.0.0.0/0.
const DEFINED: &[u8] =
    &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3, 0, 0, 0, 9, 0, 0, 0, 8, 0, 4, 0, 1, 0, 0];

const LINES: [Line; 17] = [
    Line { what: "8.1.1 is it there for the zone", ..PLAIN },
    Line { what: "8.1.2 an unknown type", kind: 1_000, soa: false, ..PLAIN },
    Line { what: "8.1.3.1 CD", flags: CD, ..PLAIN },
    Line { what: "8.1.3.2 AD", flags: AD, ..PLAIN },
    Line { what: "8.1.3.3 the reserved bit", flags: Z, ..PLAIN },
    Line { what: "8.1.3.4 RD", flags: RD, bits: AA | RD, ..PLAIN },
    Line { what: "8.2.1 plain EDNS", opt: Some(EDNS), ..PLAIN },
    Line { what: "8.2.2 EDNS version 1", opt: Some(VERSION_1), ..BADVERS },
    Line { what: "8.2.3 an unknown option", opt: Some(Opt { options: UNKNOWN, ..EDNS }), ..PLAIN },
    Line { what: "8.2.4 an unknown flag", opt: Some(Opt { flags: 0x40, ..EDNS }), ..PLAIN },
    Line {
        what: "8.2.5 version 1 with an unknown flag",
        opt: Some(Opt { flags: 0x40, ..VERSION_1 }),
        ..BADVERS
    },
    Line {
        what: "8.2.6 version 1 with an unknown option",
        opt: Some(Opt { options: UNKNOWN, ..VERSION_1 }),
        ..BADVERS
    },
    Line {
        what: "8.2.7 little room",
        kind: DNSKEY,
        opt: Some(Opt { flags: DO, size: 512, ..EDNS }),
        soa: false,
        ..PLAIN
    },
    Line { what: "8.2.8 DO", opt: Some(Opt { flags: DO, ..EDNS }), ..PLAIN },
    Line { what: "8.2.9 version 1 with DO", opt: Some(Opt { flags: DO, ..VERSION_1 }), ..BADVERS },
    Line {
        what: "8.2.10 several defined options",
        opt: Some(Opt { options: DEFINED, ..EDNS }),
        ..PLAIN
    },
    Line { what: "8.1.3 all bits at once", flags: CD | AD | Z | RD, bits: AA | RD, ..PLAIN },
];

fn on_the_wire(line: &Line) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x67];
    bytes.extend(line.flags.to_be_bytes());
    let additional = u16::from(line.opt.is_some());
    for count in [1, 0, 0, additional] {
        bytes.extend(count.to_be_bytes());
    }
    bytes.extend(ZONE);
    bytes.extend(line.kind.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    if let Some(opt) = line.opt {
        bytes.push(0);
        bytes.extend(OPT.to_be_bytes());
        bytes.extend(opt.size.to_be_bytes());
        bytes.extend([0, opt.version]);
        bytes.extend(opt.flags.to_be_bytes());
        bytes.extend(u16::try_from(opt.options.len()).unwrap().to_be_bytes());
        bytes.extend(opt.options);
    }
    bytes
}

/// What an answer says, as far as the lines ask.
#[derive(Debug, PartialEq, Default)]
struct Said {
    bits: u16,
    code: u16,
    soa: bool,
    answers: u16,
    /// Version, flags and options of the OPT record.
    opt: Option<(u8, u16, Vec<u16>)>,
}

fn read(bytes: &[u8]) -> Said {
    let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let flags = u16_at(2);
    assert_eq!(flags & 0x8000, 0x8000, "it is an answer");
    let [questions, answers, authority, additional] = [4, 6, 8, 10].map(u16_at);
    let mut said = Said {
        bits: flags & (AA | RD | AD | Z | TC | 0x0080),
        code: flags & 0x000f,
        answers,
        ..Said::default()
    };
    let mut at = 12;
    let skip_name = |mut at: usize| loop {
        match bytes[at] {
            0 => return at + 1,
            pointer if pointer >= 0xc0 => return at + 2,
            len => at += 1 + usize::from(len),
        }
    };
    for _ in 0..questions {
        at = skip_name(at) + 4;
    }
    for record in 0..answers + authority + additional {
        at = skip_name(at);
        let (kind, len) = (u16_at(at), usize::from(u16_at(at + 8)));
        said.soa |= kind == SOA && record < answers;
        if kind == OPT {
            said.code |= u16::from(bytes[at + 4]) << 4;
            let (mut option, end) = (at + 10, at + 10 + len);
            let mut options = Vec::new();
            while option < end {
                options.push(u16_at(option));
                option += 4 + usize::from(u16_at(option + 2));
            }
            said.opt = Some((bytes[at + 5], u16_at(at + 6), options));
        }
        at += 10 + len;
    }
    assert_eq!(at, bytes.len(), "nothing is left over");
    said
}

#[test]
fn every_line_is_answered_as_the_rfc_asks() {
    let view = mk_view(8, 1);
    for line in &LINES {
        let query = on_the_wire(line);
        // 8.1.5 and EDNS over TCP: the same over both.
        for transport in [Transport::Udp, Transport::Tcp] {
            let bytes = respond(&view, &query, from(), transport, 9).bytes.unwrap();
            let said = read(&bytes);
            let what = format!("{} {transport:?}: {said:?}", line.what);
            assert_eq!(said.code, line.code, "{what}");
            assert_eq!((said.soa, said.answers), (line.soa, u16::from(line.soa)), "{what}");
            assert_eq!(said.bits, line.bits, "{what}");
            match (&line.opt, &said.opt) {
                (None, None) => {}
                (Some(asked), Some((version, flags, options))) => {
                    assert_eq!((*version, *flags), (0, asked.flags & DO), "{what}");
                    // Of the defined options the client's network alone means something here.
                    let known: &[u16] = if asked.options == DEFINED { &[8] } else { &[] };
                    assert_eq!(options, known, "{what}");
                }
                _ => panic!("{what}"),
            }
        }
    }
}

/// 8.1.4: nothing is known of what stands behind the header.
#[test]
fn an_unknown_opcode_is_not_implemented() {
    let header = [0x12, 0x67, 15 << 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let whole = on_the_wire(&Line { flags: 15 << 11, opt: Some(EDNS), ..PLAIN });
    for query in [&header[..], &whole] {
        let answer = respond(&mk_view(8, 1), query, from(), Transport::Udp, 0).bytes.unwrap();
        let mut wanted = [0u8; 12];
        (wanted[0], wanted[1], wanted[2], wanted[3]) = (0x12, 0x67, 0x80 | 15 << 3, 4);
        assert_eq!(answer, wanted, "no flags, no records");
    }
}
