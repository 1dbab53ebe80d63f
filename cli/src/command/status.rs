//! `fairlead status`: how hub and members are in a few lines, the worst first, each with a next step.

use clap::Args;
use fairlead_model::health::MemberState;
use fairlead_model::history::HistorySize;
use fairlead_model::view::{MemberView, StatusView};
use fairlead_model::{Note, Reason};

use crate::args::Connection;
use crate::cluster::Cluster;
use crate::command::get::plan_of;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, age, count};

/// Problems that are shown; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 10;

const AFTER_HELP: &str = "\
EXAMPLES
  fairlead status
  fairlead status -o json | jq '.members[] | select(.state != \"Up\") | .member'

A problem does not change the exit code: scripts look at -o json.";

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct StatusArgs {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the summary.
pub(crate) async fn run(connection: &Connection, args: &StatusArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let status = HubApi::new(&cluster, &connection.namespace).status().await?;
    output::show(args.output, &status, || summary(&status));
    Ok(())
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    severity: Severity,
    subject: String,
    text: String,
    next: Option<&'static str>,
}

/// How bad it is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// Traffic is affected, or nothing can change.
    Bad,
    /// Degraded; traffic flows.
    Odd,
    /// Something was left out.
    Note,
}

fn summary(status: &StatusView) -> String {
    let planning = match (status.held.is_empty(), &status.frozen) {
        (false, _) => "not planning",
        (true, Some(_)) => "frozen",
        (true, None) => "planning",
    };
    let mut lines = vec![
        format!(
            "Hub       {}, up for {}, {planning}",
            status.hub_version,
            age(status.now, status.started_at)
        ),
        format!("Members   {}", members_line(&status.members)),
        format!("Gateways  {} global", status.gateways),
        format!("Routes    {} global", status.routes),
    ];
    lines.extend(status.history.as_ref().map(history_line));
    lines.push(String::new());
    lines.extend(problem_lines(&problems(status)));
    lines.join("\n")
}

fn history_line(size: &HistorySize) -> String {
    let kib = |bytes: usize| bytes.div_ceil(1 << 10);
    format!(
        "History   revision {}, {} of at most {} kept since {}, {} of {} KiB",
        size.newest,
        count(size.entries, "change"),
        size.entries_max,
        size.oldest,
        kib(size.bytes),
        kib(size.bytes_max)
    )
}

fn members_line(members: &[MemberView]) -> String {
    if members.is_empty() {
        return "none; `fairlead token create` prints the line that joins one".into();
    }
    let states = [
        MemberState::Up,
        MemberState::Suspect,
        MemberState::Recovering,
        MemberState::AgentLost,
        MemberState::Down,
        MemberState::Joined,
    ];
    let by_state = states.into_iter().filter_map(|state| {
        let n = members.iter().filter(|m| m.state == state).count();
        (n > 0).then(|| format!("{n} {state:?}"))
    });
    format!("{}: {}", members.len(), by_state.collect::<Vec<_>>().join(", "))
}

fn problem_lines(problems: &[Problem]) -> Vec<String> {
    if problems.is_empty() {
        return vec!["All is well.".into()];
    }
    let mut lines = vec![format!("{}, the worst first:", count(problems.len(), "problem"))];
    for problem in problems.iter().take(PROBLEMS_SHOWN_MAX) {
        lines.push(format!("  {}: {}", problem.subject, problem.text));
        lines.extend(problem.next.map(|next| format!("    next: {next}")));
    }
    if problems.len() > PROBLEMS_SHOWN_MAX {
        lines.push(format!("  and {} more; see -o json", problems.len() - PROBLEMS_SHOWN_MAX));
    }
    lines
}

fn problems(status: &StatusView) -> Vec<Problem> {
    let of_note = |severity: Severity, note: &Note| Problem {
        severity,
        subject: note.subject.clone(),
        text: format!("{}: {}", note.reason, sentence(note.reason, &note.message)),
        next: next_step(note.reason),
    };
    let mut problems: Vec<Problem> =
        status.held.iter().chain(&status.frozen).map(|n| of_note(Severity::Bad, n)).collect();
    problems.extend(status.notes.iter().map(|note| of_note(Severity::Note, note)));
    for member in &status.members {
        problems.extend(state_problem(status, member));
        problems.extend(plan_problem(member));
        problems.extend(member.notes.iter().map(|note| of_note(Severity::Odd, note)));
        problems.extend(overlay_problem(member));
    }
    problems.sort();
    problems.dedup();
    problems
}

