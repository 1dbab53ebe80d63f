//! The short way for usual queries: one question for an address, an alias, the servers or the start of a zone,
//! with EDNS or without, read and answered in place.
//!
//! Says nothing to whatever is not usual in any bit: that goes the long way, through a whole message. Both say
//! the same; tests and the fuzzer compare them.

use std::net::{IpAddr, SocketAddr};

use fairlead_agent_core::dns::{Code, Data, Family, Kind, Record, Reply, Start, View};

use super::packet::{
    EXPIRE_S, HEADER_LEN, Outcome, REFRESH_S, RETRY_S, UDP_LEN_MAX, UDP_LEN_PLAIN,
};

/// Where the name of the question stands.
const NAME_AT: usize = HEADER_LEN;
const NAME_LEN_MAX: usize = 255;
const LABEL_LEN_MAX: usize = 63;
const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;
const AA: u8 = 0x04;
const RD: u8 = 0x01;
const DO: u8 = 0x80;
/// Room for most answers.
const ANSWER_LEN: usize = 256;
/// Options whose content changes no answer: cookies and padding.
const IGNORED_OPTIONS: [u16; 2] = [10, 12];

/// A usual question.
struct Asked<'p> {
    /// The question as it came.
    question: &'p [u8],
    /// The name in lower case, without the dot at its end.
    name: Text,
    kind: Kind,
    edns: Option<Edns>,
}

struct Edns {
    payload: u16,
    dnssec_ok: bool,
}

/// A name of bounded length, on the stack.
struct Text {
    bytes: [u8; NAME_LEN_MAX],
    len: usize,
}

impl Text {
    fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes[..self.len]).ok()
    }
}

/// The answer to a usual query that came in a datagram.
pub(super) fn answer(view: &View, packet: &[u8], from: SocketAddr, seed: u64) -> Option<Outcome> {
    let asked = read(packet)?;
    let name = asked.name.as_str()?;
    let reply = view.answer(name, asked.kind, from.ip(), seed);
    let mut writer = Writer { bytes: Vec::with_capacity(ANSWER_LEN), name };
    writer.answer(packet, &asked, &reply)?;
    let len_max = match &asked.edns {
        None => UDP_LEN_PLAIN,
        Some(edns) => usize::from(edns.payload).clamp(UDP_LEN_PLAIN, UDP_LEN_MAX),
    };
    let label = match reply.code {
        Code::NoError => "noerror",
        Code::NameError => "nxdomain",
        Code::Refused => "refused",
    };
    (writer.bytes.len() <= len_max).then_some(Outcome { bytes: Some(writer.bytes), label })
}

fn read(packet: &[u8]) -> Option<Asked<'_>> {
    let header = packet.get(..HEADER_LEN)?;
    // A query without any flag but RD, of one question and at most one additional record. What else a
    // client may set (AD, CD, Z) changes nothing.
    let usual = header[2] & !RD == 0 && header[3] & 0x0f == 0;
    if !usual || header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 {
        return None;
    }
    let (name, name_end) = read_name(packet)?;
    let tail = packet.get(name_end..)?;
    let (&[k0, k1, c0, c1], rest) = tail.split_first_chunk::<4>()?;
    if u16::from_be_bytes([c0, c1]) != CLASS_IN {
        return None;
    }
    let kind = match u16::from_be_bytes([k0, k1]) {
        1 => Kind::Address(Family::V4),
        2 => Kind::Servers,
        5 => Kind::Alias,
        6 => Kind::Start,
        28 => Kind::Address(Family::V6),
        _ => return None,
    };
    let edns = match (header[11], rest) {
        (0, []) => None,
        (1, opt) => Some(read_edns(opt)?),
        _ => return None,
    };
    Some(Asked { question: &packet[NAME_AT..name_end + 4], name, kind, edns })
}

/// The name, and where it ends. As in the long way, a byte that no name of ours has becomes one that cannot
/// match.
fn read_name(packet: &[u8]) -> Option<(Text, usize)> {
    let mut text = Text { bytes: [0; NAME_LEN_MAX], len: 0 };
    let mut at = NAME_AT;
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            return Some((text, at));
        }
        let label = packet.get(at..at + len).filter(|_| len <= LABEL_LEN_MAX)?;
        at += len;
        // With the length in front of it and the root behind, as the wire counts.
        if at + 1 - NAME_AT > NAME_LEN_MAX {
            return None;
        }
        if text.len > 0 {
            text.bytes[text.len] = b'.';
            text.len += 1;
        }
        for byte in label {
            text.bytes[text.len] = match byte {
                b'.' => 0,
                byte if byte.is_ascii() => byte.to_ascii_lowercase(),
                _ => 0,
            };
            text.len += 1;
        }
    }
}

