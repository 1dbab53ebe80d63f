//! The whole fleet in one thread on virtual time.
//!
//! The real planner, the real state machines of hub and agents and the real ledgers between them, on
//! a model of everything else: network, API servers, gateways, stores. A seed is a run: a fleet, what
//! goes wrong in it and when; then everything is mended and the fleet must come to rest where a fleet
//! without faults would be. Checkers look on from outside. The same seed is the same run, for ever.
//!
//! ```text
//!  seed ─▶ setup, faults ─▶ world ─┬─ hub (session, inventory, health, hold, planner)
//!                                  ├─ agents (session, probe, readiness, overlay)
//!                                  └─ checkers: numbers, ownership, consent, traffic, rest
//! ```

pub mod agent;
pub mod bug;
pub mod bundle;
pub mod check;
pub mod fault;
pub mod hub;
pub mod net;
pub mod queue;
pub mod rng;
pub mod run;
pub mod script;
pub mod setup;
pub mod traffic;
pub mod world;
