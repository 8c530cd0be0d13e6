//! Results behind and in front of the reference plugins: what Weft prints, they must read, in each version they speak.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod daemon;

use daemon::{Daemon, call, json, variables};
use ipamd_api::path;
use serde_json::{Value, json};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// The reference `tuning` plugin (Debian package containernetworking-plugins), which passes its prevResult through.
const TUNING: &str = "/usr/lib/cni/tuning";

fn tuning(netns: &str, netconf: &Value) -> Value {
    let mut child = Command::new(TUNING)
        .env_clear()
        .envs(variables("ADD", netns))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{TUNING}: {e}: install containernetworking-plugins"));
    child.stdin.take().unwrap().write_all(netconf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn reference_plugins_read_what_weft_prints_and_weft_what_they_print() {
    // Tuning gets nothing to change, so it may enter the namespace of this process.
    let netns = format!("/proc/{}/ns/net", std::process::id());
    let added = json!({
        "endpoint": "0123456789ab",
        "interfaces": [
            {"name": "wf-7", "mac": "02:57:0a:00:00:01", "mtu": 1500},
            {"name": "wf0123456789ab", "mac": "fe:57:00:00:00:01", "mtu": 1500},
            {"name": "eth0", "mac": "02:57:0a:00:00:02", "mtu": 1500, "sandbox": netns},
        ],
        "ips": [
            {"interface": 2, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
            {"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0", "gw": "fd00::1"}, {"dst": "10.9.0.0/16"}],
        "dns": {"nameservers": ["10.0.0.1"], "search": ["x.example"]},
    });
    let daemon = Daemon::answering(&[(path::ADD, Some((200, added))), (path::DEL, Some((200, json!({}))))]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let mut netconf = json!({"cniVersion": version, "name": "blue", "runDir": daemon.run_dir()});
        let printed = json(&call(variables("ADD", &netns), netconf.to_string()));
        let mut next = json!({"cniVersion": version, "name": "blue", "type": "tuning", "sysctl": {}});
        next["prevResult"] = printed.clone();
        let passed = tuning(&netns, &next);
        assert_eq!(passed, printed, "{version}");
        netconf["prevResult"] = passed;
        let again = json(&call(variables("ADD", &netns), netconf.to_string()));
        for (key, count) in [("interfaces", 6), ("ips", 4), ("routes", 6)] {
            let list = again[key].as_array().unwrap_or_else(|| panic!("{version}: {again}"));
            assert_eq!(list.len(), count, "{version} {key}");
            assert_eq!(list[..count / 2], printed[key].as_array().unwrap()[..], "{version} {key}");
        }
        let outcome = call(variables("DEL", &netns), netconf.to_string());
        assert_eq!(outcome.code, 0, "{version}: {}", outcome.stderr);
    }
}

/// Specification, section "ADD Success": of what an earlier plugin of the chain answered nothing is taken away that nobody asked to change.
#[test]
fn name_servers_of_an_earlier_plugin_stand_over_those_that_weft_gives_unasked() {
    let given = json!({"nameservers": ["10.0.0.1"], "search": ["weft.example"]});
    let earlier = json!({"nameservers": ["192.0.2.53"], "domain": "earlier.example", "options": ["ndots:2"]});
    let none = json!({});
    let asked = json!({"nameservers": ["198.51.100.53"], "options": ["ndots:0"]});
    for (what, earlier, asked, expected) in [
        ("nobody said anything", &none, &none, given.clone()),
        (
            "an earlier plugin did",
            &earlier,
            &none,
            json!({"nameservers": ["192.0.2.53"], "domain": "earlier.example", "search": ["weft.example"], "options": ["ndots:2"]}),
        ),
        (
            "both an earlier plugin and the netconf did",
            &earlier,
            &asked,
            json!({"nameservers": ["198.51.100.53"], "domain": "earlier.example", "search": ["weft.example"], "options": ["ndots:0"]}),
        ),
    ] {
        // ipamd repeats what was asked for, and gives name servers where nothing was.
        let mut dns = given.clone();
        dns.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
        let added =
            json!({"endpoint": "0123456789ab", "interfaces": [], "ips": [], "routes": [], "dns": dns});
        let daemon = Daemon::answering(&[(path::ADD, Some((200, added)))]);
        let netconf = json!({
            "cniVersion": "1.0.0", "name": "blue", "runDir": daemon.run_dir(), "dns": asked,
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": [], "dns": earlier},
        });
        let printed = json(&call(variables("ADD", "/run/netns/c1"), netconf.to_string()));
        assert_eq!(printed["dns"], expected, "{what}");
    }
}
