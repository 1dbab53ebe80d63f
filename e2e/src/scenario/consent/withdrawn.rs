//! w: consent that is taken back, and a member that is removed: how long requests still get through.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use fairlead_crds::keys;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::{
    EAST, GATEWAY_API, LIMIT, SOUTH, WEST, capability,
    door::{Door, Kept},
    entry_of, grant, wait_up,
};
use crate::{
    fleet::{Fleet, shop},
    load::{Load, Running},
    object::ObjectKey,
    report::{Facts, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
};

/// "A second or two".
const STOPPED_MAX: Duration = Duration::from_secs(2);
const RATE: f64 = 200.0;
/// So long nothing may get through before it counts as stopped.
const SILENCE: Duration = Duration::from_secs(2);

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "a withdrawn ReferenceGrant stops requests";
    facts.look("w1", name, member_grant(fleet)).await;
    let name = "so does one that is withdrawn in the hub";
    facts.look("w2", name, hub_grant(fleet)).await;
    let name = "a withdrawn export stops requests";
    facts.look("w3", name, export(fleet)).await;
    let name = "it does without a hub, too";
    facts.look("w4", name, export_without_hub(fleet)).await;
    let mut kept = None;
    let name = "a removed member's certificate is refused by TLS";
    facts.look("w5", name, removed(fleet, &mut kept)).await;
    let name = "what it still has open ends with the keys of its capabilities; nobody else fails";
    facts.look("w6", name, rotated(fleet, kept)).await;
}

/// Traffic through both entries that reach a service of west by its door.
async fn start(fleet: &Fleet<'_>, path: &str) -> Result<Running> {
    let mut load = Load::new(shop::HOST, path);
    for name in [EAST, SOUTH] {
        load = load.entry(name, entry_of(fleet, name).await?);
    }
    let running = load.rate(RATE).start();
    wait::until("some requests to get through", LIMIT, || async {
        let through = running.so_far().only(|s| !s.outcome.target.is_empty()).total();
        Ok(if through > 50 { Look::Done(()) } else { Look::Not(format!("{through} did")) })
    })
    .await?;
    Ok(running)
}

/// Waits until nothing gets through any more; the time from the withdrawal until the last request
/// that did was started.
async fn stopped(running: Running, at: Duration) -> Result<Finding> {
    wait::until("requests to be stopped", LIMIT, || async {
        let recent = running.now().saturating_sub(SILENCE);
        let through = running
            .so_far()
            .only(|sample| sample.started >= recent.max(at) && !sample.outcome.target.is_empty());
        let enough = running.now() >= at + SILENCE;
        Ok(match (enough, through.total()) {
            (true, 0) => Look::Done(()),
            (_, count) => Look::Not(format!("{count} of the last got through")),
        })
    })
    .await?;
    let report = running.stop().await;
    let through = report.only(|sample| sample.started >= at && !sample.outcome.target.is_empty());
    let last = through.samples().last().map_or(Duration::ZERO, |s| s.started.saturating_sub(at));
    let more = figures([
        ("last_through_ms", json!(milliseconds(last))),
        ("through_since", json!(through.total())),
        ("refused_since", json!(report.only(|s| s.started >= at).total() - through.total())),
    ]);
    Ok(Finding::new(last <= STOPPED_MAX, more))
}

/// Opens the vault's ledger to the shop, in the hub and in west.
async fn open_ledger(fleet: &Fleet<'_>) -> Result<()> {
    let world = fleet.world();
    world.hub().objects().apply(&grant("multicluster.x-k8s.io", "ServiceImport")).await?;
    world.member(WEST)?.objects().apply(&grant("", "Service")).await?;
    fleet.wait_live("/ledger").await
}

async fn member_grant(fleet: &Fleet<'_>) -> Result<Finding> {
    open_ledger(fleet).await?;
    let running = start(fleet, "/ledger").await?;
    let at = running.now();
    let withdrawn = ObjectKey::of(&grant("", "Service"))?;
    fleet.world().member(WEST)?.objects().delete(&withdrawn).await?;
    stopped(running, at).await
}

async fn hub_grant(fleet: &Fleet<'_>) -> Result<Finding> {
    open_ledger(fleet).await?;
    let running = start(fleet, "/ledger").await?;
    let at = running.now();
    let withdrawn = ObjectKey::of(&grant("multicluster.x-k8s.io", "ServiceImport"))?;
    fleet.world().hub().objects().delete(&withdrawn).await?;
    let finding = stopped(running, at).await;
    let withdrawn = ObjectKey::of(&grant("", "Service"))?;
    fleet.world().member(WEST)?.objects().delete(&withdrawn).await?;
    finding
}

fn export_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new("multicluster.x-k8s.io/v1beta1", "ServiceExport", namespace, name)
}

async fn export(fleet: &Fleet<'_>) -> Result<Finding> {
    let running = start(fleet, shop::CATALOG).await?;
    let at = running.now();
    let key = export_key(shop::NAMESPACE, "catalog");
    fleet.world().member(WEST)?.objects().delete(&key).await?;
    let finding = stopped(running, at).await;
    fleet.export(WEST, "catalog").await?;
    fleet.wait_live(shop::CATALOG).await?;
    finding
}

