//! A cluster by hand, and clusters by chance.

use super::*;
use crate::kernel::{HostAddress, HostDevices, HostLink, HostRoute, LinkLayer, Scope};
use ipamd_api::{Hooks, MacAddr};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(subnet: &str, gateway: &str) -> Pool {
    Pool {
        subnet: net(subnet),
        gateway: ip(gateway),
        dynamic_range: net(subnet),
        reserved: vec![],
        static_addresses: Default::default(),
    }
}

/// Network number `id`: 10.<id>.0.0/16 and fd00:<id>::/64, VNI 4096 + id.
fn network(id: u32) -> Network {
    Network {
        id,
        name: format!("net{id}"),
        driver: Driver::Overlay,
        pools: vec![
            pool(&format!("10.{id}.0.0/16"), &format!("10.{id}.0.1")),
            pool(&format!("fd00:{id}::/64"), &format!("fd00:{id}::1")),
        ],
        mtu: 0,
        internal: false,
        parent: None,
        hooks: Hooks::Clsact,
        masquerade: true,
        masquerade_except: vec![],
        routed: false,
        dns_mode: ipamd_api::DnsMode::Gateway,
        dns_upstreams: vec![],
        overlay: Some(Overlay { vni: 4096 + id, encapsulation: Encapsulation::Always, flood: false }),
        created_at: 0,
    }
}

fn own_address(address: &str, mtu: u32, segment: Option<&str>) -> UnderlayAddress {
    UnderlayAddress { address: ip(address), ifindex: 2, mtu, plain: true, segment: segment.map(net) }
}

/// Node `a` at 192.0.2.1, which uses network 1.
fn this() -> ThisNode {
    let addresses = vec![own_address("192.0.2.1", 1500, Some("192.0.2.0/24"))];
    let own = OwnPart {
        addresses: vec![ip("10.1.0.2"), ip("fd00:1::2")],
        blocks: vec![net("10.1.0.0/26"), net("fd00:1::/122")],
    };
    ThisNode {
        name: "a".into(),
        underlay: Underlay { addresses, problems: vec![] },
        port: 4789,
        default_mtu: 1500,
        own: BTreeMap::from([(1, own)]),
        guarded: vec![],
        probes: false,
        shortcut: false,
        clamps: BTreeMap::new(),
    }
}

fn peer(underlay: &[&str], segments: &[&str]) -> Peer {
    Peer {
        underlay: underlay.iter().map(|a| ip(a)).collect(),
        segments: segments.iter().map(|s| net(s)).collect(),
        port: 4789,
    }
}

/// Nodes `a`, `b` on its segment, and `c` elsewhere.
fn topology() -> Topology {
    let mut topology = Topology::default();
    topology.nodes.insert("a".into(), peer(&["192.0.2.1"], &["192.0.2.0/24"]));
    topology.nodes.insert("b".into(), peer(&["192.0.2.2"], &["192.0.2.0/24"]));
    topology.nodes.insert("c".into(), peer(&["198.51.100.3"], &["198.51.100.0/24"]));
    for (network, block, node) in [
        (1, "10.1.0.0/26", "a"),
        (1, "fd00:1::/122", "a"),
        (1, "10.1.0.64/26", "b"),
        (1, "fd00:1::40/122", "b"),
        (1, "10.1.0.128/26", "c"),
        (2, "10.2.0.0/26", "c"),
    ] {
        topology.blocks.insert((network, net(block)), node.into());
    }
    topology
}

fn of(this: &ThisNode, topology: &Topology) -> Desired {
    desired(this, &[network(1), network(2)], topology)
}

fn routes(desired: &Desired) -> Vec<String> {
    desired.wiring.iter().flat_map(|w| &w.routes).map(ToString::to_string).collect()
}

fn peers(desired: &Desired) -> Vec<String> {
    let word = |p: &PeerEntry| {
        format!("{} {} at {}{}", p.network, p.destination, p.remote, if p.direct { " direct" } else { "" })
    };
    desired.view.peers.iter().map(word).collect()
}

