//! What is known of every registered member, gathered for the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::health::{MemberHealth, MemberState, Reach};
use fairlead_model::policy::{MemberSpec, Policy, StaleMember, TrafficState};
use fairlead_model::snapshot::{FEATURE_STREAM_BACKEND_TLS, GatewayRole, Snapshot};
use fairlead_model::{ClusterUid, MemberId, Millis, Note, NsName, Reason};

use crate::doors::{Door, cluster_uid};
use crate::failback::Failbacks;
use crate::stability::CountsInUse;
use crate::{Absence, Absences, Answer, FleetInput, InUse, MemberInput, Place, Report, Settings};

/// All registered members.
pub(crate) struct Fleet<'a> {
    pub(crate) now: Millis,
    pub(crate) policy: &'a Policy,
    pub(crate) settings: &'a Settings,
    pub(crate) members: BTreeMap<MemberId, Member<'a>>,
    pub(crate) failbacks: Failbacks,
}

/// A member whose stream is up, but that no witness reaches, is out after so long: with fewer than
/// two witnesses never. Agents have taken it out of their routes by then; this is what makes its
/// traffic come back step by step.
const UNREACHABLE_AFTER_MS: u64 = 5_000;
const UNREACHABLE_WITNESSES_MIN: usize = 2;

/// A registered member.
pub(crate) struct Member<'a> {
    pub(crate) spec: &'a MemberSpec,
    pub(crate) uid: Option<ClusterUid>,
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    pub(crate) received_at: Millis,
    pub(crate) health: MemberHealth,
    pub(crate) place: Place,
    pub(crate) door: &'a Door,
    pub(crate) counts: Option<&'a BTreeMap<NsName, InUse>>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn gather(
        input: &'a FleetInput,
        counts: &'a CountsInUse,
        doors: &'a BTreeMap<MemberId, Door>,
    ) -> Self {
        let member = |(id, spec): (&MemberId, &'a MemberSpec)| {
            let known = input.members.get(id).cloned().unwrap_or_default();
            let door = doors.get(id).expect("every registered member's door was examined");
            let member = Member {
                spec,
                uid: cluster_uid(spec, known.snapshot.as_deref()).cloned(),
                place: place(spec, &known, door),
                snapshot: known.snapshot,
                received_at: known.received_at,
                health: known.health,
                door,
                counts: counts.get(id),
            };
            (id.clone(), member)
        };
        Self {
            now: input.now,
            policy: &input.policy,
            settings: &input.settings,
            members: input.policy.members.iter().map(member).collect(),
            failbacks: Failbacks::default(),
        }
    }

    /// Says what stands in each member's way as a whole.
    pub(crate) fn report_members(&self, report: &mut Report) {
        for (id, member) in &self.members {
            report.places.insert(id.clone(), member.place.clone());
            let sni = member.door.sni_refusal;
            report.sni_refused.extend(sni.map(|reason| (id.clone(), reason)));
            let notes: Vec<Note> = member
                .obstacles(self.failbacks.members.get(id))
                .into_iter()
                .map(|reason| Note::new(format!("member {id}"), reason, reason.sentence()))
                .collect();
            if !notes.is_empty() {
                report.members.insert(id.clone(), notes);
            }
        }
    }

    /// When a member goes out by time alone.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let accused = self.members.values().filter(|m| m.reached_by_none().is_some());
        let accused = accused.map(|m| m.health.since.plus(UNREACHABLE_AFTER_MS));
        accused.chain(self.stale_wake_at()).filter(|at| *at > self.now).min()
    }

    /// When the first member's reports become too old for some policy.
    fn stale_wake_at(&self) -> Option<Millis> {
        let rules = self.policy.routes.values().flat_map(|route| &route.rules);
        let limits: BTreeSet<u32> = rules
            .filter_map(|rule| match rule.spread.stale {
                StaleMember::Keep => None,
                StaleMember::DrainAfter(seconds) => Some(seconds),
            })
            .collect();
        let members = self.members.values().filter(|m| m.may_go_stale());
        let times = members.flat_map(|m| limits.iter().map(|s| m.stale_at(*s)));
        times.filter(|at| *at > self.now).min()
    }
}

