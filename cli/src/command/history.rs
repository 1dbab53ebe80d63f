//! `fairlead history`: what was decided before, the newest first, with why and what moved.

use clap::Args;
use fairlead_model::history::{Change, Entry, HistoryView, Move};
use fairlead_model::{MemberId, NsName, RouteKey};

use crate::args::Connection;
use crate::cluster::{Cluster, encoded};
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, age, columns, percent};

const AFTER_HELP: &str = "\
A revision is a number that rises whenever traffic of a route moves, or its rules change; all
routes that changed at once share it. CHANGE says for which entries (members where requests
come in) which share went from what to what; \"itself\" is the entry's own Service. What an
agent does by itself while it cannot reach a member is not in it, since the hub decided
nothing then. Old changes fall out: see `fairlead status`.

EXAMPLES
  fairlead history
  fairlead history shop/cart --limit 5
  fairlead history eu-1                 # what eu-1 caused, gained, lost or sends otherwise
  fairlead history -o json | jq '.entries[0].causes'
  fairlead diff 41 42                   # what differs between two of them";

/// Arguments of `history`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct HistoryArgs {
    /// Only changes of a route, [KIND/]NAMESPACE/NAME, or those that concern a member, MEMBER.
    #[arg(value_name = "MEMBER|ROUTE")]
    of: Option<String>,
    /// So many changes at most, the newest.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Of {
    All,
    Member(MemberId),
    Route(String),
}

/// Prints the changes.
pub(crate) async fn run(connection: &Connection, args: &HistoryArgs) -> Result<(), Failure> {
    let of = Of::parse(args.of.as_deref())?;
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    let view = ask(&hub, &of, args.limit).await?;
    output::show(args.output, &view, || table(&view));
    Ok(())
}

async fn ask(hub: &HubApi<'_>, of: &Of, limit: u16) -> Result<HistoryView, Failure> {
    let view = hub.history(&of.query(), limit).await?;
    if !view.entries.is_empty() {
        return Ok(view);
    }
    // Nothing of a name that does not exist is more likely a slip than a silent route.
    let (is_there, why, next) = match of {
        Of::All => return Ok(view),
        Of::Member(member) => {
            let members = hub.members().await?;
            let is_there = members.iter().any(|known| known.member == *member);
            (is_there, format!("there is no member {member}"), "see `fairlead get members`")
        }
        Of::Route(name) => {
            let routes = hub.routes().await?;
            let is_it = |key: &RouteKey| {
                key.to_string().eq_ignore_ascii_case(name) || key.name.to_string() == *name
            };
            let is_there = routes.iter().any(|known| is_it(&known.route));
            (is_there, format!("there is no global route {name}"), "see `fairlead get routes`")
        }
    };
    if is_there {
        return Ok(view);
    }
    let what = format!("no history of {}", of.name());
    Err(Failure::failed(what, format!("{why}, and no change of it is kept")).next(next))
}

impl Of {
    fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let Some(text) = text else { return Ok(Self::All) };
        let what = || format!("no history of {:?}", fairlead_model::id::printable(text));
        if text.contains('/') {
            let is_route = text.parse::<RouteKey>().is_ok() || text.parse::<NsName>().is_ok();
            return match is_route {
                true => Ok(Self::Route(text.to_owned())),
                false => Err(Failure::usage(what(), "a route is [KIND/]NAMESPACE/NAME")
                    .next("see them with `fairlead get routes`")),
            };
        }
        MemberId::new(text).map(Self::Member).map_err(|bad| {
            Failure::usage(what(), bad)
                .next("name a member, or a route as [KIND/]NAMESPACE/NAME with its slash")
        })
    }

    fn query(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Member(member) => format!("member={member}&"),
            Self::Route(route) => format!("route={}&", encoded(route)),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::All => "anything".to_owned(),
            Self::Member(member) => member.to_string(),
            Self::Route(route) => route.clone(),
        }
    }
}

