//! The agents' port over real TCP, TLS and gRPC, with a scripted agent and a registry in memory: joins,
//! streams and what goes over them. Who may do what with which certificate is `identity`'s.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_hub::authority::{Authorities, Authority};
use fairlead_hub::clock;
use fairlead_hub::enroll::EnrollService;
use fairlead_hub::events::Events;
use fairlead_hub::fleet::Fleet;
use fairlead_hub::gate::{self, Way};
use fairlead_hub::link::{self, Link};
use fairlead_hub::pki::{Ca, SERVER_NAME, hex, make_ca};
use fairlead_hub::registry::{
    NewMember, Registered, Registry, RegistryError, StoredToken, Written,
};
use fairlead_hub::store::EmbeddedStore;
use fairlead_hub::tls::{HubCertificate, server_config};
use fairlead_hub_core::enroll::Token;
use fairlead_hub_core::push::Wanted;
use fairlead_model::ledger::{Digest, Ledger};
use fairlead_model::session::{
    ApplyReport, FromAgent, FromHub, Hello, PROTOCOL, Protocol, SnapshotUpdate,
};
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{ClusterUid, MemberId, Millis, PlanNumber, SnapshotNumber};
use fairlead_proto::convert::{HubAssembler, agent_messages};
use fairlead_proto::pb;
use fairlead_proto::pb::enrollment_client::EnrollmentClient;
use fairlead_proto::pb::fleet_client::FleetClient;
use fairlead_telemetry::queue::{Fate, Queue};
use fairlead_telemetry::span::{TRACEPARENT, TraceContext, Tracer};
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

mod identity;

const WAIT: Duration = Duration::from_secs(10);

/// Tokens and members in memory, with versions like an API server's.
#[derive(Default)]
struct FakeRegistry {
    tokens: Mutex<BTreeMap<String, StoredToken>>,
    members: Mutex<BTreeMap<MemberId, Registered>>,
}

impl FakeRegistry {
    fn add_token(&self, text: &str, expires_at: Millis) {
        let id = text.split_once('.').unwrap().0.to_owned();
        let hash = hex(&Sha256::digest(text));
        let token = Token { id: id.clone(), expires_at, ..Token::default() };
        let stored = StoredToken { token, hash, version: "1".into() };
        self.tokens.lock().unwrap().insert(id, stored);
    }

    fn owners(&self) -> BTreeMap<MemberId, Option<ClusterUid>> {
        let members = self.members.lock().unwrap();
        members.iter().map(|(member, r)| (member.clone(), r.uid.clone())).collect()
    }
}

#[tonic::async_trait]
impl Registry for FakeRegistry {
    async fn token(&self, id: &str) -> Result<Option<StoredToken>, RegistryError> {
        Ok(self.tokens.lock().unwrap().get(id).cloned())
    }

    async fn bind_token(
        &self,
        token: &StoredToken,
        key_hash: &str,
        _: &ClusterUid,
    ) -> Result<Written, RegistryError> {
        let mut tokens = self.tokens.lock().unwrap();
        let held = tokens.get_mut(&token.token.id).unwrap();
        if held.version != token.version {
            return Ok(Written::Conflict);
        }
        held.version.push('1');
        held.token.bound_key = Some(key_hash.to_owned());
        Ok(Written::Done)
    }

    async fn members(&self) -> Result<BTreeMap<MemberId, Registered>, RegistryError> {
        Ok(self.members.lock().unwrap().clone())
    }

    async fn member(&self, member: &MemberId) -> Result<Option<Registered>, RegistryError> {
        Ok(self.members.lock().unwrap().get(member).cloned())
    }

    async fn create_member(&self, member: &NewMember) -> Result<Written, RegistryError> {
        let registered = Registered { uid: Some(member.uid.clone()), version: "1".into() };
        self.members.lock().unwrap().insert(member.member.clone(), registered);
        Ok(Written::Done)
    }

    async fn claim_member(
        &self,
        member: &NewMember,
        _: &Registered,
    ) -> Result<Written, RegistryError> {
        self.create_member(member).await
    }
}

