//! `fairlead explain`: why a route's traffic goes where it goes, as a tree of sentences.

use clap::Args;
use fairlead_model::view::{
    BackendExplanation, EntryExplanation, Explanation, FlowView, MemberShare, RouteView,
};
use fairlead_model::{MemberId, NsName, Reason, RouteKey};

use crate::args::Connection;
use crate::cluster::Cluster;
use crate::command::top;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, list, percent};

const AFTER_HELP: &str = "\
EXAMPLES
  fairlead explain shop/cart
  fairlead explain HTTPRoute/shop/cart --from eu-1
  fairlead explain cart -n shop -o json";

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExplainArgs {
    /// The route: [KIND/]NAMESPACE/NAME, or NAME with -n.
    route: String,
    /// Namespace of the route.
    #[arg(short = 'n', long, value_name = "NAME")]
    route_namespace: Option<String>,
    /// Only for requests that enter at this member.
    #[arg(long, value_name = "MEMBER")]
    from: Option<MemberId>,
    /// Form of the output; table is the tree.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the tree.
pub(crate) async fn run(connection: &Connection, args: &ExplainArgs) -> Result<(), Failure> {
    let wanted = Wanted::parse(&args.route, args.route_namespace.as_deref(), "explain")?;
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    let route = match wanted {
        Wanted::Key(key) => key,
        Wanted::AnyKind(name) => choose(&name, &hub.routes().await?, "explain")?,
    };
    let explanation = hub.explain(&route, args.from.as_ref()).await?;
    // Figures come on top of the answer; a hub that has none is no reason not to answer.
    let mut flows = hub.traffic().await.unwrap_or_default();
    flows.retain(|flow| {
        flow.route == route.to_string() && args.from.as_ref().is_none_or(|from| flow.entry == *from)
    });
    output::show(args.output, &explanation, || tree(&explanation, &flows));
    Ok(())
}

/// What the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// With its kind.
    Key(RouteKey),
    /// Without one.
    AnyKind(NsName),
}

impl Wanted {
    /// Reads a name; `verb` is what cannot be done with one that makes no sense.
    pub(crate) fn parse(text: &str, namespace: Option<&str>, verb: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = text.split('/').collect();
        let wanted = match (parts.as_slice(), namespace) {
            ([kind, namespace, name], None) => {
                format!("{kind}/{namespace}/{name}").parse().ok().map(Self::Key)
            }
            ([kind, name], Some(namespace)) => {
                format!("{kind}/{namespace}/{name}").parse().ok().map(Self::Key)
            }
            ([namespace, name], None) => {
                format!("{namespace}/{name}").parse().ok().map(Self::AnyKind)
            }
            ([name], Some(namespace)) if !name.is_empty() => {
                Some(Self::AnyKind(NsName::new(namespace, name)))
            }
            _ => None,
        };
        wanted.ok_or_else(|| {
            let what = format!("cannot {verb} {:?}", fairlead_model::id::printable(text));
            Failure::usage(
                what,
                "a route is [KIND/]NAMESPACE/NAME, or [KIND/]NAME with -n NAMESPACE",
            )
            .next("see them with `fairlead get routes`")
        })
    }
}

/// The one route of that name, whatever its kind.
pub(crate) fn choose(name: &NsName, routes: &[RouteView], verb: &str) -> Result<RouteKey, Failure> {
    let found: Vec<&RouteKey> =
        routes.iter().map(|route| &route.route).filter(|key| key.name == *name).collect();
    let what = format!("cannot {verb} {name}");
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::failed(what, "the hub has no global route of that name").next(
            "see those it has with `fairlead get routes`; a route is global when it is attached to a \
             Gateway of class fairlead and accepted there",
        )),
        several => Err(Failure::failed(what, "several routes have that name")
            .next(format!("name the kind too: {}", list(several.iter())))),
    }
}

