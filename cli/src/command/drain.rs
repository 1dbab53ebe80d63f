//! `fairlead drain` and `undrain`: leads a member's traffic away, and gives it back.
//!
//! Both change one field of the MemberCluster under the caller's own rights; the hub does the rest.
//! `drain` refuses what would leave a route without enough ready endpoints, unless it is told to go on.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use fairlead_model::view::{BackendExplanation, EntryExplanation, Explanation, MemberShare};
use fairlead_model::{MemberId, Reason};
use serde_json::{Value as Json, json};

use crate::args::Connection;
use crate::cluster::{Cluster, NameIn, member_cluster};
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output;
use crate::progress::Steps;

const ASK_EVERY: Duration = Duration::from_millis(500);
/// Losses that are named in a refusal; the rest is counted.
const NAMED_MAX: usize = 5;

const DRAIN_HELP: &str = "\
Sets spec.trafficState of the MemberCluster to Draining: in five steps over ten seconds its traffic goes
to the others, until no entry sends anything there, its own included. It keeps all its objects. Refused when a backend of a route would keep less than
--keep percent of the endpoints that serve it now.

EXAMPLES
  fairlead drain eu-1 --wait
  fairlead drain eu-1 --over 0s       # at once, not in steps
  fairlead drain eu-1 --standby       # it serves only what no other member can
  fairlead drain eu-1 --force         # even if a service runs nowhere else";

const UNDRAIN_HELP: &str = "\
Sets spec.trafficState of the MemberCluster to Active. Traffic comes back step by step, as `failback`
of the routes' TrafficPolicies says.

EXAMPLES
  fairlead undrain eu-1 --wait";

/// Arguments of `drain`.
#[derive(Debug, Args)]
#[command(after_help = DRAIN_HELP)]
pub(crate) struct DrainArgs {
    /// Name of the member.
    #[arg(value_name = "MEMBER")]
    member: MemberId,
    /// Make it a standby instead: it serves what no other member can.
    #[arg(long)]
    standby: bool,
    /// Go on even if a route is left without enough ready endpoints.
    #[arg(long)]
    force: bool,
    /// Endpoints of each backend that must be left, in percent of those that serve it now.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    keep: u8,
    /// Wait until nothing is sent there any more.
    #[arg(long)]
    wait: bool,
    /// Lead the traffic away over that time, in five steps; 0s is at once. Kept in spec.drainSeconds of
    /// the MemberCluster (10 s unless it says otherwise).
    #[arg(long, value_name = "TIME", value_parser = parse_over, conflicts_with = "standby")]
    over: Option<Duration>,
    /// Longest time to wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_timeout)]
    timeout: Duration,
}

/// Arguments of `undrain`.
#[derive(Debug, Args)]
#[command(after_help = UNDRAIN_HELP)]
pub(crate) struct UndrainArgs {
    /// Name of the member.
    #[arg(value_name = "MEMBER")]
    member: MemberId,
    /// Wait until it has its whole share again.
    #[arg(long)]
    wait: bool,
    /// Longest time to wait.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_timeout)]
    timeout: Duration,
}

fn parse_over(text: &str) -> Result<Duration, String> {
    let over = parse_timeout(text)?;
    let fits = over <= Duration::from_secs(3_600) && over.subsec_nanos() == 0;
    fits.then_some(over).ok_or_else(|| "whole seconds, an hour at most".to_owned())
}

/// Drains.
pub(crate) async fn run(connection: &Connection, args: &DrainArgs) -> Result<(), Failure> {
    let steps = Steps::for_stderr();
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    check_known(&hub, &args.member).await?;
    let lost = losses(&hub, &args.member, args.keep).await?;
    match lost.is_empty() || args.force {
        true => lost.iter().for_each(|loss| steps.warn(loss)),
        false => return Err(refusal(&args.member, &lost)),
    }
    let state = if args.standby { "Standby" } else { "Draining" };
    let mut spec = json!({"trafficState": state});
    if let Some(over) = args.over {
        spec["drainSeconds"] = over.as_secs().into();
    }
    set_state(&cluster, &args.member, spec, steps).await?;
    if args.wait {
        wait_led_away(&hub, (args.member.as_str(), state), args.timeout, steps).await?;
    }
    Ok(())
}

/// Gives traffic back.
pub(crate) async fn run_undrain(
    connection: &Connection,
    args: &UndrainArgs,
) -> Result<(), Failure> {
    let steps = Steps::for_stderr();
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    check_known(&hub, &args.member).await?;
    set_state(&cluster, &args.member, json!({"trafficState": "Active"}), steps).await?;
    if args.wait {
        wait_given_back(&hub, &args.member, args.timeout, steps).await?;
    }
    Ok(())
}

