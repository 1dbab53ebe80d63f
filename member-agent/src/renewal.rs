//! Renews the agent's certificate in time, whatever the stream does.
//!
//! A stream that stands goes on: what it showed at its start is not looked at again, and the next one
//! shows the new certificate. When it is time is decided in `fairlead-agent-core::renewal`. Fails by
//! trying again; the old certificate is used for as long as it is good, and may be renewed after that.

use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::renewal;

use crate::clock::wall_now;
use crate::identity::Identities;

/// Keeps the certificate fresh for ever. The first one is the stream's business: it needs a token.
pub async fn keep_fresh(identities: Arc<Identities>) {
    let mut kept = identities.subscribe();
    let mut failures = 0;
    loop {
        let life = kept.borrow_and_update().as_ref().and_then(|identity| identity.life());
        let Some(life) = life else {
            // Its sender is ours: it cannot be gone.
            let _ = kept.changed().await;
            continue;
        };
        let wait = renewal::wait_ms(life, failures, wall_now(), rand::random());
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            Ok(()) = kept.changed() => {
                failures = 0;
                continue;
            }
        }
        if !life.is_due(wall_now()) {
            continue;
        }
        // What went wrong was logged where it did.
        let renewed = identities.obtain().await.ok().and_then(|identity| identity.life());
        failures = match renewed.is_some_and(|life| !life.is_due(wall_now())) {
            true => 0,
            false => failures.saturating_add(1),
        };
    }
}
