//! Pods made by containerd through CRI on a node with Weft: nothing is configured but a conflist that names `weft`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::{fs, process::Stdio, time::Duration};

use ipamd_api::{EndpointView, Phase, path};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::{
    Guarded, NetnsHandle, Node, Sandbox,
    containerd::{Containerd, Pod, pod_config},
    cri::{PodDns, PodPort},
    inventory::{assert_clean, assert_holds},
    plugins, poll_until, stream,
};

/// How long what happens behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node and a containerd on it; containerd goes first.
struct World {
    containerd: Containerd,
    node: Node,
    dir: TempDir,
}

impl World {
    /// Addresses may be given again at once; `weft` holds further keys of the plugin.
    fn new(weft: &Value) -> Self {
        Self::chained(weft, &[])
    }

    /// The same with plugins behind weft. ipamd reads the conflists, as it does on a node that is set up by the book.
    fn chained(weft: &Value, further: &[Value]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        plugins::folder(&dir.path().join("plugins")).unwrap();
        let conflists = dir.path().join("blue").display().to_string();
        let settings = format!("cool_down = 0\ncni_conf_dirs = [{conflists:?}]");
        let node = Node::builder("node").settings(&settings).start().unwrap();
        let containerd = containerd_on(&node, &dir, "blue", weft, further);
        Self { containerd, node, dir }
    }

    fn pod(&mut self, name: &str) -> Pod {
        self.containerd.start_pod(&pod_config(name)).unwrap()
    }

    fn endpoints(&self) -> Vec<EndpointView> {
        self.node.client().get(path::ENDPOINTS).unwrap()
    }

    fn endpoint(&self, pod: &Pod) -> EndpointView {
        self.endpoints().into_iter().find(|e| e.attachment.container_id == pod.id).unwrap()
    }
}

/// A containerd with a conflist for `network`.
fn containerd_on(node: &Node, dir: &TempDir, network: &str, weft: &Value, further: &[Value]) -> Containerd {
    let capabilities =
        json!({ "ips": true, "mac": true, "portMappings": true, "dns": true, "bandwidth": true });
    let mut plugin = json!({ "type": "weft", "runDir": node.run_dir(), "capabilities": capabilities });
    for (key, value) in weft.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    let networks = dir.path().join(network);
    fs::create_dir(&networks).unwrap();
    let plugins: Vec<_> = std::iter::once(&plugin).chain(further).collect();
    let conflist = json!({ "cniVersion": "1.0.0", "name": network, "plugins": plugins });
    fs::write(networks.join("10-weft.conflist"), conflist.to_string()).unwrap();
    Containerd::start_new(node.netns(), &dir.path().join("plugins"), &networks).unwrap()
}

fn dual_stack() -> Value {
    json!({ "pools": [{ "subnet": "10.61.0.0/24" }, { "subnet": "fd61::/64" }] })
}

/// A ping from `pod` that goes on until it is asked for its account.
struct Stream(Guarded);

impl Stream {
    fn start(world: &World, pod: &Pod, to: &str) -> Self {
        let netns = NetnsHandle::open(&world.endpoint(pod).sandbox.path).unwrap();
        let mut command = netns.command("ping");
        command.args(["-n", "-q", "-i", "0.01", to]).stdout(Stdio::piped());
        Self(Guarded::spawn(&mut command).unwrap())
    }

    /// How many packets were sent, and how many of them were lost.
    fn stop(mut self) -> (u32, u32) {
        self.0.signal(Signal::SIGINT).unwrap();
        self.0.wait(PATIENCE).unwrap();
        let said = std::io::read_to_string(self.0.child().stdout.take().unwrap()).unwrap();
        let count = |after: &str| -> u32 {
            let words: Vec<_> = said.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == after).unwrap();
            words[at - 1].trim_start_matches('\n').rsplit('\n').next().unwrap().parse().unwrap()
        };
        let sent = count("packets");
        (sent, sent - count("received"))
    }
}

