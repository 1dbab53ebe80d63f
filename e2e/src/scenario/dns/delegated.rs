//! e: a parent zone delegates to the agents, as one of them writes it there; unbound finds them from the root.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{
    MEMBERS, Stage, ZONE,
    answer::dig_at,
    internet::{Internet, PARENT},
};
use crate::{
    ask::{Question, Resolver},
    fleet::shop,
    object::ObjectKey,
    report::{Facts, Finding, figures, seconds},
    wait::{self, Look},
};

/// Longer than what unbound remembers of a name that was not there.
const RESOLVED_LIMIT: Duration = Duration::from_secs(60);
/// What no zone in a private network can fulfil: addresses of the world, several networks of it, its mail.
const NOT_HERE: [&str; 3] = ["Address", "Connectivity", "DNSSEC"];
/// Zonemaster's parts that judge a zone itself.
const JUDGED: [&str; 6] = ["Basic", "Consistency", "Delegation", "Nameserver", "Syntax", "Zone"];

pub(super) async fn play(stage: &Stage<'_>, internet: &Internet, facts: &mut Facts) -> Result<()> {
    let look = delegated(stage, internet);
    facts.look("e1", "one agent writes the zone's servers into the parent zone", look).await;
    let look = resolved(stage, internet);
    facts.look("e2", "unbound resolves from the root to the agents", look).await;
    facts.look("e3", "dnsviz has no errors", dnsviz(internet)).await;
    facts.look("e4", "zonemaster has no errors", zonemaster(internet)).await;
    Ok(())
}

/// Servers of the zone with their addresses, as the policy's status lists them.
async fn told(stage: &Stage<'_>) -> Result<BTreeSet<(String, String)>> {
    let key = ObjectKey::new(keys::API_VERSION, "DNSPolicy", shop::GATEWAY_NAMESPACE, "names");
    let policy = stage.fleet.world().hub().objects().get(&key).await?;
    let servers = policy.context("there is no policy")?["status"]["nameServers"].clone();
    let pair = |line: &Value| {
        let (name, address) = line.as_str()?.split_once(' ')?;
        Some((format!("{name}."), address.to_owned()))
    };
    Ok(servers.as_array().into_iter().flatten().filter_map(pair).collect())
}

/// NS records of the zone and the addresses beside them, as the parent's server refers to them.
async fn referred(internet: &Internet) -> Result<BTreeSet<(String, String)>> {
    let words = format!("+noall +authority +additional {ZONE} NS");
    let said = dig_at(internet.parent_server(), &words).await?;
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    let names = lines.iter().filter(|line| line.get(3) == Some(&"NS")).map(|line| line[4]);
    let glue = |name: &str| {
        let found = lines.iter().find(|line| line[0] == name && line.get(3) == Some(&"A"));
        found.map(|line| line[4].to_owned()).unwrap_or_default()
    };
    Ok(names.map(|name| (name.to_owned(), glue(name))).collect())
}

async fn delegated(stage: &Stage<'_>, internet: &Internet) -> Result<Finding> {
    let before = referred(internet).await?;
    let start = Instant::now();
    stage.declare(json!({"strategy": "All", "delegation": "ExternalDNS"})).await?;
    let servers = wait::until("the parent to delegate", RESOLVED_LIMIT, || async {
        let (told, referred) = (told(stage).await?, referred(internet).await?);
        Ok(match referred == told && told.len() == MEMBERS.len() {
            true => Look::Done(referred),
            false => Look::Not(format!("{referred:?} instead of {told:?}")),
        })
    })
    .await?;
    let took = seconds(start.elapsed());
    let key = ObjectKey::new(keys::API_VERSION, "DNSPolicy", shop::GATEWAY_NAMESPACE, "names");
    let policy = stage.fleet.world().hub().objects().get(&key).await?.unwrap_or_default();
    let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let served = conditions.into_iter().find(|c| c["type"] == keys::CONDITION_SERVED);
    let served = served.map(|served| served["message"].clone()).unwrap_or_default();
    Ok(Finding::new(
        before.is_empty() && served.as_str().is_some_and(|said| said.contains("delegation")),
        figures([
            ("servers", json!(servers)),
            ("parent", json!(PARENT)),
            ("delegated_after_s", json!(took)),
            ("served", served),
        ]),
    ))
}

