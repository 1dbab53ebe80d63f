//! Takes everything of Fairlead out of a member's cluster.
//!
//! Order: the agent and its permissions (so that nothing writes any more), what the agent wrote, what the
//! CLI installed, the namespace if the CLI made it and nothing is left in it. Takes away only what carries
//! our label, what has a name of ours in our namespace, and the fields that the agent set on lent Gateways.
//! A hub in the same cluster stays.

use std::time::{Duration, Instant};

use fairlead_crds::keys;
use fairlead_model::{Json, MemberId, ObjectId};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::cluster::{Cluster, Conflicts, Deleted, Kind};
use crate::failure::Failure;
use crate::install::{self, AgentValues, gateway_tracing};
use crate::output;
use crate::progress::Steps;

const ASK_EVERY: Duration = Duration::from_millis(500);
/// Longest time that an agent takes to end; without permissions it can do nothing any more anyway.
const AGENT_ENDS_WITHIN: Duration = Duration::from_secs(40);
/// Sweeps over all kinds: an object may still arrive while the agent ends.
const SWEEPS_MAX: usize = 5;
/// An empty namespace is usually gone within a few seconds.
const NAMESPACE_GONE_MAX: Duration = Duration::from_secs(60);
/// Objects that are named when a namespace is not empty.
const LEFT_SHOWN_MAX: usize = 5;
/// Lists that are asked for at the same time.
const LISTS_AT_ONCE: usize = 8;

/// What a failure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    /// It ends the removal.
    End,
    /// It is told, and the rest goes on.
    Tolerated,
}

/// Removes everything of ours from the member.
pub(crate) async fn clean(
    cluster: &Cluster,
    home: &str,
    errors: Errors,
    steps: Steps,
) -> Result<(), Failure> {
    let installed = installed_objects(home);
    let mut removed = 0;
    for object in fence_first(&installed) {
        removed += tolerate_count(remove(cluster, object).await, errors, steps)?;
    }
    await_agent(cluster, home, steps).await?;
    let kinds = cluster.namespaced_kinds().await?;
    let gave_back = give_back(cluster, &kinds).await?;
    for gateway in &gave_back {
        output::print(&format!("{gateway} given back"));
    }
    removed += tolerate_count(gateway_tracing::remove(cluster, home).await, errors, steps)?;
    removed += sweep(cluster, home, &kinds, errors, steps).await?;
    for object in &installed {
        removed += tolerate_count(remove(cluster, object).await, errors, steps)?;
    }
    for name in own_secrets() {
        let id = ObjectId::new("", "v1", "Secret", home, name);
        removed += tolerate_count(remove_id(cluster, &id).await, errors, steps)?;
    }
    for name in [install::CONFIG_MAP_STATE, keys::CONFIG_MAP_AGENT_PINS] {
        let id = ObjectId::new("", "v1", "ConfigMap", home, name);
        removed += tolerate_count(remove_id(cluster, &id).await, errors, steps)?;
    }
    removed += remove_namespace(cluster, home, &kinds, steps).await?;
    steps.done(format!("{} removed", output::count(removed, "object")));
    Ok(())
}

/// Every object that `join` installs, whatever it was given.
fn installed_objects(home: &str) -> Vec<Json> {
    let member = MemberId::new("any").expect("a label");
    install::agent(&AgentValues {
        namespace: home,
        image: "",
        member: &member,
        hub: "",
        token: "",
        ca_hash: "",
        region: None,
        zone: None,
        gateway_class: None,
        otlp_endpoint: None,
        sampling_percent: None,
        config: None,
    })
}

/// What keeps the agent from writing: its process, then its permissions.
fn fence_first(objects: &[Json]) -> Vec<&Json> {
    let rank = |object: &&Json| match object["kind"].as_str() {
        Some("Deployment") => Some(0),
        Some("ClusterRoleBinding" | "RoleBinding") => Some(1),
        _ => None,
    };
    let mut fence: Vec<&Json> = objects.iter().filter(|object| rank(object).is_some()).collect();
    fence.sort_by_key(|object| rank(object));
    fence
}

/// Secrets that the agent or `join` made, by name: they hold keys and must not stay behind.
fn own_secrets() -> [&'static str; 5] {
    [
        keys::SECRET_AGENT_BOOTSTRAP,
        keys::SECRET_AGENT_IDENTITY,
        keys::SECRET_CROSSING_CA,
        keys::SECRET_EAST_WEST_SERVER,
        keys::SECRET_EAST_WEST_CLIENT,
    ]
}

