//! Transport headers: as much of them as tells one flow from another.

use super::{Fragment, Packet};
use ebpf_common::DropReason;

/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Protocol number of TCP.
const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;
/// Protocol number of SCTP.
const SCTP: u8 = 132;

/// The transport header of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// Ports as on the wire; of an ICMP echo its identifier, in both.
    pub(crate) ports: Option<Ports>,
    /// Type of an ICMP or ICMPv6 message.
    pub(crate) icmp: Option<u8>,
    /// Flags of a TCP header (`TCP_*`); zero without one.
    pub(crate) tcp_flags: u8,
}

/// Source and destination port, network order.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) source: [u8; 2],
    pub(crate) destination: [u8; 2],
}

impl Transport {
    /// Zero throughout, not only where `None` says so: the verifier refuses a program that so much as moves a register which
    /// nothing was written to, and the compiler leaves what is behind a `None` unwritten.
    // SAFETY: zero is a `None` of both types (asserted below), and a number.
    const NONE: Self = unsafe { core::mem::MaybeUninit::zeroed().assume_init() };

    /// Reads the header of `protocol` at `offset`, of whose datagram `length` bytes are there.
    #[inline(always)]
    pub(crate) fn of(
        packet: &Packet<'_>,
        protocol: u8,
        offset: u32,
        length: u32,
        fragment: Fragment,
    ) -> Result<Self, DropReason> {
        if fragment == Fragment::Later || !matches!(protocol, ICMP | TCP | UDP | ICMPV6 | SCTP) {
            return Ok(Self::NONE);
        }
        // The shortest header of all; a fragment that has less of it hides the rest on purpose.
        if length < 8 {
            return Err(DropReason::Malformed);
        }
        let start: [u8; 8] = packet.bytes(offset)?;
        if matches!(protocol, ICMP | ICMPV6) {
            let echo = match protocol {
                ICMP => matches!(start[0], 0 | 8),
                _ => matches!(start[0], 128 | 129),
            };
            let mut this = Self::NONE;
            this.icmp = Some(start[0]);
            if echo {
                let identifier = [start[4], start[5]];
                this.ports = Some(Ports { source: identifier, destination: identifier });
            }
            return Ok(this);
        }
        // A first fragment need not have all of the header (it is not read then), a whole packet must.
        let [words, tcp_flags] =
            if protocol == TCP && length >= 14 { packet.bytes(offset + 12)? } else { [0; 2] };
        if fragment == Fragment::Whole {
            let least = match protocol {
                TCP => tcp_header(words)?,
                UDP => udp_length(packet, [start[4], start[5]]),
                _ => 12,
            };
            if length < least {
                return Err(DropReason::Malformed);
            }
        }
        let ports = Ports { source: [start[0], start[1]], destination: [start[2], start[3]] };
        let mut this = Self::NONE;
        this.ports = Some(ports);
        this.tcp_flags = tcp_flags;
        Ok(this)
    }
}

const _: () = assert!(Transport::NONE.ports.is_none() && Transport::NONE.icmp.is_none());

/// Bytes that a TCP header says it has.
#[inline(always)]
fn tcp_header(words: u8) -> Result<u32, DropReason> {
    let size = u32::from(words >> 4) * 4;
    if size < 20 { Err(DropReason::Malformed) } else { Ok(size) }
}

/// Bytes that a UDP header says its datagram has; more than there can be if it says less than its own size.
#[inline(always)]
fn udp_length(packet: &Packet<'_>, field: [u8; 2]) -> u32 {
    match u32::from(u16::from_be_bytes(field)) {
        // The field is that of a segment, or has no room (RFC 2675).
        _ if packet.is_segmented() => 8,
        0..8 => u32::MAX,
        length => length,
    }
}
