//! The hub's stores on their own: one contract for both, on a real etcd of three nodes too, and what
//! faults do to it.
//!
//! Facts: a the contract, b etcd's nodes and leader, c room, d writers that are killed. Clusters are not
//! needed.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use fairlead_hub::store::{
    Batch, Claim, EtcdOptions, EtcdStore, Store,
    contract::{self, Needs},
};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::{
    disk::SmallDisk,
    etcd::{Etcd, Place},
    report::{Facts, Finding, figures, milliseconds},
    storage::{self, StoreArgs},
    wait::{self, Look},
    world::World,
};

/// Kills of writers, of each store.
const CYCLES: u64 = 500;
const SEED: u64 = 8;
/// Times that etcd's nodes are killed under a writer.
const NODE_KILLS: usize = 12;
/// A small etcd: full after some megabytes.
const QUOTA_BYTES: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// As the hubs' own.
const CLAIM_TTL: Duration = fairlead_hub::office::TTL;

type Shared = Arc<dyn Store>;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let folder = tempfile::tempdir_in(world.folder()).context("a folder for stores")?;
    let embedded = StoreArgs::embedded(&folder.path().join("embedded"));
    let program = &world.tools().etcd;
    let etcd = Etcd::start(program, &folder.path().join("etcd"), &Place::Loopback, 3, 0).await?;
    let three = StoreArgs::etcd(etcd.endpoints());

    facts.look("a1", "the embedded store keeps the contract", keeps(&embedded)).await;
    facts.look("a2", "an etcd of three nodes keeps it", keeps(&three)).await;

    let name = "an etcd that asks for certificates and a password keeps it, also after it forgot who we are";
    facts.look("a3", name, guarded(program, &folder.path().join("guarded"))).await;

    let store = open(&three).await?;
    facts
        .look("b1", "one node is killed and comes back, again and again", nodes(&etcd, &store))
        .await;
    facts.look("b2", "the leader moves, again and again", leader(&etcd, &store)).await;
    facts.look("b3", "revisions are compacted under long lists", compaction(&etcd, &store)).await;
    let name = "no majority: calls fail in bounded time, and work again by themselves";
    facts.look("b4", name, no_majority(&etcd, &store)).await;
    let name = "a claim stays with its holder while nodes die, the leader moves, and revisions are \
                compacted under the watch of who waits for it";
    facts.look("b5", name, claimed(&etcd, &three)).await;
    let name = "etcd is full: writes say so, reads go on, writes work again by themselves";
    facts.look("c1", name, no_room(world, folder.path())).await;

    let name = "the disk under the embedded store is full: the same";
    facts.look("c2", name, full_disk(folder.path())).await;

    let name =
        "writers of the embedded store are killed: nothing told is lost, nothing is half there";
    facts.look("d1", name, killed(&embedded)).await;
    let name = "writers of an etcd are killed: nothing told is lost, nothing is half there";
    facts.look("d2", name, killed(&three)).await;
    let name =
        "etcd's nodes are killed under a writer: nothing told is lost, nothing is half there";
    facts.look("d3", name, nodes_killed(&etcd, &three)).await;
    drop(store);
    for node in 0..3 {
        etcd.kill(node).await;
    }
    Ok(())
}

async fn open(args: &StoreArgs) -> Result<Shared> {
    let args = args.clone();
    Ok(Arc::from(spawn_blocking(move || args.open()).await??))
}

/// All facts of the contract, on a store that nothing happens to.
async fn keeps(args: &StoreArgs) -> Result<Finding> {
    let store = open(args).await?;
    let start = Instant::now();
    let tried = spawn_blocking(move || try_all(store.as_ref(), |_| true)).await??;
    let took = milliseconds(start.elapsed());
    Ok(Finding::new(true, figures([("facts", json!(tried)), ("took_ms", json!(took))])))
}

fn try_all(store: &dyn Store, wanted: impl Fn(Needs) -> bool) -> Result<usize> {
    let mut tried = 0;
    for fact in contract::FACTS.iter().filter(|fact| wanted(fact.needs)) {
        (fact.holds)(store).map_err(|wrong| anyhow!("{}: {wrong}", fact.name))?;
        tried += 1;
    }
    Ok(tried)
}

/// Ends threads that go on until they are told, also when the look at a fact ends early.
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.now();
    }
}

/// Tries what holds under faults until told to stop; how often, and the longest time of one round.
struct Trying {
    stop: Stop,
    rounds: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<Duration>>,
}

