//! What survives a restart: numbers, inventories, the planner's memory.
//!
//! Owns the contract of a store: revisioned keys, batches that happen whole or not at all, nothing
//! that was reported as written is lost in a crash. Never knows what values mean ([`crate::record`]
//! does). Every failure is an error of the operation; callers hold plans while it lasts.

mod embedded;

pub use embedded::EmbeddedStore;

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
}

/// How a batch ended.
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
    /// Reading failed.
    #[error("the store cannot be read")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Writing failed.
    #[error("the store cannot be written")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
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

    /// Writes a batch whole or not at all; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    fn commit(&self, batch: Batch) -> Result<Outcome, StoreError>;

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

#[cfg(test)]
#[path = "store_contract_test.rs"]
mod contract;
