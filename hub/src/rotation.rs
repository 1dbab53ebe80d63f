//! Changes the hub's own CA and its capability keys when somebody asks for it.
//!
//! One loop for each of the two Secrets: it takes over whatever the Secret holds, and takes the next step
//! of a change when [`fairlead_model::rotation`] says so. Each write carries the version that was
//! read, so that nobody's write is lost. Fails by trying again; until then everything stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_crds::keys;
use fairlead_model::ledger::Digest;
use fairlead_model::rotation::{CA_STEPS, KEY_STEPS, Look, Next, Record, SETTLE_MS, next};
use fairlead_model::{MemberId, Millis};
use fairlead_translate::CapabilityKeys;
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt as _};

use crate::authority::Authority;
use crate::bootstrap::{self, BootstrapError};
use crate::clock;
use crate::conductor::Current;
use crate::fleet::{Fleet, MemberNow};
use crate::metrics::Metrics;

/// How often members are looked at while a change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(500);

type Data = BTreeMap<String, ByteString>;

/// What changes step by step.
pub trait Turning: Send + Sync {
    /// The Secret that it is kept in.
    fn secret(&self) -> &'static str;
    /// Steps of a change.
    fn steps(&self) -> u32;
    /// Goes by what the Secret holds from now on.
    ///
    /// # Errors
    /// When the Secret cannot be used; what was held before stays.
    fn adopt(&self, data: &Data) -> Result<(), BootstrapError>;
    /// Members that do not hold what is given out now.
    fn missing(&self) -> BTreeSet<MemberId>;
    /// What the Secret holds after this step.
    ///
    /// # Errors
    /// When a key cannot be made.
    fn step(&self, data: &Data, record: &Record) -> Result<Data, BootstrapError>;
}

/// Watches the Secret and takes steps for ever.
pub async fn turn(client: Client, namespace: String, metrics: Arc<Metrics>, turning: impl Turning) {
    let mut waits_for = BTreeSet::new();
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let name = turning.secret();
    let mut seen = pin!(watch_object(secrets.clone(), name).default_backoff());
    let mut held: Option<Secret> = None;
    let mut whole_since = None;
    let mut turns = false;
    loop {
        tokio::select! {
            event = seen.next() => match event {
                Some(Ok(secret)) => held = secret,
                Some(Err(error)) => tracing::warn!(secret = name, %error, "cannot watch a Secret"),
                // A watch goes on for ever.
                None => return,
            },
            () = tokio::time::sleep(LOOK_EVERY), if turns => {}
        }
        let Some(secret) = &held else { continue };
        let data = secret.data.clone().unwrap_or_default();
        if let Err(error) = turning.adopt(&data) {
            tracing::error!(secret = name, %error, "a Secret cannot be used; the one before counts");
            continue;
        }
        let missing: BTreeSet<String> =
            turning.missing().difference(&without(secret)).map(ToString::to_string).collect();
        whole_since = missing.is_empty().then(|| whole_since.unwrap_or_else(clock::now));
        let record = record_of(secret);
        let next = decide(secret, record.as_ref(), &missing, whole_since, turning.steps());
        turns = next != Next::Nothing;
        let missing = if turns { missing } else { BTreeSet::new() };
        metrics.set_rotation(name, &waits_for, &missing);
        waits_for = missing;
        let written = match &next {
            Next::Nothing => {
                // Nobody looks at members from now on.
                whole_since = None;
                continue;
            }
            Next::Wait(now) if Some(now) == record.as_ref() => continue,
            Next::Wait(now) => write(&secrets, secret, data, now).await,
            Next::Step(now) => match turning.step(&data, now) {
                Ok(data) => {
                    whole_since = None;
                    tracing::info!(secret = name, step = now.step, of = now.of, "changing keys");
                    write(&secrets, secret, data, now).await
                }
                Err(error) => {
                    tracing::error!(secret = name, %error, "cannot make a key");
                    continue;
                }
            },
        };
        if let Err(error) = written {
            tracing::warn!(secret = name, %error, "cannot write a Secret; trying again");
        }
    }
}

fn decide(
    secret: &Secret,
    record: Option<&Record>,
    missing: &BTreeSet<String>,
    whole_since: Option<Millis>,
    steps: u32,
) -> Next {
    let asked = secret.annotations().get(keys::ROTATE).map(String::as_str);
    let now = clock::now();
    next(Look { asked, record, missing, whole_since, settle_ms: SETTLE_MS, now }, steps)
}

fn record_of(secret: &Secret) -> Option<Record> {
    serde_json::from_str(secret.annotations().get(keys::ROTATION)?).ok()
}

/// Members that somebody said not to wait for.
fn without(secret: &Secret) -> BTreeSet<MemberId> {
    let names = secret.annotations().get(keys::ROTATE_WITHOUT).map_or("", String::as_str);
    names.split(',').filter_map(|name| MemberId::new(name.trim()).ok()).collect()
}

