//! The flags of the hub's process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use fairlead_hub_core::history::Limits;
use fairlead_hub_core::passive::Thresholds;
use fairlead_model::MemberId;
use fairlead_planner::{RolloutSettings, Unheard};
use fairlead_telemetry::settings::BackendArgs;

use crate::office::Seat;
use crate::store::EtcdOptions;

/// The Fairlead hub: decides how traffic of global routes is spread over member clusters.
#[derive(Debug, Parser)]
#[command(name = "fairlead-hub", version, about)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the hub until it is told to stop.
    Run(RunArgs),
}

/// How the hub runs. The cluster is the one that the process runs in, or that of `KUBECONFIG`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Where agents dial in (gRPC, mutual TLS).
    #[arg(long, default_value = "0.0.0.0:8443", env = "FAIRLEAD_LISTEN")]
    pub listen: SocketAddr,
    /// Where the read-only API, metrics and probes are served (plain HTTP).
    #[arg(long, default_value = "0.0.0.0:8080", env = "FAIRLEAD_ADMIN_LISTEN")]
    pub admin_listen: SocketAddr,
    /// Address at which other hubs of the same etcd reach this one. Without it: that of --listen, if it names one.
    #[arg(long, env = "FAIRLEAD_PEER_ADDRESS")]
    pub peer_address: Option<IpAddr>,
    /// Namespace of the hub's own objects.
    #[arg(long, default_value = fairlead_crds::keys::NAMESPACE, env = "FAIRLEAD_NAMESPACE")]
    pub namespace: String,
    /// Directory of the store; it must survive restarts. Not used with an etcd.
    #[arg(long, default_value = "/var/lib/fairlead", env = "FAIRLEAD_DATA_DIR")]
    pub data_dir: PathBuf,
    /// The etcd to use instead: several hubs can share it.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Address (`https://host:port`) at which agents reach this hub; its host goes into the hub's certificate.
    #[arg(long, env = "FAIRLEAD_ADVERTISE")]
    pub advertise: Option<String>,
    /// How long to wait for members after a start before planning without them.
    #[arg(long, default_value_t = 30, env = "FAIRLEAD_GRACE_SECONDS")]
    pub grace_seconds: u64,
    /// Hours that agents' certificates live. They are renewed after two thirds; an agent that was away for
    /// longer renews its own all the same.
    #[arg(long, default_value_t = 168, env = "FAIRLEAD_AGENT_CERTIFICATE_HOURS", value_parser = clap::value_parser!(u32).range(1..=8_760))]
    pub agent_certificate_hours: u32,
    /// The same in seconds: for tests, where nobody waits for hours.
    #[arg(long, hide = true, env = "FAIRLEAD_AGENT_CERTIFICATE_SECONDS", value_parser = clap::value_parser!(u32).range(10..=86_400))]
    pub agent_certificate_seconds: Option<u32>,
    /// Seconds between two looks whether a resolver answers the names of DNSPolicies as they are published. 0: never.
    #[arg(long, default_value_t = 60, env = "FAIRLEAD_DNS_CHECK_SECONDS")]
    pub dns_check_seconds: u64,
    /// Resolver to ask for that, as ADDRESS:PORT, instead of the pod's own. May be given several times.
    #[arg(long, env = "FAIRLEAD_DNS_RESOLVER", value_delimiter = ',')]
    pub dns_resolver: Vec<SocketAddr>,
    /// Percent of the requests to a member that must fail, by gateways' spans, to speak against it as one
    /// witness does. 0: outcomes are no evidence.
    #[arg(long, default_value_t = 0, env = "FAIRLEAD_PASSIVE_FAILED_PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub passive_failed_percent: u8,
    /// Requests from an entry to a member in 15 seconds below which their outcomes say nothing.
    #[arg(long, default_value_t = 20, env = "FAIRLEAD_PASSIVE_REQUESTS_MIN")]
    pub passive_requests_min: u64,
    /// Changes of routes' decisions that are kept, for `fairlead history` and `rollback`.
    #[arg(long, default_value_t = 10_000, env = "FAIRLEAD_HISTORY_ENTRIES")]
    pub history_entries: usize,
    /// Most bytes that they and the rules that belong to them take in the store.
    #[arg(long, default_value_t = 32 << 20, env = "FAIRLEAD_HISTORY_BYTES")]
    pub history_bytes: usize,
    /// How users' changes of routes are rolled out.
    #[command(flatten)]
    pub rollout: RolloutArgs,
    /// Form of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "FAIRLEAD_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Share of the hub's own traces that is recorded, 0 to 1.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", default_value_t = 1.0)]
    pub trace_ratio: f64,
    /// The backend that the hub's spans go to.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// How an etcd is reached. With endpoints, the store is there; one hub decides, and others stand by
