//! What one side says is what the other side reads, whatever it is; and noise never panics.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::bundle::{Bundle, BundleObject, Claim, CrossingCa, Gate, Peer, RuleId};
use fairlead_model::dns::{
    AnswerPolicy, DnsName, MemberRecord, NameServer, Network, RecordSet, Strategy, WhenNoneHealthy,
    Zone, Zones,
};
use fairlead_model::health::{ApiServer, PeerReach, Reach};
use fairlead_model::ledger::Ledger;
use fairlead_model::recipe::{
    Candidate, RECIPE_VERSION, Recipe, RecipeBackend, RecipeTier, Serve, Split, Standing,
    WhenUnavailable,
};
use fairlead_model::session::{
    ApplyReport, Beat, BundleUpdate, CrossingHeld, Exception, FromAgent, FromHub, Hello,
    OverlayReport, PROTOCOL, SnapshotUpdate, Welcome,
};
use fairlead_model::snapshot::{
    Address, ClusterFacts, Consent, DoorState, EndpointCounts, GatewayClassState, GatewayRole,
    GatewayState, GrantFrom, Knock, ListenerState, PortState, ServiceState, Snapshot, SniState,
    WeakDoor,
};
use fairlead_model::traffic::{Flow, FlowCounts, Outcome, TrafficReport};
use fairlead_model::{
    ClusterUid, MemberId, Millis, NsName, ObjectId, PlanNumber, Reason, RouteKind, SnapshotNumber,
};
use fairlead_proto::convert::{AgentAssembler, HubAssembler, agent_messages, hub_messages};
use fairlead_proto::ledger::{
    bundle_to_ledger, ledger_to_bundle, ledger_to_snapshot, snapshot_to_ledger,
};
use fairlead_proto::pb;
use proptest::prelude::*;
use prost::Message as _;

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn mk_snapshot() -> Snapshot {
    let listener = ListenerState {
        port: 443,
        protocol: "HTTPS".into(),
        hostname: Some("*.example.com".into()),
        programmed: Some(true),
        message: "m".to_owned(),
    };
    let gateway = |role| GatewayState {
        class: "eg".into(),
        role,
        programmed: Some(false),
        message: "no address".into(),
        addresses: [
            Address::of("192.0.2.1"),
            Address::of("2001:db8::1"),
            Address::of("lb.example"),
        ]
        .into(),
        listeners: [("https".to_owned(), listener.clone())].into(),
    };
    let global = NsName::new("infra", "public");
    Snapshot {
        cluster: ClusterFacts {
            uid: Some(ClusterUid::new("11111111-2222").unwrap()),
            region: Some("eu".into()),
            zone: Some("eu-1".into()),
            agent_version: "0.1.0".into(),
            kubernetes_version: "v1.36.3".into(),
            gateway_api_version: Some("v1.6.1".into()),
            gateway_api_channel: Some("standard".into()),
            kinds: ["gateway.networking.k8s.io/v1/HTTPRoute".to_owned()].into(),
            namespaces_allowed: Some(["shop".to_owned()].into()),
            namespaces_denied: ["kube-system".to_owned()].into(),
            dns_addresses: [Address::of("192.0.2.53")].into(),
        },
        classes: [(
            "eg".to_owned(),
            GatewayClassState {
                controller: "gateway.envoyproxy.io/gatewayclass-controller".into(),
                accepted: Some(true),
                features: Some(["HTTPRouteRequestMirror".to_owned()].into()),
            },
        )]
        .into(),
        gateways: [
            (NsName::new("infra", "own"), gateway(GatewayRole::Lent(global.clone()))),
            (NsName::new("infra", "public-global"), gateway(GatewayRole::Created(global))),
            (NsName::new("fairlead-system", "fairlead-eastwest"), gateway(GatewayRole::Door)),
        ]
        .into(),
        services: [(
            NsName::new("shop", "cart"),
            ServiceState {
                exported_at: Millis(7),
                consent: Consent::Refused,
                ports: [(
                    80,
                    PortState {
                        name: "http".into(),
                        protocol: "TCP".into(),
                        app_protocol: "kubernetes.io/h2c".into(),
                    },
                )]
                .into(),
                zones: [(String::new(), EndpointCounts { ready: 2, total: 3 })].into(),
                grants: [GrantFrom { kind: RouteKind::HTTPRoute, namespace: "web".into() }].into(),
            },
        )]
        .into(),
        namespaces: ["shop".to_owned()].into(),
        door: DoorState {
            ca_pem: Some("PEM".into()),
            endorsements: vec!["PEM of the next".into()],
            knock: Knock::StrangerLetIn,
            message: "let in".into(),
            sni: Some(SniState { knock: Knock::Shut, message: "shut".into() }),
            weak: [WeakDoor::Open].into(),
        },
    }
}

