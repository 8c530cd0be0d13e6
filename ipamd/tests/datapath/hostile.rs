//! Packets that nobody sends by accident: cut at every length, changed at every byte. Whatever they are, nothing crosses to
//! a neighbour that an independent look at the frame would not let through.

use crate::{
    frames::*,
    table::{Lab, Verdict::*},
};
use ebpf_common::DropReason::*;
use ipamd::datapath::{Direction, EndpointEntry};
use ipamd_api::MacAddr;
use std::net::{Ipv4Addr, Ipv6Addr};

const A4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 3);

/// What a test run takes at least of a packet of this kind (kernels since 6.18; older ones take one byte behind the Ethernet
/// header). Shorter ones go through a real veth, see `live`.
fn shortest(packet: &[u8]) -> usize {
    match packet[12..14] {
        [0x08, 0x00] => L3 + 20,
        [0x86, 0xdd] => L3 + 40,
        _ => L3 + 1,
    }
}

/// A good packet of every kind, from the first address pair to the second.
fn samples(
    macs: (MacAddr, MacAddr),
    v4: (Ipv4Addr, Ipv4Addr),
    v6: (Ipv6Addr, Ipv6Addr),
) -> Vec<(&'static str, Vec<u8>)> {
    let padded: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    let chain: &[(u8, &[u8])] =
        &[(0, padded), (60, padded), (43, &[0, 4, 0, 0, 0, 0, 0]), (44, &fragment6(0, false))];
    vec![
        ("TCP over IPv4", ipv4(macs, v4.0, v4.1, TCP, &tcp(4000, 80))),
        ("TCP behind IPv4 options", ipv4_with_options(macs, v4, TCP, &[1; 40], &tcp(4000, 80))),
        ("UDP over IPv4", ipv4(macs, v4.0, v4.1, UDP, &udp(4000, 53))),
        ("SCTP over IPv4", ipv4(macs, v4.0, v4.1, SCTP, &sctp(4000, 53))),
        ("ICMP", ipv4(macs, v4.0, v4.1, ICMP, &icmp(8, 7))),
        ("IPv4 fragment", fragment4(ipv4(macs, v4.0, v4.1, UDP, b"whatever"), 1480, true)),
        ("TCP over IPv6", ipv6(macs, v6, &[], TCP, &tcp(4000, 80))),
        ("TCP behind IPv6 headers", ipv6(macs, v6, chain, TCP, &tcp(4000, 80))),
        ("UDP over IPv6", ipv6(macs, v6, &[], UDP, &udp(4000, 53))),
        ("ICMPv6", ipv6(macs, v6, &[], ICMPV6, &icmp(128, 7))),
        (
            "neighbour solicitation",
            ipv6(macs, v6, &[], ICMPV6, &discovery(135, &[&v6.1.octets(), &link_layer(1, macs.1)])),
        ),
        ("IPv6 fragment", ipv6(macs, v6, &[(44, &fragment6(1448, true))], UDP, b"whatever")),
    ]
}

#[test]
fn a_packet_cut_anywhere_is_malformed() {
    let lab = Lab::new();
    let mut samples = samples(lab.to_b(), (A4, B4), (A6, B6));
    for (what, packet) in &samples {
        lab.one(Direction::FromPod, packet, Neighbour).unwrap_or_else(|e| panic!("{what}, whole: {e}"));
    }
    samples.push(("ARP", arp(lab.a.mac, 1, (lab.a.mac, A4), B4)));
    for (what, packet) in samples {
        for length in shortest(&packet)..packet.len() {
            let cut = lab.one(Direction::FromPod, &packet[..length], Drop(Malformed));
            cut.unwrap_or_else(|e| panic!("{what}, cut to {length}: {e}"));
        }
    }
}

