//! The Fairlead agent of a member cluster.
//!
//! Reports what its cluster offers, holds what the hub plans for it, and takes peers that cannot be
//! reached out of its own routes, with or without a hub. The decisions are in `fairlead-agent-core`;
//! here they meet the API server, the network and the disk.
//!
//! ```text
//!   watch ─▶ cache ─▶ observe ─▶ snapshot ─▶ uplink ◀──gRPC──▶ hub
//!              │                               │ bundle ─▶ disk
//!              ▼                               ▼
//!            apply ◀── overlay ◀── probe    (peers' doors)
//!              │  ▲
//!              ▼  └── knock (our own door)
//!          API server          gateways' spans ──▶ relay ──▶ OTLP backend
//! ```

pub mod alone;
pub mod api;
pub mod apply;
pub mod args;
mod bundles;
pub mod cache;
pub mod clock;
pub mod counts;
pub mod crossing;
pub mod dial;
pub mod disk;
pub mod dns;
pub mod door;
pub mod facts;
#[cfg(test)]
mod fake;
pub mod http;
pub mod identity;
pub mod kind;
pub mod knock;
pub mod metrics;
pub mod names;
pub mod observe;
mod pin_store;
pub mod pins;
pub mod pki;
pub mod probe;
mod publish;
pub mod relay;
pub mod renewal;
pub mod run;
pub mod secret;
pub mod spans;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod uplink;
pub mod watch;
mod write;