/// West's own agent takes the grant away.
async fn export_without_hub(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let running = start(fleet, shop::CATALOG).await?;
    fault.kill_hub().await?;
    let at = running.now();
    let key = export_key(shop::NAMESPACE, "catalog");
    fleet.world().member(WEST)?.objects().delete(&key).await?;
    let finding = stopped(running, at).await;
    fault.restore_hub().await?;
    fleet.export(WEST, "catalog").await?;
    fleet.wait_live(shop::CATALOG).await?;
    wait_up(fleet).await?;
    finding
}

/// South is removed in the hub; its cluster keeps certificate, capability, routes and connections.
async fn removed(fleet: &Fleet<'_>, left: &mut Option<Kept>) -> Result<Finding> {
    let door = Door::of(fleet, WEST, SOUTH).await?;
    let mut kept = door.stay().await?;
    let first = kept.ask().await?;
    let start = Instant::now();
    fleet.forget_member(SOUTH).await?;
    let mut more = figures([("first", json!(first))]);
    let alert = wait::until("south to be refused by TLS", LIMIT, || async {
        Ok(match door.is_refused().await? {
            Some(alert) => Look::Done(alert),
            None => Look::Not("it is let in".into()),
        })
    })
    .await?;
    let refused = start.elapsed();
    more.insert("refused_after_s".into(), json!(seconds(refused)));
    more.insert("alert".into(), json!(alert));
    *left = Some(kept);
    Ok(Finding::new(first == 200 && refused <= STOPPED_MAX, more))
}

/// Keys are added one after the other, each once all members hold what the one before made of their
/// plans: after three of them nothing takes the first any more.
async fn rotated(fleet: &Fleet<'_>, kept: Option<Kept>) -> Result<Finding> {
    let mut kept = kept.context("there is no connection to look at")?;
    let before = kept.ask().await.map_or_else(|error| format!("{error:#}"), |s| s.to_string());
    let mut load = Load::new(shop::HOST, shop::CATALOG);
    load = load.entry(EAST, entry_of(fleet, EAST).await?);
    let running = load.rate(RATE).start();
    for epoch in 2..=4 {
        let before = Keyed::of(fleet).await?;
        add_key(fleet, epoch).await?;
        let fault = fleet.world().fault();
        fault.kill_hub().await?;
        fault.restore_hub().await?;
        wait::until(&format!("key {epoch} to be in use"), LIMIT, || async {
            let now = Keyed::of(fleet).await?;
            let doors = now.door != before.door;
            // The first new key is only taken; routes change with the second.
            let routes = (now.route != before.route) == (epoch > 2);
            let known = format!("at the door {doors}, in routes {routes}");
            Ok(if doors && routes { Look::Done(()) } else { Look::Not(known) })
        })
        .await?;
    }
    let after = refusal(&mut kept).await.context("the open connection is answered for ever")?;
    let report = running.stop().await;
    let holds = before == "200" && report.failed() == 0 && report.total() > 0;
    Ok(Finding::new(
        holds,
        figures([
            ("open_connection_before", json!(before)),
            ("after", json!(after)),
            ("others_failed", json!(report.failed())),
            ("others", json!(report.total())),
        ]),
    ))
}

/// What west's door takes and what east's route sends for the catalog.
struct Keyed {
    door: Value,
    route: String,
}

impl Keyed {
    async fn of(fleet: &Fleet<'_>) -> Result<Self> {
        let name = format!("{}.catalog", shop::NAMESPACE);
        let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", keys::NAMESPACE, &name);
        let door = fleet.world().member(WEST)?.objects().get(&key).await?;
        let door = door.context("west's door has no catalog")?["spec"]["rules"].clone();
        Ok(Self { door, route: capability(fleet, EAST, "catalog", WEST).await? })
    }
}

async fn add_key(fleet: &Fleet<'_>, epoch: u8) -> Result<()> {
    let value = BASE64_STANDARD.encode([epoch; 32]);
    let object = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": keys::SECRET_HUB_KEYS, "namespace": keys::NAMESPACE},
        "data": {format!("capability-{epoch}"): value},
    });
    let api: Api<Secret> = Api::namespaced(fleet.world().hub().client(), keys::NAMESPACE);
    api.patch(keys::SECRET_HUB_KEYS, &PatchParams::default(), &Patch::Merge(&object)).await?;
    Ok(())
}

/// How an open connection stopped being answered.
async fn refusal(kept: &mut Kept) -> Option<String> {
    const WATCHED: Duration = Duration::from_secs(15);
    let start = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    while start.elapsed() < WATCHED {
        pause.tick().await;
        match kept.ask().await {
            Ok(200) => {}
            Ok(status) => return Some(status.to_string()),
            Err(error) => return Some(format!("{error:#}")),
        }
    }
    None
}
