//! What one plan remembers for the next. Pruned to what exists with every plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::dns::{DnsName, Zone};
use fairlead_model::plan::{DoorPort, RouteDecision};
use fairlead_model::snapshot::Address;
use fairlead_model::{ClusterUid, MemberId, Millis, NsName, RouteKey};
use serde::{Deserialize, Serialize};

use crate::rollout::Rollout;

/// What one plan remembers for the next.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Endpoint counts, by member and service.
    pub counts: BTreeMap<MemberId, BTreeMap<NsName, CountMemory>>,
    /// Doors as they were last trusted.
    pub doors: BTreeMap<MemberId, DoorMemory>,
    /// Who holds `ADDRESS PORT` of a door.
    pub address_holders: BTreeMap<String, MemberId>,
    /// Members that were out and have not been given all back.
    pub absences: BTreeMap<MemberId, Absences>,
    /// The last decision of every route.
    pub decisions: BTreeMap<RouteKey, Arc<RouteDecision>>,
    /// Changes of routes that are not everywhere.
    pub rollouts: BTreeMap<RouteKey, Rollout>,
    /// Zones and addresses.
    pub dns: DnsMemory,
}

/// Names as they were last published.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsMemory {
    /// Zones, with their serials.
    pub zones: BTreeMap<DnsName, Arc<Zone>>,
    /// Addresses of gateways as they were last trusted, by member.
    pub addresses: BTreeMap<MemberId, BTreeMap<NsName, BTreeSet<Address>>>,
    /// Who writes for ExternalDNS, by DNSPolicy.
    pub publishers: BTreeMap<NsName, MemberId>,
}

/// Endpoint counts of one service in one member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CountMemory {
    /// Highest ready count by minute since the epoch; at most ten minutes.
    pub peaks: BTreeMap<u64, u32>,
    /// What the weights are computed from.
    pub in_use: InUse,
    /// Since when an increase waits for more.
    pub rising_since: Option<Millis>,
}

/// Counts that weights are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InUse {
    /// Ready endpoints.
    pub ready: u32,
    /// Endpoints that are to be expected; at least `ready`.
    pub expected: u32,
}

/// A member's door as it was last trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorMemory {
    /// The cluster that it belongs to: another cluster of the same name inherits nothing.
    pub uid: ClusterUid,
    /// Its addresses.
    pub addresses: BTreeSet<Address>,
    /// Its port.
    pub port: u16,
    /// The member's crossing CA, PEM.
    pub ca_pem: Option<String>,
    /// Why that one is to be believed by who pinned an earlier one.
    #[serde(default)]
    pub endorsements: Vec<String>,
    /// A knock has found it shut since it was last found open.
    pub proven_shut: bool,
    /// The same for its listener that tells services apart by SNI.
    #[serde(default)]
    pub sni_proven_shut: bool,
    /// Services with a port of their own there.
    #[serde(default)]
    pub ports: BTreeSet<DoorPort>,
}

/// Why a member was out, and how far it is back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Absences {
    /// It was out of health.
    pub ill: Option<Absence>,
    /// A person had drained it.
    pub drained: Option<Absence>,
    /// Its reports were older than a policy allows, by that policy's seconds.
    pub stale: BTreeMap<u32, Absence>,
}

impl Absences {
    /// With no time after `now`: a clock that was set back must not make anybody wait for the day that it
    /// showed before.
    pub(crate) fn not_after(&self, now: Millis) -> Self {
        let by_now = |time: Option<Millis>| time.map(|time| time.min(now));
        let absence = |absence: Absence| Absence {
            out_since: by_now(absence.out_since),
            back_since: by_now(absence.back_since),
            // Told by a person's object, and compared with nothing but itself.
            asked_before: absence.asked_before,
            asked_since: by_now(absence.asked_since),
        };
        Self {
            ill: self.ill.map(absence),
            drained: self.drained.map(absence),
            stale: self.stale.iter().map(|(seconds, held)| (*seconds, absence(*held))).collect(),
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Absence> {
        self.ill.iter().chain(&self.drained).chain(self.stale.values())
    }
}

/// One absence of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Absence {
    /// Since when it is led away, if that is done in steps.
    pub out_since: Option<Millis>,
    /// Since when it is back; none = it is out.
    pub back_since: Option<Millis>,
    /// The request for failback that was known when it went out: only another one counts.
    pub asked_before: Option<Millis>,
    /// When a new request was first seen.
    pub asked_since: Option<Millis>,
}