/// The explanation as an indented tree.
pub(crate) fn tree(explanation: &Explanation, flows: &[FlowView]) -> String {
    let mut lines = vec![explanation.route.to_string()];
    lines.extend(
        explanation.asked.iter().map(|note| format!("  {}: {}", note.reason, note.message)),
    );
    if explanation.entries.is_empty() {
        lines.push("  no member serves this route".into());
    }
    for (member, entry) in &explanation.entries {
        lines.extend(entry_lines(member, entry, flows));
    }
    if !explanation.notes.is_empty() {
        lines.push("  left out".into());
    }
    lines.extend(explanation.notes.iter().map(|note| format!("    {note}")));
    lines.join("\n")
}

fn entry_lines(member: &MemberId, entry: &EntryExplanation, flows: &[FlowView]) -> Vec<String> {
    let mut lines = vec![format!("  from {member}, by Gateway {}", list(&entry.gateways))];
    for (peer, reason) in &entry.overlay {
        lines.push(format!("    its agent took {peer} out by itself: {}", reason.sentence()));
    }
    for rule in &entry.rules {
        lines.push(format!("    rule {}", rule.rule));
        if rule.backends.is_empty() {
            lines.push("      no backends".into());
        }
        let of_rule = |flow: &&FlowView| flow.entry == *member && flow.rule == rule.rule;
        let flows: Vec<&FlowView> = flows.iter().filter(of_rule).collect();
        lines.extend(rule.backends.iter().flat_map(|backend| backend_lines(backend, &flows)));
        let elsewhere = flows.iter().filter(|flow| !is_told(flow, &rule.backends));
        lines.extend(elsewhere.map(|flow| {
            let backend = if flow.backend.is_empty() { "a backend" } else { &flow.backend };
            format!("      besides, to {backend} in {}: {}", flow.target, top::words(flow))
        }));
    }
    lines
}

/// A line of the tree has these figures.
fn is_told(flow: &FlowView, backends: &[BackendExplanation]) -> bool {
    backends.iter().any(|backend| {
        backend.backend == flow.backend
            && backend.members.iter().any(|share| share.member == flow.target)
    })
}

fn backend_lines(backend: &BackendExplanation, flows: &[&FlowView]) -> Vec<String> {
    let head = format!(
        "      {:>8} to {} (weight {})",
        percent(backend.share),
        backend.backend,
        backend.weight
    );
    let name_width = backend.members.iter().map(|m| m.member.as_str().len()).max().unwrap_or(0);
    let members = backend.members.iter().map(|share| {
        let is_it =
            |flow: &&&FlowView| flow.backend == backend.backend && flow.target == share.member;
        let line = member_line(share, name_width);
        match flows.iter().find(is_it) {
            Some(flow) => format!("{line}; {}", top::words(flow)),
            None => line,
        }
    });
    std::iter::once(head).chain(members).collect()
}

fn member_line(share: &MemberShare, name_width: usize) -> String {
    let now = match share.share_now {
        Some(now) if now != share.share => format!(" (now {})", percent(now)),
        _ => String::new(),
    };
    let why = match share.tier {
        // Who is no candidate is best told by the hub's own sentence.
        None if !share.message.is_empty() => format!("{} [{}]", share.message, share.reason),
        None => format!("{} [{}]", share.reason.sentence(), share.reason),
        Some(tier) => candidate_words(share, tier),
    };
    let (percent, name) = (percent(share.share), share.member.as_str());
    format!("        {percent:>8}{now} {name:name_width$}  {why}")
}

