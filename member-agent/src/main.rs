//! `fairlead-agent`: the process in a member cluster.

use clap::Parser as _;
use fairlead_agent::{args, run};

fn main() -> anyhow::Result<()> {
    // Two crypto providers in one process panic at first use: name ours before anything else.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args::Cli { command } = args::Cli::parse();
    let args::Command::Run(args) = command;
    args.log_format.install();
    // Two threads: the agent waits nearly always, and members have better things to do with memory.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime?.block_on(run::run(args))
}
