//! What scenarios and benches leave behind: a line per fact on the terminal, JSON in a file.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{load::quantile_index, path};

/// Named figures of a fact.
pub type Figures = BTreeMap<String, Value>;

/// Makes [`Figures`] from pairs.
pub fn figures<const N: usize>(pairs: [(&str, Value); N]) -> Figures {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What a look at a fact found.
pub struct Finding {
    pub holds: Holds,
    pub figures: Figures,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Yes,
    No,
}

impl Finding {
    pub fn new(holds: bool, figures: Figures) -> Self {
        Self { holds: if holds { Holds::Yes } else { Holds::No }, figures }
    }
}

/// One fact of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    pub id: String,
    pub name: String,
    pub passed: bool,
    pub figures: Figures,
}

/// The facts of one scenario, in their order.
pub struct Facts {
    scenario: String,
    start: Instant,
    facts: Vec<Fact>,
}

impl Facts {
    pub fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), start: Instant::now(), facts: Vec::new() }
    }

    /// Looks at one fact and prints its line. An error is a fact that does not hold; the
    /// scenario goes on, as others may still tell something.
    pub async fn look(
        &mut self,
        id: &str,
        name: &str,
        look: impl Future<Output = Result<Finding>>,
    ) -> Holds {
        let (holds, figures) = match look.await {
            Ok(finding) => (finding.holds, finding.figures),
            Err(error) => (Holds::No, figures([("error", json!(format!("{error:#}")))])),
        };
        let passed = holds == Holds::Yes;
        let fact = Fact { id: id.into(), name: name.into(), passed, figures };
        println!("{}", line(&fact));
        self.facts.push(fact);
        holds
    }

    /// Says that a fact was not looked at, and why. It counts neither as passed nor as failed.
    pub fn skip(&self, id: &str, name: &str, why: &str) {
        println!("– {id:<4} {name}: not looked at: {why}");
    }

    pub fn passed(&self) -> usize {
        self.facts.iter().filter(|fact| fact.passed).count()
    }

    pub fn failed(&self) -> usize {
        self.facts.len() - self.passed()
    }

    /// Writes `target/e2e/<scenario>.json`. A scenario without facts has not passed.
    pub fn write(&self) -> Result<PathBuf> {
        let text = json!({
            "scenario": self.scenario,
            "passed": self.failed() == 0 && !self.facts.is_empty(),
            "took_s": seconds(self.start.elapsed()),
            "facts": self.facts,
        });
        write_json(&format!("{}.json", self.scenario), &text)
    }
}

fn line(fact: &Fact) -> String {
    let mark = if fact.passed { '✔' } else { '✘' };
    let mut figures: Vec<String> = Vec::new();
    for (name, value) in &fact.figures {
        match value {
            Value::String(text) => figures.push(format!("{name} {text}")),
            other => figures.push(format!("{name} {other}")),
        }
    }
    let separator = if figures.is_empty() { "" } else { "  " };
    format!("{mark} {:<4} {}{separator}{}", fact.id, fact.name, figures.join(", "))
}

/// One row of a bench.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub n: usize,
    pub median: f64,
    pub p99: f64,
    pub max: f64,
    pub unit: String,
}

impl Row {
    /// Sums up measurements in a unit; without any, all figures are 0.
    pub fn new(name: &str, unit: &str, values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quantile| sorted.get(quantile_index(sorted.len(), quantile)).copied();
        Self {
            name: name.into(),
            n: sorted.len(),
            median: at(0.5).unwrap_or_default(),
            p99: at(0.99).unwrap_or_default(),
            max: sorted.last().copied().unwrap_or_default(),
            unit: unit.into(),
        }
    }
}

/// Prints a bench as a table and writes `target/e2e/bench-<name>.json`.
pub fn write_bench(name: &str, rows: &[Row]) -> Result<PathBuf> {
    let mut table = comfy_table::Table::new();
    table.set_header(["", "n", "median", "p99", "max", "unit"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.n.to_string(),
            format!("{:.1}", row.median),
            format!("{:.1}", row.p99),
            format!("{:.1}", row.max),
            row.unit.clone(),
        ]);
    }
    println!("{table}");
    write_json(&format!("bench-{name}.json"), &json!({"bench": name, "rows": rows}))
}

fn write_json(name: &str, value: &Value) -> Result<PathBuf> {
    let file = path::reports()?.join(name);
    let text = serde_json::to_string_pretty(value).context("writing a report")?;
    fs::write(&file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Seconds with two digits.
pub fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

/// Milliseconds with one digit.
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_mark_id_name_and_figures() {
        let fact = Fact {
            id: "b1".into(),
            name: "splits 80/20".into(),
            passed: true,
            figures: figures([("west", json!(0.81)), ("why", json!("text"))]),
        };
        assert_eq!(line(&fact), "✔ b1   splits 80/20  west 0.81, why text");
    }

    #[test]
    fn rows_sum_up() {
        let row = Row::new("x", "ms", &[3.0, 1.0, 2.0]);
        assert_eq!((row.n, row.median, row.p99, row.max), (3, 2.0, 3.0, 3.0));
        assert_eq!(Row::new("x", "ms", &[]).median, 0.0);
    }
}
