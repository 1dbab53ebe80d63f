//! TLS clients of the agent: to the hub, to peers' doors, to our own door.
//!
//! Owns who is trusted for what: a pinned hub CA at the first contact, one CA per connection after
//! that. No system roots anywhere: every certificate here is of a private CA.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// A certificate chain with its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Chain, leaf first.
    pub cert_pem: String,
    /// Private key.
    pub key_pem: String,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys do not belong into logs.
        f.debug_struct("Leaf").finish_non_exhaustive()
    }
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not what it should be.
    #[error("{what} is not readable as PEM")]
    Pem {
        /// What was read.
        what: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate in a text that should have some.
    #[error("{what} holds no certificate")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// rustls refuses it.
    #[error("{what} cannot be used")]
    Rustls {
        /// What was given.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
    /// The pin is not `sha256:` and 64 hexadecimal digits.
    #[error("the CA hash must be sha256: and 64 hexadecimal digits")]
    Pin,
}

/// Whom a client believes to be the server.
#[derive(Debug, Clone)]
pub enum Trust {
    /// A chain that ends at this CA (PEM), for the right name.
    Ca(String),
    /// A chain that holds a CA of this hash (`sha256:` of its DER), for the right name.
    Pin(String),
    /// Anybody: only for knocking at our own door, where nothing is sent and only the answer counts.
    Anybody,
}

/// What a client says when nobody in the chain has the pinned hash. Errors lose their types on the way
/// through the layers, so these words are also how it is recognised.
pub const PIN_MISMATCH: &str = "the hub shows no CA with the hash of --ca-hash: either the hash is that of \
     another hub, or the hub's CA was changed since the line was printed (print a new one: fairlead token \
     create), or somebody else answers at this address";

/// Makes a client configuration; with a leaf the client can say who it is.
///
/// # Errors
/// [`TlsError`] when a PEM text or the pin has no meaning.
pub fn client_config(
    trust: &Trust,
    leaf: Option<&Leaf>,
    alpn: &[&str],
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(trust, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Rustls { what: "the list of TLS versions", source })?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = certificates(&leaf.cert_pem, "the client certificate")?;
            let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes())
                .map_err(|source| TlsError::Pem { what: "the client key", source })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Rustls { what: "the client certificate", source })?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

/// Reads all certificates of a PEM text.
///
/// # Errors
/// [`TlsError`] when there is none, or one is broken.
pub fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let chain = chain.map_err(|source| TlsError::Pem { what, source })?;
    if chain.is_empty() { Err(TlsError::Empty { what }) } else { Ok(chain) }
}

/// `sha256:` and the hash of a certificate's DER in hexadecimal.
pub fn hash_of(certificate: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(certificate.as_ref());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn verifier(
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    Ok(match trust {
        Trust::Ca(pem) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(pem, "the CA")? {
                let added = roots.add(ca);
                added.map_err(|source| TlsError::Rustls { what: "the CA", source })?;
            }
            web_pki(roots, provider)?
        }
        Trust::Pin(pin) => {
            let digits = pin.strip_prefix("sha256:").ok_or(TlsError::Pin)?;
            if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(TlsError::Pin);
            }
            Arc::new(Pinned { pin: pin.to_ascii_lowercase(), provider: provider.clone() })
        }
        Trust::Anybody => Arc::new(Anybody { provider: provider.clone() }),
    })
}

fn web_pki(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(
        |error| TlsError::Rustls {
            what: "the CA",
            source: rustls::Error::General(error.to_string()),
        },
    )
}

/// Believes a chain that holds the pinned certificate, checked against it as against any CA.
#[derive(Debug)]
struct Pinned {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|cert| hash_of(cert) == self.pin);
        let Some(ca) = pinned else {
            return Err(rustls::Error::General(PIN_MISMATCH.to_owned()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = web_pki(roots, &self.provider)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Believes anybody who holds the key of the certificate that is shown.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
