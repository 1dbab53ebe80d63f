//! One seed from start to rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::MemberId;
use fairlead_model::health::{MemberHealth, MemberState};
use fairlead_model::policy::FailbackMode;
use fairlead_planner::{FleetInput, MemberInput, plan};

use crate::bug::Bug;
use crate::bundle::{LiveRule, read_rules, render, route_id};
use crate::check::Violation;
use crate::fault::{Fault, Lie, Node};
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::{World, show};

/// Everything has been switched on and has come to rest by then.
const START_MS: u64 = 15_000;
/// A fleet comes to rest within that time after the last fault: the longest silence, dial, wait
/// between dials and grace, then a failback from start to end.
const REST_MS_MAX: u64 = 150_000;
/// When a person asks for what comes back by hand only.
const ASK_AFTER_MS: u64 = 45_000;
/// A fleet at rest stays so for that long.
const PEACE_MS: u64 = 12_000;
/// How often it is looked at.
const LOOK_MS: u64 = 500;

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What was wrong, if something was.
    pub violation: Option<Violation>,
    /// Virtual milliseconds.
    pub ms: u64,
    /// Virtual milliseconds from the last fault to rest.
    pub rest_ms: u64,
    /// What happened, if it was to be kept.
    pub log: Vec<String>,
}

/// Whether to keep what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// A line for each thing.
    Log,
}

/// Runs a seed.
pub fn run(seed: u64, bug: Bug, keep: Keep) -> Outcome {
    let mut rng = Rng::new(seed);
    let setup = Setup::random(&mut rng);
    let mut world = World::new(setup, Rng::new(rng.any()), bug);
    if keep == Keep::Log {
        world.log = Some(Vec::new());
    }
    let rest_ms = play(&mut world, &mut rng);
    Outcome {
        violation: world.checker.violation.take(),
        ms: world.now,
        rest_ms,
        log: world.log.take().unwrap_or_default(),
    }
}

fn play(world: &mut World, rng: &mut Rng) -> u64 {
    world.run(START_MS);
    if let Some(why) = unrest(world) {
        violate(world, format!("the fleet did not start: {why}"));
        return 0;
    }
    world.keep_store();
    let stop = START_MS + rng.range(10_000, 45_000);
    let count = u32::try_from(rng.range(1, 8)).expect("small");
    for number in 0..count {
        let (fault, stays) = random_fault(&world.setup, rng);
        let from = rng.range(START_MS, stop - 1_000);
        let length = match rng.below(3) {
            0 => rng.range(100, 2_000),
            1 => rng.range(2_000, 12_000),
            _ => rng.range(12_000, 45_000),
        };
        let until = (!stays).then(|| (from + length).min(stop));
        world.schedule(number, fault, from, until);
    }
    world.run(stop);
    world.set_quiet(Some(stop));
    ask_for_failback(world, stop);
    come_to_rest(world, stop)
}

/// What comes back by hand only waits for a person.
fn ask_for_failback(world: &mut World, stop: u64) {
    let by_hand =
        |rule: &fairlead_model::policy::Rule| rule.spread.failback.mode == FailbackMode::Manual;
    if world.setup.routes.iter().flat_map(|route| &route.rules).any(by_hand) {
        for m in 0..world.setup.members.len() {
            let number = 1_000 + u32::try_from(m).expect("small");
            world.schedule(number, Fault::Failback(m), stop + ASK_AFTER_MS, None);
        }
    }
}

/// Runs until the fleet is as a fleet without faults would be, and stays so.
pub fn come_to_rest(world: &mut World, stop: u64) -> u64 {
    let mut rest_at = None;
    while world.checker.violation.is_none() {
        world.run(world.now + LOOK_MS);
        let why = unrest(world);
        match (why, rest_at) {
            (None, None) => rest_at = Some(world.now),
            (None, Some(since)) if world.now - since >= PEACE_MS => return since - stop,
            (None, Some(_)) => {}
            (Some(_), Some(_)) => rest_at = None,
            (Some(why), None) if world.now - stop > REST_MS_MAX => {
                violate(world, format!("the fleet did not come to rest: {why}"));
            }
            (Some(_), None) => {}
        }
    }
    0
}

fn violate(world: &mut World, text: String) {
    let at = world.now;
    world.checker.violation.get_or_insert(Violation { at, text });
}