fn sentence(reason: Reason, message: &str) -> String {
    if message.is_empty() { reason.sentence().to_owned() } else { message.to_owned() }
}

fn state_problem(status: &StatusView, member: &MemberView) -> Option<Problem> {
    let (severity, reason) = match member.state {
        MemberState::Up => return None,
        MemberState::Joined => (Severity::Odd, Reason::NoSnapshot),
        MemberState::Suspect => (Severity::Odd, Reason::Suspect),
        MemberState::Recovering => (Severity::Odd, Reason::Recovering),
        MemberState::AgentLost => (Severity::Odd, Reason::AgentLost),
        MemberState::Down => (Severity::Bad, Reason::Down),
    };
    Some(Problem {
        severity,
        subject: format!("member {}", member.member),
        text: format!(
            "{:?} for {}: {}",
            member.state,
            age(status.now, member.since),
            reason.sentence()
        ),
        next: next_step(reason),
    })
}

fn plan_problem(member: &MemberView) -> Option<Problem> {
    let subject = format!("member {}", member.member);
    if let Some((object, exception)) = member.exceptions.iter().next() {
        let n = count(member.exceptions.len(), "object");
        let text = format!(
            "{n} not as planned, e.g. {object}: {}: {}",
            exception.reason,
            sentence(exception.reason, &exception.message)
        );
        return Some(Problem {
            severity: Severity::Odd,
            subject,
            text,
            next: next_step(exception.reason),
        });
    }
    let behind = plan_of(member);
    let lags = behind != "Applied" && behind != "-" && member.state == MemberState::Up;
    lags.then(|| Problem {
        severity: Severity::Odd,
        subject,
        text: "has not applied its newest plan yet".into(),
        next: Some("wait a moment; if it stays, see the logs of Deployment fairlead-agent there"),
    })
}

fn overlay_problem(member: &MemberView) -> Option<Problem> {
    let out: Vec<String> = member
        .peers
        .iter()
        .filter(|(_, peer)| peer.reach.is_out())
        .map(|(peer, reach)| format!("{peer} ({:?})", reach.reach))
        .collect();
    (!out.is_empty()).then(|| Problem {
        severity: Severity::Bad,
        subject: format!("member {}", member.member),
        text: format!("cannot reach the doors of {}", out.join(", ")),
        next: Some("check the network between them, port 15443, and the gateway behind that door"),
    })
}

