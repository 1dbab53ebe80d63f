//! The protocol between hub and agents: generated messages, and total conversions to the model.
//!
//! Owns the wire: message sizes, cutting deltas into parts and putting them together again, and
//! what the entries of the two ledgers hold. Never does I/O. What cannot be read is dropped in the
//! smallest part and noted; only a broken frame is an error, which ends the stream.

pub mod bundle_item;
pub mod convert;
mod dns_item;
pub mod parts;
pub mod snapshot_item;

/// Generated from `proto/fairlead/v1`.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::semicolon_if_nothing_returned,
    clippy::uninlined_format_args,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unused_qualifications,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("fairlead.v1");
}

/// Ledgers of snapshots and bundles.
pub mod ledger {
    pub use crate::bundle_item::{bundle_to_ledger, ledger_to_bundle};
    pub use crate::snapshot_item::{ledger_to_snapshot, snapshot_to_ledger};
}

/// Largest message on the wire. A part is smaller by far; one Kubernetes object is at most 1.5 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Entries are gathered into one part up to this size.
pub const PART_BYTES: usize = 256 << 10;

/// Largest ledger that is put together from parts: a hostile peer must not fill our memory.
pub const LEDGER_BYTES_MAX: usize = 64 << 20;

/// A frame that has no meaning: the stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The message has no body, or one that this version does not know.
    #[error("message without a body that this version knows")]
    NoBody,
    /// A field without which the message has no meaning.
    #[error("{message}.{field} is missing or has no meaning: {detail}")]
    Field {
        /// Message.
        message: &'static str,
        /// Field.
        field: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The parts of one delta do not belong together.
    #[error("part of number {found} while the parts of {open} are not complete")]
    PartsMixed {
        /// Number that is open.
        open: String,
        /// Number that arrived.
        found: String,
    },
    /// The parts are larger together than is allowed.
    #[error("a delta of more than {LEDGER_BYTES_MAX} bytes")]
    TooLarge,
}

pub(crate) fn field(
    message: &'static str,
    field: &'static str,
    detail: impl std::fmt::Display,
) -> ProtoError {
    ProtoError::Field { message, field, detail: detail.to_string() }
}
