//! Entries of a route by where they send requests, and what moved between two such pictures.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::MemberId;
use fairlead_model::history::{
    CLASSES_MAX, Destination, EntryClass, MOVES_MAX, Move, Names, Share, Shares,
};
use fairlead_model::plan::{EntryDecision, RouteDecision, SlotTarget};
use fairlead_model::policy::GlobalRoute;
use fairlead_planner::backend_name;

/// Classes of entries that send alike, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Classes(Vec<(BTreeSet<MemberId>, Vec<Share>)>);

/// Shares of one entry: rule, backend, who answers if not the entry itself, weight.
type Key<'a> = Vec<(u16, u16, Option<&'a MemberId>, u32)>;

/// What differs between two pictures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Moved {
    pub(crate) moves: Vec<Move>,
    pub(crate) joined: BTreeSet<MemberId>,
    pub(crate) left: BTreeSet<MemberId>,
}

impl Moved {
    pub(crate) fn is_empty(&self) -> bool {
        self.moves.is_empty() && self.joined.is_empty() && self.left.is_empty()
    }
}

impl Classes {
    /// The classes of a decision.
    pub(crate) fn of(decision: &RouteDecision) -> Self {
        let mut groups: BTreeMap<Key<'_>, BTreeSet<MemberId>> = BTreeMap::new();
        let mut classes = Vec::new();
        for (entry, decided) in &decision.entries {
            match &decided.route {
                // It tries something, by rules of its own.
                Some(route) => {
                    classes.push(([entry.clone()].into(), shares(route, &key(decided))));
                }
                None => drop(groups.entry(key(decided)).or_default().insert(entry.clone())),
            }
        }
        let class = |(key, entries)| (entries, shares(&decision.route, &key));
        classes.extend(groups.into_iter().map(class));
        Self::ordered(classes)
    }

    /// What was kept of them.
    pub(crate) fn kept(shares: &Shares) -> Self {
        let class = |class: &EntryClass| {
            (class.entries.names.iter().cloned().collect(), class.shares.clone())
        };
        Self::ordered(shares.classes.iter().map(class).collect())
    }

    fn ordered(mut classes: Vec<(BTreeSet<MemberId>, Vec<Share>)>) -> Self {
        classes.sort();
        Self(classes)
    }

    /// As much of them as is kept.
    pub(crate) fn to_shares(&self) -> Shares {
        let class = |(entries, shares): &(BTreeSet<MemberId>, Vec<Share>)| EntryClass {
            entries: Names::of(entries),
            shares: shares.clone(),
        };
        let classes: Vec<EntryClass> = self.0.iter().take(CLASSES_MAX).map(class).collect();
        let more = u32::try_from(self.0.len() - classes.len()).unwrap_or(u32::MAX);
        Shares { classes, more }
    }

    fn by_entry(&self) -> BTreeMap<&MemberId, usize> {
        let classes = self.0.iter().enumerate();
        classes.flat_map(|(at, (entries, _))| entries.iter().map(move |e| (e, at))).collect()
    }

    fn shares_of(&self, class: usize) -> BTreeMap<&Destination, u32> {
        self.0[class].1.iter().map(|share| (&share.to, share.share)).collect()
    }

    /// What moved from here to there. Who joins or leaves is told as such, and not as moves.
    pub(crate) fn moved_to(&self, after: &Self) -> Moved {
        let (then, now) = (self.by_entry(), after.by_entry());
        let mut moved = Moved::default();
        let mut groups: BTreeMap<(usize, usize), BTreeSet<MemberId>> = BTreeMap::new();
        for (entry, class) in &then {
            match now.get(entry) {
                Some(next) => {
                    groups.entry((*class, *next)).or_default().insert((*entry).clone());
                }
                None => drop(moved.left.insert((*entry).clone())),
            }
        }
        let joined = now.keys().filter(|entry| !then.contains_key(*entry));
        moved.joined = joined.map(|entry| (*entry).clone()).collect();
        let mut alike: BTreeMap<(&Destination, u32, u32), BTreeSet<MemberId>> = BTreeMap::new();
        for ((class, next), entries) in groups {
            let (then, now) = (self.shares_of(class), after.shares_of(next));
            let destinations: BTreeSet<&&Destination> = then.keys().chain(now.keys()).collect();
            for to in destinations {
                let share = |shares: &BTreeMap<&Destination, u32>| shares.get(*to).copied();
                let (before, after) = (share(&then).unwrap_or(0), share(&now).unwrap_or(0));
                if before != after {
                    alike.entry((*to, before, after)).or_default().extend(entries.iter().cloned());
                }
            }
        }
        let moves = alike.into_iter().map(|((to, before, after), entries)| Move {
            entries: Names::of(&entries),
            to: to.clone(),
            before,
            after,
        });
        moved.moves = moves.take(MOVES_MAX).collect();
        moved
    }
}

