//! h and i: definitions that are absent, of another version, or that know more fields than ours.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{EAST, GATEWAY_API, LIMIT, SOUTH, WEST, beside, told_of};
use crate::{
    cluster::Cluster,
    fleet::{Fleet, dump::Dump, shop},
    object::{self, ObjectKey},
    report::{Facts, Finding, figures, seconds},
    scenario::spine::{route, route_key},
    wait::{self, Look},
};

const CRD_API: &str = "apiextensions.k8s.io/v1";
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";
const CLASSES: &str = "gatewayclasses.gateway.networking.k8s.io";
const VERSION: &str = "gateway.networking.k8s.io/bundle-version";
/// A field that no version of the Gateway API has.
const UNKNOWN: &str = "retryOfTomorrow";

pub(super) async fn play_before_join(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "without Gateway API a cluster cannot join, and nothing is written";
    facts.look("h1", name, absent(fleet)).await;
    let name = "another version of the Gateway API is told, and tried";
    facts.look("h2", name, untested(fleet)).await;
    Ok(())
}

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name =
        "unknown fields of a route are kept; where the API would drop one, the rule is left out";
    facts.look("i4", name, unknown_field(fleet)).await;
    Ok(())
}

fn definitions(fleet: &Fleet<'_>) -> Result<Vec<Value>> {
    object::parse_folder(&fleet.world().tools().crds.join("gateway-standard"))
}

async fn absent(fleet: &Fleet<'_>) -> Result<Finding> {
    let south = fleet.world().member(SOUTH)?;
    let gateway = south.local()?.gateway.as_ref().context("south has no gateway")?;
    let definitions = definitions(fleet)?;
    let line = fleet.join_line(SOUTH).await?;
    gateway.kill().await;
    for definition in definitions.iter().filter(|d| d["kind"] == "CustomResourceDefinition") {
        south.objects().delete(&ObjectKey::of(definition)?).await?;
    }
    for definition in definitions.iter().filter(|d| d["kind"] == "CustomResourceDefinition") {
        south.objects().wait_gone(&ObjectKey::of(definition)?, LIMIT).await?;
    }
    let ran = fleet.at(SOUTH, &line).await?;
    let written = Dump::take(south).await?.ours().len();
    south.objects().apply_crds(&definitions).await?;
    gateway.install(south).await?;
    let said = ran.said();
    let told = said.contains("not installed") && said.contains("kubectl apply");
    let holds = ran.code == Some(1) && told && written == 0;
    let more =
        [("exit", json!(ran.code)), ("objects_written", json!(written)), ("told", json!(told))];
    Ok(Finding::new(holds, figures(more)))
}

async fn untested(fleet: &Fleet<'_>) -> Result<Finding> {
    let south = fleet.world().member(SOUTH)?;
    set_version(south, "v1.99.0").await?;
    let ran = fleet.join(SOUTH).await?;
    let definitions = definitions(fleet)?;
    let classes = definitions.iter().find(|d| d["metadata"]["name"] == CLASSES);
    let was = classes.and_then(|crd| crd["metadata"]["annotations"][VERSION].as_str());
    set_version(south, was.context("the definitions do not say their version")?).await?;
    let told = ran.stderr.contains("UntestedVersion") && ran.stderr.contains("1.99");
    let more = [("took_s", json!(seconds(ran.took))), ("told", json!(told))];
    Ok(Finding::new(told, figures(more)))
}

async fn set_version(cluster: &Cluster, version: &str) -> Result<()> {
    for name in [CLASSES, HTTP_ROUTES, "gateways.gateway.networking.k8s.io"] {
        let key = ObjectKey::new(CRD_API, "CustomResourceDefinition", "", name);
        let mut crd = cluster.objects().get(&key).await?.context("a definition is gone")?;
        crd["metadata"]["annotations"][VERSION] = json!(version);
        cluster.objects().apply(&bare(crd)).await?;
    }
    Ok(())
}

/// What may be applied of an object that was read.
fn bare(mut object: Value) -> Value {
    let name = object["metadata"]["name"].clone();
    let annotations = object["metadata"]["annotations"].clone();
    let labels = object["metadata"]["labels"].clone();
    object["metadata"] = json!({"name": name, "annotations": annotations, "labels": labels});
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    object
}

