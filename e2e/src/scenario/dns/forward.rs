//! g: a real CoreDNS asks the agent for the clusterset, by the block that the guide shows.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Stage, answer::dig_at, inside};
use crate::{
    launch::Launch,
    process::Unit,
    report::{Facts, Finding, figures},
    scenario::spine::EAST,
    wait::{self, Look},
};

const GUIDE: &str = include_str!("../../../../docs/guide/dns.md");
/// Where the guide forwards to.
const GUIDE_SERVICE: &str = "10.96.0.53";
const PORT: u16 = 5300;
const START_LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    facts.look("g4", "CoreDNS forwards clusterset.local as the guide says", forwarded(stage)).await;
    Ok(())
}

/// The guide's block for the Corefile, with the agent in the place of its Service, which no kube-proxy
/// leads to here.
fn corefile(listen: SocketAddr, agent: SocketAddr) -> Result<String> {
    let (_, rest) = GUIDE.split_once("clusterset.local:53 {").context("the guide has no block")?;
    let (block, _) = rest.split_once("\n}").context("the guide's block has no end")?;
    anyhow::ensure!(block.contains(GUIDE_SERVICE), "the guide forwards elsewhere");
    let block = block.replace(GUIDE_SERVICE, &agent.to_string());
    Ok(format!("clusterset.local:{} {{\n    bind {}{block}\n}}\n", listen.port(), listen.ip()))
}

async fn forwarded(stage: &Stage<'_>) -> Result<Finding> {
    let local = stage.fleet.world().member(EAST)?.local()?;
    let listen = SocketAddr::new(local.address.into(), PORT);
    let folder = stage.fleet.world().folder().join("coredns");
    fs::create_dir_all(&folder)?;
    let config = folder.join("Corefile");
    fs::write(&config, corefile(listen, stage.inside(EAST))?)?;
    let argv = vec![
        stage.tools.coredns.display().to_string(),
        "-conf".to_owned(),
        config.display().to_string(),
    ];
    let launch = Launch { argv, netns: Some(local.namespace.clone()), ..Launch::default() };
    let coredns = Unit::new("coredns", folder.join("coredns.log"), launch);
    coredns.start().await?;
    let found = ask(stage, listen).await;
    coredns.stop(Duration::from_secs(2)).await;
    found
}

async fn ask(stage: &Stage<'_>, coredns: SocketAddr) -> Result<Finding> {
    let version = "dns-version.clusterset.local TXT";
    wait::until("CoreDNS to answer", START_LIMIT, || async {
        let said = dig_at(coredns, version).await?;
        Ok(match said.contains("\"1.0.0\"") {
            true => Look::Done(()),
            false => Look::Not(said),
        })
    })
    .await?;
    let ips = inside::cluster_ips(stage, EAST, "cart").await?;
    let ip = ips.first().context("cart has no ClusterIP")?.to_string();
    let cart = inside::CART;
    let lines = [
        (format!("{cart} A"), "status: NOERROR", ip.as_str()),
        (format!("+tcp {cart} A"), "status: NOERROR", ip.as_str()),
        (format!("_http._tcp.{cart} SRV"), "status: NOERROR", cart),
        ("nothing.shop.svc.clusterset.local A".to_owned(), "status: NXDOMAIN", "SOA"),
    ];
    let mut wrong = Vec::new();
    for (words, status, part) in &lines {
        let said = dig_at(coredns, words).await?;
        if !said.contains(status) || !said.contains(part) {
            wrong.push(format!("{words}: {said}"));
        }
    }
    let found = figures([
        ("queries", json!(lines.len() + 1)),
        ("cart", json!(ip)),
        ("wrong", json!(wrong)),
    ]);
    Ok(Finding::new(wrong.is_empty(), found))
}
