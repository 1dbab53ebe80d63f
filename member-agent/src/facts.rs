//! Facts of the cluster that no watch tells: versions of the API server and of the Gateway API.
//!
//! Asked now and then; what cannot be learnt is left out.

use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::{ClusterUid, Json};
use kube::Client;
use tokio::sync::watch;
use tracing::debug;

use crate::api::{self, Resource};
use crate::observe::Facts;

const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Keeps the facts fresh.
pub async fn keep_facts(client: Client, uid: ClusterUid, facts: watch::Sender<Facts>) {
    loop {
        let known = facts.borrow().clone();
        let mut next = Facts { uid: Some(uid.clone()), ..known };
        match client.apiserver_version().await {
            Ok(version) => next.kubernetes_version = version.git_version,
            Err(error) => debug!(%error, "the API server's version is not known"),
        }
        match definition(&client).await {
            Ok(definition) => {
                let annotation = |key: &str| {
                    let annotations = definition.as_ref()?.pointer("/metadata/annotations")?;
                    Some(annotations.get(key)?.as_str()?.to_owned())
                };
                next.gateway_api_version = annotation(keys::GATEWAY_BUNDLE_VERSION);
                next.gateway_api_channel = annotation(keys::GATEWAY_CHANNEL);
            }
            Err(error) => debug!(%error, "the Gateway API's version is not known"),
        }
        facts.send_if_modified(|held| {
            let changed = *held != next;
            *held = next;
            changed
        });
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn definition(client: &Client) -> kube::Result<Option<Json>> {
    let definitions = Resource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    api::get_object(client, &definitions, "", "httproutes.gateway.networking.k8s.io").await
}
