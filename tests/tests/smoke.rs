//! Weft's binaries on one node, from the first ADD to nothing left: the test that any kernel Weft claims to run on has to
//! pass (`cargo xtask vm-test`). Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ipamd_api::{DropCount, EndpointView, Status, path};
use ipnetwork::IpNetwork;
use nix::net::if_::if_nameindex;
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::Duration,
};
use weft_tests::{
    Machine, Node, Pings, Sandbox,
    dial::Dial,
    echo::{Echo, Protocol},
    netconf::{both_protocols, network, publishing},
    poll_until,
};

/// Two networks of both families, each with its gateways.
const RED: (&str, [&str; 2], [&str; 2]) = ("red", ["10.60.0.0/24", "fd60::/64"], ["10.60.0.1", "fd60::1"]);
const BLUE: (&str, [&str; 2], [&str; 2]) = ("blue", ["10.61.0.0/24", "fd61::/64"], ["10.61.0.1", "fd61::1"]);

/// How long the end of a removal may take behind its answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// A container that Weft has joined to a network.
struct Pod {
    id: &'static str,
    netconf: Value,
    sandbox: Sandbox,
    /// IPv4, IPv6.
    addresses: Vec<IpAddr>,
    result: Value,
}

impl Pod {
    fn add(node: &Node, id: &'static str, (network, pools, gateways): (&str, [&str; 2], [&str; 2])) -> Self {
        let sandbox = Sandbox::with_process().unwrap();
        let pools = pools.map(|subnet| json!({"subnet": subnet}));
        let netconf = json!({"cniVersion": "1.0.0", "name": network, "type": "weft", "pools": pools});
        let result = node.cni().unwrap().container(id).netns(sandbox.path()).add(&netconf).unwrap();
        let ips = result["ips"].as_array().unwrap();
        let named: Vec<_> = ips.iter().map(|ip| ip["gateway"].as_str().unwrap()).collect();
        assert_eq!(named, gateways, "{result}");
        let address = |ip: &Value| ip["address"].as_str().unwrap().parse::<IpNetwork>().unwrap().ip();
        let addresses = ips.iter().map(address).collect();
        Self { id, netconf, sandbox, addresses, result }
    }

    fn reaches(&self, address: impl std::fmt::Display) -> bool {
        self.sandbox.ping(address).unwrap()
    }

    fn del(&self, node: &Node) {
        let mut netconf = self.netconf.clone();
        netconf["prevResult"] = self.result.clone();
        node.cni().unwrap().container(self.id).netns(self.sandbox.path()).del(&netconf).unwrap();
    }
}

fn drops(node: &Node, name: &str) -> u64 {
    let status: Status = node.client().get(path::STATUS).unwrap();
    status.drops.iter().filter(|drop: &&DropCount| drop.name == name).map(|drop| drop.packets).sum()
}

