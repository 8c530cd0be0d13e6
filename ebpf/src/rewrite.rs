//! Changing addresses and ports of a packet, and every checksum that covers them.
//!
//! Checksums change by differences only, so a wrong one stays wrong, and by the kernel's helpers only, because the packet may not
//! have its checksum yet or may carry the sum of all its bytes beside it:
//!
//! - `CHECKSUM_PARTIAL` (what a local sender leaves to the device): the field holds the sum of the pseudo header. Only a
//!   difference of addresses belongs in there; `BPF_F_PSEUDO_HDR` tells `bpf_l4_csum_replace` which one is.
//! - `CHECKSUM_COMPLETE` (what a device has summed up): `skb->csum` is the sum of everything from the IP header on. A port and
//!   the checksum change by opposite amounts, so the sum stays. An IPv4 address and the header's checksum as well, and the transport
//!   checksum's own change is what `BPF_F_PSEUDO_HDR` takes out of `skb->csum`. IPv6 has no header checksum: there the address
//!   and the transport checksum make up for each other, and `BPF_F_PSEUDO_HDR` takes out too much. Storing
//!   the address with `BPF_F_RECOMPUTE_CSUM` adds the same amount again. (Linux 6.16 has `BPF_F_IPV6` instead; the floor is 6.1.)
//!
//! A difference of a whole packet is one helper call, whatever changed.

use crate::packet::{Fragment, ICMP, ICMPV6, Packet, UDP};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use ebpf_common::{
    DropReason, SCTP, TCP, Tuple,
    checksum::{SAME, difference2, difference4, difference16, sum},
};

/// Protocols whose checksum covers the addresses, and which are not translated.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// Where the transport header of a packet is.
pub(crate) struct Place {
    /// Its offset; zero: there is none, or none to change.
    pub(crate) transport: u32,
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) fragment: Fragment,
}

/// Makes an IPv4 packet of `from` one of `to`. Of an ICMP echo, both ports of each are the identifier.
#[inline(never)]
pub(crate) fn rewrite4(packet: &Packet<'_>, at: &Place, from: &Tuple, to: &Tuple) -> Result<(), DropReason> {
    let ports = changed_ports(at, from, to)?;
    let pseudo = addresses4(packet, pair_of(from), pair_of(to))?;
    transport(packet, at, to, pseudo, ports)
}

/// Makes an IPv6 packet of `from` one of `to`; likewise.
#[inline(never)]
pub(crate) fn rewrite6(packet: &Packet<'_>, at: &Place, from: &Tuple, to: &Tuple) -> Result<(), DropReason> {
    let ports = changed_ports(at, from, to)?;
    let source = address6(packet, packet.network() + 8, &from.source, &to.source)?;
    let destination = address6(packet, packet.network() + 24, &from.destination, &to.destination)?;
    transport(packet, at, to, sum(source, destination), ports)
}

/// Source and destination as they follow each other in an IPv4 header, in memory order.
#[inline(always)]
pub(crate) fn pair4(source: [u8; 4], destination: [u8; 4]) -> [u32; 2] {
    [u32::from_ne_bytes(source), u32::from_ne_bytes(destination)]
}

/// Likewise of a tuple.
#[inline(always)]
pub(crate) fn pair_of(tuple: &Tuple) -> [u32; 2] {
    let ([a, b, c, d, ..], [e, f, g, h, ..]) = (tuple.source, tuple.destination);
    pair4([a, b, c, d], [e, f, g, h])
}

/// The difference between two pairs of IPv4 addresses.
#[inline(always)]
pub(crate) fn between4(from: [u32; 2], to: [u32; 2]) -> u32 {
    let of = |i: usize| difference4(from[i].to_ne_bytes(), to[i].to_ne_bytes());
    sum(of(0), of(1))
}

