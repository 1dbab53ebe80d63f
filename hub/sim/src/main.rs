//! `fairlead-sim`: plays seeds, one after the other, or a script.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use fairlead_sim::bug::Bug;
use fairlead_sim::run::{Keep, run};
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
    if let Some(seed) = args.seed {
        return tell(seed, bug);
    }
    play(args, bug)
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

fn play(args: &Args, bug: Bug) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut failed, mut virtual_ms, mut longest) = (0_u64, 0_u64, (0, 0));
    let mut played = 0_u64;
    for seed in args.from..args.from.saturating_add(args.seeds) {
        let outcome = run(seed, bug, Keep::Nothing);
        played += 1;
        virtual_ms += outcome.ms;
        longest = longest.max((outcome.rest_ms, seed));
        if let Some(violation) = outcome.violation {
            failed += 1;
            println!("seed {seed}: at {} ms: {}", violation.at, violation.text);
            println!("    cargo run -p fairlead-sim -- --seed {seed}");
            if !args.keep_going {
                break;
            }
        }
    }
    let took = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (rate, hours) = (played as f64 / took, virtual_ms as f64 / 3_600_000.0);
    println!(
        "{played} seeds in {took:.1} s ({rate:.0} seeds/s, {hours:.1} hours of virtual time), {failed} failed; \
         the longest way to rest took {} ms (seed {})",
        longest.0, longest.1
    );
    anyhow::ensure!(failed == 0, "{failed} of {played} seeds failed");
    Ok(())
}
