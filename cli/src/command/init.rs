//! `fairlead init`: installs the hub into a cluster, the same objects as the chart.
//!
//! Run again it brings everything to this tool's version. It never touches Gateway API definitions,
//! never replaces those of the Multi-Cluster Services API, never puts an older version over a newer.

use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::Json;

use crate::args::Connection;
use crate::cluster::{Cluster, Conflicts, Kind, config_map};
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::hub_api::HubApi;
use crate::install::gateway_api::{self, Role, Verdict};
use crate::install::{self, Expose, HubStore, HubValues, definition, step};
use crate::output;
use crate::progress::Steps;
use crate::yaml;

const ASK_EVERY: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
Needs Gateway API definitions (v1.5 or newer) in the cluster. Agents of other clusters dial the
address given with --advertise; TLS must be passed through to the hub, not ended before it.

EXAMPLES
  fairlead init --advertise https://hub.example.com:8443
  fairlead init --expose load-balancer          # then again with --advertise, once it has an address
  fairlead init --advertise https://hub.example.com:8443 --print > hub.yaml    # for GitOps";

/// Arguments of `init`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct InitArgs {
    /// Address at which agents of other clusters reach the hub.
    #[arg(long, value_name = "https://HOST:PORT", value_parser = install::parse_hub_url)]
    advertise: Option<String>,
    /// OTLP endpoint of your OpenTelemetry backend, as http://host:4317, for the hub's own traces.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// What leads other clusters to the hub.
    #[arg(long, value_enum, default_value_t)]
    expose: Expose,
    /// Image of the hub.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Keep the hub's store in its pod instead of on a volume: each new pod waits for its members.
    #[arg(long)]
    ephemeral: bool,
    /// Print the objects as YAML instead of applying them; no cluster is asked.
    #[arg(long)]
    print: bool,
    /// With --print: also the definitions of the Multi-Cluster Services API.
    #[arg(long, requires = "print")]
    with_mcs_definitions: bool,
    /// Take over fields that another tool set.
    #[arg(long)]
    force_conflicts: bool,
    /// Do not wait for the hub to be ready.
    #[arg(long, conflicts_with = "print")]
    no_wait: bool,
    /// Wait until the hub is ready; this is the default.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Longest time to wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_timeout)]
    timeout: Duration,
}

impl InitArgs {
    fn objects(&self, namespace: &str) -> Vec<Json> {
        let default_image = install::default_image(keys::HUB);
        install::hub(&HubValues {
            namespace,
            image: self.image.as_deref().unwrap_or(&default_image),
            advertise: self.advertise.as_deref(),
            otlp_endpoint: self.otlp_endpoint.as_deref(),
            expose: self.expose,
            store: if self.ephemeral { HubStore::Pod } else { HubStore::Volume },
        })
    }

    fn conflicts(&self) -> Conflicts {
        if self.force_conflicts { Conflicts::TakeOver } else { Conflicts::Refuse }
    }
}

/// Installs the hub, or prints its objects.
pub(crate) async fn run(connection: &Connection, args: &InitArgs) -> Result<(), Failure> {
    if args.print {
        print(&connection.namespace, args);
        return Ok(());
    }
    let cluster = Cluster::open(connection).await?;
    install(&cluster, &connection.namespace, args, Steps::for_stderr()).await
}

fn print(namespace: &str, args: &InitArgs) {
    let mut objects = vec![install::namespace(namespace)];
    objects.extend(definition::own());
    if args.with_mcs_definitions {
        objects.extend(definition::mcs());
    }
    objects.extend(args.objects(namespace));
    output::print(&yaml::write_all(&objects));
}

async fn install(
    cluster: &Cluster,
    home: &str,
    args: &InitArgs,
    steps: Steps,
) -> Result<(), Failure> {
    let objects = args.objects(home);
    steps.done(format!("API server {} answers ({})", cluster.server(), cluster.version().await?));
    let all: Vec<Json> = definition::own().into_iter().chain(objects.iter().cloned()).collect();
    step::check_permissions(cluster, home, &all).await?;
    steps.done("permissions suffice");
    match gateway_api::check(cluster, Role::Hub).await? {
        Verdict::Tried(version) => steps.done(format!("Gateway API {version}")),
        Verdict::Untested(why) | Verdict::Refused(why) => steps.warn(why),
    }
    step::refuse_helm(cluster, home, keys::HUB).await?;
    refuse_downgrade(cluster, home).await?;
    step::ensure_namespace(cluster, home, steps).await?;
    step::ensure_mcs(cluster, steps).await?;
    step::apply_all(cluster, "definitions", &definition::own(), args.conflicts(), steps).await?;
    for object in definition::own() {
        definition::wait_established(cluster, definition::name(&object)).await?;
    }
    step::apply_all(cluster, "hub", &objects, args.conflicts(), steps).await?;
    if !args.no_wait {
        wait_ready(cluster, home, args, steps).await?;
    }
    say_what_next(args, steps);
    Ok(())
}

