//! From watched objects to answers for `clusterset.local`.
#![expect(clippy::unwrap_used, reason = "tests")]

use arc_swap::ArcSwap;
use fairlead_agent_core::clusterset::HEADLESS;
use fairlead_agent_core::diff::KindKey;
use fairlead_agent_core::dns::{Code, Data, Family, Kind};
use fairlead_agent_core::live::LiveObject;
use fairlead_agent_core::own;
use fairlead_model::Json;
use fairlead_model::snapshot::DoorState;
use fairlead_translate::ingest::member::AgentConfig;
use serde_json::json;

use super::*;
use crate::cache::Read;
use crate::kind::{self, Trim};
use crate::observe::{Facts, snapshot_of};

fn put(cache: &Cache, trim: Trim, object: Json) {
    let trimmed = kind::trim(trim, object);
    let (id, live) = LiveObject::of(trimmed.object, trimmed.keep).unwrap();
    cache.put(Read { id, live, counts: trimmed.counts });
}

fn export(cache: &Cache, name: &str, cluster_ip: &str, address: &str, labels: Json) {
    let metadata = json!({"name": name, "namespace": "shop"});
    let ports = json!([{"name": "http", "port": 80}]);
    put(
        cache,
        Trim::Service,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"ports": ports, "clusterIP": cluster_ip, "clusterIPs": [cluster_ip]}}),
    );
    put(
        cache,
        Trim::Nothing,
        json!({"apiVersion": "multicluster.x-k8s.io/v1beta1",
        "kind": "ServiceExport", "metadata": metadata}),
    );
    put(
        cache,
        Trim::Slice,
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-x"), "namespace": "shop", "labels": labels},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [address], "hostname": "pet-0", "conditions": {"ready": true}}]}),
    );
}

fn snapshot(cache: &Cache) -> Option<Arc<Snapshot>> {
    let state = cache.read();
    let (snapshot, notes) =
        snapshot_of(&state, &AgentConfig::default(), Facts::default(), DoorState::default());
    assert!(notes.is_empty(), "{notes:?}");
    Some(Arc::new(snapshot))
}

fn ask(views: &Views, name: &str) -> (Code, Vec<String>) {
    let view = views.load();
    let reply = view.answer(name, Kind::Address(Family::V4), "10.0.0.9".parse().unwrap(), 1);
    let text = |data: &Data<'_>| match data {
        Data::Address(ip) => ip.to_string(),
        other => format!("{other:?}"),
    };
    (reply.code, reply.answers.iter().map(|record| text(&record.data)).collect())
}

#[tokio::test]
async fn answers_follow_the_cluster() {
    let kinds = kind::watched([]);
    let cache = Cache::new(kinds.iter().map(|k| KindKey::new(&k.group, &k.kind)));
    let (snapshots, snapshot_rx) = watch::channel(None);
    let (_held, held) = watch::channel(None);
    let (_resolved, resolved) = watch::channel(Arc::default());
    let views: Views = Arc::new(ArcSwap::default());
    let member = MemberId::new("east").unwrap();
    let keeper = ClustersetKeeper {
        member,
        cache: cache.clone(),
        snapshot: snapshot_rx,
        held,
        resolved,
        views: views.clone(),
        serial: 7,
    };
    const CART: &str = "cart.shop.svc.clusterset.local";
    assert_eq!(ask(&views, CART).0, Code::Refused, "nothing is known yet");
    let running = tokio::spawn(keeper.run());
    export(&cache, "cart", "10.96.0.7", "10.0.0.1", json!({own::SERVICE_NAME: "cart"}));
    let labels = json!({own::SERVICE_NAME: "pets", HEADLESS: ""});
    export(&cache, "pets", "None", "10.0.0.2", labels);
    snapshots.send_replace(snapshot(&cache));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while ask(&views, CART).1.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "no answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&views, CART), (Code::NoError, vec!["10.96.0.7".to_owned()]));
    let pod = (Code::NoError, vec!["10.0.0.2".to_owned()]);
    assert_eq!(ask(&views, "pets.shop.svc.clusterset.local"), pod);
    assert_eq!(ask(&views, "pet-0.east.pets.shop.svc.clusterset.local"), pod);
    assert_eq!(ask(&views, "nope.shop.svc.clusterset.local").0, Code::NameError);
    running.abort();
}
