//! Tracked flows in the real maps: joined, swept, counted, and taken from those that are gone.

use crate::{
    loader_publish::{entry as mapping, pin},
    node::{Node, ifindex, ip},
};
use aya::maps::{HashMap, Map, MapData};
use ebpf_common::{
    AddressKey, CONN_FROM_POD, CONN_MASQUERADE, CONN_ORIGINAL, CONN_PUBLISHED, Conn, ConnState, FragmentKey,
    FragmentPorts, ICMP, IPV4, SEEN_DATA, SEEN_FIN, SEEN_RST, SEEN_SYN, SocketKey, SocketPeer, TCP, Timeouts,
    Tuple, UDP, mapped4, wide4,
};
use ipamd::datapath::{
    Datapath, DatapathOptions, EbpfDatapath, EndpointEntry, EndpointRef, FlowCount, FlowEntry, FlowSweep,
};
use ipamd::uplinks::{HostView, Uplink};
use ipamd_api::EndpointId;
use nix::time::{ClockId, clock_gettime};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

pub(crate) const SECOND: u64 = 1_000_000_000;

/// The node's address.
const NODE: [u8; 4] = [198, 51, 100, 1];

pub(crate) type Table<K, V> = HashMap<MapData, K, V>;

pub(crate) fn open<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> Table<K, V> {
    let map = Map::from_map_data(MapData::from_pin(pin(node, name)).unwrap()).unwrap();
    Table::try_from(map).unwrap()
}

/// The clock of the programs.
fn now() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap()).as_nanos() as u64
}

/// A masqueraded flow of an endpoint: who, which one of its flows, what both sides have seen, how long ago.
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) endpoint: u64,
    pub(crate) number: u32,
    pub(crate) protocol: u8,
    pub(crate) seen: (u32, u32),
    pub(crate) idle: u64,
}

impl Flow {
    pub(crate) fn halves(self) -> [(Tuple, Conn); 2] {
        let [_, _, c, d] = self.number.to_be_bytes();
        let out = Tuple {
            source: wide4([10, 1, 0, 2]),
            destination: wide4([192, 0, 2, (self.number >> 16) as u8]),
            source_port: [c, d],
            destination_port: [0, 80],
            protocol: self.protocol,
            family: IPV4,
            reserved: [0; 2],
        };
        let translated = Tuple { source: wide4(NODE), ..out };
        self.between(out, translated, CONN_MASQUERADE)
    }

    /// A flow from outside to a published port of the host.
    fn published(self, port: u16) -> [(Tuple, Conn); 2] {
        let [_, _, c, d] = self.number.to_be_bytes();
        let dialled = Tuple {
            source: wide4([192, 0, 2, 9]),
            destination: wide4(NODE),
            source_port: [c, d],
            destination_port: port.to_be_bytes(),
            protocol: self.protocol,
            family: IPV4,
            reserved: [0; 2],
        };
        let inside = Tuple { destination: wide4([10, 1, 0, 2]), destination_port: [0, 80], ..dialled };
        self.between(dialled, inside, CONN_PUBLISHED)
    }

    fn between(self, from: Tuple, to: Tuple, flags: u32) -> [(Tuple, Conn); 2] {
        let then = now().saturating_sub(self.idle);
        let original = Conn {
            endpoint: self.endpoint,
            opener: 0,
            created: then,
            last_seen: then,
            packets: 2,
            bytes: 120,
            to,
            flags: flags | CONN_ORIGINAL | CONN_FROM_POD,
            seen: self.seen.0,
        };
        let reply = Conn { to: from.reversed(), flags, seen: self.seen.1, packets: 1, bytes: 60, ..original };
        [(from, original), (to.reversed(), reply)]
    }
}

pub(crate) struct Tables {
    flows: Table<Tuple, Conn>,
    pub(crate) new: Table<Tuple, Conn>,
    opened: Table<u64, u64>,
    closed: Table<u64, u64>,
}

impl Tables {
    pub(crate) fn of(node: &Node) -> Self {
        open(node, "NODE_ADDRESSES").insert(AddressKey::ipv4(0, NODE), 1, 0).unwrap();
        Self {
            flows: open(node, "FLOWS"),
            new: open(node, "NEW_FLOWS"),
            opened: open(node, "FLOWS_OPENED"),
            closed: open(node, "FLOWS_CLOSED"),
        }
    }

