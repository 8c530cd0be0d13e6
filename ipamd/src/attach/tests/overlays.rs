//! Overlay networks: own addresses, the device, what other nodes have, and what is left when all that goes.

use super::*;
use crate::{
    cluster::NODE_ADDRESSES_NAME,
    kernel::{HostDevices, OVERLAY_DEVICE, fake::one_uplink},
    overlay::{Peer, Topology},
};
use ipamd_api::{Driver, Inspection, Interface, MacAddr};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// [`add_request`] on an overlay, with pools of several blocks.
pub(super) fn overlay_request(container: &str, netns: &Path) -> AddRequest {
    let mut request = add_request(container, netns);
    request.network.driver = Some(Driver::Overlay);
    request.network.pools[0].subnet = net("10.1.0.0/16");
    request.network.pools[1].subnet = net("fd01::/64");
    request
}

/// The host with one uplink at 192.0.2.1.
pub(super) fn host(mtu: u32) -> HostDevices {
    one_uplink(net("192.0.2.1/24"), Some(ip("192.0.2.254")), mtu)
}

/// A node at 192.0.2.1 that knows that it is alone.
pub(super) fn start(node: &Node) -> (Attachments, Doomed) {
    node.kernel.set_host_devices(host(1500));
    let (a, doomed, _) = node.start();
    a.follow_host().unwrap();
    a.follow_topology(Arc::default(), Vec::new()).unwrap();
    (a, doomed)
}

pub(super) fn with_peer() -> Arc<Topology> {
    let mut topology = Topology::default();
    let peer = Peer { underlay: vec![ip("192.0.2.2")], segments: vec![net("192.0.2.0/24")], port: 4789 };
    topology.nodes.insert("other".into(), peer);
    for block in ["10.1.0.64/26", "fd01::40/122"] {
        topology.blocks.insert((1, net(block)), "other".into());
    }
    Arc::new(topology)
}

const OWN: [&str; 2] = ["10.1.0.63", "fd01::3f"];

#[test]
fn the_first_endpoint_makes_the_node_a_part_of_the_network() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    assert_eq!(node.kernel.overlay(), None, "no overlay network, no device");
    let added = a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    let addresses: Vec<IpAddr> = added.ips.iter().map(|ip| ip.address.ip()).collect();
    assert_eq!(addresses, [ip("10.1.0.2"), ip("fd01::2")], "endpoints are numbered from the beginning");
    assert_eq!(a.addresses_ahead(1), node.spare_addresses, "the first blocks of two pools are no haste");
    let wiring = node.kernel.overlay().unwrap();
    assert_eq!((wiring.port, wiring.mtu, wiring.mac), (4789, 1450, MacAddr([0x0a, 0x57, 192, 0, 2, 1])));
    assert_eq!(
        wiring.addresses,
        [net("10.1.0.1/32"), net("10.1.0.63/16"), net("fd01::1/128"), net("fd01::3f/64")]
    );
    let view = node.datapath.overlay();
    let device = view.device.unwrap();
    assert_eq!(Some(device.ifindex), node.kernel.bridge_ifindex(OVERLAY_DEVICE));
    assert_eq!(view.networks[0].ipv4, Some(("10.1.0.63".parse().unwrap(), "10.1.0.1".parse().unwrap())));
    assert_eq!((view.networks[0].vni, view.networks[0].mtu), (4097, 1450));

    let gateway_mac = MacAddr([2, 0x57, 10, 1, 0, 1]);
    let endpoint = node.kernel.endpoints()[&added.endpoint].clone();
    let end = endpoint.wiring.routed.unwrap();
    let gateways = vec![ip("10.1.0.1"), ip("fd01::1")];
    assert_eq!((end.mac, end.sources, end.forward), (gateway_mac, gateways, true));
    assert_eq!((endpoint.wiring.mtu, endpoint.wiring.bridge.as_str()), (1450, OVERLAY_DEVICE));
    let [host, inside] = added.interfaces.as_slice() else { panic!("{:?}", added.interfaces) };
    let named = |i: &Interface| (i.name.clone(), i.mac, i.sandbox.is_some());
    assert_eq!(named(host), (added.endpoint.host_ifname(), gateway_mac, false));
    assert!(inside.sandbox.is_some() && added.ips.iter().all(|ip| ip.interface == 1));

    let calls = node.kernel.calls().len();
    a.add(&overlay_request("two", &node.sandbox("two"))).unwrap();
    let more = node.kernel.calls()[calls..].to_vec();
    assert_eq!(more, ["open_sandbox", "create", "activate"], "the second costs what one on a bridge costs");

    let Inspection::Address { state, .. } = a.inspect(OWN[0]).unwrap() else { panic!("an address") };
    assert!(state.contains("this node itself"), "{state}");
    let Inspection::Network { differences, .. } = a.inspect("blue").unwrap() else { panic!("a network") };
    assert_eq!(differences, []);
    assert_eq!(a.overlay_status().unwrap().health, Health::Ok);
}