/// East and west learn to keep unknown fields in rules, and so does the hub; south drops them.
async fn unknown_field(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let tolerant = [world.hub(), world.member(EAST)?, world.member(WEST)?];
    for cluster in tolerant {
        set_tolerance(fleet, cluster, Tolerance::Keep).await?;
    }
    let mut asked = route("tomorrow", "/tomorrow", &[("cart", 1)], &Value::Null);
    asked["spec"]["rules"][0][UNKNOWN] = json!({"attempts": 3});
    wait::until("the hub's API to keep the field", LIMIT, || async {
        let kept = world.hub().objects().apply(&asked).await?;
        Ok(match kept["spec"]["rules"][0][UNKNOWN].is_object() {
            true => Look::Done(()),
            false => Look::Not("it was dropped".into()),
        })
    })
    .await?;
    let rendered = wait::until("east and west to hold the field", LIMIT, || async {
        for member in [EAST, WEST] {
            let found = world.member(member)?.objects().get(&route_key("tomorrow-global")).await?;
            let found = found.with_context(|| format!("{member} has no such route"))?;
            if !found["spec"]["rules"][0][UNKNOWN].is_object() {
                return Ok(Look::Not(format!("{member} has {}", found["spec"]["rules"][0])));
            }
        }
        Ok(Look::Done(()))
    })
    .await;
    let told = wait::until("the rule that south cannot hold to be told", LIMIT, || async {
        let told = told_of(fleet, "tomorrow").await?;
        let members = format!("{:?}", fleet.member_view(SOUTH).await?.exceptions);
        Ok(match told.contains("FieldUnknown") || members.contains("FieldUnknown") {
            true => Look::Done(()),
            false => Look::Not(members),
        })
    })
    .await;
    let at_south = world.member(SOUTH)?.objects().get(&route_key("tomorrow-global")).await?;
    let rules = at_south.map(|route| super::list(&route, "/spec/rules").len());
    world.hub().objects().delete(&route_key("tomorrow")).await?;
    for cluster in tolerant {
        let key = match cluster.name() {
            "hub" => route_key("tomorrow"),
            _ => route_key("tomorrow-global"),
        };
        cluster.objects().wait_gone(&key, LIMIT).await?;
        set_tolerance(fleet, cluster, Tolerance::Drop).await?;
    }
    let holds = rendered.is_ok() && told.is_ok() && rules.unwrap_or(0) == 0;
    let mut more = figures([("rules_at_south", json!(rules))]);
    for (name, result) in [("kept", rendered), ("told", told)] {
        more.insert(
            name.into(),
            json!(result.map_or_else(|error| format!("{error:#}"), |()| "yes".into())),
        );
    }
    fleet.wait_live(shop::CART).await?;
    beside(fleet, Finding::new(holds, more)).await
}

#[derive(Clone, Copy)]
enum Tolerance {
    Keep,
    Drop,
}

/// Lets a cluster's API keep unknown fields in the rules of HTTPRoutes, or not any more.
async fn set_tolerance(fleet: &Fleet<'_>, cluster: &Cluster, tolerance: Tolerance) -> Result<()> {
    let definitions = definitions(fleet)?;
    let crd = definitions.into_iter().find(|crd| crd["metadata"]["name"] == HTTP_ROUTES);
    let mut crd = crd.context("the definitions have no HTTPRoute")?;
    if matches!(tolerance, Tolerance::Keep) {
        let versions = crd["spec"]["versions"].as_array_mut().context("a CRD without versions")?;
        for version in versions {
            let items = "/schema/openAPIV3Schema/properties/spec/properties/rules/items";
            let rule = version.pointer_mut(items).context("HTTPRoute has no rules")?;
            rule["x-kubernetes-preserve-unknown-fields"] = json!(true);
        }
    }
    cluster.objects().apply(&crd).await?;
    // Nothing to wait for but the schema's taking effect, which the caller sees in an object.
    let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, "cart");
    cluster.objects().get(&key).await.map(drop)
}