/// A hub's port.
struct Port {
    address: SocketAddr,
    ca: Ca,
    ca_pem: fairlead_hub::pki::CaPem,
    authority: Arc<Authority>,
    registry: Arc<FakeRegistry>,
    fleet: Arc<Fleet>,
    spans: Arc<Queue>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn mk_port() -> Port {
    let dir = tempfile::tempdir().unwrap();
    let pem = make_ca(clock::now()).unwrap();
    let ca = Ca::open(&pem).unwrap();
    let authority = Arc::new(Authority::new(Authorities::new(Ca::open(&pem).unwrap(), None)));
    let names = [SERVER_NAME.to_owned()];
    let certificate = HubCertificate::new(ca.issue_server(&names, clock::now()).unwrap()).unwrap();
    let tls = Arc::new(server_config(Arc::clone(&authority), Arc::new(certificate)).unwrap());
    let registry = Arc::new(FakeRegistry::default());
    let (fleet, stop) = (Arc::new(Fleet::default()), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let link = Link {
        fleet: Arc::clone(&fleet),
        authority: Arc::clone(&authority),
        store: Arc::new(EmbeddedStore::open(dir.path()).unwrap()),
        registry: registry.clone(),
        epoch: 5,
        metrics: Arc::default(),
        traffic: Arc::default(),
        tracer: Tracer::default(),
        stop: stop.clone(),
    };
    let spans = Arc::new(Queue::new(1 << 20));
    let tracer = Tracer::new(Some(spans.clone()), 1.0, Vec::new());
    let enroll = EnrollService::new(
        Arc::clone(&authority),
        3_600_000,
        registry.clone(),
        Events::none(),
        tracer,
    );
    let (server, sockets) = mpsc::channel(1);
    let (ways, seen) = watch::channel(Way::Own(server));
    tokio::spawn(async move {
        gate::run(listener, seen, Arc::default()).await;
        drop(ways);
    });
    tokio::spawn(link::serve(sockets, tls, link, enroll));
    Port { address, ca, ca_pem: pem, authority, registry, fleet, spans, stop, _dir: dir }
}

/// What an agent has in its own cluster.
struct Cluster {
    member: String,
    uid: String,
    key: KeyPair,
}

impl Cluster {
    fn new(member: &str, uid: &str) -> Self {
        Self { member: member.into(), uid: uid.into(), key: KeyPair::generate().unwrap() }
    }

    fn csr(&self) -> String {
        CertificateParams::default().serialize_request(&self.key).unwrap().pem().unwrap()
    }

    fn request(&self, token: &str) -> pb::EnrollRequest {
        pb::EnrollRequest {
            token: token.to_owned(),
            member: self.member.clone(),
            cluster_uid: self.uid.clone(),
            csr_pem: self.csr(),
            protocol: Some(pb::Protocol { major: PROTOCOL.major, minor: PROTOCOL.minor }),
            now_ms: clock::now().0,
            ..pb::EnrollRequest::default()
        }
    }

    fn hello(&self, incarnation: u64, bundle: Option<(PlanNumber, Digest)>) -> FromAgent {
        FromAgent::Hello(Hello {
            member: MemberId::new(&self.member).unwrap(),
            uid: ClusterUid::new(&self.uid).unwrap(),
            protocol: PROTOCOL,
            agent_version: "0.1.0".into(),
            incarnation,
            bundle,
            now: clock::now(),
        })
    }
}

impl Port {
    async fn channel(&self, identity: Option<(&str, &Cluster)>) -> Channel {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.ca.certificate_pem()))
            .domain_name(SERVER_NAME);
        if let Some((certificate, cluster)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, cluster.key.serialize_pem()));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    async fn enroll(&self, request: pb::EnrollRequest) -> Result<pb::EnrollResponse, Status> {
        let mut client = EnrollmentClient::new(self.channel(None).await);
        client.enroll(request).await.map(tonic::Response::into_inner)
    }

    async fn join(&self, cluster: &Cluster) -> String {
        let token = format!("{:0>8}.{}", cluster.member, "s".repeat(32));
        self.registry.add_token(&token, clock::now().plus(60_000));
        let certificate = self.enroll(cluster.request(&token)).await.unwrap().certificate_pem;
        self.fleet.register(&self.registry.owners());
        certificate
    }

