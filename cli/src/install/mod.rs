//! The objects that `init` and `join` install.
//!
//! `hub.yaml` and `agent.yaml` are made from the Helm charts with default values, so both ways give
//! the same objects; a test renders the charts again and compares. Labels say `fairlead-cli` in place
//! of Helm. Definitions come from `deploy/crds`.

#[cfg(test)]
mod chart;
pub(crate) mod definition;
pub(crate) mod gateway_api;
pub(crate) mod gateway_class;
pub(crate) mod gateway_tracing;
pub(crate) mod removal;
pub(crate) mod step;
mod template;

use fairlead_crds::keys;
use fairlead_model::{Json, MemberId};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::install::template::{Values, fill};
use crate::yaml;

const HUB_YAML: &str = include_str!("hub.yaml");
const AGENT_YAML: &str = include_str!("agent.yaml");

/// ConfigMap in which an agent says how far it is.
pub(crate) const CONFIG_MAP_STATE: &str = keys::CONFIG_MAP_AGENT_STATE;
/// On a namespace that the CLI made, so that `leave` may take it away again.
pub(crate) const CREATED_BY: &str = "fairlead.dev/created-by";
/// Name of the hub's Service that other clusters reach.
const SERVICE_HUB_PUBLIC: &str = "fairlead-hub-public";

/// Version of this tool and of the images that it installs.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the hub is installed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubValues<'a> {
    /// Namespace.
    pub(crate) namespace: &'a str,
    /// Image.
    pub(crate) image: &'a str,
    /// Address that agents dial.
    pub(crate) advertise: Option<&'a str>,
    /// OTLP endpoint of the user's backend.
    pub(crate) otlp_endpoint: Option<&'a str>,
    /// Type of the Service for other clusters.
    pub(crate) expose: Expose,
    /// Where the hub's store lives.
    pub(crate) store: HubStore,
}

/// How other clusters reach the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Expose {
    /// By something of your own that passes TLS through to Service fairlead-hub, port 443.
    #[default]
    Own,
    /// By a Service of type LoadBalancer.
    LoadBalancer,
    /// By a Service of type NodePort.
    NodePort,
}

/// Where the hub's store lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HubStore {
    /// On a volume.
    Volume,
    /// In the pod.
    Pod,
}

/// Objects of the hub, in an order in which they can be applied. Definitions and the namespace are
/// apart.
pub(crate) fn hub(values: &HubValues<'_>) -> Vec<Json> {
    let service_type = match values.expose {
        Expose::Own => None,
        Expose::LoadBalancer => Some("LoadBalancer"),
        Expose::NodePort => Some("NodePort"),
    };
    let filling = Values::from([
        ("namespace", Some(values.namespace)),
        ("image", Some(values.image)),
        ("advertise", values.advertise),
        ("otlp-endpoint", values.otlp_endpoint),
        ("service-type", service_type),
        ("version", Some(VERSION)),
    ]);
    let mut objects = filled(HUB_YAML, &filling);
    // The hub puts the host of its address into its certificate when it starts.
    let address = hash(values.advertise.unwrap_or_default());
    objects.iter_mut().for_each(|object| annotate_pod(object, "checksum/advertise", &address));
    if service_type.is_none() {
        objects.retain(|object| object["metadata"]["name"] != SERVICE_HUB_PUBLIC);
    }
    if values.store == HubStore::Pod {
        objects.retain(|object| object["kind"] != "PersistentVolumeClaim");
        objects.iter_mut().for_each(keep_store_in_pod);
    }
    objects
}

fn keep_store_in_pod(object: &mut Json) {
    if object["kind"] == "Deployment" {
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array_mut();
        for volume in volumes.into_iter().flatten().filter(|v| v["name"] == "data") {
            *volume = json!({"name": "data", "emptyDir": {}});
        }
    }
}

