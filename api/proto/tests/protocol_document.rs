//! docs/PROTOCOL.md names every message of the stream and of enrolment, and no message that is gone.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

fn repository(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// Names after `message ` in the .proto files.
fn messages() -> BTreeSet<String> {
    ["fleet", "item"]
        .iter()
        .flat_map(|file| {
            let text = repository(&format!("api/proto/proto/fairlead/v1/{file}.proto"));
            let name =
                |line: &str| Some(line.strip_prefix("message ")?.split(' ').next()?.to_owned());
            text.lines().filter_map(name).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_document_names_every_message() {
    let document = repository("docs/PROTOCOL.md");
    let missing: Vec<_> =
        messages().into_iter().filter(|m| !document.contains(&format!("`{m}`"))).collect();
    assert!(missing.is_empty(), "not in docs/PROTOCOL.md: {missing:?}");
}

#[test]
fn the_document_tells_the_limits_of_the_code() {
    let document = repository("docs/PROTOCOL.md");
    for (name, bytes) in [
        ("MESSAGE_BYTES_MAX", fairlead_proto::MESSAGE_BYTES_MAX),
        ("PART_BYTES", fairlead_proto::PART_BYTES),
        ("LEDGER_BYTES_MAX", fairlead_proto::LEDGER_BYTES_MAX),
    ] {
        let row = format!("`{name}` | {} KiB", bytes >> 10);
        assert!(document.contains(&row), "docs/PROTOCOL.md lacks the row {row:?}");
    }
}