#[test]
fn own_addresses_survive_restarts_and_boots() {
    let mut node = Node::new();
    {
        let (a, _doomed) = start(&node);
        a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    }
    {
        let (a, _doomed, _) = node.start();
        assert_eq!(a.own_addresses(1).unwrap(), OWN.map(ip));
        assert_eq!(node.datapath.overlay().networks.len(), 1, "nothing is known, so nothing was changed");
        a.add(&overlay_request("two", &node.sandbox("two"))).unwrap();
        let Inspection::Address { state, .. } = a.inspect(OWN[0]).unwrap() else { panic!("an address") };
        assert!(state.contains("this node itself"), "{state}");
    }
    // The file is lost: the endpoints know.
    std::fs::remove_file(node.dir.path().join(NODE_ADDRESSES_NAME)).unwrap();
    {
        let (a, _doomed, _) = node.start();
        assert_eq!(a.own_addresses(1).unwrap(), OWN.map(ip));
    }
    node.kernel = Arc::new(FakeKernel::new());
    node.datapath = Arc::new(FakeDatapath::new());
    node.boot_id = "boot-2".into();
    let (a, _doomed) = start(&node);
    assert_eq!(a.own_addresses(1).unwrap(), OWN.map(ip));
    assert!(node.kernel.overlay().unwrap().addresses.contains(&net("10.1.0.63/16")), "before any endpoint");
}

#[test]
fn without_knowledge_of_the_cluster_no_network_is_joined() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let error = a.add(&overlay_request("one", &node.sandbox("one"))).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TryAgainLater), "{error}");
    node.assert_clean(&a, "after the refusal");
    assert_eq!(a.own_addresses(1), None);
    a.follow_topology(Arc::default(), Vec::new()).unwrap();
    a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
}

#[test]
fn a_failure_at_any_step_leaves_nothing_of_the_endpoint() {
    for call in ["ensure_overlay", "create", "activate"] {
        let node = Node::new();
        let (a, _doomed) = start(&node);
        let sandbox = node.sandbox("one");
        node.kernel.fail(call, 0);
        let error = a.add(&overlay_request("one", &sandbox)).unwrap_err();
        assert!(error.msg.contains("the test wants it to fail"), "{call}: {error}");
        reap(&a);
        node.assert_clean(&a, call);
        assert!(a.networks().all().is_empty(), "{call}: the network went with its first endpoint");
        assert_eq!((node.kernel.overlay(), a.own_addresses(1)), (None, None), "{call}");
        a.add(&overlay_request("one", &sandbox)).unwrap();
    }
}

