//! r: a member is removed by deleting its MemberCluster: how long its stream and its way through doors
//! live on. Its name is then used by another cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::json;

use super::{EAST, LIMIT, SOUTH, WEST, is_reason, leaf_of, thief::at_door, told};
use crate::{
    fleet::{
        Fleet,
        impostor::{Opening, cluster_uid, enroll_request, tls_secret},
        shop,
        trial::{PATH, pass, strict},
    },
    load::Load,
    object::ObjectKey,
    report::{Facts, Figures, Finding, figures, milliseconds},
    wait::{self, Look},
};

/// "Within seconds".
const CLOSED_MAX: Duration = Duration::from_secs(3);
const AFTERWARDS: Duration = Duration::from_secs(3);
const RATE: f64 = 300.0;
const OTHER_UID: &str = "11111111-other-cluster";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "a removed member's stream is closed, and doors refuse its certificate by TLS";
    facts.look("r1", name, removed(fleet)).await;
    let name = "another cluster by its name inherits nothing, and it gets nothing back";
    facts.look("r2", name, reused(fleet)).await;
}

async fn removed(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let client = tls_secret(world.member(SOUTH)?, keys::SECRET_EAST_WEST_CLIENT).await?;
    let mut more = figures([]);
    let mut let_in = true;
    for target in [EAST, WEST] {
        let before = at_door(fleet, target, &client).await?;
        let_in &= !before.starts_with("alert");
        more.insert(format!("{target}_before"), json!(before));
    }
    world.fault().kill_agent(SOUTH).await?;
    let seat = fleet.sit_in_for(SOUTH).await?;
    let load = others(fleet).await?;
    pass(&load, Duration::from_secs(1)).await?;
    let (start, at) = (Instant::now(), load.now());
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", SOUTH);
    world.hub().objects().delete(&key).await?;
    let (closed, why) =
        tokio::time::timeout(LIMIT, seat).await.context("the stream stays open")??;
    let closed = closed.saturating_duration_since(start);
    let doors = tokio::try_join!(
        refused(fleet, EAST, &client, start),
        refused(fleet, WEST, &client, start)
    )?;
    for (target, (after, alert)) in [(EAST, &doors.0), (WEST, &doors.1)] {
        more.insert(format!("{target}_refuses_after_ms"), json!(milliseconds(*after)));
        more.insert(format!("{target}_says"), json!(alert));
    }
    pass(&load, CLOSED_MAX + AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let slowest = closed.max(doors.0.0).max(doors.1.0);
    more.extend(figures([
        ("stream_closed_after_ms", json!(milliseconds(closed))),
        ("stream_was_told", told(Some(&why))),
        // It is shut out at once, with what is on its way to it: whoever wants none to fail drains first.
        ("failed_on_their_way_to_it", json!(report.failed())),
        ("requests", json!(report.total())),
    ]));
    let late = report.only(|sample| sample.started >= at + CLOSED_MAX).failed();
    let holds = let_in && why.reason == "MemberRemoved" && slowest <= CLOSED_MAX;
    Ok(Finding::new(holds && late == 0, more))
}

/// Traffic by the entries of the two members that stay.
async fn others(fleet: &Fleet<'_>) -> Result<crate::load::Running> {
    let mut load = Load::new(shop::HOST, PATH);
    for (name, address) in fleet.entries().await?.into_iter().filter(|(name, _)| name != SOUTH) {
        load = load.entry(&name, address);
    }
    Ok(load.rate(RATE).start())
}

/// How long a door lets a certificate in, and the alert that ends it.
async fn refused(
    fleet: &Fleet<'_>,
    target: &str,
    leaf: &crate::pki::Leaf,
    start: Instant,
) -> Result<(Duration, String)> {
    wait::until(&format!("{target}'s door to refuse south"), LIMIT, || async {
        let answer = at_door(fleet, target, leaf).await?;
        Ok(match answer.starts_with("alert") {
            true => Look::Done((start.elapsed(), answer)),
            false => Look::Not(answer),
        })
    })
    .await
}

async fn reused(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let old = leaf_of(fleet, SOUTH).await?;
    let old_uid = cluster_uid(world.member(SOUTH)?).await?;
    let client = tls_secret(world.member(SOUTH)?, keys::SECRET_EAST_WEST_CLIENT).await?;
    let line = fleet.join_line(SOUTH).await?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "--token");
    let token = words.nth(1).context("the printed line has no --token")?.to_owned();
    let joined = fleet.enroll_as(None, enroll_request(&token, SOUTH, OTHER_UID)?).await?;
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", SOUTH);
    wait::until("the hub to know the other cluster", LIMIT, || async {
        let object = world.hub().objects().get(&key).await?.unwrap_or_default();
        let uid = object["spec"]["clusterUID"].as_str().unwrap_or_default().to_owned();
        Ok(if uid == OTHER_UID { Look::Done(()) } else { Look::Not(uid) })
    })
    .await?;
    let hello = |uid: &str| Opening::Hello { member: SOUTH.into(), cluster_uid: uid.to_owned() };
    let mut more: Figures = figures([("the_other_cluster_joins", told(joined.as_ref()))]);
    let mut holds = joined.is_none();
    let renewal = fleet.renew_as(&old, &old.key_pem).await?.err();
    let rows = [
        ("old_stream", fleet.open_stream_with(&old, hello(&old_uid)).await?, "MemberRemoved"),
        (
            "old_as_the_other",
            fleet.open_stream_with(&old, hello(OTHER_UID)).await?,
            "MemberRemoved",
        ),
        ("old_renewal", renewal, "MemberRemoved"),
    ];
    for (what, refusal, reason) in rows {
        // An old certificate may have expired by now: that is as good a no.
        let expired = is_reason(refusal.as_ref(), "CertificateExpired");
        holds &= is_reason(refusal.as_ref(), reason) || expired;
        more.insert(what.into(), told(refusal.as_ref()));
    }
    for target in [EAST, WEST] {
        let answer = at_door(fleet, target, &client).await?;
        holds &= answer.starts_with("alert");
        more.insert(format!("old_at_{target}s_door"), json!(answer));
    }
    fleet.forget_member(SOUTH).await?;
    world.fault().restore_agent(SOUTH).await?;
    Ok(Finding::new(holds, more))
}
