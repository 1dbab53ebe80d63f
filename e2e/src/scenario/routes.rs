//! Routes: whatever works for one cluster works for the fleet. Each feature is declared once as a
//! global route whose backends are all in another member, and once as a plain route in that member;
//! the same requests must get the same answers.
//!
//! ```text
//!  client ─▶ east (fleet.test) ══ door ══▶ west: echo, echo-2, echo-grpc, echo-ws
//!  client ─▶ west (plain.test) ─────────▶ the same
//! ```
//!
//! Letters: m matches, f filters and timeouts, s streams and sessions, g gRPC, c connections and datagrams,
//! k certificates of each member's own, t what is told.
//! Leaves the world as it was.

mod case;
mod certificate;
mod connection;
mod copies;
mod grpc;
mod http;
mod stream;
mod surprise;
mod told;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::and_clear;
use crate::{
    backend::Echo,
    fleet::{Fleet, entry},
    gateway::CLASS,
    object::{self, ObjectKey},
    report::Facts,
    wait::{self, Look},
    world::World,
};

const ENTRY: &str = "east";
const TARGET: &str = "west";
const NAMESPACE: &str = "routes";
const GATEWAY_NAMESPACE: &str = "infra";
const PLAIN_NAMESPACE: &str = "plain";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const LIMIT: Duration = Duration::from_secs(90);
/// Services of the target: name, version, and the `appProtocol` of the port.
const SERVICES: [(&str, &str, Option<&str>); 4] = [
    ("echo", "v1", None),
    ("echo-2", "v2", None),
    ("echo-grpc", "v1", Some("kubernetes.io/h2c")),
    ("echo-ws", "v1", Some("kubernetes.io/ws")),
];
const REPLICAS: u8 = 2;

/// Who serves a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Fairlead: the entry, with all backends elsewhere.
    Fleet,
    /// The target by itself, by a route of its own.
    Plain,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Fleet, Self::Plain];

    /// Equally long, so that lengths can be compared.
    fn domain(self) -> &'static str {
        match self {
            Self::Fleet => "fleet.test",
            Self::Plain => "plain.test",
        }
    }
}

/// The world with Fairlead and the same routes on both sides.
struct Stage<'w> {
    fleet: Fleet<'w>,
    entry: SocketAddr,
    plain: SocketAddr,
    /// Who signed the certificates of listeners and backends.
    ca_pem: String,
    /// Who signs those that each member has of its own.
    authorities: certificate::Authorities,
}

impl Stage<'_> {
    fn address(&self, side: Side) -> SocketAddr {
        match side {
            Side::Fleet => self.entry,
            Side::Plain => self.plain,
        }
    }

    /// Declares a route on both sides: `rules` name the target's services as plain backends, and
    /// `DOMAIN` stands for the side's.
    async fn declare(&self, kind: &str, name: &str, host: &str, rules: &Value) -> Result<()> {
        let world = self.fleet.world();
        for side in Side::BOTH {
            let objects = match side {
                Side::Fleet => world.hub().objects(),
                Side::Plain => world.member(TARGET)?.objects(),
            };
            objects.apply(&route(kind, name, host, rules, side)).await?;
        }
        Ok(())
    }
}

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    and_clear(tell(world, facts), clean_up(&fleet)).await
}

async fn tell(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::new(world)?;
    fleet.init().await?;
    fleet.join_all().await?;
    let (ca_pem, authorities) = set_up(&fleet).await.context("setting up the routes")?;
    let stage = Stage {
        entry: entry(world.member(ENTRY)?).await?,
        plain: entry(world.member(TARGET)?).await?,
        fleet,
        ca_pem,
        authorities,
    };
    let cases = http::cases();
    for case in &cases {
        stage.declare("HTTPRoute", case.id, "http", &case.rules).await?;
    }
    grpc::declare(&stage).await?;
    stream::declare(&stage).await?;
    copies::declare(&stage).await?;
    connection::declare(&stage).await?;
    certificate::declare(&stage).await?;
    stage.fleet.wait_settled().await?;
    wait_live(&stage).await?;
    for case in &cases {
        facts.look(case.id, case.name, case::play(&stage, case)).await;
    }
    stream::play(&stage, facts).await;
    grpc::play(&stage, facts).await;
    copies::play(&stage, facts).await;
    certificate::play(&stage, facts).await;
    connection::play(&stage, facts).await;
    told::play(&stage, facts).await;
    surprise::play(&stage, facts).await;
    Ok(())
}

