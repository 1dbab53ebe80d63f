//! TLS of the agents' port.
//!
//! Owns the server's configuration: the hub's certificate, which is swapped while streams go on, and
//! what is asked of clients. A client certificate is optional here, since a cluster that joins has
//! none yet; each call checks what it needs ([`crate::link`]). Never lets an unsigned or foreign
//! certificate through. One whose time is over or has not come passes, so that its owner can renew it, and
//! nothing else.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_model::Millis;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::Authority;
use crate::identity;
use crate::pki::{PkiError, ServerCertificate};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// rustls refuses the key.
    #[error("the hub's key cannot be used")]
    Key(#[source] rustls::Error),
}

/// The hub's certificate, which can be swapped.
#[derive(Debug)]
pub struct HubCertificate(ArcSwap<CertifiedKey>);

impl HubCertificate {
    /// Starts with this certificate.
    ///
    /// # Errors
    /// [`TlsError::Key`].
    pub fn new(certificate: ServerCertificate) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::from_pointee(certified(certificate)?)))
    }

    /// New connections get this one from now on.
    ///
    /// # Errors
    /// [`TlsError::Key`].
    pub fn swap(&self, certificate: ServerCertificate) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(certificate)?));
        Ok(())
    }
}

fn certified(certificate: ServerCertificate) -> Result<CertifiedKey, TlsError> {
    let key = rustls::crypto::ring::sign::any_supported_type(&certificate.key);
    Ok(CertifiedKey::new(certificate.chain, key.map_err(TlsError::Key)?))
}

impl ResolvesServerCert for HubCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The configuration of the agents' port.
///
/// # Errors
/// When rustls refuses the settings.
pub fn server_config(
    authority: Arc<Authority>,
    certificate: Arc<HubCertificate>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = Clients { authority, provider: provider.clone() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Key)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Checks certificates by the CAs of this very moment, and takes one whose time it is not as if it were
/// its last second.
struct Clients {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Clients {
    /// Made for each handshake: CAs change, and handshakes are few.
    fn strict(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for ca in self.authority.now().all() {
            roots.add(ca.certificate().clone())?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: an agent has one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let strict = self.strict()?;
        match strict.verify_client_cert(leaf, intermediates, now) {
            // webpki looks at the time before the signature, so the whole check is done again.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )) => {
                let read = identity::read_certificate(leaf)
                    .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
                strict.verify_client_cert(leaf, intermediates, unix_time(read.not_after))
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn unix_time(at: Millis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(at.0))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::authority::Authorities;
    use crate::pki::{Ca, SigningRequest, make_ca};
    use fairlead_hub_core::session::Identity;
    use fairlead_model::{ClusterUid, MemberId};
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::pem::PemObject as _;

    const NOW: Millis = Millis(1_800_000_000_000);
    const YEAR_MS: u64 = 365 * 24 * 3600 * 1_000;

    fn mk_leaf(ca: &Ca, now: Millis) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let identity = Identity {
            member: MemberId::new("east").unwrap(),
            uid: ClusterUid::new("uid-1").unwrap(),
        };
        let pem = ca
            .sign_member(&SigningRequest::read(&csr).unwrap(), &identity, YEAR_MS / 50, now)
            .unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn mk_ca(at: Millis) -> Ca {
        Ca::open(&make_ca(at).unwrap()).unwrap()
    }

    fn verifier(current: Ca, next: Option<Ca>) -> Clients {
        let authority = Arc::new(Authority::new(Authorities::new(current, next)));
        Clients { authority, provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }

    #[test]
    fn a_certificate_of_ours_passes_out_of_its_time_too_and_a_foreign_one_never() {
        let (ours, other) = (mk_ca(Millis(NOW.0 - YEAR_MS)), mk_ca(Millis(NOW.0 - YEAR_MS)));
        let (old, future) = (Millis(NOW.0 - YEAR_MS / 2), NOW.plus(YEAR_MS));
        let rows = [
            (mk_leaf(&ours, NOW), true),
            (mk_leaf(&ours, old), true),
            (mk_leaf(&ours, future), true),
            (mk_leaf(&other, NOW), false),
            (mk_leaf(&other, old), false),
            (mk_leaf(&other, future), false),
        ];
        let verifier = verifier(ours, None);
        for (leaf, want) in rows {
            let verdict = verifier.verify_client_cert(&leaf, &[], unix_time(NOW));
            assert_eq!(verdict.is_ok(), want, "{verdict:?}");
        }
    }

    #[test]
    fn out_of_its_time_a_certificate_is_good_for_a_renewal_only() {
        let leaf = mk_leaf(&mk_ca(NOW), NOW);
        let peer = identity::read_certificate(&leaf).unwrap();
        let rows = [
            (Millis(NOW.0 - YEAR_MS), true),
            (NOW, false),
            (NOW.plus(YEAR_MS / 50 - 1_000), false),
            (NOW.plus(YEAR_MS), true),
        ];
        for (now, expired) in rows {
            assert_eq!(peer.is_expired(now), expired, "{now:?}");
        }
    }

    #[test]
    fn while_the_ca_changes_both_are_believed_and_then_the_new_one_alone() {
        let (a, b) = (make_ca(NOW).unwrap(), make_ca(NOW).unwrap());
        let open = |pem| Ca::open(pem).unwrap();
        let leafs = [mk_leaf(&open(&a), NOW), mk_leaf(&open(&b), NOW)];
        let clients = verifier(open(&a), None);
        let verdicts = || {
            let of = |leaf| clients.verify_client_cert(leaf, &[], unix_time(NOW)).is_ok();
            leafs.each_ref().map(of)
        };
        assert_eq!(verdicts(), [true, false]);
        clients.authority.set(Authorities::new(open(&a), Some(open(&b))));
        assert_eq!(verdicts(), [true, true]);
        clients.authority.set(Authorities::new(open(&b), None));
        assert_eq!(verdicts(), [false, true]);
    }
}
