//! Starts one program the way a container runtime would, without one.
//!
//! The harness runs itself as `fairlead-e2e launch SPEC`: that process ties its life to the
//! harness, enters a network namespace, builds a private file tree if one is asked for, and then
//! *becomes* the program, so that the pid the harness knows is the program's own. Never returns
//! when it succeeds; never leaves a mount behind, because mounts are made in a private namespace.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use serde::{Deserialize, Serialize};

/// What to start and where. The environment is exactly `env`: nothing is inherited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Name of a network namespace in `/run/netns`; `None` stays in the caller's.
    #[serde(default)]
    pub netns: Option<String>,
    #[serde(default)]
    pub root: Option<FileTree>,
}

/// A file tree of the program's own: system folders of the machine, plus what is bound in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileTree {
    /// An existing empty folder to build the tree on.
    pub mountpoint: PathBuf,
    pub binds: Vec<Bind>,
    /// Whether the program may write outside of its binds.
    pub rest: Access,
}

/// A file or folder of the machine, seen by the program at `inside`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bind {
    pub outside: PathBuf,
    pub inside: PathBuf,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Folders that the program shares with the machine; everything else in the tree is fresh.
const SHARED: &[&str] = &["usr", "bin", "sbin", "lib", "lib64", "proc", "sys", "dev"];
/// Files of `/etc` that C libraries and TLS stacks read.
const SHARED_ETC: &[&str] = &[
    "passwd",
    "group",
    "hosts",
    "nsswitch.conf",
    "resolv.conf",
    "ssl",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
];
const FRESH: &[&str] = &["etc", "home", "opt", "root", "run", "tmp", "var", "var/lib", "var/log"];

/// Becomes the program; returns only an error.
pub fn become_program(spec: &Launch) -> Result<std::convert::Infallible> {
    let (program, args) = spec.argv.split_first().context("nothing to launch")?;
    set_pdeathsig(Signal::SIGKILL).context("tying this process to the harness")?;
    if let Some(name) = &spec.netns {
        let file = fs::File::open(Path::new("/run/netns").join(name))
            .with_context(|| format!("opening network namespace {name}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
    }
    if let Some(tree) = &spec.root {
        build(tree).context("building the program's file tree")?;
    }
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(&spec.env);
    Err(anyhow!(command.exec())).with_context(|| format!("starting {program}"))
}

fn build(tree: &FileTree) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("leaving the machine's mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, private, NONE).context("making mounts private")?;
    let root = &tree.mountpoint;
    mount(Some("fairlead"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("mounting a fresh root")?;
    for dir in FRESH {
        fs::create_dir_all(root.join(dir))?;
    }
    // Relative, or making a folder below it would follow the link out of the tree.
    std::os::unix::fs::symlink("../run", root.join("var/run"))?;
    for name in SHARED {
        share(Path::new("/"), root, name)?;
    }
    for name in SHARED_ETC {
        share(Path::new("/etc"), &root.join("etc"), name)?;
    }
    for bind in &tree.binds {
        attach(root, bind).with_context(|| format!("binding {}", bind.inside.display()))?;
    }
    if tree.rest == Access::ReadOnly {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, root, NONE, flags, NONE).context("making the root read-only")?;
    }
    nix::unistd::chroot(root).context("entering the file tree")?;
    std::env::set_current_dir("/").context("going to the root")
}

const NONE: Option<&Path> = None;

/// Shows one entry of a machine's folder in the tree: a link as a link, anything else bound.
fn share(from: &Path, to: &Path, name: &str) -> Result<()> {
    let (outside, inside) = (from.join(name), to.join(name));
    let Ok(kind) = fs::symlink_metadata(&outside) else { return Ok(()) };
    if kind.is_symlink() && from == Path::new("/") {
        let target = fs::read_link(&outside)?;
        return std::os::unix::fs::symlink(target, inside).context("copying a link");
    }
    place(&outside, &inside)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(outside.as_path()), &inside, NONE, flags, NONE)
        .with_context(|| format!("sharing {}", outside.display()))
}

fn attach(root: &Path, bind: &Bind) -> Result<()> {
    let inside = inside_tree(root, &bind.inside)?;
    place(&bind.outside, &inside)?;
    let flags = MsFlags::MS_BIND;
    mount(Some(bind.outside.as_path()), &inside, NONE, flags, NONE)?;
    if bind.access == Access::ReadOnly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, &inside, NONE, flags, NONE)?;
    }
    Ok(())
}

/// Makes an empty file or folder to mount on.
fn place(outside: &Path, inside: &Path) -> Result<()> {
    let kind =
        fs::metadata(outside).with_context(|| format!("looking at {}", outside.display()))?;
    if kind.is_dir() {
        return fs::create_dir_all(inside).context("making a mount point");
    }
    if let Some(parent) = inside.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(inside, "").context("making a mount point")
}

/// Where an absolute path lies in the tree. System folders are shared with the machine, so a
/// mount point below one of them would be made on the machine: refused.
fn inside_tree(root: &Path, path: &Path) -> Result<PathBuf> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        bail!("{} is not absolute", path.display());
    }
    let rest = parts.as_path();
    if rest.components().any(|part| !matches!(part, Component::Normal(_))) {
        bail!("{} is not a plain path", path.display());
    }
    let top = rest.components().next().context("nothing can be bound at /")?;
    if SHARED.iter().any(|name| top.as_os_str() == *name) {
        bail!("{} lies in a folder shared with the machine", path.display());
    }
    Ok(root.join(rest))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn binds_below_shared_folders_are_refused() {
        let root = Path::new("/r");
        assert!(inside_tree(root, Path::new("/usr/local/x")).is_err());
        assert!(inside_tree(root, Path::new("/")).is_err());
        assert!(inside_tree(root, Path::new("/etc/../usr")).is_err());
        assert!(inside_tree(root, Path::new("etc")).is_err());
        assert_eq!(inside_tree(root, Path::new("/certs")).unwrap(), Path::new("/r/certs"));
    }
}
