//! The store in etcd: for hubs that must outlive a machine.
//!
//! Owns the connection, its retries, and how keys and batches of the contract become etcd's: a batch is
//! one transaction, a revision is a key's `mod_revision`. The calls of the contract block, so the
//! client runs on a thread of its own. While no majority of etcd answers, calls fail after
//! [`CALL_LIMIT`]; nothing needs a restart when it is back.
//!
//! The answer to a write can be lost after etcd took it. Writes are then tried again, which does no harm
//! to keys without an expectation; a batch with one may end as [`Outcome::Conflict`] with itself, and
//! whoever reads again sees that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, GetResponse,
    Identity, KvClient, TlsOptions, Txn, TxnOp,
};
use tokio::runtime::{Handle, Runtime};

use super::etcd_claim::Claims;
use super::{Batch, Claim, Outcome, Store, StoreError, Value};

/// How long a call is tried.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// One try of it: another endpoint may answer.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// Pause between tries.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Keys of one page of a list.
const PAGE_KEYS: i64 = 1_000;
/// Tries of a list whose picture is compacted meanwhile.
const LISTS_MAX: usize = 3;
/// Largest answer: a page of the largest values that fit into a batch is asked for again in smaller ones.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Under the prefix: the schema.
const SCHEMA: &str = "schema";
/// Under the prefix: claims.
const CLAIMS: &str = "c/";
/// Under the prefix: all keys of the contract.
const VALUES: &str = "v/";
/// The schema that this version writes.
const SCHEMA_VERSION: u64 = 1;

/// How etcd is reached.
#[derive(Debug, Clone, Default)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`, of all members.
    pub endpoints: Vec<String>,
    /// What all keys start with; others of the same etcd keep out of it.
    pub prefix: String,
    /// Certificates of those who may sign for etcd, PEM; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM, with [`Self::key_file`].
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// User name, with [`Self::password_file`].
    pub user: Option<String>,
    /// Its password.
    pub password_file: Option<PathBuf>,
}

/// The store in etcd.
pub struct EtcdStore {
    /// None while it is dropped.
    runtime: Mutex<Option<Runtime>>,
    client: KvClient,
    claims: Claims,
    prefix: String,
    endpoints: String,
}

