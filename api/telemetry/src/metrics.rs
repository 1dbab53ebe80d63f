//! The two text formats of metrics, and which names a query uses.
//!
//! The registry writes OpenMetrics; whoever does not ask for it gets the older Prometheus text, which
//! is what `promtool check metrics` and most scrapers without negotiation read.

use std::collections::{BTreeMap, BTreeSet};

/// Content type of the registry's own format.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older format.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content type and the text that fit an `Accept` header.
pub fn negotiate(accept: Option<&str>, open: String) -> (&'static str, String) {
    match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        true => (OPEN_METRICS, open),
        false => (PROMETHEUS, prometheus_text(&open)),
    }
}

/// OpenMetrics text as Prometheus text: counters are named by their samples, units and the end mark
/// go away.
pub fn prometheus_text(open: &str) -> String {
    let kinds = kinds(open);
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let comment = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        match comment {
            Some(("UNIT", _)) => {}
            Some((word @ ("HELP" | "TYPE"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let counter = kinds.get(name) == Some(&"counter");
                let suffix = if counter { "_total" } else { "" };
                let rest = if rest == "unknown" { "untyped" } else { rest };
                text.push_str(&format!("# {word} {name}{suffix} {rest}\n"));
            }
            _ if line == "# EOF" => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

fn kinds(open: &str) -> BTreeMap<&str, &str> {
    let lines = open.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| line.split_once(' ')).collect()
}

/// Every name under which a query may find something in this text.
fn known(open: &str) -> BTreeSet<String> {
    let of = |(name, kind): (&str, &str)| match kind {
        "counter" => vec![format!("{name}_total")],
        "histogram" => {
            vec![format!("{name}_bucket"), format!("{name}_sum"), format!("{name}_count")]
        }
        _ => vec![name.to_owned()],
    };
    kinds(open).into_iter().flat_map(of).collect()
}

/// The names of all metrics in this text, as their types have them.
pub fn names(open: &str) -> BTreeSet<String> {
    kinds(open).into_keys().map(str::to_owned).collect()
}

/// Names in some text (queries, rules, dashboards) that begin with `prefix` and that no metric has.
pub fn unknown_names(text: &str, prefix: &str, open: &str) -> BTreeSet<String> {
    let known = known(open);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with(prefix));
    words.filter(|word| !known.contains(*word)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "\
# HELP a_writes Writes.
# TYPE a_writes counter
a_writes_total{verb=\"create\"} 1
# HELP a_push_bytes Size.
# TYPE a_push_bytes histogram
# UNIT a_push_bytes bytes
a_push_bytes_sum 1.5
# TYPE a_up gauge
a_up 1
# EOF
";

    #[test]
    fn counters_are_named_by_their_samples() {
        let (kind, text) = negotiate(Some("text/plain"), OPEN.to_owned());
        assert_eq!(kind, PROMETHEUS);
        assert_eq!(
            text,
            "\
# HELP a_writes_total Writes.
# TYPE a_writes_total counter
a_writes_total{verb=\"create\"} 1
# HELP a_push_bytes Size.
# TYPE a_push_bytes histogram
a_push_bytes_sum 1.5
# TYPE a_up gauge
a_up 1
"
        );
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(negotiate(Some(accept), OPEN.to_owned()), (OPEN_METRICS, OPEN.to_owned()));
    }

    #[test]
    fn names_that_no_metric_has_are_found() {
        let query = "rate(a_writes_total[5m]) / a_writes > a_push_bytes_bucket + a_up + b_up";
        let unknown = unknown_names(query, "a_", OPEN);
        assert_eq!(unknown.into_iter().collect::<Vec<_>>(), ["a_writes"]);
    }
}
