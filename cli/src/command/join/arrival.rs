//! What becomes of an agent that was installed: it joins, is refused, or keeps silent.
//!
//! Owns the wait, and what a person is told to do after each way in which it can go wrong. The hub is not
//! asked: what it thinks reaches us through the agent.

use std::time::Duration;

use fairlead_crds::keys;
use fairlead_model::Reason;

use super::JoinArgs;
use crate::agent_state::{AgentState, Phase};
use crate::cluster::{Cluster, config_map};
use crate::command::status::next_step;
use crate::failure::Failure;
use crate::install::{self, step};
use crate::output;
use crate::progress::Steps;

const ASK_EVERY: Duration = Duration::from_millis(500);

/// Waits until the agent has joined, or says why not.
pub(super) async fn wait(
    cluster: &Cluster,
    home: &str,
    args: &JoinArgs,
    steps: Steps,
) -> Result<(), Failure> {
    let mut waiting = steps.wait(AgentState::default().awaited());
    let mut seen = Phase::Silent;
    let mut last = AgentState::default().awaited();
    let asking = async {
        loop {
            let map = cluster.get(&config_map(), home, install::CONFIG_MAP_STATE).await?;
            let state = AgentState::read(map.as_ref());
            if state.refuses(args.token.id()) {
                return Err(refused(&state, args));
            }
            if state.phase != seen && matches!(state.phase, Phase::Connected | Phase::Applied) {
                seen = state.phase;
            }
            if state.is_joined() {
                return Ok(());
            }
            last = state.awaited();
            if state.phase == Phase::Silent
                && let Some(trouble) = step::pod_trouble(cluster, home, keys::AGENT).await
            {
                last = trouble;
            }
            waiting.show(&last);
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let ended = tokio::time::timeout(args.timeout, asking).await;
    drop(waiting);
    match ended {
        Ok(Ok(())) => {
            steps.done("certificate received, connected to the hub");
            steps.done("first plan applied");
            output::print(&format!("{} joined {}", args.member, args.hub));
            Ok(())
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(timed_out(home, args, seen, &last)),
    }
}

fn timed_out(home: &str, args: &JoinArgs, seen: Phase, last: &str) -> Failure {
    let logs = format!("`kubectl -n {home} logs deployment/{}`", keys::AGENT);
    let next = match seen {
        Phase::Connected | Phase::Applied => {
            format!("it is connected: see `fairlead status` at the hub, and {logs}")
        }
        _ => format!(
            "check that pods of this cluster reach {} (TLS passed through), then see {logs}; running \
             this again goes on from here while the token lives",
            args.hub
        ),
    };
    let what = format!("the agent of {} was installed but has not joined", args.member);
    Failure::timed_out(what, format!("after {}: {last}", output::span(millis(args.timeout))))
        .next(next)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refused(state: &AgentState, args: &JoinArgs) -> Failure {
    let what = format!("the hub refused to let {} join", args.member);
    Failure::failed(what, state.words()).next(what_to_do(&state.reason, args))
}

/// What to do about a refusal, by its reason.
fn what_to_do(reason: &str, args: &JoinArgs) -> String {
    let member = &args.member;
    let again =
        format!("`fairlead token create --member {member}` at the hub, and run the new line");
    let reason = Reason::ALL.iter().copied().find(|known| known.as_str() == reason);
    match reason {
        Some(Reason::TokenUnknown | Reason::TokenUsed | Reason::TokenExpired) => {
            format!("make a new token: {again}")
        }
        Some(Reason::NameTaken) => format!(
            "choose another name: run `fairlead token create` without --member or with another one at \
             the hub; if the old cluster {member} is gone for good, delete MemberCluster {member} in the \
             hub first"
        ),
        Some(Reason::ClusterJoinedAlready) => {
            "run `fairlead leave` with this kubeconfig, delete its old MemberCluster in the hub, and \
             join again"
                .into()
        }
        Some(Reason::WrongIdentity) => format!(
            "either the token is for another name, or --ca-hash is not that of the hub at {}: {again}",
            args.hub
        ),
        Some(Reason::ClockSkew) => {
            "set the clocks of both clusters' nodes (NTP), then run this again".into()
        }
        Some(Reason::VersionUnsupported) => {
            "use a fairlead of the hub's version, at most one minor apart".into()
        }
        Some(Reason::MemberRemoved) => format!("run `fairlead leave`, then join again: {again}"),
        Some(other) => next_step(other).map_or_else(|| again.clone(), str::to_owned),
        None => format!(
            "check --hub and --ca-hash against a fresh line: {again}; the agent's log says more"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mk_args;
    use super::*;

    #[test]
    fn every_refusal_of_a_join_says_what_to_do() {
        let args = mk_args();
        for reason in [
            "TokenUnknown",
            "TokenUsed",
            "TokenExpired",
            "NameTaken",
            "ClusterJoinedAlready",
            "WrongIdentity",
            "ClockSkew",
            "VersionUnsupported",
            "MemberRemoved",
            "Unheard",
            "",
        ] {
            assert!(!what_to_do(reason, &args).is_empty(), "{reason}");
        }
        assert!(what_to_do("NameTaken", &args).contains("choose another name"));
        assert!(what_to_do("TokenExpired", &args).contains("fairlead token create --member east"));
    }
}
