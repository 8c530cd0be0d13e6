//! IPv4 and ARP: who may send what, and where it goes.

use crate::{
    frames::*,
    node::{GATEWAY_MAC, GATEWAY4},
    run::Skb,
    table::{Lab, Verdict::*},
};
use ebpf_common::DropReason::*;
use ipamd::datapath::{Datapath, Direction, EndpointEntry, Shaping};
use ipamd_api::MacAddr;
use std::net::Ipv4Addr;

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 99);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 3);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const BROADCAST: MacAddr = MacAddr([0xff; 6]);

#[test]
fn arp_speaks_for_itself() {
    let lab = Lab::new();
    let (own, other) = (lab.a.mac, lab.b.mac);
    let with = |offset: usize, byte: u8| {
        let mut frame = arp(own, 1, (own, A), B);
        frame[L3 + offset] = byte;
        frame
    };
    lab.a_sends(&[
        ("request", arp(own, 1, (own, A), B), Stack),
        ("reply", arp(own, 2, (own, A), B), Stack),
        ("announcement", arp(own, 1, (own, A), A), Stack),
        ("probe", arp(own, 1, (own, ANY), A), Stack),
        ("reply of nobody", arp(own, 2, (own, ANY), A), Drop(SpoofedNeighbour)),
        ("for the neighbour", arp(own, 2, (own, B), A), Drop(SpoofedNeighbour)),
        ("for the gateway", arp(own, 2, (own, GATEWAY4), B), Drop(SpoofedNeighbour)),
        ("with another's MAC inside", arp(own, 2, (other, A), B), Drop(SpoofedNeighbour)),
        ("in another's frame", arp(other, 2, (own, A), B), Drop(SpoofedMac)),
        ("of no Ethernet", with(1, 6), Drop(Malformed)),
        ("for IPv6", [with(2, 0x86)].concat(), Drop(Malformed)),
        ("MACs of 8 bytes", with(4, 8), Drop(Malformed)),
        ("addresses of 16 bytes", with(5, 16), Drop(Malformed)),
    ]);
}

#[test]
fn a_container_speaks_with_its_own_addresses() {
    let lab = Lab::new();
    let data = tcp(4000, 80);
    let from = |source: Ipv4Addr| ipv4(lab.to_gateway(), source, OUTSIDE, TCP, &data);
    let frame = |ethertype| ethernet(GATEWAY_MAC, lab.a.mac, ethertype, &[0; 46]);
    let tagged = |ethertype| {
        let mut frame = ethernet(GATEWAY_MAC, lab.a.mac, ethertype, &[0, 5]);
        frame.extend(&from(A)[12..]);
        frame
    };
    let dhcp = |source, to, sport, dport| ipv4((BROADCAST, lab.a.mac), source, to, UDP, &udp(sport, dport));
    lab.a_sends(&[
        ("own", from(A), Stack),
        ("the neighbour's", from(B), Drop(SpoofedIp)),
        ("the gateway's", from(GATEWAY4), Drop(SpoofedIp)),
        ("another network's", from(STRANGER), Drop(SpoofedIp)),
        ("loopback", from(Ipv4Addr::LOCALHOST), Drop(SpoofedIp)),
        ("link-local", from(Ipv4Addr::new(169, 254, 1, 1)), Drop(SpoofedIp)),
        ("none", from(ANY), Drop(SpoofedIp)),
        ("another MAC", ipv4((lab.b.mac, GATEWAY_MAC), A, B, TCP, &data), Drop(SpoofedMac)),
        ("DHCP discovery", dhcp(ANY, Ipv4Addr::BROADCAST, 68, 67), Stack),
        ("DHCP renewal", dhcp(A, GATEWAY4, 68, 67), Stack),
        ("DHCP as a server without an address", dhcp(ANY, Ipv4Addr::BROADCAST, 67, 68), Drop(SpoofedIp)),
        ("no address, other ports", dhcp(ANY, Ipv4Addr::BROADCAST, 68, 53), Drop(SpoofedIp)),
        ("DHCP in fragments", fragment4(dhcp(ANY, Ipv4Addr::BROADCAST, 68, 67), 0, true), Drop(SpoofedIp)),
        ("VLAN", tagged(0x8100), Drop(VlanTag)),
        ("service VLAN", tagged(0x88a8), Drop(VlanTag)),
        ("LLDP", frame(0x88cc), Drop(Ethertype)),
        ("MPLS", frame(0x8847), Drop(Ethertype)),
        ("802.3 length", frame(0x0026), Drop(Ethertype)),
    ]);
}

