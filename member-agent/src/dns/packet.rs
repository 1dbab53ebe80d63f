//! One DNS message in, one out: between the wire and [`View::answer`].
//!
//! No sockets and no clock. Whatever comes in, nothing panics; what is no query gets no answer at all, so
//! that two servers never talk to each other for ever.

use std::net::{IpAddr, SocketAddr};

use fairlead_agent_core::dns::{Code, Data, Family, Kind, Record, Reply, Start, View};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, SOA, SRV, TXT};
use hickory_proto::rr::{self, DNSClass, Name, RData, RecordType};

use super::usual;

/// Largest answer over UDP: fits into every path without fragments (DNS flag day 2020).
pub const UDP_LEN_MAX: usize = 1_232;
/// Largest answer over UDP to whoever does not say more.
pub(super) const UDP_LEN_PLAIN: usize = 512;
/// Largest message over TCP.
const TCP_LEN_MAX: usize = 65_535;
pub(super) const HEADER_LEN: usize = 12;
// Refresh, retry and expire are for secondaries; there are none, every server has the zone by other ways.
pub(super) const REFRESH_S: i32 = 3_600;
pub(super) const RETRY_S: i32 = 600;
pub(super) const EXPIRE_S: i32 = 1_209_600;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What is sent back; none = nothing.
    pub bytes: Option<Vec<u8>>,
    /// Closed set, for metrics.
    pub label: &'static str,
}

/// Answers a message: a usual one the short way. `seed` is chance.
pub fn respond(
    view: &View,
    packet: &[u8],
    from: SocketAddr,
    transport: Transport,
    seed: u64,
) -> Outcome {
    let usual = match transport {
        Transport::Udp if from.port() != 0 => usual::answer(view, packet, from, seed),
        Transport::Udp | Transport::Tcp => None,
    };
    usual.unwrap_or_else(|| respond_at_length(view, packet, from, transport, seed))
}

/// Answers any message, through every part of it.
pub fn respond_at_length(
    view: &View,
    packet: &[u8],
    from: SocketAddr,
    transport: Transport,
    seed: u64,
) -> Outcome {
    const SILENCE: Outcome = Outcome { bytes: None, label: "ignored" };
    // Answers, and what has no room for a header, get none.
    if packet.len() < HEADER_LEN || packet[2] & 0x80 != 0 || from.port() == 0 {
        return SILENCE;
    }
    let op_code = OpCode::from_u8((packet[2] >> 3) & 0x0f);
    if op_code != OpCode::Query {
        return refuse(packet, op_code, ResponseCode::NotImp);
    }
    let Ok(query) = Message::from_vec(packet) else {
        return refuse(packet, op_code, ResponseCode::FormErr);
    };
    if query.metadata.message_type != MessageType::Query {
        return SILENCE;
    }
    let mut message = response(&query, from, view, seed);
    encode(&mut message, len_max(&query, transport))
}

/// An empty, truncated answer: whoever asked really shall come over TCP. Costs its receiver no more than
/// the query cost its sender.
pub fn truncated(packet: &[u8]) -> Outcome {
    if packet.len() < HEADER_LEN || packet[2] & 0x80 != 0 {
        return Outcome { bytes: None, label: "ignored" };
    }
    let mut bytes = header(packet, 0);
    bytes[2] |= 0x02;
    if let Ok(query) = Message::from_vec(packet)
        && let [question] = query.queries.as_slice()
    {
        let mut message = Message::response(query.metadata.id, OpCode::Query);
        message.metadata.truncation = true;
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        message.add_query(question.clone());
        // A name that the query abbreviated by pointing into itself is longer when it is written out.
        let whole = message.to_vec().ok().filter(|whole| whole.len() <= packet.len());
        bytes = whole.unwrap_or(bytes);
    }
    Outcome { bytes: Some(bytes), label: "limited" }
}

/// A header alone, for messages that cannot be read.
fn refuse(packet: &[u8], op_code: OpCode, code: ResponseCode) -> Outcome {
    let mut bytes = header(packet, code.low());
    bytes[2] |= u8::from(op_code) << 3;
    Outcome { bytes: Some(bytes), label: label(code) }
}

fn header(packet: &[u8], code: u8) -> Vec<u8> {
    let recursion_desired = packet[2] & 0x01;
    let mut bytes = vec![packet[0], packet[1], 0x80 | recursion_desired, code & 0x0f];
    bytes.resize(HEADER_LEN, 0);
    bytes
}

fn response(query: &Message, from: SocketAddr, view: &View, seed: u64) -> Message {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    if let Some(edns) = &query.edns {
        message.edns = Some(own_edns(edns));
        if edns.version() > 0 {
            message.metadata.response_code = ResponseCode::BADVERS;
            message.queries.clone_from(&query.queries);
            return message;
        }
    }
    let [question] = query.queries.as_slice() else {
        message.metadata.response_code = ResponseCode::FormErr;
        return message;
    };
    message.add_query(question.clone());
    let subnet = match subnet(query) {
        Ok(subnet) => subnet,
        Err(()) => {
            message.metadata.response_code = ResponseCode::FormErr;
            return message;
        }
    };
    if is_refused(question) {
        message.metadata.response_code = ResponseCode::Refused;
        return message;
    }
    let told = subnet.filter(|subnet| subnet.source_prefix() > 0).map(|subnet| subnet.addr());
    let client = told.unwrap_or(from.ip());
    let name = lower(&question.name);
    let reply = view.answer(&name, kind(question.query_type), client, seed);
    if let (Some(subnet), Some(edns)) = (subnet, &mut message.edns) {
        let scope = if reply.is_regional { subnet.source_prefix() } else { 0 };
        let subnet = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), scope);
        edns.options_mut().insert(EdnsOption::Subnet(subnet));
    }
    fill(&mut message, &reply, question);
    message
}

