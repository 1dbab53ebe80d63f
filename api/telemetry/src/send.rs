//! One request to the backend, over gRPC or HTTP, with or without TLS.
//!
//! Both carry the same bytes. gRPC uses a codec that leaves them alone; nothing is encoded twice.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::settings::{Backend, Compression, Protocol, SettingsError};

/// A backend that takes longer for a batch is away.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is a few bytes; a longer one is not for us.
const ANSWER_BYTES_MAX: usize = 64 << 10;
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// How a try ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The backend took the batch but for some spans.
    Taken { rejected: u64, message: String },
    /// It will never take it.
    Refused(String),
    /// It may take it later.
    Later(String),
}

pub(crate) struct Sender {
    backend: Backend,
    link: Link,
}

enum Link {
    Grpc(Channel),
    Http { dialer: Dialer, open: Option<SendRequest<Full<Bytes>>> },
}

impl Sender {
    pub(crate) fn new(backend: &Backend) -> Result<Self, SettingsError> {
        let dialer = Dialer::new(backend)?;
        let link = match backend.protocol {
            Protocol::Http => Link::Http { dialer, open: None },
            Protocol::Grpc => Link::Grpc(channel(backend, dialer)),
        };
        Ok(Self { backend: backend.clone(), link })
    }

    pub(crate) async fn send(&mut self, bytes: Bytes) -> Answer {
        let backend = &self.backend;
        let sent = async {
            match &mut self.link {
                Link::Grpc(channel) => send_grpc(backend, channel.clone(), bytes).await,
                Link::Http { dialer, open } => send_http(backend, dialer, open, bytes).await,
            }
        };
        match tokio::time::timeout(SEND_TIMEOUT, sent).await {
            Ok(answer) => answer,
            Err(_) => {
                // What is half said on a connection cannot be taken back.
                if let Link::Http { open, .. } = &mut self.link {
                    *open = None;
                }
                Answer::Later(format!("no answer in {} s", SEND_TIMEOUT.as_secs()))
            }
        }
    }
}

// --- gRPC

fn channel(backend: &Backend, dialer: Dialer) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialer = dialer.clone();
        async move { dialer.dial().await.map(TokioIo::new) }
    });
    // The connection is made above, so tonic must see no https; the origin is what the backend sees.
    Endpoint::from_static("http://backend")
        .origin(backend.uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(connector)
}

async fn send_grpc(backend: &Backend, channel: Channel, bytes: Bytes) -> Answer {
    let mut client = tonic::client::Grpc::new(channel);
    if backend.compression == Compression::Gzip {
        client = client.send_compressed(CompressionEncoding::Gzip);
    }
    if let Err(error) = client.ready().await {
        return Answer::Later(root_cause(&error));
    }
    let headers = MetadataMap::from_headers(backend.headers.clone());
    let request = tonic::Request::from_parts(headers, tonic::Extensions::default(), bytes);
    let path = http::uri::PathAndQuery::from_static(EXPORT);
    match client.unary(request, path, Raw).await {
        Ok(answer) => taken(&answer.into_inner()),
        Err(status) => of_status(&status),
    }
}

/// Which statuses mean "again" is the specification's list.
fn of_status(status: &Status) -> Answer {
    let why = format!("{}: {}", status.code(), root_cause(status));
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Later(why),
        // Connections that break come as these two.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => {
            Answer::Later(why)
        }
        _ => Answer::Refused(why),
    }
}

fn taken(answer: &ExportTraceServiceResponse) -> Answer {
    let partial = answer.partial_success.clone().unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
    Answer::Taken { rejected, message: partial.error_message }
}

/// Bytes out, the answer in.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        // The batch was taken; an answer that cannot be read changes nothing about it.
        Ok(Some(ExportTraceServiceResponse::decode(bytes).unwrap_or_default()))
    }
}

// --- HTTP

async fn send_http(
    backend: &Backend,
    dialer: &Dialer,
    open: &mut Option<SendRequest<Full<Bytes>>>,
    bytes: Bytes,
) -> Answer {
    let request = match http_request(backend, bytes) {
        Ok(request) => request,
        Err(why) => return Answer::Refused(why),
    };
    let mut connection = match open.take().filter(|it| !it.is_closed()) {
        Some(connection) => connection,
        None => match connect_http(dialer).await {
            Ok(connection) => connection,
            Err(error) => return Answer::Later(error.to_string()),
        },
    };
    if let Err(error) = connection.ready().await {
        return Answer::Later(root_cause(&error));
    }
    let answer = match connection.send_request(request).await {
        Ok(answer) => answer,
        Err(error) => return Answer::Later(root_cause(&error)),
    };
    let status = answer.status();
    // Read to its end, or the connection could not be used again.
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    *open = Some(connection);
    of_http(status, &body)
}