/// What a person can do about a reason; none where nothing needs to be done.
pub(crate) fn next_step(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::NoSnapshot => "finish `fairlead join` there, or see Deployment fairlead-agent",
        Reason::AgentLost => "see Deployment fairlead-agent and the API server of that cluster",
        Reason::Down => "look at that cluster; its traffic went to the others",
        Reason::NotExported => "create a ServiceExport beside the Service there",
        Reason::ExportNotAllowed => {
            "allow it in the agent's configuration (exportPolicy, namespaces)"
        }
        Reason::PortNotExported => "use a port of the Service in the route's backendRef",
        Reason::NoReferenceGrant | Reason::RefNotPermitted => {
            "create a ReferenceGrant in the Service's namespace"
        }
        Reason::NoGatewayClass => "set spec.gatewayClassName of the MemberCluster",
        Reason::NoDoorAddress => "see Gateway fairlead-system/fairlead-eastwest there",
        Reason::DoorNotShut | Reason::Withheld => {
            "wait for the agent's knock; see Gateway fairlead-system/fairlead-eastwest there"
        }
        Reason::StrangerLetIn => {
            "find what lets strangers into Gateway fairlead-system/fairlead-eastwest there"
        }
        Reason::AddressConflict => "set spec.eastWest.addresses of the MemberClusters",
        Reason::DoorRefused | Reason::DoorTimedOut => {
            "check the network between them, port 15443, and the gateway behind that door"
        }
        Reason::NoReadyEndpoints | Reason::NothingReadyAnywhere | Reason::BelowMinEndpoints => {
            "look at the pods of the Service"
        }
        Reason::BackendNotFound => "export the Service in a member, or correct the backendRef",
        Reason::NoGateway => {
            "annotate a Gateway there, or set the MemberCluster's gatewayClassName"
        }
        Reason::GatewayNotProgrammed | Reason::NotAcceptedByGateway => {
            "see the status of the Gateway or route in that cluster"
        }
        Reason::NamespaceMissing => "create the namespace there, if the route is meant for it",
        Reason::NameConflict => "rename or remove the foreign object; Fairlead never touches it",
        Reason::FieldUnknown | Reason::KindMissing | Reason::UntestedVersion => {
            "install the Gateway API version that the other members have"
        }
        Reason::Forbidden => "give the agent its RBAC back: run `fairlead join` there again",
        Reason::FleetVanished | Reason::CapacityLoss => {
            "check the hub's own network first; plans go on when members are back"
        }
        Reason::StoreUnavailable => "check the hub's volume: space and permissions",
        Reason::ClockSkew => "set the clocks: NTP on hub and member nodes",
        Reason::TargetNotFound => "correct the policy's targetRefs",
        Reason::Unreadable | Reason::TooLarge | Reason::UnsupportedValue => "correct the object",
        _ => return None,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mk_member(name: &str, state: &str) -> Value {
        json!({"member": name, "region": null, "zone": null, "state": state, "since": 0,
            "traffic": "Active", "agent_version": "0.1.0", "heard_at": 1000,
            "plan_wanted": "1.2", "plan_applied": "1.2", "objects": 3, "exceptions": {},
            "overlay": {}, "peers": {}, "notes": []})
    }

    fn mk_status(members: &[Value]) -> StatusView {
        serde_json::from_value(json!({"hub_version": "0.1.0", "started_at": 0, "held": [],
            "now": 120_000, "members": members, "gateways": 1, "routes": 2, "notes": []}))
        .unwrap()
    }

    #[test]
    fn a_healthy_fleet_is_five_lines() {
        let status = mk_status(&[mk_member("east", "Up"), mk_member("west", "Up")]);
        assert_eq!(
            summary(&status),
            "Hub       0.1.0, up for 2m, planning\n\
             Members   2: 2 Up\n\
             Gateways  1 global\n\
             Routes    2 global\n\
             \n\
             All is well."
        );
    }

    #[test]
    fn the_size_of_the_history_is_a_line() {
        let mut status = mk_status(&[]);
        status.history = Some(HistorySize {
            newest: 42,
            oldest: 7,
            entries: 1,
            entries_max: 100,
            bytes: 1_025,
            bytes_max: 4_096,
        });
        let line = "History   revision 42, 1 change of at most 100 kept since 7, 2 of 4 KiB";
        assert!(summary(&status).contains(line), "{}", summary(&status));
    }

    #[test]
    fn the_worst_comes_first_and_each_has_a_next_step() {
        let mut west = mk_member("west", "Up");
        west["exceptions"] = json!({"v1/Service/a/b":
            {"reason": "NameConflict", "message": "Service a/b is not ours"}});
        let status = mk_status(&[west, mk_member("south", "Down")]);
        let problems = problems(&status);
        assert_eq!(problems[0].subject, "member south");
        assert!(problems.iter().all(|p| p.next.is_some()), "{problems:?}");
        assert!(summary(&status).contains("2 problems"));
    }

    #[test]
    fn a_hub_that_holds_its_plans_says_so_first() {
        let mut status = mk_status(&[]);
        status.held = vec![Note::new("hub", Reason::WaitingForMembers, "1 of 3 members are back")];
        let text = summary(&status);
        assert!(text.contains("not planning") && text.contains("1 of 3 members"), "{text}");
    }

    #[test]
    fn a_frozen_hub_says_so_first() {
        let mut status = mk_status(&[mk_member("east", "AgentLost")]);
        let text = "3 of 5 members were lost at once";
        status.frozen = Some(Note::new("fleet", Reason::FleetVanished, text));
        let text = summary(&status);
        assert!(
            text.contains(", frozen\n") && text.contains("check the hub's own network"),
            "{text}"
        );
    }

    #[test]
    fn only_the_first_problems_are_shown() {
        let members: Vec<Value> = (0..30).map(|n| mk_member(&format!("m{n:02}"), "Down")).collect();
        let text = summary(&mk_status(&members));
        assert!(text.contains("and 20 more"), "{text}");
    }
}
