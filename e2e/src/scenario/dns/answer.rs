//! a, b: what every agent answers, and by which policy.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use hickory_proto::rr::RecordType;
use serde_json::json;
use tokio::process::Command;

use super::{MEMBERS, Stage, ZONE};
use crate::{
    ask::{Question, Resolver, serial},
    fleet::shop,
    object::ObjectKey,
    report::{Facts, Finding, figures},
    scenario::spine::{EAST, SOUTH, WEST},
    wait::{self, Look},
};

const QUERIES: u32 = 10_000;
/// How far a share of so many answers may be from its weight, in points.
const POINTS_MAX: f64 = 1.5;
const WEIGHTS: [(&str, f64); 3] = [(EAST, 70.0), (WEST, 20.0), (SOUTH, 10.0)];

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    stage.declare(json!({"strategy": "All"})).await?;
    let shop = Question::address(shop::HOST)?;
    stage.wait_named(&MEMBERS, &shop, &MEMBERS).await?;
    stage.fleet.wait_settled().await?;
    facts.look("a1", "every agent answers dig by UDP, TCP and EDNS alike", dug(stage)).await;
    facts.look("a2", "what is not there, and what nobody gets", refused(stage)).await;
    facts.look("a4", "the queries of RFC 8906 are answered as it asks", asked(stage)).await;
    facts.look("a3", "the policy says what is served", said(stage)).await;
    facts.look("b1", "shares of weighted answers are the weights", weighted(stage)).await;
    facts.look("b2", "geo goes by client subnet, else by the resolver", geo(stage)).await;
    facts.look("b3", "failover names the first tier that serves", failover(stage)).await;
    Ok(())
}

pub(super) async fn dig(stage: &Stage<'_>, member: &str, words: &str) -> Result<String> {
    dig_at(stage.server(member), words).await
}

pub(super) async fn dig_at(server: SocketAddr, words: &str) -> Result<String> {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(["+time=2", "+tries=1", "+norecurse"])
        .args(words.split_whitespace())
        .output()
        .await
        .context("dig (package bind9-dnsutils)")?;
    Ok(String::from_utf8(output.stdout)?)
}

async fn dug(stage: &Stage<'_>) -> Result<Finding> {
    let wanted = stage.addresses_of(&MEMBERS);
    let mut wrong = Vec::new();
    let mut serials = BTreeMap::new();
    for member in MEMBERS {
        for way in ["+notcp +noedns", "+tcp +noedns", "+notcp +edns=0", "+tcp +edns=0 +dnssec"] {
            let said = dig(stage, member, &format!("{way} +short {} A", shop::HOST)).await?;
            let found = said.lines().filter_map(|line| line.trim().parse::<IpAddr>().ok());
            if found.collect::<std::collections::BTreeSet<_>>() != wanted {
                wrong.push(format!("{member} {way}: {said}"));
            }
        }
        serials.insert(member, serial(stage.server(member), ZONE).await?);
    }
    let one = serials.values().collect::<std::collections::BTreeSet<_>>().len() == 1;
    let holds = wrong.is_empty() && one;
    Ok(Finding::new(holds, figures([("serials", json!(serials)), ("wrong", json!(wrong))])))
}

