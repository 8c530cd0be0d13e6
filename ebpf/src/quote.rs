//! ICMP errors and the packets that they quote (RFC 792, RFC 4443): whose flow it is, and changing both alike.
//!
//! An error belongs to the flow of the packet that it quotes, so the quote is translated back with it: a sender looks for its own
//! addresses and ports in there. The quote may be cut anywhere behind eight bytes of its transport header. What it says of its own
//! length and checksums is not believed, nor repaired: those bytes change by differences, and the error's checksum by
//! the difference of all of them together.

use crate::{
    packet::{
        FRAGMENT, Fragment, ICMP, ICMPV6, Ipv4, Ipv6, Packet, Transport, UDP, commit, extension_size,
        is_extension, recall,
    },
    rewrite::{address6, addresses4, between4, checksum, pair_of, pair4},
};
use ebpf_common::{
    DropReason, IPV4, IPV6, SCTP, TCP, Tuple,
    checksum::{SAME, apply, apply_udp, difference2, difference16, sum},
    wide4,
};

/// Bytes of an ICMP or ICMPv6 error before the packet that it quotes.
const BEFORE: u32 = 8;

/// Extension headers that are followed in a quote.
const MOST_EXTENSIONS: u32 = 4;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy)]
pub(crate) struct Quoted {
    /// Its addresses and ports, in its own direction: against the error's.
    pub(crate) tuple: Tuple,
    /// Offset of its IP header.
    network: u32,
    /// Offset of its transport header.
    transport: u32,
    /// Bytes that are there of what follows its IP headers, at least eight.
    present: u32,
}

impl Quoted {
    const NONE: Self = Self { tuple: Tuple::ZERO, network: 0, transport: 0, present: 0 };
}

/// What an ICMP error quotes; none if the packet is no error, or quotes nothing that a flow could have sent.
#[inline(always)]
pub(crate) fn quoted4(
    packet: &Packet<'_>,
    ip: &Ipv4,
    transport: &Transport,
) -> Result<Option<Quoted>, DropReason> {
    // Not 5: a redirect tells a way, not a failure, and is for neighbours only.
    if ip.protocol != ICMP
        || ip.fragment != Fragment::Whole
        || !matches!(transport.icmp, Some(3 | 4 | 11 | 12))
    {
        return Ok(None);
    }
    let mut quoted = Quoted::NONE;
    let found = read4(packet, ip.payload + BEFORE, ip.payload + ip.length, &mut quoted);
    Ok(if found { Some(quoted) } else { None })
}

/// What an ICMPv6 error quotes; likewise.
#[inline(always)]
pub(crate) fn quoted6(
    packet: &Packet<'_>,
    ip: &Ipv6,
    transport: &Transport,
) -> Result<Option<Quoted>, DropReason> {
    if ip.protocol != ICMPV6 || ip.fragment != Fragment::Whole || !matches!(transport.icmp, Some(1..=4)) {
        return Ok(None);
    }
    let mut quoted = Quoted::NONE;
    let found = read6(packet, ip.payload + BEFORE, ip.payload + ip.length, &mut quoted);
    Ok(if found { Some(quoted) } else { None })
}

/// Makes the quoted packet one of `to`, and gives the error itself these addresses. They are no options, because the compiler may
/// keep the bytes of an empty one in a register that nothing has set, which the verifier refuses.
#[inline(always)]
pub(crate) fn rewrite4(
    packet: &Packet<'_>,
    ip: &Ipv4,
    quoted: &Quoted,
    to: &Tuple,
    source: [u8; 4],
    destination: [u8; 4],
) -> Result<(), DropReason> {
    requote4(packet, ip.payload, quoted, to)?;
    addresses4(packet, pair4(ip.source, ip.destination), pair4(source, destination)).map(|_| ())
}

/// Likewise of ICMPv6, with new addresses where there are any; its checksum covers the error's own addresses as well.
#[inline(always)]
pub(crate) fn rewrite6(
    packet: &Packet<'_>,
    ip: &Ipv6,
    quoted: &Quoted,
    to: &Tuple,
    source: &[u8; 16],
    destination: &[u8; 16],
) -> Result<(), DropReason> {
    requote6(packet, ip.payload, quoted, to)?;
    let source = address6(packet, packet.network() + 8, &ip.source, source)?;
    let destination = address6(packet, packet.network() + 24, &ip.destination, destination)?;
    checksum(packet, ip.payload + 2, sum(source, destination), SAME, 0)
}

/// Reads the IPv4 packet that is quoted between two offsets.
#[inline(never)]
fn read4(packet: &Packet<'_>, at: u32, end: u32, quoted: &mut Quoted) -> bool {
    if at + 20 > end {
        return false;
    }
    let Ok([version, _, _, _, _, _, high, low, _, protocol]) = packet.bytes::<10>(at) else { return false };
    let (Ok(source), Ok(destination)) = (packet.bytes(at + 12), packet.bytes(at + 16)) else { return false };
    let size = u32::from(version & 0xf) * 4;
    // A fragment without ports tells no flow.
    if version >> 4 != 4 || size < 20 || (high & 0x1f, low) != (0, 0) {
        return false;
    }
    quoted.tuple.source = wide4(source);
    quoted.tuple.destination = wide4(destination);
    quoted.tuple.family = IPV4;
    quoted.tuple.protocol = protocol;
    quoted.network = at;
    quoted.transport = at + size;
    read_ports(packet, end, quoted)
}

