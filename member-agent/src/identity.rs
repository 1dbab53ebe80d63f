//! Who the agent is to the hub: its key, its certificate, the hub's CA.
//!
//! The key is made here and never leaves the cluster. It is kept before the token is shown, because
//! a token binds to the key of its first request: a lost answer is asked for again with the same one.
//! At the first contact the hub is known only by the hash of its CA; after that by the CA itself.
//! Fails with an error that says what a person can do; the caller tries again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use fairlead_agent_core::renewal::Life;
use fairlead_crds::keys;
use fairlead_model::ledger::Digest;
use fairlead_model::session::PROTOCOL;
use fairlead_model::{ClusterUid, MemberId};
use fairlead_proto::pb;
use fairlead_proto::pb::enrollment_client::EnrollmentClient;
use fairlead_telemetry::span::{TRACEPARENT, TraceContext, Tracer};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, watch};
use tracing::info;

use crate::clock::wall_now;
use crate::dial::{self, DialError, HubAddress};
use crate::pki::{self, CertificateFacts, PkiError};
use crate::secret::{Data, Secrets};
use crate::spans;
use crate::tls::{Leaf, Trust};

const SECRET_TYPE: &str = "Opaque";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// The trailer that carries the reason of a refusal.
const REASON_TRAILER: &str = "fairlead-reason";

/// What a connection to the hub needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Certificate and key.
    pub leaf: Leaf,
    /// The hub's CA, PEM.
    pub ca_pem: String,
}

impl AgentIdentity {
    /// From when until when its certificate is good; none when it cannot be read.
    pub fn life(&self) -> Option<Life> {
        let CertificateFacts { not_before, not_after, .. } =
            CertificateFacts::of(&self.leaf.cert_pem).ok()?;
        Some(Life { not_before, not_after })
    }
}

/// What is told about this cluster at the first contact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Name.
    pub member: MemberId,
    /// Cluster.
    pub uid: ClusterUid,
    /// Region, when the person who joined it said one.
    pub region: Option<String>,
    /// Zone, likewise.
    pub zone: Option<String>,
    /// Class for Gateways, likewise.
    pub gateway_class: Option<String>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Secret cannot be read or written.
    #[error("Secret {}: {}", keys::SECRET_AGENT_IDENTITY, crate::api::message(source))]
    Secret {
        /// Why.
        source: kube::Error,
    },
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There is nothing to show to the hub.
    #[error(
        "this agent has no identity and no bootstrap token ({path} is not readable); run `fairlead token create` \
         against the hub and `fairlead join` here"
    )]
    NoToken {
        /// What is missing.
        path: String,
    },
    /// The hub is not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub says no.
    #[error("the hub refuses: {reason}: {message}")]
    Refused {
        /// Name of the reason, or the gRPC code.
        reason: String,
        /// In words.
        message: String,
    },
}

fn secret_error(source: kube::Error) -> IdentityError {
    IdentityError::Secret { source }
}

/// Gets and keeps the identity.
pub struct Identities {
    /// Where it is kept.
    pub secrets: Secrets,
    /// Where the hub is.
    pub hub: HubAddress,
    /// What we say of ourselves.
    pub introduction: Introduction,
    /// Files of the first contact.
    pub bootstrap_dir: PathBuf,
    /// Where spans go.
    pub tracer: Tracer,
    /// One at a time: stream and renewal would both renew what is due.
    gate: Mutex<()>,
    /// What was found or got last.
    kept: watch::Sender<Option<AgentIdentity>>,
    /// The CAs that the hub says are to be believed, PEM.
    told: watch::Sender<Option<String>>,
    /// The hub says that our certificate is over, whatever our clock says.
    doubted: AtomicBool,
}

impl Identities {
    /// Gets the identity from there and keeps it there.
    pub fn new(
        secrets: Secrets,
        hub: HubAddress,
        introduction: Introduction,
        bootstrap_dir: PathBuf,
        tracer: Tracer,
    ) -> Self {
        let (gate, kept) = (Mutex::default(), watch::Sender::new(None));
        let told = watch::Sender::new(None);
        let doubted = AtomicBool::default();
        Self { secrets, hub, introduction, bootstrap_dir, tracer, gate, kept, told, doubted }
    }

