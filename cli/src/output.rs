//! What goes to standard output: tables like kubectl's, JSON, YAML.
//!
//! Never decides what to show. A closed pipe (`fairlead get routes | head`) ends the process quietly.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use fairlead_model::Millis;

use crate::yaml;

/// Form of printed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
    /// For scripts and GitOps.
    Yaml,
}

/// Prints a value in the asked form; `table` is only called when people read it.
pub(crate) fn show(format: Format, value: &impl serde::Serialize, table: impl FnOnce() -> String) {
    match format {
        Format::Table => print(&table()),
        Format::Json => print(&json(value)),
        Format::Yaml => print(&yaml::write(value)),
    }
}

/// Indented JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("our values have text keys only")
}

/// Prints a text and ends it with one line break.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{}", text.trim_end_matches('\n')).is_err() {
        // The reader has gone; there is nobody left to tell.
        std::process::exit(0);
    }
}

/// Columns side by side without borders, as kubectl prints them.
pub(crate) fn columns(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// A time span as kubectl prints it: one unit, two near its lower end.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..120 => format!("{s}s"),
        120..600 => pair(s / 60, "m", s % 60, "s"),
        600..7_200 => format!("{}m", s / 60),
        7_200..28_800 => pair(s / 3_600, "h", s % 3_600 / 60, "m"),
        28_800..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

fn pair(big: u64, big_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        return format!("{big}{big_unit}");
    }
    format!("{big}{big_unit}{small}{small_unit}")
}

/// How long something has been so.
pub(crate) fn age(now: Millis, since: Millis) -> String {
    span(now.since(since))
}

/// A share in ten-thousandths as percent.
pub(crate) fn percent(share: u32) -> String {
    format!("{}.{:02} %", share / 100, share % 100)
}

/// `1 member`, `2 members`.
pub(crate) fn count(n: usize, one: &str) -> String {
    let end = if n == 1 { "" } else { "s" };
    format!("{n} {one}{end}")
}

/// Joined by commas, or a dash, as kubectl shows what is not there.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let text = items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",");
    or_dash(&text)
}

/// The text, or a dash for none.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_no_borders_and_no_trailing_blanks() {
        let rows =
            vec![vec!["east".into(), "Up".into()], vec!["a-long-name".into(), "Down".into()]];
        assert_eq!(
            columns(&["NAME", "STATE"], rows),
            "NAME          STATE\neast          Up\na-long-name   Down"
        );
    }

    #[test]
    fn spans_have_one_unit_and_two_near_its_lower_end() {
        let spans = [0, 59_000, 125_000, 300_000, 3_600_000, 7_500_000, 90_000_000, 864_000_000];
        let shown = spans.map(span);
        assert_eq!(shown, ["0s", "59s", "2m5s", "5m", "60m", "2h5m", "25h", "10d"]);
    }

    #[test]
    fn shares_are_percent_with_two_digits() {
        assert_eq!([0, 7, 10_000, 3_333].map(percent), ["0.00 %", "0.07 %", "100.00 %", "33.33 %"]);
    }

    #[test]
    fn counts_and_lists_read_well() {
        assert_eq!(count(1, "member"), "1 member");
        assert_eq!(count(0, "member"), "0 members");
        assert_eq!(list(["a", "b"]), "a,b");
        assert_eq!(list(Vec::<String>::new()), "-");
    }
}
