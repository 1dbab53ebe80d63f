//! Who gets the copies of a rule's requests: one member for each mirror and entry.
//!
//! A copy has one destination, so nothing is spread: the nearest tier with something ready gives it, and
//! in it a stable hash of entry, member and service, so that counts that change move no copies. Agents
//! do not move copies by themselves: a lost copy harms nobody.

use std::cmp::Reverse;

use fairlead_model::policy::{Mirror, Spread};
use fairlead_model::recipe::Split;
use fairlead_model::{MemberId, plan::SlotTarget};

use crate::fleet::{Fleet, Member};
use crate::{Answer, Verdict, Verdicts, slots, tiers, weights};

/// Where copies for a mirror go from an entry; none = nobody can take them.
pub(crate) fn choose(
    fleet: &Fleet<'_>,
    entry: (&MemberId, &Member<'_>),
    spread: &Spread,
    mirror: &Mirror,
    verdicts: &Verdicts,
) -> Option<SlotTarget> {
    let place = (entry.0, &entry.1.place);
    let rank = |(member, verdict): (&MemberId, &Verdict)| {
        match verdict.answer(place, member) {
            Answer::Able | Answer::Ramping(_) => {}
            Answer::Waiting(_) | Answer::Out(_) | Answer::No(_) => return None,
        }
        let (member, facts) = fleet.members.get_key_value(member)?;
        let tier = tiers::tier_of(spread, place, (member, &facts.place))?;
        let of_tier = spread.tiers.get(tier).filter(|tier| tier.split == Split::Weights);
        let weighs = of_tier.is_none_or(|tier| tier.weights.get(member).is_some_and(|w| *w > 0));
        let is_ready = facts.counts_of(&mirror.service).ready > 0;
        let hash = slots::hash(entry.0, member, &mirror.service);
        (weighs && is_ready).then_some((tier, Reverse(hash), member))
    };
    let (.., member) = verdicts.iter().filter_map(rank).min()?;
    Some(weights::target(fleet, entry.0, member, (&mirror.service, mirror.port)))
}
