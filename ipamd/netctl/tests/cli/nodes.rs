//! Nodes of the cluster, and the doctor.

use super::{
    around,
    daemon::{Daemon, endpoint, json, nodes, silent},
    golden, run,
};
use ipamd_api::{
    ApiError, Diagnosis, Drained, ErrorCode, Finding, GcResponse, Inspection, NodeRemoved, Severity, path,
};
use netctl::{Exit, LegacyTables, Surroundings};
use serde_json::{Value, json};

fn cluster() -> Daemon {
    let peer = Inspection::Peer { node: nodes().remove(1), findings: vec![silent()] };
    let well = Inspection::Peer { node: nodes().remove(2), findings: vec![] };
    let diagnosis = Diagnosis {
        node: "n1".to_owned(),
        checks: vec!["parts".to_owned(), "nodes".to_owned()],
        findings: vec![
            Finding { severity: Severity::Error, object: "store".to_owned(), ..silent() },
            silent(),
            Finding { severity: Severity::Note, object: "node n3".to_owned(), ..silent() },
        ],
        vxlan_ports: vec![4789],
    };
    let removed = NodeRemoved { name: "n2".to_owned(), freed: 2 };
    let drained = Drained { name: "n3".to_owned(), draining: true, changed: true };
    Daemon::start(&[
        ("GET /v1/nodes", 200, json(&nodes())),
        ("GET /v1/inspect/n2", 200, json(&peer)),
        ("GET /v1/inspect/node/n2", 200, json(&peer)),
        ("GET /v1/inspect/node/n3", 200, json(&well)),
        ("GET /v1/doctor", 200, json(&diagnosis)),
        ("POST /v1/remove-node", 200, json(&removed)),
        ("POST /v1/drain-node", 200, json(&drained)),
    ])
}

#[test]
fn nodes_are_listed_shown_drained_and_removed() {
    let daemon = cluster();
    for (name, arguments, exit) in [
        ("node-ls.txt", &["node", "ls"][..], Exit::Done),
        ("node-ls.yaml", &["node", "ls", "-o", "yaml"], Exit::Done),
        ("node-inspect.txt", &["node", "inspect", "n2"], Exit::Refused),
        ("node-inspect.txt", &["inspect", "n2"], Exit::Refused),
        ("node-inspect.txt", &["inspect", "node", "n2"], Exit::Refused),
        ("node-inspect-well.txt", &["node", "inspect", "n3"], Exit::Done),
        ("node-drain.txt", &["node", "drain", "n3"], Exit::Done),
        ("node-rm.txt", &["node", "rm", "n2", "--force"], Exit::Done),
        ("doctor.txt", &["doctor"], Exit::Refused),
        ("doctor.json", &["doctor", "-o", "json"], Exit::Refused),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
    let asked: Vec<_> = daemon.requests().into_iter().filter(|(call, _)| call.starts_with("POST")).collect();
    let expected = [
        (format!("POST {}", path::DRAIN_NODE), json!({"name": "n3", "draining": true})),
        (format!("POST {}", path::REMOVE_NODE), json!({"name": "n2", "force": true})),
    ];
    assert_eq!(asked, expected);
}

#[test]
fn what_is_refused_and_what_cannot_be_meant_is_said() {
    let alive = ApiError::new(ErrorCode::NodeInUse, "node n2 is alive");
    let daemon = Daemon::start(&[("POST /v1/remove-node", 409, json(&alive))]);
    let ran = run(&daemon, &["node", "rm", "n2"]);
    assert_eq!(ran.exit, Exit::Refused);
    assert!(
        ran.err.contains("node n2 is alive (code 119)") && ran.err.contains("next: Stop ipamd"),
        "{}",
        ran.err
    );
    for arguments in
        [&["inspect", "pod", "x"][..], &["inspect", "node", "a/b"], &["inspect"], &["node", "rm"]]
    {
        assert_eq!(run(&daemon, arguments).exit, Exit::Usage, "{arguments:?}");
    }
}

#[test]
fn a_doctor_who_finds_only_notes_ends_with_0() {
    let note = Finding { severity: Severity::Note, ..silent() };
    for (findings, exit) in [(vec![], Exit::Done), (vec![note], Exit::Done), (vec![silent()], Exit::Refused)]
    {
        let diagnosis = Diagnosis { node: "n1".to_owned(), checks: vec![], findings, vxlan_ports: vec![] };
        let daemon = Daemon::start(&[("GET /v1/doctor", 200, json(&diagnosis))]);
        assert_eq!(run(&daemon, &["doctor"]).exit, exit);
    }
}

#[test]
fn a_doctor_looks_at_the_host_where_netctl_is_called() {
    let daemon = Daemon::start(&[(
        "GET /v1/doctor",
        200,
        json!({"node": "n1", "checks": ["clock"], "findings": [], "vxlanPorts": [8472]}),
    )]);
    let rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 8472 -j DROP\nCOMMIT\n";
    let legacy = || {
        let tables = vec!["filter".to_owned()];
        vec![LegacyTables { family: "ip", tables, saved: Ok(rules.to_owned()) }]
    };
    let look = |synchronised: &dyn Fn() -> Result<bool, String>| {
        let around = Surroundings { legacy: &legacy, synchronised, ..around() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let arguments = ["netctl", "--run-dir", daemon.run_dir().to_str().unwrap(), "doctor", "-o", "json"];
        assert_eq!(netctl::run(arguments, &around, &mut out, &mut err), Exit::Done, "notes are no faults");
        let said: Diagnosis = serde_json::from_slice(&out).unwrap();
        assert_eq!(said.checks, ["clock", "firewall"], "each is named once");
        let found = said.findings.into_iter();
        found.map(|f| (f.check, format!("{} {}", f.object, f.message))).collect::<Vec<_>>()
    };
    let found = look(&|| Ok(true));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].1.contains("INPUT of table filter of iptables-legacy has rules for UDP port 8472"),
        "{found:?}"
    );
    for (said, part) in
        [(Ok(false), "no time service keeps it"), (Err("EPERM".to_owned()), "not known: EPERM")]
    {
        let found = look(&|| said.clone());
        assert_eq!((found.len(), &*found[1].0), (2, "clock"), "{found:?}");
        assert!(found[1].1.contains(part), "{found:?}");
    }
}

