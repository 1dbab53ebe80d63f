//! t, too: what surprises users of one cluster: listeners that others add, routes of a member that were
//! there before ours, addresses behind NAT.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use bytes::Bytes;
use fairlead_crds::keys;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{
    ENTRY, GATEWAY_API, GATEWAY_NAMESPACE, LIMIT, NAMESPACE, Side, Stage, TARGET,
    told::{declare, next_second, wait_answer},
};
use crate::{
    echo::Answer,
    fleet::{self, shop},
    net,
    object::ObjectKey,
    report::{Facts, Finding, figures, seconds},
    system,
    wait::{self, Look},
};

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    let name = "a ListenerSet adds a listener in every entry, and its routes are served there";
    facts.look("t7", name, listener_set(stage)).await;
    let name = "a member's own older route with our match answers there, and is told";
    facts.look("t8", name, shadowed(stage)).await;
    let name = "behind NAT a door is reached by the address that is declared";
    if system::answers(&["nft", "--version"]) {
        facts.look("t9", name, nat(stage)).await;
    } else {
        facts.skip("t9", name, "this machine has no nft");
    }
    let name = "behind two gateways the service learns of each, and one request id";
    facts.look("t10", name, hops(stage)).await;
    let name = "an ACME challenge is known in one entry only, unless a global route leads there";
    facts.look("t11", name, challenge(stage)).await;
}

const SET_HOST: &str = "set.other.test";

async fn listener_set(stage: &Stage<'_>) -> Result<Finding> {
    let hub = stage.fleet.world().hub().objects();
    let class = keys::GATEWAY_CLASS;
    let mut gateway = super::gateway(GATEWAY_NAMESPACE, class, Side::Fleet);
    gateway["spec"]["allowedListeners"] = json!({"namespaces": {"from": "All"}});
    hub.apply(&gateway).await?;
    let set = json!({
        "apiVersion": GATEWAY_API, "kind": "ListenerSet",
        "metadata": {"name": "team", "namespace": NAMESPACE},
        "spec": {
            "parentRef": {"name": GATEWAY_NAMESPACE, "namespace": GATEWAY_NAMESPACE},
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP", "hostname": SET_HOST}],
        },
    });
    hub.apply(&set).await?;
    let mut route = super::route(
        "HTTPRoute",
        "of-set",
        "set",
        &json!([{
            "backendRefs": [{"name": "echo"}],
        }]),
        Side::Fleet,
    );
    route["spec"]["parentRefs"] = json!([{"kind": "ListenerSet", "name": "team"}]);
    route["spec"]["hostnames"] = json!([SET_HOST]);
    hub.apply(&route).await?;
    let start = std::time::Instant::now();
    wait_set(stage, 200).await?;
    let live = start.elapsed();
    let key = ObjectKey::of(&set)?;
    let said = wait::until("the statuses of the set and its Gateway", LIMIT, || async {
        let object = hub.get(&key).await?.context("the set is gone")?;
        let gateway = hub.get(&ObjectKey::of(&gateway)?).await?.context("no Gateway")?;
        let sets = gateway["status"]["attachedListenerSets"].clone();
        let status = &object["status"];
        let word = |at: usize| {
            let condition = &status["conditions"][at];
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            format!("{}={} {}", text("type"), text("status"), text("reason"))
        };
        let attached = status["listeners"][0]["attachedRoutes"].clone();
        let said = format!("{}, {}, attached {attached}, sets {sets}", word(0), word(1));
        let whole =
            said == "Accepted=True Accepted, Programmed=True Programmed, attached 1, sets 1";
        Ok(if whole { Look::Done(said) } else { Look::Not(said) })
    })
    .await?;
    hub.delete(&ObjectKey::of(&route)?).await?;
    hub.delete(&key).await?;
    wait_set(stage, 404).await?;
    let plain = super::gateway(GATEWAY_NAMESPACE, class, Side::Fleet);
    hub.apply(&plain).await?;
    Ok(Finding::new(true, figures([("live_after_s", json!(seconds(live))), ("said", json!(said))])))
}

