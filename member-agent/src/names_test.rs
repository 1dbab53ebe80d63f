//! From peers to what their doors' names stand for, and what a resolver's answers mean.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;

use fairlead_model::ClusterUid;
use fairlead_model::snapshot::Address;
use hickory_resolver::net::NoRecords;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::Record;
use hickory_resolver::proto::rr::rdata::SOA;

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
    let (resolved_tx, mut resolved) = watch::channel(Arc::default());
    let (probed_tx, mut probed) = watch::channel(Peers::default());
    let keeper = NameKeeper {
        clock: Clock::start(),
        peers: peers_rx,
        resolver: resolver.clone(),
        resolved: resolved_tx,
        probed: probed_tx,
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
    running.abort();
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
