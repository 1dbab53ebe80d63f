//! Empties the queue into the backend: one batch at a time, again and again until it is taken.
//!
//! A backend that is away costs nothing but what does not fit into the queue meanwhile. A batch that
//! the backend refuses for good is dropped and counted; it would block all others.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::queue::{Fate, Part, Queue};
use crate::send::{Answer, Sender};
use crate::settings::{Backend, SettingsError};

/// The wait after a failed try: doubles up to the longest, with jitter.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// The loop.
pub struct Exporter {
    queue: Arc<Queue>,
    sender: Sender,
}

impl Exporter {
    /// Gets ready; connects with the first batch.
    ///
    /// # Errors
    /// When the backend's certificates cannot be read.
    pub fn new(queue: Arc<Queue>, backend: &Backend) -> Result<Self, SettingsError> {
        Ok(Self { queue, sender: Sender::new(backend)? })
    }

    /// Exports for ever.
    pub async fn run(mut self) {
        let mut away = false;
        loop {
            let batch = self.queue.batch().await;
            self.deliver(batch, &mut away).await;
        }
    }

    async fn deliver(&mut self, batch: Part, away: &mut bool) {
        let counts = self.queue.counts();
        let mut wait = RETRY_MIN;
        loop {
            match self.sender.send(batch.bytes.clone()).await {
                Answer::Taken { rejected, message } => {
                    let rejected = rejected.min(batch.spans);
                    counts.add(Fate::DroppedRefused, rejected);
                    counts.add(Fate::Sent, batch.spans - rejected);
                    if rejected > 0 {
                        warn!(rejected, detail = %message, "the backend refused spans");
                    }
                    if std::mem::take(away) {
                        info!("the backend takes spans again");
                    }
                    return;
                }
                Answer::Refused(why) => {
                    counts.add(Fate::DroppedRefused, batch.spans);
                    warn!(spans = batch.spans, %why, "the backend refused a batch");
                    return;
                }
                Answer::Later(why) => {
                    counts.try_failed();
                    if !std::mem::replace(away, true) {
                        warn!(%why, "the backend takes no spans; they wait");
                    }
                    tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }
}
