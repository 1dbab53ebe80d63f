//! Why the hub does not plan.
//!
//! Owns the decision whether a plan may be made now, and whether the hub should doubt itself. Never
//! waits itself: it says when time alone will change the answer. What it holds back is new plans only;
//! streams, statuses and the bundles that members hold go on.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::{MemberId, Millis, Note, Reason};

/// Most names that one note lists.
const NAMES_MAX: usize = 10;

/// What the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HoldInput {
    /// The clock.
    pub now: Millis,
    /// When the process started.
    pub started_at: Millis,
    /// How long it waits for members after its start.
    pub grace_ms: u64,
    /// Kinds of the hub's own objects that are not read yet.
    pub unsynced: BTreeSet<String>,
    /// Members that were connected before the start and have not reported since.
    pub awaited: BTreeSet<MemberId>,
    /// Why the store cannot be written, if so.
    pub store_error: Option<String>,
    /// Why this process may not decide at all, if so: another hub holds the Lease.
    pub fenced: Option<String>,
}

/// Whether a plan may be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hold {
    /// Why not; empty = it may.
    pub notes: Vec<Note>,
    /// When time alone changes the answer.
    pub wake_at: Option<Millis>,
}

impl Hold {
    /// True when no plan may be made.
    pub fn is_held(&self) -> bool {
        !self.notes.is_empty()
    }
}

/// Decides whether a plan may be made.
pub fn hold(input: &HoldInput) -> Hold {
    let mut hold = Hold::default();
    if let Some(why) = &input.fenced {
        hold.notes.push(Note::new("hub", Reason::StoreUnavailable, why));
    }
    if let Some(error) = &input.store_error {
        hold.notes.push(Note::new("store", Reason::StoreUnavailable, error));
    }
    if !input.unsynced.is_empty() {
        let kinds = listed(input.unsynced.iter());
        hold.notes.push(Note::new(
            "hub",
            Reason::PolicyNotSynced,
            format!("not read yet: {kinds}"),
        ));
    }
    let grace_ends = input.started_at.plus(input.grace_ms);
    if !input.awaited.is_empty() && input.now < grace_ends {
        let members = listed(input.awaited.iter());
        let left = grace_ends.since(input.now).div_ceil(1000);
        hold.notes.push(Note::new(
            "hub",
            Reason::WaitingForMembers,
            format!("waiting at most {left} s more for: {members}"),
        ));
        hold.wake_at = Some(grace_ends);
    }
    hold
}

/// Fewer members that vanish never freeze a fleet.
pub const VANISHED_MIN: usize = 3;
/// Share of the fleet that may vanish at once, in percent.
pub const VANISHED_PERCENT_MAX: usize = 40;
/// Streams that were lost within that time of each other were lost at once.
pub const VANISHED_WINDOW_MS: u64 = 10_000;

/// What is seen of a member that was connected once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It has a stream.
    Seen,
    /// Its stream is gone.
    Lost {
        /// Since when.
        since: Millis,
    },
    /// Its stream is gone, but a person asked for it: its traffic was drained before.
    Excused,
}

/// Whether so much of the fleet vanished at once that the hub has to doubt itself: none = no.
///
/// `fleet` is what users have registered: who was deleted is not in it and never counts as lost. It
/// looks at what is lost now, so it ends by itself when members come back, or when a person drains or
/// deletes those that will not. What it asks for is the planner's freeze and not a hold: what users
/// edit or delete must go through.
pub fn fleet_vanished(fleet: &BTreeMap<MemberId, Sight>) -> Option<Note> {
    let mut lost: Vec<(Millis, &MemberId)> = fleet
        .iter()
        .filter_map(|(id, sight)| match sight {
            Sight::Lost { since } => Some((*since, id)),
            Sight::Seen | Sight::Excused => None,
        })
        .collect();
    lost.sort();
    let from = |first: usize| {
        let within = |(at, _): &&(Millis, &MemberId)| at.since(lost[first].0) <= VANISHED_WINDOW_MS;
        &lost[first..first + lost[first..].iter().take_while(within).count()]
    };
    let together = (0..lost.len()).map(from).max_by_key(|members| members.len())?;
    let (gone, all) = (together.len(), fleet.len());
    if gone < VANISHED_MIN || gone * 100 <= all * VANISHED_PERCENT_MAX {
        return None;
    }
    let names: BTreeSet<&MemberId> = together.iter().map(|(_, id)| *id).collect();
    Some(Note::new(
        "fleet",
        Reason::FleetVanished,
        format!(
            "{gone} of {all} members were lost at once: {}; routes that nobody edits stay as they are \
             until they are back, drained or deleted",
            listed(names.into_iter())
        ),
    ))
}

