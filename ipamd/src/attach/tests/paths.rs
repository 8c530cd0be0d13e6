//! Ways to other nodes: what becomes of what was found of them.

use super::{
    overlays::{ip, net, overlay_request, start, with_peer},
    *,
};
use crate::{
    attach::Found,
    overlay::{OverlayShortcut, Topology, probe_pool},
    path::Way,
};
use ebpf_common::PROBE_NETWORK;
use ipamd_api::PathState;

fn found(way: Way) -> [Found; 1] {
    [Found { node: "other".into(), remote: ip("192.0.2.2"), way }]
}

fn open(limit: Option<u32>, checksums: bool) -> [Found; 1] {
    found(Way::Open { limit, checksums })
}

fn joined() -> Node {
    let node = Node { probes: true, ..Node::new() };
    let (a, _doomed) = start(&node);
    a.add(&overlay_request("one", &node.sandbox("one"))).unwrap();
    node
}

fn state(a: &Attachments) -> (PathState, Option<u32>) {
    a.ways().get("other").map_or((PathState::Unknown, None), |path| (path.state, path.largest))
}

/// The MTU of the route to a block of the other node.
fn route(node: &Node, block: &str) -> Option<u32> {
    let wiring = node.kernel.overlay().unwrap();
    wiring.routes.iter().find(|route| route.destination == net(block)).and_then(|route| route.mtu)
}

#[test]
fn a_limit_is_told_to_programs_and_kernel_and_survives_a_restart() {
    let node = joined();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    let probing = a.probing().borrow().clone().unwrap();
    assert_eq!(probing.nodes.get("other"), Some(&ip("192.0.2.2")));
    assert_eq!((probing.mtu, probing.device), (1450, node.datapath.overlay().device.unwrap().ifindex));
    assert_eq!(
        node.datapath.observe().unwrap().pools.get(&probe_pool()),
        Some(&PROBE_NETWORK),
        "no container gets there"
    );
    assert!(a.overlay_status().unwrap().message.starts_with("1 networks"), "probes are nobody's network");

    a.found_ways(&open(Some(1300), true)).unwrap();
    assert_eq!(state(&a), (PathState::Clamped, Some(1300)));
    let clamps = [(ip("192.0.2.2"), 1300)];
    assert_eq!(node.datapath.overlay().clamps, clamps);
    assert_eq!([route(&node, "10.1.0.64/26"), route(&node, "fd01::40/122")], [Some(1300); 2]);

    // Who does not answer at all is not known to have a better way; one silence is none.
    a.found_ways(&found(Way::Silent)).unwrap();
    assert_eq!(state(&a), (PathState::Clamped, Some(1300)));
    a.found_ways(&found(Way::Silent)).unwrap();
    assert_eq!(state(&a), (PathState::Silent, Some(1300)));
    assert_eq!(node.datapath.overlay().clamps, clamps);
    drop(a);

    let (a, _doomed, _) = node.start();
    a.follow_host().unwrap();
    a.follow_topology(with_peer(), vec![]).unwrap();
    assert_eq!((node.datapath.overlay().clamps, state(&a)), (clamps.to_vec(), (PathState::Unknown, None)));
    a.found_ways(&found(Way::Silent)).unwrap();
    assert_eq!(node.datapath.overlay().clamps, clamps);
    a.found_ways(&open(None, true)).unwrap();
    assert_eq!((state(&a), node.datapath.overlay().clamps), ((PathState::Whole, None), vec![]));
    assert_eq!(route(&node, "10.1.0.64/26"), None);
}

#[test]
fn what_was_found_is_of_the_place_where_the_node_was() {
    let node = joined();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    a.found_ways(&open(Some(1300), true)).unwrap();
    let mut moved = (*with_peer()).clone();
    moved.nodes.get_mut("other").unwrap().underlay = vec![ip("192.0.2.3")];
    a.follow_topology(Arc::new(moved), vec![]).unwrap();
    assert_eq!((state(&a), node.datapath.overlay().clamps), ((PathState::Unknown, None), vec![]));
    a.follow_topology(Arc::new(Topology::default()), vec![]).unwrap();
    assert!(a.ways().is_empty() && a.probing().borrow().as_ref().unwrap().nodes.is_empty());
}

#[test]
fn a_broken_offload_is_switched_off_once() {
    let node = joined();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    assert_eq!(a.spared_checksums(), None);
    assert!(!a.found_ways(&open(None, true)).unwrap());
    assert!(a.found_ways(&open(None, false)).unwrap(), "worth another look at once");
    assert_eq!(a.spared_checksums(), Some(Some("other".to_owned())));
    assert_eq!(state(&a).0, PathState::BrokenChecksums, "until that look says otherwise");
    assert!(!a.found_ways(&open(None, false)).unwrap(), "it did not help: somebody else breaks them");
    a.found_ways(&open(None, true)).unwrap();
    assert_eq!(state(&a).0, PathState::Whole);
    drop(a);
    let (a, _doomed, _) = node.start();
    assert_eq!(a.spared_checksums(), Some(None), "the device is the same");
}

#[test]
fn a_kernel_that_refuses_is_asked_again_by_the_next_sweep() {
    let node = joined();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    node.datapath.fail("set_overlay", 1);
    a.found_ways(&open(Some(1300), true)).unwrap_err();
    assert_eq!(node.datapath.overlay().clamps, []);
    a.sweep().unwrap();
    assert_eq!(node.datapath.overlay().clamps, [(ip("192.0.2.2"), 1300)]);
    // An offload that cannot be switched is no reason to keep a limit.
    node.kernel.fail("set_overlay_offload", 0);
    assert!(!a.found_ways(&open(Some(1200), false)).unwrap());
    assert_eq!((node.datapath.overlay().clamps[0].1, a.spared_checksums()), (1200, None));
}

#[test]
fn nothing_passes_the_device_by_without_the_offload_with_ipsec_or_when_it_is_switched_off() {
    let node = joined();
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    let passes = |node: &Node| !node.datapath.overlay().underlays.is_empty();
    assert!(passes(&node));
    a.found_ways(&open(None, false)).unwrap();
    assert!(!passes(&node), "at once");
    node.kernel.set_overlay_offload(true).unwrap();
    a.sweep().unwrap();
    assert!(passes(&node));
    node.kernel.set_ipsec(true);
    a.sweep().unwrap();
    assert!(!passes(&node));
    node.kernel.set_ipsec(false);
    a.sweep().unwrap();
    assert!(passes(&node));
    drop(a);
    let node = Node { shortcut: OverlayShortcut::Off, ..node };
    let (a, _doomed) = start(&node);
    a.follow_topology(with_peer(), vec![]).unwrap();
    assert!(!passes(&node));
}
