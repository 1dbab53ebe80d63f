//! Questions to a hub that stands by are answered by the one that decides.
//!
//! Owns passing on a request of the read-only API. People reach any hub through the API server's service
//! proxy; what they see must not depend on which. A request is passed on once: two hubs that take each
//! other for the one that decides must not send it around.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::gate::Way;

/// On requests that were passed on.
const PASSED: HeaderName = HeaderName::from_static("fairlead-passed-on");
/// The other hub answers in that time, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes a request on while another hub decides.
pub async fn pass_on(
    State(ways): State<watch::Receiver<Way>>,
    request: Request,
    next: Next,
) -> Response {
    let Way::Pass(seat) = ways.borrow().clone() else { return next.run(request).await };
    let Some(address) = seat.admin else {
        return away(format!("hub {} decides, and says no address to ask it at", seat.holder));
    };
    if request.headers().contains_key(PASSED) {
        return away("this hub does not decide any more, or not yet; ask again".to_owned());
    }
    match timeout(ANSWER_TIMEOUT, ask(address, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => away(format!("hub {} decides, but: {error:#}", seat.holder)),
        Err(_) => away(format!("hub {} decides, and does not answer", seat.holder)),
    }
}

fn away(error: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))).into_response()
}

async fn ask(address: SocketAddr, mut request: Request) -> anyhow::Result<Response> {
    let stream = TcpStream::connect(address).await?;
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body.
    tokio::spawn(connection);
    request.headers_mut().insert(PASSED, HeaderValue::from_static("1"));
    Ok(client.send_request(request).await?.map(Body::new))
}
