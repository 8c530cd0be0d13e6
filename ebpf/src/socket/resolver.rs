//! 127.0.0.11 in a sandbox: the address that container runtimes promise names at, led to the gateway of its network.
//!
//! A sandbox without a row keeps what it has there, Docker's own for instance.

use super::{
    EADDRNOTAVAIL, ECONNREFUSED, PROCEED, SockAddr,
    address::mapped,
    dial::{can_reach, remember},
    fail,
};
use crate::maps::RESOLVERS;
use ebpf_common::{IPV4, Resolver, TCP, UDP, mapped4};

/// Where Docker answers, and everybody after it.
const RESOLVER: [u8; 4] = [127, 0, 0, 11];
/// Port of the protocol, network order.
const PORT: [u8; 2] = [0, 53];

/// Whether the other side's port is that of a resolver.
#[inline(always)]
pub(super) fn is_port(socket: &SockAddr<'_>) -> bool {
    socket.port() == PORT
}

/// connect4 and sendmsg4 of a sandbox.
#[inline(always)]
pub(super) fn dial4(socket: &SockAddr<'_>) -> i32 {
    if !is_port(socket) || socket.ipv4() != RESOLVER {
        return PROCEED;
    }
    match lead(socket) {
        Ok(Some(gateway)) => {
            socket.set_ipv4(gateway);
            PROCEED
        }
        Ok(None) => PROCEED,
        Err(errno) => fail(errno),
    }
}

/// connect6 and sendmsg6, where the address is a v4-mapped one.
#[inline(always)]
pub(super) fn dial6(socket: &SockAddr<'_>) -> i32 {
    if !is_port(socket) || mapped(socket.ipv6()) != Some(RESOLVER) {
        return PROCEED;
    }
    match lead(socket) {
        Ok(Some(gateway)) => {
            socket.set_ipv6(mapped4(gateway));
            PROCEED
        }
        Ok(None) => PROCEED,
        Err(errno) => fail(errno),
    }
}

/// The gateway that a socket is led to; none if its sandbox has no row.
#[inline(always)]
fn lead(socket: &SockAddr<'_>) -> Result<Option<[u8; 4]>, i32> {
    if !matches!(socket.protocol(), TCP | UDP) {
        return Ok(None);
    }
    // SAFETY: copied at once; entries are replaced as a whole and freed after a grace period.
    let Some(Resolver { gateway4, endpoint, .. }) = unsafe { RESOLVERS.get(socket.netns_cookie()) }.copied()
    else {
        return Ok(None);
    };
    // The sandbox has no IPv4: nothing would come back, and whoever asks would wait for it.
    if gateway4 == [0; 4] {
        return Err(ECONNREFUSED);
    }
    // From a loopback address, likewise.
    if !can_reach(socket.bound(), IPV4) {
        return Err(EADDRNOTAVAIL);
    }
    remember(socket, mapped4(RESOLVER), mapped4(gateway4), PORT, u64::from_ne_bytes(endpoint));
    Ok(Some(gateway4))
}
