//! VXLAN that nobody should believe, live: from sandboxes, from strangers, and from nodes that lie.
//!
//! The second node here is a liar with a socket: it sends the UDP datagrams itself, so every byte of the inner frame can be wrong.

use crate::{
    frames::*,
    live::{Sandbox, raw},
    node::{Netns, eventually, ip},
    overlay_nodes::*,
};
use ipamd_api::{MacAddr, mac_of_address};
use nix::sys::socket::{MsgFlags, send};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

const NET: u32 = 1;
const VNI: u32 = 4096 + NET;

/// A frame in a VXLAN header (RFC 7348, section 5).
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// Node 1 with a container, and a socket on node 2.
struct Scene {
    nodes: Nodes,
    a: Sandbox,
    liar: UdpSocket,
    /// Hears what gets to the container at port 9.
    ear: UdpSocket,
    ear6: UdpSocket,
}

impl Scene {
    fn new() -> Self {
        let nodes = Nodes::new(Underlay::V4, &[NET, 2]);
        let a = nodes.sandbox(0, NET, 2);
        let liar = nodes.nodes[1].netns.run(|| UdpSocket::bind("192.0.2.2:0").unwrap());
        let bind = |at: &str| {
            let socket = a.netns.run(|| UdpSocket::bind(at).unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (ear, ear6) = (bind("0.0.0.0:9"), bind("[fd01::1:2]:9"));
        Self { nodes, a, liar, ear, ear6 }
    }

    /// Node 2 sends a frame in VXLAN to node 1.
    fn lies(&self, vni: u32, frame: &[u8]) {
        let to = SocketAddr::new(Underlay::V4.address(1), PORT);
        self.liar.send_to(&vxlan(vni, frame), to).unwrap();
    }

    /// The frame is dropped for this reason.
    #[track_caller]
    fn dropped(&self, what: &str, vni: u32, frame: &[u8], reason: &str) {
        let before = self.nodes.dropped(0, reason);
        self.lies(vni, frame);
        eventually(&format!("{what}: {reason}"), || self.nodes.dropped(0, reason) == before + 1);
    }

    /// The next thing that the container hears is this, from there.
    #[track_caller]
    fn heard(&self, ear: &UdpSocket, from: IpAddr) {
        let mut buffer = [0; 100];
        let (length, peer) = ear
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{from}: {e}; dropped: {:?}", self.nodes.drops(0)));
        assert_eq!((&buffer[..length], peer.ip()), (&b"data"[..], from));
    }

    fn macs(&self) -> (MacAddr, MacAddr) {
        (self.a.entry.mac, mac_of_address(B4.into()))
    }
}

const A4: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
const B4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 1, 2);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 2, 3);

/// UDP without a checksum may be taken over IPv4 only.
fn udp6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut datagram = udp(1, 9);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 12, 0, 0, 0, 17]].concat();
    let sum = crate::wire::checksum(&[&pseudo, &datagram]);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

fn good4(macs: (MacAddr, MacAddr), from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = ipv4(macs, from, to, UDP, &udp(1, 9));
    crate::wire::reseal4(&mut frame[L3..]);
    frame
}

