//! The hub's certificate authority: who signs agents' certificates and the hub's own.
//!
//! Owns the forms of all control-plane certificates. Never sends a private key anywhere, and ignores
//! everything that a signing request asks for but its public key. The CA itself is made once and kept
//! in a Secret ([`crate::bootstrap`]).

use std::net::IpAddr;
use std::time::Duration;

use fairlead_hub_core::session::Identity;
use fairlead_model::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer as _;

use crate::identity;

/// The hub's own certificate is made anew at every start and every [`SERVER_RENEWAL`].
const SERVER_DAYS: u64 = 90;
/// How often the hub renews its own certificate.
pub const SERVER_RENEWAL: Duration = Duration::from_secs(24 * 3600);
const CA_DAYS: u64 = 3650;
/// Clocks of fresh machines are behind by a little; lives of tests are shorter than that.
const BACKDATE_MS: u64 = 5 * 60 * 1_000;
/// An agent whose clock was set back must reach the hub all the same, and be told. Its key is new, so
/// that an early beginning gives nothing away.
const SERVER_BACKDATE_MS: u64 = 30 * DAY_MS;
const DAY_MS: u64 = 24 * 3600 * 1_000;
/// Largest signing request: RSA 4096 with every extension fits.
const CSR_BYTES_MAX: usize = 16 << 10;

/// The name that every hub certificate has, whatever address agents dial.
pub const SERVER_NAME: &str = "hub.fairlead.internal";

/// Why something about certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate cannot be made.
    #[error("{what} cannot be made")]
    Make {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The stored CA cannot be used.
    #[error("the CA in its Secret cannot be read: {detail}")]
    Ca {
        /// Why.
        detail: String,
    },
    /// The signing request cannot be used.
    #[error("the signing request cannot be read: {detail}")]
    Request {
        /// Why.
        detail: String,
    },
}

fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Make { what, source }
}

