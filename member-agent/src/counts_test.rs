//! Counts asked through a door, from the server that answers them to what is gone.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::Ordering;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use fairlead_model::snapshot::{Address, Consent, ServiceState};
use fairlead_translate::names;

use super::*;
use crate::testing::{TestDoor, TestMember};

struct World {
    /// What east has.
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    gone: watch::Receiver<Counts>,
    peers: watch::Sender<Arc<BTreeMap<MemberId, Peer>>>,
    door: TestDoor,
    _crossing: watch::Sender<Option<Arc<Crossing>>>,
    _own: watch::Sender<Option<Arc<Snapshot>>>,
}

fn east() -> MemberId {
    MemberId::new("east").unwrap()
}

fn cart() -> NsName {
    NsName::new("shop", "cart")
}

const CAPABILITY: &str = "opens";

async fn only_peers(request: Request, next: Next) -> Response {
    match request.headers().get(keys::HEADER_BACKEND) {
        Some(value) if value == CAPABILITY => next.run(request).await,
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn ready(ready: u32) -> Option<Arc<Snapshot>> {
    let zones = [("a".to_owned(), EndpointCounts { ready, total: 2 })].into();
    let service = ServiceState { consent: Consent::Given, zones, ..ServiceState::default() };
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(cart(), service);
    Some(Arc::new(snapshot))
}

impl World {
    /// West asks east, whose server stands behind its door.
    async fn new() -> Self {
        let (snapshot, serves) = watch::channel(ready(2));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        // As the door does: without the capability there is nothing.
        let router = http::readiness_router(serves).layer(axum::middleware::from_fn(only_peers));
        tokio::spawn(async move { axum::serve(listener, router).await });
        // One CA on both sides: what matters here is what becomes of answers.
        let member = TestMember::new("uid-east");
        let door = member.open_door_to(server).await;
        let peer = Peer {
            uid: member.uid.clone(),
            addresses: [Address::Ip(door.address.ip())].into(),
            port: door.address.port(),
            server_name: names::server_name(&member.uid),
            ca_pem: member.ca.cert_pem.clone(),
            readiness: Capability(CAPABILITY.to_owned()),
        };
        let (peers, peers_rx) = watch::channel(Arc::new(BTreeMap::from([(east(), peer)])));
        let (crossing, crossing_rx) = watch::channel(Some(Arc::new(member.crossing)));
        let (own, own_rx) = watch::channel(None);
        let (gone_tx, gone) = watch::channel(Counts::new());
        let asker = Asker {
            clock: Clock::start(),
            member: MemberId::new("west").unwrap(),
            peers: peers_rx,
            crossing: crossing_rx,
            snapshot: own_rx,
            gone: gone_tx,
        };
        tokio::spawn(asker.run());
        Self { snapshot, gone, peers, door, _crossing: crossing, _own: own }
    }

    async fn wait_gone(&mut self, is_gone: bool) {
        let is = |gone: &Counts| {
            gone.get(&east()).is_some_and(|services| services.contains_key(&cart())) == is_gone
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), self.gone.wait_for(is)).await;
        assert!(waited.is_ok(), "gone is not {is_gone}");
    }
}

#[tokio::test]
async fn what_is_gone_at_a_peer_is_gone_here_and_comes_back() {
    let mut world = World::new().await;
    for _ in 0..3 {
        world.snapshot.send_replace(ready(0));
        world.wait_gone(true).await;
        world.snapshot.send_replace(ready(2));
        world.wait_gone(false).await;
    }
    assert_eq!(world.door.connections.load(Ordering::SeqCst), 1, "one connection is kept");
}

#[tokio::test]
async fn what_a_peer_said_last_stands_until_it_is_no_peer() {
    let mut world = World::new().await;
    world.snapshot.send_replace(ready(0));
    world.wait_gone(true).await;
    world.door.hangs.store(true, Ordering::SeqCst);
    world.snapshot.send_replace(None);
    tokio::task::yield_now().await;
    assert!(world.gone.borrow().contains_key(&east()), "no answer is no news");
    world.peers.send_replace(Arc::default());
    world.wait_gone(false).await;
}
