//! Figures that are read off one look at the hub when somebody scrapes: shares of traffic, how far
//! members are behind, what is not as planned there, whom entries have taken out.
//!
//! Owns their names, their meaning and their bounds. Values in, text out. What does not
//! fit is left out by whole routes, in order of their names, and counted.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use fairlead_model::history::HistorySize;
use fairlead_model::plan::{RulePlan, SlotTarget};
use fairlead_model::recipe::{Faults, Recipe, Serve, Standing, WEIGHT_SUM};
use fairlead_model::{MemberId, Millis, Reason};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::MemberLabel;
use crate::fleet::MemberNow;
use crate::view::Look;

/// Most rules, counted once for each entry, of which shares are worked out in one scrape: some 50 ms.
const RULES_MAX: usize = 10_000;
/// Most pairs of route and member that are shown; each is two series.
const PAIRS_MAX: usize = 5_000;

/// What one look says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Shares by route and member.
    weights: BTreeMap<(String, MemberId), Share>,
    /// Routes whose shares were too much.
    left_out: usize,
    /// For how long the newest plan of a member has waited to be applied, in ms; 0 when it is.
    pending_ms: BTreeMap<MemberId, u64>,
    /// Objects that are not as planned.
    exceptions: BTreeMap<(MemberId, Reason), i64>,
    /// Members that an entry has taken out of its routes.
    out: BTreeMap<MemberId, usize>,
    /// How much history is kept; filled in by whoever has it.
    pub history: HistorySize,
}

