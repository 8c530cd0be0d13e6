//! The verbs against a daemon that answers what the test laid down.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure here is a failed test")]

mod daemon;

use daemon::{Canned, Daemon, call, json, only_record, variables};
use ipamd_api::{EndpointId, path};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn netconf(version: &str, daemon: &Daemon, keys: &Value) -> String {
    let mut document =
        json!({"cniVersion": version, "name": "blue", "type": "weft", "runDir": daemon.run_dir()});
    document.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    document.to_string()
}

/// What ipamd answers to an ADD on a dual-stack bridge network.
fn added() -> Value {
    json!({
        "endpoint": "0123456789ab",
        "interfaces": [
            {"name": "wf-7", "mac": "02:57:0a:00:00:01", "mtu": 1500},
            {"name": "wf0123456789ab", "mac": "fe:57:00:00:00:01", "mtu": 1500},
            {"name": "eth0", "mac": "02:57:0a:00:00:02", "mtu": 1500, "sandbox": "/run/netns/c1"},
        ],
        "ips": [
            {"interface": 2, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
            {"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.0.0.1"]},
        "aFieldOfTheFuture": 1,
    })
}

fn ok(answer: Value) -> Canned {
    Some((200, answer))
}

fn refusal(code: u32, msg: &str) -> Canned {
    Some((409, json!({"code": code, "msg": msg, "details": "more"})))
}

#[test]
fn add_answers_in_the_form_of_every_version() {
    let daemon = Daemon::answering(&[(path::ADD, ok(added()))]);
    for version in VERSIONS {
        let outcome = call(variables("ADD", "/run/netns/c1"), netconf(version, &daemon, &json!({})));
        assert_eq!(outcome.code, 0, "{version}: {}", json(&outcome));
        let mut golden = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "wf-7", "mac": "02:57:0a:00:00:01"},
                {"name": "wf0123456789ab", "mac": "fe:57:00:00:00:01"},
                {"name": "eth0", "mac": "02:57:0a:00:00:02", "sandbox": "/run/netns/c1"},
            ],
            "ips": [
                {"interface": 2, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
                {"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.0.0.1"]},
        });
        if version == "1.1.0" {
            golden["interfaces"].as_array_mut().unwrap().iter_mut().for_each(|i| i["mtu"] = json!(1500));
        }
        if version < "1.0.0" {
            golden["ips"][0]["version"] = json!("4");
            golden["ips"][1]["version"] = json!("6");
        }
        assert_eq!(json(&outcome), golden, "{version}");
    }
}

#[test]
fn add_behind_other_plugins_passes_their_result_through() {
    let daemon = Daemon::answering(&[(path::ADD, ok(added()))]);
    for version in VERSIONS {
        let mut ip = json!({"interface": 0, "address": "192.0.2.9/24"});
        if version < "1.0.0" {
            ip["version"] = json!("4");
        }
        let mut interface = json!({"name": "vf0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/c1"});
        let mut route = json!({"dst": "198.51.100.0/24"});
        if version == "1.1.0" {
            interface["pciID"] = json!("0000:01:00.1");
            route["table"] = json!(7);
        }
        let prev = json!({
            "cniVersion": version, "interfaces": [interface], "ips": [ip], "routes": [route],
            "dns": {"nameservers": ["192.0.2.1"], "search": ["prev.example"]},
        });
        let outcome = call(
            variables("ADD", "/run/netns/c1"),
            netconf(version, &daemon, &json!({ "prevResult": prev })),
        );
        let result = json(&outcome);
        assert_eq!(result["interfaces"][0], interface, "{version}");
        assert_eq!(result["ips"][0], ip, "{version}");
        assert_eq!(result["routes"][0], route, "{version}");
        assert_eq!(result["interfaces"][3]["name"], "eth0", "{version}");
        assert_eq!((&result["ips"][1]["interface"], &result["ips"][2]["interface"]), (&json!(3), &json!(3)));
        assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.1"], "search": ["prev.example"]}));
    }
}

