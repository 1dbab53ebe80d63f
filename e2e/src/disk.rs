//! A disk that is easily filled: a tmpfs of a set size.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};

/// The disk; dropping it unmounts it.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one over an existing folder.
    pub fn mount(folder: &Path, kib: u64) -> Result<Self> {
        let size = format!("size={kib}k");
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .context("mounting a small disk")?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Leaves no room at all.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.filler()).context("making the filler")?;
        let block = [1_u8; 4_096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }

    /// Takes away what filled it.
    pub fn make_room(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("making room")
    }

    /// Unmounts it; an error when something still uses it.
    pub fn unmount(self) -> Result<()> {
        umount(&self.folder).context("taking the small disk away")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Fails when it is unmounted already; after an error nobody may be left with the mount.
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}
