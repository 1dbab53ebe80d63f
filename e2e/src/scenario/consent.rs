//! Consent: nothing reaches a service that was not exported, or across namespaces without a grant,
//! whatever somebody writes, sends or says. Every attempt is made with many requests, beside one that
//! is allowed, so that a refusal is one and not a route that is not live yet.
//!
//! ```text
//!  client ─▶ east (thief: a namespace without any grant)
//!              ║ member-west
//!            west: shop/cart, shop/catalog exported; shop/secret not; vault/ledger exported in vault
//!  south: lies, and is removed at the end
//! ```
//!
//! Letters: n routes of users that name what is ours, h headers of clients, d at the door itself, l a
//! member that lies, w what is withdrawn. Leaves the world as it was.

mod door;
mod header;
mod liar;
mod own_route;
mod withdrawn;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use fairlead_crds::keys;
use fairlead_model::health::MemberState;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{
    and_clear,
    spine::{EAST, GATEWAY_API, SOUTH, WEST, clean_up, route, route_key},
};
use crate::{
    backend::Echo,
    echo::Answer,
    fleet::{Fleet, entry, shop},
    object::{self, ObjectKey},
    report::{Facts, Figures, Finding},
    wait::{self, Look},
    world::World,
};

const LIMIT: Duration = Duration::from_secs(60);
/// A namespace of somebody who was granted nothing.
const THIEF: &str = "thief";
/// A namespace with a service that is exported there, and granted to the shop for a while.
const VAULT: &str = "vault";
const LEDGER: &str = "ledger";
const SECRET: &str = "secret";
/// Attempts of one kind.
const ATTEMPTS: usize = 50;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    and_clear(tell(&fleet, facts), clear(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.init().await?;
    fleet.join_all().await?;
    fleet.open_shop(WEST).await?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    fleet.wait_settled().await?;
    set_up(fleet).await.context("setting up what nobody may reach")?;
    let name = "a service that nobody exported is reached by no entry, its own member's included";
    facts.look("a1", name, not_exported(fleet)).await;
    own_route::play(fleet, facts).await?;
    header::play(fleet, facts).await?;
    door::play(fleet, facts).await?;
    liar::play(fleet, facts).await;
    withdrawn::play(fleet, facts).await;
    Ok(())
}

async fn set_up(fleet: &Fleet<'_>) -> Result<()> {
    let world = fleet.world();
    for cluster in world.clusters() {
        cluster.objects().apply(&object::namespace(VAULT)).await?;
    }
    let west = world.member(WEST)?.objects();
    world.deploy_echo(WEST, &Echo::new(shop::NAMESPACE, SECRET, "v1", 1)).await?;
    world.deploy_echo(WEST, &Echo::new(VAULT, LEDGER, "v1", 1)).await?;
    let export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": LEDGER, "namespace": VAULT},
    });
    west.apply(&export).await?;
    world.member(EAST)?.objects().apply(&object::namespace(THIEF)).await?;
    world.deploy_echo(EAST, &Echo::new(THIEF, "own", "v1", 1)).await?;
    let hub = world.hub().objects();
    hub.apply(&route(SECRET, "/secret", &[(SECRET, 1)], &Value::Null)).await?;
    hub.apply(&ledger_route()).await?;
    hub.apply(&route("root", "/", &[("catalog", 1)], &Value::Null)).await?;
    Ok(())
}

/// Waits until every member is up and has its plan. Gateways go on complaining of routes that lead
/// nowhere, so that the fleet never settles here.
async fn wait_up(fleet: &Fleet<'_>) -> Result<()> {
    wait::until("all members to be up", LIMIT, || async {
        let status = fleet.status().await?;
        let is_up = |member: &fairlead_model::view::MemberView| {
            member.state == MemberState::Up && member.plan_wanted == member.plan_applied
        };
        let up = status.members.iter().filter(|member| is_up(member)).count();
        let whole = status.held.is_empty() && up == fleet.world().members().count();
        Ok(if whole { Look::Done(()) } else { Look::Not(format!("{up} are")) })
    })
    .await
}

/// From the shop to a service of another namespace.
fn ledger_route() -> Value {
    let mut asked = route(LEDGER, "/ledger", &[(LEDGER, 1)], &Value::Null);
    asked["spec"]["rules"][0]["backendRefs"][0]["namespace"] = json!(VAULT);
    asked
}

/// Grants the shop's HTTPRoutes what a kind of reference names in the vault.
fn grant(group: &str, kind: &str) -> Value {
    json!({
        "apiVersion": GATEWAY_API, "kind": "ReferenceGrant",
        "metadata": {"name": "to-shop", "namespace": VAULT},
        "spec": {
            "from": [{
                "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": shop::NAMESPACE,
            }],
            "to": [{"group": group, "kind": kind, "name": LEDGER}],
        },
    })
}

