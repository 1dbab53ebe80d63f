//! What every store must do, as facts that can be tried on any: by unit tests on the embedded one, by
//! `cargo e2e run store` on both, on real machines' faults.
//!
//! A fact keeps to keys of its own, says what is wrong in words, and can be tried again on the same store.

use std::time::{Duration, Instant};

use super::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, Batch, Claim, Hold, Outcome, Store, StoreError, Value,
};

/// A fact.
pub struct Fact {
    /// What holds.
    pub name: &'static str,
    /// What it needs to be tried.
    pub needs: Needs,
    /// Tries it; what is wrong.
    pub holds: fn(&dyn Store) -> Result<(), String>,
}

/// What a fact needs to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it holds while nodes die, too.
    Nothing,
    /// That no answer to a write is lost: a conditional write that is tried again is in conflict with itself.
    EveryAnswer,
}

const fn fact(name: &'static str, holds: fn(&dyn Store) -> Result<(), String>) -> Fact {
    Fact { name, needs: Needs::Nothing, holds }
}

const fn exact(name: &'static str, holds: fn(&dyn Store) -> Result<(), String>) -> Fact {
    Fact { name, needs: Needs::EveryAnswer, holds }
}

/// All facts.
pub const FACTS: &[Fact] = &[
    fact("get gives what was put", get_gives_what_was_put),
    exact("compare-and-put has one winner", compare_and_put_has_one_winner),
    exact("of many writers each counts once", many_writers_count_once),
    fact("a batch is whole or nothing", a_batch_is_whole_or_nothing),
    fact("a put after a delete is a put", a_put_after_a_delete_is_a_put),
    fact("a list gives a prefix in order", list_gives_a_prefix_in_order),
    fact("a long list is one picture", a_long_list_is_one_picture),
    fact("the largest batch fits", the_largest_batch_fits),
    fact("a larger batch is refused", a_larger_batch_is_refused),
    fact("any writes can be split", any_writes_can_be_split),
    exact("a claim has one holder", a_claim_has_one_holder),
    exact("a claim stays as long as it is renewed", a_claim_stays_as_long_as_it_is_renewed),
    exact("a claim that nobody renews runs out", a_claim_that_nobody_renews_runs_out),
];

/// How long claims live here; etcd knows whole seconds and its least is two.
const CLAIM_TTL: Duration = Duration::from_secs(2);
/// Longer than any claim takes to end.
const CLAIM_WAIT: Duration = Duration::from_secs(30);

