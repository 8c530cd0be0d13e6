//! Overlay networks in the real maps: what is written, what is removed, what a start makes of leftovers, and the programs on the device.

use crate::node::{Bpffs, NETWORK, Node, ifindex, ip, run};
use aya::maps::{HashMap, Map, MapData};
use ebpf_common::{LOCAL_REPLICAS, OverlayNetwork, Replica, ReplicaKey};
use ipamd::datapath::{Datapath, EndpointEntry, OverlayDevice, OverlayEntry, OverlayView, PeerEntry};
use ipamd_api::MacAddr;
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

/// Makes a VXLAN device.
fn device(name: &str, port: u16) -> OverlayDevice {
    ip(&format!("link add {name} type vxlan external dstport {port} nolearning"));
    OverlayDevice { ifindex: ifindex(name), port, mac: MacAddr([2, 0x57, 0, 0, 0, 1]) }
}

fn network(id: u32, flood_to: &[&str]) -> OverlayEntry {
    OverlayEntry {
        network: id,
        vni: 4096 + id,
        mtu: 1450,
        flood: !flood_to.is_empty(),
        ipv4: Some(("10.1.0.9".parse().unwrap(), "10.1.0.1".parse().unwrap())),
        ipv6: Some(("fd01::9".parse().unwrap(), "fd01::1".parse().unwrap())),
        flood_to: flood_to.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

fn peer(network: u32, destination: &str, remote: &str, direct: bool) -> PeerEntry {
    PeerEntry { network, destination: destination.parse().unwrap(), remote: remote.parse().unwrap(), direct }
}

/// A view with something of everything.
fn view(device: OverlayDevice) -> OverlayView {
    let mut peers = vec![
        peer(1, "10.1.1.0/26", "192.0.2.2", false),
        peer(1, "10.1.2.0/26", "2001:db8::2", true),
        peer(1, "10.1.2.7/32", "192.0.2.2", false),
        peer(1, "fd01::1:0/122", "192.0.2.2", false),
        peer(2, "10.2.1.0/26", "192.0.2.3", true),
    ];
    peers.sort_unstable();
    OverlayView {
        device: Some(device),
        networks: vec![network(1, &["192.0.2.2", "2001:db8::2"]), network(2, &[])],
        peers,
        vteps: ["192.0.2.2", "192.0.2.3", "2001:db8::2"].map(|a| a.parse().unwrap()).to_vec(),
        underlays: vec![(2, "192.0.2.1".parse().unwrap()), (5, "198.51.100.1".parse().unwrap())],
        clamps: vec![("192.0.2.3".parse().unwrap(), 1300)],
        guarded: vec!["192.0.2.2:2379".parse().unwrap(), "[2001:db8::2]:2379".parse().unwrap()],
    }
}

/// Names of the programs on a device.
fn filters(name: &str) -> String {
    ["ingress", "egress"].map(|hook| run("tc", &format!("filter show dev {name} {hook}"))).concat()
}

#[test]
fn the_maps_become_what_is_wanted() {
    let node = Node::new();
    let first = view(device("wf-vxlan", 4789));
    for _ in 0..2 {
        node.datapath.set_overlay(&first).unwrap();
        assert_eq!(node.datapath.observe_overlay().unwrap(), first);
    }
    assert!(filters("wf-vxlan").contains("from_overlay") && filters("wf-vxlan").contains("to_overlay"));
    // Everything changes, or goes.
    let mut second = first.clone();
    second.networks = vec![network(3, &["192.0.2.9"]), OverlayEntry { vni: 77, ..network(2, &[]) }];
    second.networks.sort_by_key(|n| n.network);
    second.peers =
        vec![peer(1, "10.1.2.0/26", "192.0.2.2", false), peer(3, "10.3.0.0/16", "192.0.2.3", true)];
    second.peers.sort_unstable();
    second.vteps.remove(0);
    second.guarded.remove(1);
    node.datapath.set_overlay(&second).unwrap();
    assert_eq!(node.datapath.observe_overlay().unwrap(), second);
    // The device is made anew: with another port, say.
    let third = OverlayView { device: Some(device("wf-other", 4790)), ..second };
    node.datapath.set_overlay(&third).unwrap();
    assert_eq!(filters("wf-vxlan"), "");
    assert!(filters("wf-other").contains("from_overlay"));
    node.datapath.set_overlay(&OverlayView::default()).unwrap();
    assert_eq!(node.datapath.observe_overlay().unwrap(), OverlayView::default());
    assert_eq!(filters("wf-other"), "");
}

#[test]
fn a_start_adopts_and_removes_what_nobody_wants() {
    let node = Node::new();
    let first = view(device("wf-vxlan", 4789));
    node.datapath.set_overlay(&first).unwrap();
    let before = filters("wf-vxlan");
    node.bpffs.let_programs_go();
    let again = node.bpffs.open();
    assert_eq!(again.observe_overlay().unwrap(), first);
    let mut second = first.clone();
    second.peers.remove(0);
    second.networks.pop();
    again.set_overlay(&second).unwrap();
    assert_eq!(again.observe_overlay().unwrap(), second);
    let after = filters("wf-vxlan");
    assert!(after != before && after.matches("direct-action").count() == 2, "replaced in place: {after}");
    // Somebody takes the programs off.
    run("tc", "qdisc del dev wf-vxlan clsact");
    again.set_overlay(&second).unwrap();
    assert!(filters("wf-vxlan").contains("from_overlay"));
    // The device goes, and the view still has it: the rest is done, and it is said.
    ip("link del wf-vxlan");
    let error = again.set_overlay(&first).unwrap_err().to_string();
    assert!(error.contains("VXLAN device"), "{error}");
    assert_eq!(again.observe_overlay().unwrap(), first);
    again.set_overlay(&OverlayView { device: None, ..first }).unwrap();
}

/// Host-side veths that get copies in a network, as the programs find them.
fn copies(bpffs: &Bpffs, network: u32) -> Vec<u32> {
    let pin = |name: &str| {
        let path = bpffs.path().join(format!("weft/v{}/{name}", ebpf_common::LAYOUT_VERSION));
        Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap()
    };
    let networks = HashMap::<_, u32, OverlayNetwork>::try_from(pin("OVERLAY_NETWORKS")).unwrap();
    let replicas = HashMap::<_, ReplicaKey, Replica>::try_from(pin("REPLICAS")).unwrap();
    let known = networks.get(&network, 0).unwrap();
    let local = |index| replicas.get(&ReplicaKey { network, index: LOCAL_REPLICAS + index }, 0);
    assert!(local(known.locals).is_err(), "one more than there are");
    (0..known.locals).map(|index| local(index).unwrap().ifindex).collect()
}

#[test]
fn endpoints_get_copies_while_they_are_there() {
    let node = Node::new();
    let on_overlay = |last| EndpointEntry { overlay: true, ..node.endpoint(last) };
    let (a, b, c) = (on_overlay(2), on_overlay(3), on_overlay(4));
    let bridged = node.endpoint(5);
    let flooding = OverlayView {
        device: Some(device("wf-vxlan", 4789)),
        networks: vec![network(NETWORK, &["192.0.2.2"])],
        ..OverlayView::default()
    };
    node.datapath.attach(&a).unwrap();
    node.datapath.attach(&bridged).unwrap();
    node.datapath.set_overlay(&flooding).unwrap();
    let sorted = |entries: &[&EndpointEntry]| {
        let mut veths: Vec<_> = entries.iter().map(|e| e.host_ifindex).collect();
        veths.sort_unstable();
        veths
    };
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&a]));
    node.datapath.attach(&b).unwrap();
    node.datapath.attach(&c).unwrap();
    node.datapath.attach(&c).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&a, &b, &c]));
    node.datapath.forget(&(&b).into()).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&a, &c]));
    // A start finds those that are there.
    let again = node.bpffs.open();
    again.forget(&(&a).into()).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&c]));
    again.set_overlay(&flooding).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&c]));
    let quiet = OverlayView { networks: vec![network(NETWORK, &[])], ..flooding.clone() };
    again.set_overlay(&quiet).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[]));
    again.attach(&a).unwrap();
    again.set_overlay(&flooding).unwrap();
    assert_eq!(copies(&node.bpffs, NETWORK), sorted(&[&a, &c]));
}

