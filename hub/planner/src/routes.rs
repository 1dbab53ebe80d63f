//! Every route at every entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::plan::{EntryDecision, LocalParent, RouteDecision, RulePlan};
use fairlead_model::policy::{BackendTarget, Failback, GlobalRoute, Mirror, StaleMember};
use fairlead_model::recipe::SLOTS_MAX;
use fairlead_model::{MemberId, Note, NsName, Reason, RouteKey, RouteKind, ServicePort, Way};

use crate::eligibility::{self, Use};
use crate::fleet::{Fleet, Member};
use crate::gateways::{self, LocalGateways};
use crate::weights::RuleStep;
use crate::{Answer, Report, RouteReport, Verdict, Verdicts, mirrors};

/// Decisions by route, before they are checked.
pub(crate) type Decided = BTreeMap<RouteKey, RouteDecision>;

/// Decides every route; what was found about members goes into the report.
pub(crate) fn decide(fleet: &Fleet<'_>, gateways: &LocalGateways, report: &mut Report) -> Decided {
    let mut judge = Judge { fleet, known: BTreeMap::new() };
    let mut decided = Decided::new();
    for (key, route) in &fleet.policy.routes {
        let (decision, verdicts) = judge.decide(gateways, route, report);
        decided.insert(key.clone(), decision);
        report.routes.insert(key.clone(), RouteReport { verdicts, ..RouteReport::default() });
    }
    decided
}

/// Decides one route, whether it is the one that the policy has or not.
pub(crate) fn decide_one(
    fleet: &Fleet<'_>,
    gateways: &LocalGateways,
    route: &Arc<GlobalRoute>,
    report: &Report,
) -> (RouteDecision, RuleVerdicts) {
    Judge { fleet, known: BTreeMap::new() }.decide(gateways, route, report)
}

/// By rule, by backend; none = not a global backend.
type RuleVerdicts = Vec<Vec<Option<Arc<Verdicts>>>>;

/// Service, port, kind and way of what is sent, the route's namespace, seconds until stale, how traffic is
/// given back.
type UseKey = (NsName, ServicePort, (RouteKind, Way), Arc<str>, Option<u32>, Failback);

/// Judges each use of a service once, however many rules have it.
struct Judge<'a> {
    fleet: &'a Fleet<'a>,
    known: BTreeMap<UseKey, Arc<Verdicts>>,
}

impl Judge<'_> {
    fn decide(
        &mut self,
        gateways: &LocalGateways,
        route: &Arc<GlobalRoute>,
        report: &Report,
    ) -> (RouteDecision, RuleVerdicts) {
        let (verdicts, copies) = (self.route(route), self.mirrors(route));
        let fleet = self.fleet;
        let step = RouteStep { fleet, gateways, route, verdicts: &verdicts, copies: &copies };
        (step.decide(report), verdicts)
    }

    fn route(&mut self, route: &GlobalRoute) -> Vec<Vec<Option<Arc<Verdicts>>>> {
        let mut rules = Vec::new();
        for rule in &route.rules {
            let targets = rule.backends.iter().map(|backend| &backend.target);
            let verdicts = targets.map(|target| match target {
                BackendTarget::Global { service, port } => {
                    let (stale, failback) = (rule.spread.stale, rule.spread.failback);
                    let (route, way) = (&route.key, route.key.kind.way());
                    Some(self.judge(&Use { service, port: *port, route, way, stale, failback }))
                }
                BackendTarget::Own | BackendTarget::Invalid(_) => None,
            });
            rules.push(verdicts.collect());
        }
        rules
    }

    /// Copies of requests carry no header that a door could check.
    fn mirrors(&mut self, route: &GlobalRoute) -> Vec<Vec<Arc<Verdicts>>> {
        let mut rules = Vec::new();
        for rule in &route.rules {
            let verdicts = rule.mirrors.iter().map(|mirror| {
                let Mirror { service, port } = mirror;
                let (stale, failback) = (rule.spread.stale, rule.spread.failback);
                let (route, way) = (&route.key, Way::Sni);
                self.judge(&Use { service, port: *port, route, way, stale, failback })
            });
            rules.push(verdicts.collect());
        }
        rules
    }

    fn judge(&mut self, use_: &Use<'_>) -> Arc<Verdicts> {
        let stale = match use_.stale {
            StaleMember::Keep => None,
            StaleMember::DrainAfter(seconds) => Some(seconds),
        };
        let namespace = Arc::clone(&use_.route.name.namespace);
        let (service, kind) = (use_.service.clone(), (use_.route.kind, use_.way));
        let key = (service, use_.port, kind, namespace, stale, use_.failback);
        let fleet = self.fleet;
        let verdicts = || Arc::new(eligibility::judge(fleet, use_));
        Arc::clone(self.known.entry(key).or_insert_with(verdicts))
    }
}

struct RouteStep<'a> {
    fleet: &'a Fleet<'a>,
    gateways: &'a LocalGateways,
    route: &'a Arc<GlobalRoute>,
    verdicts: &'a [Vec<Option<Arc<Verdicts>>>],
    copies: &'a [Vec<Arc<Verdicts>>],
}

/// Findings that hold at several entries, told once: the first entry's text, and how many more.
#[derive(Default)]
struct Told(BTreeMap<(String, Reason), (String, usize)>);

impl Told {
    fn tell(&mut self, subject: String, reason: Reason, text: impl FnOnce() -> String) {
        let (_, more) = self.0.entry((subject, reason)).or_insert_with(|| (text(), 0));
        *more += 1;
    }

