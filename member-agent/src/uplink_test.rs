//! Identity and uplink against a hub in this process: real TLS, real gRPC.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::clock::wall_now;
use crate::fake::Fake;
use crate::identity::{IdentityError, Introduction};
use crate::secret::Secrets;
use crate::tls::{self, Leaf};
use fairlead_agent_core::session::Identity;
use fairlead_model::health::ApiServer;
use fairlead_model::session::{BundleUpdate, Hello, PROTOCOL, Welcome};
use fairlead_model::{ClusterUid, MemberId, ObjectId};
use fairlead_proto::convert::{AgentAssembler, hub_messages};
use fairlead_proto::pb::enrollment_server::{Enrollment, EnrollmentServer};
use fairlead_proto::pb::fleet_server::{Fleet, FleetServer};
use fairlead_telemetry::span::{TRACEPARENT, TraceContext, Tracer};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use std::sync::Mutex;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const URI: &str = "spiffe://fairlead.dev/member/east/uid-east";

/// A hub that signs for whoever has the token and hands messages to the test.
#[derive(Clone)]
struct TestHub {
    ca: Arc<Leaf>,
    port: u16,
    state: Arc<Mutex<HubState>>,
    sessions: mpsc::Sender<HubEnd>,
}

#[derive(Default)]
struct HubState {
    refuse: Option<&'static str>,
    uri: Option<&'static str>,
    csrs: Vec<String>,
}

/// One stream, as the hub sees it.
struct HubEnd {
    inbound: Streaming<pb::AgentMessage>,
    assembler: AgentAssembler,
    outbound: mpsc::Sender<Result<pb::HubMessage, Status>>,
}

impl HubEnd {
    async fn hears(&mut self) -> FromAgent {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.inbound.message());
            let message = message.await.unwrap().unwrap().unwrap();
            if let Some(message) = self.assembler.push(message).unwrap()
                && !matches!(message, FromAgent::Heartbeat(_))
            {
                return message;
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        match self.hears().await {
            FromAgent::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    async fn says(&self, message: FromHub) {
        for part in hub_messages(&message) {
            self.outbound.send(Ok(part)).await.unwrap();
        }
    }

    async fn welcomes(&self) {
        let hub_version = "test".to_owned();
        let welcome =
            Welcome { protocol: PROTOCOL, hub_version, epoch: 1, snapshot: None, now: Millis(0) };
        self.says(FromHub::Welcome(welcome)).await;
    }
}

#[tonic::async_trait]
impl Fleet for TestHub {
    type SessionStream = ReceiverStream<Result<pb::HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(16);
        let end = HubEnd {
            inbound: request.into_inner(),
            assembler: AgentAssembler::default(),
            outbound,
        };
        self.sessions.send(end).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

#[tonic::async_trait]
impl Enrollment for TestHub {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let context = request.metadata().get(TRACEPARENT).unwrap().to_str().unwrap();
        assert!(context.parse::<TraceContext>().is_ok(), "{context}");
        let asked = request.into_inner();
        assert_eq!((asked.token.as_str(), asked.region.as_str()), ("the-token", "eu"));
        let mut state = self.state.lock().unwrap();
        state.csrs.push(asked.csr_pem.clone());
        if let Some(reason) = state.refuse.take() {
            let mut status = Status::permission_denied("the token is too old");
            status.metadata_mut().insert("fairlead-reason", reason.parse().unwrap());
            return Err(status);
        }
        let uri = state.uri.unwrap_or(URI);
        let ca_key = KeyPair::from_pem(&self.ca.key_pem).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.ca.cert_pem, ca_key).unwrap();
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(&asked.csr_pem).unwrap();
        csr.params = CertificateParams::default();
        csr.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate_pem = csr.signed_by(&issuer).unwrap().pem();
        Ok(Response::new(pb::EnrollResponse { certificate_pem, ca_pem: self.ca.cert_pem.clone() }))
    }

    async fn renew(
        &self,
        _: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

impl TestHub {
    async fn start() -> (Self, mpsc::Receiver<HubEnd>) {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, &ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf_pem = leaf.signed_by(&key, &issuer).unwrap().pem();
        // The CA is part of the chain, so that an agent that knows only its hash finds it.
        let chain = tls::certificates(&format!("{leaf_pem}{ca_pem}"), "chain").unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sessions, ends) = mpsc::channel(4);
        let ca = Arc::new(Leaf { cert_pem: ca_pem, key_pem: ca_key.serialize_pem() });
        let hub = Self { ca, port, state: Arc::default(), sessions };
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let incoming =
            futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    if let Ok(stream) = acceptor.accept(stream).await {
                        return Some((Ok::<_, std::io::Error>(stream), (listener, acceptor)));
                    }
                }
            });
        let zstd = tonic::codec::CompressionEncoding::Zstd;
        let server = tonic::transport::Server::builder()
            .add_service(
                FleetServer::new(hub.clone()).accept_compressed(zstd).send_compressed(zstd),
            )
            .add_service(EnrollmentServer::new(hub.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        (hub, ends)
    }

    fn pin(&self) -> String {
        tls::hash_of(&tls::certificates(&self.ca.cert_pem, "ca").unwrap()[0])
    }

    /// An agent's identities, with this pin for the first contact.
    fn identities(&self, api: &Fake, pin: &str) -> (Identities, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "the-token\n").unwrap();
        std::fs::write(dir.path().join("ca-hash"), pin).unwrap();
        std::fs::write(dir.path().join("region"), "eu").unwrap();
        let introduction = Introduction {
            member: MemberId::new("east").unwrap(),
            uid: ClusterUid::new("uid-east").unwrap(),
            region: None,
            zone: None,
            gateway_class: None,
        };
        let identities = Identities::new(
            Secrets::new(api.client(), "fairlead-system"),
            dial::HubAddress::parse(&format!("https://127.0.0.1:{}", self.port)).unwrap(),
            introduction,
            dir.path().to_owned(),
            Tracer::default(),
        );
        (identities, dir)
    }

