//! `fairlead leave`: takes everything of Fairlead out of a member again, with or without the hub.
//!
//! Order: drain (when asked), the MemberCluster in the hub (so that others stop sending), the agent and
//! its permissions (so that nothing writes any more), what the agent wrote, what the CLI installed, the
//! namespace if the CLI made it and nothing is left in it. Takes away only what carries our label, what
//! has a name of ours in our namespace, and the fields that the agent set on lent Gateways. A hub in the
//! same cluster stays.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::{Json, MemberId};
use serde_json::json;

use crate::args::Connection;
use crate::cluster::{Cluster, Deleted, Kind, NameIn, config_map, member_cluster};
use crate::command::drain;
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::install;
use crate::install::removal::{self, Errors};
use crate::progress::Steps;

const AFTER_HELP: &str = "\
Removes: routes, Gateways, Services, grants, policies and Secrets that Fairlead wrote, in all
namespaces; the agent with its roles; the client certificate on lent Gateways; the EnvoyProxy of
`join --trace-gateways` and its name on the GatewayClass. Keeps: your own objects, Gateway API and Multi-Cluster Services definitions, ServiceExports.

Without --hub-kubeconfig the hub is not told: delete its MemberCluster there afterwards.

EXAMPLES
  fairlead leave
  fairlead leave --drain --hub-kubeconfig hub.kubeconfig --yes
  fairlead leave --force --yes        # go on where something fails, e.g. a hub that is gone";

/// Arguments of `leave`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct LeaveArgs {
    /// Name of the member, as a check that this is the right cluster.
    #[arg(long, value_name = "NAME")]
    member: Option<MemberId>,
    /// Kubeconfig of the hub's cluster, to delete the MemberCluster too.
    #[arg(long, value_name = "FILE")]
    hub_kubeconfig: Option<PathBuf>,
    /// Context of --hub-kubeconfig.
    #[arg(long, value_name = "NAME", requires = "hub_kubeconfig")]
    hub_context: Option<String>,
    /// Lead traffic away first, and wait until none is sent there any more.
    #[arg(long, requires = "hub_kubeconfig")]
    drain: bool,
    /// Go on where the hub cannot be reached or an object cannot be removed.
    #[arg(long)]
    force: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Longest time to wait for the drain.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_timeout)]
    timeout: Duration,
}

impl LeaveArgs {
    fn errors(&self) -> Errors {
        if self.force { Errors::Tolerated } else { Errors::End }
    }
}

/// Leaves.
pub(crate) async fn run(connection: &Connection, args: &LeaveArgs) -> Result<(), Failure> {
    let steps = Steps::for_stderr();
    let cluster = Cluster::open(connection).await?;
    let home = connection.namespace.as_str();
    steps.done(format!("API server {} answers ({})", cluster.server(), cluster.version().await?));
    let member = find_member(&cluster, home, args).await?;
    confirm(args, cluster.server(), member.as_deref())?;
    let release = helm_release(&cluster, home).await?;
    if let Some(path) = &args.hub_kubeconfig {
        let hub = Connection {
            kubeconfig: Some(path.clone()),
            context: args.hub_context.clone(),
            namespace: home.to_owned(),
        };
        let told = tell_hub(&hub, member.as_deref(), args, steps).await;
        tolerate(told, args, steps)?;
    }
    removal::clean(&cluster, home, args.errors(), steps).await?;
    if let Some(release) = release {
        // Helm still believes that the release is there; its objects are gone already.
        steps.say(format!("to make Helm forget it: helm uninstall -n {home} {release}"));
    }
    say_what_stays(member.as_deref(), args, steps);
    Ok(())
}

/// The member's name, when the cluster still says it; it must be the asked one.
async fn find_member(
    cluster: &Cluster,
    home: &str,
    args: &LeaveArgs,
) -> Result<Option<String>, Failure> {
    let map = cluster.get(&config_map(), home, install::CONFIG_MAP_STATE).await?;
    let deployment = cluster.get(&Kind::known("apps/v1", "Deployment"), home, keys::AGENT).await?;
    let said = map.as_ref().and_then(|map| map["data"]["member"].as_str()).map(str::to_owned);
    let said = said.filter(|name| !name.is_empty()).or_else(|| member_of(deployment.as_ref()?));
    match (&args.member, said) {
        (Some(asked), Some(said)) if asked.as_str() != said => {
            let what = format!("this cluster does not leave as {asked}");
            Err(Failure::failed(what, format!("it is member {said}"))
                .next("check --kubeconfig and --context, or correct --member"))
        }
        (asked, said) => Ok(said.or_else(|| asked.as_ref().map(ToString::to_string))),
    }
}

