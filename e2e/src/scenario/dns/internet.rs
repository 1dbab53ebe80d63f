//! A small internet: a root and a parent zone in BIND, and unbound, which knows the root's address only.
//!
//! ```text
//! unbound ─▶ . ─▶ com. ─▶ example.com., at the agents: delegated by what ExternalDNS writes into com.
//!              └▶ example.net., in BIND: written by ExternalDNS
//! ```
//!
//! They have addresses of their own in the hub's namespace, since resolvers ask at port 53 only. Owns that
//! port of the members' addresses, too: it leads to the agents, as a load balancer does.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use base64::Engine as _;
use tokio::process::Command;

use super::{DNS_PORT, MEMBERS};
use crate::{
    ask::{Question, Resolver},
    launch::Launch,
    net,
    process::Unit,
    wait::{self, Look},
    world::World,
};

/// The parent of the scenario's zone.
pub(super) const PARENT: &str = "com";
/// A zone that BIND answers for.
pub(super) const PUBLISHED: &str = "example.net";
/// Name of the key with which BIND takes updates.
pub(super) const KEY: &str = "fairlead";
const PORT: u16 = 53;
const START_LIMIT: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(2);
/// Last octets beside the hub's own address.
const OCTETS: [u8; 3] = [53, 54, 55];

pub(super) struct Internet {
    namespace: String,
    pub folder: PathBuf,
    root: Ipv4Addr,
    pub parent: Ipv4Addr,
    resolver: Ipv4Addr,
    /// The key's secret, in base64.
    pub secret: String,
    programs: Vec<Unit>,
}

impl Internet {
    /// Starts all of it; returns when the resolver knows the parent zone.
    pub(super) async fn start(world: &World) -> Result<Self> {
        let hub = world.hub().local()?;
        let [a, b, c, _] = hub.address.octets();
        let [root, parent, resolver] = OCTETS.map(|last| Ipv4Addr::new(a, b, c, last));
        let lines = [root, parent, resolver].map(|ip| format!("addr replace {ip}/16 dev eth0"));
        net::batch(&hub.namespace, &lines)?;
        for member in MEMBERS {
            lead_to_agent(world, member)?;
        }
        let folder = world.folder().join("internet");
        let secret = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
        let namespace = hub.namespace.clone();
        let programs = Vec::new();
        let mut net = Self { namespace, folder, root, parent, resolver, secret, programs };
        net.write_files()?;
        net.launch("root", "/usr/sbin/named", &["-f", "-n", "1", "-c"], "root/named.conf").await?;
        net.launch("parent", "/usr/sbin/named", &["-f", "-n", "1", "-c"], "parent/named.conf")
            .await?;
        net.launch("unbound", "/usr/sbin/unbound", &["-d", "-c"], "unbound/unbound.conf").await?;
        net.wait_parent().await?;
        Ok(net)
    }

