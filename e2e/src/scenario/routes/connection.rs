//! Connections and datagrams: what carries no headers is served across members as by one cluster.
//!
//! ```text
//!  7001 TCP, 80 to 20    7002 TLS that the entry ends    7003 TLS that the backend ends    7004 UDP
//! ```
//!
//! The plain side has the same a hundred higher: the target serves both, and only HTTP tells hosts apart.
//! UDP comes last: it needs the target's own consent, which its agent reads when it starts.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use fairlead_crds::keys;
use fairlead_model::Reason;
use http::Request;
use http_body_util::Empty;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::{GATEWAY_NAMESPACE, NAMESPACE, PLAIN_NAMESPACE, Side, Stage, TARGET};
use crate::{
    backend::{Echo, Transport},
    echo::{Answer, DatagramAnswer},
    http1,
    object::{self, ObjectKey},
    pki::{self, Authority, Leaf},
    report::{Facts, Figures, Finding, figures},
    tls::Knock,
    wait::{self, Look},
    world::World,
};

const TCP: u16 = 7001;
const TERMINATED: u16 = 7002;
const PASSED: u16 = 7003;
const UDP: u16 = 7004;
/// The plain side's ports are so much higher.
const PLAIN: u16 = 100;
const SECRET: &str = "listener";
const CONNECTIONS: u32 = 500;
/// Three and a half standard deviations of an 80/20 split.
const TOLERANCE: f64 = 0.063;
const ANSWER: Duration = Duration::from_secs(1);
const AGENT: &str = "fairlead-agent";

/// Services, their certificates, and the listeners'. Gives the CA of both.
pub(super) async fn set_up(world: &World) -> Result<String> {
    let authority = Authority::new("routes")?;
    let names = |host: &str| Side::BOTH.map(|side| format!("{host}.{}", side.domain()));
    let issue = |host: &str| {
        let names = names(host);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        authority.issue(pki::Side::Server, host, &[], &names)
    };
    let mut passed = Echo::new(NAMESPACE, "echo-tls", "v1", super::REPLICAS);
    passed.tls = Some(issue("passed")?);
    let mut datagrams = Echo::new(NAMESPACE, "echo-udp", "v1", super::REPLICAS);
    datagrams.transport = Transport::Udp;
    for echo in [passed, datagrams] {
        world.deploy_echo(TARGET, &echo).await?;
        super::export(world, &echo.name).await?;
    }
    let leaf = issue("ended")?;
    for member in world.members() {
        member.objects().apply(&object::namespace(GATEWAY_NAMESPACE)).await?;
        member.objects().apply(&secret(GATEWAY_NAMESPACE, &leaf)).await?;
    }
    world.member(TARGET)?.objects().apply(&secret(PLAIN_NAMESPACE, &leaf)).await?;
    Ok(authority.cert_pem().to_owned())
}

fn secret(namespace: &str, leaf: &Leaf) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": {"tls.crt": leaf.cert_pem, "tls.key": leaf.key_pem},
    })
}

fn port(base: u16, side: Side) -> u16 {
    match side {
        Side::Fleet => base,
        Side::Plain => base + PLAIN,
    }
}

/// Listeners beside the one for HTTP.
pub(super) fn listeners(side: Side) -> Vec<Value> {
    let listener = |name: &str, base: u16, protocol: &str| {
        json!({
            "name": name, "port": port(base, side), "protocol": protocol,
            "allowedRoutes": {"namespaces": {"from": "All"}},
        })
    };
    let mut terminated = listener("ended", TERMINATED, "TLS");
    terminated["tls"] = json!({"mode": "Terminate", "certificateRefs": [{"name": SECRET}]});
    let mut passed = listener("passed", PASSED, "TLS");
    passed["tls"] = json!({"mode": "Passthrough"});
    vec![listener("tcp", TCP, "TCP"), terminated, passed, listener("udp", UDP, "UDP")]
}

pub(super) async fn declare(stage: &Stage<'_>) -> Result<()> {
    let split = [("echo", 80), ("echo-2", 20)];
    declare_one(stage, "TCPRoute", "tcp", false, &split).await?;
    declare_one(stage, "TLSRoute", "ended", true, &[("echo", 1)]).await?;
    declare_one(stage, "TLSRoute", "passed", true, &[("echo-tls", 1)]).await
}