impl Trying {
    fn start(store: &Shared) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (store, end, count) = (store.clone(), stop.clone(), rounds.clone());
        let task = spawn_blocking(move || {
            let mut longest = Duration::ZERO;
            while !end.load(Ordering::Relaxed) {
                let start = Instant::now();
                try_all(store.as_ref(), |needs| needs == Needs::Nothing)?;
                longest = longest.max(start.elapsed());
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(longest)
        });
        Self { stop: Stop(stop), rounds, task }
    }

    /// Waits until so many more rounds are through.
    async fn rounds(&self, more: u64) -> Result<()> {
        let until = self.rounds.load(Ordering::Relaxed) + more;
        wait::until("the contract to be tried", LIMIT, || async {
            let rounds = self.rounds.load(Ordering::Relaxed);
            if rounds >= until || self.task.is_finished() {
                return Ok(Look::Done(()));
            }
            Ok(Look::Not(format!("{rounds} of {until} rounds")))
        })
        .await
    }

    async fn finding(self, name: &str, times: usize) -> Result<Finding> {
        self.stop.now();
        let longest = self.task.await??;
        let rounds = self.rounds.load(Ordering::Relaxed);
        Ok(Finding::new(
            rounds > 0,
            figures([
                (name, json!(times)),
                ("rounds", json!(rounds)),
                ("longest_ms", json!(milliseconds(longest))),
            ]),
        ))
    }
}

async fn nodes(etcd: &Etcd, store: &Shared) -> Result<Finding> {
    let trying = Trying::start(store);
    for node in [0, 1, 2] {
        etcd.kill(node).await;
        trying.rounds(2).await?;
        etcd.revive(node).await?;
        etcd.wait_leader().await?;
        trying.rounds(2).await?;
    }
    trying.finding("kills", 3).await
}

async fn leader(etcd: &Etcd, store: &Shared) -> Result<Finding> {
    const MOVES: usize = 10;
    let trying = Trying::start(store);
    for _ in 0..MOVES {
        etcd.move_leader().await?;
        trying.rounds(1).await?;
    }
    trying.finding("moves", MOVES).await
}

async fn compaction(etcd: &Etcd, store: &Shared) -> Result<Finding> {
    const COMPACTIONS: usize = 60;
    let trying = Trying::start(store);
    for _ in 0..COMPACTIONS {
        etcd.compact().await?;
    }
    trying.rounds(1).await?;
    trying.finding("compactions", COMPACTIONS).await
}

async fn no_majority(etcd: &Etcd, store: &Shared) -> Result<Finding> {
    let write = |store: Shared, text: &'static str| {
        spawn_blocking(move || {
            let start = Instant::now();
            let put = vec![("majority/a".to_owned(), text.into())];
            let result = store.commit(Batch { put, ..Batch::default() });
            (result.map_err(anyhow::Error::from), start.elapsed())
        })
    };
    write(store.clone(), "before").await?.0?;
    etcd.kill(0).await;
    etcd.kill(1).await;
    let (refused, took) = write(store.clone(), "without").await?;
    etcd.revive(0).await?;
    etcd.revive(1).await?;
    let back = Instant::now();
    wait::until("writes to work again", LIMIT, || async {
        write(store.clone(), "after").await?.0?;
        Ok(Look::Done(()))
    })
    .await?;
    let back = milliseconds(back.elapsed());
    let Err(why) = refused else { bail!("a write without a majority was told as written") };
    Ok(Finding::new(
        took < LIMIT / 2,
        figures([
            ("refused_after_ms", json!(milliseconds(took))),
            ("why", json!(format!("{why:#}"))),
            ("works_again_after_ms", json!(back)),
        ]),
    ))
}

