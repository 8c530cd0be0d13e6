//! What endpoints send outside, and its answers: both directions of each flow.

use crate::{
    host::{FIRST_PORT, Family, Host, LAST_PORT, Want},
    node::{GATEWAY_MAC, ip},
    run::{REDIRECT, UNSPEC},
    wire::{ACK, FIN, Kind, Packet, RST, SYN, at, frame},
};
use ebpf_common::DropReason;
use ipamd::datapath::{Datapath, Direction};

families!(
    a_flow_leaves_with_the_uplinks_address_and_its_answers_come_back,
    a_wrong_checksum_stays_wrong,
    fragments_find_the_ports_of_the_first,
    another_uplink_has_another_address,
    who_is_not_masqueraded_keeps_the_own_address,
    what_stays_inside_or_with_the_stack,
    a_router_takes_one_off_the_hop_limit_and_leaves_the_last_one_to_the_stack,
    what_is_too_long_for_the_link_is_the_stacks,
    a_taken_port_is_not_given_twice,
    a_port_of_the_host_is_not_given,
    what_the_stack_forwards_is_masqueraded_too,
    strangers_get_nothing_in,
    a_routed_network_is_reached_by_its_own_addresses,
    only_a_beginning_begins,
);

fn a_flow_leaves_with_the_uplinks_address_and_its_answers_come_back(host: &Host, f: &Family) {
    let (client, server) = (at(f.a, 5000), at(f.server, 443));
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::UdpBare, Kind::Sctp] {
        let what = format!("{kind:?}");
        host.flow_out(&what, &Packet::new(client, server, kind), at(f.uplink, 5000));
        // Odd lengths, nothing at all, and much.
        for size in [0, 1, 1001] {
            host.flow_out(&what, &Packet::new(client, server, kind).sized(size), at(f.uplink, 5000));
        }
    }
    let ask = Packet::new(at(f.a, 77), at(f.server, 77), Kind::Ask);
    host.flow_out("echo", &ask, at(f.uplink, 77));
    for flags in [ACK, FIN | ACK, RST] {
        let segment = Packet::new(client, server, Kind::Tcp(flags));
        host.pod("TCP goes on", &segment, &Want::Out(segment.becomes(at(f.uplink, 5000), server).bytes()));
    }
    // UDP with and without a checksum is one flow.
    assert_eq!(host.flows(), 4, "TCP, UDP, SCTP and the echo");
}

fn a_wrong_checksum_stays_wrong(host: &Host, f: &Family) {
    for kind in [Kind::Tcp(SYN), Kind::Udp] {
        let packet = Packet::new(at(f.a, 5000), at(f.server, 443), kind).wrong_by(0x0102);
        host.pod("there", &packet, &Want::Out(packet.becomes(at(f.uplink, 5000), packet.to).bytes()));
        let answer = packet.becomes(at(f.uplink, 5000), packet.to).answer().wrong_by(0x0304);
        let got = answer.becomes(answer.from, packet.from);
        host.outside("back", &answer, &Want::Into(f.a, got.bytes()));
    }
}

fn fragments_find_the_ports_of_the_first(host: &Host, f: &Family) {
    let packet = Packet::new(at(f.a, 5000), at(f.server, 53), Kind::Udp).sized(3000);
    let sent = packet.becomes(at(f.uplink, 5000), packet.to);
    let parts = |p: &Packet, id| p.fragments(1400, id);
    for (i, (part, wanted)) in parts(&packet, 0x0777).iter().zip(parts(&sent, 0x0777)).enumerate() {
        host.pod_bytes(&format!("part {i} there"), packet.from.ip(), part, &Want::Out(wanted));
    }
    let answer = sent.answer().sized(3000);
    let got = answer.becomes(answer.from, packet.from);
    for (i, (part, wanted)) in parts(&answer, 0x0888).iter().zip(parts(&got, 0x0888)).enumerate() {
        host.outside_bytes(&format!("part {i} back"), part, &Want::Into(f.a, wanted));
    }
    let unknown = &parts(&packet, 0x0999)[1];
    let want = Want::Drop(DropReason::FragmentUnknown);
    host.pod_bytes("the first one is missing", packet.from.ip(), unknown, &want);
    // What comes for the host may be its own, and waits in its reassembly.
    host.outside_bytes("the first one is missing, back", &parts(&answer, 0x0aaa)[1], &Want::Stack);
}

