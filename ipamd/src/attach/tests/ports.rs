//! Published ports through the life of endpoints: who holds them, who takes over, what is undone, what comes back.

use super::*;
use crate::kernel::{HostAddress, HostDevices, PortHolder, Scope, SocketState};
use ipamd_api::{CheckRequest, Driver, PublishRequest, UnpublishRequest};

/// A request for an endpoint of `container` on `network`, with these ports.
fn asks(node: &Node, container: &str, network: &str, ports: &[PortMapping]) -> AddRequest {
    let path = PathBuf::from(format!("/run/netns/{container}"));
    if node.kernel.open_sandbox(&path).is_err() {
        node.sandbox(container);
    }
    let mut request = add_request(container, &path);
    if network != "blue" {
        request.attachment.ifname = format!("if-{network}");
        request.network = NetworkSpec { name: network.into(), ..NetworkSpec::default() };
    }
    request.options.port_mappings = ports.to_vec();
    request
}

fn del(a: &Attachments, request: &AddRequest, added: &AddResponse) {
    let del = DelRequest {
        attachment: request.attachment.clone(),
        network: request.network.name.clone(),
        evidence: by_generation(added),
    };
    assert_eq!(a.del(&del).unwrap().freed, Some(added.endpoint));
}

/// What the datapath publishes: host port, container port and the container's address.
fn published(node: &Node) -> Vec<(u16, u16, String)> {
    let entries = node.datapath.published();
    let mut all: Vec<_> = entries
        .iter()
        .map(|e| (e.mapping.host_port, e.mapping.container_port, e.ipv4.unwrap().to_string()))
        .collect();
    all.sort();
    all
}

fn host_ports(a: &Attachments) -> Vec<u16> {
    a.published().iter().map(|p| p.mapping.host_port).collect()
}

#[test]
fn add_publishes_after_the_programs_and_del_takes_back_first() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let request = asks(&node, "one", "blue", &[mapping(8081, 81), mapping(8080, 80), mapping(9000, 90)]);
    let added = a.add(&request).unwrap();
    let ports: Vec<_> =
        added.ports.iter().map(|p| (p.mapping.host_port, p.mapping.count, p.chosen)).collect();
    assert_eq!(ports, [(9000, 1, false), (8080, 2, false)], "neighbours are one range");
    assert_eq!(added.ports[0].backends.len(), 2, "one of each family");
    assert_eq!(a.published().len(), 2);
    let before = |calls: &[String], first: &str, then: &str| {
        let at = |what: &str| calls.iter().position(|c| c.starts_with(what)).expect(what);
        assert!(at(first) < at(then), "{first} before {then}: {calls:?}");
    };
    before(&node.datapath.calls(), "attach", "publish 8080");
    let link = added.interfaces[1].name.clone();
    let held = node.datapath.observe().unwrap().endpoints;
    assert_eq!(held.len(), 1, "{link}");
    del(&a, &request, &added);
    assert_eq!(published(&node), []);
    before(&node.datapath.calls(), "unpublish 8080", "forget");
    assert!(a.published().is_empty());
    reap(&a);
    node.assert_clean(&a, "after DEL");
}

#[test]
fn the_same_request_again_is_the_same_answer_and_other_ports_are_a_conflict() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let mut request = asks(&node, "one", "blue", &[mapping(8080, 80), mapping(0, 81)]);
    let added = a.add(&request).unwrap();
    request.options.port_mappings.reverse();
    assert_eq!(a.add(&request).unwrap(), added);
    request.options.port_mappings.pop();
    let error = a.add(&request).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::AttachmentConflict));
    assert!(error.msg.contains("8080/tcp"), "{error}");
}

#[test]
fn every_failing_step_of_publishing_is_unwound() {
    // The first look at the sockets, and the one after publishing.
    let failures = [("kernel", "port_holders", 0), ("kernel", "port_holders", 1), ("datapath", "publish", 1)];
    for (edge, call, number) in failures {
        let node = Node::new();
        let (a, _doomed, _) = node.start();
        let request = asks(&node, "one", "blue", &[mapping(8080, 80)]);
        match edge {
            "kernel" => node.kernel.fail(call, number),
            _ => node.datapath.fail(call, number),
        }
        a.add(&request).unwrap_err();
        assert_eq!(published(&node), [], "{call} {number}");
        node.assert_clean(&a, call);
        let other = asks(&node, "two", "blue", &[mapping(8080, 80)]);
        a.add(&other).unwrap_or_else(|e| panic!("{call} {number}: the port is not free again: {e}"));
    }
}