#[test]
fn a_pod_gets_its_network_and_gives_everything_back() {
    let mut world = World::new(&dual_stack());
    let dns = PodDns {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["tests.svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    };
    let mut config = pod_config("web");
    config.dns = Some(dns);
    config.ports = vec![PodPort { container_port: 80, host_port: 8080 }];
    config.annotations.insert("tests/annotation".to_owned(), "kept by the runtime".to_owned());
    config.labels.insert("app".to_owned(), "web".to_owned());
    let web = world.containerd.start_pod(&config).unwrap();
    let other = world.pod("other");

    // What the runtime reports is what the node gave.
    let view = world.endpoint(&web);
    let held: Vec<_> = view.addresses.iter().map(|held| held.address.ip().to_string()).collect();
    assert_eq!(web.ips, held);
    assert!(web.ips[0].starts_with("10.61.0.") && web.ips[1].starts_with("fd61::"), "{:?}", web.ips);
    assert_eq!(
        (view.runtime.as_str(), view.phase, view.network.as_str()),
        ("containerd", Phase::Live, "blue")
    );
    let label = |name: &str| view.options.labels.get(name).map(String::as_str);
    assert_eq!(label("K8S_POD_NAME"), Some("web"));
    assert_eq!(label("K8S_POD_NAMESPACE"), Some("tests"));
    assert_eq!(label("K8S_POD_UID"), Some("uid-of-web"));
    assert_eq!(label("K8S_POD_INFRA_CONTAINER_ID"), Some(web.id.as_str()));
    let port = &view.options.port_mappings[0];
    assert_eq!((port.host_port, port.container_port, port.protocol), (8080, 80, ipamd_api::Protocol::Tcp));
    assert_eq!(view.options.dns.nameservers, ["10.96.0.10"]);
    let listed = world.node.netctl(&["endpoint", "ls"]).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(&web.ips[0]) && listed.contains(&other.ips[0]), "{listed}");
    let inspected = world.node.netctl(&["inspect", &web.id, "-o", "json"]).unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["endpoints"][0]["differences"], json!([]), "{inspected:#}");

    // Both families, between pods and to the gateways, and TCP on top.
    for address in other.ips.iter().map(String::as_str).chain(["10.61.0.1", "fd61::1"]) {
        assert!(world.containerd.ping(&web, address).unwrap(), "no answer from {address}");
    }
    world.containerd.exec(&other, &["httpd", "-p", "80", "-h", "/www"]).unwrap();
    // Not wget, in which a static busybox crashes for want of name services.
    let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 80", other.ips[0]);
    let page = world.containerd.exec(&web, &["sh", "-c", &request]).unwrap();
    assert!(page.ends_with("hello from busybox\n"), "{page}");
    let resolver = world.containerd.exec(&web, &["cat", "/etc/resolv.conf"]).unwrap();
    assert!(resolver.contains("nameserver 10.96.0.10") && resolver.contains("ndots:5"), "{resolver}");

    // A kubelet stops more than once; what comes later has neither namespace nor previous result.
    world.containerd.cri().stop_pod(&web.id).unwrap();
    assert_holds(&world.node, &[world.endpoint(&other).endpoint]).unwrap();
    world.containerd.cri().stop_pod(&web.id).unwrap();
    world.containerd.cri().remove_pod(&web.id).unwrap();
    assert!(world.containerd.ping(&other, "10.61.0.1").unwrap(), "the neighbour's DEL took its network");
    world.containerd.remove_pod(&other.id).unwrap();
    assert_clean(&world.node).unwrap();
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    // Two addresses beside the gateway's.
    let mut world = World::new(&json!({ "subnet": "10.62.0.0/29", "dynamicRange": "10.62.0.2/31" }));
    let (first, second) = (world.pod("first"), world.pod("second"));
    let live = [world.endpoint(&first).endpoint, world.endpoint(&second).endpoint];
    let error = format!("{:#}", world.containerd.start_pod(&pod_config("third")).unwrap_err());
    assert!(error.contains("10.62.0.0/29"), "the message does not name the pool: {error}");
    assert_holds(&world.node, &live).unwrap();
    assert_eq!(world.containerd.cri().pods().unwrap().len(), 2);

    // What the failure left in the runtime does not stand in the way, and the address can be had again once it is free.
    world.containerd.remove_pod(&first.id).unwrap();
    assert_holds(&world.node, &live[1..]).unwrap();
    let third = world.pod("third");
    assert_eq!(third.ips, first.ips);
    assert!(world.containerd.ping(&third, &second.ips[0]).unwrap());
}

#[test]
fn pods_outlive_kills_of_containerd_and_ipamd() {
    let mut world = World::new(&dual_stack());
    let (client, server) = (world.pod("client"), world.pod("server"));
    let streams: Vec<_> = server.ips.iter().map(|ip| Stream::start(&world, &client, ip)).collect();

    world.containerd.kill().unwrap();
    world.node.kill().unwrap();
    world.node.start().unwrap();
    world.containerd.start().unwrap();
    world.node.restart().unwrap();
    for stream in streams {
        let (sent, lost) = stream.stop();
        // The last one may still have been on its way.
        assert!(sent >= 10 && lost <= 1, "{lost} of {sent} packets were lost");
    }

    assert_eq!(world.containerd.cri().pod_status(&server.id).unwrap().ips, server.ips);
    let late = world.pod("late");
    assert!(![&client, &server].iter().any(|pod| pod.ips[0] == late.ips[0]), "{late:?}");
    assert!(world.containerd.ping(&late, &server.ips[1]).unwrap());
    let stays = world.endpoint(&late).endpoint;
    world.containerd.remove_pod(&client.id).unwrap();
    world.containerd.remove_pod(&server.id).unwrap();
    assert_holds(&world.node, &[stays]).unwrap();
    world.containerd.remove_pod(&late.id).unwrap();
    assert_clean(&world.node).unwrap();
}

