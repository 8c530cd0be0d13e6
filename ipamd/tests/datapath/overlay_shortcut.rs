//! The way past the VXLAN device, by test run: the outer header byte by byte, what is taken off again, and everything that goes by the
//! device all the same, untouched.

use crate::{
    frames::*,
    node::{ifindex, ip},
    overlay_lab::{
        Want::{Redirect, Stack},
        *,
    },
    run::{REDIRECT, Skb},
    wire,
};
use ipamd::datapath::{Datapath, Direction, EndpointEntry, Shaping};
use ipamd_api::{MacAddr, mac_of_address};
use std::net::{IpAddr, Ipv4Addr};

/// Bytes between the outer Ethernet header and the packet.
const ADDED: usize = 20 + 8 + 8 + 14;
/// Network identifier of the lab's network.
const VNI: u32 = 4103;
/// Somewhere in the frame that comes from another node: offsets of what the tests change.
const OUTER: usize = L3;
const DATAGRAM: usize = OUTER + 20;
const VXLAN: usize = DATAGRAM + 8;
const INNER: usize = VXLAN + 8;

/// A lab whose packets pass the device by, to a node that is reached over IPv4 whatever the packet.
fn lab() -> Lab {
    let lab = Lab::new();
    shortcut(&lab, &[(lab.up, NODE)]);
    lab
}

fn shortcut(lab: &Lab, underlays: &[(u32, Ipv4Addr)]) {
    let mut view = lab.view();
    view.underlays = underlays.to_vec();
    for peer in &mut view.peers {
        if peer.remote == IpAddr::V6(VTEP6) {
            peer.remote = VTEP.into();
        }
    }
    lab.node.datapath.set_overlay(&view).unwrap();
}

fn sent(lab: &Lab, to: impl Into<IpAddr>, data: usize) -> Vec<u8> {
    let (to, from): (IpAddr, IpAddr) = match to.into() {
        IpAddr::V4(to) => (to.into(), A.into()),
        IpAddr::V6(to) => (to.into(), A6.into()),
    };
    let packet = wire::Packet::new((from, 4000).into(), (to, 80).into(), wire::Kind::Udp).sized(data);
    wire::frame(lab.to(to), &packet.bytes())
}

/// By the device: the frame as it was, to the MAC that is derived from its destination.
fn by_device(frame: &[u8]) -> crate::overlay_lab::Want {
    let mac = if frame[12] == 8 { mac_of_address(REMOTE.into()) } else { mac_of_address(REMOTE6.into()) };
    Redirect(readdressed(frame, mac))
}

/// What a packet of `a` becomes, and the source port and the identification, which are not to be foretold.
fn encapsulated(lab: &Lab, frame: &[u8]) -> (Vec<u8>, u16, u16) {
    let (action, out) = lab.node.run(Direction::FromPod, Skb::at(lab.a.host_ifindex), frame);
    assert_eq!((action, out.len()), (REDIRECT, frame.len() + ADDED), "{frame:02x?}");
    let at = |offset: usize| u16::from_be_bytes([out[offset], out[offset + 1]]);
    let (port, identification) = (at(DATAGRAM), at(OUTER + 4));
    (out, port, identification)
}

/// The frame that another node sends: `inner` by VXLAN with this byte as its type of service.
fn tunnelled(
    (from, to): (Ipv4Addr, Ipv4Addr),
    (port, identification): (u16, u16),
    vni: u32,
    service: u8,
    inner: &[u8],
) -> Vec<u8> {
    let mut datagram = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    datagram.extend(u16::try_from(16 + inner.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0, 8, 0, 0, 0]);
    datagram.extend((vni << 8).to_be_bytes());
    datagram.extend(inner);
    let mut packet = wire::ip(from.into(), to.into(), UDP, 64, &datagram);
    packet[1] = service;
    packet[4..6].copy_from_slice(&identification.to_be_bytes());
    packet[6..8].fill(0);
    wire::reseal4(&mut packet);
    wire::frame((MacAddr([2; 6]), MacAddr([4; 6])), &packet)
}

#[test]
fn the_outer_header_is_what_the_device_would_make() {
    let lab = lab();
    for to in [IpAddr::from(REMOTE), IpAddr::from(REMOTE6)] {
        // What the sandbox wants of its class of service is nobody's business outside, and "congestion experienced" begins anew.
        for (service, outer) in [(0, 0), (0b1011_1001, 1), (2, 2), (3, 2), (0xff, 2)] {
            let mut frame = sent(&lab, to, 100);
            if to.is_ipv4() {
                frame[L3 + 1] = service;
                wire::reseal4(&mut frame[L3..]);
            } else {
                frame[L3] = 0x60 | service >> 4;
                frame[L3 + 1] = service << 4;
            }
            // The outer Ethernet header is the kernel's to make, when it knows the neighbour.
            let (out, port, identification) = encapsulated(&lab, &frame);
            let inner = [&mac_of_address(to).0, &lab.a.mac.0, &frame[12..]].concat();
            let want = tunnelled((NODE, VTEP), (port, identification), VNI, outer, &inner);
            assert!(
                out[L3..] == want[L3..],
                "{to}, {service:#x}: came out as\n{out:02x?}, not as\n{want:02x?}"
            );
            assert!(port >= 0xc000, "{port}: RFC 7348, section 5");
        }
    }
}

