//! Keeps the cache equal to the API server: one task per kind, list then watch.
//!
//! ```text
//!   discover ──not served──▶ Missing, asked again after a while
//!      │ served
//!      ▼
//!    list ──▶ Synced ──▶ watch ──end, 410──▶ watch again / list again
//!                          │ forbidden, not found, or failing for too long
//!                          ▼
//!                       Unsynced: neither written nor pruned
//! ```
//!
//! An own loop rather than kube's watcher: that one says nothing when a broken watch goes on, and
//! whether a kind may be pruned hangs on knowing it. A kind that is absent or forbidden never stalls
//! the others.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::diff::KindKey;
use fairlead_agent_core::live::LiveObject;
use fairlead_model::{Json, ObjectId};
use futures::StreamExt as _;
use kube::Client;
use kube::core::WatchEvent;
use tracing::{debug, info, warn};

use crate::api::{self, Resource};
use crate::cache::{Cache, Read};
use crate::kind::{self, Need, Scope, WatchedKind};

/// The API server ends a watch after that; bookmarks come every minute.
const WATCH_SECONDS: u32 = 240;
/// A watch without even a bookmark for that long is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A kind that is not served is looked for again after that.
const MISSING: Duration = Duration::from_secs(5);
/// The wait after a failure: doubles up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Failures in a row after which what is known counts as lost.
const FAILURES_MAX: u32 = 4;

/// Watches a kind for ever.
pub async fn watch_kind(client: Client, kind: WatchedKind, namespace: Arc<str>, cache: Arc<Cache>) {
    let key = KindKey::new(&kind.group, &kind.kind);
    let namespace = match kind.scope {
        Scope::Own => namespace,
        Scope::Everywhere | Scope::Cluster => "".into(),
    };
    let mut failures = 0;
    loop {
        let found = api::discover(&client, &kind.group, &kind.kind, kind.versions).await;
        let error = match found {
            Ok(None) => {
                cache.set_missing(&key);
                tokio::time::sleep(MISSING).await;
                failures = 0;
                continue;
            }
            Ok(Some(resource)) => {
                let watch = Watch {
                    client: &client,
                    kind: &kind,
                    key: &key,
                    resource,
                    namespace: &namespace,
                    cache: &cache,
                };
                watch.run(&mut failures).await
            }
            Err(error) => error,
        };
        failures += 1;
        if failures >= FAILURES_MAX || api::code(&error).is_some_and(|code| code < 500) {
            warn!(kind = %kind.kind, error = %api::message(&error), "watch lost");
            cache.set_unsynced(&key, api::message(&error));
        }
        if kind.need == Need::Useful && api::code(&error) == Some(403) {
            cache.give_up(&key);
        }
        tokio::time::sleep(retry_after(failures)).await;
    }
}

fn retry_after(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(RETRY_MAX)
}

struct Watch<'a> {
    client: &'a Client,
    kind: &'a WatchedKind,
    key: &'a KindKey,
    resource: Resource,
    namespace: &'a str,
    cache: &'a Cache,
}

/// How a watch ended.
enum End {
    /// As it should: it goes on from there.
    Over { from: String },
    /// What it went on from is too old: list again.
    Expired,
}

impl Watch<'_> {
    /// Lists and watches until something is wrong that needs another look at discovery.
    async fn run(&self, failures: &mut u32) -> kube::Error {
        loop {
            let mut from = match self.list().await {
                Ok(from) => from,
                Err(error) => return error,
            };
            *failures = 0;
            loop {
                match self.watch(&from).await {
                    Ok(End::Over { from: next }) => {
                        *failures = 0;
                        from = next;
                    }
                    Ok(End::Expired) => break,
                    // Refused: perhaps the kind is gone, or the right to see it.
                    Err(error) if api::code(&error).is_some_and(|code| code < 500) => return error,
                    Err(error) => {
                        *failures += 1;
                        debug!(kind = %self.kind.kind, %error, "watch broke");
                        if *failures >= FAILURES_MAX {
                            return error;
                        }
                        tokio::time::sleep(retry_after(*failures)).await;
                    }
                }
            }
        }
    }

    async fn list(&self) -> kube::Result<String> {
        let mut objects = Vec::new();
        let mut next = None;
        loop {
            let page = api::list(self.client, &self.resource, self.namespace, next).await?;
            objects.extend(page.items.into_iter().filter_map(|item| self.read(item)));
            next = page.next;
            if next.is_none() {
                info!(kind = %self.kind.kind, version = %self.resource.version, objects = objects.len(), "synced");
                self.cache.replace(self.key, &self.resource.version, objects);
                return Ok(page.resource_version);
            }
        }
    }

    async fn watch(&self, from: &str) -> kube::Result<End> {
        let request = api::watch_request(&self.resource, self.namespace, from, WATCH_SECONDS)?;
        let mut events = pin!(self.client.request_events::<Json>(request).await?);
        self.cache.set_synced(self.key, &self.resource.version);
        let mut from = from.to_owned();
        loop {
            let Ok(event) = tokio::time::timeout(SILENCE, events.next()).await else {
                return Ok(End::Over { from });
            };
            let Some(event) = event else { return Ok(End::Over { from }) };
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    if let Some(read) = self.read(object) {
                        from.clone_from(&read.live.resource_version);
                        self.cache.put(read);
                    }
                }
                WatchEvent::Deleted(object) => {
                    if let Some(read) = self.read(object) {
                        from.clone_from(&read.live.resource_version);
                        self.cache.remove(&read.id, &read.live.uid);
                    }
                }
                WatchEvent::Bookmark(bookmark) => from = bookmark.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return Ok(End::Expired),
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
    }

    /// Trims an object. One that does not say what it is is left out: it cannot be named either.
    fn read(&self, object: Json) -> Option<Read> {
        let trimmed = kind::trim(self.kind.trim, api::with_type(object, &self.resource));
        match LiveObject::of(trimmed.object, trimmed.keep) {
            Ok((id, live)) => Some(Read { id, live, counts: trimmed.counts }),
            Err(error) => {
                warn!(kind = %self.kind.kind, %error, "unreadable object left out");
                None
            }
        }
    }
}

/// The resources that the watches found, for writing: how a kind is served changes rarely, so it is
/// asked once and again after a refusal.
#[derive(Debug, Default)]
pub struct Resources {
    known: BTreeMap<(String, String, String), Resource>,
}

impl Resources {
    /// How the kind of an object is served.
    ///
    /// # Errors
    /// kube's. `Ok(None)`: it is not served in that version.
    pub async fn of(&mut self, client: &Client, id: &ObjectId) -> kube::Result<Option<Resource>> {
        let key = (id.group.to_string(), id.version.to_string(), id.kind.to_string());
        if let Some(resource) = self.known.get(&key) {
            return Ok(Some(resource.clone()));
        }
        let found = api::discover(client, &id.group, &id.kind, &[&id.version]).await?;
        if let Some(resource) = &found {
            self.known.insert(key, resource.clone());
        }
        Ok(found)
    }

    /// Forgets all, so that discovery is asked again.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}
