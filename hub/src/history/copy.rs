//! The copy of the history outside of the store: Secret `fairlead-hub-history`, for a hub that lost its store
//! or was made anew from a backup.
//!
//! Owns that Secret; what belongs into it is [`fairlead_hub_core::history::Extract`]'s. Read before the first
//! plan, so that no route is led elsewhere in between. Written soon after a route is pinned or released, else
//! seldom. Never overwrites what it has not read: what somebody restored under a running hub is taken in.
//!
//! ```text
//!  history.jsonl.gz   the records, one a line
//!  pins               whose rules are among them, for `fairlead backup`: ROUTE REVISION, one a line
//! ```

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_hub_core::history::{Extract, Portion};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Chronicle;
use crate::fleet::Fleet;

const NAME: &str = keys::SECRET_HUB_HISTORY;
const RECORDS: &str = "history.jsonl.gz";
/// Most bytes of the records, packed: an API server takes a Secret of 1 MiB.
const PACKED_BYTES_MAX: usize = 512 << 10;
/// Most bytes of them as text, and what is read at most.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// Most bytes of the list of pins.
const PINS_BYTES_MAX: usize = 256 << 10;
/// Pins that change together are one write.
const GATHER: Duration = Duration::from_secs(1);
/// What changes without a pin is written that often at most: it is a large object.
const PERIOD: Duration = Duration::from_secs(300);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(30);
/// Writes in a row that somebody else forestalls.
const TRIES_MAX: usize = 3;

/// Why the copy is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The API server did not do it.
    #[error("{operation} Secret {NAME} failed")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else writes it, again and again.
    #[error("Secret {NAME} is written by somebody else")]
    Contended,
    /// It could not be made or read.
    #[error("a copy of the history could not be made or read")]
    Ended(#[from] tokio::task::JoinError),
}

fn api(operation: &'static str) -> impl FnOnce(kube::Error) -> CopyError {
    move |source| CopyError::Api { operation, source: Box::new(source) }
}

/// Keeps the copy.
pub struct Copyist {
    secrets: Api<Secret>,
    chronicle: Arc<Chronicle>,
    /// Told when the history got what routes may be waiting for.
    fleet: Arc<Fleet>,
    seen: Seen,
}

/// The Secret as it was last read or written.
#[derive(Debug, Default)]
struct Seen {
    /// None: there is none.
    version: Option<String>,
    /// Of the records as text.
    digest: Vec<u8>,
}

