//! The Lease that fences hubs: at most one decides, and its numbers are above those of all before.
//!
//! Owns the Lease `fairlead-hub`: who holds it, and the highest process epoch ever taken, which
//! outlives a store that was lost or restored from an older copy. A hub with the same store takes the
//! Lease at once, since it holds the store's claim to decide ([`crate::office`]) and the holder does not
//! any more; one with another store waits until the holder is silent. Never gives the Lease up because the API server is away: nobody else can take it then.

use std::time::{Duration, Instant};

use fairlead_crds::keys;
use fairlead_hub_core::numbering::epoch_above;
use fairlead_model::Millis;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::clock;

/// A holder that is silent for longer has lost the Lease.
const DURATION_SECONDS: i32 = 15;
/// How often the holder renews.
const RENEWAL: Duration = Duration::from_secs(5);
/// Pause between tries to take it.
const RETRY: Duration = Duration::from_secs(1);
/// On the Lease: the highest process epoch that was taken.
const EPOCH: &str = "fairlead.dev/epoch";

/// What the Lease says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Held {
    holder: String,
    renewed_at: Option<Millis>,
    epoch: u64,
    transitions: i32,
}

/// What to do about the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Take it with this epoch.
    Take(u64),
    /// Another hub lives.
    Wait(String),
    /// No higher epoch exists.
    Exhausted,
}

/// `unchanged` is how long we have seen the Lease as it is: the holder's clock may be days ahead of ours,
/// and its last word would count as fresh for as long.
fn decide(held: &Held, id: &str, stored: u64, now: Millis, unchanged: Duration) -> Step {
    let silent = Duration::from_secs(u64::from(DURATION_SECONDS.unsigned_abs()));
    let age = held.renewed_at.map(|at| Duration::from_millis(now.since(at)));
    let alive = age.is_some_and(|age| age.max(unchanged) < silent);
    if !held.holder.is_empty() && store_of(&held.holder) != store_of(id) && alive {
        return Step::Wait(held.holder.clone());
    }
    epoch_above([held.epoch, stored]).map_or(Step::Exhausted, Step::Take)
}

/// A hub's name for the Lease: of its store, and of this process.
pub fn holder(store: &str, process: u32) -> String {
    format!("{store}.{process:08x}")
}

/// The store of a holder.
fn store_of(holder: &str) -> &str {
    holder.split_once('.').map_or(holder, |(store, _)| store)
}

