//! Fairlead's own Kubernetes kinds, and every name that Fairlead shares with the outside.
//!
//! Owns: `MemberCluster`, `TrafficPolicy` and `DNSPolicy` (`fairlead.dev/v1alpha1`) with their validation, and
//! in [`keys`] the labels, annotations, finalizers, condition types and object names that hub,
//! agent, chart and CLI must spell alike. `deploy/crds` is generated from here ([`crds`]), and a
//! test keeps it equal.
//!
//! Never does: talk to an API server, decide anything, know the model. It depends on kube's types
//! only, not on its client.
//!
//! Fails: not at all; these are plain types. Their enums are closed, so one object written for a
//! newer version fails a whole typed list: read them as `kube::core::DeserializeGuard<K>`, which
//! turns such an object into an error of its own.

mod crd;
mod dns_policy;
pub mod keys;
mod member_cluster;
mod schema;
mod traffic_policy;

pub use crd::crds;
pub use dns_policy::{
    DNSPolicy, DnsDelegation, DnsNetwork, DnsPolicySpec, DnsPolicyStatus, DnsPublish, DnsStrategy,
    DnsTargetRef, DnsTier, WhenNoneHealthy,
};
pub use member_cluster::{
    EAST_WEST_PORT, EastWest, Location, MemberCluster, MemberClusterSpec, MemberClusterStatus,
    MemberCounts, TrafficState,
};
pub use traffic_policy::{
    AncestorRef, Failback, FailbackMode, Failover, PolicyAncestorStatus, Scope, Split, StaleMember,
    StaleMode, TargetRef, Tier, TierMembers, TrafficPolicy, TrafficPolicySpec, TrafficPolicyStatus,
    WhenUnavailable,
};
