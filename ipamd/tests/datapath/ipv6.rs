//! IPv6 and neighbour discovery: who may send what, and where it goes.

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY6},
    run::Skb,
    table::{Lab, Row, Verdict::*},
};
use ebpf_common::{DropReason::*, link_local_of};
use ipamd::datapath::{Datapath, Direction, EndpointEntry, Shaping};
use ipamd_api::MacAddr;
use std::net::Ipv6Addr;

const A: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
const B: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 3);
const NOBODY: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x99);
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 3);
const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const LISTENERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Router alert for MLD (RFC 2711) and padding: the rest of a hop-by-hop header of 8 bytes.
const ROUTER_ALERT: [u8; 7] = [0, 5, 2, 0, 0, 1, 0];
/// The rest of an extension header of 8 bytes, with padding.
const PADDED: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

fn link_local(mac: MacAddr) -> Ipv6Addr {
    link_local_of(mac.0).into()
}

#[test]
fn a_container_speaks_with_its_own_addresses() {
    let lab = Lab::new();
    let data = tcp(4000, 80);
    let from = |source| ipv6(lab.to_gateway(), (source, OUTSIDE), &[], TCP, &data);
    let own = link_local(lab.a.mac);
    lab.a_sends(&[
        ("own", from(A), Stack),
        ("the neighbour's", from(B), Drop(SpoofedIp)),
        ("the gateway's", from(GATEWAY6), Drop(SpoofedIp)),
        ("another network's", from(STRANGER), Drop(SpoofedIp)),
        ("loopback", from(Ipv6Addr::LOCALHOST), Drop(SpoofedIp)),
        ("none", from(ANY), Drop(SpoofedIp)),
        ("v4-mapped", from("::ffff:10.1.0.2".parse().unwrap()), Drop(SpoofedIp)),
        ("own link-local", ipv6(lab.to_b(), (own, link_local(lab.b.mac)), &[], TCP, &data), Stack),
        ("the neighbour's link-local", from(link_local(lab.b.mac)), Drop(SpoofedIp)),
        ("a made-up link-local", from("fe80::1".parse().unwrap()), Drop(SpoofedIp)),
        (
            "the neighbour's MAC",
            ipv6((GATEWAY_MAC, lab.b.mac), (A, OUTSIDE), &[], TCP, &data),
            Drop(SpoofedMac),
        ),
    ]);
    lab.node.datapath.attach(&EndpointEntry { ipv6: None, ..lab.a.clone() }).unwrap();
    lab.a_sends(&[
        ("what it had", from(A), Drop(SpoofedIp)),
        ("zero is no address of its own", ipv6(lab.to_b(), (ANY, B), &[], TCP, &data), Drop(SpoofedIp)),
        ("own link-local", ipv6(lab.to_b(), (own, ALL_NODES), &[], UDP, &udp(1, 2)), Stack),
    ]);
}