#[test]
fn destinations_lead_to_the_neighbour_the_stack_or_nowhere() {
    let lab = Lab::new();
    let data = tcp(4000, 80);
    let to = |destination| ipv4(lab.to_gateway(), A, destination, TCP, &data);
    let direct = |protocol, payload: &[u8]| ipv4(lab.to_b(), A, B, protocol, payload);
    lab.a_sends(&[
        ("neighbour by its MAC", direct(TCP, &data), Neighbour),
        ("neighbour by the gateway's MAC", to(B), Neighbour),
        ("neighbour, UDP", direct(UDP, &udp(1, 2)), Neighbour),
        ("neighbour, SCTP", direct(SCTP, &sctp(1, 2)), Neighbour),
        ("neighbour, echo", direct(ICMP, &icmp(8, 7)), Neighbour),
        ("neighbour, ICMP error", direct(ICMP, &icmp(3, 0)), Neighbour),
        ("neighbour, GRE", direct(47, &[0; 4]), Neighbour),
        ("neighbour, nothing at all", direct(255, &[]), Neighbour),
        ("nobody", to(NOBODY), Stack),
        ("the network's broadcast", to(Ipv4Addr::new(10, 1, 255, 255)), Stack),
        ("itself", to(A), Stack),
        ("gateway", to(GATEWAY4), Stack),
        ("outside", to(OUTSIDE), Stack),
        ("multicast", to(Ipv4Addr::new(224, 0, 0, 251)), Stack),
        ("broadcast", to(Ipv4Addr::BROADCAST), Stack),
        ("link-local", to(Ipv4Addr::new(169, 254, 169, 254)), Stack),
        ("another network", to(STRANGER), Drop(Isolated)),
        ("another network's gateway", to(Ipv4Addr::new(10, 2, 0, 1)), Drop(Isolated)),
        ("another network by the neighbour's MAC", ipv4(lab.to_b(), A, STRANGER, TCP, &data), Drop(Isolated)),
    ]);
}

#[test]
fn an_internal_network_has_no_outside() {
    let lab = Lab::new();
    lab.node.datapath.attach(&EndpointEntry { internal: true, ..lab.a.clone() }).unwrap();
    let to = |destination| ipv4(lab.to_gateway(), A, destination, TCP, &tcp(4000, 80));
    lab.a_sends(&[
        ("neighbour", to(B), Neighbour),
        ("gateway", to(GATEWAY4), Stack),
        ("multicast", to(Ipv4Addr::new(224, 0, 0, 251)), Stack),
        ("outside", to(OUTSIDE), Drop(Internal)),
        ("the cloud's metadata", to(Ipv4Addr::new(169, 254, 169, 254)), Drop(Internal)),
        ("another network", to(STRANGER), Drop(Isolated)),
    ]);
}

#[test]
fn an_endpoint_without_ipv4_has_no_ipv4_source() {
    let lab = Lab::new();
    lab.node.datapath.attach(&EndpointEntry { ipv4: None, ..lab.a.clone() }).unwrap();
    lab.a_sends(&[
        ("zero is no address of its own", ipv4(lab.to_b(), ANY, B, TCP, &tcp(1, 2)), Drop(SpoofedIp)),
        ("what it had", ipv4(lab.to_b(), A, B, TCP, &tcp(1, 2)), Drop(SpoofedIp)),
        ("ARP", arp(lab.a.mac, 2, (lab.a.mac, ANY), B), Drop(SpoofedNeighbour)),
        ("DHCP", ipv4((BROADCAST, lab.a.mac), ANY, Ipv4Addr::BROADCAST, UDP, &udp(68, 67)), Stack),
    ]);
}

