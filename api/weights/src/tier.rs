//! One backend: what its members can take, and how its share spills over its tiers.
//!
//! Fixed point with [`ONE`] = 2^32. No product leaves 128 bits: a capacity is below 2^71, so the sum
//! of a tier times `ONE` fits for more than a million candidates.

use fairlead_model::NsName;
use fairlead_model::recipe::{Candidate, Faults, RecipeTier, Split, Standing};

use crate::Parts;

/// The whole, in fixed point.
const ONE: u128 = 1 << 32;

/// A tier with its candidates' capacities.
pub(crate) struct TierCapacity {
    /// `θ` in percent, 1 to 100.
    healthy_percent: u128,
    members: Vec<MemberCapacity>,
}

/// What one candidate can take.
struct MemberCapacity {
    slot: u16,
    standing: Standing,
    /// `w`: its weight in the tier; 0 when nothing is expected of it.
    base: u128,
    /// Its weight if one endpoint were expected of it.
    base_if_expected: u128,
    /// `w · h · ramp`, in units of `ONE` per cent.
    now: u128,
}

/// The candidates' capacities, with what an agent found since.
pub(crate) fn capacities(
    tiers: &[RecipeTier],
    service: &NsName,
    faults: &Faults,
) -> Vec<TierCapacity> {
    let mut counted: Vec<(&RecipeTier, Vec<Counted<'_>>)> =
        tiers.iter().map(|tier| (tier, counted(tier, service, faults))).collect();
    call_in_reserves(&mut counted, faults);
    // Below the minimum a member still serves when nobody else can: little is better than nothing.
    let serves = |c: &Counted<'_>| c.has_enough() && c.capacity() > 0;
    let somebody_has_enough = counted.iter().any(|(_, members)| members.iter().any(serves));
    let held_back = |c: &Counted<'_>| somebody_has_enough && !c.has_enough();
    let now = |c: &Counted<'_>| if held_back(c) { 0 } else { c.capacity() };
    let capacity = |(tier, members): (&RecipeTier, Vec<Counted<'_>>)| TierCapacity {
        healthy_percent: u128::from(tier.healthy_percent.clamp(1, 100)),
        members: members.iter().map(|c| c.member(now(c))).collect(),
    };
    counted.into_iter().map(capacity).collect()
}

/// When nobody can serve: those that wait for their ramp do, so that caution never costs a request;
/// and when an agent found others gone, those that are out of health but that it still reaches.
fn call_in_reserves(counted: &mut [(&RecipeTier, Vec<Counted<'_>>)], faults: &Faults) {
    let somebody_serves = |counted: &[(&RecipeTier, Vec<Counted<'_>>)]| {
        counted.iter().flat_map(|(_, members)| members).any(|c| c.capacity() > 0)
    };
    if somebody_serves(counted) {
        return;
    }
    for waiting in counted.iter_mut().flat_map(|(_, m)| m).filter(|c| c.ramp_percent == 0) {
        waiting.ramp_percent = 100;
    }
    if somebody_serves(counted) || faults.is_empty() {
        return;
    }
    // Of a drained one nothing is expected, so it is not called.
    for out in counted.iter_mut().flat_map(|(_, m)| m) {
        out.standing = Standing::Able;
    }
}

fn counted<'a>(tier: &'a RecipeTier, service: &NsName, faults: &Faults) -> Vec<Counted<'a>> {
    tier.candidates.iter().map(|c| Counted::read(c, tier, service, faults)).collect()
}

/// The members' parts; empty when nobody can serve.
pub(crate) fn spill(tiers: &[TierCapacity]) -> Parts {
    let mut rest = ONE;
    let mut takes = Vec::with_capacity(tiers.len());
    for tier in tiers {
        let take = tier.can_take().min(rest);
        rest -= take;
        takes.push(take);
    }
    let taken = ONE - rest;
    let mut parts = Parts::new();
    for (tier, take) in tiers.iter().zip(takes) {
        if take == 0 {
            continue;
        }
        // Scaled up before it is split, so that small parts do not vanish in the rounding.
        let take = take * ONE / taken;
        let now = tier.now();
        for member in &tier.members {
            *parts.entry(member.slot).or_default() += take * member.now / now;
        }
    }
    parts
}

/// The parts if every member were healthy, for a share that has to fail somewhere; empty when there
/// is no slot for it. Healthy, the first tier takes everything.
pub(crate) fn as_if_healthy(tiers: &[TierCapacity]) -> Parts {
    let able = |m: &MemberCapacity| m.standing == Standing::Able;
    let first_tier = |base: &dyn Fn(&MemberCapacity) -> u128| {
        let mut of_tiers = tiers.iter().map(|tier| tier.parts(base));
        of_tiers.find(|parts| !parts.is_empty())
    };
    first_tier(&|m| if able(m) { m.base } else { 0 })
        .or_else(|| first_tier(&|m| m.base))
        .or_else(|| first_tier(&|m| if able(m) { m.base_if_expected } else { 0 }))
        .unwrap_or_default()
}

impl TierCapacity {
    fn parts(&self, base: &dyn Fn(&MemberCapacity) -> u128) -> Parts {
        let mut parts = Parts::new();
        for member in self.members.iter().filter(|m| base(m) > 0) {
            *parts.entry(member.slot).or_default() += base(member);
        }
        parts
    }

    fn now(&self) -> u128 {
        self.members.iter().map(|m| m.now).sum()
    }

    /// The share of everything that the tier can take, in units of `ONE`; may be more than `ONE`.
    fn can_take(&self) -> u128 {
        let now = self.now();
        if now == 0 {
            return 0;
        }
        // Per cent of the ramp above, per cent of the threshold below.
        let base = self.members.iter().map(|m| m.base).sum::<u128>() * ONE * self.healthy_percent;
        (now * ONE / base).max(1)
    }
}

/// A candidate with the counts that hold for it now.
struct Counted<'a> {
    candidate: &'a Candidate,
    tier: &'a RecipeTier,
    standing: Standing,
    ready: u32,
    expected: u32,
    ramp_percent: u8,
    unreachable: bool,
}

impl<'a> Counted<'a> {
    fn read(
        candidate: &'a Candidate,
        tier: &'a RecipeTier,
        service: &NsName,
        faults: &Faults,
    ) -> Self {
        let member = &candidate.member;
        let newer = faults.counts.get(member).and_then(|services| services.get(service));
        let ready = newer.map_or(candidate.ready, |counts| counts.ready);
        let ramp = faults.ramps.get(member).copied().unwrap_or(candidate.ramp_percent);
        Self {
            candidate,
            tier,
            standing: candidate.standing,
            ready,
            expected: candidate.expected.max(ready),
            ramp_percent: ramp.min(100),
            unreachable: faults.unreachable.contains(member),
        }
    }

    fn has_enough(&self) -> bool {
        self.ready >= self.tier.endpoints_min
    }

    fn member(&self, now: u128) -> MemberCapacity {
        MemberCapacity {
            slot: self.candidate.slot,
            standing: self.candidate.standing,
            base: self.base(),
            base_if_expected: self.base_if_expected(),
            now,
        }
    }

    fn base_if_expected(&self) -> u128 {
        match self.tier.split {
            Split::Endpoints => u128::from(self.expected.max(1)),
            Split::Equal => 1,
            Split::Weights => u128::from(self.candidate.weight),
        }
    }

    fn base(&self) -> u128 {
        if self.expected == 0 { 0 } else { self.base_if_expected() }
    }

    /// At least 1 when anything is ready: `ONE` is no smaller than the largest `expected`.
    fn capacity(&self) -> u128 {
        if self.expected == 0 || self.unreachable || self.standing == Standing::Out {
            return 0;
        }
        // One division, last, so that a split by endpoints is exact.
        let whole = self.base() * u128::from(self.ready) * ONE * u128::from(self.ramp_percent);
        whole / u128::from(self.expected)
    }
}
