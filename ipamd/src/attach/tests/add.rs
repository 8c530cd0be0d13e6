//! ADD: order, the same answer again, rollback at every failing call, full pools.

use super::*;

#[test]
fn add_wires_both_families_and_del_gives_everything_back() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let added = a.add(&add_request("one", &netns)).unwrap();
    assert_eq!(
        added.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>(),
        ["10.1.0.2/29", "fd01::2/120"]
    );
    assert_eq!(
        added.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
        ["wf-1", &added.endpoint.host_ifname(), "eth0"]
    );
    assert_eq!(added.ips[0].interface, 2);
    assert_eq!(added.routes.len(), 2, "a default route of each family");
    assert_eq!(node.datapath.observe().unwrap().addresses.len(), 2);
    assert_eq!(a.del(&del_request("one", by_generation(&added))).unwrap().freed, Some(added.endpoint));
    assert!(node.datapath.observe().unwrap().endpoints.is_empty(), "the datapath forgets before the answer");
    reap(&a);
    node.assert_clean(&a, "after DEL");
    assert_eq!(node.journal_files(), 1, "a tombstone keeps the cool-down");
}

#[test]
fn add_again_is_the_same_answer_and_another_wish_is_a_conflict() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    let request = add_request("one", &netns);
    let first = a.add(&request).unwrap();
    assert_eq!(a.add(&request).unwrap(), first);
    let mut other = request;
    other.options.ips = vec!["10.1.0.5/29".parse().unwrap()];
    assert_eq!(a.add(&other).unwrap_err().code(), Some(ErrorCode::AttachmentConflict));
    assert_eq!(a.len(), 1);
}

#[test]
fn every_failing_step_of_add_is_unwound() {
    let kernel_calls = ["open_sandbox", "ensure_network", "create", "activate"];
    let datapath_calls = ["set_pools", "attach", "put_record"];
    for (edge, call) in
        kernel_calls.map(|c| ("kernel", c)).into_iter().chain(datapath_calls.map(|c| ("datapath", c)))
    {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        let netns = node.sandbox("one");
        match edge {
            "kernel" => node.kernel.fail(call, 0),
            _ => node.datapath.fail(call, 1),
        }
        let error = a.add(&add_request("one", &netns)).unwrap_err();
        assert!(!error.msg.is_empty(), "{call}");
        node.assert_clean(&a, call);
        assert!(a.networks().all().is_empty(), "{call}: the network of the failed first ADD stays");
        a.add(&add_request("one", &netns)).unwrap_or_else(|e| panic!("{call}: the second try fails: {e}"));
    }
}

#[test]
fn a_bridge_that_somebody_removed_is_made_again() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.add(&add_request("one", &node.sandbox("one"))).unwrap();
    let bridge = node.kernel.networks().into_values().next().unwrap();
    node.kernel.remove_network(&bridge).unwrap();
    a.add(&add_request("two", &node.sandbox("two"))).unwrap();
    assert_eq!(node.kernel.networks().len(), 1);
}

#[test]
fn a_failed_add_that_touched_nothing_costs_no_cool_down() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let netns = node.sandbox("one");
    // 10.1.0.0/29 has five addresses besides the gateway: more failures than that.
    for _ in 0..8 {
        node.kernel.fail("create", 0);
        a.add(&add_request("one", &netns)).unwrap_err();
    }
    a.add(&add_request("one", &netns)).unwrap();
}

#[test]
fn exhaustion_names_the_pool_and_the_holders() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    for i in 0..5 {
        let netns = node.sandbox(&format!("c{i}"));
        a.add(&add_request(&format!("c{i}"), &netns)).unwrap();
    }
    let netns = node.sandbox("late");
    let error = a.add(&add_request("late", &netns)).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PoolExhausted));
    assert!(error.msg.contains("10.1.0.0/29") && error.msg.contains("5 of 5"), "{error}");
    assert!(error.details.contains("runtime podman: 10"), "{error}");
}

