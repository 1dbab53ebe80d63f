//! A hub that is itself a member: global objects and what its own agent writes live in one API server.
//!
//! ```text
//!  east: hub + agent + gateway      infra/public (class fairlead)   infra/public-global (class eg)
//!  west: agent + gateway                                            infra/public-global (class eg)
//! ```
//!
//! The world's own hub cluster stays idle. Leaves the world as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::and_clear;
use crate::{
    fleet::{
        Fleet,
        dump::{self, Dump},
        program::build_programs,
        shop,
    },
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures, seconds},
    wait::{self, Look},
    world::World,
};

/// The hub's cluster, a member of its own.
const HOME: &str = "east";
const OTHER: &str = "west";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const GATEWAY: &str = "public";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(90);
/// A loop between hub and agent would write many times while so many requests pass.
const REQUESTS: usize = 400;
/// Requests of one look at who answers.
const LOOK_REQUESTS: usize = 20;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    tokio::task::spawn_blocking(build_programs).await??;
    let fleet = Fleet::within(world, HOME)?;
    and_clear(tell(&fleet, facts), clean_up(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.init().await?;
    make_room(fleet).await.context("making room for an agent beside the hub")?;
    facts.look("h1", "the hub's own cluster joins as any other", joined(fleet)).await;
    fleet.open_shop(OTHER).await?;
    fleet.spread_cart().await?;
    mark_as_lent(fleet).await?;
    fleet.wait_live(shop::CART).await?;
    let name = "its Gateway is made beside the global one, which is never taken for a lent one";
    facts.look("h2", name, gateways(fleet)).await;
    facts.look("h3", "requests cross into the hub's cluster and out of it", crossing(fleet)).await;
    let name = "what its agent writes is no global object, and nothing goes round in circles";
    facts.look("h4", name, no_loop(fleet)).await;
    let name = "`fairlead leave` takes the agent out of the hub's cluster and leaves the hub";
    facts.look("h5", name, leave(fleet)).await;
    facts.look("h6", "the hub's own cluster can join again", again(fleet)).await;
    Ok(())
}

/// Pods of a cluster of the harness share one address, where two programs cannot both have the port of
/// their own admin API; in a real cluster each Pod has an address.
async fn make_room(fleet: &Fleet<'_>) -> Result<()> {
    const USUAL: u16 = 8080;
    const OTHER_PORT: u16 = 18080;
    let objects = fleet.hub().objects();
    let key = ObjectKey::new("apps/v1", "Deployment", keys::NAMESPACE, keys::HUB);
    let mut deployment = objects.get(&key).await?.context("there is no hub")?;
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    for argument in container["args"].as_array_mut().context("no arguments")? {
        if argument.as_str().is_some_and(|text| text.starts_with("--admin-listen=")) {
            *argument = json!(format!("--admin-listen=0.0.0.0:{OTHER_PORT}"));
        }
    }
    for port in container["ports"].as_array_mut().context("no ports")? {
        if port["containerPort"] == USUAL {
            port["containerPort"] = json!(OTHER_PORT);
        }
    }
    // Ports are merged by their numbers: an apply would keep the old one beside the new one.
    objects.delete(&key).await?;
    objects.wait_gone(&key, LIMIT).await?;
    objects
        .apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": keys::HUB, "namespace": keys::NAMESPACE,
                "labels": deployment["metadata"]["labels"],
            },
            "spec": deployment["spec"],
        }))
        .await?;
    let address = fleet.hub().local()?.pods.address;
    wait::until("the hub at its new port", LIMIT, || async {
        let ready = crate::http1::get_status((address, OTHER_PORT).into(), "/readyz").await?;
        let old = crate::http1::get_status((address, USUAL).into(), "/readyz").await.is_ok();
        Ok(match (ready.as_u16(), old) {
            (200, false) => Look::Done(()),
            other => Look::Not(format!("it says {other:?}")),
        })
    })
    .await?;
    wait::until("the hub to be asked", LIMIT, || async {
        fleet.status().await.map(|_| Look::Done(()))
    })
    .await
}

async fn joined(fleet: &Fleet<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    for member in [HOME, OTHER] {
        let ran = fleet.join(member).await?;
        more.insert(format!("{member}_took_s"), json!(seconds(ran.took)));
    }
    fleet.wait_settled().await?;
    let members = fleet.status().await?.members.len();
    Ok(Finding::new(members == 2, more))
}

/// Its owner's annotation at the global Gateway itself: a trap, in the hub's own cluster only.
async fn mark_as_lent(fleet: &Fleet<'_>) -> Result<()> {
    let objects = fleet.hub().objects();
    let key = ObjectKey::new(GATEWAY_API, "Gateway", shop::GATEWAY_NAMESPACE, GATEWAY);
    let gateway = objects.get(&key).await?.context("no global Gateway")?;
    let name = format!("{}/{GATEWAY}", shop::GATEWAY_NAMESPACE);
    objects
        .apply(&json!({
            "apiVersion": GATEWAY_API, "kind": "Gateway",
            "metadata": {
                "name": GATEWAY, "namespace": shop::GATEWAY_NAMESPACE,
                "annotations": {keys::GLOBAL_GATEWAY: name},
            },
            "spec": gateway["spec"],
        }))
        .await
        .map(drop)
}