#[test]
fn a_flow_keeps_its_source_port_and_others_have_their_own() {
    let lab = lab();
    let port_of = |source: u16| {
        let packet = wire::Packet::new((A, source).into(), (REMOTE, 80).into(), wire::Kind::Udp);
        encapsulated(&lab, &wire::frame(lab.to(REMOTE), &packet.bytes())).1
    };
    let of_flows: std::collections::BTreeSet<u16> = (1..=64).map(port_of).collect();
    assert!(of_flows.len() > 50, "64 flows have {} ports", of_flows.len());
    assert_eq!(port_of(7), port_of(7));
    // Pieces of datagrams that are cut on the way must be told apart.
    let frame = sent(&lab, REMOTE, 100);
    let identifications: std::collections::BTreeSet<u16> =
        (0..64).map(|_| encapsulated(&lab, &frame).2).collect();
    assert!(identifications.len() > 50, "64 packets have {} identifications", identifications.len());
}

#[test]
fn what_is_not_as_usual_leaves_by_the_device() {
    let lab = lab();
    for to in [IpAddr::from(REMOTE), IpAddr::from(REMOTE6)] {
        let frame = sent(&lab, to, 900);
        encapsulated(&lab, &frame);
        let small = sent(&lab, to, 10);
        let at = (Direction::FromPod, lab.a.host_ifindex, 0, 0);
        // Segments of which the kernel does not say what they are segments of: it refuses.
        lab.check("segments", (at.0, at.1, 0, 500), &frame, &by_device(&frame));
        ip(&format!("route add {VTEP} dev up0 mtu lock 900"));
        lab.sends("too long for the route", &frame, &by_device(&frame));
        encapsulated(&lab, &small);
        ip(&format!("route replace unreachable {VTEP}"));
        lab.sends("no route", &small, &by_device(&small));
        ip("link add other type veth peer name otherp");
        ip("link set other up");
        ip(&format!("route replace {VTEP} dev other"));
        lab.sends("by another device", &small, &by_device(&small));
        shortcut(&lab, &[(lab.up, NODE), (ifindex("other"), DIRECT)]);
        assert_eq!(encapsulated(&lab, &small).0[OUTER + 12..OUTER + 16], DIRECT.octets(), "its own address");
        ip("link del other");
        // Rules of the host count, for what it sends to VXLAN's port too.
        ip(&format!("rule add ipproto 17 dport {PORT} prohibit"));
        lab.sends("prohibited", &small, &by_device(&small));
        ip(&format!("rule del ipproto 17 dport {PORT} prohibit"));
        encapsulated(&lab, &small);
        std::fs::write("/proc/sys/net/ipv4/conf/wf-vxlan/forwarding", "0").unwrap();
        lab.sends("the device does not forward", &small, &by_device(&small));
        std::fs::write("/proc/sys/net/ipv4/conf/wf-vxlan/forwarding", "1").unwrap();
        shortcut(&lab, &[]);
        lab.sends("switched off", &small, &by_device(&small));
        shortcut(&lab, &[(lab.up, NODE)]);
    }
    // Over IPv6 the device makes the header.
    let mut view = lab.view();
    view.underlays = vec![(lab.up, NODE)];
    lab.node.datapath.set_overlay(&view).unwrap();
    let frame = sent(&lab, REMOTE6, 10);
    lab.sends("a node over IPv6", &frame, &by_device(&frame));
    // What does not fit into the network is answered by the stack, on whatever way.
    let long = sent(&lab, REMOTE, MTU as usize);
    lab.sends("too long", &long, &Stack);
}

/// From another node's container to `a`.
fn inner(v4: bool) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) =
        if v4 { (REMOTE.into(), A.into()) } else { (REMOTE6.into(), A6.into()) };
    let packet = wire::Packet::new((from, 80).into(), (to, 4000).into(), wire::Kind::Tcp(wire::ACK));
    wire::frame((MacAddr([6; 6]), mac_of_address(from)), &packet.sized(50).bytes())
}

fn from_peer(inner: &[u8]) -> Vec<u8> {
    tunnelled((VTEP, NODE), (50_000, 7), VNI, 0, inner)
}

/// Whether this kernel takes an IPv4 header off an IPv6 packet (Linux 6.3).
fn takes_ipv6_out() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 3)
}