#[test]
fn a_full_network_waits_for_what_is_on_its_way_out() {
    let node = Node { cool_down: Duration::ZERO, ..Node::new() };
    let (a, doomed, _) = node.start();
    let a = Arc::new(a);
    let added: Vec<AddResponse> = (0..5)
        .map(|i| a.add(&add_request(&format!("c{i}"), &node.sandbox(&format!("c{i}")))).unwrap())
        .collect();
    a.del(&del_request("c3", by_generation(&added[3]))).unwrap();
    // Only now does somebody remove it.
    let reaper = std::thread::spawn({
        let a = Arc::clone(&a);
        move || a.reap(&doomed, || a.is_empty())
    });
    let late = a.add(&add_request("late", &node.sandbox("late"))).unwrap();
    assert_eq!(late.ips[0].address, added[3].ips[0].address);
    for (i, one) in added.iter().enumerate().filter(|(i, _)| *i != 3) {
        a.del(&del_request(&format!("c{i}"), by_generation(one))).unwrap();
    }
    a.del(&del_request("late", by_generation(&late))).unwrap();
    reaper.join().unwrap();
}

#[test]
fn a_static_address_is_given_or_its_holder_is_named() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = add_request("one", &node.sandbox("one"));
    request.options.ips = vec!["10.1.0.6/29".parse().unwrap()];
    assert_eq!(a.add(&request).unwrap().ips[0].address.ip().to_string(), "10.1.0.6");
    let mut second = add_request("two", &node.sandbox("two"));
    second.options.ips.clone_from(&request.options.ips);
    let error = a.add(&second).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AddressTaken));
    assert!(error.msg.contains("one/eth0"), "{error}");
    for unusable in ["10.1.0.1", "10.1.0.0", "10.1.0.7", "192.0.2.1"] {
        second.options.ips = vec![unusable.parse::<IpAddr>().unwrap().into()];
        assert_eq!(a.add(&second).unwrap_err().code(), Some(ErrorCode::AddressUnusable), "{unusable}");
    }
}

#[test]
fn the_address_of_a_vanished_sandbox_can_be_asked_for_at_once() {
    let node = Node::new();
    let (a, doomed, _) = node.start();
    let a = Arc::new(a);
    let netns = node.sandbox("one");
    let mut request = add_request("one", &netns);
    request.options.ips = vec!["10.1.0.6/29".parse().unwrap()];
    a.add(&request).unwrap();
    node.kernel.remove_sandbox(&netns);
    let reaper = std::thread::spawn({
        let a = Arc::clone(&a);
        move || a.reap(&doomed, || a.is_empty())
    });
    let mut again = add_request("two", &node.sandbox("two"));
    again.options.ips.clone_from(&request.options.ips);
    let added = a.add(&again).unwrap();
    assert_eq!(added.ips[0].address.ip().to_string(), "10.1.0.6");
    a.del(&del_request("two", by_generation(&added))).unwrap();
    reaper.join().unwrap();
}

/// Half of the first callers of a network fail, the others join it: none is told of a network that is not there, whatever
/// the order, and the network stays while someone is on it.
#[test]
fn first_uses_of_a_network_at_once_with_failures_among_them() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    for round in 0..20 {
        let good: Vec<_> = (0..2).map(|n| node.sandbox(&format!("good-{round}-{n}"))).collect();
        let bad: Vec<_> = (0..2).map(|n| node.sandbox(&format!("bad-{round}-{n}"))).collect();
        for path in &bad {
            node.kernel.add_foreign_interface(path, "eth0");
        }
        let added = std::thread::scope(|scope| {
            let a = &a;
            let call = |name: String, path: PathBuf| scope.spawn(move || a.add(&add_request(&name, &path)));
            let bad: Vec<_> = bad
                .iter()
                .enumerate()
                .map(|(n, path)| call(format!("bad-{round}-{n}"), path.clone()))
                .collect();
            let good: Vec<_> = good
                .iter()
                .enumerate()
                .map(|(n, path)| call(format!("good-{round}-{n}"), path.clone()))
                .collect();
            for one in bad {
                assert_eq!(
                    one.join().unwrap().unwrap_err().code(),
                    Some(ErrorCode::InterfaceExists),
                    "round {round}"
                );
            }
            good.into_iter().map(|one| one.join().unwrap().unwrap()).collect::<Vec<_>>()
        });
        assert_ne!(added[0].ips, added[1].ips, "round {round}");
        for (n, one) in added.iter().enumerate() {
            a.del(&del_request(&format!("good-{round}-{n}"), by_generation(one))).unwrap();
        }
        reap(&a);
        a.remove_network("blue").unwrap();
        node.assert_clean(&a, "after a round");
    }
}
