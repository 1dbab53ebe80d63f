//! What the statuses of the hub's objects should say now. Pure.
//!
//! Owns gathering the facts from members and plans; `fairlead-translate` puts them into words. Before
//! the first plan nothing is said that depends on members: a restart must not make every status
//! flicker.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_crds::{MemberCounts, keys};
use fairlead_hub_core::visible::{Verdict, Verdicts};
use fairlead_model::health::MemberState;
use fairlead_model::plan::GatewayPlan;
use fairlead_model::policy::{BackendTarget, GlobalRoute};
use fairlead_model::session::ApplyReport;
use fairlead_model::snapshot::{Consent, GatewayRole, Knock, Snapshot, WeakDoor};
use fairlead_model::view::{EntryView, GatewayView};
use fairlead_model::{Json, MemberId, Millis, NsName, Reason, RouteKey, RouteKind};
use fairlead_planner::DnsReport;
use fairlead_translate::ingest::hub::RouteVerdict;
use fairlead_translate::status::{
    DnsFacts, GatewayFacts, MemberCondition, MemberFacts, MemberSummary, Visible, changed,
    dns_policy_status, gateway_class_status, gateway_status, listener_set_status,
    member_cluster_status, route_status, traffic_policy_status,
};

use crate::conductor::Current;
use crate::fleet::MemberNow;
use crate::view::Look;
use crate::watch::{KINDS, Kind, Objects};

/// Everything that statuses are made of.
pub struct Facts<'a> {
    /// What was decided last.
    pub current: &'a Current,
    /// Members as they are.
    pub members: &'a BTreeMap<MemberId, MemberNow>,
    /// The objects with their statuses.
    pub objects: &'a Objects,
    /// Whether the world sees what DNSPolicies publish.
    pub visible: &'a Verdicts,
    /// The clock.
    pub now: Millis,
    /// The clock as RFC 3339 text.
    pub now_text: &'a str,
}

/// A status to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: NsName,
    /// The object that the status was made for.
    pub object: Arc<Json>,
    /// The status.
    pub status: Json,
}

/// The statuses that differ from what is written in something other than a time.
pub fn desired(facts: &Facts<'_>) -> Vec<Desired> {
    let mut all = Vec::new();
    facts.classes(&mut all);
    if !facts.is_starting() {
        facts.member_clusters(&mut all);
    }
    if facts.current.planned.is_some() {
        facts.gateways(&mut all);
        facts.routes(&mut all);
        facts.policies(&mut all);
        facts.dns_policies(&mut all);
    }
    all
}

fn kind(name: &str) -> Kind {
    *KINDS.iter().find(|kind| kind.name == name).expect("the table has every kind named here")
}

fn status_of(object: &Json) -> Json {
    object.get("status").cloned().unwrap_or_default()
}

fn generation_of(object: &Json) -> i64 {
    object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or(0)
}

