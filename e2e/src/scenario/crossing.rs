//! The crossing by hand: only standard Gateway API objects, no process of Fairlead.
//!
//! Shows that the mechanism on which everything stands works with unmodified gateways: west is
//! the entry, east the target; a header names the backend at east's door, and mutual TLS decides
//! who may come to that door at all.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::json;

use crate::{
    backend::Echo,
    echo::Answer,
    load::Load,
    object::{self, ObjectKey, Objects},
    pki::{Authority, Leaf, Side},
    report::{Facts, Finding, figures, milliseconds},
    tls::{self, Knock},
    wait::{self, Look},
    world::World,
};

const ENTRY: &str = "west";
const TARGET: &str = "east";
const CAPABILITY: &str = "5b1f0c6e2d9a4c37";
const DOOR_NAME: &str = "door.east.fairlead.internal";
const DOOR_PORT: u16 = 15443;
const HOST: &str = "shop.example.com";
const NAMESPACES: [&str; 3] = ["shop", "infra", "fairlead-system"];
const LIMIT: Duration = Duration::from_secs(60);

/// Addresses and certificates of one play.
struct Stage {
    authority: Authority,
    peer: Leaf,
    entry: SocketAddr,
    door: SocketAddr,
}

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let stage = set_up(world).await.context("setting up the crossing")?;
    facts.look("a", "2,000 requests split 80/20", split(&stage)).await;
    facts.look("b", "path and headers are rewritten once", rewritten_once(&stage)).await;
    facts.look("c1", "the door answers a peer", knock_as_peer(&stage)).await;
    facts.look("c2", "a client without certificate is refused", knock_bare(&stage)).await;
    facts.look("c3", "a client of another CA is refused", knock_foreign(&stage)).await;
    facts.look("c4", "an unknown capability gets 404", unknown_capability(&stage)).await;
    world.forget(&NAMESPACES).await
}

async fn set_up(world: &World) -> Result<Stage> {
    let authority = Authority::new("crossing")?;
    let door = authority.issue(Side::Server, "door", &[], &["*.east.fairlead.internal"])?;
    let peer = authority.issue(Side::Client, "west", &[], &["west.fairlead.internal"])?;
    let (entry, target) = (world.member(ENTRY)?, world.member(TARGET)?);
    let door_address = target.gateway_addr().await?;
    for member in [ENTRY, TARGET] {
        let objects = world.member(member)?.objects();
        for namespace in NAMESPACES {
            objects.apply(&object::namespace(namespace)).await?;
        }
        objects.apply(&ca_config_map(&authority)).await?;
        world.deploy_echo(member, &Echo::new("shop", "cart", "v1", 2)).await?;
    }
    target.objects().apply(&object::tls_secret("fairlead-system", "door", &door)).await?;
    entry.objects().apply(&object::tls_secret("infra", "peer", &peer)).await?;
    let values =
        [("CAPABILITY", CAPABILITY), ("DOOR", &door_address.to_string()), ("DOOR_NAME", DOOR_NAME)];
    let yaml = object::fill(include_str!("../../manifests/crossing/target.yaml"), &values)?;
    target.objects().apply_yaml(&yaml).await?;
    let yaml = object::fill(include_str!("../../manifests/crossing/entry.yaml"), &values)?;
    entry.objects().apply_yaml(&yaml).await?;
    wait_programmed(target.objects(), "fairlead-system", "fairlead-eastwest", "shop.cart").await?;
    let gateway = ObjectKey::new(GATEWAY_API, "Gateway", "infra", "public");
    entry.objects().wait_condition(&gateway, "Programmed", LIMIT).await?;
    let route = ObjectKey::new(GATEWAY_API, "HTTPRoute", "shop", "cart-global");
    entry.objects().wait_route(&route, LIMIT).await?;
    let stage = Stage {
        authority,
        peer,
        entry: (entry.gateway_addr().await?, 80).into(),
        door: (door_address, DOOR_PORT).into(),
    };
    wait_live(&stage).await?;
    Ok(stage)
}

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

async fn wait_programmed(
    objects: &Objects,
    namespace: &str,
    gateway: &str,
    route: &str,
) -> Result<()> {
    let gateway = ObjectKey::new(GATEWAY_API, "Gateway", namespace, gateway);
    objects.wait_condition(&gateway, "Programmed", LIMIT).await?;
    objects.wait_route(&ObjectKey::new(GATEWAY_API, "HTTPRoute", namespace, route), LIMIT).await
}

fn ca_config_map(authority: &Authority) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "fairlead-ca", "namespace": "fairlead-system"},
        "data": {"ca.crt": authority.cert_pem()},
    })
}

