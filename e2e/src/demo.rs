//! `cargo demo`: the whole of Fairlead in two minutes, on real clusters of this machine.
//!
//! Starts a world, joins its members by the lines that a user would paste, opens a small shop,
//! sends traffic through every entry, kills a member and brings it back, takes a bad change back,
//! restarts the hub. Each step says what it does and checks what it promised. Owns the story, not the machinery.

mod figures;
mod names;
mod rollback;
mod table;
mod traces;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use self::{
    figures::{Failover, Figures, HubRestart, problems, shares},
    table::Screen,
    traces::Traces,
};
use crate::{
    fleet::{
        Fleet,
        dump::Dump,
        entry,
        program::{Ran, build_programs, shown},
        shop,
    },
    load::{Report, Running},
    report::{milliseconds, seconds},
    world::{World, WorldSpec},
};

/// What the demo is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// After the story: end, or stay up to be played with.
    pub ending: Ending,
    /// Where the figures go.
    pub json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    #[default]
    Stay,
    Leave,
}

/// The member that is killed, and the one that has the catalog; both of the default world.
const VICTIM: &str = "east";
const CATALOG_HOME: &str = "west";
/// Requests per second over all entries: enough for figures, little for two cores.
const CART_RATE: f64 = 450.0;
const CATALOG_RATE: f64 = 45.0;
/// Moderate traffic for as long as people look at the table.
const STAY_RATE: f64 = 60.0;
const STEADY: Duration = Duration::from_secs(15);
const RECOVER_LIMIT: Duration = Duration::from_secs(30);
const RETURN_LIMIT: Duration = Duration::from_secs(120);
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// A load keeps all its samples; so long a load is started anew.
const STAY_LOAD: Duration = Duration::from_secs(60);

/// Plays the demo. True when everything was as promised.
pub async fn run(options: Options) -> Result<bool> {
    let mut figures = Figures::default();
    step("Building what is missing: tools of the clusters, hub, agent and CLI");
    let start = Instant::now();
    let (tools, programs) = tokio::join!(
        tokio::task::spawn_blocking(crate::tool::Toolbox::ready),
        tokio::task::spawn_blocking(build_programs)
    );
    tools??;
    let programs = programs??;
    figures.programs_s = seconds(start.elapsed());

    let start = Instant::now();
    step("Starting a hub cluster and three members in two regions");
    let world = World::up(WorldSpec::default()).await?;
    figures.world_s = seconds(world.took());
    let fleet = Fleet::new(&world)?;
    let traces = Traces::start_if_built(&world).await?;
    join(&fleet, traces.as_ref(), &mut figures).await?;
    open(&fleet).await?;
    figures.ready_s = seconds(start.elapsed());
    println!("\nThe shop answers through every entry, {:.1} s after the start.", figures.ready_s);
    show_crossing(&fleet, traces.as_ref(), &mut figures).await;

    let members: Vec<String> = world.members().map(|m| m.name().to_owned()).collect();
    step("A name for the shop: a DNSPolicy in the hub, and every agent answers for it");
    let names = names::Watch::start(&fleet, CATALOG_HOME).await?;
    let mut show = Show::start(&fleet, Screen::new(members.clone()), names).await?;
    show.steady(&mut figures).await?;
    show.failover(&mut figures).await?;
    show.rollback(&mut figures).await?;
    show.hub_restart(&mut figures).await?;
    let names = show.end().await?;

    figures.problems.extend(problems(&figures, &members, CATALOG_HOME));
    figures.problems.extend(names::problems(&names));
    figures.names = names;
    figures.passed = figures.problems.is_empty();
    conclude(&figures, options.json.as_ref())?;
    if options.ending == Ending::Stay {
        print_hints(&fleet, &programs).await?;
        stay(&fleet, members).await?;
    }
    Ok(figures.passed)
}

fn step(text: &str) {
    println!("\n── {text}");
}

