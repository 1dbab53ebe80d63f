//! The harness keeps its own promises: its kubelet runs what a Deployment says, and its faults
//! break what they name and nothing else. Without these, facts about Fairlead would be worth
//! little.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, Client, Config, api::PostParams};
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    backend::Echo,
    cluster::{API_PORT, Cluster},
    echo::Answer,
    kubelet,
    load::{Load, Report},
    object::{self, ObjectKey},
    path,
    report::{Facts, Finding, figures, milliseconds},
    system,
    wait::{self, Look},
    world::World,
};

const HOST: &str = "harness.example.com";
const SHOP: &str = "harness";
const PROGRAM: &str = "fairlead-e2e";
const LIMIT: Duration = Duration::from_secs(60);
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let east = world.member("east")?;
    facts.look("k1", "a Deployment becomes Available", becomes_available(east)).await;
    facts.look("k2", "the service proxy reaches its Pod", through_proxy(east)).await;
    facts.look("k3", "its token is its ServiceAccount's", token_works(east)).await;
    facts.look("k4", "a changed Secret reaches the process", secret_is_synced(world)).await;
    facts.look("k5", "a changed template restarts it", template_restarts(world)).await;
    facts.look("k6", "a deleted Deployment stops it", deletion_stops(world)).await;

    for member in ["east", "west"] {
        set_up_entry(world, member).await?;
    }
    facts.look("f1", "a killed member refuses, and comes back", member_dies(world)).await;
    facts.look("f2", "a killed gateway refuses, and comes back", gateway_dies(world)).await;
    facts.look("f3", "traffic outlives the API server", api_dies(world)).await;
    facts.look("f4", "a cut link parts two members only", link_is_cut(world)).await;
    facts.look("f5", "an isolated member hears nothing", member_is_isolated(world)).await;
    look_at_loss(world, facts).await?;
    world.forget(&[SHOP, kubelet::NAMESPACE]).await
}

fn workload(word: &str, version: &str) -> Result<Vec<serde_json::Value>> {
    let values = [("WORD", word), ("VERSION", version)];
    object::parse(&object::fill(include_str!("../../manifests/harness-workload.yaml"), &values)?)
}

fn deployment() -> ObjectKey {
    ObjectKey::new("apps/v1", "Deployment", kubelet::NAMESPACE, "probe")
}

async fn becomes_available(east: &Cluster) -> Result<Finding> {
    let objects = east.objects();
    objects.apply(&object::namespace(kubelet::NAMESPACE)).await?;
    let start = Instant::now();
    objects.apply_all(&workload("first", "v1")?).await?;
    objects.wait_condition(&deployment(), "Available", LIMIT).await?;
    let took = milliseconds(start.elapsed());
    Ok(Finding::new(true, figures([("after_ms", json!(took))])))
}

/// Asks the Pod by way of the API server, as the CLI asks the hub.
async fn ask(cluster: &Cluster) -> Result<Answer> {
    let path =
        format!("/api/v1/namespaces/{}/services/http:probe:http/proxy/x", kubelet::NAMESPACE);
    let request = http::Request::get(path).body(Vec::new())?;
    let text = cluster.client().request_text(request).await.context("the service proxy")?;
    serde_json::from_str(&text).context("an echo's answer")
}

/// Waits until the answer satisfies a condition.
async fn wait_answer(cluster: &Cluster, wanted: impl Fn(&Answer) -> bool) -> Result<Answer> {
    wait::until("an answer through the service proxy", LIMIT, || async {
        let answer = ask(cluster).await?;
        Ok(if wanted(&answer) { Look::Done(answer) } else { Look::Not(format!("{answer:?}")) })
    })
    .await
}

fn shown(answer: &Answer, file: &str) -> String {
    answer.files.get(file).cloned().unwrap_or_default()
}

async fn through_proxy(east: &Cluster) -> Result<Finding> {
    let answer = wait_answer(east, |_| true).await?;
    let (word, namespace) = (shown(&answer, "/etc/probe/word"), shown(&answer, NAMESPACE));
    let holds = answer.identity.cluster == "east-node"
        && word == "first"
        && namespace == kubelet::NAMESPACE;
    Ok(Finding::new(holds, figures([("node", json!(answer.identity.cluster))])))
}