#[test]
fn a_packet_cut_anywhere_is_nothing_to_remember() {
    let lab = Lab::new();
    for (what, packet) in samples(lab.stack_to_a(), (B4, A4), (B6, A6)) {
        for length in shortest(&packet)..packet.len() {
            let cut = lab.one(Direction::ToPod, &packet[..length], Stack);
            cut.unwrap_or_else(|e| panic!("{what}, cut to {length}: {e}"));
        }
    }
    // Nothing was remembered: answers go straight.
    for (what, packet) in samples(lab.to_b(), (A4, B4), (A6, B6)) {
        lab.one(Direction::FromPod, &packet, Neighbour).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

/// The cut is hidden: the length of the IP header says what is there.
#[test]
fn a_transport_header_cut_anywhere_is_malformed() {
    let lab = Lab::new();
    let rows: [(u8, Vec<u8>, usize); 4] = [
        (TCP, tcp(4000, 80), 20),
        (UDP, udp(4000, 53), 12),
        (SCTP, sctp(4000, 5060), 12),
        (ICMP, icmp(8, 7), 8),
    ];
    for (protocol, transport, least) in rows {
        for length in 0..=transport.len() {
            let verdict = if length < least { Drop(Malformed) } else { Neighbour };
            let v4 = ipv4(lab.to_b(), A4, B4, protocol, &transport[..length]);
            lab.one(Direction::FromPod, &v4, verdict)
                .unwrap_or_else(|e| panic!("{protocol} {length} IPv4: {e}"));
            let (protocol, transport) = match protocol {
                ICMP => (ICMPV6, icmp(128, 7)),
                _ => (protocol, transport.clone()),
            };
            let v6 = ipv6(lab.to_b(), (A6, B6), &[], protocol, &transport[..length]);
            lab.one(Direction::FromPod, &v6, verdict)
                .unwrap_or_else(|e| panic!("{protocol} {length} IPv6: {e}"));
        }
    }
}

/// Every byte of every sample takes many values; what crosses must be `a`'s own, for `b`, and consistent.
#[test]
fn no_changed_byte_makes_a_lie_cross() {
    let lab = Lab::new();
    let (mut crossed, mut stopped) = (0, 0);
    for (what, good) in samples(lab.to_b(), (A4, B4), (A6, B6)) {
        for position in 0..good.len() {
            for value in (0..=255).step_by(5).chain([1, 2, 4, 6, 8, 17, 44, 58, 60, 128, 135, 136]) {
                let mut packet = good.clone();
                packet[position] = value;
                let (action, _) = lab.run(Direction::FromPod, &packet);
                if Lab::is_redirect(action) {
                    crossed += 1;
                    assert!(
                        may_cross(&packet, &lab.a),
                        "{what} with {value} at {position} crossed: {packet:02x?}"
                    );
                } else {
                    stopped += 1;
                }
            }
        }
    }
    // Both must have happened often, or this has shown nothing.
    assert!(crossed > 5_000 && stopped > 5_000, "{crossed} crossed, {stopped} were stopped");
}

/// What must hold of a frame from `a` that may cross to `b`; written apart from the programs, on purpose.
fn may_cross(frame: &[u8], a: &EndpointEntry) -> bool {
    let word = |offset: usize| usize::from(u16::from_be_bytes([frame[offset], frame[offset + 1]]));
    let present = frame.len() - L3;
    let consistent = match word(12) {
        0x0800 => {
            let (header, total) = (usize::from(frame[L3] & 15) * 4, word(L3 + 2));
            let own = frame[L3 + 12..L3 + 16] == A4.octets() && frame[L3 + 16..L3 + 20] == B4.octets();
            own && frame[L3] >> 4 == 4 && header >= 20 && header <= total && total <= present
        }
        0x86dd => {
            // A question for `b` may go to its own group (RFC 4291, section 2.7.1).
            let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
            group[13..].copy_from_slice(&B6.octets()[13..]);
            let asks = frame[L3 + 6] == ICMPV6 && frame[L3 + 40] == 135 && frame[L3 + 24..L3 + 40] == group;
            let own = frame[L3 + 8..L3 + 24] == A6.octets()
                && (frame[L3 + 24..L3 + 40] == B6.octets() || asks && frame[L3 + 48..L3 + 64] == B6.octets());
            own && frame[L3] >> 4 == 6 && 40 + word(L3 + 4) <= present
        }
        _ => false,
    };
    consistent && frame[6..12] == a.mac.0
}
