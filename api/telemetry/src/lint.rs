//! What `promtool check metrics` says of a Prometheus text, without promtool.
//!
//! Owns the rules that its linter has for names, units, help and histograms, and the ways in which a
//! text cannot be read at all. For tests of the registries; scenario `traces` asks the real promtool.

use std::collections::{BTreeMap, BTreeSet};

use crate::metrics;

/// Units that are written out, each in its base.
const UNITS: [(&str, &str); 26] = [
    ("amperes", "amperes"),
    ("bytes", "bytes"),
    ("celsius", "celsius"),
    ("grams", "grams"),
    ("joules", "joules"),
    ("kelvin", "kelvin"),
    ("meters", "meters"),
    ("metres", "metres"),
    ("seconds", "seconds"),
    ("volts", "volts"),
    ("minutes", "seconds"),
    ("hours", "seconds"),
    ("days", "seconds"),
    ("weeks", "seconds"),
    ("kelvins", "kelvin"),
    ("fahrenheit", "celsius"),
    ("rankine", "celsius"),
    ("inches", "meters"),
    ("yards", "meters"),
    ("miles", "meters"),
    ("bits", "bytes"),
    ("calories", "joules"),
    ("pounds", "grams"),
    ("ounces", "grams"),
    ("percent", "ratio"),
    ("ratio", "ratio"),
];
const PREFIXES: [&str; 16] = [
    "pico", "nano", "micro", "milli", "centi", "deci", "deca", "hecto", "kilo", "kibi", "mega",
    "mibi", "giga", "gibi", "tera", "tebi",
];
const ABBREVIATIONS: [&str; 14] =
    ["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"];

/// One metric with all its samples.
#[derive(Debug, Default)]
struct Family<'a> {
    kind: Option<&'a str>,
    help: bool,
    samples: Vec<Sample<'a>>,
}

#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
}

/// Everything that is wrong with a registry, and with rules and dashboards that ask for it; empty =
/// clean. `open` is its OpenMetrics text with a sample of every metric. Each of `askers` must ask for
/// something with the prefix, and for nothing that no metric has.
pub fn registry_problems(open: &str, prefix: &str, askers: &[&str]) -> Vec<String> {
    let (_, text) = metrics::negotiate(None, open.to_owned());
    let mut found = problems(&text);
    for name in metrics::names(open) {
        let of_it = |line: &str| line.starts_with(&name) && !line.starts_with('#');
        if !open.lines().any(of_it) {
            found.push(format!("{name} has no sample, so nobody looked at it"));
        }
    }
    for asker in askers {
        let start: String = asker.chars().take(40).collect();
        if !asker.contains(prefix) {
            found.push(format!("{start:?} asks for nothing with {prefix}"));
        }
        let unknown = metrics::unknown_names(asker, prefix, open);
        found.extend(unknown.iter().map(|name| format!("{start:?} asks for {name}")));
    }
    found
}

/// Everything that is wrong with a text in the older Prometheus format; empty = clean.
pub fn problems(text: &str) -> Vec<String> {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut current = "";
    for line in text.lines() {
        match read(line, &mut families, &mut current) {
            Ok(()) => {}
            Err(why) => problems.push(format!("{line}: {why}")),
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push("the last line has no end".to_owned());
    }
    for (name, family) in &families {
        problems.extend(of_family(name, family).into_iter().map(|why| format!("{name}: {why}")));
    }
    problems
}

fn read<'a>(
    line: &'a str,
    families: &mut BTreeMap<&'a str, Family<'a>>,
    current: &mut &'a str,
) -> Result<(), String> {
    if let Some(comment) = line.strip_prefix("# ") {
        let mut words = comment.splitn(3, ' ');
        let (Some(word), Some(name)) = (words.next(), words.next()) else { return Ok(()) };
        let rest = words.next().unwrap_or_default();
        if !matches!(word, "HELP" | "TYPE") {
            return Ok(());
        }
        if *current != name && families.contains_key(name) {
            return Err("the metric was there before".to_owned());
        }
        *current = name;
        let family = families.entry(name).or_default();
        match word {
            "HELP" if family.help => return Err("a second help".to_owned()),
            "HELP" => family.help = !rest.is_empty(),
            _ if family.kind.is_some() => return Err("a second type".to_owned()),
            _ if !family.samples.is_empty() => return Err("a type after samples".to_owned()),
            _ => family.kind = Some(rest),
        }
        return Ok(());
    }
    let sample = sample(line)?;
    let family = families.get_mut(*current).filter(|family| belongs(current, family, &sample));
    let family = family.ok_or("a sample of no metric, or apart from its metric")?;
    let same = |other: &Sample<'_>| other.name == sample.name && other.labels == sample.labels;
    if family.samples.iter().any(same) {
        return Err("the same series twice".to_owned());
    }
    family.samples.push(sample);
    Ok(())
}

