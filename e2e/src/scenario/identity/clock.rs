//! a, from 4 on: clocks are moved by more than certificates live, while programs run and requests flow.
//!
//! Certificates live as long as they do by default. What can be moved, and what keeps the machine's
//! time, is told by [`crate::clock`]: here the wall clocks of the hub, of all agents, and of the
//! gateways' Envoys, which check the certificates of the crossing. Ends at the machine's time.
//!
//! Not farther than ten days: after thirty, agents make the crossing's certificates anew, and what begins
//! in the future of Envoy Gateway, whose clock cannot be moved, it takes for no certificate.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use http::Request;
use http_body_util::Empty;
use jiff::fmt::rfc2822;
use serde_json::json;

use super::{end_of, epochs, hub_deployment, keys_stay, leafs, now_ms, wait_leafs};
use crate::{
    clock::Hand,
    fleet::{
        Fleet, shop,
        trial::{PATH, pass, strict},
    },
    http1,
    pki::Leaf,
    report::{Facts, Finding, figures, seconds},
};

const DAY_S: i64 = 86_400;
/// As far as clocks are moved.
const DAY: i64 = 10;
/// What is left of a new certificate: the default is a week.
const LIFE_MIN_MS: u64 = 6 * 86_400_000;
/// Longer than retries of streams take to fail, so that agents are seen without a hub on the new day.
const AWAY: Duration = Duration::from_secs(10);
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Heartbeats and keep-alives of a stream come more often.
const STREAMS_SEEN: Duration = Duration::from_secs(20);
/// Of all members together, with clocks that are behind the hub's: one for each dial.
const RENEWALS_MAX: usize = 12;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    default_life(fleet).await.context("giving members certificates of the default life")?;
    let name = "the hub is down, and all clocks go 10 days on, longer than certificates live: members \
                come back by renewing, nobody joins";
    facts.look("a4", name, away(fleet)).await;
    let name = "agents' clocks step back by 10 days: streams go on, and a hub that was started anew is \
                reached";
    facts.look("a5", name, behind(fleet)).await;
    let name = "the hub's clock is set right, too: what it gave meanwhile is renewed, nobody joins";
    facts.look("a6", name, set_right(fleet)).await;
    Ok(())
}

async fn default_life(fleet: &Fleet<'_>) -> Result<()> {
    fleet.world().hub().objects().apply(&hub_deployment(&json!([]))).await?;
    wait_leafs(fleet, "certificates of a week", |leafs| {
        for (name, leaf) in leafs {
            if end_of(&leaf.cert_pem)? < now_ms() + LIFE_MIN_MS {
                return Ok(Some(format!("{name} has a short one")));
            }
        }
        Ok(None)
    })
    .await?;
    fleet.wait_settled().await.map(drop)
}

/// What must stay, and what must not.
struct Held {
    agents: BTreeMap<String, Leaf>,
    joins: u64,
}

impl Held {
    async fn of(fleet: &Fleet<'_>) -> Result<Self> {
        Ok(Self { agents: leafs(fleet).await?, joins: joins(fleet).await? })
    }

    fn expired(&self, now: u64) -> Result<usize> {
        let mut expired = 0;
        for leaf in self.agents.values() {
            expired += usize::from(end_of(&leaf.cert_pem)? < now);
        }
        Ok(expired)
    }
}

/// How often anybody joined, as the hub's Events tell.
async fn joins(fleet: &Fleet<'_>) -> Result<u64> {
    let events = fleet.world().hub().objects().list("events.k8s.io/v1", "Event", "").await?;
    let joins = events.iter().filter(|event| event["reason"] == "MemberJoined");
    Ok(joins.map(|event| event["series"]["count"].as_u64().unwrap_or(1)).sum())
}

fn at_day(day: i64) -> u64 {
    now_ms().saturating_add_signed(day * DAY_S * 1_000)
}

fn set_members(fleet: &Fleet<'_>, hand: Hand, day: i64) -> Result<()> {
    let fault = fleet.world().fault();
    fleet.world().members().try_for_each(|m| fault.set_clock(m.name(), hand, day * DAY_S))
}

fn set_hub(fleet: &Fleet<'_>, day: i64) -> Result<()> {
    let world = fleet.world();
    world.fault().set_clock(world.hub().name(), Hand::Program, day * DAY_S)
}

/// What an entry's gateway takes for today, in days from ours: it stands in the answers that are its own.
async fn day_of_gateway(fleet: &Fleet<'_>, member: &str) -> Result<i64> {
    let address = fleet.entries().await?[member];
    let request = Request::get("/nothing").header("host", shop::HOST).body(Empty::new())?;
    let answer = http1::send(address, request).await?;
    let date = answer.headers().get("date").context("an answer without a date")?.to_str()?;
    let date = rfc2822::parse(date).with_context(|| format!("reading the date {date:?}"))?;
    let apart_s = date.timestamp().as_second() - jiff::Timestamp::now().as_second();
    Ok((apart_s + DAY_S / 2).div_euclid(DAY_S))
}