impl Copyist {
    /// Reads the copy and takes in what the history lacks.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn open(
        client: &Client,
        namespace: &str,
        chronicle: Arc<Chronicle>,
        fleet: Arc<Fleet>,
    ) -> Result<Self, CopyError> {
        let secrets = Api::namespaced(client.clone(), namespace);
        let mut copyist = Self { secrets, chronicle, fleet, seen: Seen::default() };
        copyist.look().await?;
        Ok(copyist)
    }

    /// Writes the copy when it is due, for ever.
    pub async fn run(mut self) {
        let chronicle = Arc::clone(&self.chronicle);
        let due = async || {
            chronicle.entered.wait().await;
            tokio::time::sleep(PERIOD).await;
        };
        loop {
            tokio::select! {
                _ = chronicle.pinned.wait() => tokio::time::sleep(GATHER).await,
                () = due() => {}
            }
            while let Err(error) = self.write().await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "the history has no copy outside of the store");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Reads the Secret; says how many changes the history did not have.
    async fn look(&mut self) -> Result<usize, CopyError> {
        let found = self.secrets.get_opt(NAME).await.map_err(api("reading"))?;
        let Some(secret) = found else {
            self.seen = Seen::default();
            return Ok(0);
        };
        let version = secret.resource_version();
        let records = secret.data.and_then(|mut data| data.remove(RECORDS)).unwrap_or_default();
        let chronicle = Arc::clone(&self.chronicle);
        let taken = tokio::task::spawn_blocking(move || take_in(&chronicle, &records.0));
        let (digest, taken) = taken.await?;
        self.seen = Seen { version, digest };
        Ok(taken)
    }

    async fn write(&mut self) -> Result<(), CopyError> {
        for _ in 0..TRIES_MAX {
            let chronicle = Arc::clone(&self.chronicle);
            let packed = tokio::task::spawn_blocking(move || pack(&chronicle)).await?;
            if self.seen.digest == packed.digest {
                return Ok(());
            }
            let (bytes, left_out) = (packed.records.len(), packed.left_out);
            match self.put(packed.secret(self.seen.version.clone())).await {
                Ok(version) => {
                    self.seen = Seen { version, digest: packed.digest };
                    tracing::debug!(bytes, "copied the history");
                    if left_out > 0 {
                        tracing::error!(pins = left_out, "pins have no room in the copy");
                    }
                    return Ok(());
                }
                Err(kube::Error::Api(status))
                    if status.is_conflict()
                        || status.is_already_exists()
                        || status.is_not_found() =>
                {
                    if self.look().await? > 0 {
                        self.fleet.changed.mark();
                    }
                }
                Err(error) => return Err(api("writing")(error)),
            }
        }
        Err(CopyError::Contended)
    }

    /// Makes the Secret, or replaces the very one that was seen; gives its new version.
    async fn put(&self, secret: Secret) -> kube::Result<Option<String>> {
        let manager = keys::FIELD_MANAGER_HUB;
        let put = match self.seen.version {
            None => {
                let field_manager = Some(manager.to_owned());
                let params = PostParams { field_manager, ..PostParams::default() };
                self.secrets.create(&params, &secret).await?
            }
            Some(_) => {
                let params = PatchParams::apply(manager).force();
                self.secrets.patch(NAME, &params, &Patch::Apply(&secret)).await?
            }
        };
        Ok(put.resource_version())
    }
}

/// A copy as it is written.
struct Packed {
    records: Vec<u8>,
    pins: String,
    digest: Vec<u8>,
    left_out: usize,
}

impl Packed {
    fn secret(&self, version: Option<String>) -> Secret {
        let mut secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": NAME, "labels": {
                keys::MANAGED_BY: keys::FAIRLEAD, keys::PART_OF: keys::FAIRLEAD,
            }},
            "type": "Opaque",
        }))
        .expect("the object is a Secret");
        secret.metadata.resource_version = version;
        let data = [
            (RECORDS.to_owned(), ByteString(self.records.clone())),
            (keys::HISTORY_PINS.to_owned(), ByteString(self.pins.clone().into_bytes())),
        ];
        secret.data = Some(data.into());
        secret
    }
}

/// What fits of the history. How well text packs is known only afterwards.
fn pack(chronicle: &Chronicle) -> Packed {
    let mut room = TEXT_BYTES_MAX;
    loop {
        let extract = chronicle.history().extract(room);
        let text = extract.text();
        let records = zip(&text);
        if records.len() <= PACKED_BYTES_MAX || room == 0 {
            let digest = Sha256::digest(&text).to_vec();
            return Packed { records, pins: pins(&extract), digest, left_out: extract.left_out };
        }
        room /= 2;
    }
}

fn pins(extract: &Extract) -> String {
    let mut pins = String::new();
    for (route, number) in &extract.pins {
        let before = pins.len();
        let _ = writeln!(pins, "{route} {number}");
        if pins.len() > PINS_BYTES_MAX {
            pins.truncate(before);
            break;
        }
    }
    pins
}

/// Takes in what the history lacks; gives the digest of all that was read, and how much that was.
fn take_in(chronicle: &Chronicle, records: &[u8]) -> (Vec<u8>, usize) {
    let (text, whole) = unzip(records);
    let portion = Portion::read(&text);
    let dropped = portion.dropped;
    let taken = chronicle.history().take_in(portion);
    if dropped > 0 || !whole {
        tracing::warn!(dropped, whole, "the copy of the history cannot be read in part");
    }
    if taken > 0 {
        tracing::info!(changes = taken, "took in what the store lacked of the history");
    }
    (Sha256::digest(&text).to_vec(), taken)
}