    fn notes(self) -> impl Iterator<Item = Note> {
        self.0.into_iter().map(|((subject, reason), (text, entries))| match entries {
            0 | 1 => Note::new(subject, reason, text),
            2 => Note::new(subject, reason, format!("{text}; 1 more entry alike")),
            all => Note::new(subject, reason, format!("{text}; {} more entries alike", all - 1)),
        })
    }
}

impl RouteStep<'_> {
    fn decide(&self, report: &Report) -> RouteDecision {
        let mut entries = BTreeMap::new();
        let mut notes = Vec::new();
        let mut told = Told::default();
        for (id, member) in &self.fleet.members {
            match self.parents(id, member, report, &mut notes) {
                Ok(parents) => {
                    let rules = (0..self.route.rules.len())
                        .map(|at| self.rule(at, (id, member), &mut told))
                        .collect();
                    entries.insert(id.clone(), EntryDecision { parents, rules, route: None });
                }
                Err((reason, text)) => notes.push(Note::new(format!("member {id}"), reason, text)),
            }
        }
        for (at, rule) in self.route.rules.iter().enumerate() {
            if rule.backends.len() > SLOTS_MAX {
                let text = format!("{} backends, the first {SLOTS_MAX} count", rule.backends.len());
                notes.push(Note::new(format!("rules[{at}]"), Reason::TooManyBackends, text));
            }
        }
        notes.extend(told.notes());
        RouteDecision { route: Arc::clone(self.route), entries, notes }
    }

    /// Gateways of the member that the route attaches to; an error when it is no entry for it.
    fn parents(
        &self,
        id: &MemberId,
        member: &Member<'_>,
        report: &Report,
        notes: &mut Vec<Note>,
    ) -> Result<Vec<LocalParent>, (Reason, String)> {
        let Some(snapshot) = &member.snapshot else {
            return Err((Reason::NoSnapshot, Reason::NoSnapshot.sentence().to_owned()));
        };
        let kind = format!("{}/{}", self.route.api_version, self.route.key.kind);
        if !snapshot.cluster.kinds.contains(&kind) {
            return Err((Reason::KindMissing, format!("{kind} is not served")));
        }
        gateways::check_namespace(snapshot, &self.route.key.name.namespace)?;
        let refused = |gateway: &NsName| report.gateways_refused.get(gateway)?.get(id).cloned();
        let none = BTreeMap::new();
        let local = self.gateways.get(id).unwrap_or(&none);
        let (parents, mut refusals) = gateways::parents(self.route, local, refused);
        if parents.is_empty() {
            let (reason, text) = refusals.pop().unwrap_or_else(|| {
                (Reason::NoMatchingParent, Reason::NoMatchingParent.sentence().to_owned())
            });
            return Err((reason, text));
        }
        let subject = format!("member {id}");
        notes.extend(refusals.into_iter().map(|(why, text)| Note::new(subject.clone(), why, text)));
        Ok(parents)
    }

    fn rule(&self, at: usize, entry: (&MemberId, &Member<'_>), told: &mut Told) -> RulePlan {
        let (rule, verdicts) = (&self.route.rules[at], &self.verdicts[at]);
        let mut decided = RuleStep { fleet: self.fleet, entry, rule, verdicts }.decide();
        for (mirror, verdicts) in rule.mirrors.iter().zip(&self.copies[at]) {
            match mirrors::choose(self.fleet, entry, &rule.spread, mirror, verdicts) {
                Some(target) => decided.plan.mirrors.push(target),
                None => {
                    let idle = Reason::NoReadyEndpoints;
                    let (reason, text) = why_unserved(verdicts, entry, idle);
                    let text = format!("requests are not mirrored to {}: {text}", mirror.service);
                    let subject = format!("rules[{at}] mirror {}", mirror.service);
                    told.tell(subject, reason, || text);
                }
            }
        }
        let subject = |backend: usize| format!("rules[{at}].backendRefs[{backend}]");
        for backend in decided.unserved {
            let none = Verdicts::new();
            let verdicts = verdicts[backend].as_deref().unwrap_or(&none);
            let (reason, text) = why_unserved(verdicts, entry, Reason::NotInTiers);
            told.tell(subject(backend), reason, || format!("{text}; its share fails"));
        }
        for (backend, without, all) in decided.dropped {
            told.tell(subject(backend), Reason::TooManyBackends, || {
                format!("entry {} uses {} of {all} members", entry.0, all - without)
            });
        }
        decided.plan
    }
}

/// Why nobody serves something for an entry; those who could have a reason of their own.
fn why_unserved(
    verdicts: &Verdicts,
    entry: (&MemberId, &Member<'_>),
    of_the_able: Reason,
) -> (Reason, String) {
    const MEMBERS_SHOWN: usize = 5;
    let place = (entry.0, &entry.1.place);
    let reason = |(id, verdict): (&MemberId, &Verdict)| match verdict.answer(place, id) {
        Answer::No(reason) | Answer::Out(reason) => (id.clone(), reason),
        Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) => (id.clone(), of_the_able),
    };
    let absent = |reason: Reason| matches!(reason, Reason::NotExported | Reason::NoSnapshot);
    let mut exporters: Vec<(MemberId, Reason)> =
        verdicts.iter().map(reason).filter(|(_, reason)| !absent(*reason)).collect();
    let Some(first) = exporters.first().map(|(_, reason)| *reason) else {
        return (Reason::BackendNotFound, "no member exports it".to_owned());
    };
    let more = exporters.len().saturating_sub(MEMBERS_SHOWN);
    exporters.truncate(MEMBERS_SHOWN);
    let shown: Vec<String> = exporters.iter().map(|(id, why)| format!("{id}: {why}")).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (first, format!("nobody may serve it for entry {} ({}{more})", entry.0, shown.join(", ")))
}
