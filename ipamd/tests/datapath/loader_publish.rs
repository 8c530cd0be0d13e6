//! Published ports in the real maps: entries, reservations, lists, and what a start makes of leftovers.

use crate::node::Node;
use aya::maps::{LpmTrie, Map, MapData, lpm_trie::Key};
use ebpf_common::{
    AllowKey, FIRST_LIST, IPV4, IPV6, PUBLISHED_SOCKETS_ONLY, PortKey, Published, ReservedKey, mapped4, wide4,
};
use ipamd::datapath::{Datapath, EbpfDatapath, NodeSettings, PublishEntry};
use ipamd_api::{EndpointId, PortMapping, Protocol};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

type Trie<K, V> = LpmTrie<MapData, K, V>;

/// The maps as the programs see them.
pub(crate) struct Kernel {
    published: Trie<PortKey, Published>,
    reserved: Trie<ReservedKey, u32>,
    allowed: Trie<AllowKey, u32>,
}

pub(crate) fn pin(node: &Node, name: &str) -> PathBuf {
    node.bpffs.path().join(format!("weft/v{}/{name}", ebpf_common::LAYOUT_VERSION))
}

fn open<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> Trie<K, V> {
    let map = Map::from_map_data(MapData::from_pin(pin(node, name)).unwrap()).unwrap();
    Trie::try_from(map).unwrap()
}

impl Kernel {
    fn of(node: &Node) -> Self {
        Self {
            published: open(node, "PUBLISHED"),
            reserved: open(node, "RESERVED_PORTS"),
            allowed: open(node, "ALLOWED"),
        }
    }

    /// Endpoint and container port behind a host port, as a program finds them.
    fn behind(&self, protocol: Protocol, family: u8, address: [u8; 16], port: u16) -> Option<(u64, u16)> {
        self.value(protocol, family, address, port)
            .map(|v| (v.endpoint, u16::from_be_bytes(v.port_behind(port.to_be_bytes()))))
    }

    fn value(&self, protocol: Protocol, family: u8, address: [u8; 16], port: u16) -> Option<Published> {
        let key = PortKey { address, protocol: protocol.number(), family, port: port.to_be_bytes() };
        self.published.get(&Key::new(PortKey::ALL_BITS, key), 0).ok()
    }

    fn is_reserved(&self, protocol: Protocol, family: u8, port: u16) -> bool {
        let key = ReservedKey { protocol: protocol.number(), family, port: port.to_be_bytes() };
        self.reserved.get(&Key::new(ReservedKey::ALL_BITS, key), 0).is_ok()
    }

    fn allows(&self, list: u32, client: [u8; 16]) -> bool {
        let key = AllowKey { list: list.to_be_bytes(), address: client };
        self.allowed.get(&Key::new(AllowKey::ALL_BITS, key), 0).is_ok()
    }

    /// How many entries each map has.
    fn sizes(&self) -> (usize, usize, usize) {
        (self.published.iter().count(), self.reserved.iter().count(), self.allowed.iter().count())
    }
}

pub(crate) fn entry(endpoint: u64, host_port: u16, count: u16) -> PublishEntry {
    PublishEntry {
        endpoint: EndpointId::new(endpoint).unwrap(),
        network: 7,
        ipv4: Some("10.1.0.2".parse().unwrap()),
        ipv6: Some("fd01::2".parse().unwrap()),
        mapping: PortMapping {
            host_port,
            container_port: 80,
            count,
            protocol: Protocol::Tcp,
            host_ip: None,
            allow_from: Vec::new(),
        },
    }
}

fn at(ip: &str, entry: PublishEntry) -> PublishEntry {
    PublishEntry { mapping: PortMapping { host_ip: Some(ip.parse().unwrap()), ..entry.mapping }, ..entry }
}

fn only(from: &[&str], mut entry: PublishEntry) -> PublishEntry {
    entry.mapping.allow_from = from.iter().map(|t| t.parse().unwrap()).collect();
    entry
}

const ANY: [u8; 16] = [0; 16];
const TCP: Protocol = Protocol::Tcp;