async fn refused(stage: &Stage<'_>) -> Result<Finding> {
    let lines = [
        ("nope.shop.example.com A", "status: NXDOMAIN", "SOA"),
        ("shop.example.com MX", "status: NOERROR", "SOA"),
        ("sHoP.eXaMpLe.cOm A", "status: NOERROR", "sHoP.eXaMpLe.cOm."),
        ("+notcp shop.example.com ANY", "status: NOERROR", "RFC8482"),
        ("example.com NS", "status: NOERROR", "ns-east.example.com."),
        ("ns-east.example.com A", "status: NOERROR", "ns-east.example.com."),
        ("example.org A", "status: REFUSED", "REFUSED"),
        ("+ednsopt=100 +ednsflags=0x40 example.com SOA", "status: NOERROR", "version: 0, flags:;"),
        ("+edns=1 +noednsneg example.com SOA", "status: BADVERS", "version: 0"),
        ("+opcode=15 +noad example.com SOA", "status: NOTIMP", "opcode: RESERVED15"),
    ];
    let mut wrong = Vec::new();
    for member in MEMBERS {
        for (words, status, part) in lines {
            let said = dig(stage, member, &format!("+qr=0 {words}").replace("+qr=0 ", "")).await?;
            if !said.contains(status) || !said.contains(part) {
                wrong.push(format!("{member} {words}: {said}"));
            }
        }
        let said = dig(stage, member, "example.com AXFR").await?;
        if !said.contains("Transfer failed") {
            wrong.push(format!("{member} AXFR: {said}"));
        }
    }
    let checked = (lines.len() + 1) * MEMBERS.len();
    let found = figures([("queries", json!(checked)), ("wrong", json!(wrong))]);
    Ok(Finding::new(wrong.is_empty(), found))
}