/// and pass on what comes to them.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EtcdArgs {
    /// Endpoint (`https://host:port`) of an etcd to keep the store in. May be given several times.
    #[arg(long = "etcd-endpoint", env = "FAIRLEAD_ETCD_ENDPOINTS", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// What all our keys in etcd start with.
    #[arg(long = "etcd-prefix", default_value = "/fairlead/", env = "FAIRLEAD_ETCD_PREFIX")]
    pub prefix: String,
    /// File (PEM) with the CAs of etcd's certificates. Without it: those of the system.
    #[arg(long = "etcd-ca-file", env = "FAIRLEAD_ETCD_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// File (PEM) with the certificate to show to etcd.
    #[arg(long = "etcd-cert-file", env = "FAIRLEAD_ETCD_CERT_FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// File (PEM) with its key.
    #[arg(long = "etcd-key-file", env = "FAIRLEAD_ETCD_KEY_FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// User name at etcd.
    #[arg(long = "etcd-user", env = "FAIRLEAD_ETCD_USER", requires = "password_file")]
    pub user: Option<String>,
    /// File with its password.
    #[arg(long = "etcd-password-file", env = "FAIRLEAD_ETCD_PASSWORD_FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

/// When a user's change of a route is tried at one member first, and what is asked of it there.
#[derive(Debug, Clone, clap::Args)]
pub struct RolloutArgs {
    /// Share of a rule's requests that a change moves, in percent, above which one member tries it first.
    /// Without it every change goes to all members at once.
    #[arg(long = "rollout-above-percent", env = "FAIRLEAD_ROLLOUT_ABOVE_PERCENT", value_parser = clap::value_parser!(u8).range(0..100))]
    pub above_percent: Option<u8>,
    /// Who tries; without it, or where it has no part in the route: the entry with the least traffic.
    #[arg(long = "rollout-member", env = "FAIRLEAD_ROLLOUT_MEMBER")]
    pub member: Option<MemberId>,
    /// Share of the requests there, in percent, that may not fail, by gateways' spans.
    #[arg(long = "rollout-failed-percent", default_value_t = 5, env = "FAIRLEAD_ROLLOUT_FAILED_PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub failed_percent: u8,
    /// Requests there below which nothing is known of it.
    #[arg(
        long = "rollout-requests-min",
        default_value_t = 50,
        env = "FAIRLEAD_ROLLOUT_REQUESTS_MIN"
    )]
    pub requests_min: u64,
    /// How long it must go well there before the others get it.
    #[arg(
        long = "rollout-watch-seconds",
        default_value_t = 15,
        env = "FAIRLEAD_ROLLOUT_WATCH_SECONDS"
    )]
    pub watch_seconds: u64,
    /// How long to wait for enough requests, or for its gateways to take it.
    #[arg(
        long = "rollout-watch-seconds-max",
        default_value_t = 120,
        env = "FAIRLEAD_ROLLOUT_WATCH_SECONDS_MAX"
    )]
    pub watch_seconds_max: u64,
    /// What becomes of it when too few requests have come by then.
    #[arg(long = "rollout-unheard", value_enum, default_value_t = UnheardArg::Stop, env = "FAIRLEAD_ROLLOUT_UNHEARD")]
    pub unheard: UnheardArg,
}

/// What becomes of a change of which nothing is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UnheardArg {
    /// It goes on to all members.
    GoOn,
    /// It is stopped.
    Stop,
}

impl RolloutArgs {
    /// What the planner is told; none when nothing is staged.
    pub fn settings(&self) -> Option<RolloutSettings> {
        let ms = |seconds: u64| seconds.saturating_mul(1_000);
        Some(RolloutSettings {
            above_percent: self.above_percent?,
            member: self.member.clone(),
            failed_percent: self.failed_percent,
            requests_min: self.requests_min,
            watch_ms: ms(self.watch_seconds),
            watch_ms_max: ms(self.watch_seconds_max),
            take_ms_max: ms(self.watch_seconds_max),
            unheard: match self.unheard {
                UnheardArg::GoOn => Unheard::GoOn,
                UnheardArg::Stop => Unheard::Stop,
            },
        })
    }
}

impl EtcdArgs {
    /// The etcd to use, if one is named.
    pub fn options(&self) -> Option<EtcdOptions> {
        (!self.endpoints.is_empty()).then(|| EtcdOptions {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            user: self.user.clone(),
            password_file: self.password_file.clone(),
        })
    }
}

impl RunArgs {
    /// What this hub, called `holder` and listening for agents there, says to others of itself.
    pub fn seat(&self, holder: String, agents: SocketAddr) -> Seat {
        let own = (!agents.ip().is_unspecified()).then_some(agents.ip());
        let address = self.peer_address.or(own);
        Seat::new(holder, address, agents.port(), self.admin_listen.port())
    }

    /// How long agents' certificates live.
    pub fn agent_certificate_ms(&self) -> u64 {
        let hours = u64::from(self.agent_certificate_hours) * 3_600;
        self.agent_certificate_seconds.map_or(hours, u64::from) * 1_000
    }

    /// Bounds of the history.
    pub fn history(&self) -> Limits {
        let (entries, bytes) = (self.history_entries, self.history_bytes);
        Limits { entries, bytes, ..Limits::default() }
    }

    /// When outcomes of requests are evidence; none when they are not.
    pub fn passive(&self) -> Option<Thresholds> {
        let (failed_percent, requests_min) =
            (self.passive_failed_percent, self.passive_requests_min);
        (failed_percent > 0).then_some(Thresholds { failed_percent, requests_min })
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object in each line.
    Json,
}