async fn check_known(hub: &HubApi<'_>, member: &MemberId) -> Result<(), Failure> {
    let members = hub.members().await?;
    if members.iter().any(|view| view.member == *member) {
        return Ok(());
    }
    let known = output::list(members.iter().map(|view| &view.member));
    Err(Failure::failed(format!("there is no member {member}"), format!("the hub has {known}"))
        .next("see `fairlead get members`"))
}

async fn set_state(
    cluster: &Cluster,
    member: &MemberId,
    spec: Json,
    steps: Steps,
) -> Result<(), Failure> {
    let name = NameIn { namespace: "", name: member.as_str() };
    let state = spec["trafficState"].as_str().unwrap_or_default().to_owned();
    cluster.merge(&member_cluster(), &name, &json!({"spec": spec})).await?;
    steps.done(format!("MemberCluster {member}: trafficState {state}"));
    Ok(())
}

fn refusal(member: &MemberId, lost: &[String]) -> Failure {
    let more = lost.len().saturating_sub(NAMED_MAX);
    let mut why = lost.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 {
        why.push_str(&format!("; and {more} more"));
    }
    Failure::failed(format!("{member} is not drained"), why).next(
        "start more endpoints in other members, lower --keep, or give --force; \
         see `fairlead explain ROUTE`",
    )
}

/// What would be missing without the member, in words, once for each backend of a route.
async fn losses(hub: &HubApi<'_>, member: &MemberId, keep: u8) -> Result<Vec<String>, Failure> {
    let mut lost = Vec::new();
    for route in hub.routes().await? {
        let explanation = hub.explain(&route.route, None).await?;
        lost.extend(losses_of(&explanation, member, keep));
    }
    Ok(lost)
}

fn losses_of(explanation: &Explanation, member: &MemberId, keep: u8) -> Vec<String> {
    // Entries see the same members; the one that is left with least is told.
    let mut worst: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for entry in explanation.entries.values() {
        let backends = entry.rules.iter().flat_map(|rule| &rule.backends);
        for backend in backends.filter(|backend| takes_part(backend, member)) {
            let now = ready(backend, |_| true);
            let left = ready(backend, |share| share.member != *member);
            if left * 100 < now * u64::from(keep) {
                let known = worst.entry(&backend.backend).or_insert((left, now));
                *known = (left, now).min(*known);
            }
        }
    }
    let say = |(backend, (left, now)): (&str, (u64, u64))| {
        format!("{}: {left} of {now} ready endpoints of {backend} would be left", explanation.route)
    };
    worst.into_iter().map(say).collect()
}

fn takes_part(backend: &BackendExplanation, member: &MemberId) -> bool {
    backend.members.iter().any(|share| share.member == *member && can_take(share))
}

fn ready(backend: &BackendExplanation, of: impl Fn(&MemberShare) -> bool) -> u64 {
    let shares = backend.members.iter().filter(|share| can_take(share) && of(share));
    shares.map(|share| u64::from(share.ready)).sum()
}

/// Whether the member may be given traffic; what is ready elsewhere does not help anybody.
fn can_take(share: &MemberShare) -> bool {
    let is_out = matches!(
        share.reason,
        Reason::Drained
            | Reason::Down
            | Reason::StaleInventory
            | Reason::GatewayNotProgrammed
            | Reason::AwaitingFailback
            | Reason::DoorRefused
            | Reason::DoorTimedOut
    );
    share.tier.is_some() && !is_out
}

/// Waits until no entry sends anything to the member.
pub(crate) async fn wait_led_away(
    hub: &HubApi<'_>,
    (member, state): (&str, &str),
    timeout: Duration,
    steps: Steps,
) -> Result<(), Failure> {
    let what = format!("waiting until nothing is sent to {member}");
    let left = || async {
        let unheard = unheard(hub, member, state).await?;
        if unheard.is_empty() { senders(hub, member).await } else { Ok(unheard) }
    };
    let ended = wait_empty(&what, timeout, steps, left).await;
    match ended? {
        None => {
            steps.done(format!("drained: nothing is sent to {member}"));
            Ok(())
        }
        Some(last) => Err(Failure::timed_out(
            format!("{member} is draining, but traffic is still sent there"),
            format!("by {last}"),
        )
        .next("see `fairlead explain` for these routes")),
    }
}

async fn wait_given_back(
    hub: &HubApi<'_>,
    member: &MemberId,
    timeout: Duration,
    steps: Steps,
) -> Result<(), Failure> {
    let what = format!("waiting until {member} has its whole share again");
    let left = || async {
        let unheard = unheard(hub, member.as_str(), "Active").await?;
        if unheard.is_empty() { returning(hub, member).await } else { Ok(unheard) }
    };
    match wait_empty(&what, timeout, steps, left).await? {
        None => {
            steps.done(format!("{member} has its whole share"));
            Ok(())
        }
        Some(last) => Err(Failure::timed_out(
            format!("{member} is active, but not at its whole share yet"),
            format!("in {last}"),
        )
        .next("see `fairlead explain` for these routes; failback may be Manual")),
    }
}