/// The lines of section 8 as `dig` has them, what their answers must show, and what they must not.
async fn asked(stage: &Stage<'_>) -> Result<Finding> {
    const SOA: &[&str] = &["status: NOERROR", "flags: qr aa;", "IN\tSOA"];
    const BADVERS: &[&str] = &["status: BADVERS", "flags: qr;", "version: 0", "OPT PSEUDO"];
    const EDNS: &[&str] =
        &["status: NOERROR", "flags: qr aa;", "IN\tSOA", "EDNS: version: 0", "OPT PSEUDO"];
    const NO_EDNS: &[&str] = &["OPT PSEUDO", "MBZ"];
    const NO_SOA: &[&str] = &["IN\tSOA", "MBZ", "OPT=100"];
    const NO_ECHO: &[&str] = &["MBZ", "OPT=100"];
    const NO_OPCODE: &[&str] = &["status: NOTIMP", "flags: qr;", "opcode: RESERVED15"];
    const EMPTY: &[&str] = &["status: NOERROR", "flags: qr aa;", "ANSWER: 0"];
    const RECURSE: &[&str] = &["status: NOERROR", "flags: qr aa rd;", "IN\tSOA"];
    type Line = (&'static str, &'static [&'static str], &'static [&'static str]);
    let lines: [Line; 19] = [
        ("+noedns +noad +norec soa example.com", SOA, NO_EDNS),
        ("+noedns +noad +norec type1000 example.com", EMPTY, NO_EDNS),
        ("+noedns +noad +norec +cd soa example.com", SOA, NO_EDNS),
        ("+noedns +norec +ad soa example.com", SOA, NO_EDNS),
        ("+noedns +noad +norec +zflag soa example.com", SOA, NO_EDNS),
        ("+noedns +noad +rec soa example.com", RECURSE, NO_EDNS),
        ("+noedns +noad +opcode=15 +norec +header-only", NO_OPCODE, NO_SOA),
        ("+noedns +noad +norec +tcp soa example.com", SOA, NO_EDNS),
        ("+nocookie +edns=0 +noad +norec soa example.com", EDNS, NO_ECHO),
        ("+nocookie +edns=1 +noednsneg +noad +norec soa example.com", BADVERS, NO_SOA),
        ("+nocookie +edns=0 +noad +norec +ednsopt=100 soa example.com", EDNS, NO_ECHO),
        ("+nocookie +edns=0 +noad +norec +ednsflags=0x40 soa example.com", EDNS, NO_ECHO),
        (
            "+nocookie +edns=1 +noednsneg +noad +norec +ednsflags=0x40 soa example.com",
            BADVERS,
            NO_SOA,
        ),
        ("+nocookie +edns=1 +noednsneg +noad +norec +ednsopt=100 soa example.com", BADVERS, NO_SOA),
        (
            "+norec +dnssec +bufsize=512 +ignore dnskey example.com",
            &["status: NOERROR", "OPT PSEUDO", "version: 0"],
            NO_ECHO,
        ),
        ("+nocookie +edns=0 +noad +norec +dnssec soa example.com", EDNS, NO_ECHO),
        ("+nocookie +edns=1 +noednsneg +noad +norec +dnssec soa example.com", BADVERS, NO_SOA),
        ("+nocookie +edns=0 +noad +norec +tcp soa example.com", EDNS, NO_ECHO),
        (
            "+edns=0 +noad +norec +cookie +nsid +expire +subnet=0.0.0.0/0 soa example.com",
            EDNS,
            NO_ECHO,
        ),
    ];
    let mut wrong = Vec::new();
    for member in MEMBERS {
        for (words, present, absent) in &lines {
            let said = dig(stage, member, words).await?;
            let said = without_question(&said);
            let holds = present.iter().all(|part| said.contains(part))
                && !absent.iter().any(|part| said.contains(part));
            if !holds {
                wrong.push(format!("{member} {words}: {said}"));
            }
        }
    }
    let checked = lines.len() * MEMBERS.len();
    let found = figures([("queries", json!(checked)), ("wrong", json!(wrong))]);
    Ok(Finding::new(wrong.is_empty(), found))
}

/// The question, which `dig` repeats as `;NAME`, says nothing about the answer.
fn without_question(said: &str) -> String {
    let is_question = |line: &&str| {
        let rest = line.strip_prefix(';');
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    said.lines().filter(|line| !is_question(line)).collect::<Vec<_>>().join("\n")
}

async fn said(stage: &Stage<'_>) -> Result<Finding> {
    let key = ObjectKey::new(keys::API_VERSION, "DNSPolicy", shop::GATEWAY_NAMESPACE, "names");
    let objects = stage.fleet.world().hub().objects();
    let status = wait::until("the policy's status", super::PUBLISH_LIMIT, || async {
        let policy = objects.get(&key).await?.context("there is no policy")?;
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
        Ok(match is("Accepted") && is("Served") {
            true => Look::Done(policy["status"].clone()),
            false => Look::Not(format!("it is {conditions:?}")),
        })
    })
    .await?;
    let servers = status["nameServers"].as_array().map_or(0, Vec::len);
    let holds = servers == MEMBERS.len() && status["names"] == 1;
    Ok(Finding::new(
        holds,
        figures([
            ("names", status["names"].clone()),
            ("name_servers", status["nameServers"].clone()),
        ]),
    ))
}

async fn weighted(stage: &Stage<'_>) -> Result<Finding> {
    let weights: BTreeMap<&str, u32> = [(EAST, 70), (WEST, 20), (SOUTH, 10)].into();
    stage.declare(json!({"strategy": "Weighted", "weights": weights})).await?;
    let shop = Question::address(shop::HOST)?;
    // One address in an answer: the policy is there.
    let mut farthest: f64 = 0.0;
    let mut shares = BTreeMap::new();
    for member in MEMBERS {
        let mut resolver = Resolver::to(stage.server(member)).await?;
        wait::until("one address", super::PUBLISH_LIMIT, || async {
            let mut resolver = Resolver::to(stage.server(member)).await?;
            Ok(match resolver.addresses(&shop).await?.len() {
                1 => Look::Done(()),
                many => Look::Not(format!("an answer has {many}")),
            })
        })
        .await?;
        let mut counts: BTreeMap<IpAddr, u32> = BTreeMap::new();
        let mut paced = tokio::time::interval(std::time::Duration::from_millis(20));
        for query in 0..QUERIES {
            // Below the bound on answers to one network.
            if query % 20 == 0 {
                paced.tick().await;
            }
            for address in resolver.addresses(&shop).await? {
                *counts.entry(address).or_default() += 1;
            }
        }
        let share = |name: &str| {
            let count = counts.get(&stage.addresses[name]).copied().unwrap_or(0);
            100.0 * f64::from(count) / f64::from(QUERIES)
        };
        for (name, weight) in WEIGHTS {
            farthest = farthest.max((share(name) - weight).abs());
        }
        shares.insert(member, WEIGHTS.map(|(name, _)| (name, share(name))));
    }
    Ok(Finding::new(
        farthest <= POINTS_MAX,
        figures([("points_off", json!(farthest)), ("shares", json!(shares))]),
    ))
}

async fn geo(stage: &Stage<'_>) -> Result<Finding> {
    // The machine's own addresses on the bridge are those of the members' network.
    let IpAddr::V4(east) = stage.addresses[EAST] else { anyhow::bail!("no IPv4") };
    let lan = format!("{}.{}.0.0/16", east.octets()[0], east.octets()[1]);
    let networks = [
        json!({"cidr": lan, "region": "eu"}),
        json!({"cidr": "198.51.100.0/24", "region": "us"}),
        json!({"cidr": "203.0.113.0/24", "region": "mars"}),
    ];
    stage.declare(json!({"strategy": "Geo", "networks": networks})).await?;
    let shop = Question::address(shop::HOST)?;
    let from = |network: &str| -> Result<Question> { Ok(shop.clone().from(network.parse()?, 24)) };
    stage.wait_named(&MEMBERS, &shop, &[EAST, WEST]).await?;
    stage.wait_named(&MEMBERS, &from("198.51.100.0")?, &[SOUTH]).await?;
    stage.wait_named(&MEMBERS, &from("203.0.113.0")?, &MEMBERS).await?;
    let answer = Resolver::to(stage.server(EAST)).await?.ask(&from("198.51.100.0")?).await?;
    let scope = answer.edns.as_ref().map(|edns| format!("{:?}", edns.options()));
    let holds = scope.as_ref().is_some_and(|scope| scope.contains("scope_prefix: 24"));
    Ok(Finding::new(holds, figures([("options", json!(scope))])))
}

async fn failover(stage: &Stage<'_>) -> Result<Finding> {
    let tiers = [json!({"members": [SOUTH]}), json!({"members": [WEST]})];
    stage.declare(json!({"strategy": "Failover", "tiers": tiers})).await?;
    let shop = Question::address(shop::HOST)?;
    stage.wait_named(&MEMBERS, &shop, &[SOUTH]).await?;
    let before = serial(stage.server(EAST), ZONE).await?;
    set_state(stage, SOUTH, "Draining").await?;
    stage.wait_named(&MEMBERS, &shop, &[WEST]).await?;
    set_state(stage, WEST, "Draining").await?;
    stage.wait_named(&MEMBERS, &shop, &[EAST]).await?;
    let after = serial(stage.server(EAST), ZONE).await?;
    for member in [SOUTH, WEST] {
        set_state(stage, member, "Active").await?;
    }
    stage.wait_named(&MEMBERS, &shop, &[SOUTH]).await?;
    let question = Question::new(shop::HOST, RecordType::AAAA)?;
    let none = Resolver::to(stage.server(WEST)).await?.addresses(&question).await?;
    Ok(Finding::new(
        after > before && none.is_empty(),
        figures([("serial_before", json!(before)), ("serial_after", json!(after))]),
    ))
}

async fn set_state(stage: &Stage<'_>, member: &str, state: &str) -> Result<()> {
    let patch = json!({"spec": {"trafficState": state}});
    let api: kube::Api<kube::api::DynamicObject> = kube::Api::all_with(
        stage.fleet.world().hub().client(),
        &kube::api::ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk(keys::GROUP, keys::VERSION, "MemberCluster"),
            "memberclusters",
        ),
    );
    let params = kube::api::PatchParams::default();
    api.patch(member, &params, &kube::api::Patch::Merge(&patch)).await?;
    Ok(())
}