#[test]
fn a_range_is_served_at_every_port_of_it_and_at_none_beside() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let range = entry(1, 8000, 1000);
    assert!(!node.datapath.is_published(&range).unwrap());
    for _ in 0..2 {
        node.datapath.publish(&range).unwrap();
        assert!(node.datapath.is_published(&range).unwrap());
    }
    for family in [IPV4, IPV6] {
        for port in [8000, 8001, 8063, 8064, 8191, 8192, 8998, 8999] {
            assert_eq!(kernel.behind(TCP, family, ANY, port), Some((1, port - 7920)));
            assert!(kernel.is_reserved(TCP, family, port));
        }
        for port in [0, 7999, 9000, 65535] {
            assert_eq!(kernel.behind(TCP, family, ANY, port), None, "{port}");
            assert!(!kernel.is_reserved(TCP, family, port), "{port}");
        }
        assert_eq!(kernel.behind(Protocol::Udp, family, ANY, 8000), None);
    }
    assert_eq!(kernel.sizes(), (12, 12, 0), "a range of 1,000 ports is six prefixes in each family");
    for _ in 0..2 {
        node.datapath.unpublish(&range).unwrap();
        assert_eq!(kernel.sizes(), (0, 0, 0));
    }
    assert!(!node.datapath.is_published(&range).unwrap());
}

#[test]
fn a_container_without_ipv6_serves_sockets_there() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let entry = PublishEntry { ipv6: None, ..entry(1, 8000, 1) };
    node.datapath.publish(&entry).unwrap();
    let (v4, v6) = (kernel.value(TCP, IPV4, ANY, 8000).unwrap(), kernel.value(TCP, IPV6, ANY, 8000).unwrap());
    assert_eq!((v4.flags, v4.backend_family), (0, IPV4));
    assert_eq!(
        (v6.flags, v6.backend_family, v6.backend),
        (PUBLISHED_SOCKETS_ONLY, IPV4, wide4([10, 1, 0, 2]))
    );
    assert!(node.datapath.is_published(&entry).unwrap());
}

#[test]
fn a_port_stays_reserved_while_one_address_needs_it() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let (a, b) = (at("192.0.2.1", entry(1, 8000, 4)), at("192.0.2.2", entry(2, 8000, 4)));
    node.datapath.publish(&a).unwrap();
    node.datapath.publish(&b).unwrap();
    assert_eq!(kernel.sizes(), (2, 1, 0));
    // Counted anew after a start.
    let again = node.bpffs.open();
    again.unpublish(&a).unwrap();
    assert!(kernel.is_reserved(TCP, IPV4, 8003));
    assert_eq!(kernel.behind(TCP, IPV4, wide4([192, 0, 2, 2]), 8003), Some((2, 83)));
    again.unpublish(&b).unwrap();
    assert_eq!(kernel.sizes(), (0, 0, 0));
}

#[test]
fn what_another_endpoint_took_over_is_left_alone() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let (old, new) = (entry(1, 8000, 1), entry(2, 8000, 1));
    node.datapath.publish(&old).unwrap();
    node.datapath.publish(&new).unwrap();
    assert!(!node.datapath.is_published(&old).unwrap());
    node.datapath.unpublish(&old).unwrap();
    assert_eq!(kernel.behind(TCP, IPV4, ANY, 8000), Some((2, 80)));
    assert!(kernel.is_reserved(TCP, IPV6, 8000));
    node.datapath.unpublish(&new).unwrap();
    assert_eq!(kernel.sizes(), (0, 0, 0));
}

