//! What outlives a restart of the agent: the last bundle, the incarnation, the knock.
//!
//! One writer, small files, each replaced as a whole (temporary file, fsync, rename, fsync of the
//! directory). What cannot be read is treated as absent and said: the hub sends it again, the knock
//! is repeated. Without any of it the agent still works; it only knows less until the hub is back.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fairlead_model::PlanNumber;
use fairlead_model::ledger::Ledger;
use fairlead_model::snapshot::{Knock, SniState};
use fairlead_proto::{LEDGER_BYTES_MAX, pb};
use prost::Message as _;
use serde::{Deserialize, Serialize};

/// The data directory.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
}

/// A file could not be written or the directory not be made.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct DiskError {
    path: PathBuf,
    source: io::Error,
}

/// What the last knock found, kept until it is disproved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptKnock {
    /// The verdict.
    pub knock: Knock,
    /// In words.
    pub message: String,
    /// The same for the listener that tells services apart by SNI.
    pub sni: SniState,
}

const BUNDLE: &str = "bundle.pb";
const INCARNATION: &str = "incarnation";
const KNOCK: &str = "knock.json";

impl Disk {
    /// Opens the directory, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let failed = |source| DiskError { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes the next incarnation. It rises with every start, also when the directory was lost:
    /// never below the seconds of the wall clock.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn next_incarnation(&self, wall_seconds: u64) -> Result<u64, DiskError> {
        let kept = self.read(INCARNATION).and_then(|bytes| String::from_utf8(bytes).ok());
        let last: u64 = kept.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let next = last.saturating_add(1).max(wall_seconds);
        self.write(INCARNATION, next.to_string().as_bytes())?;
        Ok(next)
    }

    /// The last good bundle.
    pub fn bundle(&self) -> Option<(PlanNumber, Ledger)> {
        let part = pb::BundlePart::decode(self.read(BUNDLE)?.as_slice()).ok()?;
        let (number, delta) = (part.number?, part.delta?);
        let entries = delta.put.into_iter().map(|entry| (entry.key, entry.value));
        let ledger = Ledger::new(entries.collect());
        // A file that was damaged is no bundle.
        if ledger.digest().as_slice() != delta.digest {
            return None;
        }
        Some((PlanNumber::new(number.epoch, number.counter), ledger))
    }

    /// Keeps a bundle.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_bundle(&self, number: PlanNumber, ledger: &Ledger) -> Result<(), DiskError> {
        let entry = |(key, value): (&String, &Vec<u8>)| pb::Entry {
            key: key.clone(),
            value: value.clone(),
        };
        let part = pb::BundlePart {
            number: Some(pb::PlanNumber { epoch: number.epoch, counter: number.counter }),
            delta: Some(pb::DeltaPart {
                put: ledger.entries().iter().map(entry).collect(),
                digest: ledger.digest().to_vec(),
                last: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.write(BUNDLE, &part.encode_to_vec())
    }

    /// What the last knock found.
    pub fn knock(&self) -> KeptKnock {
        self.read_json(KNOCK)
    }

    /// Keeps what a knock found.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_knock(&self, knock: &KeptKnock) -> Result<(), DiskError> {
        self.write_json(KNOCK, knock)
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.dir.join(name);
        // Nothing of ours is larger; whatever else is there is not worth the memory.
        let limit = u64::try_from(LEDGER_BYTES_MAX).unwrap_or(u64::MAX).saturating_mul(2);
        match fs::metadata(&path).and_then(|meta| {
            if meta.len() > limit {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                fs::read(&path)
            }
        }) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a kept file");
                None
            }
        }
    }

    fn read_json<T: Default + serde::de::DeserializeOwned>(&self, name: &str) -> T {
        let Some(bytes) = self.read(name) else { return T::default() };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(file = name, %error, "a kept file has no meaning");
            T::default()
        })
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec(value).expect("maps with text keys are JSON");
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!(".{name}.new"));
        let replace = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        replace().map_err(|source| DiskError { path: path.clone(), source })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("data")).unwrap();
        (dir, disk)
    }

    #[test]
    fn a_bundle_is_read_as_it_was_kept() {
        let (_dir, disk) = disk();
        assert_eq!(disk.bundle(), None);
        let ledger = Ledger::new([("a".to_owned(), vec![1, 2])].into());
        disk.keep_bundle(PlanNumber::new(3, 4), &ledger).unwrap();
        assert_eq!(disk.bundle(), Some((PlanNumber::new(3, 4), ledger)));
    }

    #[test]
    fn a_damaged_bundle_is_none() {
        let (_dir, disk) = disk();
        let ledger = Ledger::new([("a".to_owned(), b"value".to_vec())].into());
        disk.keep_bundle(PlanNumber::new(3, 4), &ledger).unwrap();
        let path = disk.dir.join(BUNDLE);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|w| w == b"value").unwrap();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(disk.bundle(), None);
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(disk.bundle(), None);
    }

    #[test]
    fn incarnations_rise_also_after_the_directory_was_lost() {
        let (_dir, disk) = disk();
        assert_eq!(disk.next_incarnation(100).unwrap(), 100);
        assert_eq!(disk.next_incarnation(100).unwrap(), 101);
        assert_eq!(disk.next_incarnation(50).unwrap(), 102, "also when the clock steps back");
    }

    #[test]
    fn the_knock_is_kept() {
        let (_dir, disk) = disk();
        assert_eq!(disk.knock().knock, Knock::Unknown);
        let kept = KeptKnock {
            knock: Knock::Shut,
            message: "m".to_owned(),
            sni: SniState { knock: Knock::StrangerLetIn, message: "n".to_owned() },
        };
        disk.keep_knock(&kept).unwrap();
        assert_eq!(disk.knock(), kept);
        fs::write(disk.dir.join(KNOCK), "{").unwrap();
        assert_eq!(disk.knock(), KeptKnock::default());
    }
}
