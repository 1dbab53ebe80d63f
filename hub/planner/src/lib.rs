//! The pure planner: fleet input in, decisions, plans, report and memory out.
//!
//! Owns the question *where does which traffic go*, from eligibility to complete plans for every
//! member. Never reads a clock, does I/O, logs or rolls dice: time and the memory of before are
//! inputs, and [`Planned::wake_at`] tells the driver when time alone will change the answer. Never
//! fails: what makes no sense is left out, as small as possible, and the [`Report`] says why.
//!
//! ```text
//! FleetInput ─▶ rollout ─▶ stability ─▶ doors ─▶ failback ─▶ eligibility ─┐   gateways ─┐
//!               (edits)     (counts)     (peers)  (ramps)                  ├▶ tiers ─▶ slots ─▶ weights ─▶ check ─▶ zones ─▶ plans
//!               memory of before ──────────────────────────────┴──────────────────────────────▲
//! ```
//!
//! A member without a snapshot, or whose cluster is unknown, is **absent** from `plans`: the driver
//! sends it nothing, so that it keeps what it has. Absence of news is not proof.

mod check;
mod doors;
mod eligibility;
mod explain;
mod failback;
mod fleet;
mod gateways;
mod input;
mod memory;
mod mirrors;
mod names;
mod plans;
mod publish;
mod report;
mod rollout;
mod routes;
mod slots;
mod stability;
mod tiers;
mod weights;
pub mod witness;
mod zones;

#[cfg(test)]
extern crate self as fairlead_planner;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
#[path = "../tests/fixture/mod.rs"]
mod fixture;

pub use explain::{backend_name, explain};
pub use failback::STEPS;
pub use input::{FleetInput, Freeze, MemberInput, Planned, Settings};
pub use memory::{Absence, Absences, CountMemory, DnsMemory, DoorMemory, InUse, Memory};
pub use report::{Answer, DnsReport, Place, Ramp, Report, RouteReport, Verdict, Verdicts};
pub use rollout::{
    Observed, Rollout, RolloutInput, RolloutSettings, SETTLED_AFTER_MS, Stage, Taken, Unheard,
};

/// Decides everything anew.
pub fn plan(input: &FleetInput) -> Planned {
    let mut report = Report::default();
    let rollout = rollout::settle(input);
    let counts = stability::settle(input);
    let doors = doors::examine(input, &mut report);
    let mut fleet = fleet::Fleet::gather(input, &counts.in_use, &doors.doors);
    fleet.failbacks = failback::settle(input.now, &input.policy, &fleet.members, &input.memory);
    fleet.policy = &rollout.policy;
    fleet.report_members(&mut report);
    let gateways = gateways::assign(&fleet, &mut report);
    let mut decided = routes::decide(&fleet, &gateways, &mut report);
    rollout.try_out(&fleet, &gateways, &mut decided, &mut report);
    let check::Guarded { decisions, brake } =
        check::guard(&fleet, decided, &input.memory, &mut report);
    let dns = zones::assemble(&fleet, &gateways, &decisions, &input.memory.dns, &mut report);
    let plans = plans::assemble(&fleet, &gateways, &decisions, &dns);
    let times = [counts.wake_at, fleet.wake_at(), fleet.failbacks.wake_at, rollout.wake_at];
    let wake_at = times.into_iter().flatten().min();
    let absences = match brake {
        check::Brake::Off => fleet.failbacks.members,
        check::Brake::On => {
            failback::without_new_absences(fleet.failbacks.members, &input.memory.absences)
        }
    };
    let memory = Memory {
        counts: counts.memory,
        doors: doors.memory,
        address_holders: doors.address_holders,
        absences,
        decisions: decisions.clone(),
        rollouts: rollout.memory,
        dns: dns.memory,
    };
    Planned { decisions, plans, report, memory, wake_at }
}
