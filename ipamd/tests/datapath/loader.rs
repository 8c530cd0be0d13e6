//! Opening, adopting, refusing; entries and attachments.

use crate::node::{Bpffs, NETWORK, Node, entry, eventually, ifindex, ip, run};
use aya::programs::ProgramInfo;
use ipamd::datapath::{
    Attached, Datapath, DatapathError, DatapathOptions, EbpfDatapath, EndpointEntry, EndpointRef,
    ObservedEndpoint, Shaping,
};
use ipamd_api::{EndpointId, Hooks};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, fs, net::IpAddr};

const BOTH: Attached = Attached { from_pod: true, to_pod: true };
const NEITHER: Attached = Attached { from_pod: false, to_pod: false };

fn pools(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

#[test]
fn what_is_attached_is_observed_and_what_is_forgotten_is_gone() {
    let node = Node::new();
    let datapath = &node.datapath;
    datapath.set_pools(NETWORK, &pools(&["10.1.0.0/16", "fd01::/64"])).unwrap();
    let entry = node.endpoint(2);
    let reference = EndpointRef::from(&entry);
    assert_eq!(datapath.attached(&entry).unwrap(), NEITHER);
    for round in 0..2 {
        datapath.attach(&entry).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(datapath.attached(&entry).unwrap(), BOTH);
    }
    let filters = run("tc", &format!("filter show dev {} ingress", entry.host_ifname));
    assert_eq!(filters.matches("direct-action").count(), 1, "attaching twice replaces in place: {filters}");

    let observed = datapath.observe().unwrap();
    assert_eq!(observed.endpoints.get(&entry.host_ifindex), Some(&ObservedEndpoint::from(&entry)));
    assert_eq!(observed.addresses.len(), 2);
    assert_eq!(observed.pools.len(), 2);
    let one = datapath.observe_endpoint(&reference).unwrap();
    assert_eq!(one.endpoint, Some(ObservedEndpoint::from(&entry)));
    assert_eq!(one.addresses.len(), 2);
    assert!(one.addresses.values().all(|t| t.host_ifindex == entry.host_ifindex && !t.shaped_ingress));

    let shaping = Shaping { ingress: true, egress: true };
    datapath.set_shaping(entry.host_ifindex, shaping).unwrap();
    let one = datapath.observe_endpoint(&reference).unwrap();
    assert!(one.endpoint.unwrap().shaped_egress);
    assert!(one.addresses.values().all(|t| t.shaped_ingress));

    for _ in 0..2 {
        datapath.forget(&reference).unwrap();
        let observed = datapath.observe().unwrap();
        assert!(observed.endpoints.is_empty() && observed.addresses.is_empty(), "{observed:?}");
    }
    let error = datapath.set_shaping(entry.host_ifindex, shaping).unwrap_err();
    assert!(matches!(error, DatapathError::UnknownEndpoint { .. }), "{error}");
}

#[test]
fn a_late_forget_leaves_the_successor_alone() {
    let node = Node::new();
    let old = node.attached(2);
    // The same addresses, another link and generation.
    let id = EndpointId::new(0xabcd).unwrap();
    ip(&format!("link add {} type veth peer name q", id.host_ifname()));
    let host_ifindex = ifindex(&id.host_ifname());
    let new = EndpointEntry { id, host_ifname: id.host_ifname(), host_ifindex, ..old.clone() };
    node.datapath.attach(&new).unwrap();
    node.datapath.forget(&EndpointRef::from(&old)).unwrap();
    let one = node.datapath.observe_endpoint(&EndpointRef::from(&new)).unwrap();
    assert_eq!((one.endpoint.is_some(), one.addresses.len()), (true, 2));
    // The same index, another generation.
    let stale = EndpointRef { id: old.id, ..EndpointRef::from(&new) };
    node.datapath.forget(&stale).unwrap();
    let one = node.datapath.observe_endpoint(&EndpointRef::from(&new)).unwrap();
    assert_eq!((one.endpoint.is_some(), one.addresses.len()), (true, 2));
}

#[test]
fn opening_again_adopts_entries_and_replaces_programs() {
    let node = Node::new();
    let entry = node.attached(2);
    node.datapath.set_pools(NETWORK, &pools(&["10.1.0.0/16"])).unwrap();
    node.datapath.put_record(entry.id, b"{}").unwrap();
    let before = node.datapath.observe().unwrap();

    let again = node.bpffs.open();
    assert_eq!(again.observe().unwrap(), before);
    assert_eq!(again.records().unwrap().get(&entry.id).map(Vec::as_slice), Some(&b"{}"[..]));
    assert_eq!(again.attached(&entry).unwrap(), BOTH, "the programs are those that run");
    drop(again);

    node.bpffs.let_programs_go();
    let again = node.bpffs.open();
    assert_eq!(again.attached(&entry).unwrap(), NEITHER, "the filters still run the programs of the first");
    again.attach(&entry).unwrap();
    assert_eq!(again.attached(&entry).unwrap(), BOTH);
    assert_eq!(node.datapath.attached(&entry).unwrap(), NEITHER);
}

/// Names and ids of the programs that are kept.
fn kept(bpffs: &Bpffs) -> BTreeMap<String, u32> {
    let pins = fs::read_dir(bpffs.pins().join("programs")).unwrap().map(Result::unwrap);
    let id = |pin: fs::DirEntry| ProgramInfo::from_pin(pin.path()).unwrap().id();
    pins.map(|pin| (pin.file_name().into_string().unwrap(), id(pin))).collect()
}

#[test]
fn programs_are_kept_for_the_maps_and_the_object_that_they_are_of() {
    let node = Node::new();
    let first = kept(&node.bpffs);
    assert_eq!(first.len(), 4, "{first:?}");
    assert_eq!(node.bpffs.open().attached(&node.attached(2)).unwrap(), BOTH);
    assert_eq!(kept(&node.bpffs), first, "loading them again takes time");

    // Another map in the place of one: the programs that are kept look into the old one.
    fs::remove_file(node.bpffs.pins().join("ADDRESSES")).unwrap();
    let again = node.bpffs.open();
    let second = kept(&node.bpffs);
    let same: Vec<_> = second.iter().filter(|(name, id)| first.get(*name) == Some(id)).collect();
    // That is the one which does not ask whose an address is.
    assert!(second.len() == 4 && same.len() == 1 && same[0].0.starts_with("to_pod-"), "{first:?} {second:?}");
    let entry = node.endpoint(3);
    again.attach(&entry).unwrap();
    assert_eq!(again.attached(&entry).unwrap(), BOTH);

    // What an earlier build, or a crash, has left.
    let pin = node.bpffs.pins().join("programs").join(second.keys().next().unwrap());
    fs::rename(&pin, node.bpffs.pins().join("programs/from_pod-of-another")).unwrap();
    node.bpffs.open();
    assert!(kept(&node.bpffs).keys().eq(second.keys()), "{:?}", kept(&node.bpffs));
}

#[test]
fn pools_belong_to_one_network() {
    let node = Node::new();
    let datapath = &node.datapath;
    datapath.set_pools(1, &pools(&["10.1.0.0/16", "fd01::/64"])).unwrap();
    let error = datapath.set_pools(2, &pools(&["10.2.0.0/16", "10.1.0.0/16"])).unwrap_err();
    assert!(error.to_string().contains("10.1.0.0/16 belongs to network 1"), "{error}");
    assert_eq!(datapath.observe().unwrap().pools.len(), 2, "a refusal changes nothing");
    datapath.set_pools(1, &pools(&["fd01::/64", "10.3.0.0/16"])).unwrap();
    datapath.set_pools(2, &pools(&["10.1.0.0/16"])).unwrap();
    let owners: Vec<_> =
        datapath.observe().unwrap().pools.into_iter().map(|(p, n)| (p.to_string(), n)).collect();
    let wanted = [("10.1.0.0/16", 2), ("10.3.0.0/16", 1), ("fd01::/64", 1)];
    assert_eq!(owners, wanted.map(|(p, n)| (p.to_owned(), n)));
    datapath.remove_pools(1).unwrap();
    assert_eq!(datapath.observe().unwrap().pools.len(), 1);
}

#[test]
fn records_come_back_as_they_went_in() {
    let node = Node::new();
    let datapath = &node.datapath;
    let (a, b) = (EndpointId::new(1).unwrap(), EndpointId::new(2).unwrap());
    let long = vec![b'x'; ebpf_common::MAX_RECORD];
    datapath.put_record(a, b"{\"phase\":\"adding\"}").unwrap();
    datapath.put_record(a, b"{}").unwrap();
    datapath.put_record(b, &long).unwrap();
    let records = datapath.records().unwrap();
    assert_eq!(records.get(&a).map(Vec::as_slice), Some(&b"{}"[..]));
    assert_eq!(records.get(&b), Some(&long));
    let error = datapath.put_record(a, &[long.as_slice(), b"x"].concat()).unwrap_err();
    assert!(matches!(error, DatapathError::RecordTooLong { .. }), "{error}");
    for _ in 0..2 {
        datapath.remove_record(a).unwrap();
    }
    assert_eq!(datapath.records().unwrap().len(), 1);
}

#[test]
fn a_pin_of_another_layout_is_refused() {
    let node = Node::new();
    let maps = node.bpffs.path().join("weft").join(format!("v{}", ebpf_common::LAYOUT_VERSION));
    fs::remove_file(maps.join("DROPS")).unwrap();
    fs::rename(maps.join("ENDPOINTS"), maps.join("DROPS")).unwrap();
    let error = EbpfDatapath::open(&node.bpffs.path().join("weft"), &DatapathOptions::default()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, DatapathError::Layout { .. }), "{text}");
    assert!(
        text.contains("DROPS") && text.contains("type Hash") && text.contains("type PerCpuArray"),
        "{text}"
    );
}