#[test]
fn headers_must_agree_with_each_other() {
    let lab = Lab::new();
    let good = ipv4(lab.to_b(), A, B, TCP, &tcp(4000, 80));
    let with = |offset: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[L3 + offset..][..bytes.len()].copy_from_slice(bytes);
        frame
    };
    let options = |bytes: &[u8]| ipv4_with_options(lab.to_b(), (A, B), TCP, bytes, &tcp(4000, 80));
    let padded = [good.as_slice(), &[0; 9]].concat();
    let mut udp_long = ipv4(lab.to_b(), A, B, UDP, &udp(1, 2));
    udp_long[L3 + 20 + 5] = 13;
    let mut udp_short = udp_long.clone();
    udp_short[L3 + 20 + 5] = 7;
    lab.a_sends(&[
        ("good", good.clone(), Neighbour),
        ("padding behind it", padded, Neighbour),
        ("version 6 in IPv4", with(0, &[0x65]), Drop(Malformed)),
        ("version 0", with(0, &[0x05]), Drop(Malformed)),
        ("header of 4 words", with(0, &[0x44]), Drop(Malformed)),
        ("header of 0 words", with(0, &[0x40]), Drop(Malformed)),
        ("header longer than the packet", with(0, &[0x4f]), Drop(Malformed)),
        ("total length of 0", with(2, &[0, 0]), Drop(Malformed)),
        ("total length below the header's", with(2, &[0, 19]), Drop(Malformed)),
        ("total length above the frame's", with(2, &[0, 45]), Drop(Malformed)),
        ("total length of 65535", with(2, &[255, 255]), Drop(Malformed)),
        ("total length within the TCP header", with(2, &[0, 39]), Drop(Malformed)),
        ("no options", options(&[]), Neighbour),
        ("one word of options", options(&[1, 1, 1, 0]), Neighbour),
        ("all options there can be", options(&[1; 40]), Neighbour),
        ("loose source route", options(&[131, 7, 4, 10, 2, 0, 3, 0]), Neighbour),
        ("TCP data offset of 4 words", with(20 + 12, &[0x40]), Drop(Malformed)),
        ("TCP data offset of 0", with(20 + 12, &[0x00]), Drop(Malformed)),
        ("TCP data offset behind the end", with(20 + 12, &[0xf0]), Drop(Malformed)),
        ("UDP length above the packet's", udp_long, Drop(Malformed)),
        ("UDP length below its header", udp_short, Drop(Malformed)),
        ("ICMP of 7 bytes", ipv4(lab.to_b(), A, B, ICMP, &[8, 0, 0, 0, 0, 0, 0]), Drop(Malformed)),
        ("SCTP of 11 bytes", ipv4(lab.to_b(), A, B, SCTP, &[0; 11]), Drop(Malformed)),
    ]);
}

#[test]
fn fragments_go_as_one() {
    let lab = Lab::new();
    let whole = ipv4(lab.to_b(), A, B, UDP, &udp(4000, 53));
    let rest = ipv4(lab.to_b(), A, B, UDP, b"whatever");
    lab.a_sends(&[
        ("first", fragment4(whole.clone(), 0, true), Neighbour),
        ("middle", fragment4(rest.clone(), 1480, true), Neighbour),
        ("last", fragment4(rest.clone(), 2960, false), Neighbour),
        (
            "later one of TCP with a silly offset",
            fragment4(ipv4(lab.to_b(), A, B, TCP, &[0; 16]), 8, false),
            Neighbour,
        ),
        (
            "first one too short for a header",
            fragment4(ipv4(lab.to_b(), A, B, TCP, &[0; 7]), 0, true),
            Drop(Malformed),
        ),
        ("beyond 64 KB", fragment4(rest.clone(), 65528, false), Drop(Malformed)),
        ("spoofed", fragment4(ipv4(lab.to_b(), B, A, UDP, b"whatever"), 1480, false), Drop(SpoofedIp)),
        (
            "to another network",
            fragment4(ipv4(lab.to_b(), A, STRANGER, UDP, b"whatever"), 1480, false),
            Drop(Isolated),
        ),
    ]);
}

