//! `fairlead failback`: asks the hub to give members their traffic back.
//!
//! Writes one annotation per MemberCluster, under the caller's own RBAC: the hub counts a value that it
//! has not seen yet as a request. Never waits for the traffic: `explain` shows the steps.

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::MemberId;
use jiff::Timestamp;
use serde_json::json;

use crate::args::Connection;
use crate::cluster::{Cluster, NameIn, member_cluster};
use crate::failure::Failure;
use crate::progress::Steps;

const AFTER_HELP: &str = "\
A member that was out of health comes back by itself, after failback.afterSeconds, in steps over
failback.rampSeconds; where a TrafficPolicy says failback.mode: Manual it waits for this command.
With Auto the command skips the wait. Asked while the member is still out, it counts as soon as the
member is back. A member that you drained needs no failback: set its trafficState to Active.

EXAMPLES
  fairlead failback eu-2
  fairlead failback eu-1 eu-2
  fairlead explain shop/cart          # shows the steps";

/// Arguments of `failback`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct FailbackArgs {
    /// Names of the members.
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<MemberId>,
}

/// Asks for all of them; none is asked for when one does not exist.
pub(crate) async fn run(connection: &Connection, args: &FailbackArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    ask(&cluster, args, Timestamp::now(), Steps::for_stderr()).await
}

async fn ask(
    cluster: &Cluster,
    args: &FailbackArgs,
    now: Timestamp,
    steps: Steps,
) -> Result<(), Failure> {
    for member in &args.members {
        if cluster.get(&member_cluster(), "", member.as_str()).await?.is_none() {
            let what = format!("nothing is given back to {member}");
            return Err(Failure::failed(what, format!("there is no MemberCluster {member}"))
                .next("see `fairlead get members`; this needs the hub's kubeconfig"));
        }
    }
    for member in &args.members {
        let name = NameIn { namespace: "", name: member.as_str() };
        let patch = json!({"metadata": {"annotations": {keys::FAILBACK: now.to_string()}}});
        cluster.merge(&member_cluster(), &name, &patch).await?;
        steps.done(format!("asked to give {member} its traffic back"));
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn mk_args(members: &[&str]) -> FailbackArgs {
        FailbackArgs { members: members.iter().map(|m| MemberId::new(m).unwrap()).collect() }
    }

    fn mk_hub(members: &[&str]) -> Fake {
        Fake::new(members.iter().map(|name| {
            json!({"apiVersion": keys::API_VERSION, "kind": "MemberCluster",
                "metadata": {"name": name, "annotations": {"other": "kept"}}})
        }))
    }

    #[tokio::test]
    async fn the_request_is_an_annotation_with_its_time() {
        let fake = mk_hub(&["east", "west"]);
        let now = "2026-11-21T10:00:00.25Z".parse().unwrap();
        ask(&fake.cluster(), &mk_args(&["west"]), now, Steps::for_stderr()).await.unwrap();
        assert_eq!(fake.writes(), ["merge MemberCluster/west"]);
        let west = fake.cluster().get(&member_cluster(), "", "west").await.unwrap().unwrap();
        let annotations =
            json!({"other": "kept", "fairlead.dev/failback": "2026-11-21T10:00:00.25Z"});
        assert_eq!(west["metadata"]["annotations"], annotations);
    }

    #[tokio::test]
    async fn an_unknown_name_stops_before_anything_is_written() {
        let fake = mk_hub(&["east"]);
        let args = mk_args(&["east", "esat"]);
        let failure = ask(&fake.cluster(), &args, Timestamp::UNIX_EPOCH, Steps::for_stderr()).await;
        let said = failure.unwrap_err().for_people();
        assert!(said.contains("there is no MemberCluster esat"), "{said}");
        assert!(said.contains("fairlead get members"), "{said}");
        assert_eq!(fake.writes(), [""; 0]);
    }
}
