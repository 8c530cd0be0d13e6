//! ipamd with an etcd, as its settings say.

use serde_json::json;
use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _};
use weft_tests::{
    Node, Pod,
    etcd::{Etcd, Place},
};

/// A node, not started, with an etcd in its own namespace.
fn node_with_etcd() -> (Node, Etcd) {
    let node = Node::builder("one").build().unwrap();
    let place = Place::inside(node.netns(), Ipv4Addr::LOCALHOST.into()).unwrap();
    let etcd = Etcd::builder().tls().users().member(place).start().unwrap();
    node.write_settings(&etcd.settings()).unwrap();
    (node, etcd)
}

#[test]
fn a_node_keeps_the_clusters_state_in_etcd() {
    let (mut node, mut etcd) = node_with_etcd();
    node.start().unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    let pod = Pod::add(&node, "c1", &netconf).unwrap();
    let keys = |etcd: &Etcd| etcd.ctl(0, &["get", "--prefix", "/weft/", "--keys-only"]).unwrap();
    let said = keys(&etcd);
    for key in [
        "/weft/v1/networks/blue\n",
        "/weft/v1/blocks/1/10.9.0.0_26\n",
        "/weft/v1/nodes/one\n",
        "/weft/receipts/one/0\n",
    ] {
        assert!(said.contains(key), "{key} is not in\n{said}");
    }
    assert!(!node.state_dir().join("weft.redb").exists(), "nothing is kept twice");
    node.restart().unwrap();
    pod.del(&node, &netconf).unwrap();
    // Away for a while: what needs nothing new goes on.
    etcd.kill(0).unwrap();
    let pod = Pod::add(&node, "c2", &netconf).unwrap();
    pod.del(&node, &netconf).unwrap();
    etcd.restart_all().unwrap();
}

#[test]
fn settings_that_cannot_work_stop_the_start() {
    let (mut node, etcd) = node_with_etcd();
    let refused = |node: &mut Node, variables: &[(&str, &str)], part: &str| {
        // There is none before the first start.
        let _ = fs::remove_file(node.log_path());
        node.spawn(variables).unwrap();
        assert!(!node.wait_ended().unwrap().success());
        let said = fs::read_to_string(node.log_path()).unwrap();
        assert!(said.contains(part), "{part} is not in\n{said}");
    };
    let key = &etcd.client_certificate().unwrap().key;
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&mut node, &[], "chmod 0600");
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    for (variable, value, part) in [
        ("WEFT_ETCD_ENDPOINTS", "", "etcd_endpoints: it is empty"),
        ("WEFT_ETCD_ENDPOINTS", "http://127.0.0.1:2379", "https://"),
        ("WEFT_ETCD_PREFIX", "weft", "etcd_prefix"),
        ("WEFT_ETCD_TIMEOUT", "1", "etcd_timeout"),
    ] {
        refused(&mut node, &[(variable, value)], part);
    }
    node.start().unwrap();
}
