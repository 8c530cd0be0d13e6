//! Published ports: who reaches them by which name, and how the answers leave.

use crate::{
    host::{FIRST_PORT, FROM_ROUTER, Family, Host, LAST_PORT, Want, mapping},
    node::{GATEWAY_MAC, ip},
    run::{REDIRECT, Skb},
    wire::{ACK, Kind, Packet, RST, SYN, at, frame},
};
use ebpf_common::DropReason;
use ipamd::datapath::{Datapath, Direction};
use ipamd_api::{PortMapping, Protocol};
use std::{net::SocketAddr, thread};

families!(
    a_published_port_is_reached_by_every_address_of_the_node,
    one_client_port_to_two_names_of_one_backend_is_two_flows,
    an_exact_address_goes_before_every_address,
    a_range_ends_where_it_ends,
    who_may_come_in_is_listed,
    the_node_has_lists_of_its_own,
    other_sandboxes_and_the_container_itself_dial_it_too,
    fragments_of_a_datagram_arrive_together,
    what_a_router_would_answer_is_the_stacks,
    what_is_no_longer_published_is_gone,
    an_answer_keeps_the_name_that_was_dialled,
);

const PROTOCOLS: [(Kind, Protocol); 4] = [
    (Kind::Tcp(SYN), Protocol::Tcp),
    (Kind::Udp, Protocol::Udp),
    (Kind::UdpBare, Protocol::Udp),
    (Kind::Sctp, Protocol::Sctp),
];

/// The container dials itself: as the gateway, from a port of the range, so that no later flow of the host can have it.
#[track_caller]
fn hairpin(host: &Host, f: &Family, what: &str, own: &Packet, back: u16) {
    let sender = host.endpoint(own.from.ip());
    let bytes = frame((GATEWAY_MAC, sender.mac), &own.bytes());
    let (action, out) = host.run((Direction::FromPod, sender.host_ifindex, 0), &bytes);
    assert_eq!(action, REDIRECT, "{what}");
    let transport = out.len() - own.transport().len();
    let port = u16::from_be_bytes([out[transport], out[transport + 1]]);
    assert!((FIRST_PORT..=LAST_PORT).contains(&port), "{what}: {port}");
    let got = own.becomes(at(f.gateway, port), at(f.a, back));
    host.pod(&format!("{what}, there"), own, &Want::Into(f.a, got.bytes()));
    let answer = got.answer();
    let home = answer.becomes(own.to, own.from);
    host.pod(&format!("{what}, back"), &answer, &Want::Into(f.a, home.bytes()));
}

fn from_client(f: &Family, to: SocketAddr, kind: Kind) -> Packet {
    Packet::new(at(f.server, 9000), to, kind)
}

/// Publishes a port for each protocol: packets of that protocol, host port, container port.
fn publish_each(host: &Host, f: &Family) -> [(Kind, u16, u16); PROTOCOLS.len()] {
    host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    host.publish(f.a, mapping(5060, 5060, Protocol::Sctp));
    PROTOCOLS.map(|(kind, _)| match kind {
        Kind::Tcp(_) => (kind, 8080, 80),
        Kind::Sctp => (kind, 5060, 5060),
        _ => (kind, 8053, 53),
    })
}

fn a_published_port_is_reached_by_every_address_of_the_node(host: &Host, f: &Family) {
    for (kind, front, back) in publish_each(host, f) {
        for (port, dialled) in [(9000, f.uplink), (9002, f.uplink2), (9003, f.gateway)] {
            let packet = Packet::new(at(f.server, port), at(dialled, front), kind);
            host.serves(&format!("{kind:?} to {dialled}"), &packet, (f.a, back));
        }
        host.outside("another port", &from_client(f, at(f.uplink, front + 1), kind), &Want::Stack);
        host.outside("another host", &from_client(f, at(f.server2, front), kind), &Want::Stack);
        let direct = from_client(f, at(f.a, back), kind);
        host.outside("by its own address", &direct, &Want::Drop(DropReason::NotPublished));
    }
    let middle = Packet::new(at(f.server, 9001), at(f.uplink, 8080), Kind::Tcp(ACK));
    host.outside("the middle of a connection that is not there", &middle, &Want::Stack);
    let going_on = from_client(f, at(f.uplink, 8080), Kind::Tcp(ACK));
    host.serves("the connection goes on", &going_on, (f.a, 80));
}

