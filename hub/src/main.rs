//! The hub's process.

use clap::Parser as _;
use fairlead_hub::args::{Args, Command};

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Command::Run(run) = args.command;
    fairlead_hub::telemetry::init(run.log_format)?;
    fairlead_hub::run::run(run)
}
