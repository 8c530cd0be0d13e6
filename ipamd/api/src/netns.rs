//! Network namespaces: entering one, and telling one from another.
//!
//! A network namespace belongs to a thread. [`in_netns`] runs a function on a thread of its own that ends afterwards,
//! so no error path can strand a caller in the wrong namespace.

use crate::path_error;
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Metadata},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The file system type of namespace files (`linux/magic.h`, NSFS_MAGIC).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Who a sandbox is. The cookie decides: path and inode are reused at once by a new namespace of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxIdentity {
    /// Path the runtime gave.
    pub path: PathBuf,
    /// Device of the namespace file.
    pub dev: u64,
    /// Inode of the namespace file.
    pub inode: u64,
    /// SO_NETNS_COOKIE (Linux 5.14): never reused while the kernel runs.
    pub cookie: u64,
}

/// An open network namespace and its identity.
#[derive(Debug)]
pub struct Netns {
    file: File,
    identity: SandboxIdentity,
}

/// Why a path is no usable sandbox.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there.
    #[error("network namespace {0} does not exist")]
    NotFound(PathBuf),
    /// Something else is there.
    #[error("{0} is no network namespace")]
    NotNetns(PathBuf),
    /// It is the namespace of the caller itself.
    #[error("{0} is the host's own network namespace")]
    IsHost(PathBuf),
    /// Opening or reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Netns {
    /// Opens the namespace at `path` and reads its identity.
    ///
    /// # Errors
    /// The path is missing, is no network namespace, or cannot be entered.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        Self::open_and(path, || ()).map(|(netns, ())| netns)
    }

    /// The same, and runs `work` inside on the thread that reads the identity: on a busy machine each thread costs more than
    /// all of the work.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_and<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<(Self, T), NetnsError> {
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NetnsError::NotFound(path.to_owned()),
            _ => path_error(path, &e).into(),
        })?;
        let nsfs = nix::sys::statfs::fstatfs(&file).map_err(io::Error::from)?;
        if nsfs.filesystem_type().0 as i64 != NSFS_MAGIC || !is_network_namespace(file.as_fd()) {
            return Err(NetnsError::NotNetns(path.to_owned()));
        }
        let meta = file.metadata()?;
        let (cookie, done) = in_netns(file.as_fd(), || own_cookie().map(|cookie| (cookie, work())))??;
        let identity = SandboxIdentity { path: path.to_owned(), dev: meta.dev(), inode: meta.ino(), cookie };
        Ok((Self { file, identity }, done))
    }

    /// The same, and it must be neither the namespace the caller is in nor that of the machine's first process, which a node
    /// inside a namespace would take for a container's.
    ///
    /// # Errors
    /// As [`Self::open`], or the path leads to one of these.
    pub fn open_sandbox(path: &Path) -> Result<Self, NetnsError> {
        Self::open(path)?.not_host()
    }

    /// Itself, or an error if it is the namespace the caller is in or that of the machine's first process.
    ///
    /// # Errors
    /// [`NetnsError::IsHost`].
    pub fn not_host(self) -> Result<Self, NetnsError> {
        let is = |other: &Metadata| (other.dev(), other.ino()) == (self.identity.dev, self.identity.inode);
        let own = fs::metadata("/proc/thread-self/ns/net")?;
        // Where it may not be looked at, it cannot be what was just opened.
        if is(&own) || fs::metadata("/proc/1/ns/net").is_ok_and(|first| is(&first)) {
            return Err(NetnsError::IsHost(self.identity.path));
        }
        Ok(self)
    }

    /// Who it is.
    pub fn identity(&self) -> &SandboxIdentity {
        &self.identity
    }

    /// Runs `work` inside the namespace, on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be made, the namespace cannot be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_netns(self.file.as_fd(), work)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` inside the namespace behind `fd`, on a thread of its own that ends afterwards.
///
/// # Errors
/// The thread cannot be made, the namespace cannot be entered, or `work` panicked.
pub fn in_netns<T: Send>(fd: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(512 * 1024);
        let handle = thread.spawn_scoped(scope, move || {
            // The one place that may: the thread ends with this closure.
            #[allow(clippy::disallowed_methods)]
            nix::sched::setns(fd, CloneFlags::CLONE_NEWNET)?;
            Ok::<T, nix::Error>(work())
        })?;
        match handle.join() {
            Ok(done) => done.map_err(io::Error::from),
            Err(_) => Err(io::Error::other("the work inside the network namespace panicked")),
        }
    })
}

/// SO_NETNS_COOKIE of the calling thread's network namespace (`socket(7)`, Linux 5.14).
///
/// # Errors
/// No socket can be made, or the kernel is older.
pub fn own_cookie() -> io::Result<u64> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals, and `len` is the size of `cookie`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// NS_GET_NSTYPE (`ioctl_ns(2)`).
fn is_network_namespace(fd: BorrowedFd<'_>) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument and only reads the type of the open file.
    unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