fn listed<T: ToString>(names: impl ExactSizeIterator<Item = T>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let shown: Vec<String> = names.take(NAMES_MAX).map(|n| n.to_string()).collect();
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_input() -> HoldInput {
        HoldInput {
            now: Millis(10_000),
            started_at: Millis(0),
            grace_ms: 30_000,
            ..HoldInput::default()
        }
    }

    fn reasons(input: &HoldInput) -> Vec<Reason> {
        hold(input).notes.into_iter().map(|n| n.reason).collect()
    }

    fn east() -> BTreeSet<MemberId> {
        [MemberId::new("east").unwrap()].into()
    }

    #[test]
    fn nothing_amiss_means_plan() {
        assert_eq!(hold(&mk_input()), Hold::default());
    }

    #[test]
    fn each_obstacle_holds_with_its_reason() {
        let rows = [
            (
                HoldInput { unsynced: ["HTTPRoute".into()].into(), ..mk_input() },
                Reason::PolicyNotSynced,
            ),
            (HoldInput { awaited: east(), ..mk_input() }, Reason::WaitingForMembers),
            (
                HoldInput { store_error: Some("disk full".into()), ..mk_input() },
                Reason::StoreUnavailable,
            ),
            (HoldInput { fenced: Some("other".into()), ..mk_input() }, Reason::StoreUnavailable),
        ];
        for (input, reason) in rows {
            assert_eq!(reasons(&input), [reason]);
        }
    }

    #[test]
    fn grace_ends_the_wait_for_members_and_nothing_else() {
        let late = HoldInput { now: Millis(30_000), awaited: east(), ..mk_input() };
        assert_eq!(reasons(&late), []);
        let unsynced = HoldInput { unsynced: ["HTTPRoute".into()].into(), ..late };
        assert_eq!(reasons(&unsynced), [Reason::PolicyNotSynced]);
    }

    #[test]
    fn the_end_of_grace_wakes_the_hub() {
        let waiting = HoldInput { awaited: east(), ..mk_input() };
        assert_eq!(hold(&waiting).wake_at, Some(Millis(30_000)));
    }

    #[test]
    fn a_thousand_names_make_a_short_note() {
        let awaited = (0..1000).map(|n| MemberId::new(&format!("m{n}")).unwrap()).collect();
        let note = hold(&HoldInput { awaited, ..mk_input() }).notes.remove(0);
        assert!(note.message.contains("and 990 more") && note.message.len() < 200);
    }

    /// A fleet of so many, of which some were lost at these times.
    fn mk_fleet(all: usize, lost: &[u64]) -> BTreeMap<MemberId, Sight> {
        let sight = |n: usize| match lost.get(n) {
            Some(since) => Sight::Lost { since: Millis(*since) },
            None => Sight::Seen,
        };
        (0..all).map(|n| (MemberId::new(&format!("m{n}")).unwrap(), sight(n))).collect()
    }

    #[test]
    fn a_fleet_that_vanishes_at_once_freezes_the_hub() {
        let slow = VANISHED_WINDOW_MS + 1;
        // (members, times of losses, frozen)
        let rows: [(usize, &[u64], bool); 11] = [
            (1, &[0], false),
            (2, &[0, 0], false),
            (3, &[0, 0], false),
            (3, &[0, 0, 0], true),
            (5, &[0, 5_000], false),
            (5, &[0, 5_000, 10_000], true),
            (5, &[0, 5_000, 10_001], false),
            (7, &[0, 1, 2], true),
            (8, &[0, 1, 2], false),
            (9, &[0, slow, 2 * slow, 3 * slow, 4 * slow, 5 * slow], false),
            // An old loss does not hide a new one.
            (6, &[0, 50_000, 50_001, 50_002], true),
        ];
        for (all, lost, frozen) in rows {
            let note = fleet_vanished(&mk_fleet(all, lost));
            assert_eq!(note.is_some(), frozen, "{all} {lost:?} {note:?}");
        }
        let note = fleet_vanished(&mk_fleet(7, &[0, 1, 2])).unwrap();
        assert_eq!(note.reason, Reason::FleetVanished);
        assert!(
            note.message.starts_with("3 of 7 members were lost at once: m0, m1, m2;"),
            "{note}"
        );
    }

    #[test]
    fn exactly_forty_percent_is_not_too_much() {
        assert!(fleet_vanished(&mk_fleet(10, &[0; 4])).is_none());
        assert!(fleet_vanished(&mk_fleet(10, &[0; 5])).is_some());
    }

    #[test]
    fn what_a_person_drained_or_deleted_is_not_lost() {
        let mut fleet = mk_fleet(5, &[0, 0, 0]);
        fleet.insert(MemberId::new("m0").unwrap(), Sight::Excused);
        assert!(fleet_vanished(&fleet).is_none());
        let mut fleet = mk_fleet(5, &[0, 0, 0]);
        fleet.remove(&MemberId::new("m0").unwrap());
        assert!(fleet_vanished(&fleet).is_none());
    }
}
