//! The conductor as a whole, without a cluster: what it plans, pushes and holds back.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_hub_core::intake::Held;
use fairlead_hub_core::session::Identity;
use fairlead_model::session::{Hello, PROTOCOL};
use fairlead_model::snapshot::{
    ClusterFacts, EndpointCounts, GatewayRole, GatewayState, PortState, ServiceState, Snapshot,
};
use fairlead_model::{ClusterUid, Json, NsName, Reason, RouteKey, SnapshotNumber};
use serde_json::json;
use std::collections::BTreeSet;

use crate::record::Stored;
use crate::view::Look;
use crate::watch::{KindObjects, Progress};

fn mk_conductor(fleet: Fleet) -> Conductor {
    Conductor {
        objects: Arc::default(),
        fleet: Arc::new(fleet),
        keys: Arc::new(ArcSwap::from_pointee(CapabilityKeys { epochs: [(1, [7; 32])].into() })),
        metrics: Arc::default(),
        current: Arc::default(),
        decided: Arc::default(),
        chronicle: Arc::default(),
        trials: Trials { settings: None, traffic: Arc::default() },
        memory_slot: Arc::default(),
        started_at: clock::now(),
        grace_ms: 30_000,
        tracer: Tracer::default(),
    }
}

fn identity() -> Identity {
    Identity { member: MemberId::new("east").unwrap(), uid: ClusterUid::new("uid-east").unwrap() }
}

