//! `fairlead plan` as people run it: the built binary on the fleet beside this file.
//!
//! The goldens hold the whole output; `UPDATE_GOLDEN=1` writes them anew.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn fairlead(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead")).args(args).current_dir(here()).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = fairlead(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn check_golden(name: &str, actual: &str) {
    let path = here().join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let mut lines = actual.lines().zip(expected.lines()).enumerate();
    if let Some((at, (ours, golden))) = lines.find(|(_, (ours, golden))| ours != golden) {
        panic!("{name}:{}: {ours:?}, golden {golden:?}; UPDATE_GOLDEN=1 rewrites it", at + 1);
    }
    assert!(actual == expected, "{name} differs in length; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn objects_of_every_member_are_the_golden_ones() {
    check_golden("plan.yaml", &stdout(&["plan", "fleet", "-o", "yaml"]));
}

#[test]
fn the_report_is_the_golden_one() {
    check_golden("plan.txt", &stdout(&["plan", "fleet", "--report"]));
}

#[test]
fn assumptions_and_skipped_objects_are_told_on_standard_error() {
    let output = fairlead(&["plan", "fleet"]);
    check_golden("plan.stderr", &String::from_utf8(output.stderr).unwrap());
}

#[test]
fn one_member_gets_the_same_alone() {
    let all = stdout(&["plan", "fleet", "-o", "yaml"]);
    let alone = stdout(&["plan", "fleet", "-o", "yaml", "--member", "west"]);
    assert!(alone.starts_with("# ---- member west\n"));
    assert!(all.contains(alone.trim_end()), "west's part differs from the whole");
}

#[test]
fn without_assumptions_only_proven_doors_are_used() {
    let text = stdout(&["plan", "fleet", "-o", "json", "--assume-doors=false", "--report"]);
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(!text.contains("192.0.2."), "an address was made up");
    assert!(plan["report"].as_array().is_some_and(|report| !report.is_empty()));
}

#[test]
fn bad_folders_and_members_end_with_the_documented_codes() {
    assert_eq!(fairlead(&["plan", "golden"]).status.code(), Some(2));
    assert_eq!(fairlead(&["plan", "fleet", "--member", "north"]).status.code(), Some(1));
    assert_eq!(fairlead(&["plan"]).status.code(), Some(2));
    assert_eq!(fairlead(&["version"]).status.code(), Some(0));
}
