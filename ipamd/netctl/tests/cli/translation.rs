//! Published ports, flows, counts of drops, and the end.

use crate::{
    daemon::{Daemon, bare_endpoint, endpoint, flows, json, published, reasons},
    golden, run,
};
use ipamd_api::{ApiError, ErrorCode, FlowList, Flushed, Uninstalled};
use netctl::Exit;
use serde_json::{Value, json};

fn node() -> Daemon {
    let list = FlowList { flows: flows(), matching: 4, total: 120, capacity: 65_536 };
    let gone = Uninstalled { removed: vec!["2 bridges".to_owned(), "14 pins".to_owned()], left: vec![] };
    Daemon::start(&[
        ("GET /v1/endpoints", 200, json(&[endpoint(), bare_endpoint()])),
        ("GET /v1/publish", 200, json(&published())),
        ("POST /v1/publish", 200, json(&published()[2..].to_vec())),
        ("POST /v1/unpublish", 200, json!({})),
        ("POST /v1/flows", 200, json(&list)),
        ("POST /v1/flows/flush", 200, json(&Flushed { removed: 1 })),
        ("GET /v1/drops", 200, json(&reasons())),
        ("POST /v1/uninstall", 200, json(&gone)),
    ])
}

#[test]
fn each_command_prints_what_its_golden_file_has() {
    let daemon = node();
    for (name, arguments) in [
        ("publish-ls.txt", &["publish", "ls"][..]),
        ("publish-ls.json", &["publish", "ls", "-o", "json"]),
        ("publish-ls.yaml", &["publish", "ls", "-o", "yaml"]),
        ("publish-add.txt", &["publish", "add", "short", "[::1]::443"]),
        ("publish-rm.txt", &["publish", "rm", "short", "[::1]:20000"]),
        ("conntrack-ls.txt", &["conntrack", "ls"]),
        ("conntrack-ls.yaml", &["conntrack", "ls", "-o", "yaml"]),
        ("conntrack-flush.txt", &["conntrack", "flush", "--all"]),
        ("conntrack-flush.json", &["conntrack", "flush", "--all", "-o", "json"]),
        ("drops.txt", &["drops"]),
        ("drops-all.txt", &["drops", "--all"]),
        ("drops.json", &["drops", "-o", "json"]),
        ("uninstall.txt", &["uninstall"]),
        ("help-publish-add.txt", &["publish", "add", "--help"]),
        ("help-conntrack-flush.txt", &["conntrack", "flush", "--help"]),
        ("help-drops.txt", &["drops", "--help"]),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
}

/// The one request of a command line that is no question for names.
fn asked(arguments: &[&str]) -> (String, Value) {
    let daemon = node();
    let ran = run(&daemon, arguments);
    assert_eq!(ran.exit, Exit::Done, "{arguments:?}: {}", ran.err);
    let mut requests = daemon.requests();
    requests.retain(|(call, _)| call != "GET /v1/endpoints");
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.remove(0)
}

#[test]
fn requests_say_what_was_said_and_nothing_else() {
    for (arguments, call, body) in [
        (&["publish", "ls"][..], "GET /v1/publish", Value::Null),
        (
            &["publish", "add", "3f2a", "8080:80"],
            "POST /v1/publish",
            json!({"container": "3f2a", "mappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}),
        ),
        (
            &[
                "publish",
                "add",
                "3f2a",
                "[::1]:8000-8009:80-89/udp",
                "53",
                "--network",
                "web",
                "--allow-from",
                "192.0.2.0/24",
                "--allow-from",
                "2001:db8::1",
            ],
            "POST /v1/publish",
            json!({"container": "3f2a", "network": "web", "mappings": [
                {"hostPort": 8000, "containerPort": 80, "count": 10, "protocol": "udp", "hostIp": "::1",
                 "allowFrom": ["192.0.2.0/24", "2001:db8::1/128"]},
                {"hostPort": 0, "containerPort": 53, "protocol": "tcp",
                 "allowFrom": ["192.0.2.0/24", "2001:db8::1/128"]},
            ]}),
        ),
        (
            &["publish", "rm", "3f2a", "127.0.0.1:8080/udp"],
            "POST /v1/unpublish",
            json!({"container": "3f2a", "hostPort": 8080, "protocol": "udp", "hostIp": "127.0.0.1"}),
        ),
        (&["conntrack", "ls"], "POST /v1/flows", json!({})),
        (
            &[
                "conntrack",
                "ls",
                "--container",
                "web-0",
                "--protocol",
                "TCP",
                "--address",
                "10.0.0.0/8",
                "--port",
                "443",
                "--state",
                "half-closed",
                "--kind",
                "masquerade",
                "--limit",
                "5",
            ],
            "POST /v1/flows",
            json!({"container": "web-0", "protocol": "tcp", "address": "10.0.0.0/8", "port": 443,
                   "state": "half-closed", "kind": "masquerade", "limit": 5}),
        ),
        (
            &["conntrack", "flush", "--protocol", "47", "--address", "10.0.0.1"],
            "POST /v1/flows/flush",
            json!({"protocol": "47", "address": "10.0.0.1/32"}),
        ),
        (&["conntrack", "flush", "--all"], "POST /v1/flows/flush", json!({})),
        (&["conntrack", "flush", "--all", "--limit", "9"], "POST /v1/flows/flush", json!({"limit": 9})),
        (&["drops", "--all"], "GET /v1/drops", Value::Null),
        (&["uninstall"], "POST /v1/uninstall", json!({"force": false})),
        (&["uninstall", "--force"], "POST /v1/uninstall", json!({"force": true})),
    ] {
        assert_eq!(asked(arguments), (call.to_owned(), body), "{arguments:?}");
    }
}

#[test]
fn programs_get_the_views_of_the_api_and_no_question_for_names_is_asked() {
    let daemon = node();
    for (arguments, wanted) in [
        (&["publish", "ls", "-o", "json"][..], json(&published())),
        (&["conntrack", "flush", "--state", "closed", "-o", "json"], json!({"removed": 1})),
        (&["drops", "-o", "json"], json(&reasons())),
    ] {
        let printed: Value = serde_json::from_str(&run(&daemon, arguments).out).unwrap();
        assert_eq!(printed, wanted, "{arguments:?}");
    }
    assert!(!daemon.requests().iter().any(|(call, _)| call == "GET /v1/endpoints"));
}

#[test]
fn empty_lists_say_so_and_ask_for_no_names() {
    let none = FlowList { flows: vec![], matching: 0, total: 0, capacity: 8 };
    let mut quiet = reasons();
    quiet.iter_mut().for_each(|r| r.packets = 0);
    let daemon = Daemon::start(&[
        ("GET /v1/publish", 200, json!([])),
        ("POST /v1/flows", 200, json(&none)),
        ("GET /v1/drops", 200, json(&quiet)),
        ("POST /v1/uninstall", 200, json(&Uninstalled::default())),
    ]);
    for (arguments, end) in [
        (&["publish", "ls"][..], "ALLOW FROM\n"),
        (&["conntrack", "ls"], "\n0 flows match; 0 in all, the table takes 8\n"),
        (&["drops"], "nothing was dropped since the maps were made; --all lists the reasons\n"),
        (&["uninstall"], "there was nothing to remove\n"),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""), "{arguments:?}");
        assert!(ran.out.ends_with(end), "{arguments:?}: {}", ran.out);
    }
}

#[test]
fn a_list_that_is_cut_short_says_how_much_there_is() {
    let list = FlowList { flows: flows()[..1].to_vec(), matching: 3000, total: 5000, capacity: 65_536 };
    let daemon = Daemon::start(&[
        ("GET /v1/endpoints", 200, json(&[endpoint()])),
        ("POST /v1/flows", 200, json(&list)),
    ]);
    let ran = run(&daemon, &["conntrack", "ls"]);
    let last = "3000 flows match, 1 shown (--limit); 5000 in all, the table takes 65536\n";
    assert!(ran.out.ends_with(last), "{}", ran.out);
}

#[test]
fn an_uninstall_that_leaves_something_ends_with_1() {
    let done = Uninstalled { removed: vec![], left: vec!["bridge wf-1: Device or resource busy".to_owned()] };
    let daemon = Daemon::start(&[("POST /v1/uninstall", 200, json(&done))]);
    let ran = run(&daemon, &["uninstall"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Refused, ""));
    assert_eq!(ran.out, "left bridge wf-1: Device or resource busy\n");
}

#[test]
fn a_taken_port_is_a_refusal_with_the_holder() {
    let error = ApiError::new(ErrorCode::PortTaken, "host port 8080/tcp is held by nginx (pid 17)");
    let daemon = Daemon::start(&[("POST /v1/publish", 409, json(&error))]);
    let ran = run(&daemon, &["publish", "add", "web", "8080:80"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
    assert!(ran.err.contains("nginx (pid 17)") && ran.err.contains("next: "), "{}", ran.err);
}

#[test]
fn usage_errors_end_with_2_and_ask_nothing() {
    let daemon = node();
    for (arguments, part) in [
        (&["publish", "add", "web"][..], "<PORTS>"),
        (&["publish", "add", "web", "8000-8009:80"], "both ranges need the same length"),
        (&["publish", "add", "web", "80:80", "::1:80:80"], "an IPv6 address stands in brackets"),
        (&["publish", "add", "web", "80:80", "--allow-from", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["publish", "rm", "web"], "<PORT>"),
        (&["publish", "rm", "web", "8000-8009"], "give its first port"),
        (&["conntrack", "ls", "--all"], "unexpected argument '--all'"),
        (&["conntrack", "ls", "--state", "open"], "possible values: unreplied, opening"),
        (&["conntrack", "ls", "--kind", "nat"], "possible values: masquerade, published"),
        (&["conntrack", "ls", "--protocol", "256"], "a number from 0 to 255"),
        (&["conntrack", "ls", "--port", "65536"], "65536 is not in 0..=65535"),
        (&["conntrack", "flush"], "every flow would be removed; say which, or --all"),
        (&["conntrack", "flush", "--limit", "3"], "every flow would be removed; say which, or --all"),
        (&["conntrack", "flush", "--all", "--port", "1"], "contradict each other"),
        (&["drops", "--reason", "isolated"], "--follow"),
        (&["drops", "--container", "web"], "--follow"),
        (&["drops", "--all", "--follow"], "cannot be used with"),
        (&["uninstall", "now"], "unexpected argument 'now'"),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Usage, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(part), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(daemon.requests(), []);
}

#[test]
fn text_of_others_cannot_steer_the_terminal() {
    let mut hostile = flows();
    hostile[0].protocol = "t\x1b[2Jcp".to_owned();
    let mut ports = published();
    ports[0].network = "\x1b[31m".to_owned();
    let list = FlowList { flows: hostile, matching: 4, total: 4, capacity: 8 };
    let left = Uninstalled { removed: vec![], left: vec!["\x1b[2J".to_owned()] };
    let daemon = Daemon::start(&[
        ("GET /v1/endpoints", 200, json!([])),
        ("GET /v1/publish", 200, json(&ports)),
        ("POST /v1/flows", 200, json(&list)),
        ("POST /v1/uninstall", 200, json(&left)),
        ("POST /v1/unpublish", 200, json!({})),
    ]);
    for arguments in
        [&["publish", "ls"][..], &["conntrack", "ls"], &["uninstall"], &["publish", "rm", "\x1b[2J", "80"]]
    {
        let ran = run(&daemon, arguments);
        assert!(ran.out.contains("\\u{1b}") && !ran.out.contains('\x1b'), "{:?}", ran.out);
    }
}
