//! Steps that `init` and `join` share: may the caller, make the namespace, apply, why pods do not run.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::{Json, ObjectId};

use crate::cluster::{Applied, Cluster, Conflicts, Created, Kind, Permission};
use crate::failure::Failure;
use crate::install::{definition, namespace};
use crate::progress::Steps;

/// Asks whether the caller may write all of these kinds, before anything is written.
pub(crate) async fn check_permissions(
    cluster: &Cluster,
    home: &str,
    objects: &[Json],
) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for kind in kinds_of(objects) {
        let mut verbs = Vec::new();
        for verb in ["get", "create", "patch"] {
            if cluster.may(verb, &kind, home).await? == Permission::Denied {
                verbs.push(verb);
            }
        }
        if !verbs.is_empty() {
            missing.push(format!("{} ({})", kind.resource(), verbs.join(", ")));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("the kubeconfig's user may not install Fairlead into {}", cluster.server());
    Err(Failure::failed(what, format!("it has no right to {}", missing.join(", ")))
        .next("use a context with cluster-admin, or give an admin the output of --print"))
}

/// Each kind once.
fn kinds_of(objects: &[Json]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for object in objects {
        let id = ObjectId::of(object).expect("we built the object");
        let kind = Kind::known(&id.api_version(), &id.kind);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// Makes the namespace where it is absent.
pub(crate) async fn ensure_namespace(
    cluster: &Cluster,
    name: &str,
    steps: Steps,
) -> Result<(), Failure> {
    match cluster.create(&namespace(name)).await? {
        Created::Now => steps.done(format!("namespace {name} created")),
        Created::Before => steps.done(format!("namespace {name} is there")),
    }
    Ok(())
}

/// Installs the definitions of the Multi-Cluster Services API where they are absent.
pub(crate) async fn ensure_mcs(cluster: &Cluster, steps: Steps) -> Result<(), Failure> {
    let installed = definition::install_mcs(cluster).await?;
    if installed.is_empty() {
        steps.done("definitions of the Multi-Cluster Services API are there");
    } else {
        steps.done(format!("definitions installed: {}", installed.join(", ")));
    }
    Ok(())
}

/// Applies objects in order and says in one line what became of them.
pub(crate) async fn apply_all(
    cluster: &Cluster,
    title: &str,
    objects: &[Json],
    conflicts: Conflicts,
    steps: Steps,
) -> Result<(), Failure> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for object in objects {
        let word = match cluster.apply(object, conflicts).await? {
            Applied::Created => "created",
            Applied::Configured => "configured",
            Applied::Unchanged => "unchanged",
        };
        *counts.entry(word).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(word, n)| format!("{n} {word}")).collect();
    steps.done(format!("{title}: {}", counts.join(", ")));
    Ok(())
}

/// Fails when Helm installed this component: two installers would fight over its objects.
pub(crate) async fn refuse_helm(cluster: &Cluster, home: &str, name: &str) -> Result<(), Failure> {
    let kind = Kind::known("apps/v1", "Deployment");
    let Some(deployment) = cluster.get(&kind, home, name).await? else {
        return Ok(());
    };
    if deployment["metadata"]["labels"][keys::MANAGED_BY] != "Helm" {
        return Ok(());
    }
    Err(Failure::failed(format!("Deployment {home}/{name} is there"), "Helm installed it")
        .next("go on with Helm: change its values and run `helm upgrade`"))
}

/// Why the pods of a component do not run, in words; none when nothing speaks against them.
pub(crate) async fn pod_trouble(cluster: &Cluster, home: &str, name: &str) -> Option<String> {
    let selector = format!("app.kubernetes.io/name={name}");
    let pods = cluster.list(&Kind::known("v1", "Pod"), home, &selector).await.ok()??;
    pods.iter().find_map(trouble_of)
}

fn trouble_of(pod: &Json) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or("");
    let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let waiting = containers.map(|c| &c["state"]["waiting"]).find(|w| {
        let reason = w["reason"].as_str();
        reason.is_some_and(|r| !matches!(r, "ContainerCreating" | "PodInitializing"))
    });
    let unscheduled = pod["status"]["conditions"].as_array().into_iter().flatten();
    let unscheduled =
        unscheduled.into_iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
    let why = waiting.or(unscheduled)?;
    let text = |key: &str| fairlead_model::id::printable(why[key].as_str().unwrap_or(""));
    Some(format!("pod {name}: {}: {}", text("reason"), text("message")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_waits_says_why_and_one_that_starts_does_not() {
        let waiting = |reason: &str| {
            json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [
                {"state": {"waiting": {"reason": reason, "message": "m"}}}]}})
        };
        let trouble = trouble_of(&waiting("ImagePullBackOff"));
        assert_eq!(trouble.as_deref(), Some("pod p: ImagePullBackOff: m"));
        assert_eq!(trouble_of(&waiting("ContainerCreating")), None);
        let pending = json!({"metadata": {"name": "p"}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no"}]}});
        assert_eq!(trouble_of(&pending).as_deref(), Some("pod p: Unschedulable: no"));
    }

    #[test]
    fn permissions_are_asked_once_per_kind() {
        let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "a"}});
        assert_eq!(kinds_of(&[secret("a"), secret("b")]), [Kind::known("v1", "Secret")]);
    }
}