impl Facts<'_> {
    /// The hub was started and members may still come back.
    fn is_starting(&self) -> bool {
        let waits = |note: &fairlead_model::Note| note.reason == Reason::WaitingForMembers;
        self.current.planned.is_none()
            && (self.current.held.is_empty() || self.current.held.iter().any(waits))
    }

    fn look(&self) -> Look<'_> {
        let (current, members) = (self.current, self.members);
        Look { current, members, now: self.now, started_at: self.now }
    }

    fn each(
        &self,
        kind_name: &str,
        all: &mut Vec<Desired>,
        mut make: impl FnMut(&NsName, &Json, &Json) -> Option<Json>,
    ) {
        let kind = kind(kind_name);
        for (name, object) in self.objects.of(kind_name).iter() {
            let old = status_of(object);
            if let Some(status) = make(name, object, &old)
                && changed(&old, &status)
            {
                let (name, object) = (name.clone(), Arc::clone(object));
                all.push(Desired { kind, name, object, status });
            }
        }
    }

    fn classes(&self, all: &mut Vec<Desired>) {
        let classes = &self.current.ingested.classes;
        self.each("GatewayClass", all, |name, _, old| {
            let verdict = classes.get(&*name.name)?;
            Some(gateway_class_status(old, verdict, self.now_text))
        });
    }

    fn gateways(&self, all: &mut Vec<Desired>) {
        let mut views: BTreeMap<NsName, Vec<GatewayView>> = BTreeMap::new();
        for view in self.look().gateways() {
            views.entry(view.gateway.clone()).or_default().push(view);
        }
        self.each("ListenerSet", all, |name, _, old| {
            let verdict = self.current.ingested.listener_sets.get(name)?;
            let of = views.get(&verdict.gateway).map(Vec::as_slice).unwrap_or_default();
            Some(listener_set_status(old, verdict, &gateway_facts(of), self.now_text))
        });
        self.each("Gateway", all, |name, _, old| {
            let verdict = self.current.ingested.gateways.get(name)?;
            let facts = gateway_facts(views.get(name).map(Vec::as_slice).unwrap_or_default());
            Some(gateway_status(old, verdict, &facts, self.now_text))
        });
    }

    fn routes(&self, all: &mut Vec<Desired>) {
        let views: BTreeMap<RouteKey, BTreeMap<MemberId, EntryView>> =
            self.look().routes().into_iter().map(|view| (view.route, view.entries)).collect();
        let none = BTreeMap::new();
        for kind in RouteKind::ALL {
            self.each(kind.as_str(), all, |name, object, old| {
                let key = RouteKey { kind, name: name.clone() };
                let Some(verdict) = self.current.ingested.routes.get(&key) else {
                    return self.abandoned(object, old);
                };
                let mut members = self.summary(views.get(&key).unwrap_or(&none));
                let rollout = self.look().rollout(&key);
                members.rollout = rollout.map(|note| (note.reason, note.message));
                let global = self.current.ingested.policy.routes.get(&key);
                let found = global.and_then(|route| self.missing_backend(route));
                Some(route_status(old, verdict, &members, found.as_ref(), self.now_text))
            });
        }
    }

    /// A route that left our Gateways: our entries go, others' stay.
    fn abandoned(&self, object: &Json, old: &Json) -> Option<Json> {
        let entries = old.get("parents")?.as_array()?;
        let ours = |entry: &Json| entry["controllerName"] == keys::CONTROLLER_NAME;
        entries.iter().any(ours).then(|| {
            let verdict =
                RouteVerdict { generation: generation_of(object), ..RouteVerdict::default() };
            route_status(old, &verdict, &MemberSummary::default(), None, self.now_text)
        })
    }

    fn summary(&self, entries: &BTreeMap<MemberId, EntryView>) -> MemberSummary {
        let mut summary = MemberSummary::default();
        for (member, entry) in entries {
            let connected = self.members.get(member).is_some_and(|now| now.connected);
            let differs = match (entry.accepted, connected) {
                (Some(true), _) => None,
                (Some(false), _) => {
                    Some((entry.reason.unwrap_or(Reason::ApplyRefused), entry.message.clone()))
                }
                (None, true) => {
                    summary.under_way |= self.is_under_way(member);
                    Some((Reason::WaitingForMembers, "not applied yet".to_owned()))
                }
                (None, false) => Some((Reason::AgentLost, "its agent is away".to_owned())),
            };
            match differs {
                None => summary.as_asked += 1,
                Some(why) => {
                    summary.differing.insert(member.clone(), why);
                }
            }
        }
        summary
    }

    fn is_under_way(&self, member: &MemberId) -> bool {
        let until = self.members.get(member).and_then(|now| now.said.under_way_until());
        until.is_some_and(|until| self.now < until)
    }

    /// The first global backend that no member exports.
    fn missing_backend(&self, route: &GlobalRoute) -> Option<(Reason, String)> {
        let backends = route.rules.iter().flat_map(|rule| &rule.backends);
        backends.into_iter().find_map(|backend| {
            let BackendTarget::Global { service, port } = &backend.target else { return None };
            let states = self.members.values().filter_map(|now| {
                let state = snapshot_of(now)?.services.get(service)?;
                (state.consent == Consent::Given).then_some(state)
            });
            let mut ports = states.map(|state| state.ports.contains_key(port)).peekable();
            if ports.peek().is_none() {
                return Some((Reason::BackendNotFound, format!("no member exports {service}")));
            }
            let message = || format!("no member exports port {port} of {service}");
            (!ports.any(|has| has)).then(|| (Reason::BackendNotFound, message()))
        })
    }

    fn policies(&self, all: &mut Vec<Desired>) {
        let verdicts = &self.current.ingested.policies;
        self.each("TrafficPolicy", all, |name, _, old| {
            Some(traffic_policy_status(old, verdicts.get(name)?, self.now_text))
        });
    }

    fn dns_policies(&self, all: &mut Vec<Desired>) {
        let verdicts = &self.current.ingested.dns_policies;
        let report = self.current.planned.as_ref().map(|planned| &planned.report.dns);
        self.each("DNSPolicy", all, |name, _, old| {
            let found = report.and_then(|report| report.get(name));
            let found = found.map(|found| dns_facts(found, self.visible.get(name)));
            Some(dns_policy_status(old, verdicts.get(name)?, found.as_ref(), self.now_text))
        });
    }

    fn member_clusters(&self, all: &mut Vec<Desired>) {
        self.each("MemberCluster", all, |name, object, old| {
            let member = MemberId::new(&name.name).ok()?;
            let now = self.members.get(&member)?;
            let mut facts = self.member_facts(&member, now);
            let generation = generation_of(object);
            let status = member_cluster_status(old, generation, &facts, self.now_text);
            // Counts come along with something else, or once they are far off: they change with
            // every pod, and each write wakes all who watch the kind.
            let counted = facts.counts.take();
            let uncounted = member_cluster_status(old, generation, &facts, self.now_text);
            let write_counts = changed(old, &uncounted) || far_off(old, counted);
            Some(if write_counts { status } else { uncounted })
        });
    }

    fn member_facts(&self, member: &MemberId, now: &MemberNow) -> MemberFacts {
        let snapshot = snapshot_of(now);
        let spec = self.current.ingested.policy.members.get(member);
        let joined = match spec.is_some_and(|spec| spec.uid.is_some()) {
            true => yes(),
            false => no(Reason::WaitingForMembers, "no cluster has joined under this name"),
        };
        let conditions = [
            (keys::CONDITION_JOINED, joined),
            (keys::CONDITION_CONNECTED, connected(now)),
            (keys::CONDITION_INVENTORY_SYNCED, inventory_synced(now)),
            (keys::CONDITION_PLAN_APPLIED, plan_applied(now)),
            (keys::CONDITION_REACHABLE, reachable(now)),
            (keys::CONDITION_DOOR_SHUT, door_shut(snapshot)),
            (keys::CONDITION_SNI_DOOR_SHUT, self.sni_door_shut(member, snapshot)),
            (keys::CONDITION_WEAK_DOOR, self.weak_door(member, snapshot)),
        ];
        let version = match now.said.agent_version.as_str() {
            "" => snapshot.map(|snapshot| snapshot.cluster.agent_version.clone()),
            version => Some(version.to_owned()),
        };
        MemberFacts {
            conditions: conditions.into(),
            agent_version: version.filter(|version| !version.is_empty()),
            gateway_api_version: snapshot.and_then(gateway_api_version),
            counts: snapshot.map(|snapshot| self.counts(member, snapshot)),
        }
    }

    /// What is no fault of the member's is Unknown: not every gateway can have such a listener.
    fn sni_door_shut(&self, member: &MemberId, snapshot: Option<&Snapshot>) -> MemberCondition {
        let (Some(snapshot), Some(planned)) = (snapshot, self.current.planned.as_ref()) else {
            return unknown(Reason::NoSnapshot, "it has not reported yet");
        };
        let said = snapshot.door.sni.as_ref().map_or("", |sni| &sni.message);
        match planned.report.sni_refused.get(member) {
            None => yes(),
            Some(Reason::StrangerLetIn) => no(Reason::StrangerLetIn, said),
            Some(Reason::AddressConflict) => {
                no(Reason::AddressConflict, "the port after its door's is another member's door")
            }
            Some(Reason::UnsupportedFeature) => unknown(
                Reason::UnsupportedFeature,
                "its gateway does not say TLSRouteModeTerminate (the agent's `capabilities` can)",
            ),
            Some(Reason::KindMissing) => unknown(
                Reason::KindMissing,
                "TLSRoute v1 is not served there, or the agent may not write the ClientTrafficPolicy \
                 that Envoy Gateway needs to ask for certificates (followingKinds)",
            ),
            Some(Reason::CrossingUnsupported) => {
                unknown(Reason::CrossingUnsupported, "its agent is of a version without it")
            }
            Some(reason) => unknown(*reason, said),
        }
    }

    fn weak_door(&self, member: &MemberId, snapshot: Option<&Snapshot>) -> MemberCondition {
        let Some(snapshot) = snapshot else {
            return unknown(Reason::NoSnapshot, "it has not reported yet");
        };
        if !snapshot.door.weak.contains(&WeakDoor::Open) {
            return no(Reason::AsAsked, "");
        }
        let planned = self.current.planned.as_ref();
        let door = planned.and_then(|planned| planned.plans.get(member)?.door.as_ref());
        let ports = door.iter().flat_map(|door| &door.ports);
        let ports: Vec<String> =
            ports.map(|own| format!("{} leads to {}", own.door_port, own.service)).collect();
        let message = match ports.is_empty() {
            true => "no port of its door is open to anybody at present".to_owned(),
            false => format!("open to anybody who reaches its door: {}", ports.join(", ")),
        };
        MemberCondition { status: Some(true), reason: Reason::WeakDoor, message }
    }

    fn counts(&self, member: &MemberId, snapshot: &Snapshot) -> MemberCounts {
        let plan = self.current.planned.as_ref().and_then(|planned| planned.plans.get(member));
        let services = || snapshot.services.values().filter(|s| s.consent == Consent::Given);
        let entries = snapshot.gateways.values().filter(|g| g.role != GatewayRole::Door);
        let lent_or_created = plan.map(|plan| {
            let used = |gateway: &&GatewayPlan| {
                matches!(gateway, GatewayPlan::Lent { .. } | GatewayPlan::Created { .. })
            };
            plan.gateways.values().filter(used).count()
        });
        let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let ready: u64 = services().map(|s| u64::from(s.counts().ready)).sum();
        MemberCounts {
            gateways: int(lent_or_created.unwrap_or_else(|| entries.count())),
            services: int(services().count()),
            endpoints: i32::try_from(ready).unwrap_or(i32::MAX),
            routes: int(plan.map_or(0, |plan| plan.routes.len())),
        }
    }
}

