//! The `fairlead` command line: what people and scripts use to set Fairlead up and to look at it.
//!
//! Owns words on the terminal, exit codes, and the objects that `init` and `join` install. Every
//! change it makes is a Kubernetes object written with the caller's own kubeconfig; what the hub
//! knows it reads through the API server's service proxy. It never speaks the agent protocol, never
//! holds state of its own, and needs no server for `plan`, `--print`, `completion` and `version`.
//!
//! Fails with a `Failure`: what was tried on which object, why it did not work, what to do
//! next, and an exit code. Data goes to standard output, everything else to standard error.

mod agent_state;
mod args;
mod backup;
mod cluster;
mod command;
mod failure;
#[cfg(test)]
mod fake;
mod hub_api;
mod install;
mod migrate;
mod offline;
mod output;
mod progress;
mod yaml;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::Cli;

/// Reads the arguments of the process, does what they ask, and says how it ended.
pub fn main() -> ExitCode {
    start_logging();
    // Two TLS providers in one process panic at first use; kube is built with this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let matches =
        Cli::command().bin_name(args::invoked_as(std::env::args_os().next())).get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a machine that runs a process can give it a timer and a poller");
    match runtime.block_on(command::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", failure.for_people());
            failure.exit().into()
        }
    }
}

/// Logs are for finding bugs of ours: silent unless `RUST_LOG` asks.
fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