async fn write(
    secrets: &Api<Secret>,
    secret: &Secret,
    data: Data,
    record: &Record,
) -> kube::Result<()> {
    let mut next = secret.clone();
    next.data = Some(data);
    let text = serde_json::to_string(record).expect("names and numbers");
    next.annotations_mut().insert(keys::ROTATION.to_owned(), text);
    // Managed fields of the one before are no business of a replacement.
    next.metadata.managed_fields = None;
    let params = PostParams {
        field_manager: Some(keys::FIELD_MANAGER_HUB.to_owned()),
        ..PostParams::default()
    };
    secrets.replace(&secret.name_any(), &params, &next).await.map(drop)
}

/// Members that have joined, as they are now.
fn joined(current: &Current, fleet: &Fleet) -> Vec<(MemberId, MemberNow)> {
    let members = &current.ingested.policy.members;
    let has_joined = |member: &MemberId| members.get(member).is_some_and(|m| m.uid.is_some());
    fleet.look().into_iter().filter(|(member, _)| has_joined(member)).collect()
}

fn believes(now: &MemberNow, wanted: Option<Digest>) -> bool {
    now.connected && now.said.trust == wanted
}

/// The CA of the control plane.
pub struct HubCa {
    /// Who signs and who is believed.
    pub authority: Arc<Authority>,
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// Which members there are.
    pub current: Arc<ArcSwap<Current>>,
}

impl Turning for HubCa {
    fn secret(&self) -> &'static str {
        keys::SECRET_HUB_CA
    }

    fn steps(&self) -> u32 {
        CA_STEPS
    }

    fn adopt(&self, data: &Data) -> Result<(), BootstrapError> {
        self.authority.set(bootstrap::read_authorities(data)?);
        Ok(())
    }

    /// A member believes what it says, and got its certificate with that.
    fn missing(&self) -> BTreeSet<MemberId> {
        let wanted = Some(self.authority.now().digest());
        let members = joined(&self.current.load(), &self.fleet).into_iter();
        members.filter(|(_, now)| !believes(now, wanted)).map(|(member, _)| member).collect()
    }

    fn step(&self, data: &Data, record: &Record) -> Result<Data, BootstrapError> {
        match record.done {
            false => bootstrap::with_next_ca(data),
            true => Ok(bootstrap::promote_next_ca(data)),
        }
    }
}

/// The keys of capabilities.
pub struct Capabilities {
    /// The keys.
    pub keys: Arc<ArcSwap<CapabilityKeys>>,
    /// Members as they are.
    pub fleet: Arc<Fleet>,
    /// What they should hold.
    pub current: Arc<ArcSwap<Current>>,
}

impl Turning for Capabilities {
    fn secret(&self) -> &'static str {
        keys::SECRET_HUB_KEYS
    }

    fn steps(&self) -> u32 {
        KEY_STEPS
    }

    fn adopt(&self, data: &Data) -> Result<(), BootstrapError> {
        let keys = bootstrap::read_keys(data)?;
        if **self.keys.load() != keys {
            self.keys.store(Arc::new(keys));
            self.fleet.changed.mark();
        }
        Ok(())
    }

    /// A member has applied what was rendered with the newest key, and its gateway has taken it.
    fn missing(&self) -> BTreeSet<MemberId> {
        let current = self.current.load();
        let rendered = current.keyed == self.keys.load().newest();
        let holds = |now: &MemberNow| rendered && now.holds_newest();
        let members = joined(&current, &self.fleet).into_iter();
        members.filter(|(_, now)| !holds(now)).map(|(member, _)| member).collect()
    }

    fn step(&self, data: &Data, record: &Record) -> Result<Data, BootstrapError> {
        Ok(match record.done {
            false => bootstrap::with_new_key(data),
            true => bootstrap::without_old_keys(data),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_secret(annotations: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        for (key, value) in annotations {
            secret.annotations_mut().insert((*key).to_owned(), (*value).to_owned());
        }
        secret
    }

    #[test]
    fn who_is_left_out_is_a_list_of_names_and_the_rest_is_ignored() {
        let of = |text| without(&mk_secret(&[(keys::ROTATE_WITHOUT, text)]));
        let names =
            |set: BTreeSet<MemberId>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(of("west, east,,No_name")), ["east", "west"]);
        assert_eq!(names(of("")), [""; 0]);
        assert_eq!(names(without(&mk_secret(&[]))), [""; 0]);
    }

    #[test]
    fn a_record_that_is_none_is_as_no_record() {
        let record = Record { asked: "a".into(), step: 1, ..Record::default() };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(record_of(&mk_secret(&[(keys::ROTATION, &text)])), Some(record));
        assert_eq!(record_of(&mk_secret(&[(keys::ROTATION, "yes")])), None);
        assert_eq!(record_of(&mk_secret(&[])), None);
    }

    #[test]
    fn members_that_say_nothing_of_their_trust_are_waited_for() {
        let pem = crate::pki::make_ca(clock::now()).unwrap();
        let ca = crate::pki::Ca::open(&pem).unwrap();
        let authority = Authority::new(crate::authority::Authorities::new(ca, None));
        let wanted = Some(authority.now().digest());
        let now = |trust, connected| {
            let said = crate::fleet::Said { trust, ..Default::default() };
            MemberNow { said, connected, ..MemberNow::default() }
        };
        assert!(believes(&now(wanted, true), wanted));
        let others = [now(wanted, false), now(None, true), now(Some([0; 32]), true)];
        assert!(others.iter().all(|now| !believes(now, wanted)));
    }
}