async fn wait_set(stage: &Stage<'_>, status: u16) -> Result<()> {
    wait::until(&format!("{SET_HOST} to be answered {status}"), LIMIT, || async {
        for address in [stage.entry, stage.plain] {
            let seen = shop::ask_host(address, SET_HOST, "/").await?;
            if seen.status != status || (status == 200 && seen.target() != TARGET) {
                return Ok(Look::Not(format!("{address} answers {}", seen.status)));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

/// East's owner had the path first.
async fn shadowed(stage: &Stage<'_>) -> Result<Finding> {
    const PATH: &str = "/shadowed";
    let east = stage.fleet.world().member(ENTRY)?.objects();
    let own = json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "mine", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": format!("{GATEWAY_NAMESPACE}-global"), "namespace": GATEWAY_NAMESPACE}],
            "hostnames": [format!("http.{}", Side::Fleet.domain())],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": PATH}}],
                "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302}}],
            }],
        },
    });
    east.apply(&own).await?;
    wait_answer(stage, PATH, 302).await?;
    next_second().await?;
    declare(stage, "shadowed", PATH, json!({"backendRefs": [{"name": "echo"}]})).await?;
    let told = wait::until("the shadow to be told", LIMIT, || async {
        let member = stage.fleet.member_view(ENTRY).await?;
        let told = member.exceptions.values().find(|e| e.reason.as_str() == "Shadowed").cloned();
        Ok(match told {
            Some(told) => Look::Done(told.message),
            None => Look::Not(format!("{:?}", member.exceptions)),
        })
    })
    .await?;
    let still = wait_answer(stage, PATH, 302).await.is_ok();
    east.delete(&ObjectKey::of(&own)?).await?;
    let target = wait_answer(stage, PATH, 200).await?;
    wait::until("the shadow to be forgotten", LIMIT, || async {
        let member = stage.fleet.member_view(ENTRY).await?;
        let text = format!("{:?}", member.exceptions);
        Ok(if text.contains("Shadowed") { Look::Not(text) } else { Look::Done(()) })
    })
    .await?;
    let holds = still && told.contains("mine") && target == TARGET;
    Ok(Finding::new(holds, figures([("told", json!(told))])))
}

/// A route as an issuer's controller makes it for its solver, in one member; a redirect stands for the
/// solver. The issuer asks whatever entry the name leads to.
async fn challenge(stage: &Stage<'_>) -> Result<Finding> {
    const FOLDER: &str = "/.well-known/acme-challenge";
    let path = format!("{FOLDER}/token");
    let host = format!("http.{}", Side::Fleet.domain());
    let west = stage.fleet.world().member(TARGET)?;
    let solver = json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "solver", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": format!("{GATEWAY_NAMESPACE}-global"), "namespace": GATEWAY_NAMESPACE}],
            "hostnames": [host],
            "rules": [{
                "matches": [{"path": {"type": "Exact", "value": path}}],
                "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302}}],
            }],
        },
    });
    west.objects().apply(&solver).await?;
    let there = fleet::entry(west).await?;
    wait::until("the solver to answer where it is", LIMIT, || async {
        let status = shop::ask_host(there, &host, &path).await?.status;
        Ok(if status == 302 { Look::Done(()) } else { Look::Not(format!("it is {status}")) })
    })
    .await?;
    let elsewhere = shop::ask_host(stage.entry, &host, &path).await?.status;
    declare(stage, "challenges", FOLDER, json!({"backendRefs": [{"name": "echo"}]})).await?;
    let led_to = wait_answer(stage, &path, 200).await?;
    west.objects().delete(&ObjectKey::of(&solver)?).await?;
    Ok(Finding::new(
        elsewhere == 404 && led_to == TARGET,
        figures([
            ("where_it_is", json!(302)),
            ("elsewhere", json!(elsewhere.as_u16())),
            ("by_a_global_route", json!(led_to)),
        ]),
    ))
}

const DOOR_PORT: u16 = 15443;

