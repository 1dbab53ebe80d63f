//! The member's own certificates of the crossing: its CA, the leaf of its door, the leaf of its callers.
//!
//! The CA is made once and pinned by peers. When somebody asks for another one, by an annotation on its
//! Secret, it is changed step by step ([`fairlead_model::rotation`], module `authority`): the hub says who does
//! not hold the next one yet, and our own gateway is asked what it shows. Leafs are made from it and renewed
//! after a third of their life, or as soon as they are not what they should be. Keys stay in Secrets of
//! our own namespace. Fails by trying again; without certificates there is no door and no crossing, and
//! everything else goes on.

mod authority;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::rotation::{CROSSING_STEPS, Look, Next, Record, next};
use fairlead_model::session::CrossingHeld;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{ClusterUid, Json, Millis};
use fairlead_translate::names;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

use self::authority::Authority;
use crate::clock::{Clock, wall_now};
use crate::knock::{Visit, door_of, visit_as_member};
use crate::pki::{self, CertificateFacts, PkiError, Purpose};
use crate::secret::{Data, Secrets, data_of as values_of};
use crate::tls::{self, Leaf, TlsError, Trust};

const TLS_SECRET: &str = "kubernetes.io/tls";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// RBAC allows no watch of Secrets; a deleted one, or one whose change is asked for, is noticed after that.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// The same while the CA changes.
const LOOK_SOON: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(2);
/// So long all others must hold a step before the next one: gateways take certificates up after agents
/// have written them, and only our own can be asked.
const SETTLE_MS: u64 = 10_000;
/// Who is waited for beside members.
const HUB: &str = "the hub";
const OWN_GATEWAY: &str = "the gateway of this cluster";
const OTHERS: &str = "other members";

/// The certificates in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// Our CA, PEM; two certificates while it changes.
    pub ca_pem: String,
    /// Certificates of earlier CAs for later ones, PEM each.
    pub endorsements: Vec<String>,
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
    /// A certificate cannot be shown.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The CA's Secret is there, but not what it should be. It is never replaced silently: every
    /// peer has pinned it.
    #[error("Secret {name} does not hold a CA that can be used; delete it to have a new one made")]
    Broken {
        /// Which.
        name: &'static str,
    },
}

/// Keeps the certificates there and fresh.
pub struct Keeper {
    /// Where they are.
    pub secrets: Secrets,
    /// Cluster.
    pub uid: ClusterUid,
    /// Time.
    pub clock: Clock,
    /// Where our door is.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Who does not hold our CA yet; none while the hub says nothing.
    pub held: watch::Receiver<Option<CrossingHeld>>,
}

/// A change of the CA, as far as it is known to this process.
#[derive(Default)]
struct Turn {
    whole_since: Option<Millis>,
    /// There is one under way.
    turns: bool,
}