#[test]
fn neighbour_discovery_announces_itself_only() {
    let lab = Lab::new();
    let (mac, other) = (lab.a.mac, lab.b.mac);
    let own = link_local(mac);
    let send = |from, to, kind, rest: &[&[u8]]| {
        ipv6((MacAddr([0x33, 0x33, 0, 0, 0, 1]), mac), (from, to), &[], ICMPV6, &discovery(kind, rest))
    };
    let (a, b) = (A.octets(), B.octets());
    let (source, target) = (link_layer(1, mac), link_layer(2, mac));
    let lie = link_layer(1, other);
    let node_of = |last| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, last);
    let report =
        |from| ipv6(lab.to_b(), (from, LISTENERS), &[(HOP_BY_HOP, &ROUTER_ALERT)], ICMPV6, &icmp(143, 0));
    lab.a_sends(&[
        ("duplicate address detection", send(ANY, node_of(2), 135, &[&a]), Stack),
        ("of the link-local address", send(ANY, node_of(2), 135, &[&own.octets()]), Stack),
        ("solicitation", send(A, node_of(3), 135, &[&b, &source]), Neighbour),
        ("solicitation from link-local", send(own, node_of(3), 135, &[&b, &source]), Neighbour),
        ("solicitation without option", send(A, node_of(3), 135, &[&b]), Neighbour),
        ("solicitation with a nonce", send(A, node_of(3), 135, &[&b, &[14, 1, 1, 2, 3, 4, 5, 6]]), Neighbour),
        ("solicitation of the gateway", send(A, node_of(1), 135, &[&GATEWAY6.octets(), &source]), Stack),
        ("solicitation of nobody", send(A, node_of(99), 135, &[&link_local(other).octets(), &source]), Stack),
        ("unreachability detection", send(A, B, 135, &[&b, &source]), Neighbour),
        ("solicitation with another's MAC", send(A, node_of(3), 135, &[&b, &lie]), Drop(SpoofedNeighbour)),
        ("solicitation from nowhere to one", send(ANY, B, 135, &[&b]), Drop(SpoofedIp)),
        ("advertisement", send(A, ALL_NODES, 136, &[&a, &target]), Stack),
        ("advertisement of link-local", send(own, ALL_NODES, 136, &[&own.octets(), &target]), Stack),
        ("advertisement to the neighbour", send(A, B, 136, &[&a, &target]), Neighbour),
        ("advertisement of the neighbour", send(A, ALL_NODES, 136, &[&b, &target]), Drop(SpoofedNeighbour)),
        ("of the gateway", send(A, ALL_NODES, 136, &[&GATEWAY6.octets(), &target]), Drop(SpoofedNeighbour)),
        (
            "advertisement with another's MAC",
            send(A, ALL_NODES, 136, &[&a, &link_layer(2, other)]),
            Drop(SpoofedNeighbour),
        ),
        (
            "advertisement with a long MAC",
            send(A, ALL_NODES, 136, &[&a, &[2, 2], &[0; 14]]),
            Drop(SpoofedNeighbour),
        ),
        ("advertisement from nowhere", send(ANY, ALL_NODES, 136, &[&a]), Drop(SpoofedIp)),
        ("advertisement cut short", send(A, ALL_NODES, 136, &[&a[..15]]), Drop(Malformed)),
        ("router solicitation", send(own, ALL_ROUTERS, 133, &[&source]), Stack),
        ("router solicitation from nowhere", send(ANY, ALL_ROUTERS, 133, &[]), Stack),
        (
            "router solicitation with another's MAC",
            send(own, ALL_ROUTERS, 133, &[&lie]),
            Drop(SpoofedNeighbour),
        ),
        ("router advertisement", send(own, ALL_NODES, 134, &[&[0; 8]]), Drop(SpoofedNeighbour)),
        ("redirect", send(own, B, 137, &[&a, &b]), Drop(SpoofedNeighbour)),
        ("listener report from nowhere", report(ANY), Stack),
        ("listener report", report(own), Stack),
        ("echo from nowhere", send(ANY, ALL_NODES, 128, &[]), Drop(SpoofedIp)),
        (
            "advertisement behind an extension header",
            ipv6(lab.to_b(), (A, ALL_NODES), &[(DESTINATION, &PADDED)], ICMPV6, &discovery(136, &[&b])),
            Drop(SpoofedNeighbour),
        ),
        (
            "advertisement in a fragment that is all of it",
            ipv6(
                lab.to_b(),
                (A, ALL_NODES),
                &[(FRAGMENT, &fragment6(0, false))],
                ICMPV6,
                &discovery(136, &[&b]),
            ),
            Drop(SpoofedNeighbour),
        ),
        (
            "advertisement in a first fragment",
            ipv6(
                lab.to_b(),
                (A, ALL_NODES),
                &[(FRAGMENT, &fragment6(0, true))],
                ICMPV6,
                &discovery(136, &[&a]),
            ),
            Drop(Malformed),
        ),
    ]);
}

