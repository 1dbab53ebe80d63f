//! The built programs, and the `fairlead` command run as people run it: in a shell, with one
//! cluster's kubeconfig in the environment.
//!
//! Never adds an argument of its own. What a command printed is kept whole, for facts about
//! refusals, and in one log file of the run.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::path;

/// The packages of what runs in clusters and on desks. This one is named with them so that their
/// dependencies get the same features as in its own build, and are not built again.
const PACKAGES: &[&str] = &["fairlead-hub", "fairlead-agent", "fairlead", "fairlead-e2e"];

/// Set where the programs beside this one are to be used as they are: a copied build, a release.
const PREBUILT: &str = "FAIRLEAD_E2E_PREBUILT";

/// Builds hub, agent and CLI beside this program, so that no scenario runs yesterday's. Cargo
/// shows its own progress; with nothing to do it takes half a second. Blocks.
pub fn build_programs() -> Result<PathBuf> {
    let folder = programs_folder()?;
    if std::env::var_os(PREBUILT).is_some() {
        return Ok(folder);
    }
    let target = folder.parent().context("the folder of programs lies in no folder")?;
    let mut cargo = Process::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(path::repository()?).arg("build").arg("--target-dir").arg(target);
    if let Some(profile) = folder.file_name().filter(|name| *name != "debug") {
        cargo.arg("--profile").arg(profile);
    }
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    let start = Instant::now();
    let status = cargo.status().context("starting cargo to build hub, agent and CLI")?;
    if !status.success() {
        bail!("hub, agent and CLI do not build ({status}): cargo says why above");
    }
    eprintln!("programs: hub, agent and CLI are built ({:.1} s)", start.elapsed().as_secs_f32());
    Ok(folder)
}

/// Where cargo puts programs: the folder of this one.
fn programs_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.parent().context("this program lies in no folder")?.to_owned())
}

/// One of the built programs.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(programs_folder()?.join(name))
}

/// How a command ended and what it said.
#[derive(Clone, Debug)]
pub struct Ran {
    pub line: String,
    /// The exit code; none when it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// Its output if it ended well, else an error with all that it said.
    pub fn expect_success(self) -> Result<String> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        let code = self.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
        bail!("`{}` ended with {code}: {}", shown(&self.line), self.said())
    }

    /// What it said to people: standard error, or standard output when that is empty.
    pub fn said(&self) -> &str {
        let stderr = self.stderr.trim();
        if stderr.is_empty() { self.stdout.trim() } else { stderr }
    }
}

/// Longer than the commands' own patience, so that they can say what they waited for.
const COMMAND_LIMIT: Duration = Duration::from_secs(420);

/// The `fairlead` command of this build.
#[derive(Clone, Debug)]
pub struct Desk {
    programs: PathBuf,
    log: PathBuf,
}

impl Desk {
    /// A desk that keeps what its commands print in `<folder>/fairlead.log`.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self { programs: programs_folder()?, log: folder.join("fairlead.log") })
    }

    /// Runs one line in a shell, `fairlead` being the built one.
    pub async fn paste(&self, kubeconfig: &Path, line: &str) -> Result<Ran> {
        let inherited = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .env("PATH", format!("{}:{inherited}", self.programs.display()))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let start = Instant::now();
        let output = tokio::time::timeout(COMMAND_LIMIT, shell.output()).await;
        let output = output
            .with_context(|| format!("`{}` did not end in {COMMAND_LIMIT:?}", shown(line)))?
            .with_context(|| format!("starting `{}`", shown(line)))?;
        let ran = Ran {
            line: line.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        };
        self.record(&ran);
        Ok(ran)
    }

    /// Runs a line that prints JSON.
    pub async fn ask<T: DeserializeOwned>(&self, kubeconfig: &Path, line: &str) -> Result<T> {
        let text = self.paste(kubeconfig, line).await?.expect_success()?;
        serde_json::from_str(&text).with_context(|| format!("reading the output of `{line}`"))
    }

    /// A log that cannot be written is no reason to stop.
    fn record(&self, ran: &Ran) {
        let Ok(mut log) = OpenOptions::new().create(true).append(true).open(&self.log) else {
            return;
        };
        let (took, code) = (ran.took.as_secs_f32(), ran.code);
        let _ = writeln!(log, "$ {}\n# {took:.1} s, exit {code:?}", shown(&ran.line));
        // Answers for scripts are long and asked for often; the log is for what people read.
        if !ran.line.ends_with("-o json") {
            let _ = write!(log, "{}", ran.stdout);
        }
        let _ = write!(log, "{}", ran.stderr);
    }
}

/// A line without its token's secret: logs are kept and shared.
pub fn shown(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut secret = false;
    for word in line.split_whitespace() {
        let hidden = secret.then(|| word.split_once('.')).flatten();
        words.push(hidden.map_or_else(|| word.to_owned(), |(id, _)| format!("{id}.…")));
        secret = word == "--token";
    }
    words.join(" ")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_shown_line_has_no_secret() {
        let line = "fairlead join --hub https://h:1 --token abcdefgh.0123456789 --member east";
        assert_eq!(shown(line), "fairlead join --hub https://h:1 --token abcdefgh.… --member east");
    }

    #[tokio::test]
    async fn a_command_gets_the_kubeconfig_and_all_it_says_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let desk = Desk::new(folder.path()).unwrap();
        let line = "echo $KUBECONFIG; echo no >&2; exit 3";
        let ran = desk.paste(Path::new("/k"), line).await.unwrap();
        assert_eq!((ran.code, ran.stdout.as_str(), ran.said()), (Some(3), "/k\n", "no"));
        assert!(ran.expect_success().unwrap_err().to_string().contains("code 3: no"));
    }
}
