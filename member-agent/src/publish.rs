//! What the agent says of itself in its own cluster: ConfigMap `fairlead-agent-state`.
//!
//! For whoever has this cluster's kubeconfig and not the hub's: `fairlead join` waits on it. Written
//! only when it differs from what is there; failing costs nothing but the view.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_agent_core::live::{Keep, LiveObject};
use fairlead_crds::keys;
use fairlead_model::session::ApplyReport;
use fairlead_model::{Json, MemberId, ObjectId};
use kube::Client;
use serde_json::json;
use tokio::sync::watch;
use tracing::debug;

use crate::api::{self, Force, Resource};
use crate::cache::{Cache, Read};
use crate::uplink::LinkState;

/// Somebody may have deleted it; also the pause after a write that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// What is only on the way (a restart, a hub that is away for a moment) is told when it lasts: a
/// restart shall not rewrite anything.
const LASTING: Duration = Duration::from_secs(20);

/// What the loop is made of.
pub(crate) struct Publisher {
    pub(crate) client: Client,
    pub(crate) namespace: Arc<str>,
    pub(crate) member: MemberId,
    /// The part of the join token that is no secret; empty where there is none. An agent that is being
    /// replaced may still speak, and `fairlead join` must know of which attempt.
    pub(crate) token_id: String,
    pub(crate) cache: Arc<Cache>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) applied: watch::Receiver<Option<ApplyReport>>,
}

impl Publisher {
    /// Publishes for ever.
    pub(crate) async fn run(mut self) {
        let resource = Resource {
            group: String::new(),
            version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            plural: "configmaps".to_owned(),
        };
        let name = keys::CONFIG_MAP_AGENT_STATE;
        let id = ObjectId::new("", "v1", "ConfigMap", &self.namespace, name);
        let mut said = None;
        let mut since = (Json::Null, Instant::now());
        loop {
            let link = self.link.borrow_and_update().clone();
            let applied = self.applied.borrow_and_update().clone();
            let data = state(&self.member, &self.token_id, &link, applied.as_ref());
            if since.0 != data {
                since = (data.clone(), Instant::now());
            }
            let tell = is_final(&data) || since.1.elapsed() >= LASTING;
            if tell && self.is_due(&id, &data, said.as_ref()) {
                said = self.write(&resource, &id, &data).await.map(|version| (data, version));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                Ok(()) = self.link.changed() => {}
                Ok(()) = self.applied.changed() => {}
            }
        }
    }

    /// Writes; gives the version that it has now.
    async fn write(&self, resource: &Resource, id: &ObjectId, data: &Json) -> Option<String> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": &*id.name,
                "namespace": &*id.namespace,
                "labels": {keys::PART_OF: keys::FAIRLEAD},
            },
            "data": data,
        });
        match api::apply(&self.client, resource, id, &object, Force::Yes).await {
            Ok(answer) => {
                let (id, live) = LiveObject::of(answer, Keep::Identity).ok()?;
                let version = live.resource_version.clone();
                self.cache.put(Read { id, live, counts: None });
                Some(version)
            }
            Err(error) => {
                debug!(error = %api::message(&error), "cannot publish the agent's state");
                None
            }
        }
    }

    /// True when what is there is known to be something else than what we said last. Its content is
    /// not kept, so its version tells.
    fn is_due(&self, id: &ObjectId, data: &Json, said: Option<&(Json, String)>) -> bool {
        let cache = self.cache.read();
        let live = cache.live.get(id).map(|live| &live.resource_version);
        let same = said.is_some_and(|(said, version)| said == data && live == Some(version));
        cache.is_synced("", "ConfigMap") && !same
    }
}

/// What will not change by itself in a moment.
fn is_final(data: &Json) -> bool {
    let phase = data.get("phase").and_then(Json::as_str);
    matches!(phase, Some("Applied" | "Refused"))
}

/// The words of `fairlead join`: Enrolling, Refused, Connected, Applied; Disconnected after that.
fn state(
    member: &MemberId,
    token_id: &str,
    link: &LinkState,
    applied: Option<&ApplyReport>,
) -> Json {
    let complete = applied.is_some_and(|report| report.complete);
    let phase = match (link.open, &link.refused) {
        (false, Some(_)) => "Refused",
        (true, _) if complete => "Applied",
        (true, _) => "Connected",
        (false, None) if applied.is_some() => "Disconnected",
        (false, None) => "Enrolling",
    };
    let mut data = json!({
        "phase": phase,
        "reason": link.refused.as_deref().unwrap_or(""),
        "message": link.trouble,
        "member": member.as_str(),
        "plan-applied": complete.to_string(),
    });
    if phase == "Refused" && !token_id.is_empty() {
        data["token-id"] = token_id.into();
    }
    data
}

/// The id of the join token in the bootstrap folder; the rest of the token is never shown.
pub(crate) fn token_id(bootstrap_dir: &Path) -> String {
    let token = std::fs::read_to_string(bootstrap_dir.join("token")).unwrap_or_default();
    token.split_once('.').map(|(id, _)| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn phase(link: &LinkState, applied: Option<&ApplyReport>) -> String {
        let member = MemberId::new("east").unwrap();
        state(&member, "", link, applied)["phase"].as_str().unwrap().to_owned()
    }

    #[test]
    fn phases_follow_link_and_plan() {
        let down = LinkState::default();
        let up = LinkState { open: true, ..LinkState::default() };
        let refused =
            LinkState { refused: Some("TokenExpired".to_owned()), ..LinkState::default() };
        let half = ApplyReport::default();
        let whole = ApplyReport { complete: true, ..ApplyReport::default() };
        assert_eq!(phase(&down, None), "Enrolling");
        assert_eq!(phase(&refused, None), "Refused");
        assert_eq!(phase(&up, None), "Connected");
        assert_eq!(phase(&up, Some(&half)), "Connected");
        assert_eq!(phase(&up, Some(&whole)), "Applied");
        assert_eq!(phase(&down, Some(&whole)), "Disconnected");
    }

    #[test]
    fn a_refusal_names_its_reason() {
        let link = LinkState {
            refused: Some("NameTaken".to_owned()),
            trouble: "the name belongs to another cluster".to_owned(),
            ..LinkState::default()
        };
        let data = state(&MemberId::new("east").unwrap(), "abcdefgh", &link, None);
        assert_eq!(data["reason"], "NameTaken");
        assert_eq!(data["token-id"], "abcdefgh");
        assert_eq!(data["message"], "the name belongs to another cluster");
    }
}
