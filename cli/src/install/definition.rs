//! CustomResourceDefinitions that come along: Fairlead's own, and those of the Multi-Cluster Services
//! API, which belong to everybody: they are installed where they are absent and never replaced.

use std::time::Duration;

use fairlead_model::Json;

use crate::cluster::{Cluster, Created, definition};
use crate::failure::Failure;
use crate::yaml;

const OWN: [&str; 3] = [
    include_str!("../../../deploy/crds/fairlead.dev_dnspolicies.yaml"),
    include_str!("../../../deploy/crds/fairlead.dev_memberclusters.yaml"),
    include_str!("../../../deploy/crds/fairlead.dev_trafficpolicies.yaml"),
];
const MCS: [&str; 2] = [
    include_str!("../../../deploy/crds/mcs/multicluster.x-k8s.io_serviceexports.yaml"),
    include_str!("../../../deploy/crds/mcs/multicluster.x-k8s.io_serviceimports.yaml"),
];

/// Longest time in which an API server takes a definition in.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Fairlead's own.
pub(crate) fn own() -> Vec<Json> {
    parsed(&OWN)
}

/// Those of the Multi-Cluster Services API.
pub(crate) fn mcs() -> Vec<Json> {
    parsed(&MCS)
}

fn parsed(texts: &[&str]) -> Vec<Json> {
    let one = |text: &&str| yaml::read("embedded definitions", text).expect("tested");
    texts.iter().flat_map(one).collect()
}

/// Name of a definition.
pub(crate) fn name(object: &Json) -> &str {
    object["metadata"]["name"].as_str().expect("our definitions have names")
}

/// Installs those of the Multi-Cluster Services API that are absent; says which.
pub(crate) async fn install_mcs(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let mut installed = Vec::new();
    for object in mcs() {
        // A create, not an apply: two tools at once must not overwrite each other.
        if cluster.create(&object).await? == Created::Now {
            installed.push(name(&object).to_owned());
        }
    }
    for name in &installed {
        wait_established(cluster, name).await?;
    }
    Ok(installed)
}

/// Waits until the API server serves the kind.
pub(crate) async fn wait_established(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let asking = async {
        loop {
            let object = cluster.get(&definition(), "", name).await?;
            if object.as_ref().is_some_and(is_established) {
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    tokio::time::timeout(ESTABLISHED_WITHIN, asking).await.unwrap_or_else(|_| {
        Err(Failure::timed_out(
            format!("CustomResourceDefinition {name} is not served"),
            "the API server did not establish it in 30 s",
        )
        .next(format!("see `kubectl get crd {name} -o yaml`, then run this again")))
    })
}

fn is_established(object: &Json) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let is = |c: &Json| c["type"] == "Established" && c["status"] == "True";
    conditions.is_some_and(|conditions| conditions.iter().any(is))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_definitions_are_embedded() {
        let names: Vec<String> =
            own().iter().chain(&mcs()).map(|object| name(object).to_owned()).collect();
        assert_eq!(
            names,
            [
                "dnspolicies.fairlead.dev",
                "memberclusters.fairlead.dev",
                "trafficpolicies.fairlead.dev",
                "serviceexports.multicluster.x-k8s.io",
                "serviceimports.multicluster.x-k8s.io",
            ]
        );
    }
}