async fn remove(cluster: &Cluster, object: &Json) -> Result<usize, Failure> {
    let id = ObjectId::of(object).expect("objects of ours and of API servers have names");
    remove_id(cluster, &id).await
}

async fn remove_id(cluster: &Cluster, id: &ObjectId) -> Result<usize, Failure> {
    let kind = Kind::known(&id.api_version(), &id.kind);
    remove_of(cluster, &kind, id).await
}

async fn remove_of(cluster: &Cluster, kind: &Kind, id: &ObjectId) -> Result<usize, Failure> {
    match cluster.delete(kind, &id.namespace, &id.name).await? {
        Deleted::Now => {
            output::print(&format!("{} deleted", id.for_people()));
            Ok(1)
        }
        Deleted::Before => Ok(0),
    }
}

fn tolerate_count(
    result: Result<usize, Failure>,
    errors: Errors,
    steps: Steps,
) -> Result<usize, Failure> {
    match result {
        Err(failure) if errors == Errors::Tolerated => {
            steps.warn(failure.to_string());
            Ok(0)
        }
        other => other,
    }
}

/// Waits until no pod of the agent runs any more; its permissions are gone already.
async fn await_agent(cluster: &Cluster, home: &str, steps: Steps) -> Result<(), Failure> {
    let selector = format!("app.kubernetes.io/name={}", keys::AGENT);
    let pod = Kind::known("v1", "Pod");
    let waiting = steps.wait("waiting for the agent to end");
    let asking = async {
        while !cluster.list(&pod, home, &selector).await?.unwrap_or_default().is_empty() {
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok::<(), Failure>(())
    };
    let ended = tokio::time::timeout(AGENT_ENDS_WITHIN, asking).await;
    drop(waiting);
    match ended {
        Ok(result) => result,
        Err(_) => {
            steps.warn("the agent's pod has not ended; it has no permissions any more");
            Ok(())
        }
    }
}

/// Gives the fields that the agent set on members' own Gateways back; says of which.
async fn give_back(cluster: &Cluster, kinds: &[Kind]) -> Result<Vec<String>, Failure> {
    let gateway = kinds.iter().find(|k| k.kind == "Gateway" && k.group == keys::GATEWAY_GROUP);
    let Some(gateway) = gateway else {
        return Ok(Vec::new());
    };
    let mut given = Vec::new();
    for object in cluster.list(gateway, "", "").await?.unwrap_or_default() {
        if is_ours(&object) || !agent_set_fields(&object) {
            continue;
        }
        let id = ObjectId::of(&object).expect("API servers name their objects");
        // The agent's own field manager with nothing in it: what only that manager set goes away.
        let nothing = json!({
            "apiVersion": id.api_version(),
            "kind": "Gateway",
            "metadata": {"name": &*id.name, "namespace": &*id.namespace},
        });
        cluster.apply_as(keys::FIELD_MANAGER_AGENT, &nothing, Conflicts::TakeOver).await?;
        given.push(id.for_people());
    }
    Ok(given)
}

fn agent_set_fields(object: &Json) -> bool {
    let managers = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    managers.into_iter().any(|m| {
        m["manager"] == keys::FIELD_MANAGER_AGENT
            && m["operation"] == "Apply"
            && m["subresource"].as_str().is_none_or(str::is_empty)
    })
}

fn is_ours(object: &Json) -> bool {
    object["metadata"]["labels"][keys::MANAGED_BY] == keys::FAIRLEAD
}

/// A hub may live in the same cluster: what is its own stays.
fn is_of_hub(object: &Json, home: &str) -> bool {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or("");
    let of_hub = name.starts_with(keys::HUB)
        || metadata["labels"]["app.kubernetes.io/name"] == keys::HUB
        || metadata["labels"].get(keys::LABEL_TOKEN).is_some();
    metadata["namespace"] == home && of_hub
}

/// Deletes everything with our label, of every kind, until nothing is found.
async fn sweep(
    cluster: &Cluster,
    home: &str,
    kinds: &[Kind],
    errors: Errors,
    steps: Steps,
) -> Result<usize, Failure> {
    let mut removed = 0;
    for _ in 0..SWEEPS_MAX {
        let found = find_ours(cluster, home, kinds, errors, steps).await?;
        if found.is_empty() {
            return Ok(removed);
        }
        let mut now = 0;
        for (kind, id) in &found {
            now += tolerate_count(remove_of(cluster, kind, id).await, errors, steps)?;
        }
        removed += now;
        if now == 0 {
            return Ok(removed);
        }
    }
    let what = "objects with the label of Fairlead keep coming back";
    let failure = Failure::failed(what, "somebody else writes them")
        .next("stop what writes them (another agent, a GitOps tool), then run this again");
    tolerate_count(Err(failure), errors, steps)
}

/// Everything with our label. An object that is being deleted already is found no more.
async fn find_ours(
    cluster: &Cluster,
    home: &str,
    kinds: &[Kind],
    errors: Errors,
    steps: Steps,
) -> Result<Vec<(Kind, ObjectId)>, Failure> {
    let selector = format!("{}={}", keys::MANAGED_BY, keys::FAIRLEAD);
    let lists: Vec<(Kind, Result<Vec<Json>, Failure>)> = futures::stream::iter(kinds)
        .map(|kind| list_of(cluster, kind, &selector))
        .buffered(LISTS_AT_ONCE)
        .collect()
        .await;
    let mut found = Vec::new();
    for (kind, objects) in lists {
        let objects = match objects {
            Err(failure) if errors == Errors::Tolerated => {
                steps.warn(failure.to_string());
                Vec::new()
            }
            other => other?,
        };
        let going = |object: &Json| object["metadata"]["deletionTimestamp"].is_string();
        for object in objects.iter().filter(|o| is_ours(o) && !is_of_hub(o, home) && !going(o)) {
            found.push((
                kind.clone(),
                ObjectId::of(object).expect("API servers name their objects"),
            ));
        }
    }
    Ok(found)
}

async fn list_of(
    cluster: &Cluster,
    kind: &Kind,
    selector: &str,
) -> (Kind, Result<Vec<Json>, Failure>) {
    let objects = cluster.list(kind, "", selector).await;
    (kind.clone(), objects.map(Option::unwrap_or_default))
}

/// Removes the namespace when the CLI made it and nothing is left in it.
async fn remove_namespace(
    cluster: &Cluster,
    home: &str,
    kinds: &[Kind],
    steps: Steps,
) -> Result<usize, Failure> {
    let kind = Kind::known("v1", "Namespace");
    let Some(namespace) = cluster.get(&kind, "", home).await? else {
        return Ok(0);
    };
    if namespace["metadata"]["annotations"][install::CREATED_BY] != keys::FIELD_MANAGER_CLI {
        steps.say(format!("namespace {home} stays: Fairlead did not make it"));
        return Ok(0);
    }
    let left = what_is_left(cluster, home, kinds).await?;
    if !left.is_empty() {
        let more = left.len().saturating_sub(LEFT_SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = left[..left.len().min(LEFT_SHOWN_MAX)].join(", ");
        steps.warn(format!("namespace {home} stays: it still has {shown}{more}"));
        return Ok(0);
    }
    let removed =
        remove_of(cluster, &kind, &ObjectId::new("", "v1", "Namespace", "", home)).await?;
    wait_namespace_gone(cluster, &kind, home, steps).await?;
    Ok(removed)
}

async fn what_is_left(
    cluster: &Cluster,
    home: &str,
    kinds: &[Kind],
) -> Result<Vec<String>, Failure> {
    let lists: Vec<Vec<Json>> = futures::stream::iter(kinds)
        .map(
            |kind| async move { cluster.list(kind, home, "").await.map(Option::unwrap_or_default) },
        )
        .buffered(LISTS_AT_ONCE)
        .try_collect()
        .await?;
    let left = lists.iter().flatten().filter(|object| !is_incidental(object));
    Ok(left.map(|o| ObjectId::of(o).map_or_else(|e| e.to_string(), |id| id.for_people())).collect())
}

/// A namespace takes a moment to end, and while it does nothing can be made in it: a `fairlead join`
/// right after would fail.
async fn wait_namespace_gone(
    cluster: &Cluster,
    kind: &Kind,
    home: &str,
    steps: Steps,
) -> Result<(), Failure> {
    let start = Instant::now();
    while cluster.get(kind, "", home).await?.is_some() {
        if start.elapsed() > NAMESPACE_GONE_MAX {
            steps.warn(format!("namespace {home} is still ending; join again when it is gone"));
            return Ok(());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// What a cluster puts into every namespace by itself, what is going already, and traces of the past.
fn is_incidental(object: &Json) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap_or("");
    match object["kind"].as_str().unwrap_or("") {
        "ConfigMap" => name == "kube-root-ca.crt",
        "ServiceAccount" => name == "default",
        "Event" | "PodMetrics" => true,
        _ => object["metadata"]["deletionTimestamp"].is_string(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const HOME: &str = keys::NAMESPACE;

    fn mk(api_version: &str, kind: &str, namespace: &str, name: &str, labels: Json) -> Json {
        json!({"apiVersion": api_version, "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels}})
    }

    fn ours() -> Json {
        json!({keys::MANAGED_BY: keys::FAIRLEAD})
    }

    fn mk_member() -> Fake {
        let fake = Fake::new(installed_objects(HOME));
        fake.put(install::namespace(HOME));
        fake.put(mk("v1", "ConfigMap", HOME, "kube-root-ca.crt", json!({})));
        fake.put(mk("v1", "ServiceAccount", HOME, "default", json!({})));
        fake.put(mk("v1", "Secret", HOME, keys::SECRET_CROSSING_CA, json!({})));
        let gateway = "gateway.networking.k8s.io/v1";
        fake.put(mk(gateway, "HTTPRoute", "shop", "cart-global", ours()));
        fake.put(mk(gateway, "HTTPRoute", "shop", "cart", json!({})));
        fake.put(mk("example.com/v1", "Policy", "shop", "follows", ours()));
        fake
    }

    #[tokio::test]
    async fn everything_of_ours_goes_and_nothing_else() {
        let fake = mk_member();
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        assert_eq!(
            fake.paths(),
            [
                "/api/v1/namespaces/fairlead-system/configmaps/kube-root-ca.crt",
                "/api/v1/namespaces/fairlead-system/serviceaccounts/default",
                "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/cart",
            ]
        );
    }

    #[tokio::test]
    async fn the_agent_loses_process_and_permissions_before_its_objects_go() {
        let fake = mk_member();
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        let writes = fake.writes();
        assert_eq!(writes[0], "delete Deployment/fairlead-agent");
        let at = |wanted: &str| writes.iter().position(|write| write.contains(wanted)).unwrap();
        assert!(at("ClusterRoleBinding/fairlead-agent-write") < at("HTTPRoute/cart-global"));
    }

    #[tokio::test]
    async fn leaving_twice_does_nothing() {
        let fake = mk_member();
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        fake.forget_writes();
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        assert_eq!(fake.writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_ours_or_not_empty_stays() {
        let fake = mk_member();
        fake.put(mk("v1", "ConfigMap", HOME, "notes-of-an-admin", json!({})));
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        assert!(fake.paths().contains(&"/api/v1/namespaces/fairlead-system".to_owned()));

        let fake = mk_member();
        fake.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}}));
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        assert!(fake.paths().contains(&"/api/v1/namespaces/fairlead-system".to_owned()));
    }

    #[tokio::test]
    async fn a_hub_in_the_same_cluster_stays() {
        let fake = mk_member();
        fake.put(mk("v1", "Secret", HOME, keys::SECRET_HUB_CA, ours()));
        let token = json!({keys::MANAGED_BY: keys::FAIRLEAD, keys::LABEL_TOKEN: "true"});
        fake.put(mk("v1", "Secret", HOME, "fairlead-token-abcdefgh", token));
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        let secrets: Vec<String> =
            fake.paths().into_iter().filter(|path| path.contains("/secrets/")).collect();
        assert_eq!(secrets.len(), 2, "{secrets:?}");
    }

    #[tokio::test]
    async fn a_lent_gateway_is_given_back_and_stays() {
        let fake = mk_member();
        let mut lent = mk("gateway.networking.k8s.io/v1", "Gateway", "infra", "public", json!({}));
        lent["metadata"]["managedFields"] =
            json!([{"manager": "fairlead-agent", "operation": "Apply"}]);
        fake.put(lent);
        clean(&fake.cluster(), HOME, Errors::End, Steps::Silent).await.unwrap();
        assert!(fake.writes().contains(&"apply Gateway/public".to_owned()), "{:?}", fake.writes());
        assert!(fake.paths().iter().any(|path| path.ends_with("gateways/public")));
    }
}