/// Shares of a route's traffic, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Share {
    /// Were everybody healthy.
    asked: f64,
    /// As entries have it now.
    effective: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WeightLabels {
    route: String,
    member: String,
    weight: Weight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Weight {
    Asked,
    Effective,
}

impl EncodeLabelValue for Weight {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Asked => "asked",
            Self::Effective => "effective",
        };
        name.encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExceptionLabels {
    member: String,
    reason: &'static str,
}

impl Figures {
    /// Reads one look.
    pub fn of(look: &Look<'_>) -> Self {
        let mut figures = Self::default();
        figures.add_weights(look);
        for (member, now) in look.members {
            let caused_at = look.current.rendered.get(member).map(|plan| plan.caused_at());
            let waiting = caused_at.filter(|at| !has_applied(now, *at));
            let waited_ms = waiting.map_or(0, |at| look.now.since(at));
            figures.pending_ms.insert(member.clone(), waited_ms);
            figures.out.insert(member.clone(), now.said.overlay.out.len());
            for exception in now.said.applied.iter().flat_map(|report| report.exceptions.values()) {
                *figures.exceptions.entry((member.clone(), exception.reason)).or_default() += 1;
            }
        }
        figures
    }

    fn add_weights(&mut self, look: &Look<'_>) {
        let Some(planned) = look.current.planned.as_deref() else { return };
        let mut rules = 0;
        for (route, decision) in &planned.decisions {
            let count: usize = decision.entries.values().map(|entry| entry.rules.len()).sum();
            rules += count;
            if count == 0 {
                continue;
            }
            if rules > RULES_MAX || self.weights.len() >= PAIRS_MAX {
                self.left_out += 1;
                continue;
            }
            let mut shares: BTreeMap<&MemberId, Share> = BTreeMap::new();
            for (entry, decided) in &decision.entries {
                let out = look.members.get(entry).map(|now| &now.said.overlay.out);
                let unreachable = out.into_iter().flat_map(BTreeMap::keys).cloned().collect();
                let faults = Faults { unreachable, ..Faults::default() };
                for rule in &decided.rules {
                    add_rule(&mut shares, entry, rule, &faults);
                }
            }
            let whole = count as f64 * f64::from(WEIGHT_SUM);
            for (member, share) in shares {
                let share =
                    Share { asked: share.asked / whole, effective: share.effective / whole };
                self.weights.insert((route.to_string(), member.clone()), share);
            }
        }
    }

    /// As OpenMetrics text without an end mark.
    ///
    /// # Errors
    /// Never, writing to a string.
    pub fn encode(&self, text: &mut String) -> Result<(), std::fmt::Error> {
        let mut registry = Registry::with_prefix("fairlead_hub");
        let weights = Family::<WeightLabels, Gauge<f64, AtomicU64>>::default();
        for ((route, member), share) in &self.weights {
            for (weight, value) in
                [(Weight::Asked, share.asked), (Weight::Effective, share.effective)]
            {
                let (route, member) = (route.clone(), member.to_string());
                weights.get_or_create(&WeightLabels { route, member, weight }).set(value);
            }
        }
        let help = "Share of a global route's traffic by who answers, mean over rules and entries: \
                    asked, were all healthy, and effective, with health and overlays";
        registry.register_with_unit("route_weight", help, Unit::Other("ratio".to_owned()), weights);
        let left_out: Gauge = Gauge::default();
        left_out.set(number(self.left_out));
        let help = "Global routes whose weights are not shown, because there are too many";
        registry.register("route_weights_left_out", help, left_out);
        for (name, help, value) in [
            ("history_entries", "Changes of routes' decisions that are kept", self.history.entries),
            ("history_entries_limit", "Most changes that are kept", self.history.entries_max),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(number(value));
            registry.register(name, help, gauge);
        }
        for (name, help, value) in [
            ("history_size", "Size of the kept changes in the store", self.history.bytes),
            ("history_size_limit", "Most that they may take", self.history.bytes_max),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(number(value));
            registry.register_with_unit(name, help, Unit::Bytes, gauge);
        }
        let pending = Family::<MemberLabel, Gauge<f64, AtomicU64>>::default();
        for (member, ms) in &self.pending_ms {
            let seconds = std::time::Duration::from_millis(*ms).as_secs_f64();
            pending.get_or_create(&label(member)).set(seconds);
        }
        let help = "How long a member's newest plan has waited to be applied; 0 when it is";
        registry.register_with_unit("plan_pending", help, Unit::Seconds, pending);
        let exceptions = Family::<ExceptionLabels, Gauge>::default();
        for ((member, reason), count) in &self.exceptions {
            let labels = ExceptionLabels { member: member.to_string(), reason: reason.as_str() };
            exceptions.get_or_create(&labels).set(*count);
        }
        let help = "Objects that are not as planned in a member, by reason";
        registry.register("exceptions", help, exceptions);
        let out = Family::<MemberLabel, Gauge>::default();
        for (member, count) in &self.out {
            out.get_or_create(&label(member)).set(number(*count));
        }
        let help = "Members that an entry's agent has taken out of its routes by itself";
        registry.register("overlay_out", help, out);
        encode_registry(text, &registry)
    }
}

/// One of everything, for tests of names.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) fn filled() -> Figures {
    let east = MemberId::new("east").unwrap();
    let share = Share { asked: 0.5, effective: 1.0 };
    Figures {
        weights: [(("HTTPRoute/shop/cart".to_owned(), east.clone()), share)].into(),
        left_out: 0,
        pending_ms: [(east.clone(), 1_500)].into(),
        exceptions: [((east.clone(), Reason::Forbidden), 2)].into(),
        out: [(east, 1)].into(),
        history: HistorySize::default(),
    }
}

/// What one rule of one entry gives whom.
fn add_rule<'a>(
    shares: &mut BTreeMap<&'a MemberId, Share>,
    entry: &'a MemberId,
    rule: &'a RulePlan,
    faults: &Faults,
) {
    let asked = fairlead_weights::divide(&healthy(&rule.recipe), &Faults::default());
    let effective = match faults.is_empty() {
        true => rule.recipe.weights.clone(),
        false => fairlead_weights::divide(&rule.recipe, faults),
    };
    for (at, slot) in rule.slots.iter().enumerate() {
        let member = match &slot.target {
            SlotTarget::AsWritten | SlotTarget::Local { .. } => entry,
            SlotTarget::Remote { member, .. } => member,
        };
        let of = |weights: &[u32]| f64::from(weights.get(at).copied().unwrap_or(0));
        let share = shares.entry(member).or_default();
        share.asked += of(&asked);
        share.effective += of(&effective);
    }
}