async fn set_up(fleet: &Fleet<'_>) -> Result<(String, certificate::Authorities)> {
    let world = fleet.world();
    for cluster in world.clusters() {
        for namespace in [NAMESPACE, GATEWAY_NAMESPACE] {
            cluster.objects().apply(&object::namespace(namespace)).await?;
        }
    }
    for (name, version, protocol) in SERVICES {
        let mut echo = Echo::new(NAMESPACE, name, version, REPLICAS);
        echo.app_protocol = protocol.map(str::to_owned);
        world.deploy_echo(TARGET, &echo).await?;
        export(world, name).await?;
    }
    let target = world.member(TARGET)?.objects();
    target.apply(&object::namespace(PLAIN_NAMESPACE)).await?;
    let ca_pem = connection::set_up(world).await.context("setting up connections")?;
    let authorities = certificate::set_up(world).await.context("setting up certificates")?;
    target.apply(&gateway(PLAIN_NAMESPACE, CLASS, Side::Plain)).await?;
    let class = fairlead_crds::keys::GATEWAY_CLASS;
    let mut global = gateway(GATEWAY_NAMESPACE, class, Side::Fleet);
    certificate::complete(&mut global)?;
    world.hub().objects().apply(&global).await?;
    Ok((ca_pem, authorities))
}

async fn export(world: &World, name: &str) -> Result<()> {
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": NAMESPACE},
    });
    world.member(TARGET)?.objects().apply(&export).await.map(drop)
}

fn gateway(namespace: &str, class: &str, side: Side) -> Value {
    let mut listeners = vec![json!({
        "name": "http", "port": 80, "protocol": "HTTP",
        "hostname": format!("*.{}", side.domain()),
        "allowedRoutes": {"namespaces": {"from": "All"}},
    })];
    listeners.extend(connection::listeners(side));
    json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {"name": namespace, "namespace": namespace},
        "spec": {"gatewayClassName": class, "listeners": listeners},
    })
}

fn route(kind: &str, name: &str, host: &str, rules: &Value, side: Side) -> Value {
    let parent = match side {
        Side::Fleet => GATEWAY_NAMESPACE,
        Side::Plain => PLAIN_NAMESPACE,
    };
    let mut rules = rules.clone();
    point(&mut rules, side);
    json!({
        "apiVersion": GATEWAY_API, "kind": kind,
        "metadata": {"name": route_name(name, side), "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": parent, "namespace": parent}],
            "hostnames": [format!("{host}.{}", side.domain())],
            "rules": rules,
        },
    })
}

fn route_name(name: &str, side: Side) -> String {
    match side {
        Side::Fleet => name.to_owned(),
        Side::Plain => format!("plain-{name}"),
    }
}

/// Completes every backend, and puts the side's domain in.
fn point(value: &mut Value, side: Side) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match (key.as_str(), &mut *value) {
                    ("backendRefs", Value::Array(list)) => {
                        list.iter_mut().for_each(|backend| complete(backend, side));
                    }
                    ("backendRef", backend) => complete(backend, side),
                    _ => {}
                }
                point(value, side);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| point(value, side)),
        Value::String(text) => *text = text.replace("DOMAIN", side.domain()),
        _ => {}
    }
}

fn complete(backend: &mut Value, side: Side) {
    backend["port"] = json!(80);
    if side == Side::Fleet {
        backend["group"] = json!("multicluster.x-k8s.io");
        backend["kind"] = json!("ServiceImport");
    }
}

/// Statuses run ahead of Envoy: the routes are live when one that was declared last answers.
async fn wait_live(stage: &Stage<'_>) -> Result<()> {
    for side in Side::BOTH {
        wait::until(&format!("routes of {} to be live", side.domain()), LIMIT, || async {
            for path in [http::LAST_PATH, http::FIRST_PATH] {
                let host = format!("http.{}", side.domain());
                let seen = crate::fleet::shop::ask_host(stage.address(side), &host, path).await?;
                if seen.status != 200 || seen.target() != TARGET {
                    return Ok(Look::Not(format!("{path} is answered {}", seen.status)));
                }
            }
            Ok(Look::Done(()))
        })
        .await?;
    }
    Ok(())
}

async fn clean_up(fleet: &Fleet<'_>) -> Result<()> {
    let world = fleet.world();
    let namespaces = [NAMESPACE, GATEWAY_NAMESPACE, PLAIN_NAMESPACE];
    for name in namespaces {
        world.hub().objects().delete(&ObjectKey::new("v1", "Namespace", "", name)).await?;
    }
    fleet.uninstall().await?;
    for name in namespaces {
        let key = ObjectKey::new("v1", "Namespace", "", name);
        world.hub().objects().wait_gone(&key, LIMIT).await?;
    }
    world.forget(&namespaces).await
}
