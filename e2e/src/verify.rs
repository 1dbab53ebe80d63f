//! `cargo verify`: everything that CI checks, in order of what it costs to know.
//!
//! Stops at the first step that fails. Ends with a table of steps and one plain line
//! `N passed, M failed`, where tests and facts count one each, and so does a step without tests.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    fleet::program::build_programs,
    path, report, scenario,
    tool::{Toolbox, ensure_cargo_deny},
    world::World,
};

/// Passed and failed tests or facts of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

const ONE_PASSED: Count = Count { passed: 1, failed: 0 };
const ONE_FAILED: Count = Count { passed: 0, failed: 1 };

/// What to check, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Format,
    Clippy,
    Deny,
    Tidy,
    Tests,
    Simulation,
    Docs,
    Tools,
    Chart,
    E2e,
}

const STEPS: &[Step] = &[
    Step::Format,
    Step::Clippy,
    Step::Deny,
    Step::Tidy,
    Step::Tests,
    Step::Simulation,
    Step::Docs,
    Step::Tools,
    Step::Chart,
    Step::E2e,
];

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Clippy => "clippy",
            Self::Deny => "deny",
            Self::Tidy => "tidy",
            Self::Tests => "tests",
            Self::Simulation => "simulation",
            Self::Docs => "docs",
            Self::Tools => "tools",
            Self::Chart => "chart",
            Self::E2e => "e2e",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Format => "every file is formatted",
            Self::Clippy => "no lint warns, in code and tests",
            Self::Deny => "licences, banned crates and sources of dependencies",
            Self::Tidy => "rules about the source itself",
            Self::Tests => "all tests of the workspace",
            Self::Simulation => "fleets on virtual time, with faults",
            Self::Docs => "the documentation builds without warnings",
            Self::Tools => "the pinned tools of the worlds are built",
            Self::Chart => "helm lints the charts",
            Self::E2e => "the core of the scenarios, on one world of real clusters",
        }
    }

    async fn run(self) -> Result<Count> {
        match self {
            Self::Format => cargo(&["fmt", "--all", "--check"], &[]),
            Self::Clippy => {
                cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
            }
            Self::Deny => deny(),
            Self::Tidy => cargo(&["test", "--workspace", "--test", "tidy"], &[]),
            Self::Tests => cargo(&["test", "--workspace"], &[]),
            Self::Simulation => simulate(),
            Self::Docs => {
                let warnings = [("RUSTDOCFLAGS", "-D warnings")];
                cargo(&["doc", "--workspace", "--no-deps"], &warnings)
            }
            Self::Tools => {
                tokio::task::spawn_blocking(Toolbox::ready).await??;
                Ok(ONE_PASSED)
            }
            Self::Chart => lint_charts(),
            Self::E2e => play_core().await,
        }
    }
}

/// One line of the closing table.
struct Ran {
    step: Step,
    took: Duration,
    count: Count,
}

/// Runs the steps of these names, all if there are none; true if all passed.
pub async fn verify(names: &[String]) -> Result<bool> {
    let steps = choose(names)?;
    let mut ran = Vec::new();
    for (number, step) in (1..).zip(&steps) {
        println!("\n── {number}/{} {}: {}", steps.len(), step.name(), step.about());
        let start = Instant::now();
        let count = match step.run().await {
            Ok(count) => count,
            Err(error) => {
                println!("{error:#}");
                ONE_FAILED
            }
        };
        let took = start.elapsed();
        println!("── {}: {} s", step.name(), report::seconds(took));
        ran.push(Ran { step: *step, took, count });
        if count.failed > 0 {
            break;
        }
    }
    Ok(summarise(&steps, &ran))
}

fn choose(names: &[String]) -> Result<Vec<Step>> {
    for name in names {
        if !STEPS.iter().any(|step| step.name() == name) {
            let known: Vec<&str> = STEPS.iter().map(|step| step.name()).collect();
            bail!("there is no step {name}; there are: {}", known.join(", "));
        }
    }
    let wanted = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name());
    Ok(STEPS.iter().filter(wanted).copied().collect())
}

