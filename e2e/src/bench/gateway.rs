//! How long a gateway itself takes: the floor under everything that Fairlead adds.
//!
//! A script writes one HTTPRoute in every member at once, each time with another value of a
//! response header, and asks every Envoy for it until the last one answers with the new value.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    cluster::Cluster,
    object::{self, ObjectKey},
    report::{Row, milliseconds},
    world::World,
};

const ROUNDS: u32 = 30;
const NAMESPACE: &str = "bench";
const HOST: &str = "bench.example.com";
/// The response header that tells which version of a route answered.
pub(crate) const MARK: &str = "fairlead-bench";
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at an Envoy. Shorter would take the CPU that is being measured.
const PAUSE: Duration = Duration::from_millis(3);

pub(super) async fn run(world: &World) -> Result<Vec<Row>> {
    let mut watchers = Vec::new();
    for member in world.members() {
        set_up(member).await?;
        watchers.push(MarkWatcher::new((member.gateway_addr().await?, 80).into(), HOST));
    }
    let mut times = Vec::new();
    // The first round warms up connections and is not counted.
    for round in 0..=ROUNDS {
        let mark = format!("round-{round}");
        let start = Instant::now();
        let route = route(&mark);
        let writes = world.members().map(|member| member.objects().apply(&route));
        let looks = watchers.iter_mut().map(|watcher| watcher.wait(&mark));
        tokio::try_join!(try_join_all(writes), try_join_all(looks))?;
        if round > 0 {
            times.push(milliseconds(start.elapsed()));
        }
    }
    world.forget(&[NAMESPACE]).await?;
    Ok(vec![Row::new("control", "ms", &times)])
}

async fn set_up(member: &Cluster) -> Result<()> {
    let objects = member.objects();
    objects.apply(&object::namespace(NAMESPACE)).await?;
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {
            "gatewayClassName": "eg",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
        },
    });
    objects.apply(&gateway).await?;
    objects.wait_condition(&ObjectKey::of(&gateway)?, "Programmed", LIMIT).await
}

/// Answered by the gateway itself, so that no backend is part of the figure.
fn route(mark: &str) -> Value {
    let set = json!([{"name": MARK, "value": mark}]);
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": "bench"}],
            "hostnames": [HOST],
            "rules": [{"filters": [
                {"type": "RequestRedirect", "requestRedirect": {"statusCode": 302, "scheme": "https"}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}},
            ]}],
        },
    })
}

/// Asks one Envoy over one kept connection which mark its route carries.
pub(crate) struct MarkWatcher {
    address: SocketAddr,
    host: String,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl MarkWatcher {
    pub(crate) fn new(address: SocketAddr, host: &str) -> Self {
        Self { address, host: host.to_owned(), sender: None }
    }

    /// Waits until the answer carries this mark.
    pub(crate) async fn wait(&mut self, mark: &str) -> Result<()> {
        let seen = async {
            while self.look().await.as_deref() != Some(mark) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let seen = tokio::time::timeout(LIMIT, seen).await;
        seen.with_context(|| format!("{} never answered with {mark}", self.address))
    }

    /// The mark now; `None` also when the connection had to be given up.
    async fn look(&mut self) -> Option<String> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await.ok()?;
        let request = Request::get("/").header("host", &self.host).body(Empty::new()).ok()?;
        let response = sender.send_request(request).await.ok()?;
        let mark = response.headers().get(MARK).and_then(|mark| mark.to_str().ok());
        let mark = mark.map(str::to_owned);
        response.into_body().collect().await.ok()?;
        self.sender = Some(sender);
        mark
    }

    async fn connect(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(sender)
    }
}
