//! Containers made by podman, with its CNI backend, on a node with Weft: nothing is configured but conflists that name `weft`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::{fs, path::PathBuf, time::Duration};

use ipamd_api::{EndpointView, Phase, path};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::{
    Node, Sandbox,
    containerd::{Containerd, pod_config},
    inventory::{assert_clean, assert_holds},
    plugins,
    podman::Podman,
    poll_for,
};

/// How long what happens behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The networks of every test.
const NETWORKS: [(&str, [&str; 2]); 2] =
    [("blue", ["10.71.0.0/24", "fd71::/64"]), ("green", ["10.72.0.0/24", "fd72::/64"])];

/// A node and a podman on it; podman goes first.
struct World {
    podman: Podman,
    node: Node,
    dir: TempDir,
}

impl World {
    /// With the default cool-down, as users have it.
    fn new() -> Self {
        let node = Node::start_new("node").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins::folder(&dir.path().join("plugins")).unwrap();
        let networks = dir.path().join("net.d");
        fs::create_dir(&networks).unwrap();
        for (name, pools) in NETWORKS {
            let conflist = conflist(&node, name, pools);
            fs::write(networks.join(format!("{name}.conflist")), conflist.to_string()).unwrap();
        }
        let podman =
            Podman::new_in(node.netns(), &dir.path().join("podman"), &plugins, &networks, "blue").unwrap();
        Self { podman, node, dir }
    }

    fn networks(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    fn endpoints(&self) -> Vec<EndpointView> {
        self.node.client().get(path::ENDPOINTS).unwrap()
    }

    /// The endpoint of a container called `name` on `network`.
    fn endpoint(&self, name: &str, network: &str) -> EndpointView {
        let id = self.podman.run(["container", "inspect", "--format", "{{.Id}}", name]).unwrap();
        let of_name = |e: &EndpointView| e.attachment.container_id == id.trim() && e.network == network;
        self.endpoints().into_iter().find(of_name).unwrap()
    }

    fn pings(&self, name: &str, address: &str) -> bool {
        self.podman.exec(name, &["ping", "-c", "1", "-W", "2", address]).is_ok()
    }
}

fn conflist(node: &Node, name: &str, pools: [&str; 2]) -> Value {
    let pools = pools.map(|subnet| json!({ "subnet": subnet }));
    let capabilities = json!({ "ips": true, "mac": true, "portMappings": true, "aliases": true });
    let plugin =
        json!({ "type": "weft", "runDir": node.run_dir(), "pools": pools, "capabilities": capabilities });
    json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] })
}

/// The addresses of an endpoint, without prefix lengths.
fn ips(endpoint: &EndpointView) -> Vec<String> {
    endpoint.addresses.iter().map(|held| held.address.ip().to_string()).collect()
}

#[test]
fn a_container_gets_its_network_and_gives_everything_back() {
    let world = World::new();
    let podman = &world.podman;
    podman.start("alice", "blue", &[]).unwrap();
    podman.start("bob", "blue", &["--publish", "8080:80", "--network-alias", "web"]).unwrap();
    let (alice, bob) = (podman.addresses("alice", "blue").unwrap(), podman.addresses("bob", "blue").unwrap());

    // What podman reports is what the node gave.
    let view = world.endpoint("bob", "blue");
    assert_eq!(ips(&view), [bob.ipv4.clone(), bob.ipv6.clone()]);
    assert_eq!((view.runtime.as_str(), view.phase), ("podman", Phase::Live));
    assert_eq!(view.options.labels.get("K8S_POD_NAME").map(String::as_str), Some("bob"));
    assert!(view.options.aliases.iter().any(|alias| alias == "web"), "{:?}", view.options.aliases);
    let port = &view.options.port_mappings[0];
    assert_eq!((port.host_port, port.container_port, port.protocol), (8080, 80, ipamd_api::Protocol::Tcp));
    assert_eq!(bob.gateway, "10.71.0.1");
    let inspected = world.node.netctl(&["inspect", "bob", "-o", "json"]).unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["endpoints"][0]["differences"], json!([]), "{inspected:#}");

    for address in [&bob.ipv4, &bob.ipv6, "10.71.0.1", "fd71::1"] {
        assert!(world.pings("alice", address), "no answer from {address}");
    }
    assert!(world.pings("bob", &alice.ipv6));
    podman.exec("bob", &["httpd", "-p", "80", "-h", "/www"]).unwrap();
    // Not wget, in which a static busybox crashes for want of name services.
    let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 80", bob.ipv4);
    let page = podman.exec("alice", &["sh", "-c", &request]).unwrap();
    assert!(page.ends_with("hello from busybox\n"), "{page}");

    // Each start is a new sandbox and so a new generation.
    let before = world.endpoint("alice", "blue").endpoint;
    podman.run(["restart", "--time", "0", "alice"]).unwrap();
    let after = world.endpoint("alice", "blue");
    assert_ne!(before, after.endpoint);
    assert!(world.pings("alice", &bob.ipv4) && world.pings("bob", &ips(&after)[0]));
    podman.run(["stop", "--time", "0", "alice"]).unwrap();
    assert_holds(&world.node, &[world.endpoint("bob", "blue").endpoint]).unwrap();
    podman.run(["start", "alice"]).unwrap();
    assert!(world.pings("bob", &podman.addresses("alice", "blue").unwrap().ipv4));
    podman.remove("alice").unwrap();
    podman.remove("bob").unwrap();
    assert_clean(&world.node).unwrap();
}

