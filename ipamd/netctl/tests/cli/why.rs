//! `trace`, `flows` and `top`.

use crate::{
    around,
    daemon::{Daemon, bare_endpoint, endpoint, flows, json, web},
    golden, run,
};
use ipamd_api::{
    EndpointTraffic, FlowList, Trace, TraceElsewhere, TraceEntry, TraceHop, TraceVerdict, TrafficCounters,
    TrafficSample,
};
use netctl::{Exit, Surroundings};
use serde_json::{Value, json};
use std::io::{self, Write};

fn traced(verdict: TraceVerdict) -> Trace {
    let hop = |hop: &str, interface: &str, decision: &str, entries| TraceHop {
        node: "n1".to_owned(),
        hop: hop.to_owned(),
        interface: interface.to_owned(),
        decision: decision.to_owned(),
        packet: "tcp 10.89.0.130:60999 > 10.90.0.2:80 [S]".to_owned(),
        entries,
    };
    let pool = TraceEntry {
        map: "POOLS4".to_owned(),
        key: "10.90.0.0/24".to_owned(),
        value: "network plain".to_owned(),
    };
    let dropped = verdict == TraceVerdict::Dropped;
    // It went to another node, which has said the rest.
    let far = verdict == TraceVerdict::Delivered;
    let decision = if dropped { "drops it: isolated" } else { "out by a device of its choice" };
    let mut hops = vec![
        hop("sandbox", "eth0", "routed via 10.89.0.1", vec![]),
        hop("from_pod", "wf000012345678", decision, vec![pool.clone()]),
    ];
    if far {
        let into = "straight into the sandbox of db/eth0 on network blue";
        hops.push(TraceHop { node: "n2".to_owned(), ..hop("from_netdev", "up0", into, vec![pool]) });
    }
    Trace {
        packet: "tcp 10.89.0.130:60999 > 10.90.0.2:80 [S]".to_owned(),
        hops,
        verdict,
        node: if far { "n2" } else { "n1" }.to_owned(),
        reason: dropped.then(|| "isolated".to_owned()),
        summary: if dropped { "dropped as isolated" } else { "leaves by the VXLAN device to node n2" }
            .to_owned(),
        advice: dropped.then(|| "networks are kept apart".to_owned()),
        elsewhere: (!dropped && !far).then(|| TraceElsewhere {
            node: "n2".to_owned(),
            command: "netctl trace 10.89.0.130 10.90.0.2:80/tcp".to_owned(),
        }),
        not_asked: vec!["the host's firewall".to_owned()],
    }
}

fn sample() -> TrafficSample {
    let of = |view: ipamd_api::EndpointView| EndpointTraffic {
        endpoint: view.endpoint,
        attachment: view.attachment,
        network: view.network,
        counters: TrafficCounters { rx_bytes: 7, ..TrafficCounters::default() },
    };
    TrafficSample { time_ms: 1_000, endpoints: vec![of(endpoint()), of(bare_endpoint())] }
}

fn node(verdict: TraceVerdict) -> Daemon {
    let list = FlowList { flows: flows(), matching: 6, total: 120, capacity: 65_536 };
    Daemon::start(&[
        ("GET /v1/endpoints", 200, json(&[endpoint(), bare_endpoint()])),
        ("GET /v1/networks/web", 200, json(&web())),
        ("POST /v1/flows", 200, json(&list)),
        ("GET /v1/traffic", 200, json(&sample())),
        ("POST /v1/trace", 200, json(&traced(verdict))),
    ])
}

