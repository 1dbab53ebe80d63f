//! Who decides: the claim of the store that one hub holds at a time.
//!
//! Owns taking it, renewing it and giving it up, and what a hub says of itself with it: where the others
//! reach it. Whoever is silent for [`TTL`] has lost it, so a dead hub costs seconds. It says who is alive,
//! not whose word counts: that is the Lease's and the store's fence ([`crate::lease`],
//! [`crate::store::FencedStore`]), which hold also when clocks or networks lie.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::gate::Way;
use crate::lease::Fenced;
use crate::store::{Claim, Hold, Store, StoreError};

/// The name of the claim.
const NAME: &str = "decider";
/// A hub that is silent for longer does not decide any more.
pub const TTL: Duration = Duration::from_secs(4);
/// How often it is renewed: two renewals may fail.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long one call waits for it; then who holds it is looked at again.
const WAIT: Duration = Duration::from_secs(2);
/// Pause after a failure of the store.
const RETRY: Duration = Duration::from_millis(500);

/// A hub, as it tells others of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Seat {
    /// Its name in the Lease.
    pub holder: String,
    /// Where agents' connections can be passed on to.
    pub agents: Option<SocketAddr>,
    /// Where its read-only API is.
    pub admin: Option<SocketAddr>,
}

impl Seat {
    /// A hub with these ports, reached at `address`; none: others cannot reach it.
    pub fn new(holder: String, address: Option<IpAddr>, agents: u16, admin: u16) -> Self {
        let at = |port| address.map(|ip| SocketAddr::new(ip, port));
        Self { holder, agents: at(agents), admin: at(admin) }
    }

    /// What another hub left with its claim; what cannot be read leads nowhere.
    fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }
}

/// The claim, on behalf of one hub.
pub struct Office {
    store: Arc<dyn Store>,
    seat: Seat,
    ways: watch::Sender<Way>,
    hold: Mutex<Option<Box<dyn Hold>>>,
}

impl Office {
    /// For a hub that sits there; `ways` learns where connections go.
    pub fn new(store: Arc<dyn Store>, seat: Seat, ways: watch::Sender<Way>) -> Self {
        Self { store, seat, ways, hold: Mutex::default() }
    }

    /// This hub's name.
    pub fn holder(&self) -> &str {
        &self.seat.holder
    }

    /// Takes it, waiting as long as it takes; `tell` learns why it waits.
    pub async fn take(&self, tell: impl Fn(String)) {
        // Who decides now is to be known at once.
        let mut wait = Duration::ZERO;
        loop {
            match self.claim(std::mem::replace(&mut wait, WAIT)).await {
                Ok(Claim::Held(hold)) => {
                    self.ways.send_replace(Way::Closed);
                    *self.hold.lock().await = Some(hold);
                    return;
                }
                Ok(Claim::Other(bytes)) => {
                    let seat = Seat::read(&bytes);
                    tell(format!("another hub ({}) decides", seat.holder));
                    self.ways.send_if_modified(|way| way.lead_to(seat));
                }
                // Who decided before may well go on: what is passed on to it stays.
                Err(error) => {
                    tell(told(error));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Renews it until `stop`. While the store is away nobody can take it, and nothing is lost.
    ///
    /// # Errors
    /// [`Fenced`] when another hub has it.
    pub async fn keep(&self, stop: CancellationToken) -> Result<(), Fenced> {
        let mut well = true;
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
            match self.renew().await {
                Ok(true) => well = true,
                Ok(false) => self.take_again().await?,
                Err(error) => {
                    if std::mem::take(&mut well) {
                        tracing::warn!(error = told(error), "cannot renew the claim to decide");
                    }
                }
            }
        }
    }

    /// Gives it up, so that another hub decides at once.
    pub async fn release(&self) {
        let Some(hold) = self.hold.lock().await.take() else { return };
        let released = tokio::task::spawn_blocking(move || hold.release()).await;
        if let Ok(Err(error)) = released {
            tracing::warn!(error = told(error), "the claim to decide runs out by itself");
        }
    }

    /// It ran out: the store was away, or this process slept. Nobody may have noticed; whether
    /// somebody did and is gone again, the Lease knows.
    async fn take_again(&self) -> Result<(), Fenced> {
        match self.claim(Duration::ZERO).await {
            Ok(Claim::Held(hold)) => {
                tracing::warn!("the claim to decide had run out; took it again");
                *self.hold.lock().await = Some(hold);
                Ok(())
            }
            Ok(Claim::Other(bytes)) => Err(Fenced { holder: Seat::read(&bytes).holder }),
            Err(error) => {
                tracing::warn!(error = told(error), "cannot take the claim to decide again");
                Ok(())
            }
        }
    }

    async fn claim(&self, wait: Duration) -> Result<Claim, StoreError> {
        let (store, seat) = (Arc::clone(&self.store), self.seat.clone());
        tokio::task::spawn_blocking(move || {
            let bytes = serde_json::to_vec(&seat).expect("a seat is plain data");
            store.claim(NAME, &bytes, TTL, wait)
        })
        .await
        .expect("a claim never panics")
    }

    async fn renew(&self) -> Result<bool, StoreError> {
        let mut held = self.hold.lock().await;
        let Some(mut hold) = held.take() else { return Ok(false) };
        let renewed = tokio::task::spawn_blocking(move || {
            let renewed = hold.renew();
            (hold, renewed)
        });
        let (hold, renewed) = renewed.await.expect("a renewal never panics");
        *held = Some(hold);
        renewed
    }
}

/// An error of the store with its cause.
fn told(error: StoreError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    fn mk_office(store: &Arc<EmbeddedStore>, holder: &str) -> (Office, watch::Receiver<Way>) {
        let (ways, seen) = watch::channel(Way::default());
        let address = Some([10, 0, 0, 1].into());
        let seat = Seat::new(holder.to_owned(), address, 8443, 8080);
        (Office::new(store.clone(), seat, ways), seen)
    }

    #[tokio::test]
    async fn who_waits_passes_on_to_who_decides_and_follows_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
        let ((first, _), (second, mut ways)) = (mk_office(&store, "a"), mk_office(&store, "b"));
        first.take(|why| panic!("{why}")).await;
        let taking = tokio::spawn(async move {
            second.take(|why| assert_eq!(why, "another hub (a) decides")).await;
            second
        });
        let way = ways.wait_for(|way| matches!(way, Way::Pass(_))).await.unwrap().clone();
        let Way::Pass(seat) = way else { panic!("no way") };
        assert_eq!(seat.agents, Some("10.0.0.1:8443".parse().unwrap()));
        first.release().await;
        let second = taking.await.unwrap();
        assert!(matches!(*ways.borrow(), Way::Closed));
        assert!(second.renew().await.unwrap());
    }

    #[tokio::test]
    async fn who_lost_it_to_another_must_not_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
        let ((first, _), (second, _)) = (mk_office(&store, "a"), mk_office(&store, "b"));
        first.take(|_| ()).await;
        first.release().await;
        // Free: whoever comes first has it, also who had it before.
        first.take_again().await.unwrap();
        first.release().await;
        second.take(|_| ()).await;
        let fenced = first.keep(CancellationToken::new()).await.unwrap_err();
        assert_eq!(fenced.holder, "b");
    }

    #[test]
    fn an_unreadable_seat_leads_nowhere() {
        assert_eq!(Seat::read(b"\xff{"), Seat::default());
        assert_eq!(Seat::read(br#"{"holder":"x","agents":"no address"}"#), Seat::default());
    }
}
