//! `fairlead completion`: completion scripts, from the same definition as the help texts.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

const AFTER_HELP: &str = "\
EXAMPLES
  source <(fairlead completion bash)
  fairlead completion zsh > \"${fpath[1]}/_fairlead\"
  fairlead completion fish > ~/.config/fish/completions/fairlead.fish";

/// Arguments of `completion`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &CompletionArgs) {
    output::print(&script(args.shell));
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fairlead", &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            assert!(script(shell).contains("explain"), "{shell}");
        }
    }
}