async fn gateways(fleet: &Fleet<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for view in fleet.gateways().await? {
        let local = view.local.as_ref().map(ToString::to_string).unwrap_or_default();
        holds &= view.role == "Created" && local.ends_with("/public-global");
        more.insert(view.member.to_string(), json!(format!("{} {local}", view.role)));
    }
    let key = ObjectKey::new(GATEWAY_API, "Gateway", shop::GATEWAY_NAMESPACE, GATEWAY);
    let addresses = wait::until("addresses of both members", LIMIT, || async {
        let gateway = fleet.hub().objects().get(&key).await?.context("no global Gateway")?;
        let list = gateway["status"]["addresses"].as_array().cloned().unwrap_or_default();
        Ok(if list.len() == 2 { Look::Done(list) } else { Look::Not(format!("{list:?}")) })
    })
    .await?;
    holds &= more.len() == 2;
    more.insert("addresses".into(), json!(addresses));
    Ok(Finding::new(holds, more))
}

async fn crossing(fleet: &Fleet<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for (entry, address) in fleet.entries().await? {
        // The catalog is in west alone, the cart in both.
        let catalog = shop::ask(address, shop::CATALOG).await?;
        holds &= catalog.status == 200 && catalog.target() == OTHER;
        wait_targets(&entry, address).await?;
        let mut targets: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..REQUESTS / 2 {
            let seen = shop::ask(address, shop::CART).await?;
            holds &= seen.status == 200;
            *targets.entry(seen.target().to_owned()).or_default() += 1;
        }
        holds &= targets.keys().map(String::as_str).eq([HOME, OTHER]);
        more.insert(format!("cart_through_{entry}"), json!(targets));
    }
    Ok(Finding::new(holds, more))
}

/// Waits until an entry leads to both: a first share comes a little after its route.
async fn wait_targets(entry: &str, address: SocketAddr) -> Result<()> {
    wait::until(&format!("{entry} to use both members"), LIMIT, || async {
        let mut seen = BTreeSet::new();
        for _ in 0..LOOK_REQUESTS {
            seen.insert(shop::ask(address, shop::CART).await?.target().to_owned());
        }
        let both = seen.len() == 2;
        Ok(if both { Look::Done(()) } else { Look::Not(format!("it uses {seen:?}")) })
    })
    .await
}

/// Whether Fairlead's hub says anything of an object.
fn has_hubs_word(object: &Value) -> bool {
    object["status"].to_string().contains(keys::CONTROLLER_NAME)
}

async fn no_loop(fleet: &Fleet<'_>) -> Result<Finding> {
    let home = fleet.hub();
    fleet.wait_settled().await?;
    let before = Dump::take(home).await?.ours_but_pods();
    for (_, address) in fleet.entries().await? {
        for _ in 0..REQUESTS / 2 {
            shop::ask(address, shop::CART).await?;
        }
    }
    let after = Dump::take(home).await?.ours_but_pods();
    let writes = before.writes_until(&after);
    let twice: Vec<&str> =
        after.keys().into_iter().filter(|key| key.contains("-global-global")).collect();
    let is_copy = |object: &&Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        name.ends_with("-global") && object["apiVersion"] == GATEWAY_API
    };
    let copies: Vec<&Value> = after.objects().filter(is_copy).collect();
    let judged = copies.iter().filter(|copy| has_hubs_word(copy)).count();
    let routes: BTreeSet<String> =
        fleet.routes().await?.iter().map(|route| route.route.to_string()).collect();
    let declared = ["HTTPRoute/shop/cart", "HTTPRoute/shop/catalog"].map(str::to_owned).into();
    let holds = writes.is_empty()
        && twice.is_empty()
        && judged == 0
        && copies.len() == 3
        && routes == declared;
    Ok(Finding::new(
        holds,
        figures([
            ("copies", json!(copies.len())),
            ("judged_by_the_hub", json!(judged)),
            ("copies_of_copies", json!(twice)),
            ("written_meanwhile", json!(writes)),
            ("routes", json!(routes)),
        ]),
    ))
}

async fn leave(fleet: &Fleet<'_>) -> Result<Finding> {
    let ran = fleet.leave(HOME).await?;
    let settled = fleet.wait_settled_with(1).await?;
    let there = Dump::take(fleet.hub()).await?;
    let left: Vec<String> = there
        .ours_but_pods()
        .keys()
        .into_iter()
        .filter(|key| {
            key.contains("fairlead-agent") || key.contains("-global") || key.contains("eastwest")
        })
        .map(str::to_owned)
        .collect();
    let gateway = dump::key(GATEWAY_API, "Gateway", shop::GATEWAY_NAMESPACE, GATEWAY);
    let declared = there.get(&gateway).is_some();
    let entries = fleet.entries().await?;
    let west = *entries.get(OTHER).context("west has no entry")?;
    let seen = shop::ask(west, shop::CART).await?;
    let holds = left.is_empty() && declared && seen.status == 200 && seen.target() == OTHER;
    Ok(Finding::new(
        holds,
        figures([
            ("took_s", json!(seconds(ran.took))),
            ("settled_s", json!(seconds(settled))),
            ("left", json!(left)),
            ("west_answers", json!(seen.status.as_u16())),
        ]),
    ))
}

async fn again(fleet: &Fleet<'_>) -> Result<Finding> {
    let ran = fleet.join(HOME).await?;
    fleet.wait_settled().await?;
    fleet.wait_live(shop::CART).await?;
    Ok(Finding::new(true, figures([("took_s", json!(seconds(ran.took)))])))
}

async fn clean_up(fleet: &Fleet<'_>) -> Result<()> {
    fleet.uninstall().await?;
    fleet.world().forget(&[shop::NAMESPACE, shop::GATEWAY_NAMESPACE]).await
}
