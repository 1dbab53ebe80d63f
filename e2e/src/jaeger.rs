//! A real Jaeger beside a world, on the machine's own address: OTLP in, its query API out.
//!
//! Keeps everything in memory, so a kill forgets all traces.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    http1,
    launch::Launch,
    object::fill,
    process::Unit,
    wait::{self, Look},
    world::World,
};

const OTLP_PORT: u16 = 4317;
const OTLP_HTTP_PORT: u16 = 4318;
const QUERY_PORT: u16 = 16686;
const METRICS_PORT: u16 = 8888;
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running Jaeger, or a killed one.
pub struct Jaeger {
    unit: Unit,
    address: Ipv4Addr,
}

/// One trace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    #[serde(rename = "traceID")]
    pub trace_id: String,
    pub spans: Vec<Span>,
    processes: BTreeMap<String, Process>,
}

/// One span of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    #[serde(rename = "spanID")]
    pub span_id: String,
    pub operation_name: String,
    #[serde(default)]
    references: Vec<Reference>,
    /// Microseconds since 1970.
    pub start_time: u64,
    /// Microseconds.
    pub duration: u64,
    #[serde(rename = "processID")]
    process_id: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Clone, Debug, Deserialize)]
struct Tag {
    key: String,
    value: Value,
}

/// How often one service called another.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    pub parent: String,
    pub child: String,
    pub call_count: u64,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<Vec<T>>,
}

impl Trace {
    /// The service that a span came from.
    pub fn service(&self, span: &Span) -> &str {
        self.processes.get(&span.process_id).map_or("", |process| &process.service_name)
    }

    /// An attribute of the service that a span came from.
    pub fn resource<'a>(&'a self, span: &Span, key: &str) -> Option<&'a Value> {
        let process = self.processes.get(&span.process_id)?;
        process.tags.iter().find(|tag| tag.key == key).map(|tag| &tag.value)
    }

    /// The services from the first span down the line of `child of`, each once in a row.
    pub fn path(&self, leaf: &Span) -> Vec<String> {
        let mut path: Vec<String> = Vec::new();
        let mut at = Some(leaf);
        // Bounded by the spans there are: a loop of references would be a broken trace.
        for _ in 0..=self.spans.len() {
            let Some(span) = at else { break };
            if path.last().map(String::as_str) != Some(self.service(span)) {
                path.push(self.service(span).to_owned());
            }
            let parent = span.parent();
            at = self.spans.iter().find(|other| Some(other.span_id.as_str()) == parent);
        }
        path.reverse();
        path
    }
}

impl Span {
    pub fn parent(&self) -> Option<&str> {
        let parent = self.references.iter().find(|reference| reference.ref_type == "CHILD_OF");
        parent.map(|reference| reference.span_id.as_str())
    }

    pub fn tags(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.tags.iter().map(|tag| (tag.key.as_str(), &tag.value))
    }

    pub fn tag(&self, key: &str) -> Option<&Value> {
        self.tags.iter().find(|tag| tag.key == key).map(|tag| &tag.value)
    }

    /// A tag's text; empty without one.
    pub fn text(&self, key: &str) -> &str {
        self.tag(key).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Jaeger {
    /// Starts one for a world.
    pub async fn start(world: &World, program: PathBuf) -> Result<Self> {
        let address = world.host_address()?;
        let config = world.folder().join("jaeger.yaml");
        let text =
            fill(include_str!("../manifests/jaeger.yaml"), &[("ADDRESS", &address.to_string())])?;
        std::fs::write(&config, text).context("writing Jaeger's configuration")?;
        let argv =
            vec![program.display().to_string(), "--config".into(), config.display().to_string()];
        let launch = Launch { argv, ..Launch::default() };
        let unit = Unit::new("jaeger", world.folder().join("jaeger.log"), launch);
        let jaeger = Self { unit, address };
        jaeger.start_again().await?;
        Ok(jaeger)
    }

    /// Jaeger's own OpenTelemetry collector, without storage: spans in, an attribute more, spans out.
    pub async fn start_collector(world: &World, program: PathBuf, backend: &str) -> Result<Self> {
        let address = world.host_address()?;
        let config = world.folder().join("collector.yaml");
        let backend = backend.trim_start_matches("http://");
        let values = [("ADDRESS", address.to_string()), ("BACKEND", backend.to_owned())];
        let values: Vec<(&str, &str)> = values.iter().map(|(k, v)| (*k, v.as_str())).collect();
        std::fs::write(&config, fill(include_str!("../manifests/collector.yaml"), &values)?)
            .context("writing the collector's configuration")?;
        let argv =
            vec![program.display().to_string(), "--config".into(), config.display().to_string()];
        let launch = Launch { argv, ..Launch::default() };
        let unit = Unit::new("collector", world.folder().join("collector.log"), launch);
        unit.start().await?;
        let open = wait::until("the collector to listen", START_LIMIT, || async {
            tokio::net::TcpStream::connect((address, OTLP_PORT)).await?;
            Ok(Look::Done(()))
        });
        unit.unless_it_ends(open).await?;
        Ok(Self { unit, address })
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.unit.pid()
    }

    /// Starts it, and waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        self.unit.start().await?;
        let ready = wait::until("Jaeger to answer", START_LIMIT, || async {
            self.services().await?;
            Ok(Look::Done(()))
        });
        self.unit.unless_it_ends(ready).await
    }

    /// Kills it; its traces are gone.
    pub async fn kill(&self) {
        self.unit.kill().await;
    }

    /// Where OTLP is taken over gRPC.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{OTLP_PORT}", self.address)
    }

