//! The agent's state machines: session, object diff, probes, overlay.
//!
//! Owns every decision of the agent: what may be written at all ([`own`]), what must be written or
//! deleted now ([`diff`]), what a door's answers mean ([`probe`]), how routes change while peers
//! cannot be reached ([`overlay`]), and what is said to the hub when ([`session`]), what a span means ([`attribution`]).
//! Never does I/O, reads a clock or logs: time, jitter and what is live are inputs, so that a
//! simulation can drive all of it. Bad input becomes an exception of one object, never an error.

pub mod attribution;
pub mod clusterset;
pub mod diff;
pub mod dns;
pub mod field;
pub mod gentle;
pub mod live;
pub mod names;
pub mod overlay;
pub mod own;
pub mod probe;
pub mod readiness;
pub mod renewal;
pub mod session;
pub mod traffic;