    fn csrs(&self) -> Vec<String> {
        self.state.lock().unwrap().csrs.clone()
    }
}

fn secret(api: &Fake) -> Option<fairlead_model::Json> {
    api.get(&ObjectId::new("", "v1", "Secret", "fairlead-system", "fairlead-agent-identity"))
}

#[tokio::test]
async fn a_token_becomes_an_identity_that_is_kept() {
    let (hub, _ends) = TestHub::start().await;
    let api = Fake::new();
    let (identities, _dir) = hub.identities(&api, &hub.pin());
    let identity = identities.obtain().await.unwrap();
    assert_eq!(identity.ca_pem, hub.ca.cert_pem);
    assert_eq!(secret(&api).unwrap()["data"].as_object().unwrap().len(), 3);
    let (again, dir) = hub.identities(&api, &hub.pin());
    drop(dir);
    assert_eq!(again.obtain().await.unwrap(), identity, "without a token, from the Secret");
    assert_eq!(hub.csrs().len(), 1);
}

#[tokio::test]
async fn a_hub_with_another_ca_than_the_pinned_one_never_sees_the_token() {
    let (hub, _ends) = TestHub::start().await;
    let api = Fake::new();
    let (identities, _dir) = hub.identities(&api, &format!("sha256:{}", "0".repeat(64)));
    let error = identities.obtain().await.unwrap_err();
    assert!(error.to_string().contains("--ca-hash"), "{error}");
    assert!(matches!(error, IdentityError::Dial(error) if error.is_other_hub()));
    assert!(hub.csrs().is_empty());
    let (identities, _dir) = hub.identities(&api, "md5:1");
    assert!(identities.obtain().await.unwrap_err().to_string().contains("sha256"));
}

