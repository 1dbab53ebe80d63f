//! i: routes that name what does not exist, or too much.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    EAST, GATEWAY_API, LIMIT, SOUTH, WEST, answers, beside, list, told_of, wait_route_condition,
};
use crate::{
    fleet::{Fleet, entry, shop},
    object::{self, ObjectKey},
    report::{Facts, Finding, figures},
    scenario::spine::{route, route_key},
    wait::{self, Look},
};

/// Six backends in three members: eighteen, two more than a rule may have.
const MANY: usize = 6;
const BACKENDS_MAX: usize = 16;
const REQUESTS: u64 = 1200;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "a backend that does not exist keeps its share and fails; the other serves";
    facts.look("i1", name, missing_backend(fleet)).await;
    let name = "more backends than a rule may have: the best 16 are chosen, and it is told";
    facts.look("i2", name, too_many(fleet)).await;
    let name = "a namespace that a member lacks costs only that member's route";
    facts.look("i3", name, missing_namespace(fleet)).await;
    Ok(())
}

async fn missing_backend(fleet: &Fleet<'_>) -> Result<Finding> {
    let hub = fleet.world().hub().objects();
    hub.apply(&route("half", "/half", &[("cart", 1), ("nowhere", 1)], &Value::Null)).await?;
    let condition =
        wait_route_condition(fleet, "half", "ResolvedRefs", |(status, ..)| status == "False")
            .await?;
    let mut more = figures([("reason", json!(condition.1)), ("message", json!(condition.2))]);
    let mut holds = condition.1 == "BackendNotFound" && condition.2.contains("nowhere");
    for entry in [EAST, WEST, SOUTH] {
        let shares = wait::until(&format!("half of {entry}'s requests to fail"), LIMIT, || async {
            let shares = answers(fleet, entry, "/half", REQUESTS).await?;
            let failed: f64 =
                shares.iter().filter(|(who, _)| who.starts_with('5')).map(|s| s.1).sum();
            let served = shares.get(entry).copied().unwrap_or_default();
            Ok(match (failed - 0.5).abs() < 0.06 && (served - 0.5).abs() < 0.06 {
                true => Look::Done(shares),
                false => Look::Not(format!("{shares:?}")),
            })
        })
        .await;
        holds &= shares.is_ok();
        let text = shares.map_or_else(|error| format!("{error:#}"), |shares| format!("{shares:?}"));
        more.insert(entry.into(), json!(text));
    }
    hub.delete(&route_key("half")).await?;
    beside(fleet, Finding::new(holds, more)).await
}

async fn too_many(fleet: &Fleet<'_>) -> Result<Finding> {
    let names: Vec<String> = (1..=MANY).map(|n| format!("many-{n}")).collect();
    for member in fleet.world().members() {
        for name in &names {
            fleet.serve(member.name(), name, name, 1).await?;
        }
    }
    let backends: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let hub = fleet.world().hub().objects();
    hub.apply(&route("many", "/many", &backends, &Value::Null)).await?;
    fleet.wait_live("/many").await?;
    let told = wait::until("the choice to be told", LIMIT, || async {
        let told = told_of(fleet, "many").await?;
        Ok(if told.contains("TooManyBackends") { Look::Done(()) } else { Look::Not(told) })
    })
    .await;
    let mut more = figures([]);
    let mut holds = told.is_ok();
    for member in fleet.world().members() {
        let rendered = member.objects().get(&route_key("many-global")).await?;
        let rendered = rendered.context("a member lacks the route")?;
        let most =
            list(&rendered, "/spec/rules").iter().map(|rule| list(rule, "/backendRefs").len());
        let most = most.max().unwrap_or_default();
        let address = entry(member).await?;
        let load = crate::load::Load::new(shop::HOST, "/many").entry(member.name(), address);
        let report = load.requests(REQUESTS, 6).run().await;
        let shares = report.shares(|sample| sample.outcome.version.clone());
        let even = names
            .iter()
            .all(|name| (shares.get(name).copied().unwrap_or_default() - 1.0 / 6.0).abs() < 0.05);
        holds &= most <= BACKENDS_MAX && most > 0 && even && report.failed() == 0;
        let text = format!("{most} backends, {} failed, even {even}", report.failed());
        more.insert(member.name().into(), json!(text));
    }
    hub.delete(&route_key("many")).await?;
    for member in fleet.world().members() {
        for name in &names {
            fleet.unserve(member.name(), name).await?;
        }
    }
    more.insert("told".into(), json!(told.is_ok()));
    beside(fleet, Finding::new(holds, more)).await
}

async fn missing_namespace(fleet: &Fleet<'_>) -> Result<Finding> {
    const LONELY: &str = "lonely";
    let world = fleet.world();
    let (hub, east) = (world.hub().objects(), world.member(EAST)?);
    for objects in [hub, east.objects()] {
        objects.apply(&object::namespace(LONELY)).await?;
    }
    let echo = crate::backend::Echo::new(LONELY, "cart", "v1", 1);
    world.deploy_echo(EAST, &echo).await?;
    let mut export = json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "cart"},
    });
    export["metadata"]["namespace"] = json!(LONELY);
    east.objects().apply(&export).await?;
    let mut asked = route("alone", "/alone", &[("cart", 1)], &Value::Null);
    asked["metadata"]["namespace"] = json!(LONELY);
    hub.apply(&asked).await?;
    let live = shop::wait_answers_at(entry(east).await?, "/alone", "/alone through east", |seen| {
        seen.status == 200 && seen.target() == EAST
    })
    .await;
    let told = wait::until("the missing namespace to be told", LIMIT, || async {
        let routes = fleet.routes().await?;
        let view = routes.iter().find(|view| &*view.route.name.name == "alone");
        let text = format!("{view:?} {:?}", fleet.member_view(WEST).await?.exceptions);
        Ok(match text.contains("NamespaceMissing") {
            true => Look::Done(()),
            false => Look::Not(text),
        })
    })
    .await;
    let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", LONELY, "alone");
    hub.delete(&key).await?;
    world.forget(&[LONELY]).await?;
    hub.delete(&ObjectKey::new("v1", "Namespace", "", LONELY)).await?;
    let holds = live.is_ok() && told.is_ok();
    let text = |result: Result<()>| {
        json!(result.map_or_else(|error| format!("{error:#}"), |()| "yes".into()))
    };
    beside(fleet, Finding::new(holds, figures([("served", text(live)), ("told", text(told))])))
        .await
}
