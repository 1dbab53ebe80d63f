//! Wall clocks that lie: those of hub, agents and gateways, moved while the programs run.
//!
//! A small library (`preload/clock.c`) stands between a program and the C library and adds the seconds in
//! a file to the wall clock. Monotonic time, and with it every timer, goes on as it is: a step is what NTP
//! or a person would make. Everything else of a world keeps the machine's time: etcd, API servers,
//! controllers, Envoy Gateway (Go asks the kernel, not the C library), backends and the harness itself.
//!
//! A program gets such a clock when it is started after [`Faults::lend_clocks`], and not before: worlds
//! that do not ask for it run unmodified programs.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::{
    fault::Faults,
    launch::{Access, Bind, Launch},
    system,
};

const SOURCE: &str = include_str!("../preload/clock.c");
const LIBRARY: &str = "clock.so";
const OFFSET: &str = "offset";
/// Where a program with a file tree of its own finds both.
const INSIDE: &str = "/opt/clock";

/// One clock.
pub(crate) struct Clock {
    folder: PathBuf,
    lent: AtomicBool,
}

impl Clock {
    fn new(folder: PathBuf) -> Self {
        Self { folder, lent: AtomicBool::new(false) }
    }

    /// The launch with this clock, if it is lent.
    pub(crate) fn equip(&self, mut launch: Launch) -> Launch {
        if !self.lent.load(Ordering::Relaxed) {
            return launch;
        }
        let folder = match &mut launch.root {
            Some(tree) => {
                let (outside, inside) = (self.folder.clone(), PathBuf::from(INSIDE));
                tree.binds.push(Bind { outside, inside, access: Access::ReadOnly });
                Path::new(INSIDE)
            }
            None => &self.folder,
        };
        let text = |file: &str| folder.join(file).display().to_string();
        launch.env.extend([
            ("LD_PRELOAD".to_owned(), text(LIBRARY)),
            ("FAIRLEAD_E2E_CLOCK".to_owned(), text(OFFSET)),
        ]);
        launch
    }

    fn lend(&self, library: &Path) -> Result<()> {
        fs::create_dir_all(&self.folder).context("making a clock's folder")?;
        fs::copy(library, self.folder.join(LIBRARY)).context("copying a clock's library")?;
        self.set(0)?;
        self.lent.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Moves it. In place: programs have the file mapped, and eight aligned bytes are read whole.
    fn set(&self, offset_s: i64) -> Result<()> {
        let file = self.folder.join(OFFSET);
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).open(&file);
        let opened = opened.with_context(|| format!("opening {}", file.display()))?;
        opened.write_all_at(&offset_s.to_ne_bytes(), 0).context("moving a clock")
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
    /// Clocks that nobody has yet; their files lie in this folder.
    pub(crate) fn new(dir: &Path) -> Self {
        let clock = |name: &str| Clock::new(dir.join("clocks").join(name));
        Self { program: clock("program"), gateway: clock("gateway") }
    }

    fn both(&self) -> [&Clock; 2] {
        [&self.program, &self.gateway]
    }
}

impl Faults<'_> {
    /// Programs that start from now on have clocks that can be moved; gateways are started anew for
    /// it, so no request must be on its way.
    pub async fn lend_clocks(&self) -> Result<()> {
        let library = compile(self.0.folder())?;
        for cluster in self.0.clusters() {
            for clock in cluster.local()?.clocks.both() {
                clock.lend(&library)?;
            }
        }
        self.restart_gateways().await
    }

    /// Programs that start from now on have the machine's clock again, gateways at once.
    pub async fn return_clocks(&self) -> Result<()> {
        for cluster in self.0.clusters() {
            for clock in cluster.local()?.clocks.both() {
                clock.lent.store(false, Ordering::Relaxed);
            }
        }
        self.restart_gateways().await
    }

    async fn restart_gateways(&self) -> Result<()> {
        for member in self.0.members() {
            self.kill_gateway(member.name()).await?;
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

/// Makes the library in a folder.
fn compile(folder: &Path) -> Result<PathBuf> {
    system::ensure(system::CLOCKS)?;
    let (source, library) = (folder.join("clock.c"), folder.join(LIBRARY));
    fs::write(&source, SOURCE).context("writing the source of clocks")?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    let output = cc.output().context("starting cc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cc cannot make the library of clocks:\n{said}");
    Ok(library)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_not_lent_changes_no_launch() {
        let clock = Clock::new(PathBuf::from("/nowhere"));
        let launch = Launch { argv: vec!["sh".into()], ..Launch::default() };
        assert_eq!(clock.equip(launch.clone()), launch);
    }

    #[test]
    fn a_program_with_a_lent_clock_lives_on_another_day() {
        let folder = tempfile::tempdir().unwrap();
        let library = compile(folder.path()).unwrap();
        let clock = Clock::new(folder.path().join("clock"));
        clock.lend(&library).unwrap();
        let seconds = |offset_s: i64| {
            clock.set(offset_s).unwrap();
            let mut date = Command::new("date");
            date.arg("+%s").env_clear().envs(clock.equip(Launch::default()).env);
            String::from_utf8(date.output().unwrap().stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let now = seconds(0);
        for offset_s in [40 * 86_400, -10 * 86_400] {
            assert!((seconds(offset_s) - now - offset_s).abs() < 600);
        }
    }
}
