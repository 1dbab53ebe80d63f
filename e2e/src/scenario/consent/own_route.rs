//! n: routes, Services and Gateways that users of a member write themselves, naming what is ours.

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{EAST, GATEWAY_API, LIMIT, SOUTH, THIEF, Tries, WEST, attempt, capability, entry_of};
use crate::{
    fleet::{
        Fleet,
        impostor::{cluster_uid, tls_secret},
        shop,
    },
    gateway::CLASS,
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures},
    wait::{self, Look},
};

/// The port of the door in `member-*` Services.
const PORT: u16 = 15443;
const OWN_HOST: &str = "own.example.com";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "a route of a namespace without a grant may not name a member";
    facts.look("n1", name, ungranted(fleet)).await;
    let name = "a route of a granted namespace is refused by the door without a right capability";
    facts.look("n2", name, granted(fleet)).await;
    let name = "nor does it reach what our own namespace has behind the door";
    facts.look("n3", name, readiness(fleet)).await;
    let name = "a Service of one's own that leads to a door reaches nothing behind it";
    facts.look("n4", name, own_service(fleet)).await;
    let name = "a Gateway of one's own is not given our certificate";
    facts.look("n5", name, own_gateway(fleet)).await;
    Ok(())
}

/// A route of a user: one rule to a backend of the user's own that shows that the route is live, and
/// others.
fn own(namespace: &str, name: &str, host: &str, rules: &[Value]) -> Value {
    let mut rules = rules.to_vec();
    rules.push(json!({
        "matches": [{"path": {"type": "PathPrefix", "value": live_path(name)}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302, "path": {
            "type": "ReplaceFullPath", "replaceFullPath": "/live",
        }}}],
    }));
    json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parentRefs": [{"name": "public-global", "namespace": shop::GATEWAY_NAMESPACE}],
            "hostnames": [host],
            "rules": rules,
        },
    })
}

fn live_path(name: &str) -> String {
    format!("/live-{name}")
}

fn rule(path: &str, service: &str, namespace: &str, filters: &Value) -> Value {
    json!({
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "filters": filters,
        "backendRefs": [{"name": service, "namespace": namespace, "port": PORT}],
    })
}

fn set_header(value: &str) -> Value {
    json!({
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": keys::HEADER_BACKEND, "value": value}]},
    })
}

/// Applies a route at east and waits until the gateway serves it.
async fn declare(fleet: &Fleet<'_>, route: &Value) -> Result<ObjectKey> {
    let key = ObjectKey::of(route)?;
    fleet.world().member(EAST)?.objects().apply(route).await?;
    let host = route["spec"]["hostnames"][0].as_str().context("a route without a host")?;
    let path = live_path(&key.name);
    let address = entry_of(fleet, EAST).await?;
    wait::until(&format!("{path} to be live"), LIMIT, || async {
        let seen = shop::ask_host(address, host, &path).await?;
        Ok(if seen.status == 302 { Look::Done(()) } else { Look::Not(seen.status.to_string()) })
    })
    .await?;
    Ok(key)
}

/// What east's gateway says of a route's references.
async fn resolved(fleet: &Fleet<'_>, key: &ObjectKey) -> Result<String> {
    let object = fleet.world().member(EAST)?.objects().get(key).await?.context("no such route")?;
    let parents = object["status"]["parents"].as_array().cloned().unwrap_or_default();
    let mut conditions = parents.iter().filter_map(|p| p["conditions"].as_array()).flatten();
    let found = conditions.find(|condition| condition["type"] == "ResolvedRefs");
    let reason = found.and_then(|condition| condition["reason"].as_str()).unwrap_or_default();
    Ok(reason.to_owned())
}

async fn tries(fleet: &Fleet<'_>, host: &str, path: &str) -> Result<Tries> {
    attempt(entry_of(fleet, EAST).await?, host, path, &[]).await
}

