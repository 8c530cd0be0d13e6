//! The host as the programs know it: devices with the programs on them, addresses.

use crate::{
    loader_publish::pin,
    node::{Node, ifindex, ip, run},
};
use aya::maps::{HashMap, Map, MapData};
use ebpf_common::{AddressKey, UPLINK_IPV4, UPLINK_IPV6, UPLINK_L3, Uplink as Entry};
use ipamd::{
    datapath::{Datapath, EbpfDatapath},
    uplinks::{HostView, Uplink},
};
use std::{collections::BTreeSet, net::IpAddr};

fn uplink(name: &str, l3: bool) -> Uplink {
    Uplink {
        ifindex: ifindex(name),
        name: name.into(),
        l3,
        ipv4: Some("192.0.2.1".parse().unwrap()),
        ipv6: None,
        mtu: 1400,
    }
}

fn view(uplinks: &[Uplink], addresses: &[&str]) -> HostView {
    HostView {
        uplinks: uplinks.to_vec(),
        addresses: addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect::<BTreeSet<_>>(),
    }
}

/// Names of the programs of Weft's filters on a device, ingress and egress, with the ids.
fn filters(name: &str) -> [String; 2] {
    ["ingress", "egress"].map(|hook| run("tc", &format!("filter show dev {name} {hook}")))
}

fn entries(node: &Node) -> HashMap<MapData, u32, Entry> {
    Map::from_map_data(MapData::from_pin(pin(node, "UPLINKS")).unwrap()).unwrap().try_into().unwrap()
}

fn addresses(node: &Node) -> HashMap<MapData, AddressKey, u32> {
    Map::from_map_data(MapData::from_pin(pin(node, "NODE_ADDRESSES")).unwrap()).unwrap().try_into().unwrap()
}

/// A veth, a bridge and a tun on the host.
fn devices() -> [Uplink; 3] {
    ip("link add host0 type veth peer name host1");
    ip("link add host2 type bridge");
    ip("tuntap add dev host3 mode tun");
    [uplink("host0", false), uplink("host2", false), uplink("host3", true)]
}

#[test]
fn devices_get_the_programs_of_their_kind_and_lose_them_when_they_leave() {
    let node = Node::new();
    let all = devices();
    for _ in 0..2 {
        node.datapath.set_host(&view(&all, &["192.0.2.1", "2001:db8::1"])).unwrap();
    }
    for (name, from, to) in [
        ("host0", "from_netdev ", "to_netdev "),
        ("host2", "from_netdev ", "to_netdev "),
        ("host3", "from_netdev_l3 ", "to_netdev_l3 "),
    ] {
        let [ingress, egress] = filters(name);
        assert!(ingress.contains(from) && egress.contains(to), "{name}: {ingress} {egress}");
        assert_eq!(ingress.matches("direct-action").count(), 1, "{ingress}");
    }
    let held = entries(&node);
    let l3 = held.get(&all[2].ifindex, 0).unwrap();
    assert_eq!((l3.flags, l3.mtu, l3.ipv4), (UPLINK_IPV4 | UPLINK_L3, 1400, [192, 0, 2, 1]));
    assert_eq!(addresses(&node).keys().count(), 2);

    // One leaves, one changes its address, one address goes and another comes.
    let changed = Uplink { ipv4: None, ipv6: Some("2001:db8::5".parse().unwrap()), ..all[1].clone() };
    let left = view(&[changed.clone(), all[2].clone()], &["2001:db8::1", "2001:db8::5"]);
    node.datapath.set_host(&left).unwrap();
    assert_eq!(filters("host0"), [String::new(), String::new()]);
    assert!(!run("tc", "qdisc show dev host0").contains("clsact"));
    assert!(held.get(&all[0].ifindex, 0).is_err());
    assert_eq!(held.get(&changed.ifindex, 0).unwrap().flags, UPLINK_IPV6);
    assert!(filters("host2")[0].contains("from_netdev"));
    let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut there: Vec<_> = addresses(&node).keys().map(|k| k.unwrap().address).collect();
    there.sort_unstable();
    assert_eq!(there, [octets("2001:db8::1"), octets("2001:db8::5")]);
}

#[test]
fn a_qdisc_that_others_use_stays() {
    let node = Node::new();
    let [veth, bridge, _] = devices();
    node.datapath.set_host(&view(&[veth.clone(), bridge.clone()], &[])).unwrap();
    run("tc", "filter add dev host0 egress priority 7 u32 match u32 0 0 classid 1:1");
    node.datapath.set_host(&view(&[], &[])).unwrap();
    let [ingress, egress] = filters("host0");
    assert!(!ingress.contains("bpf") && !egress.contains("bpf"), "{ingress} {egress}");
    assert!(egress.contains("u32"), "{egress}");
    assert!(run("tc", "qdisc show dev host0").contains("clsact"));
    assert!(!run("tc", "qdisc show dev host2").contains("clsact"));
}

#[test]
fn a_device_that_vanished_is_skipped() {
    let node = Node::new();
    let [veth, bridge, tun] = devices();
    let all = view(&[veth.clone(), bridge.clone(), tun], &["192.0.2.1"]);
    node.datapath.set_host(&all).unwrap();
    ip("link del host2");
    // Still in the view, then no more.
    node.datapath.set_host(&all).unwrap();
    node.datapath.set_host(&view(std::slice::from_ref(&veth), &[])).unwrap();
    assert_eq!(entries(&node).keys().map(Result::unwrap).collect::<Vec<_>>(), [veth.ifindex]);
}

#[test]
fn an_upgrade_replaces_the_programs_in_place() {
    let node = Node::new();
    let all = view(&devices(), &[]);
    node.datapath.set_host(&all).unwrap();
    let id = |text: &str| text.split(" id ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let before = filters("host0").map(|f| id(&f));
    // The same programs: nothing is attached anew.
    node.datapath.set_host(&all).unwrap();
    assert_eq!(filters("host0").map(|f| id(&f)), before);
    node.bpffs.let_programs_go();
    let again: EbpfDatapath = node.bpffs.open();
    again.set_host(&all).unwrap();
    let after = filters("host0");
    assert!(after.iter().all(|f| f.matches("direct-action").count() == 1), "{after:?}");
    assert!(after.iter().zip(&before).all(|(f, b)| id(f) != *b), "{after:?}");
    // Somebody takes the filter off: the next call puts it back.
    run("tc", "qdisc del dev host0 clsact");
    again.set_host(&all).unwrap();
    assert!(filters("host0").iter().all(|f| f.contains("_netdev")));
}

#[test]
fn a_device_whose_place_is_taken_is_named_and_the_others_are_done() {
    let node = Node::new();
    let [veth, bridge, tun] = devices();
    run("tc", "qdisc add dev host0 ingress");
    let error = node.datapath.set_host(&view(&[veth, bridge, tun], &["192.0.2.1"])).unwrap_err().to_string();
    assert!(error.contains("host0") && error.contains("tc qdisc show"), "{error}");
    assert!(filters("host2")[0].contains("from_netdev") && filters("host3")[0].contains("from_netdev_l3"));
    assert_eq!(addresses(&node).keys().count(), 1);
}