#[test]
fn a_node_knows_its_peers_blocks_and_its_own_routes() {
    let found = of(&this(), &topology());
    assert_eq!(found.problems, [""; 0]);
    assert_eq!(
        peers(&found),
        ["1 10.1.0.64/26 at 192.0.2.2", "1 10.1.0.128/26 at 198.51.100.3", "1 fd00:1::40/122 at 192.0.2.2"],
        "nothing of its own, nothing of networks it does not use"
    );
    assert_eq!(found.view.vteps, [ip("192.0.2.2"), ip("198.51.100.3")]);
    let entry = OverlayEntry {
        network: 1,
        vni: 4097,
        mtu: 1450,
        flood: false,
        ipv4: Some(("10.1.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap())),
        ipv6: Some(("fd00:1::2".parse().unwrap(), "fd00:1::1".parse().unwrap())),
        flood_to: vec![],
    };
    assert_eq!(found.view.networks, [entry]);
    assert_eq!(
        routes(&found),
        [
            "10.1.0.0/16 dev wf-vxlan src 10.1.0.2 mtu 1450",
            "unreachable 10.1.0.0/26",
            "fd00:1::/64 dev wf-vxlan src fd00:1::2 mtu 1450",
            "unreachable fd00:1::/122",
        ]
    );
    let wiring = found.wiring.unwrap();
    assert_eq!((wiring.port, wiring.mtu, wiring.mac), (4789, 1450, MacAddr([0x0a, 0x57, 192, 0, 2, 1])));
    assert_eq!(
        wiring.addresses,
        [net("10.1.0.1/32"), net("10.1.0.2/16"), net("fd00:1::1/128"), net("fd00:1::2/64")]
    );
}

#[test]
fn without_overlay_networks_there_is_nothing_and_without_endpoints_only_the_device() {
    let mut bridge = network(1);
    bridge.driver = Driver::Bridge;
    bridge.overlay = None;
    let guarded = vec!["192.0.2.9:2379".parse().unwrap()];
    let node = ThisNode { guarded: guarded.clone(), ..this() };
    let found = desired(&node, &[bridge], &topology());
    assert_eq!((found.wiring, found.problems), (None, vec![]));
    assert_eq!(found.view, OverlayView { guarded, ..OverlayView::default() });

    let idle = ThisNode { own: BTreeMap::new(), ..this() };
    let found = of(&idle, &topology());
    let wiring = found.wiring.unwrap();
    assert_eq!((wiring.addresses, wiring.routes), (vec![], vec![]));
    assert_eq!((found.view.peers, found.view.networks), (vec![], vec![]));
    assert_eq!(found.view.vteps.len(), 2, "sandboxes must not send VXLAN to them in the node's name");
}

#[test]
fn nodes_on_a_shared_segment_are_routed_to_if_the_network_says_so() {
    let mut direct = network(1);
    direct.overlay = Some(Overlay { encapsulation: Encapsulation::CrossSubnet, ..direct.overlay.unwrap() });
    let found = desired(&this(), &[direct.clone()], &topology());
    assert_eq!(
        peers(&found),
        [
            "1 10.1.0.64/26 at 192.0.2.2 direct",
            "1 10.1.0.128/26 at 198.51.100.3",
            "1 fd00:1::40/122 at 192.0.2.2"
        ],
        "IPv6 has no next hop on an IPv4 underlay"
    );
    assert!(routes(&found).contains(&"10.1.0.64/26 via 192.0.2.2 src 10.1.0.2".to_owned()));
    assert_eq!(routes(&found).len(), 5);

    let mut both = this();
    both.underlay.addresses.push(own_address("2001:db8::1", 1500, Some("2001:db8::/64")));
    let mut topology = topology();
    topology
        .nodes
        .insert("b".into(), peer(&["2001:db8::2", "192.0.2.2"], &["192.0.2.0/24", "2001:db8::/64"]));
    let found = desired(&both, &[direct], &topology);
    assert!(
        peers(&found).contains(&"1 fd00:1::40/122 at 2001:db8::2 direct".to_owned()),
        "{:?}",
        peers(&found)
    );
    assert!(peers(&found).contains(&"1 10.1.0.64/26 at 2001:db8::2 direct".to_owned()), "its first address");
    assert!(routes(&found).contains(&"fd00:1::40/122 via 2001:db8::2 src fd00:1::2".to_owned()));
    assert_eq!(found.wiring.unwrap().mtu, 1430, "what fits by either family");
    topology
        .nodes
        .insert("b".into(), peer(&["192.0.2.2", "2001:db8::2"], &["192.0.2.0/24", "2001:db8::/64"]));
    assert_eq!(of(&both, &topology).wiring.unwrap().mtu, 1450, "nobody is reached over IPv6");
}

#[test]
fn single_addresses_go_before_blocks() {
    let mut topology = topology();
    for (address, node) in [("10.1.0.7", "b"), ("10.1.0.70", "a"), ("10.1.0.130", "b"), ("10.1.9.9", "c")] {
        topology.claims.insert((1, ip(address)), node.into());
    }
    let found = of(&this(), &topology);
    assert_eq!(
        peers(&found)[..5],
        [
            "1 10.1.0.7/32 at 192.0.2.2",
            "1 10.1.0.64/26 at 192.0.2.2",
            "1 10.1.0.128/26 at 198.51.100.3",
            "1 10.1.0.130/32 at 192.0.2.2",
            "1 10.1.9.9/32 at 198.51.100.3",
        ]
    );
    let table = routes(&found);
    assert!(
        table.contains(&"10.1.0.7/32 dev wf-vxlan src 10.1.0.2 mtu 1450".to_owned()),
        "lent by this node: {table:?}"
    );
    assert!(
        !table.iter().any(|r| r.starts_with("10.1.0.70/32") || r.starts_with("10.1.9.9/32")),
        "{table:?}"
    );
}

#[test]
fn a_pool_of_one_block_is_reached_nowhere_else() {
    let mut small = network(1);
    small.pools = vec![pool("10.1.0.0/28", "10.1.0.1")];
    let mut node = this();
    node.own.insert(1, OwnPart { addresses: vec![ip("10.1.0.2")], blocks: vec![net("10.1.0.0/28")] });
    assert_eq!(routes(&desired(&node, &[small], &Topology::default())), ["unreachable 10.1.0.0/28"]);
}

#[test]
fn floods_go_once_to_each_node_that_has_a_part() {
    let mut flooding = network(1);
    flooding.overlay = Some(Overlay { flood: true, ..flooding.overlay.unwrap() });
    let mut topology = topology();
    topology.nodes.insert("d".into(), peer(&["192.0.2.4"], &[]));
    let found = desired(&this(), &[flooding], &topology);
    assert_eq!(found.view.networks[0].flood_to, [ip("192.0.2.2"), ip("198.51.100.3")]);
    assert!(found.view.networks[0].flood);
}

#[test]
fn an_asked_mtu_counts_as_far_as_it_fits() {
    for (asked, underlay, wanted) in [(0, 9000, 8950), (1400, 1500, 1400), (9000, 1500, 1450)] {
        let network = Network { mtu: asked, ..network(1) };
        let mut node = this();
        node.underlay.addresses[0].mtu = underlay;
        let found = desired(&node, &[network], &topology());
        assert_eq!(found.view.networks[0].mtu, wanted, "{asked} asked over {underlay}");
        assert_eq!(found.wiring.unwrap().routes[0].mtu, Some(wanted));
    }
    let mut narrow = this();
    narrow.underlay.addresses[0].mtu = 1300;
    let found = of(&narrow, &topology());
    assert_eq!(found.problems.len(), 1);
    assert!(found.problems[0].contains("net1 carries no IPv6 here: 1250 bytes"), "{:?}", found.problems);
    assert_eq!(found.view.networks[0].ipv6, None);
    assert_eq!(found.wiring.unwrap().addresses, [net("10.1.0.1/32"), net("10.1.0.2/16")]);
}

/// What is left out, and the word that must be said about it.
fn problem(this: &ThisNode, networks: &[Network], topology: &Topology, words: &[&str]) -> Desired {
    let found = desired(this, networks, topology);
    let fits = |p: &&String| words.iter().all(|word| p.contains(word));
    assert_eq!(found.problems.iter().filter(fits).count(), 1, "{words:?} in {:?}", found.problems);
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    found
}

#[test]
fn one_bad_record_spoils_nothing_else() {
    let networks = [network(1), network(2)];
    let healthy = peers(&of(&this(), &topology()));
    let without_b: Vec<_> = healthy.iter().filter(|p| !p.contains("192.0.2.2")).cloned().collect();

    let mut bad = topology();
    bad.nodes.remove("b");
    let found = problem(&this(), &networks, &bad, &["node b", "net1", "not registered"]);
    assert_eq!(peers(&found), without_b);
    assert_eq!(found.view.vteps, [ip("198.51.100.3")]);

    let mut bad = topology();
    bad.nodes.insert("b".into(), peer(&["192.0.2.1"], &[]));
    let found = problem(&this(), &networks, &bad, &["node b", "192.0.2.1", "this node's"]);
    assert_eq!(peers(&found), without_b);

    let mut bad = topology();
    bad.nodes.insert("b".into(), peer(&["10.2.3.4"], &[]));
    let found = problem(&this(), &networks, &bad, &["node b", "10.2.3.4", "net2"]);
    assert_eq!(peers(&found), without_b);

    let mut bad = topology();
    bad.nodes.insert("b".into(), peer(&["2001:db8::2"], &[]));
    let found = problem(&this(), &networks, &bad, &["node b", "family"]);
    assert_eq!(peers(&found), without_b);

    let mut bad = topology();
    bad.nodes.insert("d".into(), peer(&["192.0.2.2"], &[]));
    let found = problem(&this(), &networks, &bad, &["nodes b and d", "192.0.2.2"]);
    assert_eq!(peers(&found), healthy);

    let mut bad = topology();
    bad.nodes.insert("b".into(), Peer { port: 8472, ..peer(&["192.0.2.2"], &[]) });
    let found = problem(&this(), &networks, &bad, &["node b", "8472", "4789"]);
    assert_eq!(peers(&found), healthy);

    let mut bad = topology();
    bad.blocks.insert((1, net("10.9.0.0/26")), "b".into());
    bad.blocks.insert((77, net("10.9.0.0/26")), "b".into());
    let found = problem(&this(), &networks, &bad, &["10.9.0.0/26", "node b", "net1"]);
    assert_eq!(peers(&found), healthy);

    let twin = Network { overlay: network(1).overlay, ..network(2) };
    let found = problem(&this(), &[twin, network(1)], &topology(), &["net2", "VNI 4097", "net1"]);
    assert_eq!(peers(&found), healthy, "the lower number keeps it, whatever the order");

    let mut clash = network(2);
    clash.pools = vec![pool("192.0.2.0/25", "192.0.2.1")];
    let found = problem(
        &this(),
        &[network(1), clash],
        &topology(),
        &["net2", "192.0.2.0/25", "192.0.2.1 in 192.0.2.0/24"],
    );
    assert_eq!(peers(&found), healthy);

    let nowhere = ThisNode { underlay: Underlay::default(), ..this() };
    let found = problem(&nowhere, &networks, &topology(), &["this node has no underlay address"]);
    assert_eq!(peers(&found), [""; 0]);
    assert_eq!(found.wiring.unwrap().mtu, 1450, "it works on this node alone");
}

#[test]
fn nodes_probe_each_other_by_a_network_of_their_own() {
    let node = ThisNode { probes: true, ..this() };
    let found = desired(&node, &[network(1)], &topology());
    let plain = desired(&this(), &[network(1)], &topology());
    let probing = found.probing.unwrap();
    assert_eq!((probing.own, probing.mtu), (probe_address("a"), 1450));
    assert!(probe_pool().contains(probing.own.into()) && probing.own != probe_address("b"));
    let names: Vec<&str> = probing.nodes.keys().map(|name| &**name).collect();
    assert_eq!(names, ["b", "c"]);
    let row = |name: &str, remote: &str| PeerEntry {
        network: ebpf_common::PROBE_NETWORK,
        destination: whole(probe_address(name).into()),
        remote: ip(remote),
        direct: false,
    };
    for row in [row("b", "192.0.2.2"), row("c", "198.51.100.3")] {
        assert!(found.view.peers.contains(&row), "{row:?} in {:?}", found.view.peers);
    }
    assert_eq!(found.view.peers.len(), plain.view.peers.len() + 2);
    let (wiring, without) = (found.wiring.unwrap(), plain.wiring.unwrap());
    assert!(wiring.addresses.contains(&whole(probing.own.into())));
    let route = wiring.routes.iter().find(|route| route.destination == probe_pool()).unwrap();
    assert_eq!((route.way, route.source), (RouteWay::Device, Some(probing.own.into())));
    assert_eq!(wiring.routes.len(), without.routes.len() + 1);
    assert_eq!(wiring.forward_ipv6, without.forward_ipv6);
    assert_eq!((plain.probing, without.addresses.contains(&whole(probing.own.into()))), (None, false));

    let idle = ThisNode { own: BTreeMap::new(), ..node.clone() };
    let found = desired(&idle, &[network(1)], &topology());
    assert!(
        found.probing.is_some() && !found.wiring.unwrap().forward_ipv6,
        "for probes nothing is forwarded"
    );
    let mut narrow = node;
    narrow.underlay.addresses[0].mtu = 1329;
    assert_eq!(desired(&narrow, &[network(1)], &topology()).probing, None, "no IPv6 in 1279 bytes");
}

#[test]
fn a_limit_of_a_way_is_one_of_the_routes_to_what_is_there() {
    let limited = |limit| {
        let clamps = BTreeMap::from([(ip("192.0.2.2"), limit), (ip("203.0.113.9"), 1000)]);
        let found = desired(&ThisNode { clamps, ..this() }, &[network(1)], &topology());
        assert_eq!(found.view.clamps, [(ip("192.0.2.2"), limit)], "of nodes that there are");
        found.wiring.unwrap().routes
    };
    let plain = desired(&this(), &[network(1)], &topology()).wiring.unwrap().routes;
    let to = |routes: &[OverlayRoute], text: &str| {
        routes.iter().find(|route| route.destination == net(text)).and_then(|route| route.mtu)
    };
    // Over IPv6 nobody sends less than 1280.
    for (block, least) in [("10.1.0.64/26", 600), ("fd00:1::40/122", 1280)] {
        assert_eq!(to(&plain, block), None);
        assert_eq!(to(&limited(1300), block), Some(1300));
        assert_eq!(to(&limited(600), block), Some(least));
        assert_eq!(to(&limited(1450), block), None, "as much as the network takes");
    }
    assert_eq!(to(&limited(600), "10.1.0.128/26"), None, "of another node");
}

#[test]
fn a_pool_over_the_underlay_is_refused_by_both_names() {
    let topology = topology();
    let refused = |subnet: &str| {
        overlap_with_underlay(&[pool(subnet, "10.0.0.1")], &this().underlay, Some(&topology))
            .unwrap_or_default()
    };
    assert_eq!(
        refused("192.0.0.0/16"),
        "pool 192.0.0.0/16 overlaps this node's underlay address 192.0.2.1 in 192.0.2.0/24"
    );
    assert_eq!(
        refused("192.0.2.128/25"),
        "pool 192.0.2.128/25 overlaps this node's underlay address 192.0.2.1 in 192.0.2.0/24"
    );
    assert_eq!(
        refused("198.51.0.0/16"),
        "pool 198.51.0.0/16 overlaps underlay address 198.51.100.3 of node c"
    );
    assert_eq!(refused("10.0.0.0/8"), "");
    assert!(
        refused("fd77::/16").contains("fd77:6566:7470::/64, by which nodes probe"),
        "{}",
        refused("fd77::/16")
    );
}

fn link(ifindex: u32, name: &str, mtu: u32, layer: LinkLayer) -> HostLink {
    HostLink { ifindex, name: name.into(), up: true, master: None, layer, kind: None, mtu }
}

fn held(ifindex: u32, address: &str) -> HostAddress {
    HostAddress {
        ifindex,
        address: net(address),
        scope: Scope::Global,
        usable: true,
        deprecated: false,
        temporary: false,
        secondary: false,
    }
}

fn default_route(ifindex: u32, v4: bool, metric: u32) -> HostRoute {
    let destination = if v4 { net("0.0.0.0/0") } else { net("::/0") };
    HostRoute { ifindex, destination, gateway: None, source: None, metric, mtu: None, main: true }
}

fn host() -> HostDevices {
    HostDevices {
        links: vec![
            link(1, "lo", 65_536, LinkLayer::Loopback),
            link(2, "eth0", 1500, LinkLayer::Ethernet),
            link(3, "eth1", 9000, LinkLayer::Ethernet),
        ],
        addresses: vec![
            held(1, "203.0.113.5/32"),
            held(2, "192.0.2.1/24"),
            held(3, "198.51.100.1/24"),
            held(3, "2001:db8::1/64"),
        ],
        routes: vec![default_route(2, true, 100), default_route(3, true, 50), default_route(3, false, 100)],
    }
}

#[test]
fn the_underlay_is_what_the_default_route_leaves_by_or_what_is_asked_for() {
    let auto = Underlay::of(&[], &host());
    assert_eq!(auto.ips(), [ip("198.51.100.1")], "the lowest metric, IPv4 first");
    assert_eq!((auto.segments(), auto.overlay_mtu()), (vec![net("198.51.100.0/24")], Some(8950)));
    let mut v6 = host();
    v6.routes.retain(|r| r.destination.is_ipv6());
    let auto = Underlay::of(&[], &v6);
    assert_eq!((auto.ips(), auto.overlay_mtu()), (vec![ip("2001:db8::1")], Some(8930)));
    assert_eq!(auto.mac(), MacAddr([0x0a, 0x58, 0, 0, 0, 1]));
    v6.routes.clear();
    assert_eq!(Underlay::of(&[], &v6), Underlay::default());

    let asked = Underlay::of(&[ip("192.0.2.1"), ip("2001:db8::1"), ip("192.0.2.1")], &host());
    assert_eq!(asked.ips(), [ip("192.0.2.1"), ip("2001:db8::1")]);
    assert_eq!((asked.overlay_mtu(), asked.problems.len()), (Some(1450), 0));
    let announced = Underlay::of(&[ip("203.0.113.5")], &host());
    assert_eq!((announced.segments(), announced.overlay_mtu()), (vec![], Some(1450)), "that of the ways in");

    let mut tentative = host();
    tentative.addresses[3].usable = false;
    let absent = Underlay::of(&[ip("2001:db8::1"), ip("192.0.2.1")], &tentative);
    assert_eq!(absent.ips(), [ip("192.0.2.1")]);
    assert!(absent.problems[0].contains("2001:db8::1"), "{:?}", absent.problems);
}

/// So many nodes; each block of network 1 has an owner among them or among strangers, and some addresses have a holder.
fn any_topology() -> impl Strategy<Value = Topology> {
    let names = prop::collection::vec(0u8..12, 0..60);
    let claims = prop::collection::vec((0u16..4096, 0u8..12), 0..30);
    (1u8..10, names, claims).prop_map(|(registered, owners, claims)| {
        let mut topology = Topology::default();
        let name = |n: u8| -> Arc<str> { if n == 0 { "a".into() } else { format!("n{n}").into() } };
        for n in 0..registered {
            let address = format!("192.0.2.{}", n + 1);
            topology.nodes.insert(name(n), peer(&[&address], &["192.0.2.0/24"]));
        }
        for (at, owner) in owners.iter().enumerate() {
            let first = u32::from(Ipv4Addr::new(10, 1, 0, 0)) + u32::try_from(at).unwrap() * 64;
            let block = IpNetwork::new(Ipv4Addr::from(first).into(), 26).unwrap();
            topology.blocks.insert((1, block), name(*owner));
        }
        for (at, holder) in claims {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + u32::from(at));
            topology.claims.insert((1, address.into()), name(holder));
        }
        topology
    })
}

/// The node that a packet to this address is sent to, by longest prefix.
fn sent_to(view: &OverlayView, to: IpAddr) -> Option<IpAddr> {
    let of = view.peers.iter().filter(|p| p.network == 1 && p.destination.contains(to));
    of.max_by_key(|p| p.destination.prefix()).map(|p| p.remote)
}

proptest! {
    #[test]
    fn what_is_wanted_is_in_order_and_grows_with_blocks(topology in any_topology()) {
        let found = desired(&this(), &[network(1)], &topology);
        let is_foreign = |name: &Arc<str>| **name != *"a" && topology.nodes.contains_key(name);
        let blocks = topology.blocks.values().filter(|n| is_foreign(n)).count();
        let claims = topology.claims.values().filter(|n| is_foreign(n)).count();
        prop_assert_eq!(found.view.peers.len(), blocks + claims);
        let keys: Vec<_> = found.view.peers.iter().map(|p| (p.network, p.destination)).collect();
        prop_assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once: {:?}", keys);
        prop_assert!(found.view.vteps.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(!found.view.vteps.contains(&ip("192.0.2.1")));
        for entry in &found.view.peers {
            prop_assert!(found.view.vteps.contains(&entry.remote));
        }
        let wiring = found.wiring.unwrap();
        prop_assert!(wiring.routes.windows(2).all(|pair| pair[0].destination < pair[1].destination));
    }

    #[test]
    fn every_address_leads_to_the_one_that_has_it(topology in any_topology(), at in 0u16..4096) {
        let found = desired(&this(), &[network(1)], &topology);
        let to = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + u32::from(at)));
        let block = topology.blocks.iter().find(|((_, block), _)| block.contains(to));
        let claim = topology.claims.get(&(1, to));
        let registered = |name: &Arc<str>| topology.nodes.get(name).filter(|_| **name != *"a").map(|p| p.underlay[0]);
        let of_block = block.and_then(|(_, name)| registered(name));
        // This node looks for its own addresses before it asks for peers.
        let wanted = match claim {
            Some(name) if **name != *"a" => registered(name).or(of_block),
            _ => of_block,
        };
        prop_assert_eq!(sent_to(&found.view, to), wanted);
    }

    #[test]
    fn the_order_of_networks_means_nothing(topology in any_topology(), swap: bool) {
        let mut node = this();
        node.own.insert(2, OwnPart { addresses: vec![ip("10.2.0.2")], blocks: vec![net("10.2.0.0/26")] });
        let mut networks = vec![network(1), network(2), network(3)];
        let before = desired(&node, &networks, &topology);
        if swap { networks.swap(0, 2) } else { networks.reverse() }
        networks.swap(0, 1);
        prop_assert_eq!(desired(&node, &networks, &topology), before);
    }
}

