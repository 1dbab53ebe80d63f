//! c: doors. Shut to strangers, open to peers for what was granted, crossed at most once.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use fairlead_crds::keys;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{
    CATALOG_HOME, EAST, GATEWAY_API, SOUTH, Stage, WEST, member_condition, route, route_key, send,
    wait_member_condition,
};
use crate::{
    fleet::{
        dump::{self, Dump},
        impostor::{cluster_uid, tls_secret},
        shop,
    },
    object::ObjectKey,
    pki::{Authority, Leaf, Side},
    report::{Facts, Finding, Holds, figures, seconds},
    tls::{self, Knock},
    wait::{self, Look},
};

const DOOR_PORT: u16 = 15443;
const CROSSINGS: u64 = 5000;

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    facts.look("c1", "every door was proven shut by its agent", proven_shut(stage)).await;
    facts.look("c2", "services were attached after the probe route", probe_first(stage)).await;
    let door = Door::of(stage, EAST, WEST).await.context("finding east's door")?;
    facts.look("c3", "a peer with a granted capability is let in", door.peer()).await;
    facts.look("c4", "a client without certificate is refused by TLS", door.bare()).await;
    facts.look("c5", "a certificate of another CA is refused by TLS", door.foreign()).await;
    facts.look("c6", "an unknown capability gets 404", door.unknown_capability()).await;
    let name = "a service of one member is reached from the others, filters applied once";
    facts.look("c7", name, filters_once(stage)).await;
    facts.look("c8", "no request crosses twice while all sides split", crossed_once(stage)).await;
    facts.look("c9", "a door that lets strangers in is shut, and says so", stranger(stage)).await;
    Ok(())
}

async fn proven_shut(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = figures([]);
    let mut holds = true;
    for member in stage.fleet.world().members() {
        let (status, reason) =
            member_condition(&stage.fleet, member.name(), keys::CONDITION_DOOR_SHUT).await?;
        holds &= status == "True";
        more.insert(member.name().into(), json!(format!("{status} ({reason})")));
    }
    Ok(Finding::new(holds, more))
}

