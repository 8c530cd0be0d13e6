//! Rows of names: the maps hold what they are told, and the datapath in memory holds the same.

use crate::node::{NETWORK, Node};
use ipamd::datapath::{Datapath, DnsCounts, FakeDatapath, NameRow, ResolverEntry, name_changes};
use ipamd_api::EndpointId;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

fn v4(count: u8) -> impl Iterator<Item = IpAddr> {
    (1..=count).map(|last| Ipv4Addr::new(10, 1, 1, last).into())
}

fn v6(count: u16) -> impl Iterator<Item = IpAddr> {
    (1..=count).map(|last| Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 1, last).into())
}

fn name(network: u32, name: &str, addresses: impl Iterator<Item = IpAddr>) -> NameRow {
    NameRow::Name { network, name: name.parse().unwrap(), ttl: 5, addresses: addresses.collect() }
}

fn pointer(network: u32, address: &str, target: &str) -> NameRow {
    let (address, target) = (address.parse().unwrap(), target.parse().unwrap());
    NameRow::Pointer { network, address, ttl: 7, target }
}

fn domain(network: u32, name: &str) -> NameRow {
    NameRow::Domain { network, name: name.parse().unwrap() }
}

#[test]
fn rows_are_held_as_told_by_the_maps_and_in_memory() {
    let node = Node::new();
    let (kernel, memory) = (&node.datapath, FakeDatapath::new());
    let other = NETWORK + 1;
    let both: [&dyn Datapath; 2] = [kernel, &memory];
    let long = "l".repeat(60);
    let first = [
        name(NETWORK, "db", v4(8).chain(v6(8))),
        name(NETWORK, "web", v6(1)),
        name(NETWORK, "many", v4(9)),
        name(NETWORK, &long, v4(1)),
        name(other, "db", v4(1)),
        domain(NETWORK, "front.example"),
        domain(NETWORK, &long),
        pointer(NETWORK, "10.1.1.1", "db.front"),
        pointer(NETWORK, "fd01::1:1", "db.front"),
        pointer(NETWORK, "10.1.1.9", &[&long[1..], &long[1..], "x"].join(".")),
    ];
    for datapath in both {
        for _ in 0..2 {
            datapath.change_names(&first, &[]).unwrap();
        }
        let held = datapath.names(NETWORK).unwrap();
        let wanted = [0, 1, 5, 7, 8].map(|i| first[i].clone()).into_iter();
        assert_eq!(held, wanted.chain([name(NETWORK, "many", v4(0))]).collect());
        assert_eq!(datapath.names(other).unwrap(), BTreeSet::from([first[4].clone()]));
        let mine = first.iter().filter(|row| row.network() == NETWORK).cloned();
        assert_eq!(name_changes(&held, mine), (vec![], vec![]), "a sweep finds nothing to do");

        let second = [name(NETWORK, "db", v4(1)), pointer(NETWORK, "10.1.1.1", &"p.".repeat(61))];
        let gone = [first[1].key(), first[5].key(), name(NETWORK, "never", v4(1)).key(), first[8].key()];
        datapath.change_names(&second, &gone).unwrap();
        let wanted = BTreeSet::from([second[0].clone(), name(NETWORK, "many", v4(0))]);
        assert_eq!(datapath.names(NETWORK).unwrap(), wanted, "a name that grew too long is not answered");

        datapath.remove_names(NETWORK).unwrap();
        assert_eq!(datapath.names(NETWORK).unwrap(), BTreeSet::new());
        assert_eq!(datapath.names(other).unwrap().len(), 1);
        assert_eq!(datapath.dns_counts().unwrap(), DnsCounts::default());
    }
}

#[test]
fn resolvers_are_held_as_told() {
    let node = Node::new();
    let endpoint = EndpointId::new(0xabc).unwrap();
    let both = ResolverEntry {
        gateway4: Some(Ipv4Addr::new(10, 1, 0, 1)),
        gateway6: Some(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1)),
        endpoint,
    };
    let six = ResolverEntry { gateway4: None, ..both };
    for datapath in [&node.datapath as &dyn Datapath, &FakeDatapath::new()] {
        datapath.set_resolver(77, Some(both)).unwrap();
        datapath.set_resolver(78, Some(both)).unwrap();
        datapath.set_resolver(78, Some(six)).unwrap();
        assert_eq!(datapath.resolvers().unwrap(), BTreeMap::from([(77, both), (78, six)]));
        for _ in 0..2 {
            datapath.set_resolver(77, None).unwrap();
        }
        assert_eq!(datapath.resolvers().unwrap(), BTreeMap::from([(78, six)]));
    }
}

#[test]
fn a_hundred_thousand_names_are_written_and_compared_at_once() {
    let node = Node::new();
    let rows: Vec<NameRow> =
        (0..100_000_u32).map(|i| name(NETWORK, &format!("name-{i}"), v4(1 + (i % 3) as u8))).collect();
    let begun = Instant::now();
    node.datapath.change_names(&rows, &[]).unwrap();
    let written = begun.elapsed();
    let held = node.datapath.names(NETWORK).unwrap();
    let read = begun.elapsed() - written;
    assert_eq!(held.len(), rows.len());
    assert_eq!(name_changes(&held, rows.iter().cloned()), (vec![], vec![]));
    let compared = begun.elapsed() - written - read;
    println!("100,000 names: written in {written:?}, read in {read:?}, compared in {compared:?}");
    node.datapath.remove_names(NETWORK).unwrap();
    assert!(node.datapath.names(NETWORK).unwrap().is_empty());
}
