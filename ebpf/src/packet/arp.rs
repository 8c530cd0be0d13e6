//! ARP for IPv4 over Ethernet (RFC 826).

use super::Packet;
use ebpf_common::DropReason;

/// An ARP packet.
#[repr(C, align(2))]
#[derive(Clone, Copy)]
pub(crate) struct Arp {
    kinds: [u8; 6],
    operation: [u8; 2],
    /// Who says so.
    pub(crate) sender_mac: [u8; 6],
    /// Which address they speak for.
    pub(crate) sender: [u8; 4],
    _target_mac: [u8; 6],
    /// Which address is asked for, or told of.
    pub(crate) target: [u8; 4],
}

impl Arp {
    #[inline(always)]
    pub(crate) fn of(packet: &Packet<'_>) -> Result<Self, DropReason> {
        let arp: Self = packet.load(packet.network())?;
        // Ethernet, IPv4, and the lengths of their addresses.
        if arp.kinds != [0, 1, 8, 0, 6, 4] {
            return Err(DropReason::Malformed);
        }
        Ok(arp)
    }

    #[inline(always)]
    pub(crate) fn is_request(&self) -> bool {
        self.operation == [0, 1]
    }
}
