//! Objects of other controllers that act on global routes and gateways, and follow them.
//!
//! A rate limit, a circuit breaker, a filter that a route names: declared once in the hub, needed
//! wherever the route is served. Their specs travel as they are written; only names of targets change.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Json, NsName, RouteKey};

/// An object that follows routes or gateways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Follower {
    /// `apiVersion`, as its user wrote it.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace and name.
    pub name: NsName,
    /// Its `spec`, raw.
    pub spec: Arc<Json>,
    /// Global routes that it targets, or that name it in a filter.
    pub routes: BTreeSet<RouteKey>,
    /// Global gateways that it targets.
    pub gateways: BTreeSet<NsName>,
}

impl Follower {
    /// Group, without a version.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// `GROUP/VERSION/KIND`, as members report what they serve.
    pub fn group_version_kind(&self) -> String {
        format!("{}/{}", self.api_version, self.kind)
    }

    /// For people, e.g. `BackendTrafficPolicy shop/limit`.
    pub fn for_people(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

/// A follower in one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FollowerPlan {
    /// The object.
    pub follower: Arc<Follower>,
    /// The member serves the kind, and its agent's configuration lets it follow.
    pub fits: bool,
}
