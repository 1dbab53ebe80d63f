//! The hub's cluster is lost for good, with its store. A new one is made from a backup: members come back
//! by themselves, nothing is written again, no request is lost, and a pinned route stays pinned.

mod pinned;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{
    and_clear,
    spine::{clean_up, dump_members},
};
use crate::{
    fleet::{
        Fleet, SETTLE_LIMIT,
        dump::Dump,
        plans_held,
        trial::{Failback, PATH, VICTIM, pass, strict},
    },
    load::Running,
    object::ObjectKey,
    report::{Facts, Finding, figures, milliseconds, seconds},
    wait::{self, Look},
    world::World,
};

const FAILBACK: Failback = Failback { after_s: 1, ramp_s: 0 };
/// The hub is away for at least so long: agents notice it several times over.
const AWAY: Duration = Duration::from_secs(8);
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Some of what a backup must have.
const WHOLE: [&str; 5] = [
    "fairlead-hub-ca",
    "fairlead-hub-keys",
    "fairlead-hub-history",
    "kind: MemberCluster",
    "kind: HTTPRoute",
];
/// A share that only the restored hub can have asked for.
const SHARE_MAX: f64 = 0.1;

pub(super) async fn run(world: &World, facts: &mut Facts) -> Result<()> {
    let fleet = Fleet::new(world)?;
    and_clear(tell(&fleet, facts), clean_up(&fleet)).await
}

async fn tell(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    fleet.open_trial(FAILBACK).await.context("setting the fleet up")?;
    let file = fleet.world().folder().join("hub-backup.yaml");
    let stage = Stage { fleet, file };
    let then = pinned::pin(fleet).await.context("pinning the route to its first revision")?;
    facts
        .look("a1", "a backup goes through a pipe, and to no file in the clear", stage.save())
        .await;
    let before = Before::take(fleet).await?;
    facts.look("b1", "the hub's cluster is lost: nothing changes", stage.lose(&before)).await;
    let name = "a new cluster, restored from the backup: members come back by themselves";
    facts.look("b2", name, stage.rebuild(before)).await;
    let name = "a pinned route is still pinned, to the same; its release still leads it on";
    facts.look("b3", name, pinned::held(fleet, &then)).await;
    facts.look("c1", "the new hub decides", stage.decides()).await;
    facts.look("c2", "restoring again changes nothing", stage.again()).await;
    Ok(())
}

struct Stage<'a> {
    fleet: &'a Fleet<'a>,
    file: PathBuf,
}

/// What must stay as it is, and what must rise.
struct Before {
    members: BTreeMap<String, Dump>,
    plans: BTreeMap<String, (u64, u64)>,
    load: Running,
}

impl Before {
    async fn take(fleet: &Fleet<'_>) -> Result<Self> {
        fleet.wait_settled().await?;
        let plans = plans_held(&fleet.status().await?);
        let members = dump_members(fleet.world()).await?;
        Ok(Self { members, plans, load: fleet.start_left(PATH).await? })
    }
}

/// What plans name. The agent's own note of how it stands with its hub is no object of a plan.
fn planned(dump: &Dump) -> Dump {
    let notes = [keys::CONFIG_MAP_AGENT_STATE, keys::CONFIG_MAP_AGENT_PINS];
    dump.ours_but_pods().only(|key, _| !notes.iter().any(|name| key.ends_with(name)))
}