/// The backend could not tell them apart, so the second flow's client gets another port there.
fn one_client_port_to_two_names_of_one_backend_is_two_flows(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let first = from_client(f, at(f.uplink, 8053), Kind::Udp);
    host.serves("the first", &first, (f.a, 53));
    let second = from_client(f, at(f.uplink2, 8053), Kind::Udp);
    let bytes = frame((GATEWAY_MAC, GATEWAY_MAC), &second.bytes());
    let (action, out) = host.run((Direction::FromNetdev, host.up0, 0), &bytes);
    assert_eq!(action, REDIRECT);
    let transport = out.len() - second.transport().len();
    let port = u16::from_be_bytes([out[transport], out[transport + 1]]);
    assert!((FIRST_PORT..=LAST_PORT).contains(&port), "{port}");
    let got = second.becomes(at(f.server, port), at(f.a, 53));
    host.outside("the second, again", &second, &Want::Into(f.a, got.bytes()));
    let answer = got.answer();
    let sent = answer.becomes(second.to, second.from);
    host.pod("its answer", &answer, &Want::Out(sent.bytes()));
    host.serves("the first, still", &first, (f.a, 53));
}

fn an_exact_address_goes_before_every_address(host: &Host, f: &Family) {
    let exact = PortMapping { host_ip: Some(f.uplink.parse().unwrap()), ..mapping(8080, 81, Protocol::Tcp) };
    host.publish(f.a, exact.clone());
    let dial = |to, port| Packet::new(at(f.server, port), at(to, 8080), Kind::Tcp(SYN));
    host.serves("exact", &dial(f.uplink, 9000), (f.a, 81));
    host.outside("not this address", &dial(f.uplink2, 9000), &Want::Stack);
    host.publish(f.b, mapping(8080, 82, Protocol::Tcp));
    host.serves("still exact", &dial(f.uplink, 9001), (f.a, 81));
    host.serves("the others", &dial(f.uplink2, 9001), (f.b, 82));
}

fn a_range_ends_where_it_ends(host: &Host, f: &Family) {
    for (first, back, count) in [(9000, 100, 10), (20_000, 20_000, 10_000), (65_530, 1, 6), (1, 30_001, 3)] {
        host.publish(f.a, PortMapping { count, ..mapping(first, back, Protocol::Tcp) });
        let dial = |to| from_client(f, at(f.uplink, to), Kind::Tcp(SYN));
        let last = first + (count - 1);
        for port in [first, first + 1, first + count / 2, last] {
            host.serves(&format!("{port} of {first}+{count}"), &dial(port), (f.a, back + (port - first)));
        }
        if first > 1 {
            host.outside("before", &dial(first - 1), &Want::Stack);
        }
        if last < u16::MAX {
            host.outside("behind", &dial(last + 1), &Want::Stack);
        }
    }
}

fn who_may_come_in_is_listed(host: &Host, f: &Family) {
    let allowed = format!("{}/{}", f.server, if f.a.contains(':') { 128 } else { 32 });
    let listed =
        PortMapping { allow_from: vec![allowed.parse().unwrap()], ..mapping(8080, 80, Protocol::Tcp) };
    host.publish(f.a, listed);
    host.serves("listed", &from_client(f, at(f.uplink, 8080), Kind::Tcp(SYN)), (f.a, 80));
    let other = Packet::new(at(f.server2, 9000), at(f.uplink, 8080), Kind::Tcp(SYN));
    host.outside("not listed", &other, &Want::Drop(DropReason::NotAllowed));
    // Its own container is no stranger; a neighbour is.
    let neighbour = Packet::new(at(f.b, 9000), at(f.uplink, 8080), Kind::Tcp(SYN));
    host.pod("a neighbour", &neighbour, &Want::Drop(DropReason::NotAllowed));
    let own = Packet::new(at(f.a, 9000), at(f.uplink, 8080), Kind::Tcp(SYN));
    hairpin(host, f, "itself", &own, 80);
}

fn the_node_has_lists_of_its_own(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    let dial = |from, port| Packet::new(at(from, port), at(f.uplink, 8080), Kind::Tcp(SYN));
    let all = if f.a.contains(':') { 128 } else { 32 };
    let only = format!("{}/{all}", f.server);
    host.configure(&[&only], &[]);
    host.serves("allowed", &dial(f.server, 9000), (f.a, 80));
    host.outside("not allowed", &dial(f.server2, 9000), &Want::Drop(DropReason::NotAllowed));
    host.configure(&[&only], &[&only]);
    host.outside("denied goes first", &dial(f.server, 9001), &Want::Drop(DropReason::NotAllowed));
    let going_on = from_client(f, at(f.uplink, 8080), Kind::Tcp(ACK));
    host.serves("who is in stays in", &going_on, (f.a, 80));
    host.configure(&[], &[&only]);
    host.outside("denied", &dial(f.server, 9002), &Want::Drop(DropReason::NotAllowed));
    host.serves("not denied", &dial(f.router, 9002), (f.a, 80));
    host.configure(&[], &[]);
    host.serves("no list", &dial(f.server, 9003), (f.a, 80));
}

