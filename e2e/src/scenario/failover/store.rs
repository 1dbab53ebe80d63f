//! h: the hub's store is restored from an older copy, or its disk is full. Numbers go on rising, what
//! cannot be stored is not planned, and nothing is lost.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_crds::keys;
use fairlead_model::{Reason, health::MemberState};
use serde_json::{Value, json};

use crate::{
    disk::SmallDisk,
    fleet::{
        Fleet, plans_held, shop,
        trial::{PATH, SERVICE, VICTIM, rendered_route, strict},
    },
    object::ObjectKey,
    report::{Facts, Finding, figures},
    wait::{self, Look},
};

/// The hub's store in its volume.
const FILE: &str = "fairlead.redb";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    facts.look("h1", "an older copy of the store: numbers go on rising", restored(fleet)).await;
    let name = "the store cannot be written: plans freeze, streams stay; then it goes on by itself";
    facts.look("h3", name, full(fleet)).await;
}

/// The hub's store on a disk that is easily filled, instead of its volume.
struct OnSmallDisk {
    disk: SmallDisk,
    /// The file's copy on the machine's own disk.
    kept: PathBuf,
}

/// Room for the store as it is, its history of what is tried here, and more.
const DISK_KIB: u64 = 64 * 1_024;

impl OnSmallDisk {
    /// Puts a small disk under the store of a hub that does not run.
    fn mount(store: &Path) -> Result<Self> {
        let folder = store.parent().context("the store lies in no folder")?;
        let kept = folder.with_extension("kept");
        fs::rename(store, &kept).context("keeping the store")?;
        let disk = SmallDisk::mount(folder, DISK_KIB)?;
        fs::copy(&kept, store).context("putting the store on the small disk")?;
        Ok(Self { disk, kept })
    }

    /// Takes the disk away under a hub that does not run; the store moves back.
    fn unmount(self, store: &Path) -> Result<()> {
        fs::copy(store, &self.kept).context("keeping the store")?;
        self.disk.unmount()?;
        fs::rename(&self.kept, store).context("putting the store back")
    }
}

async fn full(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    let store = store_file(fleet)?;
    world.fault().kill_hub().await?;
    let small = OnSmallDisk::mount(&store)?;
    world.fault().restore_hub().await?;
    fleet.wait_settled().await?;
    let hub = world.kubelet(world.hub().name())?.pid(crate::fault::HUB);
    let load = fleet.start_left(PATH).await?;
    let frozen = freeze(fleet, &small.disk).await;
    let thawed = thaw(fleet, &small.disk).await;
    let same_process = world.kubelet(world.hub().name())?.pid(crate::fault::HUB) == hub;
    let report = strict(&load.stop().await);
    world.fault().kill_hub().await?;
    small.unmount(&store)?;
    world.fault().restore_hub().await?;
    fleet.wait_whole(PATH).await?;
    let (why, streams) = frozen?;
    thawed?;
    Ok(Finding::new(
        report.failed() == 0 && streams && same_process,
        figures([
            ("why", json!(why)),
            ("streams_stay", json!(streams)),
            ("same_process", json!(same_process)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// Fills the disk and asks for more than the store has room for; what the hub says then, and whether
/// all members still have their streams.
async fn freeze(fleet: &Fleet<'_>, disk: &SmallDisk) -> Result<(String, bool)> {
    disk.fill()?;
    for number in 0..BULKY_ROUTES {
        fleet.world().hub().objects().apply(&bulky(number)).await?;
    }
    let why = wait::until("the hub to hold its plans", HELD_LIMIT, || async {
        let held = fleet.status().await?.held;
        let about_store = held.iter().find(|note| note.reason == Reason::StoreUnavailable);
        Ok(match about_store {
            Some(note) => Look::Done(note.to_string()),
            None => Look::Not(format!("it holds for {held:?}")),
        })
    })
    .await?;
    let members = fleet.status().await?.members;
    let streams = members.iter().all(|view| view.state == MemberState::Up);
    // A change that must wait, although nothing but the store is in its way.
    fleet.world().hub().objects().apply(&late()).await?;
    Ok((why, streams))
}

/// Makes room; the change that waited arrives by itself.
async fn thaw(fleet: &Fleet<'_>, disk: &SmallDisk) -> Result<()> {
    let early = fleet.world().member("west")?.objects().get(&rendered_route(LATE)).await?;
    disk.make_room()?;
    ensure!(early.is_none(), "{LATE} was planned while the store could not be written");
    fleet.wait_live(&format!("/{LATE}")).await?;
    for number in 0..BULKY_ROUTES {
        fleet.world().hub().objects().delete(&route_key(&bulky_name(number))).await?;
    }
    fleet.world().hub().objects().delete(&route_key(LATE)).await?;
    fleet.wait_settled().await.map(drop)
}

/// Routes that say much, to nobody: their backend does not exist.
const BULKY_ROUTES: usize = 60;
const LATE: &str = "late";
const HELD_LIMIT: Duration = Duration::from_secs(60);

fn bulky_name(number: usize) -> String {
    format!("bulky-{number:02}")
}

fn route_key(name: &str) -> ObjectKey {
    ObjectKey::new("gateway.networking.k8s.io/v1", "HTTPRoute", shop::NAMESPACE, name)
}

fn bulky(number: usize) -> Value {
    let name = bulky_name(number);
    let rule = |rule: usize| {
        let value = format!("/{name}/{rule}/{}", "x".repeat(900));
        json!({"matches": [{"path": {"type": "PathPrefix", "value": value}}],
            "backendRefs": [{"group": "multicluster.x-k8s.io", "kind": "ServiceImport",
                "name": "nowhere", "port": 80}]})
    };
    route(&name, &(0..16).map(rule).collect::<Vec<_>>())
}

fn late() -> Value {
    let path = format!("/{LATE}");
    route(
        LATE,
        &[json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": [{"group": "multicluster.x-k8s.io", "kind": "ServiceImport",
                "name": SERVICE, "port": 80}]})],
    )
}

fn route(name: &str, rules: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": shop::NAMESPACE},
        "spec": {
            "parentRefs": [{"name": "public", "namespace": shop::GATEWAY_NAMESPACE}],
            "hostnames": [shop::HOST],
            "rules": rules,
        },
    })
}

