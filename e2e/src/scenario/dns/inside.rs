//! g: names of the clusterset, as the cluster's own DNS asks for them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{PUBLISH_LIMIT, Stage, answer::dig_at};
use crate::{
    ask::{Question, Resolver},
    fleet::shop,
    object::ObjectKey,
    report::{Facts, Finding, figures},
    scenario::spine::{EAST, GATEWAY_API, SOUTH, WEST},
    wait::{self, Look},
};

/// The agents' port for their own cluster.
const PORT: u16 = 5354;
/// Served everywhere.
pub(super) const CART: &str = "cart.shop.svc.clusterset.local";
/// Served by west alone.
const CATALOG: &str = "catalog.shop.svc.clusterset.local";

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    facts.look("g1", "an exported service has its ClusterIP as clusterset name", own(stage)).await;
    facts.look("g2", "what the MCS-API says besides addresses", said(stage)).await;
    facts
        .look("g3", "a route under the very name leads to this member's gateway", led(stage))
        .await;
    Ok(())
}

impl Stage<'_> {
    pub(super) fn inside(&self, member: &str) -> SocketAddr {
        SocketAddr::new(self.server(member).ip(), PORT)
    }

    async fn wait_inside(&self, member: &str, name: &str, wanted: &BTreeSet<IpAddr>) -> Result<()> {
        let question = Question::address(name)?;
        wait::until(&format!("{member} to answer {name}"), PUBLISH_LIMIT, || async {
            let found = match Resolver::to(self.inside(member)).await?.addresses(&question).await {
                Ok(found) => found,
                Err(error) => return Ok(Look::Not(format!("{error:#}"))),
            };
            Ok(match found == *wanted {
                true => Look::Done(()),
                false => Look::Not(format!("it answers {found:?}")),
            })
        })
        .await
    }
}

pub(super) async fn cluster_ips(
    stage: &Stage<'_>,
    member: &str,
    name: &str,
) -> Result<BTreeSet<IpAddr>> {
    let key = ObjectKey::new("v1", "Service", shop::NAMESPACE, name);
    let service = stage.fleet.world().member(member)?.objects().get(&key).await?;
    let service = service.with_context(|| format!("{member} has no Service {name}"))?;
    let ips = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    Ok(ips.iter().filter_map(|ip| ip.as_str()?.parse().ok()).filter(IpAddr::is_ipv4).collect())
}

async fn own(stage: &Stage<'_>) -> Result<Finding> {
    let mut found = serde_json::Map::new();
    for member in [EAST, WEST, SOUTH] {
        let wanted = cluster_ips(stage, member, "cart").await?;
        stage.wait_inside(member, CART, &wanted).await?;
        found.insert(member.to_owned(), json!(wanted));
    }
    stage.wait_inside(WEST, CATALOG, &cluster_ips(stage, WEST, "catalog").await?).await?;
    Ok(Finding::new(true, figures([("cluster_ips", Value::Object(found))])))
}

async fn said(stage: &Stage<'_>) -> Result<Finding> {
    let lines = [
        ("dns-version.clusterset.local TXT", "status: NOERROR", "\"1.0.0\""),
        // West alone has it, and no route under the name leads there.
        ("catalog.shop.svc.clusterset.local A", "status: NXDOMAIN", "SOA"),
        ("west.cart.shop.svc.clusterset.local A", "status: NXDOMAIN", "SOA"),
        ("shop.svc.clusterset.local A", "status: NOERROR", "SOA"),
        ("+tcp cart.shop.svc.clusterset.local A", "status: NOERROR", "ANSWER: 1"),
        ("shop.example.com A", "status: REFUSED", "REFUSED"),
    ];
    let mut wrong = Vec::new();
    for (words, status, part) in lines {
        let said = dig_at(stage.inside(EAST), words).await?;
        if !said.contains(status) || !said.contains(part) {
            wrong.push(format!("{words}: {said}"));
        }
    }
    // Outside nobody hears of it.
    let outside = dig_at(stage.server(EAST), &format!("{CART} A")).await?;
    if !outside.contains("status: REFUSED") {
        wrong.push(format!("outside: {outside}"));
    }
    let found = figures([("queries", json!(lines.len() + 1)), ("wrong", json!(wrong))]);
    Ok(Finding::new(wrong.is_empty(), found))
}

/// The shop's Gateway with listeners for these names.
pub(super) fn gateway(hostnames: &[(&str, &str)]) -> Value {
    let listener = |(name, hostname): &(&str, &str)| {
        json!({"name": name, "port": 80, "protocol": "HTTP", "hostname": hostname,
            "allowedRoutes": {"namespaces": {"from": "All"}}})
    };
    json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {"name": "public", "namespace": shop::GATEWAY_NAMESPACE},
        "spec": {
            "gatewayClassName": keys::FAIRLEAD,
            "listeners": hostnames.iter().map(listener).collect::<Vec<_>>(),
        },
    })
}

async fn led(stage: &Stage<'_>) -> Result<Finding> {
    const OUTSIDE: (&str, &str) = ("http", "*.example.com");
    let hub = stage.fleet.world().hub().objects();
    let gateways = [gateway(&[OUTSIDE, ("inside", "*.clusterset.local")]), gateway(&[OUTSIDE])];
    let backend =
        json!({"group": keys::MCS_GROUP, "kind": "ServiceImport", "name": "catalog", "port": 80});
    let route = json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "catalog-inside", "namespace": shop::NAMESPACE},
        "spec": {
            "parentRefs": [{"name": "public", "namespace": shop::GATEWAY_NAMESPACE, "sectionName": "inside"}],
            "hostnames": [CATALOG],
            "rules": [{"backendRefs": [backend]}],
        },
    });
    for object in [&gateways[0], &route] {
        hub.apply(object).await?;
    }
    let question = Question::address(CATALOG)?;
    // East has no catalog: only a gateway that crosses can lead there.
    let address = wait::until("east to name its gateway", PUBLISH_LIMIT, || async {
        let found = match Resolver::to(stage.inside(EAST)).await?.addresses(&question).await {
            Ok(found) => found,
            Err(error) => return Ok(Look::Not(format!("{error:#}"))),
        };
        Ok(match found.first() {
            Some(address) => Look::Done(*address),
            None => Look::Not("it names none".to_owned()),
        })
    })
    .await?;
    let crossed = wait::until("the address to serve the name", PUBLISH_LIMIT, || async {
        let at = SocketAddr::new(address, 80);
        Ok(match shop::ask_host(at, CATALOG, "/").await {
            Ok(seen) if seen.target() == WEST => Look::Done(true),
            Ok(seen) => Look::Not(format!("answered by {:?}", seen.target())),
            Err(error) => Look::Not(format!("{error:#}")),
        })
    })
    .await?;
    hub.delete(&ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, "catalog-inside"))
        .await?;
    hub.apply(&gateways[1]).await?;
    Ok(Finding::new(crossed, figures([("address", json!(address))])))
}
