//! A connection to a door: one HTTP/1.1 request at a time over mTLS.
//!
//! Used by the probes of peers' doors and by the knock at our own. Says how a request ended and
//! nothing about what that means. Redirects are never followed, bodies are bounded.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use fairlead_agent_core::readiness::ASK_WAIT_MS;
use fairlead_crds::keys;
use fairlead_model::snapshot::Address;
use http::header;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A probe's answer is a redirect, counts of a thousand services are some ten thousand bytes; what is
/// larger than this is not read.
const BODY_MAX: usize = 256 << 10;

/// RFC 7240: how long an answer may be waited for.
pub const PREFER: &str = "prefer";

/// Why a door did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The name cannot be a server's.
    #[error("{name:?} is no server name")]
    Name {
        /// What was given.
        name: String,
    },
    /// No connection, or TLS failed.
    #[error("connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The request failed on a connection that stood.
    #[error("ask {host}")]
    Ask {
        /// Whom.
        host: String,
        /// Why.
        source: hyper::Error,
    },
}

impl DoorError {
    /// True when one of both sides does not believe the other's certificate.
    pub fn is_distrust(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let no = |error: &rustls::Error| {
            matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))
        };
        tls.is_some_and(no)
    }

    /// True when nobody said anything: not the door, not its host, not its network.
    pub fn is_silence(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        matches!(
            source.kind(),
            io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable
        )
    }
}

/// What is asked at a door.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The path.
    pub path: &'a str,
    /// The tag of the answer that is known: the door may wait a moment for another one, and answers
    /// 304 without one.
    pub seen: Option<&'a str>,
    /// What the door asks for; empty = nothing.
    pub capability: &'a str,
}

impl<'a> Question<'a> {
    /// A question that is answered at once.
    pub fn of(path: &'a str) -> Self {
        Self { path, seen: None, capability: "" }
    }
}

/// What a door answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body; empty when it is too long.
    pub body: Bytes,
    /// What tells this answer from others, for the next question.
    pub tag: Option<String>,
}

/// An open connection to a door.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

/// Opens TLS to one address of a door.
///
/// # Errors
/// [`DoorError`] when there is nobody or TLS fails.
pub async fn open_tls(
    config: &Arc<ClientConfig>,
    server_name: &str,
    address: &Address,
    port: u16,
) -> Result<TlsStream<TcpStream>, DoorError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| DoorError::Name { name: server_name.to_owned() })?;
    let failed = |source| DoorError::Connect { address: format!("{address}:{port}"), source };
    let stream = match address {
        Address::Ip(ip) => TcpStream::connect(SocketAddr::new(*ip, port)).await,
        Address::Name(name) => TcpStream::connect((name.as_str(), port)).await,
    };
    let stream = stream.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    TlsConnector::from(config.clone()).connect(name, stream).await.map_err(failed)
}

/// Opens a connection for requests.
///
/// # Errors
/// [`DoorError`] when there is nobody or TLS fails.
pub async fn open(
    config: &Arc<ClientConfig>,
    server_name: &str,
    address: &Address,
    port: u16,
) -> Result<Connection, DoorError> {
    let stream = open_tls(config, server_name, address, port).await?;
    let host = server_name.to_owned();
    let ask = |source| DoorError::Ask { host: host.clone(), source };
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ask)?;
    // It ends when the sender is dropped, or with the connection; what is wrong with it the sender says.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { sender, host })
}

impl Connection {
    /// Asks for a path; the status of the answer.
    ///
    /// # Errors
    /// [`DoorError::Ask`] when the connection broke.
    pub async fn get(&mut self, path: &str) -> Result<u16, DoorError> {
        self.read(Question::of(path)).await.map(|answer| answer.status)
    }

    /// Asks.
    ///
    /// # Errors
    /// [`DoorError::Ask`] when the connection broke.
    pub async fn read(&mut self, question: Question<'_>) -> Result<Answer, DoorError> {
        let failed = |source| DoorError::Ask { host: self.host.clone(), source };
        let mut request = http::Request::get(question.path)
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, "fairlead-agent");
        // It comes from the hub: what is no header's value is as none.
        let capability = http::HeaderValue::from_str(question.capability).ok();
        if let Some(value) = capability.filter(|value| !value.is_empty()) {
            request = request.header(keys::HEADER_BACKEND, value);
        }
        if let Some(seen) = question.seen {
            let wait = format!("wait={}", ASK_WAIT_MS / 1_000);
            request = request.header(header::IF_NONE_MATCH, seen).header(PREFER, wait);
        }
        let request = request.body(Empty::new()).expect("a path and a host of ours make a request");
        self.sender.ready().await.map_err(failed)?;
        let answer = self.sender.send_request(request).await.map_err(failed)?;
        let status = answer.status().as_u16();
        let tag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.map(str::to_owned);
        // The connection is free for the next request once the body was read.
        let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok(Answer { status, body, tag })
    }

    /// True when the other side closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The gateway itself answers the probe route, with a redirect; anything else is somebody else.
pub fn is_answer(status: u16) -> bool {
    (200..400).contains(&status)
}
