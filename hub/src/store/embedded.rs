//! The store in one file (redb): for a hub of one replica. Crash-safe, one writer.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    TableDefinition,
};

use super::local_claim::LocalClaims;
use super::{Batch, Claim, Outcome, Store, StoreError, Value};

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
    file: PathBuf,
    /// None after a failure: a disk that was full or away may be well again, and redb takes nothing
    /// more before the file was opened anew.
    database: Mutex<Option<Database>>,
    claims: LocalClaims,
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
        std::fs::create_dir_all(data_dir).map_err(|error| StoreError::Open {
            path: file.display().to_string(),
            source: Box::new(error),
        })?;
        let database = checked(&file, builder().create(&file))?;
        let database = Mutex::new(Some(database));
        Ok(Self { file, database, claims: LocalClaims::default() })
    }

    /// Does something with the open file; after a failure it is opened anew with the next call.
    fn on<T>(&self, act: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // A panic leaves the file as the last commit left it.
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            // Not made anew: a file that is gone may come back with its disk.
            None => checked(&self.file, builder().open(&self.file))?,
        };
        let done = act(&database);
        if done.is_ok() {
            *held = Some(database);
        }
        done
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// What was opened, if it is of a schema that is known.
fn checked(file: &Path, opened: Result<Database, DatabaseError>) -> Result<Database, StoreError> {
    let path = file.display().to_string();
    let database = match opened {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Locked { path }),
        Err(error) => return Err(StoreError::Open { path, source: Box::new(error) }),
    };
    match prepare(&database)? {
        SCHEMA_VERSION => Ok(database),
        found => Err(StoreError::Schema { path, found, known: SCHEMA_VERSION }),
    }
}

/// Makes the tables, so that readers never miss them, and tells the schema of the file.
fn prepare(database: &Database) -> Result<u64, StoreError> {
    let read = database.begin_read().map_err(read_error)?;
    if let Ok(meta) = read.open_table(META)
        && let Some(found) = meta.get(SCHEMA).map_err(read_error)?
    {
        return Ok(found.value());
    }
    let write = database.begin_write().map_err(write_error)?;
    write.open_table(VALUES).map_err(write_error)?;
    write
        .open_table(META)
        .map_err(write_error)?
        .insert(SCHEMA, SCHEMA_VERSION)
        .map_err(write_error)?;
    write.commit().map_err(write_error)?;
    Ok(SCHEMA_VERSION)
}

impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Value>, StoreError> {
        self.on(|database| get(database, key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, StoreError> {
        self.on(|database| list(database, prefix))
    }

    fn commit(&self, batch: Batch) -> Result<Outcome, StoreError> {
        batch.check()?;
        self.on(|database| commit(database, &batch))
    }

    /// The file is open in one process, so whoever holds a name is in it too.
    fn claim(
        &self,
        name: &str,
        bytes: &[u8],
        ttl: Duration,
        wait: Duration,
    ) -> Result<Claim, StoreError> {
        Ok(self.claims.claim(name, bytes, ttl, wait))
    }
}

fn get(database: &Database, key: &str) -> Result<Option<Value>, StoreError> {
    let read = database.begin_read().map_err(read_error)?;
    let table = read.open_table(VALUES).map_err(read_error)?;
    let guard = table.get(key).map_err(read_error)?;
    Ok(guard.map(|guard| {
        let (revision, bytes) = guard.value();
        Value { revision, bytes: bytes.to_vec() }
    }))
}

fn list(database: &Database, prefix: &str) -> Result<Vec<(String, Value)>, StoreError> {
    let read = database.begin_read().map_err(read_error)?;
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

fn commit(database: &Database, batch: &Batch) -> Result<Outcome, StoreError> {
    let mut write = database.begin_write().map_err(write_error)?;
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
