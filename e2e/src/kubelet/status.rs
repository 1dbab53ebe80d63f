//! What the small kubelet reports: the status of its Pods and, in place of the deployment
//! controller, of their Deployments; and addresses of load balancers.

use std::net::Ipv4Addr;

use anyhow::Result;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{NAMESPACE, pod::PodPlan};
use crate::object::Objects;

/// How far a container is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// Not running: reason and message.
    Waiting(String, String),
    Running,
    Ready,
}

/// All that a report says.
pub(super) struct Report<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) pod: &'a str,
    pub(super) plan: &'a PodPlan,
    pub(super) phase: &'a Phase,
    pub(super) restarts: i32,
    pub(super) address: Ipv4Addr,
}

impl Report<'_> {
    /// Equal texts mean that there is nothing new to report.
    pub(super) fn fingerprint(&self) -> String {
        format!(
            "{} {:?} {} {:?}",
            self.pod, self.phase, self.restarts, self.deployment.metadata.generation
        )
    }

    pub(super) async fn write(&self, objects: &Objects) -> Result<()> {
        objects.apply_status(&self.pod_status()).await?;
        let ready = i32::from(*self.phase == Phase::Ready);
        objects.apply_status(&deployment_status(self.deployment, 1, ready)).await
    }

    fn pod_status(&self) -> Value {
        let now = jiff::Timestamp::now().to_string();
        let ready = *self.phase == Phase::Ready;
        let running = !matches!(self.phase, Phase::Waiting(..));
        let state = match self.phase {
            Phase::Waiting(reason, message) => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            Phase::Running | Phase::Ready => json!({"running": {"startedAt": now}}),
        };
        let condition = |kind: &str, holds: bool| {
            let status = if holds { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": now})
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.pod, "namespace": NAMESPACE},
            "status": {
                // A container that waits to be started again leaves its Pod Running.
                "phase": if running || self.restarts > 0 { "Running" } else { "Pending" },
                "hostIP": self.address.to_string(),
                "podIP": self.address.to_string(),
                "podIPs": [{"ip": self.address.to_string()}],
                "startTime": now,
                "conditions": [
                    condition("PodScheduled", true),
                    condition("Initialized", true),
                    condition("ContainersReady", ready),
                    condition("Ready", ready),
                ],
                "containerStatuses": [{
                    "name": self.plan.container, "image": self.plan.image, "imageID": "",
                    "ready": ready, "started": running, "restartCount": self.restarts,
                    "state": state,
                }],
            },
        })
    }
}

/// A Deployment that is scaled to nothing.
pub(super) async fn report_none(objects: &Objects, deployment: &Deployment) -> Result<()> {
    let status = deployment.status.as_ref();
    let seen = status.and_then(|status| status.observed_generation);
    if seen == deployment.metadata.generation
        && status.and_then(|status| status.replicas).unwrap_or(0) == 0
    {
        return Ok(());
    }
    objects.apply_status(&deployment_status(deployment, 0, 0)).await
}

fn deployment_status(deployment: &Deployment, replicas: i32, ready: i32) -> Value {
    let now = jiff::Timestamp::now().to_string();
    let available = if ready == replicas { "True" } else { "False" };
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": now, "lastUpdateTime": now,
        })
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": deployment.name_any(), "namespace": NAMESPACE},
        "status": {
            "observedGeneration": deployment.metadata.generation,
            "replicas": replicas, "updatedReplicas": replicas,
            "readyReplicas": ready, "availableReplicas": ready,
            "unavailableReplicas": replicas - ready,
            "conditions": [
                condition("Available", available, "MinimumReplicasAvailable"),
                condition("Progressing", "True", "NewReplicaSetAvailable"),
            ],
        },
    })
}

/// Whether a Service already has the address.
pub(super) fn has_address(service: &Service, address: &str) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    ingress.iter().any(|entry| entry.ip.as_deref() == Some(address))
}

/// Writes a load balancer's address.
pub(super) async fn give_address(
    objects: &Objects,
    service: &Service,
    address: &str,
) -> Result<()> {
    let status = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": service.name_any(), "namespace": NAMESPACE},
        "status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}},
    });
    objects.apply_status(&status).await
}
