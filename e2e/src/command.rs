//! The command line: what each subcommand does, in a few lines each.
//!
//! A command that holds a world runs inside [`until_signal`]: Ctrl-C drops it, and dropping a
//! world takes it down.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Command as Process, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use fairlead_e2e::{
    bench, demo,
    echo::{self, Identity},
    launch,
    load::{self, Load},
    net::{self, Holder, Stay},
    path,
    pki::Leaf,
    report::{self, Facts},
    scenario::{self, Scenario},
    storage,
    tool::{self, Toolbox},
    verify,
    world::{World, WorldSpec},
};

/// Worlds of real clusters, scenarios, benches and checks.
#[derive(Parser)]
#[command(name = "cargo e2e", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the pinned tools that worlds need, into the cache
    Tools {
        /// A tool more that some scenarios look at a world with; also the demo, with jaeger
        #[arg(long, value_enum, value_name = "TOOL")]
        with: Vec<Extra>,
    },
    /// Bring clusters up and down by hand
    #[command(subcommand)]
    World(WorldCommand),
    /// List all scenarios
    List,
    /// Play scenarios, each on a world of its own, or all on one
    Run(RunArgs),
    /// Show Fairlead at work: three members, a shop, traffic, a member killed and brought back
    Demo(DemoArgs),
    /// Measure something on a world of its own
    Bench {
        /// Which bench; without a name they are listed
        name: Option<String>,
        /// How often everything is measured, where a bench lets one choose
        #[arg(long)]
        rounds: Option<u32>,
        /// Only rows whose name contains this, where a bench lets one choose
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Check everything that CI checks, cheapest first; stops at the first failure
    Verify {
        /// Only these steps
        steps: Vec<String>,
    },
    /// Serve as an echo backend
    Echo(EchoArgs),
    /// Send requests and count the answers
    Load(LoadArgs),
    /// Start one program in a namespace; the harness calls itself so
    #[command(hide = true)]
    Launch { spec: String },
    /// Write to a store until killed; the harness calls itself so
    #[command(hide = true)]
    StoreWriter(storage::StoreArgs),
}

#[derive(Subcommand)]
enum WorldCommand {
    /// Start a hub and members, print how to reach them, and hold them until Ctrl-C
    Up(UpArgs),
    /// List the worlds that run on this machine
    List,
    /// End worlds and sweep what killed ones left; without names, those that were kept
    Down {
        runs: Vec<String>,
        /// Also worlds of commands that are running now, whoever started them
        #[arg(long, conflicts_with = "runs")]
        all: bool,
    },
}

#[derive(Args)]
struct UpArgs {
    /// How many member clusters
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// Return when it is ready; it stays until `cargo e2e world down`
    #[arg(long)]
    keep: bool,
    /// For the process behind --keep
    #[arg(long, hide = true, conflicts_with = "keep")]
    until_ended: bool,
}

#[derive(Args)]
struct RunArgs {
    /// Which scenarios; see `cargo e2e list`
    #[arg(required_unless_present = "all")]
    scenarios: Vec<String>,
    /// All scenarios, on one world
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// Play on clusters that exist: hub=FILE and NAME=FILE for each member
    #[arg(long, value_name = "NAME=FILE", value_parser = name_and_file)]
    kubeconfig: Vec<(String, PathBuf)>,
}

#[derive(Args)]
struct DemoArgs {
    /// Run through and end: 0 when all was as promised, else 1
    #[arg(long)]
    once: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct EchoArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    cluster: String,
    #[arg(long)]
    service: String,
    #[arg(long)]
    version: String,
    /// Files whose text is part of every answer
    #[arg(long, value_name = "FILE")]
    show: Vec<PathBuf>,
    /// Where OTLP over HTTP takes spans of requests that are traced
    #[arg(long, value_name = "ADDRESS:PORT")]
    spans_to: Option<SocketAddr>,
    /// Speak TLS: a file with certificate and key
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Answer datagrams there
    #[arg(long, value_name = "ADDRESS:PORT")]
    udp: Vec<SocketAddr>,
}

