//! `fairlead get`: members, gateways, services, routes as the hub knows them.

use clap::{Args, ValueEnum};
use fairlead_model::view::{GatewayView, MemberView, RouteView, ServiceView};
use fairlead_model::{Millis, Reason};

use crate::args::Connection;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, age, columns, list, or_dash};

const AFTER_HELP: &str = "\
EXAMPLES
  fairlead get members
  fairlead get routes -o json | jq '.[].route'
  fairlead get services shop/cart";

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct GetArgs {
    /// What to list.
    #[arg(value_enum)]
    what: What,
    /// Only those of these names: NAME for members, NAMESPACE/NAME for the others.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Clusters that joined.
    #[value(alias = "member")]
    Members,
    /// Global gateways, as each member serves them.
    #[value(alias = "gateway")]
    Gateways,
    /// Exported services, with ready endpoints by member.
    #[value(alias = "service")]
    Services,
    /// Global routes, and which members took them.
    #[value(alias = "route")]
    Routes,
}

/// Prints the list.
pub(crate) async fn run(connection: &Connection, args: &GetArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    match args.what {
        What::Members => {
            let status = hub.status().await?;
            let members = named(args, status.members, |m| m.member.to_string())?;
            output::show(args.output, &members, || members_table(&members, status.now));
        }
        What::Gateways => {
            let gateways = named(args, hub.gateways().await?, |g| g.gateway.to_string())?;
            output::show(args.output, &gateways, || gateways_table(&gateways));
        }
        What::Services => {
            let services = named(args, hub.services().await?, |s| s.service.to_string())?;
            output::show(args.output, &services, || services_table(&services));
        }
        What::Routes => {
            let routes = named(args, hub.routes().await?, |r| r.route.name.to_string())?;
            output::show(args.output, &routes, || routes_table(&routes));
        }
    }
    Ok(())
}

/// Keeps what was asked for; a name that is not there is a failure, as with kubectl.
fn named<T>(args: &GetArgs, all: Vec<T>, name: impl Fn(&T) -> String) -> Result<Vec<T>, Failure> {
    if args.names.is_empty() {
        return Ok(all);
    }
    let missing = args.names.iter().find(|wanted| !all.iter().any(|one| name(one) == **wanted));
    if let Some(missing) = missing {
        let what =
            args.what.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        let why = format!("the hub knows none of that name among its {what}");
        return Err(Failure::failed(format!("cannot get {missing}"), why)
            .next(format!("see them all with `fairlead get {what}`")));
    }
    Ok(all.into_iter().filter(|one| args.names.contains(&name(one))).collect())
}

fn members_table(members: &[MemberView], now: Millis) -> String {
    if members.is_empty() {
        return "No members. `fairlead token create` prints the line that joins a cluster.".into();
    }
    let rows = members.iter().map(|m| {
        vec![
            m.member.to_string(),
            or_dash(m.region.as_deref().unwrap_or("")),
            or_dash(m.zone.as_deref().unwrap_or("")),
            format!("{:?}", m.state),
            age(now, m.since),
            m.traffic.clone(),
            plan_of(m),
            m.objects.to_string(),
            m.exceptions.len().to_string(),
            or_dash(&m.agent_version),
            m.heard_at.map_or_else(|| "never".into(), |at| format!("{} ago", age(now, at))),
        ]
    });
    let header = [
        "NAME",
        "REGION",
        "ZONE",
        "STATE",
        "SINCE",
        "TRAFFIC",
        "PLAN",
        "OBJECTS",
        "EXCEPTIONS",
        "AGENT",
        "HEARD",
    ];
    columns(&header, rows.collect())
}

/// Whether the member holds the plan that the hub wants there. Numbers are in `-o json`.
pub(crate) fn plan_of(member: &MemberView) -> String {
    match (&member.plan_wanted, &member.plan_applied) {
        (None, _) => "-",
        (Some(wanted), Some(applied)) if wanted == applied => "Applied",
        (Some(_), Some(_)) => "Behind",
        (Some(_), None) => "Pending",
    }
    .into()
}