/// One holds a claim and renews it, another waits for it, over a connection of its own.
async fn claimed(etcd: &Etcd, args: &StoreArgs) -> Result<Finding> {
    const NAME: &str = "claimed";
    const COMPACTIONS: usize = 20;
    let (store, other) = (open(args).await?, open(args).await?);
    // A hold is of no use without its store.
    let holder = store.clone();
    let first = spawn_blocking(move || holder.claim(NAME, b"first", CLAIM_TTL, LIMIT)).await??;
    let Claim::Held(mut hold) = first else { bail!("somebody holds a claim that nobody took") };
    let waiter = other.clone();
    let second = spawn_blocking(move || waiter.claim(NAME, b"second", CLAIM_TTL, 5 * LIMIT));
    let stop = Stop(Arc::default());
    let end = stop.0.clone();
    let renewing = spawn_blocking(move || {
        let (mut renewed, mut failed) = (0_u64, 0_u64);
        while !end.load(Ordering::Relaxed) {
            match hold.renew() {
                Ok(true) => renewed += 1,
                Ok(false) => bail!("it ran out after {renewed} renewals, {failed} failed"),
                Err(_) => failed += 1,
            }
            std::thread::sleep(CLAIM_TTL / 8);
        }
        let start = Instant::now();
        hold.release()?;
        anyhow::Ok((renewed, failed, start))
    });
    for node in [0, 1, 2] {
        etcd.kill(node).await;
        etcd.wait_leader().await?;
        etcd.revive(node).await?;
        wait::until("the leader to move", LIMIT, || async {
            etcd.move_leader().await?;
            Ok(Look::Done(()))
        })
        .await?;
    }
    for _ in 0..COMPACTIONS {
        etcd.compact().await?;
    }
    let early = second.is_finished();
    stop.now();
    let (renewed, failed, released) = renewing.await??;
    let next = second.await??;
    let followed = milliseconds(released.elapsed());
    let follows = matches!(next, Claim::Held(_));
    Ok(Finding::new(
        follows && !early,
        figures([
            ("kills", json!(3)),
            ("compactions", json!(COMPACTIONS)),
            ("renewed", json!(renewed)),
            ("renewals_failed", json!(failed)),
            ("followed_after_ms", json!(followed)),
        ]),
    ))
}

async fn no_room(world: &World, folder: &Path) -> Result<Finding> {
    let etcd =
        Etcd::start(&world.tools().etcd, &folder.join("small"), &Place::Loopback, 1, QUOTA_BYTES)
            .await?;
    let store = open(&StoreArgs::etcd(etcd.endpoints())).await?;
    let fill = store.clone();
    let (written, why) = spawn_blocking(move || {
        // The same key: what fills etcd is its history, as with a hub that writes often.
        for n in 0..1_000_u32 {
            let put = vec![("room/a".to_owned(), vec![1; 500_000])];
            if let Err(error) = fill.commit(Batch { put, ..Batch::default() }) {
                return Ok((n, format!("{:#}", anyhow::Error::from(error))));
            }
        }
        bail!("etcd is never full")
    })
    .await??;
    let alarm = etcd.is_full().await?;
    let look = store.clone();
    let read = spawn_blocking(move || look.get("room/a")).await??.is_some();
    etcd.make_room().await?;
    let again = store.clone();
    let again = spawn_blocking(move || try_all(again.as_ref(), |_| true)).await?;
    etcd.kill(0).await;
    Ok(Finding::new(
        alarm && read && again.is_ok(),
        figures([
            ("writes", json!(written)),
            ("why", json!(why)),
            ("reads_go_on", json!(read)),
            ("afterwards", json!(again.map_or_else(|e| format!("{e:#}"), |_| "works".into()))),
        ]),
    ))
}

/// The same, of a disk.
async fn full_disk(folder: &Path) -> Result<Finding> {
    const DISK_KIB: u64 = 64 * 1_024;
    let folder = folder.join("full");
    std::fs::create_dir_all(&folder).context("a folder for a small disk")?;
    let disk = SmallDisk::mount(&folder, DISK_KIB)?;
    let store = open(&StoreArgs::embedded(&folder)).await?;
    let write = |key: &'static str, bytes: usize| {
        let (store, put) = (store.clone(), vec![(key.to_owned(), vec![1; bytes])]);
        spawn_blocking(move || store.commit(Batch { put, ..Batch::default() }))
    };
    write("full/before", 1_000).await??;
    disk.fill()?;
    let mut refused = None;
    for _ in 0..200 {
        if let Err(error) = write("full/a", 500_000).await? {
            refused = Some(format!("{:#}", anyhow::Error::from(error)));
            break;
        }
    }
    let why = refused.context("a full disk is never full")?;
    let look = store.clone();
    let kept = spawn_blocking(move || look.get("full/before")).await??.is_some();
    disk.make_room()?;
    let again = store.clone();
    let again = spawn_blocking(move || try_all(again.as_ref(), |_| true)).await?;
    drop(store);
    Ok(Finding::new(
        kept && again.is_ok(),
        figures([
            ("why", json!(why)),
            ("reads_go_on", json!(kept)),
            ("afterwards", json!(again.map_or_else(|e| format!("{e:#}"), |_| "works".into()))),
        ]),
    ))
}

