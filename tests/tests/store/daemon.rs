//! ipamd with an etcd, as its settings say.

use ipamd_api::{Diagnosis, Health, Status, path};
use serde_json::json;
use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, time::Duration};
use weft_tests::{
    Node, Pod, Sandbox,
    etcd::{Etcd, Place},
    inventory, poll_for,
};

const PATIENCE: Duration = Duration::from_secs(30);

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
    // A certificate that no further connection can be made with.
    let doctor = || {
        let found: Diagnosis = node.client().get(path::DOCTOR).unwrap();
        found.findings.into_iter().filter(|finding| finding.check == "certificates").collect::<Vec<_>>()
    };
    assert_eq!(doctor(), []);
    let certificate = &etcd.client_certificate().unwrap().cert;
    let whole = fs::read(certificate).unwrap();
    fs::write(certificate, "nonsense").unwrap();
    let found = doctor();
    assert!(found.len() == 1 && found[0].message.contains("client"), "{found:?}");
    fs::write(certificate, whole).unwrap();
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

#[test]
fn an_etcd_that_is_away_at_the_first_start_is_waited_for() {
    let (mut node, mut etcd) = node_with_etcd();
    etcd.kill_all().unwrap();
    node.spawn(&[]).unwrap();
    let status = || node.client().get::<Status>(path::STATUS).ok();
    let status = poll_for(PATIENCE, "an answer of ipamd", status).unwrap();
    let part = |name: &str| {
        let found = status.parts.iter().find(|part| part.part == name);
        found.unwrap_or_else(|| panic!("nothing is said of {name}: {:?}", status.parts))
    };
    let store = part("store");
    assert!(
        store.health == Health::Failed && store.message.starts_with("etcd: has not answered"),
        "{store:?}"
    );
    let cluster = part("cluster");
    assert!(cluster.health == Health::Failed && cluster.message.contains("127.0.0.1"), "{cluster:?}");
    assert!(!status.ready, "a node that was never registered has no address to give: {:?}", status.parts);

    let netconf = json!({"cniVersion": "1.1.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    let refused = node.cni().unwrap().call("STATUS", &netconf).unwrap().unwrap_err();
    assert!([50, 51].contains(&refused.code) && refused.msg.contains("cannot serve an ADD"), "{refused}");
    let sandbox = Sandbox::new().unwrap();
    let refused = node.cni().unwrap().container("c1").netns(sandbox.path()).call("ADD", &netconf).unwrap();
    let error = refused.unwrap_err();
    assert!(error.code == 11 && error.msg.contains("no etcd answers"), "{error}");
    assert!(sandbox.ip("link show dev eth0").is_err(), "an interface of a refused ADD");
    inventory::assert_clean(&node).unwrap();

    etcd.restart_all().unwrap();
    // It registers by itself, with the next try.
    let pod = poll_for(PATIENCE, "an ADD", || Pod::add(&node, "c1", &netconf).ok()).unwrap();
    pod.del(&node, &netconf).unwrap();
    node.wait_ready().unwrap();
    let store = || {
        let status: Status = node.client().get(path::STATUS).ok()?;
        let store = status.parts.into_iter().find(|part| part.part == "store")?;
        (status.ready && store.health == Health::Ok && store.message == "etcd").then_some(())
    };
    poll_for(PATIENCE, "a store that is well", store).unwrap();

    // What was registered once goes on without etcd, over a restart, too, and says so.
    etcd.kill_all().unwrap();
    node.restart().unwrap();
    let status: Status = node.client().get(path::STATUS).unwrap();
    let store = status.parts.iter().find(|part| part.part == "store").unwrap();
    assert!(status.ready && store.health == Health::Degraded, "{:?}", status.parts);
    assert!(store.message.starts_with("etcd: has not answered for"), "{store:?}");
}
