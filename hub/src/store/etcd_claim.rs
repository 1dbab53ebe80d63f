//! Claims in etcd: a key that lives as long as its lease.
//!
//! Owns how a claim is taken, waited for and renewed. Waiting is a watch of that one key; whatever
//! happens to the watch (its revision is compacted, its node dies), the key is read again. So a claim
//! is never missed, at worst it is noticed a moment later.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, Error, EventType, GetResponse, LeaseClient, PutOptions, Txn, TxnOp,
    WatchClient, WatchOptions,
};
use tokio::runtime::Handle;

use super::etcd::{PAUSE, on_handle, patiently, revision, write_error};
use super::{Claim, Hold, StoreError};

/// One try to renew: a try that hangs must leave time for another before the claim runs out.
const RENEW_TRY: Duration = Duration::from_secs(1);

/// What a claim needs of a connection.
#[derive(Clone)]
pub(super) struct Claims {
    handle: Handle,
    client: Client,
}

impl Claims {
    /// Claims over this connection, whose work runs there.
    pub(super) fn new(handle: Handle, client: Client) -> Self {
        Self { handle, client }
    }

    /// Claims a key, as [`super::Store::claim`] says.
    ///
    /// # Errors
    /// [`StoreError::Write`] when etcd does not answer.
    pub(super) fn claim(
        &self,
        key: String,
        bytes: Vec<u8>,
        ttl: Duration,
        wait: Duration,
    ) -> Result<Claim, StoreError> {
        let (claims, until) = (self.clone(), Instant::now() + wait);
        on_handle(&self.handle, async move {
            loop {
                let found = claims.read(&key).await?;
                let Some(holder) = found.kvs().first() else {
                    if let Some(hold) = claims.take(&key, &bytes, ttl).await? {
                        return Ok(Claim::Held(Box::new(hold)));
                    }
                    continue;
                };
                let rest = until.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return Ok(Claim::Other(holder.value().to_vec()));
                }
                let seen = found.header().map_or(0, |header| header.revision());
                let gone = wait_gone(claims.client.watch_client(), &key, seen + 1);
                if let Ok(Err(error)) = tokio::time::timeout(rest, gone).await {
                    tracing::debug!(%error, "the watch of a claim ended");
                    tokio::time::sleep(PAUSE.min(rest)).await;
                }
            }
        })
        .map_err(write_error)
    }

    async fn read(&self, key: &str) -> Result<GetResponse, Error> {
        let client = self.client.kv_client();
        patiently(|| {
            let (mut client, key) = (client.clone(), key.to_owned());
            async move { client.get(key, None).await }
        })
        .await
    }

    /// Takes a key that was free just now; none when another was faster.
    async fn take(
        &self,
        key: &str,
        bytes: &[u8],
        ttl: Duration,
    ) -> Result<Option<EtcdHold>, Error> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1_000)).unwrap_or(i64::MAX);
        let leases = self.client.lease_client();
        let lease = patiently(|| {
            let mut leases = leases.clone();
            async move { leases.grant(seconds, None).await }
        })
        .await?
        .id();
        let hold = EtcdHold { handle: self.handle.clone(), leases, lease };
        let put = TxnOp::put(key, bytes, Some(PutOptions::new().with_lease(lease)));
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        let client = self.client.kv_client();
        let answer = patiently(|| {
            let (mut client, txn) = (client.clone(), txn.clone());
            async move { client.txn(txn).await }
        })
        .await;
        // It is ours also when etcd took it with a try whose answer was lost.
        let ours = answer.as_ref().is_ok_and(|answer| {
            answer.succeeded()
                || answer.op_responses().iter().any(|op| match op {
                    etcd_client::TxnOpResponse::Get(found) => {
                        found.kvs().first().is_some_and(|kv| kv.lease() == lease)
                    }
                    _ => false,
                })
        });
        if ours {
            return Ok(Some(hold));
        }
        // What fails here runs out by itself.
        let _ = hold.revoke().await;
        answer.map(|_| None)
    }
}

/// Waits until a key is deleted, or its watch ends for another reason.
async fn wait_gone(mut client: WatchClient, key: &str, from: i64) -> Result<(), Error> {
    let options = WatchOptions::new().with_start_revision(from);
    let mut stream = client.watch(key, Some(options)).await?;
    while let Some(news) = stream.message().await? {
        let gone = news.events().iter().any(|event| event.event_type() == EventType::Delete);
        if gone || news.canceled() {
            tracing::debug!(
                compacted_to = revision(news.compact_revision()),
                gone,
                "a claim moved"
            );
            return Ok(());
        }
    }
    Ok(())
}

struct EtcdHold {
    handle: Handle,
    leases: LeaseClient,
    lease: i64,
}

impl EtcdHold {
    async fn revoke(&self) -> Result<(), Error> {
        let mut leases = self.leases.clone();
        let revoke = leases.revoke(self.lease);
        match tokio::time::timeout(RENEW_TRY, revoke).await {
            Ok(Ok(_)) => Ok(()),
            // It has run out before.
            Ok(Err(Error::GRpcStatus(status))) if status.code() == tonic::Code::NotFound => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(late().into()),
        }
    }
}

fn late() -> tonic::Status {
    tonic::Status::deadline_exceeded("etcd does not answer")
}

impl Hold for EtcdHold {
    fn renew(&mut self) -> Result<bool, StoreError> {
        let mut leases = self.leases.clone();
        let lease = self.lease;
        let renewed = on_handle(&self.handle, async move {
            let renewed = tokio::time::timeout(RENEW_TRY, leases.keep_alive(lease)).await;
            renewed.unwrap_or_else(|_| Err(late().into()))
        });
        match renewed {
            Ok(_) => Ok(true),
            // The client's word for a lease that has run out.
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(write_error(error)),
        }
    }

    fn release(self: Box<Self>) -> Result<(), StoreError> {
        let handle = self.handle.clone();
        on_handle(&handle, async move { self.revoke().await }).map_err(write_error)
    }
}
