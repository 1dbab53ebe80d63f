//! Identities: what renews itself, what a person changes, what is taken away, and what a thief can do.
//!
//! Agents' certificates live for seconds at first, to see them renewed, and for days from then on, while
//! clocks are moved. Everything happens under load.
//!
//! Letters: a renewal, j refused joins, t a stolen certificate, k the agent's own rights in its cluster,
//! c the hub's keys and CA changed, x a member's crossing CA changed, r a member that is removed, e Events.
//! Leaves the world as it was.

mod clock;
mod crossing;
mod event;
mod join;
mod removed;
mod renewal;
mod rights;
mod rotation;
mod thief;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_hub::identity::read_certificate;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::{
    and_clear,
    spine::{EAST, SOUTH, WEST, clean_up},
};
use crate::{
    fleet::{
        Fleet,
        impostor::{Refusal, tls_secret},
        trial::Failback,
    },
    pki::Leaf,
    report::Facts,
    wait::{self, Look},
    world::World,
};

const FAILBACK: Failback = Failback { after_s: 1, ramp_s: 0 };
/// How long agents' certificates live here. Two thirds must leave time for a busy machine.
const LIFE: Duration = Duration::from_secs(24);
const LIMIT: Duration = Duration::from_secs(90);

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::built(world).await?;
    world.fault().lend_clocks().await.context("giving programs clocks that can be moved")?;
    and_clear(tell(&fleet, facts), clear(&fleet)).await
}

async fn clear(fleet: &Fleet<'_>) -> Result<()> {
    let cleaned = clean_up(fleet).await;
    fleet.world().fault().return_clocks().await.context("taking moved clocks away again")?;
    cleaned
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    set_up(fleet).await.context("setting the fleet up")?;
    renewal::play(fleet, facts).await?;
    clock::play(fleet, facts).await?;
    join::play(fleet, facts).await;
    thief::play(fleet, facts).await?;
    rights::play(fleet, facts).await;
    rotation::play(fleet, facts).await;
    crossing::play(fleet, facts).await;
    removed::play(fleet, facts).await;
    event::play(fleet, facts).await;
    Ok(())
}

/// The hub first, so that the very first certificates are short.
async fn set_up(fleet: &Fleet<'_>) -> Result<()> {
    fleet.init().await?;
    let seconds = LIFE.as_secs().to_string();
    let env = json!([{"name": "FAIRLEAD_AGENT_CERTIFICATE_SECONDS", "value": seconds}]);
    fleet.world().hub().objects().apply(&hub_deployment(&env)).await?;
    fleet.open_trial(FAILBACK).await
}

fn hub_deployment(env: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": keys::NAMESPACE, "name": keys::HUB},
        "spec": {"template": {"spec": {"containers": [{"name": "hub", "env": env}]}}},
    })
}

/// A member's certificate for the hub, with its key.
async fn leaf_of(fleet: &Fleet<'_>, member: &str) -> Result<Leaf> {
    tls_secret(fleet.world().member(member)?, keys::SECRET_AGENT_IDENTITY).await
}

async fn leafs(fleet: &Fleet<'_>) -> Result<BTreeMap<String, Leaf>> {
    let mut leafs = BTreeMap::new();
    for member in fleet.world().members() {
        leafs.insert(member.name().to_owned(), leaf_of(fleet, member.name()).await?);
    }
    Ok(leafs)
}

/// When a certificate ends, milliseconds since 1970.
fn end_of(cert_pem: &str) -> Result<u64> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).context("a certificate")?;
    Ok(read_certificate(&der)?.not_after.0)
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// Epochs of the plans that members hold: each new stream takes another one.
async fn epochs(fleet: &Fleet<'_>) -> Result<BTreeMap<String, u64>> {
    let status = fleet.status().await?;
    let epoch = |plan: &Option<String>| plan.as_deref()?.split_once('.')?.0.parse().ok();
    let members = status.members.iter();
    Ok(members.filter_map(|m| Some((m.member.to_string(), epoch(&m.plan_applied)?))).collect())
}

fn keys_stay(before: &BTreeMap<String, Leaf>, now: &BTreeMap<String, Leaf>) -> bool {
    before.iter().all(|(name, leaf)| now.get(name).is_some_and(|n| n.key_pem == leaf.key_pem))
}

/// Waits until a look at all members' certificates finds nothing to wait for.
async fn wait_leafs(
    fleet: &Fleet<'_>,
    what: &str,
    missing: impl Fn(&BTreeMap<String, Leaf>) -> Result<Option<String>>,
) -> Result<BTreeMap<String, Leaf>> {
    wait::until(what, LIMIT, || async {
        let leafs = leafs(fleet).await?;
        Ok(missing(&leafs)?.map_or(Look::Done(leafs), Look::Not))
    })
    .await
}

fn is_reason(refusal: Option<&Refusal>, reason: &str) -> bool {
    refusal.is_some_and(|refusal| refusal.reason == reason)
}

fn told(refusal: Option<&Refusal>) -> Value {
    match refusal {
        None => json!("let in"),
        Some(refusal) if refusal.reason.is_empty() => {
            json!(format!("{}: {}", refusal.code, refusal.message))
        }
        Some(refusal) => json!(refusal.reason),
    }
}
