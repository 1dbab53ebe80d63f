//! What a fleet costs at rest, as docs/OPERATING.md says it, from the constants of the code.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use fairlead_agent_core::probe::PERIOD_MS;
use fairlead_agent_core::readiness::ASK_WAIT_MS;
use fairlead_hub_core::session::HEARTBEAT_MS;
use fairlead_planner::witness::WITNESSES_MAX;

/// A question at a door and its answer over a kept connection, with TLS and TCP.
const ASK_BYTES: u64 = 600;
/// A heartbeat with HTTP/2, TLS and TCP.
const HEARTBEAT_BYTES: u64 = 100;

/// A fleet: members, and how many others each of them uses.
const FLEETS: [(u64, u64); 2] = [(3, 2), (1_000, 16)];

/// Doors that one agent probes: those it uses, and on average as many as each member has witnesses,
/// where it does not use those anyway.
fn doors(members: u64, peers: u64) -> u64 {
    (peers + WITNESSES_MAX as u64).min(members - 1)
}

fn row(name: &str, figure: impl Fn(u64, u64) -> u64) -> String {
    let figures = FLEETS.map(|(members, peers)| thousands(figure(members, peers)));
    format!("| {name} | {} | {} |", figures[0], figures[1])
}

/// 1234567 as people write it: 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn the_arithmetic_of_the_documents_is_that_of_the_code() {
    let per_second = |period_ms: u64| 1_000 / period_ms;
    let probes = per_second(PERIOD_MS);
    let rows = [
        row("probes of one agent", |members, peers| doors(members, peers) * probes),
        row("probes in the whole fleet", |members, peers| members * doors(members, peers) * probes),
        row("questions for counts of one agent", |_, peers| peers * 1_000 / ASK_WAIT_MS),
        row("bytes of one agent, both of these", |members, peers| {
            (doors(members, peers) * probes + peers * 1_000 / ASK_WAIT_MS) * ASK_BYTES
        }),
        row("heartbeats at the hub, both ways", |members, _| members * 2 * 1_000 / HEARTBEAT_MS),
        row("bytes of heartbeats at the hub", |members, _| {
            members * 2 * 1_000 / HEARTBEAT_MS * HEARTBEAT_BYTES
        }),
    ];
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/OPERATING.md");
    let text = fs::read_to_string(file).unwrap();
    let missing: Vec<&String> = rows.iter().filter(|row| !text.contains(*row)).collect();
    assert!(missing.is_empty(), "docs/OPERATING.md lacks {missing:#?}");
}