#[tokio::test]
async fn a_refusal_is_told_and_the_next_try_shows_the_same_key() {
    let (hub, _ends) = TestHub::start().await;
    let api = Fake::new();
    let (identities, _dir) = hub.identities(&api, &hub.pin());
    hub.state.lock().unwrap().refuse = Some("TokenExpired");
    let error = identities.obtain().await.unwrap_err().to_string();
    assert!(error.contains("TokenExpired") && error.contains("too old"), "{error}");
    let kept = secret(&api).unwrap()["data"]["tls.key"].clone();
    identities.obtain().await.unwrap();
    assert_eq!(secret(&api).unwrap()["data"]["tls.key"], kept, "a token binds to its first key");
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_taken() {
    let (hub, _ends) = TestHub::start().await;
    let api = Fake::new();
    let (identities, _dir) = hub.identities(&api, &hub.pin());
    hub.state.lock().unwrap().uri = Some("spiffe://fairlead.dev/member/west/uid-east");
    let error = identities.obtain().await.unwrap_err().to_string();
    assert!(error.contains("WrongIdentity"), "{error}");
    assert!(secret(&api).unwrap()["data"].get("tls.crt").is_none());
}

struct Agent {
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    applied: watch::Sender<Option<ApplyReport>>,
    bundles: mpsc::Receiver<Taken>,
    state: watch::Receiver<LinkState>,
    _dir: tempfile::TempDir,
    _keep: (watch::Sender<ProbeReport>, watch::Sender<Option<OverlayReport>>),
}

fn start_agent(hub: &TestHub) -> Agent {
    let (identities, dir) = hub.identities(&Fake::new(), &hub.pin());
    let identity = Identity {
        member: MemberId::new("east").unwrap(),
        uid: ClusterUid::new("uid-east").unwrap(),
        agent_version: "test".to_owned(),
        incarnation: 1,
    };
    let clock = Clock::start();
    let (snapshot, snapshot_rx) = watch::channel(None);
    let (applied, applied_rx) = watch::channel(None);
    let (probes, probes_rx) = watch::channel(ProbeReport::new());
    let (overlay, overlay_rx) = watch::channel(None);
    let (bundles_tx, bundles) = mpsc::channel(4);
    let (state_tx, state) = watch::channel(LinkState::default());
    let uplink = Uplink {
        clock,
        session: Session::new(identity, None, clock.now()),
        identities: Arc::new(identities),
        snapshot: snapshot_rx,
        applied: applied_rx,
        probes: probes_rx,
        overlay: overlay_rx,
        api: watch::channel(ApiServer::default()).1,
        traffic: watch::channel(None).1,
        crossing_held: watch::Sender::new(None),
        bundles: bundles_tx,
        state: state_tx,
        metrics: Arc::default(),
    };
    tokio::spawn(uplink.run());
    Agent { snapshot, applied, bundles, state, _dir: dir, _keep: (probes, overlay) }
}

fn bundle(counter: u64, entries: usize) -> (PlanNumber, Ledger, FromHub) {
    let entry = |i: usize| (format!("object/{i}"), vec![7; 1_000]);
    let ledger = Ledger::new((0..entries).map(entry).collect());
    let number = PlanNumber::new(1, counter);
    let update = BundleUpdate {
        number,
        base: None,
        delta: ledger.full(),
        caused_at: wall_now(),
        trace_parent: TRACE.to_owned(),
    };
    (number, ledger, FromHub::Bundle(update))
}

#[tokio::test]
async fn a_session_reports_takes_bundles_and_claims_them_after_a_reconnect() {
    let (hub, mut ends) = TestHub::start().await;
    let mut agent = start_agent(&hub);
    let mut end = ends.recv().await.unwrap();
    assert_eq!(end.hello().await.bundle, None);
    end.welcomes().await;

    agent.snapshot.send_replace(Some(Arc::default()));
    let FromAgent::Snapshot(update) = end.hears().await else { panic!("no snapshot") };
    let expected = snapshot_to_ledger(&Snapshot::default());
    assert_eq!((update.delta.based, update.delta.digest), (false, expected.digest()));
    end.says(FromHub::SnapshotTaken(update.number)).await;

    // Large enough to come in parts.
    let (number, ledger, message) = bundle(1, 1_000);
    end.says(message).await;
    let taken = Taken { number, ledger: ledger.clone(), trace_parent: TRACE.to_owned() };
    assert_eq!(agent.bundles.recv().await, Some(taken));
    let report = ApplyReport { number, complete: true, ..ApplyReport::default() };
    agent.applied.send_replace(Some(report.clone()));
    assert_eq!(end.hears().await, FromAgent::Applied(report.clone()));
    assert!(agent.state.borrow().open);

    drop(end);
    let mut end = ends.recv().await.unwrap();
    assert_eq!(end.hello().await.bundle, Some((number, ledger.digest())));
    end.welcomes().await;
    assert_eq!(
        end.hears().await,
        FromAgent::Applied(report),
        "what was reported is reported again"
    );
}

#[tokio::test]
async fn a_hub_that_talks_nonsense_is_left_and_dialled_again() {
    let (hub, mut ends) = TestHub::start().await;
    let _agent = start_agent(&hub);
    let mut end = ends.recv().await.unwrap();
    end.hello().await;
    end.outbound.send(Ok(pb::HubMessage { body: None })).await.unwrap();
    let mut again = ends.recv().await.unwrap();
    again.hello().await;
    again.welcomes().await;
}
