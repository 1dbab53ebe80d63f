//! Writes what the hub says about its own objects.
//!
//! Owns the writing: by server-side apply on `/status`, only where something other than a time
//! differs, each object at most once in a round and rounds apart from each other. Never decides what
//! to say ([`mod@desired`] does) and never writes anything but statuses. A write that fails is tried again
//! with the next round; one that lost against a newer version waits for the watch.

pub mod desired;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_crds::keys;
use fairlead_hub_core::visible::Verdicts;
use fairlead_model::{Json, Millis};
use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::conductor::Current;
use crate::fleet::Fleet;
use crate::metrics::{Metrics, Outcome};
use crate::signal::Signal;
use crate::watch::Objects;
use desired::{Desired, Facts, desired};

/// Changes that come within that time are one round; also the shortest time between two writes of an
/// object.
const GATHER: Duration = Duration::from_millis(250);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(3);
/// Writes at once.
const WRITES_MAX: usize = 4;

/// Writes statuses.
pub struct StatusWriter {
    /// The hub's cluster.
    pub client: Client,
    /// The objects with their statuses.
    pub objects: Arc<Objects>,
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// What was decided last.
    pub current: Arc<ArcSwap<Current>>,
    /// Told of every decision.
    pub decided: Arc<Signal>,
    /// Whether the world sees what DNSPolicies publish.
    pub visible: Arc<ArcSwap<Verdicts>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl StatusWriter {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let writer = Arc::new(self);
        let mut retry_at = None;
        loop {
            tokio::select! {
                _ = writer.decided.wait() => {}
                _ = writer.objects.touched.wait() => {}
                _ = writer.fleet.touched.wait() => {}
                () = clock::sleep_until_some(retry_at) => {}
                () = stop.cancelled() => return,
            }
            tokio::time::sleep(GATHER).await;
            for signal in [&*writer.decided, &writer.objects.touched, &writer.fleet.touched] {
                signal.take();
            }
            let failed = tokio::select! {
                failed = writer.round() => failed,
                () = stop.cancelled() => return,
            };
            let retry = u64::try_from(RETRY.as_millis()).unwrap_or(u64::MAX);
            let retry = (failed > 0).then(|| clock::now().plus(retry));
            retry_at = retry.into_iter().chain(writer.patience_ends()).min();
        }
    }

    /// One round; gives how many writes failed.
    async fn round(self: &Arc<Self>) -> usize {
        let writer = Arc::clone(self);
        let wanted = tokio::task::spawn_blocking(move || writer.wanted()).await;
        let Ok(wanted) = wanted else {
            tracing::error!("statuses cannot be made");
            return 1;
        };
        let writes = futures::stream::iter(wanted)
            .map(|wanted| self.write(wanted))
            .buffer_unordered(WRITES_MAX);
        writes.filter(|outcome| std::future::ready(*outcome == Outcome::Failed)).count().await
    }

    /// When a plan that is under way will have taken too long to keep still about.
    fn patience_ends(&self) -> Option<Millis> {
        let now = clock::now();
        let members = self.fleet.look();
        let ends = members.values().filter_map(|member| member.said.under_way_until());
        ends.filter(|end| *end > now).min()
    }

    fn wanted(&self) -> Vec<Desired> {
        let (current, members) = (self.current.load_full(), self.fleet.look());
        desired(&Facts {
            current: &current,
            members: &members,
            objects: &self.objects,
            visible: &self.visible.load(),
            now: clock::now(),
            now_text: &Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        })
    }

    async fn write(&self, wanted: Desired) -> Outcome {
        let Desired { kind, name, object, status } = wanted;
        let Some(api) = self.api(kind.name, kind.plural, &name.namespace, &object) else {
            return Outcome::Done;
        };
        let patch = json!({
            "apiVersion": object["apiVersion"],
            "kind": object["kind"],
            "metadata": {
                "name": &*name.name,
                // The list of parents is one field: another controller's entry must not be lost.
                "resourceVersion": object["metadata"]["resourceVersion"],
            },
            "status": status,
        });
        let params = PatchParams::apply(keys::FIELD_MANAGER_HUB).force();
        let outcome = match api.patch_status(&name.name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => Outcome::Done,
            // The watch brings the newer version, or the end, and wakes us.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Outcome::Done;
            }
            Err(error) => {
                tracing::warn!(kind = kind.name, %name, %error, "cannot write a status");
                Outcome::Failed
            }
        };
        self.metrics.count_status(outcome);
        outcome
    }

    fn api(
        &self,
        kind: &str,
        plural: &str,
        namespace: &str,
        object: &Json,
    ) -> Option<Api<DynamicObject>> {
        let version = object["apiVersion"].as_str()?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Some(match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }
}
