//! A plan rendered for one member: objects, recipes, and the doors to probe.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dns::Zones;
use crate::recipe::{Recipe, Serve};
use crate::snapshot::Address;
use crate::{ClusterUid, Json, MemberId, ObjectId, PlanNumber};

/// A plan rendered for one member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bundle {
    /// Its number.
    pub number: PlanNumber,
    /// Objects to hold.
    pub objects: BTreeMap<ObjectId, BundleObject>,
    /// Recipes of the rules whose weights an agent may change.
    pub recipes: BTreeMap<RuleId, Recipe>,
    /// Doors of other members to probe: those that the routes lead to, and those that this member
    /// watches for the fleet.
    pub peers: BTreeMap<MemberId, Peer>,
    /// Zones to answer for.
    pub zones: Zones,
    /// Of every member whose crossing CA stands in one of the objects, or that is a peer: whose it is.
    /// Empty from hubs that do not say.
    pub cas: BTreeMap<MemberId, CrossingCa>,
}

impl Bundle {
    /// The peers that routes lead to.
    pub fn used_peers(&self) -> BTreeMap<MemberId, Peer> {
        let tiers =
            self.recipes.values().flat_map(|recipe| &recipe.backends).filter_map(|backend| {
                match &backend.serve {
                    Serve::Fixed { .. } => None,
                    Serve::Members { tiers, .. } => Some(tiers),
                }
            });
        let candidates = tiers.flatten().flat_map(|tier| &tier.candidates);
        let used: BTreeSet<&MemberId> = candidates.map(|candidate| &candidate.member).collect();
        let is_used = |(id, _): &(&MemberId, &Peer)| used.contains(id);
        self.peers.iter().filter(is_used).map(|(id, peer)| (id.clone(), peer.clone())).collect()
    }
}

/// An object to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BundleObject {
    /// The object, complete but for what the API server adds.
    pub content: Json,
    /// When it may be applied.
    pub gate: Gate,
    /// What may be done with what is there already.
    pub claim: Claim,
}

/// When an object may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Gate {
    /// At once.
    #[default]
    Open,
    /// Only while the agent's own knock finds the door shut; withdrawn otherwise.
    DoorShut,
    /// The same for the listener that tells services apart by SNI.
    SniDoorShut,
}

/// What may be done with an object that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Claim {
    /// It is wholly ours: without our label it is a conflict; it is pruned when it is not named any more.
    #[default]
    Whole,
    /// The object is the member's own; we apply some fields and give them back.
    Fields,
}

/// A rule of a rendered route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleId {
    /// The rendered route.
    pub object: ObjectId,
    /// Index of the rule in it.
    pub rule: u16,
}

impl std::fmt::Display for RuleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.object, self.rule)
    }
}

impl std::str::FromStr for RuleId {
    type Err = crate::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || crate::IdError::Form {
            what: "rule",
            value: crate::id::printable(text),
            form: "OBJECT#RULE",
        };
        let (object, rule) = text.rsplit_once('#').ok_or_else(form)?;
        Ok(Self { object: object.parse()?, rule: rule.parse().map_err(|_| form())? })
    }
}

impl TryFrom<String> for RuleId {
    type Error = crate::IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RuleId> for String {
    fn from(id: RuleId) -> String {
        id.to_string()
    }
}

/// A door of another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its cluster.
    pub uid: ClusterUid,
    /// Addresses of its door.
    pub addresses: BTreeSet<Address>,
    /// Port of its door.
    pub port: u16,
    /// Name in its certificate, also the host of the probe.
    pub server_name: String,
    /// Its crossing CA, PEM.
    pub ca_pem: String,
    /// What its door asks for before it leads to the agent's readiness.
    #[serde(default)]
    pub readiness: Capability,
}

/// Whose a crossing CA is, and why one that follows another is to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossingCa {
    /// The cluster.
    pub uid: ClusterUid,
    /// What tells this registration of the cluster at the hub from an earlier one.
    pub membership: String,
    /// Its certificate, PEM; two while it changes.
    pub ca_pem: String,
    /// See [`crate::snapshot::DoorState::endorsements`].
    pub endorsements: Vec<String>,
}

/// A value that opens something at a door; empty when the hub gave none. Never printed.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capability(pub String);

impl std::fmt::Debug for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Capability(none)" } else { "Capability(..)" })
    }
}
