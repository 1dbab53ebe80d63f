//! Reads gateways' spans and adds what the plan knows of them.
//!
//! Adds names of clusters, routes, services and members; nothing of a request. Takes out attributes
//! that hold credentials, and whatever else the agent's configuration names. Drops spans of our own
//! probes: peers ask every second, and nobody wants to see it.

use fairlead_agent_core::attribution::{Hint, Hop, Meaning};
use fairlead_agent_core::traffic::Sums;
use fairlead_crds::keys;
use fairlead_model::MemberId;
use fairlead_model::traffic::Outcome;
use fairlead_telemetry::span::attribute;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};

use super::Known;

/// Headers that are credentials, or ours: never in a span, whoever put them there.
const SECRET_HEADERS: [&str; 5] =
    ["authorization", "proxy-authorization", "cookie", "set-cookie", keys::HEADER_BACKEND];
const SERVICE_NAME: &str = "service.name";

/// Where this agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub uid: String,
    /// Its region, when it is known.
    pub region: Option<String>,
}

/// Attributes to take out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strip {
    exact: Vec<String>,
    prefixes: Vec<String>,
}

impl Strip {
    /// From patterns: a name, or the start of one followed by `*`.
    pub fn of(patterns: &[String]) -> Self {
        let mut strip = Self::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(prefix) => strip.prefixes.push(prefix.to_owned()),
                None => strip.exact.push(pattern.clone()),
            }
        }
        strip
    }

    fn takes(&self, key: &str) -> bool {
        is_secret(key)
            || self.exact.iter().any(|exact| exact == key)
            || self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }
}

/// `http.request.header.cookie`, `guid:cookie`, `cookie`: the last word counts.
fn is_secret(key: &str) -> bool {
    let last = key.rsplit(['.', ':', '/']).next().unwrap_or(key);
    SECRET_HEADERS.iter().any(|secret| last.eq_ignore_ascii_case(secret))
}

/// What was in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Enriched {
    /// Spans that go on.
    pub spans: u64,
    /// Of these, spans of which the plan knows something.
    pub attributed: u64,
    /// Spans of our own probes, dropped.
    pub probes: u64,
}

/// Adds what is known to every span of a request.
pub fn enrich(
    request: &mut ExportTraceServiceRequest,
    known: &Known,
    strip: &Strip,
    sums: &mut Sums,
) -> Enriched {
    let mut sum = Enriched::default();
    for resource_spans in &mut request.resource_spans {
        let is_gateway = enrich_spans(resource_spans, known, strip, &mut sum, sums);
        let resource = resource_spans.resource.get_or_insert_with(Resource::default);
        enrich_resource(resource, &known.place, is_gateway);
    }
    request.resource_spans.retain(|rs| rs.scope_spans.iter().any(|ss| !ss.spans.is_empty()));
    sum
}

/// True when these spans are a gateway's.
fn enrich_spans(
    resource_spans: &mut ResourceSpans,
    known: &Known,
    strip: &Strip,
    sum: &mut Enriched,
    sums: &mut Sums,
) -> bool {
    let mut is_gateway = is_envoy(resource_spans.resource.as_ref());
    for scope_spans in &mut resource_spans.scope_spans {
        scope_spans.spans.retain_mut(|span| {
            if is_probe(span) {
                sum.probes += 1;
                return false;
            }
            sum.spans += 1;
            span.attributes.retain(|attribute| !strip.takes(&attribute.key));
            let address = Read::of(span);
            is_gateway |= address.upstream.is_some() || address.router.is_some();
            let hint = Hint {
                upstream: address.upstream,
                router: address.router,
                service: address.service,
                address: address.socket.as_deref(),
            };
            let meaning = known.atlas.meaning(&hint);
            if let Some(meaning) = meaning.filter(|_| span.kind == i32::from(SpanKind::Client)) {
                sums.add(&meaning, took_ms(span), outcome(span));
            }
            let told = meaning.map(|meaning| attributes(&meaning, known));
            if let Some(told) = told {
                sum.attributed += 1;
                // Nobody else speaks of these.
                span.attributes.retain(|attribute| !attribute.key.starts_with("fairlead."));
                span.attributes.extend(told);
            }
            true
        });
    }
    is_gateway
}

fn took_ms(span: &Span) -> u64 {
    span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1_000_000
}

/// Failed: no status at all, a fault of the server, or a gRPC status that means one.
fn outcome(span: &Span) -> Outcome {
    let of = |names: [&str; 2]| {
        let mut found = span.attributes.iter().filter(|it| names.contains(&it.key.as_str()));
        found.find_map(number)
    };
    let status = of(["http.status_code", "http.response.status_code"]).unwrap_or(0);
    // Unknown, deadline exceeded, internal, unavailable, data loss.
    let grpc = of(["grpc.status_code", "rpc.grpc.status_code"]).unwrap_or(0);
    match !(100..500).contains(&status) || [2, 4, 13, 14, 15].contains(&grpc) {
        true => Outcome::Failed,
        false => Outcome::Answered,
    }
}

/// What a span says of where its request went.
struct Read<'a> {
    upstream: Option<&'a str>,
    router: Option<&'a str>,
    service: Option<&'a str>,
    socket: Option<String>,
}

