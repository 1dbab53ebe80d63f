//! What a request asks the echo to do, by its query: fail some times, or take its time.
//!
//! `?delay_ms=500` answers later; `?fail=2&key=K` answers 503 to the first two requests with that
//! key, whatever replica they reach.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;

const DELAY_MAX: Duration = Duration::from_secs(30);
const KEYS_MAX: usize = 10_000;

/// What a request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) delay: Duration,
    pub(super) key: Option<String>,
    failures: u32,
}

impl Wish {
    pub(super) fn of(query: &str) -> Self {
        let mut wish = Self::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "delay_ms" => {
                    let delay = Duration::from_millis(value.parse().unwrap_or_default());
                    wish.delay = delay.min(DELAY_MAX);
                }
                "fail" => wish.failures = value.parse().unwrap_or_default(),
                "key" => wish.key = Some(value.to_owned()),
                _ => {}
            }
        }
        wish
    }

    pub(super) fn status(&self, attempt: u32) -> StatusCode {
        match self.key.is_some() && attempt <= self.failures {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        }
    }
}

/// Requests so far, by key.
#[derive(Default)]
pub(super) struct Tally(Mutex<BTreeMap<String, u32>>);

impl Tally {
    pub(super) fn count(&self, key: &str) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= KEYS_MAX && !counts.contains_key(key) {
            counts.clear();
        }
        let count = counts.entry(key.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_and_nonsense_means_nothing() {
        let wish = Wish::of("delay_ms=20&fail=2&key=k&x");
        assert_eq!((wish.delay, wish.key.as_deref()), (Duration::from_millis(20), Some("k")));
        assert_eq!(
            (wish.status(2), wish.status(3)),
            (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK)
        );
        assert_eq!(Wish::of("delay_ms=x&fail=&&"), Wish::default());
    }
}
