//! c: keys and CA of the hub are changed by a person's command, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{EAST, WEST, end_of, epochs, leafs, thief::DOOR_PORT};
use crate::{
    fleet::{
        Fleet,
        impostor::{Opening, cluster_uid, tls_secret},
        shop,
        trial::{PATH, SERVICE, pass, rendered_route, strict},
    },
    object::ObjectKey,
    report::{Facts, Finding, figures, milliseconds, seconds},
    tls::Knock,
    wait::{self, Look},
};

const AFTERWARDS: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "the keys of capabilities are changed; what a route held before opens nothing";
    facts.look("c1", name, capability_keys(fleet)).await;
    let name =
        "the CA of the hub is changed, also when the hub restarts in between; nobody joins anew";
    facts.look("c2", name, hub_ca(fleet)).await;
}

/// What east's route sends to west's door.
async fn capability(fleet: &Fleet<'_>) -> Result<String> {
    let route = fleet.world().member(EAST)?.objects().get(&rendered_route(SERVICE)).await?;
    let route = route.context("east has no route")?;
    let service = keys::member_object(WEST);
    let rules = route["spec"]["rules"].as_array().cloned().unwrap_or_default();
    let backends = rules.iter().filter_map(|rule| rule["backendRefs"].as_array()).flatten();
    let filters = backends
        .filter(|backend| backend["name"] == service.as_str())
        .filter_map(|backend| backend["filters"].as_array())
        .flatten();
    let mut sets = filters.filter_map(|f| f["requestHeaderModifier"]["set"].as_array()).flatten();
    let set = sets.find(|set| set["name"] == keys::HEADER_BACKEND);
    let value =
        set.and_then(|set| set["value"].as_str()).context("the route names no capability")?;
    Ok(value.to_owned())
}

/// The status that west's door gives east's gateway for a capability.
async fn knock(fleet: &Fleet<'_>, capability: &str) -> Result<u16> {
    let west = fleet.world().member(WEST)?;
    let name = keys::door_hostname(&cluster_uid(west).await?);
    let ca_pem = tls_secret(west, keys::SECRET_CROSSING_CA).await?.cert_pem;
    let peer = tls_secret(fleet.world().member(EAST)?, keys::SECRET_EAST_WEST_CLIENT).await?;
    let request = Request::get(PATH)
        .header("host", shop::HOST)
        .header(keys::HEADER_BACKEND, capability)
        .body(Empty::new())?;
    let address = (west.gateway_addr().await?, DOOR_PORT).into();
    let knock = Knock { address, name: &name, ca_pem: &ca_pem, certificate: Some(&peer) };
    Ok(knock.request(request).await?.status().as_u16())
}

async fn capability_keys(fleet: &Fleet<'_>) -> Result<Finding> {
    let before = capability(fleet).await?;
    let open = knock(fleet, &before).await?;
    let load = fleet.start_left(PATH).await?;
    let ran = fleet.at_hub("fairlead rotate capability-keys").await?;
    let took = ran.took;
    ran.expect_success()?;
    let after = capability(fleet).await?;
    let (old, new) = (knock(fleet, &before).await?, knock(fleet, &after).await?);
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let kept = keys_kept(fleet).await?;
    Ok(Finding::new(
        report.failed() == 0
            && (open, old, new) == (200, 404, 200)
            && before != after
            && kept.len() == 3,
        figures([
            ("took_s", json!(seconds(took))),
            ("old_capability", json!(format!("{open} -> {old}"))),
            ("new_capability", json!(new)),
            ("keys", json!(kept)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

async fn secret(fleet: &Fleet<'_>, name: &str) -> Result<Value> {
    let key = ObjectKey::new("v1", "Secret", keys::NAMESPACE, name);
    let secret = fleet.world().hub().objects().get(&key).await?;
    secret.with_context(|| format!("the hub has no {key}"))
}

async fn keys_kept(fleet: &Fleet<'_>) -> Result<Vec<String>> {
    let secret = secret(fleet, keys::SECRET_HUB_KEYS).await?;
    Ok(secret["data"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect())
}

async fn published_hash(fleet: &Fleet<'_>) -> Result<String> {
    let key = ObjectKey::new("v1", "ConfigMap", keys::NAMESPACE, keys::CONFIG_MAP_HUB);
    let map = fleet.world().hub().objects().get(&key).await?.context("no hub info")?;
    Ok(map["data"]["ca-hash"].as_str().context("no ca-hash")?.to_owned())
}

async fn hub_ca(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let (before, hash) = (leafs(fleet).await?, published_hash(fleet).await?);
    let load = fleet.start_left(PATH).await?;
    let start = Instant::now();
    fleet.at_hub("fairlead rotate hub-ca --no-wait").await?.expect_success()?;
    wait::until("the new CA beside the old one", LIMIT, || async {
        let data = secret(fleet, keys::SECRET_HUB_CA).await?["data"].clone();
        Ok(match data["next.crt"].is_string() {
            true => Look::Done(()),
            false => Look::Not("there is one".into()),
        })
    })
    .await?;
    let beside = start.elapsed();
    fault.kill_hub().await?;
    fault.restore_hub().await?;
    let streams = wait_streams(fleet).await?;
    let ran = fleet.at_hub("fairlead rotate hub-ca").await?;
    let said = ran.stderr.lines().next().unwrap_or_default().to_owned();
    ran.expect_success()?;
    let took = start.elapsed();
    wait::until("join lines to carry the new hash", LIMIT, || async {
        let now = published_hash(fleet).await?;
        Ok(if now == hash { Look::Not(now) } else { Look::Done(()) })
    })
    .await?;
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let same_streams = streams == epochs(fleet).await?;
    let now = leafs(fleet).await?;
    let same_keys = before.iter().all(|(name, leaf)| now[name].key_pem == leaf.key_pem);
    // Made before the change, and good for its time: it must be refused for its CA.
    let old = &before[WEST];
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    let hello = Opening::Hello { member: WEST.into(), cluster_uid: uid };
    let opened = fleet.open_stream_with(old, hello).await;
    let refused = match &opened {
        Err(error) => format!("{error:#}"),
        Ok(None) => "let in".to_owned(),
        Ok(Some(refusal)) => format!("{}: {}", refusal.code, refusal.message),
    };
    let by_tls = refused.contains("transport") || refused.contains("connect");
    Ok(Finding::new(
        report.failed() == 0 && same_keys && same_streams && by_tls,
        figures([
            ("new_beside_old_after_ms", json!(milliseconds(beside))),
            ("took_s", json!(seconds(took))),
            ("followed", json!(said)),
            ("streams_since_the_restart_stay", json!(same_streams)),
            ("same_keys", json!(same_keys)),
            ("ends_of_certificates_known", json!(end_of(&old.cert_pem).is_ok())),
            ("old_certificate", json!(refused)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// The epochs of all members, once all of them have a stream with the hub again.
async fn wait_streams(fleet: &Fleet<'_>) -> Result<std::collections::BTreeMap<String, u64>> {
    fleet.wait_settled().await?;
    epochs(fleet).await
}