fn dns_facts(report: &DnsReport, verdict: Option<&Verdict>) -> DnsFacts {
    let visible = verdict.map(|verdict| Visible {
        status: verdict.visible,
        reason: verdict.reason,
        message: verdict.message.clone(),
    });
    DnsFacts {
        visible,
        names: report.names,
        refused: report.refused.clone(),
        notes: report.notes.clone(),
        servers: report.servers.clone(),
        publisher: report.publisher.clone(),
    }
}

fn snapshot_of(now: &MemberNow) -> Option<&Snapshot> {
    now.report.as_ref().map(|report| report.snapshot.as_ref())
}

fn gateway_facts(views: &[GatewayView]) -> GatewayFacts {
    let addresses = |view: &GatewayView| {
        let texts = view.addresses.iter();
        texts.map(|text| fairlead_model::snapshot::Address::of(text)).collect::<Vec<_>>()
    };
    let mut facts = GatewayFacts::default();
    for view in views {
        for (listener, why) in &view.failing {
            let failing = facts.failing.entry(listener.clone()).or_default();
            failing.insert(view.member.clone(), why.clone());
        }
        match (view.programmed, view.reason) {
            (Some(true), None) => {
                facts.members.as_asked += 1;
                facts.addresses.extend(addresses(view));
            }
            (programmed, reason) => {
                let reason = reason.unwrap_or(Reason::GatewayNotProgrammed);
                if (programmed, reason) == (Some(true), Reason::ListenerNotProgrammed) {
                    facts.in_part += 1;
                    facts.addresses.extend(addresses(view));
                }
                facts.members.differing.insert(view.member.clone(), (reason, view.message.clone()));
            }
        }
    }
    facts
}

