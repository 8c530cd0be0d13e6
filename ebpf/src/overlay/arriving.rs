//! The way past the VXLAN device, at its other end: what another node sends to a sandbox goes there from the uplink, without its outer header.
//!
//! Here is decided only on what is as usual: a whole packet (one of many segments would keep the kernel's note that they are in a tunnel)
//! that [`super::incoming`] would take into a sandbox. Everything else, and all that is dropped, goes by the device, untouched.

use super::{
    incoming::{is_discovery, is_outside},
    is_own, network, shortcut,
};
use crate::{
    drop::fold,
    flow,
    maps::VNIS,
    nat::{self, STACK},
    packet::{self, Packet},
    redirect::{self, Way},
    scratch::Scratch,
};
use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV6, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::bpf_skb_adjust_room,
};
use ebpf_common::{NetworkId, TARGET_ROUTED, TARGET_SHAPED_INGRESS};

/// Offset of the UDP header.
const DATAGRAM: u32 = 14 + 20;
/// Offset of the Ethernet header of what is carried.
const FRAME: u32 = DATAGRAM + 8 + 8;
/// Offset of the IP header of what is carried.
const CARRIED: u32 = FRAME + 14;
/// ECN bits: congestion was experienced on the way, which the packet itself has to say from here on (RFC 6040).
const CONGESTION: u8 = 3;

/// VXLAN of another node for this one, which the scratch entry knows as a datagram.
#[inline(never)]
pub(crate) fn arrive(packet: &Packet<'_>, s: &mut Scratch) -> i32 {
    if packet.segment() != 0 || shortcut::own(packet.ifindex()).is_none() {
        return STACK;
    }
    match carried(packet, s) {
        0 => STACK,
        network => match is_for_sandbox(network, s) {
            true => enter(packet, s),
            false => STACK,
        },
    }
}

/// Reads the packet that is carried, and says of which network it is. Zero: it goes by the device.
#[inline(never)]
fn carried(packet: &Packet<'_>, s: &mut Scratch) -> NetworkId {
    let is_plain = s.is4()
        && s.ip4.payload == DATAGRAM
        && s.ip4.service & CONGESTION != CONGESTION
        && packet.network() + s.ip4.total == packet.len();
    if !is_plain {
        return 0;
    }
    let Ok(outer) = packet.bytes::<16>(DATAGRAM) else {
        return 0;
    };
    let [_, _, _, _, l, m, sum, check, flags, r, e, v, x, y, z, w] = outer;
    // The device knows what to do with a checksum, and with bits that have no meaning here.
    let is_usual = u32::from(u16::from_be_bytes([l, m])) == s.ip4.length
        && [sum, check] == [0; 2]
        && [flags, r, e, v, w] == [8, 0, 0, 0, 0];
    if !is_usual {
        return 0;
    }
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    let Some(&id) = (unsafe { VNIS.get(u32::from_be_bytes([0, x, y, z])) }) else {
        return 0;
    };
    let Ok([group, .., high, low]) = packet.bytes::<14>(FRAME) else {
        return 0;
    };
    let inner = packet.carried(CARRIED);
    let read = match u16::from_be_bytes([high, low]) {
        _ if group & 1 != 0 => return 0,
        packet::IPV4 => s.read4(&inner),
        packet::IPV6 => s.read6(&inner),
        _ => return 0,
    };
    if read.is_ok() { id } else { 0 }
}

/// Whether it gets into a sandbox of this node, and straight; that is the scratch entry's target then.
#[inline(never)]
fn is_for_sandbox(id: NetworkId, s: &mut Scratch) -> bool {
    let Some(known) = network(id) else {
        return false;
    };
    let family = s.key.family;
    if is_discovery(s)
        || s.is_multicast()
        || is_own(known, family, &s.key.source)
        || nat::target(id, family, &s.key.source).is_some()
    {
        return false;
    }
    s.owner = nat::owner(family, &s.key.source).unwrap_or(0);
    let Some(target) = nat::target(id, family, &s.key.destination) else {
        return false;
    };
    let Some(endpoint) = nat::endpoint(target.ifindex) else {
        return false;
    };
    let may = match s.owner {
        0 => target.flags & TARGET_ROUTED != 0 || !is_outside(s),
        owner => owner == id,
    };
    s.target = *target;
    s.veth = target.ifindex;
    may && target.flags & TARGET_SHAPED_INGRESS == 0
        && flow::way_back(&nat::flow_key(s, id), s.place.fragment, endpoint).is_none()
}

/// Takes the outer header off, and the packet into the sandbox.
#[inline(never)]
fn enter(packet: &Packet<'_>, s: &Scratch) -> i32 {
    let Some(endpoint) = nat::endpoint(s.target.ifindex) else {
        return STACK;
    };
    let Ok([_, _, _, _, _, _, a, b, c, d, e, f, high, low]) = packet.bytes::<14>(FRAME) else {
        return STACK;
    };
    let flags = if s.is4() { 0 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV6.into() };
    let taken = -((CARRIED - packet.network()) as i32);
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_skb_adjust_room(packet.ctx().skb.skb, taken, BPF_ADJ_ROOM_MAC, flags) } != 0 {
        // Linux before 6.3 does not know that flag.
        return STACK;
    }
    let [g, h, i, j, k, l] = s.target.mac;
    let ethernet = [g, h, i, j, k, l, a, b, c, d, e, f, high, low];
    let entered = packet
        .store(0, &ethernet, 0)
        .and_then(|()| redirect::send(packet, endpoint, &Way::Neighbour(&s.target)));
    match entered {
        Ok(action) => action,
        Err(reason) => fold(reason),
    }
}