fn of_http(status: StatusCode, body: &[u8]) -> Answer {
    let why = || format!("HTTP {status}");
    match status.as_u16() {
        200..=299 => taken(&ExportTraceServiceResponse::decode(body).unwrap_or_default()),
        429 | 502..=504 => Answer::Later(why()),
        _ => Answer::Refused(why()),
    }
}

fn http_request(backend: &Backend, bytes: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let uri = &backend.uri;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let mut headers: HeaderMap = backend.headers.clone();
    let plain = http::HeaderValue::from_static;
    headers.insert(header::CONTENT_TYPE, plain("application/x-protobuf"));
    headers.insert(header::HOST, authority.parse().map_err(|_| "no host".to_owned())?);
    let body = match backend.compression {
        Compression::None => bytes,
        Compression::Gzip => {
            headers.insert(header::CONTENT_ENCODING, plain("gzip"));
            gzip(&bytes).map_err(|error| error.to_string())?
        }
    };
    let mut request =
        Request::post(path).body(Full::new(body)).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn gzip(bytes: &[u8]) -> io::Result<Bytes> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}

async fn connect_http(dialer: &Dialer) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TokioIo::new(dialer.dial().await?);
    let (sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    // It ends with the sender; what broke it shows at the next request.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

// --- connections

/// Makes connections to one backend.
#[derive(Clone)]
struct Dialer {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    fn new(backend: &Backend) -> Result<Self, SettingsError> {
        let host = backend.host().to_owned();
        let tls = match backend.is_tls() {
            false => None,
            true => {
                let wrong = |_| SettingsError::Endpoint { text: backend.uri.to_string() };
                let name = ServerName::try_from(host.clone()).map_err(wrong)?;
                Some((TlsConnector::from(Arc::new(tls_config(backend)?)), name))
            }
        };
        Ok(Self { host, port: backend.port(), tls })
    }

    async fn dial(&self) -> io::Result<Stream> {
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await??;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Stream::Plain(stream),
            Some((connector, name)) => {
                Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?))
            }
        })
    }
}

fn tls_config(backend: &Backend) -> Result<rustls::ClientConfig, SettingsError> {
    let mut roots = rustls::RootCertStore::empty();
    let mut why = String::new();
    let certificates: Vec<CertificateDer<'static>> = match &backend.certificate {
        None => rustls_native_certs::load_native_certs().certs,
        Some(path) => {
            let read = CertificateDer::pem_file_iter(path)
                .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>());
            read.unwrap_or_else(|error| {
                why = error.to_string();
                Vec::new()
            })
        }
    };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        let path = backend.certificate.as_deref();
        let path = path.map_or_else(|| "the system".to_owned(), |path| path.display().to_string());
        return Err(SettingsError::Certificate { path, why });
    }
    let mut config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = match backend.protocol {
        Protocol::Grpc => vec![b"h2".to_vec()],
        Protocol::Http => vec![b"http/1.1".to_vec()],
    };
    Ok(config)
}

/// A connection with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// What an error says at its very end: the rest is layers.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_may_pass_are_tried_again() {
        let later = |code| matches!(of_status(&Status::new(code, "")), Answer::Later(_));
        assert!(later(Code::Unavailable) && later(Code::ResourceExhausted));
        assert!(!later(Code::InvalidArgument) && !later(Code::Unauthenticated));
        let later = |code| {
            matches!(of_http(StatusCode::from_u16(code).unwrap_or_default(), b""), Answer::Later(_))
        };
        assert!(later(503) && later(429) && !later(500) && !later(400) && !later(200));
    }

    #[test]
    fn spans_that_a_backend_leaves_out_are_known() {
        let answer = ExportTraceServiceResponse {
            partial_success: Some(
                opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess {
                    rejected_spans: 3,
                    error_message: "too old".to_owned(),
                },
            ),
        };
        let want = Answer::Taken { rejected: 3, message: "too old".to_owned() };
        assert_eq!(of_http(StatusCode::OK, &answer.encode_to_vec()), want);
    }
}
