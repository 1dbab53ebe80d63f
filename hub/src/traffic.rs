//! What gateways did in the last seconds, as the agents tell: for `fairlead top` and `explain`.
//!
//! Owns the newest report of each member, and, where a person asked for it, what outcomes say of members'
//! doors ([`fairlead_hub_core::passive`]). Never a reason to plan by itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use fairlead_hub_core::passive::{Passive, Thresholds};
use fairlead_model::health::ProbeReport;
use fairlead_model::recipe::{Faults, Recipe, Serve, WEIGHT_SUM};
use fairlead_model::traffic::{Flow, FlowCounts, TrafficReport};
use fairlead_model::view::FlowView;
use fairlead_model::{MemberId, Millis, RouteKey};

use crate::metrics::look::healthy;
use crate::view::Look;

/// A report that is older says nothing of now.
const FRESH_MS: u64 = 20_000;

/// The newest reports.
#[derive(Debug, Default)]
pub struct Traffic {
    reports: Mutex<BTreeMap<MemberId, (Millis, TrafficReport)>>,
    /// None: outcomes are no evidence.
    passive: Option<Mutex<Passive>>,
    /// Routes of which every request counts, by who reports it.
    watched: Mutex<BTreeMap<(RouteKey, MemberId), Watched>>,
}

/// Requests of one route that came in at one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watched {
    /// From when on.
    pub since: Millis,
    /// Requests.
    pub requests: u64,
    /// Of these, those that failed.
    pub failed: u64,
}

impl Traffic {
    /// With thresholds outcomes are evidence.
    pub fn new(thresholds: Option<Thresholds>) -> Self {
        let passive = thresholds.map(|thresholds| Mutex::new(Passive::new(thresholds)));
        Self { passive, ..Self::default() }
    }

    /// Takes a report in; gives what outcomes say of members' doors, if that is asked for.
    pub fn put(
        &self,
        member: &MemberId,
        now: Millis,
        report: TrafficReport,
    ) -> Option<ProbeReport> {
        let said = self.passive.as_ref().map(|passive| {
            let mut passive = passive.lock().unwrap_or_else(PoisonError::into_inner);
            passive.report(member, &report, now).clone()
        });
        self.count_watched(member, now, &report);
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(member.clone(), (now, report));
        // Of members that are gone nothing is heard again.
        reports.retain(|_, (at, _)| now.since(*at) < FRESH_MS);
        said
    }

    /// From now on these count; what was counted of others, or since another time, is forgotten.
    pub fn watch(&self, wanted: BTreeMap<(RouteKey, MemberId), Millis>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|key, held| wanted.get(key) == Some(&held.since));
        for (key, since) in wanted {
            watched.entry(key).or_insert(Watched { since, ..Watched::default() });
        }
    }

    /// What was counted.
    pub fn watched(&self, route: &RouteKey, member: &MemberId) -> Watched {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.get(&(route.clone(), member.clone())).copied().unwrap_or_default()
    }

    /// Only what began after the time from which on it counts: a report may tell of requests before it.
    fn count_watched(&self, member: &MemberId, now: Millis, report: &TrafficReport) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, _), held) in watched.iter_mut().filter(|((_, of), _)| of == member) {
            if now.0.saturating_sub(report.span_ms) < held.since.0 {
                continue;
            }
            let route = route.to_string();
            for (_, counts) in report.flows.iter().filter(|(flow, _)| flow.route == route) {
                held.requests = held.requests.saturating_add(counts.requests);
                held.failed = held.failed.saturating_add(counts.errors);
            }
        }
    }

    /// Requests per 1,000 seconds, by route and entry.
    pub fn rates(&self, now: Millis) -> BTreeMap<RouteKey, BTreeMap<MemberId, u64>> {
        let mut rates: BTreeMap<RouteKey, BTreeMap<MemberId, u64>> = BTreeMap::new();
        for flow in self.flows(now) {
            let Ok(route) = flow.route.parse() else { continue };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate is not negative, and casts from floats saturate"
            )]
            let rate = (flow.per_second * 1_000.0) as u64;
            let of_entry = rates.entry(route).or_default().entry(flow.entry).or_default();
            *of_entry = of_entry.saturating_add(rate);
        }
        rates
    }

    /// A member's stream is gone; gives what is left of what outcomes say.
    pub fn forget(&self, member: &MemberId, now: Millis) -> Option<ProbeReport> {
        let mut passive = self.passive.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(passive.forget(member, now).clone())
    }

    /// Rates of now, by route, rule, backend, entry, target.
    pub fn flows(&self, now: Millis) -> Vec<FlowView> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = reports.iter().filter(|(_, (at, _))| now.since(*at) < FRESH_MS);
        let mut flows: Vec<FlowView> = fresh
            .flat_map(|(entry, (_, report))| {
                report.flows.iter().map(move |(flow, counts)| view(entry, report, flow, counts))
            })
            .collect();
        flows.sort_by(|a, b| a.key().cmp(&b.key()));
        flows
    }
}