#[test]
fn a_doctor_mends_what_is_safe_and_says_what_it_did() {
    let freed = GcResponse { freed: vec![endpoint().attachment], kept: vec![] };
    let of = |check: &str, severity| Finding { check: check.to_owned(), severity, ..silent() };
    let doctor = |findings: Vec<Finding>| {
        let checks = vec!["endpoints".to_owned()];
        let diagnosis = Diagnosis { node: "n1".to_owned(), checks, findings, vxlan_ports: vec![] };
        Daemon::start(&[
            ("GET /v1/doctor", 200, json(&diagnosis)),
            ("POST /v1/attachments/gc", 200, json(&freed)),
        ])
    };
    let calls = |daemon: &Daemon| daemon.requests().into_iter().map(|(call, _)| call).collect::<Vec<_>>();
    let daemon = doctor(vec![of("endpoints", Severity::Error), of("nodes", Severity::Error)]);
    let ran = run(&daemon, &["doctor", "--fix"]);
    // It is looked at again, and here nothing has changed.
    assert_eq!(calls(&daemon), ["GET /v1/doctor", "POST /v1/attachments/gc", "GET /v1/doctor"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Refused, ""));
    golden("doctor-fix.txt", &ran.out);
    let ran = run(&daemon, &["doctor", "--fix", "-o", "json"]);
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(said["fixed"].as_array().unwrap().len(), 2, "{said}");

    for findings in [vec![], vec![of("nodes", Severity::Error)], vec![of("endpoints", Severity::Note)]] {
        let daemon = doctor(findings);
        let ran = run(&daemon, &["doctor", "--fix"]);
        assert_eq!(calls(&daemon), ["GET /v1/doctor"]);
        assert!(ran.out.starts_with("fixed: nothing"), "{}", ran.out);
    }
    let daemon = doctor(vec![of("endpoints", Severity::Error)]);
    run(&daemon, &["doctor"]);
    assert_eq!(calls(&daemon), ["GET /v1/doctor"]);
}