fn key(entry: &EntryDecision) -> Key<'_> {
    let mut key = Key::new();
    for (at, rule) in entry.rules.iter().enumerate() {
        for (slot, weight) in rule.slots.iter().zip(&rule.recipe.weights) {
            let member = match &slot.target {
                SlotTarget::Remote { member, .. } => Some(member),
                SlotTarget::AsWritten | SlotTarget::Local { .. } => None,
            };
            if *weight > 0 {
                key.push((u16::try_from(at).unwrap_or(u16::MAX), slot.backend, member, *weight));
            }
        }
    }
    key.sort();
    key
}

fn shares(route: &GlobalRoute, key: &Key<'_>) -> Vec<Share> {
    let mut shares: BTreeMap<Destination, u32> = BTreeMap::new();
    for (rule, backend, member, weight) in key {
        let backend = backend_name(route, usize::from(*rule), usize::from(*backend));
        let to = Destination { rule: *rule, backend, member: member.cloned() };
        *shares.entry(to).or_default() += weight;
    }
    shares.into_iter().map(|(to, share)| Share { to, share }).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn class(entries: &[&str], shares: &[(Option<&str>, u32)]) -> (BTreeSet<MemberId>, Vec<Share>) {
        let id = |name: &&str| MemberId::new(name).unwrap();
        let share = |(member, share): &(Option<&str>, u32)| Share {
            to: Destination {
                rule: 0,
                backend: "shop/cart:80".into(),
                member: member.as_ref().map(id),
            },
            share: *share,
        };
        (entries.iter().map(id).collect(), shares.iter().map(share).collect())
    }

    #[test]
    fn a_move_is_told_once_for_all_entries_that_share_it() {
        let before = Classes::ordered(vec![
            class(&["east", "west"], &[(None, 10_000)]),
            class(&["south"], &[(None, 4_000), (Some("west"), 6_000)]),
        ]);
        let after = Classes::ordered(vec![
            class(&["east", "west"], &[(None, 7_000), (Some("south"), 3_000)]),
            class(&["south"], &[(None, 10_000)]),
        ]);
        let moved = before.moved_to(&after);
        let told: Vec<String> = moved
            .moves
            .iter()
            .map(|m| {
                let to = m.to.member.as_ref().map_or("itself", MemberId::as_str);
                format!("{} → {to} {} {}", m.entries, m.before, m.after)
            })
            .collect();
        assert_eq!(
            told,
            [
                "south → itself 4000 10000",
                "east, west → itself 10000 7000",
                "east, west → south 0 3000",
                "south → west 6000 0"
            ]
        );
        assert!(before.moved_to(&before).is_empty());
    }

    #[test]
    fn who_joins_or_leaves_is_no_move() {
        let before = Classes::ordered(vec![class(&["east", "west"], &[(None, 10_000)])]);
        let after = Classes::ordered(vec![class(&["east", "south"], &[(None, 10_000)])]);
        let moved = before.moved_to(&after);
        assert_eq!(moved.moves, []);
        assert_eq!(Names::of(&moved.joined).to_string(), "south");
        assert_eq!(Names::of(&moved.left).to_string(), "west");
    }

    #[test]
    fn what_is_kept_of_classes_reads_back() {
        let classes = Classes::ordered(vec![class(&["east"], &[(Some("west"), 10_000)])]);
        assert_eq!(Classes::kept(&classes.to_shares()), classes);
    }
}
