//! Live traffic between two nodes by VXLAN.

use crate::{
    live::{Sandbox, transfer},
    node::{bound, eventually, run},
    overlay_nodes::*,
};
use ipamd::datapath::{Datapath, OverlayView};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

const NET: u32 = 1;

/// Both addresses of a container.
fn addresses(sandbox: &Sandbox) -> [IpAddr; 2] {
    [sandbox.entry.ipv4.unwrap().0.into(), sandbox.entry.ipv6.unwrap().0.into()]
}

/// A datagram there and back, as large as that.
fn exchange(from: &Sandbox, to: &Sandbox, at: SocketAddr, length: usize) {
    let server = to.netns.run(|| bound(|| UdpSocket::bind(at)));
    let wildcard: SocketAddr = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let client = from.netns.run(|| UdpSocket::bind(wildcard).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let sent: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
    client.send_to(&sent, at).unwrap();
    let mut buffer = vec![0; length + 1];
    let (received, peer) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{at}, {length}: {e}"));
    assert!(buffer[..received] == sent, "{at}: {received} of {length} bytes");
    assert!(addresses(from).contains(&peer.ip()), "{peer}");
    server.send_to(&sent, peer).unwrap();
    let (received, peer) =
        client.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{at}, {length} back: {e}"));
    assert!(buffer[..received] == sent && peer == at, "{peer}: {received} of {length} bytes");
}

/// How a device has counted: packets and bytes.
fn counted(device: &str, direction: &str) -> [u64; 2] {
    let text = run("ip", &format!("-j -s link show dev {device}"));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    ["packets", "bytes"].map(|what| links[0]["stats64"][direction][what].as_u64().unwrap())
}

fn neighbours_on_two_nodes(underlay: Underlay) {
    exchange_between(&Nodes::new(underlay, &[NET]));
}

fn exchange_between(nodes: &Nodes) {
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    let c = nodes.sandbox(0, NET, 4);
    for to in [&b, &c] {
        for address in addresses(to) {
            a.netns.run(|| run("ping", &format!("-q -c 3 -i 0.02 -W 5 {address}")));
            for length in [10, 1400, 4000, 30_000] {
                exchange(&a, to, SocketAddr::new(address, 9000), length);
            }
            const BYTES: u64 = 16 << 20;
            let at = SocketAddr::new(address, 80).to_string();
            assert_eq!(transfer(&a, to, &at, &at, BYTES), BYTES, "{at}");
        }
    }
    // Fragments of fragments, and an address that nobody has asked for yet.
    b.netns.run(|| run("ping", &format!("-q -c 1 -W 5 -s 20000 {}", addresses(&a)[0])));
    for index in [0, 1] {
        assert_eq!(nodes.drops(index), [], "node {}", index + 1);
    }
    let [sent, received] =
        [(0, &a), (1, &b)].map(|(i, s)| nodes.nodes[i].datapath.counters(s.entry.host_ifindex).unwrap());
    assert!(sent.tx_bytes > 32 << 20 && received.rx_bytes > 32 << 20, "{sent:?} {received:?}");
}

#[test]
fn neighbours_on_two_nodes_over_ipv4() {
    neighbours_on_two_nodes(Underlay::V4);
}

#[test]
fn either_node_may_do_without_the_shortcut() {
    for off in [&[0][..], &[1], &[0, 1]] {
        let nodes = Nodes::new(Underlay::V4, &[NET]);
        for index in off {
            nodes.set(*index, &OverlayView { underlays: Vec::new(), ..nodes.view(*index, &[NET]) });
        }
        exchange_between(&nodes);
    }
}

#[test]
fn a_stream_passes_the_device_by_and_stays_in_large_pieces() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let (a, b) = (nodes.sandbox(0, NET, 2), nodes.sandbox(1, NET, 3));
    let at = |device, direction| nodes.nodes[0].netns.run(|| counted(device, direction));
    const BYTES: u64 = 32 << 20;
    for address in addresses(&b) {
        let (device, uplink) = (at("wf-vxlan", "tx"), at("under", "tx"));
        let to = SocketAddr::new(address, 80).to_string();
        assert_eq!(transfer(&a, &b, &to, &to, BYTES), BYTES, "{to}");
        assert_eq!(at("wf-vxlan", "tx"), device, "{to}: what the VXLAN device has sent");
        let [packets, bytes] = at("under", "tx");
        let (packets, bytes) = (packets - uplink[0], bytes - uplink[1]);
        assert!(bytes > BYTES && bytes / packets > 6000, "{to}: {bytes} bytes in {packets} packets");
    }
}

#[test]
fn an_uplink_that_does_nothing_for_the_stack_gets_packets_that_are_complete() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    for node in &nodes.nodes {
        // Checksums, and segments, are made by the stack; the receiver looks at what it gets.
        node.netns.run(|| run("ethtool", "-K under tx off sg off tso off gso off gro off"));
    }
    exchange_between(&nodes);
}

#[test]
fn neighbours_on_two_nodes_over_ipv6() {
    neighbours_on_two_nodes(Underlay::V6);
}

#[test]
fn the_gateway_and_both_nodes_answer() {
    let nodes = Nodes::new(Underlay::V4, &[NET]);
    let a = nodes.sandbox(0, NET, 2);
    let gateways: [IpAddr; 2] = [gateway4(NET).into(), gateway6(NET).into()];
    let own: Vec<IpAddr> = [1, 2].iter().flat_map(|&n| [own4(NET, n).into(), own6(NET, n).into()]).collect();
    for address in gateways.iter().chain(&own) {
        a.netns.run(|| run("ping", &format!("-q -c 2 -i 0.02 -W 5 {address}")));
    }
    // The other node's own traffic, and the way back.
    for address in addresses(&a) {
        for node in &nodes.nodes {
            node.netns.run(|| run("ping", &format!("-q -c 2 -i 0.02 -W 5 {address}")));
        }
    }
    for index in [0, 1] {
        assert_eq!(nodes.drops(index), [], "node {}", index + 1);
    }
}

#[test]
fn a_network_is_not_another_one() {
    let nodes = Nodes::new(Underlay::V4, &[1, 2]);
    let (a, b) = (nodes.sandbox(0, 1, 2), nodes.sandbox(1, 2, 3));
    let own = nodes.sandbox(1, 1, 4);
    for address in addresses(&own) {
        a.netns.run(|| run("ping", &format!("-q -c 1 -W 5 {address}")));
    }
    let socket = a.netns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.send_to(b"x", SocketAddr::new(addresses(&b)[0], 9)).unwrap();
    eventually("isolated", || nodes.dropped(0, "isolated") == 1);
    // The other node knows this network by another number.
    let mut view = nodes.view(1, &[1, 2]);
    view.networks[0].vni = 99;
    nodes.set(1, &view);
    socket.send_to(b"x", SocketAddr::new(addresses(&own)[0], 9)).unwrap();
    eventually("another number", || nodes.dropped(1, "unknown-peer") == 1);
    // It does not know this node.
    let mut view = nodes.view(1, &[1, 2]);
    view.vteps = vec!["192.0.2.77".parse().unwrap()];
    nodes.set(1, &view);
    socket.send_to(b"x", SocketAddr::new(addresses(&own)[0], 9)).unwrap();
    eventually("another node", || nodes.dropped(1, "unknown-peer") == 2);
}