#[test]
fn what_another_node_sends_gets_into_the_sandbox() {
    let lab = lab();
    let at = (Direction::FromNetdev, lab.up, lab.up, 0);
    for v4 in [true, false] {
        let inner = inner(v4);
        let frame = from_peer(&inner);
        let into = Redirect(readdressed(&inner, lab.a.mac));
        let want = if v4 || takes_ipv6_out() { into } else { Stack };
        lab.check("into the sandbox", at, &frame, &want);
        let before = lab.node.datapath.counters(lab.a.host_ifindex).unwrap();
        lab.check("counted", at, &frame, &want);
        let after = lab.node.datapath.counters(lab.a.host_ifindex).unwrap();
        let counted = if matches!(want, Stack) { 0 } else { inner.len() as u64 };
        assert_eq!(after.rx_bytes - before.rx_bytes, counted);
        // A capable way that is not congested is no news.
        for service in [1, 2, 0xf8] {
            let frame = tunnelled((VTEP, NODE), (50_000, 7), VNI, service, &inner);
            lab.check("another class of service", at, &frame, &want);
        }
    }
}

#[test]
fn what_is_not_as_usual_comes_in_by_the_device() {
    let lab = lab();
    let at = (Direction::FromNetdev, lab.up, lab.up, 0);
    let untouched = |what: &str, frame: &[u8]| lab.check(what, at, frame, &Stack);
    for v4 in [true, false] {
        let inner = inner(v4);
        let frame = from_peer(&inner);
        let with = |offset: usize, value: u8| {
            let mut frame = frame.clone();
            frame[offset] = value;
            frame
        };
        lab.check("segments", (at.0, at.1, at.2, 500), &frame, &Stack);
        untouched("an outer checksum", &with(DATAGRAM + 7, 1));
        untouched("a datagram that ends before its packet", &with(DATAGRAM + 5, frame[DATAGRAM + 5] - 1));
        untouched("another header than VXLAN's", &with(VXLAN, 0x0c));
        untouched("no network", &with(VXLAN, 0));
        untouched("reserved bits", &with(VXLAN + 2, 1));
        untouched("reserved bits", &with(VXLAN + 7, 1));
        untouched("an unknown network", &with(VXLAN + 6, 99));
        untouched("congestion experienced", &with(OUTER + 1, 3));
        untouched("to everybody", &with(INNER, 0xff));
        untouched("no IP", &with(INNER + 12, 0x12));
        untouched("bytes behind the packet", &[&frame[..], &[0; 4]].concat());
        let other = |from, to| tunnelled((from, to), (50_000, 7), VNI, 0, &inner);
        untouched("from nobody", &other(STORE, NODE));
        untouched("to nobody", &other(VTEP, STORE));
        let mut options = frame.clone();
        options[OUTER] = 0x46;
        untouched("options", &options);
        for length in DATAGRAM..frame.len() {
            let mut cut = frame[..length].to_vec();
            untouched("cut", &cut);
            // The outer lengths agree, and what is carried is cut.
            if length > INNER {
                cut[OUTER + 2..OUTER + 4].copy_from_slice(&u16::try_from(length - L3).unwrap().to_be_bytes());
                let datagram = u16::try_from(length - DATAGRAM).unwrap();
                cut[DATAGRAM + 4..DATAGRAM + 6].copy_from_slice(&datagram.to_be_bytes());
                untouched("cut inside", &cut);
            }
        }
    }
    let carried = |from: IpAddr, to: IpAddr| {
        let packet = wire::Packet::new((from, 80).into(), (to, 4000).into(), wire::Kind::Udp);
        from_peer(&wire::frame((MacAddr([6; 6]), MacAddr([8; 6])), &packet.bytes()))
    };
    for (what, from, to) in [
        ("from a neighbour", B.into(), A.into()),
        ("from the node", OWN.into(), A.into()),
        ("from another network", OTHER.into(), A.into()),
        ("from outside", OUTSIDE.into(), A.into()),
        ("to the node", REMOTE.into(), OWN.into()),
        ("to nobody", REMOTE.into(), NOBODY.into()),
        ("to another node", REMOTE.into(), DIRECT.into()),
        ("to a group", REMOTE.into(), Ipv4Addr::new(224, 0, 0, 251).into()),
        ("from a neighbour", B6.into(), A6.into()),
        ("to the node", REMOTE6.into(), OWN6.into()),
        ("to nobody", REMOTE6.into(), NOBODY6.into()),
        ("from another network", OTHER6.into(), A6.into()),
    ] {
        untouched(what, &carried(from, to));
    }
    let advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &REMOTE6.octets()].concat();
    let discovery = ipv6((MacAddr([6; 6]), MacAddr([8; 6])), (REMOTE6, A6), &[], ICMPV6, &advertisement);
    untouched("neighbour discovery", &from_peer(&discovery));
    // Through its qdisc, which only the device leads to.
    let shaped = EndpointEntry { shaping: Shaping { ingress: true, egress: false }, ..lab.a.clone() };
    lab.node.datapath.attach(&shaped).unwrap();
    untouched("to a sandbox with a limit", &from_peer(&inner(true)));
    lab.node.datapath.attach(&lab.a).unwrap();
    shortcut(&lab, &[]);
    untouched("switched off", &from_peer(&inner(true)));
}
