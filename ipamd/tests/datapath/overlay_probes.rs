//! The network in which nodes probe each other, live: whose packets get to the node, and whose do not.

use crate::{
    frames::*,
    live::Sandbox,
    node::{eventually, ip},
    overlay_nodes::*,
};
use ebpf_common::PROBE_NETWORK;
use ipamd::{
    datapath::{Datapath, OverlayEntry, PeerEntry},
    overlay::{probe_address, probe_pool},
};
use ipamd_api::{MacAddr, Overlay};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

const NET: u32 = 1;
const NAMES: [&str; 2] = ["one", "two"];
const HEARING: u16 = 9;

/// Two nodes that probe each other, and a container on the first.
struct Scene {
    nodes: Nodes,
    a: Sandbox,
    /// At the first node's probe address.
    ear: UdpSocket,
    /// Sends VXLAN from the second node, as it likes.
    liar: UdpSocket,
}

impl Scene {
    fn new() -> Self {
        let nodes = Nodes::new(Underlay::V4, &[NET]);
        for (index, name) in NAMES.iter().enumerate() {
            let (own, node) = (probe_address(name), &nodes.nodes[index]);
            node.datapath.set_pools(PROBE_NETWORK, &[probe_pool()]).unwrap();
            let mut view = nodes.view(index, &[NET]);
            view.networks.push(OverlayEntry {
                network: PROBE_NETWORK,
                vni: Overlay::PROBE_VNI,
                mtu: 1450,
                flood: false,
                ipv4: None,
                ipv6: Some((own, Ipv6Addr::UNSPECIFIED)),
                flood_to: Vec::new(),
            });
            view.peers.push(PeerEntry {
                network: PROBE_NETWORK,
                destination: IpAddr::from(probe_address(NAMES[1 - index])).into(),
                remote: view.vteps[0],
                direct: false,
            });
            nodes.set(index, &view);
            node.netns.run(|| {
                ip(&format!("addr add {own}/128 dev wf-vxlan nodad"));
                ip(&format!("route add {} dev wf-vxlan src {own}", probe_pool()));
            });
        }
        let a = nodes.sandbox(0, NET, 2);
        let open =
            |index: usize, at: SocketAddr| nodes.nodes[index].netns.run(|| UdpSocket::bind(at).unwrap());
        let ear = open(0, (probe_address(NAMES[0]), HEARING).into());
        ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let liar = open(1, "192.0.2.2:0".parse().unwrap());
        Self { nodes, a, ear, liar }
    }

    fn heard(&self) -> IpAddr {
        let (_, from) = self.ear.recv_from(&mut [0; 100]).unwrap();
        from.ip()
    }

    /// The second node sends a datagram in this network.
    fn lies(&self, vni: u32, from: Ipv6Addr, to: Ipv6Addr) {
        let mut datagram = udp(1, HEARING);
        let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 12, 0, 0, 0, 17]].concat();
        let sum = crate::wire::checksum(&[&pseudo, &datagram]);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        let frame = ipv6((MacAddr([2; 6]), MacAddr([4; 6])), (from, to), &[], UDP, &datagram);
        let vxlan = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), &frame].concat();
        self.liar.send_to(&vxlan, (Underlay::V4.address(1), PORT)).unwrap();
    }
}

#[test]
fn nodes_reach_each_other_and_nobody_else_gets_there() {
    let scene = Scene::new();
    let [one, two] = NAMES.map(probe_address);
    let sender = scene.nodes.nodes[1].netns.run(|| UdpSocket::bind((two, 0)).unwrap());
    sender.send_to(b"data", (one, HEARING)).unwrap();
    assert_eq!(scene.heard(), two);
    assert_eq!((scene.nodes.drops(0), scene.nodes.drops(1)), (vec![], vec![]));

    scene.lies(Overlay::PROBE_VNI, two, one);
    assert_eq!(scene.heard(), two, "the liar is heard when it says what is so");
    let (pod, neighbour, own) = (pod6(NET, 1, 2), pod6(NET, 2, 3), own6(NET, 1));
    for (what, vni, (from, to), reason) in [
        ("as this node", Overlay::PROBE_VNI, (one, one), "spoofed-ip"),
        ("as a container", Overlay::PROBE_VNI, (neighbour, one), "isolated"),
        ("to a container", Overlay::PROBE_VNI, (two, pod), "no-such-address"),
        ("to this node's address on another network", Overlay::PROBE_VNI, (two, own), "no-such-address"),
        ("in another network", 4096 + NET, (neighbour, one), "no-such-address"),
        ("in another network, as a node", 4096 + NET, (two, pod), "isolated"),
        ("in another network, as a node to a node", 4096 + NET, (two, one), "isolated"),
    ] {
        let before = scene.nodes.dropped(0, reason);
        scene.lies(vni, from, to);
        eventually(&format!("{what}: {reason}"), || scene.nodes.dropped(0, reason) == before + 1);
    }
    // Nothing of all that was heard, or this would not be the next.
    sender.send_to(b"data", (one, HEARING)).unwrap();
    assert_eq!(scene.heard(), two);
}

#[test]
fn strangers_do_not_probe() {
    let scene = Scene::new();
    let [one, two] = NAMES.map(probe_address);
    let node = &scene.nodes.nodes[0];
    let view = node.datapath.observe_overlay().unwrap();
    // The second node is removed from the cluster, and does not know.
    let mut alone = view.clone();
    alone.vteps.clear();
    node.datapath.set_overlay(&alone).unwrap();
    let sender = scene.nodes.nodes[1].netns.run(|| UdpSocket::bind((two, 0)).unwrap());
    sender.send_to(b"data", (one, HEARING)).unwrap();
    eventually("dropped", || scene.nodes.dropped(0, "unknown-peer") == 1);
    node.datapath.set_overlay(&view).unwrap();
    sender.send_to(b"data", (one, HEARING)).unwrap();
    assert_eq!(scene.heard(), two);
}

#[test]
fn a_sandbox_does_not_get_there() {
    let scene = Scene::new();
    let [one, two] = NAMES.map(probe_address);
    let socket = scene.a.netns.run(|| UdpSocket::bind("[::]:0").unwrap());
    for (count, to) in (1..).zip([one, two, "fd77:6566:7470::1".parse().unwrap()]) {
        socket.send_to(b"data", (to, HEARING)).unwrap();
        eventually(&format!("{to}"), || scene.nodes.dropped(0, "isolated") == count);
    }
    // With a node's address as its own it does not leave either.
    scene.a.netns.run(|| ip(&format!("addr add {two}/128 dev eth0 nodad")));
    let forged = scene.a.netns.run(|| UdpSocket::bind((two, 0)).unwrap());
    forged.send_to(b"data", (one, HEARING)).unwrap();
    eventually("forged", || scene.nodes.dropped(0, "spoofed-ip") == 1);
    // Nor does a node send what is not its own: the pool of the source tells.
    let sender = scene.nodes.nodes[0].netns.run(|| UdpSocket::bind((own6(NET, 1), 0)).unwrap());
    // The error of a hook comes at once, or not at all.
    let _ = sender.send_to(b"data", (two, HEARING));
    eventually("from an address of another network", || scene.nodes.dropped(0, "isolated") == 4);
}