/// What an agent is installed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentValues<'a> {
    /// Namespace.
    pub(crate) namespace: &'a str,
    /// Image.
    pub(crate) image: &'a str,
    /// Name of the member.
    pub(crate) member: &'a MemberId,
    /// Address of the hub.
    pub(crate) hub: &'a str,
    /// Join token.
    pub(crate) token: &'a str,
    /// Hash of the hub's CA.
    pub(crate) ca_hash: &'a str,
    /// Region, when it is not what the nodes say.
    pub(crate) region: Option<&'a str>,
    /// Zone, when it is not what the nodes say.
    pub(crate) zone: Option<&'a str>,
    /// Class for Gateways that Fairlead creates.
    pub(crate) gateway_class: Option<&'a str>,
    /// OTLP endpoint of the user's backend.
    pub(crate) otlp_endpoint: Option<&'a str>,
    /// Share of requests that its gateways trace, in percent, when it is not all.
    pub(crate) sampling_percent: Option<&'a str>,
    /// Text of agent.yaml, when it is not the default.
    pub(crate) config: Option<&'a str>,
}

/// Objects of the agent, in an order in which they can be applied.
pub(crate) fn agent(values: &AgentValues<'_>) -> Vec<Json> {
    let filling = Values::from([
        ("namespace", Some(values.namespace)),
        ("image", Some(values.image)),
        ("member", Some(values.member.as_str())),
        ("hub", Some(values.hub)),
        ("token", Some(values.token)),
        ("ca-hash", Some(values.ca_hash)),
        ("region", values.region),
        ("zone", values.zone),
        ("gateway-class", values.gateway_class),
        ("otlp-endpoint", values.otlp_endpoint),
        ("sampling-percent", values.sampling_percent),
        ("version", Some(VERSION)),
    ]);
    let mut objects = filled(AGENT_YAML, &filling);
    // A new token restarts an agent that waits with an old one: mounted Secrets change late.
    let bootstrap = hash(&[values.hub, values.token, values.ca_hash].join(" "));
    objects.iter_mut().for_each(|object| annotate_pod(object, "checksum/bootstrap", &bootstrap));
    if let Some(config) = values.config {
        objects.iter_mut().for_each(|object| set_config(object, config));
    }
    objects
}

fn set_config(object: &mut Json, config: &str) {
    if object["kind"] == "ConfigMap" {
        object["data"]["agent.yaml"] = config.into();
    }
    // A change of the text restarts the agent, as with the chart.
    annotate_pod(object, "checksum/config", &hash(config));
}

fn annotate_pod(object: &mut Json, key: &str, value: &str) {
    if object["kind"] == "Deployment" {
        object["spec"]["template"]["metadata"]["annotations"][key] = value.into();
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn filled(text: &str, values: &Values<'_>) -> Vec<Json> {
    let templates = yaml::read("embedded objects", text).expect("embedded objects are tested");
    templates.iter().map(|template| fill(template, values)).collect()
}

/// The namespace. Only for a cluster that does not have it: an existing one stays as it is.
pub(crate) fn namespace(name: &str) -> Json {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {keys::PART_OF: keys::FAIRLEAD, keys::MANAGED_BY: keys::MANAGED_BY_CLI},
            "annotations": {CREATED_BY: keys::FIELD_MANAGER_CLI},
        },
    })
}

/// The image of a component when none is named.
pub(crate) fn default_image(component: &str) -> String {
    format!("fairlead/{component}:{VERSION}")
}