async fn ungranted(fleet: &Fleet<'_>) -> Result<Finding> {
    let west = keys::member_object(WEST);
    let stolen = capability(fleet, EAST, "cart", WEST).await?;
    let rules = [
        rule("/plain", &west, keys::NAMESPACE, &json!([])),
        rule("/stolen", &west, keys::NAMESPACE, &json!([set_header(&stolen)])),
    ];
    let key = declare(fleet, &own(THIEF, "n1", OWN_HOST, &rules)).await?;
    let said = resolved(fleet, &key).await?;
    let mut more = figures([("said", json!(said))]);
    let mut holds = said == "RefNotPermitted";
    for path in ["/plain", "/stolen"] {
        let tries = tries(fleet, OWN_HOST, path).await?;
        holds &= tries.are(&["500"]);
        more.insert(path.into(), tries.told());
    }
    fleet.world().member(EAST)?.objects().delete(&key).await?;
    Ok(Finding::new(holds, more))
}

/// The shop's routes use west, so that the gateway lets any route of that namespace go there.
async fn granted(fleet: &Fleet<'_>) -> Result<Finding> {
    let west = keys::member_object(WEST);
    let right = capability(fleet, EAST, "cart", WEST).await?;
    let elsewhere = capability(fleet, EAST, "cart", SOUTH).await?;
    let backwards: String = right.chars().rev().collect();
    let many = format!("{right},{elsewhere}");
    let forged = [
        ("/none", Value::Null),
        ("/empty", set_header("")),
        ("/zeros", set_header(&"0".repeat(64))),
        ("/backwards", set_header(&backwards)),
        ("/upper", set_header(&right.to_uppercase())),
        ("/of-another-member", set_header(&elsewhere)),
        ("/two-in-one", set_header(&many)),
        ("/half", set_header(&right[..32])),
    ];
    let filters = |filter: &Value| if filter.is_null() { json!([]) } else { json!([filter]) };
    let rules: Vec<Value> = forged
        .iter()
        .filter(|(path, _)| *path != "/empty")
        .map(|(path, filter)| rule(path, &west, keys::NAMESPACE, &filters(filter)))
        .collect();
    let key = declare(fleet, &own(shop::NAMESPACE, "n2", OWN_HOST, &rules)).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for (path, _) in forged.iter().filter(|(path, _)| *path != "/empty") {
        let tries = tries(fleet, OWN_HOST, path).await?;
        holds &= tries.are(&["404"]);
        more.insert((*path).into(), tries.told());
    }
    fleet.world().member(EAST)?.objects().delete(&key).await?;
    Ok(Finding::new(holds, more))
}

/// To the name and path of the agent's readiness.
async fn to_readiness(fleet: &Fleet<'_>) -> Result<Value> {
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    Ok(json!({
        "type": "URLRewrite",
        "urlRewrite": {
            "hostname": keys::door_hostname(&uid),
            "path": {"type": "ReplaceFullPath", "replaceFullPath": keys::PATH_READINESS},
        },
    }))
}

async fn readiness(fleet: &Fleet<'_>) -> Result<Finding> {
    let west = keys::member_object(WEST);
    let rewrite = to_readiness(fleet).await?;
    let right = capability(fleet, EAST, "cart", WEST).await?;
    let rules = [
        rule("/bare", &west, keys::NAMESPACE, &json!([rewrite.clone()])),
        rule("/with-cart", &west, keys::NAMESPACE, &json!([rewrite, set_header(&right)])),
    ];
    let key = declare(fleet, &own(shop::NAMESPACE, "n3", OWN_HOST, &rules)).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for path in ["/bare", "/with-cart"] {
        let tries = tries(fleet, OWN_HOST, path).await?;
        holds &= tries.are(&["404"]);
        more.insert(path.into(), tries.told());
    }
    fleet.world().member(EAST)?.objects().delete(&key).await?;
    Ok(Finding::new(holds, more))
}

