//! Lets Envoy Gateway's proxies send their spans to the agent: one EnvoyProxy of ours, named by the
//! GatewayClass.
//!
//! Owns that object, the one field of the class that names it, and the flag that asks for both. Never changes an EnvoyProxy that is
//! not ours and never takes its place: a class that names one is refused, with what to put into it. The
//! class is given back before our object goes, for a class that names nothing is not served any more.

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::Json;
use serde_json::json;

use crate::cluster::{Cluster, Conflicts, Deleted, Kind, NameIn, gateway_class};
use crate::failure::Failure;
use crate::install::step;
use crate::output;
use crate::progress::Steps;
use crate::yaml;

/// Name of our EnvoyProxy. The chart has the same.
const NAME: &str = "fairlead-tracing";
const API_VERSION: &str = "gateway.envoyproxy.io/v1alpha1";
const GROUP: &str = "gateway.envoyproxy.io";
const KIND: &str = "EnvoyProxy";
/// Who serves classes that understand it.
const CONTROLLER: &str = "gateway.envoyproxy.io/gatewayclass-controller";
/// Where agents take spans over gRPC.
const OTLP_PORT: u16 = 4317;

fn kind() -> Kind {
    Kind::known(API_VERSION, KIND)
}

/// The flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct TracingArgs {
    /// Let gateways of Envoy Gateway send spans to the agent, of PERCENT of the requests (1 to 100): an
    /// EnvoyProxy of ours that the GatewayClass names. One that names another is refused.
    #[arg(
        long, value_name = "PERCENT", num_args = 0..=1, require_equals = true,
        default_missing_value = "100", value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    trace_gateways: Option<u8>,
}

impl TracingArgs {
    /// What is asked for, if anything is.
    pub(crate) fn asked<'a>(&self, home: &'a str) -> Option<Asked<'a>> {
        self.trace_gateways.map(|percent| Asked { home, percent })
    }

    /// What the agent must know to correct rates; nothing when all requests are traced.
    pub(crate) fn agent_percent(&self) -> Option<String> {
        let percent = self.trace_gateways.filter(|percent| *percent != ALL);
        percent.map(|percent| percent.to_string())
    }
}

/// Every request is traced.
const ALL: u8 = 100;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    /// Namespace of the agent.
    pub(crate) home: &'a str,
    /// Share of requests that are traced, in percent.
    pub(crate) percent: u8,
}

impl Asked<'_> {
    /// What tracing is in an EnvoyProxy, ours or the user's own.
    fn spec(&self) -> Json {
        let agent = json!({"name": keys::AGENT, "namespace": self.home, "port": OTLP_PORT});
        json!({"telemetry": {"tracing": {
            "samplingRate": self.percent,
            "provider": {"type": "OpenTelemetry", "serviceName": "gateway", "backendRefs": [agent]},
        }}})
    }

    /// Our EnvoyProxy.
    pub(crate) fn proxy(&self) -> Json {
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": NAME,
                "namespace": self.home,
                "labels": {keys::PART_OF: keys::FAIRLEAD, keys::MANAGED_BY: keys::MANAGED_BY_CLI},
            },
            "spec": self.spec(),
        })
    }

    /// The one field of the class.
    fn class(&self, name: &str) -> Json {
        let id = gateway_class();
        json!({
            "apiVersion": id.api_version(),
            "kind": id.kind,
            "metadata": {"name": name},
            "spec": {"parametersRef": {
                "group": GROUP, "kind": KIND, "name": NAME, "namespace": self.home,
            }},
        })
    }

    /// How a person who applies printed objects lets a class name ours.
    pub(crate) fn words_for_print(&self) -> String {
        let patch = json!({"spec": self.class("")["spec"]});
        format!(
            "the GatewayClass must name the EnvoyProxy: \
             kubectl patch gatewayclass NAME --type=merge -p '{patch}'"
        )
    }
}

/// What a class and an object of our name mean for what is asked.
///
/// # Errors
/// When the class is another controller's, or something that is not ours stands in the way.
fn check(class: &Json, proxy: Option<&Json>, asked: &Asked<'_>) -> Result<(), Failure> {
    let name = text(&class["metadata"]["name"]);
    let what = format!("cannot let gateways of GatewayClass {name} send spans to the agent");
    let controller = text(&class["spec"]["controllerName"]);
    if controller != CONTROLLER {
        let why = format!("its controller is {controller}; only Envoy Gateway is set up by this");
        return Err(Failure::failed(what, why).next(
            "leave --trace-gateways out; docs/guide/traces.md says what to tell other gateways",
        ));
    }
    let named = &class["spec"]["parametersRef"];
    if !named.is_null() && !is_named(class, asked.home) {
        let why = format!(
            "it names {} {}/{} already, which is not Fairlead's to change",
            text(&named["kind"]),
            text(&named["namespace"]),
            text(&named["name"]),
        );
        let snippet = yaml::write(&json!({"spec": asked.spec()}));
        return Err(Failure::failed(what, why).next(format!(
            "put this into it, and run this again without --trace-gateways:\n{}",
            snippet.trim_end()
        )));
    }
    let labels = proxy.map(|proxy| &proxy["metadata"]["labels"]);
    if labels.is_some_and(|labels| labels[keys::PART_OF] != keys::FAIRLEAD) {
        let why = format!("{KIND} {}/{NAME} is there and not ours", asked.home);
        return Err(Failure::failed(what, why).next("rename or delete it"));
    }
    Ok(())
}

