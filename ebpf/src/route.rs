//! The ways across the host, as a router goes them: out by the device that the routing table names, or into a sandbox.
//!
//! Whatever a router must answer or cut (an expired TTL, a packet too long for its link, no route) is left to the stack, which
//! does that with the right source address and the right rate limits. What goes on here has one less of TTL.
//!
//! A packet that Weft sends out of a device is marked: the program at that device's egress lets it pass. Inside a sandbox the
//! packet comes from the gateway, whatever device of the host it came in by.

use crate::{
    drop,
    packet::{Fragment, Ipv4, Ipv6, Packet, UDP},
    redirect::PACKET_HOST,
};
use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_change_head,
    },
};
use core::mem::offset_of;
use ebpf_common::{
    Departure, DropReason, ENDPOINT_OVERLAY, Endpoint, SCTP, TARGET_SHAPED_INGRESS, TCP, Target, wide4,
};

/// `AF_INET` (linux/socket.h).
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;

/// Bytes of an IPv4 header without options.
const IPV4_HEADER: u32 = 20;
/// Bytes of an IPv6 header.
const IPV6_HEADER: u32 = 40;

/// Where a packet leaves the host. Not an enum: the verifier wants every byte of what is kept in a map. It begins as ipamd reads it,
/// [`Departure`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// The device; zero: the stack decides, and answers where a router would.
    pub(crate) ifindex: u32,
    /// Who takes it there.
    hop: Hop,
    /// Family of the packet, which need not be that of `hop`.
    family: u8,
    /// TTL or hop limit as it came in, and the byte behind it.
    ttl: [u8; 2],
    _reserved: u8,
}

impl Route {
    const STACK: Self =
        Self { ifindex: 0, hop: Hop { family: 0, address: [0; 16] }, family: 0, ttl: [0; 2], _reserved: 0 };
}

/// The next host on the way: `struct bpf_redir_neigh` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    family: u32,
    /// IPv4 in the first four bytes.
    address: [u8; 16],
}

/// `struct bpf_fib_lookup` (linux/bpf.h), with its unions as they are used here.
#[repr(C)]
struct Fib {
    /// In: of the packet; out: of the next hop.
    family: u8,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    /// In: bytes of the IP packet, checked against the route's MTU unless zero.
    length: u16,
    /// In: where the packet came in; out: where it goes.
    ifindex: u32,
    /// In: IPv4: type of service in the first byte; IPv6: traffic class and flow label.
    service: [u8; 4],
    source: [u8; 16],
    /// In: of the packet; out: the next hop.
    destination: [u8; 16],
    /// Out: VLAN and MACs, which nobody here reads.
    link: [u64; 2],
}

const _: () = {
    assert!(size_of::<Fib>() == 64);
    assert!(size_of::<Hop>() == 20);
    assert!(offset_of!(Route, ifindex) == offset_of!(Departure, ifindex));
    assert!(offset_of!(Route, hop) == offset_of!(Departure, family));
    assert!(offset_of!(Hop, family) == 0 && offset_of!(Hop, address) == 4);
    assert!(offset_of!(Departure, address) == offset_of!(Departure, family) + 4);
};

/// Where an IPv4 packet with these addresses goes if it came in by the device `from_ifindex` (zero: not known).
#[inline(always)]
pub(crate) fn outside4(
    packet: &Packet<'_>,
    ip: &Ipv4,
    source: [u8; 4],
    destination: [u8; 4],
    from_ifindex: u32,
) -> Result<Route, DropReason> {
    // A router has a part in options (RFC 1812, section 5.2.4).
    if from_ifindex == 0 || ip.ttl <= 1 || ip.payload - packet.network() != IPV4_HEADER {
        return Ok(Route::STACK);
    }
    let ports = ports(packet, ip.protocol, ip.payload, ip.fragment)?;
    let [a, b, c, d] = ports;
    let mut fib = Fib {
        family: AF_INET,
        protocol: ip.protocol,
        source_port: [a, b],
        destination_port: [c, d],
        length: segment_length(packet, ip.total, ip.protocol, ip.payload),
        ifindex: from_ifindex,
        service: [ip.service, 0, 0, 0],
        source: wide4(source),
        destination: wide4(destination),
        // Whatever is in there; as zeroes it would be cleared byte by byte.
        link: [from_ifindex.into(), 0],
    };
    Ok(look_up(packet, &mut fib, AF_INET, [ip.ttl, ip.protocol]))
}

