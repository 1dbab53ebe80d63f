//! The command line, as the chart writes it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use fairlead_model::MemberId;
use fairlead_telemetry::settings::BackendArgs;
use tracing_subscriber::EnvFilter;

/// The Fairlead agent of a member cluster.
#[derive(Debug, Parser)]
#[command(name = "fairlead-agent", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until it is told to stop.
    Run(RunArgs),
}

/// Flags of `fairlead-agent run`.
#[derive(Debug, Clone, Parser)]
pub struct RunArgs {
    /// Name of this cluster among the members.
    #[arg(long, env = "FAIRLEAD_MEMBER", value_parser = parse_member)]
    pub member: MemberId,
    /// Address of the hub, as https://host:port. Without it only --bundle counts.
    #[arg(long, env = "FAIRLEAD_HUB", required_unless_present = "bundle")]
    pub hub: Option<String>,
    /// What this cluster lets the hub do (YAML). Defaults when the file does not exist.
    #[arg(long, default_value = "/etc/fairlead/agent.yaml")]
    pub config: PathBuf,
    /// Files `token` and `ca-hash`, for the first contact with the hub.
    #[arg(long, default_value = "/etc/fairlead/bootstrap")]
    pub bootstrap_dir: PathBuf,
    /// Where the last bundle and what must outlive a restart is kept.
    #[arg(long, default_value = "/var/lib/fairlead")]
    pub data_dir: PathBuf,
    /// The agent's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = fairlead_crds::keys::NAMESPACE)]
    pub namespace: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub admin_listen: SocketAddr,
    /// Where peers get the counts of ready endpoints, behind the door.
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub readiness_listen: SocketAddr,
    /// Where zones are answered for, over UDP and TCP.
    #[arg(long, default_value = "0.0.0.0:5353")]
    pub dns_listen: SocketAddr,
    /// Where clusterset.local is answered for, over UDP and TCP: for this cluster's own DNS, not for the world.
    #[arg(long, default_value = "0.0.0.0:5354")]
    pub clusterset_listen: SocketAddr,
    /// Answers a second to one /24 or /56 network over UDP; beyond, clients are sent to TCP. 0: no bound.
    #[arg(long, env = "FAIRLEAD_DNS_RATE", default_value_t = 2_000)]
    pub dns_rate: u32,
    /// Where that is reached from outside, as an address or a name, where Service fairlead-dns does
    /// not say: the parent zone names it. May be given several times.
    #[arg(long, env = "FAIRLEAD_DNS_ADDRESS", value_delimiter = ',')]
    pub dns_address: Vec<String>,
    /// Resolver to ask for the names of doors, as ADDRESS:PORT, instead of the pod's own. May be given several
    /// times.
    #[arg(long, env = "FAIRLEAD_RESOLVER", value_delimiter = ',')]
    pub resolver: Vec<SocketAddr>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Apply the bundle in this JSON file instead of one from a hub: for tests and for looking at
    /// things without a network.
    #[arg(long, conflicts_with = "hub")]
    pub bundle: Option<PathBuf>,
    /// Region of this cluster, told at the first contact. Also read from the bootstrap files.
    #[arg(long, env = "FAIRLEAD_REGION")]
    pub region: Option<String>,
    /// Zone of this cluster, told at the first contact. Also read from the bootstrap files.
    #[arg(long, env = "FAIRLEAD_ZONE")]
    pub zone: Option<String>,
    /// Class for Gateways that Fairlead makes here, told at the first contact. Also read from the
    /// bootstrap files.
    #[arg(long, env = "FAIRLEAD_GATEWAY_CLASS")]
    pub gateway_class: Option<String>,
    /// Where this cluster's gateways send their spans (OTLP over gRPC).
    #[arg(long, default_value = "0.0.0.0:4317")]
    pub otlp_listen: SocketAddr,
    /// Where this cluster's gateways send their spans (OTLP, protobuf over HTTP).
    #[arg(long, default_value = "0.0.0.0:4318")]
    pub otlp_http_listen: SocketAddr,
    /// Attributes to take out of relayed spans: a name, or the start of one followed by *. Credentials
    /// are always taken out.
    #[arg(long, value_name = "NAME")]
    pub relay_strip: Vec<String>,
    /// Share of requests that the gateways trace, in percent: rates are corrected by it.
    #[arg(long, default_value_t = 100.0, value_parser = parse_percent)]
    pub gateway_sampling_percent: f64,
    /// Share of the agent's own traces that is recorded, 0 to 1.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value_t = 1.0)]
    pub trace_ratio: f64,
    /// The backend that spans go to.
    #[command(flatten)]
    pub backend: BackendArgs,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let fits = percent > 0.0 && percent <= 100.0;
    fits.then_some(percent).ok_or_else(|| "above 0, at most 100".to_owned())
}

fn parse_member(text: &str) -> Result<MemberId, fairlead_model::IdError> {
    MemberId::new(text)
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl LogFormat {
    /// Sends logs to standard error. `RUST_LOG` chooses what is logged.
    pub fn install(self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
            EnvFilter::new("info,kube_client=warn,kube_client::client::builder=off,hyper=warn,h2=warn,tower=warn")
        });
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self {
            Self::Json => builder.json().flatten_event(true).init(),
            Self::Text => builder.init(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_charts_command_line_is_understood() {
        let chart = "fairlead-agent run --member=east --hub=https://hub:8443 --config=/etc/fairlead/agent.yaml \
                     --data-dir=/var/lib/fairlead --admin-listen=0.0.0.0:8080 --readiness-listen=0.0.0.0:8081 \
                     --dns-listen=0.0.0.0:5353 --clusterset-listen=0.0.0.0:5354";
        let cli = Cli::try_parse_from(chart.split_whitespace()).unwrap();
        let Command::Run(args) = cli.command;
        assert_eq!(args.member.as_str(), "east");
        assert_eq!(args.bootstrap_dir.to_str(), Some("/etc/fairlead/bootstrap"));
    }

    #[test]
    fn a_member_must_be_a_label_and_a_source_of_bundles_is_needed() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        assert!(parse("fairlead-agent run --member=A_b --hub=https://h:1").is_err());
        assert!(parse("fairlead-agent run --member=east").is_err());
        assert!(parse("fairlead-agent run --member=east --bundle=b.json").is_ok());
    }
}
