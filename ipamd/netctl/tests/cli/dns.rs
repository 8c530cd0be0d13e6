//! `netctl dns`.

use super::{
    Daemon,
    daemon::{Stream, endpoint},
    golden, json, run,
};
use ipamd_api::{
    ApiError, AttachmentKey, DnsAnswerView, DnsQuestionView, DnsRecordView, DnsStats, ErrorCode, NameSource,
    NameView, ProgramCounts, ResolverCounts, ServiceView,
};
use netctl::Exit;
use serde_json::Value;

fn views() -> Vec<NameView> {
    let view = |name: &str, addresses: &[&str], source| NameView {
        network: "web".into(),
        name: name.into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        source,
        services: vec![],
    };
    let endpoint = NameSource::Endpoint { endpoint: "000012345678".parse().unwrap(), node: "n1".into() };
    let services = vec![
        ServiceView { label: "_80._tcp".into(), port: 80 },
        ServiceView { label: "_http._tcp".into(), port: 80 },
    ];
    vec![
        NameView { services, ..view("db", &["10.89.0.7", "fd00:89::7"], endpoint) },
        view("printer", &["192.0.2.9"], NameSource::Record),
        view("sql", &["10.89.0.7", "fd00:89::7"], NameSource::Alias { target: "db".into() }),
        view("stray", &[], NameSource::Alias { target: "nobody".into() }),
    ]
}

#[test]
fn names_are_listed_given_and_taken_back() {
    let missing = ApiError::new(ErrorCode::NetworkNotFound, "there is no network nope");
    let daemon = Daemon::start(&[
        ("GET /v1/names", 200, json(&views())),
        ("GET /v1/names/web", 200, json(&views()[..1].to_vec())),
        ("GET /v1/names/nope", 404, json(&missing)),
        ("POST /v1/names", 200, json(&views()[1])),
        ("POST /v1/names/remove", 200, json!({})),
    ]);
    for (name, arguments, exit) in [
        ("dns-ls.txt", &["dns", "ls"][..], Exit::Done),
        ("dns-ls.yaml", &["dns", "ls", "-o", "yaml"], Exit::Done),
        ("dns-ls-network.txt", &["dns", "list", "web"], Exit::Done),
        ("dns-add.txt", &["dns", "add", "web", "printer", "192.0.2.9"], Exit::Done),
        ("dns-rm.txt", &["dns", "rm", "web", "printer"], Exit::Done),
    ] {
        let ran = run(&daemon, arguments);
        assert_eq!((ran.exit, ran.err.as_str()), (exit, ""), "{arguments:?}");
        golden(name, &ran.out);
    }
    let printed: Value = serde_json::from_str(&run(&daemon, &["dns", "ls", "-o", "json"]).out).unwrap();
    assert_eq!(printed, json(&views()));
    assert_eq!(run(&daemon, &["dns", "ls", "nope"]).exit, Exit::Refused);
}

#[test]
fn what_is_asked_for_is_what_the_command_line_says() {
    let daemon = Daemon::start(&[
        ("POST /v1/names", 200, json(&views()[2])),
        ("POST /v1/names/remove", 200, json!({})),
    ]);
    for (arguments, body) in [
        (
            &["dns", "add", "web", "sql.web", "--alias-of", "db"][..],
            json!({"network": "web", "name": "sql.web", "target": "db"}),
        ),
        (
            &["dns", "add", "web", "printer", "192.0.2.9", "fd00::9"],
            json!({"network": "web", "name": "printer", "addresses": ["192.0.2.9", "fd00::9"]}),
        ),
        (&["dns", "delete", "web", "sql"], json!({"network": "web", "name": "sql"})),
    ] {
        assert_eq!(run(&daemon, arguments).exit, Exit::Done, "{arguments:?}");
        assert_eq!(daemon.requests().last().unwrap().1, body, "{arguments:?}");
    }
    for wrong in [
        &["dns", "add", "web", "x"][..],
        &["dns", "add", "web", "x", "not-an-address"],
        &["dns", "add", "web", "x", "10.0.0.1", "--alias-of", "db"],
        &["dns", "rm", "web"],
    ] {
        assert_eq!(run(&daemon, wrong).exit, Exit::Usage, "{wrong:?}");
    }
}

