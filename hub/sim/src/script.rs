//! Runs written down: a fleet and what goes wrong in it, in words. A seed that failed once, or a case
//! that matters, is kept as a script with what happened in it beside it.
//!
//! ```text
//! seed 7                              dice of the network; without members: the whole run of that seed
//! member east r0 s0=3                 region (- = none), endpoints by service
//! route r0 s0=80 s1=20 after=2 ramp=4 backends; further words: equal, manual, fail
//! 1-9 killed east                     from second 1 to 9 of a fleet at rest
//! 20- drained west                    for good
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::MemberId;
use fairlead_model::policy::{Failback, FailbackMode, GlobalRoute, Spread};
use fairlead_model::recipe::WhenUnavailable;

use crate::bug::Bug;
use crate::fault::{Fault, parse};
use crate::rng::Rng;
use crate::run::{Keep, Outcome, START_MS, come_to_rest, run, unrest};
use crate::setup::{MemberSetup, Setup, all_equal, route, service_named};
use crate::world::World;

/// Members of a script: as many as there are names for in a random fleet.
const MEMBERS_MAX: usize = 6;
/// How long the hub waits for members after its start.
const GRACE_MS: u64 = 3_000;

#[derive(Debug, Default)]
struct Script {
    seed: u64,
    members: Vec<MemberSetup>,
    routes: Vec<Arc<GlobalRoute>>,
    /// From, until, in milliseconds of a fleet at rest, and the words.
    faults: Vec<(u64, Option<u64>, String)>,
}

/// Plays a script; what happened, a line for each thing and for how it ended.
///
/// # Errors
/// A text that says what has no meaning.
pub fn play(text: &str) -> Result<String, String> {
    let script = read(text)?;
    let outcome = if script.members.is_empty() {
        run(script.seed, Bug::None, Keep::Log)
    } else {
        play_fleet(script)?
    };
    let mut lines = outcome.log;
    lines.push(match outcome.violation {
        None => format!("at rest {} ms after the last fault", outcome.rest_ms),
        Some(violation) => format!("WRONG at {} ms: {}", violation.at, violation.text),
    });
    Ok(lines.join("\n") + "\n")
}

fn play_fleet(script: Script) -> Result<Outcome, String> {
    let setup = Setup { members: script.members, routes: script.routes, grace_ms: GRACE_MS };
    let names = setup.names();
    let read = |(from, until, words): (u64, Option<u64>, String)| {
        parse(&words, &names).map(|fault| (from, until, fault))
    };
    let faults: Vec<(u64, Option<u64>, Fault)> =
        script.faults.into_iter().map(read).collect::<Result<_, _>>()?;
    let mut world = World::new(setup, Rng::new(script.seed), Bug::None);
    world.run(START_MS);
    if let Some(why) = unrest(&world) {
        return Err(format!("the fleet did not start: {why}"));
    }
    world.log = Some(Vec::new());
    world.keep_store();
    let stop =
        START_MS + faults.iter().map(|(from, until, _)| until.unwrap_or(*from)).max().unwrap_or(0);
    for (number, (from, until, fault)) in (0..).zip(faults) {
        world.schedule(number, fault, START_MS + from, until.map(|until| START_MS + until));
    }
    world.run(stop);
    world.set_quiet(Some(stop));
    let rest_ms = come_to_rest(&mut world, stop);
    Ok(Outcome {
        violation: world.checker.violation.take(),
        ms: world.now,
        rest_ms,
        log: world.log.take().unwrap_or_default(),
    })
}

fn read(text: &str) -> Result<Script, String> {
    let mut script = Script::default();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        read_line(&mut script, line).map_err(|error| format!("{line:?}: {error}"))?;
    }
    if script.members.len() > MEMBERS_MAX {
        return Err(format!("more than {MEMBERS_MAX} members"));
    }
    script.members.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(script)
}

fn read_line(script: &mut Script, line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    match words.next() {
        None => {}
        Some("seed") => script.seed = number(words.next().unwrap_or_default())?,
        Some("member") => script.members.push(read_member(words)?),
        Some("route") => script.routes.push(Arc::new(read_route(words)?)),
        Some(when) => {
            let (from, until) = when.split_once('-').ok_or("neither a word nor a time")?;
            let until = (!until.is_empty()).then(|| milliseconds(until)).transpose()?;
            let fault = words.collect::<Vec<_>>().join(" ");
            script.faults.push((milliseconds(from)?, until, fault));
        }
    }
    Ok(())
}

fn read_member<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<MemberSetup, String> {
    let id = words.next().ok_or("a member without a name")?;
    let region = words.next().ok_or("a member without a region")?;
    let mut services = BTreeMap::new();
    for word in words {
        let (service, endpoints) = word.split_once('=').ok_or("a service without endpoints")?;
        services.insert(service_named(service), number(endpoints)?);
    }
    let id = MemberId::new(id).map_err(|error| error.to_string())?;
    Ok(MemberSetup { id, region: (region != "-").then(|| region.to_owned()), services })
}

fn read_route<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<GlobalRoute, String> {
    let name = words.next().ok_or("a route without a name")?;
    let mut spread = Spread {
        failback: Failback { mode: FailbackMode::Auto, after_s: 1, ramp_s: 0 },
        ..Spread::default()
    };
    let mut backends = Vec::new();
    for word in words {
        match word.split_once('=') {
            None if word == "equal" => spread.tiers = all_equal(),
            None if word == "manual" => spread.failback.mode = FailbackMode::Manual,
            None if word == "fail" => spread.when_unavailable = WhenUnavailable::Fail,
            None => return Err(format!("{word:?} has no meaning")),
            Some(("after", seconds)) => spread.failback.after_s = number(seconds)?,
            Some(("ramp", seconds)) => spread.failback.ramp_s = number(seconds)?,
            Some((service, weight)) => backends.push((service_named(service), number(weight)?)),
        }
    }
    Ok(route(name, &backends, spread))
}

fn number<N: std::str::FromStr>(word: &str) -> Result<N, String> {
    word.parse().map_err(|_| format!("{word:?} is no number"))
}

/// Seconds with up to three places, as milliseconds.
fn milliseconds(word: &str) -> Result<u64, String> {
    let (whole, rest) = word.split_once('.').unwrap_or((word, ""));
    if rest.len() > 3 {
        return Err(format!("{word:?} is finer than a millisecond"));
    }
    Ok(1_000 * number::<u64>(whole)? + number::<u64>(&format!("{rest:0<3}"))?)
}