/// API servers count creation in seconds, but revisions exactly: the first one of the probe
/// route must be below those of all routes to services.
async fn probe_first(stage: &Stage<'_>) -> Result<Finding> {
    let mut more = figures([]);
    let mut holds = true;
    for member in stage.fleet.world().members() {
        let routes = member.objects().list(GATEWAY_API, "HTTPRoute", "").await?;
        let ours = routes.iter().filter(|r| r["metadata"]["namespace"] == keys::NAMESPACE);
        let created =
            |route: &Value| route["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        let (probes, services): (Vec<_>, Vec<_>) =
            ours.partition(|route| route["metadata"]["name"] == keys::ROUTE_PROBE);
        let services: Vec<_> = services
            .into_iter()
            .filter(|route| route["metadata"]["name"] != keys::ROUTE_READINESS)
            .collect();
        let probe = probes.first().and_then(|probe| created(probe));
        let later = services.iter().all(|route| created(route) >= probe);
        holds &= probe.is_some() && !services.is_empty() && later;
        more.insert(member.name().into(), json!(format!("{} services", services.len())));
    }
    Ok(Finding::new(holds, more))
}

/// One member's door as a certain peer sees it.
pub(super) struct Door {
    address: SocketAddr,
    name: String,
    ca_pem: String,
    peer: Leaf,
    capability: String,
}

impl Door {
    pub(super) async fn of(stage: &Stage<'_>, target: &str, caller: &str) -> Result<Self> {
        let world = stage.fleet.world();
        let (target_cluster, caller_cluster) = (world.member(target)?, world.member(caller)?);
        let uid = cluster_uid(target_cluster).await?;
        let route = caller_cluster.objects().get(&route_key("cart-global")).await?;
        let route = route.with_context(|| format!("{caller} has no route cart-global"))?;
        Ok(Self {
            address: (target_cluster.gateway_addr().await?, DOOR_PORT).into(),
            name: keys::door_hostname(&uid),
            ca_pem: tls_secret(target_cluster, keys::SECRET_CROSSING_CA).await?.cert_pem,
            peer: tls_secret(caller_cluster, keys::SECRET_EAST_WEST_CLIENT).await?,
            capability: capability(&route, target).context("the route names no capability")?,
        })
    }

    async fn knock(&self, certificate: Option<&Leaf>, capability: &str) -> Result<u16> {
        let request: Request<Empty<Bytes>> = Request::get(shop::CART)
            .header("host", shop::HOST)
            .header(keys::HEADER_BACKEND, capability)
            .body(Empty::new())?;
        let knock =
            Knock { address: self.address, name: &self.name, ca_pem: &self.ca_pem, certificate };
        Ok(knock.request(request).await?.status().as_u16())
    }

    /// Waits until the peer is not let in any more, with a capability that still counts.
    pub(super) async fn wait_refused(&self) -> Result<Finding> {
        wait::until("the peer to be refused by TLS", super::ACT_LIMIT, || async {
            let finding = refused_by_tls(self.knock(Some(&self.peer), &self.capability).await);
            let refused = finding.holds == Holds::Yes;
            Ok(if refused {
                Look::Done(finding)
            } else {
                Look::Not(format!("{:?}", finding.figures))
            })
        })
        .await
    }

    async fn peer(&self) -> Result<Finding> {
        let status = self.knock(Some(&self.peer), &self.capability).await?;
        Ok(Finding::new(status == 200, figures([("status", json!(status))])))
    }

    async fn unknown_capability(&self) -> Result<Finding> {
        let other: String = self.capability.chars().rev().collect();
        let status = self.knock(Some(&self.peer), &other).await?;
        let none = self.knock(Some(&self.peer), "").await?;
        let more = figures([("status", json!(status)), ("empty", json!(none))]);
        Ok(Finding::new(status == 404 && none == 404, more))
    }

    async fn bare(&self) -> Result<Finding> {
        Ok(refused_by_tls(self.knock(None, &self.capability).await))
    }

    async fn foreign(&self) -> Result<Finding> {
        let authority = Authority::new("foreign")?;
        let leaf = authority.issue(Side::Client, "client", &[], &["client.fairlead.internal"])?;
        Ok(refused_by_tls(self.knock(Some(&leaf), &self.capability).await))
    }
}

/// The value that a route sends along to a member's door.
fn capability(route: &Value, target: &str) -> Option<String> {
    let service = keys::member_object(target);
    let rules = route["spec"]["rules"].as_array()?;
    let mut backends = rules.iter().filter_map(|rule| rule["backendRefs"].as_array()).flatten();
    let backend = backends.find(|backend| backend["name"] == service.as_str())?;
    let filters = backend["filters"].as_array()?.iter();
    let mut sets =
        filters.filter_map(|filter| filter["requestHeaderModifier"]["set"].as_array()).flatten();
    let set = sets.find(|set| set["name"] == keys::HEADER_BACKEND)?;
    set["value"].as_str().map(str::to_owned)
}

/// A connection error or an HTTP status would be no proof.
fn refused_by_tls(result: Result<u16>) -> Finding {
    match result {
        Ok(status) => Finding::new(false, figures([("status", json!(status))])),
        Err(error) => match tls::alert(&error) {
            Some(alert) => Finding::new(true, figures([("alert", json!(alert))])),
            None => Finding::new(false, figures([("error", json!(format!("{error:#}")))])),
        },
    }
}

const ONCE: &str = "x-once";

async fn filters_once(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let hub = fleet.world().hub().objects();
    let add = json!([{"name": ONCE, "value": "a"}]);
    let filters = json!([
        {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": add}},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": add}},
    ]);
    hub.apply(&route("once", "/once", &[("catalog", 1)], &filters)).await?;
    fleet.wait_live("/once").await?;
    let mut more = figures([]);
    let mut holds = true;
    for (name, address) in fleet.entries().await? {
        let seen = shop::ask(address, "/once/once/item?x=1").await?;
        let answers = seen.headers.get_all(ONCE).iter().count();
        let echo = seen.echo.context("no echo answered")?;
        let asked = echo.headers.get(ONCE).map_or(0, Vec::len);
        let gateways = if name == CATALOG_HOME { 1 } else { 2 };
        holds &= echo.identity.cluster == CATALOG_HOME
            && echo.path == "/once/item?x=1"
            && echo.host == shop::HOST
            && (asked, answers) == (1, 1)
            && echo.gateways == gateways
            && !echo.headers.contains_key(keys::HEADER_BACKEND);
        let text = format!(
            "{} path {} headers {asked}/{answers} gateways {}",
            echo.identity.cluster, echo.path, echo.gateways
        );
        more.insert(name, json!(text));
    }
    hub.delete(&route_key("once")).await?;
    Ok(Finding::new(holds, more))
}