fn other_sandboxes_and_the_container_itself_dial_it_too(host: &Host, f: &Family) {
    for (kind, front, back) in publish_each(host, f) {
        for (what, client) in
            [("the neighbour", f.b), ("of another network", f.c), ("of a routed one", f.routed)]
        {
            for dialled in [f.uplink, f.uplink2] {
                let what = format!("{what}, {kind:?} to {dialled}");
                let port = if dialled == f.uplink { 7000 } else { 7001 };
                let packet = Packet::new(at(client, port), at(dialled, front), kind);
                let got = packet.becomes(packet.from, at(f.a, back));
                host.pod(&format!("{what}, there"), &packet, &Want::Into(f.a, got.bytes()));
                let answer = got.answer();
                let back_home = answer.becomes(packet.to, packet.from);
                host.pod(&format!("{what}, back"), &answer, &Want::Into(client, back_home.bytes()));
            }
        }
        let gateway = Packet::new(at(f.b, 7002), at(f.gateway, front), kind);
        let got = gateway.becomes(gateway.from, at(f.a, back));
        host.pod(&format!("{kind:?} to the gateway"), &gateway, &Want::Into(f.a, got.bytes()));
        // The container itself must not answer itself without asking anybody.
        let own = Packet::new(at(f.a, 7003), at(f.uplink, front), kind);
        if kind == Kind::Sctp {
            // Its ports are nobody's to change.
            let got = own.becomes(at(f.gateway, 7003), at(f.a, back));
            host.pod("SCTP, hairpin there", &own, &Want::Into(f.a, got.bytes()));
            let home = got.answer().becomes(own.to, own.from);
            host.pod("SCTP, hairpin back", &got.answer(), &Want::Into(f.a, home.bytes()));
        } else {
            hairpin(host, f, &format!("{kind:?}, hairpin"), &own, back);
        }
    }
    let internal = Packet::new(at(f.internal, 7000), at(f.uplink, 8080), Kind::Tcp(SYN));
    host.pod("from an internal network", &internal, &Want::Drop(DropReason::Internal));
}

fn fragments_of_a_datagram_arrive_together(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let packet = from_client(f, at(f.uplink, 8053), Kind::Udp).sized(4000);
    let got = packet.becomes(packet.from, at(f.a, 53));
    let parts = packet.fragments(1400, 0x1234).into_iter().zip(got.fragments(1400, 0x1234));
    for (i, (part, wanted)) in parts.enumerate() {
        host.outside_bytes(&format!("part {i} there"), &part, &Want::Into(f.a, wanted));
    }
    let answer = got.answer().sized(2000);
    let sent = answer.becomes(packet.to, packet.from);
    let parts = answer.fragments(1400, 0x2345).into_iter().zip(sent.fragments(1400, 0x2345));
    for (i, (part, wanted)) in parts.enumerate() {
        host.pod_bytes(&format!("part {i} back"), answer.from.ip(), &part, &Want::Out(wanted));
    }
}

fn what_a_router_would_answer_is_the_stacks(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let packet = from_client(f, at(f.uplink, 8053), Kind::Udp);
    let translated = |p: &Packet| Want::Changed(Packet { to: at(f.a, 53), ..p.clone() }.bytes());
    host.outside("its last hop", &packet.ttl(1), &translated(&packet.ttl(1)));
    host.serves("one hop more", &packet.ttl(2), (f.a, 53));
    let veth = host.endpoint(f.a.parse().unwrap()).host_ifname.clone();
    ip(&format!("link set {veth} mtu 1400"));
    let header = if f.a.contains(':') { 48 } else { 28 };
    host.outside("too long", &packet.sized(1401 - header), &translated(&packet.sized(1401 - header)));
    host.serves("just fits", &packet.sized(1400 - header), (f.a, 53));
    // Of many segments, each counts for itself.
    host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    let open = from_client(f, at(f.uplink, 8080), Kind::Tcp(SYN));
    host.serves("open", &open, (f.a, 80));
    let many = from_client(f, at(f.uplink, 8080), Kind::Tcp(ACK)).sized(3_000);
    let run = |segment| {
        let bytes = frame((GATEWAY_MAC, GATEWAY_MAC), &many.bytes());
        host.run((Direction::FromNetdev, host.up0, segment), &bytes).0
    };
    let most = 1400 - (header as u32 - 8) - 20;
    assert_eq!(run(most), REDIRECT, "segments that just fit");
    assert_ne!(run(most + 1), REDIRECT, "segments that are too long");
    ip(&format!("link set {veth} mtu 1500"));
}

