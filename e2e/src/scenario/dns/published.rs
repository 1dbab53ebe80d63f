//! d: names that a DNS provider answers: DNSEndpoint, ExternalDNS, BIND by RFC 2136 with TSIG, unbound, dig. The
//! member that publishes dies, another one takes over, and nobody notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    MEMBERS, Stage,
    answer::dig_at,
    internet::{Internet, KEY, PARENT, PUBLISHED},
};
use crate::{
    ask::{Question, Resolver},
    fleet::shop,
    launch::Launch,
    object::{ObjectKey, parse_folder},
    process::Unit,
    report::{Facts, Finding, figures, milliseconds, seconds},
    scenario::spine::GATEWAY_API,
    wait::{self, Look},
};

const NAME: &str = "shop.example.net";
const ENDPOINT: &str = "externaldns.k8s.io/v1alpha1";
/// So often the name is asked for while its publisher changes.
const BEAT: Duration = Duration::from_millis(50);
/// A member is held for dead, another one writes, a provider is told, a cache runs out.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(90);
const RETURN_LIMIT: Duration = Duration::from_secs(180);
const GRACE: Duration = Duration::from_secs(2);

/// An ExternalDNS in every member, all with one owner.
pub(super) struct ExternalDns(BTreeMap<&'static str, Unit>);

impl ExternalDns {
    pub(super) async fn start(stage: &Stage<'_>, internet: &Internet) -> Result<Self> {
        let crds = parse_folder(&stage.tools.endpoint_crd)?;
        let mut units = BTreeMap::new();
        for member in MEMBERS {
            let cluster = stage.fleet.world().member(member)?;
            cluster.objects().apply_crds(&crds).await?;
            let argv = arguments(stage, internet, &cluster.kubeconfig().display().to_string());
            let netns = Some(cluster.local()?.namespace.clone());
            let log = stage.fleet.world().folder().join(format!("{member}-external-dns.log"));
            let launch = Launch { argv, netns, ..Launch::default() };
            let unit = Unit::new(format!("external-dns of {member}"), log, launch);
            unit.start().await?;
            units.insert(member, unit);
        }
        Ok(Self(units))
    }

    pub(super) async fn stop(&self) {
        for unit in self.0.values() {
            unit.stop(GRACE).await;
        }
    }
}

/// As the guide says, but in a hurry.
fn arguments(stage: &Stage<'_>, internet: &Internet, kubeconfig: &str) -> Vec<String> {
    let mut argv = vec![stage.tools.external_dns.display().to_string()];
    argv.extend([
        format!("--kubeconfig={kubeconfig}"),
        format!("--namespace={}", keys::NAMESPACE),
        format!("--rfc2136-host={}", internet.parent),
        format!("--rfc2136-zone={PARENT}"),
        format!("--rfc2136-zone={PUBLISHED}"),
        format!("--rfc2136-tsig-keyname={KEY}"),
        format!("--rfc2136-tsig-secret={}", internet.secret),
    ]);
    let fixed = [
        "--source=crd",
        "--crd-source-apiversion=externaldns.k8s.io/v1alpha1",
        "--crd-source-kind=DNSEndpoint",
        "--provider=rfc2136",
        "--rfc2136-port=53",
        "--rfc2136-tsig-secret-alg=hmac-sha256",
        "--rfc2136-tsig-axfr",
        "--registry=txt",
        "--txt-owner-id=fairlead",
        "--policy=upsert-only",
        "--managed-record-types=A",
        "--managed-record-types=AAAA",
        "--managed-record-types=CNAME",
        "--managed-record-types=NS",
        "--interval=5s",
        "--events",
        "--min-event-sync-interval=1s",
        "--metrics-address=127.0.0.1:7979",
    ];
    argv.extend(fixed.map(str::to_owned));
    argv
}

pub(super) async fn play(
    stage: &Stage<'_>,
    internet: &Internet,
    external: &ExternalDns,
    facts: &mut Facts,
) -> Result<()> {
    let look = published(stage, internet);
    facts.look("d1", "a name goes by ExternalDNS and BIND to unbound", look).await;
    let publisher = publisher(stage).await?.context("nobody publishes")?;
    let look = handed_over(stage, internet, publisher);
    facts.look("d2", "the publisher dies, another one takes over, the name stays", look).await;
    let look = returned(stage, internet, external, publisher);
    facts.look("d3", "it returns: its addresses are back, one member writes", look).await;
    take_away(stage).await
}

fn policy() -> Value {
    let target = json!({"group": keys::GATEWAY_GROUP, "kind": "Gateway", "name": "public", "sectionName": "net"});
    json!({
        "apiVersion": keys::API_VERSION, "kind": "DNSPolicy",
        "metadata": {"name": "published", "namespace": shop::GATEWAY_NAMESPACE},
        "spec": {
            "targetRefs": [target], "zone": PUBLISHED, "ttlSeconds": 5,
            "strategy": "All", "publish": "ExternalDNS",
        },
    })
}

fn route() -> Value {
    let backend =
        json!({"group": keys::MCS_GROUP, "kind": "ServiceImport", "name": "cart", "port": 80});
    let parent =
        json!({"name": "public", "namespace": shop::GATEWAY_NAMESPACE, "sectionName": "net"});
    json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "cart-net", "namespace": shop::NAMESPACE},
        "spec": {
            "parentRefs": [parent], "hostnames": [NAME], "rules": [{"backendRefs": [backend]}],
        },
    })
}

