//! What the read-only API answers, made from what the hub knows and decided.
//!
//! Owns the making of [`fairlead_model::view`] values; pure, so that each is a plain function of one
//! look at the hub. Never shows a capability's value.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::bundle::BundleObject;
use fairlead_model::plan::{GatewayPlan, RouteDecision};
use fairlead_model::recipe::{Faults, Recipe, Serve};
use fairlead_model::session::Exception;
use fairlead_model::snapshot::{Consent, GatewayState, Snapshot};
use fairlead_model::view::{
    EntryView, Explanation, GatewayView, MemberView, RouteView, ServiceView, StatusView,
};
use fairlead_model::{Json, MemberId, Millis, Note, NsName, ObjectId, Reason, RouteKey};
use fairlead_planner::explain;
use fairlead_translate::capability::capability_id;
use fairlead_translate::ingest::hub::RouteVerdict;
use fairlead_translate::names;

use crate::conductor::Current;
use crate::fleet::MemberNow;

/// One look at the hub.
pub struct Look<'a> {
    /// What was decided last.
    pub current: &'a Current,
    /// Members as they are.
    pub members: &'a BTreeMap<MemberId, MemberNow>,
    /// The clock.
    pub now: Millis,
    /// When the process started.
    pub started_at: Millis,
}

/// Key of a complaint about the bundle as a whole among a member's exceptions.
const BUNDLE: &str = "bundle";

