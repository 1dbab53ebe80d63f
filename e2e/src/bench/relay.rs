//! What the OTLP relay costs: CPU per span, memory at 10,000 spans a second, and how long it takes to
//! answer, also while the backend is away. Jaeger's collector does the same beside it. And what requests
//! through a real gateway take: without tracing, with it, and while the agent takes nothing at all.
//!
//! Spans are as Envoy makes them, two for a request, and name routes of the plan. CPU is the process's
//! own, so the figures per core hold on a busy machine. Run it with `--release` for figures of a release.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::KeyValue,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind},
};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Channel};

use super::resource::{Usage, usage};
use crate::{
    fleet::{
        Fleet, entry,
        program::build_programs,
        shop,
        tracing::{join_traced, untrace_gateways},
    },
    jaeger::Jaeger,
    load::{Load, Report},
    otlp::text,
    report::{Row, milliseconds},
    tool,
    wait::{self, Look},
    world::World,
};

const MEMBER: &str = "east";
const AGENT: &str = "fairlead-agent";
const SPANS_PER_REQUEST: u32 = 100;
const RATE: u32 = 10_000;
const LASTING: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(60);
const REQUEST_RATE: u32 = 200;
const OTLP_PORT: u16 = 4317;

pub(super) async fn run(world: &World) -> Result<Vec<Row>> {
    tokio::task::spawn_blocking(build_programs).await??;
    let program = tokio::task::spawn_blocking(tool::ensure_jaeger).await??;
    let sink = Sink::start(world).await?;
    let fleet = Fleet::new(world)?;
    fleet.init().await?;
    join_traced(&fleet, MEMBER, &format!("--otlp-endpoint {}", sink.endpoint), 100).await?;
    fleet.open_shop(MEMBER).await?;
    fleet.wait_live(shop::CART).await?;
    fleet.wait_settled().await?;

    let agent = world.kubelet(MEMBER)?.pid(AGENT).context("there is no agent")?;
    let address = world.member(MEMBER)?.local()?.pods.address;
    let relay = format!("http://{address}:{OTLP_PORT}");
    let mut rows = measure("relay", &relay, agent, &sink).await?;
    rows.extend(requests(&fleet, agent, &sink).await.context("sending requests")?);

    let collector = Jaeger::start_collector(world, program, &sink.endpoint).await?;
    let pid = collector.pid().context("the collector does not run")?;
    rows.extend(measure("collector", &collector.endpoint(), pid, &sink).await?);
    collector.kill().await;

    sink.stop().await;
    let mut client = TraceServiceClient::connect(relay).await.context("no way in")?;
    let (_, waits) = send(&mut client, LASTING).await?;
    let name = "relay answers a gateway within, backend away";
    rows.push(Row::new(name, "ms", &waits));
    rows.push(Row::new("relay memory, backend away", "MiB", &[usage(agent)?.rss_mib]));
    Ok(rows)
}

/// What requests through the gateway take, all of them traced, with the agent and without any answer of
/// it; then without tracing.
async fn requests(fleet: &Fleet<'_>, agent: u32, sink: &Sink) -> Result<Vec<Row>> {
    let agent = Pid::from_raw(agent.try_into().context("no process has such a number")?);
    let got = sink.spans.load(Ordering::Relaxed);
    let mut rows = vec![request_row(fleet, "traced").await?];
    sink.wait_quiet().await?;
    ensure!(sink.spans.load(Ordering::Relaxed) > got, "the gateway sends no spans");
    signal::kill(agent, Signal::SIGSTOP)?;
    let stopped = request_row(fleet, "traced, agent stopped").await;
    signal::kill(agent, Signal::SIGCONT)?;
    rows.push(stopped?);
    fleet.wait_settled().await?;
    // What was gathered meanwhile must not count for what follows.
    sink.wait_quiet().await?;
    untrace_gateways(fleet.world(), MEMBER).await?;
    wait::until("the gateway to send no spans", SETTLE, || async {
        let before = sink.spans.load(Ordering::Relaxed);
        load(fleet, Duration::from_secs(1)).await?;
        sink.wait_quiet().await?;
        let came = sink.spans.load(Ordering::Relaxed) - before;
        // The agent's own come now and then.
        Ok(match came < u64::from(REQUEST_RATE) {
            true => Look::Done(()),
            false => Look::Not(format!("{came} came")),
        })
    })
    .await?;
    rows.push(request_row(fleet, "not traced").await?);
    Ok(rows)
}

async fn request_row(fleet: &Fleet<'_>, how: &str) -> Result<Row> {
    let report = load(fleet, LASTING).await?;
    ensure!(report.failed() == 0, "{} requests failed while {how}", report.failed());
    let times: Vec<f64> = report.samples().iter().map(|it| milliseconds(it.took)).collect();
    Ok(Row::new(&format!("a request through the gateway, {how}"), "ms", &times))
}

async fn load(fleet: &Fleet<'_>, time: Duration) -> Result<Report> {
    let address = entry(fleet.world().member(MEMBER)?).await?;
    let load = Load::new(shop::HOST, shop::CART).entry(MEMBER, address);
    Ok(load.rate(f64::from(REQUEST_RATE)).lasting(time).run().await)
}

