//! Where sandboxes may not go, whatever way leads there: the overlay port of a node, and the node's store.
//!
//! VXLAN has no proof of who sends it but the outer source address, and a masqueraded packet has a node's. So what a sandbox sends to
//! that port is dropped before it leaves, whoever would forward it. The store is guarded where it is configured, and its port at every
//! address of a node besides: it may listen on more of them than are configured.

use crate::{
    drop::fold,
    maps::{GUARDED, OVERLAY, VTEPS},
    nat::uplink,
    packet::{Fragment, Packet, UDP},
    publish,
    scratch::{Scratch, narrow},
};
use ebpf_common::{DropReason, GuardedKey, IPV4, TCP, Tuple, is_link_local, is_syn, mapped4};

/// Of `GUARDED`: every port that the store has at some address is there with this one too.
const ANYWHERE: [u8; 16] = [0; 16];

/// Zero if a packet of a sandbox may go to the destination of `to`, else a folded reason. Ports that are not known are no reason:
/// without the first fragment of a datagram nobody makes anything of the others.
#[inline(never)]
pub(crate) fn check(s: &Scratch, to: &Tuple) -> i32 {
    match to.protocol {
        UDP if is_forged(to) => fold(DropReason::ForgedOverlay),
        // Nearly no packet gets beyond the number of its port.
        TCP if begins(s) && is_guarded(ANYWHERE, to) && (is_guarded(wide(to), to) || is_of_node(to)) => {
            fold(DropReason::Guarded)
        }
        _ => 0,
    }
}

/// The same of a packet that a published port of this node may take: then it is no node's, whatever its number. In the way of every
/// packet, nearly all of which go on with a connection.
#[inline(always)]
pub(crate) fn check_sent(s: &Scratch) -> i32 {
    match s.key.protocol {
        UDP => check(s, &s.key),
        TCP if begins(s) => check_dial(s),
        _ => 0,
    }
}

#[inline(never)]
fn check_dial(s: &Scratch) -> i32 {
    match check(s, &s.key) {
        0 => 0,
        _ if !is_guarded(wide(&s.key), &s.key) && dials(s) => 0,
        reason => reason,
    }
}

#[inline(always)]
fn dials(s: &Scratch) -> bool {
    publish::may_open(s) && publish::frontend(&s.key, true).is_some()
}

/// The same of a packet that the stack sends out by a device of the host.
#[inline(never)]
pub(crate) fn check_forwarded(packet: &Packet<'_>, s: &Scratch) -> i32 {
    let from = packet.came_by();
    // What the node sends itself comes by no device; its own VXLAN is marked, and never seen here.
    if from == 0 {
        return 0;
    }
    match check(s, &s.key) {
        0 => 0,
        // Who came by another device of the host is no sandbox.
        _ if s.key.protocol == TCP && uplink(from).is_some() => 0,
        reason => reason,
    }
}

/// Whether it is a datagram to the overlay port of a node.
#[inline(always)]
fn is_forged(to: &Tuple) -> bool {
    is_overlay_port(to) && is_of_node(to)
}

#[inline(always)]
fn is_overlay_port(to: &Tuple) -> bool {
    let port = OVERLAY.get(0).map_or(0, |o| o.port);
    port != 0 && u16::from_be_bytes(to.destination_port) == port
}

/// Whether a packet from outside is VXLAN of another node for this one.
#[inline(never)]
pub(crate) fn is_tunnel(s: &Scratch) -> bool {
    let key = &s.key;
    key.protocol == UDP
        && s.place.fragment == Fragment::Whole
        && is_overlay_port(key)
        // SAFETY: only its presence counts.
        && unsafe { VTEPS.get(as_ipv6(key.family, &key.source)) }.is_some()
        && publish::is_node(key.family, &key.destination)
}

/// Whether the packet may begin a connection. Of a fragment, the flags need not be there.
#[inline(always)]
fn begins(s: &Scratch) -> bool {
    s.place.fragment != Fragment::Whole || is_syn(s.transport.tcp_flags)
}

/// Whether the store has the port at this address, or at any.
#[inline(always)]
fn is_guarded(address: [u8; 16], to: &Tuple) -> bool {
    let key = GuardedKey { address, port: to.destination_port, protocol: TCP, reserved: 0 };
    // SAFETY: only its presence counts.
    unsafe { GUARDED.get(key) }.is_some()
}

/// Whether a node has the destination: this one, or another one that is known.
#[inline(always)]
fn is_of_node(to: &Tuple) -> bool {
    // SAFETY: only its presence counts.
    publish::is_node(to.family, &to.destination)
        || unsafe { VTEPS.get(wide(to)) }.is_some()
        || (to.family != IPV4 && is_link_local(&to.destination))
}

/// The destination as IPv6 writes it.
#[inline(always)]
fn wide(to: &Tuple) -> [u8; 16] {
    as_ipv6(to.family, &to.destination)
}

#[inline(always)]
fn as_ipv6(family: u8, address: &[u8; 16]) -> [u8; 16] {
    if family == IPV4 { mapped4(narrow(address)) } else { *address }
}
