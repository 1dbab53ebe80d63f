//! Parts of the hub of which neither goes on without the other.
//!
//! Owns that whichever ends first, well or not, stops the other, and that one that does not stop in time is
//! left behind: it may wait for what is gone.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Runs both until `stop`, or until one of them ends; gives what was wrong with the first, else the other.
///
/// # Errors
/// Those of the parts.
pub async fn together(
    stop: &CancellationToken,
    grace: Duration,
    first: impl Future<Output = anyhow::Result<()>>,
    other: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (first, other) = tokio::join!(part(stop, grace, first), part(stop, grace, other));
    first.and(other)
}

async fn part(
    stop: &CancellationToken,
    grace: Duration,
    part: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    let ended = tokio::select! {
        ended = part => ended,
        () = late => Ok(()),
    };
    stop.cancel();
    ended
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use anyhow::anyhow;

    use super::*;

    async fn said(
        first: impl Future<Output = anyhow::Result<()>>,
        other: impl Future<Output = anyhow::Result<()>>,
    ) -> String {
        let stop = CancellationToken::new();
        let ended = together(&stop, Duration::from_millis(1), first, other).await;
        assert!(stop.is_cancelled());
        ended.map_or_else(|error| error.to_string(), |()| "well".to_owned())
    }

    #[tokio::test]
    async fn whichever_ends_first_ends_the_other_and_the_fault_is_told() {
        let fault = async |what: &'static str| -> anyhow::Result<()> { Err(anyhow!(what)) };
        let well = async || -> anyhow::Result<()> { Ok(()) };
        assert_eq!(said(fault("a"), pending()).await, "a");
        assert_eq!(said(pending(), fault("b")).await, "b");
        assert_eq!(said(fault("a"), fault("b")).await, "a");
        assert_eq!(said(well(), fault("b")).await, "b");
        assert_eq!(said(well(), pending()).await, "well");
    }

    #[tokio::test]
    async fn a_part_that_heeds_the_stop_is_waited_for() {
        let stop = CancellationToken::new();
        let heeds = async {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            Err(anyhow!("on its way out"))
        };
        let ended = together(&stop, Duration::from_secs(60), async { Ok(()) }, heeds).await;
        assert_eq!(ended.map_err(|error| error.to_string()), Err("on its way out".to_owned()));
    }
}
