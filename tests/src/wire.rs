//! Frames as they are on an interface: sent raw, and seen by a packet socket (`packet(7)`).

use crate::TestNetns;
use anyhow::{Context, Result, bail};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// How long one look at the socket waits, in milliseconds.
const LOOK: i64 = 20;

/// `ETH_P_ALL` in network order (linux/if_ether.h).
const EVERY_PROTOCOL: u16 = 0x0003_u16.to_be();

/// A packet socket on one interface. It belongs to the interface's namespace, whoever uses it.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    ifindex: i32,
}

impl Wire {
    /// Opens one; from now on every frame of the interface is kept until it is read.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn open(netns: &TestNetns, ifname: &str) -> Result<Self> {
        let opened = netns.run(|| open(ifname))?;
        opened.with_context(|| format!("opening a packet socket on {ifname} of {}", netns.path().display()))
    }

    /// Sends a frame as it is, Ethernet header included.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let address = address_of(self.ifindex);
        // SAFETY: pointer and length of both are those of live values.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                socklen::<libc::sockaddr_ll>(),
            )
        };
        if usize::try_from(sent) == Ok(frame.len()) {
            return Ok(());
        }
        Err(io::Error::last_os_error()).with_context(|| format!("sending a frame of {} bytes", frame.len()))
    }

    /// The next frame that came in, if one is there or comes at once. Frames that went out are not shown.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 1 << 16];
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = socklen::<libc::sockaddr_ll>();
        // SAFETY: pointers and lengths are those of live locals.
        let got = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        match usize::try_from(got) {
            Ok(_) if from.sll_pkttype == libc::PACKET_OUTGOING => self.receive(),
            Ok(got) => {
                frame.truncate(got);
                Ok(Some(frame))
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error).context("reading a packet socket"),
            },
        }
    }

    /// Waits for a frame that `wanted` takes.
    ///
    /// # Errors
    /// None came within `limit`.
    pub fn expect(&self, limit: Duration, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(frame) = self.receive()?.filter(|frame| wanted(frame)) {
                return Ok(frame);
            }
        }
        bail!("waited {limit:?} for {what}")
    }

    /// Every frame that is there by now.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn drain(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive()? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

fn open(ifname: &str) -> Result<Wire> {
    let name = CString::new(ifname)?;
    // SAFETY: `name` ends with NUL and lives through the call.
    let ifindex = i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) })?;
    if ifindex == 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: plain integers; the descriptor is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: a descriptor that was just made and that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = address_of(ifindex);
    // SAFETY: pointer and length of a live local.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), socklen::<libc::sockaddr_ll>()) };
    if bound != 0 {
        return Err(io::Error::last_os_error().into());
    }
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK))?;
    Ok(Wire { socket, ifindex })
}

fn address_of(ifindex: i32) -> libc::sockaddr_ll {
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = EVERY_PROTOCOL;
    address.sll_ifindex = ifindex;
    address
}

fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
