//! Scripts: what happens in each is written below it, and must happen again, to the millisecond.
//!
//! `UPDATE_GOLDEN=1` writes anew what happens.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use fairlead_sim::script::play;

/// Between a script and what happens in it.
const LINE: &str = "----\n";

#[test]
fn what_happens_in_a_script_is_what_is_written_below_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let (script, want) = text.split_once(LINE).unwrap_or((&text, ""));
        let happened = play(script).unwrap_or_else(|error| format!("no script: {error}\n"));
        count += 1;
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, format!("{script}{LINE}{happened}")).unwrap();
        } else if happened != want || happened.contains("WRONG") {
            wrong.push(format!("{}:\n{happened}", path.file_name().unwrap().to_string_lossy()));
        }
    }
    assert!(count > 0, "there are scripts");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_script_that_has_no_meaning_says_which_line() {
    let rows = [
        ("member east", "\"member east\": a member without a region"),
        ("member east - s0", "\"member east - s0\": a service without endpoints"),
        ("route r s0=x", "\"route r s0=x\": \"x\" is no number"),
        ("nonsense", "\"nonsense\": neither a word nor a time"),
        ("member east -\n1-2 killed west", "\"west\" is no member"),
        ("member east -\n1-2 broken east", "\"broken east\" is no fault"),
        ("1.2345-2 hub-down", "\"1.2345-2 hub-down\": \"1.2345\" is finer than a millisecond"),
    ];
    for (text, want) in rows {
        assert_eq!(play(text).unwrap_err(), want, "{text}");
    }
}
