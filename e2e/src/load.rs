//! The load client: many requests, each of which is accounted for.
//!
//! Open loop (a fixed rate, whatever the answers do) or a fixed number with bounded concurrency;
//! connections kept or fresh for each request. Every request becomes one [`Sample`]: when it
//! started, how long it took, who answered. Never retries; a failure is a sample, not an error.

mod account;
mod client;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

pub use self::account::{Outcome, Report, Sample, Tally};
pub(crate) use self::account::{quantile_index, ratio};
use self::client::Target;

/// A gateway through which requests enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub address: SocketAddr,
}

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many per second over all entries, until stopped or for so long.
    Rate { per_second: f64, lasting: Option<Duration> },
    /// So many per entry, at most so many at once per entry.
    Count { requests: u64, at_once: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// HTTP/1.1 keep-alive: idle connections are used again.
    Kept,
    /// A new connection for each request.
    Fresh,
}

/// What to send where.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    pub entries: Vec<Entry>,
    pub host: String,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub pace: Pace,
    pub connections: Connections,
    pub timeout: Duration,
}

impl Load {
    /// A load with the usual settings: kept connections, 2 s timeout, one request.
    pub fn new(host: &str, path: &str) -> Self {
        Self {
            entries: Vec::new(),
            host: host.into(),
            path: path.into(),
            headers: Vec::new(),
            pace: Pace::Count { requests: 1, at_once: 1 },
            connections: Connections::Kept,
            timeout: Duration::from_secs(2),
        }
    }

    #[must_use]
    pub fn entry(mut self, name: &str, address: impl Into<SocketAddr>) -> Self {
        self.entries.push(Entry { name: name.into(), address: address.into() });
        self
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn requests(mut self, requests: u64, at_once: usize) -> Self {
        self.pace = Pace::Count { requests, at_once };
        self
    }

    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        self.pace = Pace::Rate { per_second, lasting: None };
        self
    }

    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        if let Pace::Rate { lasting, .. } = &mut self.pace {
            *lasting = Some(time);
        }
        self
    }

    #[must_use]
    pub fn fresh_connections(mut self) -> Self {
        self.connections = Connections::Fresh;
        self
    }

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts sending in the background.
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            timeout: self.timeout,
            stop: AtomicBool::new(false),
            samples: Mutex::new(Vec::new()),
        });
        let task = tokio::spawn(drive(self, shared.clone()));
        Running { shared, task }
    }

    /// Sends all and waits for the last answer.
    pub async fn run(self) -> Report {
        self.start().finish().await
    }
}

struct Shared {
    start: Instant,
    timeout: Duration,
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
}

impl Shared {
    fn samples(&self) -> std::sync::MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load that is being sent. Dropping it stops it and forgets its samples.
pub struct Running {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Running {
    /// Time since the first request; the clock of [`Sample::started`].
    pub fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// What has been answered so far.
    pub fn so_far(&self) -> Report {
        Report::new(self.shared.samples().clone())
    }

    /// Of the requests so far those that were started so long ago that all of them have ended: what
    /// hangs is not mistaken for what went well.
    pub fn settled(&self) -> Report {
        let known = self.now().saturating_sub(self.shared.timeout);
        self.so_far().only(|sample| sample.started < known)
    }

    /// Starts no more requests, waits for those under way, and accounts for all.
    pub async fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    /// Waits until all requests are answered; safe to give up and to call again.
    pub async fn wait(&mut self) {
        if !self.task.is_finished() {
            // A panic of a request's task has been printed; its samples count as far as they go.
            let _ = (&mut self.task).await;
        }
    }

    /// Waits until it ends by itself.
    pub async fn finish(mut self) -> Report {
        self.wait().await;
        Report::new(std::mem::take(&mut *self.shared.samples()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive(load: Load, shared: Arc<Shared>) {
    let targets: Vec<Arc<Target>> =
        load.entries.iter().map(|entry| Arc::new(Target::new(entry.clone(), &load))).collect();
    match load.pace {
        Pace::Rate { per_second, lasting } => {
            drive_rate(&targets, per_second, lasting, &shared).await;
        }
        Pace::Count { requests, at_once } => {
            let mut entries = JoinSet::new();
            for target in targets {
                entries.spawn(drive_count(target, requests, at_once, shared.clone()));
            }
            entries.join_all().await;
        }
    }
}

/// More requests under way than this are a stuck gateway; they would exhaust file handles.
const UNDER_WAY_MAX: usize = 4000;

/// Sends at fixed times, entries in turn. A late timer sends what it owes at once, so the number
/// of requests is exact; each sample carries the time at which it was really sent.
async fn drive_rate(
    targets: &[Arc<Target>],
    per_second: f64,
    lasting: Option<Duration>,
    shared: &Arc<Shared>,
) {
    if targets.is_empty() || per_second <= 0.0 {
        return;
    }
    let gap = Duration::from_secs_f64(1.0 / per_second);
    let mut under_way = JoinSet::new();
    let mut due = shared.start;
    for target in targets.iter().cycle() {
        let over = lasting.is_some_and(|lasting| due - shared.start >= lasting);
        if over || shared.stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep_until(due).await;
        while under_way.try_join_next().is_some() || under_way.len() >= UNDER_WAY_MAX {
            if under_way.len() >= UNDER_WAY_MAX {
                under_way.join_next().await;
            }
        }
        under_way.spawn(send_one(target.clone(), shared.clone()));
        due += gap;
    }
    under_way.join_all().await;
}

async fn drive_count(target: Arc<Target>, requests: u64, at_once: usize, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(at_once.max(1)));
    let mut under_way = JoinSet::new();
    for _ in 0..requests {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        // Fails only if the semaphore is closed, which nobody does.
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        while under_way.try_join_next().is_some() {}
        let (target, shared) = (target.clone(), shared.clone());
        under_way.spawn(async move {
            send_one(target, shared).await;
            drop(slot);
        });
    }
    under_way.join_all().await;
}

async fn send_one(target: Arc<Target>, shared: Arc<Shared>) {
    let started = shared.start.elapsed();
    let outcome = target.send().await;
    let took = shared.start.elapsed() - started;
    let sample = Sample { entry: target.name().to_owned(), started, took, outcome };
    shared.samples().push(sample);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refused_connections_are_counted_not_fatal() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let report = Load::new("h", "/").entry("e", address).requests(7, 2).run().await;
        assert_eq!(report.samples().len(), 7);
        assert_eq!(report.failed(), 7);
    }

    #[tokio::test]
    async fn a_rate_sends_what_it_owes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let load = Load::new("h", "/").entry("a", address).entry("b", address);
        let report = load.rate(200.0).lasting(Duration::from_millis(500)).run().await;
        assert_eq!(report.samples().len(), 100);
        let from_a = report.samples().iter().filter(|sample| sample.entry == "a").count();
        assert_eq!(from_a, 50);
    }
}
