//! The recipe of a rule: everything that its weights were computed from.
//!
//! It travels with the bundle, so that an agent that finds a peer unreachable computes the new
//! weights the very same way as the planner (`fairlead-weights`), at once and without the hub.
//! Members that are out of health are included, otherwise they could never come back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::snapshot::EndpointCounts;
use crate::{MemberId, NsName, ServicePort};

/// Version of the algorithm that this code knows. A recipe of another version is only zeroed and
/// renormalised.
pub const RECIPE_VERSION: u16 = 1;

/// The fixed sum of a rule's weights.
pub const WEIGHT_SUM: u32 = 10_000;

/// Most backendRefs of one rule, as the Gateway API says.
pub const SLOTS_MAX: usize = 16;

/// Everything that the weights of one rule are computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of the algorithm.
    pub version: u16,
    /// The user's backends, in the order of the rule.
    pub backends: Vec<RecipeBackend>,
    /// The weights without faults, by slot: what the bundle holds.
    pub weights: Vec<u32>,
}

/// One of the user's backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeBackend {
    /// The user's weight.
    pub weight: u32,
    /// Who serves it.
    pub serve: Serve,
}

/// Who serves a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Serve {
    /// One backendRef that always keeps its share: the entry's own Service, or an invalid one.
    Fixed {
        /// Position among the rule's backendRefs.
        slot: u16,
    },
    /// Members, by tiers.
    Members {
        /// The service that they serve.
        service: NsName,
        /// Its port.
        port: ServicePort,
        /// Tiers in order.
        tiers: Vec<RecipeTier>,
        /// What happens when nobody can.
        when_unavailable: WhenUnavailable,
    },
}

/// What happens to the share of a backend that exists but that nobody can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WhenUnavailable {
    /// The rule's other backends take it.
    #[default]
    Redistribute,
    /// It fails.
    Fail,
}

/// A set of members that is tried together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeTier {
    /// How the tier's traffic is split.
    pub split: Split,
    /// Share of healthy capacity below which the tier spills, in percent (1 to 100).
    pub healthy_percent: u8,
    /// Ready endpoints below which a member takes nothing while others can.
    pub endpoints_min: u32,
    /// Members, in order of their ids.
    pub candidates: Vec<Candidate>,
}

/// How a tier's traffic is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Split {
    /// By expected endpoints.
    #[default]
    Endpoints,
    /// The same for all.
    Equal,
    /// By given weights.
    Weights,
}

/// A member that may serve a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The member.
    pub member: MemberId,
    /// Position of its backendRef among those of the rule.
    pub slot: u16,
    /// Ready endpoints.
    pub ready: u32,
    /// Endpoints that are to be expected; at least `ready`.
    pub expected: u32,
    /// Given weight, for [`Split::Weights`].
    pub weight: u32,
    /// Share of its traffic that it is given while it comes back, in percent (100 = all).
    pub ramp_percent: u8,
    /// What the hub knows against it.
    pub standing: Standing,
}

/// What the hub knows about a candidate's ability to serve at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Able,
    /// It takes nothing: down, draining, door shut.
    Out,
}

/// What an agent knows that the recipe does not: faults found since.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Faults {
    /// Members that this entry cannot reach.
    pub unreachable: BTreeSet<MemberId>,
    /// Newer counts of a member's service, from its `readiness`.
    pub counts: BTreeMap<MemberId, BTreeMap<NsName, EndpointCounts>>,
    /// Share that a member is given while it comes back, in percent.
    pub ramps: BTreeMap<MemberId, u8>,
}

impl Faults {
    /// True when nothing is known beyond the recipe.
    pub fn is_empty(&self) -> bool {
        self.unreachable.is_empty() && self.counts.is_empty() && self.ramps.is_empty()
    }
}