#[test]
fn destinations_lead_to_the_neighbour_the_stack_or_nowhere() {
    let lab = Lab::new();
    let data = tcp(4000, 80);
    let to = |destination| ipv6(lab.to_gateway(), (A, destination), &[], TCP, &data);
    let direct = |protocol, payload: &[u8]| ipv6(lab.to_b(), (A, B), &[], protocol, payload);
    let rows: Vec<Row<'_>> = vec![
        ("neighbour by its MAC", direct(TCP, &data), Neighbour),
        ("neighbour by the gateway's MAC", to(B), Neighbour),
        ("neighbour, UDP", direct(UDP, &udp(1, 2)), Neighbour),
        ("neighbour, echo", direct(ICMPV6, &icmp(128, 7)), Neighbour),
        ("neighbour, too big", direct(ICMPV6, &icmp(2, 0)), Neighbour),
        ("neighbour, ESP", direct(50, &[0; 16]), Neighbour),
        ("neighbour, no next header", direct(59, &[]), Neighbour),
        ("nobody", to(NOBODY), Stack),
        ("itself", to(A), Stack),
        ("gateway", to(GATEWAY6), Stack),
        ("outside", to(OUTSIDE), Stack),
        ("multicast", to(ALL_NODES), Stack),
        ("wide multicast", to("ff0e::1".parse().unwrap()), Stack),
        ("link-local", to(link_local(lab.b.mac)), Stack),
        ("another network", to(STRANGER), Drop(Isolated)),
        ("another network's gateway", to("fd02::1".parse().unwrap()), Drop(Isolated)),
    ];
    lab.a_sends(&rows);
    lab.node.datapath.attach(&EndpointEntry { internal: true, ..lab.a.clone() }).unwrap();
    lab.a_sends(&[
        ("internal: neighbour", to(B), Neighbour),
        ("internal: gateway", to(GATEWAY6), Stack),
        ("internal: link-local", to(link_local(lab.b.mac)), Stack),
        ("internal: outside", to(OUTSIDE), Drop(Internal)),
        ("internal: another network", to(STRANGER), Drop(Isolated)),
    ]);
}

