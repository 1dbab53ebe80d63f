//! `fairlead trace`: the newest traces of a global route, from the backend that keeps them.
//!
//! Asks a Jaeger query API, since OTLP has none. Plain HTTP only: people reach it by a port-forward.

use std::collections::BTreeMap;

use clap::Args;
use fairlead_model::Millis;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::encoded;
use crate::failure::Failure;
use crate::output::{self, Format, columns, or_dash};

const AFTER_HELP: &str = "\
EXAMPLES
  kubectl -n observability port-forward service/jaeger-query 16686 &
  fairlead trace shop/cart --jaeger http://localhost:16686
  fairlead trace HTTPRoute/shop/cart --jaeger http://localhost:16686 --all -o json";

/// Services looked through: one gateway for each member.
const SERVICES_MAX: usize = 50;
/// An answer that is larger is not read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Arguments of `trace`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TraceArgs {
    /// The route: KIND/NAMESPACE/NAME, or NAMESPACE/NAME of an HTTPRoute.
    route: String,
    /// Query API of Jaeger, as http://HOST:PORT.
    #[arg(long, value_name = "URL", env = "FAIRLEAD_JAEGER")]
    jaeger: String,
    /// Also requests that were answered where they came in.
    #[arg(long)]
    all: bool,
    /// How many.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One trace of the route.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Found {
    trace_id: String,
    at: Millis,
    took_ms: u64,
    entry: String,
    target: String,
    backend: String,
    status: String,
}

/// Prints the table.
pub(crate) async fn run(args: &TraceArgs) -> Result<(), Failure> {
    let route = match args.route.matches('/').count() {
        1 => format!("HTTPRoute/{}", args.route),
        _ => args.route.clone(),
    };
    let jaeger = Jaeger::parse(&args.jaeger)?;
    let services: Vec<String> = jaeger.ask("/api/services").await?;
    let ours =
        |name: &&String| !name.starts_with("fairlead-") && !name.ends_with(".fairlead-agent");
    let mut tags = serde_json::json!({"fairlead.route": route});
    if !args.all {
        tags["fairlead.crossed"] = "true".into();
    }
    let tags = encoded(&tags.to_string());
    let mut found = BTreeMap::new();
    for service in services.iter().filter(ours).take(SERVICES_MAX) {
        let service = encoded(service);
        let path = format!("/api/traces?service={service}&tags={tags}&limit={}", args.limit);
        let traces: Vec<Trace> = jaeger.ask(&path).await?;
        let mine = traces.iter().filter_map(|trace| trace.found(&route));
        found.extend(mine.map(|it| ((it.at, it.trace_id.clone()), it)));
    }
    let newest: Vec<Found> = found.into_values().rev().take(args.limit.into()).collect();
    output::show(args.output, &newest, || table(&newest));
    Ok(())
}

fn table(found: &[Found]) -> String {
    if found.is_empty() {
        return "no traces of this route; see docs/guide/traces.md".to_owned();
    }
    let row = |it: &Found| {
        vec![
            at(it.at),
            it.trace_id.clone(),
            format!("{} → {}", it.entry, or_dash(&it.target)),
            or_dash(&it.backend),
            or_dash(&it.status),
            format!("{} ms", it.took_ms),
        ]
    };
    let header = ["STARTED", "TRACE", "ENTRY → TARGET", "BACKEND", "STATUS", "TOOK"];
    columns(&header, found.iter().map(row).collect())
}

fn at(time: Millis) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map(|time| time.to_string()).unwrap_or_default()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(default)]
    spans: Vec<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    start_time: u64,
    duration: u64,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    key: String,
    value: Value,
}

impl Span {
    fn text(&self, key: &str) -> String {
        let tag = self.tags.iter().find(|tag| tag.key == key);
        tag.map(|tag| tag.value.as_str().map_or_else(|| tag.value.to_string(), str::to_owned))
            .unwrap_or_default()
    }
}

impl Trace {
    /// The last span towards a target tells; without one of this route it is another's trace.
    fn found(&self, route: &str) -> Option<Found> {
        let of_route = self.spans.iter().filter(|span| span.text("fairlead.route") == route);
        let span = of_route.max_by_key(|span| span.start_time)?;
        Some(Found {
            trace_id: self.trace_id.clone(),
            at: Millis(span.start_time / 1_000),
            took_ms: span.duration / 1_000,
            entry: span.text("fairlead.entry"),
            target: span.text("fairlead.target"),
            backend: span.text("fairlead.backend"),
            status: span.text("http.status_code"),
        })
    }
}

/// Where Jaeger is asked.
struct Jaeger {
    authority: String,
    host: String,
    port: u16,
    base: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<Vec<T>>,
}

impl Jaeger {
    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(
                format!("cannot ask {text:?}"),
                "the query API of Jaeger is http://HOST:PORT; use a port-forward where it is https",
            )
        };
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        Ok(Self {
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(16_686),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        let failed = |why: String| {
            Failure::failed(format!("cannot ask Jaeger at {}", self.authority), why)
                .next("check --jaeger, and the port-forward if it is one")
        };
        let body = self.get(path).await.map_err(|error| failed(error.to_string()))?;
        let answer: Answer<T> =
            serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))?;
        Ok(answer.data.unwrap_or_default())
    }

    async fn get(
        &self,
        path: &str,
    ) -> Result<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let stream = tokio::net::TcpStream::connect((self.host.as_str(), self.port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = http::Request::get(format!("{}{path}", self.base))
            .header("host", &self.authority)
            .body(Empty::<bytes::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await?.to_bytes();
        connection.abort();
        match status.is_success() {
            true => Ok(body),
            false => Err(format!("it answered {status}").into()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_last_span_of_the_route_tells() {
        let trace: Trace = serde_json::from_value(serde_json::json!({"traceID": "ab", "spans": [
            {"startTime": 1_000_000, "duration": 9_000, "tags": [
                {"key": "fairlead.route", "value": "HTTPRoute/shop/cart"},
                {"key": "fairlead.entry", "value": "east"}, {"key": "fairlead.target", "value": "south"}]},
            {"startTime": 2_000_000, "duration": 5_000, "tags": [
                {"key": "fairlead.route", "value": "HTTPRoute/shop/cart"},
                {"key": "fairlead.entry", "value": "east"}, {"key": "fairlead.target", "value": "west"},
                {"key": "http.status_code", "value": 200}]},
            {"startTime": 3_000_000, "duration": 1, "tags": [{"key": "fairlead.hop", "value": "door"}]}
        ]}))
        .unwrap();
        let found = trace.found("HTTPRoute/shop/cart").unwrap();
        assert_eq!((found.target.as_str(), found.took_ms), ("west", 5));
        assert_eq!(trace.found("HTTPRoute/shop/tea"), None);
        let text = table(&[found]);
        assert!(text.contains("east → west") && text.contains("200"), "{text}");
    }

    #[test]
    fn jaeger_is_asked_over_http() {
        let jaeger = Jaeger::parse("http://localhost:16686/jaeger/").unwrap();
        assert_eq!((jaeger.port, jaeger.base.as_str()), (16_686, "/jaeger"));
        assert!(Jaeger::parse("https://x").is_err() && Jaeger::parse("x:1").is_err());
    }
}
