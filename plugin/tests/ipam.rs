//! The verbs of `weft-ipam` against a daemon that answers what the test laid down.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod daemon;

use daemon::{Daemon, call_ipam, json, only_record, variables};
use ipamd_api::{RELEASED_DIR, path};
use serde_json::{Value, json};
use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A netconf of a main plugin; `ipam` and `more` are laid over it.
fn netconf(version: &str, daemon: &Daemon, ipam: &Value, more: &Value) -> String {
    let mut document = json!({
        "cniVersion": version, "name": "blue", "type": "bridge",
        "ipam": {"type": "weft-ipam", "runDir": daemon.run_dir()},
    });
    document["ipam"].as_object_mut().unwrap().extend(ipam.as_object().unwrap().clone());
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document.to_string()
}

fn given() -> Value {
    json!({"endpoint": "0123456789ab", "addresses": [
        {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "origin": "dynamic"},
        {"address": "fd00::2/64", "gateway": "fd00::1", "origin": "dynamic"},
    ]})
}

#[test]
fn add_answers_in_the_form_of_every_version_without_interfaces() {
    let daemon = Daemon::answering(&[(path::ALLOCATE, Some((200, given())))]);
    for version in VERSIONS {
        let ipam =
            json!({"routes": [{"dst": "0.0.0.0/0", "priority": 7}], "dns": {"nameservers": ["10.0.0.53"]}});
        // What came before in a chain is the main plugin's to pass on.
        let prev =
            json!({"prevResult": {"cniVersion": version, "interfaces": [{"name": "eth0"}], "ips": []}});
        let outcome = call_ipam(variables("ADD", "/run/netns/c1"), netconf(version, &daemon, &ipam, &prev));
        assert_eq!(outcome.code, 0, "{version}: {}", json(&outcome));
        let mut golden = json!({
            "cniVersion": version,
            "ips": [
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64", "gateway": "fd00::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.0.0.53"]},
        });
        if version == "1.1.0" {
            golden["routes"][0]["priority"] = json!(7);
        }
        if version < "1.0.0" {
            golden["ips"][0]["version"] = json!("4");
            golden["ips"][1]["version"] = json!("6");
        }
        assert_eq!(json(&outcome), golden, "{version}");
    }
}

#[test]
fn where_names_are_answered_the_main_plugin_is_told_by_whom() {
    let mut given = given();
    given["nameservers"] = json!(["127.0.0.11"]);
    let daemon = Daemon::answering(&[(path::ALLOCATE, Some((200, given)))]);
    let named = json!({"dnsMode": "sandbox", "dnsUpstreams": ["10.0.0.53"]});
    let own = json!({"dns": {"nameservers": ["10.0.0.54"], "search": ["x.example"]}});
    for (ipam, expected) in
        [(named, json!({"nameservers": ["127.0.0.11"]})), (own.clone(), own["dns"].clone())]
    {
        let outcome =
            call_ipam(variables("ADD", "/run/netns/c1"), netconf("1.0.0", &daemon, &ipam, &json!({})));
        assert_eq!(json(&outcome)["dns"], expected, "{ipam}");
    }
    let wrong = netconf("1.0.0", &daemon, &json!({"dnsMode": "here"}), &json!({}));
    let error = json(&call_ipam(variables("ADD", "/run/netns/c1"), wrong));
    assert!(error["msg"].as_str().unwrap().contains("use gateway, intercept, sandbox or off"), "{error}");
}

#[test]
fn add_asks_for_addresses_alone() {
    let daemon = Daemon::answering(&[(path::ALLOCATE, Some((200, given())))]);
    let ipam = json!({"network": "lan", "subnet": "10.0.0.0/24", "dataDir": "/var/lib/cni"});
    let more = json!({"mtu": 1400, "runtimeConfig": {"ips": ["10.0.0.9/24"], "mac": "02:00:00:00:00:01"}});
    let mut variables = variables("ADD", "/run/netns/c1");
    variables.insert("CNI_ARGS".into(), "IgnoreUnknown=1;IP=10.0.0.8;K8S_POD_NAME=p".into());
    let outcome = call_ipam(variables, netconf("1.0.0", &daemon, &ipam, &more));
    assert_eq!(outcome.code, 0, "{}", json(&outcome));
    let (path, request) = daemon.only_request();
    assert_eq!(path, path::ALLOCATE);
    assert_eq!(
        request,
        json!({
            "attachment": {"containerId": "c1", "ifname": "eth0"}, "netns": "/run/netns/c1", "runtime": "testruntime",
            "network": {"name": "lan", "driver": "external", "pools": [{"subnet": "10.0.0.0/24"}]},
            "configuration": "blue", "ips": ["10.0.0.9/24"], "labels": {"K8S_POD_NAME": "p"},
        })
    );
}

#[test]
fn refusals_are_the_main_plugins_to_tell() {
    let refusal = json!({"code": 101, "msg": "pool 10.0.0.0/24 is exhausted", "details": ""});
    let daemon = Daemon::answering(&[(path::ALLOCATE, Some((503, refusal)))]);
    let outcome =
        call_ipam(variables("ADD", "/run/netns/c1"), netconf("1.1.0", &daemon, &json!({}), &json!({})));
    assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(101)));
    let broken = netconf("1.1.0", &daemon, &json!({"routes": [{}]}), &json!({}));
    let outcome = call_ipam(variables("ADD", "/run/netns/c1"), broken);
    assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(7)));
    assert_eq!(daemon.requests(), 1, "an answer that cannot be printed is not asked for");
}

