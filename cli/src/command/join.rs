//! `fairlead join`: makes a cluster a member, with that cluster's kubeconfig.
//!
//! Checks everything that can be checked before anything is written, installs the agent (the same
//! objects as the chart), and lets [`arrival`] wait for what becomes of it. Run again for the same member
//! it changes nothing.

mod arrival;

use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::{Json, MemberId, Reason};

use crate::agent_state::{AgentState, Phase};
use crate::args::Connection;
use crate::cluster::{Cluster, Conflicts, config_map, gateway_class, secret};
use crate::command::token::Token;
use crate::failure::Failure;
use crate::install::gateway_api::{self, Role, Verdict};
use crate::install::gateway_class::{Choice, choose_class};
use crate::install::gateway_tracing::TracingArgs;
use crate::install::{self, AgentValues, definition, gateway_tracing, step};
use crate::output;
use crate::progress::Steps;
use crate::yaml;

const AFTER_HELP: &str = "\
The line to run is printed by `fairlead token create` in the hub's cluster. The agent dials the hub;
the hub never gets a kubeconfig of this cluster, and private keys stay where they are made.

EXAMPLES
  fairlead join --hub https://hub.example.com:8443 --token ID.SECRET --ca-hash sha256:... --member eu-1
  fairlead join ... --member eu-1 --region eu-central-1 --gateway-class envoy
  fairlead join ... --member eu-1 --otlp-endpoint http://otel:4317 --trace-gateways=10
  fairlead join ... --member eu-1 --print > agent.yaml    # for GitOps; holds the token";

/// Arguments of `join`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct JoinArgs {
    /// Address of the hub.
    #[arg(long, value_name = "https://HOST:PORT", value_parser = install::parse_hub_url)]
    hub: String,
    /// Join token; good for one cluster and a short time.
    #[arg(long, value_name = "ID.SECRET", env = "FAIRLEAD_TOKEN", hide_env_values = true, value_parser = Token::parse)]
    token: Token,
    /// Hash of the hub's CA certificate, so that the agent knows whom to trust.
    #[arg(long, value_name = "sha256:HEX", value_parser = parse_ca_hash)]
    ca_hash: String,
    /// Name of this cluster among the members: an RFC 1123 label of at most 50 characters.
    #[arg(long, value_name = "NAME")]
    member: MemberId,
    /// Region, where the labels of the nodes do not say it.
    #[arg(long, value_name = "NAME", value_parser = parse_place)]
    region: Option<String>,
    /// Zone, where the labels of the nodes do not say it.
    #[arg(long, value_name = "NAME", value_parser = parse_place)]
    zone: Option<String>,
    /// GatewayClass for Gateways that Fairlead creates here; without it the only accepted one.
    #[arg(long, value_name = "NAME")]
    gateway_class: Option<String>,
    /// OTLP endpoint of your OpenTelemetry backend, as http://host:4317; see docs/guide/traces.md.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    tracing: TracingArgs,
    /// File with what this cluster lets the hub do (agent.yaml); see docs/guide/cli.md.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// Image of the agent.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Print the objects as YAML instead of applying them; no cluster is asked.
    #[arg(long)]
    print: bool,
    /// With --print: also the definitions of the Multi-Cluster Services API.
    #[arg(long, requires = "print")]
    with_mcs_definitions: bool,
    /// Take over fields that another tool set.
    #[arg(long)]
    force_conflicts: bool,
    /// Do not wait for the agent to be connected and its first plan to be applied.
    #[arg(long, conflicts_with = "print")]
    no_wait: bool,
    /// Longest time to wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_timeout)]
    timeout: Duration,
}

/// Reads a time to wait: `90s`, `5m`, `1h`.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|e| format!("{e}; write it as 90s, 5m or 1h"))?;
    Duration::try_from(span).map_err(|_| "a time to wait is not negative".into())
}

fn parse_ca_hash(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").unwrap_or("");
    let fits =
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if fits {
        return Ok(text.to_owned());
    }
    Err("a CA hash is sha256: and 64 hexadecimal digits; copy the whole line that \
         `fairlead token create` printed"
        .into())
}

