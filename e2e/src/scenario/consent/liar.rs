//! l: a member whose agent was taken over: it has the member's certificate and says what it likes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_model::{
    ClusterUid, Millis, NsName, RouteKind,
    snapshot::{
        Address, Consent, DoorState, EndpointCounts, GatewayRole, GatewayState, GrantFrom, Knock,
        PortState, ServiceState, Snapshot, SniState,
    },
};
use serde_json::json;

use super::{EAST, LEDGER, LIMIT, SECRET, SOUTH, VAULT, WEST, attempt, entry_of, wait_up};
use crate::{
    fleet::{
        Fleet,
        impostor::{Opening, cluster_uid},
        shop,
    },
    load::Load,
    object::ObjectKey,
    report::{Facts, Figures, Finding, seconds},
    wait::{self, Look},
};

/// Requests through each honest entry while the liar lies.
const REQUESTS: u64 = 400;
const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "a member may not speak for another one";
    facts.look("l1", name, for_another(fleet)).await;
    let name = "whatever a member lies about itself, others serve on and nothing more opens";
    facts.look("l2", name, about_itself(fleet)).await;
}

async fn for_another(fleet: &Fleet<'_>) -> Result<Finding> {
    let uid = cluster_uid(fleet.world().member(EAST)?).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for (what, member) in [("its name and cluster", EAST), ("its cluster", SOUTH)] {
        let say = Opening::Hello { member: member.into(), cluster_uid: uid.clone() };
        let refusal = fleet.open_stream_as(SOUTH, say).await?;
        let reason = refusal.map_or("let in".to_owned(), |refusal| refusal.reason);
        holds &= reason == "WrongIdentity";
        more.insert(what.into(), json!(reason));
    }
    Ok(Finding::new(holds, more))
}

/// What south says it is: east's cluster, with east's door, a CA that nobody can read, and whatever
/// services exist anywhere, by the billion and granted to everybody.
async fn lies(fleet: &Fleet<'_>) -> Result<Snapshot> {
    let east = fleet.world().member(EAST)?;
    let mut snapshot = Snapshot::default();
    snapshot.cluster.uid = Some(ClusterUid::new(&cluster_uid(east).await?)?);
    snapshot.cluster.gateway_api_version = Some("v1.6.1".into());
    snapshot.namespaces =
        ["shop", "infra", "vault", "kube-system", keys::NAMESPACE].map(str::to_owned).into();
    snapshot.door = DoorState {
        ca_pem: Some(GARBAGE.into()),
        knock: Knock::Shut,
        sni: Some(SniState { knock: Knock::Shut, message: String::new() }),
        ..DoorState::default()
    };
    let gateway = |role: GatewayRole| GatewayState {
        class: "eg".into(),
        role,
        programmed: Some(true),
        message: String::new(),
        addresses: BTreeSet::new(),
        listeners: BTreeMap::new(),
    };
    let address = Address::Ip(east.gateway_addr().await?.into());
    let mut door = gateway(GatewayRole::Door);
    door.addresses.insert(address.clone());
    snapshot.gateways.insert(NsName::new(keys::NAMESPACE, keys::EAST_WEST_GATEWAY), door);
    let mut lent = gateway(GatewayRole::Lent(NsName::new(shop::GATEWAY_NAMESPACE, "public")));
    lent.addresses.insert(address);
    snapshot.gateways.insert(NsName::new("kube-system", "lent"), lent);
    let all = [
        (shop::NAMESPACE, "cart"),
        (shop::NAMESPACE, "catalog"),
        (shop::NAMESPACE, SECRET),
        (VAULT, LEDGER),
        (keys::NAMESPACE, keys::AGENT),
        ("kube-system", "kube-dns"),
    ];
    for (namespace, name) in all {
        snapshot.services.insert(NsName::new(namespace, name), everything());
    }
    Ok(snapshot)
}