impl<'a> Read<'a> {
    fn of(span: &'a Span) -> Self {
        let mut read = Self { upstream: None, router: None, service: None, socket: None };
        let (mut peer, mut port) = (None, None);
        for attribute in &span.attributes {
            match attribute.key.as_str() {
                "upstream_cluster.name" => read.upstream = text(attribute),
                "upstream_cluster" => read.upstream = read.upstream.or(text(attribute)),
                "upstream_address" => read.socket = text(attribute).map(str::to_owned),
                "traefik.router.name" => read.router = text(attribute),
                "traefik.service.name" => read.service = text(attribute),
                "network.peer.address" => peer = text(attribute),
                "network.peer.port" => port = number(attribute),
                _ => {}
            }
        }
        // On other spans the peer is whoever sent the request.
        if read.socket.is_none()
            && span.kind == i32::from(SpanKind::Client)
            && let (Some(peer), Some(port)) = (peer, port)
        {
            read.socket = Some(match peer.contains(':') {
                true => format!("[{peer}]:{port}"),
                false => format!("{peer}:{port}"),
            });
        }
        read
    }
}

fn text(attribute: &KeyValue) -> Option<&str> {
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn number(attribute: &KeyValue) -> Option<i64> {
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::IntValue(number) => Some(*number),
        any_value::Value::StringValue(text) => text.parse().ok(),
        _ => None,
    }
}

/// Requests of our own: probes of the door and questions for ready counts. A span towards the backend has no
/// path; it tells the route.
fn is_probe(span: &Span) -> bool {
    span.attributes.iter().any(|attribute| match attribute.key.as_str() {
        "http.url" | "url.full" | "url.path" | "http.target" => {
            text(attribute).is_some_and(|url| {
                url.ends_with(keys::PATH_PROBE) || url.ends_with(keys::PATH_READINESS)
            })
        }
        "upstream_cluster.name" | "upstream_cluster" => text(attribute).is_some_and(is_probe_route),
        _ => false,
    })
}

/// `httproute/fairlead-system/readiness/rule/0`.
fn is_probe_route(upstream: &str) -> bool {
    let mut parts = upstream.split('/').skip(1);
    parts.next() == Some(keys::NAMESPACE)
        && matches!(parts.next(), Some(keys::ROUTE_PROBE | keys::ROUTE_READINESS))
}

/// Envoy says so of itself.
fn is_envoy(resource: Option<&Resource>) -> bool {
    let attributes = resource.into_iter().flat_map(|resource| &resource.attributes);
    let mut named = attributes.filter(|attribute| attribute.key == "telemetry.sdk.name");
    named.any(|attribute| text(attribute) == Some("envoy"))
}

fn attributes(meaning: &Meaning<'_>, known: &Known) -> Vec<KeyValue> {
    let mut told = vec![
        attribute("fairlead.hop", meaning.hop.as_str()),
        attribute("fairlead.plan", known.atlas.plan.to_string()),
    ];
    if let Some(route) = meaning.route {
        told.push(attribute("fairlead.route", route));
    }
    if let Some(rule) = meaning.rule {
        told.push(attribute("fairlead.rule", usize::from(rule)));
    }
    if let Some(backend) = meaning.backend {
        told.push(attribute("fairlead.backend", backend));
    }
    if meaning.hop == Hop::Entry {
        told.push(attribute("fairlead.entry", known.place.member.as_str()));
        told.push(attribute("fairlead.overlay", meaning.overlay));
    }
    if let Some(target) = meaning.target {
        told.push(attribute("fairlead.target", target.as_str()));
        if meaning.hop == Hop::Entry {
            told.push(attribute("fairlead.crossed", *target != known.place.member));
        }
    }
    if let Some(tier) = meaning.tier {
        told.push(attribute("fairlead.tier", usize::from(tier)));
    }
    told
}

/// Names the cluster. A gateway's own service name is kept, under another key: service graphs join on
/// `service.name`, and gateways of one name in two clusters would be one node.
fn enrich_resource(resource: &mut Resource, place: &Place, is_gateway: bool) {
    let ours = ["k8s.cluster.name", "k8s.cluster.uid", "fairlead.gateway"];
    resource.attributes.retain(|attribute| !ours.contains(&attribute.key.as_str()));
    resource.attributes.push(attribute("k8s.cluster.name", place.member.as_str()));
    resource.attributes.push(attribute("k8s.cluster.uid", place.uid.as_str()));
    let has_region = resource.attributes.iter().any(|attribute| attribute.key == "cloud.region");
    if let Some(region) = place.region.as_deref().filter(|_| !has_region) {
        resource.attributes.push(attribute("cloud.region", region));
    }
    if !is_gateway {
        return;
    }
    let own = resource.attributes.iter().find(|attribute| attribute.key == SERVICE_NAME);
    let own = own.and_then(text).unwrap_or("gateway").to_owned();
    resource.attributes.retain(|attribute| attribute.key != SERVICE_NAME);
    resource.attributes.push(attribute(SERVICE_NAME, format!("{}.{own}", place.member)));
    resource.attributes.push(attribute("fairlead.gateway", own));
}

#[cfg(test)]
#[path = "enrich_test.rs"]
mod tests;
