//! Refusals on the wire: a reason as a gRPC status, and who the caller is.
//!
//! Owns the mapping from our reasons to status codes and the metadata key that carries the reason.

use fairlead_model::Reason;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::identity::{PeerCertificate, read_certificate};

/// Metadata of a status: the reason's name.
pub const REASON_KEY: &str = "fairlead-reason";
/// Statuses travel in a header; longer messages are cut.
const MESSAGE_MAX: usize = 1_000;

/// A refusal as a status.
pub fn status(reason: Reason, message: &str) -> Status {
    let message: String = message.chars().take(MESSAGE_MAX).collect();
    let mut status = Status::new(code(reason), message);
    status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static(reason.as_str()));
    status
}

fn code(reason: Reason) -> Code {
    match reason {
        Reason::TokenUnknown | Reason::TokenExpired | Reason::CertificateExpired => {
            Code::Unauthenticated
        }
        Reason::TokenUsed | Reason::WrongIdentity | Reason::MemberRemoved => Code::PermissionDenied,
        Reason::NameTaken | Reason::ClusterJoinedAlready => Code::AlreadyExists,
        Reason::ClockSkew | Reason::VersionUnsupported => Code::FailedPrecondition,
        Reason::UnsupportedValue | Reason::Unreadable => Code::InvalidArgument,
        Reason::TooLarge => Code::ResourceExhausted,
        Reason::OldNumber => Code::Aborted,
        Reason::AgentLost => Code::DeadlineExceeded,
        Reason::StoreUnavailable => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// The caller's certificate, which TLS checked already.
///
/// # Errors
/// Unauthenticated when there is none or it names no member.
pub fn peer_of<T>(request: &Request<T>) -> Result<PeerCertificate, Status> {
    let certificates = request.peer_certs();
    let leaf = certificates.as_deref().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
    read_certificate(leaf).map_err(|error| Status::unauthenticated(error.to_string()))
}