fn yes() -> MemberCondition {
    MemberCondition { status: Some(true), reason: Reason::AsAsked, message: String::new() }
}

fn no(reason: Reason, message: impl Into<String>) -> MemberCondition {
    MemberCondition { status: Some(false), reason, message: message.into() }
}

fn unknown(reason: Reason, message: impl Into<String>) -> MemberCondition {
    MemberCondition { status: None, reason, message: message.into() }
}

fn connected(now: &MemberNow) -> MemberCondition {
    match (now.connected, now.health.state) {
        (true, MemberState::AgentLost) => no(
            Reason::AgentLost,
            "its agent cannot reach its API server; its traffic stays as it is",
        ),
        (true, _) => yes(),
        (false, MemberState::Joined) => no(Reason::NoSnapshot, "its agent has not connected yet"),
        (false, _) => {
            no(Reason::AgentLost, "its agent has no stream to the hub; its traffic stays as it is")
        }
    }
}

fn inventory_synced(now: &MemberNow) -> MemberCondition {
    match (&now.report, now.synced) {
        (None, _) => no(Reason::NoSnapshot, "it has not reported yet"),
        (Some(_), false) => {
            no(Reason::StaleInventory, "its last report is from before the hub's start")
        }
        (Some(_), true) => yes(),
    }
}

