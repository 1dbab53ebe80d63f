//! Probes against doors that answer, refuse and stay silent, on loopback.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::testing::{LetsIn, TestDoor, TestMember};
use crate::tls::Leaf;
use fairlead_translate::names;
use std::sync::atomic::Ordering;

struct World {
    callers: TestMember,
    peers: watch::Sender<Arc<BTreeMap<MemberId, Peer>>>,
    crossing: watch::Sender<Option<Arc<Crossing>>>,
    report: watch::Receiver<ProbeReport>,
}

fn east() -> MemberId {
    MemberId::new("east").unwrap()
}

impl World {
    /// One CA on both sides: what matters here is what becomes of answers.
    fn new() -> Self {
        let callers = TestMember::new("uid-east");
        let (peers, peers_rx) = watch::channel(Arc::default());
        let (crossing, crossing_rx) = watch::channel(Some(Arc::new(callers.crossing.clone())));
        let (report_tx, report) = watch::channel(ProbeReport::new());
        let prober = Prober {
            clock: Clock::start(),
            peers: peers_rx,
            crossing: crossing_rx,
            report: report_tx,
            metrics: ProbeMetrics::default(),
        };
        tokio::spawn(prober.run());
        Self { callers, peers, crossing, report }
    }

    fn probe(&self, addresses: &[&str], port: u16) {
        let peer = Peer {
            uid: self.callers.uid.clone(),
            addresses: addresses.iter().map(|a| Address::of(a)).collect(),
            port,
            server_name: names::server_name(&self.callers.uid),
            ca_pem: self.callers.ca.cert_pem.clone(),
            readiness: fairlead_model::bundle::Capability::default(),
        };
        self.peers.send_replace(Arc::new([(east(), peer)].into()));
    }

    async fn reaches(&mut self, reach: Reach) {
        let is = |report: &ProbeReport| report.get(&east()).is_some_and(|p| p.reach == reach);
        let waited = tokio::time::timeout(Duration::from_secs(20), self.report.wait_for(is)).await;
        assert!(waited.is_ok(), "not {reach:?}");
    }

    async fn door(&self) -> TestDoor {
        self.callers.open_door(LetsIn::Callers, 302).await
    }
}

#[tokio::test]
async fn a_door_that_answers_is_reachable_over_one_connection() {
    let mut world = World::new();
    let door = world.door().await;
    world.probe(&["127.0.0.1"], door.address.port());
    world.reaches(Reach::Reachable).await;
    assert_eq!(door.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_door_that_goes_away_refuses_and_comes_back() {
    let mut world = World::new();
    let door = world.door().await;
    let address = door.address.to_string();
    world.probe(&["127.0.0.1"], door.address.port());
    world.reaches(Reach::Reachable).await;
    drop(door);
    world.reaches(Reach::Refused).await;
    let _door = world.callers.open_door_at(&address, LetsIn::Callers, 302).await;
    world.reaches(Reach::Reachable).await;
}

#[tokio::test]
async fn a_door_that_hangs_times_out() {
    let mut world = World::new();
    let door = world.door().await;
    world.probe(&["127.0.0.1"], door.address.port());
    world.reaches(Reach::Reachable).await;
    door.hangs.store(true, Ordering::SeqCst);
    world.reaches(Reach::TimedOut).await;
    door.hangs.store(false, Ordering::SeqCst);
    world.reaches(Reach::Reachable).await;
}

#[tokio::test]
async fn one_address_that_answers_is_enough() {
    let mut world = World::new();
    let door = world.door().await;
    // Loopback is a whole network; nobody listens at the first address.
    world.probe(&["127.0.0.2", "127.0.0.1"], door.address.port());
    world.reaches(Reach::Reachable).await;
}

#[tokio::test]
async fn a_door_without_probe_route_or_of_another_ca_is_refused() {
    let mut world = World::new();
    let door = world.callers.open_door(LetsIn::Callers, 404).await;
    world.probe(&["127.0.0.1"], door.address.port());
    world.reaches(Reach::Refused).await;
    let mut world = World::new();
    let stranger = TestMember::new("uid-east").open_door(LetsIn::Everybody, 302).await;
    world.probe(&["127.0.0.1"], stranger.address.port());
    world.reaches(Reach::Refused).await;
    world.probe(&[], 1);
    world.reaches(Reach::TimedOut).await;
}

#[tokio::test]
async fn who_is_no_peer_any_more_is_not_reported() {
    let mut world = World::new();
    let door = world.door().await;
    world.probe(&["127.0.0.1"], door.address.port());
    world.reaches(Reach::Reachable).await;
    world.peers.send_replace(Arc::default());
    let gone = world.report.wait_for(ProbeReport::is_empty);
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap();
    drop(world.crossing);
}

/// Asks until the answer fits; the connection that stands counts as old.
async fn ask_until(
    link: &mut Link,
    fits: impl Fn(&Result<u16, DoorError>, u32) -> bool,
    of: &TestDoor,
) {
    link.opened_at = Instant::now().checked_sub(FRESH_AFTER).unwrap();
    let asked = async {
        loop {
            let answer = link.ask().await;
            if fits(&answer, of.connections.load(Ordering::SeqCst)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_stands_is_replaced_unless_nobody_believes_the_door_any_more() {
    let world = World::new();
    let door = world.door().await;
    world.probe(&["127.0.0.1"], door.address.port());
    let peer = world.peers.borrow()[&east()].clone();
    let config = |ca: &Leaf| {
        let (trust, client) = (Trust::Ca(ca.cert_pem.clone()), &world.callers.crossing.client);
        Arc::new(tls::client_config(&trust, Some(client), &["http/1.1"]).unwrap())
    };
    let mut link = Link::new(peer, config(&world.callers.ca));
    assert_eq!(link.ask().await.unwrap(), 302);
    let before = door.connections.load(Ordering::SeqCst);
    let is_replaced = |answer: &Result<u16, _>, connections| {
        assert_eq!(*answer.as_ref().unwrap(), 302, "no question is lost by it");
        connections > before
    };
    ask_until(&mut link, is_replaced, &door).await;
    // The connection goes on; a new one would not.
    link.config = config(&TestMember::new("uid-other").ca);
    ask_until(&mut link, |answer, _| answer.is_err(), &door).await;
}