/// A command as a user would see it: the line, then what it said.
fn telling(cluster: &str, ran: &Ran) -> String {
    let said = ran.stderr.lines().chain(ran.stdout.lines()).map(|line| format!("    {line}"));
    let line = format!("[{cluster}] $ {}", shown(&ran.line));
    std::iter::once(line).chain(said).collect::<Vec<_>>().join("\n")
}

fn told(cluster: &str, ran: &Ran) {
    println!("{}", telling(cluster, ran));
}

async fn join(fleet: &Fleet<'_>, traces: Option<&Traces>, figures: &mut Figures) -> Result<()> {
    step("Installing the hub, and joining each member by the line that it prints");
    let flags = traces.map(Traces::flags).unwrap_or_default();
    told("hub", &fleet.init_with(&flags).await?);
    for member in fleet.world().members() {
        let start = Instant::now();
        println!("[hub] $ fairlead token create --member {}", member.name());
        let ran = match traces {
            Some(traces) => traces.join(fleet, member.name()).await?,
            None => fleet.join(member.name()).await?,
        };
        told(member.name(), &ran);
        figures.join_s.insert(member.name().to_owned(), seconds(start.elapsed()));
    }
    Ok(())
}

/// One request for what another member has, as a trace.
async fn show_crossing(fleet: &Fleet<'_>, traces: Option<&Traces>, figures: &mut Figures) {
    let Some(traces) = traces else {
        println!("{}", traces::WITHOUT);
        return;
    };
    step("One request that crosses, as a trace in Jaeger");
    match traces.show_crossing(fleet, VICTIM, shop::CATALOG).await {
        Ok(crossing) => {
            println!("{}", crossing.line());
            figures.problems.extend(crossing.problem(VICTIM, CATALOG_HOME));
            figures.crossing = Some(crossing);
        }
        Err(error) => figures.problems.push(format!("a request is no trace: {error:#}")),
    }
}

async fn open(fleet: &Fleet<'_>) -> Result<()> {
    step("Opening a small shop: its files are in e2e/shop");
    println!("[hub]     $ kubectl apply -f hub.yaml -f spread.yaml   (a Gateway, two HTTPRoutes)");
    println!("[members] $ kubectl apply -f member.yaml               (Services and their exports)");
    fleet.open_shop(CATALOG_HOME).await?;
    fleet.spread_cart().await?;
    fleet.wait_settled().await.context("the members do not hold the shop's objects")?;
    for path in [shop::CART, shop::CATALOG] {
        fleet.wait_live(path).await?;
    }
    let all = fleet.world().members().count();
    for name in fleet.entries().await?.keys() {
        wait_spread(fleet, name, all).await?;
    }
    Ok(())
}

/// Statuses run ahead of Envoy: waits until all members have answered one entry's cart requests.
async fn wait_spread(fleet: &Fleet<'_>, name: &str, members: usize) -> Result<()> {
    let address = entry(fleet.world().member(name)?).await?;
    crate::wait::until(&format!("all members to answer {name}"), shop::LIVE_LIMIT, || async {
        let load = crate::load::Load::new(shop::HOST, shop::CART).entry(name, address);
        let report = load.requests(60, 6).run().await;
        let targets = report.shares(|sample| sample.outcome.target.clone());
        Ok(match report.failed() == 0 && targets.len() == members {
            true => crate::wait::Look::Done(()),
            false => crate::wait::Look::Not(format!("{targets:?}")),
        })
    })
    .await
}

/// Traffic through all entries, and the table that shows it.
struct Show<'f, 'w> {
    fleet: &'f Fleet<'w>,
    screen: Screen,
    cart: Running,
    catalog: Running,
    names: names::Watch,
}

impl<'f, 'w> Show<'f, 'w> {
    async fn start(fleet: &'f Fleet<'w>, screen: Screen, names: names::Watch) -> Result<Self> {
        step("Traffic through every entry: who answers requests to the cart");
        let cart = fleet.load(shop::CART).await?.rate(CART_RATE).start();
        let catalog = fleet.load(shop::CATALOG).await?.rate(CATALOG_RATE).start();
        Ok(Self { fleet, screen, cart, catalog, names })
    }