/// An OPT record to the very end, of version 0, with nothing in it that changes an answer.
fn read_edns(record: &[u8]) -> Option<Edns> {
    let (&[root, t0, t1, p0, p1, code, version, flags, _, l0, l1], mut options) =
        record.split_first_chunk::<11>()?;
    let usual = root == 0 && u16::from_be_bytes([t0, t1]) == TYPE_OPT && code == 0 && version == 0;
    if !usual || usize::from(u16::from_be_bytes([l0, l1])) != options.len() {
        return None;
    }
    while let Some((&[o0, o1, l0, l1], rest)) = options.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if !IGNORED_OPTIONS.contains(&u16::from_be_bytes([o0, o1])) || rest.len() < len {
            return None;
        }
        options = &rest[len..];
    }
    let payload = u16::from_be_bytes([p0, p1]);
    options.is_empty().then_some(Edns { payload, dnssec_ok: flags & DO != 0 })
}

/// Writes an answer. None: something in it is not usual.
struct Writer<'a> {
    bytes: Vec<u8>,
    /// The name of the question, to point into.
    name: &'a str,
}

impl Writer<'_> {
    fn answer(&mut self, packet: &[u8], asked: &Asked<'_>, reply: &Reply<'_>) -> Option<()> {
        let (code, authoritative) = match reply.code {
            Code::NoError => (0, AA),
            Code::NameError => (3, AA),
            Code::Refused => (5, 0),
        };
        let more = reply.additional.len() + usize::from(asked.edns.is_some());
        self.bytes.extend([packet[0], packet[1], 0x80 | authoritative | (packet[2] & RD), code]);
        for count in [1, reply.answers.len(), reply.authority.len(), more] {
            self.put(u16::try_from(count).ok()?);
        }
        self.bytes.extend(asked.question);
        let records = reply.answers.iter().chain(&reply.authority).chain(&reply.additional);
        records.into_iter().try_for_each(|record| self.record(record))?;
        if let Some(edns) = &asked.edns {
            let flags = if edns.dnssec_ok { DO } else { 0 };
            self.bytes.push(0);
            self.put(TYPE_OPT);
            self.put(u16::try_from(UDP_LEN_MAX).ok()?);
            self.bytes.extend([0, 0, flags, 0, 0, 0]);
        }
        Some(())
    }

    fn record(&mut self, record: &Record<'_>) -> Option<()> {
        match record.owner {
            None => self.name(self.name)?,
            Some(owner) => self.name(owner)?,
        }
        let kind: u16 = match &record.data {
            Data::Address(IpAddr::V4(_)) => 1,
            Data::Address(IpAddr::V6(_)) => 28,
            Data::Alias(_) => 5,
            Data::Server(_) => 2,
            Data::Start(_) => 6,
            Data::Location { .. } | Data::Text(_) | Data::NoAny => return None,
        };
        self.put(kind);
        self.put(CLASS_IN);
        self.bytes.extend(record.ttl_s.to_be_bytes());
        // The length comes when it is known.
        let at = self.bytes.len();
        self.put(0);
        match &record.data {
            Data::Address(IpAddr::V4(ip)) => self.bytes.extend(ip.octets()),
            Data::Address(IpAddr::V6(ip)) => self.bytes.extend(ip.octets()),
            Data::Alias(name) | Data::Server(name) => self.name(name)?,
            Data::Start(start) => self.start(start)?,
            Data::Location { .. } | Data::Text(_) | Data::NoAny => return None,
        }
        let len = u16::try_from(self.bytes.len() - at - 2).ok()?;
        self.bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
        Some(())
    }

    fn start(&mut self, start: &Start) -> Option<()> {
        self.name(&start.server)?;
        self.name(&start.contact)?;
        self.bytes.extend(start.serial.to_be_bytes());
        for seconds in [REFRESH_S, RETRY_S, EXPIRE_S] {
            self.bytes.extend(seconds.to_be_bytes());
        }
        self.bytes.extend(start.negative_ttl_s.to_be_bytes());
        Some(())
    }

    /// A name, as far as it does not end as the question's does; from there on it points there.
    fn name(&mut self, name: &str) -> Option<()> {
        if name.len() + 2 > NAME_LEN_MAX {
            return None;
        }
        let mut rest = name;
        while !rest.is_empty() {
            if let Some(at) = self.shared(rest) {
                self.put(0xc000 | u16::try_from(NAME_AT + at).ok()?);
                return Some(());
            }
            let (label, parent) = rest.split_once('.').unwrap_or((rest, ""));
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
            if label.is_empty() || label.len() > LABEL_LEN_MAX || !label.bytes().all(plain) {
                return None;
            }
            self.bytes.push(u8::try_from(label.len()).ok()?);
            self.bytes.extend(label.bytes());
            rest = parent;
        }
        self.bytes.push(0);
        Some(())
    }

    /// Where in the question's name these labels stand: as text and on the wire they are as far from its
    /// beginning, since a length takes the place of a dot.
    fn shared(&self, labels: &str) -> Option<usize> {
        let before = self.name.strip_suffix(labels)?;
        (before.is_empty() || before.ends_with('.')).then_some(before.len())
    }

    fn put(&mut self, number: u16) {
        self.bytes.extend(number.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "usual_test.rs"]
mod tests;
