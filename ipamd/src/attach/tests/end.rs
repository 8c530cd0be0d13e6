//! DEL, GC, the sweep, CHECK and the removal of networks: what frees, what mends, what is told.

use super::*;

#[test]
fn a_late_del_of_an_old_generation_frees_nothing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let old = a.add(&add_request("one", &netns)).unwrap();
    a.del(&del_request("one", by_generation(&old))).unwrap();
    reap(&a);
    let new = a.add(&add_request("one", &netns)).unwrap();
    assert_ne!(new.endpoint, old.endpoint);
    assert_eq!(a.del(&del_request("one", by_generation(&old))).unwrap().freed, None);
    let wrong_cookie = Evidence { endpoint: None, cookie: Some(1 << 60) };
    assert_eq!(a.del(&del_request("one", wrong_cookie)).unwrap().freed, None);
    assert_eq!(a.len(), 1);
}

#[test]
fn a_del_without_evidence_frees_only_what_is_dead() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(
        a.del(&del_request("one", Evidence::default())).unwrap().freed,
        None,
        "a process is in the sandbox"
    );
    node.kernel.set_processes(&netns, false);
    assert!(a.del(&del_request("one", Evidence::default())).unwrap().freed.is_some());
    reap(&a);
    assert_eq!(a.del(&del_request("one", Evidence::default())).unwrap().freed, None, "the second time");
    node.assert_clean(&a, "after both");
}

#[test]
fn gc_frees_only_its_own_runtimes_dead() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut others = add_request("other", &node.sandbox("other"));
    others.runtime = "containerd".into();
    a.add(&others).unwrap();
    a.add(&add_request("alive", &node.sandbox("alive"))).unwrap();
    a.add(&add_request("dead", &node.sandbox("dead"))).unwrap();
    a.add(&add_request("valid", &node.sandbox("valid"))).unwrap();
    for dead in ["other", "dead", "valid"] {
        node.kernel.set_processes(Path::new(&format!("/run/netns/{dead}")), false);
    }
    let request = GcRequest {
        network: Some("blue".into()),
        configuration: None,
        runtime: Some("podman".into()),
        valid: Some(vec![key("valid")]),
    };
    let answer = a.gc(&request).unwrap();
    assert_eq!((answer.freed, answer.kept), (vec![key("dead")], vec![key("alive")]));
    reap(&a);
    assert_eq!(a.len(), 3);
}

#[test]
fn the_sweep_needs_both_witnesses() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    node.kernel.damage(added.endpoint, |e| e.host = false);
    assert!(a.sweep().unwrap().is_empty(), "the link alone frees nothing");
    node.kernel.damage(added.endpoint, |e| e.host = true);
    node.kernel.remove_sandbox(&netns);
    assert_eq!(a.sweep().unwrap(), [key("one")]);
    reap(&a);
    node.assert_clean(&a, "after the sweep");
}

#[test]
fn the_sweep_mends_the_host_side() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    node.kernel.damage(added.endpoint, |e| {
        e.beside.fdb = false;
        e.beside.neighbours.clear();
    });
    let host_ifindex = a.endpoints()[0].host_ifindex.unwrap();
    node.datapath.detach(host_ifindex);
    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("a container") };
    assert!(endpoints[0].differences.len() >= 3, "{:?}", endpoints[0].differences);
    a.sweep().unwrap();
    let Inspection::Container { endpoints } = a.inspect("one").unwrap() else { panic!("a container") };
    assert_eq!(endpoints[0].differences, []);
}

#[test]
fn check_names_what_is_missing() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    let mut request = ipamd_api::CheckRequest {
        attachment: key("one"),
        network: "blue".into(),
        netns,
        expected_ips: added.ips.iter().map(|ip| ip.address).collect(),
    };
    a.check(&request).unwrap();
    node.kernel.damage(added.endpoint, |e| {
        e.addresses.remove(0);
    });
    let error = a.check(&request).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::CheckFailed));
    assert!(error.msg.contains("10.1.0.2"), "{error}");
    request.attachment = key("nobody");
    assert_eq!(a.check(&request).unwrap_err().code(), Some(ErrorCode::UnknownContainer));
}

#[test]
fn a_network_goes_only_without_endpoints() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let added = a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    assert_eq!(a.remove_network("blue").unwrap_err().code(), Some(ErrorCode::NetworkInUse));
    a.del(&del_request("one", by_generation(&added))).unwrap();
    reap(&a);
    a.remove_network("blue").unwrap();
    assert!(node.kernel.networks().is_empty());
    assert!(node.datapath.observe().unwrap().pools.is_empty());
    assert_eq!(a.remove_network("blue").unwrap_err().code(), Some(ErrorCode::NetworkNotFound));
}
