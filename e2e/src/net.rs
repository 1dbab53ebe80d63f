//! The network of a world: one bridge, one network namespace per cluster.
//!
//! ```text
//!   machine ── fl0 ══ host ┐
//!                          ├ bridge (in namespace fl-<run>-lan)
//!   fl-<run>-hub  ── eth0 ═┤          10.<77+slot>.<n>.1/16
//!   fl-<run>-east ── eth0 ═┘
//!      └ pods ── eth0 ── fl-<run>-east-pods   10.<77+slot>.<n>.2
//! ```
//!
//! A member's Pods have a namespace and an address of their own behind their cluster's, as Pods
//! have: its gateway runs on the cluster's address and takes ports that Pods use, too.
//!
//! The bridge lies in a namespace of its own, so that no firewall of the machine sees its frames
//! and removing namespaces removes everything. A *slot* is a locked file: it keeps worlds on one
//! machine apart, and since locks end with their process, a slot that can be locked but is not
//! clean was left by a killed harness and is swept.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

const SLOTS: u8 = 16;
const FIRST_OCTET: u8 = 77;
const SLOT_FOLDER: &str = "/run/fairlead-e2e";
const LAN: &str = "lan";

/// Who holds a slot; written into the locked file for `world list` and `world down`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub run: String,
    pub pid: i32,
    pub folder: PathBuf,
    pub stay: Stay,
}

/// Until when a world stays up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stay {
    /// As long as the command that somebody is watching.
    WithCommand,
    /// Until somebody ends it: `world up --keep`.
    UntilEnded,
}

/// The right to a range of addresses and to the namespaces named after the run.
pub struct Slot {
    index: u8,
    run: String,
    _lock: File,
}

impl Slot {
    /// Takes the first free slot and sweeps what a killed harness left in it.
    /// `folder` is told the run's name and answers with the run's folder.
    pub fn take(stay: Stay, folder: impl FnOnce(&str) -> PathBuf) -> Result<Self> {
        for index in 0..SLOTS {
            let mut file = open(index)?;
            if file.try_lock().is_err() {
                continue;
            }
            sweep(index)?;
            forget_data(&mut file);
            let run = format!("{index:x}{:04x}", rand::random::<u16>());
            let holder = Holder {
                run: run.clone(),
                pid: nix::unistd::getpid().as_raw(),
                folder: folder(&run),
                stay,
            };
            file.set_len(0).context("emptying a slot file")?;
            file.rewind().context("rewinding a slot file")?;
            file.write_all(&serde_json::to_vec(&holder)?).context("writing a slot file")?;
            return Ok(Self { index, run, _lock: file });
        }
        bail!("all {SLOTS} slots for worlds are taken: see `cargo e2e world list`")
    }

    pub fn run(&self) -> &str {
        &self.run
    }

    /// The address of the machine itself on the bridge.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, FIRST_OCTET + self.index, 0, 1)
    }

    /// The `index`-th address of the `number`-th cluster; 1 is its own, echo replicas follow at 10.
    pub fn address(&self, number: u8, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, FIRST_OCTET + self.index, number, index)
    }

    /// The namespace of a cluster of this run.
    pub fn namespace(&self, cluster: &str) -> String {
        format!("fl-{}-{cluster}", self.run)
    }

    /// The namespace of a member's Pods.
    pub fn pods_namespace(&self, member: &str) -> String {
        format!("fl-{}-{member}-pods", self.run)
    }

    fn host_link(&self) -> String {
        host_link(self.index)
    }
}

