//! A tunnel between two namespaces, by a TUN device in each and a thread that carries packets: a link without Ethernet, as
//! WireGuard and OpenVPN make them.

use crate::TestNetns;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// How often the carrier looks whether it is to end, in milliseconds.
const LOOK: u16 = 20;

/// A tunnel, up, without addresses. Dropping it removes both devices.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device of this name in both namespaces.
    ///
    /// # Errors
    /// The kernel has no TUN devices, or the name is taken.
    pub fn new(ends: [&TestNetns; 2], name: &str) -> Result<Self> {
        let mut devices = Vec::new();
        for netns in ends {
            let device = netns.run(|| attach(name))?;
            devices.push(device.with_context(|| format!("making {name} in {}", netns.path().display()))?);
            netns.ip(&format!("link set {name} up"))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let carrier = thread::spawn(move || carry(&devices, &ended));
        Ok(Self { stop, carrier: Some(carrier) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            // A panic in it has been printed; the test judges by what came through.
            let _ = carrier.join();
        }
    }
}

fn attach(name: &str) -> io::Result<File> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the final NUL.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: a descriptor of /dev/net/tun and a live `ifreq`, as TUNSETIFF takes them.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } {
        0 => Ok(device),
        _ => Err(io::Error::last_os_error()),
    }
}

fn carry(devices: &[File], stop: &AtomicBool) {
    let [one, other] = devices else { return };
    let mut packet = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [one, other].map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
        if poll(&mut ready, PollTimeout::from(LOOK)).is_err() {
            continue;
        }
        for (mut from, mut to) in [(one, other), (other, one)] {
            while let Ok(length) = from.read(&mut packet) {
                // A link may lose packets, e.g. while the other end is down.
                let _ = to.write(&packet[..length]);
            }
        }
    }
}
