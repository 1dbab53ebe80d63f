//! A door in this process, for tests: TLS with or without client certificates, answers like a gateway.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fairlead_model::ClusterUid;
use fairlead_translate::names;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::clock::wall_now;
use crate::crossing::Crossing;
use crate::pki::{self, Purpose};
use crate::tls::{self, Leaf};

/// Whom a test door lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LetsIn {
    Callers,
    Everybody,
}

/// What is behind a test door.
#[derive(Debug, Clone, Copy)]
enum Behind {
    /// The gateway answers by itself.
    Status(u16),
    Server(SocketAddr),
}

/// A door that runs until it is dropped.
pub(crate) struct TestDoor {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicU32>,
    /// While set, requests are read and never answered.
    pub(crate) hangs: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestDoor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The certificates of a member.
pub(crate) struct TestMember {
    pub(crate) uid: ClusterUid,
    pub(crate) ca: Leaf,
    pub(crate) crossing: Crossing,
}

impl TestMember {
    pub(crate) fn new(uid: &str) -> Self {
        let uid = ClusterUid::new(uid).unwrap();
        let now = wall_now();
        let ca = pki::make_ca("test", now).unwrap();
        let client =
            pki::make_leaf(&ca, &[names::client_name(&uid)], Purpose::Client, now).unwrap();
        let crossing = Crossing { ca_pem: ca.cert_pem.clone(), endorsements: Vec::new(), client };
        Self { uid, ca, crossing }
    }

    /// Opens this member's door on loopback.
    pub(crate) async fn open_door(&self, lets_in: LetsIn, status: u16) -> TestDoor {
        self.open_door_at("127.0.0.1:0", lets_in, status).await
    }

    pub(crate) async fn open_door_at(&self, at: &str, lets_in: LetsIn, status: u16) -> TestDoor {
        self.open(at, lets_in, Behind::Status(status)).await
    }

    /// Opens this member's door on loopback; what comes through it goes on to a server.
    pub(crate) async fn open_door_to(&self, server: SocketAddr) -> TestDoor {
        self.open("127.0.0.1:0", LetsIn::Callers, Behind::Server(server)).await
    }

    async fn open(&self, at: &str, lets_in: LetsIn, behind: Behind) -> TestDoor {
        let leaf =
            pki::make_leaf(&self.ca, &[names::server_name(&self.uid)], Purpose::Server, wall_now())
                .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match lets_in {
            LetsIn::Everybody => builder.with_no_client_auth(),
            LetsIn::Callers => {
                let mut roots = RootCertStore::empty();
                roots.add(tls::certificates(&self.ca.cert_pem, "ca").unwrap().remove(0)).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.unwrap())
            }
        };
        let chain = tls::certificates(&leaf.cert_pem, "leaf").unwrap();
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
        let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let hangs = Arc::new(AtomicBool::new(false));
        let task =
            tokio::spawn(serve(listener, config, behind, connections.clone(), hangs.clone()));
        TestDoor { address, connections, hangs, task }
    }
}

async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    behind: Behind,
    connections: Arc<AtomicU32>,
    hangs: Arc<AtomicBool>,
) {
    // Dropping the set ends the connections with the door.
    let mut tasks = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::SeqCst);
        let (config, hangs) = (config.clone(), hangs.clone());
        tasks.spawn(async move {
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await
            else {
                return;
            };
            let status = match behind {
                Behind::Status(status) => status,
                Behind::Server(address) => {
                    let Ok(mut server) = TcpStream::connect(address).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
                    return;
                }
            };
            let mut bytes = [0; 4096];
            while let Ok(1..) = stream.read(&mut bytes).await {
                if hangs.load(Ordering::SeqCst) {
                    continue;
                }
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}
