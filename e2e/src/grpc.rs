//! A small gRPC client for echoes: unary calls over connections that are kept, and what came of them.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::echo::grpc_message;

/// What a call carries.
pub type Body = BoxBody<Bytes, Infallible>;

/// What a call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The gRPC status; empty when there was none.
    pub status: String,
    /// The echo's JSON.
    pub answer: Value,
}

/// Opens a connection.
pub async fn connect(address: SocketAddr) -> Result<SendRequest<Body>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A call of `/package.Service/Method` at a host, with more headers.
pub fn request(
    host: &str,
    method: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Result<Request<Body>> {
    let mut request = Request::post(format!("http://{host}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.body(body)?)
}

/// Calls with one message and reads the answer.
pub async fn unary(
    sender: &mut SendRequest<Body>,
    host: &str,
    method: &str,
    headers: &[(&str, &str)],
) -> Result<Told> {
    let body = Full::new(grpc_message(b"hello")).boxed();
    read(sender.send_request(request(host, method, headers, body)?).await?).await
}

async fn read(response: Response<Incoming>) -> Result<Told> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    // A gateway that answers by itself has the status among its headers.
    let status = match text(&trailers, "grpc-status") {
        status if status.is_empty() => text(&parts.headers, "grpc-status"),
        status => status,
    };
    let bytes = body.to_bytes();
    let start = bytes.iter().position(|byte| *byte == b'{').unwrap_or(bytes.len());
    let answer = serde_json::from_slice(&bytes[start..]).unwrap_or_default();
    Ok(Told { status, answer })
}

/// A header's text; empty without it.
pub fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