/// Sends at the rate for a while, and sees what it cost.
async fn measure(name: &str, to: &str, pid: u32, sink: &Sink) -> Result<Vec<Row>> {
    let mut client = TraceServiceClient::connect(to.to_owned()).await.context("no way in")?;
    // Buffers and pools are filled before anything counts.
    send(&mut client, Duration::from_secs(3)).await?;
    sink.wait_quiet().await?;
    let (before, got) = (usage(pid)?, sink.spans.load(Ordering::Relaxed));
    let start = Instant::now();
    let (sent, waits, memory) = tokio::try_join!(
        async {
            let (sent, waits) = send(&mut client, LASTING).await?;
            anyhow::Ok((sent, waits))
        },
        watch_memory(pid, LASTING),
    )
    .map(|((sent, waits), memory)| (sent, waits, memory))?;
    let took = start.elapsed();
    sink.wait_quiet().await?;
    let after: Usage = usage(pid)?;
    let delivered = sink.spans.load(Ordering::Relaxed) - got;
    ensure!(delivered == sent, "{name} delivered {delivered} of {sent} spans");
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let spans = sent as f64;
    Ok(vec![
        Row::new(&format!("{name} spans per second of one core"), "1/s", &[spans / cpu]),
        Row::new(&format!("{name} sent"), "1/s", &[spans / took.as_secs_f64()]),
        Row::new(&format!("{name} cpu"), "%", &[100.0 * cpu / took.as_secs_f64()]),
        Row::new(&format!("{name} memory"), "MiB", &memory),
        Row::new(&format!("{name} answers a gateway within"), "ms", &waits),
    ])
}

async fn send(client: &mut TraceServiceClient<Channel>, time: Duration) -> Result<(u64, Vec<f64>)> {
    let request = envoy_spans();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / (RATE / SPANS_PER_REQUEST));
    let end = Instant::now() + time;
    let (mut sent, mut waits) = (0, Vec::new());
    while Instant::now() < end {
        ticks.tick().await;
        let request = request.clone();
        let start = Instant::now();
        client.export(request).await.context("the relay refused spans")?;
        waits.push(milliseconds(start.elapsed()));
        sent += u64::from(SPANS_PER_REQUEST);
    }
    Ok((sent, waits))
}

async fn watch_memory(pid: u32, time: Duration) -> Result<Vec<f64>> {
    let end = Instant::now() + time;
    let mut seen = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        seen.push(usage(pid)?.rss_mib);
    }
    Ok(seen)
}

/// Requests as Envoy tells them: a span for the client's side, one for the backend's.
fn envoy_spans() -> ExportTraceServiceRequest {
    let span = |kind: SpanKind, name: &str, more: &[KeyValue]| {
        let mut attributes = vec![
            text("node_id", "east-node"),
            text("guid:x-request-id", "3f1b2c4d-1111-2222-3333-444455556666"),
            text("http.url", "http://shop.example.com/cart/items/17"),
            text("http.method", "GET"),
            text("http.protocol", "HTTP/1.1"),
            text("http.status_code", "200"),
            text("user_agent", "Mozilla/5.0 (X11; Linux x86_64)"),
            text("request_size", "0"),
            text("response_size", "1042"),
            text("response_flags", "-"),
            text("component", "proxy"),
        ];
        attributes.extend_from_slice(more);
        Span {
            trace_id: rand::random::<u128>().to_be_bytes().to_vec(),
            span_id: rand::random::<u64>().to_be_bytes().to_vec(),
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: 1,
            end_time_unix_nano: 5_000_000,
            attributes,
            ..Span::default()
        }
    };
    let upstream = [
        text("upstream_cluster", "httproute/shop/cart-global/rule/0"),
        text("upstream_cluster.name", "httproute/shop/cart-global/rule/0/backend/0"),
        text("upstream_address", "10.0.0.1:8080"),
    ];
    let pair = || {
        [span(SpanKind::Server, "ingress", &[]), span(SpanKind::Client, "router egress", &upstream)]
    };
    let spans =
        std::iter::repeat_with(pair).take(SPANS_PER_REQUEST as usize / 2).flatten().collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", "gateway"),
                    text("telemetry.sdk.name", "envoy"),
                ],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

/// A backend that counts.
struct Sink {
    endpoint: String,
    spans: Arc<AtomicU64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Counter(Arc<AtomicU64>);

#[tonic::async_trait]
impl TraceService for Counter {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.get_ref().resource_spans.iter();
        let spans = resources.flat_map(|it| &it.scope_spans).map(|it| it.spans.len() as u64);
        self.0.fetch_add(spans.sum(), Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Sink {
    async fn start(world: &World) -> Result<Self> {
        let listener = TcpListener::bind((world.host_address()?, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Arc::new(AtomicU64::new(0));
        let service =
            TraceServiceServer::new(Counter(spans.clone())).max_decoding_message_size(64 << 20);
        let stop = CancellationToken::new();
        let serving =
            tonic::transport::Server::builder().add_service(service).serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        let task = tokio::spawn(async move {
            // It ends when it is told to; a listener that broke shows in what is delivered.
            let _ = serving.await;
        });
        Ok(Self { endpoint, spans, stop, task })
    }

    /// Closes all connections, and the port.
    async fn stop(self) {
        self.stop.cancel();
        // It ended badly: then it is gone all the same.
        let _ = self.task.await;
    }

    /// Waits until nothing has come for a while. The agent's own spans come rarely.
    async fn wait_quiet(&self) -> Result<()> {
        let mut last = (self.spans.load(Ordering::Relaxed), Instant::now());
        wait::until("all spans to arrive", SETTLE, || {
            let now = self.spans.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            let quiet = last.1.elapsed();
            async move {
                Ok(match quiet > Duration::from_secs(2) {
                    true => Look::Done(()),
                    false => Look::Not("spans still come".to_owned()),
                })
            }
        })
        .await
    }
}