    /// The hub says which CAs are to be believed. Only a renewal changes whom we believe.
    pub fn tell(&self, ca_pem: String) {
        self.told.send_replace(Some(ca_pem));
    }

    /// The hub refuses our certificate because of its time: it is renewed before it is shown again.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// What the hub said last.
    pub fn told(&self) -> watch::Receiver<Option<String>> {
        self.told.subscribe()
    }

    /// SHA-256 of the CAs that we believe, as the hub wrote them.
    pub fn trust(&self) -> Option<Digest> {
        let kept = self.kept.borrow();
        kept.as_ref().map(|identity| Sha256::digest(&identity.ca_pem).into())
    }

    /// The identity whenever it is another one than before.
    pub fn subscribe(&self) -> watch::Receiver<Option<AgentIdentity>> {
        self.kept.subscribe()
    }

    /// The identity: the one that is kept, renewed when two thirds of its life are over or the hub says
    /// that all of it is; else a new one for the bootstrap token.
    ///
    /// # Errors
    /// [`IdentityError`] when there is none to be had now.
    pub async fn obtain(&self) -> Result<AgentIdentity, IdentityError> {
        let _one_at_a_time = self.gate.lock().await;
        let identity = self.find_or_get().await?;
        self.remember(&identity);
        Ok(identity)
    }

    /// Renews the identity, due or not.
    ///
    /// # Errors
    /// As [`Self::obtain`]; not while the old one is good.
    pub async fn refresh(&self) -> Result<AgentIdentity, IdentityError> {
        let _one_at_a_time = self.gate.lock().await;
        let kept = self.secrets.get(keys::SECRET_AGENT_IDENTITY).await.map_err(secret_error)?;
        let kept = kept.as_ref().and_then(identity_of).filter(|i| self.is_mine(i));
        let identity = match kept {
            Some(identity) => self.renew(identity).await?,
            None => self.find_or_get().await?,
        };
        self.remember(&identity);
        Ok(identity)
    }

    fn remember(&self, identity: &AgentIdentity) {
        self.kept.send_if_modified(|kept| {
            let changed = kept.as_ref() != Some(identity);
            *kept = Some(identity.clone());
            changed
        });
    }

    async fn find_or_get(&self) -> Result<AgentIdentity, IdentityError> {
        let kept = self.secrets.get(keys::SECRET_AGENT_IDENTITY).await.map_err(secret_error)?;
        let kept = kept.unwrap_or_default();
        if let Some(identity) = identity_of(&kept).filter(|i| self.is_mine(i)) {
            let doubted = self.doubted.swap(false, Ordering::Relaxed);
            if !doubted && identity.life().is_some_and(|life| !life.is_due(wall_now())) {
                return Ok(identity);
            }
            return self.renew(identity).await;
        }
        self.enroll(kept.get(KEY).cloned()).await
    }

    /// A certificate for another name or cluster (a restored backup, a copied Secret) is not ours.
    fn is_mine(&self, identity: &AgentIdentity) -> bool {
        let Introduction { member, uid, .. } = &self.introduction;
        let name = format!("spiffe://fairlead.dev/member/{member}/{uid}");
        CertificateFacts::of(&identity.leaf.cert_pem).is_ok_and(|facts| facts.names.contains(&name))
    }

