//! Bounded parsing: headers are copied out of the packet, linear or not, and every length is checked against the one above it.
//!
//! Invariant: an offset that leaves this module lies inside the packet, and so does everything a length says. What
//! contradicts itself is [`DropReason::Malformed`].

mod arp;
mod ipv4;
mod ipv6;
mod transport;

pub(crate) use arp::Arp;
pub(crate) use ipv4::Ipv4;
pub(crate) use ipv6::{FRAGMENT, Ipv6, commit, extension_size, is_extension, recall};
pub(crate) use transport::{ICMP, ICMPV6, Ports, Transport, UDP};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use ebpf_common::DropReason;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// `ETH_P_ARP`.
pub(crate) const ARP: u16 = 0x0806;
/// `ETH_P_IP`.
pub(crate) const IPV4: u16 = 0x0800;
/// `ETH_P_IPV6`.
pub(crate) const IPV6: u16 = 0x86dd;
/// `ETH_P_8021Q`.
const VLAN: u16 = 0x8100;
/// `ETH_P_8021AD`.
const SERVICE_VLAN: u16 = 0x88a8;

/// See [`Packet::mark_delivered`].
const DELIVERED: u32 = 0x5746;

/// Where a packet is in its datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// It is all of it.
    Whole,
    /// It has the transport header, more follow.
    First,
    /// It has no transport header.
    Later,
}

/// An Ethernet header.
#[repr(C, align(2))]
#[derive(Clone, Copy)]
pub(crate) struct Ethernet {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    ethertype: [u8; 2],
}

impl Ethernet {
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }

    /// Whether a VLAN tag follows the addresses.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        matches!(self.ethertype(), VLAN | SERVICE_VLAN)
    }
}

/// A packet under examination.
pub(crate) struct Packet<'a> {
    ctx: &'a TcContext,
    network: u32,
}

impl<'a> Packet<'a> {
    /// A packet on a device with Ethernet headers.
    #[inline(always)]
    pub(crate) fn of(ctx: &'a TcContext) -> Self {
        Self { ctx, network: ETHERNET }
    }

    /// A packet on a device without link-layer headers (tun, wireguard).
    #[inline(always)]
    pub(crate) fn of_l3(ctx: &'a TcContext) -> Self {
        Self { ctx, network: 0 }
    }

    /// The packet that this one carries, whose IP header is at this offset.
    #[inline(always)]
    pub(crate) fn carried(&self, network: u32) -> Self {
        Self { ctx: self.ctx, network }
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub(crate) fn network(&self) -> u32 {
        self.network
    }

    /// The kernel's own buffer, for helpers.
    #[inline(always)]
    pub(crate) fn ctx(&self) -> &'a TcContext {
        self.ctx
    }

    /// Bytes, the link-layer header included.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.ctx.len()
    }

    /// The link that the program is attached to.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.skb().ifindex
    }

    /// The device by which it came to this host; zero: it began here.
    #[inline(always)]
    pub(crate) fn came_by(&self) -> u32 {
        self.skb().ingress_ifindex
    }

    /// Whether the kernel has taken a VLAN tag out of the packet.
    #[inline(always)]
    pub(crate) fn has_untagged(&self) -> bool {
        self.skb().vlan_present != 0
    }

    /// Whether the packet will be cut into segments later; then its length fields may say less than it has.
    #[inline(always)]
    pub(crate) fn is_segmented(&self) -> bool {
        self.skb().gso_size != 0
    }

    /// Bytes of transport payload in each of the segments that the packet will be cut into; zero if it will not be.
    #[inline(always)]
    pub(crate) fn segment(&self) -> u32 {
        self.skb().gso_size
    }

    /// Marks the packet as delivered by Weft itself, for the program at the egress of the device that it goes to. The traffic
    /// control index belongs to the packet's way through this host's filters; nothing else reads it.
    #[inline(always)]
    pub(crate) fn mark_delivered(&self) {
        // SAFETY: as in `skb`; a program may write this field.
        unsafe { (*self.ctx.skb.skb).tc_index = DELIVERED };
    }

    /// Whether another program of Weft sent the packet here, and not the bridge or the stack.
    #[inline(always)]
    pub(crate) fn is_delivered(&self) -> bool {
        self.skb().tc_index == DELIVERED
    }

    /// Takes such a mark off a packet that comes from another host, or a sandbox that is one itself.
    #[inline(always)]
    pub(crate) fn unmark(&self) {
        // SAFETY: as in `mark_delivered`.
        unsafe { (*self.ctx.skb.skb).tc_index = 0 };
    }

    /// What the kernel takes it for: an ethertype.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u16 {
        u16::from_be(self.skb().protocol as u16)
    }

    #[inline(always)]
    pub(crate) fn ethernet(&self) -> Result<Ethernet, DropReason> {
        self.load(0)
    }

    /// Copies `T` out of the packet. Only for types of which every bit pattern is valid.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: u32) -> Result<T, DropReason> {
        self.ctx.load(offset as usize).map_err(|_| DropReason::Malformed)
    }

    /// Copies `N` bytes out of the packet.
    #[inline(always)]
    pub(crate) fn bytes<const N: usize>(&self, offset: u32) -> Result<[u8; N], DropReason> {
        self.load(offset)
    }

    /// Copies bytes out of the packet to where they are wanted, which costs no stack; `false` if there are not as many.
    #[inline(always)]
    pub(crate) fn copy<const N: usize>(&self, offset: u32, to: &mut [u8; N]) -> bool {
        // SAFETY: the kernel writes `N` bytes to where there are `N`.
        unsafe { bpf_skb_load_bytes(self.ctx.skb.skb.cast(), offset, to.as_mut_ptr().cast(), N as u32) == 0 }
    }

    /// Overwrites bytes of the packet; `flags` as of `bpf_skb_store_bytes`.
    #[inline(always)]
    pub(crate) fn store<T>(&self, offset: u32, value: &T, flags: u64) -> Result<(), DropReason> {
        self.ctx.store(offset as usize, value, flags).map_err(|_| DropReason::Rewrite)
    }

    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel hands a program a context that lives as long as the run.
        unsafe { &*self.ctx.skb.skb }
    }
}

/// The same number, of which the compiler knows nothing: so the verifier (of Linux 6.1 above all) sees the bounds of this register, and not of another one that
/// the compiler knows to be equal.
#[inline(always)]
pub(crate) fn opaque(number: u64) -> u64 {
    #[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "only the barrier writes it"))]
    let mut number = number;
    #[cfg(target_arch = "bpf")]
    // SAFETY: nothing is done. An instruction all the same: the kernel refuses two lines of source for one.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) number);
    }
    number
}
