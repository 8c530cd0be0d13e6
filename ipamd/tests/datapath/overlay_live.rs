//! Live traffic between two nodes by VXLAN.

use crate::{
    live::{Sandbox, transfer},
    node::{eventually, run},
    overlay_nodes::*,
};
use ipamd::datapath::Datapath;
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
    let server = to.netns.run(|| UdpSocket::bind(at).unwrap());
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

fn neighbours_on_two_nodes(underlay: Underlay) {
    let nodes = Nodes::new(underlay, &[NET]);
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