    /// Puts a flow into the table of answered ones, as a program does: both directions, counted.
    pub(crate) fn add(&mut self, halves: [(Tuple, Conn); 2]) {
        let endpoint = halves[0].1.endpoint;
        for (key, conn) in halves {
            self.flows.insert(key, conn, 0).unwrap();
        }
        if let Ok(count) = self.opened.get(&endpoint, 0) {
            self.opened.insert(endpoint, count + 1, 0).unwrap();
        }
    }

    /// Flows of an endpoint that count against its quota.
    pub(crate) fn open(&self, endpoint: &EndpointEntry) -> u64 {
        let id = endpoint.id.get();
        self.opened.get(&id, 0).unwrap() - self.closed.get(&id, 0).unwrap()
    }
}

pub(crate) fn listed(datapath: &EbpfDatapath) -> Vec<FlowEntry> {
    let mut flows = Vec::new();
    datapath
        .flows(&mut |flow| {
            flows.push(flow.clone());
            true
        })
        .unwrap();
    flows
}

pub(crate) const SPOKEN: (u32, u32) = (SEEN_SYN | SEEN_DATA, SEEN_SYN | SEEN_DATA);

#[test]
fn flows_are_listed_with_both_directions() {
    let node = Node::new();
    let mut tables = Tables::of(&node);
    let flow = Flow { endpoint: 7, number: 1, protocol: TCP, seen: SPOKEN, idle: 2 * SECOND };
    tables.add(flow.halves());
    for (key, conn) in (Flow { number: 2, protocol: UDP, seen: (SEEN_SYN, 0), ..flow }).halves() {
        tables.new.insert(key, conn, 0).unwrap();
    }
    let flows = listed(&node.datapath);
    assert_eq!(flows.len(), 2);
    let established = flows.iter().find(|f| f.protocol == TCP).unwrap();
    assert_eq!(established.state, ConnState::Established);
    assert_eq!(established.endpoint, EndpointId::new(7));
    assert_eq!(established.opener, None);
    assert_eq!((established.original_count, established.reply_count), ((2, 120), (1, 60)));
    assert!(established.age >= Duration::from_secs(2) && established.age < Duration::from_secs(60));
    assert!(established.expires_in < Duration::from_nanos(Timeouts::DEFAULT.tcp_established));
    assert_eq!(established.reply.destination.to_string(), "198.51.100.1");
    assert_eq!(flows.iter().find(|f| f.protocol == UDP).unwrap().state, ConnState::Unreplied);
    let mut visited = 0;
    node.datapath
        .flows(&mut |_| {
            visited += 1;
            false
        })
        .unwrap();
    assert_eq!(visited, 1, "the visitor had enough");
    let [(_, original), (_, reply)] = (Flow { endpoint: 8, number: 3, ..flow }).halves();
    let opened = [original, reply].map(|conn| Conn { opener: 9, ..conn });
    for ((key, _), conn) in (Flow { endpoint: 8, number: 3, ..flow }).halves().into_iter().zip(opened) {
        tables.flows.insert(key, conn, 0).unwrap();
    }
    for (ids, wanted) in [(vec![7], vec![1, 2]), (vec![8], vec![3]), (vec![9], vec![3]), (vec![6], vec![])] {
        let mut ports = Vec::new();
        let ids = ids.into_iter().filter_map(EndpointId::new).collect();
        let counted = node.datapath.flows_of(Some(&ids), &mut |flow| {
            ports.push(flow.original.source_port);
            true
        });
        ports.sort_unstable();
        let count = FlowCount { total: 3, concerned: wanted.len() };
        assert_eq!((counted.unwrap(), ports), (count, wanted), "{ids:?}");
        let first = node.datapath.flows_of(Some(&ids), &mut |_| false);
        assert_eq!(first.unwrap(), count, "what is not looked at is counted");
    }
}

