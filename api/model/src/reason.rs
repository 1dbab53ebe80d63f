//! The closed list of whys, and notes that carry them.
//!
//! The same value is the reason of a Kubernetes condition, a metric label, a log field and a line
//! of `fairlead explain`. Waiting, drained and paused are outcomes here, not errors.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why something is as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in order.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// CamelCase, as Kubernetes conditions want it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }

            /// One sentence for people, without names.
            pub fn sentence(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    // --- who may serve
    /// The member does not export the service.
    NotExported,
    /// The member's own configuration does not let this service be exported.
    ExportNotAllowed,
    /// The port is not a port of the exported service.
    PortNotExported,
    /// The service's owner granted no reference from the route's namespace.
    NoReferenceGrant,
    /// The member's traffic was taken away on request.
    Drained,
    /// The member only serves when nobody else can.
    Standby,
    /// The member has not reported yet.
    NoSnapshot,
    /// The member's last report is older than its policy allows.
    StaleInventory,
    /// The member has no gateway class for a door, so it can be an entry but not a target.
    NoGatewayClass,
    /// The member's door has no address yet.
    NoDoorAddress,
    /// The member's door is not proven shut for strangers yet.
    DoorNotShut,
    /// The member's door let a stranger in and was shut.
    StrangerLetIn,
    /// The door does not ask callers for a certificate; the member consented to that.
    WeakDoor,
    /// The member's certificate authority is not known yet.
    NoCrossingCa,
    /// The member's certificate authority was replaced by one that the one before did not sign.
    UntrustedCa,
    /// No door of the member carries this kind of traffic.
    CrossingUnsupported,
    /// Two members report the same address for their doors.
    AddressConflict,
    /// No tier of the policy has the member.
    NotInTiers,
    // --- how much
    /// No endpoint is ready.
    NoReadyEndpoints,
    /// Fewer endpoints are ready than the policy asks for.
    BelowMinEndpoints,
    /// The tiers before this one take all of the traffic.
    EarlierTierServes,
    /// The member's given weight is zero.
    WeightZero,
    /// Traffic is given back step by step.
    Ramping,
    /// A rule has at most 16 backends; the others were chosen.
    TooManyBackends,
    /// Nothing is ready anywhere and the policy says to fail.
    NothingReadyAnywhere,
    // --- health
    /// This entry cannot reach the member's door: refused.
    DoorRefused,
    /// This entry cannot reach the member's door: timed out.
    DoorTimedOut,
    /// The member's stream is gone and witnesses cannot reach its door.
    Down,
    /// The member's stream is gone; its traffic stays.
    AgentLost,
    /// Some evidence speaks against the member, not enough to act.
    Suspect,
    /// The member came back and is not trusted yet.
    Recovering,
    /// The member was out and its traffic waits until a person gives it back.
    AwaitingFailback,
    // --- earlier decisions
    /// The route is pinned to an earlier revision, until a person releases it.
    Pinned,
    /// No such revision of the route is in the history.
    RevisionUnknown,
    /// A change of the route is tried at one member first.
    RollingOut,
    /// A change of the route failed at the member that tried it; it goes no further.
    RolloutStopped,
    // --- routes and gateways
    /// The backend does not exist; its share fails, as the spec says.
    BackendNotFound,
    /// The kind of the backend is not supported.
    InvalidKind,
    /// A reference to another namespace is not granted.
    RefNotPermitted,
    /// The filter names something this version cannot carry.
    UnsupportedFilter,
    /// The route's parent is no Gateway of class fairlead.
    NoMatchingParent,
    /// The listener does not let this route attach.
    NotAllowedByListeners,
    /// No hostname of the route fits a hostname of the listener.
    NoMatchingListenerHostname,
    /// Something in the object has no meaning.
    UnsupportedValue,
    /// The listener's protocol is not supported.
    UnsupportedProtocol,
    /// Two listeners or two routes want the same thing; the older keeps it.
    Conflicted,
    /// The member lends no Gateway and has no class to create one.
    NoGateway,
    /// The member's Gateway is not programmed.
    GatewayNotProgrammed,
    /// A listener of the member's Gateway is not programmed.
    ListenerNotProgrammed,
    /// The member's Gateway has no listener of that name.
    ListenerMissing,
    /// The namespace does not exist in the member.
    NamespaceMissing,
    /// The member's configuration keeps this namespace for itself.
    NamespaceNotAllowed,
    /// The member's gateway does not support this.
    UnsupportedFeature,
    /// The member's gateway did not accept the route.
    NotAcceptedByGateway,
    /// A route of the member itself wins the match.
    Shadowed,
    /// Every port for crossing traffic is taken.
    NoPortLeft,
    // --- objects in members
    /// An object with that name exists and is not ours.
    NameConflict,
    /// The member's API does not know a field of the object.
    FieldUnknown,
    /// The member does not serve the kind.
    KindMissing,
    /// The kind's watch is not synced, so it is neither written nor pruned.
    Frozen,
    /// The member's API server refused the object.
    ApplyRefused,
    /// The member's RBAC forbids it.
    Forbidden,
    /// Held back until the door is proven shut.
    Withheld,
    /// The agent's own configuration forbids this kind of object.
    NotOurKind,
    /// The Gateway API version of the member is not one that was tried.
    UntestedVersion,
    // --- plans
    /// The plan would take away too much capacity at once; the last one stays.
    CapacityLoss,
    /// Too many members vanished at once; plans are frozen.
    FleetVanished,
    /// The hub was restarted and waits for its members.
    WaitingForMembers,
    /// The hub has not read all of its own objects yet.
    PolicyNotSynced,
    /// The store cannot be written, so nothing is planned.
    StoreUnavailable,
    /// The number is older than one seen before.
    OldNumber,
    /// The plan broke a rule of its own; the decision before stays.
    CheckFailed,
    // --- input
    /// The object cannot be read.
    Unreadable,
    /// The object or list is larger than the limit; the rest was dropped.
    TooLarge,
    /// The policy's target does not exist.
    TargetNotFound,
    /// A more specific policy, or an older one, wins.
    Overridden,
    // --- names
    /// The name is not in the zone of its policy.
    OutsideZone,
    /// The name cannot be published as it is.
    NameUnusable,
    /// The member's gateway has no address to be named.
    NoPublicAddress,
    /// No member's DNS server has an address that the parent zone could name.
    NoNameServer,
    /// A resolver does not answer the names as they are published.
    NotVisible,
    /// No resolver answers for the names.
    ResolverFailed,
    // --- join
    /// The token is not known.
    TokenUnknown,
    /// The token was used by another cluster.
    TokenUsed,
    /// The token is too old.
    TokenExpired,
    /// The name belongs to another cluster.
    NameTaken,
    /// The cluster is a member already, under another name.
    ClusterJoinedAlready,
    /// The certificate's time is over.
    CertificateExpired,
    /// The certificate is for another member.
    WrongIdentity,
    /// The member was removed from the hub.
    MemberRemoved,
    /// The clocks differ by too much.
    ClockSkew,
    /// The peer's protocol version is not supported.
    VersionUnsupported,
    // --- all is well
    /// Everything is as asked.
    AsAsked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something worth telling about one subject: what was dropped, refused or bent, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    /// What it is about, e.g. `HTTPRoute/shop/cart rules[0].backendRefs[1]`.
    pub subject: String,
    /// Why.
    pub reason: Reason,
    /// Details for people: names, values, the next step. Bounded by the writer.
    pub message: String,
}

impl Note {
    /// A note about `subject`.
    pub fn new(subject: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { subject: subject.into(), reason, message: message.into() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.subject, self.reason, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_sentence_and_a_condition_name() {
        for reason in Reason::ALL {
            assert!(reason.sentence().ends_with('.'), "{reason}");
            assert!(reason.as_str().chars().all(|c| c.is_ascii_alphanumeric()), "{reason}");
        }
    }
}