#[test]
fn a_bpffs_of_a_private_mount_namespace_is_refused() {
    let error = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS).unwrap();
        let none = None::<&str>;
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).unwrap();
        let bpffs = Bpffs::new();
        EbpfDatapath::open(bpffs.path(), &DatapathOptions::default()).unwrap_err()
    });
    let error = error.join().unwrap();
    assert!(matches!(error, DatapathError::PrivateBpffs { .. }), "{error}");
}

#[test]
fn a_link_that_is_gone_is_said_to_be() {
    let node = Node::new();
    let entry = node.endpoint(2);
    ip(&format!("link del {}", entry.host_ifname));
    let error = node.datapath.attach(&entry).unwrap_err().to_string();
    assert!(error.contains(&entry.host_ifname) && error.contains("the link is gone"), "{error}");
    assert_eq!(node.datapath.attached(&entry).unwrap(), NEITHER);
    let tcx = EndpointEntry { hooks: Hooks::Tcx, ..entry };
    let error = node.datapath.attach(&tcx).unwrap_err().to_string();
    assert!(error.contains("the link is gone"), "{error}");
    assert_eq!(node.datapath.attached(&tcx).unwrap(), NEITHER);
}

#[test]
fn an_ingress_qdisc_of_somebody_else_needs_tcx() {
    let node = Node::new();
    let entry = node.endpoint(2);
    run("tc", &format!("qdisc add dev {} ingress", entry.host_ifname));
    let error = node.datapath.attach(&entry).unwrap_err().to_string();
    assert!(error.contains("\"hooks\": \"tcx\""), "{error}");
    if node.is_too_old_for_tcx() {
        return;
    }
    let tcx = EndpointEntry { hooks: Hooks::Tcx, ..entry };
    node.datapath.attach(&tcx).unwrap();
    assert_eq!(node.datapath.attached(&tcx).unwrap(), BOTH);
}

