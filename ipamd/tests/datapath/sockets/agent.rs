//! A child in a cgroup that makes sockets for the test.

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
        },
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};
use std::{
    ffi::{c_int, c_void},
    fs, io,
    io::IoSliceMut,
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// A cgroup below the root of cgroup2, removed on drop. No process may be in it by then.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, path, "cgroup2", ..] => Some(path),
            _ => None,
        });
        let root = Path::new(root.expect("no cgroup2 is mounted: these tests need one"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("weft-datapath-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// A process in a cgroup and in the network namespace of the thread that started it.
pub(crate) struct Agent {
    pid: Pid,
    channel: OwnedFd,
}

impl Agent {
    pub(crate) fn new(cgroup: &Path) -> Self {
        let (channel, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        // SAFETY: the child calls nothing but system calls; it allocates nothing and takes no lock.
        let pid = match unsafe { fork() }.unwrap() {
            ForkResult::Child => serve(far.as_raw_fd()),
            ForkResult::Parent { child } => child,
        };
        let agent = Self { pid, channel };
        fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        agent
    }

    /// A socket of the child.
    pub(crate) fn socket(&self, family: AddressFamily, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
        let request: Vec<u8> =
            [family as c_int, kind, protocol].into_iter().flat_map(c_int::to_ne_bytes).collect();
        send(self.channel.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut errno = [0; 4];
        let mut parts = [IoSliceMut::new(&mut errno)];
        let mut space = nix::cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.channel.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let handed = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        match handed {
            // SAFETY: just received, so nobody else has it.
            Some(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            None => Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno))),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Room for one control message with one descriptor, aligned as `cmsghdr` is.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fd: RawFd,
    end: u32,
}

/// The child: answers each request (family, type, protocol) with an errno and, if that is 0, the socket.
fn serve(channel: RawFd) -> ! {
    // SAFETY: plain system calls on memory of this frame. Other descriptors are closed first, so that no test waits for the end
    // of a connection that this process keeps open.
    unsafe {
        let last = channel as libc::c_uint;
        if last > 0 {
            libc::syscall(libc::SYS_close_range, 0, last - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, last + 1, libc::c_uint::MAX, 0);
        loop {
            let mut request = [0 as c_int; 3];
            let length = mem::size_of_val(&request);
            let got = libc::recv(channel, request.as_mut_ptr().cast::<c_void>(), length, 0);
            if usize::try_from(got) != Ok(length) {
                libc::_exit(0);
            }
            let fd = libc::socket(request[0], request[1] | libc::SOCK_CLOEXEC, request[2]);
            let mut errno = if fd < 0 { *libc::__errno_location() } else { 0 };
            let mut part =
                libc::iovec { iov_base: (&raw mut errno).cast::<c_void>(), iov_len: mem::size_of::<c_int>() };
            let mut control: Control = mem::zeroed();
            control.header.cmsg_level = libc::SOL_SOCKET;
            control.header.cmsg_type = libc::SCM_RIGHTS;
            control.header.cmsg_len = libc::CMSG_LEN(mem::size_of::<RawFd>() as u32) as _;
            control.fd = fd;
            let mut message: libc::msghdr = mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if fd >= 0 {
                message.msg_control = (&raw mut control).cast::<c_void>();
                message.msg_controllen = mem::size_of::<Control>() as _;
            }
            if libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL) < 0 {
                libc::_exit(1);
            }
            if fd >= 0 {
                libc::close(fd);
            }
        }
    }
}