/// Statuses run ahead of Envoy: the objects are live when both targets answer without errors.
async fn wait_live(stage: &Stage) -> Result<()> {
    wait::until("requests to reach both members", LIMIT, || async {
        let load = Load::new(HOST, "/cart").entry(ENTRY, stage.entry).requests(30, 4);
        let report = load.run().await;
        let targets: BTreeSet<String> =
            report.samples().iter().map(|sample| sample.outcome.target.clone()).collect();
        if report.failed() == 0 && targets.len() == 2 && !targets.contains("") {
            return Ok(Look::Done(()));
        }
        Ok(Look::Not(format!("{:?}", report.counts())))
    })
    .await
}

async fn split(stage: &Stage) -> Result<Finding> {
    let load = Load::new(HOST, "/cart").entry(ENTRY, stage.entry).requests(2000, 8);
    let report = load.run().await;
    let shares = report.shares(|sample| sample.outcome.target.clone());
    let share = |name: &str| shares.get(name).copied().unwrap_or_default();
    let near = |name: &str, wanted: f64| (share(name) - wanted).abs() <= 0.03;
    let holds = near(ENTRY, 0.8) && near(TARGET, 0.2) && report.failed() == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("local", json!(share(ENTRY))),
            ("remote", json!(share(TARGET))),
            ("requests", json!(report.total())),
            ("failed", json!(report.failed())),
            ("median_ms", json!(milliseconds(report.latency(0.5)))),
            ("p99_ms", json!(milliseconds(report.latency(0.99)))),
        ]),
    ))
}

/// Asks until both members have answered, and compares what each of them received.
async fn rewritten_once(stage: &Stage) -> Result<Finding> {
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let request = Request::get("/cart/cart/item?x=1").header("host", HOST).body(Empty::new())?;
        let response = crate::http1::send(stage.entry, request).await?;
        let answer: Answer = serde_json::from_slice(response.body()).context("an echo's answer")?;
        seen.insert(answer.identity.cluster.clone(), answer);
        if seen.len() == 2 {
            break;
        }
    }
    ensure!(seen.len() == 2, "only {:?} answered 200 requests", seen.keys());
    let right = |answer: &Answer, gateways: usize| {
        answer.path == "/cart/item?x=1"
            && answer.host == HOST
            && answer.gateways == gateways
            && !answer.headers.contains_key("fairlead-backend")
    };
    let (local, remote) = (&seen[ENTRY], &seen[TARGET]);
    Ok(Finding::new(
        right(local, 1) && right(remote, 2),
        figures([
            ("local_path", json!(local.path)),
            ("remote_path", json!(remote.path)),
            ("local_gateways", json!(local.gateways)),
            ("remote_gateways", json!(remote.gateways)),
        ]),
    ))
}

async fn knock_as_peer(stage: &Stage) -> Result<Finding> {
    let status = knock(stage, Some(&stage.peer), CAPABILITY).await?;
    Ok(Finding::new(status == 200, figures([("status", json!(status))])))
}

async fn unknown_capability(stage: &Stage) -> Result<Finding> {
    let status = knock(stage, Some(&stage.peer), "0000000000000000").await?;
    Ok(Finding::new(status == 404, figures([("status", json!(status))])))
}

async fn knock_bare(stage: &Stage) -> Result<Finding> {
    Ok(refused(knock(stage, None, CAPABILITY).await))
}

async fn knock_foreign(stage: &Stage) -> Result<Finding> {
    let foreign = Authority::new("foreign")?;
    let leaf = foreign.issue(Side::Client, "west", &[], &["west.fairlead.internal"])?;
    Ok(refused(knock(stage, Some(&leaf), CAPABILITY).await))
}

/// Refused by TLS, that is: a connection error or an HTTP status would be no proof.
fn refused(result: Result<u16>) -> Finding {
    match result {
        Ok(status) => Finding::new(false, figures([("status", json!(status))])),
        Err(error) => match tls::alert(&error) {
            Some(alert) => Finding::new(true, figures([("alert", json!(alert))])),
            None => Finding::new(false, figures([("error", json!(format!("{error:#}")))])),
        },
    }
}

async fn knock(stage: &Stage, certificate: Option<&Leaf>, capability: &str) -> Result<u16> {
    let request: Request<Empty<Bytes>> = Request::get("/")
        .header("host", DOOR_NAME)
        .header("fairlead-backend", capability)
        .body(Empty::new())?;
    let knock = Knock {
        address: stage.door,
        name: DOOR_NAME,
        ca_pem: stage.authority.cert_pem(),
        certificate,
    };
    Ok(knock.request(request).await?.status().as_u16())
}