#[test]
fn a_sweep_takes_what_has_expired_and_counts_it() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    let id = endpoint.id.get();
    let t = Timeouts::DEFAULT;
    let syn = SEEN_SYN;
    let fin = SEEN_SYN | SEEN_DATA | SEEN_FIN;
    let data = SEEN_SYN | SEEN_DATA;
    // What both sides have seen, and after how long it is over.
    let rows = [
        (TCP, (syn, 0), t.tcp_opening),
        (TCP, (syn, syn), t.tcp_opening),
        (TCP, (data, data), t.tcp_established),
        (TCP, (fin, data), t.tcp_half_closed),
        (TCP, (fin, fin), t.tcp_closed),
        (TCP, (data, data | SEEN_RST), t.tcp_closed),
        (UDP, (syn, 0), t.udp_unreplied),
        (UDP, (data, syn), t.udp_replied),
        (ICMP, (data, syn), t.icmp),
    ];
    let up = now();
    let mut living = 0;
    for (number, (protocol, seen, timeout)) in rows.into_iter().enumerate() {
        let flow = |number: usize, idle| Flow { endpoint: id, number: number as u32, protocol, seen, idle };
        tables.add(flow(number * 2, timeout - 20 * SECOND).halves());
        living += 1;
        // A machine that is not up that long has no such flow.
        if timeout + SECOND < up {
            tables.add(flow(number * 2 + 1, timeout + SECOND).halves());
        }
    }
    let expired = tables.opened.get(&id, 0).unwrap() - living;
    assert!(expired > 0);
    let swept = node.datapath.sweep_flows().unwrap();
    assert_eq!(swept, FlowSweep { living: living as usize, expired: expired as usize, halves: 0 });
    assert_eq!(listed(&node.datapath).len(), living as usize);
    assert_eq!(tables.open(&endpoint), living);
    let swept = node.datapath.sweep_flows().unwrap();
    assert_eq!(swept, FlowSweep { living: living as usize, expired: 0, halves: 0 });
}

#[test]
fn flows_are_removed_by_wish_and_counted() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    for number in 0..10 {
        tables.add(
            Flow { endpoint: endpoint.id.get(), number, protocol: UDP, seen: SPOKEN, idle: SECOND }.halves(),
        );
    }
    let removed = node.datapath.remove_flows(&mut |f| f.original.source_port % 2 == 0).unwrap();
    assert_eq!((removed, tables.open(&endpoint), tables.flows.iter().count()), (5, 5, 10));
    assert!(listed(&node.datapath).iter().all(|f| f.original.source_port % 2 == 1));
}

#[test]
fn a_half_without_its_other_one_goes_when_it_is_old() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    let flow = |number, idle| {
        Flow { endpoint: endpoint.id.get(), number, protocol: UDP, seen: SPOKEN, idle }.halves()
    };
    let [young, _] = flow(1, 0);
    let [old, _] = flow(2, 20 * SECOND);
    let [_, old_reply] = flow(3, 20 * SECOND);
    for (key, conn) in [young, old, old_reply] {
        tables.new.insert(key, conn, 0).unwrap();
    }
    // Its other one is in the other table: a program is moving them.
    let [moved, moving] = flow(4, 20 * SECOND);
    tables.flows.insert(moved.0, moved.1, 0).unwrap();
    tables.new.insert(moving.0, moving.1, 0).unwrap();
    let swept = node.datapath.sweep_flows().unwrap();
    assert_eq!(swept, FlowSweep { living: 0, expired: 0, halves: 2 });
    assert!(tables.new.get(&young.0, 0).is_ok() && tables.new.get(&moving.0, 0).is_ok());
    assert!(tables.flows.get(&moved.0, 0).is_ok());
}

#[test]
fn flows_and_sockets_of_an_endpoint_that_is_gone_go_with_the_next_sweep() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let other = node.attached(3);
    let mut tables = Tables::of(&node);
    let mut sockets: Table<SocketKey, SocketPeer> = open(&node, "SOCKETS");
    for (number, id) in [(1, endpoint.id), (2, other.id)] {
        tables.add(Flow { endpoint: id.get(), number, protocol: UDP, seen: SPOKEN, idle: 0 }.halves());
        let key = SocketKey {
            cookie: number.into(),
            address: mapped4([10, 1, 0, 2]),
            port: [0, 80],
            protocol: UDP,
            reserved: [0; 5],
        };
        let peer = SocketPeer {
            address: mapped4([127, 0, 0, 1]),
            port: [31, 64],
            reserved: [0; 6],
            endpoint: id.get(),
        };
        sockets.insert(key, peer, 0).unwrap();
    }
    node.datapath.forget(&EndpointRef::from(&endpoint)).unwrap();
    // Neither a DEL nor an ADD looks for them: the programs give them to nobody (see `heirs`).
    let successor = EndpointEntry { id: EndpointId::new(0xfeed).unwrap(), ..endpoint.clone() };
    node.datapath.attach(&successor).unwrap();
    assert_eq!(listed(&node.datapath).len(), 2);
    node.datapath.sweep_flows().unwrap();
    let left = listed(&node.datapath);
    assert_eq!(left.iter().map(|f| f.endpoint).collect::<Vec<_>>(), [Some(other.id)]);
    assert_eq!(sockets.iter().map(|s| s.unwrap().1.endpoint).collect::<Vec<_>>(), [other.id.get()]);
    assert_eq!(tables.open(&other), 1);
}

