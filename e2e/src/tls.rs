//! TLS from the harness: as a peer with a certificate, or as a stranger without one.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::{http1, pki::Leaf};

/// How to knock at a TLS port.
pub struct Knock<'a> {
    pub address: SocketAddr,
    /// The name asked for (SNI) and expected in the certificate.
    pub name: &'a str,
    /// Whose certificates are believed, PEM.
    pub ca_pem: &'a str,
    /// What to show when asked.
    pub certificate: Option<&'a Leaf>,
}

impl Knock<'_> {
    /// Connects and sends one request. With TLS 1.3 a server refuses a client certificate only
    /// after its own part of the handshake, so a refusal may come as late as the first read.
    pub async fn request(&self, request: Request<Empty<Bytes>>) -> Result<Response<Bytes>> {
        http1::send_over(self.connect().await?, request).await
    }

    /// The same as somebody who does not care whose certificate the other side shows.
    pub async fn request_unchecked(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Bytes>> {
        let mut config = self.config()?;
        let anybody = Anybody(Arc::new(ring::default_provider()));
        config.dangerous().set_certificate_verifier(Arc::new(anybody));
        http1::send_over(self.connect_with(config).await?, request).await
    }

    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        self.connect_with(self.config()?).await
    }

    async fn connect_with(&self, config: ClientConfig) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.with_context(|| format!("connecting to {}", self.address))?;
        let name = ServerName::try_from(self.name.to_owned()).context("a name to ask for")?;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.context("shaking hands")
    }

    fn config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(certificate.context("reading a CA")?).context("trusting a CA")?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_root_certificates(roots);
        let Some(leaf) = self.certificate else { return Ok(builder.with_no_client_auth()) };
        let chain = CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("reading a certificate")?;
        let key =
            PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).context("reading a key")?;
        builder.with_client_auth_cert(chain, key).context("showing a certificate")
    }
}

/// A server that asks for no certificate.
///
/// # Errors
/// When the certificate has no meaning.
pub fn acceptor(leaf: &Leaf) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("reading a certificate")?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).context("reading a key")?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("using a certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes any server for the one that was asked for.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

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
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The TLS alert that ended a connection, if one did: `CertificateRequired`, for example.
pub fn alert(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(rustls::Error::AlertReceived(alert)) = cause.downcast_ref() {
            return Some(format!("{alert:?}"));
        }
        // rustls wraps itself in an I/O error, which does not show it as its source.
        let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
        match inner.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
            _ => None,
        }
    })
}
