//! IPv6 headers (RFC 8200) and the chain of extension headers behind them.

use super::{ETHERNET, Fragment, Packet};
use ebpf_common::DropReason;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Header {
    version: u8,
    _class_and_flow: [u8; 3],
    payload_length: [u8; 2],
    next: u8,
    _hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// An IPv6 packet whose lengths agree with each other.
#[derive(Clone, Copy)]
pub(crate) struct Ipv6 {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    /// What follows the extension headers.
    pub(crate) protocol: u8,
    pub(crate) fragment: Fragment,
    /// Offset of what follows the extension headers.
    pub(crate) payload: u32,
    /// Bytes that follow the extension headers.
    pub(crate) length: u32,
}

/// Extension headers that are followed (RFC 8200 names six at most).
const MOST_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

impl Ipv6 {
    /// Bytes of a header without extensions.
    const LEAST: u32 = 40;

    #[inline(always)]
    pub(crate) fn of(packet: &Packet<'_>) -> Result<Self, DropReason> {
        let header: Header = packet.load(ETHERNET)?;
        let payload = ETHERNET + Self::LEAST;
        // The load has shown that the packet is at least that long.
        let present = packet.len().wrapping_sub(payload);
        let length = match u32::from(u16::from_be_bytes(header.payload_length)) {
            // Above 64 KB the field has no room (BIG TCP). A jumbogram of somebody else is cut short by its zero.
            0 if packet.is_segmented() => present,
            length => length,
        };
        if header.version >> 4 != 6 || present < length {
            return Err(DropReason::Malformed);
        }
        let mut this = Self {
            source: header.source,
            destination: header.destination,
            protocol: header.next,
            fragment: Fragment::Whole,
            payload,
            length,
        };
        for _ in 0..MOST_EXTENSIONS {
            if !this.skip_extension(packet)? {
                return Ok(this);
            }
        }
        if is_extension(this.protocol) { Err(DropReason::ExtensionHeader) } else { Ok(this) }
    }

    /// Moves behind an extension header; `false` if there is none to move behind.
    #[inline(always)]
    fn skip_extension(&mut self, packet: &Packet<'_>) -> Result<bool, DropReason> {
        if !is_extension(self.protocol) {
            return Ok(false);
        }
        let start: [u8; 8] = packet.bytes(self.payload)?;
        let size = match self.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(start[1]) + 2) * 4,
            _ => (u32::from(start[1]) + 1) * 8,
        };
        if self.length < size {
            return Err(DropReason::Malformed);
        }
        match self.protocol {
            // Type 0 lets a sender bounce packets between hosts (RFC 5095).
            ROUTING if start[2] == 0 => return Err(DropReason::ExtensionHeader),
            FRAGMENT => {
                let field = u16::from_be_bytes([start[2], start[3]]);
                let (position, more) = (u32::from(field & 0xfff8), field & 1 != 0);
                if position + (self.length - size) > 0xffff {
                    return Err(DropReason::Malformed);
                }
                self.fragment = match (position, more) {
                    (0, false) => self.fragment,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                };
            }
            _ => {}
        }
        self.protocol = start[0];
        self.payload += size;
        self.length -= size;
        // What a later fragment starts with is no header, whatever the chain says.
        Ok(self.fragment != Fragment::Later)
    }
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}
