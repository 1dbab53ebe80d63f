//! A process that does nothing but write to a store, to be killed while it does.
//!
//! Each round is one batch of two keys that say the same number, and a third so large that a write
//! takes a while. It prints the number when the store has said that it is written.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_hub::store::{Batch, EmbeddedStore, EtcdOptions, EtcdStore, Outcome, Store};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

const PREFIX_KEYS: &str = "kill/";
const KEYS: [&str; 2] = ["kill/a", "kill/b"];
const FILLER: &str = "kill/filler";
const FILLER_BYTES: usize = 100_000;
/// What keys in etcd start with here.
pub const PREFIX: &str = "/fairlead-e2e/";
/// A writer is killed within that time of its first write.
const LIFE_MS_MAX: u64 = 40;

/// Where a store is.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct StoreArgs {
    /// Folder of an embedded store.
    #[arg(long)]
    pub embedded: Option<PathBuf>,
    /// Endpoints of an etcd.
    #[arg(long, value_delimiter = ',')]
    pub etcd: Vec<String>,
}

impl StoreArgs {
    pub fn embedded(folder: &Path) -> Self {
        Self { embedded: Some(folder.to_owned()), etcd: Vec::new() }
    }

    pub fn etcd(endpoints: Vec<String>) -> Self {
        Self { embedded: None, etcd: endpoints }
    }

    /// Opens it. Blocks.
    pub fn open(&self) -> Result<Box<dyn Store>> {
        Ok(match &self.embedded {
            Some(folder) => Box::new(EmbeddedStore::open(folder)?),
            None => Box::new(EtcdStore::open(&EtcdOptions {
                endpoints: self.etcd.clone(),
                prefix: PREFIX.to_owned(),
                ..EtcdOptions::default()
            })?),
        })
    }

    fn as_args(&self) -> Vec<String> {
        match &self.embedded {
            Some(folder) => vec!["--embedded".to_owned(), folder.display().to_string()],
            None => vec!["--etcd".to_owned(), self.etcd.join(",")],
        }
    }
}

/// Writes until it is killed.
pub fn write_for_ever(args: &StoreArgs) -> Result<ExitCode> {
    let store = args.open()?;
    let mut out = std::io::stdout();
    let mut number = read(store.as_ref())?;
    loop {
        number += 1;
        write(store.as_ref(), number)?;
        writeln!(out, "{number}")?;
        out.flush()?;
    }
}

/// One round.
pub fn write(store: &dyn Store, number: u64) -> Result<()> {
    let mut put: Vec<_> =
        KEYS.iter().map(|key| ((*key).to_owned(), number.to_string().into_bytes())).collect();
    put.insert(1, (FILLER.to_owned(), vec![u8::try_from(number % 251)?; FILLER_BYTES]));
    let outcome = store.commit(Batch { put, ..Batch::default() })?;
    ensure!(matches!(outcome, Outcome::Written(_)), "{outcome:?} without an expectation");
    Ok(())
}

/// The number that is there; an error when the keys do not say the same. One picture: what a killed
/// writer had sent may be written between two looks.
pub fn read(store: &dyn Store) -> Result<u64> {
    let found: BTreeMap<String, Vec<u8>> =
        store.list(PREFIX_KEYS)?.into_iter().map(|(key, value)| (key, value.bytes)).collect();
    let number = |key: &str| {
        let text = found.get(key).map_or(Ok("0"), |bytes| std::str::from_utf8(bytes))?;
        text.parse::<u64>().with_context(|| format!("{key} says {text:?}"))
    };
    let said = [number(KEYS[0])?, number(KEYS[1])?];
    ensure!(said[0] == said[1], "half of a batch is there: {said:?}");
    let filler = found.get(FILLER).map_or(0, |bytes| u64::from(bytes[0]));
    ensure!(said[0] == 0 || filler == said[0] % 251, "half of a batch is there: the filler");
    Ok(said[0])
}

/// What so many kills did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Killed {
    pub cycles: u64,
    /// Writes that were told as written.
    pub told: u64,
    /// Kills after which the store held a write that was not told any more.
    pub untold: u64,
}

/// Kills a writer at random points, again and again, and reads what is there.
///
/// # Errors
/// When a told write is gone, or half of one is there.
pub async fn kill_writers(args: &StoreArgs, cycles: u64, seed: u64) -> Result<Killed> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut seen = Killed::default();
    for cycle in 0..cycles {
        let life = Duration::from_micros(random.random_range(0..LIFE_MS_MAX * 1_000));
        let told = one_life(args, life).await.with_context(|| format!("cycle {cycle}"))?;
        let open = args.clone();
        let held = tokio::task::spawn_blocking(move || read(open.open()?.as_ref())).await?;
        let held = held.with_context(|| format!("after cycle {cycle}, seed {seed}"))?;
        let last = told.last().copied().unwrap_or(held);
        ensure!(held >= last, "cycle {cycle}, seed {seed}: {last} was told, {held} is there");
        seen.cycles += 1;
        seen.told += told.len() as u64;
        seen.untold += u64::from(held > last);
    }
    Ok(seen)
}

/// One writer from its start to its end; what it told.
async fn one_life(args: &StoreArgs, life: Duration) -> Result<Vec<u64>> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("store-writer").args(args.as_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.kill_on_drop(true).spawn().context("starting a writer")?;
    let out = child.stdout.take().context("a writer without output")?;
    let mut lines = BufReader::new(out).lines();
    let first = lines.next_line().await?.context("the writer ended before its first write")?;
    let mut told: Vec<u64> = vec![first.parse()?];
    // Not a wait for something: the point in time is what is random here.
    tokio::time::sleep(life).await;
    child.start_kill().context("killing a writer")?;
    while let Some(line) = lines.next_line().await? {
        // The last line may be cut, and is a prefix of what was told then.
        if let Ok(number) = line.parse::<u64>()
            && told.last().is_none_or(|last: &u64| number == *last + 1)
        {
            told.push(number);
        }
    }
    child.wait().await.context("waiting for a killed writer")?;
    Ok(told)
}
