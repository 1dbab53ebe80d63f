//! The store in one file (redb): for a hub of one replica. Crash-safe, one writer.

use std::path::Path;

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition,
};

use super::{Batch, Outcome, Store, StoreError, Value};

const VALUES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("values");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const SCHEMA: &str = "schema";
/// The schema that this version writes.
const SCHEMA_VERSION: u64 = 1;
/// Pages that are kept in memory: the hub reads the store at its start only.
const CACHE_BYTES: usize = 4 << 20;
/// Name of the file in the data directory.
const FILE: &str = "fairlead.redb";

/// The store in one file.
#[derive(Debug)]
pub struct EmbeddedStore {
    database: Database,
}

fn read_error(source: impl Into<redb::Error>) -> StoreError {
    StoreError::Read(Box::new(source.into()))
}

fn write_error(source: impl Into<redb::Error>) -> StoreError {
    StoreError::Write(Box::new(source.into()))
}

impl EmbeddedStore {
    /// Opens the store of a data directory, making both when they are not there.
    ///
    /// # Errors
    /// When the file cannot be opened, is open elsewhere, or was written by a newer version.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let file = data_dir.join(FILE);
        let path = file.display().to_string();
        let open_error = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(data_dir).map_err(|error| open_error(Box::new(error)))?;
        let database = match Database::builder().set_cache_size(CACHE_BYTES).create(&file) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Locked { path }),
            Err(error) => return Err(open_error(Box::new(error))),
        };
        let store = Self { database };
        match store.prepare()? {
            SCHEMA_VERSION => Ok(store),
            found => Err(StoreError::Schema { path, found, known: SCHEMA_VERSION }),
        }
    }

    /// Makes the tables, so that readers never miss them, and tells the schema of the file.
    fn prepare(&self) -> Result<u64, StoreError> {
        let write = self.database.begin_write().map_err(write_error)?;
        let schema = {
            write.open_table(VALUES).map_err(write_error)?;
            let mut meta = write.open_table(META).map_err(write_error)?;
            let found = meta.get(SCHEMA).map_err(write_error)?.map(|guard| guard.value());
            if found.is_none() {
                meta.insert(SCHEMA, SCHEMA_VERSION).map_err(write_error)?;
            }
            found.unwrap_or(SCHEMA_VERSION)
        };
        write.commit().map_err(write_error)?;
        Ok(schema)
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Value>, StoreError> {
        let read = self.database.begin_read().map_err(read_error)?;
        let table = read.open_table(VALUES).map_err(read_error)?;
        let guard = table.get(key).map_err(read_error)?;
        Ok(guard.map(|guard| {
            let (revision, bytes) = guard.value();
            Value { revision, bytes: bytes.to_vec() }
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, StoreError> {
        let read = self.database.begin_read().map_err(read_error)?;
        let table = read.open_table(VALUES).map_err(read_error)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..).map_err(read_error)? {
            let (key, value) = entry.map_err(read_error)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let (revision, bytes) = value.value();
            found.push((key.value().to_owned(), Value { revision, bytes: bytes.to_vec() }));
        }
        Ok(found)
    }

    fn commit(&self, batch: Batch) -> Result<Outcome, StoreError> {
        let mut write = self.database.begin_write().map_err(write_error)?;
        write.set_durability(Durability::Immediate).map_err(write_error)?;
        let revision = {
            let mut table = write.open_table(VALUES).map_err(write_error)?;
            for (key, expected) in &batch.expect {
                let found = table.get(key.as_str()).map_err(write_error)?;
                if found.map_or(0, |guard| guard.value().0) != *expected {
                    // Dropping the transaction takes everything back.
                    return Ok(Outcome::Conflict);
                }
            }
            let mut meta = write.open_table(META).map_err(write_error)?;
            let last = meta.get(REVISION).map_err(write_error)?.map_or(0, |guard| guard.value());
            let revision = last + 1;
            meta.insert(REVISION, revision).map_err(write_error)?;
            for key in &batch.delete {
                table.remove(key.as_str()).map_err(write_error)?;
            }
            for (key, bytes) in &batch.put {
                let value = (revision, bytes.as_slice());
                table.insert(key.as_str(), value).map_err(write_error)?;
            }
            revision
        };
        write.commit().map_err(write_error)?;
        Ok(Outcome::Written(revision))
    }
}
