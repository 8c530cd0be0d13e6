//! bind: a published port is taken, as if the container itself held it on the node.
//!
//! The answer does not depend on SO_REUSEADDR or SO_REUSEPORT: another listener would never hear anything. A dual-stack wildcard
//! covers both families. Whether an IPv6 socket is dual-stack the hook cannot see (bpf_getsockopt knows no IPV6_V6ONLY, and the
//! socket's own fields are for GPL programs), so it takes every one for dual-stack.
//!
//! podman is let through. It binds every port that it publishes by itself, after the ADD that made the port Weft's, and leaves the
//! socket with conmon for as long as the container lives (`enable_port_reservation`, on by default); refused, it would not
//! start the container. The socket never hears anything, and two containers with one port are kept apart at ADD.

use super::{ANY, EADDRINUSE, PROCEED, SockAddr, address::mapped, fail, is_hosts, published};
use crate::maps::RESERVED_PORTS;
use aya_ebpf::{helpers::bpf_get_current_comm, maps::lpm_trie::Key, programs::SockAddrContext};
use ebpf_common::{IPV4, IPV6, ReservedKey, wide4};

/// bind4.
#[inline(always)]
pub(crate) fn reserve4(context: &SockAddrContext) -> i32 {
    let socket = SockAddr::of(context);
    let port = socket.port();
    // Port 0: the kernel chooses one.
    if port == [0; 2] || !is_hosts(&socket) {
        return PROCEED;
    }
    verdict(is_taken(wide4(socket.ipv4()), IPV4, socket.protocol(), port))
}

/// bind6.
#[inline(always)]
pub(crate) fn reserve6(context: &SockAddrContext) -> i32 {
    let socket = SockAddr::of(context);
    let port = socket.port();
    if port == [0; 2] || !is_hosts(&socket) {
        return PROCEED;
    }
    let (address, protocol) = (socket.ipv6(), socket.protocol());
    let taken = match mapped(address) {
        Some(address) => is_taken(wide4(address), IPV4, protocol, port),
        None => {
            is_taken(address, IPV6, protocol, port) || (address == ANY && is_taken(ANY, IPV4, protocol, port))
        }
    };
    verdict(taken)
}

#[inline(always)]
fn verdict(taken: bool) -> i32 {
    if taken && !is_podman() { fail(EADDRINUSE) } else { PROCEED }
}

#[inline(always)]
fn is_podman() -> bool {
    const NAME: &[u8; 8] = b"podman\0\0";
    // The kernel fills names up with zeros (proc(5), comm).
    bpf_get_current_comm().is_ok_and(|name| name[..8] == NAME[..])
}

/// A wildcard collides with the port on any address, an address with the port on itself and on all.
#[inline(always)]
fn is_taken(address: [u8; 16], family: u8, protocol: u8, port: [u8; 2]) -> bool {
    if address == ANY {
        let key = Key::new(ReservedKey::ALL_BITS, ReservedKey { protocol, family, port });
        return RESERVED_PORTS.get(&key).is_some();
    }
    published(address, family, protocol, port).is_some()
}