impl Stage<'_> {
    async fn save(&self) -> Result<Finding> {
        let refused = [
            format!("fairlead backup -o {}", self.file.display()),
            format!("fairlead backup > {}", self.file.display()),
        ];
        let mut codes = Vec::new();
        for line in &refused {
            codes.push(self.fleet.at_hub(line).await?.code);
        }
        let clear = std::fs::metadata(&self.file).is_ok_and(|file| file.len() > 0);
        let said = self.save_whole().await?;
        let text = std::fs::read_to_string(&self.file)?;
        let whole = WHOLE.iter().all(|part| text.contains(part));
        let shown = figures([
            ("said", json!(said)),
            ("in_the_clear", json!(codes)),
            ("bytes", json!(text.len())),
        ]);
        Ok(Finding::new(whole && !clear && codes.iter().all(|code| *code == Some(2)), shown))
    }

    /// Through a pipe, as into a tool that encrypts; again while it says that it lacks what a pin means.
    async fn save_whole(&self) -> Result<String> {
        let line = format!("fairlead backup | cat > {}", self.file.display());
        wait::until("a backup with all that pins mean", SETTLE_LIMIT, || async {
            let ran = self.fleet.at_hub(&line).await?;
            let said = ran.said().trim().to_owned();
            ran.expect_success()?;
            Ok(match said.contains("not in it") {
                true => Look::Not(said),
                false => Look::Done(said),
            })
        })
        .await
    }

    async fn lose(&self, before: &Before) -> Result<Finding> {
        self.fleet.world().fault().lose_hub_cluster().await?;
        pass(&before.load, AWAY).await?;
        let report = strict(&before.load.so_far());
        Ok(Finding::new(
            report.failed() == 0,
            figures([("failed", json!(report.failed())), ("requests", json!(report.total()))]),
        ))
    }

    async fn rebuild(&self, before: Before) -> Result<Finding> {
        let fleet = self.fleet;
        fleet.world().fault().new_hub_cluster().await?;
        let start = Instant::now();
        let line = format!("cat {} | fairlead restore -", self.file.display());
        let restored = fleet.at_hub(&line).await?;
        let said = restored.said().trim().to_owned();
        restored.expect_success()?;
        let restored = start.elapsed();
        fleet.init().await?;
        self.wait_back(&before).await?;
        let back = start.elapsed();
        pass(&before.load, AFTERWARDS).await?;
        let report = strict(&before.load.stop().await);
        let plans = plans_held(&fleet.status().await?);
        let risen = before.plans.iter().all(|(name, plan)| plans.get(name) > Some(plan));
        let mut written = Vec::new();
        let mut objects = 0;
        let after = dump_members(fleet.world()).await?;
        for (name, dump) in &before.members {
            let (dump, later) = (planned(dump), planned(&after[name]));
            objects += dump.len();
            let writes = dump.writes_until(&later);
            written.extend(writes.into_iter().map(|line| format!("{name}: {line}")));
        }
        Ok(Finding::new(
            report.failed() == 0 && written.is_empty() && risen,
            figures([
                ("said", json!(said)),
                ("restored_ms", json!(milliseconds(restored))),
                ("all_back_after_s", json!(seconds(back))),
                ("failed", json!(report.failed())),
                ("requests", json!(report.total())),
                ("objects", json!(objects)),
                ("written", json!(written)),
                ("plans", json!(format!("{:?} -> {plans:?}", before.plans))),
            ]),
        ))
    }

    /// Waits until the new hub has every member's word, and each its plan.
    async fn wait_back(&self, before: &Before) -> Result<()> {
        wait::until("all members to hold a plan of the new hub", SETTLE_LIMIT, || async {
            let plans = plans_held(&self.fleet.status().await?);
            let newer = |(name, plan): (&String, &(u64, u64))| plans.get(name) > Some(plan);
            Ok(match before.plans.iter().all(newer) {
                true => Look::Done(()),
                false => Look::Not(format!("{plans:?}")),
            })
        })
        .await?;
        self.fleet.wait_settled().await.map(drop)
    }

    /// A member that is drained in the new hub's cluster gets nothing any more.
    async fn decides(&self) -> Result<Finding> {
        let line = format!("fairlead drain {VICTIM} --over 0s --wait --force");
        let start = Instant::now();
        self.fleet.at_hub(&line).await?.expect_success()?;
        let took = start.elapsed();
        let load = self.fleet.start_left(PATH).await?;
        pass(&load, AFTERWARDS).await?;
        let report = strict(&load.stop().await);
        let shares = report.shares(|sample| sample.outcome.target.clone());
        let share = shares.get(VICTIM).copied().unwrap_or_default();
        self.fleet.at_hub(&format!("fairlead undrain {VICTIM} --wait")).await?.expect_success()?;
        Ok(Finding::new(
            report.failed() == 0 && share < SHARE_MAX,
            figures([
                ("drained_after_ms", json!(milliseconds(took))),
                ("share", json!(share)),
                ("failed", json!(report.failed())),
            ]),
        ))
    }

    async fn again(&self) -> Result<Finding> {
        let hub = self.fleet.world().hub();
        let key = ObjectKey::new("fairlead.dev/v1alpha1", "MemberCluster", "", VICTIM);
        let spec = |object: Option<Value>| object.map(|object| object["spec"].clone());
        let before = spec(hub.objects().get(&key).await?);
        let line = format!("cat {} | fairlead restore -", self.file.display());
        let ran = self.fleet.at_hub(&line).await?;
        let said = ran.said().trim().to_owned();
        ran.expect_success()?;
        let same = before == spec(hub.objects().get(&key).await?);
        Ok(Finding::new(
            same && said.contains("0 objects created"),
            figures([("said", json!(said)), ("the_member_stays", json!(same))]),
        ))
    }
}
