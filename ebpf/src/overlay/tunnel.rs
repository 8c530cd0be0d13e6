//! The outer header: what `bpf_skb_set_tunnel_key` is told, and what `bpf_skb_get_tunnel_key` tells.
//!
//! The outer header has a TTL of its own, no DSCP (a sandbox does not choose the underlay's class of service) and the inner
//! packet's ECN bits, which the kernel carries both ways (RFC 6040). Over IPv4 there is no UDP checksum (RFC 7348, section
//! 5), over IPv6 there is one. A router on the way may fragment it: slow, but no black hole.

use crate::{maps::TUNNELLED, packet::Packet};
use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_STOLEN},
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use ebpf_common::{DropReason, mapped4};

/// TTL of the outer header, as Linux gives to what it sends itself.
const TTL: u8 = 64;

/// `struct bpf_tunnel_key` (linux/bpf.h) up to what Linux 6.1 added at its end: a size that every later kernel takes too.
#[repr(C)]
struct Key {
    vni: u32,
    /// IPv4 as an integer in host order, in the first four bytes.
    remote: [u8; 16],
    service: u8,
    ttl: u8,
    extension: u16,
    label: u32,
}

impl Key {
    /// Zero throughout.
    const ZERO: Self = Self { vni: 0, remote: [0; 16], service: 0, ttl: 0, extension: 0, label: 0 };
}

const SIZE: u32 = size_of::<Key>() as u32;
const _: () = assert!(SIZE == 28);

/// Gives the packet an outer header for the VXLAN device to make: to `remote` (IPv4 written as IPv6), in the network `vni`.
#[inline(never)]
pub(super) fn wrap(packet: &Packet<'_>, vni: u32, remote: &[u8; 16]) -> Result<(), DropReason> {
    let [.., a, b, c, d] = *remote;
    let v4 = [a, b, c, d];
    let mut key = Key { vni, ttl: TTL, ..Key::ZERO };
    let flags = if *remote == mapped4(v4) {
        let [a, b, c, d] = u32::from_be_bytes(v4).to_ne_bytes();
        (key.remote[0], key.remote[1], key.remote[2], key.remote[3]) = (a, b, c, d);
        BPF_F_ZERO_CSUM_TX
    } else {
        key.remote = *remote;
        BPF_F_TUNINFO_IPV6
    };
    // SAFETY: the key has the size that is passed, and is only read.
    let failed = unsafe {
        bpf_skb_set_tunnel_key(packet.ctx().skb.skb.cast(), (&raw mut key).cast(), SIZE, flags.into())
    };
    if failed == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
}

/// The network that the outer header named, and who sent it (IPv4 written as IPv6); none if the packet had none.
#[inline(always)]
pub(super) fn unwrapped(packet: &Packet<'_>) -> Option<(u32, [u8; 16])> {
    let mut key = Key::ZERO;
    if look(packet, &mut key, 0) {
        let [a, b, c, d, ..] = key.remote;
        let v4 = u32::from_ne_bytes([a, b, c, d]).to_be_bytes();
        return Some((key.vni, mapped4(v4)));
    }
    // An outer header of the other family is an error to the helper.
    if look(packet, &mut key, BPF_F_TUNINFO_IPV6) { Some((key.vni, key.remote)) } else { None }
}

#[inline(always)]
fn look(packet: &Packet<'_>, key: &mut Key, flags: u32) -> bool {
    // SAFETY: the key has the size that is passed, and the kernel writes no more.
    let failed = unsafe {
        bpf_skb_get_tunnel_key(packet.ctx().skb.skb.cast(), (&raw mut *key).cast(), SIZE, flags.into())
    };
    failed == 0
}

/// A key with the address at the other end of the tunnel's packet, which a program that asks is told as the remote one.
#[repr(C)]
struct Arrived {
    key: Key,
    sender: [u8; 16],
}

const _: () = assert!(size_of::<Arrived>() == 44);

/// What came by a tunnel, made up: `cb` has the network identifier and the sender (IPv4 written as IPv6), in the machine's order the first and
/// in network order the second. Goes on to the program of [`TUNNELLED`].
#[inline(always)]
pub(crate) fn as_tunnelled(packet: &Packet<'_>) -> i32 {
    let ctx = packet.ctx();
    // SAFETY: the context is the one that the kernel gave.
    let [vni, a, b, c, d] = unsafe { (*ctx.skb.skb).cb };
    let words = [a, b, c, d];
    let mut arrived = Arrived { key: Key { vni, ..Key::ZERO }, sender: [0; 16] };
    let is4 = a == 0 && b == 0 && c == 0xffff_u32.to_be();
    // SAFETY: both are sixteen bytes.
    arrived.sender = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
    let flags = if is4 {
        let [e, f, g, h] = u32::from_be(d).to_ne_bytes();
        (arrived.sender[0], arrived.sender[1], arrived.sender[2], arrived.sender[3]) = (e, f, g, h);
        0
    } else {
        BPF_F_TUNINFO_IPV6
    };
    // SAFETY: the key has the size that is passed, and is only read.
    let failed = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb.cast(),
            (&raw mut arrived).cast(),
            size_of::<Arrived>() as u32,
            flags.into(),
        )
    };
    if failed == 0 {
        // SAFETY: the context is the one that the kernel gave.
        unsafe { TUNNELLED.tail_call(ctx, 0) };
    }
    // What none of the programs returns: nothing was asked.
    TC_ACT_STOLEN
}
