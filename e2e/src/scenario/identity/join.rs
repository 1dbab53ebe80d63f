//! j: every way in which a join is refused, by the words of the hub. How `fairlead join` tells a person is
//! the spine's (a3 to a9), as is a hash that is not the hub's.

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_proto::pb;
use serde_json::json;

use super::{EAST, WEST, is_reason, told};
use crate::{
    fleet::{
        Fleet,
        impostor::{cluster_uid, enroll_request},
    },
    report::{Facts, Finding, figures},
};

/// A member that is not of this world.
const SPARE: &str = "spare";
const SPARE_UID: &str = "11111111-spare";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "every join that must be refused is, with its reason; nothing is registered by them";
    facts.look("j1", name, refusals(fleet)).await;
}

/// The token of a line that was just printed.
async fn token(fleet: &Fleet<'_>, member: &str) -> Result<String> {
    let line = fleet.join_line(member).await?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "--token");
    Ok(words.nth(1).context("the printed line has no --token")?.to_owned())
}

async fn expire(fleet: &Fleet<'_>, token: &str) -> Result<()> {
    let id = token.split('.').next().unwrap_or_default();
    let past = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "namespace": keys::NAMESPACE, "name": format!("{}{id}", keys::JOIN_TOKEN_PREFIX),
        },
        "stringData": {"expires-at": "2020-01-01T00:00:00Z"},
    });
    fleet.world().hub().objects().apply(&past).await.map(drop)
}

async fn refusals(fleet: &Fleet<'_>) -> Result<Finding> {
    let west_uid = cluster_uid(fleet.world().member(WEST)?).await?;
    let (good, expired) = (token(fleet, SPARE).await?, token(fleet, SPARE).await?);
    let (used, of_east) = (token(fleet, SPARE).await?, token(fleet, EAST).await?);
    expire(fleet, &expired).await?;
    let first = fleet.enroll_as(None, enroll_request(&used, SPARE, SPARE_UID)?).await?;
    anyhow::ensure!(first.is_none(), "the token could not be used the first time: {first:?}");
    fleet.forget_member(SPARE).await?;
    let before = fleet.status().await?.members.len();

    let ask = |token: &str| enroll_request(token, SPARE, SPARE_UID);
    let plain = ask(&good)?;
    let backwards: String = good.chars().rev().collect();
    let (future, past) = (plain.now_ms + 3_600_000, plain.now_ms.saturating_sub(3_600_000));
    let other = Some(pb::Protocol { major: 99, minor: 0 });
    let rows = [
        ("no token", "TokenUnknown", ask("")?),
        ("a token that was made up", "TokenUnknown", ask(&backwards)?),
        ("an expired token", "TokenExpired", ask(&expired)?),
        ("a used token, another key", "TokenUsed", ask(&used)?),
        ("a token of another name", "WrongIdentity", ask(&of_east)?),
        ("a name that is no label", "UnsupportedValue", {
            pb::EnrollRequest { member: "Spare_1".into(), ..plain.clone() }
        }),
        ("a cluster without UID", "UnsupportedValue", {
            pb::EnrollRequest { cluster_uid: String::new(), ..plain.clone() }
        }),
        ("a clock ahead", "ClockSkew", pb::EnrollRequest { now_ms: future, ..plain.clone() }),
        ("a clock behind", "ClockSkew", pb::EnrollRequest { now_ms: past, ..plain.clone() }),
        ("a name of another cluster", "NameTaken", enroll_request(&of_east, EAST, SPARE_UID)?),
        ("a member by a second name", "ClusterJoinedAlready", {
            pb::EnrollRequest { cluster_uid: west_uid, ..plain.clone() }
        }),
        ("an unknown protocol", "VersionUnsupported", {
            pb::EnrollRequest { protocol: other, ..plain.clone() }
        }),
        ("no signing request", "Unreadable", {
            pb::EnrollRequest { csr_pem: "none".into(), ..plain.clone() }
        }),
    ];
    let mut more = figures([]);
    let mut holds = true;
    for (what, reason, request) in rows {
        let refusal = fleet.enroll_as(None, request).await?;
        holds &= is_reason(refusal.as_ref(), reason);
        more.insert(what.into(), told(refusal.as_ref()));
    }
    let after = fleet.status().await?.members.len();
    more.insert("members".into(), json!(format!("{before} -> {after}")));
    // A refused attempt must not burn the token.
    let good = fleet.enroll_as(None, plain).await?;
    more.insert("then the good one".into(), told(good.as_ref()));
    fleet.forget_member(SPARE).await?;
    Ok(Finding::new(holds && before == after && good.is_none(), more))
}