async fn clear(fleet: &Fleet<'_>) -> Result<()> {
    let world = fleet.world();
    for cluster in world.clusters() {
        for name in [THIEF, VAULT] {
            cluster.objects().delete(&ObjectKey::new("v1", "Namespace", "", name)).await?;
        }
    }
    clean_up(fleet).await?;
    world.forget(&[THIEF, VAULT]).await
}

/// What became of some attempts: answers by status, and by the service that an echo said it is.
#[derive(Debug, Default)]
struct Tries {
    answers: BTreeMap<String, usize>,
}

impl Tries {
    fn count(&mut self, status: u16, echo: Option<&Answer>) {
        let service = echo.map_or("", |echo| echo.identity.service.as_str());
        let cluster = echo.map_or("", |echo| echo.identity.cluster.as_str());
        let key = format!("{status} {service} {cluster}").trim_end().to_owned();
        *self.answers.entry(key).or_default() += 1;
    }

    fn failed(&mut self, why: &str) {
        *self.answers.entry(why.to_owned()).or_default() += 1;
    }

    /// Nothing but answers like these.
    fn are(&self, wanted: &[&str]) -> bool {
        !self.answers.is_empty() && self.answers.keys().all(|key| wanted.contains(&key.as_str()))
    }

    fn told(&self) -> Value {
        json!(format!("{:?}", self.answers))
    }
}

/// Asks a gateway again and again.
async fn attempt(
    address: SocketAddr,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Tries> {
    let mut tries = Tries::default();
    for _ in 0..ATTEMPTS {
        let mut request = Request::get(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        match crate::http1::send(address, request).await {
            Ok(answer) => {
                let echo: Option<Answer> = serde_json::from_slice(answer.body()).ok();
                tries.count(answer.status().as_u16(), echo.as_ref());
            }
            Err(error) => tries.failed(&format!("{error:#}")),
        }
    }
    Ok(tries)
}

/// Asks every entry.
async fn attempt_everywhere(
    fleet: &Fleet<'_>,
    path: &str,
    wanted: &[&str],
    more: &mut Figures,
) -> Result<bool> {
    let mut holds = true;
    for (name, address) in fleet.entries().await? {
        let tries = attempt(address, shop::HOST, path, &[]).await?;
        holds &= tries.are(wanted);
        more.insert(format!("{path} through {name}"), tries.told());
    }
    Ok(holds)
}

/// The capability that a rendered route of a member sends along to another member's door.
async fn capability(fleet: &Fleet<'_>, entry: &str, name: &str, target: &str) -> Result<String> {
    let key = route_key(&format!("{name}-global"));
    let route = fleet.world().member(entry)?.objects().get(&key).await?;
    let route = route.with_context(|| format!("{entry} has no {key}"))?;
    let service = keys::member_object(target);
    let rules = route["spec"]["rules"].as_array().cloned().unwrap_or_default();
    let mut backends = rules.iter().filter_map(|rule| rule["backendRefs"].as_array()).flatten();
    let backend = backends.find(|backend| backend["name"] == service.as_str());
    let backend = backend.with_context(|| format!("{key} does not name {service}"))?;
    let filters = backend["filters"].as_array().cloned().unwrap_or_default();
    let mut sets =
        filters.iter().filter_map(|f| f["requestHeaderModifier"]["set"].as_array()).flatten();
    let set = sets.find(|set| set["name"] == keys::HEADER_BACKEND);
    let value = set.and_then(|set| set["value"].as_str()).context("the route has no capability")?;
    Ok(value.to_owned())
}

async fn not_exported(fleet: &Fleet<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    for path in ["/secret", "/ledger"] {
        fleet.wait_answers(path, "by the gateway", |seen| seen.status == 500).await?;
    }
    let unexported = attempt_everywhere(fleet, "/secret", &["500", "503"], &mut more).await?;
    let ungranted = attempt_everywhere(fleet, "/ledger", &["500", "503"], &mut more).await?;
    // The hub's owner alone cannot grant it.
    let hub = fleet.world().hub().objects();
    let granted = grant("multicluster.x-k8s.io", "ServiceImport");
    hub.apply(&granted).await?;
    wait_condition_of(fleet, LEDGER, "NoReferenceGrant").await?;
    let half = attempt_everywhere(fleet, "/ledger", &["500", "503"], &mut more).await?;
    hub.delete(&ObjectKey::of(&granted)?).await?;
    Ok(Finding::new(unexported && ungranted && half, more))
}

/// Waits until the hub tells a reason for a route of the shop.
async fn wait_condition_of(fleet: &Fleet<'_>, name: &str, reason: &str) -> Result<()> {
    let route = format!("{}/{name}", shop::NAMESPACE);
    wait::until(&format!("{route} to be told {reason}"), LIMIT, || async {
        let told = format!("{:?} {:?}", fleet.routes().await?, fleet.explain(&route).await?);
        Ok(if told.contains(reason) { Look::Done(()) } else { Look::Not(told) })
    })
    .await
}

/// The address of a member's gateway for clients.
async fn entry_of(fleet: &Fleet<'_>, member: &str) -> Result<SocketAddr> {
    entry(fleet.world().member(member)?).await
}