/// Asks until the list is empty; what was left of it when time was up.
async fn wait_empty<F: Future<Output = Result<Vec<String>, Failure>>>(
    what: &str,
    timeout: Duration,
    steps: Steps,
    ask: impl Fn() -> F,
) -> Result<Option<String>, Failure> {
    let mut waiting = steps.wait(what);
    let mut last = String::new();
    let asking = async {
        loop {
            let left = ask().await?;
            if left.is_empty() {
                return Ok::<(), Failure>(());
            }
            last = output::list(left);
            waiting.show(&format!("{what}; still: {last}"));
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(Ok(())) => Ok(None),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Ok(Some(last)),
    }
}

/// Members that send something to this one, by route, and members that have not applied their newest
/// plan and may.
async fn senders(hub: &HubApi<'_>, member: &str) -> Result<Vec<String>, Failure> {
    let mut senders = behind(hub, member).await?;
    for route in hub.routes().await? {
        let explanation = hub.explain(&route.route, None).await?;
        for (entry, explained) in &explanation.entries {
            let backends = explained.rules.iter().flat_map(|rule| &rule.backends);
            let mut shares = backends.flat_map(|backend| &backend.members);
            let sends = shares.any(|share| {
                share.member.as_str() == member && share.share_now.unwrap_or(share.share) > 0
            });
            // What its own clients send to a service that runs nowhere else stays there.
            if sends && (entry.as_str() != member || could_leave(explained, member)) {
                senders.push(format!("{entry} ({})", route.route));
            }
        }
    }
    Ok(senders)
}

/// Whether others could serve what a member sends to itself.
fn could_leave(explained: &EntryExplanation, member: &str) -> bool {
    let other =
        |share: &MemberShare| share.member.as_str() != member && share.ready > 0 && can_take(share);
    let backends = explained.rules.iter().flat_map(|rule| &rule.backends);
    let mut own = backends.filter(|backend| {
        let mut shares = backend.members.iter();
        shares.any(|s| s.member.as_str() == member && s.share_now.unwrap_or(s.share) > 0)
    });
    own.any(|backend| backend.members.iter().any(other))
}

/// What the hub has not heard of yet: the state that was just set.
async fn unheard(hub: &HubApi<'_>, member: &str, state: &str) -> Result<Vec<String>, Failure> {
    let members = hub.members().await?;
    let heard = members.iter().any(|view| view.member.as_str() == member && view.traffic == state);
    Ok(if heard { Vec::new() } else { vec!["the hub (not heard of it)".to_owned()] })
}

/// Other members that have not applied their newest plan, or whose gateways have not taken it.
async fn behind(hub: &HubApi<'_>, member: &str) -> Result<Vec<String>, Failure> {
    let behind = |other: &fairlead_model::view::MemberView| {
        let name = &other.member;
        if other.plan_wanted.is_some() && other.plan_wanted != other.plan_applied {
            return Some(format!("{name} (plan not applied)"));
        }
        (other.moving > 0).then(|| {
            let routes =
                output::count(usize::try_from(other.moving).unwrap_or(usize::MAX), "route");
            format!("{name} ({routes} on the way into its gateway)")
        })
    };
    let members = hub.members().await?;
    let others = members.iter().filter(|other| other.member.as_str() != member);
    Ok(others.filter_map(behind).collect())
}

/// Entries and routes in which the member's share is still on its way up.
async fn returning(hub: &HubApi<'_>, member: &MemberId) -> Result<Vec<String>, Failure> {
    let mut returning = behind(hub, "").await?;
    for route in hub.routes().await? {
        let explanation = hub.explain(&route.route, None).await?;
        for (entry, explained) in &explanation.entries {
            let backends = explained.rules.iter().flat_map(|rule| &rule.backends);
            let mut shares = backends.flat_map(|backend| &backend.members);
            let waits = |share: &MemberShare| {
                let on_its_way = matches!(
                    share.reason,
                    Reason::Ramping
                        | Reason::Recovering
                        | Reason::Drained
                        | Reason::AwaitingFailback
                );
                share.member == *member && on_its_way
            };
            if shares.any(waits) {
                returning.push(format!("{entry} ({})", route.route));
            }
        }
    }
    Ok(returning)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_crds::keys;

    use super::*;
    use crate::fake::Fake;

    const HOME: &str = keys::NAMESPACE;

    fn share(name: &str, ready: u32, share: u32, reason: &str) -> Json {
        json!({"member": name, "tier": 0, "tier_name": "", "split": null, "ready": ready,
            "expected": ready, "share": share, "share_now": null, "reason": reason, "message": ""})
    }

    fn explanation(shares: &[Json]) -> Json {
        let entry = json!({"gateways": [], "overlay": {}, "rules": [{"rule": 0, "backends": [
            {"backend": "shop/cart:80", "weight": 1, "share": 10000, "members": shares}]}]});
        json!({"route": "HTTPRoute/shop/cart", "entries": {"east": entry, "south": entry}, "notes": []})
    }

    fn mk_hub(shares: &[Json]) -> Fake {
        let fake = Fake::new([json!({"apiVersion": keys::API_VERSION, "kind": "MemberCluster",
            "metadata": {"name": "south"}, "spec": {}})]);
        let member = |name: &str, applied: &str| {
            json!({"member": name, "region": null, "zone": null, "state": "Up", "since": 0,
                "traffic": "Active", "agent_version": "", "heard_at": null, "plan_wanted": "1.2",
                "plan_applied": applied, "objects": 0, "exceptions": {}, "overlay": {}, "peers": {},
                "notes": []})
        };
        fake.hub("api/v1/members", 200, json!([member("south", "1.2"), member("west", "1.1")]));
        let route = json!({"route": "HTTPRoute/shop/cart", "hostnames": [], "gateways": [],
            "entries": {}, "notes": []});
        fake.hub("api/v1/routes", 200, json!([route]));
        fake.hub("api/v1/explain/HTTPRoute/shop/cart", 200, explanation(shares));
        fake
    }

    fn lost(shares: &[Json], keep: u8) -> Vec<String> {
        let explanation = serde_json::from_value(explanation(shares)).unwrap();
        losses_of(&explanation, &MemberId::new("south").unwrap(), keep)
    }

    #[tokio::test]
    async fn draining_waits_for_shares_and_plans_of_the_others() {
        let fake = mk_hub(&[share("south", 1, 100, "AsAsked"), share("west", 1, 9900, "AsAsked")]);
        let cluster = fake.cluster();
        let senders = senders(&HubApi::new(&cluster, HOME), "south").await.unwrap();
        let shown = [
            "west (plan not applied)",
            "east (HTTPRoute/shop/cart)",
            "south (HTTPRoute/shop/cart)",
        ];
        assert_eq!(senders, shown, "its own clients too, for others could serve them");
    }

    #[tokio::test]
    async fn undrain_waits_while_a_share_is_on_its_way_up() {
        let fake = mk_hub(&[share("south", 1, 100, "Ramping"), share("west", 1, 9900, "AsAsked")]);
        let cluster = fake.cluster();
        let south = MemberId::new("south").unwrap();
        let found = returning(&HubApi::new(&cluster, HOME), &south).await.unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn what_is_ready_elsewhere_and_may_serve_counts_as_left() {
        let south = share("south", 2, 5000, "AsAsked");
        assert!(lost(&[south.clone(), share("west", 2, 5000, "AsAsked")], 50).is_empty());
        let half = lost(&[south.clone(), share("west", 1, 5000, "AsAsked")], 50);
        assert_eq!(
            half,
            ["HTTPRoute/shop/cart: 1 of 3 ready endpoints of shop/cart:80 would be left"]
        );
        assert_eq!(lost(&[south.clone(), share("west", 9, 0, "Down")], 50).len(), 1);
        assert!(lost(&[south], 0).is_empty());
    }

    #[test]
    fn a_member_that_serves_nothing_can_always_go() {
        assert!(lost(&[share("west", 1, 10000, "AsAsked")], 100).is_empty());
        let drained = share("south", 4, 0, "Drained");
        assert!(lost(&[drained, share("west", 1, 10000, "AsAsked")], 100).is_empty());
    }

    #[tokio::test]
    async fn a_drain_that_leaves_too_little_is_refused_before_anything_is_written() {
        let fake = mk_hub(&[share("south", 2, 10000, "AsAsked")]);
        let cluster = fake.cluster();
        let hub = HubApi::new(&cluster, HOME);
        let south = MemberId::new("south").unwrap();
        let lost = losses(&hub, &south, 50).await.unwrap();
        let failure = refusal(&south, &lost).for_people();
        assert!(failure.contains("0 of 2 ready endpoints of shop/cart:80"), "{failure}");
        assert!(fake.writes().is_empty());
        assert!(check_known(&hub, &MemberId::new("nobody").unwrap()).await.is_err());
        let spec = json!({"trafficState": "Draining"});
        set_state(&cluster, &south, spec, Steps::Silent).await.unwrap();
        assert_eq!(fake.writes(), ["merge MemberCluster/south"]);
    }
}
