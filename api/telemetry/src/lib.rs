//! Spans of Fairlead's own processes, and the way of any span to an OTLP backend.
//!
//! Owns what hub and agent must do alike: the flags that name a backend ([`settings`]), a queue with
//! a bound ([`queue`]), the loop that empties it ([`export`]), spans of our own work ([`span`]), how
//! metrics are shown ([`metrics`]) and whether they are well named ([`lint`]). Knows nothing of
//! clusters, routes or plans.
//!
//! Nobody waits for a backend: what does not fit into the queue is dropped, oldest first, and counted.
//!
//! ```text
//!  own spans ─┐
//!             ├─▶ queue (bytes, bounded) ─▶ batch ─▶ gRPC or HTTP ─▶ backend
//!  relay ─────┘        │ full: oldest goes            ▲ retry with backoff, one batch at a time
//! ```

pub mod export;
pub mod lint;
pub mod metrics;
pub mod queue;
mod send;
pub mod settings;
pub mod span;