/// Reads the IPv6 packet that is quoted between two offsets.
#[inline(never)]
fn read6(packet: &Packet<'_>, at: u32, end: u32, quoted: &mut Quoted) -> bool {
    if at + 40 > end || !skip_quoted_chain(packet, at, end) {
        return false;
    }
    let Ok([transport, protocol, ..]) = recall() else { return false };
    quoted.tuple.family = IPV6;
    quoted.tuple.protocol = protocol as u8;
    quoted.network = at;
    quoted.transport = transport;
    packet.copy(at + 8, &mut quoted.tuple.source)
        && packet.copy(at + 24, &mut quoted.tuple.destination)
        && read_ports(packet, end, quoted)
}

/// Finds the transport header of a quoted IPv6 packet, which [`recall`] then tells.
#[inline(always)]
fn skip_quoted_chain(packet: &Packet<'_>, at: u32, end: u32) -> bool {
    let Ok([version, _, _, _, _, _, next, _]) = packet.bytes::<8>(at) else { return false };
    if version >> 4 != 6 {
        return false;
    }
    let (mut protocol, mut transport) = (next, at + 40);
    for _ in 0..MOST_EXTENSIONS {
        if !is_extension(protocol) {
            break;
        }
        if transport + 8 > end {
            return false;
        }
        let Ok(start) = packet.bytes::<8>(transport) else { return false };
        if protocol == FRAGMENT && (start[2], start[3] & 0xf8) != (0, 0) {
            return false;
        }
        transport += extension_size(protocol, &start);
        protocol = start[0];
    }
    !is_extension(protocol) && commit([transport, protocol.into(), 0, 0, 0]).is_ok()
}

/// Fills in ports or identifier. Errors about anything of ICMP but echoes are nobody's.
#[inline(always)]
fn read_ports(packet: &Packet<'_>, end: u32, quoted: &mut Quoted) -> bool {
    if quoted.transport + 8 > end {
        return false;
    }
    quoted.present = end - quoted.transport;
    let Ok([a, b, c, d, e, f, _, _]) = packet.bytes::<8>(quoted.transport) else { return false };
    let (source, destination) = match (quoted.tuple.protocol, a) {
        (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => ([e, f], [e, f]),
        (ICMP | ICMPV6, _) => return false,
        (TCP | UDP | SCTP, _) => ([a, b], [c, d]),
        _ => ([0; 2], [0; 2]),
    };
    quoted.tuple.source_port = source;
    quoted.tuple.destination_port = destination;
    true
}

#[inline(never)]
fn requote4(packet: &Packet<'_>, icmp: u32, quoted: &Quoted, to: &Tuple) -> Result<(), DropReason> {
    let (from, into) = (pair_of(&quoted.tuple), pair_of(to));
    let mut pseudo = SAME;
    if from != into {
        pseudo = between4(from, into);
        // The header's checksum makes up for the addresses: the error's checksum sees no difference.
        let field = packet.bytes(quoted.network + 10)?;
        packet.store(quoted.network + 10, &apply(field, pseudo), 0)?;
        packet.store(quoted.network + 12, &into, 0)?;
    }
    let change = requote_transport(packet, quoted, to, pseudo)?;
    checksum(packet, icmp + 2, SAME, change, 0)
}

#[inline(never)]
fn requote6(packet: &Packet<'_>, icmp: u32, quoted: &Quoted, to: &Tuple) -> Result<(), DropReason> {
    let from = &quoted.tuple;
    let mut pseudo = SAME;
    if from.source != to.source {
        packet.store(quoted.network + 8, &to.source, 0)?;
        pseudo = difference16(from.source, to.source);
    }
    if from.destination != to.destination {
        packet.store(quoted.network + 24, &to.destination, 0)?;
        pseudo = sum(pseudo, difference16(from.destination, to.destination));
    }
    let change = requote_transport(packet, quoted, to, pseudo)?;
    checksum(packet, icmp + 2, SAME, sum(pseudo, change), 0)
}

/// Changes ports or identifier of the quoted packet, and its checksum if that is there. The result is what the error's checksum
/// must make up for.
#[inline(always)]
fn requote_transport(
    packet: &Packet<'_>,
    quoted: &Quoted,
    to: &Tuple,
    pseudo: u32,
) -> Result<u32, DropReason> {
    let from = &quoted.tuple;
    let (at, protocol) = (quoted.transport, from.protocol);
    let source = difference2(from.source_port, to.source_port);
    let mut ports = SAME;
    if from.source_port != to.source_port || from.destination_port != to.destination_port {
        ports = match protocol {
            TCP | UDP => {
                let ([a, b], [c, d]) = (to.source_port, to.destination_port);
                packet.store(at, &[a, b, c, d], 0)?;
                sum(source, difference2(from.destination_port, to.destination_port))
            }
            ICMP | ICMPV6 => {
                packet.store(at + 4, &to.source_port, 0)?;
                source
            }
            // Ports of SCTP are never changed, and others have none.
            _ => return Err(DropReason::PortsExhausted),
        };
    }
    let (offset, covered) = match protocol {
        TCP => (16, sum(pseudo, ports)),
        UDP => (6, sum(pseudo, ports)),
        ICMP => (2, ports),
        ICMPV6 => (2, sum(pseudo, ports)),
        _ => return Ok(SAME),
    };
    if covered == SAME || quoted.present < offset + 2 {
        return Ok(ports);
    }
    let old: [u8; 2] = packet.bytes(at + offset)?;
    let new = if protocol == UDP { apply_udp(old, covered) } else { apply(old, covered) };
    packet.store(at + offset, &new, 0)?;
    Ok(sum(ports, difference2(old, new)))
}