fn view(entry: &MemberId, report: &TrafficReport, flow: &Flow, counts: &FlowCounts) -> FlowView {
    let seconds = report.span_ms.max(1) as f64 / 1_000.0;
    let sampled = f64::from(report.sampled.clamp(1, 10_000)) / 10_000.0;
    FlowView {
        route: flow.route.clone(),
        rule: flow.rule,
        backend: flow.backend.clone(),
        entry: entry.clone(),
        target: flow.target.clone(),
        per_second: counts.requests as f64 / seconds / sampled,
        error_share: counts.errors as f64 / counts.requests.max(1) as f64,
        p50_ms: counts.latency_ms(0.5),
        p99_ms: counts.latency_ms(0.99),
        asked: None,
        effective: None,
    }
}

/// Adds the weights by which the newest plan leads there, and those in force with health and overlays.
pub fn weigh(flows: &mut [FlowView], look: &Look<'_>) {
    let Some(planned) = look.current.planned.as_deref() else { return };
    let mut known: BTreeMap<(String, u16, MemberId), Option<Weights>> = BTreeMap::new();
    for flow in flows {
        let rule = (flow.route.clone(), flow.rule, flow.entry.clone());
        let weights = known.entry(rule).or_insert_with(|| {
            let route: RouteKey = flow.route.parse().ok()?;
            let entry = planned.decisions.get(&route)?.entries.get(&flow.entry)?;
            let rule = entry.rules.get(usize::from(flow.rule))?;
            let out = look.members.get(&flow.entry).map(|now| &now.said.overlay.out);
            let unreachable = out.into_iter().flat_map(BTreeMap::keys).cloned().collect();
            Some(Weights::of(&rule.recipe, &Faults { unreachable, ..Faults::default() }))
        });
        let Some(weights) = weights else { continue };
        flow.asked = Weights::share(&weights.asked, flow);
        flow.effective = Weights::share(&weights.effective, flow);
    }
}

/// Weights of one rule of one entry, by backend and member.
#[derive(Debug, PartialEq)]
struct Weights {
    asked: BTreeMap<(String, MemberId), u32>,
    effective: BTreeMap<(String, MemberId), u32>,
}

impl Weights {
    fn of(recipe: &Recipe, faults: &Faults) -> Self {
        let by_member = |weights: &[u32]| {
            let mut found = BTreeMap::new();
            for backend in &recipe.backends {
                let Serve::Members { service, port, tiers, .. } = &backend.serve else { continue };
                for candidate in tiers.iter().flat_map(|tier| &tier.candidates) {
                    let weight = weights.get(usize::from(candidate.slot)).copied().unwrap_or(0);
                    let name = (format!("{service}:{port}"), candidate.member.clone());
                    *found.entry(name).or_default() += weight;
                }
            }
            found
        };
        Self {
            asked: by_member(&fairlead_weights::divide(&healthy(recipe), &Faults::default())),
            effective: by_member(&fairlead_weights::divide(recipe, faults)),
        }
    }