/// Reads an address of a hub: `https://HOST:PORT`, nothing after it.
pub(crate) fn parse_hub_url(text: &str) -> Result<String, String> {
    let form =
        || "the hub's address is https://HOST:PORT, e.g. https://hub.example.com:8443".to_owned();
    let uri: http::Uri = text.parse().map_err(|_| form())?;
    let bare = uri.path() == "/" && uri.query().is_none() && !text.contains(['@', '#', ' ']);
    let host = uri.host().filter(|host| !host.is_empty());
    match (uri.scheme_str(), host, uri.port_u16()) {
        (Some("https"), Some(host), Some(port)) if bare && port > 0 => {
            Ok(format!("https://{host}:{port}"))
        }
        _ => Err(form()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_hub() -> HubValues<'static> {
        HubValues {
            namespace: "fs",
            image: "hub:1",
            advertise: None,
            otlp_endpoint: None,
            expose: Expose::Own,
            store: HubStore::Volume,
        }
    }

    fn names(objects: &[Json]) -> Vec<String> {
        let name = |o: &Json| {
            format!("{}/{}", o["kind"].as_str().unwrap(), o["metadata"]["name"].as_str().unwrap())
        };
        objects.iter().map(name).collect()
    }

    #[test]
    fn no_placeholder_is_left_and_the_namespace_is_the_asked_one() {
        let objects = hub(&HubValues { advertise: Some("https://a:1"), ..mk_hub() });
        let text = serde_json::to_string(&objects).unwrap();
        assert!(!text.contains("${") && !text.contains("fairlead-system"), "{text}");
        assert!(text.contains("https://a:1") && text.contains("hub:1"));
    }

    #[test]
    fn the_public_service_is_there_only_when_asked_for() {
        let own = names(&hub(&mk_hub()));
        assert!(!own.contains(&"Service/fairlead-hub-public".to_owned()), "{own:?}");
        let objects = hub(&HubValues { expose: Expose::LoadBalancer, ..mk_hub() });
        let public = objects.iter().find(|o| o["metadata"]["name"] == SERVICE_HUB_PUBLIC).unwrap();
        assert_eq!(public["spec"]["type"], "LoadBalancer");
        assert!(!public.to_string().contains("admin"), "the API that asks no login stays inside");
    }

    #[test]
    fn a_store_in_the_pod_needs_no_claim() {
        let objects = hub(&HubValues { store: HubStore::Pod, ..mk_hub() });
        let text = serde_json::to_string(&objects).unwrap();
        assert!(!text.contains("ersistentVolumeClaim"), "{text}");
        assert!(text.contains("emptyDir"));
    }

    #[test]
    fn the_agent_carries_what_join_was_given() {
        let member = MemberId::new("east").unwrap();
        let values = AgentValues {
            namespace: "fs",
            image: "agent:1",
            member: &member,
            hub: "https://hub:8443",
            token: "the-token",
            ca_hash: "sha256:00",
            region: None,
            zone: None,
            gateway_class: None,
            otlp_endpoint: None,
            sampling_percent: Some("10"),
            config: Some("exportPolicy: All\n"),
        };
        let objects = agent(&values);
        let of = |kind: &str| objects.iter().find(|o| o["kind"] == kind).unwrap();
        assert_eq!(of("ConfigMap")["data"]["agent.yaml"], "exportPolicy: All\n");
        assert_eq!(of("Secret")["stringData"]["token"], "the-token");
        let args =
            of("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        assert!(
            args.contains("--member=east") && args.contains("--hub=https://hub:8443"),
            "{args}"
        );
        assert!(args.contains("--gateway-sampling-percent=10"), "{args}");
        assert!(!serde_json::to_string(&objects).unwrap().contains("${"));
        let deployment = |token| agent(&AgentValues { token, ..values.clone() }).pop();
        assert_ne!(deployment("a"), deployment("b"), "a new token does not restart the agent");
    }

    #[test]
    fn an_address_is_scheme_host_and_port_alone() {
        for good in ["https://hub.example.com:8443", "https://10.0.0.1:1", "https://[::1]:8443"] {
            assert_eq!(parse_hub_url(good).unwrap(), good);
        }
        assert_eq!(parse_hub_url("https://hub:8443/").unwrap(), "https://hub:8443");
        for bad in [
            "hub:8443",
            "http://hub:8443",
            "https://hub",
            "https://hub:0",
            "https://hub:1/x",
            "https://hub:1?x",
            "https://a@hub:1",
            "",
            "https://:1",
            "https://h:70000",
        ] {
            assert!(parse_hub_url(bad).is_err(), "{bad}");
        }
    }
}
