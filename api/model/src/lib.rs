//! Plain validated types that every Fairlead crate shares.
//!
//! Owns the words of the design as Rust types: ids, numbers, reasons, what a member reports
//! ([`snapshot`]), what users declare ([`policy`]), what was decided ([`plan`]), what a member must
//! hold ([`bundle`]), the values that cross between hub and agent ([`session`]), and the one machine that
//! both run: keys that change step by step ([`rotation`]).
//! Never does I/O, never reads a clock, never logs. Constructors that validate return errors that
//! name the value; everything else is public data.

pub mod bundle;
pub mod dns;
pub mod follower;
pub mod health;
pub mod history;
pub mod id;
pub mod ledger;
pub mod number;
pub mod pin;
pub mod plan;
pub mod policy;
pub mod reason;
pub mod recipe;
pub mod rotation;
pub mod session;
pub mod snapshot;
pub mod traffic;
pub mod view;

/// Raw JSON, for what must survive unread: route rules, gateway specs, rendered objects.
pub type Json = serde_json::Value;

pub use id::{
    ClusterUid, IdError, MemberId, NsName, ObjectId, RouteKey, RouteKind, ServicePort, Way,
};
pub use number::{Millis, PlanNumber, SnapshotNumber};
pub use reason::{Note, Reason};
