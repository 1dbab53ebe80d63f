//! Names: every agent answers for the zone of a DNSPolicy, by the policy, over members that can be
//! reached, with and without a hub.
//!
//! Facts are numbered as in the plan: a what every agent answers, b by which policy, c what is left of
//! a member that dies, d names that a DNS provider publishes, e a zone that is delegated to the agents, f doors
//! that have names, g names of the clusterset, h what the hub sees of it. Leaves the world as it was.

mod answer;
mod dead;
mod delegated;
mod door;
mod forward;
mod inside;
mod internet;
mod published;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use self::{internet::Internet, published::ExternalDns};
use super::{
    and_clear,
    spine::{EAST, SOUTH, WEST, clean_up},
};
use crate::{
    ask::{Question, Resolver},
    fleet::{Fleet, program::build_programs, shop},
    report::Facts,
    system, tool,
    wait::{self, Look},
    world::World,
};

const ZONE: &str = "example.com";
const MEMBERS: [&str; 3] = [EAST, WEST, SOUTH];
/// The agents' port.
const DNS_PORT: u16 = 5353;
/// How long the fleet may take to publish a change.
const PUBLISH_LIMIT: Duration = Duration::from_secs(30);

/// Programs that other scenarios do without.
struct Tools {
    external_dns: PathBuf,
    endpoint_crd: PathBuf,
    coredns: PathBuf,
}

impl Tools {
    fn ready() -> Result<Self> {
        system::ensure(system::NAMES)?;
        build_programs()?;
        Ok(Self {
            external_dns: tool::ensure_external_dns()?,
            endpoint_crd: tool::ensure_endpoint_crd()?,
            coredns: tool::ensure_coredns()?,
        })
    }
}

/// The fleet, and where its gateways and DNS servers are.
struct Stage<'w> {
    fleet: Fleet<'w>,
    addresses: BTreeMap<&'static str, IpAddr>,
    /// Of the agents themselves: no kube-proxy leads from a Service to them.
    servers: BTreeMap<&'static str, SocketAddr>,
    tools: Tools,
}

/// The whole story.
pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let tools = tokio::task::spawn_blocking(Tools::ready).await??;
    let (mut addresses, mut servers) = (BTreeMap::new(), BTreeMap::new());
    for member in MEMBERS {
        let cluster = world.member(member)?;
        addresses.insert(member, IpAddr::from(cluster.gateway_addr().await?));
        servers.insert(member, SocketAddr::new(cluster.local()?.pods.address.into(), DNS_PORT));
    }
    let stage = Stage { fleet: Fleet::new(world)?, addresses, servers, tools };
    and_clear(tell(&stage, facts), clean_up(&stage.fleet)).await
}

async fn tell(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    fleet.init().await?;
    fleet.join_all().await?;
    for member in MEMBERS {
        // What the chart makes with dns.service.enabled.
        let service = dns_service();
        fleet.world().member(member)?.objects().apply(&service).await?;
    }
    fleet.open_shop(WEST).await.context("opening the shop")?;
    fleet.wait_live(shop::CART).await?;
    fleet.wait_settled().await?;
    answer::play(stage, facts).await?;
    inside::play(stage, facts).await?;
    forward::play(stage, facts).await?;
    door::play(stage, facts).await?;
    let internet = Internet::start(fleet.world()).await.context("a small internet")?;
    let provided = provide(stage, &internet, facts).await;
    let stopped = internet.stop().await;
    provided.and(stopped)?;
    dead::play(stage, facts).await
}

/// What needs an internet: a DNS provider, and a parent zone.
async fn provide(stage: &Stage<'_>, internet: &Internet, facts: &mut Facts) -> Result<()> {
    let external = ExternalDns::start(stage, internet).await?;
    delegated::play(stage, internet, facts).await?;
    let played = published::play(stage, internet, &external, facts).await;
    external.stop().await;
    played
}

impl Stage<'_> {
    fn server(&self, member: &str) -> SocketAddr {
        self.servers[member]
    }

    fn addresses_of(&self, members: &[&str]) -> BTreeSet<IpAddr> {
        members.iter().map(|member| self.addresses[member]).collect()
    }

    /// Writes the one policy of the story.
    async fn declare(&self, strategy: Value) -> Result<()> {
        let mut spec = json!({
            "targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "Gateway", "name": "public"}],
            "zone": ZONE, "ttlSeconds": 5,
        });
        for (field, value) in strategy.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let policy = json!({
            "apiVersion": keys::API_VERSION, "kind": "DNSPolicy",
            "metadata": {"name": "names", "namespace": shop::GATEWAY_NAMESPACE},
            "spec": spec,
        });
        self.fleet.world().hub().objects().apply(&policy).await?;
        Ok(())
    }

    /// Waits until these agents name exactly these members.
    async fn wait_named(&self, at: &[&str], question: &Question, named: &[&str]) -> Result<()> {
        let wanted = self.addresses_of(named);
        for member in at {
            let what = format!("{member} to name {named:?}");
            wait::until(&what, PUBLISH_LIMIT, || async {
                let found = Resolver::to(self.server(member)).await?.addresses(question).await?;
                Ok(match found == wanted {
                    true => Look::Done(()),
                    false => Look::Not(format!("it names {found:?}")),
                })
            })
            .await?;
        }
        Ok(())
    }
}

fn dns_service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": keys::SERVICE_DNS, "namespace": keys::NAMESPACE,
            "labels": {keys::PART_OF: keys::FAIRLEAD},
        },
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app.kubernetes.io/name": keys::AGENT},
            "ports": [
                {"name": "dns-udp", "port": 53, "targetPort": DNS_PORT, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "targetPort": DNS_PORT, "protocol": "TCP"},
            ],
        },
    })
}
