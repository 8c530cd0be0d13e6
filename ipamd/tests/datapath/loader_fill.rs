//! How full the maps are, and what a sweep leaves: counted in the real maps.

use crate::{
    loader_flows::{Flow, SECOND, SPOKEN, Tables, open},
    node::{Bpffs, Node},
};
use ebpf_common::{SEEN_SYN, Timeouts, UDP};
use ipamd::datapath::{Datapath, EbpfDatapath, FlowTables, MapFill, NodeSettings};
use std::time::Duration;

fn fill(datapath: &EbpfDatapath, map: &str) -> MapFill {
    datapath.map_fill().unwrap().into_iter().find(|fill| fill.map == map).unwrap()
}

#[test]
fn maps_are_counted_whatever_their_kind_and_size() {
    let node = Node::new();
    let empty = node.datapath.map_fill().unwrap();
    assert!(
        empty.iter().all(|fill| fill.max_entries > 0 && fill.entries <= u64::from(fill.max_entries)),
        "{empty:?}"
    );
    assert_eq!(fill(&node.datapath, "ENDPOINTS").entries, 0);
    let attached = node.attached(2);
    let endpoints = fill(&node.datapath, "ENDPOINTS");
    assert_eq!((endpoints.entries, endpoints.max_entries), (1, ebpf_common::MAX_ENDPOINTS));
    assert_eq!(fill(&node.datapath, "ADDRESSES").entries, 1 + u64::from(attached.ipv6.is_some()));
    // Several batches of a hash map, with keys that are longer than the number of a bucket.
    let mut vteps = open::<[u8; 16], u32>(&node, "VTEPS");
    for number in 0..20_000_u128 {
        vteps.insert(number.to_be_bytes(), 1, 0).unwrap();
    }
    assert_eq!(fill(&node.datapath, "VTEPS").entries, 20_000);
    // Tries.
    let before = fill(&node.datapath, "POOLS4").entries;
    let pools: Vec<_> =
        (0..5000_u32).map(|n| format!("10.{}.{}.0/24", 100 + n / 256, n % 256).parse().unwrap()).collect();
    node.datapath.set_pools(77, &pools).unwrap();
    assert_eq!(fill(&node.datapath, "POOLS4").entries, before + 5000);
    node.datapath.remove_pools(77).unwrap();
    assert_eq!(fill(&node.datapath, "POOLS4").entries, before);
}

#[test]
fn a_map_that_is_full_says_so() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let node = Node { datapath, bpffs };
    let mut underlays = open::<u32, [u8; 4]>(&node, "UNDERLAYS");
    let max = fill(&node.datapath, "UNDERLAYS").max_entries;
    for number in 0..max {
        underlays.insert(number, [0; 4], 0).unwrap();
    }
    assert!(underlays.insert(max, [0; 4], 0).is_err());
    assert_eq!(fill(&node.datapath, "UNDERLAYS").entries, u64::from(max));
}

#[test]
fn a_sweep_says_what_it_left_and_which_ports_are_used() {
    const LATER: u32 = 1 << 16;
    let node = Node::new();
    let settings = NodeSettings {
        host_cookie: 1,
        nat_ports: 61_000..=61_099,
        flow_quota: 100,
        timeouts: Timeouts::DEFAULT,
        stack_cidrs: Vec::new(),
        publish_allow: Vec::new(),
        publish_deny: Vec::new(),
        event_interval: Duration::from_millis(10),
    };
    node.datapath.configure(&settings).unwrap();
    assert_eq!(node.datapath.flow_tables(), FlowTables::default());
    let mut tables = Tables::of(&node);
    let flow = Flow { endpoint: 0, number: 0, protocol: UDP, seen: SPOKEN, idle: SECOND };
    // Three ports of the range towards one destination, one towards another, and one that kept its own.
    for number in [61_000, 61_001, 61_099, LATER + 61_000, 5] {
        tables.add(Flow { number, ..flow }.halves());
    }
    // One that goes, and one that waits for its answer.
    let expired = Timeouts::DEFAULT.udp_unreplied + SECOND;
    tables.add(Flow { number: 61_002, seen: (SEEN_SYN, 0), idle: expired, ..flow }.halves());
    for (key, conn) in (Flow { number: 61_003, seen: (SEEN_SYN, 0), ..flow }).halves() {
        tables.new.insert(key, conn, 0).unwrap();
    }
    node.datapath.sweep_flows().unwrap();
    let left = FlowTables {
        replied: 5,
        unreplied: 1,
        masqueraded: 6,
        nat_ports_used: 4,
        flow_entries: 10,
        new_flow_entries: 2,
        ..FlowTables::default()
    };
    assert_eq!(node.datapath.flow_tables(), left);
    assert_eq!(fill(&node.datapath, "FLOWS").entries, 10);
    assert_eq!(fill(&node.datapath, "NEW_FLOWS").entries, 2);
}
