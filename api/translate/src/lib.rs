//! Kubernetes objects to model and back: ingest, render, status.
//!
//! Owns the only code that knows how Kubernetes writes what the model says: [`ingest`] reads foreign
//! objects (members' and the hub's), [`mod@render`] writes the objects that a member must hold, [`status`]
//! writes what the hub says about its own objects, [`names`] derives every name.
//!
//! Never does I/O, never reads a clock, never decides where traffic goes. Foreign objects stay
//! `serde_json::Value`: fields that this version does not know must survive.
//!
//! Fails never: bad input is data. The smallest part is dropped and a [`fairlead_model::Note`] says so.

pub mod capability;
pub mod ingest;
pub mod names;
mod raw;
pub mod render;
pub mod shard;
pub mod status;

pub use capability::CapabilityKeys;
pub use render::render;