fn open(index: u8) -> Result<File> {
    fs::create_dir_all(SLOT_FOLDER).with_context(|| format!("creating {SLOT_FOLDER}"))?;
    let path = Path::new(SLOT_FOLDER).join(format!("slot-{index:x}"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(&path).with_context(|| format!("opening {}", path.display()))
}

fn host_link(index: u8) -> String {
    format!("fl{index:x}")
}

/// Removes the data of the world that a slot file names: a killed harness could not.
fn forget_data(file: &mut File) {
    let mut text = String::new();
    if file.read_to_string(&mut text).is_err() {
        return;
    }
    let Ok(holder) = serde_json::from_str::<Holder>(&text) else { return };
    // Logs and kubeconfigs are files and stay; what processes wrote lies in folders.
    let Ok(entries) = fs::read_dir(&holder.folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The worlds that run now.
pub fn holders() -> Result<Vec<Holder>> {
    let mut holders = Vec::new();
    for index in 0..SLOTS {
        let mut file = open(index)?;
        if file.try_lock().is_ok() {
            continue;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).context("reading a slot file")?;
        if let Ok(holder) = serde_json::from_str(&text) {
            holders.push(holder);
        }
    }
    Ok(holders)
}

/// Ends one running world: asks its harness, kills it if it does not listen, sweeps.
pub fn end(holder: &Holder, patience: Duration) -> Result<()> {
    let pid = Pid::from_raw(holder.pid);
    let _ = kill(pid, Signal::SIGTERM);
    let asked = Instant::now();
    while asked.elapsed() < patience && is_held(holder)? {
        std::thread::sleep(Duration::from_millis(50));
    }
    if is_held(holder)? {
        let _ = kill(pid, Signal::SIGKILL);
    }
    sweep_free()
}

fn is_held(holder: &Holder) -> Result<bool> {
    Ok(holders()?.iter().any(|other| other.run == holder.run))
}

/// Sweeps every slot that nobody holds.
pub fn sweep_free() -> Result<()> {
    for index in 0..SLOTS {
        let mut file = open(index)?;
        if file.try_lock().is_ok() {
            sweep(index)?;
            forget_data(&mut file);
        }
    }
    Ok(())
}

/// Kills what lives in the namespaces of a slot, and removes them. The caller holds its lock.
fn sweep(index: u8) -> Result<()> {
    let mine: Vec<String> = namespaces()?
        .into_iter()
        .filter(|name| name.starts_with(&format!("fl-{index:x}")) && name.len() > 8)
        .collect();
    for name in &mine {
        kill_inhabitants(name);
    }
    for name in &mine {
        run(&["netns", "del", name])?;
    }
    if Path::new("/sys/class/net").join(host_link(index)).exists() {
        run(&["link", "del", &host_link(index)])?;
    }
    Ok(())
}

fn namespaces() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Kills every process in a namespace; repeats, since a process may start another meanwhile.
pub fn kill_inhabitants(namespace: &str) {
    for _ in 0..20 {
        let output = Command::new("ip").args(["netns", "pids", namespace]).output();
        let Ok(output) = output else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pids: Vec<i32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The bridge and the namespaces of one run. Dropping it removes all of it.
pub struct Lan {
    slot: Slot,
    clusters: Vec<String>,
}

impl Lan {
    /// Makes the bridge and one namespace per cluster, and one for the Pods of each `member`; the
    /// n-th cluster gets number n, from 1.
    pub fn up(slot: Slot, clusters: &[String], members: &[String]) -> Result<Self> {
        let lan = Self { slot, clusters: clusters.to_vec() };
        let bridge = lan.slot.namespace(LAN);
        run(&["netns", "add", &bridge])?;
        let link = lan.slot.host_link();
        run(&["link", "add", &link, "type", "veth", "peer", "name", "host", "netns", &bridge])?;
        run(&["addr", "add", &format!("{}/16", lan.slot.host_address()), "dev", &link])?;
        run(&["link", "set", &link, "up"])?;
        let mut inside = vec![
            "link set lo up".to_owned(),
            "link add bridge type bridge".to_owned(),
            "link set bridge up".to_owned(),
            "link set host master bridge".to_owned(),
            "link set host up".to_owned(),
        ];
        for name in clusters {
            let namespace = lan.slot.namespace(name);
            run(&["netns", "add", &namespace])?;
            inside.push(format!("link add {name} type veth peer name eth0 netns {namespace}"));
            inside.push(format!("link set {name} master bridge"));
            inside.push(format!("link set {name} up"));
        }
        batch(&bridge, &inside)?;
        for (number, name) in (1..).zip(clusters) {
            batch(&lan.slot.namespace(name), &lan.cluster_setup(number))?;
            if members.contains(name) {
                lan.add_pods(name, number)?;
            }
        }
        Ok(lan)
    }

    /// A namespace for the Pods of a member.
    fn add_pods(&self, member: &str, number: u8) -> Result<()> {
        let (gateway, address) = (self.slot.address(number, 1), self.slot.address(number, POD));
        let (cluster, pods) = (self.slot.namespace(member), self.slot.pods_namespace(member));
        add_beside(&cluster, &pods, "pods", gateway, address)
    }

    fn cluster_setup(&self, number: u8) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        lines.push(format!("addr add {}/16 dev eth0", self.slot.address(number, 1)));
        for replica in 0..REPLICAS_MAX {
            let address = self.slot.address(number, FIRST_REPLICA + replica);
            lines.push(format!("addr add {address}/32 dev eth0"));
        }
        // The rule for local addresses usually comes first of all and cannot be preceded; faults
        // need room before it, to drop what arrives from a peer as a broken wire would.
        lines.push("rule add pref 100 lookup local".to_owned());
        lines.push("rule del pref 0".to_owned());
        lines
    }

    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Runs `ip` lines in the bridge's namespace.
    pub fn on_bridge(&self, lines: &[String]) -> Result<()> {
        batch(&self.slot.namespace(LAN), lines)
    }
}

/// Echo replicas of one service differ by address; more than this many are not offered.
pub const REPLICAS_MAX: u8 = 20;
/// The last octet of the address of a member's Pods.
pub const POD: u8 = 2;
/// The last octet of the first echo replica's address.
pub const FIRST_REPLICA: u8 = 10;

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.clusters.iter().map(String::as_str).chain([LAN]) {
            kill_inhabitants(&self.slot.pods_namespace(name));
            kill_inhabitants(&self.slot.namespace(name));
        }
        if let Err(error) = sweep(self.slot.index) {
            eprintln!("teardown of run {}: {error:#}", self.slot.run);
        }
    }
}

/// Makes a namespace and connects it by `device` to a cluster's, which forwards for it and answers for
/// its address on the bridge. Swept with the world, since its name starts like the cluster's.
pub fn add_beside(
    cluster: &str,
    beside: &str,
    device: &str,
    gateway: Ipv4Addr,
    address: Ipv4Addr,
) -> Result<()> {
    run(&["netns", "add", beside])?;
    batch(
        cluster,
        &[
            format!("link add {device} type veth peer name eth0 netns {beside}"),
            format!("link set {device} up"),
            format!("route add {address}/32 dev {device} src {gateway}"),
            format!("neigh add proxy {address} dev eth0"),
        ],
    )?;
    batch(
        beside,
        &[
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {address}/32 dev eth0"),
            format!("route add {gateway}/32 dev eth0"),
            format!("route add default via {gateway} dev eth0"),
        ],
    )?;
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    run(&["netns", "exec", cluster, "sh", "-c", forward])
}

/// Takes away what [`add_beside`] made, with all that lives there.
pub fn remove_beside(cluster: &str, beside: &str, address: Ipv4Addr) -> Result<()> {
    kill_inhabitants(beside);
    run(&["netns", "del", beside])?;
    batch(cluster, &[format!("neigh del proxy {address} dev eth0")])
}

/// Runs `ip` lines in a namespace, all in one call.
pub fn batch(namespace: &str, lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    let mut stdin = child.stdin.take().context("ip has no input")?;
    stdin.write_all((lines.join("\n") + "\n").as_bytes()).context("writing to ip")?;
    drop(stdin);
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("ip in {namespace} failed: {said}\nlines:\n{}", lines.join("\n"));
    }
    Ok(())
}

/// Gives rules to nftables in a namespace.
pub fn nft(namespace: &str, rules: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("starting nft")?;
    let mut stdin = child.stdin.take().context("nft has no input")?;
    stdin.write_all(rules.as_bytes()).context("writing to nft")?;
    drop(stdin);
    let status = child.wait().context("waiting for nft")?;
    ensure!(status.success(), "nft in {namespace} failed:\n{rules}");
    Ok(())
}

/// Runs one `ip` command on the machine.
fn run(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("starting ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("ip {} failed: {said}", args.join(" "));
    }
    Ok(())
}