#[test]
fn a_del_without_ipamd_works_and_is_replayed() {
    let mut world = World::new(&dual_stack());
    let (goes, stays) = (world.pod("goes"), world.pod("stays"));
    let (gone, kept) = (world.endpoint(&goes), world.endpoint(&stays));
    world.node.kill().unwrap();
    // Stop, stop again, remove: none of them may fail, or the pod could not be removed.
    world.containerd.cri().stop_pod(&goes.id).unwrap();
    world.containerd.remove_pod(&goes.id).unwrap();
    let links = world.node.netns().ip("-o link").unwrap();
    assert!(!links.contains(&gone.endpoint.host_ifname()), "{links}");
    assert!(world.containerd.ping(&stays, "10.61.0.1").unwrap());
    // No pod without ipamd, and nothing of the attempt afterwards.
    let error = format!("{:#}", world.containerd.start_pod(&pod_config("early")).unwrap_err());
    assert!(error.contains("ipamd"), "{error}");

    world.node.start().unwrap();
    assert_holds(&world.node, &[kept.endpoint]).unwrap();
    world.containerd.remove_pod(&stays.id).unwrap();
    assert_clean(&world.node).unwrap();
}

#[test]
fn pods_of_different_networks_do_not_reach_each_other() {
    let mut world = World::new(&dual_stack());
    let green = json!({ "pools": [{ "subnet": "10.63.0.0/24" }, { "subnet": "fd63::/64" }] });
    let mut other = containerd_on(&world.node, &world.dir, "green", &green, &[]);
    let (blue, blue2) = (world.pod("blue"), world.pod("blue2"));
    let green = other.start_pod(&pod_config("green")).unwrap();
    assert!(world.containerd.ping(&blue, &blue2.ips[0]).unwrap());
    assert!(other.ping(&green, "10.63.0.1").unwrap());
    for ip in &green.ips {
        assert!(!world.containerd.ping(&blue, ip).unwrap(), "blue reaches {ip}");
    }
    for ip in &blue.ips {
        assert!(!other.ping(&green, ip).unwrap(), "green reaches {ip}");
    }
    let drops: ipamd_api::Status = world.node.client().get(path::STATUS).unwrap();
    let isolated = drops.drops.iter().find(|drop| drop.name.contains("isolated"));
    assert!(isolated.is_some_and(|drop| drop.packets >= 4), "{:?}", drops.drops);
    drop(other);
    let live = [world.endpoint(&blue).endpoint, world.endpoint(&blue2).endpoint];
    assert_holds(&world.node, &live).unwrap();
}

#[test]
fn a_pod_annotated_with_limits_is_limited_by_the_plugin_behind_weft() {
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let mut world = World::chained(&dual_stack(), &[bandwidth]);
    let mut config = pod_config("limited");
    for direction in ["ingress", "egress"] {
        config.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), "20M".to_owned());
    }
    let limited = world.containerd.start_pod(&config).unwrap();
    let free = world.pod("free");
    let asked = world.endpoint(&limited).options.bandwidth.unwrap();
    assert_eq!((asked.ingress_rate, asked.egress_rate), (20_000_000, 20_000_000));

    let _server = stream::serve(world.node.netns()).unwrap();
    let rate = |pod: &Pod, reverse| {
        let netns = NetnsHandle::open(&world.endpoint(pod).sandbox.path).unwrap();
        stream::rate(&netns, "10.61.0.1", reverse).unwrap()
    };
    // containerd gives the buckets half a gigabyte, which has to be through before the limit shows.
    for (what, reverse) in [("sends", false), ("receives", true)] {
        let rates = std::iter::repeat_with(|| rate(&limited, reverse)).take(6);
        let shown = rates.into_iter().find(|rate| *rate < 40e6);
        assert!(shown.is_some_and(|rate| rate > 8e6), "what the pod {what} is not limited to 20M: {shown:?}");
    }
    let unlimited = rate(&free, false);
    assert!(unlimited > 400e6, "{unlimited} bit/s without a limit");
    world.containerd.remove_pod(&limited.id).unwrap();
    world.containerd.remove_pod(&free.id).unwrap();
    assert_clean(&world.node).unwrap();
    assert_eq!(world.node.netns().ip("-o link show type ifb").unwrap().trim(), "");
}

#[test]
fn a_pod_whose_sandbox_vanished_can_still_be_removed() {
    let mut world = World::new(&dual_stack());
    let pod = world.pod("lost");
    let sandbox = world.endpoint(&pod).sandbox.path;
    nix::mount::umount2(&sandbox, nix::mount::MntFlags::MNT_DETACH).unwrap();
    world.containerd.remove_pod(&pod.id).unwrap();
    assert_clean(&world.node).unwrap();

    // Sandboxes of others on the node are no business of containerd's.
    let sandbox = Sandbox::with_process().unwrap();
    let netconf = json!({ "cniVersion": "1.0.0", "name": "blue", "type": "weft" });
    let by_hand = world.node.cni().unwrap().container("by-hand").netns(sandbox.path());
    by_hand.add(&netconf).unwrap();
    let pod = world.pod("next");
    poll_until(PATIENCE, "both endpoints", || world.endpoints().len() == 2).unwrap();
    world.containerd.remove_pod(&pod.id).unwrap();
    let by_hand = world.node.cni().unwrap().container("by-hand").netns(sandbox.path());
    by_hand.del(&netconf).unwrap();
    assert_clean(&world.node).unwrap();
}