fn member_of(deployment: &Json) -> Option<String> {
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array()?;
    let member = args.iter().find_map(|arg| arg.as_str()?.strip_prefix("--member="))?;
    Some(member.to_owned())
}

fn confirm(args: &LeaveArgs, server: &str, member: Option<&str>) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let what = "nothing was removed";
    let mut input = std::io::stdin().lock();
    if !input.is_terminal() {
        return Err(Failure::usage(what, "there is no terminal to ask at").next("give --yes"));
    }
    let name = member.map(|name| format!(" (member {name})")).unwrap_or_default();
    eprint!("Take everything of Fairlead out of {server}{name}? [y/N] ");
    let mut answer = String::new();
    let _ = std::io::stderr().flush();
    let read = input.read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::failed(what, "you did not say yes"))
}

/// The Helm release that installed the agent, if one did.
async fn helm_release(cluster: &Cluster, home: &str) -> Result<Option<String>, Failure> {
    let deployment = cluster.get(&Kind::known("apps/v1", "Deployment"), home, keys::AGENT).await?;
    let release = deployment.as_ref().and_then(|deployment| {
        deployment["metadata"]["annotations"]["meta.helm.sh/release-name"].as_str()
    });
    Ok(release.map(str::to_owned))
}

/// With --force a failure is told and the rest goes on.
fn tolerate(result: Result<(), Failure>, args: &LeaveArgs, steps: Steps) -> Result<(), Failure> {
    match result {
        Err(failure) if args.force => {
            steps.warn(failure.to_string());
            Ok(())
        }
        other => other,
    }
}

async fn tell_hub(
    connection: &Connection,
    member: Option<&str>,
    args: &LeaveArgs,
    steps: Steps,
) -> Result<(), Failure> {
    let Some(member) = member else {
        let what = "cannot tell the hub";
        return Err(Failure::failed(what, "this cluster does not say which member it is")
            .next("name it with --member"));
    };
    let hub = Cluster::open(connection).await?;
    if args.drain {
        drain(&hub, &connection.namespace, member, args.timeout, steps).await?;
    }
    match hub.delete(&member_cluster(), "", member).await? {
        Deleted::Now => steps.done(format!("MemberCluster {member} deleted in the hub")),
        Deleted::Before => steps.done(format!("the hub has no MemberCluster {member}")),
    }
    Ok(())
}

async fn drain(
    hub: &Cluster,
    home: &str,
    member: &str,
    timeout: Duration,
    steps: Steps,
) -> Result<(), Failure> {
    let name = NameIn { namespace: "", name: member };
    let patch = json!({"spec": {"trafficState": "Draining"}});
    hub.merge(&member_cluster(), &name, &patch).await?;
    drain::wait_led_away(&HubApi::new(hub, home), (member, "Draining"), timeout, steps)
        .await
        .map_err(|failure| failure.next("leave without --drain to go on anyway"))
}

fn say_what_stays(member: Option<&str>, args: &LeaveArgs, steps: Steps) {
    if args.hub_kubeconfig.is_none() {
        let name = member.unwrap_or("NAME");
        steps.say(format!("in the hub's cluster: kubectl delete membercluster {name}"));
    }
    steps
        .say("kept: ServiceExports, and the definitions of Gateway API and Multi-Cluster Services");
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const HOME: &str = keys::NAMESPACE;

    fn mk_args() -> LeaveArgs {
        LeaveArgs {
            member: None,
            hub_kubeconfig: None,
            hub_context: None,
            drain: false,
            force: false,
            yes: true,
            timeout: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn another_name_than_the_asked_one_is_refused() {
        let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": keys::AGENT, "namespace": HOME}});
        deployment["spec"]["template"]["spec"]["containers"] =
            json!([{"args": ["run", "--member=east"]}]);
        let cluster = Fake::new([deployment]).cluster();
        let west = LeaveArgs { member: Some(MemberId::new("west").unwrap()), ..mk_args() };
        let failure = find_member(&cluster, HOME, &west).await.unwrap_err();
        assert!(failure.for_people().contains("it is member east"));
        let found = find_member(&cluster, HOME, &mk_args()).await.unwrap();
        assert_eq!(found.as_deref(), Some("east"));
    }
}
