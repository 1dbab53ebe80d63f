//! Ingresses as controllers' users write them, and what each comes to, in `tests/golden/ingress`.
//! `UPDATE_GOLDEN=1` rewrites the outputs.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use super::*;
use crate::{output, yaml};

fn options() -> Options {
    Options { gateway: NsName::new("infra", "public") }
}

fn migrated(text: &str) -> Migrated {
    migrate(&yaml::read("x", text).unwrap(), &options())
}

#[test]
fn ingresses_come_to_what_is_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files: Vec<_> =
        std::fs::read_dir(folder.join("ingress")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20);
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let got = output::json(&migrated(&text)) + "\n";
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden = folder.join("golden/ingress").join(format!("{name}.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &got).unwrap();
        }
        let want = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(got, want, "{}: UPDATE_GOLDEN=1 rewrites it", golden.display());
    }
}

#[test]
fn nothing_a_user_writes_makes_it_panic() {
    for spec in
        ["x", "{rules: 3}", "{rules: [3, {http: {paths: [3, {path: x}]}}]}", "{tls: [{hosts: 3}]}"]
    {
        let text = format!(
            "{{kind: Ingress, metadata: {{name: a, annotations: {{x: 3}}}}, spec: {spec}}}"
        );
        assert_eq!(migrated(&text).ingresses, 1, "{spec}");
    }
}