fn belongs(name: &str, family: &Family<'_>, sample: &Sample<'_>) -> bool {
    match (sample.name.strip_prefix(name), family.kind) {
        (Some(""), kind) => kind != Some("histogram"),
        (Some("_bucket" | "_sum" | "_count"), kind) => kind == Some("histogram"),
        _ => false,
    }
}

/// `name{label="value",…} value`.
fn sample(line: &str) -> Result<Sample<'_>, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return Err(format!("{name:?} is no name"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.trim_start();
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse().map_err(|_| format!("{number:?} is no number"))?,
    };
    Ok(Sample { name, labels, value })
}

fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(legal)
}

type Labels<'a> = BTreeMap<&'a str, &'a str>;

fn labels(mut rest: &str) -> Result<(Labels<'_>, &str), String> {
    let mut labels = Labels::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) {
            return Err(format!("{name:?} is no name of a label"));
        }
        let end = closing_quote(after).ok_or("a label's value has no end")?;
        if labels.insert(name, &after[..end]).is_some() {
            return Err(format!("label {name} twice"));
        }
        rest = after[end + 1..].trim_start_matches(',');
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn of_family(name: &str, family: &Family<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |bad: bool, why: &str| {
        if bad {
            problems.push(why.to_owned());
        }
    };
    let kind = family.kind.unwrap_or("untyped");
    note(!is_name(name), "is no name");
    note(!family.help, "no help");
    note(family.kind.is_none(), "no type");
    note(kind == "counter" && !name.ends_with("_total"), "a counter without _total");
    note(kind != "counter" && name.ends_with("_total"), "_total, but no counter");
    for suffix in ["_bucket", "_sum", "_count"] {
        note(name.ends_with(suffix), "ends as a part of a histogram");
    }
    let words: Vec<&str> = name.split('_').collect();
    note(words.iter().skip(1).any(|word| *word == kind), "its type is in its name");
    note(words.iter().skip(1).any(|word| ABBREVIATIONS.contains(word)), "an abbreviated unit");
    note(words.iter().any(|word| !is_base(word)), "not in a base unit");
    let labels: BTreeSet<&str> =
        family.samples.iter().flat_map(|sample| sample.labels.keys().copied()).collect();
    let is_camel = |text: &str| text.chars().any(|c| c.is_ascii_uppercase());
    note(is_camel(name) || labels.iter().any(|label| is_camel(label)), "camel case");
    note(kind != "histogram" && labels.contains("le"), "le, but no histogram");
    note(labels.contains("quantile"), "quantile, but no summary");
    if kind == "histogram" {
        problems.extend(of_histogram(family));
    }
    problems
}

fn is_base(word: &str) -> bool {
    let base = |word: &str| UNITS.iter().find(|(unit, _)| *unit == word).map(|(_, base)| *base);
    match base(word) {
        Some(base) => base == word,
        None => !PREFIXES.iter().any(|p| word.strip_prefix(p).is_some_and(|w| base(w).is_some())),
    }
}

/// What one series of a histogram holds.
#[derive(Default)]
struct Buckets {
    counts: Vec<f64>,
    infinite: bool,
    all: Option<f64>,
}

