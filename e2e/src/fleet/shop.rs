//! The small shop of demo, scenarios and benches: what its users write in hub and members, and
//! the echo backends that play its services.
//!
//! The YAML lies in `e2e/shop`, for people to read and apply by hand.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{Fleet, entry};
use crate::{
    backend::Echo,
    echo::Answer,
    http1,
    load::{Entry, Load},
    object::{ObjectKey, fill},
    wait::{self, Look},
};

pub const NAMESPACE: &str = "shop";
/// Where the shop's global Gateway lives.
pub const GATEWAY_NAMESPACE: &str = "infra";
pub const HOST: &str = "shop.example.com";
/// Two versions behind it, 80 to 20, in every member.
pub const CART: &str = "/cart";
/// One service behind it, in one member.
pub const CATALOG: &str = "/catalog";
/// Replicas of each service in each member that has it.
pub const REPLICAS: u8 = 2;
/// How long a declared route may take to be live in every Envoy.
pub const LIVE_LIMIT: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// So many answers in a row are no luck.
const STREAK: usize = 5;

const HUB_YAML: &str = include_str!("../../shop/hub.yaml");
const MEMBER_YAML: &str = include_str!("../../shop/member.yaml");
const EXPORT_YAML: &str = include_str!("../../shop/export.yaml");
const SPREAD_YAML: &str = include_str!("../../shop/spread.yaml");

/// A global route of the shop: one path, backends with weights, any filters.
pub fn route(name: &str, path: &str, backends: &[(&str, u32)], filters: &Value) -> Value {
    let backend = |(service, weight): &(&str, u32)| {
        json!({
            "group": "multicluster.x-k8s.io", "kind": "ServiceImport",
            "name": service, "port": 80, "weight": weight,
        })
    };
    let mut rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": backends.iter().map(backend).collect::<Vec<_>>(),
    });
    if !filters.is_null() {
        rule["filters"] = filters.clone();
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"name": "public", "namespace": GATEWAY_NAMESPACE}],
            "hostnames": [HOST],
            "rules": [rule],
        },
    })
}

/// One answer to one look.
#[derive(Clone, Debug)]
pub struct Seen {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// None when something other than an echo answered.
    pub echo: Option<Answer>,
}

impl Seen {
    /// The member that answered; empty if no echo did.
    pub fn target(&self) -> &str {
        self.echo.as_ref().map_or("", |echo| echo.identity.cluster.as_str())
    }
}

/// Sends one request for the shop's host.
pub async fn ask(address: SocketAddr, path: &str) -> Result<Seen> {
    ask_host(address, HOST, path).await
}

/// Sends one request for any host.
pub async fn ask_host(address: SocketAddr, host: &str, path: &str) -> Result<Seen> {
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new())?;
    let answer = tokio::time::timeout(ASK_LIMIT, http1::send(address, request)).await;
    let (parts, body) = answer.context("no answer in time")??.into_parts();
    let echo = serde_json::from_slice(&body).ok();
    Ok(Seen { status: parts.status, headers: parts.headers, echo })
}

impl Fleet<'_> {
    /// Starts the shop's services and exports them: cart and its canary everywhere, the catalog
    /// in one member.
    pub async fn open_shop(&self, catalog_home: &str) -> Result<()> {
        try_join_all(self.world().members().map(|member| async move {
            let name = member.name();
            member.objects().apply_yaml(MEMBER_YAML).await?;
            self.serve(name, "cart", "v1", REPLICAS).await?;
            self.serve(name, "cart-v2", "v2", REPLICAS).await?;
            if name == catalog_home {
                self.serve(name, "catalog", "v1", REPLICAS).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        self.hub().objects().apply_yaml(HUB_YAML).await
    }

    /// Makes every member answer cart requests of every entry.
    pub async fn spread_cart(&self) -> Result<()> {
        self.hub().objects().apply_yaml(SPREAD_YAML).await
    }

    /// Starts one exported service of the shop in a member.
    pub async fn serve(
        &self,
        member: &str,
        service: &str,
        version: &str,
        replicas: u8,
    ) -> Result<()> {
        let echo = Echo::new(NAMESPACE, service, version, replicas);
        self.world().deploy_echo(member, &echo).await?;
        self.export(member, service).await
    }

    /// Exports a service of the shop's namespace.
    pub async fn export(&self, member: &str, service: &str) -> Result<()> {
        let export = fill(EXPORT_YAML, &[("SERVICE", service)])?;
        self.world().member(member)?.objects().apply_yaml(&export).await
    }

    /// Ends a service and its export.
    pub async fn unserve(&self, member: &str, service: &str) -> Result<()> {
        let objects = self.world().member(member)?.objects();
        let export = "multicluster.x-k8s.io/v1beta1";
        objects.delete(&ObjectKey::new(export, "ServiceExport", NAMESPACE, service)).await?;
        self.world().remove_echo(member, NAMESPACE, service).await
    }

    /// All entries of the world, by member.
    pub async fn entries(&self) -> Result<BTreeMap<String, SocketAddr>> {
        let mut entries = BTreeMap::new();
        for member in self.world().members() {
            entries.insert(member.name().to_owned(), entry(member).await?);
        }
        Ok(entries)
    }

    /// A load through all entries.
    pub async fn load(&self, path: &str) -> Result<Load> {
        let mut load = Load::new(HOST, path);
        for (name, address) in self.entries().await? {
            load.entries.push(Entry { name, address });
        }
        Ok(load)
    }

    /// Waits until requests through every entry are answered by an echo, five times in a row.
    pub async fn wait_live(&self, path: &str) -> Result<()> {
        self.wait_answers(path, "by an echo", |seen| seen.status == 200 && seen.echo.is_some())
            .await
    }

    /// Waits until requests through every entry are answered as `fits` says, five times in a row.
    pub async fn wait_answers(
        &self,
        path: &str,
        what: &str,
        fits: impl Fn(&Seen) -> bool,
    ) -> Result<()> {
        for (name, address) in self.entries().await? {
            wait_answers_at(address, path, &format!("{path} through {name} {what}"), &fits).await?;
        }
        Ok(())
    }
}

/// The same through one entry.
pub async fn wait_answers_at(
    address: SocketAddr,
    path: &str,
    what: &str,
    fits: impl Fn(&Seen) -> bool,
) -> Result<()> {
    wait::until(&format!("answers to {what}"), LIVE_LIMIT, || async {
        for _ in 0..STREAK {
            let seen = ask(address, path).await?;
            if !fits(&seen) {
                let who = seen.target();
                return Ok(Look::Not(format!("the last answer was {} {who}", seen.status)));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}
