//! The arguments: global options and the list of commands. Each command's own are in its module.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::command::{
    backup, completion, diff, drain, explain, failback, get, history, init, join, leave, migrate,
    plan, restore, rollback, rotate, status, token, top, trace, trust,
};

const AFTER_HELP: &str = "\
EXAMPLES
  Set up a hub in the cluster of the current context:
    fairlead init --advertise https://hub.example.com:8443
  Print the line that joins a cluster, then run that line with the cluster's kubeconfig:
    fairlead token create --member eu-1
  See how all is, and why a route's traffic goes where it goes:
    fairlead status
    fairlead explain shop/cart --from eu-1
  See what every member would get, without any server:
    fairlead plan ./fleet

EXIT CODES
  0  done
  1  failed or refused; standard error says what, why and what to do
  2  the arguments make no sense; nothing was tried
  3  done, but its effect did not show before --timeout

Run as kubectl-fairlead somewhere on PATH, this is `kubectl fairlead`.";

/// Federates traffic between Kubernetes clusters with standard Gateway API objects.
///
/// A hub collects the Gateways and exported Services of every member cluster and gives each member
/// the routes that spread traffic over all of them. Join clusters, declare global routes in the hub
/// with kubectl, and look at what happens with this tool.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster to talk to, and where Fairlead lives in it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct Connection {
    /// Path of the kubeconfig; without it KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; without it the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Namespace where Fairlead lives.
    #[arg(long, global = true, value_name = "NAME", default_value = fairlead_crds::keys::NAMESPACE)]
    pub(crate) namespace: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the hub into the cluster of the kubeconfig.
    Init(Box<init::InitArgs>),
    /// Make, list and delete join tokens (in the hub's cluster).
    Token(token::TokenArgs),
    /// Make the cluster of the kubeconfig a member of a hub.
    Join(Box<join::JoinArgs>),
    /// Take everything of Fairlead out of the cluster of the kubeconfig again.
    Leave(leave::LeaveArgs),
    /// Say in a few lines how hub and members are, and what to do about it.
    Status(status::StatusArgs),
    /// List members, gateways, services or routes as the hub knows them.
    Get(get::GetArgs),
    /// Say why a route's traffic goes where it goes.
    Explain(explain::ExplainArgs),
    /// Show what was decided before, why, and what moved.
    History(history::HistoryArgs),
    /// Show what differs between two revisions of what was decided.
    Diff(diff::DiffArgs),
    /// Lead a route back to what it was before, or release it again.
    Rollback(rollback::RollbackArgs),
    /// Give members that were out of health their traffic back.
    Failback(failback::FailbackArgs),
    /// Lead a member's traffic away.
    Drain(drain::DrainArgs),
    /// Give a drained member its traffic back.
    Undrain(drain::UndrainArgs),
    /// Save everything that the hub cannot rebuild.
    Backup(backup::BackupArgs),
    /// Make what a backup holds in a new hub cluster.
    Restore(restore::RestoreArgs),
    /// Change the hub's CA, the keys of capabilities or a member's crossing CA, while everything goes on.
    Rotate(rotate::RotateArgs),
    /// Show whose crossing CA this member believes, or confirm another one.
    Trust(trust::TrustArgs),
    /// Turn what other systems have into global routes, to review.
    Migrate(migrate::MigrateArgs),
    /// Show what flows at present: rates, errors and latencies by entry and target.
    Top(top::TopArgs),
    /// Show the newest traces of a global route, from Jaeger.
    Trace(trace::TraceArgs),
    /// Work out what every member would get from folders of YAML, without any server.
    Plan(plan::PlanArgs),
    /// Print the completion script of a shell.
    Completion(completion::CompletionArgs),
    /// Print the version of this tool.
    Version,
}

/// The name that help texts show: `kubectl fairlead` when run as a plugin of kubectl.
pub(crate) fn invoked_as(program: Option<OsString>) -> &'static str {
    let program = program.unwrap_or_default();
    let name = Path::new(&program).file_stem().and_then(|name| name.to_str()).unwrap_or("");
    if name.starts_with("kubectl-") { "kubectl fairlead" } else { "fairlead" }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_kubectl_plugin_calls_itself_so() {
        assert_eq!(invoked_as(Some("/usr/bin/kubectl-fairlead".into())), "kubectl fairlead");
        assert_eq!(invoked_as(Some("./fairlead".into())), "fairlead");
        assert_eq!(invoked_as(None), "fairlead");
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["fairlead", "status", "--context", "hub"]).unwrap();
        assert_eq!(cli.connection.context.as_deref(), Some("hub"));
        assert_eq!(cli.connection.namespace, "fairlead-system");
    }

    #[test]
    fn every_command_and_option_has_a_help_text() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}