/// Buckets of one series rise and end at +Inf with the count of all.
fn of_histogram(family: &Family<'_>) -> Vec<String> {
    let mut series: BTreeMap<Vec<(&str, &str)>, Buckets> = BTreeMap::new();
    for sample in &family.samples {
        let own = sample.labels.iter().filter(|(name, _)| **name != "le");
        let it = series.entry(own.map(|(name, value)| (*name, *value)).collect()).or_default();
        if sample.name.ends_with("_bucket") {
            it.counts.push(sample.value);
            it.infinite |= sample.labels.get("le") == Some(&"+Inf");
        } else if sample.name.ends_with("_count") {
            it.all = Some(sample.value);
        }
    }
    let whole =
        |it: &Buckets| it.infinite && it.counts.is_sorted() && it.counts.last().copied() == it.all;
    let bad = series.iter().filter(|(_, it)| !whole(it));
    bad.map(|(labels, _)| format!("buckets of {labels:?} do not add up")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
# HELP a_writes_total Writes.
# TYPE a_writes_total counter
a_writes_total{verb=\"create\",why=\"a \\\"b\\\" }\"} 1
a_writes_total{verb=\"delete\",why=\"\"} 2
# HELP a_apply_seconds Time.
# TYPE a_apply_seconds histogram
a_apply_seconds_sum 1.5
a_apply_seconds_count 2
a_apply_seconds_bucket{le=\"1.0\"} 1
a_apply_seconds_bucket{le=\"+Inf\"} 2
# HELP a_up Up.
# TYPE a_up gauge
a_up NaN
";

    #[test]
    fn a_clean_text_has_no_problems() {
        assert_eq!(problems(CLEAN), Vec::<String>::new());
        assert_eq!(problems(""), Vec::<String>::new());
    }

    #[test]
    fn every_rule_finds_its_breach() {
        let one = |kind: &str, name: &str| {
            format!("# HELP {name} Help.\n# TYPE {name} {kind}\n{name} 1\n")
        };
        for (text, why) in [
            (one("counter", "a_writes"), "a counter without _total"),
            (one("gauge", "a_writes_total"), "_total, but no counter"),
            (one("gauge", "a_count"), "ends as a part of a histogram"),
            (one("gauge", "a_gauge"), "its type is in its name"),
            (one("gauge", "a_wait_ms"), "an abbreviated unit"),
            (one("gauge", "a_wait_milliseconds"), "not in a base unit"),
            (one("gauge", "a_wait_minutes"), "not in a base unit"),
            (one("gauge", "a_openFiles"), "camel case"),
            (one("gauge", "a_up").replace(" 1", "{le=\"1\"} 1"), "le, but no histogram"),
            (one("gauge", "a_up").replace("# HELP a_up Help.\n", ""), "no help"),
            (one("gauge", "a_up").replace(" 1", " one"), "is no number"),
            (one("gauge", "a_up") + "a_up 2\n", "the same series twice"),
            (one("gauge", "a_up") + "b_up 2\n", "a sample of no metric"),
            (one("gauge", "a_up") + &one("gauge", "b_up") + &one("gauge", "a_up"), "there before"),
            (CLEAN.replace("le=\"+Inf\"", "le=\"2.0\""), "do not add up"),
            (CLEAN.replace("seconds_count 2", "seconds_count 3"), "do not add up"),
        ] {
            let found = problems(&text);
            assert!(found.iter().any(|it| it.contains(why)), "{why} not in {found:?}\n{text}");
        }
    }

    #[test]
    fn a_registry_is_whole_and_asked_for_what_it_has() {
        let open = "# HELP a_writes Writes.\n# TYPE a_writes counter\na_writes_total 1\n# EOF\n";
        assert_eq!(registry_problems(open, "a_", &["rate(a_writes_total[5m])"]), [""; 0]);
        let found = registry_problems(open, "a_", &["rate(b_x[5m])", "a_reads_total"]);
        assert_eq!(
            found,
            [
                "\"rate(b_x[5m])\" asks for nothing with a_",
                "\"a_reads_total\" asks for a_reads_total"
            ]
        );
        let bare = open.replace("a_writes_total 1\n", "");
        let found = registry_problems(&bare, "a_", &[]);
        assert_eq!(found, ["a_writes has no sample, so nobody looked at it"]);
    }
}
