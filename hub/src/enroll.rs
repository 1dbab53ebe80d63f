//! How a cluster becomes a member, and how its certificate is renewed.
//!
//! Owns the calls `Enroll` and `Renew`: reads, asks [`fairlead_hub_core::enroll`], binds, registers,
//! signs. Never logs a token and never trusts a signing request beyond its public key. A refusal is a
//! status with the reason's name in its metadata and a sentence that says what to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_hub_core::enroll::{Accepted, JoinRequest, Refusal, Registration, Shown, decide_join};
use fairlead_hub_core::event::{Told, Weight};
use fairlead_hub_core::session::Identity;
use fairlead_model::session::PROTOCOL;
use fairlead_model::{MemberId, Millis, Reason};
use fairlead_proto::pb;
use fairlead_proto::pb::enrollment_server::Enrollment;
use fairlead_telemetry::span::{TRACEPARENT, Tracer};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::authority::Authority;
use crate::clock;
use crate::events::Events;
use crate::identity::PeerCertificate;
use crate::pki::{PkiError, SigningRequest, hex};
use crate::refusal::{peer_of, status};
use crate::registry::{NewMember, Registered, Registry, RegistryError, StoredToken, Written};
use crate::spans::record_enrolled;

/// Tries against writers that were faster: each lost try means that somebody else's join went on.
const TRIES_MAX: usize = 5;
/// Calls at once: each reads the API server, and strangers may call.
const CALLS_MAX: usize = 8;
/// A call that waits longer is given up; the agent tries again.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Length of a token's public part.
const TOKEN_ID_LEN: usize = 8;
/// Length of its secret part.
const TOKEN_SECRET_LEN: usize = 32;

/// The calls `Enroll` and `Renew`.
pub struct EnrollService {
    authority: Arc<Authority>,
    life_ms: u64,
    registry: Arc<dyn Registry>,
    events: Events,
    calls: Semaphore,
    tracer: Tracer,
}

impl EnrollService {
    /// The calls, with these CAs, this life of certificates, and this registry. Spans go to `tracer`.
    pub fn new(
        authority: Arc<Authority>,
        life_ms: u64,
        registry: Arc<dyn Registry>,
        events: Events,
        tracer: Tracer,
    ) -> Self {
        Self { authority, life_ms, registry, events, calls: Semaphore::new(CALLS_MAX), tracer }
    }

    async fn enroll_now(&self, asked: &pb::EnrollRequest) -> Result<pb::EnrollResponse, Status> {
        check_protocol(asked)?;
        let csr = SigningRequest::read(&asked.csr_pem).map_err(|e| bad_request(&e))?;
        let request = JoinRequest {
            member: asked.member.clone(),
            cluster_uid: asked.cluster_uid.clone(),
            key_hash: csr.key_hash(),
            now: Millis(asked.now_ms),
        };
        for _ in 0..TRIES_MAX {
            if let Some(accepted) = self.try_join(asked, &request).await? {
                tracing::info!(member = %accepted.member, uid = %accepted.uid, "member joined");
                self.events.tell(joined(&accepted, &asked.agent_version));
                let identity = Identity { member: accepted.member, uid: accepted.uid };
                let (certificate_pem, ca_pem) = self.sign(&csr, &identity)?;
                return Ok(pb::EnrollResponse { certificate_pem, ca_pem });
            }
        }
        Err(Status::unavailable("others join at the same time; try again"))
    }

    /// One try; none when another writer was faster.
    async fn try_join(
        &self,
        asked: &pb::EnrollRequest,
        request: &JoinRequest,
    ) -> Result<Option<Accepted>, Status> {
        let stored = self.find_token(&asked.token).await?;
        let shown = stored.as_ref().map_or(Shown::Unknown, |s| Shown::Known(s.token.clone()));
        let members = self.registry.members().await.map_err(|e| unavailable(&e))?;
        let owners = members.iter().map(|(name, r)| (name.clone(), r.uid.clone())).collect();
        let accepted = decide_join(request, &shown, &owners, clock::now())
            .inspect_err(|refusal| log_refusal(request, refusal))
            .inspect_err(|refusal| self.tell_refusal(request, refusal))
            .map_err(|refusal| status(refusal.reason, &refusal.message))?;
        let Some(stored) = stored else { return Err(Status::internal("a token of nothing")) };
        if stored.token.bound_key.is_none() {
            let bound = self.registry.bind_token(&stored, &request.key_hash, &accepted.uid).await;
            if bound.map_err(|e| unavailable(&e))? == Written::Conflict {
                return Ok(None);
            }
        }
        let known = members.get(&accepted.member);
        let written = self.register(asked, &accepted, known).await?;
        Ok((written == Written::Done).then_some(accepted))
    }

    /// Only what somebody with a token of ours asked for: a stranger must not write into our API server.
    fn tell_refusal(&self, request: &JoinRequest, refusal: &Refusal) {
        let Ok(member) = MemberId::new(&request.member) else { return };
        if refusal.reason == Reason::TokenUnknown {
            return;
        }
        let (weight, reason) = (Weight::Warning, refusal.reason.as_str());
        let note = format!("refused a join: {}", refusal.message);
        self.events.tell(Told { member, weight, reason, note });
    }

    async fn find_token(&self, text: &str) -> Result<Option<StoredToken>, Status> {
        // The form first: what is no token must not become part of an object's name.
        let Some(id) = token_id(text) else { return Ok(None) };
        let stored = self.registry.token(id).await.map_err(|e| unavailable(&e))?;
        let hash = hex(&Sha256::digest(text));
        Ok(stored.filter(|stored| stored.hash == hash))
    }

