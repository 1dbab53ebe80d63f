//! Spans that wait for the backend: bounded by bytes, oldest dropped first, every one counted.
//!
//! Parts are encoded `ExportTraceServiceRequest`s. Requests one after the other are one request
//! (protobuf's repeated fields), so a batch is made without decoding anything again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Most bytes of one request to the backend: collectors take 4 MiB by default.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A batch of so many spans does not wait for more.
const BATCH_SPANS: u64 = 512;
/// How long a smaller batch waits for more.
const BATCH_WAIT: Duration = Duration::from_millis(200);

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It was taken into the queue.
    Taken,
    /// The backend took it.
    Sent,
    /// It did not fit into the queue.
    DroppedFull,
    /// The backend refused it for good.
    DroppedRefused,
}

impl Fate {
    /// All, for metrics that show zeros.
    pub const ALL: [Self; 4] = [Self::Taken, Self::Sent, Self::DroppedFull, Self::DroppedRefused];

    /// As a label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Sent => "sent",
            Self::DroppedFull => "dropped_full",
            Self::DroppedRefused => "dropped_refused",
        }
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FateLabel {
    fate: &'static str,
}

/// Counters of a queue. Taken = sent + dropped + what waits.
#[derive(Debug, Default)]
pub struct Counts {
    spans: Family<FateLabel, Counter>,
    queued_spans: Gauge,
    queued_bytes: Gauge,
    tries_failed: Counter,
}

impl Counts {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        for fate in Fate::ALL {
            self.add(fate, 0);
        }
        let help = "Spans for the backend, by what became of them";
        registry.register("otlp_spans", help, self.spans.clone());
        registry.register(
            "otlp_queued_spans",
            "Spans that wait for the backend",
            self.queued_spans.clone(),
        );
        let (name, help) = ("otlp_queue", "Memory of spans that wait for the backend");
        registry.register_with_unit(name, help, Unit::Bytes, self.queued_bytes.clone());
        let help = "Tries to send a batch that failed and are repeated";
        registry.register("otlp_tries_failed", help, self.tries_failed.clone());
    }

    pub(crate) fn add(&self, fate: Fate, spans: u64) {
        self.spans.get_or_create(&FateLabel { fate: fate.as_str() }).inc_by(spans);
    }

    pub(crate) fn try_failed(&self) {
        self.tries_failed.inc();
    }

    /// How many spans had a fate.
    pub fn of(&self, fate: Fate) -> u64 {
        self.spans.get_or_create(&FateLabel { fate: fate.as_str() }).get()
    }
}

/// Some spans in the wire format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// An encoded `ExportTraceServiceRequest`.
    pub bytes: Bytes,
    /// Spans in it.
    pub spans: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    bytes_max: usize,
    filled: Notify,
    counts: Counts,
}

/// Whether a small batch has waited long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    No,
    Late,
}

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Part>,
    bytes: usize,
    spans: u64,
}

impl Queue {
    /// A queue for at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            bytes_max,
            filled: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// Its counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes spans in. Never waits: when they do not fit, the oldest go.
    pub fn push(&self, part: Part) {
        if part.spans == 0 {
            return;
        }
        self.counts.add(Fate::Taken, part.spans);
        let mut dropped = 0;
        let mut waiting = self.lock();
        waiting.put(part);
        while waiting.bytes > self.bytes_max {
            let Some(oldest) = waiting.take() else { break };
            dropped += oldest.spans;
        }
        self.tell(&waiting);
        let due = waiting.is_due();
        drop(waiting);
        self.counts.add(Fate::DroppedFull, dropped);
        if due {
            self.filled.notify_one();
        }
    }

    /// The next batch, once there is one.
    pub async fn batch(&self) -> Part {
        let mut deadline = None;
        loop {
            let now = Instant::now();
            let due = match deadline.is_some_and(|at| at <= now) {
                true => Due::Late,
                false => Due::No,
            };
            if let Some(batch) = self.try_batch(due) {
                return batch;
            }
            let empty = self.lock().parts.is_empty();
            let wait = match deadline {
                Some(at) => at,
                None => now + BATCH_WAIT,
            };
            deadline = (!empty).then_some(wait);
            tokio::select! {
                () = self.filled.notified() => {}
                () = tokio::time::sleep_until(wait) => {}
            }
        }
    }