#[test]
fn addresses_asked_for_are_kept_over_a_container_that_is_made_again() {
    let world = World::new();
    let podman = &world.podman;
    let options = ["--ip", "10.71.0.200", "--mac-address", "02:aa:bb:cc:dd:ee"];
    podman.start("peer", "blue", &[]).unwrap();
    let mut generations = Vec::new();
    // Made again at once, under the same name and with the address that has only just been given back.
    for _ in 0..3 {
        podman.start("fixed", "blue", &options).unwrap();
        assert_eq!(podman.addresses("fixed", "blue").unwrap().ipv4, "10.71.0.200");
        let link = podman.exec("fixed", &["ip", "link", "show", "eth0"]).unwrap();
        assert!(link.contains("02:aa:bb:cc:dd:ee"), "{link}");
        assert!(world.pings("peer", "10.71.0.200") && world.pings("fixed", "10.71.0.1"));
        generations.push(world.endpoint("fixed", "blue").endpoint);
        podman.remove("fixed").unwrap();
    }
    generations.dedup();
    assert_eq!(generations.len(), 3);

    // Taken, outside, the gateway: refused with the reason, and nothing is left of the attempt.
    podman.start("fixed", "blue", &options).unwrap();
    let live = [world.endpoint("peer", "blue").endpoint, world.endpoint("fixed", "blue").endpoint];
    for (ip, reason) in [("10.71.0.200", "held"), ("10.73.0.9", "10.73.0.9"), ("10.71.0.1", "gateway")] {
        let error = podman.start("refused", "blue", &["--ip", ip]).unwrap_err().to_string();
        assert!(error.contains(reason), "--ip {ip}: {error}");
        podman.remove("refused").unwrap();
        assert_holds(&world.node, &live).unwrap();
    }
}

#[test]
fn one_container_on_two_networks() {
    let world = World::new();
    let podman = &world.podman;
    podman.start("both", "blue,green", &["--publish", "8081:80"]).unwrap();
    podman.start("blue", "blue", &[]).unwrap();
    podman.start("green", "green", &[]).unwrap();
    let (on_blue, on_green) = (world.endpoint("both", "blue"), world.endpoint("both", "green"));
    let mut names = [on_blue.attachment.ifname.as_str(), on_green.attachment.ifname.as_str()];
    names.sort_unstable();
    assert_eq!(names, ["eth0", "eth1"]);
    for (endpoint, network) in [(&on_blue, "blue"), (&on_green, "green")] {
        let known = podman.addresses("both", network).unwrap();
        assert_eq!(ips(endpoint), [known.ipv4, known.ipv6]);
        let inside = podman.exec("both", &["ip", "address", "show", &endpoint.attachment.ifname]).unwrap();
        assert!(ips(endpoint).iter().all(|ip| inside.contains(ip)), "{inside}");
    }
    let blue = podman.addresses("blue", "blue").unwrap();
    let green = podman.addresses("green", "green").unwrap();
    for address in [&blue.ipv4, &blue.ipv6, &green.ipv4, &green.ipv6, "10.71.0.1", "10.72.0.1"] {
        assert!(world.pings("both", address), "no answer from {address}");
    }
    assert!(!world.pings("blue", &green.ipv4) && !world.pings("green", &blue.ipv6));
    podman.remove("both").unwrap();
    let live = [world.endpoint("blue", "blue").endpoint, world.endpoint("green", "green").endpoint];
    assert_holds(&world.node, &live).unwrap();
}

