//! What a member believes of other members' crossing CAs, as its agent keeps it for people to see.

use serde::{Deserialize, Serialize};

/// What is believed of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaPin {
    /// The member's name when it was seen last.
    pub member: String,
    /// Its registration at the hub.
    pub membership: String,
    /// Its CA, PEM; two certificates while it changes.
    pub ca: String,
    /// Hashes (`sha256:` and the digits) of the certificates that are believed.
    pub believed: Vec<String>,
    /// Hashes of those that were shown and are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// It is this very member: known, not believed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}
