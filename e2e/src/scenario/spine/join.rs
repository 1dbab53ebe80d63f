//! a: joins by the printed command, and every refusal that concerns them.
//!
//! East and west join first; then everything that can be wrong is tried at south, which joins at
//! last all the same: a refused attempt must not stand in the way of a good one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{EAST, SOUTH, Stage, WEST};
use crate::{
    fleet::{
        dump::Dump,
        impostor::{Opening, Refusal, cluster_uid},
        program::Ran,
    },
    object::ObjectKey,
    report::{Facts, Finding, Holds, figures, seconds},
};

/// Refused attempts end long before; a hang is told apart from a refusal by this.
const PATIENCE: &str = "--timeout 60s";
/// Ahead by more than any hub tolerates.
const CLOCK_OFF: Duration = Duration::from_secs(3600);

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let installed = facts.look("a1", "`fairlead init` installs a hub", init(stage)).await;
    ensure!(installed == Holds::Yes, "without a hub there is nothing to see");
    facts.look("a2", "two members join by the printed line", join_two(stage)).await;
    facts.look("a3", "a name that is no label is refused at once", not_a_label(stage)).await;
    refusals(stage, facts).await;
    facts.look("a9", "a cluster whose clock is off is refused", clock_skew(stage)).await;
    facts.look("a10", "an agent cannot speak for another", other_member(stage)).await;
    facts.look("a11", "a message too large ends its stream alone", too_large(stage)).await;
    let joined =
        facts.look("a12", "the refused cluster joins by a good line", join_last(stage)).await;
    ensure!(joined == Holds::Yes, "the other facts need three members");
    stage.fleet.wait_settled().await?;
    Ok(())
}

/// Each leaves an agent behind that was refused, and takes it out again.
async fn refusals(stage: &Stage<'_>, facts: &mut Facts) {
    facts.look("a4", "a wrong CA hash is refused", wrong_ca_hash(stage)).await;
    facts.look("a5", "an unknown token is refused", unknown_token(stage)).await;
    facts.look("a6", "an expired token is refused", expired_token(stage)).await;
    facts.look("a7", "a token that another cluster used is refused", used_token(stage)).await;
    facts.look("a8", "a name of another cluster is refused", taken_name(stage)).await;
}

async fn init(stage: &Stage<'_>) -> Result<Finding> {
    let ran = stage.fleet.init().await?;
    Ok(Finding::new(true, figures([("took_s", json!(seconds(ran.took)))])))
}

async fn join_two(stage: &Stage<'_>) -> Result<Finding> {
    let (east, west) = tokio::try_join!(stage.fleet.join(EAST), stage.fleet.join(WEST))?;
    let took = |ran: &Ran| json!(seconds(ran.took));
    Ok(Finding::new(true, figures([("east_s", took(&east)), ("west_s", took(&west))])))
}

async fn join_last(stage: &Stage<'_>) -> Result<Finding> {
    let ran = stage.fleet.join(SOUTH).await?;
    Ok(Finding::new(true, figures([("took_s", json!(seconds(ran.took)))])))
}

async fn not_a_label(stage: &Stage<'_>) -> Result<Finding> {
    let line = stage.fleet.join_line(SOUTH).await?.replace(SOUTH, "South_1");
    let ran = stage.fleet.at(SOUTH, &line).await?;
    let written = Dump::take(stage.fleet.world().member(SOUTH)?).await?.ours().len();
    let said = ran.said().contains("RFC 1123");
    let more = [("exit", json!(ran.code)), ("objects_written", json!(written))];
    Ok(Finding::new(ran.code == Some(2) && said && written == 0, figures(more)))
}

async fn wrong_ca_hash(stage: &Stage<'_>) -> Result<Finding> {
    let line = stage.fleet.join_line(SOUTH).await?;
    let hash = value_of(&line, "--ca-hash")?;
    let other = format!("sha256:{}", "0".repeat(64));
    // Whatever answers there is not the hub that was meant: only the agent can say so.
    refused(stage, &line.replace(&hash, &other), &["--ca-hash"]).await
}

async fn unknown_token(stage: &Stage<'_>) -> Result<Finding> {
    let line = stage.fleet.join_line(SOUTH).await?;
    let token = value_of(&line, "--token")?;
    let (id, secret) = token.split_once('.').context("a token without a dot")?;
    let other: String = secret.chars().rev().collect();
    refused(stage, &line.replace(&token, &format!("{id}.{other}")), &["TokenUnknown"]).await
}

async fn expired_token(stage: &Stage<'_>) -> Result<Finding> {
    let line = stage.fleet.join_line(SOUTH).await?;
    let token = value_of(&line, "--token")?;
    let id = token.split('.').next().unwrap_or_default();
    let past = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"namespace": "fairlead-system", "name": format!("fairlead-token-{id}")},
        "stringData": {"expires-at": "2020-01-01T00:00:00Z"},
    });
    stage.fleet.world().hub().objects().apply(&past).await?;
    refused(stage, &line, &["TokenExpired"]).await
}

