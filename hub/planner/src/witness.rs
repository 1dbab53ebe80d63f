//! Who watches whom: at most five witnesses per member, across regions.
//!
//! Owns the choice. A rendezvous hash of subject and witness: everybody who knows the members comes
//! to the same choice, a member that comes or goes moves no more than one place, and nobody can choose
//! itself into a post by anything but its name. Never judges what witnesses say.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::MemberId;

/// Most witnesses of one member.
pub const WITNESSES_MAX: usize = 5;

/// A region, none = not known.
pub type Region = Option<String>;

/// The members that shall watch `subject`'s door, of all `members` and their regions.
pub(crate) fn assign(
    subject: &MemberId,
    members: &BTreeMap<MemberId, Region>,
) -> BTreeSet<MemberId> {
    let others = members.iter().filter(|(id, _)| *id != subject);
    let chosen = choose(subject, others.map(|(id, region)| (id, region.as_deref())));
    chosen.into_iter().cloned().collect()
}

/// The witnesses that count among these: the best of each region first, then the second of each.
pub fn choose<'a>(
    subject: &MemberId,
    among: impl Iterator<Item = (&'a MemberId, Option<&'a str>)>,
) -> Vec<&'a MemberId> {
    let mut by_region: BTreeMap<Option<&str>, Vec<(u64, &MemberId)>> = BTreeMap::new();
    for (id, region) in among {
        by_region.entry(region).or_default().push((hash(subject, id.as_str()), id));
    }
    let mut ranked = Vec::new();
    for (region, mut members) in by_region {
        members.sort_by(|a, b| b.cmp(a));
        let of_region = hash(subject, region.unwrap_or_default());
        let place = |(place, (_, id))| (place, std::cmp::Reverse(of_region), id);
        ranked.extend(members.into_iter().take(WITNESSES_MAX).enumerate().map(place));
    }
    ranked.sort();
    ranked.into_iter().take(WITNESSES_MAX).map(|(_, _, id)| id).collect()
}

/// FNV-1a with a final mix, fixed here: another hash would change every post at once.
fn hash(subject: &MemberId, other: &str) -> u64 {
    let bytes = subject.as_str().bytes().chain([b'/']).chain(other.bytes());
    let fnv = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, fnv);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn fleet(count: usize, regions: usize) -> BTreeMap<MemberId, Region> {
        let member = |n: usize| {
            let id = MemberId::new(&format!("m{n}")).unwrap();
            (id, (regions > 0).then(|| format!("r{}", n % regions)))
        };
        (0..count).map(member).collect()
    }

    #[test]
    fn at_most_five_and_never_itself() {
        for (count, regions) in [(1, 0), (2, 0), (3, 1), (6, 2), (40, 0), (40, 3), (40, 20)] {
            let members = fleet(count, regions);
            for subject in members.keys() {
                let chosen = assign(subject, &members);
                assert_eq!(chosen.len(), WITNESSES_MAX.min(count - 1));
                assert!(!chosen.contains(subject));
            }
        }
    }

    #[test]
    fn witnesses_come_from_as_many_regions_as_there_are() {
        let members = fleet(40, 3);
        for subject in members.keys() {
            let regions: BTreeSet<_> =
                assign(subject, &members).iter().map(|id| members[id].clone()).collect();
            assert_eq!(regions.len(), 3, "{subject}");
        }
        // One that is alone in its region is watched from others.
        let mut members = fleet(10, 1);
        let far = MemberId::new("far").unwrap();
        members.insert(far.clone(), Some("elsewhere".to_owned()));
        assert_eq!(assign(&far, &members).len(), WITNESSES_MAX);
        let near = MemberId::new("m1").unwrap();
        assert!(assign(&near, &members).contains(&far));
    }

    #[test]
    fn one_member_less_moves_one_post() {
        let members = fleet(30, 3);
        for gone in members.keys() {
            let mut rest = members.clone();
            rest.remove(gone);
            for subject in rest.keys() {
                let (before, after) = (assign(subject, &members), assign(subject, &rest));
                assert!(before.difference(&after).count() <= 1, "{subject} without {gone}");
            }
        }
    }

    #[test]
    fn posts_are_spread() {
        let members = fleet(50, 0);
        let mut posts: BTreeMap<MemberId, usize> = BTreeMap::new();
        for subject in members.keys() {
            for witness in assign(subject, &members) {
                *posts.entry(witness).or_default() += 1;
            }
        }
        assert!(posts.values().all(|posts| *posts <= 16), "{posts:?}");
    }
}
