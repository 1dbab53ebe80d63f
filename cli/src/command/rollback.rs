//! `fairlead rollback`: pins a route to what it was at an earlier revision, and releases it again.
//!
//! Writes one annotation of the route, under the caller's own RBAC; the hub takes the rules and policies of
//! then from its history. Nothing is copied into the route, so a release brings back what is written there.

use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::history::Entry;
use fairlead_model::view::RouteView;
use fairlead_model::{Json, RouteKey};
use serde_json::json;

use crate::args::Connection;
use crate::cluster::{Cluster, Kind, NameIn, encoded};
use crate::command::explain::{Wanted, choose};
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output;
use crate::progress::Steps;

const AFTER_HELP: &str = "\
A pin holds the route's rules and the TrafficPolicies that acted on them then, whatever is
written since, until --release. All else is as of now: members that die are taken out and come
back, withdrawn exports and grants take traffic away, drains act, addresses are the present
ones, and where the route attaches is what it says now. A pin needs a revision of this very
route, as `fairlead history ROUTE` lists them; it stays in the history for as long as the pin
does. It is seen in `fairlead get routes`, `explain` and the route's condition
fairlead.dev/Pinned.

This writes annotation fairlead.dev/pin on the route, so it needs `get` and `patch` there.

EXAMPLES
  fairlead history shop/cart
  fairlead rollback shop/cart --to 41
  fairlead rollback shop/cart --release
  kubectl annotate httproute -n shop cart fairlead.dev/pin=41      # the same, without waiting";

/// Arguments of `rollback`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["to", "release"]))]
pub(crate) struct RollbackArgs {
    /// The route: [KIND/]NAMESPACE/NAME, or NAME with -n.
    route: String,
    /// Namespace of the route.
    #[arg(short = 'n', long, value_name = "NAME")]
    route_namespace: Option<String>,
    /// The revision to go back to.
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// Take the pin away: the route is as it is written again.
    #[arg(long)]
    release: bool,
    /// How long to wait until every member has it.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
}

/// How often the hub is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Pins or releases, and waits until it is so.
pub(crate) async fn run(connection: &Connection, args: &RollbackArgs) -> Result<(), Failure> {
    let wanted = Wanted::parse(&args.route, args.route_namespace.as_deref(), "roll back")?;
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    let route = choose_route(&hub, wanted).await?;
    let steps = Steps::for_stderr();
    if let Some(number) = args.to {
        check(&hub, &route, number).await?;
    }
    write(&cluster, &route, args.to).await?;
    match args.to {
        Some(number) => steps.done(format!("{route}: asked to be as at revision {number}")),
        None => steps.done(format!("{route}: asked to be as it is written")),
    }
    wait(&hub, &route, args, steps).await
}

async fn choose_route(hub: &HubApi<'_>, wanted: Wanted) -> Result<RouteKey, Failure> {
    let routes = hub.routes().await?;
    match wanted {
        Wanted::AnyKind(name) => choose(&name, &routes, "roll back"),
        Wanted::Key(key) if routes.iter().any(|view| view.route == key) => Ok(key),
        Wanted::Key(key) => {
            Err(Failure::failed(format!("cannot roll back {key}"), "it is no global route")
                .next("see `fairlead get routes`"))
        }
    }
}

/// Refuses what the hub would refuse, before anything is written.
async fn check(hub: &HubApi<'_>, route: &RouteKey, number: u64) -> Result<(), Failure> {
    let view = hub.history(&format!("route={}&", encoded(&route.to_string())), 1_000).await?;
    let failure = |why: String| {
        let what = format!("cannot roll {route} back to revision {number}");
        let next = format!("see its revisions with `fairlead history {route}`");
        Err(Failure::failed(what, why).next(next))
    };
    match view.entries.iter().find(|entry| entry.number == number) {
        Some(Entry { policy: Some(_), .. }) => Ok(()),
        Some(_) => failure("its rules of then are not kept: too large, or deleted then".to_owned()),
        None => {
            let numbers = view.entries.iter().map(|entry| entry.number).take(10);
            let numbers = output::list(numbers);
            failure(format!("that is no revision of it that is kept; the newest are {numbers}"))
        }
    }
}

async fn write(cluster: &Cluster, route: &RouteKey, to: Option<u64>) -> Result<(), Failure> {
    let name = NameIn { namespace: &route.name.namespace, name: &route.name.name };
    let value = to.map_or(Json::Null, |number| number.to_string().into());
    let patch = json!({"metadata": {"annotations": {keys::PIN: value}}});
    let mut failure = None;
    for version in ["v1", "v1alpha3", "v1alpha2"] {
        let kind = Kind::known(&format!("{}/{version}", keys::GATEWAY_GROUP), route.kind.as_str());
        if cluster.get(&kind, name.namespace, name.name).await?.is_some() {
            return cluster.merge(&kind, &name, &patch).await;
        }
        let what = format!("cannot roll back {route}");
        failure = Some(Failure::failed(what, "the hub's cluster has no such object"));
    }
    failure.map_or(Ok(()), Err)
}

