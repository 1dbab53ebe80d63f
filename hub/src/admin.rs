//! The read-only HTTP API, metrics and probes.
//!
//! Owns routing and status codes. Only GET: every change a person makes is a Kubernetes object. Asks
//! for no login itself; people come through the API server's service proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use fairlead_model::history::{Entry, HistoryView};
use fairlead_model::id::printable;
use fairlead_model::view::{FlowView, StatusView};
use fairlead_model::{MemberId, Millis, NsName, RouteKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::conductor::Current;
use crate::fleet::Fleet;
use crate::gate::Way;
use crate::history::Chronicle;
use crate::metrics::Metrics;
use crate::metrics::look::Figures;
use crate::pass::pass_on;
use crate::traffic::{Traffic, weigh};
use crate::view::Look;
use crate::watch::{Objects, Progress};

/// Changes that are told when nobody says how many, and at most.
const HISTORY_SHOWN: usize = 50;
const HISTORY_SHOWN_MAX: usize = 1_000;

/// What the API shows.
pub struct Admin {
    /// What was decided last.
    pub current: Arc<ArcSwap<Current>>,
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// The hub's own objects.
    pub objects: Arc<Objects>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What gateways did.
    pub traffic: Arc<Traffic>,
    /// What was decided before.
    pub chronicle: Arc<Chronicle>,
    /// When the process started.
    pub started_at: Millis,
    /// How far the start is.
    pub start: Arc<Start>,
    /// Whether another hub decides.
    pub ways: watch::Receiver<Way>,
}

/// How far the start is: what is waited for, until the agents' port is open.
#[derive(Default)]
pub struct Start {
    open: AtomicBool,
    waiting: ArcSwap<String>,
}

impl Start {
    /// The start waits for this.
    pub fn wait(&self, why: String) {
        if **self.waiting.load() != why {
            tracing::warn!(why, "the start waits");
            self.waiting.store(Arc::new(why));
        }
    }

    /// The agents' port is open.
    pub fn done(&self) {
        self.open.store(true, Ordering::Release);
    }

    fn reason(&self) -> Option<String> {
        if self.open.load(Ordering::Acquire) {
            return None;
        }
        let waiting = self.waiting.load();
        Some(match waiting.as_str() {
            "" => "starting".to_owned(),
            why => why.to_owned(),
        })
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    admin: Arc<Admin>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(admin)).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// The routes of the API.
pub fn router(admin: Arc<Admin>) -> Router {
    let ways = admin.ways.clone();
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/members", view(|look| look.members()))
        .route("/api/v1/gateways", view(|look| look.gateways()))
        .route("/api/v1/services", view(|look| look.services()))
        .route("/api/v1/routes", view(|look| look.routes()))
        .route("/api/v1/explain/{kind}/{namespace}/{name}", get(explain))
        .route("/api/v1/plan/{member}", get(plan))
        .route("/api/v1/traffic", get(traffic))
        .route("/api/v1/history", get(history))
        .route("/api/v1/diff", get(diff))
        .layer(from_fn_with_state(ways, pass_on))
        // Of this process, whoever decides.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

fn view<T: Serialize + 'static>(view: fn(&Look<'_>) -> T) -> MethodRouter<Arc<Admin>> {
    get(async move |State(admin): State<Arc<Admin>>| Json(admin.look(view)))
}

impl Admin {
    fn look<T>(&self, view: impl FnOnce(&Look<'_>) -> T) -> T {
        let (current, members) = (self.current.load_full(), self.fleet.look());
        view(&Look {
            current: &current,
            members: &members,
            now: clock::now(),
            started_at: self.started_at,
        })
    }

    /// Where agents are led to while another hub decides.
    fn passed_to(&self) -> Option<String> {
        let Way::Pass(seat) = &*self.ways.borrow() else { return None };
        let (holder, agents) = (&seat.holder, seat.agents?);
        Some(format!("another hub ({holder}) decides; what comes here is passed on to {agents}"))
    }

    /// Why the hub is not ready, and what else is worth knowing.
    fn readiness(&self) -> (Vec<String>, Vec<String>) {
        let (mut blocking, mut remarks) = (Vec::new(), Vec::new());
        match self.passed_to() {
            Some(remark) => remarks.push(remark),
            None => blocking.extend(self.start.reason()),
        }
        let held = &self.current.load().held;
        blocking.extend(held.iter().map(ToString::to_string));
        for (kind, progress) in self.objects.progress() {
            match progress {
                Progress::Synced => {}
                Progress::Pending => remarks.push(format!("{kind}: not read yet")),
                Progress::Absent => remarks.push(format!("{kind}: not installed")),
                Progress::Failing(why) => remarks.push(format!("{kind}: {why}")),
            }
        }
        (blocking, remarks)
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let (blocking, remarks) = admin.readiness();
    let line = |mark: &str, text: &String| format!("[{mark}] {text}\n");
    let mut text: String = blocking.iter().map(|why| line("-", why)).collect();
    text.extend(remarks.iter().map(|remark| line("i", remark)));
    if blocking.is_empty() {
        return (StatusCode::OK, format!("ok\n{text}")).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{text}")).into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let figures = tokio::task::spawn_blocking({
        let admin = Arc::clone(&admin);
        // Shares of many routes take tens of milliseconds: not on a thread that serves others.
        move || {
            let mut figures = admin.look(Figures::of);
            figures.history = admin.chronicle.history().size();
            figures
        }
    });
    let Ok(figures) = figures.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    match admin.metrics.encode(&figures) {
        Ok(text) => {
            let (kind, text) = fairlead_telemetry::metrics::negotiate(accept, text);
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<StatusView> {
    let mut status = admin.look(|look| look.status());
    status.history = Some(admin.chronicle.history().size());
    Json(status)
}

async fn traffic(State(admin): State<Arc<Admin>>) -> Json<Vec<FlowView>> {
    let mut flows = admin.traffic.flows(clock::now());
    admin.look(|look| weigh(&mut flows, look));
    Json(flows)
}

#[derive(Deserialize)]
struct From {
    from: Option<String>,
}

async fn explain(
    State(admin): State<Arc<Admin>>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    Query(query): Query<From>,
) -> Response {
    let Ok(route) = format!("{kind}/{}", NsName::new(&namespace, &name)).parse::<RouteKey>() else {
        return error(StatusCode::BAD_REQUEST, format!("{kind} is no kind of route"));
    };
    let from = match query.from.as_deref().map(MemberId::new).transpose() {
        Ok(from) => from,
        Err(bad) => return error(StatusCode::BAD_REQUEST, bad.to_string()),
    };
    match admin.look(|look| look.explain(&route, from.as_ref())) {
        Some(explanation) => Json(explanation).into_response(),
        None => {
            error(StatusCode::NOT_FOUND, format!("{route} is no global route of the last plan"))
        }
    }
}

#[derive(Deserialize)]
struct HistoryQuery {
    route: Option<String>,
    member: Option<MemberId>,
    limit: Option<usize>,
}

async fn history(State(admin): State<Arc<Admin>>, Query(query): Query<HistoryQuery>) -> Response {
    let is_route = match query.route.as_deref().map(is_named).transpose() {
        Ok(is_route) => is_route,
        Err(answer) => return *answer,
    };
    let is_asked = |entry: &Entry| {
        is_route.as_ref().is_none_or(|is| is(&entry.route))
            && query.member.as_ref().is_none_or(|member| entry.concerns(member))
    };
    let limit = query.limit.unwrap_or(HISTORY_SHOWN).min(HISTORY_SHOWN_MAX);
    let history = admin.chronicle.history();
    let (size, entries) = (history.size(), history.list(is_asked, limit));
    Json(HistoryView { now: clock::now(), size, entries }).into_response()
}

#[derive(Deserialize)]
struct DiffQuery {
    from: u64,
    to: Option<u64>,
    route: Option<String>,
}

async fn diff(State(admin): State<Arc<Admin>>, Query(query): Query<DiffQuery>) -> Response {
    let is_route = match query.route.as_deref().map(is_named).transpose() {
        Ok(is_route) => is_route,
        Err(answer) => return *answer,
    };
    let is_asked = |route: &RouteKey| is_route.as_ref().is_none_or(|is| is(route));
    let history = admin.chronicle.history();
    let to = query.to.unwrap_or(history.size().newest);
    match history.diff(query.from, to, is_asked) {
        Ok(view) => Json(view).into_response(),
        Err(missing) => error(StatusCode::NOT_FOUND, missing.to_string()),
    }
}

/// Whether a route is meant by a name, with its kind or without.
fn is_named(name: &str) -> Result<impl Fn(&RouteKey) -> bool + use<>, Box<Response>> {
    let key: Option<RouteKey> = name.parse().ok();
    let any_kind: Option<NsName> = name.parse().ok();
    if key.is_none() && any_kind.is_none() {
        let message = format!("{} is no [KIND/]NAMESPACE/NAME", printable(name));
        return Err(Box::new(error(StatusCode::BAD_REQUEST, message)));
    }
    Ok(move |route: &RouteKey| match (&key, &any_kind) {
        (Some(key), _) => route == key,
        (None, name) => name.as_ref() == Some(&route.name),
    })
}

async fn plan(State(admin): State<Arc<Admin>>, Path(member): Path<String>) -> Response {
    let member = match MemberId::new(&member) {
        Ok(member) => member,
        Err(bad) => return error(StatusCode::BAD_REQUEST, bad.to_string()),
    };
    match admin.look(|look| look.plan(&member)) {
        Some(plan) => Json(plan).into_response(),
        None => error(StatusCode::NOT_FOUND, format!("there is no plan for member {member}")),
    }
}

fn error(code: StatusCode, message: String) -> Response {
    (code, Json(json!({"error": message}))).into_response()
}