/// A route of the listener of its own name.
async fn declare_one(
    stage: &Stage<'_>,
    kind: &str,
    name: &str,
    by_host: bool,
    backends: &[(&str, u32)],
) -> Result<()> {
    let refs: Vec<Value> =
        backends.iter().map(|(name, weight)| json!({"name": name, "weight": weight})).collect();
    let rules = json!([{"backendRefs": refs}]);
    for side in Side::BOTH {
        let mut route = super::route(kind, name, name, &rules, side);
        route["spec"]["parentRefs"][0]["sectionName"] = json!(name);
        if !by_host {
            route["spec"].as_object_mut().context("a spec")?.remove("hostnames");
        }
        let world = stage.fleet.world();
        let objects = match side {
            Side::Fleet => world.hub().objects(),
            Side::Plain => world.member(TARGET)?.objects(),
        };
        objects.apply(&route).await?;
    }
    Ok(())
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    let name = "every door by SNI was proven shut by its agent";
    facts.look("c0", name, proven_shut(stage)).await;
    facts.look("c1", "TCPRoute with weights, 80 to 20", tcp(stage)).await;
    facts.look("c2", "TLSRoute, TLS ended at the entry", terminated(stage)).await;
    facts.look("c3", "TLSRoute, TLS passed on to the backend", passed(stage)).await;
    let name = "a listener for SNI that lets strangers in loses its services, requests go on";
    facts.look("c4", name, stranger(stage)).await;
    facts.look("c5", "UDPRoute without the target's consent stays and says so", told(stage)).await;
    facts.look("c6", "UDPRoute with the target's consent, WeakDoor shown", udp(stage)).await;
}

async fn proven_shut(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    for member in stage.fleet.world().members() {
        let said = condition(stage, member.name(), keys::CONDITION_SNI_DOOR_SHUT, "True").await?;
        more.insert(member.name().into(), json!(said));
    }
    Ok(Finding::new(true, more))
}

/// Waits until a condition of a member has a status; gives its reason.
async fn condition(stage: &Stage<'_>, member: &str, kind: &str, status: &str) -> Result<String> {
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", member);
    let hub = stage.fleet.world().hub().objects();
    wait::until(&format!("{kind} of {member} to be {status}"), super::LIMIT, || async {
        let object = hub.get(&key).await?.context("it is gone")?;
        let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = list.iter().find(|condition| condition["type"] == kind);
        let found = found.context("there is no such condition")?;
        let said = format!("{} {}", found["reason"], found["message"]).replace('"', "");
        Ok(if found["status"] == status { Look::Done(said) } else { Look::Not(said) })
    })
    .await
}

fn request(host: &str) -> Result<Request<Empty<Bytes>>> {
    Ok(Request::get("/raw").header("host", host).body(Empty::new())?)
}

fn at(stage: &Stage<'_>, base: u16, side: Side) -> SocketAddr {
    SocketAddr::new(stage.address(side).ip(), port(base, side))
}

async fn by_tcp(stage: &Stage<'_>, side: Side) -> Result<Answer> {
    let answer = http1::send(at(stage, TCP, side), request("tcp.test")?);
    let answer = tokio::time::timeout(ANSWER, answer).await.context("no answer in time")??;
    serde_json::from_slice(answer.body()).context("no echo answered")
}

async fn tcp(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let what = format!("TCP through {}", side.domain());
        wait::until(&what, super::LIMIT, || async {
            by_tcp(stage, side).await.map(|_| Look::Done(()))
        })
        .await?;
        let mut services: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..CONNECTIONS {
            let echo = by_tcp(stage, side).await?;
            // No gateway on the way read or wrote a header.
            let right = echo.identity.cluster == TARGET && echo.gateways == 0;
            let name = if right { echo.identity.service } else { "wrong".to_owned() };
            *services.entry(name).or_default() += 1;
        }
        let share =
            f64::from(services.get("echo").copied().unwrap_or_default()) / f64::from(CONNECTIONS);
        holds &= (share - 0.8).abs() <= TOLERANCE && !services.contains_key("wrong");
        more.insert(side.domain().into(), json!(services));
    }
    Ok(Finding::new(holds, more))
}

