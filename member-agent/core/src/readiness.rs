//! Which services have nothing ready, as their own members say.
//!
//! One machine for all: it takes the counts that peers' doors answer at `readiness`, and our own, and
//! says which services are gone. Nothing ready counts at once, for whoever sends there fails; a service
//! comes back when something was ready for a second. Other changes of counts are the hub's business:
//! two that weigh by them would disagree. A service that is not told of is no news.

use std::collections::BTreeMap;

use fairlead_model::snapshot::EndpointCounts;
use fairlead_model::{MemberId, Millis, NsName};

use crate::probe::HOLD_MS;

/// A question waits so long at the peer for an answer that is another one than the last.
pub const ASK_WAIT_MS: u64 = 2_000;
/// From one question to the next at least, also where a peer does not wait.
pub const ASK_PERIOD_MS: u64 = 200;
/// So much longer for each so many bytes of an answer: a peer costs at most 20 KB/s, however many
/// services it exports.
pub const ASK_BYTES_PER_MS: u64 = 20;

/// Counts by member and service.
pub type Counts = BTreeMap<MemberId, BTreeMap<NsName, EndpointCounts>>;

/// Which services have nothing ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    gone: BTreeMap<MemberId, BTreeMap<NsName, Gone>>,
}

/// A service with nothing ready, or with something for less than a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gone {
    counts: EndpointCounts,
    ready_since: Option<Millis>,
}

impl Readiness {
    /// Takes what a member says of its services.
    pub fn on_counts(
        &mut self,
        member: &MemberId,
        counts: &BTreeMap<NsName, EndpointCounts>,
        now: Millis,
    ) {
        for (service, counts) in counts {
            if counts.ready == 0 {
                let gone = Gone { counts: *counts, ready_since: None };
                self.gone.entry(member.clone()).or_default().insert(service.clone(), gone);
            } else if let Some(gone) = self.gone.get_mut(member).and_then(|g| g.get_mut(service)) {
                gone.ready_since.get_or_insert(now);
            }
        }
        self.tick(now);
    }

    /// Time passed: what was ready for long enough is back.
    pub fn tick(&mut self, now: Millis) {
        for services in self.gone.values_mut() {
            services.retain(|_, gone| gone.ready_since.is_none_or(|s| now.since(s) < HOLD_MS));
        }
        self.gone.retain(|_, services| !services.is_empty());
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        let gone = self.gone.values().flat_map(BTreeMap::values);
        gone.filter_map(|gone| gone.ready_since).min().map(|since| since.plus(HOLD_MS))
    }

    /// Forgets members that are no peers any more.
    pub fn retain(&mut self, keep: impl Fn(&MemberId) -> bool) {
        self.gone.retain(|member, _| keep(member));
    }

    /// The services that are gone, for [`crate::overlay::overlay_with`].
    pub fn gone(&self) -> Counts {
        let services = |services: &BTreeMap<NsName, Gone>| {
            services.iter().map(|(name, gone)| (name.clone(), gone.counts)).collect()
        };
        self.gone.iter().map(|(member, gone)| (member.clone(), services(gone))).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn east() -> MemberId {
        MemberId::new("east").unwrap()
    }

    fn says(readiness: &mut Readiness, ready: u32, now: u64) -> bool {
        let counts = EndpointCounts { ready, total: 5 };
        let cart = NsName::new("shop", "cart");
        readiness.on_counts(&east(), &[(cart, counts)].into(), Millis(now));
        !readiness.gone().is_empty()
    }

    #[test]
    fn gone_at_once_and_back_after_a_second() {
        let mut readiness = Readiness::default();
        assert!(!says(&mut readiness, 5, 0), "nothing is known and nothing is gone");
        assert!(says(&mut readiness, 0, 100));
        assert!(says(&mut readiness, 1, 200));
        assert_eq!(readiness.next_deadline(), Some(Millis(200 + HOLD_MS)));
        assert!(says(&mut readiness, 5, 199 + HOLD_MS));
        readiness.tick(Millis(200 + HOLD_MS));
        assert!(readiness.gone().is_empty());
        assert_eq!(readiness.next_deadline(), None);
    }

    #[test]
    fn a_dip_starts_the_second_again() {
        let mut readiness = Readiness::default();
        says(&mut readiness, 0, 0);
        says(&mut readiness, 1, 100);
        says(&mut readiness, 0, 600);
        assert!(says(&mut readiness, 1, 700));
        assert!(says(&mut readiness, 1, 699 + HOLD_MS));
        assert!(!says(&mut readiness, 1, 700 + HOLD_MS));
    }

    #[test]
    fn less_is_no_business_of_ours() {
        let mut readiness = Readiness::default();
        says(&mut readiness, 5, 0);
        assert!(!says(&mut readiness, 1, 100));
    }

    #[test]
    fn who_is_no_peer_is_forgotten() {
        let mut readiness = Readiness::default();
        says(&mut readiness, 0, 0);
        readiness.retain(|member| *member != east());
        assert!(readiness.gone().is_empty());
    }
}