/// West's door is found at another address only, which leads to it.
async fn nat(stage: &Stage<'_>) -> Result<Finding> {
    const PATH: &str = "/nat";
    declare(stage, "nat", PATH, json!({"backendRefs": [{"name": "echo"}]})).await?;
    wait_answer(stage, PATH, 200).await?;
    let world = stage.fleet.world();
    let local = world.member(TARGET)?.local()?;
    let [a, b, c, _] = local.address.octets();
    let public = Ipv4Addr::new(a, b, c, 77);
    net::batch(&local.namespace, &[format!("addr add {public}/32 dev eth0")])?;
    net::nft(&local.namespace, &rules(local.address, public))?;
    let lost = wait_failed(stage, PATH).await;
    let start = std::time::Instant::now();
    set_door(stage, &json!([public.to_string()])).await?;
    let back = wait_answer(stage, PATH, 200).await;
    let after = start.elapsed();
    net::nft(&local.namespace, "table ip nat-e2e\ndelete table ip nat-e2e\n")?;
    set_door(stage, &Value::Null).await?;
    let direct = wait_answer(stage, PATH, 200).await;
    net::batch(&local.namespace, &[format!("addr del {public}/32 dev eth0")])?;
    stage.fleet.wait_settled().await?;
    lost.context("requests did not notice")?;
    let holds = back? == TARGET && direct? == TARGET;
    Ok(Finding::new(holds, figures([("served_again_after_s", json!(seconds(after)))])))
}

/// Nobody but the member itself reaches the door's own address, on connections that stand either.
fn rules(own: Ipv4Addr, public: Ipv4Addr) -> String {
    format!(
        "table ip nat-e2e {{\n chain shut {{\n  type filter hook prerouting priority -300\n  \
         iifname != lo ip daddr {own} tcp dport {DOOR_PORT} drop\n }}\n chain lead {{\n  \
         type nat hook prerouting priority -100\n  \
         ip daddr {public} tcp dport {DOOR_PORT} dnat to {own}:{DOOR_PORT}\n }}\n}}\n"
    )
}

async fn wait_failed(stage: &Stage<'_>, path: &str) -> Result<()> {
    let host = format!("http.{}", Side::Fleet.domain());
    wait::until("requests to fail", LIMIT, || async {
        for _ in 0..3 {
            // No answer in time is a failure, too.
            let seen = shop::ask_host(stage.entry, &host, path).await;
            if seen.is_ok_and(|seen| seen.status == 200) {
                return Ok(Look::Not("they are answered".into()));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

async fn set_door(stage: &Stage<'_>, addresses: &Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": keys::API_VERSION, "kind": "MemberCluster", "metadata": {"name": TARGET},
    });
    if !addresses.is_null() {
        object["spec"] = json!({"eastWest": {"addresses": addresses}});
    }
    stage.fleet.world().hub().objects().apply(&object).await.map(drop)
}

/// The client claims an address and an id; every gateway adds who called it.
async fn hops(stage: &Stage<'_>) -> Result<Finding> {
    const PATH: &str = "/hops";
    const CLAIMED: &str = "203.0.113.7";
    declare(stage, "hops", PATH, json!({"backendRefs": [{"name": "echo"}]})).await?;
    wait_answer(stage, PATH, 200).await?;
    let request = Request::get(PATH)
        .header("host", format!("http.{}", Side::Fleet.domain()))
        .header("x-forwarded-for", CLAIMED)
        .header("x-request-id", "00000000-0000-4000-8000-000000000000")
        .body(Empty::<Bytes>::new())?;
    let answer = crate::http1::send(stage.entry, request).await?;
    let echo: Answer = serde_json::from_slice(answer.body()).context("no echo answered")?;
    let header = |name: &str| echo.headers.get(name).cloned().unwrap_or_default().join(", ");
    let (forwarded, id) = (header("x-forwarded-for"), header("x-request-id"));
    let hops: Vec<&str> = forwarded.split(',').map(str::trim).collect();
    let entry = stage.fleet.world().member(ENTRY)?.gateway_addr().await?.to_string();
    // What a client claims comes first: count hops from the end.
    let holds = hops.len() == 3
        && hops.first() == Some(&CLAIMED)
        && hops.last() == Some(&entry.as_str())
        && !id.is_empty()
        && !id.contains(',');
    Ok(Finding::new(
        holds,
        figures([("x_forwarded_for", json!(forwarded)), ("x_request_id", json!(id))]),
    ))
}
