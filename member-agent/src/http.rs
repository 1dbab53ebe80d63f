//! The agent's HTTP: health and metrics for its own cluster, ready counts for peers.
//!
//! Two listeners, because the second is reachable through the door: peers must see counts there and
//! nothing else. Read only; nothing here changes anything.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use fairlead_agent_core::diff::KindState;
use fairlead_agent_core::readiness::ASK_WAIT_MS;
use fairlead_crds::keys;
use fairlead_model::NsName;
use fairlead_model::session::ApplyReport;
use fairlead_model::snapshot::{Consent, EndpointCounts, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::crossing::Crossing;
use crate::disk::KeptKnock;
use crate::door::PREFER;
use crate::metrics::Metrics;
use crate::uplink::LinkState;

/// Questions that wait at a time; members of a fleet that ask us, and more.
const WAITING_MAX: usize = 2_048;

type SnapshotWatch = watch::Receiver<Option<Arc<Snapshot>>>;

/// Ready and expected endpoints of exported services, by `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Readiness {
    /// Counts.
    pub services: BTreeMap<String, ReadyCounts>,
}

/// Counts of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadyCounts {
    /// Ready endpoints.
    pub ready: u32,
    /// Endpoints that are not terminating.
    pub expected: u32,
}

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// Watches.
    pub cache: Arc<Cache>,
    /// The hub; none = there is none to connect to.
    pub link: Option<watch::Receiver<LinkState>>,
    /// Our certificates.
    pub crossing: watch::Receiver<Option<Arc<Crossing>>>,
    /// The knock.
    pub knock: watch::Receiver<KeptKnock>,
    /// What became of the plan.
    pub applied: watch::Receiver<Option<ApplyReport>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Serves /healthz, /readyz and /metrics.
///
/// # Errors
/// When the address cannot be used.
pub async fn serve_admin(listen: SocketAddr, admin: Admin) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    axum::serve(TcpListener::bind(listen).await?, router).await
}

/// Serves the counts of ready endpoints.
///
/// # Errors
/// When the address cannot be used.
pub async fn serve_readiness(
    listen: SocketAddr,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
) -> std::io::Result<()> {
    axum::serve(TcpListener::bind(listen).await?, readiness_router(snapshot)).await
}

/// The one route that peers reach.
pub(crate) fn readiness_router(snapshot: SnapshotWatch) -> Router {
    let state = (snapshot, Arc::new(Semaphore::new(WAITING_MAX)));
    Router::new().route(keys::PATH_READINESS, get(readiness)).with_state(state)
}

/// The counts; to somebody who knows them already and would wait, as soon as they are others.
async fn readiness(
    State((mut snapshot, waiting)): State<(SnapshotWatch, Arc<Semaphore>)>,
    headers: HeaderMap,
) -> axum::response::Response {
    let seen = headers.get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
    // Too many that wait: they are answered at once, and ask again later.
    let place = waiting.try_acquire();
    let until = match (&place, wait_of(&headers)) {
        (Ok(_), Some(wait)) => Instant::now() + wait,
        _ => Instant::now(),
    };
    loop {
        let now = snapshot.borrow_and_update().clone();
        // No counts are not zero counts.
        let Some(now) = now else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
        let Ok(body) = serde_json::to_vec(&readiness_of(&now)) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let tag = tag_of(&body);
        if seen != Some(tag.as_str()) {
            let kind = (header::CONTENT_TYPE, "application/json".to_owned());
            return ([kind, (header::ETAG, tag)], body).into_response();
        }
        match tokio::time::timeout_at(until, snapshot.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return StatusCode::NOT_MODIFIED.into_response(),
        }
    }
}

/// How long the asker would wait, as RFC 7240 has it; never longer than ours do.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let prefer = headers.get(PREFER)?.to_str().ok()?;
    let seconds = prefer.split([',', ';']).find_map(|part| part.trim().strip_prefix("wait="))?;
    let wait = Duration::from_secs(seconds.parse().ok()?);
    Some(wait.min(Duration::from_millis(ASK_WAIT_MS)))
}