    async fn register(
        &self,
        asked: &pb::EnrollRequest,
        accepted: &Accepted,
        known: Option<&Registered>,
    ) -> Result<Written, Status> {
        let member = NewMember {
            member: accepted.member.clone(),
            uid: accepted.uid.clone(),
            region: asked.region.clone(),
            zone: asked.zone.clone(),
            gateway_class: asked.gateway_class.clone(),
        };
        let written = match (accepted.registration, known) {
            (Registration::Keep, _) => return Ok(Written::Done),
            (Registration::Claim, Some(known)) => self.registry.claim_member(&member, known).await,
            (Registration::Create | Registration::Claim, _) => {
                self.registry.create_member(&member).await
            }
        };
        written.map_err(|error| match error {
            RegistryError::Invalid(message) => status(Reason::UnsupportedValue, &message),
            error @ RegistryError::Api { .. } => unavailable(&error),
        })
    }

    async fn renew_now(
        &self,
        peer: &PeerCertificate,
        asked: &pb::RenewRequest,
    ) -> Result<pb::RenewResponse, Status> {
        let csr = SigningRequest::read(&asked.csr_pem).map_err(|e| bad_request(&e))?;
        // Agents keep their key: whoever asks for another one is no agent.
        if csr.spki != peer.spki {
            return Err(status(
                Reason::WrongIdentity,
                "a certificate can only be renewed with its own key; join again",
            ));
        }
        check_registered(self.registry.as_ref(), &peer.identity).await?;
        let (certificate_pem, ca_pem) = self.sign(&csr, &peer.identity)?;
        tracing::info!(member = %peer.identity.member, "renewed a member's certificate");
        Ok(pb::RenewResponse { certificate_pem, ca_pem })
    }

    /// A certificate, and the CAs to believe from now on: those of one and the same moment.
    fn sign(&self, csr: &SigningRequest, identity: &Identity) -> Result<(String, String), Status> {
        let authorities = self.authority.now();
        let signed = authorities.signer().sign_member(csr, identity, self.life_ms, clock::now());
        let certificate_pem = signed.map_err(|error| {
            tracing::error!(member = %identity.member, %error, "cannot sign a certificate");
            Status::internal(error.to_string())
        })?;
        Ok((certificate_pem, authorities.bundle_pem()))
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollService {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let _permit = self.calls.try_acquire().map_err(|_| busy())?;
        let context =
            request.metadata().get(TRACEPARENT).and_then(|it| it.to_str().ok()?.parse().ok());
        let start = SystemTime::now();
        let asked = request.into_inner();
        let answer = bounded(self.enroll_now(&asked)).await?;
        if let Some(context) = context {
            record_enrolled(&self.tracer, context, &asked.member, &asked.cluster_uid, start);
        }
        Ok(Response::new(answer))
    }

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let _permit = self.calls.try_acquire().map_err(|_| busy())?;
        let peer = peer_of(&request)?;
        let asked = request.into_inner();
        bounded(self.renew_now(&peer, &asked)).await.map(Response::new)
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the hub's API server is slow; try again");
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(late)?
}

fn busy() -> Status {
    Status::resource_exhausted("too many joins at once; try again")
}

/// Fails unless the certificate's name and cluster are those of a MemberCluster.
///
/// # Errors
/// `MemberRemoved`, or unavailable when the API server cannot be asked.
pub async fn check_registered(registry: &dyn Registry, identity: &Identity) -> Result<(), Status> {
    let registered = registry.member(&identity.member).await.map_err(|e| unavailable(&e))?;
    match registered {
        Some(registered) if registered.uid.as_ref() == Some(&identity.uid) => Ok(()),
        Some(_) | None => Err(status(
            Reason::MemberRemoved,
            &format!("{} is no member of this hub any more; join again", identity.member),
        )),
    }
}

fn check_protocol(asked: &pb::EnrollRequest) -> Result<(), Status> {
    let protocol = asked.protocol.unwrap_or_default();
    if protocol.major == PROTOCOL.major {
        return Ok(());
    }
    let message = format!(
        "the agent speaks protocol {}.{}, this hub {}.{}: use an agent of the hub's version",
        protocol.major, protocol.minor, PROTOCOL.major, PROTOCOL.minor
    );
    Err(status(Reason::VersionUnsupported, &message))
}

/// The public part of a text that has the form of a token.
fn token_id(text: &str) -> Option<&str> {
    let (id, secret) = text.split_once('.')?;
    let fits = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, TOKEN_ID_LEN) && fits(secret, TOKEN_SECRET_LEN)).then_some(id)
}

fn joined(accepted: &Accepted, agent_version: &str) -> Told {
    let version = fairlead_model::id::printable(agent_version);
    Told {
        member: accepted.member.clone(),
        weight: Weight::Normal,
        reason: "MemberJoined",
        note: format!("cluster {} joined with agent {version}", accepted.uid),
    }
}

fn log_refusal(request: &JoinRequest, refusal: &Refusal) {
    let member = fairlead_model::id::printable(&request.member);
    tracing::warn!(member, reason = %refusal.reason, detail = refusal.message, "refused a join");
}

fn bad_request(error: &PkiError) -> Status {
    status(Reason::Unreadable, &error.to_string())
}

fn unavailable(error: &RegistryError) -> Status {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(%error, source, "the registry cannot be asked");
    Status::unavailable("the hub's API server does not answer; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_token_has_an_id() {
        let whole = format!("abcdefg1.{}", "x".repeat(32));
        assert_eq!(token_id(&whole), Some("abcdefg1"));
        let upper = whole.to_uppercase();
        let long = format!("{whole}x");
        let path = format!("../../ab.{}", "x".repeat(32));
        for bad in ["", ".", "abcdefg1", "abcdefg1.x", &upper, &long, &path] {
            assert_eq!(token_id(bad), None, "{bad:?}");
        }
    }
}
