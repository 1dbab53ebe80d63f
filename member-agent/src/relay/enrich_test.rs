//! What becomes of spans as real gateways send them.
#![expect(clippy::unwrap_used, reason = "tests")]

use fairlead_agent_core::attribution::Atlas;
use fairlead_model::bundle::{Bundle, BundleObject, Claim, Gate};
use fairlead_model::{ObjectId, PlanNumber};
use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
use serde_json::json;

use super::*;

fn known() -> Known {
    let content = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "namespace": "shop", "name": "cart-global",
            "annotations": {"fairlead.dev/mirror-of": "HTTPRoute/shop/cart"},
        },
        "spec": {"rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]},
    });
    let mut bundle = Bundle { number: PlanNumber::new(2, 5), ..Bundle::default() };
    let object = BundleObject { content, gate: Gate::Open, claim: Claim::Whole };
    bundle.objects.insert(ObjectId::of(&object.content).unwrap(), object);
    let member = MemberId::new("east").unwrap();
    let atlas = Atlas::of(&member, &bundle, &std::collections::BTreeSet::new());
    let place = Place { member, uid: "uid-east".to_owned(), region: Some("eu".to_owned()) };
    Known { atlas, place }
}

fn span(kind: SpanKind, attributes: &[(&str, &str)]) -> Span {
    let attributes = attributes.iter().map(|(key, value)| attribute(*key, *value)).collect();
    Span { kind: kind.into(), attributes, ..Span::default() }
}

fn request(resource: &[(&str, &str)], spans: Vec<Span>) -> ExportTraceServiceRequest {
    let attributes = resource.iter().map(|(key, value)| attribute(*key, *value)).collect();
    let resource = Resource { attributes, ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let spans = ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn shown(attributes: &[KeyValue]) -> Vec<String> {
    let value = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(yes) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|it| format!("{}={}", it.key, value(it))).collect()
}

const ENVOY: [(&str, &str); 2] = [("service.name", "eg"), ("telemetry.sdk.name", "envoy")];

#[test]
fn a_gateways_span_is_told_what_it_was_and_its_service_is_the_clusters() {
    let sent = span(
        SpanKind::Client,
        &[
            ("upstream_cluster.name", "httproute/shop/cart-global/rule/0/backend/0"),
            ("upstream_address", "10.244.0.5:8080"),
            ("fairlead.target", "a lie"),
        ],
    );
    let mut request = request(&ENVOY, vec![sent]);
    let sum = enrich(&mut request, &known(), &Strip::default(), &mut Sums::default());
    assert_eq!(sum, Enriched { spans: 1, attributed: 1, probes: 0 });
    let spans = &request.resource_spans[0];
    assert_eq!(
        shown(&spans.scope_spans[0].spans[0].attributes)[2..],
        [
            "fairlead.hop=entry",
            "fairlead.plan=2.5",
            "fairlead.route=HTTPRoute/shop/cart",
            "fairlead.rule=0",
            "fairlead.backend=shop/cart:80",
            "fairlead.entry=east",
            "fairlead.overlay=false",
            "fairlead.target=east",
            "fairlead.crossed=false",
        ]
    );
    assert_eq!(
        shown(&spans.resource.as_ref().unwrap().attributes)[1..],
        [
            "k8s.cluster.name=east",
            "k8s.cluster.uid=uid-east",
            "cloud.region=eu",
            "service.name=east.eg",
            "fairlead.gateway=eg",
        ]
    );
}

#[test]
fn spans_of_others_only_learn_their_cluster() {
    let mut request = request(
        &[("service.name", "cart"), ("cloud.region", "their own")],
        vec![span(SpanKind::Server, &[("url.path", "/cart")])],
    );
    let sum = enrich(&mut request, &known(), &Strip::default(), &mut Sums::default());
    assert_eq!((sum.spans, sum.attributed), (1, 0));
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(
        shown(&resource.attributes),
        [
            "service.name=cart",
            "cloud.region=their own",
            "k8s.cluster.name=east",
            "k8s.cluster.uid=uid-east",
        ]
    );
}

#[test]
fn spans_of_our_own_probes_go_no_further() {
    let url = "https://door.uid.fairlead.internal/.well-known/fairlead/probe";
    // Towards the backend there is no path.
    let upstream = "httproute/fairlead-system/readiness/rule/0";
    let spans = vec![
        span(SpanKind::Server, &[("http.url", url)]),
        span(SpanKind::Client, &[("upstream_cluster.name", upstream)]),
    ];
    let mut request = request(&ENVOY, spans);
    let sum = enrich(&mut request, &known(), &Strip::default(), &mut Sums::default());
    assert_eq!(sum, Enriched { probes: 2, ..Enriched::default() });
    assert!(request.resource_spans.is_empty());
    assert!(!is_probe_route("httproute/fairlead-system/shop.readiness/rule/0"));
    assert!(!is_probe_route("httproute/shop/readiness/rule/0"));
}

#[test]
fn credentials_and_what_the_configuration_names_are_taken_out() {
    let strip = Strip::of(&["user_agent".to_owned(), "http.request.header.*".to_owned()]);
    let attributes = [
        ("http.request.header.x-tenant", "t"),
        ("my.Authorization", "Bearer x"),
        ("fairlead-backend", "capability"),
        ("guid:cookie", "c"),
        ("user_agent", "curl"),
        ("user_agent.version", "8"),
    ];
    let mut request = request(&[], vec![span(SpanKind::Server, &attributes)]);
    enrich(&mut request, &known(), &strip, &mut Sums::default());
    let left = shown(&request.resource_spans[0].scope_spans[0].spans[0].attributes);
    assert_eq!(left, ["user_agent.version=8"]);
}

#[test]
fn the_peer_of_a_client_span_is_where_the_request_went() {
    let attributes = [("network.peer.address", "fd00::1"), ("network.peer.port", "80")];
    let socket = |kind| Read::of(&span(kind, &attributes)).socket;
    assert_eq!(socket(SpanKind::Client).as_deref(), Some("[fd00::1]:80"));
    assert_eq!(socket(SpanKind::Server), None);
}

#[test]
fn requests_that_were_sent_on_are_counted_by_how_they_ended() {
    let sent = |status: &str| {
        let mut sent = span(
            SpanKind::Client,
            &[
                ("upstream_cluster.name", "httproute/shop/cart-global/rule/0/backend/0"),
                ("http.status_code", status),
            ],
        );
        sent.end_time_unix_nano = 30_000_000;
        sent
    };
    let mut request = request(&ENVOY, vec![sent("200"), sent("503"), sent("0")]);
    let mut sums = Sums::default();
    enrich(&mut request, &known(), &Strip::default(), &mut sums);
    let report = sums.take(1_000, 10_000);
    let (flow, counts) = report.flows.first_key_value().unwrap();
    assert_eq!((flow.backend.as_str(), flow.target.as_str()), ("shop/cart:80", "east"));
    assert_eq!((counts.requests, counts.errors, counts.latency_ms(0.5)), (3, 2, Some(50)));
}
