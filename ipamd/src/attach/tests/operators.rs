//! What operators ask for: flows, sampled drops, inspections of them, and the end of it all.

use super::*;
use crate::datapath::{DropSample, FlowEntry};
use ebpf_common::{CONN_MASQUERADE, CONN_PUBLISHED, ConnState};
use ipamd_api::{FlowFilter, FlowTuple};

fn flow(endpoint: Option<EndpointId>, port: u16, flags: u32) -> FlowEntry {
    let tuple = |source: &str, source_port, destination: &str, destination_port| FlowTuple {
        source: source.parse().unwrap(),
        source_port,
        destination: destination.parse().unwrap(),
        destination_port,
    };
    FlowEntry {
        protocol: 6,
        state: ConnState::Established,
        flags,
        endpoint,
        opener: None,
        original: tuple("10.1.0.2", port, "192.0.2.7", 80),
        reply: tuple("192.0.2.7", 80, "198.51.100.1", port),
        original_count: (3, 300),
        reply_count: (2, 200),
        age: Duration::from_secs(9),
        expires_in: Duration::from_secs(99),
    }
}

#[test]
fn flows_are_listed_by_filter_and_flushed() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let one = a.add(&add_request("container-one", &node.sandbox("one"))).unwrap().endpoint;
    let two = a.add(&add_request("container-two", &node.sandbox("two"))).unwrap().endpoint;
    let mut udp = flow(Some(two), 53, CONN_PUBLISHED);
    udp.protocol = 17;
    let mut opened = flow(None, 7777, 0);
    opened.opener = Some(two);
    node.datapath.set_flows(vec![
        flow(Some(one), 4001, CONN_MASQUERADE),
        flow(Some(one), 4002, CONN_MASQUERADE | CONN_PUBLISHED),
        udp,
        opened,
    ]);
    let count = |filter: FlowFilter| {
        let list = a.flows(&filter).unwrap();
        assert_eq!(list.total, 4);
        (list.matching, list.flows.len())
    };
    let all = FlowFilter::default;
    assert_eq!(count(all()), (4, 4));
    assert_eq!(count(FlowFilter { limit: Some(1), ..all() }), (4, 1));
    assert_eq!(count(FlowFilter { container: Some("container-two".into()), ..all() }), (2, 2));
    assert_eq!(count(FlowFilter { protocol: Some("UDP".into()), ..all() }), (1, 1));
    assert_eq!(count(FlowFilter { port: Some(4001), ..all() }), (1, 1));
    assert_eq!(count(FlowFilter { kind: Some("published".into()), ..all() }), (2, 2));
    assert_eq!(count(FlowFilter { state: Some("closed".into()), ..all() }), (0, 0));
    assert_eq!(count(FlowFilter { address: Some("198.51.100.0/24".parse().unwrap()), ..all() }), (4, 4));
    assert_eq!(count(FlowFilter { address: Some("203.0.113.0/24".parse().unwrap()), ..all() }), (0, 0));
    let nobody = FlowFilter { container: Some("nobody".into()), ..all() };
    assert_eq!(a.flows(&nobody).unwrap_err().code(), Some(ErrorCode::NotFound));

    let shown = a.flows(&FlowFilter { port: Some(4001), ..all() }).unwrap().flows.remove(0);
    assert_eq!((shown.kind.as_str(), shown.state.as_str()), ("masquerade", "established"));
    assert_eq!(shown.attachment, Some(key("container-one")));
    let Inspection::Container { endpoints } = a.inspect("container-one").unwrap() else {
        panic!("a container")
    };
    assert_eq!((endpoints[0].flows.matching, endpoints[0].flows.flows.len()), (2, 2));

    let flush = FlowFilter { container: Some("container-one".into()), limit: Some(1), ..all() };
    assert_eq!(a.flush_flows(&flush).unwrap().removed, 1);
    assert_eq!(a.flush_flows(&all()).unwrap().removed, 3);
}

#[test]
fn a_sampled_drop_names_the_endpoint_of_its_device() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    let ifindex = a.endpoints()[0].host_ifindex.unwrap();
    let sample =
        DropSample { time: 0, reason: 3, hook: 1, ifindex, length: 60, l3: true, packet: vec![0x45; 20] };
    let shown = a.drop_view(&sample);
    assert_eq!((shown.interface, shown.attachment), (added.endpoint.host_ifname(), Some(key("one"))));
    assert_eq!(shown.reason, "spoofed-ip");
    let shown = a.drop_view(&DropSample { ifindex: 4040, ..sample });
    assert_eq!((shown.interface.as_str(), shown.attachment), ("ifindex 4040", None));
}

#[test]
fn an_uninstall_wants_an_empty_node_or_force_and_leaves_nothing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = add_request("one", &node.sandbox("one"));
    request.options.port_mappings = vec![mapping(8080, 80)];
    let added = a.add(&request).unwrap();
    let error = a.uninstall(false).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NetworkInUse));
    assert!(error.msg.contains("one/eth0"), "{error}");
    assert_eq!(a.add(&request).unwrap(), added, "nothing was changed");

    let done = a.uninstall(true).unwrap();
    assert_eq!(done.left, [""; 0]);
    assert!(done.removed.iter().any(|line| line == "1 endpoint"), "{done:?}");
    assert!(done.removed.iter().any(|line| line == "1 bridge"), "{done:?}");
    assert!(node.kernel.calls().contains(&"undo_settings"));
    assert!(node.datapath.calls().contains(&"uninstall the node".to_owned()));
    node.assert_clean(&a, "after the uninstall");
    assert!(node.kernel.networks().is_empty() && node.datapath.published().is_empty());
    assert!(!node.dir.path().join("journal").exists());
    // What comes now must not bring anything back.
    assert_eq!(a.add(&request).unwrap_err().code(), Some(ErrorCode::NotAvailable));
    a.sweep().unwrap();
    a.follow_host().unwrap();
    assert!(node.kernel.networks().is_empty());
    assert_eq!(node.datapath.calls().last().map(String::as_str), Some("uninstall the node"));
}

#[test]
fn what_an_uninstall_cannot_remove_is_told() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    node.kernel.fail("remove", 0);
    node.kernel.fail("undo_settings", 0);
    node.datapath.fail("uninstall", 1);
    let done = a.uninstall(true).unwrap();
    assert_eq!(done.left.len(), 3, "{done:?}");
    assert!(done.left[0].contains("one/eth0"), "{done:?}");
}
