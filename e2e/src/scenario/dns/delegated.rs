//! e: a parent zone delegates to the agents, as one of them writes it there; unbound finds them from the root.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{
    MEMBERS, PUBLISH_LIMIT, Stage, ZONE,
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
/// From the root to the parent, and from there to an agent.
const REFERRALS: usize = 2;
/// What dnsviz calls an error in every private network, as worlds are.
const PRIVATE: [&str; 2] = ["NS_NAME_PRIVATE_IP", "GLUE_PRIVATE_IP"];
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
    let served = wait::until("the status to say who delegates", PUBLISH_LIMIT, || async {
        let policy = stage.fleet.world().hub().objects().get(&key).await?.unwrap_or_default();
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let served = conditions.into_iter().find(|c| c["type"] == keys::CONDITION_SERVED);
        let message = served.map(|served| served["message"].clone()).unwrap_or_default();
        Ok(match message.as_str().is_some_and(|said| said.contains("writes the delegation")) {
            true => Look::Done(message),
            false => Look::Not(format!("it says {message}")),
        })
    })
    .await?;
    Ok(Finding::new(
        before.is_empty(),
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
    let walk = walk(internet).await?;
    // Gateways and name servers share the members' addresses.
    let ends_at_agent = walk.last().is_some_and(|ip| wanted.contains(ip));
    Ok(Finding::new(
        ends_at_agent && walk.len() == REFERRALS + 1,
        figures([("resolved_after_s", json!(took)), ("walk", json!(walk))]),
    ))
}

/// Who is asked on the way from the root to an answer, each as the one before refers to it.
async fn walk(internet: &Internet) -> Result<Vec<IpAddr>> {
    let mut walk = vec![IpAddr::from(internet.root())];
    while walk.len() <= REFERRALS + 1 {
        let at = SocketAddr::new(walk[walk.len() - 1], internet.resolver().port());
        let said = dig_at(at, &format!("{} A", shop::HOST)).await?;
        if said.contains("flags: qr aa") {
            return Ok(walk);
        }
        let (_, glue) = said.split_once("ADDITIONAL SECTION").context("no referral")?;
        let next = glue.lines().find_map(|line| line.split_once("\tA\t")?.1.trim().parse().ok());
        walk.push(next.with_context(|| format!("no address in {said}"))?);
    }
    anyhow::bail!("the walk does not end: {walk:?}")
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
    let (mut errors, mut private) = (Vec::new(), Vec::new());
    collect_errors(&told, "", &mut errors);
    errors.retain(|(path, error)| {
        let is_private = PRIVATE.iter().any(|code| error["code"] == *code);
        private.extend(is_private.then(|| path.clone()));
        !is_private
    });
    let seen = told.as_object().is_some_and(|names| names.keys().any(|key| key.contains(ZONE)));
    let found = figures([("errors", json!(errors)), ("private_addresses_at", json!(private))]);
    Ok(Finding::new(seen && errors.is_empty(), found))
}

/// Everything that stands under `errors`, with its path.
fn collect_errors(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}/{name}");
                match (name.as_str(), field) {
                    ("errors", Value::Array(errors)) => {
                        found.extend(errors.iter().map(|error| (path.clone(), error.clone())));
                    }
                    _ => collect_errors(field, &path, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_errors(item, path, found)),
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
    // A time comes first, then the severity.
    let bad = |line: &&&str| {
        line.split_whitespace().take(2).any(|word| ["ERROR", "CRITICAL"].contains(&word))
    };
    let errors: Vec<&str> = lines.iter().filter(bad).copied().collect();
    let others: Vec<&str> = lines.iter().filter(|line| !bad(line)).copied().collect();
    // Without any line it has judged nothing: no private zone has what it wants of the IPv6 world.
    Ok(Finding::new(
        errors.is_empty() && !others.is_empty(),
        figures([
            ("errors", json!(errors)),
            ("others", json!(others)),
            ("not_judged", json!(NOT_HERE)),
        ]),
    ))
}