/// What is not as in a fleet without faults; none = it is at rest.
pub fn unrest(world: &World) -> Option<String> {
    let expected = expected(world);
    for (m, member) in world.setup.members.iter().enumerate() {
        if world.faults.is_removed(m) {
            continue;
        }
        let agent = world.agents[m].as_ref();
        if !agent.is_some_and(|agent| agent.session.is_open() && agent.session.is_current()) {
            return Some(format!("{} does not talk to the hub", member.id));
        }
        for route in &world.setup.routes {
            let live = world.clusters[m].rules(&route.key);
            let want = expected.get(&(m, route.key.to_string())).map_or(&[][..], Vec::as_slice);
            if live != want {
                let (live, want) = (show(live), show(want));
                return Some(format!(
                    "{} has {}: {live}; it should be {want}",
                    member.id, route.key
                ));
            }
        }
    }
    let held = world.hubs[0].as_ref().map(|hub| hub.held.clone()).unwrap_or_default();
    held.first().map(|note| format!("the hub holds: {note}"))
}

/// What every member should hold, from the truth and without a past.
fn expected(world: &World) -> BTreeMap<(usize, String), Vec<LiveRule>> {
    let policy = world.setup.policy(&world.faults);
    let member = |(m, member): (usize, &crate::setup::MemberSetup)| -> (MemberId, MemberInput) {
        let snapshot = Some(Arc::new(world.setup.snapshot(m, &world.faults)));
        let health = MemberHealth { state: MemberState::Up, ..MemberHealth::default() };
        let now = world.clock(0);
        (member.id.clone(), MemberInput { snapshot, received_at: now, health })
    };
    let planned = plan(&FleetInput {
        now: world.clock(0),
        policy: Arc::new(policy),
        members: world.setup.members.iter().enumerate().map(member).collect(),
        ..FleetInput::default()
    });
    let mut expected = BTreeMap::new();
    for (id, plan) in &planned.plans {
        let bundle = render(plan);
        let Some(m) = world.setup.index(id) else { continue };
        for key in plan.routes.keys() {
            let rules = bundle.objects.get(&route_id(key)).map(|o| read_rules(&o.content));
            expected.insert((m, key.to_string()), rules.unwrap_or_default());
        }
    }
    expected
}

/// A fault, and whether it stays.
fn random_fault(setup: &Setup, rng: &mut Rng) -> (Fault, bool) {
    let count = setup.members.len();
    let m = rng.index(count);
    let other = (m + 1 + rng.index(count - 1)) % count;
    let (a, b) = (Node::Member(m), Node::Member(other));
    let service = crate::setup::service_name(rng.below(setup.routes.len() as u64));
    let to_hub = rng.percent(40);
    let end = if to_hub { Node::Hub } else { b };
    let fault = match rng.below(32) {
        0 | 1 => Fault::Killed(m),
        2 | 3 => Fault::Blackholed(m),
        4 => Fault::AgentDown(m),
        5 => Fault::ApiDown(m),
        6 | 7 => Fault::GatewayDown(m),
        8 | 9 => Fault::Gone(m, service),
        10 => Fault::OneWay(a, end),
        11 => Fault::OneWay(end, a),
        12 | 13 => Fault::Cut(a, end),
        14 | 15 => Fault::Split(random_side(count, rng)),
        16 => Fault::AgentCut(m),
        17 | 18 => Fault::HubDown,
        19 => Fault::StoreDown,
        20 => Fault::StoreOld,
        21 => Fault::SecondHub,
        22 => Fault::Loss(rng.range(1, 30)),
        23 => Fault::Delay(a, end, rng.range(20, 400)),
        24 => Fault::Mangled,
        25 => Fault::Slow(m),
        26 => Fault::Lies(
            m,
            rng.pick(&[Lie::NobodyAnswers, Lie::EverybodyAnswers, Lie::ForeignAddress]),
        ),
        27 => return (Fault::Drained(m), rng.percent(40)),
        28 => return (Fault::Refused(m, service), rng.percent(40)),
        29 => return (Fault::Unexported(m, service), rng.percent(40)),
        30 => return (Fault::Removed(m), rng.percent(20)),
        _ => {
            let to = u32::try_from(rng.range(1, 6)).expect("small");
            return (Fault::Scaled(m, service, to), rng.percent(40));
        }
    };
    (fault, false)
}

fn random_side(count: usize, rng: &mut Rng) -> Vec<Node> {
    let nodes = (0..count).map(Node::Member).chain([Node::Hub]);
    let mut side: Vec<Node> = nodes.filter(|_| rng.percent(50)).collect();
    if side.is_empty() {
        side.push(Node::Hub);
    }
    side
}