/// Tiers are counted from 1, as people count.
fn candidate_words(share: &MemberShare, tier: u16) -> String {
    let number = tier.saturating_add(1);
    let name = if share.tier_name.is_empty() { "" } else { &format!(" {}", share.tier_name) };
    let head = format!("tier {number}{name}, {}/{} ready", share.ready, share.expected);
    match share.reason {
        Reason::AsAsked => head,
        reason => format!("{head}: {} [{reason}]", reason.sentence()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_route(key: &str) -> RouteView {
        serde_json::from_value(json!({"route": key, "hostnames": [], "gateways": [],
            "entries": {}, "notes": []}))
        .unwrap()
    }

    #[test]
    fn a_route_is_named_with_or_without_kind_and_namespace() {
        let key = |text: &str| Wanted::Key(text.parse().unwrap());
        let any = || Wanted::AnyKind(NsName::new("shop", "cart"));
        assert_eq!(
            Wanted::parse("HTTPRoute/shop/cart", None, "explain").unwrap(),
            key("HTTPRoute/shop/cart")
        );
        assert_eq!(
            Wanted::parse("grpcroute/cart", Some("shop"), "explain").unwrap(),
            key("GRPCRoute/shop/cart")
        );
        assert_eq!(Wanted::parse("shop/cart", None, "explain").unwrap(), any());
        assert_eq!(Wanted::parse("cart", Some("shop"), "explain").unwrap(), any());
        for (bad, namespace) in [
            ("cart", None),
            ("", None),
            ("", Some("a")),
            ("Pod/a/b", None),
            ("a/b/c/d", None),
            ("/", None),
        ] {
            assert!(Wanted::parse(bad, namespace, "explain").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_of_two_kinds_asks_for_the_kind() {
        let name = NsName::new("shop", "cart");
        let routes = [mk_route("HTTPRoute/shop/cart"), mk_route("GRPCRoute/shop/cart")];
        assert_eq!(choose(&name, &routes[..1], "explain").unwrap(), routes[0].route);
        let failure = choose(&name, &routes, "explain").unwrap_err();
        assert!(failure.for_people().contains("HTTPRoute/shop/cart,GRPCRoute/shop/cart"));
        assert!(
            choose(&name, &[], "explain").unwrap_err().for_people().contains("fairlead get routes")
        );
    }

    #[test]
    fn the_tree_shows_shares_reasons_flows_and_what_the_agent_did() {
        let explanation: Explanation = serde_json::from_value(json!({
            "route": "HTTPRoute/shop/cart",
            "entries": {"east": {
                "gateways": ["infra/public"],
                "overlay": {"west": "DoorTimedOut"},
                "rules": [{"rule": 0, "backends": [{
                    "backend": "shop/cart:80", "weight": 80, "share": 8000, "members": [
                        {"member": "east", "tier": 0, "tier_name": "SameCluster", "split": "Endpoints",
                         "ready": 1, "expected": 2, "share": 5714, "share_now": 8000,
                         "reason": "AsAsked", "message": "1 of 2 endpoints is ready"},
                        {"member": "west", "tier": 1, "tier_name": "Any", "split": "Endpoints",
                         "ready": 2, "expected": 2, "share": 2286, "share_now": 0,
                         "reason": "Suspect", "message": "takes what east cannot"},
                        {"member": "south", "tier": null, "tier_name": "", "split": null,
                         "ready": 0, "expected": 0, "share": 0, "share_now": null,
                         "reason": "NotExported", "message": ""}]}]}],
            }},
            "notes": [{"subject": "member north", "reason": "NoGateway", "message": "lends none"}],
        }))
        .unwrap();
        let flow = |backend: &str, target: &str, per_second| FlowView {
            route: "HTTPRoute/shop/cart".to_owned(),
            rule: 0,
            backend: backend.to_owned(),
            entry: MemberId::new("east").unwrap(),
            target: MemberId::new(target).unwrap(),
            per_second,
            error_share: 0.0,
            p50_ms: Some(5),
            p99_ms: Some(25),
            asked: None,
            effective: None,
        };
        let flows = [flow("shop/cart:80", "east", 12.3), flow("", "west", 0.2)];
        assert_eq!(
            tree(&explanation, &flows),
            "HTTPRoute/shop/cart\n  \
               from east, by Gateway infra/public\n    \
                 its agent took west out by itself: This entry cannot reach the member's door: timed out.\n    \
                 rule 0\n       \
                   80.00 % to shop/cart:80 (weight 80)\n         \
                     57.14 % (now 80.00 %) east   tier 1 SameCluster, 1/2 ready; 12.3/s, 0.0 % failed, p99 ≤ 25 ms\n         \
                     22.86 % (now 0.00 %) west   tier 2 Any, 2/2 ready: Some evidence speaks against the member, not enough to act. [Suspect]\n          \
                      0.00 % south  The member does not export the service. [NotExported]\n      \
                   besides, to a backend in west: 0.2/s, 0.0 % failed, p99 ≤ 25 ms\n  \
               left out\n    \
                 member north: NoGateway: lends none"
        );
    }
}