impl Member<'_> {
    pub(crate) fn counts_of(&self, service: &NsName) -> InUse {
        self.counts.and_then(|services| services.get(service)).copied().unwrap_or_default()
    }

    /// Where it is: as the hub says, else as it says itself.
    pub(crate) fn region(&self) -> Option<String> {
        let said = || self.snapshot.as_ref()?.cluster.region.clone();
        self.spec.region.clone().or_else(said)
    }

    /// Its reports are older than that.
    pub(crate) fn is_stale(&self, now: Millis, seconds: u32) -> bool {
        self.may_go_stale() && self.stale_at(seconds) <= now
    }

    fn stale_at(&self, seconds: u32) -> Millis {
        self.received_at.plus(u64::from(seconds) * 1_000)
    }

    /// Only a member whose stream is gone and whose door nobody reaches: one that is up and has
    /// nothing new to report is not stale, and a door that answers proves more than a report.
    fn may_go_stale(&self) -> bool {
        let lost = match self.health.state {
            MemberState::Up | MemberState::Recovering => false,
            MemberState::Joined
            | MemberState::Suspect
            | MemberState::AgentLost
            | MemberState::Down => true,
        };
        lost && !self.health.witnesses.values().any(|w| w.reach == Reach::Reachable)
    }

    /// Why it is out of health, if it is: for entries other than itself.
    pub(crate) fn ill(&self, now: Millis) -> Option<Reason> {
        if self.health.state == MemberState::Down {
            return Some(Reason::Down);
        }
        let stood = now.since(self.health.since) >= UNREACHABLE_AFTER_MS;
        if let Some(reason) = self.reached_by_none().filter(|_| stood) {
            return Some(reason);
        }
        match self.door.answer {
            Answer::Out(reason) => Some(reason),
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) | Answer::No(_) => None,
        }
    }

    /// How its witnesses fail to reach it, when all of them do.
    fn reached_by_none(&self) -> Option<Reason> {
        let said = || self.health.witnesses.values().map(|w| w.reach);
        let agreed = self.health.state == MemberState::Suspect
            && said().count() >= UNREACHABLE_WITNESSES_MIN
            && said().all(Reach::is_out);
        let refused = said().any(|reach| reach == Reach::Refused);
        agreed.then_some(if refused { Reason::DoorRefused } else { Reason::DoorTimedOut })
    }

    fn obstacles(&self, failback: Option<&Absences>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        match self.spec.traffic {
            TrafficState::Active => {}
            TrafficState::Draining => reasons.push(Reason::Drained),
            TrafficState::Standby => reasons.push(Reason::Standby),
        }
        match self.health.state {
            MemberState::Up | MemberState::Joined => {}
            MemberState::Suspect => reasons.push(Reason::Suspect),
            MemberState::AgentLost => reasons.push(Reason::AgentLost),
            MemberState::Down => reasons.push(Reason::Down),
            MemberState::Recovering => reasons.push(Reason::Recovering),
        }
        match self.door.answer {
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) => {}
            Answer::Out(reason) | Answer::No(reason) => reasons.push(reason),
        }
        let is_back = |a: &Absence| a.back_since.is_some();
        let back = failback.is_some_and(|f| f.all().any(is_back));
        if back && !reasons.contains(&Reason::Recovering) {
            reasons.push(Reason::Ramping);
        }
        reasons
    }
}

/// True when every class that a member's own gateways are of is known to.
fn wraps_streams(spec: &MemberSpec, snapshot: &Snapshot) -> bool {
    let entries = snapshot.gateways.values().filter(|gateway| gateway.role != GatewayRole::Door);
    let mut classes: BTreeSet<&String> = entries.map(|gateway| &gateway.class).collect();
    classes.extend(spec.gateway_class.as_ref().filter(|_| classes.is_empty()));
    let wraps = |class: &&String| {
        snapshot.classes.get(*class).is_some_and(|class| class.has(FEATURE_STREAM_BACKEND_TLS))
    };
    !classes.is_empty() && classes.iter().all(wraps)
}

fn place(spec: &MemberSpec, known: &MemberInput, door: &Door) -> Place {
    let facts = known.snapshot.as_ref().map(|s| &s.cluster);
    Place {
        region: spec.region.clone().or_else(|| facts?.region.clone()),
        zone: spec.zone.clone().or_else(|| facts?.zone.clone()),
        labels: spec.labels.clone(),
        traffic: spec.traffic,
        state: known.health.state,
        has_crossing_ca: door.ca.is_some(),
        wraps_streams: known.snapshot.as_deref().is_some_and(|s| wraps_streams(spec, s)),
    }
}
