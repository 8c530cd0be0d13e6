//! Which sockets of the host's namespace have a port, by inet_diag (sock_diag(7)).
//!
//! The kernel filters by port, so other sockets cost next to nothing. Its messages are read here by hand: the crate that has
//! them as types stands still at an older netlink-packet-core. Invariant: one netlink socket, opened at the first call and kept; one
//! dump at a time, for the kernel refuses a second one. Thread rule: any thread; calls wait for each other.

use super::{
    PortHolder, Result, SocketState,
    netlink::{BUFFER, HEADER, Parts, as_fd, refused, word},
    processes,
};
use ipamd_api::{Protocol, netns::in_netns};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlasIterator};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::fd::BorrowedFd,
    sync::{Mutex, PoisonError},
};

#[cfg(test)]
mod tests;

/// SOCK_DIAG_BY_FAMILY (`linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;

/// Length of `struct inet_diag_msg` (`linux/inet_diag.h`); attributes follow.
const MESSAGE: usize = 72;

/// INET_DIAG_REQ_BYTECODE, of a request.
const FILTER: u16 = 1;

/// INET_DIAG_SKV6ONLY and INET_DIAG_LOCALS (SCTP: all addresses), of a message.
const SKV6ONLY: u16 = 11;
const LOCALS: u16 = 12;

/// Of the filter: do nothing; compare the source port.
const NOP: u8 = 0;
const PORT_AT_LEAST: u8 = 2;
const PORT_AT_MOST: u8 = 3;

/// States (`net/tcp_states.h`). The last one stands for bound TCP sockets, in a request only (Linux 6.8; before, such sockets are
/// not shown).
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const BOUND_INACTIVE: u8 = 13;

/// Asks the kernel who has a port.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    socket: Mutex<Option<DiagSocket>>,
}

impl Sockets {
    /// See [`Kernel::port_holders`](super::Kernel::port_holders).
    pub(super) fn holders(
        &self,
        netns: BorrowedFd<'_>,
        protocol: Protocol,
        ports: &RangeInclusive<u16>,
    ) -> Result<Vec<PortHolder>> {
        let mut holders = self.look(netns, protocol, ports).map_err(|cause| {
            let module = format!("sockets (is the kernel module {protocol}_diag missing? load it)");
            refused("list", &format!("{protocol} {module}"), cause)
        })?;
        // Rarely there is one; then there is time to look at all processes.
        processes::name(&mut holders);
        Ok(holders)
    }

    fn look(
        &self,
        netns: BorrowedFd<'_>,
        protocol: Protocol,
        ports: &RangeInclusive<u16>,
    ) -> io::Result<Vec<PortHolder>> {
        let mut kept = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out: one that failed halfway has the rest of an answer in it.
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => in_netns(netns, DiagSocket::open)??,
        };
        let mut holders = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = request(u8::try_from(family).unwrap_or_default(), protocol, ports);
            match socket.dump(request, |message| holders.extend(read(message, protocol, ports))) {
                // Without the protocol nobody has a port of it. The kernel has loaded the module by itself if only that was
                // missing (`sock_load_diag_module`), but never SCTP, which is not there until someone uses it.
                Err(e) if protocol == Protocol::Sctp && e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) if family == libc::AF_INET6 && is_unknown_family(&e) => {}
                other => other?,
            }
        }
        *kept = Some(socket);
        Ok(holders)
    }
}

/// A kernel without IPv6.
fn is_unknown_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT))
        && !std::path::Path::new("/proc/net/if_inet6").exists()
}

fn states(protocol: Protocol) -> u32 {
    let states: &[u8] = match protocol {
        Protocol::Tcp => &[LISTEN, BOUND_INACTIVE],
        Protocol::Udp => &[ESTABLISHED, CLOSE],
        Protocol::Sctp => &[LISTEN],
    };
    states.iter().fold(0, |all, state| all | 1 << state)
}