    async fn open(&self, certificate: &str, cluster: &Cluster) -> Agent {
        let mut client = FleetClient::new(self.channel(Some((certificate, cluster))).await);
        let (outbox, stream) = mpsc::channel(16);
        let inbox = client.session(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Agent { outbox, inbox, assembler: HubAssembler::default() }
    }
}

/// A scripted agent's stream.
struct Agent {
    outbox: mpsc::Sender<pb::AgentMessage>,
    inbox: Streaming<pb::HubMessage>,
    assembler: HubAssembler,
}

impl Agent {
    async fn say(&self, message: FromAgent) {
        for message in agent_messages(&message) {
            self.outbox.send(message).await.unwrap();
        }
    }

    /// The next message that is no heartbeat, and not about whom to believe.
    async fn hear(&mut self) -> Result<FromHub, Status> {
        loop {
            let message = tokio::time::timeout(WAIT, self.inbox.message()).await.unwrap()?;
            let message = message.ok_or_else(|| Status::cancelled("the stream ended"))?;
            match self.assembler.push(message).unwrap() {
                Some(FromHub::Heartbeat(_) | FromHub::Trust(_)) | None => {}
                Some(message) => return Ok(message),
            }
        }
    }

    async fn welcome(&mut self) -> fairlead_model::session::Welcome {
        match self.hear().await.unwrap() {
            FromHub::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// The CAs that the hub says are to be believed.
    async fn trust(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(WAIT, self.inbox.message()).await.unwrap().unwrap();
            if let Some(FromHub::Trust(pem)) = self.assembler.push(message.unwrap()).unwrap() {
                return pem;
            }
        }
    }

    async fn bundle(&mut self) -> fairlead_model::session::BundleUpdate {
        match self.hear().await.unwrap() {
            FromHub::Bundle(update) => update,
            other => panic!("{other:?}"),
        }
    }
}

fn reason(status: &Status) -> &str {
    status.metadata().get("fairlead-reason").map_or("", |value| value.to_str().unwrap())
}

fn mk_wanted(value: u8) -> Wanted {
    let ledger = Ledger::new([("a".into(), vec![value]), ("b".into(), vec![0; 600_000])].into());
    let (digest, ledger) = (ledger.digest(), Arc::new(ledger));
    Wanted { ledger, digest, caused_at: Millis(1), trace_parent: String::new() }
}

fn mk_snapshot(namespaces: &[&str]) -> Ledger {
    let namespaces = namespaces.iter().map(|n| (*n).to_owned()).collect();
    fairlead_proto::ledger::snapshot_to_ledger(&Snapshot { namespaces, ..Snapshot::default() })
}

async fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !fact() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cluster_joins_reports_and_gets_its_bundles() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let id = MemberId::new("east").unwrap();
    let certificate = port.join(&east).await;
    let mut agent = port.open(&certificate, &east).await;
    agent.say(east.hello(1, None)).await;
    let welcome = agent.welcome().await;
    assert!(welcome.epoch > 5, "above the epoch of the process");
    assert_eq!(welcome.snapshot, None);

    let one = mk_snapshot(&["a", "b"]);
    let number = SnapshotNumber { incarnation: 1, sequence: 1 };
    agent.say(FromAgent::Snapshot(SnapshotUpdate { number, delta: one.full() })).await;
    assert_eq!(agent.hear().await.unwrap(), FromHub::SnapshotTaken(number));
    let look = port.fleet.look();
    assert_eq!(look[&id].report.as_ref().unwrap().snapshot.namespaces.len(), 2);

    port.fleet.want([(id.clone(), mk_wanted(1))].into());
    let first = agent.bundle().await;
    assert_eq!(Ledger::default().apply(&first.delta).unwrap(), *mk_wanted(1).ledger);
    port.fleet.want([(id.clone(), mk_wanted(2))].into());
    port.fleet.want([(id.clone(), mk_wanted(3))].into());
    let report = ApplyReport { number: first.number, complete: true, ..ApplyReport::default() };
    agent.say(FromAgent::Applied(report)).await;
    let second = agent.bundle().await;
    assert_eq!(second.base, Some(first.number));
    assert_eq!(second.delta.put.len(), 1, "only what differs travels");
    assert_eq!(mk_wanted(1).ledger.apply(&second.delta).unwrap(), *mk_wanted(3).ledger);

