//! Renews the agent's certificate in time, and when the hub's CA changes, whatever the stream does.
//!
//! A stream that stands goes on: what it showed at its start is not looked at again, and the next one
//! shows the new certificate. When it is time is decided in `fairlead-agent-core::renewal`. Fails by
//! trying again; the old certificate is used for as long as it is good, and may be renewed after that.

use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::renewal::{self, Tried, Trust};
use tracing::warn;

use crate::clock::wall_now;
use crate::identity::{AgentIdentity, Identities};

/// Keeps the certificate fresh for ever. The first one is the stream's business: it needs a token.
pub async fn keep_fresh(identities: Arc<Identities>) {
    let (mut kept, mut told) = (identities.subscribe(), identities.told());
    let mut tried = Tried::Well;
    loop {
        let identity = kept.borrow_and_update().clone();
        let Some((identity, life)) = identity.and_then(|i| Some((i.clone(), i.life()?))) else {
            // Its sender is ours: it cannot be gone.
            let _ = kept.changed().await;
            continue;
        };
        let trust = trust(&identity, told.borrow_and_update().as_deref());
        let wait = renewal::wait_ms(life, trust, tried, wall_now(), rand::random());
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            Ok(()) = kept.changed() => {
                // By the stream: it renews what is due when it dials.
                let held = kept.borrow().clone();
                tried = held.map_or(Tried::Well, |held| came_of(&held));
                continue;
            }
            Ok(()) = told.changed() => continue,
        }
        if trust == Trust::AsTold && !life.is_due(wall_now()) {
            tried = Tried::Well;
            continue;
        }
        // What went wrong was logged where it did.
        tried = match identities.refresh().await {
            Ok(now) if helps(&now, &identity, told.borrow().as_deref()) => came_of(&now),
            _ => tried.failed(),
        };
    }
}

/// A renewal that brought nothing is one that failed.
fn helps(now: &AgentIdentity, before: &AgentIdentity, told: Option<&str>) -> bool {
    now.leaf != before.leaf && trust(now, told) == Trust::AsTold
}

fn came_of(renewed: &AgentIdentity) -> Tried {
    let Some(life) = renewed.life().filter(|life| life.is_due(wall_now())) else {
        return Tried::Well;
    };
    let (from, now) = (life.not_before.0, wall_now().0);
    let apart_s = from.abs_diff(now) / 1_000;
    warn!(apart_s, "the hub's clock and this cluster's are far apart: synchronise them (NTP)");
    Tried::InVain
}

fn trust(identity: &AgentIdentity, told: Option<&str>) -> Trust {
    match told {
        Some(ca_pem) if ca_pem != identity.ca_pem => Trust::Outdated,
        Some(_) | None => Trust::AsTold,
    }
}
