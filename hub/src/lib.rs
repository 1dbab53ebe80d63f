//! The Fairlead hub: the deciding process.
//!
//! Owns the acting half of the hub: watches, streams, store, statuses, the read-only API. What is
//! decided is decided in `fairlead-planner` and `fairlead-hub-core`; here it is carried out. Nothing
//! of it is ever in the way of a request: while the hub is away, members go on as they are.
//!
//! ```text
//!  API server ─▶ watch ─┐                           ┌─▶ status ─▶ API server
//!                       ├▶ conductor (plan, render) ┼─▶ admin (read-only API)
//!  agents ◀──▶ link ─▶ fleet ◀─────────bundles──────┘
//!                         └─▶ persist ─▶ store
//! ```

pub mod admin;
pub mod args;
pub mod bootstrap;
pub mod clock;
pub mod conductor;
pub mod enroll;
pub mod fleet;
pub mod history;
pub mod identity;
pub mod lease;
pub mod link;
pub mod metrics;
pub mod persist;
pub mod pki;
pub mod record;
pub mod refusal;
pub mod registry;
pub mod run;
pub mod signal;
pub mod spans;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod traffic;
mod trial;
pub mod vet;
pub mod view;
pub mod visible;
pub mod watch;
