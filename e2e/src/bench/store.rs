//! What the hub's stores cost: a change as the hub writes it, and how long a start reads.
//!
//! A change is what one member reports when endpoints of one of its services come or go: one item and the
//! head of its snapshot, in one batch. The start reads the inventories of a large fleet back, digests
//! checked, as a hub does before it plans. The file and an etcd of one and of three nodes, on the same disk, one
//! after the other.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_hub::{record, store::Store};
use fairlead_hub_core::inventory::{Report, ReportOrder};
use fairlead_model::{
    ClusterUid, MemberId, Millis, NsName, SnapshotNumber,
    ledger::Ledger,
    snapshot::{ClusterFacts, EndpointCounts, PortState, ServiceState, Snapshot},
};
use fairlead_proto::ledger::snapshot_to_ledger;
use tokio::task::spawn_blocking;

use crate::{
    etcd::{Etcd, Place},
    report::{Row, milliseconds},
    storage::StoreArgs,
    world::World,
};

const CHANGES: u32 = 500;
const MEMBERS: usize = 1_000;
const SERVICES: usize = 1_000;

pub(super) async fn run(world: &World) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir_in(world.folder()).context("a folder for stores")?;
    let mut rows = Vec::new();
    let file = StoreArgs::embedded(&folder.path().join("embedded"));
    measure("one file", file, &mut rows).await?;
    for nodes in [1, 3] {
        let etcd = start(world, &folder.path().join(format!("etcd-{nodes}")), nodes).await?;
        let name = format!("etcd, nodes: {nodes}");
        measure(&name, StoreArgs::etcd(etcd.endpoints()), &mut rows).await?;
        for node in 0..nodes {
            etcd.kill(node).await;
        }
    }
    Ok(rows)
}

async fn start(world: &World, folder: &Path, nodes: usize) -> Result<Etcd> {
    Etcd::start(&world.tools().etcd, folder, &Place::Loopback, nodes, 0).await
}

async fn measure(name: &str, args: StoreArgs, rows: &mut Vec<Row>) -> Result<()> {
    let measured = spawn_blocking(move || {
        let changes = changes(args.open()?.as_ref())?;
        Ok::<_, anyhow::Error>((changes, reading(&args)?))
    });
    let (changes, (filled, read)) = measured.await??;
    let whole: Duration = changes.iter().sum();
    let rate = f64::from(CHANGES) / whole.as_secs_f64();
    let took: Vec<f64> = changes.into_iter().map(milliseconds).collect();
    let fleet = format!("{MEMBERS} members with {SERVICES} services");
    rows.push(Row::new(&format!("a change of one service, {name}"), "ms", &took));
    rows.push(Row::new(&format!("changes one after the other, {name}"), "1/s", &[rate]));
    rows.push(Row::new(&format!("{fleet} written, {name}"), "s", &[filled.as_secs_f64()]));
    rows.push(Row::new(&format!("{fleet} read at a start, {name}"), "s", &[read.as_secs_f64()]));
    Ok(())
}

/// Reports of one member, each with another count of one service.
fn changes(store: &dyn Store) -> Result<Vec<Duration>> {
    let member = MemberId::new("changing")?;
    let mut before = report(&member, 0)?;
    record::write_report(store, &member, &before, &Ledger::default())?;
    let mut took = Vec::new();
    for change in 1..=CHANGES {
        let after = report(&member, change)?;
        let start = Instant::now();
        record::write_report(store, &member, &after, &before.ledger)?;
        took.push(start.elapsed());
        before = after;
    }
    Ok(took)
}

/// Writes a fleet, opens the store again, and reads it: the times of both.
fn reading(args: &StoreArgs) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let store = args.open()?;
    for n in 0..MEMBERS {
        let member = MemberId::new(&format!("member-{n:04}"))?;
        record::write_report(store.as_ref(), &member, &report(&member, 0)?, &Ledger::default())?;
    }
    let filled = start.elapsed();
    drop(store);
    let start = Instant::now();
    let members = record::read_members(args.open()?.as_ref())?;
    let read = start.elapsed();
    let whole = members.values().filter(|stored| stored.report.is_some()).count();
    ensure!(whole > MEMBERS, "{whole} of {} snapshots are there", MEMBERS + 1);
    Ok((filled, read))
}

/// What a member with many services reports; the first one has as many endpoints as it is told.
fn report(member: &MemberId, ready: u32) -> Result<Report> {
    let uid = ClusterUid::new(&format!("uid-{member}"))?;
    let service = |n: usize| {
        let ready = if n == 0 { ready } else { 3 };
        let counts = EndpointCounts { ready, ..EndpointCounts::default() };
        let state = ServiceState {
            ports: [(80, PortState::default())].into(),
            zones: [("zone-a".to_owned(), counts)].into(),
            ..ServiceState::default()
        };
        (NsName::new("shop", &format!("service-{n:04}")), state)
    };
    let snapshot = Snapshot {
        cluster: ClusterFacts { uid: Some(uid.clone()), ..ClusterFacts::default() },
        services: (0..SERVICES).map(service).collect(),
        ..Snapshot::default()
    };
    let ledger = snapshot_to_ledger(&snapshot);
    Ok(Report {
        uid,
        order: ReportOrder { epoch: 1, number: SnapshotNumber { incarnation: 1, sequence: 1 } },
        digest: ledger.digest(),
        ledger: Arc::new(ledger),
        snapshot: Arc::new(snapshot),
        notes: Vec::new(),
        received_at: Millis(0),
    })
}
