//! Network namespaces of a test.
//!
//! A namespace is kept alive by a bind mount on a file in a private temporary folder; dropping the value removes both, and
//! with them every device inside once no process is left there. What runs in a namespace that belongs to a node is in the
//! node's cgroup too, so that its sockets meet the node's hooks and no other node's.

use crate::CgroupDir;
use anyhow::{Context, Result, bail};
use ipamd_api::netns::{Netns, SandboxIdentity};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};
use tempfile::TempDir;

/// A network namespace with a path, `lo` up, and nothing else in it.
#[derive(Debug)]
pub struct TestNetns {
    path: PathBuf,
    netns: Netns,
    cgroup: Option<Arc<CgroupDir>>,
    // Removed last: the mount point lies in it.
    dir: TempDir,
}

impl TestNetns {
    /// Makes one.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn new() -> Result<Self> {
        Self::named("netns")
    }

    /// Makes one whose path ends in `name`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn named(name: &str) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("weft-test-").tempdir().context("making a folder for a netns")?;
        let path = dir.path().join(name);
        make_at(&path)?;
        let netns = Netns::open(&path)?;
        let made = Self { path, netns, cgroup: None, dir };
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// The same namespace under another path, e.g. for a thread that goes on while its owner is changed.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn alias(&self) -> Result<Self> {
        let made = Self::adopt(&self.path)?;
        Ok(made.with_cgroup(self.cgroup.clone()))
    }

    /// A namespace that someone else has made, e.g. that of a runtime's container (`/proc/<pid>/ns/net`).
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn adopt(other: &Path) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("weft-test-").tempdir().context("making a folder for a netns")?;
        let path = dir.path().join("alias");
        File::create(&path).with_context(|| format!("making {}", path.display()))?;
        mount(Some(other), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mounting {}", other.display()))?;
        let netns = Netns::open(&path)?;
        Ok(Self { path, netns, cgroup: None, dir })
    }

    fn with_cgroup(mut self, cgroup: Option<Arc<CgroupDir>>) -> Self {
        self.cgroup = cgroup;
        self
    }

    /// From now on, what is run inside is in this cgroup as well.
    pub fn join(&mut self, cgroup: &Arc<CgroupDir>) {
        self.cgroup = Some(Arc::clone(cgroup));
    }

    /// Destroys the namespace and makes another at the same path, as a runtime does that reuses a name.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn replace(&mut self) -> Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH).context("unmounting the old netns")?;
        make_at(&self.path)?;
        self.netns = Netns::open(&self.path)?;
        self.ip("link set lo up").map(|_| ())
    }

    /// Unmounts and removes the path, as a runtime does at the end. What is open stays alive until it is closed.
    ///
    /// # Errors
    /// The path is gone already.
    pub fn unmount(&self) -> Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH).context("unmounting the netns")?;
        fs::remove_file(&self.path).context("removing the path of the netns")
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The private folder its path lies in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who it is.
    pub fn identity(&self) -> &SandboxIdentity {
        self.netns.identity()
    }

    /// Runs `work` inside, on a thread of its own; sockets made there belong to the namespace for good.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = self.netns.run(|| {
            self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.enter())?;
            Ok(work())
        });
        entered.with_context(|| format!("working inside {}", self.path.display()))?
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(self.netns.as_fd(), self.cgroup.as_deref(), program.as_ref())
    }

    /// A command that will run inside without meeting the hooks of sockets, for those who open none: it starts faster.
    pub fn command_without_cgroup(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(self.netns.as_fd(), None, program.as_ref())
    }

    /// A handle for those who run commands inside for longer than this value can be borrowed.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn handle(&self) -> Result<NetnsHandle> {
        let fd = self.netns.as_fd().try_clone_to_owned().context("keeping a netns open")?;
        Ok(NetnsHandle { fd, cgroup: self.cgroup.clone() })
    }

    /// Runs a command line inside (words are split at spaces) and returns its output.
    ///
    /// # Errors
    /// It cannot be run or does not succeed; the message carries what it printed.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let Some(program) = words.next() else { bail!("an empty command line") };
        let output = self.command(program).args(words).output().with_context(|| format!("running {line}"))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{line}: {}\n{printed}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(printed)
    }

    /// `ip <arguments>` inside.
    ///
    /// # Errors
    /// As [`Self::sh`].
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.sh(&format!("ip {arguments}"))
    }

    /// Whether one ping from inside to `address` is answered within two seconds.
    ///
    /// # Errors
    /// `ping` cannot be run.
    pub fn ping(&self, address: impl std::fmt::Display) -> Result<bool> {
        let address = address.to_string();
        let output = self
            .command("ping")
            .args(["-n", "-c", "1", "-W", "2", &address])
            .output()
            .context("running ping")?;
        Ok(output.status.success())
    }
}

/// An open network namespace; it lives as long as this does.
#[derive(Debug)]
pub struct NetnsHandle {
    fd: OwnedFd,
    cgroup: Option<Arc<CgroupDir>>,
}

impl NetnsHandle {
    /// Opens the namespace mounted at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is none.
    pub fn open(path: &Path) -> Result<Self> {
        let netns = Netns::open(path)?;
        let fd = netns.as_fd().try_clone_to_owned().context("keeping a netns open")?;
        Ok(Self { fd, cgroup: None })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(self.fd.as_fd(), self.cgroup.as_deref(), program.as_ref())
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        // A test may have unmounted it; there is no one to tell of any other failure.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

fn command_in(netns: BorrowedFd<'_>, cgroup: Option<&CgroupDir>, program: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    let fd = netns.try_clone_to_owned();
    let cgroup = cgroup.map(CgroupDir::procs);
    // SAFETY: between fork and exec only write(2) and setns(2) are called, which is safe there; the closure owns the
    // descriptors.
    unsafe {
        command.pre_exec(move || {
            match &cgroup {
                Some(Ok(procs)) if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 => {
                    return Err(std::io::Error::last_os_error());
                }
                Some(Err(_)) => return Err(std::io::ErrorKind::NotFound.into()),
                _ => {}
            }
            let fd = fd.as_ref().map_err(|e| std::io::Error::from(e.kind()))?;
            match libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

fn make_at(path: &Path) -> Result<()> {
    File::create(path).with_context(|| format!("making {}", path.display()))?;
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare: tests need root")?;
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("mounting the netns")
        });
        made.join().map_err(|_| anyhow::anyhow!("the thread that makes a netns panicked"))?
    })
}