impl Keeper {
    /// Does so for ever; sends the newest.
    pub async fn run(self, current: watch::Sender<Option<Arc<Crossing>>>) {
        let mut turn = Turn::default();
        loop {
            let before = current.borrow().clone();
            let wait = match self.ensure(before.as_deref(), &mut turn, wall_now()).await {
                Ok(crossing) => {
                    let crossing = Some(Arc::new(crossing));
                    current.send_if_modified(|held| {
                        let changed = *held != crossing;
                        *held = crossing;
                        changed
                    });
                    if turn.turns { LOOK_SOON } else { LOOK_AGAIN }
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
        &self,
        before: Option<&Crossing>,
        turn: &mut Turn,
        now: Millis,
    ) -> Result<Crossing, CrossingError> {
        let (object, ca) = self.ensure_ca(now).await?;
        let ca = match self.turn(&object, &ca, before, turn, now).await {
            Ok(after) => after.unwrap_or(ca),
            // A change that does not go on must not keep certificates from being there.
            Err(error) => {
                warn!(%error, "the crossing CA cannot be changed; trying again");
                ca
            }
        };
        let (secrets, uid) = (&self.secrets, &self.uid);
        let hosts = vec![names::server_name(uid), names::sni_wildcard(uid)];
        let door = (keys::SECRET_EAST_WEST_SERVER, hosts, Purpose::Server);
        ensure_leaf(secrets, &ca.signer, door, now).await?;
        let hosts = vec![names::client_name(uid)];
        let caller = (keys::SECRET_EAST_WEST_CLIENT, hosts, Purpose::Client);
        let client = ensure_leaf(secrets, &ca.signer, caller, now).await?;
        Ok(Crossing { ca_pem: ca.text(), endorsements: ca.endorsements, client })
    }

    async fn ensure_ca(&self, now: Millis) -> Result<(Json, Authority), CrossingError> {
        let name = keys::SECRET_CROSSING_CA;
        let failed = |source| CrossingError::Secret { name, source };
        loop {
            if let Some(object) = self.secrets.read(name).await.map_err(failed)? {
                let ca =
                    Authority::of(&values_of(&object)).ok_or(CrossingError::Broken { name })?;
                return Ok((object, ca));
            }
            let ca = Authority::new(&self.uid, now)?;
            // Whoever created it first made the one that counts: read it back.
            if self.secrets.create(name, TLS_SECRET, &ca.data()).await.map_err(failed)? {
                info!("made the crossing CA of this cluster");
            }
        }
    }

    /// Takes the next step of a change that somebody asked for, when it is time: what there is then.
    async fn turn(
        &self,
        object: &Json,
        ca: &Authority,
        before: Option<&Crossing>,
        turn: &mut Turn,
        now: Millis,
    ) -> Result<Option<Authority>, CrossingError> {
        let name = keys::SECRET_CROSSING_CA;
        let failed = |source| CrossingError::Secret { name, source };
        let annotation = |key: &str| object["metadata"]["annotations"][key].as_str();
        let record: Option<Record> =
            annotation(keys::ROTATION).and_then(|text| serde_json::from_str(text).ok());
        let step = record.as_ref().filter(|record| !record.done).map_or(0, |record| record.step);
        let without = annotation(keys::ROTATE_WITHOUT).unwrap_or_default();
        let missing = match step {
            // Nobody has to hold anything yet.
            0 => BTreeSet::new(),
            step => self.missing(ca, before, step, without).await?,
        };
        let at = self.clock.now();
        turn.whole_since = missing.is_empty().then(|| turn.whole_since.unwrap_or(at));
        let next = next(
            Look {
                asked: annotation(keys::ROTATE),
                record: record.as_ref(),
                missing: &missing,
                whole_since: turn.whole_since,
                settle_ms: if step == 0 { 0 } else { SETTLE_MS },
                now: at,
            },
            CROSSING_STEPS,
        );
        turn.turns = next != Next::Nothing;
        let text = |record: &Record| serde_json::to_string(record).expect("names and numbers");
        match next {
            Next::Nothing => Ok(None),
            Next::Wait(now) if Some(&now) == record.as_ref() => Ok(None),
            Next::Wait(now) => {
                let told = (keys::ROTATION, text(&now));
                self.secrets.replace(object, &ca.data(), told).await.map_err(failed)?;
                Ok(None)
            }
            Next::Step(stepped) => {
                let after = ca.step(stepped.step, &self.uid, now)?;
                let told = (keys::ROTATION, text(&stepped));
                self.secrets.replace(object, &after.data(), told).await.map_err(failed)?;
                info!(step = stepped.step, of = stepped.of, "changing the crossing CA");
                turn.whole_since = None;
                Ok(Some(after))
            }
        }
    }

    /// Who does not hold the CAs, or does not show the new one, yet.
    async fn missing(
        &self,
        ca: &Authority,
        before: Option<&Crossing>,
        step: u32,
        without: &str,
    ) -> Result<BTreeSet<String>, CrossingError> {
        let held = self.held.borrow().clone();
        let digest: [u8; 32] = Sha256::digest(ca.text()).into();
        let mut missing = waited_for(held.as_ref().filter(|held| held.ca == digest), without);
        if step >= 2 && !self.shows_own(ca, before).await? {
            missing.insert(OWN_GATEWAY.to_owned());
        }
        Ok(missing)
    }

    /// Our own door shows a certificate of the CA that signs now, and lets in who shows one of it.
    async fn shows_own(
        &self,
        ca: &Authority,
        before: Option<&Crossing>,
    ) -> Result<bool, CrossingError> {
        let door = self.snapshot.borrow().as_deref().and_then(door_of);
        // Without a door nobody comes in; who goes out shows what its gateway took after a moment.
        let Some((addresses, port)) = door else { return Ok(true) };
        let Some(crossing) = before else { return Ok(false) };
        let trust = Trust::Ca(ca.signer.cert_pem.clone());
        let config = tls::client_config(&trust, Some(&crossing.client), &["http/1.1"])?;
        let (config, name) = (Arc::new(config), names::server_name(&self.uid));
        for address in &addresses {
            if visit_as_member(&config, &name, address, port).await != Visit::Answered {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn waited_for(held: Option<&CrossingHeld>, without: &str) -> BTreeSet<String> {
    let Some(held) = held else { return [HUB.to_owned()].into() };
    let without: BTreeSet<&str> = without.split(',').map(str::trim).collect();
    let named = held.missing.iter().filter(|member| !without.contains(member.as_str()));
    let others = held.more.then(|| OTHERS.to_owned());
    named.map(ToString::to_string).chain(others).collect()
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
    fn members_are_waited_for_but_those_left_out_and_the_hub_while_it_says_nothing() {
        let id = |name: &str| fairlead_model::MemberId::new(name).unwrap();
        let missing: BTreeSet<_> = [id("east"), id("west")].into();
        let held = |more| CrossingHeld { ca: [0; 32], missing: missing.clone(), more };
        let names = |held: Option<&CrossingHeld>, without| {
            waited_for(held, without).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(names(None, "east,west"), [HUB]);
        assert_eq!(names(Some(&held(false)), ""), ["east", "west"]);
        assert_eq!(names(Some(&held(false)), "north, east"), ["west"]);
        assert_eq!(names(Some(&held(true)), "east,west"), [OTHERS]);
        assert_eq!(names(Some(&held(false)), "east,west"), [""; 0]);
    }

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
