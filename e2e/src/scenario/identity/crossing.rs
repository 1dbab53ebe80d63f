//! x: a member's crossing CA is changed: by its own admin's command, by a lost Secret, by a thief.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_model::{
    ClusterUid, Millis, NsName, RouteKind,
    snapshot::{
        Address, Consent, DoorState, EndpointCounts, GatewayRole, GatewayState, GrantFrom, Knock,
        PortState, ServiceState, Snapshot,
    },
};
use serde_json::{Value, json};

use super::{EAST, LIMIT, SOUTH, WEST, thief::at_door};
use crate::{
    fleet::{
        Fleet,
        impostor::{cluster_uid, tls_secret},
        shop,
        trial::{PATH, SERVICE, pass, strict},
    },
    load::Running,
    object::ObjectKey,
    pki::Authority,
    report::{Facts, Finding, figures, seconds},
    wait::{self, Look},
};

const RATE: f64 = 300.0;
const BEFORE: Duration = Duration::from_secs(1);
const AFTERWARDS: Duration = Duration::from_secs(3);

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name =
        "a member's crossing CA is changed, also when the hub and its agent restart in between";
    facts.look("x1", name, changed(fleet)).await;
    let name =
        "a CA that the one before did not sign is refused, until each member's admin confirms it";
    facts.look("x2", name, confirmed(fleet)).await;
    let name = "who has an agent's identity cannot give others another crossing CA in its name";
    facts.look("x3", name, stolen(fleet)).await;
}

/// What a member believes, as `fairlead trust` says.
async fn trust(fleet: &Fleet<'_>, member: &str) -> Result<Vec<Value>> {
    let text = fleet.at(member, "fairlead trust -o json").await?.expect_success()?;
    let pins: serde_json::Map<String, Value> = serde_json::from_str(&text)?;
    Ok(pins.into_iter().map(|(_, pin)| pin).collect())
}

