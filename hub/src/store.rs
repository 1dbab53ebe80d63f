//! What survives a restart: numbers, inventories, the planner's memory; and who may decide.
//!
//! Owns the contract of a store: revisioned keys, batches that happen whole or not at all, nothing
//! that was reported as written is lost in a crash; claims, which end when nobody renews them. Never
//! knows what values mean ([`crate::record`]
//! does). Every failure is an error of the operation; callers hold plans while it lasts.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod embedded;
mod etcd;
mod etcd_claim;
mod fenced;
mod local_claim;

pub use embedded::EmbeddedStore;
pub use etcd::{EtcdOptions, EtcdStore};
pub use fenced::FencedStore;

use std::time::Duration;

/// Most operations of a batch: etcd takes 128.
pub const BATCH_OPS_MAX: usize = 100;
/// Most bytes of a batch, keys and values: etcd takes 1.5 MiB with all that is around them.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Rises with every write of any key.
    pub revision: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Writes that happen whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Keys that must be at these revisions; 0 = must not exist.
    pub expect: Vec<(String, u64)>,
    /// Keys to write.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys to remove.
    pub delete: Vec<String>,
}

impl Batch {
    /// True when nothing would be written.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }

    /// Whether a store takes it.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], with more than [`BATCH_OPS_MAX`] operations or [`BATCH_BYTES_MAX`] bytes.
    pub fn check(&self) -> Result<(), StoreError> {
        let ops = self.put.len() + self.delete.len();
        let put = self.put.iter().map(|(key, bytes)| key.len() + bytes.len());
        let bytes = put.chain(self.delete.iter().map(String::len)).sum();
        if ops.max(self.expect.len()) > BATCH_OPS_MAX || bytes > BATCH_BYTES_MAX {
            return Err(StoreError::TooLarge { ops, bytes });
        }
        Ok(())
    }

    /// The same writes in batches that a store takes, in their order: deletes first. Each is whole or
    /// nothing, all of them are not, so what makes them count belongs into a last one. A single write
    /// that is too large alone stays so.
    pub fn split(self) -> Vec<Self> {
        let mut parts = Vec::new();
        let (mut part, mut ops, mut bytes) =
            (Self { expect: self.expect, ..Self::default() }, 0, 0);
        let mut room = |part: &mut Self, size: usize| {
            if ops > 0 && (ops >= BATCH_OPS_MAX || bytes + size > BATCH_BYTES_MAX) {
                parts.push(std::mem::take(part));
                (ops, bytes) = (0, 0);
            }
            (ops, bytes) = (ops + 1, bytes + size);
        };
        for key in self.delete {
            room(&mut part, key.len());
            part.delete.push(key);
        }
        for (key, value) in self.put {
            room(&mut part, key.len() + value.len());
            part.put.push((key, value));
        }
        parts.push(part);
        parts
    }
}

/// How a batch ended. With a store across a network the answer to a write can be lost: a batch that is
/// tried again may be in conflict with itself, so read again before believing in another writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written, at this revision.
    Written(u64),
    /// A key was not at the expected revision; nothing was written.
    Conflict,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("store {path} cannot be opened")]
    Open {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process has it open.
    #[error("store {path} is open in another process")]
    Locked {
        /// The file.
        path: String,
    },
    /// A newer version wrote it.
    #[error(
        "store {path} has schema {found}; this version knows {known}: start the newer hub again"
    )]
    Schema {
        /// The file.
        path: String,
        /// Its schema.
        found: u64,
        /// The newest known schema.
        known: u64,
    },
    /// A batch is larger than a store takes: [`Batch::split`] it.
    #[error("{ops} writes of {bytes} bytes are too much for one batch")]
    TooLarge {
        /// Its operations.
        ops: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// Another hub writes this store now.
    #[error("another hub has taken over the store")]
    Fenced,
    /// Reading failed.
    #[error("the store cannot be read")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Writing failed.
    #[error("the store cannot be written")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How a claim ended.
pub enum Claim {
    /// It is ours, as long as it is renewed.
    Held(Box<dyn Hold>),
    /// Another one holds it, and left these bytes with it.
    Other(Vec<u8>),
}

/// A claim that is ours. It is given up by [`Hold::release`], or by not renewing it.
pub trait Hold: Send + 'static {
    /// Renews it; false when it ran out, so that another may have it.
    ///
    /// # Errors
    /// [`StoreError::Write`]; it may go on or run out.
    fn renew(&mut self) -> Result<bool, StoreError>;

    /// Gives it up, so that another gets it at once.
    ///
    /// # Errors
    /// [`StoreError::Write`]; it runs out then.
    fn release(self: Box<Self>) -> Result<(), StoreError>;
}

/// A store. Its calls block; keep them off the async threads.
pub trait Store: Send + Sync + 'static {
    /// A value.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    fn get(&self, key: &str) -> Result<Option<Value>, StoreError>;

    /// All keys that start with `prefix`, in order.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, StoreError>;

    /// Writes a batch whole or not at all; it is on the disk when this returns. After an error it may be
    /// written or not.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::TooLarge`].
    fn commit(&self, batch: Batch) -> Result<Outcome, StoreError>;

    /// Claims a name: at most one holds it at a time. While another one does, waits as long as `wait`
    /// for its end. It ends `ttl` after it was last renewed, at the earliest, and soon after that; a
    /// store may round `ttl` up to whole seconds. Claims are no keys: a restart of a store in a file ends them.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Write`].
    fn claim(
        &self,
        name: &str,
        bytes: &[u8],
        ttl: Duration,
        wait: Duration,
    ) -> Result<Claim, StoreError>;

    /// Writes a key if it is at this revision; 0 = if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    fn compare_and_put(
        &self,
        key: &str,
        revision: u64,
        bytes: Vec<u8>,
    ) -> Result<Outcome, StoreError> {
        self.commit(Batch {
            expect: vec![(key.to_owned(), revision)],
            put: vec![(key.to_owned(), bytes)],
            delete: Vec::new(),
        })
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.commit(Batch { delete: vec![key.to_owned()], ..Batch::default() }).map(|_| ())
    }
}
