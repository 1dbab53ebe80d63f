//! From peers to what their doors' names stand for, and what a resolver's answers mean.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use fairlead_model::dns::DnsName;
use fairlead_model::snapshot::{Address, GatewayRole, GatewayState};
use fairlead_model::{ClusterUid, NsName};
use hickory_resolver::net::NoRecords;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{RData, Record};

use super::*;

/// Says the same to every question, and notes them.
#[derive(Clone)]
struct Told(Arc<Mutex<(Heard, BTreeSet<Ask>)>>);

impl Resolve for Told {
    fn resolve(&self, ask: Ask) -> BoxFuture<'static, Heard> {
        let mut held = self.0.lock().unwrap();
        held.1.insert(ask.clone());
        let heard = match ask.family {
            Family::V4 => held.0.clone(),
            Family::V6 => Heard::Absent { ttl_s: None },
        };
        Box::pin(async move { heard })
    }
}

fn peers(addresses: &[&str]) -> Peers {
    let peer = Peer {
        uid: ClusterUid::new("uid-west").unwrap(),
        addresses: addresses.iter().map(|text| Address::of(text)).collect(),
        port: 15_443,
        server_name: "west".to_owned(),
        ca_pem: String::new(),
        readiness: fairlead_model::bundle::Capability::default(),
    };
    Arc::new([(MemberId::new("west").unwrap(), peer)].into())
}

async fn soon<T: Clone>(from: &mut watch::Receiver<T>, is: impl Fn(&T) -> bool) -> T {
    let found = tokio::time::timeout(Duration::from_secs(20), from.wait_for(|held| is(held)));
    found.await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn names_are_asked_for_while_a_bundle_names_them() {
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    let said = Heard::Addresses { ips: [ip].into(), ttl_s: 60 };
    let resolver = Told(Arc::new(Mutex::new((said, BTreeSet::new()))));
    let (peers_tx, peers_rx) = watch::channel(Peers::default());
    let (snapshot_tx, snapshot_rx) = watch::channel(None);
    let (_used, used_rx) = watch::channel(Peers::default());
    let (asked_tx, _asked) = watch::channel(Peers::default());
    let (resolved_tx, mut resolved) = watch::channel(Arc::default());
    let (probed_tx, mut probed) = watch::channel(Peers::default());
    let keeper = NameKeeper {
        clock: Clock::start(),
        peers: peers_rx,
        used: used_rx,
        snapshot: snapshot_rx,
        resolver: resolver.clone(),
        resolved: resolved_tx,
        probed: probed_tx,
        asked: asked_tx,
    };
    let running = tokio::spawn(keeper.run());
    peers_tx.send_replace(peers(&["door.example.net", "192.0.2.9"]));
    let known = soon(&mut resolved, |r| r.values().any(|found| found.v4.is_some())).await;
    assert_eq!(known.values().next().unwrap().v4, Some([ip].into()));
    let at = |peers: &Peers| -> Vec<String> {
        peers.values().flat_map(|p| &p.addresses).map(ToString::to_string).collect()
    };
    soon(&mut probed, |peers| at(peers) == ["192.0.2.1", "192.0.2.9"]).await;
    assert_eq!(resolver.0.lock().unwrap().1.len(), 2, "one question for each family");
    peers_tx.send_replace(peers(&["192.0.2.9"]));
    soon(&mut resolved, |resolved| resolved.is_empty()).await;
    soon(&mut probed, |peers| at(peers) == ["192.0.2.9"]).await;
    let mut snapshot = Snapshot::default();
    let gateway = GatewayState {
        class: "eg".to_owned(),
        role: GatewayRole::Created(NsName::new("infra", "public")),
        programmed: Some(true),
        message: String::new(),
        addresses: [Address::of("lb.example.net")].into(),
        listeners: BTreeMap::new(),
    };
    snapshot.gateways.insert(NsName::new("infra", "public-global"), gateway);
    snapshot_tx.send_replace(Some(Arc::new(snapshot)));
    let lb = DnsName::new("lb.example.net").unwrap();
    soon(&mut resolved, |r| r.get(&lb).is_some_and(|found| found.v4.is_some())).await;
    running.abort();
}

/// A server that answers A with one address, AAAA with the zone's SOA, and everything under `broken` with an
/// error.
async fn server() -> SocketAddr {
    use hickory_resolver::proto::op::{Message, OpCode};
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let asked = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.add_query(asked.clone());
            let start = || SOA::new(asked.name.clone(), asked.name.clone(), 1, 1, 1, 1, 20);
            if asked.name.to_ascii().starts_with("broken") {
                answer.metadata.response_code = ResponseCode::ServFail;
            } else if asked.query_type == RecordType::A {
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
                answer.answers.push(Record::from_rdata(asked.name, 60, data));
            } else {
                let start = RData::SOA(start());
                answer.authorities.push(Record::from_rdata(asked.name, 20, start));
            }
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    at
}

#[tokio::test]
async fn a_resolver_is_asked_over_the_network() {
    let resolver = SystemResolver::new(&[server().await]);
    let ask = |name: &str, family| {
        let ask = Ask { name: DnsName::new(name).unwrap(), family };
        tokio::time::timeout(Duration::from_secs(30), resolver.resolve(ask))
    };
    let v4 = ask("door.example.net", Family::V4).await.unwrap();
    let wanted = "192.0.2.1".parse().unwrap();
    assert_eq!(v4, Heard::Addresses { ips: [wanted].into(), ttl_s: 60 });
    let v6 = ask("door.example.net", Family::V6).await.unwrap();
    assert_eq!(v6, Heard::Absent { ttl_s: Some(20) });
    assert_eq!(ask("broken.example.net", Family::V4).await.unwrap(), Heard::Failed);
}

#[test]
fn only_who_must_know_can_say_that_there_is_nothing() {
    let none = |code: ResponseCode, soa: bool| {
        let name = Name::from_ascii("door.example.net.").unwrap();
        let mut none = NoRecords::new(Query::query(name.clone(), RecordType::A), code);
        none.negative_ttl = soa.then_some(20);
        let start = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 20);
        none.soa = soa.then(|| Box::new(Record::from_rdata(name, 20, start)));
        heard(&NetError::Dns(DnsError::NoRecordsFound(none)))
    };
    use ResponseCode::{NXDomain, NoError, Refused, ServFail};
    let absent = Heard::Absent { ttl_s: Some(20) };
    assert_eq!(none(NXDomain, true), absent);
    assert_eq!(none(NoError, true), absent);
    assert_eq!(none(NXDomain, false), Heard::Absent { ttl_s: None });
    for code in [NoError, ServFail, Refused] {
        assert_eq!(none(code, false), Heard::Failed, "{code}");
    }
    assert_eq!(heard(&NetError::Dns(DnsError::ResponseCode(ServFail))), Heard::Failed);
    assert_eq!(heard(&NetError::Timeout), Heard::Failed);
}
