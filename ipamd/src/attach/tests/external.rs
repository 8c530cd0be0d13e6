//! Endpoints that others wire: nothing but a record, which is kept, found and freed like every other one.

use super::*;
use ipamd_api::{AllocateRequest, CheckRequest, Driver};
use std::collections::BTreeMap;

fn request(container: &str, netns: &Path) -> AllocateRequest {
    let add = add_request(container, netns);
    AllocateRequest {
        attachment: add.attachment,
        netns: add.netns,
        runtime: add.runtime,
        network: add.network,
        configuration: None,
        ips: Vec::new(),
        labels: BTreeMap::new(),
    }
}

fn ips(a: &Attachments, request: &AllocateRequest) -> Vec<String> {
    let answer = a.allocate_external(request).unwrap();
    answer.addresses.iter().map(|held| held.address.to_string()).collect()
}

fn by_cookie(a: &Attachments, container: &str) -> Evidence {
    Evidence { endpoint: None, cookie: Some(a.find(&key(container)).unwrap().sandbox.cookie) }
}

#[test]
fn an_address_is_a_record_and_nothing_else() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let one = request("one", &netns);
    assert_eq!(ips(&a, &one), ["10.1.0.2/29", "fd01::2/120"]);
    assert_eq!(ips(&a, &one), ["10.1.0.2/29", "fd01::2/120"], "asked again");
    assert_eq!(ips(&a, &request("two", &node.sandbox("two"))), ["10.1.0.3/29", "fd01::3/120"]);

    assert!(node.kernel.endpoints().is_empty());
    let maps = node.datapath.observe().unwrap();
    assert!(maps.endpoints.is_empty() && maps.addresses.is_empty() && maps.pools.is_empty(), "{maps:?}");
    assert_eq!(
        node.datapath.records().unwrap().len(),
        2,
        "pinned copies are what a lost journal is rebuilt from"
    );
    let view = a.endpoints().remove(0);
    assert_eq!(
        (view.phase, view.mac, view.host_ifname.clone(), view.routes.len()),
        (Phase::Live, None, None, 0)
    );

    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("no container") };
    assert_eq!(endpoints[0].differences, []);
    assert_eq!(
        endpoints[0].state.len(),
        1,
        "the sandbox, and nothing of an interface: {:?}",
        endpoints[0].state
    );
    let Inspection::Network { network, differences, .. } = a.inspect("blue").unwrap() else {
        panic!("no network")
    };
    assert_eq!((network.network.driver, network.bridge, differences.len()), (Driver::External, None, 0));
    assert!(a.sweep().unwrap().is_empty());
    assert_eq!(a.len(), 2);
}

#[test]
fn a_network_is_wired_by_weft_or_by_others() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let refusal = |error: ApiError, part: &str| {
        assert!(error.code() == Some(ErrorCode::NetworkConflict) && error.msg.contains(part), "{error}");
    };
    let mut asks_for_external = add_request("one", &netns);
    asks_for_external.network.driver = Some(Driver::External);
    refusal(a.add(&asks_for_external).unwrap_err(), "driver external");
    assert!(a.networks().all().is_empty(), "a refusal makes no network");

    a.allocate_external(&request("one", &netns)).unwrap();
    let other = node.sandbox("other");
    refusal(a.add(&add_request("other", &other)).unwrap_err(), "only gives its addresses, by weft-ipam");
    let mut publishes = add_request("other", &other);
    publishes.network.driver = Some(Driver::Bridge);
    refusal(a.add(&publishes).unwrap_err(), "driver is external, asked for bridge");

    let mut wired = add_request("wired", &node.sandbox("wired"));
    wired.network.name = "green".into();
    wired.network.pools.clear();
    a.add(&wired).unwrap();
    let mut taken = request("other", &other);
    taken.network = wired.network.clone();
    refusal(a.allocate_external(&taken).unwrap_err(), "driver is bridge, asked for external");
    taken.network.driver = Some(Driver::Macvlan);
    assert_eq!(a.allocate_external(&taken).unwrap_err().code(), Some(ErrorCode::InvalidNetwork));
    assert_eq!(a.len(), 2);
}

#[test]
fn chosen_addresses_and_a_full_pool_are_refused_in_words() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut first = request("c0", &node.sandbox("c0"));
    first.ips = vec!["10.1.0.4".parse().unwrap(), "fd01::44".parse().unwrap()];
    assert_eq!(ips(&a, &first), ["10.1.0.4/29", "fd01::44/120"]);
    let mut second = request("c1", &node.sandbox("c1"));
    second.ips = vec!["10.1.0.4".parse().unwrap()];
    let error = a.allocate_external(&second).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressTaken));
    assert!(error.msg.contains("held by c0/eth0"), "{error}");
    second.ips = vec!["10.2.0.4".parse().unwrap()];
    assert_eq!(a.allocate_external(&second).unwrap_err().code(), Some(ErrorCode::AddressUnusable));
    // 10.1.0.0/29: six addresses, one of them the gateway's.
    for number in 2..6 {
        a.allocate_external(&request(&format!("c{number}"), &node.sandbox(&format!("c{number}")))).unwrap();
    }
    let error = a.allocate_external(&request("c6", &node.sandbox("c6"))).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PoolExhausted), "{error}");
    assert_eq!(a.len(), 5);
    assert_eq!(node.journal_files(), 5, "a refusal leaves nothing");
}

