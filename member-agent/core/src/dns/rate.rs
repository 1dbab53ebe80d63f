//! How many answers one network of clients gets over UDP.
//!
//! Addresses of UDP queries can be forged: without a bound the server would send its answers to whoever
//! somebody else wants to flood. Over the bound every second query gets an empty, truncated answer, so
//! that a real client comes again over TCP, where an address proves itself; the others get none.
//! Memory is fixed: networks that fall into one slot share its bound.

use std::net::IpAddr;

use fairlead_model::Millis;

/// Slots; a power of two.
const SLOTS: usize = 1 << 14;

/// What to do with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Answer it.
    Answer,
    /// Tell the client to come again over TCP.
    Truncate,
    /// Say nothing.
    Drop,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// What is left, in thousandths of an answer.
    left: u64,
    at: Millis,
    refused: u32,
}

/// Bounds the answers to each network.
#[derive(Debug, Clone)]
pub struct Rate {
    per_s: u32,
    seed: u64,
    slots: Vec<Slot>,
}

impl Rate {
    /// So many answers a second, and as many at once; 0 = no bound. `seed` keeps others from choosing
    /// networks that share a slot with somebody.
    pub fn new(per_s: u32, seed: u64) -> Self {
        let slots = if per_s == 0 { 0 } else { SLOTS };
        let full = Slot { left: u64::from(per_s) * 1_000, at: Millis(0), refused: 0 };
        Self { per_s, seed, slots: vec![full; slots] }
    }

    /// What to do with a query from there.
    pub fn admit(&mut self, client: IpAddr, now: Millis) -> Admit {
        let at = self.slot(client);
        let (per_s, Some(slot)) = (u64::from(self.per_s), self.slots.get_mut(at)) else {
            return Admit::Answer;
        };
        let earned = now.since(slot.at).saturating_mul(per_s);
        slot.left = slot.left.saturating_add(earned).min(per_s * 1_000);
        slot.at = slot.at.max(now);
        if slot.left >= 1_000 {
            slot.left -= 1_000;
            return Admit::Answer;
        }
        slot.refused = slot.refused.wrapping_add(1);
        if slot.refused.is_multiple_of(2) { Admit::Truncate } else { Admit::Drop }
    }

    /// A whole /24 or /56 counts as one client: whoever has one address has its neighbours.
    fn slot(&self, client: IpAddr) -> usize {
        let network = match client.to_canonical() {
            IpAddr::V4(v4) => u64::from(u32::from(v4) >> 8),
            IpAddr::V6(v6) => u64::try_from(u128::from(v6) >> 72).unwrap_or(0) | (1 << 63),
        };
        let mixed = super::mix(network ^ self.seed);
        usize::try_from(mixed % (SLOTS as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_gets_its_bound_and_every_second_one_more_is_sent_to_tcp() {
        let mut rate = Rate::new(3, 7);
        let now = Millis(10_000);
        let ask = |rate: &mut Rate, from: &str, now| rate.admit(ip(from), now);
        for last in 1..=3 {
            assert_eq!(ask(&mut rate, &format!("192.0.2.{last}"), now), Admit::Answer);
        }
        let more = [(); 4].map(|()| ask(&mut rate, "192.0.2.9", now));
        assert_eq!(more, [Admit::Drop, Admit::Truncate, Admit::Drop, Admit::Truncate]);
        assert_eq!(ask(&mut rate, "198.51.100.1", now), Admit::Answer, "others have their own");
        assert_eq!(ask(&mut rate, "192.0.2.1", now.plus(334)), Admit::Answer);
        assert_ne!(ask(&mut rate, "192.0.2.1", now.plus(334)), Admit::Answer);
    }

    #[test]
    fn what_is_not_used_does_not_add_up() {
        let mut rate = Rate::new(2, 7);
        let answered = |rate: &mut Rate, now| {
            (0..10).filter(|_| rate.admit(ip("2001:db8::1"), now) == Admit::Answer).count()
        };
        assert_eq!(answered(&mut rate, Millis(1_000)), 2);
        assert_eq!(answered(&mut rate, Millis(1_000_000)), 2);
        assert_eq!(answered(&mut rate, Millis(500)), 0, "a clock that goes back gives nothing");
    }

    #[test]
    fn none_is_no_bound() {
        let mut rate = Rate::new(0, 7);
        assert!((0..10_000).all(|_| rate.admit(ip("192.0.2.1"), Millis(0)) == Admit::Answer));
    }
}