fn another_uplink_has_another_address(host: &Host, f: &Family) {
    let packet = Packet::new(at(f.a, 5000), at(f.server2, 443), Kind::Tcp(SYN));
    host.flow_out("the other uplink", &packet, at(f.uplink2, 5000));
    // By a rule for what the endpoint itself is called, as an operator writes it.
    let family = if packet.from.is_ipv6() { "-6 " } else { "" };
    let router = if packet.from.is_ipv6() { "2001:db8:1::fe" } else { "198.51.100.254" };
    ip(&format!("{family}rule add from {} lookup 77", f.b));
    ip(&format!("{family}route add default via {router} dev up1 table 77"));
    let other = Packet::new(at(f.b, 5000), at(f.server, 443), Kind::Tcp(SYN));
    host.flow_out("by a rule", &other, at(f.uplink2, 5000));
    ip(&format!("{family}rule add ipproto 6 dport 8443 lookup 77"));
    let by_port = Packet::new(at(f.a, 5000), at(f.server, 8443), Kind::Tcp(SYN));
    host.flow_out("by a rule for a port", &by_port, at(f.uplink2, 5000));
}

fn who_is_not_masqueraded_keeps_the_own_address(host: &Host, f: &Family) {
    for (what, from, to) in [
        ("plain", f.plain, f.server),
        ("routed", f.routed, f.server),
        ("an excepted destination", f.a, f.excepted),
    ] {
        let packet = Packet::new(at(from, 5000), at(to, 443), Kind::Tcp(SYN));
        host.flow_out(what, &packet, packet.from);
    }
    // The exception is one network's.
    let packet = Packet::new(at(f.c, 5000), at(f.excepted, 443), Kind::Tcp(SYN));
    host.flow_out("another network", &packet, at(f.uplink, 5000));
}

fn what_stays_inside_or_with_the_stack(host: &Host, f: &Family) {
    let service = if f.a.contains(':') { "fdcc::10" } else { "10.96.0.10" };
    let tcp = |from: &str, to: &str| Packet::new(at(from, 5000), at(to, 443), Kind::Tcp(SYN));
    host.pod("a service CIDR", &tcp(f.a, service), &Want::Stack);
    host.pod("an address of the node", &tcp(f.a, f.uplink), &Want::Stack);
    host.pod("the gateway", &tcp(f.a, f.gateway), &Want::Stack);
    host.pod("another network", &tcp(f.a, f.c), &Want::Drop(DropReason::Isolated));
    host.pod("internal", &tcp(f.internal, f.server), &Want::Drop(DropReason::Internal));
    assert_eq!(host.flows(), 0);
}

fn a_router_takes_one_off_the_hop_limit_and_leaves_the_last_one_to_the_stack(host: &Host, f: &Family) {
    let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Udp);
    host.pod("its last hop, first packet", &packet.ttl(1), &Want::Stack);
    host.flow_out("two hops", &packet.ttl(2), at(f.uplink, 5000));
    host.pod("its last hop", &packet.ttl(1), &Want::Stack);
    let answer = packet.becomes(at(f.uplink, 5000), packet.to).answer();
    // The stack answers for the endpoint, so it must see whose packet it is.
    let translated = Packet { to: packet.from, ..answer.ttl(1) };
    host.outside("the answer's last hop", &answer.ttl(1), &Want::Changed(translated.bytes()));
}

fn what_is_too_long_for_the_link_is_the_stacks(host: &Host, f: &Family) {
    let header = if f.a.contains(':') { 40 } else { 20 };
    let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Udp);
    let (fits, long) = (packet.sized(1500 - header - 8), packet.sized(1501 - header - 8));
    host.pod("too long, first packet", &long, &Want::Stack);
    host.flow_out("just fits", &fits, at(f.uplink, 5000));
    host.pod("too long", &long, &Want::Stack);
    // Of many segments, each counts for itself.
    let many = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(ACK)).sized(3_000);
    let sent = many.becomes(at(f.uplink, 5000), many.to).bytes();
    let sender = host.endpoint(many.from.ip());
    let (index, macs) = (sender.host_ifindex, (GATEWAY_MAC, sender.mac));
    for (segment, action, out) in
        [(1400, REDIRECT, &sent), (1448, REDIRECT, &sent), (1475, UNSPEC, &many.bytes())]
    {
        // A segment of 1448 fits behind both headers of IPv4, and of IPv6 without options one of 1440.
        let segment = if segment == 1448 && header == 40 { 1440 } else { segment };
        let (got, bytes) = host.run((Direction::FromPod, index, segment), &frame(macs, &many.bytes()));
        assert_eq!(got, action, "segments of {segment}");
        assert!(bytes == frame(macs, out), "segments of {segment}");
    }
}

