//! The limit of 16 backendRefs in a rule: which members get one.
//!
//! The choice is by a rendezvous hash of entry, member and service: stable while others come and go,
//! and different for every entry, so that the fleet as a whole uses all members.

use fairlead_model::recipe::SLOTS_MAX;
use fairlead_model::{MemberId, NsName};

/// How many members each of `global` backends may use when `fixed` others need one slot each.
pub(crate) fn members_max(fixed: usize, global: usize) -> usize {
    (SLOTS_MAX.saturating_sub(fixed) / global.max(1)).max(1)
}

/// A member that wants a slot.
#[derive(Clone)]
pub(crate) struct Applicant<'a> {
    pub(crate) member: &'a MemberId,
    /// Takes traffic on nobody's account at present and is the first to go without a slot.
    pub(crate) drained: bool,
}

/// Keeps at most `max` members, from the first tier on. Every tier leaves one slot for each tier
/// after it, so that failover has somewhere to go; the entry itself is always kept.
pub(crate) fn choose<'a>(
    tiers: &mut [Vec<Applicant<'a>>],
    max: usize,
    entry: &MemberId,
    service: &NsName,
) -> Vec<&'a MemberId> {
    let mut dropped = Vec::new();
    if tiers.iter().map(Vec::len).sum::<usize>() <= max {
        return dropped;
    }
    let entry_tier = tiers.iter().position(|tier| tier.iter().any(|a| a.member == entry));
    let mut left = max;
    for at in 0..tiers.len() {
        let later = tiers[at + 1..].iter().filter(|tier| !tier.is_empty()).count();
        let reserved_for_entry = usize::from(entry_tier.is_some_and(|of_entry| of_entry > at));
        let take = left.saturating_sub(later).max(1).min(left - reserved_for_entry.min(left));
        let rank = |a: &Applicant<'_>| {
            (a.member != entry, a.drained, std::cmp::Reverse(hash(entry, a.member, service)))
        };
        tiers[at].sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.member.cmp(b.member)));
        let keep = take.min(tiers[at].len());
        dropped.extend(tiers[at].drain(keep..).map(|a| a.member));
        tiers[at].sort_by(|a, b| a.member.cmp(b.member));
        left -= keep;
    }
    dropped.sort();
    dropped
}

/// FNV-1a with a final mix. Fixed here and not taken from a library: another hash in a later version
/// would move every fleet's traffic at once.
pub(crate) fn hash(entry: &MemberId, member: &MemberId, service: &NsName) -> u64 {
    let parts = [entry.as_str(), member.as_str(), &service.namespace, &service.name];
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([b'/'])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ids(names: std::ops::Range<u32>) -> Vec<MemberId> {
        names.map(|n| MemberId::new(&format!("m{n:02}")).unwrap()).collect()
    }

    fn chosen(all: &[Vec<MemberId>], max: usize, entry: &str) -> Vec<Vec<MemberId>> {
        let applicant = |member| Applicant { member, drained: false };
        let mut tiers: Vec<Vec<_>> =
            all.iter().map(|tier| tier.iter().map(applicant).collect()).collect();
        let service = NsName::new("shop", "cart");
        choose(&mut tiers, max, &MemberId::new(entry).unwrap(), &service);
        tiers.iter().map(|tier| tier.iter().map(|a| a.member.clone()).collect()).collect()
    }

    #[test]
    fn sixteen_slots_are_shared_by_global_backends() {
        assert_eq!([members_max(0, 1), members_max(0, 3), members_max(15, 1)], [16, 5, 1]);
        assert_eq!([members_max(1, 2), members_max(16, 1), members_max(0, 20)], [7, 1, 1]);
    }

    #[test]
    fn every_tier_leaves_room_for_those_after_it() {
        let tiers = [ids(0..20), ids(20..40), ids(40..60)];
        let lens = |max| chosen(&tiers, max, "x").iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(16), [14, 1, 1]);
        assert_eq!(lens(2), [1, 1, 0]);
        assert_eq!(lens(60), [20, 20, 20]);
    }

    #[test]
    fn the_entry_itself_is_always_kept() {
        for entry in 0..60 {
            let entry = format!("m{entry:02}");
            for max in 1..5 {
                let tiers = chosen(&[ids(0..20), ids(20..40), ids(40..60)], max, &entry);
                assert!(tiers.concat().iter().any(|m| m.as_str() == entry), "{entry} of {max}");
                assert!(tiers.concat().len() <= max);
            }
        }
    }

    #[test]
    fn one_member_less_moves_one_slot() {
        let before = chosen(&[ids(0..30)], 16, "x").concat();
        for gone in &before {
            let rest: Vec<_> = ids(0..30).into_iter().filter(|m| m != gone).collect();
            let after = chosen(&[rest], 16, "x").concat();
            assert_eq!(before.iter().filter(|m| !after.contains(m)).count(), 1);
        }
    }

    #[test]
    fn entries_choose_differently() {
        let all = [ids(0..30)];
        assert_ne!(chosen(&all, 8, "east"), chosen(&all, 8, "west"));
    }
}