/// Changes the addresses of an IPv4 header; the result is their difference, [`SAME`] if there is none.
#[inline(always)]
pub(crate) fn addresses4(packet: &Packet<'_>, from: [u32; 2], to: [u32; 2]) -> Result<u32, DropReason> {
    if from == to {
        return Ok(SAME);
    }
    let difference = between4(from, to);
    let checksum = packet.network() as usize + 10;
    packet.ctx().l3_csum_replace(checksum, 0, difference.into(), 0).map_err(|_| DropReason::Rewrite)?;
    packet.store(packet.network() + 12, &to, 0)?;
    Ok(difference)
}

/// Changes one address of an IPv6 header; the result is the difference.
#[inline(always)]
pub(crate) fn address6(
    packet: &Packet<'_>,
    offset: u32,
    from: &[u8; 16],
    to: &[u8; 16],
) -> Result<u32, DropReason> {
    if from == to {
        return Ok(SAME);
    }
    packet.store(offset, to, BPF_F_RECOMPUTE_CSUM.into())?;
    Ok(difference16(*from, *to))
}

/// Changes a transport checksum; `pseudo` is the difference of the pseudo header, `rest` that of the transport header.
#[inline(always)]
pub(crate) fn checksum(
    packet: &Packet<'_>,
    offset: u32,
    pseudo: u32,
    rest: u32,
    flags: u32,
) -> Result<(), DropReason> {
    for (difference, flags) in [(pseudo, flags | BPF_F_PSEUDO_HDR), (rest, flags)] {
        if difference != SAME {
            packet
                .ctx()
                .l4_csum_replace(offset as usize, 0, difference.into(), flags.into())
                .map_err(|_| DropReason::Rewrite)?;
        }
    }
    Ok(())
}

/// The difference of the ports or identifiers, [`SAME`] if there is none or it is none of this packet's.
#[inline(always)]
fn changed_ports(at: &Place, from: &Tuple, to: &Tuple) -> Result<u32, DropReason> {
    let same = from.source_port == to.source_port && from.destination_port == to.destination_port;
    if same || at.transport == 0 || at.fragment == Fragment::Later {
        return Ok(SAME);
    }
    let source = difference2(from.source_port, to.source_port);
    match at.protocol {
        // The CRC covers all of the packet: it would have to be read to the end.
        SCTP => Err(DropReason::PortsExhausted),
        ICMP | ICMPV6 => Ok(source),
        _ => Ok(sum(source, difference2(from.destination_port, to.destination_port))),
    }
}

#[inline(always)]
fn transport(packet: &Packet<'_>, at: &Place, to: &Tuple, pseudo: u32, ports: u32) -> Result<(), DropReason> {
    if at.transport == 0 || at.fragment == Fragment::Later {
        return Ok(());
    }
    let both = || {
        let ([a, b], [c, d]) = (to.source_port, to.destination_port);
        [a, b, c, d]
    };
    match at.protocol {
        TCP => {
            checksum(packet, at.transport + 16, pseudo, ports, 0)?;
            if ports != SAME { packet.store(at.transport, &both(), 0) } else { Ok(()) }
        }
        UDP => {
            let field: [u8; 2] = packet.bytes(at.transport + 6)?;
            let flags = if field == [0; 2] {
                // No checksum makes up for the ports in `skb->csum`.
                BPF_F_RECOMPUTE_CSUM
            } else {
                checksum(packet, at.transport + 6, pseudo, ports, BPF_F_MARK_MANGLED_0)?;
                0
            };
            if ports != SAME { packet.store(at.transport, &both(), flags.into()) } else { Ok(()) }
        }
        ICMP | ICMPV6 => {
            let pseudo = if at.protocol == ICMP { SAME } else { pseudo };
            checksum(packet, at.transport + 2, pseudo, ports, 0)?;
            if ports != SAME { packet.store(at.transport + 4, &to.source_port, 0) } else { Ok(()) }
        }
        DCCP | UDP_LITE if pseudo != SAME => Err(DropReason::Rewrite),
        _ => Ok(()),
    }
}