#[test]
fn after_a_start_the_first_to_publish_waits_for_a_sweep() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    let id = endpoint.id.get();
    let flow = Flow { endpoint: id, number: 1, protocol: UDP, seen: SPOKEN, idle: 0 };
    // Given back by an endpoint that lives, by an ipamd that died before its next sweep.
    tables.add(flow.published(8000));
    let again = node.bpffs.open();
    assert_eq!(listed(&again).len(), 1);
    again.publish(&mapping(0xfeed, 8001, 1)).unwrap();
    assert_eq!(listed(&again).len(), 0);
    tables.add(flow.published(8000));
    again.publish(&mapping(0xfeed, 8000, 1)).unwrap();
    assert_eq!(listed(&again).len(), 1, "nothing was given back since");
}

#[test]
fn masqueraded_flows_end_with_the_address_that_they_have() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    ip("link add host0 type veth peer name host1");
    let view = |addresses: &[[u8; 4]], masquerade: [u8; 4]| HostView {
        uplinks: vec![Uplink {
            ifindex: ifindex("host0"),
            name: "host0".to_owned(),
            l3: false,
            ipv4: Some(masquerade.into()),
            ipv6: None,
            mtu: 1500,
        }],
        addresses: addresses.iter().map(|a| IpAddr::from(*a)).collect(),
    };
    let (other, stacks) = ([198, 51, 100, 2], [198, 51, 100, 3]);
    node.datapath.set_host(&view(&[NODE, other], stacks)).unwrap();
    let flow = |number| {
        let id = endpoint.id.get();
        Flow { endpoint: id, number, protocol: UDP, seen: SPOKEN, idle: 0 }
    };
    let masqueraded = |number, address| {
        let [(out, original), _] = flow(number).halves();
        let to = Tuple { source: wide4(address), ..original.to };
        flow(number).between(out, to, CONN_MASQUERADE)
    };
    tables.add(masqueraded(1, NODE));
    tables.add(masqueraded(2, other));
    // An address that the stack has for itself, and the uplink all the same.
    tables.add(masqueraded(3, stacks));
    // Let through as it is: its address never was the node's.
    let [(out, _), _] = flow(4).halves();
    tables.add(flow(4).between(out, out, 0));
    let left = || {
        let mut ports: Vec<_> = listed(&node.datapath).iter().map(|f| f.original.source_port).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(node.datapath.sweep_flows().unwrap().living, 4);
    // At once, and not when somebody sweeps: until then the same ports would go on under the old address.
    node.datapath.set_host(&view(&[NODE], stacks)).unwrap();
    assert_eq!(left(), [1, 3, 4]);
    assert_eq!(tables.open(&endpoint), 3);
    node.datapath.set_host(&view(&[NODE], NODE)).unwrap();
    node.datapath.sweep_flows().unwrap();
    assert_eq!(left(), [1, 4]);
}

#[test]
fn a_crash_between_a_removal_and_its_count_costs_no_quota() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    for number in 0..4 {
        tables
            .add(Flow { endpoint: endpoint.id.get(), number, protocol: UDP, seen: SPOKEN, idle: 0 }.halves());
    }
    for (key, _) in (Flow { endpoint: 0, number: 0, protocol: UDP, seen: SPOKEN, idle: 0 }).halves() {
        tables.flows.remove(&key).unwrap();
    }
    assert_eq!(tables.open(&endpoint), 4);
    let again = node.bpffs.open();
    again.sweep_flows().unwrap();
    assert_eq!(tables.open(&endpoint), 3);
}