/// Where an IPv6 packet with these addresses goes; likewise.
#[inline(always)]
pub(crate) fn outside6(
    packet: &Packet<'_>,
    ip: &Ipv6,
    source: [u8; 16],
    destination: [u8; 16],
    from_ifindex: u32,
) -> Result<Route, DropReason> {
    if from_ifindex == 0 || ip.ttl <= 1 {
        return Ok(Route::STACK);
    }
    let [a, b, c, d] = ports(packet, ip.protocol, ip.payload, ip.fragment)?;
    let mut fib = Fib {
        family: AF_INET6,
        protocol: ip.protocol,
        source_port: [a, b],
        destination_port: [c, d],
        length: segment_length(packet, ip.total, ip.protocol, ip.payload),
        ifindex: from_ifindex,
        service: ip.flow,
        source,
        destination,
        // Whatever is in there; as zeroes it would be cleared byte by byte.
        link: [from_ifindex.into(), 0],
    };
    Ok(look_up(packet, &mut fib, AF_INET6, [ip.ttl, 0]))
}

/// Where a datagram of the host's own to `destination` goes, from whatever address. The rules take it for one that came in by the device
/// `from_ifindex`, which must forward.
#[inline(always)]
pub(crate) fn underlay(
    packet: &Packet<'_>,
    from_ifindex: u32,
    destination: [u8; 4],
    ports: [[u8; 2]; 2],
    length: u32,
) -> Route {
    let mut fib = Fib {
        family: AF_INET,
        protocol: UDP,
        source_port: ports[0],
        destination_port: ports[1],
        length: u16::try_from(length).unwrap_or(u16::MAX),
        ifindex: from_ifindex,
        service: [0; 4],
        source: [0; 16],
        destination: wide4(destination),
        // As above.
        link: [from_ifindex.into(), 0],
    };
    look_up(packet, &mut fib, AF_INET, [0; 2])
}

/// Sends the packet out by its route. `is_l3`: the device takes packets without a link-layer header.
#[inline(always)]
pub(crate) fn send_out(packet: &Packet<'_>, route: &Route, is_l3: bool) -> Result<i32, DropReason> {
    let Route { ifindex, family, ttl, .. } = *route;
    // The kernel resolves no neighbour for what came in without a link-layer header.
    if ifindex == 0 || (packet.network() == 0 && !is_l3) {
        return Ok(TC_ACT_UNSPEC);
    }
    decrement(packet, family, ttl)?;
    if is_l3 {
        packet.mark_delivered();
        // SAFETY: plain integers.
        return Ok(unsafe { bpf_redirect(ifindex, 0) } as i32);
    }
    Ok(emit(packet, route))
}

/// Hands the packet as it is to the next host of its route, which is on an Ethernet.
#[inline(always)]
pub(crate) fn emit(packet: &Packet<'_>, route: &Route) -> i32 {
    packet.mark_delivered();
    let mut hop = route.hop;
    // SAFETY: the kernel copies the parameters, which are on the stack and as large as it is told.
    unsafe { bpf_redirect_neigh(route.ifindex, (&raw mut hop).cast(), size_of::<Hop>() as i32, 0) as i32 }
}

/// Takes a packet that came in by a device of the host into the sandbox of `endpoint`, which `target` is, or leaves it to the stack.
#[inline(always)]
pub(crate) fn into_pod(packet: &Packet<'_>, target: &Target, endpoint: &Endpoint) -> Result<i32, DropReason> {
    match enter(packet, target, endpoint) {
        Entry::Peer => {
            drop::received(target.ifindex, packet.len());
            // SAFETY: plain integers.
            Ok(unsafe { bpf_redirect_peer(target.ifindex, 0) } as i32)
        }
        Entry::Qdisc => {
            // Out through the qdisc; `to_pod` runs there and counts.
            packet.mark_delivered();
            // SAFETY: plain integers.
            Ok(unsafe { bpf_redirect(target.ifindex, 0) } as i32)
        }
        Entry::Stack => Ok(TC_ACT_UNSPEC),
        Entry::Failed => Err(DropReason::Rewrite),
    }
}

/// How a packet gets into a sandbox.
#[repr(u32)]
enum Entry {
    Stack,
    Peer,
    Qdisc,
    Failed,
}

