//! The fleet of a run: members, what they serve, routes, and what is said of them to the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::policy::{
    Backend, BackendTarget, Failback, FailbackMode, GlobalGateway, GlobalRoute, Listener,
    MemberSpec, ParentRef, Policy, Rule, Scope, Spread, Tier, TierMembers, TrafficState,
};
use fairlead_model::recipe::{Split, WhenUnavailable};
use fairlead_model::snapshot::{
    Address, Consent, DoorState, EndpointCounts, GatewayRole, GatewayState, Knock, PortState,
    ServiceState, Snapshot,
};
use fairlead_model::{ClusterUid, MemberId, Millis, NsName, RouteKey, RouteKind};
use serde_json::json;

use crate::fault::{Faults, Lie};
use crate::rng::Rng;

/// Names of members, in the order of their ids.
pub const NAMES: [&str; 6] = ["east", "far", "mid", "north", "south", "west"];
/// Port of every service.
pub const PORT: u16 = 80;

/// The fleet of a run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Members.
    pub members: Vec<MemberSetup>,
    /// Routes.
    pub routes: Vec<Arc<GlobalRoute>>,
    /// How long the hub waits for members after its start.
    pub grace_ms: u64,
}

/// A member.
#[derive(Debug, Clone)]
pub struct MemberSetup {
    /// Name.
    pub id: MemberId,
    /// Region.
    pub region: Option<String>,
    /// Endpoints by service.
    pub services: BTreeMap<NsName, u32>,
}

impl Setup {
    /// Some fleet.
    pub fn random(rng: &mut Rng) -> Self {
        let count = usize::try_from(rng.range(2, 6)).expect("small");
        let services = rng.range(1, 3);
        let regions = rng.range(0, 3);
        let mut members: Vec<MemberSetup> = (0..count).map(|m| member(m, rng, regions)).collect();
        for service in 0..services {
            // Somebody has it; the counts are small, so that one more or less always matters.
            let sure = rng.index(count);
            for (m, member) in members.iter_mut().enumerate() {
                if m == sure || rng.percent(65) {
                    let endpoints = u32::try_from(rng.range(1, 6)).expect("small");
                    member.services.insert(service_name(service), endpoints);
                }
            }
        }
        let routes = (0..services).map(|service| Arc::new(random_route(service, services, rng)));
        let routes = routes.collect();
        Self { members, routes, grace_ms: 1_000 * rng.range(2, 8) }
    }

    /// The members' names.
    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|m| m.id.to_string()).collect()
    }

    /// The index of a member.
    pub fn index(&self, id: &MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == *id)
    }

    /// What users say to the hub now.
    pub fn policy(&self, faults: &Faults) -> Policy {
        let mut policy = Policy::default();
        let gateway = gateway();
        policy.gateways.insert(gateway.name.clone(), gateway);
        policy.routes = self.routes.iter().map(|r| (r.key.clone(), Arc::clone(r))).collect();
        for (m, member) in self.members.iter().enumerate().filter(|(m, _)| !faults.is_removed(*m)) {
            let spec = MemberSpec {
                uid: Some(uid(&member.id)),
                region: member.region.clone(),
                gateway_class: Some("eg".to_owned()),
                traffic: match faults.is_drained(m) {
                    true => TrafficState::Draining,
                    false => TrafficState::Active,
                },
                failback_asked: faults.failback(m).map(|number| Millis(number.into())),
                ..MemberSpec::default()
            };
            policy.members.insert(member.id.clone(), spec);
        }
        policy
    }

    /// What a member's agent finds in its cluster, and says if it is honest.
    pub fn snapshot(&self, m: usize, faults: &Faults) -> Snapshot {
        let member = &self.members[m];
        let mut snapshot = Snapshot::default();
        snapshot.cluster.uid = Some(uid(&member.id));
        for kind in ["Gateway", "HTTPRoute"] {
            snapshot.cluster.kinds.insert(format!("gateway.networking.k8s.io/v1/{kind}"));
        }
        snapshot.namespaces = ["shop", "infra"].map(str::to_owned).into();
        let ca_pem = Some(ca(&member.id));
        snapshot.door = DoorState { ca_pem, knock: Knock::Shut, ..DoorState::default() };
        let at = match faults.lie(m) {
            Some(Lie::ForeignAddress) => (m + 1) % self.members.len(),
            Some(Lie::NobodyAnswers | Lie::EverybodyAnswers) | None => m,
        };
        let door = NsName::new("fairlead-system", "fairlead-eastwest");
        snapshot.gateways.insert(door, door_gateway(at));
        for (service, base) in &member.services {
            if !faults.is_unexported(m, service) {
                let state = service_state(m, service, *base, faults);
                snapshot.services.insert(service.clone(), state);
            }
        }
        snapshot
    }
}