    /// Where OTLP is taken over HTTP.
    pub fn http(&self) -> SocketAddr {
        (self.address, OTLP_HTTP_PORT).into()
    }

    /// Where its query API is.
    pub fn query(&self) -> String {
        format!("http://{}:{QUERY_PORT}", self.address)
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let request = Request::get(path).header("host", "jaeger").body(Empty::<Bytes>::new())?;
        let answer = http1::send((self.address, QUERY_PORT).into(), request).await?;
        if answer.status() == 404 {
            return Ok(Vec::new());
        }
        ensure!(answer.status() == 200, "Jaeger answered {} to {path}", answer.status());
        let answer: Answer<T> = serde_json::from_slice(answer.body())
            .with_context(|| format!("reading Jaeger's answer to {path}"))?;
        Ok(answer.data.unwrap_or_default())
    }

    pub async fn services(&self) -> Result<Vec<String>> {
        self.ask("/api/services").await
    }

    /// Traces by their ids; those that are not there are left out.
    pub async fn traces(&self, trace_ids: &[&str]) -> Result<Vec<Trace>> {
        self.ask(&format!("/api/traces?traceID={}", trace_ids.join("&traceID="))).await
    }

    /// The newest traces of a service with an operation.
    pub async fn newest(&self, service: &str, operation: &str, limit: usize) -> Result<Vec<Trace>> {
        let operation = operation.replace(' ', "%20");
        let path = format!("/api/traces?service={service}&operation={operation}&limit={limit}");
        self.ask(&path).await
    }

    /// How many spans it has taken since it was started, by its own count.
    pub async fn accepted(&self) -> Result<u64> {
        let request =
            Request::get("/metrics").header("host", "jaeger").body(Empty::<Bytes>::new())?;
        let answer = http1::send((self.address, METRICS_PORT).into(), request).await?;
        ensure!(answer.status() == 200, "Jaeger's metrics are answered {}", answer.status());
        accepted_of(&String::from_utf8_lossy(answer.body()))
    }

    /// Who called whom in the last hour.
    pub async fn dependencies(&self) -> Result<Vec<Dependency>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let path = format!("/api/dependencies?endTs={}&lookback=3600000", now.as_millis());
        self.ask(&path).await
    }
}

/// Over all ways in; none yet is none at all.
fn accepted_of(metrics: &str) -> Result<u64> {
    let lines = metrics.lines().filter(|line| line.starts_with("otelcol_receiver_accepted_spans"));
    let mut sum = 0.0;
    for line in lines {
        let value = line.rsplit(' ').next().unwrap_or_default();
        sum += value.parse::<f64>().with_context(|| format!("reading {line:?}"))?;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of some thousands"
    )]
    Ok(sum as u64)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn spans_of_all_ways_in_are_counted() {
        let text = "\
# TYPE otelcol_receiver_accepted_spans counter
otelcol_receiver_accepted_spans{receiver=\"otlp\",transport=\"grpc\"} 31092
otelcol_receiver_accepted_spans{receiver=\"otlp\",transport=\"http\"} 2
otelcol_receiver_refused_spans{receiver=\"otlp\",transport=\"http\"} 7
";
        assert_eq!(accepted_of(text).unwrap(), 31_094);
        assert_eq!(accepted_of("").unwrap(), 0);
    }
}
