//! What cannot be given is refused through the main plugin with Weft's code and words, and leaves nothing.

use crate::scene::{Scene, bridge, ips, with_ipam};
use serde_json::{Value, json};
use weft_tests::{Sandbox, inventory::assert_clean, netconf};

#[test]
fn a_full_pool_and_a_taken_address() {
    let scene = Scene::new("refused");
    let pools = json!({"pools": [{"subnet": "10.170.0.0/29", "reserved": ["10.170.0.6"]}], "routes": []});
    let plain = with_ipam(&bridge("1.0.0", "blue", 170), &pools);
    let sandboxes = [(); 5].map(|()| Sandbox::with_process().unwrap());
    let cni = |index: usize| scene.plugin("bridge", &format!("c{index}"), &sandboxes[index]);
    assert_eq!(ips(&cni(0).args("IgnoreUnknown=1;IP=10.170.0.3").add(&plain).unwrap()), ["10.170.0.3"]);
    let asking = |ip: &str| {
        let mut netconf = plain.clone();
        netconf["runtimeConfig"] = json!({"ips": [ip]});
        netconf
    };
    let refused = |index: usize, netconf: &Value, code: u32, part: &str| {
        let error = cni(index).call("ADD", netconf).unwrap().unwrap_err();
        assert!(error.code == code && error.msg.contains(part), "{error}");
        // What the main plugin had made by then is removed by its DEL.
        cni(index).del(netconf).unwrap();
        assert_eq!(sandboxes[index].ip("-o link").unwrap().lines().count(), 1);
    };
    refused(1, &asking("10.170.0.3/29"), 102, "is held by c0/eth0");
    refused(1, &asking("10.170.0.6/29"), 103, "reserved");
    refused(1, &asking("10.171.0.3/29"), 103, "10.171.0.3");
    refused(1, &asking("10.170.0.1/29"), 103, "gateway");
    for index in 1..4 {
        cni(index).add(&plain).unwrap();
    }
    refused(4, &plain, 101, "pool 10.170.0.0/29 of network blue is exhausted");
    assert_eq!(scene.endpoints().len(), 4);
    (0..4).for_each(|index| cni(index).del(&plain).unwrap());
    assert_clean(&scene.node).unwrap();
}

#[test]
fn a_network_is_wired_by_weft_or_by_others() {
    let scene = Scene::new("either");
    let [one, two] = [Sandbox::with_process().unwrap(), Sandbox::with_process().unwrap()];
    let external = bridge("1.0.0", "blue", 172);
    scene.plugin("bridge", "one", &one).add(&external).unwrap();
    let refused = |plugin: &str, netconf: &Value, part: &str| {
        let error = scene.plugin(plugin, "two", &two).call("ADD", netconf).unwrap().unwrap_err();
        assert!(error.code == 100 && error.msg.contains(part), "{error}");
    };
    let weft = netconf::network("blue", 172, &json!({}));
    refused("weft", &weft, "driver external");
    let weft_of_its_own = netconf::network("green", 173, &json!({}));
    let node = scene.node.cni().unwrap();
    node.clone().container("two").netns(two.path()).add(&weft_of_its_own).unwrap();
    refused("weft-ipam", &bridge("1.0.0", "green", 173), "driver is bridge, asked for external");
    let error =
        scene.plugin("weft-ipam", "two", &two).ifname("eth1").call("ADD", &bridge("1.0.0", "red", 173));
    let error = error.unwrap().unwrap_err();
    assert!(error.code == 7 && error.msg.contains("overlaps pool"), "{error}");

    // Two ways of wiring beside each other.
    assert!(one.ping("10.172.0.1").unwrap() && two.ping("10.173.0.1").unwrap());
    scene.plugin("bridge", "one", &one).del(&external).unwrap();
    node.container("two").netns(two.path()).del(&weft_of_its_own).unwrap();
    assert_clean(&scene.node).unwrap();
}

#[test]
fn operators_make_such_a_network_too() {
    let scene = Scene::new("operators");
    let make = |arguments: &[&str]| {
        let said = scene.node.netctl(arguments).unwrap();
        (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let create = ["network", "create", "lan", "--driver", "external", "--subnet", "10.174.0.0/24"];
    let (done, said) = make(&[&create[..], &["--mtu", "1400"]].concat());
    assert!(!done && said.contains("driver external gives addresses only: remove `mtu`"), "{said}");
    assert_eq!(make(&create), (true, String::new()));
    // A netconf need not say what is known.
    let netconf = json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "bridge", "bridge": "br174",
        "ipam": {"type": "weft-ipam", "network": "lan"},
    });
    let sandbox = Sandbox::with_process().unwrap();
    let cni = scene.plugin("bridge", "one", &sandbox);
    assert_eq!(ips(&cni.add(&netconf).unwrap()), ["10.174.0.2"]);
    let (done, said) = make(&["publish", "add", "one", "8080:80"]);
    assert!(!done && said.contains("driver external"), "{said}");
    let (done, said) = make(&["network", "rm", "lan"]);
    assert!(!done && said.contains("one/eth0"), "{said}");
    cni.del(&netconf).unwrap();
    assert_clean(&scene.node).unwrap();
    assert!(make(&["network", "rm", "lan"]).0);
}