/// East leaves again what it joined with: its own line, tried by another cluster.
async fn used_token(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let line = fleet.join_line("spare").await?;
    let token = value_of(&line, "--token")?;
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    // First used by somebody else: a cluster that is not of this world.
    let used = fleet.enroll_by_hand(&token, "spare", &format!("{uid}-spare"), 0).await?;
    ensure!(used.is_none(), "the token could not be used the first time: {used:?}");
    let finding = refused(stage, &line, &["TokenUsed"]).await;
    fleet.forget_member("spare").await?;
    finding
}

async fn taken_name(stage: &Stage<'_>) -> Result<Finding> {
    let line = stage.fleet.join_line(EAST).await?;
    refused(stage, &line, &["NameTaken"]).await
}

/// Pastes a line at south, which must be refused with these words and leave the hub as it was.
async fn refused(stage: &Stage<'_>, line: &str, words: &[&str]) -> Result<Finding> {
    let fleet = &stage.fleet;
    let ran = fleet.at(SOUTH, &format!("{line} {PATIENCE}")).await?;
    let said = ran.said().to_owned();
    let named = words.iter().all(|word| said.contains(word));
    let key = ObjectKey::new(fairlead_crds::keys::API_VERSION, "MemberCluster", "", SOUTH);
    let registered = fleet.world().hub().objects().get(&key).await?.is_some();
    let holds = ran.code == Some(1) && named && !registered;
    let mut more = figures([("exit", json!(ran.code)), ("took_s", json!(seconds(ran.took)))]);
    more.insert("named".into(), json!(words.join(" ")));
    if !holds {
        more.insert("registered".into(), json!(registered));
        more.insert("said".into(), json!(said));
    }
    // The refused agent would still say why when the next line is pasted.
    fleet.at(SOUTH, "fairlead leave --yes --force").await?.expect_success()?;
    Ok(Finding::new(holds, more))
}

async fn clock_skew(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let line = fleet.join_line("skewed").await?;
    let token = value_of(&line, "--token")?;
    let off = i64::try_from(CLOCK_OFF.as_millis()).context("an hour in milliseconds")?;
    let mut more = figures([]);
    let mut holds = true;
    for (name, off) in [("ahead", off), ("behind", -off)] {
        let refusal = fleet.enroll_by_hand(&token, "skewed", "11111111-skewed", off).await?;
        holds &= is_reason(refusal.as_ref(), "ClockSkew");
        more.insert(name.into(), told(refusal.as_ref()));
    }
    Ok(Finding::new(holds, more))
}

async fn other_member(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    let say = Opening::Hello { member: WEST.into(), cluster_uid: uid };
    let refusal = fleet.open_stream_as(EAST, say).await?;
    let state = fleet.member_view(WEST).await?.state;
    let holds = is_reason(refusal.as_ref(), "WrongIdentity") && format!("{state:?}") == "Up";
    let more = [("answer", told(refusal.as_ref())), ("west", json!(format!("{state:?}")))];
    Ok(Finding::new(holds, figures(more)))
}

async fn too_large(stage: &Stage<'_>) -> Result<Finding> {
    let fleet = &stage.fleet;
    let uid = cluster_uid(fleet.world().member(EAST)?).await?;
    let before = fleet.status().await?.started_at;
    let refusal =
        fleet.open_stream_as(EAST, Opening::Huge { member: EAST.into(), cluster_uid: uid }).await?;
    let status = fleet.status().await?;
    let up = status.members.iter().filter(|member| format!("{:?}", member.state) == "Up").count();
    let holds = refusal.is_some() && status.started_at == before && up == 2;
    let more = [("answer", told(refusal.as_ref())), ("members_up", json!(up))];
    Ok(Finding::new(holds, figures(more)))
}

fn is_reason(refusal: Option<&Refusal>, reason: &str) -> bool {
    refusal.is_some_and(|refusal| refusal.reason == reason)
}

fn told(refusal: Option<&Refusal>) -> Value {
    match refusal {
        None => json!("let in"),
        Some(refusal) if refusal.reason.is_empty() => {
            json!(format!("{}: {}", refusal.code, refusal.message))
        }
        Some(refusal) => json!(refusal.reason),
    }
}

/// The word after an option of a line.
fn value_of(line: &str, option: &str) -> Result<String> {
    let mut words = line.split_whitespace().skip_while(|word| *word != option);
    let value = words.nth(1).with_context(|| format!("the printed line has no {option}"))?;
    Ok(value.to_owned())
}
