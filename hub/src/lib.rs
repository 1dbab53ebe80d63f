//! The Fairlead hub: the deciding process.
//!
//! Owns the acting half of the hub: watches, streams, store, statuses, the read-only API. What is
//! decided is decided in `fairlead-planner` and `fairlead-hub-core`; here it is carried out. Nothing
//! of it is ever in the way of a request: while the hub is away, members go on as they are.
//!
//! ```text
//!  API server ─▶ watch ─┐                           ┌─▶ status ─▶ API server
//!                       ├▶ conductor (plan, render) ┼─▶ admin (read-only API)
//!  agents ◀▶ gate ◀▶ link ─▶ fleet ◀────bundles─────┘
//!             ▲                 └─▶ persist ─▶ store
//!             └── who decides ── office ◀────────┘
//! ```
//!
//! Of several hubs one holds the office and does all of it; the others watch, and pass on what comes to them.

pub mod admin;
pub mod args;
pub mod authority;
pub mod bootstrap;
pub mod clock;
pub mod conductor;
pub mod crossing;
pub mod enroll;
pub mod events;
pub mod fleet;
pub mod gate;
pub mod history;
pub mod identity;
pub mod lease;
pub mod link;
pub mod metrics;
pub mod office;
pub mod pass;
pub mod persist;
pub mod pki;
pub mod record;
pub mod refusal;
pub mod registry;
pub mod rotation;
pub mod run;
pub mod signal;
pub mod spans;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod together;
pub mod traffic;
pub mod trial;
pub mod upkeep;
pub mod vet;
pub mod view;
pub mod visible;
pub mod watch;
