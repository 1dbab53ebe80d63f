//! Certificates that each member has of its own, of one name, as an issuer in each would make them: TLS is
//! ended with them at every entry, and what is behind may be in another member.
//!
//! ```text
//!  client, believes east's CA ─TLS▶ east:7005 ══ door ══▶ west: echo
//!  client, believes west's CA ─TLS▶ west:7005 ──────────▶ west: echo
//! ```
//!
//! The Gateway is made in members that have none, so that what it asks of them is looked at here, too.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::{ENTRY, GATEWAY_API, GATEWAY_NAMESPACE, LIMIT, Side, Stage, TARGET};
use crate::{
    cluster::Cluster,
    echo::Answer,
    fleet::{entry, shop},
    http1,
    object::{self, ObjectKey},
    pki::{self, Authority, Leaf},
    report::{Facts, Figures, Finding, figures, seconds},
    tls::Knock,
    wait::{self, Look},
    world::World,
};

const PORT: u16 = 7005;
const ANSWER: Duration = Duration::from_secs(2);
/// The listener, the Secret, the route and its host.
const NAME: &str = "own";
const LABEL: (&str, &str) = ("routes.test/team", "shop");
const ANNOTATION: (&str, &str) = ("routes.test/size", "small");

/// Who signs the certificates of each member.
pub(super) type Authorities = BTreeMap<String, Authority>;

fn host() -> String {
    format!("{NAME}.{}", Side::Fleet.domain())
}

/// The listener, and what the Gateway asks of its infrastructure.
pub(super) fn complete(gateway: &mut Value) -> Result<()> {
    let listeners = gateway["spec"]["listeners"].as_array_mut().context("listeners")?;
    listeners.push(json!({
        "name": NAME, "port": PORT, "protocol": "HTTPS", "hostname": host(),
        "tls": {"mode": "Terminate", "certificateRefs": [{"name": NAME}]},
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }));
    gateway["spec"]["infrastructure"] =
        json!({"labels": {LABEL.0: LABEL.1}, "annotations": {ANNOTATION.0: ANNOTATION.1}});
    Ok(())
}

/// A CA and a certificate of its own for each member.
pub(super) async fn set_up(world: &World) -> Result<Authorities> {
    let mut authorities = Authorities::new();
    for member in world.members() {
        let authority = Authority::new(member.name())?;
        member.objects().apply(&object::namespace(GATEWAY_NAMESPACE)).await?;
        renew(member, &authority).await?;
        authorities.insert(member.name().to_owned(), authority);
    }
    Ok(authorities)
}

/// Gives a member a new certificate, as its issuer does; gives what clients see of it.
async fn renew(member: &Cluster, authority: &Authority) -> Result<String> {
    let Leaf { cert_pem, key_pem } = authority.issue(pki::Side::Server, NAME, &[], &[&host()])?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": NAME, "namespace": GATEWAY_NAMESPACE},
        "stringData": {"tls.crt": cert_pem, "tls.key": key_pem},
    });
    member.objects().apply(&secret).await?;
    let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes()).context("reading a leaf")?;
    Ok(hex(&leaf))
}

pub(super) async fn declare(stage: &Stage<'_>) -> Result<()> {
    let rules = json!([{"backendRefs": [{"name": "echo"}]}]);
    let mut route = super::route("HTTPRoute", NAME, NAME, &rules, Side::Fleet);
    route["spec"]["parentRefs"][0]["sectionName"] = json!(NAME);
    stage.fleet.world().hub().objects().apply(&route).await.map(drop)
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    let name =
        "a Gateway is made where none is, with listeners, certificates by name, infrastructure";
    facts.look("k1", name, made(stage)).await;
    let name = "TLS ends at each entry with the member's own certificate, west answers";
    facts.look("k2", name, each_its_own(stage)).await;
    let name = "a member without the Secret says so and serves nothing there, all else goes on";
    facts.look("k3", name, missing(stage)).await;
    let name = "a certificate that is renewed is shown, no request fails, Fairlead writes nothing";
    facts.look("k4", name, renewed(stage)).await;
}