#[test]
fn the_network_goes_with_everything_of_it() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    let added = a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    a.del(&del_request("one", by_generation(&added))).unwrap();
    reap(&a);
    assert_eq!(a.own_addresses(1).unwrap(), OWN.map(ip), "the last endpoint is not the network");
    a.remove_network("blue").unwrap();
    assert_eq!((node.kernel.overlay(), a.own_addresses(1)), (None, None));
    assert_eq!(node.datapath.overlay(), crate::datapath::OverlayView::default());
    assert_eq!(a.overlay_status(), None);
    drop(a);
    let (a, _doomed, _) = node.start();
    assert_eq!(a.own_addresses(1), None);
}

#[test]
fn peers_come_and_go() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec!["store key x cannot be understood".into()]).unwrap();
    assert_eq!(node.datapath.overlay().peers, [], "nobody here is on the network");
    let added = a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    let peers = node.datapath.overlay().peers;
    let destinations: Vec<_> = peers.iter().map(|p| p.destination.to_string()).collect();
    assert_eq!(destinations, ["10.1.0.64/26", "fd01::40/122"]);
    assert_eq!(node.datapath.overlay().vteps, [ip("192.0.2.2")]);
    let status = a.overlay_status().unwrap();
    assert_eq!(
        (status.health, status.message.as_str()),
        (Health::Degraded, "store key x cannot be understood")
    );

    node.kernel.fail("ensure_overlay", 0);
    assert!(a.follow_topology(Arc::default(), Vec::new()).is_err());
    assert_eq!(
        node.datapath.overlay().peers,
        [],
        "a route that cannot be had is no reason to know the wrong peers"
    );
    assert_eq!(a.overlay_status().unwrap().health, Health::Degraded);
    a.sweep().unwrap();
    assert_eq!(a.overlay_status().unwrap().health, Health::Ok);

    node.kernel.lose_overlay();
    a.sweep().unwrap();
    let ifindex = node.kernel.bridge_ifindex(OVERLAY_DEVICE);
    assert!(ifindex.is_some());
    assert_eq!(node.datapath.overlay().device.map(|d| d.ifindex), ifindex);
    let held = node.datapath.observe().unwrap();
    let host_ifindex = node.kernel.endpoints()[&added.endpoint].created.host_ifindex.unwrap();
    assert!(held.endpoints.contains_key(&host_ifindex));
    node.kernel.lose_overlay();
    a.add(&overlay_request("two", &node.sandbox("two"))).unwrap();
    assert!(node.kernel.overlay().is_some(), "an ADD does not wait for the sweep");
}

#[test]
fn the_underlay_is_followed() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    let mut underlay = a.underlay();
    assert_eq!(underlay.borrow_and_update().ips(), [ip("192.0.2.1")]);
    a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    node.kernel.set_host_devices(host(9000));
    a.follow_host().unwrap();
    assert!(underlay.has_changed().unwrap());
    let wiring = node.kernel.overlay().unwrap();
    assert_eq!((wiring.mtu, wiring.routes[0].mtu), (8950, Some(8950)));
    assert_eq!(node.datapath.overlay().networks[0].mtu, 8950);
    let two = a.add(&overlay_request("two", &node.sandbox("two"))).unwrap();
    assert_eq!(node.kernel.endpoints()[&two.endpoint].wiring.mtu, 8950);
    underlay.borrow_and_update();
    a.follow_host().unwrap();
    assert!(!underlay.has_changed().unwrap(), "nothing new");
}

#[test]
fn a_pool_over_the_underlay_is_refused_and_leaves_nothing() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    let mut request = overlay_request("one", &node.sandbox("one"));
    request.network.pools.truncate(1);
    request.network.pools[0].subnet = net("192.0.0.0/16");
    for error in [a.add(&request).unwrap_err(), a.create_network(&request.network).unwrap_err()] {
        assert_eq!(error.code(), Some(ErrorCode::InvalidNetwork));
        assert!(error.msg.contains("192.0.0.0/16") && error.msg.contains("192.0.2.1"), "{error}");
        assert!(a.networks().all().is_empty());
    }
    node.assert_clean(&a, "after the refusals");
}