/// A CA as PEM: what its Secret holds.
#[derive(Clone)]
pub struct CaPem {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

/// The CA, ready to sign.
pub struct Ca {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain and its key, as rustls wants them.
#[derive(Debug)]
pub struct ServerCertificate {
    /// Leaf and CA: an agent that knows only the CA's hash finds the CA there.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key.
    pub key: PrivateKeyDer<'static>,
}

/// A signing request that was read.
pub struct SigningRequest {
    params: CertificateSigningRequestParams,
    /// Its public key (SubjectPublicKeyInfo, DER).
    pub spki: Vec<u8>,
}

fn validity(params: &mut CertificateParams, now: Millis, life_ms: u64, backdate_ms: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |ms: u64| epoch + Duration::from_millis(ms);
    params.not_before = at(now.0.saturating_sub(backdate_ms));
    params.not_after = at(now.plus(life_ms).0);
}

/// Makes a new CA.
///
/// # Errors
/// When the system has no randomness.
pub fn make_ca(now: Millis) -> Result<CaPem, PkiError> {
    let key = KeyPair::generate().map_err(make("the CA key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Fairlead hub CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, CA_DAYS * DAY_MS, BACKDATE_MS);
    let certificate = params.self_signed(&key).map_err(make("the CA certificate"))?;
    Ok(CaPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

impl Ca {
    /// Opens a stored CA.
    ///
    /// # Errors
    /// When certificate or key cannot be read.
    pub fn open(pem: &CaPem) -> Result<Self, PkiError> {
        let unreadable = |detail: String| PkiError::Ca { detail };
        let key = KeyPair::from_pem(&pem.key).map_err(|e| unreadable(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&pem.certificate, key)
            .map_err(|e| unreadable(e.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(pem.certificate.as_bytes())
            .map_err(|e| unreadable(e.to_string()))?;
        Ok(Self { certificate_pem: pem.certificate.clone(), certificate, issuer })
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// `sha256:<hex>` of its certificate: what a join line pins.
    pub fn hash(&self) -> String {
        format!("sha256:{}", hex(&Sha256::digest(&self.certificate)))
    }

    /// Makes the hub's own certificate for these names.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn issue_server(
        &self,
        names: &[String],
        now: Millis,
    ) -> Result<ServerCertificate, PkiError> {
        let key = KeyPair::generate().map_err(make("the hub's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        params.subject_alt_names = names.iter().filter_map(|name| san(name)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, SERVER_DAYS * DAY_MS, SERVER_BACKDATE_MS);
        let leaf = params.signed_by(&key, &self.issuer).map_err(make("the hub's certificate"))?;
        Ok(ServerCertificate {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// Signs a member's certificate that lives so long, PEM.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn sign_member(
        &self,
        request: &SigningRequest,
        identity: &Identity,
        life_ms: u64,
        now: Millis,
    ) -> Result<String, PkiError> {
        let uri = identity::uri_of(identity);
        let uri = uri.try_into().map_err(make("the name of the member's certificate"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, identity.member.as_str());
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, life_ms, BACKDATE_MS.min(life_ms / 10));
        let public_key = request.params.public_key.clone();
        let signed = CertificateSigningRequestParams { params, public_key }.signed_by(&self.issuer);
        Ok(signed.map_err(make("the member's certificate"))?.pem())
    }
}

impl SigningRequest {
    /// Reads a signing request (PEM) and checks that its sender has the private key.
    ///
    /// # Errors
    /// When it is too large, cannot be read, or its signature is wrong.
    pub fn read(pem: &str) -> Result<Self, PkiError> {
        let unreadable = |detail: String| PkiError::Request { detail };
        if pem.len() > CSR_BYTES_MAX {
            return Err(unreadable(format!("more than {CSR_BYTES_MAX} bytes")));
        }
        // Reading verifies the signature of the request.
        let params = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| unreadable(error.to_string()))?;
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|error| unreadable(error.to_string()))?;
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&der.contents)
                .map_err(|error| unreadable(error.to_string()))?;
        let spki = request.certification_request_info.subject_pki.raw.to_vec();
        Ok(Self { params, spki })
    }

    /// SHA-256 of the public key, hex: what a token is bound to.
    pub fn key_hash(&self) -> String {
        hex(&Sha256::digest(&self.spki))
    }
}

fn san(name: &str) -> Option<SanType> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Some(SanType::IpAddress(ip)),
        Err(_) => name.to_owned().try_into().ok().map(SanType::DnsName),
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::{ClusterUid, MemberId};

    const NOW: Millis = Millis(1_800_000_000_000);

    fn mk_identity() -> Identity {
        Identity { member: MemberId::new("east").unwrap(), uid: ClusterUid::new("uid-1").unwrap() }
    }

    fn mk_csr(ask: &str) -> (KeyPair, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![ask.to_owned()]).unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        (key, pem)
    }

    #[test]
    fn a_member_certificate_says_what_the_hub_decided_and_nothing_that_was_asked() {
        let ca = Ca::open(&make_ca(NOW).unwrap()).unwrap();
        let request = SigningRequest::read(&mk_csr("admin.example.com").1).unwrap();
        let pem = ca.sign_member(&request, &mk_identity(), DAY_MS, NOW).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let read = identity::read_certificate(&der).unwrap();
        assert_eq!(read.identity, mk_identity());
        assert_eq!(read.spki, request.spki);
        assert_eq!(read.not_after, NOW.plus(DAY_MS));
        assert!(!String::from_utf8_lossy(&der).contains("admin.example.com"));
    }

    #[test]
    fn a_request_signed_with_another_key_is_refused() {
        let (_, pem) = mk_csr("a.example.com");
        let mut der = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
        let last = der.len() - 1;
        der[last] ^= 1;
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
        );
        assert!(matches!(SigningRequest::read(&forged), Err(PkiError::Request { .. })));
        for bad in ["", "x", &"x".repeat(CSR_BYTES_MAX + 1)] {
            assert!(SigningRequest::read(bad).is_err());
        }
    }

    #[test]
    fn the_hash_is_that_of_the_certificate_in_the_served_chain() {
        let ca = Ca::open(&make_ca(NOW).unwrap()).unwrap();
        let names = [SERVER_NAME.to_owned(), "10.0.0.1".to_owned()];
        let server = ca.issue_server(&names, NOW).unwrap();
        let shown = server.chain.last().unwrap();
        assert_eq!(ca.hash(), format!("sha256:{}", hex(&Sha256::digest(shown))));
    }

    #[test]
    fn a_ca_reads_back_from_its_pem() {
        let pem = make_ca(NOW).unwrap();
        assert_eq!(Ca::open(&pem).unwrap().certificate_pem(), pem.certificate);
        assert!(Ca::open(&CaPem { key: "x".into(), ..pem }).is_err());
    }
}