/// The recipe were everybody well. Who is drained stays out: of it nothing is expected.
pub fn healthy(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    for backend in &mut recipe.backends {
        let Serve::Members { tiers, .. } = &mut backend.serve else { continue };
        for candidate in tiers.iter_mut().flat_map(|tier| &mut tier.candidates) {
            candidate.ready = candidate.expected;
            candidate.ramp_percent = 100;
            candidate.standing = Standing::Able;
        }
    }
    recipe
}

/// The newest word is that the newest plan is in place.
fn has_applied(now: &MemberNow, caused_at: Millis) -> bool {
    let applied = now.said.applied.as_ref().filter(|report| report.complete);
    let number = applied.map(|report| report.number);
    number.is_some() && number == now.said.sent && now.said.sent_at >= Some(caused_at)
}

fn label(member: &MemberId) -> MemberLabel {
    MemberLabel { member: member.to_string() }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::NsName;
    use fairlead_model::plan::Slot;
    use fairlead_model::recipe::{
        Candidate, RECIPE_VERSION, RecipeBackend, RecipeTier, Split, WhenUnavailable,
    };

    fn member(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn mk_candidate(name: &str, slot: u16, ready: u32, expected: u32) -> Candidate {
        Candidate {
            member: member(name),
            slot,
            ready,
            expected,
            weight: 1,
            ramp_percent: 100,
            standing: Standing::Able,
        }
    }

    /// East serves itself and west; `candidates` say how they are.
    fn mk_rule(candidates: Vec<Candidate>) -> RulePlan {
        let service = NsName::new("shop", "cart");
        let tier = RecipeTier {
            split: Split::Endpoints,
            healthy_percent: 70,
            endpoints_min: 1,
            candidates,
        };
        let serve = Serve::Members {
            service: service.clone(),
            port: 80,
            tiers: vec![tier],
            when_unavailable: WhenUnavailable::Redistribute,
        };
        let mut recipe = Recipe {
            version: RECIPE_VERSION,
            backends: vec![RecipeBackend { weight: 1, serve }],
            weights: vec![0, 0],
        };
        recipe.weights = fairlead_weights::divide(&recipe, &Faults::default());
        let local = SlotTarget::Local { service: service.clone(), port: 80 };
        let app_protocol = String::new();
        let remote = SlotTarget::Remote { member: member("west"), service, port: 80, app_protocol };
        let slots = [local, remote].map(|target| Slot { backend: 0, target }).into();
        RulePlan { slots, recipe, mirrors: Vec::new() }
    }

    fn shares_of(rule: &RulePlan, faults: &Faults) -> Vec<(String, f64, f64)> {
        let east = member("east");
        let mut shares = BTreeMap::new();
        add_rule(&mut shares, &east, rule, faults);
        let whole = f64::from(WEIGHT_SUM);
        shares
            .iter()
            .map(|(id, it)| (id.to_string(), it.asked / whole, it.effective / whole))
            .collect()
    }

    #[test]
    fn what_health_takes_is_in_effect_and_not_asked() {
        let sick = mk_rule(vec![mk_candidate("east", 0, 0, 3), mk_candidate("west", 1, 1, 1)]);
        let shares = shares_of(&sick, &Faults::default());
        assert_eq!(shares, [("east".into(), 0.75, 0.0), ("west".into(), 0.25, 1.0)]);
    }

    #[test]
    fn what_an_overlay_takes_is_in_effect() {
        let rule = mk_rule(vec![mk_candidate("east", 0, 1, 1), mk_candidate("west", 1, 1, 1)]);
        let none = shares_of(&rule, &Faults::default());
        assert_eq!(none, [("east".into(), 0.5, 0.5), ("west".into(), 0.5, 0.5)]);
        let faults = Faults { unreachable: [member("west")].into(), ..Faults::default() };
        let out = shares_of(&rule, &faults);
        assert_eq!(out, [("east".into(), 0.5, 1.0), ("west".into(), 0.5, 0.0)]);
    }

    #[test]
    fn a_drained_member_is_asked_for_nothing() {
        let mut drained = mk_candidate("west", 1, 0, 0);
        drained.standing = Standing::Out;
        let rule = mk_rule(vec![mk_candidate("east", 0, 1, 1), drained]);
        let shares = shares_of(&rule, &Faults::default());
        assert_eq!(shares, [("east".into(), 1.0, 1.0), ("west".into(), 0.0, 0.0)]);
    }
}
