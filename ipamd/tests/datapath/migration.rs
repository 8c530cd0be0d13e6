//! Pins of other shapes than this release's: their entries come over, in whatever state a crash has left them.

use crate::{
    loader_flows::{Flow, SPOKEN, Table, Tables, listed, open},
    loader_publish::pin,
    node::{Node, options},
};
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapInfo, lpm_trie::Key};
use ebpf_common::{CidrKey, Conn, FlowKey, IPV4, Peer, TCP, Tuple, WAY_ROUTED};
use ipamd::datapath::{Attached, Datapath, DatapathOptions, EbpfDatapath, EndpointEntry};
use ipamd_api::Hooks;
use std::fs;

/// `BPF_F_NO_PREALLOC`, with `BPF_F_ZERO_SEED`: what nothing of Weft's has.
const FLAGS: u32 = 1 | 64;

/// The bytes of a value, cut or with others behind them.
fn resized<V: aya::Pod, const N: usize>(value: &V) -> [u8; N] {
    // SAFETY: a `Pod` of this project has no padding, so each of its bytes is there.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<V>()) };
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0xee))
}

/// Makes a hash map with these entries as another release would have, in the place of a pin or beside it.
fn make<K: aya::Pod, V: aya::Pod, const N: usize>(node: &Node, name: &str, entries: u32, rows: &[(K, V)]) {
    let mut map = HashMap::<_, K, [u8; N]>::create(entries, FLAGS).unwrap();
    for (key, value) in rows {
        map.insert(key, resized::<V, N>(value), 0).unwrap();
    }
    let pin = pin(node, name);
    let _ = fs::remove_file(&pin);
    map.pin(&pin).unwrap();
}

/// The same, with the entries that are in the pin.
fn remake<K: aya::Pod, V: aya::Pod, const N: usize>(node: &Node, name: &str, entries: u32) {
    let map: Table<K, V> = open(node, name);
    let rows: Vec<_> = map.iter().map(Result::unwrap).collect();
    make::<K, V, N>(node, name, entries, &rows);
}

/// What the kernel says of a pin: bytes of a value, capacity, flags.
fn shape(node: &Node, name: &str) -> (u32, u32, u32) {
    let info = MapInfo::from_pin(pin(node, name)).unwrap();
    (info.value_size(), info.max_entries(), info.map_flags())
}