fn mk_bundle() -> Bundle {
    let content = serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute", "metadata": {"name": "cart-global", "namespace": "shop"},
        "spec": {"future": [1, {"b": null, "a": 1.5}]}});
    let id = ObjectId::of(&content).unwrap();
    let candidate = |name: &str, slot, standing| Candidate {
        member: member(name),
        slot,
        ready: 1,
        expected: 2,
        weight: 3,
        ramp_percent: 40,
        standing,
    };
    let recipe = Recipe {
        version: RECIPE_VERSION,
        backends: vec![
            RecipeBackend { weight: 80, serve: Serve::Fixed { slot: 0 } },
            RecipeBackend {
                weight: 20,
                serve: Serve::Members {
                    service: NsName::new("shop", "cart"),
                    port: 80,
                    tiers: vec![RecipeTier {
                        split: Split::Weights,
                        healthy_percent: 70,
                        endpoints_min: 1,
                        candidates: vec![
                            candidate("east", 1, Standing::Able),
                            candidate("west", 2, Standing::Out),
                        ],
                    }],
                    when_unavailable: WhenUnavailable::Fail,
                },
            },
        ],
        weights: vec![8_000, 2_000, 0],
    };
    let peer = Peer {
        uid: ClusterUid::new("u").unwrap(),
        addresses: [Address::of("192.0.2.2")].into(),
        port: 15_443,
        server_name: "door.u.fairlead.internal".into(),
        ca_pem: "PEM".into(),
        readiness: fairlead_model::bundle::Capability("opens it".into()),
    };
    Bundle {
        number: PlanNumber::default(),
        objects: [(
            id.clone(),
            BundleObject { content, gate: Gate::DoorShut, claim: Claim::Fields },
        )]
        .into(),
        recipes: [(RuleId { object: id, rule: 3 }, recipe)].into(),
        peers: [(member("east"), peer)].into(),
        zones: mk_zones(),
        cas: [(member("east"), mk_crossing_ca())].into(),
    }
}

fn mk_crossing_ca() -> CrossingCa {
    CrossingCa {
        uid: ClusterUid::new("u").unwrap(),
        membership: "m".into(),
        ca_pem: "PEM".into(),
        endorsements: vec!["PEM of the next".into()],
    }
}

fn mk_zones() -> Zones {
    let policy = AnswerPolicy {
        strategy: Strategy::Geo,
        ttl_s: 30,
        answers_max: 2,
        when_none_healthy: WhenNoneHealthy::Fallback,
        fallback: ["192.0.2.99".parse().unwrap()].into(),
        networks: vec![Network::parse("10.0.0.0/8", "eu").unwrap()],
    };
    let record = |name: &str, out| MemberRecord {
        member: member(name),
        addresses: [Address::of("192.0.2.2"), Address::of("lb.example")].into(),
        weight: 7,
        tier: 1,
        region: Some("eu".into()),
        out,
    };
    let policy_name = NsName::new("infra", "names");
    let set = RecordSet {
        policy: policy_name.clone(),
        members: vec![record("east", None), record("west", Some(Reason::Down))],
    };
    let name = |text: &str| DnsName::new(text).unwrap();
    let server = NameServer {
        name: name("ns-east.example.com"),
        addresses: ["192.0.2.53".parse().unwrap()].into(),
    };
    let zone = Zone {
        serial: 7,
        negative_ttl_s: 30,
        servers: vec![server],
        policies: [(policy_name, Arc::new(policy))].into(),
        sets: [(name("*.example.com"), set.clone()), (name("shop.example.com"), set)].into(),
    };
    [(name("example.com"), zone)].into()
}

fn agent_round_trip(message: &FromAgent) -> FromAgent {
    let mut assembler = AgentAssembler::default();
    let mut got = None;
    for message in agent_messages(message) {
        let bytes = message.encode_to_vec();
        assert!(bytes.len() < fairlead_proto::MESSAGE_BYTES_MAX);
        got = assembler.push(pb::AgentMessage::decode(bytes.as_slice()).unwrap()).unwrap();
    }
    got.unwrap()
}

fn hub_round_trip(message: &FromHub) -> FromHub {
    let mut assembler = HubAssembler::default();
    let mut got = None;
    for message in hub_messages(message) {
        let bytes = message.encode_to_vec();
        got = assembler.push(pb::HubMessage::decode(bytes.as_slice()).unwrap()).unwrap();
    }
    got.unwrap()
}

