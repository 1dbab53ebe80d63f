//! Spans of clients and services, as instrumented programs send them: OTLP over HTTP, one at a time.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::Full;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Encoded, span::SpanKind},
};
use prost::Message;

use crate::http1;

/// One span, and the service that it is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub kind: SpanKind,
    pub trace: u128,
    pub id: u64,
    pub parent: Option<u64>,
    pub start: SystemTime,
    pub end: SystemTime,
}

impl Span {
    /// The span of whoever answers a request that is traced and recorded, until now.
    pub fn of_server(
        service: &str,
        method: &Method,
        headers: &HeaderMap,
        start: SystemTime,
    ) -> Option<Self> {
        let (trace, parent) = recorded(headers.get("traceparent")?.to_str().ok()?)?;
        Some(Self {
            service: service.to_owned(),
            name: method.to_string(),
            kind: SpanKind::Server,
            trace,
            id: rand::random::<u64>().max(1),
            parent: Some(parent),
            start,
            end: SystemTime::now(),
        })
    }

    /// Gives it to a collector, over HTTP.
    pub async fn send(&self, to: SocketAddr) -> Result<()> {
        let body = Full::new(Bytes::from(self.request().encode_to_vec()));
        let request = Request::post("/v1/traces")
            .header("host", to.to_string())
            .header("content-type", "application/x-protobuf")
            .body(body)?;
        let answer = http1::post(to, request).await.context("sending a span")?;
        ensure!(answer.status() == 200, "a span is answered with {}", answer.status());
        Ok(())
    }

    fn request(&self) -> ExportTraceServiceRequest {
        let nanos = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let span = Encoded {
            trace_id: self.trace.to_be_bytes().to_vec(),
            span_id: self.id.to_be_bytes().to_vec(),
            parent_span_id: self.parent.map_or_else(Vec::new, |id| id.to_be_bytes().to_vec()),
            name: self.name.clone(),
            kind: self.kind.into(),
            start_time_unix_nano: nanos(self.start),
            end_time_unix_nano: nanos(self.end),
            ..Encoded::default()
        };
        let service = vec![text("service.name", &self.service)];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: service, ..Resource::default() }),
                scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        }
    }
}

/// An attribute with a text.
pub fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    }
}

/// Trace and span of a `traceparent` that says that it is recorded.
fn recorded(parent: &str) -> Option<(u128, u64)> {
    let mut parts = parent.split('-').skip(1);
    let trace = u128::from_str_radix(parts.next()?, 16).ok()?;
    let span = u64::from_str_radix(parts.next()?, 16).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    (flags & 1 == 1 && trace != 0 && span != 0).then_some((trace, span))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_are_recorded_have_a_span() {
        let of = |parent: &str| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("traceparent"),
                parent.parse().unwrap(),
            )]);
            Span::of_server("cart", &Method::GET, &headers, UNIX_EPOCH)
        };
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let span = of(&format!("00-{trace}-b7ad6b7169203331-01")).unwrap();
        assert_eq!(format!("{:032x}", span.trace), trace);
        assert_eq!(span.parent, Some(0xb7ad_6b71_6920_3331));
        assert_eq!(of(&format!("00-{trace}-b7ad6b7169203331-00")), None);
        assert_eq!(of("nonsense"), None);
        let sent = span.request();
        assert_eq!(sent.resource_spans[0].scope_spans[0].spans[0].name, "GET");
    }
}