#[test]
fn add_hands_on_what_was_asked() {
    let daemon = Daemon::answering(&[(path::ADD, ok(added()))]);
    let mut environment = variables("ADD", "/run/netns/c1");
    environment.insert("CNI_ARGS".into(), "K8S_POD_NAME=web;IP=10.0.0.2;IgnoreUnknown=1;X=y".into());
    let keys = json!({"subnet": "10.0.0.0/24", "internal": true, "mtu": 1400,
                      "runtimeConfig": {"portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp"}]}});
    let outcome = call(environment, netconf("1.0.0", &daemon, &keys));
    assert_eq!(outcome.code, 0, "{}", json(&outcome));
    let (asked, request) = daemon.only_request();
    assert_eq!(asked, path::ADD);
    assert_eq!(
        request,
        json!({
            "attachment": {"containerId": "c1", "ifname": "eth0"},
            "netns": "/run/netns/c1",
            "runtime": "testruntime",
            "network": {"name": "blue", "pools": [{"subnet": "10.0.0.0/24"}], "mtu": 1400, "internal": true},
            "options": {
                "ips": ["10.0.0.2/32"],
                "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
                "labels": {"K8S_POD_NAME": "web"},
            },
        })
    );
}

#[test]
fn the_netconf_names_the_runtime_and_the_environment_the_node() {
    let daemon = Daemon::answering(&[(path::ADD, ok(added()))]);
    let mut environment = variables("ADD", "/run/netns/c1");
    environment.insert("WEFT_RUN_DIR".into(), daemon.run_dir().into());
    let outcome = call(environment, r#"{"cniVersion":"1.0.0","name":"blue","runtime":"mine"}"#);
    assert_eq!(outcome.code, 0, "{}", json(&outcome));
    assert_eq!(daemon.only_request().1["runtime"], "mine");
}

#[test]
fn errors_have_the_form_of_the_specification_in_every_version() {
    let daemon = Daemon::answering(&[(path::ADD, refusal(101, "pool full"))]);
    for version in VERSIONS {
        let outcome = call(variables("ADD", "/run/netns/c1"), netconf(version, &daemon, &json!({})));
        assert_eq!(outcome.code, 1);
        let golden = json!({"cniVersion": version, "code": 101, "msg": "pool full", "details": "more"});
        assert_eq!(json(&outcome), golden);
        let outcome = call(variables("ADD", ""), netconf(version, &daemon, &json!({})));
        assert_eq!(
            (outcome.code, &json(&outcome)["cniVersion"], &json(&outcome)["code"]),
            (1, &json!(version), &json!(4))
        );
    }
    for text in ["", "{", r#"{"cniVersion":"9.9.9","name":"blue"}"#] {
        assert_eq!(json(&call(variables("ADD", "/run/netns/c1"), text))["cniVersion"], "1.1.0", "{text}");
    }
}

#[test]
fn bad_input_never_reaches_ipamd() {
    let daemon = Daemon::answering(&[(path::ADD, ok(added()))]);
    let sound = netconf("1.0.0", &daemon, &json!({}));
    let with = |name: &str, value: &str| {
        let mut environment = variables("ADD", "/run/netns/c1");
        environment.insert(name.into(), value.into());
        environment
    };
    let plain = || variables("ADD", "/run/netns/c1");
    for (environment, stdin, code) in [
        (with("CNI_CONTAINERID", "../x"), sound.clone(), 4),
        (with("CNI_CONTAINERID", ""), sound.clone(), 4),
        (with("CNI_IFNAME", "sixteen-letters-"), sound.clone(), 4),
        (with("CNI_IFNAME", "a/b"), sound.clone(), 4),
        (with("CNI_NETNS", ""), sound.clone(), 4),
        (with("CNI_NETNS", "run/netns/c1"), sound.clone(), 4),
        (with("CNI_ARGS", "FOO=bar"), sound.clone(), 4),
        (with("CNI_COMMAND", "UPDATE"), sound, 4),
        (plain(), "not json".into(), 6),
        (plain(), netconf("0.2.0", &daemon, &json!({})), 1),
        (plain(), netconf("1.0.0", &daemon, &json!({"subnet": "10.0.0.0/99"})), 7),
        (plain(), netconf("1.0.0", &daemon, &json!({"mtu": []})), 6),
        (plain(), netconf("1.0.0", &daemon, &json!({"prevResult": {"ips": 1}})), 6),
    ] {
        let outcome = call(environment, stdin.clone());
        assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(code)), "{stdin}: {}", json(&outcome));
    }
    assert_eq!(daemon.requests(), 0);
}