impl Look<'_> {
    /// How all is.
    pub fn status(&self) -> StatusView {
        let ingested = &self.current.ingested;
        let mut notes = ingested.notes.clone();
        if let Some(planned) = &self.current.planned {
            notes.extend(planned.report.alarms.iter().cloned());
        }
        StatusView {
            hub_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            held: self.current.held.clone(),
            frozen: self.current.frozen.clone(),
            now: self.now,
            members: self.members(),
            gateways: ingested.policy.gateways.len(),
            routes: ingested.policy.routes.len(),
            notes,
            history: None,
        }
    }

    /// Members by name.
    pub fn members(&self) -> Vec<MemberView> {
        self.members.iter().map(|(member, now)| self.member(member, now)).collect()
    }

    fn member(&self, member: &MemberId, now: &MemberNow) -> MemberView {
        let spec = self.current.ingested.policy.members.get(member);
        let report = self.current.planned.as_ref().map(|planned| &planned.report);
        let place = report.and_then(|report| report.places.get(member));
        let rendered = self.current.rendered.get(member);
        let mut notes: Vec<Note> =
            report.and_then(|report| report.members.get(member)).cloned().unwrap_or_default();
        notes.extend(rendered.iter().flat_map(|rendered| rendered.notes.iter().cloned()));
        notes.extend(now.report.iter().flat_map(|report| report.notes.iter().cloned()));
        let facts = snapshot_of(now).map(|snapshot| &snapshot.cluster);
        let said = &now.said;
        let agent_version = match said.agent_version.as_str() {
            "" => facts.map(|facts| facts.agent_version.clone()).unwrap_or_default(),
            version => version.to_owned(),
        };
        MemberView {
            member: member.clone(),
            region: place.and_then(|place| place.region.clone()),
            zone: place.and_then(|place| place.zone.clone()),
            state: now.health.state,
            since: now.health.since,
            traffic: spec.map(|spec| format!("{:?}", spec.traffic)).unwrap_or_default(),
            agent_version,
            heard_at: said.heard_at,
            plan_wanted: said.sent.map(|number| number.to_string()),
            plan_applied: said
                .applied
                .as_ref()
                .filter(|applied| applied.refused.is_none())
                .map(|applied| applied.number.to_string()),
            moving: said.applied.as_ref().map_or(0, |applied| applied.moving),
            objects: count(rendered.map_or(0, |rendered| rendered.bundle.objects.len())),
            exceptions: exceptions(now),
            overlay: said.overlay.clone(),
            peers: said.probes.clone(),
            notes,
        }
    }

    /// Global gateways in members.
    pub fn gateways(&self) -> Vec<GatewayView> {
        let gateways = self.current.ingested.policy.gateways.keys();
        gateways
            .flat_map(|gateway| {
                self.members.iter().map(move |(member, now)| self.gateway(gateway, member, now))
            })
            .collect()
    }

    fn gateway(&self, gateway: &NsName, member: &MemberId, now: &MemberNow) -> GatewayView {
        let planned = self.current.planned.as_deref();
        let plan = planned
            .and_then(|planned| planned.plans.get(member))
            .and_then(|plan| plan.gateways.get(gateway));
        let refused = planned
            .and_then(|planned| planned.report.gateways_refused.get(gateway))
            .and_then(|refused| refused.get(member));
        let (role, local) = match plan {
            Some(GatewayPlan::Lent { local }) => ("Lent", Some(local.clone())),
            Some(GatewayPlan::Created { .. }) => (
                "Created",
                Some(NsName::new(&gateway.namespace, &names::gateway_mirror(&gateway.name))),
            ),
            None => ("", None),
        };
        let state = local.as_ref().and_then(|local| snapshot_of(now)?.gateways.get(local));
        let trouble = refused.map(|note| (note.reason, note.message.clone()));
        let trouble = trouble.or_else(|| state.and_then(unprogrammed));
        let trouble = trouble.or_else(|| exception_of(now, &gateway_id(local.as_ref()?)));
        let trouble = trouble.or_else(|| {
            let (name, message) = failing(state?).pop_first()?;
            Some((Reason::ListenerNotProgrammed, format!("listener {name}: {message}")))
        });
        let (reason, message) = trouble.map_or((None, String::new()), |(r, m)| (Some(r), m));
        GatewayView {
            gateway: gateway.clone(),
            member: member.clone(),
            local,
            role: role.to_owned(),
            addresses: state.iter().flat_map(|s| &s.addresses).map(ToString::to_string).collect(),
            programmed: state.and_then(|state| state.programmed),
            failing: state.map(failing).unwrap_or_default(),
            reason,
            message,
        }
    }

    /// Exported services.
    pub fn services(&self) -> Vec<ServiceView> {
        let mut services: BTreeMap<&NsName, ServiceView> = BTreeMap::new();
        for (member, now) in self.members {
            for (name, state) in snapshot_of(now).iter().flat_map(|snapshot| &snapshot.services) {
                let view = services.entry(name).or_insert_with(|| ServiceView {
                    service: name.clone(),
                    ports: Vec::new(),
                    members: BTreeMap::new(),
                    refused: BTreeMap::new(),
                });
                match state.consent {
                    Consent::Given => view.members.insert(member.clone(), state.counts()).map(drop),
                    Consent::Refused => {
                        view.refused.insert(member.clone(), Reason::ExportNotAllowed).map(drop)
                    }
                };
                let ports: BTreeSet<_> =
                    view.ports.iter().chain(state.ports.keys()).copied().collect();
                view.ports = ports.into_iter().collect();
            }
        }
        services.into_values().collect()
    }

    /// Global routes.
    pub fn routes(&self) -> Vec<RouteView> {
        let ingested = &self.current.ingested;
        let route = |key: &RouteKey| {
            let verdict = &ingested.routes[key];
            let decision =
                self.current.planned.as_ref().and_then(|planned| planned.decisions.get(key));
            let global = ingested.policy.routes.get(key);
            let mut gateways: Vec<NsName> =
                verdict.parents.iter().map(|parent| parent.gateway.clone()).collect();
            gateways.dedup();
            let mut notes = verdict.notes.clone();
            notes.extend(decision.iter().flat_map(|decision| decision.notes.iter().cloned()));
            notes.extend(self.left_out(key));
            notes.extend(pin_fault(key, verdict));
            RouteView {
                route: key.clone(),
                hostnames: global.map(|global| hostnames(&global.spec)).unwrap_or_default(),
                gateways,
                entries: decision.map(|decision| self.entries(key, decision)).unwrap_or_default(),
                rollout: self.rollout(key),
                pinned: verdict.pin.as_ref().and_then(|pin| pin.at),
                notes,
            }
        };
        ingested.routes.keys().map(route).collect()
    }

    /// How far a change of a route is that is not everywhere.
    pub fn rollout(&self, key: &RouteKey) -> Option<Note> {
        let report = self.current.planned.as_ref()?.report.routes.get(key)?;
        let (reason, message) = report.rollout.as_ref()?;
        let is_staged = matches!(reason, Reason::RollingOut | Reason::RolloutStopped);
        is_staged.then(|| Note::new(key.to_string(), *reason, message.as_str()))
    }

    /// What could not be written of a route for its entries; what holds for several is told once.
    fn left_out(&self, key: &RouteKey) -> Vec<Note> {
        let mut told: BTreeMap<(String, Reason, String), (MemberId, usize)> = BTreeMap::new();
        for (member, rendered) in &self.current.rendered {
            for note in rendered.notes.iter().filter(|note| is_about(note, key)) {
                let what = (note.subject.clone(), note.reason, note.message.clone());
                told.entry(what).or_insert_with(|| (member.clone(), 0)).1 += 1;
            }
        }
        let note = |((subject, reason, message), (first, count))| match count {
            1 => Note::new(subject, reason, format!("in {first}: {message}")),
            more => {
                Note::new(subject, reason, format!("in {first} and {} more: {message}", more - 1))
            }
        };
        told.into_iter().map(note).collect()
    }

    fn entries(&self, key: &RouteKey, decision: &RouteDecision) -> BTreeMap<MemberId, EntryView> {
        let entry = |member: &MemberId| {
            let mut view = self.members.get(member).map_or_else(EntryView::unknown, |now| {
                entry_view(now, &route_id(key, &decision.route.api_version))
            });
            let rendered = self.current.rendered.get(member);
            let mut notes = rendered.iter().flat_map(|rendered| &rendered.notes);
            // It is there, but not as its user wrote it.
            if view.accepted == Some(true)
                && let Some(note) = notes.find(|note| is_about(note, key))
            {
                let message = format!("{}: {}", note.subject, note.message);
                view = EntryView { accepted: Some(false), reason: Some(note.reason), message };
            }
            (member.clone(), view)
        };
        decision.entries.keys().map(entry).collect()
    }

    /// Why a route's traffic goes where it goes; none when there is no such route.
    pub fn explain(&self, route: &RouteKey, from: Option<&MemberId>) -> Option<Explanation> {
        let planned = self.current.planned.as_deref()?;
        let mut explanation = explain(planned, route, from)?;
        let decision = planned.decisions.get(route)?;
        if let Some(verdict) = self.current.ingested.routes.get(route) {
            explanation.asked.extend(pin_note(route, verdict));
        }
        for (member, entry) in &mut explanation.entries {
            let (Some(now), Some(decided)) =
                (self.members.get(member), decision.entries.get(member))
            else {
                continue;
            };
            entry.overlay.clone_from(&now.said.overlay.out);
            if entry.overlay.is_empty() {
                continue;
            }
            let unreachable = entry.overlay.keys().cloned().collect();
            let faults = Faults { unreachable, ..Faults::default() };
            for (rule, plan) in entry.rules.iter_mut().zip(&decided.rules) {
                let shares = shares_now(&plan.recipe, &faults);
                for (backend, shares) in rule.backends.iter_mut().zip(shares) {
                    for member in &mut backend.members {
                        let now = shares.get(&member.member).copied().unwrap_or(0);
                        member.share_now = (now != member.share).then_some(now);
                    }
                }
            }
        }
        Some(explanation)
    }

    /// The objects of a member's plan, with ids in place of capabilities; none without a plan.
    pub fn plan(&self, member: &MemberId) -> Option<Json> {
        let rendered = self.current.rendered.get(member)?;
        let object = |(id, object): (&ObjectId, &BundleObject)| {
            let mut content = object.content.clone();
            hide_capabilities(&mut content);
            let mut view = serde_json::json!({"object": content});
            view["gate"] = serde_json::json!(object.gate);
            view["claim"] = serde_json::json!(object.claim);
            (id.to_string(), view)
        };
        let objects: serde_json::Map<String, Json> =
            rendered.bundle.objects.iter().map(object).collect();
        let sent = self.members.get(member).and_then(|now| now.said.sent);
        Some(serde_json::json!({
            "member": member,
            "number": sent.map(|number| number.to_string()),
            "objects": objects,
            "peers": rendered.bundle.peers,
            "notes": rendered.notes,
        }))
    }
}