#[test]
fn del_means_the_sandbox_and_not_the_main_plugins_links() {
    let daemon = Daemon::answering(&[(path::DEL, Some((200, json!({}))))]);
    let prev = json!({"prevResult": {"interfaces": [{"name": "wf0123456789ab"}]}});
    let own = format!("/proc/{}/ns/net", std::process::id());
    let outcome =
        call_ipam(variables("DEL", &own), netconf("1.0.0", &daemon, &json!({"network": "lan"}), &prev));
    assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
    let request = daemon.only_request().1;
    assert_eq!(request["network"], "lan");
    let cookie = ipamd_api::netns::own_cookie().unwrap();
    assert_eq!(request["evidence"], json!({ "cookie": cookie }));
}

#[test]
fn del_without_ipamd_leaves_a_record() {
    for (ipam, netns) in [(json!({}), "/run/netns/gone"), (json!({"subnet": "nonsense", "routes": 1}), "")] {
        let daemon = Daemon::answering(&[]);
        let netconf = netconf("1.0.0", &daemon, &ipam, &json!({}));
        let outcome = call_ipam(variables("DEL", netns), netconf);
        assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
        let record = only_record(daemon.run_dir());
        assert_eq!(
            (record.request.attachment.to_string().as_str(), record.request.network.as_str()),
            ("c1/eth0", "blue")
        );
        assert_eq!(record.request.evidence, ipamd_api::Evidence::default());
    }
}

#[test]
fn check_works_with_and_without_the_result_of_the_add() {
    let prev = json!({"prevResult": {
        "interfaces": [{"name": "veth7"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.0.0.2/24", "interface": 1}, {"address": "10.0.0.1/24", "interface": 0}],
    }});
    for (more, expected) in [(prev, json!(["10.0.0.2/24"])), (json!({}), json!([]))] {
        let daemon = Daemon::answering(&[(path::CHECK, Some((200, json!({}))))]);
        let outcome =
            call_ipam(variables("CHECK", "/run/netns/c1"), netconf("0.4.0", &daemon, &json!({}), &more));
        assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
        let request = daemon.only_request().1;
        assert_eq!((&request["network"], &request["expectedIps"]), (&json!("blue"), &expected));
    }
    let daemon = Daemon::answering(&[]);
    let outcome =
        call_ipam(variables("CHECK", "/run/netns/c1"), netconf("0.3.1", &daemon, &json!({}), &json!({})));
    assert_eq!(json(&outcome)["code"], 1, "CHECK exists since 0.4.0");
}

#[test]
fn status_and_gc_exist_since_1_1_0() {
    let status = json!({
        "version": "0", "apiVersion": 1, "node": "n", "bootId": "b", "pid": 1, "uptimeSeconds": 1, "ready": false,
        "parts": [{"part": "store", "health": "failed", "message": "gone"}], "networks": 0, "endpoints": 0, "drops": [],
    });
    let answers =
        [(path::STATUS, Some((200, status))), (path::GC, Some((200, json!({"freed": [], "kept": []}))))];
    for command in ["STATUS", "GC"] {
        let daemon = Daemon::answering(&answers);
        let outcome = call_ipam(variables(command, ""), netconf("1.0.0", &daemon, &json!({}), &json!({})));
        assert_eq!((json(&outcome)["code"].clone(), daemon.requests()), (json!(1), 0));
        let valid = json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth1"}]});
        let outcome =
            call_ipam(variables(command, ""), netconf("1.1.0", &daemon, &json!({"network": "lan"}), &valid));
        let request = daemon.only_request().1;
        if command == "STATUS" {
            assert_eq!(json(&outcome)["code"], 50);
        } else {
            assert_eq!(outcome.code, 0);
            assert_eq!(
                request,
                json!({
                    "network": "lan", "configuration": "blue", "runtime": "testruntime",
                    "valid": [{"containerId": "c2", "ifname": "eth1"}],
                })
            );
        }
    }
}

#[test]
fn version_and_introduction_are_there_under_this_name_too() {
    let outcome = call_ipam(variables("VERSION", ""), "");
    assert_eq!(json(&outcome), json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
    let outcome = call_ipam([].into(), "");
    assert!(outcome.stderr.starts_with("CNI plugin weft-ipam v"), "{}", outcome.stderr);
}

#[test]
fn the_name_of_the_executable_decides_and_the_runtime_is_who_called_the_main_plugin() {
    let daemon = Daemon::answering(&[(path::ALLOCATE, Some((200, given())))]);
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("weft-ipam");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft"), &link).unwrap();
    // A shell called as the main plugin would be; what it runs is its child, as a delegate is.
    let main_plugin = dir.path().join("bridge");
    std::os::unix::fs::symlink("/bin/sh", &main_plugin).unwrap();
    let mut child = Command::new(&main_plugin)
        .arg0("bridge")
        .args(["-c", "\"$0\"; exit $?"])
        .arg(&link)
        .env_clear()
        .envs(variables("ADD", "/run/netns/c1"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = netconf("1.1.0", &daemon, &json!({}), &json!({}));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    // The name of this thread, which is the runtime here.
    let runtime = daemon.only_request().1["runtime"].as_str().unwrap().to_owned();
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(runtime, own.trim());
    assert!(!daemon.run_dir().join(RELEASED_DIR).exists());
}
