//! Processes that the harness starts, watches, kills and starts again; one log file for each.
//!
//! All of them are started by one thread that lives as long as the harness: the kernel's
//! "die with your parent" is tied to the *thread* that started a child, and worker threads of an
//! async runtime may come and go.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{oneshot, watch},
};

use crate::{
    launch::Launch,
    tool::last_lines,
    wait::{self, Look},
};

/// A program with a name and a log file, running or not.
pub struct Unit {
    name: String,
    log: PathBuf,
    launch: Mutex<Launch>,
    live: Mutex<Option<Live>>,
}

#[derive(Clone)]
struct Live {
    pid: Pid,
    /// `Some` once it has ended: how.
    ended: watch::Receiver<Option<String>>,
}

impl Unit {
    pub fn new(name: impl Into<String>, log: impl Into<PathBuf>, launch: Launch) -> Self {
        Self {
            name: name.into(),
            log: log.into(),
            launch: Mutex::new(launch),
            live: Mutex::new(None),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The launch that the next start uses.
    pub fn set_launch(&self, launch: Launch) {
        *lock(&self.launch) = launch;
    }

    /// Starts the program; an error if it already runs.
    pub async fn start(&self) -> Result<()> {
        if self.is_running() {
            bail!("{} is running already", self.name);
        }
        let spec = serde_json::to_string(&*lock(&self.launch)).context("writing a launch")?;
        let output = OpenOptions::new().create(true).append(true).open(&self.log);
        let output = output.with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["launch", &spec]).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        // A group of its own, so that Ctrl-C reaches the harness alone and teardown has an order.
        command.process_group(0);
        let child = spawn(command).await.with_context(|| format!("starting {}", self.name))?;
        *lock(&self.live) = Some(watch_over(child)?);
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        lock(&self.live).as_ref().is_some_and(|live| live.ended.borrow().is_none())
    }

    pub fn pid(&self) -> Option<u32> {
        let live = lock(&self.live).clone()?;
        let running = live.ended.borrow().is_none();
        running.then(|| live.pid.as_raw().unsigned_abs())
    }

    /// Kills it at once and waits until it is gone. Nothing happens if it does not run.
    pub async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Kills it and its children at once and waits until none of them lives.
    pub async fn kill_family(&self) {
        let children = self.pid().map(children_of).unwrap_or_default();
        self.signal(Signal::SIGKILL);
        for child in &children {
            let _ = kill(*child, Signal::SIGKILL);
        }
        self.ended().await;
        let died = wait::until("children to die", FAMILY_LIMIT, || async {
            Ok(match children.iter().find(|child| lives(**child)) {
                None => Look::Done(()),
                Some(child) => Look::Not(format!("{child} lives")),
            })
        });
        // A killed process that does not die is stuck in the kernel; nothing else can be done.
        let _ = died.await;
    }

    /// Asks it to end, and kills it when it has not done so after `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.kill().await;
        }
    }

    fn signal(&self, signal: Signal) {
        let Some(live) = lock(&self.live).clone() else { return };
        if live.ended.borrow().is_none() {
            // It may end in between; then there is nobody to signal, which is what we want.
            let _ = kill(live.pid, signal);
        }
    }

    /// Waits until it has ended, and says how. At once if it was never started.
    pub async fn ended(&self) -> String {
        let Some(live) = lock(&self.live).clone() else { return "never started".to_owned() };
        let mut ended = live.ended;
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "no longer watched".to_owned(),
        }
    }

    /// Runs `ready`, but fails as soon as the program ends, with the end of its log.
    pub async fn unless_it_ends<T>(&self, ready: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = ready => result.with_context(|| self.story()),
            how = self.ended() => Err(anyhow!("{} ended: {how}", self.name)).context(self.story()),
        }
    }

    /// The end of its log, for error messages.
    pub fn story(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        format!("the end of {}:\n{}", self.log.display(), last_lines(&text, 12))
    }
}

const FAMILY_LIMIT: Duration = Duration::from_secs(5);

/// The processes that a process has started itself.
fn children_of(parent: u32) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw)
        .filter(|pid| stat(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// Whether a process still does something; one that nobody has buried yet does not.
fn lives(pid: Pid) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// State and parent of a process. Its name stands in parentheses and may contain anything.
fn stat(pid: Pid) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Waits for a child in a task of its own, so that it is reaped whoever started it.
fn watch_over(mut child: Child) -> Result<Live> {
    let id = child.id().context("a child without a pid")?;
    let pid = Pid::from_raw(i32::try_from(id).context("a pid out of range")?);
    let (tell, ended) = watch::channel(None);
    tokio::spawn(async move {
        let how = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => format!("lost: {error}"),
        };
        tell.send_replace(Some(how));
    });
    Ok(Live { pid, ended })
}

struct Job {
    command: Command,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<std::io::Result<Child>>,
}

async fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| Mutex::new(start_spawner()));
    let (reply, answer) = oneshot::channel();
    let job = Job { command, runtime: tokio::runtime::Handle::current(), reply };
    lock(spawner).send(job).map_err(|_| anyhow!("the spawner thread is gone"))?;
    answer.await.context("the spawner thread gave no answer")?.context("spawning")
}

fn start_spawner() -> mpsc::Sender<Job> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    std::thread::spawn(move || {
        for mut job in inbox {
            let _runtime = job.runtime.enter();
            let _ = job.reply.send(job.command.spawn());
        }
    });
    jobs
}

/// A panic elsewhere must not keep teardown from its work: the data is plain and stays valid.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn own_children_are_found_until_they_die() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children_of(std::process::id()).contains(&pid));
        assert!(lives(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!lives(pid));
    }
}