#[test]
fn a_snapshot_survives_its_ledger() {
    let (got, notes) = ledger_to_snapshot(&snapshot_to_ledger(&mk_snapshot()));
    assert_eq!(got, mk_snapshot());
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn a_bundle_survives_its_ledger() {
    let (got, notes) = ledger_to_bundle(&bundle_to_ledger(&mk_bundle()));
    assert_eq!(got, mk_bundle());
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn every_agent_message_survives() {
    let exception = Exception { reason: Reason::NameConflict, message: "not ours".into() };
    let number = PlanNumber::new(3, 9);
    let delta = snapshot_to_ledger(&mk_snapshot()).full();
    let all = [
        FromAgent::Hello(Hello {
            member: member("east"),
            uid: ClusterUid::new("u").unwrap(),
            protocol: PROTOCOL,
            agent_version: "0.1.0".into(),
            incarnation: 4,
            bundle: Some((number, [7; 32])),
            now: Millis(5),
        }),
        FromAgent::Snapshot(SnapshotUpdate {
            number: SnapshotNumber { incarnation: 4, sequence: 2 },
            delta,
        }),
        FromAgent::Applied(ApplyReport {
            number,
            complete: true,
            objects: 5,
            written: 2,
            programmed: true,
            moving: 3,
            exceptions: [(ObjectId::new("", "v1", "Service", "a", "b"), exception.clone())].into(),
            exceptions_more: 1,
            refused: Some(exception),
        }),
        FromAgent::Probes(
            [(member("west"), PeerReach { reach: Reach::TimedOut, since: Millis(1) })].into(),
        ),
        FromAgent::Overlay(OverlayReport {
            number,
            out: [(member("west"), Reason::DoorRefused)].into(),
            rules: 2,
        }),
        FromAgent::Traffic(TrafficReport {
            span_ms: 5_000,
            sampled: 10_000,
            flows: [(flow(), counts())].into(),
            left_out: 1,
        }),
        FromAgent::Heartbeat(Beat {
            now: Millis(9),
            api: ApiServer::Answers,
            trust: Some([7; 32]),
        }),
        FromAgent::Heartbeat(Beat { now: Millis(9), api: ApiServer::Lost, trust: None }),
    ];
    for message in all {
        assert_eq!(agent_round_trip(&message), message);
    }
}

fn flow() -> Flow {
    Flow {
        route: "HTTPRoute/shop/cart".to_owned(),
        rule: 1,
        backend: "shop/cart:80".to_owned(),
        target: member("west"),
    }
}

fn counts() -> FlowCounts {
    let mut counts = FlowCounts::default();
    counts.add(7, Outcome::Answered);
    counts.add(70_000, Outcome::Failed);
    counts
}

#[test]
fn every_hub_message_survives() {
    let all = [
        FromHub::Welcome(Welcome {
            protocol: PROTOCOL,
            hub_version: "0.1.0".into(),
            epoch: 3,
            snapshot: Some((SnapshotNumber { incarnation: 1, sequence: 2 }, [9; 32])),
            now: Millis(5),
        }),
        FromHub::Bundle(BundleUpdate {
            number: PlanNumber::new(1, 2),
            base: Some(PlanNumber::new(1, 1)),
            delta: bundle_to_ledger(&mk_bundle()).delta_from(&Ledger::default()),
            caused_at: Millis(3),
            trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        }),
        FromHub::SnapshotWanted,
        FromHub::SnapshotTaken(SnapshotNumber { incarnation: 1, sequence: 2 }),
        FromHub::Trust("PEM".into()),
        FromHub::Crossing(CrossingHeld {
            ca: [7; 32],
            missing: [member("east")].into(),
            more: true,
        }),
        FromHub::Heartbeat(Millis(9)),
    ];
    for message in all {
        assert_eq!(hub_round_trip(&message), message);
    }
}

#[test]
fn a_reason_of_a_newer_agent_is_kept_as_text() {
    let report = pb::ApplyReport {
        refused: Some(pb::Exception { reason: "QuantumLoss".into(), message: "odd".into() }),
        ..Default::default()
    };
    let message = pb::AgentMessage { body: Some(pb::agent_message::Body::Applied(report)) };
    let got = AgentAssembler::default().push(message).unwrap().unwrap();
    let FromAgent::Applied(report) = got else { panic!("{got:?}") };
    assert_eq!(report.refused.unwrap().message, "QuantumLoss: odd");
}

#[test]
fn one_broken_entry_costs_only_itself() {
    let mut entries: BTreeMap<String, Vec<u8>> =
        snapshot_to_ledger(&mk_snapshot()).entries().clone();
    entries.insert("service/shop/cart".into(), vec![0xff; 9]);
    let (got, notes) = ledger_to_snapshot(&Ledger::new(entries));
    assert!(got.services.is_empty() && got.gateways.len() == 3);
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0].reason, Reason::Unreadable);
}

#[test]
fn a_liar_cannot_have_more_ready_endpoints_than_endpoints() {
    let item = pb::SnapshotItem {
        item: Some(pb::snapshot_item::Item::Service(pb::Service {
            namespace: "a".into(),
            name: "b".into(),
            zones: vec![pb::ZoneCounts { zone: String::new(), ready: 9, total: 2 }],
            ..Default::default()
        })),
    };
    let ledger = Ledger::new([("service/a/b".to_owned(), item.encode_to_vec())].into());
    let (got, _) = ledger_to_snapshot(&ledger);
    assert_eq!(got.services[&NsName::new("a", "b")].counts().ready, 2);
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = pb::AgentMessage::decode(bytes.as_slice()) {
            let _: Result<_, _> = AgentAssembler::default().push(message);
        }
        if let Ok(message) = pb::HubMessage::decode(bytes.as_slice()) {
            let _: Result<_, _> = HubAssembler::default().push(message);
        }
        let ledger = Ledger::new([("x".to_owned(), bytes)].into());
        ledger_to_snapshot(&ledger);
        ledger_to_bundle(&ledger);
    }
}