#[test]
fn extension_headers_are_followed_so_far() {
    let lab = Lab::new();
    let send =
        |chain: &[(u8, &[u8])], protocol, payload: &[u8]| ipv6(lab.to_b(), (A, B), chain, protocol, payload);
    let data = tcp(4000, 80);
    let padded = |count| vec![(DESTINATION, &PADDED[..]); count];
    let long = [&[31][..], &[1, 249], &[0; 249], &[1, 1, 0]].concat();
    let authentication = [&[4, 0, 0][..], &[0; 20]].concat();
    let cut = |frame: Vec<u8>, length: u16| {
        let mut frame = frame;
        frame[L3 + 4..L3 + 6].copy_from_slice(&length.to_be_bytes());
        frame
    };
    lab.a_sends(&[
        (
            "one of each",
            send(
                &[
                    (HOP_BY_HOP, &ROUTER_ALERT),
                    (DESTINATION, &PADDED),
                    (ROUTING, &[0, 4, 0, 0, 0, 0, 0]),
                    (AUTHENTICATION, &authentication),
                    (FRAGMENT, &fragment6(0, false)),
                    (DESTINATION, &PADDED),
                ],
                TCP,
                &data,
            ),
            Neighbour,
        ),
        ("six", send(&padded(6), TCP, &data), Neighbour),
        ("seven", send(&padded(7), TCP, &data), Drop(ExtensionHeader)),
        ("a hundred", send(&padded(100), TCP, &data), Drop(ExtensionHeader)),
        ("a long one", send(&[(DESTINATION, &long)], TCP, &data), Neighbour),
        ("one cut by the payload length", cut(send(&padded(1), TCP, &data), 4), Drop(Malformed)),
        (
            "one that says it is longer than all",
            send(&[(DESTINATION, &[200, 1, 4, 0, 0, 0, 0])], TCP, &data),
            Drop(Malformed),
        ),
        (
            "authentication cut short",
            send(&[(AUTHENTICATION, &[60, 0, 0, 0, 0, 0, 0])], TCP, &data),
            Drop(Malformed),
        ),
        (
            "routing header of type 0",
            send(&[(ROUTING, &[0, 0, 1, 0, 0, 0, 0])], TCP, &data),
            Drop(ExtensionHeader),
        ),
        (
            "the same behind others",
            send(&[(DESTINATION, &PADDED), (ROUTING, &[0, 0, 0, 0, 0, 0, 0])], TCP, &data),
            Drop(ExtensionHeader),
        ),
        ("segment routing", send(&[(ROUTING, &[0, 4, 0, 0, 0, 0, 0])], TCP, &data), Neighbour),
        ("nothing behind a header", send(&[(DESTINATION, &PADDED)], TCP, &[]), Drop(Malformed)),
        ("no next header behind one", send(&[(DESTINATION, &PADDED)], 59, &[]), Neighbour),
        (
            "TCP header cut short behind one",
            send(&[(DESTINATION, &PADDED)], TCP, &data[..19]),
            Drop(Malformed),
        ),
        ("jumbogram", cut(send(&[(HOP_BY_HOP, &[0, 0xc2, 4, 0, 1, 0, 0])], TCP, &data), 0), Drop(Malformed)),
        ("jumbogram without option", cut(send(&[], TCP, &data), 0), Drop(Malformed)),
        ("payload length above the frame's", cut(send(&[], TCP, &data), 25), Drop(Malformed)),
        ("payload length of 65535", cut(send(&[], TCP, &data), 65535), Drop(Malformed)),
    ]);
    let mut version = send(&[], TCP, &data);
    version[L3] = 0x40;
    lab.a_sends(&[("version 4 in IPv6", version, Drop(Malformed))]);
}

#[test]
fn a_packet_of_many_segments_may_have_no_length() {
    let lab = Lab::new();
    let data = [tcp(1, 2), vec![0; 1400]].concat();
    for chain in [&[][..], &[(HOP_BY_HOP, &[0, 0xc2, 4, 0, 1, 0, 0][..])]] {
        let mut packet = ipv6(lab.to_b(), (A, B), chain, TCP, &data);
        packet[L3 + 4..L3 + 6].copy_from_slice(&[0, 0]);
        let (action, _) =
            lab.node.run(Direction::FromPod, Skb { segment: 700, ..Skb::at(lab.a.host_ifindex) }, &packet);
        assert!(Lab::is_redirect(action));
    }
}

#[test]
fn fragments_go_as_one() {
    let lab = Lab::new();
    let send = |position, more, payload: &[u8]| {
        ipv6(lab.to_b(), (A, B), &[(FRAGMENT, &fragment6(position, more))], UDP, payload)
    };
    lab.a_sends(&[
        ("first", send(0, true, &udp(4000, 53)), Neighbour),
        ("middle", send(1448, true, b"whatever"), Neighbour),
        ("last", send(2896, false, b"whatever"), Neighbour),
        ("all of it", send(0, false, &udp(4000, 53)), Neighbour),
        ("first one too short for a header", send(0, true, &[0; 7]), Drop(Malformed)),
        ("beyond 64 KB", send(65528, false, b"whatever"), Drop(Malformed)),
        (
            "later one that claims more headers",
            ipv6(lab.to_b(), (A, B), &[(FRAGMENT, &fragment6(8, false))], DESTINATION, &[0xff; 8]),
            Neighbour,
        ),
        (
            "spoofed",
            ipv6(lab.to_b(), (B, A), &[(FRAGMENT, &fragment6(8, false))], UDP, b"whatever"),
            Drop(SpoofedIp),
        ),
    ]);
}