#[test]
fn a_port_that_another_container_publishes_names_it() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let first = asks(&node, "one", "blue", &[mapping(8080, 80)]);
    let added = a.add(&first).unwrap();
    let specific = PortMapping { host_ip: Some("127.0.0.1".parse().unwrap()), ..mapping(8080, 81) };
    for wanted in [mapping(8080, 80), specific, PortMapping { count: 100, ..mapping(8000, 8000) }] {
        let error = a.add(&asks(&node, "two", "blue", std::slice::from_ref(&wanted))).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PortTaken), "{wanted:?}");
        assert!(error.msg.contains("one/eth0") && error.msg.contains("8080"), "{error}");
    }
    let udp = PortMapping { protocol: Protocol::Udp, ..mapping(8080, 80) };
    a.add(&asks(&node, "two", "blue", &[udp])).unwrap();
    // Free as soon as the DEL is answered, though the links are still there.
    del(&a, &first, &added);
    a.add(&asks(&node, "three", "blue", &[mapping(8080, 80)])).unwrap();
}

#[test]
fn of_two_adds_at_once_one_gets_the_port() {
    let node = Node { cool_down: Duration::ZERO, ..Node::new() };
    let (a, _doomed, _) = node.start();
    for round in 0..10 {
        let requests: Vec<_> =
            (0..4).map(|n| asks(&node, &format!("c-{round}-{n}"), "blue", &[mapping(8080, 80)])).collect();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let calls: Vec<_> = requests.iter().map(|r| scope.spawn(|| a.add(r))).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let won: Vec<_> = requests.iter().zip(&answers).filter(|(_, a)| a.is_ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {answers:?}");
        let lost = answers.iter().filter_map(|a| a.as_ref().err());
        assert!(lost.map(ipamd_api::ApiError::code).all(|c| c == Some(ErrorCode::PortTaken)), "{answers:?}");
        assert_eq!(published(&node).len(), 1);
        del(&a, won[0].0, won[0].1.as_ref().unwrap());
        reap(&a);
    }
}

#[test]
fn a_socket_of_the_host_names_its_process() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    node.kernel.set_port_holders(vec![PortHolder {
        protocol: Protocol::Tcp,
        local: "127.0.0.1:8080".parse().unwrap(),
        v6only: false,
        state: SocketState::Listening,
        inode: 7,
        pid: Some(99),
        process: Some("nginx (pid 99)".into()),
    }]);
    let error = a.add(&asks(&node, "one", "blue", &[mapping(8080, 80)])).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PortTaken));
    assert!(error.msg.contains("nginx (pid 99) with 127.0.0.1:8080/tcp"), "{error}");
    node.assert_clean(&a, "after the refusal");
    let elsewhere = PortMapping { host_ip: Some("::1".parse().unwrap()), ..mapping(8080, 80) };
    a.add(&asks(&node, "one", "blue", &[elsewhere])).unwrap();
}

#[test]
fn chosen_ports_avoid_what_is_held_and_go_round() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    node.kernel.set_port_holders(vec![PortHolder {
        protocol: Protocol::Tcp,
        local: "[::]:20001".parse().unwrap(),
        v6only: false,
        state: SocketState::Bound,
        inode: 7,
        pid: None,
        process: None,
    }]);
    let first = asks(&node, "one", "blue", &[mapping(20_000, 1), mapping(0, 80), mapping(0, 81)]);
    let added = a.add(&first).unwrap();
    let mut chosen: Vec<_> = added.ports.iter().filter(|p| p.chosen).map(|p| p.mapping.host_port).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [20_002, 20_003]);
    del(&a, &first, &added);
    let next = a.add(&asks(&node, "two", "blue", &[mapping(0, 80)])).unwrap();
    assert_eq!(next.ports[0].mapping.host_port, 20_004, "one that was just given back rests");
    let all = PortMapping { count: 10, ..mapping(0, 1000) };
    let error = a.add(&asks(&node, "three", "blue", &[all])).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PortTaken));
    assert!(error.msg.contains("20000-20009"), "{error}");
}

#[test]
fn what_cannot_be_published_is_refused_before_anything_is_made() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let at = |ip: &str| PortMapping { host_ip: Some(ip.parse().unwrap()), ..mapping(8080, 80) };
    let sctp = PortMapping { protocol: Protocol::Sctp, ..mapping(8080, 80) };
    let scattered: Vec<PortMapping> = (0..100).map(|n| mapping(1000 + 2 * n, 80)).collect();
    for (ports, part) in [
        (vec![at("192.0.2.9")], "192.0.2.9 is no address of this node"),
        (vec![at("fe80::1")], "link-local"),
        (vec![sctp], "never translated"),
        (vec![mapping(8080, 80), mapping(8080, 81)], "overlap at port 8080"),
        (scattered, "do not fit into its record"),
    ] {
        let error = a.add(&asks(&node, "one", "blue", &ports)).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PortUnusable), "{error}");
        assert!(error.msg.contains(part), "{error}");
        node.assert_clean(&a, part);
        assert!(a.networks().all().is_empty() && node.journal_files() == 0, "{part}");
    }
    for driver in [Driver::Host, Driver::None] {
        let mut request = asks(&node, "one", "plain", &[mapping(8080, 80)]);
        request.network.driver = Some(driver);
        let error = a.add(&request).unwrap_err();
        assert!(error.msg.contains(&format!("driver {driver}")), "{error}");
    }
}