    /// Of a flow whose backend is not known: of all backends together.
    fn share(weights: &BTreeMap<(String, MemberId), u32>, flow: &FlowView) -> Option<f64> {
        let is_it = |(backend, member): &(String, MemberId)| {
            *member == flow.target && (flow.backend.is_empty() || *backend == flow.backend)
        };
        let found: Vec<u32> =
            weights.iter().filter(|(name, _)| is_it(name)).map(|(_, weight)| *weight).collect();
        let sum: u32 = found.iter().sum();
        (!found.is_empty()).then(|| f64::from(sum) / f64::from(WEIGHT_SUM))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::NsName;
    use fairlead_model::recipe::{
        Candidate, RECIPE_VERSION, RecipeBackend, RecipeTier, Split, Standing, WhenUnavailable,
    };
    use fairlead_model::traffic::Outcome;

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn report(requests: u64) -> TrafficReport {
        let flow = Flow {
            route: "HTTPRoute/shop/cart".to_owned(),
            rule: 0,
            backend: "shop/cart:80".to_owned(),
            target: member("west"),
        };
        let mut counts = FlowCounts::default();
        for n in 0..requests {
            counts.add(7, if n == 0 { Outcome::Failed } else { Outcome::Answered });
        }
        let flows = [(flow, counts)].into();
        TrafficReport { span_ms: 5_000, sampled: 1_000, flows, left_out: 0 }
    }

    #[test]
    fn rates_are_corrected_for_sampling() {
        let traffic = Traffic::default();
        traffic.put(&member("east"), Millis(1_000), report(10));
        let flows = traffic.flows(Millis(2_000));
        let flow = flows.first().unwrap();
        assert!((flow.per_second - 20.0).abs() < 1e-9, "{}", flow.per_second);
        assert!((flow.error_share - 0.1).abs() < 1e-9);
        assert_eq!(
            (flow.p50_ms, flow.entry.as_str(), flow.target.as_str()),
            (Some(10), "east", "west")
        );
    }

    #[test]
    fn weights_are_those_asked_for_and_those_in_force() {
        let candidate = |name: &str, slot, ready| Candidate {
            member: member(name),
            slot,
            ready,
            expected: 3,
            weight: 1,
            ramp_percent: 100,
            standing: Standing::Able,
        };
        let tier = RecipeTier {
            split: Split::Equal,
            healthy_percent: 70,
            endpoints_min: 1,
            candidates: vec![candidate("east", 0, 3), candidate("west", 1, 0)],
        };
        let serve = Serve::Members {
            service: NsName::new("shop", "cart"),
            port: 80,
            tiers: vec![tier],
            when_unavailable: WhenUnavailable::Redistribute,
        };
        let backends = vec![RecipeBackend { weight: 1, serve }];
        let recipe = Recipe { version: RECIPE_VERSION, backends, weights: vec![0, 0] };
        let weights = Weights::of(&recipe, &Faults::default());
        let traffic = Traffic::default();
        traffic.put(&member("east"), Millis(1_000), report(10));
        let flow = traffic.flows(Millis(2_000)).remove(0);
        assert_eq!(Weights::share(&weights.asked, &flow), Some(0.5));
        assert_eq!(Weights::share(&weights.effective, &flow), Some(0.0));
        let unknown = FlowView { backend: String::new(), ..flow.clone() };
        assert_eq!(Weights::share(&weights.asked, &unknown), Some(0.5));
        let elsewhere = FlowView { target: member("south"), ..flow };
        assert_eq!(Weights::share(&weights.asked, &elsewhere), None);
    }

    #[test]
    fn what_is_watched_counts_from_its_time_on() {
        let traffic = Traffic::default();
        let route: RouteKey = "HTTPRoute/shop/cart".parse().unwrap();
        let of = || traffic.watched(&route, &member("east"));
        let watch =
            |since| traffic.watch([((route.clone(), member("east")), Millis(since))].into());
        watch(10_000);
        // A report of the five seconds before says too much of the time before.
        let span = report(10).span_ms;
        traffic.put(&member("east"), Millis(10_000 + span - 1), report(10));
        assert_eq!(of().requests, 0);
        traffic.put(&member("west"), Millis(10_000 + span), report(10));
        assert_eq!(of().requests, 0);
        traffic.put(&member("east"), Millis(10_000 + span), report(10));
        let first = of();
        assert!(first.requests > 0 && first.failed > 0);
        watch(10_000);
        assert_eq!(of(), first);
        watch(20_000);
        assert_eq!(of().requests, 0);
        assert!(traffic.rates(Millis(10_000 + span))[&route][&member("east")] > 0);
    }

    #[test]
    fn old_reports_say_nothing() {
        let traffic = Traffic::default();
        traffic.put(&member("east"), Millis(1_000), report(10));
        assert!(traffic.flows(Millis(1_000 + FRESH_MS)).is_empty());
    }
}