/// Keys of a list that takes several pages.
const LONG: usize = 2_500;
/// Writers at once, and how often each counts.
const WRITERS: u64 = 4;
const COUNTS: u64 = 25;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn told(error: StoreError) -> String {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn put(key: &str, bytes: &[u8]) -> Batch {
    Batch { put: vec![(key.into(), bytes.into())], ..Batch::default() }
}

fn written(store: &dyn Store, batch: Batch) -> Result<u64, String> {
    match store.commit(batch).map_err(told)? {
        Outcome::Written(revision) => Ok(revision),
        Outcome::Conflict => Err("a conflict without an expectation".to_owned()),
    }
}

fn get(store: &dyn Store, key: &str) -> Result<Option<Value>, String> {
    store.get(key).map_err(told)
}

/// Takes away what an earlier try left.
fn clear(store: &dyn Store, prefix: &str) -> Result<(), String> {
    let delete = store.list(prefix).map_err(told)?.into_iter().map(|(key, _)| key).collect();
    for part in (Batch { delete, ..Batch::default() }).split() {
        written(store, part)?;
    }
    Ok(())
}

fn get_gives_what_was_put(store: &dyn Store) -> Result<(), String> {
    clear(store, "get/")?;
    ensure(get(store, "get/a")?.is_none(), || "a key that was never put is there".to_owned())?;
    let revision = written(store, put("get/a", b"1"))?;
    let want = Some(Value { revision, bytes: b"1".to_vec() });
    let found = get(store, "get/a")?;
    ensure(found == want, || format!("{found:?} instead of {want:?}"))?;
    store.delete("get/a").map_err(told)?;
    store.delete("get/a").map_err(told)?;
    ensure(get(store, "get/a")?.is_none(), || "a deleted key is there".to_owned())
}

fn compare_and_put_has_one_winner(store: &dyn Store) -> Result<(), String> {
    clear(store, "cas/")?;
    let cas = |revision, bytes: &[u8]| {
        store.compare_and_put("cas/a", revision, bytes.to_vec()).map_err(told)
    };
    let Outcome::Written(first) = cas(0, b"1")? else { return Err("no first".to_owned()) };
    ensure(cas(0, b"2")? == Outcome::Conflict, || "a second creation".to_owned())?;
    let Outcome::Written(second) = cas(first, b"2")? else { return Err("no second".to_owned()) };
    ensure(second > first, || format!("revision {second} after {first}"))?;
    ensure(cas(first, b"3")? == Outcome::Conflict, || "an old revision wins".to_owned())?;
    let found = get(store, "cas/a")?.map(|value| value.bytes);
    ensure(found.as_deref() == Some(b"2"), || format!("{found:?} is there"))
}

/// A number in a key, raised by several at once.
fn many_writers_count_once(store: &dyn Store) -> Result<(), String> {
    clear(store, "count/")?;
    let count = || -> Result<(), String> {
        for _ in 0..COUNTS {
            loop {
                let held = get(store, "count/a")?;
                let revision = held.as_ref().map_or(0, |value| value.revision);
                let number = held.map_or(Ok(0), |value| number(&value.bytes))?;
                let next = (number + 1).to_string().into_bytes();
                match store.compare_and_put("count/a", revision, next).map_err(told)? {
                    Outcome::Written(_) => break,
                    Outcome::Conflict => {}
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(count)).collect();
        let end = |writer: std::thread::ScopedJoinHandle<'_, _>| {
            writer.join().unwrap_or_else(|_| Err("a writer panicked".to_owned()))
        };
        writers.into_iter().try_for_each(end)
    })?;
    let found = get(store, "count/a")?.map_or(Ok(0), |value| number(&value.bytes))?;
    ensure(found == WRITERS * COUNTS, || format!("{found} of {}", WRITERS * COUNTS))
}

fn number(bytes: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn a_batch_is_whole_or_nothing(store: &dyn Store) -> Result<(), String> {
    clear(store, "batch/")?;
    written(store, put("batch/old", b"1"))?;
    let batch = Batch {
        expect: vec![("batch/old".into(), 0)],
        put: vec![("batch/new".into(), b"1".into())],
        delete: vec!["batch/old".into()],
    };
    let outcome = store.commit(batch.clone()).map_err(told)?;
    ensure(outcome == Outcome::Conflict, || format!("{outcome:?} against the expectation"))?;
    let untouched = get(store, "batch/new")?.is_none() && get(store, "batch/old")?.is_some();
    ensure(untouched, || "a refused batch was written in part".to_owned())?;
    written(store, Batch { expect: Vec::new(), ..batch })?;
    let done = get(store, "batch/new")?.is_some() && get(store, "batch/old")?.is_none();
    ensure(done, || "a batch was written in part".to_owned())
}

fn a_put_after_a_delete_is_a_put(store: &dyn Store) -> Result<(), String> {
    written(store, put("both/a", b"1"))?;
    let both = Batch { delete: vec!["both/a".into()], ..put("both/a", b"2") };
    written(store, both)?;
    let found = get(store, "both/a")?.map(|value| value.bytes);
    ensure(found.as_deref() == Some(b"2"), || format!("{found:?} is there"))
}

fn list_gives_a_prefix_in_order(store: &dyn Store) -> Result<(), String> {
    for key in ["list/b", "list/a", "listen", "lis", "list/a/1"] {
        written(store, put(key, b""))?;
    }
    let keys: Vec<String> =
        store.list("list/").map_err(told)?.into_iter().map(|(key, _)| key).collect();
    ensure(keys == ["list/a", "list/a/1", "list/b"], || format!("{keys:?}"))
}

fn a_long_list_is_one_picture(store: &dyn Store) -> Result<(), String> {
    clear(store, "long/")?;
    let key = |n: usize| (format!("long/{n:06}"), vec![b'x'; 200]);
    for part in (Batch { put: (0..LONG).map(key).collect(), ..Batch::default() }).split() {
        written(store, part)?;
    }
    let found = store.list("long/").map_err(told)?;
    let whole =
        found.iter().map(|(key, _)| key).eq((0..LONG).map(|n| key(n).0).collect::<Vec<_>>().iter());
    clear(store, "long/")?;
    ensure(whole, || format!("{} of {LONG} keys", found.len()))
}

fn the_largest_batch_fits(store: &dyn Store) -> Result<(), String> {
    clear(store, "large/")?;
    let key = "large/a";
    written(store, put(key, &vec![b'x'; BATCH_BYTES_MAX - key.len()]))?;
    let found = get(store, key)?.map_or(0, |value| value.bytes.len());
    ensure(found == BATCH_BYTES_MAX - key.len(), || format!("{found} bytes"))?;
    let many = (0..BATCH_OPS_MAX).map(|n| (format!("large/n{n}"), vec![0])).collect();
    written(store, Batch { put: many, ..Batch::default() })?;
    let found = store.list("large/n").map_err(told)?.len();
    clear(store, "large/")?;
    ensure(found == BATCH_OPS_MAX, || format!("{found} of {BATCH_OPS_MAX} keys"))
}

fn a_larger_batch_is_refused(store: &dyn Store) -> Result<(), String> {
    let bytes = put("larger/a", &vec![b'x'; BATCH_BYTES_MAX]);
    let many = (0..=BATCH_OPS_MAX).map(|n| (format!("larger/n{n}"), vec![0])).collect();
    for batch in [bytes, Batch { put: many, ..Batch::default() }] {
        let refused = matches!(store.commit(batch), Err(StoreError::TooLarge { .. }));
        ensure(refused, || "it was not refused as TooLarge".to_owned())?;
    }
    let left = store.list("larger/").map_err(told)?.len();
    ensure(left == 0, || format!("{left} keys of refused batches"))
}

fn any_writes_can_be_split(store: &dyn Store) -> Result<(), String> {
    clear(store, "split/")?;
    let put: Vec<_> =
        (0..3 * BATCH_OPS_MAX).map(|n| (format!("split/{n:04}"), vec![b'x'; 20_000])).collect();
    let parts = (Batch { put: put.clone(), ..Batch::default() }).split();
    let order: Vec<&String> = parts.iter().flat_map(|part| &part.put).map(|(key, _)| key).collect();
    ensure(order.into_iter().eq(put.iter().map(|(key, _)| key)), || "another order".to_owned())?;
    for part in parts.clone() {
        written(store, part)?;
    }
    let found = store.list("split/").map_err(told)?.len();
    clear(store, "split/")?;
    ensure(found == put.len(), || format!("{found} of {} keys", put.len()))
}

fn claim(store: &dyn Store, name: &str, bytes: &[u8], wait: Duration) -> Result<Claim, String> {
    store.claim(name, bytes, CLAIM_TTL, wait).map_err(told)
}

fn held(claim: Claim) -> Result<Box<dyn Hold>, String> {
    match claim {
        Claim::Held(hold) => Ok(hold),
        Claim::Other(bytes) => Err(format!("{bytes:?} holds it")),
    }
}

fn a_claim_has_one_holder(store: &dyn Store) -> Result<(), String> {
    let first = held(claim(store, "one", b"first", CLAIM_WAIT)?)?;
    match claim(store, "one", b"second", Duration::ZERO)? {
        Claim::Other(bytes) if bytes == b"first" => {}
        Claim::Other(bytes) => return Err(format!("{bytes:?} is said to hold it")),
        Claim::Held(_) => return Err("two hold it".to_owned()),
    }
    let other = held(claim(store, "another", b"", CLAIM_WAIT)?)?;
    first.release().map_err(told)?;
    held(claim(store, "one", b"second", Duration::ZERO)?)?.release().map_err(told)?;
    other.release().map_err(told)
}

fn a_claim_stays_as_long_as_it_is_renewed(store: &dyn Store) -> Result<(), String> {
    let mut first = held(claim(store, "kept", b"first", CLAIM_WAIT)?)?;
    let second = std::thread::scope(|scope| {
        let waits = scope.spawn(|| claim(store, "kept", b"second", 2 * CLAIM_TTL));
        while !waits.is_finished() {
            ensure(first.renew().map_err(told)?, || "a renewed claim ran out".to_owned())?;
            std::thread::sleep(CLAIM_TTL / 20);
        }
        waits.join().unwrap_or_else(|_| Err("who waited panicked".to_owned()))
    })?;
    ensure(matches!(second, Claim::Other(_)), || "two hold it".to_owned())?;
    first.release().map_err(told)
}

fn a_claim_that_nobody_renews_runs_out(store: &dyn Store) -> Result<(), String> {
    let mut first = held(claim(store, "left", b"first", CLAIM_WAIT)?)?;
    let start = Instant::now();
    let second = held(claim(store, "left", b"second", CLAIM_WAIT)?)?;
    let took = start.elapsed();
    // Both clocks started a moment after the claim was taken.
    ensure(took + CLAIM_TTL / 10 >= CLAIM_TTL, || format!("it ran out after {took:?}"))?;
    ensure(!first.renew().map_err(told)?, || "who lost it renews it".to_owned())?;
    first.release().map_err(told)?;
    match claim(store, "left", b"third", Duration::ZERO)? {
        Claim::Other(_) => second.release().map_err(told),
        Claim::Held(_) => Err("who lost it ended it for the next one".to_owned()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::EmbeddedStore;
    use super::*;

    #[test]
    fn the_embedded_store_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        for fact in FACTS {
            (fact.holds)(&store).unwrap_or_else(|wrong| panic!("{}: {wrong}", fact.name));
        }
    }

    #[test]
    fn the_embedded_store_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).unwrap();
        let before = written(&store, put("a", b"1")).unwrap();
        drop(store);
        let store = EmbeddedStore::open(dir.path()).unwrap();
        assert_eq!(store.get("a").unwrap().unwrap().revision, before);
        assert!(written(&store, put("b", b"1")).unwrap() > before);
    }

    #[test]
    fn the_embedded_store_belongs_to_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let _held = EmbeddedStore::open(dir.path()).unwrap();
        assert!(matches!(EmbeddedStore::open(dir.path()), Err(StoreError::Locked { .. })));
    }
}