async fn by_tls(stage: &Stage<'_>, base: u16, host: &str, side: Side) -> Result<(Answer, String)> {
    let host = format!("{host}.{}", side.domain());
    let knock = Knock {
        address: at(stage, base, side),
        name: &host,
        ca_pem: &stage.ca_pem,
        certificate: None,
    };
    let stream = tokio::time::timeout(ANSWER, knock.connect()).await.context("no handshake")??;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let answer = tokio::time::timeout(ANSWER, http1::send_over(stream, request(&host)?));
    let answer = answer.await.context("no answer in time")??;
    let echo = serde_json::from_slice(answer.body()).context("no echo answered")?;
    let shown = shown.context("no certificate was shown")?;
    Ok((echo, hex(&shown)))
}

fn hex(certificate: &CertificateDer<'_>) -> String {
    certificate.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks both sides by TLS; the same certificate and the same service must answer.
async fn same_by_tls(stage: &Stage<'_>, base: u16, host: &str, service: &str) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    let mut certificates = std::collections::BTreeSet::new();
    for side in Side::BOTH {
        let (echo, shown) =
            wait::until(&format!("TLS for {host}.{}", side.domain()), super::LIMIT, || async {
                by_tls(stage, base, host, side).await.map(Look::Done)
            })
            .await?;
        holds &= echo.identity.cluster == TARGET
            && echo.identity.service == service
            && echo.gateways == 0
            && echo.path == "/raw";
        certificates.insert(shown);
        let said = format!("{} of {}", echo.identity.service, echo.identity.cluster);
        more.insert(side.domain().into(), json!(said));
        // A name that no route has must reach nobody.
        let other = by_tls(stage, base, "other", side).await;
        holds &= other.is_err();
    }
    holds &= certificates.len() == 1;
    more.insert("certificates".into(), json!(certificates.len()));
    Ok(Finding::new(holds, more))
}

async fn terminated(stage: &Stage<'_>) -> Result<Finding> {
    same_by_tls(stage, TERMINATED, "ended", "echo").await
}

async fn passed(stage: &Stage<'_>) -> Result<Finding> {
    same_by_tls(stage, PASSED, "passed", "echo-tls").await
}

/// Somebody's own policy makes the certificate optional at that listener.
async fn stranger(stage: &Stage<'_>) -> Result<Finding> {
    let target = stage.fleet.world().member(TARGET)?.objects();
    let policy = json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "ClientTrafficPolicy",
        "metadata": {"namespace": keys::NAMESPACE, "name": "let-anybody-in"},
        "spec": {
            "targetRefs": [{
                "group": "gateway.networking.k8s.io", "kind": "Gateway",
                "name": keys::EAST_WEST_GATEWAY, "sectionName": keys::EAST_WEST_LISTENER_TLS,
            }],
            "tls": {"clientValidation": {
                "optional": true,
                "caCertificateRefs": [{
                    "group": "", "kind": "ConfigMap", "name": keys::CONFIG_MAP_EAST_WEST_CALLERS,
                }],
            }},
        },
    });
    let shut = keys::CONDITION_SNI_DOOR_SHUT;
    target.apply(&policy).await?;
    let start = std::time::Instant::now();
    let told = condition(stage, TARGET, shut, "False").await;
    let stopped = wait::until("connections to stop", super::LIMIT, || async {
        Ok(match by_tcp(stage, Side::Fleet).await {
            Ok(_) => Look::Not("they go on".to_owned()),
            Err(_) => Look::Done(start.elapsed()),
        })
    })
    .await;
    let host = format!("http.{}", Side::Fleet.domain());
    let path = super::http::LAST_PATH;
    let requests = crate::fleet::shop::ask_host(stage.entry, &host, path).await?.status;
    target.delete(&ObjectKey::of(&policy)?).await?;
    let (told, stopped) = (told?, stopped?);
    condition(stage, TARGET, shut, "True").await?;
    wait::until("connections to go on", super::LIMIT, || async {
        by_tcp(stage, Side::Fleet).await.map(|_| Look::Done(()))
    })
    .await?;
    let holds = told.contains("StrangerLetIn") && requests == 200;
    let stopped = json!(crate::report::seconds(stopped));
    Ok(Finding::new(holds, figures([("said", json!(told)), ("stopped_after_s", stopped)])))
}

