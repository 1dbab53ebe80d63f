//! The OTLP relay: gateways of this cluster send their spans here, and they go on to the user's
//! backend with what only Fairlead knows.
//!
//! Answers gateways at once and never waits for the backend. Decides nothing: what a span means is
//! read by `fairlead-agent-core::attribution`, the queue and the way to the backend are those of
//! `fairlead-telemetry`. Without a backend spans are read for traffic figures and dropped.
//!
//! ```text
//!  gateway ──gRPC 4317──┐
//!          ──HTTP 4318──┴▶ receive ─▶ enrich (atlas, place) ─▶ queue ─▶ backend
//!                                       └▶ traffic figures
//! ```

pub mod enrich;
mod receive;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_agent_core::attribution::Atlas;
use fairlead_agent_core::traffic::Sums;
use fairlead_model::session::OverlayReport;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::traffic::TrafficReport;
use fairlead_model::{ClusterUid, MemberId};
use fairlead_telemetry::queue::{Part, Queue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::sync::watch;

use self::enrich::{Place, Strip};
use crate::apply::Held;
use crate::metrics::RelayMetrics;

/// What the relay knows at present.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the plan says.
    pub atlas: Atlas,
    /// Where we are.
    pub place: Place,
}

/// The relay.
pub struct Relay {
    known: ArcSwap<Known>,
    strip: Strip,
    /// None without a backend.
    queue: Option<Arc<Queue>>,
    metrics: RelayMetrics,
    sums: Mutex<Sums>,
}

/// How often traffic figures go to the hub.
const TELL_EVERY: Duration = Duration::from_secs(5);

impl Relay {
    /// A relay that knows nothing of a plan yet.
    pub fn new(
        member: &MemberId,
        uid: &ClusterUid,
        strip: Strip,
        queue: Option<Arc<Queue>>,
        metrics: RelayMetrics,
    ) -> Self {
        let place = Place { member: member.clone(), uid: uid.to_string(), region: None };
        let known = Known { atlas: Atlas::default(), place };
        let known = ArcSwap::from_pointee(known);
        Self { known, strip, queue, metrics, sums: Mutex::default() }
    }

    /// Takes a request in.
    pub fn take(&self, mut request: ExportTraceServiceRequest) {
        let known = self.known.load();
        let enriched = {
            let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            enrich::enrich(&mut request, &known, &self.strip, &mut sums)
        };
        self.metrics.took(&enriched);
        let Some(queue) = &self.queue else { return };
        if enriched.spans > 0 {
            queue.push(Part { bytes: request.encode_to_vec().into(), spans: enriched.spans });
        }
    }

    /// Serves both ways in, for ever.
    ///
    /// # Errors
    /// When an address cannot be used.
    pub async fn serve(self: Arc<Self>, grpc: SocketAddr, http: SocketAddr) -> std::io::Result<()> {
        tokio::try_join!(receive::serve_grpc(grpc, self.clone()), receive::serve_http(http, self))?;
        Ok(())
    }

    /// Gives traffic figures every few seconds, for ever. `sampled` is the share of requests that the
    /// gateways trace, in percent.
    pub async fn tell_traffic(
        self: Arc<Self>,
        sampled_percent: f64,
        tell: watch::Sender<Option<TrafficReport>>,
    ) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100, as the flag says"
        )]
        let sampled = (sampled_percent * 100.0).round() as u32;
        loop {
            let start = tokio::time::Instant::now();
            tokio::time::sleep(TELL_EVERY).await;
            let span_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let report = {
                let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
                sums.take(span_ms, sampled)
            };
            let silent = tell.borrow().as_ref().is_none_or(|last| last.flows.is_empty());
            if !(silent && report.flows.is_empty()) {
                tell.send_replace(Some(report));
            }
        }
    }

    /// Keeps what the relay knows in step with the plan, the overlay and the place.
    pub async fn keep_known(
        self: Arc<Self>,
        mut held: watch::Receiver<Option<Arc<Held>>>,
        mut overlay: watch::Receiver<Option<OverlayReport>>,
        mut snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    ) {
        loop {
            let bundle = held.borrow_and_update().clone();
            let out = overlay.borrow_and_update().clone().unwrap_or_default().out;
            let region =
                snapshot.borrow_and_update().as_ref().and_then(|s| s.cluster.region.clone());
            let place = Place { region, ..self.known.load().place.clone() };
            let atlas = match bundle {
                Some(held) => {
                    let out: BTreeSet<MemberId> = out.into_keys().collect();
                    Atlas::of(&place.member, &held.bundle, &out)
                }
                None => Atlas::default(),
            };
            self.known.store(Arc::new(Known { atlas, place }));
            tokio::select! {
                Ok(()) = held.changed() => {}
                Ok(()) = overlay.changed() => {}
                Ok(()) = snapshot.changed() => {}
                else => return std::future::pending().await,
            }
        }
    }
}