async fn token_works(east: &Cluster) -> Result<Finding> {
    let token = shown(&ask(east).await?, TOKEN);
    let address = east.local()?.address();
    let mut config = Config::new(format!("https://{address}:{API_PORT}").parse()?);
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(east.local()?.ca_pem().as_bytes());
    config.root_cert = Some(vec![ca.context("reading the cluster's CA")?.to_vec()]);
    config.auth_info.token = Some(token.into());
    let client = Client::try_from(config).context("a client with the Pod's token")?;
    let review = Api::<SelfSubjectReview>::all(client.clone());
    let review = review.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let name = review.status.and_then(|status| status.user_info?.username).unwrap_or_default();
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::all(client);
    let refused = matches!(
        secrets.list(&kube::api::ListParams::default()).await,
        Err(kube::Error::Api(status)) if status.is_forbidden()
    );
    let holds = refused && name == format!("system:serviceaccount:{}:probe", kubelet::NAMESPACE);
    Ok(Finding::new(holds, figures([("user", json!(name)), ("secrets_refused", json!(refused))])))
}

async fn secret_is_synced(world: &World) -> Result<Finding> {
    let east = world.member("east")?;
    let before = world.kubelet("east")?.pid(PROGRAM);
    let start = Instant::now();
    east.objects().apply_all(&workload("second", "v1")?).await?;
    wait_answer(east, |answer| shown(answer, "/etc/probe/word") == "second").await?;
    let took = milliseconds(start.elapsed());
    let same = before.is_some() && before == world.kubelet("east")?.pid(PROGRAM);
    Ok(Finding::new(same, figures([("after_ms", json!(took)), ("same_process", json!(same))])))
}

async fn template_restarts(world: &World) -> Result<Finding> {
    let east = world.member("east")?;
    let before = world.kubelet("east")?.pid(PROGRAM);
    east.objects().apply_all(&workload("second", "v2")?).await?;
    wait_answer(east, |answer| answer.identity.version == "v2").await?;
    east.objects().wait_condition(&deployment(), "Available", LIMIT).await?;
    let after = world.kubelet("east")?.pid(PROGRAM);
    Ok(Finding::new(before != after && after.is_some(), figures([])))
}

async fn deletion_stops(world: &World) -> Result<Finding> {
    let east = world.member("east")?;
    east.objects().delete(&deployment()).await?;
    wait::until("the process to end", LIMIT, || async {
        let pods = east.objects().list("v1", "Pod", "app=probe").await?;
        let pid = world.kubelet("east")?.pid(PROGRAM);
        Ok(if pid.is_none() && pods.is_empty() {
            Look::Done(())
        } else {
            Look::Not(format!("pid {pid:?}, {} Pods", pods.len()))
        })
    })
    .await?;
    Ok(Finding::new(true, figures([])))
}

/// A gateway with a route to the member's own echo.
async fn set_up_entry(world: &World, member: &str) -> Result<()> {
    world.deploy_echo(member, &Echo::new(SHOP, "cart", "v1", 1)).await?;
    let objects = world.member(member)?.objects();
    objects.apply_yaml(include_str!("../../manifests/harness-entry.yaml")).await?;
    let api = "gateway.networking.k8s.io/v1";
    let gateway = ObjectKey::new(api, "Gateway", SHOP, "public");
    objects.wait_condition(&gateway, "Programmed", LIMIT).await?;
    objects.wait_route(&ObjectKey::new(api, "HTTPRoute", SHOP, "cart"), LIMIT).await?;
    wait_served(world, member).await.map(drop)
}

async fn address(world: &World, member: &str) -> Result<SocketAddr> {
    Ok((world.member(member)?.gateway_addr().await?, 80).into())
}

async fn few_requests(world: &World, member: &str) -> Result<Report> {
    let load = Load::new(HOST, "/").entry(member, address(world, member).await?).requests(3, 3);
    Ok(load.fresh_connections().timeout(Duration::from_millis(500)).run().await)
}

/// Waits until a member's gateway answers, and says how long that took.
async fn wait_served(world: &World, member: &str) -> Result<Duration> {
    let start = Instant::now();
    wait::until(&format!("the gateway of {member} to answer"), LIMIT, || async {
        let report = few_requests(world, member).await?;
        let served = report.samples().iter().all(|sample| sample.outcome.target == member);
        Ok(if served { Look::Done(()) } else { Look::Not(format!("{:?}", report.counts())) })
    })
    .await?;
    Ok(start.elapsed())
}

fn all_failed_with(report: &Report, error: &str) -> bool {
    report.samples().iter().all(|sample| sample.outcome.error == error)
}

