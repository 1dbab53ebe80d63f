//! What this member believes of others' crossing CAs, in ConfigMap `fairlead-agent-pins`.
//!
//! For whoever has this cluster's kubeconfig to see, and to say that a CA is to be believed: by an
//! annotation with its hash, as `fairlead trust` writes it. What is kept there outlives the agent's disk.
//! Holds no secret. Fails by trying again; bundles are taken by what is known meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::ClusterUid;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tracing::warn;

use crate::api;
use crate::pins::Pins;

/// Hashes of CAs that this member's admin confirmed.
pub(crate) type Confirmed = BTreeSet<String>;

const RETRY: Duration = Duration::from_secs(2);
/// Hashes in the annotation; the rest is ignored.
const CONFIRMED_MAX: usize = 100;

/// The ConfigMap.
pub(crate) struct PinStore {
    api: Api<ConfigMap>,
}

impl PinStore {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// What is kept. Waits for the API server: a bundle must not be taken as the first one ever.
    pub(crate) async fn load(&self) -> Pins {
        loop {
            match self.api.get_opt(keys::CONFIG_MAP_AGENT_PINS).await {
                Ok(found) => return found.as_ref().map(pins_of).unwrap_or_default(),
                Err(error) => {
                    warn!(error = %api::message(&error), "cannot read the pinned CAs yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Keeps what is there equal to `pins`, and tells what an admin says there, for ever.
    pub(crate) async fn keep(
        self,
        mut pins: watch::Receiver<Pins>,
        confirmed: watch::Sender<Confirmed>,
    ) {
        let name = keys::CONFIG_MAP_AGENT_PINS;
        let mut seen = pin!(watch_object(self.api.clone(), name).default_backoff());
        let mut held: Option<Option<ConfigMap>> = None;
        let mut failed = false;
        loop {
            tokio::select! {
                event = seen.next() => match event {
                    Some(Ok(found)) => held = Some(found),
                    Some(Err(error)) => warn!(%error, "cannot watch the pinned CAs"),
                    // A watch goes on for ever.
                    None => return,
                },
                changed = pins.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            let Some(found) = &held else { continue };
            confirmed.send_if_modified(|before| {
                let now = found.as_ref().map(confirmed_of).unwrap_or_default();
                let changed = *before != now;
                *before = now;
                changed
            });
            let wanted = data_of(&pins.borrow_and_update());
            let there = found.as_ref().and_then(|found| found.data.clone()).unwrap_or_default();
            failed = false;
            if wanted != there
                && let Err(error) = self.write(&wanted).await
            {
                warn!(error = %api::message(&error), "cannot keep the pinned CAs; trying again");
                failed = true;
            }
        }
    }

    async fn write(&self, data: &BTreeMap<String, String>) -> kube::Result<()> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": keys::CONFIG_MAP_AGENT_PINS,
                // Not labelled as managed by us: no plan names it.
                "labels": {keys::PART_OF: keys::FAIRLEAD},
            },
            "data": data,
        });
        let params = PatchParams::apply(keys::FIELD_MANAGER_AGENT).force();
        let name = keys::CONFIG_MAP_AGENT_PINS;
        self.api.patch(name, &params, &Patch::Apply(&object)).await.map(drop)
    }
}

/// Entries that have no meaning are as none: that cluster is pinned anew.
fn pins_of(found: &ConfigMap) -> Pins {
    let entries = found.data.iter().flatten();
    let pin = |(uid, text): (&String, &String)| {
        Some((ClusterUid::new(uid).ok()?, serde_json::from_str(text).ok()?))
    };
    entries.filter_map(pin).collect()
}

fn data_of(pins: &Pins) -> BTreeMap<String, String> {
    let text = |pin| serde_json::to_string(pin).expect("texts are JSON");
    pins.iter().map(|(uid, pin)| (uid.to_string(), text(pin))).collect()
}

fn confirmed_of(found: &ConfigMap) -> Confirmed {
    let text = found.annotations().get(keys::TRUST).map_or("", String::as_str);
    let hashes = text.split(',').map(|hash| hash.trim().to_ascii_lowercase());
    hashes.filter(|hash| !hash.is_empty()).take(CONFIRMED_MAX).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_model::pin::CaPin;

    use super::*;

    #[test]
    fn pins_are_what_they_were_after_their_way_through_the_config_map() {
        let pin =
            CaPin { member: "west".into(), believed: vec!["sha256:a".into()], ..CaPin::default() };
        let pins: Pins = [(ClusterUid::new("u-west").unwrap(), pin)].into();
        let mut found = ConfigMap { data: Some(data_of(&pins)), ..ConfigMap::default() };
        assert_eq!(pins_of(&found), pins);
        let data = found.data.as_mut().unwrap();
        data.insert("u-broken".into(), "{".into());
        data.insert("Not a UID!".into(), "{}".into());
        assert_eq!(pins_of(&found), pins);
    }

    #[test]
    fn hashes_are_a_list_with_commas() {
        let mut found = ConfigMap::default();
        assert_eq!(confirmed_of(&found), Confirmed::new());
        found.annotations_mut().insert(keys::TRUST.to_owned(), "sha256:A, sha256:b,,".into());
        assert_eq!(confirmed_of(&found), ["sha256:a".to_owned(), "sha256:b".to_owned()].into());
    }
}
