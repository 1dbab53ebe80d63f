//! a: agents' certificates are renewed in time, and after their time. From 4 on: [`super::clock`].

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use rcgen::KeyPair;
use serde_json::json;

use super::{LIFE, WEST, end_of, epochs, is_reason, keys_stay, leafs, now_ms, told, wait_leafs};
use crate::{
    fleet::{
        Fleet,
        impostor::{Opening, cluster_uid},
        trial::{PATH, strict},
    },
    pki::Leaf,
    report::{Facts, Finding, figures},
};

/// So often each certificate is renewed while it is looked at.
const RENEWALS: u64 = 2;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name =
        "certificates are renewed after two thirds of their life; streams and requests go on";
    // Two renewals later it has expired.
    let first = leafs(fleet).await?;
    facts.look("a1", name, in_time(fleet)).await;
    let name = "an expired certificate can be renewed with its own key, and nothing else";
    facts.look("a3", name, only_renewed(fleet, &first[WEST])).await;
    Ok(())
}

async fn in_time(fleet: &Fleet<'_>) -> Result<Finding> {
    let load = fleet.start_left(PATH).await?;
    let (mut held, streams) = (leafs(fleet).await?, epochs(fleet).await?);
    let first = held.clone();
    let life = LIFE.as_secs_f64();
    let mut shares: Vec<f64> = Vec::new();
    for _ in 0..RENEWALS {
        let before = held.clone();
        let newer = |now: &BTreeMap<String, Leaf>| {
            let same = before.iter().find(|(name, leaf)| now[*name].cert_pem == leaf.cert_pem);
            Ok(same.map(|(name, _)| format!("{name} has its certificate of before")))
        };
        held = wait_leafs(fleet, "all certificates to be renewed", newer).await?;
        for (name, leaf) in &held {
            // Both begin when they are made, and live the same.
            let later = end_of(&leaf.cert_pem)?.saturating_sub(end_of(&before[name].cert_pem)?);
            shares.push((Duration::from_millis(later).as_secs_f64() / life * 100.0).round());
        }
    }
    let same_streams = streams == epochs(fleet).await?;
    let report = strict(&load.stop().await);
    let in_time = shares.iter().all(|share| (50.0..100.0).contains(share));
    Ok(Finding::new(
        report.failed() == 0 && same_streams && in_time && keys_stay(&first, &held),
        figures([
            ("life_s", json!(life)),
            ("renewed_after_percent_of_it", json!(shares)),
            ("same_streams", json!(same_streams)),
            ("same_keys", json!(keys_stay(&first, &held))),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

async fn only_renewed(fleet: &Fleet<'_>, leaf: &Leaf) -> Result<Finding> {
    let expired = end_of(&leaf.cert_pem)? < now_ms();
    let uid = cluster_uid(fleet.world().member(WEST)?).await?;
    let hello = Opening::Hello { member: WEST.into(), cluster_uid: uid };
    let stream = fleet.open_stream_with(leaf, hello).await?;
    let other = KeyPair::generate().context("making a key")?.serialize_pem();
    let other = fleet.renew_as(leaf, &other).await?.err();
    let own = fleet.renew_as(leaf, &leaf.key_pem).await?;
    let ends_in = own.as_ref().ok().map(|pem| end_of(pem)).transpose()?;
    let fresh = ends_in.is_some_and(|end| end > now_ms());
    Ok(Finding::new(
        expired
            && is_reason(stream.as_ref(), "CertificateExpired")
            && is_reason(other.as_ref(), "WrongIdentity")
            && fresh,
        figures([
            ("expired", json!(expired)),
            ("stream", told(stream.as_ref())),
            ("another_key", told(other.as_ref())),
            ("own_key", told(own.as_ref().err())),
        ]),
    ))
}