impl EtcdStore {
    /// Connects, and makes the store's schema when there is none.
    ///
    /// # Errors
    /// When a file cannot be read, no endpoint answers, or a newer version wrote there.
    pub fn open(options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoints = options.endpoints.join(",");
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: endpoints.clone(),
            source,
        };
        let connect = connect_options(options).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| failed(Box::new(error)))?;
        let urls = options.endpoints.clone();
        let connecting = async move { Client::connect(urls, Some(connect)).await };
        let client = on_handle(runtime.handle(), connecting);
        let client = client.map_err(|error| failed(Box::new(error)))?;
        let claims = Claims::new(runtime.handle().clone(), client.clone());
        let client = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let (runtime, prefix) = (Mutex::new(Some(runtime)), options.prefix.clone());
        let store = Self { runtime, client, claims, prefix, endpoints };
        store.check_schema()?;
        Ok(store)
    }

    /// Writes the schema of a new store, and refuses that of a newer one.
    fn check_schema(&self) -> Result<(), StoreError> {
        let key = format!("{}{SCHEMA}", self.prefix);
        if self.schema(&key)?.is_none() {
            // Two hubs may start at once: the first one makes it.
            let txn = Txn::new()
                .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.clone(), SCHEMA_VERSION.to_string(), None)]);
            self.call(move |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .map_err(write_error)?;
        }
        match self.schema(&key)?.unwrap_or_default() {
            SCHEMA_VERSION => Ok(()),
            found => {
                let path = self.endpoints.clone();
                Err(StoreError::Schema { path, found, known: SCHEMA_VERSION })
            }
        }
    }

    fn schema(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let found = self.fetch(key, None).map_err(read_error)?;
        let text = found.kvs().first().map(|kv| String::from_utf8_lossy(kv.value()).into_owned());
        // What is no number was not written by a version that is known.
        Ok(text.map(|text| text.parse().unwrap_or(u64::MAX)))
    }

    fn key(&self, key: &str) -> String {
        format!("{}{VALUES}{key}", self.prefix)
    }

    fn fetch(
        &self,
        key: impl Into<Vec<u8>>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, Error> {
        let key = key.into();
        self.call(move |mut client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.get(key, options).await }
        })
    }

    /// One page of a list, smaller while the answer is too large.
    fn page(&self, from: &[u8], end: &[u8], revision: i64) -> Result<GetResponse, Error> {
        let mut keys = PAGE_KEYS;
        loop {
            let options =
                GetOptions::new().with_range(end).with_limit(keys).with_revision(revision);
            match self.fetch(from, Some(options)) {
                Err(error) if is_too_large(&error) && keys > 1 => keys /= 4,
                answer => return answer,
            }
        }
    }

    /// All keys with a prefix, page by page.
    fn pages(&self, prefix: &str) -> Result<Vec<(String, Value)>, Error> {
        let (whole, root) = (self.key(prefix), self.key(""));
        let end = after_prefix(&whole);
        let mut found = Vec::new();
        // All pages are of the first one's revision, so that they are one picture.
        let (mut from, mut at) = (whole.into_bytes(), 0);
        loop {
            let mut page = self.page(&from, &end, at)?;
            if at == 0 {
                at = page.header().map_or(0, |header| header.revision());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            let Some(last) = kvs.last() else { return Ok(found) };
            from = [last.key(), &[0]].concat();
            found.extend(kvs.into_iter().filter_map(|kv| {
                let revision = revision(kv.mod_revision());
                let (key, bytes) = kv.into_key_value();
                let key = String::from_utf8(key).ok()?.strip_prefix(&root)?.to_owned();
                Some((key, Value { revision, bytes }))
            }));
            if !more {
                return Ok(found);
            }
        }
    }

    /// [`patiently`], on the store's own thread.
    fn call<T, F>(&self, start: impl Fn(KvClient) -> F + Send + Sync + 'static) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let client = self.client.clone();
        let held = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(runtime) = held.as_ref() else {
            return Err(closed());
        };
        let handle = runtime.handle().clone();
        drop(held);
        on_handle(&handle, async move { patiently(|| start(client.clone())).await })
    }
}

