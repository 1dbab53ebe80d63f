//! A gRPC channel to the hub over our own TLS.
//!
//! tonic's TLS settings cannot pin a CA by hash, so the connection is made here and handed over. One
//! channel per attempt: whoever dials again dials anew, with the newest certificate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::tls::{self, Leaf, TlsError, Trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the hub is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    host: String,
    port: u16,
}

/// Why the hub is not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not an address of a hub.
    #[error("the hub's address {text:?} is not of the form https://host:port")]
    Address {
        /// What was given.
        text: String,
    },
    /// TLS material that has no meaning.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection failed.
    #[error("connect to the hub at {hub}: {}", root_cause(source))]
    Connect {
        /// Where.
        hub: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

impl DialError {
    /// True when whoever answered is not the hub whose hash was given.
    pub fn is_other_hub(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if root_cause(source).contains(tls::PIN_MISMATCH))
    }
}

impl std::fmt::Display for HubAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl HubAddress {
    /// Its host, without port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Reads `https://host:port`; the port defaults to 8443.
    ///
    /// # Errors
    /// [`DialError::Address`] when it is anything else.
    pub fn parse(text: &str) -> Result<Self, DialError> {
        let wrong = || DialError::Address { text: text.to_owned() };
        let uri: http::Uri = text.trim().trim_end_matches('/').parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(wrong)?;
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        let after_host = authority.rsplit(']').next().unwrap_or_default();
        // A port that is no number must not become the default one.
        if after_host.contains(':') && uri.port_u16().is_none() || authority.contains('@') {
            return Err(wrong());
        }
        let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        if !bare || host.is_empty() {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(8443) })
    }
}

/// Dials the hub.
///
/// # Errors
/// [`DialError`] when it is not reached or not trusted.
pub async fn dial(
    hub: &HubAddress,
    trust: &Trust,
    leaf: Option<&Leaf>,
) -> Result<Channel, DialError> {
    let config = Arc::new(tls::client_config(trust, leaf, &["h2"])?);
    let wrong = || DialError::Address { text: hub.host.clone() };
    let name = ServerName::try_from(hub.host.clone()).map_err(|_| wrong())?;
    let target = (hub.host.clone(), hub.port);
    let connector = tower::service_fn(move |_: http::Uri| {
        let (config, name, target) = (config.clone(), name.clone(), target.clone());
        async move {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The scheme says what tonic adds to the connection, and that is nothing.
    let endpoint = Endpoint::from_shared(format!("http://{hub}")).map_err(|_| wrong())?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|source| DialError::Connect { hub: hub.to_string(), source })
}

/// What a transport error says at its very end: the rest is layers.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_over_https() {
        let parse = |text: &str| HubAddress::parse(text).map(|hub| hub.to_string());
        assert_eq!(parse("https://hub.example.com:9443").unwrap(), "hub.example.com:9443");
        assert_eq!(parse("https://hub/").unwrap(), "hub:8443");
        assert_eq!(parse("https://[fd00::1]:1").unwrap(), "[fd00::1]:1");
        for bad in
            ["hub:8443", "http://hub:1", "https://", "https://hub/path", "", "https://h:99999"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
