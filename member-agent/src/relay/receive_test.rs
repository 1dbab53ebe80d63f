//! The two ways in, and the one way out: over real sockets.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use fairlead_model::{ClusterUid, MemberId};
use fairlead_telemetry::export::Exporter;
use fairlead_telemetry::queue::{Fate, Queue};
use fairlead_telemetry::settings::{BackendArgs, Compression, Protocol};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::sync::mpsc;

use super::*;
use crate::metrics::RelayMetrics;
use crate::relay::enrich::Strip;

/// Less than what the longest test sends.
const QUEUE_BYTES: usize = 256 << 10;

/// A backend that hands over what it gets, and says no while it is told to.
struct Backend {
    got: mpsc::UnboundedSender<ExportTraceServiceRequest>,
    away: Arc<std::sync::atomic::AtomicBool>,
}

#[tonic::async_trait]
impl TraceService for Backend {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(tonic::Status::unavailable("away"));
        }
        let _ = self.got.send(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn request(spans: usize) -> ExportTraceServiceRequest {
    let spans = vec![Span { name: "ingress".to_owned(), ..Span::default() }; spans];
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let spans = ResourceSpans { scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn spans(request: &ExportTraceServiceRequest) -> usize {
    request.resource_spans.iter().flat_map(|rs| &rs.scope_spans).map(|ss| ss.spans.len()).sum()
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A relay and its backend; where the relay listens, and what the backend gets.
struct Stage {
    grpc: SocketAddr,
    http: SocketAddr,
    queue: Arc<Queue>,
    got: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
    away: Arc<std::sync::atomic::AtomicBool>,
}

async fn stage(compression: Compression) -> Stage {
    let (got_tx, got) = mpsc::unbounded_channel();
    let away = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(Backend { got: got_tx, away: away.clone() })
        .accept_compressed(CompressionEncoding::Gzip);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let args = BackendArgs {
        otlp_endpoint: Some(endpoint),
        otlp_protocol: Protocol::Grpc,
        otlp_compression: compression,
        ..BackendArgs::default()
    };
    let queue = Arc::new(Queue::new(QUEUE_BYTES));
    let exporter = Exporter::new(queue.clone(), &args.backend().unwrap().unwrap()).unwrap();
    tokio::spawn(exporter.run());
    let member = MemberId::new("east").unwrap();
    let uid = ClusterUid::new("uid-east").unwrap();
    let metrics = RelayMetrics::default();
    let relay = Relay::new(&member, &uid, Strip::default(), Some(queue.clone()), metrics);
    let (grpc, http) = (free().await, free().await);
    tokio::spawn(Arc::new(relay).serve(grpc, http));
    for address in [grpc, http] {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    Stage { grpc, http, queue, got, away }
}

async fn next(stage: &mut Stage) -> ExportTraceServiceRequest {
    let got = tokio::time::timeout(Duration::from_secs(20), stage.got.recv()).await;
    got.expect("the backend gets spans").unwrap()
}

#[tokio::test]
async fn spans_come_in_by_grpc_and_reach_the_backend_packed() {
    let mut stage = stage(Compression::Gzip).await;
    let client = TraceServiceClient::connect(format!("http://{}", stage.grpc)).await.unwrap();
    client.send_compressed(CompressionEncoding::Gzip).export(request(3)).await.unwrap();
    let got = next(&mut stage).await;
    assert_eq!(spans(&got), 3);
    let resource = got.resource_spans[0].resource.as_ref().unwrap();
    assert!(resource.attributes.iter().any(|it| it.key == "k8s.cluster.name"));
}

async fn post(http: SocketAddr, headers: &[(&str, &str)], body: Vec<u8>) -> StatusCode {
    let stream = tokio::net::TcpStream::connect(http).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post("/v1/traces").header("host", "relay");
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let body = http_body_util::Full::new(Bytes::from(body));
    sender.send_request(request.body(body).unwrap()).await.unwrap().status()
}

#[tokio::test]
async fn spans_come_in_by_http_and_nonsense_is_refused() {
    let mut stage = stage(Compression::None).await;
    let kind = ("content-type", PROTOBUF);
    assert_eq!(post(stage.http, &[kind], request(2).encode_to_vec()).await, 200);
    assert_eq!(spans(&next(&mut stage).await), 2);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, &request(4).encode_to_vec()).unwrap();
    let packed = packer.finish().unwrap();
    assert_eq!(post(stage.http, &[kind, ("content-encoding", "gzip")], packed).await, 200);
    assert_eq!(spans(&next(&mut stage).await), 4);
    assert_eq!(post(stage.http, &[kind], vec![0xff; 9]).await, 400);
    assert_eq!(post(stage.http, &[("content-type", "application/json")], vec![]).await, 415);
    assert_eq!(post(stage.http, &[kind], vec![0; REQUEST_BYTES_MAX + 1]).await, 413);
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packer, &vec![0; REQUEST_BYTES_MAX + 1]).unwrap();
    assert!(unpack(&packer.finish().unwrap()).is_none());
    assert!(unpack(b"no gzip").is_none());
}

#[tokio::test]
async fn a_backend_that_is_away_gets_everything_later_but_what_did_not_fit() {
    let mut stage = stage(Compression::None).await;
    stage.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut client = TraceServiceClient::connect(format!("http://{}", stage.grpc)).await.unwrap();
    let mut sent = 0;
    for _ in 0..40 {
        client.export(request(2_000)).await.expect("the gateway is answered at once");
        sent += 2_000;
    }
    stage.away.store(false, std::sync::atomic::Ordering::SeqCst);
    let counts = stage.queue.counts();
    assert_eq!(counts.of(Fate::Taken), sent);
    let dropped = counts.of(Fate::DroppedFull);
    assert!(dropped > 0, "the queue is too small for all of it");
    let mut delivered = 0;
    while delivered < sent - dropped {
        delivered += spans(&next(&mut stage).await) as u64;
    }
    assert_eq!(delivered + stage.queue.counts().of(Fate::DroppedFull), sent);
}
