//! The echo backend: says who it is and what it received, over HTTP/1.1, h2c, gRPC and upgrades.
//!
//! One port speaks all of them. It refuses nothing unless it is asked to (see `wish`); a body larger
//! than a MiB is cut, not an error. `gateways` counts the gateways on the way: each appends one entry to
//! `x-forwarded-for`, so 1 is "from the entry itself" and 2 is "crossed once".

mod stream;
mod wish;

use std::{
    collections::BTreeMap, convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};

pub(crate) use self::stream::UPGRADE_CLUSTER;
use self::wish::{Tally, Wish};
use crate::{otlp::Span, pki::Leaf, tls};

/// Who an echo backend says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster: String,
    pub service: String,
    pub version: String,
}

/// What it answers, as JSON; a gRPC answer carries the same text in field 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    #[serde(flatten)]
    pub identity: Identity,
    /// The replica's address, as the connection saw it.
    pub replica: String,
    pub protocol: String,
    pub method: String,
    /// Path and query.
    pub path: String,
    pub host: String,
    pub headers: BTreeMap<String, Vec<String>>,
    pub gateways: usize,
    pub body_bytes: usize,
    /// Requests with the same key so far, this one included; 0 when it named none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Texts of the files that it was told to show.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// Who an echo is, files whose text it adds to its answers, and where it sends spans of traced requests.
#[derive(Clone, Debug)]
pub struct Echo {
    pub identity: Identity,
    pub files: Vec<PathBuf>,
    pub spans_to: Option<SocketAddr>,
    /// It speaks TLS with this certificate: key and chain, PEM.
    pub tls: Option<Leaf>,
    /// Where it answers datagrams. The very addresses: an answer must come from where it was asked.
    pub udp: Vec<SocketAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A backend of this version answers 500 to everything.
pub const BROKEN: &str = "broken";
const BODY_MAX: usize = 1 << 20;
const DATAGRAM_MAX: usize = 4096;
type Body = BoxBody<Bytes, Infallible>;

/// Serves until the process ends.
pub async fn serve(listen: SocketAddr, echo: Echo) -> Result<Infallible> {
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let tally = Arc::new(Tally::default());
    let acceptor = echo.tls.as_ref().map(tls::acceptor).transpose()?;
    for address in &echo.udp {
        let socket = UdpSocket::bind(address).await;
        let socket = socket.with_context(|| format!("listening on {address} for datagrams"))?;
        tokio::spawn(serve_datagrams(socket, echo.identity.clone()));
    }
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (echo, tally, acceptor) = (echo.clone(), tally.clone(), acceptor.clone());
                tokio::spawn(async move {
                    // Small answers must not wait for acknowledgements of earlier ones.
                    let _ = stream.set_nodelay(true);
                    let replica = stream.local_addr().map(|a| a.to_string()).unwrap_or_default();
                    let Some(acceptor) = acceptor else {
                        return serve_connection(stream, replica, echo, tally).await;
                    };
                    // Whoever does not speak TLS is none of our business.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve_connection(stream, replica, echo, tally).await;
                    }
                });
            }
            // Out of file handles, for example: connections that end make room.
            Err(error) => {
                eprintln!("accepting a connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

/// Answers each datagram with who it is, and the text that came.
async fn serve_datagrams(socket: UdpSocket, identity: Identity) {
    let mut bytes = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let answer = DatagramAnswer { identity: identity.clone(), text };
        let json = serde_json::to_vec(&answer).unwrap_or_default();
        if let Err(error) = socket.send_to(&json, from).await {
            eprintln!("answering a datagram: {error}");
        }
    }
}

/// What it answers to a datagram, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramAnswer {
    #[serde(flatten)]
    pub identity: Identity,
    /// What was sent.
    pub text: String,
}

