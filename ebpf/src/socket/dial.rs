//! connect and sendmsg: an address of the node and a published port become the container's.
//!
//! The sockets of the node may use every published port, whoever else may (`allowFrom` speaks of those outside).

use super::{
    ANY, Call, EADDRNOTAVAIL, ENETUNREACH, LOOPBACK4, LOOPBACK6, PROCEED, SockAddr,
    address::{mapped, narrow},
    fail, is_hosts, published, resolver,
};
use crate::maps::{NODE_ADDRESSES, SOCKETS};
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::{AddressKey, IPV4, IPV6, Published, SocketKey, SocketPeer, mapped4, wide4};

/// connect4 and sendmsg4.
#[inline(always)]
pub(crate) fn dial4(context: &SockAddrContext) -> i32 {
    let socket = SockAddr::of(context);
    if !is_hosts(&socket) {
        return resolver::dial4(&socket);
    }
    let address = named4(socket.ipv4());
    let Some((backend, port)) = behind4(&socket, address) else { return PROCEED };
    if !can_reach(socket.bound(), IPV4) {
        return fail(EADDRNOTAVAIL);
    }
    remember(&socket, mapped4(address), mapped4(narrow(backend.backend)), port, backend.endpoint);
    socket.set_ipv4(narrow(backend.backend));
    socket.set_port(port);
    PROCEED
}

/// connect6 and sendmsg6. A v4-mapped destination (Java, Node) is one of IPv4.
#[inline(always)]
pub(crate) fn dial6(context: &SockAddrContext, call: Call) -> i32 {
    let socket = SockAddr::of(context);
    if !is_hosts(&socket) {
        return resolver::dial6(&socket);
    }
    let address = socket.ipv6();
    let (dialled, found) = match mapped(address) {
        Some(address) => {
            let address = named4(address);
            (mapped4(address), behind4(&socket, address))
        }
        None => {
            let address = if address == [0; 16] { LOOPBACK6 } else { address };
            (address, behind6(&socket, address))
        }
    };
    let Some((backend, port)) = found else { return PROCEED };
    if !can_reach(socket.bound(), backend.backend_family) {
        return fail(EADDRNOTAVAIL);
    }
    // The kernel has bound such a datagram to the address's link already, and the container is on another one.
    if call == Call::Send && is_link_local(address) {
        return fail(ENETUNREACH);
    }
    let target = if backend.backend_family == IPV4 {
        // udpv6_sendmsg refuses a v4-mapped address from here with ENOTSUPP, which no program knows. Without a word the
        // datagram would be lost; this error sends a program to the next address of "localhost".
        if call == Call::Send && mapped(address).is_none() {
            return fail(ENETUNREACH);
        }
        mapped4(narrow(backend.backend))
    } else {
        backend.backend
    };
    remember(&socket, dialled, target, port, backend.endpoint);
    socket.set_ipv6(target);
    socket.set_port(port);
    PROCEED
}

/// The address that is meant: for Linux the unspecified one is the loopback address.
#[inline(always)]
fn named4(address: [u8; 4]) -> [u8; 4] {
    if address == [0; 4] { LOOPBACK4 } else { address }
}

/// Who serves at an address of the node, and its port.
#[inline(always)]
fn behind4(socket: &SockAddr, address: [u8; 4]) -> Option<(&'static Published, [u8; 2])> {
    if address[0] != LOOPBACK4[0] && !is_nodes(&AddressKey::ipv4(0, address)) {
        return None;
    }
    let port = socket.port();
    let found = published(wide4(address), IPV4, socket.protocol(), port)?;
    // An IPv4 socket cannot reach an IPv6 backend.
    (found.backend_family == IPV4).then(|| (found, found.port_behind(port)))
}

#[inline(always)]
fn behind6(socket: &SockAddr, address: [u8; 16]) -> Option<(&'static Published, [u8; 2])> {
    if address != LOOPBACK6 && !is_nodes(&AddressKey::ipv6(0, address)) {
        return None;
    }
    let port = socket.port();
    let found = published(address, IPV6, socket.protocol(), port)?;
    Some((found, found.port_behind(port)))
}

/// Whether a socket that is bound to this address gets answers from a container. From a loopback address none would come back, and
/// the program would wait for minutes; from an address of the other family the packet would have a source of the kernel's choice.
#[inline(always)]
pub(super) fn can_reach(bound: [u8; 16], backend_family: u8) -> bool {
    match mapped(bound) {
        Some([first, ..]) => first != LOOPBACK4[0],
        None => bound == ANY || (backend_family == IPV6 && bound != LOOPBACK6),
    }
}

/// fe80::/10 (RFC 4291, section 2.5.6).
#[inline(always)]
fn is_link_local(address: [u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

#[inline(always)]
fn is_nodes(key: &AddressKey) -> bool {
    // SAFETY: only presence counts.
    unsafe { NODE_ADDRESSES.get(key) }.is_some()
}

/// Notes what the program dialled, for [`super::restore`]. A socket that sends again and again to one address writes once.
#[inline(always)]
pub(super) fn remember(socket: &SockAddr, dialled: [u8; 16], target: [u8; 16], port: [u8; 2], endpoint: u64) {
    let key = SocketKey {
        cookie: socket.cookie(),
        address: target,
        port,
        protocol: socket.protocol(),
        reserved: [0; 5],
    };
    let peer = SocketPeer { address: dialled, port: socket.port(), reserved: [0; 6], endpoint };
    // SAFETY: a copy; a torn read would at worst cause the write that follows.
    if unsafe { SOCKETS.get(key) }.is_some_and(|there| *there == peer) {
        return;
    }
    // Full of elements in use by other processors: the program then sees the container's own address.
    let _ = SOCKETS.insert(key, peer, 0);
}
