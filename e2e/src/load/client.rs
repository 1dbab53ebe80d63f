//! Sending one request to one entry, over a kept or a fresh connection.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Connections, Entry, Load, account::Outcome};
use crate::echo::Answer;

type Sender = SendRequest<Empty<Bytes>>;

/// One entry with its idle connections.
pub(super) struct Target {
    entry: Entry,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    connections: Connections,
    timeout: std::time::Duration,
    idle: Mutex<Vec<Sender>>,
}

impl Target {
    pub(super) fn new(entry: Entry, load: &Load) -> Self {
        Self {
            entry,
            host: load.host.clone(),
            path: load.path.clone(),
            headers: load.headers.clone(),
            connections: load.connections,
            timeout: load.timeout,
            idle: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.entry.name
    }

    pub(super) async fn send(&self) -> Outcome {
        match tokio::time::timeout(self.timeout, self.exchange()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(kind)) => Outcome::failed(kind),
            Err(_) => Outcome::failed("timeout"),
        }
    }

    async fn exchange(&self) -> Result<Outcome, &'static str> {
        let mut sender = match self.take_idle().await {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let request = self.request().map_err(|_| "bad request")?;
        let response = sender.send_request(request).await.map_err(|_| "reset")?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|_| "reset")?.to_bytes();
        if self.connections == Connections::Kept && !sender.is_closed() {
            self.idle().push(sender);
        }
        Ok(understand(status, &body))
    }

    /// An idle connection that the other side has not closed.
    async fn take_idle(&self) -> Option<Sender> {
        loop {
            let mut sender = self.idle().pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<Sender, &'static str> {
        let stream = TcpStream::connect(self.entry.address).await.map_err(|error| {
            use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
            match error.kind() {
                ConnectionRefused => "refused",
                HostUnreachable | NetworkUnreachable => "unreachable",
                _ => "connect",
            }
        })?;
        let _ = stream.set_nodelay(true);
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|_| "connect")?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self) -> http::Result<Request<Empty<Bytes>>> {
        let mut request = Request::get(&self.path).header("host", &self.host);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if self.connections == Connections::Fresh {
            request = request.header("connection", "close");
        }
        request.body(Empty::new())
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads who answered; an answer that is not an echo's has no target.
fn understand(status: StatusCode, body: &[u8]) -> Outcome {
    let echo: Option<Answer> = serde_json::from_slice(body).ok();
    let gateways = echo.as_ref().map_or(0, |answer| answer.gateways);
    let identity = echo.map(|answer| answer.identity);
    let (target, version) = identity.map(|who| (who.cluster, who.version)).unwrap_or_default();
    Outcome { status: status.as_u16(), error: "", target, version, gateways }
}