#[test]
fn without_ipamd_an_add_is_to_be_tried_again() {
    let nobody = tempfile::tempdir().unwrap();
    let dying = Daemon::answering(&[(path::ADD, None), (path::GC, None), (path::CHECK, None)]);
    let skewed = Daemon::answering(&[(path::ADD, ok(json!({"endpoint": "zero"})))]);
    for (run_dir, code) in [(nobody.path(), 11), (dying.run_dir(), 11), (skewed.run_dir(), 5)] {
        let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "runDir": run_dir});
        let outcome = call(variables("ADD", "/run/netns/c1"), stdin.to_string());
        assert_eq!(json(&outcome)["code"], code, "{}", json(&outcome));
    }
    for verb in ["GC", "CHECK"] {
        let outcome =
            call(variables(verb, "/run/netns/c1"), netconf("1.1.0", &dying, &json!({"prevResult": {}})));
        assert_eq!(json(&outcome)["code"], 11, "{verb}");
    }
}

#[test]
fn del_sends_the_evidence_it_has() {
    let daemon = Daemon::answering(&[(path::DEL, ok(json!({"freed": "0123456789ab"})))]);
    let mut prev = added();
    prev["cniVersion"] = json!("1.0.0");
    let outcome = call(
        variables("DEL", "/proc/self/ns/net"),
        netconf("1.0.0", &daemon, &json!({ "prevResult": prev })),
    );
    assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
    let request = daemon.only_request().1;
    let cookie = ipamd_api::netns::own_cookie().unwrap();
    assert_eq!(
        request,
        json!({"attachment": {"containerId": "c1", "ifname": "eth0"}, "network": "blue",
               "evidence": {"endpoint": "0123456789ab", "cookie": cookie}})
    );
}

#[test]
fn del_works_with_next_to_nothing() {
    for keys in [
        json!({}),
        json!({"prevResult": null}),
        json!({"prevResult": {"interfaces": "broken"}}),
        json!({"subnet": "no cidr", "mtu": "x", "ipam": {"type": "host-local"}, "runtimeConfig": 7}),
    ] {
        for netns in ["", "/does/not/exist", "/etc/hostname"] {
            let daemon = Daemon::answering(&[(path::DEL, ok(json!({})))]);
            let mut environment = variables("DEL", netns);
            environment.insert("CNI_ARGS".into(), "no pairs at all".into());
            let outcome = call(environment, netconf("0.3.1", &daemon, &keys));
            assert_eq!(outcome.code, 0, "{keys}: {}", String::from_utf8_lossy(&outcome.stdout));
            assert_eq!(daemon.only_request().1["evidence"], json!({}), "{keys}");
        }
    }
}

#[test]
fn del_without_ipamd_leaves_a_record_and_succeeds() {
    // Away, dying during the call, starting, and answering half.
    let daemons = [
        Daemon::answering(&[(path::DEL, None)]),
        Daemon::answering(&[(path::DEL, refusal(11, "starting"))]),
        Daemon::answering(&[(path::DEL, refusal(50, "not ready"))]),
        Daemon::answering(&[(path::DEL, ok(json!("what?")))]),
    ];
    let nobody = tempfile::tempdir().unwrap();
    let run_dirs = daemons.iter().map(Daemon::run_dir).chain([nobody.path()]);
    for run_dir in run_dirs {
        let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "runDir": run_dir, "prevResult": added()});
        let outcome = call(variables("DEL", ""), stdin.to_string());
        assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("released"), "{}", outcome.stderr);
        let request = only_record(run_dir).request;
        assert_eq!((request.attachment.to_string().as_str(), request.network.as_str()), ("c1/eth0", "blue"));
        assert_eq!(request.evidence.endpoint, EndpointId::new(0x0123_4567_89ab));
        assert_eq!(request.evidence.cookie, None);
    }
}

