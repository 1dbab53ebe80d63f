//! t7, t8, t9, t12: metrics, rules and queries of the dashboard, as promtool and a real Prometheus see them.
//!
//! Prometheus goes on scraping while other facts are looked at; t12 looks back at all of it.

use std::{collections::BTreeMap, net::Ipv4Addr, time::SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{EAST, Stage};
use crate::{
    ask::{Question, Resolver},
    fleet::shop,
    http1,
    object::parse,
    path,
    prometheus::{Prometheus, Targets},
    report::{Facts, Finding, figures},
    wait::{self, Look},
    world::World,
};

/// Where hub and agents show their metrics.
const ADMIN_PORT: u16 = 8080;
/// Where agents answer for names.
const DNS_PORT: u16 = 5353;
/// Charts with a PrometheusRule.
const CHARTS: [&str; 2] = ["hub", "agent"];
/// In place of what Grafana fills in.
const RATE_INTERVAL: &str = "5m";

/// A Prometheus that goes on scraping.
pub(super) struct Watch {
    prometheus: Prometheus,
    since: SystemTime,
}

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Option<Watch> {
    let name = "promtool finds nothing to say about the metrics of hub and agents";
    facts.look("t7", name, metrics(stage)).await;
    let name = "promtool takes the charts' rules";
    facts.look("t8", name, rules(stage)).await;
    let name =
        "a Prometheus scrapes all, evaluates every alert, and answers the dashboard's queries";
    let mut watch = None;
    facts.look("t9", name, scraped(stage, &mut watch)).await;
    watch
}

impl Watch {
    pub(super) async fn stop(self) {
        self.prometheus.kill().await;
    }

    /// What the dashboard's queries have found since the start.
    pub(super) async fn look_back(&self) -> Result<Finding> {
        let (mut empty, queries) = (Vec::new(), dashboard()?);
        for query in &queries {
            if self.prometheus.query_since(query, self.since).await? == 0 {
                empty.push(query.as_str());
            }
        }
        let expected = |query: &&str| SILENT.iter().any(|(name, _)| query.contains(name));
        let holds = empty.iter().all(expected);
        Ok(Finding::new(
            holds,
            figures([
                ("queries", json!(queries.len())),
                ("found_something", json!(queries.len() - empty.len())),
                ("found_nothing", json!(empty)),
            ]),
        ))
    }
}

/// Metrics of what does not happen here, and why.
const SILENT: [(&str, &str); 4] = [
    ("fairlead_hub_plan_pending_seconds", "plans are applied sooner than it is looked at"),
    ("fairlead_agent_write_failures_total", "API servers take all that is written"),
    ("fairlead_agent_exceptions", "everything is as planned"),
    ("fairlead_hub_exceptions", "everything is as planned"),
];

/// The metrics of hub or agent, as text.
pub(super) async fn metrics_text(address: Ipv4Addr) -> Result<String> {
    let request = Request::get("/metrics").header("host", "metrics").body(Empty::<Bytes>::new())?;
    let answer = http1::send((address, ADMIN_PORT).into(), request).await?;
    ensure!(answer.status() == 200, "metrics are answered with {}", answer.status());
    String::from_utf8(answer.into_body().to_vec()).context("metrics are text")
}

/// Hub and agents by name, with the addresses of their pods.
pub(super) fn shown(world: &World) -> Result<BTreeMap<String, Ipv4Addr>> {
    let mut shown = BTreeMap::from([("hub".to_owned(), world.hub().local()?.pods.address)]);
    for member in world.members() {
        shown.insert(member.name().to_owned(), member.local()?.pods.address);
    }
    Ok(shown)
}

async fn metrics(stage: &Stage<'_>) -> Result<Finding> {
    let (mut said, mut series) = (BTreeMap::new(), BTreeMap::new());
    for (name, address) in shown(stage.fleet.world())? {
        let text = metrics_text(address).await?;
        series.insert(name.clone(), text.lines().filter(|line| !line.starts_with('#')).count());
        let checked = stage.promtool.check_metrics(&text).await?;
        if !checked.is_clean() {
            said.insert(name, checked.said);
        }
    }
    let holds = said.is_empty();
    Ok(Finding::new(holds, figures([("series", json!(series)), ("promtool", json!(said))])))
}

/// The rules of both charts, as helm renders them for the Prometheus operator.
async fn rendered(stage: &Stage<'_>) -> Result<Value> {
    let mut groups = Vec::new();
    for chart in CHARTS {
        let mut helm = tokio::process::Command::new(&stage.fleet.world().tools().helm);
        let folder = path::repository()?.join("deploy/chart").join(chart);
        helm.arg("template").arg("x").arg(&folder);
        helm.arg("--values").arg(folder.join("ci/default-values.yaml"));
        helm.arg("--set=metrics.prometheusRule.enabled=true");
        helm.arg("--show-only=templates/prometheusrule.yaml");
        let output = helm.output().await.context("starting helm")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rule = parse(&text)?.into_iter().next().context("helm rendered no rule")?;
        groups.extend(rule["spec"]["groups"].as_array().into_iter().flatten().cloned());
    }
    Ok(json!({"groups": groups}))
}

fn alerts(rules: &Value) -> usize {
    let groups = rules["groups"].as_array().into_iter().flatten();
    groups.map(|group| group["rules"].as_array().map_or(0, Vec::len)).sum()
}

async fn rules(stage: &Stage<'_>) -> Result<Finding> {
    let rules = rendered(stage).await?;
    // JSON is YAML.
    let file = stage.fleet.world().folder().join("rules.yaml");
    std::fs::write(&file, rules.to_string()).context("writing the rules")?;
    let checked = stage.promtool.check_rules(&file).await?;
    let alerts = alerts(&rules);
    let holds = checked.is_clean() && alerts > 0;
    let said = if holds { String::new() } else { checked.said };
    Ok(Finding::new(holds, figures([("alerts", json!(alerts)), ("promtool", json!(said))])))
}

async fn scraped(stage: &Stage<'_>, watch: &mut Option<Watch>) -> Result<Finding> {
    let world = stage.fleet.world();
    let all = shown(world)?;
    let target = |(_, address): (&String, &Ipv4Addr)| format!("{address}:{ADMIN_PORT}");
    let targets = Targets {
        hub: all.iter().filter(|(name, _)| *name == "hub").map(target).collect(),
        agents: all.iter().filter(|(name, _)| *name != "hub").map(target).collect(),
    };
    let rules = rendered(stage).await?;
    let program = stage.promtool.prometheus();
    let since = SystemTime::now();
    let prometheus = Prometheus::start(world, program, &targets, &rules).await?;
    let found = look(&prometheus, all.len(), alerts(&rules)).await;
    *watch = Some(Watch { prometheus, since });
    // Nobody else asks for names here.
    let east = world.member(EAST)?.local()?.pods.address;
    let _ =
        Resolver::to((east, DNS_PORT).into()).await?.ask(&Question::address(shop::HOST)?).await?;
    found
}

async fn look(prometheus: &Prometheus, targets: usize, alerts: usize) -> Result<Finding> {
    wait::until("every target to be scraped and every rule evaluated", SCRAPE_LIMIT, || async {
        let up = prometheus.up().await?;
        let evaluated = prometheus.rules().await?;
        let pending = evaluated.iter().filter(|rule| rule.health == "unknown").count();
        Ok(match up == targets && evaluated.len() == alerts && pending == 0 {
            true => Look::Done(()),
            false => Look::Not(format!("{up} of {targets} up, {pending} rules not evaluated")),
        })
    })
    .await?;
    let rules = prometheus.rules().await?;
    let bad: BTreeMap<&str, &str> = rules
        .iter()
        .filter(|rule| rule.health != "ok")
        .map(|rule| (rule.name.as_str(), rule.error.as_str()))
        .collect();
    let firing: Vec<&str> =
        rules.iter().filter(|rule| rule.state == "firing").map(|rule| rule.name.as_str()).collect();
    let (mut refused, queries) = (Vec::new(), dashboard()?);
    for query in &queries {
        if let Err(error) = prometheus.query(query).await {
            refused.push(format!("{query}: {error:#}"));
        }
    }
    let whole = prometheus.query(WHOLE).await?;
    let is_whole = !whole.is_empty() && whole.iter().all(|sum| (sum - 1.0).abs() < 0.001);
    let holds = bad.is_empty() && refused.is_empty() && firing.is_empty() && is_whole;
    Ok(Finding::new(
        holds,
        figures([
            ("targets", json!(targets)),
            ("alerts", json!(rules.len())),
            ("alerts_with_errors", json!(bad)),
            ("alerts_that_fire", json!(firing)),
            ("queries", json!(queries.len())),
            ("queries_refused", json!(refused)),
            ("weights_of_routes_add_up_to", json!(whole)),
        ]),
    ))
}

const SCRAPE_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
/// Asked and effective weights of each route are all of its traffic.
const WHOLE: &str = "sum by (route, weight) (fairlead_hub_route_weight_ratio)";

/// Every query of the dashboard.
fn dashboard() -> Result<Vec<String>> {
    let text = include_str!("../../../../deploy/chart/hub/dashboard.json");
    let dashboard: Value = serde_json::from_str(text).context("reading the dashboard")?;
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.filter_map(|target| target["expr"].as_str());
    Ok(queries.map(|query| query.replace("$__rate_interval", RATE_INTERVAL)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboard_has_queries_that_prometheus_can_read() {
        let queries = dashboard().unwrap_or_default();
        assert!(queries.len() > 20, "{queries:?}");
        assert!(queries.iter().all(|query| !query.contains('$')), "{queries:?}");
    }
}