#[test]
fn lists_are_shared_by_content_and_go_with_their_last_user() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let a = only(&["192.0.2.0/24", "2001:db8::/32"], entry(1, 8000, 1));
    let b = only(&["2001:db8::/32", "192.0.2.0/24", "192.0.2.9/24"], entry(2, 8001, 1));
    let c = only(&["::/0"], entry(3, 8002, 1));
    for entry in [&a, &b, &c] {
        node.datapath.publish(entry).unwrap();
        assert!(node.datapath.is_published(entry).unwrap());
    }
    let list = |port| kernel.value(TCP, IPV4, ANY, port).unwrap().allow;
    assert_eq!(list(8000), list(8001));
    assert!(list(8000) >= FIRST_LIST && list(8002) >= FIRST_LIST && list(8002) != list(8000));
    assert_eq!(kernel.sizes().2, 2 + 96);
    assert!(kernel.allows(list(8000), mapped4([192, 0, 2, 77])));
    assert!(!kernel.allows(list(8000), mapped4([192, 0, 3, 77])));
    assert!(!kernel.allows(list(8002), mapped4([192, 0, 2, 77])), "::/0 means IPv6");
    assert!(kernel.allows(list(8002), "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets()));
    assert!(kernel.allows(list(8002), "::1".parse::<std::net::Ipv6Addr>().unwrap().octets()));

    let again = node.bpffs.open();
    assert!(again.is_published(&a).unwrap() && again.is_published(&b).unwrap());
    // The same ports for everybody: the list of `c` has no user left.
    again.publish(&only(&[], c.clone())).unwrap();
    assert_eq!(kernel.sizes().2, 2);
    again.unpublish(&a).unwrap();
    assert!(kernel.allows(list(8001), mapped4([192, 0, 2, 77])));
    again.unpublish(&b).unwrap();
    assert_eq!(kernel.sizes().2, 0);
}

#[test]
fn a_start_removes_what_a_crash_left_half_done() {
    let node = Node::new();
    let mut kernel = Kernel::of(&node);
    let entry = only(&["192.0.2.0/24"], entry(1, 8000, 1));
    node.datapath.publish(&entry).unwrap();
    let before = kernel.sizes();
    // A list whose mapping was never written, and a reservation likewise; a reservation that is missing.
    let key = AllowKey { list: 99_u32.to_be_bytes(), address: mapped4([10, 0, 0, 0]) };
    kernel.allowed.insert(&Key::new(AllowKey::LIST_BITS + 104, key), 1, 0).unwrap();
    let reserved = |port: u16| ReservedKey { protocol: 6, family: IPV4, port: port.to_be_bytes() };
    kernel.reserved.insert(&Key::new(ReservedKey::ALL_BITS, reserved(9)), 1, 0).unwrap();
    kernel.reserved.remove(&Key::new(ReservedKey::ALL_BITS, reserved(8000))).unwrap();
    assert!(!node.datapath.is_published(&entry).unwrap(), "without its reservation");
    let again = node.bpffs.open();
    assert_eq!(kernel.sizes(), before);
    assert!(kernel.is_reserved(TCP, IPV4, 8000) && !kernel.is_reserved(TCP, IPV4, 9));
    assert!(again.is_published(&entry).unwrap());
}

#[test]
fn only_those_that_belong_to_somebody_are_retained() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let (a, b, c) = (entry(1, 8000, 1), entry(2, 8001, 3), at("192.0.2.1", entry(3, 9000, 1)));
    for entry in [&a, &b, &c] {
        node.datapath.publish(entry).unwrap();
    }
    let again = node.bpffs.open();
    // `c` belongs to another endpoint by now.
    let heir = PublishEntry { endpoint: EndpointId::new(4).unwrap(), ..c };
    assert_eq!(again.retain_published(&[a.clone(), heir]).unwrap(), 2 * 2 + 1);
    assert_eq!(kernel.sizes(), (2, 2, 0));
    assert!(again.is_published(&a).unwrap());
    assert_eq!(again.retain_published(&[a]).unwrap(), 0);
    assert_eq!(again.retain_published(&[]).unwrap(), 2);
    assert_eq!(kernel.sizes(), (0, 0, 0));
}

