//! t6: the backend is away for a while. Gateways must not notice, the relay's memory is bounded,
//! delivery resumes, and every span is accounted for.
//!
//! East's agent gets a queue of 1 MiB for it, so that spans must be dropped. Three books are compared:
//! what requests were sent, what hub and agents count, and what Jaeger says that it has taken since it
//! came back.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    EAST, GATHERED, Stage, entries,
    metrics::{metrics_text, shown},
    send_many, traces, wait_still,
};
use crate::{
    bench::usage,
    fleet::shop,
    load::{Entry, Load, Report},
    object::ObjectKey,
    report::{Finding, figures, milliseconds},
    wait::{self, Look},
};

const AWAY: Duration = Duration::from_secs(60);
const BEFORE: Duration = Duration::from_secs(10);
const RATE: f64 = 100.0;
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Queue of east's agent, the smallest there is.
const QUEUE_MIB: u32 = 1;
const QUEUE_BYTES: f64 = (QUEUE_MIB << 20) as f64;
/// What the agent may grow by: the queue, a batch under way, and what its allocator keeps.
const GROWTH_MIB_MAX: f64 = 12.0;
const AGENT: &str = "fairlead-agent";
/// Of each request through the entry: the client's side and the backend's.
const SPANS_AT_ENTRY: usize = 2;
/// Answers while the backend is away may take so much longer: noise of a busy machine.
const P99_FACTOR_MAX: f64 = 2.0;
const P99_NOISE_MS: f64 = 20.0;

/// What hub or agent counts of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Account {
    taken: f64,
    sent: f64,
    dropped: f64,
    queued: f64,
}

impl Account {
    fn of(metrics: &str, who: &str) -> Result<Self> {
        let spans = |fate: &str| {
            value(metrics, &format!("fairlead_{who}_otlp_spans_total{{fate=\"{fate}\"}}"))
        };
        Ok(Self {
            taken: spans("taken")?,
            sent: spans("sent")?,
            dropped: spans("dropped_full")? + spans("dropped_refused")?,
            queued: value(metrics, &format!("fairlead_{who}_otlp_queued_spans"))?,
        })
    }

    /// Nothing waits, and nothing is under way.
    fn is_settled(&self) -> bool {
        self.queued == 0.0 && self.taken == self.sent + self.dropped
    }
}

type Accounts = BTreeMap<String, Account>;

async fn accounts(stage: &Stage<'_>) -> Result<Accounts> {
    let mut accounts = Accounts::new();
    for (name, address) in shown(stage.fleet.world())? {
        let who = if name == "hub" { "hub" } else { "agent" };
        accounts.insert(name, Account::of(&metrics_text(address).await?, who)?);
    }
    Ok(accounts)
}

fn value(metrics: &str, name: &str) -> Result<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.with_context(|| format!("{name} is not among the metrics"))?;
    line.trim().parse().with_context(|| format!("{name} is {line:?}"))
}

/// Spans of gateways that east's agent was given.
async fn relayed(stage: &Stage<'_>) -> Result<f64> {
    let text = east_metrics(stage).await?;
    let of = |kind| value(&text, &format!("fairlead_agent_relay_spans_total{{kind=\"{kind}\"}}"));
    Ok(of("attributed")? + of("other")?)
}

async fn east_metrics(stage: &Stage<'_>) -> Result<String> {
    metrics_text(stage.fleet.world().member(EAST)?.local()?.pods.address).await
}

pub(super) async fn away(stage: &Stage<'_>) -> Result<Finding> {
    narrow(stage).await.context("giving east's agent a small queue")?;
    let east = entries(stage, &[EAST]).await?[0];
    // Gateways find the agent again after its restart, and send what they gathered meanwhile.
    send_many(&[east], shop::CATALOG, 50).await;
    let first = wait_quiet(stage).await?;
    let before = load(east, BEFORE).await;
    wait_quiet(stage).await?;
    stage.jaeger.kill().await;
    let (during, grown) = tokio::join!(load(east, AWAY), watch(stage));
    let grown = grown?;
    let away = accounts(stage).await?;
    stage.jaeger.start_again().await?;
    let fresh = send_many(&[east], shop::CATALOG, 20).await;
    let ids: Vec<&str> = fresh.iter().map(|sent| sent.trace.as_str()).collect();
    let delivered = traces(&stage.jaeger, &ids, |trace| trace.spans.len() >= 5).await.is_ok();
    let last = wait_quiet(stage).await?;
    let (after, accepted) = wait_settled(stage).await?;

    let requests = before.total() + during.total() + fresh.len();
    let sent_since: f64 = after.iter().map(|(name, it)| it.sent - away[name].sent).sum();
    let settled = after.values().all(Account::is_settled);
    let failed = before.failed() + during.failed();
    let [calm, busy] = [&before, &during].map(|report| milliseconds(report.latency(0.99)));
    let holds = failed == 0
        && busy <= calm * P99_FACTOR_MAX + P99_NOISE_MS
        && delivered
        && settled
        && sent_since == accepted as f64
        && last - first == (requests * SPANS_AT_ENTRY) as f64
        && after[EAST].dropped > 0.0
        && grown.queue_bytes <= QUEUE_BYTES
        && grown.rss_mib <= GROWTH_MIB_MAX;
    Ok(Finding::new(
        holds,
        figures([
            ("away_s", json!(AWAY.as_secs())),
            ("requests", json!(requests)),
            ("failed", json!(failed)),
            ("p99_ms_before", json!(calm)),
            ("p99_ms_away", json!(busy)),
            ("queue_bytes_max", json!(grown.queue_bytes)),
            ("memory_grew_mib", json!(grown.rss_mib)),
            ("spans_from_gateway", json!(last - first)),
            ("taken", json!(after[EAST].taken)),
            ("sent", json!(after[EAST].sent)),
            ("dropped", json!(after[EAST].dropped)),
            ("all_sent_since", json!(sent_since)),
            ("jaeger_took_since", json!(accepted)),
        ]),
    ))
}