#[test]
fn tcx_links_are_pinned_adopted_and_unpinned() {
    let node = Node::new();
    if node.is_too_old_for_tcx() {
        return;
    }
    let entry = EndpointEntry { hooks: Hooks::Tcx, ..node.endpoint(2) };
    let links = node.bpffs.path().join("weft").join(format!("v{}/links", ebpf_common::LAYOUT_VERSION));
    let pins = || {
        let mut names: Vec<_> =
            fs::read_dir(&links).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    node.datapath.attach(&entry).unwrap();
    let names = [format!("{}-from", entry.id), format!("{}-to", entry.id)];
    assert_eq!(pins(), names);
    assert_eq!(node.datapath.attached(&entry).unwrap(), BOTH);

    assert_eq!(node.bpffs.open().attached(&entry).unwrap(), BOTH);
    node.bpffs.let_programs_go();
    let again = node.bpffs.open();
    assert_eq!(again.attached(&entry).unwrap(), NEITHER);
    again.attach(&entry).unwrap();
    assert_eq!((again.attached(&entry).unwrap(), pins()), (BOTH, names.to_vec()));
    assert_eq!(node.datapath.attached(&entry).unwrap(), NEITHER, "one link each: the old program is out");

    again.forget(&EndpointRef::from(&entry)).unwrap();
    assert!(pins().is_empty());
    // The kernel takes a link down some time after its last reference went.
    eventually("the links are down", || again.attached(&entry).unwrap() == NEITHER);
}

#[test]
fn an_endpoint_of_one_family_has_one_address() {
    let node = Node::new();
    let entry = EndpointEntry { ipv4: None, ..node.endpoint(9) };
    node.datapath.attach(&entry).unwrap();
    let observed = node.datapath.observe().unwrap();
    assert_eq!(observed.endpoints[&entry.host_ifindex].ipv4, None);
    let v6 = IpAddr::V6(self::entry(9).ipv6.unwrap().0);
    assert_eq!(observed.addresses.keys().collect::<Vec<_>>(), [&(NETWORK, v6)]);
}
