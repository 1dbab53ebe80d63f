//! Wall clocks that lie: those of hub, agents and gateways, moved while the programs run.
//!
//! libfaketime stands between a program and the C library and reads, at each look at the wall clock, a
//! file with the offset. Monotonic time, and with it every timer, goes on as it is: a step is what NTP
//! or a person would make. Everything else of a world keeps the machine's time: etcd, API servers,
//! controllers, Envoy Gateway (Go asks the kernel, not the C library), backends and the harness itself.
//!
//! A program gets such a clock when it is started after [`Faults::lend_clocks`], and not before: worlds
//! that do not ask for it run unmodified programs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

use crate::{
    fault::Faults,
    launch::{Access, Bind, Launch},
    system,
};

/// Where a program finds the folder with the file.
const INSIDE: &str = "/opt/clock";
const FILE: &str = "offset";
/// libfaketime names what its processes share by their ids, and refuses to start one whose name is
/// taken: what killed ones left must go.
const LEFT_BEHIND: [&str; 2] = ["sem.faketime_sem_", "faketime_shm_"];

/// The clock of one cluster's programs.
pub(crate) struct Clock {
    folder: PathBuf,
    lent: AtomicBool,
}

impl Clock {
    /// A clock that nobody has yet; its file lies in a folder below this one.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { folder: dir.join("clock"), lent: AtomicBool::new(false) }
    }

    /// The launch with this clock, if it is lent.
    pub(crate) fn equip(&self, mut launch: Launch) -> Result<Launch> {
        if !self.lent.load(Ordering::Relaxed) {
            return Ok(launch);
        }
        let file = match &mut launch.root {
            Some(tree) => {
                let (outside, inside) = (self.folder.clone(), PathBuf::from(INSIDE));
                tree.binds.push(Bind { outside, inside, access: Access::ReadOnly });
                Path::new(INSIDE).join(FILE)
            }
            None => self.folder.join(FILE),
        };
        let text = |path: &Path| path.display().to_string();
        launch.env.extend(
            [
                ("LD_PRELOAD", text(&library()?)),
                ("FAKETIME_TIMESTAMP_FILE", text(&file)),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("NO_FAKE_STAT", "1".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Ok(launch)
    }

    /// Moves it; in one step, so that no reader finds half a number.
    fn set(&self, offset_s: i64) -> Result<()> {
        fs::create_dir_all(&self.folder).context("making a clock's folder")?;
        let (new, file) = (self.folder.join("new"), self.folder.join(FILE));
        fs::write(&new, format!("{offset_s:+}\n")).context("writing a clock")?;
        fs::rename(new, file).context("moving a clock")
    }
}

/// Whose clock is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// The hub or the agent of a cluster.
    Program,
    /// A member's Envoy.
    Gateway,
}

/// The clocks of one cluster.
pub(crate) struct Clocks {
    pub(crate) program: Clock,
    pub(crate) gateway: Clock,
}

impl Clocks {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            program: Clock::new(&dir.join("clocks/program")),
            gateway: Clock::new(&dir.join("clocks/gateway")),
        }
    }

    fn both(&self) -> [&Clock; 2] {
        [&self.program, &self.gateway]
    }
}

impl Faults<'_> {
    /// Programs that start from now on have clocks that can be moved; gateways are started anew for
    /// it, and no request must be on its way.
    pub async fn lend_clocks(&self) -> Result<()> {
        system::ensure(system::CLOCKS)?;
        library()?;
        for cluster in self.0.clusters() {
            for clock in cluster.local()?.clocks.both() {
                clock.set(0)?;
            }
        }
        self.change_clocks(true).await
    }

    /// Programs that start from now on have the machine's clock again.
    pub async fn return_clocks(&self) -> Result<()> {
        self.change_clocks(false).await
    }

    async fn change_clocks(&self, lent: bool) -> Result<()> {
        for cluster in self.0.clusters() {
            for clock in cluster.local()?.clocks.both() {
                clock.lent.store(lent, Ordering::Relaxed);
            }
        }
        for member in self.0.members() {
            self.kill_gateway(member.name()).await?;
        }
        forget_shared();
        for member in self.0.members() {
            self.restore_gateway(member.name()).await?;
        }
        Ok(())
    }

    /// Moves a clock to so many seconds from the machine's time, at once.
    pub fn set_clock(&self, cluster: &str, hand: Hand, offset_s: i64) -> Result<()> {
        let found = self.0.clusters().iter().find(|found| found.name() == cluster);
        let found = found.with_context(|| format!("this world has no cluster {cluster}"))?;
        let clocks = &found.local()?.clocks;
        match hand {
            Hand::Program => clocks.program.set(offset_s),
            Hand::Gateway => clocks.gateway.set(offset_s),
        }
    }
}

/// The library, which has no place of its own on Debian: its folder is named after the machine's kind.
fn library() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib").context("listing /usr/lib")?;
    let folders = folders.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.is_file()).context(
        "there is no libfaketimeMT.so.1 in /usr/lib/*/faketime: apt-get install faketime",
    )
}

fn forget_shared() {
    let Ok(entries) = fs::read_dir("/dev/shm") else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = LEFT_BEHIND.iter().find_map(|prefix| name.strip_prefix(prefix));
        let Some(pid) = pid.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            // Somebody else may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_not_lent_changes_no_launch() {
        let clock = Clock::new(Path::new("/nowhere"));
        let launch = Launch { argv: vec!["sh".into()], ..Launch::default() };
        assert_eq!(clock.equip(launch.clone()).unwrap(), launch);
    }

    #[test]
    fn an_offset_is_written_whole_and_signed() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::new(folder.path());
        for (offset, text) in [(864_000, "+864000\n"), (0, "+0\n"), (-60, "-60\n")] {
            clock.set(offset).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("clock/offset")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path().join("clock")).unwrap().count(), 1);
    }
}