#[test]
fn an_address_that_came_meanwhile_can_be_published_on() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let address = HostAddress {
        ifindex: 2,
        address: "192.0.2.9/24".parse().unwrap(),
        scope: Scope::Global,
        usable: true,
        deprecated: false,
        temporary: false,
        secondary: false,
    };
    node.kernel.set_host_devices(HostDevices { addresses: vec![address], ..HostDevices::default() });
    let at = PortMapping { host_ip: Some("192.0.2.9".parse().unwrap()), ..mapping(8080, 80) };
    a.add(&asks(&node, "one", "blue", &[at])).unwrap();
    assert!(node.datapath.host().addresses.contains(&"192.0.2.9".parse().unwrap()));
}

/// As podman does it: every network of the container gets the same mappings.
#[test]
fn of_several_endpoints_of_a_container_one_publishes_and_the_next_takes_over() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let ports = [mapping(8080, 80), mapping(0, 81)];
    let blue = asks(&node, "one", "blue", &ports);
    let green = asks(&node, "one", "green", &ports);
    let in_blue = a.add(&blue).unwrap();
    let in_green = a.add(&green).unwrap();
    assert_eq!((in_blue.ports.len(), in_green.ports.len()), (2, 0));
    assert_eq!(published(&node).len(), 2);
    assert_eq!(a.add(&green).unwrap(), in_green, "asked again, it is the same answer");
    // Another port of the same container is its own.
    let red = asks(&node, "one", "red", &[mapping(9090, 90)]);
    assert_eq!(a.add(&red).unwrap().ports.len(), 1);
    del(&a, &blue, &in_blue);
    let address = in_green.ips[0].address.ip().to_string();
    let now = published(&node);
    assert!(now.contains(&(8080, 80, address.clone())), "{now:?}");
    assert_eq!(now.iter().filter(|p| p.2 == address).count(), 2, "{now:?}");
    reap(&a);
    del(&a, &green, &in_green);
    assert_eq!(host_ports(&a), [9090]);
}

#[test]
fn an_heir_whose_turn_was_missed_is_found_by_the_sweep_and_by_a_start() {
    let node = Node::new();
    let ports = [mapping(8080, 80)];
    let (blue, green) = (asks(&node, "one", "blue", &ports), asks(&node, "one", "green", &ports));
    {
        let (a, _doomed, _) = node.start();
        let in_blue = a.add(&blue).unwrap();
        a.add(&green).unwrap();
        let busy = a.enter(&green.attachment).unwrap();
        del(&a, &blue, &in_blue);
        drop(busy);
        assert_eq!(published(&node), []);
        a.sweep().unwrap();
        assert_eq!(published(&node).len(), 1);
        reap(&a);
    }
    let (a, _doomed, _) = node.start();
    assert_eq!(host_ports(&a), [8080]);
    assert_eq!(a.endpoints().len(), 1);
}

#[test]
fn an_internal_network_publishes_only_what_another_endpoint_does() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let ports = [mapping(8080, 80)];
    let mut inside = asks(&node, "one", "inside", &ports);
    inside.network.internal = Some(true);
    let error = a.add(&inside).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PortUnusable));
    assert!(error.msg.contains("network inside is internal"), "{error}");
    let outside = asks(&node, "one", "blue", &ports);
    let added = a.add(&outside).unwrap();
    assert_eq!(a.add(&inside).unwrap().ports, []);
    del(&a, &outside, &added);
    assert_eq!(published(&node), [], "the internal one is no heir");
}

#[test]
fn a_start_publishes_what_records_say_and_nothing_else() {
    let node = Node::new();
    let request = asks(&node, "one", "blue", &[mapping(8080, 80), mapping(0, 81)]);
    let entries = {
        let (a, _doomed, _) = node.start();
        let added = a.add(&request).unwrap();
        // As a crash after publishing leaves an ADD.
        a.add(&asks(&node, "two", "blue", &[mapping(9090, 90)])).unwrap();
        let two = Record { phase: Phase::Adding, ..a.find(&key("two")).unwrap() };
        a.journal.write(&two).unwrap();
        assert_eq!(added.ports.len(), 2);
        node.datapath.published()
    };
    let mut stranger = entries[0].clone();
    stranger.endpoint = EndpointId::new(1).unwrap();
    stranger.mapping.host_port = 7070;
    node.datapath.publish(&stranger).unwrap();
    node.datapath.unpublish(&entries[0]).unwrap();
    let (a, _doomed, recovery) = node.start();
    assert_eq!((recovery.adopted, recovery.undone), (1, 1));
    let mut now = node.datapath.published();
    now.sort_by_key(|e| e.mapping.host_port);
    let mut expected: Vec<_> = entries.into_iter().filter(|e| e.mapping.host_port != 9090).collect();
    expected.sort_by_key(|e| e.mapping.host_port);
    assert_eq!(now, expected);
    assert_eq!(
        a.add(&request).unwrap().ports.len(),
        2,
        "the same answer as before, with the port chosen then"
    );
    a.add(&asks(&node, "three", "blue", &[mapping(9090, 90)])).unwrap();
}

