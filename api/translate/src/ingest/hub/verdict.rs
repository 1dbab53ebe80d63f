//! What was decided about an object of the hub: what its status says, before members are asked.

use fairlead_model::{Json, Note, NsName, Reason, RouteKind};

use super::pin::PinVerdict;

/// Yes, or no and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Verdict {
    /// As asked.
    #[default]
    Yes,
    /// Not as asked.
    No {
        /// Why.
        reason: Reason,
        /// Details for people.
        message: String,
    },
}

impl Verdict {
    /// A no.
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self::No { reason, message: message.into() }
    }

    /// True for yes.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

/// About a GatewayClass of our controller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassVerdict {
    /// The generation that was read.
    pub generation: i64,
    /// Whether it can be used.
    pub accepted: Verdict,
}

/// About a Gateway of our class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GatewayVerdict {
    /// The generation that was read.
    pub generation: i64,
    /// Whether it can be used at all: one listener at least.
    pub accepted: Verdict,
    /// Listeners in the order of the spec.
    pub listeners: Vec<ListenerVerdict>,
    /// ListenerSets that are attached to it.
    pub attached_sets: u32,
    /// What is wrong with the client certificate that it names.
    pub client_certificate: Option<CertificateFault>,
    /// It asks its members' gateways to let clients in whose certificate is not valid.
    pub lets_invalid_clients_in: bool,
}

/// About a ListenerSet of a Gateway of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSetVerdict {
    /// Its own name.
    pub name: NsName,
    /// The generation that was read.
    pub generation: i64,
    /// Its Gateway.
    pub gateway: NsName,
    /// Whether any of it can be used.
    pub accepted: Verdict,
    /// Listeners in the order of the spec; none when the Gateway does not take it.
    pub listeners: Vec<ListenerVerdict>,
}

/// About a listener.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListenerVerdict {
    /// Name.
    pub name: String,
    /// Whether it can be used.
    pub accepted: Verdict,
    /// What it cannot share with another listener.
    pub conflict: Option<Conflict>,
    /// Some of the kinds that it names cannot attach to its protocol.
    pub has_invalid_kinds: bool,
    /// What is wrong with its certificates, as far as the hub can tell: Secrets are the members' own.
    pub certificates: Option<CertificateFault>,
    /// An HTTPS listener of its port that takes some of its hostnames, too.
    pub overlaps: Option<String>,
    /// Kinds that can attach.
    pub kinds: Vec<RouteKind>,
    /// Accepted routes that are attached.
    pub attached: u32,
}

/// What is wrong with a listener's certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateFault {
    /// One is named in a way that no member could follow, or none is.
    Invalid(String),
    /// One is in another namespace, which grants nothing.
    NotPermitted(String),
}

/// What two listeners cannot share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// One port, two protocols.
    Protocol,
    /// One port and protocol, one hostname.
    Hostname,
}

/// About a route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteVerdict {
    /// The generation that was read.
    pub generation: i64,
    /// Parents that are Gateways of ours, in the order of the spec.
    pub parents: Vec<ParentVerdict>,
    /// Whether all references lead somewhere, as far as the hub's own objects tell.
    pub resolved: Verdict,
    /// Why some rules were left out.
    pub partially_invalid: Option<String>,
    /// What was left out.
    pub notes: Vec<Note>,
    /// What became of its pin, if it asks for one.
    pub pin: Option<PinVerdict>,
}

/// About one parent of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentVerdict {
    /// The reference as its user wrote it.
    pub parent_ref: Json,
    /// The Gateway.
    pub gateway: NsName,
    /// Whether the route is attached to it.
    pub accepted: Verdict,
}

/// About a TrafficPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyVerdict {
    /// The generation that was read.
    pub generation: i64,
    /// Targets in the order of the spec.
    pub targets: Vec<TargetVerdict>,
}

/// About a DNSPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsVerdict {
    /// The generation that was read.
    pub generation: i64,
    /// Whether it acts on any of its targets.
    pub accepted: Verdict,
}

/// About one target of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetVerdict {
    /// The reference as its user wrote it.
    pub target_ref: Json,
    /// Whether the policy acts on it.
    pub accepted: Verdict,
}
