//! One fact per file in `tests/goldens`: a fleet, and what the planner makes of it.
//!
//! `UPDATE_GOLDEN=1 cargo test -p fairlead-planner --test goldens` rewrites what is under `expect`;
//! read the diff before you commit it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;
#[path = "fixture/yaml.rs"]
mod yaml;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use fairlead_model::MemberId;
use fairlead_planner::{Planned, explain, plan};
use yaml::Golden;

const EXPECT: &str = "\nexpect:\n";

#[test]
fn goldens_hold() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20, "goldens are missing");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let (head, expected) = text.split_once(EXPECT).unwrap_or((text.trim_end(), ""));
        assert!(head.lines().count() <= 60, "{name} is too long");
        let options = serde_saphyr::options! { strict_booleans: true };
        let golden: Golden = serde_saphyr::from_str_with_options(&text, options)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!golden.why.is_empty(), "{name} does not say why");
        let got = run(&golden);
        if got == expected {
            continue;
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, format!("{}{EXPECT}{got}", head.trim_end())).unwrap();
            continue;
        }
        wrong.push(format!("--- {name}: expected\n{expected}--- got\n{got}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is under `expect`: one item for the fleet as given, and one for each step after it.
fn run(golden: &Golden) -> String {
    let mut fleet = golden.input.clone();
    let mut input = fleet.input();
    let mut planned = plan(&input);
    let mut out = show(golden, &planned);
    for step in &golden.then {
        fleet.change(step);
        let now = input.now.plus(step.after_ms());
        input = fleet.input();
        input.now = now;
        input.memory = planned.memory.clone();
        planned = plan(&input);
        out.push_str(&show(golden, &planned));
    }
    out
}

fn show_dns(planned: &Planned, out: &mut String) {
    if planned.report.dns.is_empty() {
        return;
    }
    out.push_str("  dns:\n");
    let zones = planned.plans.values().next().unwrap().zones.clone();
    for (zone, content) in zones.iter() {
        writeln!(out, "  - {zone} serial {}", content.serial).unwrap();
        for server in &content.servers {
            writeln!(out, "  - . server {} {:?}", server.name, server.addresses).unwrap();
        }
        for (name, set) in &content.sets {
            writeln!(out, "  - . {name} ({})", set.policy).unwrap();
            for record in &set.members {
                let addresses: Vec<String> =
                    record.addresses.iter().map(ToString::to_string).collect();
                let region = record.region.iter().fold(String::new(), |_, r| format!(" in {r}"));
                let state = record.out.map_or("healthy".to_owned(), |why| format!("out. {why}"));
                writeln!(
                    out,
                    "  - . . {} {} weight {} tier {}{region} {state}",
                    record.member,
                    addresses.join(" "),
                    record.weight,
                    record.tier
                )
                .unwrap();
            }
        }
    }
    for (member, plan) in &planned.plans {
        for (policy, published) in &plan.published {
            writeln!(out, "  - {member} writes for {policy}").unwrap();
            for (name, set) in published {
                let alias = set.alias.iter().fold(String::new(), |_, a| format!(" CNAME {a}"));
                let addresses: String =
                    set.addresses.iter().map(|address| format!(" {address}")).collect();
                let servers: String =
                    set.servers.iter().map(|server| format!(" NS {server}")).collect();
                writeln!(out, "  - . {name}{addresses}{alias}{servers}").unwrap();
            }
        }
    }
    for (policy, report) in &planned.report.dns {
        writeln!(out, "  - {policy} publishes {}", report.names).unwrap();
        for note in report.refused.iter().chain(&report.notes) {
            writeln!(out, "  - . not {} {}. {}", note.subject, note.reason, note.message).unwrap();
        }
    }
}

fn show(golden: &Golden, planned: &Planned) -> String {
    let shown = |entry: &MemberId| golden.show.is_empty() || golden.show.contains(entry);
    let mut out = String::from("- entries:\n");
    let mut notes = String::new();
    for (key, decision) in &planned.decisions {
        let explanation = explain(planned, key, None).unwrap();
        for (entry, of_entry) in explanation.entries.iter().filter(|(id, _)| shown(id)) {
            let gateways: Vec<String> = decision.entries[entry]
                .parents
                .iter()
                .map(|p| {
                    format!(
                        "{}{}",
                        p.gateway,
                        p.section.iter().fold(String::new(), |_, s| format!(" {s}"))
                    )
                })
                .collect();
            writeln!(out, "  - {entry} {key} ({})", gateways.join(", ")).unwrap();
            for rule in &of_entry.rules {
                for backend in &rule.backends {
                    let (name, share) = (&backend.backend, backend.share);
                    writeln!(out, "  - . rules[{}] {name} {share}", rule.rule).unwrap();
                    for member in &backend.members {
                        let text = format!("{}. {}", member.reason, member.message);
                        writeln!(out, "  - . . {} {} {text}", member.member, member.share).unwrap();
                    }
                }
            }
        }
        for note in &explanation.notes {
            writeln!(notes, "  - {key} {}. {}. {}", note.subject, note.reason, note.message)
                .unwrap();
        }
    }
    out.push_str("  notes:\n");
    out.push_str(&notes);
    for alarm in &planned.report.alarms {
        writeln!(out, "  - ALARM {}. {}. {}", alarm.subject, alarm.reason, alarm.message).unwrap();
    }
    if out.ends_with("  notes:\n") {
        out.truncate(out.len() - "  notes:\n".len());
    }
    show_dns(planned, &mut out);
    // ": " would make a mapping of a line; every line is one plain YAML text.
    out.replace(": ", " - ").replace(" #", " ")
}
