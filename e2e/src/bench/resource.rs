//! Resident memory and CPU time of hub and agents, from the machine's own books.
//!
//! Memory is what is resident (RSS), files included. CPU is a share of one core over windows of
//! some seconds, summed over threads.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::{report::Row, world::World};

const HUB: &str = "fairlead-hub";
const AGENT: &str = "fairlead-agent";
/// Shorter windows would show the clock's grain.
const WINDOW: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    pub(crate) rss_mib: f64,
    pub(crate) cpu: Duration,
}

/// What was seen of one kind of process.
#[derive(Clone, Debug, Default)]
struct Seen {
    memory_mib: Vec<f64>,
    cpu_percent: Vec<f64>,
}

/// Looks at all processes of Fairlead again and again until it is stopped.
pub(super) struct Sampler {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<BTreeMap<&'static str, Seen>>>,
}

impl Sampler {
    pub(super) fn start(world: &World) -> Result<Self> {
        let mut pids: Vec<(&'static str, u32)> = Vec::new();
        for cluster in world.clusters() {
            let kubelet = world.kubelet(cluster.name())?;
            for (name, program) in [("hub", HUB), ("agent", AGENT)] {
                pids.extend(kubelet.pid(program).map(|pid| (name, pid)));
            }
        }
        ensure!(pids.len() > world.members().count(), "not every process of Fairlead runs");
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(sample(pids, stopped)) })
    }

    /// Looks for so long, and says how it was.
    pub(super) async fn rest(self, time: Duration, when: &str) -> Result<Vec<Row>> {
        tokio::time::sleep(time).await;
        self.stop(when).await
    }

    pub(super) async fn stop(self, when: &str) -> Result<Vec<Row>> {
        // It may have ended by an error, which the task tells.
        let _ = self.stop.send(());
        let seen = self.task.await.context("the sampler ended badly")??;
        let mut rows = Vec::new();
        for (name, seen) in seen {
            rows.push(Row::new(&format!("{name} memory {when}"), "MiB", &seen.memory_mib));
            rows.push(Row::new(&format!("{name} cpu {when}"), "%", &seen.cpu_percent));
        }
        Ok(rows)
    }
}

async fn sample(
    pids: Vec<(&'static str, u32)>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<BTreeMap<&'static str, Seen>> {
    let mut seen: BTreeMap<&'static str, Seen> = BTreeMap::new();
    let mut before = look(&pids)?;
    let mut at = Instant::now();
    loop {
        let over = tokio::time::timeout(WINDOW, &mut stopped).await.is_ok();
        let now = look(&pids)?;
        let window = at.elapsed().as_secs_f64();
        for (((name, _), now), before) in pids.iter().zip(&now).zip(&before) {
            let entry = seen.entry(name).or_default();
            entry.memory_mib.push(now.rss_mib);
            let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64();
            entry.cpu_percent.push(100.0 * cpu / window);
        }
        if over {
            return Ok(seen);
        }
        (before, at) = (now, Instant::now());
    }
}

fn look(pids: &[(&'static str, u32)]) -> Result<Vec<Usage>> {
    pids.iter()
        .map(|(name, pid)| usage(*pid).with_context(|| format!("looking at {name}")))
        .collect()
}

pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let folder = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(folder.join("status")).context("it no longer runs")?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rss| rss.trim().strip_suffix("kB")?.trim().parse::<u32>().ok());
    let mut cpu = Duration::ZERO;
    for task in fs::read_dir(folder.join("task")).context("listing its threads")? {
        // A thread may end while it is looked at.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let nanoseconds = text.split_whitespace().next().and_then(|text| text.parse().ok());
        cpu += Duration::from_nanos(nanoseconds.unwrap_or_default());
    }
    Ok(Usage { rss_mib: f64::from(rss.context("it has no memory")?) / 1024.0, cpu })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_cpu() {
        let pid = std::process::id();
        let before = usage(pid).unwrap();
        assert!(before.rss_mib > 0.5);
        let mut work = 0_u64;
        while usage(pid).unwrap().cpu <= before.cpu {
            work = work.wrapping_mul(31).wrapping_add(7);
        }
        assert_ne!(work, 1);
    }
}