#[test]
fn packets_pass_the_device_by_on_the_one_plain_device_of_ipv4() {
    let plain = |asked: &[&str], devices: &HostDevices| {
        let asked: Vec<IpAddr> = asked.iter().map(|a| ip(a)).collect();
        Underlay::of(&asked, devices).plain()
    };
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let both = ["198.51.100.1", "2001:db8::1"];
    assert_eq!(plain(&both, &host()), Some((3, v4("198.51.100.1"))));
    assert_eq!(plain(&["2001:db8::1"], &host()), None, "nothing of IPv4");
    assert_eq!(plain(&["203.0.113.5"], &host()), None, "`lo`");
    assert_eq!(plain(&["198.51.100.1", "192.0.2.1"], &host()), None, "the stack judges who comes by which");
    let mut tunnel = host();
    tunnel.links[2].layer = LinkLayer::Ip;
    assert_eq!(plain(&both, &tunnel), None, "no neighbours");
    let narrow = |v4, mtu| {
        let route = HostRoute { mtu: Some(mtu), ..default_route(3, v4, 1) };
        plain(&both, &HostDevices { routes: vec![route], ..host() }).is_none()
    };
    assert!(narrow(true, 8999), "a route that takes less");
    assert!(!narrow(true, 9000) && !narrow(false, 8999));
    let mut second = host();
    second.addresses.push(held(2, "192.0.2.7/24"));
    let asked = ["192.0.2.7", "192.0.2.1"];
    assert_eq!(plain(&asked, &second), Some((2, v4("192.0.2.7"))), "the preferred one");
    for shortcut in [true, false] {
        let this = ThisNode { underlay: Underlay::of(&asked.map(ip), &second), shortcut, ..this() };
        let found = desired(&this, &[network(1)], &topology());
        assert_eq!(found.view.underlays.len(), usize::from(shortcut));
    }
}