/// A region or zone is a label value that is not empty.
fn parse_place(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = text.bytes().next().zip(text.bytes().last());
    let ends = ends.is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric());
    if ends && text.len() <= 63 && text.bytes().all(inner) {
        return Ok(text.to_owned());
    }
    Err("a region or zone has 1 to 63 letters, digits, '-', '_' or '.', first and last a letter or digit"
        .into())
}

/// Joins, or prints the agent's objects.
pub(crate) async fn run(connection: &Connection, args: &JoinArgs) -> Result<(), Failure> {
    let config = read_config(args)?;
    let home = connection.namespace.as_str();
    if args.print {
        print(home, args, config.as_deref());
        return Ok(());
    }
    let cluster = Cluster::open(connection).await?;
    join(&cluster, home, args, config.as_deref(), Steps::for_stderr()).await
}

fn read_config(args: &JoinArgs) -> Result<Option<String>, Failure> {
    let Some(path) = &args.config else {
        return Ok(None);
    };
    let what = format!("cannot use --config {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| Failure::usage(&what, e))?;
    yaml::read(&path.display().to_string(), &text).map_err(|e| Failure::usage(&what, e))?;
    Ok(Some(text))
}

fn objects(home: &str, args: &JoinArgs, class: Option<&str>, config: Option<&str>) -> Vec<Json> {
    let default_image = install::default_image(keys::AGENT);
    let percent = args.tracing.agent_percent();
    install::agent(&AgentValues {
        namespace: home,
        image: args.image.as_deref().unwrap_or(&default_image),
        member: &args.member,
        hub: &args.hub,
        token: &args.token.text(),
        ca_hash: &args.ca_hash,
        region: args.region.as_deref(),
        zone: args.zone.as_deref(),
        gateway_class: class,
        otlp_endpoint: args.otlp_endpoint.as_deref(),
        sampling_percent: percent.as_deref(),
        config,
    })
}

fn print(home: &str, args: &JoinArgs, config: Option<&str>) {
    let mut all = vec![install::namespace(home)];
    if args.with_mcs_definitions {
        all.extend(definition::mcs());
    }
    all.extend(objects(home, args, args.gateway_class.as_deref(), config));
    let tracing = args.tracing.asked(home);
    all.extend(tracing.map(|asked| asked.proxy()));
    output::print(&yaml::write_all(&all));
    if let Some(asked) = tracing {
        Steps::for_stderr().warn(asked.words_for_print());
    }
    Steps::for_stderr().warn("this holds a join token: apply it before the token expires");
}

async fn join(
    cluster: &Cluster,
    home: &str,
    args: &JoinArgs,
    config: Option<&str>,
    steps: Steps,
) -> Result<(), Failure> {
    steps.done(format!("API server {} answers ({})", cluster.server(), cluster.version().await?));
    let class = match standing(cluster, home, &args.member).await? {
        Standing::Joined(state) => {
            let asked = args.tracing.asked(home);
            let what = if asked.is_none() { ": nothing to do" } else { "" };
            steps.done(format!("already joined as {}{what}", args.member));
            if let Some(asked) = asked {
                let class = find_class(cluster, args, steps).await?;
                gateway_tracing::set_up(cluster, class.as_deref(), &asked, steps).await?;
            }
            return say_connected(&state, steps);
        }
        Standing::New => check(cluster, home, args, steps).await?,
    };
    let tracing = match args.tracing.asked(home) {
        Some(asked) => gateway_tracing::prepare(cluster, class.as_deref(), &asked).await?,
        None => Vec::new(),
    };
    let objects = objects(home, args, class.as_deref(), config);
    let all: Vec<Json> = objects.iter().chain(&tracing).cloned().collect();
    step::check_permissions(cluster, home, &all).await?;
    steps.done("permissions suffice");
    step::refuse_helm(cluster, home, keys::AGENT).await?;
    step::ensure_namespace(cluster, home, steps).await?;
    step::ensure_mcs(cluster, steps).await?;
    // What an agent said before belongs to that attempt, not to this one.
    cluster.delete(&config_map(), home, install::CONFIG_MAP_STATE).await?;
    let conflicts = if args.force_conflicts { Conflicts::TakeOver } else { Conflicts::Refuse };
    step::apply_all(cluster, "agent", &objects, conflicts, steps).await?;
    if !tracing.is_empty() {
        gateway_tracing::apply(cluster, &tracing, steps).await?;
    }
    if args.no_wait {
        steps.say(format!(
            "see how it goes: kubectl -n {home} get configmap fairlead-agent-state -o yaml"
        ));
        return Ok(());
    }
    arrival::wait(cluster, home, args, steps).await
}

/// What this cluster is already.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// No member, or one whose join did not succeed.
    New,
    /// A member of that name, with what its agent says.
    Joined(AgentState),
}