fn plan_applied(now: &MemberNow) -> MemberCondition {
    let Some(sent) = now.said.sent else {
        return unknown(Reason::WaitingForMembers, "it was not sent a plan yet");
    };
    let Some(applied) = &now.said.applied else {
        return no(Reason::WaitingForMembers, "it has not said what became of its plan");
    };
    if let Some(refused) = &applied.refused {
        return no(refused.reason, format!("the plan was refused: {}", refused.message));
    }
    if applied.number < sent || !applied.complete {
        return no(Reason::WaitingForMembers, "the newest plan is being applied");
    }
    match applied.exceptions.iter().next() {
        None => yes(),
        Some((first, exception)) => no(
            exception.reason,
            format!(
                "{} of {} objects are not as planned, first {}: {}",
                differing(applied),
                applied.objects,
                first.for_people(),
                exception.message
            ),
        ),
    }
}

fn differing(applied: &ApplyReport) -> u32 {
    let listed = u32::try_from(applied.exceptions.len()).unwrap_or(u32::MAX);
    listed.saturating_add(applied.exceptions_more)
}

fn reachable(now: &MemberNow) -> MemberCondition {
    let witnesses = &now.health.witnesses;
    let out: Vec<String> = witnesses
        .iter()
        .filter(|(_, found)| found.reach.is_out())
        .map(|(witness, _)| witness.to_string())
        .collect();
    if let Some((_, found)) = witnesses.iter().find(|(_, found)| found.reach.is_out()) {
        let reason = match found.reach {
            fairlead_model::health::Reach::Refused => Reason::DoorRefused,
            _ => Reason::DoorTimedOut,
        };
        return no(reason, format!("its door cannot be reached from {}", out.join(", ")));
    }
    if now.health.own.is_some_and(|own| own.reach.is_out()) {
        return no(Reason::Suspect, "most requests that gateways send to it fail".to_owned());
    }
    match witnesses.values().any(|f| f.reach == fairlead_model::health::Reach::Reachable) {
        true => yes(),
        false => unknown(Reason::WaitingForMembers, "no other member has tried its door yet"),
    }
}

fn door_shut(snapshot: Option<&Snapshot>) -> MemberCondition {
    let Some(snapshot) = snapshot else {
        return unknown(Reason::NoSnapshot, "it has not reported yet");
    };
    match snapshot.door.knock {
        Knock::Shut => yes(),
        Knock::StrangerLetIn => no(Reason::StrangerLetIn, &snapshot.door.message),
        Knock::Unknown => unknown(Reason::DoorNotShut, &snapshot.door.message),
    }
}

fn gateway_api_version(snapshot: &Snapshot) -> Option<String> {
    let version = snapshot.cluster.gateway_api_version.clone()?;
    Some(match snapshot.cluster.gateway_api_channel.as_deref() {
        None | Some("standard") => version,
        Some(channel) => format!("{version} ({channel})"),
    })
}

/// Whether written counts are off by more than a fifth, or anything but endpoints differs.
fn far_off(old: &Json, counts: Option<MemberCounts>) -> bool {
    let Some(counts) = counts else { return false };
    let written = |field: &str| old.pointer(&format!("/counts/{field}")).and_then(Json::as_i64);
    let same = written("gateways") == Some(counts.gateways.into())
        && written("services") == Some(counts.services.into())
        && written("routes") == Some(counts.routes.into());
    let (before, now) = (written("endpoints").unwrap_or(0), i64::from(counts.endpoints));
    !same || before.abs_diff(now) * 5 > before.max(now).unsigned_abs()
}

#[cfg(test)]
#[path = "desired_test.rs"]
mod tests;
