//! Sockets of the node itself: they reach published ports by the node's own addresses, and may not bind them. And sockets in
//! sandboxes that ask 127.0.0.11 for names.
//!
//! Owns what the cgroup hooks decide; a socket's walk is [`dial`] (connect, sendmsg), then [`restore`] (recvmsg, getpeername), and
//! [`reserve`] for bind; [`resolver`] is all there is for sandboxes. The kernel runs no such hook for SCTP, which binds and connects by calls of its own.
//!
//! Invariants: a hook touches sockets of the host's network namespace (several nodes may run on one machine, and containers'
//! sockets pass here too) and leaves alone whatever is not published; of other sockets only those of a sandbox in `RESOLVERS`, and
//! only what they say to 127.0.0.11. No packet passes here, so nothing is counted.

mod address;
mod dial;
mod reserve;
mod resolver;
mod restore;

pub(crate) use dial::{dial4, dial6};
pub(crate) use reserve::{reserve4, reserve6};
pub(crate) use restore::{restore4, restore6};

use crate::maps::{CONFIG, PUBLISHED};
use address::SockAddr;
use aya_ebpf::{helpers::generated::bpf_set_retval, maps::lpm_trie::Key};
use ebpf_common::{PortKey, Published};

/// Go on with the system call.
const PROCEED: i32 = 1;
/// Fail it, with EPERM unless another error was set.
const FAIL: i32 = 0;

/// `errno.h`; the numbers are the same on every architecture that Linux runs eBPF on.
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// Any address of the family, as map keys write it.
const ANY: [u8; 16] = [0; 16];
/// `::1`.
const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// 127.0.0.1.
const LOOPBACK4: [u8; 4] = [127, 0, 0, 1];

/// How an IPv6 socket speaks to sendmsg and to connect: the former cannot change to IPv4 (Linux: ENOTSUPP).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// connect(2).
    Connect,
    /// sendmsg(2) with an address.
    Send,
}

/// Whether the socket is one of the node's own. Without a configuration none is.
#[inline(always)]
fn is_hosts(socket: &SockAddr) -> bool {
    match CONFIG.get(0) {
        Some(config) if config.host_cookie != 0 => socket.netns_cookie() == config.host_cookie,
        _ => false,
    }
}

/// Fails the system call with `errno`.
#[inline(always)]
fn fail(errno: i32) -> i32 {
    // SAFETY: a plain number; the helper is there for all hooks that may fail (Linux 5.18).
    unsafe { bpf_set_retval(-errno) };
    FAIL
}

/// What is published at exactly this address, else at every address.
#[inline(always)]
fn published(address: [u8; 16], family: u8, protocol: u8, port: [u8; 2]) -> Option<&'static Published> {
    let mut key = Key::new(PortKey::ALL_BITS, PortKey { address, protocol, family, port });
    if let Some(exact) = PUBLISHED.get(&key) {
        return Some(exact);
    }
    key.data.address = ANY;
    PUBLISHED.get(&key)
}