#[test]
fn a_node_that_lies_is_believed_in_nothing_but_what_is_its_own() {
    let scene = Scene::new();
    let macs = scene.macs();
    let good6 = |from, to| ipv6(macs, (from, to), &[], UDP, &udp6(from, to));
    scene.lies(VNI, &good4(macs, B4, A4));
    scene.heard(&scene.ear, B4.into());
    scene.lies(VNI, &good6(B6, A6));
    scene.heard(&scene.ear6, B6.into());
    // Whatever MAC it is sent to.
    scene.lies(VNI, &good4((MacAddr([2; 6]), MacAddr([4; 6])), B4, A4));
    scene.heard(&scene.ear, B4.into());

    let good = good4(macs, B4, A4);
    let (own, gateway) = (own4(NET, 1), gateway4(NET));
    let nobody = pod4(NET, 77, 77);
    for (what, frame, reason) in [
        ("as the container itself", good4(macs, A4, A4), "spoofed-ip"),
        ("as the container itself", good6(A6, A6), "spoofed-ip"),
        ("as this node", good4(macs, own, A4), "spoofed-ip"),
        ("as another network's", good4(macs, Ipv4Addr::new(10, 2, 2, 3), A4), "isolated"),
        ("as somebody outside", good4(macs, Ipv4Addr::new(203, 0, 113, 1), A4), "not-published"),
        ("as somebody outside", good6("2001:db8:5::1".parse().unwrap(), A6), "not-published"),
        ("to nobody", good4(macs, B4, nobody), "no-such-address"),
        ("back to its own node", good4(macs, B4, pod4(NET, 2, 4)), "no-such-address"),
        ("to another network", good4(macs, B4, Ipv4Addr::new(10, 2, 1, 2)), "no-such-address"),
        ("to the underlay", good4(macs, B4, Ipv4Addr::new(192, 0, 2, 1)), "no-such-address"),
        ("to loopback", good4(macs, B4, Ipv4Addr::LOCALHOST), "no-such-address"),
        ("to the outside", good4(macs, B4, Ipv4Addr::new(203, 0, 113, 1)), "no-such-address"),
        ("ARP", arp(macs.1, 1, (macs.1, B4), A4), "ethertype"),
        ("LLDP", ethernet(macs.0, macs.1, 0x88cc, &[0; 46]), "ethertype"),
        (
            "neighbour discovery",
            ipv6(macs, (B6, A6), &[], ICMPV6, &discovery(136, &[&B6.octets(), &link_layer(2, macs.1)])),
            "spoofed-neighbour",
        ),
        ("a router", ipv6(macs, (B6, A6), &[], ICMPV6, &discovery(134, &[&[0; 8]])), "spoofed-neighbour"),
        ("cut short", good[..good.len() - 8].to_vec(), "malformed"),
        (
            "a routing header",
            ipv6(macs, (B6, A6), &[(43, &[0, 0, 1, 0, 0, 0, 0])], UDP, &udp(1, 9)),
            "extension-header",
        ),
    ] {
        scene.dropped(what, VNI, &frame, reason);
    }
    let tagged = [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat();
    scene.dropped("a VLAN tag", VNI, &tagged, "vlan-tag");
    scene.dropped("no network", 99, &good, "unknown-peer");
    // In the other network, where the address is nobody's.
    scene.dropped("the wrong network", 4098, &good, "isolated");
    let other = good4(macs, Ipv4Addr::new(10, 2, 2, 3), A4);
    scene.dropped("the wrong network", 4098, &other, "no-such-address");
    // Nobody was asked to answer, and nothing else got in.
    for frame in [good4(macs, B4, own), good4(macs, B4, gateway)] {
        scene.lies(VNI, &frame);
    }
    scene.lies(VNI, &good);
    scene.heard(&scene.ear, B4.into());
    scene.lies(VNI, &good6(B6, A6));
    scene.heard(&scene.ear6, B6.into());
}

#[test]
fn strangers_on_the_underlay_are_not_believed() {
    let scene = Scene::new();
    let netns = &scene.nodes.nodes[1].netns;
    netns.run(|| {
        ip("addr add 192.0.2.77/24 dev under");
        ip("addr add 2001:db8::77/64 dev under nodad");
    });
    let frame = vxlan(VNI, &good4(scene.macs(), B4, A4));
    // A stranger, and a node by an address of it that is no overlay's.
    for (count, (from, underlay)) in (1..).zip([
        ("192.0.2.77:0", Underlay::V4),
        ("[2001:db8::77]:0", Underlay::V6),
        ("[2001:db8::2]:0", Underlay::V6),
    ]) {
        let socket = netns.run(|| UdpSocket::bind(from).unwrap());
        socket.send_to(&frame, SocketAddr::new(underlay.address(1), PORT)).unwrap();
        eventually(from, || scene.nodes.dropped(0, "unknown-peer") == count);
    }
    scene.lies(VNI, &good4(scene.macs(), B4, A4));
    scene.heard(&scene.ear, B4.into());
}

/// The inner frame cut at every length, and every byte of its headers changed: nothing gets through that is not for this
/// container, and the node lives on.
#[test]
fn frames_cut_or_changed_anywhere_harm_nobody() {
    let scene = Scene::new();
    let macs = scene.macs();
    let good = good4(macs, B4, A4);
    let good6 = ipv6(macs, (B6, A6), &[(60, &[0, 1, 4, 0, 0, 0, 0])], UDP, &udp6(B6, A6));
    for frame in [&good, &good6] {
        for length in 0..frame.len() {
            scene.lies(VNI, &frame[..length]);
        }
        for at in 0..frame.len().min(L3 + 56) {
            for bit in 0..8 {
                let mut changed = frame.clone();
                changed[at] ^= 1 << bit;
                scene.lies(VNI, &changed);
            }
        }
    }
    // The last one gets there; so have perhaps some of the others, all from this node.
    let mut buffer = [0; 2000];
    let last = ipv4(macs, B4, A4, UDP, &udp(77, 9));
    let mut sealed = last.clone();
    crate::wire::reseal4(&mut sealed[L3..]);
    scene.lies(VNI, &sealed);
    eventually("the last one", || {
        let (_, peer) = scene.ear.recv_from(&mut buffer).unwrap();
        peer.port() == 77
    });
}

#[test]
fn a_sandbox_cannot_speak_for_a_node() {
    let scene = Scene::new();
    let b = scene.nodes.sandbox(1, NET, 3);
    let forged = vxlan(VNI, &good4(scene.macs(), B4, A4));
    let sent = |socket: &UdpSocket, to: &str| {
        socket.send_to(&forged, to.parse::<SocketAddr>().unwrap()).unwrap();
    };
    // By sockets: to the other node, to its own, by every address of them.
    let (v4, v6) =
        scene.a.netns.run(|| (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap()));
    let mut count = 0;
    for to in ["192.0.2.2", "192.0.2.1", "10.1.0.1", "10.1.1.254"] {
        sent(&v4, &format!("{to}:{PORT}"));
        sent(&v6, &format!("[::ffff:{to}]:{PORT}"));
        count += 2;
        eventually(to, || scene.nodes.dropped(0, "forged-overlay") == count);
    }
    for to in ["2001:db8::1", "fd01::1", "fd01::1:fe"] {
        sent(&v6, &format!("[{to}]:{PORT}"));
        count += 1;
        eventually(to, || scene.nodes.dropped(0, "forged-overlay") == count);
    }
    // By a raw socket, with a node's address as the source.
    let socket = raw(&scene.a);
    let lie = ipv4(
        (scene.a.entry.gateway_mac, scene.a.entry.mac),
        Ipv4Addr::new(192, 0, 2, 1),
        Ipv4Addr::new(192, 0, 2, 2),
        UDP,
        &[&[0x12, 0x34][..], &PORT.to_be_bytes(), &(8 + forged.len() as u16).to_be_bytes(), &[0, 0], &forged]
            .concat(),
    );
    send(socket.as_raw_fd(), &lie, MsgFlags::empty()).unwrap();
    eventually("raw", || scene.nodes.dropped(0, "spoofed-ip") == 1);
    // In fragments, the first of which has the port.
    let large = [forged.clone(), vec![0; 4000]].concat();
    v4.send_to(&large, ("192.0.2.2", PORT)).unwrap();
    eventually("fragments", || scene.nodes.dropped(0, "forged-overlay") == count + 1);
    // The other node's own overlay address is an address like any other to this one; there, nobody believes it.
    sent(&v4, &format!("10.1.2.254:{PORT}"));
    eventually("at the other node", || scene.nodes.dropped(1, "forged-overlay") == 1);
    assert_eq!(scene.nodes.dropped(1, "unknown-peer"), 0);
    drop(b);
}

/// A container of somebody else on the node (Docker's): the host masquerades what it sends, so it comes from the node.
#[test]
fn a_container_of_somebody_else_cannot_speak_for_a_node_either() {
    let scene = Scene::new();
    let (other, node) = (Netns::new(), &scene.nodes.nodes[0]);
    node.netns.run(|| {
        ip(&format!("link add docker1 type veth peer name eth0 netns {}", other.path()));
        ip("addr add 172.30.0.1/24 dev docker1");
        ip("link set docker1 up");
        crate::node::run("iptables", "-w -t nat -A POSTROUTING -s 172.30.0.0/24 -j MASQUERADE");
    });
    let socket = other.run(|| {
        ip("addr add 172.30.0.2/24 dev eth0");
        ip("link set eth0 up");
        ip("route add default via 172.30.0.1");
        UdpSocket::bind("0.0.0.0:0").unwrap()
    });
    let forged = vxlan(VNI, &good4(scene.macs(), A4, B4));
    socket.send_to(&forged, ("192.0.2.2", PORT)).unwrap();
    eventually("dropped", || scene.nodes.dropped(0, "forged-overlay") == 1);
    // Its other datagrams pass, so it was not for want of a way.
    let server = scene.nodes.nodes[1].netns.run(|| UdpSocket::bind("192.0.2.2:7777").unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"x", "192.0.2.2:7777").unwrap();
    assert_eq!(server.recv_from(&mut [0; 10]).unwrap().1.ip(), Underlay::V4.address(1));
    assert_eq!(scene.nodes.dropped(1, "no-such-address"), 0);
}

#[test]
fn the_store_is_out_of_reach() {
    use std::net::TcpStream;
    let scene = Scene::new();
    let store = SocketAddr::new(Underlay::V4.address(2), 2379);
    let listener = scene.nodes.nodes[1].netns.run(|| std::net::TcpListener::bind("[::]:2379").unwrap());
    for index in [0, 1] {
        let mut view = scene.nodes.view(index, &[NET, 2]);
        view.guarded = vec![store];
        scene.nodes.set(index, &view);
    }
    // The node reaches it.
    scene.nodes.nodes[0].netns.run(|| TcpStream::connect_timeout(&store, Duration::from_secs(10)).unwrap());
    listener.accept().unwrap();
    // A container does not, by no address of that node.
    let patience = Duration::from_millis(300);
    for (to, at) in [("192.0.2.2:2379", 0), ("10.1.2.254:2379", 1), ("[fd01::2:fe]:2379", 1)] {
        let before = scene.nodes.dropped(at, "guarded");
        let to: SocketAddr = to.parse().unwrap();
        let failed = scene.a.netns.run(|| TcpStream::connect_timeout(&to, patience).is_err());
        assert!(failed && scene.nodes.dropped(at, "guarded") > before, "{to}");
    }
    let b = scene.nodes.sandbox(1, NET, 3);
    for to in ["10.1.0.1:2379", "[fd01::1]:2379", "192.0.2.2:2379", "[2001:db8::2]:2379", "10.1.2.254:2379"] {
        let before = scene.nodes.dropped(1, "guarded");
        let to: SocketAddr = to.parse().unwrap();
        let failed = b.netns.run(|| TcpStream::connect_timeout(&to, patience).is_err());
        assert!(failed && scene.nodes.dropped(1, "guarded") > before, "{to}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody got there");
}
