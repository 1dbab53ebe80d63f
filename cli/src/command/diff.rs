//! `fairlead diff`: what differs between two revisions of what was decided.

use clap::Args;
use fairlead_model::history::{Change, DiffView, RouteDiff};

use crate::args::Connection;
use crate::cluster::{Cluster, encoded};
use crate::command::history::move_line;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, list};

const AFTER_HELP: &str = "\
Without M: from revision N to now. Shares that are the same at both are not shown, whatever
happened in between. Of rules it says which part differs and never a value; -o json has the
same. For more entries than the history keeps by name (64 that send alike) those are compared
that it does.

EXAMPLES
  fairlead history                      # shows the revisions
  fairlead diff 41 42
  fairlead diff 41 --route shop/cart -o json";

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DiffArgs {
    /// The earlier revision.
    #[arg(value_name = "N")]
    from: u64,
    /// The later one; without it: now.
    #[arg(value_name = "M")]
    to: Option<u64>,
    /// Only this route, [KIND/]NAMESPACE/NAME.
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints what differs.
pub(crate) async fn run(connection: &Connection, args: &DiffArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    let to = args.to.map(|to| format!("&to={to}")).unwrap_or_default();
    let route = args.route.as_deref().map(|route| format!("&route={}", encoded(route)));
    let query = format!("from={}{to}{}", args.from, route.unwrap_or_default());
    let view = hub.diff(&query).await?;
    output::show(args.output, &view, || text(&view));
    Ok(())
}

fn text(view: &DiffView) -> String {
    let mut lines = vec![format!("from revision {} to {}", view.from, view.to)];
    if view.routes.is_empty() {
        lines.push("  nothing differs".to_owned());
    }
    lines.extend(view.routes.iter().flat_map(route_lines));
    if !view.unknown.is_empty() {
        let routes = list(&view.unknown);
        lines.push(format!("  not known any more at one of the two: {routes}"));
    }
    lines.join("\n")
}

fn route_lines(diff: &RouteDiff) -> Vec<String> {
    let what = match diff.change {
        Change::Appeared => " appeared",
        Change::Gone => " is gone",
        Change::Changed => "",
    };
    let mut lines = vec![format!("  {}{what}", diff.route)];
    let mut line = |text: String| lines.push(format!("    {text}"));
    diff.rules.iter().for_each(|rule| line(rule.clone()));
    if !diff.joined.is_empty() && diff.change == Change::Changed {
        line(format!("entries that are new: {}", diff.joined));
    }
    if !diff.left.is_empty() && diff.change == Change::Changed {
        line(format!("entries no more: {}", diff.left));
    }
    diff.moved.iter().for_each(|moved| line(move_line(moved)));
    lines
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_told_by_route() {
        let view: DiffView = serde_json::from_value(json!({"from": 1, "to": 3, "unknown": ["HTTPRoute/shop/old"],
            "routes": [{"route": "HTTPRoute/shop/cart", "change": "Changed", "rules": ["2 rules, before 1"],
                "joined": {"names": ["south"]}, "left": {"names": []},
                "moved": [{"entries": {"names": ["east"], "more": 3}, "rule": 0, "backend": "shop/cart:80",
                    "member": null, "before": 10000, "after": 2500}]}]}))
        .unwrap();
        assert_eq!(
            text(&view),
            "from revision 1 to 3\n  HTTPRoute/shop/cart\n    2 rules, before 1\n    entries that are new: south\n    \
             rules[0] shop/cart:80 from east and 3 more to itself: 100.00 % → 25.00 %\n  \
             not known any more at one of the two: HTTPRoute/shop/old"
        );
        let same = DiffView { from: 2, to: 2, routes: Vec::new(), unknown: Vec::new() };
        assert!(text(&same).contains("nothing differs"));
    }
}