async fn wait_renewed(fleet: &Fleet<'_>, before: &Held) -> Result<()> {
    let newer = |now: &BTreeMap<String, Leaf>| {
        let mut agents = before.agents.iter();
        let same = agents.find(|(name, leaf)| now[*name].cert_pem == leaf.cert_pem);
        Ok(same.map(|(name, _)| format!("{name} has its certificate of before")))
    };
    wait_leafs(fleet, "all certificates to be renewed", newer).await.map(drop)
}

async fn away(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let before = Held::of(fleet).await?;
    let load = fleet.start_left(PATH).await?;
    fault.kill_hub().await?;
    let start = Instant::now();
    set_members(fleet, Hand::Gateway, DAY)?;
    set_members(fleet, Hand::Program, DAY)?;
    set_hub(fleet, DAY)?;
    pass(&load, AWAY).await?;
    let gateways_on = day_of_gateway(fleet, super::WEST).await?;
    let (away, expired) = (start.elapsed(), before.expired(at_day(DAY))?);
    fault.restore_hub().await?;
    let start = Instant::now();
    wait_renewed(fleet, &before).await?;
    let renewed = start.elapsed();
    fleet.wait_settled().await?;
    let back = start.elapsed();
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let now = Held::of(fleet).await?;
    let (same_keys, joins) = (keys_stay(&before.agents, &now.agents), now.joins - before.joins);
    let good = now.expired(at_day(DAY) + LIFE_MIN_MS)? == 0;
    let moved = gateways_on == DAY && expired == before.agents.len();
    let holds = moved && good && same_keys && joins == 0 && report.failed() == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("day_of_gateways", json!(gateways_on)),
            ("hub_away_s", json!(seconds(away))),
            ("expired", json!(expired)),
            ("renewed_after_s", json!(seconds(renewed))),
            ("all_as_before_after_s", json!(seconds(back))),
            ("same_keys", json!(same_keys)),
            ("joins", json!(joins)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// Renewals that agents logged.
fn renewals(fleet: &Fleet<'_>) -> Result<usize> {
    let mut renewals = 0;
    for member in fleet.world().members() {
        let log = fleet.world().folder().join(format!("{}-{}.log", member.name(), keys::AGENT));
        let text = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        renewals += text.matches("renewed the agent's certificate").count();
    }
    Ok(renewals)
}

/// The hub's clock stays where it is, so the certificates that it gives are of the agents' future.
async fn behind(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let (before, streams) = (Held::of(fleet).await?, epochs(fleet).await?);
    let renewed = renewals(fleet)?;
    let load = fleet.start_left(PATH).await?;
    set_members(fleet, Hand::Program, 0)?;
    pass(&load, STREAMS_SEEN).await?;
    let same_streams = streams == epochs(fleet).await?;
    fault.kill_hub().await?;
    fault.restore_hub().await?;
    let start = Instant::now();
    wait_renewed(fleet, &before).await?;
    fleet.wait_settled().await?;
    let back = start.elapsed();
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let now = Held::of(fleet).await?;
    let (renewals, joins) = (renewals(fleet)? - renewed, now.joins - before.joins);
    let bounded = (before.agents.len()..=RENEWALS_MAX).contains(&renewals);
    let holds = same_streams && bounded && joins == 0 && report.failed() == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("same_streams", json!(same_streams)),
            ("all_with_a_new_hub_after_s", json!(seconds(back))),
            ("renewals", json!(renewals)),
            ("joins", json!(joins)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

async fn set_right(fleet: &Fleet<'_>) -> Result<Finding> {
    let fault = fleet.world().fault();
    let before = Held::of(fleet).await?;
    let load = fleet.start_left(PATH).await?;
    fault.kill_hub().await?;
    set_hub(fleet, 0)?;
    set_members(fleet, Hand::Gateway, 0)?;
    fault.restore_hub().await?;
    let start = Instant::now();
    wait_renewed(fleet, &before).await?;
    fleet.wait_settled().await?;
    let back = start.elapsed();
    pass(&load, AFTERWARDS).await?;
    let gateways_on = day_of_gateway(fleet, super::WEST).await?;
    let report = strict(&load.stop().await);
    let now = Held::of(fleet).await?;
    let (same_keys, joins) = (keys_stay(&before.agents, &now.agents), now.joins - before.joins);
    // Of today: none of them outlives a certificate that is made now.
    let of_today = now.expired(now_ms() + LIFE_MIN_MS + 2 * 86_400_000)? == now.agents.len();
    let holds = of_today && same_keys && joins == 0 && report.failed() == 0 && gateways_on == 0;
    Ok(Finding::new(
        holds,
        figures([
            ("day_of_gateways", json!(gateways_on)),
            ("all_with_the_hub_after_s", json!(seconds(back))),
            ("same_keys", json!(same_keys)),
            ("joins", json!(joins)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}