/// Its names as they are asked for.
async fn published(stage: &Stage<'_>, internet: &Internet) -> Result<Finding> {
    const OUTSIDE: (&str, &str) = ("http", "*.example.com");
    let hub = stage.fleet.world().hub().objects();
    let gateway = super::inside::gateway(&[OUTSIDE, ("net", "*.example.net")]);
    for object in [&gateway, &route(), &policy()] {
        hub.apply(object).await?;
    }
    let start = Instant::now();
    wait_resolved(stage, internet, &MEMBERS, TAKEOVER_LIMIT).await?;
    let took = seconds(start.elapsed());
    let said = dig_at(internet.resolver(), &format!("+recurse {NAME} A")).await?;
    let owned = dig_at(internet.parent_server(), &format!("+short a-{NAME} TXT")).await?;
    let holds = said.contains("status: NOERROR") && owned.contains("external-dns/owner=fairlead");
    Ok(Finding::new(
        holds,
        figures([
            ("resolved_after_s", json!(took)),
            ("publisher", json!(publisher(stage).await?)),
            ("writers", json!(writers(stage).await?)),
        ]),
    ))
}

/// Who writes for the policy, as its status says.
async fn publisher(stage: &Stage<'_>) -> Result<Option<&'static str>> {
    let key = ObjectKey::new(keys::API_VERSION, "DNSPolicy", shop::GATEWAY_NAMESPACE, "published");
    let policy = stage.fleet.world().hub().objects().get(&key).await?.unwrap_or_default();
    let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let served = conditions.into_iter().find(|c| c["type"] == keys::CONDITION_SERVED);
    let message = served.map(|served| served["message"].clone()).unwrap_or_default();
    let named = |member: &&str| {
        message.as_str().is_some_and(|text| text.ends_with(&format!("through {member}")))
    };
    Ok(MEMBERS.into_iter().find(named))
}

/// Members whose cluster has the policy's object.
async fn writers(stage: &Stage<'_>) -> Result<Vec<&'static str>> {
    let mut writers = Vec::new();
    for member in MEMBERS {
        let name = format!("{}.published.names", shop::GATEWAY_NAMESPACE);
        let key = ObjectKey::new(ENDPOINT, "DNSEndpoint", keys::NAMESPACE, &name);
        if stage.fleet.world().member(member)?.objects().get(&key).await?.is_some() {
            writers.push(member);
        }
    }
    Ok(writers)
}

/// Waits until unbound names exactly these members.
async fn wait_resolved(
    stage: &Stage<'_>,
    internet: &Internet,
    members: &[&str],
    limit: Duration,
) -> Result<()> {
    let question = Question::address(NAME)?;
    let wanted = stage.addresses_of(members);
    wait::until(&format!("unbound to name {members:?}"), limit, || async {
        let found = Resolver::to(internet.resolver()).await?.addresses(&question).await;
        Ok(match found {
            Ok(found) if found == wanted => Look::Done(()),
            other => Look::Not(format!("{other:?}")),
        })
    })
    .await
}

/// What a client saw that asked all the time.
#[derive(Default)]
struct Watched {
    asked: u32,
    /// When no address came back, and why.
    unresolved: Vec<(Duration, String)>,
    slowest: Duration,
    /// When an answer differed from the one before.
    changes: Vec<(Duration, BTreeSet<IpAddr>)>,
}

/// Asks the resolver at every beat until told to stop.
async fn watch(internet: &Internet, mut stop: watch::Receiver<bool>) -> Result<Watched> {
    let question = Question::address(NAME)?;
    let mut resolver = Resolver::to(internet.resolver()).await?;
    let (mut watched, start) = (Watched::default(), Instant::now());
    let mut beat = tokio::time::interval(BEAT);
    while !*stop.borrow_and_update() {
        beat.tick().await;
        let asked = Instant::now();
        let found = resolver.addresses(&question).await;
        watched.asked += 1;
        watched.slowest = watched.slowest.max(asked.elapsed());
        match found {
            Ok(found) if !found.is_empty() => {
                if watched.changes.last().is_none_or(|(_, last)| *last != found) {
                    watched.changes.push((start.elapsed(), found));
                }
            }
            Ok(_) => watched.unresolved.push((start.elapsed(), "no address".to_owned())),
            Err(error) => watched.unresolved.push((start.elapsed(), format!("{error:#}"))),
        }
    }
    Ok(watched)
}

/// Watches the name while something happens.
async fn while_watched<T>(
    internet: &Internet,
    story: impl Future<Output = Result<T>>,
) -> Result<(T, Watched)> {
    let (stop, stopped) = watch::channel(false);
    let story = async {
        let told = story.await;
        let _ = stop.send(true);
        told
    };
    let (told, watched) = tokio::join!(story, watch(internet, stopped));
    Ok((told?, watched?))
}

async fn handed_over(
    stage: &Stage<'_>,
    internet: &Internet,
    victim: &'static str,
) -> Result<Finding> {
    let world = stage.fleet.world();
    let others: Vec<&str> = MEMBERS.into_iter().filter(|member| *member != victim).collect();
    let story = async {
        world.fault().isolate(victim)?;
        let start = Instant::now();
        // Its ExternalDNS dies with all the rest.
        world.fault().kill_member(victim).await?;
        let heir = wait::until("another publisher", TAKEOVER_LIMIT, || async {
            Ok(match publisher(stage).await? {
                Some(heir) if heir != victim => Look::Done(heir),
                other => Look::Not(format!("it is {other:?}")),
            })
        })
        .await?;
        let elected = start.elapsed();
        wait_resolved(stage, internet, &others, TAKEOVER_LIMIT).await?;
        anyhow::Ok((heir, elected, start.elapsed()))
    };
    let ((heir, elected, gone), watched) = while_watched(internet, story).await?;
    Ok(Finding::new(
        watched.unresolved.is_empty(),
        figures([
            ("from", json!(victim)),
            ("to", json!(heir)),
            ("handed_over_after_s", json!(seconds(elected))),
            ("dead_left_answers_after_s", json!(seconds(gone))),
            ("asked", json!(watched.asked)),
            ("unresolved", json!(watched.unresolved.len())),
            ("first_unresolved", json!(watched.unresolved.first().map(|(_, why)| why))),
            ("slowest_ms", json!(milliseconds(watched.slowest))),
        ]),
    ))
}

async fn returned(
    stage: &Stage<'_>,
    internet: &Internet,
    external: &ExternalDns,
    victim: &'static str,
) -> Result<Finding> {
    let world = stage.fleet.world();
    let story = async {
        let start = Instant::now();
        world.fault().rejoin(victim)?;
        world.fault().restore_member(victim).await?;
        external.0[victim].start().await?;
        wait_resolved(stage, internet, &MEMBERS, RETURN_LIMIT).await?;
        let named = start.elapsed();
        let writers = wait::until("one writer", RETURN_LIMIT, || async {
            let writers = writers(stage).await?;
            Ok(match writers.as_slice() {
                [one] if *one != victim => Look::Done(writers),
                _ => Look::Not(format!("{writers:?} write")),
            })
        })
        .await?;
        anyhow::Ok((named, writers))
    };
    let ((named, writers), watched) = while_watched(internet, story).await?;
    stage.fleet.wait_settled().await?;
    Ok(Finding::new(
        watched.unresolved.is_empty(),
        figures([
            ("named_after_s", json!(seconds(named))),
            ("writers", json!(writers)),
            ("asked", json!(watched.asked)),
            ("unresolved", json!(watched.unresolved.len())),
            ("answers_in_turn", json!(watched.changes.len())),
        ]),
    ))
}

async fn take_away(stage: &Stage<'_>) -> Result<()> {
    let hub = stage.fleet.world().hub().objects();
    let namespace = shop::GATEWAY_NAMESPACE;
    hub.delete(&ObjectKey::new(keys::API_VERSION, "DNSPolicy", namespace, "published")).await?;
    hub.delete(&ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, "cart-net")).await?;
    hub.apply(&super::inside::gateway(&[("http", "*.example.com")])).await?;
    Ok(())
}