fn links(node: &Node) -> Vec<String> {
    let names = || {
        let links = if_nameindex().unwrap();
        links.iter().map(|link| link.name().to_string_lossy().into_owned()).collect()
    };
    node.netns().run(names).unwrap()
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn containers_come_live_through_restarts_and_go() {
    let mut node = Node::start_new("smoke").unwrap();
    let (a, b, c) = (Pod::add(&node, "a", RED), Pod::add(&node, "b", RED), Pod::add(&node, "c", BLUE));

    for (from, neighbours) in [(&a, &b.addresses), (&b, &a.addresses)] {
        for address in neighbours {
            assert!(from.reaches(address), "{} does not reach {address}", from.id);
        }
    }
    for (pod, (_, _, gateways)) in [(&a, RED), (&b, RED), (&c, BLUE)] {
        for gateway in gateways {
            assert!(pod.reaches(gateway), "{} does not reach its gateway {gateway}", pod.id);
        }
    }
    for address in a.addresses.iter().chain(&c.addresses) {
        assert!(node.netns().ping(address).unwrap(), "the host does not reach {address}");
    }
    let before = drops(&node, "isolated");
    // Side by side, for each waits until its patience ends.
    thread::scope(|scope| {
        for (from, to) in [(&a, &c), (&c, &b)] {
            for address in &to.addresses {
                scope.spawn(move || {
                    assert!(!from.reaches(address), "{} reaches {address} of another network", from.id);
                });
            }
        }
    });
    assert!(drops(&node, "isolated") >= before + 4, "something else than Weft kept the networks apart");

    restart_under_ping(&mut node, &a, &b);

    for pod in [&a, &b, &c] {
        let inspected = node.netctl(&["inspect", pod.id, "-o", "json"]).unwrap();
        let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(inspected["endpoints"][0]["differences"], json!([]), "{inspected}");
        pod.del(&node);
        // The links go behind the answer.
        poll_until(PATIENCE, "the interface to go", || pod.sandbox.ip("link show eth0").is_err()).unwrap();
        pod.del(&node);
    }
    nothing_is_left(&node);
}

/// No packet is lost while ipamd is killed and started again.
fn restart_under_ping(node: &mut Node, from: &Pod, to: &Pod) {
    let pings = Pings::start(&from.sandbox, to.addresses.iter().copied(), Duration::from_millis(20)).unwrap();
    for _ in 0..3 {
        node.restart().unwrap();
    }
    assert!(node.stop().unwrap().success());
    node.start().unwrap();
    pings.end().unwrap();
}

/// Published ports and masquerading, once in each way a client can come, through a restart; the packet tables and
/// `publish` and `masquerade` have the rest.
#[test]
fn ports_are_published_and_other_machines_reached() {
    let (any, port, host_port): ([u16; 8], _, _) = ([0; 8], 8080, 18_080);
    let mut node = Node::start_new("smoke").unwrap();
    let machine = Machine::on(&node, 0).unwrap();
    let netconf = publishing(&network("blue", 70, &Value::Null), &both_protocols(host_port, port));
    let web = weft_tests::Pod::add(&node, "web", &netconf).unwrap();
    let _web = Echo::start(&web, "web", (any, port).into()).unwrap();
    let _machine = Echo::start(&machine, "machine", (any, port).into()).unwrap();
    for restarted in [false, true] {
        if restarted {
            node.restart().unwrap();
        }
        for (v4, localhost) in
            [(true, "127.0.0.1".parse::<IpAddr>().unwrap()), (false, "::1".parse().unwrap())]
        {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let (here, there) = (machine.peer(v4), machine.ip_of(v4));
                let dials = [
                    (&*machine, SocketAddr::from((here, host_port)), "web", Some(there)),
                    (node.netns(), (localhost, host_port).into(), "web", None),
                    (&*web, (there, port).into(), "machine", Some(here)),
                ];
                for (from, to, server, seen) in dials {
                    let what = format!("{} to {to}, restarted: {restarted}", protocol.name());
                    let heard = Dial::new(protocol, to).patience(PATIENCE).ask(from);
                    let answer = heard.unwrap_or_else(|e| panic!("{what}: {e:#}")).answer;
                    assert_eq!(answer.server, server, "{what}");
                    assert!(
                        seen.is_none_or(|seen| seen == answer.client),
                        "{what}: seen as {}",
                        answer.client
                    );
                }
            }
        }
    }
}

fn nothing_is_left(node: &Node) {
    let ends = || links(node).into_iter().filter(|name| name.starts_with("wf") && !name.starts_with("wf-"));
    poll_until(PATIENCE, "the host's ends to go", || ends().next().is_none()).unwrap();
    let gone = || node.client().get::<Vec<EndpointView>>(path::ENDPOINTS).unwrap().is_empty();
    poll_until(PATIENCE, "the endpoints to go", gone).unwrap();
    for (network, _, _) in [RED, BLUE] {
        let removed = node.netctl(&["network", "rm", network]).unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    }
    assert_eq!(links(node), ["lo"]);
    assert_eq!(files(&node.run_dir().join("released")), 0);
    for layout in fs::read_dir(node.bpf_dir()).unwrap().flatten() {
        // The hooks of sockets are the node's own and stay.
        let links = fs::read_dir(layout.path().join("links")).into_iter().flatten().flatten();
        let mut names =
            links.map(|link| link.file_name()).filter(|n| !n.to_string_lossy().starts_with("cgroup-"));
        assert_eq!(names.next(), None, "a pinned link in {}", layout.path().display());
    }
}
