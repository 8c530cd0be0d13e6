//! Maps of an earlier version, and taking everything away.

use crate::node::{Bpffs, Node, eventually, ifindex, ip, options, run};
use aya::{
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use ipamd::{
    datapath::{Datapath, DatapathError, EbpfDatapath},
    uplinks::{HostView, Uplink},
};
use ipamd_api::Hooks;
use std::fs;

/// Names in a directory, sorted.
fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Puts a map of counts in the place of a pin, as another version of Weft would have made it.
fn make_counts(bpffs: &Bpffs, name: &str, entries: u32) {
    let cpus = nr_cpus().unwrap();
    let mut map = PerCpuArray::<_, u64>::create(entries, 0).unwrap();
    for reason in 0..entries {
        let counts = (0..cpus).map(|cpu| u64::from(reason) * 10 + cpu as u64).collect::<Vec<_>>();
        map.set(reason, PerCpuValues::try_from(counts).unwrap(), 0).unwrap();
    }
    let pin = bpffs.pins().join(name);
    let _ = fs::remove_file(&pin);
    map.pin(&pin).unwrap();
}

#[test]
fn counts_of_a_map_of_another_size_are_carried_over() {
    let node = Node::new();
    let cpus = nr_cpus().unwrap() as u64;
    let sum = |reason: u64| reason * 10 * cpus + cpus * (cpus - 1) / 2;
    for entries in [13, 100] {
        make_counts(&node.bpffs, "DROPS", entries);
        // A crash between making the new map and putting it in place.
        make_counts(&node.bpffs, "DROPS-new", 7);
        let again = node.bpffs.open();
        for drop in again.drops().unwrap() {
            let wanted = if drop.reason < entries { sum(u64::from(drop.reason)) } else { 0 };
            assert_eq!(drop.packets, wanted, "{entries} entries, {}", drop.name);
        }
        assert!(!names(&node.bpffs.pins()).contains(&"DROPS-new".to_owned()));
        // The next start finds the right size, and the same counts.
        let (before, after) = (again.drops().unwrap(), node.bpffs.open().drops().unwrap());
        assert_eq!(before, after);
    }
}

#[test]
fn what_is_no_count_is_refused_whatever_its_size() {
    let node = Node::new();
    let pin = node.bpffs.pins().join("DROPS");
    fs::remove_file(&pin).unwrap();
    HashMap::<_, u32, u64>::create(13, 0).unwrap().pin(&pin).unwrap();
    let error = EbpfDatapath::open(&node.bpffs.path().join("weft"), &options()).unwrap_err();
    assert!(matches!(error, DatapathError::Layout { .. }), "{error}");
    assert!(pin.exists());
}

#[test]
fn every_pin_is_one_that_is_checked() {
    let node = Node::new();
    for name in names(&node.bpffs.pins()) {
        if ["links", "programs"].contains(&name.as_str()) {
            continue;
        }
        // A hash of the smallest kind is none of them.
        let pin = node.bpffs.pins().join(&name);
        fs::rename(&pin, node.bpffs.pins().join("kept")).unwrap();
        HashMap::<_, u8, u8>::create(3, 0).unwrap().pin(&pin).unwrap();
        let error = EbpfDatapath::open(&node.bpffs.path().join("weft"), &options()).unwrap_err();
        assert!(matches!(error, DatapathError::Layout { .. }), "{name}: {error}");
        assert!(error.to_string().contains(&name), "{error}");
        fs::rename(node.bpffs.pins().join("kept"), &pin).unwrap();
    }
}

#[test]
fn uninstall_leaves_nothing() {
    let node = Node::new();
    let clsact = node.attached(2);
    ip("link add host0 type veth peer name host1");
    let uplink = Uplink {
        ifindex: ifindex("host0"),
        name: "host0".into(),
        l3: false,
        ipv4: Some("192.0.2.1".parse().unwrap()),
        ipv6: None,
        mtu: 1500,
    };
    node.datapath.set_host(&HostView { uplinks: vec![uplink], ..HostView::default() }).unwrap();
    let mut veths = vec![clsact.host_ifname.clone(), "host0".to_owned()];
    let mut tcx = None;
    if !node.is_too_old_for_tcx() {
        let entry = ipamd::datapath::EndpointEntry { hooks: Hooks::Tcx, ..node.endpoint(3) };
        node.datapath.attach(&entry).unwrap();
        veths.push(entry.host_ifname.clone());
        tcx = Some(entry);
    }
    // A filter of somebody else on a device of the host, and his qdisc on another.
    let other = |hook: &str| run("tc", &format!("filter show dev host0 {hook}"));
    run("tc", "filter add dev host0 ingress priority 7 u32 match u32 0 0 classid 1:1");
    ip("link add host2 type veth peer name host3");
    run("tc", "qdisc add dev host2 clsact");
    let removed = node.datapath.uninstall().unwrap();
    assert!(removed.iter().any(|r| r.contains(&clsact.host_ifname)), "{removed:?}");
    assert!(removed.iter().any(|r| r.ends_with("/FLOWS")), "{removed:?}");
    for veth in &veths {
        for hook in ["ingress", "egress"] {
            let filters = run("tc", &format!("filter show dev {veth} {hook}"));
            assert!(!filters.contains("bpf"), "{veth} {hook}: {filters}");
        }
    }
    assert!(other("ingress").contains("u32"), "the filter of somebody else is gone");
    let qdiscs = run("tc", "qdisc show");
    assert!(!qdiscs.contains(&format!("clsact ffff: dev {}", clsact.host_ifname)), "{qdiscs}");
    assert!(qdiscs.contains("clsact ffff: dev host2"), "a qdisc that Weft has nothing on is gone: {qdiscs}");
    // The kernel puts files of its own into every bpffs.
    let mut left = names(node.bpffs.path());
    left.retain(|name| !name.ends_with(".debug"));
    assert_eq!(left, Vec::<String>::new());
    if let Some(entry) = tcx {
        eventually("the tcx links are down", || !node.datapath.attached(&entry).unwrap().from_pod);
    }
    // Once more finds nothing.
    assert_eq!(node.datapath.uninstall().unwrap(), Vec::<String>::new());
}

#[test]
fn counters_and_flows_are_adopted() {
    let node = Node::new();
    let entry = node.attached(2);
    let map = MapData::from_pin(node.bpffs.pins().join("FLOWS_OPENED")).unwrap();
    let mut opened = HashMap::<_, u64, u64>::try_from(Map::from_map_data(map).unwrap()).unwrap();
    opened.insert(entry.id.get(), 17, 0).unwrap();
    let again = node.bpffs.open();
    again.attach(&entry).unwrap();
    assert_eq!(opened.get(&entry.id.get(), 0).unwrap(), 17, "attaching again forgot what was counted");
    again.forget(&(&entry).into()).unwrap();
    assert!(opened.get(&entry.id.get(), 0).is_err());
}