/// Who comes without a certificate or with a wrong password is told so; ours is let in, and again
/// after a restart of etcd, which knows no token any more.
async fn guarded(program: &Path, folder: &Path) -> Result<Finding> {
    let (etcd, options) = Etcd::start_guarded(program, folder, storage::PREFIX).await?;
    let wrong = folder.join("wrong-password");
    std::fs::write(&wrong, "guess").context("writing a wrong password")?;
    let strangers = [
        EtcdOptions { cert_file: None, key_file: None, ..options.clone() },
        EtcdOptions { password_file: Some(wrong), ..options.clone() },
        EtcdOptions { prefix: "/another/".to_owned(), ..options.clone() },
    ];
    let mut refusals = Vec::new();
    for stranger in strangers {
        let tried = spawn_blocking(move || EtcdStore::open(&stranger)).await?;
        refusals.push(match tried {
            Ok(_) => bail!("a stranger was let in"),
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                text.chars().take(120).collect::<String>()
            }
        });
    }
    let store: Shared = Arc::new(spawn_blocking(move || EtcdStore::open(&options)).await??);
    let first = store.clone();
    let tried = spawn_blocking(move || try_all(first.as_ref(), |_| true)).await??;
    etcd.kill(0).await;
    etcd.revive(0).await?;
    let again = store.clone();
    wait::until("etcd to answer again", LIMIT, || async {
        let store = again.clone();
        Ok(match spawn_blocking(move || store.get("x")).await? {
            Ok(_) => Look::Done(()),
            Err(error) => Look::Not(format!("{:#}", anyhow::Error::from(error))),
        })
    })
    .await?;
    spawn_blocking(move || try_all(again.as_ref(), |_| true)).await??;
    etcd.kill(0).await;
    Ok(Finding::new(true, figures([("facts", json!(tried)), ("strangers", json!(refusals))])))
}

async fn killed(args: &StoreArgs) -> Result<Finding> {
    let start = Instant::now();
    let seen = storage::kill_writers(args, CYCLES, SEED).await?;
    Ok(Finding::new(
        seen.cycles == CYCLES,
        figures([
            ("kills", json!(seen.cycles)),
            ("writes_told", json!(seen.told)),
            ("killed_between_write_and_word", json!(seen.untold)),
            ("seconds", json!(start.elapsed().as_secs())),
        ]),
    ))
}

async fn nodes_killed(etcd: &Etcd, args: &StoreArgs) -> Result<Finding> {
    let (end, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let stop = Stop(end.clone());
    let store = open(args).await?;
    let (count, writing) = (told.clone(), store.clone());
    let first = spawn_blocking({
        let store = store.clone();
        move || storage::read(store.as_ref())
    })
    .await??;
    let writer = spawn_blocking(move || {
        let mut failed = 0_u64;
        let mut number = first;
        while !end.load(Ordering::Relaxed) {
            match storage::write(writing.as_ref(), number + 1) {
                Ok(()) => {
                    number += 1;
                    count.store(number, Ordering::Relaxed);
                }
                Err(_) => failed += 1,
            }
        }
        failed
    });
    let mut lost = None;
    for kill in 0..NODE_KILLS {
        // Every third time all of them: nobody can be asked what the disk did not keep.
        let nodes: Vec<usize> = if kill % 3 == 2 { (0..3).collect() } else { vec![kill % 3] };
        for node in &nodes {
            etcd.kill(*node).await;
        }
        let at = told.load(Ordering::Relaxed);
        for node in nodes {
            etcd.revive(node).await?;
        }
        etcd.wait_leader().await?;
        wait::until("writes to go on", LIMIT, || async {
            let now = told.load(Ordering::Relaxed);
            Ok(if now > at + 5 { Look::Done(()) } else { Look::Not(format!("{now} after {at}")) })
        })
        .await?;
        let (told, store) = (told.load(Ordering::Relaxed), store.clone());
        let held = spawn_blocking(move || storage::read(store.as_ref())).await??;
        if held < told {
            lost = Some((told, held));
        }
    }
    stop.now();
    let failed = writer.await?;
    Ok(Finding::new(
        lost.is_none(),
        figures([
            ("kills", json!(NODE_KILLS)),
            ("writes_told", json!(told.load(Ordering::Relaxed) - first)),
            ("writes_failed", json!(failed)),
            ("lost", json!(lost)),
        ]),
    ))
}
