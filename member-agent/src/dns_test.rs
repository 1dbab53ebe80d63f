//! Sockets: the same answers over both transports, and what flooding gets.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};

use fairlead_model::bundle::Bundle;
use fairlead_model::dns::{AnswerPolicy, DnsName, MemberRecord, RecordSet, Strategy, Zone};
use fairlead_model::health::{PeerReach, Reach};
use fairlead_model::snapshot::Address;
use fairlead_model::{Millis, NsName};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::*;

fn mk_bundle(serial: u32, members: &[(&str, &str)]) -> Bundle {
    let policy = NsName::new("infra", "names");
    let record = |(member, address): &(&str, &str)| MemberRecord {
        member: MemberId::new(member).unwrap(),
        addresses: [Address::of(address)].into(),
        weight: 1,
        tier: 0,
        region: None,
        out: None,
    };
    let set = RecordSet { policy: policy.clone(), members: members.iter().map(record).collect() };
    let answer = AnswerPolicy {
        strategy: Strategy::All,
        ttl_s: 30,
        answers_max: 8,
        ..AnswerPolicy::default()
    };
    let zone = Zone {
        serial,
        negative_ttl_s: 30,
        policies: [(policy, Arc::new(answer))].into(),
        sets: [(DnsName::new("shop.example.com").unwrap(), set)].into(),
        ..Zone::default()
    };
    Bundle { zones: [(DnsName::new("example.com").unwrap(), zone)].into(), ..Bundle::default() }
}

fn mk_held(bundle: Bundle) -> Option<Arc<Held>> {
    Some(Arc::new(Held { bundle, doubts: Default::default(), at: Millis(0), trace: None }))
}

fn mk_query() -> Vec<u8> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("shop.example.com.").unwrap();
    query.add_query(Query::query(name, RecordType::A));
    query.to_vec().unwrap()
}

async fn start(views: Views, rate_per_s: u32) -> SocketAddr {
    // A port that is free for both: asked for once, and given back.
    let listen = {
        let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        probe.local_addr().unwrap()
    };
    let metrics = Arc::new(Metrics::default());
    let server = DnsServer { views, metrics, clock: Clock::start(), rate_per_s };
    tokio::spawn(server.serve(listen));
    for _ in 0..500 {
        if TcpStream::connect(listen).await.is_ok() {
            return listen;
        }
        tokio::task::yield_now().await;
    }
    panic!("the server did not come up");
}

async fn ask_udp(at: SocketAddr) -> Message {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(&mk_query(), at).await.unwrap();
    let mut buffer = [0; 512];
    let len = timely(socket.recv(&mut buffer)).await.unwrap();
    Message::from_vec(&buffer[..len]).unwrap()
}

async fn ask_tcp(at: SocketAddr) -> Message {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let query = mk_query();
    stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
    stream.write_all(&query).await.unwrap();
    Message::from_vec(&timely(read_message(&mut stream)).await.unwrap().unwrap()).unwrap()
}

fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test]
async fn both_transports_give_the_answers_of_the_view() {
    let views = Views::default();
    let zones = mk_bundle(1, &[("east", "192.0.2.1"), ("west", "192.0.2.3")]).zones;
    views.store(Arc::new(View::new(&zones, &BTreeSet::new())));
    let at = start(views, 0).await;
    assert_eq!(addresses(&ask_udp(at).await).len(), 2);
    assert_eq!(addresses(&ask_tcp(at).await).len(), 2);
}

#[tokio::test]
async fn beyond_the_bound_clients_are_sent_to_tcp_which_answers() {
    let views = Views::default();
    let zones = mk_bundle(1, &[("east", "192.0.2.1")]).zones;
    views.store(Arc::new(View::new(&zones, &BTreeSet::new())));
    let at = start(views, 1).await;
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for _ in 0..10 {
        socket.send_to(&mk_query(), at).await.unwrap();
    }
    let mut buffer = [0; 512];
    let mut truncated = 0;
    while truncated == 0 {
        let len = timely(socket.recv(&mut buffer)).await.unwrap();
        truncated += u32::from(Message::from_vec(&buffer[..len]).unwrap().metadata.truncation);
    }
    assert_eq!(addresses(&ask_tcp(at).await).len(), 1);
}

#[tokio::test]
async fn the_view_follows_the_bundle_and_what_can_be_reached() {
    let (held_tx, held) = watch::channel(None);
    let (report_tx, report) = watch::channel(ProbeReport::new());
    let (_belief_tx, belief) = watch::channel(Belief::default());
    let views = Views::default();
    tokio::spawn(ViewKeeper { held, report, belief, views: views.clone() }.run());
    let members = [("east", "192.0.2.1"), ("south", "192.0.2.2"), ("west", "192.0.2.3")];
    let from = "203.0.113.1:53".parse().unwrap();
    let now = || {
        let outcome = respond(&views.load(), &mk_query(), from, Transport::Udp, 1);
        addresses(&Message::from_vec(&outcome.bytes.unwrap()).unwrap()).len()
    };
    let becomes = async |count| {
        let waited = async {
            while now() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap();
    };
    becomes(0).await;
    held_tx.send_replace(mk_held(mk_bundle(1, &members)));
    becomes(3).await;
    let out = PeerReach { reach: Reach::TimedOut, since: Millis(1) };
    let up = PeerReach { reach: Reach::Reachable, since: Millis(1) };
    let id = |name: &str| MemberId::new(name).unwrap();
    report_tx.send_replace([(id("south"), up), (id("west"), out)].into());
    becomes(2).await;
    // Everybody at once: perhaps it is us, so the plan counts.
    report_tx.send_replace([(id("south"), out), (id("west"), out)].into());
    becomes(3).await;
}
