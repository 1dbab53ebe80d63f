//! j: bad objects of a user and of a member. The smallest part is dropped and told; the rest goes on.

use anyhow::Result;
use serde_json::{Value, json};

use super::unmoved;
use crate::{
    fleet::{
        Fleet, shop,
        trial::{SERVICE, VICTIM},
    },
    object::ObjectKey,
    report::Finding,
    scenario::{
        badinput::wait_route_condition,
        spine::{route, route_key},
    },
};

const MCS_API: &str = "multicluster.x-k8s.io/v1beta1";
const ROUTE: &str = "half-bad";
/// Exported by a member that has no such Service.
const GHOST: &str = "ghost";

pub(super) async fn objects(fleet: &Fleet<'_>) -> Result<Finding> {
    let found = unmoved(fleet, spoil(fleet)).await;
    fleet.world().hub().objects().delete(&route_key(ROUTE)).await?;
    fleet.world().member(VICTIM)?.objects().delete(&ghost_key()).await?;
    fleet.wait_settled().await?;
    found
}

/// A route whose second rule leads nowhere, and an export of nothing; what is told of the route.
async fn spoil(fleet: &Fleet<'_>) -> Result<Value> {
    let mut bad = route(ROUTE, "/half-bad", &[(SERVICE, 1)], &Value::Null);
    let mut lost = bad["spec"]["rules"][0].clone();
    lost["matches"][0]["path"]["value"] = json!("/half-bad/lost");
    lost["backendRefs"][0]["name"] = json!("nowhere");
    if let Some(rules) = bad["spec"]["rules"].as_array_mut() {
        rules.push(lost);
    }
    let key = ghost_key();
    let ghost = json!({"apiVersion": key.api_version, "kind": key.kind,
        "metadata": {"name": GHOST, "namespace": shop::NAMESPACE}});
    fleet.world().member(VICTIM)?.objects().apply(&ghost).await?;
    fleet.world().hub().objects().apply(&bad).await?;
    let is_false = |(status, ..): &(String, String, String)| status == "False";
    let told = wait_route_condition(fleet, ROUTE, "ResolvedRefs", is_false).await?;
    // The rule that can be served is.
    fleet.wait_live("/half-bad").await?;
    Ok(json!(format!("{}: {}", told.1, told.2)))
}

fn ghost_key() -> ObjectKey {
    ObjectKey::new(MCS_API, "ServiceExport", shop::NAMESPACE, GHOST)
}