/// Tries until it works, fails for good, or took too long.
pub(super) async fn patiently<T, F>(start: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let until = Instant::now() + CALL_LIMIT;
    loop {
        let tried = tokio::time::timeout(TRY_LIMIT, start()).await;
        let error = match tried {
            Ok(Err(error)) if is_passing(&error) => error,
            Ok(ended) => return ended,
            Err(_) => tonic::Status::deadline_exceeded("etcd does not answer").into(),
        };
        if Instant::now() + PAUSE >= until {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // A runtime must not be waited for on a thread of another one.
        let held = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = held.take() {
            runtime.shutdown_background();
        }
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Value>, StoreError> {
        let found = self.fetch(self.key(key), None).map_err(read_error)?;
        Ok(found
            .kvs()
            .first()
            .map(|kv| Value { revision: revision(kv.mod_revision()), bytes: kv.value().to_vec() }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Value)>, StoreError> {
        for _ in 1..LISTS_MAX {
            match self.pages(prefix) {
                // The picture that the pages were of is compacted: take a newer one.
                Err(error) if is_compacted(&error) => {}
                pages => return pages.map_err(read_error),
            }
        }
        self.pages(prefix).map_err(read_error)
    }

    fn commit(&self, batch: Batch) -> Result<Outcome, StoreError> {
        batch.check()?;
        let at = |(key, revision): (String, u64)| {
            let revision = i64::try_from(revision).unwrap_or(i64::MAX);
            Compare::mod_revision(self.key(&key), CompareOp::Equal, revision)
        };
        // etcd takes a key once; a put after a delete is a put.
        let kept: BTreeSet<&String> = batch.put.iter().map(|(key, _)| key).collect();
        let gone = batch.delete.iter().filter(|key| !kept.contains(key));
        let mut ops: Vec<TxnOp> = gone.map(|key| TxnOp::delete(self.key(key), None)).collect();
        ops.extend(
            batch.put.into_iter().map(|(key, bytes)| TxnOp::put(self.key(&key), bytes, None)),
        );
        let expect: Vec<Compare> = batch.expect.into_iter().map(at).collect();
        let txn = Txn::new().when(expect).and_then(ops);
        let answer = self.call(move |mut client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        });
        let answer = answer.map_err(write_error)?;
        if !answer.succeeded() {
            return Ok(Outcome::Conflict);
        }
        let at = answer.header().map_or(0, |header| header.revision());
        Ok(Outcome::Written(revision(at)))
    }

    fn claim(
        &self,
        name: &str,
        bytes: &[u8],
        ttl: Duration,
        wait: Duration,
    ) -> Result<Claim, StoreError> {
        self.claims.claim(format!("{}{CLAIMS}{name}", self.prefix), bytes.to_vec(), ttl, wait)
    }
}

pub(super) fn revision(of: i64) -> u64 {
    u64::try_from(of).unwrap_or(0)
}

/// The first key after all that start with this.
fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's word for "to the end".
    vec![0]
}

fn connect_options(
    options: &EtcdOptions,
) -> Result<ConnectOptions, Box<dyn std::error::Error + Send + Sync>> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(TRY_LIMIT)
        .with_keep_alive(KEEPALIVE, TRY_LIMIT)
        .with_keep_alive_while_idle(true)
        // A member that is cut off from the others must say so, not wait.
        .with_require_leader(true);
    if options.endpoints.iter().any(|url| url.starts_with("https://")) {
        let mut tls = TlsOptions::new().with_enabled_roots();
        if let Some(file) = &options.ca_file {
            tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read_file(file)?));
        }
        if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
            tls = tls.identity(Identity::from_pem(read_file(cert)?, read_file(key)?));
        }
        connect = connect.with_tls(tls);
    }
    if let (Some(user), Some(file)) = (&options.user, &options.password_file) {
        let password = String::from_utf8(read_file(file)?)?;
        connect = connect
            .with_user(user, password.trim_end_matches(['\r', '\n']))
            // etcd forgets its tokens when it is idle for minutes, or restarts.
            .with_auto_token_refresh(true);
    }
    Ok(connect)
}

fn read_file(file: &Path) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()).into())
}

/// Runs something on the store's own thread and waits for it.
pub(super) fn on_handle<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    handle.spawn(async move {
        // Nobody waits any more when this fails.
        let _ = tell.send(work.await);
    });
    // It is dropped unfinished when the store is closed under it.
    told.recv().unwrap_or_else(|_| Err(closed()))
}

fn closed() -> Error {
    Error::InvalidArgs("the store is closed".to_owned())
}

/// It may work with the next try: an endpoint, or the leader, is away.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::TransportError(_) | Error::IoError(_) => true,
        Error::GRpcStatus(status) => matches!(
            status.code(),
            tonic::Code::Unavailable
                | tonic::Code::DeadlineExceeded
                | tonic::Code::Unknown
                | tonic::Code::Cancelled
        ),
        _ => false,
    }
}

fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.code() == tonic::Code::OutOfRange)
        && !is_compacted(error)
}

fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("compacted"))
}

fn read_error(source: Error) -> StoreError {
    StoreError::Read(Box::new(source))
}

pub(super) fn write_error(source: Error) -> StoreError {
    StoreError::Write(Box::new(source))
}