fn a_taken_port_is_not_given_twice(host: &Host, f: &Family) {
    let server = at(f.server, 443);
    host.flow_out(
        "the first keeps its port",
        &Packet::new(at(f.a, 5000), server, Kind::Udp),
        at(f.uplink, 5000),
    );
    host.flow_out(
        "another server",
        &Packet::new(at(f.b, 5000), at(f.server, 444), Kind::Udp),
        at(f.uplink, 5000),
    );
    // The range has four; the second endpoint's flows to the same server take them one after the other.
    let mut given = Vec::new();
    for (i, from) in [at(f.b, 5000), at(f.c, 5000)].into_iter().enumerate() {
        given.push(port_given(host, f, &Packet::new(from, server, Kind::Udp), i));
    }
    for port in [5001, 5002] {
        host.flow_out("free", &Packet::new(at(f.a, port), server, Kind::Udp), at(f.uplink, port));
        given.push(port_given(host, f, &Packet::new(at(f.b, port), server, Kind::Udp), port.into()));
    }
    given.sort_unstable();
    assert_eq!(given, (FIRST_PORT..=LAST_PORT).collect::<Vec<u16>>());
    let none_left = Packet::new(at(f.c, 5001), server, Kind::Udp);
    host.pod("no port is left", &none_left, &Want::Drop(DropReason::PortsExhausted));
    host.pod("nor is one a second time", &none_left, &Want::Drop(DropReason::PortsExhausted));
    host.flow_out(
        "to others there are",
        &Packet::new(at(f.c, 5001), at(f.server, 445), Kind::Udp),
        at(f.uplink, 5001),
    );
    // An identifier is a port; SCTP's ports are covered by a checksum that is nobody's to change.
    let ask = |from: &str| Packet::new(at(from, 9), at(f.server, 9), Kind::Ask);
    host.flow_out("an echo", &ask(f.a), at(f.uplink, 9));
    let (action, out) = send(host, &ask(f.b));
    assert_eq!(action, REDIRECT);
    let identifier = u16::from_be_bytes(out[out.len() - ask(f.b).data.len() - 4..][..2].try_into().unwrap());
    assert!((FIRST_PORT..=LAST_PORT).contains(&identifier), "{identifier}");
    let id = identifier;
    let answer = Packet::new(at(f.server, id), at(f.uplink, id), Kind::Answer);
    let got = answer.becomes(at(f.server, 9), at(f.b, 9));
    host.outside("its answer", &answer, &Want::Into(f.b, got.bytes()));
    let sctp = |from: &str| Packet::new(at(from, 6000), at(f.server, 6000), Kind::Sctp);
    host.flow_out("SCTP", &sctp(f.a), at(f.uplink, 6000));
    host.pod("SCTP, taken", &sctp(f.b), &Want::Drop(DropReason::PortsExhausted));
}

/// Sends a packet whose own port is taken, and checks both directions with the port that it got.
#[track_caller]
fn port_given(host: &Host, f: &Family, packet: &Packet, i: usize) -> u16 {
    let (action, out) = send(host, packet);
    assert_eq!(action, REDIRECT, "{i}");
    let transport = out.len() - packet.transport().len();
    let port = u16::from_be_bytes([out[transport], out[transport + 1]]);
    // Again, with every byte.
    host.flow_out(&format!("flow {i} with port {port}"), packet, at(f.uplink, port));
    port
}

fn send(host: &Host, packet: &Packet) -> (i32, Vec<u8>) {
    let sender = host.endpoint(packet.from.ip());
    let bytes = frame((GATEWAY_MAC, sender.mac), &packet.bytes());
    host.run((Direction::FromPod, sender.host_ifindex, 0), &bytes)
}

