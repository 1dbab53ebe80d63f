//! h2: a second hub by mistake, and an old one that wakes up. At most one decides, and numbers only rise.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::store::{numbers, shown};
use crate::{
    fault,
    fleet::{
        Fleet,
        program::program,
        trial::{PATH, pass, strict},
    },
    http1,
    launch::Launch,
    process::Unit,
    report::{Facts, Finding, figures},
    wait::{self, Look},
};

const AGENTS: &str = "127.0.0.1:0";
/// Longer than a Lease lives without its holder.
const TAKEN_LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
const AFTERWARDS: Duration = Duration::from_secs(4);
/// What /readyz says while another hub decides.
const OTHER_HUB: &str = "another hub";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "a second hub by mistake waits; a paused one that wakes up steps down";
    facts.look("h2", name, second(fleet)).await;
}

/// A hub beside the right one, with an empty store of its own and no agents.
struct Second {
    unit: Unit,
    admin: SocketAddr,
}

impl Second {
    async fn start(fleet: &Fleet<'_>) -> Result<Self> {
        let world = fleet.world();
        // Free a moment ago; nothing else on this machine takes ports of the loopback by chance.
        let admin = std::net::TcpListener::bind(AGENTS)?.local_addr()?;
        let data = world.folder().join("second-hub");
        let argv = ["run", "--listen", AGENTS, "--admin-listen", &admin.to_string(), "--data-dir"];
        let argv = [program("fairlead-hub")?.display().to_string()]
            .into_iter()
            .chain(argv.map(str::to_owned))
            .chain([data.display().to_string()])
            .collect();
        let kubeconfig = world.hub().kubeconfig().display().to_string();
        let env = [("KUBECONFIG".to_owned(), kubeconfig)].into();
        let launch = Launch { argv, env, ..Launch::default() };
        let unit = Unit::new("second-hub", world.folder().join("second-hub.log"), launch);
        unit.start().await?;
        Ok(Self { unit, admin })
    }

    /// What it says of itself.
    async fn readiness(&self) -> Result<String> {
        let request = Request::get("/readyz").header("host", "localhost");
        let answer = http1::send(self.admin, request.body(Empty::<Bytes>::new())?).await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }

    async fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let look = wait::until(what, TAKEN_LIMIT, || async {
            let text = self.readiness().await?;
            Ok(if is(&text) { Look::Done(text) } else { Look::Not(text) })
        });
        self.unit.unless_it_ends(look).await
    }
}

async fn second(fleet: &Fleet<'_>) -> Result<Finding> {
    let before = (numbers(fleet).await?, fleet.route_changes().await?);
    let load = fleet.start_left(PATH).await?;
    let second = Second::start(fleet).await?;
    let told = fence(fleet, &second).await;
    second.unit.stop(GRACE).await;
    let waited = told?;
    fleet.wait_whole(PATH).await?;
    pass(&load, AFTERWARDS).await?;
    let report = strict(&load.stop().await);
    let after = (numbers(fleet).await?, fleet.route_changes().await?);
    let risen = before.0.iter().zip(&after.0).all(|(before, after)| before <= after);
    Ok(Finding::new(
        risen && before.1 == after.1 && report.failed() == 0,
        figures([
            ("the_second_said", json!(waited)),
            ("before", json!(shown(&before.0))),
            ("after", json!(shown(&after.0))),
            ("route_changes", json!(after.1 - before.1)),
            ("failed", json!(report.failed())),
            ("requests", json!(report.total())),
        ]),
    ))
}

/// The second waits; the first is paused and loses its Lease; woken up, it ends by itself.
async fn fence(fleet: &Fleet<'_>, second: &Second) -> Result<String> {
    let waits = |text: &str| text.contains(OTHER_HUB);
    let waited = second.wait_until("the second hub to wait", waits).await?;
    let kubelet = fleet.world().kubelet(fleet.world().hub().name())?;
    let first = kubelet.pid(fault::HUB).context("the hub does not run")?;
    let pid = Pid::from_raw(i32::try_from(first)?);
    kill(pid, Signal::SIGSTOP).context("pausing the hub")?;
    let taken = second.wait_until("the second hub to take over", |text| !waits(text)).await;
    kill(pid, Signal::SIGCONT).context("waking the hub")?;
    taken?;
    wait::until("the first hub to step down", TAKEN_LIMIT, || async {
        Ok(match kubelet.pid(fault::HUB) {
            Some(now) if now == first => Look::Not("it goes on".to_owned()),
            _ => Look::Done(()),
        })
    })
    .await?;
    let line = waited.lines().find(|line| waits(line)).unwrap_or_default();
    Ok(line.trim_start_matches("[-] ").to_owned())
}
