//! f: a route is edited, objects drift, a route is deleted.

use std::time::Instant;

use anyhow::{Result, ensure};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{ACT_LIMIT, EAST, GATEWAY_API, SOUTH, Stage, WEST, dump_members, route, route_key};
use crate::{
    fleet::{dump, shop},
    object::ObjectKey,
    report::{Facts, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
};

const NAME: &str = "edited";
const PATH: &str = "/edited";
/// The route that leads to the member that was lost before.
const CART: &str = "shop/cart";
const SERVICE: &str = "coffee";
const HEADER: &str = "x-edition";

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    let fleet = &stage.fleet;
    for member in fleet.world().members() {
        fleet.serve(member.name(), SERVICE, "v1", shop::REPLICAS).await?;
    }
    fleet.wait_settled().await?;
    // A member that came back in e4 gets its share in steps: each would be a difference.
    fleet.wait_ramped(CART).await?;
    let before = dump_members(fleet.world()).await?;
    fleet.world().hub().objects().apply(&edition("1")).await?;
    wait_edition(stage, "1").await?;
    fleet.wait_settled().await?;
    facts.look("f1", "an edited route is live in all gateways", edited(stage)).await;
    facts.look("f2", "drift made by hand is repaired", drift(stage)).await;
    facts
        .look("f3", "a deleted route leaves nothing, and touches nothing", deleted(stage, &before))
        .await;
    for member in fleet.world().members() {
        fleet.unserve(member.name(), SERVICE).await?;
    }
    Ok(())
}

fn edition(text: &str) -> Value {
    let set = json!([{"name": HEADER, "value": text}]);
    let filters =
        json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}}]);
    route(NAME, PATH, &[(SERVICE, 1)], &filters)
}

async fn wait_edition(stage: &Stage<'_>, text: &str) -> Result<()> {
    let is = |seen: &shop::Seen| {
        seen.status == 200 && seen.headers.get(HEADER).is_some_and(|value| value == text)
    };
    stage.fleet.wait_answers(PATH, &format!("with edition {text}"), is).await
}

async fn edited(stage: &Stage<'_>) -> Result<Finding> {
    let start = Instant::now();
    stage.fleet.world().hub().objects().apply(&edition("2")).await?;
    wait_edition(stage, "2").await?;
    let took = milliseconds(start.elapsed());
    Ok(Finding::new(true, figures([("live_in_all_after_ms", json!(took))])))
}

/// In west a route loses its rules and a remote member's Service vanishes; in east a label of
/// ours goes, and in south the door.
async fn drift(stage: &Stage<'_>) -> Result<Finding> {
    let world = stage.fleet.world();
    let before = dump_members(world).await?;
    let start = Instant::now();
    let global = format!("{NAME}-global");
    let west = world.member(WEST)?.objects();
    let mut bent = edition("bent");
    bent["metadata"]["name"] = json!(global);
    bent["spec"]["rules"][0]["backendRefs"] = json!([{"name": SERVICE, "port": 80}]);
    west.apply(&bent).await?;
    let service = keys::member_object(EAST);
    west.delete(&ObjectKey::new("v1", "Service", keys::NAMESPACE, &service)).await?;
    let east = world.member(EAST)?.objects();
    east.delete(&route_key(&global)).await?;
    let south = world.member(SOUTH)?.objects();
    let door = format!("{}.{SERVICE}", shop::NAMESPACE);
    south.delete(&ObjectKey::new(GATEWAY_API, "HTTPRoute", keys::NAMESPACE, &door)).await?;
    let mut left = Vec::new();
    let repaired = wait::until("drift to be repaired", ACT_LIMIT, || async {
        let after = dump_members(world).await?;
        let mut differences = Vec::new();
        for (member, before) in &before {
            for line in before.ours().differences_to(&after[member].ours()) {
                differences.push(format!("{member}: {line}"));
            }
        }
        Ok(match differences.is_empty() {
            true => Look::Done(()),
            false => Look::Not(differences.join(", ")),
        })
    })
    .await;
    let took = seconds(start.elapsed());
    if let Err(error) = &repaired {
        left.push(format!("{error:#}"));
    }
    stage.fleet.wait_live(PATH).await?;
    Ok(Finding::new(
        repaired.is_ok(),
        figures([("repaired_after_s", json!(took)), ("left", json!(left))]),
    ))
}

async fn deleted(
    stage: &Stage<'_>,
    before: &std::collections::BTreeMap<String, dump::Dump>,
) -> Result<Finding> {
    let world = stage.fleet.world();
    let foreign_before = dump_members(world).await?;
    let start = Instant::now();
    world.hub().objects().delete(&route_key(NAME)).await?;
    let gone = |member: &str, after: &dump::Dump| {
        let names = [
            dump::key(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, &format!("{NAME}-global")),
            dump::key(
                GATEWAY_API,
                "HTTPRoute",
                keys::NAMESPACE,
                &format!("{}.{SERVICE}", shop::NAMESPACE),
            ),
        ];
        let left: Vec<String> =
            names.iter().filter(|name| after.get(name).is_some()).cloned().collect();
        // Everything else is as it was before the route was declared.
        let more = before[member].ours().differences_to(&after.ours());
        left.into_iter().chain(more).collect::<Vec<_>>()
    };
    let result = wait::until("every object of the route to be gone", ACT_LIMIT, || async {
        let after = dump_members(world).await?;
        let left: Vec<String> =
            after.iter().flat_map(|(member, dump)| gone(member, dump)).collect();
        Ok(if left.is_empty() { Look::Done(()) } else { Look::Not(left.join(", ")) })
    })
    .await;
    let took = seconds(start.elapsed());
    let foreign_after = dump_members(world).await?;
    let mut touched = Vec::new();
    let mut untouched = 0;
    for (member, before) in &foreign_before {
        let (before, after) = (before.foreign(), foreign_after[member].foreign());
        touched.extend(before.changes_until(&after));
        untouched += before.len();
    }
    ensure!(untouched > 0, "there are foreign objects in every cluster");
    let holds = result.is_ok() && touched.is_empty();
    let mut more = figures([
        ("gone_after_s", json!(took)),
        ("foreign_untouched", json!(untouched)),
        ("foreign_touched", json!(touched)),
    ]);
    if let Err(error) = result {
        more.insert("left".into(), json!(format!("{error:#}")));
    }
    Ok(Finding::new(holds, more))
}