async fn member_dies(world: &World) -> Result<Finding> {
    world.fault().kill_member("west").await?;
    let dead = few_requests(world, "west").await?;
    let start = Instant::now();
    world.fault().restore_member("west").await?;
    wait_served(world, "west").await?;
    let back = milliseconds(start.elapsed());
    let refused = all_failed_with(&dead, "refused");
    Ok(Finding::new(refused, figures([("back_after_ms", json!(back))])))
}

async fn gateway_dies(world: &World) -> Result<Finding> {
    world.fault().kill_gateway("west").await?;
    let dead = few_requests(world, "west").await?;
    let start = Instant::now();
    world.fault().restore_gateway("west").await?;
    wait_served(world, "west").await?;
    let back = milliseconds(start.elapsed());
    let refused = all_failed_with(&dead, "refused");
    Ok(Finding::new(refused, figures([("back_after_ms", json!(back))])))
}

async fn api_dies(world: &World) -> Result<Finding> {
    let load = Load::new(HOST, "/").entry("west", address(world, "west").await?).rate(200.0);
    let running = load.start();
    world.fault().kill_api("west").await?;
    world.fault().restore_api("west").await?;
    let report = running.stop().await;
    let holds = report.failed() == 0 && report.total() > 100;
    let figures =
        figures([("requests", json!(report.total())), ("failed", json!(report.failed()))]);
    Ok(Finding::new(holds, figures))
}

/// Whether a client in one cluster's namespace is served by another's gateway.
async fn reaches(world: &World, from: &str, to: &str) -> Result<bool> {
    let from = if from == "hub" { world.hub() } else { world.member(from)? };
    let namespace = from.local()?.namespace();
    let entry = format!("--entry={to}={}", address(world, to).await?);
    let status = tokio::process::Command::new("ip")
        .args(["netns", "exec", namespace])
        .arg(path::own_program())
        .args(["load", "-n", "2", "--timeout", "0.5", "--host", HOST, &entry])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .context("starting a load in a namespace")?;
    Ok(status.success())
}

async fn link_is_cut(world: &World) -> Result<Finding> {
    let before = reaches(world, "west", "east").await? && reaches(world, "east", "west").await?;
    world.fault().cut("west", "east")?;
    let during = reaches(world, "west", "east").await? || reaches(world, "east", "west").await?;
    let others = reaches(world, "hub", "east").await? && reaches(world, "hub", "west").await?;
    world.fault().mend("west", "east")?;
    // One direction is enough to part two that need answers from each other.
    world.fault().cut_one_way("east", "west")?;
    let one_way = reaches(world, "west", "east").await?;
    world.fault().mend_one_way("east", "west")?;
    let after = reaches(world, "west", "east").await? && reaches(world, "east", "west").await?;
    let figures = figures([
        ("before", json!(before)),
        ("during", json!(during)),
        ("others", json!(others)),
        ("one_way", json!(one_way)),
        ("after", json!(after)),
    ]);
    Ok(Finding::new(before && !during && others && !one_way && after, figures))
}

async fn member_is_isolated(world: &World) -> Result<Finding> {
    world.fault().isolate("west")?;
    let report = few_requests(world, "west").await?;
    let others = reaches(world, "hub", "east").await?;
    world.fault().rejoin("west")?;
    let back = wait_served(world, "west").await?;
    let silent = all_failed_with(&report, "timeout");
    let figures =
        figures([("others", json!(others)), ("back_after_ms", json!(milliseconds(back)))]);
    Ok(Finding::new(silent && others, figures))
}

/// Loss needs something of the kernel or of the machine that may not be there.
async fn look_at_loss(world: &World, facts: &mut Facts) -> Result<()> {
    let (id, name) = ("f6", "lost packets are missed");
    let result = world.fault().lose("west", 1.0);
    if result.is_err() && !system::answers(&["nft", "--version"]) {
        facts.skip(id, name, "this kernel has no netem and this machine no nft");
    } else {
        let look = async {
            result?;
            packets_are_lost(world).await
        };
        facts.look(id, name, look).await;
    }
    world.fault().calm("west")
}

async fn packets_are_lost(world: &World) -> Result<Finding> {
    let report = few_requests(world, "west").await?;
    world.fault().calm("west")?;
    let back = wait_served(world, "west").await?;
    let figures = figures([("back_after_ms", json!(milliseconds(back)))]);
    Ok(Finding::new(report.failed() == report.total(), figures))
}
