//! Every reference main plugin that takes an IPAM plugin, in every version of the protocol.

use crate::scene::{Scene, bridge, held, ips};
use serde_json::{Value, json};
use std::time::Duration;
use weft_tests::{Sandbox, inventory::assert_clean, poll_until};

/// How long what happens behind an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Those of the reference plugins of release 1.1.
const REFERENCE_VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];

/// Two containers of one main plugin: they reach each other by the addresses that were given, and nothing stays behind.
fn two_containers(scene: &Scene, kind: &str, netconf: &Value) {
    let [one, two] = [Sandbox::with_process().unwrap(), Sandbox::with_process().unwrap()];
    let [first, second] = [("one", &one), ("two", &two)].map(|(id, sandbox)| scene.plugin(kind, id, sandbox));
    let results = [first.add(netconf).unwrap(), second.add(netconf).unwrap()];
    let version = netconf["cniVersion"].as_str().unwrap();
    let endpoints = scene.endpoints();
    for (result, endpoint) in results.iter().zip(&endpoints) {
        assert_eq!(result["cniVersion"], version);
        assert_eq!(ips(result), held(endpoint), "{kind}: what the plugin tells is what the node gave");
        assert_eq!(scene.differences(&endpoint.attachment.container_id), json!([]), "{kind}");
    }
    for (from, to) in [(&one, &results[1]), (&two, &results[0])] {
        for address in ips(to) {
            // Behind the answer of an ADD, `ptp` leaves IPv6 addresses of the host that are not usable yet.
            let what = format!("{kind} {version}: an answer from {address}");
            poll_until(PATIENCE, &what, || from.ping(&address).unwrap()).unwrap();
        }
    }
    // CHECK exists since 0.4.0.
    if version >= "0.4.0" {
        first.check(netconf, &results[0]).unwrap();
        second.check(netconf, &results[1]).unwrap();
    }
    for (cni, result) in [(first, &results[0]), (second, &results[1])] {
        let mut netconf = netconf.clone();
        netconf["prevResult"] = result.clone();
        cni.del(&netconf).unwrap();
        // A runtime may call it again.
        cni.del(&netconf).unwrap();
    }
    assert_clean(&scene.node).unwrap();
}

#[test]
fn the_bridge_plugin_in_every_version() {
    let scene = Scene::new("versions");
    for version in REFERENCE_VERSIONS {
        two_containers(&scene, "bridge", &bridge(version, "blue", 150));
    }
}

#[test]
fn the_other_plugins_with_both_families() {
    let scene = Scene::new("others");
    scene.node.netns().ip("link add parent0 type veth peer name beyond0").unwrap();
    for link in ["parent0", "beyond0"] {
        scene.node.netns().ip(&format!("link set {link} up")).unwrap();
    }
    for (kind, number, more) in
        [("macvlan", 151, json!({"master": "parent0", "mode": "bridge"})), ("ptp", 153, json!({}))]
    {
        let mut netconf = bridge("1.0.0", kind, number);
        netconf["type"] = kind.into();
        netconf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        two_containers(&scene, kind, &netconf);
    }
}

#[test]
fn a_configuration_of_host_local_needs_another_type_and_nothing_else() {
    let scene = Scene::new("converted");
    let netconf = json!({
        "cniVersion": "1.0.0", "name": "converted", "type": "bridge", "bridge": "br154", "isGateway": true,
        "ipam": {
            "type": "weft-ipam", "dataDir": "/var/lib/cni/networks", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.154.0.0/24", "rangeStart": "10.154.0.100", "rangeEnd": "10.154.0.101", "gateway": "10.154.0.254"}]],
        },
    });
    let sandboxes = [(); 3].map(|()| Sandbox::with_process().unwrap());
    let cni: Vec<_> =
        ["c0", "c1", "c2"].iter().zip(&sandboxes).map(|(id, s)| scene.plugin("bridge", id, s)).collect();
    let given: Vec<_> = cni[..2].iter().map(|cni| ips(&cni.add(&netconf).unwrap())).collect();
    assert_eq!(given, [["10.154.0.100"], ["10.154.0.101"]]);
    assert!(sandboxes[0].ping("10.154.0.101").unwrap() && sandboxes[0].ping("10.154.0.254").unwrap());
    let error = cni[2].call("ADD", &netconf).unwrap().unwrap_err();
    assert_eq!(error.code, 101, "{error}");
    cni[2].del(&netconf).unwrap();
    let mut asked = netconf.clone();
    asked["runtimeConfig"]["ips"] = json!(["10.154.0.102"]);
    let error = cni[2].call("ADD", &asked).unwrap().unwrap_err();
    assert_eq!(error.code, 103, "what lies outside the range is not given on request either: {error}");
    cni.iter().for_each(|cni| cni.del(&netconf).unwrap());
    assert_clean(&scene.node).unwrap();
}

/// What the reference plugins do not speak yet, and what they do not delegate: `weft-ipam` as such.
#[test]
fn the_plugin_itself_in_every_version() {
    let scene = Scene::new("itself");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let netconf = bridge(version, "blue", 155);
        let sandbox = Sandbox::with_process().unwrap();
        let cni = scene.plugin("weft-ipam", "one", &sandbox);
        let result = cni.add(&netconf).unwrap();
        let old = version < "1.0.0";
        for (ip, family) in result["ips"].as_array().unwrap().iter().zip(["4", "6"]) {
            assert_eq!(ip["version"].as_str(), old.then_some(family), "{result}");
            assert!(ip["gateway"].is_string() && ip.get("interface").is_none(), "{result}");
        }
        assert_eq!(result["routes"], netconf["ipam"]["routes"]);
        assert!(result.get("interfaces").is_none(), "{result}");
        let links = sandbox.ip("-o link").unwrap();
        assert_eq!(links.lines().count(), 1, "there is something in the sandbox: {links}");
        if version >= "0.4.0" {
            cni.check(&netconf, &result).unwrap();
            let mut wrong = result.clone();
            wrong["interfaces"] = json!([{"name": "eth0", "sandbox": sandbox.path()}]);
            wrong["ips"][0]["interface"] = json!(0);
            wrong["ips"][0]["address"] = json!("10.155.0.99/24");
            assert!(cni.check(&netconf, &wrong).is_err(), "CHECK takes an address that was never given");
        }
        if version == "1.1.0" {
            cni.call("STATUS", &netconf).unwrap().unwrap();
            let mut gc = netconf.clone();
            gc["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
            cni.call("GC", &gc).unwrap().unwrap();
        }
        assert_eq!(scene.endpoints().len(), 1);
        cni.del(&netconf).unwrap();
        if version >= "0.4.0" {
            assert!(cni.check(&netconf, &result).is_err(), "CHECK after DEL");
        }
        assert_clean(&scene.node).unwrap();
    }
}
