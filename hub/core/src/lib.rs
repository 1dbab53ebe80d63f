//! The hub's state machines: session, inventory, member health, numbering, holds, enrolment.
//!
//! Owns what the hub does with what agents say, as values in and values out. Never opens a socket,
//! reads a clock, writes a file or logs: the caller passes `now` in and acts on the outputs, so a
//! simulation can drive all of it. Bad input from an agent closes its own session with a reason and
//! touches nothing else.
//!
//! ```text
//!  FromAgent ──▶ session ──▶ inventory ──▶ FleetInput ──▶ (planner)
//!                   ▲  │──▶ health ────────────▲  ▲
//!        bundles ───┘  └──▶ FromHub     hold ──┘──┘
//! ```

pub mod enroll;
pub mod event;
pub mod health;
pub mod history;
pub mod hold;
pub mod intake;
pub mod inventory;
pub mod numbering;
pub mod passive;
pub mod push;
pub mod session;
pub mod visible;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
#[path = "../../planner/tests/fixture/mod.rs"]
mod history_fixture;
