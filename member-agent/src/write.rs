//! One write to the API server, and what is said of it.
//!
//! Every change of an object that is there carries its uid, so that it can only hit the very object
//! that was compared. Never decides; fails with kube's errors.

use fairlead_agent_core::diff::Action;
use fairlead_agent_core::own;
use fairlead_model::Json;
use fairlead_model::bundle::Claim;
use kube::Client;
use serde_json::json;

use crate::api::{self, Force, Resource};

/// Carries out one action; the object as it is now, none when it is gone.
pub(crate) async fn write(
    client: &Client,
    resource: &Resource,
    action: &Action,
) -> kube::Result<Option<Json>> {
    let id = action.id();
    match action {
        Action::Create { wanted, .. } => {
            api::apply(client, resource, id, &wanted.content, Force::No).await.map(Some)
        }
        Action::Update { wanted, uid, .. } => {
            let content = with_uid(&wanted.content, uid);
            api::apply(client, resource, id, &content, Force::Yes).await.map(Some)
        }
        Action::SetFields { wanted, uid, .. } => {
            let content = with_uid(&wanted.content, uid);
            api::apply(client, resource, id, &content, Force::No).await.map(Some)
        }
        Action::GiveBack { uid, .. } => {
            let empty = json!({
                "apiVersion": id.api_version(),
                "kind": &*id.kind,
                "metadata": {"name": &*id.name, "namespace": &*id.namespace},
            });
            api::apply(client, resource, id, &with_uid(&empty, uid), Force::No).await.map(Some)
        }
        Action::Delete { uid, .. } => api::delete(client, resource, id, uid).await,
    }
}

/// With its uid an apply can only hit the very object that was compared.
fn with_uid(content: &Json, uid: &str) -> Json {
    let mut content = content.clone();
    if let Some(meta) = content.get_mut("metadata").and_then(Json::as_object_mut) {
        meta.insert("uid".to_owned(), uid.into());
    }
    content
}

/// What an action wants to be there.
pub(crate) fn wanted_of(action: &Action) -> Option<&own::Wanted> {
    match action {
        Action::Create { wanted, .. }
        | Action::Update { wanted, .. }
        | Action::SetFields { wanted, .. } => Some(wanted),
        Action::GiveBack { .. } | Action::Delete { .. } => None,
    }
}

/// Tells one try of a write from another.
pub(crate) fn digest_of(action: &Action) -> String {
    let claim = |wanted: &own::Wanted| match wanted.claim {
        Claim::Whole => wanted.digest.clone(),
        Claim::Fields => format!("fields {}", wanted.digest),
    };
    wanted_of(action).map_or_else(|| what(action).to_owned(), claim)
}

/// A word for logs and metrics.
pub(crate) fn what(action: &Action) -> &'static str {
    match action {
        Action::Create { .. } => "create",
        Action::Update { .. } => "update",
        Action::SetFields { .. } => "set_fields",
        Action::GiveBack { .. } => "give_back",
        Action::Delete { .. } => "delete",
    }
}

/// Why an update is due.
pub(crate) fn differs(action: &Action) -> &str {
    match action {
        Action::Update { differs, .. } => differs,
        _ => "",
    }
}
