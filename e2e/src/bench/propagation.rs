//! How long a change in the hub takes to every Envoy, against the gateways' own part of it.
//!
//! Each round changes the same thing twice, in turns: once in the hub's HTTPRoute, and once, as
//! control, in three member routes of the very shape that Fairlead renders, written at once by a
//! script. Both clocks run from before the API call until the last of all Envoys answers with the
//! new value. Meanwhile memory and CPU of hub and agents are taken, at rest and under the bench.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    gateway::{MARK, MarkWatcher},
    resource::Sampler,
};
use crate::{
    fleet::{Fleet, entry, program::build_programs, shop},
    object::ObjectKey,
    report::{Row, milliseconds},
    wait::{self, Look},
    world::World,
};

const ROUNDS: u32 = 40;
const REST: Duration = Duration::from_secs(30);
/// Between rounds: what follows a change (statuses, reports) must not fall into the next one.
const PAUSE: Duration = Duration::from_millis(700);
const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "bench";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const HUB_HOST: &str = "hub.example.com";
const CONTROL_HOST: &str = "control.example.com";

pub(super) async fn run(world: &World) -> Result<Vec<Row>> {
    tokio::task::spawn_blocking(build_programs).await??;
    let fleet = Fleet::new(world)?;
    fleet.init().await?;
    fleet.join_all().await?;
    // Only for its namespaces and its Gateway; its own routes stay as a little company.
    fleet.open_shop("east").await?;
    for member in world.members() {
        fleet.serve(member.name(), SERVICE, "v1", shop::REPLICAS).await?;
    }
    fleet.wait_settled().await?;
    let mut bench = Bench::new(&fleet).await?;
    bench.hub_change("warm-up").await?;
    bench.adopt_shape().await?;
    bench.control("warm-up").await?;
    fleet.wait_settled().await?;

    let mut rows = Sampler::start(world)?.rest(REST, "at rest").await?;
    let sampler = Sampler::start(world)?;
    let (mut hub, mut control, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mark = format!("round-{round}");
        let (through_hub, by_script) = if round % 2 == 0 {
            let through_hub = bench.hub_change(&mark).await?;
            (through_hub, bench.control(&mark).await?)
        } else {
            let by_script = bench.control(&mark).await?;
            (bench.hub_change(&mark).await?, by_script)
        };
        hub.push(milliseconds(through_hub));
        control.push(milliseconds(by_script));
        ratio.push(through_hub.as_secs_f64() / by_script.as_secs_f64());
    }
    let mut all = vec![
        Row::new("hub change", "ms", &hub),
        Row::new("control", "ms", &control),
        Row::new("ratio", "1", &ratio),
    ];
    all.append(&mut rows);
    all.append(&mut sampler.stop("under the bench").await?);
    Ok(all)
}

struct Bench<'f, 'w> {
    fleet: &'f Fleet<'w>,
    hub: Vec<MarkWatcher>,
    control: Vec<MarkWatcher>,
    /// The control's route in each member, without its mark.
    shapes: Vec<Value>,
}

impl<'f, 'w> Bench<'f, 'w> {
    async fn new(fleet: &'f Fleet<'w>) -> Result<Self> {
        let (mut hub, mut control) = (Vec::new(), Vec::new());
        for member in fleet.world().members() {
            let address = entry(member).await?;
            hub.push(MarkWatcher::new(address, HUB_HOST));
            control.push(MarkWatcher::new(address, CONTROL_HOST));
        }
        Ok(Self { fleet, hub, control, shapes: Vec::new() })
    }

    /// Takes over what Fairlead rendered, so that the control asks the gateways for the same work.
    async fn adopt_shape(&mut self) -> Result<()> {
        let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", shop::NAMESPACE, "bench-global");
        for member in self.fleet.world().members() {
            let rendered = member.objects().get(&key).await?;
            let rendered = rendered.with_context(|| format!("{} has no {key}", member.name()))?;
            let mut shape = json!({
                "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
                "metadata": {"name": "control", "namespace": shop::NAMESPACE},
                "spec": rendered["spec"],
            });
            shape["spec"]["hostnames"] = json!([CONTROL_HOST]);
            self.shapes.push(shape);
        }
        Ok(())
    }

    /// One API call in the hub → live in the last Envoy.
    async fn hub_change(&mut self, mark: &str) -> Result<Duration> {
        let backend = json!({
            "group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": SERVICE, "port": 80,
        });
        let route = json!({
            "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
            "metadata": {"name": "bench", "namespace": shop::NAMESPACE},
            "spec": {
                "parentRefs": [{"name": "public", "namespace": shop::GATEWAY_NAMESPACE}],
                "hostnames": [HUB_HOST],
                "rules": [{"backendRefs": [backend], "filters": [marking(mark)]}],
            },
        });
        let objects = self.fleet.world().hub().objects();
        let start = Instant::now();
        let looks = self.hub.iter_mut().map(|watcher| watcher.wait(mark));
        tokio::try_join!(objects.apply(&route), try_join_all(looks))?;
        let took = start.elapsed();
        calm().await?;
        Ok(took)
    }

    /// Three API calls at once in the members → live in the last Envoy.
    async fn control(&mut self, mark: &str) -> Result<Duration> {
        let mut routes = self.shapes.clone();
        for route in &mut routes {
            mark_route(route, mark)?;
        }
        let start = Instant::now();
        let members = self.fleet.world().members().zip(&routes);
        let writes = members.map(|(member, route)| member.objects().apply(route));
        let looks = self.control.iter_mut().map(|watcher| watcher.wait(mark));
        tokio::try_join!(try_join_all(writes), try_join_all(looks))?;
        let took = start.elapsed();
        calm().await?;
        Ok(took)
    }
}

fn marking(mark: &str) -> Value {
    let set = json!([{"name": MARK, "value": mark}]);
    json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}})
}

fn mark_route(route: &mut Value, mark: &str) -> Result<()> {
    let filters = route["spec"]["rules"][0]["filters"].as_array_mut();
    let filters = filters.context("the rendered route lost its filter")?;
    let ours = filters.iter_mut().find(|filter| filter["type"] == "ResponseHeaderModifier");
    *ours.context("the rendered route lost its filter")? = marking(mark);
    Ok(())
}

async fn calm() -> Result<()> {
    let start = Instant::now();
    wait::until("a pause", LIMIT, || async {
        Ok(if start.elapsed() >= PAUSE { Look::Done(()) } else { Look::Not("not yet".into()) })
    })
    .await
}
