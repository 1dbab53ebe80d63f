//! Spans of our own work: made when the work is over, from times that the loops know anyway.
//!
//! The loops of hub and agent read state anew each time; what they do for one change is not one call
//! stack. So a span is a value with a start and an end, tied to its trace by the W3C context that
//! travels with the plan, and nothing is carried in thread-locals.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{self as pb, ResourceSpans, ScopeSpans};
use prost::Message as _;

use crate::queue::{Part, Queue};

/// Name of the header and of the metadata that carry a context.
pub const TRACEPARENT: &str = "traceparent";

/// W3C trace context: which trace, and which span of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never zero.
    pub trace: u128,
    /// The span; never zero.
    pub span: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// Not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct NoContext;

impl TraceContext {
    /// A new trace, recorded with this probability.
    pub fn root(ratio: f64) -> Self {
        let sampled = rand::random::<f64>() < ratio;
        Self { trace: rand::random::<u128>().max(1), span: new_span(), sampled }
    }

    /// A new span of the same trace.
    pub fn child(self) -> Self {
        Self { span: new_span(), ..self }
    }

    /// The trace's id, for logs.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }
}

fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        let lower_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        let mut parts = text.split('-');
        let mut part = |len: usize| {
            parts.next().filter(|part| part.len() == len && part.bytes().all(lower_hex))
        };
        let version = part(2).ok_or(NoContext)?;
        let trace = part(32).and_then(|hex| u128::from_str_radix(hex, 16).ok()).unwrap_or(0);
        let span = part(16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        let flags = part(2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or(NoContext)?;
        if version == "ff" || trace == 0 || span == 0 || (version == "00" && parts.next().is_some())
        {
            return Err(NoContext);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

/// An attribute of a span or a resource.
pub fn attribute(key: impl Into<String>, value: impl Into<Value>) -> KeyValue {
    let value = match value.into() {
        Value::Text(text) => any_value::Value::StringValue(text),
        Value::Int(number) => any_value::Value::IntValue(number),
        Value::Bool(yes) => any_value::Value::BoolValue(yes),
    };
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// An attribute in the wire format.
pub type Attribute = KeyValue;

/// What a span stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Work inside of a process.
    #[default]
    Internal,
    /// A message given to another process.
    Producer,
    /// A message taken from another process.
    Consumer,
    /// A call to another process.
    Client,
    /// A call from another process.
    Server,
}

/// Work that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The span itself.
    pub context: TraceContext,
    /// The span that it is a part of; none for the first of a trace.
    pub parent: Option<u64>,
    /// What was done.
    pub name: &'static str,
    /// What it stands for.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed; none = it did not.
    pub failed: Option<String>,
    /// Other spans that led to it.
    pub links: Vec<TraceContext>,
}

impl Done {
    /// A span of a time.
    pub fn new(
        context: TraceContext,
        parent: Option<u64>,
        name: &'static str,
        start: SystemTime,
        end: SystemTime,
    ) -> Self {
        Self {
            context,
            parent,
            name,
            kind: Kind::default(),
            start,
            end: end.max(start),
            attributes: Vec::new(),
            failed: None,
            links: Vec::new(),
        }
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(attribute(key, value));
        self
    }

    /// With the reason of its failure, if it failed.
    #[must_use]
    pub fn ended(mut self, failed: Option<String>) -> Self {
        self.failed = failed;
        self
    }

    /// With a kind.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

/// Where our own spans go.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    queue: Option<Arc<Queue>>,
    resource: Vec<KeyValue>,
    ratio: f64,
}

impl Tracer {
    /// A tracer of one process; without a queue nothing is recorded. `ratio` of new traces are.
    pub fn new(queue: Option<Arc<Queue>>, ratio: f64, resource: Vec<KeyValue>) -> Self {
        Self { queue, resource, ratio }
    }

    /// Begins a trace.
    pub fn root(&self) -> TraceContext {
        TraceContext::root(if self.queue.is_some() { self.ratio } else { 0.0 })
    }

    /// Records spans. Never waits.
    pub fn record(&self, spans: impl IntoIterator<Item = Done>) {
        let Some(queue) = &self.queue else { return };
        let spans: Vec<pb::Span> =
            spans.into_iter().filter(|span| span.context.sampled).map(encode).collect();
        if spans.is_empty() {
            return;
        }
        let count = spans.len() as u64;
        let scope = InstrumentationScope {
            name: "fairlead".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: self.resource.clone(),
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        queue.push(Part { bytes: request.encode_to_vec().into(), spans: count });
    }
}

fn encode(done: Done) -> pb::Span {
    let kind = match done.kind {
        Kind::Internal => pb::span::SpanKind::Internal,
        Kind::Producer => pb::span::SpanKind::Producer,
        Kind::Consumer => pb::span::SpanKind::Consumer,
        Kind::Client => pb::span::SpanKind::Client,
        Kind::Server => pb::span::SpanKind::Server,
    };
    let link = |context: TraceContext| pb::span::Link {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: context.span.to_be_bytes().to_vec(),
        ..pb::span::Link::default()
    };
    let status = done
        .failed
        .map(|message| pb::Status { message, code: pb::status::StatusCode::Error.into() });
    pb::Span {
        trace_id: done.context.trace.to_be_bytes().to_vec(),
        span_id: done.context.span.to_be_bytes().to_vec(),
        parent_span_id: done.parent.map_or_else(Vec::new, |id| id.to_be_bytes().to_vec()),
        name: done.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(done.start),
        end_time_unix_nano: nanos(done.end),
        attributes: done.attributes,
        links: done.links.into_iter().map(link).collect(),
        status,
        ..pb::Span::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A time of the wall clock from milliseconds since 1970.
pub fn at_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_it_was_written() {
        let context = TraceContext::root(1.0);
        assert_eq!(context.to_string().parse(), Ok(context));
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), text);
        assert!(!TraceContext::root(0.0).sampled);
        // A later version may say more.
        assert!(
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"
                .parse::<TraceContext>()
                .is_ok()
        );
    }

    #[test]
    fn what_is_no_context_is_refused() {
        for bad in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NoContext), "{bad}");
        }
    }

    #[tokio::test]
    async fn spans_of_recorded_traces_wait_for_the_backend() {
        let queue = Arc::new(Queue::new(1 << 20));
        let resource = vec![attribute("service.name", "fairlead-hub")];
        let tracer = Tracer::new(Some(queue.clone()), 1.0, resource);
        let root = tracer.root();
        let child = root.child();
        let (start, end) = (at_millis(1_000), at_millis(1_500));
        let unrecorded = TraceContext::root(0.0);
        tracer.record([
            Done::new(child, Some(root.span), "plan", start, end).with("fairlead.routes", 3usize),
            Done::new(unrecorded, None, "plan", start, end),
        ]);
        let batch = queue.batch().await;
        assert_eq!(batch.spans, 1);
        let request = ExportTraceServiceRequest::decode(batch.bytes).unwrap();
        let span = &request.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!(span.trace_id, root.trace.to_be_bytes());
        assert_eq!(span.parent_span_id, root.span.to_be_bytes());
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 500_000_000);
    }

    #[test]
    fn without_a_backend_nothing_is_recorded() {
        let tracer = Tracer::default();
        assert!(!tracer.root().sampled);
        tracer.record([]);
    }
}
