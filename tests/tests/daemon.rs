//! ipamd as a process: what it logs, whom it tells and lets in, and where it refuses to start. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram, process::CommandExt as _},
    process::{Command, Output},
    time::Duration,
};
use weft_tests::{Guarded, Node, Sandbox, binaries, poll_until};

/// ipamd of a node that was built and not started, to be run with other arguments.
fn ipamd(node: &Node) -> Command {
    let mut command = node.netns().command(binaries::find("ipamd").unwrap());
    command.arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
    command.arg("--bpf-dir").arg(node.bpf_dir()).args(["--node-name", "node"]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_line_about_an_endpoint_names_its_attachment() {
    let mut node = Node::builder("json").settings("log_format = \"json\"").start().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    let cni = node.cni().unwrap().container("c1").netns(sandbox.path());
    cni.add(&netconf).unwrap();
    cni.del(&netconf).unwrap();
    let removed = || fs::read_to_string(node.log_path()).unwrap().contains("\"removed\"");
    poll_until(Duration::from_secs(60), "the removal to be logged", removed).unwrap();
    assert!(node.stop().unwrap().success());

    let log = fs::read_to_string(node.log_path()).unwrap();
    let lines: Vec<Value> =
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    let about_endpoint: Vec<&Value> =
        lines.iter().filter(|l| l["fields"].get("endpoint").is_some()).collect();
    assert!(about_endpoint.len() >= 2, "added and removed: {log}");
    for line in about_endpoint {
        let named = [&line["fields"]["attachment"], &line["span"]["attachment"]];
        assert!(named.iter().any(|a| **a == "c1/eth0"), "{line}");
    }
}

#[test]
fn the_service_manager_hears_of_readiness_and_of_the_stop() {
    let node = Node::builder("notify").build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut daemon = Guarded::spawn(ipamd(&node).env("NOTIFY_SOCKET", &path)).unwrap();
    assert!(next().contains("READY=1"));
    assert!(node.run_dir().join("ipamd.sock").exists(), "ready means that the socket is there");
    daemon.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(next().contains("STOPPING=1"));
    assert!(daemon.wait(Duration::from_secs(60)).unwrap().success());
}

#[test]
fn the_socket_is_for_root_and_another_user_is_refused_by_credentials_too() {
    let node = Node::start_new("peers").unwrap();
    let socket = node.run_dir().join("ipamd.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Open the way to the socket, as a careless administrator might.
    let dir = node.run_dir().parent().unwrap().to_owned();
    for (path, mode) in [(dir.as_path(), 0o755), (&node.run_dir(), 0o755), (&socket, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let netctl = dir.join("netctl");
    fs::copy(binaries::find("netctl").unwrap(), &netctl).unwrap();
    let call = || {
        Command::new(&netctl)
            .arg("--run-dir")
            .arg(node.run_dir())
            .arg("status")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    };
    let refused = call();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("user 65534 may not call ipamd"), "{}", said(&refused));
}

#[test]
fn it_refuses_places_that_would_die_with_it() {
    let node = Node::builder("private").build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (kind, place) in [("bpf", "WEFT_BPF_DIR"), ("tmpfs", "WEFT_RUN_DIR")] {
        let mountpoint = dir.path().join(kind);
        fs::create_dir(&mountpoint).unwrap();
        let line = format!(
            "mount -t {kind} {kind} {} && exec {}",
            mountpoint.display(),
            binaries::find("ipamd").unwrap().display()
        );
        let mut command = node.netns().command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &line]);
        command.env("WEFT_RUN_DIR", node.run_dir()).env("WEFT_STATE_DIR", node.state_dir());
        command.env("WEFT_BPF_DIR", node.bpf_dir()).env(place, mountpoint.join("weft"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{kind}: {}", said(&output));
        assert!(said(&output).contains("mount namespace"), "{kind}: {}", said(&output));
    }
    let mut elsewhere = node.netns().command(binaries::find("ipamd").unwrap());
    elsewhere.arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
    let output = elsewhere.arg("--bpf-dir").arg(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is not on a bpffs"), "{}", said(&output));
}

#[test]
fn bad_settings_stop_it_before_it_touches_anything() {
    let node = Node::builder("settings").build().unwrap();
    for (arguments, word) in [
        (vec!["--mtu", "big"], "`mtu`"),
        (vec!["--cgroup", "/tmp"], "cgroup2"),
        (vec!["--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["--boot-id-file", "/nowhere"], "/nowhere"),
        (vec!["--store", "etcd"], "etcd_endpoints"),
        (vec!["--log-level", "=="], "log_level"),
    ] {
        let output = ipamd(&node).args(&arguments).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?}", output.status);
        assert!(said(&output).contains(word), "{arguments:?}: {}", said(&output));
        assert!(!node.run_dir().join("ipamd.sock").exists() && !node.bpf_dir().exists(), "{arguments:?}");
    }
}

#[test]
fn only_one_runs_on_a_run_directory() {
    let node = Node::start_new("twice").unwrap();
    let output = ipamd(&node).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let pid = node.ipamd_pid().unwrap().to_string();
    assert!(said(&output).contains(&pid), "the holder is named: {}", said(&output));
    assert_eq!(node.netctl(&["status"]).unwrap().status.code(), Some(0), "the first goes on");
}
