//! t: somebody has a member's certificate for the hub, with its key.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_proto::pb;
use http::Request;
use http_body_util::Empty;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config, api::ListParams};
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::{EAST, LIMIT, WEST, is_reason, leaf_of, now_ms, told};
use crate::{
    cluster::API_PORT,
    fleet::{
        Fleet,
        impostor::{Opening, cluster_uid, enroll_request, tls_secret},
    },
    pki::Leaf,
    report::{Facts, Figures, Finding, figures},
    tls::{self, Knock},
    wait::{self, Look},
};

/// Where members' doors are.
pub(super) const DOOR_PORT: u16 = 15443;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "a stolen agent's certificate speaks for no other member, and opens nothing else";
    facts.look("t1", name, opens_nothing(fleet)).await;
    let name =
        "in its own member's place it is seen: the agent is pushed out, says so, and comes back";
    facts.look("t2", name, own_place(fleet)).await;
    Ok(())
}

/// What was tried, what came of it, and whether that is what the docs say.
struct Tried {
    figures: Figures,
    holds: bool,
}

impl Tried {
    fn note(&mut self, what: &str, holds: bool, answer: Value) {
        self.holds &= holds;
        self.figures.insert(what.to_owned(), answer);
    }
}

async fn opens_nothing(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    // The newest one, and not for long: the world goes on renewing.
    let stolen = leaf_of(fleet, EAST).await?;
    let (east, west) =
        (cluster_uid(world.member(EAST)?).await?, cluster_uid(world.member(WEST)?).await?);
    let mut tried = Tried { figures: figures([]), holds: true };
    let hellos = [
        ("a stream for another member", WEST, &west),
        ("its own name, another cluster", EAST, &west),
        ("another name, its own cluster", WEST, &east),
    ];
    for (what, member, uid) in hellos {
        let say = Opening::Hello { member: member.to_owned(), cluster_uid: uid.clone() };
        let refusal = fleet.open_stream_with(&stolen, say).await?;
        tried.note(what, is_reason(refusal.as_ref(), "WrongIdentity"), told(refusal.as_ref()));
    }
    let say = Opening::Hello { member: EAST.into(), cluster_uid: east };
    let older = fleet.open_stream_with(&stolen, say).await?;
    tried.note("a stream older than the agent's", is_reason(older.as_ref(), "OldNumber"), {
        told(older.as_ref())
    });
    let other = KeyPair::generate().context("making a key")?.serialize_pem();
    let other = fleet.renew_as(&stolen, &other).await?.err();
    tried.note("a renewal with another key", is_reason(other.as_ref(), "WrongIdentity"), {
        told(other.as_ref())
    });
    let request: pb::EnrollRequest = enroll_request("", "thief", "11111111-thief")?;
    let enrolled = fleet.enroll_as(Some(&stolen), request).await?;
    tried.note("another member, without a token", is_reason(enrolled.as_ref(), "TokenUnknown"), {
        told(enrolled.as_ref())
    });
    for path in ["/api/v1/status", "/api/v1/members", "/metrics", "/"] {
        let answer = at_agents_port(fleet, &stolen, path).await?;
        let is_no = answer == "no answer to read";
        tried.note(&format!("GET {path} at the agents' port"), is_no, json!(answer));
    }
    let api = at_api_server(fleet, &stolen).await?;
    tried.note("the hub's API server", api == "401", json!(api));
    let door = at_door(fleet, WEST, &stolen).await?;
    tried.note("west's door", door.starts_with("alert"), json!(door));
    Ok(Finding::new(tried.holds, tried.figures))
}

/// What the port of the streams says to a plain request over HTTP/2, with the certificate.
async fn at_agents_port(fleet: &Fleet<'_>, leaf: &Leaf, path: &str) -> Result<String> {
    use tower::{Service, ServiceExt};
    let mut channel = fleet.channel(Some(leaf)).await?;
    let request = Request::get(path).body(tonic::body::Body::empty())?;
    let answer = channel.ready().await?.call(request).await?;
    // What is no method of ours is answered with a gRPC status and without a body.
    let status = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok());
    Ok(match status {
        Some("12") => "no answer to read".to_owned(),
        other => format!("{} grpc-status {other:?}", answer.status()),
    })
}

/// As whom Kubernetes takes the certificate: as nobody.
async fn at_api_server(fleet: &Fleet<'_>, leaf: &Leaf) -> Result<String> {
    let local = fleet.world().hub().local()?;
    let mut config = Config::new(format!("https://{}:{API_PORT}", local.address()).parse()?);
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(local.ca_pem().as_bytes());
    config.root_cert = Some(vec![ca.context("reading the cluster's CA")?.to_vec()]);
    let encode =
        |text: &str| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text.as_bytes());
    config.auth_info.client_certificate_data = Some(encode(&leaf.cert_pem));
    config.auth_info.client_key_data = Some(encode(&leaf.key_pem).into());
    let namespaces: Api<Namespace> = Api::all(Client::try_from(config).context("a client")?);
    Ok(match namespaces.list(&ListParams::default()).await {
        Ok(list) => format!("{} namespaces", list.items.len()),
        Err(kube::Error::Api(status)) => status.code.to_string(),
        Err(error) => format!("{error:#}"),
    })
}

/// How a member's door takes a certificate: `alert …` when TLS refuses it, else a status.
pub(super) async fn at_door(fleet: &Fleet<'_>, target: &str, leaf: &Leaf) -> Result<String> {
    let cluster = fleet.world().member(target)?;
    let name = keys::door_hostname(&cluster_uid(cluster).await?);
    let ca_pem = tls_secret(cluster, keys::SECRET_CROSSING_CA).await?.cert_pem;
    let address: SocketAddr = (cluster.gateway_addr().await?, DOOR_PORT).into();
    let request = Request::get(keys::PATH_PROBE).header("host", &name).body(Empty::new())?;
    let knock = Knock { address, name: &name, ca_pem: &ca_pem, certificate: Some(leaf) };
    match knock.request(request).await {
        Ok(answer) => Ok(answer.status().as_u16().to_string()),
        Err(error) => match tls::alert(&error) {
            Some(alert) => Ok(format!("alert {alert}")),
            None => Err(error),
        },
    }
}

/// A thief with the agent's own certificate can be taken for the agent until the hub ends its stream:
/// a member that says what is not so of itself. The agent is refused meanwhile and says why.
async fn own_place(fleet: &Fleet<'_>) -> Result<Finding> {
    let start = now_ms();
    let seat = fleet.sit_in_for(EAST).await?;
    // It says that it started later than the agent, which is refused until the thief is gone.
    let state = wait::until("the agent to say who is in its place", LIMIT, || async {
        let state = agent_state(fleet, EAST).await?;
        Ok(match state.contains("OldNumber") {
            true => Look::Done(state),
            false => Look::Not(state),
        })
    })
    .await?;
    seat.abort();
    fleet.wait_settled().await?;
    let back = now_ms() - start;
    Ok(Finding::new(
        state.contains("OldNumber"),
        figures([("the_agent_says", json!(state)), ("agent_back_after_ms", json!(back))]),
    ))
}

/// What an agent writes of its stream into its own cluster.
async fn agent_state(fleet: &Fleet<'_>, member: &str) -> Result<String> {
    let key = crate::object::ObjectKey::new(
        "v1",
        "ConfigMap",
        keys::NAMESPACE,
        keys::CONFIG_MAP_AGENT_STATE,
    );
    let map = fleet.world().member(member)?.objects().get(&key).await?;
    let data = map.context("no state of the agent")?["data"].clone();
    Ok(data.to_string())
}