/// The hashes that a member believes, and those that it refuses, of another one or of itself.
async fn believed(fleet: &Fleet<'_>, member: &str, of: &str) -> Result<(Vec<String>, Vec<String>)> {
    let pins = trust(fleet, member).await?;
    let pin = pins.iter().find(|pin| pin["member"] == of);
    let pin = pin.with_context(|| format!("{member} knows nothing of {of}"))?;
    let texts = |key: &str| {
        let list = pin[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    Ok((texts("believed"), texts("refused")))
}

/// What the objects of a member that hold CAs say.
async fn ca_objects(fleet: &Fleet<'_>, member: &str) -> Result<String> {
    let mut all = String::new();
    for of in [keys::CONFIG_MAP_EAST_WEST_CALLERS.to_owned(), keys::member_object(WEST)] {
        let key = ObjectKey::new("v1", "ConfigMap", keys::NAMESPACE, &of);
        let map = fleet.world().member(member)?.objects().get(&key).await?;
        all.push_str(
            map.and_then(|map| Some(map["data"]["ca.crt"].as_str()?.to_owned()))
                .as_deref()
                .unwrap_or(""),
        );
    }
    Ok(all)
}

async fn crossing_ca(fleet: &Fleet<'_>, member: &str) -> Result<Value> {
    let key = ObjectKey::new("v1", "Secret", keys::NAMESPACE, keys::SECRET_CROSSING_CA);
    let secret = fleet.world().member(member)?.objects().get(&key).await?;
    secret.with_context(|| format!("{member} has no {key}"))
}

async fn start_load(fleet: &Fleet<'_>) -> Result<Running> {
    let load = fleet.load(PATH).await?.rate(RATE).start();
    pass(&load, BEFORE).await?;
    Ok(load)
}

async fn changed(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let west = fleet.world().member(WEST)?;
    let old_client = tls_secret(west, keys::SECRET_EAST_WEST_CLIENT).await?;
    let (old, _) = believed(fleet, EAST, WEST).await?;
    let load = start_load(fleet).await?;
    let start = Instant::now();
    fleet.at(WEST, "fairlead rotate crossing-ca --no-wait").await?.expect_success()?;
    wait::until("the new CA beside the old one", LIMIT, || async {
        Ok(match crossing_ca(fleet, WEST).await?["data"]["next.crt"].is_string() {
            true => Look::Done(()),
            false => Look::Not("there is one".into()),
        })
    })
    .await?;
    let beside = start.elapsed();
    fault.kill_hub().await?;
    fault.kill_agent(WEST).await?;
    fault.restore_agent(WEST).await?;
    fault.restore_hub().await?;
    let ran = fleet.at(WEST, "fairlead rotate crossing-ca").await?;
    let said = ran.stderr.lines().next().unwrap_or_default().to_owned();
    ran.expect_success()?;
    let took = start.elapsed();
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    // The last plan of the change may still be on its way to the others.
    let own = wait::until("the others to believe the new CA alone", LIMIT, || async {
        let (own, _) = believed(fleet, WEST, WEST).await?;
        for member in [EAST, SOUTH] {
            let seen = believed(fleet, member, WEST).await?;
            if seen != (own.clone(), Vec::new()) {
                return Ok(Look::Not(format!("{member}: {seen:?}")));
            }
        }
        Ok(Look::Done(own))
    })
    .await?;
    let new_client = tls_secret(west, keys::SECRET_EAST_WEST_CLIENT).await?;
    let by_old = wait::until("the doors to refuse the old certificate", LIMIT, || async {
        let (east, south) =
            (at_door(fleet, EAST, &old_client).await?, at_door(fleet, SOUTH, &old_client).await?);
        let both = east.starts_with("alert") && south.starts_with("alert");
        Ok(if both { Look::Done(east) } else { Look::Not(format!("{east}, {south}")) })
    })
    .await?;
    let by_new = at_door(fleet, EAST, &new_client).await?;
    let old_keys = crossing_ca(fleet, WEST).await?["data"]
        .as_object()
        .is_some_and(|data| data.contains_key("next.key") || data.contains_key("previous.crt"));
    Ok(Finding::new(
        report.failed() == 0
            && own.len() == 1
            && own != old
            && !by_new.starts_with("alert")
            && !old_keys,
        figures([
            ("new_beside_old_after_s", json!(seconds(beside))),
            ("took_s", json!(seconds(took))),
            ("followed", json!(said)),
            ("old_certificate_at_doors", json!(by_old)),
            ("new_certificate_at_doors", json!(by_new)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

async fn confirmed(fleet: &Fleet<'_>) -> Result<Finding> {
    let west = fleet.world().member(WEST)?;
    let (real, _) = believed(fleet, EAST, WEST).await?;
    let before = ca_objects(fleet, EAST).await?;
    let key = ObjectKey::new("v1", "Secret", keys::NAMESPACE, keys::SECRET_CROSSING_CA);
    west.objects().delete(&key).await?;
    let shown = wait::until("both others to refuse the new CA", LIMIT, || async {
        let east = believed(fleet, EAST, WEST).await?;
        let south = believed(fleet, SOUTH, WEST).await?;
        let both = east == south && east.0 == real && east.1.len() == 1;
        Ok(if both { Look::Done(east.1[0].clone()) } else { Look::Not(format!("{east:?}")) })
    })
    .await?;
    let same = before == ca_objects(fleet, EAST).await?;
    let told = wait::until("the hub to tell it", LIMIT, || async {
        let text = format!("{:?}", fleet.member_view(EAST).await?);
        Ok(match text.contains("UntrustedCa") {
            true => Look::Done(()),
            false => Look::Not(text),
        })
    })
    .await;
    // The others go on among themselves; nothing goes where nobody can be sure who answers.
    let mut load = fleet.load(PATH).await?;
    load.entries.retain(|entry| entry.name != WEST);
    let alone = Instant::now();
    wait::until("the others to go on without it", LIMIT, || async {
        let report = strict(&load.clone().requests(200, 8).run().await);
        let shares = report.shares(|sample| sample.outcome.target.clone());
        Ok(match (report.failed(), shares.contains_key(WEST)) {
            (0, false) => Look::Done(()),
            (failed, _) => Look::Not(format!("{failed} failed, {shares:?}")),
        })
    })
    .await?;
    let alone = alone.elapsed();
    let wrong = format!("fairlead trust {WEST} --ca sha256:{}", "0".repeat(64));
    let wrong = fleet.at(EAST, &wrong).await?;
    let start = Instant::now();
    for member in [EAST, SOUTH] {
        fleet.at(member, &format!("fairlead trust {WEST} --ca {shown}")).await?.expect_success()?;
    }
    fleet.wait_whole(PATH).await?;
    let back = start.elapsed();
    let now = believed(fleet, EAST, WEST).await?;
    Ok(Finding::new(
        same && told.is_ok() && wrong.code != Some(0) && now == (vec![shown], Vec::new()),
        figures([
            ("objects_of_others_unchanged", json!(same)),
            ("hub_tells", json!(told.map_or_else(|e| format!("{e:#}"), |()| "UntrustedCa".into()))),
            ("others_without_it_after_s", json!(seconds(alone))),
            ("another_hash", json!(wrong.stderr.lines().next().unwrap_or_default())),
            ("even_again_after_s", json!(seconds(back))),
        ]),
    ))
}

/// West with all that makes the others lead to it, and with a CA of somebody else.
async fn lie(fleet: &Fleet<'_>, uid: &str, ca_pem: &str) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.cluster.uid = Some(ClusterUid::new(uid)?);
    snapshot.cluster.gateway_api_version = Some("v1.6.1".into());
    snapshot.namespaces = [shop::NAMESPACE, keys::NAMESPACE].map(str::to_owned).into();
    let ca_pem = Some(ca_pem.to_owned());
    snapshot.door = DoorState { ca_pem, knock: Knock::Shut, ..DoorState::default() };
    let door = GatewayState {
        class: "eg".into(),
        role: GatewayRole::Door,
        programmed: Some(true),
        message: String::new(),
        addresses: [Address::Ip(fleet.world().member(WEST)?.gateway_addr().await?.into())].into(),
        listeners: [].into(),
    };
    snapshot.gateways.insert(NsName::new(keys::NAMESPACE, keys::EAST_WEST_GATEWAY), door);
    let port =
        PortState { name: "http".into(), protocol: "TCP".into(), app_protocol: String::new() };
    let grant = |kind| GrantFrom { kind, namespace: shop::NAMESPACE.into() };
    let service = ServiceState {
        exported_at: Millis(1),
        consent: Consent::Given,
        ports: [(80, port)].into(),
        zones: [(String::new(), EndpointCounts { ready: 2, total: 2 })].into(),
        grants: [RouteKind::HTTPRoute, RouteKind::GRPCRoute].map(grant).into(),
    };
    snapshot.services.insert(NsName::new(shop::NAMESPACE, SERVICE), service);
    Ok(snapshot)
}

/// The thief reports of west what the hub has to pass on.
async fn stolen(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let (real, _) = believed(fleet, EAST, WEST).await?;
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    fault.kill_agent(WEST).await?;
    let authority = Authority::new(&format!("fairlead crossing {uid}"))?;
    let lie = lie(fleet, &uid, authority.cert_pem()).await?;
    let liar = fleet.lie_as(WEST, &lie).await?;
    let seen = wait::until("the others to refuse the thief's CA", LIMIT, || async {
        let east = believed(fleet, EAST, WEST).await?;
        let south = believed(fleet, SOUTH, WEST).await?;
        let both = east.1.len() == 1 && south.1.len() == 1;
        Ok(if both { Look::Done(east) } else { Look::Not(format!("{east:?} {south:?}")) })
    })
    .await;
    let body = authority.cert_pem().lines().nth(1).context("a certificate")?.to_owned();
    let mut spread = false;
    for member in [EAST, SOUTH] {
        spread |= ca_objects(fleet, member).await?.contains(&body);
    }
    drop(liar);
    fault.restore_agent(WEST).await?;
    fleet.wait_whole(PATH).await?;
    let seen = seen?;
    let after = believed(fleet, EAST, WEST).await?;
    Ok(Finding::new(
        seen.0 == real && !spread && after == (real, Vec::new()),
        figures([
            ("refused", json!(seen.1)),
            ("stands_somewhere", json!(spread)),
            ("refused_after_the_agent_is_back", json!(after.1)),
        ]),
    ))
}