#[test]
fn flows_of_a_port_end_with_it_and_those_of_others_stay() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let id = endpoint.id.get();
    let (a, b) = (mapping(id, 8000, 1), mapping(id, 8001, 1));
    node.datapath.publish(&a).unwrap();
    node.datapath.publish(&b).unwrap();
    let mut tables = Tables::of(&node);
    let flow =
        |number, port| Flow { endpoint: id, number, protocol: TCP, seen: SPOKEN, idle: 0 }.published(port);
    tables.add(flow(1, 8000));
    tables.add(flow(2, 8001));
    tables.add(Flow { endpoint: id, number: 3, protocol: TCP, seen: SPOKEN, idle: 0 }.halves());
    assert_eq!(node.datapath.sweep_flows().unwrap().living, 3);
    node.datapath.unpublish(&a).unwrap();
    // The port goes to somebody else: not before the old flows are gone.
    let heir = mapping(0xfeed, 8000, 1);
    node.datapath.publish(&heir).unwrap();
    let mut ports: Vec<_> = listed(&node.datapath).iter().map(|f| f.original.destination_port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [80, 8001]);
    assert_eq!(tables.open(&endpoint), 2);
    // Of who is gone there is nothing to look for, however many flows there are.
    node.datapath.unpublish(&b).unwrap();
    node.datapath.forget(&EndpointRef::from(&endpoint)).unwrap();
    node.datapath.publish(&mapping(0xfeed, 8001, 1)).unwrap();
    assert_eq!(listed(&node.datapath).len(), 2);
}

#[test]
fn what_is_remembered_beside_flows_ends_too() {
    let node = Node::new();
    let mut fragments: Table<FragmentKey, FragmentPorts> = open(&node, "FRAGMENTS");
    let mut host: Table<Tuple, u64> = open(&node, "HOST_FLOWS");
    let up = now();
    for (number, age) in [(1, 10 * SECOND), (2, 70 * SECOND)] {
        let key = FragmentKey {
            source: wide4([192, 0, 2, 9]),
            destination: wide4([198, 51, 100, 1]),
            identification: [0, number, 0, 0],
            protocol: UDP,
            family: IPV4,
            reserved: [0; 2],
        };
        let ports =
            FragmentPorts { seen: up - age, source_port: [0, 1], destination_port: [0, 2], reserved: [0; 4] };
        fragments.insert(key, ports, 0).unwrap();
    }
    let flow = Flow { endpoint: 0, number: 1, protocol: UDP, seen: SPOKEN, idle: 0 };
    let rows = [(UDP, 170, true), (UDP, 190, false), (TCP, 190, true), (ICMP, 20, true), (ICMP, 40, false)];
    for (number, (protocol, age, _)) in rows.iter().enumerate() {
        let [(key, _), _] = (Flow { number: number as u32, protocol: *protocol, ..flow }).halves();
        host.insert(key, up - age * SECOND, 0).unwrap();
    }
    node.datapath.sweep_flows().unwrap();
    assert_eq!(fragments.keys().map(|k| k.unwrap().identification[1]).collect::<Vec<_>>(), [1]);
    let mut left: Vec<_> = host.keys().map(|k| k.unwrap().source_port[1]).collect();
    left.sort_unstable();
    let wanted = rows.iter().enumerate().filter(|(_, r)| r.2).map(|(n, _)| n as u8).collect::<Vec<_>>();
    assert_eq!(left, wanted);
}

#[test]
fn nobody_to_wait_for_is_no_error() {
    let node = Node::new();
    let start = Instant::now();
    let mut samples = 0;
    node.datapath.drop_events(Duration::from_millis(50), &mut |_| samples += 1).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(45) && samples == 0);
}

/// A million entries: half a million flows, all alive, then none.
#[test]
fn a_million_entries_are_swept_in_no_time() {
    const FLOWS: u32 = 500_000;
    let bpffs = crate::node::Bpffs::new();
    let options = DatapathOptions { replied_entries: 1 << 20, ..crate::node::options() };
    let datapath = EbpfDatapath::open(&bpffs.path().join("weft"), &options).unwrap();
    assert_eq!(datapath.flow_capacity(), 1 << 19);
    let node = Node { datapath, bpffs };
    let mut tables = Tables::of(&node);
    for number in 0..FLOWS {
        let flow = Flow { endpoint: 0, number, protocol: UDP, seen: SPOKEN, idle: 0 };
        for (key, conn) in flow.halves() {
            tables.flows.insert(key, conn, 0).unwrap();
        }
    }
    let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let before = cpu();
    let swept = node.datapath.sweep_flows().unwrap();
    let took = cpu() - before;
    println!("sweep of {} entries: {took:?} of CPU, all alive", FLOWS * 2);
    assert_eq!(swept, FlowSweep { living: FLOWS as usize, expired: 0, halves: 0 });
    // A debug build on a busy machine; optimised it is several times less.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let before = cpu();
    assert_eq!(node.datapath.remove_flows(&mut |_| true).unwrap(), FLOWS as usize);
    println!("removal of {} entries: {:?} of CPU", FLOWS * 2, cpu() - before);
    assert_eq!(node.datapath.sweep_flows().unwrap(), FlowSweep::default());
}