/// Each gateway on the way adds itself to x-forwarded-for: an answer from the entry's own
/// cluster has passed one, any other two. A loop or a second crossing would be three.
async fn crossed_once(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    fleet.spread_cart().await?;
    let third = 1.0 / 3.0;
    for entry in [EAST, WEST, SOUTH] {
        let wanted = [EAST, WEST, SOUTH].map(|member| (member, third));
        super::wait_shares(fleet, entry, shop::CART, &wanted).await?;
    }
    let (east, west, south) = tokio::try_join!(
        send(fleet, EAST, shop::CART, CROSSINGS),
        send(fleet, WEST, shop::CART, CROSSINGS),
        send(fleet, SOUTH, shop::CART, CROSSINGS)
    )?;
    let (mut local, mut crossed, mut wrong, mut failed) = (0, 0, 0, 0);
    for report in [&east, &west, &south] {
        failed += report.failed();
        for sample in report.samples().iter().filter(|sample| sample.outcome.is_success()) {
            match (sample.outcome.target == sample.entry, sample.outcome.gateways) {
                (true, 1) => local += 1,
                (false, 2) => crossed += 1,
                _ => wrong += 1,
            }
        }
    }
    unspread(stage).await?;
    let holds = wrong == 0 && failed == 0 && local > 0 && crossed > local;
    Ok(Finding::new(
        holds,
        figures([
            ("local", json!(local)),
            ("crossed_once", json!(crossed)),
            ("otherwise", json!(wrong)),
            ("failed", json!(failed)),
        ]),
    ))
}

/// Back to local first.
async fn unspread(stage: &Stage<'_>) -> Result<()> {
    let policy =
        ObjectKey::new(keys::API_VERSION, "TrafficPolicy", shop::NAMESPACE, "cart-everywhere");
    stage.fleet.world().hub().objects().delete(&policy).await?;
    for entry in [EAST, WEST, SOUTH] {
        super::wait_shares(&stage.fleet, entry, shop::CART, &[(entry, 1.0)]).await?;
    }
    Ok(())
}

/// Envoy Gateway's own policy can make client certificates optional, behind the back of every
/// field that we set.
async fn stranger(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let west = fleet.world().member(WEST)?;
    let attached = service_routes(stage, WEST).await?;
    let policy = json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "ClientTrafficPolicy",
        "metadata": {"namespace": keys::NAMESPACE, "name": "let-anybody-in"},
        "spec": {
            "targetRefs": [{
                "group": "gateway.networking.k8s.io", "kind": "Gateway",
                "name": keys::EAST_WEST_GATEWAY,
                // More specific than our own policy for the whole Gateway, so that it counts.
                "sectionName": keys::EAST_WEST_LISTENER_HTTPS,
            }],
            "tls": {"clientValidation": {
                "optional": true,
                "caCertificateRefs": [{
                    "group": "", "kind": "ConfigMap", "name": keys::CONFIG_MAP_EAST_WEST_CALLERS,
                }],
            }},
        },
    });
    let start = std::time::Instant::now();
    west.objects().apply(&policy).await?;
    let shut = keys::CONDITION_DOOR_SHUT;
    let told = wait_member_condition(fleet, WEST, shut, "False", "StrangerLetIn").await;
    let shut_after = seconds(start.elapsed());
    let gone = wait::until("west's service routes to be withdrawn", super::ACT_LIMIT, || async {
        let left = service_routes(stage, WEST).await?;
        Ok(if left == 0 { Look::Done(()) } else { Look::Not(format!("{left} are left")) })
    })
    .await;
    let explained = format!("{:?}", fleet.explain("shop/cart").await?);
    let start = std::time::Instant::now();
    west.objects().delete(&ObjectKey::of(&policy)?).await?;
    told?;
    gone?;
    wait_member_condition(fleet, WEST, shut, "True", "").await?;
    fleet.wait_live(shop::CATALOG).await?;
    let back = service_routes(stage, WEST).await?;
    let holds = explained.contains("StrangerLetIn") && attached > 0 && back == attached;
    Ok(Finding::new(
        holds,
        figures([
            ("withdrawn_after_s", json!(shut_after)),
            ("routes", json!(attached)),
            ("explained", json!(explained.contains("StrangerLetIn"))),
            ("open_again_after_s", json!(seconds(start.elapsed()))),
        ]),
    ))
}

/// How many services a member's door leads to.
async fn service_routes(stage: &Stage<'_>, member: &str) -> Result<usize> {
    let dump = Dump::take(stage.fleet.world().member(member)?).await?;
    let own = [keys::ROUTE_PROBE, keys::ROUTE_READINESS]
        .map(|name| dump::key(GATEWAY_API, "HTTPRoute", keys::NAMESPACE, name));
    let prefix = dump::key(GATEWAY_API, "HTTPRoute", keys::NAMESPACE, "");
    Ok(dump
        .keys()
        .into_iter()
        .filter(|k| k.starts_with(&prefix) && !own.contains(&(*k).to_owned()))
        .count())
}