#[test]
fn own_addresses_that_were_given_up_too_soon_are_taken_again() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    let network = a.networks().get("blue").unwrap();
    // As for a removal of the network that an ADD was quicker than.
    a.state().allocator.release(crate::attach::overlays::node_holder(1).unwrap(), Duration::ZERO);
    a.leave_overlay(&network).unwrap();
    assert_eq!(node.kernel.overlay().unwrap().addresses, []);
    a.sweep().unwrap();
    let own = a.own_addresses(1).unwrap();
    assert!(
        node.kernel.overlay().unwrap().addresses.iter().any(|on_device| on_device.ip() == own[0]),
        "{own:?}"
    );
}

#[test]
fn a_node_that_lost_its_blocks_takes_other_addresses() {
    let node = Node::new();
    let (a, _doomed) = start(&node);
    let added = a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    let blocks = a.state().allocator.blocks(1);
    a.suspend_blocks(&blocks.iter().map(|block| (1, *block)).collect());
    a.sweep().unwrap();
    let own = a.own_addresses(1).unwrap();
    assert!(own.iter().all(|ip| !blocks.iter().any(|block| block.contains(*ip))), "{own:?} of {blocks:?}");
    let wiring = node.kernel.overlay().unwrap();
    assert!(
        wiring.addresses.iter().any(|on_device| on_device.ip() == own[0])
            && !wiring.addresses.contains(&net("10.1.0.63/16"))
    );
    let record = a.snapshot(|r| r.endpoint == added.endpoint).remove(0);
    assert_eq!(record.network.node_addresses, own);
}

#[test]
fn a_block_is_chosen_by_what_is_seen_of_the_cluster_and_claimed_by_what_is_true() {
    let seen = |blocks: &[&str]| {
        let mut topology = Topology::default();
        topology.nodes.insert("other".into(), Peer::default());
        topology.blocks.extend(blocks.iter().map(|block| ((1, net(block)), "other".into())));
        Arc::new(topology)
    };
    // (what is seen in which no key is unreadable, where the first endpoint is)
    let rows: [(&[&str], Vec<String>, &str); 4] = [
        (&["10.1.0.0/26"], vec![], "10.1.0.64"),
        (&["10.1.0.16/28", "10.1.0.64/26"], vec![], "10.1.0.128"),
        // Nothing is left of what is seen: the store is asked.
        (&["10.1.0.0/17", "10.1.128.0/17"], vec![], "10.1.0.2"),
        (&["10.1.0.0/26"], vec!["blocks/1/x cannot be understood".into()], "10.1.0.2"),
    ];
    for (blocks, broken, first) in rows {
        let node = Node::new();
        let (a, _doomed) = start(&node);
        a.follow_topology(seen(blocks), broken).unwrap();
        let mut request = overlay_request("one", &node.sandbox("one"));
        request.network.pools.truncate(1);
        let added = a.add(&request).unwrap();
        assert_eq!(added.ips[0].address.ip(), ip(first), "{blocks:?}");
    }
    // Another node was faster than the news of it.
    let node = Node::new();
    let (a, _doomed) = start(&node);
    a.follow_topology(seen(&[]), Vec::new()).unwrap();
    let mut request = overlay_request("one", &node.sandbox("one"));
    request.network.pools.truncate(1);
    let (network, _) = a.networks().ensure(&request.network, &[]).unwrap();
    let other = crate::cluster::Claimant { node: "other".into(), ..Default::default() };
    let cluster = a.networks().cluster().clone();
    let mut taken = None;
    let claimed = cluster.claim_block(&network, &network.pools[0], &other, None, &mut taken);
    node.runtime.block_on(claimed).unwrap();
    let added = a.add(&request).unwrap();
    assert!(!net("10.1.0.0/26").contains(added.ips[0].address.ip()), "{:?}", added.ips);
}
