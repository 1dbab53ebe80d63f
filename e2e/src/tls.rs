//! TLS from the harness: as a peer with a certificate, or as a stranger without one.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
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

    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.with_context(|| format!("connecting to {}", self.address))?;
        let name = ServerName::try_from(self.name.to_owned()).context("a name to ask for")?;
        let connector = TlsConnector::from(Arc::new(self.config()?));
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
