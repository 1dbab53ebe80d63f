//! What happened to members, for Kubernetes Events: from one look at the fleet to the next.
//!
//! Pure: two looks in, what is worth telling out. A hub that has just started tells nothing of what
//! it finds: that was told when it happened.

use std::collections::BTreeMap;

use fairlead_model::health::MemberState;
use fairlead_model::policy::TrafficState;
use fairlead_model::{MemberId, Reason};

/// What one look finds of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What the hub holds it for.
    pub state: MemberState,
    /// What a person wants of it.
    pub traffic: TrafficState,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// As asked, or as it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// Something that happened to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The member.
    pub member: MemberId,
    /// How bad it is.
    pub weight: Weight,
    /// CamelCase, of a closed set: the reason of the Event.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// What happened between two looks, members in order.
pub fn happened(before: &BTreeMap<MemberId, Seen>, now: &BTreeMap<MemberId, Seen>) -> Vec<Told> {
    let mut told = Vec::new();
    for (member, seen) in now {
        let Some(was) = before.get(member) else { continue };
        told.extend(moved(was.state, seen.state).map(|what| tell(member, what)));
        told.extend(asked(was.traffic, seen.traffic).map(|what| tell(member, what)));
    }
    for member in before.keys().filter(|member| !now.contains_key(*member)) {
        let note = "its certificates are worth nothing any more, and its traffic goes to others";
        let removed = Reason::MemberRemoved.as_str();
        told.push(tell(member, (Weight::Normal, removed, note)));
    }
    told
}

type What = (Weight, &'static str, &'static str);

fn tell(member: &MemberId, (weight, reason, note): What) -> Told {
    Told { member: member.clone(), weight, reason, note: note.to_owned() }
}

fn moved(was: MemberState, now: MemberState) -> Option<What> {
    use MemberState::{AgentLost, Down, Joined, Recovering, Suspect, Up};
    if was == now {
        return None;
    }
    Some(match (was, now) {
        (Down, Recovering) => {
            (Weight::Normal, Reason::Recovering.as_str(), "it is back; its traffic is given back")
        }
        (_, Down) => {
            let note = "its stream is gone and witnesses cannot reach its door: its traffic goes to others";
            (Weight::Warning, Reason::Down.as_str(), note)
        }
        (_, AgentLost) => {
            let note = "its stream, or its API server, is gone; its traffic stays";
            (Weight::Warning, Reason::AgentLost.as_str(), note)
        }
        (Joined, Up) => (Weight::Normal, "Connected", "its agent is connected for the first time"),
        (AgentLost, Up | Suspect) => (Weight::Normal, "Connected", "its agent is back"),
        // Evidence that is not enough to act comes and goes.
        (_, Up | Suspect | Recovering | Joined) => return None,
    })
}

fn asked(was: TrafficState, now: TrafficState) -> Option<What> {
    if was == now {
        return None;
    }
    Some(match now {
        TrafficState::Draining => {
            (Weight::Normal, Reason::Drained.as_str(), "its traffic is led away on request")
        }
        TrafficState::Standby => {
            (Weight::Normal, Reason::Standby.as_str(), "it serves only what no active member can")
        }
        TrafficState::Active => (Weight::Normal, "Active", "its traffic is given back on request"),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_look(rows: &[(&str, MemberState, TrafficState)]) -> BTreeMap<MemberId, Seen> {
        let row = |(name, state, traffic): &(&str, MemberState, TrafficState)| {
            (MemberId::new(name).unwrap(), Seen { state: *state, traffic: *traffic })
        };
        rows.iter().map(row).collect()
    }

    type Is = (MemberState, TrafficState);

    fn reasons(was: Is, now: Is) -> Vec<&'static str> {
        let look = |(state, traffic)| mk_look(&[("east", state, traffic)]);
        happened(&look(was), &look(now)).into_iter().map(|told| told.reason).collect()
    }

    #[test]
    fn each_change_is_told_once_and_what_stays_is_not() {
        use MemberState::{AgentLost, Down, Joined, Recovering, Suspect, Up};
        use TrafficState::{Active, Draining, Standby};
        let rows: [(Is, Is, &[&str]); 11] = [
            ((Up, Active), (Up, Active), &[]),
            ((Joined, Active), (Up, Active), &["Connected"]),
            ((Up, Active), (Suspect, Active), &[]),
            ((Suspect, Active), (Up, Active), &[]),
            ((Suspect, Active), (Down, Active), &["Down"]),
            ((Up, Active), (AgentLost, Active), &["AgentLost"]),
            ((AgentLost, Active), (Up, Active), &["Connected"]),
            ((Down, Active), (Recovering, Active), &["Recovering"]),
            ((Recovering, Active), (Up, Active), &[]),
            ((Up, Active), (Up, Draining), &["Drained"]),
            ((AgentLost, Draining), (Down, Standby), &["Down", "Standby"]),
        ];
        for (was, now, want) in rows {
            assert_eq!(reasons(was, now), want, "{was:?} {now:?}");
        }
    }

    #[test]
    fn a_member_that_went_is_told_and_one_that_came_is_its_joins_business() {
        let one = mk_look(&[("east", MemberState::Up, TrafficState::Active)]);
        let gone = happened(&one, &BTreeMap::new());
        assert_eq!(gone.iter().map(|told| told.reason).collect::<Vec<_>>(), ["MemberRemoved"]);
        assert_eq!(happened(&BTreeMap::new(), &one), []);
    }
}
