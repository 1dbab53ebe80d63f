//! The only place of the hub that reads the clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fairlead_model::Millis;

/// Now. A clock before 1970 reads as 1970.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Sleeps until a moment of [`now`]; at once when it is past.
pub async fn sleep_until(at: Millis) {
    tokio::time::sleep(Duration::from_millis(at.since(now()))).await;
}

/// Sleeps until a moment, or for ever when there is none.
pub async fn sleep_until_some(at: Option<Millis>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