async fn made(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    let name = format!("{GATEWAY_NAMESPACE}-global");
    for member in stage.fleet.world().members() {
        let key = ObjectKey::new(GATEWAY_API, "Gateway", GATEWAY_NAMESPACE, &name);
        let gateway = member.objects().get(&key).await?.context("no Gateway was made")?;
        let spec = &gateway["spec"];
        let listeners = spec["listeners"].as_array().cloned().unwrap_or_default();
        let own = listeners.iter().find(|listener| listener["name"] == NAME);
        let secret = own.map(|own| own["tls"]["certificateRefs"][0]["name"].clone());
        holds &= secret == Some(json!(NAME))
            && spec["infrastructure"]["labels"][LABEL.0] == LABEL.1
            && spec["infrastructure"]["annotations"][ANNOTATION.0] == ANNOTATION.1
            && spec["gatewayClassName"] == crate::gateway::CLASS;
        more.insert(member.name().into(), json!(listeners.len()));
    }
    Ok(Finding::new(holds, more))
}

fn hex(certificate: &CertificateDer<'_>) -> String {
    certificate.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks an entry as somebody who believes one CA; the certificate that was shown, and the answer.
async fn ask(stage: &Stage<'_>, member: &str, ca: &str) -> Result<(String, Answer)> {
    let address = entry(stage.fleet.world().member(member)?).await?.ip();
    let host = host();
    let ca_pem = stage.authorities.get(ca).context("a CA")?.cert_pem();
    let knock =
        Knock { address: SocketAddr::new(address, PORT), name: &host, ca_pem, certificate: None };
    let all = async {
        let stream = knock.connect().await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let shown = hex(shown.context("no certificate was shown")?);
        let request = Request::get("/own").header("host", &host).body(Empty::<Bytes>::new())?;
        let answer = http1::send_over(stream, request).await?;
        ensure!(answer.status() == 200, "answered {}", answer.status());
        let echo = serde_json::from_slice(answer.body()).context("no echo answered")?;
        Ok((shown, echo))
    };
    tokio::time::timeout(ANSWER, all).await.context("no answer in time")?
}

/// What is in the member's Secret, as clients see it.
async fn certificate_of(stage: &Stage<'_>, member: &str) -> Result<String> {
    let key = ObjectKey::new("v1", "Secret", GATEWAY_NAMESPACE, NAME);
    let secret = stage.fleet.world().member(member)?.objects().get(&key).await?;
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(secret.context("no Secret")?)?;
    let data = secret.data.context("no data")?;
    let text = &data.get("tls.crt").context("no certificate")?.0;
    Ok(hex(&CertificateDer::from_pem_slice(text).context("reading a leaf")?))
}

async fn each_its_own(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for (member, other) in [(ENTRY, TARGET), (TARGET, ENTRY)] {
        let what = format!("TLS at {member}");
        let (shown, echo) = wait::until(&what, LIMIT, || async {
            ask(stage, member, member).await.map(Look::Done)
        })
        .await?;
        // Who believes the other member's CA only is shown the same, and goes.
        let stranger = ask(stage, member, other).await.is_err();
        holds &= shown == certificate_of(stage, member).await?
            && stranger
            && echo.identity.cluster == TARGET
            && echo.identity.service == "echo";
        more.insert(member.into(), json!(format!("answered by {}", echo.identity.cluster)));
    }
    Ok(Finding::new(holds, more))
}

/// What the hub's Gateway says of the listener.
async fn programmed(stage: &Stage<'_>) -> Result<(bool, String)> {
    let key = ObjectKey::new(GATEWAY_API, "Gateway", GATEWAY_NAMESPACE, GATEWAY_NAMESPACE);
    let gateway = stage.fleet.hub().objects().get(&key).await?.context("no Gateway")?;
    let listeners = gateway["status"]["listeners"].as_array().cloned().unwrap_or_default();
    let listener = listeners.iter().find(|status| status["name"] == NAME).context("no listener")?;
    let conditions = listener["conditions"].as_array().cloned().unwrap_or_default();
    let condition = conditions.iter().find(|condition| condition["type"] == "Programmed");
    let condition = condition.context("no condition")?;
    let message = condition["message"].as_str().unwrap_or_default().to_owned();
    Ok((condition["status"] == "True", message))
}

async fn missing(stage: &Stage<'_>) -> Result<Finding> {
    let east = stage.fleet.world().member(ENTRY)?;
    east.objects().delete(&ObjectKey::new("v1", "Secret", GATEWAY_NAMESPACE, NAME)).await?;
    let start = Instant::now();
    let told = wait::until("the missing certificate to be told", LIMIT, || async {
        let (is_programmed, said) = programmed(stage).await?;
        let names_it = said.contains(ENTRY) && said.contains("InvalidCertificateRef");
        // The other member serves it on.
        Ok(if names_it && is_programmed { Look::Done(said) } else { Look::Not(said) })
    })
    .await;
    let told_after = start.elapsed();
    let nothing = wait::until("TLS at east to end", LIMIT, || async {
        Ok(match ask(stage, ENTRY, ENTRY).await {
            Ok(_) => Look::Not("it is still served".to_owned()),
            Err(error) => Look::Done(format!("{error:#}")),
        })
    })
    .await;
    let stranger = {
        let host = host();
        let address = SocketAddr::new(stage.entry.ip(), PORT);
        let ca_pem = stage.authorities.get(TARGET).context("a CA")?.cert_pem();
        let knock = Knock { address, name: &host, ca_pem, certificate: None };
        let request = Request::get("/own").header("host", &host).body(Empty::<Bytes>::new())?;
        knock.request_unchecked(request).await.is_err()
    };
    let other = ask(stage, TARGET, TARGET).await.is_ok();
    let path = super::http::LAST_PATH;
    let plain =
        shop::ask_host(stage.entry, &format!("http.{}", Side::Fleet.domain()), path).await?;
    // Whatever was seen, the world goes on with a certificate.
    let authority = stage.authorities.get(ENTRY).context("a CA")?;
    renew(east, authority).await?;
    wait::until("TLS at east to come back", LIMIT, || async {
        ask(stage, ENTRY, ENTRY).await.map(Look::Done)
    })
    .await?;
    wait::until("the listener to be programmed everywhere", LIMIT, || async {
        let (is_programmed, said) = programmed(stage).await?;
        Ok(if is_programmed && said.is_empty() { Look::Done(()) } else { Look::Not(said) })
    })
    .await?;
    stage.fleet.wait_settled().await?;
    let (told, nothing) = (told?, nothing?);
    let holds = stranger && other && plain.status == 200 && plain.target() == TARGET;
    Ok(Finding::new(
        holds,
        figures([
            ("told_after_s", json!(seconds(told_after))),
            ("said", json!(told)),
            ("client", json!(nothing)),
        ]),
    ))
}

async fn renewed(stage: &Stage<'_>) -> Result<Finding> {
    let numbers = || async {
        let view = stage.fleet.member_view(ENTRY).await?;
        anyhow::Ok(format!("{:?}", view.plan_wanted))
    };
    let before = numbers().await?;
    let authority = stage.authorities.get(ENTRY).context("a CA")?;
    let renewed = renew(stage.fleet.world().member(ENTRY)?, authority).await?;
    let start = Instant::now();
    let (mut asked, mut failed) = (0_u32, 0_u32);
    let took = loop {
        asked += 1;
        match ask(stage, ENTRY, ENTRY).await {
            Ok((shown, _)) if shown == renewed => break start.elapsed(),
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        ensure!(start.elapsed() < LIMIT, "the old certificate is still shown");
    };
    let holds = failed == 0 && numbers().await? == before;
    Ok(Finding::new(
        holds,
        figures([
            ("shown_after_s", json!(seconds(took))),
            ("asked", json!(asked)),
            ("failed", json!(failed)),
        ]),
    ))
}
