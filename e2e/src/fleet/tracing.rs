//! Gateways that send their spans to the agents, set up as people do it: `fairlead join
//! --trace-gateways`, and where the GatewayClass has an EnvoyProxy of its own, as in these worlds, by what
//! the refusal says to put into it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{Fleet, program::Ran, shop};
use crate::{
    echo::Answer,
    http1,
    object::{ObjectKey, parse},
    world::World,
};

/// What stands before the snippet in a refusal.
const SNIPPET_AFTER: &str = "without --trace-gateways:\n";
const ENVOY_PROXY: [&str; 2] = ["gateway.envoyproxy.io/v1alpha1", "EnvoyProxy"];

/// How a member was joined.
pub struct Joined {
    pub ran: Ran,
    /// What `join` said first, if it did not set the gateways up itself.
    pub refusal: Option<String>,
}

/// Joins a member whose gateways trace so many percent of the requests.
pub async fn join_traced(
    fleet: &Fleet<'_>,
    member: &str,
    flags: &str,
    percent: u8,
) -> Result<Joined> {
    let line = format!("{} {flags}", fleet.join_line(member).await?);
    let ran = fleet.at(member, &format!("{line} --trace-gateways={percent}")).await?;
    if ran.code == Some(0) {
        return Ok(Joined { ran, refusal: None });
    }
    let said = ran.said().to_owned();
    let spec = snippet(&said).with_context(|| format!("joining {member}: {said}"))?;
    let mut proxy = read(fleet.world(), member).await?.context("the member has no EnvoyProxy")?;
    let tracing = spec["spec"]["telemetry"]["tracing"].clone();
    ensure!(tracing.is_object(), "the snippet says nothing of tracing: {spec}");
    proxy["spec"]["telemetry"]["tracing"] = tracing;
    write(fleet.world(), member, &proxy).await?;
    // Nothing was written, so the token is as good as new.
    let ran = fleet.at(member, &line).await?;
    ran.clone().expect_success().with_context(|| format!("joining {member}"))?;
    Ok(Joined { ran, refusal: Some(said) })
}

/// The YAML that a refusal ends with.
fn snippet(said: &str) -> Option<Value> {
    let (_, text) = said.split_once(SNIPPET_AFTER)?;
    parse(text).ok()?.into_iter().next()
}

/// Takes tracing out of a member's gateways again.
pub async fn untrace_gateways(world: &World, member: &str) -> Result<()> {
    let Some(mut proxy) = read(world, member).await? else { return Ok(()) };
    if let Some(telemetry) = proxy["spec"]["telemetry"].as_object_mut() {
        telemetry.remove("tracing");
    }
    write(world, member, &proxy).await
}

/// The EnvoyProxy of the harness.
async fn read(world: &World, member: &str) -> Result<Option<Value>> {
    let [api_version, kind] = ENVOY_PROXY;
    let key = ObjectKey::new(api_version, kind, "envoy-gateway-system", "host");
    world.member(member)?.objects().get(&key).await
}

async fn write(world: &World, member: &str, proxy: &Value) -> Result<()> {
    let bare = json!({
        "apiVersion": proxy["apiVersion"], "kind": proxy["kind"],
        "metadata": {
            "name": proxy["metadata"]["name"], "namespace": proxy["metadata"]["namespace"],
        },
        "spec": proxy["spec"],
    });
    world.member(member)?.objects().apply(&bare).await.map(drop)
}

/// A request of ours: its trace, and what came back.
pub struct Sent {
    pub trace: String,
    /// The span id that we claim.
    pub client: String,
    pub answer: Option<Answer>,
    /// Why there is none.
    pub failed: Option<String>,
}

/// How long an answer may take.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(2);

impl Sent {
    /// A trace of its own, before anything was answered.
    pub fn unanswered() -> Self {
        let trace = format!("{:032x}", rand::random::<u128>().max(1));
        let client = format!("{:016x}", rand::random::<u64>().max(1));
        Self { trace, client, answer: None, failed: None }
    }

    /// The header that makes a request a part of it.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.client)
    }
}

/// Sends one request as a part of a trace of its own.
pub async fn send(address: SocketAddr, path: &str) -> Sent {
    let mut sent = Sent::unanswered();
    let asked = async {
        let request = Request::get(path)
            .header("host", shop::HOST)
            .header("traceparent", sent.traceparent())
            .body(Empty::<Bytes>::new())?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, http1::send(address, request)).await??;
        let status = answer.status();
        serde_json::from_slice(answer.body()).with_context(|| format!("no echo, but {status}"))
    };
    let answer = asked.await;
    sent.failed = answer.as_ref().err().map(|error| format!("{error:#}"));
    sent.answer = answer.ok();
    sent
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_with_yaml() {
        let said = "✔ GatewayClass eg\nerror: cannot: why\n  next: put this into it, and run this again \
                    without --trace-gateways:\n        spec:\n          telemetry:\n            tracing: \
                    {samplingRate: 1}";
        let spec = snippet(said).unwrap();
        assert_eq!(spec["spec"]["telemetry"]["tracing"]["samplingRate"], 1);
        assert_eq!(snippet("error: another"), None);
    }
}