    /// A batch, if there is enough for one, or anything at all when it is late.
    fn try_batch(&self, due: Due) -> Option<Part> {
        let mut waiting = self.lock();
        if waiting.parts.is_empty() || (due == Due::No && !waiting.is_due()) {
            return None;
        }
        let mut batch = waiting.take()?;
        let fits =
            |batch: &Part, next: &Part| batch.bytes.len() + next.bytes.len() <= BATCH_BYTES_MAX;
        if waiting.parts.front().is_some_and(|next| fits(&batch, next)) {
            let mut bytes = BytesMut::from(&batch.bytes[..]);
            while let Some(next) = waiting.parts.front() {
                if bytes.len() + next.bytes.len() > BATCH_BYTES_MAX {
                    break;
                }
                let Some(next) = waiting.take() else { break };
                bytes.extend_from_slice(&next.bytes);
                batch.spans += next.spans;
            }
            batch.bytes = bytes.freeze();
        }
        self.tell(&waiting);
        Some(batch)
    }

    fn tell(&self, waiting: &Waiting) {
        self.counts.queued_bytes.set(i64::try_from(waiting.bytes).unwrap_or(i64::MAX));
        self.counts.queued_spans.set(i64::try_from(waiting.spans).unwrap_or(i64::MAX));
    }
}

impl Waiting {
    fn put(&mut self, part: Part) {
        self.bytes += part.bytes.len();
        self.spans += part.spans;
        self.parts.push_back(part);
    }

    fn take(&mut self) -> Option<Part> {
        let part = self.parts.pop_front()?;
        self.bytes -= part.bytes.len();
        self.spans -= part.spans;
        Some(part)
    }

    fn is_due(&self) -> bool {
        self.spans >= BATCH_SPANS || self.bytes >= BATCH_BYTES_MAX
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn part(byte: u8, len: usize, spans: u64) -> Part {
        Part { bytes: Bytes::from(vec![byte; len]), spans }
    }

    #[test]
    fn a_small_batch_waits_for_more_until_it_is_late() {
        let queue = Queue::new(1 << 20);
        queue.push(part(1, 10, 1));
        queue.push(part(2, 10, 2));
        assert_eq!(queue.try_batch(Due::No), None);
        let batch = queue.try_batch(Due::Late).unwrap();
        assert_eq!((batch.spans, batch.bytes.len()), (3, 20));
        assert_eq!(&batch.bytes[8..12], [1, 1, 2, 2]);
    }

    #[test]
    fn a_full_batch_waits_for_nothing() {
        let queue = Queue::new(8 << 20);
        queue.push(part(1, 10, BATCH_SPANS));
        assert_eq!(queue.try_batch(Due::No).unwrap().spans, BATCH_SPANS);
    }

    #[test]
    fn batches_keep_to_the_limit_of_collectors() {
        let queue = Queue::new(8 << 20);
        for _ in 0..3 {
            queue.push(part(1, BATCH_BYTES_MAX / 2, 1));
        }
        assert_eq!(queue.try_batch(Due::Late).unwrap().spans, 2);
        assert_eq!(queue.try_batch(Due::Late).unwrap().spans, 1);
    }

    #[tokio::test]
    async fn what_is_pushed_comes_out() {
        let queue = Queue::new(1 << 20);
        queue.push(part(1, 10, 1));
        assert_eq!(queue.batch().await.spans, 1);
    }

    #[test]
    fn what_does_not_fit_drops_the_oldest_and_every_span_is_counted() {
        let queue = Queue::new(100);
        for spans in 1..=5 {
            queue.push(part(0, 40, spans));
        }
        let counts = queue.counts();
        assert_eq!(counts.of(Fate::Taken), 15);
        assert_eq!(counts.of(Fate::DroppedFull), 1 + 2 + 3);
        assert_eq!(counts.queued_spans.get(), 4 + 5);
        assert_eq!(counts.queued_bytes.get(), 80);
    }

    #[test]
    fn one_part_larger_than_the_queue_is_dropped_alone() {
        let queue = Queue::new(100);
        queue.push(part(0, 101, 7));
        assert_eq!(queue.counts().of(Fate::DroppedFull), 7);
        assert_eq!(queue.counts().queued_bytes.get(), 0);
    }
}
