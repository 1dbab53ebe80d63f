//! j: what members hold: foreign objects in our way, gateways that never come up, odd endpoints,
//! addresses that two members claim.

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{EAST, GATEWAY_API, LIMIT, SOUTH, WEST, beside, told_of};
use crate::{
    fleet::{Fleet, entry, shop},
    object::ObjectKey,
    report::{Facts, Finding, figures},
    scenario::spine::{route, route_key},
    wait::{self, Look},
};

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "a foreign object under our name is never touched, and told";
    facts.look("j1", name, foreign_name(fleet)).await;
    let name = "a Gateway that never becomes programmed costs only itself";
    facts.look("j2", name, never_programmed(fleet)).await;
    let name = "odd endpoints: no readiness said, no ports, IPv6, thousands";
    facts.look("j3", name, odd_endpoints(fleet)).await;
    let name = "an address that two members claim stays with one, and it is told";
    facts.look("j4", name, same_address(fleet)).await;
    Ok(())
}

async fn foreign_name(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let west = world.member(WEST)?.objects();
    let theirs = json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "clash-global", "namespace": shop::NAMESPACE},
        "spec": {"hostnames": ["somebody.example.com"], "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]},
    });
    let before = west.apply(&theirs).await?;
    let hub = world.hub().objects();
    hub.apply(&route("clash", "/clash", &[("cart", 1)], &Value::Null)).await?;
    let mut served = Vec::new();
    for member in [EAST, SOUTH] {
        let address = entry(world.member(member)?).await?;
        let fits = |seen: &shop::Seen| seen.status == 200 && seen.target() == member;
        shop::wait_answers_at(address, "/clash", &format!("/clash through {member}"), fits).await?;
        served.push(member);
    }
    let told = wait::until("the conflict to be told", LIMIT, || async {
        let member = fleet.member_view(WEST).await?;
        let text = format!("{} {:?}", told_of(fleet, "clash").await?, member.exceptions);
        Ok(if text.contains("NameConflict") { Look::Done(()) } else { Look::Not(text) })
    })
    .await;
    let after = west.get(&route_key("clash-global")).await?.context("the foreign route is gone")?;
    let same = |what: &str| before["metadata"][what] == after["metadata"][what];
    let untouched =
        same("generation") && same("uid") && before["spec"] == after["spec"] && same("labels");
    hub.delete(&route_key("clash")).await?;
    let gone = world.member(EAST)?.objects().wait_gone(&route_key("clash-global"), LIMIT).await;
    let stays = west.get(&route_key("clash-global")).await?.is_some();
    west.delete(&route_key("clash-global")).await?;
    let holds = told.is_ok() && untouched && stays && gone.is_ok();
    let more = figures([
        ("served", json!(served)),
        ("told", json!(told.is_ok())),
        ("untouched", json!(untouched)),
        ("stays_after_the_route", json!(stays)),
    ]);
    beside(fleet, Finding::new(holds, more)).await
}

async fn never_programmed(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let (hub, south) = (world.hub().objects(), world.member(SOUTH)?.objects());
    let lent = json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {
            "name": "never", "namespace": shop::GATEWAY_NAMESPACE,
            "annotations": {"fairlead.dev/global-gateway": format!("{}/second", shop::GATEWAY_NAMESPACE)},
        },
        "spec": {
            "gatewayClassName": "nobodys",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
        },
    });
    south.apply(&lent).await?;
    let second = json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {"name": "second", "namespace": shop::GATEWAY_NAMESPACE},
        "spec": {
            "gatewayClassName": "fairlead",
            "listeners": [{
                "name": "http", "port": 80, "protocol": "HTTP", "hostname": "second.example.com",
                "allowedRoutes": {"namespaces": {"from": "All"}},
            }],
        },
    });
    hub.apply(&second).await?;
    let mut asked = route("second", "/", &[("cart", 1)], &Value::Null);
    asked["spec"]["parentRefs"][0]["name"] = json!("second");
    asked["spec"]["hostnames"] = json!(["second.example.com"]);
    hub.apply(&asked).await?;
    let told = wait::until("the gateway to be told as not programmed", LIMIT, || async {
        let text = fleet.at_hub("fairlead get gateways -o json").await?.expect_success()?;
        let views: Vec<fairlead_model::view::GatewayView> = serde_json::from_str(&text)?;
        let view = views
            .iter()
            .find(|view| &*view.gateway.name == "second" && view.member.as_str() == SOUTH);
        Ok(match view {
            Some(view) if view.programmed != Some(true) && view.reason.is_some() => {
                Look::Done(format!("{:?}", view.reason))
            }
            other => Look::Not(format!("{other:?}")),
        })
    })
    .await;
    let mut served = Vec::new();
    for member in [EAST, WEST] {
        let address = entry(world.member(member)?).await?;
        wait::until(&format!("the second gateway to answer in {member}"), LIMIT, || async {
            let seen = shop::ask_host(address, "second.example.com", "/").await?;
            Ok(if seen.target() == member {
                Look::Done(())
            } else {
                Look::Not(seen.status.to_string())
            })
        })
        .await?;
        served.push(member);
    }
    hub.delete(&route_key("second")).await?;
    hub.delete(&ObjectKey::of(&second)?).await?;
    south.delete(&ObjectKey::of(&lent)?).await?;
    let holds = told.is_ok();
    let told = told.unwrap_or_else(|error| format!("{error:#}"));
    let more = figures([("served", json!(served)), ("told", json!(told))]);
    beside(fleet, Finding::new(holds, more)).await
}