fn everything() -> ServiceState {
    let counts = EndpointCounts { ready: u32::MAX, total: u32::MAX };
    let port =
        PortState { name: "http".into(), protocol: "TCP".into(), app_protocol: String::new() };
    let grant = |kind| GrantFrom { kind, namespace: shop::NAMESPACE.into() };
    ServiceState {
        exported_at: Millis(1),
        consent: Consent::Given,
        ports: [(80, port)].into(),
        zones: (0..50).map(|n| (format!("zone-{n}"), counts)).collect(),
        grants: [RouteKind::HTTPRoute, RouteKind::GRPCRoute].map(grant).into(),
    }
}

/// What others' doors and routes hold of it.
async fn callers(fleet: &Fleet<'_>, member: &str) -> Result<String> {
    let key =
        ObjectKey::new("v1", "ConfigMap", keys::NAMESPACE, keys::CONFIG_MAP_EAST_WEST_CALLERS);
    let map = fleet.world().member(member)?.objects().get(&key).await?.context("no callers")?;
    Ok(map["data"]["ca.crt"].as_str().unwrap_or_default().to_owned())
}

async fn about_itself(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let started = fleet.status().await?.started_at;
    world.fault().kill_agent(SOUTH).await?;
    let lies = lies(fleet).await?;
    let liar = fleet.lie_as(SOUTH, &lies).await?;
    let told = wait::until("the hub to have heard the lies", LIMIT, || async {
        let services = fleet.services().await?;
        let view = services.iter().find(|view| &*view.service.name == SECRET);
        Ok(match view {
            Some(view) => Look::Done(format!("{:?}", view.members.keys())),
            None => Look::Not("it does not count the service yet".into()),
        })
    })
    .await;
    let told = told.context("the liar was not believed at all")?;
    let noted = wait::until("the lies that were left out to be told", LIMIT, || async {
        let text = format!("{:?} {:?}", fleet.status().await?, fleet.member_view(SOUTH).await?);
        let whole = ["AddressConflict", "WrongIdentity", "Unreadable"];
        let missing = whole.iter().filter(|word| !text.contains(*word));
        Ok(match missing.copied().collect::<Vec<_>>().as_slice() {
            [] => Look::Done(()),
            words => Look::Not(format!("{words:?} are not in {text}")),
        })
    })
    .await;
    let (mut holds, mut more) = beside(fleet).await?;
    more.insert("counted_for".into(), json!(told));
    more.insert("told".into(), json!(noted.map_or_else(|e| format!("{e:#}"), |()| "yes".into())));
    holds &= more["told"] == json!("yes");
    for member in [EAST, WEST] {
        let clean = !callers(fleet, member).await?.contains("Z2FyYmFnZQ");
        holds &= clean;
        more.insert(format!("callers of {member} are clean"), json!(clean));
    }
    let same_hub = fleet.status().await?.started_at == started;
    holds &= same_hub;
    more.insert("hub_lives".into(), json!(same_hub));
    drop(liar);
    world.fault().restore_agent(SOUTH).await?;
    let start = std::time::Instant::now();
    wait_up(fleet).await?;
    fleet.wait_live(shop::CATALOG).await?;
    more.insert("truth_after_s".into(), json!(seconds(start.elapsed())));
    Ok(Finding::new(holds, more))
}

/// The honest entries: their own cart, west's catalog by west's door, and still no secret.
async fn beside(fleet: &Fleet<'_>) -> Result<(bool, Figures)> {
    let mut more = Figures::new();
    let mut holds = true;
    for name in [EAST, WEST] {
        let address = entry_of(fleet, name).await?;
        for (path, target) in [(shop::CART, name), (shop::CATALOG, WEST)] {
            let load = Load::new(shop::HOST, path).entry(name, address).requests(REQUESTS, 4);
            let report = load.run().await;
            let elsewhere = report.only(|sample| sample.outcome.target != target).total();
            holds &= report.failed() == 0 && elsewhere == 0;
            let text = format!("{} failed, {elsewhere} elsewhere", report.failed());
            more.insert(format!("{path} through {name}"), json!(text));
        }
        for path in ["/secret", "/ledger"] {
            let tries = attempt(address, shop::HOST, path, &[]).await?;
            holds &= tries.are(&["404", "500", "503"]);
            more.insert(format!("{path} through {name}"), tries.told());
        }
    }
    Ok((holds, more))
}