async fn wait(
    hub: &HubApi<'_>,
    route: &RouteKey,
    args: &RollbackArgs,
    steps: Steps,
) -> Result<(), Failure> {
    let what = format!("waiting until every member has {route}");
    let mut waiting = steps.wait(&what);
    let mut last = String::new();
    let asking = async {
        loop {
            let routes = hub.routes().await?;
            let view = routes.iter().find(|view| view.route == *route);
            match view.map(|view| missing(view, args.to)) {
                Some(None) => return Ok::<(), Failure>(()),
                Some(Some(why)) => last = why,
                None => last = "it is no global route any more".to_owned(),
            }
            waiting.show(&format!("{what}; still: {last}"));
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    match tokio::time::timeout(args.timeout, asking).await {
        Ok(Ok(())) => {
            let is = args.to.map_or("as written".to_owned(), |to| format!("as at revision {to}"));
            steps.done(format!("{route} is {is} in every member"));
            Ok(())
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::timed_out(format!("{route} is not there yet"), last)
            .next(format!("see `fairlead explain {route}` and `fairlead get routes`"))),
    }
}

/// What is not yet as asked.
fn missing(view: &RouteView, to: Option<u64>) -> Option<String> {
    if view.pinned != to {
        let fault =
            view.notes.iter().find(|note| to.is_some() && note.subject == view.route.to_string());
        return Some(
            fault.map_or("the hub has not planned it yet".to_owned(), ToString::to_string),
        );
    }
    let behind = view.entries.iter().filter(|(_, entry)| entry.accepted != Some(true));
    let behind: Vec<&str> = behind.map(|(member, _)| member.as_str()).collect();
    (!behind.is_empty()).then(|| output::list(behind))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn route() -> RouteKey {
        "HTTPRoute/shop/cart".parse().unwrap()
    }

    fn mk_hub(numbers: &[u64]) -> Fake {
        let fake =
            Fake::new([json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "cart", "namespace": "shop", "annotations": {"other": "kept"}}})]);
        let entry = |number: &u64| {
            json!({"number": number, "at": 0, "route": "HTTPRoute/shop/cart",
            "change": "Changed", "causes": [], "moved": [], "shares": {"classes": []},
            "policy": (*number > 3).then_some(*number)})
        };
        let entries: Vec<Json> = numbers.iter().map(entry).collect();
        let size = json!({"newest": 9, "oldest": 1, "entries": 1, "entries_max": 9, "bytes": 1, "bytes_max": 9});
        fake.hub("api/v1/history", 200, json!({"now": 0, "size": size, "entries": entries}));
        fake
    }

    #[tokio::test]
    async fn a_pin_is_an_annotation_and_a_release_takes_it_away() {
        let fake = mk_hub(&[4]);
        let cluster = fake.cluster();
        let annotations = async || {
            let kind = Kind::known("gateway.networking.k8s.io/v1", "HTTPRoute");
            let object = cluster.get(&kind, "shop", "cart").await.unwrap().unwrap();
            object["metadata"]["annotations"].clone()
        };
        write(&cluster, &route(), Some(4)).await.unwrap();
        assert_eq!(annotations().await, json!({"other": "kept", "fairlead.dev/pin": "4"}));
        write(&cluster, &route(), None).await.unwrap();
        assert_eq!(annotations().await, json!({"other": "kept"}));
    }

    #[tokio::test]
    async fn a_revision_that_cannot_be_had_is_refused_with_those_that_can() {
        let fake = mk_hub(&[8, 5, 2]);
        let cluster = fake.cluster();
        let hub = HubApi::new(&cluster, keys::NAMESPACE);
        assert!(check(&hub, &route(), 5).await.is_ok());
        let said = check(&hub, &route(), 7).await.unwrap_err().for_people();
        assert!(said.contains("8,5,2") && said.contains("fairlead history"), "{said}");
        let said = check(&hub, &route(), 2).await.unwrap_err().for_people();
        assert!(said.contains("not kept"), "{said}");
    }

    #[test]
    fn it_waits_for_the_hub_and_then_for_members() {
        let mut view: RouteView = serde_json::from_value(json!({"route": "HTTPRoute/shop/cart",
            "hostnames": [], "gateways": [], "pinned": null, "notes": [],
            "entries": {"east": {"accepted": true, "reason": null, "message": ""},
                "west": {"accepted": null, "reason": null, "message": ""}}}))
        .unwrap();
        assert!(missing(&view, Some(4)).unwrap().contains("not planned"));
        view.pinned = Some(4);
        assert_eq!(missing(&view, Some(4)).unwrap(), "west");
        view.entries.values_mut().for_each(|entry| entry.accepted = Some(true));
        assert_eq!(missing(&view, Some(4)), None);
        assert!(missing(&view, None).is_some());
    }
}