#[test]
fn del_does_not_wait_for_a_daemon_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    // It takes connections into its backlog and never reads.
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join(ipamd_api::SOCKET_NAME)).unwrap();
    let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "runDir": dir.path()});
    let outcome = call(variables("DEL", ""), stdin.to_string());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(only_record(dir.path()).request.evidence, ipamd_api::Evidence::default());
}

#[test]
fn del_that_can_leave_no_record_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(ipamd_api::RELEASED_DIR), "a file where the folder should be").unwrap();
    let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "runDir": dir.path()});
    let outcome = call(variables("DEL", ""), stdin.to_string());
    assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(113)));
    assert!(json(&outcome)["details"].as_str().unwrap().contains("released"), "{}", json(&outcome));
}

#[test]
fn del_reports_what_ipamd_refuses_for_good() {
    let daemon = Daemon::answering(&[(path::DEL, refusal(114, "not you"))]);
    let outcome = call(variables("DEL", ""), netconf("1.0.0", &daemon, &json!({})));
    assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(114)));
    assert!(!daemon.run_dir().join(ipamd_api::RELEASED_DIR).exists());
}

#[test]
fn check_expects_the_addresses_of_its_own_interface() {
    let daemon = Daemon::answering(&[(path::CHECK, ok(json!({})))]);
    let prev = json!({
        "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}, {"name": "eth1", "sandbox": "/run/netns/c1"}],
        "ips": [
            {"version": "4", "interface": 1, "address": "10.0.0.2/24"},
            {"version": "6", "interface": 1, "address": "fd00::2/64"},
            {"version": "4", "interface": 0, "address": "10.0.0.3/24"},
            {"version": "4", "interface": 2, "address": "10.0.0.4/24"},
            {"version": "4", "address": "10.0.0.5/24"},
        ],
    });
    let outcome =
        call(variables("CHECK", "/run/netns/c1"), netconf("0.4.0", &daemon, &json!({ "prevResult": prev })));
    assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
    assert_eq!(
        daemon.only_request().1,
        json!({"attachment": {"containerId": "c1", "ifname": "eth0"}, "network": "blue", "netns": "/run/netns/c1",
               "expectedIps": ["10.0.0.2/24", "fd00::2/64"]})
    );
}

#[test]
fn check_needs_a_result_and_reports_what_differs() {
    let daemon = Daemon::answering(&[(path::CHECK, refusal(111, "route is gone"))]);
    let outcome = call(variables("CHECK", "/run/netns/c1"), netconf("1.0.0", &daemon, &json!({})));
    assert_eq!(json(&outcome)["code"], 7, "{}", json(&outcome));
    let outcome =
        call(variables("CHECK", "/run/netns/c1"), netconf("1.0.0", &daemon, &json!({"prevResult": {}})));
    assert_eq!((&json(&outcome)["code"], &json(&outcome)["msg"]), (&json!(111), &json!("route is gone")));
}

#[test]
fn verbs_begin_with_their_version() {
    let daemon = Daemon::answering(&[
        (path::CHECK, ok(json!({}))),
        (path::GC, ok(json!({"freed": []}))),
        (path::STATUS, ok(status(true, &[]))),
    ]);
    for (verb, first) in [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
        for version in VERSIONS {
            let stdin = netconf(version, &daemon, &json!({"prevResult": {}}));
            let outcome = call(variables(verb, "/run/netns/c1"), stdin);
            if version >= first {
                assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]), "{verb} {version}");
            } else {
                assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(1)), "{verb} {version}");
                assert_eq!(json(&outcome)["cniVersion"], version);
            }
        }
    }
}