async fn by_udp(stage: &Stage<'_>, side: Side, text: &str) -> Result<DatagramAnswer> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(at(stage, UDP, side)).await?;
    socket.send(text.as_bytes()).await?;
    let mut bytes = vec![0; 4096];
    let length = tokio::time::timeout(ANSWER, socket.recv(&mut bytes)).await;
    let length = length.context("no answer in time")??;
    serde_json::from_slice(&bytes[..length]).context("no echo answered")
}

/// Declared here and not before: until somebody consents, the entry's gateway complains of it, and no
/// fleet with a complaint is settled.
async fn told(stage: &Stage<'_>) -> Result<Finding> {
    declare_one(stage, "UDPRoute", "udp", false, &[("echo-udp", 1)]).await?;
    let plain = wait::until("UDP through plain.test", super::LIMIT, || async {
        by_udp(stage, Side::Plain, "a").await.map(Look::Done)
    })
    .await?;
    let said = wait::until("a note about UDP", super::LIMIT, || async {
        let routes = stage.fleet.routes().await?;
        let route = routes.iter().find(|route| &*route.route.name.name == "udp");
        let notes = &route.context("the hub does not list the route")?.notes;
        let note = notes.iter().find(|note| note.reason == Reason::CrossingUnsupported);
        Ok(match note {
            Some(note) => Look::Done(note.message.clone()),
            None => Look::Not(format!("notes are {notes:?}")),
        })
    })
    .await?;
    let answered = by_udp(stage, Side::Fleet, "b").await.is_ok();
    let holds = plain.identity.cluster == TARGET && !answered;
    Ok(Finding::new(holds, figures([("said", json!(said)), ("answered", json!(answered))])))
}

async fn udp(stage: &Stage<'_>) -> Result<Finding> {
    consent(stage).await.context("consenting to open doors")?;
    let mut more = Figures::new();
    let mut holds = true;
    for side in Side::BOTH {
        let what = format!("UDP through {}", side.domain());
        let echo = wait::until(&what, super::LIMIT, || async {
            by_udp(stage, side, "over").await.map(Look::Done)
        })
        .await?;
        holds &= echo.identity.cluster == TARGET
            && echo.identity.service == "echo-udp"
            && echo.text == "over";
        let said = format!("{} of {}", echo.identity.service, echo.identity.cluster);
        more.insert(side.domain().into(), json!(said));
    }
    let weak = condition(stage, TARGET, keys::CONDITION_WEAK_DOOR, "True").await?;
    holds &= weak.contains("echo-udp");
    more.insert("said".into(), json!(weak));
    Ok(Finding::new(holds, more))
}

/// As its people would: in the configuration of the target's own agent, and a restart of it.
async fn consent(stage: &Stage<'_>) -> Result<()> {
    let world = stage.fleet.world();
    let (kubelet, objects) = (world.kubelet(TARGET)?, world.member(TARGET)?.objects());
    let old = kubelet.pid(AGENT);
    let key = ObjectKey::new("v1", "ConfigMap", keys::NAMESPACE, keys::CONFIG_MAP_AGENT);
    let map = objects.get(&key).await?.context("the agent has no configuration")?;
    let text = map["data"][keys::AGENT_CONFIG].as_str().context("it has no text")?;
    let text = text.replace("weakDoors: []", "weakDoors: [Open]");
    anyhow::ensure!(text.contains("[Open]"), "the configuration has no empty weakDoors");
    objects
        .apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": keys::CONFIG_MAP_AGENT, "namespace": keys::NAMESPACE},
            "data": {keys::AGENT_CONFIG: text},
        }))
        .await?;
    let key = ObjectKey::new("apps/v1", "Deployment", keys::NAMESPACE, AGENT);
    let mut deployment = objects.get(&key).await?.context("there is no agent")?;
    deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"] = json!("open");
    objects
        .apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": AGENT, "namespace": keys::NAMESPACE},
            "spec": deployment["spec"],
        }))
        .await?;
    wait::until("the target's agent to run with its consent", super::LIMIT, || async {
        let pid = kubelet.pid(AGENT);
        Ok(match pid.is_some() && pid != old {
            true => Look::Done(()),
            false => Look::Not("it is the old one".to_owned()),
        })
    })
    .await?;
    stage.fleet.wait_settled().await.map(drop)
}
