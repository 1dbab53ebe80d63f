//! Renews the agent's certificate in time, and when the hub's CA changes, whatever the stream does.
//!
//! A stream that stands goes on: what it showed at its start is not looked at again, and the next one
//! shows the new certificate. When it is time is decided in `fairlead-agent-core::renewal`. Fails by
//! trying again; the old certificate is used for as long as it is good, and may be renewed after that.

use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::renewal::{self, Trust};

use crate::clock::wall_now;
use crate::identity::{AgentIdentity, Identities};

/// Keeps the certificate fresh for ever. The first one is the stream's business: it needs a token.
pub async fn keep_fresh(identities: Arc<Identities>) {
    let (mut kept, mut told) = (identities.subscribe(), identities.told());
    let mut failures = 0;
    loop {
        let identity = kept.borrow_and_update().clone();
        let Some((identity, life)) = identity.and_then(|i| Some((i.clone(), i.life()?))) else {
            // Its sender is ours: it cannot be gone.
            let _ = kept.changed().await;
            continue;
        };
        let trust = trust(&identity, told.borrow_and_update().as_deref());
        let wait = renewal::wait_ms(life, trust, failures, wall_now(), rand::random());
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            Ok(()) = kept.changed() => {
                failures = 0;
                continue;
            }
            Ok(()) = told.changed() => continue,
        }
        if trust == Trust::AsTold && !life.is_due(wall_now()) {
            continue;
        }
        // What went wrong was logged where it did. A renewal that did not help is one that failed.
        let renewed = identities.refresh().await.ok();
        let helps = |now: AgentIdentity| {
            now.leaf != identity.leaf
                && self::trust(&now, told.borrow().as_deref()) == Trust::AsTold
        };
        failures = if renewed.is_some_and(helps) { 0 } else { failures.saturating_add(1) };
    }
}

fn trust(identity: &AgentIdentity, told: Option<&str>) -> Trust {
    match told {
        Some(ca_pem) if ca_pem != identity.ca_pem => Trust::Outdated,
        Some(_) | None => Trust::AsTold,
    }
}