#[test]
fn flows_out_of_the_stack_are_answered_through_it() {
    let lab = Lab::new();
    let dialled = |protocol, payload: &[u8]| ipv6(lab.stack_to_a(), (B, A), &[], protocol, payload);
    let answer = |protocol, payload: &[u8]| ipv6(lab.to_b(), (A, B), &[], protocol, payload);
    let fragment = |position, more, payload: &[u8]| {
        ipv6(lab.to_b(), (A, B), &[(FRAGMENT, &fragment6(position, more))], UDP, payload)
    };
    lab.a_sends(&[("TCP before", answer(TCP, &tcp(80, 4000)), Neighbour)]);
    lab.a_gets(&[
        ("TCP", dialled(TCP, &tcp(4000, 80)), Stack),
        (
            "UDP behind an extension header",
            ipv6(lab.stack_to_a(), (B, A), &[(DESTINATION, &PADDED)], UDP, &udp(4000, 53)),
            Stack,
        ),
        ("echo request", dialled(ICMPV6, &icmp(128, 77)), Stack),
        ("gateway", ipv6(lab.stack_to_a(), (GATEWAY6, A), &[], TCP, &tcp(1, 2)), Stack),
        ("outside", ipv6(lab.stack_to_a(), (OUTSIDE, A), &[], TCP, &tcp(1, 2)), Stack),
        ("another network", ipv6(lab.stack_to_a(), (STRANGER, A), &[], TCP, &tcp(1, 2)), Drop(Isolated)),
        (
            "redirect",
            ipv6(lab.stack_to_a(), (link_local(GATEWAY_MAC), A), &[], ICMPV6, &icmp(137, 0)),
            Drop(Redirect),
        ),
        (
            "router advertisement",
            ipv6(lab.stack_to_a(), (link_local(GATEWAY_MAC), ALL_NODES), &[], ICMPV6, &icmp(134, 0)),
            Stack,
        ),
        ("neighbour by the bridge", ipv6((lab.a.mac, lab.b.mac), (B, A), &[], TCP, &tcp(5000, 80)), Stack),
        (
            "more headers than are followed",
            ipv6(lab.stack_to_a(), (B, A), &[(DESTINATION, &PADDED[..]); 7], TCP, &tcp(6000, 80)),
            Stack,
        ),
    ]);
    lab.a_sends(&[
        ("TCP", answer(TCP, &tcp(80, 4000)), Gateway),
        ("UDP", answer(UDP, &udp(53, 4000)), Gateway),
        ("echo reply", answer(ICMPV6, &icmp(129, 77)), Gateway),
        ("port unreachable", answer(ICMPV6, &icmp(1, 0)), Gateway),
        ("first fragment", fragment(0, true, &udp(53, 4000)), Gateway),
        ("later fragment", fragment(1448, false, b"whatever"), Gateway),
        ("another port", answer(TCP, &tcp(80, 4001)), Neighbour),
        ("what a neighbour dialled by the bridge", answer(TCP, &tcp(80, 5000)), Stack),
        ("another echo", answer(ICMPV6, &icmp(129, 78)), Neighbour),
        ("to somebody else", ipv6(lab.to_gateway(), (A, NOBODY), &[], TCP, &tcp(80, 4000)), Stack),
    ]);
}

#[test]
fn shaped_endpoints_are_reached_through_their_qdisc() {
    let lab = Lab::new();
    let packet = ipv6(lab.to_gateway(), (A, B), &[], TCP, &tcp(80, 4000));
    lab.a_sends(&[("nobody shaped", packet.clone(), Neighbour)]);
    let shaping = Shaping { ingress: true, egress: false };
    lab.node.datapath.set_shaping(lab.b.host_ifindex, shaping).unwrap();
    lab.a_sends(&[("receiver shaped", packet.clone(), Qdisc)]);
    let shaping = Shaping { ingress: false, egress: true };
    lab.node.datapath.set_shaping(lab.a.host_ifindex, shaping).unwrap();
    lab.a_sends(&[("sender shaped", packet, Stack)]);
}