/// West's door as a Service of the thief's: the entry's gateway shows our certificate to every TLS
/// backend, so that TLS lets it in.
async fn door_service(fleet: &Fleet<'_>) -> Result<Vec<Value>> {
    const NAME: &str = "door";
    let west = fleet.world().member(WEST)?;
    let address = west.gateway_addr().await?.to_string();
    let ca = tls_secret(west, keys::SECRET_CROSSING_CA).await?.cert_pem;
    let host = keys::door_hostname(&cluster_uid(west).await?);
    let meta = |name: &str| json!({"name": name, "namespace": THIEF});
    let mut slice = meta(NAME);
    slice["labels"] = json!({"kubernetes.io/service-name": NAME});
    Ok(vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(NAME),
            "spec": {"ports": [{"name": "https", "port": PORT, "protocol": "TCP"}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("door-ca"),
            "data": {"ca.crt": ca},
        }),
        json!({
            "apiVersion": GATEWAY_API, "kind": "BackendTLSPolicy", "metadata": meta(NAME),
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": NAME}],
                "validation": {
                    "hostname": host,
                    "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "door-ca"}],
                },
            },
        }),
    ])
}

async fn own_service(fleet: &Fleet<'_>) -> Result<Finding> {
    let east = fleet.world().member(EAST)?.objects();
    let objects = door_service(fleet).await?;
    east.apply_all(&objects).await?;
    let rewrite = to_readiness(fleet).await?;
    let rules = [
        rule("/plain", "door", THIEF, &json!([])),
        rule("/readiness", "door", THIEF, &json!([rewrite])),
        rule("/forged", "door", THIEF, &json!([set_header(&"0".repeat(64))])),
    ];
    let key = declare(fleet, &own(THIEF, "n4", OWN_HOST, &rules)).await?;
    // An answer of the door, not of this gateway: TLS was set up.
    wait::until("the door to answer the thief's Service", LIMIT, || async {
        let tries = tries(fleet, OWN_HOST, "/plain").await?;
        Ok(if tries.are(&["404"]) { Look::Done(()) } else { Look::Not(format!("{tries:?}")) })
    })
    .await?;
    let mut more = Figures::new();
    let mut holds = true;
    for path in ["/plain", "/readiness", "/forged"] {
        let tries = tries(fleet, OWN_HOST, path).await?;
        holds &= tries.are(&["404"]);
        more.insert(path.into(), tries.told());
    }
    east.delete(&key).await?;
    Ok(Finding::new(holds, more))
}

/// The thief's Gateway asks for our client certificate, and its route goes to west's door.
async fn own_gateway(fleet: &Fleet<'_>) -> Result<Finding> {
    const HOST: &str = "gateway.example.net";
    let east = fleet.world().member(EAST)?.objects();
    let gateway = json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {"name": "own", "namespace": THIEF},
        "spec": {
            "gatewayClassName": CLASS,
            "tls": {"backend": {"clientCertificateRef": {
                "group": "", "kind": "Secret",
                "name": keys::SECRET_EAST_WEST_CLIENT, "namespace": keys::NAMESPACE,
            }}},
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP", "hostname": HOST}],
        },
    });
    east.apply(&gateway).await?;
    let mut route = own(THIEF, "n5", HOST, &[rule("/plain", "door", THIEF, &json!([]))]);
    route["spec"]["parentRefs"] = json!([{"name": "own"}]);
    let live = declare(fleet, &route).await;
    let mut more = figures([("listener_serves", json!(live.is_ok()))]);
    let tries = tries(fleet, HOST, "/plain").await?;
    more.insert("/plain".into(), tries.told());
    let object = east.get(&ObjectKey::of(&gateway)?).await?.context("no Gateway")?;
    let said = object["status"].to_string().contains("RefNotPermitted");
    more.insert("said_ref_not_permitted".into(), json!(said));
    for object in [&route, &gateway] {
        east.delete(&ObjectKey::of(object)?).await?;
    }
    for object in door_service(fleet).await? {
        east.delete(&ObjectKey::of(&object)?).await?;
    }
    // 404: the gateway serves nothing of that Gateway; 5xx: no certificate to show.
    Ok(Finding::new(tries.are(&["404", "500", "503"]), more))
}