    /// Where clients ask.
    pub(super) fn resolver(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.resolver), PORT)
    }

    /// Where the parent zone is answered.
    pub(super) fn parent_server(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.parent), PORT)
    }

    /// For tools that walk from the root themselves.
    pub(super) fn hints(&self) -> PathBuf {
        self.folder.join("unbound/hints")
    }

    pub(super) fn root(&self) -> Ipv4Addr {
        self.root
    }

    /// Runs a command where this internet is; what it said.
    pub(super) async fn command(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace])
            .args(words)
            .current_dir(&self.folder)
            .output()
            .await
            .with_context(|| format!("running {}", words.join(" ")))?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    pub(super) async fn stop(&self) -> Result<()> {
        for program in &self.programs {
            program.stop(GRACE).await;
        }
        let addresses = [self.root, self.parent, self.resolver];
        net::batch(&self.namespace, &addresses.map(|ip| format!("addr del {ip}/16 dev eth0")))
    }

    async fn launch(&mut self, name: &str, program: &str, args: &[&str], file: &str) -> Result<()> {
        let mut argv = vec![program.to_owned()];
        argv.extend(args.iter().map(|arg| (*arg).to_owned()));
        argv.push(self.folder.join(file).display().to_string());
        let netns = Some(self.namespace.clone());
        let launch = Launch { argv, netns, ..Launch::default() };
        let unit = Unit::new(name, self.folder.join(format!("{name}.log")), launch);
        unit.start().await.with_context(|| format!("{program} (packages bind9, unbound)"))?;
        self.programs.push(unit);
        Ok(())
    }

    async fn wait_parent(&self) -> Result<()> {
        let question = Question::new(PARENT, hickory_proto::rr::RecordType::SOA)?;
        wait::until("unbound to know the parent zone", START_LIMIT, || async {
            let mut resolver = Resolver::to(self.resolver()).await?;
            Ok(match resolver.ask(&question).await {
                Ok(answer) if !answer.answers.is_empty() => Look::Done(()),
                Ok(answer) => Look::Not(format!("it says {}", answer.metadata.response_code)),
                Err(error) => Look::Not(format!("{error:#}")),
            })
        })
        .await
    }

    fn write_files(&self) -> Result<()> {
        let Self { root, parent, resolver, secret, .. } = self;
        let top = format!(
            "$TTL 300\n. SOA a.root. hostmaster.root. 1 3600 600 1209600 60\n. NS a.root.\na.root. A {root}\n\
             {PARENT}. NS ns.{PARENT}.\n{PUBLISHED}. NS ns.{PARENT}.\nns.{PARENT}. A {parent}\n"
        );
        // Its server's name lies below the cut, so that the root has to say where it is.
        let zone = format!(
            "$TTL 300\n@ SOA ns.{PARENT}. hostmaster.{PARENT}. 1 3600 600 1209600 5\n@ NS ns.{PARENT}.\n"
        );
        let own_server = format!("ns A {parent}\n");
        self.write("root/zone", &top)?;
        let own = "zone \".\" { type primary; file \"zone\"; };\n";
        self.write("root/named.conf", &(self.options("root", *root) + own))?;
        let mut config = self.options("parent", *parent);
        config += &format!("key {KEY} {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n");
        for name in [PARENT, PUBLISHED] {
            let more = if name == PARENT { own_server.as_str() } else { "" };
            self.write(&format!("parent/{name}.zone"), &(zone.clone() + more))?;
            config += &format!(
                "zone \"{name}\" {{ type primary; file \"{name}.zone\"; \
                 allow-update {{ key {KEY}; }}; allow-transfer {{ key {KEY}; }}; }};\n"
            );
        }
        self.write("parent/named.conf", &config)?;
        self.write("unbound/hints", &format!(". 3600000 NS a.root.\na.root. 3600000 A {root}\n"))?;
        let dir = self.folder.join("unbound").display().to_string();
        self.write(
            "unbound/unbound.conf",
            &format!(
                "server:\n  directory: \"{dir}\"\n  chroot: \"\"\n  username: \"\"\n  \
                 pidfile: \"{dir}/pid\"\n  use-syslog: no\n  verbosity: 1\n  do-daemonize: no\n  \
                 num-threads: 1\n  interface: {resolver}\n  outgoing-interface: {resolver}\n  \
                 do-ip6: no\n  access-control: 0.0.0.0/0 allow\n  root-hints: \"{dir}/hints\"\n  \
                 module-config: \"iterator\"\nremote-control:\n  control-enable: no\n"
            ),
        )
    }

    fn options(&self, name: &str, address: Ipv4Addr) -> String {
        let dir = self.folder.join(name).display().to_string();
        format!(
            "options {{ directory \"{dir}\"; listen-on port {PORT} {{ {address}; }}; \
             listen-on-v6 {{ none; }}; recursion no; allow-transfer {{ none; }}; notify no; \
             dnssec-validation no; pid-file \"{dir}/pid\"; session-keyfile none; \
             lock-file none; }};\ncontrols {{ }};\n"
        )
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.folder.join(file);
        let parent = file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }
}

/// Port 53 of a member's address leads to its agent, as its Service of type LoadBalancer says.
fn lead_to_agent(world: &World, member: &str) -> Result<()> {
    let local = world.member(member)?.local()?;
    let pod = local.pods.address;
    let lead = |kind: &str| {
        format!("  {kind} dport {PORT} ip daddr {} dnat to {pod}:{DNS_PORT}\n", local.address)
    };
    let rules = format!(
        "table ip names\ndelete table ip names\ntable ip names {{\n chain prerouting {{\n  \
         type nat hook prerouting priority -100\n{}{} }}\n}}\n",
        lead("udp"),
        lead("tcp"),
    );
    net::nft(&local.namespace, &rules)
}
