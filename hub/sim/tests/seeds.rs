//! Seeds: nothing that must never be happens in them, and bugs that are planted on purpose are caught.
//! `cargo verify` and `fairlead-sim` play many more.
#![expect(clippy::panic, reason = "tests")]

use fairlead_sim::bug::Bug;
use fairlead_sim::run::{Keep, run};

/// Few: these runs are for whoever changes a line and wants to know within seconds.
const SEEDS: u64 = 40;
/// A planted bug must show within so many seeds.
const SEEDS_UNTIL_CAUGHT_MAX: u64 = 400;

#[test]
fn nothing_that_must_never_be_happens() {
    for seed in 0..SEEDS {
        let outcome = run(seed, Bug::None, Keep::Nothing);
        if let Some(violation) = outcome.violation {
            let again = format!("cargo run -p fairlead-sim -- --seed {seed}");
            panic!("at {} ms: {}\n    {again}", violation.at, violation.text);
        }
    }
}

#[test]
fn a_seed_is_the_same_run_for_ever() {
    let (first, second) = (run(3, Bug::None, Keep::Log), run(3, Bug::None, Keep::Log));
    assert!(!first.log.is_empty());
    assert_eq!(first.log, second.log);
}

/// Which checker catches it, by the words that it says. The search starts at a seed near one that shows it.
fn caught(bug: Bug, from: u64, says: &str) {
    for seed in from..from + SEEDS_UNTIL_CAUGHT_MAX {
        let Some(violation) = run(seed, bug, Keep::Nothing).violation else { continue };
        assert!(run(seed, Bug::None, Keep::Nothing).violation.is_none(), "seed {seed} alone fails");
        assert!(violation.text.contains(says), "seed {seed}: {}", violation.text);
        return;
    }
    panic!("{bug:?} was not caught");
}

#[test]
fn an_agent_that_takes_old_plans_is_caught() {
    caught(Bug::AcceptOldNumbers, 0, " took plan ");
}

#[test]
fn an_agent_that_never_gives_a_peer_back_is_caught() {
    caught(Bug::OverlayNeverLifts, 0, "did not come to rest");
}

#[test]
fn a_hub_that_plans_before_it_knows_is_caught() {
    caught(Bug::PlanBeforeInventory, 137, " fails all of ");
}

#[test]
fn a_hub_that_ignores_consent_is_caught() {
    caught(Bug::IgnoreConsent, 0, "which must not have it");
}

#[test]
fn an_agent_that_lifts_at_once_is_caught() {
    caught(Bug::LiftAtOnce, 0, "times in ten seconds");
}

#[test]
fn a_hub_that_forgets_a_drain_is_caught() {
    caught(Bug::IgnoreDrain, 0, "which must not have it");
}

#[test]
fn a_hub_that_trusts_addresses_is_caught() {
    caught(Bug::TrustAddresses, 0, " by the address of ");
}