fn gateways_table(gateways: &[GatewayView]) -> String {
    if gateways.is_empty() {
        return "No global gateways. Create a Gateway of class fairlead in the hub's cluster."
            .into();
    }
    let rows = gateways.iter().map(|g| {
        let programmed = match g.programmed {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        vec![
            g.gateway.to_string(),
            g.member.to_string(),
            or_dash(&g.role),
            or_dash(&g.local.as_ref().map(ToString::to_string).unwrap_or_default()),
            list(&g.addresses),
            programmed.into(),
            or_dash(&why(g.reason, &g.message)),
        ]
    });
    let header = ["GATEWAY", "MEMBER", "ROLE", "LOCAL", "ADDRESSES", "PROGRAMMED", "WHY"];
    columns(&header, rows.collect())
}

fn why(reason: Option<Reason>, message: &str) -> String {
    match reason {
        None | Some(Reason::AsAsked) => message.to_owned(),
        Some(reason) if message.is_empty() => reason.to_string(),
        Some(reason) => format!("{reason}: {message}"),
    }
}

fn services_table(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "No exported services. Create a ServiceExport beside a Service in a member.".into();
    }
    let rows = services.iter().flat_map(|s| {
        let serving = s.members.iter().map(|(member, counts)| {
            let refused = s.refused.get(member).map(|reason| reason.to_string());
            let state = refused.unwrap_or_else(|| "Exported".into());
            (member, format!("{}/{}", counts.ready, counts.total), state)
        });
        let refused = s.refused.iter().filter(|(member, _)| !s.members.contains_key(member));
        let refused = refused.map(|(member, reason)| (member, "-".to_owned(), reason.to_string()));
        serving.chain(refused).map(|(member, ready, state)| {
            vec![s.service.to_string(), list(&s.ports), member.to_string(), ready, state]
        })
    });
    columns(&["SERVICE", "PORTS", "MEMBER", "READY", "STATE"], rows.collect())
}

fn routes_table(routes: &[RouteView]) -> String {
    if routes.is_empty() {
        return "No global routes. Attach an HTTPRoute to a Gateway of class fairlead.".into();
    }
    let rows = routes.iter().map(|r| {
        let accepted = r.entries.values().filter(|entry| entry.accepted == Some(true)).count();
        let differs = r.entries.iter().filter(|(_, entry)| entry.accepted != Some(true));
        let differs = differs.map(|(member, entry)| match entry.reason {
            Some(reason) => format!("{member}:{reason}"),
            None => format!("{member}:Waiting"),
        });
        vec![
            r.route.kind.to_string(),
            r.route.name.to_string(),
            list(&r.hostnames),
            list(&r.gateways),
            format!("{accepted}/{}", r.entries.len()),
            list(differs),
            or_dash(&r.rollout.as_ref().map(|note| note.reason.to_string()).unwrap_or_default()),
            or_dash(&r.pinned.map(|number| number.to_string()).unwrap_or_default()),
            r.notes.len().to_string(),
        ]
    });
    let header = [
        "KIND",
        "ROUTE",
        "HOSTNAMES",
        "GATEWAYS",
        "ACCEPTED",
        "DIFFERS",
        "ROLLOUT",
        "PINNED",
        "NOTES",
    ];
    columns(&header, rows.collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn args(names: &[&str]) -> GetArgs {
        let names = names.iter().map(ToString::to_string).collect();
        GetArgs { what: What::Routes, names, output: Format::Table }
    }

    #[test]
    fn services_have_a_row_per_member_and_say_who_is_refused() {
        let service: ServiceView = serde_json::from_value(json!({
            "service": "shop/cart", "ports": [80],
            "members": {"east": {"ready": 2, "total": 3}},
            "refused": {"west": "ExportNotAllowed"},
        }))
        .unwrap();
        assert_eq!(
            services_table(&[service]),
            "SERVICE     PORTS   MEMBER   READY   STATE\n\
             shop/cart   80      east     2/3     Exported\n\
             shop/cart   80      west     -       ExportNotAllowed"
        );
    }

    #[test]
    fn routes_say_which_members_differ_and_why() {
        let route: RouteView = serde_json::from_value(json!({
            "route": "HTTPRoute/shop/cart", "hostnames": ["shop.example.com"],
            "gateways": ["infra/public"],
            "entries": {
                "east": {"accepted": true, "reason": null, "message": ""},
                "south": {"accepted": null, "reason": null, "message": ""},
                "west": {"accepted": false, "reason": "NotAcceptedByGateway", "message": "x"},
            },
            "notes": [],
        }))
        .unwrap();
        let table = routes_table(&[route]);
        assert!(table.contains("1/3"), "{table}");
        assert!(table.contains("south:Waiting,west:NotAcceptedByGateway"), "{table}");
    }

    #[test]
    fn an_empty_list_says_how_to_fill_it() {
        assert!(members_table(&[], Millis(0)).contains("fairlead token create"));
        assert!(gateways_table(&[]).contains("class fairlead"));
    }

    #[test]
    fn a_name_that_is_not_there_is_a_failure_that_names_it() {
        let all = || vec!["a/b".to_owned(), "c/d".to_owned()];
        assert_eq!(named(&args(&["a/b"]), all(), Clone::clone).unwrap(), ["a/b"]);
        assert_eq!(named(&args(&[]), all(), Clone::clone).unwrap().len(), 2);
        let failure = named(&args(&["x/y"]), all(), Clone::clone).unwrap_err();
        assert!(failure.for_people().contains("x/y"));
    }
}