#[test]
fn the_lists_of_the_node_follow_its_settings() {
    let node = Node::new();
    let kernel = Kernel::of(&node);
    let networks = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpNetwork>>();
    let settings = |allow: &[&str], deny: &[&str]| NodeSettings {
        host_cookie: 1,
        nat_ports: 1024..=32767,
        flow_quota: 100,
        timeouts: ebpf_common::Timeouts::DEFAULT,
        stack_cidrs: networks(&["10.96.0.0/12", "fd96::/108"]),
        publish_allow: networks(allow),
        publish_deny: networks(deny),
        event_interval: Duration::from_millis(10),
    };
    let configured = |datapath: &EbpfDatapath, allow: &[&str], deny: &[&str]| {
        datapath.configure(&settings(allow, deny)).unwrap();
        kernel.sizes().2
    };
    let client = mapped4([192, 0, 2, 7]);
    assert_eq!(configured(&node.datapath, &["192.0.2.0/24"], &["198.51.100.0/24", "10.0.0.0/8"]), 3);
    assert!(kernel.allows(ebpf_common::LIST_NODE_ALLOW, client));
    assert!(kernel.allows(ebpf_common::LIST_NODE_DENY, mapped4([10, 9, 8, 7])));
    let again = node.bpffs.open();
    assert_eq!(kernel.sizes().2, 3, "a start keeps them");
    assert_eq!(configured(&again, &[], &["10.0.0.0/8"]), 1);
    assert!(!kernel.allows(ebpf_common::LIST_NODE_ALLOW, client));
    assert_eq!(configured(&again, &[], &[]), 0);

    let map = Map::from_map_data(MapData::from_pin(pin(&node, "CONFIG")).unwrap()).unwrap();
    let config: aya::maps::Array<_, ebpf_common::Config> = map.try_into().unwrap();
    let config = config.get(&0, 0).unwrap();
    assert_eq!((config.flags, config.first_port, config.last_port), (0, 1024, 32767));
    assert_eq!(config.event_interval, 10_000_000);

    let cidrs: Trie<ebpf_common::CidrKey, u32> = open(&node, "CIDRS");
    again.set_unmasqueraded(7, &networks(&["10.0.0.0/8"])).unwrap();
    assert_eq!(cidrs.iter().count(), 3);
    let what = |network, address| {
        let key = ebpf_common::CidrKey::new(network, address);
        cidrs.get(&Key::new(ebpf_common::CidrKey::ALL_BITS, key), 0).ok()
    };
    assert_eq!(what(0, mapped4([10, 97, 0, 1])), Some(ebpf_common::CIDR_STACK));
    assert_eq!(what(7, mapped4([10, 97, 0, 1])), Some(ebpf_common::CIDR_NO_MASQUERADE));
    assert_eq!(what(8, mapped4([10, 97, 0, 1])), None);
    again.set_unmasqueraded(7, &networks(&["172.16.0.0/12"])).unwrap();
    assert_eq!(what(7, mapped4([10, 97, 0, 1])), None);
    again.set_unmasqueraded(7, &[]).unwrap();
    assert_eq!(cidrs.iter().count(), 2);
}

/// One publish costs the same whether there are ten others or ten thousand: it never lists the map.
#[test]
fn the_cost_of_one_publish_does_not_grow_with_their_number() {
    let node = Node::new();
    let one = entry(1, 60_000, 1);
    let timed = || {
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            node.datapath.publish(&one).unwrap();
            node.datapath.unpublish(&one).unwrap();
            best = best.min(start.elapsed());
        }
        best
    };
    node.datapath.sweep_flows().unwrap();
    // The sweep after an unpublish is not what is measured here: it depends on flows, and there are none.
    let few = timed();
    let mut others = BTreeMap::new();
    for port in 0..10_000_u16 {
        let entry = entry(u64::from(port) + 10, 20_000 + port, 1);
        node.datapath.publish(&entry).unwrap();
        others.insert(port, entry);
    }
    let many = timed();
    println!("publish and unpublish: {few:?} beside none, {many:?} beside 10,000 mappings");
    assert!(many < few * 5 + Duration::from_millis(2), "{few:?} beside none, {many:?} beside 10,000");
    assert!(others.values().all(|e| node.datapath.is_published(e).unwrap()));
}
