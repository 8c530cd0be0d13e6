//! DEL while ipamd is away, with real links: what Weft made goes, everything else stays. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod daemon;

use daemon::{call, only_record, variables};
use ipamd_api::netns::Netns;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};
use weft::Outcome;

const HOST_SIDE: &str = "wf0123456789ab";
const OTHER_HOST_SIDE: &str = "wf0123456789ac";

/// A host and a sandbox, both namespaces of their own. They end when this is dropped.
struct Node {
    host: String,
    sandbox: String,
    run_dir: tempfile::TempDir,
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_whitespace()).output().unwrap().status.success()
}

impl Node {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |role| format!("weft-{role}-{}-{number}", std::process::id());
        let node = Self { host: name("h"), sandbox: name("s"), run_dir: tempfile::tempdir().unwrap() };
        for netns in [&node.host, &node.sandbox] {
            assert!(ip(&format!("netns add {netns}")), "cannot make network namespaces: run as root");
        }
        node
    }

    fn netns(name: &str) -> PathBuf {
        format!("/run/netns/{name}").into()
    }

    fn ip(&self, arguments: &str) -> &Self {
        let arguments = arguments.replace("HOST", &self.host).replace("SANDBOX", &self.sandbox);
        assert!(ip(&arguments), "ip {arguments}");
        self
    }

    fn has(&self, netns: &str, link: &str) -> bool {
        ip(&format!("-n {netns} link show dev {link}"))
    }

    fn in_host(&self, link: &str) -> bool {
        self.has(&self.host, link)
    }

    fn in_sandbox(&self, link: &str) -> bool {
        self.has(&self.sandbox, link)
    }

    /// A DEL inside the host, as a runtime there would call it.
    fn del(&self, netns: &str, prev: Option<&Value>) -> Outcome {
        let mut variables = variables("DEL", netns);
        variables.insert("WEFT_RUN_DIR".into(), self.run_dir.path().into());
        let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "prevResult": prev}).to_string();
        let host = Netns::open(&Self::netns(&self.host)).unwrap();
        let outcome = host.run(move || call(variables, stdin)).unwrap();
        assert_eq!(outcome.code, 0, "{}", String::from_utf8_lossy(&outcome.stdout));
        outcome
    }

    fn sandbox_path(&self) -> String {
        Self::netns(&self.sandbox).display().to_string()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for netns in [&self.host, &self.sandbox] {
            ip(&format!("netns del {netns}"));
        }
    }
}

/// A result that names this host side, and eth0 in a sandbox.
fn result_of(host_side: &str) -> Value {
    json!({"interfaces": [{"name": host_side}, {"name": "eth0", "sandbox": "/run/netns/any"}]})
}

#[test]
fn the_host_side_that_the_result_names_goes_and_no_other() {
    let node = Node::new();
    node.ip(&format!("-n HOST link add {HOST_SIDE} type veth peer name eth0 netns SANDBOX"));
    node.ip(&format!("-n HOST link add {OTHER_HOST_SIDE} type veth peer name eth1 netns SANDBOX"));
    for _ in 0..2 {
        node.del("", Some(&result_of(HOST_SIDE)));
        assert!(!node.in_host(HOST_SIDE) && !node.in_sandbox("eth0"));
        assert!(node.in_host(OTHER_HOST_SIDE) && node.in_sandbox("eth1"));
    }
}

#[test]
fn a_late_del_leaves_the_next_generation_alone() {
    let node = Node::new();
    node.ip(&format!("-n HOST link add {HOST_SIDE} type veth peer name eth0 netns SANDBOX"));
    node.del(&node.sandbox_path(), Some(&result_of(OTHER_HOST_SIDE)));
    assert!(node.in_host(HOST_SIDE) && node.in_sandbox("eth0"));
}

#[test]
fn without_a_result_the_other_end_tells_whose_it_is() {
    let node = Node::new();
    node.ip(&format!("-n HOST link add {HOST_SIDE} type veth peer name eth0 netns SANDBOX"));
    let outcome = node.del(&node.sandbox_path(), None);
    assert!(!node.in_host(HOST_SIDE) && !node.in_sandbox("eth0"), "{}", outcome.stderr);
    let cookie = Netns::open(&Node::netns(&node.sandbox)).unwrap().identity().cookie;
    assert_eq!(only_record(node.run_dir.path()).request.evidence.cookie, Some(cookie));
}

#[test]
fn what_others_made_stays() {
    for link in [
        "link add vethX type veth peer name eth0 netns SANDBOX",
        "-n SANDBOX link add eth0 type veth peer name wf0123456789ab",
        "-n SANDBOX link add eth0 type bridge",
    ] {
        let node = Node::new();
        let link = if link.starts_with('-') { link.to_owned() } else { format!("-n HOST {link}") };
        node.ip(&link);
        let outcome = node.del(&node.sandbox_path(), None);
        assert!(node.in_sandbox("eth0"), "{link}");
        assert!(outcome.stderr.contains("nothing that Weft made"), "{}", outcome.stderr);
    }
}

#[test]
fn a_macvlan_goes_if_it_is_wefts() {
    for (mac, prev, goes) in [
        ("02:57:0a:00:00:02", None, true),
        ("06:57:00:00:00:02", None, true),
        ("02:00:00:00:00:02", None, false),
        ("02:00:00:00:00:02", Some(json!({"interfaces": [{"name": "eth1", "sandbox": "/x"}]})), false),
        ("02:00:00:00:00:02", Some(json!({"interfaces": [{"name": "eth0", "sandbox": "/x"}]})), true),
    ] {
        let node = Node::new();
        node.ip("-n HOST link add uplink0 type veth peer name uplink1");
        node.ip(&format!("-n HOST link add link uplink0 name tmp0 address {mac} type macvlan mode bridge"));
        node.ip("-n HOST link set tmp0 netns SANDBOX name eth0");
        let outcome = node.del(&node.sandbox_path(), prev.as_ref());
        assert_eq!(node.in_sandbox("eth0"), !goes, "{mac} {prev:?}: {}", outcome.stderr);
    }
}

#[test]
fn nothing_is_removed_from_the_hosts_own_namespace() {
    let node = Node::new();
    node.ip("-n HOST link add uplink0 type veth peer name uplink1");
    node.ip("-n HOST link add link uplink0 name eth0 address 02:57:00:00:00:01 type macvlan");
    let outcome = node.del(&Node::netns(&node.host).display().to_string(), None);
    assert!(node.in_host("eth0"));
    assert!(outcome.stderr.contains("host's own"), "{}", outcome.stderr);
}

#[test]
fn only_a_veth_counts_as_a_host_side() {
    let node = Node::new();
    node.ip(&format!("-n HOST link add {HOST_SIDE} type bridge"));
    node.del("", Some(&result_of(HOST_SIDE)));
    assert!(node.in_host(HOST_SIDE));
}
