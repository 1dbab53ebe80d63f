//! Golden files: one YAML file = why, input, output. `UPDATE_GOLDEN=1` rewrites the output and leaves
//! what people wrote as it is.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::PathBuf;
use std::{env, fs};

use serde_json::Value;

const OUTPUT: &str = "\noutput:\n";

/// Reads YAML as people of Kubernetes expect it.
pub(crate) fn yaml(text: &str) -> Value {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Every golden file of a folder: its name, and what is in it.
pub(crate) fn files(folder: &str) -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder);
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, yaml(&fs::read_to_string(path).unwrap()))
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

/// Runs every golden file of a folder through `f`, which gets the file's `input`.
pub(crate) fn check(folder: &str, f: impl Fn(&Value) -> Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no goldens in {}", folder.display());
    let mut stale = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let head = text.split_once(OUTPUT).map_or(text.as_str(), |(head, _)| head).trim_end();
        let parsed = yaml(head);
        let keys: Vec<&String> = parsed.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["input", "why"], "{}: unknown fields", path.display());
        let lines = head.lines().count();
        assert!(lines <= 70, "{}: {lines} lines of input", path.display());
        let output = serde_saphyr::to_string(&f(&parsed["input"])).unwrap();
        let indented: String = output.lines().map(|line| format!("  {line}\n")).collect();
        let want = format!("{head}{OUTPUT}{indented}");
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &want).unwrap();
        } else if want != text {
            stale.push(format!("{}: is now\n{want}", path.display()));
        }
    }
    assert!(stale.is_empty(), "{}\nUPDATE_GOLDEN=1 rewrites them", stale.join("\n"));
}
