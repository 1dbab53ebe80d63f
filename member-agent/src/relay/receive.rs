//! The two ways in: OTLP over gRPC, and protobuf over HTTP. Bounded messages, an answer at once.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;

use super::Relay;

/// Most bytes of one request, unpacked. Gateways send far less at a time.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Gateways keep one connection each; whoever opens more waits.
const STREAMS_MAX: usize = 64;

struct Receiver(Arc<Relay>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.take(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

pub(super) async fn serve_grpc(listen: SocketAddr, relay: Arc<Relay>) -> std::io::Result<()> {
    let service = TraceServiceServer::new(Receiver(relay))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let incoming = TcpListenerStream::new(TcpListener::bind(listen).await?);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(STREAMS_MAX)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await
        .map_err(std::io::Error::other)
}

pub(super) async fn serve_http(listen: SocketAddr, relay: Arc<Relay>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/traces", post(traces))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(relay);
    axum::serve(TcpListener::bind(listen).await?, router).await
}

const PROTOBUF: &str = "application/x-protobuf";

async fn traces(
    State(relay): State<Arc<Relay>>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let is = |name: header::HeaderName, value: &str| {
        headers.get(name).and_then(|it| it.to_str().ok()).is_some_and(|it| it.starts_with(value))
    };
    if !is(header::CONTENT_TYPE, PROTOBUF) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "protobuf only\n").into_response();
    }
    let body = match is(header::CONTENT_ENCODING, "gzip") {
        true => unpack(&body),
        false => Some(body),
    };
    match body.and_then(|body| ExportTraceServiceRequest::decode(body).ok()) {
        None => {
            relay.metrics.unreadable();
            StatusCode::BAD_REQUEST.into_response()
        }
        Some(request) => {
            relay.take(request);
            let answer = ExportTraceServiceResponse::default().encode_to_vec();
            ([(header::CONTENT_TYPE, PROTOBUF)], answer).into_response()
        }
    }
}

/// None when it is no gzip, or unpacks to more than a request may have.
fn unpack(packed: &[u8]) -> Option<Bytes> {
    let limit = u64::try_from(REQUEST_BYTES_MAX).ok()? + 1;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).take(limit).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= REQUEST_BYTES_MAX).then(|| bytes.into())
}

#[cfg(test)]
#[path = "receive_test.rs"]
mod tests;