fn hub_objects() -> Vec<Json> {
    let group = "gateway.networking.k8s.io/v1";
    vec![
        json!({"apiVersion": group, "kind": "GatewayClass", "metadata": {"name": "fairlead"},
            "spec": {"controllerName": "fairlead.dev/hub"}}),
        json!({"apiVersion": group, "kind": "Gateway", "metadata": {"name": "public", "namespace": "infra"},
            "spec": {"gatewayClassName": "fairlead", "listeners": [{"name": "http", "port": 80,
                "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
        json!({"apiVersion": group, "kind": "HTTPRoute", "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"parentRefs": [{"name": "public", "namespace": "infra"}], "rules": [{"backendRefs": [
                {"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "cart", "port": 80}]}]}}),
        json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "MemberCluster", "metadata": {"name": "east"},
            "spec": {"clusterUID": "uid-east", "gatewayClassName": "eg"}}),
    ]
}

fn load(conductor: &Conductor, objects: &[Json]) {
    for kind in &KINDS {
        let name = |object: &Json| {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
            NsName::new(text("namespace"), text("name"))
        };
        let of_kind = objects.iter().filter(|object| object["kind"] == kind.name);
        let found: KindObjects = of_kind.map(|o| (name(o), Arc::new(o.clone()))).collect();
        match found.is_empty() {
            true => conductor.objects.set_progress(kind, Progress::Absent),
            false => conductor.objects.reset(kind, found),
        }
    }
}

fn mk_snapshot(ready: u32) -> Snapshot {
    let service = ServiceState {
        ports: [(80, PortState::default())].into(),
        zones: [(String::new(), EndpointCounts { ready, total: ready })].into(),
        ..ServiceState::default()
    };
    let gateway = GatewayState {
        class: "eg".into(),
        role: GatewayRole::Lent(NsName::new("infra", "public")),
        programmed: Some(true),
        message: String::new(),
        addresses: BTreeSet::new(),
        listeners: [("http".into(), Default::default())].into(),
    };
    Snapshot {
        cluster: ClusterFacts {
            uid: Some(identity().uid),
            kinds: ["HTTPRoute", "Gateway", "ReferenceGrant"]
                .map(|kind| format!("gateway.networking.k8s.io/v1/{kind}"))
                .into(),
            ..ClusterFacts::default()
        },
        classes: [("eg".into(), Default::default())].into(),
        gateways: [(NsName::new("infra", "edge"), gateway)].into(),
        services: [(NsName::new("shop", "cart"), service)].into(),
        namespaces: ["infra", "shop", "fairlead-system"].map(String::from).into(),
        ..Snapshot::default()
    }
}

fn held(ready: u32, sequence: u64) -> Held {
    let ledger = fairlead_proto::ledger::snapshot_to_ledger(&mk_snapshot(ready));
    let number = SnapshotNumber { incarnation: 1, sequence };
    Held { number, digest: ledger.digest(), ledger: Arc::new(ledger) }
}

fn connect(fleet: &Fleet, epoch: u64) {
    let Identity { member, uid } = identity();
    let hello = Hello {
        member,
        uid,
        protocol: PROTOCOL,
        agent_version: "0.1.0".into(),
        incarnation: 1,
        bundle: None,
        now: clock::now(),
    };
    drop(fleet.open(&hello, epoch).unwrap());
}

fn round(conductor: &Conductor, carried: Carried) -> Carried {
    conductor.round(carried, clock::now())
}

fn held_for(conductor: &Conductor) -> Vec<Reason> {
    conductor.current.load().held.iter().map(|note| note.reason).collect()
}

#[test]
fn nothing_is_planned_before_all_kinds_are_read() {
    let conductor = mk_conductor(Fleet::default());
    let carried = round(&conductor, Carried::default());
    assert_eq!(held_for(&conductor), [Reason::PolicyNotSynced]);
    load(&conductor, &hub_objects());
    let carried = round(&conductor, carried);
    assert_eq!(held_for(&conductor), [Reason::WaitingForMembers], "it had joined before");
    connect(&conductor.fleet, 1);
    conductor.fleet.report(&identity(), 1, held(2, 1));
    round(&conductor, carried);
    assert_eq!(held_for(&conductor), []);
    assert!(conductor.current.load().planned.is_some());
}

#[test]
fn a_route_reaches_the_member_that_serves_it() {
    let conductor = mk_conductor(Fleet::default());
    load(&conductor, &hub_objects());
    let carried = round(&conductor, Carried::default());
    assert!(conductor.fleet.wanted(&identity().member).is_none(), "it has not reported");
    connect(&conductor.fleet, 1);
    conductor.fleet.report(&identity(), 1, held(2, 1));
    round(&conductor, carried);
    let wanted = conductor.fleet.wanted(&identity().member).unwrap();
    let keys: Vec<&String> = wanted.ledger.entries().keys().collect();
    assert!(keys.iter().any(|key| key.contains("HTTPRoute/shop/cart-global")), "{keys:?}");

    let (current, members) = (conductor.current.load_full(), conductor.fleet.look());
    let now = clock::now();
    let look = Look { current: &current, members: &members, now, started_at: now };
    let route: RouteKey = "HTTPRoute/shop/cart".parse().unwrap();
    let explanation = look.explain(&route, None).unwrap();
    assert_eq!(explanation.entries[&identity().member].rules[0].backends[0].share, 10_000);
    assert_eq!(look.routes()[0].entries.len(), 1);
    assert_eq!(look.gateways()[0].role, "Lent");
    assert_eq!(look.services()[0].members.len(), 1);
    let plan = look.plan(&identity().member).unwrap();
    assert!(plan["objects"].as_object().is_some_and(|objects| !objects.is_empty()));
}

#[test]
fn a_restart_wants_the_very_same_bundle() {
    let before = mk_conductor(Fleet::default());
    load(&before, &hub_objects());
    connect(&before.fleet, 1);
    before.fleet.register(&[(identity().member, Some(identity().uid))].into());
    before.fleet.report(&identity(), 1, held(2, 1));
    let carried = round(&before, Carried::default());
    let wanted = before.fleet.wanted(&identity().member).unwrap();

    let (reports, _) = before.fleet.take_unstored();
    let stored = |(member, report): (MemberId, fairlead_hub_core::inventory::Report)| {
        (member, Stored { uid: report.uid.clone(), report: Some(report) })
    };
    let fleet = Fleet::default();
    fleet.restore(reports.into_iter().map(stored).collect());
    let after = mk_conductor(fleet);
    load(&after, &hub_objects());
    let carried = Carried { memory: carried.memory, ..Carried::default() };
    let carried = round(&after, carried);
    assert_eq!(held_for(&after), [Reason::WaitingForMembers]);
    assert!(carried.wake_at.is_some(), "the end of the grace period");
    assert!(after.fleet.wanted(&identity().member).is_none());
    connect(&after.fleet, 2);
    after.fleet.confirm(&identity().member);
    round(&after, carried);
    assert_eq!(after.fleet.wanted(&identity().member).unwrap().digest, wanted.digest);
}

#[test]
fn what_did_not_change_is_not_rendered_again() {
    let conductor = mk_conductor(Fleet::default());
    load(&conductor, &hub_objects());
    connect(&conductor.fleet, 1);
    conductor.fleet.report(&identity(), 1, held(2, 1));
    let first = round(&conductor, Carried::default());
    let rendered = Arc::clone(&first.rendered[&identity().member]);
    let second = round(&conductor, first);
    assert!(Arc::ptr_eq(&rendered, &second.rendered[&identity().member]));
}
