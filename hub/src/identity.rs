//! What a member's certificate says: `spiffe://fairlead.dev/member/<member>/<cluster-uid>`.
//!
//! Owns that spelling, reading it from a certificate, and the times of a certificate. Never checks a
//! signature: TLS did that before.

use fairlead_hub_core::session::Identity;
use fairlead_model::{ClusterUid, MemberId, Millis};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const PREFIX: &str = "spiffe://fairlead.dev/member/";

/// Why a certificate says nothing about a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It names no member.
    #[error("the certificate names no member of Fairlead")]
    NoMember,
}

/// A member's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whom it names.
    pub identity: Identity,
    /// When it begins.
    pub not_before: Millis,
    /// When it ends.
    pub not_after: Millis,
    /// Its public key (SubjectPublicKeyInfo, DER).
    pub spki: Vec<u8>,
}

impl PeerCertificate {
    /// True when its time is over, or has not come: the clock that it was signed by was set back since.
    pub fn is_expired(&self, now: Millis) -> bool {
        now > self.not_after || now < self.not_before
    }
}

/// The URI of an identity.
pub fn uri_of(identity: &Identity) -> String {
    format!("{PREFIX}{}/{}", identity.member, identity.uid)
}

/// Reads a member's certificate.
///
/// # Errors
/// When it cannot be read or names no member.
pub fn read_certificate(der: &[u8]) -> Result<PeerCertificate, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.ok_or(IdentityError::NoMember)?;
    let identity = names.value.general_names.iter().find_map(identity_of);
    let millis = |seconds| Millis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
    let validity = certificate.validity();
    Ok(PeerCertificate {
        identity: identity.ok_or(IdentityError::NoMember)?,
        not_before: millis(validity.not_before.timestamp()),
        not_after: millis(validity.not_after.timestamp()),
        spki: certificate.public_key().raw.to_vec(),
    })
}

fn identity_of(name: &GeneralName<'_>) -> Option<Identity> {
    let GeneralName::URI(uri) = name else { return None };
    let (member, uid) = uri.strip_prefix(PREFIX)?.split_once('/')?;
    Some(Identity { member: MemberId::new(member).ok()?, uid: ClusterUid::new(uid).ok()? })
}
