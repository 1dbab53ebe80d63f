//! Tidy: rules about the source itself, as ordinary tests.
//!
//! Each rule says why it is there. A rule that stands in the way of better code is to be changed
//! here, with its reason.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Crates without I/O, clock, randomness and logging: plans must be reproducible from inputs.
const PURE: &[(&str, &str)] = &[
    ("fairlead-model", "api/model"),
    ("fairlead-weights", "api/weights"),
    ("fairlead-crds", "api/crds"),
    ("fairlead-translate", "api/translate"),
    ("fairlead-planner", "hub/planner"),
    ("fairlead-hub-core", "hub/core"),
    ("fairlead-agent-core", "member-agent/core"),
];

/// Work at compile time only.
const MACROS: &[&str] = &[
    "darling",
    "darling_core",
    "darling_macro",
    "derive_more",
    "derive_more-impl",
    "ident_case",
    "kube-derive",
    "proc-macro2",
    "quote",
    "ref-cast-impl",
    "schemars_derive",
    "serde_derive",
    "serde_derive_internals",
    "strsim",
    "syn",
    "thiserror-impl",
    "unicode-ident",
];
/// Data in, data out.
const DATA: &[&str] = &[
    "base64",
    "dyn-clone",
    "itoa",
    "memchr",
    "ref-cast",
    "ryu",
    "serde",
    "serde_core",
    "serde_json",
    "thiserror",
    "zmij",
];
/// Digests and MACs: deterministic functions.
const HASHES: &[&str] = &[
    "block-buffer",
    "cfg-if",
    "cpufeatures",
    "crypto-common",
    "digest",
    "generic-array",
    "hmac",
    "libc",
    "sha2",
    "subtle",
    "typenum",
    "version_check",
];
/// Types of Kubernetes objects, without a client.
const KUBERNETES: &[&str] = &[
    "bytes",
    "form_urlencoded",
    "http",
    "jiff",
    "jiff-core",
    "jiff-static",
    "k8s-openapi",
    "kube",
    "kube-core",
    "num-traits",
    "ordered-float",
    "percent-encoding",
    "schemars",
    "serde-value",
];
/// Crates that may use the Kubernetes types.
const KNOWS_KUBERNETES: &[&str] = &["fairlead-crds", "fairlead-translate"];

/// Which of our crates may depend on which: the layers of the design, hub and agent never on
/// each other. Not listed: the harness, which may use all. The simulation plays the pure machines of
/// both sides against each other, never the crates that do I/O.
const EDGES: &[(&str, &[&str])] = &[
    ("fairlead-model", &[]),
    ("fairlead-weights", &["model"]),
    ("fairlead-crds", &[]),
    ("fairlead-proto", &["model"]),
    ("fairlead-protoc", &[]),
    ("fairlead-telemetry", &[]),
    ("fairlead-translate", &["crds", "model"]),
    ("fairlead-planner", &["weights", "model"]),
    ("fairlead-hub-core", &["planner", "model"]),
    ("fairlead-agent-core", &["weights", "model"]),
    ("fairlead-sim", &["hub-core", "agent-core", "planner", "proto", "model"]),
    (
        "fairlead-hub",
        &["hub-core", "planner", "translate", "proto", "telemetry", "crds", "weights", "model"],
    ),
    (
        "fairlead-agent",
        &["agent-core", "translate", "proto", "telemetry", "crds", "weights", "model"],
    ),
    ("fairlead", &["translate", "planner", "crds", "model"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo).args(args).current_dir(root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "cargo {}: {said}", args.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// All files of the repository that a person wrote, by their path from the root.
fn files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // In a worktree of git, `.git` is a file with a path of this machine.
            if ["target", ".git"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let inside = path.strip_prefix(root()).unwrap();
                found.push((inside.display().to_string(), text));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    files().into_iter().filter(|(name, _)| name.ends_with(".rs")).collect()
}

fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// Features unify across a workspace, so each crate is looked at alone.
#[test]
fn pure_crates_have_only_pure_dependencies() {
    let mut findings = Vec::new();
    let ours: BTreeSet<String> = EDGES.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, _) in PURE {
        let tree =
            cargo(&["tree", "-p", name, "-e", "normal", "--prefix", "none", "--format", "{p}"]);
        let found: BTreeSet<&str> =
            tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        for dependency in found {
            let kubernetes = KUBERNETES.contains(&dependency) && KNOWS_KUBERNETES.contains(name);
            let plain = [MACROS, DATA, HASHES].iter().any(|list| list.contains(&dependency));
            if !plain && !kubernetes && !ours.contains(dependency) {
                findings.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert_none(&findings, "a pure crate has a dependency outside the lists in this file");
}

/// The standard library has clocks, sockets and files, too.
#[test]
fn pure_crates_touch_nothing() {
    const TOUCHES: &[&str] = &[
        "SystemTime::now",
        "Instant::now",
        "Timestamp::now",
        "std::fs",
        "std::process",
        "std::thread",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "println!",
        "async fn",
        "env::var",
    ];
    let mut findings = Vec::new();
    for (name, text) in sources() {
        let in_source = |folder: &str| name.starts_with(&format!("{folder}/src/"));
        if !PURE.iter().any(|(_, folder)| in_source(folder)) || name.contains("/bin/") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.split("//").next().unwrap_or_default();
            if let Some(touch) = TOUCHES.iter().find(|touch| line.contains(**touch)) {
                findings.push(format!("{name}:{number}: {touch}"));
            }
        }
    }
    assert_none(&findings, "a pure crate touches the world");
}

#[test]
fn crates_depend_only_along_the_design() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let edges: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = edges.get(name) else {
            if name != "fairlead-e2e" {
                findings.push(format!("{name} is not in the list of crates in this file"));
            }
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let wanted = dependency["name"].as_str().unwrap();
            // Tests may use more than what they test.
            let normal = dependency["kind"].is_null();
            let Some(short) = wanted.strip_prefix("fairlead-") else { continue };
            if normal && !allowed.contains(&short) {
                findings.push(format!("{name} -> {wanted}"));
            }
        }
    }
    assert_none(&findings, "an edge that the design does not have");
}

/// The first thing a reader wants to know: what this owns, never does, how it fails.
#[test]
fn every_source_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.lines().take(3).any(|line| line.starts_with("//!")))
        .map(|(name, _)| name)
        .collect();
    assert_none(&silent, "a source file that does not start with a //! comment");
}

#[test]
fn no_source_file_is_too_long_to_read() {
    const LINES_MAX: usize = 700;
    let long: Vec<String> = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert_none(&long, "a source file longer than 700 lines");
}

/// Written in two parts, or this file would find itself.
#[test]
fn nothing_is_left_for_later() {
    const LATER: &[&str] =
        &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore")];
    let mut findings = Vec::new();
    for (name, text) in sources() {
        for (number, line) in (1..).zip(text.lines()) {
            if LATER.iter().any(|later| line.contains(later)) {
                findings.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none(&findings, "something is left for later");
}

/// What works only on its writer's machine.
#[test]
fn no_paths_of_one_machine() {
    const PLACES: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    const GENERATED: &[&str] = &["Cargo.lock", "go.sum", "LICENSE"];
    let mut findings = Vec::new();
    for (name, text) in files() {
        if GENERATED.iter().any(|generated| name.ends_with(generated)) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            if PLACES.iter().any(|place| line.contains(place)) {
                findings.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none(&findings, "a path of one machine");
}