async fn load(entry: SocketAddr, time: Duration) -> Report {
    let load = Load::new(shop::HOST, shop::CATALOG).rate(RATE).lasting(time);
    Load { entries: vec![Entry { name: EAST.to_owned(), address: entry }], ..load }.run().await
}

/// Gives east's agent the smallest queue, as its values would, and waits until it runs with it.
async fn narrow(stage: &Stage<'_>) -> Result<()> {
    let world = stage.fleet.world();
    let (kubelet, objects) = (world.kubelet(EAST)?, world.member(EAST)?.objects());
    let old = kubelet.pid(AGENT);
    let key = ObjectKey::new("apps/v1", "Deployment", "fairlead-system", AGENT);
    let mut deployment = objects.get(&key).await?.context("there is no agent")?;
    let args = &mut deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    let args = args.as_array_mut().context("the agent has no arguments")?;
    args.push(json!(format!("--otlp-queue-mib={QUEUE_MIB}")));
    let bare = json!({
        "apiVersion": deployment["apiVersion"], "kind": deployment["kind"],
        "metadata": {"name": AGENT, "namespace": "fairlead-system"},
        "spec": deployment["spec"],
    });
    objects.apply(&bare).await?;
    wait::until("east's agent to run with a small queue", LIMIT, || async {
        let pid = kubelet.pid(AGENT);
        east_metrics(stage).await?;
        Ok(match pid.is_some() && pid != old {
            true => Look::Done(()),
            false => Look::Not("it is the old one".to_owned()),
        })
    })
    .await?;
    stage.fleet.wait_settled().await.map(drop)
}

/// How far east's agent grew.
#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    rss_mib: f64,
    queue_bytes: f64,
}

/// Looks on while the backend is away.
async fn watch(stage: &Stage<'_>) -> Result<Grown> {
    let pid = stage.fleet.world().kubelet(EAST)?.pid(AGENT).context("there is no agent")?;
    let start = usage(pid)?.rss_mib;
    let end = tokio::time::Instant::now() + AWAY;
    let mut grown = Grown::default();
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK_PAUSE).await;
        let queued = value(&east_metrics(stage).await?, "fairlead_agent_otlp_queue_bytes")?;
        grown.queue_bytes = grown.queue_bytes.max(queued);
        grown.rss_mib = grown.rss_mib.max(usage(pid)?.rss_mib - start);
    }
    Ok(grown)
}

/// Waits until gateways send nothing more, and gives how many spans they have sent.
async fn wait_quiet(stage: &Stage<'_>) -> Result<f64> {
    wait_still("spans", GATHERED, || relayed(stage)).await
}

/// Waits until everybody has delivered; gives the books, and Jaeger's, of one moment.
async fn wait_settled(stage: &Stage<'_>) -> Result<(Accounts, u64)> {
    wait::until("every span to be delivered or dropped", LIMIT, || async {
        let before = accounts(stage).await?;
        let accepted = stage.jaeger.accepted().await?;
        let after = accounts(stage).await?;
        let waits = after.iter().find(|(_, account)| !account.is_settled());
        Ok(match waits {
            None if before == after => Look::Done((after, accepted)),
            None => Look::Not("spans are sent".to_owned()),
            Some((name, account)) => Look::Not(format!("{name}: {account:?}")),
        })
    })
    .await
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_book_adds_up_when_nothing_waits() {
        let text = "\
fairlead_agent_otlp_spans_total{fate=\"taken\"} 10
fairlead_agent_otlp_spans_total{fate=\"sent\"} 7
fairlead_agent_otlp_spans_total{fate=\"dropped_full\"} 2
fairlead_agent_otlp_spans_total{fate=\"dropped_refused\"} 1
fairlead_agent_otlp_queued_spans 0
";
        let account = Account::of(text, "agent").unwrap();
        assert_eq!((account.dropped, account.is_settled()), (3.0, true));
        assert!(!Account { sent: 6.0, ..account }.is_settled());
        assert!(Account::of("", "hub").is_err());
    }
}