#[test]
fn each_command_prints_what_its_golden_file_has() {
    for (name, arguments, verdict, exit) in [
        ("trace.txt", &["trace", "3f2a", "10.90.0.2:80"][..], TraceVerdict::Dropped, Exit::Refused),
        (
            "trace.json",
            &["trace", "3f2a", "10.90.0.2:80", "-o", "json"],
            TraceVerdict::Dropped,
            Exit::Refused,
        ),
        ("trace-continues.txt", &["trace", "3f2a", "10.90.0.2:80"], TraceVerdict::Continues, Exit::Done),
        ("trace-far.txt", &["trace", "3f2a", "10.90.0.2:80"], TraceVerdict::Delivered, Exit::Done),
        (
            "trace-far.json",
            &["trace", "3f2a", "10.90.0.2:80", "-o", "json"],
            TraceVerdict::Delivered,
            Exit::Done,
        ),
        ("flows.txt", &["flows"], TraceVerdict::Dropped, Exit::Done),
        ("flows.yaml", &["flows", "-o", "yaml"], TraceVerdict::Dropped, Exit::Done),
        ("top.txt", &["top", "--once", "--interval", "0.05"], TraceVerdict::Dropped, Exit::Done),
        (
            "top.json",
            &["top", "-n", "1", "--interval", "0.05", "-o", "json"],
            TraceVerdict::Dropped,
            Exit::Done,
        ),
        (
            "top-network.txt",
            &["top", "--once", "--interval", "0.05", "--network", "web"],
            TraceVerdict::Dropped,
            Exit::Done,
        ),
        ("help-trace.txt", &["trace", "--help"], TraceVerdict::Dropped, Exit::Done),
        ("help-flows.txt", &["flows", "--help"], TraceVerdict::Dropped, Exit::Done),
        ("help-top.txt", &["top", "--help"], TraceVerdict::Dropped, Exit::Done),
    ] {
        let ran = run(&node(verdict), arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
}

#[test]
fn requests_say_what_was_said_and_nothing_else() {
    for (arguments, body) in [
        (&["trace", "3f2a", "web-0"][..], json!({"from": "3f2a", "to": "web-0", "protocol": "icmp"})),
        (
            &["trace", "192.0.2.9", "[fd00::5]:53/udp"],
            json!({"from": "192.0.2.9", "to": "fd00::5", "port": 53, "protocol": "udp"}),
        ),
        (&["flows"], json!({})),
        (
            &["flows", "--network", "web", "--proto", "tcp", "--port", "80", "--limit", "3"],
            json!({"network": "web", "protocol": "tcp", "port": 80, "limit": 3}),
        ),
    ] {
        let daemon = node(TraceVerdict::Continues);
        let ran = run(&daemon, arguments);
        assert_eq!(ran.exit, Exit::Done, "{arguments:?}: {}", ran.err);
        let asked: Vec<Value> =
            daemon.requests().into_iter().filter(|(c, _)| c.starts_with("POST")).map(|r| r.1).collect();
        assert_eq!(asked, [body], "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_asked_of_nobody() {
    for arguments in [
        &["trace", "web"][..],
        &["trace", "web", "10.0.0.1/tcp"],
        &["trace", "web", "10.0.0.1:80/icmp"],
        &["flows", "--interval", "1"],
        &["flows", "--follow", "--interval", "0"],
        &["top", "-n", "0"],
        &["top", "-n", "2", "--once"],
        &["top", "--interval", "1e9"],
        &["top", "--interval", "NaN"],
    ] {
        let daemon = node(TraceVerdict::Delivered);
        let ran = run(&daemon, arguments);
        assert_eq!(ran.exit, Exit::Usage, "{arguments:?}: {}", ran.out);
        assert!(daemon.requests().is_empty(), "{arguments:?}");
    }
    let ran = run(&node(TraceVerdict::Delivered), &["top", "--once", "--network", "nope"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, ""));
}

/// Runs until it is interrupted, which it is at once.
fn interrupted(daemon: &Daemon, arguments: &[&str], terminal: bool) -> (Exit, String) {
    let interrupt = || {
        let (read, mut write) = io::pipe()?;
        write.write_all(b"x")?;
        Ok(read.into())
    };
    let around = Surroundings { terminal, no_color: true, interrupt: &interrupt, ..around() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let start = ["netctl", "--run-dir", daemon.run_dir().to_str().unwrap()];
    let exit = netctl::run(start.iter().chain(arguments), &around, &mut out, &mut err);
    assert_eq!(String::from_utf8(err).unwrap(), "");
    (exit, String::from_utf8(out).unwrap())
}

#[test]
fn what_goes_on_ends_well_when_it_is_interrupted() {
    let daemon = node(TraceVerdict::Delivered);
    assert_eq!(interrupted(&daemon, &["top"], true), (Exit::Done, String::new()));
    let (exit, out) = interrupted(&daemon, &["flows", "--follow"], false);
    // Of six flows four were told, which have two pairs of ends.
    assert_eq!((exit, out.as_str()), (Exit::Done, "6 flows match, 2 are followed (--limit)\n"));
    let (_, out) = interrupted(&daemon, &["flows", "--follow", "-o", "json"], false);
    assert_eq!(out, "{\"event\":\"incomplete\",\"followed\":2,\"matching\":6}\n");
}
