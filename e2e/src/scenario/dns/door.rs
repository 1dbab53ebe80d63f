//! f: a member's door has a name; what it stands for changes, and the server that knows it fails.
//! h: the hub looks whether the world sees what is published.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::{PUBLISH_LIMIT, Stage};
use crate::{
    cluster::Cluster,
    fleet::{entry, shop},
    load::Load,
    object::ObjectKey,
    report::{Facts, Finding, figures, seconds},
    scenario::spine::{EAST, WEST},
    wait::{self, Look},
};

const NAME: &str = "west.doors.test";
/// The shortest that agents go by.
const TTL_S: u32 = 5;
/// Longer than a few TTLs.
const OUTAGE: Duration = Duration::from_secs(16);
const RATE: f64 = 50.0;

/// What the stub says of [`NAME`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Address(Ipv4Addr),
    NoSuchName,
    Failure,
}

/// A name server for one name, on the machine.
struct Stub {
    at: SocketAddr,
    says: Arc<Mutex<Says>>,
    task: JoinHandle<()>,
}

impl Stub {
    async fn start(address: Ipv4Addr, says: Says) -> Result<Self> {
        let socket = UdpSocket::bind((address, 0)).await.context("the stub's socket")?;
        let at = socket.local_addr()?;
        let says = Arc::new(Mutex::new(says));
        let task = tokio::spawn(serve(socket, Arc::clone(&says)));
        Ok(Self { at, says, task })
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, says: Arc<Mutex<Says>>) {
    let mut buffer = [0; 2_048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let says = *says.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(query) = Message::from_vec(&buffer[..len]) else { continue };
        if let Some(bytes) = answer(&query, says)
            && socket.send_to(&bytes, from).await.is_err()
        {
            return;
        }
    }
}

fn answer(query: &Message, says: Says) -> Option<Vec<u8>> {
    let asked = query.queries.first()?;
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(asked.clone());
    let name = || asked.name.clone();
    let start = RData::SOA(SOA::new(name(), name(), 1, 60, 60, 60, TTL_S));
    match (says, asked.query_type) {
        (Says::Failure, _) => answer.metadata.response_code = ResponseCode::ServFail,
        (Says::Address(ip), RecordType::A) => {
            answer.answers.push(Record::from_rdata(name(), TTL_S, RData::A(A(ip))));
        }
        (says, _) => {
            if says == Says::NoSuchName {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.authorities.push(Record::from_rdata(name(), TTL_S, start));
        }
    }
    answer.to_vec().ok()
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let world = stage.fleet.world();
    let IpAddr::V4(west) = stage.addresses[WEST] else { anyhow::bail!("no IPv4") };
    let stub = Stub::start(world.host_address()?, Says::Address(west)).await?;
    let resolver = stub.at.to_string();
    set_env(world.member(EAST)?, "fairlead-agent", "agent", &[("FAIRLEAD_RESOLVER", &resolver)])
        .await?;
    stage.fleet.wait_settled().await?;
    facts.look("f1", "a door with a name is crossed", named(stage, west)).await;
    facts.look("f2", "the resolver fails: nothing changes", outage(stage, &stub, west)).await;
    facts.look("f3", "the name is gone, then back", gone(stage, &stub, west)).await;
    set_door(stage, Value::Null).await?;
    set_env(world.member(EAST)?, "fairlead-agent", "agent", &[]).await?;
    stage.fleet.wait_settled().await?;
    facts.look("h1", "the hub sees through a resolver what is published", visible(stage)).await;
    Ok(())
}

/// Sets variables of a container; none takes ours out again.
async fn set_env(
    cluster: &Cluster,
    deployment: &str,
    container: &str,
    variables: &[(&str, &str)],
) -> Result<()> {
    const OURS: [&str; 3] =
        ["FAIRLEAD_RESOLVER", "FAIRLEAD_DNS_RESOLVER", "FAIRLEAD_DNS_CHECK_SECONDS"];
    let env = |name: &str| match variables.iter().find(|(variable, _)| *variable == name) {
        Some((name, value)) => json!({"name": name, "value": value}),
        None => json!({"name": name, "$patch": "delete"}),
    };
    let env: Vec<Value> = OURS.iter().map(|name| env(name)).collect();
    let containers = json!([{"name": container, "env": env}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let api: Api<Deployment> = Api::namespaced(cluster.client(), keys::NAMESPACE);
    let patched = api.patch(deployment, &PatchParams::default(), &Patch::Strategic(&patch)).await;
    patched.with_context(|| format!("variables of {deployment}"))?;
    Ok(())
}

async fn set_door(stage: &Stage<'_>, addresses: Value) -> Result<()> {
    let patch = json!({"spec": {"eastWest": {"addresses": addresses}}});
    let kind = GroupVersionKind::gvk(keys::GROUP, keys::VERSION, "MemberCluster");
    let resource = ApiResource::from_gvk_with_plural(&kind, "memberclusters");
    let api: Api<DynamicObject> = Api::all_with(stage.fleet.world().hub().client(), &resource);
    api.patch(WEST, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Addresses in east's slices of west's door.
async fn slice(stage: &Stage<'_>) -> Result<BTreeSet<IpAddr>> {
    let name = keys::member_slice(WEST, "v4");
    let key = ObjectKey::new("discovery.k8s.io/v1", "EndpointSlice", keys::NAMESPACE, &name);
    let slice = stage.fleet.world().member(EAST)?.objects().get(&key).await?;
    let slice = slice.with_context(|| format!("east has no slice {name}"))?;
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let first = endpoints.iter().filter_map(|e| e["addresses"][0].as_str()?.parse().ok());
    Ok(first.collect())
}

async fn wait_slice(stage: &Stage<'_>, wanted: &[Ipv4Addr]) -> Result<Duration> {
    let wanted: BTreeSet<IpAddr> = wanted.iter().map(|ip| IpAddr::from(*ip)).collect();
    let start = Instant::now();
    wait::until("east's slice to follow", Duration::from_secs(60), || async {
        let found = slice(stage).await?;
        Ok(match found == wanted {
            true => Look::Done(start.elapsed()),
            false => Look::Not(format!("it has {found:?}")),
        })
    })
    .await
}

/// Requests that east's gateway answers by crossing to west.
async fn crossing(stage: &Stage<'_>) -> Result<Load> {
    let east = entry(stage.fleet.world().member(EAST)?).await?;
    Ok(Load::new(shop::HOST, shop::CATALOG).entry(EAST, east))
}

async fn wait_crossed(stage: &Stage<'_>) -> Result<()> {
    wait::until("requests to cross", PUBLISH_LIMIT, || async {
        let report = crossing(stage).await?.requests(20, 4).run().await;
        Ok(match report.failed() {
            0 => Look::Done(()),
            failed => Look::Not(format!("{failed} of {} failed", report.total())),
        })
    })
    .await
}

async fn named(stage: &Stage<'_>, west: Ipv4Addr) -> Result<Finding> {
    let load = crossing(stage).await?.rate(RATE).start();
    set_door(stage, json!([NAME])).await?;
    stage.fleet.wait_settled().await?;
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", WEST);
    let member = stage.fleet.world().hub().objects().get(&key).await?;
    let spec = member.context("west is gone")?["spec"]["eastWest"].clone();
    wait_slice(stage, &[west]).await?;
    wait_crossed(stage).await?;
    let report = load.stop().await;
    Ok(Finding::new(
        report.failed() == 0,
        figures([
            ("east_west", spec),
            ("requests", json!(report.total())),
            ("failed", json!(report.failed())),
        ]),
    ))
}

async fn outage(stage: &Stage<'_>, stub: &Stub, west: Ipv4Addr) -> Result<Finding> {
    stub.say(Says::Failure);
    let report = crossing(stage).await?.rate(RATE).lasting(OUTAGE).start().finish().await;
    let stands = slice(stage).await? == [IpAddr::from(west)].into();
    stub.say(Says::Address(west));
    Ok(Finding::new(
        stands && report.failed() == 0,
        figures([
            ("outage_s", json!(seconds(OUTAGE))),
            ("requests", json!(report.total())),
            ("failed", json!(report.failed())),
        ]),
    ))
}

async fn gone(stage: &Stage<'_>, stub: &Stub, west: Ipv4Addr) -> Result<Finding> {
    stub.say(Says::NoSuchName);
    let gone = wait_slice(stage, &[]).await?;
    stub.say(Says::Address(west));
    let back = wait_slice(stage, &[west]).await?;
    wait_crossed(stage).await?;
    Ok(Finding::new(
        true,
        figures([("gone_after_s", json!(seconds(gone))), ("back_after_s", json!(seconds(back)))]),
    ))
}

/// An agent's server plays the resolver: it knows the zone, as the world's resolvers do by delegation.
async fn visible(stage: &Stage<'_>) -> Result<Finding> {
    let hub = stage.fleet.world().hub();
    let server = stage.server(EAST).to_string();
    let ask = [("FAIRLEAD_DNS_RESOLVER", server.as_str()), ("FAIRLEAD_DNS_CHECK_SECONDS", "2")];
    set_env(hub, "fairlead-hub", "hub", &ask).await?;
    let key = ObjectKey::new(keys::API_VERSION, "DNSPolicy", shop::GATEWAY_NAMESPACE, "names");
    let message = wait::until("DNSVisible", Duration::from_secs(90), || async {
        let policy = hub.objects().get(&key).await?.context("there is no policy")?;
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == keys::CONDITION_DNS_VISIBLE);
        Ok(match found {
            Some(found) if found["status"] == "True" => Look::Done(found["message"].clone()),
            other => Look::Not(format!("it is {other:?}")),
        })
    })
    .await?;
    set_env(hub, "fairlead-hub", "hub", &[]).await?;
    stage.fleet.wait_settled().await?;
    Ok(Finding::new(true, figures([("message", message)])))
}