/// A whole netlink message but for its sequence number: header, `struct inet_diag_req_v2`, filter.
fn request(family: u8, protocol: Protocol, ports: &RangeInclusive<u16>) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out.extend([family, protocol.number(), 0, 0]);
    out.extend(states(protocol).to_ne_bytes());
    // The socket's id: any.
    out.extend([0; 48]);
    let filter = filter(ports);
    out.extend((4 + filter.len() as u16).to_ne_bytes());
    out.extend(FILTER.to_ne_bytes());
    out.extend(&filter);
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_ne_bytes());
    out[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    out[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    out
}

/// Two comparisons, each with its port in a second word. One that holds goes on behind itself; one that fails jumps four bytes
/// behind the end, which rejects (`inet_diag_bc_run`).
fn filter(ports: &RangeInclusive<u16>) -> [u8; 16] {
    let mut filter = [0; 16];
    let comparisons = [(PORT_AT_LEAST, 20u16, *ports.start()), (PORT_AT_MOST, 12, *ports.end())];
    for (at, (code, reject, port)) in filter.as_chunks_mut::<8>().0.iter_mut().zip(comparisons) {
        let ([r0, r1], [p0, p1]) = (reject.to_ne_bytes(), port.to_ne_bytes());
        *at = [code, 8, r0, r1, NOP, 0, p0, p1];
    }
    filter
}

/// The holders in one `struct inet_diag_msg`: an SCTP endpoint may have several addresses, others have one.
fn read(message: &[u8], protocol: Protocol, ports: &RangeInclusive<u16>) -> Vec<PortHolder> {
    let Some((&[family, state, ..], attributes)) = message.split_first_chunk::<MESSAGE>() else {
        return Vec::new();
    };
    let (Some([p0, p1, ..]), Some(inode)) = (word(message, 4), word(message, 68)) else { return Vec::new() };
    let port = u16::from_be_bytes([p0, p1]);
    // The kernel does not filter SCTP.
    if !ports.contains(&port) {
        return Vec::new();
    }
    let mut v6only = false;
    let mut addresses = Vec::new();
    for attribute in NlasIterator::new(attributes).flatten() {
        match attribute.kind() {
            SKV6ONLY => v6only = attribute.value().first() == Some(&1),
            LOCALS => addresses.extend(attribute.value().chunks_exact(STORAGE).filter_map(stored_address)),
            _ => {}
        }
    }
    if addresses.is_empty() {
        addresses.extend(address(family, &message[8..24]));
    }
    let state = match (protocol, state) {
        (Protocol::Udp, ESTABLISHED) => SocketState::Connected,
        (_, LISTEN) => SocketState::Listening,
        _ => SocketState::Bound,
    };
    let holder = |ip: IpAddr| PortHolder {
        protocol,
        local: SocketAddr::new(ip.to_canonical(), port),
        v6only,
        state,
        inode: u32::from_ne_bytes(inode),
        pid: None,
        process: None,
    };
    addresses.into_iter().map(holder).collect()
}

/// Size of `struct sockaddr_storage`.
const STORAGE: usize = 128;

fn stored_address(storage: &[u8]) -> Option<IpAddr> {
    let [f0, f1, ..] = *storage else { return None };
    match i32::from(u16::from_ne_bytes([f0, f1])) {
        libc::AF_INET => address(libc::AF_INET as u8, storage.get(4..8)?),
        libc::AF_INET6 => address(libc::AF_INET6 as u8, storage.get(8..24)?),
        _ => None,
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(word(bytes, 0)?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// A sock_diag netlink socket.
struct DiagSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for DiagSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiagSocket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl DiagSocket {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        // The kernel answers within the send; a lost answer must become an error, not a hang.
        let limit = nix::sys::time::TimeVal::new(10, 0);
        nix::sys::socket::setsockopt(&as_fd(&socket), nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    fn dump(&mut self, mut request: Vec<u8>, mut message: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&request, 0)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for part in Parts(&self.buffer) {
                let part = part?;
                match part.kind {
                    _ if part.sequence != self.sequence => {}
                    NLMSG_DONE | NLMSG_ERROR => return part.outcome().map_err(io::Error::from),
                    BY_FAMILY => message(part.payload),
                    _ => {}
                }
            }
        }
    }
}