/// The cluster of a member.
pub fn uid(id: &MemberId) -> ClusterUid {
    ClusterUid::new(&format!("uid-{id}")).expect("a short text of letters")
}

/// The crossing CA of a member.
pub fn ca(id: &MemberId) -> String {
    format!("CA of {id}")
}

/// The address of a member's door.
pub fn address(m: usize) -> Address {
    Address::of(&format!("10.0.{m}.1"))
}

/// The name of the n-th service.
pub fn service_name(n: u64) -> NsName {
    service_named(&format!("s{n}"))
}

/// A service of that name, where all services are.
pub fn service_named(name: &str) -> NsName {
    NsName::new("shop", name)
}

fn member(m: usize, rng: &mut Rng, regions: u64) -> MemberSetup {
    MemberSetup {
        id: MemberId::new(NAMES[m]).expect("a label"),
        region: (regions > 0).then(|| format!("r{}", rng.below(regions))),
        services: BTreeMap::new(),
    }
}

fn service_state(m: usize, service: &NsName, base: u32, faults: &Faults) -> ServiceState {
    let counts = EndpointCounts {
        ready: faults.ready(m, service, base),
        total: faults.total(m, service, base),
    };
    let port = PortState { protocol: "TCP".to_owned(), ..PortState::default() };
    ServiceState {
        consent: if faults.is_refused(m, service) { Consent::Refused } else { Consent::Given },
        ports: [(PORT, port)].into(),
        zones: [(String::new(), counts)].into(),
        ..ServiceState::default()
    }
}

fn door_gateway(at: usize) -> GatewayState {
    GatewayState {
        class: "eg".to_owned(),
        role: GatewayRole::Door,
        programmed: Some(true),
        message: String::new(),
        addresses: BTreeSet::from([address(at)]),
        listeners: BTreeMap::new(),
    }
}

fn gateway() -> GlobalGateway {
    GlobalGateway {
        name: NsName::new("infra", "public"),
        created_at: Millis(0),
        spec: Arc::new(json!({"gatewayClassName": "fairlead"})),
        listeners: vec![Listener {
            name: "http".to_owned(),
            port: 80,
            protocol: "HTTP".to_owned(),
            hostname: None,
        }],
    }
}

/// A route of that name with one rule.
pub fn route(name: &str, backends: &[(NsName, u32)], spread: Spread) -> GlobalRoute {
    let backend = |(service, weight): &(NsName, u32)| Backend {
        weight: *weight,
        target: BackendTarget::Global { service: service.clone(), port: PORT },
    };
    let name = NsName::new("shop", name);
    GlobalRoute {
        key: RouteKey { kind: RouteKind::HTTPRoute, name },
        created_at: Millis(0),
        labels: BTreeMap::new(),
        spec: Arc::new(json!({})),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        parents: vec![ParentRef {
            gateway: NsName::new("infra", "public"),
            section: None,
            port: None,
        }],
        rules: vec![Rule {
            backends: backends.iter().map(backend).collect(),
            spread,
            mirrors: Vec::new(),
        }],
    }
}

/// One tier of all members, each as much as any other.
pub fn all_equal() -> Vec<Tier> {
    vec![Tier { split: Split::Equal, ..Tier::of(TierMembers::Scope(Scope::Any)) }]
}

fn random_route(service: u64, services: u64, rng: &mut Rng) -> GlobalRoute {
    let mut spread = Spread::default();
    if rng.percent(60) {
        spread.tiers = all_equal();
    }
    spread.failback = Failback {
        mode: if rng.percent(15) { FailbackMode::Manual } else { FailbackMode::Auto },
        after_s: u32::try_from(rng.range(0, 5)).expect("small"),
        ramp_s: u32::try_from(rng.range(0, 8)).expect("small"),
    };
    if rng.percent(25) {
        spread.when_unavailable = WhenUnavailable::Fail;
    }
    let mut backends = vec![(service_name(service), 80)];
    if services > 1 && rng.percent(30) {
        backends.push((service_name((service + 1) % services), 20));
    }
    route(&format!("r{service}"), &backends, spread)
}
