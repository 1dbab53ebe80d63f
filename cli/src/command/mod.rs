//! One module per command.
//!
//! Each reads its arguments, asks the cluster, decides in plain functions, and prints.

pub(crate) mod backup;
pub(crate) mod completion;
pub(crate) mod diff;
pub(crate) mod drain;
pub(crate) mod explain;
pub(crate) mod failback;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod leave;
pub(crate) mod migrate;
pub(crate) mod plan;
pub(crate) mod restore;
pub(crate) mod rollback;
pub(crate) mod rotate;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod trust;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::output;

/// Does what the arguments ask.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let connection = &cli.connection;
    match cli.command {
        Command::Init(args) => init::run(connection, &args).await,
        Command::Token(args) => token::run(connection, &args).await,
        Command::Join(args) => join::run(connection, &args).await,
        Command::Leave(args) => leave::run(connection, &args).await,
        Command::Status(args) => status::run(connection, &args).await,
        Command::Get(args) => get::run(connection, &args).await,
        Command::Explain(args) => explain::run(connection, &args).await,
        Command::History(args) => history::run(connection, &args).await,
        Command::Diff(args) => diff::run(connection, &args).await,
        Command::Rollback(args) => rollback::run(connection, &args).await,
        Command::Failback(args) => failback::run(connection, &args).await,
        Command::Drain(args) => drain::run(connection, &args).await,
        Command::Undrain(args) => drain::run_undrain(connection, &args).await,
        Command::Backup(args) => backup::run(connection, &args).await,
        Command::Restore(args) => restore::run(connection, &args).await,
        Command::Rotate(args) => rotate::run(connection, &args).await,
        Command::Trust(args) => trust::run(connection, &args).await,
        Command::Migrate(args) => migrate::run(connection, &args).await,
        Command::Plan(args) => plan::run(&args),
        Command::Top(args) => top::run(connection, &args).await,
        Command::Trace(args) => trace::run(&args).await,
        Command::Completion(args) => {
            completion::run(&args);
            Ok(())
        }
        Command::Version => {
            output::print(&format!("fairlead {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    }
}