/// The class names our object.
fn is_named(class: &Json, home: &str) -> bool {
    let named = &class["spec"]["parametersRef"];
    named["group"] == GROUP
        && named["kind"] == KIND
        && named["name"] == NAME
        && named["namespace"] == home
}

fn text(value: &Json) -> String {
    fairlead_model::id::printable(value.as_str().unwrap_or(""))
}

/// Checks that it can be done; gives the objects to apply, in order. Writes nothing.
pub(crate) async fn prepare(
    cluster: &Cluster,
    class: Option<&str>,
    asked: &Asked<'_>,
) -> Result<Vec<Json>, Failure> {
    let Some(name) = class else {
        let what = "cannot let gateways send spans to the agent";
        return Err(Failure::failed(what, "there is no GatewayClass to do it by")
            .next("name one with --gateway-class, or leave --trace-gateways out"));
    };
    let Some(class) = cluster.get(&gateway_class(), "", name).await? else {
        let what = format!("cannot use GatewayClass {:?}", fairlead_model::id::printable(name));
        return Err(Failure::failed(what, "not found"));
    };
    let proxy = cluster.get(&kind(), asked.home, NAME).await?;
    check(&class, proxy.as_ref(), asked)?;
    Ok(vec![asked.proxy(), asked.class(name)])
}

/// Applies what [`prepare`] gave, and says whose gateways keep a configuration of their own.
pub(crate) async fn apply(
    cluster: &Cluster,
    objects: &[Json],
    steps: Steps,
) -> Result<(), Failure> {
    step::apply_all(cluster, "traces of gateways", objects, Conflicts::Refuse, steps).await?;
    let class = objects.iter().find(|object| object["kind"] == gateway_class().kind);
    let class = class.map(|class| &class["metadata"]["name"]);
    let gateways = Kind::known(&gateway_class().api_version(), "Gateway");
    for gateway in cluster.list(&gateways, "", "").await?.unwrap_or_default() {
        let own = !gateway["spec"]["infrastructure"]["parametersRef"].is_null();
        if own && Some(&gateway["spec"]["gatewayClassName"]) == class {
            let metadata = &gateway["metadata"];
            let name = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
            steps.warn(format!(
                "Gateway {name} has an {KIND} of its own: put spec.telemetry.tracing into that"
            ));
        }
    }
    Ok(())
}

/// All of it, in a cluster that joined before.
pub(crate) async fn set_up(
    cluster: &Cluster,
    class: Option<&str>,
    asked: &Asked<'_>,
    steps: Steps,
) -> Result<(), Failure> {
    let objects = prepare(cluster, class, asked).await?;
    step::check_permissions(cluster, asked.home, &objects).await?;
    apply(cluster, &objects, steps).await?;
    if asked.percent != ALL {
        steps.warn(format!(
            "rates in `fairlead top` are right only if the agent, too, runs with \
             --gateway-sampling-percent={}",
            asked.percent
        ));
    }
    Ok(())
}