const SLICES: usize = 10;
const PER_SLICE: usize = 500;

async fn odd_endpoints(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let east = world.member(EAST)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "odd", "namespace": shop::NAMESPACE},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    east.objects().apply(&service).await?;
    fleet.export(EAST, "odd").await?;
    let mut keys = Vec::new();
    for slice in odd_slices() {
        keys.push(ObjectKey::of(&slice)?);
        east.objects().apply(&slice).await?;
    }
    // One that does not say whether it is ready counts as ready; one that nobody can reach, for
    // want of a port, does not count; of two families the larger counts.
    let wanted = u32::try_from(SLICES * PER_SLICE + 1).context("a number of endpoints")?;
    let counted = wait::until("the endpoints to be counted", LIMIT, || async {
        let services = fleet.services().await?;
        let view = services.iter().find(|view| &*view.service.name == "odd");
        let counts = view.and_then(|view| view.members.values().next());
        Ok(match counts {
            Some(counts) if counts.ready == wanted => Look::Done(counts.ready),
            other => Look::Not(format!("{other:?}")),
        })
    })
    .await;
    let kubelet = world.kubelet(EAST)?;
    let memory = kubelet.pid("fairlead-agent").and_then(resident_mib);
    for key in keys {
        east.objects().delete(&key).await?;
    }
    fleet.unserve(EAST, "odd").await?;
    let more = figures([
        (
            "counted",
            json!(counted.as_ref().map_or_else(|error| format!("{error:#}"), u32::to_string)),
        ),
        ("wanted", json!(wanted)),
        ("agent_mib", json!(memory)),
    ]);
    beside(fleet, Finding::new(counted.is_ok(), more)).await
}

fn resident_mib(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u32>().ok()? / 1024)
}

fn odd_slices() -> Vec<Value> {
    let slice = |name: String, family: &str, ports: Value, endpoints: Vec<Value>| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": shop::NAMESPACE,
                "labels": {"kubernetes.io/service-name": "odd"},
            },
            "addressType": family, "ports": ports, "endpoints": endpoints,
        })
    };
    let port = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let ready = |address: String| json!({"addresses": [address], "conditions": {"ready": true}});
    let mut slices = vec![
        slice(
            "odd-unsaid".into(),
            "IPv4",
            port.clone(),
            vec![json!({"addresses": ["198.51.100.1"]})],
        ),
        slice("odd-portless".into(), "IPv4", json!([]), vec![ready("198.51.100.2".into())]),
        slice(
            "odd-six".into(),
            "IPv6",
            port.clone(),
            (1..=5).map(|n| ready(format!("2001:db8::{n}"))).collect(),
        ),
    ];
    slices.extend((0..SLICES).map(|number| {
        let address = |n: usize| format!("10.{}.{}.{}", 200 + number, n / 250, n % 250 + 1);
        let endpoints = (0..PER_SLICE).map(|n| ready(address(n))).collect();
        slice(format!("odd-{number}"), "IPv4", port.clone(), endpoints)
    }));
    slices
}

/// South says that its door is where east's is: whoever held the address keeps it.
async fn same_address(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let hub = world.hub().objects();
    let address = world.member(EAST)?.gateway_addr().await?.to_string();
    let claim = json!({
        "apiVersion": keys::API_VERSION, "kind": "MemberCluster",
        "metadata": {"name": SOUTH},
        "spec": {"eastWest": {"addresses": [address]}},
    });
    hub.apply(&claim).await?;
    let told = wait::until("the conflict to be told", LIMIT, || async {
        let status = fleet.status().await?;
        let text = format!("{status:?}");
        Ok(if text.contains("AddressConflict") {
            Look::Done(())
        } else {
            Look::Not(format!("{:?}", status.notes))
        })
    })
    .await;
    // The holder goes on answering for others: west reaches east, and nobody reaches south.
    let explained = format!("{:?}", fleet.explain("shop/cart").await?);
    fleet.spread_cart().await?;
    let shares = wait::until("west to share with east alone", LIMIT, || async {
        let shares = super::answers(fleet, WEST, shop::CART, 200).await?;
        let there = |who: &str| shares.get(who).copied().unwrap_or_default();
        Ok(match there(EAST) > 0.3 && there(SOUTH) == 0.0 {
            true => Look::Done(format!("{shares:?}")),
            false => Look::Not(format!("{shares:?}")),
        })
    })
    .await;
    let policy =
        ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, "cart-everywhere");
    hub.delete(&policy).await?;
    // Applied without the claim: the field goes with its only owner.
    let released = json!({
        "apiVersion": keys::API_VERSION, "kind": "MemberCluster", "metadata": {"name": SOUTH},
    });
    hub.apply(&released).await?;
    let resolved = wait::until("the conflict to be over", LIMIT, || async {
        let text = format!("{:?}", fleet.status().await?);
        Ok(if text.contains("AddressConflict") {
            Look::Not("still told".into())
        } else {
            Look::Done(())
        })
    })
    .await;
    fleet.wait_settled().await?;
    let holds = told.is_ok() && shares.is_ok() && resolved.is_ok();
    let more = figures([
        ("told", json!(told.is_ok())),
        ("explained", json!(explained.contains("AddressConflict"))),
        ("west", json!(shares.unwrap_or_else(|error| format!("{error:#}")))),
        ("resolved", json!(resolved.is_ok())),
    ]);
    beside(fleet, Finding::new(holds, more)).await
}