#[test]
fn check_tells_of_a_port_that_is_gone_and_the_sweep_mends_it() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let request = asks(&node, "one", "blue", &[mapping(8080, 80)]);
    a.add(&request).unwrap();
    let check = CheckRequest {
        attachment: request.attachment,
        network: "blue".into(),
        netns: request.netns,
        expected_ips: Vec::new(),
    };
    a.check(&check).unwrap();
    let entry = node.datapath.published().remove(0);
    node.datapath.unpublish(&entry).unwrap();
    let error = a.check(&check).unwrap_err();
    assert!(error.msg.contains("host port 8080/tcp is not published instead of published"), "{error}");
    a.sweep().unwrap();
    a.check(&check).unwrap();
}

#[test]
fn operators_publish_and_take_back_at_a_running_container() {
    let node = Node::new();
    let request = asks(&node, "container-one", "blue", &[mapping(8080, 80)]);
    let publish = |ports: &[PortMapping]| PublishRequest {
        container: "container-o".into(),
        network: None,
        mappings: ports.to_vec(),
    };
    let unpublish = |host_port| UnpublishRequest {
        container: "container-one".into(),
        host_port,
        protocol: Protocol::Tcp,
        host_ip: None,
    };
    {
        let (a, _doomed, _) = node.start();
        a.add(&request).unwrap();
        let new = a.publish(&publish(&[mapping(9090, 90), mapping(0, 91)])).unwrap();
        assert_eq!(new.iter().filter(|p| p.chosen).count(), 1);
        assert_eq!(published(&node).len(), 3);
        // All or nothing: the second one is taken, so the first one is not published either.
        let error = a.publish(&publish(&[mapping(7070, 70), mapping(8080, 81)])).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PortTaken));
        node.datapath.fail("publish", 1);
        a.publish(&publish(&[mapping(7070, 70)])).unwrap_err();
        assert_eq!(published(&node).len(), 3);
        let error = a.publish(&publish(&[])).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PortUnusable));
        let mut nobody = publish(&[mapping(7070, 70)]);
        nobody.container = "nobody".into();
        assert_eq!(a.publish(&nobody).unwrap_err().code(), Some(ErrorCode::NotFound));
        a.unpublish(&unpublish(8080)).unwrap();
        let error = a.unpublish(&unpublish(8080)).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NotFound));
        assert!(error.msg.contains("9090/tcp"), "{error}");
        a.sweep().unwrap();
    }
    let (a, _doomed, _) = node.start();
    let ports = host_ports(&a);
    assert!(ports.len() == 2 && ports.contains(&9090), "{ports:?}");
    assert_eq!(published(&node).len(), 2);
}

#[test]
fn what_an_operator_took_back_no_other_endpoint_inherits() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    let ports = [mapping(8080, 80)];
    a.add(&asks(&node, "one", "blue", &ports)).unwrap();
    a.add(&asks(&node, "one", "green", &ports)).unwrap();
    let request =
        UnpublishRequest { container: "one".into(), host_port: 8080, protocol: Protocol::Tcp, host_ip: None };
    a.unpublish(&request).unwrap();
    a.sweep().unwrap();
    assert_eq!(published(&node), []);
    a.add(&asks(&node, "two", "blue", &ports)).unwrap();
}

#[test]
fn a_refused_request_leaves_all_its_ports_to_others() {
    let node = Node::new();
    let (a, _doomed, _) = node.start();
    a.add(&asks(&node, "one", "blue", &[mapping(8080, 80)])).unwrap();
    // Taken one after the other, until one is another's: that is the last.
    let (chosen, fixed) = (PortMapping { count: 9, ..mapping(0, 1000) }, mapping(7070, 70));
    let error =
        a.add(&asks(&node, "two", "blue", &[chosen.clone(), fixed.clone(), mapping(8080, 81)])).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::PortTaken));
    let added = a.add(&asks(&node, "three", "blue", &[chosen, fixed])).unwrap();
    assert_eq!(added.ports.len(), 2);
}
