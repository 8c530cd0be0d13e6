//! IPv4 headers (RFC 791), options skipped.

use super::{Fragment, Packet};
use ebpf_common::DropReason;

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Header {
    version_and_words: u8,
    service: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    _checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// An IPv4 packet whose lengths agree with each other.
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) protocol: u8,
    pub(crate) fragment: Fragment,
    /// Type of service.
    pub(crate) service: u8,
    pub(crate) ttl: u8,
    /// What the fragments of a datagram have in common, in the first two bytes.
    pub(crate) identification: [u8; 4],
    /// Bytes of header and payload, of all segments together if there are many.
    pub(crate) total: u32,
    /// Offset of what follows the header.
    pub(crate) payload: u32,
    /// Bytes that follow the header.
    pub(crate) length: u32,
}

impl Ipv4 {
    /// Bytes of a header without options.
    const LEAST: u32 = 20;

    #[inline(always)]
    pub(crate) fn of(packet: &Packet<'_>) -> Result<Self, DropReason> {
        let header: Header = packet.load(packet.network())?;
        let header_length = u32::from(header.version_and_words & 0xf) * 4;
        // The load has shown that the packet is longer than the link-layer header.
        let present = packet.len().wrapping_sub(packet.network());
        let total = match u32::from(u16::from_be_bytes(header.total_length)) {
            // Above 64 KB the field has no room (BIG TCP).
            0 if packet.is_segmented() => present,
            total => total,
        };
        if header.version_and_words >> 4 != 4
            || header_length < Self::LEAST
            || total < header_length
            || present < total
        {
            return Err(DropReason::Malformed);
        }
        let field = u16::from_be_bytes(header.fragment);
        let (position, more) = (u32::from(field & 0x1fff) * 8, field & 0x2000 != 0);
        let length = total - header_length;
        let fragment = match (position, more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            // A fragment that would end behind the largest datagram there can be.
            _ if position + length > 0xffff => return Err(DropReason::Malformed),
            _ => Fragment::Later,
        };
        Ok(Self {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            fragment,
            service: header.service,
            ttl: header.ttl,
            identification: [header.identification[0], header.identification[1], 0, 0],
            total,
            payload: packet.network() + header_length,
            length,
        })
    }
}