    // The agent comes back with what it holds: a number, no content, and its snapshot is known.
    drop(agent);
    until("the stream is lost", || !port.fleet.look()[&id].connected).await;
    let mut agent = port.open(&certificate, &east).await;
    agent.say(east.hello(1, Some((second.number, second.delta.digest)))).await;
    let again = agent.welcome().await;
    assert!(again.epoch > welcome.epoch);
    assert_eq!(again.snapshot, Some((number, one.digest())));
    let resumed = agent.bundle().await;
    assert!(resumed.delta.is_empty() && resumed.number > second.number);
}

#[tokio::test]
async fn a_digest_that_does_not_fit_costs_one_full_snapshot() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut agent = port.open(&certificate, &east).await;
    agent.say(east.hello(1, None)).await;
    agent.welcome().await;
    let update = |sequence, delta| {
        let number = SnapshotNumber { incarnation: 1, sequence };
        FromAgent::Snapshot(SnapshotUpdate { number, delta })
    };
    let (base, next) = (mk_snapshot(&["a"]), mk_snapshot(&["a", "b"]));
    agent.say(update(1, next.delta_from(&base))).await;
    assert_eq!(agent.hear().await.unwrap(), FromHub::SnapshotWanted);
    agent.say(update(2, next.full())).await;
    assert!(matches!(agent.hear().await.unwrap(), FromHub::SnapshotTaken(n) if n.sequence == 2));
    let mut broken = next.full();
    broken.digest = [1; 32];
    agent.say(update(3, broken)).await;
    assert_eq!(reason(&agent.hear().await.unwrap_err()), "Unreadable");
}

#[tokio::test]
async fn an_agent_can_report_only_about_itself() {
    let port = mk_port().await;
    let (east, west) = (Cluster::new("east", "uid-east"), Cluster::new("west", "uid-west"));
    let certificate = port.join(&east).await;
    port.join(&west).await;
    let mut agent = port.open(&certificate, &east).await;
    agent.say(west.hello(1, None)).await;
    let refused = agent.hear().await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "WrongIdentity"));
}

#[tokio::test]
async fn another_major_of_the_protocol_is_refused() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut agent = port.open(&certificate, &east).await;
    let FromAgent::Hello(hello) = east.hello(1, None) else { unreachable!() };
    let protocol = Protocol { major: PROTOCOL.major + 1, minor: 0 };
    agent.say(FromAgent::Hello(Hello { protocol, ..hello })).await;
    assert_eq!(reason(&agent.hear().await.unwrap_err()), "VersionUnsupported");
}

#[tokio::test]
async fn a_newer_stream_ends_the_older_one() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut older = port.open(&certificate, &east).await;
    older.say(east.hello(1, None)).await;
    older.welcome().await;
    let mut newer = port.open(&certificate, &east).await;
    newer.say(east.hello(2, None)).await;
    newer.welcome().await;
    assert_eq!(reason(&older.hear().await.unwrap_err()), "OldNumber");
    let mut stale = port.open(&certificate, &east).await;
    stale.say(east.hello(1, None)).await;
    assert_eq!(reason(&stale.hear().await.unwrap_err()), "OldNumber");
}

#[tokio::test]
async fn an_accepted_join_is_a_part_of_its_agents_trace_and_a_refused_one_of_none() {
    let port = mk_port().await;
    let token = format!("abcdefgh.{}", "s".repeat(32));
    port.registry.add_token(&token, clock::now().plus(60_000));
    let east = Cluster::new("east", "uid-east");
    let traced = |token: &str| {
        let mut request = tonic::Request::new(east.request(token));
        let context = TraceContext::root(1.0).to_string();
        request.metadata_mut().insert(TRACEPARENT, context.parse().unwrap());
        request
    };
    let mut client = EnrollmentClient::new(port.channel(None).await);
    client.enroll(traced("nonsense")).await.unwrap_err();
    assert_eq!(port.spans.counts().of(Fate::Taken), 0);
    client.enroll(traced(&token)).await.unwrap();
    assert_eq!(port.spans.counts().of(Fate::Taken), 1);
    client.enroll(east.request(&token)).await.unwrap();
    assert_eq!(port.spans.counts().of(Fate::Taken), 1, "nobody asked for a trace");
}

#[tokio::test]
async fn a_client_that_never_shakes_hands_holds_up_nobody() {
    let port = mk_port().await;
    let mut idle = Vec::new();
    for _ in 0..32 {
        idle.push(tokio::net::TcpStream::connect(port.address).await.unwrap());
    }
    let east = Cluster::new("east", "uid-east");
    tokio::time::timeout(WAIT, port.join(&east)).await.unwrap();
}