    async fn enroll(&self, key: Option<String>) -> Result<AgentIdentity, IdentityError> {
        let token = read_file(&self.bootstrap_dir, "token")?;
        let pin = read_file(&self.bootstrap_dir, "ca-hash")?;
        let key_pem = match key.filter(|key| pki::make_csr(key).is_ok()) {
            Some(key) => key,
            None => {
                let key = pki::make_key()?;
                let data = Data::from([(KEY.to_owned(), key.clone())]);
                self.keep(&data).await?;
                key
            }
        };
        let from_file = |name: &str| read_file(&self.bootstrap_dir, name).ok();
        let Introduction { member, uid, region, zone, gateway_class } = &self.introduction;
        let request = pb::EnrollRequest {
            token,
            member: member.to_string(),
            cluster_uid: uid.to_string(),
            csr_pem: pki::make_csr(&key_pem)?,
            region: region.clone().or_else(|| from_file("region")).unwrap_or_default(),
            zone: zone.clone().or_else(|| from_file("zone")).unwrap_or_default(),
            gateway_class: gateway_class
                .clone()
                .or_else(|| from_file("gateway-class"))
                .unwrap_or_default(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: Some(pb::Protocol { major: PROTOCOL.major, minor: PROTOCOL.minor }),
            now_ms: wall_now().0,
        };
        let (context, start) = (self.tracer.root(), SystemTime::now());
        let joined = async {
            let channel = dial::dial(&self.hub, &Trust::Pin(pin), None).await?;
            let request = traced(request, context);
            let answer = EnrollmentClient::new(channel).enroll(request).await.map_err(refused)?;
            let answer = answer.into_inner();
            self.accept(answer.certificate_pem, key_pem, answer.ca_pem).await
        };
        let joined = joined.await;
        let failed = joined.as_ref().err().map(ToString::to_string);
        spans::record_join(&self.tracer, context, self.hub.host(), start, failed);
        if joined.is_ok() {
            info!(member = %member, trace_id = context.trace_id(), "enrolled with the hub");
        }
        joined
    }

    /// Renewal failing is no reason to stop while the certificate is still good.
    async fn renew(&self, identity: AgentIdentity) -> Result<AgentIdentity, IdentityError> {
        let renewed = async {
            let trust = Trust::Ca(identity.ca_pem.clone());
            let channel = dial::dial(&self.hub, &trust, Some(&identity.leaf)).await?;
            let request = pb::RenewRequest { csr_pem: pki::make_csr(&identity.leaf.key_pem)? };
            let answer = EnrollmentClient::new(channel).renew(request).await.map_err(refused)?;
            Ok::<_, IdentityError>(answer.into_inner())
        };
        match renewed.await {
            Ok(answer) => {
                info!("renewed the agent's certificate");
                let ca = Some(answer.ca_pem).filter(|ca| !ca.is_empty());
                let ca = ca.unwrap_or_else(|| identity.ca_pem.clone());
                self.accept(answer.certificate_pem, identity.leaf.key_pem, ca).await
            }
            Err(error) if identity.life().is_some_and(|life| life.is_valid(wall_now())) => {
                tracing::warn!(%error, "certificate is due for renewal, the old one is still good");
                Ok(identity)
            }
            Err(error) => Err(error),
        }
    }

    async fn accept(
        &self,
        cert_pem: String,
        key_pem: String,
        ca_pem: String,
    ) -> Result<AgentIdentity, IdentityError> {
        let identity = AgentIdentity { leaf: Leaf { cert_pem, key_pem }, ca_pem };
        if !self.is_mine(&identity) {
            let message = "the certificate is not for this member and cluster".to_owned();
            return Err(IdentityError::Refused { reason: "WrongIdentity".to_owned(), message });
        }
        let data = Data::from([
            (CERT.to_owned(), identity.leaf.cert_pem.clone()),
            (KEY.to_owned(), identity.leaf.key_pem.clone()),
            (CA.to_owned(), identity.ca_pem.clone()),
        ]);
        self.keep(&data).await?;
        Ok(identity)
    }

    async fn keep(&self, data: &Data) -> Result<(), IdentityError> {
        let kept = self.secrets.set(keys::SECRET_AGENT_IDENTITY, SECRET_TYPE, data).await;
        kept.map_err(secret_error)
    }
}

/// A call that the hub's span of it can join.
fn traced<T>(message: T, context: TraceContext) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = context.to_string().parse() {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    request
}

fn identity_of(data: &Data) -> Option<AgentIdentity> {
    let leaf = Leaf { cert_pem: data.get(CERT)?.clone(), key_pem: data.get(KEY)?.clone() };
    Some(AgentIdentity { leaf, ca_pem: data.get(CA)?.clone() })
}

fn read_file(dir: &Path, name: &str) -> Result<String, IdentityError> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
    let text = text.ok().filter(|text| !text.is_empty());
    text.ok_or_else(|| IdentityError::NoToken { path: path.display().to_string() })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(status: tonic::Status) -> IdentityError {
    let reason = status.metadata().get(REASON_TRAILER).and_then(|value| value.to_str().ok());
    let reason = reason.map_or_else(|| status.code().to_string(), str::to_owned);
    let message = match status.message() {
        "" => dial::root_cause(&status),
        text => text.to_owned(),
    };
    IdentityError::Refused { reason, message }
}