async fn serve_connection<S>(stream: S, replica: String, echo: Echo, tally: Arc<Tally>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let (echo, replica, tally) = (echo.clone(), replica.clone(), tally.clone());
        async move { Ok::<_, Infallible>(answer(echo, replica, &tally, request).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    // Clients that vanish are none of our business.
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn answer(
    echo: Echo,
    replica: String,
    tally: &Tally,
    request: Request<Incoming>,
) -> Response<Body> {
    if stream::is_upgrade(&request) {
        return stream::upgrade(&echo.identity, request);
    }
    if stream::is_grpc_stream(&request) {
        return stream::grpc_stream(&echo.identity, request);
    }
    let start = SystemTime::now();
    let wish = Wish::of(request.uri().query().unwrap_or_default());
    let attempt = wish.key.as_ref().map_or(0, |key| tally.count(key));
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body_bytes = body.map_or(0, |body| body.to_bytes().len());
    let uri_host = parts.uri.host().map(str::to_owned);
    let host = parts.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let name = echo.identity.service.clone();
    let broken = echo.identity.version == BROKEN;
    let answer = Answer {
        identity: echo.identity,
        replica,
        protocol: format!("{:?}", parts.version),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        host: uri_host.or(host).unwrap_or_default(),
        gateways: gateways(&parts.headers),
        headers: plain(&parts.headers),
        body_bytes,
        attempt,
        files: read(&echo.files),
    };
    tokio::time::sleep(wish.delay).await;
    if let Some(to) = echo.spans_to
        && let Some(span) = Span::of_server(&name, &parts.method, &parts.headers, start)
    {
        tokio::spawn(async move {
            if let Err(error) = span.send(to).await {
                eprintln!("sending a span: {error:#}");
            }
        });
    }
    let json = serde_json::to_vec(&answer).unwrap_or_default();
    let kind = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return grpc(&json);
    }
    let mut response = Response::new(Full::new(Bytes::from(json)).boxed());
    *response.status_mut() = match broken {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => wish.status(attempt),
    };
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn read(files: &[PathBuf]) -> BTreeMap<String, String> {
    let text = |file: &PathBuf| match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    };
    files.iter().map(|file| (file.display().to_string(), text(file))).collect()
}

fn gateways(headers: &HeaderMap) -> usize {
    let values = headers.get_all("x-forwarded-for").iter();
    values.filter_map(|value| value.to_str().ok()).map(|value| value.split(',').count()).sum()
}

fn plain(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut plain: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        plain.entry(name.to_string()).or_default().push(value);
    }
    plain
}

/// One message and the trailer that says OK.
fn grpc(text: &[u8]) -> Response<Body> {
    let frames = [Ok(Frame::data(grpc_message(text))), Ok(Frame::trailers(grpc_ok()))];
    grpc_response(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))))
}

/// One length-prefixed message `{1: text}`.
pub(crate) fn grpc_message(text: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0x0a);
    put_varint(&mut message, text.len());
    message.put_slice(text);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message);
    frame.freeze()
}

fn grpc_ok() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )])
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn put_varint(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.put_u8(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    buffer.put_u8(u8::try_from(value).unwrap_or_default());
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use http_body_util::Empty;
    use tokio::net::TcpStream;

    use super::*;

    async fn mk_echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity =
            Identity { cluster: "east".into(), service: "cart".into(), version: "v1".into() };
        let echo = Echo { identity, files: Vec::new(), spans_to: None, tls: None, udp: Vec::new() };
        let tally = Arc::new(Tally::default());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let replica = address.to_string();
                tokio::spawn(serve_connection(stream, replica, echo.clone(), tally.clone()));
            }
        });
        address
    }

    #[tokio::test]
    async fn says_who_it_is_and_what_it_received() {
        let request = Request::get("/a?b=c")
            .header("host", "shop.example.com")
            .header("x-forwarded-for", "10.0.0.1, 10.0.0.2")
            .body(Empty::new())
            .unwrap();
        let response = crate::http1::send(mk_echo().await, request).await.unwrap();
        let answer: Answer = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(answer.identity.cluster, "east");
        assert_eq!((answer.path.as_str(), answer.host.as_str()), ("/a?b=c", "shop.example.com"));
        assert_eq!(answer.gateways, 2);
    }

    #[tokio::test]
    async fn fails_as_often_as_it_was_asked_to() {
        let echo = mk_echo().await;
        for wanted in [503, 503, 200] {
            let request = Request::get("/x?fail=2&key=a")
                .header("host", "shop.example.com")
                .body(Empty::new())
                .unwrap();
            let status = crate::http1::send(echo, request).await.unwrap().status();
            assert_eq!(status.as_u16(), wanted);
        }
    }

    #[tokio::test]
    async fn answers_grpc_on_the_same_port() {
        let stream = TcpStream::connect(mk_echo().await).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://shop/echo.Echo/Say")
            .header("content-type", "application/grpc")
            .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])))
            .unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let bytes = body.to_bytes();
        let json = &bytes[bytes.iter().position(|b| *b == b'{').unwrap()..];
        let answer: Answer = serde_json::from_slice(json).unwrap();
        assert_eq!((answer.protocol.as_str(), answer.body_bytes), ("HTTP/2.0", 5));
    }
}
