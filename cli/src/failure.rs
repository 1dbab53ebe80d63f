//! How a command ends when it does not do what it was asked, and the exit codes.
//!
//! Owns the form of every error that people see: the object and what was tried, the reason, the next
//! step. It never guesses a next step: a failure without one is only for what explains itself.

use std::process::ExitCode;

/// How the process ends. The numbers are documented in the help text and in docs/guide/cli.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked could not be done, or was refused.
    Failed = 1,
    /// The arguments make no sense; nothing was tried.
    Usage = 2,
    /// What was asked was done, but its effect did not show in time.
    TimedOut = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub(crate) struct Failure {
    exit: Exit,
    /// The object and what was tried, e.g. `cannot read Secret fairlead-system/x`.
    what: String,
    /// The reason as whoever refused it gave it.
    why: String,
    /// What the user can do.
    next: Option<String>,
}

impl Failure {
    /// Could not be done.
    pub(crate) fn failed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::new(Exit::Failed, what.into(), why.to_string())
    }

    /// Arguments that make no sense.
    pub(crate) fn usage(what: impl Into<String>, why: impl ToString) -> Self {
        Self::new(Exit::Usage, what.into(), why.to_string())
    }

    /// The effect did not show in time.
    pub(crate) fn timed_out(what: impl Into<String>, why: impl ToString) -> Self {
        Self::new(Exit::TimedOut, what.into(), why.to_string())
    }

    fn new(exit: Exit, what: String, why: String) -> Self {
        Self { exit, what, why, next: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The reason.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// The lines for standard error.
    pub(crate) fn for_people(&self) -> String {
        let Self { what, why, next, .. } = self;
        let mut text = format!("error: {what}: {why}\n");
        if let Some(next) = next {
            text.push_str(&format!("  next: {}\n", next.replace('\n', "\n        ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_object_reason_and_next_step() {
        let failure =
            Failure::failed("cannot read Secret a/b", "not found").next("create it\nor not");
        assert_eq!(
            failure.for_people(),
            "error: cannot read Secret a/b: not found\n  next: create it\n        or not\n"
        );
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [Exit::Failed, Exit::Usage, Exit::TimedOut].map(|exit| exit as u8);
        assert_eq!(codes, [1, 2, 3]);
    }
}