/// Tells an answer from another one of this process.
fn tag_of(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("\"{:016x}\"", hasher.finish())
}

fn readiness_of(snapshot: &Snapshot) -> Readiness {
    let exported = snapshot.services.iter().filter(|(_, s)| s.consent == Consent::Given);
    let counts = exported.map(|(name, service)| {
        let counts = service.counts();
        (name.to_string(), ReadyCounts { ready: counts.ready, expected: counts.total })
    });
    Readiness { services: counts.collect() }
}

/// What a peer's readiness says; none when it has no meaning. A name that is none is left out.
pub fn read_readiness(body: &[u8]) -> Option<BTreeMap<NsName, EndpointCounts>> {
    let readiness: Readiness = serde_json::from_slice(body).ok()?;
    let counts = readiness.services.into_iter().filter_map(|(name, counts)| {
        let counts = EndpointCounts { ready: counts.ready, total: counts.expected };
        Some((name.parse().ok()?, counts))
    });
    Some(counts.collect())
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let (kind, text) = fairlead_telemetry::metrics::negotiate(accept, admin.metrics.text());
    ([(header::CONTENT_TYPE, kind)], text)
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let (ready, text) = readiness_text(&admin);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text)
}

/// Ready: every watch has answered, the certificates are there, and there is a hub or a plan to
/// hold. A hub that goes away later makes no agent unready: it goes on serving its peers, and
/// nothing in the cluster changes. The text has a line for each, and lines for what people ask next.
fn readiness_text(admin: &Admin) -> (bool, String) {
    let mut lines = Vec::new();
    let mut ready = true;
    let mut check = |name: &str, ok: bool, detail: String| {
        ready &= ok;
        let mark = if ok { "ok" } else { "waiting" };
        lines.push(format!("{name}: {mark}{}{detail}", if detail.is_empty() { "" } else { ": " }));
    };
    {
        let state = admin.cache.read();
        let of = |want: fn(&KindState) -> bool| {
            let kinds = state.kinds.iter().filter(|(_, kind)| want(kind));
            kinds.map(|(key, _)| key.kind.to_string()).collect::<Vec<_>>().join(", ")
        };
        let unsynced = of(|kind| *kind == KindState::Unsynced);
        let troubles: Vec<String> =
            state.troubles.iter().map(|(key, why)| format!("{}: {why}", key.kind)).collect();
        let detail = [unsynced.clone(), troubles.join("; ")].join(" ").trim().to_owned();
        check("watches", unsynced.is_empty(), detail);
        let missing = of(|kind| *kind == KindState::Missing);
        if !missing.is_empty() {
            check("kinds that this cluster does not serve", true, missing);
        }
    }
    let made = admin.crossing.borrow().is_some();
    check("crossing certificates", made, String::new());
    if let Some(link) = &admin.link {
        let link = link.borrow().clone();
        let holds_plan = admin.applied.borrow().is_some();
        check("hub", link.open || holds_plan, link.trouble);
    }
    let knock = admin.knock.borrow().clone();
    check("door", true, format!("{:?} {}", knock.knock, knock.message).trim().to_owned());
    let sni = format!("{:?} {}", knock.sni.knock, knock.sni.message);
    check("door by SNI", true, sni.trim().to_owned());
    let plan = admin.applied.borrow().as_ref().map_or_else(
        || "none yet".to_owned(),
        |report| format!("{}, {} exceptions", report.number, report.exceptions.len()),
    );
    check("plan", true, plan);
    lines.push(String::new());
    (ready, lines.join("\n"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_agent_core::diff::KindKey;
    use fairlead_model::NsName;
    use fairlead_model::snapshot::{EndpointCounts, ServiceState};

    #[test]
    fn readiness_counts_what_is_exported_with_consent() {
        let service = |consent| ServiceState {
            consent,
            zones: [("a".to_owned(), EndpointCounts { ready: 2, total: 3 })].into(),
            ..ServiceState::default()
        };
        let mut snapshot = Snapshot::default();
        snapshot.services.insert(NsName::new("shop", "cart"), service(Consent::Given));
        snapshot.services.insert(NsName::new("bank", "x"), service(Consent::Refused));
        let readiness = readiness_of(&snapshot);
        let body = serde_json::to_vec(&readiness).unwrap();
        assert_eq!(read_readiness(&body).unwrap().len(), readiness.services.len());
        assert_eq!(read_readiness(b"<html>"), None);
        assert_eq!(
            serde_json::to_string(&readiness).unwrap(),
            r#"{"services":{"shop/cart":{"ready":2,"expected":3}}}"#
        );
    }

    #[tokio::test]
    async fn who_knows_the_counts_waits_for_others() {
        let (tell, snapshot) = watch::channel(Some(Arc::new(Snapshot::default())));
        let state = || State((snapshot.clone(), Arc::new(Semaphore::new(1))));
        let ask = |seen: &str, wait: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, seen.parse().unwrap());
            headers.insert(PREFER, wait.parse().unwrap());
            readiness(state(), headers)
        };
        let first = readiness(state(), HeaderMap::new()).await;
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        // Nothing new: the answer takes the time that was asked for.
        for (wait, seconds) in [("respond-async, wait=1", 1), ("soon", 0)] {
            let start = Instant::now();
            assert_eq!(ask(&tag, wait).await.status(), StatusCode::NOT_MODIFIED);
            assert!(start.elapsed().as_secs() >= seconds, "{wait}");
        }
        // News is told while somebody waits.
        let waiting = tokio::spawn(ask(&tag, "wait=2"));
        tokio::task::yield_now().await;
        let service = ServiceState { consent: Consent::Given, ..ServiceState::default() };
        let mut news = Snapshot::default();
        news.services.insert(NsName::new("shop", "cart"), service);
        tell.send_replace(Some(Arc::new(news)));
        let answer = waiting.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_ne!(answer.headers()[header::ETAG].to_str().unwrap(), tag);
        // Another tag is answered at once.
        assert_eq!(ask("\"other\"", "wait=2").await.status(), StatusCode::OK);
    }

    #[test]
    fn nobody_waits_longer_than_ours() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, text.parse().unwrap());
            wait_of(&headers).map(|wait| wait.as_millis())
        };
        assert_eq!(of("wait=3600"), Some(u128::from(ASK_WAIT_MS)));
        assert_eq!(of("wait=1; x"), Some(1_000));
        assert_eq!((of("wait=-1"), of("wait=soon"), of("handling=strict")), (None, None, None));
    }

    #[tokio::test]
    async fn ready_means_watches_certificates_and_a_hub_or_a_plan() {
        let kind = KindKey::new("", "Service");
        let (link_tx, link) = watch::channel(LinkState::default());
        let (crossing_tx, crossing) = watch::channel(None);
        let (applied_tx, applied) = watch::channel(None);
        let admin = Admin {
            cache: Cache::new([kind.clone()]),
            link: Some(link),
            crossing,
            knock: watch::channel(KeptKnock::default()).1,
            applied,
            metrics: Arc::default(),
        };
        assert!(!readiness_text(&admin).0);
        admin.cache.set_missing(&kind);
        let member = crate::testing::TestMember::new("uid-east");
        crossing_tx.send_replace(Some(Arc::new(member.crossing)));
        link_tx.send_replace(LinkState {
            trouble: "no route to host".to_owned(),
            ..LinkState::default()
        });
        let (ready, text) = readiness_text(&admin);
        assert!(!ready && text.contains("hub: waiting: no route to host"), "{text}");
        link_tx.send_replace(LinkState { open: true, ..LinkState::default() });
        assert!(readiness_text(&admin).0);
        applied_tx.send_replace(Some(ApplyReport::default()));
        link_tx.send_replace(LinkState::default());
        assert!(readiness_text(&admin).0, "a hub that goes away changes nothing");
    }
}
