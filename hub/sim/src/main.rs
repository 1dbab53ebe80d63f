//! `fairlead-sim`: plays seeds on all cores, or one seed or script with all that happens in it. Fails
//! when something happened that must never be, and says how to see it again.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use fairlead_sim::bug::Bug;
use fairlead_sim::run::{Keep, Outcome, run};
use fairlead_sim::script;

/// Plays fleets on virtual time, with faults, and looks for what must never be.
#[derive(Debug, Parser)]
struct Args {
    /// Play this seed alone and tell everything.
    #[arg(long)]
    seed: Option<u64>,
    /// Play so many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Begin no seed after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Threads; as many as there are cores when not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Play a script and print what happens.
    #[arg(long)]
    script: Option<std::path::PathBuf>,
    /// Go on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// Plant a bug, to see it caught.
    #[arg(long)]
    bug: Option<String>,
}

fn main() -> ExitCode {
    match play_all(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play_all(args: &Args) -> anyhow::Result<()> {
    let bug = planted(args.bug.as_deref())?;
    if let Some(path) = &args.script {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        print!("{}", script::play(&text).map_err(anyhow::Error::msg)?);
        return Ok(());
    }
    match args.seed {
        Some(seed) => tell(seed, bug),
        None => play(args, bug),
    }
}

fn planted(name: Option<&str>) -> anyhow::Result<Bug> {
    let Some(name) = name else { return Ok(Bug::None) };
    let bug = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    bug.with_context(|| format!("{name} is none of {:?}", Bug::ALL))
}

/// Plays one seed and tells everything.
fn tell(seed: u64, bug: Bug) -> anyhow::Result<()> {
    let outcome = run(seed, bug, Keep::Log);
    for line in &outcome.log {
        println!("{line}");
    }
    match outcome.violation {
        None => println!("at rest {} ms after the last fault", outcome.rest_ms),
        Some(violation) => anyhow::bail!("at {} ms: {}", violation.at, violation.text),
    }
    Ok(())
}

/// What many runs came to.
#[derive(Debug, Default)]
struct Sum {
    played: u64,
    failed: u64,
    virtual_ms: u64,
    /// The longest way to rest, and its seed.
    longest: (u64, u64),
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.played += 1;
        self.virtual_ms += outcome.ms;
        self.longest = self.longest.max((outcome.rest_ms, seed));
        let Some(violation) = &outcome.violation else { return };
        self.failed += 1;
        println!("seed {seed}: at {} ms: {}", violation.at, violation.text);
        println!("    cargo run -p fairlead-sim -- --seed {seed}");
    }
}

fn play(args: &Args, bug: Bug) -> anyhow::Result<()> {
    let started = Instant::now();
    let until = args.seconds.map(|seconds| started + Duration::from_secs(seconds));
    let end = args.from.saturating_add(args.seeds);
    let (next, stop, sum) = (AtomicU64::new(args.from), AtomicBool::new(false), Mutex::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(seed, bug, Keep::Nothing);
            if outcome.violation.is_some() && !args.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
            let mut sum: std::sync::MutexGuard<'_, Sum> =
                sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.add(seed, &outcome);
        }
    };
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(cores).max(1) {
            scope.spawn(work);
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    say(&sum, started.elapsed().as_secs_f64());
    anyhow::ensure!(sum.failed == 0, "{} of {} seeds failed", sum.failed, sum.played);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn say(sum: &Sum, took: f64) {
    let (rate, hours) = (sum.played as f64 / took, sum.virtual_ms as f64 / 3_600_000.0);
    println!(
        "{} seeds in {took:.1} s ({rate:.0} seeds/s, {hours:.1} hours of virtual time), {} failed; \
         the longest way to rest took {} ms (seed {})",
        sum.played, sum.failed, sum.longest.0, sum.longest.1
    );
}
