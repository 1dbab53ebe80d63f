//! The live table: entry × target, rates and errors of the last second.
//!
//! Redrawn in place on a terminal; elsewhere one plain line every few seconds. Decides nothing.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    time::Duration,
};

use tokio::time::Instant;

use crate::load::Report;

/// What one line of the table is about: answers that arrived in this much time.
const WINDOW: Duration = Duration::from_secs(1);
/// How often a plain line is printed.
const PLAIN_PERIOD: Duration = Duration::from_secs(2);

/// Requests that ended within the window, by entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Cells {
    by_target: BTreeMap<String, usize>,
    failed: usize,
}

impl Cells {
    fn total(&self) -> usize {
        self.by_target.values().sum::<usize>() + self.failed
    }
}

fn count(report: &Report, now: Duration) -> BTreeMap<String, Cells> {
    let mut cells: BTreeMap<String, Cells> = BTreeMap::new();
    let since = now.saturating_sub(WINDOW);
    for sample in report.samples() {
        let ended = sample.started + sample.took;
        if ended < since || ended > now {
            continue;
        }
        let cell = cells.entry(sample.entry.clone()).or_default();
        if sample.outcome.is_success() && !sample.outcome.target.is_empty() {
            *cell.by_target.entry(sample.outcome.target.clone()).or_default() += 1;
        } else {
            cell.failed += 1;
        }
    }
    cells
}

/// The table as lines. `members` are rows and columns.
fn lines(report: &Report, now: Duration, members: &[String]) -> Vec<String> {
    let cells = count(report, now);
    let mut head = format!("  {:<12}", "entry");
    for target in members {
        head += &format!("{:>11}", format!("→ {target}"));
    }
    head += &format!("{:>11}{:>11}", "failed", "all");
    let mut lines = vec![head];
    for entry in members {
        let cell = cells.get(entry).cloned().unwrap_or_default();
        let mut line = format!("  {entry:<12}");
        for target in members {
            let rate = cell.by_target.get(target).copied().unwrap_or_default();
            line += &format!("{:>11}", format!("{rate}/s"));
        }
        line +=
            &format!("{:>11}{:>11}", format!("{}/s", cell.failed), format!("{}/s", cell.total()));
        lines.push(line);
    }
    lines
}

/// The same in one line.
fn plain(report: &Report, now: Duration, members: &[String]) -> String {
    let cells = count(report, now);
    let of_entry = |entry: &String| {
        let cell = cells.get(entry).cloned().unwrap_or_default();
        let targets: Vec<String> =
            cell.by_target.iter().map(|(target, rate)| format!("{target} {rate}/s")).collect();
        format!("{entry} → {}, failed {}/s", targets.join(" "), cell.failed)
    };
    let entries: Vec<String> = members.iter().map(of_entry).collect();
    format!("  {:>5.1} s  {}", now.as_secs_f32(), entries.join(" | "))
}

/// Where the table goes.
pub(super) struct Screen {
    members: Vec<String>,
    is_terminal: bool,
    drawn: usize,
    printed: Option<Instant>,
}

impl Screen {
    pub(super) fn new(members: Vec<String>) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self { members, is_terminal, drawn: 0, printed: None }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows the newest figures.
    pub(super) fn show(&mut self, report: &Report, now: Duration) {
        if self.is_terminal {
            self.redraw(&lines(report, now, &self.members));
        } else if self.printed.is_none_or(|at| at.elapsed() >= PLAIN_PERIOD) {
            self.printed = Some(Instant::now());
            println!("{}", plain(report, now, &self.members));
        }
    }

    /// A sentence that stays; the table goes on below it.
    pub(super) fn say(&mut self, text: &str) {
        self.erase();
        println!("{text}");
        self.printed = None;
    }

    fn redraw(&mut self, lines: &[String]) {
        self.erase();
        println!("{}", lines.join("\n"));
        self.drawn = lines.len();
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            // Up, and clear to the end of the screen.
            print!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
        let _ = std::io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Outcome, Sample};

    fn mk_sample(entry: &str, ended_ms: u64, target: &str, status: u16) -> Sample {
        Sample {
            entry: entry.into(),
            started: Duration::from_millis(ended_ms - 1),
            took: Duration::from_millis(1),
            outcome: Outcome { status, target: target.into(), ..Outcome::default() },
        }
    }

    #[test]
    fn only_the_last_second_counts_and_failures_are_apart() {
        let report = Report::new(vec![
            mk_sample("east", 500, "east", 200),
            mk_sample("east", 1500, "west", 200),
            mk_sample("east", 1600, "", 503),
        ]);
        let members = ["east".to_owned(), "west".to_owned()];
        let line = plain(&report, Duration::from_secs(2), &members);
        assert_eq!(line, "    2.0 s  east → west 1/s, failed 1/s | west → , failed 0/s");
        let table = lines(&report, Duration::from_secs(2), &members);
        assert_eq!(table.len(), 3);
        assert!(table[1].ends_with("0/s        1/s        1/s        2/s"), "{}", table[1]);
    }
}