async fn refuse_downgrade(cluster: &Cluster, home: &str) -> Result<(), Failure> {
    let kind = Kind::known("apps/v1", "Deployment");
    let Some(deployment) = cluster.get(&kind, home, keys::HUB).await? else {
        return Ok(());
    };
    let there = deployment["metadata"]["labels"]["app.kubernetes.io/version"].as_str();
    match there {
        Some(there) if version_key(there) > version_key(install::VERSION) => {
            let what = format!("Deployment {home}/{} is of version {there}", keys::HUB);
            let why = format!("this tool would put {} over it", install::VERSION);
            Err(Failure::failed(what, why).next("use a fairlead of that version or a newer one"))
        }
        _ => Ok(()),
    }
}

/// Orders versions; what is no number sorts first.
fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect()
}

async fn wait_ready(
    cluster: &Cluster,
    home: &str,
    args: &InitArgs,
    steps: Steps,
) -> Result<(), Failure> {
    let mut waiting = steps.wait("waiting for the hub to be ready");
    let mut last = String::from("it has not started");
    let asking = async {
        loop {
            match missing(cluster, home, args).await? {
                None => return Ok::<(), Failure>(()),
                Some(why) => {
                    waiting.show(&format!("waiting for the hub: {why}"));
                    last = why;
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let ended = tokio::time::timeout(args.timeout, asking).await;
    drop(waiting);
    match ended {
        Ok(Ok(())) => {
            steps.done("the hub is ready");
            Ok(())
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => {
            Err(Failure::timed_out("the hub was installed but is not ready", last).next(format!(
                "see `kubectl -n {home} describe pods` and `kubectl -n {home} logs deployment/{}`; \
                 running this again goes on from here",
                keys::HUB
            )))
        }
    }
}

/// What the hub still lacks; none when it is ready.
async fn missing(
    cluster: &Cluster,
    home: &str,
    args: &InitArgs,
) -> Result<Option<String>, Failure> {
    if let Err(why) = HubApi::new(cluster, home).ready().await {
        let trouble = step::pod_trouble(cluster, home, keys::HUB).await;
        return Ok(Some(trouble.unwrap_or_else(|| format!("not ready: {why}"))));
    }
    let map = cluster.get(&config_map(), home, keys::CONFIG_MAP_HUB).await?;
    Ok(unpublished(map.as_ref(), args.advertise.as_deref()))
}

/// What the hub has not written about itself yet.
fn unpublished(map: Option<&Json>, advertise: Option<&str>) -> Option<String> {
    let name = keys::CONFIG_MAP_HUB;
    let Some(map) = map else {
        return Some(format!("it has not written ConfigMap {name}"));
    };
    if map["data"]["ca-hash"].as_str().is_none_or(str::is_empty) {
        return Some(format!("ConfigMap {name} has no ca-hash"));
    }
    match advertise {
        Some(wanted) if map["data"]["address"] != wanted => {
            Some(format!("ConfigMap {name} does not say {wanted} yet"))
        }
        _ => None,
    }
}

fn say_what_next(args: &InitArgs, steps: Steps) {
    match (&args.advertise, args.expose) {
        (Some(_), _) => steps.say("join a cluster: fairlead token create --member NAME"),
        (None, Expose::LoadBalancer | Expose::NodePort) => steps.warn(
            "the hub does not know its address yet; see `kubectl -n fairlead-system get service \
             fairlead-hub-public`, then run this again with --advertise https://HOST:443",
        ),
        (None, Expose::Own) => steps.warn(
            "other clusters cannot reach the hub yet: lead TLS traffic to Service fairlead-hub, port \
             443 (or use --expose), then run this again with --advertise https://HOST:PORT",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(version_key("0.10.0") > version_key("0.9.9"));
        assert!(version_key("1.0.0") > version_key("0.99.0"));
        assert_eq!(version_key("0.1.0"), version_key("0.1.0"));
    }

    #[test]
    fn a_hub_is_known_once_it_wrote_hash_and_address() {
        let map = json!({"data": {"ca-hash": "sha256:00", "address": "https://a:1"}});
        assert_eq!(unpublished(Some(&map), None), None);
        assert_eq!(unpublished(Some(&map), Some("https://a:1")), None);
        assert!(
            unpublished(Some(&map), Some("https://b:1")).is_some_and(|w| w.contains("https://b:1"))
        );
        assert!(unpublished(Some(&json!({"data": {}})), None).is_some());
        assert!(unpublished(None, None).is_some());
    }
}
