//! Frames built by hand, so that every field can be wrong on purpose. Checksums are left zero: no program looks at them.

use ipamd_api::MacAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// Offset of what follows the Ethernet header.
pub(crate) const L3: usize = 14;

/// An Ethernet frame.
pub(crate) fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0, &from.0, &ethertype.to_be_bytes()[..], payload].concat()
}

/// An IPv4 packet in a frame.
pub(crate) fn ipv4(
    macs: (MacAddr, MacAddr),
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    ipv4_with_options(macs, (from, to), protocol, &[], payload)
}

/// The same with options, a multiple of four bytes.
pub(crate) fn ipv4_with_options(
    (to_mac, from_mac): (MacAddr, MacAddr),
    (from, to): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let total = u16::try_from(words * 4 + payload.len()).unwrap();
    let mut header = vec![0x40 | u8::try_from(words).unwrap(), 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    ethernet(to_mac, from_mac, 0x0800, &[&header, options, payload].concat())
}

/// Makes an IPv4 frame a fragment: `position` in bytes, a multiple of eight.
pub(crate) fn fragment4(mut frame: Vec<u8>, position: u16, more: bool) -> Vec<u8> {
    let field = (position / 8) | if more { 0x2000 } else { 0 };
    frame[L3 + 6..L3 + 8].copy_from_slice(&field.to_be_bytes());
    frame
}

/// An IPv6 packet in a frame. `chain` are extension headers by type, without their first byte, the next type.
pub(crate) fn ipv6(
    (to_mac, from_mac): (MacAddr, MacAddr),
    (from, to): (Ipv6Addr, Ipv6Addr),
    chain: &[(u8, &[u8])],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
    let mut rest = Vec::new();
    for ((_, body), next) in chain.iter().zip(&kinds[1..]) {
        rest.push(*next);
        rest.extend(*body);
    }
    rest.extend(payload);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    packet.extend([kinds[0], 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(rest);
    ethernet(to_mac, from_mac, 0x86dd, &packet)
}

/// The body of a fragment header: `position` in bytes, a multiple of eight.
pub(crate) fn fragment6(position: u16, more: bool) -> [u8; 7] {
    let [a, b] = (position | u16::from(more)).to_be_bytes();
    [0, a, b, 0, 0, 0, 1]
}

/// A TCP segment.
pub(crate) fn tcp(from: u16, to: u16) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend([0; 8]);
    segment.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    segment.extend(b"data");
    segment
}

/// A UDP datagram.
pub(crate) fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut datagram = ports(from, to);
    datagram.extend([0, 12, 0, 0]);
    datagram.extend(b"data");
    datagram
}

/// An SCTP packet with one empty chunk.
pub(crate) fn sctp(from: u16, to: u16) -> Vec<u8> {
    let mut packet = ports(from, to);
    packet.extend([0; 12]);
    packet
}

/// An ICMP or ICMPv6 message; of an echo, `identifier` is what tells flows apart.
pub(crate) fn icmp(kind: u8, identifier: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend([0; 24]);
    message
}

/// Neighbour discovery: a type, four flag bytes, what follows them.
pub(crate) fn discovery(kind: u8, rest: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], rest.concat().as_slice()].concat()
}

/// A link-layer address option: 1 of the source, 2 of the target.
pub(crate) fn link_layer(kind: u8, mac: MacAddr) -> Vec<u8> {
    [&[kind, 1], &mac.0[..]].concat()
}

/// An ARP packet in a frame.
pub(crate) fn arp(
    from_mac: MacAddr,
    operation: u8,
    (sender_mac, sender): (MacAddr, Ipv4Addr),
    target: Ipv4Addr,
) -> Vec<u8> {
    let body =
        [&[0, 1, 8, 0, 6, 4, 0, operation], &sender_mac.0[..], &sender.octets(), &[0; 6], &target.octets()];
    ethernet(MacAddr([0xff; 6]), from_mac, 0x0806, &body.concat())
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}