/// Unknown options are not answered, unknown flags are clear; DO comes back as it was (RFC 3225).
fn own_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(UDP_LEN_MAX).unwrap_or(u16::MAX));
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

/// The client's network, where the resolver tells it. A query that names a scope has no meaning (RFC 7871).
fn subnet(query: &Message) -> Result<Option<ClientSubnet>, ()> {
    match query.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Subnet)) {
        Some(EdnsOption::Subnet(subnet)) if subnet.scope_prefix() == 0 => Ok(Some(*subnet)),
        Some(EdnsOption::Subnet(_)) => Err(()),
        Some(_) | None => Ok(None),
    }
}

/// No other class than IN, and no transfers.
fn is_refused(question: &Query) -> bool {
    question.query_class != DNSClass::IN
        || matches!(question.query_type, RecordType::AXFR | RecordType::IXFR)
}

fn kind(record_type: RecordType) -> Kind {
    match record_type {
        RecordType::A => Kind::Address(Family::V4),
        RecordType::AAAA => Kind::Address(Family::V6),
        RecordType::CNAME => Kind::Alias,
        RecordType::NS => Kind::Servers,
        RecordType::SOA => Kind::Start,
        RecordType::SRV => Kind::Location,
        RecordType::TXT => Kind::Text,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// A name as text in lower case, without the dot at its end. A byte that no name of ours has becomes one
/// that cannot match: a dot inside of a label must not look like one between two.
fn lower(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| match byte {
            b'.' => '\u{0}',
            byte if byte.is_ascii() => char::from(byte.to_ascii_lowercase()),
            _ => '\u{0}',
        }));
    }
    text
}

fn fill(message: &mut Message, reply: &Reply<'_>, question: &Query) {
    message.metadata.response_code = match reply.code {
        Code::NoError => ResponseCode::NoError,
        Code::NameError => ResponseCode::NXDomain,
        Code::Refused => ResponseCode::Refused,
    };
    message.metadata.authoritative = reply.code != Code::Refused;
    let records = |records: &[Record<'_>]| {
        records.iter().filter_map(|r| record(r, &question.name)).collect::<Vec<_>>()
    };
    message.answers = records(&reply.answers);
    message.authorities = records(&reply.authority);
    message.additionals = records(&reply.additional);
}

/// None for a name that the wire cannot carry; names of ours can.
fn record(record: &Record<'_>, asked: &Name) -> Option<rr::Record> {
    let owner = match record.owner {
        None => asked.clone(),
        Some(owner) => wire_name(owner)?,
    };
    let data = match &record.data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
        Data::Alias(name) => RData::CNAME(CNAME(wire_name(name)?)),
        Data::Server(name) => RData::NS(NS(wire_name(name)?)),
        Data::Start(start) => RData::SOA(soa(start)?),
        Data::Location { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, wire_name(target)?))
        }
        Data::Text(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
        Data::NoAny => RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())),
    };
    Some(rr::Record::from_rdata(owner, record.ttl_s, data))
}

fn soa(start: &Start) -> Option<SOA> {
    let (server, contact) = (wire_name(&start.server)?, wire_name(&start.contact)?);
    let negative = start.negative_ttl_s;
    Some(SOA::new(server, contact, start.serial, REFRESH_S, RETRY_S, EXPIRE_S, negative))
}

fn wire_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn len_max(query: &Message, transport: Transport) -> usize {
    match (transport, &query.edns) {
        (Transport::Tcp, _) => TCP_LEN_MAX,
        (Transport::Udp, None) => UDP_LEN_PLAIN,
        (Transport::Udp, Some(edns)) => {
            usize::from(edns.max_payload()).clamp(UDP_LEN_PLAIN, UDP_LEN_MAX)
        }
    }
}

/// What does not fit loses its additional records first, then all records and says so.
fn encode(message: &mut Message, len_max: usize) -> Outcome {
    let code = message.metadata.response_code;
    let label = label(code);
    for cut in [Cut::Nothing, Cut::Additional, Cut::All] {
        match cut {
            Cut::Nothing => {}
            Cut::Additional => message.additionals.clear(),
            Cut::All => {
                message.answers.clear();
                message.authorities.clear();
                message.metadata.truncation = true;
            }
        }
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= len_max => return Outcome { bytes: Some(bytes), label },
            Ok(_) | Err(_) => {}
        }
    }
    let Metadata { id, op_code, .. } = message.metadata;
    let failure = Message::error_msg(id, op_code, ResponseCode::ServFail);
    Outcome { bytes: failure.to_vec().ok(), label: "servfail" }
}

enum Cut {
    Nothing,
    Additional,
    All,
}

fn label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "noerror",
        ResponseCode::NXDomain => "nxdomain",
        ResponseCode::Refused => "refused",
        ResponseCode::FormErr => "formerr",
        ResponseCode::NotImp => "notimp",
        ResponseCode::BADVERS => "badvers",
        _ => "servfail",
    }
}

#[cfg(test)]
#[path = "packet_test.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "rfc8906_test.rs"]
mod rfc8906_tests;