fn summarise(steps: &[Step], ran: &[Ran]) -> bool {
    let mut table = comfy_table::Table::new();
    table.set_header(["step", "seconds", "passed", "failed"]);
    for Ran { step, took, count } in ran {
        table.add_row([
            step.name().to_owned(),
            format!("{:.1}", took.as_secs_f64()),
            count.passed.to_string(),
            count.failed.to_string(),
        ]);
    }
    for step in &steps[ran.len()..] {
        table.add_row([step.name(), "not run", "", ""]);
    }
    let total: Duration = ran.iter().map(|ran| ran.took).sum();
    let passed: usize = ran.iter().map(|ran| ran.count.passed).sum();
    let failed: usize = ran.iter().map(|ran| ran.count.failed).sum();
    println!("\n{table}\n{:.0} s in total", total.as_secs_f64());
    println!("{passed} passed, {failed} failed");
    failed == 0
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<Count> {
    let program = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).current_dir(path::repository()?);
    run_counting(command)
}

/// Runs a command, shows its output and sums up what test harnesses say in it.
fn run_counting(mut command: Command) -> Result<Count> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let output = child.stdout.take().context("a command without output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading a command's output")?;
        println!("{line}");
        if let Some(result) = test_result(&line) {
            count.passed += result.passed;
            count.failed += result.failed;
        }
    }
    let status = child.wait().context("waiting for a command")?;
    match (status.success(), count) {
        (true, Count { passed: 0, failed: 0 }) => Ok(ONE_PASSED),
        (true, count) => Ok(count),
        (false, Count { failed: 0, .. }) => Ok(Count { failed: 1, ..count }),
        (false, count) => Ok(count),
    }
}

/// Reads `test result: ok. 5 passed; 0 failed; …`.
fn test_result(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        rest.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse::<usize>().ok())
    };
    Some(Count { passed: number(" passed")?, failed: number(" failed")? })
}

/// Bounded twice: the seeds, so that they are the same everywhere, and the time, for slow machines.
fn simulate() -> Result<Count> {
    // With the features of the whole workspace: those of one package alone build its dependencies anew.
    let built = cargo(&["build", "--quiet", "--workspace", "--bin", "fairlead-sim"], &[])?;
    if built.failed > 0 {
        return Ok(built);
    }
    let mut command = Command::new(crate::fleet::program::program("fairlead-sim")?);
    command.args(["--seeds", "1500", "--seconds", "45"]).current_dir(path::repository()?);
    run_counting(command)
}

fn deny() -> Result<Count> {
    let program = ensure_cargo_deny()?;
    let mut command = Command::new(program);
    command.args(["--workspace", "check", "bans", "licenses", "sources"]);
    command.current_dir(path::repository()?);
    run_counting(command)
}

fn lint_charts() -> Result<Count> {
    let charts = path::repository()?.join("deploy/chart");
    let mut folders = Vec::new();
    collect_charts(&charts, &mut folders)?;
    if folders.is_empty() {
        println!("there are no charts yet");
        return Ok(Count::default());
    }
    let helm = Toolbox::ready()?.helm;
    let mut count = Count::default();
    for folder in folders {
        let mut command = Command::new(&helm);
        command.args(["lint", "--strict"]).arg(&folder);
        let one = run_counting(command)?;
        count.passed += one.passed;
        count.failed += one.failed;
    }
    Ok(count)
}

/// A folder with a Chart.yaml is a chart; charts inside a chart are its own affair.
fn collect_charts(folder: &std::path::Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if folder.join("Chart.yaml").is_file() {
        found.push(folder.to_owned());
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut entries: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    for entry in entries.iter().filter(|entry| entry.is_dir()) {
        collect_charts(entry, found)?;
    }
    Ok(())
}

async fn play_core() -> Result<Count> {
    tokio::task::spawn_blocking(build_programs).await??;
    let in_verify = |s: &&scenario::Scenario| s.played == scenario::Played::ByVerify;
    let scenarios: Vec<&scenario::Scenario> = scenario::ALL.iter().filter(in_verify).collect();
    let world = World::up(scenario::world_for(&scenarios)).await?;
    let mut count = Count::default();
    for scenario in scenarios {
        let facts = scenario::play(scenario, &world).await?;
        count.passed += facts.passed();
        count.failed += facts.failed();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_harnesses_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; finished";
        assert_eq!(test_result(line), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(test_result("test tidy ... ok"), None);
    }

    #[test]
    fn a_command_without_tests_counts_one() {
        let mut good = Command::new("sh");
        good.args(["-c", "echo hello"]);
        assert_eq!(run_counting(good).ok(), Some(ONE_PASSED));
        let mut bad = Command::new("sh");
        bad.args(["-c", "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 3"]);
        assert_eq!(run_counting(bad).ok(), Some(Count { passed: 2, failed: 1 }));
    }
}
