//! A private bpffs and a private cgroup, so that many nodes can run on one machine; the mounts that others leave.

use crate::poll_until;
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tempfile::TempDir;

/// A bpffs mounted in a temporary folder; unmounted on drop, and with it every pin in it.
#[derive(Debug)]
pub struct BpfMount {
    dir: TempDir,
}

impl BpfMount {
    /// Mounts one.
    ///
    /// # Errors
    /// Not root, or no bpffs in this kernel.
    pub fn new() -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("weft-bpf-").tempdir().context("making a folder for a bpffs")?;
        let made = Self { dir };
        made.mount()?;
        Ok(made)
    }

    fn mount(&self) -> Result<()> {
        mount(Some("bpf"), self.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mounting a bpffs")
    }

    /// Drops every pin in it, as a boot does: another one is mounted in its place.
    ///
    /// # Errors
    /// The old one cannot be unmounted.
    pub fn renew(&self) -> Result<()> {
        umount2(self.path(), MntFlags::MNT_DETACH).context("unmounting a bpffs")?;
        self.mount()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for BpfMount {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// A cgroup of the unified hierarchy, threaded, so that single threads of a test can be in it beside whole processes; removed
/// on drop. No process may be left in it by then.
///
/// What makes a socket decides which cgroup hooks it meets, for all of its life: the cgroup of the thread that called
/// `socket(2)`.
#[derive(Debug)]
pub struct CgroupDir {
    path: PathBuf,
}

impl CgroupDir {
    /// Makes one.
    ///
    /// # Errors
    /// No cgroup2 is mounted, or it cannot be written.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = cgroup2_root()?.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let made = Self { path };
        fs::write(made.path.join("cgroup.type"), "threaded")
            .with_context(|| format!("making {} a threaded cgroup", made.path.display()))?;
        Ok(made)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into it, for good: for threads that end soon.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> Result<()> {
        let file = self.path.join("cgroup.threads");
        match fs::write(&file, "0") {
            // A process of another domain (a systemd scope): its threads can follow once it is in the common ancestor.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let parent = self.path.parent().context("a cgroup has a parent")?;
                fs::write(parent.join("cgroup.procs"), "0").context("moving the test to the root cgroup")?;
                fs::write(&file, "0")
            }
            other => other,
        }
        .with_context(|| format!("entering {}", self.path.display()))
    }

    /// The file that takes whole processes, opened.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn procs(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("opening {}", path.display()))
    }
}

impl Drop for CgroupDir {
    fn drop(&mut self) {
        // A thread that was joined may still be on its way out of its cgroup. Nobody is left to tell of a failure.
        let removed = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        let _ = poll_until(Duration::from_secs(1), "a cgroup to be empty", removed);
    }
}

/// Unmounts everything below `dir`, the deepest first.
pub(crate) fn unmount_below(dir: &Path) -> std::io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field is the mount point; a later line may lie upon an earlier one.
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir));
    let points: Vec<_> = points.collect();
    for point in points.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

fn cgroup2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        if let (_, Some(path), Some("cgroup2")) = (words.next(), words.next(), words.next()) {
            return Ok(path.into());
        }
    }
    bail!("no cgroup2 is mounted; mount one on /sys/fs/cgroup")
}
