//! Gateways that send their spans to the agents, as docs/guide/traces.md tells users to do it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::shop;
use crate::{
    echo::Answer,
    http1,
    object::{ObjectKey, parse},
    world::World,
};

/// Lets the gateways of a member send their spans to its agent.
pub async fn trace_gateways(world: &World, member: &str) -> Result<()> {
    let mut proxy = read(world, member).await?.context("the member has no EnvoyProxy")?;
    let wanted = parse(include_str!("../../manifests/tracing.yaml"))?;
    let wanted = wanted.first().context("the manifest holds one object")?;
    proxy["spec"]["telemetry"]["tracing"] = wanted["spec"]["telemetry"]["tracing"].clone();
    write(world, member, &proxy).await
}

/// Takes it back.
pub async fn untrace_gateways(world: &World, member: &str) -> Result<()> {
    let Some(mut proxy) = read(world, member).await? else { return Ok(()) };
    if let Some(telemetry) = proxy["spec"]["telemetry"].as_object_mut() {
        telemetry.remove("tracing");
    }
    write(world, member, &proxy).await
}

async fn read(world: &World, member: &str) -> Result<Option<Value>> {
    let namespace = "envoy-gateway-system";
    let key = ObjectKey::new("gateway.envoyproxy.io/v1alpha1", "EnvoyProxy", namespace, "host");
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
}

/// Sends one request as a part of a trace of its own.
pub async fn send(address: SocketAddr, path: &str) -> Sent {
    let trace = format!("{:032x}", rand::random::<u128>().max(1));
    let client = format!("{:016x}", rand::random::<u64>().max(1));
    let asked = async {
        let request = Request::get(path)
            .header("host", shop::HOST)
            .header("traceparent", format!("00-{trace}-{client}-01"))
            .body(Empty::<Bytes>::new())?;
        let answer =
            tokio::time::timeout(Duration::from_secs(2), http1::send(address, request)).await??;
        anyhow::Ok(serde_json::from_slice(answer.body())?)
    };
    let answer = asked.await.ok();
    Sent { trace, client, answer }
}
