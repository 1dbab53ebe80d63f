//! One HTTP/1.1 request over a connection of its own, for probes and single looks.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Body, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Sends `GET path` and tells the status.
pub async fn get_status(address: SocketAddr, path: &str) -> Result<StatusCode> {
    let request = Request::get(path).header("host", address.to_string()).body(Empty::new())?;
    Ok(send(address, request).await?.status())
}

/// Sends one request and reads the whole answer.
pub async fn send(address: SocketAddr, request: Request<Empty<Bytes>>) -> Result<Response<Bytes>> {
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    send_over(stream, request).await
}

/// Posts a body and reads the whole answer.
pub async fn post(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    exchange(stream, request).await
}

/// Sends a request over a stream that is there already, TLS for example.
pub async fn send_over<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    exchange(stream, request).await
}

async fn exchange<S, B>(stream: S, request: Request<B>) -> Result<Response<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("starting HTTP")?;
    let connection = tokio::spawn(connection);
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        // What broke is often known to the connection alone: a TLS alert before the request.
        Err(error) => {
            drop(sender);
            return match connection.await {
                Ok(Err(cause)) => Err(cause).context("the connection broke"),
                _ => Err(error).context("sending a request"),
            };
        }
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.context("reading an answer")?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(parts, body))
}
