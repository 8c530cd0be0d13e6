//! The way past the VXLAN device: the program makes the outer header itself and hands the packet to the uplink's neighbour.
//!
//! What the device would do in the host's stack (route, netfilter, neighbour, its own queue) is most of what a packet costs, so this is the
//! way of nearly all packets over IPv4. The header is the device's, byte by byte, and the kernel's buffer says what the device would
//! say of it: that packets of many segments are cut inside the tunnel, and where a checksum is to be filled in. Whatever is unusual
//! goes to the device: nothing is changed before it is known that the packet leaves here.

use crate::{
    drop::fold,
    maps::UNDERLAYS,
    packet::{Packet, UDP},
    route,
    scratch::Scratch,
};
use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_adjust_room},
};
use ebpf_common::{Endpoint, IPV4, OverlayConfig, checksum, mapped4};

/// The packet goes by the device. Neither an action nor a folded reason.
pub(super) const BY_DEVICE: i32 = 1 << 19;

/// Bytes of Ethernet.
const ETHERNET: u32 = 14;
/// Bytes that are put between the Ethernet header, which stays for the underlay, and the packet.
const ADDED: u32 = size_of::<Outer>() as u32;
const _: () = assert!(ADDED == 20 + 8 + 8 + 14);

/// TTL of the outer header, as [`super::tunnel`] asks of the device.
const TTL: u8 = 64;

/// What the kernel is told of the header: IPv4, UDP, and an Ethernet header before the packet; of many segments, each is as long as before.
const FLAGS: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
    | BPF_F_ADJ_ROOM_FIXED_GSO) as u64
    | (ETHERNET as u64) << 56;

/// IPv4 (RFC 791), UDP (RFC 768), VXLAN (RFC 7348, section 5) and Ethernet. In network order.
#[repr(C, align(2))]
struct Outer {
    version_and_words: u8,
    service: u8,
    total: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
    length: [u8; 2],
    no_checksum: [u8; 2],
    /// Only the bit that says that there is a network identifier.
    flags: [u8; 4],
    /// The lowest byte is not of it.
    vni: [u8; 4],
    inner_destination: [u8; 6],
    inner_source: [u8; 6],
    ethertype: [u8; 2],
}

impl Outer {
    #[inline(always)]
    fn new(
        vni: u32,
        ecn: u8,
        total: u16,
        source: [u8; 4],
        destination: [u8; 4],
        ports: [[u8; 2]; 2],
    ) -> Self {
        // SAFETY: a helper without arguments.
        let [a, b, ..] = unsafe { bpf_get_prandom_u32() }.to_ne_bytes();
        let mut outer = Self {
            version_and_words: 0x45,
            service: ecn,
            total: total.to_be_bytes(),
            // Where the way is narrower than believed the packet is cut, and its pieces have to be told apart.
            identification: [a, b],
            fragment: [0; 2],
            ttl: TTL,
            protocol: UDP,
            checksum: [0; 2],
            source,
            destination,
            source_port: ports[0],
            destination_port: ports[1],
            length: (total - 20).to_be_bytes(),
            no_checksum: [0; 2],
            flags: [8, 0, 0, 0],
            vni: (vni << 8).to_be_bytes(),
            inner_destination: [0; 6],
            inner_source: [0; 6],
            ethertype: [0; 2],
        };
        let [t, u] = outer.total;
        let begin = checksum::sum(
            checksum::total4([0x45, ecn, t, u]),
            checksum::sum(checksum::total4([a, b, 0, 0]), checksum::total4([TTL, UDP, 0, 0])),
        );
        let addresses = checksum::sum(checksum::total4(source), checksum::total4(destination));
        outer.checksum = checksum::finish(checksum::sum(begin, addresses));
        outer
    }
}

/// To a node by VXLAN, if by IPv4 and by a device of the underlay. `length`: bytes of the packet, or of each of its segments.
#[inline(always)]
pub(super) fn leave(
    packet: &Packet<'_>,
    device: &OverlayConfig,
    endpoint: &Endpoint,
    vni: u32,
    remote: &[u8; 16],
    length: u32,
    s: &mut Scratch,
) -> i32 {
    let [.., a, b, c, d] = *remote;
    let to = [a, b, c, d];
    // The fields that say how long it is take no more; of BIG TCP the device knows more.
    let total = packet.len() - ETHERNET + ADDED;
    if *remote != mapped4(to) || total > u16::MAX.into() {
        return BY_DEVICE;
    }
    let ports = [source_port(packet), device.port.to_be_bytes()];
    s.route = route::underlay(packet, device.ifindex, to, ports, length + ADDED);
    let Some(own) = own(s.route.ifindex) else {
        return BY_DEVICE;
    };
    // SAFETY: the context is the one that the kernel gave.
    let refused = unsafe { bpf_skb_adjust_room(packet.ctx().skb.skb, ADDED as i32, BPF_ADJ_ROOM_MAC, FLAGS) };
    // What is in a tunnel already, and segments of what is neither TCP nor UDP.
    if refused != 0 {
        return BY_DEVICE;
    }
    let family = s.key.family;
    let mut outer = Outer::new(vni, ecn(s), total as u16, own, to, ports);
    outer.inner_destination = super::derived_mac(family, &s.key.destination);
    outer.inner_source = endpoint.mac;
    outer.ethertype = if family == IPV4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    match packet.store(ETHERNET, &outer, BPF_F_RECOMPUTE_CSUM.into()) {
        Ok(()) => route::emit(packet, &s.route),
        Err(reason) => fold(reason),
    }
}

/// By the packet's flow, so that routers that share the load over several ways keep it on one, in the range of RFC 7348, section 5.
#[inline(always)]
fn source_port(packet: &Packet<'_>) -> [u8; 2] {
    // SAFETY: the context is the one that the kernel gave.
    let hash = unsafe { bpf_get_hash_recalc(packet.ctx().skb.skb) };
    (0xc000 | (hash ^ (hash >> 16)) as u16).to_be_bytes()
}

/// The ECN bits of the outer header: the packet's, but "congestion experienced" as "capable", as Linux does it (RFC 6040, appendix C).
#[inline(always)]
fn ecn(s: &Scratch) -> u8 {
    let inner = if s.is4() { s.ip4.service } else { s.ip6.flow[1] >> 4 } & 3;
    if inner == 3 { 2 } else { inner }
}

/// The address by which other nodes know this one, if it is at home on this device and packets may leave and come in past the VXLAN device there.
#[inline(always)]
pub(super) fn own(ifindex: u32) -> Option<[u8; 4]> {
    // SAFETY: entries are replaced as a whole and freed after a grace period.
    unsafe { UNDERLAYS.get(ifindex) }.copied()
}