/// kube-proxy in short: `b` dials a service, the stack makes it `b` → `a`, and the answer must go back through the stack.
#[test]
fn flows_out_of_the_stack_are_answered_through_it() {
    let lab = Lab::new();
    let dialled = |protocol, payload: &[u8]| ipv4(lab.stack_to_a(), B, A, protocol, payload);
    let answer = |protocol, payload: &[u8]| ipv4(lab.to_b(), A, B, protocol, payload);
    lab.a_sends(&[
        ("TCP before", answer(TCP, &tcp(80, 4000)), Neighbour),
        ("UDP before", answer(UDP, &udp(53, 4000)), Neighbour),
        ("ICMP error before", answer(ICMP, &icmp(3, 0)), Neighbour),
    ]);
    lab.a_gets(&[
        ("TCP", dialled(TCP, &tcp(4000, 80)), Stack),
        ("TCP again", dialled(TCP, &tcp(4000, 80)), Stack),
        ("UDP", dialled(UDP, &udp(4000, 53)), Stack),
        ("SCTP", dialled(SCTP, &sctp(4000, 5060)), Stack),
        ("echo request", dialled(ICMP, &icmp(8, 77)), Stack),
        (
            "TCP with options",
            ipv4_with_options(lab.stack_to_a(), (B, A), TCP, &[1; 12], &tcp(4009, 80)),
            Stack,
        ),
    ]);
    lab.a_sends(&[
        ("TCP", answer(TCP, &tcp(80, 4000)), Gateway),
        ("TCP with options", ipv4_with_options(lab.to_b(), (A, B), TCP, &[1; 4], &tcp(80, 4000)), Gateway),
        ("TCP to the port behind options", answer(TCP, &tcp(80, 4009)), Gateway),
        ("UDP", answer(UDP, &udp(53, 4000)), Gateway),
        ("SCTP", answer(SCTP, &sctp(5060, 4000)), Gateway),
        ("echo reply", answer(ICMP, &icmp(0, 77)), Gateway),
        ("port unreachable", answer(ICMP, &icmp(3, 0)), Gateway),
        ("first fragment", fragment4(answer(UDP, &udp(53, 4000)), 0, true), Gateway),
        ("later fragment", fragment4(answer(UDP, b"whatever"), 1480, false), Gateway),
        ("first fragment of another flow of these two", fragment4(answer(UDP, &udp(1, 2)), 0, true), Gateway),
        ("another port", answer(TCP, &tcp(80, 4001)), Neighbour),
        ("another protocol, same ports", answer(UDP, &udp(80, 4000)), Neighbour),
        ("the same direction", answer(TCP, &tcp(4000, 80)), Neighbour),
        ("another echo", answer(ICMP, &icmp(0, 78)), Neighbour),
        ("spoofed answer", ipv4(lab.to_b(), B, A, TCP, &tcp(4000, 80)), Drop(SpoofedIp)),
    ]);
}

#[test]
fn fragments_out_of_the_stack_are_remembered() {
    let lab = Lab::new();
    let request = ipv4(lab.stack_to_a(), B, A, UDP, &udp(4000, 53));
    lab.a_gets(&[("first fragment", fragment4(request, 0, true), Stack)]);
    lab.a_sends(&[
        ("whole answer", ipv4(lab.to_b(), A, B, UDP, &udp(53, 4000)), Gateway),
        ("fragment of an answer", fragment4(ipv4(lab.to_b(), A, B, UDP, b"whatever"), 8, false), Gateway),
    ]);
    let lab = Lab::new();
    let rest = ipv4(lab.stack_to_a(), B, A, UDP, b"whatever");
    lab.a_gets(&[("later fragment", fragment4(rest, 8, false), Stack)]);
    lab.a_sends(&[
        ("whole answer", ipv4(lab.to_b(), A, B, UDP, &udp(53, 4000)), Neighbour),
        ("fragment of an answer", fragment4(ipv4(lab.to_b(), A, B, UDP, b"whatever"), 8, false), Gateway),
    ]);
}

#[test]
fn neighbours_that_the_host_brought_are_remembered_with_their_way() {
    let lab = Lab::new();
    let in_from = |source: Ipv4Addr| ipv4(lab.stack_to_a(), source, A, TCP, &tcp(4000, 80));
    lab.a_gets(&[
        ("neighbour, by the bridge", ipv4((lab.a.mac, lab.b.mac), B, A, TCP, &tcp(4000, 80)), Stack),
        ("gateway", in_from(GATEWAY4), Stack),
        ("outside", in_from(OUTSIDE), Stack),
        ("another network, which should not get here", in_from(STRANGER), Drop(Isolated)),
        ("ICMP redirect", ipv4(lab.stack_to_a(), GATEWAY4, A, ICMP, &icmp(5, 0)), Drop(Redirect)),
        (
            "ICMP redirect of a neighbour, by the bridge",
            ipv4((lab.a.mac, lab.b.mac), B, A, ICMP, &icmp(5, 0)),
            Stack,
        ),
        ("ARP", arp(GATEWAY_MAC, 2, (GATEWAY_MAC, GATEWAY4), A), Stack),
        ("VLAN", ethernet(lab.a.mac, GATEWAY_MAC, 0x8100, &[0; 46]), Stack),
    ]);
    lab.a_sends(&[
        ("answer by the bridge", ipv4(lab.to_b(), A, B, TCP, &tcp(80, 4000)), Stack),
        ("ICMP error by the bridge", ipv4(lab.to_b(), A, B, ICMP, &icmp(3, 0)), Stack),
        ("another flow", ipv4(lab.to_b(), A, B, TCP, &tcp(80, 4001)), Neighbour),
        ("answer to the gateway", ipv4(lab.to_gateway(), A, GATEWAY4, TCP, &tcp(80, 4000)), Stack),
        ("answer to the outside", ipv4(lab.to_gateway(), A, OUTSIDE, TCP, &tcp(80, 4000)), Stack),
    ]);
    lab.a_gets(&[("the same flow, routed from now on", in_from(B), Stack)]);
    lab.a_sends(&[("answer", ipv4(lab.to_b(), A, B, TCP, &tcp(80, 4000)), Gateway)]);
}