/// The file of the hub's store.
fn store_file(fleet: &Fleet<'_>) -> Result<PathBuf> {
    let folder = fleet.world().hub().local()?.dir();
    find(folder)?.with_context(|| format!("no {FILE} in {}", folder.display()))
}

async fn restored(fleet: &Fleet<'_>) -> Result<Finding> {
    let world = fleet.world();
    world.fault().kill_hub().await?;
    let store = store_file(fleet)?;
    let copy = store.with_extension("older");
    fs::copy(&store, &copy).context("copying the store")?;
    world.fault().restore_hub().await?;
    fleet.wait_settled().await?;
    set_traffic(fleet, "Standby").await?;
    fleet.wait_settled().await?;
    set_traffic(fleet, "Active").await?;
    fleet.wait_whole(PATH).await?;
    let before = numbers(fleet).await?;

    let load = fleet.start_left(PATH).await?;
    world.fault().kill_hub().await?;
    fs::rename(&copy, &store).context("putting the older copy back")?;
    world.fault().restore_hub().await?;
    fleet.wait_settled().await?;
    let report = strict(&load.stop().await);
    fleet.wait_whole(PATH).await?;
    let after = numbers(fleet).await?;
    let risen = before.len() == after.len() && before.iter().zip(&after).all(|(b, a)| b <= a);
    Ok(Finding::new(
        risen && report.failed() == 0,
        figures([
            ("before", json!(shown(&before))),
            ("after", json!(shown(&after))),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// As people read them.
pub(super) fn shown(numbers: &[(u64, u64)]) -> Vec<String> {
    numbers.iter().map(|(epoch, counter)| format!("{epoch}.{counter}")).collect()
}

/// A change of plans that asks for none of the traffic that is measured.
async fn set_traffic(fleet: &Fleet<'_>, state: &str) -> Result<()> {
    let objects = fleet.world().hub().objects();
    let key = ObjectKey::new(keys::API_VERSION, "MemberCluster", "", VICTIM);
    let member = objects.get(&key).await?.with_context(|| format!("there is no {key}"))?;
    let mut spec = member["spec"].clone();
    spec["trafficState"] = json!(state);
    let wanted = json!({"apiVersion": keys::API_VERSION, "kind": "MemberCluster",
        "metadata": {"name": VICTIM}, "spec": spec});
    objects.apply(&wanted).await.map(drop)
}

/// The plans that members hold, by (epoch, counter), in the order of their names.
pub(super) async fn numbers(fleet: &Fleet<'_>) -> Result<Vec<(u64, u64)>> {
    let status = fleet.status().await?;
    let held: Vec<_> = plans_held(&status).into_values().collect();
    ensure!(held.len() == status.members.len(), "{} members hold a plan", held.len());
    Ok(held)
}

fn find(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|name| name == FILE) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