fn snapshot_of(now: &MemberNow) -> Option<&Snapshot> {
    now.report.as_ref().map(|report| report.snapshot.as_ref())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn exceptions(now: &MemberNow) -> BTreeMap<String, Exception> {
    let Some(applied) = &now.said.applied else { return BTreeMap::new() };
    let objects = applied.exceptions.iter().map(|(id, e)| (id.to_string(), e.clone()));
    let whole = applied.refused.iter().map(|e| (BUNDLE.to_owned(), e.clone()));
    objects.chain(whole).collect()
}

fn exception_of(now: &MemberNow, id: &ObjectId) -> Option<(Reason, String)> {
    let applied = now.said.applied.as_ref()?;
    // The member may serve another version of the kind than the hub.
    let same = |other: &&ObjectId| {
        (&other.group, &other.kind, &other.namespace, &other.name)
            == (&id.group, &id.kind, &id.namespace, &id.name)
    };
    let found = applied.exceptions.keys().find(same)?;
    let Exception { reason, message } = &applied.exceptions[found];
    Some((*reason, message.clone()))
}

fn unprogrammed(state: &GatewayState) -> Option<(Reason, String)> {
    match state.programmed {
        Some(true) => None,
        Some(false) | None => Some((Reason::GatewayNotProgrammed, state.message.clone())),
    }
}

/// Listeners that are not programmed: their certificate may be missing in this member.
fn failing(state: &GatewayState) -> BTreeMap<String, String> {
    let listeners = state.listeners.iter().filter(|(_, l)| l.programmed == Some(false));
    listeners.map(|(name, listener)| (name.clone(), listener.message.clone())).collect()
}

/// Why a member does not hold a global route as it should, if it said so.
pub(crate) fn exception_of_route(
    now: &MemberNow,
    key: &RouteKey,
    api_version: &str,
) -> Option<(Reason, String)> {
    exception_of(now, &route_id(key, api_version))
}

fn is_about(note: &Note, key: &RouteKey) -> bool {
    let rest = note.subject.strip_prefix(&key.to_string());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Why the pin that a route asks for is not in force.
fn pin_fault(key: &RouteKey, verdict: &RouteVerdict) -> Option<Note> {
    let (reason, message) = verdict.pin.as_ref()?.fault.as_ref()?;
    Some(Note::new(key.to_string(), *reason, message.as_str()))
}

/// What there is to say of a route's pin.
fn pin_note(key: &RouteKey, verdict: &RouteVerdict) -> Option<Note> {
    let number = verdict.pin.as_ref()?.at;
    let message = format!(
        "rules and policies are those of revision {}, until `fairlead rollback {} --release`",
        number.unwrap_or_default(),
        key.name
    );
    let pinned = number.map(|_| Note::new(key.to_string(), Reason::Pinned, message));
    pin_fault(key, verdict).or(pinned)
}

fn gateway_id(local: &NsName) -> ObjectId {
    let group = fairlead_crds::keys::GATEWAY_GROUP;
    ObjectId::new(group, "v1", "Gateway", &local.namespace, &local.name)
}

fn route_id(key: &RouteKey, api_version: &str) -> ObjectId {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let name = names::route_mirror(&key.name.name);
    ObjectId::new(group, version, key.kind.as_str(), &key.name.namespace, &name)
}

fn entry_view(now: &MemberNow, id: &ObjectId) -> EntryView {
    if let Some((reason, message)) = exception_of(now, id) {
        return EntryView { accepted: Some(false), reason: Some(reason), message };
    }
    let applied = now.said.applied.as_ref();
    let current = applied.is_some_and(|a| a.complete && Some(a.number) == now.said.sent);
    EntryView { accepted: current.then_some(true), ..EntryView::unknown() }
}

trait Unknown {
    fn unknown() -> Self;
}

impl Unknown for EntryView {
    fn unknown() -> Self {
        Self { accepted: None, reason: None, message: String::new() }
    }
}

fn hostnames(spec: &Json) -> Vec<String> {
    let names = spec.get("hostnames").and_then(Json::as_array);
    names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Shares of members by backend, with faults taken into account.
fn shares_now(recipe: &Recipe, faults: &Faults) -> Vec<BTreeMap<MemberId, u32>> {
    let weights = fairlead_weights::divide(recipe, faults);
    let of_backend = |serve: &Serve| {
        let mut shares = BTreeMap::new();
        if let Serve::Members { tiers, .. } = serve {
            for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
                let weight = weights.get(usize::from(candidate.slot)).copied().unwrap_or(0);
                shares.insert(candidate.member.clone(), weight);
            }
        }
        shares
    };
    recipe.backends.iter().map(|backend| of_backend(&backend.serve)).collect()
}

/// Replaces the value of every header that carries a capability.
fn hide_capabilities(json: &mut Json) {
    match json {
        Json::Object(map) => {
            let carries = map
                .get("name")
                .and_then(Json::as_str)
                .is_some_and(|name| name.eq_ignore_ascii_case(fairlead_crds::keys::HEADER_BACKEND));
            if carries && let Some(Json::String(value)) = map.get_mut("value") {
                *value = format!("id:{}", capability_id(value));
            }
            map.values_mut().for_each(hide_capabilities);
        }
        Json::Array(list) => list.iter_mut().for_each(hide_capabilities),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn capabilities_are_shown_by_id_only() {
        let secret = "0123456789abcdef";
        let mut object = json!({"rules": [{"filters": [{"set": [
            {"name": "Fairlead-Backend", "value": secret}, {"name": "x", "value": "y"},
        ]}]}]});
        hide_capabilities(&mut object);
        let text = object.to_string();
        assert!(!text.contains(secret) && text.contains(&capability_id(secret)));
        assert_eq!(object["rules"][0]["filters"][0]["set"][1]["value"], "y");
    }
}