#[test]
fn a_successor_inherits_no_flow() {
    let lab = Lab::new();
    lab.a_gets(&[("dialled", ipv4(lab.stack_to_a(), B, A, TCP, &tcp(4000, 80)), Stack)]);
    let answer = ipv4(lab.to_b(), A, B, TCP, &tcp(80, 4000));
    lab.a_sends(&[("answer", answer.clone(), Gateway)]);
    let id = ipamd_api::EndpointId::new(0x1234).unwrap();
    lab.node.datapath.attach(&EndpointEntry { id, ..lab.a.clone() }).unwrap();
    lab.a_sends(&[("answer of the successor", answer, Neighbour)]);
    lab.a_gets(&[("dialled again", ipv4(lab.stack_to_a(), B, A, TCP, &tcp(4000, 80)), Stack)]);
    lab.a_sends(&[("answer", ipv4(lab.to_b(), A, B, TCP, &tcp(80, 4000)), Gateway)]);
}

#[test]
fn shaped_endpoints_are_reached_through_their_qdisc() {
    let lab = Lab::new();
    let packet = ipv4(lab.to_gateway(), A, B, TCP, &tcp(80, 4000));
    let shape = |ifindex, ingress, egress| {
        lab.node.datapath.set_shaping(ifindex, Shaping { ingress, egress }).unwrap();
    };
    lab.a_sends(&[("nobody shaped", packet.clone(), Neighbour)]);
    shape(lab.b.host_ifindex, true, true);
    lab.a_sends(&[("receiver shaped", packet.clone(), Qdisc)]);
    shape(lab.a.host_ifindex, true, true);
    lab.a_sends(&[
        ("sender shaped", packet.clone(), Stack),
        ("spoofed all the same", ipv4(lab.to_b(), B, A, TCP, &tcp(1, 2)), Drop(SpoofedIp)),
        ("isolated all the same", ipv4(lab.to_b(), A, STRANGER, TCP, &tcp(1, 2)), Drop(Isolated)),
    ]);
    lab.a_gets(&[("dialled", ipv4(lab.stack_to_a(), B, A, TCP, &tcp(4000, 80)), Stack)]);
    lab.a_sends(&[("answer through the stack", packet.clone(), Gateway)]);
    shape(lab.a.host_ifindex, false, false);
    shape(lab.b.host_ifindex, false, false);
    lab.a_sends(&[("nobody shaped any more", ipv4(lab.to_gateway(), A, B, TCP, &tcp(1, 2)), Neighbour)]);
}

#[test]
fn who_is_no_endpoint_sends_nothing() {
    let lab = Lab::new();
    let stranger = lab.node.endpoint(50);
    let packet = ipv4(lab.to_b(), A, B, TCP, &tcp(1, 2));
    let (action, _) = lab.node.run(Direction::FromPod, Skb::at(stranger.host_ifindex), &packet);
    assert_eq!((action, lab.node.drops()), (2, vec![("unknown-endpoint".to_owned(), 1)]));
    let (action, _) = lab.node.run(Direction::ToPod, Skb::at(stranger.host_ifindex), &packet);
    assert_eq!(action, -1, "what is sent to it is none of Weft's business");
    lab.node.datapath.forget(&(&lab.a).into()).unwrap();
    let (action, _) = lab.run(Direction::FromPod, &packet);
    assert_eq!((action, lab.node.drops()), (2, vec![("unknown-endpoint".to_owned(), 2)]));
}

#[test]
fn a_packet_of_many_segments_may_have_no_length() {
    let lab = Lab::new();
    let mut packet = ipv4(lab.to_b(), A, B, TCP, &[tcp(1, 2), vec![0; 1400]].concat());
    packet[L3 + 2..L3 + 4].copy_from_slice(&[0, 0]);
    let (action, _) =
        lab.node.run(Direction::FromPod, Skb { segment: 700, ..Skb::at(lab.a.host_ifindex) }, &packet);
    assert!(Lab::is_redirect(action));
    let (action, _) = lab.node.run(Direction::FromPod, Skb::at(lab.a.host_ifindex), &packet);
    assert!(!Lab::is_redirect(action));
}