#[derive(Args)]
struct LoadArgs {
    /// Where requests enter: NAME=ADDRESS:PORT
    #[arg(long, required = true, value_parser = name_and_address)]
    entry: Vec<(String, SocketAddr)>,
    #[arg(long)]
    host: String,
    #[arg(long, default_value = "/")]
    path: String,
    /// NAME: VALUE
    #[arg(long)]
    header: Vec<String>,
    /// So many requests per entry; without it a rate is kept until Ctrl-C or --seconds
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// At most so many at once per entry
    #[arg(long, default_value_t = 8)]
    at_once: usize,
    /// Requests per second over all entries
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    #[arg(long)]
    seconds: Option<f64>,
    /// A new connection for each request
    #[arg(long)]
    fresh: bool,
    #[arg(long, default_value_t = 2.0)]
    timeout: f64,
}

fn name_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    Ok((name.to_owned(), PathBuf::from(file)))
}

fn name_and_address(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=ADDRESS:PORT")?;
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    Ok((name.to_owned(), address))
}

/// Runs one command line.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Tools { with } => tools(&with),
        Command::World(WorldCommand::Up(args)) if args.keep => keep_world(&args),
        Command::World(WorldCommand::Up(args)) => until_signal(hold_world(args)),
        Command::World(WorldCommand::List) => list_worlds(),
        Command::World(WorldCommand::Down { runs, all }) => end_worlds(match runs.as_slice() {
            [] if all => Meant::All,
            [] => Meant::Kept,
            runs => Meant::Named(runs),
        }),
        Command::List => list_scenarios(),
        Command::Run(args) => until_signal(run_scenarios(args)),
        Command::Demo(args) => until_signal(play_demo(args)),
        Command::Bench { name, rounds, only } => {
            until_signal(run_bench(name, bench::Options { rounds, only }))
        }
        Command::Verify { steps } => until_signal(verify_all(steps)),
        Command::Echo(args) => until_signal(echo(args)),
        Command::Load(args) => runtime()?.block_on(send_load(args)),
        Command::StoreWriter(args) => storage::write_for_ever(&args),
        Command::Launch { spec } => {
            let spec = serde_json::from_str(&spec).context("reading what to launch")?;
            match launch::become_program(&spec)? {}
        }
    }
}

/// Runs a command in an async runtime; SIGINT and SIGTERM drop it, and with it its world.
fn until_signal(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    use tokio::signal::unix::{SignalKind, signal};
    runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = work => done,
            _ = interrupt.recv() => Ok(interrupted()),
            _ = terminate.recv() => Ok(interrupted()),
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    // Needed by every TLS connection; fails only if somebody was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Runtime::new().context("starting the async runtime")
}

fn interrupted() -> ExitCode {
    eprintln!("interrupted: cleaning up");
    ExitCode::from(130)
}