#[test]
fn many_blocks_are_written_once() {
    let node = Node::new();
    let mut view = view(device("wf-vxlan", 4789));
    for i in 0..10_000_u32 {
        let (block, remote) = (Ipv4Addr::from(0x0a80_0000 + i * 64), Ipv4Addr::from(0x6440_0000 + i / 2));
        view.peers.push(peer(1, &format!("{block}/26"), &remote.to_string(), false));
        view.vteps.push(IpAddr::V4(remote));
    }
    view.peers.sort_unstable();
    view.vteps.sort_unstable();
    view.vteps.dedup();
    let timed = |view: &OverlayView| {
        let started = Instant::now();
        node.datapath.set_overlay(view).unwrap();
        started.elapsed()
    };
    let all = timed(&view);
    assert_eq!(node.datapath.observe_overlay().unwrap(), view);
    view.peers.remove(5000);
    let one = timed(&view);
    assert_eq!(node.datapath.observe_overlay().unwrap(), view);
    println!("10,000 blocks of 5,000 nodes: {all:?}; one less: {one:?}");
    // Far above what it takes, far below what it would take to write them all again on a slow machine.
    assert!(all < Duration::from_secs(20), "{all:?}");
}

#[test]
fn uninstall_takes_the_programs_off() {
    let node = Node::new();
    node.datapath.set_overlay(&view(device("wf-vxlan", 4789))).unwrap();
    let removed = node.datapath.uninstall().unwrap();
    assert!(removed.iter().any(|r| r.contains("wf-vxlan")), "{removed:?}");
    assert!(removed.iter().any(|r| r.ends_with("/PEERS")), "{removed:?}");
    assert_eq!(filters("wf-vxlan"), "");
}