fn table(view: &HistoryView) -> String {
    if view.entries.is_empty() {
        return match view.size.newest {
            0 => "Nothing was decided yet. See `fairlead status`.".to_owned(),
            newest => {
                format!("No change of it is kept; revisions {} to {newest} are.", view.size.oldest)
            }
        };
    }
    let mut rows = Vec::new();
    for entry in &view.entries {
        let causes: Vec<String> = entry.causes.iter().map(ToString::to_string).collect();
        let changes = changes(entry);
        for at in 0..causes.len().max(changes.len()).max(1) {
            let head = |text: String| if at == 0 { text } else { String::new() };
            let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
            rows.push(vec![
                head(entry.number.to_string()),
                head(format!("{} ago", age(view.now, entry.at))),
                head(entry.route.to_string()),
                line(&causes),
                line(&changes),
            ]);
        }
    }
    columns(&["REVISION", "WHEN", "ROUTE", "CAUSE", "CHANGE"], rows)
}

/// Lines for one change: what became of the route, its rules, what moved.
fn changes(entry: &Entry) -> Vec<String> {
    let mut lines = Vec::new();
    match entry.change {
        Change::Appeared => lines.push("appeared".to_owned()),
        Change::Gone => lines.push("gone".to_owned()),
        Change::Changed => {}
    }
    lines.extend(entry.pinned.map(|number| format!("pinned to revision {number}")));
    lines.extend(entry.rules.iter().cloned());
    lines.extend(entry.moved.iter().map(move_line));
    lines
}

/// What moved for some entries, in a line.
pub(crate) fn move_line(moved: &Move) -> String {
    let to = match &moved.to.member {
        Some(member) => format!("to {member}"),
        None => "to itself".to_owned(),
    };
    format!(
        "rules[{}] {} from {} {to}: {} → {}",
        moved.to.rule,
        moved.to.backend,
        moved.entries,
        percent(moved.before),
        percent(moved.after)
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    fn mk_view(entries: fairlead_model::Json) -> HistoryView {
        let size = json!({"newest": 42, "oldest": 7, "entries": 3, "entries_max": 9, "bytes": 1, "bytes_max": 2});
        serde_json::from_value(json!({"now": 130_000, "size": size, "entries": entries})).unwrap()
    }

    fn mk_entry() -> fairlead_model::Json {
        json!({"number": 42, "at": 10_000, "route": "HTTPRoute/shop/cart", "change": "Changed",
            "causes": [{"object": {"kind": "HTTPRoute", "name": "shop/cart", "generation": 3, "what": "edited"}}],
            "rules": ["rules[0]: weights 80:20 → 50:50"],
            "moved": [{"entries": {"names": ["east", "west"]}, "rule": 0, "backend": "shop/cart:80",
                "member": "south", "before": 8000, "after": 5000}],
            "shares": {"classes": []}})
    }

    #[test]
    fn a_change_is_a_row_with_a_line_for_each_cause_and_move() {
        assert_eq!(
            table(&mk_view(json!([mk_entry()]))),
            "REVISION   WHEN     ROUTE                 CAUSE                                      CHANGE\n\
             42         2m ago   HTTPRoute/shop/cart   HTTPRoute shop/cart generation 3: edited   rules[0]: weights 80:20 → 50:50\n\
             \u{20}                                                                                    rules[0] shop/cart:80 from east, west to south: 80.00 % → 50.00 %"
        );
        assert!(table(&mk_view(json!([]))).contains("revisions 7 to 42"));
    }

    #[test]
    fn a_slash_tells_a_route_from_a_member() {
        let of = |text| Of::parse(Some(text)).unwrap();
        assert_eq!(of("eu-1"), Of::Member(MemberId::new("eu-1").unwrap()));
        assert_eq!(of("shop/cart"), Of::Route("shop/cart".into()));
        assert_eq!(of("httproute/shop/cart").query(), "route=httproute%2Fshop%2Fcart&");
        for bad in ["Not_A_Member", "/", "a/b/c/d"] {
            assert!(Of::parse(Some(bad)).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_a_failure_that_says_so() {
        let fake = Fake::new([]);
        fake.hub("api/v1/history", 200, serde_json::to_value(mk_view(json!([]))).unwrap());
        fake.hub("api/v1/members", 200, json!([]));
        let cluster = fake.cluster();
        let hub = HubApi::new(&cluster, fairlead_crds::keys::NAMESPACE);
        let of = Of::Member(MemberId::new("esat").unwrap());
        let said = ask(&hub, &of, 3).await.unwrap_err().for_people();
        assert!(said.contains("no member esat") && said.contains("get members"), "{said}");
        assert!(ask(&hub, &Of::All, 3).await.is_ok());
    }
}
