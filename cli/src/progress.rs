//! Steps on standard error: what was done, what is odd, what is being waited for.
//!
//! A spinner when standard error is a terminal, plain lines otherwise, each line once. Never prints
//! data: that is standard output's.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Where the steps of a command go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steps {
    /// A terminal: spinners while waiting.
    Terminal,
    /// A file or a pipe: plain lines.
    Plain,
    /// Nowhere, for tests and for commands whose output is data alone.
    #[cfg(test)]
    Silent,
}

impl Steps {
    /// What standard error is.
    pub(crate) fn for_stderr() -> Self {
        if std::io::stderr().is_terminal() { Self::Terminal } else { Self::Plain }
    }

    /// A step that is done.
    pub(crate) fn done(self, text: impl AsRef<str>) {
        self.line("✔", text.as_ref());
    }

    /// A step that is done, with something to know about it.
    pub(crate) fn warn(self, text: impl AsRef<str>) {
        self.line("!", text.as_ref());
    }

    /// A remark.
    pub(crate) fn say(self, text: impl AsRef<str>) {
        self.line(" ", text.as_ref());
    }

    fn line(self, mark: &str, text: &str) {
        match self {
            Self::Terminal | Self::Plain => eprintln!("{mark} {}", text.replace('\n', "\n  ")),
            #[cfg(test)]
            Self::Silent => {}
        }
    }

    /// Starts to wait for something.
    pub(crate) fn wait(self, text: impl Into<String>) -> Waiting {
        let text = text.into();
        let bar = (self == Self::Terminal).then(|| spinner(&text));
        if self == Self::Plain {
            eprintln!("… {text}");
        }
        Waiting { steps: self, bar, shown: text }
    }
}

fn spinner(text: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
        .expect("the template is fixed and tested");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Something that is being waited for; its line goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    steps: Steps,
    bar: Option<ProgressBar>,
    shown: String,
}

impl Waiting {
    /// Shows how far it is; the same text twice is shown once.
    pub(crate) fn show(&mut self, text: &str) {
        if text == self.shown {
            return;
        }
        self.shown = text.to_owned();
        match &self.bar {
            Some(bar) => bar.set_message(self.shown.clone()),
            None => self.steps.line("…", text),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spinner_template_is_valid() {
        spinner("x").finish_and_clear();
    }
}