    async fn end(self) -> Result<names::Names> {
        self.cart.stop().await;
        self.catalog.stop().await;
        self.names.end().await
    }

    /// Shows the table until `done` says so of the cart's report; false when `limit` passed.
    async fn watch(&mut self, limit: Duration, done: impl Fn(&Running, Duration) -> bool) -> bool {
        let start = Instant::now();
        loop {
            let now = self.cart.now();
            self.screen.show(&self.cart.so_far(), now);
            if done(&self.cart, now) {
                return true;
            }
            if start.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    async fn steady(&mut self, figures: &mut Figures) -> Result<()> {
        self.watch(STEADY + LOOK_PERIOD, |_, now| now >= STEADY).await;
        let (cart, catalog) = (self.cart.so_far(), self.catalog.so_far());
        figures.shares = shares(&cart, |outcome| outcome.target.clone());
        figures.versions = shares(&cart, |outcome| outcome.version.clone());
        figures.catalog = shares(&catalog, |outcome| outcome.target.clone());
        let canary: Vec<String> = figures
            .versions
            .iter()
            .map(|(entry, shares)| {
                let canary = shares.get("v2").map_or(0.0, |share| share.fraction);
                format!("{entry} {:.1} %", canary * 100.0)
            })
            .collect();
        self.screen.say(&format!(
            "  Asked for: 20 % of each entry's requests to the canary. Seen: {}.",
            canary.join(", ")
        ));
        Ok(())
    }

    /// Kills a member and brings it back.
    async fn failover(&mut self, figures: &mut Figures) -> Result<()> {
        let world = self.fleet.world();
        self.screen.say(&format!("\n── Killing {VICTIM}: every process and its network"));
        let (cart_at, catalog_at) = (self.cart.now(), self.catalog.now());
        let before = returning(&self.cart.so_far(), cart_at);
        self.names.note_kill();
        // The wire first: nobody gets a last word out, as in a power cut.
        world.fault().isolate(VICTIM)?;
        world.fault().kill_member(VICTIM).await?;
        self.watch(RECOVER_LIMIT, |load, _| {
            survivors(&load.settled()).recovered_after(cart_at).is_some()
        })
        .await;
        let (cart, catalog) = (survivors(&self.cart.settled()), survivors(&self.catalog.settled()));
        let recovered = cart.recovered_after(cart_at).map(milliseconds);
        let since = |report: &Report, at| report.only(|sample| sample.started >= at);
        let (cart, catalog) = (since(&cart, cart_at), since(&catalog, catalog_at));
        let failed_requests = cart.failed() + catalog.failed();
        let requests = cart.total() + catalog.total();
        self.screen.say(&match recovered {
            Some(ms) => format!(
                "  Through the surviving entries {failed_requests} of {requests} requests failed; \
                 99 % succeed again {ms:.0} ms after the kill."
            ),
            None => format!("  {failed_requests} of {requests} requests failed; no recovery yet."),
        });

        self.screen.say(&format!("\n── Bringing {VICTIM} back, until it gets its traffic again"));
        let start = Instant::now();
        world.fault().rejoin(VICTIM)?;
        world.fault().restore_member(VICTIM).await?;
        let is_back = self
            .watch(RETURN_LIMIT, |load, now| {
                now >= cart_at && returning(&load.so_far(), now) * 10 >= before * 8
            })
            .await;
        let returned_after_ms = is_back.then(|| milliseconds(start.elapsed()));
        if let Some(ms) = returned_after_ms {
            self.screen.say(&format!("  It has its share again after {:.1} s.", ms / 1000.0));
        }
        self.fleet.wait_settled().await.context("the fleet does not settle again")?;
        self.fleet
            .wait_ramped("shop/cart")
            .await
            .context("the member is not given all of its share")?;
        figures.failed_requests = failed_requests;
        figures.recovered_after_ms = recovered;
        figures.failover = Some(Failover {
            killed: VICTIM.into(),
            requests,
            failed_requests,
            recovered_after_ms: recovered,
            returned_after_ms,
        });
        Ok(())
    }

    async fn hub_restart(&mut self, figures: &mut Figures) -> Result<()> {
        let world = self.fleet.world();
        self.screen.say("\n── Restarting the hub: nothing is rewritten, nothing fails");
        let at = self.cart.now();
        let before = dump_ours(world).await?;
        world.fault().kill_hub().await?;
        self.watch(HUB_DOWN, |_, now| now >= at + HUB_DOWN).await;
        world.fault().restore_hub().await?;
        self.fleet.wait_settled().await.context("the fleet does not settle with the hub")?;
        let after = dump_ours(world).await?;
        let mut rewritten = Vec::new();
        for ((member, before), (_, after)) in before.iter().zip(&after) {
            let writes = before.writes_until(after);
            rewritten.extend(writes.into_iter().map(|line| format!("{member}: {line}")));
        }
        let since = self.cart.so_far().only(|sample| sample.started >= at);
        let restart = HubRestart {
            objects: before.iter().map(|(_, dump)| dump.len()).sum(),
            rewritten,
            requests: since.total(),
            failed_requests: since.failed(),
        };
        self.screen.say(&format!(
            "  {} of {} objects rewritten, {} of {} requests failed.",
            restart.rewritten.len(),
            restart.objects,
            restart.failed_requests,
            restart.requests
        ));
        figures.hub_restart = Some(restart);
        Ok(())
    }
}

const HUB_DOWN: Duration = Duration::from_secs(4);

async fn dump_ours(world: &World) -> Result<Vec<(String, Dump)>> {
    let mut dumps = Vec::new();
    for member in world.members() {
        dumps.push((member.name().to_owned(), Dump::take(member).await?.ours()));
    }
    Ok(dumps)
}

/// What entered through members that live on.
fn survivors(report: &Report) -> Report {
    report.only(|sample| sample.entry != VICTIM)
}

/// How many requests of the last seconds the victim answered for the others.
fn returning(report: &Report, now: Duration) -> usize {
    let since = now.saturating_sub(Duration::from_secs(2));
    let answered = |sample: &&crate::load::Sample| {
        sample.started >= since && sample.entry != VICTIM && sample.outcome.target == VICTIM
    };
    report.samples().iter().filter(answered).count()
}

fn conclude(figures: &Figures, file: Option<&PathBuf>) -> Result<()> {
    println!();
    if figures.passed {
        println!("Everything was as promised.");
    }
    for problem in &figures.problems {
        println!("✘ {problem}");
    }
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(&json!(figures)).context("writing the figures")?;
    std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

async fn print_hints(fleet: &Fleet<'_>, programs: &std::path::Path) -> Result<()> {
    let world = fleet.world();
    println!("\nIt stays up until Ctrl-C. Try, in another terminal:");
    println!("  export PATH={}:$PATH", programs.display());
    println!("  export KUBECONFIG={}", world.hub().kubeconfig().display());
    println!("  fairlead status");
    println!("  fairlead get members");
    println!("  fairlead explain shop/cart --from {VICTIM}");
    println!("  fairlead history shop/cart");
    println!("  {} -n shop edit httproute cart", world.tools().kubectl.display());
    for (name, address) in fleet.entries().await? {
        let (host, path) = (shop::HOST, shop::CART);
        println!("  curl -H 'Host: {host}' http://{address}{path}      # enters through {name}");
    }
    for member in world.members() {
        println!("  kubeconfig of {}: {}", member.name(), member.kubeconfig().display());
    }
    println!("  logs of every process: {}\n", world.folder().display());
    Ok(())
}

/// Keeps some traffic and the table going until the future is dropped.
async fn stay(fleet: &Fleet<'_>, members: Vec<String>) -> Result<()> {
    let mut screen = Screen::new(members);
    loop {
        let load = fleet.load(shop::CART).await?.rate(STAY_RATE).lasting(STAY_LOAD).start();
        while load.now() < STAY_LOAD {
            if screen.is_terminal() {
                screen.show(&load.so_far(), load.now());
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
        if load.finish().await.total() == 0 {
            bail!("the demo's load sends nothing");
        }
    }
}
