//! The `fairlead` binary, also `kubectl-fairlead` by another name. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairlead_cli::main()
}