#[test]
fn a_del_without_ipamd_works_and_never_touches_the_next_container() {
    let mut world = World::new();
    let options = ["--ip", "10.71.0.200"];
    world.podman.start("again", "blue", &options).unwrap();
    world.podman.start("stays", "blue", &[]).unwrap();
    let old = world.endpoint("again", "blue");
    let kept = world.endpoint("stays", "blue").endpoint;
    world.node.kill().unwrap();
    // The container ID stays the same over stop and start, as does the interface's name.
    world.podman.run(["stop", "--time", "0", "again"]).unwrap();
    let links = world.node.netns().ip("-o link").unwrap();
    assert!(!links.contains(&old.endpoint.host_ifname()), "{links}");
    assert!(world.podman.run(["start", "again"]).is_err(), "a container started without ipamd");
    world.node.start().unwrap();
    assert_holds(&world.node, &[kept]).unwrap();

    world.podman.run(["start", "again"]).unwrap();
    let new = world.endpoint("again", "blue");
    assert_eq!((ips(&new)[0].as_str(), new.attachment), ("10.71.0.200", old.attachment));
    world.node.restart().unwrap();
    assert_holds(&world.node, &[kept, new.endpoint]).unwrap();
    assert!(world.pings("stays", "10.71.0.200"));

    // Removed while ipamd is away: nothing is left once it is back.
    world.node.kill().unwrap();
    world.podman.remove("again").unwrap();
    world.podman.remove("stays").unwrap();
    world.node.start().unwrap();
    assert_clean(&world.node).unwrap();
}

#[test]
fn two_runtimes_share_a_network_and_collect_only_their_own_garbage() {
    let world = World::new();
    // A folder of its own: containerd takes the first conflist it finds.
    let networks = world.dir.path().join("containerd.d");
    fs::create_dir(&networks).unwrap();
    fs::copy(world.networks().join("blue.conflist"), networks.join("blue.conflist")).unwrap();
    let plugins = world.dir.path().join("plugins");
    let mut containerd = Containerd::start_new(world.node.netns(), &plugins, &networks).unwrap();

    world.podman.start("alice", "blue", &[]).unwrap();
    let pod = containerd.start_pod(&pod_config("pod")).unwrap();
    world.podman.start("bob", "blue", &[]).unwrap();
    let (alice, bob) = (world.endpoint("alice", "blue"), world.endpoint("bob", "blue"));
    let mut all: Vec<_> = [ips(&alice), ips(&bob), pod.ips.clone()].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6, "an address was given twice: {all:?}");
    assert!(world.pings("alice", &pod.ips[0]) && world.pings("bob", &pod.ips[1]));
    assert!(containerd.ping(&pod, &ips(&alice)[0]).unwrap());

    // What each runtime made and lost: a sandbox without a process. GC is called as libcni 1.1 does.
    let add = |id: &str, runtime: &str| {
        let sandbox = Sandbox::new().unwrap();
        let netconf = json!({ "cniVersion": "1.1.0", "name": "blue", "type": "weft", "runtime": runtime });
        world.node.cni().unwrap().container(id).netns(sandbox.path()).add(&netconf).unwrap();
        sandbox
    };
    let _sandboxes = [add("lost-by-podman", "podman"), add("lost-by-containerd", "containerd")];
    let collect = |runtime: &str| {
        let netconf = json!({
            "cniVersion": "1.1.0", "name": "blue", "type": "weft", "runtime": runtime,
            "cni.dev/valid-attachments": [],
        });
        world.node.cni().unwrap().call("GC", &netconf).unwrap().unwrap();
    };
    let ids = || world.endpoints().into_iter().map(|e| e.attachment.container_id).collect::<Vec<_>>();
    let gone = |id: &str| poll_for(PATIENCE, id, || (!ids().iter().any(|there| there == id)).then_some(()));
    collect("podman");
    gone("lost-by-podman").unwrap();
    assert!(ids().iter().any(|id| id == "lost-by-containerd"), "podman's GC freed what containerd made");
    collect("containerd");
    gone("lost-by-containerd").unwrap();

    // The living are kept, whatever the list says.
    let live: Vec<_> = world.endpoints().iter().map(|e| e.endpoint).collect();
    assert_eq!(live.len(), 3);
    assert_holds(&world.node, &live).unwrap();
    assert!(world.pings("alice", &pod.ips[0]) && containerd.ping(&pod, &ips(&bob)[1]).unwrap());
    containerd.remove_pod(&pod.id).unwrap();
    assert_holds(&world.node, &[alice.endpoint, bob.endpoint]).unwrap();
}
