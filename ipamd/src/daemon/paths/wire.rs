//! The sockets that probes go by: bound to this node's probe address and to the VXLAN device, so that nothing of another way gets in.
//!
//! Thread rule: any task may send; one listens. Datagrams are whole or not sent at all (RFC 8200 leaves no router to cut them), and no
//! router's word on sizes counts here: what a way takes is what was answered.

use crate::{
    kernel::OVERLAY_DEVICE,
    overlay::probe_pool,
    path::{HEADERS, Kind, Message, PROBE_PORT, Probe},
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket,
    sockopt::{BindToDevice, Ipv6V6Only},
};
use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{net::UdpSocket, sync::mpsc};

/// Answers that are waited for, by number of the examination.
type Expected = HashMap<u64, mpsc::UnboundedSender<Probe>>;

/// What sends.
pub(super) struct Wire {
    /// Its datagrams have checksums, which may be left to the network card.
    summed: UdpSocket,
    /// Its have none.
    plain: Arc<UdpSocket>,
    expected: Mutex<Expected>,
    /// Who says that not all of its packets arrive here; what there is no room for is said again.
    complaints: mpsc::Sender<Ipv6Addr>,
}

/// What listens, for datagrams of both kinds.
pub(super) struct Ear {
    socket: Arc<UdpSocket>,
}

/// The answers to one examination. They are forgotten when it is dropped.
pub(super) struct Answers<'a> {
    wire: &'a Wire,
    id: u64,
    answers: mpsc::UnboundedReceiver<Probe>,
}

impl Wire {
    /// Opens the sockets at this node's probe address.
    ///
    /// # Errors
    /// The device or the address is not there, or the port is taken.
    pub(super) fn open(own: Ipv6Addr, complaints: mpsc::Sender<Ipv6Addr>) -> io::Result<(Self, Ear)> {
        let plain = Arc::new(open(own, PROBE_PORT, true)?);
        let summed = open(own, 0, false)?;
        let ear = Ear { socket: Arc::clone(&plain) };
        Ok((Self { summed, plain, expected: Mutex::default(), complaints }, ear))
    }

    /// From now on answers with this number are kept.
    pub(super) fn expect(&self, id: u64) -> Answers<'_> {
        let (sender, answers) = mpsc::unbounded_channel();
        self.expected().insert(id, sender);
        Answers { wire: self, id, answers }
    }

    /// Sends a probe to a node's probe address.
    ///
    /// # Errors
    /// This node is not ready: the device takes less, or the address or the route is not there. That the packet was lost further
    /// down is none.
    pub(super) async fn send(&self, to: Ipv6Addr, id: u64, probe: Probe, ill: bool) -> io::Result<()> {
        let mut datagram = Message { kind: Kind::Probe, id, probe, ill }.encode().to_vec();
        // The sizes are those of a device, and never that large.
        datagram.resize(probe.size.saturating_sub(HEADERS) as usize, 0);
        let socket = if probe.checksum { &self.summed } else { &self.plain };
        match socket.send_to(&datagram, (to, PROBE_PORT)).await {
            Err(error) if is_own_fault(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn expected(&self) -> MutexGuard<'_, Expected> {
        // Whole at every time.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers<'_> {
    /// The next one.
    pub(super) async fn next(&mut self) -> Option<Probe> {
        self.answers.recv().await
    }
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        self.wire.expected().remove(&self.id);
    }
}

impl Ear {
    /// Answers probes of other nodes, and hands on answers to those who wait for them; until it fails.
    ///
    /// # Errors
    /// The socket does.
    pub(super) async fn hear(&self, wire: &Wire) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await?;
            let (IpAddr::V6(sender), Some(message)) = (from.ip(), Message::decode(&buffer[..length])) else {
                continue;
            };
            match message.kind {
                // As small as a probe can be, so nobody gets more than he sent; a lost answer is a lost probe.
                Kind::Probe if probe_pool().contains(sender.into()) => {
                    let answer = Message { kind: Kind::Answer, ..message }.encode();
                    if message.ill {
                        let _ = wire.complaints.try_send(sender);
                    }
                    drop(self.socket.send_to(&answer, (sender, PROBE_PORT)).await);
                }
                Kind::Probe => {}
                Kind::Answer => {
                    if let Some(waiting) = wire.expected().get(&message.id) {
                        // Whoever waited may have gone meanwhile.
                        let _ = waiting.send(message.probe);
                    }
                }
            }
        }
    }
}

fn is_own_fault(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMSGSIZE
                | libc::EADDRNOTAVAIL
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ENXIO
        )
    )
}

fn open(own: Ipv6Addr, port: u16, without_checksums: bool) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made: OwnedFd = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    setsockopt(&made, Ipv6V6Only, &true)?;
    setsockopt(&made, BindToDevice, &OsString::from(OVERLAY_DEVICE))?;
    set(&made, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    set(&made, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
    if without_checksums {
        set(&made, libc::IPPROTO_UDP, libc::UDP_NO_CHECK6_TX, 1)?;
        set(&made, libc::IPPROTO_UDP, libc::UDP_NO_CHECK6_RX, 1)?;
    }
    bind(made.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(own, port, 0, 0)))?;
    UdpSocket::from_std(made.into())
}

fn set(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: pointer and length are those of a live local, and each of these options takes an int.
    let failed =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
