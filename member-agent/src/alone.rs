//! Is it them or us? Before an agent acts on many peers failing together, it looks at itself.
//!
//! When over half of the peers fail in one window, our own gateway is asked through its door. If that
//! answers, the network around us works and the verdicts count. If it does not, perhaps we are the one
//! cut off, and our gateway, elsewhere, is fine: what is live stays. A member without a door has
//! nothing to ask and believes its probes.

use std::sync::Arc;
use std::time::Duration;

use fairlead_agent_core::probe::{Suspicion, suspect};
use fairlead_model::ClusterUid;
use fairlead_model::health::ProbeReport;
use fairlead_model::snapshot::Snapshot;
use fairlead_translate::names;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::crossing::Crossing;
use crate::knock::{Visit, door_of, visit_as_member};
use crate::tls::{self, Trust};

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The report that was checked last, and what to make of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Belief {
    /// The report that is believed although it looks as if we were alone.
    pub believed: Option<ProbeReport>,
}

impl Belief {
    /// What to make of a report.
    pub fn of(&self, report: &ProbeReport) -> Suspicion {
        match suspect(report) {
            Suspicion::Alone if self.believed.as_ref() != Some(report) => Suspicion::Alone,
            Suspicion::Alone | Suspicion::None => Suspicion::None,
        }
    }
}

/// Looks at ourselves when the probes say that everybody else is gone.
pub async fn doubt(
    uid: ClusterUid,
    mut report: watch::Receiver<ProbeReport>,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    crossing: watch::Receiver<Option<Arc<Crossing>>>,
    belief: watch::Sender<Belief>,
) {
    loop {
        let seen = report.borrow_and_update().clone();
        if belief.borrow().of(&seen) == Suspicion::Alone {
            let door = snapshot.borrow().as_deref().and_then(door_of);
            let certificates = crossing.borrow().clone();
            let fine = match (door, certificates) {
                (Some((addresses, port)), Some(crossing)) => {
                    answers(&uid, &addresses, port, &crossing).await
                }
                _ => true,
            };
            if fine {
                info!("over half of the peers fail together; our own door answers, so it is them");
                belief.send_replace(Belief { believed: Some(seen) });
            } else {
                warn!(
                    "over half of the peers fail together and so does our own door: nothing is changed"
                );
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        }
        if report.changed().await.is_err() {
            return;
        }
    }
}

async fn answers(
    uid: &ClusterUid,
    addresses: &[fairlead_model::snapshot::Address],
    port: u16,
    crossing: &Crossing,
) -> bool {
    let trust = Trust::Ca(crossing.ca_pem.clone());
    let Ok(config) = tls::client_config(&trust, Some(&crossing.client), &["http/1.1"]) else {
        return true;
    };
    let (config, name) = (Arc::new(config), names::server_name(uid));
    for address in addresses {
        if visit_as_member(&config, &name, address, port).await == Visit::Answered {
            return true;
        }
    }
    false
}