/// Makes the packet one that the gateway sends into the sandbox.
#[inline(never)]
fn enter(packet: &Packet<'_>, target: &Target, endpoint: &Endpoint) -> Entry {
    let at = packet.network();
    let Ok([first, _, high, low, payload_high, payload_low, next, hop_limit, ttl, protocol]) =
        packet.bytes::<10>(at)
    else {
        return Entry::Failed;
    };
    let (family, ttl, total, protocol, payload) = if first >> 4 == 4 {
        let total = u32::from(u16::from_be_bytes([high, low]));
        (AF_INET, [ttl, protocol], total, protocol, at + u32::from(first & 0xf) * 4)
    } else {
        let length = u32::from(u16::from_be_bytes([payload_high, payload_low]));
        (AF_INET6, [hop_limit, 0], length + IPV6_HEADER, next, at + IPV6_HEADER)
    };
    let length = u32::from(segment_length(packet, total, protocol, payload));
    let is_shaped = target.flags & TARGET_SHAPED_INGRESS != 0;
    // The MTU of an overlay leaves room for VXLAN, which what comes from outside does not have, and a veth takes in more than it
    // sends. The stack could not help: the uplink does not forward.
    let is_wide = endpoint.flags & ENDPOINT_OVERLAY != 0 && !is_shaped;
    if ttl[0] <= 1 || !(is_wide || fits(packet, target.ifindex, length)) {
        return Entry::Stack;
    }
    let moved = decrement(packet, family, ttl)
        .and_then(|()| if at == 0 { grow(packet, family) } else { Ok(()) })
        .and_then(|()| packet.store(0, &[target.mac, endpoint.gateway_mac], 0));
    if moved.is_err() || packet.ctx().change_type(PACKET_HOST).is_err() {
        return Entry::Failed;
    }
    if is_shaped { Entry::Qdisc } else { Entry::Peer }
}

/// Gives a packet without a link-layer header one, without addresses yet.
#[inline(always)]
fn grow(packet: &Packet<'_>, family: u8) -> Result<(), DropReason> {
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_skb_change_head(packet.ctx().skb.skb, 14, 0) } != 0 {
        return Err(DropReason::Rewrite);
    }
    let ethertype: [u8; 2] = if family == AF_INET { [0x08, 0x00] } else { [0x86, 0xdd] };
    packet.store(12, &ethertype, 0)
}

/// Whether so many bytes fit the MTU of a device. The helper looks at the sum of all segments; what counts is one of them.
#[inline(always)]
fn fits(packet: &Packet<'_>, ifindex: u32, length: u32) -> bool {
    let mut mtu = length;
    // SAFETY: `mtu` is on the stack; the kernel reads a length there and leaves the MTU.
    let verdict = unsafe { bpf_check_mtu(packet.ctx().skb.skb.cast(), ifindex, &raw mut mtu, 0, 0) };
    verdict >= 0 && length <= mtu
}

/// Asks the routing table, rules included.
#[inline(always)]
fn look_up(packet: &Packet<'_>, fib: &mut Fib, family: u8, ttl: [u8; 2]) -> Route {
    // SAFETY: `fib` has the layout and the size of the kernel's structure.
    let verdict = unsafe {
        bpf_fib_lookup(packet.ctx().skb.skb.cast(), (&raw mut *fib).cast(), size_of::<Fib>() as i32, 0)
    };
    // A neighbour that is not resolved yet is resolved when the packet gets there.
    if verdict != i64::from(BPF_FIB_LKUP_RET_SUCCESS) && verdict != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        return Route::STACK;
    }
    let hop = Hop { family: fib.family.into(), address: fib.destination };
    Route { ifindex: fib.ifindex, hop, family, ttl, _reserved: 0 }
}

/// Ports for rules that ask for them, as the packet has them.
#[inline(always)]
fn ports(packet: &Packet<'_>, protocol: u8, offset: u32, fragment: Fragment) -> Result<[u8; 4], DropReason> {
    if fragment == Fragment::Later || !matches!(protocol, TCP | UDP | SCTP) {
        return Ok([0; 4]);
    }
    packet.bytes(offset)
}

/// Bytes of the IP packet that goes over the link: of each segment if there will be many.
#[inline(always)]
pub(crate) fn segment_length(packet: &Packet<'_>, total: u32, protocol: u8, payload: u32) -> u16 {
    let segment = packet.segment();
    if segment == 0 {
        return u16::try_from(total).unwrap_or(u16::MAX);
    }
    let header = match protocol {
        // The header was read before; without one this is nothing that has segments.
        TCP => packet.bytes(payload + 12).map_or(0, |[words]: [u8; 1]| u32::from(words >> 4) * 4),
        UDP => 8,
        _ => 0,
    };
    u16::try_from(payload - packet.network() + header + segment).unwrap_or(u16::MAX)
}

/// Takes one off the TTL or hop limit, which `ttl` begins with.
#[inline(always)]
fn decrement(packet: &Packet<'_>, family: u8, ttl: [u8; 2]) -> Result<(), DropReason> {
    let [old, behind] = ttl;
    let new = old.wrapping_sub(1);
    if family == AF_INET6 {
        // No checksum of the header makes up for this in `skb->csum`.
        return packet.store(packet.network() + 7, &new, BPF_F_RECOMPUTE_CSUM.into());
    }
    let word = |ttl: u8| u64::from(u16::from_ne_bytes([ttl, behind]));
    packet
        .ctx()
        .l3_csum_replace(packet.network() as usize + 10, word(old), word(new), 2)
        .map_err(|_| DropReason::Rewrite)?;
    packet.store(packet.network() + 8, &new, 0)
}
