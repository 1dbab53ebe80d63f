//! Into which tier does a member fall, as an entry sees it?

use fairlead_model::MemberId;
use fairlead_model::policy::{Scope, Spread, Tier, TierMembers, TrafficState};

use crate::Place;

/// The index of the member's tier in the policy, or one beyond the last for a member on standby;
/// none when no tier has it.
pub(crate) fn tier_of(
    spread: &Spread,
    entry: (&MemberId, &Place),
    member: (&MemberId, &Place),
) -> Option<usize> {
    let tier = spread.tiers.iter().position(|tier| holds(tier, entry, member))?;
    match member.1.traffic {
        TrafficState::Standby => Some(spread.tiers.len()),
        TrafficState::Active | TrafficState::Draining => Some(tier),
    }
}

/// What to call a tier.
pub(crate) fn name_of(spread: &Spread, tier: usize) -> String {
    match spread.tiers.get(tier).map(|tier| &tier.members) {
        None => "Standby".to_owned(),
        Some(TierMembers::Scope(scope)) => format!("{scope:?}"),
        Some(TierMembers::Names(_)) => "Names".to_owned(),
        Some(TierMembers::Selector(_)) => "Selector".to_owned(),
    }
}

fn holds(tier: &Tier, entry: (&MemberId, &Place), member: (&MemberId, &Place)) -> bool {
    let near = |a: &Option<String>, b: &Option<String>| a.is_some() && a == b;
    let (place, other) = (entry.1, member.1);
    match &tier.members {
        TierMembers::Names(names) => names.contains(member.0),
        TierMembers::Selector(selector) => selector.matches(&other.labels),
        TierMembers::Scope(Scope::SameCluster) => entry.0 == member.0,
        TierMembers::Scope(Scope::SameZone) => {
            entry.0 == member.0
                || near(&place.region, &other.region) && near(&place.zone, &other.zone)
        }
        TierMembers::Scope(Scope::SameRegion) => {
            entry.0 == member.0 || near(&place.region, &other.region)
        }
        TierMembers::Scope(Scope::Any) => true,
    }
}