async fn standing(cluster: &Cluster, home: &str, member: &MemberId) -> Result<Standing, Failure> {
    let identity = cluster.get(&secret(), home, keys::SECRET_AGENT_IDENTITY).await?;
    let map = cluster.get(&config_map(), home, install::CONFIG_MAP_STATE).await?;
    judge(identity.as_ref(), &AgentState::read(map.as_ref()), member)
}

fn judge(
    identity: Option<&Json>,
    state: &AgentState,
    member: &MemberId,
) -> Result<Standing, Failure> {
    // A key alone is an attempt; a certificate is what the hub gave.
    let joined = identity.is_some_and(|secret| secret["data"]["tls.crt"].as_str().is_some());
    if !joined || state.phase == Phase::Refused {
        return Ok(Standing::New);
    }
    if !state.member.is_empty() && state.member != member.as_str() {
        let what = format!("cannot join this cluster as {member}");
        let why =
            format!("it is member {} already ({})", state.member, Reason::ClusterJoinedAlready);
        return Err(Failure::failed(what, why)
            .next("run `fairlead leave` with this kubeconfig first; a cluster has one name"));
    }
    Ok(Standing::Joined(state.clone()))
}

fn say_connected(state: &AgentState, steps: Steps) -> Result<(), Failure> {
    match state.phase {
        Phase::Applied => steps.done("connected, plan applied"),
        Phase::Connected => steps.done("connected"),
        _ => steps.warn(format!("the agent is not connected at present: {}", state.words())),
    }
    Ok(())
}

/// Checks what needs no change, and finds the class. Nothing is written before all of it passed.
async fn check(
    cluster: &Cluster,
    home: &str,
    args: &JoinArgs,
    steps: Steps,
) -> Result<Option<String>, Failure> {
    if home != keys::NAMESPACE {
        steps.warn(format!("plans of the hub go to namespace {}, not {home}", keys::NAMESPACE));
    }
    match gateway_api::check(cluster, Role::Member).await? {
        Verdict::Tried(version) => steps.done(format!("Gateway API {version}")),
        Verdict::Untested(why) | Verdict::Refused(why) => steps.warn(why),
    }
    find_class(cluster, args, steps).await
}

