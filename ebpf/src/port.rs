//! Source ports of translated flows: the flow's own if it is free (and not the gateway's, for a hairpin), else one of the node's
//! range.
//!
//! Free means that its answers are nobody else's: no other flow's (the tables), no flow of the host or of somebody that it
//! translates for (`HOST_FLOWS`), no socket of the host, no published port. The range is searched as a whole, from a random place
//! on; if nothing is free in there, the packet is dropped and counted.

use crate::{
    clock::now,
    conntrack::{claim_original, claim_reply, is_claimed},
    maps::{HOST_FLOWS, RESERVED_PORTS},
    nat::config,
    packet::{ICMP, ICMPV6, Packet, UDP},
    scratch::{Scratch, Search, narrow},
};
use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock},
    helpers::generated::{
        bpf_get_prandom_u32, bpf_loop, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    maps::lpm_trie::Key,
};
use core::{ffi::c_void, ptr};
use ebpf_common::{CONN_HAIRPIN, CONN_HOST, CONN_MASQUERADE, DropReason, IPV4, ReservedKey, TCP, Tuple};

/// What [`step`] works on.
struct Hunt<'a, 'b> {
    packet: &'a Packet<'b>,
    s: *mut Scratch,
}

/// Makes both entries of a new flow that turns `s.key` into `s.to`, with another source port in `s.to` if it must be. Zero, or a
/// folded reason.
#[inline(never)]
pub(crate) fn open(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    s.search.found = 0;
    // The gateway's ports are the host's, which may want this one later; those of the range it leaves alone.
    let reserved = s.flags & CONN_HAIRPIN != 0 && matches!(s.key.protocol, TCP | UDP);
    if !reserved {
        attempt(packet, s);
    }
    if s.search.found == 0 && !search(packet, s) {
        return crate::drop::fold(DropReason::PortsExhausted);
    }
    if claim_original(s, packet.len()) { 0 } else { crate::drop::fold(DropReason::FlowTable) }
}

#[inline(always)]
fn search(packet: &Packet<'_>, s: &mut Scratch) -> bool {
    let Some(config) = config() else {
        return false;
    };
    // SCTP's checksum covers its ports as well, others have none. A later fragment opens no flow.
    if !matches!(s.key.protocol, TCP | UDP | ICMP | ICMPV6) || config.last_port < config.first_port {
        return false;
    }
    let first = u32::from(config.first_port);
    let count = u32::from(config.last_port) - first + 1;
    // SAFETY: a helper without arguments.
    let start = unsafe { bpf_get_prandom_u32() } % count;
    s.search = Search { first, count, start, found: 0 };
    let mut hunt = Hunt { packet, s: ptr::from_mut(s) };
    let step: extern "C" fn(u64, *mut Hunt<'_, '_>) -> i64 = step;
    // SAFETY: the callback takes what is passed, which outlives the call.
    unsafe { bpf_loop(count, step as *mut c_void, ptr::from_mut(&mut hunt).cast(), 0) };
    s.search.found != 0
}

/// Tries one port of the range; 1 ends the search.
#[inline(never)]
extern "C" fn step(index: u64, hunt: *mut Hunt<'_, '_>) -> i64 {
    // SAFETY: `search` passes a value of its own stack, which lives until the loop ends; nobody else uses the scratch entry then.
    let (packet, s) = unsafe { ((*hunt).packet, &mut *(*hunt).s) };
    let mut offset = s.search.start.wrapping_add(index as u32);
    if offset >= s.search.count {
        offset -= s.search.count;
    }
    let port = (s.search.first.wrapping_add(offset) as u16).to_be_bytes();
    s.to.source_port = port;
    // The identifier of an echo stands for both.
    if matches!(s.key.protocol, ICMP | ICMPV6) {
        s.to.destination_port = port;
    }
    s.reply = s.to.reversed();
    if !is_claimed(s) {
        attempt(packet, s);
    }
    if s.search.found == 0 { 0 } else { 1 }
}

/// Claims the tuple `s.to` as it is, if it is free.
#[inline(always)]
fn attempt(packet: &Packet<'_>, s: &mut Scratch) {
    s.reply = s.to.reversed();
    if s.flags & (CONN_MASQUERADE | CONN_HOST | CONN_HAIRPIN) != 0 && is_taken(packet, &s.reply) {
        return;
    }
    s.search.found = u32::from(claim_reply(s));
}

/// Whether the node uses the port to which such answers would go, or has published it.
#[inline(never)]
fn is_taken(packet: &Packet<'_>, reply: &Tuple) -> bool {
    if is_host_flow(reply) {
        return true;
    }
    if !matches!(reply.protocol, TCP | UDP) {
        return false;
    }
    let key = ReservedKey { protocol: reply.protocol, family: reply.family, port: reply.destination_port };
    RESERVED_PORTS.get(Key::new(ReservedKey::ALL_BITS, key)).is_some() || has_socket(packet, reply)
}

/// Whether packets of this tuple are answers to a flow of the host, or of somebody that it translates for.
#[inline(always)]
pub(crate) fn is_host_flow(reply: &Tuple) -> bool {
    // SAFETY: read at once.
    let Some(seen) = (unsafe { HOST_FLOWS.get(reply) }).copied() else {
        return false;
    };
    config().is_some_and(|c| now().saturating_sub(seen) < c.host_flow_timeout)
}

/// `struct bpf_sock_tuple` (linux/bpf.h) of one family.
#[repr(C)]
struct SocketTuple<const N: usize> {
    source: [u8; N],
    destination: [u8; N],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Whether a socket of the host would get packets of this tuple, listening ones included.
#[inline(always)]
fn has_socket(packet: &Packet<'_>, tuple: &Tuple) -> bool {
    let (source_port, destination_port) = (tuple.source_port, tuple.destination_port);
    if tuple.family == IPV4 {
        let source = narrow(&tuple.source);
        let destination = narrow(&tuple.destination);
        look_up(packet, tuple.protocol, &SocketTuple { source, destination, source_port, destination_port })
    } else {
        let (source, destination) = (tuple.source, tuple.destination);
        look_up(packet, tuple.protocol, &SocketTuple { source, destination, source_port, destination_port })
    }
}

#[inline(always)]
fn look_up<const N: usize>(packet: &Packet<'_>, protocol: u8, tuple: &SocketTuple<N>) -> bool {
    let context = packet.ctx().skb.skb.cast();
    let size = size_of::<SocketTuple<N>>() as u32;
    // The type has room for both families; the size says which one it is.
    let tuple = ptr::from_ref(tuple).cast_mut().cast();
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    let socket: *mut bpf_sock = if protocol == TCP {
        // SAFETY: the tuple has the size that is passed, and is only read.
        unsafe { bpf_skc_lookup_tcp(context, tuple, size, netns, 0) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_sk_lookup_udp(context, tuple, size, netns, 0) }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the look-up gave a reference, which is given back here and not used again.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