fn read(lease: &Lease) -> Held {
    let spec = lease.spec.clone().unwrap_or_default();
    let annotations = lease.metadata.annotations.as_ref();
    let epoch = annotations.and_then(|a| a.get(EPOCH)).and_then(|text| text.parse().ok());
    let millis = |time: MicroTime| Millis(u64::try_from(time.0.as_millisecond()).unwrap_or(0));
    Held {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed_at: spec.renew_time.map(millis),
        epoch: epoch.unwrap_or(0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

fn write(version: Option<String>, held: &Held) -> Lease {
    let time = |at: Millis| {
        let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).ok().map(MicroTime)
    };
    Lease {
        metadata: ObjectMeta {
            name: Some(keys::LEASE_HUB.to_owned()),
            resource_version: version,
            annotations: Some([(EPOCH.to_owned(), held.epoch.to_string())].into()),
            labels: Some([(keys::PART_OF.to_owned(), keys::FAIRLEAD.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(held.holder.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: held.renewed_at.and_then(time),
            lease_transitions: Some(held.transitions),
            ..LeaseSpec::default()
        }),
    }
}

/// The held Lease.
pub struct HubLease {
    leases: Api<Lease>,
    held: Held,
}

/// Why the Lease was lost.
#[derive(Debug, thiserror::Error)]
#[error("the Lease {} is held by {holder} now: another hub decides", keys::LEASE_HUB)]
pub struct Fenced {
    /// Who holds it.
    pub holder: String,
}

impl HubLease {
    /// Takes the Lease, waiting as long as it takes; `tell` learns why it waits.
    /// `id` is this hub's [`holder`], `stored` the last process epoch in its store.
    pub async fn acquire(
        client: &Client,
        namespace: &str,
        id: &str,
        stored: u64,
        mut tell: impl FnMut(String),
    ) -> Self {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let mut seen = Seen::default();
        loop {
            match try_acquire(&leases, id, stored, &mut seen).await {
                Ok(Ok(held)) => return Self { leases, held },
                Ok(Err(why)) => tell(why),
                Err(error) => {
                    tell(format!("the Lease {} cannot be taken: {error}", keys::LEASE_HUB));
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Epoch of this process.
    pub fn epoch(&self) -> u64 {
        self.held.epoch
    }

    /// Renews until `stop`, then lets go.
    ///
    /// # Errors
    /// [`Fenced`] when another hub took it.
    pub async fn keep(mut self, stop: CancellationToken) -> Result<(), Fenced> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL) => self.renew().await?,
                () = stop.cancelled() => {
                    self.held.holder = String::new();
                    return self.renew().await;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Fenced> {
        self.held.renewed_at = Some(clock::now());
        let current = match self.leases.get_opt(keys::LEASE_HUB).await {
            Ok(current) => current,
            Err(error) => {
                tracing::warn!(%error, "cannot renew the Lease");
                return Ok(());
            }
        };
        // Whoever holds a higher epoch came after us; a Lease that somebody deleted is made anew.
        let found = current.as_ref().map(read).unwrap_or_default();
        if found.epoch > self.held.epoch {
            return Err(Fenced { holder: found.holder });
        }
        let version = current.and_then(|lease| lease.metadata.resource_version);
        if let Err(error) = put(&self.leases, &write(version, &self.held)).await {
            tracing::warn!(%error, "cannot renew the Lease");
        }
        Ok(())
    }
}

/// What the Lease said last, and since when.
#[derive(Default)]
struct Seen(Option<(Held, Instant)>);

impl Seen {
    /// How long it has been seen as it is.
    fn unchanged(&mut self, found: &Held, now: Instant) -> Duration {
        match &self.0 {
            Some((seen, since)) if seen == found => now.saturating_duration_since(*since),
            _ => {
                self.0 = Some((found.clone(), now));
                Duration::ZERO
            }
        }
    }
}

async fn try_acquire(
    leases: &Api<Lease>,
    id: &str,
    stored: u64,
    seen: &mut Seen,
) -> Result<Result<Held, String>, kube::Error> {
    let current = leases.get_opt(keys::LEASE_HUB).await?;
    let found = current.as_ref().map(read).unwrap_or_default();
    let unchanged = seen.unchanged(&found, Instant::now());
    let epoch = match decide(&found, id, stored, clock::now(), unchanged) {
        Step::Take(epoch) => epoch,
        Step::Wait(holder) => return Ok(Err(format!("another hub ({holder}) holds the Lease"))),
        Step::Exhausted => return Ok(Err("no higher epoch exists; delete the Lease".to_owned())),
    };
    let held = Held {
        holder: id.to_owned(),
        renewed_at: Some(clock::now()),
        epoch,
        transitions: found.transitions.saturating_add(1),
    };
    let version = current.and_then(|lease| lease.metadata.resource_version);
    put(leases, &write(version, &held)).await?;
    Ok(Ok(held))
}

/// Creates the Lease, or replaces the version that was read: of two writers one fails.
async fn put(leases: &Api<Lease>, lease: &Lease) -> Result<(), kube::Error> {
    let params = PostParams {
        field_manager: Some(keys::FIELD_MANAGER_HUB.to_owned()),
        ..PostParams::default()
    };
    match lease.metadata.resource_version {
        None => leases.create(&params, lease).await.map(|_| ()),
        Some(_) => leases.replace(keys::LEASE_HUB, &params, lease).await.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, renewed_at: u64, epoch: u64) -> Held {
        let renewed_at = Some(Millis(renewed_at));
        Held { holder: holder.to_owned(), renewed_at, epoch, transitions: 1 }
    }

    #[test]
    fn one_hub_takes_the_lease_above_all_epochs() {
        let now = Millis(100_000);
        let rows = [
            (Held::default(), 0, Step::Take(1)),
            (Held::default(), 7, Step::Take(8)),
            (held("me", 99_999, 4), 4, Step::Take(5)),
            (held("me", 99_999, 9), 4, Step::Take(10)),
            (held("me.00000001", 99_999, 4), 4, Step::Take(5)),
            (held("other", 99_999, 4), 9, Step::Wait("other".into())),
            (held("other.1", 99_999, 4), 9, Step::Wait("other.1".into())),
            (held("other", 85_001, 4), 9, Step::Wait("other".into())),
            (held("other", 85_000, 4), 2, Step::Take(5)),
            (held("", 99_999, 4), 2, Step::Take(5)),
            (held("me", 99_999, u64::MAX), 2, Step::Exhausted),
        ];
        for (found, stored, want) in rows {
            let step = decide(&found, "me.00000002", stored, now, Duration::ZERO);
            assert_eq!(step, want, "{found:?}");
        }
    }

    #[test]
    fn a_holder_whose_clock_is_ahead_is_waited_for_while_it_says_anything() {
        let (day, second) = (86_400_000, Duration::from_secs(1));
        let (mut seen, start, now) = (Seen::default(), Instant::now(), Millis(100_000));
        let mut step = |lease: &Held, after: u32| {
            let unchanged = seen.unchanged(lease, start + second * after);
            decide(lease, "me.00000002", 4, now, unchanged)
        };
        let wait = Step::Wait("other".into());
        let (first, renewed) = (held("other", 10 * day, 4), held("other", 10 * day + 5_000, 4));
        assert_eq!(step(&first, 0), wait);
        assert_eq!(step(&first, 14), wait);
        assert_eq!(step(&renewed, 16), wait);
        assert_eq!(step(&renewed, 30), wait);
        assert_eq!(step(&renewed, 31), Step::Take(5));
    }

    #[test]
    fn a_lease_reads_what_it_wrote() {
        let wrote = held("me", 1_800_000_000_000, 12);
        assert_eq!(read(&write(None, &wrote)), wrote);
    }
}