/// Gives classes back that name our object, then deletes it. How many objects went.
pub(crate) async fn remove(cluster: &Cluster, home: &str) -> Result<usize, Failure> {
    for class in cluster.list(&gateway_class(), "", "").await?.unwrap_or_default() {
        if is_named(&class, home) {
            let name = text(&class["metadata"]["name"]);
            let at = NameIn { namespace: "", name: &name };
            let patch = json!({"spec": {"parametersRef": null}});
            cluster.merge(&gateway_class(), &at, &patch).await?;
            output::print(&format!("GatewayClass {name} given back"));
        }
    }
    let Some(proxy) = cluster.get(&kind(), home, NAME).await? else { return Ok(0) };
    if proxy["metadata"]["labels"][keys::PART_OF] != keys::FAIRLEAD {
        return Ok(0);
    }
    match cluster.delete(&kind(), home, NAME).await? {
        Deleted::Now => {
            output::print(&format!("{KIND} {home}/{NAME} deleted"));
            Ok(1)
        }
        Deleted::Before => Ok(0),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const HOME: &str = keys::NAMESPACE;
    const ASKED: Asked<'static> = Asked { home: HOME, percent: 10 };

    fn mk_class(parameters: Json) -> Json {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "eg"},
            "spec": {"controllerName": CONTROLLER, "parametersRef": parameters}})
    }

    fn ours() -> Json {
        json!({"group": GROUP, "kind": KIND, "name": NAME, "namespace": HOME})
    }

    fn users() -> Json {
        json!({"group": GROUP, "kind": KIND, "name": "edge", "namespace": "infra"})
    }

    #[test]
    fn our_envoy_proxy_is_what_the_guide_says() {
        let guide = include_str!("../../../docs/guide/traces.md");
        let shown = guide.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        let shown = yaml::read("guide", shown).unwrap().remove(0);
        let asked = Asked { percent: 100, ..ASKED };
        assert_eq!(shown["spec"], asked.spec());
        assert_eq!(shown["kind"], asked.proxy()["kind"]);
    }

    #[test]
    fn the_agent_is_told_of_a_share_and_not_of_all() {
        let args = |trace_gateways| TracingArgs { trace_gateways };
        assert_eq!(args(None).asked(HOME), None);
        assert_eq!(args(Some(100)).asked(HOME), Some(Asked { percent: 100, ..ASKED }));
        assert_eq!(args(Some(100)).agent_percent(), None);
        assert_eq!(args(Some(10)).agent_percent().as_deref(), Some("10"));
    }

    #[tokio::test]
    async fn a_class_without_parameters_names_our_object() {
        let fake = Fake::new([mk_class(Json::Null)]);
        let objects = prepare(&fake.cluster(), Some("eg"), &ASKED).await.unwrap();
        assert_eq!(fake.writes(), Vec::<String>::new(), "it only looks");
        apply(&fake.cluster(), &objects, Steps::Silent).await.unwrap();
        assert_eq!(fake.writes(), ["apply EnvoyProxy/fairlead-tracing", "apply GatewayClass/eg"]);
        assert_eq!(objects[1]["spec"], json!({"parametersRef": ours()}), "one field");
        let tracing = &objects[0]["spec"]["telemetry"]["tracing"];
        assert_eq!(tracing["samplingRate"], 10);
    }

    #[tokio::test]
    async fn once_it_is_set_up_it_can_be_set_up_again() {
        let fake = Fake::new([mk_class(ours()), ASKED.proxy()]);
        assert!(prepare(&fake.cluster(), Some("eg"), &ASKED).await.is_ok());
    }

    #[tokio::test]
    async fn a_users_own_configuration_is_refused_with_what_to_put_into_it() {
        let fake = Fake::new([mk_class(users())]);
        let failure = prepare(&fake.cluster(), Some("eg"), &ASKED).await.unwrap_err().for_people();
        for text in ["EnvoyProxy infra/edge", "samplingRate: 10", "without --trace-gateways"] {
            assert!(failure.contains(text), "{text} not in\n{failure}");
        }
        let snippet = failure.split("gateways:\n").nth(1).unwrap();
        assert_eq!(yaml::read("x", snippet).unwrap(), [json!({"spec": ASKED.spec()})]);
    }

    #[test]
    fn what_it_does_not_know_or_own_is_refused() {
        let mut other = mk_class(Json::Null);
        other["spec"]["controllerName"] = json!("traefik.io/gateway-controller");
        let failure = check(&other, None, &ASKED).unwrap_err().for_people();
        assert!(failure.contains("traefik.io/gateway-controller"), "{failure}");
        let mut proxy = ASKED.proxy();
        proxy["metadata"]["labels"] = json!({});
        let failure = check(&mk_class(Json::Null), Some(&proxy), &ASKED).unwrap_err().for_people();
        assert!(failure.contains("is there and not ours"), "{failure}");
    }

    #[tokio::test]
    async fn the_class_is_given_back_before_our_object_goes() {
        let mut users_class = mk_class(users());
        users_class["metadata"]["name"] = json!("other");
        let fake = Fake::new([mk_class(ours()), users_class, ASKED.proxy()]);
        assert_eq!(remove(&fake.cluster(), HOME).await.unwrap(), 1);
        assert_eq!(fake.writes(), ["merge GatewayClass/eg", "delete EnvoyProxy/fairlead-tracing"]);
        fake.forget_writes();
        let again = fake.cluster().get(&gateway_class(), "", "eg").await.unwrap().unwrap();
        assert!(again["spec"]["parametersRef"].is_null());
        assert_eq!(remove(&fake.cluster(), HOME).await.unwrap(), 0);
        assert_eq!(fake.writes(), Vec::<String>::new());
    }
}
