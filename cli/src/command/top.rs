//! `fairlead top`: what flows at present, from which entry to which target.
//!
//! The figures come from the spans of gateways that send them to their agents; a cluster whose
//! gateways send none shows nothing here.

use std::time::Duration;

use clap::Args;
use fairlead_model::view::FlowView;

use crate::args::Connection;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::output::{self, Format, columns, or_dash};

const AFTER_HELP: &str = "\
Rates are those of the last five seconds, corrected for the share of requests that gateways trace.
ASKED is the share of the rule's requests that the target would get were all members healthy, NOW the
share in force, with health and with what the entry's agent does by itself.

EXAMPLES
  fairlead top
  fairlead top shop/cart --watch
  fairlead top -o json";

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TopArgs {
    /// Only routes whose name ends so: NAMESPACE/NAME or NAME.
    route: Option<String>,
    /// Show it again every two seconds until interrupted.
    #[arg(short, long)]
    watch: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

const EVERY: Duration = Duration::from_secs(2);
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Prints the table.
pub(crate) async fn run(connection: &Connection, args: &TopArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let hub = HubApi::new(&cluster, &connection.namespace);
    loop {
        let mut flows = hub.traffic().await?;
        flows.retain(|flow| args.route.as_deref().is_none_or(|route| is_of(flow, route)));
        if args.watch {
            output::print(CLEAR);
        }
        output::show(args.output, &flows, || table(&flows));
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// `HTTPRoute/shop/cart` is meant by itself, `shop/cart` and `cart`.
fn is_of(flow: &FlowView, route: &str) -> bool {
    flow.route.strip_suffix(route).is_some_and(|head| head.is_empty() || head.ends_with('/'))
}

/// The table of flows.
pub(crate) fn table(flows: &[FlowView]) -> String {
    if flows.is_empty() {
        return "nothing flows, or gateways send no spans to their agents; see docs/guide/traces.md"
            .to_owned();
    }
    let share =
        |share: Option<f64>| share.map_or("-".to_owned(), |it| format!("{:.1} %", it * 100.0));
    let row = |flow: &FlowView| {
        vec![
            flow.route.clone(),
            flow.rule.to_string(),
            or_dash(&flow.backend),
            flow.entry.to_string(),
            flow.target.to_string(),
            share(flow.asked),
            share(flow.effective),
            format!("{:.1}", flow.per_second),
            format!("{:.1} %", flow.error_share * 100.0),
            bound(flow.p50_ms),
            bound(flow.p99_ms),
        ]
    };
    let header = [
        "ROUTE",
        "RULE",
        "BACKEND",
        "ENTRY",
        "TARGET",
        "ASKED",
        "NOW",
        "PER SECOND",
        "ERRORS",
        "P50",
        "P99",
    ];
    columns(&header, flows.iter().map(row).collect())
}

/// A latency by the bound of its bucket.
fn bound(ms: Option<u64>) -> String {
    ms.map_or("over 10 s".to_owned(), |ms| format!("≤ {ms} ms"))
}

/// Rate, errors and latency in a few words, for lines that say more.
pub(crate) fn words(flow: &FlowView) -> String {
    format!(
        "{:.1}/s, {:.1} % failed, p99 {}",
        flow.per_second,
        flow.error_share * 100.0,
        bound(flow.p99_ms)
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::MemberId;

    fn flow() -> FlowView {
        FlowView {
            route: "HTTPRoute/shop/cart".to_owned(),
            rule: 0,
            backend: "shop/cart:80".to_owned(),
            entry: MemberId::new("east").unwrap(),
            target: MemberId::new("west").unwrap(),
            per_second: 12.34,
            error_share: 0.015,
            p50_ms: Some(5),
            p99_ms: None,
            asked: Some(0.2),
            effective: Some(0.255),
        }
    }

    #[test]
    fn a_route_is_meant_by_the_end_of_its_name() {
        for name in ["cart", "shop/cart", "HTTPRoute/shop/cart"] {
            assert!(is_of(&flow(), name), "{name}");
        }
        assert!(!is_of(&flow(), "art") && !is_of(&flow(), "shop"));
    }

    #[test]
    fn a_line_tells_rate_errors_and_bounds() {
        let text = table(&[flow()]);
        for word in ["12.3", "1.5 %", "20.0 %", "25.5 %", "≤ 5 ms", "over 10 s", "east", "west"] {
            assert!(text.contains(word), "{word} not in {text}");
        }
        assert_eq!(words(&flow()), "12.3/s, 1.5 % failed, p99 over 10 s");
        assert!(table(&[]).contains("nothing flows"));
    }
}