fn status(ready: bool, parts: &[(&str, &str)]) -> Value {
    let parts: Vec<_> = parts
        .iter()
        .map(|(part, health)| json!({"part": part, "health": health, "message": format!("{part} is {health}")}))
        .collect();
    json!({"version": "0.1.0", "apiVersion": 1, "node": "n1", "bootId": "b", "pid": 1, "uptimeSeconds": 1,
           "ready": ready, "parts": parts, "networks": 0, "endpoints": 0, "drops": []})
}

#[test]
fn status_is_success_exactly_when_an_add_would_work() {
    for (answer, code) in [
        (ok(status(true, &[("store", "ok")])), None),
        (ok(status(true, &[("datapath", "degraded")])), None),
        (ok(status(false, &[("store", "failed")])), Some(50)),
        (ok(status(false, &[("store", "failed"), ("datapath", "degraded")])), Some(51)),
        (ok(status(false, &[])), Some(50)),
        (refusal(114, "not you"), Some(114)),
        (ok(json!({})), Some(50)),
        (None, Some(50)),
    ] {
        let daemon = Daemon::answering(&[(path::STATUS, answer.clone())]);
        let outcome = call(variables("STATUS", ""), netconf("1.1.0", &daemon, &json!({})));
        match code {
            None => assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..])),
            Some(code) => {
                assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(code)), "{answer:?}");
            }
        }
    }
    let nobody = tempfile::tempdir().unwrap();
    let stdin = json!({"cniVersion": "1.1.0", "name": "blue", "runDir": nobody.path()});
    let error = json(&call(variables("STATUS", ""), stdin.to_string()));
    assert_eq!(error["code"], 50);
    assert!(error["msg"].as_str().unwrap().contains("start ipamd"), "{error}");
}

#[test]
fn gc_sends_runtime_network_and_list() {
    let kept = json!([{"containerId": "alive", "ifname": "eth0"}]);
    for (keys, valid) in [
        (
            json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth1"}]}),
            json!([{"containerId": "c2", "ifname": "eth1"}]),
        ),
        (json!({"cni.dev/valid-attachments": null}), json!([])),
        (json!({"cni.dev/attachments": []}), json!([])),
        (json!({}), Value::Null),
    ] {
        let daemon = Daemon::answering(&[(path::GC, ok(json!({"freed": [], "kept": kept})))]);
        let outcome = call(variables("GC", ""), netconf("1.1.0", &daemon, &keys));
        assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
        assert!(outcome.stderr.contains("alive/eth0"), "{}", outcome.stderr);
        let request = daemon.only_request().1;
        assert_eq!((&request["network"], &request["runtime"]), (&json!("blue"), &json!("testruntime")));
        assert_eq!(request["valid"], valid, "{keys}");
    }
}

#[test]
fn version_reads_nothing() {
    let outcome = weft::run(weft::Call {
        program: weft::Program::Weft,
        variables: variables("VERSION", ""),
        stdin: Box::new(|| panic!("VERSION read standard input")),
        caller: Box::new(|_| None),
        del_limit: weft::DEL_LIMIT,
    });
    assert_eq!(outcome.code, 0);
    assert_eq!(json(&outcome), json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let outcome = call([].into(), "");
    assert_eq!((outcome.code, &outcome.stdout[..]), (0, &b""[..]));
    assert!(outcome.stderr.starts_with("CNI plugin weft v"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", outcome.stderr);
}

#[test]
fn input_that_cannot_be_read_is_an_io_error() {
    let outcome = weft::run(weft::Call {
        program: weft::Program::Weft,
        variables: variables("ADD", "/run/netns/c1"),
        stdin: Box::new(|| Err(std::io::Error::other("pipe burst"))),
        caller: Box::new(|_| None),
        del_limit: weft::DEL_LIMIT,
    });
    assert_eq!((outcome.code, &json(&outcome)["code"]), (1, &json!(5)));
    assert!(json(&outcome)["msg"].as_str().unwrap().contains("pipe burst"));
}
