//! What the planner reads and what it gives back.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::health::MemberHealth;
use fairlead_model::plan::{MemberPlan, RouteDecision};
use fairlead_model::policy::Policy;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{MemberId, Millis, RouteKey};

use crate::{Memory, Report, RolloutInput};

/// Everything that a plan is made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FleetInput {
    /// The time.
    pub now: Millis,
    /// What users declared.
    pub policy: Arc<Policy>,
    /// What is known of members; those that are not registered in the policy do not count.
    pub members: BTreeMap<MemberId, MemberInput>,
    /// What the plan before remembered.
    pub memory: Memory,
    /// The hub's own settings.
    pub settings: Settings,
    /// What is to be tried first, and what became of that.
    pub rollout: RolloutInput,
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemberInput {
    /// Its last accepted report.
    pub snapshot: Option<Arc<Snapshot>>,
    /// When that arrived.
    pub received_at: Millis,
    /// What the hub holds it for.
    pub health: MemberHealth,
}

/// The hub's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most of the fleet's serving capacity that one plan may take away unasked, in percent.
    pub capacity_loss_percent_max: u8,
    /// Change of counts below which nothing happens, in percent.
    pub counts_change_percent: u8,
    /// Time that an increase of counts waits for more, in milliseconds.
    pub counts_coalesce_ms: u64,
    /// Whether the hub doubts itself.
    pub freeze: Freeze,
}

/// Whether the hub doubts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freeze {
    /// It does not.
    #[default]
    Off,
    /// Too many members vanished at once: routes that nobody edits keep their decisions. What users
    /// edit, drain or delete goes through.
    Unedited,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity_loss_percent_max: 50,
            counts_change_percent: 10,
            counts_coalesce_ms: 1_000,
            freeze: Freeze::Off,
        }
    }
}

/// A plan for the whole fleet, and why it is so.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// By route; a route that is unchanged since the plan before is the same `Arc`.
    pub decisions: BTreeMap<RouteKey, Arc<RouteDecision>>,
    /// By member; one that is absent keeps what it has.
    pub plans: BTreeMap<MemberId, Arc<MemberPlan>>,
    /// Why.
    pub report: Report,
    /// For the next plan.
    pub memory: Memory,
    /// When time alone will change the answer; later than `now`.
    pub wake_at: Option<Millis>,
}