async fn resolved(stage: &Stage<'_>, internet: &Internet) -> Result<Finding> {
    let shop = Question::address(shop::HOST)?;
    let wanted: BTreeSet<IpAddr> = stage.addresses_of(&MEMBERS);
    let start = Instant::now();
    wait::until("unbound to find the agents", RESOLVED_LIMIT, || async {
        let found = Resolver::to(internet.resolver()).await?.addresses(&shop).await;
        Ok(match found {
            Ok(found) if found == wanted => Look::Done(()),
            other => Look::Not(format!("{other:?}")),
        })
    })
    .await?;
    let took = seconds(start.elapsed());
    // As a walk from the root sees it, with the agents as the last ones that answer.
    let root = format!("+trace +nodnssec +nocookie @{} {} A", internet.root(), shop::HOST);
    let words: Vec<&str> = ["dig"].into_iter().chain(root.split_whitespace()).collect();
    let said = internet.command(&words).await?;
    let from: Vec<&str> =
        said.lines().filter_map(|line| line.split(" from ").nth(1)?.split('#').next()).collect();
    let last = from.last().and_then(|ip| ip.parse::<IpAddr>().ok());
    let ends_at_agent = last.is_some_and(|ip| wanted.contains(&ip));
    Ok(Finding::new(
        ends_at_agent,
        figures([("resolved_after_s", json!(took)), ("walk", json!(from))]),
    ))
}

/// What dnsviz calls an error, from the root to the zone.
async fn dnsviz(internet: &Internet) -> Result<Finding> {
    let root = format!(".:a.root={}", internet.root());
    let name = shop::HOST;
    let probe = ["dnsviz", "probe", "-4", "-A", "-a", ".", "-x", &root, "-o", "probe.json", name];
    let probed = internet.command(&probe).await?;
    let said = internet.command(&["dnsviz", "grok", "-l", "info", "-r", "probe.json"]).await?;
    let start = said.find('{').with_context(|| format!("dnsviz said {probed} {said}"))?;
    let told: Value = serde_json::from_str(&said[start..]).context("reading dnsviz's words")?;
    let mut errors = Vec::new();
    collect(&told, "errors", "", &mut errors);
    let seen = told.as_object().is_some_and(|names| names.keys().any(|key| key.contains(ZONE)));
    let found = figures([
        ("errors", json!(errors)),
        ("zones_seen", json!(told.as_object().map(|o| o.len()))),
    ]);
    Ok(Finding::new(seen && errors.is_empty(), found))
}

/// Everything under this key, wherever it is.
fn collect(value: &Value, key: &str, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}/{name}");
                match name == key {
                    true => found.push(format!("{path}: {field}")),
                    false => collect(field, key, &path, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, path, found)),
        _ => {}
    }
}

async fn zonemaster(internet: &Internet) -> Result<Finding> {
    let hints = internet.hints().display().to_string();
    let mut words = vec!["zonemaster-cli", "--no-ipv6", "--hints", &hints, "--raw"];
    words.extend(["--level", "NOTICE", "--no-time"]);
    words.extend(JUDGED.iter().flat_map(|part| ["--test", part]));
    words.push(ZONE);
    let said = internet.command(&words).await?;
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let bad = |line: &&&str| line.starts_with("ERROR") || line.starts_with("CRITICAL");
    let errors: Vec<&str> = lines.iter().filter(bad).copied().collect();
    let others: Vec<&str> = lines.iter().filter(|line| !bad(line)).copied().collect();
    Ok(Finding::new(
        errors.is_empty(),
        figures([
            ("errors", json!(errors)),
            ("others", json!(others)),
            ("not_judged", json!(NOT_HERE)),
        ]),
    ))
}
