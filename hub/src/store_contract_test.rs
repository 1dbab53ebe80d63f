//! What every store must do; each implementation runs all of it.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn put(key: &str, bytes: &[u8]) -> Batch {
    Batch { put: vec![(key.into(), bytes.into())], ..Batch::default() }
}

fn revision(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Written(revision) => revision,
        Outcome::Conflict => panic!("conflict"),
    }
}

fn get_gives_what_was_put(store: &dyn Store) {
    assert_eq!(store.get("get/a").unwrap(), None);
    let written = revision(store.commit(put("get/a", b"1")).unwrap());
    let want = Value { revision: written, bytes: b"1".to_vec() };
    assert_eq!(store.get("get/a").unwrap(), Some(want));
    store.delete("get/a").unwrap();
    store.delete("get/a").unwrap();
    assert_eq!(store.get("get/a").unwrap(), None);
}

fn compare_and_put_has_one_winner(store: &dyn Store) {
    let first = revision(store.compare_and_put("cas/a", 0, b"1".into()).unwrap());
    assert_eq!(store.compare_and_put("cas/a", 0, b"2".into()).unwrap(), Outcome::Conflict);
    let second = revision(store.compare_and_put("cas/a", first, b"2".into()).unwrap());
    assert!(second > first);
    assert_eq!(store.compare_and_put("cas/a", first, b"3".into()).unwrap(), Outcome::Conflict);
    assert_eq!(store.get("cas/a").unwrap().unwrap().bytes, b"2");
}

fn a_batch_is_whole_or_nothing(store: &dyn Store) {
    store.commit(put("batch/old", b"1")).unwrap();
    let batch = Batch {
        expect: vec![("batch/old".into(), 0)],
        put: vec![("batch/new".into(), b"1".into())],
        delete: vec!["batch/old".into()],
    };
    assert_eq!(store.commit(batch.clone()).unwrap(), Outcome::Conflict);
    assert_eq!(store.get("batch/new").unwrap(), None);
    assert!(store.get("batch/old").unwrap().is_some());
    revision(store.commit(Batch { expect: Vec::new(), ..batch }).unwrap());
    assert!(store.get("batch/new").unwrap().is_some());
    assert_eq!(store.get("batch/old").unwrap(), None);
}

fn list_gives_a_prefix_in_order(store: &dyn Store) {
    for key in ["list/b", "list/a", "listen", "lis", "list/a/1"] {
        store.commit(put(key, b"")).unwrap();
    }
    let keys: Vec<String> = store.list("list/").unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["list/a", "list/a/1", "list/b"]);
}

fn every_fact(store: &dyn Store) {
    get_gives_what_was_put(store);
    compare_and_put_has_one_winner(store);
    a_batch_is_whole_or_nothing(store);
    list_gives_a_prefix_in_order(store);
}

#[test]
fn the_embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    every_fact(&EmbeddedStore::open(dir.path()).unwrap());
}

#[test]
fn the_embedded_store_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let written = revision(store.commit(put("a", b"1")).unwrap());
    drop(store);
    let store = EmbeddedStore::open(dir.path()).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().revision, written);
    assert!(revision(store.commit(put("b", b"1")).unwrap()) > written);
}

#[test]
fn the_embedded_store_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let _held = EmbeddedStore::open(dir.path()).unwrap();
    assert!(matches!(EmbeddedStore::open(dir.path()), Err(StoreError::Locked { .. })));
}

#[test]
fn what_was_reported_as_written_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    for n in 0..20_u8 {
        store.commit(put(&format!("k{n:02}"), &[n])).unwrap();
    }
    // The file as a crash would leave it: copied while open, without a clean close.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("fairlead.redb"), crashed.path().join("fairlead.redb")).unwrap();
    let found = EmbeddedStore::open(crashed.path()).unwrap();
    assert_eq!(found.list("k").unwrap().len(), 20);
}