async fn play_demo(args: DemoArgs) -> Result<ExitCode> {
    let ending = if args.once { demo::Ending::Leave } else { demo::Ending::Stay };
    let passed = demo::run(demo::Options { ending, json: args.json }).await?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tools that worlds do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Extra {
    Jaeger,
    /// With promtool.
    Prometheus,
    ExternalDns,
    Coredns,
}

fn tools(with: &[Extra]) -> Result<ExitCode> {
    let start = Instant::now();
    let tools = Toolbox::ready()?;
    let extra = |extra: &Extra| match extra {
        Extra::Jaeger => tool::ensure_jaeger(),
        Extra::Prometheus => tool::ensure_prometheus(),
        Extra::ExternalDns => tool::ensure_external_dns(),
        Extra::Coredns => tool::ensure_coredns(),
    };
    let extras = with.iter().map(extra).collect::<Result<Vec<_>>>()?;
    println!("tools are ready ({} s):", start.elapsed().as_secs());
    for path in [
        &tools.etcd,
        &tools.kube_apiserver,
        &tools.kube_controller_manager,
        &tools.kubectl,
        &tools.envoy_gateway,
        &tools.envoy,
        &tools.helm,
        &tools.crds,
    ] {
        println!("  {}", path.display());
    }
    extras.iter().for_each(|path| println!("  {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// Printed by the process that holds a world; `world up --keep` waits for it in the log.
const READY_LINE: &str = "The world is up.";

async fn hold_world(args: UpArgs) -> Result<ExitCode> {
    let stay = if args.until_ended { Stay::UntilEnded } else { Stay::WithCommand };
    let spec = WorldSpec { stay, ..WorldSpec::with_members(args.members) };
    let world = World::up(spec).await?;
    println!("{READY_LINE} ({}, {:.1} s)", world.run(), world.took().as_secs_f32());
    describe(&world)?;
    println!("Ctrl-C, or `cargo e2e world down {}`, ends it.", world.run());
    std::future::pending::<()>().await;
    drop(world);
    Ok(ExitCode::SUCCESS)
}

fn describe(world: &World) -> Result<()> {
    println!("  kubectl: {}", world.tools().kubectl.display());
    println!("  logs:    {}", world.folder().display());
    for cluster in world.clusters() {
        let local = cluster.local()?;
        println!(
            "  {:<8} {}  --kubeconfig {}",
            cluster.name(),
            local.address(),
            cluster.kubeconfig().display()
        );
    }
    Ok(())
}

/// Longer than the slowest start on a busy machine with tools in the cache.
const KEEP_LIMIT: Duration = Duration::from_secs(3600);

/// Starts another process that holds the world, and waits until it says that the world is up.
fn keep_world(args: &UpArgs) -> Result<ExitCode> {
    let folder = path::reports()?;
    let log = folder.join("world-up.log");
    let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let members = args.members.to_string();
    let mut child = Process::new("setsid")
        .arg(path::own_program())
        .args(["world", "up", "--until-ended", "--members", &members])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("starting the process that holds the world")?;
    let start = Instant::now();
    let mut shown = 0;
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        print!("{}", &text[shown..]);
        shown = text.len();
        if text.contains("ends it.") {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(status) = child.try_wait().context("watching the world")? {
            bail!("the world did not come up ({status}): see {}", log.display());
        }
        if start.elapsed() > KEEP_LIMIT {
            bail!("the world did not come up in an hour: see {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn list_worlds() -> Result<ExitCode> {
    let holders = net::holders()?;
    if holders.is_empty() {
        println!("no worlds");
    }
    for holder in holders {
        let stay = match holder.stay {
            Stay::WithCommand => "running",
            Stay::UntilEnded => "kept",
        };
        println!("{}  {stay:<8} pid {}  {}", holder.run, holder.pid, holder.folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A harness takes a second or two to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(20);

/// Which worlds to end. Never by default one of a command in somebody else's terminal.
enum Meant<'a> {
    Kept,
    All,
    Named(&'a [String]),
}

fn end_worlds(meant: Meant<'_>) -> Result<ExitCode> {
    let holders = net::holders()?;
    if let Meant::Named(runs) = meant {
        for run in runs {
            if !holders.iter().any(|holder| holder.run == *run) {
                bail!("no world {run} is running: see `cargo e2e world list`");
            }
        }
    }
    let meant = |holder: &&Holder| match meant {
        Meant::Kept => holder.stay == Stay::UntilEnded,
        Meant::All => true,
        Meant::Named(runs) => runs.contains(&holder.run),
    };
    for holder in holders.iter().filter(meant) {
        net::end(holder, LEAVE_LIMIT)?;
        println!("ended {}", holder.run);
    }
    net::sweep_free()?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::unnecessary_wraps, reason = "all commands have one shape")]
fn list_scenarios() -> Result<ExitCode> {
    for scenario in scenario::ALL {
        println!("{:<12} {}", scenario.name, scenario.about);
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_scenarios(args: RunArgs) -> Result<ExitCode> {
    let scenarios: Vec<&Scenario> = if args.all {
        scenario::ALL.iter().collect()
    } else {
        let find = |name: &String| {
            scenario::find(name)
                .with_context(|| format!("no scenario is called {name}: see `cargo e2e list`"))
        };
        args.scenarios.iter().map(find).collect::<Result<_>>()?
    };
    let kubeconfigs: BTreeMap<String, PathBuf> = args.kubeconfig.into_iter().collect();
    let (mut passed, mut failed) = (0, 0);
    let mut account = |facts: &Facts| {
        passed += facts.passed();
        failed += facts.failed();
    };
    if kubeconfigs.is_empty() && !args.all {
        for scenario in scenarios {
            let world = World::up(scenario::world_for(&[scenario])).await?;
            account(&scenario::play(scenario, &world).await?);
        }
    } else {
        let world = if kubeconfigs.is_empty() {
            World::up(scenario::world_for(&scenarios)).await?
        } else {
            World::existing(&kubeconfigs).await?
        };
        for scenario in scenarios {
            account(&scenario::play(scenario, &world).await?);
        }
    }
    println!("\n{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_bench(name: Option<String>, options: bench::Options) -> Result<ExitCode> {
    let Some(name) = name else {
        for bench in bench::ALL {
            println!("{:<12} {}", bench.name, bench.about);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let bench = bench::find(&name)
        .with_context(|| format!("no bench is called {name}: `cargo e2e bench` lists them"))?;
    bench::measure(bench, &options).await?;
    Ok(ExitCode::SUCCESS)
}

async fn verify_all(steps: Vec<String>) -> Result<ExitCode> {
    Ok(if verify::verify(&steps).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn echo(args: EchoArgs) -> Result<ExitCode> {
    let identity = Identity { cluster: args.cluster, service: args.service, version: args.version };
    // Certificate and key lie in one file: each reader takes what it looks for.
    let read = |file: PathBuf| -> Result<Leaf> {
        let pem =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Leaf { cert_pem: pem.clone(), key_pem: pem })
    };
    let tls = args.tls.map(read).transpose()?;
    let (files, spans_to) = (args.show, args.spans_to);
    let echo = echo::Echo { identity, files, spans_to, tls, udp: args.udp };
    match echo::serve(args.listen, echo).await? {}
}

async fn send_load(args: LoadArgs) -> Result<ExitCode> {
    let mut load = Load::new(&args.host, &args.path).rate(args.rate);
    if let Some(seconds) = args.seconds {
        load = load.lasting(Duration::from_secs_f64(seconds));
    }
    if let Some(requests) = args.requests {
        load = load.requests(requests, args.at_once);
    }
    if args.fresh {
        load = load.fresh_connections();
    }
    load = load.timeout(Duration::from_secs_f64(args.timeout));
    for (name, address) in args.entry {
        load = load.entry(&name, address);
    }
    for header in &args.header {
        let (name, value) = header.split_once(':').context("a header is NAME: VALUE")?;
        load = load.header(name.trim(), value.trim());
    }
    let mut running = load.start();
    // Ctrl-C ends the load, not the account of it.
    tokio::select! {
        () = running.wait() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    let report = running.stop().await;
    print_load(&report);
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_load(report: &load::Report) {
    let mut table = comfy_table::Table::new();
    table.set_header(["entry", "target", "version", "status", "error", "requests"]);
    for (tally, count) in report.counts() {
        table.add_row([
            tally.entry,
            tally.target,
            tally.version,
            tally.status.to_string(),
            tally.error.to_owned(),
            count.to_string(),
        ]);
    }
    println!("{table}");
    println!(
        "{} requests, {} failed, median {:.1} ms, p99 {:.1} ms",
        report.total(),
        report.failed(),
        report::milliseconds(report.latency(0.5)),
        report::milliseconds(report.latency(0.99)),
    );
}