fn stats() -> DnsStats {
    DnsStats {
        programs: ProgramCounts { a: 1_000, aaaa: 900, missed: 12, ..ProgramCounts::default() },
        resolver: ResolverCounts {
            udp: 12,
            hits: 8,
            forwarded: 4,
            queries: 5,
            silent: 1,
            ..ResolverCounts::default()
        },
        upstreams: vec!["192.0.2.53".parse().unwrap(), "[2001:db8::53]:5353".parse().unwrap()],
    }
}

fn told(status: &str) -> DnsAnswerView {
    let record = |kind: &str, data: &str| DnsRecordView {
        name: "db.web.".into(),
        ttl: 5,
        kind: kind.into(),
        data: data.into(),
    };
    let records = vec![record("A", "10.89.0.7"), record("A", "10.89.0.8")];
    DnsAnswerView {
        status: status.into(),
        took_us: 42,
        records: if status == "NOERROR" { records } else { vec![] },
    }
}

#[test]
fn a_question_is_asked_as_a_container_would() {
    let daemon = Daemon::start(&[("POST /v1/dns/query", 200, json(&told("NOERROR")))]);
    let ran = run(&daemon, &["dns", "query", "3f2a", "db"]);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
    golden("dns-query.txt", &ran.out);
    for (arguments, body) in [
        (&["dns", "query", "3f2a", "db"][..], json!({"container": "3f2a", "name": "db", "kind": "A"})),
        (
            &["dns", "query", "web-0", "_http._tcp.db", "SRV", "--network", "web"],
            json!({"container": "web-0", "network": "web", "name": "_http._tcp.db", "kind": "SRV"}),
        ),
        (
            &["dns", "query", "3f2a", "10.89.0.7"],
            json!({"container": "3f2a", "name": "10.89.0.7", "kind": "A"}),
        ),
    ] {
        assert_eq!(run(&daemon, arguments).exit, Exit::Done, "{arguments:?}");
        assert_eq!(daemon.requests().last().unwrap().1, body, "{arguments:?}");
    }
    let daemon = Daemon::start(&[("POST /v1/dns/query", 200, json(&told("NXDOMAIN")))]);
    let ran = run(&daemon, &["dns", "query", "3f2a", "nobody"]);
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Refused, "NXDOMAIN after 42 µs\n"));
}

#[test]
fn counters_are_shown_with_what_they_count() {
    let daemon =
        Daemon::start(&[("GET /v1/dns/stats", 200, json(&stats())), ("POST /v1/dns/flush", 200, json!({}))]);
    golden("dns-stats.txt", &run(&daemon, &["dns", "stats"]).out);
    let printed: Value = serde_json::from_str(&run(&daemon, &["dns", "stats", "-o", "json"]).out).unwrap();
    assert_eq!(printed, json(&stats()));
    assert_eq!(run(&daemon, &["dns", "flush"]).exit, Exit::Done);
}

#[test]
fn questions_are_printed_a_line_each() {
    let question = |container: Option<&str>, name: &str, by: &str| DnsQuestionView {
        time_ms: 1_795_255_200_123,
        attachment: container.map(|id| AttachmentKey { container_id: id.into(), ifname: "eth0".into() }),
        source: "10.89.0.7".parse().unwrap(),
        transport: "udp".into(),
        name: name.into(),
        kind: "AAAA".into(),
        status: "NOERROR".into(),
        answered_by: by.into(),
        took_us: 1_234,
    };
    let known = endpoint().attachment.container_id;
    let asked = [
        question(Some(&known), "example.com", "192.0.2.53:53"),
        question(None, "db.web", "-"),
        question(Some("other"), "x", "cache"),
    ];
    let lines = asked.iter().map(json).collect();
    let answers = [("GET /v1/endpoints", 200, json(&[endpoint()]))];
    let daemon = Daemon::with_drops(&answers, Some(Stream { lines, ends: true }));
    let ran = run(&daemon, &["dns", "log", "--follow"]);
    assert!(ran.err.contains("the stream of questions"), "{}", ran.err);
    golden("dns-log.txt", &ran.out);
    let ran = run(&daemon, &["dns", "log", "-f", "-o", "json", "--container", &known]);
    let printed: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, [json(&asked[0])]);
    let ran = run(&daemon, &["dns", "log"]);
    assert!(ran.exit == Exit::Refused && ran.err.contains("--follow"), "{}", ran.err);
}
