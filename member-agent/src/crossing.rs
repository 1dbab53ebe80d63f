//! The member's own certificates of the crossing: its CA, the leaf of its door, the leaf of its callers.
//!
//! The CA is made once and never changed here: peers pin it. Leafs are made from it and renewed after
//! a third of their life, or as soon as they are not what they should be. Keys stay in Secrets of our
//! own namespace. Fails by trying again; without certificates there is no door and no crossing, and
//! everything else goes on.

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::{ClusterUid, Millis};
use fairlead_translate::names;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::clock::wall_now;
use crate::pki::{self, CertificateFacts, PkiError, Purpose};
use crate::secret::{Data, Secrets};
use crate::tls::Leaf;

const TLS_SECRET: &str = "kubernetes.io/tls";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// RBAC allows no watch of Secrets; a deleted one is noticed after that.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// The certificates in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// Our CA, PEM.
    pub ca_pem: String,
    /// What our gateways, our probes and our knock show at doors.
    pub client: Leaf,
}

/// Why the certificates are not there.
#[derive(Debug, thiserror::Error)]
pub enum CrossingError {
    /// The API server refuses or is away.
    #[error("Secret {name}: {}", crate::api::message(source))]
    Secret {
        /// Which.
        name: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// A certificate cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The CA's Secret is there, but not what it should be. It is never replaced silently: every
    /// peer has pinned it.
    #[error("Secret {name} does not hold a CA that can be used; delete it to have a new one made")]
    Broken {
        /// Which.
        name: &'static str,
    },
}

/// Keeps the certificates there and fresh; sends the newest.
pub async fn keep_crossing(
    secrets: Secrets,
    uid: ClusterUid,
    current: watch::Sender<Option<Arc<Crossing>>>,
) {
    loop {
        let wait = match ensure(&secrets, &uid, wall_now()).await {
            Ok(crossing) => {
                let crossing = Some(Arc::new(crossing));
                current.send_if_modified(|held| {
                    let changed = *held != crossing;
                    *held = crossing;
                    changed
                });
                LOOK_AGAIN
            }
            Err(error) => {
                warn!(%error, "crossing certificates are not ready");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn ensure(
    secrets: &Secrets,
    uid: &ClusterUid,
    now: Millis,
) -> Result<Crossing, CrossingError> {
    let ca = ensure_ca(secrets, uid, now).await?;
    let hosts = vec![names::server_name(uid), names::sni_wildcard(uid)];
    let door = (keys::SECRET_EAST_WEST_SERVER, hosts, Purpose::Server);
    ensure_leaf(secrets, &ca, door, now).await?;
    let hosts = vec![names::client_name(uid)];
    let caller = (keys::SECRET_EAST_WEST_CLIENT, hosts, Purpose::Client);
    let client = ensure_leaf(secrets, &ca, caller, now).await?;
    Ok(Crossing { ca_pem: ca.cert_pem, client })
}

async fn ensure_ca(
    secrets: &Secrets,
    uid: &ClusterUid,
    now: Millis,
) -> Result<Leaf, CrossingError> {
    let name = keys::SECRET_CROSSING_CA;
    let failed = |source| CrossingError::Secret { name, source };
    loop {
        if let Some(data) = secrets.get(name).await.map_err(failed)? {
            return leaf_of(&data)
                .filter(|ca| pki::is_signed_by(&ca.cert_pem, &ca.cert_pem))
                .ok_or(CrossingError::Broken { name });
        }
        let ca = pki::make_ca(&format!("fairlead crossing {uid}"), now)?;
        // Whoever created it first made the one that counts: read it back.
        if secrets.create(name, TLS_SECRET, &data_of(&ca, &ca)).await.map_err(failed)? {
            info!("made the crossing CA of this cluster");
        }
    }
}

async fn ensure_leaf(
    secrets: &Secrets,
    ca: &Leaf,
    (name, hosts, purpose): (&'static str, Vec<String>, Purpose),
    now: Millis,
) -> Result<Leaf, CrossingError> {
    let failed = |source| CrossingError::Secret { name, source };
    let held = secrets.get(name).await.map_err(failed)?;
    if let Some(leaf) = held.as_ref().and_then(leaf_of).filter(|l| is_good(l, ca, &hosts, now)) {
        return Ok(leaf);
    }
    let leaf = pki::make_leaf(ca, &hosts, purpose, now)?;
    secrets.set(name, TLS_SECRET, &data_of(&leaf, ca)).await.map_err(failed)?;
    info!(secret = name, "made a crossing certificate");
    Ok(leaf)
}

fn is_good(leaf: &Leaf, ca: &Leaf, hosts: &[String], now: Millis) -> bool {
    let Ok(facts) = CertificateFacts::of(&leaf.cert_pem) else { return false };
    facts.names == hosts
        && now < facts.at_share(1, 3)
        && now >= facts.not_before
        && pki::is_signed_by(&leaf.cert_pem, &ca.cert_pem)
}

fn leaf_of(data: &Data) -> Option<Leaf> {
    Some(Leaf { cert_pem: data.get(CERT)?.clone(), key_pem: data.get(KEY)?.clone() })
}

fn data_of(leaf: &Leaf, ca: &Leaf) -> Data {
    let value = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    [value(CERT, &leaf.cert_pem), value(KEY, &leaf.key_pem), value(CA, &ca.cert_pem)].into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);
    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn a_leaf_is_good_for_a_third_of_its_life_for_its_names_and_ca() {
        let hosts = |name: &str| vec![name.to_owned(), "*.a".to_owned()];
        let [a, b] = [hosts("door.a"), hosts("door.b")];
        let ca = pki::make_ca("ca", NOW).unwrap();
        let other = pki::make_ca("ca", NOW).unwrap();
        let leaf = pki::make_leaf(&ca, &a, Purpose::Server, NOW).unwrap();
        assert!(is_good(&leaf, &ca, &a, NOW));
        assert!(is_good(&leaf, &ca, &a, NOW.plus(29 * DAY_MS)));
        assert!(!is_good(&leaf, &ca, &a, NOW.plus(31 * DAY_MS)));
        assert!(!is_good(&leaf, &ca, &b, NOW));
        assert!(!is_good(&leaf, &ca, &a[..1], NOW));
        assert!(!is_good(&leaf, &other, &a, NOW));
        let broken = Leaf { cert_pem: "x".to_owned(), ..leaf };
        assert!(!is_good(&broken, &ca, &a, NOW));
    }
}