fn what_is_no_longer_published_is_gone(host: &Host, f: &Family) {
    let entry = host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    let dial = |port| Packet::new(at(f.server, port), at(f.uplink, 8080), Kind::Tcp(SYN));
    host.serves("published", &dial(9000), (f.a, 80));
    host.node.datapath.unpublish(&entry).unwrap();
    assert!(!host.node.datapath.is_published(&entry).unwrap());
    host.outside("no more", &dial(9001), &Want::Stack);
    host.publish(f.b, mapping(8080, 80, Protocol::Tcp));
    host.serves("somebody else's", &dial(9002), (f.b, 80));
    let late = Packet::new(at(f.server, 9000), at(f.uplink, 8080), Kind::Tcp(SYN));
    host.serves("the same client, whose flow was the other's", &late, (f.b, 80));
}

/// What a container sends from its port on its own is not what answers from there.
fn an_answer_keeps_the_name_that_was_dialled(host: &Host, f: &Family) {
    host.publish(f.a, mapping(8053, 53, Protocol::Udp));
    let asked = from_client(f, at(f.uplink2, 8053), Kind::Udp);
    host.serves("by the other uplink's address", &asked, (f.a, 53));
    let own = Packet::new(at(f.a, 53), at(f.server, 9001), Kind::Udp);
    host.flow_out("on its own", &own, at(f.uplink, 53));
    host.serves("still", &asked, (f.a, 53));
}

/// A device without link-layer headers: the packet gets one for the sandbox. (The test run takes the first bytes for an Ethernet
/// header, and its type from within the source address: addresses are chosen to make it right.)
#[test]
fn a_tunnel_without_ethernet_leads_in_as_well() {
    let host = Host::new();
    for (f, client) in [(&crate::host::V4, "8.0.3.4"), (&crate::host::V6, "2001:db8:86dd::4")] {
        host.clean();
        host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
        host.publish(f.a, mapping(8053, 53, Protocol::Udp));
        for (kind, front, back) in [(Kind::Tcp(SYN), 8080, 80), (Kind::Udp, 8053, 53)] {
            let packet = Packet::new(at(client, 9000), at(f.uplink, front), kind);
            let got = packet.becomes(packet.from, at(f.a, back));
            let (action, out) = host.run((Direction::FromNetdevL3, host.up1, 0), &packet.bytes());
            let mac = host.endpoint(f.a.parse().unwrap()).mac;
            assert_eq!(action, REDIRECT, "{client} {kind:?}: {out:02x?}");
            let wanted = frame((mac, GATEWAY_MAC), &got.bytes());
            assert!(out == wanted, "{client} {kind:?}: {out:02x?}, not {wanted:02x?}");
            let answer = got.answer();
            let sent = answer.becomes(packet.to, answer.to);
            host.pod("its answer", &answer, &Want::Out(sent.bytes()));
        }
    }
}

/// A sweep looks at all flows before it removes any. Whose client uses its port again meanwhile has a connection that lives.
#[test]
fn a_flow_that_is_used_again_during_a_sweep_is_not_swept() {
    const FLOWS: u16 = 2_500;
    let f = &crate::host::V4;
    let host = Host::new();
    host.publish(f.a, mapping(8080, 80, Protocol::Tcp));
    let pod = host.endpoint(f.a.parse().unwrap());
    let from_client = |n: u16, flags| {
        let packet = Packet::new(at(f.server, 10_000 + n), at(f.uplink, 8080), Kind::Tcp(flags));
        host.node.run(Direction::FromNetdev, Skb::at(host.up0), &frame(FROM_ROUTER, &packet.bytes())).0
    };
    let answer = |n: u16| {
        let packet = Packet::new(at(f.a, 80), at(f.server, 10_000 + n), Kind::Tcp(SYN | ACK));
        let frame = frame((GATEWAY_MAC, pod.mac), &packet.bytes());
        host.node.run(Direction::FromPod, Skb::at(pod.host_ifindex), &frame).0
    };
    for n in 0..FLOWS {
        assert_eq!([from_client(n, SYN), answer(n), from_client(n, ACK)], [REDIRECT; 3], "{n}");
        assert_eq!(from_client(n, RST), REDIRECT, "the end of {n}");
    }
    // Closed flows expire at once.
    host.expire_closed();
    let swept = thread::scope(|scope| {
        let sweep = scope.spawn(|| host.node.datapath.sweep_flows().unwrap());
        for n in 0..FLOWS {
            assert_eq!(from_client(n, SYN), REDIRECT, "another SYN of {n}");
        }
        sweep.join().unwrap()
    });
    let lost = (0..FLOWS).filter(|n| from_client(*n, ACK) != REDIRECT).count();
    // Those used in the microsecond between the look at a flow and its removal.
    assert!(lost <= usize::from(FLOWS) / 100, "{lost} of {FLOWS} connections are lost: {swept:?}");
}