async fn find_class(
    cluster: &Cluster,
    args: &JoinArgs,
    steps: Steps,
) -> Result<Option<String>, Failure> {
    let classes = cluster.list(&gateway_class(), "", "").await?.unwrap_or_default();
    let choice = choose_class(&classes, args.gateway_class.as_deref())?;
    match &choice {
        Choice::Take { name, warning: None } => steps.done(format!("GatewayClass {name}")),
        Choice::Take { name, warning: Some(warning) } => steps.warn(format!("GatewayClass {name}: {warning}")),
        Choice::None(why) => steps.warn(format!(
            "{why}; without a class this cluster can be an entry, by Gateways that it lends, but not a \
             target"
        )),
    }
    Ok(match choice {
        Choice::Take { name, .. } => Some(name),
        Choice::None(_) => None,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::fake::Fake;

    const TOKEN: &str = "abcdefgh.0123456789abcdef0123456789abcdef";

    fn args_with(more: &[&str]) -> Result<JoinArgs, clap::Error> {
        let hash = format!("sha256:{}", "0".repeat(64));
        let mut line = vec![
            "fairlead",
            "join",
            "--hub",
            "https://hub:8443",
            "--token",
            TOKEN,
            "--ca-hash",
            &hash,
        ];
        line.extend(more);
        match Cli::try_parse_from(line)?.command {
            Command::Join(args) => Ok(*args),
            _ => unreachable!("the line says join"),
        }
    }

    pub(super) fn mk_args() -> JoinArgs {
        args_with(&["--member", "east", "--timeout", "0s"]).unwrap()
    }

    fn mk_state(data: Json) -> Json {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata":
            {"name": "fairlead-agent-state", "namespace": "fairlead-system"}, "data": data})
    }

    fn mk_identity() -> Json {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata":
            {"name": "fairlead-agent-identity", "namespace": "fairlead-system"},
            "data": {"tls.crt": "eA==", "tls.key": "eA=="}})
    }

    #[test]
    fn bad_arguments_are_refused_before_anything_is_tried() {
        for bad in ["Upper", "-x", "a.b", &"x".repeat(51)] {
            let error = args_with(&[&format!("--member={bad}")]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("RFC 1123"), "{error}");
        }
        assert!(args_with(&["--member", "east", "--region", "a b"]).is_err());
        assert!(parse_ca_hash("sha256:12").is_err());
        assert!(parse_ca_hash(&"0".repeat(64)).is_err());
    }

    #[test]
    fn a_joined_cluster_is_left_alone_and_another_name_is_refused() {
        let (identity, member) = (mk_identity(), MemberId::new("east").unwrap());
        let state = |data: Json| AgentState::read(Some(&mk_state(data)));
        let connected = state(json!({"phase": "Connected", "member": "east"}));
        let standing = judge(Some(&identity), &connected, &member).unwrap();
        assert_eq!(standing, Standing::Joined(connected));
        let other = state(json!({"phase": "Applied", "member": "west"}));
        let failure = judge(Some(&identity), &other, &member).unwrap_err().for_people();
        assert!(failure.contains("member west already") && failure.contains("fairlead leave"));
        let refused = state(json!({"phase": "Refused", "member": "east"}));
        assert_eq!(judge(Some(&identity), &refused, &member).unwrap(), Standing::New);
        assert_eq!(judge(None, &AgentState::default(), &member).unwrap(), Standing::New);
    }

    #[test]
    fn a_refusal_of_an_earlier_token_is_not_ours() {
        let state = |data: Json| AgentState::read(Some(&mk_state(data)));
        let earlier = state(json!({"phase": "Refused", "token-id": "zzzzzzzz"}));
        assert!(!earlier.refuses("abcdefgh") && earlier.refuses("zzzzzzzz"));
        assert!(state(json!({"phase": "Refused"})).refuses("abcdefgh"));
    }

    #[tokio::test]
    async fn joining_again_writes_nothing() {
        let fake =
            Fake::new([mk_identity(), mk_state(json!({"phase": "Applied", "member": "east"}))]);
        join(&fake.cluster(), keys::NAMESPACE, &mk_args(), None, Steps::Silent).await.unwrap();
        assert_eq!(fake.writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn joining_again_sets_traces_of_gateways_up_alone() {
        let fake =
            Fake::new([mk_identity(), mk_state(json!({"phase": "Applied", "member": "east"}))]);
        fake.put(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "eg"},
            "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "status": {"conditions": [{"type": "Accepted", "status": "True"}]}}));
        let args = args_with(&["--member", "east", "--trace-gateways"]).unwrap();
        join(&fake.cluster(), keys::NAMESPACE, &args, None, Steps::Silent).await.unwrap();
        assert_eq!(fake.writes(), ["apply EnvoyProxy/fairlead-tracing", "apply GatewayClass/eg"]);
    }

    #[tokio::test]
    async fn traces_that_cannot_be_set_up_write_nothing() {
        let fake = Fake::with_gateway_api();
        let args = args_with(&["--member", "east", "--trace-gateways=10"]).unwrap();
        let joined = join(&fake.cluster(), keys::NAMESPACE, &args, None, Steps::Silent).await;
        assert!(joined.unwrap_err().for_people().contains("no GatewayClass"));
        assert_eq!(fake.writes(), Vec::<String>::new());
        assert!(args_with(&["--member", "east", "--trace-gateways=0"]).is_err());
    }

    #[tokio::test]
    async fn without_gateway_api_nothing_is_written() {
        let fake = Fake::new([]);
        let failure = join(&fake.cluster(), keys::NAMESPACE, &mk_args(), None, Steps::Silent)
            .await
            .unwrap_err()
            .for_people();
        assert!(
            failure.contains("not installed") && failure.contains("kubectl apply"),
            "{failure}"
        );
        assert_eq!(fake.writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn without_permission_nothing_is_written_and_it_is_named() {
        let fake = Fake::with_gateway_api();
        fake.deny("clusterroles");
        let failure = join(&fake.cluster(), keys::NAMESPACE, &mk_args(), None, Steps::Silent)
            .await
            .unwrap_err()
            .for_people();
        assert!(
            failure.contains("clusterroles.rbac.authorization.k8s.io (get, create, patch)"),
            "{failure}"
        );
        assert_eq!(fake.writes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_silent_agent_ends_in_time_out_with_everything_installed() {
        let fake = Fake::with_gateway_api();
        let failure = join(&fake.cluster(), keys::NAMESPACE, &mk_args(), None, Steps::Silent)
            .await
            .unwrap_err();
        assert_eq!(failure.exit() as u8, 3);
        assert!(failure.for_people().contains("https://hub:8443"));
        let writes = fake.writes();
        for wanted in [
            "Namespace/fairlead-system",
            "Deployment/fairlead-agent",
            "CustomResourceDefinition/serviceexports.multicluster.x-k8s.io",
        ] {
            assert!(writes.iter().any(|write| write.ends_with(wanted)), "{wanted}: {writes:?}");
        }
    }

    #[tokio::test]
    async fn mcs_definitions_that_are_there_are_not_touched() {
        let fake = Fake::with_gateway_api();
        for mut object in definition::mcs() {
            object["spec"]["newer"] = true.into();
            fake.put(object);
        }
        let _ = join(&fake.cluster(), keys::NAMESPACE, &mk_args(), None, Steps::Silent).await;
        let writes = fake.writes();
        assert!(!writes.iter().any(|write| write.contains("multicluster")), "{writes:?}");
    }

    #[tokio::test]
    async fn a_refusal_of_the_hub_is_a_failure_with_its_reason() {
        let fake = Fake::with_gateway_api();
        fake.put_after(
            "fairlead-agent",
            mk_state(json!({"phase": "Refused", "reason": "NameTaken",
            "message": "east is cluster 123"})),
        );
        let args = args_with(&["--member", "east", "--timeout", "20s"]).unwrap();
        let failure =
            join(&fake.cluster(), keys::NAMESPACE, &args, None, Steps::Silent).await.unwrap_err();
        assert_eq!(failure.exit() as u8, 1);
        let text = failure.for_people();
        assert!(text.contains("NameTaken: east is cluster 123"), "{text}");
        assert!(text.contains("choose another name"), "{text}");
    }

    #[tokio::test]
    async fn connected_and_applied_is_joined() {
        let fake = Fake::with_gateway_api();
        fake.put_after(
            "fairlead-agent",
            mk_state(json!({"phase": "Connected", "plan-applied": "true"})),
        );
        let args = args_with(&["--member", "east", "--timeout", "20s"]).unwrap();
        join(&fake.cluster(), keys::NAMESPACE, &args, None, Steps::Silent).await.unwrap();
    }
}
