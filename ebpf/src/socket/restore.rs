//! recvmsg and getpeername: the container's address becomes what the program dialled.
//!
//! A program that checks whence an answer comes (a resolver, a connected-like UDP client) would else drop it. What sandboxes dialled
//! as 127.0.0.11 is remembered likewise, by the socket, and answers from port 53.

use super::{SockAddr, address::mapped, is_hosts, resolver};
use crate::{conntrack::is_alive, maps::SOCKETS};
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::{SocketKey, SocketPeer, mapped4};

/// recvmsg4 and getpeername4.
#[inline(always)]
pub(crate) fn restore4(context: &SockAddrContext) {
    let socket = SockAddr::of(context);
    if !resolver::is_port(&socket) && !is_hosts(&socket) {
        return;
    }
    if let Some(peer) = dialled(&socket, mapped4(socket.ipv4()))
        && let Some(address) = mapped(peer.address)
    {
        socket.set_ipv4(address);
        socket.set_port(peer.port);
    }
}

/// recvmsg6 and getpeername6. A v4-mapped peer was noted as such, whichever family's hook sent.
#[inline(always)]
pub(crate) fn restore6(context: &SockAddrContext) {
    let socket = SockAddr::of(context);
    if !resolver::is_port(&socket) && !is_hosts(&socket) {
        return;
    }
    if let Some(peer) = dialled(&socket, socket.ipv6()) {
        socket.set_ipv6(peer.address);
        socket.set_port(peer.port);
    }
}

#[inline(always)]
fn dialled(socket: &SockAddr, address: [u8; 16]) -> Option<SocketPeer> {
    let key = SocketKey {
        cookie: socket.cookie(),
        address,
        port: socket.port(),
        protocol: socket.protocol(),
        reserved: [0; 5],
    };
    // SAFETY: copied at once; one socket's entry is written by that socket only.
    let peer = unsafe { SOCKETS.get(key) }.copied()?;
    // A successor at the container's address speaks for itself.
    is_alive(peer.endpoint).then_some(peer)
}