fn zip(text: &[u8]) -> Vec<u8> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::default());
    let zipped = zip.write_all(text).and_then(|()| zip.finish());
    zipped.expect("memory takes every byte")
}

/// As far as it can be read, and whether that is all.
fn unzip(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut text = Vec::new();
    let limit = u64::try_from(TEXT_BYTES_MAX * 2).unwrap_or(u64::MAX);
    let read = GzDecoder::new(bytes).take(limit).read_to_end(&mut text);
    let whole = read.is_ok_and(|read| read < TEXT_BYTES_MAX * 2);
    (text, whole || bytes.is_empty())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_hub_core::history::{History, Limits};
    use fairlead_model::history::Entry;

    use super::super::tests::mk_entry;
    use super::*;

    fn mk_chronicle(entries: Vec<Entry>) -> Chronicle {
        Chronicle::new(History::restore(Limits::default(), 0, entries, Vec::new()))
    }

    fn empty() -> Chronicle {
        mk_chronicle(Vec::new())
    }

    #[test]
    fn what_is_packed_is_taken_in_once() {
        let chronicle = mk_chronicle((1..50).map(mk_entry).collect());
        chronicle.history().keep_pinned([(mk_entry(7).route, 7)]);
        let packed = pack(&chronicle);
        assert_eq!(packed.pins, "HTTPRoute/shop/cart 7\n");
        let secret = packed.secret(Some("5".into()));
        assert_eq!(secret.metadata.resource_version.as_deref(), Some("5"));
        let records = &secret.data.unwrap()[RECORDS].0;
        let other = empty();
        assert_eq!(take_in(&other, records), (packed.digest.clone(), 49));
        assert_eq!(other.history().size(), chronicle.history().size());
        assert_eq!(take_in(&other, records), (packed.digest.clone(), 0));
        // The same pins: there is nothing to write.
        other.history().keep_pinned([(mk_entry(7).route, 7)]);
        assert_eq!(pack(&other).digest, packed.digest);
    }

    #[test]
    fn a_damaged_copy_gives_what_comes_before_the_damage() {
        let chronicle = mk_chronicle((1..300).map(mk_entry).collect());
        let records = pack(&chronicle).records;
        assert_eq!(take_in(&empty(), &[]).1, 0);
        let mut most = 0;
        for cut in (0..records.len()).step_by(50) {
            let taken = take_in(&empty(), &records[..cut]).1;
            assert!(taken >= most && taken <= 299);
            most = taken;
            let mut bent = records.clone();
            bent[cut] ^= 0x55;
            take_in(&empty(), &bent);
        }
        assert!(most > 100, "{most}");
    }

    #[test]
    fn what_unpacks_without_end_is_bounded() {
        let bomb = zip(&vec![b'\n'; TEXT_BYTES_MAX * 4]);
        let (text, whole) = unzip(&bomb);
        assert_eq!((text.len(), whole), (TEXT_BYTES_MAX * 2, false));
    }

    #[test]
    fn what_packs_badly_still_fits() {
        // Causes without any pattern: hardly smaller when packed.
        let mut seed = 1_u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format!("{seed:016x}")
        };
        let mk_noisy = |number| {
            let rules = (0..8).map(|_| (0..64).map(|_| noise()).collect()).collect();
            Entry { rules, ..mk_entry(number) }
        };
        let chronicle = mk_chronicle((1..190).map(mk_noisy).collect());
        chronicle.history().keep_pinned([(mk_entry(2).route, 2)]);
        let packed = pack(&chronicle);
        assert!(packed.records.len() <= PACKED_BYTES_MAX);
        assert!(packed.records.len() > PACKED_BYTES_MAX / 4, "{}", packed.records.len());
        let other = empty();
        take_in(&other, &packed.records);
        let numbers: Vec<u64> =
            other.history().list(|_| true, 500).iter().map(|entry| entry.number).collect();
        assert_eq!((numbers.first(), numbers.last()), (Some(&189), Some(&2)));
    }
}
