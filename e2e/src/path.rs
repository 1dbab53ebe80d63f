//! Where things lie: the repository, the build's target folder, caches and run folders.
//!
//! Owns no files; only names places. Never creates anything but the folders it is asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder that holds the workspace's `Cargo.toml`.
///
/// Cargo sets `CARGO_MANIFEST_DIR` for `cargo run` and `cargo test`; a copied binary is looked
/// after by walking up from the current folder.
pub fn repository() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_MANIFEST_DIR") {
        let dir = PathBuf::from(dir);
        if let Some(root) = ancestor_with_workspace(&dir) {
            return Ok(root);
        }
    }
    let here = std::env::current_dir().context("reading the current folder")?;
    ancestor_with_workspace(&here)
        .context("not inside the Fairlead repository: run this from its checkout")
}

fn ancestor_with_workspace(start: &Path) -> Option<PathBuf> {
    start.ancestors().find(|dir| dir.join("e2e/tools/etcd/go.mod").is_file()).map(Path::to_path_buf)
}

/// This very program, also after a build has replaced its file: `cargo verify` builds itself.
pub fn own_program() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}

/// Cargo's target folder, `CARGO_TARGET_DIR` obeyed.
pub fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => {
            std::path::absolute(PathBuf::from(dir)).context("making CARGO_TARGET_DIR absolute")
        }
        None => Ok(repository()?.join("target")),
    }
}

/// Where reports go: `target/e2e`.
pub fn reports() -> Result<PathBuf> {
    let dir = target()?.join("e2e");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// The machine-wide cache of built tools: `$XDG_CACHE_HOME/fairlead` or `~/.cache/fairlead`.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            PathBuf::from(home).join(".cache")
        }
    };
    Ok(base.join("fairlead"))
}