fn a_port_of_the_host_is_not_given(host: &Host, f: &Family) {
    let own = Packet::new(at(f.uplink, 15_000), at(f.server, 443), Kind::Udp);
    host.leaves("the host's own", &own, &Want::Stack);
    host.outside("and its answer", &own.answer(), &Want::Stack);
    let packet = Packet::new(at(f.a, 15_000), at(f.server, 443), Kind::Udp);
    let port = port_given(host, f, &packet, 0);
    assert!((FIRST_PORT..=LAST_PORT).contains(&port), "{port}");
    host.outside("still the host's", &own.answer(), &Want::Stack);
    // The other way round: the sandbox was first.
    let first = Packet::new(at(f.a, 15_001), at(f.server, 443), Kind::Udp);
    host.flow_out("the sandbox's", &first, at(f.uplink, 15_001));
    let late = Packet::new(at(f.uplink, 15_001), at(f.server, 443), Kind::Udp);
    let (action, out) =
        host.run((Direction::ToNetdev, host.up0, 0), &frame((GATEWAY_MAC, GATEWAY_MAC), &late.bytes()));
    let transport = out.len() - late.transport().len();
    let port = u16::from_be_bytes([out[transport], out[transport + 1]]);
    assert_eq!(action, UNSPEC);
    assert!((FIRST_PORT..=LAST_PORT).contains(&port), "{port}");
    let moved = Packet { from: at(f.uplink, port), ..late.clone() };
    assert!(out == frame((GATEWAY_MAC, GATEWAY_MAC), &moved.bytes()));
    let answer = moved.answer();
    let got = Packet { to: late.from, ..answer.clone() };
    host.outside("the host's answer gets its port back", &answer, &Want::Changed(got.bytes()));
    host.flow_out("the sandbox's, still", &first, at(f.uplink, 15_001));
}

fn what_the_stack_forwards_is_masqueraded_too(host: &Host, f: &Family) {
    let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(SYN));
    let sent = Packet { from: at(f.uplink, 5000), ..packet.clone() };
    host.leaves("forwarded", &packet, &Want::Changed(sent.bytes()));
    let answer = sent.answer();
    let got = Packet { to: packet.from, ..answer.clone() };
    host.outside("its answer goes by the stack as well", &answer, &Want::Changed(got.bytes()));
    let plain = Packet::new(at(f.plain, 5000), at(f.server, 443), Kind::Tcp(SYN));
    host.leaves("plain", &plain, &Want::Stack);
}

fn strangers_get_nothing_in(host: &Host, f: &Family) {
    let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Udp);
    host.flow_out("a flow", &packet, at(f.uplink, 5000));
    let from = |source, to| Packet::new(source, to, Kind::Udp);
    host.outside("another port of the server", &from(at(f.server, 444), at(f.uplink, 5000)), &Want::Stack);
    host.outside("another server", &from(at(f.server2, 443), at(f.uplink, 5000)), &Want::Stack);
    host.outside("another uplink's address", &from(at(f.server, 443), at(f.uplink2, 5000)), &Want::Stack);
    for (what, to) in [("masqueraded", f.a), ("internal", f.internal), ("plain", f.plain)] {
        let direct = from(at(f.server, 443), at(to, 80));
        host.outside(what, &direct, &Want::Drop(DropReason::NotPublished));
    }
}

fn a_routed_network_is_reached_by_its_own_addresses(host: &Host, f: &Family) {
    for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp] {
        let packet = Packet::new(at(f.server, 443), at(f.routed, 80), kind);
        let got = packet.becomes(packet.from, packet.to);
        host.outside(&format!("{kind:?} there"), &packet, &Want::Into(f.routed, got.bytes()));
        let answer = got.answer();
        let sent = answer.becomes(answer.from, answer.to);
        host.pod(&format!("{kind:?} back"), &answer, &Want::Out(sent.bytes()));
    }
}

fn only_a_beginning_begins(host: &Host, f: &Family) {
    for flags in [RST, FIN | ACK, RST | ACK] {
        let packet = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(flags));
        host.pod(&format!("flags {flags:#x}"), &packet, &Want::Drop(DropReason::NoFlow));
    }
    let answer = Packet::new(at(f.a, 7), at(f.server, 7), Kind::Answer);
    host.pod("an answer to nothing", &answer, &Want::Drop(DropReason::NoFlow));
    assert_eq!(host.flows(), 0);
    let middle = Packet::new(at(f.a, 5000), at(f.server, 443), Kind::Tcp(ACK));
    host.flow_out("picked up in the middle", &middle, at(f.uplink, 5000));
    host.node.datapath.remove_flows(&mut |_| true).unwrap();
    assert_eq!(host.flows(), 0);
}
