//! IPv6 headers (RFC 8200) and the chain of extension headers behind them.

use super::{Fragment, Packet};
use crate::maps::FORGOTTEN;
use ebpf_common::DropReason;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Header {
    /// Version, traffic class and flow label.
    first_word: [u8; 4],
    payload_length: [u8; 2],
    next: u8,
    hop_limit: u8,
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
    /// Traffic class and flow label, the version's bits zero.
    pub(crate) flow: [u8; 4],
    /// Hop limit.
    pub(crate) ttl: u8,
    /// What the fragments of a datagram have in common; zero if it is whole.
    pub(crate) identification: [u8; 4],
    /// Bytes of headers and payload, of all segments together if there are many.
    pub(crate) total: u32,
    /// Offset of what follows the extension headers.
    pub(crate) payload: u32,
    /// Bytes that follow the extension headers.
    pub(crate) length: u32,
}

/// Extension headers that are followed (RFC 8200 names six at most).
const MOST_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

impl Ipv6 {
    /// Bytes of a header without extensions.
    const LEAST: u32 = 40;

    #[inline(always)]
    pub(crate) fn of(packet: &Packet<'_>) -> Result<Self, DropReason> {
        let header: Header = packet.load(packet.network())?;
        let payload = packet.network() + Self::LEAST;
        // The load has shown that the packet is at least that long.
        let present = packet.len().wrapping_sub(payload);
        let length = match u32::from(u16::from_be_bytes(header.payload_length)) {
            // Above 64 KB the field has no room (BIG TCP). A jumbogram of somebody else is cut short by its zero.
            0 if packet.is_segmented() => present,
            length => length,
        };
        if header.first_word[0] >> 4 != 6 || present < length {
            return Err(DropReason::Malformed);
        }
        let mut this = Self {
            source: header.source,
            destination: header.destination,
            protocol: header.next,
            fragment: Fragment::Whole,
            flow: [
                header.first_word[0] & 0xf,
                header.first_word[1],
                header.first_word[2],
                header.first_word[3],
            ],
            ttl: header.hop_limit,
            identification: [0; 4],
            total: Self::LEAST + length,
            payload,
            length,
        };
        if !is_extension(this.protocol) {
            return Ok(this);
        }
        skip_chain(packet, this.protocol, payload, length)?;
        let end = Chain::recalled()?;
        this.protocol = end.protocol;
        this.payload = end.payload;
        this.length = end.length;
        this.fragment = end.fragment;
        this.identification = end.identification;
        Ok(this)
    }
}

/// A place in a chain of extension headers.
#[derive(Clone, Copy)]
struct Chain {
    protocol: u8,
    fragment: Fragment,
    identification: [u8; 4],
    payload: u32,
    length: u32,
}

impl Chain {
    /// Moves behind the chain.
    #[inline(always)]
    fn skip(mut self, packet: &Packet<'_>) -> Result<Self, DropReason> {
        for _ in 0..MOST_EXTENSIONS {
            if !self.skip_one(packet)? {
                return Ok(self);
            }
        }
        if is_extension(self.protocol) { Err(DropReason::ExtensionHeader) } else { Ok(self) }
    }

    /// Moves behind an extension header; `false` if there is none to move behind.
    #[inline(always)]
    fn skip_one(&mut self, packet: &Packet<'_>) -> Result<bool, DropReason> {
        if !is_extension(self.protocol) {
            return Ok(false);
        }
        let start: [u8; 8] = packet.bytes(self.payload)?;
        let size = extension_size(self.protocol, &start);
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
                self.identification = [start[4], start[5], start[6], start[7]];
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

/// Walks to the end of a chain, which [`Chain::recalled`] then tells.
#[inline(never)]
fn skip_chain(packet: &Packet<'_>, protocol: u8, payload: u32, length: u32) -> Result<(), DropReason> {
    let start = Chain { protocol, fragment: Fragment::Whole, identification: [0; 4], payload, length };
    let end = start.skip(packet)?;
    let fragment = match end.fragment {
        Fragment::Whole => 0,
        Fragment::First => 1,
        Fragment::Later => 2,
    };
    let identification = u32::from_ne_bytes(end.identification);
    commit([end.payload, end.length, end.protocol.into(), fragment, identification])
}

impl Chain {
    #[inline(always)]
    fn recalled() -> Result<Self, DropReason> {
        let [payload, length, protocol, fragment, identification] = recall()?;
        let fragment = match fragment {
            0 => Fragment::Whole,
            1 => Fragment::First,
            _ => Fragment::Later,
        };
        let identification = identification.to_ne_bytes();
        Ok(Self { protocol: protocol as u8, fragment, identification, payload, length })
    }
}

/// Writes numbers to this CPU's `FORGOTTEN`, for [`recall`]. What is read from a map can be anything, so the verifier forgets by
/// which of the many ways through the chain the program came: it would else follow the rest of the program once for each of
/// them, and older kernels give up at a million instructions.
#[inline(always)]
pub(crate) fn commit(numbers: [u32; 5]) -> Result<(), DropReason> {
    let slot = FORGOTTEN.get_ptr_mut(0).ok_or(DropReason::Rewrite)?.cast::<u32>();
    for (i, number) in numbers.into_iter().enumerate() {
        // SAFETY: the slot has room for five, belongs to this CPU, and no other run of a program comes in between.
        unsafe { slot.add(i).write_volatile(number) };
    }
    Ok(())
}

/// What [`commit`] wrote.
#[inline(always)]
pub(crate) fn recall() -> Result<[u32; 5], DropReason> {
    let slot = FORGOTTEN.get_ptr_mut(0).ok_or(DropReason::Rewrite)?.cast::<u32>();
    let mut numbers = [0; 5];
    for (i, number) in numbers.iter_mut().enumerate() {
        // SAFETY: as in `commit`.
        *number = unsafe { slot.add(i).read_volatile() };
    }
    Ok(numbers)
}

/// Bytes of an extension header that starts like this.
#[inline(always)]
pub(crate) fn extension_size(protocol: u8, start: &[u8; 8]) -> u32 {
    match protocol {
        FRAGMENT => 8,
        AUTHENTICATION => (u32::from(start[1]) + 2) * 4,
        _ => (u32::from(start[1]) + 1) * 8,
    }
}

/// Whether this is an extension header's number, and not a transport protocol's.
#[inline(always)]
pub(crate) fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}