#[test]
fn it_survives_what_other_endpoints_survive() {
    let mut node = Node::new();
    let (one, two) = (node.sandbox("one"), node.sandbox("two"));
    {
        let (a, _doomed, _) = node.start();
        a.allocate_external(&request("one", &one)).unwrap();
        a.allocate_external(&request("two", &two)).unwrap();
        a.del(&del_request("two", by_cookie(&a, "two"))).unwrap();
        reap(&a);
    }
    {
        let (a, _doomed, recovery) = node.start();
        assert_eq!((recovery.adopted, recovery.cooling, recovery.undone), (1, 2, 0));
        assert_eq!(ips(&a, &request("one", &one)), ["10.1.0.2/29", "fd01::2/120"]);
        assert_eq!(ips(&a, &request("two", &two)), ["10.1.0.4/29", "fd01::4/120"], "the others cool down");
        assert!(node.datapath.observe().unwrap().pools.is_empty());
    }
    std::fs::remove_dir_all(node.dir.path().join("journal")).unwrap();
    {
        let (a, _doomed, recovery) = node.start();
        assert_eq!((recovery.rebuilt, recovery.adopted), (2, 2));
        assert_eq!(a.endpoints().len(), 2);
    }
    node.boot_id = "boot-2".into();
    node.kernel = Arc::new(FakeKernel::new());
    node.datapath = Arc::new(FakeDatapath::new());
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.of_other_boots), (0, 2));
    assert!(a.is_empty());
}

#[test]
fn one_witness_frees_nothing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    a.allocate_external(&request("one", &netns)).unwrap();
    let other = Evidence { endpoint: None, cookie: Some(1 << 60) };
    assert_eq!(a.del(&del_request("one", other)).unwrap().freed, None, "a DEL for another namespace");
    assert_eq!(a.del(&del_request("one", Evidence::default())).unwrap().freed, None, "a process is in there");
    let gc = |runtime: &str, configuration: Option<&str>| GcRequest {
        network: Some("blue".into()),
        configuration: configuration.map(str::to_owned),
        runtime: Some(runtime.into()),
        valid: Some(Vec::new()),
    };
    assert_eq!(a.gc(&gc("podman", None)).unwrap().kept, [key("one")], "a list that lacks it");
    assert!(a.sweep().unwrap().is_empty());

    node.kernel.set_processes(&netns, false);
    assert!(a.sweep().unwrap().is_empty(), "no process, but the namespace is where it was");
    assert!(a.gc(&gc("containerd", None)).unwrap().freed.is_empty(), "another runtime's list");
    assert!(a.gc(&gc("podman", Some("lan"))).unwrap().freed.is_empty(), "another configuration's list");
    assert_eq!(a.gc(&gc("podman", None)).unwrap().freed, [key("one")]);
    reap(&a);
    node.assert_clean(&a, "after GC");

    let netns = node.sandbox("two");
    let mut of_lan = request("two", &netns);
    of_lan.configuration = Some("lan".into());
    a.allocate_external(&of_lan).unwrap();
    node.kernel.remove_sandbox(&netns);
    assert_eq!(a.sweep().unwrap(), [key("two")]);
    reap(&a);
    node.assert_clean(&a, "after the sweep");
}

#[test]
fn check_looks_at_the_record_and_the_sandbox() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    a.allocate_external(&request("one", &netns)).unwrap();
    let check = |expected: &[&str]| {
        a.check(&CheckRequest {
            attachment: key("one"),
            network: "blue".into(),
            netns: netns.clone(),
            expected_ips: expected.iter().map(|ip| ip.parse().unwrap()).collect(),
        })
    };
    check(&[]).unwrap();
    // A main plugin may change the prefix length, and add addresses of its own.
    check(&["10.1.0.2/32", "fd01::2/120", "192.0.2.9/24"]).unwrap();
    assert_eq!(check(&["10.1.0.3/29"]).unwrap_err().code(), Some(ErrorCode::CheckFailed));
    node.kernel.remove_sandbox(&netns);
    node.sandbox("one");
    assert_eq!(check(&[]).unwrap_err().code(), Some(ErrorCode::UnknownContainer), "another namespace");
}
