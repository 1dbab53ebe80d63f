//! Waiting for a condition, with a deadline and a reason when it passes.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(50);

/// What a look at a condition says.
pub enum Look<T> {
    Done(T),
    /// Not yet, and why.
    Not(String),
}

/// Looks again and again until it is done or `limit` has passed; then the last reason is told.
///
/// An error from `look` counts as "not yet": servers that start, refuse and reset connections.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Look<T>>>,
{
    let deadline = Instant::now() + limit;
    let mut last = "nothing was seen yet".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(Look::Done(value))) => return Ok(value),
            Ok(Ok(Look::Not(why))) => last = why,
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} for {what}: {last}");
        }
        tokio::time::sleep(PERIOD).await;
    }
}