fn nothing_is_left(node: &Node) {
    let pins = fs::read_dir(pin(node, "")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = pins.filter(|name| name.contains("-new")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn again(node: &Node, options: &DatapathOptions) -> EbpfDatapath {
    EbpfDatapath::open(&node.bpffs.path().join("weft"), options).unwrap()
}

/// The `number`th flow of an endpoint.
fn flow(endpoint: &EndpointEntry, number: u32) -> [(Tuple, Conn); 2] {
    Flow { endpoint: endpoint.id.get(), number, protocol: TCP, seen: SPOKEN, idle: 0 }.halves()
}

/// Source ports of all flows.
fn ports(datapath: &EbpfDatapath) -> Vec<u16> {
    let mut ports: Vec<_> = listed(datapath).iter().map(|f| f.original.source_port).collect();
    ports.sort_unstable();
    ports
}

/// Makes maps as another release would have.
type Reshape = fn(&Node);

/// How another release might have made the maps. Each change stands for itself: a map is made anew for any of them.
#[test]
fn entries_come_over_whatever_shape_their_map_had() {
    const CONN: usize = size_of::<Conn>();
    let rows: [(&str, Reshape); 5] = [
        ("values that have grown", |node| remake::<Tuple, Conn, { CONN + 8 }>(node, "FLOWS", 8192)),
        ("values that have grown to no multiple of 8", |node| {
            remake::<Tuple, Conn, { CONN + 3 }>(node, "FLOWS", 8192);
            remake::<Tuple, Conn, { CONN + 4 }>(node, "NEW_FLOWS", 8192);
        }),
        ("more entries", |node| {
            remake::<Tuple, Conn, CONN>(node, "FLOWS", 9000);
            remake::<u64, u64, 8>(node, "FLOWS_OPENED", 9);
            remake::<u64, u64, 8>(node, "FLOWS_CLOSED", 20_000);
        }),
        ("fewer entries", |node| remake::<Tuple, Conn, CONN>(node, "FLOWS", 40)),
        ("other flags", |node| remake::<Tuple, Conn, CONN>(node, "FLOWS", 8192)),
    ];
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    for number in 0..10 {
        tables.add(flow(&endpoint, number));
    }
    for (key, conn) in flow(&endpoint, 10) {
        tables.new.insert(key, conn, 0).unwrap();
    }
    let shapes =
        ["FLOWS", "NEW_FLOWS", "FLOWS_OPENED", "FLOWS_CLOSED"].map(|name| (name, shape(&node, name)));
    let entries = || {
        let flows: Table<Tuple, Conn> = open(&node, "FLOWS");
        let mut rows: Vec<(Tuple, Conn)> = flows.iter().map(Result::unwrap).collect();
        rows.sort_by_key(|(key, _)| (key.source_port, key.destination_port));
        rows
    };
    let before = entries();
    for (what, reshape) in rows {
        reshape(&node);
        assert!(shapes.iter().any(|(name, was)| shape(&node, name) != *was), "{what}: nothing was changed");
        let later = again(&node, &options());
        for (name, wanted) in shapes {
            assert_eq!(shape(&node, name), wanted, "{what}: {name}");
        }
        nothing_is_left(&node);
        assert_eq!(entries(), before, "{what}");
        assert_eq!(ports(&later), (0..=10).collect::<Vec<_>>(), "{what}");
        assert_eq!(Tables::of(&node).open(&endpoint), 10, "{what}");
        assert_eq!(later.sweep_flows().unwrap().living, 11, "{what}");
    }
}

#[test]
fn what_an_earlier_release_did_not_know_is_zero() {
    let node = Node::new();
    let key = FlowKey {
        network: 7,
        protocol: TCP,
        family: IPV4,
        reserved: [0; 2],
        source: [1; 16],
        destination: [2; 16],
        source_port: [0, 1],
        destination_port: [0, 80],
    };
    let value = ebpf_common::Flow { endpoint: 3, last_seen: 4, way: WAY_ROUTED, reserved: 9 };
    make::<FlowKey, ebpf_common::Flow, 20>(&node, "STACK_FLOWS", 1024, &[(key, value)]);
    // A trie, of values that were longer.
    let to = Key::new(CidrKey::NETWORK_BITS + 24, CidrKey { network: [0, 0, 0, 7], address: [10; 16] });
    let mut peers = LpmTrie::<_, CidrKey, [u8; size_of::<Peer>() + 4]>::create(100, 1).unwrap();
    peers.insert(&to, [5; size_of::<Peer>() + 4], 0).unwrap();
    fs::remove_file(pin(&node, "PEERS")).unwrap();
    peers.pin(pin(&node, "PEERS")).unwrap();
    again(&node, &options());
    let flows: Table<FlowKey, ebpf_common::Flow> = open(&node, "STACK_FLOWS");
    assert_eq!(flows.get(&key, 0).unwrap(), ebpf_common::Flow { reserved: 0, ..value });
    let map = MapData::from_pin(pin(&node, "PEERS")).unwrap();
    let peers = LpmTrie::<_, CidrKey, [u8; size_of::<Peer>()]>::try_from(Map::from_map_data(map).unwrap());
    assert_eq!(peers.unwrap().get(&to, 0).unwrap(), [5; size_of::<Peer>()]);
}

/// ipamd may be killed between any two steps, and then that of any release be started. Programs are left on every map that is pinned.
#[test]
fn what_crashes_have_left_comes_together() {
    const SAME: usize = size_of::<Conn>();
    const GROWN: usize = SAME + 8;
    const LATER: usize = SAME + 16;
    type Rows<'a> = &'a [(Tuple, Conn)];
    let grown = |node: &Node, name: &str, rows: Rows<'_>| make::<Tuple, Conn, GROWN>(node, name, 100, rows);
    let later = |node: &Node, name: &str, rows: Rows<'_>| make::<Tuple, Conn, LATER>(node, name, 200, rows);
    let right = |node: &Node, name: &str, rows: Rows<'_>| {
        let mut map = HashMap::<_, Tuple, Conn>::create(8192, 1).unwrap();
        rows.iter().for_each(|(key, conn)| map.insert(key, conn, 0).unwrap());
        let _ = fs::remove_file(pin(node, name));
        map.pin(pin(node, name)).unwrap();
    };
    type Make<'a> = &'a dyn Fn(&Node, &str, Rows<'_>);
    let states: [(&str, &[(&str, Make<'_>)]); 6] = [
        ("a copy that was begun", &[("FLOWS", &grown), ("FLOWS-new", &right)]),
        ("an upgrade that was begun, and taken back", &[("FLOWS", &right), ("FLOWS-new", &grown)]),
        ("an upgrade that was begun to a third release", &[("FLOWS", &grown), ("FLOWS-new", &later)]),
        ("two upgrades", &[("FLOWS", &grown), ("FLOWS-new", &later), ("FLOWS-new2", &right)]),
        (
            "a new map in its place, and others that are left",
            &[("FLOWS", &right), ("FLOWS-new", &grown), ("FLOWS-new2", &later)],
        ),
        ("nothing in its place", &[("FLOWS-new", &grown)]),
    ];
    let node = Node::new();
    let endpoint = node.attached(2);
    Tables::of(&node);
    for (what, maps) in states {
        fs::remove_file(pin(&node, "FLOWS")).unwrap();
        for (number, (name, make)) in maps.iter().enumerate() {
            // Each has one that all have, and one of its own.
            let own = flow(&endpoint, number as u32 + 1);
            make(&node, name, &[flow(&endpoint, 0), own].concat());
        }
        let later = again(&node, &options());
        assert_eq!(ports(&later), (0..=maps.len() as u16).collect::<Vec<_>>(), "{what}");
        assert_eq!(shape(&node, "FLOWS").0, SAME as u32, "{what}");
        nothing_is_left(&node);
    }
}

#[test]
fn capacities_follow_the_settings_but_drop_nothing() {
    let node = Node::new();
    let endpoint = node.attached(2);
    let mut tables = Tables::of(&node);
    for number in 0..100 {
        tables.add(flow(&endpoint, number));
    }
    // What is set, and what comes of it: 200 directions need room.
    let mut was = 8192;
    for (set, wanted) in [(1 << 16, 1 << 16), (4096, 4096), (210, 4096), (256, 256), (8192, 8192)] {
        let later = again(&node, &DatapathOptions { replied_entries: set, ..options() });
        assert_eq!(later.flow_capacity(), wanted / 2, "{was} set to {set}");
        assert_eq!(ports(&later).len(), 100, "{was} set to {set}");
        assert_eq!(Tables::of(&node).open(&endpoint), 100, "{was} set to {set}");
        was = set;
    }
}

/// Programs of two releases on maps of their own do not know each other's flows: all change hands at once.
#[test]
fn programs_change_with_their_maps() {
    let node = Node::new();
    let mut entries = vec![node.attached(2)];
    if !node.is_too_old_for_tcx() {
        entries.push(EndpointEntry { hooks: Hooks::Tcx, ..node.endpoint(3) });
        node.datapath.attach(&entries[1]).unwrap();
    }
    let attached = |datapath: &EbpfDatapath| {
        entries.iter().map(|entry| datapath.attached(entry).unwrap()).collect::<Vec<_>>()
    };
    let (all, none) = (
        vec![Attached { from_pod: true, to_pod: true }; entries.len()],
        vec![Attached { from_pod: false, to_pod: false }; entries.len()],
    );
    assert_eq!(attached(&node.datapath), all);
    let larger = DatapathOptions { replied_entries: 1 << 14, ..options() };
    // Programs are kept for the next start, but these work on a map that is left.
    let later = again(&node, &larger);
    assert_eq!((attached(&later), attached(&node.datapath)), (all, none.clone()));
    node.bpffs.let_programs_go();
    let same = again(&node, &larger);
    assert_eq!(attached(&same), none, "the same maps leave the programs to those who attach");
}
